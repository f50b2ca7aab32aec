"""knockd and logknock on one gateway, reading the same wire: the same packets at the same time, and what each opened.

Rule 1: both programs are the real ones, and logknock has its own rules. Rule 2: what opened is read from the line that
both write, `ADDRESS: DOOR: OPEN SESAME`; no model of either program decides anything. Rule 3: whoever knocks in a
story has an address that nobody has had before, and no story begins before knockd has forgotten the one before.

A story is written in words: `7000/tcp` is a SYN from a source port of its own, `7000/tcp*` the same packet once more,
`7000/tcp=FA` one with these flags (FSRPAU), `b:7000/tcp` another knocker's, `b6:7000/tcp` one's over IPv6,
`7000/tcp>2` one to the gateway's second address, and `0.5s` a pause.
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from logknock.knock import MAX_SEQUENCE, Service
from logknock.packet import ACK, FIN, PROTOCOLS, PSH, RST, SYN, TCP, URG

from ..bench.frames import checksum
from ..netns import pair
from .world import Daemon, World, until

# One knock that opens at once. It ends a batch: both programs read in order, so whoever has opened it for the newest
# address has seen all that came before. Over UDP, to which no door's flags apply.
FENCE = Service(PROTOCOLS["udp"], 5000)

# A port that is neither watched nor a trap.
UNLOGGED = "5555/tcp"

# Seconds after which the fence is knocked on again.
_FENCE_AGAIN = 1.0

_SECOND = {4: "10.99.0.3", 6: "fd99::3"}
_FLAGS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "A": ACK, "U": URG}
_WORD = re.compile(
    r"(?:(?P<who>[a-z]6?):)?(?P<port>\d+)/(?P<proto>tcp|udp)(?:=(?P<flags>[FSRPAU]*))?(?P<second>>2)?(?P<again>\*)?"
)
_PAUSE = re.compile(r"([0-9.]+)s")
_OPENED = re.compile(r"(?:^|\] )(?P<src>[0-9a-f.:]+): (?P<door>\S+): OPEN SESAME")

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_TCP = Struct("!HHIIBBHHH")
_UDP = Struct("!HHHH")


class Twin(NamedTuple):
    """A door in both configurations: what they have in common, and lines that only one of them has.

    sequence: services with blanks between them, empty where the lines say it. seq_timeout: seconds. tcp_flags:
    knockd's notation, which is ours too; None for each one's default. timeout: seconds that logknock's stays open.
    """

    name: str
    sequence: str
    seq_timeout: int = 25
    tcp_flags: str | None = "syn,!ack"
    knockd: tuple[str, ...] = ()
    logknock: tuple[str, ...] = ()
    timeout: int = 30

    def section(self) -> str:
        """The door as knockd reads it."""
        lines = [f"[{self.name}]", f"seq_timeout = {self.seq_timeout}"]
        if self.sequence:
            lines.append("sequence = " + self.sequence.replace("/", ":").replace(" ", ","))
        if self.tcp_flags is not None:
            lines.append(f"tcpflags = {self.tcp_flags}")
        return "\n".join((*lines, *self.knockd, ""))

    def table(self) -> str:
        """The door as logknock reads it."""
        lines = [f"[doors.{self.name}]", f'seq_timeout = "{self.seq_timeout}s"', f'timeout = "{self.timeout}s"']
        if self.sequence:
            services = ", ".join(f'"{word}"' for word in self.sequence.split())
            lines.append(f"sequence = [{services}]")
        if self.tcp_flags is not None:
            lines.append(f'tcp_flags = "{self.tcp_flags}"')
        return "\n".join((*lines, 'opens = ["22/tcp"]', *self.logknock, ""))


class Outcome(NamedTuple):
    """What each program opened: `a:ssh b:ssh`, in the order of the alphabet, a door as often as it opened."""

    knockd: str
    logknock: str


class Packet(NamedTuple):
    """A word of a story that is a packet."""

    who: str
    service: Service
    flags: int
    to_second: bool
    again: bool


def parse(story: str) -> list[Packet | float]:
    """The packets of a story, and the pauses between them in seconds."""
    found: list[Packet | float] = []
    for word in story.split():
        if pause := _PAUSE.fullmatch(word):
            found.append(float(pause[1]))
            continue
        match = _WORD.fullmatch(word)
        assert match, f"{word!r} is no word of a story"
        service = Service(PROTOCOLS[match["proto"]], int(match["port"]))
        flags = sum(_FLAGS[letter] for letter in match["flags"]) if match["flags"] else SYN
        found.append(Packet(match["who"] or "a", service, flags, bool(match["second"]), bool(match["again"])))
    return found


def ip_packet(source: str, target: str, service: Service, sport: int, flags: int) -> bytes:
    """A whole packet without payload, its checksums right."""
    src, dst = ip_address(source).packed, ip_address(target).packed
    if service.proto == TCP:
        rest, sum_at = _TCP.pack(sport, service.port, 1, 0, 5 << 4, flags, 64_240, 0, 0), 16
    else:
        rest, sum_at = _UDP.pack(sport, service.port, _UDP.size, 0), 6
    pseudo = src + dst + len(rest).to_bytes(4, "big") + service.proto.to_bytes(4, "big")
    rest = rest[:sum_at] + checksum(pseudo + rest).to_bytes(2, "big") + rest[sum_at + 2 :]
    if len(src) == 4:  # the kernel puts in the header's own checksum (raw(7))
        return _IPV4.pack(0x45, 0, _IPV4.size + len(rest), 0, 0, 64, service.proto, 0, src, dst) + rest
    return _IPV6.pack(6 << 28, len(rest), service.proto, 64, src, dst) + rest


@dataclass
class Knockd:
    """Debian's knockd, started anew for each configuration: it then has no attempt from before."""

    world: World
    config: Path
    log: Path
    process: subprocess.Popen[str] | None = None

    def start(self, sections: str) -> None:
        """Start it with this configuration, and wait until it listens."""
        self.stop()
        self.configure(sections)
        self.log.write_text("")
        self.process = self.launch()
        until(lambda: "starting up" in self.text() or self.ended, "knockd to listen")
        assert not self.ended, f"knockd took offence at:\n{sections}"

    def configure(self, sections: str) -> None:
        """Write the configuration only."""
        self.config.write_text(f"[options]\nlogfile = {self.log}\n{sections}")

    def launch(self) -> subprocess.Popen[str]:
        """A process of it; what matters of its words is in the log."""
        command = ("/usr/sbin/knockd", "-i", "eth0", "-c", str(self.config))
        return self.world.gateway.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process is None or self.process.poll() is not None

    @property
    def running(self) -> subprocess.Popen[str]:
        """The process."""
        assert self.process is not None
        return self.process

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def lines(self) -> list[str]:
        """Its log, line by line."""
        return self.text().splitlines()

    def stop(self) -> None:
        """End it; a child of it that sleeps until it runs a stop_command is not waited for."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Story:
    """Some knockers and what they send. `addresses` are theirs, by name."""

    rivals: "Rivals"
    addresses: dict[str, str] = field(default_factory=dict)
    _sports: dict[tuple[str, Service], int] = field(default_factory=dict)
    _next_sport: Iterator[int] = field(default_factory=lambda: count(20_000))

    def send(self, words: str) -> None:
        """Send these packets, now."""
        with _one_processor():
            for step in parse(words):
                if isinstance(step, float):
                    time.sleep(step)
                else:
                    self._send(step)

    def sweep(self) -> None:
        """End whatever attempts knockd still has of these knockers, so that the next story finds none."""
        for who in list(self.addresses):
            self.send(f"{who}:{FENCE}")

    def opened(self, lines: Iterable[str]) -> str:
        """What has opened for these knockers, by these lines."""
        names = {address: who for who, address in self.addresses.items()}
        matches = (match for line in lines if (match := _OPENED.search(line)))
        pairs = ((names.get(match["src"]), match["door"]) for match in matches)
        return " ".join(sorted(f"{who}:{door}" for who, door in pairs if who and door != "fence"))

    def _send(self, packet: Packet) -> None:
        source = self.addresses.get(packet.who)
        if source is None:
            source = self.addresses[packet.who] = self.rivals.new_address(6 if packet.who.endswith("6") else 4)
        flow = packet.who, packet.service
        if not packet.again:
            self._sports[flow] = next(self._next_sport)
        self.rivals.send(source, packet, self._sports[flow])


@dataclass
class Rivals:
    """Both programs, running. `use` gives them doors, `play` sends a story and says what each of them opened."""

    world: World
    knockd: Knockd
    raw: dict[int, socket.socket]
    stack: ExitStack
    daemon: Daemon
    _number: Iterator[int] = field(default_factory=lambda: count(1))
    _in_use: tuple[Twin, ...] = ()

    def use(self, *doors: Twin) -> None:
        """Give both programs these doors and no others; if they have them, both go on as they are."""
        if doors == self._in_use:
            return
        self.forget()
        if self.daemon.process.poll() is not None:
            self.daemon = self.stack.enter_context(self.world.daemon())
        doors = (*doors, Twin("fence", str(FENCE)))
        self.knockd.start("".join(door.section() for door in doors))
        self.world.configure("".join(door.table() for door in doors))
        assert self.reload(), "\n".join(self.log())
        self._in_use = doors[:-1]

    def forget(self) -> None:
        """One of them is not as `use` left it: the next `use` begins anew."""
        self._in_use = ()

    def reload(self) -> bool:
        """Have logknock read its configuration again, and tell whether it goes on with it."""
        known = len(self.log())
        self.daemon.signal(signal.SIGHUP)
        until(lambda: any("reloaded: " in line for line in self.log()[known:]), "a reload")
        return any(line.startswith("reloaded: ") for line in self.log()[known:])

    def play(self, story: str) -> Outcome:
        """Send a story, and say what each program has opened for its knockers."""
        return self.play_all([story])[0]

    def play_all(self, stories: Collection[str]) -> list[Outcome]:
        """Send stories one after the other, as fast as they say."""
        begun = [Story(self) for _ in stories]
        for story, words in zip(begun, stories, strict=True):
            story.send(words)
            story.sweep()
        return self.outcomes(begun)

    def outcomes(self, stories: list[Story], *, knockd: bool = True) -> list[Outcome]:
        """What each program has opened for the knockers of these stories by now; knockd=False if it is gone."""
        self.settle(knockd=knockd)
        ours, theirs = self.log(), self.knockd.lines()
        return [Outcome(story.opened(theirs), story.opened(ours)) for story in stories]

    def settle(self, *, knockd: bool = True) -> None:
        """Wait until both have read all that was sent.

        More than one fence: knockd loses what comes while it changes its capture filter, after a one-time sequence.
        """
        until(lambda: self._passed(self.log), "logknock to have read everything")
        if knockd:
            until(lambda: self._passed(self.knockd.lines), "knockd to have read everything")

    def _passed(self, lines: Callable[[], list[str]]) -> bool:
        """Knock at the fence as somebody new; whether these lines soon say that it opened."""
        story = Story(self)
        story.send(str(FENCE))
        line = f"{story.addresses['a']}: fence: OPEN SESAME"
        end = time.monotonic() + _FENCE_AGAIN
        while time.monotonic() < end:
            if any(said.endswith(line) for said in lines()):
                return True
            time.sleep(0.005)
        return False

    def log(self) -> list[str]:
        """The lines of logknock so far."""
        self.daemon.read()
        return self.daemon.lines

    def new_address(self, version: int) -> str:
        """An address of a knocker: over IPv6 each in a /64 of its own."""
        number = next(self._number)
        return f"10.100.{number >> 8}.{number & 0xFF}" if version == 4 else f"fd98:0:{number:x}::1"

    def send(self, source: str, packet: Packet, sport: int) -> None:
        """One packet to the gateway, from this source."""
        version = ip_address(source).version
        gateway = self.world.gateway
        target = _SECOND[version] if packet.to_second else gateway.ipv4 if version == 4 else gateway.ipv6
        data = ip_packet(source, target, packet.service, sport, packet.flags)
        self.raw[version].sendto(data, (target, 0))


@contextmanager
def rivals(folder: Path, ports: Iterable[Service]) -> Iterator[Rivals]:
    """Both programs on one gateway, behind rules that watch these ports, with two addresses of each family."""
    with pair() as (gateway, client), ExitStack() as stack:
        for version, address in _SECOND.items():
            gateway.run("ip", "addr", "add", f"{address}/{24 if version == 4 else 64}", "dev", "eth0")
        gateway.run("ip", "route", "add", "10.100.0.0/16", "via", client.ipv4)
        # Nothing answers: a reset or a refusal to a spoofed source would be packets of no story.
        gateway.nft(
            "table inet host { chain input { type filter hook input priority 0; policy drop; "
            "meta l4proto icmpv6 accept; }; }"
        )
        world = World(gateway, client, folder / "logknock.toml")
        world.configure(_watching([*ports, FENCE]))
        world.apply()
        with client.inside():
            raw = {
                4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
                6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
            }
        for each in raw.values():
            stack.enter_context(each)
        knockd = Knockd(world, folder / "knockd.conf", folder / "knockd.log")
        stack.callback(knockd.stop)
        yield Rivals(world, knockd, raw, stack, stack.enter_context(world.daemon()))


def _watching(ports: Iterable[Service]) -> str:
    """A configuration with these knock ports; the rules that are made from it stay, whatever doors come and go."""
    words = [f'"{port}"' for port in dict.fromkeys(ports) if port.port]
    doors = (words[at : at + MAX_SEQUENCE] for at in range(0, len(words), MAX_SEQUENCE))
    tables = (
        f'[doors.ports{number}]\nsequence = [{", ".join(door)}]\nopens = ["22/tcp"]\n'
        for number, door in enumerate(doors)
    )
    # No source may go deaf: a story is as fast as it can be.
    return f'[firewall]\nrate = 1000\nburst = 1000\ntraps = 64\nexclude = ["{UNLOGGED}"]\n' + "".join(tables)


@contextmanager
def _one_processor() -> Iterator[None]:
    """Always the same one: packets that are sent on several can overtake each other."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
