"""One-time doors: what a file of sequences for a hundred years costs, beside one of ten.

Rule 1: files and state are on a disk, not in memory, so that what is durable costs what it costs. Rule 2: programs that
are compared run at the same time and are knocked at by turns. Rule 3: a door is ready when a knock has opened it,
whatever the program says.
"""

import mmap
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from struct import pack
from typing import NamedTuple, Self

from logknock.knock import Sequence, Service
from logknock.onetime import Place, generate, parse_line
from logknock.onetime_files import write_new
from logknock.packet import TCP
from logknock.store import DATABASE, SQLiteStore, open_store

from .field import PATIENCE, RANDOM, Field, Plan, disk, sync
from .field import field as field_of
from .figures import Figure
from .peers import DoorSet, Make, Running, knockd_onetime, logknock_onetime, running

_SECTION = "one-time"

FEW = 10
MANY = 1_826_250  # fifty a day for a hundred years

# What is aimed at: seconds, MiB, and how much more a knock may take with MANY.
_READY, _GROWTH, _RATIO = 2, 64, 1.2

# What `logknock onetime generate` makes.
_LENGTH = 5
_SERVICES = [Service(TCP, port) for port in range(10_000, 61_000)]

# Sequences that are remembered for knocking: more than a full run uses of any file.
_KEPT = 128

# Openings in a round: with the one before them all but one of a file of ten. (knockd ends with the last one: it goes on
# to use what it has freed.)
_A_ROUND = FEW - 2

_DOOR = "door0"  # what peers.logknock_onetime calls it

_SETTLE = 20  # seconds; a program that has a core for itself needs one to read a file of MANY
_TRIES = 20  # to knock until a program that says that it is ready is
_REPLAY = 0.5  # seconds; ten times what knockd takes


# ---- files


class _Supply(NamedTuple):
    """Sequences as both programs are given them: a file each, logknock's state, and what comes next."""

    words: str
    file: Path
    knockd_file: Path
    state: Path
    sequences: tuple[Sequence, ...]

    def makes(self) -> tuple[Make, Make]:
        """logknock and knockd with them."""
        ours = partial(logknock_onetime, file=self.file, state=self.state)
        return ours, partial(knockd_onetime, file=self.knockd_file)


