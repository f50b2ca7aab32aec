"""What happens in a long run: to whom, how often, in which order.

Rule 1: what is random comes from one seed, which is told. Rule 2: each thing that happens comes again after a time of
its own, so that everything meets everything else sooner or later. Rule 3: nobody knocks while the rules are gone: what
the kernel does not record nobody can let in; whoever is inside then has to be inside again soon.
"""

import heapq
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from subprocess import Popen

from logknock.knock import Service
from logknock.packet import TCP, UDP

from ..e2e.booted import BootedHost, booted
from ..e2e.world import World
from ..netns import pair
from ..peers import kernel_log, own_prefix
from .site import BACK_WITHIN, DOORS, PORTS, Door, Knocker, Site, site

JOURNALD = "systemd-journald.service"

# Seconds between two of a kind, on average, in a run of an hour; in a short one everything comes more often.
_NOISE = 0.02
_SCAN = 20.0
_KNOCK = 1.0
_RELOAD = 25.0
_FLUSH = 30.0
_DELETE = 75.0
_APPLY = 60.0
_RESTART = 45.0
_ASK = 5.0
_CHATTER = 15.0
_LOOK = 0.05
_MEASURE = 5.0

_SHORT = 300.0  # seconds; a run that is shorter has everything three times as often
_FASTER = 3.0

_GAP = 0.1  # seconds between the knocks of one knocker, the client's default

# What fills all that the daemon keeps of past packets, so that its memory is what it will be: first knocks, and what
# comes after two right ones, by as many from a source as are recorded. (trail.MAX_KEPT of each are kept.)
_FIRST_KNOCKS = 6_000
_RESENDING = 120
_RESENDS = 36
_FILLING_RATE = 2_000  # a second
_WARM = 10.0  # seconds from there to the first look at its memory
_ENDING = 20.0  # seconds at the end in which nobody begins to knock, and every door shuts

_SEQUENCES = 20_000  # one-time; no run uses them up

_CHATTER_SAYS = (b"", b"\n", b"{}\n", b"x" * 9000, b'{"version": 1}\n', b'{"version": 1, "do": "explain"}')

_NOISY = itertools.cycle((0xC612, 0xC613, 0x6440, 0x6441))


@dataclass(frozen=True, slots=True)
class Told:
    """How it goes, now and then."""

    elapsed: float
    seconds: float
    sites: list[Site]
    failures: list[str]


@dataclass
class Agenda:
    """What is to happen, and when (time.monotonic())."""

    random: Random
    hurry: float
    entries: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    serial: Iterator[int] = field(default_factory=itertools.count)

    def at(self, instant: float, do: Callable[[], None]) -> None:
        """Once."""
        heapq.heappush(self.entries, (instant, next(self.serial), do))

    def every(self, seconds: float, do: Callable[[], None], *, exact: bool = False) -> None:
        """Again and again, at random times so far apart on average."""

        def again() -> None:
            do()
            self.every(seconds, do, exact=exact)

        pause = seconds if exact else self.random.uniform(0.5, 1.5) * seconds / self.hurry
        self.at(time.monotonic() + pause, again)

    def run(self, end: float) -> None:
        """Until then."""
        while self.entries and self.entries[0][0] < end:
            instant, _, do = heapq.heappop(self.entries)
            if (wait := instant - time.monotonic()) > 0:
                time.sleep(wait)
            do()


def soak(folder: Path, seconds: float, seed: int, tell: Callable[[Told], None]) -> Told:
    """Run it all for so long, in a folder that is empty; `tell` hears of it each half minute."""
    random, failures = Random(seed), list[str]()  # noqa: S311  # nothing to guess here
    with ExitStack() as stack:
        sites = [_by_nflog(stack, folder, random, failures), _by_journal(stack, folder, random, failures)]
        for each in sites:
            _fill(each)
        start = time.monotonic()
        agenda = Agenda(random, _FASTER if seconds < _SHORT else 1.0)
        actors = [_Actors(one, agenda, start + seconds - _ENDING) for one in sites]
        for one in actors:
            one.begin()
        agenda.every(30.0, lambda: tell(Told(time.monotonic() - start, seconds, sites, failures)), exact=True)
        agenda.run(start + seconds)
        for one in actors:
            one.finish()
        told = Told(time.monotonic() - start, seconds, sites, failures)
        tell(told)
    return told


