"""A host's clock that is set while the daemon runs: back by an hour, and ahead, and right again.

Rule 1: no clock of this machine is set: the daemon goes by one that libfaketime makes. Rule 2: what the kernel logs
must bear no time then, which would be the kernel's own: it logs on the way out, where records have none, and the
packets are made on the gateway, in the client's name.
"""

import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from logknock import spa, totp
from logknock.knock import Service
from logknock.packet import PROTOCOLS

from .world import Daemon, World, until

HOUR = 3_600
STEP = 300  # seconds
AGAIN = 2.0  # seconds: of what is knocked too often, some would be wrong tries too many
SECRET = bytes(range(32))
KEY, HMAC_KEY = b"correct horse battery staple", b"an HMAC key that is another one"
POOL = tuple(Service(PROTOCOLS[proto], port) for proto in ("tcp", "udp") for port in range(20_000, 20_500))

DOORS = f"""
[log]
directions = "out"
[totp]
host = "gate.example"
[doors.ssh]
totp = {{step = "{STEP}s"}}
opens = ["22/tcp"]
timeout = "1s"
[doors.vpn]
spa = {{ports = ["62201/udp"]}}
opens = ["22/tcp"]
timeout = "1s"
[clients.ssh]
laptop.secret = "{totp.format_secret(SECRET)}"
[clients.vpn.laptop]
key = "{KEY.decode()}"
hmac_key = "{HMAC_KEY.decode()}"
allow = ["22/tcp"]
"""

OUTWARDS = "table inet outwards {{ chain out {{ type filter hook output priority 0; ip saddr {} log group 5; }}\n}}\n"

# Sends packets from one address to another: protocol, port and payload (in hexadecimal) each, from a port of its own.
SEND = """
import random, socket, struct, sys
src, dst = map(socket.inet_aton, sys.argv[1:3])
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    for word in sys.argv[3:]:
        proto, port, payload = word.split(":")
        sport, data = random.randrange(30_000, 60_000), bytes.fromhex(payload)
        if proto == "6":
            rest = struct.pack("!HHIIBBHHH", sport, int(port), 1, 0, 5 << 4, 2, 64240, 0, 0)
        else:
            rest = struct.pack("!HHHH", sport, int(port), 8 + len(data), 0) + data
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(rest), 0, 0, 64, int(proto), 0, src, dst)
        raw.sendto(head + rest, (sys.argv[2], 0))
"""

_FAKETIME = Path("/usr/lib") / f"{platform.machine()}-linux-gnu/faketime/libfaketimeMT.so.1"


@dataclass(frozen=True)
class Clock:
    """A daemon's wall clock, off by what a file says; what has passed since some moment is as it was."""

    file: Path

    @property
    def command(self) -> tuple[str, ...]:
        """What has to stand before a command that is to go by it."""
        assert _FAKETIME.exists(), _FAKETIME
        terms = {"LD_PRELOAD": str(_FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(self.file)}
        terms |= dict.fromkeys(("FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"), "1")
        return ("env", *(f"{name}={value}" for name, value in terms.items()))

    def set(self, seconds: int) -> None:
        """So many seconds ahead, from now on."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        fresh.replace(self.file)


@dataclass
class Gate:
    """The daemon with a clock of its own, and who sends it packets."""

    world: World
    daemon: Daemon
    clock: Clock

    def send(self, *packets: tuple[Service, bytes]) -> None:
        words = (f"{service.proto}:{service.port}:{payload.hex()}" for service, payload in packets)
        self.world.gateway.python(SEND, self.world.client.ipv4, self.world.gateway.ipv4, *words)

    def knock(self, sequence: tuple[Service, ...], says: str) -> None:
        """Until this is said anew: it takes a second until the daemon has seen that its clock was set."""
        self.daemon.read()
        self.daemon.lines.clear()

        def is_said() -> bool:
            self.send(*((service, b"") for service in sequence))
            end = time.monotonic() + AGAIN
            while not (said := self.daemon.says(says)) and time.monotonic() < end:
                time.sleep(0.02)
            return said

        until(is_said, says)

    def judged(self, payload: bytes, says: str) -> None:
        """What becomes of an SPA packet."""
        self.daemon.read()
        self.daemon.lines.clear()
        self.send((Service(17, 62_201), payload))
        self.daemon.wait_for(f"vpn: SPA packet of client laptop {says}")


@contextmanager
def gate(world: World) -> Iterator[Gate]:
    world.configure(DOORS)
    world.apply()
    world.gateway.nft(OUTWARDS.format(world.client.ipv4))
    clock = Clock(world.config.with_name("clock"))
    clock.set(0)
    with world.daemon(before=clock.command) as daemon:
        yield Gate(world, daemon, clock)
        assert not daemon.says("Traceback")


def sequences(*ahead: int) -> Iterator[tuple[Service, ...]]:
    """What the client knocks whose clock is so many seconds ahead."""
    step = totp.step_at(time.time(), STEP)
    for seconds in ahead:
        yield totp.derive(SECRET, step + seconds // STEP, "ssh", "gate.example", POOL, totp.DEFAULT_LENGTH)


def packet(world: World, ahead: int = 0) -> bytes:
    """What a client sends whose clock is so many seconds ahead."""
    message = spa.request(
        ip_address(world.client.ipv4).packed,
        [Service(6, 22)],
        user="anna",
        timestamp=int(time.time()) + ahead,
        rand=f"{secrets.randbelow(10**16):016}",
    )
    return spa.encode(message, KEY, HMAC_KEY, "sha256", secrets.token_bytes(8))


def test_t18_an_hour_back_and_forth_gives_no_sequence_a_second_use(world: World) -> None:
    """T18, T19: the hour before was said aloud; who has used a step that is still to come is told to wait."""
    heard, after, before, ahead = sequences(0, STEP, -HOUR, HOUR)
    opens, replayed = "ssh: OPEN SESAME", "ssh: sequence of a step that is used up"
    waits = "ssh: client laptop opens nothing before "
    with gate(world) as one:
        one.knock(heard, opens)
        one.clock.set(-HOUR)
        one.knock(before, replayed)
        one.clock.set(0)
        one.knock(heard, replayed)
        one.knock(after, opens)
        one.clock.set(HOUR)
        one.knock(ahead, opens)
        assert not one.daemon.says(waits)
        one.clock.set(0)
        one.daemon.wait_for(waits)
        one.knock(after, replayed)
        said = one.world.gateway.logknock("status", "-c", str(one.world.config), check=False).stdout
        assert said.count(waits) == 1
        one.clock.set(-HOUR)
        one.knock(before, replayed)
        assert not one.daemon.says(waits), "that was said"


def test_t18_an_hour_back_and_forth_opens_no_packet_again_and_locks_nobody_out(world: World) -> None:
    """T18: what was refused for its time is on record like what opened, and the next packet opens."""
    first, early, late = (packet(world) for _ in range(3))
    with gate(world) as one:
        one.judged(first, "accepted")
        one.clock.set(-HOUR)
        one.judged(first, "refused: replayed")
        one.judged(early, "refused: wrong time (sent in ")
        one.clock.set(HOUR)
        one.judged(late, "refused: wrong time (sent ")
        one.judged(packet(world, HOUR), "accepted")
        one.clock.set(0)
        for payload in (first, early, late):
            one.judged(payload, "refused: replayed")
        one.judged(packet(world), "accepted")
