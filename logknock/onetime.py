"""One-time sequences: what a line of their file says, and how strong ones are made.

Rule 1: no I/O and no clock, and no randomness of its own: what draws is passed in. Rule 2: a line means one thing or is
malformed: what knockd takes silently (`abc`, `12x`, `-5`, a comma at the end) is an error in words for the operator.

The format is knockd's: a sequence a line, knocks (`port[:tcp|udp]`) between commas; a line that begins with # is a
comment.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from math import comb, factorial, log2, perm
from typing import NamedTuple

from .knock import MAX_SEQUENCE, Sequence, Service, parse_port
from .packet import PROTOCOL_NAMES, PROTOCOLS, TCP

# Bytes of a line, its newline left out. 32 knocks written in full take 350.
MAX_LINE = 4096

_LAST_PORT = 65_535

# `65535:tcp` has 9 letters. More than this is not shown whole in an error.
_MAX_SHOWN = 40

# T21: whoever guesses a billion sequences a door is slower than any rate limit lets them be.
MIN_POSSIBLE = 1 << 30

# Fewer knocks are what a port scan opens by chance, however many possibilities there are (T3).
MIN_LENGTH = 3

# How many sequences there must be for each one in a file, so that being different from all others says little of it:
# whoever knows all others has a 64th less to guess.
_ROOM = 64

# How many draws a sequence may take. It is reached where there are hardly more ports than knocks.
_MAX_DRAWS = 1000


class Place(NamedTuple):
    """How far a file is used: the lines and bytes before this place, and the sequence on the last line used."""

    line: int = 0
    offset: int = 0
    last: Sequence = ()


class WeakError(ValueError):
    """The sequences that were asked for could be guessed, or there are not enough; with what to ask for instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


# ---- a line


def parse_line(line: bytes) -> Sequence | None:
    """The sequence on the line, with or without its newline; None for a blank line or a comment.

    Raises ValueError, in words for the operator, for a malformed one.
    """
    if len(line.removesuffix(b"\n")) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    text = line.strip()
    if not text or text.startswith(b"#"):
        return None
    words = text.split(b",")
    if len(words) > MAX_SEQUENCE:
        raise ValueError(f"{len(words)} knocks, and {MAX_SEQUENCE} are the most")
    return tuple(map(parse_knock, words))


def parse_knock(word: bytes) -> Service:
    """What stands between two commas: `7000`, `7000:udp` or `7000/udp`, blanks round it; raises ValueError."""
    text = word.strip().decode("utf-8", "backslashreplace")
    if not text:
        raise ValueError("a port is missing before or behind a comma")
    if len(text) > _MAX_SHOWN:
        raise ValueError(f"{text[:_MAX_SHOWN]!r}... is no port")
    port, colon, protocol = text.replace("/", ":").partition(":")
    if not colon:
        return Service(TCP, parse_port(port, text))
    proto = PROTOCOLS.get(protocol.lower())
    if proto is None:
        raise ValueError(f"{text!r}: the protocol is tcp or udp, not {protocol!r}")
    return Service(proto, parse_port(port, text))


def format_line(sequence: Sequence) -> bytes:
    """The sequence as a line that knockd reads too: it puts its # over the blank at the beginning."""
    words = [str(port) if proto == TCP else f"{port}:{PROTOCOL_NAMES[proto]}" for proto, port in sequence]
    return f" {','.join(words)}\n".encode()


# ---- sequences that nobody guesses


def count_possible(services: Collection[Service], length: int) -> int:
    """How many sequences of so many of these services there are, no port being in one twice."""
    ports = len({service.port for service in services})
    double = len(services) - ports  # ports that are there for TCP and for UDP
    ways = (comb(double, both) * (1 << both) * comb(ports - double, length - both) for both in range(length + 1))
    return factorial(length) * sum(ways)


def strength(services: Collection[Service], length: int) -> float:
    """What guessing one such sequence takes, in bits; services as generate() would take them."""
    return log2(count_possible(services, length))


def generate(count: int, length: int, services: Collection[Service], draw: Callable[[int], int]) -> Iterator[Sequence]:
    """So many different sequences of `length` of these services, each port at most once in a sequence.

    `draw(n)` gives a number from 0 to n-1 that nobody can foresee, each as likely as any other. No sequence begins as
    the one before it, so that a late resend of that one's first knock is not taken for a beginning of this one.
    Raises WeakError before the first one.
    """
    pool = sorted(services)
    check_strength(count, length, pool)
    return _drawn(count, length, pool, draw)


def check_strength(count: int, length: int, services: Collection[Service]) -> None:
    """Raises WeakError for what generate() would not make."""
    possible = count_possible(services, length)
    needed = max(MIN_POSSIBLE, _ROOM * count)
    asked = f"{_counted(length, 'knock')} on {_counted(len({service.port for service in services}), 'port')}"
    if possible < needed:
        message = f"{asked}: {possible:,} possible sequences are too few to be safe from guessing"
        raise WeakError(message, _ask_for(needed, length, services))
    if perm(len(services), length) > _MAX_DRAWS * possible:
        raise WeakError(f"{asked}: there are hardly more ports than knocks", f"use {4 * length} ports or more")


def _ask_for(needed: int, length: int, services: Collection[Service]) -> str:
    """How many ports, or how many knocks, would be enough."""
    ports = max(length, int(needed ** (1 / length)))  # no fewer would do
    while ports <= _LAST_PORT and perm(ports, length) < needed:
        ports += 1
    longer = (more for more in range(length + 1, MAX_SEQUENCE + 1) if count_possible(services, more) >= needed)
    words = [f"{ports:,} ports or more"] if ports <= _LAST_PORT else []
    words += [f"{more} knocks" for more in islice(longer, 1)]
    return f"use {', or '.join(words or ['more ports and more knocks'])}"


def _drawn(count: int, length: int, pool: list[Service], draw: Callable[[int], int]) -> Iterator[Sequence]:
    # A bit for each place that a sequence may have. Two never share one, so no two are the same, and the memory is
    # 8 bytes a sequence; that a place is taken by another one now and then costs a draw.
    places = _ROOM * count
    taken = bytearray(places // 8 + 1)
    size = len(pool)
    possible = perm(size, length)
    first: Service | None = None
    while count:
        number = draw(possible)
        for at in range(length):  # the beginning of a shuffle; that the pool stays shuffled changes no likelihood
            number, step = divmod(number, size - at)
            pool[at], pool[at + step] = pool[at + step], pool[at]
        sequence = tuple(pool[:length])
        byte, bit = divmod(hash(sequence) % places, 8)
        if (
            sequence[0] != first
            and not taken[byte] >> bit & 1
            and len({service.port for service in sequence}) == length
        ):
            taken[byte] |= 1 << bit
            first = sequence[0]
            count -= 1
            yield sequence


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