def _by_nflog(stack: ExitStack, folder: Path, random: Random, failures: list[str]) -> Site:
    gateway, client = stack.enter_context(pair())
    home = folder / "nflog"
    home.mkdir()
    world = World(gateway, client, home / "logknock.toml")
    return stack.enter_context(site("NFLOG", gateway, world, 'source = "nflog"', _sequences(random), failures))


def _by_journal(stack: ExitStack, folder: Path, random: Random, failures: list[str]) -> Site:
    gateway, client = stack.enter_context(pair())
    home = folder / "journal"
    home.mkdir()
    stack.enter_context(kernel_log())
    world = World(stack.enter_context(booted(gateway, home)), client, home / "logknock.toml")
    log = f'source = "journal"\nprefix = "{own_prefix()}"'
    return stack.enter_context(site("the journal", gateway, world, log, _sequences(random), failures))


def _sequences(random: Random) -> list[tuple[Service, ...]]:
    """No two alike: one that was used before counts no more."""
    every = dict.fromkeys(tuple(random.sample(PORTS, 3)) for _ in range(_SEQUENCES))
    return [tuple(Service(TCP, port) for port in ports) for ports in every]


def _fill(site: Site) -> None:
    """What is to be full is full before the time begins: on a busy machine it takes longer."""
    for frame in _filling(site):
        site.raw.send(frame)
        time.sleep(1 / _FILLING_RATE)


def _filling(site: Site) -> Iterator[bytes]:
    first, second, *_ = DOORS[0].knocks
    for number in range(_FIRST_KNOCKS):
        yield site.frame(bytes((198, 19, number >> 8, number & 255)), first)
    for number in range(_RESENDING):
        src = bytes((198, 18, 0, number))
        yield site.frame(src, first)
        yield from [site.frame(src, second)] * _RESENDS


