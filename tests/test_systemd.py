"""What is told to systemd: a socket of the test's own stands in its place, and reads or does not."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logknock.config import load
from logknock.errors import BAD_CONFIG, LogknockError
from logknock.intake import Intake
from logknock.packet import Packet
from logknock.standing import Degraded, DoorStanding, SourceStanding, Standing
from logknock.systemd import Systemd, check_directories

from .config_files import DOOR, write
from .netns import Host

STANDING = Standing("0.1.0", 0.0, 0.0, (), (DoorStanding("ssh", 0, 0),), 0, 0, 0, 0, 0, 0, 0, 0, ())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Hears what is told, without waiting for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ear:
        ear.bind(str(tmp_path / "notify"))
        yield ear


def heard(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_ready_comes_with_the_status() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ear:
        ear.bind(f"\0logknock-test-{os.getpid()}")
        systemd = Systemd({"NOTIFY_SOCKET": f"@logknock-test-{os.getpid()}"})
        systemd.ready(STANDING)
        assert heard(ear) == ["READY=1\nSTATUS=0 doors open"]


def test_without_systemd_nothing_is_told() -> None:
    systemd = Systemd({})
    systemd.ready(STANDING)
    systemd.tick(STANDING, 1.0, well=True)


def test_the_status_tells_of_open_doors_and_of_what_is_wrong_and_never_of_a_knock(manager: socket.socket) -> None:
    """Any local user reads it: with how many knock, or what was read, each port of a sequence could be found alone."""
    systemd = Systemd(environment(manager))
    source = SourceStanding("NFLOG group 5", 0, 0, 0, 0.0, "")
    for second in range(20):
        sources = (source._replace(records=second, lost=second, ignored=second, rate=float(second)),)
        busy = STANDING._replace(sources=sources, attempts=second, opened=second, closed=second, refused=second)
        systemd.tick(busy._replace(stale=second, banned=second, overruns=second), 100.0 + second, well=True)
    assert heard(manager) == ["STATUS=0 doors open"]
    opened = STANDING._replace(doors=(DoorStanding("ssh", 1, 1),))
    systemd.tick(opened, 105.0, well=True)
    systemd.tick(opened._replace(degraded=(Degraded("store", 0.0, "it is full", ""),)), 106.0, well=True)
    assert heard(manager) == ["STATUS=1 door open", "STATUS=degraded: store: it is full; 1 door open"]


def test_a_sign_of_life_comes_twice_as_often_as_systemd_asks_and_only_when_all_is_well(
    manager: socket.socket,
) -> None:
    """WATCHDOG_USEC is what systemd waits; what is told is what tells that packets are read."""
    systemd = Systemd(environment(manager, WATCHDOG_USEC="10000000", WATCHDOG_PID=str(os.getpid())))
    for second in range(20):
        systemd.tick(STANDING, 100.0 + second, well=True)
    assert heard(manager).count("WATCHDOG=1") == 5, "every four seconds or so"
    for second in range(20):
        systemd.tick(STANDING, 120.0 + second, well=False)
    assert "WATCHDOG=1" not in heard(manager)


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "many"}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}],
    ids=["no watchdog", "no number", "another process's"],
)
def test_nobody_waits_for_a_sign_of_life(manager: socket.socket, watchdog: dict[str, str]) -> None:
    systemd = Systemd(environment(manager, **watchdog))
    systemd.tick(STANDING, 100.0, well=True)
    assert "WATCHDOG=1" not in heard(manager)


def test_what_finds_no_room_is_told_later_and_nobody_waits(manager: socket.socket) -> None:
    """A systemd that is busy; its socket takes some messages at most."""
    systemd = Systemd(environment(manager))
    while systemd._send("FDSTORE=0"):
        pass
    systemd.tell("RELOADING=1")
    systemd.tell("READY=1")
    heard(manager)
    systemd.tick(STANDING, 100.0, well=True)
    assert heard(manager)[:2] == ["RELOADING=1", "READY=1"]


def test_a_systemd_that_is_gone_is_no_error(tmp_path: Path) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "nowhere"), "WATCHDOG_USEC": "3000000"})
    systemd.ready(STANDING)
    systemd.tick(STANDING, 100.0, well=True)


def test_directories_that_a_service_may_not_write_are_refused(tmp_path: Path) -> None:
    own, elsewhere = tmp_path / "own", Path("/proc/sys")  # which root cannot write either
    given = {"STATE_DIRECTORY": str(own), "RUNTIME_DIRECTORY": f"/run/other:{own}"}
    check_directories(elsewhere, elsewhere, {})
    check_directories(own, own, given)
    check_directories(tmp_path, tmp_path, given)
    with pytest.raises(LogknockError, match="runtime is /proc/sys, where this service may not") as told:
        check_directories(own, elsewhere, given)
    assert told.value.exit_code == BAD_CONFIG


SEND = "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', (sys.argv[1], 9))"


def test_a_source_that_nobody_reads_is_noticed(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Then there is no sign of life: a loop that turns is not enough."""
    gateway, client = hosts
    gateway.nft("table inet t { chain c { type filter hook prerouting priority mangle; udp dport 9 log group 5; }; }")
    config = load(write(tmp_path, DOOR))
    packets: list[Packet] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        intake = Intake(_all, lambda source, receive: source.read(0.0, receive), packets.append, _ignore)
        with gateway.inside():
            intake.adopt(intake.open(config), config)
        (source,) = intake._sources.values()
        client.python(SEND, gateway.ipv4)
        assert intake.neglected() == []
        await _until(lambda: bool(packets))
        assert intake.neglected() == []
        loop.remove_reader(source.fileno())  # which nothing of ours does
        client.python(SEND, gateway.ipv4)
        assert intake.neglected() == [], "it may be read within the second"
        assert intake.neglected() == ["NFLOG group 5"]
        assert intake.neglected() == ["NFLOG group 5"]
        intake.close()

    asyncio.run(serve())


def _all(*_: object) -> bool:
    return True


def _ignore(text: str, **fields: str) -> None:
    pass


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)
