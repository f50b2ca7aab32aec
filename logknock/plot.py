"""Who knocked when, and what became of it, as a picture: findings in, SVG text out.

Rule 1: pure: no file and no clock; the zone of the times comes in. Rule 2: what a log or a file's name says is text and
never markup. Rule 3: the picture's size is bounded, whatever the rows hold: MAX_ROWS rows, and in each as many marks as
fit side by side.

The order of knocks says more than their distance, so marks that would cover each other are moved apart, and a long time
in which nothing happens is cut out of the axis.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from math import ceil
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from .errors import printable
from .knock import Door
from .trail import Finding, Verdict

# Sources in one picture: a screen or a page holds these so that their names can be read.
MAX_ROWS = 30

# Lanes of open doors in a row; what does not fit shares the last one.
MAX_LANES = 4

# A title that pops up holds no more letters than a person reads there.
MAX_TEXT = 200

# Pixels.
_WIDTH = 1200
_RIGHT = 40.0  # half a tick's label
_MOST_RIGHT = 200.0
_TOP = 92
_LANE = 16
_ROW = 40
_GAP = 17.0  # between the middles of two marks
_MORE = 28.0  # as much for `+12`, which stands for marks that have no room
_PUSH = 6 * _GAP  # how far from its true place a mark may stand
_CUT = 26.0  # a break in the axis
_PAD = 12.0  # on both sides of what a piece of the axis holds
_LEAST_PIECE = 90.0
_NAME = 7.3  # a letter of a source's name
_SMALL = 5.9  # a letter of small print
_BOLD = 6.6
_TITLE = 10.0
_TICK = 6.8

# A pause is cut out if it is such a part of what is left, so many times: more breaks than that, and it is no axis.
_CUT_SHARE = 0.15
_MAX_CUTS = 6
_LATE_SHARE = 0.1  # what is in so much of the whole at its end needs room for its label beyond it
_LEAST_CUT = 60.0  # seconds; shorter ones do no harm

_STEPS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800,
    3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 259_200, 604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000,
)  # fmt: skip
_DAY = 86_400


FAILURES = {
    Verdict.WRONG: "wrong port",
    Verdict.TIMEOUT: "timeout",
    Verdict.LATE: "too late",
    Verdict.CLOCK: "clock stepped back",
    Verdict.EVICTED: "too many others knocking",
    Verdict.SPENT: "one-time sequence used up",
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
    """A whole picture. left_out: sources that are not in it. notes: what else is to be said, a line each."""

    title: str
    rows: Sequence[Row]
    left_out: int = 0
    notes: Sequence[str] = ()


def svg(line: TimeLine, zone: tzinfo | None = None) -> str:
    """The picture, a whole SVG document; times are in the zone, None for the local one."""
    return "\n".join(_Drawing(line, zone).document()) + "\n"


def draw(name: str, findings: Iterable[Finding], doors: Mapping[str, Door], zone: tzinfo | None = None) -> Row:
    """The row of a source, from what became of its packets; times in the zone, None for the local one."""
    drawn = _Drawn(doors, zone)
    for finding in findings:
        drawn.add(finding)
    drawn.finish()
    bars = [span for spans in drawn.bars.values() for span in spans]
    return Row(name, drawn.outcome, list(drawn.marks.values()), drawn.attempts, bars)


# ---- from findings to what is drawn


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
            doors = ", ".join(name if count == 1 else f"{name} {count:,} times" for name, count in self.opened.items())
            return f"opened {doors}" + (f", failed {failures:,} times" if failures else "")
        if self.closed:
            return "closed a door"
        reached = f"stage {self.stage}" + (f" of {self.of}" if self.of else "")
        return ", ".join([reached, *(why for why, _ in self.failed.most_common(1))])


# ---- the axis


class _Piece(NamedTuple):
    """A piece of the axis without a break: seconds, and the pixels that they are drawn at."""

    start: float
    end: float
    left: float
    right: float


class _Axis:
    """Where a time stands."""

    def __init__(self, rows: Sequence[Row], left: float, right: float) -> None:
        bounds = _pieces(rows)
        room = right - left - _CUT * (len(bounds) - 1)
        least = min(_LEAST_PIECE, room / (2 * len(bounds)))
        total = sum(end - start for start, end in bounds)
        scale = (room - least * len(bounds)) / total if total else 0.0
        even = 0.0 if total else (room - least * len(bounds)) / len(bounds)
        self.pieces: list[_Piece] = []
        for start, end in bounds:
            width = least + (end - start) * scale + even
            self.pieces.append(_Piece(start, end, left, left + width))
            left += width + _CUT
        self._starts = [piece.start for piece in self.pieces]

    def piece(self, time: float) -> int:
        """The number of the piece that the time is in."""
        return max(0, bisect_right(self._starts, time) - 1)

    def place(self, time: float) -> float:
        """The pixel of a time, within the piece that it belongs to."""
        piece = self.pieces[self.piece(time)]
        low, high = piece.left + _PAD, piece.right - _PAD
        if piece.end <= piece.start:
            return (low + high) / 2
        return min(high, max(low, low + (time - piece.start) / (piece.end - piece.start) * (high - low)))

    def ticks(self, piece: _Piece, zone: tzinfo | None) -> tuple[list[float], float]:
        """Round times within the piece, as many as can be labelled, and their step in seconds."""
        length = piece.end - piece.start
        pixels = piece.right - piece.left - 2 * _PAD
        most = max(1.0, pixels / 84)
        step = next((step for step in _STEPS if length / step <= most), _STEPS[-1])
        ticks = list(_round_times(piece.start, piece.end, step, zone))
        return (ticks or [piece.start]), step


def _pieces(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """From when to when something happens; pauses between are cut out if they are long for the whole."""
    spans = sorted(_extents(rows))
    if not spans:
        return [(0.0, 0.0)]
    start, end = spans[0]
    pauses: list[tuple[float, float, float]] = []
    for begins, ends in spans[1:]:
        if begins - end >= _LEAST_CUT:
            pauses.append((begins - end, end, begins))
        end = max(end, ends)
    rest = end - start
    cuts: list[tuple[float, float]] = []
    for length, since, until in sorted(pauses, reverse=True)[:_MAX_CUTS]:
        if length < _CUT_SHARE * rest:
            break
        cuts.append((since, until))
        rest -= length
    cuts.sort()
    return list(zip([start, *(until for _, until in cuts)], [*(since for since, _ in cuts), end], strict=True))


def _extents(rows: Sequence[Row]) -> Iterator[tuple[float, float]]:
    for row in rows:
        for mark in row.marks:
            yield mark.time, mark.time
        for span in (*row.attempts, *row.openings):
            yield span.start, span.end


def _round_times(start: float, end: float, step: float, zone: tzinfo | None) -> Iterator[float]:
    """Multiples of the step by the local clock; whole days begin at midnight, however long they are."""
    first = datetime.fromtimestamp(start, zone)
    if step >= _DAY:
        days = int(step // _DAY)
        day = first.replace(hour=0, minute=0, second=0, microsecond=0)
        day += timedelta(days=-day.toordinal() % days)
        while (time := day.timestamp()) <= end:
            if time >= start:
                yield time
            day += timedelta(days=days)
        return
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    number = ceil((start - midnight) / step - 1e-6)
    while (time := midnight + number * step) <= end + step * 1e-6:
        yield time
        number += 1


def _clock(time: float, step: float, zone: tzinfo | None) -> str:
    """A time as a tick of such a step needs it."""
    when = datetime.fromtimestamp(round(time, 4), zone)
    if step >= _DAY:
        return f"{when:%Y-%m-%d}"
    if step >= 60 and not when.second and not when.microsecond:
        return f"{when:%H:%M}"
    fraction = f".{when.microsecond // 1000:03}" if step < 1 else ""
    return f"{when:%H:%M:%S}{fraction}"


# ---- what stands in a row


class _Placed(NamedTuple):
    """A mark and its pixel; `more` marks that have no room of their own are folded into it."""

    x: float
    mark: Mark
    more: int = 0

    @property
    def half(self) -> float:
        return (_MORE if self.more else _GAP) / 2


_Wanted = list[tuple[float, Mark]]


def _place(marks: Iterable[Mark], axis: _Axis) -> list[_Placed]:
    """The marks of a row, side by side, in each piece of the axis for itself."""
    by_piece: dict[int, _Wanted] = {}
    for mark in sorted(marks, key=lambda mark: mark.time):
        by_piece.setdefault(axis.piece(mark.time), []).append((axis.place(mark.time), mark))
    placed: list[_Placed] = []
    for number, wanted in by_piece.items():
        piece = axis.pieces[number]
        some = _side_by_side(wanted, piece.left, piece.right)
        if any(item.more for item in some):
            some = _side_by_side(_furthest(wanted), piece.left, piece.right)
        placed += some
    return placed


def _furthest(wanted: _Wanted) -> _Wanted:
    """Without the knocks that a higher one follows at once: what there is to see of a row that is too full."""
    following = [*wanted[1:], (wanted[-1][0] + _GAP, wanted[-1][1])]
    return [
        (x, mark)
        for (x, mark), (then, higher) in zip(wanted, following, strict=True)
        if not (0 < mark.stage < higher.stage and then - x < _GAP)
    ]


def _side_by_side(wanted: _Wanted, low: float, high: float) -> list[_Placed]:
    """Marks by their pixels, moved apart; those for which that is too far become `+12`."""
    placed: list[_Placed] = []
    taken = 0.0  # by marks that can be moved no further together
    for x, mark in wanted:
        if not placed:
            placed.append(_Placed(max(x, low + _GAP / 2), mark))
            taken = _GAP
            continue
        last = placed[-1]
        beside = last.x + last.half + _GAP / 2
        fits = taken + _MORE <= high - low
        if fits and (x >= beside or (beside - x <= _PUSH and not last.more)):
            placed.append(_Placed(max(x, beside), mark))
            taken += _GAP
        elif last.more:
            placed[-1] = last._replace(more=last.more + 1)
        elif fits:
            placed.append(_Placed(last.x + last.half + _MORE / 2, mark, 1))
            taken += _MORE
        else:
            placed[-1] = last._replace(x=last.x + (_MORE - _GAP) / 2, more=2)
            taken += _MORE - _GAP
    return _within(placed, high)


def _within(placed: list[_Placed], edge: float) -> list[_Placed]:
    """What stands beyond the edge, moved back, and what is in its way."""
    for at in range(len(placed) - 1, -1, -1):
        item = placed[at]
        if item.x + item.half <= edge:
            break
        placed[at] = item._replace(x=edge - item.half)
        edge -= 2 * item.half
    return placed


def _lanes(openings: Sequence[Span]) -> list[list[Span]]:
    """Open doors in lanes, so that none hides another."""
    lanes: list[list[Span]] = []
    for span in sorted(openings):
        for lane in lanes:
            if lane[-1].end <= span.start:
                lane.append(span)
                break
        else:
            if len(lanes) < MAX_LANES:
                lanes.append([span])
            else:
                lanes[-1].append(span)
    return lanes


# ---- drawing

_STYLE = """\
text { font: 12px system-ui, "DejaVu Sans", "Segoe UI", sans-serif; fill: #1f2328 }
.bg { fill: #ffffff } .stripe { fill: #f3f5f7 } .grid { stroke: #d5dae0; stroke-width: 1 }
.title { font-size: 17px; font-weight: 600 } .quiet { fill: #59636e } .small { font-size: 10.5px; fill: #59636e }
.name { font: 12px ui-monospace, "DejaVu Sans Mono", monospace } .tick { font-size: 11px; text-anchor: middle }
.attempt { stroke: #7d8790; stroke-width: 1.5 } .break { stroke: #7d8790; fill: none; stroke-width: 1.2 }
.mark { stroke: #1f2328; stroke-width: 1 } .digit { font-size: 9.5px; font-weight: 700; text-anchor: middle }
.s1 { fill: #ffd966 } .s2 { fill: #56b4e9 } .s3 { fill: #1f83c4 } .s4 { fill: #5b2a86 } .s5 { fill: #2a0f45 }
.light { fill: #ffffff } .dark { fill: #1f2328 } .fail { stroke: #c23b00; stroke-width: 3; stroke-linecap: round }
.why { font-size: 10.5px; fill: #a83200; stroke: #ffffff; stroke-width: 3; paint-order: stroke }
.open { fill: #009e73; stroke: #00684c; stroke-width: 1 }
.door, .beside { font-size: 10.5px; font-weight: 600 } .door { fill: #ffffff } .beside { fill: #00684c }
.more { fill: #e3e7eb; stroke: #59636e } .count { font-size: 9.5px; text-anchor: middle }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .bg { fill: #0d1117 } .stripe { fill: #161b22 } .grid { stroke: #30363d }
.quiet, .small { fill: #9aa4af } .attempt, .break { stroke: #8b949e } .mark { stroke: #e6edf3 }
.light { fill: #ffffff } .dark { fill: #1f2328 } .fail { stroke: #ff8a4c } .why { fill: #ffa571; stroke: #0d1117 }
.open { fill: #00845f; stroke: #3fd0a4 } .door { fill: #ffffff } .beside { fill: #3fd0a4 }
.more { fill: #30363d; stroke: #8b949e }
}"""


class _Drawing:
    """A picture on its way."""

    def __init__(self, line: TimeLine, zone: tzinfo | None) -> None:
        self._line = line
        self._zone = zone
        self._rows = list(line.rows[:MAX_ROWS])
        self._left_out = line.left_out + len(line.rows) - len(self._rows)
        longest = max((max(len(row.name) * _NAME, len(row.outcome) * _SMALL) for row in self._rows), default=0.0)
        self._left = min(max(150.0, longest + 28), 330.0)
        self._axis = _Axis(self._rows, self._left, _WIDTH - self._margin())
        self._lanes = [_lanes(row.openings) for row in self._rows]
        self._tops = [float(_TOP)]
        for lanes in self._lanes:
            self._tops.append(self._tops[-1] + _ROW + _LANE * len(lanes))
        self._foot = self._tops[-1] if self._rows else _TOP + _ROW

    def _margin(self) -> float:
        """What the labels of the last failures need on the right, if it is not too much."""
        lasts = [max(row.marks, key=lambda mark: mark.time) for row in self._rows if row.marks]
        end = max((mark.time for mark in lasts), default=0.0)
        begin = min((mark.time for row in self._rows for mark in row.marks), default=0.0)
        labels = [len(mark.label) for mark in lasts if mark.time >= end - _LATE_SHARE * (end - begin)]
        return min(_MOST_RIGHT, max(_RIGHT, max(labels, default=0) * _SMALL + 14))

    def document(self) -> Iterator[str]:
        """The lines of the document."""
        notes = self._notes()
        height = ceil(self._foot + 76 + 17 * len(notes))
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" role="img">'
        )
        yield f"<title>{_text(self._line.title)}</title>"
        yield f"<style>{_STYLE}</style>"
        yield f'<rect class="bg" width="{_WIDTH}" height="{height}"/>'
        yield _words(16, 30, _short(self._line.title, (_WIDTH - 32) / _TITLE), "title")
        yield _words(16, 50, self._span(), "quiet")
        if not self._rows:
            yield _words(16, _TOP + 24, "No source knocked.", "quiet")
        else:
            yield from self._grid()
            for number, row in enumerate(self._rows):
                yield from self._row(row, self._lanes[number], self._tops[number], self._tops[number + 1])
        yield from self._legend(self._foot + 40)
        for at, note in enumerate(notes):
            yield _words(16, self._foot + 72 + 17 * at, _short(note, (_WIDTH - 32) / _SMALL), "small")
        yield "</svg>"

    def _span(self) -> str:
        """From when to when, in words."""
        if not self._rows:
            return ""
        first, last = self._axis.pieces[0].start, self._axis.pieces[-1].end
        start, end = (datetime.fromtimestamp(time, self._zone) for time in (first, last))
        until = f"{end:%H:%M:%S}" if start.date() == end.date() else f"{end:%Y-%m-%d %H:%M:%S}"
        shift = start.astimezone(self._zone).strftime("%z")
        return f"{start:%Y-%m-%d %H:%M:%S} to {until} (UTC{shift[:3]}:{shift[3:5]}), {_length(last - first)}"

    def _notes(self) -> list[str]:
        notes = list(self._line.notes)
        if self._left_out:
            many = f"{self._left_out:,} more source{'s are' if self._left_out != 1 else ' is'}"
            notes.insert(0, f"{many} not shown: those that got furthest are.")
        return notes

    # -- the axis

    def _grid(self) -> Iterator[str]:
        for number in range(0, len(self._rows), 2):
            top, bottom = self._tops[number], self._tops[number + 1]
            yield f'<rect class="stripe" x="0" y="{top:g}" width="{_WIDTH}" height="{bottom - top:g}"/>'
        for number, piece in enumerate(self._axis.pieces):
            if number:
                yield from self._break(piece, self._axis.pieces[number - 1])
            for tick in self._axis.ticks(piece, self._zone)[0]:
                yield f'<path class="grid" d="M{self._axis.place(tick):.1f} {_TOP - 6}V{self._foot:g}"/>'
        day = ""
        for x, label, date in self._labels():
            yield _words(x, _TOP - 11, label, "tick")
            if date not in ("", day):
                yield _words(x, _TOP - 25, date, "tick quiet")
            day = date

    def _labels(self) -> list[tuple[float, str, str]]:
        """Pixel, time and day of the ticks that have room; the first of a piece takes that of the one before."""
        labels: list[tuple[float, str, str]] = []
        for piece in self._axis.pieces:
            ticks, step = self._axis.ticks(piece, self._zone)
            for tick in ticks:
                x, label = self._axis.place(tick), _clock(tick, step, self._zone)
                date = "" if step >= _DAY else f"{datetime.fromtimestamp(tick, self._zone):%a %Y-%m-%d}"
                if labels and x - labels[-1][0] < (len(label) + len(labels[-1][1])) * _TICK / 2 + 6:
                    if tick != ticks[0]:
                        continue
                    labels.pop()
                labels.append((x, label, date))
        return labels

    def _break(self, piece: _Piece, before: _Piece) -> Iterator[str]:
        x = piece.left - _CUT / 2
        zigzag = "".join(f"l{6 if step % 2 else -6} 7" for step in range(max(1, int((self._foot - _TOP) / 7))))
        yield (
            f"<g><title>{_text(_length(piece.start - before.end))} without anything to show</title>"
            f'<path class="break" d="M{x + 3:.1f} {_TOP}{zigzag}"/></g>'
        )

    # -- a row

    def _row(self, row: Row, lanes: list[list[Span]], top: float, bottom: float) -> Iterator[str]:
        middle = top + _ROW / 2
        yield _words(16, top + 17, _short(row.name, (self._left - 24) / _NAME), "name")
        yield _words(16, top + 32, _short(row.outcome, (self._left - 24) / _SMALL), "small")
        placed = _place(row.marks, self._axis)
        first = {item.mark.time: item.x for item in reversed(placed)}  # several have one time where seconds are whole
        last = {item.mark.time: item.x for item in placed}
        for start, end, *_ in self._joined(row.attempts, first, last):
            yield f'<path class="attempt" d="M{start:.1f} {middle:g}H{end:.1f}"/>'
        for number, item in enumerate(placed):
            following = placed[number + 1] if number + 1 < len(placed) else None
            number_of_piece = self._axis.piece(item.mark.time)
            is_last = number_of_piece == len(self._axis.pieces) - 1
            edge = _WIDTH if is_last else self._axis.pieces[number_of_piece].right
            room = (following.x - following.half if following else edge) - item.x - item.half
            yield from _mark(item, middle, room)
        for number, lane in enumerate(lanes):
            yield from self._openings(list(self._joined(lane, last, last)), top + _ROW - 4 + number * _LANE)

    def _openings(self, bars: list[Span], top: float) -> Iterator[str]:
        for number, (start, end, label, title, note) in enumerate(bars):
            end = max(end, start + 4)
            yield (
                f'<g><title>{_text(title)}</title><rect class="open" x="{start:.1f}" y="{top:g}" '
                f'width="{end - start:.1f}" height="{_LANE - 3}" rx="3"/></g>'
            )
            edge = bars[number + 1].start if number + 1 < len(bars) else _WIDTH - 4.0
            if len(label) * _BOLD + 8 <= end - start:
                yield _words(start + 5, top + 10, label, "door")
            else:
                note = f"{label} {note}".rstrip()
            if note and len(note) * _BOLD + 8 <= edge - end:
                yield _words(end + 5, top + 10, note, "beside")

    def _joined(self, spans: Sequence[Span], begins: dict[float, float], ends: dict[float, float]) -> Iterator[Span]:
        """Spans in pixels, from mark to mark; what touches on the screen is one, so that there is no end of them."""
        last: Span | None = None
        for span in sorted(spans):
            start = begins.get(span.start, self._axis.place(span.start))
            end = max(start, ends.get(span.end, self._axis.place(span.end)))
            if last is not None and start < last.end + 1 and (span.label == last.label or start < last.start + 4):
                last = last._replace(end=max(last.end, end), note=span.note)
                continue
            if last is not None:
                yield last
            last = span._replace(start=start, end=end)
        if last is not None:
            yield last

    # -- what the marks mean

    def _legend(self, y: float) -> Iterator[str]:
        x = 16.0
        for stage in range(1, 5):
            yield from _knock(x + 8, y - 4, stage, "")
            x += 20
        yield _words(x + 4, y, "knocks, by stage", "small")
        x += 116
        yield f'<path class="attempt" d="M{x:.1f} {y - 4:.1f}h24"/>'
        yield _words(x + 30, y, "attempt under way", "small")
        x += 146
        yield _cross(x + 8, y - 4, "")
        yield _words(x + 20, y, "attempt failed", "small")
        x += 114
        yield f'<rect class="open" x="{x:.1f}" y="{y - 10:.1f}" width="30" height="12" rx="3"/>'
        yield _words(x + 36, y, "door open, until its timeout", "small")
        x += 204
        yield from _more(x + 13, y - 4, 12, "")
        yield _words(x + 32, y, "so many more, without room here", "small")
        x += 226
        yield f'<path class="break" d="M{x + 4:.1f} {y - 11:.1f}l-6 5l6 5l-6 5"/>'
        yield _words(x + 12, y, "a time without anything, cut out", "small")


def _mark(item: _Placed, y: float, room: float) -> Iterator[str]:
    mark = item.mark
    if item.more:
        yield from _more(item.x, y, item.more, f"{item.more} more, from: {mark.title}")
    elif mark.stage:
        yield from _knock(item.x, y, mark.stage, mark.title)
    else:
        yield _cross(item.x, y, mark.title)
        for label in (mark.label, mark.label.partition(":")[0]):
            if label and len(label) * _SMALL + 6 <= room:
                yield _words(item.x + 11, y + 4, label, "why")
                break


# Paths round 0,0, as large as a circle of radius 7.5 looks.
_SHAPES = (
    "M-7.5 0A7.5 7.5 0 1 1 7.5 0A7.5 7.5 0 1 1 -7.5 0Z",
    "M-6.8 -6.8H6.8V6.8H-6.8Z",
    "M0 -9L9 0L0 9L-9 0Z",
    "M-4.2 -7.6H4.2L8.4 0L4.2 7.6H-4.2L-8.4 0Z",
    "M0 -8.6L8.2 -2.7L5.1 7H-5.1L-8.2 -2.7Z",
)


def _knock(x: float, y: float, stage: int, title: str) -> Iterator[str]:
    """A shape and a colour for each of the first stages, dark behind light ones, and the number in it."""
    kind = min(stage, len(_SHAPES))
    ink = "dark" if kind <= 2 else "light"
    yield (
        f'<g transform="translate({x:.1f} {y:.1f})"><title>{_text(title)}</title>'
        if title
        else (f'<g transform="translate({x:.1f} {y:.1f})">')
    )
    yield f'<path class="mark s{kind}" d="{_SHAPES[kind - 1]}"/><text class="digit {ink}" y="3.4">{stage}</text></g>'


def _cross(x: float, y: float, title: str) -> str:
    told = f"<title>{_text(title)}</title>" if title else ""
    return f'<g>{told}<path class="fail" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/></g>'


def _more(x: float, y: float, count: int, title: str) -> Iterator[str]:
    told = f"<title>{_text(title)}</title>" if title else ""
    shown = f"+{count}" if count < 1000 else f"+{count // 1000}k"
    yield f'<g>{told}<rect class="more" x="{x - 13:.1f}" y="{y - 7:.1f}" width="26" height="14" rx="7"/>'
    yield f'<text class="count" x="{x:.1f}" y="{y + 3.4:.1f}">{shown}</text></g>'


def _words(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class={quoteattr(kind)} x="{x:.1f}" y="{y:.1f}">{_text(text)}</text>'


def _text(text: str) -> str:
    """Text as XML may hold it: no markup, no control characters, not too long."""
    return escape(printable(_short(text, MAX_TEXT)))


def _short(text: str, most: float) -> str:
    """As much of a text as there is room for."""
    return text if len(text) <= most else text[: int(most) - 1] + "…"


def _length(seconds: float) -> str:
    """A time for a person, in its two largest units."""
    if seconds < 10:
        return f"{seconds:.3g} s"
    rest, parts = round(seconds), []
    for unit, size in (("d", _DAY), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
