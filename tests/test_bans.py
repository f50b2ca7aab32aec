"""Who is banned until when, in a kernel's sets; and what is asked of it."""

import ipaddress
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from logknock import bans as module
from logknock.bans import BATCH, LINES_PER_SECOND, Ban, Bans, answer, parse_target, parse_time, who
from logknock.config import Scan
from logknock.errors import FirewallError, LogknockError
from logknock.firewall.sets import Banned, Sets, source_key
from logknock.knock import Door, Grant, Service
from logknock.report import Level, Line
from logknock.scan import Caught

from .netns import Host, pair

TABLE = """
table inet logknock {
	set granted4 { type ipv4_addr . inet_proto . inet_service; flags timeout; size 100; }
	set granted6 { type ipv6_addr . inet_proto . inet_service; flags timeout; size 100; }
	set banned4 { type ipv4_addr; size 65535; flags timeout; }
	set banned6 { type ipv6_addr; size 65535; flags timeout; }
	chain guard { log group 5; }
}
"""
TRUSTED = tuple(
    map(ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.9/32", "2001:db8:1::/48", "2001:db8:0:7::5/128"))
)
TERMS = Scan(ports=10, ban=600.0)
WALL, NOW = 1_700_000_000.0, 5_000.0


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


@pytest.fixture(scope="module")
def gateway() -> Iterator[Host]:
    with pair() as (gateway, _):
        yield gateway


@pytest.fixture
def sets(gateway: Host) -> Iterator[Sets]:
    gateway.nft(f"flush ruleset\n{TABLE}")
    with gateway.inside():
        found = Sets()
    yield found
    found.disconnect()


@pytest.fixture
def log() -> list[Line]:
    return []


@pytest.fixture
def bans(sets: Sets, log: list[Line]) -> Bans:
    made = Bans(sets, log.append)
    made.use(TERMS, TRUSTED)
    return made


def listed(host: Host) -> dict[str, tuple[float, str]]:
    """What nft says of both sets: key -> timeout, comment."""
    found = {}
    for name in ("banned4", "banned6"):
        listing = json.loads(host.run("nft", "-j", "list", "set", "inet", "logknock", name).stdout)
        for item in next(entry["set"] for entry in listing["nftables"] if "set" in entry).get("elem", []):
            element = item["elem"] if isinstance(item, dict) else {"val": item}
            found[str(element["val"])] = (element.get("timeout", 0), element.get("comment", ""))
    return found


def catch(bans: Bans, *addresses: str, now: float = NOW) -> None:
    """Scanners, and the batch that bans them."""
    for address in addresses:
        bans.suspect(Caught(packed(address), 12))
    bans.apply(WALL, now)


def ask(bans: Bans, do: str, **details: object) -> list[Any]:
    return [each for each in answer({"do": do, **details}, bans) if each is not None]


def test_t6_a_scanner_is_an_element_with_the_bans_time_and_why(gateway: Host, bans: Bans, log: list[Line]) -> None:
    """T6."""
    catch(bans, "203.0.113.7", "2001:db8:5:6:a:b:c:d")
    assert listed(gateway) == {
        "203.0.113.7": (600, "scan of 12 ports"),
        "2001:db8:5:6::": (600, "scan of 12 ports"),
    }
    assert [(line.level, line.text) for line in log] == [
        (Level.NOTICE, "203.0.113.7: banned for 600 s: scan of 12 ports"),
        (Level.NOTICE, "2001:db8:5:6::/64: banned for 600 s: scan of 12 ports"),
    ]
    assert log[0].fields == {
        "SRC": "203.0.113.7",
        "EVENT": "banned",
        "TIMEOUT": "600",
        "REASON": "scan of 12 ports",
    }


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("192.0.2.55", id="trusted network"),
        pytest.param("198.51.100.9", id="trusted address"),
        pytest.param("2001:db8:1:2::3", id="trusted network of IPv6"),
        pytest.param("2001:db8:0:7::99", id="in the /64 of a trusted address"),
        pytest.param("10.99.0.1", id="own address"),
        pytest.param("fd99::1", id="own address of IPv6"),
        pytest.param("127.0.0.9", id="loopback"),
        pytest.param("::1", id="loopback of IPv6"),
        pytest.param("0.0.0.0", id="unspecified"),
        pytest.param("::", id="unspecified of IPv6"),
        pytest.param("224.0.0.1", id="multicast"),
        pytest.param("ff02::1", id="multicast of IPv6"),
        pytest.param("255.255.255.255", id="broadcast"),
        pytest.param("10.99.0.255", id="broadcast of a link"),
        pytest.param("::ffff:203.0.113.7", id="IPv4 in IPv6"),
        pytest.param("fe80::5", id="link-local, where the router's address is"),
    ],
)
def test_t12_t37_who_is_never_banned(gateway: Host, bans: Bans, log: list[Line], address: str) -> None:
    """T12, T37: neither as a scanner nor by hand."""
    src = ipaddress.ip_address(address).packed
    bans.suspect(Caught(src, 12))
    bans.apply(WALL, NOW)
    with pytest.raises(LogknockError):
        bans.make(module.Target(src, is_prefix=False), 60.0, WALL, NOW)
    assert listed(gateway) == {}
    assert log == []


