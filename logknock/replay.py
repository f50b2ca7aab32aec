"""What a configuration would have done with a log: the daemon's own matcher, run on the log's clock.

Rule 1: nothing is opened, nothing is written, no daemon is asked. Rule 2: what a packet does is decided in `knock` and
put into words in `trail`; here they only meet. Rule 3: a log of any size fits: what is remembered of it has a fixed
bound each. Rule 4: a log that is damaged ends there, which is said, and what was read of it counts.

Of one-time sequences a log does not tell which were used before it: their files begin at their beginning, and what is
knocked is used up for the rest of the replay. So do the steps of clients that derive their sequences, which are those
of the log's own time. Single packets (SPA) are nothing that a log could tell of: it has no payload.
"""

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from heapq import merge
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Self

from .config_values import Network, parse_duration
from .copies import Copies
from .errors import LogknockError, printable
from .firewall.sets import never_granted
from .knock import Code, Derived, Door, Granted, Matcher, Spent
from .knock import Sequence as Knocks
from .logs import Log, open_all
from .onetime import Place
from .onetime_files import next_turn
from .packet import Packet, address_text
from .records import Grammar, Wanted
from .skipped import Counts
from .steps import Steps
from .timeline import DRAWN, FAILURES, MAX_ROWS, TimeLine, draw
from .totp import TotpDoor
from .trail import Finding, Refused, Told, Trail, Verdict, advice

# Sources that are told apart when they are counted; more are "65,536 or more". 8 MB or so.
MAX_COUNTED = 65_536

# Findings that are kept for the summary and the picture, 400 bytes each: of one source, and of all. When there are
# more, half of them are forgotten, those of the sources that got least far: what is left fills a picture.
MAX_OF_SOURCE = 1_000
MAX_FINDINGS = 2 * MAX_ROWS * MAX_OF_SOURCE

# Of what means nothing (a resend, say) so many of a source: they are told, and hardly of use afterwards.
_FEW = 8

# Sources that came close, for which the summary says what would have opened.
MAX_CLOSE = 5

# Logs that are named where all of them are meant.
_NAMES_SHOWN = 3

# Records between two calls of `progress`; a few milliseconds.
_TELL = 2_048

# Attempts that have timed out are looked for once a second of the log.
_TICK = 1.0

# Seconds by which the records of one log may be out of order: after --until it is read for so much longer.
_DISORDER = 3_600.0

_DONE = frozenset({Verdict.OPENED, Verdict.CLOSED})


class Choice(NamedTuple):
    """What is asked: of which sources (None: all), from when to when, of which door (empty: all).

    noise: show also packets that no door knows; they are counted in any case.
    """

    network: Network | None = None
    since: float = -math.inf
    until: float = math.inf
    door: str = ""
    noise: bool = False

    def wants(self, finding: Finding) -> bool:
        """Whether the finding is about what is asked."""
        if self.door and finding.door != self.door:
            return False
        return self.network is None or ip_address(finding.src) in self.network


class Close(NamedTuple):
    """A source that opened nothing: how far it got, why no further, and what would have opened, a line each."""

    src: bytes
    stage: int
    of: int
    why: str
    advice: tuple[str, ...]


class Summary(NamedTuple):
    """All in all. Times in seconds since the epoch, None without a packet.

    packets: those of `records` that were in the time asked for, copies left out. sources: how many of them, MAX_COUNTED
    where there are that many or more. findings: how many are about what is asked. noise: packets that no door knows.
    opened, closed: how often, by door. failed: by verdict; other: the rest of the verdicts. prefixes: the most frequent
    of others' records. problems: what could not be read. onetime: whether doors have one-time sequences, or derived
    ones. spa: doors that single packets open, of which a log tells nothing.
    """

    logs: tuple[str, ...]
    first: float | None
    last: float | None
    records: int
    packets: int
    copies: int
    outside: int
    sources: int
    findings: int
    noise: int
    opened: dict[str, int]
    closed: dict[str, int]
    failed: dict[Verdict, int]
    other: dict[Verdict, int]
    skipped: dict[str, int]
    prefixes: dict[str, int]
    close: tuple[Close, ...]
    problems: tuple[str, ...]
    onetime: bool
    spa: tuple[str, ...]


# ---- what is asked, in words


