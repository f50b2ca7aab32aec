"""Reads fwknop's access.conf as fwknopd 2.6 does, and writes it as SPA doors of ours and their clients.

Rule 1: pure; text comes in, text and what is to be said of it go out, and files are read by whoever calls.
Rule 2: what fwknopd refuses, passes over, or takes for something else without a word is an error with its line; all
errors are found at once. Rule 3: nothing is dropped in silence: a stanza that asks for what is not done here (commands,
NAT, GPG, another encryption, no HMAC, any port, an end on a date) stays as comments; each reason names its variable.
Rule 4: nothing becomes more open, or open for longer, without a word. Rule 5: a key is in the tables of its client and
nowhere else: not in a message, and not in the comments that repeat the original.
"""

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import NamedTuple, Protocol

from .config_values import WrongError
from .imported import BLANK, cited, comment, head, original, shortened, summed, toml_list, toml_string
from .knock import Service, parse_port
from .packet import PROTOCOLS
from .spa import DIGESTS, MAX_HMAC_KEY, MAX_KEY, MAX_SPA_KEYS, MAX_TIMEOUT, MIN_KEY, fit_user

# What may be read of one file: a thousand stanzas take about 300 kB. More is something else named by mistake.
MAX_BYTES = 1 << 19

# What fwknopd's buffer holds: what is longer it takes for two lines, or more.
MAX_LINE = 1_023

# How deep files may include each other, as deep as fwknopd says that they may (2.6.10 does not start from the second
# level on), and how many there may be in all.
MAX_DEPTH = 3
MAX_FILES = 200

# fwknopd's defaults (fwknopd(8)), in seconds, and where it listens.
_TIMEOUT, _MAX_TIMEOUT, _MAX_AGE = 30, 300, 120
_PORTS = ("62201/udp",)

# What ours takes for the age of a packet, in seconds; and a number of more digits is no time.
_LEAST_AGE, _OLDEST = 1, 3_600
_MAX_DIGITS = 8

_DOOR = "fwknop"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_NAME = 32

_SPACE = re.compile(r"[ \t\n\v\f\r]+")

# Variables that write the same thing: the last one said counts, whichever it is.
_SAME = {
    "KEY_BASE64": "KEY",
    "HMAC_KEY_BASE64": "HMAC_KEY",
    "REQUIRE_SOURCE": "REQUIRE_SOURCE_ADDRESS",
    "ACCESS_EXPIRE_EPOCH": "ACCESS_EXPIRE",
}
_KEYS = frozenset({"KEY", "KEY_BASE64", "HMAC_KEY", "HMAC_KEY_BASE64"})
_SECRET = _KEYS | {"GPG_DECRYPT_PW"}
_BOOLEAN = frozenset(
    {
        "REQUIRE_SOURCE_ADDRESS",
        "REQUIRE_SOURCE",
        "ENABLE_CMD_EXEC",
        "ENABLE_CMD_SUDO_EXEC",
        "FORCE_MASQUERADE",
        "DISABLE_DNAT",
        "FORWARD_ALL",
        "GPG_ALLOW_NO_PW",
        "GPG_REQUIRE_SIG",
        "GPG_DISABLE_SIG",
        "GPG_IGNORE_SIG_VERIFY_ERROR",
    }
)
_KNOWN = (
    _SECRET
    | _BOOLEAN
    | {"SOURCE", "DESTINATION", "OPEN_PORTS", "RESTRICT_PORTS", "HMAC_DIGEST_TYPE", "ENCRYPTION_MODE"}
    | {"FW_ACCESS_TIMEOUT", "MAX_FW_TIMEOUT", "REQUIRE_USERNAME", "ACCESS_EXPIRE", "ACCESS_EXPIRE_EPOCH"}
    | {"FORCE_NAT", "FORCE_SNAT", "SUDO_EXE", "CMD_EXEC_USER", "CMD_EXEC_GROUP", "CMD_SUDO_EXEC_USER"}
    | {"CMD_SUDO_EXEC_GROUP", "CMD_CYCLE_OPEN", "CMD_CYCLE_CLOSE", "CMD_CYCLE_TIMER"}
    | {"GPG_DECRYPT_ID", "GPG_REMOTE_ID", "GPG_FINGERPRINT_ID", "GPG_HOME_DIR", "GPG_EXE"}
)
_INCLUDES = ("%include", "%include_folder", "%include_keys")
_UNSET = "__CHANGEME__"
_ENDING = "on that day take its table out of the result, then `logknock reload`"
_KEYGEN = "`logknock keygen` makes a pair for both sides"

