"""Open doors as elements of nftables sets: the only thing that the running daemon changes in the kernel.

Rule 1: what should be open is here, and the sets are made to agree (`open`, `close`, `reconcile` take one path).
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
_BANNED = {4: SetName("inet", "logknock", "banned4"), 16: SetName("inet", "logknock", "banned6")}
_NOISY = {4: SetName("inet", "logknock", "noisy4"), 16: SetName("inet", "logknock", "noisy6")}
_PREFIX_BYTES = 8  # of IPv6, by which sources are banned

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETRULE, _GETSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = (
    _SUBSYSTEM << 8 | number for number in (7, 10, 12, 13, 14, 16)
)
_RULE_TABLE, _RULE_CHAIN = 1, 2
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE = 1, 2, 3, 4
_FLAG_CONSTANT, _FLAG_INTERVAL, _FLAG_MAP, _FLAG_TIMEOUT = 0x02, 0x04, 0x08, 0x10
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _ELEM_TIMEOUT, _ELEM_USERDATA, _DATA_VALUE = 1, 4, 6, 1
_UDATA_COMMENT = 0
_GEN_ID = 1

# How nft numbers the types of a set's key; a concatenation is the numbers of its parts, 6 bits each.
_IPV4, _IPV6, _PROTO, _SERVICE = 7, 8, 12, 13
_WITH_SERVICE = 12  # how far a type moves when `. inet_proto . inet_service` follows

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

# When everything is put back, so many knockers at a time: about 2 ms in which the daemon does nothing else.
_RECONCILE_BATCH = 64


class Element(NamedTuple):
    """Where a grant stands in the kernel: a set, and the key in it."""

    set: SetName
    key: bytes


class _Open(NamedTuple):
    """A grant, the door's timeout in seconds, which no element of it outlives, and its elements."""

    grant: Grant
    timeout: float
    elements: tuple[Element, ...]


class _End(NamedTuple):
    """When a grant ends; a heap of these begins with the next one."""

    expires: float
    grant: Grant


class SetType(NamedTuple):
    """What a set holds: addresses of so many bytes, with a protocol and a port behind or without."""

    address_bytes: int
    with_service: bool


