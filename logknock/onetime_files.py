"""Reads the files of one-time sequences, and writes a new one.

Rule 1: a file is never rewritten: what is used of it, others remember as a Place. Rule 2: no file is ever in memory
whole: a look at one costs the same whatever its size, and what goes through all of it does so in slices.
Rule 3: what a line means is onetime.parse_line's; what is here only finds it sooner.
Rule 4: a file may say anything, and is refused where others can read or write it.

The last line counts without its newline too. So whoever adds sequences adds whole lines, or puts a new file in the old
one's place: of a line that is only half written the half would count.
"""

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice, repeat
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from . import ownership
from .errors import BAD_CONFIG, FAILURE, NO_PERMISSION, LogknockError, printable
from .knock import MAX_SEQUENCE, Door, Sequence, Service
from .onetime import MAX_LINE, Place, format_line, parse_knock, parse_line
from .ownership import read_hint

# What is read at a time; more than MAX_LINE.
CHUNK = 65_536

# Lines that one call of find_next looks at, so that a file of comments costs it no more than a millisecond or two.
FEW_LINES = 256

# What is surveyed at a time: lines that have to be read one by one, or eight times as many that have not (a
# millisecond each). As many are looked at between two pauses where the store is asked of each (two milliseconds).
GROUP = 128
_GROUPS_AT_ONCE = 16
_FEW_HITS = GROUP // 16

# Problems are told one by one; nobody reads more of them than this.
MAX_PROBLEMS = 8

# Words that were read before need no second reading: `65535:tcp` with some blanks. All ports in both protocols are
# 131,070 of them.
_MAX_WORD = 16
_MAX_WORDS = 1 << 18

# What a new file begins with, for whoever finds it.
_HEADER = b"""\
# One-time sequences for logknock, one a line: each opens its door once, in this order. A port alone is TCP.
# On the gateway: name this file in the door, onetime = ["/path/of/this/file"], then run `logknock rules apply`.
# On the client: give it a copy, and name that in a profile of ~/.config/logknock/client.toml, onetime = "/path".
# It is a secret. Each client has a file of its own. Leave the lines as they are: both sides remember the last one used.
"""

# Never waits for the other end of a FIFO, never becomes a terminal's session.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

# Fewer knocks than MIN_LENGTH, and what that means.
_SHORT = {
    1: "has a single knock in a sequence: any port scan opens the door",
    2: "has two knocks in a sequence: a port scan opens the door by chance",
}

_WRITE_HINTS = {
    errno.ENOSPC: "make room on the disk, or ask for fewer",
    errno.EDQUOT: "make room below the quota, or ask for fewer",
    errno.ENOENT: "make the directory first: mkdir -m 700 {folder}",
}

_FOREIGN = {
    stat.S_IROTH: "read by others",
    stat.S_IWGRP: "written by its group",
    stat.S_IWOTH: "written by others",
}


class OnetimeError(LogknockError):
    """A file of one-time sequences cannot be used."""


class Found(NamedTuple):
    """What find_next() found.

    sequence: None where there is none so far. place: where the file stands once this sequence is used; without one,
    from where to go on looking (which is no place to keep). ended: there is none up to the end of the file.
    problems: `line 12: ...` for malformed lines that were passed over.
    """

    sequence: Sequence | None
    place: Place
    ended: bool
    problems: tuple[str, ...]


class Survey(NamedTuple):
    """What stands after a place. While it goes on, `services` and `found` are empty; the last one is complete.

    sequences: how many. services: what they knock on. problems: the first few malformed lines, `line 12: ...`;
    malformed: how many there are. found: just behind the last line that holds what was looked for.
    shortest: how many knocks the shortest sequence has; 0 without one.
    """

    sequences: int
    services: frozenset[Service]
    problems: tuple[str, ...]
    malformed: int
    found: Place | None
    shortest: int = 0


def find_next(path: Path, place: Place) -> Found:
    """The next sequence after the place, or how far was looked for it; raises OnetimeError.

    Reads 64 KiB and takes 256 lines at most: where there is no sequence among them, and the file has not ended, call
    it again from there.
    """
    with _opened(path) as descriptor:
        piece = _read_lines(descriptor, place.offset)
    problems: list[str] = []
    for line in islice(_parsed(piece, place), FEW_LINES):
        place = line.place
        if line.problem:
            problems.append(f"line {place.line}: {line.problem}")
        if line.sequence is not None:
            return Found(line.sequence, place, False, _told(problems, len(problems)))
    if len(piece.lines) > FEW_LINES:
        return Found(None, place, False, _told(problems, len(problems)))
    return Found(None, place._replace(offset=piece.end), piece.ended, _told(problems, len(problems)))


