"""How things stand: whether a daemon runs, which doors are open, how far the one-time files are used, what happened.

Rule 1: it changes nothing, and takes no lock: a daemon that starts meanwhile must find its own free. Rule 2: what
cannot be read is said, and the rest is answered all the same. Rule 3: which sequence counts is found as `turns` finds
it, so that both say the same. Rule 4: no sequence is in the answer.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from .clock import is_synchronised
from .errors import FAILURE, NO_PERMISSION, LogknockError
from .knock import Door, Sequence
from .onetime import Place
from .onetime_files import fits, next_turn, recover, survey
from .packet import address_text
from .standing import concerns
from .store import DATABASE, LOCK, MAX_HISTORY, Reader, StoreError, read_only
from .turns import FEW

# What may be asked for of what happened: more is not kept.
MOST_HISTORY = MAX_HISTORY

_DOORS_SHOWN = 4

_UNREAD = "how far it is used is not known: the state database cannot be read"

_T = TypeVar("_T")

# progress(file that is being read, lines or so that were read: only that it grows means anything)
Progress = Callable[[str, int], None]


class Remark(NamedTuple):
    """What somebody should know; `code` is the exit code that it is worth: 0 where it needs nobody yet."""

    text: str
    code: int = 0


class Running(NamedTuple):
    """Whether a daemon has the state directory (None: that cannot be seen), and which process it is."""

    runs: bool | None
    pid: int | None = None


class Open(NamedTuple):
    """A door that is open; `opened` is in seconds since the epoch, `left` in seconds; by: who opened it, if known.

    is_open: False where the daemon says that the firewall does not have it.
    """

    door: str
    address: str
    opened: float
    left: float
    by: str
    is_open: bool = True


class File(NamedTuple):
    """A file of one-time sequences at a door; None: not known. `next_line` counts from 1, and is None at the end."""

    door: str
    path: str
    used: int | None
    left: int | None
    next_line: int | None
    remarks: tuple[Remark, ...]


class Happened(NamedTuple):
    """An entry of the history: `event` is opened, ended or used; `wall` is in seconds since the epoch."""

    wall: float
    event: str
    door: str
    address: str
    detail: str


class Status(NamedTuple):
    """The whole answer; `history` has the latest first. remarks: about the state database; warnings: about the host."""

    running: Running
    open: tuple[Open, ...]
    files: tuple[File, ...]
    history: tuple[Happened, ...]
    remarks: tuple[Remark, ...]
    warnings: tuple[Remark, ...] = ()

    @property
    def without_database(self) -> "Status":
        """The same for one to whom the daemon answers: that the database is not theirs to read is no failure then."""
        shut = any(code == NO_PERMISSION for _, code in self.remarks)
        files = [
            file._replace(remarks=tuple(Remark(r.text) if r.text == _UNREAD else r for r in file.remarks))
            for file in self.files
        ]
        remarks = tuple(Remark(r.text) if r.code == NO_PERMISSION else r for r in self.remarks)
        return self._replace(remarks=remarks, files=tuple(files)) if shut else self

    @property
    def code(self) -> int:
        """The exit code: 0, unless something needs a person."""
        remarks = [*self.remarks, *(remark for file in self.files for remark in file.remarks)]
        return max((remark.code for remark in remarks), default=0)


def look(doors: Iterable[Door], state: Path, most: int, progress: Progress, only: str = "") -> Status:
    """How things stand with these doors, or with the one that is named; `most` entries of the history at most."""
    chosen = [door for door in doors if concerns(only, door.name)]
    with_files = [(door.name, path) for door in chosen for path in door.onetime]
    known = _recall(with_files, state, most, only, progress)
    files = tuple(_count(turn, progress) for turn in known.turns)
    return Status(find_daemon(state), known.open, files, known.history, known.remarks, _of_clock(chosen))


def timed(doors: Iterable[Door]) -> list[str]:
    """The doors that go by the clock, by the names that the configuration has for them."""
    return list(dict.fromkeys(door.name.partition(":")[0] for door in doors if door.proof))


def _of_clock(doors: Iterable[Door]) -> tuple[Remark, ...]:
    """What is wrong with the clock, where doors go by it."""
    names = timed(doors)
    if not names or is_synchronised() is not False:
        return ()
    more = f" and {len(names) - _DOORS_SHOWN} more" if names[_DOORS_SHOWN:] else ""
    text = f"nothing keeps this host's clock right, and these doors go by it: {', '.join(names[:_DOORS_SHOWN])}{more}"
    return (Remark(f"{text} (hint: timedatectl set-ntp true)"),)


def used_up(door: Door, state: Path) -> tuple[str, ...]:
    """Why none of a door's one-time sequences can open it, for each of its files; empty for one that has some left."""
    files = [(door.name, path) for path in door.onetime]
    turns = _recall(files, state, 0, door.name, lambda path, count: None).turns
    return tuple("" if turn.next_line is not None else _why(turn) for turn in turns)


