"""The running program: packets in, grants out, until a signal ends it.

Rule 1: one thread, one loop; a step takes a few milliseconds at most, so what is much is done in parts. Rule 2: this
file joins the parts and decides nothing: who gets in is decided in `knock`, what is open is kept in `firewall.sets`.
Rule 3: trouble with the kernel is told, counted and outlived; ending it is up to the administrator.
"""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import __version__, report
from .config import Config, load
from .errors import FirewallError, LogknockError
from .firewall.sets import GUARDED, WATCHED, Sets
from .knock import Event, Granted, Matcher, Revoked
from .packet import Packet
from .report import Level, Reporter, notice
from .sources.nflog import Nflog

_TICK = 1.0  # seconds between looks at what may have changed without a packet

# The garbage collector walks over every attempt, 20 ms for a full crowd: it runs when there are fewer than that, once
# a minute. Attempts and grants hold no cycles; reloads leave a few.
_COLLECT_BELOW = 1_024
_COLLECT_EVERY = 60

_NAMES_SHOWN = 10


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    opened: int = 0
    closed: int = 0
    refused: int = 0
    stale: int = 0
    firewall_errors: int = 0


class Daemon:
    """Everything that lives as long as the process. Raises LogknockError if it cannot start."""

    def __init__(self, config_path: Path, reporter: Reporter) -> None:
        self._path = config_path
        self._reporter = reporter
        self._counters = Counters()
        self._config = load(config_path)
        self._take_doors()
        self._matcher = Matcher(self._config.doors)
        # The first netlink socket of a process has its id as port, by which the next one learns who holds the group.
        self._source = Nflog(self._config.group, self._matcher.heeds)
        self._sets = Sets()
        self._sets.use(self._config.doors)
        self._trouble = ""  # what the firewall refused last, until it works again
        self._oldest = 0.0  # packets from before that are too old to mean anything; set for each read
        self._told_lost = 0
        self._ticks = 0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        gc.collect()
        gc.freeze()
        gc.disable()
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._tell_counters)
        loop.add_reader(self._source.fileno(), self._on_readable)
        loop.call_later(_TICK, self._tick)
        self._tell_ready()
        await stopped.wait()
        _notify("STOPPING=1")
        loop.remove_reader(self._source.fileno())
        self._source.close()
        self._sets.disconnect()
        self._tell_counters()
        self._tell("stopped; open doors close on time by themselves")

    def _on_readable(self) -> None:
        now = time.time()
        self._oldest = now - self._longest
        try:
            self._source.read(now, self._receive)
        except OSError as error:
            self._tell(f"NFLOG group {self._source.group} cannot be read: {error.strerror}", Level.ERROR)

    def _receive(self, packet: Packet) -> None:
        """Act first, tell afterwards: a door does not wait for the log."""
        if packet.time <= self._oldest:
            self._counters.stale += 1  # it waited too long somewhere to mean anything now (T29)
            return
        told: list[Event | report.Line] = []
        for event in self._matcher.receive(packet):
            told.append(event)
            if isinstance(event, Granted):
                told[-1:] = self._open(event)
            elif isinstance(event, Revoked):
                told += self._close(event)
        self._reporter.tell(told)

    def _open(self, event: Granted) -> list[Event | report.Line]:
        """Open the door; what there is to tell of it: that it is open, or why it is not."""
        grant = event.grant
        # The door's time begins when it opens, which is when its elements' time begins, and runs by the kernel's
        # clock for elements, not by one that can be set: no step of it brings a grant back after its end (T33).
        now = time.monotonic()
        door = self._doors[grant.door]
        try:
            reason = self._sets.refused(grant.src)
            if reason is None:
                self._sets.open(door, grant._replace(expires=now + door.timeout), now)
                self._counters.opened += 1
                return [event]
            self._counters.refused += 1
        except FirewallError as error:
            self._counters.firewall_errors += 1
            self._trouble = self._trouble or error.message
            reason = error.message + (f" (hint: {error.hint})" if error.hint else "")
        return [report.refused(grant, reason)]

    def _close(self, event: Revoked) -> list[report.Line]:
        try:
            ended = self._sets.close(event.door, event.packet.src, time.monotonic())
        except FirewallError as error:
            self._counters.firewall_errors += 1
            self._in_trouble(error)
            return []
        self._counters.closed += ended is not None
        return [report.revoked(ended, event.by)] if ended else []

    def _tick(self) -> None:
        asyncio.get_running_loop().call_later(_TICK, self._tick)
        for grant in self._sets.expire(time.monotonic()):
            self._counters.closed += 1
            self._reporter.write(report.closed(grant))
        self._reporter.tell(self._matcher.expire(time.time()))
        self._watch_firewall()
        self._source.settle()
        self._tell_losses()
        self._reporter.settle()
        self._ticks += 1
        if self._ticks % _COLLECT_EVERY == 0 and self._matcher.knockers < _COLLECT_BELOW:
            gc.collect()

    def _watch_firewall(self) -> None:
        """When somebody has changed the ruleset, or it was missing: see whether our sets are there, and fill them."""
        try:
            if not self._sets.changed() and not self._trouble:
                return
            failure = self._sets.check(self._config.doors)
        except FirewallError as error:
            self._in_trouble(error)
            return
        if failure is not None:
            self._in_trouble(failure)
        self._restore(sound=failure is None)

    def _restore(self, *, sound: bool, restored: int = 0) -> None:
        """Put grants back, part by part; trouble is over when all is sound and nothing is left to put back."""
        try:
            some = self._sets.reconcile(time.monotonic())
        except FirewallError as error:
            if sound:
                self._in_trouble(error)
            return
        if some:
            again = partial(self._restore, sound=sound, restored=restored + some)
            asyncio.get_running_loop().call_soon(again)
        elif sound and self._trouble:
            self._trouble = ""
            self._tell(f"the firewall has what it needs again; the open doors of {restored} addresses are put back")

    def _in_trouble(self, error: FirewallError) -> None:
        """Say it once, not once a second; it is over when the sets hold what they should."""
        if error.message != self._trouble:
            self._trouble = error.message
            hint = f" (hint: {error.hint})" if error.hint else ""
            self._tell(f"{error.message}{hint}", Level.ERROR)

    def _reload(self) -> None:
        """Go on with the configuration as it is now, or, if it is bad in any way, with the old one (T36)."""
        _notify("RELOADING=1")
        try:
            config = load(self._path)
            source = self._source
            if config.group != source.group:
                source = Nflog(config.group, self._matcher.heeds)
            try:
                self._sets.use(config.doors)
            except FirewallError:
                if source is not self._source:
                    source.close()
                raise
        except LogknockError as error:
            for text in error.report():
                self._tell(text.removeprefix("logknock: "), Level.ERROR)
            self._tell("not reloaded: the configuration from before stays in force", Level.ERROR)
        else:
            self._adopt(config, source)
        finally:
            _notify("READY=1")

    def _adopt(self, config: Config, source: Nflog) -> None:
        if source is not self._source:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._source.fileno())
            self._source.close()
            loop.add_reader(source.fileno(), self._on_readable)
            self._source = source
            self._told_lost = 0
        self._config = config
        self._take_doors()
        self._matcher.set_doors(config.doors)
        self._tell(f"reloaded: {self._summary()}")
        self._warn()

    def _take_doors(self) -> None:
        self._doors = {door.name: door for door in self._config.doors}
        self._longest = max(door.seq_timeout for door in self._config.doors)

    def _tell_ready(self) -> None:
        self._tell(f"logknock {__version__} ready: {self._summary()}")
        self._warn()
        _notify("READY=1")

    def _summary(self) -> str:
        return f"NFLOG group {self._config.group}, doors: {_some(self._doors)}"

    def _warn(self) -> None:
        """What is legal and unwise in the configuration, and where the loaded rules do not fit it."""
        for problem in self._config.warnings:
            self._tell(str(problem), Level.WARNING)
        if not self._config.guarded:
            return  # the rules are the administrator's own
        for name, wanted in ((WATCHED, self._config.knocked), (GUARDED, self._config.guarded)):
            try:
                missing = wanted - self._sets.services(name)
            except FirewallError as error:
                self._in_trouble(error)
                return
            if missing:
                services = _some(map(str, sorted(missing)))
                hint = "the configuration is newer than the rules: `logknock rules apply`"
                self._tell(f"set {name} lacks {services} (hint: {hint})", Level.WARNING)

    def _tell_losses(self) -> None:
        lost = self._source.lost
        if lost != self._told_lost:
            text = f"{lost - self._told_lost} records lost on the way from the kernel ({lost} in all)"
            self._tell(text, Level.WARNING, LOST=str(lost))
            self._told_lost = lost

    def _tell_counters(self) -> None:
        source, counted = self._source, self._counters
        self._tell(
            f"{source.records} records, {source.lost} lost ({source.overruns} overruns), {source.ignored} no packet, "
            f"{counted.stale} too old; {self._matcher.knockers} knockers under way; "
            f"{len(self._sets.grants)} doors open, {counted.opened} opened, {counted.closed} closed, "
            f"{counted.refused} refused; {counted.firewall_errors} firewall errors"
        )

    def _tell(self, text: str, level: Level = Level.NOTICE, **fields: str) -> None:
        self._reporter.write(notice(text, level, **fields))


def _some(names: Iterable[str]) -> str:
    """The first few of many names, and how many more there are: a line stays a line."""
    every = list(names)
    shown = every[:_NAMES_SHOWN]
    return ", ".join(shown) + (f" and {len(every) - len(shown)} more" if every[_NAMES_SHOWN:] else "")


def _notify(state: str) -> None:
    """Tell systemd, where it started us (sd_notify(3))."""
    if "NOTIFY_SOCKET" in os.environ:
        from systemd import daemon

        daemon.notify(state)
