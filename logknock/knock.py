"""Which knockers may pass which doors.

Rule 1: every state and transition of an attempt is in this file. Rule 2: no I/O and no clock: time comes in on packets.
Rule 3: a packet costs the same whatever the number of doors, knockers and attempts; memory has a fixed bound.

The doors' sequences form a tree (a `Step` for each beginning that some of them share), so that one attempt stands
for all sequences that its knocks have begun. What a packet does to an attempt is decided in `_advance` alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from struct import Struct
from typing import NamedTuple, Self

from .packet import ACK, FIN, PROTOCOL_NAMES, PROTOCOLS, PSH, RST, SYN, TCP, URG, Packet

# Sources with attempts. A spoofed first knock costs one of these and about 400 bytes; at 150,000 such knocks a second
# an honest knocker still has 0.4 s from the first knock to the second, after which a flood of first knocks cannot
# touch the attempt any more.
MAX_KNOCKERS = 65_536

# Of these, how many may come from one IPv6 /64, which is what a single machine usually has for the asking.
MAX_KNOCKERS_PER_PREFIX = 256
_PREFIX_BYTES = 8

# knockd's own limit, and how many attempts a source can have at a time, those that are done included.
MAX_SEQUENCE = 32

# Room is made for so many knockers at a time: the oldest entries of a dict are found by walking over the places of
# deleted ones, which costs a quarter of a millisecond for a full crowd, whatever the number.
_SWEEP = 1024

# Packets of one knocker that two receive queues took in can carry times a little out of order. More than that is
# a clock that stepped.
CLOCK_SLACK = 0.01


class Service(NamedTuple):
    """A protocol and a port, written `22/tcp`."""

    proto: int
    port: int

    def __str__(self) -> str:
        return f"{self.port}/{PROTOCOL_NAMES[self.proto]}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`22/tcp` as a Service; raises ValueError with what is wrong, in words for the operator."""
        port, slash, protocol = text.partition("/")
        if not slash:
            raise ValueError(f"{text!r} has no protocol: write {text}/tcp or {text}/udp")
        if protocol not in PROTOCOLS:
            raise ValueError(f"{text!r}: the protocol is tcp or udp, not {protocol!r}")
        return cls(PROTOCOLS[protocol], parse_port(port, text))


def parse_port(digits: str, shown: str) -> int:
    """A port in decimal, 1-65535, with no sign, blank or other script's digits; `shown` is what the error quotes."""
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError((f"{shown!r}: " if shown != digits else "") + f"{digits!r} is no port number")
    if len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise ValueError(f"{shown} is no port (1-65535)")
    return int(digits)


class TcpFlags(NamedTuple):
    """Which TCP packets count as knocks: those whose flags under `mask` are exactly `value`."""

    mask: int
    value: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """knockd's notation: flags that must be set, and with `!` those that must not (`syn,!ack`)."""
        mask = value = 0
        for word in text.split(","):
            name = word.strip().lower()
            bit = _FLAG_BITS.get(name.removeprefix("!"))
            if bit is None:
                raise ValueError(f"{word.strip()!r} is no TCP flag ({', '.join(_FLAG_BITS)})")
            if mask & bit:
                raise ValueError(f"{name.removeprefix('!')} is named twice")
            mask |= bit
            value |= 0 if name.startswith("!") else bit
        return cls(mask, value)


_FLAG_BITS = {"fin": FIN, "syn": SYN, "rst": RST, "psh": PSH, "ack": ACK, "urg": URG}
SYN_NOT_ACK = TcpFlags(SYN | ACK, SYN)


class SetName(NamedTuple):
    """A set of nftables, by family, table and name."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return " ".join(self)


@dataclass(frozen=True, slots=True)
class Door:
    """What a sequence opens. Durations are in seconds."""

    name: str
    sequence: tuple[Service, ...]
    seq_timeout: float = 15.0
    tcp_flags: TcpFlags = SYN_NOT_ACK
    opens: tuple[Service, ...] = ()
    sets: tuple[SetName, ...] = ()
    closes: tuple[str, ...] = ()
    timeout: float = 30.0
    guard: bool = True


class Grant(NamedTuple):
    """A door open for a knocker until `expires` (seconds since the epoch)."""

    door: str
    src: bytes
    expires: float


class Reason(StrEnum):
    """Why an attempt ended without opening anything."""

    WRONG = "wrong port"
    TIMEOUT = "sequence timeout"
    CLOCK = "clock stepped back"
    EVICTED = "too many attempts"


class Advanced(NamedTuple):
    """The packet was the next knock of these doors' sequences; `stage` counts from 1."""

    packet: Packet
    doors: tuple[str, ...]
    stage: int