def _why(turn: "_Turn") -> str:
    if turn.place is None and turn.remarks:
        return f"{turn.path}: {turn.remarks[-1].text.partition(' (hint: ')[0]}"
    return f"{turn.path} is used up"


# ---- the daemon


def find_daemon(state: Path) -> Running:
    """Whether a process holds the lock in the state directory, by the kernel's list of locks.

    To try the lock would be simpler, and would make a daemon fail that tries it at the same time.
    """
    try:
        descriptor = os.open(state / LOCK, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return Running(False)
    except OSError:
        return Running(None)
    try:
        wanted = _lock_name(descriptor)
        locks = Path("/proc/locks").read_text("ascii")
    except OSError:
        return Running(None)
    finally:
        os.close(descriptor)
    for line in locks.splitlines():
        match line.split():  # one that waits for a lock has an arrow before the kind
            case [_, "FLOCK", _, "WRITE", pid, name, *_] if name == wanted:
                return Running(True, int(pid))
    return Running(False)


def _lock_name(descriptor: int) -> str:
    """What the kernel calls the file in its list of locks: device and inode.

    On btrfs the device is not what stat() says, but what the list of mounts does.
    """
    status = os.fstat(descriptor)
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    info = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").splitlines())
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount, _, device, *_ = line.split()
        if int(mount) == int(info["mnt_id"]):
            major, minor = map(int, device.split(b":"))
    return f"{major:02x}:{minor:02x}:{status.st_ino}"


# ---- what the database has


class _Turn(NamedTuple):
    """Whose turn it is in a file; place: what stands behind it is left, None where that is not known."""

    door: str
    path: str
    used: int | None
    place: Place | None
    next_line: int | None
    remarks: tuple[Remark, ...]


class _Known(NamedTuple):
    open: tuple[Open, ...]
    turns: tuple[_Turn, ...]
    history: tuple[Happened, ...]
    remarks: tuple[Remark, ...]


def _recall(files: list[tuple[str, str]], state: Path, most: int, only: str, progress: Progress) -> _Known:
    """All that the database has to say, at once: it is not kept open while files are counted."""
    try:
        reader = _open(state)
    except StoreError as error:
        wrong = _wrong(error)
        remark = Remark(_UNREAD, wrong.code)
        unknown = tuple(_Turn(door, path, None, None, None, (remark,)) for door, path in files)
        return _Known((), unknown, (), (wrong,))
    if reader is None:
        return _Known((), tuple(_turn(None, door, path, progress) for door, path in files), (), ())
    remarks: list[Remark] = []
    try:
        opened = _asked(lambda: _open_doors(reader, only), remarks)
        turns = tuple(_turn(reader, door, path, progress) for door, path in files)
        history = _asked(lambda: _history(reader, most, only), remarks)
    finally:
        with suppress(StoreError):  # all that was to be read has been
            reader.close()
    return _Known(opened, turns, history, tuple(dict.fromkeys(remarks)))


def _open(state: Path) -> Reader | None:
    """The database; None where there is none yet, since nothing has happened. Raises StoreError."""
    path = state / DATABASE
    try:
        path.lstat()
        if os.access(path, os.R_OK, follow_symlinks=False):
            return read_only(state)
    except FileNotFoundError:
        if path.with_name(f"{DATABASE}-wal").exists():
            message = f"{path}: is gone, but {DATABASE}-wal, which belongs to it, is there"
            raise StoreError(message, "put the database back that it belongs to, from a copy") from None
        return None
    except PermissionError:
        pass
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", "[paths] state names a directory") from None
    hint = "run this as root, or as the user that the daemon runs as"
    raise StoreError(f"{path}: cannot be read: permission denied", hint, NO_PERMISSION)


def _asked(ask: Callable[[], tuple[_T, ...]], remarks: list[Remark]) -> tuple[_T, ...]:
    """What the database answers; nothing, and a remark, where it cannot."""
    try:
        return ask()
    except StoreError as error:
        remarks.append(_wrong(error))
        return ()


def _open_doors(reader: Reader, only: str) -> tuple[Open, ...]:
    now = time.monotonic()
    grants = [stored for stored in reader.grants(time.time(), now) if concerns(only, stored.grant.door)]
    return tuple(
        Open(door, address_text(src), opened, expires - now, by)
        for (door, src, expires), opened, by in sorted(grants)
        if expires > now
    )


def _history(reader: Reader, most: int, only: str) -> tuple[Happened, ...]:
    entries = reader.history(MAX_HISTORY if only else most)
    chosen = [entry for entry in entries if concerns(only, entry.door)][:most]
    return tuple(Happened(wall, event, door, address_text(src), detail) for wall, event, door, src, detail in chosen)


# ---- one-time files


def _turn(reader: Reader | None, door: str, path: str, progress: Progress) -> _Turn:
    """Whose turn it is, as the daemon would go about it."""
    remarks: list[Remark] = []
    used: int | None = None
    try:
        place = (reader and reader.place(door, path)) or Place()
        used = reader.used(door, path) if reader else 0
        if not fits(Path(path), place):
            place, remark = _recover(path, place, progress)
            remarks.append(remark)
        for turn in next_turn(Path(path), place, partial(reader.was_used, door) if reader else _never):
            progress(path, turn.after.line)
    except LogknockError as error:
        return _Turn(door, path, used, None, None, (*remarks, _wrong(error, path)))
    if turn.skipped:
        remarks.append(Remark(f"sequences that were used before and are passed over: {turn.skipped:,}"))
    next_line = turn.after.line if turn.sequence else None
    return _Turn(door, path, used, turn.place, next_line, tuple(remarks))


def _never(sequence: Sequence) -> bool:
    return False


def _recover(path: str, place: Place, progress: Progress) -> tuple[Place, Remark]:
    """Where a file goes on that was edited before the place."""
    found: Place | None = None
    for number, found in enumerate(recover(Path(path), place.last)):  # noqa: B007  # the last one counts
        progress(path, number)
    where = "its beginning: the sequence that was used last is gone" if found is None else f"line {found.line + 1}"
    return found or Place(), Remark(f"was edited where it was used; goes on at {where}")


def _count(turn: _Turn, progress: Progress) -> File:
    """How much is left of the file, and what is wrong with what is left."""
    door, path, used, place, next_line, remarks = turn
    try:
        for state in survey(Path(path), place or Place()):
            progress(path, state.sequences)
    except LogknockError as error:
        told = tuple(dict.fromkeys((*remarks, _wrong(error, path))))
        return File(door, path, used, None, None, told)
    left = None if place is None else state.sequences
    malformed = [Remark(f"{problem}: passed over") for problem in state.problems]
    if state.malformed > len(malformed):
        malformed.append(Remark(f"{state.malformed:,} malformed lines in all"))
    return File(door, path, used, left, next_line, (*remarks, *_few(left), *malformed))


def _few(left: int | None) -> tuple[Remark, ...]:
    if left == 0:
        return (Remark("is used up: it opens nothing (hint: give the client a new file)", FAILURE),)
    if left is not None and left <= FEW:
        return (Remark(f"{left} left (hint: give the client a new file in time)"),)
    return ()


def _wrong(error: LogknockError, path: str = "") -> Remark:
    """An error as a remark beside the path. Of its exit codes, the one for a lack of permission means the same here."""
    words = error.words().removeprefix(f"{path}: ")
    return Remark(words, NO_PERMISSION if error.exit_code == NO_PERMISSION else FAILURE)
