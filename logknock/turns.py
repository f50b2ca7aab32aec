"""Whose turn it is: which sequence out of each file of one-time sequences counts now, and what becomes of it.

Rule 1: what the store says was used never counts again, whatever the file says now (T18); nothing is used up before the
store has it on the disk (T20). Rule 2: what cannot be read, or put on record, leaves its door shut and is told once.
Rule 3: a file may have millions of lines: it is read in slices, and a use reads no more than it must.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from .errors import LogknockError
from .knock import Code, Door, Sequence, Service
from .onetime import Place
from .onetime_files import Survey, fits, next_turn, recover, survey
from .store import Store, StoreError

# From here on each use is a warning: time to give the client a new file.
FEW = 10

# Malformed lines of a file that are told of when it is read.
_MAX_TOLD = 3

# tell(what there is to say, whether it is bad)
Tell = Callable[[str, bool], None]
Plant = Callable[[str, str, Sequence | None], None]


_NOTHING = Survey(0, frozenset(), (), 0, None)


class _File:
    """A file at a door."""

    __slots__ = ("after", "counted", "door", "job", "last", "path", "place", "sequence", "stamp", "told", "uses")

    def __init__(self, door: str, path: str) -> None:
        self.door = door
        self.path = path
        self.place: Place | None = None  # how far it is used; None: not asked yet
        self.last: Sequence = ()  # the one that was used last, be it in the file or not
        self.sequence: Sequence | None = None  # the one that counts
        self.after = Place()  # how far it is used once that one is
        self.uses = 0  # since the start, those that were skipped included
        self.counted: tuple[int, int] | None = None  # sequences that were left, and `uses` then
        self.stamp: tuple[int, ...] = ()  # what told the last reading from a later one
        self.job: Iterator[None] | None = None
        self.told = ""  # the trouble that was told last

    @property
    def left(self) -> int | None:
        """How many sequences are left; None: not counted yet."""
        return None if self.counted is None else self.counted[0] - (self.uses - self.counted[1])

    @property
    def trouble(self) -> str:
        """Why nothing of it opens its door; empty where something does, or that is not known yet."""
        if self.told:
            return f"{self.door}: {self.told}"
        return f"{self.door}: {self.path} is used up: it opens nothing" if self.left == 0 else ""


class Turns:
    """The files of all doors. `plant(door, file, sequence)` is told which sequence counts, None for none."""

    def __init__(self, store: Store, plant: Plant, tell: Tell) -> None:
        self._store = store
        self._plant = plant
        self._tell = tell
        self._files: dict[tuple[str, str], _File] = {}
        self._busy: deque[_File] = deque()
        self.knocked: set[Service] = set()  # what the sequences that were left in any file since the start knock on

    def use(self, doors: Iterable[Door]) -> None:
        """Go on with these doors' files."""
        wanted = [(door.name, path) for door in doors for path in door.onetime]
        self._files = {key: self._files.get(key) or _File(*key) for key in wanted}
        self._busy = deque(file for file in self._busy if self._files.get((file.door, file.path)) is file)
        self.look()

    @property
    def troubles(self) -> list[str]:
        """Which files open nothing, and why."""
        return [trouble for file in self._files.values() if (trouble := file.trouble)]

    @property
    def left(self) -> list[tuple[str, str, int]]:
        """How many sequences are left, by door and file, where that is known."""
        return [(*key, file.left) for key, file in self._files.items() if file.left is not None]

    def look(self) -> None:
        """See which files have changed, or could not be read; call it once a second or so, and `work` after it."""
        for file in self._files.values():
            stamp: tuple[int, ...] = (-1,)
            with suppress(OSError):
                status = os.stat(file.path)
                stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if stamp != file.stamp or (file.told and file.job is None):
                file.stamp = stamp
                self._begin(file, self._settle(file))

    def work(self) -> bool:
        """Do some of what is to be done, two milliseconds or so; whether there is more."""
        if not self._busy:
            return False
        file = self._busy[0]
        assert file.job is not None
        try:
            next(file.job)
        except StopIteration:
            self._end_job(file)
            file.told = ""
        except LogknockError as error:
            self._end_job(file)
            self._set(file, None, Place())
            if file.told != error.message:
                file.told = error.message
                self._tell(f"{file.door}: {error.words()}", True)
        else:
            self._busy.rotate(-1)
        return bool(self._busy)

    def spend(self, code: Code, src: bytes, wall: float) -> str:
        """Put the use of a sequence on record; empty, or why nothing may open."""
        file = self._files.get((code.door, code.file))
        if file is None or file.sequence != code.sequence:
            return "its one-time sequence counts no more"
        try:
            new = self._store.use(code, file.after, src, wall)
        except StoreError as error:
            self._plant(code.door, code.file, code.sequence)
            return f"its use cannot be put on record: {error.message}" + (
                f" (hint: {error.hint})" if error.hint else ""
            )
        file.place, file.last = file.after, code.sequence
        file.uses += 1
        file.sequence = None
        changed = file.counted is None or file.job is not None
        self._begin(file, self._settle(file) if changed else self._find(file))
        if not new:
            return "its one-time sequence was used before"
        self._tell_left(file)
        return ""

    # ---- jobs

    def _begin(self, file: _File, job: Iterator[None]) -> None:
        if file.job is None:
            self._busy.append(file)
        file.job = job

    def _end_job(self, file: _File) -> None:
        self._busy.popleft()
        file.job = None

    def _settle(self, file: _File) -> Iterator[None]:
        """Find out which sequence counts, and then how many are left."""
        path = Path(file.path)
        if file.place is None:
            file.place = self._store.place(file.door, file.path) or Place()
            file.last = file.place.last
        if file.place.last != file.last or not fits(path, file.place):
            yield from self._recover(file, path)
        yield from self._find(file)
        uses, state = file.uses, _NOTHING
        for state in survey(path, file.place):  # noqa: B007  # the last one counts
            yield
        file.counted = state.sequences, uses
        self.knocked |= state.services
        for problem in state.problems[:_MAX_TOLD]:
            self._tell(f"{file.door}: {file.path}: {problem}: passed over", True)
        if state.malformed > _MAX_TOLD:
            self._tell(f"{file.door}: {file.path}: {state.malformed} malformed lines in all", True)
        if (file.left or 0) <= FEW:
            self._tell_left(file)

    def _recover(self, file: _File, path: Path) -> Iterator[None]:
        """The file was edited before the place: go on behind the sequence that was used last, or at the beginning.

        That it is gone may be because the file is just being written: it is looked for again with the next change.
        """
        self._set(file, None, Place())
        found: Place | None = None
        for found in recover(path, file.last):  # noqa: B007  # the last one counts
            yield
        where = "its beginning: the sequence that was used last is gone" if found is None else f"line {found.line + 1}"
        self._tell(f"{file.door}: {file.path} was edited where it was used; goes on at {where}", True)
        file.place = found or Place()
        if found:
            self._store.move(file.door, file.path, found)

    def _find(self, file: _File) -> Iterator[None]:
        """The next sequence that was not used: it counts from here on."""
        was_used = partial(self._store.was_used, file.door)
        for turn in next_turn(Path(file.path), file.place or Place(), was_used):
            if turn.sequence is None:
                yield
        if turn.skipped:
            many = "a sequence that was" if turn.skipped == 1 else f"{turn.skipped} sequences that were"
            self._tell(f"{file.door}: {file.path}: passed over {many} used before", True)
            file.uses += turn.skipped
            file.place = turn.place
        self._set(file, turn.sequence, turn.after)
        if turn.sequence is None:
            hint = "(hint: give the client a new file)"
            self._tell(f"{file.door}: {file.path} is used up: it opens nothing {hint}", True)

    def _set(self, file: _File, sequence: Sequence | None, after: Place) -> None:
        file.sequence, file.after = sequence, after
        self._plant(file.door, file.path, sequence)

    def _tell_left(self, file: _File) -> None:
        if file.left:
            few = " (hint: give the client a new file in time)" if file.left <= FEW else ""
            word = "sequence" if file.left == 1 else "sequences"
            self._tell(f"{file.door}: {file.path}: {file.left} one-time {word} left{few}", bool(few))
