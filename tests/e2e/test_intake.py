"""Sources that come, go and fail while the daemon runs, and several at a time."""

import os
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ..netns import pair
from .world import KNOCKS, SSH, World, until

FILE = '[log]\nsource = {source}\nfile.path = "{path}"\n'


# Empty datagrams to the gateway: argument by argument `source port:destination port`.
SEND = (
    "import os, socket, sys\n"
    "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"  # what several send can overtake each other
    "for word in sys.argv[1:]:\n  sport, dport = map(int, word.split(':'))\n"
    "  s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n  s.bind(('', sport))\n"
    "  s.sendto(b'', ('10.99.0.1', dport))\n"
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Any]:
    with pair() as both:
        yield both


@pytest.fixture
def world(hosts: Any, tmp_path: Path) -> Iterator[World]:
    gateway, client = hosts
    yield World(gateway, client, tmp_path / "logknock.toml")
    gateway.run("nft", "delete", "table", "inet", "logknock", check=False)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kern.log"
    path.touch(0o640)
    return path


def write_knocks(
    log: Path,
    src: str,
    services: tuple[str, ...] = KNOCKS,
    prefix: str = "logknock: ",
    sport: int = 20_000,
    ahead: timedelta = timedelta(),
) -> None:
    """What rsyslog writes of knocks."""
    head = (datetime.now() + ahead).astimezone().isoformat(timespec="microseconds")
    with log.open("a") as file:
        for number, service in enumerate(services):
            port, _, proto = service.partition("/")
            transport = "WINDOW=64240 RES=0x00 SYN URGP=0 " if proto == "tcp" else "LEN=9 "
            file.write(
                f"{head} host kernel: {prefix}IN=eth0 OUT= MAC= SRC={src} DST=10.99.0.1 LEN=60 TOS=0x00 PREC=0x00 "
                f"TTL=64 ID=1 PROTO={proto.upper()} SPT={sport + number} DPT={port} {transport}\n"
            )


def reload(world: World, daemon: Any, text: str, says: str) -> None:
    world.configure(text)
    daemon.read()
    daemon.lines.clear()
    daemon.signal(signal.SIGHUP)
    daemon.wait_for(says)


def test_sources_come_and_go_with_reloads(world: World, log: Path) -> None:
    both = FILE.format(source='["nflog", "file"]', path=log) + SSH
    world.configure(SSH)
    world.apply()
    with world.daemon() as daemon:
        reload(world, daemon, both, f"reloaded: NFLOG group 5, {log}, doors: ssh")
        write_knocks(log, "198.51.100.1")
        daemon.wait_for("198.51.100.1: ssh: OPEN SESAME")
        world.knock(*KNOCKS)
        daemon.wait_for(f"{world.client.ipv4}: ssh: OPEN SESAME")
        reload(world, daemon, FILE.format(source='"file"', path=log) + SSH, f"reloaded: {log}, doors: ssh")
        world.knock(*KNOCKS)
        write_knocks(log, "198.51.100.2")
        daemon.wait_for("198.51.100.2: ssh: OPEN SESAME")
        assert not daemon.says(f"{world.client.ipv4}: ssh: Stage")
        reload(world, daemon, SSH, "reloaded: NFLOG group 5, doors: ssh")
        write_knocks(log, "198.51.100.3")
        world.knock(*KNOCKS)
        daemon.wait_for(f"{world.client.ipv4}: ssh: OPEN SESAME")
        assert not daemon.says("198.51.100.3")
        assert daemon.stop() == 0
    assert {text.partition(" ")[0] for text in world.granted()} == {world.client.ipv4, "198.51.100.1", "198.51.100.2"}


def test_a_prefix_that_a_reload_brings_counts_from_then_on(world: World, log: Path) -> None:
    world.configure(FILE.format(source='"file"', path=log) + SSH)
    world.apply()
    with world.daemon() as daemon:
        write_knocks(log, "198.51.100.1", prefix="[UFW BLOCK] ")
        write_knocks(log, "198.51.100.2")
        daemon.wait_for("198.51.100.2: ssh: OPEN SESAME")
        text = FILE.format(source='"file"', path=log) + 'prefix = "[UFW BLOCK]"\n' + SSH
        reload(world, daemon, text, "reloaded")
        write_knocks(log, "198.51.100.3")
        write_knocks(log, "198.51.100.4", prefix="[UFW BLOCK] ")
        daemon.wait_for("198.51.100.4: ssh: OPEN SESAME")
        assert not daemon.says("198.51.100.3")
        assert not daemon.says("198.51.100.1")


def test_an_attempt_goes_on_over_a_reload_of_its_source(world: World, log: Path) -> None:
    """T36: the reader keeps its place, and the matcher its attempts."""
    text = FILE.format(source='"file"', path=log) + SSH
    world.configure(text)
    world.apply()
    with world.daemon() as daemon:
        write_knocks(log, "198.51.100.1", KNOCKS[:2])
        daemon.wait_for("Stage 2")
        reload(world, daemon, text + '[firewall]\ntrusted = ["192.0.2.0/24"]\n', "reloaded")
        write_knocks(log, "198.51.100.1", KNOCKS[2:])
        daemon.wait_for("198.51.100.1: ssh: OPEN SESAME")


