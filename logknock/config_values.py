"""What a single value of the configuration means: from what TOML has to what the doors and the rules need.

Rule 1: a parser takes any object and gives back its value, or raises ValueError in words for the operator.
Rule 2: only what nft and the kernel would take too gets through, so that nothing fails later that could fail here.
Rule 3: pure: no file, no key, and no value beside another is known here.
"""

import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .knock import Service, SetName, TcpFlags, parse_port
from .packet import PROTOCOL_NAMES, PROTOCOLS, bare

# What nft 1.0.6 reads as a name, and the kernel's NFT_NAME_MAXLEN without its closing zero.
_NFT_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9_./-]{0,254}")
_FAMILIES = ("ip", "ip6", "inet")

# Of doors and of files that they keep: goes into element comments, log lines and environments without quoting.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

# nft's order, each unit at most once. Ten digits are more than any limit needs.
_DURATION = re.compile(
    r"(?=.)(?:(\d{1,10})d)?(?:(\d{1,10})h)?(?:(\d{1,10})m)?(?:(\d{1,10})s)?(?:(\d{1,10})ms)?", re.ASCII
)
_UNITS = (86_400, 3_600, 60, 1, 0.001)

# Also an address: it is only compared.
_HOST = re.compile(r"[A-Za-z0-9_.:-]{1,253}")

# What does not belong into base64 where it stands.
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]|=(?!=?\Z)")

_KINDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}

Network = IPv4Network | IPv6Network
_T = TypeVar("_T")


class PortRange(NamedTuple):
    """Ports of one protocol, both ends included."""

    proto: int
    first: int
    last: int

    def __str__(self) -> str:
        if self.proto in PROTOCOL_NAMES and self.last > self.first:
            return f"{self.first}-{self.last}/{PROTOCOL_NAMES[self.proto]}"
        return str(self.ends[0])  # ICMP has no ports

    @property
    def ends(self) -> tuple[Service, Service]:
        """The first and the last."""
        return Service(self.proto, self.first), Service(self.proto, self.last)


class WrongError(ValueError):
    """A value that cannot stand, with what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def _of(kind: type[_T], value: object, hint: str) -> _T:
    """The value, if it is just of that type: TOML's true is no number, though Python's is."""
    if isinstance(value, kind) and type(value) is kind:
        return value
    raise WrongError(f"must be {_KINDS[kind]}, not {_KINDS.get(type(value), 'a date or time')}", hint)


def text(example: str) -> Callable[[object], str]:
    return lambda value: _of(str, value, f'write it in quotes, like "{example}"')


def table(header: str) -> Callable[[object], dict[str, Any]]:
    return lambda value: _of(dict, value, f"it begins with a line {header}")


def elements(value: object) -> list[Any]:
    if isinstance(value, str) and len(value.split()) > 1:
        return _of(list, value, 'write it in brackets, each element in quotes of its own: ["...", "..."]')
    return _of(list, value, f"write [{json.dumps(value, ensure_ascii=False)}]" if isinstance(value, str) else "")


def switch(value: object) -> bool:
    return _of(bool, value, "without quotes")


def whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = _of(int, value, f"{low}-{high}, without quotes")
        if not low <= number <= high:
            raise WrongError(f"{number} is out of range ({low}-{high})", f"write a number from {low} to {high}")
        return number

    return parse


def number_of(choices: tuple[int, ...], message: str, hint: str) -> Callable[[object], int]:
    """One of a few numbers; message and hint are for another between them."""
    parse_any = whole(min(choices), max(choices))

    def parse(value: object) -> int:
        number = parse_any(value)
        if number not in choices:
            raise WrongError(message, hint)
        return number

    return parse


def one_bit(value: object) -> int:
    """A bit of the packet mark, which has 32; 0: none."""
    number = _of(int, value, "without quotes, like 0x10000")
    if not 0 <= number < 1 << 32 or number & (number - 1):
        raise WrongError(f"{number:#x} is not one bit of a mark", "write 0x10000, or another power of two below 2^32")
    return number


def parse_duration(written: str) -> float:
    """nft's notation (`30s`, `1h30m`, `2d`, `500ms`) in seconds; raises ValueError in words for the operator."""
    match = _DURATION.fullmatch(written)
    if match is None:
        bare = written.isascii() and written.isdigit()
        hint = f'write "{written}s"' if bare else 'write it as nft does: "30s", "1h30m", "2d", "500ms"'
        raise WrongError(f"{written!r} has no unit" if bare else f"{written!r} is no duration", hint)
    return sum(int(count or 0) * unit for count, unit in zip(match.groups(), _UNITS, strict=True))


def duration(low: str, high: str) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if type(value) is int:
            raise WrongError(f"{value} has no unit", f'write "{value}s"')
        written = text("30s")(value)
        seconds = parse_duration(written)
        if not parse_duration(low) <= seconds <= parse_duration(high):
            raise WrongError(f"{written} is out of range ({low}-{high})", f"write a time from {low} to {high}")
        return seconds

    return parse


