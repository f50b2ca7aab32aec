"""Sequences that a secret and the time make: which one a client knocks in a step of time, and how strong it is.

Rule 1: no I/O and no clock: the time comes in as a number. Rule 2: what is derived here is what docs/reference/totp.md
says, to the bit: clients in other languages are written from that page. Rule 3: no error and no repr holds a secret.

A code door's sequences are spelled by the codes of an authenticator app instead (RFC 6238), two digits a knock.
"""

from base64 import b32decode, b32encode
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hmac import digest
from itertools import pairwise
from math import factorial, log2
from struct import Struct
from typing import NamedTuple
from urllib.parse import quote, urlencode

from .knock import Sequence, Service
from .packet import PROTOCOL_NAMES, TCP

# What a door has where its configuration says nothing. 1,000 services make 2^39 sequences of four.
DEFAULT_PORTS = ("20000-20499/tcp", "20000-20499/udp")
DEFAULT_LENGTH = 4
DEFAULT_STEP = 30  # seconds; RFC 6238's own
DEFAULT_SKEW = 1  # steps that a client's clock may be off, each way

# A code door's, by its digits: a hundred ports for each two of them; others than a TOTP door's, whose clients' knocks
# would begin guesses at codes.
DEFAULT_CODE_PORTS = {6: ("21000-21299/tcp",), 8: ("21000-21399/tcp",)}
CODE_DIGITS = (6, 8)
PAIRS = 100

# Fewer knocks are what a port scan makes by chance; more than 8 do not fit into one HMAC, and take too long.
MIN_LENGTH = 4
MAX_LENGTH = 8

# A shorter step is over before slow networks have carried its knocks; a longer one is long to wait for.
MIN_STEP = 10
MAX_STEP = 300
MAX_SKEW = 5

# Bytes. RFC 4226 asks for 16 at least. HMAC takes a hash for what is longer than its block: two would be the same key.
MIN_SECRET = 16
MAX_SECRET = 64
NEW_SECRET = 32  # as many as the hash has
CODE_SECRET = 20  # what RFC 4226 recommends, and every authenticator app takes

# All clients of all doors. Four sequences of each are known at a time: 10 MiB for so many, and deriving the next takes
# 40 ms of the loop's time, in slices.
MAX_CLIENTS = 4_096

# T21: whoever guesses a billion sequences a step is slower than any rate limit lets them be.
MIN_POSSIBLE = 1 << 30

# Candidates that may be passed over for one sequence. A pool that is strong enough passes over a few at most.
MAX_PASSED_OVER = 1_000

# RFC 4648, section 6: five bits a letter; and how many letters beyond a multiple of eight no bytes ever take.
_BASE32 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
_NO_LENGTHS = (1, 3, 6)

_LABEL = b"logknock totp 1\0"
_CODE_LABEL = b"logknock code 1\0"
_WORDS = Struct(">8I")
_COUNTERS = Struct(">QI")
_COUNTER = Struct(">Q")
_LENGTH = Struct(">H")


@dataclass(frozen=True, slots=True)
class Client:
    """Who may knock at a door, and with what secret (bytes)."""

    name: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TotpDoor:
    """A door whose clients derive their sequences.

    host: the name that goes into the derivation. services: the pool, in the order of the configured ranges. length: how
    many knocks. step: seconds. skew: steps each way. digits: of a code door's codes; 0: it is none, and `services` is
    what its digits spell, the first hundred first.
    """

    door: str
    host: str
    services: tuple[Service, ...] = field(repr=False)
    length: int = DEFAULT_LENGTH
    step: int = DEFAULT_STEP
    skew: int = DEFAULT_SKEW
    digits: int = 0
    clients: tuple[Client, ...] = ()

    @property
    def knocks(self) -> int:
        """How many knocks a sequence has."""
        return self.digits // 2 or self.length

    @property
    def beginnings(self) -> tuple[Service, ...]:
        """A code door's first hundred services, on one of which each guess begins; none for any other door."""
        return self.services[:PAIRS] if self.digits else ()


class WeakError(ValueError):
    """The sequences could be guessed; with what to ask for instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


# ---- steps of time


def step_at(time: float, step: int) -> int:
    """The number of the step of so many seconds that `time` (seconds since the epoch) is in."""
    return int(time // step)


def window(number: int, step: int, skew: int) -> tuple[int, int]:
    """From when on, and until before when, a step's sequence is accepted (seconds since the epoch)."""
    return (number - skew) * step, (number + skew + 1) * step


# ---- derived sequences


