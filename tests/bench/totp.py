"""TOTP doors: how soon one opens beside a fixed sequence, and what a thousand clients cost.

Rule 1: a TOTP door and a fixed one are knocked at by turns, with as many knocks over the same protocols, and both keep
their state in the same place: on a disk, where a use is synced before the door opens, and in memory. Rule 2: each
client knocks once a step, as it must. Rule 3: what a thousand clients cost is what their program takes more than one
with a single fixed door, at the same time.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from logknock import totp
from logknock.knock import Sequence, Service
from logknock.packet import TCP, UDP

from .cost import Subject
from .field import RANDOM, Field, Plan, disk, field, sync
from .figures import Figure
from .frames import syn, udp
from .peers import HOST, DoorSet, logknock_fixed, logknock_totp, running, totp_secret

# What is aimed at: how much longer a knock may take than a fixed one, how much more a packet may cost, how much of the
# loop's time a turn of the step may take (milliseconds), and how much memory a thousand clients may (MiB).
_OPENING, _COST, _TURN, _GROWTH = 1.5, 1.2, 50, 16

_MANY = 1000
_A_ROUND = 10

_SETTLE = 20  # seconds

# Where a sync costs nothing: what is left is what a derived sequence costs.
_MEMORY = "/dev/shm"  # noqa: S108 - a folder of its own in it

_POOL = tuple(Service(proto, port) for proto in (TCP, UDP) for port in range(20_000, 20_500))
_FIXED = (Service(TCP, 20_011), Service(UDP, 20_222), Service(UDP, 20_099), Service(TCP, 20_333))


def totp_doors(plan: Plan) -> Iterator[Figure]:
    """All of it."""
    with disk() as (folder, kind):
        yield from _openings(plan, folder, f"on a disk ({kind})")
        yield from _many(plan, folder)
    with TemporaryDirectory(dir=_MEMORY) as memory:
        yield from _openings(plan, Path(memory), "in memory")


# ---- a knock opens its door


def _openings(plan: Plan, folder: Path, where: str) -> Iterator[Figure]:
    """Pair by pair: what the disk does otherwise changes from moment to moment."""
    rounds = max(2, plan.openings // 4 // _A_ROUND)
    derived, fixed, syncs, ratios = [], [], [], []
    with ExitStack() as stack:
        here = stack.enter_context(field(partial(logknock_totp, clients=rounds * _A_ROUND), folder))
        there = stack.enter_context(field(partial(logknock_fixed, services=_FIXED), folder))
        for on in (here, there):
            stack.enter_context(running(on.peer)).settle(_SETTLE)
        doors = [stack.enter_context(DoorSet(on.peer)) for on in (here, there)]
        for number in range(rounds * _A_ROUND):
            source = bytes((198, 51, 100, number + 1))
            syncs.append(sync(folder))
            derived.append(_knocked(here, doors[0], source, number))
            fixed.append(_knocked(there, doors[1], source))
            if number % _A_ROUND == _A_ROUND - 1:
                ratios.append(median(derived[-_A_ROUND:]) / median(fixed[-_A_ROUND:]))
    name = f"TOTP: knock to open, state {where}"
    yield Figure(name, "TOTP, beside a fixed sequence", "ms", tuple(derived), tuple(fixed))
    met = median(ratios) <= _OPENING
    yield Figure(name, "TOTP / fixed", "times", tuple(ratios), (), f"at most {_OPENING}", met)
    yield Figure(name, "of it a sync", "ms", tuple(syncs))


def _knocked(on: Field, door: DoorSet, source: bytes, client: int | None = None) -> float:
    """Milliseconds from the last knock to the open door: of a client with its sequence, or with the fixed one."""
    asked = door.request(source)
    *first, last = _frames(on, source, _FIXED if client is None else _sequence(client))
    for frame in first:
        on.wire.send(frame)
        time.sleep(RANDOM.uniform(0.01, 0.06))
    return on.opening_by(door, asked, last)


def _sequence(client: int) -> Sequence:
    step = totp.step_at(time.time(), totp.DEFAULT_STEP)
    return totp.derive(totp_secret(client), step, "door0", HOST, _POOL, totp.DEFAULT_LENGTH)


def _frames(on: Field, source: bytes, services: Sequence) -> list[bytes]:
    makes = {TCP: syn, UDP: udp}
    return [
        makes[service.proto](on.link, source, 40_000 + stage, service.port) for stage, service in enumerate(services)
    ]


# ---- a thousand clients


def _many(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Beside a single fixed door: memory at rest, what a step's turn takes, and what a packet costs."""
    section = f"TOTP: {_MANY:,} clients"
    costs: tuple[list[float], list[float]] = [], []
    scans: tuple[list[float], list[float]] = [], []
    with ExitStack() as stack:
        pool = [service.port for service in _POOL if service.proto == TCP]
        fixed = Subject.start(stack, partial(logknock_fixed, services=_FIXED), [_FIXED[0].port], True, folder)
        thousand = Subject.start(stack, partial(logknock_totp, clients=_MANY), pool, True, folder)
        subjects = fixed, thousand
        for subject in subjects:
            subject.program.settle(_SETTLE)
        at_rest = [subject.program.memory("VmRSS") for subject in subjects]
        turn = _turn(fixed, thousand)
        for _ in range(plan.repeats):
            for number, subject in enumerate(subjects):
                assert subject.traps is not None
                subject.fill()
                costs[number].append(subject.cost(subject.first_knocks, plan.packets))
                scans[number].append(subject.cost(subject.traps, plan.packets))
        peaks = [subject.program.memory("VmHWM") for subject in subjects]
    growth = at_rest[1] - at_rest[0]
    yield Figure(section, "memory, beside a fixed door's", "MiB", (at_rest[1],), (at_rest[0],))
    yield Figure(section, "growth", "MiB", (growth,), (), f"at most {_GROWTH} MiB", growth <= _GROWTH)
    yield Figure(section, "peak, with attempts of 65,536 sources", "MiB", (peaks[1],), (peaks[0],))
    yield Figure(section, "processor time a step", "ms", (turn,), (), f"at most {_TURN} ms", turn <= _TURN)
    for name, (ours, theirs) in (("first knocks", costs), ("trap ports", scans)):
        yield Figure(section, f"{name}, beside a fixed door", "us", tuple(theirs), tuple(ours))
        ratio = median(theirs) / median(ours)
        yield Figure(section, f"{name}, / a fixed door", "times", (ratio,), (), f"at most {_COST}", ratio <= _COST)


def _turn(fixed: Subject, thousand: Subject) -> float:
    """Milliseconds of processor time that a step takes, but for what the other program takes meanwhile.

    It may begin at any moment: so long a time has one turn in it, and all that is prepared for it.
    """
    before = [subject.program.cpu() for subject in (fixed, thousand)]
    time.sleep(totp.DEFAULT_STEP)
    idle, used = (subject.program.cpu() - then for subject, then in zip((fixed, thousand), before, strict=True))
    return (used - idle) * 1000
