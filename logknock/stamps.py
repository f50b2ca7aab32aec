"""When a record was made: from the head of its line to seconds since the epoch.

Rule 1: no clock in here. What "now" is, or where a log ends, comes in as the reference. Rule 2: every byte may have
been chosen by an attacker: what is no date is None, never an exception. Rule 3: what a head leaves open (the year, the
zone, which of two foldings of an hour, the part of a second) is settled by the reference and by the record before,
and by nothing else.
"""

import re
from datetime import UTC, datetime, timedelta, timezone
from math import nextafter

# A head without a year is the latest that is not more than this ahead of the reference, in seconds: a clock or a zone
# that is set wrong comes to hours, and a log that somebody reads later to months.
MAX_AHEAD = 2 * 86400.0

# For how long, in seconds, what a head without a year was found to mean holds while the reference goes on: well below
# the hour that is there twice when summer time ends.
MAX_KEPT = 600.0

# The kernel's log clock and CLOCK_MONOTONIC part by no more than this part of the time: a crystal's error, which NTP
# takes out of one of them only.
MAX_PARTED = 0.0002

# How long journald may take, in seconds, before any entry of a boot has shown how long it does.
_UNKNOWN_DELAY = 5.0

# When all records of so long a time, in seconds, were late, they were not: the clocks were parted (a virtual machine
# that moved).
_PARTED_AFTER = 600.0

# Boots whose clocks are remembered: one for this host; for a host that collects journals one a host and boot.
MAX_BOOTS = 4096

# What comes within so many seconds of the opening, without a date, may be what the kernel's log held before: `dmesg -w`
# begins with that, and is done with it at once.
_CATCHING_UP = 2.0

# An uptime that falls by more than this, in seconds, is another host's, or another boot's: CPUs agree to milliseconds.
_ANOTHER_BOOT = 1.0

_SCALE = [10.0**digits for digits in range(10)]
_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}
_WHOLE = len("Nov 21 10:00:00")
_SYSLOG = re.compile(rb"([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d)").fullmatch
_ISO = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)").fullmatch
_ZONE = re.compile(rb"([+-])(\d\d):?([0-5]\d)").fullmatch

# How much older than the record before it a record may be, in seconds, in a log that is read afterwards: several
# processes and threads write one log, and not quite in turn.
MAX_DISORDER = 10.0

# rsyslog's imkmsg works out a record's time from the kernel's uptime and from whole seconds: its stamps fall back by
# a second, once a second. A record that is so much older than the one before it was made after it all the same.
MAX_FALL = 1.5

# The year 2200: no log is from then, and the local time of far years is more than datetime can tell.
_LAST = 7_258_118_400.0


class _Lateness:
    """By how much something comes later than it does at best; in seconds, of one boot.

    What it is late by shows in comparison only, since the clocks whose difference it is may be minutes apart after
    weeks: what exceeds the least difference so far, and what the clocks may have parted since, is lateness.
    """

    __slots__ = ("_at", "_least", "_lowest", "_since")

    def __init__(self, least: float, at: float) -> None:
        self._least, self._at = least, at
        # All were late since then, and by so much at least; None: the last one was not.
        self._since: float | None = None
        self._lowest = least

    def of(self, now: float, delay: float) -> float:
        """How late what took `delay` is; learns from it."""
        usual = self._least + max(0.0, now - self._at) * MAX_PARTED
        if delay <= usual:
            self._learn(delay, now)
            return 0.0
        if self._since is None:
            self._since, self._lowest = now, delay
        self._lowest = min(self._lowest, delay)
        if now - self._since >= _PARTED_AFTER:
            self._learn(self._lowest, now)
        return delay - usual

    def _learn(self, least: float, at: float) -> None:
        self._least, self._at, self._since = least, at, None


