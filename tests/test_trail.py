"""What is said of a packet: the matcher's own events, in words, for every way in which a knock can go."""

import ipaddress

import pytest

from logknock.knock import (
    Code,
    Derived,
    Door,
    Failed,
    Grant,
    Granted,
    Matcher,
    Reason,
    Revoked,
    Sequence,
    Service,
    Spent,
)
from logknock.packet import ACK, SYN, TCP, Packet
from logknock.spa import Reason as SpaReason
from logknock.trail import MAX_LATE, Finding, Mailed, Memory, Refused, Stale, Told, Trail, Verdict, advice

SRC = ipaddress.ip_address("198.51.100.7").packed
DST = ipaddress.ip_address("10.99.0.1").packed


def sequence(text: str) -> Sequence:
    return tuple(Service.parse(word) for word in text.split())


SSH = Door("ssh", sequence("7000/tcp 8000/tcp 9000/udp"), opens=sequence("22/tcp"))
WEB = Door("web", sequence("7000/tcp 8000/tcp 7500/tcp"), opens=sequence("443/tcp"), timeout=60, cooldown=100)
DONE = Door("done", sequence("9100/tcp 9200/tcp"), closes=("ssh",))


def knock(time: float, service: str, *, sport: int | None = None, flags: int = SYN, src: bytes = SRC) -> Packet:
    wanted = Service.parse(service)
    sport = 20_000 + wanted.port if sport is None else sport
    return Packet(time, src, DST, wanted.proto, sport, wanted.port, flags if wanted.proto == TCP else 0)


def play(doors: list[Door], packets: list[Packet]) -> list[Finding]:
    matcher, trail = Matcher(doors), Trail(doors)
    return [finding for packet in packets for finding in trail.follow(packet, matcher.receive(packet))]


@pytest.mark.parametrize(
    ("story", "told"),
    [
        pytest.param(
            "0:7000/tcp 1:8000/tcp 2:9000/udp",
            "advanced advanced advanced opened",
            id="a door opens",
        ),
        pytest.param("0:7000/tcp 1:7001/tcp 2:8000/tcp", "advanced wrong unknown", id="a wrong port ends it"),
        pytest.param("0:7000/tcp 15:8000/tcp", "advanced timeout", id="too late"),
        pytest.param("10:7000/tcp 5:8000/tcp", "advanced clock", id="a clock that steps back"),
        pytest.param("0:7000/tcp 1:22/tcp", "advanced guarded", id="too early for ssh"),
        pytest.param("0:9100/tcp 1:9200/tcp", "advanced advanced closed", id="a door that closes another"),
        pytest.param("0:1/udp", "unknown", id="no door begins with it"),
    ],
)
def test_each_packet_has_its_verdict(story: str, told: str) -> None:
    packets = [knock(float(time), service) for time, service in (word.split(":") for word in story.split())]
    assert " ".join(finding.verdict for finding in play([SSH, DONE], packets)) == told


def test_a_failure_says_what_was_expected_and_by_how_much_it_came_too_late() -> None:
    words = [finding.words for finding in play([SSH], [knock(0, "7000/tcp"), knock(18.25, "8000/tcp")])]
    assert words[1] == "too late by 3.2 s at stage 1 of 3: 15 s from the first knock to the last"
    words = [finding.words for finding in play([SSH], [knock(0, "7000/tcp"), knock(15.25, "8000/tcp")])]
    assert words[1] == "too late by 250 ms at stage 1 of 3: 15 s from the first knock to the last"
    words = [finding.words for finding in play([SSH], [knock(10, "7000/tcp"), knock(7.5, "8000/tcp")])]
    assert words[1] == "given up at stage 1 of 3: the clock stepped back by 2.5 s"
    words = [finding.words for finding in play([SSH], [knock(0, "7000/tcp"), knock(1, "9000/udp")])]
    assert words[1] == "wrong port at stage 1 of 3: 8000/tcp was expected"


