"""The trail of a knocker: each packet, and in words what became of it and why.

Rule 1: pure; packets and what the matcher said of them come in, findings go out. Rule 2: what was not decided in
`knock` is not decided here: a finding says what an event says. Rule 3: memory has a fixed bound, and what anybody can
cause with one packet does not push out what takes more. Rule 4: no knock of a one-time sequence is told before it came.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from .counts import Counts
from .knock import (
    Advanced,
    Attempt,
    Code,
    Derived,
    Door,
    Event,
    Evicted,
    Failed,
    Granted,
    Ignored,
    Reason,
    Revoked,
    Service,
    Spent,
    Why,
)
from .packet import Packet, address_text
from .spa import Reason as SpaReason

# What a running daemon remembers, in packets, of each of two kinds: 4,096 take 4 MB at worst, and hold an hour of a
# usual host's background noise.
MAX_KEPT = 4_096

# Sources whose last attempt has timed out, so that a knock that comes too late is known for one.
MAX_LATE = 4_096

# Of the doors that share a beginning so many get a finding of their own.
DOORS_SHOWN = 4


class Verdict(StrEnum):
    """What became of a packet at a door; the values are for programs to read and do not change."""

    ADVANCED = "advanced"
    OPENED = "opened"
    CLOSED = "closed"
    USED = "used"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    AGE = "age"
    REFUSED = "refused"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    LATE = "late"
    CLOCK = "clock"
    EVICTED = "evicted"
    REPLAYED = "replayed"
    OUTSIDE = "outside"
    WARY = "wary"
    SPENT = "spent"
    COOLDOWN = "cooldown"
    RESEND = "resend"
    DONE = "done"
    FLAGS = "flags"
    TARGET = "target"
    GUARDED = "guarded"
    STALE = "stale"
    UNKNOWN = "unknown"


# For whoever shows them in colours: what brings a knocker further, and what means nothing; the rest went wrong.
GOOD = frozenset({Verdict.ADVANCED, Verdict.OPENED, Verdict.CLOSED, Verdict.USED, Verdict.ACCEPTED})
NOTHING = frozenset(
    {
        Verdict.RESEND,
        Verdict.DONE,
        Verdict.FLAGS,
        Verdict.TARGET,
        Verdict.GUARDED,
        Verdict.STALE,
        Verdict.UNKNOWN,
    }
)

_REASONS = {
    Reason.WRONG: Verdict.WRONG,
    Reason.TIMEOUT: Verdict.TIMEOUT,
    Reason.CLOCK: Verdict.CLOCK,
    Reason.EVICTED: Verdict.EVICTED,
    Reason.SPENT: Verdict.SPENT,
    Reason.COOLDOWN: Verdict.COOLDOWN,
    Reason.REPLAYED: Verdict.REPLAYED,
    Reason.OUTSIDE: Verdict.OUTSIDE,
    Reason.WARY: Verdict.WARY,
}
_WHYS = {
    Why.RESEND: Verdict.RESEND,
    Why.DONE: Verdict.DONE,
    Why.FLAGS: Verdict.FLAGS,
    Why.TARGET: Verdict.TARGET,
    Why.GUARDED: Verdict.GUARDED,
}


_SPA_REASONS = {SpaReason.REPLAYED: Verdict.REPLAYED, SpaReason.AGE: Verdict.AGE}


class Refused(NamedTuple):
    """The right knocks came, and the door was not opened all the same."""

    packet: Packet
    door: str
    reason: str


class Mailed(NamedTuple):
    """A single packet (SPA) came. reason: why it opens nothing; None: it was accepted, and what it opens comes next.

    door, client: whose keys vouch for it; empty where nobody's do: then anybody can have sent it.
    """

    packet: Packet
    door: str
    client: str
    reason: SpaReason | None
    words: str


class Stale(NamedTuple):
    """The packet was read `age` seconds after it came, which is longer than any door waits; or as much before it."""

    packet: Packet
    age: float


Told = Event | Refused | Mailed | Stale


class Finding(NamedTuple):
    """What became of one packet at one door.

    time: seconds since the epoch. service: where the packet went, empty where none came. stage: what the attempt has
    reached, of so many knocks; 0 where there is none, or where it is not to be told. words: for a person.
    """

    time: float
    src: bytes
    service: str
    door: str
    stage: int
    of: int
    verdict: Verdict
    words: str


class Trail:
    """Turns packets and events into findings. Remembers no more than whose attempt has timed out.

    derived: how many knocks a sequence has at each door whose clients derive theirs.
    """

    def __init__(self, doors: Iterable[Door], derived: Mapping[str, int] | None = None) -> None:
        self._doors = {door.name: door for door in doors}
        self._derived = derived or {}
        self._guarded = {service for door in self._doors.values() if door.guard for service in door.opens}
        self._late: dict[bytes, Failed] = {}

    def follow(self, packet: Packet, told: Sequence[Told]) -> list[Finding]:
        """What became of this packet."""
        told = list(self._of_use(told))
        found = list(dict.fromkeys(finding for event in told for finding in self._tell(packet.time, packet, event)))
        late = self._late.pop(packet.src, None)
        if late is not None and late.attempt is not None and not any(isinstance(event, Failed) for event in told):
            found = [*self._too_late(packet, late, late.attempt), *found]
        return found or [self._finding(packet.time, packet, *self._stranger(packet))]

    def _of_use(self, told: Sequence[Told]) -> Iterator[Told]:
        """Without what an attempt that is complete says of others' knocks: at a door that derives, each begins some."""
        further = {door for event in told if isinstance(event, Advanced) for door in event.doors}
        for event in told:
            if isinstance(event, Ignored) and event.why is Why.DONE:
                doors = tuple(door for door in event.doors if door not in further or not self._derives(door))
                if doors:
                    yield event._replace(doors=doors)
            else:
                yield event

    def _derives(self, name: str) -> bool:
        return name in self._doors and self._doors[name].proof in ("totp", "code")

    def ended(self, events: Iterable[Told], now: float) -> list[Finding]:
        """What became of attempts that have ended without a packet, by the time `now`."""
        found: list[Finding] = []
        for event in events:
            if not isinstance(event, Failed):
                continue
            time = min(now, event.attempt.expires) if event.attempt else now
            found += self._tell(time, None, event)
            if event.reason is Reason.TIMEOUT:
                self._late.pop(event.src, None)
                self._late[event.src] = event
        for src in list(islice(self._late, max(0, len(self._late) - MAX_LATE))):
            del self._late[src]
        return found

    def _tell(self, time: float, packet: Packet | None, event: Told) -> Iterator[Finding]:
        match event:
            case Advanced(_, doors, stage):
                for door in _shown(doors):
                    words = f"stage {stage}{self._of(door)}"
                    yield self._finding(time, packet, Verdict.ADVANCED, words, door, stage)
            case Failed(src, doors, stage, reason, cause, attempt):  # another's packet may have been in its way
                for door in _shown(doors):
                    words = self._failure(door, reason, cause, attempt)
                    yield self._finding(time, cause, _REASONS[reason], words, door, stage, src)
            case Evicted():
                for failure in event.failures():
                    yield from self._tell(time, None, failure)
            case Ignored(_, doors, stage, why):
                for door in _shown(doors):
                    words = f"means nothing: {why}{self._aim(door) if why is Why.TARGET else ''}"
                    yield self._finding(time, packet, _WHYS[why], words, door, stage)
            case Spent(_, code):
                yield self._finding(time, packet, Verdict.USED, used_words(code), code.door)
            case Granted(_, grant):
                whom = f"for {address_text(grant.src)} " if packet and packet.src != grant.src else ""
                timeout = f"{grant.expires - time:g} s" if grant.door in self._doors else "its timeout"
                yield self._finding(time, packet, Verdict.OPENED, f"opened {whom}for {timeout}", grant.door)
            case Revoked(_, door, by):
                yield self._finding(time, packet, Verdict.CLOSED, f"complete, closes {door}", by)
            case Refused(_, door, reason_text):
                yield self._finding(time, packet, Verdict.REFUSED, f"not opened: {reason_text}", door)
            case Mailed(_, door, client, spa_reason, words):
                verdict = Verdict.ACCEPTED if spa_reason is None else _SPA_REASONS.get(spa_reason, Verdict.REJECTED)
                yield self._finding(time, packet, verdict, mailed_words(client, spa_reason, words), door)
            case Stale(_, age):
                words = f"means nothing: its record came {_span(age)} late, and no door waits that long"
                if age < 0:
                    words = f"means nothing: its record is {_span(-age)} ahead of the clock"
                yield self._finding(time, packet, Verdict.STALE, words)

    def _failure(self, door: str, reason: Reason, packet: Packet | None, attempt: Attempt | None) -> str:
        """Why an attempt ended, by how much, and what was expected of it."""
        if attempt is None:
            return str(reason)
        at = f"at stage {attempt.step.stage}{self._of(door)}"
        if reason is Reason.WRONG:
            return f"wrong port {at}: {self._expected(door, attempt)} was expected"
        if reason is Reason.TIMEOUT:
            limit = f"{attempt.step.terms.seq_timeout:g} s"
            if packet is None:
                return f"given up {at}: {self._expected(door, attempt)} did not come within {limit} of the first knock"
            return f"too late by {_span(packet.time - attempt.expires)} {at}: {limit} from the first knock to the last"
        if reason is Reason.CLOCK and packet is not None:
            return f"given up {at}: the clock stepped back by {_span(attempt.last - packet.time)}"
        if reason is Reason.EVICTED:
            return f"given up {at}: too many others were knocking"
        return f"{reason} ({at})"

    def _too_late(self, packet: Packet, late: Failed, attempt: Attempt) -> Iterator[Finding]:
        """The next knock of an attempt that was given up before it came."""
        if Service(packet.proto, packet.dport) not in attempt.step.then:
            return
        for door in _shown(late.doors):
            limit = f"{attempt.step.terms.seq_timeout:g} s from the first knock to the last"
            words = f"too late by {_span(packet.time - attempt.expires)} for stage {late.stage + 1}: {limit}"
            yield self._finding(packet.time, packet, Verdict.LATE, words, door, late.stage)

    def _stranger(self, packet: Packet) -> tuple[Verdict, str]:
        """A packet that no attempt was there for, and that begins none."""
        service = Service(packet.proto, packet.dport)
        if service in self._guarded:
            return Verdict.GUARDED, f"means nothing: {service} is guarded, and closed to this source"
        return Verdict.UNKNOWN, f"means nothing: no door begins with {service}"

    def _aim(self, door: str) -> str:
        target = self._doors[door].target if door in self._doors else frozenset()
        return f" ({', '.join(map(address_text, sorted(target)))})" if target else ""

    def _expected(self, door: str, attempt: Attempt) -> str:
        """The next knock; of one-time sequences and of doors that have parted no more than that there is one."""
        known = self._doors.get(door)
        at = attempt.step.stage
        if known is None or known.sequence[:at] != attempt.step.path or at >= len(known.sequence):
            return "the next knock of its sequence"
        return str(known.sequence[at])

    def _of(self, door: str) -> str:
        many = self._length(door)
        return f" of {many}" if many else ""

    def _length(self, door: str) -> int:
        return self._derived.get(door) or (len(self._doors[door].sequence) if door in self._doors else 0)

    def _finding(
        self,
        time: float,
        packet: Packet | None,
        verdict: Verdict,
        words: str,
        door: str = "",
        stage: int = 0,
        src: bytes = b"",
    ) -> Finding:
        service = str(Service(packet.proto, packet.dport)) if packet else ""
        return Finding(time, packet.src if packet else src, service, door, stage, self._length(door), verdict, words)


