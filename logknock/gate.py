"""Which single packets (SPA) may open what: the keys, what was seen before, and what each client is allowed.

Rule 1: a packet that a key vouches for is on record, durably, before its age and what it asks for are looked at, and so
before anything opens: it counts once, whatever comes of it (T18, T20). Rule 2: a store that fails opens nothing.
Rule 3: no clock: the time comes in, and one that is set back or forth makes no packet new again (T19).
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from .knock import Service
from .packet import Carried, Packet, address_text
from .spa import ANY_SOURCE, Key, Kind, Message, Opened, Reason, Refused, require, unwrap
from .store import Authentic, Store, StoreError

# How long a packet is remembered, in terms of the largest max_age: its time may be that far ahead of ours when it comes
# in, and it is too old for good as long again after ours has reached it.
RETENTION = 2

# What packets are kept for where there is no key (any more), seconds.
_MAX_AGE = 120.0

_ALLOWED = (Kind.ACCESS, Kind.ACCESS_TIMEOUT)


class Accepted(NamedTuple):
    """These services are to be open for the address.

    seconds: for how long; None: as long as the door says. stamp: when the client sent it, seconds since the epoch.
    """

    key: Key
    address: bytes
    services: tuple[Service, ...]
    seconds: float | None
    stamp: int


class Rejected(NamedTuple):
    """The packet opens nothing; words: why, for the log. door, client: whose key it has; empty: nobody's."""

    packet: Packet
    door: str
    client: str
    reason: Reason
    words: str


class Gate:
    """What judges packets; the store remembers them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: tuple[Key, ...] = ()

    def use(self, keys: Iterable[Key]) -> None:
        """From here on these are the keys. Raises LogknockError where packets cannot be decrypted here at all."""
        keys = tuple(keys)
        if keys:
            require()
        self._keys = keys

    def judge(self, carried: Carried, wall: float) -> Accepted | Rejected:
        """What the packet opens, or why it opens nothing; wall: seconds since the epoch, now."""
        packet = carried.packet
        keys = (key for key in self._keys if key.admits(packet.src))
        found: Opened | Accepted | Refused = unwrap(carried.payload, keys)
        if isinstance(found, Opened):
            first = self._first(found, packet.src, wall)
            found = first or _weigh(found.key, found.message, packet.src, wall)
        if isinstance(found, Accepted):
            return found
        door, client = (found.key.door, found.key.client) if found.key else ("", "")
        return Rejected(packet, door, client, found.reason, found.words)

    def tidy(self, wall: float) -> None:
        """Forget what is too old by now, in a part small enough for the daemon's loop; raises StoreError."""
        largest = max((key.max_age for key in self._keys), default=_MAX_AGE)
        self._store.forget(int(wall - RETENTION * largest))

    def _first(self, found: Opened, src: bytes, wall: float) -> Refused | None:
        """Put the packet on record; why it opens nothing, if it was there before or could not be."""
        try:
            new = self._store.see(authentic(found), src, wall)
        except StoreError as error:
            return Refused(Reason.STORE, error.message, found.key)
        words = "the same packet was here before, or could have been"
        return None if new else Refused(Reason.REPLAYED, words, found.key)


def authentic(found: Opened) -> Authentic:
    """The packet as the store knows it: by whose key it is, and not by what the client is called now."""
    key, message, identity = found
    signer = hashlib.sha256(b"logknock signer\0" + key.hmac_key).digest()
    return Authentic(identity, message.timestamp, signer, key.door, key.client)


def _weigh(key: Key, message: Message, src: bytes, wall: float) -> Accepted | Refused:
    """What a packet that is new opens by its key."""

    def refused(reason: Reason, words: str) -> Refused:
        return Refused(reason, words, key)

    late = wall - message.timestamp
    if abs(late) > key.max_age:
        words = f"sent {late:.0f} s ago" if late > 0 else f"sent in {-late:.0f} s, by the client's clock"
        return refused(Reason.AGE, f"{words}, and {key.max_age:g} s is the most")
    if message.kind is Kind.COMMAND:
        return refused(Reason.COMMAND, "asks for a command, and none is ever run")
    if message.kind not in _ALLOWED:
        return refused(Reason.NAT, "asks for address translation (NAT), and there is none")
    if key.user and message.user != key.user:
        return refused(Reason.USER, f"from user {message.user}, and the key is for {key.user} alone")
    address = message.address
    if key.require_source and address != src:
        return refused(Reason.ADDRESS, _elsewhere(address))
    for service in message.services:
        if service not in key.allow:
            return refused(Reason.SERVICE, f"asks for {service}, and the key allows {', '.join(map(str, key.allow))}")
    seconds = min(float(message.timeout), key.max_timeout) if message.timeout else None
    opened_for = src if address == ANY_SOURCE else address
    return Accepted(key, opened_for, message.services, seconds, message.timestamp)


def _elsewhere(address: bytes) -> str:
    if address == ANY_SOURCE:
        return "names no address (fwknop -s), and its key asks for one: name it (-a), or set require_source = false"
    return f"asks for {address_text(address)}, and came from elsewhere"
