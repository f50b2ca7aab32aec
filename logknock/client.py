"""Sends knocks, in order, to one address.

Rule 1: a knock is one packet and never two: a SYN whose socket is closed before the kernel could send it again, or a
datagram of one NUL byte (what knockd's client sends); one that carries a payload is a datagram, or what raw.py makes
of it. Rule 2: a host is resolved once, and every knock of a run goes to
that one address. Rule 3: knocks at the same service come from different source ports, for one that comes from the port
of an earlier one reads as a resend of it (T8). Rule 4: all bad words are reported at once, before anything is sent.

What comes back is never read: a firewall that drops knocks says nothing, and nothing may hang on one that answers.
"""

import errno
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from .errors import USAGE, LogknockError
from .knock import Service, parse_port
from .packet import ICMP

# Two packets sent back to back may overtake each other on the way, where links or receive queues work side by side.
# A tenth of a second is more than such paths differ by, and five knocks still take less than half a second.
DELAY = 0.1

# Every seq_timeout that makes sense is over by then: a longer delay is a slip of the unit.
MAX_DELAY = 60.0

# Each host of a call has a thread of its own while it is knocked at.
MAX_HOSTS = 64

SERVICE_HINT = "a service is written 7000/tcp or 7000/udp; 7000 is short for 7000/tcp; 2s or 500ms is a pause"
MISPLACED = "a pause stands between two services"

# The kernel draws source ports at random from some 28,000, so that even a second try is rare. Where it has next to
# none to draw from, a knock from an old port is still better than none.
PORT_TRIES = 64

# An address and a port, as the socket module writes them for IPv4 and for IPv6.
Endpoint = tuple[str, int] | tuple[str, int, int, int]

_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_NUL = b"\0"
_ANY_PORT = 9  # discard: a route does not depend on it

_PAUSE = re.compile(r"([0-9]{1,9})(ms|s)")
_DELAY = re.compile(r"([0-9]{1,9})(ms|s)?")

# The SYN is on its way. Linux never says more at once; another kernel may know the answer, where it knocks at itself.
_SYN_SENT = frozenset({0, errno.EINPROGRESS, errno.ECONNREFUSED})

_FAMILY_NAMES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}

_NO_ROUTE = "this machine has no route to {address}: see `ip route get {address}`"
_TOO_MANY_FILES = "too many files are open: see `ulimit -n`"
_REFUSED = "a firewall or a route of this machine forbids it: see `nft list ruleset` and `ip route get {address}`"
_HINTS = {
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
    errno.EMFILE: _TOO_MANY_FILES,
    errno.ENFILE: _TOO_MANY_FILES,
}


