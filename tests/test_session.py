"""Whose ssh session this is: what an environment may say, and what is believed of it."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock import session
from logknock.packet import parse_address
from logknock.session import MAX_ENVIRONMENT, MAX_PROCESSES, Session, parse

from .netns import Host


def told(value: str) -> bytes:
    return b"HOME=/root\0SSH_CONNECTION=" + value.encode("utf-8", "surrogateescape") + b"\0TERM=xterm\0"


@pytest.mark.parametrize(
    ("value", "peer", "service"),
    [
        pytest.param("203.0.113.9 50022 192.0.2.1 22", "203.0.113.9", "22/tcp", id="IPv4"),
        pytest.param("2001:db8::9 50022 2001:db8::1 2222", "2001:db8::9", "2222/tcp", id="IPv6, another port"),
        pytest.param("fe80::9%eth0 50022 fe80::1%eth0 22", "fe80::9", "22/tcp", id="a zone is dropped"),
        pytest.param("::ffff:203.0.113.9 1 ::ffff:192.0.2.1 22", "203.0.113.9", "22/tcp", id="IPv4 in IPv6 form"),
        pytest.param("::ffff:203.0.113.9 1 192.0.2.1 65535", "203.0.113.9", "65535/tcp", id="in that form at one end"),
    ],
)
def test_a_session_is_its_two_ends(value: str, peer: str, service: str) -> None:
    found = parse(told(value))
    assert found is not None
    assert found.address == peer
    assert str(found.service) == service


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="nothing"),
        pytest.param("UNKNOWN 65535 UNKNOWN 65535", id="what sshd says where it does not know"),
        pytest.param("203.0.113.9 50022 192.0.2.1", id="three words"),
        pytest.param("203.0.113.9 50022 192.0.2.1 22 ", id="a blank more"),
        pytest.param("203.0.113.9  50022 192.0.2.1 22", id="two blanks"),
        pytest.param("203.0.113.9\t50022\t192.0.2.1\t22", id="no blanks"),
        pytest.param("\n203.0.113.9 50022 192.0.2.1 22", id="a newline"),
        pytest.param("203.0.113.9 0 192.0.2.1 22", id="port 0"),
        pytest.param("203.0.113.9 50022 192.0.2.1 65536", id="a port too far"),
        pytest.param("203.0.113.9 +5 192.0.2.1 22", id="a sign"),
        pytest.param("203.0.113.9 50022 192.0.2.1 ٢٢", id="digits of another script"),
        pytest.param("203.0.113.9 50022 2001:db8::1 22", id="two families"),
        pytest.param("host.example 50022 192.0.2.1 22", id="a name"),
        pytest.param("203.0.113.0/24 50022 192.0.2.1 22", id="a network"),
        pytest.param("203.0.113.09 50022 192.0.2.1 22", id="an octal number"),
        pytest.param("3405803785 50022 192.0.2.1 22", id="an address as one number"),
        pytest.param(f"fe80::9%{'e' * 300} 50022 fe80::1 22", id="a zone without end"),
    ],
)
def test_what_is_no_connection_is_no_session(value: str) -> None:
    assert parse(told(value)) is None


def test_the_first_of_a_name_counts_and_a_name_counts_whole() -> None:
    """As getenv(3) has it."""
    one, other = "203.0.113.9 1 192.0.2.1 22", "203.0.113.8 1 192.0.2.1 22"
    assert parse(told(one) + told(other)) == parse(told(one))
    assert parse(b"OLD_SSH_CONNECTION=" + one.encode()) is None
    assert parse(b"PS1=\nSSH_CONNECTION=" + one.encode()) is None


words = st.one_of(st.binary(), st.sampled_from([b"SSH_CONNECTION=", b"\0", b" ", b"%", b"::", b"203.0.113.9", b"22"]))


@given(st.lists(words).map(b"".join))
def test_no_environment_is_an_exception(environment: bytes) -> None:
    for text in (environment, b"SSH_CONNECTION=" + environment):
        found = parse(text)
        assert found is None or (len(found.peer) == len(found.local) and len(found.peer) in (4, 16))


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
ports = st.integers(1, 65_535)


@given(addresses, ports, ports)
def test_any_session_is_told_as_it_is(address: str, peer_port: int, local_port: int) -> None:
    raw = parse_address(address)
    assert parse(told(f"{address} {peer_port} {address} {local_port}")) == Session(raw, peer_port, raw, local_port)


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("192.0.2.1", False), ("fe80::1", False)],
)
def test_a_session_from_this_host_is_known_as_such(peer: str, is_local: bool) -> None:
    raw = parse_address(peer)
    assert Session(raw, 1, raw, 22).is_local == is_local


# ---- the processes above


class Tree:
    """Processes as /proc has them, each the parent of the one before; the first is ourselves."""

    def __init__(self, proc: Path, *environments: bytes | None) -> None:
        self.proc = proc
        for number, environment in enumerate(environments):
            folder = proc / ("self" if number == 0 else str(1000 - number))
            folder.mkdir(parents=True)
            if environment is not None:  # else it may not be read
                (folder / "environ").write_bytes(environment)
            parent = 1000 - number - 1 if number + 1 < len(environments) else 0
            (folder / "status").write_text(
                f"Name:\tsh\\nPPid:\t7\nState:\tS\nTgid:\t1\nPPid:\t{parent}\nTracerPid:\t0\n"
            )
        (proc / "self" / "net").mkdir()

    def connect(self, *rows: str) -> None:
        """Connections: local address, peer, state."""
        for name in ("tcp", "tcp6"):
            lines = [f"{at:4}: {row} 00000000:00000000 00:00000000 00000000 0 0 1 1 0\n" for at, row in enumerate(rows)]
            (self.proc / "self" / "net" / name).write_text("  sl  local_address rem_address st\n" + "".join(lines))

    def session(self) -> str:
        found = session.current(self.proc)
        return "" if found is None else found.address if found.is_seen else f"{found.address} it says"


def row(found: Session, state: str = "01") -> str:
    """A connection as /proc/net/tcp shows it: each word of four bytes in the machine's own order."""
    ends = ((found.local, found.local_port), (found.peer, found.peer_port))
    texts = []
    for address, port in ends:
        parts = [address[at : at + 4] for at in range(0, len(address), 4)]
        texts.append("".join(f"{int.from_bytes(part, sys.byteorder):08X}" for part in parts) + f":{port:04X}")
    return f"{' '.join(texts)} {state}"