def advice(doors: Iterable[Door], findings: Iterable[Finding]) -> list[str]:
    """What would have opened the doors that these findings of one source are about, a line each; all, if about none."""
    best: dict[str, int] = {}
    opened: set[str] = set()
    for finding in findings:
        if finding.door:
            best[finding.door] = max(best.get(finding.door, 0), finding.stage)
        if finding.verdict is Verdict.OPENED:
            opened.add(finding.door)
    known = [door for door in doors if door.name not in opened]
    tried = [door for door in known if door.name in best]
    lines = [f"{name} was opened" for name in sorted(opened)]
    for door in tried or ([] if opened else known[:DOORS_SHOWN]):
        of = f" of {len(door.sequence)}" if door.sequence else ""
        reached = f"; it got to stage {best[door.name]}{of}" if best.get(door.name) else ""
        lines.append(f"{door.name} opens with {_opens_with(door)}{reached}")
    return lines


def _opens_with(door: Door) -> str:
    """What opens a door, but for its name. Nobody's secret is known here, so no sequence of a client's either."""
    if door.proof == "spa":
        return "a single packet (SPA) of one of its clients, made new for each time"
    if door.proof == "code":
        return f"the code that a client's authenticator shows now, spelled in knocks, within {door.seq_timeout:g} s"
    return f"{_knocks(door)} within {door.seq_timeout:g} s"


