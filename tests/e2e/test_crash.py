"""kill -9 at every step of an opening, with the real store and the real kernel: what opened is used up (T20)."""

import sys

import pytest

from .world import World, until

# Takes in the knocks of a one-time sequence, each time in a process of its own, which is killed at the first line that
# our code comes to after the last knock, at the second, and so on, until one lives. For each it prints whether the use
# and the grant are on record then, and whether the door is open.
KILLED = """
import asyncio, os, signal, subprocess, sys, time
from ipaddress import ip_address
from pathlib import Path
from logknock.config import load
from logknock.daemon import Daemon
from logknock.knock import Service
from logknock.packet import SYN, TCP, Packet
from logknock.report import Reporter, StderrLog
from logknock.store import open_store

config, step = Path(sys.argv[1]), int(sys.argv[2])
state = load(config).state
ports = (7001, 8001, 9001)
left = 0

def trace(frame, event, argument):
    global left
    if "/logknock/" not in frame.f_code.co_filename:
        return None
    if event == "line":
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

async def knock():
    daemon = Daemon(config, Reporter(StderrLog()))
    daemon._take_over()
    daemon._oldest, daemon._newest = 0.0, float("inf")
    while daemon._turns.work():
        pass
    src, dst = ip_address("198.51.100.1").packed, ip_address("10.99.0.1").packed
    for number, port in enumerate(ports):
        if port == ports[-1]:
            sys.settrace(trace)
        daemon._receive(Packet(time.time(), src, dst, TCP, 40000 + number, port, SYN))
    sys.settrace(None)

def nft(command):
    return subprocess.run(["nft", *command.split()], check=True, capture_output=True, text=True).stdout

status = None
while status != 0 and step != -1:
    for path in state.glob("logknock.db*"):
        path.unlink()
    nft("flush set inet logknock granted4")
    child = os.fork()
    if not child:
        left = step
        asyncio.run(knock())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    store = open_store(state)
    used, recorded = store.was_used("ssh", tuple(Service(TCP, port) for port in ports)), bool(store.grants(0, 0))
    store.close()
    is_open = "198.51.100.1" in nft("list set inet logknock granted4")
    print(step, status, int(used), int(recorded), int(is_open), flush=True)
    step = step + 1 if step else -1
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
    """T18, T20: and its end is seen to, since the grant is on record."""
    done = crashed.gateway.run(sys.executable, "-c", KILLED, str(crashed.config), "1", timeout=300)
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [status for _, status, *_ in rows] == [9] * (len(rows) - 1) + [0]
    assert len(rows) > 100
    for step, _, used, recorded, is_open in rows:
        assert used >= recorded >= is_open, f"step {step}: open, and could be opened again"
    assert {tuple(row[2:]) for row in rows} == {(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)}


def test_t20_the_use_is_on_the_disk_before_the_door_opens(crashed: World) -> None:
    """T20: as the kernel sees it: the file is synced before the message that opens the door is sent."""
    log = crashed.config.parent / "strace"
    trace = ["strace", "-f", "-y", "-e", "trace=fdatasync,fsync,pwrite64,sendto", "-o", str(log)]
    crashed.gateway.run(*trace, sys.executable, "-c", KILLED, str(crashed.config), "0")
    calls = log.read_text().splitlines()
    (opening,) = [at for at, line in enumerate(calls) if "sendto(" in line and "MSG_BATCH_BEGIN" in line]
    log_calls = [line for line in calls[:opening] if "logknock.db-wal>" in line]
    pages = [at for at, line in enumerate(log_calls) if "pwrite64(" in line and ", 4096, " in line]
    assert any("sync(" in line for line in log_calls[pages[0] :]), "\n".join(calls)
    until(lambda: "198.51.100.1 . tcp . 22" in crashed.granted(), "the opening")
