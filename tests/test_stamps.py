"""The head of a line is the second that it was written in, wherever the host is and whenever it is read."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logknock.stamps import MAX_AHEAD, Dates

YEAR = 365 * 86400.0
# Zones with and without summer time, of half and quarter hours, at both ends of the day; Lord Howe's is half an hour.
ZONES = [
    *("UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe"),
    *("Pacific/Kiritimati", "Pacific/Pago_Pago", "America/Sao_Paulo", "Africa/Casablanca"),
]


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """UTC, unless a test sets another; the process has its own again behind the test."""
    with monkeypatch.context() as patch:
        set_zone(patch, "UTC")
        yield patch
    time.tzset()


def set_zone(patch: pytest.MonkeyPatch, name: str) -> None:
    patch.setenv("TZ", name)
    time.tzset()


def head(second: float) -> bytes:
    """What a log daemon on this host writes."""
    return time.strftime("%b %e %H:%M:%S", time.localtime(second)).encode()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("name", ZONES)
def test_a_head_means_the_second_it_was_written_in(name: str, zone: pytest.MonkeyPatch) -> None:
    """At any time of any year, also while an hour is there twice: who reads within minutes knows which one it is."""
    set_zone(zone, name)

    @given(st.integers(86400, 4_000_000_000), st.floats(0, 600), st.booleans())
    @example(int(utc("2026-04-04 14:59:59")), 0.5, True)  # Lord Howe's half hour that is there twice, its first end
    @example(int(utc("2026-10-25 00:59:59")), 0.5, True)  # Berlin's hour that is there twice, its first end
    @example(int(utc("2026-10-25 01:59:59")), 0.5, True)  # and its second
    def check(second: int, later: float, live: bool) -> None:
        told = Dates(second + later, live=live).syslog(head(second))
        assert told is not None
        assert second <= told < second + 1

    check()


@pytest.mark.parametrize("name", ZONES)
def test_a_log_that_is_read_later_goes_on_through_the_hour_that_is_there_twice(
    name: str, zone: pytest.MonkeyPatch
) -> None:
    """Read weeks later nothing but the records' order tells the two apart."""
    set_zone(zone, name)
    for year, step in ((2024, 1620), (2025, 1500), (2026, 1260)):  # less than any such hour lasts
        days = [utc(f"{year}-01-04") + 86400 * count for count in range(361)]
        seconds: list[int] = []
        for day in days:
            changes = time.localtime(day).tm_gmtoff != time.localtime(day + 86400).tm_gmtoff
            seconds += range(int(day), int(day) + 86400, step) if changes else [int(day)]
        dates = Dates(days[-1] + 86400, live=False)
        assert [dates.syslog(head(second)) for second in seconds] == seconds


@given(st.integers(0, 4_000_000_000), st.floats(-MAX_AHEAD, 362 * 86400))
def test_the_year_is_the_one_that_brings_the_head_nearest(second: int, since: float) -> None:
    """A log of nearly a year, or a clock that is a day ahead: nothing else says which year it is."""
    written = time.gmtime(second)
    if (written.tm_mon, written.tm_mday) == (2, 29) or second + since < 0:
        return
    assert Dates(second + since, live=False).syslog(head(second)) == second


@given(st.integers(86400, 4_000_000_000), st.floats(0, 0.9999))
def test_t29_who_reads_at_once_gets_the_moment_and_who_reads_late_an_old_record(second: int, part: float) -> None:
    """T29: a backlog is never made younger than its heads say."""
    text = head(second)
    now = second + part
    assert Dates(now, live=True).syslog(text) == now
    for late in (1.0, 2.5, 60.0, 86400.0):
        told = Dates(second + late, live=True).syslog(text)
        assert told is not None
        assert second <= told < second + 1
        assert int(told) == second
    assert Dates(second - 0.001, live=True).syslog(text) == second


