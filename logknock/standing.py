"""How the running daemon stands, as it tells systemd, its log, whoever asks on the control socket, and metrics.

Rule 1: pure: numbers, troubles and times come in. Rule 2: degraded is what keeps knocks from opening doors, or what
would be lost when the daemon ends; what is merely unwise is a warning of the log and not here.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

# Seconds that a rate is taken over: short enough for a flood to show at once, long enough for a number to be read.
RATE_OVER = 5

Part = Literal["source", "firewall", "store", "bans", "files", "control", "metrics", "clients"]
PARTS: tuple[Part, ...] = get_args(Part)

# Of what is degraded so much is in a line.
_TROUBLES_SHOWN = 2


class SourceStanding(NamedTuple):
    """A log that is read: its counts since the start, `rate` in records a second; trouble: why it is not read."""

    name: str
    records: int
    lost: int
    ignored: int
    rate: float
    trouble: str


class DoorStanding(NamedTuple):
    """A door: for how many it is open now, and how often it was opened since the start."""

    name: str
    open: int
    opened: int


class Trouble(NamedTuple):
    """What is wrong now with a part; `what`: which of a part's things, where it has several."""

    part: Part
    what: str
    why: str
    hint: str = ""


class Degraded(NamedTuple):
    """A trouble, and since when it lasts, in seconds since the epoch."""

    part: Part
    since: float
    why: str
    hint: str


class Standing(NamedTuple):
    """All of it. started, loaded: since when it runs, and its configuration counts, in seconds since the epoch.

    attempts: knockers under way. opened, closed, refused: doors since the start. stale: packets that came too late or
    from the future. banned: sources now; not_banned: scanners that there was no room for. overruns: how often the
    kernel had no room for a record. Errors are counted since the start.
    """

    version: str
    started: float
    loaded: float
    sources: tuple[SourceStanding, ...]
    doors: tuple[DoorStanding, ...]
    attempts: int
    opened: int
    closed: int
    refused: int
    stale: int
    banned: int
    firewall_errors: int
    store_errors: int
    degraded: tuple[Degraded, ...]
    overruns: int = 0
    not_banned: int = 0

    @property
    def open(self) -> int:
        """How many doors are open now, one for each knocker that has it open."""
        return sum(door.open for door in self.doors)


def concerns(only: str, door: str) -> bool:
    """Whether a door is the one that is asked for, or one of its services (`vpn:22/tcp` of `vpn`); empty: all are."""
    return only in ("", door) or door.startswith(f"{only}:")


def line(standing: Standing) -> str:
    """All of it in one line: what is wrong first, then the numbers."""
    records = sum(source.records for source in standing.sources)
    lost = sum(source.lost for source in standing.sources)
    ignored = sum(source.ignored for source in standing.sources)
    return (
        f"{degraded_words(standing.degraded)}{standing.open} doors open, {standing.attempts} knockers under way; "
        f"{records} records, {lost} lost ({standing.overruns} overruns), {ignored} no packet, "
        f"{standing.stale} too old; "
        f"{standing.opened} opened, {standing.closed} closed, {standing.refused} refused; "
        f"{standing.banned} banned, {standing.not_banned} scanners not banned; "
        f"{standing.firewall_errors} firewall errors, {standing.store_errors} store errors"
    )


def brief(standing: Standing) -> str:
    """What any local user may read. Nobody's knocks show in it: numbers of records or knockers tell of each knock."""
    opened = standing.open
    return f"{degraded_words(standing.degraded)}{opened} door{'' if opened == 1 else 's'} open"


def degraded_words(degraded: tuple[Degraded, ...]) -> str:
    """What is degraded, for the beginning of a line; empty where nothing is."""
    if not degraded:
        return ""
    more = len(degraded) - _TROUBLES_SHOWN
    told = [f"{trouble.part}: {trouble.why}" for trouble in degraded[:_TROUBLES_SHOWN]]
    return f"degraded: {'; '.join(told)}{f' and {more} more' if more > 0 else ''}; "


def as_object(standing: Standing) -> dict[str, Any]:
    """As JSON has it."""
    return standing._asdict() | {
        "started": round(standing.started, 3),
        "loaded": round(standing.loaded, 3),
        "sources": [source._asdict() | {"rate": round(source.rate, 1)} for source in standing.sources],
        "doors": [door._asdict() for door in standing.doors],
        "degraded": [trouble._asdict() | {"since": round(trouble.since, 3)} for trouble in standing.degraded],
    }


class Rates:
    """How many records each source has brought lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=RATE_OVER + 1)

    def see(self, records: Mapping[str, int], now: float) -> None:
        """A second has passed: the records of each source until now."""
        self._seen.append((now, records))

    def of(self, name: str) -> float:
        """Records a second of this source, over the last seconds; 0.0 while nothing is known."""
        if len(self._seen) < 2:
            return 0.0
        (begin, before), (end, after) = self._seen[0], self._seen[-1]
        # One that was closed and opened again in between counts anew.
        came = max(0, after.get(name, 0) - before.get(name, 0))
        return came / (end - begin) if end > begin else 0.0


class Troubles:
    """Since when each trouble lasts: what is wrong now comes in, again and again."""

    def __init__(self) -> None:
        self._since: dict[tuple[Part, str], float] = {}

    def see(self, now: Iterable[Trouble], wall: float) -> tuple[Degraded, ...]:
        """What is wrong now, the parts in the order of PARTS and in a part what lasts longest first."""
        found = {(trouble.part, trouble.what): trouble for trouble in now}
        self._since = {key: self._since.get(key, wall) for key in found}
        every = [Degraded(part, self._since[part, what], why, hint) for part, what, why, hint in found.values()]
        return tuple(sorted(every, key=lambda trouble: (PARTS.index(trouble.part), trouble.since)))
