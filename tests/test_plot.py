"""The picture of a log: that it can be read, whatever is in it, and stays as small as a picture."""

import re
from datetime import UTC, datetime, tzinfo
from itertools import pairwise
from typing import NamedTuple
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock.knock import Door, Service
from logknock.packet import TCP, UDP
from logknock.plot import MAX_TEXT, svg
from logknock.timeline import FAILURES, MAX_ROWS, Mark, Row, Span, TimeLine, draw
from logknock.trail import Finding, Verdict

BEGIN = datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86_400.0
NS = "{http://www.w3.org/2000/svg}"

SEQUENCE = (Service(TCP, 7000), Service(TCP, 8000), Service(UDP, 9000))
DOORS = {
    "ssh": Door("ssh", SEQUENCE, opens=(Service(TCP, 22),)),
    "web": Door("web", SEQUENCE[:2], opens=(Service(TCP, 80),), timeout=60.0),
    "done": Door("done", SEQUENCE[::-1], closes=("ssh",)),
}


class Picture(NamedTuple):
    """What stands in an SVG: where the knocks and the crosses are, in the order of drawing, bars, labels and tips."""

    knocks: list[tuple[float, float, str]]  # x, y, the number on it
    crosses: list[tuple[float, float]]
    more: list[tuple[float, float, str]]
    bars: list[tuple[float, float, float]]  # x, y, width
    lines: int
    words: list[str]
    tips: list[str]
    ticks: list[tuple[float, str]]
    height: float


def read(text: str) -> Picture:
    """The picture without its legend."""
    root = ElementTree.fromstring(text)  # noqa: S314  # our own
    assert root.tag == f"{NS}svg"
    found = Picture(
        [], [], [], [], len(root.findall(f"{NS}path[@class='attempt']")) - 1, [], [], [], float(root.get("height", ""))
    )
    for group in root.iter(f"{NS}g"):
        path, rect, label = group.find(f"{NS}path"), group.find(f"{NS}rect"), group.find(f"{NS}text")
        if group.get("transform") and label is not None:
            x, y = re.findall(r"[\d.]+", group.get("transform", ""))
            found.knocks.append((float(x), float(y), label.text or ""))
        elif path is not None and path.get("class") == "fail":
            x, y = re.findall(r"[\d.]+", path.get("d", ""))[:2]
            found.crosses.append((float(x) + 5, float(y) + 5))
        elif rect is not None and rect.get("class") == "open":
            found.bars.append(tuple(float(rect.get(key, "")) for key in ("x", "y", "width")))  # type: ignore[arg-type]
        elif rect is not None and label is not None:
            found.more.append((float(label.get("x", "")), float(rect.get("y", "")) + 7, label.text or ""))
    del found.knocks[-4:], found.crosses[-1:], found.more[-1:]  # the legend's
    found.tips.extend(title.text or "" for title in root.iter(f"{NS}title"))
    for each in root.iter(f"{NS}text"):
        found.words.append(each.text or "")
        if each.get("class") == "tick":
            found.ticks.append((float(each.get("x", "")), each.text or ""))
    return found


def picture(*rows: Row, title: str = "kern.log", left_out: int = 0, zone: tzinfo | None = UTC) -> Picture:
    return read(svg(TimeLine(title, rows, left_out), zone))


def row(*times: float, name: str = "192.0.2.1") -> Row:
    """A knock at each of these times."""
    return Row(name, "", [Mark(BEGIN + time, 1, f"at {time}") for time in times], (), ())


def finding(
    time: float, verdict: Verdict, stage: int = 0, service: str = "", door: str = "ssh", words: str = ""
) -> Finding:
    return Finding(BEGIN + time, b"\xc0\x00\x02\x01", service, door, stage, len(DOORS[door].sequence), verdict, words)


def knocks(time: float = 0.0, count: int = 3, door: str = "ssh") -> list[Finding]:
    sequence = DOORS[door].sequence[:count]
    return [
        finding(time + number, Verdict.ADVANCED, number + 1, str(service), door, f"stage {number + 1}")
        for number, service in enumerate(sequence)
    ]


# ---- from findings to a row


