"""Opens doors and sees to their end: the store's row, the set elements, the file of addresses, the command, in order.

Rule 1: a grant is on record before it opens anything, so that whatever kills us, its end is seen to (on_close, the
allow file) at the next start. Rule 2: its row goes when all that belongs to its end is done, and not before. Rule 3:
one part that fails is told and counted, and keeps no other from being done.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from . import report
from .actions import ActionError, AllowFile, Runner, Told, command
from .errors import FirewallError, LogknockError
from .firewall.sets import Sets, never_granted
from .knock import Door, Grant
from .report import Level, Line
from .standing import DoorStanding
from .store import Store, StoredGrant, StoreError

ALLOW_FOLDER = "allow"

# So many ends of grants at a time: two milliseconds or so in which nothing else is done.
_EXPIRE_BATCH = 64

_WRITTEN_AGAIN = "the state database can be written again"


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    opened: int = 0
    closed: int = 0
    refused: int = 0
    store_errors: int = 0


class Hand(NamedTuple):
    """For how many seconds a door opens on somebody's word, and whose that is: an administrator's, or a client's.

    shortens: whether a door that is open for longer already closes earlier by it; a client's word never does that.
    """

    seconds: float
    by: str
    shortens: bool = True


class Open(NamedTuple):
    """A door that is open; `left` is in seconds; by: who opened it by hand, or which client; empty: a knock did.

    is_open: False while it is held to, and the firewall does not have it.
    """

    door: str
    src: bytes
    left: float
    by: str
    is_open: bool = True


class Doorkeeper:
    """What is open, and what is done about it. `write` takes lines for the log.

    What is opened by hand, or for a client that has proved who it is, has the time that was asked for, however long the
    door's own is: after a restart, a reload and a flush as before, and a knock meanwhile never shortens it.

    Times: `now` is time.monotonic(), `wall` is time.time(). A door's time begins when it opens, which is when its
    elements' time begins, and runs by the kernel's clock for elements, not by one that can be set: no step of it
    brings a grant back after its end (T33).
    """

    def __init__(self, store: Store, sets: Sets, state: Path, write: Callable[[Line], None]) -> None:
        self.counters = Counters()
        self.runner = Runner(self._on_told)
        self._store = store
        self._sets = sets
        self._folder = state / ALLOW_FOLDER
        self._write = write
        self._doors: dict[str, Door] = {}
        self._allowed: dict[str, dict[bytes, set[str]]] = defaultdict(dict)  # file, address, doors
        self._unwritten: set[str] = set()  # allow files that are not as they should be
        self._refused: set[tuple[str, bytes]] = set()  # what is held to, though the kernel has not opened it yet
        self._troubles: dict[type[LogknockError], LogknockError] = {}  # what was told last of each kind
        self._opened: Counter[str] = Counter()  # of each door since the start
        self._open_now: Counter[str] = Counter()
        self._by_hand: dict[tuple[str, bytes], str] = {}  # on whose word it is open, where it was no mere knock
        self.changed: Callable[[str, bytes], None] = _ignore  # told of each door that opens, is refreshed, or closes

    def use(self, doors: Iterable[Door]) -> None:
        """Go on with these doors; those that are gone are known until their last grant has ended."""
        before, self._doors = self._doors, {door.name: door for door in doors}
        if before.keys() - self._doors.keys():
            kept = {grant.door for grant in self._sets.grants}
            self._doors |= {name: door for name, door in before.items() if name in kept - self._doors.keys()}
        if any(self._doors[name].allow_file != before[name].allow_file for name in before.keys() & self._doors.keys()):
            self._allowed = defaultdict(dict)
            for grant in self._sets.grants:
                self._allow(self._doors[grant.door], grant.src)
        named = {door.allow_file for door in self._doors.values() if door.allow_file}
        # What no door keeps any more lets nobody in.
        self._unwritten = named | self._there()
        self.settle()

    def restore(self, wall: float, now: float) -> int:
        """Take over what a daemon before this one had open; how many doors that are. Sets.reconcile() opens them."""
        taken = ended = 0
        for grant, _, by in self._recorded(wall, now):
            door = self._doors.get(grant.door)
            if door is None:
                self._note(f"door {grant.door} is gone, and what it was to do when it closes with it", Level.WARNING)
                self._sets.gone.add(grant.door)
                self._record(self._store.ended, grant, "its door is gone", wall)
            elif grant.expires <= now or never_granted(grant.src):
                ended += 1
                self._end(grant, door, "while logknock did not run", wall)
            else:
                held = grant if by else grant._replace(expires=min(grant.expires, now + door.timeout))
                if held != grant:  # the door's timeout is shorter now
                    self._record(self._store.opened, held, wall, now)
                self._sets.hold(self._as_opened(door, held, now, by), held)
                self._open_now[held.door] += 1
                self._allow(door, held.src)
                taken += 1
        self.counters.closed += ended
        if ended:
            self._note(f"{ended} {'door has' if ended == 1 else 'doors have'} closed while logknock did not run")
        self.settle()
        return taken

    def open(self, name: str, src: bytes, wall: float, now: float, hand: Hand | None = None) -> str:
        """Open the door, for a knock or by hand; empty when it is open, or why it never opens for this address.

        Raises FirewallError if the kernel refuses; the grant may be held to all the same (see Sets.open).
        """
        door = self._doors[name]
        grant, by = self._ask(door, src, now, hand)
        reason = self._sets.refused(src)
        if reason is not None:
            self.counters.refused += 1
            return reason
        was_held = self._sets.find(name, src) is not None
        refresh = was_held and (name, src) not in self._refused
        self._record(self._store.opened, grant, wall, now, by)
        try:
            self._sets.open(self._as_opened(door, grant, now, by), grant, now)
        except FirewallError:
            if self._sets.find(name, src) is None:
                self._by_hand.pop((name, src), None)
                self._record(self._store.ended, grant, "not opened", wall)
            else:
                self._allow(door, src)
                if not refresh:
                    self._refused.add((name, src))
            raise
        finally:
            self._open_now[name] += (self._sets.find(name, src) is not None) - was_held
            self.changed(name, src)
        self.counters.opened += 1
        self._opened[name] += 1
        self._allow(door, src)
        if not refresh:
            self._begin(door, src)
        return ""

    def close(self, name: str, by: str, src: bytes, wall: float, now: float) -> Line | None:
        """Close the door before its time; what there is to tell. Raises FirewallError if the kernel refuses."""
        grant = self._sets.find(name, src)
        if grant is None:
            return None
        try:
            self._sets.close(name, src, now)
            self.counters.closed += 1
        finally:
            self._gone(name, src)
            self._disallow(name, src)
            self._end(grant, self._doors[name], f"by {by}", wall)
        return report.revoked(grant, by)

    def expire(self, wall: float, now: float) -> bool:
        """See to the end of grants whose time is over, some of them; the kernel has closed them by itself.

        Whether there may be more: call it until it is False.
        """
        some = self._sets.expire(now, _EXPIRE_BATCH)
        for grant, was_open in some:
            if was_open:
                self.counters.closed += 1
                self._write(report.closed(grant))
            self._gone(grant.door, grant.src)
            self._disallow(grant.door, grant.src)
            self._end(grant, self._doors[grant.door], "timeout", wall)
        self.settle()
        return len(some) == _EXPIRE_BATCH

    def listed(self, now: float) -> Iterator[Open]:
        """All that is open, one by one: it may be stopped anywhere, and what ends meanwhile is left out."""
        for src in self._sets.sources:
            yield from self.listed_of(src, now)

    def listed_of(self, src: bytes, now: float) -> list[Open]:
        """What is open for somebody."""
        return [self._shown(grant, now) for grant in self._sets.granted(src) if grant.expires > now]

    def find(self, name: str, src: bytes, now: float) -> Open | None:
        """The door as it is open for somebody."""
        grant = self._sets.find(name, src)
        return self._shown(grant, now) if grant is not None and grant.expires > now else None

    def _shown(self, grant: Grant, now: float) -> Open:
        by = self._by_hand.get((grant.door, grant.src), "")
        return Open(grant.door, grant.src, grant.expires - now, by, not self._sets.is_shut(grant.door, grant.src))

    @property
    def doors(self) -> tuple[DoorStanding, ...]:
        """How the doors stand, those among them that are gone and still open for somebody."""
        return tuple(DoorStanding(name, self._open_now[name], self._opened[name]) for name in self._doors)

    @property
    def troubles(self) -> list[LogknockError]:
        """What cannot be recorded, or written for others, now."""
        return list(self._troubles.values())

    def tidy(self) -> None:
        """What is to be done once a second or so."""
        try:
            if StoreError in self._troubles:
                self._store.try_write()
                self._out_of_trouble(StoreError, _WRITTEN_AGAIN)
            self._store.trim()
        except StoreError as error:
            self._in_trouble(error, again=StoreError in self._troubles)
        for name, src in [key for key in self._refused if self._sets.holds(key[1])]:
            if self._sets.find(name, src) is not None:
                self._begin(self._doors[name], src)
            self._refused.discard((name, src))

    def try_store(self) -> None:
        """Something else could not be put on record: say so until it can be."""
        if StoreError not in self._troubles:
            self._record(self._store.try_write)

    def settle(self) -> None:
        """Write the allow files that are not as they should be."""
        names, failures = sorted(self._unwritten), []
        for name in names:
            try:
                AllowFile(self._folder / name).write(self._allowed.get(name, ()))
            except ActionError as error:
                failures.append(error)
            else:
                self._unwritten.discard(name)
        if failures:
            self._in_trouble(failures[0])
        elif names:
            self._out_of_trouble(ActionError, "the files of addresses are written again")

    async def stop(self) -> None:
        """The end of the process: nobody is left to take addresses out of files, so they all go."""
        self._unwritten = {name for name, sources in self._allowed.items() if sources}
        self._allowed.clear()
        self.settle()
        if unfinished := await self.runner.stop():
            self._note(f"{unfinished} commands did not run to their end; what closes a door runs at the next start")

    # ---- parts of an opening and of an end

    def _ask(self, door: Door, src: bytes, now: float, hand: Hand | None) -> tuple[Grant, str]:
        """Until when the door is to be open, and on whose word; a knock does not shorten what is open on one."""
        seconds, by, shortens = hand or Hand(door.timeout, "", shortens=False)
        grant = Grant(door.name, src, now + seconds)
        before = self._by_hand.get((door.name, src), "")
        known = self._sets.find(door.name, src) if (hand or before) and not shortens else None
        if known is not None and known.expires > grant.expires:
            return known, before
        return grant, by

    def _as_opened(self, door: Door, grant: Grant, now: float, by: str) -> Door:
        """The door as the sets are to have it: none is open for longer than its timeout (see Sets.open)."""
        if not by:
            self._by_hand.pop((door.name, grant.src), None)
            return door
        self._by_hand[door.name, grant.src] = by
        return replace(door, timeout=grant.expires - now)

    def _gone(self, name: str, src: bytes) -> None:
        self._open_now[name] -= 1
        self._by_hand.pop((name, src), None)
        self.changed(name, src)

    def _begin(self, door: Door, src: bytes) -> None:
        self._refused.discard((door.name, src))
        opening = command(door, src, "open")
        if opening:
            self.runner.run(opening)

    def _end(self, grant: Grant, door: Door, how: str, wall: float) -> None:
        done = partial(self._record, self._store.ended, grant, how, wall)
        closing = command(door, grant.src, "close")
        if closing is None or (grant.door, grant.src) in self._refused:
            self._refused.discard((grant.door, grant.src))
            done()
        else:
            self.runner.run(closing, done)

    def _allow(self, door: Door, src: bytes) -> None:
        if door.allow_file:
            doors = self._allowed[door.allow_file].setdefault(src, set())
            if not doors:
                self._unwritten.add(door.allow_file)
            doors.add(door.name)

    def _disallow(self, name: str, src: bytes) -> None:
        file = self._doors[name].allow_file
        doors = self._allowed.get(file, {}).get(src)
        if doors is None:
            return
        doors.discard(name)
        if not doors:
            del self._allowed[file][src]
            self._unwritten.add(file)

    def _there(self) -> set[str]:
        """The allow files that there are."""
        try:
            with os.scandir(self._folder) as entries:
                return {entry.name for entry in entries if entry.is_file() and not entry.name.endswith("~")}
        except FileNotFoundError:
            pass
        except OSError as error:
            hint = "logknock keeps files of addresses there: give it the directory"
            self._in_trouble(ActionError(f"{self._folder}: {error.strerror}", hint))
        return set()

    def _recorded(self, wall: float, now: float) -> list[StoredGrant]:
        try:
            return self._store.grants(wall, now)
        except StoreError as error:
            self._in_trouble(error)
            return []

    def _record(self, write: Callable[..., None], *args: Any) -> None:
        """What is on record for later: that it cannot be is told, and doors go on opening and closing."""
        try:
            write(*args)
        except StoreError as error:
            self._in_trouble(error)
        else:
            self._out_of_trouble(StoreError, _WRITTEN_AGAIN)

    # ---- telling

    def _in_trouble(self, error: LogknockError, *, again: bool = False) -> None:
        """Say it once, until it is over; `again`: it was only looked whether it is over, and nothing more is lost."""
        self.counters.store_errors += isinstance(error, StoreError) and not again
        known = self._troubles.get(type(error))
        if known is None or known.message != error.message:
            self._troubles[type(error)] = error
            self._note(error.words(), Level.ERROR)

    def _out_of_trouble(self, kind: type[LogknockError], text: str) -> None:
        if self._troubles.pop(kind, None):
            self._note(text)

    def _on_told(self, told: Told) -> None:
        self._write(report.command(told.door, told.src, told.text, bad=told.bad))

    def _note(self, text: str, level: Level = Level.NOTICE) -> None:
        self._write(report.notice(text, level, EVENT="state"))


def _ignore(_door: str, _src: bytes) -> None:
    """Nobody wants to know."""
