"""Packets from a log file, followed through every rotation.

Rule 1: what a line says is the grammar's; here is only which bytes are lines, each once and in order. Rule 2: nothing
blocks, and one read is about 2 ms of work, whatever stands under the name and however much is in it. Rule 3: a file
that others than root, the log daemon and this process's own user could have written, or put where it is, is not read
(T31). Rule 4: what cannot be read, or cannot be known to have been read, is counted or told, never passed over.

How a file is followed. Watchdog wakes, stat decides: under the name stands the open file, another one, or none. The
open file is read to its end; another takes its place only once somebody has written to that one, since until then
the log daemon may still write to the old one. A file that was cut (copytruncate) is known by its size, or by the bytes
before the position; what was not read of it yet is read from the copy, if that is there. A file that begins with what
was read, by its inode or by those bytes, is read on and not once more.

Looks come each second at least, and rotations hours apart: of several rotations between two looks only the last file
is read, and the loss is told. One thing nobody can know of: what was written to an empty file that was cut again
before the next look.

What a text file cannot prove: that a line in it came from the kernel. NFLOG and the journal can.
"""

import errno
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..errors import NO_PERMISSION, UNAVAILABLE, SourceError
from ..lines import CHUNK, Reading, Splitter, Told
from ..packet import Packet
from ..records import Grammar
from ..stamps import Dates
from ..trusted_files import Untrusted, open_trusted, trust

# How many bytes before the position are compared to see whether a file is still what it was. A line's date and
# packet are in them, so that two logs that agree here are one.
_TAIL = 128

# How often to look, in seconds, where nothing wakes: 10 ms late in the median, and about 1 % of a core.
_POLL = 0.02

# A name under which no file stands is told at this settle() in a row: a rotation takes less than two.
_MISSING_AFTER = 3

# So many new files stay open until somebody writes to one, so many that were read are remembered, and of so many that
# were rotated away the time is looked at: each rotation makes one.
_MAX_FILES = 16

# How much older a later file may seem, in nanoseconds: two ticks of the kernel's coarse clock.
_TICK = 20_000_000

# What logrotate appends to a name: `.1`, or with dateext and a dateformat `-20261121`, `-2026112110`, `.2026-11-21`.
_NUMBERED = re.compile(r"\.(\d{1,4})")
_DATED = re.compile(r"[-.]\d{4}[-_.]?\d\d[-_.]?\d\d[-_.T\d]*")
_COMPRESSED = re.compile(r"\.(?:gz|xz|bz2|zst|lz4|Z)$")

# Events of watchdog that mean a change; newer ones also tell of opening and closing, our own included.
_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})

_CUT = "truncated {n} times, and no copy found: what was written just before is lost, if anything was"
_GONE = (
    "replaced {n} times by a new file, and the old one is gone: what stood in others between them is lost, if any did"
)
_MISSED = "rotated {n} times more before it was looked at again: what stood in the files between is lost"
_MISSING = "no such file; it is read from its beginning once it is there"
_BACK = "is read now"
_BACK_AT_END = "is read now, from its end on: what was written to it meanwhile is not"
_NO_WATCHDOG = (
    f"watchdog is not installed, so it is looked at each {_POLL * 1000:.0f} ms (hint: apt-get install python3-watchdog)"
)

Receive = Callable[[Packet], None]


class _Mark(NamedTuple):
    """How far a file was read, and the bytes before that; how many names it had then."""

    id: tuple[int, int]
    links: int
    position: int
    tail: bytes


