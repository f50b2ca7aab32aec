"""Where things stand in a picture of a time line: from seconds to pixels.

Rule 1: pure; no clock, and nothing is drawn here. Rule 2: marks stand side by side, in their order, within their piece
of the axis; those for which there is no room are counted and not left out.

The order of knocks says more than their distance, so marks that would cover each other are moved apart, and a long time
in which nothing happens is cut out of the axis.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, tzinfo
from math import ceil
from typing import NamedTuple

from .timeline import Mark, Row, Span

# Lanes of open doors in a row; what does not fit shares the last one.
MAX_LANES = 4

# Pixels.
_GAP = 17.0  # between the middles of two marks
_MORE = 28.0  # as much for `+12`, which stands for marks that have no room
_PUSH = 6 * _GAP  # how far from its true place a mark may stand
CUT = 26.0  # a break in the axis
_PAD = 12.0  # on both sides of what a piece of the axis holds
_LEAST_PIECE = 90.0

# A pause is cut out if it is such a part of what is left, so many times: more breaks than that, and it is no axis.
_CUT_SHARE = 0.15
_MAX_CUTS = 6
_LEAST_CUT = 60.0  # seconds; shorter ones do no harm

_STEPS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800,
    3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 259_200, 604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000,
)  # fmt: skip
DAY = 86_400


class Piece(NamedTuple):
    """A piece of the axis without a break: seconds, and the pixels that they are drawn at."""

    start: float
    end: float
    left: float
    right: float


class Axis:
    """Where a time stands."""

    def __init__(self, rows: Sequence[Row], left: float, right: float) -> None:
        bounds = _pieces(rows)
        room = right - left - CUT * (len(bounds) - 1)
        least = min(_LEAST_PIECE, room / (2 * len(bounds)))
        total = sum(end - start for start, end in bounds)
        scale = (room - least * len(bounds)) / total if total else 0.0
        even = 0.0 if total else (room - least * len(bounds)) / len(bounds)
        self.pieces: list[Piece] = []
        for start, end in bounds:
            width = least + (end - start) * scale + even
            self.pieces.append(Piece(start, end, left, left + width))
            left += width + CUT
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

    def ticks(self, piece: Piece, zone: tzinfo | None) -> tuple[list[float], float]:
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
    if step >= DAY:
        days = int(step // DAY)
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


def clock(time: float, step: float, zone: tzinfo | None) -> str:
    """A time as a tick of such a step needs it."""
    when = datetime.fromtimestamp(round(time, 4), zone)
    if step >= DAY:
        return f"{when:%Y-%m-%d}"
    if step >= 60 and not when.second and not when.microsecond:
        return f"{when:%H:%M}"
    fraction = f".{when.microsecond // 1000:03}" if step < 1 else ""
    return f"{when:%H:%M:%S}{fraction}"


class Placed(NamedTuple):
    """A mark and its pixel; `more` marks that have no room of their own are folded into it."""

    x: float
    mark: Mark
    more: int = 0

    @property
    def half(self) -> float:
        return (_MORE if self.more else _GAP) / 2


_Wanted = list[tuple[float, Mark]]


def place(marks: Iterable[Mark], axis: Axis) -> list[Placed]:
    """The marks of a row, side by side, in each piece of the axis for itself."""
    by_piece: dict[int, _Wanted] = {}
    for mark in sorted(marks, key=lambda mark: mark.time):
        by_piece.setdefault(axis.piece(mark.time), []).append((axis.place(mark.time), mark))
    placed: list[Placed] = []
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


def _side_by_side(wanted: _Wanted, low: float, high: float) -> list[Placed]:
    """Marks by their pixels, moved apart; those for which that is too far become `+12`."""
    placed: list[Placed] = []
    taken = 0.0  # by marks that can be moved no further together
    for x, mark in wanted:
        if not placed:
            placed.append(Placed(max(x, low + _GAP / 2), mark))
            taken = _GAP
            continue
        last = placed[-1]
        beside = last.x + last.half + _GAP / 2
        fits = taken + _MORE <= high - low
        if fits and (x >= beside or (beside - x <= _PUSH and not last.more)):
            placed.append(Placed(max(x, beside), mark))
            taken += _GAP
        elif last.more:
            placed[-1] = last._replace(more=last.more + 1)
        elif fits:
            placed.append(Placed(last.x + last.half + _MORE / 2, mark, 1))
            taken += _MORE
        else:
            placed[-1] = last._replace(x=last.x + (_MORE - _GAP) / 2, more=2)
            taken += _MORE - _GAP
    return _within(placed, high)


def _within(placed: list[Placed], edge: float) -> list[Placed]:
    """What stands beyond the edge, moved back, and what is in its way."""
    for at in range(len(placed) - 1, -1, -1):
        item = placed[at]
        if item.x + item.half <= edge:
            break
        placed[at] = item._replace(x=edge - item.half)
        edge -= 2 * item.half
    return placed


def in_lanes(openings: Sequence[Span]) -> list[list[Span]]:
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
