"""A gateway with the real daemon, those who knock at it, and what must hold all the while.

Rule 1: what is looked at is the kernel's: elements in sets, memory and descriptors in /proc. Rule 2: a claim that does
not hold is noted with the time, and the run goes on. Rule 3: nothing here decides what happens: that is `story`.
"""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any

from logknock.control import ControlError, ask
from logknock.knock import Service, SetName
from logknock.packet import TCP, UDP, address_text

from ..bench.field import link_of
from ..bench.frames import Link, syn, syn6, udp
from ..bench.peers import DoorSet, Peer
from ..bench.sender import wire
from ..e2e.world import Daemon, World
from ..netns import Host

# Seconds from the last knock to the open door, and from a door's end to its being shut, on a machine that others use
# too. What is aimed at is milliseconds, and the tick of the daemon: the benchmark measures that.
OPENED_WITHIN = 5.0
SHUT_WITHIN = 1.5
# Before its end a door may be shut for so long where somebody took its element away.
BACK_WITHIN = 5.0

# What the daemon's memory may grow by from the end of the warm-up on: garbage is collected once a minute, and sqlite
# fills its pages; a leak of some hundred bytes in each of a million packets would be more.
GROWTH = 4.0  # MiB

# Descriptors that come and go: a client of the control socket, a file that is being read.
SPARE_DESCRIPTORS = 3

PORTS = range(20_000, 20_064)  # of one-time sequences


@dataclass(frozen=True, slots=True)
class Door:
    """A door as the configuration has it; timeout in seconds. knocks: none, where a file has them."""

    name: str
    opens: int
    timeout: float
    knocks: tuple[Service, ...]

    def text(self, file: Path | None = None) -> str:
        """For the configuration; file: of one-time sequences, where the door has no other."""
        knocks = ", ".join(f'"{knock}"' for knock in self.knocks)
        key = f"sequence = [{knocks}]" if knocks else f'onetime = ["{file}"]'
        return f'[doors.{self.name}]\n{key}\nopens = ["{self.opens}/tcp"]\ntimeout = "{self.timeout:g}s"\n'


DOORS = (
    Door("ssh", 22, 5.0, (Service(TCP, 7000), Service(TCP, 8000), Service(UDP, 9000))),
    Door("web", 443, 12.0, (Service(TCP, 7100), Service(TCP, 8100), Service(TCP, 9100))),
    Door("once", 2222, 8.0, ()),
)

# What stands in the configuration after every other reload.
_SPARE = Door("spare", 8443, 30.0, (Service(UDP, 7300), Service(UDP, 8300), Service(TCP, 9300))).text()

# Lines of the log that are no surprise when somebody takes rules away or changes doors without `rules apply`.
_EXPECTED = re.compile(r"set \S+ lacks|the firewall|inet logknock|not reloaded|the state database is new|rules")


# set and table: how often somebody took away a set's elements, or a table.
_COUNTED = ("knocks", "opened", "shut", "answers", "reloads", "set", "table", "records", "lost")


@dataclass(slots=True)
class Knocker:
    """Somebody who knocks once, and what becomes of it; times are time.monotonic()."""

    src: bytes
    door: Door
    frames: Sequence[bytes]
    asked: bytes
    knocked: float = 0.0
    opened: float = 0.0
    away: float = 0.0  # since when the element is not there


