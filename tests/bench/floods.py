"""Who gets in during a flood, what is lost of it, and how soon the daemon answers an administrator meanwhile.

Rule 1: each kind of flood comes at a rate that both programs meet, and to logknock as fast as one processor can send
it. Rule 2: what the kernel has recorded is counted in the kernel: what was read and what was counted as lost must be
that. Rule 3: questions are asked between the packets, by the process that sends them: no other has to be waited for.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as attribute
from functools import partial
from pathlib import Path
from typing import Any

from logknock.control import NAME, VERSION, ask
from logknock.packet import address_text

from . import hostile
from .field import MILLION, PATIENCE, RANDOM, Field, MakeFrame, Plan, field, million
from .figures import Figure, percentile
from .frames import syn, udp
from .peers import KNOCKS, DoorSet, Make, Peer, Running, knockd, logknock, running
from .sender import Due, Ring, Sent

_HONEST = bytes((203, 0, 113))

_KNOCK_GAP = 0.1  # seconds between the knocks of an honest knocker: the client's default
_BOTH = 50_000  # packets a second, of every kind, for both programs
_MILLION_RATE = 150_000

_SOURCES = 60_000  # of a flood at a time: fewer than the rules and the daemon have room for

# Seconds between two questions: more often than an administrator asks, and no flood by itself.
_ASK_EVERY = 0.05
_ANSWER_LIMIT = 100.0  # milliseconds

# Seconds for what waits to be read when a flood is over.
_SETTLED = 60

_PAUSE = 0.0005

_FULL_SPEED = float("inf")
_ENDLESS = 1 << 40  # packets; the time ends it
_LATENESS = 1.5  # a sender that is slower than this is not waited for

# What honest knockers send, by their addresses.
Knockers = Mapping[bytes, Sequence[bytes]]

_TCP = partial(logknock, proto="tcp"), partial(knockd, proto="tcp")
_UDP = partial(logknock, proto="udp"), partial(knockd, proto="udp")


def floods(plan: Plan) -> Iterator[Figure]:
    """All kinds."""
    for kind in hostile.KINDS:
        ours, theirs = _UDP if kind is hostile.datagrams else _TCP
        basic = kind is hostile.first_knocks
        makes = (ours, theirs) if basic or plan.floods_beside else (ours,)
        for rate in plan.rates if basic else (_BOTH,):
            outcomes = [_flooded(make, kind, plan, rate) for make in makes]
            yield from _beside(f"{outcomes[0].name}, {rate:,}/s", outcomes, plan.knockers)
        at_most = _flooded(ours, kind, plan, _FULL_SPEED)
        yield from _alone(f"{at_most.name}, as fast as can be", at_most, plan.knockers)


def million_sources(plan: Plan) -> Iterator[Figure]:
    """Who gets in, and what it takes, while first knocks come from 2^20 addresses."""
    seconds = MILLION / _MILLION_RATE
    outcomes = []
    for make in _TCP:
        with field(make) as on, million(on, KNOCKS[:1]) as ring, running(on.peer) as program:
            honest = _honest(on, plan, syn)
            outcomes.append(_meet("", on, ring, program, honest, _MILLION_RATE, seconds, MILLION))
    section = f"{MILLION:,} spoofed sources, {_MILLION_RATE:,}/s"
    yield from _beside(section, outcomes, plan.knockers)
    ours, theirs = (outcome.memory for outcome in outcomes)
    growth = ours[1] - ours[0]
    yield Figure(section, "memory at rest", "MiB", (ours[0],), (theirs[0],))
    yield Figure(section, "memory after it", "MiB", (ours[1],), (theirs[1],))
    yield Figure(section, "growth", "MiB", (growth,), (theirs[1] - theirs[0],), "at most 32 MiB", growth <= 32)
    yield Figure(section, "peak", "MiB", (ours[2],), (theirs[2],))


# ---- one flood


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a flood and of those who knocked during it."""

    name: str
    sent: Sent
    opened: int
    silent: int  # of those who did not get in: of how many not all knocks came so far as to the program
    recorded: int  # by the kernel
    read: int
    lost: int
    used: float  # seconds of processor time
    kept: float  # from running by others, in percent
    memory: tuple[float, float, float]  # MiB: at rest, after it, at the peak
    answers: list[float]  # milliseconds


