"""The packets of the benchmark: SYNs as they stand on the wire, and how to make another wave out of the same frames.

Rule: pure, and every checksum is right (RFC 1071): what a real attacker sends passes conntrack's checks too.
A wave changes the same words in all frames at once; two words that nothing reads, IP's identification and TCP's
window, take up the difference, so that the sums stay what they were. (A datagram over IPv4 needs no sum, and has none.)
"""

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from logknock.packet import SYN, TCP, UDP

LENGTH = 54
_ETHERNET = Struct("!6s6sH")
_IP = Struct("!BBHHHBBH4s4s")
_TCP = Struct("!HHIIBBHHH")
_UDP = Struct("!HHHH")
_IP6 = Struct("!IHBB16s16s")
_PSEUDO = Struct("!4s4sBBH")
_PSEUDO6 = Struct("!16s16sI3xB")

# Where the words of a wave stand in a frame.
_IDENTIFICATION, _SOURCE_HIGH, _SOURCE_PORT, _WINDOW = 18, 26, 34, 48

_SOURCE6, _WINDOW6 = 22, 68

_FIRST_WINDOW = 0x7000
_FIRST_IDENTIFICATION = 0x7000


# Offsets in a frame, and the word to stand at each.
Words = Sequence[tuple[int, int]]


class Link(NamedTuple):
    """From whom to whom, in hardware addresses, and the addresses that are knocked at, of IPv4 and of IPv6."""

    sender: bytes
    receiver: bytes
    target: bytes
    target6: bytes = bytes(16)


class Wave(NamedTuple):
    """What all frames of a wave have in common: the first half of their sources, and their source port."""

    source_high: int
    source_port: int


def syn(link: Link, source: bytes, source_port: int, port: int) -> bytes:
    """One SYN, complete."""
    tcp = _TCP.pack(source_port, port, 1, 0, 5 << 4, SYN, _FIRST_WINDOW, 0, 0)
    total = checksum_of(source, link.target, TCP, tcp)
    return ethernet(link, ipv4(source, link.target, TCP, _with_sum(tcp, 16, total)))


def udp(link: Link, source: bytes, source_port: int, port: int, payload: bytes = b"") -> bytes:
    """One datagram; by itself with nothing in it."""
    header = _UDP.pack(source_port, port, _UDP.size + len(payload), 0)
    return ethernet(link, ipv4(source, link.target, UDP, header + payload))


def syn6(link: Link, source: bytes, source_port: int, port: int) -> bytes:
    """One SYN over IPv6."""
    tcp = _TCP.pack(source_port, port, 1, 0, 5 << 4, SYN, _FIRST_WINDOW, 0, 0)
    total = checksum(_PSEUDO6.pack(source, link.target6, len(tcp), TCP) + tcp)
    header = _IP6.pack(6 << 28, len(tcp), TCP, 64, source, link.target6)
    return ethernet(link, header + _with_sum(tcp, 16, total), 0x86DD)


def syn6_words(place: int, first: int, word: int) -> Words:
    """What makes a frame of `syn6`, whose source has the word `first` at this place, one whose source has `word`."""
    return [(_SOURCE6 + 2 * place, word), (_WINDOW6, (_FIRST_WINDOW + first - word) % 0xFFFF)]


def ethernet(link: Link, packet: bytes, kind: int = 0x0800) -> bytes:
    """The frame of a packet; kind: IPv4's number, or IPv6's (0x86DD)."""
    return _ETHERNET.pack(link.receiver, link.sender, kind) + packet


def ipv4(
    source: bytes, target: bytes, proto: int, payload: bytes,
    *, options: bytes = b"", identification: int = _FIRST_IDENTIFICATION, fragment: int = 0,
) -> bytes:  # fmt: skip
    """A packet with a right header; fragment: its flags and its offset (RFC 791)."""
    words = 5 + len(options) // 4
    length = 4 * words + len(payload)
    header = _IP.pack(0x40 | words, 0, length, identification, fragment, 64, proto, 0, source, target) + options
    return _with_sum(header, 10, checksum(header)) + payload


def checksum_of(source: bytes, target: bytes, proto: int, payload: bytes) -> int:
    """The checksum of a TCP segment (or UDP datagram) over IPv4, which covers the addresses too."""
    return checksum(_PSEUDO.pack(source, target, 0, proto, len(payload)) + payload)


def wave_frames(link: Link, wave: Wave, source_lows: Sequence[int], ports: Sequence[int]) -> list[bytes]:
    """The frames of a first wave: a source for each of the low halves, and the ports in turn."""
    high = wave.source_high.to_bytes(2, "big")
    return [
        syn(link, high + low.to_bytes(2, "big"), wave.source_port, ports[number % len(ports)])
        for number, low in enumerate(source_lows)
    ]


def wave_words(first: Wave, wave: Wave) -> Words:
    """What turns frames of the first wave into frames of `wave`: offsets, and the word to stand there."""
    address = first.source_high - wave.source_high
    port = first.source_port - wave.source_port
    return [
        (_SOURCE_HIGH, wave.source_high),
        (_SOURCE_PORT, wave.source_port),
        (_IDENTIFICATION, (_FIRST_IDENTIFICATION + address) % 0xFFFF),
        (_WINDOW, (_FIRST_WINDOW + address + port) % 0xFFFF),
    ]


def checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes; 0 over data whose checksum is in it and right."""
    total = sum(memoryview(data).cast("H"))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return int.from_bytes((~total & 0xFFFF).to_bytes(2, "little"), "big")


def _with_sum(header: bytes, at: int, value: int) -> bytes:
    return header[:at] + value.to_bytes(2, "big") + header[at + 2 :]
