"""How far a client has used its files of one-time sequences.

Rule 1: who uses a file has a lock on its position until it is known what became of the knock, so that two at once never
send the same sequence. Rule 2: nothing is sent before the new position is on the disk, under another name; behind the
last knock, a rename makes it count. So a sequence of which a part was sent is sent again, and with a full disk nothing
is. Rule 3: a position is one small file of JSON, for each file of sequences, that a person can read and correct.

A knock may be lost on the way, and then the server is still where it was; where an answer is lost, it has gone on. It
hears only the sequence that it waits for, so that a client that is behind finds it by trying, and one that is ahead
never does. So where a run waits for an answer, the position stays at the sequence that was answered last, and counts
the tries since (`unanswered`); which sequence each of them sends is in _turn(). A refusal is no answer: it may be a
firewall's, which has heard nothing. A run that does not wait cannot know, and goes on to the next.
"""

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from .client import Knock
from .errors import FAILURE, NO_PERMISSION, LogknockError
from .knock import Service
from .onetime import Place
from .onetime_files import find_next, fits, survey

# When so many are left, it is time to make more.
FEW = 10

# The first tries: the next sequence twice, for a lost knock is what is likely; then the one answered last, since it may
# have been lost while the door was open still.
_FIRST_TURNS = (1, 1, 0)

# How long another run may have the file. The longest that makes sense, ten tries of a few seconds, is over by then.
LOCK_LIMIT = 120.0
_LOCK_POLL = 0.05

# No file is longer; what claims to be is no position.
_MAX_OFFSET = 1 << 62

# After so many tries, which take weeks, they begin anew; the last round has gone over a thousand sequences.
_MAX_UNANSWERED = 1 << 20

# A position takes some hundred bytes.
_MAX_BYTES = 65_536

_NOTHING_SENT = "; nothing was sent, since the position could not have been kept"
_ELSEWHERE = "name a directory of your own in XDG_STATE_HOME"
_HINTS = {
    errno.ELOOP: "a link is not followed: put a regular file in its place, or begin anew: rm {path}",
    errno.EISDIR: "a directory is in its place: move it away",
    errno.ENOSPC: "make room on that file system, or name another directory in XDG_STATE_HOME",
    errno.EDQUOT: "make room on that file system, or name another directory in XDG_STATE_HOME",
}

Warn = Callable[[str], object]


class _Record(NamedTuple):
    place: Place = Place()
    unanswered: int = 0


def _turn(unanswered: int) -> int:
    """Which sequence is tried after so many tries: 0 is the one answered last, 1 the next, and so on.

    After the first turns every second try is the next one, which an outage leaves the right one. Between them go rounds
    that begin at 2, each one further than the last, and end at 0. However many the server heard, it is not far ahead
    of the last round; however long it was away, the client comes back to where it waits.
    """
    if unanswered < len(_FIRST_TURNS):
        return _FIRST_TURNS[unanswered]
    at, between = divmod(unanswered - len(_FIRST_TURNS), 2)
    if between:
        return 1
    furthest = 2
    while at >= furthest:
        at -= furthest
        furthest += 1
    return 0 if at == furthest - 1 else at + 2