def _flooded(make: Make, kind: hostile.Make, plan: Plan, rate: float) -> _Outcome:
    """A flood of this kind, and honest knockers in it."""
    with field(make) as on, running(on.peer) as program:
        made = kind(on.link, KNOCKS[0], _SOURCES, RANDOM)
        with Ring(on.client, made.frames, made.turns) as ring:
            honest = _honest(on, plan, udp if kind is hostile.datagrams else syn)
            return _meet(made.name, on, ring, program, honest, rate, plan.flood_seconds, _ENDLESS)


def _honest(on: Field, plan: Plan, make: MakeFrame) -> Knockers:
    """So many who knock during the flood, and one more, whose knocks come after it."""
    sources = (_HONEST + bytes((number + 1,)) for number in range(plan.knockers + 1))
    return {source: on.knocks(source, make=make) for source in sources}


def _meet(
    name: str, on: Field, ring: Ring, program: Running, knockers: Knockers, rate: float, seconds: float, count: int
) -> _Outcome:
    """Send it, for so many seconds, or until `count` are sent; see what becomes of it."""
    *during, after = knockers
    limit = seconds if count == _ENDLESS else _LATENESS * seconds
    honest = {source: knockers[source] for source in during}
    at_rest, before = program.memory("VmRSS"), program.times()
    asking = _Asking(on.peer.runtime, next(iter(honest)))
    with DoorSet(on.peer) as door:
        sent = on.flood(ring, rate, limit, count, _due(honest, seconds), asking.go_on)
        asking.finish()
        kept = program.kept(before)
        if rate == _FULL_SPEED:  # what was too much to be read at once has to be read first
            _settle(on.peer)
        shut = _shut(door, list(honest))
    _settle(on.peer)
    used = program.cpu() - before[0]
    on.wire.send(knockers[after][0])  # what is lost shows in the number of the next record
    program.settle(1)
    read, lost = program.packets()
    silent = sum(_is_silent(on.peer, source, lost) for source in shut)
    return _Outcome(
        name,
        sent,
        len(honest) - len(shut),
        silent,
        on.peer.recorded(),
        read,
        lost,
        used,
        kept,
        (at_rest, program.memory("VmRSS"), program.memory("VmHWM")),
        asking.times,
    )


def _due(honest: Knockers, seconds: float) -> list[Due]:
    """The honest knockers' frames, evenly spread over the flood but for its first tenth."""
    span = 0.85 * seconds - _KNOCK_GAP * len(KNOCKS)
    frames = (
        Due(0.1 * seconds + span * number / len(honest) + _KNOCK_GAP * stage, frame)
        for number, knocks in enumerate(honest.values())
        for stage, frame in enumerate(knocks)
    )
    return sorted(frames)


def _settle(peer: Peer) -> None:
    """Wait until logknock has read all that waits for it. (knockd would go on for minutes.)"""
    end = time.monotonic() + _SETTLED
    while peer.runtime and not peer.has_read_all and time.monotonic() < end:
        time.sleep(0.05)


def _shut(door: DoorSet, sources: Sequence[bytes]) -> list[bytes]:
    """For which of them the door has not opened when the last one's patience ends."""
    waiting = {source: door.request(source) for source in sources}
    end = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < end:
        waiting = {source: request for source, request in waiting.items() if not door.holds(request)}
        time.sleep(0.01)
    return list(waiting)


def _is_silent(peer: Peer, source: bytes, lost: int) -> bool:
    """Whether not all knocks of a source came as far as the program: not to the kernel's rules, or lost from there."""
    if peer.runtime is None or peer.arrived_of(address_text(source)) < len(KNOCKS):
        return True
    answers = ask(peer.runtime, "explain", address=address_text(source))
    told = {answer["finding"]["service"] for answer in answers if "finding" in answer}
    return lost > 0 and len(told - {""}) < len(KNOCKS)


