"""What has happened, in numbers: counted where events pass, and added up by door once a second.

Rule 1: pure: events and durations come in, numbers go out. Rule 2: a first knock, which is what a flood is made of,
costs one addition, however many doors begin with it, and a thousand attempts that give way cost another. Rule 3: what
is kept is bounded by the configuration: doors, stages, reasons, sources; nothing here knows an address.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, NamedTuple

from .knock import Advanced, Door, Evicted, Failed, Reason
from .spa import Reason as SpaReason
from .standing import Standing

# What a door's opening takes, in seconds: under a millisecond out of NFLOG on a quiet host, some tens of them out of
# the journal, and up to a second out of a file whose stamps are whole seconds.
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

ADOPTED, REFUSED = "adopted", "refused"  # what becomes of a reload

# What becomes of single packets (SPA).
ACCEPTED = "accepted"
MAILED = (ACCEPTED, *(reason.name.lower() for reason in SpaReason))

# By door. What gives way in a flood is counted in all: whose attempts they were is in memory that was not touched for a
# while, and to look there costs a tenth of a microsecond each.
FAILURES = tuple(reason for reason in Reason if reason is not Reason.EVICTED)

_parts_of = attrgetter("doors", "what", "times")  # of Times


class Times:
    """How often attempts at these doors reached a stage, or ended for a reason."""

    __slots__ = ("doors", "times", "what")

    def __init__(self, doors: tuple[str, ...], what: int | Reason, times: int) -> None:
        self.doors = doors
        self.what = what
        self.times = times


class Latency(NamedTuple):
    """Durations: how many were as long as each of LATENCIES or shorter, then all of them; and their sum, in seconds."""

    counts: tuple[int, ...]
    seconds: float


class Counted(NamedTuple):
    """The numbers at one time. attempts: by door and stage; failures: by door and reason; reloads: by their result."""

    attempts: Mapping[str, Mapping[int, int]]
    failures: Mapping[str, Mapping[Reason, int]]
    evicted: int  # knockers
    refused: Mapping[str, int]
    latencies: Mapping[str, Latency]
    mailed: Mapping[str, int]  # single packets (SPA), by what became of them; nothing where no door takes them
    reloads: Mapping[str, int]
    reloaded: bool  # whether the last reload was adopted; so was what the daemon began with


class Left(NamedTuple):
    """How many sequences are left in a file of one-time sequences."""

    door: str
    file: str
    sequences: int


class Facts(NamedTuple):
    """All that metrics are made of."""

    standing: Standing
    counted: Counted
    onetime: tuple[Left, ...]


class Counts:
    """Since the start, for the doors and sources that the configuration has now."""

    def __init__(self) -> None:
        # Since settle(): attempts that have begun, and whatever became of them. By ids, of what an entry keeps alive:
        # the doors themselves would be hashed with each knock, a thousand names where a thousand doors begin alike.
        self.begun: dict[int, Times] = {}
        self._further: dict[tuple[int, int], Times] = {}
        self._attempts: dict[str, Counter[int]] = {}
        self._failures: dict[str, Counter[Reason]] = {}
        self._evicted = 0
        self._refused: Counter[str] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._mailed: Counter[str] = Counter()
        self._reloads = Counter({ADOPTED: 0, REFUSED: 0})
        self._reloaded = True

    def use(self, doors: Iterable[Door], sources: Iterable[str]) -> None:
        """Go on with these: what is new begins at nought, what is gone is forgotten."""
        self.settle()
        doors = tuple(doors)
        known = {door.name: len(door.sequence) for door in doors}
        takes_mail = any(door.proof == "spa" for door in doors)
        self._mailed = Counter({result: self._mailed[result] for result in MAILED} if takes_mail else {})
        before, self._attempts = self._attempts, {}
        failures, self._failures = self._failures, {}
        for name, stages in known.items():
            self._attempts[name] = Counter(dict.fromkeys(range(1, stages + 1), 0) | before.get(name, {}))
            self._failures[name] = failures.get(name) or Counter(dict.fromkeys(FAILURES, 0))
        self._refused = Counter({name: self._refused[name] for name in known})
        self._latencies = {name: self._latencies.get(name) or [0] * (len(LATENCIES) + 1) for name in sources}
        self._seconds = {name: self._seconds.get(name, 0.0) for name in self._latencies}

    def begin(self, doors: tuple[str, ...]) -> None:
        """The first attempt at these doors since settle(); of the others `begun` is counted up in place."""
        self.begun[id(doors)] = Times(doors, 1, 1)

    def see(self, told: Iterable[object]) -> None:
        """What became of a packet, or of attempts without one."""
        for event in told:
            if type(event) is Advanced:
                self._add(event.doors, event.stage)
            elif type(event) is Failed:
                self._add(event.doors, event.reason)
            elif type(event) is Evicted:
                self._evicted += len(event.sources)

    def refused(self, door: str) -> None:
        """The right knocks came, and the door was not opened all the same."""
        if door in self._refused:
            self._refused[door] += 1

    def mailed(self, reason: SpaReason | None) -> None:
        """A single packet (SPA) came; None: it was accepted."""
        self._mailed[ACCEPTED if reason is None else reason.name.lower()] += 1

    def opened(self, source: str, seconds: float) -> None:
        """A door was opened so long after its last knock; a clock that was set meanwhile may say less than nothing."""
        buckets = self._latencies.get(source)
        if buckets is not None:
            buckets[bisect_left(LATENCIES, seconds)] += 1
            self._seconds[source] += max(0.0, seconds)

    def reloaded(self, result: str) -> None:
        """A new configuration was ADOPTED or REFUSED."""
        self._reloads[result] += 1
        self._reloaded = result == ADOPTED

    def settle(self) -> None:
        """A second has passed: add up by door what has come, and forget by whom."""
        for doors, what, times in map(_parts_of, chain(self.begun.values(), self._further.values())):
            kept: Mapping[str, Counter[Any]] = self._failures if isinstance(what, Reason) else self._attempts
            for door in doors:
                if door in kept:
                    kept[door][what] += times
        self.begun.clear()
        self._further.clear()

    def counted(self) -> Counted:
        """The numbers as they are now: copies, whatever comes next."""
        self.settle()
        return Counted(
            {door: dict(stages) for door, stages in self._attempts.items()},
            {door: dict(reasons) for door, reasons in self._failures.items()},
            self._evicted,
            dict(self._refused),
            {name: Latency(tuple(accumulate(found)), self._seconds[name]) for name, found in self._latencies.items()},
            dict(self._mailed),
            dict(self._reloads),
            self._reloaded,
        )

    def _add(self, doors: tuple[str, ...], what: int | Reason) -> None:
        key = id(doors), id(what)
        seen = self._further.get(key)
        if seen is None:
            self._further[key] = Times(doors, what, 1)
        else:
            seen.times += 1
