"""The sections of the benchmark, and those that need no file of their own: how soon a door opens, and a start.

Rule: both programs meet the same traffic and are asked in the same way.
"""

from collections.abc import Callable, Iterator
from statistics import median

from .cost import cost
from .field import Plan, field
from .figures import Figure, percentile
from .floods import floods, million_sources
from .onetime import onetime
from .peers import DoorSet, Make, knockd, logknock, running
from .sources import latency, reading
from .spa import single_packets
from .totp import totp_doors

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
    "floods": floods,
    "million": million_sources,
    "cost": cost,
    "start": readiness,
    "onetime": onetime,
    "totp": totp_doors,
    "spa": single_packets,
    "reading": reading,
    "sources": latency,
}
