"""Open doors as elements of nftables sets: the only thing that the running daemon changes in the kernel.

Rule 1: what should be open is here, and the sets are made to agree (`open`, `close`, `reconcile` take one path). A set
that is missing keeps no other from being filled.
Rule 2: every element has a timeout, so that the kernel closes each door by itself (T32, T33).
Rule 3: `render` builds the bytes and does nothing else; one line sends them.

The messages are those of linux/netfilter/nf_tables.h. An administrator's own sets may be of type `ipv4_addr` or
`ipv6_addr`, or of one of these `. inet_proto . inet_service`, as our own are.
"""

import errno
import ipaddress
import math
from collections.abc import Collection, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import NamedTuple

from .. import netlink
from ..errors import NO_PERMISSION, UNAVAILABLE, FirewallError
from ..knock import Door, Grant, Service, SetName

FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}
GRANTED = {4: SetName("inet", "logknock", "granted4"), 16: SetName("inet", "logknock", "granted6")}
GUARDED = SetName("inet", "logknock", "guarded")
WATCHED = SetName("inet", "logknock", "watched")
SPA = SetName("inet", "logknock", "spa")
_BANNED = {4: SetName("inet", "logknock", "banned4"), 16: SetName("inet", "logknock", "banned6")}
_NOISY = {4: SetName("inet", "logknock", "noisy4"), 16: SetName("inet", "logknock", "noisy6")}
_PREFIX_BYTES = 8  # of IPv6, by which sources are banned, and not heard
_CHAINS = frozenset({"guard", "trusted", "guarded", "record", "tell", "admit"})

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETCHAIN, _GETRULE, _GETSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM = (
    _SUBSYSTEM << 8 | number for number in (4, 7, 10, 12, 13, 14)
)
_RULE_TABLE, _RULE_CHAIN = 1, 2
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE = 1, 2, 3, 4
_FLAG_ANONYMOUS, _FLAG_CONSTANT, _FLAG_INTERVAL, _FLAG_MAP, _FLAG_TIMEOUT = 0x01, 0x02, 0x04, 0x08, 0x10
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _ELEM_TIMEOUT, _ELEM_EXPIRATION, _ELEM_USERDATA, _DATA_VALUE = 1, 4, 5, 6, 1
_UDATA_COMMENT = 0

# How nft numbers the types of a set's key; a concatenation is the numbers of its parts, 6 bits each.
_IPV4, _IPV6, _PROTO, _SERVICE = 7, 8, 12, 13
_WITH_SERVICE = 12  # how far a type moves when `. inet_proto . inet_service` follows

_SERVICES = _PROTO << 6 | _SERVICE
# The sets of rules/*.nft and what they hold: by these our table is known from another of its name.
_OURS = {
    **dict.fromkeys(("trusted4", "banned4", "rate4", "noisy4"), _IPV4),
    **dict.fromkeys(("trusted6", "banned6", "rate6", "noisy6"), _IPV6),
    **dict.fromkeys(("guarded", "watched", "traps", "spa"), _SERVICES),
    "granted4": _IPV4 << _WITH_SERVICE | _SERVICES,
    "granted6": _IPV6 << _WITH_SERVICE | _SERVICES,
}

# Route types of linux/rtnetlink.h, by which the kernel tells whose address one is.
_GETROUTE = 26
_RTA_DST = 1
_ROUTE_TYPES = {
    2: "one of this host's own addresses",
    3: "a broadcast address",
    4: "an anycast address of this host",
    5: "a multicast address",
}
_ROUTE_TYPE_AT = 7  # offset of rtm_type in struct rtmsg

# Addresses with open doors: what our sets have room for (rules/logknock.nft).
MAX_KNOCKERS = 65_535

# Ends of grants that were refreshed since are left to pass, up to so many more than there are grants.
_ENDS_SLACK = 1_024

# When everything is put back, so many knockers at a time: about 2 ms in which the daemon does nothing else. In one
# batch where they have no more elements than that, of 300 bytes each: the kernel takes 200 kB at a time.
_RECONCILE_BATCH = 64
_TOGETHER = 512


class Element(NamedTuple):
    """Where a grant stands in the kernel: a set, and the key in it."""

    set: SetName
    key: bytes


class Banned(NamedTuple):
    """An element of a set of bans: a key (see source_key), its timeout and how much is left (seconds), its comment."""

    key: bytes
    timeout: float
    left: float
    comment: str


class _Open(NamedTuple):
    """A grant, and its door as it was then, whose timeout no element of it outlives."""

    grant: Grant
    door: Door


