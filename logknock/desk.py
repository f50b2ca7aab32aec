"""What the running daemon is asked through its control socket, and what it answers.

Rule 1: what opens or closes here does so the way a knock has it done, and who asked for it is logged and on record.
Rule 2: what takes long is answered in parts (see control.py). Rule 3: nothing is decided here but whether a request
makes sense.

Requests, each with "version": 1; `left` and `seconds` are seconds, `since` and `started` seconds since the epoch:
{"do": "status"} -> {"standing": {...}} (see standing.py)
{"do": "grants"} -> {"grants": [{"door", "address", "left", "by", "open"}, ...]}, several times where they are many;
    "open" is false where the firewall does not have what is granted
{"do": "grant", "door": "ssh", "address": "192.0.2.7", "seconds": 3600} -> {"grant": {...}}; seconds may be left out
{"do": "revoke", "address": "192.0.2.7", "door": "ssh"} -> {"revoked": [{"door", "address"}, ...]}; without a door
    all that are open for the address, without an address ("all": true) for everybody
{"do": "watch"} -> what `status` and `grants` answer, and from then on {"event": {...}} for each line of the log,
    {"grant": {...}} and {"gone": {"door", "address"}}, once a second {"standing": {...}} without the doors,
    {"missed": how many of these} for a client that does not read, and {"ended": why} at the end
{"do": "reload"} -> {"reloaded": true, "lines": [...]} or {"reloaded": false, "lines": [...], "code": exit code}
{"do": "explain"}: see explain.py; {"do": "bans"}, {"do": "ban"}, {"do": "unban"}: see bans.py
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

from . import bans, standing
from .bans import LONGEST, SHORTEST, Bans
from .control import Answer, Peer, Said
from .doorkeeper import Doorkeeper, Hand, Open
from .errors import USAGE, FirewallError, LogknockError, printable
from .explain import Known, explain, parse
from .feed import Feed
from .packet import address_text, parse_address
from .report import Line
from .standing import Standing, concerns

# Open doors in an answer: 100 bytes each.
_AT_ONCE = 64

# Seconds from one reload to the next that is asked for here: each takes some milliseconds in which no packet is read,
# and until it is looked whether one is done.
RELOAD_PAUSE = 1.0
_LOOK = 0.01


class Reloaded(NamedTuple):
    """What became of a reload: the lines to print, as `logknock check` has them, and the exit code; 0: it was done."""

    lines: tuple[str, ...]
    code: int


class Reloading(Protocol):
    """A reload that goes on."""

    def done(self) -> bool:
        """Whether it is over."""

    def result(self) -> Reloaded:
        """What became of it, then."""


class Duties(NamedTuple):
    """What the daemon does when it is asked to.

    open: a door by hand; empty, or why it is not open. close: whether it was open; raises FirewallError.
    """

    standing: Callable[[], Standing]
    known: Callable[[], Known]
    open: Callable[[str, bytes, Hand], str]
    close: Callable[[str, bytes, str], bool]
    reload: Callable[[], Reloading]


class Desk:
    """Answers requests, and tells those who watch what happens: it is one of the logs that lines are written to."""

    def __init__(self, duties: Duties, keeper: Doorkeeper, banned: Bans, feed: Feed) -> None:
        self._duties = duties
        self._keeper = keeper
        self._bans = banned
        self._feed = feed
        self._reload_at = 0.0  # no reload before that
        keeper.changed = self._on_change

    def answer(self, request: Answer, peer: Peer) -> Iterable[Said]:
        """The answers to a request of somebody. Raises LogknockError."""
        match request.get("do"):
            case "explain":
                return explain(parse(request), self._duties.known())
            case "status":
                return [{"standing": standing.as_object(self._duties.standing())}]
            case "grants":
                return self._list()
            case "grant":
                return [{"grant": self._grant(request, peer)}]
            case "revoke":
                return self._revoke(request, peer)
            case "watch":
                return self._watch()
            case "reload":
                return self._reload()
            case "bans" | "ban" | "unban":
                return bans.answer(request, self._bans)
            case other:
                can = "it can: status, grants, grant, revoke, watch, reload, explain, bans, ban, unban"
                raise LogknockError(f"{other!r} is nothing that this daemon does", can)

    # ---- for those who watch

    def write(self, line: Line) -> None:
        """A line of the log."""
        if self._feed.watched:
            fields = {name.lower(): value for name, value in line.fields.items()}
            event = {"time": round(time.time(), 3), "level": line.level.name.lower(), "text": line.text}
            self._feed.put({"event": event | fields})

    def tick(self) -> None:
        """A second has passed."""
        if self._feed.watched:
            self._feed.put_latest({"standing": standing.as_object(self._duties.standing()) | {"doors": []}})

    def _on_change(self, door: str, src: bytes) -> None:
        if self._feed.watched:
            found = self._keeper.find(door, src, time.monotonic())
            gone = {"gone": {"door": door, "address": address_text(src)}}
            self._feed.put(gone if found is None else {"grant": grant_object(found)})

    def _watch(self) -> Iterator[Said]:
        yield "watch"
        yield {"standing": standing.as_object(self._duties.standing())}
        yield from self._list()

    # ---- open doors

    def _list(self) -> Iterator[Said]:
        every = self._keeper.listed(time.monotonic())
        while some := list(islice(every, _AT_ONCE)):
            yield {"grants": [grant_object(found) for found in some]}

    def _grant(self, request: Answer, peer: Peer) -> Answer:
        door, src = self._door(request), _address(request)
        config = self._duties.known().config
        known = next(found for found in config.doors if found.name == door)
        if not known.grants:
            raise LogknockError(f"door {door} opens nothing: it closes {', '.join(known.closes)}", "name another door")
        seconds = request.get("seconds", known.timeout)
        if type(seconds) not in (int, float) or not SHORTEST <= seconds <= LONGEST:
            raise LogknockError("a door is open from a second to 365 days", f"logknock grant {door} 192.0.2.7 1h")
        reason = self._duties.open(door, src, Hand(float(seconds), str(peer)))
        found = self._keeper.find(door, src, time.monotonic())
        if reason:
            hint = ""
            if found is not None:
                hint = "it is on record, and opens as soon as the firewall takes it; `logknock revoke` takes it back"
            elif self._duties.known().sets.refused(src) is not None:
                hint = "no door ever opens for it: name the address that somebody comes from (see `logknock watch`)"
            raise LogknockError(f"{door} is not open for {address_text(src)}: {reason}", hint)
        return grant_object(found or Open(door, src, 0.0, str(peer)))

    def _revoke(self, request: Answer, peer: Peer) -> Iterator[Said]:
        gone = [door.name for door in self._keeper.doors]  # those that a reload has removed may still be open
        door = self._door(request, gone) if "door" in request else ""
        now, whom = time.monotonic(), ""
        every: Iterable[Open]
        if "address" in request:
            src = _address(request)
            every, whom = self._keeper.listed_of(src, now), f" for {address_text(src)}"
        elif request.get("all") is True:
            every = self._keeper.listed(now)
        else:
            raise LogknockError("revoke needs an address", 'like {"address": "192.0.2.7"}, or {"all": true} for all')
        none = f"{door or 'no door'} is {'not ' if door else ''}open{whom}"
        return self._close((found if concerns(door, found.door) else None for found in every), str(peer), none)

    def _close(self, wanted: Iterable[Open | None], by: str, none: str) -> Iterator[Said]:
        """All of them, whatever the firewall says to one; then the first of its errors. `none`: what to say of none."""
        closed: list[Mapping[str, str]] = []
        failure: FirewallError | None = None
        count = 0
        for found in wanted:
            if found is not None:
                count += 1
                try:
                    if self._duties.close(found.door, found.src, by):
                        closed.append({"door": found.door, "address": address_text(found.src)})
                except FirewallError as error:
                    failure = failure or error
            if len(closed) >= _AT_ONCE:
                yield {"revoked": closed}
                closed = []
            yield None
        if not count:
            raise LogknockError(none, "`logknock grants` lists what is")
        yield {"revoked": closed}
        if failure is not None:
            raise failure

    def _door(self, request: Answer, also: Collection[str] = ()) -> str:
        name = request.get("door")
        names = [door.name for door in self._duties.known().config.doors]
        names += [name for name in also if name not in names]
        if not isinstance(name, str):
            raise LogknockError("there is no door of that name", f"the doors are: {', '.join(names)}", USAGE)
        # Of an SPA door, all of its services; to be opened, one is named, unless there is but one.
        if name in names or any(other.partition(":")[0] == name for other in also):
            return name
        parts = [other for other in names if other.startswith(f"{name}:")]
        if len(parts) != 1:
            raise LogknockError(f"there is no door {printable(name[:64])}", f"the doors are: {', '.join(names)}", USAGE)
        return parts[0]

    # ---- the configuration

    def _reload(self) -> Iterator[Said]:
        now = time.monotonic()
        self._reload_at = max(now, self._reload_at + RELOAD_PAUSE)
        if self._reload_at > now:
            yield self._reload_at - now
        job = self._duties.reload()
        while not job.done():
            yield _LOOK
        lines, code = job.result()
        yield {"reloaded": not code, "lines": lines, "code": code}


def grant_object(found: Open) -> dict[str, Any]:
    """An open door as JSON has it."""
    return {
        "door": found.door,
        "address": address_text(found.src),
        "left": round(found.left, 3),
        "by": found.by,
        "open": found.is_open,
    }


def _address(request: Answer) -> bytes:
    written = request.get("address")
    try:
        return parse_address(written if isinstance(written, str) else "")
    except ValueError as error:
        raise LogknockError(str(error), "logknock grant ssh 192.0.2.7") from None