NEAR, FAR = "203.0.113.9 50022 192.0.2.1 22", "2001:db8::9 50022 2001:db8::1 22"


def made(value: str) -> Session:
    found = parse(told(value))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("environments", "connected", "expected"),
    [
        pytest.param([told(NEAR)], [NEAR], "203.0.113.9", id="our own"),
        pytest.param([b"", b"TERM=x\0", told(NEAR)], [NEAR], "203.0.113.9", id="sudo and su take it away"),
        pytest.param([b"", None, told(NEAR)], [NEAR], "203.0.113.9", id="a process that may not be looked at"),
        pytest.param([told(NEAR), told(FAR)], [NEAR, FAR], "203.0.113.9", id="the nearest counts"),
        pytest.param([told(NEAR), told(FAR)], [FAR], "2001:db8::9", id="a stale one does not"),
        pytest.param([told("lies"), told(FAR)], [FAR], "2001:db8::9", id="nor does a malformed one"),
        pytest.param(
            [told(NEAR), told(NEAR)], [], "203.0.113.9 it says", id="tmux from a session that is over, or mosh"
        ),
        pytest.param([told(NEAR), told(FAR)], [], "203.0.113.9 it says", id="of two that are over the nearest"),
        pytest.param([b""], [NEAR], "", id="no word of it"),
        pytest.param([b""] * (MAX_PROCESSES - 1) + [told(NEAR)], [NEAR], "203.0.113.9", id="far above"),
        pytest.param([b""] * MAX_PROCESSES + [told(NEAR)], [NEAR], "", id="too far above"),
        pytest.param([b"A=" + b"x" * MAX_ENVIRONMENT + b"\0" + told(NEAR)], [NEAR], "", id="too far behind"),
    ],
)
def test_the_session_is_the_nearest_that_the_kernel_knows(
    tmp_path: Path, environments: list[bytes | None], connected: list[str], expected: str
) -> None:
    tree = Tree(tmp_path, *environments)
    tree.connect(*(row(made(value)) for value in connected))
    assert tree.session() == expected


