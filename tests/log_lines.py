"""Lines of a log with packets in them, and what reads them, as the tests of text sources need both."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from logknock.packet import Packet
from logknock.records import Grammar, Wanted
from logknock.sources.logfile import LogFile
from logknock.sources.pipe import Pipe

RECORD = (
    "IN=eth0 OUT= MAC= SRC=192.0.2.7 DST=192.0.2.1 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 PROTO=TCP SPT={} DPT=7000 \
WINDOW=1024 RES=0x00 SYN URGP=0 MARK=0x{:x} "
)


def text(number: int, *, prefix: str = "logknock", when: float | None = None) -> str:
    """A line of a log, known again by the source port."""
    head = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() if when is None else when))
    return f"{head} host kernel: {prefix}: {RECORD.format(number, number)}\n"


def grammar() -> Grammar:
    return Grammar(Wanted())


class Reader:
    """A source and what has come out of it: the numbers of the lines, and what was told."""

    def __init__(self, source: LogFile | Pipe) -> None:
        self.source = source
        self.packets: list[Packet] = []
        self.told: list[str] = []
        self.lost = 0

    def read(self, now: float | None = None) -> list[int]:
        """Read until nothing more waits; all numbers so far."""
        while self.source.read(time.time() if now is None else now, self.packets.append):
            pass
        return self.numbers

    @property
    def numbers(self) -> list[int]:
        return [packet.sport for packet in self.packets]

    def settle(self, times: int = 1) -> list[str]:
        """Settle and read so often; everything told so far."""
        for _ in range(times):
            self.told += self.source.settle()
            if self.source.lost > self.lost:  # as intake does
                self.told.append(f"{self.source.name}: {self.source.lost - self.lost} records lost on the way")
                self.lost = self.source.lost
            self.read()
        return self.told


def append(path: Path, *numbers: int) -> None:
    with path.open("a") as file:
        file.write("".join(map(text, numbers)))


def open_descriptors(folder: Path) -> list[str]:
    """What this process has open there."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since, by another thread
            found.append(os.readlink(link))
    return [target for target in found if target.startswith(f"{folder}/")]


@contextmanager
def following(path: Path) -> Iterator[Reader]:
    with closing(LogFile(path, grammar())) as source:
        yield Reader(source)
