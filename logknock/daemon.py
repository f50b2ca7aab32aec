"""The running program: packets in, grants out, until a signal ends it.

Rule 1: one loop; a step takes a few milliseconds at most, so what is much is done in parts. Rule 2: this file joins the
parts and decides nothing: who gets in is decided in `knock`, what opens and closes with it in `doorkeeper`.
Rule 3: trouble with the kernel is told, counted and outlived; ending it is up to the administrator.
"""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from . import __version__, bans, report
from .bans import PAUSE, Bans
from .config import Config, load
from .control import Answer, Control
from .doorkeeper import Doorkeeper
from .errors import UNAVAILABLE, FirewallError, LogknockError, SourceError
from .explain import Known, explain, parse
from .firewall.sets import GUARDED, WATCHED, Sets
from .intake import Intake, Key, Receive, Source
from .knock import Event, Grant, Granted, Matcher, Revoked, Sequence, Service, SetName, Spent
from .packet import Packet
from .reconcile import Reconciler
from .report import Level, Reporter, notice
from .scan import Scanners
from .store import LOCK, NoStore, StoreError, open_store
from .trail import Memory, Refused, Stale, Told
from .turns import Turns

_TICK = 1.0  # seconds between looks at what may have changed without a packet

# The garbage collector walks over every attempt, 20 ms for a full crowd: it runs when there are fewer than that (5 ms),
# once a minute. Attempts and grants hold no cycles; reloads leave a few, and each client of the control socket 7 kB:
# after so many of them it runs in any case.
_COLLECT_BELOW = 8_192
_COLLECT_EVERY = 60
_COLLECT_AFTER = 1_000

# A record that is so many seconds ahead of our clock says nothing of when its packet came: it means nothing either.
_AHEAD = 5.0

# Seconds by which a log's clock has to be wrong for somebody to be told, and between two times that they are.
_WRONG_CLOCK = 600.0
_TELL_AGAIN = 60

_DEEDS = frozenset({Spent, Granted, Revoked})  # events that ask for something to be done

_NAMES_SHOWN = 10