def derive(secret: bytes, step: int, door: str, host: str, services: tuple[Service, ...], length: int) -> Sequence:
    """The sequence of step number `step`; raises ValueError where the pool has none that may be taken."""
    return Maker(door, host, services, length).make(secret, step)


class Maker:
    """Derives the sequences of a door: what they have in common is made ready once."""

    __slots__ = ("_is_mixed", "_length", "_names", "_services")

    def __init__(self, door: str, host: str, services: tuple[Service, ...], length: int) -> None:
        self._names = _named(door, host)
        self._services = services
        self._length = length
        self._is_mixed = len({service.proto for service in services}) > 1

    def make(self, secret: bytes, step: int) -> Sequence:
        """The sequence of a secret in a step; raises ValueError where the pool has none that may be taken."""
        services, names = self._services, self._names
        size = len(services)
        for counter in range(MAX_PASSED_OVER):
            block = digest(secret, _LABEL + _COUNTERS.pack(step, counter) + names, "sha256")
            words = _WORDS.unpack(block)[: self._length]
            candidate = tuple([services[word * size >> 32] for word in words])
            if self._may_be(candidate):
                return candidate
        raise ValueError("the ports are too few for sequences without neighbours")

    def _may_be(self, candidate: Sequence) -> bool:
        """Whether no two knocks are on the same or on neighbouring ports, nor all of one protocol without need."""
        ports = sorted([port for _, port in candidate])
        for lower, upper in pairwise(ports):
            if upper - lower < 2:
                return False
        return not self._is_mixed or len({proto for proto, _ in candidate}) > 1


def _named(door: str, host: str) -> bytes:
    return b"".join(_LENGTH.pack(len(name)) + name for name in (door.encode(), host.encode()))


def sequence_of(door: TotpDoor, client: Client, step: int) -> Sequence:
    """What the client knocks at the door in step number `step`."""
    return sequences_of(door).make(client.secret, step)


class CodeMaker:
    """Spells the sequences of a code door."""

    __slots__ = ("_digits", "_door", "_first", "_host")

    def __init__(self, door: str, host: str, first: Service, digits: int) -> None:
        self._door, self._host = door, host
        self._first, self._digits = first, digits

    def make(self, secret: bytes, step: int) -> Sequence:
        """The sequence of a client's secret in a step."""
        return spell(code(code_secret(secret, self._door, self._host), step, self._digits), self._first)


def sequences_of(door: TotpDoor) -> Maker | CodeMaker:
    """What makes the door's sequences, of a client's secret and the number of a step."""
    if door.digits:
        return CodeMaker(door.door, door.host, door.services[0], door.digits)
    return Maker(door.door, door.host, door.services, door.length)


# ---- codes of an authenticator


def code_secret(secret: bytes, door: str, host: str) -> bytes:
    """What a client's authenticator gets, 20 bytes: of no use at another door or host that shares the secret."""
    return digest(secret, _CODE_LABEL + _named(door, host), "sha256")[:CODE_SECRET]


def code(secret: bytes, step: int, digits: int) -> str:
    """The authenticator's code in step number `step`: RFC 6238 with HMAC-SHA-1, as the apps have it."""
    block = digest(secret, _COUNTER.pack(step), "sha1")
    at = block[-1] & 0xF
    number = int.from_bytes(block[at : at + 4], "big") & 0x7FFF_FFFF
    return f"{number % 10**digits:0{digits}}"


def spell(code: str, first: Service) -> Sequence:
    """A code as knocks: two digits each, the first two in the hundred ports from `first` on, the next in the next."""
    pairs = [int(code[at : at + 2]) for at in range(0, len(code), 2)]
    return tuple(Service(first.proto, first.port + PAIRS * at + pair) for at, pair in enumerate(pairs))


# ---- strength


class Strength(NamedTuple):
    """possible: how many sequences there are, each as likely as any other; bits: the same as a power of two."""

    possible: int
    bits: float


def strength(door: TotpDoor) -> Strength:
    """How many sequences a client of the door may have in a step."""
    possible = 10**door.digits if door.digits else count_possible(door.services, door.length)
    return Strength(possible, log2(possible) if possible else 0.0)


def count_possible(services: Collection[Service], length: int) -> int:
    """How many sequences of so many knocks derive() may take from these services."""
    protocols: dict[int, set[int]] = {}
    for proto, port in services:
        protocols.setdefault(proto, set()).add(port)
    every: dict[int, int] = {}
    for ports in protocols.values():
        for port in ports:
            every[port] = every.get(port, 0) + 1
    ways = _count_apart(every, length)
    if len(protocols) > 1:
        ways -= sum(_count_apart(dict.fromkeys(ports, 1), length) for ports in protocols.values())
    return ways * factorial(length)


