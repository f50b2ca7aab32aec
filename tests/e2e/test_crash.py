"""kill -9 at every step of an opening, with the real store and the real kernel: what opened is used up (T20)."""

import sys

import pytest

from logknock.knock import Service
from logknock.packet import TCP
from logknock.store import SQLiteStore, open_store

from .world import World, until

SEQUENCE = tuple(Service(TCP, port) for port in (7001, 8001, 9001))

# Takes in the knocks of a one-time sequence, and is killed at the STEP-th line that our code comes to after the last
# one. Exit status 0: the opening was over before.
KNOCKED = """
import asyncio, os, signal, sys, time
from ipaddress import ip_address
from pathlib import Path
from logknock.daemon import Daemon
from logknock.packet import SYN, TCP, Packet
from logknock.report import Reporter, StderrLog

config, left = Path(sys.argv[1]), int(sys.argv[2])

def trace(frame, event, argument):
    global left
    if "/logknock/" not in frame.f_code.co_filename:
        return None
    if event == "line":
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

async def main():
    daemon = Daemon(config, Reporter(StderrLog()))
    daemon._take_over()
    daemon._oldest = 0.0
    while daemon._turns.work():
        pass
    src, dst = ip_address("198.51.100.1").packed, ip_address("10.99.0.1").packed
    for number, port in enumerate((7001, 8001, 9001)):
        if port == 9001:
            sys.settrace(trace)
        daemon._receive(Packet(time.time(), src, dst, TCP, 40000 + number, port, SYN))
    sys.settrace(None)

asyncio.run(main())
"""


@pytest.fixture
def crashed(world: World) -> World:
    """A one-time door, with its rules."""
    file = world.config.parent / "anna"
    file.write_text(" 7001, 8001, 9001\n 7002, 8002, 9002\n")
    file.chmod(0o600)
    world.configure(f'[doors.ssh]\nonetime = ["{file}"]\nopens = ["22/tcp"]\ntimeout = "1h"\n')
    world.apply()
    return world


def test_t18_t20_whatever_the_step_what_opened_is_used_up(crashed: World) -> None:
    """T18, T20: and its end is seen to, since the grant is on record. About a hundred steps."""
    state = crashed.config.parent / "state"
    seen = set()
    step, survived = 1, False
    while not survived:
        for path in state.glob("logknock.db*"):
            path.unlink()
        crashed.gateway.nft("flush set inet logknock granted4")
        done = crashed.gateway.run(sys.executable, "-c", KNOCKED, str(crashed.config), str(step), check=False)
        survived = done.returncode == 0
        assert survived or done.returncode == -9, done.stderr
        is_open = "198.51.100.1" in crashed.gateway.run("nft", "list", "set", "inet", "logknock", "granted4").stdout
        store = open_store(state)
        assert isinstance(store, SQLiteStore)
        used, recorded = store.was_used("ssh", SEQUENCE), bool(store.grants(0, 0))
        store.close()
        assert used or not recorded
        assert (used and recorded) or not is_open, f"step {step}: open, and could be opened again"
        seen.add((used, recorded, is_open))
        step += 3
    assert seen == {(False, False, False), (True, False, False), (True, True, False), (True, True, True)}


def test_t20_the_use_is_on_the_disk_before_the_door_opens(crashed: World) -> None:
    """T20: as the kernel sees it: the file is synced before the message that opens the door is sent."""
    log = crashed.config.parent / "strace"
    trace = ["strace", "-f", "-y", "-e", "trace=fdatasync,fsync,pwrite64,sendto", "-o", str(log)]
    crashed.gateway.run(*trace, sys.executable, "-c", KNOCKED, str(crashed.config), "0")
    calls = log.read_text().splitlines()
    (opening,) = [at for at, line in enumerate(calls) if "sendto(" in line and "MSG_BATCH_BEGIN" in line]
    log_calls = [line for line in calls[:opening] if "logknock.db-wal>" in line]
    pages = [at for at, line in enumerate(log_calls) if "pwrite64(" in line and ", 4096, " in line]
    assert any("sync(" in line for line in log_calls[pages[0] :]), "\n".join(calls)
    until(lambda: "198.51.100.1 . tcp . 22" in crashed.granted(), "the opening")
