"""Which knockers may pass which doors: the matcher, told as stories.

A story is words `time:source:port/protocol[:source port][:flags]`, and what it opens `door@source` in order. Without
a source port each knock comes from one of its own, as a client's do; a resend is written with the one it repeats.
"""

import ipaddress
import itertools
import math
import random
import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock.knock import (
    MAX_KNOCKERS_PER_PREFIX,
    Advanced,
    Code,
    Derived,
    Door,
    Event,
    Evicted,
    Failed,
    Granted,
    Ignored,
    Matcher,
    Reason,
    Revoked,
    Sequence,
    Service,
    Spent,
    Step,
    TcpFlags,
    Why,
)
from logknock.packet import ACK, FIN, SYN, TCP, UDP, Packet
from logknock.tries import MAX_TRIED, TOTP_BETWEEN

FLAGS = {"S": SYN, "A": ACK, "F": FIN, "-": 0}
SOURCES = {"a": "198.51.100.1", "b": "198.51.100.2", "c": "2001:db8::3"}
DST = ipaddress.ip_address("10.99.0.1").packed
NAT = ipaddress.ip_address("203.0.113.99").packed
FRESH = itertools.cycle(range(20_000, 60_000))  # source ports that no other knock of the test comes from


def sequence(text: str) -> Sequence:
    return tuple(Service.parse(word if "/" in word else f"{word}/tcp") for word in text.split())


def door(name: str, knocks: str, **settings: object) -> Door:
    settings.setdefault("opens", (Service.parse("22/tcp"),))
    return Door(name, sequence(knocks), **settings)  # type: ignore[arg-type]


SSH = door("ssh", "7000 8000 9000/udp")


def source(word: str) -> bytes:
    return ipaddress.ip_address(SOURCES.get(word, word)).packed


def packets(story: str) -> Iterable[Packet]:
    for word in story.split():
        time, src, service, *rest = word.split(":")
        to = Service.parse(service if "/" in service else f"{service}/tcp")
        sport = next((int(part) for part in rest if part.isdigit()), next(FRESH))
        flags = sum(FLAGS[letter] for part in rest if not part.isdigit() for letter in part)
        if not any(not part.isdigit() for part in rest):
            flags = SYN
        yield Packet(float(time), source(src), DST, to.proto, sport, to.port, flags if to.proto == TCP else 0)


def play(matcher: Matcher, story: str) -> list[Event]:
    return [event for packet in packets(story) for event in matcher.receive(packet)]


def opened(events: Iterable[Event]) -> str:
    names = {ipaddress.ip_address(text).packed: name for name, text in SOURCES.items()}
    return " ".join(
        f"{event.grant.door}@{names.get(event.grant.src, '?')}" for event in events if isinstance(event, Granted)
    )


@pytest.mark.parametrize(
    ("story", "opens"),
    [
        pytest.param("0:a:7000 1:a:8000 2:a:9000/udp", "ssh@a", id="the right knocks open the door"),
        pytest.param("0:c:7000 1:c:8000 2:c:9000/udp", "ssh@c", id="over IPv6 too"),
        pytest.param("0:a:7000 1:a:8000", "", id="part of a sequence opens nothing"),
        pytest.param("0:a:7000 1:a:8000 2:a:9000/tcp", "", id="the right port by another protocol is wrong"),
        pytest.param("0:a:7000 1:a:9000/udp 2:a:8000", "", id="T9: reordered knocks fail"),
        pytest.param(
            "0:a:7000 1:a:9000/udp 2:a:8000 2:a:7000 2:a:8000 2:a:9000/udp", "ssh@a", id="T9: and a retry succeeds"
        ),
        pytest.param("0:a:7000 1:a:7001 2:a:8000 3:a:9000/udp", "", id="T1: any other port in between fails"),
        pytest.param("0:a:7000 1:a:22 2:a:8000 3:a:22 4:a:9000/udp", "ssh@a", id="an early ssh client does not matter"),
        pytest.param("0:a:7000 1:b:8000 2:c:9000/udp", "", id="T5: sources never combine"),
        pytest.param("0:a:7000 0:b:7000 1:b:7001 1:a:8000 2:a:9000/udp", "ssh@a", id="T15: another's failure"),
        pytest.param(
            "0:a:7000 0:b:7000 1:a:8000 1:b:8000 2:b:9000/udp 2:a:9000/udp", "ssh@b ssh@a", id="T15: another's success"
        ),
        pytest.param(
            "0:b:7000 14:a:7000 16:a:8000 17:b:8000 17:a:9000/udp", "ssh@a", id="T15: another's time running out"
        ),
        pytest.param("0:a:7000 1:a:8000 14.999:a:9000/udp", "ssh@a", id="the last knock just in time"),
        pytest.param("0:a:7000 1:a:8000 15:a:9000/udp", "", id="seq_timeout ends it exactly"),
        pytest.param("0:a:7000 14:a:8000 15.001:a:9000/udp", "", id="the time runs from the first knock"),
        pytest.param("10:a:7000 5:a:8000 6:a:9000/udp", "", id="a clock that steps back ends the attempt"),
        pytest.param("10:a:7000 12:a:8000 11:a:9000/udp", "", id="even if it is still after the first knock"),
        pytest.param("1:a:7000 1.005:a:8000 1.001:a:9000/udp", "ssh@a", id="two receive queues are no such clock"),
        pytest.param("0:a:7000:1 1:a:7000:1 2:a:8000:2 3:a:9000/udp", "ssh@a", id="T7: a resend changes nothing"),
        pytest.param("0:a:7000 1:a:8000 2:a:7000 3:a:9000/udp", "", id="T4: a,b,a,c gains nothing"),
        pytest.param("0:a:7000 1:a:7000 2:a:8000 3:a:9000/udp", "ssh@a", id="a second first knock begins anew"),
        pytest.param("0:a:7000 1:a:8000:A 1:a:7001:A 2:a:8000 3:a:9000/udp", "ssh@a", id="other flags are ignored"),
        pytest.param("0:a:7000:SA 1:a:8000 2:a:9000/udp", "", id="SYN+ACK is no knock"),
        pytest.param("0:a:7000:F 1:a:8000:- 2:a:9000/udp", "", id="FIN and NULL are no knocks"),
    ],
)
def test_ssh_door(story: str, opens: str) -> None:
    assert opened(play(Matcher([SSH]), story)) == opens


def test_t7_four_resends_of_every_knock_open_exactly_once() -> None:
    """T7: late, interleaved, and again after the door is open."""
    knocks = ["0:a:7000:1", "1:a:8000:2", "2:a:9000/udp:3"]
    late = [f"{3 + n}:{knock.partition(':')[2]}" for n, knock in enumerate(knocks * 4)]
    story = [knocks[0], *knocks[:1] * 3, knocks[1], *knocks[:2] * 3, knocks[2], *late]
    times = [word.partition(":") for word in story]
    ordered = " ".join(f"{n * 0.5}:{rest}" for n, (_, _, rest) in enumerate(times))
    assert opened(play(Matcher([SSH]), ordered)) == "ssh@a"


def test_t7_a_wrong_port_after_the_opening_does_not_revive_resends() -> None:
    """T7: once open, the resends of all its knocks mean nothing, whatever came in between."""
    knocks = ["7000:1", "8000:2", "9000/udp:3"]
    story = [*knocks, "5555", *knocks]
    assert opened(play(Matcher([SSH]), " ".join(f"{n}:a:{word}" for n, word in enumerate(story)))) == "ssh@a"


@given(st.data())
def test_t7_resends_anywhere_change_nothing(data: st.DataObject) -> None:
    """T7: whatever the order in which resends come, the door opens once."""
    knocks = ["7000:1", "8000:2", "9000/udp:3"]
    story, sent = [], []
    for knock in knocks:
        sent.append(knock)
        story += [knock, *data.draw(st.lists(st.sampled_from(sent), max_size=5))]
    words = " ".join(f"{n * 0.1}:a:{word}" for n, word in enumerate(story))
    assert opened(play(Matcher([SSH]), words)) == "ssh@a"


