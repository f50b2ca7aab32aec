"""The packets of the benchmark: SYNs as they stand on the wire, and how to make another wave out of the same frames.

Rule: pure, and every checksum is right (RFC 1071): what a real attacker sends passes conntrack's checks too.
A wave changes the same words in all frames at once; two words that nothing reads, IP's identification and TCP's
window, take up the difference, so that the sums stay what they were.
"""

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from logknock.packet import SYN, TCP

LENGTH = 54
_ETHERNET = Struct("!6s6sH")
_IP = Struct("!BBHHHBBH4s4s")
_TCP = Struct("!HHIIBBHHH")
_PSEUDO = Struct("!4s4sBBH")

# Where the words of a wave stand in a frame.
_IDENTIFICATION, _SOURCE_HIGH, _SOURCE_PORT, _WINDOW = 18, 26, 34, 48

_FIRST_WINDOW = 0x7000
_FIRST_IDENTIFICATION = 0x7000


class Link(NamedTuple):
    """From whom to whom, in hardware addresses, and the address that is knocked at."""

    sender: bytes
    receiver: bytes
    target: bytes


class Wave(NamedTuple):
    """What all frames of a wave have in common: the first half of their sources, and their source port."""

    source_high: int
    source_port: int


def syn(link: Link, source: bytes, source_port: int, port: int) -> bytes:
    """One SYN, complete."""
    ip = _IP.pack(0x45, 0, 40, _FIRST_IDENTIFICATION, 0, 64, TCP, 0, source, link.target)
    tcp = _TCP.pack(source_port, port, 1, 0, 5 << 4, SYN, _FIRST_WINDOW, 0, 0)
    tcp_sum = checksum(_PSEUDO.pack(source, link.target, 0, TCP, len(tcp)) + tcp)
    ethernet = _ETHERNET.pack(link.receiver, link.sender, 0x0800)
    return ethernet + _with_sum(ip, 10, checksum(ip)) + _with_sum(tcp, 16, tcp_sum)


def wave_frames(link: Link, wave: Wave, source_lows: Sequence[int], ports: Sequence[int]) -> list[bytes]:
    """The frames of a first wave: a source for each of the low halves, and the ports in turn."""
    high = wave.source_high.to_bytes(2, "big")
    return [
        syn(link, high + low.to_bytes(2, "big"), wave.source_port, ports[number % len(ports)])
        for number, low in enumerate(source_lows)
    ]


def wave_words(first: Wave, wave: Wave) -> list[tuple[int, int]]:
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
