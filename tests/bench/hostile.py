"""What attackers send: floods of each kind, as frames that stand on the wire as they are.

Rule 1: pure, and what is random comes from the caller. Rule 2: checksums of IP headers are right, and so are those of
whole TCP segments: what the kernel would drop for its sum alone tests nothing. Rule 3: a kind that comes round and
round says which words change at each turn, so that no packet is the resend of an earlier one.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from random import Random
from typing import NamedTuple

from logknock.packet import SYN, TCP, UDP

from .frames import Link, Wave, Words, checksum_of, ethernet, ipv4, syn, syn6, syn6_words, udp, wave_frames, wave_words

# Sources that `field` routes back to the client: 198.18.0.0/15 (RFC 2544), and fd98::/32.
_HIGHS = (0xC612, 0xC613)
_ONE = bytes((198, 19, 7, 7))
_NET6 = bytes.fromhex("fd980000")

# So often a wave's frames are sent before one of their flows comes again.
_TURNS = 1000
_FIRST_PORT = 20_000

_ANY_PORT = range(1, 1 << 16)


class Kind(NamedTuple):
    """A flood: its frames, and for each turn but the first which words of all of them change."""

    name: str
    frames: Sequence[bytes]
    turns: Sequence[Words] = ()


Make = Callable[[Link, int, int, Random], Kind]


def first_knocks(link: Link, port: int, count: int, random: Random) -> Kind:
    """SYNs to a knock port, each from another address."""
    return _spoofed("spoofed first knocks", link, [port], count, random)


def random_ports(link: Link, port: int, count: int, random: Random) -> Kind:
    """SYNs to any port at all, each from another address."""
    return _spoofed("spoofed, to random ports", link, random.choices(_ANY_PORT, k=count), count, random)


def one_source(link: Link, port: int, count: int, random: Random) -> Kind:
    """SYNs to a knock port from one address."""
    ports = islice(cycle(range(1024, 1 << 16)), count)
    return Kind("one source", [syn(link, _ONE, sport, port) for sport in ports])


def within_prefix(link: Link, port: int, count: int, random: Random) -> Kind:
    """SYNs to a knock port from ever other addresses of one /64: word 6 of the address comes with the turn."""
    lows = _lows(count, random)
    sources = (_NET6 + b"\0\7\0\0" + b"\0\0\0\0" + _word(_HIGHS[0]) + low for low in lows)
    turns = [syn6_words(6, _HIGHS[0], _HIGHS[0] + turn) for turn in range(_TURNS)]
    return Kind("IPv6, within one /64", [syn6(link, src, _FIRST_PORT, port) for src in sources], turns)


def across_prefixes(link: Link, port: int, count: int, random: Random) -> Kind:
    """The same, each address in another /64: word 2 of the address comes with the turn."""
    sources = (_NET6 + _word(_HIGHS[0]) + low + b"\0\0\0\0\0\0\0\1" for low in _lows(count, random))
    turns = [syn6_words(2, _HIGHS[0], _HIGHS[0] + turn) for turn in range(_TURNS)]
    return Kind("IPv6, across /64s", [syn6(link, src, _FIRST_PORT, port) for src in sources], turns)


def datagrams(link: Link, port: int, count: int, random: Random) -> Kind:
    """UDP to a knock port, each from another address."""
    sources = (_word(_HIGHS[0]) + low for low in _lows(count, random))
    first = Wave(_HIGHS[0], _FIRST_PORT)
    turns = [wave_words(first, wave)[:-1] for wave in _waves()]  # a datagram has no window, and needs no sum
    return Kind("UDP, spoofed", [udp(link, source, _FIRST_PORT, port) for source in sources], turns)


def malformed(link: Link, port: int, count: int, random: Random) -> Kind:
    """What no honest stack sends, and the kernel hands on all the same, as far as it does: all kinds by turns."""
    every = cycle((_cut_short, _bad_offsets, _with_options, _without_length, _empty))
    lows = _lows(count, random)
    return Kind(
        "malformed", [make(link, _word(_HIGHS[0]) + low, port, random) for make, low in zip(every, lows, strict=False)]
    )


def fragments(link: Link, port: int, count: int, random: Random) -> Kind:
    """Pieces of SYNs: pairs that make a whole, first ones that wait in vain, and last ones that nothing came before."""
    made: list[bytes] = []
    for number, low in enumerate(_lows(count, random)):
        source = _word(_HIGHS[0]) + low
        first, last = _halves(link, source, port, number)
        made += ((first, last), (first,), (last,))[number % 3]
    return Kind("fragments", made[:count])


KINDS: Sequence[Make] = (
    first_knocks,
    random_ports,
    one_source,
    datagrams,
    within_prefix,
    across_prefixes,
    malformed,
    fragments,
)


def _spoofed(name: str, link: Link, ports: Sequence[int], count: int, random: Random) -> Kind:
    first = Wave(_HIGHS[0], _FIRST_PORT)
    lows = [int.from_bytes(low, "big") for low in _lows(count, random)]
    turns = [wave_words(first, wave) for wave in _waves()]
    return Kind(name, wave_frames(link, first, lows, ports), turns)


def _waves() -> Iterator[Wave]:
    return (Wave(_HIGHS[0], _FIRST_PORT + turn) for turn in range(_TURNS))


def _lows(count: int, random: Random) -> list[bytes]:
    return [_word(low) for low in random.sample(range(1 << 16), count)]


def _word(value: int) -> bytes:
    return value.to_bytes(2, "big")


# ---- malformed


def _cut_short(link: Link, source: bytes, port: int, random: Random) -> bytes:
    """A TCP header that ends before its flags: 4 to 13 bytes of it, and the IP header promises no more."""
    whole = _tcp(source, link, port)
    return ethernet(link, ipv4(source, link.target, TCP, whole[: random.randrange(4, 14)]))


def _bad_offsets(link: Link, source: bytes, port: int, random: Random) -> bytes:
    """A TCP header that says that it is shorter than a TCP header is, or longer than its packet."""
    offset = random.choice((0, 1, 4, 6, 15))
    return ethernet(link, ipv4(source, link.target, TCP, _tcp(source, link, port, offset=offset)))


def _with_options(link: Link, source: bytes, port: int, random: Random) -> bytes:
    """A SYN behind an IP header with options (RFC 791): nothing but no-operations, up to 40 bytes."""
    options = b"\1" * 4 * random.randrange(1, 11)
    return ethernet(link, ipv4(source, link.target, TCP, _tcp(source, link, port), options=options))


def _without_length(link: Link, source: bytes, port: int, random: Random) -> bytes:
    """A datagram that says that it has no length, or one of less than its own header."""
    header = _word(_FIRST_PORT) + _word(port) + _word(random.choice((0, 1, 7))) + b"\0\0"
    return ethernet(link, ipv4(source, link.target, UDP, header))


def _empty(link: Link, source: bytes, port: int, random: Random) -> bytes:
    """An IP header with nothing behind it, for a protocol that has ports, or for none that exists."""
    return ethernet(link, ipv4(source, link.target, random.choice((TCP, UDP, 253)), b""))


def _tcp(source: bytes, link: Link, port: int, offset: int = 5) -> bytes:
    """A TCP header with SYN and nothing behind it; `offset` is what it says of its own length, in words."""
    header = (
        _word(_FIRST_PORT) + _word(port) + b"\0\0\0\1" + bytes(4) + bytes((offset << 4, SYN)) + b"\x70\0" + bytes(4)
    )
    total = checksum_of(source, link.target, TCP, header)
    return header[:16] + _word(total) + header[18:]


def _halves(link: Link, source: bytes, port: int, number: int) -> tuple[bytes, bytes]:
    """A SYN in two fragments, the first of which has the ports and nothing more."""
    whole = _tcp(source, link, port)
    more, behind = 1 << 13, 1  # flags and offset of the IP header: "more fragments", and eight bytes
    first, last = (
        ipv4(source, link.target, TCP, piece, identification=number & 0xFFFF, fragment=place)
        for piece, place in ((whole[:8], more), (whole[8:], behind))
    )
    return ethernet(link, first), ethernet(link, last)
