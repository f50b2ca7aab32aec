"""Reads the configuration's files, and collects what is wrong with them: each problem with its file, line and key.

Rule 1: the files hold the sequences: what others can read or write is refused, and what is checked is what was opened.
Rule 2: a file may say anything: it ends in tables or in an error noted, and in no other exception.
Rule 3: what a value means is not known here.
"""

import json
import os
import re
import stat
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from .errors import BAD_CONFIG, NO_PERMISSION, LogknockError, printable
from .toml_lines import KeyPath, find_lines

# A thousand doors take about 100 kB. More than this is a log, a database or a device named by mistake.
MAX_BYTES = 1 << 20

# What a hint shows to one who has no configuration yet.
MINIMAL = 'doors.ssh = {sequence = ["7000/tcp", "9000/udp", "8000/tcp"], opens = ["22/tcp"]}'

AS_OWNER = "run this as root, or as the file's owner"

# An error quotes what it is about; a value longer than this is not shown whole.
_MAX_SHOWN = 300

# What of the directory of a configuration is read behind it: parts of it, and a client's secret each.
CLIENTS = "clients"
BESIDE = ("conf.d", CLIENTS)

# What the unit reads, or its instances in directories below, and where systemd puts what is secret.
_CONFIG = Path("/etc/logknock/logknock.toml")
_CREDENTIALS = Path("/run/credentials")

# Never waits for the other end of a FIFO, never becomes a terminal's session.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_WRITE = {stat.S_IWGRP: "written by its group", stat.S_IWOTH: "written by others"}
_READ_OR_WRITE = {stat.S_IROTH: "read by others", **_WRITE}

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SYNTAX = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)

# How tomllib begins where a table or a key stands in two places of a file; all else is a matter of writing.
_TWICE = ("Cannot declare", "Cannot overwrite", "Cannot mutate", "Cannot redefine", "Duplicate")


# ---- what was found, and on which line


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


class Note(NamedTuple):
    """A problem whose line is not looked up yet."""

    file: Path
    path: KeyPath
    message: str
    hint: str
    line: int | None = None


class Report:
    """What was found so far. Lines are looked up at the end, in the files that need it."""

    def __init__(
        self, option: str = "-c", minimal: str = MINIMAL, denied: Callable[[Path], str] = lambda path: AS_OWNER
    ) -> None:
        self.option = option  # what names another file
        self.minimal = minimal  # what a hint shows to one who has no file yet
        self.denied = denied  # what to do where a file may not be read
        self.texts: dict[Path, str] = {}  # what each file says, in the order of reading
        self.errors: list[Note] = []
        self.warnings: list[Note] = []
        self.exit_code = BAD_CONFIG
        self.complete = True  # False: something could not be read, and what seems missing may be there

    def unread(self, file: Path, message: str, hint: str = "", line: int | None = None) -> None:
        """Note why nothing of the file counts."""
        self.complete = False
        self.errors.append(Note(file, (), message, hint, line))

    def located(self, notes: list[Note]) -> tuple[Problem, ...]:
        """The notes with their lines, from the top of the first file to the end of the last."""
        wanted: dict[Path, set[KeyPath]] = defaultdict(set)
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