# Why a stanza stays as comments if one of these is set, and what to do.
_NOT_DONE = {
    "CMD_CYCLE_OPEN": ("it runs a command instead of opening ports", "a door opens services: write OPEN_PORTS"),
    "FORCE_NAT": ("it opens what lies behind this host, by NAT", "a door opens services of this host"),
    "FORCE_SNAT": ("it rewrites addresses, by NAT", "a door opens services of this host"),
    "FORCE_MASQUERADE": ("it rewrites addresses, by NAT", "a door opens services of this host"),
    "FORWARD_ALL": ("it forwards all that a client sends, by NAT", "a door opens services of this host"),
    "DISABLE_DNAT": ("it is for what lies behind this host, by NAT", "a door opens services of this host"),
    "ACCESS_EXPIRE": ("it ends on a date, and a client of a door does not", f"delete the line, and {_ENDING}"),
}


class Finding(NamedTuple):
    """Something that the operator has to hear of: where, what is the matter and what to do. line 0: the whole file."""

    file: str
    line: int
    section: str
    message: str
    hint: str = ""


class Imported(NamedTuple):
    """What became of an access.conf.

    toml: the configuration, empty if there are errors. clients: how many are in it. errors: what is wrong with a file.
    left: what is left to do by hand, stanzas that are comments only among it. told: what differs for all of a kind.
    """

    toml: str
    clients: int
    errors: tuple[Finding, ...]
    left: tuple[Finding, ...]
    told: tuple[Finding, ...] = ()


class UnreadError(Exception):
    """A file or folder cannot be read; the text says why, without its name."""


class Files(Protocol):
    """The files that an access.conf includes. Both raise UnreadError."""

    def read(self, path: str) -> str:
        """The text of a file; what is not UTF-8 in it as Python's surrogate escapes."""

    def folder(self, path: str) -> list[str]:
        """The paths of all files in a folder, by name."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where fwknopd takes packets from and how old they may be (seconds), as fwknopd.conf says it, or its defaults."""

    ports: tuple[str, ...] = _PORTS
    max_age: int = _MAX_AGE
    left: tuple[Finding, ...] = ()
    told: tuple[Finding, ...] = ()


def convert(text: str, shown: str, files: Files, listening: Listening) -> Imported:
    """The configuration that says what the text of the file `shown`, and of all that it includes, says."""
    reading = _Reading(files)
    reading.file(text, shown, ())
    if not reading.stanzas and not reading.errors:
        reading.error(shown, 0, "", "has no SOURCE, which begins each stanza", "SOURCE ANY")
    for stanza in reading.stanzas:
        reading.errors += _contradictions(stanza)
    if reading.errors:
        return Imported("", 0, tuple(dict.fromkeys(reading.errors)), ())
    _name(reading.stanzas)
    _compare(reading.stanzas)
    return _written(reading.stanzas, shown, listening)


# ---- the files as fwknopd reads them


class _Place(NamedTuple):
    """Where a variable stands, and what it says."""

    file: str
    line: int
    variable: str
    text: str


