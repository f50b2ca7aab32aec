"""kill -9 at every line of an opening, with the real store and the real kernel, whatever it is that opens the door."""

import signal
import sys

from .world import World, until

# Takes in what opens a door, each time in a process of its own, which is killed at the first line that our code comes
# to from then on, then STRIDE lines further, and so on, until one lives; from line 0 on, the first one lives. For each
# it prints whether the use and the grant are on record then, and whether the door is open. What a test gives stands
# between these two.
_BEGIN = """
import asyncio, os, signal, subprocess, sys, time
from ipaddress import ip_address
from pathlib import Path
from logknock.config import load
from logknock.daemon import Daemon
from logknock.packet import SYN, TCP, UDP, Carried, Packet
from logknock.report import Reporter, StderrLog
from logknock.store import open_store

config, line, stride, given = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
loaded, now, left = load(config), time.time(), 0
src, dst = ip_address("198.51.100.1").packed, ip_address("10.99.0.1").packed
PURE = ()
"""

_END = """
def trace(frame, event, argument):
    global left
    file = Path(frame.f_code.co_filename)
    if file.parent.name not in ("logknock", "firewall") or file.stem in PURE:
        return None
    if event == "line":
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

async def take_in():
    daemon = Daemon(config, Reporter(StderrLog()))
    daemon._take_over()
    daemon._oldest, daemon._newest = 0.0, float("inf")
    before(daemon)
    sys.settrace(trace)
    opens(daemon)
    sys.settrace(None)

def nft(command):
    return subprocess.run(["nft", *command.split()], check=True, capture_output=True, text=True).stdout

status = signal.SIGKILL
while status == signal.SIGKILL:
    for path in loaded.state.glob("logknock.db*"):
        path.unlink()
    nft("flush set inet logknock granted4")
    child = os.fork()
    if not child:
        left = line
        asyncio.run(take_in())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    store = open_store(loaded.state)
    recorded = bool(store.grants(0, 0))
    used = is_used(store)
    store.close()
    is_open = "198.51.100.1" in nft("list set inet logknock granted4")
    print(line, status, int(used), int(recorded), int(is_open), flush=True)
    line += stride
"""


def check_every_line(world: World, text: str, *given: str, stride: int = 1) -> None:
    """What opened is used up, and its end is on record, wherever the process was killed.

    The text: `before(daemon)`, `opens(daemon)`, `is_used(store)`, and in PURE which files' lines do not count.
    """
    done = _take_in(world, text, "1", str(stride), *given, prefix=())
    rows = [tuple(map(int, row.split())) for row in done.splitlines()]
    statuses = [status for _, status, *_ in rows]
    assert statuses == [signal.SIGKILL] * (len(rows) - 1) + [0], f"{statuses[-1]}\n{done}"
    assert len(rows) > 100, done
    for line, _, used, recorded, is_open in rows:
        assert used >= recorded >= is_open, f"line {line}: open, and could be opened again"
    assert {tuple(row[2:]) for row in rows} == {(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)}, done


def check_order_on_disk(world: World, text: str, *given: str) -> None:
    """As the kernel sees it: the file is synced before the message that opens the door is sent."""
    log = world.config.parent / "strace"
    trace = ("strace", "-f", "-y", "-e", "trace=fdatasync,fsync,pwrite64,sendto", "-o", str(log))
    _take_in(world, text, "0", "1", *given, prefix=trace)
    calls = log.read_text().splitlines()
    (opening,) = [at for at, line in enumerate(calls) if "sendto(" in line and "MSG_BATCH_BEGIN" in line]
    log_calls = [line for line in calls[:opening] if "logknock.db-wal>" in line]
    pages = [at for at, line in enumerate(log_calls) if "pwrite64(" in line and ", 4096, " in line]
    assert any("sync(" in line for line in log_calls[pages[0] :]), "\n".join(calls)
    until(lambda: "198.51.100.1 . tcp . 22" in world.granted(), "the opening")


def _take_in(world: World, text: str, *arguments: str, prefix: tuple[str, ...]) -> str:
    program = (sys.executable, "-c", _BEGIN + text + _END, str(world.config))
    return world.gateway.run(*prefix, *program, *arguments, timeout=300).stdout
