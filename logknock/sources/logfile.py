"""Packets from text: a log file that is followed through every rotation, and a pipe on standard input.

Rule 1: what a line says is the grammar's; here is only which bytes are lines, each once and in order. Rule 2: nothing
blocks, and one read is about 2 ms of work, whatever stands under the name and however much is in it. Rule 3: a file
that others than root, the log daemon and this process's own user could have written, or put where it is, is not read
(T31). Rule 4: what cannot be read, or cannot be known to have been read, is counted and told, never passed over.

How a file is followed. Watchdog wakes, stat decides: under the name stands the open file, another one, or none. The
open file is read to its end; another takes its place only once somebody has written to that one, since until then
the log daemon may still write to the old one. Files that were rotated away between two looks are found by the name
that the old one has got since, and are read in between. A file that was cut (copytruncate) is known by its size, or
by the bytes before the position; what was not read of it yet is read from the copy, if that is there.

What a text file cannot prove: that a line in it came from the kernel. NFLOG and the journal can.
"""

import errno
import grp
import os
import pwd
import re
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, NamedTuple, cast

from ..errors import NO_PERMISSION, UNAVAILABLE, SourceError
from ..packet import Packet
from ..records import MAX_LINE, Grammar
from ..stamps import Dates

# One read: about 2 ms of work. A line costs some microseconds; 64 KiB are about 300 of them.
_CHUNK = 65_536
_LINES_PER_READ = 256

# How many bytes before the position are compared to see whether a file is still what it was. A line's date and
# packet are in them, so that two logs that agree here are one.
_TAIL = 128

# How often to look, in seconds, where nothing wakes: 10 ms late in the median, and about 1 % of a core.
_POLL = 0.02

# The same thing is told at most so often, in seconds.
_TELL_EVERY = 60.0

# A name under which no file stands is told at this settle() in a row: a rotation takes less than two.
_MISSING_AFTER = 3

# Files that were rotated away between two looks are read up to this many; more mean that names deceive.
_MAX_BETWEEN = 16

# How much older than what it was copied from a copy may seem, in nanoseconds: two ticks of the kernel's coarse clock.
_TICK = 20_000_000

# Links to follow on the way to a file, as the kernel does (path_resolution(7)).
_MAX_LINKS = 40

# Who may write a log, beside root and the process's own user: the users and groups that rsyslog (on Ubuntu, where the
# group may write /var/log) and ulogd2 run as. Not adm: its members are persons, who may read logs and not make them.
_LOG_DAEMONS = ("syslog", "ulog")
_MAX_SYSTEM_ID = 999  # login.defs(5): whoever has a higher number is no daemon, whatever the name

_ACCESS_LIST = "system.posix_acl_access"

# What logrotate appends to a name: `.1`, or with dateext and a dateformat `-20261121`, `-2026112110`, `.2026-11-21`.
_NUMBERED = re.compile(r"\.(\d{1,4})")
_DATED = re.compile(r"[-.]\d{4}[-_.]?\d\d[-_.]?\d\d[-_.T\d]*")

_MAX_RANK = 10_000  # more than any of these numbers
_COMPRESSED = re.compile(r"\.(?:gz|xz|bz2|zst|lz4|Z)$")

# How often to list what was rotated, until the names hold still.
_TRIES = 5

# Events of watchdog that mean a change; newer ones also tell of opening and closing, our own included.
_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_OVERLONG = f"skipped {{n}} bytes of lines longer than any record ({MAX_LINE} bytes)"
_HALF = "not read: {n} unfinished lines at the end of what was rotated away"
_CUT = "truncated {n} times, and no copy found: what was written just before is lost, if anything was"
_GONE = (
    "replaced {n} times by a new file, and the old one is gone: what stood in others between them is lost, if any did"
)
_MISSED = "a file or more was rotated away and compressed, or made unreadable, before it was read"
_MISSING = "no such file; it is read from its beginning once it is there"
_BACK = "is read now"
_BACK_AT_END = "is read now, from its end on: what was written to it meanwhile is not"
_NO_WATCHDOG = (
    f"watchdog is not installed, so it is looked at each {_POLL * 1000:.0f} ms (hint: apt-get install python3-watchdog)"
)