def fits(path: Path, place: Place) -> bool:
    """Whether the line that ends at the place still holds its last sequence; raises OnetimeError.

    False: the file was edited before the place, and survey() can look for that sequence.
    """
    if not place.last:
        return True
    before = max(0, place.offset - MAX_LINE - 2)
    with _opened(path) as descriptor:
        data = os.pread(descriptor, 2 * (MAX_LINE + 2), before)
    at = place.offset - before - 1  # the last byte before the place: a newline, or the end of a line without one
    if not 0 <= at < len(data):
        return False
    start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
    line, rest = data[start : at + 1], b"" if end == at else data[at + 1 : None if end < 0 else end]
    try:
        return not rest.strip() and parse_line(line + rest) == place.last
    except ValueError:
        return False


def survey(path: Path, place: Place = Place(), look_for: Sequence = ()) -> Iterator[Survey]:  # noqa: B008  # frozen
    """Count the sequences after the place, in slices of two milliseconds at most; the last answer is complete.

    With `look_for`, also find where that sequence stands last, wherever in the file. Raises OnetimeError.
    """
    tally = _Tally()
    search = _Search(look_for) if look_for else None
    with _opened(path) as descriptor:
        if search:
            for _ in _slices(map(search.add, _groups(descriptor, Place()))):
                yield tally.survey()
        for _ in _slices(map(tally.add, _groups(descriptor, place))):
            yield tally.survey()
    yield tally.survey()._replace(services=frozenset(tally.services), found=search.found if search else None)


class Turn(NamedTuple):
    """Whose turn it is in a file.

    sequence: the one that counts; None at the end: the file is used up. place: how far the file is used,
    after: how far it is once that sequence is. skipped: sequences before it that were used already, and are no more.
    """

    sequence: Sequence | None
    place: Place
    after: Place
    skipped: int


def next_turn(path: Path, place: Place, was_used: Callable[[Sequence], bool]) -> Iterator[Turn]:
    """Look behind the place for the first sequence that was not used, in slices of two milliseconds or so.

    The last answer is complete. Raises OnetimeError, and what `was_used` raises.
    """
    after, skipped, ended = place, 0, False
    while not ended:
        with _opened(path) as descriptor:
            piece = _read_lines(descriptor, after.offset)
        for count, line in enumerate(_parsed(piece, after), start=1):
            after = line.place
            if line.sequence is not None:
                if not was_used(line.sequence):
                    yield Turn(line.sequence, place, after, skipped)
                    return
                place, skipped = after, skipped + 1
            if count % GROUP == 0:
                yield Turn(None, place, after, skipped)
        after, ended = after._replace(offset=piece.end), piece.ended
        yield Turn(None, place, after, skipped)


def recover(path: Path, last: Sequence) -> Iterator[Place | None]:
    """Where a file goes on that was edited before its place, in short steps; the last answer is complete.

    Behind the sequence that was used last, wherever that stands now; None: it is gone. Raises OnetimeError.
    """
    for state in survey(path, Place(), last):
        yield state.found


class Knocked(NamedTuple):
    """What the sequences of some files knock on, and `FILE: line 12: ...` for lines that are malformed or too short."""

    services: frozenset[Service]
    problems: tuple[str, ...]


def knocked_in(paths: Iterable[Path]) -> Knocked:
    """What the rules have to watch for these files; reads them whole. Raises OnetimeError for one that cannot be."""
    services: set[Service] = set()
    problems: list[str] = []
    for path in paths:
        *_, complete = survey(path)
        services |= complete.services
        told = _told(complete.problems, complete.malformed)
        problems += [f"{path}: {problem}" for problem in told]
        if short := _SHORT.get(complete.shortest):
            problems.append(f"{path}: {short} (hint: three knocks or more)")
    return Knocked(frozenset(services), tuple(problems))


def named_twice(doors: Iterable[Door]) -> tuple[str, ...]:
    """A line of text for each file that has a second name, or a second door: what is used at one counts at the other.

    What cannot be looked at is left out.
    """
    first: dict[tuple[int, int], str] = {}
    told: list[str] = []
    for name, file in ((door.name, file) for door in doors for file in door.onetime):
        with suppress(OSError):
            status = os.stat(file)
            this = f"{file} (door {name})"
            same = first.setdefault((status.st_dev, status.st_ino), this)
            if same is not this:
                told.append(f"{this}: is the same file as {same} (hint: each client and each door has its own)")
    return tuple(told)


