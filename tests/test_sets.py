"""Open doors as set elements: the bytes, and what the kernel makes of them."""

import ipaddress
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logknock.errors import UNAVAILABLE, FirewallError
from logknock.firewall import sets as sets_module
from logknock.firewall.sets import GRANTED, GUARDED, WATCHED, Element, Sets, key, render
from logknock.knock import Door, Grant, Service, SetName

from .netns import Host, pair

TABLE = """
table inet logknock {
	set granted4 { type ipv4_addr . inet_proto . inet_service; flags timeout; size 4; }
	set granted6 { type ipv6_addr . inet_proto . inet_service; flags timeout; size 65535; }
	set watched { type inet_proto . inet_service; elements = { tcp . 7000, udp . 9000 }; }
	chain guard { log group 5; }
	set guarded { type inet_proto . inet_service; flags interval; elements = { tcp . 22, udp . 500 }; }
}
table ip own {
	set plain { type ipv4_addr; flags timeout; }
	set services { type ipv4_addr . inet_proto . inet_service; flags timeout; }
	set forever { type ipv4_addr; }
	set ranges { type ipv4_addr; flags interval, timeout; }
	set ports { type inet_service; flags timeout; }
	map verdicts { type ipv4_addr : verdict; flags timeout; }
}
table ip6 own6 { set plain { type ipv6_addr; flags timeout; }; }
"""
SSH = Service.parse("22/tcp")
IKE = Service.parse("500/udp")
CLIENT = ipaddress.ip_address("10.99.0.2").packed
CLIENT6 = ipaddress.ip_address("fd99::2").packed
OWN = SetName("ip", "own", "plain")


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


def a_door(name: str = "ssh", **settings: object) -> Door:
    settings.setdefault("opens", (SSH,))
    return Door(name, (Service.parse("7000/tcp"),), **settings)  # type: ignore[arg-type]


def grant(door: Door, src: bytes = CLIENT, seconds: float | None = None) -> Grant:
    return Grant(door.name, src, time.time() + (door.timeout if seconds is None else seconds))


def elements(host: Host, name: str, table: str = "inet logknock") -> dict[str, tuple[float, float, str]]:
    """What nft says of a set: key -> timeout, what is left of it (seconds), comment."""
    family, table_name = table.split()
    listed = json.loads(host.run("nft", "-j", "list", "set", family, table_name, name).stdout)
    found = {}
    for item in next(entry["set"] for entry in listed["nftables"] if "set" in entry).get("elem", []):
        element = item["elem"]
        value = element["val"]
        text = " . ".join(str(part) for part in value["concat"]) if isinstance(value, dict) else str(value)
        found[text] = (element.get("timeout", 0), element.get("expires", 0), element.get("comment", ""))
    return found


def test_golden_batch() -> None:
    """A batch as nft 1.0.6 would send it (`nft --debug=mnl`), but for the comment's place and our order of verbs."""
    element = Element(SetName("inet", "logknock", "granted4"), key(CLIENT, SSH))
    batch, last = render([], [(element, 30.0, "ssh")], 1)
    assert last == 4
    body = (
        "01000000" "0d0001006c6f676b6e6f636b00000000" "0d0002006772616e7465643400000000"
        "34000380" "30000180" "14000180" "10000100" "0a630002" "06000000" "00160000"
        "0c000400" "0000000000007530" "0a000600" "0004" "73736800" "0000"
    )  # fmt: skip
    short = body[: body.index("34000380")] + "1c0003801800018014000180100001000a6300020600000000160000"
    assert batch.hex() == "".join(
        [
            "14000000" "1000" "0100" "01000000" "00000000" "0000000a",
            "68000000" "0c0a" "0104" "02000000" "00000000", body,
            "50000000" "0e0a" "0100" "03000000" "00000000", short,
            "68000000" "0c0a" "0504" "04000000" "00000000", body,
            "14000000" "1100" "0100" "05000000" "00000000" "0000000a",
        ]
    )  # fmt: skip