class _Actors:
    """Everybody who has to do with one site."""

    def __init__(self, site: Site, agenda: Agenda, last_knock: float) -> None:
        self._site = site
        self._agenda = agenda
        self._random = agenda.random
        self._last_knock = last_knock
        self._quiet = False  # nobody begins to knock
        self._under_way = 0  # those who have begun, and have not sent their last knock
        self._onetime_under_way = False
        self._number = 0
        self._commands: list[tuple[Popen[str], str]] = []

    def begin(self) -> None:
        """Have it all happen."""
        one, every = self._site, self._agenda.every
        every(_LOOK, one.look, exact=True)
        every(1.0, self._settle, exact=True)
        self._agenda.at(time.monotonic() + _WARM, self._warm)
        every(_NOISE, self._noise)
        every(_SCAN, self._scan)
        every(_KNOCK, self._knock)
        every(_RELOAD, self._reload)
        every(_FLUSH, self._flush)
        every(_DELETE, self._delete)
        every(_APPLY, self._apply)
        every(_ASK, self._ask)
        every(_CHATTER, lambda: one.chatter(self._random.choice(_CHATTER_SAYS)))
        if isinstance(one.world.gateway, BootedHost):
            every(_RESTART, self._restart)

    def finish(self) -> None:
        """The last look."""
        for process, _ in self._commands:
            process.wait(60)
        self._settle()
        for left in self._site.knockers:
            self._site.fail(f"a knocker at {left.door.name} is left at the end")
        self._site.judge()

    def _warm(self) -> None:
        self._site.warm()
        self._agenda.every(_MEASURE, self._site.measure, exact=True)

    def _settle(self) -> None:
        self._site.read_log()
        running = []
        for process, what in self._commands:
            if process.poll() is None:
                running.append((process, what))
                continue
            said = process.communicate()[0]
            if process.returncode:
                self._site.fail(f"{what}: exit {process.returncode}: {said.strip()}")
        self._commands = running

    # ---- those who knock, and those who do not

    def _noise(self) -> None:
        """The background of any address on the Internet: any source, any port."""
        src = next(_NOISY).to_bytes(2, "big") + self._random.randbytes(2)
        proto = self._random.choice((TCP, TCP, UDP))
        self._site.send(src, Service(proto, self._random.randrange(1, 1 << 16)))

    def _scan(self) -> None:
        """One source, two thousand ports in order."""
        src, first = b"\xc6\x13\xff" + self._random.randbytes(1), self._random.randrange(1, 60_000)
        for port in range(first, first + 2000):
            self._site.send(src, Service(TCP, port))

    def _knock(self) -> None:
        if self._quiet or time.monotonic() > self._last_knock:
            return
        door = self._random.choice(DOORS)
        if not door.knocks:
            if self._onetime_under_way:  # the sequences are used in order: one at a time
                return
            self._onetime_under_way = True
        knocker = self._site.knocker(self._source(door), door)
        self._under_way += 1
        self._step(knocker, 0)

    def _source(self, door: Door) -> bytes:
        """An address that nobody had for a while; of IPv6 too, where no knock is a datagram."""
        self._number += 1
        if door is not DOORS[0] and self._random.random() < 0.4:
            return bytes.fromhex("fd980000") + self._number.to_bytes(4, "big") + bytes(7) + b"\1"
        return bytes((203, 0, 113, self._number % 254 + 1))

    def _step(self, knocker: Knocker, stage: int) -> None:
        self._site.raw.send(knocker.frames[stage])
        if stage + 1 < len(knocker.frames):
            self._agenda.at(time.monotonic() + _GAP, lambda: self._step(knocker, stage + 1))
            return
        self._under_way -= 1
        self._site.knocked(knocker)
        if not knocker.door.knocks:
            self._await(knocker)

    def _await(self, knocker: Knocker) -> None:
        """The next one-time sequence counts when this one has opened."""
        if knocker.opened or knocker not in self._site.knockers:
            self._onetime_under_way = False
        else:
            self._agenda.at(time.monotonic() + _GAP, lambda: self._await(knocker))

    # ---- administrators and machines

    def _reload(self) -> None:
        self._site.reload()

    def _flush(self) -> None:
        self._site.take_away("flush", "set", "inet", "logknock", self._random.choice(("granted4", "granted6")))

    def _apply(self) -> None:
        if self._quiet or self._commands:
            return
        argv = (sys.executable, "-m", "logknock", "rules", "apply", "-c", str(self._site.world.config))
        self._commands.append((self._site.start(*argv), "rules apply"))

    def _restart(self) -> None:
        self._site.world.gateway.run("systemctl", "reset-failed", JOURNALD)  # five starts in ten seconds are a fault
        self._commands.append((self._site.start("systemctl", "restart", JOURNALD), "a restart of journald"))

    def _ask(self) -> None:
        do = self._random.choice(("status", "explain"))
        self._site.ask(do, **({"address": f"203.0.113.{self._random.randrange(1, 255)}"} if do == "explain" else {}))

    def _delete(self) -> None:
        """Somebody deletes the table, or its rules, as `nft flush ruleset` does: when nobody is knocking, see above."""
        if self._quiet or not self._site.comes_back:
            return
        self._quiet = True
        self._agenda.at(time.monotonic() + 0.5, self._delete_now)

    def _delete_now(self) -> None:
        waiting = any(not knocker.opened for knocker in self._site.knockers)
        if self._under_way or waiting or self._commands:
            self._agenda.at(time.monotonic() + 0.5, self._delete_now)
            return
        self._site.take_away(self._random.choice(("delete", "flush")), "table", "inet", "logknock")
        end = time.monotonic() + BACK_WITHIN
        self._agenda.at(time.monotonic() + 0.3, lambda: self._wait_for_rules(end))

    def _wait_for_rules(self, end: float) -> None:
        if self._site.has_rules:
            self._quiet = False
        elif time.monotonic() > end:
            self._site.fail(f"the rules are not back within {BACK_WITHIN:g} s")
            self._site.world.apply()
            self._quiet = False
        else:
            self._agenda.at(time.monotonic() + 0.3, lambda: self._wait_for_rules(end))