class Daemon:
    """Everything that lives as long as the process. Raises LogknockError if it cannot start."""

    def __init__(self, config_path: Path, reporter: Reporter) -> None:
        self._path = config_path
        self._reporter = reporter
        self._loaded = time.time()
        self._config = load(config_path)
        self._longest = _longest(self._config)
        self._matcher = Matcher(self._config.doors)
        self._intake = Intake(self._matcher.heeds, self._read, self._receive, self._tell_intake)
        # The first netlink socket of a process has its id as port, by which the next one learns who holds the group.
        self._opened = self._intake.open(self._config)
        self._sets = Sets()
        self._firewall = Reconciler(self._sets, self._config, self._tell)
        self._store = open_store(self._config.state)
        self._keeper = Doorkeeper(self._store, self._sets, self._config.state, reporter.write)
        self._memory = Memory()
        self._control = Control(self._config.runtime, self._answer)
        self._turns = Turns(self._store, self._on_turn, self._tell_turn)
        self._bans = Bans(self._sets, reporter.write)
        self._firewall.kept.append(self._bans)
        self._scanners: Scanners | None = None
        self._use_scan(self._config)
        self._working = False  # whether more work on the one-time files is on its way
        self._firewall_errors = 0
        self._stale = 0  # packets that were too old, or from the future
        self._apart = 0.0  # by how much the clock of a log is wrong; 0.0: it is not, as far as is known
        self._oldest = self._newest = 0.0  # packets from before or after that mean nothing; set for each read
        self._ticks = 0
        self._met = 0  # clients of the control socket when the garbage collector ran last
        self._tell_apart_at = 0  # the tick at which it may be told again
        self._stopped = asyncio.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises SourceError when there is nothing left to read."""
        gc.collect()
        gc.freeze()
        gc.disable()
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._tell_counters)
        loop.call_later(_TICK, self._tick)
        await self._firewall.start()
        self._intake.adopt(self._opened, self._config)
        self._take_over()
        await self._open_control()
        self._tell_ready()
        await self._stopped.wait()
        _notify("STOPPING=1")
        await self._control.close()
        self._tell_counters()
        ended = self._intake.ended
        self._intake.close()
        await self._keeper.stop()
        self._firewall.close()
        self._sets.disconnect()
        with suppress(StoreError):  # nothing is lost: what was committed is in its log
            self._store.close()
        self._tell("stopped; open doors close on time by themselves")
        if ended:
            hint = "what is piped in has to go on; systemd starts both anew with Restart=on-failure"
            raise SourceError("nothing is left to read: all sources have ended", hint, UNAVAILABLE)

    async def _open_control(self) -> None:
        try:
            await self._control.open()
        except LogknockError as error:  # knocks do not need it
            self._tell(f"nobody can ask this daemon anything: {error.words()}", Level.ERROR)

    def _answer(self, request: Answer) -> Iterable[Answer | None]:
        """What somebody asks through the control socket."""
        match request.get("do"):
            case "explain":
                return explain(parse(request), self._known)
            case "status":
                return [{"sources": [tally._asdict() for tally in self._intake.tallies]}]
            case "bans" | "ban" | "unban":
                return bans.answer(request, self._bans)
            case other:
                can = "it can: explain, status, bans, ban, unban"
                raise LogknockError(f"{other!r} is nothing that this daemon does", can)

    @property
    def _known(self) -> Known:
        parts = (self._config, self._matcher, self._memory, self._intake, self._sets, self._bans)
        return Known(*parts, self._firewall.trouble, self._longest)

    def _read(self, source: Source, receive: Receive) -> bool:
        now = time.time()
        self._oldest, self._newest = now - self._longest, now + _AHEAD
        if self._scanners is not None:
            self._scanners.at(time.monotonic())
            receive = partial(self._look_at, self._scanners, receive)
        more = source.read(now, receive)
        self._keeper.settle()
        return more

    def _receive(self, packet: Packet) -> None:
        """Act first, tell afterwards: a door does not wait for the log."""
        if not self._oldest < packet.time <= self._newest:
            self._pass_over(packet)
            return
        events = self._matcher.receive(packet)
        for event in events:
            if type(event) in _DEEDS:
                self._act(packet, events)
                return
        # A loop with as little as that in it: most of a flood's packets are first knocks, and end here.
        self._memory.keep(packet, events)
        self._reporter.tell(events)

    def _act(self, packet: Packet, events: Iterable[Event]) -> None:
        """Open and close what a packet's events ask for, and tell."""
        told: list[Told] = []
        shut: dict[str, str] = {}  # doors whose one-time sequence cannot be used, and why
        closed: list[report.Line] = []
        for event in events:
            match event:
                case Spent(_, code):
                    reason = self._turns.spend(code, packet.src, time.time())
                    if reason:
                        shut[code.door] = reason
                    else:
                        shut.pop(code.door, None)
                    told.append(Refused(packet, code.door, reason) if reason else event)
                    self._work_soon()
                case Granted(_, Grant(door)) | Revoked(_, _, door) if door in shut:
                    self._matcher.spare(door, packet.src)
                case Granted(_, grant):
                    reason = self._open(grant)
                    told.append(Refused(packet, grant.door, reason) if reason else event)
                case Revoked(_, door, by):
                    told.append(event)
                    closed += self._close(door, by, packet.src)
                case _:
                    told.append(event)
        self._memory.keep(packet, told)
        self._reporter.tell(told)
        for line in closed:
            self._reporter.write(line)

    def _pass_over(self, packet: Packet) -> None:
        """It waited too long somewhere to mean anything now (T29), or somebody's clock is wrong."""
        age = time.time() - packet.time
        self._stale += 1
        self._memory.keep(packet, (Stale(packet, age),))
        if abs(age) > _WRONG_CLOCK and self._matcher.heeds(packet.src, packet.proto, packet.dport):
            self._apart = age

    def _open(self, grant: Grant) -> str:
        """Open the door; empty when it is open, or why it is not."""
        try:
            self._bans.admit(grant.src)
            reason = self._keeper.open(grant.door, grant.src, time.time(), time.monotonic())
        except FirewallError as error:
            self._firewall_errors += 1
            self._firewall.refused(error)
            reason = error.words()
        if reason:
            self._matcher.spare(grant.door, grant.src)
        return reason

    def _close(self, door: str, by: str, src: bytes) -> list[report.Line]:
        try:
            closed = self._keeper.close(door, by, src, time.time(), time.monotonic())
        except FirewallError as error:
            self._firewall_errors += 1
            self._firewall.in_trouble(error)
            return []
        return [closed] if closed else []

    def _tick(self) -> None:
        asyncio.get_running_loop().call_later(_TICK, self._tick)
        self._expire()
        self._give_up()
        self._bans.settle(time.monotonic())
        if self._scanners is not None:
            self._scanners.settle()
        self._firewall.tick()
        self._watch_state()
        self._intake.settle()
        self._reporter.settle()
        self._ticks += 1
        if self._apart and self._ticks >= self._tell_apart_at:
            self._tell_apart()
        self._collect()
        if self._intake.ended:
            self._stopped.set()

    def _give_up(self) -> None:
        """Attempts whose time is over."""
        now = time.time()
        ended = self._matcher.expire(now)
        self._memory.keep_ended(ended, now)
        self._reporter.tell(ended)

    def _collect(self) -> None:
        due = self._ticks % _COLLECT_EVERY == 0 and self._matcher.knockers < _COLLECT_BELOW
        if due or self._control.met - self._met >= _COLLECT_AFTER:
            self._met = self._control.met
            gc.collect()

    def _tell_apart(self) -> None:
        way = "behind" if self._apart > 0 else "ahead of"
        text = f"knocks are passed over: the records' times are {abs(self._apart):.0f} s {way} this host's clock"
        self._tell(f"{text} (hint: the clocks and time zones of this host and of the log have to agree)", Level.WARNING)
        self._apart, self._tell_apart_at = 0.0, self._ticks + _TELL_AGAIN

    def _expire(self) -> None:
        if self._keeper.expire(time.time(), time.monotonic()):
            asyncio.get_running_loop().call_soon(self._expire)

    def _watch_state(self) -> None:
        """What the store and the one-time files need now and then."""
        self._turns.look()
        self._work_soon()
        self._keeper.tidy()
        if self._store.needs_checkpoint:
            # In a thread, since it waits for the disk; `use` alone waits for it here, before a door opens.
            asyncio.get_running_loop().run_in_executor(None, self._checkpoint)

    def _checkpoint(self) -> None:
        with suppress(StoreError):  # tried again with the next tick
            self._store.checkpoint()

    def _work_soon(self) -> None:
        """Work on the one-time files until nothing is left to do, packets first."""
        if not self._working:
            self._working = True
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        self._working = False
        if self._turns.work():
            self._work_soon()

    def _take_over(self) -> None:
        """Begin with what was before: the doors that are still open, and how far the one-time files are used."""
        if isinstance(self._store, NoStore):
            words = f"nothing is remembered, and one-time doors stay shut until a restart: {self._store.reason.words()}"
            self._tell(words, Level.ERROR)
        elif self._store.created and self._config.onetime_files:
            self._tell("the state database is new: no one-time sequence counts as used", Level.WARNING)
        elif not self._store.checked:
            self._tell("the state database is large: not all of it was checked for damage")
        self._keeper.use(self._config.doors)
        taken = self._keeper.restore(time.time(), time.monotonic())
        if taken:
            self._tell(f"{taken} {'door is' if taken == 1 else 'doors are'} still open")
        self._firewall.take_over(complete=not isinstance(self._store, NoStore))
        self._turns.use(self._config.doors)
        self._work_soon()
        self._take_over_bans()

    def _take_over_bans(self) -> None:
        try:
            taken = self._bans.take_over(time.time(), time.monotonic())
        except FirewallError as error:
            if self._config.scan.ports:
                self._tell(f"no scanner can be banned: {error.words()}", Level.ERROR)
            return
        if taken:
            self._tell(f"{taken} {'is' if taken == 1 else 'are'} still banned")

    def _reload(self) -> None:
        """Go on with the configuration as it is now, or, if it is bad in any way, with the old one (T36)."""
        _notify("RELOADING=1")
        loaded = time.time()
        try:
            config = load(self._path)
            if config.state != self._config.state:
                raise LogknockError("[paths] state cannot change while logknock runs", "restart it")
            sources = self._intake.open(config)
            try:
                self._sets.use(config.doors)
            except FirewallError:
                self._intake.discard(sources)
                raise
        except LogknockError as error:
            for text in error.report():
                self._tell(text.removeprefix("logknock: "), Level.ERROR)
            self._tell("not reloaded: the configuration from before stays in force", Level.ERROR)
        else:
            self._loaded = loaded
            self._adopt(config, sources)
        finally:
            _notify("READY=1")

    def _use_scan(self, config: Config) -> None:
        """Look for scanners if the configuration has it; else nothing of that costs a packet anything."""
        scan = config.scan
        self._bans.use(scan, config.firewall.trusted)
        if scan.ports:
            self._scanners = Scanners(self._matcher.heeds, self._matcher.heeds_none, self._turns.knocked)
            self._scanners.use(scan.ports, scan.within, scan.counts, config.knocked | config.guarded)
            self._intake.heeds, self._intake.heeds_none = self._scanners.heeds, self._scanners.heeds_none
        else:
            self._scanners = None
            self._intake.heeds, self._intake.heeds_none = self._matcher.heeds, self._matcher.heeds_none

    def _look_at(self, scanners: Scanners, receive: Receive, packet: Packet) -> None:
        """What may make its source a scanner. A record that waited says nothing of what goes on now (T29)."""
        receive(packet)
        if self._oldest < packet.time <= self._newest:
            # What decodes in bulk has asked about it already: the same port again changes nothing.
            scanners.see(packet.src, packet.proto, packet.dport, packet.flags)
            if scanners.caught is not None and self._bans.suspect(scanners.caught):
                asyncio.get_running_loop().call_later(PAUSE, self._ban)
        scanners.caught = None

    def _ban(self) -> None:
        self._bans.apply(time.time(), time.monotonic())

    def _adopt(self, config: Config, sources: Mapping[Key, Source]) -> None:
        self._use_scan(config)
        self._intake.adopt(sources, config)
        if config.guarded and config.logged_to != self._config.logged_to:
            words = f"the rules are to log to another place now: {config.logged_to} (hint: `logknock rules apply`)"
            self._tell(words, Level.WARNING)
        self._config = config
        self._longest = _longest(config)
        self._matcher.set_doors(config.doors)
        self._keeper.use(config.doors)
        self._firewall.adopt(config)
        self._turns.use(config.doors)
        self._work_soon()
        self._note_loading()
        self._tell(f"reloaded: {self._summary()}")
        self._warn()

    def _note_loading(self) -> None:
        """The time of the lock file says since when this configuration counts."""
        with suppress(OSError):
            os.utime(self._config.state / LOCK, (self._loaded, self._loaded))

    def _tell_ready(self) -> None:
        self._note_loading()
        self._tell(f"logknock {__version__} ready: {self._summary()}")
        self._warn()
        _notify("READY=1")

    def _summary(self) -> str:
        return f"{self._intake.summary}, doors: {_some(door.name for door in self._config.doors)}"

    def _warn(self) -> None:
        """What is legal and unwise in the configuration, and where the loaded rules do not fit it."""
        for problem in self._config.warnings:
            self._tell(str(problem), Level.WARNING)
        if not self._config.guarded:
            return  # the rules are the administrator's own
        for name, wanted in ((WATCHED, self._config.watched), (GUARDED, self._config.guarded)):
            self._warn_of_missing(name, wanted)

    def _warn_of_missing(self, name: SetName, wanted: Iterable[Service]) -> None:
        try:
            missing = self._sets.lacks(name, sorted(wanted))
        except FirewallError as error:
            self._firewall.in_trouble(error)
            return
        if missing:
            hint = "the configuration is newer than the rules: `logknock rules apply`"
            self._tell(f"set {name} lacks {_some(map(str, missing))} (hint: {hint})", Level.WARNING)

    def _on_turn(self, door: str, file: str, sequence: Sequence | None) -> None:
        """Another one-time sequence counts, or none."""
        self._matcher.set_code(door, file, sequence)
        if sequence and self._config.guarded and self._config.firewall.record:
            self._warn_of_missing(WATCHED, set(sequence))

    def _tell_counters(self) -> None:
        counted = self._keeper.counters
        records, lost, ignored, overruns = self._intake.counters
        self._tell(
            f"{records} records, {lost} lost ({overruns} overruns), {ignored} no packet, "
            f"{self._stale} too old; {self._matcher.knockers} knockers under way; "
            f"{len(self._sets.grants)} doors open, {counted.opened} opened, {counted.closed} closed, "
            f"{counted.refused} refused; {len(self._bans)} banned, {self._bans.left_out} scanners not banned; "
            f"{self._firewall_errors} firewall errors"
        )

    def _tell_intake(self, text: str, **fields: str) -> None:
        self._tell(text, Level.WARNING, **fields)

    def _tell_turn(self, text: str, bad: bool) -> None:
        self._tell(text, Level.WARNING if bad else Level.NOTICE)

    def _tell(self, text: str, level: Level = Level.NOTICE, **fields: str) -> None:
        self._reporter.write(notice(text, level, **fields))


def _longest(config: Config) -> float:
    """Seconds after which a packet means nothing to any door."""
    return max(door.seq_timeout for door in config.doors)


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
