"""One packet that is read from several sources counts once.

Rule 1: pure; time comes in on packets. Rule 2: whichever source tells of a packet first is believed, and the others'
tellings of it are copies. Rule 3: a packet that was really sent again is none: it is told once more by the same source.
"""

from itertools import islice
from typing import NamedTuple

from .packet import Packet

# Packets that are remembered. What falls out under a flood is taken for another packet, which the matcher then knows
# for a resend or, at worst, for a wrong knock.
MAX_REMEMBERED = 65_536

# Room is made for so many at a time: the oldest entries of a dict are found by walking over the places of deleted ones.
_SWEEP = 1_024

# Seconds within which two sources tell of the same packet. A log file can be that late; a client that knocks again
# from the same ports within it does so with resends.
WINDOW = 30.0


class _Seen(NamedTuple):
    time: float
    counts: tuple[int, ...]  # how often each source has told of it


class Copies:
    """Tells copies from packets, for sources that have numbers from 0 on."""

    def __init__(self, sources: int) -> None:
        self._none = (0,) * sources
        self._seen: dict[tuple[bytes, bytes, int, int, int], _Seen] = {}

    def is_copy(self, source: int, packet: Packet) -> bool:
        """Whether another source has told of this packet before."""
        key = packet[1:6]  # not the flags: a kernel log does not tell of all of them
        before = self._seen.pop(key, None)
        if before is None or abs(packet.time - before.time) > WINDOW:
            before = _Seen(packet.time, self._none)
        counts = before.counts
        many = counts[source] + 1
        is_copy = many <= max(counts)
        self._seen[key] = _Seen(
            before.time if is_copy else packet.time, (*counts[:source], many, *counts[source + 1 :])
        )
        if len(self._seen) > MAX_REMEMBERED:
            for old in list(islice(self._seen, _SWEEP)):
                del self._seen[old]
        return is_copy
