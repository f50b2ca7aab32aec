"""Whose ssh session this is: where it comes from, and which port it came to.

Rule 1: it is SSH_CONNECTION that tells (ssh(1)), of this process or of the nearest process above it that has one: sudo
and su take it out of the environment, and leave the processes above as they are.
Rule 2: a word counts for more where the kernel has that very connection, now; else it may be what a multiplexer (tmux,
screen) keeps from a session that is over, or mosh's, whose ssh connection ends when it begins. Where there is no
better one it is all there is, and said to be. Who runs this may do anything to the rules anyway: nothing is won by a
false word. Rule 3: what is not to be read is no session; nothing is raised.

Not told are sessions through a relay on this host, whose other end is this host itself.
"""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .knock import Service
from .packet import TCP, address_text, parse_address

# Processes looked at, this one included: shells in shells in sudo are ten.
MAX_PROCESSES = 64

# Bytes of an environment that are looked at; what a login gives has some thousand.
MAX_ENVIRONMENT = 1 << 20

_NAME = b"SSH_CONNECTION="
_MOST = 200  # letters: two addresses with their zones (64 each at most), two ports, three blanks
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_ESTABLISHED = "01"  # linux/include/net/tcp_states.h
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2


class Session(NamedTuple):
    """An ssh session: the two ends of its connection, addresses in network order and of one family.

    is_seen: whether the kernel has the connection, here and now.
    """

    peer: bytes
    peer_port: int
    local: bytes
    local_port: int
    is_seen: bool = False

    @property
    def address(self) -> str:
        """Where it comes from."""
        return address_text(self.peer)

    @property
    def service(self) -> Service:
        """What it came to, as the ssh daemon sees it: after an address translation, if there is one."""
        return Service(TCP, self.local_port)

    @property
    def is_local(self) -> bool:
        """Whether it comes from this host itself, which no rule of ours concerns."""
        return self.peer[0] == 127 if len(self.peer) == 4 else self.peer == bytes(15) + b"\1"


def current(proc: Path = Path("/proc")) -> Session | None:
    """The session that this process is in: the nearest that the kernel knows, else the nearest; None: none is told."""
    process = "self"
    told: dict[Session, None] = {}  # the processes of a session have all the same word
    for _ in range(MAX_PROCESSES):
        found = parse(_environment(proc / process))
        if found is not None and found not in told:
            if _is_connected(found, proc):
                return found._replace(is_seen=True)
            told[found] = None
        process = _parent(proc / process)
        if process in ("", "0"):
            break
    return next(iter(told), None)


def parse(environment: bytes) -> Session | None:
    """What an environment (proc(5): `NAME=value`, a zero byte after each) says of a session."""
    value = next((word[len(_NAME) :] for word in environment.split(b"\0") if word.startswith(_NAME)), b"")
    text = value[: _MOST + 1].decode("latin-1")
    if len(text) > _MOST or not (text.isascii() and text.isprintable()):
        return None
    match text.split(" "):
        case [peer, peer_port, local, local_port]:
            pass
        case _:
            return None
    ports = [int(port) for port in (peer_port, local_port) if _PORT.fullmatch(port)]
    try:
        addresses = [parse_address(address.partition("%")[0]) for address in (peer, local)]
    except ValueError:
        return None
    if len(ports) != 2 or max(ports) > 65_535 or len(addresses[0]) != len(addresses[1]):
        return None
    return Session(addresses[0], ports[0], addresses[1], ports[1])


def _environment(process: Path) -> bytes:
    with suppress(OSError), (process / "environ").open("rb") as file:
        return file.read(MAX_ENVIRONMENT)
    return b""


def _parent(process: Path) -> str:
    """The number of a process's parent; empty where that cannot be seen."""
    with suppress(OSError):
        found = re.search(rb"^PPid:\t(\d+)$", (process / "status").read_bytes(), re.MULTILINE)
        return found[1].decode() if found else ""
    return ""


def _is_connected(session: Session, proc: Path) -> bool:
    """Whether the kernel has this connection. (IPv4 is among IPv6's where a socket takes both.)"""
    wanted = (session.local, session.local_port, session.peer, session.peer_port)
    for name in ("tcp", "tcp6"):
        with suppress(OSError), (proc / "self" / "net" / name).open(encoding="ascii") as file:
            next(file, None)
            for line in file:
                _, local, peer, state, *_ = line.split()
                if state == _ESTABLISHED and (*_end(local), *_end(peer)) == wanted:
                    return True
    return False


def _end(text: str) -> tuple[bytes, int]:
    """One end of a connection in /proc/net: words of four bytes, in the machine's own order."""
    address, _, port = text.partition(":")
    data = b"".join(int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
    return data[12:] if data[:12] == _MAPPED else data, int(port, 16)