class _End(NamedTuple):
    """When a grant ends; a heap of these begins with the next one."""

    expires: float
    grant: Grant


class SetType(NamedTuple):
    """What a set holds: addresses of so many bytes, with a protocol and a port behind or without."""

    address_bytes: int
    with_service: bool


_OUR_TYPES = {name: SetType(size, with_service=True) for size, name in GRANTED.items()}


class Fitness(NamedTuple):
    """Whether the kernel has what the doors need.

    ours: what is wrong with our own table. restorable: whether it is only missing, in whole or in part, and nothing
    that is there is another's. others: what is wrong with the sets that doors name.
    """

    ours: FirewallError | None
    restorable: bool
    others: tuple[FirewallError, ...]


class _RefusedError(FirewallError):
    """The kernel's no to a change, with the set that it is about, and errno."""

    def __init__(self, name: SetName, error: OSError) -> None:
        said = _firewall_error(f"set {name}", error)
        super().__init__(said.message, said.hint, said.exit_code)
        self.set = name
        self.errno = error.errno


def key(src: bytes, service: Service | None) -> bytes:
    """The key of an element: each part padded to 4 bytes, as nft lays a concatenation out."""
    if service is None:
        return src
    return src + bytes((service.proto, 0, 0, 0)) + service.port.to_bytes(2, "big") + b"\0\0"


def source_key(src: bytes) -> bytes:
    """The key by which our rules ban a source, or do not hear it: of IPv6 the /64, its other bits zero."""
    return src if len(src) == 4 else src[:_PREFIX_BYTES] + bytes(len(src) - _PREFIX_BYTES)


def render(drop: Iterable[Element], hold: Iterable[tuple[Element, float, str]], first: int) -> tuple[bytes, int]:
    """One batch: the elements in `drop` are gone after it, those in `hold` are there (timeout in seconds, comment).

    `first` is the sequence number of its first message; also returns that of the one that is acknowledged. It
    works whether the elements are there or not, on every kernel: an add makes sure that there is something to
    delete (deleting what is missing fails the batch); delete before add, because on kernels before 6.12 an
    element keeps its old timeout.
    """
    verbs: list[tuple[int, int, Element, bytes]] = []
    for element in drop:
        verbs.append((_NEWSETELEM, netlink.NLM_F_CREATE, element, _element(element, 1.0)))
        verbs.append((_DELSETELEM, 0, element, _element(element)))
    for element, timeout, comment in hold:
        there = _element(element, timeout, comment)
        verbs.append((_NEWSETELEM, netlink.NLM_F_CREATE, element, there))
        verbs.append((_DELSETELEM, 0, element, _element(element)))
        verbs.append((_NEWSETELEM, netlink.NLM_F_CREATE, element, there))
    last = first + len(verbs)
    parts = [netlink.netfilter_message(_BATCH_BEGIN, 0, first, 0, _SUBSYSTEM)]
    for sequence, (verb, flags, element, body) in enumerate(verbs, first + 1):
        # Kernels before 6.10 do not acknowledge the end of a batch, but always its last change.
        flags |= netlink.NLM_F_ACK if sequence == last else 0
        parts.append(netlink.netfilter_message(verb, flags, sequence, FAMILIES[element.set.family], 0, body))
    parts.append(netlink.netfilter_message(_BATCH_END, 0, last + 1, 0, _SUBSYSTEM))
    return b"".join(parts), last


def _element(element: Element, timeout: float | None = None, comment: str = "") -> bytes:
    inner = [netlink.nested(_ELEM_KEY, netlink.attribute(_DATA_VALUE, element.key))]
    if timeout is not None:
        milliseconds = max(1, math.ceil(timeout * 1000))  # 0 would mean for ever
        inner.append(netlink.attribute(_ELEM_TIMEOUT, milliseconds.to_bytes(8, "big")))
    if comment:
        text = comment.encode() + b"\0"
        inner.append(netlink.attribute(_ELEM_USERDATA, bytes((_UDATA_COMMENT, len(text))) + text))
    return (
        _name(_LIST_TABLE, element.set.table)
        + _name(_LIST_SET, element.set.name)
        + netlink.nested(_LIST_ELEMENTS, netlink.nested(_LIST_ELEM, *inner))
    )


def _name(kind: int, text: str) -> bytes:
    return netlink.attribute(kind, text.encode() + b"\0")


