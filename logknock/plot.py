"""A time line as a picture: rows in, SVG text out.

Rule 1: pure: no file and no clock; the zone of the times comes in. Rule 2: what a log or a file's name says is text and
never markup. Rule 3: the picture's size is bounded, whatever the rows hold: MAX_ROWS rows, and in each as many marks as
fit side by side.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo
from math import ceil
from xml.sax.saxutils import escape, quoteattr

from .axis import CUT, DAY, Axis, Piece, Placed, clock, in_lanes, place
from .errors import printable
from .timeline import MAX_ROWS, Row, Span, TimeLine

# A title that pops up holds no more letters than a person reads there.
MAX_TEXT = 200

# Pixels.
_WIDTH = 1200
_RIGHT = 40.0  # half a tick's label
_MOST_RIGHT = 200.0
_TOP = 92
_LANE = 16
_ROW = 46
_MIDDLE = 26  # of the marks in a row: above them is room for a line of small print
_NAME = 7.3  # a letter of a source's name
_SMALL = 5.9  # a letter of small print
_BOLD = 6.6
_TITLE = 10.0
_TICK = 6.8

_LATE_SHARE = 0.1  # what is in so much of the whole at its end needs room for its label beyond it


def svg(line: TimeLine, zone: tzinfo | None = None) -> str:
    """The picture, a whole SVG document; times are in the zone, None for the local one."""
    return "\n".join(_Drawing(line, zone).document()) + "\n"


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
        self._axis = Axis(self._rows, self._left, _WIDTH - self._margin())
        self._lanes = [in_lanes(row.openings) for row in self._rows]
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
        first, last = self._line.first, self._line.last
        drawn = ""
        if self._rows:
            begin, end = self._axis.pieces[0].start, self._axis.pieces[-1].end
            if first is None or last is None:
                first, last = begin, end
            elif (int(begin), int(end)) != (int(first), int(last)):
                drawn = f"; drawn: {self._from_to(begin, end, last)}"
        if first is None or last is None:
            return ""
        shift = datetime.fromtimestamp(first, self._zone).astimezone(self._zone).strftime("%z")
        return f"{self._from_to(first, last)} (UTC{shift[:3]}:{shift[3:5]}), {_length(last - first)}{drawn}"

    def _from_to(self, begin: float, end: float, known: float | None = None) -> str:
        """Two times, each with its day unless that of the time before, or of what is `known`, is the same."""
        words, day = [], None if known is None else datetime.fromtimestamp(known, self._zone).date()
        for time in (begin, end):
            when = datetime.fromtimestamp(time, self._zone)
            words.append(f"{when:%H:%M:%S}" if when.date() == day else f"{when:%Y-%m-%d %H:%M:%S}")
            day = when.date()
        return " to ".join(words)

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
                x, label = self._axis.place(tick), clock(tick, step, self._zone)
                date = "" if step >= DAY else f"{datetime.fromtimestamp(tick, self._zone):%a %Y-%m-%d}"
                if labels and x - labels[-1][0] < (len(label) + len(labels[-1][1])) * _TICK / 2 + 6:
                    if tick != ticks[0]:
                        continue
                    labels.pop()
                labels.append((x, label, date))
        return labels

    def _break(self, piece: Piece, before: Piece) -> Iterator[str]:
        x = piece.left - CUT / 2
        zigzag = "".join(f"l{6 if step % 2 else -6} 7" for step in range(max(1, int((self._foot - _TOP) / 7))))
        yield (
            f"<g><title>{_text(_length(piece.start - before.end))} without anything to show</title>"
            f'<path class="break" d="M{x + 3:.1f} {_TOP}{zigzag}"/></g>'
        )

    # -- a row

    def _row(self, row: Row, lanes: list[list[Span]], top: float, bottom: float) -> Iterator[str]:
        middle = top + _MIDDLE
        yield _words(16, top + 20, _short(row.name, (self._left - 24) / _NAME), "name")
        yield _words(16, top + 35, _short(row.outcome, (self._left - 24) / _SMALL), "small")
        placed = place(row.marks, self._axis)
        first = {item.mark.time: item.x for item in reversed(placed)}  # several have one time where seconds are whole
        last = {item.mark.time: item.x for item in placed}
        for start, end, *_ in self._joined(row.attempts, first, last):
            yield f'<path class="attempt" d="M{start:.1f} {middle:g}H{end:.1f}"/>'
        for item in placed:
            yield from _mark(item, middle)
        yield from self._reasons(placed, middle, top + 11)
        for number, lane in enumerate(lanes):
            yield from self._openings(list(self._joined(lane, last, last)), top + _ROW - 4 + number * _LANE)

    def _reasons(self, placed: Sequence[Placed], beside: float, above: float) -> Iterator[str]:
        """Why attempts failed: beside their marks where there is room, else above them, in full or in short."""
        taken = 0.0
        for number, item in enumerate(placed):
            if item.more or item.mark.stage or not item.mark.label:
                continue
            low, edge = self._bounds(item)
            low = max(low, taken)
            right = placed[number + 1].x - placed[number + 1].half if number + 1 < len(placed) else edge
            for label in (item.mark.label, item.mark.label.partition(":")[0]):
                width = len(label) * _SMALL
                if item.x + item.half + width + 6 <= min(right, edge):
                    yield _words(item.x + 11, beside + 4, label, "why")
                    break
                begin = min(item.x - 5, edge - width - 6)
                if begin >= low:
                    yield _words(begin, above, label, "why")
                    taken = begin + width + 6
                    break

    def _bounds(self, item: Placed) -> tuple[float, float]:
        """From where to where what belongs to a mark may reach."""
        number = self._axis.piece(item.mark.time)
        piece = self._axis.pieces[number]
        return piece.left, float(_WIDTH) if number == len(self._axis.pieces) - 1 else piece.right

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


def _mark(item: Placed, y: float) -> Iterator[str]:
    mark = item.mark
    if item.more:
        yield from _more(item.x, y, item.more, f"{item.more} more, from: {mark.title}")
    elif mark.stage:
        yield from _knock(item.x, y, mark.stage, mark.title)
    else:
        yield _cross(item.x, y, mark.title)


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
    for unit, size in (("d", DAY), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
