"""The kernel's rules and sets kept as they should be, whatever others do to them.

Rule 1: others' changes are heard of, not looked for; what does not concern us is not even decoded. Rule 2: grants get
the time that they have left, and of the rules exactly that comes back which the administrator loaded last; where that
is nothing, on trial, or not asked for, it is only told. Rule 3: two parties that fight are outlived: what is done about
others' changes, and what is said of them, has a limit in time; packets come first.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol

from .config import Config
from .errors import UNAVAILABLE, FirewallError, LogknockError
from .firewall.intent import Intent, Outcome, put_back
from .firewall.sets import GUARDED, Element, Fitness, Sets, Sweep
from .firewall.watch import CONFIGURED, Change, Touched, Watch
from .knock import SetName
from .report import Level

# Seconds from the end of going through the sets until it may be done again, and how many times as long as it took: at
# worst, with all doors open and somebody who flushes the sets all the time, it takes a third of the processor.
_PAUSE = 0.2
_PAUSE_FACTOR = 2.0

# The rules are put back at once so many times; then after pauses that double, from seconds to seconds. When they have
# stood for _STANDS seconds it is at once again.
_AT_ONCE = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_STANDS = 90.0

# As long as nft takes them, the pauses are at most so many times as long as that took: meanwhile nothing is guarded.
_LOAD_FACTOR = 20.0

# Rules that are missing for so many seconds are told of, whatever keeps them from being put back.
_TOLD_AFTER = 2.0
_TELL_FIGHT_AFTER = 6

# Who else changes the rules at this moment is done soon.
_BUSY_PAUSE = 0.2
_BUSY_TRIES = 50

# Lines about others' changes in a minute; the rest are counted and said.
_LINES, _LINES_EVERY = 20, 60.0

# Sets of our table that something `Kept` fills.
_KEPT = frozenset(SetName("inet", "logknock", name) for name in ("banned4", "banned6"))

Tell = Callable[[str, Level], None]


class Kept(Protocol):
    """What else our sets are to hold: the bans."""

    def unsure(self, keys: Iterable[bytes] | None = None) -> None:
        """These elements may be gone or new, or any."""

    def reconcile(self, now: float) -> int:
        """Put some of it back; 0 when all is. Raises FirewallError."""

    @property
    def settled(self) -> bool:
        """Whether the kernel has all of it, as far as is known."""


class Reconciler:
    """Keeps `sets`, and our rules, as they should be. Raises FirewallError if nftables' notifications cannot be had.

    Times are time.monotonic().
    """

    def __init__(self, sets: Sets, config: Config, tell: Tell) -> None:
        self.kept: list[Kept] = []
        self._sets = sets
        self._config = config
        self._intent = Intent(config.state)
        self._tell = tell
        self._watch = Watch(sets.port)
        self._watch.look_for({name for door in config.doors for name in door.sets})
        self._own_name = Path("/proc/self/comm").read_text(encoding="utf-8", errors="replace").strip()
        self._trouble = self._hint = ""  # what is wrong with our rules and sets, until it is right again
        self._told = ""  # what was told of it
        self._unfit: dict[str, FirewallError] = {}  # what is wrong with sets of others, by its message
        self._looking: asyncio.TimerHandle | None = None  # a look that is due
        self._news = False  # whether there is anything to tell when all is put back
        self._sound = True  # whether our own table is as it should be
        self._sweep_due = False  # whether elements may be there that should not be
        self._parts: list[Sweep | Sets | Kept] = []  # what is being gone through
        self._started = self._pause_until = 0.0
        self._restored = 0
        self._failure: FirewallError | None = None
        self._loading: asyncio.Task[None] | None = None
        self._harm: FirewallError | None = None  # what is wrong with rules that are there
        self._undone: FirewallError | None = None  # the same, while it is being put right
        self._attempts = 0  # of putting the rules back, lately
        self._tried = self._try_at = self._missing_since = 0.0
        self._lines, self._left_out, self._lines_until = _LINES, 0, 0.0

    # ---- the daemon's side

    @property
    def trouble(self) -> str:
        """What the firewall refuses or lacks; empty: nothing."""
        return self._trouble or next(iter(self._unfit), "")

    @property
    def troubles(self) -> list[tuple[str, str]]:
        """All that it refuses or lacks, each with a hint, which may be empty."""
        ours = [(self._trouble, self._hint)] if self._trouble and self._trouble not in self._unfit else []
        return [*ours, *((failure.message, failure.hint) for failure in self._unfit.values())]

    async def start(self) -> None:
        """Have the rules there before anything else is done, and listen from now on.

        Raises FirewallError if they are missing and cannot be put back, or if a set of the doors does not fit.
        """
        if self._is_restored:
            if self._sets.lacks(GUARDED, self._config.guarded):  # an old copy was loaded, say
                self._harm = _harm("")
            if self._is_needed():
                await self._put_back_at_start()
        self._sets.use(self._config.doors)
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._read)
        self._look()

    def take_over(self, *, complete: bool) -> None:
        """Put back what was open before, which `sets` has; `complete`: and nothing else was."""
        self._sweep_due = complete
        self.go_through()

    def adopt(self, config: Config) -> None:
        """Go on with another configuration, whose doors the sets use already."""
        self._config = config
        self._watch.look_for({name for door in config.doors for name in door.sets})
        self._look()

    def refused(self, error: FirewallError) -> None:
        """The kernel has refused something, and somebody was told: see in a moment whether it can be mended."""
        self._note_trouble(error)
        self._told = self._told or error.message

    def _note_trouble(self, error: LogknockError) -> None:
        if not self._trouble:
            self._trouble, self._hint = error.message, error.hint

    def in_trouble(self, error: LogknockError) -> None:
        """Say it once; it is over when the sets hold what they should."""
        self._trouble, self._hint = error.message, error.hint
        if error.message != self._told:
            self._told = error.message
            self._tell(error.words(), Level.ERROR)

    def tick(self) -> None:
        """A second has passed."""
        now = time.monotonic()
        if now >= self._lines_until:
            if self._left_out:
                self._tell(f"{self._left_out} more lines about others' changes of the ruleset left out", Level.NOTICE)
            self._lines, self._left_out, self._lines_until = _LINES, 0, now + _LINES_EVERY
        if not self._trouble and now >= self._tried + _STANDS:
            self._attempts = 0
        if self._trouble or not self._is_settled:
            self._look_soon()

    def close(self) -> None:
        """Listen no more, and leave all as it is."""
        asyncio.get_running_loop().remove_reader(self._watch.fileno())
        self._watch.close()
        if self._looking is not None:
            self._looking.cancel()
        if self._loading is not None:
            self._loading.cancel()

    # ---- what others do

    def _read(self) -> None:
        try:
            changes = self._watch.read()
        except FirewallError as error:
            self.in_trouble(error)
            return
        for change in changes:
            self._heed(change)

    def _heed(self, change: Change) -> None:
        touched = {element.set for element in change.elements if self._touch(element, change.program)}
        if change.lost or any(map(self._sets.uses, change.sets)):
            self._sets.unsure()
            self._sweep_due = True
        if change.lost or change.sets & _KEPT:
            self._unsure_of_kept(None)
        elif keys := {element.key for element in change.elements if element.set in _KEPT}:
            self._unsure_of_kept(keys)
        self._tell_change(change, touched)
        if self._is_harm(change):
            self._harm = _harm(change.who)
        if self._harm or change.built or change.lost or change.sets or touched or not self._is_settled:
            self._news = True
            self._look_soon()

    def _is_harm(self, change: Change) -> bool:
        """Whether a change has, or may have, taken away what `logknock rules` loaded."""
        return change.lost or (change.harmed and change.program != self._own_name)

    def _unsure_of_kept(self, keys: Iterable[bytes] | None) -> None:
        for kept in self.kept:
            kept.unsure(keys)

    def _tell_change(self, change: Change, touched: Collection[SetName]) -> None:
        if change.lost:
            self._say("notifications of nftables were lost: our rules and all open doors are looked at again")
        by = f" by {change.who}" if change.who else ""
        for what in change.gone:
            self._say(f"{what} {'were' if what.startswith('rules') else 'was'} deleted{by}")
        told = bool(change.gone) or not CONFIGURED.isdisjoint(change.emptied)
        if self._is_harm(change) and not (told or change.lost):
            self._say(f"rules or elements of table inet logknock were changed{by}")
        for name in sorted(touched) if not change.gone else ():
            if name not in change.emptied:
                self._say(f"elements of set {name} were changed{by}")
        for name in change.emptied:
            if name in CONFIGURED:
                if change.program != self._own_name:
                    hint = "" if self._is_restored else " (hint: `logknock rules apply` loads them again)"
                    self._say(f"elements of set {name} were deleted{by}{hint}")
            elif name in touched or name in change.sets or (self.kept and name in _KEPT):
                self._say(f"elements of set {name} were deleted{by}")

    def _touch(self, it: Touched, program: str) -> bool:
        # Another logknock may have put there what is its own.
        made_by = None if it.deleted or program == self._own_name else it.comment
        return self._sets.touch(Element(it.set, it.key), made_by=made_by)

    def _say(self, text: str, level: Level = Level.WARNING) -> None:
        """Tell of others' changes and what was done about them, within a limit."""
        if self._lines > 0:
            self._lines -= 1
            self._tell(text, level)
        else:
            self._left_out += 1

    # ---- what is done about it

    def _look_soon(self) -> None:
        """Look at once, or when the pause is over."""
        self._look_in(self._pause_until - time.monotonic())

    def _look_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, seconds)
        if self._looking is not None:
            if self._looking.when() <= when:
                return
            self._looking.cancel()
        self._looking = loop.call_at(when, self._look)

    def _look(self) -> None:
        """See whether the kernel has what the doors need, and mend what can be mended."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._pause_until = max(self._pause_until, time.monotonic() + _PAUSE)
        try:
            found = self._check()
        except FirewallError as error:
            self.in_trouble(error)
            return
        self._note_unfit(found.others)
        harm = self._harm if self._is_restored else None
        self._sound = found.ours is None and harm is None and self._loading is None
        if found.ours is None and harm is not None:
            self._mend(harm, restorable=self._is_restorable(found))
        elif found.ours is not None:
            self._mend(found.ours, restorable=self._is_restorable(found))
            if not any(door.sets for door in self._config.doors):
                return  # there is nowhere to put anything
        if self._trouble or not self._is_settled:
            self.go_through()

    def _check(self) -> Fitness:
        return self._sets.check(self._config.doors, whole=self._is_restored)

    @property
    def _is_restored(self) -> bool:
        """Whether missing rules are put back. Where nothing is guarded now, old ones might guard what no door opens."""
        return self._config.firewall.restore and bool(self._config.guarded) and self._intent.is_kept

    def _note_unfit(self, failures: Iterable[FirewallError]) -> None:
        """Tell of each once, and when all is well again."""
        known, self._unfit = self._unfit, {failure.message: failure for failure in failures}
        for message, failure in self._unfit.items():
            if message not in known:
                self._tell(f"doors do without it: {failure.words()}", Level.ERROR)
        if known and not self._unfit:
            self._tell("all sets that doors name are there again", Level.NOTICE)

    # ---- the elements

    @property
    def _is_settled(self) -> bool:
        return not self._sweep_due and self._sets.settled and all(kept.settled for kept in self.kept)

    def go_through(self) -> None:
        """Make the sets hold what they should, where that is not certain."""
        if self._parts:
            return  # it goes on
        self._started, self._restored, self._failure = time.monotonic(), 0, None
        parts: list[Sweep | Sets | Kept] = [self._sets, *self.kept]
        if self._sweep_due:
            try:
                parts.insert(0, self._sets.sweep())
                self._sweep_due = False
            except FirewallError as error:  # no descriptor left, say: later
                self._failure = error
        self._parts = parts
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Some of the elements, and the rest after the packets."""
        part = self._parts[0]
        some = 0
        try:
            some = part.reconcile(time.monotonic())
        except FirewallError as error:
            self._failure = self._failure or error
        if part is self._sets:
            self._restored += some
        if not some:
            self._parts.pop(0)
        if self._parts:
            asyncio.get_running_loop().call_soon(self._go_on)
            return
        now = time.monotonic()
        self._pause_until = max(self._pause_until, now + _PAUSE + _PAUSE_FACTOR * (now - self._started))
        self._conclude()

    def _conclude(self) -> None:
        """All elements were gone through: tell what has become of it."""
        if not self._sound:
            return  # what is wrong is known
        if self._failure is not None and self._failure.message not in self._unfit:
            self.in_trouble(self._failure)
            return
        back = f"the open doors of {self._restored} address{'' if self._restored == 1 else 'es'} are put back"
        if self._trouble and self._trouble not in self._unfit:
            self._say(f"the firewall has what it needs again; {back}", Level.NOTICE)
        elif self._news and self._restored:
            self._say(back, Level.NOTICE)
        self._trouble = self._hint = self._told = ""
        self._missing_since = 0.0
        self._news = False

    # ---- the rules

    def _mend(self, failure: FirewallError, *, restorable: bool) -> None:
        """Put the rules back, if that is wanted and it is time."""
        if not (restorable and self._is_restored):
            self.in_trouble(failure)
            return
        self._note_trouble(failure)
        self._missing_since = self._missing_since or time.monotonic()
        if not self._told and time.monotonic() > self._missing_since + _TOLD_AFTER:
            self.in_trouble(failure)
        if self._loading is None:
            wait = self._try_at - time.monotonic()
            if wait > 0:
                self._look_in(wait)
            else:
                self._loading = asyncio.get_running_loop().create_task(self._put_back(failure))

    async def _put_back(self, failure: FirewallError) -> None:
        self._tried = time.monotonic()
        outcome = None
        try:
            outcome = await put_back(self._intent, self._config.runtime, self._is_needed, self._loads)
        except LogknockError as error:
            self.in_trouble(error)
        match outcome:
            case Outcome.BUSY | Outcome.NOT_NEEDED:
                self._try_at = time.monotonic() + _BUSY_PAUSE
            case Outcome.ON_TRIAL:
                hint = "rules are on trial: when that has ended, those that were confirmed are put back"
                self.in_trouble(FirewallError(failure.message, hint))
                self._try_at = time.monotonic() + _BUSY_PAUSE
            case _:
                self._count_attempt(stood=outcome is Outcome.DONE)
        if outcome is not Outcome.DONE:
            self._watch.pass_over(0)
            self._harm = self._harm or self._undone
        self._undone = None
        self._loading = None
        self._look()

    def _loads(self, process: int) -> None:
        """What others do from here on is another matter."""
        self._watch.pass_over(process)
        self._undone, self._harm = self._harm, None

    def _count_attempt(self, *, stood: bool) -> None:
        """The more often lately, the longer until the next; `stood`: nft took the rules."""
        self._attempts += 1
        now = time.monotonic()
        if self._attempts >= _AT_ONCE:
            longest = min(_LONGEST_PAUSE, _LOAD_FACTOR * (now - self._tried)) if stood else _LONGEST_PAUSE
            self._try_at = now + min(longest, _FIRST_PAUSE * 2.0 ** (self._attempts - _AT_ONCE))
        if self._attempts == _TELL_FIGHT_AFTER and stood:
            hint = "who deletes them is named above; with `[firewall] restore = false` they are not put back"
            words = f"the rules do not stay: put back {self._attempts} times, and from now on after longer pauses"
            self._tell(f"{words} (hint: {hint})", Level.ERROR)

    def _is_needed(self) -> bool:
        return self._is_restorable(self._check())

    def _is_restorable(self, found: Fitness) -> bool:
        """Whether our table needs to be put back, and may be: where a part of it was taken away, it is ours."""
        harmed = self._harm is not None and (found.ours is None or found.ours.exit_code == UNAVAILABLE)
        return found.restorable or harmed

    async def _put_back_at_start(self) -> None:
        try:
            for _ in range(_BUSY_TRIES):
                outcome = await put_back(self._intent, self._config.runtime, self._is_needed, self._loads)
                if outcome is not Outcome.BUSY:
                    break
                await asyncio.sleep(_BUSY_PAUSE)
        except LogknockError as error:
            if self._check().ours is not None:
                raise
            self.in_trouble(error)  # doors can be opened in what is there; and it is tried again
            self._watch.pass_over(0)
            self._harm, self._undone = self._harm or self._undone, None
            return
        self._harm = self._undone = None
        if outcome is Outcome.DONE:
            self._tell(
                "the rules were not there, or not whole: they are put back as they were loaded last", Level.NOTICE
            )


def _harm(who: str) -> FirewallError:
    """What is wrong with rules that somebody has changed; `who` may be unknown."""
    are, since = ("are", f", since {who} changed them") if who else ("may be", "")
    words = f"the rules of table inet logknock {are} not as they were loaded{since}"
    return FirewallError(words, "`logknock rules apply` loads them", UNAVAILABLE)