def parse_network(text: str) -> Network:
    """An address in any form (IPv4 in IPv6 form too), or a network of them; raises ValueError with what is wrong."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone: a packet's source has none")
    try:
        if "/" not in text:
            address = ip_address(text)
            mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
            return ip_network(mapped or address)
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'{text!r} is no address: write "192.0.2.7", "2001:db8::7" or "192.0.2.0/24"') from None
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return ip_network(f"{mapped}/{network.prefixlen - 96}") if mapped and network.prefixlen >= 96 else network


def parse_when(text: str, now: float) -> float:
    """A time in seconds since the epoch; local where it names no zone. Raises ValueError with what is wrong.

    `2026-11-21 10:00:05.5`, `2026-11-21`, with a zone `2026-11-21T10:00:05+01:00`, `10:00` (today), `today`,
    `yesterday`, `now`, `2h ago` or `-2h`, with durations as the configuration has them.
    """
    try:
        seconds = _seconds(text.strip(), now)
    except (ValueError, OverflowError, OSError):
        seconds = -1.0
    if seconds < 0.0:
        hint = 'write "2026-11-21 10:00", "10:00", "yesterday", "2h ago" or "-90s"'
        raise ValueError(f"{text!r} is no time: {hint}")
    return seconds


def _seconds(written: str, now: float) -> float:
    """Raises ValueError, OverflowError or OSError."""
    today = datetime.fromtimestamp(now).replace(hour=0, minute=0, second=0, microsecond=0)
    match written:
        case "now":
            return now
        case "today":
            return today.timestamp()
        case "yesterday":
            return (today - timedelta(days=1)).timestamp()
    if written.endswith(" ago"):
        return now - parse_duration(written.removesuffix(" ago").rstrip())
    if written.startswith("-"):
        return now - parse_duration(written[1:])
    if re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?", written, re.ASCII):
        written = f"{today:%Y-%m-%d} {written}"
    return datetime.fromisoformat(written).timestamp()


# ---- sources that knocked


class _Source:
    """What is kept of one source."""

    __slots__ = ("best", "few", "findings", "left_out", "of")

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.few = 0
        self.left_out = 0
        self.best = 0
        self.of = 0


_OPENED = 1_000  # further than any stage


class _Knockers:
    """The sources that got furthest, and what became of their packets."""

    def __init__(self) -> None:
        self._sources: dict[bytes, _Source] = {}
        self._seen: set[bytes] = set()
        self._kept = 0

    @property
    def count(self) -> int:
        """How many sources there are to draw, MAX_COUNTED at most."""
        return len(self._seen)

    def add(self, finding: Finding) -> None:
        """Remember a finding, if there is room for it in what is kept of its source."""
        if finding.verdict in DRAWN and len(self._seen) < MAX_COUNTED:
            self._seen.add(finding.src)
        source = self._sources.get(finding.src)
        if source is None:
            source = self._sources[finding.src] = _Source()
        rank = _OPENED if finding.verdict in _DONE else finding.stage
        if rank > source.best:
            source.best, source.of = rank, finding.of
        if finding.verdict not in DRAWN:
            source.few += 1
            if source.few > _FEW:
                return
        if len(source.findings) >= MAX_OF_SOURCE:
            source.left_out += 1
            return
        source.findings.append(finding)
        self._kept += 1
        if self._kept > MAX_FINDINGS:
            self._forget()

    def furthest(self) -> list[tuple[bytes, _Source]]:
        """Sources, those that got furthest first; of equals the one that knocked first."""
        return sorted(self._sources.items(), key=lambda item: -item[1].best)

    def _forget(self) -> None:
        """Keep those that got furthest, with half of what there may be."""
        kept: dict[bytes, _Source] = {}
        self._kept = 0
        for src, source in self.furthest():
            if self._kept + len(source.findings) > MAX_FINDINGS // 2:
                break
            kept[src] = source
            self._kept += len(source.findings)
        self._sources = kept


# ---- one-time sequences


class _Codes:
    """Which sequence out of each file counts, each file from its beginning; nothing of it outlives the replay."""

    def __init__(self, doors: Iterable[Door], matcher: Matcher) -> None:
        self._matcher = matcher
        self._used: dict[str, set[Knocks]] = {}
        self._after: dict[tuple[str, str], Place] = {}
        self.problems: dict[str, str] = {}
        for door in doors:
            for file in door.onetime:
                self._turn(door.name, file, Place())

    def spend(self, code: Code) -> None:
        """The sequence is used up; the next one of its file counts."""
        self._used.setdefault(code.door, set()).add(code.sequence)
        self._turn(code.door, code.file, self._after[code.door, code.file])

    def _turn(self, door: str, file: str, place: Place) -> None:
        used = self._used.get(door, set())
        try:
            turn = deque(next_turn(Path(file), place, used.__contains__), maxlen=1)[0]
        except LogknockError as error:
            self.problems[file] = f"{door}: {error.words()}"
            return
        self._after[door, file] = turn.after
        self._matcher.set_code(door, file, turn.sequence)


class _Uses:
    """Which steps were used since the log's beginning."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}

    def use_step(self, door: str, client: str, step: int, src: bytes, wall: float) -> bool:
        new = step > self._last.get((door, client), -1)
        if new:
            self._last[door, client] = step
        return new

    def steps(self) -> dict[tuple[str, str], int]:
        return dict(self._last)