def _count_apart(ports: dict[int, int], length: int) -> int:
    """In how many ways so many ports can be chosen with no neighbours among them; each counts as often as is said."""
    # By the number of ports chosen so far: all ways, and those that have not taken the port before.
    ways = [1] + [0] * length
    free = list(ways)
    before = -1
    for port in sorted(ports):
        if port != before + 1:
            free = ways
        taken = [0] + [ports[port] * count for count in free[:-1]]
        free, ways, before = ways, [old + new for old, new in zip(ways, taken, strict=True)], port
    return ways[length]


def check_strength(door: TotpDoor) -> None:
    """Raises WeakError for a door whose sequences could be guessed. A code door's space is what it is."""
    if door.digits:
        return
    possible = count_possible(door.services, door.length)
    if possible < MIN_POSSIBLE:
        ports = len({service.port for service in door.services})
        raise WeakError(
            f"{door.length} knocks on {ports:,} ports: {possible:,} possible sequences a step are too few to be safe "
            "from guessing",
            "use more ports, TCP and UDP, or more knocks: the default is 4 knocks on " + ", ".join(DEFAULT_PORTS),
        )


# ---- secrets as text


def parse_secret(text: str) -> bytes:
    """A secret in base32 (RFC 4648), case, blanks, hyphens and padding as they come; raises ValueError.

    The error does not show it.
    """
    letters = "".join(text.split()).replace("-", "").rstrip("=")
    if not letters.isascii() or not _BASE32.issuperset(letters.upper()):
        raise ValueError("the secret is no base32: letters A to Z and digits 2 to 7")
    size = len(letters) * 5 // 8
    if size < MIN_SECRET:
        raise ValueError(f"the secret is too short: {size} byte{'s' * (size != 1)}, and {MIN_SECRET} are the least")
    if size > MAX_SECRET:
        raise ValueError(f"the secret is too long: {size} bytes, and {MAX_SECRET} are the most")
    if len(letters) % 8 in _NO_LENGTHS:
        raise ValueError(f"the secret is no base32: {len(letters)} letters make no whole bytes, so some are missing")
    secret = b32decode(letters.upper() + "=" * (-len(letters) % 8))
    if format_secret(secret) != letters.upper():
        raise ValueError("the secret is no base32: its last letter has bits too many")
    if len(set(secret)) == 1:
        raise ValueError("the secret is none: all of its bytes are the same")
    return secret


def format_secret(secret: bytes) -> str:
    """The secret in base32, without padding."""
    return b32encode(secret).decode().rstrip("=")


def otpauth(door: TotpDoor, client: Client) -> str:
    """What a QR code has for the client: an `otpauth://` URI; it holds the secret.

    Of a code door, what any authenticator app reads. Of another, the client's own secret and what else a knocking
    program needs, under names of our own: an app that knows only codes shows codes that open nothing.
    """
    label = quote(f"{door.host}:{client.name}@{door.door}", safe=":@")
    if door.digits:
        secret = code_secret(client.secret, door.door, door.host)
        query = {"algorithm": "SHA1", "digits": str(door.digits), "period": str(door.step)}
    else:
        secret = client.secret
        query = {"algorithm": "SHA256", "digits": "8", "period": str(door.step), "door": door.door, "host": door.host}
        query |= {"ports": ",".join(ranges(door.services)), "length": str(door.length)}
    query = {"secret": format_secret(secret), "issuer": door.host} | query
    return f"otpauth://totp/{label}?{urlencode(query, quote_via=quote, safe=',/')}"


def ranges(services: Iterable[Service]) -> list[str]:
    """Services in words, those in a row as a range: `20000-20499/tcp`."""
    rows: list[tuple[Service, int]] = []
    for service in services:
        if rows and service == (rows[-1][0].proto, rows[-1][1] + 1):
            rows[-1] = rows[-1][0], service.port
        else:
            rows.append((service, service.port))
    return [
        f"{first.port}-{last}/{PROTOCOL_NAMES[first.proto]}" if last > first.port else str(first)
        for first, last in rows
    ]


def code_services(first: Service, digits: int) -> tuple[Service, ...]:
    """The pool of a code door: a hundred ports for each two digits; raises ValueError for what is no such pool."""
    if first.proto != TCP or first.port % PAIRS or first.port + PAIRS * digits // 2 > 65_536 or not first.port:
        raise ValueError(f"a code's ports begin at a multiple of {PAIRS} and are TCP's")
    return tuple(Service(TCP, first.port + at) for at in range(PAIRS * digits // 2))
