"""What happens to knockers: how soon a door opens, who gets in during a flood, and what a flood takes.

Rule: both programs meet the same traffic and are asked in the same way.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from .cost import cost
from .field import MILLION, PATIENCE, SOURCES, Field, Plan, field, million, sixty_thousand
from .figures import Figure, percentile
from .onetime import onetime
from .peers import KNOCKS, DoorSet, Make, knockd, logknock, running
from .sender import Due, Sent
from .sources import latency, reading

_HONEST = bytes((203, 0, 113))

_KNOCK_GAP = 0.1  # seconds between the knocks of an honest knocker: the client's default
_MILLION_RATE = 150_000  # packets a second


# ---- a knock opens its door


def opening(plan: Plan) -> Iterator[Figure]:
    """How long after its last knock a knocker's door is open."""
    ours, theirs, kept = _openings(plan)
    p50, p99 = (tuple(percentile(times, share) for times in (ours, theirs)) for share in (0.5, 0.99))
    name = "knock to open"
    yield Figure(name, "p50", "ms", (p50[0],), (p50[1],), "20 times faster", p50[1] >= 20 * p50[0])
    yield Figure(name, "p99", "ms", (p99[0],), (p99[1],), "below knockd's p50", p99[0] < p50[1])
    yield Figure(name, "least", "ms", (min(ours),), (min(theirs),))
    yield Figure(name, "most", "ms", (max(ours),), (max(theirs),))
    yield Figure(name, "kept from running by others", "%", (kept,))


def _openings(plan: Plan) -> tuple[list[float], list[float], float]:
    """Of both programs by turns, so that what else the machine does meets both; what it did to logknock, in percent."""
    ours, theirs = [], []
    with (
        field(logknock) as here, running(here.peer) as program, DoorSet(here.peer) as door,
        field(knockd) as there, running(there.peer), DoorSet(there.peer) as other_door,
    ):  # fmt: skip
        before = program.times()
        for number in range(plan.openings):
            source = bytes((198, 51, 100, number + 1))
            ours.append(here.opening(door, source))
            if number % plan.openings_to_one == 0:
                theirs.append(there.opening(other_door, source))
        return ours, theirs, program.kept(before)


# ---- honest knockers in a flood


def floods(plan: Plan) -> Iterator[Figure]:
    """Who gets in while spoofed first knocks come from 60,000 addresses."""
    for rate in plan.rates:
        outcomes = [_flooded(make, plan, rate, plan.flood_seconds) for make in (logknock, knockd)]
        yield from _flood_figures(f"{SOURCES:,} spoofed sources, {rate:,}/s", outcomes, plan.knockers)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a flood and of those who knocked during it."""

    sent: Sent
    packets: int  # with the honest ones
    opened: int
    read: int
    lost: int
    kept: float  # from running by others, in percent
    memory: tuple[float, float, float]  # MiB: at rest, after it, at the peak


def _flooded(make: Make, plan: Plan, rate: float, seconds: float, *, once: bool = False) -> _Outcome:
    """A flood from 60,000 sources for so long, or `once` from a million; and honest knockers in it."""
    spoofed = (lambda on: million(on, KNOCKS[:1])) if once else sixty_thousand
    with field(make) as on, spoofed(on) as ring, running(on.peer) as program, DoorSet(on.peer) as door:
        honest = [_HONEST + bytes((number + 1,)) for number in range(plan.knockers)]
        at_rest, before = program.memory("VmRSS"), program.times()
        limit = (1.5 * seconds, MILLION) if once else (seconds, 1 << 40)
        sent = on.flood(ring, rate, *limit, _due(on, honest, seconds))
        kept = program.kept(before)
        opened = _opened(door, honest)
        read, lost = program.packets()
        memory = at_rest, program.memory("VmRSS"), program.memory("VmHWM")
        return _Outcome(sent, sent.packets + len(honest) * len(KNOCKS), opened, read, lost, kept, memory)


def _due(on: Field, honest: Sequence[bytes], seconds: float) -> list[Due]:
    """The honest knockers' frames, evenly spread over the flood but for its first tenth."""
    span = 0.85 * seconds - _KNOCK_GAP * len(KNOCKS)
    frames = (
        Due(0.1 * seconds + span * number / len(honest) + _KNOCK_GAP * stage, frame)
        for number, source in enumerate(honest)
        for stage, frame in enumerate(on.knocks(source))
    )
    return sorted(frames)