def test_an_opening_is_its_knocks_a_line_and_a_bar_to_the_timeout() -> None:
    found = draw("a", [*knocks(), finding(2, Verdict.OPENED, service="9000/udp", words="opened for 30 s")], DOORS, UTC)
    assert [(mark.time - BEGIN, mark.stage) for mark in found.marks] == [(0, 1), (1, 2), (2, 3)]
    assert [(span.start - BEGIN, span.end - BEGIN) for span in found.attempts] == [(0, 2)]
    assert [(span.start - BEGIN, span.end - BEGIN, span.label) for span in found.openings] == [(2, 32, "ssh")]
    assert found.openings[0].title == "ssh is open from 10:00:02.000 to 10:00:32.000"
    assert found.outcome == "opened ssh"


def test_a_refreshed_door_has_one_bar() -> None:
    twice = [*knocks(), finding(2, Verdict.OPENED), *knocks(20), finding(22, Verdict.OPENED)]
    once = draw("a", [*twice[:4], finding(50, Verdict.WRONG)], DOORS, UTC)
    assert once.outcome == "opened ssh, failed once"
    found = draw("a", twice, DOORS, UTC)
    assert [(span.start - BEGIN, span.end - BEGIN) for span in found.openings] == [(2, 52)]
    assert found.outcome == "opened ssh 2 times"


def test_a_door_that_another_closes_has_a_bar_to_there() -> None:
    closing = [finding(10, Verdict.ADVANCED, 3, door="done"), finding(10, Verdict.CLOSED, door="done")]
    (bar,) = draw("a", [*knocks(), finding(2, Verdict.OPENED), *closing], DOORS, UTC).openings
    assert (bar.end - BEGIN, bar.note) == (10, "closed by done")
    assert draw("a", closing, DOORS, UTC).outcome == "closed a door"


@pytest.mark.parametrize("verdict", FAILURES, ids=str)
def test_each_failure_is_a_cross_with_its_reason(verdict: Verdict) -> None:
    """In words on pointing, and beside it, where there is room."""
    found = draw("a", [*knocks(count=2), finding(3, verdict, 2, "8080/tcp", words="so it went")], DOORS, UTC)
    assert found.outcome == f"stage 2 of 3, {FAILURES[verdict]}"
    seen = picture(found)
    assert len(seen.crosses) == 1
    assert "10:00:03.000 8080/tcp ssh: so it went" in seen.tips
    assert (f"{FAILURES[verdict]}: 8080/tcp" if verdict is Verdict.WRONG else FAILURES[verdict]) in seen.words
    assert seen.lines == 1


def failures(*times: float, label: str = "wrong port: 8080/tcp") -> Row:
    return Row("a", "", [Mark(BEGIN + time, 0, "", label) for time in times], (), ())


def reasons(text: str) -> list[tuple[float, float, str]]:
    """Where they begin, at which height, and what they say."""
    found = ElementTree.fromstring(text).iter(f"{NS}text")  # noqa: S314  # our own
    return [(float(at.get("x", "")), float(at.get("y", "")), at.text or "") for at in found if at.get("class") == "why"]


def test_the_first_failure_of_several_side_by_side_has_its_reason_too() -> None:
    """Above its mark, where there is none beside it."""
    knocked_again = Row("a", "", [*failures(1, 3).marks, Mark(BEGIN + 2, 1, ""), Mark(BEGIN + 50, 1, "")], (), ())
    (first, above, said), (second, beside, again) = reasons(svg(TimeLine("a", [knocked_again]), UTC))
    assert said == again == "wrong port: 8080/tcp"
    assert above < beside - 10
    assert first < second


@given(st.lists(st.floats(0, 40 * DAY) | st.floats(0, 10), min_size=1, max_size=60))
def test_reasons_hide_neither_each_other_nor_a_mark_nor_leave_the_picture(times: list[float]) -> None:
    text = svg(TimeLine("a", [failures(*times)]), UTC)
    crosses, folded = read(text).crosses, read(text).more
    drawn = sorted([*[(x, 8.0) for x, _ in crosses], *[(x, 13.0) for x, *_ in folded]])
    found = reasons(text)
    assert all(x >= 150 and x + len(said) * 5.5 <= 1200 for x, _, said in found)
    for height in {y for _, y, _ in found}:
        line = sorted((x, x + len(said) * 5.5) for x, y, said in found if y == height)
        assert all(end <= after for (_, end), (after, _) in pairwise(line))
        if crosses and height > crosses[0][1]:  # beside the marks
            assert not [1 for x, half in drawn for begin, end in line if begin < x + half and x - half < end]


