"""The configuration: TOML files in, a frozen Config out, or every error at once, each with its file, line and key.

Rule 1: a wrong value is noted and the reading goes on; what depends on a part that could not be read is not judged.
Rule 2: the files hold the sequences: what others can read or write is refused, and what is checked is what was opened.
Rule 3: the file may say anything: load() answers with a Config or a ConfigError and raises nothing else.
"""

import json
import os
import re
import stat
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network
from itertools import islice
from math import factorial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple, TypeVar

from .errors import BAD_CONFIG, NO_PERMISSION, LogknockError
from .knock import MAX_SEQUENCE, Door, Service, SetName, TcpFlags, parse_port
from .packet import PROTOCOLS, UDP

# A thousand doors take about 100 kB. More than this is a log, a database or a device named by mistake.
MAX_BYTES = 1 << 20

# Traps are elements of a set and names in a log: more of them than a quarter of all ports tell nothing more of a scan.
MAX_TRAPS = 16_384

# The rate above which a source is not listened to. A client that knocks needs less than 20 a second; at 1,000 a second
# the daemon would hear most of a scan.
MAX_RATE = 1_000

# Goes into element comments, log lines, environments and file names, none of which is to need quoting.
_DOOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

# What nft 1.0.6 reads as a name, and the kernel's NFT_NAME_MAXLEN without its closing zero.
_NFT_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9_./-]{0,254}")
_FAMILIES = ("ip", "ip6", "inet")

# nft's order, each unit at most once. Ten digits are more than any limit below needs.
_DURATION = re.compile(
    r"(?=.)(?:(\d{1,10})d)?(?:(\d{1,10})h)?(?:(\d{1,10})m)?(?:(\d{1,10})s)?(?:(\d{1,10})ms)?", re.ASCII
)
_UNITS = (86_400, 3_600, 60, 1, 0.001)
_DAY = 86_400

# An error quotes what it is about; a value longer than this is not shown whole.
_MAX_SHOWN = 300

# How many doors an error lists, so that it stays readable.
_MAX_NAMED = 8

_MINIMAL = 'doors.ssh = {sequence = ["7000/tcp", "8000/tcp", "9000/udp"], opens = ["22/tcp"]}'

Network = IPv4Network | IPv6Network
_T = TypeVar("_T")
_Path = tuple[str | int, ...]  # keys, and the places of elements in lists


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or worth a warning: where, what, and what to do. `key` is empty for the whole file."""

    file: Path
    line: int | None
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        key = f"{self.key}: " if self.key else ""
        return printable(f"{self.file}{line}: {key}{self.message}")

    def report(self, prefix: str = "logknock: ") -> list[str]:
        """The lines for a terminal or a log."""
        return [prefix + str(self), *([printable(f"hint: {self.hint}")] if self.hint else [])]


class ConfigError(LogknockError):
    """The configuration cannot be used; `problems` is all that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...], exit_code: int = BAD_CONFIG) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}", problems[0].hint, exit_code)
        self.problems = problems

    def report(self) -> list[str]:
        """Each problem as a line of its own, its hint below it."""
        return [line for problem in self.problems for line in problem.report()]