def test_neighbours_of_the_trusted_are_banned(gateway: Host, bans: Bans) -> None:
    """What is beside a trusted network is not in it."""
    catch(bans, "192.0.3.1", "198.51.100.10", "2001:db8:2::1", "2001:db8:0:8::5")
    assert len(listed(gateway)) == 4


def test_whoever_has_an_open_door_is_not_banned_nor_anybody_in_its_64(gateway: Host, sets: Sets, bans: Bans) -> None:
    door = Door("ssh", (Service.parse("7000/tcp"),), opens=(Service.parse("22/tcp"),))
    sets.use([door])
    for address in ("203.0.113.7", "2001:db8:5::1"):
        sets.open(door, Grant("ssh", packed(address), NOW + 30), NOW)
    catch(bans, "203.0.113.7", "2001:db8:5::2")
    assert listed(gateway) == {}
    with pytest.raises(LogknockError, match="2001:db8:5::/64 has an open door"):
        bans.make(parse_target("2001:db8:5::/64"), 60.0, WALL, NOW)
    sets.expire(NOW + 31)
    catch(bans, "203.0.113.7", "2001:db8:5::2")
    assert len(listed(gateway)) == 2


def test_a_door_that_opens_lifts_the_ban(gateway: Host, bans: Bans) -> None:
    """Its knocks were on their way when the ban came."""
    catch(bans, "203.0.113.7", "203.0.113.8")
    bans.suspect(Caught(packed("203.0.113.9"), 10))
    for last in (7, 9, 10):
        bans.admit(packed(f"203.0.113.{last}"))
    bans.apply(WALL, NOW)
    assert set(listed(gateway)) == {"203.0.113.8"}


def test_a_ban_is_not_prolonged_while_it_lasts(gateway: Host, bans: Bans, log: list[Line]) -> None:
    catch(bans, "203.0.113.7")
    catch(bans, "203.0.113.7", now=NOW + 300)
    assert len(log) == 1
    bans.settle(NOW + 600)
    assert len(bans) == 0
    catch(bans, "203.0.113.7", now=NOW + 600)
    assert len(log) == 2