def state_folder() -> Path:
    """`$XDG_STATE_HOME/logknock`, by default `~/.local/state/logknock`; raises LogknockError where there is no home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # which the specification says to ignore
        home = os.path.expanduser("~")
        base = f"{home}/.local/state" if os.environ.get("HOME") != "" and os.path.isdir(home) else ""
    if not base:
        raise LogknockError("there is no home directory to keep positions in", "set HOME or XDG_STATE_HOME")
    return Path(base, "logknock")


@contextmanager
def use(path: Path, warn: Warn, *, verify: bool = False, again: bool = False) -> Iterator["Position"]:
    """The position in this file of sequences, locked until the block ends; a supply of knocks for one run.

    `verify` says that the run waits for an answer, `again` that the sequence used last is to be sent once more.
    `warn` hears what is no reason to stop. Raises LogknockError where the position cannot be read or kept.
    """
    real = Path(os.path.realpath(path))
    folder = state_folder()
    name = f"onetime-{sha256(os.fsencode(real)).hexdigest()[:16]}"
    with _lock(folder, folder / f"{name}.lock", path):
        file = _File(folder / f"{name}.json", real)
        try:
            yield Position(path, file, warn, verify=verify, again=again)
        finally:
            file.discard()


class Position:
    """The supply of a run that uses a file of one-time sequences; see runs.Supply."""

    hint = ""

    def __init__(self, path: Path, file: "_File", warn: Warn, *, verify: bool, again: bool) -> None:
        self._path = path
        self._file = file
        self._warn = warn
        self._verify = verify
        self._again = again
        self._kept = file.read()
        self._places: list[Place] = []  # the one kept, and those of the sequences behind it that were looked for
        self._now = Place()  # what was taken last

    def take(self) -> tuple[Knock, ...]:
        """The knocks of the next try; which ones, _turn() says."""
        self._now = self._place(self._choice())
        if not self._again:
            self._file.prepare(self._tried() if self._verify else _Record(self._now))
        return tuple(Knock(service) for service in self._now.last)

    def sent(self) -> None:
        """What was taken has been sent: it counts as used, or where an answer is waited for, as tried."""
        self._file.commit()
        if self._verify and not self._again:
            self._kept = self._tried()

    def answered(self) -> None:
        """What was taken was heard."""
        try:
            self._file.prepare(_Record(self._now))
            self._file.commit()
        except LogknockError as error:  # too late to undo anything: the next run sends this sequence first, in vain
            self._warn(error.message)

    def _tried(self) -> _Record:
        return self._kept._replace(unanswered=(self._kept.unanswered + 1) % _MAX_UNANSWERED)

    def _choice(self) -> int:
        tried = self._kept.unanswered > 0
        if self._again:
            if not tried and not self._kept.place.last:
                raise LogknockError(f"{self._path}: no sequence has been used yet", "leave --again out")
            return int(tried)
        if not self._verify:
            return 2 if tried else 1
        return _turn(self._kept.unanswered) or int(not self._kept.place.last)

    def _place(self, at: int) -> Place:
        """The place behind the sequence that is so many behind the one kept."""
        if at == 0:
            return self._kept.place
        if first := not self._places:
            self._kept = self._kept._replace(place=self._start())
            self._places.append(self._kept.place)
        while len(self._places) <= at and (found := self._find(self._places[-1])):
            self._places.append(found)
        if first and len(self._places) > 1:
            self._warn_if_few(self._places[-1])
        if len(self._places) <= at:
            if len(self._places) > 1 and self._verify:  # a round that would go beyond the end
                return self._places[1]
            hint = "make a new file (logknock onetime generate) and put it in place here and on the host"
            raise LogknockError(f"{self._path}: no sequence is left", hint)
        return self._places[at]

    def _start(self) -> Place:
        """Where to look for the next one; a file that was edited may have the sequence used last elsewhere."""
        place = self._kept.place
        if fits(self._path, place):
            return place
        *_, found = survey(self._path, place, place.last)
        if found.found is None:
            message = (
                f"{self._path}: the sequence used last, {_text(place)} on line {place.line}, is not there any more"
            )
            hint = (
                f"for a new file, begin at its first line: rm {quote(str(self._file.path))}; else put the old one back"
            )
            raise LogknockError(message, hint)
        self._warn(f"{self._path} was edited: the sequence used last is on line {found.found.line} now")
        return found.found

    def _find(self, place: Place, *, quiet: bool = False) -> Place | None:
        """The place behind the next sequence, if there is one."""
        while True:
            found = find_next(self._path, place)
            for problem in () if quiet else found.problems:
                self._warn(f"{self._path}: {problem}: passed over")
            if found.sequence is not None:
                return found.place
            if found.ended:
                return None
            place = found.place

    def _warn_if_few(self, place: Place) -> None:
        left = 0
        while left < FEW and (after := self._find(place, quiet=True)):
            left, place = left + 1, after
        if left < FEW:
            self._warn(
                f"{self._path}: {left or 'no'} {'sequence is' if left == 1 else 'sequences are'} left after this"
            )


def _text(place: Place) -> str:
    return ",".join(map(str, place.last))


# ---- on the disk


class _File:
    """The file of a position: read, then written in two steps, of which the second cannot run out of space."""

    def __init__(self, path: Path, sequences: Path) -> None:
        self.path = path
        self._sequences = sequences
        self._new = path.with_suffix(".new")
        self._prepared = False

    def read(self) -> _Record:
        """What was kept; the beginning of the file where nothing was."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as stream:
                _refuse_foreign(os.fstat(descriptor), self.path)
                return _parse(stream.read(_MAX_BYTES))
        except FileNotFoundError:
            return _Record()
        except OSError as error:
            raise _cannot("read", self.path, error) from None
        except (ValueError, RecursionError):
            hint = f"correct it, or begin again with the first sequence: rm {quote(str(self.path))}"
            raise LogknockError(f"{self.path} holds no position in {self._sequences}", hint) from None

    def prepare(self, record: _Record) -> None:
        """Write the record under another name, so that it is on the disk."""
        data = {
            "file": os.fsencode(self._sequences).decode(errors="replace"),
            "line": record.place.line,
            "offset": record.place.offset,
            "last": [str(service) for service in record.place.last],
            "unanswered": record.unanswered,
        }
        try:
            with suppress(FileNotFoundError):
                self._new.unlink()
            descriptor = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(data, indent=2) + "\n")
                stream.flush()
                os.fsync(descriptor)
            self._prepared = True
        except OSError as error:
            raise _cannot("written", self._new, error) from None

    def commit(self) -> None:
        """Make what was prepared count; nothing where that was done."""
        if not self._prepared:
            return
        try:
            os.replace(self._new, self.path)
            self._prepared = False
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            message = f"{self.path} cannot be written: {error.strerror}"
            raise LogknockError(message, "the knock was sent: the next one will be the same") from None

    def discard(self) -> None:
        """Leave nothing behind of what was prepared in vain."""
        with suppress(OSError):
            self._new.unlink()