@pytest.mark.parametrize(
    ("story", "opens"),
    [
        pytest.param("0:a:7000 1:a:7000 2:a:8000", "twice@a", id="fresh knocks open"),
        pytest.param("0:a:7000:1 1:a:7000:1 2:a:8000", "", id="a resend is not a second knock"),
        pytest.param("0:a:7000 1:a:7000 2:a:7000 3:a:8000", "twice@a", id="the last knocks are what counts"),
    ],
)
def test_t8_a_sequence_that_repeats_a_port(story: str, opens: str) -> None:
    """T8."""
    assert opened(play(Matcher([door("twice", "7000 7000 8000")]), story)) == opens


@pytest.mark.parametrize(
    ("doors", "story", "opens"),
    [
        pytest.param(
            [door("one", "1000 2000 3000"), door("two", "2000 3000 4000")],
            "0:a:1000 1:a:2000 2:a:3000 3:a:4000",
            "one@a two@a",
            id="overlapping sequences open each",
        ),
        pytest.param(
            [door("short", "1000 2000"), door("long", "1000 2000 3000")],
            "0:a:1000 1:a:2000 2:a:3000",
            "short@a long@a",
            id="one sequence begins another",
        ),
        pytest.param(
            [door("one", "1000 2000 3000"), door("two", "1000 2000 3000")],
            "0:a:1000 1:a:2000 2:a:3000",
            "one@a two@a",
            id="two doors with one sequence",
        ),
        pytest.param(
            [door("slow", "1000 2000 3000", seq_timeout=60.0), door("fast", "1000 2000 3000", seq_timeout=5.0)],
            "0:a:1000 1:a:2000 7:a:3000",
            "slow@a",
            id="each door has its own seq_timeout",
        ),
        pytest.param(
            [door("one", "1000 2000 3000"), door("two", "1000 1000 2000")],
            "0:a:1000 1:a:1000 2:a:2000 3:a:3000",
            "two@a one@a",
            id="what goes on at one door may begin anew at another",
        ),
        pytest.param(
            [door("fin", "1000 2000 3000", tcp_flags=TcpFlags.parse("fin"))],
            "0:a:1000:F 1:a:2000 2:a:2000:F 3:a:3000:FA",
            "fin@a",
            id="a door's own tcp_flags",
        ),
    ],
)
def test_several_doors(doors: list[Door], story: str, opens: str) -> None:
    assert opened(play(Matcher(doors), story)) == opens


def test_events_tell_the_whole_story() -> None:
    events = play(Matcher([SSH]), "0:a:7000 1:a:7001 2:a:7000 3:a:8000 20:a:7000")
    told = [
        (type(event).__name__, event.stage, getattr(event, "reason", None))
        for event in events
        if isinstance(event, Advanced | Failed)
    ]
    assert told == [
        ("Advanced", 1, None),
        ("Failed", 1, Reason.WRONG),
        ("Advanced", 1, None),
        ("Advanced", 2, None),
        ("Failed", 2, Reason.TIMEOUT),
        ("Advanced", 1, None),
    ]


def test_a_grant_lasts_from_the_last_knock_for_the_doors_timeout() -> None:
    granted = play(Matcher([door("ssh", "1 2 3", timeout=30.0)]), "10:a:1 11:a:2 12:a:3")[-1]
    assert isinstance(granted, Granted)
    assert granted.grant.expires == 42.0


def test_a_door_that_closes_another() -> None:
    done = door("done", "9000/udp 8000 7000", opens=(), closes=("ssh",))
    events = play(Matcher([SSH, done]), "0:a:9000/udp 1:a:8000 2:a:7000")
    assert [(event.door, event.by) for event in events if isinstance(event, Revoked)] == [("ssh", "done")]
    assert opened(events) == ""


def test_t16_a_spoofed_udp_sequence_opens_for_the_spoofed_source_only() -> None:
    """T16: who can forge the source opens for the source, not for himself."""
    matcher = Matcher([door("udp", "1000/udp 2000/udp 3000/udp")])
    assert opened(play(matcher, "0:b:1000/udp 0:a:5:A 1:b:2000/udp 2:b:3000/udp")) == "udp@b"


def test_t11_a_spoofed_wrong_port_costs_at_most_one_retry() -> None:
    """T11."""
    spoofed = "0:a:7000 1:a:8000 1:a:5555 2:a:9000/udp"
    assert opened(play(Matcher([SSH]), f"{spoofed} 3:a:7000 4:a:8000 5:a:9000/udp")) == "ssh@a"


def scan(order: Iterable[int], rate: float = 1e5) -> Iterable[Packet]:
    for number, port in enumerate(order):
        yield Packet(number / rate, source("a"), DST, TCP, 50000, port, SYN)


ALL_TCP = door("ssh", "7000 8000 9000")
WATCHED = sorted({7000, 8000, 9000, 6999, 7001, 7999, 8001, 8999, 9001, *range(1024, 65536, 63)})


def grants(matcher: Matcher, sent: Iterable[Packet]) -> list[Event]:
    return [event for packet in sent for event in matcher.receive(packet) if isinstance(event, Granted)]


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(range(1, 65536), id="ascending"),
        pytest.param(range(65535, 0, -1), id="descending"),
        pytest.param(WATCHED, id="ascending over nothing but what is watched"),
        pytest.param(WATCHED * 3, id="three times over"),
        pytest.param([port for port in WATCHED for _ in range(5)], id="T4: bursts of every port"),
    ],
)
def test_t1_a_scan_in_order_opens_nothing(order: Iterable[int]) -> None:
    """T1, where every watched port is logged: knock ports, their neighbours and the traps."""
    assert not grants(Matcher([ALL_TCP]), scan(order))


def test_t3_without_traps_an_ascending_scan_opens() -> None:
    """What the traps are for: the firewall that logs knock ports only shows the daemon a perfect knock."""
    assert grants(Matcher([ALL_TCP]), scan([7000, 8000, 9000]))


def test_t2_a_thousand_random_scans_open_nothing() -> None:
    """T2: of 1,030 watched ports three in order, one after another, are one chance in a million a scan."""
    shuffled = random.Random(2)  # noqa: S311  # a scan that the next run repeats
    matcher = Matcher([ALL_TCP])
    for number in range(1000):
        order = WATCHED.copy()
        shuffled.shuffle(order)
        offset = number * 100.0
        assert not grants(matcher, (packet._replace(time=packet.time + offset) for packet in scan(order)))


@given(st.lists(st.sampled_from([7000, 8000, 9000, 7001]), max_size=40))
@settings(max_examples=500)
def test_t4_only_the_exact_knocks_open(ports: list[int]) -> None:
    """T4: as many openings as there are places where the sequence stands in full, without a gap."""
    sent = [Packet(n * 0.01, source("a"), DST, TCP, 1000 + n, port, SYN) for n, port in enumerate(ports)]
    exact = sum(tuple(ports[n : n + 3]) == (7000, 8000, 9000) for n in range(len(ports)))
    assert len(grants(Matcher([ALL_TCP]), sent)) == exact


def spoofed(number: int, time: float) -> Packet:
    return Packet(time, (0x0B000000 + number).to_bytes(4, "big"), DST, TCP, 1000, 7000, SYN)


def test_t13_spoofed_first_knocks_stay_within_the_bound() -> None:
    """T13: a small bound stands for the real one; the bench measures that one's memory."""
    matcher = Matcher([SSH], max_knockers=1000)
    for number in range(20_000):
        matcher.receive(spoofed(number, number * 1e-5))
        assert matcher.knockers <= 1000


def test_t14_a_flood_of_first_knocks_does_not_touch_a_later_stage() -> None:
    """T14: the honest knocker is past the first stage; whatever number of first knocks comes then."""
    matcher = Matcher([SSH], max_knockers=100)
    play(matcher, "0:a:7000 0:a:8000")
    for number in range(5_000):
        matcher.receive(spoofed(number, 0.1))
    assert opened(play(matcher, "1:a:9000/udp")) == "ssh@a"