def test_doors_that_begin_alike_are_told_of_each_in_its_own_words() -> None:
    found = play([SSH, WEB], [knock(0, "7000/tcp"), knock(1, "8000/tcp"), knock(2, "7500/tcp"), knock(3, "9000/udp")])
    assert [(each.door, each.verdict, each.words) for each in found[4:]] == [
        ("web", Verdict.ADVANCED, "stage 3 of 3"),
        ("web", Verdict.OPENED, "opened for 60 s"),
        ("web", Verdict.DONE, "means nothing: the sequence is complete already"),
    ]
    wrong = play([SSH, WEB], [knock(0, "7000/tcp"), knock(1, "8000/tcp"), knock(2, "1/tcp")])[4:]
    assert [each.words for each in wrong] == [
        "wrong port at stage 2 of 3: 9000/udp was expected",
        "wrong port at stage 2 of 3: 7500/tcp was expected",
    ]


def test_a_hundred_doors_that_begin_alike_do_not_fill_the_page() -> None:
    doors = [Door(f"d{at}", sequence(f"7000/tcp {at + 1}/tcp"), opens=sequence("22/tcp")) for at in range(100)]
    found = play(doors, [knock(0, "7000/tcp")])
    assert [each.door for each in found] == ["d0", "d1", "d2", "d3", "(96 more doors)"]


def test_what_others_have_completed_is_not_told_of_each_knock_at_a_door_that_derives() -> None:
    """Each knock of a client's next step is one that its last one waits for no more; and nothing is told twice."""
    totp = Door("totp", (), opens=sequence("22/tcp"), proof="totp")
    matcher, trail = Matcher([totp, SSH]), Trail([totp, SSH], {"totp": 3})
    knocks = {1: "101/tcp 201/udp 301/tcp", 2: "102/tcp 202/udp 302/tcp", 3: "103/tcp 203/udp 303/tcp"}
    for step, written in knocks.items():
        matcher.plant(Derived("totp", "anna", step, sequence(written), 0.0, 90.0, step))
    spelled = " ".join(knocks.values()).split()
    packets = [knock(time, service) for time, service in enumerate([*spelled, "7000/tcp", "9999/tcp"])]
    found = [trail.follow(packet, matcher.receive(packet)) for packet in packets]
    assert [each.verdict for told in found[:9] for each in told] == [*["advanced"] * 3, "used", "opened"] * 3
    assert {each.of for told in found[:9] for each in told} == {3}, "how many knocks it takes is known"
    assert found[4][0].words == "stage 2 of 3"
    done = ("totp", "means nothing: the sequence is complete already")
    assert [(each.door, each.words) for each in found[9]] == [done, ("ssh", "stage 1 of 3")]
    assert [(each.door, each.words) for each in found[10]] == [
        done,
        ("ssh", "wrong port at stage 1 of 3: 8000/tcp was expected"),
    ], "once, of three that are complete"


def test_cooldown_and_resends_and_flags_are_told() -> None:
    once = [knock(at, service, sport=at + 1) for at, service in enumerate(("7000/tcp", "8000/tcp", "7500/tcp"))]
    again = [packet._replace(time=packet.time + 20, sport=packet.sport + 100) for packet in once]
    found = play([WEB], [*once, *again])
    assert [each.verdict for each in found] == ["advanced"] * 3 + ["opened"] + ["advanced"] * 3 + ["cooldown"]
    found = play([WEB], [once[0], once[0]._replace(time=3.0), knock(4, "8000/tcp", flags=SYN | ACK)])
    assert [each.verdict for each in found] == ["advanced", "resend", "flags"]


def test_a_knock_after_the_attempt_was_given_up_is_known_for_what_it_is() -> None:
    matcher, trail = Matcher([SSH]), Trail([SSH])
    first, second = knock(0, "7000/tcp"), knock(20, "8000/tcp")
    trail.follow(first, matcher.receive(first))
    (gave_up,) = trail.ended(matcher.expire(16), 16)
    assert (gave_up.time, gave_up.service, gave_up.verdict) == (15, "", Verdict.TIMEOUT)
    assert gave_up.words == "given up at stage 1 of 3: 8000/tcp did not come within 15 s of the first knock"
    (late,) = trail.follow(second, matcher.receive(second))
    assert (late.verdict, late.door, late.stage) == (Verdict.LATE, "ssh", 1)
    assert late.words == "too late by 5.0 s for stage 2: 15 s from the first knock to the last"
    (unknown,) = trail.follow(second, matcher.receive(second))
    assert unknown.verdict == Verdict.UNKNOWN


