#!/usr/bin/python
# MIT License (see LICENSE or https://opensource.org/license/mit)
"""Opens and closes doors without a knock. Rule: the running daemon decides, and its command is what is asked."""

DOCUMENTATION = r"""
---
module: logknock_grant
short_description: Open a door for an address without a knock, or close it
version_added: 0.1.0
description:
  - Has the running daemon open a door for an address, as if it had knocked there, or close what is open for it.
  - Who may ask the daemon are root and the members of the group C(logknock).
options:
  address:
    description: For whom the door is to be open, an IPv4 or IPv6 address.
    type: str
    required: true
  door:
    description: The name of the door. With I(state=absent) it may be left out, which means every door.
    type: str
  state:
    description: C(present), the door is open for the address; C(absent), it is not.
    type: str
    choices: [present, absent]
    default: present
  timeout:
    description: How long it is to be open, such as C(30s), C(8h) or C(2d); by default as long as after a knock.
    type: str
  renew:
    description: Whether a door that is open already is given the timeout anew. Then every run is a change.
    type: bool
    default: false
  config:
    description: The configuration of the daemon that is asked.
    type: path
    default: /etc/logknock/logknock.toml
attributes:
  check_mode:
    description: Says what would change, and changes nothing.
    support: full
  diff_mode:
    description: Shows for whom which doors are open before and afterwards.
    support: full
author:
  - logknock developers (!UNKNOWN) <logknock@logknock.invalid>
"""

EXAMPLES = r"""
- name: Let a colleague in for the day
  logknock.logknock.logknock_grant:
    door: ssh
    address: 192.0.2.7
    timeout: 8h

- name: Close every door that is open for an address
  logknock.logknock.logknock_grant:
    address: 192.0.2.7
    state: absent
"""

RETURN = r"""
grants:
  description: What is open for the address afterwards; in check mode before.
  type: list
  elements: dict
  returned: always
  sample:
    - {door: ssh, address: 192.0.2.7, left: 28800.0, by: "root (uid 0)"}
"""

import ipaddress
import json

from ansible.module_utils.basic import AnsibleModule


class Daemon:
    """The running daemon, by its command."""

    def __init__(self, module, program):
        self.module = module
        self.program = program

    def ask(self, *words):
        """What the command says; ends the module where it fails."""
        options = ["-c", self.module.params["config"], *(["--", *words[1:]] if words[1:] else ["--json"])]
        code, out, said = self.module.run_command([self.program, words[0], *options])
        if code:
            self.module.fail_json(msg=said.strip() or f"exit code {code}", rc=code)
        return out

    def grants(self, address, door):
        """What is open for the address: at this door, or at all of them."""
        every = [json.loads(line) for line in self.ask("grants").splitlines()]
        return [
            grant
            for grant in every
            if ipaddress.ip_address(grant["address"]) == address and door in (None, grant["door"])
        ]

    def refuse_unknown(self, door):
        """Ends the module where the daemon has no such door. Where it does not say so, what is asked next fails."""
        out = self.module.run_command([self.program, "status", "--json", "-c", self.module.params["config"]])[1]
        try:
            doors = [each["name"] for each in json.loads(out)["standing"]["doors"]]
        except (ValueError, KeyError, TypeError):
            return
        if door not in doors:
            self.module.fail_json(msg=f"there is no door {door}: the doors are {', '.join(doors)}")


def lines(grants):
    """For the diff."""
    return "".join("{} is open for {}\n".format(grant["door"], grant["address"]) for grant in grants)


def parsed(module):
    """The address; one that is IPv4 in IPv6's clothes is IPv4, as the daemon has it."""
    try:
        address = ipaddress.ip_address(module.params["address"])
    except ValueError as error:
        return module.fail_json(msg=f"address: {error}")
    return getattr(address, "ipv4_mapped", None) or address


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "door": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "timeout": {"type": "str"},
            "renew": {"type": "bool", "default": False},
            "config": {"type": "path", "default": "/etc/logknock/logknock.toml"},
        },
        required_if=[("state", "present", ["door"])],
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    address, door = parsed(module), module.params["door"]
    daemon = Daemon(module, module.get_bin_path("logknock", required=True, opt_dirs=["/usr/local/bin"]))
    if door is not None:
        daemon.refuse_unknown(door)
    before = after = daemon.grants(address, door)
    if module.params["state"] == "absent":
        changed, command, expected = bool(before), ["revoke"] + ([door] if door else []) + [str(address)], []
    else:
        changed = not before or module.params["renew"]
        command = ["grant", door, str(address)] + ([module.params["timeout"]] if module.params["timeout"] else [])
        expected = before or [{"door": door, "address": str(address)}]
    if changed and not module.check_mode:
        daemon.ask(*command)
        after = expected = daemon.grants(address, door)
    diff = {"before": lines(before), "after": lines(expected)}
    module.exit_json(changed=changed, grants=after, diff=diff)


if __name__ == "__main__":
    main()