def test_t14_of_one_stage_the_oldest_gives_way() -> None:
    """T14: an honest first knock outlives as many spoofed ones as there is room for, and not one sweep more."""
    matcher = Matcher([SSH], max_knockers=160)
    play(matcher, "0:a:7000")
    for number in range(150):
        matcher.receive(spoofed(number, 0.1))
    play(matcher, "0.2:b:7000")
    events = [event for number in range(150, 170) for event in matcher.receive(spoofed(number, 0.3))]
    evicted = [failed for event in events if isinstance(event, Evicted) for failed in event.failures()]
    assert [failed.reason for failed in evicted if failed.src == source("a")] == [Reason.EVICTED]
    assert sum(event.ended for event in events if isinstance(event, Evicted)) == len(evicted)
    assert opened(play(matcher, "1:b:8000 2:b:9000/udp 2:a:8000 2:a:9000/udp")) == "ssh@b"


def test_t14_who_is_through_gives_way_before_who_is_not() -> None:
    """T14: what is kept of an opened door to know its resends is the least that can be lost."""
    matcher = Matcher([SSH], max_knockers=16)
    play(matcher, "0:b:7000 0:a:7000 0.1:a:8000 0.2:a:9000/udp")
    for number in range(15):
        matcher.receive(spoofed(number, 0.3))
    assert opened(play(matcher, "1:b:8000 2:b:9000/udp")) == "ssh@b"


def test_t17_a_prefix_keeps_its_budget_when_one_of_it_fails() -> None:
    """T17."""
    matcher = Matcher([SSH])
    for number in range(600):
        src = ipaddress.ip_address(f"2001:db8::{number:x}").packed
        matcher.receive(Packet(0.1, src, DST, TCP, 1, 7000, SYN))
        if number == 200:
            matcher.receive(Packet(0.2, src, DST, TCP, 1, 5555, SYN))
    assert matcher.knockers <= MAX_KNOCKERS_PER_PREFIX


def test_t17_one_prefix_cannot_exceed_its_budget() -> None:
    """T17: rotation within a /64 pays with its own attempts, not with another prefix's."""
    matcher = Matcher([SSH], max_knockers=10_000)
    play(matcher, "0:c:7000")
    for number in range(3_000):
        src = ipaddress.ip_address(f"2001:db8:0:1::{number:x}").packed
        matcher.receive(Packet(0.1, src, DST, TCP, 1, 7000, SYN))
        assert matcher.knockers <= MAX_KNOCKERS_PER_PREFIX + 1
    assert opened(play(matcher, "1:c:8000 2:c:9000/udp")) == "ssh@c"


def test_t17_within_a_prefix_a_later_stage_outlives_first_knocks() -> None:
    """T17, T14: an honest knocker in the attacker's own /64."""
    matcher = Matcher([SSH])
    play(matcher, "0:c:7000 0:c:8000")
    for number in range(16, 2_000):
        src = ipaddress.ip_address(f"2001:db8::{number:x}").packed
        matcher.receive(Packet(0.1, src, DST, TCP, 1, 7000, SYN))
    assert opened(play(matcher, "1:c:9000/udp")) == "ssh@c"


def test_time_gives_memory_back() -> None:
    matcher = Matcher([SSH])
    for number in range(1_000):
        matcher.receive(spoofed(number, 0.0))
    ended = matcher.expire(20.0)
    assert [event.reason for event in ended if isinstance(event, Failed)] == [Reason.TIMEOUT] * 1_000
    assert matcher.knockers == 0


def test_opening_again_and_again_takes_no_memory() -> None:
    """Who knows the knocks, and whom no rule limits (a trusted address), makes no packet dearer."""
    matcher = Matcher([door("short", "7000 8000", seq_timeout=3600.0)])
    for number in range(300):
        story = f"{number}:a:7000 {number}.5:a:8000"
        for packet in packets(story):
            matcher.receive(packet._replace(sport=1000 + number))
    assert len(matcher._crowd.find(source("a"))) <= 33
    assert opened(play(matcher, "400:a:7000 401:a:8000")) == "short@a"


def test_a_door_with_a_long_seq_timeout_does_not_keep_others_from_ending() -> None:
    matcher = Matcher([door("long", "1 2 3", seq_timeout=3600.0), SSH])
    play(matcher, "0:b:1 1:a:7000")
    assert [event.src for event in matcher.expire(60.0) if isinstance(event, Failed)] == [source("a")]


def test_an_attempt_survives_new_doors() -> None:
    """T36: a reload is no reason to knock again."""
    matcher = Matcher([SSH])
    play(matcher, "0:a:7000 1:a:8000 1:b:7000")
    matcher.set_doors([door("other", "1 2 3"), door("ssh", "7000 8000 9000/udp", timeout=99.0)])
    granted = play(matcher, "2:a:9000/udp")[-1]
    assert isinstance(granted, Granted)
    assert granted.grant.expires == 101.0


def test_an_attempt_at_a_door_that_is_gone_opens_nothing() -> None:
    matcher = Matcher([SSH])
    play(matcher, "0:a:7000 1:a:8000")
    matcher.set_doors([door("ssh", "7000 8000 1234")])
    assert opened(play(matcher, "2:a:9000/udp")) == ""
    assert opened(play(matcher, "3:a:7000 3:a:8000 3:a:1234")) == "ssh@a"


def test_a_thousand_doors_that_begin_alike_cost_one_attempt() -> None:
    doors = [door(f"d{n}", f"7000 8000 {10_000 + n}") for n in range(1000)]
    matcher = Matcher(doors)
    for packet, _ in zip(packets("0:a:7000 1:a:8000"), itertools.count(), strict=False):
        assert len(matcher.receive(packet)) == 1
    assert opened(play(matcher, "2:a:10500")) == "d500@a"


# ---- one-time sequences

ONETIME = door("once", "", onetime=("alice", "bob"))


def with_codes(*doors: Door, **codes: str) -> Matcher:
    """A matcher whose door `once` accepts these sequences, by the file they are in."""
    matcher = Matcher(doors or (ONETIME,))
    for file, knocks in codes.items():
        matcher.set_code("once", file, sequence(knocks))
    return matcher


def spent(events: Iterable[Event]) -> list[Code]:
    return [event.code for event in events if isinstance(event, Spent) and isinstance(event.code, Code)]


def reasons(events: Iterable[Event]) -> list[Reason]:
    return [event.reason for event in events if isinstance(event, Failed)]


def test_a_one_time_sequence_is_spent_before_it_opens() -> None:
    events = play(with_codes(alice="1 2 3"), "0:a:1 1:a:2 2:a:3")
    assert [type(event) for event in events] == [Advanced, Advanced, Advanced, Spent, Granted]
    assert spent(events) == [Code("once", "alice", sequence("1 2 3"))]


def test_t18_a_one_time_sequence_opens_once_from_whatever_source() -> None:
    matcher = with_codes(alice="1 2 3")
    assert opened(play(matcher, "0:a:1 1:a:2 2:a:3")) == "once@a"
    assert opened(play(matcher, "3:a:1 4:a:2 5:a:3 6:b:1 7:b:2 8:b:3")) == ""


def test_t18_two_who_knock_it_at_a_time_do_not_both_get_in() -> None:
    """An eavesdropper one step behind; and a sequence taken back while somebody knocks it."""
    matcher = with_codes(alice="1 2 3")
    events = play(matcher, "0:a:1 0:b:1 1:a:2 1:b:2 2:a:3 2:b:3")
    assert (opened(events), reasons(events)) == ("once@a", [Reason.SPENT])
    matcher.set_code("once", "alice", sequence("4 5 6"))
    play(matcher, "20:b:4 20:b:5")
    matcher.set_code("once", "alice", sequence("7 8 9"))
    events = play(matcher, "21:b:6")
    assert (opened(events), reasons(events)) == ("", [Reason.SPENT])