class Failed(NamedTuple):
    """An attempt at these doors ended; `packet` is what ended it, where a packet did."""

    src: bytes
    doors: tuple[str, ...]
    stage: int
    reason: Reason
    packet: Packet | None


class Granted(NamedTuple):
    """The sequence of a door is complete: it is to be open for the packet's source."""

    packet: Packet
    grant: Grant


class Revoked(NamedTuple):
    """The sequence of the door `by` is complete, which closes `door` for the packet's source."""

    packet: Packet
    door: str
    by: str


Event = Advanced | Failed | Granted | Revoked


class Step:
    """A beginning that one or more sequences share: what has been knocked, and what may follow."""

    __slots__ = ("completes", "doors", "flags", "path", "seq_timeout", "stage", "then", "tree")

    def __init__(self, tree: object, path: tuple[Service, ...], flags: TcpFlags, seq_timeout: float) -> None:
        self.tree = tree  # the same object for all steps of one set of doors
        self.path = path
        self.stage = len(path)
        self.flags = flags
        self.seq_timeout = seq_timeout
        self.doors: tuple[str, ...] = ()
        self.completes: tuple[Door, ...] = ()
        self.then: dict[Service, Step] = {}


class Attempt(NamedTuple):
    """Progress: the step reached, the times of the first and the last knock, the knocks accepted (a `_flow` each)."""

    step: Step
    first: float
    last: float
    flows: bytes

    @property
    def expires(self) -> float:
        """The instant at which the attempt ends."""
        return self.first + self.step.seq_timeout

    @property
    def is_done(self) -> bool:
        """Whether its last door is open.

        It stays until it would have timed out, so that late resends of its knocks are known for what they are
        and cannot walk through the sequence a second time (T7).
        """
        return not self.step.then


_FLOW = Struct("!BHH")


def _flow(packet: Packet) -> bytes:
    """Protocol, source and destination port: what a resend has in common with its original."""
    return _FLOW.pack(packet.proto, packet.sport, packet.dport)


def _has_flow(flows: bytes, flow: bytes) -> bool:
    # The first test is quick and may find it across two of them; the second is sure.
    return flow in flows and any(flows[at : at + _FLOW.size] == flow for at in range(0, len(flows), _FLOW.size))


def _advance(attempt: Attempt, packet: Packet, guarded: frozenset[Service]) -> Attempt | Reason:
    """What the packet makes of the attempt: its successor, the attempt itself (nothing changed), or why it ends.

    In order: the clock; then what may be there without meaning anything (a resend, other TCP flags, a
    guarded service that somebody tries early); then the right knock; anything else is a wrong one (T1, T4, T7).
    """
    step = attempt.step
    if packet.time >= attempt.expires:
        return Reason.TIMEOUT
    if packet.time < attempt.last - CLOCK_SLACK:
        return Reason.CLOCK
    flow = _flow(packet)
    if attempt.is_done or _has_flow(attempt.flows, flow):
        return attempt
    if packet.proto == TCP and packet.flags & step.flags.mask != step.flags.value:
        return attempt
    service = Service(packet.proto, packet.dport)
    following = step.then.get(service)
    if following is not None:
        return Attempt(following, attempt.first, packet.time, attempt.flows + flow)
    return attempt if service in guarded else Reason.WRONG


Attempts = tuple[Attempt, ...]


class _Crowd:
    """Sources and their attempts, by the stage of the most advanced one, each stage in the order of coming."""

    __slots__ = ("by_stage", "size")

    def __init__(self) -> None:
        self.by_stage: list[dict[bytes, Attempts]] = [{}]
        self.size = 0

    def find(self, src: bytes) -> Attempts:
        for members in self.by_stage:
            if src in members:
                return members[src]
        return ()

    def add(self, src: bytes, attempts: Attempts) -> None:
        stage = _stage(attempts)
        while len(self.by_stage) <= stage:
            self.by_stage.append({})
        self.by_stage[stage][src] = attempts
        self.size += 1

    def remove(self, src: bytes, attempts: Attempts) -> None:
        del self.by_stage[_stage(attempts)][src]
        self.size -= 1

    def first(self, count: int) -> list[bytes]:
        """Who gives way under pressure: the oldest of the lowest stage (T14), then of the next."""
        everyone = (src for members in self.by_stage for src in members)
        return list(islice(everyone, count))