def test_only_an_established_connection_counts_and_all_four_of_its_parts(tmp_path: Path) -> None:
    tree = Tree(tmp_path, told(NEAR))
    near = made(NEAR)
    swapped = Session(near.local, near.local_port, near.peer, near.peer_port)
    others = [near._replace(peer_port=1), near._replace(local_port=23), near._replace(peer=near.local), swapped]
    tree.connect(row(near, "06"), row(near, "0A"), *map(row, others))
    assert tree.session() == "203.0.113.9 it says"
    tree.connect(row(near, "06"), row(near))
    assert tree.session() == "203.0.113.9"


def test_a_host_without_ipv6_or_without_proc_has_no_trouble(tmp_path: Path) -> None:
    tree = Tree(tmp_path, told(NEAR))
    tree.connect(row(made(NEAR)))
    (tmp_path / "self" / "net" / "tcp6").unlink()
    assert tree.session() == "203.0.113.9"
    (tmp_path / "self" / "net" / "tcp").unlink()
    assert tree.session() == "203.0.113.9 it says"
    assert session.current(tmp_path / "nowhere") is None


# ---- with the kernel's own connections

FIND = "from logknock import session; found = session.current(); print(found and found.is_seen and found.address)"


@contextmanager
def connection(server: Host, client: Host, family: socket.AddressFamily, listen: str) -> Iterator[str]:
    """A connection from one host to the other, and what sshd would say of it."""
    with server.inside(), socket.create_server((listen, 22), family=family, dualstack_ipv6=listen == "::") as waiting:
        to = server.ipv6 if listen == server.ipv6 else server.ipv4
        with client.inside():
            peer = socket.create_connection((to, 22))
        with peer, waiting.accept()[0] as here:
            yield " ".join(f"{end[0]} {end[1]}" for end in (here.getpeername(), here.getsockname()))


@pytest.mark.parametrize(
    ("family", "listen", "expected"),
    [
        pytest.param(socket.AF_INET, "0.0.0.0", "10.99.0.2", id="IPv4"),
        pytest.param(socket.AF_INET6, "fd99::1", "fd99::2", id="IPv6"),
        pytest.param(socket.AF_INET6, "::", "10.99.0.2", id="IPv4 at a socket for both"),
    ],
)
def test_a_real_connection_is_found_and_none_that_is_elsewhere(
    hosts: tuple[Host, Host], family: socket.AddressFamily, listen: str, expected: str
) -> None:
    gateway, client = hosts
    with connection(gateway, client, family, listen) as words:
        told_so = {**os.environ, "SSH_CONNECTION": words}
        # sudo: a shell that has it, and a process without.
        below = ("sh", "-c", 'env -u SSH_CONNECTION "$@"; true', "sh", sys.executable, "-c", FIND)
        assert gateway.run(*below, env=told_so).stdout == f"{expected}\n"
        assert client.run(*below, env=told_so).stdout == "False\n"
    assert gateway.run(*below, env=told_so).stdout == "False\n"


def test_not_to_be_root_is_no_trouble(hosts: tuple[Host, Host]) -> None:
    """The processes above may be somebody else's: then what they know is not known."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", sys.executable, "-c", FIND)
    with connection(*hosts, socket.AF_INET, "0.0.0.0") as words:
        environment = {**os.environ, "SSH_CONNECTION": words}
        assert hosts[0].run(*nobody, env=environment).stdout == "10.99.0.2\n"
        below = ("sh", "-c", 'env -u SSH_CONNECTION "$@"; true', "sh", *nobody)
        assert hosts[0].run(*below, env=environment).stdout == "None\n"
