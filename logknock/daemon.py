"""The running program: packets in, grants out, until a signal ends it.

Rule 1: one loop; a step takes a few milliseconds at most, so what is much is done in parts. Rule 2: this file joins the
parts and decides nothing: who gets in is decided in `knock`, what opens and closes with it in `doorkeeper`.
Rule 3: trouble with the kernel is told, counted and outlived; ending it is up to the administrator.
"""

import asyncio
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import floor
from pathlib import Path

from . import __version__, report, standing
from .bans import PAUSE, Bans
from .config import Config, PortRange, load
from .control import Control
from .counts import ADOPTED, REFUSED, Facts, Left
from .desk import Desk, Duties, Reloaded
from .doorkeeper import Doorkeeper, Hand
from .errors import UNAVAILABLE, FirewallError, LogknockError, SourceError
from .explain import Known
from .exposition import Exposition
from .firewall.sets import GUARDED, SPA, WATCHED, Sets
from .garbage import Garbage
from .gate import Accepted, Gate
from .intake import Intake, Key, Receive, Source
from .knock import (
    Code,
    Derived,
    Door,
    Event,
    Grant,
    Granted,
    Matcher,
    Nearing,
    Revoked,
    Sequence,
    Service,
    SetName,
    Spent,
    Why,
)
from .mailbox import Mailbox
from .packet import ICMP, ICMP6, Carried, Packet, address_text
from .reconcile import Reconciler
from .report import Level, Reporter, notice
from .scan import Scanners
from .sole import Sole
from .sources.nflog import Mail
from .spa import Reason as SpaReason
from .standing import Rates, SourceStanding, Standing, Trouble, Troubles
from .steps import Steps
from .store import LOCK, NoStore, StoreError, open_store
from .systemd import Systemd, check_directories
from .trail import Mailed, Memory, Refused, Stale, Told
from .turns import Turns

_TICK = 1.0  # seconds between looks at what may have changed without a packet

# Ticks between two looks at whether SPA packets are recorded: some are a millisecond, for a hundred ranges of ports.
_LOOK_EVERY = 10

# A record that is so many seconds ahead of our clock says nothing of when its packet came: it means nothing either.
_AHEAD = 5.0

# Seconds by which a log's clock has to be wrong for somebody to be told, and between two times that they are.
_WRONG_CLOCK = 600.0
_TELL_AGAIN = 60

_DEEDS = frozenset({Nearing, Spent, Granted, Revoked})  # events that ask for something to be done

_NAMES_SHOWN = 10

_WARNING = "logknock: warning: "
_APPLY = "`logknock rules apply`"
_SOURCE_HINT = "a client's `source` keeps packets from elsewhere from costing its key anything"
_NEWER = f"the configuration is newer than the rules: {_APPLY}"


