"""Hosts with another firewall: Debian's own packages on a booted systemd, with the rules that they begin with.

Rule 1: what runs is the package as it is, unpacked by `make setup-test`; what its installation does besides unpacking
is done here, and nothing more. Rule 2: commands come from the documentation, as they stand there. Rule 3: logknock is
where its own package puts it, and runs by the unit that comes with it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..netns import Host
from ..peers import UNPACKED
from .booted import PROJECT, BootedHost, booted
from .pages import Block, run
from .test_unit import INSTALL
from .world import World

# Where the commands of the documentation find `rules/`.
DOCUMENTATION = "/usr/share/doc/logknock"

# Another address of the client's, per family, which never knocks.
STRANGER = ("10.99.0.3", "fd99::3")

# What has to be the same before and afterwards: the rules as all the ways to look at them show them, and the files.
# (iptables-persistent's have counters in them, and the time.)
_RULES = {
    "nftables": "nft --stateless list ruleset",
    "iptables": "iptables-save",
    "ip6tables": "ip6tables-save",
    "iptables-legacy": "iptables-legacy-save",
    "ip6tables-legacy": "ip6tables-legacy-save",
    "saved by iptables-persistent": "cat /etc/iptables/* 2>/dev/null || true",
}
_FILES = """
find /etc ! -type d -printf '%p %y %m %u %l\\n' | sort
find /etc -type f ! -path '/etc/iptables/*' -exec md5sum {} + | sort
"""

# Counters, comments, and tables without a rule: iptables makes those when it is asked for anything.
_EMPTY = r"^table \S+ \S+ \{\n\}\n|^\*\w+\n(:\w+ ACCEPT \[\d+:\d+\]\n)*COMMIT\n"
_BESIDES = re.compile(rf"^#.*\n|\[\d+:\d+\]|{_EMPTY}", re.MULTILINE)

# Which of these pairs, `source>destination` each, can talk to a port: tried all at a time.
CONNECT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
port, *pairs = sys.argv[1:]
def talks(pair):
    src, dst = pair.split(">")
    try:
        with socket.create_connection((dst, int(port)), timeout=0.5, source_address=(src, 0)) as s:
            s.settimeout(20)  # it is let in: the server answers as soon as it has its turn
            s.sendall(b"hello\\n")
            return s.recv(100) == b"hello\\n"
    except OSError:
        return False
with ThreadPoolExecutor() as pool:
    print(*(pair.partition(">")[0] for pair, answered in zip(pairs, pool.map(talks, pairs)) if answered))
"""


# The door that the documentation has throughout.
SSH = """
[doors.ssh]
sequence = ["7000/tcp", "9000/udp", "8000/tcp"]
seq_timeout = "15s"
opens = ["22/tcp"]
timeout = "30s"
"""


def install(host: BootedHost, configuration: str = SSH) -> None:
    """What the package does, and a configuration; the service is not started."""
    run(host, f"rm -rf /etc/logknock\n{INSTALL.format(project=PROJECT)}")
    run(host, f"mkdir -p {DOCUMENTATION} && ln -s /usr/lib/python3/dist-packages/logknock/rules {DOCUMENTATION}")
    configure(host, configuration)


def configure(host: BootedHost, text: str) -> None:
    """Write /etc/logknock/logknock.toml as the package keeps it."""
    host.run("install", "-m", "640", "-g", "logknock", "/dev/stdin", "/etc/logknock/logknock.toml", input=text)


@dataclass
class Neighbour(World):
    """A host with another firewall, somebody who knocks, and somebody who does not."""

    port: int = 22

    def shell(self, commands: str | Block) -> str:
        """What the commands say on a terminal, where logknock's documentation is; each of them must succeed."""
        return run(self.gateway, commands, DOCUMENTATION)

    def as_it_is(self) -> Mapping[str, str]:
        """The rules in the kernel, but for counters, and the files of the host."""
        rules = {name: _BESIDES.sub("", self.shell(command)) for name, command in _RULES.items()}
        return rules | {"files": self.shell(_FILES)}

    @property
    def knocker(self) -> frozenset[str]:
        return frozenset((self.client.ipv4, self.client.ipv6))

    @property
    def everybody(self) -> frozenset[str]:
        return self.knocker.union(STRANGER)

    def let_in(self) -> frozenset[str]:
        """The addresses from which a connection can be made now."""
        places = {4: self.gateway.ipv4, 6: self.gateway.ipv6}
        pairs = (f"{src}>{places[6 if ':' in src else 4]}" for src in self.everybody)
        return frozenset(self.client.python(CONNECT, str(self.port), *pairs).stdout.split())


@contextmanager
def neighbour(hosts: tuple[Host, Host], folder: Path) -> Iterator[Neighbour]:
    """The host with all packages there and none running; logknock is installed, and not started."""
    gateway, client = hosts
    ipv4, ipv6 = STRANGER
    client.run("ip", "addr", "add", f"{ipv4}/24", "dev", "eth0")
    # Deprecated: what does not ask for it goes on using the other one.
    client.run("ip", "addr", "add", f"{ipv6}/64", "dev", "eth0", "nodad", "preferred_lft", "0")
    with booted(gateway, folder, UNPACKED) as inside:
        install(inside)
        yield Neighbour(inside, client, Path("/etc/logknock/logknock.toml"))