def _supplies(folder: Path) -> tuple[_Supply, _Supply, _Supply]:
    """A file of ten; one of many; and the same of which half is used."""
    nothing, half = folder / "nothing", folder / "half"
    for state in (nothing, half):
        open_store(state).close()
    few = _write(folder / "few", FEW, 0)
    many = _write(folder / "many", MANY, 0, MANY // 2)
    marked = _use_half(folder / "many", half)
    return (
        _Supply(f"{FEW}", folder / "few", folder / "few", nothing, few[0]),
        _Supply(f"{MANY:,}", folder / "many", folder / "many", nothing, many[0]),
        _Supply(f"{MANY:,}, half used", folder / "many", marked, half, many[1]),
    )


def _write(path: Path, count: int, *starts: int) -> list[tuple[Sequence, ...]]:
    """Write a file of so many; the answer is what follows in it from each of these numbers on."""
    kept: list[list[Sequence]] = [[] for _ in starts]

    def passed() -> Iterator[Sequence]:
        for number, sequence in enumerate(generate(count, _LENGTH, _SERVICES, RANDOM.randrange)):
            for start, some in zip(starts, kept, strict=True):
                if start <= number < start + _KEPT:
                    some.append(sequence)
            yield sequence

    write_new(path, passed())
    return [tuple(some) for some in kept]


def _use_half(file: Path, state: Path) -> Path:
    """What using half of the file leaves behind: logknock's state, and the file as knockd would have marked it."""
    marked = file.with_name("marked")
    with file.open("rb") as lines, marked.open("wb") as copy:
        header = 0
        while (line := lines.readline()).startswith(b"#"):
            copy.write(line)
            header += 1
        used = [line, *islice(lines, MANY // 2 - 1)]
        copy.writelines(b"#" + line[1:] for line in used)
        place = Place(header + len(used), copy.tell(), parse_line(used[-1]) or ())
        copy.writelines(lines)
    _record(state, file, place, used)
    return marked


def _record(state: Path, file: Path, place: Place, lines: Iterable[bytes]) -> None:
    """Have these lines on record as used; as fast as possible, so not by the store itself, which then has to agree."""
    with closing(sqlite3.connect(state / DATABASE)) as database, database:
        packed = (pack("!" + "BH" * _LENGTH, *_numbers(line)) for line in lines)
        database.executemany("INSERT INTO used VALUES (?, ?)", ((_DOOR, sequence) for sequence in packed))
    store = open_store(state)
    assert isinstance(store, SQLiteStore), store
    with closing(store):
        store.move(_DOOR, str(file), place)
        assert store.was_used(_DOOR, place.last)


def _numbers(line: bytes) -> Iterator[int]:
    for port in line.split(b","):
        yield from (TCP, int(port))


# ---- programs


@dataclass(slots=True)
class _Client:
    """Knocks with a file's sequences, each time from another source."""

    on: Field
    door: DoorSet
    sequences: tuple[Sequence, ...]
    last: list[int] = field(default_factory=list)  # the ports of the sequence that was used last
    used: int = 0
    knocks: int = 0

    def opening(self) -> float:
        """Milliseconds from the last knock to the open door, or more than PATIENCE."""
        ports = self._ports()
        took = self.on.opening(self.door, self._source(), ports)
        if took < PATIENCE * 1000:
            self.last, self.used = ports, self.used + 1
        return took

    def open_soon(self) -> None:
        """Knock at once, and again until the door is open."""
        ports, asked = self._ports(), []
        for _ in range(_TRIES):
            asked.append(self._knock(ports))
            if self._waits(asked, PATIENCE / _TRIES):
                self.last, self.used = ports, self.used + 1
                return
        raise AssertionError(f"{self.on.peer.name} opens no one-time door:\n{self.on.peer.log.read_text()[-2000:]}")

    def opens_again(self) -> bool:
        """Whether the sequence that was used last opens the door for somebody else."""
        return self._waits([self._knock(self.last)], _REPLAY)

    def _source(self) -> bytes:
        """One that has not knocked yet."""
        self.knocks += 1
        return bytes((198, 51, 100, self.knocks))

    def _ports(self) -> list[int]:
        """Of the sequence that is next. knockd's own file says which that is for knockd, as it does not always move on.

        (A child that ends while the parent looks for the line to mark moves the position in the file, which they share.
        The parent then marks another line. The more lines are used, the longer it looks.)
        """
        if self.on.peer.name == "knockd":
            return [service.port for service in _first_live(self.on.peer.log.with_name("sequences"))]
        return [service.port for service in self.sequences[self.used]]

    def _knock(self, ports: list[int]) -> bytes:
        """Knock at once; the answer is what to ask the set."""
        source = self._source()
        for frame in self.on.knocks(source, ports):
            self.on.wire.send(frame)
        return self.door.request(source)

    def _waits(self, asked: list[bytes], seconds: float) -> bool:
        """Whether the door opens for one of them."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(map(self.door.holds, asked)):
                return True
        return False


def _first_live(file: Path) -> Sequence:
    """The first sequence that is not marked; before it stands at least a line of comment."""
    with file.open("rb") as lines, mmap.mmap(lines.fileno(), 0, prot=mmap.PROT_READ) as data:
        at = data.find(b"\n ") + 1
        return parse_line(data[at : data.find(b"\n", at)]) or ()


@dataclass(slots=True)
class _Subject:
    """A program that has read its file, and what it is measured to do."""

    client: _Client
    program: Running
    openings: list[float] = field(default_factory=list)  # milliseconds
    cpu: list[float] = field(default_factory=list)  # milliseconds of processor time for each
    memory: tuple[float, float] = (0.0, 0.0)  # MiB: at rest, at the peak
    replays: list[bool] = field(default_factory=list)  # whether a used sequence has opened the door again

    @classmethod
    def start(cls, stack: ExitStack, make: Make, supply: _Supply, folder: Path) -> Self:
        """Start the program and wait until it has nothing more to do; the stack ends it."""
        on = stack.enter_context(field_of(make, folder))
        program = stack.enter_context(running(on.peer))
        subject = cls(_Client(on, stack.enter_context(DoorSet(on.peer)), supply.sequences), program)
        subject.rest()
        return subject

    def rest(self) -> None:
        """Until it rests. logknock says how many sequences are left once it has counted them."""
        for _ in range(_TRIES):
            self.program.settle(_SETTLE)
            if self.client.used and (self.client.on.peer.name == "knockd" or self._has_counted()):
                break
            self.client.open_soon()
        self.memory = self.program.memory("VmRSS"), self.program.memory("VmHWM")

    def _has_counted(self) -> bool:
        return "one-time sequences left" in self.client.on.peer.log.read_text()

    def measure(self) -> None:
        """One knock more."""
        before = self.program.cpu()
        self.openings.append(self.client.opening())
        self.program.settle(_SETTLE)
        self.cpu.append((self.program.cpu() - before) * 1000)

    def replay(self) -> None:
        """Knock as before, from somewhere else."""
        self.replays.append(self.client.opens_again())
        self.program.settle(_SETTLE)

    @property
    def opened(self) -> list[bool]:
        """Whether the door has opened, each time."""
        return [took < PATIENCE * 1000 for took in self.openings]


# ---- figures


def onetime(plan: Plan) -> Iterator[Figure]:
    """All of it."""
    with disk() as (folder, kind):
        supplies = _supplies(folder)
        for supply in supplies:
            yield from _readiness(plan, supply, folder)
        yield from _knocks(plan, supplies, folder, kind)


def _readiness(plan: Plan, supply: _Supply, folder: Path) -> Iterator[Figure]:
    """From the start of the process until it says that it is ready, and until a knock has opened the door."""
    ours, theirs = (_starts(make, supply, plan.starts, folder) for make in supply.makes())
    section = f"{_SECTION}: {supply.words}"
    said, opened = (tuple(start[at] for start in ours) for at in (0, 1))
    their_said, their_opened = (tuple(start[at] for start in theirs) for at in (0, 1))
    yield Figure(section, "start until it says ready", "s", said, their_said)
    met = median(opened) <= _READY
    yield Figure(section, "start until a knock opens", "s", opened, their_opened, f"at most {_READY} s", met)


def _starts(make: Make, supply: _Supply, count: int, folder: Path) -> list[tuple[float, float]]:
    """Seconds; each start but the first, which fills the caches, goes on where the one before it has got."""
    times = []
    with field_of(make, folder) as on, DoorSet(on.peer) as door:
        client = _Client(on, door, supply.sequences)
        for _ in range(min(count, _A_ROUND) + 1):
            with running(on.peer) as program:
                client.open_soon()
                times.append((program.ready_after, time.monotonic() - program.started))
                program.settle(_SETTLE)  # knockd marks the sequence after it has opened the door
    return times[1:]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both programs with the same sequences."""

    ours: _Subject
    theirs: _Subject

    @classmethod
    def start(cls, stack: ExitStack, supply: _Supply, folder: Path) -> Self:
        """Start both; the stack ends them."""
        return cls(*(_Subject.start(stack, make, supply, folder) for make in supply.makes()))


def _knocks(plan: Plan, supplies: tuple[_Supply, ...], folder: Path, kind: str) -> Iterator[Figure]:
    """What a knock takes, and what a program that waits for one. A file of ten lasts for a round."""
    few, *others = supplies
    syncs: list[float] = []
    rounds: list[_Pair] = []
    ratios: list[float] = []
    with ExitStack() as stack:
        longer = [_Pair.start(stack, supply, folder) for supply in others]
        for _ in range(plan.repeats):
            with ExitStack() as inner:
                rounds.append(_Pair.start(inner, few, folder))
                for _ in range(_A_ROUND):
                    syncs.append(sync(folder))
                    for pair in RANDOM.sample((rounds[-1], *longer), len(supplies)):
                        pair.ours.measure()
                        pair.theirs.measure()
                for pair in (rounds[-1], *longer):
                    pair.ours.replay()
                    pair.theirs.replay()
            # One by one: what the disk does otherwise changes from moment to moment, and is most of an opening then.
            both = zip(longer[0].ours.openings[-_A_ROUND:], rounds[-1].ours.openings, strict=True)
            ratios.append(median(many / ten for many, ten in both))
    pairs = {few.words: _joined(rounds)} | {supply.words: pair for supply, pair in zip(others, longer, strict=True)}
    yield from _memory_figures(pairs)
    yield from _knock_figures(pairs, ratios, syncs, kind)


def _joined(rounds: list[_Pair]) -> _Pair:
    """All rounds as one."""
    first = rounds[0]
    for pair in rounds[1:]:
        for one, other in ((first.ours, pair.ours), (first.theirs, pair.theirs)):
            one.openings += other.openings
            one.cpu += other.cpu
            one.replays += other.replays
    return first


def _memory_figures(pairs: dict[str, _Pair]) -> Iterator[Figure]:
    section = f"{_SECTION}: memory"
    for words, pair in pairs.items():
        yield Figure(section, words, "MiB", pair.ours.memory[:1], pair.theirs.memory[:1])
    few, *others = (pair.ours.memory for pair in pairs.values())
    for at, name in enumerate(("growth", "growth at the peak")):
        growth = max(memory[at] for memory in others) - few[at]
        yield Figure(section, name, "MiB", (growth,), (), f"at most {_GROWTH} MiB", growth <= _GROWTH)


def _knock_figures(pairs: dict[str, _Pair], ratios: list[float], syncs: list[float], kind: str) -> Iterator[Figure]:
    section = f"{_SECTION}: knock to open"
    for words, pair in pairs.items():
        yield Figure(section, words, "ms", tuple(pair.ours.openings), tuple(pair.theirs.openings))
    met = median(ratios) <= _RATIO
    yield Figure(section, f"{MANY:,} / {FEW}", "times", tuple(ratios), (), f"at most {_RATIO}", met)
    yield Figure(section, f"of it a sync of the disk ({kind})", "ms", tuple(syncs))
    section = f"{_SECTION}: processor time a knock, without commands"
    for words, pair in pairs.items():
        yield Figure(section, words, "ms", tuple(pair.ours.cpu), tuple(pair.theirs.cpu))
    section = f"{_SECTION}: each opens once"
    for words, pair in pairs.items():
        ours, theirs = pair.ours, pair.theirs
        tried, again = len(ours.opened), len(ours.replays)
        yield _count(section, f"{words}: opens", sum(ours.opened), sum(theirs.opened), tried, tried)
        yield _count(section, f"{words}: opens again", sum(ours.replays), sum(theirs.replays), 0, again)


def _count(section: str, name: str, ours: int, theirs: int, wanted: int, of: int) -> Figure:
    target = "all" if wanted else "none"
    return Figure(section, name, "", (ours,), (theirs,), target, ours == wanted, of)
