"""Bytes to lines, and lines to packets: what a file that is followed, a pipe and a replay have in common.

Rule 1: no I/O but reading the stream that is given, and no clock. Rule 2: memory is bounded, whatever the bytes.
Rule 3: what is skipped is counted and told, the same thing at most once a minute.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from .packet import Packet
from .records import MAX_LINE, Grammar
from .stamps import Dates

# One read: about 2 ms of work. A line costs some microseconds; 64 KiB are about 300 of them.
CHUNK = 65_536
_LINES_PER_READ = 256

# The same thing is told at most so often, in seconds.
_TELL_EVERY = 60.0

_OVERLONG = f"skipped {{n}} bytes of lines longer than any record ({MAX_LINE} bytes)"


class Told:
    """What is to be told as warnings, each at most once a minute, with the count of what has come together."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counted: dict[str, int] = {}
        self._last: dict[str, float] = {}

    def count(self, words: str, n: int = 1) -> None:
        """Something has happened, n times; `words` may say {n}."""
        self._counted[words] = self._counted.get(words, 0) + n

    def take_back(self, words: str) -> bool:
        """It is over; whether it was still to be told, which it is not any more."""
        return self._counted.pop(words, 0) > 0

    def due(self, now: float) -> list[str]:
        """The lines to tell at `now`, in seconds of a clock that only goes on."""
        self._last = {words: last for words, last in self._last.items() if now - last < _TELL_EVERY}
        found = [words for words in self._counted if words not in self._last]
        self._last |= dict.fromkeys(found, now)
        return [f"{self._name}: {words.replace('{n}', str(self._counted.pop(words)))}" for words in found]


class Splitter:
    """Bytes to whole lines, with bounded memory."""

    __slots__ = ("_half", "_overlong", "_skipping", "_told")

    def __init__(self, told: Told, *, inside: bool = False) -> None:
        """`inside`: the first bytes belong to a line whose beginning is not known."""
        self._told = told
        self._half = b""
        self._skipping = inside
        self._overlong = False  # whether it is for its length that a line is skipped

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._half) or self._skipping

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`, without newlines, and without the NULs that stand where a file had a hole."""
        if self._skipping:
            rest, newline, data = data.partition(b"\n")
            if self._overlong:
                self._told.count(_OVERLONG, len(rest))
            if not newline:
                return []
            self._skipping = self._overlong = False
        whole, newline, half = data.rpartition(b"\n")
        lines = (self._half + whole).split(b"\n") if newline else []
        self._half = half if newline else self._half + half
        if b"\0" in data:
            lines = [line.lstrip(b"\0") for line in lines]
            self._half = self._half.lstrip(b"\0")
        return self._without_overlong(lines)

    def _without_overlong(self, lines: list[bytes]) -> list[bytes]:
        if len(self._half) > MAX_LINE:
            self._told.count(_OVERLONG, len(self._half))
            self._half = b""
            self._skipping = self._overlong = True
        if not lines or max(map(len, lines)) <= MAX_LINE:
            return lines
        self._told.count(_OVERLONG, sum(len(line) for line in lines if len(line) > MAX_LINE))
        return [line for line in lines if len(line) <= MAX_LINE]


class Reading:
    """Lines that are read and not yet handed over, and how many were."""

    __slots__ = ("_at", "_lines", "ignored", "records")

    def __init__(self) -> None:
        self.records = self.ignored = 0
        self._lines: list[bytes] = []
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._lines)

    def put(self, lines: list[bytes]) -> None:
        """Take these, when there are no others."""
        self._lines = lines
        self._at = 0

    def hand_over(self, grammar: Grammar, dates: Dates, receive: Callable[[Packet], None]) -> None:
        """Give the packets of the next lines to `receive`: 2 ms of work at most."""
        some = self._lines[self._at : self._at + _LINES_PER_READ]
        self._at += len(some)
        self.records += len(some)
        from_line = grammar.from_line
        for line in some:
            packet = from_line(line, dates)
            if packet is None:
                self.ignored += 1
            else:
                receive(packet)


def lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a log without their newlines; of an overlong one MAX_LINE + 1 bytes. Raises OSError."""
    inside = False  # an overlong line, whose beginning was given
    while piece := stream.readline(MAX_LINE + 2):
        ended = piece.endswith(b"\n")
        if not inside:
            if piece[0] == 0:
                piece = piece.lstrip(b"\0")
                if not piece:
                    continue  # a hole, of whatever size
                if not ended:
                    piece += stream.readline(MAX_LINE + 2 - len(piece))
                    ended = piece.endswith(b"\n")
            yield piece[:-1] if ended else piece[: MAX_LINE + 1]
        inside = not ended
