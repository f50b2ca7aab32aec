"""Who has guessed too often at doors whose sequences follow from the time, and what is asked of them then.

Rule 1: nobody is locked out, since anybody can forge anybody's address: who has no free try left is asked for more
than one step's sequence. Rule 2: no clock: time comes in on packets. Rule 3: memory has a fixed bound.
"""

from collections.abc import Callable
from typing import NamedTuple

from .packet import CLOCK_SLACK, Packet

# Wrong tries of one source at the doors that derive their sequences, and at those whose codes are digits: in how long a
# time, in seconds, how many are free, and how many of all sources together. After them nobody is locked out, but
# needs the sequences of two steps, since a forged source could use up anybody's tries. Five minutes are the longest
# step; a hundred of 2^39 (a default door's), at a door with a thousand clients, are one hit in 27 years. A code has a
# million possibilities, three of which open at a time: thirty guesses an hour are one chance in 10,000 an hour.
TOTP_SPAN, TOTP_TRIES, TOTP_TRIES_IN_ALL = 300.0, 10, 100
CODE_SPAN, CODE_TRIES, CODE_TRIES_IN_ALL = 3_600.0, 3, 30

# How many steps are asked for then, and how many wrong tries between two of them are too many for the first to count.
# The rules are deaf to a source that sends more than 20 packets a second, so that of one that is heard, whoever forges
# them, there are 640 in 30 s (a code's step) and 6,040 in 5 minutes (the longest step). As many guesses at a TOTP door
# are nothing; at a code door they are something, and with more than are free in between it takes three.
TOTP_STEPS, TOTP_BETWEEN = 2, 12_000
CODE_STEPS, CODE_BETWEEN = 3, 1_000

# Sources (of IPv6: /64s) whose wrong tries are counted, for each of the two; 2 MB. Once there are as many, nobody has
# any free.
MAX_TRIED = 16_384

_PREFIX_BYTES = 8  # of an IPv6 address: one machine usually has a whole /64 for the asking


class Limits(NamedTuple):
    """Wrong tries in a span of seconds: how many of a source and of all are free.

    steps: how many steps' sequences are asked for then, where more than are free, and less than `between`, lie between
    each and the next.
    """

    span: float
    free: int
    free_in_all: int
    steps: int
    between: int


OF_TOTP = Limits(TOTP_SPAN, TOTP_TRIES, TOTP_TRIES_IN_ALL, TOTP_STEPS, TOTP_BETWEEN)
OF_CODES = Limits(CODE_SPAN, CODE_TRIES, CODE_TRIES_IN_ALL, CODE_STEPS, CODE_BETWEEN)


class _Held(NamedTuple):
    """The steps so far of those that a source needs after its wrong tries. until: seconds since the epoch."""

    source: bytes
    until: float
    span: float  # in which span of time the last of them was
    tries: int  # how many the source had by then
    steps: int


class Tries:
    """Wrong tries in a span of time, by source; an IPv6 /64 is one source. Forgotten when the next span begins."""

    __slots__ = ("_all", "_by_source", "_held", "_limits", "_number")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._number = 0.0  # the present span's
        self._by_source: dict[bytes, int] = {}
        self._held: dict[tuple[str, str], _Held] = {}  # by door and client
        self._all = 0  # no more of a source than are free: who scans every port does not use up everybody's

    def count(self, packet: Packet) -> None:
        """One more of the packet's source."""
        self._turn(packet.time)
        source = _source(packet.src)
        tries = self._by_source.get(source)
        if tries is None:
            if len(self._by_source) >= MAX_TRIED:
                return
            tries = 0
        self._by_source[source] = tries + 1
        self._all += tries < self._limits.free

    def has_proven(self, client: tuple[str, str], begins: float, ends: float, packet: Packet) -> bool:
        """Whether nobody guessed a sequence that the packet completes: few wrong tries, or earlier steps before it.

        client: door and name. begins, ends: when the sequence is accepted, seconds since the epoch.
        """
        limits, source = self._limits, _source(packet.src)
        held = self._held.pop(client, None)
        if not self._are_up(source, packet.time):
            return True
        counted, steps = self._by_source.setdefault(source, limits.free), 1  # counted from here on in any case
        if held is not None and held.source == source and packet.time < held.until:
            # A span that begins in between forgets what was counted.
            between = counted - (held.tries if held.span == self._number else 0)
            if between < limits.between:
                steps = held.steps + 1
            if between < limits.free or steps >= limits.steps:
                self._by_source.pop(source, None)
                return True
        # As long again as this one is accepted: the next one's time is over before that.
        self._held[client] = _Held(source, ends + (ends - begins), self._number, counted, steps)
        return False

    def keep(self, is_there: Callable[[str], bool]) -> None:
        """Forget the steps of clients whose door is not there any more."""
        self._held = {client: held for client, held in self._held.items() if is_there(client[0])}

    def _are_up(self, source: bytes, time: float) -> bool:
        """Whether there are none left that are free."""
        self._turn(time)
        if self._all >= self._limits.free_in_all or len(self._by_source) >= MAX_TRIED:
            return True
        return self._by_source.get(source, 0) >= self._limits.free

    def _turn(self, time: float) -> None:
        number = time // self._limits.span
        # Two receive queues may be a little out of order.
        if number > self._number or time < self._number * self._limits.span - CLOCK_SLACK:
            self._number = number
            self._by_source.clear()
            self._all = 0


def _source(src: bytes) -> bytes:
    """Whom a wrong try is put down to."""
    return src if len(src) == 4 else src[:_PREFIX_BYTES]