Receive = Callable[[Packet], None]
Ids = frozenset[tuple[int, int]]


class _Untrusted(SourceError):  # noqa: N818 - a property of the file, as the operator reads it
    """Others could have written the file, or could put another one in its place (T31)."""


class _Told:
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


class _Lines:
    """Bytes to whole lines, with bounded memory."""

    __slots__ = ("_half", "_overlong", "_skipping", "_told")

    def __init__(self, told: _Told, *, inside: bool = False) -> None:
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
        if len(self._half) > MAX_LINE:
            self._told.count(_OVERLONG, len(self._half))
            self._half = b""
            self._skipping = self._overlong = True
        if lines and max(map(len, lines)) > MAX_LINE:
            self._told.count(_OVERLONG, sum(len(line) for line in lines if len(line) > MAX_LINE))
            lines = [line for line in lines if len(line) <= MAX_LINE]
        return lines


class _Reading:
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

    def hand_over(self, grammar: Grammar, dates: Dates, receive: Receive) -> None:
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


class _Mark(NamedTuple):
    """How far a file was read, and the bytes before that; mtime in nanoseconds, when it was looked at last."""

    id: tuple[int, int]
    mtime: int
    position: int
    tail: bytes


class _Open:
    """A file that is open and trusted, and how far it is read."""

    __slots__ = ("_descriptor", "_mtime", "_tail", "cut", "inside", "known", "position", "real", "status")

    def __init__(self, path: Path) -> None:
        """At its beginning. Raises SourceError for what is no regular file or not to be trusted, and OSError."""
        _refuse_other_kinds(path, os.stat(path))  # before it is opened: opening a device may do something
        self.real = _trusted_way(path)
        # O_NONBLOCK: what has taken its place meanwhile may be a FIFO.
        self._descriptor = os.open(self.real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.position = 0
        self.inside = False  # whether what is read first belongs to a line whose beginning is not known
        self.cut = False  # whether it was truncated, and may begin with the rest of the line before
        self.known: Ids | None = None  # what had been rotated away when it was found; None for what is a copy itself
        self._tail = b""
        self._mtime = -1
        try:
            self.status = os.fstat(self._descriptor)
            _refuse_other_kinds(path, self.status)
            _trust(path, self.status)
        except (OSError, SourceError):
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    @property
    def id(self) -> tuple[int, int]:
        """What no other file has while this is open."""
        return self.status.st_dev, self.status.st_ino

    def is_at(self, status: os.stat_result) -> bool:
        """Whether the status is this file's."""
        return os.path.samestat(status, self.status)

    def go_to(self, position: int) -> None:
        """Read from there on, which is not behind the end. Raises OSError."""
        start = max(0, position - _TAIL)
        self._tail = os.pread(self._descriptor, position - start, start)
        self.position = position

    def go_to_end(self) -> None:
        """Read only what is written from now on. Raises OSError."""
        self.go_to(self.status.st_size)
        self.inside = self._tail[-1:] not in (b"", b"\n")

    def restart(self) -> None:
        """It was truncated: read it from its beginning."""
        self.position = 0
        self.cut = True
        self._tail = b""
        self._mtime = -1

    def proceed(self) -> bytes | None:
        """What follows, b"" if nothing does; None if what was read does not stand there any more.

        A hole, or as many NULs, is one NUL. Raises _Untrusted if it is not to be trusted any more, and OSError.
        """
        before = self.status
        now = self.status = os.fstat(self._descriptor)
        if (now.st_mode, now.st_uid, now.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
            _trust(self.real, now)
        if now.st_size == self.position and now.st_mtime_ns == self._mtime:
            return b""
        if now.st_size < self.position:
            return None
        tail = len(self._tail)
        data = os.pread(self._descriptor, tail + _CHUNK, self.position - tail)
        if data[:tail] != self._tail:
            return None
        self._mtime = now.st_mtime_ns
        self.position += len(data) - tail
        self._tail = data[-_TAIL:]
        new = data[tail:]
        return new if new.strip(b"\0") else self._jump(new)

    def _jump(self, nuls: bytes) -> bytes:
        """Go on where data begins again: a file may have a hole of any size, which would take as long to read."""
        if not nuls:
            return b""
        try:
            data = os.lseek(self._descriptor, self.position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = self.status.st_size  # nothing but a hole up to the end
        if data > self.position:
            self.go_to(data)
        return b"\0"

    def mark(self) -> "_Mark":
        """How far it is read."""
        return _Mark(self.id, self._mtime, self.position, self._tail)

    def resume(self, mark: "_Mark") -> bool:
        """Read on from the mark, if what was read before it stands before it here too."""
        before = self.position, self._tail
        with suppress(OSError):
            self.go_to(mark.position)
            if self._tail == mark.tail:
                return True
        self.position, self._tail = before
        return False

    def copies(self, mark: "_Mark") -> bool:
        """Whether it is a copy of what was read up to the mark, made since; then it is read on from there."""
        return self.status.st_mtime_ns >= mark.mtime - _TICK and self.resume(mark)

    def is_before(self, other: "_Open") -> bool:
        """Whether this was written last when the other was not yet."""
        return self.status.st_mtime_ns < other.status.st_mtime_ns - _TICK

    def has_data(self) -> bool:
        """Whether there is anything in it."""
        try:
            return os.fstat(self._descriptor).st_size > 0
        except OSError:
            return True  # its turn will show why

    def now_at(self) -> Path | None:
        """Where the file is now; None if it has no name any more."""
        with suppress(OSError):
            if os.fstat(self._descriptor).st_nlink:
                path = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
                return path if path.name else None  # a mount that is gone
        return None


# Files that have been rotated away, by rank: 1 is the newest, None one that cannot be read.
Series = dict[int, _Open | None]


class LogFile:
    """Whichever file stands under a name. `read()` when woken, or each `interval`; `settle()` once a second."""

    def __init__(self, path: Path, grammar: Grammar) -> None:
        """Begins at the end of what is there (T29). Raises SourceError if it cannot be read or is not trusted (T31)."""
        self.name = str(path)
        self.grammar = grammar
        self.lost = 0
        self._path = path.absolute()
        self._dates = Dates(0.0, live=True)
        self._told = _Told(self.name)
        self._lines = _Lines(self._told)
        self._reading = _Reading()
        self._left: deque[_Mark] = deque(maxlen=_MAX_BETWEEN)  # files that were read, should one of them come back
        self._next: deque[_Open] = deque()  # what to read after the open file
        self._ready = False  # whether nothing more is written to the open file
        self._trouble = ""  # why what stands under the name is not read
        self._told_trouble = ""
        self._missing = 0  # how many times in a row nothing stood there
        self._back = _BACK
        self._from_end = False  # whether the next file is read from its end on
        self._may_open = True  # once a second: what is refused is not opened each time that somebody writes to it
        self._watch: _Watch | None = None
        self._wake: Callable[[], None] | None = None
        self._woken = False
        self._watchable = True
        self._file: _Open | None = self._open_first()

    @property
    def records(self) -> int:
        """How many lines have been read."""
        return self._reading.records

    @property
    def ignored(self) -> int:
        """How many of them held no packet that could be a knock, as most lines of a busy log."""
        return self._reading.ignored

    @property
    def interval(self) -> float:
        """How often to look, in seconds; 0.0 while watchdog wakes."""
        return 0.0 if self._watch is not None else _POLL

    def fileno(self) -> int:
        """No descriptor tells when a file has grown."""
        return -1

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from another thread, when there may be something to read."""
        self._wake = wake
        self._watch_again()

    def read(self, now: float, receive: Receive) -> bool:
        """Hand over the packets of what was written; whether more waits. `now` is in seconds since the epoch."""
        self._woken = False  # before anything is looked at: what changes from here on wakes again
        more = True
        if not self._reading:
            lines, more = self._fill()
            self._reading.put(lines)
        # What is in the file was written before its mtime, so that a backlog without dates is as old as that (T29).
        self._dates.reference = now if self._file is None else min(now, self._file.status.st_mtime)
        self._reading.hand_over(self.grammar, self._dates, receive)
        return more

    def settle(self) -> tuple[str, ...]:
        """Look again at what could not be read or watched, and give back what there is to tell."""
        self._may_open = True
        if self._wake is not None:
            self._watch_again()
            self._on_event()  # watchdog loses events silently: a look each second finds what it did not tell
        self._tell_trouble()
        return tuple(self._told.due(time.monotonic()))

    def close(self) -> None:
        """Let go of the files and of watchdog's threads."""
        self._wake = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        for file in (self._file, *self._next):
            if file is not None:
                file.close()
        self._file = None
        self._next.clear()

    def _open_first(self) -> _Open | None:
        try:
            file = _Open(self._path)
            file.go_to_end()
        except FileNotFoundError:
            self._trouble = _MISSING
            self._missing = _MISSING_AFTER  # told at once
            return None
        except OSError as error:
            raise _source_error(self.name, error) from error
        self._lines = _Lines(self._told, inside=file.inside)
        file.known = _ids_of_rotated(file.real)
        return file

    def _fill(self) -> tuple[list[bytes], bool]:
        """The lines that come next, and whether there may be more."""
        if self._file is not None:
            begun = self._file.position > 0
            try:
                data = self._file.proceed()
            except SourceError as error:
                self._drop(self._file, error)
                return [], bool(self._next)
            except OSError as error:
                self._drop(self._file, _source_error(self.name, error))
                return [], bool(self._next)
            if data is None:
                self._on_cut(self._file)
                return [], True
            if data:
                if begun or not self._was_copied(self._file):
                    return self._lines.feed(data), True
                return [], True
        if self._next and self._ready:
            return self._change(), True
        return [], self._look()

    def _look(self) -> bool:
        """At the end of the open file: see what stands under its name, and whether its turn has come."""
        try:
            self._notice()
        except FileNotFoundError:
            self._trouble = _MISSING
        except SourceError as error:
            self._refuse(error)
        except OSError as error:
            self._refuse(_source_error(self.name, error))
        # Once somebody has written to a newer file nobody writes to the open one. That is then read to its end once
        # more, since what was written to it before is there by now.
        written = any(file.has_data() for file in self._next) or len(self._next) > _MAX_BETWEEN
        self._ready = self._file is None or written
        return self._ready and bool(self._next)

    def _notice(self) -> None:
        """Open what stands under the name if it is new. Raises SourceError and OSError."""
        found = os.stat(self._path)
        last = self._next[-1] if self._next else self._file
        if last is not None and last.is_at(found):
            self._trouble = ""
            return
        if not self._may_open:
            return
        opened = _Open(self._path)
        self._back = _BACK
        if self._from_end:
            self._back = _BACK_AT_END
            opened.go_to_end()
        else:
            self._resume(opened)
            if last is not None:
                self._next += self._between(last, opened)
                if last.now_at() is None:
                    self._told.count(_GONE)
        self._next.append(opened)
        self._from_end = False
        self._trouble = ""

    def _refuse(self, error: SourceError) -> None:
        """What stands under the name is not read."""
        self._trouble = error.words().removeprefix(f"{self.name}: ")
        self._may_open = False
        # Whoever could write a file that was not to be trusted may have filled it, and whatever comes in its place.
        self._from_end = self._from_end or isinstance(error, _Untrusted)

    def _drop(self, file: _Open, error: SourceError) -> None:
        """The open file cannot be read on, or is not to be trusted any more: begin anew at the end."""
        file.close()
        self._file = None
        self._lines = _Lines(self._told)
        self._refuse(error)
        self._from_end = not self._next

    def _change(self) -> list[bytes]:
        """The next file's turn has come; lines, if it turns out that the open one has more."""
        file = self._next.popleft()
        old = self._file
        if old is not None and file.cut:
            if not file.position and file.resume(old.mark()):
                # It is not truncated yet, but was just copied: go on with it itself, in the middle of a line perhaps.
                self._file = file
                file.cut = self._ready = False
                old.close()
                return []
            # It is truncated by now, so that its copy, which may have been in the making before, is complete by now.
            with suppress(OSError, SourceError):
                if data := old.proceed():
                    self._next.appendleft(file)
                    return self._lines.feed(data)
        if not file.cut:
            file.known = _ids_of_rotated(file.real)
        if old is not None:
            # Again, since it may have been truncated, and copied, before it was begun.
            between = self._between(old, file)
            self._next.extendleft([file, *reversed(between)])
            file = self._next.popleft()
            self._left.append(old.mark())
            old.close()
        self._ready = False
        self._begin(file)
        return []

    def _begin(self, file: _Open) -> None:
        """Go on with a file when the one before is at its end."""
        if self._lines.unfinished:
            self._told.count(_HALF)
            self.lost += 1
        self._lines = _Lines(self._told, inside=file.inside or (file.cut and self._lines.unfinished))
        file.cut = False
        self._file = file

    def _on_cut(self, file: _Open) -> None:
        """The file was truncated: what was not read of it comes from a copy, if there is one."""
        known = _ids_of_rotated(file.real)
        copies = self._copies(file)
        file.restart()
        file.known = known | {copy.id for copy in copies}
        if copies:
            self._read_first(copies, file)
        else:
            self._told.count(_CUT)
            self._begin(file)

    def _was_copied(self, file: _Open) -> bool:
        """Whether a file of which nothing was read has copies since; then they come first."""
        if file.known is None:
            return False
        known = _ids_of_rotated(file.real)
        copies = self._fresh(file)
        file.known = known | {copy.id for copy in copies}
        if copies:
            file.restart()
            self._lines = _Lines(self._told)
            self._read_first(copies, file)
        return bool(copies)

    def _read_first(self, copies: list[_Open], file: _Open) -> None:
        """Go on with copies of the open file, and with the file itself after them."""
        self._file, *rest = copies
        for copy in rest:
            copy.cut = True
        self._next.extendleft([file, *reversed(rest)])
        self._ready = False

    def _copies(self, file: _Open) -> list[_Open]:
        """What logrotate's copytruncate has copied a file to since it was read last, the oldest first."""
        mark, named = file.mark(), file.now_at() is not None
        if not mark.position:
            return self._fresh(file)

        def choose(series: Series) -> list[_Open]:
            place = _rank(series, file)
            match = next((r for r in sorted(series) if r > place and (x := series[r]) and x.copies(mark)), 0)
            # Without a name the file has no place, and what is newer than its copy may be newer than itself.
            return self._part(series, place if named else match - 1, match + 1)

        return _pick(file.real, choose)

    def _fresh(self, file: _Open) -> list[_Open]:
        """What a file of which nothing is read yet was copied to since that was found, the oldest first."""
        known = file.known
        if file.now_at() is None or known is None:
            return []

        def choose(series: Series) -> list[_Open]:
            found = self._part(series, _rank(series, file), _MAX_RANK, tell=False)
            return [other for other in found if other.id not in known]

        return _pick(file.real, choose)

    def _between(self, old: _Open, new: _Open) -> list[_Open]:
        """The files that stood under the name after the old one and before the new one, the oldest first."""
        old_at = old.now_at()
        if old_at is None or new.now_at() is None:
            return []

        def choose(series: Series) -> list[_Open]:
            found = self._part(series, _rank(series, new), _rank(series, old))
            # What was written last before the old one means something else by its name.
            return [] if any(other.is_before(old) for other in found) else found

        return _pick(old_at.parent / old.real.name, choose)

    def _part(self, series: Series, after: int, before: int, *, tell: bool = True) -> list[_Open]:
        """The files of certain ranks, the oldest first; those that cannot be read are told of."""
        wanted = [rank for rank in series if after < rank < before]
        found = [file for rank in sorted(wanted, reverse=True) if (file := series[rank]) is not None]
        if tell and len(found) < len(wanted):
            self._told.count(_MISSED, len(wanted) - len(found))
        for file in found:
            if not file.position:
                self._resume(file)
        return found

    def _resume(self, file: _Open) -> None:
        """A file that comes back (renamed again, a mount that is gone) is read on, not once more."""
        for mark in self._left:
            if mark.id == file.id and file.resume(mark):
                return

    # Waking and telling

    def _watch_again(self) -> None:
        """Have the right directory watched, if it can be."""
        if self._watch is not None and not self._watch.holds():
            self._watch.close()
            self._watch = None
        if self._watch is None and self._watchable:
            try:
                self._watch = _Watch(self._path, self._on_event)
            except FileNotFoundError:
                return  # tried again: the directory may come
            except ImportError:
                self._watchable = False
                self._told.count(_NO_WATCHDOG)
            except OSError as error:
                self._watchable = False  # watchdog 2.2 leaves a descriptor behind each time that it fails
                self._told.count(f"cannot be watched, so it is looked at each {_POLL * 1000:.0f} ms: {error.strerror}")

    def _on_event(self) -> None:
        """Wake once for however many events come before the next read(); in whatever thread."""
        wake = self._wake
        if wake is not None and not self._woken:
            self._woken = True
            wake()

    def _tell_trouble(self) -> None:
        """Say once that what stands under the name is not read, and once that it is."""
        self._missing = self._missing + 1 if self._trouble == _MISSING else 0
        if self._trouble == self._told_trouble or 0 < self._missing < _MISSING_AFTER:
            return
        if self._told_trouble:
            was_told = not self._told.take_back(self._told_trouble)
            if not self._trouble and was_told:
                self._told.count(self._back)
        if self._trouble:
            self._told.take_back(self._back)
            self._told.count(self._trouble)
        self._told_trouble = self._trouble


class Pipe:
    """Standard input: a pipe, a FIFO, a socket, a terminal, or a regular file, which is read to its end."""

    def __init__(self, grammar: Grammar, descriptor: int = 0) -> None:
        """Raises SourceError if nothing can be read from it."""
        self.name = "standard input"
        self.grammar = grammar
        self.lost = 0
        self._told = _Told(self.name)
        self._lines = _Lines(self._told)
        self._reading = _Reading()
        self._ended = False
        try:
            self._descriptor, status = _take_over(descriptor)
        except OSError as error:
            hint = "start it behind a pipe: journalctl -kf -o json | logknock run"
            raise SourceError(f"{self.name}: cannot be read: {error.strerror}", hint, UNAVAILABLE) from error
        # A regular file is no live log: a record without a date is as old as the one before it (T29).
        self._live = not stat.S_ISREG(status.st_mode)
        # What `journalctl -f` and `tail -f` begin with are the last lines of the log: too old to be knocks (T29).
        self._since = time.time()
        self._dates = Dates(status.st_mtime, live=self._live)
        # An epoll within the one of whoever waits, to which the end, for ever readable, can be made to look quiet.
        self._poll = select.epoll()
        try:
            self._poll.register(self._descriptor, select.EPOLLIN)
            self._pollable = True
        except PermissionError:  # a regular file, /dev/null
            self._pollable = False

    @property
    def records(self) -> int:
        """How many lines have been read."""
        return self._reading.records

    @property
    def ignored(self) -> int:
        """How many of them held no packet that could be a knock, as most lines of a busy log."""
        return self._reading.ignored

    @property
    def interval(self) -> float:
        """How often to look, in seconds, at what nobody can wait for, until it ends."""
        return 0.0 if self._pollable or self._ended else _POLL

    def fileno(self) -> int:
        """The descriptor to wait for; -1 for a regular file."""
        return self._poll.fileno() if self._pollable else -1

    def watch(self, wake: Callable[[], None]) -> None:
        """The descriptor tells."""

    def read(self, now: float, receive: Receive) -> bool:
        """Hand over the packets of what has come; whether more waits. `now` is in seconds since the epoch."""
        if self._live:
            self._dates.reference = now
            self._dates.uptime = time.monotonic()
            self._since = min(self._since, now)  # a clock that is set back does not make it deaf
        more = True
        if not self._reading:
            more = self._fill()
        self._reading.hand_over(self.grammar, self._dates, partial(self._hand_over_new, receive))
        return more

    def _hand_over_new(self, receive: Receive, packet: Packet) -> None:
        if not self._live or packet.time >= self._since:
            receive(packet)

    def settle(self) -> tuple[str, ...]:
        """What there is to tell."""
        return tuple(self._told.due(time.monotonic()))

    def close(self) -> None:
        """Let go of our own descriptors; whoever gave us standard input keeps it."""
        if self._descriptor >= 0:
            self._poll.close()
            os.close(self._descriptor)
        self._descriptor = -1
        self._ended = True

    def _fill(self) -> bool:
        """Read some more; whether there may be more than that."""
        if self._ended:
            return False
        try:
            # Asked first, since what is not ours alone cannot be made non-blocking for us alone.
            if self._pollable and not self._poll.poll(0):
                return False
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            self._end(f"cannot be read: {error.strerror}")
            return False
        if not data:
            self._end("has ended")
            return False
        self._reading.put(self._lines.feed(data))
        return True

    def _end(self, words: str) -> None:
        """Half a line at the end is not read: a port may be cut in two."""
        self._ended = True
        if self._pollable:
            self._poll.unregister(self._descriptor)
        if self._lines.unfinished:
            self.lost += 1
            words += ", in the middle of a line, which is not read"
        self._told.count(words)


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


class _Watch:
    """Watchdog's threads, which watch the directory where a file stands."""

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        """Raises ImportError if watchdog is not installed, and OSError if the directory cannot be watched."""
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers.inotify import InotifyObserver

        class Waker(FileSystemEventHandler):
            def dispatch(self, event: FileSystemEvent) -> None:
                touched = (event.src_path, getattr(event, "dest_path", ""))
                # What is rotated away keeps the name's beginning, and may still be written to.
                if event.event_type in _CHANGES and any(str(name).startswith(target) for name in touched):
                    wake()

        self._path = path
        self._target = target = os.path.realpath(path)
        directory = os.path.dirname(target)
        self._directory = os.stat(directory)
        self._observer = cast(Any, InotifyObserver)()  # Debian 12's has no types
        self._observer.schedule(Waker(), directory)
        self._observer.start()

    def holds(self) -> bool:
        """Whether it is still this directory where the file stands or will stand."""
        try:
            same = os.path.samestat(os.stat(os.path.dirname(self._target)), self._directory)
        except OSError:
            return False
        return same and os.path.realpath(self._path) == self._target

    def close(self) -> None:
        """End the threads."""
        self._observer.stop()
        self._observer.join()


# Names


def _list_rotated(path: Path) -> list[dict[int, os.DirEntry[str]]]:
    """What has been rotated away from the path by its rank, 1 the newest: by names with numbers; by names with dates.

    The newest of them only. Raises OSError.
    """
    numbered: dict[int, os.DirEntry[str]] = {}
    dated: dict[str, os.DirEntry[str]] = {}
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if not entry.name.startswith(path.name) or not entry.is_file(follow_symlinks=False):
                continue
            suffix = _COMPRESSED.sub("", entry.name.removeprefix(path.name))
            if _NUMBERED.fullmatch(suffix):
                numbered[int(suffix[1:])] = entry
            elif _DATED.fullmatch(suffix):
                dated[suffix] = entry
    first = 0 if 0 in numbered else 1  # `start` of logrotate
    return [
        {number - first + 1: numbered[number] for number in sorted(numbered)[:_MAX_BETWEEN]},
        {rank: dated[suffix] for rank, suffix in enumerate(sorted(dated, reverse=True)[:_MAX_BETWEEN], 1)},
    ]


def _rotated(path: Path) -> list[Series]:
    """The same, open, where they can be read."""
    for _ in range(_TRIES):
        opened: list[Series] = []
        steady = False
        with suppress(OSError):
            for one in _list_rotated(path):
                opened.append({})
                for rank, entry in one.items():
                    file = opened[-1][rank] = _open_if_readable(Path(entry))
                    if file is not None:
                        file.real = path
                        if file.status.st_ino != entry.inode():
                            raise FileNotFoundError(path)
            steady = True
        if steady:
            return opened
        # logrotate is at work: what has one name now had another when it was listed.
        for series in opened:
            for file in series.values():
                if file is not None:
                    file.close()
    return []


def _open_if_readable(path: Path) -> _Open | None:
    """Raises FileNotFoundError."""
    if _COMPRESSED.search(path.name):
        return None
    try:
        return _Open(path)
    except FileNotFoundError:
        raise
    except (OSError, SourceError):
        return None


def _pick(path: Path, choose: Callable[[Series], list[_Open]]) -> list[_Open]:
    """Of what has been rotated away from the path, what `choose` returns; the rest is closed."""
    every = _rotated(path)
    found = next((found for series in every if (found := choose(series))), [])
    for series in every:
        for file in series.values():
            if file is not None and file not in found:
                file.close()
    return found


def _rank(series: Series, file: _Open) -> int:
    """The place of a file; 0, before all, for one that is not rotated."""
    return next((rank for rank, other in series.items() if other is not None and other.id == file.id), 0)


def _ids_of_rotated(path: Path) -> Ids:
    """Which files have been rotated away from the path by now."""
    with suppress(OSError):
        device = os.stat(path.parent).st_dev
        return frozenset((device, entry.inode()) for series in _list_rotated(path) for entry in series.values())
    return frozenset()


# Whom to trust (T31)


@cache
def _trusted_ids() -> tuple[frozenset[int], frozenset[int]]:
    """The users, beside the process's own, and the groups that may write logs."""
    users, groups = {0}, {0}
    for name in _LOG_DAEMONS:
        with suppress(KeyError):
            users.add(pwd.getpwnam(name).pw_uid)
        with suppress(KeyError):
            groups.add(grp.getgrnam(name).gr_gid)
    return frozenset(n for n in users if n <= _MAX_SYSTEM_ID), frozenset(n for n in groups if n <= _MAX_SYSTEM_ID)


def _trust(path: Path, status: os.stat_result) -> None:
    """Raise _Untrusted if others could have made the file, directory or link what it is."""
    users, groups = _trusted_ids()
    name, mode = quote(str(path)), status.st_mode
    if status.st_uid not in users and status.st_uid != os.geteuid():
        hint = "it must belong to root, to the log daemon (syslog, ulog) or to the user that logknock runs as"
        raise _Untrusted(f"{path}: belongs to another user (uid {status.st_uid})", hint, UNAVAILABLE)
    if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return  # in a sticky directory others can only put things of their own
    if mode & stat.S_IWOTH:
        raise _Untrusted(f"{path}: can be written by everybody", f"chmod o-w {name}", UNAVAILABLE)
    if not mode & stat.S_IWGRP:
        return
    if status.st_gid not in groups:
        raise _Untrusted(f"{path}: can be written by its group (gid {status.st_gid})", f"chmod g-w {name}", UNAVAILABLE)
    if _has_access_list(path):
        raise _Untrusted(f"{path}: can be written by whom its access list names", f"setfacl -b {name}", UNAVAILABLE)


def _has_access_list(path: Path) -> bool:
    """Whether the group's rights are those of an access list (acl(5))."""
    try:
        os.getxattr(path, _ACCESS_LIST)
    except OSError:
        return False
    return True


def _trusted_way(path: Path) -> Path:
    """Where the path leads, when every directory and link on the way can be changed by trusted users only.

    Nobody else can then change the way after it was looked at. Raises _Untrusted, and OSError.
    """
    at = Path("/")
    _trust(at, os.lstat(at))
    todo = list(reversed(path.absolute().parts[1:]))
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            at = at.parent
            continue
        at /= part
        status = os.lstat(at)
        if stat.S_ISLNK(status.st_mode):
            _trust(at, status)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = Path(os.readlink(at))
            todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            at = Path("/") if target.is_absolute() else at.parent
        elif todo:
            _trust(at, status)
    return at


def _refuse_other_kinds(path: Path, status: os.stat_result) -> None:
    """Raise SourceError for what is no regular file."""
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        hint = (
            'a FIFO can be read with [log] source = "stdin"'
            if kind == stat.S_IFIFO
            else "[log] file.path names the log"
        )
        raise SourceError(f"{path}: is {_KINDS.get(kind, 'no file')}, not a regular file", hint, UNAVAILABLE)


def _source_error(name: str, error: OSError) -> SourceError:
    words = f"{name}: cannot be read: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run as root, or as a user of the group that may read it (adm, usually: see `ls -l`)"
        return SourceError(words, hint, NO_PERMISSION)
    return SourceError(words, "see whether [log] file.path names the right file", UNAVAILABLE)


# Standard input


def _take_over(descriptor: int) -> tuple[int, os.stat_result]:
    """A descriptor of our own for what the given one reads, without blocking where that is possible. Raises OSError."""
    status = os.fstat(descriptor)
    if descriptor == 0 and sys.__stdin__ is None:
        raise OSError(errno.EBADF, "it was closed at the start")
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        # Opened again it can be non-blocking for us alone: O_NONBLOCK belongs to all who share what was opened.
        with suppress(OSError):  # a socket, or another user's terminal
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{descriptor}", flags), status
    return os.dup(descriptor), status
