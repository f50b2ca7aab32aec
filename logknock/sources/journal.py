"""Packets from a systemd journal: of this host, or another by its path.

Rule 1: only what the kernel itself said counts (T22). The journal is asked for entries with `_TRANSPORT=kernel`, which
journald alone can write, `SYSLOG_FACILITY=0`, which the kernel refuses to whoever writes to /dev/kmsg, and
`SYSLOG_IDENTIFIER=kernel`. A match holds if *one* value of a field is right; of what journald takes from /dev/kmsg
each of the three has just one. Rule 2: an entry is read once: by its place in the journal, and never if it is not
newer than what was read of its boot (T28). Rule 3: a packet's time is when it came in, not when journald got to it
(T29). Rule 4: nothing that a journal holds, or that happens to its files, raises out of read().

Source: systemd.journal-fields(7), sd-journal(3), src/journal/journald-kmsg.c of systemd 252 to 257.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import NO_PERMISSION, UNAVAILABLE, UNSEEN_PACKAGES, SourceError
from ..packet import Packet
from ..records import MAX_LINE, Grammar
from ..stamps import MAX_BOOTS, KernelClock
from ..trusted_files import Untrusted, check_trusted

if TYPE_CHECKING:
    from systemd import journal

# The journal's descriptor says that something came 50-150 ms after it did; looking costs a microsecond.
_INTERVAL = 0.010

# One read() returns after so many seconds, so that timers and signals have their turn.
_READ_SECONDS = 0.002

# What a kernel's record is, and, because it says what is missing, journald's word on records that it lost.
_KERNEL = ("_TRANSPORT=kernel", "SYSLOG_IDENTIFIER=kernel", "SYSLOG_FACILITY=0")
_MISSED_ID = "e9bf28e6e834481bb6f48f548ad13606"  # SD_MESSAGE_JOURNAL_MISSED, sd-messages.h
_MISSED = ("_TRANSPORT=driver", f"MESSAGE_ID={_MISSED_ID}")
_MISSED_WORDS = re.compile(rb"Missed (\d{1,18}) kernel messages")

# A longer field is cut (and then is no record); it bounds what a compressed one can grow to.
_FIELD_BYTES = MAX_LINE + 64

# How many of the newest entries are looked at on opening, to know how long journald usually takes.
_PRIMING = 64

# The journal's files are opened anew, at the same place, when they changed, when nobody looked for so long that the
# kernel may have dropped what it had to say about files, and once in a while in any case: libsystemd forgets a file
# that it could not read once, and does not see a directory that was not there when it was opened. It takes 0.2 ms.
_STALLED = 5.0
_REFRESH = 60.0
_TRY_AGAIN = 1.0

# The same thing is told once in so many seconds.
_TELL_AGAIN = 60.0

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ROOTS = (Path("/run/log/journal"), Path("/var/log/journal"))
_INVALIDATE = 2  # SD_JOURNAL_INVALIDATE, sd-journal.h

_INSTALL = f"install python3-systemd{UNSEEN_PACKAGES}"
_MEMBER = "run as root, or as a member of the group systemd-journal or adm"
_NO_JOURNAL = 'is systemd-journald running? if not, [log] source = "nflog" or "file" needs no journal'
_OTHER = "[log] journal.path is a journal's directory, or one of its files"
_VERIFY = "`journalctl --verify` tells what is damaged"

Receive = Callable[[Packet], None]


class _Entry(NamedTuple):
    """What an entry says about itself, times in us; `source` None: it is not a record of the kernel's."""

    boot: bytes
    realtime: int
    monotonic: int
    source: int | None


class _Trouble:
    """Something that went wrong, how often since it was told, and when that was."""

    def __init__(self) -> None:
        self.count = 0
        self._told = -_TELL_AGAIN

    def tell(self, what: str, now: float) -> str:
        """The line to tell now, or nothing."""
        if not self.count or now - self._told < _TELL_AGAIN:
            return ""
        times, self.count, self._told = self.count, 0, now
        return what if times == 1 else f"{what} ({times} times)"


