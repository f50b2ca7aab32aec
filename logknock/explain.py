"""Why did it not open? What a running daemon knows of one address.

Rule 1: it asks and changes nothing. Rule 2: what takes long is done in parts, with pauses for the packets. Rule 3: the
findings are made by `trail`, as `logknock replay` makes them; here is only what a log does not tell.
"""

import ipaddress
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .bans import Bans, ban_object
from .config import Config
from .errors import LogknockError
from .firewall.sets import Sets, never_granted, source_key
from .intake import Intake
from .knock import Matcher
from .packet import Packet, address_text, parse_address
from .steps import Steps
from .trail import Finding, Kept, Memory, Stale, Trail, advice

_FAR = 2.0**60  # seconds; no time is so far away, and each number below it is a time


class Question(NamedTuple):
    """Of whom, and since when (seconds since the epoch) packets are to be told of."""

    src: bytes
    since: float


class Known(NamedTuple):
    """What there is to look at; all of it is the daemon's own."""

    config: Config
    matcher: Matcher
    memory: Memory
    intake: Intake
    sets: Sets
    bans: Bans
    steps: Steps
    trouble: str  # what the firewall refuses; empty: nothing
    longest: float  # seconds after which a packet means nothing to any door


def parse(request: Mapping[str, Any]) -> Question:
    """A request of the control socket. Raises LogknockError."""
    written, since = request.get("address"), request.get("since", 0.0)
    if not isinstance(written, str) or type(since) not in (int, float) or not abs(since) < _FAR:
        raise LogknockError("explain needs an address, and since when", 'like {"address": "192.0.2.7", "since": 0}')
    try:
        return Question(parse_address(written), float(since))
    except ValueError as error:
        raise LogknockError(str(error)) from None


def explain(question: Question, known: Known) -> Iterator[Mapping[str, Any] | None]:
    """The answers: how the address stands, a finding for each packet, what would have opened; None is a pause."""
    yield {"standing": _standing(question.src, known)}
    remembered = known.memory.of(question.src)
    kept = {_identity(entry.packet) for entry in remembered if entry.packet}
    strangers: list[Kept] = []
    for read, packet in known.intake.strangers(question.src):
        if packet is None:
            yield None
        elif _identity(packet) not in kept:
            late = read - packet.time
            told = (Stale(packet, late),) if late >= known.longest else ()
            strangers.append(Kept(packet.time, packet.src, packet, told))
    findings: list[Finding] = []
    trail = Trail(known.config.doors, known.config.derived)
    for entry in sorted((*remembered, *strangers), key=lambda entry: entry.time):
        found = trail.follow(entry.packet, entry.told) if entry.packet else trail.ended(entry.told, entry.time)
        mine = [finding for finding in found if finding.src == question.src]
        findings += mine
        for finding in mine:
            if finding.time > question.since:
                yield {"finding": as_object(finding)}
    whose: list[str] = []
    for words in known.steps.diagnose(_heard(*remembered, *strangers), time.time()):
        if words is None:
            yield None
        else:
            whose.append(words)
    yield {"advice": [*whose, *advice(known.config.doors, findings)]}


def _heard(*kept: Kept) -> list[Packet]:
    """All packets, in the order of coming."""
    return sorted((entry.packet for entry in kept if entry.packet), key=lambda packet: packet.time)


def as_object(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it."""
    return finding._asdict() | {"src": address_text(finding.src), "verdict": str(finding.verdict)}


def _identity(packet: Packet) -> tuple[float, int, int, int]:
    return packet.time, packet.proto, packet.sport, packet.dport


def _standing(src: bytes, known: Known) -> dict[str, Any]:
    """How an address stands with the doors and with the rules, whatever it has sent."""
    now, wall = time.monotonic(), time.time()
    ban = known.bans.find(src, now)
    lengths = {door.name: len(door.sequence) for door in known.config.doors} | known.config.derived
    address = ipaddress.ip_address(src)
    try:
        banned, deaf = known.sets.unheard(src)
        never, trouble = known.sets.refused(src) or "", known.trouble
    except LogknockError as error:
        banned = deaf = False
        never, trouble = never_granted(src) or "", error.words()
    return {
        "address": str(address),
        "trusted": any(address in network for network in known.config.firewall.trusted),
        "banned": banned,
        "ban": ban_object(source_key(src), ban, now) if banned and ban else None,
        "deaf": deaf,
        "never": never,
        "trouble": trouble,
        "open": [
            {"door": grant.door, "left": round(max(0.0, grant.expires - now), 3)} for grant in known.sets.granted(src)
        ],
        "attempts": [
            {
                "door": door,
                "stage": attempt.step.stage,
                "of": lengths.get(door, 0),
                "left": round(attempt.expires - wall, 3),
            }
            for attempt in known.matcher.attempts(src)
            if not attempt.is_done and attempt.expires > wall
            for door in attempt.step.doors
        ],
        "sources": [tally._asdict() for tally in known.intake.tallies],
    }
