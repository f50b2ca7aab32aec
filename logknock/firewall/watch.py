"""What others do to the tables and sets that matter, by nftables' own notifications.

Rule 1: it listens, and neither asks nor changes anything. Rule 2: what does not matter costs a search for a few names
in what was delivered, and no more; a read takes a bounded time, whatever others do. Rule 3: what comes in may be cut or
malformed: it is passed over, and nothing is raised.

The messages are those of linux/netfilter/nf_tables.h, as nf_tables_api.c sends them to the group NFNLGRP_NFTABLES: one
for each thing that a transaction made or deleted, then NFT_MSG_NEWGEN, which says whose transaction it was. Each bears
the netlink port that asked for the change. Elements whose time is over, or that a rule adds, are not told.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

from .. import netlink
from ..errors import NO_PERMISSION, UNAVAILABLE, FirewallError, printable
from ..knock import SetName

TABLE = "logknock"
OURS = "inet logknock"

# Sets of our table that only `logknock rules` fills.
CONFIGURED = frozenset(
    SetName("inet", "logknock", name) for name in ("trusted4", "trusted6", "guarded", "watched", "traps", "spa")
)

_GROUP = 7  # NFNLGRP_NFTABLES
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _DELTABLE, _NEWCHAIN, _DELCHAIN, _NEWRULE, _DELRULE, _NEWSET, _DELSET, _NEWELEM, _DELELEM, _NEWGEN = (
    _SUBSYSTEM << 8 | number for number in (0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15)
)
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_FAMILY_BYTES = 4  # struct nfgenmsg, before the attributes

# In the messages about tables, chains, rules, sets and elements alike attribute 1 is the table and comes first; in
# those about sets and elements attribute 2 is the set and comes next.
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ELEM, _ELEM_KEY, _ELEM_USERDATA, _DATA_VALUE, _UDATA_COMMENT = 1, 1, 6, 1, 0
_GEN_PROCESS, _GEN_NAME = 2, 3
_ANONYMOUS = "__"  # begins the names of sets that are part of a rule

# Of a set in which one transaction changed more elements than that, all count as changed: no list of them is kept, and
# to look at those that are takes a millisecond.
MAX_ELEMENTS = 256

# A read ends after so many seconds: packets come first.
_READ_TIME = 0.001

# The kernel delivers what one transaction did in pieces of 4 to 8 KiB, and larger ones for rules that are larger.
_DELIVERY_BYTES = 131_072

# What waits to be read in the kernel's memory: a load of 100,000 elements waits as 20 MB or so. What is more is lost,
# which is told (ENOBUFS), and then all is looked at again.
RECEIVE_BUFFER = 48 * 1024 * 1024
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python does not name it


class Touched(NamedTuple):
    """An element that somebody made, changed or deleted; `comment` as nft shows it."""

    set: SetName
    key: bytes
    deleted: bool
    comment: str


class Change(NamedTuple):
    """What one transaction did to what matters. (A table that is there is made once more where its flags change.)

    who: the program and its process; empty if unknown. built: whether a table, chain, rule or set was made or deleted.
    gone: in words, what was deleted and not made again. emptied: sets that lost elements and got none. sets: those that
    were deleted, or had many of their elements changed. elements: what happened to single ones. lost: notifications
    were, so that anything may have happened. harmed: whether a part of our rules was deleted, or an element that only
    `logknock rules` makes, be it replaced or not.
    """

    who: str = ""
    program: str = ""
    built: bool = False
    gone: tuple[str, ...] = ()
    emptied: tuple[SetName, ...] = ()
    sets: frozenset[SetName] = frozenset()
    elements: tuple[Touched, ...] = ()
    harmed: bool = False
    lost: bool = False


class _Pending:
    """What is known of a transaction whose end has not been told yet."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        self.deleted: dict[str, None] = {}
        self.built = False
        self.sets: set[SetName] = set()
        self.elements: dict[SetName, list[Touched]] = {}
        self.emptied: dict[SetName, None] = {}
        self.filled: set[SetName] = set()

    def change(self, program: str, process: int | None) -> Change:
        table = f"table {OURS}"
        gone = [what for what in self.deleted if what not in self.made]
        if table in self.deleted:  # all that was in it went with it, whatever stands in its place now
            gone = [table, *(what for what in gone if not _is_ours(what))]
        if sum(what.startswith("rules of") for what in gone) > 1:
            gone = [f"rules of table {OURS}", *(what for what in gone if not what.startswith("rules of"))]
        emptied = (name for name in self.emptied if name not in self.filled and f"set {name}" not in self.deleted)
        return Change(
            f"{program} (process {process})" if program else "",
            program,
            self.built,
            tuple(gone),
            tuple(emptied),
            frozenset(self.sets),
            tuple(touched for name, many in self.elements.items() if name not in self.sets for touched in many),
            table in self.made or any(map(_is_ours, self.deleted)) or not CONFIGURED.isdisjoint(self.emptied),
        )