class Journal:
    """A journal from now on. `read()` each `interval` seconds, `settle()` once a second; close() when done.

    A directory is read file by file, each beside the file that is written to with those that it was before rotations.
    What libsystemd makes of a directory is one sequence by time, and in that it passes over what one host's journal
    tells later than another's.
    """

    interval = _INTERVAL

    def __init__(self, grammar: Grammar, path: Path | None = None) -> None:
        """Raises SourceError if there is no journal, or it may not be read, or others could have written it (T31)."""
        self.grammar = grammar
        self.name = _name(path)
        self.records = self.lost = self.ignored = 0
        self._path = path
        self._clock = KernelClock()
        self._troubles: dict[str, _Trouble] = {}
        self._places: list[_Place] = []
        self._unopened: SourceError | None = None  # why a file could not be opened
        self.trouble = ""  # why a file that was open is not read, as of the last settle()
        self._meet_files()
        if not self._places or isinstance(self._unopened, Untrusted):
            self.close()
            raise self._unopened or _nothing(path)
        for place in self._places:
            for entry in place.start_at_end():
                self._time(entry)
        self._looked = time.monotonic()

    def fileno(self) -> int:
        """No descriptor to wait for: the journal's own says so too late."""
        return -1

    def watch(self, wake: Callable[[], None]) -> None:
        """Nothing wakes; who reads looks each `interval` seconds."""

    def close(self) -> None:
        """Let go of the journal's files."""
        for place in self._places:
            place.close()

    def read(self, now: float, receive: Receive) -> bool:
        """Hand over the packets of what has come, for 2 ms at most; whether there is more. Never blocks.

        Each packet's time is that of its coming, whatever `now` is.
        """
        before, self._looked = self._looked, time.monotonic()
        end = self._looked + _READ_SECONDS
        for number, place in enumerate(self._places):
            try:
                if self._looked - before > _STALLED:
                    place.refresh(at_once=True)
                for entry in place.entries(end):
                    self._take(place, entry, receive)
            except OSError as error:
                self._trouble(f"{self.name} cannot be read further: {_words(error)}; it will be opened anew")
            except SourceError as error:
                self._trouble(error.message)
            if time.monotonic() > end:
                self._places = self._places[number + 1 :] + self._places[: number + 1]  # others first, next time
                return True
        return False

    def settle(self) -> tuple[str, ...]:
        """Open files anew where that is due, and those that have come; what there is to tell."""
        self.trouble = ""
        for place in self._places:
            try:
                place.refresh()
            except SourceError as error:
                self.trouble = error.message
                self._trouble(error.message)
        self._meet_files()
        now = time.monotonic()
        told = [trouble.tell(what, now) for what, trouble in self._troubles.items()]
        return tuple(line for line in told if line)

    def _meet_files(self) -> None:
        """Open what is not open yet, to be read from its first entry."""
        known = {place.file for place in self._places}
        for file in _families(self._path):
            if file not in known:
                try:
                    self._places.append(_Place(file))
                except SourceError as error:
                    if not isinstance(self._unopened, Untrusted):
                        self._unopened = error
                    self._trouble(error.message)

    def _take(self, place: "_Place", entry: _Entry, receive: Receive) -> None:
        """Count one entry, and hand over its packet if it has one."""
        try:
            message = place.field("MESSAGE")
        except OSError as error:
            message = b""
            self._trouble(f"{self.name} has an entry that cannot be read: {_words(error)}")
        if entry.source is None:
            found = _MISSED_WORDS.match(message)
            self.lost += int(found[1]) if found else 0
            return
        self.records += 1
        packet = self.grammar.from_kernel(message, self._time(entry))
        if packet is None:
            self.ignored += 1
        else:
            receive(packet)

    def _time(self, entry: _Entry) -> float:
        if entry.source is None:
            return entry.realtime / 1_000_000
        return self._clock.time(entry.boot, entry.realtime, entry.monotonic, entry.source)

    def _trouble(self, what: str) -> None:
        self._troubles.setdefault(what, _Trouble()).count += 1


