"""Sends what no ordinary socket sends: a lone SYN that carries a payload, and an echo request.

Rule 1: each call sends one packet, and what comes back is never read. Rule 2: checksums are computed here but for those
that the kernel insists on computing itself. Rule 3: whoever lacks the privilege is told what else would do.

Sources: RFC 9293 (TCP), RFC 792 and RFC 4443 (ICMP), RFC 1071 (checksums), RFC 8200, 8.1 (IPv6's pseudo-header);
raw(7), icmp(7).
"""

import os
import socket
from struct import pack, unpack

from .errors import NO_PERMISSION, LogknockError

# An address and a port, as the socket module writes them for IPv4 and for IPv6.
Endpoint = tuple[str, int] | tuple[str, int, int, int]

_SYN = 0x02
_HEADER_WORDS = 5  # a TCP header without options
_WINDOW = 64_240  # what Linux announces at first on an Ethernet link

_PROTOCOLS = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_ECHO_REQUESTS = {socket.AF_INET: 8, socket.AF_INET6: 128}

_AS_ROOT = "run it as root or with CAP_NET_RAW, or send it over UDP, which anybody may, if the door takes that"
_AS_PING = (
    'or have net.ipv4.ping_group_range hold this user\'s group: sysctl -w net.ipv4.ping_group_range="0 2147483647"'
)


def send_syn(family: socket.AddressFamily, endpoint: Endpoint, sport: int, payload: bytes) -> None:
    """Send a SYN that no connection follows, with the payload behind its header; raises OSError or LogknockError.

    Whoever answers has to do with a source port of which the kernel knows no connection, and is reset by it.
    """
    try:
        sending = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    except PermissionError:
        message = f"{endpoint[1]}/tcp: a SYN with a payload takes a raw socket, which this user may not have"
        raise LogknockError(message, _AS_ROOT, NO_PERMISSION) from None
    with sending:
        sending.connect(_portless(endpoint))
        ends = [socket.inet_pton(family, end) for end in (sending.getsockname()[0], endpoint[0])]
        sending.send(_syn(ends, sport, endpoint[1], payload))


def _syn(ends: list[bytes], sport: int, dport: int, payload: bytes) -> bytes:
    """The segment between two addresses; which family they are of, their length says."""
    length = 4 * _HEADER_WORDS + len(payload)
    number = int.from_bytes(os.urandom(4), "big")
    if len(ends[0]) == 4:
        pseudo = b"".join(ends) + pack("!BBH", 0, socket.IPPROTO_TCP, length)
    else:
        pseudo = b"".join(ends) + pack("!II", length, socket.IPPROTO_TCP)
    begin = pack("!HHIIBBH", sport, dport, number, 0, _HEADER_WORDS << 4, _SYN, _WINDOW)
    check = checksum(pseudo + begin + bytes(4) + payload)
    return begin + pack("!HH", check, 0) + payload


def send_echo(family: socket.AddressFamily, endpoint: Endpoint, payload: bytes) -> None:
    """Send an echo request with the payload, by whatever socket this user may have; raises OSError or LogknockError."""
    kind, code = _ECHO_REQUESTS[family], 0
    identity = int.from_bytes(os.urandom(2), "big")
    message = pack("!BBHHH", kind, code, 0, identity, 1) + payload
    with _echo_socket(family) as sending:
        # A socket for pings puts its own identity and the checksum in, and any socket of ICMPv6 the checksum.
        if family == socket.AF_INET and sending.type == socket.SOCK_RAW:
            message = message[:2] + pack("!H", checksum(message)) + message[4:]
        sending.sendto(message, _portless(endpoint))


def _echo_socket(family: socket.AddressFamily) -> socket.socket:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            return socket.socket(family, kind, _PROTOCOLS[family])
        except PermissionError:
            continue
    message = "icmp: an echo request takes a socket for pings or a raw one, and this user may have neither"
    raise LogknockError(message, f"{_AS_ROOT}; {_AS_PING}", NO_PERMISSION)


def checksum(data: bytes) -> int:
    """The Internet checksum over these bytes (RFC 1071)."""
    even = data + bytes(len(data) % 2)
    total: int = sum(unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _portless(endpoint: Endpoint) -> Endpoint:
    """The address alone: a raw socket of IPv6 takes no port."""
    return (endpoint[0], 0) if len(endpoint) == 2 else (endpoint[0], 0, *endpoint[2:])
