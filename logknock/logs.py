"""Logs that are read from their beginning to their end: files, packed or not, pipes, journals.

Rule 1: a log is opened before any is read, so that what cannot be read is one error and not half an answer. Rule 2: a
log that is damaged ends there, which is counted, and what was read of it stands. Rule 3: memory has a bound a log,
whatever is in it.
"""

import bz2
import gzip
import io
import lzma
import math
import os
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from .errors import NO_PERMISSION, UNAVAILABLE, USAGE, SourceError, printable
from .lines import lines
from .packet import Packet
from .records import Grammar
from .skipped import Counts, Skipped
from .stamps import Dates

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Logs at a time; each is an open file. A year of daily rotated files fits.
MAX_LOGS = 400

_NAME_ONE = "name a log file, a journal, or - for standard input"

_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}


# What unpacking xz may take in bytes: the file says how much it needs, up to 4 GiB. `xz -9`, which takes most of what
# is usual, needs 65 MiB (xz(1)). gzip and bzip2 need 4 MB at most.
MAX_UNPACKING = 80 << 20

_PIECE = 65_536  # of what is packed, read at a time


class Log(Protocol):
    """A log, opened."""

    name: str
    size: int  # bytes; 0 where that is not known

    def done(self) -> int:
        """How many of them were read."""

    def packets(self, grammar: Grammar, counts: Counts) -> Iterator[Packet | None]:
        """A packet or None for each record."""


class _Text:
    """Lines: a file, or what comes through a pipe."""

    def __init__(self, name: str, raw: BinaryIO, stack: ExitStack) -> None:
        self.name = name
        self._raw = raw
        status = os.fstat(raw.fileno())
        regular = stat.S_ISREG(status.st_mode)
        self.size = status.st_size if regular else 0
        self._stream = _Holes(_unpacked(raw, stack))
        self._dates = Dates(status.st_mtime if regular else time.time(), live=False)

    def done(self) -> int:
        """How many bytes of the file were read."""
        return self._raw.tell() if self.size else 0

    def packets(self, grammar: Grammar, counts: Counts) -> Iterator[Packet | None]:
        """A packet or None for each line; one that cannot be read is the last."""
        try:
            for line in lines(cast(BinaryIO, self._stream)):  # which needs no more than readline()
                packet = grammar.from_line(line, self._dates)
                if packet is None:
                    counts.skip_line(line)
                yield packet
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            counts.problem(f"{printable(self.name)}: {_damage(error)}: what comes after that is missing")
        for _ in range(self._stream.count):
            counts.skipped[Skipped.HOLE] += 1
            yield None


class _Journal:
    """Entries of a journal."""

    size = 0

    def __init__(self, name: str, path: Path | None, since: float) -> None:
        self.name = name
        self._path = path
        self._since = since if since > -math.inf else None

    def done(self) -> int:
        """Not known."""
        return 0

    def packets(self, grammar: Grammar, counts: Counts) -> Iterator[Packet | None]:
        """A packet or None for each entry of the kernel's."""
        from .sources.journal import entries  # needs python3-systemd

        began = False
        try:
            for packet in entries(grammar, self._path, self._since):
                began = True
                if packet is None:
                    counts.skipped[Skipped.ENTRY] += 1
                yield packet
        except SourceError as error:
            if not began:
                raise
            counts.problem(f"{error.words()}: what comes after that is missing")


class _Holes:
    """A stream and how many holes there were: NULs without a line, as `lines` passes them over."""

    def __init__(self, stream: BinaryIO) -> None:
        self._readline = stream.readline
        self._inside = False
        self.count = 0

    def readline(self, size: int) -> bytes:
        """The next line, or so much of it."""
        piece = self._readline(size)
        inside = piece[:1] == b"\0" and not piece.strip(b"\0")
        self.count += inside and not self._inside
        self._inside = inside
        return piece


