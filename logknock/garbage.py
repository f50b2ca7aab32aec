"""What reference counting leaves: the cycles of connections and reloads, cleared away a little at a time.

Rule 1: the crowd of attempts, which holds no cycles, is walked over as seldom as can be: that takes 20 ms when it is
full. Rule 2: what is left behind between two clearings is bounded by a number of clients, not by a time, in which a
fast one could leave any amount.
"""

import gc

# Clients between two clearings of what is new: each leaves some 25 objects and 7 kB, so that it takes a millisecond.
CLIENTS = 100

# Ticks (seconds) between two full clearings, and attempts (5 ms) from which on none is made for the sake of reloads
# alone. Those for clients have to be: what was still connected while others were cleared away is 200 kB a tick at most.
EVERY = 60
CROWD = 8_192


class Garbage:
    """The collector's work for a process that begin() has kept from doing it whenever it likes."""

    def __init__(self) -> None:
        self._met = self._ticks = 0
        self._is_new_cleared = False
        self._partial = 0  # ticks with a partial clearing since the last full one

    def begin(self) -> None:
        """What has been made until now stays: it is never walked over."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def add_client(self) -> None:
        """One has connected."""
        self._met += 1
        if self._met % CLIENTS == 0:
            gc.collect(0)
            self._is_new_cleared = True

    def tick(self, knockers: int) -> None:
        """A second has passed, and there are so many attempts."""
        self._ticks += 1
        if self._partial >= EVERY or (self._ticks % EVERY == 0 and knockers < CROWD):
            gc.collect()
            self._partial = 0
        elif self._is_new_cleared:
            gc.collect(1)
            self._partial += 1
        self._is_new_cleared = False