def test_the_same_head_an_hour_later_is_another_hour(zone: pytest.MonkeyPatch) -> None:
    """What was kept of the head before is not believed when the clock has gone on."""
    set_zone(zone, "Europe/Berlin")
    dates = Dates(utc("2026-10-25 00:30:00"), live=True)
    assert dates.syslog(b"Oct 25 02:30:00") == utc("2026-10-25 00:30:00")
    dates.reference += 3600
    assert dates.syslog(b"Oct 25 02:30:00") == utc("2026-10-25 01:30:00")
    assert dates.iso(b"2026-10-25T02:30:00") == utc("2026-10-25 01:30:00")
    dates.reference -= 3600
    assert dates.iso(b"2026-10-25T02:30:00") == utc("2026-10-25 00:30:00")
    dates.reference += YEAR
    told = dates.syslog(b"Oct 25 02:30:00")
    assert told is not None
    assert told > utc("2027-10-24")


@pytest.mark.parametrize(
    ("parts", "second"),
    [
        pytest.param((b"2026-11-21T10:00:00", None, b"Z"), 1795255200.0, id="UTC"),
        pytest.param((b"2026-11-21T10:00:00", b"5", b"+00:00"), 1795255200.5, id="a tenth"),
        pytest.param((b"2026-11-21T10:00:00", b"000000001", b"+00:00"), 1795255200.000000001, id="a nanosecond"),
        pytest.param((b"2026-11-21T10:00:00", b"999999", b"-0330"), 1795267800.999999, id="Newfoundland"),
        pytest.param((b"2026-11-21T10:00:00", None, None), 1795255200.0, id="local time"),
        pytest.param((b"2024-02-29T00:00:00", None, b"Z"), 1709164800.0, id="a leap day"),
        pytest.param((b"2016-12-31T23:59:60", None, b"Z"), 1483228800.0, id="a leap second"),
        pytest.param((b"2016-12-31T23:59:61", None, b"Z"), None, id="two leap seconds"),
        pytest.param((b"2026-02-29T00:00:00", None, b"Z"), None, id="no leap year"),
        pytest.param((b"2026-00-10T00:00:00", None, b"Z"), None, id="no month"),
        pytest.param((b"2026-11-21T24:00:00", None, b"Z"), None, id="no hour"),
        pytest.param((b"0001-01-01T00:00:00", None, b"+23:59"), None, id="the first day there is, and before"),
        pytest.param((b"9999-12-31T23:59:59", None, b"-23:59"), None, id="the last day there is, and after"),
        pytest.param((b"9999-12-31T23:59:59", None, None), None, id="the last day there is, local time"),
        pytest.param((b"1969-12-31T23:59:59", None, b"Z"), None, id="before the epoch"),
        pytest.param((b"2026-11-21T10:00:00", None, b"+24:00"), None, id="a zone of a day"),
        pytest.param((b"2026-11-21T10:00:00", None, b"+10:60"), None, id="a zone of sixty minutes"),
        pytest.param((b"2026-11-21T10:00:00", None, b"CET"), None, id="a zone's name"),
        pytest.param((b"2026-11-21 10:00:00", None, b"Z"), None, id="a blank for the T"),
        pytest.param((b"2026-11-21T1 :00:00", None, b"Z"), None, id="a digit that is none"),
    ],
)
def test_iso(parts: tuple[bytes, bytes | None, bytes | None], second: float | None) -> None:
    assert Dates(0.0, live=False).iso(*parts) == second


@given(st.one_of(st.binary(max_size=30), st.from_regex(rb"\A[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(\.\d{1,9})?\Z")))
@example(b"Feb 29 00:00:00")
def test_any_bytes_are_a_second_or_none(text: bytes) -> None:
    for reference in (0.0, 1795255200.0, 4e12, -1.0, float("inf"), float("nan")):
        for live in (True, False):
            told = Dates(reference, live=live).syslog(text)
            assert told is None or told >= 0


@given(
    st.binary(max_size=25), st.one_of(st.none(), st.from_regex(rb"\A[0-9]{1,9}\Z")), st.one_of(st.none(), st.binary())
)
def test_any_iso_bytes_are_a_second_or_none(date: bytes, fraction: bytes | None, zone: bytes | None) -> None:
    told = Dates(1795255200.0, live=True).iso(date, fraction, zone)
    assert told is None or told >= 0