@dataclass(slots=True)
class _Stanza:
    """A stanza while it is read. `said` holds what counts of each variable: the last one."""

    file: str
    line: int
    comment: str
    lines: list[str] = field(default_factory=list)
    said: dict[str, _Place] = field(default_factory=dict)
    sources: tuple[IPv4Network, ...] = ()
    ports: dict[str, tuple[Service, ...]] = field(default_factory=dict)
    seconds: dict[str, int] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refused: list[Finding] = field(default_factory=list)
    name: str = ""

    @property
    def shown(self) -> str:
        """What a message calls it."""
        return f"SOURCE {shortened(self.said['SOURCE'].text.strip(BLANK))}" if "SOURCE" in self.said else "SOURCE"

    def is_set(self, name: str) -> bool:
        """Whether a variable says something: a boolean one that it is so."""
        place = self.said.get(name)
        return place is not None and (name not in _BOOLEAN or _is_yes(place.text))

    @property
    def most(self) -> int:
        """The most that a client may ask for, in seconds."""
        return min(self.seconds.get("MAX_FW_TIMEOUT") or _MAX_TIMEOUT, MAX_TIMEOUT)

    @property
    def timeout(self) -> int:
        """How long it opens for who asks for no time, in seconds; fwknopd lets the lesser of two count."""
        return min(
            self.seconds.get("FW_ACCESS_TIMEOUT") or _TIMEOUT, self.seconds.get("MAX_FW_TIMEOUT") or _MAX_TIMEOUT
        )

    @property
    def services(self) -> tuple[Service, ...]:
        """What its clients may ask for."""
        refused = self.ports.get("RESTRICT_PORTS", ())
        return tuple(service for service in self.ports.get("OPEN_PORTS", ()) if service not in refused)

    def refuse(self, variable: str, message: str, hint: str = "") -> None:
        """Leave it as comments: why, at the line of the variable."""
        place = self.said.get(variable)
        where = (place.file, place.line) if place else (self.file, self.line)
        self.refused.append(Finding(*where, self.shown, f"{place.variable if place else variable}: {message}", hint))


