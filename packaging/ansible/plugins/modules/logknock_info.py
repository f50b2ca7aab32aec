#!/usr/bin/python
# MIT License (see LICENSE or https://opensource.org/license/mit)
"""What a host has of logknock and of what logknock needs. Rule: it asks, and changes nothing."""

DOCUMENTATION = r"""
---
module: logknock_info
short_description: What logknock does on a host, and whether the host can run it
version_added: 0.1.0
description:
  - Gives what C(logknock status --json) says, and what can be seen of the host where logknock is not installed yet.
  - Never gives a sequence.
options:
  config:
    description: The configuration that C(logknock status) is asked about.
    type: path
    default: /etc/logknock/logknock.toml
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
author:
  - logknock developers (!UNKNOWN) <logknock@logknock.invalid>
"""

EXAMPLES = r"""
- name: Ask how things stand
  logknock.logknock.logknock_info:
  register: found

- name: Say who is in
  ansible.builtin.debug:
    msg: "{{ found.status.doors }}"
"""

RETURN = r"""
installed:
  description: Whether there is a command C(logknock).
  type: bool
  returned: always
version:
  description: Its version; empty where it is not installed.
  type: str
  returned: always
unfit:
  description: Why this host cannot run logknock, a line for each reason.
  type: list
  elements: str
  returned: always
nft:
  description: Whether the command C(nft) is there.
  type: bool
  returned: always
peer:
  description: The address that the connection of the play comes from; empty where it is no ssh connection.
  type: str
  returned: always
listening:
  description: The services that something on this host listens on, such as C(22/tcp).
  type: list
  elements: str
  returned: always
status:
  description: What C(logknock status --json) says; null where it cannot be asked.
  type: dict
  returned: always
trouble:
  description: Why there is no status, or what needs a person.
  type: str
  returned: always
"""

import json
import os
import platform
import re
import socket
import struct

from ansible.module_utils.basic import AnsibleModule

# Python of the system, on which the packages and the wheel run.
PYTHON = "/usr/bin/python3"
OLDEST_PYTHON = (3, 11)

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h: "which generation of rules is this?"
NETLINK_NETFILTER = 12
GETGEN = (10 << 8) | 16
REQUEST = 1
ERROR = 2

# Processes above this one that are looked at: sudo in shells in sshd are ten.
MOST_PROCESSES = 64

# proc_net(5): the states of a TCP socket that listens, and of a UDP socket that is not connected.
LISTENS = {"tcp": "0A", "udp": "07"}


def nftables():
    """Why the kernel does not answer for nftables; empty where it does."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as wire:
            wire.settimeout(5)
            wire.send(struct.pack("=IHHIIBBH", 20, GETGEN, REQUEST, 1, 0, 0, 0, 0))
            answer = wire.recv(4096)
    except (AttributeError, OSError) as error:
        return str(getattr(error, "strerror", None) or error)
    if struct.unpack_from("=H", answer, 4)[0] != ERROR:
        return ""
    return os.strerror(-struct.unpack_from("=i", answer, 16)[0])


def unfit(module):
    """The reasons why this host cannot run logknock."""
    if platform.system() != "Linux":
        return [f"this host runs {platform.system()}, and logknock runs on Linux"]
    found = []
    if os.geteuid() != 0:
        found.append("the play is not root on this host: become: true")
    elif nftables():
        found.append(f"the kernel of this host has no nftables ({nftables()}), which logknock opens doors in")
    if not os.path.isdir("/run/systemd/system"):
        found.append("process 1 of this host is not systemd, and logknock is a unit of it")
    code, out, _unused = module.run_command([PYTHON, "-c", "import sys; print(*sys.version_info[:2])"])
    version = tuple(map(int, out.split())) if code == 0 else ()
    if version < OLDEST_PYTHON:
        has = f"Python {version[0]}.{version[1]}" if version else "no Python"
        found.append(f"this host has {has} as {PYTHON}, and logknock needs 3.11 (Debian 12) or newer")
    return found


def peer():
    """Where the connection comes from, as sshd told this process or one above it: sudo takes the word away."""
    process = str(os.getpid())
    for _unused in range(MOST_PROCESSES):
        try:
            with open(f"/proc/{process}/environ", "rb") as file:
                words = dict(word.partition("=")[::2] for word in file.read().decode("latin-1").split("\0"))
            if words.get("SSH_CONNECTION"):
                return words["SSH_CONNECTION"].split()[0].partition("%")[0]
            with open(f"/proc/{process}/status") as file:
                process = re.search(r"^PPid:\t(\d+)$", file.read(), re.MULTILINE).group(1)
        except (OSError, AttributeError):
            break
    return ""


def listening():
    """The services that something listens on."""
    found = set()
    for proto, state in LISTENS.items():
        for name in (proto, proto + "6"):
            try:
                with open("/proc/net/" + name) as file:
                    lines = [line.split() for line in file][1:]
            except OSError:
                continue
            found.update((int(line[1].rpartition(":")[2], 16), proto) for line in lines if line[3] == state)
    return [f"{port}/{proto}" for port, proto in sorted(found)]


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"config": {"type": "path", "default": "/etc/logknock/logknock.toml"}},
        supports_check_mode=True,
    )
    program = module.get_bin_path("logknock", opt_dirs=["/usr/local/bin"])
    version, status, trouble = "", None, "logknock is not installed"
    if program:
        version = module.run_command([program, "--version"])[1].strip().rpartition(" ")[2]
        _unused, out, said = module.run_command([program, "status", "--json", "-c", module.params["config"]])
        trouble = said.strip()
        try:
            status = json.loads(out)
        except ValueError:
            trouble = trouble or "logknock status gives no JSON"
    module.exit_json(
        installed=program is not None,
        version=version,
        unfit=unfit(module),
        nft=module.get_bin_path("nft") is not None,
        peer=peer(),
        listening=listening(),
        status=status,
        trouble=trouble,
    )


if __name__ == "__main__":
    main()