@dataclass(slots=True)
class _Asking:
    """Asks the daemon now and then, on a new connection each time, and takes the time until its whole answer is there.

    `go_on` waits for nothing.
    """

    runtime: Path | None
    source: bytes
    times: list[float] = attribute(default_factory=list)  # milliseconds
    _wire: socket.socket | None = None
    _asked: float = 0.0
    _last: bytes = b""

    def finish(self) -> None:
        """Wait for the answer that is to come, in the end; what did not come in time took at least as long."""
        end = time.monotonic() + _SETTLED
        while self._wire is not None and time.monotonic() < end:
            self._look(self._wire)
            time.sleep(_PAUSE)
        if self._wire is not None:
            self.times.append(_SETTLED * 1000)
            self._wire.close()

    def go_on(self) -> None:
        """Ask, or look whether the answer has come."""
        if self._wire is not None:
            self._look(self._wire)
        elif self.runtime and time.monotonic() >= self._asked + _ASK_EVERY:
            self._ask(self.runtime / NAME, self._request())

    def _request(self) -> Mapping[str, Any]:
        if len(self.times) % 2:
            return {"do": "status"}
        return {"do": "explain", "address": address_text(self.source)}

    def _ask(self, path: Path, request: Mapping[str, Any]) -> None:
        self._asked, self._last = time.monotonic(), b""
        self._wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wire.connect(str(path))
        self._wire.setblocking(False)
        self._wire.send(json.dumps({"version": VERSION, **request}).encode() + b"\n")

    def _look(self, wire: socket.socket) -> None:
        with suppress(BlockingIOError):
            self._last = self._last[-100:] + wire.recv(1 << 16)
            assert b'"error"' not in self._last, self._last
            if self._last.endswith(b'{"done": true}\n'):
                self.times.append((time.monotonic() - self._asked) * 1000)
                wire.close()
                self._wire = None


# ---- what there is to say of it


def _beside(section: str, outcomes: Sequence[_Outcome], knockers: int) -> Iterator[Figure]:
    """Of logknock, and of knockd where it was there too."""
    ours, *others = outcomes
    kept, rates = tuple(one.kept for one in others), tuple(one.sent.rate for one in others)
    yield Figure(section, "kept from running by others", "%", (ours.kept,), kept)
    yield Figure(section, "really sent, a second", "", (ours.sent.rate,), rates)
    name, opened = "opened for honest knockers", tuple(one.opened for one in others)
    yield Figure(section, name, "", (ours.opened,), opened, "all", ours.opened == knockers, knockers)
    yield Figure(section, "records lost", "", (ours.lost,), (), "0", ours.lost == 0, ours.recorded)
    yield from _common(section, ours)


def _alone(section: str, ours: _Outcome, knockers: int) -> Iterator[Figure]:
    """More than can be read, perhaps: then records are lost, and counted, and a knock may be among them."""
    yield Figure(section, "really sent, a second", "", (ours.sent.rate,))
    met = ours.opened + ours.silent == knockers
    yield Figure(section, "opened for honest knockers", "", (ours.opened,), (), "all that were read", met, knockers)
    yield Figure(section, "records lost and counted", "", (ours.lost,), of=ours.recorded)
    missed = ours.recorded - ours.read - ours.lost
    yield Figure(section, "records neither read nor counted", "", (missed,), (), "0", missed == 0)
    yield from _common(section, ours)


def _common(section: str, ours: _Outcome) -> Iterator[Figure]:
    yield Figure(section, "processor time a packet sent", "us", (ours.used / ours.sent.packets * 1e6,))
    most, p50 = max(ours.answers), percentile(ours.answers, 0.5)
    yield Figure(section, "control socket answers, p50", "ms", (p50,))
    name, target = "control socket answers, most", f"at most {_ANSWER_LIMIT:.0f} ms"
    yield Figure(section, name, "ms", (most,), (), target, most <= _ANSWER_LIMIT)