def test_the_next_one_counts_from_when_it_is_set() -> None:
    matcher = with_codes(alice="1 2 3")
    play(matcher, "0:a:1 0:a:2 0:a:3")
    matcher.set_code("once", "alice", sequence("3 2 1"))
    assert opened(play(matcher, "1:a:1 1:a:2 1:a:3")) == ""
    assert opened(play(matcher, "2:a:3 2:a:2 2:a:1")) == "once@a"


def test_each_file_has_its_own_turn() -> None:
    """T15, T19: what one client uses is no other's loss, even where their sequences begin alike."""
    matcher = with_codes(alice="1 2 3", bob="1 2 4")
    story = "0:a:1 0:b:1 1:a:2 1:b:2 2:a:3 3:b:4"
    assert opened(play(matcher, story)) == "once@a once@b"
    assert opened(play(matcher, "20:a:1 20:a:2 20:a:3 21:a:1 21:a:2 21:a:4")) == ""


def test_a_one_time_sequence_can_begin_like_a_doors_own() -> None:
    matcher = with_codes(ONETIME, SSH, alice="7000 8000 1")
    assert opened(play(matcher, "0:a:7000 0:b:7000 1:a:8000 1:b:8000 2:a:1 2:b:9000/udp")) == "once@a ssh@b"
    assert opened(play(matcher, "20:c:7000 20:c:8000 20:c:9000/udp 21:c:7000 21:c:8000 21:c:1")) == "ssh@c"


@pytest.mark.parametrize("turns", [("1 2 3", ""), ("", "1 2 3"), ("1 2 3", "1 2 4")])
def test_a_turn_in_the_midst_of_an_attempt_leaves_the_books_right(turns: tuple[str, str]) -> None:
    """A one-time sequence that goes on from where a door's own ends: what was complete is not, or the other way."""
    matcher = Matcher([ONETIME, door("own", "1 2")])
    before, after = (sequence(knocks) or None for knocks in turns)
    matcher.set_code("once", "alice", before)
    play(matcher, "0:a:1 0:b:1 0:c:1 1:a:2 1:b:2 1:c:2")
    matcher.set_code("once", "alice", after)
    play(matcher, "2:a:5")
    matcher.expire(60.0)
    assert matcher.knockers == 0


def test_t36_one_time_sequences_outlive_a_reload_where_their_file_does() -> None:
    matcher = with_codes(alice="1 2 3", bob="4 5 6")
    play(matcher, "0:a:1 1:a:2")
    matcher.set_doors([SSH, door("once", "", onetime=("alice",))])
    assert opened(play(matcher, "2:a:3")) == "once@a"
    assert opened(play(matcher, "3:b:4 3:b:5 3:b:6")) == ""
    matcher.set_code("once", "bob", sequence("4 5 6"))  # a file that is no longer the door's
    assert opened(play(matcher, "23:b:4 23:b:5 23:b:6")) == ""


@given(st.lists(st.tuples(st.sampled_from(["alice", "bob"]), st.lists(st.integers(1, 3), max_size=4)), max_size=12))
def test_turns_leave_nothing_behind(turns: list[tuple[str, list[int]]]) -> None:
    """Whatever was planted and taken back: the tree is that of the sequences which count now."""
    matcher = with_codes(ONETIME, door("own", "1 2 3"))
    now: dict[str, Sequence] = {}
    for file, ports in turns:
        now[file] = tuple(Service(TCP, port) for port in ports)
        matcher.set_code("once", file, now[file] or None)
    fresh = with_codes(ONETIME, door("own", "1 2 3"))
    for file, code in now.items():
        fresh.set_code("once", file, code or None)
    assert shape(matcher) == shape(fresh)


def shape(matcher: Matcher) -> object:
    """The tree, in a form that can be compared."""
    return {
        (proto, port): {shape_of(step) for step in steps}
        for proto, firsts in matcher._firsts.items()
        for port, steps in firsts.items()
    }


def shape_of(step: Step) -> object:
    """A step and all that may follow; what is folded, as it would be unfolded."""
    for service in list(step.then):
        step.follow(service)
    then = frozenset((service, shape_of(below)) for service, below in step.then.items() if isinstance(below, Step))
    ends = frozenset((door.name, end) for door, end in step.completes)
    return step.path, step.terms, frozenset(step.doors), frozenset(step.proofs), then, ends


# ---- derived sequences

# Steps of 10 s, accepted from 10 s before to 10 s after; the knocks of each are written down where it is planted.
TOTP = door("totp", "", proof="totp", seq_timeout=9.0)
CODE = door("code", "", proof="code", seq_timeout=9.0)


def derived(client: str, step: int, knocks: str, of: str = "totp") -> Derived:
    return Derived(of, client, step, sequence(knocks), 10.0 * (step - 1), 10.0 * (step + 2), step)


def with_derived(*planted: Derived, doors: Iterable[Door] = (TOTP, CODE)) -> Matcher:
    matcher = Matcher(doors)
    for each in planted:
        matcher.plant(each)
    return matcher


def used(events: Iterable[Event]) -> list[tuple[str, int]]:
    return [
        (event.code.client, event.code.step)
        for event in events
        if isinstance(event, Spent) and isinstance(event.code, Derived)
    ]


ALICE = [derived("alice", step, f"{100 + step} {200 + step}/udp {300 + step}") for step in range(8)]
BOB = [derived("bob", step, f"{400 + step} {500 + step}/udp {600 + step}") for step in range(8)]
# What the stories knock, by a letter for the client and the step: `a3` is three knocks of alice's third step.
SPELLED = {f"{each.client[0]}{each.step}": each.sequence for each in (*ALICE, *BOB)}


def spelled(story: str) -> str:
    """`35:x:a3` as three packets from x at 35 s, and a wrong knock after a right one as `35:x:a3!`."""
    words = []
    for word in story.split():
        time, src, what = word.split(":", 2)
        knocks = SPELLED.get(what.rstrip("!"))
        if knocks is None:
            words.append(word)
        else:
            for service in (knocks[0], Service(TCP, 9)) if what.endswith("!") else knocks:
                words.append(f"{time}:{src}:{service}")
    return " ".join(words)


@pytest.mark.parametrize(
    ("story", "opens", "why"),
    [
        pytest.param("35:a:a3", "totp@a", [], id="the present step's sequence opens"),
        pytest.param("35:c:a3", "totp@c", [], id="over IPv6 too"),
        pytest.param("35:a:a2 36:b:a4", "totp@a totp@b", [], id="the step before, and the one after"),
        pytest.param("35:a:a3 36:a:a3", "totp@a", [Reason.REPLAYED], id="T18: once"),
        pytest.param("35:a:a3 36:b:a3 37:c:a3", "totp@a", [Reason.REPLAYED] * 2, id="T18: from whatever source"),
        pytest.param("35:a:a3 36:b:a2", "totp@a", [Reason.REPLAYED], id="T18: a step before it neither"),
        pytest.param("35:a:a3 36:a:a4", "totp@a totp@a", [], id="a step after it still does"),
        pytest.param("35:a:a3 35:b:b3", "totp@a totp@b", [], id="T19: two clients in one step"),
        pytest.param("35:a:a3 35:a:b3", "totp@a totp@a", [], id="T19: from one source too"),
        pytest.param("20:a:a3", "totp@a", [], id="T19: the skew's first moment"),
        pytest.param("19.9:a:a3", "", [Reason.OUTSIDE], id="T19: not a moment earlier"),
        pytest.param("49.9:a:a3", "totp@a", [], id="T19: the skew's last moment"),
        pytest.param("50:a:a3", "", [Reason.OUTSIDE], id="T19: and not then"),
        pytest.param("65:a:a6 35:b:a3", "totp@a", [Reason.REPLAYED], id="T19: a clock that steps back reopens nothing"),
        pytest.param("65:a:a6 35:b:b3", "totp@a totp@b", [], id="T19: nor does it lock others out"),
        pytest.param("35:a:103 35:a:203/udp 36:b:403 36:a:303", "totp@a", [], id="T15: others knock in between"),
        pytest.param("35:a:103 35:b:203/udp 35:c:303", "", [], id="T5: sources do not combine"),
        pytest.param("35:a:103 35:a:9 35:a:203/udp 35:a:303", "", [Reason.WRONG], id="a wrong knock ends it"),
        pytest.param("48:a:103 49:a:203/udp 50:a:303", "", [Reason.OUTSIDE], id="the last knock's time counts"),
        pytest.param("35:a:103:1 35:a:203/udp:2 35:a:103:1 36:a:303:3 37:a:303:3", "totp@a", [], id="T7: resends"),
    ],
)
def test_derived_sequences(story: str, opens: str, why: list[Reason]) -> None:
    events = play(with_derived(*ALICE, *BOB), spelled(story))
    assert opened(events) == opens
    assert reasons(events) == why


