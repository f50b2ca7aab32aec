"""Where packets come from: the sources that the configuration names, opened, waited for, read and closed together.

Rule 1: a source hands over packets and knows nothing of the others. Rule 2: one packet counts once, however many
sources tell of it (T10). Rule 3: a source that fails is told of once and tried again each second; the others go on.
"""

import asyncio
import select
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from .config import Config
from .copies import Copies
from .packet import Carried, Packet
from .records import Grammar
from .sources.nflog import Heeds, HeedsNone, Mail, Nflog

Receive = Callable[[Packet], None]
Key = tuple[str, ...]


class Tell(Protocol):
    """Takes what somebody should know: a text, and fields for the journal."""

    def __call__(self, text: str, **fields: str) -> None: ...


class Counters(NamedTuple):
    """Since the start, of all sources that are read now; overruns: how often the kernel had no room for a record."""

    records: int
    lost: int
    ignored: int
    overruns: int


class Tally(NamedTuple):
    """What a source has read since the start: records, those that are known to be lost, those that held no packet."""

    name: str
    records: int
    lost: int
    ignored: int


class Source(Protocol):
    """A log that is read. Opening one raises SourceError."""

    @property
    def name(self) -> str:
        """What it is called in the log."""

    @property
    def interval(self) -> float:
        """Seconds between looks at it; 0.0 where `fileno` or `watch` says when to look."""

    @property
    def records(self) -> int:
        """How many records have been read."""

    @property
    def lost(self) -> int:
        """How many are known to be lost (T30)."""

    @property
    def ignored(self) -> int:
        """How many held no packet that could be a knock."""

    def fileno(self) -> int:
        """The descriptor to wait for; -1 where there is none."""

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` from whatever thread when there may be something to read, where the source can tell."""

    def read(self, now: float, receive: Receive) -> bool:
        """Hand over what has come, for two milliseconds or so; whether there is more. Raises OSError if it fails."""

    def settle(self) -> Iterable[str]:
        """A second has passed; what there is to tell."""

    def close(self) -> None:
        """Stop reading."""


@runtime_checkable
class InTrouble(Protocol):
    """What a source has besides that finds out by itself that it cannot be read, and goes on trying."""

    @property
    def trouble(self) -> str:
        """Why it is not read; empty where it is."""


@runtime_checkable
class OfText(Protocol):
    """What a source of text has besides: how its records are read, which a reload replaces."""

    grammar: Grammar


# read(source, receive): the source's read(), with what belongs before and after it; whether there is more.
Read = Callable[[Source, Receive], bool]


class Intake:
    """All sources. `heeds` is asked where a single source decodes in bulk; each packet goes to `receive`."""

    def __init__(self, heeds: Heeds, read: Read, receive: Receive, tell: Tell) -> None:
        self.heeds = heeds  # as of the next adopt()
        self.heeds_none: HeedsNone | None = None  # likewise, where `heeds` has one
        self.mail: Mail | None = None  # likewise, where somebody wants what packets carry
        self._read = read
        self._receive = receive
        self._tell = tell
        self._sources: dict[Key, Source] = {}
        self._copies: Copies | None = None
        self._waiting: dict[Key, asyncio.Handle] = {}  # looks at sources that are to come
        self._failed: dict[Key, str] = {}  # and why: told of, and not looked at before the next second
        self._told_lost: dict[Key, int] = {}
        self._unread: set[Key] = set()  # since a second ago: those that had something to read, or are asked

    @property
    def names(self) -> list[str]:
        """What the sources that are read now are called."""
        return [source.name for source in self._sources.values()]

    @property
    def tallies(self) -> list[Tally]:
        """What each source that is read now has read."""
        return [Tally(source.name, source.records, source.lost, source.ignored) for source in self._sources.values()]

    @property
    def troubles(self) -> dict[str, str]:
        """Which sources cannot be read now, by name, and why."""
        found = {source.name: source.trouble for source in self._sources.values() if isinstance(source, InTrouble)}
        found |= {self._sources[key].name: why for key, why in self._failed.items()}
        found |= dict.fromkeys(self._ended_names, "it has ended")
        return {name: why for name, why in found.items() if why}

    @property
    def _ended_names(self) -> Iterator[str]:
        return (source.name for source in self._sources.values() if getattr(source, "ended", False))

    @property
    def counters(self) -> Counters:
        """What has been read."""
        every = list(self._sources.values())
        return Counters(
            sum(source.records for source in every),
            sum(source.lost for source in every),
            sum(source.ignored for source in every),
            sum(source.overruns for source in every if isinstance(source, Nflog)),
        )

    @property
    def ended(self) -> bool:
        """Whether nothing is left that could be read: a pipe has an end."""
        return all(getattr(source, "ended", False) for source in self._sources.values())

    @property
    def summary(self) -> str:
        """What is read, for a line of the log."""
        return ", ".join(source.name for source in self._sources.values())

    def open(self, config: Config) -> dict[Key, Source]:
        """The sources of a configuration, those that are read already among them; adopt() or discard() them.

        Raises SourceError, and then nothing has changed.
        """
        grammar = Grammar(config.wanted)
        found: dict[Key, Source] = {}
        with ExitStack() as undo:
            undo.callback(self.discard, found)
            for key in _keys(config):
                found[key] = self._sources.get(key) or self._open(key, config, grammar)
            undo.pop_all()
        return found

    def discard(self, found: Mapping[Key, Source]) -> None:
        """Close those that open() has opened."""
        for key, source in found.items():
            if key not in self._sources:
                source.close()

    def adopt(self, found: Mapping[Key, Source], config: Config) -> None:
        """Read these from now on, and no others. Needs a running loop."""
        for key in self._sources.keys() - found.keys():
            self._stop(key)
            self._sources[key].close()
            self._told_lost.pop(key, None)
        fresh = found.keys() - self._sources.keys()
        if list(found) != list(self._sources):  # who tells of a packet has the same number over a reload that keeps all
            self._copies = Copies(len(found)) if len(found) > 1 else None
        self._sources = dict(found)
        grammar = Grammar(config.wanted)
        for number, source in enumerate(found.values()):
            if isinstance(source, Nflog):
                # What no door heeds now may be the copy of what another source tells of later.
                if self._copies is None:
                    source.count(self.heeds, config.wanted.directions, self.heeds_none, self.mail)
                else:
                    mail = self.mail and _without_copies(self.mail, self._copies, number)
                    source.count(_all, config.wanted.directions, mail=mail)
            elif isinstance(source, OfText):
                source.grammar = grammar
        for key in fresh:
            self._begin(key)

    def settle(self) -> None:
        """A second has passed."""
        for key, source in self._sources.items():
            for text in source.settle():
                self._tell(text)
            self._tell_losses(key, source)
            if key in self._failed or not (source.interval or source.fileno() >= 0):
                self._look_soon(key)

    def neglected(self) -> list[str]:
        """Sources with something to read that nobody has read since this was asked last; ask it once a second.

        There is never one, unless something is wrong with this process.
        """
        found = [self._sources[key].name for key in self._unread & self._sources.keys() if key not in self._failed]
        self._unread = {key for key, source in self._sources.items() if _is_due(source)}
        return found

    def strangers(self, src: bytes) -> Iterator[tuple[float, Packet | None]]:
        """The last packets of a source of packets that no door heeded, and when they were read; None is a pause."""
        for source in self._sources.values():
            if isinstance(source, Nflog):
                yield from source.recent(src)

    def close(self) -> None:
        """Stop reading."""
        for key, source in self._sources.items():
            self._stop(key)
            source.close()
        self._sources = {}

    def _open(self, key: Key, config: Config, grammar: Grammar) -> Source:
        """Imported here is what needs modules that not every host has."""
        match key[0]:
            case "nflog":
                return Nflog(config.group, self.heeds, config.wanted.directions)
            case "journal":
                from .sources.journal import Journal

                return Journal(grammar, config.journal)
            case "file":
                from .sources.logfile import LogFile

                return LogFile(next(path for path in config.files if str(path) == key[1]), grammar)
            case _:
                from .sources.pipe import Pipe

                return Pipe(grammar)

    def _begin(self, key: Key) -> None:
        source, loop = self._sources[key], asyncio.get_running_loop()
        source.watch(lambda: _from_elsewhere(loop, self._look_soon, key))
        if source.fileno() >= 0 and not source.interval:
            loop.add_reader(source.fileno(), self._look, key)
        else:
            self._look_soon(key)

    def _stop(self, key: Key) -> None:
        source = self._sources[key]
        if source.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(source.fileno())
        if key in self._waiting:
            self._waiting.pop(key).cancel()
        self._failed.pop(key, None)

    def _look_soon(self, key: Key) -> None:
        """Look with the next turn of the loop, unless that is to happen anyway."""
        if key in self._sources and not isinstance(self._waiting.get(key), asyncio.Handle):
            self._waiting[key] = asyncio.get_running_loop().call_soon(self._look, key)

    def _look(self, key: Key) -> None:
        """Read a source, and see to it that it is read again."""
        self._waiting.pop(key, None)
        self._unread.discard(key)
        source, loop = self._sources[key], asyncio.get_running_loop()
        try:
            more = self._read(source, self._receiver(key))
        except OSError as error:
            if source.fileno() >= 0:
                loop.remove_reader(source.fileno())
            if key not in self._failed:
                self._tell(f"{source.name} cannot be read: {error.strerror}")
            self._failed[key] = f"cannot be read: {error.strerror}"
            return
        if key in self._failed:
            del self._failed[key]
            self._tell(f"{source.name} can be read again")
            if source.fileno() >= 0 and not source.interval:
                loop.add_reader(source.fileno(), self._look, key)
        if more:
            self._look_soon(key)
        elif source.interval:
            self._waiting[key] = loop.call_later(source.interval, self._look, key)

    def _receiver(self, key: Key) -> Receive:
        if self._copies is None:
            return self._receive
        return partial(self._take, self._copies, list(self._sources).index(key))

    def _take(self, copies: Copies, number: int, packet: Packet) -> None:
        if not copies.is_copy(number, packet):
            self._receive(packet)

    def _tell_losses(self, key: Key, source: Source) -> None:
        before = self._told_lost.get(key, 0)
        if source.lost != before:
            self._told_lost[key] = source.lost
            text = f"{source.name}: {source.lost - before} records lost on the way ({source.lost} in all)"
            self._tell(text, LOST=str(source.lost))


def _keys(config: Config) -> Iterator[Key]:
    """What tells sources apart: those of one key are read on over a reload."""
    for name in config.sources:
        match name:
            case "nflog":
                yield name, str(config.group)
            case "journal":
                yield name, str(config.journal or "")
            case "file":
                yield from ((name, str(path)) for path in config.files)
            case _:
                yield (name,)


def _is_due(source: Source) -> bool:
    """Whether a source is to be read within a second: it is asked that often, or its descriptor says so."""
    if getattr(source, "ended", False):
        return False
    if source.fileno() < 0 or source.interval:
        return True
    waiting = select.poll()
    waiting.register(source.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def _from_elsewhere(loop: asyncio.AbstractEventLoop, look: Callable[[Key], None], key: Key) -> None:
    """Out of another thread; one that is late finds the loop closed, and nobody to tell."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(look, key)


def _without_copies(mail: Mail, copies: Copies, number: int) -> Mail:
    """The same, and what another source tells of it later, headers alone, is known for a copy."""

    def receive(carried: Carried) -> None:
        copies.is_copy(number, carried.packet)  # what came before had no payload: that was not this yet
        mail.receive(carried)

    return mail._replace(receive=receive)


def _all(src: bytes, proto: int, dport: int, flags: int) -> bool:
    return True