def never_granted(src: bytes) -> str | None:
    """Why this address can never be a knocker's, if so: what can be told from the address itself (T37)."""
    address = ipaddress.ip_address(src)
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_multicast:
        return _ROUTE_TYPES[5]
    if src == b"\xff\xff\xff\xff":
        return _ROUTE_TYPES[3]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "an IPv4 address in IPv6 form"
    return None


class Sets:
    """What is open, and the sets that say so to the kernel. Raises FirewallError with the kernel's words.

    `now` and a grant's `expires` are seconds of one clock, whichever; one that is never set, where doors must not
    come back after their end.
    """

    def __init__(self) -> None:
        self._netfilter = _connect(netlink.NETLINK_NETFILTER)
        self._route = _connect(netlink.NETLINK_ROUTE)
        self._open: dict[bytes, dict[str, _Open]] = {}
        # Sources whose elements may not be what they should be, and what of them must be gone.
        self._unsure: dict[bytes, set[Element]] = {}
        # Sources that are to be gone through, since others have changed the sets; and how that goes.
        self._again: dict[bytes, None] = {}
        self._going = False
        self._failure: FirewallError | None = None
        self._ends: list[_End] = []
        self.gone: set[str] = set()  # doors of a daemon before this one that are no more: what they opened is closed
        self._doors: dict[str, Door] = {}
        self._types: dict[SetName, SetType] = dict(_OUR_TYPES)
        self._unfit: dict[SetName, FirewallError] = {}  # sets that are not there, or do not fit, and why

    @property
    def port(self) -> int:
        """The netlink port by which changes of ours are known."""
        number: int = self._netfilter.raw.getsockname()[0]
        return number

    def disconnect(self) -> None:
        """Let go of the kernel; every door closes on time all the same."""
        self._netfilter.close()
        self._route.close()

    @property
    def grants(self) -> list[Grant]:
        """What is open, in no particular order."""
        return [opened.grant for doors in self._open.values() for opened in doors.values()]

    @property
    def sources(self) -> list[bytes]:
        """For whom something is open: 65,536 of them in one to a few milliseconds, unlike `grants`."""
        return list(self._open)

    def use(self, doors: Iterable[Door]) -> None:
        """Go on with these doors. Raises FirewallError if our rules are missing, or a set of the doors does not fit.

        A set of somebody else's that is missing is no reason not to go on: see check().
        """
        doors = tuple(doors)
        found, types, unfit = self._look(doors, whole=False)
        for failure in (found.ours, *found.others):
            if failure is not None and (failure is found.ours or failure.exit_code != UNAVAILABLE):
                raise failure
        self._adopt(doors, types, unfit)

    def check(self, doors: Iterable[Door], *, whole: bool = False) -> Fitness:
        """Look again at what these doors need, and go on with what is there. Sets that are new are to be filled.

        `whole`: whether our table is wanted even if none of the doors needs it.
        """
        doors = tuple(doors)
        found, types, unfit = self._look(doors, whole=whole)
        known = self._types
        self._adopt(doors, types, unfit)
        if any(known.get(name) != kind for name, kind in types.items()):
            self.unsure()
        return found

    def _adopt(self, doors: Iterable[Door], types: dict[SetName, SetType], unfit: dict[SetName, FirewallError]) -> None:
        self._doors = {door.name: door for door in doors}
        # What doors that are gone have opened ends in the sets that they had.
        self._types = _OUR_TYPES | {name: kind for name, kind in self._types.items() if name not in unfit} | types
        self._unfit = unfit

    def _look(
        self, doors: tuple[Door, ...], *, whole: bool
    ) -> tuple[Fitness, dict[SetName, SetType], dict[SetName, FirewallError]]:
        types: dict[SetName, SetType] = {}
        unfit: dict[SetName, FirewallError] = {}
        ours, restorable = None, False
        if whole or any(door.guard and door.opens for door in doors):
            ours, restorable = self._look_at_ours()
            if ours is not None and ours.exit_code != UNAVAILABLE:  # another's: nothing is put there
                unfit |= dict.fromkeys(GRANTED.values(), ours)
        mistakes: list[FirewallError] = []
        for name in dict.fromkeys(name for door in doors for name in door.sets):
            try:
                types[name] = self._set_type(name)
            except FirewallError as error:
                unfit[name] = error
                mistakes.append(error)
        mistakes += (
            FirewallError(
                f"set {name} holds services, and door {door.name} opens none",
                'give the door its services: opens = ["22/tcp"]',
            )
            for door in doors
            for name in door.sets
            if not door.opens and name in types and types[name].with_service
        )
        return Fitness(ours, restorable, tuple(mistakes)), types, unfit

    def _look_at_ours(self) -> tuple[FirewallError | None, bool]:
        """What is wrong with our own table, and whether that is only that something is missing."""
        try:
            sets, chains, ruled = self._our_sets(), self._our_chains(), self._chains_with_rules()
        except FirewallError as error:
            if error.exit_code != UNAVAILABLE:
                raise
            sets, chains, ruled = {}, set(), set()
        strange = [f"set {name}" for name, kind in sets.items() if _OURS.get(name) != kind]
        strange += (f"chain {name}" for name in chains - _CHAINS)
        if strange:
            hint = "give that table another name; where nobody needs it, `logknock rules remove` deletes it"
            return FirewallError(f"table inet logknock is not logknock's: {strange[0]} is none of ours", hint), False
        has_rules = "guard" in ruled
        for name in GRANTED.values():
            try:
                self._set_type(name)
            except FirewallError as error:
                return error, error.exit_code == UNAVAILABLE and not has_rules
        if has_rules:
            return None, False
        # The sets may be there and the rules not (`nft flush table`): then nothing is guarded, and nothing logged.
        hint = "`logknock rules apply` loads them"
        return FirewallError("the rules of table inet logknock are gone: nothing is guarded", hint, UNAVAILABLE), True

    def _our_sets(self) -> dict[str, int]:
        """The sets in the table of our name, and the types of their keys."""
        found: dict[str, int] = {}
        for answer in self._dump(_GETSET, _name(_SET_TABLE, "logknock")):
            if int.from_bytes(answer.get(_SET_FLAGS, b""), "big") & _FLAG_ANONYMOUS:
                continue  # a rule's own, in braces
            kind = int.from_bytes(answer.get(_SET_KEY_TYPE, b""), "big")
            found[bytes(answer.get(_SET_NAME, b"")).rstrip(b"\0").decode(errors="replace")] = kind
        return found

    def _our_chains(self) -> set[str]:
        """The chains in the table of our name. (The kernel tells those of all tables.)"""
        found = [
            (
                bytes(answer.get(kind, b"")).rstrip(b"\0").decode(errors="replace")
                for kind in (_CHAIN_TABLE, _CHAIN_NAME)
            )
            for answer in self._dump(_GETCHAIN, b"")
        ]
        return {name for table, name in found if table == "logknock"}

    def _chains_with_rules(self) -> set[str]:
        """The chains in the table of our name that have rules."""
        return {
            bytes(answer.get(_RULE_CHAIN, b"")).rstrip(b"\0").decode(errors="replace")
            for answer in self._dump(_GETRULE, _name(_RULE_TABLE, "logknock"))
        }

    def _dump(self, kind: int, what: bytes) -> list[dict[int, memoryview]]:
        sequence = self._netfilter.sequence()
        request = netlink.netfilter_message(kind, netlink.NLM_F_DUMP, sequence, FAMILIES["inet"], 0, what)
        answers = self._ask("table inet logknock", request, sequence)
        return [netlink.attributes(memoryview(answer)[4:]) for answer in answers]

    def refused(self, src: bytes) -> str | None:
        """Why no door ever opens for this address (T37), or None where nothing is against it."""
        reason = never_granted(src)
        if reason is not None:
            return reason
        family = 2 if len(src) == 4 else 10  # AF_INET, AF_INET6
        body = bytes((family, len(src) * 8)) + bytes(10) + netlink.attribute(_RTA_DST, src)
        sequence = self._route.sequence()
        flags = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
        try:
            answers = self._route.request(netlink.message(_GETROUTE, flags, sequence, body), sequence)
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                return None  # no route, or one that refuses: then it is no address of ours either
            raise _firewall_error("the routing table cannot be read", error) from error
        return _ROUTE_TYPES.get(answers[0][_ROUTE_TYPE_AT]) if answers else None

    def open(self, door: Door, grant: Grant, now: float) -> None:
        """Open the door, or refresh it: from here on until grant.expires, and at most door.timeout from `now`.

        The grant is held to even where the kernel refuses it: reconcile() tries again while it lasts (T34).
        """
        if len(self._open) >= MAX_KNOCKERS and grant.src not in self._open:
            raise FirewallError(f"doors are open for {MAX_KNOCKERS} addresses already: {door.name} opens for no more")
        self._open.setdefault(grant.src, {})[door.name] = _Open(grant, door)
        self._remember_end(grant)
        shut = self._apply(grant.src, (), now)
        if door.name in shut:
            raise shut[door.name]

    def close(self, door: str, src: bytes, now: float) -> Grant | None:
        """Close the door now; the grant that ends, or None where there was none."""
        closed = self._forget(door, src)
        if closed is None:
            return None
        # What another door holds open is put back in the same batch.
        self._apply(src, self._elements(closed.door, src), now)
        return closed.grant

    def find(self, door: str, src: bytes) -> Grant | None:
        """The grant, if the door is open for this address."""
        opened = self._open.get(src, {}).get(door)
        return opened and opened.grant

    def holds(self, src: bytes) -> bool:
        """Whether the kernel has all that this address is granted."""
        return src not in self._unsure

    def is_shut(self, door: str, src: bytes) -> bool:
        """Whether the kernel may not have what this grant says, as far as is known."""
        if src in self._unsure or src in self._again:
            return True
        return any(name == door for name, _ in self._kept_shut(src, {}))

    def hold(self, door: Door, grant: Grant) -> None:
        """Have the door open as open() would; it is reconcile() that opens it."""
        self._open.setdefault(grant.src, {})[door.name] = _Open(grant, door)
        self._unsure.setdefault(grant.src, set())
        self._remember_end(grant)

    def expire(self, now: float, most: int = MAX_KNOCKERS) -> list[tuple[Grant, bool]]:
        """Forget what has ended, which the kernel has closed by itself: the grants, and whether it ever had them.

        No more than `most` at a time.
        """
        ended: list[tuple[Grant, bool]] = []
        while self._ends and self._ends[0].expires <= now and len(ended) < most:
            grant = heappop(self._ends).grant
            opened = self._open.get(grant.src, {}).get(grant.door)
            if opened is not None and opened.grant is grant:
                ended.append((grant, grant.src not in self._unsure))
                self._forget(grant.door, grant.src)
        return ended

    @property
    def settled(self) -> bool:
        """Whether the kernel has all that is open, as far as is known."""
        return not (self._unsure or self._again)

    def unsure(self) -> None:
        """Somebody else may have changed any element of any set: reconcile() is to go through them all."""
        self._again = dict.fromkeys(self._open)

    def touch(self, element: Element, *, made_by: str | None) -> bool:
        """Somebody else has made, changed or deleted an element; whether that concerns us, and reconcile() is needed.

        made_by: the comment of an element that was not deleted. Where it names one of our doors, and that door is
        not open for the source, then the element is of a grant that has ended, out of somebody's copy of the
        ruleset say: it goes again (T33). What an administrator adds, without such a comment, stays.
        """
        kind = self._types.get(element.set)
        if kind is None:
            return False
        src = element.key[: kind.address_bytes]
        if any(element in self._elements(opened.door, src) for opened in self._open.get(src, {}).values()):
            self._again[src] = None
            return True
        door = self._doors.get(made_by) if made_by else None
        ours = element.set in GRANTED.values()
        if door is None and not (ours and made_by in self.gone):
            return False
        if door is not None and not ((door.guard and ours) or element.set in door.sets):
            return False
        self._unsure.setdefault(src, set()).add(element)
        return True

    def uses(self, name: SetName) -> bool:
        """Whether doors open in this set."""
        return name in self._types

    def sweep(self) -> "Sweep":
        """Look for elements of grants that have ended, in all sets that doors open in. Raises FirewallError."""
        # A socket of its own: other things are asked in between.
        return Sweep(self._swept(_connect(netlink.NETLINK_NETFILTER), list(self._types)))

    def _swept(self, kernel: netlink.Socket, names: list[SetName]) -> Iterator[int]:
        """Some elements at a time; how many."""
        with kernel:
            for name in names:
                number, where = kernel.sequence(), _name(_LIST_TABLE, name.table) + _name(_LIST_SET, name.name)
                flags, family = netlink.NLM_F_DUMP, FAMILIES[name.family]
                request = netlink.netfilter_message(_GETSETELEM, flags, number, family, 0, where)
                try:
                    for bodies in kernel.dump(request, number):
                        yield max(1, sum(self._sweep_part(name, body) for body in bodies))
                except OSError as error:
                    if error.errno != errno.ENOENT:
                        raise _firewall_error(f"set {name}", error) from error

    def _sweep_part(self, name: SetName, body: bytes) -> int:
        found = 0
        kind = self._types.get(name)
        for element in _each(netlink.attributes(memoryview(body)[4:]).get(_LIST_ELEMENTS, memoryview(b""))):
            found += 1
            comment = _comment(element)
            if kind is not None and (comment in self._doors or comment in self.gone):
                address = bytes(netlink.attributes(element[_ELEM_KEY])[_DATA_VALUE])
                if comment not in self._open.get(address[: kind.address_bytes], ()):
                    self.touch(Element(name, address), made_by=comment)
        return found

    def reconcile(self, now: float) -> int:
        """Make the sets hold what is open, for a bounded number of sources; how many these were.

        Call it until it returns 0, which is when all sources are gone through. Raises the first FirewallError that
        one of them met when it has been through all; what failed is tried again, later.
        """
        if not self._going:
            self._again |= dict.fromkeys(self._unsure)
            self._going = bool(self._again)
        some = list(islice(self._again, _RECONCILE_BATCH))
        for src in some:
            del self._again[src]
        done = self._apply_together(some, now)
        for src in some if done is None else ():
            done = done or 0
            try:
                if src in self._open or src in self._unsure:
                    shut = self._apply(src, (), now)
                    done += src in self._open and not shut
                    self._failure = self._failure or next(iter(shut.values()), None)
            except FirewallError as error:
                self._failure = self._failure or error
        if self._again:
            return len(some)
        self._going = False
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return done or 0

    def _apply_together(self, sources: list[bytes], now: float) -> int | None:
        """The same as _apply for each, in one batch; None where that cannot be done and nothing was changed."""
        drop = [element for src in sources for element in self._unsure.get(src, ())]
        hold = [(element, *rest) for src in sources for element, rest in self._wanted(src, now).items()]
        if self._unfit or not 0 < len(drop) + len(hold) <= _TOGETHER:
            return None
        try:
            self._change(drop, hold)
        except FirewallError:
            return None
        for src in sources:
            self._unsure.pop(src, None)
        return sum(src in self._open for src in sources)

    def lacks(self, name: SetName, services: Iterable[Service]) -> list[Service]:
        """Those that are not in a set of type `inet_proto . inet_service`. A missing set lacks all.

        They are asked for one by one (15 microseconds each): a set that watches files of one-time sequences has tens of
        thousands of elements, and to read them all would take the daemon's time.
        """
        return [service for service in services if not self.has(Element(name, key(b"", service)))]

    def unheard(self, src: bytes) -> tuple[bool, bool]:
        """Whether our rules drop all that comes from the source (banned), and whether they log none of it (noisy)."""
        whole = source_key(src)
        return self.is_banned(whole), self.has(Element(_NOISY[len(src)], whole))

    def granted(self, src: bytes) -> list[Grant]:
        """The doors that are open for a source."""
        return [opened.grant for opened in self._open.get(src, {}).values()]

    def has(self, element: Element) -> bool:
        """Whether the kernel has this element. A missing set has none."""
        return bool(self._get(element))

    def _get(self, element: Element) -> list[bytes]:
        sequence = self._netfilter.sequence()
        family = FAMILIES[element.set.family]
        request = netlink.netfilter_message(_GETSETELEM, netlink.NLM_F_ACK, sequence, family, 0, _element(element))
        try:
            return self._netfilter.request(request, sequence)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise _firewall_error(f"set {element.set}", error) from error

    # ---- bans: who is banned until when is in `bans`; here is how the kernel is told

    def ban(self, drop: Iterable[bytes], hold: Iterable[Banned]) -> None:
        """In one batch: no ban of the keys in `drop`, and those in `hold` for as long as they have left."""
        gone = [_banned_element(key) for key in drop]
        self._change(gone, [(_banned_element(ban.key), ban.left, ban.comment) for ban in hold])

    def is_banned(self, key: bytes) -> bool:
        """Whether the kernel has a ban of this key."""
        return self.has(_banned_element(key))

    def find_banned(self, key: bytes) -> Banned | None:
        """The ban of this key that the kernel has."""
        for body in self._get(_banned_element(key)):
            elements = netlink.attributes(memoryview(body)[4:]).get(_LIST_ELEMENTS, memoryview(b""))
            for element in _each(elements):
                return _read_banned(element)
        return None

    def banned(self) -> list[Banned]:
        """All bans that the kernel has. Reads both sets whole: some microseconds each, so for the start only."""
        found: list[Banned] = []
        for name in _BANNED.values():
            sequence = self._netfilter.sequence()
            where = _name(_LIST_TABLE, name.table) + _name(_LIST_SET, name.name)
            request = netlink.netfilter_message(
                _GETSETELEM, netlink.NLM_F_DUMP, sequence, FAMILIES[name.family], 0, where
            )
            for body in self._ask(f"set {name}", request, sequence):
                elements = netlink.attributes(memoryview(body)[4:]).get(_LIST_ELEMENTS, memoryview(b""))
                found += map(_read_banned, _each(elements))
        return found

    def granted_among(self, keys: Collection[bytes]) -> set[bytes]:
        """Those of the keys that are of a source with an open door, or of its /64."""
        found = {key for key in keys if key in self._open}
        if any(len(key) == 16 for key in keys):
            found.update({source_key(src) for src in self._open if len(src) == 16}.intersection(keys))
        return found

    def _remember_end(self, grant: Grant) -> None:
        heappush(self._ends, _End(grant.expires, grant))
        if len(self._ends) > _ENDS_SLACK + 2 * len(self._open):  # most are of grants that were refreshed since
            self._ends = [_End(grant.expires, grant) for grant in self.grants]
            heapify(self._ends)

    def _forget(self, door: str, src: bytes) -> _Open | None:
        doors = self._open.get(src)
        opened = doors.pop(door, None) if doors else None
        if doors is not None and not doors:
            del self._open[src]
            if self._unsure.get(src) == set():  # nothing to hold, and nothing that must be gone
                del self._unsure[src]
        return opened

    def _elements(self, door: Door, src: bytes) -> list[Element]:
        """The elements that open a door, in the sets that there are."""
        names = (GRANTED[len(src)], *door.sets) if door.guard else door.sets
        found: list[Element] = []
        for name in names:
            kind = self._types.get(name)
            if kind is not None and kind.address_bytes == len(src) and name not in self._unfit:
                services: Collection[Service | None] = door.opens if kind.with_service else (None,)
                found += (Element(name, key(src, service)) for service in services)
        return found

    def _apply(self, src: bytes, drop: Collection[Element], now: float) -> dict[str, FirewallError]:
        """Make the kernel hold what this source is granted, in the sets that there are.

        Where two doors share an element, the later end counts. Returns the doors that stay shut for want of a set,
        and why. Raises FirewallError where nothing was changed.
        """
        gone = self._unsure.setdefault(src, set())  # until the kernel has agreed
        gone.update(drop)
        missing: dict[SetName, FirewallError] = {}
        while True:
            hold = [(element, *rest) for element, rest in self._wanted(src, now).items() if element.set not in missing]
            drop = [element for element in gone if element.set not in missing]
            try:
                if hold or drop:
                    self._change(drop, hold)
                break
            except _RefusedError as error:
                if error.errno != errno.ENOENT or error.set in missing:
                    raise
                missing[error.set] = error
                if error.set not in _OUR_TYPES:  # until check() finds that it is there again
                    self._unfit[error.set] = error
        shut = dict(self._kept_shut(src, missing))
        if shut:
            gone.clear()
        else:
            del self._unsure[src]
        return shut

    def _wanted(self, src: bytes, now: float) -> dict[Element, tuple[float, str]]:
        """The elements that a source should have, each with the seconds that it has left and its door's name."""
        hold: dict[Element, tuple[float, str]] = {}
        for grant, door in self._open.get(src, {}).values():
            left = min(grant.expires - now, door.timeout)
            for element in self._elements(door, src):
                if left > hold.get(element, (0.0, ""))[0]:
                    hold[element] = (left, grant.door)
        return hold

    def _kept_shut(self, src: bytes, missing: dict[SetName, FirewallError]) -> Iterator[tuple[str, FirewallError]]:
        """The doors that should be open for a source and have no set to be open in, and what is wrong with that."""
        unfit = self._unfit | missing
        for grant, door in self._open.get(src, {}).values() if unfit else ():
            ours = unfit.get(GRANTED[len(src)]) if door.guard and door.opens else None
            theirs = next((unfit[name] for name in door.sets if name in unfit), None)
            if ours is not None:
                yield grant.door, ours
            elif theirs is not None and not self._elements(door, src):
                yield grant.door, theirs

    def _change(self, drop: list[Element], hold: list[tuple[Element, float, str]]) -> None:
        first = self._netfilter.sequence()
        batch, last = render(drop, hold, first)
        self._netfilter.skip_to(last + 1)
        try:
            self._netfilter.request(batch, last, first)
        except netlink.NetlinkError as error:
            # Which message was refused tells which set refused it (see render).
            changed = [*(element for element in drop for _ in "ad"), *(element for element, *_ in hold for _ in "ada")]
            place = min(max(error.sequence - first - 1, 0), len(changed) - 1)
            raise _RefusedError(changed[place].set, error) from error
        except OSError as error:
            raise _firewall_error("nftables", error) from error

    def _set_type(self, name: SetName) -> SetType:
        sequence = self._netfilter.sequence()
        request = netlink.netfilter_message(
            _GETSET, netlink.NLM_F_ACK, sequence, FAMILIES[name.family], 0,
            _name(_SET_TABLE, name.table), _name(_SET_NAME, name.name),
        )  # fmt: skip
        answers = self._ask(f"set {name}", request, sequence)
        found = netlink.attributes(memoryview(answers[0])[4:]) if answers else {}
        flags = int.from_bytes(found.get(_SET_FLAGS, b""), "big")
        number = int.from_bytes(found.get(_SET_KEY_TYPE, b""), "big")
        if flags & (_FLAG_CONSTANT | _FLAG_INTERVAL | _FLAG_MAP) or not flags & _FLAG_TIMEOUT:
            raise FirewallError(
                f"set {name} must have `flags timeout`, and no `interval` or `constant`, and be no map",
                "nftables closes a door by its element's timeout; give the set that one flag",
            )
        for address, size in ((_IPV4, 4), (_IPV6, 16)):
            if number == address:
                return SetType(size, with_service=False)
            if number == address << _WITH_SERVICE | _SERVICES:
                return SetType(size, with_service=True)
        raise FirewallError(
            f"set {name} holds neither addresses nor addresses with services",
            "its type must be ipv4_addr or ipv6_addr, or one of these with `. inet_proto . inet_service`",
        )

    def _ask(self, what: str, request: bytes, sequence: int) -> list[bytes]:
        try:
            return self._netfilter.request(request, sequence)
        except OSError as error:
            raise _firewall_error(what, error) from error


