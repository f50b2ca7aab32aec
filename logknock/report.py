"""How what happened is told: one line for each event, in knockd's words where it has some, and where lines go.

Rule 1: `line` is pure: an event in, text and fields out. Rule 2: telling never blocks the daemon and never floods
the log: what an attacker can cause at will is limited, and what was left out is counted and said.
"""

import contextlib
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple, Protocol

from .knock import Advanced, Derived, Evicted, Failed, Grant, Granted, Reason, Revoked, Service, Spent
from .packet import address_text
from .trail import Mailed, Refused, Told, mailed_words, used_words

# Lines a second about attempts (which anybody can begin); enough for every honest knocker to be followed.
ROUTINE_LINES_PER_SECOND = 100

# Of the doors that share a beginning so many get a line of their own.
_DOORS_SHOWN = 4

JOURNAL_SOCKET = "/run/systemd/journal/socket"

# Entries that wait for a journald that has no room now: in a container its socket takes ten (net.unix.max_dgram_qlen,
# which systemd raises on a machine), and a journald that is started anew takes none for a moment.
MAX_WAITING = 1_000

_PIPE_BUF = 4096  # what a pipe that is ready to be written takes whole (pipe(7))


# What kind of event a line tells of, and the message id by which the journal's catalog explains it: see
# packaging/systemd/logknock.catalog. An id is never given to another event.
MESSAGE_IDS: Mapping[str, str] = {
    "advanced": "5f48549b5a51464f9b5d5531e7ee94ef",
    "failed": "078cf87d2bca47e0ac4eb6d5e7a7f70b",
    "refused": "68ffac7a4dc54ee8b248d6f9d5923701",
    "spent": "7e61e53cdc5a4b8483ca70e35eaee33c",
    "step": "508be152bdb14c5a8d420bd51cc3c26b",
    "spa": "edfdb58dbafc4e0db9f84acea123af26",
    "spa-refused": "639fee4249bb4b0c920accb24b7fe6f4",
    "granted": "3966ed31acbe41ba9b6e1c07195c6f29",
    "revoked": "22ff2acdec654157b26febe0cbeb765d",
    "expired": "0da15cebefb84dc4aed2451e263c1384",
    "closed": "6d2ebdb2bf424ecc8f77a9a299977e0a",
    "command": "d8d37de576d7424b8e0ab8741e670425",
    "banned": "eb4659292d23440c9fd119552a1fce3c",
    "unbanned": "ae97ce3f96d64066b41ceed487523034",
    "ready": "afd9ffe8ee704b93af988c1e84093e51",
    "stopped": "5ab866b2c35d476d97f112a1f8d729f7",
    "reloaded": "dd9d3b9ede7e4afb93776af88b41e3af",
    "not-reloaded": "6223d3be7be647b288f5b6c902789924",
    "config": "1f5e26c20ed1497bb1b516098dd87bef",
    "source": "3e8970d7f8004775be1d12d27a5d2193",
    "lost": "94dda3cab5d04f0abe5e3c57e41f34e9",
    "clock": "cc27ba91682342feb6755f487fa4fccf",
    "firewall": "e066d16ce7af4e81a7b007ddcebf575a",
    "state": "2a145f8e0a19452aa96a9e22c599ac81",
    "onetime": "59d3800c7b1e441181630ed701b1cadc",
    "clients": "0acf8ac64ee44becba996382829bdadb",
    "bans": "f61191b4444c410f95ba79db5c057005",
    "control": "46815efaf18d408dbc39268de92305bb",
    "metrics": "27ac6e9245bf4215ba70544e021d6058",
    "left-out": "a13b40f494e44458b6db1d1ed3042298",
    "notice": "4c8d183f1c2f441f985c2799fa5a8814",
}