class Decoder:
    """Notifications to Changes. `own`: the netlink port whose changes are no news. Holds no descriptor."""

    def __init__(self, own: int) -> None:
        self._own = own
        self.loader = 0  # the process that loads what we want, and mostly its port; 0 when it has
        self._pending: _Pending | None = None
        self.look_for(())

    def look_for(self, names: Collection[SetName]) -> None:
        """All of our own table matters, and these sets wherever they are."""
        self._names = frozenset(names)
        others = sorted({(name.table, name.name) for name in names if f"{name.family} {name.table}" != OURS})
        ours = _string(_TABLE, TABLE)
        self._needles = (ours, *(_string(_TABLE, table) + _string(_SET, name) for table, name in others))

    def decode(self, buffer: bytearray, length: int) -> Iterator[Change]:
        """What one delivery, the first `length` bytes of the buffer, completes."""
        if length < netlink.HEADER.size:
            return
        # All that is in one delivery is of one transaction.
        _, kind, _, _, port = netlink.HEADER.unpack_from(buffer)
        if port in (self._own, self.loader):
            if kind == _NEWGEN and port == self.loader:
                self.loader = 0
            return
        if kind == _NEWGEN:
            if self._pending is not None:
                pending, self._pending = self._pending, None
                found = netlink.attributes(memoryview(buffer)[netlink.HEADER.size + _FAMILY_BYTES : length])
                process = int.from_bytes(found.get(_GEN_PROCESS, b""), "big")
                if process and process == self.loader:  # whose port somebody else had
                    self.loader = 0
                    return
                yield pending.change(_text(found.get(_GEN_NAME, b"")), process or None)
            return
        if any(buffer.find(needle, 0, length) >= 0 for needle in self._needles):
            for message in netlink.messages(memoryview(buffer)[:length]):
                self._note(message.kind, message.body)

    def lose(self) -> Change:
        """Notifications are missing: also of the transaction whose end was waited for, if there is one."""
        self._pending = None
        self.loader = 0  # what it did may be among them; another process may bear its number one day
        return Change(built=True, lost=True)

    def _note(self, kind: int, body: memoryview) -> None:
        if kind >> 8 != _SUBSYSTEM or len(body) < _FAMILY_BYTES:
            return
        family = _FAMILIES.get(body[0], "")
        strings = _leading_strings(body[_FAMILY_BYTES:])
        table = next(strings, "")
        ours = family == "inet" and table == TABLE
        if kind in (_NEWSET, _DELSET, _NEWELEM, _DELELEM):
            name = SetName(family, table, next(strings, ""))
            if (ours and not name.name.startswith(_ANONYMOUS)) or name in self._names:
                if kind in (_NEWSET, _DELSET):
                    self._note_thing(f"set {name}", deleted=kind == _DELSET)
                    if kind == _DELSET:
                        self._open.sets.add(name)
                else:
                    self._note_element(name, body, deleted=kind == _DELELEM)
        elif ours and kind in (_NEWTABLE, _DELTABLE):
            self._note_thing(f"table {OURS}", deleted=kind == _DELTABLE)
        elif ours and kind in (_NEWCHAIN, _DELCHAIN):
            self._note_thing(f"chain {OURS} {printable(next(strings, ''))}", deleted=kind == _DELCHAIN)
        elif ours and kind in (_NEWRULE, _DELRULE):
            self._note_thing(f"rules of chain {OURS} {printable(next(strings, ''))}", deleted=kind == _DELRULE)

    @property
    def _open(self) -> _Pending:
        if self._pending is None:
            self._pending = _Pending()
        return self._pending

    def _note_thing(self, what: str, *, deleted: bool) -> None:
        pending = self._open
        pending.built = True
        if deleted:
            pending.deleted[what] = None
        else:
            pending.made.add(what)

    def _note_element(self, name: SetName, body: memoryview, *, deleted: bool) -> None:
        pending = self._open
        if deleted:
            pending.emptied[name] = None
        else:
            pending.filled.add(name)
        if name in pending.sets:
            return
        many = pending.elements.setdefault(name, [])
        found = netlink.attributes(body[_FAMILY_BYTES:]).get(_ELEMENTS)
        for element in _each(found) if found else ():
            parts = netlink.attributes(element)
            key = netlink.attributes(parts.get(_ELEM_KEY, memoryview(b""))).get(_DATA_VALUE)
            if key:
                many.append(Touched(name, bytes(key), deleted, _comment(parts.get(_ELEM_USERDATA))))
        if len(many) > MAX_ELEMENTS:
            pending.sets.add(name)
            del pending.elements[name]


