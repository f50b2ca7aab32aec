"""Processor time a packet, by what the packet is and by how many doors there are.

Rule: programs that are compared run at the same time and are measured by turns, so that whatever else the machine does
meets all of them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Self

from ..netns import Host
from .field import WAVE, Field, Plan, field, million
from .figures import Figure
from .peers import KNOCKS, Make, Running, bare, knockd, logknock, running, sequence
from .sender import Ring

_SECTION = "processor time a packet"
_MANY = 1000

# Packets a second: many, and fewer than fill the daemon's processor.
_RATE = 100_000
_LIMIT = 10  # seconds

# What a packet may cost, in microseconds: one that begins an attempt, and one that no door heeds.
_FIRST_KNOCK_US = 4.0
_UNINTERESTING_US = 1.0

_TRAP_SOURCES = 0x6450  # none of those that knock


@dataclass(frozen=True, slots=True)
class Subject:
    """A program under measurement, and what it is sent."""

    on: Field
    program: Running
    first_knocks: Ring
    traps: Ring | None

    @classmethod
    def start(
        cls,
        stack: ExitStack,
        make: Make,
        firsts: Sequence[int] = KNOCKS[:1],
        traps: bool = False,
        folder: Path | None = None,
    ) -> Self:
        """Start the program; the stack ends it.

        firsts: the ports on which a knock is somebody's first one. folder: as of `field`.
        """
        on = stack.enter_context(field(make, folder))
        knocks = stack.enter_context(million(on, firsts))
        others = stack.enter_context(million(on, _traps(on.peer.host), _TRAP_SOURCES)) if traps else None
        return cls(on, stack.enter_context(running(on.peer)), knocks, others)

    def fill(self) -> None:
        """Give the program as many attempts as it holds, so that a new one has to take an old one's place."""
        self.on.flood(self.first_knocks, _RATE, _LIMIT, WAVE)
        self.program.settle(_LIMIT)

    def cost(self, ring: Ring, packets: int) -> float:
        """Microseconds of processor time for each packet that the program reads of so many."""
        return settled_cost(self.on, self.program, ring, packets)


def settled_cost(
    on: Field, program: Running, ring: Ring, packets: int, *, rate: float = _RATE, limit: float = _LIMIT
) -> float:
    """Microseconds of processor time for each packet that the program reads of so many, sent at this rate.

    limit: the most seconds that sending takes, and reading what waits then.
    """
    cpu, (read, _) = program.cpu(), program.packets()
    on.flood(ring, rate, limit, packets)
    if on.peer.name != "knockd":  # it would go on for minutes; what it has done until now tells as much
        program.settle(limit)
    used = program.cpu() - cpu
    return used / (program.packets()[0] - read) * 1e6


def cost(plan: Plan) -> Iterator[Figure]:
    """All of it."""
    firsts: tuple[list[float], list[float]] = [], []
    traps: tuple[list[float], list[float]] = [], []
    least: list[float] = []
    with ExitStack() as stack:
        one = Subject.start(stack, logknock, traps=True)
        ports = [sequence(number)[0] for number in range(_MANY)]
        thousand = Subject.start(stack, partial(logknock, doors=_MANY), ports, traps=True)
        nothing = Subject.start(stack, bare)
        for _ in range(plan.repeats):
            for number, subject in enumerate((one, thousand)):
                assert subject.traps is not None
                subject.fill()
                firsts[number].append(subject.cost(subject.first_knocks, plan.packets))
                traps[number].append(subject.cost(subject.traps, plan.packets))
            least.append(nothing.cost(nothing.first_knocks, plan.packets))
    theirs = [_knockd_cost(plan) for _ in range(min(2, plan.repeats))]
    yield from _cost_figures("first knocks", firsts, least, theirs, _FIRST_KNOCK_US)
    yield from _cost_figures("trap ports", traps, least, [], _UNINTERESTING_US)
    yield Figure(_SECTION, "receiving only", "us", tuple(least))


def _knockd_cost(plan: Plan) -> float:
    with ExitStack() as stack:
        subject = Subject.start(stack, knockd)
        return subject.cost(subject.first_knocks, plan.packets)


def _cost_figures(
    name: str, ours: tuple[list[float], list[float]], least: list[float], theirs: list[float], most: float
) -> Iterator[Figure]:
    one, thousand = map(tuple, ours)
    grown = median(thousand) / median(one)
    met = median(one) <= most
    yield Figure(_SECTION, f"{name}, 1 door", "us", one, tuple(theirs), f"at most {most:g} us", met)
    yield Figure(_SECTION, f"{name}, 1,000 doors", "us", thousand)
    yield Figure(_SECTION, f"{name}, 1,000 doors / 1", "times", (grown,), (), "at most 1.2", grown <= 1.2)
    yield Figure(_SECTION, f"{name} / receiving only", "times", (median(one) / median(least),))


def _traps(host: Host) -> list[int]:
    """The TCP ports that the ruleset watches without any door's asking for it."""
    listed = json.loads(host.run("nft", "-j", "list", "set", "inet", "logknock", "traps").stdout)
    elements = next(entry["set"]["elem"] for entry in listed["nftables"] if "set" in entry)
    return [port for proto, port in (element["concat"] for element in elements) if proto == "tcp"]