def test_a_reason_that_has_no_room_before_a_break_ends_there() -> None:
    text = svg(TimeLine("a", [failures(0, 50, 30 * DAY, 30 * DAY + 50)]), UTC)
    seen, (_, before, after, _) = reasons(text), sorted(x for x, _ in read(text).crosses)
    assert len(seen) == 4
    assert seen[1][0] < before < seen[1][0] + len(seen[1][2]) * 5.9 < (before + after) / 2


def test_what_means_nothing_is_not_drawn() -> None:
    nothing = set(Verdict) - FAILURES.keys() - {Verdict.ADVANCED, Verdict.OPENED, Verdict.CLOSED}
    found = draw("a", [finding(0, verdict, 1) for verdict in nothing], DOORS, UTC)
    assert (list(found.marks), list(found.openings)) == ([], [])


def test_doors_that_begin_alike_have_one_mark_a_knock() -> None:
    both = [each for pair in zip(knocks(count=2), knocks(door="web"), strict=True) for each in pair]
    found = draw("a", [*both, finding(1, Verdict.OPENED, door="web")], DOORS, UTC)
    assert [mark.stage for mark in found.marks] == [1, 2]
    assert found.marks[0].title == "10:00:00.000 7000/tcp ssh: stage 1; 10:00:00.000 7000/tcp web: stage 1"


def test_a_sequence_that_begins_by_chance_with_the_last_knock_of_another_is_no_attempt() -> None:
    """A door's sequence, and the same backwards to close it, is what knockd's users have."""
    chance = [finding(2, Verdict.ADVANCED, 1, "9000/udp", "done"), finding(17, Verdict.TIMEOUT, 1, door="done")]
    found = draw("a", [*knocks(), finding(2, Verdict.OPENED, service="9000/udp"), *chance], DOORS, UTC)
    assert [mark.stage for mark in found.marks] == [1, 2, 3]
    assert found.outcome == "opened ssh"
    meant = [
        chance[0],
        finding(3, Verdict.ADVANCED, 2, "8000/tcp", "done"),
        finding(4, Verdict.WRONG, 2, "1/tcp", "done"),
    ]
    assert [mark.stage for mark in draw("a", [*knocks(), *meant], DOORS, UTC).marks] == [1, 2, 3, 2, 0]
    again = [finding(30, Verdict.ADVANCED, 1, "9000/udp", "done"), finding(45, Verdict.TIMEOUT, 1, door="done")]
    stages = [mark.stage for mark in draw("a", [*knocks(), *meant, *again], DOORS, UTC).marks]
    assert stages == [1, 2, 3, 2, 0, 1, 0]


# ---- marks that can be told apart


moments = st.floats(0, 40 * DAY) | st.floats(0, 10) | st.just(5.0)


@given(st.lists(st.tuples(moments, st.integers(0, 5)), min_size=1, max_size=300))
def test_no_mark_hides_another_or_leaves_the_picture(wanted: list[tuple[float, int]]) -> None:
    marks = [Mark(BEGIN + time, stage, f"{time}") for time, stage in wanted]
    seen = picture(Row("192.0.2.1", "", marks, (), ()))
    taken = [(x, 8.0) for x, _, _ in seen.knocks] + [(x, 6.5) for x, _ in seen.crosses]
    taken += [(x, 13.0) for x, _, _ in seen.more]
    for (x, half), (after, other) in pairwise(sorted(taken)):
        assert after - x >= half + other - 0.2
    assert all(x - half >= 150 and x + half <= 1200 for x, half in taken)
    folded = sum(int(text.removeprefix("+")) for _, _, text in seen.more)
    assert len(seen.knocks) + len(seen.crosses) + folded <= len(marks)
    assert seen.knocks or seen.crosses or seen.more


@given(st.lists(st.tuples(moments, moments), min_size=1, max_size=40))
def test_bars_stand_in_the_picture(spans: list[tuple[float, float]]) -> None:
    openings = [Span(BEGIN + min(span), BEGIN + max(span), "ssh", "ssh") for span in spans]
    for x, _, width in picture(Row("192.0.2.1", "", (), (), openings)).bars:
        assert width >= 4
        assert 150 <= x <= x + width <= 1200


def test_knocks_stay_in_their_order_and_near_their_time() -> None:
    """Three knocks within a millisecond of a day."""
    marks = [Mark(BEGIN + HOUR + at / 1000, at + 1, "") for at in range(3)]
    seen = picture(Row("a", "", [*marks, Mark(BEGIN + DAY, 1, ""), Mark(BEGIN, 1, "")], (), ()))
    assert [text for _, _, text in sorted(seen.knocks)] == ["1", "1", "2", "3", "1"]


