"""Who knocked when, and what became of it: findings in, the rows of a picture out.

Rule 1: pure; no file and no clock; the zone of the times comes in. Rule 2: what is drawn is what findings say; here is
only what they come to when they stand side by side. Rule 3: nothing is known of pixels.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple

from .knock import Door
from .trail import Finding, Verdict

# Sources in one picture: a screen or a page holds these so that their names can be read.
MAX_ROWS = 30

FAILURES = {
    Verdict.WRONG: "wrong port",
    Verdict.TIMEOUT: "timeout",
    Verdict.LATE: "too late",
    Verdict.CLOCK: "clock stepped back",
    Verdict.EVICTED: "too many others knocking",
    Verdict.SPENT: "one-time sequence used up",
    Verdict.REPLAYED: "step used up",
    Verdict.OUTSIDE: "another time's sequence",
    Verdict.WARY: "one more step asked for",
    Verdict.COOLDOWN: "too soon after the last time",
    Verdict.REFUSED: "not opened",
}
DRAWN = FAILURES.keys() | {Verdict.ADVANCED, Verdict.OPENED, Verdict.CLOSED}


class Mark(NamedTuple):
    """A knock, or what ended an attempt (stage 0). label: for beside it, where there is room; title: on pointing."""

    time: float
    stage: int
    title: str
    label: str = ""


class Span(NamedTuple):
    """Something that lasts; times in seconds since the epoch. label: for in it; note: for behind its end."""

    start: float
    end: float
    label: str = ""
    title: str = ""
    note: str = ""


class Row(NamedTuple):
    """A source: its name, what came of it in a few words, and all that is to be drawn of it."""

    name: str
    outcome: str
    marks: Sequence[Mark]
    attempts: Sequence[Span]
    openings: Sequence[Span]


class TimeLine(NamedTuple):
    """A whole picture. left_out: sources that are not in it. notes: what else is to be said, a line each.

    first, last: when the log's packets came, in seconds since the epoch, drawn or not; None: there were none.
    """

    title: str
    rows: Sequence[Row]
    left_out: int = 0
    notes: Sequence[str] = ()
    first: float | None = None
    last: float | None = None


def times(count: int) -> str:
    """How often, in words."""
    return "once" if count == 1 else f"{count:,} times"


def draw(name: str, findings: Iterable[Finding], doors: Mapping[str, Door], zone: tzinfo | None = None) -> Row:
    """The row of a source, from what became of its packets; times in the zone, None for the local one."""
    drawn = _Drawn(doors, zone)
    for finding in findings:
        drawn.add(finding)
    drawn.finish()
    bars = [span for spans in drawn.bars.values() for span in spans]
    return Row(name, drawn.outcome, list(drawn.marks.values()), drawn.attempts, bars)


class _Drawn:
    """What becomes the row of a source, finding by finding."""

    def __init__(self, doors: Mapping[str, Door], zone: tzinfo | None) -> None:
        self._doors = doors
        self._zone = zone
        self.marks: dict[tuple[float, str, bool], Mark] = {}  # by the packet, and whether something failed by it
        self.attempts: list[Span] = []
        self.bars: dict[str, list[Span]] = {}
        self._under_way: dict[str, Span] = {}
        self._by_chance: set[str] = set()
        self.stage = self.of = 0
        self.closed = 0
        self.opened: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def add(self, finding: Finding) -> None:
        """Draw a finding."""
        if finding.stage > self.stage:
            self.stage, self.of = finding.stage, finding.of
        match finding.verdict:
            case Verdict.ADVANCED:
                self._advance(finding)
            case Verdict.OPENED:
                self._open(finding)
            case Verdict.CLOSED:
                self._shut(finding)
            case verdict if verdict in FAILURES:
                self._fail(finding, FAILURES[verdict])

    def finish(self) -> None:
        """The log has ended; attempts that are under way end where they got."""
        self.attempts += self._under_way.values()

    def _advance(self, finding: Finding) -> None:
        """A knock. One that takes an attempt further may begin another door's sequence by chance: see _fail."""
        name = finding.door
        before = self._mark(finding, finding.stage, "")
        if finding.stage == 1 and before > 1:
            self._by_chance.add(name)
        elif name in self._by_chance:
            self._by_chance.discard(name)
        span = self._under_way.get(name)
        if span is None or finding.stage == 1:
            if span is not None:
                self.attempts.append(span)
            self._under_way[name] = Span(finding.time, finding.time)
        else:
            self._under_way[name] = span._replace(end=max(span.end, finding.time))

    def _fail(self, finding: Finding, why: str) -> None:
        """An attempt has ended; nobody meant the one that has but a knock that was another attempt's, too."""
        if finding.door in self._by_chance and finding.stage == 1:
            self._by_chance.discard(finding.door)
            self._under_way.pop(finding.door, None)
            return
        self.failed[why] += 1
        self._mark(finding, 0, f"{why}: {finding.service}" if finding.verdict is Verdict.WRONG else why)
        self._end(finding)

    def _mark(self, finding: Finding, stage: int, label: str) -> int:
        """Mark the packet, once for all doors; the stage that its mark had before."""
        key = (finding.time, finding.service, not stage)
        title = f"{self._time(finding.time)} {finding.service} {finding.door}: {finding.words}".replace("  ", " ")
        before = self.marks.get(key)
        if before is None:
            self.marks[key] = Mark(finding.time, stage, title, label)
            return 0
        self.marks[key] = before._replace(stage=max(stage, before.stage), title=f"{before.title}; {title}")
        return before.stage

    def _end(self, finding: Finding) -> None:
        span = self._under_way.pop(finding.door, None)
        if span is not None:
            self.attempts.append(span._replace(end=max(span.end, finding.time)))

    def _open(self, finding: Finding) -> None:
        name = finding.door
        self.opened[name] += 1
        self._end(finding)
        end = finding.time + self._doors[name].timeout
        title = f"{name} is open from {self._time(finding.time)} to {self._time(end)}"
        bars = self.bars.setdefault(name, [])
        if bars and finding.time <= bars[-1].end:  # open already: it stays so for longer
            bars[-1] = bars[-1]._replace(end=max(end, bars[-1].end), title=f"{bars[-1].title}; {title}", note="")
        else:
            bars.append(Span(finding.time, end, name, title))

    def _shut(self, finding: Finding) -> None:
        self._end(finding)
        self.closed += 1
        for name in self._doors[finding.door].closes:
            bars = self.bars.get(name)
            if bars and bars[-1].end > finding.time:
                told = f"{bars[-1].title}; closed by {finding.door} at {self._time(finding.time)}"
                end = max(bars[-1].start, finding.time)
                bars[-1] = bars[-1]._replace(end=end, title=told, note=f"closed by {finding.door}")

    def _time(self, seconds: float) -> str:
        return f"{datetime.fromtimestamp(seconds, self._zone):%H:%M:%S.%f}"[:-3]

    @property
    def outcome(self) -> str:
        """What came of the source, in a few words."""
        failures = sum(self.failed.values())
        if self.opened:
            doors = ", ".join(name if count == 1 else f"{name} {times(count)}" for name, count in self.opened.items())
            return f"opened {doors}" + (f", failed {times(failures)}" if failures else "")
        if self.closed:
            return "closed a door"
        reached = f"stage {self.stage}" + (f" of {self.of}" if self.of else "")
        return ", ".join([reached, *(why for why, _ in self.failed.most_common(1))])