class _Xz(io.RawIOBase):
    """What is packed in an xz file, as lzma.LZMAFile has it, but in bounded memory."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._decoder: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Unpack so much; 0 at the end. Raises LZMAError, or EOFError where the end is missing."""
        room = memoryview(buffer).cast("B")
        piece = b""
        while not piece:
            packed = self._next()
            if self._decoder is None:
                return 0
            piece = self._decoder.decompress(packed, len(room))
        room[: len(piece)] = piece
        return len(piece)

    def _next(self) -> bytes:
        """What the decoder needs next, which is a new one for each stream, and none at the end."""
        decoder = self._decoder
        if decoder is not None and not decoder.eof:
            packed = self._packed.read(_PIECE) if decoder.needs_input else b""
            if decoder.needs_input and not packed:
                raise EOFError("its end is missing")
            return packed
        self._decoder = None
        packed = decoder.unused_data.lstrip(b"\0") if decoder else b""  # streams may be padded with NULs
        while not packed:
            read = self._packed.read(_PIECE)
            if not read:
                return b""
            packed = read.lstrip(b"\0")
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_UNPACKING)
        return packed


def _damage(error: Exception) -> str:
    """Why a log cannot be read on."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, lzma.LZMAError) and "Memory usage limit" in str(error):
        return f"unpacking it takes more than {MAX_UNPACKING >> 20} MiB of memory, so give it as - from `xz -dc`"
    return f"it is damaged ({error})"


def _unpacked(raw: BinaryIO, stack: ExitStack) -> BinaryIO:
    """The stream, unpacked if its first bytes say that it is packed."""
    head = raw.peek(8) if hasattr(raw, "peek") else b""
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    match kind:
        case "gzip":
            return cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw, mode="rb")))
        case "xz":
            return cast(BinaryIO, stack.enter_context(io.BufferedReader(_Xz(raw))))
        case "bzip2":
            return cast(BinaryIO, stack.enter_context(bz2.BZ2File(raw)))
    return raw


def open_all(logs: Sequence[str], journal: Path | None, since: float, stack: ExitStack) -> list[Log]:
    """Logs by what the command line calls them, for as long as the stack; raises SourceError, and then none is open.

    journal: of this host, where it is not in its usual place. since: seconds since the epoch, as far as can be told.
    """
    if len(logs) > MAX_LOGS:
        raise SourceError(f"{len(logs)} logs, and {MAX_LOGS} are the most", "cat them into standard input: -")
    if logs.count("-") > 1:
        raise SourceError("standard input is named twice", "name it once")
    with ExitStack() as opened:
        found = [_open(log, journal, since, opened) for log in logs]
        stack.enter_context(opened.pop_all())
    return found


def _open(log: str, journal: Path | None, since: float, stack: ExitStack) -> Log:
    """Raises SourceError."""
    if not log:
        raise SourceError("the name of a log is empty", _NAME_ONE, USAGE)
    if log == "-":
        return _Text("standard input", sys.stdin.buffer, stack)
    if log == "journal":
        return _Journal("the journal", journal, since)
    path = Path(log)
    try:
        if path.suffix == ".journal" or path.is_dir():
            _check_journal(path)
            return _Journal(log, path, since)
        raw = stack.enter_context(path.open("rb"))
    except OSError as error:
        raise _unreadable(log, error) from None
    mode = os.fstat(raw.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise SourceError(f"{printable(log)} is no file", _NAME_ONE)
    return _Text(log, raw, stack)


def _check_journal(path: Path) -> None:
    """Raises SourceError, or OSError."""
    if path.is_dir() and not any((*path.glob("*.journal"), *path.glob("*/*.journal"))):
        list(path.iterdir())  # says why, where it cannot be read
        hint = "name the log files in it, or a directory with *.journal files"
        raise SourceError(f"{printable(str(path))}: there is no journal in this directory", hint)
    os.stat(path)


def _unreadable(log: str, error: OSError) -> SourceError:
    message = f"{printable(log)}: {error.strerror}"
    if isinstance(error, PermissionError):
        return SourceError(message, "run this as root, or as a member of the group adm", NO_PERMISSION)
    hint = "a log that is not there under this name may be in the journal: logknock replay journal"
    return SourceError(message, hint if isinstance(error, FileNotFoundError) else "", UNAVAILABLE)
