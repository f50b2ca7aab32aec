"""Whose step it is: which sequences the clients of TOTP and code doors may knock now, and which steps are used up.

Rule 1: a step that the store says was used never counts again, whatever the clock does (T18, T19); nothing opens before
the store has its use on the disk (T20). Rule 2: what cannot be read, or put on record, leaves these doors shut and is
told once. Rule 3: a thousand clients' sequences are derived in slices, a step ahead, between packets.

When a use is on record, its step counts and all before it: a clock that steps back an hour gives nobody a second use of
that hour. Who used a step that is still to come, by a clock that was ahead, waits for it; that is told.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple, Protocol

from .errors import LogknockError
from .knock import Derived, Matcher, Sequence, Service
from .packet import Packet
from .store import StoreError
from .totp import Client, CodeMaker, Maker, TotpDoor, sequences_of, step_at, window

# Seconds of the loop that a slice of work may take, and how many sequences are derived between two looks at the clock:
# 15 microseconds each.
SLICE = 0.002
_BETWEEN_LOOKS = 16

# How long a sequence stays known after its time, seconds: who knocks it too late is told so, and a packet that waited
# for the loop is still in time.
LATE = 5.0

# How far off a client's clock may be for its knocks to be known, seconds each way, and how many sequences are derived
# to find out: two seconds' work, in slices. A thousand clients' hour is 240,000.
FAR = 3_600
MAX_TRIALS = 250_000
_BETWEEN_PAUSES = 128

# Runs of knocks that are looked for then: the last ones that a source sent.
_MAX_RUNS = 64

# Clients that are named as waiting for a clock.
_MAX_TOLD = 3

# tell(what there is to say, whether it is bad)
Tell = Callable[[str, bool], None]
_Key = tuple[str, str]  # door and client


class StepStore(Protocol):
    """What of the Store is asked for here; each method may raise StoreError."""

    def use_step(self, door: str, client: str, step: int, src: bytes, wall: float) -> bool:
        """Record, durably, that the client has used this step. False: it or a later one was used before.

        step: when it begins, in seconds since the epoch.
        """

    def steps(self) -> dict[_Key, int]:
        """The last step that was used, by door and client."""


class _Use(NamedTuple):
    """What a client's last step was used by. wall: when that was put on record."""

    step: int
    src: bytes
    wall: float


class _Plan:
    """A door, and what of it is planted."""

    __slots__ = ("beginnings", "door", "maker", "planted", "span")

    def __init__(self, door: TotpDoor) -> None:
        self.door = door
        self.maker: Maker | CodeMaker = sequences_of(door)
        self.planted: dict[int, dict[str, Derived]] = {}  # by step and client
        self.span = range(0)  # the steps that are to be

    def at(self, wall: float) -> range:
        """Steps whose sequences are to be known at this time: those that are accepted now, late or in a step's time."""
        step, skew = self.door.step, self.door.skew
        return range(max(0, step_at(wall - LATE, step) - skew), max(0, step_at(wall, step) + skew + 2))

    def derive(self, client: Client, step: int) -> Derived:
        begins, ends = window(step, self.door.step, self.door.skew)
        sequence = self.maker.make(client.secret, step)
        return Derived(self.door.door, client.name, step * self.door.step, sequence, begins, ends, step)


