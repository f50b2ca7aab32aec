"""A packet is what its bytes say, or nothing; and so is what it carries."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logknock.knock import Service
from logknock.packet import ACK, FIN, ICMP, ICMP6, PSH, RST, SYN, TCP, UDP, Carried, Packet, carried_from_ip, from_ip

V4 = (ipaddress.ip_address("198.51.100.7").packed, ipaddress.ip_address("10.99.0.1").packed)
V6 = (ipaddress.ip_address("2001:db8::7").packed, ipaddress.ip_address("fd99::1").packed)
TCP_SYN = struct.pack("!HHIIBBHHH", 40000, 7000, 1, 0, 5 << 4, SYN, 64240, 0, 0)
UDP_ONE = struct.pack("!HHHH", 40000, 9000, 9, 0) + b"\0"


def ipv4(payload: bytes, proto: int, *, options: bytes = b"", fragment: int = 0, total: int | None = None) -> bytes:
    ihl = 5 + len(options) // 4
    length = ihl * 4 + len(payload) if total is None else total
    return struct.pack("!BBHHHBBH4s4s", 0x40 | ihl, 0, length, 1, fragment, 64, proto, 0, *V4) + options + payload


def ipv6(payload: bytes, proto: int, *, length: int | None = None) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload) if length is None else length, proto, 64, *V6) + payload


def extension(following: int, words: int = 0) -> bytes:
    return bytes((following, words)) + bytes(6 + 8 * words)


SYN_V4 = Packet(5.0, *V4, TCP, 40000, 7000, SYN)
SYN_V6 = Packet(5.0, *V6, TCP, 40000, 7000, SYN)


@pytest.mark.parametrize(
    ("data", "packet"),
    [
        pytest.param(ipv4(TCP_SYN, 6), SYN_V4, id="a TCP SYN over IPv4"),
        pytest.param(ipv4(UDP_ONE, 17), Packet(5.0, *V4, UDP, 40000, 9000, 0), id="a UDP datagram over IPv4"),
        pytest.param(ipv4(TCP_SYN, 6, options=bytes(40)), SYN_V4, id="all the IPv4 options there can be"),
        pytest.param(ipv4(TCP_SYN, 6, fragment=0x4000), SYN_V4, id="don't-fragment is no fragment"),
        pytest.param(ipv4(TCP_SYN, 6)[:34], SYN_V4, id="cut short just behind the TCP flags"),
        pytest.param(ipv6(TCP_SYN, 6), SYN_V6, id="a TCP SYN over IPv6"),
        pytest.param(ipv6(UDP_ONE, 17), Packet(5.0, *V6, UDP, 40000, 9000, 0), id="a UDP datagram over IPv6"),
        pytest.param(
            ipv6(extension(60) + extension(43, 1) + extension(6) + TCP_SYN, 0), SYN_V6, id="IPv6 extension headers"
        ),
        pytest.param(ipv6(bytes((6, 4)) + bytes(22) + TCP_SYN, 51), SYN_V6, id="an IPv6 authentication header"),
    ],
)
def test_what_a_packet_says(data: bytes, packet: Packet) -> None:
    assert from_ip(data, 5.0) == packet


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x45", id="one byte"),
        pytest.param(ipv4(TCP_SYN, 6)[:33], id="cut within the TCP header"),
        pytest.param(ipv4(UDP_ONE, 17)[:27], id="cut within the UDP header"),
        pytest.param(ipv4(TCP_SYN, 6)[:19], id="cut within the IPv4 header"),
        pytest.param(b"\x44" + ipv4(TCP_SYN, 6)[1:], id="an IPv4 header shorter than there is"),
        pytest.param(b"\x4f" + ipv4(TCP_SYN, 6)[1:], id="an IPv4 header longer than the packet"),
        pytest.param(ipv4(TCP_SYN, 6, fragment=0x2000), id="the first fragment"),
        pytest.param(ipv4(TCP_SYN, 6, fragment=0x00B9), id="a later fragment"),
        pytest.param(ipv4(TCP_SYN, 6, total=39), id="an IPv4 length too small for TCP"),
        pytest.param(ipv4(UDP_ONE, 17, total=27), id="an IPv4 length too small for UDP"),
        pytest.param(ipv4(TCP_SYN, 1), id="ICMP, whatever it quotes"),
        pytest.param(ipv4(TCP_SYN, 132), id="SCTP, which has ports too"),
        pytest.param(ipv6(TCP_SYN, 6)[:39], id="cut within the IPv6 header"),
        pytest.param(ipv6(TCP_SYN, 6, length=19), id="an IPv6 length too small for TCP"),
        pytest.param(ipv6(extension(6) + TCP_SYN, 44), id="an IPv6 fragment header"),
        pytest.param(ipv6(extension(6) + TCP_SYN, 50), id="ESP"),
        pytest.param(ipv6(TCP_SYN, 59), id="no next header"),
        pytest.param(ipv6(bytes((6, 255)) + bytes(6) + TCP_SYN, 0), id="an extension header longer than the packet"),
        pytest.param(ipv6(extension(0) * 9 + TCP_SYN, 0), id="an endless chain of extension headers"),
        pytest.param(b"\x55" + ipv4(TCP_SYN, 6)[1:], id="IP version 5"),
    ],
)
def test_no_packet(data: bytes) -> None:
    """T26: short, fragmented, foreign: never an exception, never a knock."""
    assert from_ip(data, 5.0) is None


@given(st.binary(max_size=200))
@example(b"\x60" + bytes(5) + b"\x00" + bytes(60))
def test_any_bytes_are_a_packet_or_none(data: bytes) -> None:
    """T26."""
    packet = from_ip(data, 5.0)
    assert packet is None or (packet.proto in (TCP, UDP) and len(packet.src) == len(packet.dst) in (4, 16))


@given(st.binary(min_size=1, max_size=120), st.sampled_from([6, 17, 0, 43, 44, 51, 60, 135]), st.booleans())
def test_any_payload_behind_a_real_header_is_a_packet_or_none(payload: bytes, proto: int, version6: bool) -> None:
    """T26: hypothesis seldom finds a whole header by itself."""
    packet = from_ip(ipv6(payload, proto) if version6 else ipv4(payload, proto), 5.0)
    if packet is not None:
        assert (packet.src, packet.dst) == (V6 if version6 else V4)
        assert 0 <= packet.sport <= 65535
        assert 0 <= packet.dport <= 65535
        assert packet.flags == 0 or packet.proto == TCP


# ---- what a packet carries

MAIL = b"what is said in an SPA packet"


def udp(payload: bytes, length: int | None = None) -> bytes:
    return struct.pack("!HHHH", 40000, 62201, 8 + len(payload) if length is None else length, 0) + payload


def tcp(payload: bytes, flags: int = SYN, options: bytes = b"", words: int | None = None) -> bytes:
    offset = 5 + len(options) // 4 if words is None else words
    return struct.pack("!HHIIBBHHH", 40000, 62201, 1, 0, offset << 4, flags, 64240, 0, 0) + options + payload


def icmp(payload: bytes, kind: int = 8, code: int = 0) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, 1, 1) + payload


def echo6(payload: bytes) -> bytes:
    return icmp(payload, 128)


def carries(proto: int, *, v6: bool = False, flags: int = 0) -> Carried:
    ports = (0, 0) if proto in (ICMP, ICMP6) else (40000, 62201)
    return Carried(Packet(5.0, *(V6 if v6 else V4), proto, *ports, flags), MAIL)


@pytest.mark.parametrize(
    ("data", "carried"),
    [
        pytest.param(ipv4(udp(MAIL), 17), carries(UDP), id="UDP over IPv4"),
        pytest.param(ipv6(udp(MAIL), 17), carries(UDP, v6=True), id="UDP over IPv6"),
        pytest.param(ipv4(tcp(MAIL), 6), carries(TCP, flags=SYN), id="a lone TCP SYN"),
        pytest.param(ipv6(tcp(MAIL, SYN | PSH), 6), carries(TCP, v6=True, flags=SYN | PSH), id="with PSH, over IPv6"),
        pytest.param(ipv4(tcp(MAIL, options=bytes(40)), 6), carries(TCP, flags=SYN), id="behind all TCP options"),
        pytest.param(ipv4(icmp(MAIL), 1), carries(ICMP), id="an ICMP echo request"),
        pytest.param(ipv4(icmp(MAIL, 0), 1), carries(ICMP), id="an ICMP echo reply, as fwknop sends it"),
        pytest.param(ipv6(echo6(MAIL), 58), carries(ICMP6, v6=True), id="an ICMPv6 echo request"),
        pytest.param(ipv4(udp(MAIL), 17, options=bytes(40)), carries(UDP), id="behind all IPv4 options"),
        pytest.param(ipv6(extension(58) + echo6(MAIL), 60), carries(ICMP6, v6=True), id="behind an IPv6 extension"),
        pytest.param(ipv4(udp(MAIL), 17) + b"more", carries(UDP), id="what is behind the packet is not of it"),
        pytest.param(ipv4(udp(MAIL + b"x", 8 + len(MAIL)), 17), carries(UDP), id="nor what is behind the datagram"),
        pytest.param(ipv4(udp(b""), 17), carries(UDP)._replace(payload=b""), id="nothing is a payload too"),
    ],
)
def test_what_a_packet_carries(data: bytes, carried: Carried) -> None:
    assert carried_from_ip(data, 5.0) == carried


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(ipv4(udp(MAIL), 17)[:-1], id="cut short by a byte"),
        pytest.param(ipv6(echo6(MAIL), 58)[:-1], id="cut short by a byte, ICMPv6"),
        pytest.param(ipv4(udp(MAIL), 17, fragment=0x2000), id="the first fragment"),
        pytest.param(ipv4(icmp(MAIL), 1, fragment=0x0001), id="a later fragment"),
        pytest.param(ipv6(extension(58) + echo6(MAIL), 44), id="an IPv6 fragment"),
        pytest.param(ipv4(udp(MAIL, 9 + len(MAIL)), 17), id="a UDP length larger than the packet"),
        pytest.param(ipv4(udp(MAIL, 7), 17), id="a UDP length smaller than its header"),
        pytest.param(ipv6(udp(MAIL, 0), 17), id="a UDP length of a jumbogram"),
        *(
            pytest.param(ipv4(tcp(MAIL, flags), 6), id=f"TCP flags {flags:#x}")
            for flags in (0, ACK, SYN | ACK, SYN | RST, SYN | FIN, RST, FIN, PSH | ACK)
        ),
        pytest.param(ipv4(tcp(MAIL, words=4), 6), id="a TCP header shorter than there is"),
        pytest.param(ipv4(tcp(MAIL, words=15), 6), id="a TCP header longer than the packet"),
        pytest.param(ipv4(icmp(ipv4(udp(MAIL), 17), 3, 3), 1), id="an ICMP error, whatever it quotes"),
        pytest.param(ipv4(icmp(MAIL, 8, 1), 1), id="an ICMP code that there is not"),
        pytest.param(ipv4(icmp(MAIL)[:7], 1), id="cut within the ICMP header"),
        pytest.param(ipv4(echo6(MAIL), 58), id="ICMPv6 over IPv4"),
        pytest.param(ipv6(icmp(MAIL), 1), id="ICMP over IPv6"),
        pytest.param(ipv4(udp(MAIL), 17, total=20), id="an IPv4 length without room for UDP"),
        pytest.param(ipv4(udp(MAIL), 17, total=10), id="an IPv4 length smaller than its header"),
        pytest.param(ipv4(udp(MAIL), 132), id="SCTP"),
    ],
)
def test_what_carries_nothing(data: bytes) -> None:
    """T23, T26: not whole, or not of a kind that an SPA packet comes in."""
    assert carried_from_ip(data, 5.0) is None


@given(st.binary(max_size=200), st.sampled_from([1, 6, 17, 58, 0, 44, 51]), st.booleans(), st.binary(max_size=4))
def test_whatever_is_carried_is_part_of_the_packet(payload: bytes, proto: int, version6: bool, more: bytes) -> None:
    """T26: hypothesis finds the lengths."""
    whole = ipv6(payload, proto) if version6 else ipv4(payload, proto)
    carried = carried_from_ip(whole + more, 5.0)
    assert carried is None or whole.endswith(carried.payload) or proto == 17
    assert carried is None or len(carried.payload) <= len(payload) - 8
    if carried is not None and carried.packet.proto in (TCP, UDP):
        assert carried.packet == from_ip(whole, 5.0)


def test_icmp_has_no_port_in_its_name() -> None:
    assert [str(Service(*each)) for each in ((ICMP, 0), (ICMP6, 0), (TCP, 22), (UDP, 53))] == [
        "icmp", "icmp", "22/tcp", "53/udp"
    ]  # fmt: skip