def write_new(path: Path, sequences: Iterable[Sequence]) -> None:
    """Write a file: whole and on the disk, or not at all; never over another one.

    Only its owner can read it, and the group that the directory is shown to. Raises OnetimeError; where the file is
    there already, before the first of the sequences is asked for.
    """
    try:
        ownership.write_new(path, chain((_HEADER,), map(format_line, sequences)))
    except OSError as error:
        raise _not_written(path, error) from None


# ---- lines


class _Piece(NamedTuple):
    """Whole lines, their newlines left out, from `start` up to `end`; of one that is too long, the beginning."""

    lines: list[bytes]
    start: int
    end: int
    ended: bool


def _read_lines(descriptor: int, offset: int) -> _Piece:
    """The lines that begin at the offset or after it, as far as one read goes.

    A line that began before the offset was seen before: it was too long to be read whole, or it was the last one and
    had no newline then.
    """
    before = min(offset, 1)
    data = os.pread(descriptor, CHUNK, offset - before)
    base = offset - before
    ended = len(data) < CHUNK and not os.pread(descriptor, 1, base + len(data))
    start = before
    if before and data[:1] != b"\n":
        start = data.find(b"\n") + 1
        if not start:
            return _Piece([], offset, max(offset, base + len(data)), ended)
    end = data.rfind(b"\n", start)
    if end >= 0:
        whole, after = data[start:end], end + 1
        if ended and after < len(data):
            whole, after = data[start:], len(data)
    elif ended or len(data) - start > MAX_LINE:
        whole, after = data[start:], len(data)
    else:
        whole, after = b"", start
    lines = whole.split(b"\n") if after > start else []
    return _Piece(lines, base + start, base + after, ended)


class _Line(NamedTuple):
    """A line, and how far the file is read behind it; the sequence is None where a comment or a problem is there."""

    place: Place
    sequence: Sequence | None
    problem: str


def _parsed(piece: _Piece, place: Place) -> Iterator[_Line]:
    """The piece's lines, one by one; the first one is the next after the place."""
    offset, last = piece.start, place.last
    for number, line in enumerate(piece.lines, start=place.line + 1):
        offset = min(offset + len(line) + 1, piece.end)
        sequence, problem = None, ""
        try:
            sequence = parse_line(line)
        except ValueError as error:
            problem = str(error)
        last = sequence or last
        yield _Line(Place(number, offset, last), sequence, problem)


class _Group(NamedTuple):
    """Some lines that follow each other; `number` is the first one's, counted from 1, and `offset` where it begins.

    end: where the last one's newline ends, in whatever group that is.
    """

    number: int
    offset: int
    lines: list[bytes]
    end: int


def _groups(descriptor: int, place: Place) -> Iterator[_Group]:
    """All lines after the place. A group may be empty: in the midst of a line that is too long."""
    number, offset, ended = place.line + 1, place.offset, False
    while not ended:
        piece_lines, start, offset, ended = _read_lines(descriptor, offset)
        for at in range(0, max(1, len(piece_lines)), GROUP):
            lines = piece_lines[at : at + GROUP]
            yield _Group(number, start, lines, offset)
            number += len(lines)
            start += sum(map(len, lines)) + len(lines)


def _slices(costs: Iterable[int]) -> Iterator[None]:
    """Go through the costs, and pause whenever enough of them have come together."""
    total = 0
    for cost in costs:
        total += cost
        if total >= _GROUPS_AT_ONCE:
            total = 0
            yield


class _Tally:
    """Counts the sequences in groups of lines, and collects what they knock on."""

    def __init__(self) -> None:
        self.services: set[Service] = set()
        self._sequences = 0
        self._shortest = MAX_SEQUENCE
        self._malformed = 0
        self._problems: list[str] = []
        self._words: set[bytes] = set()  # what stood between the commas of some sequence

    def survey(self) -> Survey:
        shortest = self._shortest if self._sequences else 0
        return Survey(self._sequences, frozenset(), tuple(self._problems), self._malformed, None, shortest)

    def add(self, group: _Group) -> int:
        """Count in these lines; the answer is what it cost."""
        lines = group.lines
        commas = list(map(bytes.count, lines, repeat(b",")))
        # Where every word is known, every line is a sequence, and its words are too short for it to be too long.
        if lines and max(commas) < MAX_SEQUENCE:
            words = _words(b",".join(lines))
            known = self._words.issuperset(words)
            if known or self._learn(set(words) - self._words):
                self._count(len(lines), min(commas) + 1)
                return 1 if known else _GROUPS_AT_ONCE
        for at, line in enumerate(lines, start=group.number):
            self._add_line(at, line)
        return _GROUPS_AT_ONCE if lines else 1

    def _add_line(self, number: int, line: bytes) -> None:
        words = _words(line)
        if len(words) <= MAX_SEQUENCE and self._words.issuperset(words):
            self._count(1, len(words))
            return
        try:
            sequence = parse_line(line)
        except ValueError as error:
            self._malformed += 1
            if len(self._problems) < MAX_PROBLEMS:
                self._problems.append(f"line {number}: {error}")
            return
        if sequence is not None:
            self._count(1, len(sequence))
            self.services.update(sequence)
            self._remember(words)

    def _count(self, sequences: int, shortest: int) -> None:
        self._sequences += sequences
        self._shortest = min(self._shortest, shortest)

    def _learn(self, words: set[bytes]) -> bool:
        """Remember words of which each is new, if each is a knock."""
        try:
            services = {parse_knock(word) for word in words}
        except ValueError:
            return False
        if max(map(len, words)) > _MAX_WORD:
            return False
        self.services |= services
        self._remember(words)
        return True

    def _remember(self, words: Iterable[bytes]) -> None:
        if len(self._words) > _MAX_WORDS:
            self._words.clear()
        self._words.update(word for word in words if len(word) <= _MAX_WORD)