def _parse(data: bytes) -> _Record:
    """The record that the JSON says; raises ValueError or RecursionError."""
    match json.loads(data):
        case {"line": int(line), "offset": int(offset), "last": [*words], "unanswered": int(unanswered)}:
            words_only = all(isinstance(word, str) for word in words)
            if line >= 0 and 0 <= offset < _MAX_OFFSET and 0 <= unanswered < _MAX_UNANSWERED and words_only:
                return _Record(Place(line, offset, tuple(map(Service.parse, words))), unanswered)
    raise ValueError


@contextmanager
def _lock(folder: Path, path: Path, sequences: Path) -> Iterator[None]:
    """Have the lock; make its folder where it is not there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_foreign(os.stat(folder), folder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _cannot("written", path if folder.is_dir() else folder, error) from None
    try:
        _wait(descriptor, sequences)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, sequences: Path) -> None:
    end = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                message = f"{sequences}: another logknock has been using it for {LOCK_LIMIT:.0f} s"
                raise LogknockError(message, "see `pgrep -a logknock`; nothing was sent") from None
            time.sleep(_LOCK_POLL)
        except OSError as error:
            raise _cannot("locked", sequences, error) from None


def _refuse_foreign(status: os.stat_result, path: Path) -> None:
    """Whoever can write here decides what is sent next."""
    if status.st_uid not in (0, os.geteuid()):
        hint = f"chown {os.geteuid()} {quote(str(path))}, or name another directory in XDG_STATE_HOME"
        raise LogknockError(f"{path} belongs to another user (uid {status.st_uid})", hint, NO_PERMISSION)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LogknockError(f"{path} can be written by others", f"chmod go-w {quote(str(path))}", NO_PERMISSION)


def _cannot(done: str, path: Path, error: OSError) -> LogknockError:
    code = NO_PERMISSION if isinstance(error, PermissionError) else FAILURE
    hint = _HINTS.get(error.errno or 0, _ELSEWHERE).format(path=quote(str(path)))
    return LogknockError(f"{path} cannot be {done}: {error.strerror}", hint + _NOTHING_SENT, code)
