"""Packets from standard input, where another program writes a log: `journalctl -kf -o json | logknock run`.

Rule 1: what a line says is the grammar's; here is only which bytes are lines, each once and in order. Rule 2: nothing
blocks, one read is about 2 ms of work, and nobody else's descriptor is changed. Rule 3: the end is told once, and is no
error: doors that are open close on time.
"""

import errno
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..errors import UNAVAILABLE, SourceError
from ..lines import CHUNK, Reading, Splitter, Told
from ..packet import Packet
from ..records import Grammar
from ..stamps import MAX_FALL, Dates

# How often to look, in seconds, at what nobody can wait for: it is there already, and read to its end at once.
_POLL = 0.02

Receive = Callable[[Packet], None]


class Pipe:
    """Standard input: a pipe, a FIFO, a socket, a terminal, or a regular file, which is read to its end."""

    def __init__(self, grammar: Grammar, descriptor: int = 0) -> None:
        """Raises SourceError if nothing can be read from it."""
        self.name = "standard input"
        self.grammar = grammar
        self.lost = 0
        self._told = Told(self.name)
        self._lines = Splitter(self._told)
        self._reading = Reading()
        self._ended = False
        try:
            self._descriptor, status = _take_over(descriptor)
        except OSError as error:
            hint = "start it behind a pipe: journalctl -kf -o json | logknock run"
            raise SourceError(f"{self.name}: cannot be read: {error.strerror}", hint, UNAVAILABLE) from error
        # A regular file is no live log: a record without a date is as old as the one before it (T29).
        self._live = not stat.S_ISREG(status.st_mode)
        # What `journalctl -f` and `tail -f` begin with are the last lines of the log: too old to be knocks (T29).
        # A stamp that rsyslog makes may be MAX_FALL too old: a knock just after the start must count all the same.
        self._since = time.time() - MAX_FALL
        self._dates = Dates(status.st_mtime, live=self._live)
        # An epoll within the one of whoever waits, to which the end, for ever readable, can be made to look quiet.
        self._poll = select.epoll()
        try:
            self._poll.register(self._descriptor, select.EPOLLIN)
            self._pollable = True
        except PermissionError:  # a regular file, /dev/null
            self._pollable = False

    @property
    def records(self) -> int:
        """How many lines have been read."""
        return self._reading.records

    @property
    def ignored(self) -> int:
        """How many of them held no packet that could be a knock, as most lines of a busy log."""
        return self._reading.ignored

    @property
    def interval(self) -> float:
        """How often to look, in seconds, at what nobody can wait for, until it ends."""
        return 0.0 if self._pollable or self._ended else _POLL

    def fileno(self) -> int:
        """The descriptor to wait for; -1 for a regular file."""
        return self._poll.fileno() if self._pollable else -1

    def watch(self, wake: Callable[[], None]) -> None:
        """The descriptor tells."""

    def read(self, now: float, receive: Receive) -> bool:
        """Hand over the packets of what has come; whether more waits. `now` is in seconds since the epoch."""
        if self._live:
            self._dates.reference = now
            self._dates.uptime = time.monotonic()
            self._since = min(self._since, now)  # a clock that is set back does not make it deaf
        more = True
        if not self._reading:
            more = self._fill()
        self._reading.hand_over(self.grammar, self._dates, partial(self._hand_over_new, receive))
        return more

    def _hand_over_new(self, receive: Receive, packet: Packet) -> None:
        if not self._live or packet.time >= self._since:
            receive(packet)

    def settle(self) -> tuple[str, ...]:
        """What there is to tell."""
        return tuple(self._told.due(time.monotonic()))

    def close(self) -> None:
        """Let go of our own descriptors; whoever gave us standard input keeps it."""
        if self._descriptor >= 0:
            self._poll.close()
            os.close(self._descriptor)
        self._descriptor = -1
        self._ended = True

    def _fill(self) -> bool:
        """Read some more; whether there may be more than that."""
        if self._ended:
            return False
        try:
            # Asked first, since what is not ours alone cannot be made non-blocking for us alone.
            if self._pollable and not self._poll.poll(0):
                return False
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            self._end(f"cannot be read: {error.strerror}")
            return False
        if not data:
            self._end("has ended")
            return False
        self._reading.put(self._lines.feed(data))
        return True

    def _end(self, words: str) -> None:
        """Half a line at the end is not read: a port may be cut in two."""
        self._ended = True
        if self._pollable:
            self._poll.unregister(self._descriptor)
        self.lost += self._lines.unfinished
        self._told.count(words)


def _take_over(descriptor: int) -> tuple[int, os.stat_result]:
    """A descriptor of our own for what the given one reads, without blocking where that is possible. Raises OSError."""
    status = os.fstat(descriptor)
    if descriptor == 0 and sys.__stdin__ is None:
        raise OSError(errno.EBADF, "it was closed at the start")
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        # Opened again it can be non-blocking for us alone: O_NONBLOCK belongs to all who share what was opened.
        with suppress(OSError):  # a socket, or another user's terminal
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{descriptor}", flags), status
    return os.dup(descriptor), status