@dataclass
class Site:
    """One daemon and its network; `plain` is the gateway as the machine that runs the test sees it."""

    name: str
    plain: Host
    world: World
    daemon: Daemon
    sequences: Iterator[tuple[Service, ...]]
    failures: list[str]
    link: Link = field(init=False)
    raw: socket.socket = field(init=False)
    doors: Mapping[tuple[int, str], DoorSet] = field(init=False)
    knockers: list[Knocker] = field(default_factory=list)
    disturbed: float = 0.0  # when somebody last took rules or elements away
    started: float = field(default_factory=time.monotonic)
    spare: bool = False

    def __post_init__(self) -> None:
        self.link = link_of(self.plain, self.world.client)
        self.raw = wire(self.world.client)
        self.doors = {
            (size, door.name): DoorSet(
                Peer(
                    "logknock", self.plain, (), Path(), "", SetName("inet", "logknock", name), Service(TCP, door.opens)
                )
            )
            for size, name in ((4, "granted4"), (16, "granted6"))
            for door in DOORS
        }
        self.pid = _daemon_in(self.daemon.process.pid)
        self.counted = dict.fromkeys(_COUNTED, 0)
        self.latest = self.slowest = 0.0
        self.base_memory = self.most_memory = self.last_memory = 0.0
        self.base_descriptors = self.last_descriptors = 0
        self.sports = cycle(range(1024, 1 << 16))

    def close(self) -> None:
        """What was opened for looking and for sending."""
        self.raw.close()
        for door in self.doors.values():
            door.__exit__()

    def fail(self, text: str) -> None:
        """A claim does not hold."""
        self.failures.append(f"{time.monotonic() - self.started:8.1f} s  {self.name}: {text}")

    # ---- knocking

    def frame(self, src: bytes, service: Service) -> bytes:
        """A packet from this source, each from another port."""
        make = udp if service.proto == UDP else syn6 if len(src) == 16 else syn
        return make(self.link, src, next(self.sports), service.port)

    def send(self, src: bytes, service: Service) -> None:
        """Send one."""
        self.raw.send(self.frame(src, service))

    def knocker(self, src: bytes, door: Door) -> Knocker:
        """Somebody who is about to knock."""
        knocks = door.knocks or next(self.sequences)
        frames = [self.frame(src, knock) for knock in knocks]
        return Knocker(src, door, frames, self.doors[len(src), door.name].request(src))

    def knocked(self, knocker: Knocker) -> None:
        """The last knock has gone."""
        knocker.knocked = time.monotonic()
        self.counted["knocks"] += 1
        self.knockers.append(knocker)

    def look(self) -> None:
        """Which doors have opened or shut since the last time, and whether that was in time."""
        self.knockers = [knocker for knocker in self.knockers if self._goes_on(knocker)]

    def _goes_on(self, knocker: Knocker) -> bool:
        now = time.monotonic()
        holds = self.doors[len(knocker.src), knocker.door.name].holds(knocker.asked)
        who = f"{address_text(knocker.src)} at {knocker.door.name}"
        if not knocker.opened:
            if holds:
                knocker.opened = now
                self.slowest = max(self.slowest, now - knocker.knocked)
                self.counted["opened"] += 1
            elif now - knocker.knocked > OPENED_WITHIN:
                self.fail(f"{who}: not opened within {OPENED_WITHIN:g} s")
                return False
            return True
        left = knocker.opened + knocker.door.timeout - now
        if holds:
            knocker.away = 0.0
            if left < -SHUT_WITHIN:
                self.fail(f"{who}: still open {-left:.1f} s after its end")
            return left >= -SHUT_WITHIN
        now = time.monotonic()  # it may have come to its end while the kernel was asked
        left = knocker.opened + knocker.door.timeout - now
        # What its end was is known up to the time from the last knock to the look that found it open.
        if now >= knocker.knocked + knocker.door.timeout - 0.05:
            self.counted["shut"] += 1
            self.latest = max(self.latest, -left)
            return False
        knocker.away = knocker.away or now
        if now - max(knocker.away, self.disturbed) > BACK_WITHIN or self.disturbed < knocker.knocked - BACK_WITHIN:
            self.fail(f"{who}: shut {left:.1f} s before its end")
            return False
        return True

    # ---- what happens to a daemon

    def reload(self) -> None:
        """SIGHUP, with a door more or less."""
        self.spare = not self.spare
        self.world.config.write_text(self.world.config.read_text().replace(_SPARE, "") + _SPARE * self.spare)
        self.counted["reloads"] += 1
        os.kill(self.pid, signal.SIGHUP)

    def take_away(self, *words: str) -> None:
        """An administrator's nft that takes something away, a set's elements or a table."""
        self.counted[words[1]] += 1
        self.disturbed = time.monotonic()
        self.world.gateway.run("nft", *words, check=False)
        self.disturbed = time.monotonic()

    def start(self, *command: str) -> Popen[str]:
        """A command on the gateway, in the background."""
        return self.world.gateway.start(*command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)

    @property
    def comes_back(self) -> bool:
        """Whether the daemon puts a table back that is deleted."""
        return (self.world.config.parent / "state" / "rules.nft").exists()

    @property
    def has_rules(self) -> bool:
        """Whether the table is there, with its rules."""
        done = self.world.gateway.run("nft", "list", "chain", "inet", "logknock", "tell", check=False)
        return "log " in done.stdout

    def ask(self, do: str, **details: Any) -> None:
        """As an administrator does."""
        try:
            answers = list(ask(self.world.config.parent / "run", do, **details))
        except ControlError as error:
            self.fail(f"{do}: {error.words()}")
        else:
            self.counted["answers"] += bool(answers)

    def chatter(self, data: bytes) -> None:
        """A client that says something else than a request, and does not wait for an answer."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(self.world.config.parent / "run" / "control.sock"))
            client.sendall(data)

    # ---- what must hold

    def read_log(self) -> None:
        """No traceback, and no error that nothing explains."""
        self.daemon.read()
        calm = time.monotonic() - self.disturbed > BACK_WITHIN
        for line in self.daemon.lines:
            if "Traceback" in line or line.startswith("  File "):
                self.fail(line)
            elif line.startswith("error: ") and (calm or not _EXPECTED.search(line)):
                self.fail(f"an error that nothing explains: {line}")
            elif line.startswith("warning: ") and not _EXPECTED.search(line):
                self.fail(f"a warning that nothing explains: {line}")
        self.daemon.lines.clear()
        if self.daemon.process.poll() is not None:
            self.fail(f"the daemon has ended with {self.daemon.process.returncode}")

    def warm(self) -> None:
        """From here on memory and descriptors have to stay what they are."""
        self.base_memory = self.most_memory = self.memory
        self.base_descriptors = self.descriptors

    def measure(self) -> None:
        """How much memory there is now."""
        self.most_memory = max(self.most_memory, self.memory)

    def judge(self) -> None:
        """At the end: what has grown; and what was read in all."""
        (answer,) = ask(self.world.config.parent / "run", "status")
        for source in answer["standing"]["sources"]:
            self.counted["records"] += source["records"]
            self.counted["lost"] += source["lost"]
        self.last_memory, self.last_descriptors = self.memory, self.descriptors
        if (grown := self.last_memory - self.base_memory) > GROWTH:
            self.fail(f"memory has grown by {grown:.1f} MiB, more than {GROWTH:g}")
        if (more := self.last_descriptors - self.base_descriptors) > SPARE_DESCRIPTORS:
            self.fail(f"{more} descriptors more than after the warm-up")

    @property
    def memory(self) -> float:
        """MiB of its own (RssAnon, proc(5)): what it has mapped of the journal's files comes and goes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) / 1024

    @property
    def descriptors(self) -> int:
        """How many are open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


_FILTER = """
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
	}
}
"""


@contextmanager
def site(
    name: str, plain: Host, world: World, log: str, sequences: Sequence[tuple[Service, ...]], failures: list[str]
) -> Iterator[Site]:
    """The rules and the daemon, until the block ends. The gateway answers nobody: no packet goes where none should."""
    file = world.config.parent / "once"
    file.write_text("".join(f" {', '.join(f'{one.port}:tcp' for one in each)}\n" for each in sequences))
    file.chmod(0o600)
    plain.nft(_FILTER)
    for net in ("198.18.0.0/15", "100.64.0.0/10"):
        plain.run("ip", "route", "add", net, "via", world.client.ipv4)
    world.configure(f"[log]\n{log}\n" + "".join(door.text(file) for door in DOORS))
    world.apply()
    with ExitStack() as stack:
        daemon = stack.enter_context(world.daemon())
        made = Site(name, plain, world, daemon, iter(sequences), failures)
        stack.callback(made.close)
        yield made


def _daemon_in(pid: int) -> int:
    """The daemon itself, where what was started is only its way into a container."""
    while Path(f"/proc/{pid}/comm").read_text().strip() in ("nsenter", "env"):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            break
        pid = int(children[0])
    return pid