def test_one_that_begins_anew_after_it_was_given_up_is_not_late() -> None:
    matcher, trail = Matcher([SSH]), Trail([SSH])
    first, again = knock(0, "7000/tcp"), knock(20, "7000/tcp", sport=9)
    trail.follow(first, matcher.receive(first))
    trail.ended(matcher.expire(16), 16)
    assert [each.verdict for each in trail.follow(again, matcher.receive(again))] == ["advanced"]


def test_one_that_gave_way_to_others_was_not_late() -> None:
    trail = Trail([SSH])
    packet, matcher = knock(0, "7000/tcp"), Matcher([SSH])
    trail.follow(packet, matcher.receive(packet))
    (attempt,) = matcher.attempts(SRC)
    trail.ended([Failed(SRC, ("ssh",), 1, Reason.EVICTED, None, attempt)], 1)
    assert [each.verdict for each in trail.follow(knock(2, "8000/tcp"), [])] == ["unknown"]


def test_an_attempt_from_before_a_reload_is_told_of_without_what_is_expected_now() -> None:
    now = Door("ssh", sequence("7100/tcp 7200/tcp"), opens=sequence("22/tcp"))
    trail, matcher = Trail([now]), Matcher([SSH])
    for packet in (knock(0, "7000/tcp"), knock(1, "1/tcp")):
        found = trail.follow(packet, matcher.receive(packet))
    assert found[0].words == "wrong port at stage 1 of 2: the next knock of its sequence was expected"


MAIL = Packet(5.0, SRC, DST, 17, 40_000, 62_201, 0)


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        (None, Verdict.ACCEPTED),
        (SpaReason.REPLAYED, Verdict.REPLAYED),
        (SpaReason.AGE, Verdict.AGE),
        (SpaReason.SERVICE, Verdict.REJECTED),
    ],
)
def test_a_single_packet_has_its_verdict_and_its_client(reason: SpaReason | None, verdict: Verdict) -> None:
    (found,) = Trail([]).follow(MAIL, [Mailed(MAIL, "vpn", "laptop", reason, "the words")])
    assert (found.door, found.service, found.verdict) == ("vpn", "62201/udp", verdict)
    assert "client laptop" in found.words
    assert "the words" in found.words


def test_an_opening_for_another_address_says_whose() -> None:
    other = ipaddress.ip_address("198.51.100.9").packed
    (found,) = Trail([SSH]).follow(MAIL, [Granted(MAIL, Grant("ssh", other, 65.0))])
    assert found.words == "opened for 198.51.100.9 for 60 s"


def test_t18_what_was_overheard_does_not_push_out_of_memory_what_takes_a_key() -> None:
    """T18: nor do packets of nobody's."""
    memory = Memory(most=4)
    memory.keep(MAIL, [Mailed(MAIL, "vpn", "laptop", None, "")])
    for reason, client in ((SpaReason.REPLAYED, "laptop"), (SpaReason.HMAC, "")):
        for number in range(10):
            memory.keep(MAIL._replace(time=6.0 + number), [Mailed(MAIL, "vpn", client, reason, "")])
    assert len(memory.of(SRC)) == 5
    assert memory.of(SRC)[0].time == 5.0


def test_who_was_given_up_is_remembered_within_bounds() -> None:
    trail = Trail([SSH])
    matcher = Matcher([SSH], max_knockers=2 * MAX_LATE)
    for number in range(MAX_LATE + 100):
        packet = knock(0, "7000/tcp", src=number.to_bytes(4, "big"))
        trail.follow(packet, matcher.receive(packet))
    for _ in range(10):
        trail.ended(matcher.expire(16), 16)
    assert len(trail._late) == MAX_LATE


def test_no_sequence_of_a_one_time_file_is_told() -> None:
    door = Door("once", (), onetime=("/x/phone",), opens=sequence("22/tcp"))
    matcher, trail = Matcher([door]), Trail([door])
    matcher.set_code("once", "/x/phone", sequence("7000/tcp 8123/tcp"))
    for packet in (knock(0, "7000/tcp"), knock(1, "1/tcp")):
        found = trail.follow(packet, matcher.receive(packet))
    assert (found[0].words, found[0].of) == ("wrong port at stage 1: the next knock of its sequence was expected", 0)
    (line,) = advice([door], found)
    assert line.startswith(
        "once opens with the next sequence of its one-time file (used ones count no more) within 15 s"
    )