class Daemon:
    """Everything that lives as long as the process. Raises LogknockError if it cannot start."""

    def __init__(self, config_path: Path, reporter: Reporter) -> None:
        self._path = config_path
        self._reporter = reporter
        self._systemd = Systemd()
        self._began = self._loaded = time.time()
        self._config = load(config_path)
        check_directories(self._config.state, self._config.runtime)
        self._longest = _longest(self._config)
        self._matcher = Matcher(self._config.doors)
        self._intake = Intake(self._matcher.heeds, self._read, self._receive, self._tell_intake)
        # The first netlink socket of a process has its id as port, by which the next one learns who holds the group.
        self._opened = self._intake.open(self._config)
        self._sets = Sets()
        self._firewall = Reconciler(self._sets, self._config, partial(self._tell, EVENT="firewall"))
        self._store = open_store(self._config.state)
        self._sole = Sole()
        self._sole.use(self._config)
        self._keeper = Doorkeeper(self._store, self._sets, self._config.state, reporter.write)
        self._memory = Memory()
        self._counts = self._memory.counts
        self._reading = ""  # the source that packets come from now
        self._garbage = Garbage()
        self._exposition = Exposition(self._facts, self._tell_metrics, self._garbage.add_client)
        self._control = Control(self._config.runtime, lambda *ask: self._desk.answer(*ask), self._garbage.add_client)
        self._turns = Turns(self._store, self._on_turn, self._tell_turn)
        self._steps = Steps(self._store, self._matcher, self._tell_clients)
        self._gate = Gate(self._store)
        self._mailbox = Mailbox(self._judge)
        self._deaf = ""  # why no packet (SPA) to some of its ports is recorded
        self._left_out = 0  # packets (SPA) that nobody looked at in the last second
        self._gate_trouble: LogknockError | None = None  # why no packet (SPA) can be read at all
        self._bans = Bans(self._sets, reporter.write)
        self._firewall.kept.append(self._bans)
        self._reading_anew = asyncio.Lock()  # the configuration, by one reload at a time
        self._reloads: set[asyncio.Task[Reloaded]] = set()
        self._next_reload: asyncio.Task[Reloaded] | None = None  # the one that has not begun to read
        duties = Duties(self.standing, lambda: self._known, self._open_by_hand, self._close_by_hand, self._reload_soon)
        self._desk = Desk(duties, self._keeper, self._bans, self._control.feed)
        reporter.also(self._desk)
        self._scanners: Scanners | None = None
        self._use_scan(self._config)
        self._use_gate(self._config)
        self._working = False  # whether more work on the one-time files is on its way
        self._firewall_errors = 0
        self._stale = 0  # packets that were too old, or from the future
        self._apart = 0.0  # by how much the clock of a log is wrong; 0.0: it is not, as far as is known
        self._oldest = self._newest = 0.0  # packets from before or after that mean nothing; set for each read
        self._ticks = 0
        self._rates, self._troubles = Rates(), Troubles()
        self._control_trouble: LogknockError | None = None
        self._opening: asyncio.Task[None] | None = None  # the control socket, once more
        self._tell_apart_at = 0  # the tick at which it may be told again
        self._stopped = asyncio.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises SourceError when there is nothing left to read."""
        self._garbage.begin()
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        loop.add_signal_handler(signal.SIGUSR1, self._tell_counters)
        loop.call_later(_TICK, self._tick)
        await self._firewall.start()
        self._intake.adopt(self._opened, self._config)
        self._counts.use(self._config.doors, self._intake.names)
        self._take_over()
        await self._open_control()
        self._exposition.use(self._config.metrics)
        self._tell_ready()
        await self._stopped.wait()
        for task in self._reloads:
            task.cancel()
        await asyncio.gather(*self._reloads, return_exceptions=True)
        self._systemd.tell("STOPPING=1")
        await self._control.close()
        await self._exposition.close()
        self._tell_counters()
        ended = self._intake.ended
        self._intake.close()
        await self._keeper.stop()
        self._firewall.close()
        self._sets.disconnect()
        with suppress(StoreError):  # nothing is lost: what was committed is in its log
            self._store.close()
        self._tell("stopped; open doors close on time by themselves", EVENT="stopped")
        if ended:
            hint = "what is piped in has to go on; systemd starts both anew with Restart=on-failure"
            raise SourceError("nothing is left to read: all sources have ended", hint, UNAVAILABLE)

    async def _open_control(self) -> None:
        try:
            await self._control.open()
        except LogknockError as error:  # knocks do not need it
            if self._control_trouble is None or self._control_trouble.message != error.message:
                self._tell(f"nobody can ask this daemon anything: {error.words()}", Level.ERROR, EVENT="control")
            self._control_trouble = error
            return
        if self._control_trouble is not None:
            self._tell("this daemon can be asked again", EVENT="control")
        self._control_trouble = None

    def _watch_control(self) -> None:
        """Have the control socket made anew where it could not be made, or is not there any more."""
        opened = self._opening is None or self._opening.done()
        if opened and not self._stopped.is_set() and not self._control.is_there:
            self._opening = asyncio.get_running_loop().create_task(self._open_control())

    @property
    def _known(self) -> Known:
        parts = (self._config, self._matcher, self._memory, self._intake, self._sets, self._bans, self._steps)
        return Known(*parts, self._firewall.trouble, self._longest)

    def _read(self, source: Source, receive: Receive) -> bool:
        now = time.time()
        self._see_times(now)
        if self._scanners is not None:
            self._scanners.at(time.monotonic())
            receive = partial(self._look_at, self._scanners, receive)
        self._reading = source.name
        more = source.read(now, receive)
        self._keeper.settle()
        return more

    def _see_times(self, now: float) -> None:
        self._oldest, self._newest = now - self._longest, now + _AHEAD

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
        shut: dict[str, str] = {}  # doors whose one-time sequence, or client's step, cannot be used, and why
        proven: dict[str, str] = {}  # doors that a client has proved who it is at
        closed: list[report.Line] = []
        for event in events:
            match event:
                case Nearing(_, derived):
                    self._steps.reserve(derived, packet.src, time.time())
                case Spent(_, code):
                    reason = self._spend(code, packet.src)
                    if not reason:
                        shut.pop(code.door, None)
                        if isinstance(code, Derived):
                            proven[code.door] = code.client
                    elif code.door not in proven:  # another client's sequence may be the same
                        shut[code.door] = reason
                    told.append(self._refuse(packet, code.door, reason) if reason else event)
                case Granted(_, Grant(door)) | Revoked(_, _, door) if door in shut:
                    self._matcher.spare(door, packet.src)
                case Granted(_, Grant(door)) if door in proven:
                    seconds = round(event.grant.expires - packet.time, 3)  # as the door has it, to the millisecond
                    hand = Hand(seconds, f"client {proven[door]}", shortens=False)
                    told.append(self._open(event, hand))
                case Granted():
                    told.append(self._open(event))
                case Revoked(_, door, by):
                    told.append(event)
                    closed += self._close(door, by, packet.src)
                case _:
                    told.append(event)
        self._memory.keep(packet, told)
        self._reporter.tell(told)
        for line in closed:
            self._reporter.write(line)

    def _spend(self, code: Code | Derived, src: bytes) -> str:
        """Put the use of a sequence on record, before anything opens; empty, or why nothing may open."""
        if isinstance(code, Code):
            self._work_soon()
            return self._turns.spend(code, src, time.time())
        reason = self._steps.spend(code, src, time.time())
        if reason:
            self._keeper.try_store()
        return reason

    def _take_in(self, carried: Carried) -> None:
        """A single packet (SPA): it waits for the end of this read at least (T30)."""
        if self._mailbox.put(carried, self._reading):
            self._work_soon()
            return
        self._counts.mailed(SpaReason.LEFT_OUT)
        self._memory.keep(carried.packet, (Mailed(carried.packet, "", "", SpaReason.LEFT_OUT, ""),))

    def _work_on_mail(self) -> bool:
        self._see_times(time.time())
        more = self._mailbox.work()
        self._keeper.settle()
        return more

    def _judge(self, carried: Carried, source: str) -> None:
        """Open what a single packet (SPA) may have: it is on record before anything opens (T18, T20)."""
        if self._intake.mail is None:
            return  # a reload has taken the doors away
        packet, self._reading = carried.packet, source
        if not self._oldest < packet.time <= self._newest:
            self._pass_over(packet)
            return
        judged = self._gate.judge(carried, time.time())
        if isinstance(judged, Accepted):
            self._counts.mailed(None)
            self._let_in(packet, judged)
            return
        self._counts.mailed(judged.reason)
        if judged.reason is SpaReason.STORE:
            self._keeper.try_store()
        self._memory.keep(packet, (Mailed(*judged),))
        self._reporter.tell((Mailed(*judged),))

    def _let_in(self, packet: Packet, accepted: Accepted) -> None:
        """Open what a packet asks for and may have, each service by itself, and close what its doors close."""
        key, address, services, _, _ = accepted
        whom = "" if address == packet.src else f", for {address_text(address)}"
        told: list[Told] = [Mailed(packet, key.door, key.client, None, f"{', '.join(map(str, services))}{whom}")]
        closed: list[report.Line] = []
        doors = [self._config.spa_doors[key.door, service] for service in services]
        for door in doors:
            told.append(self._open_by_mail(packet, door, accepted))
        for name in dict.fromkeys(name for door in doors if _is_aimed(packet, door) for name in door.closes):
            told.append(Revoked(packet, name, key.door))
            closed += self._close(name, key.door, address)
        self._memory.keep(packet, told)
        self._reporter.tell(told)
        for line in closed:
            self._reporter.write(line)

    def _open_by_mail(self, packet: Packet, door: Door, accepted: Accepted) -> Told:
        """Open one of the doors that a packet asks for; what there is to tell of it."""
        if not _is_aimed(packet, door):
            return self._refuse(packet, door.name, str(Why.TARGET))
        hand = Hand(accepted.seconds or door.timeout, f"client {accepted.key.client}", shortens=False)
        return self._open(Granted(packet, Grant(door.name, accepted.address, packet.time + hand.seconds)), hand)

    def _pass_over(self, packet: Packet) -> None:
        """It waited too long somewhere to mean anything now (T29), or somebody's clock is wrong."""
        age = time.time() - packet.time
        self._stale += 1
        self._memory.keep(packet, (Stale(packet, age),))
        if abs(age) > _WRONG_CLOCK and self._means_something(packet):
            self._apart = age

    def _means_something(self, packet: Packet) -> bool:
        """Whether it would have been looked at, had it come in time."""
        if self._intake.mail is not None and self._intake.mail.wants(packet.proto, packet.dport):
            return True
        return self._matcher.heeds(packet.src, packet.proto, packet.dport)

    def _open(self, event: Granted, hand: Hand | None = None) -> Told:
        """Open the door; what there is to tell: that it is open, or why it is not."""
        packet, grant = event
        reason = self._admit(grant.door, grant.src, hand)
        if reason:
            self._matcher.spare(grant.door, grant.src)
            return self._refuse(packet, grant.door, reason)
        self._counts.opened(self._reading, time.time() - packet.time)
        found = self._keeper.find(grant.door, grant.src, time.monotonic())
        kept = 0.0 if found is None else packet.time + floor(found.left)
        if kept > grant.expires:  # it was open for longer already
            return Granted(packet, grant._replace(expires=kept))
        return event

    def _refuse(self, packet: Packet, door: str, reason: str) -> Refused:
        self._counts.refused(door)
        return Refused(packet, door, reason)

    def _admit(self, door: str, src: bytes, hand: Hand | None = None) -> str:
        try:
            self._bans.admit(src)
            return self._keeper.open(door, src, time.time(), time.monotonic(), hand)
        except FirewallError as error:
            self._firewall_errors += 1
            self._firewall.refused(error)
            return error.words()

    def _open_by_hand(self, door: str, src: bytes, hand: Hand) -> str:
        """The same without a knock."""
        reason = self._admit(door, src, hand)
        self._reporter.write(report.by_hand(door, src, hand.by, hand.seconds, reason))
        return reason

    def _close_by_hand(self, door: str, src: bytes, by: str) -> bool:
        """Close a door before its time; whether it was open. Raises FirewallError."""
        try:
            closed = self._keeper.close(door, by, src, time.time(), time.monotonic())
        except FirewallError as error:
            self._firewall_errors += 1
            self._firewall.in_trouble(error)
            raise
        if closed:
            self._reporter.write(closed)
        return closed is not None

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
        self._tell_left_out()
        self._reporter.settle()
        self._counts.settle()
        self._exposition.tick()
        self._watch_control()
        self._rates.see({tally.name: tally.records for tally in self._intake.tallies}, time.monotonic())
        self._troubles.see(self._in_trouble(), time.time())
        self._desk.tick()
        self._ticks += 1
        if self._apart and self._ticks >= self._tell_apart_at:
            self._tell_apart()
        self._garbage.tick(self._matcher.knockers)
        self._systemd.tick(self.standing(), time.monotonic(), well=not self._intake.neglected())
        if self._intake.ended:
            self._stopped.set()

    def _give_up(self) -> None:
        """Attempts whose time is over."""
        now = time.time()
        ended = self._matcher.expire(now)
        self._memory.keep_ended(ended, now)
        self._reporter.tell(ended)

    def _tell_apart(self) -> None:
        way = "behind" if self._apart > 0 else "ahead of"
        text = f"knocks are passed over: the records' times are {abs(self._apart):.0f} s {way} this host's clock"
        hint = "the clocks and time zones of this host and of the log have to agree"
        self._tell(f"{text} (hint: {hint})", Level.WARNING, EVENT="clock")
        self._apart, self._tell_apart_at = 0.0, self._ticks + _TELL_AGAIN

    def _tell_left_out(self) -> None:
        self._left_out = self._mailbox.settle()
        if self._left_out:
            self._tell(self._left_out_words, Level.WARNING, EVENT="clients")

    @property
    def _left_out_words(self) -> str:
        return f"{self._left_out} SPA packets left out within a second: more came than there is time to look at"

    def _expire(self) -> None:
        if self._keeper.expire(time.time(), time.monotonic()):
            asyncio.get_running_loop().call_soon(self._expire)

    def _watch_state(self) -> None:
        """What the store and the one-time files need now and then."""
        self._turns.look()
        if self._deaf or self._ticks % _LOOK_EVERY == 0:
            self._look_at_ports()
        self._steps.tick(time.time())
        self._work_soon()
        self._keeper.tidy()
        if self._config.spa_keys:
            with suppress(StoreError):  # the keeper tells of that; what is too old is forgotten later
                self._gate.tidy(time.time())
        if self._store.needs_checkpoint:
            # In a thread, since it waits for the disk; `use` alone waits for it here, before a door opens.
            asyncio.get_running_loop().run_in_executor(None, self._checkpoint)

    def _checkpoint(self) -> None:
        with suppress(StoreError):  # tried again with the next tick
            self._store.checkpoint()

    def _work_soon(self) -> None:
        """Work on mail, one-time files and clients' steps until nothing is left to do, what is read first."""
        if not self._working:
            self._working = True
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        self._working = False
        busy = self._work_on_mail(), self._turns.work(), self._steps.work(time.time())
        if any(busy):
            self._work_soon()

    def _take_over(self) -> None:
        """Begin with what was before: the doors that are still open, and how far the one-time files are used."""
        if isinstance(self._store, NoStore):
            words = f"nothing is remembered{self._shut_by_that(' until a restart')}: {self._store.reason.words()}"
            self._tell(words, Level.ERROR, EVENT="state")
        elif self._store.created and self._config.onetime_files:
            words = "the state database is new: no one-time sequence counts as used"
            self._tell(words, Level.WARNING, EVENT="state")
        elif self._store.created and any(door.proof for door in self._config.doors):
            words = "the state database is new: what clients have sent within the last minutes counts as unused"
            self._tell(words, EVENT="state")
        elif not self._store.checked:
            self._tell("the state database is large: not all of it was checked for damage", EVENT="state")
        self._keeper.use(self._config.doors)
        taken = self._keeper.restore(time.time(), time.monotonic())
        if taken:
            self._tell(f"{taken} {'door is' if taken == 1 else 'doors are'} still open")
        self._firewall.take_over(complete=not isinstance(self._store, NoStore))
        self._turns.use(self._config.doors)
        self._steps.use(self._config.totp, time.time())
        self._work_soon()
        self._take_over_bans()

    def _take_over_bans(self) -> None:
        try:
            taken = self._bans.take_over(time.time(), time.monotonic())
        except FirewallError as error:
            if self._config.scan.ports:
                self._bans.in_trouble("no scanner can be banned", error)
            return
        if taken:
            self._tell(f"{taken} {'is' if taken == 1 else 'are'} still banned")

    def _reload_soon(self) -> asyncio.Task[Reloaded]:
        """A reload that reads the files as they are from now on: all that ask before it begins share it."""
        if self._next_reload is None:
            self._next_reload = asyncio.get_running_loop().create_task(self._reload())
            self._reloads.add(self._next_reload)
            self._next_reload.add_done_callback(self._forget_reload)
        return self._next_reload

    def _forget_reload(self, task: asyncio.Task[Reloaded]) -> None:
        self._reloads.discard(task)
        if not task.cancelled():
            task.result()

    async def _reload(self) -> Reloaded:
        """Go on with the configuration as it is now, or, if it is bad in any way, with the old one (T36).

        It is read beside the loop: a thousand clients' files take a tenth of a second.
        """
        async with self._reading_anew:
            self._next_reload = None
            self._systemd.tell("RELOADING=1")
            loaded = time.time()
            try:
                return self._change_to(await asyncio.to_thread(load, self._path), loaded)
            except LogknockError as error:
                return self._stay(error)
            finally:
                self._systemd.tell("READY=1")

    def _stay(self, error: LogknockError) -> Reloaded:
        for text in error.report():
            self._tell(text.removeprefix("logknock: "), Level.ERROR, EVENT="not-reloaded")
        words = "not reloaded: the configuration from before stays in force"
        self._tell(words, Level.ERROR, EVENT="not-reloaded")
        self._counts.reloaded(REFUSED)
        return Reloaded(tuple(error.report()), error.exit_code)

    def _change_to(self, config: Config, loaded: float) -> Reloaded:
        """Raises LogknockError, with all as it was, where it cannot be."""
        for key, now, then in (
            ("state", self._config.state, config.state),
            ("runtime", self._config.runtime, config.runtime),
        ):
            if now != then:
                raise LogknockError(f"[paths] {key} cannot change while logknock runs", "restart it")
        self._sole.use(config)
        sources = self._intake.open(config)
        try:
            self._sets.use(config.doors)
        except FirewallError:
            self._intake.discard(sources)
            raise
        self._counts.reloaded(ADOPTED)
        self._loaded = loaded
        return Reloaded(tuple(self._adopt(config, sources)), 0)

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

    def _use_gate(self, config: Config) -> None:
        """Read single packets (SPA) if the configuration has doors for them; else nothing of that costs anything."""
        self._gate_trouble = None
        self._intake.mail = None
        try:
            self._gate.use(config.spa_keys)
        except LogknockError as error:
            self._gate_trouble = error
            self._gate.use(())
            return
        if config.spa_ports or config.spa_icmp:
            wants = partial(_is_mail, config.spa_ports, config.spa_icmp, config.guarded)
            self._intake.mail = Mail(wants, self._take_in)

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

    def _adopt(self, config: Config, sources: Mapping[Key, Source]) -> list[str]:
        """Go on with it; what is unwise about it, and where the loaded rules do not fit, as lines to print."""
        lines: list[str] = []
        self._use_scan(config)
        self._use_gate(config)
        self._intake.adopt(sources, config)
        if config.guarded and config.logged_to != self._config.logged_to:
            lines += self._advise(f"the rules are to log to another place now: {config.logged_to}", _APPLY)
        lines += self._warn_of_left(self._config.guarded - config.guarded)
        self._config = config
        self._longest = _longest(config)
        self._counts.use(config.doors, self._intake.names)
        self._exposition.use(config.metrics)
        for trouble in self._exposition.troubles:
            lines += [f"{_WARNING}{trouble.message}", f"hint: {trouble.hint}"]
        self._matcher.set_doors(config.doors)
        self._keeper.use(config.doors)
        self._firewall.adopt(config)
        self._turns.use(config.doors)
        self._steps.use(config.totp, time.time())
        self._work_soon()
        self._note_loading()
        self._tell(f"reloaded: {self._summary()}", EVENT="reloaded")
        return lines + self._warn()

    def _note_loading(self) -> None:
        """The time of the lock file says since when this configuration counts."""
        with suppress(OSError):
            os.utime(self._config.state / LOCK, (self._loaded, self._loaded))

    def _tell_ready(self) -> None:
        self._note_loading()
        self._tell(f"logknock {__version__} ready: {self._summary()}", EVENT="ready")
        self._warn()
        self._systemd.ready(self.standing())

    def _summary(self) -> str:
        return f"{self._intake.summary}, doors: {_some(door.name for door in self._config.doors)}"

    def _warn(self) -> list[str]:
        """What is legal and unwise in the configuration, or where the loaded rules do not fit it: lines to print."""
        lines: list[str] = []
        for problem in self._config.warnings:
            self._tell(str(problem), Level.WARNING, EVENT="config")
            lines += problem.report(_WARNING)
        if self._config.guarded:  # else the rules are the administrator's own
            asked = (
                (WATCHED, self._config.watched_places),
                (SPA, self._config.spa_places),
                (GUARDED, _places(self._config.guarded)),
            )
            for name, wanted in asked:
                lines += self._warn_of_missing(name, wanted)
        self._look_at_ports()
        if self._gate_trouble is not None:
            words, hint = f"SPA doors stay shut: {self._gate_trouble.message}", self._gate_trouble.hint
            self._tell(f"{words} (hint: {hint})", Level.ERROR, EVENT="clients")
            lines += [f"{_WARNING}{words}", f"hint: {hint}"]
        if self._sole.stranger:
            lines += self._advise(self._sole.stranger, "end that process: a second daemon would not be refused now")
        return lines

    def _warn_of_missing(self, name: SetName, wanted: Iterable[PortRange]) -> list[str]:
        words = self._missing(name, wanted)
        return self._advise(words, _NEWER) if words else []

    def _missing(self, name: SetName, wanted: Iterable[PortRange]) -> str:
        """`set inet logknock spa lacks 62201/udp`; empty if it has all. Of ranges, which come in whole, the ends."""
        places = sorted(wanted)
        missing = set(self._lacks(name, sorted({end for place in places for end in place.ends})))
        lacking = [str(place) for place in places if not missing.isdisjoint(place.ends)]
        return f"set {name} lacks {_some(dict.fromkeys(lacking))}" if lacking else ""

    def _look_at_ports(self) -> None:
        """See whether packets (SPA) are recorded at all: no other rule of ours missing shows that they are not."""
        self._deaf = self._missing(SPA, self._config.spa_places) if self._config.guarded else ""

    def _warn_of_left(self, gone: Collection[Service]) -> list[str]:
        """Services that are guarded no more by the configuration, and still are by the rules: nothing opens them."""
        missing = self._lacks(GUARDED, sorted(gone))
        left = [service for service in sorted(gone) if service not in missing]
        return self._advise(f"set {GUARDED} still has {_some(map(str, left))}", _NEWER) if left else []

    def _lacks(self, name: SetName, wanted: list[Service]) -> list[Service]:
        try:
            return self._sets.lacks(name, wanted)
        except FirewallError as error:
            self._firewall.in_trouble(error)
            return wanted if name == GUARDED else []

    def _advise(self, words: str, hint: str) -> list[str]:
        """Tell somebody what is to be done; the same as lines to print."""
        self._tell(f"{words} (hint: {hint})", Level.WARNING, EVENT="firewall")
        return [f"{_WARNING}{words}", f"hint: {hint}"]

    def _on_turn(self, door: str, file: str, sequence: Sequence | None) -> None:
        """Another one-time sequence counts, or none."""
        self._matcher.set_code(door, file, sequence)
        if sequence and self._config.guarded and self._config.firewall.record:
            self._warn_of_missing(WATCHED, _places(sequence))

    def standing(self) -> Standing:
        """How it stands now. Cheap: no system call but for the clock."""
        counted = self._keeper.counters
        troubles = self._intake.troubles
        return Standing(
            version=__version__,
            started=self._began,
            loaded=self._loaded,
            sources=tuple(
                SourceStanding(*tally, self._rates.of(tally.name), troubles.get(tally.name, ""))
                for tally in self._intake.tallies
            ),
            doors=self._keeper.doors,
            attempts=self._matcher.knockers,
            opened=counted.opened,
            closed=counted.closed,
            refused=counted.refused,
            stale=self._stale,
            banned=len(self._bans),
            firewall_errors=self._firewall_errors,
            store_errors=counted.store_errors,
            degraded=self._troubles.see(self._in_trouble(), time.time()),
            overruns=self._intake.counters.overruns,
            not_banned=self._bans.left_out,
        )

    def _facts(self) -> Facts:
        """What metrics are made of."""
        return Facts(self.standing(), self._counts.counted(), tuple(Left(*left) for left in self._turns.left))

    def _in_trouble(self) -> Iterator[Trouble]:
        """What keeps knocks from opening doors now, or what would be lost."""
        for name, why in self._intake.troubles.items():
            yield Trouble("source", name, f"{name}: {why}", "what is logged there opens no door until it can be read")
        for why, hint in self._firewall.troubles:
            yield Trouble("firewall", why, why, hint)
        if isinstance(self._store, NoStore):
            why = f"nothing is remembered{self._shut_by_that()}: {self._store.reason.message}"
            yield Trouble("store", "", why, self._store.reason.hint)
        for error in self._keeper.troubles:
            yield Trouble("store" if isinstance(error, StoreError) else "files", "", error.message, error.hint)
        if self._gate_trouble is not None:
            yield Trouble("clients", "spa", self._gate_trouble.message, self._gate_trouble.hint)
        if self._deaf:
            yield Trouble("firewall", "spa", f"{self._deaf}: what is sent there opens nothing", _APPLY)
        if self._left_out:
            yield Trouble("clients", "mail", self._left_out_words, _SOURCE_HINT)
        for why in () if isinstance(self._store, NoStore) else self._steps.troubles:
            yield Trouble("clients", why, why, "`logknock doctor` looks at the clock and at the state database")
        for why in () if isinstance(self._store, NoStore) else self._turns.troubles:
            yield Trouble("files", why, why, "`logknock status` says more of one-time files")
        if self._bans.trouble is not None:
            yield Trouble("bans", "", self._bans.trouble.message, self._bans.trouble.hint)
        if self._control_trouble is not None:
            yield Trouble("control", "", self._control_trouble.message, self._control_trouble.hint)
        for trouble in self._exposition.troubles:
            yield Trouble("metrics", trouble.message, trouble.message, trouble.hint)

    def _tell_counters(self) -> None:
        self._tell(standing.line(self.standing()))

    def _tell_intake(self, text: str, **fields: str) -> None:
        self._tell(text, Level.WARNING, EVENT="lost" if "LOST" in fields else "source", **fields)

    def _tell_metrics(self, text: str, bad: bool) -> None:
        self._tell(text, Level.ERROR if bad else Level.NOTICE, EVENT="metrics")

    def _shut_by_that(self, until: str = "") -> str:
        """What stays shut where nothing is remembered."""
        kinds = self._config.remembering
        return f", and {kinds} doors stay shut{until}" if kinds else until

    def _tell_turn(self, text: str, bad: bool) -> None:
        if bad and isinstance(self._store, NoStore):
            return  # what no store lets open is told at once, in one line
        self._tell(text, Level.WARNING if bad else Level.NOTICE, EVENT="onetime")

    def _tell_clients(self, text: str, bad: bool) -> None:
        if bad and isinstance(self._store, NoStore):
            return
        self._tell(text, Level.WARNING if bad else Level.NOTICE, EVENT="clients")

    def _tell(self, text: str, level: Level = Level.NOTICE, **fields: str) -> None:
        self._reporter.write(notice(text, level, **fields))


def _longest(config: Config) -> float:
    """Seconds after which a packet means nothing to any door."""
    return max(door.seq_timeout for door in config.doors)


def _places(services: Iterable[Service]) -> list[PortRange]:
    return [PortRange(proto, port, port) for proto, port in services]


def _is_mail(ports: tuple[PortRange, ...], icmp: bool, guarded: frozenset[Service], proto: int, dport: int) -> bool:
    """Whether such a packet may be one of SPA: what another firewall logs of guarded services is none."""
    if proto in (ICMP, ICMP6):
        return icmp
    if (proto, dport) in guarded:
        return False
    return any(proto == known and first <= dport <= last for known, first, last in ports)


def _is_aimed(packet: Packet, door: Door) -> bool:
    """Whether a packet was sent to an address that the door looks at."""
    return not door.target or packet.dst in door.target


def _some(names: Iterable[str]) -> str:
    """The first few of many names, and how many more there are: a line stays a line."""
    every = list(names)
    shown = every[:_NAMES_SHOWN]
    return ", ".join(shown) + (f" and {len(every) - len(shown)} more" if every[_NAMES_SHOWN:] else "")
