"""A packet is what its bytes say, or nothing."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logknock.packet import SYN, TCP, UDP, Packet, from_ip

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