class ServicesError(LogknockError):
    """Words that are no services; `lines` has one line for each of them."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines), SERVICE_HINT, USAGE)
        self.lines = tuple(lines)

    def report(self) -> list[str]:
        """Each bad word on a line of its own, and the hint once."""
        return [*(f"logknock: {line}" for line in self.lines), f"hint: {self.hint}"]


class Knock(NamedTuple):
    """A service to knock at, and how long to wait before that (seconds; None: as long as between all knocks).

    payload: what it carries, where it is more than a knock. To ICMP's service, of either family, an echo request goes.
    """

    service: Service
    wait: float | None = None
    payload: bytes = b""


def parse_knocks(words: Sequence[str], protocol: str = "tcp") -> tuple[Knock, ...]:
    """Services, and pauses between them, as knocks; `protocol` is that of services without one.

    Raises ServicesError, which reports every bad word.
    """
    items: list[Service | float | None] = []
    lines: dict[int, str] = {}
    for at, word in enumerate(words):
        try:
            items.append(parse_word(word, protocol))
        except ValueError as error:
            items.append(None)
            lines[at] = str(error)
    lines.update((at, f"{words[at]!r}: {MISPLACED}") for at in misplaced(items))
    if lines:
        raise ServicesError([lines[at] for at in sorted(lines)])
    return arrange(items)


def parse_word(word: str, protocol: str = "tcp") -> Service | float:
    """`7000/tcp`, `7000/UDP`, `7000` and knockd's `7000:udp` as a service, `2s` and `500ms` as a pause in seconds.

    Raises ValueError in words for the operator.
    """
    if not (pause := _PAUSE.fullmatch(word)):
        return _parse_service(word, protocol)
    seconds = _seconds(pause)
    if seconds > MAX_DELAY:
        raise ValueError(f"{word!r}: a pause is {MAX_DELAY:g}s at most")
    return seconds


def misplaced(items: Sequence[Service | float | None]) -> list[int]:
    """Where a pause stands that is not between two services; None is a word that could not be read."""
    last = len(items) - 1
    return [
        at
        for at, item in enumerate(items)
        if isinstance(item, float)
        and (at in (0, last) or isinstance(items[at - 1], float) or isinstance(items[at + 1], float))
    ]


def arrange(items: Sequence[Service | float | None]) -> tuple[Knock, ...]:
    """The services as knocks, each with the pause that stands before it."""
    before = [None, *items]
    return tuple(
        Knock(item, pause if isinstance(pause, float) else None)
        for pause, item in zip(before, items, strict=False)
        if isinstance(item, Service)
    )


def _parse_service(word: str, default: str) -> Service:
    digits, *rest = re.split("[/:]", word, maxsplit=1)
    port = parse_port(digits, word)
    protocol = rest[0] if rest else default
    if protocol.lower() not in _PROTOCOLS:
        raise ValueError(f"{word!r}: the protocol is tcp or udp, not {protocol!r}")
    return Service(_PROTOCOLS[protocol.lower()], port)


def parse_delay(text: str) -> float:
    """Seconds, from `200` (milliseconds, as knockd's client has it), `200ms` or `1s`; raises ValueError."""
    match = _DELAY.fullmatch(text)
    seconds = _seconds(match) if match else None
    if seconds is None or seconds > MAX_DELAY:
        raise ValueError(
            f"{text!r} is no delay: write 200 or 200ms for milliseconds, 1s for seconds, {MAX_DELAY:g}s at most"
        )
    return seconds


def _seconds(written: re.Match[str]) -> float:
    return int(written[1]) / (1 if written[2] == "s" else 1000)


def parse_hosts(text: str) -> tuple[str, ...]:
    """`a.example,192.0.2.1,[2001:db8::1]` as hosts, without the brackets that an IPv6 address may stand in.

    An IPv6 address has no comma in it, so that it needs no brackets here. Raises ValueError for a host that is empty.
    """
    hosts = tuple(re.sub(r"\A\[([^\[\]]*)\]\Z", r"\1", host) for host in text.split(","))
    if not all(hosts):
        raise ValueError(f"{text!r}: a host is missing, where hosts are written one,two")
    if len(hosts) > MAX_HOSTS:
        raise ValueError(f"{len(hosts)} hosts are named, and {MAX_HOSTS} are the most")
    return hosts


@dataclass(frozen=True, slots=True)
class Address:
    """Where knocks go: a numeric address, and for one that is valid on one link only, the index of that interface."""

    family: socket.AddressFamily
    host: str
    zone: int = 0

    def __str__(self) -> str:
        return socket.getnameinfo(self.endpoint(0), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]

    def endpoint(self, port: int) -> Endpoint:
        """The port at this address."""
        return (self.host, port) if self.family == socket.AF_INET else (self.host, port, 0, self.zone)


def resolve(host: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> Address:
    """The address of the host that the system prefers, of that family where one is given."""
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except UnicodeError:  # a label that is empty, too long or made of bytes that are no text
        raise LogknockError(f"{host!r} is no host name", _name_hint(family)) from None
    except OSError as error:
        raise LogknockError(f"{host!r} does not resolve: {error.strerror}", _name_hint(family)) from error
    address = _address(found[0][0], cast(Endpoint, found[0][4]))
    if family not in (socket.AF_UNSPEC, address.family):
        raise LogknockError(f"{host!r} is an IPv4 address, written in IPv6's way", _name_hint(family))
    return address


def _address(family: socket.AddressFamily, endpoint: Endpoint) -> Address:
    if family == socket.AF_INET:
        return Address(family, endpoint[0])
    ip = ipaddress.IPv6Address(endpoint[0])
    if ip.ipv4_mapped:  # an IPv6 socket would send IPv4 packets to it
        return Address(socket.AF_INET, str(ip.ipv4_mapped))
    zone = endpoint[3] if len(endpoint) == 4 else 0
    if ip.is_link_local and not zone:  # for UDP the kernel would take an interface of its choosing, for TCP none
        raise LogknockError(f"{ip} is valid on one link only, and it does not say on which", f"write {ip}%eth0, say")
    return Address(family, str(ip), zone)


def own_address(address: Address) -> str:
    """The address that this machine sends from to that one; raises LogknockError. Nothing is sent."""
    try:
        with socket.socket(address.family, socket.SOCK_DGRAM) as asking:
            asking.connect(address.endpoint(_ANY_PORT))
            return str(asking.getsockname()[0])
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "").format(address=address)
        raise LogknockError(f"nothing can be sent to {address}: {error.strerror}", hint) from error


def _name_hint(family: socket.AddressFamily) -> str:
    if family == socket.AF_UNSPEC:
        return "check the spelling, or give the host's address instead of its name"
    return f"only {_FAMILY_NAMES[family]} addresses were asked for: check the spelling, or leave the family open"


def send(address: Address, service: Service, used: Collection[int] = (), payload: bytes = b"") -> int:
    """Send one knock, from a source port that is none of the `used` ones, and return that port (0: it has none).

    Raises OSError where this machine could not send it, LogknockError where only this user may not. A SYN that this
    machine's own firewall drops is the exception: TCP takes it for one that was lost on the way, and tells nobody.
    """
    if service.proto == ICMP:
        from . import raw

        raw.send_echo(address.family, address.endpoint(0), payload)
        return 0
    with _fresh(address, service, used) as knocking:
        port: int = knocking.getsockname()[1]
        if service.proto == socket.IPPROTO_UDP:
            # Not connected, and fresh: an ICMP error about an earlier datagram cannot come up here.
            knocking.sendto(payload or _NUL, address.endpoint(service.port))
        elif payload:
            from . import raw

            raw.send_syn(address.family, address.endpoint(service.port), port, payload)
        else:
            _send_syn(knocking, address.endpoint(service.port))
        return port


def _fresh(address: Address, service: Service, used: Collection[int]) -> socket.socket:
    """A socket with a source port that is none of the `used` ones, if there are others at all."""
    for _ in range(PORT_TRIES):
        found = _bound(address, service)
        if found.getsockname()[1] not in used:
            return found
        found.close()
    return _bound(address, service)


def _bound(address: Address, service: Service) -> socket.socket:
    """A socket with a source port of the kernel's choosing, and nothing sent."""
    kind = socket.SOCK_DGRAM if service.proto == socket.IPPROTO_UDP else socket.SOCK_STREAM
    fresh = socket.socket(address.family, kind)
    try:
        fresh.setblocking(False)
        fresh.bind(("", 0))
    except OSError:
        fresh.close()
        raise
    return fresh


def _send_syn(knocking: socket.socket, endpoint: Endpoint) -> None:
    """Begin a connection; its socket has to be closed within a second, which is when the kernel would repeat the SYN.

    Closing sends nothing, or a FIN where a port was open and its host quick to answer.
    """
    error = knocking.connect_ex(endpoint)
    if error not in _SYN_SENT:
        raise OSError(error, os.strerror(error))


def knock(
    address: Address,
    knocks: Sequence[Knock],
    delay: float = DELAY,
    told: Callable[[int, Service], object] = lambda number, service: None,
    used: dict[Service, set[int]] | None = None,
) -> None:
    """Send these knocks, `delay` seconds apart; `told` hears of each one sent, by its number from 1.

    `used` has the source ports of knocks that were sent to the address before, and takes up those of these.
    """
    used = {} if used is None else used
    for number, (service, wait, payload) in enumerate(knocks, 1):
        if number > 1:
            time.sleep(delay if wait is None else wait)
        try:
            ports = used.setdefault(service, set())
            ports.add(send(address, service, ports, payload))
        except OSError as error:
            message = f"knock {number} of {len(knocks)} ({service}) could not be sent: {error.strerror}"
            raise LogknockError(message, _HINTS.get(error.errno or 0, "").format(address=address)) from error
        told(number, service)