class _Place:
    """Where in a journal we stand: in that of this host, or in one file and what was it before rotations."""

    def __init__(self, file: Path | None) -> None:
        """Before the first entry. `file`: the one that is written to; None: this host's journal. Raises SourceError."""
        self.file = file
        # Of this host's journal this boot's entries count, from now on; of others we know neither.
        self._only: bytes | None = None
        self._seen: dict[bytes, int] = {}  # by boot: the monotonic time of the newest entry read, in us
        if file is None:
            self._only = bytes.fromhex(_BOOT_ID.read_text("ascii").replace("-", ""))
            self._seen[self._only] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._cursor = ""
        self._resumed = False  # whether what is read next may have been read before
        self._changed = self._broken = False
        self._inode = _inode(file)
        self._reader = _open(file)
        self._reader.seek_head()
        self._opened = time.monotonic() - hash(file) % _REFRESH  # so that many are not due at once
        self._usage = self._reader.get_usage()

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()

    def start_at_end(self) -> Sequence[_Entry]:
        """Stand behind the newest entry; the last few, oldest first."""
        newest: list[_Entry] = []
        with contextlib.suppress(OSError):  # what cannot be read now is told when it is read
            self._reader.seek_tail()
            while len(newest) < _PRIMING and self._reader._previous():
                newest.append(_entry(self._reader))
                self._cursor = self._cursor or self._reader._get_cursor()
        newest.reverse()
        for entry in newest:
            if self._only in (None, entry.boot):
                self._seen[entry.boot] = entry.monotonic
        self._resume()
        return newest

    def entries(self, end: float) -> Iterator[_Entry]:
        """What has come, each entry once, until `end` (by time.monotonic). Raises OSError, SourceError."""
        if self._broken:
            return
        reader, took = self._reader, False
        try:
            replaced = self._notice_changes()
            while more := reader._next():
                took = True
                entry = _entry(reader)
                if self._is_new(entry):
                    yield entry
                if time.monotonic() > end:
                    break
            if took:
                self._cursor = reader._get_cursor()
        except OSError:
            self._broken = True
            raise
        # It had been replaced when we looked, and now is read to its end: nothing can come into it any more.
        if replaced and not more and time.monotonic() - self._opened > _TRY_AGAIN:
            self.refresh(at_once=True)

    def field(self, name: str) -> bytes:
        """A field of the entry that was yielded last; nothing if it has none. Raises OSError."""
        try:
            value: bytes = self._reader._get(name)
        except KeyError:
            return b""
        return value

    def refresh(self, *, at_once: bool = False) -> None:
        """Open the files anew if that is due, and stand where we stood.

        Raises SourceError; those that are open stay so, until the next second, unless others could have written them.
        """
        now = time.monotonic()
        if not (at_once or self._changed or self._broken or self._lacks_a_file() or now - self._opened >= _REFRESH):
            return
        self._opened, self._changed = now, True
        inode = _inode(self.file)
        try:
            reader = _open(self.file)
        except Untrusted:  # nor is what is open any more
            self._broken = True
            raise
        self._reader.close()
        self._reader, self._inode = reader, inode
        self._changed = self._broken = False
        try:
            self._usage = reader.get_usage()
            self._resume()
        except OSError as error:
            self._broken = True
            raise _unreadable(self.file, error) from error

    def _lacks_a_file(self) -> bool:
        """Whether libsystemd has given up a file, which it does in silence when it stumbles over an entry.

        Of this host's journal it takes it up again with the next entry that is written, of a file by its path never.
        """
        try:
            return bool(self._reader.get_usage() < self._usage)
        except OSError:
            return True

    def _resume(self) -> None:
        """Stand behind the entry of the cursor, or where it would be; without a cursor before the first entry."""
        self._resumed = True
        if not self._cursor:
            self._reader.seek_head()
            return
        self._reader.seek_cursor(self._cursor)
        if self._reader._next() and self._reader.test_cursor(self._cursor):
            self._resumed = False
            return
        self._reader.seek_cursor(self._cursor)

    def _notice_changes(self) -> bool:
        """Have libsystemd take notice of files that came or went; whether the file has been replaced by another."""
        if self.file is None:
            self._changed = self._reader.process() == _INVALIDATE or self._changed
            return False
        inode = _inode(self.file)
        return inode is not None and inode != self._inode

    def _is_new(self, entry: _Entry) -> bool:
        """Whether the entry was not read yet, and is not from before the opening."""
        if self._only is not None and entry.boot != self._only:
            return False
        last = self._seen.get(entry.boot)
        if last is None:
            if len(self._seen) >= MAX_BOOTS:
                del self._seen[next(iter(self._seen))]
        elif entry.monotonic < last or (entry.monotonic == last and self._resumed):
            return False
        self._resumed = False
        self._seen[entry.boot] = entry.monotonic
        return True


def entries(grammar: Grammar, path: Path | None, since: float | None) -> Iterator[Packet | None]:
    """Each kernel record of a journal, oldest first, of all its boots: its packet, or None if it holds none.

    `since`: seconds since the epoch; what journald wrote before is left out. Raises SourceError.
    """
    if path is not None and os.path.isdir(path):
        reader = _with_matches(lambda journal: journal.Reader(path=str(path)), path)
    else:
        reader = _with_matches(lambda journal: _reader_of(journal, path, siblings=False), path)
    clock = KernelClock()
    start = int((since or 0.0) * 1_000_000)
    try:
        reader.seek_realtime(start)
        while reader._next():
            entry = _entry(reader)
            if entry.source is None or entry.realtime < start:
                continue
            at = clock.time(entry.boot, entry.realtime, entry.monotonic, entry.source)
            try:
                message = reader._get("MESSAGE")
            except (OSError, KeyError):
                yield None
                continue
            yield grammar.from_kernel(message, at)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        reader.close()


def _entry(reader: "journal.Reader") -> _Entry:
    """The entry that the reader stands at. Raises OSError."""
    monotonic, boot = reader._get_monotonic()
    try:
        text = reader._get("_SOURCE_MONOTONIC_TIMESTAMP")
    except (KeyError, OSError):
        text = b""
    source = int(text) if text.isdigit() and len(text) < 19 else None
    return _Entry(boot, reader._get_realtime(), monotonic, source)


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def _name(path: Path | None) -> str:
    return "the journal" if path is None else f"the journal {path}"