def test_t18_what_is_said_before_its_time_is_used_up_and_what_is_said_after_it_is_nobodys_business() -> None:
    """T18: else whoever heard it waits until it counts, and knocks it."""
    matcher = with_derived(*ALICE, *BOB)
    events = play(matcher, spelled("19.9:a:a3"))
    assert [type(event) for event in events[-2:]] == [Spent, Failed]
    assert (used(events), reasons(events)) == ([("alice", 3)], [Reason.OUTSIDE])
    assert reasons(play(matcher, spelled("20:b:a3 35:c:a3"))) == [Reason.REPLAYED] * 2
    assert opened(play(matcher, spelled("35:a:a4 35:a:b3"))) == "totp@a totp@a"
    assert used(play(matcher, spelled("60:a:b4"))) == []


def test_t18_of_two_clients_the_one_whose_time_is_to_come_has_used_it_too() -> None:
    """T18: the same sequence, good now for the one and later for the other."""
    matcher = with_derived(derived("bob", 5, "103 203/udp 303"), *ALICE)
    events = play(matcher, spelled("35:a:a3"))
    assert opened(events) == "totp@a"
    assert used(events) == [("alice", 3), ("bob", 5)]
    assert reasons(play(matcher, spelled("55:b:a3"))) == [Reason.REPLAYED]


def test_t20_a_step_is_told_to_be_used_before_anything_opens() -> None:
    """T20: whoever opens doors puts it on record between the two."""
    events = play(with_derived(*ALICE, doors=[door("totp", "", proof="totp", closes=("x",))]), spelled("35:a:a3"))
    assert [type(event) for event in events[-3:]] == [Spent, Granted, Revoked]


def test_t18_what_was_used_before_the_start_counts() -> None:
    """T18: after a restart, and over a reload."""
    matcher = with_derived(*ALICE)
    matcher.set_last("totp", "alice", 3)
    matcher.set_last("totp", "alice", 1)  # never less
    assert reasons(play(matcher, spelled("35:a:a2 36:a:a3"))) == [Reason.REPLAYED] * 2
    matcher.set_doors([TOTP])
    assert reasons(play(matcher, spelled("37:a:a3"))) == [Reason.REPLAYED]
    assert opened(play(matcher, spelled("38:a:a4"))) == "totp@a"


def test_what_is_uprooted_opens_nothing_even_for_who_is_on_the_way() -> None:
    """A client that is revoked while it knocks."""
    matcher = with_derived(*ALICE)
    play(matcher, "35:a:103 35:a:203/udp")
    matcher.uproot(ALICE[3])
    assert opened(play(matcher, "35:a:303")) == ""
    assert opened(play(matcher, spelled("36:a:a3"))) == ""
    assert opened(play(matcher, spelled("37:a:a4"))) == "totp@a"


def test_t36_attempts_at_derived_sequences_outlive_a_reload() -> None:
    matcher = with_derived(*ALICE)
    play(matcher, "35:a:103 35:a:203/udp")
    matcher.set_doors([SSH, TOTP])
    assert opened(play(matcher, "36:a:303")) == "totp@a"
    matcher.set_doors([SSH])
    matcher.set_doors([SSH, TOTP])
    assert opened(play(matcher, spelled("37:a:a4"))) == ""  # gone with its door, until it is planted again


def test_t36_a_reload_that_changes_no_door_plants_nothing_anew() -> None:
    """A thousand clients' sequences take longer than a packet may wait: who is enrolled or revoked changes no door."""
    matcher = with_derived(*ALICE, doors=[SSH, TOTP])
    before = shape(matcher), matcher._firsts[TCP][103]
    play(matcher, "35:a:103 35:a:203/udp")
    matcher.set_doors([replace(SSH), replace(TOTP)])
    assert matcher._firsts[TCP][103] is before[1]
    assert opened(play(matcher, "36:a:303")) == "totp@a"
    matcher.set_doors([SSH, replace(TOTP, timeout=9.0)])
    assert matcher._firsts[TCP][103] is not before[1]
    assert shape(matcher) == before[0]


def test_doors_share_the_ports_of_derived_sequences() -> None:
    """The same pool serves all doors, also those of another kind that begin alike."""
    other = door("other", "103 203/udp 9000")
    matcher = with_derived(*ALICE, derived("carol", 3, "103 8 7", of="code"), doors=[TOTP, CODE, other])
    assert opened(play(matcher, spelled("35:a:a3"))) == "totp@a"
    assert opened(play(matcher, "36:b:103 36:b:8 36:b:7")) == "code@b"
    assert opened(play(matcher, "36:c:103 36:c:203/udp 36:c:9000")) == "other@c"


def test_t18_a_sequence_that_two_clients_happen_to_share_is_used_up_for_both() -> None:
    """T18: else who hears the one's could be the other. It opens once; a step later they part."""
    knocks = "103 203/udp 303"
    matcher = with_derived(derived("bob", 3, knocks), *ALICE, *BOB[4:])
    events = play(matcher, spelled("35:a:a3"))
    assert opened(events) == "totp@a"
    assert sorted(used(events)) == [("alice", 3), ("bob", 3)]
    assert reasons(play(matcher, spelled("36:b:a3"))) == [Reason.REPLAYED]
    assert opened(play(matcher, spelled("37:b:b4"))) == "totp@b"


def test_t18_a_sequence_that_comes_twice_of_one_client_is_used_up_in_the_order_of_steps() -> None:
    """T18: the store takes no earlier step after a later one."""
    matcher = with_derived(derived("alice", 4, "1 2 3"), derived("alice", 3, "1 2 3"))
    events = play(matcher, "35:a:1 35:a:2 35:a:3")
    assert used(events) == [("alice", 3), ("alice", 4)]
    assert opened(events) == "totp@a"


def test_t18_within_the_cooldown_a_step_is_used_up_all_the_same() -> None:
    """T18: it was said aloud."""
    matcher = with_derived(*ALICE, doors=[door("totp", "", proof="totp", cooldown=60.0)])
    events = play(matcher, spelled("35:a:a3 36:a:a4 37:a:a4"))
    assert (used(events), opened(events)) == ([("alice", 3), ("alice", 4)], "totp@a")
    assert reasons(events) == [Reason.COOLDOWN, Reason.REPLAYED]


# ---- wrong tries


def wrong(times: int, what: str = "a3!", src: str = "x") -> str:
    return " ".join(f"35:{src}:{what}" for _ in range(times))