class KernelClock:
    """When a kernel's record was made, in wall time, though journald may have written its entry minutes later.

    An entry has the time of its writing, by both clocks, and the time of the record by the kernel's log clock
    (`_SOURCE_MONOTONIC_TIMESTAMP`), which is not quite CLOCK_MONOTONIC.
    """

    def __init__(self) -> None:
        self._boots: dict[bytes, _Lateness] = {}

    def time(self, boot: bytes, realtime: int, monotonic: int, source: int) -> float:
        """Seconds since the epoch when the record was made; `realtime` and `monotonic` are the entry's, all in us."""
        lateness = self._boots.get(boot)
        if lateness is None:
            if len(self._boots) >= MAX_BOOTS:
                del self._boots[next(iter(self._boots))]
            lateness = self._boots[boot] = _Lateness(_UNKNOWN_DELAY, 0.0)  # both clocks start at zero
        late = lateness.of(monotonic / 1_000_000, (monotonic - source) / 1_000_000)
        return realtime / 1_000_000 - late


class Dates:
    """The dates in the heads of one log, from its first record to its last.

    reference: seconds since the epoch. Now, for a log that is read while it is written (set it before each read); the
    end of the log (its file's mtime) for one that is read afterwards.
    live: whether the log is read while it is written. Whole seconds in a head then mean the reference if it lies within
    that second, and otherwise that end of the second which is nearer to it: who reads promptly gets exact times, and
    what is old stays old (T29). A record without a date was then made now. In a log that is read afterwards it was
    made when the record before it was, or at as many seconds as its uptime says.
    uptime: the host's, in seconds, at the reference; None where it is not known. By it a record that has nothing but
    an uptime of its own is known to be old, as the first lines of `dmesg -w` are; and when somebody sets the clock,
    nothing looks late for it.
    early: by how many seconds what was told last may be too early; else it is never that.
    """

    __slots__ = (
        "_before",
        "_clock",
        "_date",
        "_head",
        "_kept_at",
        "_lateness",
        "_opened",
        "_second_of_date",
        "_second_of_head",
        "_uptime_before",
        "_zone",
        "early",
        "live",
        "reference",
        "uptime",
    )

    def __init__(self, reference: float, *, live: bool) -> None:
        self.reference = reference
        self.live = live
        self.uptime: float | None = None
        self.early = 0.0
        self._before: float | None = None  # when the record before was made
        self._opened = reference
        self._clock = KernelClock()
        self._lateness: _Lateness | None = None  # of records with an uptime
        self._uptime_before = 0.0
        # What the last head meant: most records of a busy log share their second with the one before.
        self._head = b""
        self._kept_at = reference
        self._second_of_head: float | None = None
        self._date = b""
        self._zone: bytes | None = None
        self._second_of_date: float | None = None

    def syslog(self, head: bytes) -> float | None:
        """`Nov 21 10:00:00` or `Nov 21 10:00:00.123`, local time."""
        fraction = b""
        if len(head) > _WHOLE:
            head, fraction = head[:_WHOLE], head[_WHOLE + 1 :]
        if head != self._head or abs(self.reference - self._kept_at) > MAX_KEPT:
            self._second_of_head = self._from_syslog(head)
            self._head, self._kept_at = head, self.reference
        return self._moment(self._second_of_head, fraction)

    def iso(self, date: bytes, fraction: bytes | None = None, zone: bytes | None = None) -> float | None:
        """`2026-11-21T10:00:00`, the digits behind its point; `Z`, `+01:00` or `+0100`, and local time without."""
        if date != self._date or zone != self._zone or zone is None:
            self._second_of_date = self._from_iso(date, zone)
            self._date, self._zone = date, zone
        return self._moment(self._second_of_date, fraction)

    def epoch(self, microseconds: int) -> float | None:
        """Microseconds since the epoch, which leave nothing open."""
        second = microseconds / 1_000_000 if 0 <= microseconds < _LAST * 1_000_000 else None
        self._before = second
        self.early = 0.0
        return second

    def journal(self, boot: bytes, realtime: int, monotonic: int, source: int) -> float | None:
        """An entry of a journal's: as KernelClock has it, which knows by how much it was written too late (T29)."""
        if self.epoch(realtime) is None:
            return None
        return self._clock.time(boot, realtime, monotonic, source)

    def undated(self, uptime: float | None = None) -> float:
        """No date, but perhaps the seconds since the host started."""
        self.early = 0.0
        if self.live:
            return self.reference if uptime is None else self._young(uptime)
        if uptime is not None:
            self._before = uptime
        elif self._before is None:
            self._before = self.reference
        return self._before

    def made(self, written: float, uptime: float) -> float:
        """When a record was made whose head has a date, `written`, and an uptime; both in seconds (T29).

        Log daemons write the date at which they got to it. In a log that is read afterwards that is all we go by:
        a boot, a sleep or a clock that was set cannot be told from a daemon that was late. What several hosts write
        into one log is never taken for late: whoever started later has an uptime that falls.
        """
        if not self.live:
            return written
        at = written if self.uptime is None else written - self.reference + self.uptime
        if self._lateness is None or uptime < self._uptime_before - _ANOTHER_BOOT:
            self._lateness = _Lateness(at - uptime, at)
        self._uptime_before = uptime
        late = self._lateness.of(at, at - uptime)
        return written - (late if late > MAX_FALL else 0.0)

    def _young(self, uptime: float) -> float:
        """When a record was made that was read just now, and has nothing but an uptime."""
        made = self.made(self.reference, uptime)
        if self.uptime is None:
            return made
        age = self.uptime - uptime
        catching_up = 0.0 <= self.reference - self._opened < _CATCHING_UP
        is_old = age > 1.0 + (0.0 if catching_up else MAX_PARTED * self.uptime)
        return min(made, self.reference - age) if is_old else made

    def _moment(self, second: float | None, fraction: bytes | None) -> float | None:
        if second is None:
            return None
        if fraction:
            second += int(fraction) / _SCALE[len(fraction)]
        elif self.live:
            second = nextafter(second + 1.0, 0.0) if self.reference >= second + 1.0 else max(self.reference, second)
        if self._before is not None and second < self._before <= second + MAX_FALL:
            second = self._before
        self._before = second
        self.early = MAX_FALL
        return second

    def _from_syslog(self, head: bytes) -> float | None:
        found = _SYSLOG(head)
        month = _MONTHS.get(found[1]) if found else None
        if found is None or month is None or not 0.0 <= self.reference < _LAST:
            return None
        day, hour, minute, second = (int(text) for text in found.groups()[1:])
        year = datetime.fromtimestamp(self.reference, UTC).year
        times = (self._local(one, month, day, hour, minute, second) for one in (year - 1, year, year + 1))
        return max((time for time in times if time is not None and time <= self.reference + MAX_AHEAD), default=None)

    def _from_iso(self, date: bytes, zone: bytes | None) -> float | None:
        found = _ISO(date)
        if found is None:
            return None
        year, month, day, hour, minute, second = (int(text) for text in found.groups())
        if zone is None:
            return self._local(year, month, day, hour, minute, second)
        try:
            time = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=_timezone(zone)).timestamp()
        except ValueError:
            return None
        return _with_leap_second(time, second)

    def _local(self, year: int, month: int, day: int, hour: int, minute: int, second: int) -> float | None:
        """Local time; when summer time ends an hour is there twice, and one of the two is meant."""
        try:
            time = datetime(year, month, day, hour, minute, min(second, 59))
            foldings = time.timestamp(), time.replace(fold=1).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
        return _with_leap_second(self._meant(*foldings), second)

    def _meant(self, first: float, again: float) -> float:
        """The one that is nearer to now; in a log that is read afterwards the one that goes on from the record before.

        Where the hour is there once the two are the same; where it is not there at all they are an hour apart too.
        """
        if self.live or self._before is None:
            return min(first, again, key=lambda one: abs(one - self.reference))
        return first if first >= self._before - MAX_DISORDER else again


def _with_leap_second(time: float, second: int) -> float | None:
    """The second 60, which datetime does not know, is the one behind 59."""
    if second > 60 or not 0.0 <= time < _LAST:
        return None
    return time + 1.0 if second == 60 else time


def _timezone(zone: bytes) -> timezone:
    """Raises ValueError where it is none."""
    if zone == b"Z":
        return UTC
    found = _ZONE(zone)
    if found is None:
        raise ValueError(zone)
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-offset if found[1] == b"-" else offset)