# ---- the replay

Progress = Callable[["Replay"], None]


class Replay:
    """Reads logs and runs the doors' matcher on them: `findings` is all of it, `summary` what there is to say so far.

    Raises SourceError for a log that cannot be opened. To be used in a `with` statement.
    """

    def __init__(
        self,
        doors: Sequence[Door],
        wanted: Wanted,
        logs: Sequence[str],
        choice: Choice = Choice(),  # noqa: B008  # frozen
        journal: Path | None = None,
        progress: Progress = lambda replay: None,
        totp: Sequence[TotpDoor] = (),
    ) -> None:
        self.records = 0
        self._doors = doors
        self._wanted = wanted
        self._choice = choice
        self._progress = progress
        self._matcher = Matcher(doors)
        self._trail = Trail(doors, {door.door: door.knocks for door in totp})
        self._codes = _Codes(doors, self._matcher)
        self._steps = Steps(_Uses(), self._matcher, lambda text, bad: None)
        self._steps.use(totp, 0.0)
        self._counts = Counts(wanted)
        self._knockers = _Knockers()
        self._verdicts: Counter[Verdict] = Counter()
        self._opened: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._sources: set[bytes] = set()
        self._packets = self._copied = self._outside = 0
        self._first, self._last = math.inf, -math.inf
        self._next_tick = -math.inf
        self._stack = ExitStack()
        self._logs = open_all(logs, journal, choice.since, self._stack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def size(self) -> int:
        """Bytes of all logs; 0 where that is not known."""
        sizes = [log.size for log in self._logs]
        return sum(sizes) if all(sizes) else 0

    @property
    def done(self) -> int:
        """How many of them were read."""
        return sum(log.done() for log in self._logs)

    def findings(self) -> Iterator[Finding]:
        """Read all; what became of each packet, as far as it is to be shown."""
        for packet in self._merged():
            self._first, self._last = min(self._first, packet.time), max(self._last, packet.time)
            self._packets += 1
            if len(self._sources) < MAX_COUNTED:
                self._sources.add(packet.src)
            yield from self._count(self._tick(packet.time))
            yield from self._count(self._trail.follow(packet, self._told(packet)))
        while self._matcher.knockers:  # nothing comes any more, so they have timed out
            yield from self._count(self._trail.ended(self._matcher.expire(math.inf), math.inf))

    def summary(self) -> Summary:
        """What there is to say of all that was read so far."""
        counts, verdicts = self._counts, self._verdicts
        first, last = self._span
        return Summary(
            logs=tuple(log.name for log in self._logs),
            first=first,
            last=last,
            records=self.records,
            packets=self._packets,
            copies=self._copied,
            outside=self._outside,
            sources=len(self._sources),
            findings=sum(verdicts.values()),
            noise=verdicts[Verdict.UNKNOWN],
            opened=dict(self._opened),
            closed=dict(self._closed),
            failed={verdict: verdicts[verdict] for verdict in FAILURES if verdicts[verdict]},
            other={v: verdicts[v] for v in Verdict if v not in DRAWN and v is not Verdict.UNKNOWN and verdicts[v]},
            skipped=dict(counts.skipped.most_common()),
            prefixes=counts.most,
            close=tuple(self._close()),
            problems=(*counts.problems, *self._codes.problems.values()),
            onetime=any(door.onetime or door.proof in ("totp", "code") for door in self._doors),
            spa=tuple(dict.fromkeys(door.name.partition(":")[0] for door in self._doors if door.proof == "spa")),
        )

    def mismatch(self) -> LogknockError | None:
        """What is wrong with the prefix, if nothing that was read has it; asked when all is read."""
        if self._packets or self._outside or self._counts.matched:
            return None
        prefixes = " or ".join(f"{prefix!r}" for prefix in self._wanted.prefixes if prefix)
        asked = f"the prefix {prefixes}" if prefixes else "no prefix, as the configuration has it"
        when = " since then" if self._choice.since > -math.inf else ""
        return LogknockError(f"no record of {self._names}{when} has {asked}", self._counts.hint())

    def time_line(self) -> TimeLine:
        """All that was kept, to be drawn."""
        doors = {door.name: door for door in self._doors}
        found = self._knockers.furthest()
        shown = [item for item in found if any(finding.verdict in DRAWN for finding in item[1].findings)][:MAX_ROWS]
        cut = sum(source.left_out for _, source in shown)
        notes = [f"{cut:,} more packets of these sources are not shown."] if cut else []
        left_out = self._knockers.count - len(shown)
        if self._knockers.count >= MAX_COUNTED:
            left_out = 0
            notes.append(f"{MAX_COUNTED:,} sources or more knocked: those that got furthest are shown.")
        return TimeLine(
            f"What logknock makes of {self._names}",
            [draw(address_text(src), source.findings, doors) for src, source in shown],
            left_out,
            notes,
            *self._span,
        )

    @property
    def _span(self) -> tuple[float | None, float | None]:
        return (self._first, self._last) if self._packets else (None, None)

    @property
    def _names(self) -> str:
        names, more = [printable(log.name) for log in self._logs[:_NAMES_SHOWN]], len(self._logs) - _NAMES_SHOWN
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")

    # -- on the way

    def _merged(self) -> Iterator[Packet]:
        """The packets of all logs in the order of time, each once; a log's own order stays as it is."""
        timed = [self._timed(number, log) for number, log in enumerate(self._logs)]
        if len(timed) == 1:
            yield from (packet for _, _, packet in timed[0])
            return
        copies = Copies(len(timed))
        for _, number, packet in merge(*timed, key=itemgetter(0)):  # of one log what is late comes at once
            if copies.is_copy(number, packet):
                self._copied += 1
            else:
                yield packet

    def _timed(self, number: int, log: Log) -> Iterator[tuple[float, int, Packet]]:
        """A log's packets, each with its time and the number of the log."""
        since, until = self._choice.since, self._choice.until
        for packet in log.packets(Grammar(self._wanted), self._counts):
            self.records += 1
            if not self.records % _TELL:
                self._progress(self)
            if packet is None:
                continue
            if since <= packet.time <= until:
                yield packet.time, number, packet
                continue
            self._outside += 1
            if packet.time > until + _DISORDER:
                return

    def _tick(self, now: float) -> list[Finding]:
        """Attempts that have timed out, once a second of the log's clock, whichever way that goes."""
        if self._next_tick - 2 * _TICK <= now < self._next_tick:
            return []
        self._next_tick = now + _TICK
        self._steps.tick(now)
        while self._steps.work(now):
            pass
        return self._trail.ended(self._matcher.expire(now), now)

    def _told(self, packet: Packet) -> list[Told]:
        """What the daemon would make of a packet; it opens nothing for addresses that are nobody's (T37)."""
        told: list[Told] = []
        for event in self._matcher.receive(packet):
            if isinstance(event, Spent):
                code = event.code
                if isinstance(code, Derived):
                    self._steps.spend(code, packet.src, packet.time)
                else:
                    self._codes.spend(code)
            elif isinstance(event, Granted) and (reason := never_granted(packet.src)):
                self._matcher.spare(event.grant.door, packet.src)
                told.append(Refused(packet, event.grant.door, reason))
                continue
            told.append(event)
        return told

    def _count(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Count findings that are about what is asked, remember those that matter, and give back those to show."""
        for finding in findings:
            if not self._choice.wants(finding):
                continue
            verdict = finding.verdict
            self._verdicts[verdict] += 1
            if verdict is not Verdict.UNKNOWN or self._choice.network:
                self._knockers.add(finding)
            elif not self._choice.noise:
                continue
            if verdict is Verdict.OPENED:
                self._opened[finding.door] += 1
            elif verdict is Verdict.CLOSED:
                self._closed[finding.door] += 1
            yield finding

    def _close(self) -> Iterator[Close]:
        """Sources that opened nothing, those that got furthest first."""
        doors = [door for door in self._doors if self._choice.door in ("", door.name)]
        near = [item for item in self._knockers.furthest() if item[1].best < _OPENED]
        for src, source in near[:MAX_CLOSE]:
            if source.best or self._choice.network:
                failed = [finding for finding in source.findings if finding.verdict in FAILURES]
                why = max(reversed(failed), key=lambda finding: finding.stage).words if failed else ""
                yield Close(src, source.best, source.of, why, tuple(advice(doors, source.findings)))