def whole_seconds(low: str, high: str, message: str, hint: str) -> Callable[[object], int]:
    """A duration between these, that is said in whole seconds; message and hint are for one that is not."""
    parse_any = duration(low, high)

    def parse(value: object) -> int:
        seconds = parse_any(value)
        if not seconds.is_integer():
            raise WrongError(message, hint)
        return int(seconds)

    return parse


def service(value: object) -> Service:
    if type(value) is int:
        raise WrongError(f"{value} has no protocol", f'write "{value}/tcp" or "{value}/udp"')
    written = text("22/tcp")(value)
    try:
        return Service.parse(written)
    except ValueError as error:
        raise WrongError(str(error), 'a service is written "22/tcp" or "53/udp", its port 1-65535') from None


def tcp_flags(value: object) -> TcpFlags:
    return TcpFlags.parse(text("syn,!ack")(value))


def set_name(value: object) -> SetName:
    example = "inet filter allowed4"
    written = text(example)(value)
    words = written.split()
    if len(words) != 3 or words[0] not in _FAMILIES:
        raise WrongError(
            f"{written!r} is no set", f'write family ({", ".join(_FAMILIES)}), table and name: "{example}"'
        )
    for word in words[1:]:
        if not _NFT_NAME.fullmatch(word):
            hint = "letters, digits and _ . / -, the first a letter, _ or ."
            raise WrongError(f"{word!r} is no name that nft takes", hint)
    return SetName(*words)


def network(value: object) -> Network:
    """A network as it is written, where that says of every bit what is meant."""
    written = text("192.0.2.0/24")(value)
    _refuse_zone(written)
    try:
        found = ip_network(written, strict=False)
        address = ip_address(written.partition("/")[0])
    except ValueError:
        example = 'write "192.0.2.0/24", "2001:db8::/32" or a single address'
        raise WrongError(f"{written!r} is no IP network", example) from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped and found.prefixlen >= 96:
        meant = ip_network(f"{address.ipv4_mapped}/{found.prefixlen - 96}", strict=False)
        raise WrongError(f"{written} is IPv4 written as IPv6", f'write "{meant}"')
    if address != found.network_address:
        raise WrongError(f"{written} has bits set behind its prefix", f'write "{found}"')
    return found


def address(value: object) -> bytes:
    """An address in network order: 4 bytes for IPv4, 16 for IPv6."""
    written = text("192.0.2.7")(value)
    _refuse_zone(written)
    if "/" in written:
        raise WrongError(f"{written!r} is a network", "write one address, like 192.0.2.7")
    try:
        found = ip_address(written)
    except ValueError:
        raise WrongError(f"{written!r} is no IP address", 'write "192.0.2.7" or "2001:db8::7"') from None
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        raise WrongError(f"{written} is IPv4 written as IPv6", f'write "{found.ipv4_mapped}"')
    return found.packed


def _refuse_zone(written: str) -> None:
    if "%" in written:
        raise WrongError(f"{written!r} has a zone", "a packet's source has none: leave out what begins with %")


def base64_key(low: int, high: int) -> Callable[[object], bytes]:
    """A key of so many bytes in base64 (RFC 4648, section 4); nothing of it is in what is raised."""

    def parse(value: object) -> bytes:
        written = _of(str, value, "write it in quotes, as `logknock keygen` prints it")
        if wrong := _NOT_BASE64.search(written):
            hint = "A-Z, a-z, 0-9, + and /, and = at its end only: as `logknock keygen` prints it"
            raise WrongError(f"character {wrong.start() + 1} is none of base64's", hint)
        try:
            found = b64decode(written, validate=True)
        except Base64Error:
            hint = "copy it whole, with the = at its end: its length is a multiple of 4"
            raise WrongError(f"{len(written)} characters are no whole base64: some are missing", hint) from None
        return _key(found, low, high)

    return parse


def passphrase(low: int, high: int) -> Callable[[object], bytes]:
    """A key of so many bytes as it is typed, in UTF-8; nothing of it is in what is raised."""

    def parse(value: object) -> bytes:
        written = _of(str, value, "write it in quotes")
        if not written.isprintable():
            raise WrongError("has characters that cannot be printed", "write such a key in base64")
        return _key(written.encode(), low, high)

    return parse


def _key(found: bytes, low: int, high: int) -> bytes:
    if not low <= len(found) <= high:
        what = "is too short" if len(found) < low else "is too long"
        size = f"{len(found)} byte{'s' * (len(found) != 1)}"
        raise WrongError(f"{what}: {size}, and it has {low}-{high}", "`logknock keygen` makes good ones")
    return found


def argument(value: object) -> str:
    """One argument of a command, as the program is to get it."""
    written = text("{src}")(value)
    if "\0" in written:
        raise WrongError("an argument cannot have a NUL in it", "leave it out")
    return written


def file_name(value: object) -> str:
    """A name within a folder; empty: no file."""
    written = text("sshd")(value)
    if written and not NAME.fullmatch(written):
        hint = "up to 63 letters, digits and . _ -, the first a letter or a digit"
        raise WrongError(f"{written!r} is no file name here", hint)
    return written