def test_a_source_that_cannot_be_opened_changes_nothing(world: World, log: Path) -> None:
    """T31, T36: a file that others can write is refused, and what was read before is read on."""
    world.configure(SSH)
    world.apply()
    with world.daemon() as daemon:
        log.chmod(0o666)
        text = FILE.format(source='["nflog", "file"]', path=log) + SSH
        reload(world, daemon, text, "not reloaded")
        assert daemon.says(str(log))
        write_knocks(log, "198.51.100.1")
        world.knock(*KNOCKS)
        daemon.wait_for(f"{world.client.ipv4}: ssh: OPEN SESAME")
        assert not daemon.says("198.51.100.1")


def test_a_daemon_does_not_start_with_a_file_that_others_can_write(world: World, log: Path) -> None:
    """T31"""
    log.chmod(0o666)
    world.configure(FILE.format(source='"file"', path=log) + SSH)
    world.apply()
    done = world.gateway.logknock("run", "-c", str(world.config), check=False)
    assert done.returncode
    assert str(log) in done.stderr
    assert "hint: " in done.stderr


def test_one_packet_from_two_sources_counts_once(world: World, log: Path) -> None:
    """T10: a file that tells of a wrong knock late does not end the retry that has begun since."""
    door = '[doors.ssh]\nsequence = ["7000/udp", "8000/udp", "9000/udp"]\nopens = ["22/tcp"]\n'
    world.configure(FILE.format(source='["file", "nflog"]', path=log) + door)
    world.apply()
    with world.daemon() as daemon:
        world.client.python(SEND, "19990:7001", "20000:7000", "20001:7001")
        daemon.wait_for("wrong port 7001/udp")
        world.client.python(SEND, "20002:7000", "20003:8000")
        daemon.wait_for("Stage 2")
        write_knocks(log, world.client.ipv4, ("7001/udp",), sport=19990)  # nobody heeded it when NFLOG told of it
        write_knocks(log, world.client.ipv4, ("7000/udp", "7001/udp", "7000/udp", "8000/udp"))
        until(lambda: daemon.counter("records") == 10, "the file's records")
        world.client.python(SEND, "20004:9000")
        daemon.wait_for("OPEN SESAME")
        assert sum("wrong port" in line for line in daemon.lines) == 1


def test_copies_are_known_over_a_reload(world: World, log: Path) -> None:
    """T10, T36: nothing has changed but that somebody reloaded."""
    door = '[doors.ssh]\nsequence = ["7000/udp", "8000/udp", "9000/udp"]\nopens = ["22/tcp"]\n'
    text = FILE.format(source='["file", "nflog"]', path=log) + door
    world.configure(text)
    world.apply()
    with world.daemon() as daemon:
        world.client.python(SEND, "20001:7001")
        until(lambda: daemon.counter("records") == 1, "the wrong knock")
        reload(world, daemon, text, "reloaded")
        world.client.python(SEND, "20002:7000", "20003:8000")
        daemon.wait_for("Stage 2")
        write_knocks(log, world.client.ipv4, ("7001/udp",), sport=20001)
        until(lambda: daemon.counter("records") == 4, "the copy")
        world.client.python(SEND, "20004:9000")
        daemon.wait_for("OPEN SESAME")


def test_what_was_read_is_counted_to_the_end(world: World, log: Path) -> None:
    world.configure(FILE.format(source='"file"', path=log) + SSH)
    world.apply()
    with world.daemon() as daemon:
        write_knocks(log, "198.51.100.1")
        daemon.wait_for("OPEN SESAME")
        assert daemon.stop() == 0
        assert daemon.says("3 records, 0 lost")


@pytest.mark.parametrize(("hours", "told"), [(2, "s ahead of this host's clock"), (-2, "s behind this host's clock")])
def test_t29_a_log_whose_clock_is_wrong_opens_nothing_and_is_told_of(
    world: World, log: Path, hours: int, told: str
) -> None:
    """T29: a record from the future would never be too old."""
    world.configure(FILE.format(source='"file"', path=log) + SSH)
    world.apply()
    with world.daemon() as daemon:
        write_knocks(log, "198.51.100.1", ahead=timedelta(hours=hours))
        daemon.wait_for(told)
        until(lambda: daemon.counter("too old") == 3, "all records")
        assert not daemon.says("Stage")


def test_a_pipe_that_ends_ends_the_daemon_and_says_so(world: World) -> None:
    """Else it would run on and hear nothing, and nobody would start it anew."""
    world.configure('[log]\nsource = "stdin"\n' + SSH)
    world.apply()
    done = world.gateway.logknock("run", "-c", str(world.config), input="", check=False)
    assert done.returncode == 69
    assert "nothing is left to read: all sources have ended" in done.stderr


def test_rules_that_log_elsewhere_are_told_of(world: World, log: Path) -> None:
    world.configure(SSH)
    world.apply()
    with world.daemon() as daemon:
        text = FILE.format(source='"file"', path=log) + SSH
        reload(world, daemon, text, 'the rules are to log to another place now: kernel log, prefix "logknock"')


def test_a_file_that_goes_away_is_told_of_and_the_others_are_read(world: World, log: Path) -> None:
    world.configure(FILE.format(source='["nflog", "file"]', path=log) + SSH)
    world.apply()
    with world.daemon() as daemon:
        log.unlink()
        os.mkdir(log)
        daemon.wait_for(str(log) + ": ")
        world.knock(*KNOCKS)
        daemon.wait_for(f"{world.client.ipv4}: ssh: OPEN SESAME")
        log.rmdir()
        log.touch(0o640)
        write_knocks(log, "198.51.100.1")
        daemon.wait_for("198.51.100.1: ssh: OPEN SESAME")
