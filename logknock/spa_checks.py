"""What becomes of one SPA packet, check by check, in words. Rule 1: the verdict is the gate's own; here it is only said
how far the packet came. Rule 2: nothing opens, and nothing is put on record. Rule 3: no key is in any word.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from .firewall.sets import never_granted
from .gate import Accepted, Gate, Rejected
from .packet import UDP, Carried, Packet, address_text
from .spa import ANY_SOURCE, DIGESTS, Key, Kind, Message, Opened, Reason, unwrap
from .store import Authentic, NoStore, StoreError

# What is looked at, in the gate's order, and the reasons for which a packet ends there.
_CHECKS: dict[str, tuple[Reason, ...]] = {
    "shape": (Reason.LENGTH, Reason.NOT_SPA, Reason.ALPHABET),
    "HMAC": (Reason.HMAC,),
    "decryption": (Reason.PADDING, Reason.TEXT),
    "contents": (Reason.FIELDS, Reason.TIMEOUT, Reason.MESSAGE, Reason.DIGEST),
    "first time": (Reason.REPLAYED, Reason.STORE),
    "age": (Reason.AGE,),
    "kind": (Reason.COMMAND, Reason.NAT),
    "user": (Reason.USER,),
    "address": (Reason.ADDRESS,),
    "services": (Reason.SERVICE,),
}

# Where a packet came from that names no address, if nobody says it: RFC 5737.
_SOMEBODY = bytes([192, 0, 2, 1])

_KINDS = {Kind.COMMAND: "a command", Kind.ACCESS: "access", Kind.ACCESS_TIMEOUT: "access for a time of its own"}


class Check(NamedTuple):
    """One of the things that are looked at. passed: None where it was not looked at."""

    name: str
    passed: bool | None
    words: str


class Examined(NamedTuple):
    """How far the packet came, and what becomes of it."""

    checks: tuple[Check, ...]
    verdict: Accepted | Rejected


# Whether a packet was seen before: of its identity, its time, and the door and the client of its key.
Seen = Callable[[Authentic], bool]


def examine(payload: bytes, keys: Iterable[Key], src: bytes | None, wall: float, seen: Seen | None) -> Examined:
    """Judge a packet from `src` at `wall` (seconds since the epoch) as the daemon would.

    src: None: from where the packet itself says. seen: None: it is not known, and taken for new. Raises LogknockError
    where packets cannot be decrypted here.
    """
    keys = tuple(keys)
    found = unwrap(payload, keys)
    message = found.message if isinstance(found, Opened) else None
    if src is None:
        keys = tuple(replace(key, source=()) for key in keys)
    named = message.address if message and message.address != ANY_SOURCE else _SOMEBODY
    sender = src or named
    verdict = _judge(Packet(wall, sender, b"", UDP, 0, 0, 0), payload, keys, seen)
    if isinstance(verdict, Accepted) and src is None and verdict.address == _SOMEBODY:
        verdict = verdict._replace(address=ANY_SOURCE)
    near = _near(payload, keys, sender) if isinstance(verdict, Rejected) and verdict.reason is Reason.HMAC else ""
    return Examined(tuple(_checks(payload, keys, src, wall, verdict, near, seen)), verdict)


def _judge(packet: Packet, payload: bytes, keys: Iterable[Key], seen: Seen | None) -> Accepted | Rejected:
    """The gate's verdict, and the doorkeeper's on the address."""
    gate = Gate(_Looks(seen))
    gate.use(keys)
    verdict = gate.judge(Carried(packet, payload), packet.time)
    if isinstance(verdict, Accepted) and (never := never_granted(verdict.address)):
        words = f"asks for {address_text(verdict.address)}, which is {never}: no door ever opens for it"
        return Rejected(packet, verdict.key.door, verdict.key.client, Reason.ADDRESS, words)
    return verdict


class _Looks(NoStore):
    """A store that looks up whether a packet was seen, and records nothing."""

    def __init__(self, seen: Seen | None) -> None:
        super().__init__(StoreError("nothing is recorded here"))
        self._seen = seen

    def see(self, packet: Authentic, src: bytes, wall: float) -> bool:
        return self._seen is None or not self._seen(packet)


def _checks(
    payload: bytes,
    keys: Sequence[Key],
    src: bytes | None,
    wall: float,
    verdict: Accepted | Rejected,
    near: str,
    seen: Seen | None,
) -> Iterator[Check]:
    found = unwrap(payload, keys)
    opened = found if isinstance(found, Opened) else None
    over = False
    for name, reasons in _CHECKS.items():
        if over:
            yield Check(name, None, "")
        elif isinstance(verdict, Rejected) and verdict.reason in reasons:
            over = True
            yield Check(name, False, "; ".join(filter(None, (verdict.words, near))))
        elif name == "first time" and seen is None:
            yield Check(name, None, "the packets that the daemon has seen cannot be looked up")
        elif name == "address" and src is None:
            yield Check(
                name, None, f"taken for as it should be: {_asked(opened)}; --from ADDRESS says where it came from"
            )
        else:
            yield Check(name, True, _said(name, payload, opened, found.key, wall))


def _asked(opened: Opened | None) -> str:
    if opened is None or opened.message.address == ANY_SOURCE:
        return "it asks for wherever it comes from"
    return f"it asks for {address_text(opened.message.address)}"


def _said(name: str, payload: bytes, opened: Opened | None, key: Key | None, wall: float) -> str:
    """What there is to say of a check that was passed."""
    if name == "shape":
        return f"{len(payload)} bytes"
    if key is not None and name == "HMAC":
        return f"{key.digest}, client {key.client} of door {key.door}"
    if opened is None:
        return ""
    message, key = opened.message, opened.key
    words = {
        "contents": f"user {message.user}, {_moment(message.timestamp)}, version {message.version}, {message.digest}",
        "age": f"{wall - message.timestamp:.0f} s, and {key.max_age:g} s is the most, both ways",
        "kind": _KINDS.get(message.kind, "address translation"),
        "user": f"{message.user}" + ("" if key.user else ", and any will do"),
        "address": _asked(opened),
        "services": ", ".join(map(str, message.services)) + _for_how_long(message),
    }
    return words.get(name, "")


def _for_how_long(message: Message) -> str:
    return f", for {message.timeout} s" if message.timeout else ""


def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s since the epoch"


def _near(payload: bytes, keys: Iterable[Key], src: bytes) -> str:
    """Whose the packet would be with one setting changed; empty if nobody's."""
    for key in keys:
        for digest in DIGESTS:
            if unwrap(payload, [replace(key, digest=digest)]).key is not None:
                if digest != key.digest:
                    return f'with hmac = "{digest}" it would be client {key.client} of door {key.door}'
                return f"it is client {key.client} of door {key.door}, whose source {address_text(src)} is not in"
    return ""