class _Reading:
    """All stanzas, in the order in which fwknopd tries them, and what is wrong."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.stanzas: list[_Stanza] = []
        self.errors: list[Finding] = []
        self.read = 1

    def error(self, file: str, line: int, section: str, message: str, hint: str = "") -> None:
        """Note what is wrong."""
        self.errors.append(Finding(file, line, section, message, hint))

    def file(self, text: str, shown: str, way: tuple[str, ...]) -> None:
        """Take in a file. way: the files that led to it. A stanza goes on behind an include, and ends with its file."""
        here: _Stanza | None = None
        above: list[str] = []  # comments on the line that comes
        for number, raw in enumerate(f"{text}\n".split("\n"), 1):
            line = raw.strip(BLANK)
            if line[:1] in ("#", ";"):
                above.append(raw)
                continue
            if line:
                above.append(raw)
                if _name_of(raw) == "SOURCE":
                    here = _Stanza(shown, number, "".join(above[-2:-1]).strip("#; \t\r"))
                    self.stanzas.append(here)
                try:
                    self._line(raw, number, (*way, shown), here)
                except WrongError as error:
                    self.error(shown, number, here.shown if here else "", str(error), error.hint)
            if here is not None:
                here.lines += map(_masked, above)
            above = []

    def _line(self, raw: str, number: int, way: tuple[str, ...], here: _Stanza | None) -> None:
        """Take in a line; raises WrongError. way: the files that led to it, and its own."""
        variable, value = _split(raw)
        if variable in _INCLUDES:
            self._include(variable, value, way, here)
        elif here is None:
            raise WrongError("this stands before any SOURCE, and fwknopd passes over it", "begin with SOURCE ANY")
        else:
            _take(here, _Place(way[-1], number, variable, value))

    def _include(self, variable: str, value: str, way: tuple[str, ...], here: _Stanza | None) -> None:
        path = value.strip(BLANK)
        if not path.startswith("/"):
            hint = "write the whole path; fwknopd takes it from the directory that it was started in"
            raise WrongError(f"{cited(path)} is no absolute path", hint)
        try:
            if variable == "%include_keys":
                if here is None:
                    raise WrongError("%include_keys stands before any SOURCE, and fwknopd passes over it")
                self._keys(self._text(path), path, here)
                return
            paths = [path] if variable == "%include" else self.files.folder(path)
            for each in paths:
                if variable == "%include" or each.endswith(".conf"):
                    self._check_depth(each, way)
                    self.file(self._text(each), each, way)
        except UnreadError as error:
            raise WrongError(f"{variable}: {cited(path)} {error}", "fwknopd does not start then either") from None

    def _check_depth(self, path: str, way: tuple[str, ...]) -> None:
        if path in way:
            raise WrongError(f"{cited(path)} includes itself", "delete this line")
        if len(way) > MAX_DEPTH:
            raise WrongError(f"{cited(path)} is included more than {MAX_DEPTH} files deep", "include it further up")

    def _text(self, path: str) -> str:
        self.read += 1
        if self.read > MAX_FILES:
            raise UnreadError(f"is not read: {MAX_FILES} files are the most")
        return self.files.read(path)

    def _keys(self, text: str, shown: str, stanza: _Stanza) -> None:
        """A file of %include_keys: keys of the stanza, and nothing else."""
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip(BLANK)
            if not line or line[0] in "#;":
                continue
            try:
                variable, value = _split(raw)
                if variable not in _SECRET:
                    message = f"{cited(variable)} is no key, and fwknopd passes over it in such a file"
                    raise WrongError(message, "delete it, or write it into the stanza")
                _take(stanza, _Place(shown, number, variable, value))
            except WrongError as error:
                self.error(shown, number, stanza.shown, str(error), error.hint)


def _split(raw: str) -> tuple[str, str]:
    """Variable and value: what stands behind ; does not count, and blanks at the value's end do."""
    if len(raw.encode(errors="surrogateescape")) > MAX_LINE:
        raise WrongError(f"a line of more than {MAX_LINE} bytes, which fwknopd takes for several", "make it shorter")
    if "\0" in raw:
        raise WrongError("a NUL byte, where fwknopd stops reading the line", "delete it")
    words = _SPACE.split(raw.lstrip(BLANK).rstrip("\r"), 1)
    variable = words[0].removesuffix(":")
    value, sign, rest = words[1].partition(";") if len(words) > 1 else ("", "", "")
    if variable not in _KNOWN and variable not in _INCLUDES:
        right = variable.upper()
        hint = f"write {right}" if right in _KNOWN else "delete the line, or correct its name"
        raise WrongError(f"{cited(variable)} is no variable of access.conf, and fwknopd passes over it", hint)
    if not value.strip(BLANK):
        raise WrongError(f"{variable} says nothing", "write its value behind it, or delete the line")
    if sign and rest.strip(BLANK) and rest.strip(BLANK)[0] != "#":
        raise WrongError(f"{variable}: fwknopd passes over what stands behind the ;", "delete it")
    return variable, value


def _take(stanza: _Stanza, place: _Place) -> None:
    """Take in a variable of the stanza; raises WrongError."""
    name = _SAME.get(place.variable, place.variable)
    if name in stanza.said:
        stanza.notes.append(
            f"{place.variable}: it is there more than once, and the last counts, as it does for fwknopd."
        )
    text = place.text.strip(BLANK)
    stanza.said[name] = place
    if place.variable in _KEYS:
        stanza.keys[name] = _key(place)
    elif place.variable in _BOOLEAN:
        _check_yes(place.variable, text)
    elif name == "SOURCE":
        stanza.sources = _networks(name, text)
    elif name == "DESTINATION":
        if _networks(name, text):
            stanza.refuse(
                name, "it counts for one address of this host only", "a client's packets count at any of them"
            )
    elif name in ("OPEN_PORTS", "RESTRICT_PORTS"):
        stanza.ports[name] = tuple(dict.fromkeys(_service(name, word.strip(BLANK)) for word in text.split(",")))
    elif name in ("FW_ACCESS_TIMEOUT", "MAX_FW_TIMEOUT"):
        stanza.seconds[name] = _seconds(name, text)
    elif name == "HMAC_DIGEST_TYPE":
        if text.lower() not in DIGESTS:
            raise WrongError(f"{name}: {cited(text)} is no digest", f"one of {', '.join(DIGESTS)}")
    elif name == "REQUIRE_USERNAME":
        _check_user(place)


