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

# The kernel's log clock and the host's uptime part by no more than this part of it: a crystal's error, which NTP takes
# out of one of them only. A record that is that much older than the uptime, and a second, is old.
MAX_PARTED = 0.0002

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


class Dates:
    """The dates in the heads of one log, from its first record to its last.

    reference: seconds since the epoch. Now, for a log that is read while it is written (set it before each read); the
    end of the log (its file's mtime) for one that is read afterwards.
    live: whether the log is read while it is written. Whole seconds in a head then mean the reference if it lies within
    that second, and otherwise that end of the second which is nearer to it: who reads promptly gets exact times, and
    what is old stays old (T29). A record without a date was then made now. In a log that is read afterwards it was
    made when the record before it was, or at as many seconds as its uptime says.
    uptime: the host's, in seconds, at the reference; None where it is not known. By it a record that has nothing but
    an uptime of its own is known to be old, as the first lines of `dmesg -w` are.
    """

    __slots__ = (
        "_before",
        "_date",
        "_head",
        "_kept_at",
        "_second_of_date",
        "_second_of_head",
        "_zone",
        "live",
        "reference",
        "uptime",
    )

    def __init__(self, reference: float, *, live: bool) -> None:
        self.reference = reference
        self.live = live
        self.uptime: float | None = None
        self._before: float | None = None  # when the record before was made
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
        return second

    def undated(self, uptime: float | None = None) -> float:
        """No date, but perhaps the seconds since the host started."""
        if self.live:
            age = self.uptime - uptime if uptime is not None and self.uptime is not None else 0.0
            return self.reference - (age if age > 1.0 + MAX_PARTED * (self.uptime or 0.0) else 0.0)
        if uptime is not None:
            self._before = uptime
        elif self._before is None:
            self._before = self.reference
        return self._before

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