class PortRange(NamedTuple):
    """Ports of one protocol, both ends included."""

    proto: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Firewall:
    """What the ruleset needs besides the doors. No two of `trusted` overlap."""

    trusted: tuple[Network, ...] = ()
    traps: int = 1024
    exclude: tuple[PortRange, ...] = ()
    rate: int = 20
    burst: int = 40


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration without errors, as its files say it; `warnings` is what its author should hear of."""

    file: Path
    source: str
    group: int
    doors: tuple[Door, ...]
    firewall: Firewall
    state: Path
    runtime: Path
    warnings: tuple[Problem, ...]

    @property
    def guarded(self) -> frozenset[Service]:
        """The services that are closed to all but grantees."""
        return frozenset(service for door in self.doors if door.guard for service in door.opens)

    @property
    def knocked(self) -> frozenset[Service]:
        """The services that some sequence knocks on."""
        return frozenset(service for door in self.doors for service in door.sequence)


def load(path: Path) -> Config:
    """Read the file and its neighbours conf.d/*.toml; raises ConfigError with every problem."""
    report = _Report()
    log, firewall, paths = (_Table((name,), path, report) for name in ("log", "firewall", "paths"))
    tables = _sort_in(_read_files(path, report), {"log": log, "firewall": firewall, "paths": paths}, report)
    doors = [(_door(table), table) for table in tables]
    config = Config(
        file=path,
        source=log.read("source", _source, "nflog"),
        group=log.read("group", _whole(0, 65_535), 5),
        doors=tuple(door for door, _ in doors),
        firewall=_firewall(firewall),
        state=paths.read("state", _absolute, Path("/var/lib/logknock")),
        runtime=paths.read("runtime", _absolute, Path("/run/logknock")),
        warnings=(),
    )
    log.read("prefix", _text("logknock"), "")  # for sources that read text: known, so that one file can serve several
    for table in (log, firewall, paths, *tables):
        table.finish()
    if report.complete:
        _check_together(path, doors, report)
    if report.errors:
        raise ConfigError(report.located(report.errors), report.exit_code)
    _warn_of_scans(config.firewall.traps, firewall, doors)
    _warn_of_overlaps(doors)
    return replace(config, warnings=report.located(report.warnings))


# ---- what was found, and on which line


class _Note(NamedTuple):
    file: Path
    path: _Path
    message: str
    hint: str
    line: int | None = None


class _Report:
    """What was found so far. Lines are looked up at the end, in the files that need it."""

    def __init__(self) -> None:
        self.texts: dict[Path, str] = {}  # what each file says, in the order of reading
        self.errors: list[_Note] = []
        self.warnings: list[_Note] = []
        self.exit_code = BAD_CONFIG
        self.complete = True  # False: something could not be read, and what seems missing may be there

    def unread(self, file: Path, message: str, hint: str = "", line: int | None = None) -> None:
        """Note why nothing of the file counts."""
        self.complete = False
        self.errors.append(_Note(file, (), message, hint, line))

    def located(self, notes: list[_Note]) -> tuple[Problem, ...]:
        """The notes with their lines, from the top of the first file to the end of the last."""
        wanted: dict[Path, set[_Path]] = defaultdict(set)
        for note in notes:
            wanted[note.file].add(note.path)
        lines = {file: find_lines(self.texts.get(file, ""), paths) for file, paths in wanted.items()}
        order = {file: at for at, file in enumerate(self.texts)}
        problems = [
            Problem(
                file=note.file,
                line=note.line or lines[note.file].get(note.path),
                key=_key_text(note.path),
                message=note.message,
                hint=note.hint,
            )
            for note in notes
        ]
        problems.sort(key=lambda problem: (order.get(problem.file, len(order)), problem.line or 0))
        return tuple(problems)


def printable(text: str) -> str:
    """One line that leaves the terminal as it was, whatever the text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _key_text(path: _Path) -> str:
    """`doors.ssh.sequence`, quoted where TOML would; which element of a list it is, the message says."""
    keys = (key for key in path if isinstance(key, str))
    return ".".join(key if _BARE_KEY.fullmatch(key) else json.dumps(_short(key), ensure_ascii=False) for key in keys)


# The notations of TOML 1.0. They may be looser than the grammar, since tomllib has read the text before they do.
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_PARTS = re.compile(_PART)
_DOTTED = rf"({_PART}(?:[ \t]*\.[ \t]*{_PART})*)"
_KEY = re.compile(rf"{_DOTTED}[ \t]*=")
_HEADER = re.compile(rf"(\[\[?)[ \t]*{_DOTTED}[ \t]*\]\]?")
_SCALAR = re.compile(
    r"""\"{3}(?:[^"\\]|\\.|"(?!""))*"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,\]}#][^,\]}#\n]*""",
    re.DOTALL,
)


def find_lines(text: str, wanted: set[_Path]) -> dict[_Path, int]:
    """The lines of these keys and elements in a text that tomllib has read; for one that is not there, its table's."""
    sought = {path[:end] for path in wanted for end in range(1, len(path) + 1)}
    found: dict[_Path, int] = {}
    line, counted = 1, 0
    for path, at in _places(text):
        if path in sought and path not in found:
            line, counted = line + text.count("\n", counted, at), at
            found[path] = line
    for path in sorted(sought - found.keys(), key=len):
        if path[:-1] in found:
            found[path] = found[path[:-1]]
    return found


def _places(text: str) -> Iterator[tuple[_Path, int]]:
    """Each key and each element of a list, and where it begins, in order; ends early where it does not understand."""
    counts: dict[_Path, int] = {}
    stack: list[tuple[_Path, int | None]] = [((), None)]  # what is open: its path, and in a list the next element
    at = _skip(text, 0)
    while at < len(text):
        path, index = stack[-1]
        if len(stack) > 1 and text[at] in ",]}":
            if text[at] != ",":
                stack.pop()
            at = _skip(text, at + 1)
            continue
        if len(stack) == 1 and (header := _HEADER.match(text, at)):
            for path in _header_paths(header, counts):
                yield path, at
            stack[0] = (path, None)
            at = _skip(text, header.end())
            continue
        if index is None:
            key = _KEY.match(text, at)
            if key is None:
                return
            for part in _keys(key[1]):
                path += (part,)
                yield path, at
            at = _skip(text, key.end())
        else:
            stack[-1] = (path, index + 1)
            path += (index,)
            yield path, at
        if text.startswith(("[", "{"), at):
            stack.append((path, 0 if text[at] == "[" else None))
            at = _skip(text, at + 1)
        else:
            value = _SCALAR.match(text, at)
            if value is None:
                return
            at = _skip(text, value.end())


def _header_paths(header: re.Match[str], counts: dict[_Path, int]) -> list[_Path]:
    """The tables that `[a.b]` or `[[a.b]]` names, from the outermost; `counts` has the last index of each array."""
    paths: list[_Path] = []
    path: _Path = ()
    keys = _keys(header[2])
    for depth, key in enumerate(keys, 1):
        path += (key,)
        paths.append(path)
        if depth == len(keys) and header[1] == "[[":
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path += (counts[path],)
            paths.append(path)
    return paths


def _keys(dotted: str) -> list[str]:
    parts = _PARTS.findall(dotted)
    return [next(iter(tomllib.loads(f"{part} = 0"))) if part[0] in "\"'" else part for part in parts]


def _skip(text: str, at: int) -> int:
    """Past blanks, line ends and comments."""
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


# ---- files


# Never waits for the other end of a FIFO, never becomes a terminal's session.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_WRITE = {stat.S_IWGRP: "written by its group", stat.S_IWOTH: "written by others"}
_READ_OR_WRITE = {stat.S_IROTH: "read by others", **_WRITE}


def _read_files(path: Path, report: _Report) -> list[tuple[Path, dict[str, Any]]]:
    """What the file and its neighbours say, in the order in which they count."""
    files = [(path, _read_file(path, report))]
    folder = path.parent / "conf.d"
    if path not in report.texts:  # not even opened: what is beside it does not matter
        return []
    try:
        with _opened(folder, os.O_DIRECTORY) as descriptor:
            if _is_ours(os.fstat(descriptor), folder, report):
                for name in sorted(os.listdir(descriptor)):
                    if name.endswith(".toml") and not name.startswith("."):
                        files.append((folder / name, _read_file(folder / name, report, descriptor)))
    except FileNotFoundError:
        pass  # it need not exist
    except OSError as error:
        _cannot_read(folder, error, report)
    return [(file, data) for file, data in files if data is not None]


@contextmanager
def _opened(path: Path | str, flags: int = 0, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _OPEN | flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_file(path: Path, report: _Report, folder: int | None = None) -> dict[str, Any] | None:
    """What the file says (found by its name in `folder`, where that is given); None, and a note, if nothing counts."""
    try:
        with _opened(path if folder is None else path.name, folder=folder) as descriptor:
            report.texts[path] = ""
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
                report.unread(path, f"is {kind}", "the configuration is a file of TOML")
                return None
            if not _is_ours(status, path, report):
                return None
            with open(descriptor, "rb", closefd=False) as stream:
                data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        _cannot_read(path, error, report)
        return None
    return _parsed(data, path, report)


def _cannot_read(path: Path, error: OSError, report: _Report) -> None:
    if isinstance(error, FileNotFoundError):
        hint = f"write it, or name another file with -c FILE; a minimal one: {_MINIMAL}"
        report.unread(path, "does not exist", hint)
    elif isinstance(error, PermissionError):
        report.exit_code = NO_PERMISSION
        report.unread(path, "cannot be read: permission denied", "run this as root, or as the file's owner")
    else:
        report.unread(path, f"cannot be read: {error.strerror}")


def _is_ours(status: os.stat_result, path: Path, report: _Report) -> bool:
    """Note who else has a hand in it. False where its words may be theirs: what others merely read is read on."""
    folder = stat.S_ISDIR(status.st_mode)
    refused = _WRITE if folder else _READ_OR_WRITE
    if found := [words for bit, words in refused.items() if status.st_mode & bit]:
        change = f"chmod {'go-w' if folder else 'g-w,o-rwx'} {quote(str(path))}"
        report.errors.append(_Note(path, (), f"can be {' and '.join(found)}, and it holds what to knock", change))
    foreign = status.st_uid not in (0, os.geteuid())
    if foreign:
        message = f"belongs to another user (uid {status.st_uid})"
        report.errors.append(_Note(path, (), message, f"chown root {quote(str(path))}"))
    if foreign or status.st_mode & sum(_WRITE):
        report.complete = False
        return False
    return True


_SYNTAX = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


def _parsed(data: bytes, path: Path, report: _Report) -> dict[str, Any] | None:
    if len(data) > MAX_BYTES:
        report.unread(path, f"is larger than {MAX_BYTES >> 20} MiB", "a thousand doors take a tenth of that")
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report.unread(path, f"is not UTF-8: byte 0x{data[error.start]:02x}", "save it as UTF-8", line)
        return None
    report.texts[path] = text
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _note_syntax(str(error), text, path, report)
    except ValueError:  # int() refuses what takes long to convert
        report.unread(path, "a number has too many digits")
    except RecursionError:
        report.unread(path, "lists or tables are nested too deeply")
    return None


def _note_syntax(message: str, text: str, path: Path, report: _Report) -> None:
    line: int | None = None
    if match := _SYNTAX.fullmatch(message):
        column = f" (column {match[3]})" if match[3] else " (at the end)"
        line = int(match[2]) if match[2] else text.count("\n") + 1
        message = match[1] + column
    report.unread(path, _short(message), 'in TOML, text stands in quotes ("22/tcp") and lists in brackets', line)


# ---- values


class _WrongError(ValueError):
    """A value that cannot stand, in words for the operator."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


_KINDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a date or time")


def _as_text(value: object, example: str) -> str:
    if isinstance(value, str):
        return value
    raise _WrongError(f"must be text, not {_kind(value)}", f'write it in quotes, like "{example}"')


def _text(example: str) -> Callable[[object], str]:
    return lambda value: _as_text(value, example)


def _table(header: str) -> Callable[[object], dict[str, Any]]:
    def parse(value: object) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        raise _WrongError(f"must be a table, not {_kind(value)}", f"it begins with a line {header}")

    return parse


def _list(value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    hint = f"write [{json.dumps(value, ensure_ascii=False)}]" if isinstance(value, str) else ""
    raise _WrongError(f"must be a list, not {_kind(value)}", hint)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _WrongError(f"must be true or false, not {_kind(value)}", "without quotes")


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _WrongError(f"must be a whole number, not {_kind(value)}", f"{low}-{high}, without quotes")
        if not low <= value <= high:
            raise _WrongError(f"{value} is out of range ({low}-{high})")
        return value

    return parse


def parse_duration(text: str) -> float:
    """nft's notation (`30s`, `1h30m`, `2d`, `500ms`) in seconds; raises ValueError in words for the operator."""
    match = _DURATION.fullmatch(text)
    if match is None:
        bare = text.isascii() and text.isdigit()
        hint = f'write "{text}s"' if bare else 'write it as nft does: "30s", "1h30m", "2d", "500ms"'
        raise _WrongError(f"{text!r} has no unit" if bare else f"{text!r} is no duration", hint)
    return sum(int(count or 0) * unit for count, unit in zip(match.groups(), _UNITS, strict=True))


def _duration(low: str, high: str) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if isinstance(value, int) and not isinstance(value, bool):
            raise _WrongError(f"{value} has no unit", f'write "{value}s"')
        text = _as_text(value, "30s")
        seconds = parse_duration(text)
        if not parse_duration(low) <= seconds <= parse_duration(high):
            raise _WrongError(f"{text} is out of range ({low}-{high})")
        return seconds

    return parse


def _service(value: object) -> Service:
    if isinstance(value, int) and not isinstance(value, bool):
        raise _WrongError(f"{value} has no protocol", f'write "{value}/tcp" or "{value}/udp"')
    return Service.parse(_as_text(value, "22/tcp"))


def _tcp_flags(value: object) -> TcpFlags:
    return TcpFlags.parse(_as_text(value, "syn,!ack"))


def _set_name(value: object) -> SetName:
    text = _as_text(value, "inet filter allowed4")
    words = text.split()
    if len(words) != 3 or words[0] not in _FAMILIES:
        raise _WrongError(
            f"{text!r} is no set", f'write family ({", ".join(_FAMILIES)}), table and name: "inet filter allowed4"'
        )
    for word in words[1:]:
        if not _NFT_NAME.fullmatch(word):
            raise _WrongError(
                f"{word!r} is no name that nft takes", "letters, digits and _ . / -, the first a letter, _ or ."
            )
    return SetName(*words)


def _network(value: object) -> Network:
    text = _as_text(value, "192.0.2.0/24")
    if "%" in text:
        raise _WrongError(f"{text!r} has a zone", "a packet's source has none: leave out what begins with %")
    try:
        network = ip_network(text, strict=False)
        address = ip_address(text.partition("/")[0])
    except ValueError:
        example = 'write "192.0.2.0/24", "2001:db8::/32" or a single address'
        raise _WrongError(f"{text!r} is no IP network", example) from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped and network.prefixlen >= 96:
        meant = ip_network(f"{address.ipv4_mapped}/{network.prefixlen - 96}", strict=False)
        raise _WrongError(f"{text} is IPv4 written as IPv6", f'write "{meant}"')
    if address != network.network_address:
        raise _WrongError(f"{text} has bits set behind its prefix", f'write "{network}"')
    return network


def _port_range(value: object) -> PortRange:
    text = _as_text(value, "6000-6010/tcp")
    ports, _, protocol = text.partition("/")
    if protocol not in PROTOCOLS:
        raise _WrongError(f"{text!r} has no protocol", 'write "5353/udp" or "6000-6010/tcp"')
    low, dash, high = ports.partition("-")
    first = parse_port(low, text)
    last = parse_port(high, text) if dash else first
    if first > last:
        raise _WrongError(f"{text} runs backwards", f'write "{last}-{first}/{protocol}"')
    return PortRange(PROTOCOLS[protocol], first, last)


def _source(value: object) -> str:
    if value != "nflog":
        raise _WrongError("nflog is the only source there is", 'write "nflog", or leave it out')
    return "nflog"


def _absolute(value: object) -> Path:
    text = _as_text(value, "/run/logknock")
    if not text.startswith("/") or not text.isprintable():
        raise _WrongError(f"{text!r} is no absolute path", "begin it with /")
    return Path(text)


# ---- tables


class _Table:
    """A table as it is written: keys are asked for one by one, and a key that nobody asks for is unknown."""

    def __init__(self, name: _Path, home: Path, report: _Report) -> None:
        self.name = name
        self.wrong: set[str] = set()  # keys with an error
        self._home = home
        self._report = report
        self._written: dict[str, tuple[Path, object]] = {}
        self._known: list[str] = []

    def add(self, file: Path, data: dict[str, Any]) -> None:
        """Take in what a file says; what it says again replaces what was there."""
        self._written.update((key, (file, value)) for key, value in data.items())

    def has(self, key: str) -> bool:
        return key in self._written

    def read(self, key: str, parse: Callable[[object], _T], default: _T) -> _T:
        """The key's value; the default where it is not written or wrong."""
        self._known.append(key)
        if key not in self._written:
            return default
        value = self._try(key, parse, self._written[key][1])
        return default if value is None else value

    def read_list(
        self, key: str, parse: Callable[[object], _T], *, repeats: bool = True, most: int = MAX_BYTES
    ) -> tuple[_T, ...]:
        """The key's elements, without the wrong ones; `repeats` says whether one may stand there twice."""
        elements: list[Any] = self.read(key, _list, [])
        if len(elements) > most:
            self.error(key, f"has {len(elements)} elements, and {most} are the most")
        values: dict[int, _T] = {}
        seen: set[_T] = set()
        for at, element in enumerate(elements):
            value = self._try(key, parse, element, at)
            if value is None:
                continue
            if value in seen and not repeats:
                self.error(key, f"{value} is named twice", item=at)
            seen.add(value)
            values[at] = value
        return tuple(values.values())

    def finish(self) -> None:
        """Note the keys that nobody asked for."""
        for key in self._written:
            if key not in self._known:
                alike = get_close_matches(key, self._known, n=1)
                hint = f"did you mean {alike[0]}?" if alike else f"known here: {', '.join(self._known)}"
                self.error(key, "unknown key", hint)

    def error(self, key: str, message: str, hint: str = "", *, item: int | None = None) -> None:
        """Note an error at the key, at its element `item`, or at the table itself where the key is empty."""
        self.wrong.add(key)
        self._report.errors.append(self._note(key, message, hint, item))

    def warn(self, key: str, message: str, hint: str, *, item: int | None = None) -> None:
        """Note a warning there."""
        self._report.warnings.append(self._note(key, message, hint, item))

    def _try(self, key: str, parse: Callable[[object], _T], value: object, item: int | None = None) -> _T | None:
        try:
            return parse(value)
        except ValueError as error:
            self.error(key, str(error), error.hint if isinstance(error, _WrongError) else "", item=item)
            return None

    def _note(self, key: str, message: str, hint: str, item: int | None) -> _Note:
        file = self._written[key][0] if key in self._written else self._home
        path = (*self.name, *((key,) if key else ()), *(() if item is None else (item,)))
        return _Note(file, path, _short(message), _short(hint))


def _sort_in(files: list[tuple[Path, dict[str, Any]]], merged: dict[str, _Table], report: _Report) -> list[_Table]:
    """Fill the tables that files share, and give back a table for each door; a door has all its keys in one file."""
    tables: list[_Table] = []
    home: dict[str, Path] = {}
    for file, data in files:
        top = _Table((), file, report)
        top.add(file, data)
        for name, table in merged.items():
            table.add(file, top.read(name, _table(f"[{name}]"), {}))
        doors = _Table(("doors",), file, report)
        written: dict[str, Any] = top.read("doors", _table("[doors.NAME]"), {})
        doors.add(file, written)
        for name in written:
            table = _Table(("doors", name), file, report)
            table.add(file, doors.read(name, _table("[doors.NAME]"), {}))
            if name in doors.wrong:
                continue
            if name in home:
                doors.error(name, f"the same door is in {home[name]} too", "a door has all its keys in one file")
            home.setdefault(name, file)
            tables.append(table)
        top.finish()
    return tables


_DOOR = Door("", ())  # for its defaults
_FIREWALL = Firewall()


def _door(table: _Table) -> Door:
    door = Door(
        name=str(table.name[-1]),
        sequence=table.read_list("sequence", _service, most=MAX_SEQUENCE),
        seq_timeout=table.read("seq_timeout", _duration("1s", "1h"), _DOOR.seq_timeout),
        tcp_flags=table.read("tcp_flags", _tcp_flags, _DOOR.tcp_flags),
        opens=table.read_list("opens", _service, repeats=False),
        sets=table.read_list("sets", _set_name, repeats=False),
        closes=table.read_list("closes", _text("ssh"), repeats=False),
        timeout=table.read("timeout", _duration("1s", "365d"), _DOOR.timeout),
        guard=table.read("guard", _switch, _DOOR.guard),
    )
    _check_door(door, table)
    return door


def _check_door(door: Door, table: _Table) -> None:
    """What a door's own table shows of it."""
    if not _DOOR_NAME.fullmatch(door.name):
        table.error(
            "", "this is no name for a door", "up to 63 letters, digits and . _ -, the first a letter or a digit"
        )
    if not table.has("sequence"):
        table.error("sequence", "is missing", 'sequence = ["7000/tcp", "8000/tcp", "9000/udp"]')
    elif not door.sequence and "sequence" not in table.wrong:
        table.error("sequence", "has no knock", "three knocks are a good beginning")
    if door.name in door.closes:
        table.error("closes", "a door cannot close itself", "its timeout does that")
    if table.wrong.isdisjoint(("opens", "sets", "closes", "guard")):
        if not (door.opens or door.sets or door.closes):
            table.error("", "this door does nothing", 'opens = ["22/tcp"], or sets, or closes')
        elif door.opens and not door.guard and not door.sets:
            hint = "leave guard out, or name the sets that your own rules look into"
            table.error("opens", "guard is false and there are no sets: nothing is opened", hint)
    if door.timeout > _DAY:
        message = "over a day: by then the address may be somebody else's"
        table.warn("timeout", message, "it limits new connections only, established ones live on")


def _firewall(table: _Table) -> Firewall:
    trusted = table.read_list("trusted", _network)
    for at, network in enumerate(trusted):
        if not network.prefixlen:
            table.warn("trusted", f"{network} is everybody: nothing is closed", "name the networks", item=at)
    # nft refuses a set whose networks overlap
    v4 = collapse_addresses(net for net in trusted if isinstance(net, IPv4Network))
    v6 = collapse_addresses(net for net in trusted if isinstance(net, IPv6Network))
    return Firewall(
        trusted=(*v4, *v6),
        traps=table.read("traps", _whole(0, MAX_TRAPS), _FIREWALL.traps),
        exclude=table.read_list("exclude", _port_range),
        rate=table.read("rate", _whole(1, MAX_RATE), _FIREWALL.rate),
        burst=table.read("burst", _whole(1, MAX_RATE), _FIREWALL.burst),
    )


# ---- doors beside doors

_Doors = list[tuple[Door, _Table]]


def _check_together(path: Path, doors: _Doors, report: _Report) -> None:
    """What only all doors together show."""
    if not doors and not any(note.path[:1] == ("doors",) for note in report.errors):
        hint = f"a minimal one, at the head of the file: {_MINIMAL}"
        report.errors.append(_Note(path, ("doors",), "there is no door", hint))
    names = {door.name for door, _ in doors}
    shown = ", ".join([*islice(sorted(names), _MAX_NAMED), *(["..."] if len(names) > _MAX_NAMED else [])])
    guards = {service: door.name for door, _ in reversed(doors) if door.guard for service in door.opens}
    for door, table in doors:
        for service in dict.fromkeys(door.sequence):
            if service in guards:
                message = f"{service} is guarded, since door {guards[service]} opens it: a packet to it is no knock"
                table.error("sequence", message, "knock on a port that no door opens")
        for name in door.closes:
            if name not in names:
                table.error("closes", f"there is no door {name!r}", f"the doors are: {shown}")


def _warn_of_scans(traps: int, firewall: _Table, doors: _Doors) -> None:
    """What a port scan can open: with traps, sequences of one or two knocks; without, every sequence sometimes (T3)."""
    lengths = [len(door.sequence) for door, _ in doors if len(door.sequence) > 1]
    if lengths and not traps:
        fewest = min(lengths)
        message = f"without traps, a random scan of all ports opens {fewest} knocks once in {factorial(fewest):,} times"
        hint = "leave it out (1024), unless your own rules log all that they drop"
        firewall.warn("traps", message, hint)
    for door, table in doors:
        ports = [service.port for service in door.sequence]
        ascending = ports == sorted(ports) and len(set(door.sequence)) == len(ports)
        if len(ports) == 1:
            table.warn("sequence", "a single knock: any port scan opens the door", "three knocks or more")
        elif len(ports) == 2:
            message = f"two knocks: a random port scan opens the door about once in {max(traps, 2):,} times"
            table.warn("sequence", message, "three knocks or more")
        if len(ports) > 1 and len(set(ports)) == 1:
            message = f"all knocks are on port {ports[0]}: a client that just tries again opens the door"
            table.warn("sequence", message, "knock on different ports")
        elif len(ports) > 1 and ascending and not traps:
            message = "ascending, and there are no traps: a port scan from low to high opens the door every time"
            table.warn("sequence", message, "knock in another order, or leave traps at 1024")


_Signature = tuple[TcpFlags | None, str]


def _warn_of_overlaps(doors: _Doors) -> None:
    """Sequences that are the same as another's, or part of it: one who knocks the other's completes both."""
    first: dict[_Signature, tuple[Door, _Table]] = {}
    for door, table in doors:
        signature = _signature(door.tcp_flags, "".join(map(_letter, door.sequence)))
        same = first.setdefault(signature, (door, table))[0]
        if same is not door:
            message = f"the same as door {same.name}'s: whoever knocks it completes both"
            table.warn("sequence", message, "right if both are meant to open together")
    lengths = {len(knocks) for _, knocks in first}
    holders: dict[_Signature, list[str]] = defaultdict(list)
    for (flags, knocks), (door, _) in first.items():
        for part in _parts(flags, knocks, lengths) & first.keys():
            begins = "begins" if knocks.startswith(part[1]) else "is part of"
            holders[part].append(f"{begins} door {door.name}'s")
    for part, where in holders.items():
        more = f" (and {len(where) - 1} others)" if len(where) > 1 else ""
        message = f"{where[0]}{more}: whoever knocks that completes this one too"
        first[part][1].warn("sequence", message, "right if it is meant to happen; else begin it differently")


def _letter(service: Service) -> str:
    """A service as one character: parts of a sequence are then substrings, which are quick to cut and to look up."""
    return chr(service.port + (_UDP_LETTERS if service.proto == UDP else 0))


_UDP_LETTERS = 0x10000


def _signature(flags: TcpFlags | None, knocks: str) -> _Signature:
    """What makes two sequences the same; TCP flags say nothing of knocks over UDP."""
    return (None if min(knocks) >= chr(_UDP_LETTERS) else flags, knocks)


def _parts(flags: TcpFlags | None, knocks: str, lengths: set[int]) -> set[_Signature]:
    """The proper parts of a sequence that are as long as some door's whole sequence."""
    return {
        _signature(flags, knocks[at : at + length])
        for length in lengths
        if length < len(knocks)
        for at in range(len(knocks) - length + 1)
    }