def _opened(door: DoorSet, sources: Sequence[bytes]) -> int:
    """For how many of them the door has opened before the last one's patience ended."""
    waiting = [door.request(source) for source in sources]
    end = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < end:
        waiting = [request for request in waiting if not door.holds(request)]
        time.sleep(0.01)
    return len(sources) - len(waiting)


def _flood_figures(section: str, outcomes: Sequence[_Outcome], knockers: int) -> Iterator[Figure]:
    ours, theirs = outcomes
    opened = ours.opened
    yield Figure(section, "kept from running by others", "%", (ours.kept,), (theirs.kept,))
    yield Figure(section, "really sent, a second", "", (ours.sent.rate,), (theirs.sent.rate,))
    yield Figure(
        section, "opened for honest knockers", "", (opened,), (theirs.opened,), "all", opened == knockers, knockers
    )
    yield Figure(section, "records lost", "", (ours.lost,), (), "0", ours.lost == 0, ours.packets)


def overload(plan: Plan) -> Iterator[Figure]:
    """What becomes of more than can be read: lost records are counted, every one."""
    with field(logknock) as on, sixty_thousand(on) as ring, running(on.peer) as program:
        sent = on.flood(ring, float("inf"), plan.flood_seconds / 2, 1 << 40)
        program.settle(10)
        on.wire.send(on.knocks(_HONEST + b"\1")[0])  # what is lost shows in the number of the next record
        program.settle(1)
        read, lost = program.packets()
    section = f"{SOURCES:,} spoofed sources, as fast as can be"
    packets = sent.packets + 1
    yield Figure(section, "really sent, a second", "", (sent.rate,))
    yield Figure(section, "records read", "", (read,), of=packets)
    yield Figure(section, "records lost and counted", "", (lost,), of=packets)
    yield Figure(
        section, "records neither read nor counted", "", (packets - read - lost,), (), "0", packets == read + lost
    )


# ---- a million sources


def million_sources(plan: Plan) -> Iterator[Figure]:
    """Who gets in, and what it takes, while first knocks come from 2^20 addresses."""
    seconds = MILLION / _MILLION_RATE
    outcomes = [_flooded(make, plan, _MILLION_RATE, seconds, once=True) for make in (logknock, knockd)]
    section = f"{MILLION:,} spoofed sources, {_MILLION_RATE:,}/s"
    yield from _flood_figures(section, outcomes, plan.knockers)
    ours, theirs = (outcome.memory for outcome in outcomes)
    growth = ours[1] - ours[0]
    yield Figure(section, "memory at rest", "MiB", (ours[0],), (theirs[0],))
    yield Figure(section, "memory after it", "MiB", (ours[1],), (theirs[1],))
    yield Figure(section, "growth", "MiB", (growth,), (theirs[1] - theirs[0],), "at most 32 MiB", growth <= 32)
    yield Figure(section, "peak", "MiB", (ours[2],), (theirs[2],))


# ---- from start to ready


def readiness(plan: Plan) -> Iterator[Figure]:
    """How long after its start a program listens."""
    ours, theirs = (_starts(make, plan.starts) for make in (logknock, knockd))
    yield Figure("start", "until it listens", "s", ours, theirs, "at most 0.5 s", median(ours) <= 0.5)


def _starts(make: Make, count: int) -> tuple[float, ...]:
    with field(make) as on:
        with running(on.peer):
            pass  # the first one fills the caches
        times = []
        for _ in range(count):
            with running(on.peer) as program:
                times.append(program.ready_after)
        return tuple(times)


SECTIONS: dict[str, Callable[[Plan], Iterator[Figure]]] = {
    "opening": opening,
    "flood": floods,
    "overload": overload,
    "million": million_sources,
    "cost": cost,
    "start": readiness,
    "onetime": onetime,
    "reading": reading,
    "sources": latency,
}