def _words(line: bytes) -> list[bytes]:
    """What stands between the commas, without the blank that most often stands first: half as many to remember."""
    return line.removeprefix(b" ").replace(b", ", b",").split(b",")


class _Search:
    """Looks for a sequence in groups of lines; `found` is the place behind the last line that holds it."""

    def __init__(self, sequence: Sequence) -> None:
        self.found: Place | None = None
        self._sequence = sequence
        self._port = max((str(service.port).encode() for service in sequence), key=len)

    def add(self, group: _Group) -> int:
        """Look through these lines; the answer is what it cost."""
        hits = [at for at, line in enumerate(group.lines, start=1) if self._port in line]
        for at in reversed(hits):
            with suppress(ValueError):
                if parse_line(group.lines[at - 1]) == self._sequence:
                    end = group.offset + sum(map(len, group.lines[:at])) + at
                    self.found = Place(group.number + at - 1, min(end, group.end), self._sequence)
                    break
        return _GROUPS_AT_ONCE if len(hits) > _FEW_HITS else 1


# ---- files


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file, open for reading, where it is one to trust; what the system refuses then is an OnetimeError too."""
    try:
        with _descriptor(path) as descriptor:
            _check_ours(path, os.fstat(descriptor))
            yield descriptor
    except OSError as error:
        raise _not_read(path, error) from None


@contextmanager
def _descriptor(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, _OPEN | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_ours(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise _error(path, f"is {kind}", "a file of one-time sequences has a sequence a line")
    if status.st_uid not in (0, os.geteuid()):
        message = f"belongs to another user (uid {status.st_uid})"
        raise _error(path, message, f"chown {os.geteuid()} {quote(str(path))}")
    if found := [words for bit, words in _FOREIGN.items() if status.st_mode & bit]:
        message = f"can be {' and '.join(found)}, and it holds what to knock"
        raise _error(path, message, f"chmod g-w,o-rwx {quote(str(path))}")


def _not_read(path: Path, error: OSError) -> OnetimeError:
    if isinstance(error, FileNotFoundError):
        return _error(path, "does not exist", f"`logknock onetime generate {quote(str(path))}` makes one")
    if isinstance(error, PermissionError):
        return _error(path, "cannot be read: permission denied", read_hint(path), NO_PERMISSION)
    return _error(path, f"cannot be read: {error.strerror}", "name a regular file that can be read")


def _not_written(path: Path, error: OSError) -> OnetimeError:
    if isinstance(error, FileExistsError):
        hint = "name another file; sequences that were given to a client are not made anew"
        return _error(path, "is there already, and is never overwritten", hint, FAILURE)
    if isinstance(error, PermissionError):
        hint = f"run this as root, or as one who can write to {path.parent}"
        return _error(path, f"cannot be written: {error.strerror}", hint, NO_PERMISSION)
    hint = _WRITE_HINTS.get(error.errno or 0, "name a file in another directory")
    return _error(path, f"cannot be written: {error.strerror}", hint.format(folder=path.parent), FAILURE)


def _error(path: Path, message: str, hint: str, exit_code: int = BAD_CONFIG) -> OnetimeError:
    return OnetimeError(printable(f"{path}: {message}"), printable(hint), exit_code)


def _told(problems: Collection[str], count: int) -> tuple[str, ...]:
    """The first problems, and how many there are besides."""
    first = tuple(problems)[:MAX_PROBLEMS]
    more = count - len(first)
    return (*first, f"{more:,} more malformed {'line' if more == 1 else 'lines'}") if more else first