# ---- files


def _families(path: Path | None) -> Iterable[Path | None]:
    """The files that are written to, in a directory and the directories in it; None stands for this host's journal."""
    if path is None or not os.path.isdir(path):
        return (path,)
    stems = {file.with_name(file.name.partition("@")[0].removesuffix(".journal")) for file in _files(path)}
    # The kernel's entries are never in the journals that journald splits off for users.
    return sorted(stem.with_name(f"{stem.name}.journal") for stem in stems if not stem.name.startswith("user-"))


def _files(root: Path) -> list[Path]:
    return [file for folder in _folders(root) for file in _listed(folder) if file.name.endswith(".journal")]


def _folders(root: Path) -> list[Path]:
    """A journal's folder, and those in it: one a host."""
    return [folder for folder in (root, *_listed(root)) if os.path.isdir(folder)]


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _inode(file: Path | None) -> tuple[int, int] | None:
    """Which file it is, if there is one."""
    try:
        state = file.stat() if file else None
    except OSError:
        return None
    return (state.st_dev, state.st_ino) if state else None


def _open(file: Path | None) -> "journal.Reader":
    """A reader of this host's journal, or of a file and what was it before rotations. Raises SourceError (T31)."""
    if file is not None:
        _check_trusted(file)
        for one in _older(file):
            _check_trusted(one)
    return _with_matches(lambda journal: _reader_of(journal, file, siblings=True), file)


def _with_matches(make: "Callable[[Any], journal.Reader]", path: Path | None) -> "journal.Reader":
    """A reader that is made by `make`, of the entries that matter. Raises SourceError."""
    try:
        from systemd import journal
    except ImportError as error:
        raise SourceError("the journal cannot be read: there is no python3-systemd", _INSTALL, UNAVAILABLE) from error
    try:
        reader = make(journal)
        if not reader.get_usage():
            reader.close()
            raise _nothing(path)
        reader.data_threshold = _FIELD_BYTES
        for match in _KERNEL:
            reader.add_match(match)
        reader.add_disjunction()
        for match in _MISSED:
            reader.add_match(match)
    except OSError as error:
        raise _unreadable(path, error) from error
    return reader


def _reader_of(journal: Any, file: Path | None, *, siblings: bool) -> "journal.Reader":
    """A reader of this host's journal, or of a file. Raises OSError."""
    if file is None:
        reader = journal.Reader(journal.SYSTEM | journal.LOCAL_ONLY)
        reader.fileno()  # from here on process() tells of files that come and go
        return reader
    older = [str(one) for one in _older(file)] if siblings else []
    try:
        return journal.Reader(files=[str(file), *older])
    except OSError:
        if not older:
            raise
        return journal.Reader(files=[str(file)])  # one of the older is damaged, or was deleted just now


def _older(file: Path) -> list[Path]:
    """What was the file before rotations."""
    of_old = file.name.removesuffix(".journal") + "@"
    return [one for one in _listed(file.parent) if one.name.startswith(of_old)]


def _check_trusted(path: Path) -> None:
    """Raises Untrusted (T31); SourceError where that cannot be known. What is not there is told of when it is read."""
    try:
        check_trusted(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(path, error) from error


def _nothing(path: Path | None) -> SourceError:
    """Why no file could be opened."""
    roots = _ROOTS if path is None else (path,)
    where = _name(path)
    if any(_forbidden(root) for root in roots):
        return SourceError(f"{where} cannot be read: Permission denied", _MEMBER, NO_PERMISSION)
    if any(_files(root) for root in roots):
        return SourceError(f"{where} cannot be read: no file of it is whole", _VERIFY, UNAVAILABLE)
    if path is None:
        return SourceError(f"this host has no journal in {_ROOTS[0]} or {_ROOTS[1]}", _NO_JOURNAL, UNAVAILABLE)
    return SourceError(f"{path} holds no journal", _OTHER, UNAVAILABLE)


def _unreadable(path: Path | None, error: OSError) -> SourceError:
    where = _name(path)
    if isinstance(error, PermissionError):
        return SourceError(f"{where} cannot be read: {_words(error)}", _MEMBER, NO_PERMISSION)
    if path is not None and os.path.isfile(path):
        return SourceError(f"{path} is no journal, or damaged: {_words(error)}", _VERIFY, UNAVAILABLE)
    return SourceError(f"{where} cannot be read: {_words(error)}", _OTHER if path else _NO_JOURNAL, UNAVAILABLE)


def _forbidden(root: Path) -> bool:
    """Whether a journal's folder, or one in it, or a file there, may not be read by us."""
    closed = any(not os.access(folder, os.R_OK | os.X_OK) for folder in _folders(root))
    return closed or any(not os.access(file, os.R_OK) for file in _files(root))