def test_microseconds_since_the_epoch() -> None:
    dates = Dates(0.0, live=True)
    assert dates.epoch(1795255200123456) == 1795255200.123456
    assert dates.epoch(0) == 0.0
    assert dates.epoch(-1) is None
    assert dates.epoch(10**17) is None


def test_a_record_without_a_date_is_as_old_as_the_one_before() -> None:
    dates = Dates(100.0, live=False)
    assert dates.undated() == 100.0
    assert dates.iso(b"2026-11-21T10:00:00", None, b"Z") == 1795255200.0
    assert dates.undated() == 1795255200.0
    assert dates.syslog(b"Jan  1 00:00:00") == 0.0
    assert dates.undated() == 0.0
    assert dates.undated(2247.5) == 2247.5
    assert dates.undated() == 2247.5
    assert dates.epoch(5_000_000) == 5.0
    assert dates.undated() == 5.0


def test_a_record_without_a_date_was_made_now_if_the_log_is_being_written() -> None:
    dates = Dates(100.0, live=True)
    assert dates.undated() == 100.0
    assert dates.undated(2247.5) == 100.0
    dates.reference = 101.0
    assert dates.undated() == 101.0


def test_what_is_no_date_is_not_the_one_before() -> None:
    """What is kept of the last head is kept of a wrong one, too."""
    dates = Dates(1795255200.0, live=False)
    for wrong, right in ((b"Nov 31 10:00:00", b"Nov 21 09:59:58"), (b"Foo 21 10:00:00", b"Nov 21 09:59:59")):
        assert dates.syslog(wrong) is None
        assert dates.syslog(right) is not None
        assert dates.syslog(wrong) is None
    assert dates.iso(b"2026-11-31T10:00:00", None, b"Z") is None
    assert dates.iso(b"2026-11-21T10:00:00", None, b"Z") == 1795255200.0
    assert dates.iso(b"2026-11-21T10:00:00", None, b"+01:00") == 1795251600.0
    assert dates.iso(b"2026-11-31T10:00:00", None, b"+01:00") is None


NOW = 1_800_000_000.0
MONTH = 30 * 86_400.0


@pytest.mark.parametrize(
    ("host", "record", "age"),
    [
        pytest.param(1000.0, 999.5, 0.0, id="just now"),
        pytest.param(1000.0, 900.0, 100.0, id="an old line of the ring buffer"),
        pytest.param(MONTH, MONTH - 500, 0.0, id="after a month two clocks may be minutes apart"),
        pytest.param(MONTH, MONTH - 600, 600.0, id="and no more than that"),
        pytest.param(1000.0, 2000.0, 0.0, id="another host's: not from the future"),
        pytest.param(None, 900.0, 0.0, id="an uptime that there is nothing to compare with"),
    ],
)
def test_t29_an_old_record_that_has_only_an_uptime_is_known_to_be_old(
    host: float | None, record: float, age: float
) -> None:
    """T29: `dmesg -w | logknock run` begins with all that the ring buffer has."""
    dates = Dates(NOW - 10, live=True)
    dates.reference, dates.uptime = NOW, host
    assert dates.undated(record) == NOW - age
    assert dates.undated() == NOW


def test_t29_what_the_ring_buffer_held_is_old_however_long_the_host_is_up() -> None:
    """T29: after a month 400 s may be how far two clocks are apart, but not for what is there at the opening."""
    dates = Dates(NOW, live=True)
    parted = 90.0
    for read, made, age in (
        (0.01, -400.0, 400 + parted + 0.01),  # the ring buffer, at once
        (0.02, -300.0, 300 + parted + 0.02),
        (5.0, 5.0, 0.0),  # a knock
        (60.0, 60.0, 0.0),
        (400.0, 300.0, 100.0),  # who writes into the pipe was stopped
        (401.0, 401.0, 0.0),
        (400.0, 400.5, 0.0),
    ):
        dates.reference, dates.uptime = NOW + read, MONTH + read
        assert dates.undated(MONTH + made - parted) == pytest.approx(NOW + read - age, abs=0.2), read


