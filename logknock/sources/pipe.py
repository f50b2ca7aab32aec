"""Packets from standard input, where another program writes a log: `journalctl -kf -o json | logknock run`.

Rule 1: what a line says is the grammar's; here is only which bytes are lines, each once and in order. Rule 2: nothing
blocks, one read is about 2 ms of work, and nobody else's descriptor is changed. Rule 3: what is old opens nothing: a
regular file is refused, and of a pipe counts what was made since it was opened (T29). Rule 4: what ends says so, and
stays ended; a FIFO with a name waits for the next writer.
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
from pathlib import Path

from ..errors import UNAVAILABLE, SourceError
from ..lines import CHUNK, Reading, Splitter, Told
from ..packet import Packet
from ..records import Grammar
from ..stamps import Dates
from ..trusted_files import trust

_HINT = "start it behind a pipe: journalctl -kf -o json | logknock run"
_OF_FILES = '`logknock replay FILE` tells what it would have opened; [log] source = "file" follows a log that grows'

Receive = Callable[[Packet], None]


class Pipe:
    """Standard input: a pipe, a FIFO, a socket or a terminal."""

    interval = 0.0  # the descriptor tells

    def __init__(self, grammar: Grammar, descriptor: int = 0) -> None:
        """Raises SourceError if nothing can be piped in through it, Untrusted if others can write into it (T31)."""
        self.name = "standard input"
        self.grammar = grammar
        self.lost = 0
        self.ended = False  # whether nothing will ever come again
        self._told = Told(self.name)
        self._lines = Splitter(self._told)
        self._reading = Reading()
        try:
            self._descriptor = _take_over(descriptor)
        except OSError as error:
            raise SourceError(f"{self.name}: cannot be read: {error.strerror}", _HINT, UNAVAILABLE) from error
        # An epoll within the one of whoever waits, to which the end, for ever readable, can be made to look quiet.
        self._poll = select.epoll()
        try:
            self._poll.register(self._descriptor, select.EPOLLIN)
        except PermissionError as error:  # /dev/null, as a service has it that nothing is piped into
            self.close()
            what = os.readlink(f"/proc/self/fd/{descriptor}")
            raise SourceError(f"{self.name}: is {what}, and nothing is piped in", _HINT, UNAVAILABLE) from error
        # What `journalctl -f` and `tail -f` begin with are the last lines of the log: too old to be knocks (T29).
        self._since = time.time()
        self._dates = Dates(self._since, live=True)

    @property
    def records(self) -> int:
        """How many lines have been read."""
        return self._reading.records

    @property
    def ignored(self) -> int:
        """How many of them held no packet that could be a knock, as most lines of a busy log."""
        return self._reading.ignored

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._poll.fileno()

    def watch(self, wake: Callable[[], None]) -> None:
        """The descriptor tells."""

    def read(self, now: float, receive: Receive) -> bool:
        """Hand over the packets of what has come; whether more waits. `now` is in seconds since the epoch."""
        self._dates.reference = now
        self._dates.uptime = time.monotonic()
        self._since = min(self._since, now)  # a clock that is set back does not make it deaf
        more = True
        if not self._reading:
            more = self._fill()
        self._reading.hand_over(self.grammar, self._dates, partial(self._hand_over_new, receive))
        return more

    def _hand_over_new(self, receive: Receive, packet: Packet) -> None:
        # A stamp that rsyslog makes may be too early: a knock just after the start must count all the same.
        if packet.time >= self._since - self._dates.early:
            receive(packet)

    def settle(self) -> tuple[str, ...]:
        """What there is to tell."""
        return tuple(self._told.due(time.monotonic()))

    def close(self) -> None:
        """Let go of our own descriptors; whoever gave us standard input keeps it."""
        self._poll.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self.ended = True

    def _fill(self) -> bool:
        """Read some more; whether there may be more than that."""
        if self.ended:
            return False
        try:
            # Asked first, since what is not ours alone cannot be made non-blocking for us alone.
            if not self._poll.poll(0):
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
        self.ended = True
        self._poll.unregister(self._descriptor)
        self.lost += self._lines.unfinished
        self._told.count(words)


def _take_over(descriptor: int) -> int:
    """A descriptor of our own for what the given one reads, without blocking where that is possible.

    Raises OSError, SourceError.
    """
    status = os.fstat(descriptor)
    if descriptor == 0 and sys.__stdin__ is None:
        raise OSError(errno.EBADF, "it was closed at the start")
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISREG(status.st_mode):
        raise SourceError("standard input: is a regular file, whose records are old", _OF_FILES, UNAVAILABLE)
    # Opened again it can be non-blocking for us alone: O_NONBLOCK belongs to all who share what was opened.
    again, flags = f"/proc/self/fd/{descriptor}", os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fifo = Path(os.readlink(again))
    if stat.S_ISFIFO(status.st_mode) and fifo.is_absolute():  # not "pipe:[4711]"
        trust(fifo, status)
        with suppress(PermissionError):  # who may not write into it finds its end with its last writer's
            return os.open(again, os.O_RDWR | flags)
    with suppress(OSError):  # a socket, or another user's terminal
        return os.open(again, os.O_RDONLY | flags)
    return os.dup(descriptor)