class Sweep:
    """Goes through sets whole, in parts: see Sets.sweep()."""

    def __init__(self, steps: Iterator[int]) -> None:
        self._steps = steps

    def reconcile(self, _now: float) -> int:
        """Look at some elements, 300 or so; 0 when all were looked at. Raises FirewallError."""
        return next(self._steps, 0)


def _banned_element(key: bytes) -> Element:
    return Element(_BANNED[len(key)], key)


def _each(data: memoryview) -> Iterator[dict[int, memoryview]]:
    """The attributes of each member of a list, up to the first that is not whole."""
    at = 0
    while at + netlink.ATTRIBUTE.size <= len(data):
        length, _ = netlink.ATTRIBUTE.unpack_from(data, at)
        if not netlink.ATTRIBUTE.size <= length <= len(data) - at:
            break
        yield netlink.attributes(data[at + netlink.ATTRIBUTE.size : at + length])
        at += netlink.align(length)


def _read_banned(element: dict[int, memoryview]) -> Banned:
    """An element without a timeout never ends."""
    timeout, left = (
        int.from_bytes(element[kind], "big") / 1000 if kind in element else math.inf
        for kind in (_ELEM_TIMEOUT, _ELEM_EXPIRATION)
    )
    key = bytes(netlink.attributes(element[_ELEM_KEY])[_DATA_VALUE])
    return Banned(key, timeout, min(left, timeout), _comment(element))