def _key(place: _Place) -> bytes:
    """The bytes of a key; nothing of it is in what is raised."""
    if place.text.startswith(_UNSET):
        raise WrongError(f"{place.variable} is not set: {_UNSET} is what the package writes", _KEYGEN)
    if not place.variable.endswith("BASE64"):
        return place.text.encode(errors="surrogateescape")
    text = place.text.strip(BLANK).rstrip("=")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        raise WrongError(f"{place.variable} is not in base64, and fwknopd refuses it too", _KEYGEN) from None


def _is_yes(text: str) -> bool:
    return text.strip(BLANK)[:1] in ("y", "Y")


def _check_yes(variable: str, text: str) -> None:
    if text.upper() not in ("Y", "N", "YES", "NO"):
        raise WrongError(f"{variable}: fwknopd takes {cited(text)} for {'Y' if _is_yes(text) else 'N'}", "Y or N")


def _networks(variable: str, text: str) -> tuple[IPv4Network, ...]:
    """The networks of a list; none for ANY, which beside others means the same."""
    found = []
    for word in (word.strip(BLANK) for word in text.split(",")):
        if word.upper() == "ANY":
            found.append(IPv4Network(0))
            continue
        try:
            found.append(IPv4Network(word, strict=False))
        except ValueError:
            hint = "192.0.2.0/24, 198.51.100.7 or ANY, with a comma between two"
            raise WrongError(f"{variable}: {cited(word)} is no IPv4 network", hint) from None
    return () if any(network == IPv4Network(0) or not network.prefixlen for network in found) else tuple(found)


def _service(variable: str, word: str) -> Service:
    """`tcp/22`. fwknopd reads a port with atoi(), which takes `22-25` and `22 # ssh` for 22."""
    protocol, sign, port = word.partition("/")
    proto = PROTOCOLS.get(protocol.lower())
    if not sign or proto is None:
        raise WrongError(f"{variable}: {cited(word)} is no service", "tcp/22, or udp/1194; a comma between two")
    try:
        return Service(proto, parse_port(port, port))
    except ValueError:
        raise WrongError(
            f"{variable}: {cited(port)} is no port (1-65535)", "each port by itself: tcp/22,tcp/23"
        ) from None