def _knocks(door: Door) -> str:
    if door.proof:
        return "the sequence of a client's current step (each counts once)"
    if not door.sequence:
        return "the next sequence of its one-time file (used ones count no more)"
    aim = f", sent to {' or '.join(map(address_text, sorted(door.target)))}," if door.target else ""
    return ", ".join(map(str, door.sequence)) + aim


def used_words(code: Code | Derived) -> str:
    """Which sequence was used up, in the log as here."""
    if isinstance(code, Derived):
        return f"step {code.number} of client {code.client} used"
    return f"one-time sequence of {code.file} used"


def mailed_words(client: str, reason: SpaReason | None, words: str) -> str:
    """What is said of a single packet, in the log as here."""
    if reason is None:
        return f"SPA packet of client {client} accepted: {words}"
    if reason is SpaReason.LEFT_OUT:
        return "SPA packet left out: too many came at a time for all to be looked at"
    if client:
        return f"SPA packet of client {client} refused: {reason}{words and f' ({words})'}"
    return f"SPA packet of nobody refused: {words or reason}"


def _shown(doors: tuple[str, ...]) -> Iterator[str]:
    yield from doors[:DOORS_SHOWN]
    if len(doors) > DOORS_SHOWN:
        yield f"({len(doors) - DOORS_SHOWN} more doors)"