class Matcher:
    """Turns packets into events: `receive` is all of it. Not thread-safe; holds no resource."""

    def __init__(self, doors: Iterable[Door], max_knockers: int = MAX_KNOCKERS) -> None:
        self._max_knockers = max_knockers
        self._sweep = min(_SWEEP, max(1, max_knockers // 16))
        self._crowd = _Crowd()
        # Of each /64 the only source with attempts, or a crowd once there was a second one (most have one).
        self._prefixes: dict[bytes, bytes | _Crowd] = {}
        self._firsts: dict[tuple[int, int], tuple[Step, ...]] = {}
        self._steps: dict[tuple[Service, ...], tuple[Step, ...]] = {}
        self._guarded: frozenset[Service] = frozenset()
        self.set_doors(doors)

    @property
    def knockers(self) -> int:
        """How many sources have attempts."""
        return self._crowd.size

    def set_doors(self, doors: Iterable[Door]) -> None:
        """Go on with these doors. An attempt goes on too wherever its knocks still begin some sequence."""
        doors = tuple(doors)
        steps: dict[_StepKey, Step] = {}
        self._tree = object()
        for door in doors:
            _plant(self._tree, steps, door)
        self._steps = {}
        for step in steps.values():
            self._steps[step.path] = (*self._steps.get(step.path, ()), step)
        self._firsts = {path[0]: found for path, found in self._steps.items() if len(path) == 1}
        self._guarded = frozenset(service for door in doors if door.guard for service in door.opens)

    def heeds(self, src: bytes, proto: int, dport: int) -> bool:
        """Whether such a packet can change anything; who decodes packets in bulk need not even build the others."""
        if (proto, dport) in self._firsts:
            return True
        for members in self._crowd.by_stage:  # a loop: this runs for each packet of a flood
            if src in members:
                return True
        return False

    def receive(self, packet: Packet) -> list[Event]:
        """What this packet does, in order: attempts it advances or ends, doors it opens or closes."""
        src, time = packet.src, packet.time
        before = self._crowd.find(src)
        firsts = self._firsts.get((packet.proto, packet.dport), ())
        events: list[Event] = []
        after: Attempts = ()
        if before:
            after, resend = self._feed(before, packet, events)
            if resend:
                firsts = ()
        for step in firsts:
            if packet.proto != TCP or packet.flags & step.flags.mask == step.flags.value:
                after += (self._reach(Attempt(step, time, time, _flow(packet)), packet, events),)
        if before or after:
            self._put(src, before, after)
        if after and not before:
            self._make_room(src, time, events)
        return events

    def expire(self, now: float) -> list[Event]:
        """End attempts that have timed out, a bounded number a call; receive() sees to exactness by itself.

        For the log and for memory: call it once a second or so.
        """
        events: list[Event] = []
        for members in self._crowd.by_stage:
            for src, attempts in list(islice(members.items(), 2 * self._sweep)):
                kept = tuple(attempt for attempt in attempts if attempt.expires > now)
                if len(kept) == len(attempts):
                    continue  # doors differ in seq_timeout: a younger one may have ended before it
                for attempt in attempts:
                    if attempt.expires <= now:
                        _report_end(src, attempt, Reason.TIMEOUT, None, events)
                self._put(src, attempts, kept)
        return events

    def _feed(self, attempts: Attempts, packet: Packet, events: list[Event]) -> tuple[Attempts, bool]:
        """The source's attempts after the packet, and whether it was but a resend of a knock of one of them."""
        kept: list[Attempt] = []
        flow = _flow(packet)
        resend = False
        for before in attempts:
            attempt = self._renewed(before)
            if attempt is None:
                continue
            after = _advance(attempt, packet, self._guarded)
            if after is attempt:
                resend = resend or _has_flow(attempt.flows, flow)
                kept.append(attempt)
            elif isinstance(after, Reason):
                _report_end(packet.src, attempt, after, packet, events)
            else:
                kept.append(self._reach(after, packet, events))
        if len(kept) > MAX_SEQUENCE:  # those that are done, of who knocks again and again: the oldest give way
            del kept[: len(kept) - MAX_SEQUENCE]
        return tuple(kept), resend

    def _reach(self, attempt: Attempt, packet: Packet, events: list[Event]) -> Attempt:
        """Report the step reached and what it completes; the attempt that goes on from there."""
        step = attempt.step
        events.append(Advanced(packet, step.doors, step.stage))
        for door in step.completes:
            events.extend(_completed(door, packet))
        return attempt

    def _renewed(self, attempt: Attempt) -> Attempt | None:
        """The attempt in terms of the doors as they are now: set_doors() leaves that to the first packet after it."""
        step = attempt.step
        if step.tree is self._tree or attempt.is_done:
            return attempt
        same_path = self._steps.get(step.path, ())
        alike = [now for now in same_path if (now.flags, now.seq_timeout) == (step.flags, step.seq_timeout)]
        now = next(iter(alike or same_path), None)
        return None if now is None else attempt._replace(step=now)

    def _put(self, src: bytes, before: Attempts, after: Attempts) -> None:
        """Make `after` the source's attempts, which `before` were."""
        if before and after and before[0] is after[0] and _stage(before) == _stage(after):
            # Nothing that makes it younger: it keeps its place in the order.
            self._crowd.by_stage[_stage(after)][src] = after
            return
        if before:
            self._crowd.remove(src, before)
            if len(src) == 16:
                self._leave_prefix(src, before)
        if after:
            self._crowd.add(src, after)
            if len(src) == 16:
                self._join_prefix(src, after)

    def _join_prefix(self, src: bytes, attempts: Attempts) -> None:
        prefix = src[:_PREFIX_BYTES]
        there = self._prefixes.get(prefix)
        if there is None:
            self._prefixes[prefix] = src
            return
        if isinstance(there, bytes):
            crowd = self._prefixes[prefix] = _Crowd()
            crowd.add(there, self._crowd.find(there))
            there = crowd
        there.add(src, attempts)

    def _leave_prefix(self, src: bytes, attempts: Attempts) -> None:
        prefix = src[:_PREFIX_BYTES]
        there = self._prefixes[prefix]
        if isinstance(there, _Crowd):
            there.remove(src, attempts)
            if there.size:
                return
        del self._prefixes[prefix]

    def _make_room(self, src: bytes, now: float, events: list[Event]) -> None:
        """Hold the bounds after `src` has begun: in its /64 first, so that a prefix pays for itself (T13, T14, T17)."""
        if len(src) == 16:
            crowd = self._prefixes[src[:_PREFIX_BYTES]]
            if isinstance(crowd, _Crowd) and crowd.size > MAX_KNOCKERS_PER_PREFIX:
                self._evict(crowd.first(1), now, events)
        if self._crowd.size > self._max_knockers:
            self._evict(self._crowd.first(self._sweep), now, events)

    def _evict(self, sources: list[bytes], now: float, events: list[Event]) -> None:
        for src in sources:
            attempts = self._crowd.find(src)
            for attempt in attempts:
                reason = Reason.EVICTED if attempt.expires > now else Reason.TIMEOUT
                _report_end(src, attempt, reason, None, events)
            self._put(src, attempts, ())


def _stage(attempts: Attempts) -> int:
    """The stage of the most advanced attempt; 0 where none is under way any more."""
    if len(attempts) == 1:
        step = attempts[0].step
        return step.stage if step.then else 0
    return max(attempt.step.stage if attempt.step.then else 0 for attempt in attempts)


def _report_end(src: bytes, attempt: Attempt, reason: Reason, packet: Packet | None, events: list[Event]) -> None:
    if not attempt.is_done:
        events.append(Failed(src, attempt.step.doors, attempt.step.stage, reason, packet))


_StepKey = tuple[tuple[Service, ...], TcpFlags, float]


def _plant(tree: object, steps: dict[_StepKey, Step], door: Door) -> None:
    """Add the door's sequence to the tree. Sequences share steps where flags and seq_timeout are the same too."""
    above: Step | None = None
    for stage in range(1, len(door.sequence) + 1):
        path = door.sequence[:stage]
        key = (path, door.tcp_flags, door.seq_timeout)
        step = steps.get(key)
        if step is None:
            step = steps[key] = Step(tree, path, door.tcp_flags, door.seq_timeout)
            if above is not None:
                above.then[path[-1]] = step
        step.doors += (door.name,)
        above = step
    if above is not None:
        above.completes += (door,)


def _completed(door: Door, packet: Packet) -> Iterator[Event]:
    if door.opens or door.sets:
        yield Granted(packet, Grant(door.name, packet.src, packet.time + door.timeout))
    for closed in door.closes:
        yield Revoked(packet, closed, door.name)
