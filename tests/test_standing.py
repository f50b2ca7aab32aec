"""How the daemon stands: rates, since when it is degraded, and the line that says all of it."""

import json

from logknock.standing import (
    PARTS,
    RATE_OVER,
    Degraded,
    DoorStanding,
    Rates,
    SourceStanding,
    Standing,
    Trouble,
    Troubles,
    as_object,
    line,
)

STANDING = Standing(
    version="0.1.0",
    started=1.00049,
    loaded=2.0,
    sources=(SourceStanding("NFLOG group 5", 10, 1, 2, 3.14159, ""), SourceStanding("/log", 5, 0, 3, 0.0, "gone")),
    doors=(DoorStanding("ssh", 2, 7), DoorStanding("web", 1, 1)),
    attempts=4,
    opened=8,
    closed=5,
    refused=1,
    stale=6,
    banned=9,
    firewall_errors=2,
    store_errors=3,
    degraded=(),
)


def test_a_rate_is_taken_over_the_last_seconds() -> None:
    rates = Rates()
    assert rates.of("a") == 0.0, "nothing is known yet"
    for second in range(20):
        rates.see({"a": 100 * second if second < 10 else 900}, float(second))
        if second == 9:
            assert rates.of("a") == 100.0
    assert rates.of("a") == 0.0, f"nothing came in the last {RATE_OVER} seconds"


def test_a_source_that_is_new_or_begins_anew_has_a_rate_all_the_same() -> None:
    rates = Rates()
    rates.see({"old": 1000}, 1.0)
    rates.see({"old": 5, "new": 50}, 2.0)
    assert (rates.of("old"), rates.of("new"), rates.of("none")) == (0.0, 50.0, 0.0)


def test_a_clock_that_stands_still_divides_nothing() -> None:
    rates = Rates()
    rates.see({"a": 1}, 1.0)
    rates.see({"a": 2}, 1.0)
    assert rates.of("a") == 0.0


def test_a_trouble_lasts_from_when_it_was_first_seen() -> None:
    troubles = Troubles()
    store, table = Trouble("store", "", "full", "make room"), Trouble("firewall", "t", "gone")
    assert troubles.see([store], 10.0) == (Degraded("store", 10.0, "full", "make room"),)
    worse = store._replace(why="fuller")
    both = troubles.see([worse, table], 12.0)
    assert both == (Degraded("firewall", 12.0, "gone", ""), Degraded("store", 10.0, "fuller", "make room"))
    assert troubles.see([], 13.0) == ()
    assert troubles.see([store], 14.0)[0].since == 14.0, "what is over begins anew"


def test_parts_have_an_order_and_in_a_part_what_lasts_longest_is_first() -> None:
    troubles = Troubles()
    troubles.see([Trouble("files", "b", "b")], 1.0)
    found = troubles.see([Trouble(part, "a", "a") for part in reversed(PARTS)] + [Trouble("files", "b", "b")], 2.0)
    assert [each.part for each in found] == sorted([*PARTS, "files"], key=PARTS.index)
    assert [each.why for each in found if each.part == "files"] == ["b", "a"]


def test_the_line_has_what_is_wrong_first_and_then_the_numbers() -> None:
    assert line(STANDING) == (
        "3 doors open, 4 knockers under way; 15 records, 1 lost (0 overruns), 5 no packet, 6 too old; "
        "8 opened, 5 closed, 1 refused; 9 banned, 0 scanners not banned; 2 firewall errors, 3 store errors"
    )
    many = tuple(Degraded("files", 1.0, f"file {number}", "") for number in range(5))
    assert line(STANDING._replace(degraded=many[:1])).startswith("degraded: files: file 0; 3 doors open")
    assert line(STANDING._replace(degraded=many)).startswith(
        "degraded: files: file 0; files: file 1 and 3 more; 3 doors"
    )


def test_nothing_is_read_or_guarded_yet_is_a_line_too() -> None:
    assert line(STANDING._replace(sources=(), doors=())).startswith("0 doors open, 4 knockers under way; 0 records, ")


def test_as_json_it_has_names_and_few_digits() -> None:
    found = as_object(STANDING._replace(degraded=(Degraded("bans", 5.00049, "no", "hint"),)))
    assert json.loads(json.dumps(found)) == found
    assert found["sources"][0] == {
        "name": "NFLOG group 5", "records": 10, "lost": 1, "ignored": 2, "rate": 3.1, "trouble": "",
    }  # fmt: skip
    assert found["doors"][0] == {"name": "ssh", "open": 2, "opened": 7}
    assert found["degraded"] == [{"part": "bans", "since": 5.0, "why": "no", "hint": "hint"}]
    assert found["started"] == 1.0
