"""Single packets (SPA) that have come and are not judged yet.

Rule 1: a forged packet costs whoever forges it a datagram, and here an HMAC for each key: so packets are judged in
slices, between reads, and no knock at any door waits longer for them. Rule 2: the room is bounded; what finds none is
counted, and nobody looks at it.
"""

import time
from collections import deque
from collections.abc import Callable

from .packet import Carried

# Packets that may wait. Forged ones take a tenth of a second where there are 64 keys, and what an authentic one waits
# behind them is short against the age that it may have.
MAX_WAITING = 1_024

# Seconds of the loop that a slice of them may take, and one packet more: a tenth of a millisecond, or, of a client's,
# a write to the disk.
SLICE = 0.002

# judge(what came, the name of the source that told of it)
Judge = Callable[[Carried, str], None]


class Mailbox:
    """Packets by the order of their coming. What judges one is called from `work` alone."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._waiting: deque[tuple[Carried, str]] = deque()
        self._left_out = 0

    def put(self, carried: Carried, source: str) -> bool:
        """Have it judged in its turn; False: too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            self._left_out += 1
            return False
        self._waiting.append((carried, source))
        return True

    def work(self) -> bool:
        """Have some judged, two milliseconds or so; whether there are more."""
        end = time.perf_counter() + SLICE
        while self._waiting:
            self._judge(*self._waiting.popleft())
            if time.perf_counter() >= end:
                break
        return bool(self._waiting)

    def settle(self) -> int:
        """A second has passed: how many were left out in it."""
        left_out, self._left_out = self._left_out, 0
        return left_out