def host_name(value: object) -> str:
    """What this host is called, in lower case: it has to be the same, letter by letter, at its clients."""
    written = text("gate.example")(value)
    if not _HOST.fullmatch(written):
        raise WrongError(f"{written!r} is no host name", "up to 253 letters, digits and . _ : -")
    return written.lower()


def port_range(value: object) -> PortRange:
    written = text("6000-6010/tcp")(value)
    ports, _, protocol = written.partition("/")
    if protocol not in PROTOCOLS:
        raise WrongError(f"{written!r} has no protocol", 'write "5353/udp" or "6000-6010/tcp"')
    low, dash, high = ports.partition("-")
    first = parse_port(low, written)
    last = parse_port(high, written) if dash else first
    if first > last:
        raise WrongError(f"{written} runs backwards", f'write "{last}-{first}/{protocol}"')
    return PortRange(PROTOCOLS[protocol], first, last)


SOURCES = ("nflog", "journal", "file", "stdin")
DIRECTIONS = ("in", "forward", "out")
SCANS = ("syn", "tcp", "udp")

# Of sources, prefixes and log files: more of any is a mistake, and each file is looked at once a second.
MAX_NAMED = 16

# What the kernel keeps of the prefix of a rule that logs (NF_LOG_PREFIXLEN is 128), without ": " and a closing zero.
_MAX_PREFIX = 125


def some_of(parse: Callable[[object], _T]) -> Callable[[object], tuple[_T, ...]]:
    """One value, or a list of several; none of them twice."""

    def parse_all(value: object) -> tuple[_T, ...]:
        found = tuple(map(parse, value if isinstance(value, list) else [value]))
        if not found:
            raise WrongError("is empty", "name one, or leave it out")
        if len(found) > MAX_NAMED:
            raise WrongError(f"has {len(found)} elements, and {MAX_NAMED} are the most")
        if twice := next((item for at, item in enumerate(found) if item in found[:at]), None):
            raise WrongError(f"{twice} is named twice")
        return found

    return parse_all


def one_of(words: tuple[str, ...], what: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        written = text(words[0])(value)
        if written not in words:
            raise WrongError(f"{written!r} is no {what}", f"there are: {', '.join(words)}")
        return written

    return parse


def unquoted(words: tuple[str, ...]) -> Callable[[object], str]:
    """One of the words; what is written instead may be a key in the wrong place, and is not in what is raised."""

    def parse(value: object) -> str:
        if value not in words:
            raise WrongError("is none that there is", f"there are: {', '.join(words)}")
        return str(value)

    return parse


def prefix(value: object) -> str:
    """What a rule has log in front of a record, without what does not count of it."""
    written = text("logknock")(value)
    if not (written.isascii() and written.isprintable()) or '"' in written or len(written) > _MAX_PREFIX:
        hint = f"up to {_MAX_PREFIX} printable ASCII characters, without quotes, as they stand in the rule"
        raise WrongError(f"{written[:_MAX_PREFIX]!r} is no prefix that the kernel writes", hint)
    return bare(written)


def path(example: str) -> Callable[[object], Path]:
    def parse(value: object) -> Path:
        written = text(example)(value)
        if not written.startswith("/") or not written.isprintable():
            raise WrongError(f"{written!r} is no absolute path", "begin it with /")
        return Path(written)

    return parse


# Of the path of a unix socket, with its closing zero (unix(7)).
_MAX_SOCKET_PATH = 108


class Endpoint(NamedTuple):
    """Where something listens: a loopback address and a port, or, where there is a path, a unix socket."""

    address: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def endpoint(value: object) -> Endpoint:
    """Only what nobody else's host can reach: there is no encryption here, and nobody is asked who he is."""
    example = "127.0.0.1:9141"
    written = text(example)(value)
    if written.startswith("unix:"):
        socket_path = path("unix:/run/logknock/metrics.sock")(written.removeprefix("unix:"))
        if len(str(socket_path).encode()) >= _MAX_SOCKET_PATH:
            raise WrongError(f"{written!r} is too long for a socket", f"{_MAX_SOCKET_PATH - 1} bytes are the most")
        return Endpoint("", 0, str(socket_path))
    host, _, port = written.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    hint = f'write "{example}", "[::1]:9141" or "unix:/run/logknock/metrics.sock"'
    try:
        found = ip_address(inner)
    except ValueError:
        raise WrongError(f"{written!r} is no address and port", hint) from None
    if (inner != host) != isinstance(found, IPv6Address):
        meant = hint if inner != host else f'write "[{found}]:{port}"'
        raise WrongError(f"{written!r} is no address and port", meant)
    if not found.is_loopback or getattr(found, "scope_id", None) or getattr(found, "ipv4_mapped", None):
        hint = f'write "{example}", and put a reverse proxy with TLS in front of it where other hosts are to read it'
        raise WrongError(f"{inner} is not this host alone", hint)
    return Endpoint(str(found), parse_port(port, written))


def textfile(value: object) -> Path:
    """A file that node_exporter's textfile collector reads: it takes no other name."""
    found = path("/var/lib/prometheus/node-exporter/logknock.prom")(value)
    if found.suffix != ".prom":
        raise WrongError(f"{str(found)!r} does not end with .prom", "node_exporter reads no other file")
    return found