class _Open:
    """A file that is open and trusted, and how far it is read."""

    __slots__ = ("_descriptor", "_mtime", "_tail", "cut", "position", "real", "status")

    def __init__(self, path: Path, *, at_end: bool = False) -> None:
        """At its beginning or at its end.

        Raises SourceError for what is no regular file or not to be trusted, and OSError.
        """
        self._descriptor, self.real, self.status = open_trusted(path)
        self.cut = False  # whether it was truncated, and may begin with the rest of the line before
        self._mtime = -1
        try:
            self.go_to(self.status.st_size if at_end else 0)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    @property
    def _id(self) -> tuple[int, int]:
        return self.status.st_dev, self.status.st_ino

    def is_at(self, status: os.stat_result) -> bool:
        """Whether the status is this file's."""
        return os.path.samestat(status, self.status)

    @property
    def inside(self) -> bool:
        """Whether what is read next belongs to a line that has begun before."""
        return self._tail[-1:] not in (b"", b"\n")

    def go_to(self, position: int) -> None:
        """Read from there on, which is not behind the end. Raises OSError."""
        start = max(0, position - _TAIL)
        self._tail = os.pread(self._descriptor, position - start, start)
        self.position = position

    def restart(self) -> None:
        """It was truncated: read it from its beginning."""
        self.position = 0
        self.cut = True
        self._tail = b""
        self._mtime = -1

    def proceed(self) -> bytes | None:
        """What follows, b"" if nothing does; None if what was read does not stand there any more.

        A hole, or as many NULs, is one NUL. Raises Untrusted if it is not to be trusted any more, and OSError.
        """
        before = self.status
        now = self.status = os.fstat(self._descriptor)
        if (now.st_mode, now.st_uid, now.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
            trust(self.real, now)
        if now.st_size == self.position and now.st_mtime_ns == self._mtime:
            return b""
        if now.st_size < self.position:
            return None
        tail = len(self._tail)
        data = os.pread(self._descriptor, tail + CHUNK, self.position - tail)
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

    def mark(self) -> _Mark:
        """How far it is read."""
        return _Mark(self._id, self.status.st_nlink, self.position, self._tail)

    def comes_back(self, mark: _Mark) -> bool:
        """Read on from the mark if it is of this file, or of one that is gone and that this was copied from.

        A file that keeps its name was not replaced: what has the same bytes then is no copy, however alike lines are.
        """
        replaced = not mark.links and len(mark.tail) == _TAIL
        return mark.position > 0 and (replaced or mark.id == self._id) and self.resume(mark)

    def resume(self, mark: _Mark) -> bool:
        """Read on from the mark, if what was read before it stands before it here too."""
        before = self.position, self._tail
        with suppress(OSError):
            self.go_to(mark.position)
            if self._tail == mark.tail:
                return True
        self.position, self._tail = before
        return False

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


class LogFile:
    """Whichever file stands under a name. `read()` when woken, or each `interval`; `settle()` once a second."""

    def __init__(self, path: Path, grammar: Grammar) -> None:
        """Begins at the end of what is there (T29). Raises SourceError if it cannot be read or is not trusted (T31)."""
        self.name = str(path)
        self.grammar = grammar
        self.lost = 0
        self._path = path.absolute()
        self._dates = Dates(0.0, live=True)
        self._told = Told(self.name)
        self._lines = Splitter(self._told)
        self._reading = Reading()
        self._left: deque[_Mark] = deque(maxlen=_MAX_FILES)  # files that were read, should one of them come back
        self._next: deque[_Open] = deque()  # what to read after the open file
        self._ready = False  # whether nothing more is written to the open file
        self._trouble = ""  # why what stands under the name is not read
        self._told_trouble = ""
        self._missing = 0  # how many times in a row nothing stood there
        self._back = _BACK
        self._from_end = False  # whether the next file is read from its end on
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

    @property
    def trouble(self) -> str:
        """Why what stands under the name is not read, as it was told; empty where it is."""
        return self._told_trouble

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
        self._set_dates(now)
        self._reading.hand_over(self.grammar, self._dates, receive)
        return more

    def settle(self) -> tuple[str, ...]:
        """Look again at what could not be read or watched, and give back what there is to tell."""
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
            file = _Open(self._path, at_end=True)
        except FileNotFoundError:
            self._trouble = _MISSING
            self._missing = _MISSING_AFTER  # told at once
            return None
        except OSError as error:
            raise _source_error(self.name, error) from error
        self._lines = Splitter(self._told, inside=file.inside)
        return file

    def _set_dates(self, now: float) -> None:
        """What is in the file was written before its mtime: a backlog without dates is as old as that (T29)."""
        reference = now if self._file is None else min(now, self._file.status.st_mtime)
        self._dates.reference = reference
        self._dates.uptime = time.monotonic() - (now - reference)

    def _fill(self) -> tuple[list[bytes], bool]:
        """The lines that come next, and whether there may be more."""
        if self._file is not None:
            try:
                data = self._file.proceed()
            except SourceError as error:
                return self._drop(self._file, error)
            except OSError as error:
                return self._drop(self._file, _source_error(self.name, error))
            if data is None:
                self._on_cut(self._file)
                return [], True
            if data:
                return self._lines.feed(data), True
        if self._next and self._ready:
            self._turn_to(self._next.popleft())
            return [], True
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
        self._ready = any(file.has_data() for file in self._next) or len(self._next) > _MAX_FILES
        return self._ready

    def _notice(self) -> None:
        """Open what stands under the name if it is new. Raises SourceError and OSError."""
        found = os.stat(self._path)
        last = self._next[-1] if self._next else self._file
        if last is not None and last.is_at(found):
            if self._trouble:  # something else stood there for a while
                self._trouble, self._back, self._from_end = "", _BACK, False
            return
        opened = _Open(self._path, at_end=self._from_end)
        if last is not None:
            self._tell_between(last, opened)
        self._back = _BACK_AT_END if self._from_end else _BACK
        self._next.append(opened)
        self._from_end = False
        self._trouble = ""

    def _tell_between(self, old: _Open, new: _Open) -> None:
        """Say so if files stood under the name after the old one and before the new one, or may have."""
        old_at = old.now_at()
        if old_at is None:
            self._told.count(_GONE)
        elif missed := _count_between(old_at.parent / old.real.name, old, new):
            self._told.count(_MISSED, missed)

    def _refuse(self, error: SourceError) -> None:
        """What stands under the name is not read."""
        self._trouble = error.words().removeprefix(f"{self.name}: ")
        # Whoever could write a file that was not to be trusted may have filled it, and whatever comes in its place.
        self._from_end = self._from_end or isinstance(error, Untrusted)

    def _drop(self, file: _Open, error: SourceError) -> tuple[list[bytes], bool]:
        """The open file cannot be read on, or is not to be trusted any more: go on with the next, or at an end."""
        self._left.append(file.mark())
        file.close()
        self._file = None
        self._lines = Splitter(self._told)
        from_end = self._from_end or not self._next
        self._refuse(error)
        self._from_end = from_end
        return [], bool(self._next)

    def _on_cut(self, file: _Open) -> None:
        """The file was truncated: what was not read of it comes from a copy, if there is one."""
        copy = _find_copy(file)
        file.restart()
        if copy is None:
            self._told.count(_CUT)
            self._turn_to(file)
        else:
            self._file = copy
            self._next.appendleft(file)

    def _turn_to(self, file: _Open) -> None:
        """Go on with a file when the one before is at its end."""
        if self._file is not None and self._file is not file:
            self._left.append(self._file.mark())
            self._file.close()
        if not file.position and not file.cut:
            self._resume(file)
        unfinished = self._lines.unfinished
        self.lost += unfinished
        self._lines = Splitter(self._told, inside=file.inside or (file.cut and unfinished))
        self._file = file
        self._ready = file.cut = False

    def _resume(self, file: _Open) -> None:
        """A file that comes back (renamed again, a mount that is gone, copied by an editor) is read on."""
        for mark in reversed(self._left):
            if file.comes_back(mark):
                return

    # Waking and telling

    def _watch_again(self) -> None:
        """Have the directory watched where the file stands or will stand, if it can be."""
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


# What was rotated away


def _list_rotated(path: Path) -> Iterator[list[os.DirEntry[str]]]:
    """What has been rotated away from the path, newest first: by names with numbers; by names with dates.

    Raises OSError.
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
    yield [numbered[number] for number in sorted(numbered)]
    yield [dated[suffix] for suffix in sorted(dated, reverse=True)]


def _place(entries: list[os.DirEntry[str]], file: _Open) -> int:
    """The place of a file; -1, before all, for one that is not among them."""
    return next((place for place, entry in enumerate(entries) if entry.inode() == file.status.st_ino), -1)


def _count_between(path: Path, old: _Open, new: _Open) -> int:
    """How many files were rotated away from the path after the old one and before the new one."""
    with suppress(OSError):
        for entries in _list_rotated(path):
            between = entries[_place(entries, new) + 1 : max(0, _place(entries, old))]
            # What was written last before the old one was is no newer than it, whatever its name.
            written = [entry.stat().st_mtime_ns for entry in between[-_MAX_FILES:]]
            if written and min(written) >= old.status.st_mtime_ns - _TICK:
                return len(between)
    return 0


def _find_copy(file: _Open) -> _Open | None:
    """What logrotate's copytruncate has just copied a file to, to be read on from where that was read to."""
    mark = file.mark()
    with suppress(OSError):
        for entries in _list_rotated(file.real):
            for entry in entries[_place(entries, file) + 1 :][:1]:
                if not _COMPRESSED.search(entry.name) and (copy := _open_copy(Path(entry), mark)):
                    return copy
    return None


def _open_copy(path: Path, mark: _Mark) -> _Open | None:
    """What is there if it is a copy of what was read up to the mark."""
    try:
        copy = _Open(path)
    except (OSError, SourceError):
        return None
    if copy.resume(mark):
        return copy
    copy.close()
    return None


def _source_error(name: str, error: OSError) -> SourceError:
    words = f"{name}: cannot be read: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run as root, or as a user of the group that may read it (adm, usually: see `ls -l`)"
        return SourceError(words, hint, NO_PERMISSION)
    return SourceError(words, "see whether [log] file.path names the right file", UNAVAILABLE)