def key(src: bytes, service: Service | None) -> bytes:
    """The key of an element: each part padded to 4 bytes, as nft lays a concatenation out."""
    if service is None:
        return src
    return src + bytes((service.proto, 0, 0, 0)) + service.port.to_bytes(2, "big") + b"\0\0"


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
        self._ends: list[_End] = []
        self._types: dict[SetName, SetType] = {}
        self._generation = self._read_generation()

    def disconnect(self) -> None:
        """Let go of the kernel; every door closes on time all the same."""
        self._netfilter.close()
        self._route.close()

    @property
    def grants(self) -> list[Grant]:
        """What is open, in no particular order."""
        return [opened.grant for doors in self._open.values() for opened in doors.values()]

    def use(self, doors: Iterable[Door]) -> None:
        """Go on with these doors; raises FirewallError if the rules or one of their sets is missing or does not fit."""
        types, failure = self._look(doors)
        if failure is not None:
            raise failure
        self._types = types

    def check(self, doors: Iterable[Door]) -> FirewallError | None:
        """Look again at what these doors need, and go on with what is there; the first thing that is wrong."""
        types, failure = self._look(doors)
        self._types.update(types)
        return failure

    def _look(self, doors: Iterable[Door]) -> tuple[dict[SetName, SetType], FirewallError | None]:
        doors = tuple(doors)
        guards = any(door.guard and door.opens for door in doors)
        needed = dict.fromkeys(GRANTED.values() if guards else ())
        needed.update((name, None) for door in doors for name in door.sets)
        types: dict[SetName, SetType] = {}
        failures: list[FirewallError] = []
        for name in needed:
            try:
                types[name] = self._set_type(name)
            except FirewallError as error:
                failures.append(error)
        if guards and not failures:
            failures += self._missing_rules()
        failures += (
            FirewallError(
                f"set {name} holds services, and door {door.name} opens none",
                'give the door its services: opens = ["22/tcp"]',
            )
            for door in doors
            for name in door.sets
            if not door.opens and name in types and types[name].with_service
        )
        return types, next(iter(failures), None)

    def _missing_rules(self) -> Iterator[FirewallError]:
        """The sets may be there and the rules not (`nft flush table`): then nothing is guarded, and nothing logged."""
        sequence = self._netfilter.sequence()
        table, chain = _name(_RULE_TABLE, "logknock"), _name(_RULE_CHAIN, "guard")
        flags, family = netlink.NLM_F_DUMP, FAMILIES["inet"]
        request = netlink.netfilter_message(_GETRULE, flags, sequence, family, 0, table, chain)
        if not self._ask("chain inet logknock guard", request, sequence):
            hint = "`logknock rules apply` loads them"
            yield FirewallError("the rules of table inet logknock are gone: nothing is guarded", hint, UNAVAILABLE)

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
        elements = tuple(self._elements(door, grant.src))
        self._open.setdefault(grant.src, {})[door.name] = _Open(grant, door.timeout, elements)
        self._remember_end(grant)
        self._apply(grant.src, (), now)

    def close(self, door: str, src: bytes, now: float) -> Grant | None:
        """Close the door now; the grant that ends, or None where there was none."""
        closed = self._forget(door, src)
        if closed is None:
            return None
        self._apply(src, closed.elements, now)  # what another door holds open is put back in the same batch
        return closed.grant

    def find(self, door: str, src: bytes) -> Grant | None:
        """The grant, if the door is open for this address."""
        opened = self._open.get(src, {}).get(door)
        return opened and opened.grant

    def holds(self, src: bytes) -> bool:
        """Whether the kernel has all that this address is granted."""
        return src not in self._unsure

    def hold(self, door: Door, grant: Grant) -> None:
        """Have the door open as open() would; it is reconcile() that opens it."""
        elements = tuple(self._elements(door, grant.src))
        self._open.setdefault(grant.src, {})[door.name] = _Open(grant, door.timeout, elements)
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

    def changed(self) -> bool:
        """Whether anybody else has changed the ruleset since this was last asked, or a change of ours failed."""
        generation = self._read_generation()
        foreign = generation != self._generation
        self._generation = generation
        if foreign:
            for src in self._open:
                self._unsure.setdefault(src, set())
        return foreign or bool(self._unsure)

    def reconcile(self, now: float) -> int:
        """Make the sets hold what is open, for a bounded number of sources; how many these were.

        Call it until it returns 0. Raises the first FirewallError that one met; what failed is tried again, later.
        """
        done, failure = 0, None
        for src in list(islice(self._unsure, _RECONCILE_BATCH)):
            try:
                self._apply(src, (), now)
                done += 1
            except FirewallError as error:
                failure = failure or error
                self._unsure[src] = self._unsure.pop(src)  # behind the others, which may fare better
        if failure is not None:
            raise failure
        return done

    def lacks(self, name: SetName, services: Iterable[Service]) -> list[Service]:
        """Those that are not in a set of type `inet_proto . inet_service`. A missing set lacks all.

        They are asked for one by one (15 microseconds each): a set that watches files of one-time sequences has tens of
        thousands of elements, and to read them all would take the daemon's time.
        """
        return [service for service in services if not self.has(Element(name, key(b"", service)))]

    def unheard(self, src: bytes) -> tuple[bool, bool]:
        """Whether our rules drop all that comes from the source (banned), and whether they log none of it (noisy)."""
        banned = src if len(src) == 4 else src[:_PREFIX_BYTES] + bytes(len(src) - _PREFIX_BYTES)
        return self.has(Element(_BANNED[len(src)], banned)), self.has(Element(_NOISY[len(src)], src))

    def granted(self, src: bytes) -> list[Grant]:
        """The doors that are open for a source."""
        return [opened.grant for opened in self._open.get(src, {}).values()]

    def has(self, element: Element) -> bool:
        """Whether the kernel has this element. A missing set has none."""
        sequence = self._netfilter.sequence()
        family = FAMILIES[element.set.family]
        request = netlink.netfilter_message(_GETSETELEM, netlink.NLM_F_ACK, sequence, family, 0, _element(element))
        try:
            return bool(self._netfilter.request(request, sequence))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise _firewall_error(f"set {element.set}", error) from error

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

    def _elements(self, door: Door, src: bytes) -> Iterable[Element]:
        if door.guard:
            yield from (Element(GRANTED[len(src)], key(src, service)) for service in door.opens)
        for name in door.sets:
            kind = self._types.get(name)
            if kind is not None and kind.address_bytes == len(src):
                services: Collection[Service | None] = door.opens if kind.with_service else (None,)
                yield from (Element(name, key(src, service)) for service in services)

    def _apply(self, src: bytes, drop: Collection[Element], now: float) -> None:
        """Make the kernel hold what this source is granted; where two doors share an element, the later end counts."""
        hold: dict[Element, tuple[float, str]] = {}
        for opened in self._open.get(src, {}).values():
            left = min(opened.grant.expires - now, opened.timeout)
            for element in opened.elements:
                if left > hold.get(element, (0.0, ""))[0]:
                    hold[element] = (left, opened.grant.door)
        gone = self._unsure.setdefault(src, set())  # until the kernel has agreed
        gone.update(drop)
        if hold or gone:
            self._change(list(gone), [(element, left, door) for element, (left, door) in hold.items()])
        del self._unsure[src]

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
            raise _firewall_error(f"set {changed[place].set}", error) from error
        except OSError as error:
            raise _firewall_error("nftables", error) from error
        self._generation = (self._generation + 1) & 0xFFFFFFFF

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
        suffix = _PROTO << 6 | _SERVICE
        for address, size in ((_IPV4, 4), (_IPV6, 16)):
            if number == address:
                return SetType(size, with_service=False)
            if number == address << _WITH_SERVICE | suffix:
                return SetType(size, with_service=True)
        raise FirewallError(
            f"set {name} holds neither addresses nor addresses with services",
            "its type must be ipv4_addr or ipv6_addr, or one of these with `. inet_proto . inet_service`",
        )

    def _read_generation(self) -> int:
        sequence = self._netfilter.sequence()
        request = netlink.netfilter_message(_GETGEN, netlink.NLM_F_ACK, sequence, 0, 0)
        answers = self._ask("nftables", request, sequence)
        found = netlink.attributes(memoryview(answers[0])[4:]) if answers else {}
        return int.from_bytes(found.get(_GEN_ID, b""), "big")

    def _ask(self, what: str, request: bytes, sequence: int) -> list[bytes]:
        try:
            return self._netfilter.request(request, sequence)
        except OSError as error:
            raise _firewall_error(what, error) from error


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
