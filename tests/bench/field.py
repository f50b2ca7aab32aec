"""Where measuring takes place: a gateway with a program on it, a client in front of it, and the traffic between them.

Rule 1: each field is made of fresh namespaces, and gone afterwards. Rule 2: what is random comes from a seed, so that
every run is the same one.
"""

import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from ..netns import Host, pair
from .frames import Link, Wave, syn, wave_frames, wave_words
from .peers import KNOCKS, DoorSet, Make, Peer
from .sender import Due, Ring, Sent, flood, wire

# Sources that route back through the client: 198.18.0.0/15 (RFC 2544) and 100.64.0.0/10 (RFC 6598) for spoofed ones;
# honest ones come from what `pair` routes there.
_SPOOFED = ("198.18.0.0/15", "100.64.0.0/10")

MILLION = 1 << 20
WAVE = 1 << 16
_WAVES = MILLION // WAVE

# An honest knocker whose door is not open so many seconds after the last knock has gone.
PATIENCE = 5.0

# What SQLite has to sync for one use: three pages at the end of its log, and two of the opening before.
_LOG_BYTES = 5 * 4096

# Files in memory cost nothing to sync.
_IN_MEMORY = {"tmpfs", "ramfs"}

# (link, source, source port, port): a frame
MakeFrame = Callable[[Link, bytes, int, int], bytes]

RANDOM = random.Random(1)  # noqa: S311 - nothing to guess here


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    openings: int
    openings_to_one: int  # of knockd, which takes longer
    rates: tuple[int, ...]
    flood_seconds: float
    floods_beside: bool  # whether knockd meets floods of all kinds, and not of first knocks only
    knockers: int
    repeats: int
    packets: int
    starts: int
    idle_seconds: float


FULL = Plan(200, 2, (10_000, 50_000, 150_000), 2.5, True, 50, 5, 2 * WAVE, 7, 20.0)
QUICK = Plan(40, 2, (50_000,), 1.25, False, 20, 2, WAVE, 3, 5.0)


@dataclass(frozen=True, slots=True)
class Field:
    """A peer that runs on a gateway, and the client that everything is sent from."""

    peer: Peer
    link: Link
    client: Host
    wire: socket.socket

    def knocks(self, source: bytes, ports: Sequence[int] = KNOCKS, make: MakeFrame = syn) -> list[bytes]:
        """The frames of an honest knocker."""
        return [make(self.link, source, 40_000 + stage, port) for stage, port in enumerate(ports)]

    def opening(self, door: DoorSet, source: bytes, ports: Sequence[int] = KNOCKS) -> float:
        """Milliseconds from sending the last knock to the kernel's saying that the element is there, or to giving up.

        Whoever has given up says more than PATIENCE.
        """
        *first, last = self.knocks(source, ports)
        asked = door.request(source)
        for frame in first:
            self.wire.send(frame)
            # At random: a program that looks every so often must not be met at always the same moment.
            time.sleep(RANDOM.uniform(0.01, 0.06))
        return self.opening_by(door, asked, last)

    def opening_by(self, door: DoorSet, asked: bytes, frame: bytes) -> float:
        """The same of a frame that is all that is missing."""
        assert not door.holds(asked), "open before the last knock"
        start = time.perf_counter()
        self.wire.send(frame)
        while not door.holds(asked) and time.perf_counter() - start < PATIENCE:
            pass
        return (time.perf_counter() - start) * 1000

    def flood(
        self, ring: Ring, rate: float, seconds: float, count: int, knocks: Iterable[Due] = (),
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Sent:  # fmt: skip
        """A flood from the ring, with these knocks in between."""
        return flood(ring, rate, seconds, count, knocks, self.wire.send, meanwhile)


@contextmanager
def field(make: Make, folder: Path | None = None) -> Iterator[Field]:
    """A gateway with the peer's rules and a client, gone afterwards; the peer's files are in a folder in this one."""
    with TemporaryDirectory(dir=folder) as directory, pair() as (gateway, client):
        for net in _SPOOFED:
            gateway.run("ip", "route", "add", net, "via", client.ipv4)
        peer = make(gateway, Path(directory))
        with wire(client) as raw:
            yield Field(peer, link_of(gateway, client), client, raw)


@contextmanager
def disk() -> Iterator[tuple[Path, str]]:
    """A folder on a disk, and what file system it is on: where temporary files are, or else where we are."""
    parents = {Path(gettempdir()): "", Path.cwd(): ""}
    for parent in parents:
        command = ("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(parent))
        parents[parent] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    parent, kind = next((item for item in parents.items() if item[1] not in _IN_MEMORY), next(iter(parents.items())))
    with TemporaryDirectory(dir=parent) as folder:
        yield Path(folder), kind


def sync(folder: Path) -> float:
    """Milliseconds that the least of a durable write takes: to the end of a file, as SQLite's log grows."""
    with (folder / "synced").open("ab", buffering=0) as file:
        start = time.perf_counter()
        file.write(bytes(_LOG_BYTES))
        os.fdatasync(file.fileno())
        return (time.perf_counter() - start) * 1000


def link_of(gateway: Host, client: Host) -> Link:
    """From the client to the gateway."""
    targets = socket.inet_aton(gateway.ipv4), socket.inet_pton(socket.AF_INET6, gateway.ipv6)
    return Link(_hardware(client), _hardware(gateway), *targets)


def _hardware(host: Host) -> bytes:
    return bytes.fromhex(host.run("cat", "/sys/class/net/eth0/address").stdout.strip().replace(":", ""))


def million(on: Field, ports: Sequence[int], source_high: int = 0x6440) -> Ring:
    """SYNs to these ports in random order, from 2^20 addresses, each once; `source_high` is where these begin."""
    waves = [Wave(source_high + number, 40_000 + number) for number in range(_WAVES)]
    lows = RANDOM.sample(range(WAVE), WAVE)
    return _ring(on, waves, lows, RANDOM.sample(ports, len(ports)))


def _ring(on: Field, waves: Sequence[Wave], lows: Sequence[int], ports: Sequence[int]) -> Ring:
    turns = [wave_words(waves[0], wave) for wave in waves]
    return Ring(on.client, wave_frames(on.link, waves[0], lows, ports), turns)