@pytest.mark.parametrize(
    ("story", "opens", "why"),
    [
        pytest.param(f"{wrong(10)} 35:y:a3", "totp@y", [], id="others' wrong tries are no matter"),
        pytest.param(f"{wrong(9)} 35:x:a3", "totp@x", [], id="T11: nine wrong tries are free"),
        pytest.param(f"{wrong(10)} 35:x:a3", "", [Reason.WARY], id="T21: ten are not"),
        pytest.param(f"{wrong(10)} 35:x:a3 36:x:a4", "totp@x", [Reason.WARY], id="T12: one more step opens"),
        pytest.param(f"{wrong(500)} 35:x:a3 36:x:a4", "totp@x", [Reason.WARY], id="T12: after however many"),
        pytest.param(
            f"{wrong(10)} 35:x:a3 36:x:a4 41:x:a5", "totp@x totp@x", [Reason.WARY], id="whoever has proven it is free"
        ),
        pytest.param(f"{wrong(10)} 35:x:a3 36:x:a3", "", [Reason.WARY, Reason.REPLAYED], id="T21: not the same again"),
        pytest.param(f"{wrong(10)} 35:x:a3 36:x:b4", "", [Reason.WARY] * 2, id="T21: not another client's"),
        pytest.param(
            f"{wrong(10)} 35:x:a3 {wrong(TOTP_BETWEEN - 1, 'a4!')} 36:x:a4",
            "totp@x",
            [Reason.WARY],
            id="T12: as many as are heard",
        ),
        pytest.param(
            f"{wrong(10)} 35:x:a3 {wrong(TOTP_BETWEEN, 'a4!')} 36:x:a4",
            "",
            [Reason.WARY] * 2,
            id="T21: more than are heard",
        ),
        pytest.param(
            f"{wrong(10)} 35:x:a3 {wrong(9, 'a4!')} 36:x:a4",
            "totp@x",
            [Reason.WARY],
            id="T11: some in between are free",
        ),
        pytest.param(
            f"{wrong(10)} {wrong(10, src='y')} 35:x:a3 36:y:a4", "", [Reason.WARY] * 2, id="T5: sources do not combine"
        ),
        pytest.param(f"{wrong(10)} 35:x:a3 36:y:a4", "totp@y", [Reason.WARY], id="T11: its owner elsewhere is free"),
        pytest.param(f"{wrong(10)} 35:z:a3 {wrong(10, src='z')}", "totp@z", [], id="T11: after it they change nothing"),
    ],
)
def test_wrong_tries(story: str, opens: str, why: list[Reason]) -> None:
    """T21: they are limited by source and step; T11, T12: and lock nobody out, whoever forges an address."""
    names = {"x": "203.0.113.1", "y": "203.0.113.2", "z": "203.0.113.3"}
    words = re.sub(r":([xyz]):", lambda found: f":{names[found[1]]}:", spelled(story))
    events = play(with_derived(*ALICE, *BOB), words)
    got = [(event.grant.door, ipaddress.ip_address(event.grant.src)) for event in events if isinstance(event, Granted)]
    assert got == [(word.split("@")[0], ipaddress.ip_address(names[word.split("@")[1]])) for word in opens.split()]
    assert [reason for reason in reasons(events) if reason is not Reason.WRONG] == why


def test_t21_wrong_tries_at_a_totp_door_are_limited_in_all() -> None:
    """T21: a hundred of however many sources; one that tries without end is no more than ten of them."""
    for sources, needs in ((9, 1), (10, 2)):
        matcher = with_derived(*ALICE)
        for number in range(sources):
            for _ in range(20):
                guess(matcher, number, 35.0, 103, 9)
        events = [event for step in (3, 4)[:needs] for event in play(matcher, spelled(f"35:a:a{step}"))]
        assert opened(events) == "totp@a"
        assert reasons(events) == [Reason.WARY] * (needs - 1)