def test_a_flood_of_scanners_is_banned_in_batches_and_the_rest_is_counted(
    gateway: Host, bans: Bans, log: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: forged ones come at any rate."""
    sent = 0
    change = bans._sets._change

    def counted(*args: Any) -> None:
        nonlocal sent
        sent += 1
        change(*args)

    monkeypatch.setattr(bans._sets, "_change", counted)
    wanted = [bans.suspect(Caught(bytes((203, 0, 113, number)), 10)) for number in range(200)]
    assert wanted.count(True) == 1, "one batch is asked for"
    bans.apply(WALL, NOW)
    assert (sent, len(bans), bans.left_out) == (1, BATCH, 200 - BATCH)
    bans.settle(NOW + 1)
    assert len(log) == LINES_PER_SECOND + 2
    assert log[-2].text == f"{BATCH - LINES_PER_SECOND} more lines about bans left out"
    assert "136 scanners not banned" in log[-1].text
    bans.settle(NOW + 2)
    assert len(log) == LINES_PER_SECOND + 2


def test_full_sets_take_no_more_and_say_so(
    gateway: Host, bans: Bans, log: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BANS", 2)
    catch(bans, "203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8:5::1")
    assert len(listed(gateway)) == 3
    assert bans.left_out == 1
    with pytest.raises(LogknockError, match="2 are banned already"):
        bans.make(parse_target("203.0.113.3"), 60.0, WALL, NOW)
    bans.make(parse_target("203.0.113.2"), 60.0, WALL, NOW)  # that one is among them
    bans.lift(parse_target("203.0.113.2"))
    catch(bans, "203.0.113.3")
    assert "203.0.113.3" in listed(gateway)


def test_what_the_kernel_refuses_is_told_once_and_tried_again(gateway: Host, bans: Bans, log: list[Line]) -> None:
    """T34."""
    gateway.nft("delete table inet logknock")
    for _ in range(3):
        catch(bans, "203.0.113.7")
    (line,) = log
    assert line.level == Level.ERROR
    assert "set inet logknock banned4 is missing" in line.text
    assert "rules apply" in line.text
    assert len(bans) == 0
    bans.settle(NOW)
    assert bans.trouble is not None
    assert "scanners are not banned: set inet logknock banned4 is missing" in bans.trouble.message
    gateway.nft(TABLE)
    bans.settle(NOW)
    assert bans.trouble is None, "it is over as soon as somebody could be banned"
    assert listed(gateway) == {}
    catch(bans, "203.0.113.7")
    assert set(listed(gateway)) == {"203.0.113.7"}


def test_bans_by_hand(gateway: Host, bans: Bans, log: list[Line]) -> None:
    assert ask(bans, "ban", address="203.0.113.7") == [{"banned": "203.0.113.7", "seconds": 600.0}]
    assert ask(bans, "ban", address="2001:db8:5::7", seconds=90) == [{"banned": "2001:db8:5::/64", "seconds": 90}]
    assert listed(gateway) == {"203.0.113.7": (600, "by hand"), "2001:db8:5::": (90, "by hand")}
    assert ask(bans, "ban", address="203.0.113.7", seconds=5) == [{"banned": "203.0.113.7", "seconds": 5}]
    assert listed(gateway)["203.0.113.7"] == (5, "by hand"), "the new time counts, a shorter one too"
    assert ask(bans, "unban", address="2001:db8:5::ffff") == [{"unbanned": "2001:db8:5::/64"}]
    assert set(listed(gateway)) == {"203.0.113.7"}
    with pytest.raises(LogknockError, match="2001:db8:5::/64 is not banned") as caught:
        ask(bans, "unban", address="2001:db8:5::7")
    assert caught.value.hint == "`logknock bans` lists who is"
    assert [line.text for line in log] == [
        "203.0.113.7: banned for 600 s: by hand",
        "2001:db8:5::/64: banned for 90 s: by hand",
        "203.0.113.7: banned for 5 s: by hand",
        "2001:db8:5::/64: no longer banned: by hand",
    ]


def test_a_ban_that_somebody_else_made_is_lifted_too(gateway: Host, bans: Bans) -> None:
    gateway.nft("add element inet logknock banned4 { 203.0.113.7 timeout 1h }")
    assert ask(bans, "unban", address="203.0.113.7") == [{"unbanned": "203.0.113.7"}]
    assert listed(gateway) == {}


def test_whom_the_configuration_trusts_from_now_on_is_banned_no_longer(
    gateway: Host, bans: Bans, log: list[Line]
) -> None:
    """T12: after a reload."""
    catch(bans, "203.0.113.7", "203.0.113.130", "2001:db8:5::1")
    bans.use(TERMS, (ipaddress.ip_network("203.0.113.0/25"), ipaddress.ip_network("2001:db8:5::/56")))
    assert set(listed(gateway)) == {"203.0.113.130"}
    assert log[-1].text == "2001:db8:5::/64: no longer banned: trusted now"
    gateway.nft("delete table inet logknock")
    bans.use(TERMS, (ipaddress.ip_network("203.0.113.0/24"),))
    assert log[-1].level == Level.ERROR


def test_t12_whom_the_configuration_came_to_trust_meanwhile_is_not_taken_over(
    gateway: Host, sets: Sets, bans: Bans, log: list[Line]
) -> None:
    """T12: after a restart."""
    catch(bans, "203.0.113.7", "203.0.113.130")
    after = Bans(sets, log.append)
    after.use(TERMS, (ipaddress.ip_network("203.0.113.0/25"),))
    assert after.take_over(time.time(), time.monotonic()) == 1
    assert set(listed(gateway)) == {"203.0.113.130"}


def test_a_restart_takes_the_bans_over(gateway: Host, sets: Sets, bans: Bans, log: list[Line]) -> None:
    """With the time that they have left, and why; those too that were made with nft, and one that has no end."""
    now = time.monotonic()
    catch(bans, "203.0.113.7", now=now)
    gateway.nft(
        'add element inet logknock banned4 { 203.0.113.8 timeout 2h expires 1h, 203.0.113.9 comment "friend\'s" }\n'
        "add element inet logknock banned6 { 2001:db8:5:: timeout 100s }"
    )
    after = Bans(sets, log.append)
    after.use(TERMS, ())
    wall = time.time()
    assert after.take_over(wall, now) == 4
    found = {each["address"]: each for answer in ask(after, "bans") for each in answer["bans"]}
    assert found["203.0.113.7"]["reason"] == "scan of 12 ports"
    assert 590 < found["203.0.113.7"]["left"] <= 600
    assert 3590 < found["203.0.113.8"]["left"] <= 3600
    assert found["203.0.113.8"]["since"] == pytest.approx(wall - 3600, abs=10)
    assert (found["203.0.113.9"]["left"], found["203.0.113.9"]["reason"]) == (None, "friend's")
    assert found["2001:db8:5::/64"]["reason"] == "not by logknock"
    after.lift(parse_target("203.0.113.7"))
    assert "203.0.113.7" not in listed(gateway)


def test_a_flush_takes_no_ban_away_and_makes_none_longer(gateway: Host, bans: Bans) -> None:
    """T34: they are put back with the time that they have left, in parts."""
    for number in range(150):
        bans.make(parse_target(f"203.0.113.{number}"), 1_000.0, WALL, NOW)
    bans.make(parse_target("203.0.113.200"), 50.0, WALL, NOW)
    bans.make(parse_target("2001:db8:5::1"), 1_000.0, WALL, NOW)
    assert bans.settled
    gateway.nft("flush set inet logknock banned4")
    bans.unsure()
    assert not bans.settled
    parts = []
    while part := bans.reconcile(NOW + 100):
        parts.append(part)
    assert sum(parts) == 151, "one of them was there"
    assert max(parts) == BATCH
    assert bans.settled
    found = listed(gateway)
    assert found.pop("2001:db8:5::")[0] == 900
    assert len(found) == 150
    assert {timeout for timeout, _ in found.values()} == {900}
    bans.unsure([packed("203.0.113.5"), packed("198.51.100.1")])
    assert bans.reconcile(NOW + 100) == 1


def test_what_somebody_else_bans_while_it_runs_is_a_ban_like_others(gateway: Host, bans: Bans, log: list[Line]) -> None:
    """Told, listed, and put back; and lifted where it is of the trusted."""
    addresses = ("203.0.113.7", "192.0.2.55", "2001:db8:5::", "2001:db8:6::1", "203.0.113.8")
    gateway.nft(
        'add element inet logknock banned4 { 203.0.113.7 timeout 1h comment "by me", 192.0.2.55 timeout 1h }\n'
        "add element inet logknock banned6 { 2001:db8:5::, 2001:db8:6::1 timeout 1h }"
    )
    bans.unsure([packed(address) for address in addresses])
    now = time.monotonic()
    assert not bans.settled
    while bans.reconcile(now):
        pass
    assert bans.settled
    assert {who(key): ban.why for key, ban in bans.listed(now)} == {
        "203.0.113.7": "by me",
        "2001:db8:5::/64": "not by logknock",
    }, "one is trusted, one no rule of ours finds, one is gone again"
    assert [line.text.partition(" for ")[0] for line in log] == [
        "203.0.113.7: banned",
        "192.0.2.55: banned",
        "2001:db8:5::/64: banned",
        "192.0.2.55: no longer banned: trusted now",
    ]
    gateway.nft("flush set inet logknock banned4")
    bans.unsure([packed("203.0.113.7")])
    while bans.reconcile(now):
        pass
    assert "203.0.113.7" in listed(gateway)


def test_a_door_that_opens_lifts_a_ban_that_somebody_else_made(gateway: Host, sets: Sets, bans: Bans) -> None:
    """Before it was looked at, while the door is open, and after a restart."""
    door = Door("ssh", (Service.parse("7000/tcp"),), opens=(Service.parse("22/tcp"),))
    sets.use([door])
    src = packed("203.0.113.7")
    ban = "add element inet logknock banned4 { 203.0.113.7 timeout 1h }"
    gateway.nft(ban)
    bans.unsure([src])
    bans.admit(src)
    assert listed(gateway) == {}
    sets.open(door, Grant("ssh", src, NOW + 30), NOW)
    gateway.nft(ban)
    bans.unsure([src])
    while bans.reconcile(NOW):
        pass
    assert (listed(gateway), len(bans)) == ({}, 0)
    gateway.nft(ban)
    assert bans.take_over(WALL, NOW) == 0
    assert listed(gateway) == {}


def test_t13_who_is_never_banned_takes_no_place_in_a_batch(gateway: Host, sets: Sets, bans: Bans) -> None:
    """T13: or a forger would keep real scanners out with the addresses of the trusted."""
    door = Door("ssh", (Service.parse("7000/tcp"),), opens=(Service.parse("22/tcp"),))
    sets.use([door])
    sets.open(door, Grant("ssh", packed("203.0.113.9"), NOW + 30), NOW)
    for number in range(BATCH):
        assert not bans.suspect(Caught(bytes((192, 0, 2, number)), 12))
    assert not bans.suspect(Caught(packed("203.0.113.9"), 12))
    catch(bans, "203.0.113.7")
    assert set(listed(gateway)) == {"203.0.113.7"}
    assert bans.left_out == 0


def test_an_element_that_our_rules_never_find_is_no_ban(gateway: Host, bans: Bans) -> None:
    gateway.nft("add element inet logknock banned6 { 2001:db8:5::1 timeout 1h }")
    assert bans.take_over(WALL, NOW) == 0


def test_what_cannot_be_put_back_is_tried_again(gateway: Host, bans: Bans) -> None:
    catch(bans, "203.0.113.7")
    gateway.nft("delete table inet logknock")
    bans.unsure()
    with pytest.raises(FirewallError, match="banned4 is missing"):
        bans.reconcile(NOW)
    gateway.nft(TABLE)
    assert bans.reconcile(NOW) == 1
    assert set(listed(gateway)) == {"203.0.113.7"}


def test_all_bans_of_both_families_are_listed_and_lifted_in_pieces(gateway: Host, sets: Sets, bans: Bans) -> None:
    """65,535 of them in one go would hold up every packet."""
    script = ", ".join(f"10.{number >> 8}.{number & 255}.1 timeout 1h" for number in range(20_000))
    gateway.nft(f"add element inet logknock banned4 {{ {script} }}")
    assert bans.take_over(time.time(), time.monotonic()) == 20_000
    pieces = ask(bans, "bans")
    assert sum(len(piece["bans"]) for piece in pieces) == 20_000
    assert max(len(piece["bans"]) for piece in pieces) == 64
    first = next(answer({"do": "unban"}, bans))
    assert first is None
    assert len(bans) == 20_000 - BATCH
    assert ask(bans, "unban") == [{"unbanned": 20_000 - BATCH}]
    assert listed(gateway) == {}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"do": "ban"}, "no IP address"),
        ({"do": "ban", "address": 7}, "no IP address"),
        ({"do": "ban", "address": "203.0.113.0/24"}, "one IPv4 address or of an IPv6 /64"),
        ({"do": "ban", "address": "203.0.113.7", "seconds": "1h"}, "from a second to 365 days"),
        ({"do": "ban", "address": "203.0.113.7", "seconds": True}, "from a second to 365 days"),
        ({"do": "ban", "address": "203.0.113.7", "seconds": 0}, "from a second to 365 days"),
        ({"do": "ban", "address": "203.0.113.7", "seconds": float("nan")}, "from a second to 365 days"),
        ({"do": "ban", "address": "203.0.113.7", "seconds": 1e300}, "from a second to 365 days"),
        ({"do": "unban", "address": None}, "no IP address"),
        ({"do": "unban", "address": "fe80::1%eth0"}, "zone"),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_words(
    gateway: Host, bans: Bans, request_: dict[str, object], says: str
) -> None:
    with pytest.raises(LogknockError, match=says):
        list(answer(request_, bans))
    assert listed(gateway) == {}


@pytest.mark.parametrize(
    ("text", "whom", "key"),
    [
        ("203.0.113.7", "203.0.113.7", "203.0.113.7"),
        ("203.0.113.7/32", "203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0:7::5", "2001:db8:0:7::5", "2001:db8:0:7::/64"),
        ("2001:db8:0:7::5/128", "2001:db8:0:7::5", "2001:db8:0:7::/64"),
        ("2001:db8:0:7::/64", "2001:db8:0:7::/64", "2001:db8:0:7::/64"),
    ],
)
def test_whom_a_person_means(text: str, whom: str, key: str) -> None:
    target = parse_target(text)
    assert target.text == whom
    assert who(source_key(target.src)) == key


@pytest.mark.parametrize(
    "text",
    ["", "host.example", "203.0.113.7/31", "203.0.113.7/64", "2001:db8::/48", "2001:db8::5/64", "::/", "1.2.3.4/"],
)
def test_whom_nobody_can_mean(text: str) -> None:
    with pytest.raises(ValueError, match=r"no IP address|a ban is of|bits set behind"):
        parse_target(text)


def test_how_long_a_person_means() -> None:
    assert (parse_time("90s"), parse_time("365d")) == (90.0, 31_536_000.0)
    for text in ("", "90", "0s", "366d", "for ever"):
        with pytest.raises(ValueError, match=r"duration|unit|range"):
            parse_time(text)


def test_ends_that_changed_do_not_pile_up(bans: Bans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who bans and unbans for ever costs no memory."""
    monkeypatch.setattr(module, "_ENDS_SLACK", 10)
    for number in range(50):
        bans.make(parse_target("203.0.113.7"), 60.0 + number, WALL, NOW)
        with suppress(LogknockError):
            bans.lift(parse_target("203.0.113.7"))
    assert len(bans._ends) <= 13
    bans.make(parse_target("203.0.113.7"), 60.0, WALL, NOW)
    assert bans.find(packed("203.0.113.7"), NOW) == Ban(NOW + 60, WALL, "by hand")
    bans.expire(NOW + 59)
    assert len(bans) == 1
    bans.expire(NOW + 60)
    assert bans.find(packed("203.0.113.7"), NOW + 60) is None
    assert len(bans) == 0


def test_what_the_kernel_has_reads_back(sets: Sets) -> None:
    """Whatever the comment, up to what an element has room for."""
    for comment in ("", "x", "scan of 64 ports", "ä" * 60):
        sets.ban([packed("203.0.113.7")], [Banned(source_key(packed("2001:db8::7")), 50.0, 40.0, comment)])
        (found,) = sets.banned()
        assert (found.key, found.timeout, found.comment) == (packed("2001:db8::"), 40.0, comment)
        assert 30 < found.left <= 40