def _seconds(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        hint = "a whole number of seconds, without a unit, and with nothing behind it"
        raise WrongError(f"{variable}: {cited(text)} is no number of seconds", hint)
    return int(text)


def _check_user(place: _Place) -> None:
    name = place.text
    if fit_user(name) != name:
        raise WrongError(
            f"{place.variable}: no packet can have such a user: {cited(name)}", "one name, as `id -un` says"
        )
    if name != name.strip(BLANK):
        raise WrongError(f"{place.variable}: it ends in a blank, which counts for fwknopd", "delete the blank")


def _name_of(line: str) -> str:
    """The variable of a line that is not blank."""
    return _SPACE.split(line.lstrip(BLANK), 1)[0].removesuffix(":")


def _masked(raw: str) -> str:
    """The line as comments may hold it: without a key, be it in a comment already."""
    words = raw.strip("#; \t\r").split(None, 1)
    secret = words and words[0].removesuffix(":").upper() in _SECRET
    return f"{raw.partition(words[0])[0]}{words[0]} (not shown)" if secret else raw


# ---- what a stanza says as a whole


def _contradictions(stanza: _Stanza) -> Iterator[Finding]:
    """What fwknopd does not start with."""
    if stanza.keys.get("KEY") and stanza.keys.get("KEY") == stanza.keys.get("HMAC_KEY"):
        place = stanza.said["HMAC_KEY"]
        message = f"{place.variable} is the encryption key too, which fwknopd refuses as well"
        yield Finding(place.file, place.line, stanza.shown, message, _KEYGEN)
    if "KEY" not in stanza.said and "GPG_DECRYPT_ID" not in stanza.said:
        yield Finding(stanza.file, stanza.line, stanza.shown, "has no KEY, and fwknopd refuses it too", _KEYGEN)


def _compare(stanzas: list[_Stanza]) -> None:
    """Refuse what cannot be said, stanza by stanza and beside those before."""
    seen: dict[bytes, _Stanza] = {}
    for stanza in stanzas:
        for variable, (why, hint) in _NOT_DONE.items():
            if stanza.is_set(variable):
                stanza.refuse(variable, why, hint)
        _check_keys(stanza)
        if "OPEN_PORTS" not in stanza.said:
            stanza.refuse("OPEN_PORTS", "is missing, which opens whatever a packet asks for", "OPEN_PORTS tcp/22")
        elif not stanza.services:
            stanza.refuse("RESTRICT_PORTS", "nothing is left of OPEN_PORTS")
        for name in ("KEY", "HMAC_KEY"):
            other = seen.setdefault(stanza.keys[name], stanza) if name in stanza.keys else stanza
            if other is not stanza:
                message = f"the same key as in the stanza of line {other.line}, and two clients have keys of their own"
                stanza.refuse(name, message, _KEYGEN)
    for stanza in [stanza for stanza in stanzas if not stanza.refused][MAX_SPA_KEYS:]:
        stanza.refuse("SOURCE", f"{MAX_SPA_KEYS} clients of SPA doors are the most")


def _check_keys(stanza: _Stanza) -> None:
    if "KEY" not in stanza.keys:
        stanza.refuse("GPG_DECRYPT_ID", "packets that are encrypted by GPG are not read", _KEYGEN)
    mode = stanza.said.get("ENCRYPTION_MODE")
    if mode is not None and mode.text.strip(BLANK).upper() != "CBC":
        message = f"{cited(mode.text.strip(BLANK))}: packets in another mode than CBC are not read"
        stanza.refuse("ENCRYPTION_MODE", message, "delete it here, and -M or ENCRYPTION_MODE at the client")
    if "HMAC_KEY" not in stanza.keys:
        stanza.refuse("HMAC_KEY", "is missing, and a packet without an HMAC is not authenticated", _KEYGEN)
    for name, most in (("KEY", MAX_KEY), ("HMAC_KEY", MAX_HMAC_KEY)):
        size = len(stanza.keys.get(name, bytes(MIN_KEY)))
        if size < MIN_KEY:
            stanza.refuse(name, f"it has {size} bytes, and {MIN_KEY} are the least: it can be guessed", _KEYGEN)
        elif size > most:
            stanza.refuse(name, f"it has {size} bytes, and {most} are the most", _KEYGEN)


def _name(stanzas: list[_Stanza]) -> None:
    """Name each client: after the comment just above SOURCE if that is short, else by its number."""
    taken = set()
    for number, stanza in enumerate(stanzas, 1):
        base = _NOT_IN_NAMES.sub("-", stanza.comment).strip("-_") if len(stanza.comment) <= _MAX_NAME else ""
        if not base:
            base = f"client-{number}"
        name, more = base, 1
        while name in taken:
            more += 1
            name = f"{base}-{more}"
        taken.add(name)
        stanza.name = name


def _differences(stanza: _Stanza) -> Iterator[Finding]:
    """What is not the same afterwards, for a stanza that is converted: told, since it holds for all of its kind."""
    where = stanza.file, stanza.line, stanza.shown
    if not stanza.sources:
        yield Finding(*where, "ANY meant any IPv4 address; packets over IPv6 count too", "source limits that")
    if stanza.is_set("REQUIRE_SOURCE_ADDRESS"):
        message = "a packet has to come from the address that it asks for; fwknopd opened for any one that it named"
        yield Finding(*where, message, "require_source = false opens for any one that it names, or for its sender's")
    else:
        message = "REQUIRE_SOURCE_ADDRESS is not set: who holds up a packet can send it from an address of their own"
        yield Finding(*where, message, "require_source = true, once all clients use -a or -R")


def _not_kept(stanza: _Stanza) -> Iterator[Finding]:
    """What a stanza does not do any more, whether it is converted or not."""
    for variable, message in (
        ("ENABLE_CMD_EXEC", "a command in a packet is not run any more"),
        ("ENABLE_CMD_SUDO_EXEC", "a command in a packet is not run any more"),
        ("GPG_DECRYPT_ID", "packets that are encrypted by GPG are not read any more"),
    ):
        if stanza.is_set(variable) and not (variable == "GPG_DECRYPT_ID" and "KEY" not in stanza.keys):
            place = stanza.said[variable]
            hint = "such clients need keys of their own" if variable.startswith("GPG") else "packets open doors only"
            yield Finding(place.file, place.line, stanza.shown, f"{variable}: {message}", hint)


# ---- fwknopd.conf

_FILTER = re.compile(
    r"(?:(udp|tcp|icmp)\b\s*)?(?:and\s+)?(?:dst\s+)?(?:port\s+([0-9]{1,5})|portrange\s+([0-9]{1,5}-[0-9]{1,5}))?"
)
_ADVICE = "say where packets arrive with --port"


def read_listening(text: str, shown: str) -> Listening:
    """What fwknopd.conf says of where packets come in and how old they may be; all else in it is of no matter here."""
    said = {}
    for number, raw in enumerate(text.split("\n"), 1):
        words = _SPACE.split(raw.strip(BLANK), 1)
        if len(words) == 2 and words[0][0] not in "#;":
            name = words[0].removesuffix(":")
            said[name] = _Place(shown, number, name, words[1].partition(";")[0].strip(BLANK))
    left, told = [], list(_of_the_daemon(said))
    ports: tuple[str, ...] = _PORTS
    place = said.get("PCAP_FILTER")
    server = said.get("ENABLE_UDP_SERVER")
    if server is not None and _is_yes(server.text):
        ports, place = (f"{said['UDPSERV_PORT'].text if 'UDPSERV_PORT' in said else '62201'}/udp",), None
    if place is not None:
        found = _filtered(place.text)
        if found:
            ports = found
        else:
            left.append(_finding(place, f"{cited(place.text)} is not understood, and {_PORTS[0]} is written", _ADVICE))
    age = said.get("MAX_SPA_PACKET_AGE")
    number = int(age.text) if age and age.text.isascii() and age.text.isdigit() and len(age.text) <= _MAX_DIGITS else 0
    kept = min(max(number or _MAX_AGE, _LEAST_AGE), _OLDEST)
    if age is not None and kept != number:
        left.append(_finding(age, f"{cited(age.text)} cannot be kept, and {kept} s are written"))
    return Listening(ports, kept, tuple(left), tuple(told))


def _finding(place: _Place, message: str, hint: str = "") -> Finding:
    return Finding(place.file, place.line, place.variable, message, hint)


def _of_the_daemon(said: dict[str, _Place]) -> Iterator[Finding]:
    """What differs from fwknopd as a whole."""
    for name, is_yes, message in (
        ("ENABLE_SPA_OVER_HTTP", True, "packets in HTTP requests (-P http) are not read any more"),
        (
            "ENABLE_TCP_SERVER",
            True,
            "nothing listens for connections (-P tcp): a packet in a lone SYN (-P tcpraw) counts",
        ),
        ("ENABLE_SPA_PACKET_AGING", False, "the age of a packet counts: clients need a clock that is right"),
        ("ENABLE_DESTINATION_RULE", True, "a door opens its services at each address of this host"),
    ):
        if name in said and _is_yes(said[name].text) == is_yes:
            yield _finding(said[name], message)
    if "PCAP_INTF" in said:
        yield _finding(said["PCAP_INTF"], "a packet counts on whatever interface it comes in, if it is for this host")


def _filtered(text: str) -> tuple[str, ...]:
    """The ports of a filter of pcap, as our configuration writes them; none if it says something else."""
    found: list[str] = []
    for part in re.split(r"\s+or\s+", text.strip().lower()):
        match = _FILTER.fullmatch(part.strip())
        if match is None or not part.strip():
            return ()
        protocol, port, ports = match.groups()
        if protocol == "icmp" and not (port or ports):
            found.append("icmp")
        elif protocol != "icmp" and (port or ports):
            first, _, last = (port or ports).partition("-")
            if not (0 < int(first) <= int(last or first) <= 65_535):
                return ()
            found += [f"{port or ports}/{each}" for each in ([protocol] if protocol else ["udp", "tcp"])]
        else:
            return ()
    return tuple(dict.fromkeys(found))


# ---- as a configuration of ours


def _written(stanzas: list[_Stanza], shown: str, listening: Listening) -> Imported:
    kept = [stanza for stanza in stanzas if not stanza.refused]
    left = [finding for stanza in stanzas for finding in (*stanza.refused, *_not_kept(stanza))]
    told = [finding for stanza in kept for finding in _differences(stanza)]
    doors = _doors(kept)
    services = (service for stanza in kept for service in stanza.services)
    lines = list(head("import-access", shown, services, "those let in"))
    for seconds, door in doors.items():
        lines += ["", *_door(door, seconds, [stanza for stanza in kept if stanza.timeout == seconds], listening)]
    for stanza in stanzas:
        lines += ["", *map(original, stanza.lines)]
        for finding in (*stanza.refused, *_not_kept(stanza)):
            what = "NOT CONVERTED" if stanza.refused else "NOT KEPT"
            lines += comment(f"{what}: {finding.message}" + (f" ({finding.hint})" if finding.hint else ""))
        lines += [line for note in dict.fromkeys(stanza.notes) for line in comment(note)]
        if not stanza.refused:
            lines += _client(stanza, doors[stanza.timeout], listening)
    told += listening.told if kept else ()
    left += listening.left if kept else ()
    return Imported("\n".join(lines) + "\n", len(kept), (), tuple(left), summed(told))


def _doors(kept: list[_Stanza]) -> dict[int, str]:
    """The name of the door for each timeout in seconds: a door has one."""
    timeouts = list(dict.fromkeys(stanza.timeout for stanza in kept))
    return {seconds: _DOOR if len(timeouts) == 1 else f"{_DOOR}-{seconds}s" for seconds in timeouts}


def _door(name: str, seconds: int, clients: list[_Stanza], listening: Listening) -> Iterator[str]:
    yield f"[doors.{name}]"
    yield f"opens = {toml_list(dict.fromkeys(service for stanza in clients for service in stanza.services))}"
    yield "spa = {}" if listening.ports == _PORTS else f"spa = {{ports = {toml_list(listening.ports)}}}"
    yield f"timeout = {toml_string(f'{seconds}s')}"


def _client(stanza: _Stanza, door: str, listening: Listening) -> Iterator[str]:
    yield f"[clients.{door}.{stanza.name}]"
    for name, key in (("key", stanza.keys["KEY"]), ("hmac_key", stanza.keys["HMAC_KEY"])):
        text = key.decode("ascii", "replace")
        if stanza.said[name.upper()].variable.endswith("BASE64") or not (text.isascii() and text.isprintable()):
            yield f"{name}_base64 = {toml_string(b64encode(key).decode())}"
        else:
            yield f"{name} = {toml_string(text)}"
    if "HMAC_DIGEST_TYPE" in stanza.said:
        yield f"hmac = {toml_string(stanza.said['HMAC_DIGEST_TYPE'].text.strip(BLANK).lower())}"
    yield f"allow = {toml_list(stanza.services)}"
    yield f"require_source = {json.dumps(stanza.is_set('REQUIRE_SOURCE_ADDRESS'))}"
    yield f"max_age = {toml_string(f'{listening.max_age}s')}"
    yield f"max_timeout = {toml_string(f'{stanza.most}s')}"
    if "REQUIRE_USERNAME" in stanza.said:
        yield f"user = {toml_string(stanza.said['REQUIRE_USERNAME'].text)}"
    if stanza.sources:
        yield f"source = {toml_list(stanza.sources)}"