def test_knocks_within_one_second_of_a_log_of_whole_seconds_stand_in_their_order() -> None:
    """The bar begins at the last of them."""
    at_once = [finding(0, Verdict.ADVANCED, stage, f"{stage}/tcp") for stage in (1, 2, 3)]
    seen = picture(draw("a", [*at_once, finding(0, Verdict.OPENED, service="3/tcp")], DOORS, UTC))
    assert [text for _, _, text in seen.knocks] == ["1", "2", "3"]
    assert seen.knocks[0][0] < seen.knocks[1][0] < seen.knocks[2][0] == seen.bars[0][0]
    assert seen.lines == 1


def test_a_row_that_is_too_full_shows_the_last_knock_of_each_attempt_and_counts_the_rest() -> None:
    full = [Mark(BEGIN + at * 1800 + stage, stage, "") for at in range(48) for stage in (1, 2, 3)]
    seen = picture(Row("a", "", full, (), ()))
    assert {text for _, _, text in seen.knocks} == {"3"}
    scan = [Mark(BEGIN + at / 100, at % 2, "") for at in range(2_000)]
    seen = picture(Row("a", "", scan, (), ()), row(100))
    drawn = [each for each in seen.knocks if each[1] == seen.crosses[0][1]]
    assert len(drawn) + len(seen.crosses) + sum(int(text[1:].replace("k", "000")) for *_, text in seen.more) >= 1_800


def test_stages_differ_by_shape_number_and_brightness() -> None:
    """Not by hue alone: whoever sees no colours, or prints it in grey, can tell them apart."""
    text = svg(TimeLine("a", [Row("a", "", [Mark(BEGIN + at, at, "") for at in range(1, 8)], (), ())]), UTC)
    shades = [
        int(colour[at : at + 2], 16) for colour in re.findall(r"\.s\d { fill: #(\w{6})", text) for at in (0, 2, 4)
    ]
    grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in zip(shades[::3], shades[1::3], shades[2::3], strict=True)]
    assert len(grey) == 5
    assert all(lighter - darker > 20 for lighter, darker in pairwise(grey))
    assert len(set(re.findall(r'class="mark s\d" d="([^"]+)"', text))) == 5
    assert {"6", "7"} <= set(re.findall(r'class="digit \w+" y="3.4">(\d+)<', text))


# ---- the axis


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        pytest.param(0.05, "10:00:00.000", id="fifty milliseconds"),
        pytest.param(1, "10:00:00.000", id="a second"),
        pytest.param(30, "10:00:00", id="half a minute"),
        pytest.param(600, "10:00", id="ten minutes"),
        pytest.param(DAY, "12:00", id="a day"),
        pytest.param(30 * DAY, "2026-11-24", id="thirty days"),
        pytest.param(9 * 365 * DAY, "2027-08-27", id="nine years"),
    ],
)
def test_there_are_some_round_times_whatever_the_span(seconds: float, first: str) -> None:
    steps = 100  # so that nothing is cut out
    seen = picture(row(*(seconds * at / steps for at in range(steps + 1))))
    assert 3 <= len(seen.ticks) <= 14
    for (x, label), (after, following) in pairwise(seen.ticks):
        assert after - x > 3.2 * (len(label) + len(following))
    assert seen.ticks[0][1] == first


def test_a_single_moment_is_a_picture_too() -> None:
    assert picture(row(0)).knocks[0][2] == "1"


def test_days_begin_at_midnight_of_the_zone_also_where_a_day_has_25_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    begin = datetime(2026, 10, 20, 12, tzinfo=berlin).timestamp() - BEGIN
    seen = picture(row(*(begin + at * DAY / 10 for at in range(100))), zone=berlin)
    labels = [label for _, label in seen.ticks]
    assert labels == [f"2026-10-{day}" for day in range(21, 31)]
    distances = [after - x for (x, _), (after, _) in pairwise(seen.ticks)]
    assert max(distances) == pytest.approx(25 / 24 * min(distances), rel=0.02)
    assert "2026-10-20 12:00:00 to 2026-10-30 08:36:00 (UTC+02:00), 9 d 21 h" in seen.words