def _span(seconds: float) -> str:
    """A time for a person: three digits are enough, and milliseconds too."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


class Kept(NamedTuple):
    """A packet as it was received and what was said of it; None and a source: attempts that ended without one."""

    time: float
    src: bytes
    packet: Packet | None
    told: Sequence[Told]


class _Ended(NamedTuple):
    """Attempts that ended without a packet of theirs."""

    time: float
    events: Sequence[Told]


_Entry = Advanced | tuple[Packet, Sequence[Told]] | _Ended


class Memory:
    """The last packets of everybody, cheap to keep: one append each; findings are made of them when somebody asks.

    counts: whatever passes here is counted there, the events of each packet once.
    """

    def __init__(self, most: int = MAX_KEPT) -> None:
        self.counts = Counts()
        self._begun = self.counts.begun
        # What one packet can cause is apart from what took more.
        self._beginnings: deque[_Entry] = deque(maxlen=most)
        self._further: deque[_Entry] = deque(maxlen=most)

    def keep(self, packet: Packet, told: Sequence[Told]) -> None:
        """Remember the packet for a while, and whom it made give way."""
        # As in a flood: nothing else is kept. (A field by its number takes half as long as by its name.)
        if len(told) == 1 and type(first := told[0]) is Advanced and first[2] == 1:
            self._beginnings.append(first)
            try:
                self._begun[id(first[1])].times += 1
            except KeyError:
                self.counts.begin(first.doors)
            return
        self.counts.see(told)
        further = not _is_first(packet, told) and any(map(_is_further, told))
        (self._further if further else self._beginnings).append((packet, told))

    def keep_ended(self, events: Sequence[Event], now: float) -> None:
        """Remember attempts that have ended without a packet."""
        self.counts.see(events)
        few: list[Event] = []
        many: list[Event] = []
        for event in events:
            (few if _is_further(event) else many).append(event)
        for ring, ended in ((self._further, few), (self._beginnings, many)):
            if ended:
                ring.append(_Ended(now, ended))

    def of(self, src: bytes) -> list[Kept]:
        """What is remembered of a source, in the order of coming."""
        every = (kept for ring in (self._beginnings, self._further) for entry in ring for kept in _kept(entry, src))
        return sorted(every, key=lambda kept: kept.time)


def _kept(entry: _Entry, src: bytes) -> Iterator[Kept]:
    """What an entry has of a source."""
    if isinstance(entry, Advanced):
        entry = (entry.packet, (entry,))
    if not isinstance(entry, _Ended):
        packet, told = entry
        if packet.src == src:
            yield Kept(packet.time, src, packet, told)
            return
        if len(told) < 2:  # it made nobody give way
            return
        entry = _Ended(packet.time, told)
    ended = [failed for failed in _failures(entry.events, src) if failed.packet is None]
    if ended:
        yield Kept(entry.time, src, None, ended)


def _failures(events: Iterable[Told], src: bytes) -> Iterator[Failed]:
    """Those of a source."""
    for event in events:
        if isinstance(event, Failed) and event.src == src:
            yield event
        elif isinstance(event, Evicted) and src in event.sources:
            yield from _failures(event.failures(), src)


def _is_first(packet: Packet, told: Sequence[Told]) -> bool:
    """Whether it was a first knock of a source that had made one before, and nothing more."""
    if len(told) != 2:
        return False
    ended, begun = told
    return (
        type(begun) is Advanced
        and begun.stage == 1
        and type(ended) is Failed
        and ended.stage == 1
        and ended.packet is packet
    )


def _is_further(told: Told) -> bool:
    """Whether it took more than one packet."""
    if isinstance(told, (Advanced, Failed, Evicted, Ignored)):
        return told.stage > 1
    if isinstance(told, Mailed):  # what was overheard can be sent again by anybody
        return bool(told.client) and told.reason not in (SpaReason.REPLAYED, SpaReason.STORE)
    return not isinstance(told, Stale)
