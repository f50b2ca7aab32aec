"""Sends packets from a namespace, one by one or as a flood at a rate: no rate that a benchmark needs is too high.

Rule 1: frames are in the kernel before the flood begins (PACKET_TX_RING, see packet_mmap in the kernel's documents);
sending some is to mark them and one system call. Rule 2: every flood ends by itself, by time and by count, and says
what was really sent. Rule 3: nothing leaves the namespace that the socket was made in.
"""

import ctypes
import mmap
import os
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import NamedTuple, Self

from ..netns import Host
from .frames import Words

_CLONE_NEWNET = 0x40000000

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_VERSION, _PACKET_TX_RING, _PACKET_QDISC_BYPASS = 10, 13, 20
_TPACKET_V2 = 1
_SEND_REQUEST = 1
_DATA_AT = 32  # TPACKET2_HDRLEN - sizeof(struct sockaddr_ll)
_LENGTH_AT = 4
_U32 = Struct("=I")

# A frame and its header, rounded up to a divisor of the block size: so much, or twice as much, and so on.
_SLOT = 128
_BLOCK = 4096
RING_MULTIPLE = _BLOCK // _SLOT  # a ring holds a multiple of so many frames

# So many frames a call at most: an honest knock waits a millisecond at worst for its turn.
_CHUNK = 256
# A pause where nothing is due, in seconds: short against the 10 ms in which the daemon's batches are delivered.
_PAUSE = 0.0002


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """What opens a socket in here opens it in the host's namespace; the socket stays there afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(f"/run/netns/{host.name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(libc, other)
        try:
            yield
        finally:
            _enter(libc, own)
    finally:
        os.close(own)
        os.close(other)


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


def wire(host: Host) -> socket.socket:
    """A socket that sends frames as they are on the host's link, and receives none."""
    with inside(host):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        raw.bind(("eth0", 0))
    return raw


class Due(NamedTuple):
    """A frame to be sent at an instant, in seconds from the beginning of a flood."""

    at: float
    frame: bytes


class Sent(NamedTuple):
    """What a flood really was."""

    packets: int
    seconds: float

    @property
    def rate(self) -> float:
        """Packets a second."""
        return self.packets / self.seconds


class Ring:
    """Frames in a ring shared with the kernel, sent round and round; at each turn words of all frames change.

    turns: what the frames have at each turn, the first one included; nothing changes where it is empty.
    """

    def __init__(self, host: Host, frames: Sequence[bytes], turns: Sequence[Words] = ()) -> None:
        assert len(frames) % RING_MULTIPLE == 0, f"a ring holds a multiple of {RING_MULTIPLE} frames"
        self._size = len(frames)
        self._slot = _SLOT
        while self._slot < _DATA_AT + max(map(len, frames)):
            self._slot *= 2
        assert self._slot <= _BLOCK
        self._turns = turns
        self._turn = 0
        self._at = 0
        self._socket = wire(host)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        shape = (_BLOCK, self._size * self._slot // _BLOCK, self._slot, self._size)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_TX_RING, b"".join(map(_U32.pack, shape)))
        self._memory = mmap.mmap(self._socket.fileno(), self._size * self._slot)
        for number, frame in enumerate(frames):
            at = number * self._slot
            self._memory[at + _DATA_AT : at + _DATA_AT + len(frame)] = frame
            _U32.pack_into(self._memory, at + _LENGTH_AT, len(frame))
        self._status = memoryview(self._memory).cast("I")[:: self._slot // 4]
        self._words = memoryview(self._memory).cast("H")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._status.release()
        self._words.release()
        self._memory.close()
        self._socket.close()

    def send(self, count: int) -> None:
        """Send the next frames of the ring, in order."""
        while count > 0:
            some = min(count, self._size - self._at)
            self._status[self._at : self._at + some] = memoryview(array("I", [_SEND_REQUEST]) * some)
            self._socket.send(b"")
            count -= some
            self._at += some
            if self._at == self._size:
                self._at = 0
                self._turn += 1
                if self._turns:
                    self._rewrite(self._turns[self._turn % len(self._turns)])

    def _rewrite(self, words: Words) -> None:
        for at, word in words:
            column = self._words[(_DATA_AT + at) // 2 :: self._slot // 2]
            column[:] = memoryview(array("H", [socket.htons(word)]) * self._size)


def flood(
    ring: Ring, rate: float, seconds: float, count: int, knocks: Iterable[Due], knock: Callable[[bytes], object],
    meanwhile: Callable[[], object] = lambda: None,
) -> Sent:  # fmt: skip
    """Send the ring at this rate, for so long and at most so many; in between the knocks that are due.

    `meanwhile` is called again and again, each millisecond or so: it must not wait for anything.
    """
    waiting = deque(knocks)
    sent = 0
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds and sent < count:
        while waiting and waiting[0].at <= now:
            knock(waiting.popleft().frame)
        meanwhile()
        due = int(min(now * rate - sent, _CHUNK, count - sent))
        if due > 0:
            ring.send(due)
            sent += due
        else:
            time.sleep(_PAUSE)
    return Sent(sent, now)
