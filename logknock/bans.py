"""Who is banned until when: the elements of `banned4` and `banned6`, of scanners and of whom a person bans.

Rule 1: what is banned is here, and the sets are made to agree, as in `firewall.sets`; every ban has an end, at which
the kernel lifts it. Rule 2: the trusted, who has an open door, and this host's own addresses are never banned. Rule 3:
scanners can be forged at any rate: so many are banned in a batch, so many batches a second, so many told; the others
are counted, and caught again if they go on.

IPv6 is banned by /64. A ban outlives this process in its element, whose comment says what it was for.
"""

import ipaddress
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import chain, islice
from typing import Any, NamedTuple

from .config import Scan
from .config_values import Network, parse_duration
from .errors import FirewallError, LogknockError, printable
from .firewall.sets import Banned, Sets, source_key
from .packet import address_text, parse_address
from .report import Level, Line, ban_lifted, ban_made, notice
from .scan import Caught

# Of each family: what the sets have room for (rules/logknock.nft).
MAX_BANS = 65_535

# Scanners that are banned at a time, about 3 ms of work, and seconds from the first of them until that is done: a flood
# of forged scanners makes 640 bans a second and takes a thirtieth of the processor, and a real one gets no further.
BATCH = 64
PAUSE = 0.1

# Lines a second about bans, which anybody can cause at will.
LINES_PER_SECOND = 10

# Bans in an answer of the control socket: 100 bytes each.
_AT_ONCE = 64

# What a ban may last; one without an end, which an administrator made with nft, is put back for as long as this.
SHORTEST, LONGEST = 1.0, 365 * 86_400.0

_NOBODY = bytes(4)  # 0.0.0.0: no packet that we hear of comes from there
_ENDS_SLACK = 1_024
_BY_HAND = "by hand"
_NOT_BY_US = "not by logknock"
_OPEN = "a door is open for it"
_PREFIX_BITS = 64


class Ban(NamedTuple):
    """until: time.monotonic(); since: time.time(); why: in words."""

    until: float
    since: float
    why: str


class Target(NamedTuple):
    """What a person bans or lifts a ban of: an address, and whether only its /64 was named."""

    src: bytes
    is_prefix: bool

    @property
    def key(self) -> bytes:
        """By which the kernel finds the ban."""
        return source_key(self.src)

    @property
    def text(self) -> str:
        """As it was written, or nearly."""
        return address_text(self.src) + (f"/{_PREFIX_BITS}" if self.is_prefix else "")


def parse_target(text: str) -> Target:
    """An IPv4 address, an IPv6 address or a /64. Raises ValueError in words for the operator."""
    written, slash, length = text.strip().partition("/")
    src = parse_address(written)
    if not slash or (length == "32" and len(src) == 4):
        return Target(src, is_prefix=False)
    if length == "128" and len(src) == 16:
        return Target(src, is_prefix=False)
    if length != str(_PREFIX_BITS) or len(src) == 4:
        raise ValueError(f"{text[:64]!r}: a ban is of one IPv4 address or of an IPv6 /64")
    target = Target(src, is_prefix=True)
    if src != target.key:
        raise ValueError(f"{text[:64]!r} has bits set behind its prefix: write {who(target.key)}")
    return target


def parse_time(text: str) -> float:
    """Seconds of a ban; raises ValueError in words for the operator."""
    seconds = parse_duration(text)
    if not SHORTEST <= seconds <= LONGEST:
        raise ValueError(f"{text} is out of range (1s-365d)")
    return seconds


def who(key: bytes) -> str:
    """Whom an element of a set of bans is about: an address, or a /64."""
    return address_text(key) + (f"/{_PREFIX_BITS}" if len(key) == 16 else "")


