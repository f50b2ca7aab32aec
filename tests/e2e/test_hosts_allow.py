"""A door's file of addresses, as Debian's tcpd reads it from /etc/hosts.allow."""

import ipaddress
import subprocess
import sys
from pathlib import Path

import pytest

from logknock.actions import AllowFile

from .world import KNOCKS, SSH, World, until

ROOT = Path(__file__).parent.parent.parent


def packed(*texts: str) -> list[bytes]:
    return [ipaddress.ip_address(text).packed for text in texts]


@pytest.fixture
def allow(tmp_path: Path) -> Path:
    """The file, and beside it the tables that an administrator writes."""
    file = tmp_path / "allow" / "sshd"
    (tmp_path / "hosts.allow").write_text(f"sshd: {file}\n")
    (tmp_path / "hosts.deny").write_text("sshd: ALL\n")
    return file


def verdict(allow: Path, address: str) -> str:
    """What tcpd would do with a connection to sshd (-d: by the tables in the current directory)."""
    command = ["tcpdmatch", "-d", "sshd", address]
    done = subprocess.run(command, cwd=allow.parent.parent, capture_output=True, text=True, check=True, timeout=60)
    assert "warning" not in done.stdout + done.stderr
    return done.stdout.split()[-1]


def test_who_is_in_the_file_gets_in(allow: Path) -> None:
    file = AllowFile(allow)
    file.write(packed("10.99.0.2", "2001:db8::1", "fd99::2", "::1:2"))
    for address in ("10.99.0.2", "2001:db8::1", "fd99::2", "FD99:0:0::0002", "::1:2", "::ffff:10.99.0.2"):
        assert verdict(allow, address) == "granted", address
    for address in (
        "10.99.0.3",
        "10.99.0.20",
        "110.99.0.2",
        "2001:db8::2",
        "2001:db8::11",
        "fd99::",
        "::ffff:10.9.0.2",
    ):
        assert verdict(allow, address) == "denied", address


def test_who_is_taken_out_stays_out(allow: Path) -> None:
    file = AllowFile(allow)
    file.write(packed("10.99.0.2", "fd99::2"))
    file.write(packed("fd99::2"))
    assert (verdict(allow, "10.99.0.2"), verdict(allow, "fd99::2")) == ("denied", "granted")
    file.write([])
    assert (verdict(allow, "10.99.0.2"), verdict(allow, "fd99::2")) == ("denied", "denied")


def test_nobody_gets_in_before_there_is_a_file(allow: Path) -> None:
    assert verdict(allow, "10.99.0.2") == "denied"


def test_a_comment_would_be_read_as_patterns(allow: Path) -> None:
    """Why there is none in the file: tcpd takes each word of it for a pattern, `ALL` for everybody."""
    allow.parent.mkdir()
    allow.write_text("# ALL the doors that are open\n")
    assert verdict(allow, "10.99.0.3") == "granted"


WRITER = """
import ipaddress, sys
from pathlib import Path
from logknock.actions import AllowFile
file = AllowFile(Path(sys.argv[1]))
held = ipaddress.ip_address("10.99.3.2").packed
others = [(number << 8 | 10).to_bytes(4, "little") for number in range(1, 400)]
while True:
    for count in range(0, 400, 7):
        file.write([held, *others[:count]])
        if not count:
            print("round", flush=True)
"""


def whole(allow: Path) -> int:
    """How many lines the file has, each of which is an address."""
    content = allow.read_text()
    lines = content.splitlines()
    assert "10.99.3.2" in lines
    assert content.endswith("\n")
    assert all(ipaddress.ip_address(line) for line in lines)
    return len(lines)


def test_the_file_is_whole_whenever_it_is_read(allow: Path) -> None:
    """A grantee is let in, and nobody else, at every moment; half a line could be the pattern of a whole network."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(allow)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        try:
            until(allow.exists, "the first file")
            lengths = {whole(allow) for _ in range(3000)}
            until(lambda: len({*lengths, whole(allow)}) > 1, "a file that changes")
            for _ in range(100):
                assert verdict(allow, "10.99.3.2") == "granted"
                assert verdict(allow, "10.99.3.77") == "denied"
            assert writer.poll() is None
        finally:
            writer.kill()


def test_the_daemon_keeps_the_file(world: World) -> None:
    """Who knocks gets in, over both families, and is out when the door closes."""
    world.configure(f'{SSH}allow_file = "sshd"\n'.replace('"30s"', '"10s"'))
    world.apply()
    allow = world.config.parent / "state/allow/sshd"
    (allow.parent.parent / "hosts.allow").write_text(f"sshd: {allow}\n")
    (allow.parent.parent / "hosts.deny").write_text("sshd: ALL\n")
    with world.daemon() as daemon:
        assert verdict(allow, world.client.ipv4) == "denied"
        world.knock(*KNOCKS)
        world.knock(*KNOCKS, address=world.gateway.ipv6)
        daemon.wait_for(f"{world.client.ipv6}: ssh: OPEN SESAME")
        until(lambda: len(allow.read_text().split()) == 2, "both addresses")
        assert [verdict(allow, address) for address in (world.client.ipv4, world.client.ipv6)] == ["granted"] * 2
        assert verdict(allow, world.gateway.ipv4) == "denied"
        until(lambda: not allow.read_text(), "the end of it")
        assert verdict(allow, world.client.ipv4) == "denied"