@given(st.integers(0, 300_000), st.floats(0, 0.9), st.floats(8, 500), st.booleans())
def test_t29_a_log_daemon_that_was_late(boot: int, prompt: float, late: float, whole: bool) -> None:
    """T29: it writes the date at which it gets to a record; the uptime tells when that was made."""
    dates = Dates(NOW, live=True)

    def told(made: float, written: float) -> float:
        """What becomes of a record that was made and is written, and read at once, so long after NOW."""
        dates.reference, dates.uptime = NOW + written, 5000.0 + written
        head = dates.iso(*iso(NOW + written, whole))
        assert head is not None
        return dates.made(head, boot + made) - NOW

    for second in range(5):
        assert told(second, second + prompt) == pytest.approx(second + prompt, abs=0.01)
    for again in range(20):
        assert told(10.0 + again / 10, 10.0 + late) == pytest.approx(10.0 + again / 10, abs=2.0)
    assert told(600.0, 600.0 + prompt) == pytest.approx(600.0 + prompt, abs=0.01)


def iso(second: float, whole: bool) -> tuple[bytes, bytes | None, bytes]:
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
    return text, None if whole else b"%06d" % (second % 1 * 1_000_000), b"Z"


def made(dates: Dates, later: float, uptime: float, step: float = 0.0) -> float:
    """By how much a record that is written and read at once is older than that."""
    dates.reference, dates.uptime = NOW + later + step, 5000.0 + later
    return dates.reference - dates.made(dates.reference, uptime)


def test_several_hosts_write_one_log() -> None:
    """None of them is late because another one was started earlier."""
    dates = Dates(NOW, live=True)
    for later in range(100):
        for host in (40.0, 5_000_000.0, 300.0, 70_000.0):
            assert made(dates, later, host + later) == 0.0


def test_a_host_that_is_started_anew() -> None:
    dates = Dates(NOW, live=True)
    assert [made(dates, later, uptime) for later, uptime in ((0, 900), (1, 901), (300, 2), (301, 3))] == [0.0] * 4
    assert made(dates, 400, 50) == pytest.approx(52, abs=0.1)


def test_the_clock_is_set_while_a_log_is_read() -> None:
    """Its heads leap, and nothing was late."""
    dates = Dates(NOW, live=True)
    for later, step in enumerate((0.0, 3600.0, 3600.0, -86400.0, 0.0)):
        assert made(dates, later, 900.0 + later, step) == 0.0


def test_clocks_that_parted_are_known_again_after_a_while() -> None:
    """A virtual machine was moved: else no knock would ever be in time again."""
    dates = Dates(NOW, live=True)
    assert made(dates, 0, 1000) == 0.0
    ages = [made(dates, later, 900.5 + later) for later in range(100, 800, 10)]
    assert ages[0] == pytest.approx(99.5, abs=0.1)
    assert ages[-1] == 0.0


def test_a_log_that_is_read_afterwards_is_taken_by_its_heads() -> None:
    """There a boot, a sleep and a clock that was set look the same as a daemon that was late."""
    dates = Dates(NOW, live=False)
    assert dates.made(1000.0, 50.0) == 1000.0
    assert dates.made(2000.0, 51.0) == 2000.0


def test_t29_an_entry_that_journald_was_late_with() -> None:
    """T29: what came three seconds after the record before, and was written a minute after that."""
    dates = Dates(NOW, live=True)
    assert dates.journal(b"boot", 1_000_000_000, 500_000_000, 500_000_000) == 1000.0
    assert dates.journal(b"boot", 1_060_000_000, 560_000_000, 503_000_000) == pytest.approx(1003.0, abs=0.1)
    assert dates.journal(b"boot", -1, 560_000_000, 503_000_000) is None