class Bans:
    """The bans. `write` takes lines for the log.

    Times: `now` is time.monotonic(), `wall` is time.time(): a clock that is set changes no ban's end.
    """

    def __init__(self, sets: Sets, write: Callable[[Line], None]) -> None:
        self.left_out = 0  # scanners that were not banned, for want of room or because there were too many at a time
        self._sets = sets
        self._write = write
        self._terms = Scan()
        self._trusted: dict[tuple[int, int], set[int]] = {}
        self._bans: dict[int, dict[bytes, Ban]] = {4: {}, 16: {}}  # by the length of the key
        self._ends: list[tuple[float, bytes]] = []
        self._waiting: dict[bytes, Caught] = {}
        self._unsure: dict[bytes, None] = {}  # bans that the kernel may not have
        self._strange: dict[bytes, None] = {}  # bans that the kernel may have, by somebody else
        self._lines = 0  # of this second
        self._untold = self._left_out_told = 0
        self.trouble: FirewallError | None = None  # why nobody can be banned, until somebody can

    def __len__(self) -> int:
        return sum(map(len, self._bans.values()))

    def use(self, terms: Scan, trusted: Iterable[Network]) -> None:
        """Go on with these. Bans of who is trusted now are lifted."""
        self._terms = terms
        before, self._trusted = self._trusted, {}
        for network in trusted:
            # By /64, since bans are: whoever shares it with the trusted is not banned either.
            length = network.prefixlen if network.version == 4 else min(network.prefixlen, _PREFIX_BITS)
            shift = network.max_prefixlen - length
            self._trusted.setdefault((network.max_prefixlen // 8, shift), set()).add(
                int(network.network_address) >> shift
            )
        if self._trusted != before:
            self._lift_exempt()

    # ---- scanners

    def suspect(self, caught: Caught) -> bool:
        """Have a scanner banned with the next batch; whether it is the first of one: call apply() after PAUSE."""
        key = source_key(caught.src)
        if key in self._bans[len(key)] or key in self._waiting:
            return False
        if self._is_trusted(key) or self._sets.granted(caught.src):  # forged, they would fill the batch
            return False
        if len(self._waiting) >= BATCH:
            self.left_out += 1
            return False
        self._waiting[key] = caught
        return len(self._waiting) == 1

    def apply(self, wall: float, now: float) -> None:
        """Ban those that wait. What the kernel refuses is told, once, and forgotten: who goes on is caught again."""
        waiting, self._waiting = self._waiting, {}
        try:
            fresh = self._fit(waiting, wall, now)
            if fresh:
                self._hold(fresh, now)
        except FirewallError as error:
            self.left_out += len(waiting)
            self.in_trouble("scanners are not banned", error)
            return
        self.trouble = None
        for key, ban in fresh.items():
            self._tell(ban_made(who(key), self._terms.ban, ban.why))

    def _fit(self, waiting: Mapping[bytes, Caught], wall: float, now: float) -> dict[bytes, Ban]:
        """Those of the scanners that may be banned, and that there is room for."""
        ban = Ban(now + self._terms.ban, wall, "")
        open_for = self._sets.granted_among(waiting)
        room = {size: MAX_BANS - len(bans) for size, bans in self._bans.items()}
        fresh: dict[bytes, Ban] = {}
        for key, caught in waiting.items():
            if key in open_for or self._is_trusted(key) or self._never(caught.src):
                continue
            if room[len(key)] <= 0:
                self.left_out += 1
                continue
            room[len(key)] -= 1
            fresh[key] = ban._replace(why=f"scan of {caught.services} ports")
        return fresh

    # ---- by hand

    def make(self, target: Target, seconds: float, wall: float, now: float) -> bytes:
        """Ban somebody by hand, or give a ban another end; the key. Raises LogknockError, FirewallError among them."""
        key = target.key
        whom = who(key)
        if reason := self._never(target.src):
            raise LogknockError(f"{target.text} is {reason}: it is never banned")
        if self._is_trusted(key):
            raise LogknockError(f"{whom} is trusted, or has the trusted in it", "take it out of [firewall] trusted")
        if self._sets.granted_among((key,)):
            raise LogknockError(f"{whom} has an open door", f"`logknock explain {address_text(target.src)}` says which")
        if key not in self._bans[len(key)] and len(self._bans[len(key)]) >= MAX_BANS:
            raise LogknockError(f"{MAX_BANS} are banned already", "`logknock unban` makes room")
        self._hold({key: Ban(now + seconds, wall, _BY_HAND)}, now)
        self._write(ban_made(whom, seconds, _BY_HAND))
        return key

    def lift(self, target: Target) -> bytes:
        """Lift a ban, be it one that somebody else made; the key. Raises LogknockError where there is none."""
        key = target.key
        if key not in self._bans[len(key)] and not self._sets.is_banned(key):
            raise LogknockError(f"{who(key)} is not banned", "`logknock bans` lists who is")
        self._lift([key], _BY_HAND)
        return key

    def lift_some(self) -> int:
        """Lift some of all bans; how many. Call it until it is 0. Raises FirewallError."""
        some = list(islice(self._keys(), BATCH))
        self._lift(some, _BY_HAND)
        return len(some)

    def admit(self, src: bytes) -> None:
        """A door opens for the source: whatever its ban was for, it would keep that from meaning anything.

        Raises FirewallError.
        """
        key = source_key(src)
        self._waiting.pop(key, None)
        if key in self._bans[len(key)] or key in self._strange:
            self._lift([key], _OPEN)

    # ---- what is asked

    @property
    def usual(self) -> float:
        """Seconds that a ban lasts where nobody says otherwise."""
        return self._terms.ban

    def find(self, src: bytes, now: float) -> Ban | None:
        """The ban of a source, or of its /64."""
        ban = self._bans[len(src)].get(source_key(src))
        return ban if ban and ban.until > now else None

    def listed(self, now: float) -> Iterator[tuple[bytes, Ban]]:
        """All bans as they are now; they may change meanwhile."""
        for key, ban in [*self._bans[4].items(), *self._bans[16].items()]:
            if ban.until > now:
                yield key, ban

    # ---- the sets as they should be

    def take_over(self, wall: float, now: float) -> int:
        """Go on with the bans that are in the kernel; how many there are. Raises FirewallError."""
        for found in self._sets.banned():
            self._adopt(found, wall, now)
        self._lift_exempt()
        return len(self)

    def _adopt(self, found: Banned, wall: float, now: float) -> bool:
        """Go on with a ban that the kernel has; whether it is one."""
        if found.key != source_key(found.key):
            return False  # some other's, which our rules never find
        age = 0.0 if found.timeout == math.inf else found.timeout - found.left
        self._put(found.key, Ban(now + found.left, wall - age, found.comment or _NOT_BY_US))
        return True

    def unsure(self, keys: Iterable[bytes] | None = None) -> None:
        """Somebody has changed these elements of the sets, or any: have reconcile() put the bans back.

        Of those that are named, it goes on with what somebody else has banned.
        """
        for key in self._keys() if keys is None else keys:
            (self._unsure if key in self._bans[len(key)] else self._strange)[key] = None

    def reconcile(self, now: float) -> int:
        """Make the kernel hold a bounded number of bans that it may not have; how many. Call it until it returns 0.

        Raises FirewallError; what failed is tried again, later.
        """
        self.expire(now)
        if self._strange:
            return self._look_at_strange(now)
        some = list(islice(self._unsure, BATCH))
        if some:
            self._sets.ban((), [self._element(key, self._bans[len(key)][key], now) for key in some])
            for key in some:
                del self._unsure[key]
        return len(some)

    def _look_at_strange(self, now: float) -> int:
        """Go on with what others have banned, or lift it; how many elements were looked at."""
        some = list(islice(self._strange, BATCH))
        there = [found for key in some if (found := self._sets.find_banned(key)) is not None]
        adopted = [found for found in there if self._adopt(found, time.time(), now)]
        for key in some:
            del self._strange[key]
        for found in adopted:
            why = printable(found.comment) or _NOT_BY_US
            self._tell(ban_made(who(found.key), round(min(found.left, LONGEST)), why))
        self._lift_exempt([found.key for found in adopted])
        return len(some)

    @property
    def settled(self) -> bool:
        """Whether the kernel has all bans, and we those that it has, as far as is known."""
        return not (self._unsure or self._strange)

    def expire(self, now: float) -> None:
        """Forget what has ended, which the kernel has lifted by itself; some of it, if it is much."""
        for _ in range(_ENDS_SLACK):
            if not self._ends or self._ends[0][0] > now:
                break
            until, key = heappop(self._ends)
            ban = self._bans[len(key)].get(key)
            if ban is not None and ban.until == until:
                self._forget(key)

    def settle(self, now: float) -> None:
        """A second has passed: forget what has ended, and say what was left out."""
        self.expire(now)
        if self.trouble:
            self._try_again()
        if self._untold:
            self._write(notice(f"{self._untold} more lines about bans left out", LEFT_OUT=str(self._untold)))
        if missed := self.left_out - self._left_out_told:
            self._left_out_told = self.left_out
            text = f"{missed} scanners not banned: more than there is room for, or than can be banned in a second"
            self._write(notice(text, Level.WARNING, LEFT_OUT=str(missed)))
        self._lines = self._untold = 0

    # ---- parts

    def _keys(self) -> Iterator[bytes]:
        return chain(*self._bans.values())

    def _is_trusted(self, key: bytes) -> bool:
        number = int.from_bytes(key, "big")
        return any(size == len(key) and number >> shift in found for (size, shift), found in self._trusted.items())

    def _lift_exempt(self, among: Iterable[bytes] | None = None) -> None:
        """Lift the bans of who is never banned; among all, if it is not said among which."""
        keys = list(self._keys() if among is None else among)
        try:
            self._lift([key for key in keys if self._is_trusted(key)], "trusted now")
            self._lift(sorted(self._sets.granted_among([key for key in keys if key in self._bans[len(key)]])), _OPEN)
        except FirewallError as error:
            self.in_trouble("bans of who is trusted now, or has an open door, are not lifted", error)

    def _never(self, src: bytes) -> str | None:
        """Why this source is never banned, if so (T37)."""
        if len(src) == 16 and ipaddress.IPv6Address(src).is_link_local:
            return "a link-local address, and its /64 is everybody's on the link, routers among them"
        return self._sets.refused(src)

    def in_trouble(self, what: str, error: FirewallError) -> None:
        """Say it once, until a ban goes well."""
        failure = FirewallError(f"{what}: {error.message}", error.hint)
        if self.trouble is None or failure.message != self.trouble.message:
            self._write(notice(failure.words(), Level.ERROR, EVENT="bans"))
        self.trouble = failure

    def _try_again(self) -> None:
        """See whether the sets take bans again, with one that nobody could have and that is gone at once."""
        with suppress(FirewallError):
            self._sets.ban([_NOBODY], ())
            self.trouble = None

    def _hold(self, bans: Mapping[bytes, Ban], now: float) -> None:
        self._sets.ban((), [self._element(key, ban, now) for key, ban in bans.items()])
        for key, ban in bans.items():
            self._put(key, ban)
            self._unsure.pop(key, None)

    def _element(self, key: bytes, ban: Ban, now: float) -> Banned:
        left = min(ban.until - now, LONGEST)
        return Banned(key, left, left, ban.why)

    def _lift(self, keys: list[bytes], why: str) -> None:
        for at in range(0, len(keys), BATCH):
            some = keys[at : at + BATCH]
            self._sets.ban(some, ())
            for key in some:
                if key in self._bans[len(key)]:
                    self._forget(key)
                self._strange.pop(key, None)
                self._tell(ban_lifted(who(key), why))

    def _put(self, key: bytes, ban: Ban) -> None:
        self._bans[len(key)][key] = ban
        heappush(self._ends, (ban.until, key))
        if len(self._ends) > _ENDS_SLACK + 2 * len(self):  # most are of bans that were lifted or changed since
            self._ends = [(ban.until, key) for bans in self._bans.values() for key, ban in bans.items()]
            heapify(self._ends)

    def _forget(self, key: bytes) -> None:
        del self._bans[len(key)][key]
        self._unsure.pop(key, None)

    def _tell(self, line: Line) -> None:
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self._untold += 1
        else:
            self._write(line)


# ---- what is asked through the control socket: {"do": "bans"}, {"do": "ban", "address": "192.0.2.7", "seconds": 60},
# {"do": "unban", "address": "192.0.2.7"} or, for all of them, {"do": "unban"}

Answer = Mapping[str, Any]
ASKED = frozenset({"bans", "ban", "unban"})


def answer(request: Answer, bans: Bans) -> Iterator[Answer | None]:
    """The answers to a request; None is a place for a pause. Raises LogknockError."""
    match request.get("do"):
        case "bans":
            return _list(bans)
        case "ban":
            return iter((_ban(_target(request), request.get("seconds"), bans),))
    if "address" in request:
        return iter(({"unbanned": who(bans.lift(_target(request)))},))
    return _lift_all(bans)


def ban_object(key: bytes, ban: Ban, now: float) -> dict[str, Any]:
    """A ban as JSON has it."""
    left = None if ban.until == math.inf else round(ban.until - now, 3)
    return {"address": who(key), "since": round(ban.since, 3), "left": left, "reason": ban.why}


def _list(bans: Bans) -> Iterator[Answer | None]:
    every = bans.listed(time.monotonic())
    while some := list(islice(every, _AT_ONCE)):
        now = time.monotonic()
        yield {"bans": [ban_object(key, ban, now) for key, ban in some]}


def _ban(target: Target, seconds: object, bans: Bans) -> Answer:
    if seconds is None:
        seconds = bans.usual
    if type(seconds) not in (int, float) or not SHORTEST <= seconds <= LONGEST:  # type: ignore[operator]
        raise LogknockError("a ban lasts from a second to 365 days", "logknock ban 192.0.2.7 1h")
    key = bans.make(target, float(seconds), time.time(), time.monotonic())  # type: ignore[arg-type]
    return {"banned": who(key), "seconds": seconds}


def _lift_all(bans: Bans) -> Iterator[Answer | None]:
    lifted = 0
    while some := bans.lift_some():
        lifted += some
        yield None
    yield {"unbanned": lifted}


def _target(request: Answer) -> Target:
    written = request.get("address")
    try:
        return parse_target(written if isinstance(written, str) else "")
    except ValueError as error:
        raise LogknockError(str(error), "logknock ban 192.0.2.7") from None
