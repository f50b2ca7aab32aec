"""Servers, clients under many addresses, and a reader of the log: what shows how a host treats whom."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

from ..netns import Host
from .world import PATIENCE

# Echoes on each SERVICE of the arguments, at all addresses of both families.
SERVER = """
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for service in sys.argv[1:]:
    port, proto = service.split("/")
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("::", int(port)))
    if proto == "tcp":
        s.listen()
    chosen.register(s, selectors.EVENT_READ, proto)
print("up", flush=True)
while True:
    for key, _ in chosen.select():
        if key.data == "udp":
            key.fileobj.sendto(*key.fileobj.recvfrom(99))
        elif key.data == "tcp":
            chosen.register(key.fileobj.accept()[0], selectors.EVENT_READ, "session")
        elif data := key.fileobj.recv(99):
            key.fileobj.sendall(data)
        else:
            chosen.unregister(key.fileobj)
            key.fileobj.close()
"""

# One packet from SOURCE to HOST SERVICE, and what comes of it within TIMEOUT seconds.
PROBE = """
import socket, sys
source, host, service, timeout = sys.argv[1:]
port, proto = service.split("/")
kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as s:
    s.settimeout(float(timeout))
    s.bind((source, 0))
    try:
        s.connect((host, int(port)))
        if proto == "udp":
            s.send(b"x")
            s.recv(9)
        print("answered")
    except ConnectionRefusedError:
        print("refused")
    except TimeoutError:
        again = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)[2] if proto == "tcp" else 0  # tcpi_retransmits
        print("silence", again)
"""

# COUNT datagrams at once from SOURCE to HOST PORT.
FLOOD = """
import socket, sys
source, host, port, count = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind((source, 0))
    for _ in range(int(count)):
        s.sendto(b"x", (host, int(port)))
"""

# Prints what comes out of the NFLOG group, as `address service`; the numbers are those of linux/nfnetlink_log.h.
READER = """
import socket, struct
from logknock import netlink
from logknock.knock import Service
from logknock.packet import address_text, from_ip
source = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
bind, copy_packets, at_once = (1, b"\\1"), (2, struct.pack("!IBx", 128, 2)), (5, struct.pack("!I", 1))
for kind, value in (bind, copy_packets, at_once):
    source.send(netlink.netfilter_message(4 << 8 | 1, 0, 0, 0, 5, netlink.attribute(kind, value)))
print("ready", flush=True)
while True:
    for message in netlink.messages(memoryview(source.recv(65536))):
        packet = from_ip(bytes(netlink.attributes(message.body[4:])[9]), 0)
        print(address_text(packet.src), Service(packet.proto, packet.dport), flush=True)
"""

ROLES = {
    4: {
        "stranger": "198.51.100.10",
        "granted": "198.51.100.20",
        "banned": "198.51.100.30",
        "its neighbour": "198.51.100.31",
        "trusted": "198.51.100.40",
        "sentinel": "198.51.100.99",
    },
    6: {
        "stranger": "fd98::10",
        "granted": "fd98::20",
        "banned": "fd98:0:0:30::5",
        "its neighbour": "fd98:0:0:31::5",
        "trusted": "fd98::40",
    },
}


def take_roles(client: Host) -> None:
    """Give the client all the addresses of ROLES."""
    for version, roles in ROLES.items():
        for address in roles.values():
            length, flags = (32, []) if version == 4 else (128, ["nodad"])
            client.run("ip", "addr", "add", f"{address}/{length}", "dev", "eth0", *flags)


def at(host: Host, version: int) -> str:
    return host.ipv4 if version == 4 else host.ipv6


def probe(client: Host, source: str, target: str, service: str, expected: str) -> int:
    """Try once; silence is waited for a moment only, an answer until it comes.

    How many packets that was: on a machine that stood still for a second the kernel has repeated a SYN.
    """
    patience = 0.3 if expected == "silence" else PATIENCE
    came, *again = client.python(PROBE, source, target, service, str(patience)).stdout.split()
    assert came == expected
    return 1 + sum(map(int, again))


@contextmanager
def running(host: Host, *command: str, ready: str) -> Iterator[subprocess.Popen[str]]:
    """A program in the background, from the line that says it is ready on; ten minutes at most."""
    process = host.start("timeout", "600", *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if ready in line:
                break
        yield process
    finally:
        process.terminate()
        process.communicate()


def serving(host: Host, *services: str) -> AbstractContextManager[object]:
    """The SERVER on these services."""
    return running(host, sys.executable, "-c", SERVER, *services, ready="up")


class Log:
    """What comes out of the NFLOG group."""

    def __init__(self, gateway: Host, client: Host, lines: Iterator[str]) -> None:
        self._gateway, self._client, self._lines = gateway, client, lines

    def read(self) -> list[str]:
        """All since the last time, as `address service`: up to a packet of the sentinel's, sent now."""
        last = f"{ROLES[4]['sentinel']} 9000/udp"
        self._client.python(FLOOD, ROLES[4]["sentinel"], self._gateway.ipv4, "9000", "1")
        found: list[str] = []
        for line in self._lines:
            if line.strip() == last:
                return found
            found.append(line.strip())
        raise AssertionError("the reader ended")


@contextmanager
def logging(gateway: Host, client: Host) -> Iterator[Log]:
    """A reader of the group."""
    with running(gateway, sys.executable, "-c", READER, ready="ready") as process:
        assert process.stdout is not None
        yield Log(gateway, client, process.stdout)


# A session that says something whenever a line comes in, and tells whether it was answered within TIMEOUT seconds.
SESSION = """
import socket, sys
with socket.create_connection((sys.argv[1], 22)) as s:
    print("connected", flush=True)
    for timeout in sys.stdin:
        s.settimeout(float(timeout))
        try:
            s.sendall(b"x")
            print("answered" if s.recv(9) else "closed", flush=True)
        except TimeoutError:
            print("silence", flush=True)
"""


class Session:
    """A connection to port 22 that stays."""

    def __init__(self, client: Host, address: str) -> None:
        self._process = client.start(
            sys.executable, "-c", SESSION, address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._read() == "connected"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, timeout: float = 20) -> str:
        """Send something, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{timeout}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def bytecode(host: Host) -> str:
    """Our rules as the kernel runs them."""
    shown = host.run("nft", "--debug=netlink", "--terse", "list", "table", "inet", "logknock").stdout
    return "\n".join(line for line in shown.splitlines() if line.startswith("  [ "))