class Level(IntEnum):
    """How much a line matters: syslog's numbers (RFC 5424)."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Line(NamedTuple):
    """One line of the log, and its fields for the journal (without the LOGKNOCK_ in front): EVENT, and what it has."""

    level: Level
    text: str
    fields: Mapping[str, str]


def lines(event: Told) -> Iterable[Line]:
    """What is said of an event of the matcher: a line for each door that it concerns (knockd's habit)."""
    match event:
        case Advanced(packet, doors, stage):
            for src, door in _each(packet.src, doors):
                yield _line(Level.INFO, src, door, f"Stage {stage}", "advanced", STAGE=str(stage))
        case Refused(packet, door, words):
            src = address_text(packet.src)
            yield _line(Level.WARNING, src, door, f"not opened: {words}", "refused")
        case Failed(source, doors, stage, reason, packet):
            for src, door in _each(source, doors):
                service = Service(packet.proto, packet.dport) if packet and reason is Reason.WRONG else ""
                words = f"{reason} {service} (stage {stage})".replace("  ", " ")
                yield _line(Level.INFO, src, door, words, "failed", STAGE=str(stage), REASON=reason.value)
        case Spent(packet, code):
            src, words = address_text(packet.src), used_words(code)
            if isinstance(code, Derived):
                fields = {"CLIENT": code.client, "STEP": str(code.number)}
                yield _line(Level.INFO, src, code.door, words, "step", **fields)
            else:
                yield _line(Level.INFO, src, code.door, words, "spent", FILE=code.file)
        case Mailed(packet, door, client, None, words):
            text = mailed_words(client, None, words)
            yield _line(Level.NOTICE, address_text(packet.src), door, text, "spa", CLIENT=client)
        case Mailed(packet, door, client, why, words):
            level, whose = (Level.WARNING, {"CLIENT": client}) if client else (Level.INFO, {})
            text = mailed_words(client, why, words)
            yield _line(level, address_text(packet.src), door, text, "spa-refused", REASON=str(why), **whose)
        case Granted(_, grant):
            yield _line(Level.NOTICE, address_text(grant.src), grant.door, "OPEN SESAME", "granted")
        case Revoked(packet, door, by):
            src = address_text(packet.src)
            yield _line(Level.NOTICE, src, by, f"OPEN SESAME, closes {door}", "revoked", CLOSES=door)


def closed(grant: Grant) -> Line:
    """A grant has ended by itself: knockd's "command timeout", which there runs the command that closes."""
    return _line(Level.NOTICE, address_text(grant.src), grant.door, "command timeout, closed", "expired")


def by_hand(door: str, src: bytes, by: str, seconds: float, reason: str) -> Line:
    """Somebody opened a door without a knock, for so many seconds; reason: why it is not open, if so."""
    if reason:
        return _line(Level.WARNING, address_text(src), door, f"not opened by {by}: {reason}", "refused", BY=by)
    words = f"opened by {by} for {seconds:.15g} s"
    return _line(Level.NOTICE, address_text(src), door, words, "granted", BY=by, TIMEOUT=f"{seconds:.15g}")


def revoked(grant: Grant, by: str) -> Line:
    """A grant was ended by the sequence of the door `by`, or by hand, by somebody."""
    return _line(Level.NOTICE, address_text(grant.src), grant.door, f"closed by {by}", "closed", BY=by)


def ban_made(whom: str, seconds: float, why: str) -> Line:
    """Somebody is banned; whom: an address, or an IPv6 prefix."""
    return _ban_line(whom, f"banned for {seconds:g} s: {why}", "banned", TIMEOUT=f"{seconds:g}", REASON=why)


def ban_lifted(whom: str, why: str) -> Line:
    """A ban was lifted before its end."""
    return _ban_line(whom, f"no longer banned: {why}", "unbanned", REASON=why)


def _ban_line(whom: str, words: str, event: str, **fields: str) -> Line:
    return Line(Level.NOTICE, f"{whom}: {words}", {"SRC": whom, "EVENT": event, **fields})


def command(door: str, src: bytes, text: str, *, bad: bool) -> Line:
    """About a command that a door runs."""
    return _line(Level.WARNING if bad else Level.INFO, address_text(src), door, text, "command")


def notice(text: str, level: Level = Level.NOTICE, **fields: str) -> Line:
    """Something about the daemon itself; its field EVENT is one of MESSAGE_IDS."""
    return Line(level, text, {"EVENT": "left-out" if "LEFT_OUT" in fields else "notice", **fields})


def _each(src: bytes, doors: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    text = address_text(src)
    for door in doors[:_DOORS_SHOWN]:
        yield text, door
    if len(doors) > _DOORS_SHOWN:
        yield text, f"({len(doors) - _DOORS_SHOWN} more doors)"


def _line(level: Level, src: str, door: str, words: str, event: str, **fields: str) -> Line:
    where = {"DOOR": door} if door else {}
    return Line(level, f"{src}: {door}{door and ': '}{words}", {"SRC": src, **where, "EVENT": event, **fields})


class Log(Protocol):
    """Where lines go."""

    def write(self, line: Line) -> None:
        """Write the line, or drop it where that would block."""


class StderrLog:
    """Plain lines on a descriptor, standard error's by default. A reader that does not read loses lines, not us."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLOUT)
        self.dropped = 0

    def write(self, line: Line) -> None:
        """Write the line if that cannot block."""
        prefix = {Level.ERROR: "error: ", Level.WARNING: "warning: "}.get(line.level, "")
        text = f"{prefix}{line.text}".encode(errors="replace")[: _PIPE_BUF - 1] + b"\n"
        writable = any(mask & select.POLLOUT for _, mask in self._ready.poll(0))
        if not writable:
            self.dropped += 1
            return
        with contextlib.suppress(OSError):  # the terminal or the reader is gone: there is nobody left to tell
            os.write(self._descriptor, text)


class JournalLog:
    """Structured entries in systemd's journal: LOGKNOCK_DOOR=, LOGKNOCK_SRC= and so on beside the message.

    Its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), on a socket that does not block: systemd-python's
    `journal.send` waits for a journald that does not read, and doors would wait with it.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._waiting: deque[bytes] = deque()
        self.dropped = 0

    def write(self, line: Line) -> None:
        """Send the entry if that cannot block, or keep it for settle()."""
        fields = {f"LOGKNOCK_{name}": value for name, value in line.fields.items()}
        fields |= {"MESSAGE": line.text, "PRIORITY": str(int(line.level)), "SYSLOG_IDENTIFIER": "logknock"}
        fields["MESSAGE_ID"] = MESSAGE_IDS.get(line.fields.get("EVENT", ""), MESSAGE_IDS["notice"])
        entry = b"".join(_journal_field(name, value.encode(errors="replace")) for name, value in fields.items())
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self._waiting.append(entry)
        self.settle()

    def settle(self) -> None:
        """Send what waits, as far as that cannot block."""
        while self._waiting:
            try:
                self._socket.sendto(self._waiting[0], JOURNAL_SOCKET)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    return  # journald is full, or gone: it comes back
                self.dropped += 1
            self._waiting.popleft()


def _journal_field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def choose_log(environment: Mapping[str, str] = os.environ) -> Log:
    """The journal where standard error is one (systemd sets JOURNAL_STREAM, systemd.exec(5)), else plain lines."""
    try:
        status = os.fstat(2)
        if environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
            return JournalLog()
    except OSError:
        pass  # standard error is closed
    return StderrLog()


class _Both(NamedTuple):
    """Two logs."""

    first: Log
    second: Log

    def write(self, line: Line) -> None:
        """Write the line to both."""
        self.first.write(line)
        self.second.write(line)


class Reporter:
    """Writes lines, those about attempts within a limit."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._journal = log if isinstance(log, JournalLog) else None
        self._routine_left = ROUTINE_LINES_PER_SECOND
        self._left_out = 0

    def also(self, log: Log) -> None:
        """Write each line there too."""
        self._log = _Both(self._log, log)

    def tell(self, told: Iterable[Told]) -> None:
        """Tell what became of a packet, unless too much of its kind is being said."""
        for event in told:
            # A packet that was overheard can be sent again and again, so what comes of that is not told without end.
            routine = isinstance(event, (Advanced, Failed)) or (isinstance(event, Mailed) and event.reason is not None)
            if routine and self._routine_left <= 0:
                self._left_out += 1
            elif not isinstance(event, Evicted):
                for line in lines(event):
                    self._routine_left -= routine
                    self._log.write(line)
            elif self._routine_left <= 0:
                self._left_out += event.ended
            else:
                self.tell(event.failures())

    def write(self, line: Line) -> None:
        """Tell something that no attacker can cause at will."""
        self._log.write(line)

    def settle(self) -> None:
        """A second has passed: say what was left out of it, and begin a new one."""
        if self._journal is not None:
            self._journal.settle()
            if self._journal.dropped:
                dropped, self._journal.dropped = self._journal.dropped, 0
                self._log.write(notice(f"{dropped} lines lost: the journal had no room", LEFT_OUT=str(dropped)))
        if self._left_out:
            self._log.write(
                notice(f"{self._left_out} more lines about attempts left out", LEFT_OUT=str(self._left_out))
            )
        self._routine_left = ROUTINE_LINES_PER_SECOND
        self._left_out = 0