def test_t33_no_message_asks_for_an_element_without_end() -> None:
    """T33: a timeout of 0 would mean for ever."""
    element = Element(SetName("inet", "logknock", "granted4"), key(CLIENT, SSH))
    batch, _ = render([], [(element, 0.0, "ssh")], 1)
    assert batch.count(bytes.fromhex("0c0004000000000000000001")) == 2
    assert bytes.fromhex("0c0004000000000000000000") not in batch


def test_a_grant_is_an_element_with_timeout_and_comment(gateway: Host, sets: Sets) -> None:
    door = a_door(opens=(SSH, IKE), sets=(OWN, SetName("ip", "own", "services")))
    sets.use([door])
    sets.open(door, grant(door), time.time())
    for name, table in (("granted4", "inet logknock"), ("services", "ip own")):
        found = elements(gateway, name, table)
        assert set(found) == {"10.99.0.2 . tcp . 22", "10.99.0.2 . udp . 500"}
        assert {(timeout, comment) for timeout, _, comment in found.values()} == {(30, "ssh")}
    assert set(elements(gateway, "plain", "ip own")) == {"10.99.0.2"}


def test_ipv6_goes_to_the_sets_of_ipv6_only(gateway: Host, sets: Sets) -> None:
    door = a_door(sets=(OWN, SetName("ip6", "own6", "plain")))
    sets.use([door])
    sets.open(door, grant(door, CLIENT6), time.time())
    assert set(elements(gateway, "granted6")) == {"fd99::2 . tcp . 22"}
    assert set(elements(gateway, "plain", "ip6 own6")) == {"fd99::2"}
    assert elements(gateway, "granted4") == elements(gateway, "plain", "ip own") == {}