def test_the_head_tells_the_span_of_the_log_and_that_of_what_is_drawn() -> None:
    whole = (BEGIN - HOUR, BEGIN + DAY)
    seen = read(svg(TimeLine("a", [row(0, 90)], first=whole[0], last=whole[1]), UTC))
    said = "2026-11-21 09:00:00 to 2026-11-22 10:00:00 (UTC+00:00), 1 d 1 h; drawn: "
    assert seen.words[1] == said + "2026-11-21 10:00:00 to 10:01:30"
    seen = read(svg(TimeLine("a", [], first=whole[0], last=whole[1]), UTC))
    assert seen.words[1] == said.partition(";")[0]
    assert "drawn" not in read(svg(TimeLine("a", [row(0, 90)], first=BEGIN, last=BEGIN + 90), UTC)).words[1]


def test_long_pauses_are_cut_out_and_said() -> None:
    """Two bursts, a day apart, each with room for its knocks."""
    seen = picture(row(0, 10, 20, DAY, DAY + 10, DAY + 20))
    xs = [x for x, _, _ in seen.knocks]
    assert min(after - x for x, after in [*pairwise(xs[:3]), *pairwise(xs[3:])]) > 100
    assert "23 h 59 min without anything to show" in seen.tips
    assert [label for _, label in seen.ticks].count("10:00:00") == 2
    assert {"Sat 2026-11-21", "Sun 2026-11-22"} <= set(seen.words)


def test_an_open_door_is_no_pause() -> None:
    quiet = Row("a", "", [Mark(BEGIN, 1, ""), Mark(BEGIN + DAY, 1, "")], (), [Span(BEGIN, BEGIN + DAY, "ssh", "ssh")])
    assert not any("without anything" in tip for tip in picture(quiet).tips)


# ---- whatever is in it


def test_no_source_knocked() -> None:
    assert "No source knocked." in picture().words


def test_rows_are_bounded_and_what_is_left_out_is_said() -> None:
    rows = [row(at, name=f"192.0.2.{at}") for at in range(MAX_ROWS + 10)]
    seen = picture(*rows, left_out=990)
    assert "1,000 more sources are not shown: those that got furthest are." in seen.words
    assert [word for word in seen.words if word.startswith("192.0.2.")] == [each.name for each in rows[:MAX_ROWS]]


def test_the_picture_is_no_larger_for_a_million_marks() -> None:
    def size(count: int) -> int:
        marks = [Mark(BEGIN + at / 1000 % 9e4, at % 4, f"{at}") for at in range(count)]
        spans = [Span(mark.time, mark.time + 1, "ssh", "ssh") for mark in marks]
        return len(svg(TimeLine("a", [Row("a", "", marks, spans, spans)]), UTC))

    assert size(60_000) < 3 * size(600)


anything = st.text(st.characters(codec=None), max_size=300)


@given(anything, anything, anything, anything)
def test_text_is_text(title: str, name: str, label: str, tip: str) -> None:
    """Markup, control characters, surrogates, a text without end: well-formed, and no element more."""
    plain = Row("a", "a", [Mark(BEGIN, 0, "a", "a")], (), [Span(BEGIN, BEGIN + 1, "a", "a", "a")])
    wild = Row(name, name, [Mark(BEGIN, 0, tip, label)], (), [Span(BEGIN, BEGIN + 1, label, tip, label)])
    text = svg(TimeLine(title, [wild], 0, [title]), UTC)
    text.encode()
    allowed = {element.tag for element in ElementTree.fromstring(svg(TimeLine("a", [plain], 0, ["a"]), UTC)).iter()}  # noqa: S314
    root = ElementTree.fromstring(text)  # noqa: S314  # our own
    assert {element.tag for element in root.iter()} <= allowed
    assert max(len(element.text or "") for element in root.iter(f"{NS}title")) <= 10 * MAX_TEXT


def test_a_host_that_names_its_log_with_markup() -> None:
    seen = picture(row(0), title="</text><script>alert(1)</script>&amp;.log")
    assert "</text><script>alert(1)</script>&amp;.log" in seen.words


def test_a_text_without_end_is_cut() -> None:
    long = "x" * 10_000
    text = svg(
        TimeLine(long, [Row(long, long, [Mark(BEGIN, 0, long, long)], (), [Span(BEGIN, BEGIN, long, long)])]), UTC
    )
    assert "x" * (MAX_TEXT + 1) not in text
    seen = read(text)
    assert long[:40] in seen.words[0]