def _comment(element: dict[int, memoryview]) -> str:
    """The comment of an element, which is what nft and we keep in its user data."""
    userdata = bytes(element.get(_ELEM_USERDATA, b""))
    if len(userdata) > 2 and userdata[0] == _UDATA_COMMENT:
        return userdata[2 : 2 + userdata[1]].rstrip(b"\0").decode("utf-8", "replace")
    return ""


def _connect(protocol: int) -> netlink.Socket:
    try:
        return netlink.Socket(protocol)
    except OSError as error:
        raise _firewall_error("no netlink socket", error) from error


def _firewall_error(what: str, error: OSError) -> FirewallError:
    words = error.strerror or str(error)
    if error.errno in (errno.EPERM, errno.EACCES):
        return FirewallError(f"{what}: {words}", "CAP_NET_ADMIN is needed: run as root", NO_PERMISSION)
    if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
        hint = "this kernel has no nftables (CONFIG_NF_TABLES), or its module is not there"
        return FirewallError(f"{what}: {words}", hint, UNAVAILABLE)
    if error.errno == errno.ENOENT:
        ours = "inet logknock" in what
        hint = "`logknock rules apply` loads it" if ours else "your firewall is to make it, or the door to do without"
        return FirewallError(f"{what} is missing: {words}", hint, UNAVAILABLE)
    if error.errno == errno.ENFILE:
        return FirewallError(f"{what}: the set is full: {words}", "it has room again as its elements expire")
    return FirewallError(f"{what}: {words}")
