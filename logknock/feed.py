"""What happens, for those who watch: each gets it as it comes, or hears how much of it was missed.

Rule 1: a watcher that does not read costs a bounded amount of memory and nobody's time. Rule 2: without a watcher
nothing is made, encoded or kept. Rule 3: what happens is encoded once for all, and not known here.
"""

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from .errors import LogknockError

# Each costs a send in each FLUSH; fewer than there may be clients (see control.py), so that there is always room for a
# question, however many terminals are left watching.
MAX_WATCHERS = 8

# Bytes that wait for a watcher, and as many again that are on their way to it: four seconds of the most that the log
# takes of attempts (100 lines a second of 160 bytes).
QUEUED = 65_536

# Seconds from the first thing that happens until all since then is sent: in a flood ten sends a second, not a hundred.
FLUSH = 0.1

_Json = Mapping[str, Any]


class Watcher:
    """One that watches; `ended` is set when there is nothing more to come for it."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self.ended = asyncio.Event()
        self._transport = transport
        self._held = True
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._missed = 0
        self._latest = b""

    def release(self) -> None:
        """What it was told first is on its way: what has happened since comes behind it."""
        self._held = False
        self.flush()

    def add(self, line: bytes) -> None:
        """Something that it is to hear of; if it does not read, what is oldest is given up for it."""
        self._queue.append(line)
        self._bytes += len(line)
        while self._bytes > QUEUED:
            self._bytes -= len(self._queue.popleft())
            self._missed += 1

    def set_latest(self, line: bytes) -> None:
        """Something of which only the last one counts."""
        self._latest = line

    def flush(self, *, last: bytes = b"") -> None:
        """Send what waits, unless what was sent before has not left yet; `last` goes behind it."""
        if self._transport.is_closing():
            self.ended.set()
        elif not (self._held or self._transport.get_write_buffer_size()):
            missed = [_encode({"missed": self._missed})] if self._missed else []
            data = b"".join([*missed, *self._queue, self._latest, last])
            self._queue.clear()
            self._bytes = self._missed = 0
            self._latest = b""
            if data:
                self._transport.write(data)


class Feed:
    """All watchers. Needs a running loop once there is one."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._due: asyncio.TimerHandle | None = None

    @property
    def watched(self) -> bool:
        """Whether it is worth the while to make anything for it."""
        return bool(self._watchers)

    def join(self, transport: asyncio.WriteTransport) -> Watcher:
        """From now on all that happens is kept for it; release() lets it go. Raises LogknockError."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise LogknockError(f"{MAX_WATCHERS} are watching already", "end one of them, or ask again later")
        watcher = Watcher(transport)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """It watches no more."""
        self._watchers.discard(watcher)

    def put(self, said: _Json) -> None:
        """Something has happened."""
        if self._watchers:
            line = _encode(said)
            for watcher in self._watchers:
                watcher.add(line)
            self._flush_soon()

    def put_latest(self, said: _Json) -> None:
        """The same of what makes worthless what was said of it before."""
        if self._watchers:
            line = _encode(said)
            for watcher in self._watchers:
                watcher.set_latest(line)
            self._flush_soon()

    def end(self, *said: _Json) -> None:
        """Nothing more happens; what is to be said of that."""
        if self._due is not None:
            self._due.cancel()
        last = b"".join(map(_encode, said))
        for watcher in self._watchers:
            watcher.flush(last=last)
            watcher.ended.set()

    def _flush_soon(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(FLUSH, self._flush)

    def _flush(self) -> None:
        self._due = None
        for watcher in self._watchers:
            watcher.flush()


def _encode(said: _Json) -> bytes:
    return json.dumps(said).encode() + b"\n"