class Watch:
    """The notifications as they come: `read()` when `fileno()` is readable. Raises FirewallError where it cannot."""

    def __init__(self, own: int) -> None:
        self._decoder = Decoder(own)
        self._buffer = bytearray(_DELIVERY_BYTES)
        self.deliveries = 0
        try:
            self._socket = netlink.Socket(netlink.NETLINK_NETFILTER)
        except OSError as error:
            raise _cannot_listen(error) from error
        try:
            with contextlib.suppress(OSError):  # without CAP_NET_ADMIN here: then the kernel's default has to do
                self._socket.raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
            self._socket.raw.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        except OSError as error:
            self._socket.close()
            raise _cannot_listen(error) from error

    def fileno(self) -> int:
        """For the loop."""
        return self._socket.raw.fileno()

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def look_for(self, names: Collection[SetName]) -> None:
        """All of our own table matters, and these sets wherever they are."""
        self._decoder.look_for(names)

    def pass_over(self, process: int) -> None:
        """The next transaction of this process is no news. (A process's first netlink socket has its id as port.)"""
        self._decoder.loader = process

    def read(self) -> list[Change]:
        """What has happened, as far as a bounded time allows; the rest stays readable."""
        changes: list[Change] = []
        end = time.monotonic() + _READ_TIME
        while time.monotonic() < end:
            try:
                length, (port, _) = self._socket.raw.recvfrom_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise FirewallError(f"nftables' notifications: {error.strerror}") from error
                changes.append(self._decoder.lose())
                continue
            self.deliveries += 1
            if port == 0:  # only the kernel's word counts
                changes += self._decoder.decode(self._buffer, length)
        return changes


def _is_ours(what: str) -> bool:
    """Whether our table, or something in it, is meant."""
    return f" {OURS} " in f"{what} "


def _cannot_listen(error: OSError) -> FirewallError:
    code = NO_PERMISSION if isinstance(error, PermissionError) else UNAVAILABLE
    return FirewallError(f"nftables' notifications: {error.strerror}", "CAP_NET_ADMIN is needed: run as root", code)


def _string(kind: int, text: str) -> bytes:
    return netlink.attribute(kind, text.encode() + b"\0")


def _text(data: memoryview | bytes) -> str:
    return printable(bytes(data).partition(b"\0")[0].decode(errors="replace"))


def _leading_strings(data: memoryview) -> Iterator[str]:
    """The first attributes as text."""
    at = 0
    while at + netlink.ATTRIBUTE.size <= len(data):
        length, _ = netlink.ATTRIBUTE.unpack_from(data, at)
        if not netlink.ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield bytes(data[at + netlink.ATTRIBUTE.size : at + length]).partition(b"\0")[0].decode(errors="replace")
        at += netlink.align(length)


def _each(data: memoryview) -> Iterator[memoryview]:
    """The attributes of a list, which all are of one kind."""
    at = 0
    while at + netlink.ATTRIBUTE.size <= len(data):
        length, _ = netlink.ATTRIBUTE.unpack_from(data, at)
        if not netlink.ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield data[at + netlink.ATTRIBUTE.size : at + length]
        at += netlink.align(length)


def _comment(userdata: memoryview | None) -> str:
    """The comment in an element's user data: type, length, value, one after another (libnftnl's udata)."""
    data = bytes(userdata or b"")
    while len(data) > 2:
        if data[0] == _UDATA_COMMENT:
            return data[2 : 2 + data[1]].partition(b"\0")[0].decode(errors="replace")
        data = data[2 + data[1] :]
    return ""
