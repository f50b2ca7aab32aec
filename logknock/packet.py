"""What one logged packet says: who sent what to which service, and when; and what it carries.

Rule 1: pure; bytes come in, a Packet or None goes out. Rule 2: every byte may have been chosen by an attacker:
what is short, fragmented, of another protocol or malformed is "no packet", never an exception.
"""

import ipaddress
from typing import NamedTuple

ICMP = 1
TCP = 6
UDP = 17
ICMP6 = 58
PROTOCOLS = {"tcp": TCP, "udp": UDP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

# How much of a transport header is needed: TCP up to and with its flags (RFC 9293, 3.1), all of UDP's (RFC 768).
TCP_NEEDS = 14
UDP_NEEDS = 8
TCP_HEADER = 20
ICMP_HEADER = 8

# The types of messages that carry what their sender likes, with the only code that they have (RFC 792, RFC 4443): an
# echo request, and over IPv4 an echo reply, which is what the stock fwknop client sends unless it is told otherwise.
_ECHOES = {ICMP: (b"\x08\0", b"\0\0"), ICMP6: (b"\x80\0",)}

# IPv6 extension headers that may stand before TCP or UDP: hop-by-hop, routing, destination, mobility, HIP, shim6
# (RFC 8200, RFC 7045). A fragment header (44) and ESP (50) are left out on purpose: behind them are no ports to trust.
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})
_AUTHENTICATION = 51  # its length counts 4-byte words (RFC 4302), the others' 8-byte words
MAX_EXTENSIONS = 8  # a real packet has one or two; the bound keeps a crafted chain from costing more


# Packets of one knocker that two receive queues took in can carry times a little out of order. More than that is
# a clock that stepped.
CLOCK_SLACK = 0.01


class Packet(NamedTuple):
    """One packet that the firewall logged.

    time: seconds since the epoch, wall clock, when the packet came in.
    src, dst: addresses in network order, 4 bytes (IPv4) or 16 (IPv6): one form for one address.
    proto: IP protocol number, TCP or UDP; ICMP or ICMP6 only in a Carried, with ports of 0.
    sport, dport: 0-65535. flags: TCP flags, 0 for the others.
    """

    time: float
    src: bytes
    dst: bytes
    proto: int
    sport: int
    dport: int
    flags: int


class Carried(NamedTuple):
    """A packet that arrived whole, with what it carries behind its transport header."""

    packet: Packet
    payload: bytes


class _Transport(NamedTuple):
    """Where a transport header begins, and how much the IP header promises from there on, in bytes."""

    proto: int
    at: int
    length: int
    src: bytes
    dst: bytes


def address_text(address: bytes) -> str:
    """The usual text of an address of 4 or 16 bytes (RFC 5952 for IPv6)."""
    return str(ipaddress.ip_address(address))


def parse_address(text: str) -> bytes:
    """An address as a person writes it, in network order: one form for one address (T27).

    IPv4 in IPv6 form is that IPv4 address. Raises ValueError in words for the operator.
    """
    if "%" in text:
        raise ValueError(f"{text[:64]!r} has a zone, and a packet's source has none: leave out what begins with %")
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise ValueError(f"{text[:64]!r} is no IP address: write 192.0.2.7 or 2001:db8::7") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).packed


def bare(prefix: str) -> str:
    """A rule's prefix as it is compared: blanks around it and colons at its end do not count."""
    return prefix.strip(" \t").rstrip(" \t:")


def from_ip(data: bytes, time: float) -> Packet | None:
    """The packet that begins with the IP header at the start of `data`, which may be cut short behind the ports.

    Sources: RFC 791 (IPv4), RFC 8200 (IPv6). Fragments are no packet, the first one included: the kernel
    reassembles before the rules that log for us see anything, so one that arrives here was not meant honestly.
    """
    found = _transport(data)
    if found is None:
        return None
    proto, at, length, src, dst = found
    if proto == TCP:
        if length < TCP_HEADER or len(data) < at + TCP_NEEDS:
            return None
        flags = data[at + 13]
    elif proto == UDP:
        if length < UDP_NEEDS or len(data) < at + UDP_NEEDS:
            return None
        flags = 0
    else:
        return None
    sport = int.from_bytes(data[at : at + 2], "big")
    dport = int.from_bytes(data[at + 2 : at + 4], "big")
    return Packet(time, src, dst, proto, sport, dport, flags)


def carried_from_ip(data: bytes, time: float) -> Carried | None:
    """What the IP packet at the start of `data` carries, if it is of a kind that an SPA packet comes in, and whole.

    These kinds: a UDP datagram, a TCP SYN without ACK, RST and FIN (data on a SYN: RFC 9293, 3.4), an echo request, an
    echo reply over IPv4 (one that answers an echo request of this host's is of its connection, and is not logged).
    Whole: as long as its headers promise, and no fragment. Checksums are not looked at: what authenticates a payload
    says more, and a client that makes its TCP header itself may well get that one wrong.
    """
    found = _transport(data)
    if found is None or len(data) < found.at + found.length:
        return None
    proto, at, length, src, dst = found
    if proto in _ECHOES:
        if length < ICMP_HEADER or data[at : at + 2] not in _ECHOES[proto]:
            return None
        return Carried(Packet(time, src, dst, proto, 0, 0, 0), data[at + ICMP_HEADER : at + length])
    packet = from_ip(data, time)
    if packet is None:
        return None
    if proto == UDP:
        header, length = UDP_NEEDS, _udp_length(data, at, length)
    else:
        header = (data[at + 12] >> 4) * 4
        if header < TCP_HEADER or packet.flags & (SYN | ACK | RST | FIN) != SYN:
            return None
    return Carried(packet, data[at + header : at + length]) if header <= length else None


def _udp_length(data: bytes, at: int, length: int) -> int:
    """What the UDP header says of its own length; 0 where that is more than the IP header promises."""
    said = int.from_bytes(data[at + 4 : at + 6], "big")
    return said if said <= length else 0


def _transport(data: bytes) -> _Transport | None:
    if not data:
        return None
    version = data[0] >> 4
    if version == 4:
        return _behind_ipv4(data)
    if version == 6:
        return _behind_ipv6(data)
    return None


def _behind_ipv4(data: bytes) -> _Transport | None:
    if len(data) < 20:
        return None
    at = (data[0] & 0x0F) * 4
    total = int.from_bytes(data[2:4], "big")
    fragment = int.from_bytes(data[6:8], "big") & 0x3FFF  # more-fragments and the offset
    if at < 20 or fragment or data[9] == ICMP6:
        return None
    return _Transport(data[9], at, total - at, bytes(data[12:16]), bytes(data[16:20]))


def _behind_ipv6(data: bytes) -> _Transport | None:
    if len(data) < 40:
        return None
    at, proto = 40, data[6]
    end = 40 + int.from_bytes(data[4:6], "big")
    for _ in range(MAX_EXTENSIONS + 1):
        if proto in PROTOCOL_NAMES or proto == ICMP6:
            return _Transport(proto, at, end - at, bytes(data[8:24]), bytes(data[24:40]))
        if len(data) < at + 8:
            return None
        if proto in _EXTENSIONS:
            proto, at = data[at], at + 8 * (data[at + 1] + 1)
        elif proto == _AUTHENTICATION:
            proto, at = data[at], at + 4 * (data[at + 1] + 2)
        else:
            return None
    return None