def short(text: str) -> str:
    """The text, or its beginning where it is too long to be shown."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _key_text(path: KeyPath) -> str:
    """`doors.ssh.sequence`, quoted where TOML would; which element of a list it is, the message says."""
    keys = (key for key in path if isinstance(key, str))
    return ".".join(key if _BARE_KEY.fullmatch(key) else json.dumps(short(key), ensure_ascii=False) for key in keys)


def header(*keys: str) -> str:
    """The line that a table begins with."""
    return f"[{_key_text(keys)}]"


# ---- files


def read_files(path: Path, report: Report, credentials: Path | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """What the file and its neighbours conf.d/*.toml say, in the order in which they count.

    Then clients/*.toml beside it, and what is in `credentials`.
    """
    files = [(path, read_file(path, report))]
    if path not in report.texts:  # not even opened: what is beside it does not matter
        return []
    for folder in BESIDE:
        files += _read_folder(path.parent / folder, report, of_service=False)
    if credentials is not None:
        files += _read_folder(credentials, report, of_service=True)
    return [(file, data) for file, data in files if data is not None]


def credentials_folder(path: Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where systemd has put the credentials of the service whose configuration it is (systemd.exec(5)); None: nowhere.

    The service itself is told. Root, who loads rules beside it, looks where systemd puts them: what is in the
    credentials would be left unguarded else.
    """
    if name := environment.get("CREDENTIALS_DIRECTORY", ""):
        return Path(name)
    if os.geteuid() or path.name != _CONFIG.name:
        return None
    folder = path.absolute().parent
    if folder == _CONFIG.parent:
        return _CREDENTIALS / "logknock.service"
    return _CREDENTIALS / f"logknock@{folder.name}.service" if folder.parent == _CONFIG.parent else None


def _read_folder(folder: Path, report: Report, *, of_service: bool) -> list[tuple[Path, dict[str, Any] | None]]:
    """What the files in it say, by name; `of_service`: all of it may belong to a user of its own, for root to read."""
    files: list[tuple[Path, dict[str, Any] | None]] = []
    try:
        with _opened(folder, os.O_DIRECTORY) as descriptor:
            status = os.fstat(descriptor)
            owner = status.st_uid if of_service and os.geteuid() == 0 else os.geteuid()
            if _is_ours(status, folder, report, owner):
                for name in sorted(os.listdir(descriptor)):
                    if name.endswith(".toml") and not name.startswith("."):
                        files.append((folder / name, read_file(folder / name, report, descriptor, owner)))
    except FileNotFoundError:
        pass  # it need not exist
    except OSError as error:
        _cannot_read(folder, error, report)
    return files


@contextmanager
def _opened(path: Path | str, flags: int = 0, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _OPEN | flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(path: Path, report: Report, folder: int | None = None, owner: int | None = None) -> dict[str, Any] | None:
    """What the file says (found by its name in `folder`, where that is given); None, and a note, if nothing counts.

    owner: to whom it may belong besides root; None: to the process's user.
    """
    try:
        with _opened(path if folder is None else path.name, folder=folder) as descriptor:
            report.texts[path] = ""
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
                report.unread(path, f"is {kind}", "the configuration is a file of TOML")
                return None
            if not _is_ours(status, path, report, os.geteuid() if owner is None else owner):
                return None
            with open(descriptor, "rb", closefd=False) as stream:
                data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        _cannot_read(path, error, report)
        return None
    return _parsed(data, path, report)


def _cannot_read(path: Path, error: OSError, report: Report) -> None:
    if isinstance(error, FileNotFoundError):
        hint = f"write it, or name another file with {report.option} FILE; a minimal one: {report.minimal}"
        report.unread(path, "does not exist", hint)
    elif isinstance(error, PermissionError):
        report.exit_code = NO_PERMISSION
        report.unread(path, "cannot be read: permission denied", report.denied(path))
    else:
        hint = f"name a file that can be read with {report.option} FILE"
        report.unread(path, f"cannot be read: {error.strerror}", hint)


def _is_ours(status: os.stat_result, path: Path, report: Report, owner: int) -> bool:
    """Note who else than root and the owner has a hand in it.

    False where its words may be theirs: what others merely read is read on.
    """
    folder = stat.S_ISDIR(status.st_mode)
    refused = _WRITE if folder else _READ_OR_WRITE
    if found := [words for bit, words in refused.items() if status.st_mode & bit]:
        change = f"chmod {'go-w' if folder else 'g-w,o-rwx'} {quote(str(path))}"
        report.errors.append(Note(path, (), f"can be {' and '.join(found)}, and it holds what to knock", change))
    foreign = status.st_uid not in (0, owner)
    if foreign:
        message = f"belongs to another user (uid {status.st_uid})"
        report.errors.append(Note(path, (), message, f"chown {os.geteuid() or 'root'} {quote(str(path))}"))
    if foreign or status.st_mode & sum(_WRITE):
        report.complete = False
        return False
    return True


def _parsed(data: bytes, path: Path, report: Report) -> dict[str, Any] | None:
    if len(data) > MAX_BYTES:
        report.unread(path, f"is larger than {MAX_BYTES >> 20} MiB", "a thousand tables take a tenth of that")
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


def _note_syntax(message: str, text: str, path: Path, report: Report) -> None:
    line: int | None = None
    if match := _SYNTAX.fullmatch(message):
        column = f" (column {match[3]})" if match[3] else " (at the end)"
        line = int(match[2]) if match[2] else text.count("\n") + 1
        message = match[1] + column
    hint = 'in TOML, text stands in quotes ("22/tcp") and lists in brackets'
    if message.startswith(_TWICE):
        hint = "in TOML, a table and a key stand once in a file: make one of the two, or give one another name"
    report.unread(path, short(message), hint, line)