@pytest.mark.parametrize(
    ("told", "verdict", "words"),
    [
        (Refused(knock(0, "7000/tcp"), "ssh", "no set"), Verdict.REFUSED, "not opened: no set"),
        (Spent(knock(0, "7000/tcp"), Code("ssh", "/x", ())), Verdict.USED, "one-time sequence of /x used"),
        (Failed(SRC, ("ssh",), 3, Reason.SPENT, knock(0, "7000/tcp")), Verdict.SPENT, "one-time sequence used up"),
        (
            Failed(SRC, ("ssh",), 3, Reason.COOLDOWN, knock(0, "7000/tcp")),
            Verdict.COOLDOWN,
            "too soon after the last time",
        ),
        (Granted(knock(0, "7000/tcp"), Grant("gone", SRC, 9)), Verdict.OPENED, "opened for its timeout"),
        (
            Stale(knock(0, "7000/tcp"), 63.0),
            Verdict.STALE,
            "means nothing: its record came 63.0 s late, and no door waits that long",
        ),
        (Revoked(knock(0, "7000/tcp"), "ssh", "done"), Verdict.CLOSED, "complete, closes ssh"),
    ],
)
def test_events_without_an_attempt_have_words_too(told: Told, verdict: Verdict, words: str) -> None:
    (found,) = Trail([SSH]).follow(knock(0, "7000/tcp"), [told])
    assert (found.verdict, found.words) == (verdict, words)


def test_one_that_gives_way_to_others_is_told_so() -> None:
    matcher, trail, memory = Matcher([SSH], max_knockers=16), Trail([SSH]), Memory()
    found: list[Finding] = []
    for number in range(17):
        packet = knock(0, "7000/tcp", src=bytes((198, 51, 100, number)))
        told = matcher.receive(packet)
        found += trail.follow(packet, told)
        memory.keep(packet, told)
    assert [kept.packet is None for kept in memory.of(bytes((198, 51, 100, 0)))] == [False, True]
    gone = [each for each in found if each.verdict is Verdict.EVICTED]
    assert [(each.src[3], each.words) for each in gone] == [
        (0, "given up at stage 1 of 3: too many others were knocking")
    ]


def test_the_advice_is_about_the_doors_that_were_tried() -> None:
    tried = play([SSH, DONE], [knock(0, "7000/tcp"), knock(1, "8000/tcp")])
    assert advice([SSH, DONE], tried) == [
        "ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 15 s; it got to stage 2 of 3"
    ]
    assert advice([SSH, DONE], []) == [
        "ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 15 s",
        "done opens with 9100/tcp, 9200/tcp within 15 s",
    ]
    opened = play([SSH], [knock(0, "7000/tcp"), knock(1, "8000/tcp"), knock(2, "9000/udp")])
    assert advice([SSH], opened) == ["ssh was opened"]


def test_first_knocks_of_many_do_not_push_out_what_took_more() -> None:
    """A flood of spoofed first knocks, and the trail of an honest knocker beside it."""
    matcher, memory = Matcher([SSH]), Memory(most=100)
    honest = [knock(0, "7000/tcp"), knock(1, "8000/tcp"), knock(2, "9000/udp")]
    flood = [knock(3, "7000/tcp", src=number.to_bytes(4, "big")) for number in range(1000)]
    for packet in (*honest, *flood, *(packet._replace(sport=5) for packet in flood)):
        memory.keep(packet, matcher.receive(packet))
    assert [kept.packet for kept in memory.of(SRC)] == honest[1:]
    assert sum(map(len, (memory._beginnings, memory._further))) == 102


def test_what_is_remembered_is_in_the_order_of_coming() -> None:
    matcher, memory = Matcher([SSH]), Memory()
    packets = [knock(0, "7000/tcp"), knock(1, "8000/tcp"), knock(2, "1/udp"), knock(3, "2/udp")]
    for packet in packets:
        memory.keep(packet, matcher.receive(packet))
    memory.keep_ended([Failed(SRC, ("ssh",), 1, Reason.TIMEOUT, None)], 2.5)
    assert [kept.time for kept in memory.of(SRC)] == [0, 1, 2, 2.5, 3]
    assert memory.of(DST) == []