@pytest.mark.parametrize(
    ("of", "length", "tries", "steps"),
    [
        pytest.param("totp", 30, 10, 2, id="10 forged tries in each step of a TOTP door"),
        pytest.param("totp", 30, 600, 2, id="as many as are heard"),
        pytest.param("totp", 300, 6_000, 2, id="in the longest steps"),
        pytest.param("code", 30, 10, 3, id="10 for each code"),
        pytest.param("code", 30, 600, 3, id="as many codes as are heard"),
    ],
)
def test_t11_t12_so_many_forged_tries_in_each_step_and_the_victim_still_gets_in(
    of: str, length: int, tries: int, steps: int
) -> None:
    """T11, T12: with the second step's sequence, or the third code, however long the forger goes on.

    Spans that turn in between ask for no more than that.
    """
    planted = [
        Derived(
            of,
            "alice",
            step,
            sequence(f"{100 + step} {5000 + step} 9000"),
            float(length * (step - 1)),
            float(length * (step + 2)),
            step,
        )
        for step in range(3_900 // length)
    ]
    matcher = with_derived(*planted)
    waited, most = 0, 0
    for each in planted[1:]:
        time = length * (each.number + 0.3)
        for _ in range(tries):
            guess(matcher, 1, time, each.sequence[0].port, 9)
        waited += 1
        if opened(guess(matcher, 1, time + 5.0, *(service.port for service in each.sequence))):
            most, waited = max(most, waited), 0
    assert 0 < most <= steps
    assert waited <= steps


def test_t21_when_a_span_turns_the_tries_in_between_still_count() -> None:
    """T21: what was counted before the turn is no credit."""
    matcher = with_derived(*(derived("alice", step, f"{200 + step} 300 400", of="code") for step in range(355, 365)))
    matcher.set_beginnings("code", tuple(Service(TCP, port) for port in range(200, 300)))
    for _ in range(50):
        guess(matcher, 1, 3585.0, 277, 9)
    assert reasons(guess(matcher, 1, 3595.0, 559, 300, 400))[-1:] == [Reason.WARY]
    for _ in range(40):
        guess(matcher, 1, 3605.0, 277, 9)
    assert reasons(guess(matcher, 1, 3606.0, 560, 300, 400))[-1:] == [Reason.WARY]


def numbered(number: int, time: float, port: int) -> Packet:
    return Packet(time, (0xCB00_0000 + number).to_bytes(4, "big"), DST, TCP, next(FRESH), port, SYN)


def guess(matcher: Matcher, number: int, time: float, *ports: int) -> list[Event]:
    return [event for port in ports for event in matcher.receive(numbered(number, time, port))]


CODES = [derived("alice", step, f"{200 + step} {300 + step} {400 + step}", of="code") for step in range(8)]


def with_codes_of_alice() -> Matcher:
    matcher = with_derived(*CODES)
    matcher.set_beginnings("code", tuple(Service(TCP, port) for port in range(200, 300)))
    return matcher


def test_t21_a_guess_at_a_code_counts_even_if_its_first_knock_is_wrong() -> None:
    """T21: three of a source are free; the fourth, right by chance, needs another step's."""
    matcher = with_codes_of_alice()
    for number in (1, 2):
        for _ in range(2 + number):
            guess(matcher, number, 35.0, 277, 350, 450)
    assert reasons(guess(matcher, 3, 35.0, 203, 303, 403)) == []
    assert reasons(guess(matcher, 1, 35.0, 204, 304, 404)) == [Reason.WARY]
    matcher = with_codes_of_alice()
    for _ in range(2):
        guess(matcher, 1, 35.0, 277, 350, 450)
    assert opened(guess(matcher, 1, 35.0, 203, 303, 403)) == "code@?"


def test_t21_guesses_at_codes_are_limited_in_all() -> None:
    """T21: thirty of however many sources; T6: one scanner that goes through all ports is no more than three."""
    matcher = with_codes_of_alice()
    for _ in range(40):
        guess(matcher, 1, 35.0, 277, 350)
    assert opened(guess(matcher, 99, 35.0, 202, 302, 402)) == "code@?"
    for number in range(2, 11):
        for _ in range(3):
            guess(matcher, number, 35.0, 277, 350)
    # 3 of each of ten sources: these were the last that are free.
    assert reasons(guess(matcher, 98, 35.0, 203, 303, 403)) == [Reason.WARY]
    assert opened(guess(matcher, 98, 36.0, 204, 304, 404)) == "code@?"
    assert reasons(guess(matcher, 97, 45.0, 205, 305, 405)) == [Reason.WARY]


def test_t15_knocks_that_begin_others_sequences_are_no_wrong_tries() -> None:
    """T15: clients of a crowded door, and of a code door on the same ports, get in one by one from one source."""
    crowd = [derived(f"c{n}", 3, " ".join(f"{(n + k) % 100 + 200}" for k in (0, 7, 21, 28))) for n in range(100)]
    matcher = with_derived(*crowd, *CODES)
    matcher.set_beginnings("code", tuple(Service(TCP, port) for port in range(200, 300)))
    for each in crowd:
        events = play(matcher, " ".join(f"35:a:{service}" for service in each.sequence))
        assert opened(events) == "totp@a"
        while matcher.knockers:
            matcher.expire(math.inf)
    assert opened(play(matcher, "35:a:203 35:a:303 35:a:403")) == "code@a"


def test_t15_a_thousand_clients_behind_one_address_all_get_in_within_seconds_of_each_other() -> None:
    """T15: each one's last knock begins somebody else's sequence, and the next one's first knock ends that attempt."""
    services = [Service(proto, port) for proto in (TCP, UDP) for port in range(100, 600)]
    crowd = [
        Derived("totp", f"c{n}", 3, tuple(services[(n * 7 + 331 * k) % 1000] for k in range(4)), 0.0, 6000.0, 3)
        for n in range(1000)
    ]
    matcher = with_derived(*crowd)
    counted: list[int] = []
    for number, each in enumerate(crowd):
        packets = [
            Packet(5.0 * number, NAT, DST, to.proto, next(FRESH), to.port, SYN if to.proto == TCP else 0)
            for to in each.sequence
        ]
        events = [event for packet in packets for event in matcher.receive(packet)]
        assert opened(events) == "totp@?", number
        counted.extend(matcher._tries["totp"]._by_source.values())
    assert not counted


def test_wrong_tries_are_forgotten_when_their_time_is_over() -> None:
    matcher = with_derived(*ALICE, derived("alice", 40, "1 2 3"))
    play(matcher, spelled(wrong(10).replace(":x:", ":a:")))
    assert opened(play(matcher, "405:a:1 405:a:2 405:a:3")) == "totp@a"


def test_t17_a_64_is_one_source_of_wrong_tries() -> None:
    """T17: whoever has a /64 has no more tries than whoever has an address."""
    matcher = with_derived(*ALICE)
    for number in range(10):
        address = f"35:2001-db8--{number + 1:x}"
        for port in (103, 9):
            packet = next(iter(packets(f"35:a:{port}")))
            src = ipaddress.ip_address(address.partition(":")[2].replace("-", ":")).packed
            matcher.receive(packet._replace(src=src))
    assert reasons(play(matcher, spelled("35:c:a3"))) == [Reason.WARY]


def test_t13_wrong_tries_take_bounded_memory_and_then_nobody_has_any_free() -> None:
    """T13, T21: who forges sources by the thousand pushes nobody's tries out."""
    matcher = with_derived(*ALICE)
    for number in range(MAX_TRIED + 500):
        guess(matcher, number, 35.0, 103, 9)
    assert len(matcher._tries["totp"]._by_source) == MAX_TRIED
    assert reasons(guess(matcher, 2**20, 35.0, 103))[:1] == []
    assert reasons(play(matcher, spelled("35:a:a3"))) == [Reason.WARY]
    assert opened(play(matcher, spelled("36:a:a4"))) == "totp@a"
    assert len(matcher._tries["totp"]._held) == 0
    assert len(matcher._tries["totp"]._by_source) <= MAX_TRIED


STEPS = st.lists(
    st.tuples(
        st.floats(0, 80),
        st.sampled_from("abc"),
        st.sampled_from([*SPELLED, *(f"{name}!" for name in SPELLED)]),
    ),
    max_size=40,
)


@given(STEPS)
def test_t18_t19_whatever_comes_nothing_opens_twice_or_outside_its_time(sent: list[tuple[float, str, str]]) -> None:
    """T18, T19: in whatever order of time: a client's steps only ever rise, and each opens within its window."""
    matcher = with_derived(*ALICE, *BOB)
    last: dict[str, int] = {}
    for time, src, what in sent:
        events = play(matcher, spelled(f"{time}:{src}:{what}"))
        granted = [event for event in events if isinstance(event, Granted)]
        spent_now = [event.code for event in events if isinstance(event, Spent)]
        assert len(granted) <= len(spent_now) <= 1
        for code in spent_now:
            assert isinstance(code, Derived)
            assert code.step > last.get(code.client, -1)
            assert time < code.ends
            assert not granted or code.begins <= time
            last[code.client] = code.step


@given(st.lists(st.sampled_from(["a3!", "b3!", "a2!", "wrong"]), max_size=60))
def test_t15_wrong_tries_of_others_never_touch_a_client(tries: list[str]) -> None:
    """T15, T19: whatever others do, both clients get in with one sequence each."""
    matcher = with_derived(*ALICE, *BOB)
    for number, what in enumerate(tries):
        play(matcher, spelled(f"35:203.0.113.{number % 3 + 1}:{'9999' if what == 'wrong' else what}"))
    assert opened(play(matcher, spelled("36:a:a3 36:b:b3"))) == "totp@a totp@b"


PLANTED = st.lists(
    st.tuples(
        st.sampled_from(["totp", "code"]),
        st.sampled_from(["alice", "bob"]),
        st.integers(0, 3),
        st.lists(st.integers(1, 3), min_size=2, max_size=4),
    ),
    max_size=12,
    unique_by=lambda each: each[:3],
)


@given(PLANTED, st.data())
def test_what_is_uprooted_leaves_nothing_behind(
    planted: list[tuple[str, str, int, list[int]]], data: st.DataObject
) -> None:
    """Whatever was planted, knocked on and taken back: the tree is that of the sequences that are left."""
    doors = [TOTP, CODE, ONETIME, door("own", "1 2 3", seq_timeout=9.0)]
    every = [derived(client, step, " ".join(map(str, ports)), of) for of, client, step, ports in planted]
    matcher = with_derived(*every, doors=doors)
    gone = set(data.draw(st.lists(st.sampled_from(range(len(every))), unique=True))) if every else set()
    for port in data.draw(st.lists(st.integers(1, 3), max_size=8)):
        play(matcher, f"35:a:{port}")
    matcher.set_beginnings("code", (Service(TCP, 1), Service(TCP, 7)))
    for number in gone:
        matcher.uproot(every[number])
    matcher.set_beginnings("code", ())
    fresh = with_derived(*(each for number, each in enumerate(every) if number not in gone), doors=doors)
    assert shape(matcher) == shape(fresh)
    matcher.set_doors(doors)
    assert shape(matcher) == shape(fresh)


# ---- target and cooldown

TARGETED = door("aimed", "7000 8000", target=frozenset({ipaddress.ip_address("10.99.0.7").packed}))


def at(address: str, story: str) -> Iterable[Packet]:
    return (packet._replace(dst=ipaddress.ip_address(address).packed) for packet in packets(story))


def test_only_packets_to_the_target_count() -> None:
    matcher = Matcher([TARGETED])
    story = [*at("10.99.0.7", "0:a:7000"), *at("10.99.0.1", "1:a:8000"), *at("10.99.0.1", "2:a:9999")]
    assert opened(event for packet in story for event in matcher.receive(packet)) == ""
    (last,) = at("10.99.0.7", "3:a:8000")
    assert opened(matcher.receive(last)) == "aimed@a"
    elsewhere = at("10.99.0.1", "30:a:7000 31:a:8000")
    events = [event for packet in elsewhere for event in matcher.receive(packet)]
    assert [event.why for event in events if isinstance(event, Ignored)] == [Why.TARGET]
    assert len(events) == 1


def test_the_same_knocks_at_two_targets_are_two_sequences() -> None:
    other = door("other", "7000 8000", target=frozenset({DST}))
    matcher = Matcher([TARGETED, other])
    story = [*at("10.99.0.7", "0:a:7000"), *at("10.99.0.1", "1:a:7000 2:a:8000")]
    assert opened(event for packet in story for event in matcher.receive(packet)) == "other@a"


@pytest.mark.parametrize(
    ("story", "opens"),
    [
        pytest.param("0:a:1 0:a:2 5:a:1 5:a:2", "slow@a", id="again too soon: nothing"),
        pytest.param("0:a:1 0:a:2 60:a:1 60:a:2", "slow@a slow@a", id="after it: as before"),
        pytest.param("0:a:1 0:a:2 30:a:1 30:a:2 60:a:1 60:a:2", "slow@a slow@a", id="trying does not prolong it"),
        pytest.param("0:a:1 0:a:2 5:b:1 5:b:2", "slow@a slow@b", id="T15: another source's does not count"),
        pytest.param("100:a:1 100:a:2 5:a:1 5:a:2", "slow@a slow@a", id="a clock that steps back ends it"),
    ],
)
def test_cooldown(story: str, opens: str) -> None:
    events = play(Matcher([door("slow", "1 2", cooldown=60.0, seq_timeout=1.0)]), story)
    assert opened(events) == opens
    assert len(reasons(events)) + len(opens.split()) == len(story.split()) / 2


def test_what_could_not_be_opened_has_no_cooldown() -> None:
    matcher = Matcher([door("slow", "1 2", cooldown=60.0)])
    play(matcher, "0:a:1 0:a:2")
    matcher.spare("slow", source("a"))
    assert opened(play(matcher, "5:a:1 5:a:2")) == "slow@a"


def test_a_one_time_sequence_within_the_cooldown_is_spent_all_the_same() -> None:
    """T18: it was said aloud."""
    matcher = with_codes(door("once", "", onetime=("alice",), cooldown=60.0), alice="1 2")
    play(matcher, "0:a:1 0:a:2")
    matcher.set_code("once", "alice", sequence("3 4"))
    events = play(matcher, "1:a:3 1:a:4")
    assert (len(spent(events)), opened(events), reasons(events)) == (1, "", [Reason.COOLDOWN])


def test_cooldowns_take_bounded_memory() -> None:
    matcher = Matcher([door("slow", "1", cooldown=3600.0)], max_knockers=100)
    for number in range(1000):
        matcher.receive(Packet(number, number.to_bytes(4, "big"), DST, TCP, 1, 1, SYN))
    assert len(matcher._cooling) == 100
    while matcher._cooling:
        assert matcher.expire(1e6) is not None


@given(st.lists(st.tuples(st.floats(0, 40), st.sampled_from("abc"), st.sampled_from([7000, 8000, 9000, 22, 5]))))
def test_who_is_not_heeded_changes_nothing(sent: list[tuple[float, str, int]]) -> None:
    """What lets the source skip packets: heeds() is false only where receive() does nothing."""
    matcher = Matcher([ALL_TCP])
    for number, (time, src, port) in enumerate(sent):
        heeded = matcher.heeds(source(src), TCP, port)
        events = matcher.receive(Packet(time, source(src), DST, TCP, number, port, SYN))
        assert heeded or not events


PACKETS = st.lists(
    st.builds(
        Packet,
        st.floats(0, 60),
        st.sampled_from([source(name) for name in SOURCES]),
        st.just(DST),
        st.sampled_from([TCP, UDP]),
        st.integers(0, 3),
        st.sampled_from([7000, 8000, 9000, 22, 5]),
        st.integers(0, 255),
    ),
    max_size=60,
)


@given(PACKETS, PACKETS)
def test_no_packet_is_heeded_where_none_is(before: list[Packet], sent: list[Packet]) -> None:
    """What lets the source skip many at a time: heeds_none() is what heeds() says of each."""
    matcher = Matcher([SSH, ALL_TCP])
    for packet in before:
        matcher.receive(packet)
    for proto in (TCP, UDP):
        some = [packet for packet in sent if packet.proto == proto]
        heeded = any(matcher.heeds(packet.src, proto, packet.dport) for packet in some)
        assert matcher.heeds_none([packet.src for packet in some], proto, [packet.dport for packet in some]) != heeded


@pytest.mark.parametrize("story", ["0:a:7000", "0:a:7000 1:a:8000", "0:a:7000 1:a:8000 2:a:9000/udp"])
def test_who_has_begun_is_heeded_at_whatever_stage(story: str) -> None:
    matcher = Matcher([SSH])
    play(matcher, story)
    assert not matcher.heeds_none([source("b"), source("a")], TCP, [5, 5])
    assert matcher.heeds_none([source("b"), source("c")], TCP, [5, 5])


def test_of_whom_several_attempts_give_way_each_is_told_of() -> None:
    """T14: a crowd of nothing but second stages, in which two give way at a time. What is done has nothing to tell."""
    doors = [SSH, door("slow", "7000 8000 5", seq_timeout=99.0), door("done", "7000 8000", seq_timeout=50.0)]
    matcher = Matcher(doors, max_knockers=32)
    for number in range(32):
        first = spoofed(number, 0.0)
        matcher.receive(first)
        matcher.receive(first._replace(dport=8000))
    evicted = [event for event in matcher.receive(spoofed(99, 20.0)) if isinstance(event, Evicted)]
    gone = [(event.stage, event.sources) for event in evicted]
    assert gone == [(1, (spoofed(99, 0).src,)), (2, (spoofed(0, 0).src,))]
    assert [event.ended for event in evicted] == [3, 2]
    assert reasons(failed for event in evicted for failed in event.failures()) == [
        *[Reason.EVICTED] * 3,
        Reason.TIMEOUT,
        Reason.EVICTED,
    ]


@given(PACKETS)
def test_who_gives_way_is_told_of_with_what_was_begun(sent: list[Packet]) -> None:
    matcher = Matcher([SSH, ALL_TCP], max_knockers=1)
    for packet in sent:
        before = {src: matcher.attempts(src) for src in map(source, SOURCES)}
        for event in matcher.receive(packet):
            if isinstance(event, Evicted) and packet.src not in event.sources:
                under_way = [(src, each) for src in event.sources for each in before[src] if not each.is_done]
                assert [(failed.src, failed.attempt) for failed in event.failures()] == under_way
                assert event.ended == len(under_way)
                assert event.stage == max(each.step.stage for _, each in under_way)
                assert not any(map(matcher.attempts, event.sources))


@given(PACKETS)
def test_any_packets_leave_the_books_right(sent: list[Packet]) -> None:
    """Whatever comes, in whatever order of time: no exception, and no source is counted that has nothing under way."""
    matcher = Matcher([SSH, ALL_TCP, door("again", "7000 7000 8000")], max_knockers=2)
    for packet in sent:
        matcher.receive(packet)
        assert matcher.knockers <= 2
    while matcher.knockers:
        matcher.expire(1000.0)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0/tcp", "no port"),
        ("65536/tcp", "no port"),
        ("99999/tcp", "no port"),
        ("7000", "no protocol"),
        ("7000/sctp", "tcp or udp"),
        ("abc/tcp", "no port number"),
        ("-5/tcp", "no port number"),
        ("12x/udp", "no port number"),
        ("\u0667\u0660/tcp", "no port number"),
        ("/tcp", "no port number"),
        (" 7/tcp", "no port number"),
        ("", "no protocol"),
    ],
)
def test_what_is_no_service(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Service.parse(text)


@given(st.sampled_from(["tcp", "udp"]), st.integers(1, 65535))
def test_a_service_reads_back_as_written(protocol: str, port: int) -> None:
    assert str(Service.parse(f"{port}/{protocol}")) == f"{port}/{protocol}"


@pytest.mark.parametrize("text", ["", "syn,", "syn,syn", "syn,!syn", "xmas", "!"])
def test_what_are_no_tcp_flags(text: str) -> None:
    with pytest.raises(ValueError, match=r"no TCP flag|twice"):
        TcpFlags.parse(text)