@given(
    src=st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    proto=st.sampled_from([6, 17]),
    port=st.integers(1, 65535),
    timeout=st.integers(10, 31_536_000),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_grant_reads_back_through_the_kernel(
    gateway: Host, sets: Sets, src: bytes, proto: int, port: int, timeout: int, name: str
) -> None:
    door = a_door(name, opens=(Service(proto, port),), timeout=float(timeout))
    sets.use([door])
    now = time.time()
    sets.open(door, Grant(name, src, now + timeout), now)
    protocol = {6: "tcp", 17: "udp"}[proto]
    found = elements(gateway, "granted4" if len(src) == 4 else "granted6")
    listed, left, comment = found[f"{ipaddress.ip_address(src)} . {protocol} . {port}"]
    assert (listed, comment) == (timeout, name)
    assert timeout - 9 < left <= timeout
    sets.close(name, src, now)


def test_t33_a_knock_on_an_open_door_refreshes_it(gateway: Host, sets: Sets) -> None:
    """T33: the new end counts, and the element never becomes permanent."""
    door = a_door(timeout=30.0)
    sets.use([door])
    now = time.time()
    sets.open(door, Grant("ssh", CLIENT, now + 12), now)
    assert elements(gateway, "granted4")["10.99.0.2 . tcp . 22"][1] <= 12
    sets.open(door, Grant("ssh", CLIENT, now + 30), now)
    timeout, left, _ = elements(gateway, "granted4")["10.99.0.2 . tcp . 22"]
    assert timeout == 30
    assert 12 < left <= 30


@pytest.mark.parametrize("left", [-5.0, 0.0, 1e12], ids=["ended", "ending", "of a clock that stepped"])
def test_t33_no_element_is_without_a_timeout_or_outlives_its_door(gateway: Host, sets: Sets, left: float) -> None:
    """T33."""
    door = a_door(timeout=30.0)
    sets.use([door])
    now = time.time()
    sets.open(door, Grant("ssh", CLIENT, now + left), now)
    for timeout, _, _ in elements(gateway, "granted4").values():
        assert 0 < timeout <= 30


def test_doors_that_share_an_element_share_the_later_end(gateway: Host, sets: Sets) -> None:
    short, long = a_door("short", timeout=10.0), a_door("long", timeout=1000.0)
    sets.use([short, long])
    sets.open(long, grant(long), time.time())
    sets.open(short, grant(short), time.time())
    assert elements(gateway, "granted4")["10.99.0.2 . tcp . 22"][0] > 900
    sets.close("long", CLIENT, time.time())
    assert elements(gateway, "granted4")["10.99.0.2 . tcp . 22"][0] <= 10
    sets.close("short", CLIENT, time.time())
    assert elements(gateway, "granted4") == {}


def test_closing_what_the_kernel_has_closed_already_is_no_error(gateway: Host, sets: Sets) -> None:
    door = a_door()
    sets.use([door])
    sets.open(door, grant(door), time.time())
    gateway.nft("flush set inet logknock granted4")
    assert sets.close("ssh", CLIENT, time.time()) is not None
    assert sets.close("ssh", CLIENT, time.time()) is None


def test_what_has_ended_is_forgotten_once(sets: Sets) -> None:
    door = a_door()
    sets.use([door])
    now = time.time()
    for seconds in (5, 10, 20):
        sets.open(door, Grant("ssh", CLIENT, now + seconds), now)
    assert sets.expire(now + 15) == []
    assert [(ended.expires, was) for ended, was in sets.expire(now + 25)] == [(now + 20, True)]
    assert sets.grants == []


def test_t34_a_flushed_table_gets_back_what_has_time_left(gateway: Host, sets: Sets) -> None:
    """T34: with the time that is left, not with all of it; and what has ended stays out (T33)."""
    door = a_door(timeout=1000.0)
    sets.use([door])
    now = time.time()
    sets.open(door, Grant("ssh", CLIENT, now + 1000), now)
    sets.open(door, Grant("ssh", CLIENT6, now + 5), now)
    assert sets.settled
    gateway.nft(f"flush ruleset\n{TABLE}")
    sets.unsure()
    assert not sets.settled
    sets.expire(now + 100)
    assert sets.reconcile(now + 100) == 1
    assert sets.reconcile(now + 100) == 0
    assert elements(gateway, "granted6") == {}
    assert 890 < elements(gateway, "granted4")["10.99.0.2 . tcp . 22"][1] <= 900


def test_t34_an_opening_that_failed_is_made_up_for(gateway: Host, sets: Sets) -> None:
    """T34: the kernel's words, then the door as soon as the set is there."""
    door = a_door()
    sets.use([door])
    gateway.nft("delete table inet logknock")
    with pytest.raises(FirewallError, match=r"granted4.* is missing: No such file or directory") as caught:
        sets.open(door, grant(door), time.time())
    assert caught.value.exit_code == UNAVAILABLE
    assert "rules apply" in caught.value.hint
    with pytest.raises(FirewallError, match="missing"):
        sets.reconcile(time.time())
    gateway.nft(TABLE.partition("table ip own")[0])
    assert sets.reconcile(time.time()) == 1
    assert "10.99.0.2 . tcp . 22" in elements(gateway, "granted4")


def test_t34_a_full_set_is_said_and_others_still_open(gateway: Host, sets: Sets) -> None:
    """T34: granted4 has room for four; the fifth waits, IPv6 does not, and there is room when one closes."""
    door = a_door()
    sets.use([door])
    sources = [bytes((10, 99, 1, number)) for number in range(5)]
    for src in sources[:4]:
        sets.open(door, grant(door, src), time.time())
    with pytest.raises(FirewallError, match="granted4: the set is full: Too many open files in system"):
        sets.open(door, grant(door, sources[4]), time.time())
    sets.open(door, grant(door, CLIENT6), time.time())
    assert len(elements(gateway, "granted4")) == 4
    sets.close("ssh", sources[0], time.time())
    assert sets.reconcile(time.time()) == 1
    assert "10.99.1.4 . tcp . 22" in elements(gateway, "granted4")


def test_a_set_that_fails_does_not_keep_others_from_being_restored(gateway: Host, sets: Sets) -> None:
    own = a_door("own", opens=(), sets=(OWN,))
    ssh = a_door()
    sets.use([own, ssh])
    sets.open(own, grant(own, bytes((10, 99, 1, 1))), time.time())
    sets.open(ssh, grant(ssh), time.time())
    gateway.nft("delete table ip own\nflush set inet logknock granted4")
    sets.unsure()
    with pytest.raises(FirewallError, match="set ip own plain is missing"):
        sets.reconcile(time.time())
    assert not sets.settled
    assert "10.99.0.2 . tcp . 22" in elements(gateway, "granted4")


def test_many_that_fail_do_not_keep_others_from_being_restored(gateway: Host, sets: Sets) -> None:
    own, ssh = a_door("own", opens=(), sets=(OWN,)), a_door()
    sets.use([own, ssh])
    for number in range(200):
        sets.open(own, grant(own, bytes((10, 99, 1, number))), time.time())
    sets.open(ssh, grant(ssh), time.time())
    gateway.nft("delete table ip own\nflush set inet logknock granted4")
    sets.unsure()
    parts = [sets.reconcile(time.time()) for _ in range(3)]
    assert parts == [64, 64, 64]
    with pytest.raises(FirewallError, match="set ip own plain is missing"):
        sets.reconcile(time.time())
    assert "10.99.0.2 . tcp . 22" in elements(gateway, "granted4")


def test_open_doors_are_bounded(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can forge sources and knows the knocks fills no memory; who is in already is refreshed all the same."""
    monkeypatch.setattr("logknock.firewall.sets.MAX_KNOCKERS", 2)
    door = a_door()
    sets.use([door])
    for number in (1, 2):
        sets.open(door, grant(door, bytes((10, 99, 1, number))), time.time())
    with pytest.raises(FirewallError, match="opens for no more"):
        sets.open(door, grant(door, bytes((10, 99, 1, 3))), time.time())
    sets.open(door, grant(door, bytes((10, 99, 1, 2))), time.time())
    assert len(sets.grants) == 2


def test_refreshing_for_ever_takes_no_memory(sets: Sets) -> None:
    door = a_door(timeout=1000.0)
    sets.use([door])
    now = time.time()
    for number in range(2_500):
        sets.open(door, Grant("ssh", CLIENT, now + 500 + number / 10), now)
    assert len(sets._ends) < 1_100
    assert [ended.expires for ended, _ in sets.expire(now + 900)] == [now + 500 + 249.9]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("forever", "must have `flags timeout`", id="a set without timeouts would never close the door"),
        pytest.param("ranges", "no `interval`", id="a set of ranges"),
        pytest.param("ports", "neither addresses", id="a set of something else"),
        pytest.param("verdicts", "be no map", id="a map"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(sets: Sets, name: str, says: str) -> None:
    with pytest.raises(FirewallError, match=says) as caught:
        sets.use([a_door(sets=(SetName("ip", "own", name),))])
    assert caught.value.hint


def test_a_set_that_is_missing_is_told_and_keeps_nothing_else_shut(gateway: Host, sets: Sets) -> None:
    """T34: and is filled when it is there."""
    both = a_door(sets=(SetName("ip", "own", "later"), OWN))
    alone = a_door("alone", opens=(), sets=(SetName("ip", "own", "later"),))
    sets.use([both, alone])
    sets.open(both, grant(both), time.time())
    assert "10.99.0.2 . tcp . 22" in elements(gateway, "granted4")
    assert set(elements(gateway, "plain", "ip own")) == {"10.99.0.2"}
    other = bytes((10, 99, 1, 1))
    with pytest.raises(FirewallError, match="set ip own later is missing") as caught:
        sets.open(alone, grant(alone, other), time.time())
    assert "your firewall is to make it" in caught.value.hint
    found = sets.check([both, alone])
    assert found.ours is None
    assert [failure.message for failure in found.others] == [caught.value.message]
    gateway.nft("table ip own { set later { type ipv4_addr; flags timeout; }; }")
    assert sets.check([both, alone]) == (None, False, ())
    while sets.reconcile(time.time()):
        pass
    assert set(elements(gateway, "later", "ip own")) == {"10.99.0.2", "10.99.1.1"}


def test_a_set_that_goes_while_it_is_used_keeps_nothing_else_shut(gateway: Host, sets: Sets) -> None:
    """T34: not even before anybody has looked."""
    both = a_door(sets=(OWN,))
    sets.use([both])
    sets.open(both, grant(both), time.time())
    gateway.nft("delete table ip own")
    other = bytes((10, 99, 1, 1))
    sets.open(both, grant(both, other), time.time())
    assert set(elements(gateway, "granted4")) == {"10.99.0.2 . tcp . 22", "10.99.1.1 . tcp . 22"}
    sets.close("ssh", CLIENT, time.time())
    sets.close("ssh", other, time.time())
    assert elements(gateway, "granted4") == {}
    assert sets.settled, "what was in a set that is gone is gone"


def test_a_door_that_is_kept_shut_does_not_keep_another_of_the_same_knocker_shut(gateway: Host, sets: Sets) -> None:
    """T34."""
    shut, ssh = a_door("shut", opens=(), sets=(SetName("ip", "own", "later"),)), a_door()
    sets.use([shut, ssh])
    with pytest.raises(FirewallError, match="later is missing"):
        sets.open(shut, grant(shut), time.time())
    sets.open(ssh, grant(ssh), time.time())
    assert "10.99.0.2 . tcp . 22" in elements(gateway, "granted4")
    assert not sets.holds(CLIENT)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        pytest.param(
            "set granted4 { type ipv4_addr; flags timeout; }", "set granted4 is none of ours", id="other keys"
        ),
        pytest.param("set mine { type ipv4_addr; }", "set mine is none of ours", id="another set"),
        pytest.param("chain input { accept; }", "chain input is none of ours", id="a chain with rules"),
        pytest.param("chain input { }", "chain input is none of ours", id="a chain that has no rules yet"),
    ],
)
def test_a_table_of_our_name_that_is_not_ours_is_told_and_left_alone(
    gateway: Host, sets: Sets, table: str, says: str
) -> None:
    door = a_door()
    sets.use([door])
    gateway.nft(f"flush ruleset\ntable inet logknock {{ {table}; }}")
    before = gateway.nft("list ruleset")
    found = sets.check([door])
    assert found.ours is not None
    assert says in found.ours.message
    assert "another name" in found.ours.hint
    assert not found.restorable
    with pytest.raises(FirewallError, match="is not logknock's"):
        sets.use([door])
    with pytest.raises(FirewallError, match="is not logknock's"):
        sets.open(door, grant(door), time.time())
    assert gateway.nft("list ruleset") == before


def test_what_is_missing_of_our_table_is_told_from_what_is_anothers(gateway: Host, sets: Sets) -> None:
    door = a_door()
    for script in ("delete table inet logknock", "add table inet logknock", TABLE.partition("table ip own")[0]):
        gateway.nft(script)
        if "granted4" not in script:
            assert sets.check([door]).restorable
    assert sets.check([door]) == (None, False, ())
    gateway.nft("flush table inet logknock")
    found = sets.check([door])
    assert found.restorable
    assert found.ours is not None
    assert "the rules of table inet logknock are gone" in found.ours.message
    assert sets.check([a_door("own", opens=(), sets=(OWN,))]).ours is None, "who needs no guard has nothing missing"


def test_the_rules_are_known_as_ours() -> None:
    """What rules/*.nft make, and nothing else, is what is looked for."""
    for path in (Path(__file__).parent.parent / "rules").glob("*.nft"):
        text = path.read_text()
        assert set(re.findall(r"^\tset (\w+) \{", text, re.MULTILINE)) == set(sets_module._OURS)
        assert set(re.findall(r"^\tchain (\w+) \{", text, re.MULTILINE)) <= sets_module._CHAINS


@pytest.mark.parametrize("made_by", [None, "", "mine", "ssh"])
def test_t33_an_element_that_others_changed_is_put_right(gateway: Host, sets: Sets, made_by: str | None) -> None:
    """T33: deleted, or made permanent, with whatever comment."""
    door = a_door(timeout=1000.0)
    sets.use([door])
    now = time.time()
    sets.open(door, Grant("ssh", CLIENT, now + 500), now)
    element = "{ 10.99.0.2 . tcp . 22 }"
    gateway.nft(f"delete element inet logknock granted4 {element}")
    if made_by is not None:
        gateway.nft(f"add element inet logknock granted4 {element}")
        assert elements_without_end(gateway)
    assert sets.touch(Element(GRANTED[4], key(CLIENT, SSH)), made_by=made_by)
    assert sets.reconcile(now) == 1
    timeout, left, comment = elements(gateway, "granted4")["10.99.0.2 . tcp . 22"]
    assert timeout == 500
    assert left <= 500
    assert comment == "ssh"


def test_t33_an_element_of_a_grant_that_has_ended_goes_again(gateway: Host, sets: Sets) -> None:
    """T33: as out of a copy of the ruleset; what an administrator adds, without the comment, stays."""
    door = a_door()
    sets.use([door])
    gateway.nft(
        "add element inet logknock granted4 {"
        ' 10.99.0.2 . tcp . 22 timeout 1h comment "ssh", 10.99.0.3 . tcp . 22 timeout 1h comment "other" }'
    )
    assert sets.touch(Element(GRANTED[4], key(CLIENT, SSH)), made_by="ssh")
    assert not sets.touch(Element(GRANTED[4], key(bytes((10, 99, 0, 3)), SSH)), made_by="other")
    assert not sets.touch(Element(OWN, CLIENT), made_by="ssh"), "no set of that door"
    assert sets.reconcile(time.time()) == 0, "no door is put back"
    assert sets.settled
    assert set(elements(gateway, "granted4")) == {"10.99.0.3 . tcp . 22"}


def test_t33_a_sweep_finds_elements_of_grants_that_have_ended(gateway: Host, sets: Sets) -> None:
    """T33: among many, in parts, in all sets that doors open in, and in none that is missing."""
    door = a_door(sets=(OWN, SetName("ip", "own", "later")))
    sets.use([door])
    sets.open(door, grant(door), time.time())
    comments = [' comment "ssh"' if n % 100 == 7 else "" for n in range(2000)]
    many = (f"10.1.{n >> 8}.{n & 255} timeout 1h{comment}" for n, comment in enumerate(comments))
    gateway.nft(f"add element ip own plain {{ {', '.join(many)} }}")
    with gateway.inside():
        sweep = sets.sweep()
    parts = []
    while part := sweep.reconcile(time.time()):
        parts.append(part)
    assert sum(parts) >= 2002
    assert max(parts) < 1000
    while sets.reconcile(time.time()):
        pass
    there = elements(gateway, "plain", "ip own")
    assert len(there) == 1 + 2000 - 20
    assert not any(comment for name, (_, _, comment) in there.items() if name != "10.99.0.2")
    assert set(elements(gateway, "granted4")) == {"10.99.0.2 . tcp . 22"}


def elements_without_end(host: Host) -> bool:
    """Whether an element of granted4 has no timeout."""
    listed = json.loads(host.run("nft", "-j", "list", "set", "inet", "logknock", "granted4").stdout)
    elements = next(entry["set"] for entry in listed["nftables"] if "set" in entry)["elem"]
    return any("concat" in element or "timeout" not in element.get("elem", {}) for element in elements)


def test_a_set_of_services_needs_services(sets: Sets) -> None:
    with pytest.raises(FirewallError, match="door empty opens none"):
        sets.use([a_door("empty", opens=(), sets=(SetName("ip", "own", "services"),))])


def test_a_door_without_guard_leaves_our_sets_alone(gateway: Host, sets: Sets) -> None:
    gateway.nft("delete table inet logknock")
    door = a_door(sets=(SetName("ip", "own", "services"),), guard=False)
    sets.use([door])
    sets.open(door, grant(door), time.time())
    assert set(elements(gateway, "services", "ip own")) == {"10.99.0.2 . tcp . 22"}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.99.0.2", None),
        ("192.0.2.1", None),
        ("fd99::2", None),
        ("2001:db8::1", None),
        ("127.0.0.1", "loopback"),
        ("127.99.1.2", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("10.99.0.255", "broadcast"),
        ("10.99.0.1", "own addresses"),
        ("fd99::1", "own addresses"),
        ("::ffff:10.99.0.2", "in IPv6 form"),
    ],
)
def test_t37_who_is_never_granted(sets: Sets, address: str, reason: str | None) -> None:
    """T37: what the address itself says, and what the kernel's routing table says of it."""
    said = sets.refused(ipaddress.ip_address(address).packed)
    assert said is None if reason is None else said is not None and reason in said


def test_t37_the_anycast_address_of_a_router_is_its_own(gateway: Host, sets: Sets) -> None:
    """T37: RFC 4291, 2.6.1: the prefix itself is an address of every router."""
    anycast = ipaddress.ip_address("fd99::").packed
    assert sets.refused(anycast) is None
    gateway.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    try:
        assert "anycast" in (sets.refused(anycast) or "")
    finally:
        gateway.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")


PERMISSION_LOST = """
import os, sys, time
from logknock.errors import FirewallError
from logknock.firewall.sets import Sets
from logknock.knock import Door, Grant, Service
door = Door("ssh", (Service.parse("7000/tcp"),), opens=(Service.parse("22/tcp"),))
sets = Sets()
sets.use([door])
os.setuid(65534)
for src in (bytes((10, 99, 0, 2)), bytes((10, 99, 0, 3))):
    try:
        sets.open(door, Grant("ssh", src, time.time() + 30), time.time())
    except FirewallError as error:
        print(error.message, error.hint, sep="|")
"""


def test_a_permission_lost_is_said_each_time_and_outlived(gateway: Host, sets: Sets) -> None:
    said = gateway.python(PERMISSION_LOST).stdout.splitlines()
    assert said == ["set inet logknock granted4: Operation not permitted|CAP_NET_ADMIN is needed: run as root"] * 2
    assert elements(gateway, "granted4") == {}


def test_what_a_set_lacks_is_found_in_sets_of_intervals_too(gateway: Host, sets: Sets) -> None:
    gateway.nft("add element inet logknock watched { tcp . 7000, udp . 9000 }")
    gateway.nft("add element inet logknock guarded { tcp . 22, tcp . 6000-6010 }")
    asked = [Service.parse(text) for text in ("22/tcp", "7000/tcp", "7000/udp", "9000/udp", "6005/tcp", "6011/tcp")]
    assert [str(service) for service in sets.lacks(WATCHED, asked)] == ["22/tcp", "7000/udp", "6005/tcp", "6011/tcp"]
    assert [str(service) for service in sets.lacks(GUARDED, asked)] == ["7000/tcp", "7000/udp", "9000/udp", "6011/tcp"]
    assert sets.lacks(SetName("inet", "logknock", "nothing"), asked) == asked