class Steps:
    """The clients of all doors. Times are time.time().

    The daemon calls `use` at the start and after each reload (behind Matcher.set_doors), `tick` once a second, `work`
    after each of the two, between packets, until it returns False, `reserve` for each Nearing event, and `spend` for
    each Spent event whose code is a Derived, before it does what follows that event.
    """

    def __init__(self, store: StepStore, matcher: Matcher, tell: Tell) -> None:
        self._store = store
        self._matcher = matcher
        self._tell = tell
        self._plans: dict[str, _Plan] = {}
        self._last: dict[_Key, int] | None = None  # None: it is not known
        self._trouble: LogknockError | None = None  # why not
        self._uses: dict[_Key, _Use] = {}  # of this process
        self._reserved: dict[_Key, int] = {}  # steps that are on record as used, and are not, but by a knock
        self._job: Iterator[None] | None = None
        self._ahead: dict[_Key, str] = {}  # who has used a step that is still to come, and what is said of it

    def use(self, doors: Iterable[TotpDoor], wall: float) -> None:
        """Go on with these doors. What is planted of clients that are as before stays; that of others goes at once."""
        before, self._plans = self._plans, {door.door: _Plan(door) for door in doors}
        for name, plan in before.items():
            self._hand_over(plan, self._plans.get(name))
        self._ahead = {key: words for key, words in self._ahead.items() if key[0] in self._plans}
        self._uses = {key: use for key, use in self._uses.items() if key[0] in self._plans}
        self._job = None
        self._set_last()
        self._turn(wall)

    def tick(self, wall: float) -> None:
        """See whether the next step is due, or the clock was set; call it once a second or so, and `work` after it."""
        if any(plan.at(wall) != plan.span for plan in self._plans.values()):
            self._turn(wall)

    def work(self, wall: float) -> bool:
        """Do some of what is to be done, two milliseconds or so; whether there is more."""
        if self._job is None:
            return False
        end = time.perf_counter() + SLICE
        done = deque(islice(self._job, _BETWEEN_LOOKS), maxlen=1)
        while done and time.perf_counter() < end:
            done = deque(islice(self._job, _BETWEEN_LOOKS), maxlen=1)
        if not done:
            self._job = None
            self.tick(wall)
        return self._job is not None

    def reserve(self, code: Derived, src: bytes, wall: float) -> None:
        """Put the use of a step on record one knock before it is complete, so that the last one waits for no disk.

        It counts for this process only when it is spent; after a crash it is used up, and the client's next one opens.
        """
        with suppress(StoreError):  # spend() tries again, and tells
            if self._counts(code) and self._store.use_step(code.door, code.client, code.step, src, wall):
                self._reserved[code.door, code.client] = code.step

    def spend(self, code: Derived, src: bytes, wall: float) -> str:
        """Put the use of a step on record; empty, or why nothing may open.

        After a StoreError the step stays used for this process: the client's next one is tried anew.
        """
        key = code.door, code.client
        if not self._counts(code) or self._last is None:
            return "its sequence counts no more"
        try:
            new = self._reserved.pop(key, None) == code.step or self._store.use_step(*key, code.step, src, wall)
        except StoreError as error:
            hint = f" (hint: {error.hint})" if error.hint else ""
            return f"its use cannot be put on record: {error.message}{hint}"
        if not new:
            return "its sequence was used before"
        self._last[key] = code.step
        self._uses[key] = _Use(code.step, src, wall)
        return ""

    def _counts(self, code: Derived) -> bool:
        """Whether it is what the client is to knock in that step, as far as is known here."""
        plan = self._plans.get(code.door)
        if plan is None or self._last is None:
            return False
        return plan.planted.get(code.step // plan.door.step, {}).get(code.client) == code

    @property
    def last(self) -> Mapping[_Key, int]:
        """When the last step that each client has used begins, by door and client; gone ones are among them."""
        return MappingProxyType(self._last or {})

    @property
    def troubles(self) -> list[str]:
        """Which doors or clients open nothing, and why."""
        if self._trouble is not None and self._plans:
            return [f"{', '.join(self._plans)}: {self._trouble.message}"]
        return list(self._ahead.values())[:_MAX_TOLD]

    # ---- planting

    def _turn(self, wall: float) -> None:
        """Begin with what this time asks for."""
        if not self._plans or not self._read():
            return
        for plan in self._plans.values():
            plan.span = plan.at(wall)
            self._matcher.set_beginnings(plan.door.door, plan.door.beginnings)
        self._see_ahead(wall)
        self._job = self._settle(wall)

    def _read(self) -> bool:
        """Whether it is known which steps were used; else nothing is planted."""
        if self._last is not None:
            return True
        try:
            self._last = self._store.steps()
        except StoreError as error:
            if self._trouble is None or self._trouble.message != error.message:
                self._trouble = error
                self._tell(
                    f"{', '.join(self._plans)}: open nothing, since nobody knows what was used: {error.words()}", True
                )
            return False
        self._trouble = None
        self._set_last()
        return True

    def _set_last(self) -> None:
        """Tell the matcher what was used: of a door that was gone for a while it has forgotten that."""
        for (door, client), step in (self._last or {}).items():
            self._matcher.set_last(door, client, step)

    def _settle(self, wall: float) -> Iterator[None]:
        """Plant what is to be and is not there, the present step first, and then uproot what is over."""
        for plan in self._plans.values():
            now = step_at(wall, plan.door.step)
            for step in sorted(plan.span, key=lambda step: abs(step - now)):
                there = plan.planted.setdefault(step, {})
                for client in plan.door.clients:
                    if client.name not in there:
                        derived = there[client.name] = plan.derive(client, step)
                        self._matcher.plant(derived)
                        yield
        for plan in self._plans.values():
            for step in [step for step in plan.planted if step not in plan.span]:
                yield from self._uproot(plan, step)

    def _uproot(self, plan: _Plan, step: int) -> Iterator[None]:
        there = plan.planted[step]
        while there:
            self._matcher.uproot(there.popitem()[1])
            yield
        del plan.planted[step]

    def _hand_over(self, plan: _Plan, after: _Plan | None) -> None:
        """What of a door's sequences is as it was belongs to its new plan; all else is uprooted."""
        kept: set[Client] = set()
        if after is None:
            self._matcher.set_beginnings(plan.door.door, ())
        elif replace(after.door, clients=()) == replace(plan.door, clients=()):
            kept = set(after.door.clients)
        names = {client.name for client in plan.door.clients if client in kept}
        for step, there in plan.planted.items():
            for name, derived in there.items():
                if after is not None and name in names:
                    after.planted.setdefault(step, {})[name] = derived
                else:
                    self._matcher.uproot(derived)

    def _see_ahead(self, wall: float) -> None:
        """Whose sequences open nothing because they used up steps to come, by a clock that was ahead then."""
        before, self._ahead = self._ahead, {}
        for plan in self._plans.values():
            for client in plan.door.clients:
                key = plan.door.door, client.name
                last = (self._last or {}).get(key, 0)
                if last >= plan.span.stop * plan.door.step:
                    free = window(last // plan.door.step + 1, plan.door.step, plan.door.skew)
                    until = datetime.fromtimestamp(free[0])
                    self._ahead[key] = f"{key[0]}: client {key[1]} opens nothing before {until:%Y-%m-%d %H:%M:%S}"
        new = self._ahead.keys() - before.keys()
        for key in sorted(new)[:_MAX_TOLD]:
            hint = "set the clock right; if it is right now, enroll the client under another name"
            self._tell(f"{self._ahead[key]}: it has used steps that are still to come (hint: {hint})", True)
        if len(new) > _MAX_TOLD:
            self._tell(f"so do {len(new) - _MAX_TOLD:,} more clients", True)

    # ---- explaining

    def diagnose(self, packets: Iterable[Packet], wall: float) -> Iterator[str | None]:
        """Whose knocks a source's packets were, and of what time, where that tells why they opened nothing.

        packets: those to whatever port, in the order of coming. wall: until when it is asked. None is a pause.
        """
        sent = list(packets)
        left = MAX_TRIALS
        for plan in self._plans.values():
            runs = _runs(plan.door, sent)
            trials = islice(_trials(plan.door, min(wall, max(runs.values()))), left) if runs else iter(())
            for number, (client, step) in enumerate(trials):
                left -= 1
                if not number % _BETWEEN_PAUSES:
                    yield None
                came = runs.get(plan.maker.make(client.secret, step))
                if came is not None and (words := self._explained(plan, client, step, came, sent[0].src)):
                    yield words

    def _explained(self, plan: _Plan, client: Client, step: int, came: float, src: bytes) -> str:
        """Empty for the knocks that used the step up: what became of them is known."""
        knocks = f"client {client.name}'s knocks at {plan.door.door}"
        off = step - step_at(came, plan.door.step)
        if abs(off) > plan.door.skew:
            way = "ahead of" if off > 0 else "behind"
            return f"{knocks}, but its clock is {_span(abs(off) * plan.door.step)} {way} this host's"
        if self._trouble is not None:
            return f"{knocks}, but {plan.door.door} opens nothing: {self._trouble.message}"
        key, begins = (plan.door.door, client.name), step * plan.door.step
        use = self._uses.get(key)
        if use is not None and use[:2] == (begins, src) and came <= use.wall:
            return ""
        if begins <= self.last.get(key, -1):
            return f"{knocks}, of a step that is used up"
        return f"{knocks}, of the right time"


def _runs(door: TotpDoor, packets: Iterable[Packet]) -> dict[Sequence, float]:
    """What may have been a sequence of the door's, in full, and when it was complete; the last such runs."""
    pool = set(door.services)
    knocks: dict[tuple[int, int, int], tuple[Service, float]] = {}
    for packet in packets:
        service = Service(packet.proto, packet.dport)
        if service in pool:  # a resend is the first one again
            knocks.setdefault((packet.proto, packet.sport, packet.dport), (service, packet.time))
    row = list(knocks.values())
    ends = range(door.knocks, len(row) + 1)[-_MAX_RUNS:]
    return {tuple(service for service, _ in row[end - door.knocks : end]): row[end - 1][1] for end in ends}


def _trials(door: TotpDoor, came: float) -> Iterator[tuple[Client, int]]:
    """Clients and steps, those nearest to this time first."""
    now = step_at(came, door.step)
    for off in sorted(range(-(FAR // door.step), FAR // door.step + 1), key=abs):
        if now + off >= 0:
            yield from ((client, now + off) for client in door.clients)


def _span(seconds: int) -> str:
    """`7 minutes`, as exactly as a step tells."""
    if seconds < 120:
        return f"{seconds} seconds"
    return f"{round(seconds / 60)} minutes"
