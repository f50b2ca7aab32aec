"""What others do to the ruleset, by the kernel's notifications: the bytes, and what comes of them."""

import socket
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock import netlink
from logknock.errors import NO_PERMISSION, FirewallError
from logknock.firewall import watch as watch_module
from logknock.firewall.watch import Change, Decoder, Touched, Watch
from logknock.knock import SetName

from .netns import Host, pair

GRANTED4 = SetName("inet", "logknock", "granted4")
MINE = SetName("inet", "mine", "allowed")
NFT = 17_344  # the netlink port of an nft whose notifications these are (kernel 6.18, nft 1.0.6)

# nft add element inet logknock granted4 { 10.0.0.1 . tcp . 22 timeout 20s comment "ssh" }
ADDED = bytes.fromhex(
    "740000000c0a000400000000c043000001000003" "0d0001006c6f676b6e6f636b00000000" "0d0002006772616e7465643400000000"
    "400003003c00010014000100100001000a000001060000000016000" "00c0004000000000000004e20" "0c0005000000000000004e20"
    "0a0006000004737368000000"
)  # fmt: skip
# nft delete element inet logknock granted4 { 10.0.0.1 . tcp . 22 }
DELETED = bytes.fromhex(
    "5c0000000e0a000000000000c043000001000005" "0d0001006c6f676b6e6f636b00000000" "0d0002006772616e7465643400000000"
    "280003002400010014000100100001000a000001060000000016" "00000a0006000004737368000000"
)  # fmt: skip
# nft flush ruleset, where a table inet logknock has a rule, a set and a chain
FLUSHED = bytes.fromhex(
    "70000000080a000001000000c0430000010000060d0001006c6f676b6e6f636b000000000a00020067756172640000000c000300000000000000"
    "000334000400300001000e000100696d6d6564696174650000001c0002000800010000000000100002000c000200080001000000000140000000"
    "0b0a000001000000c0430000010000060d0001006c6f676b6e6f636b000000000d0002006772616e74656434000000000c001000000000000000"
    "00023c000000050a000001000000c0430000010000060d0001006c6f676b6e6f636b000000000a00030067756172640000000c00020000000000"
    "0000000138000000020a000001000000c0430000010000060d0001006c6f676b6e6f636b0000000008000300000000000c000400000000000000"
    "0001"
)
# The end of each of these: generation 6, process 17344, "nft"
DONE = bytes.fromhex(
    "2c0000000f0a000001000000c043000000000006" "0800010000000006" "08000200000043c0" "080003006e667400"
)  # fmt: skip
KEY = bytes((10, 0, 0, 1, 6, 0, 0, 0, 0, 22, 0, 0))


def changes(*deliveries: bytes, own: int = 1, names: tuple[SetName, ...] = (GRANTED4,)) -> list[Change]:
    decoder = Decoder(own)
    decoder.look_for(names)
    return [change for data in deliveries for change in decoder.decode(bytearray(data + b"\xff" * 99), len(data))]


def test_golden_element() -> None:
    """What nft's own changes look like, and who made them."""
    (change,) = changes(ADDED, DONE)
    assert change == Change(
        who="nft (process 17344)", program="nft", elements=(Touched(GRANTED4, KEY, deleted=False, comment="ssh"),)
    )
    (change,) = changes(DELETED, DONE)
    assert change.elements == (Touched(GRANTED4, KEY, deleted=True, comment="ssh"),)
    assert change.emptied == (GRANTED4,)


def test_golden_flush() -> None:
    (change,) = changes(FLUSHED, DONE)
    assert change.gone == ("table inet logknock",), "what was in it went with it"
    assert change.built
    assert change.sets == {GRANTED4}
    assert change.who == "nft (process 17344)"


def test_what_is_our_own_is_no_news() -> None:
    assert changes(ADDED, FLUSHED, DONE, own=NFT) == []


@pytest.mark.parametrize("port", [NFT, 99], ids=["by its port", "by its process, where somebody else has that port"])
def test_what_is_loaded_for_us_is_no_news_once(port: int) -> None:
    decoder = Decoder(1)
    decoder.look_for([GRANTED4])
    decoder.loader = NFT
    found: list[Change] = []
    for data in (FLUSHED, DONE, FLUSHED, DONE):
        data = data[:12] + port.to_bytes(4, sys.byteorder) + data[16:]
        found += decoder.decode(bytearray(data), len(data))
    assert len(found) == 1, "what comes after it is news"


def test_nothing_is_told_before_a_transaction_is_whole() -> None:
    assert changes(ADDED, DELETED) == []
    assert len(changes(ADDED, DELETED, DONE, DONE)) == 1


def test_a_table_that_a_transaction_makes_again_was_deleted_all_the_same() -> None:
    """Its rules may be others now, and its elements are gone."""
    again = FLUSHED.replace(b"\x02\x0a\x00\x00\x01", b"\x00\x0a\x00\x00\x01")  # NFT_MSG_DELTABLE to NEWTABLE
    again = again.replace(b"\x0b\x0a\x00\x00\x01", b"\x09\x0a\x00\x00\x01")
    again = again.replace(b"\x05\x0a\x00\x00\x01", b"\x03\x0a\x00\x00\x01")
    again = again.replace(b"\x08\x0a\x00\x00\x01", b"\x06\x0a\x00\x00\x01")
    (change,) = changes(FLUSHED, again, DONE)
    assert change.gone == ("table inet logknock",)
    assert change.built
    assert change.harmed
    assert change.sets == {GRANTED4}


def test_what_was_lost_may_have_been_anything() -> None:
    decoder = Decoder(1)
    decoder.look_for([GRANTED4])
    assert list(decoder.decode(bytearray(ADDED), len(ADDED))) == []
    assert decoder.lose() == Change(built=True, lost=True)
    assert list(decoder.decode(bytearray(DONE), len(DONE))) == [], "the end of what was lost"


@pytest.mark.parametrize("data", [ADDED, DELETED, FLUSHED, DONE], ids=["added", "deleted", "flushed", "done"])
def test_a_delivery_cut_anywhere_is_harmless(data: bytes) -> None:
    for length in range(len(data)):
        changes(data[:length], DONE[:length], DONE)


@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.tuples(st.sampled_from([ADDED, DELETED, FLUSHED, DONE]), st.integers(0, 400), st.binary(max_size=8)).map(
                lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
            ),
        ),
        max_size=4,
    )
)
def test_no_bytes_raise_anything(data: list[bytes]) -> None:
    """T26: cut, overwritten, or made up."""
    for change in changes(*data, DONE):
        assert all(text.isprintable() for text in (*change.gone, change.who))


def test_a_transaction_of_many_elements_is_not_remembered_one_by_one() -> None:
    decoder = Decoder(1)
    decoder.look_for([GRANTED4])
    for _ in range(watch_module.MAX_ELEMENTS + 10):
        assert list(decoder.decode(bytearray(DELETED), len(DELETED))) == []
    (change,) = decoder.decode(bytearray(DONE), len(DONE))
    assert change.elements == ()
    assert change.sets == {GRANTED4}


# ---- the kernel


@pytest.fixture(scope="module")
def gateway() -> Iterator[Host]:
    with pair() as (gateway, _):
        yield gateway


@pytest.fixture
def watch(gateway: Host) -> Iterator[Watch]:
    gateway.nft(
        "flush ruleset\n"
        "table inet logknock { set granted4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }; }\n"
        "table inet mine { set allowed { type ipv4_addr; flags timeout; }; set black { type ipv4_addr; }; }\n"
        "table ip mine { set allowed { type ipv4_addr; flags timeout; }; }"
    )
    with gateway.inside():
        found = Watch(1)
    found.look_for([MINE])
    yield found
    found.close()


def read_all(watch: Watch) -> list[Change]:
    """All that waits: the kernel has delivered before nft returns."""
    found = []
    while True:
        before = watch.deliveries
        found += watch.read()
        if watch.deliveries == before:
            return found


@pytest.mark.parametrize(
    ("script", "gone", "sets"),
    [
        pytest.param("flush ruleset", {"table inet logknock", f"set {MINE}"}, {GRANTED4, MINE}, id="a flush of all"),
        pytest.param("delete table inet mine", {f"set {MINE}"}, {MINE}, id="a door's set goes with its table"),
        pytest.param("delete set inet mine allowed", {f"set {MINE}"}, {MINE}, id="a door's set"),
        pytest.param("delete table ip mine", None, None, id="a set of that name in another family's table"),
        pytest.param("add element inet mine black { 10.0.0.1 }", None, None, id="another set in that table"),
        pytest.param("add table inet other; delete table inet other", None, None, id="another table"),
        pytest.param("add table ip logknock; delete table ip logknock", None, None, id="our name in another family"),
        pytest.param("add table inet logknock-2 { comment \"logknock\"; }", None, None, id="a table named after ours"),
    ],
)  # fmt: skip
def test_what_nft_does_is_heard_if_it_matters(
    gateway: Host, watch: Watch, script: str, gone: set[str] | None, sets: set[SetName] | None
) -> None:
    gateway.nft(script)
    found = read_all(watch)
    if gone is None:
        assert found == []
        return
    (change,) = found
    assert (set(change.gone), set(change.sets)) == (gone, sets)
    assert change.program == "nft"


OUR_RULES = """
table inet logknock {
	set guarded { type inet_proto . inet_service; flags interval; elements = { tcp . 22 }; }
	chain guard { meta l4proto . th dport @guarded drop; }
}
table inet logknock-2 { set allowed { type ipv4_addr; flags timeout; }; }
"""


@pytest.mark.parametrize(
    ("script", "harmed"),
    [
        pytest.param("flush set inet logknock guarded", True, id="elements that were loaded"),
        pytest.param(
            "flush set inet logknock guarded\nadd element inet logknock guarded { tcp . 25 }",
            True,
            id="others for them",
        ),
        pytest.param("flush chain inet logknock guard", True, id="rules"),
        pytest.param(
            "flush chain inet logknock guard\nadd rule inet logknock guard counter", True, id="others for rules"
        ),
        pytest.param("add table inet logknock { flags dormant; }", True, id="a table that sleeps"),
        pytest.param("add element inet logknock guarded { tcp . 25 }", False, id="one element more"),
        pytest.param("add rule inet logknock guard counter", False, id="one rule more"),
        pytest.param("delete set inet logknock-2 allowed", False, id="a table that is named after ours"),
    ],
)
def test_what_takes_from_our_rules_is_known(gateway: Host, watch: Watch, script: str, harmed: bool) -> None:
    gateway.nft(OUR_RULES)
    watch.look_for([SetName("inet", "logknock-2", "allowed")])
    read_all(watch)
    gateway.nft(script)
    (change,) = read_all(watch)
    assert change.harmed == harmed


def test_a_set_that_is_flushed_tells_its_elements(gateway: Host, watch: Watch) -> None:
    gateway.nft("add element inet mine allowed { 10.0.0.1 timeout 1h, 10.0.0.2 timeout 1h }")
    (made,) = read_all(watch)
    assert {(it.key, it.deleted) for it in made.elements} == {(bytes((10, 0, 0, n)), False) for n in (1, 2)}
    gateway.nft("flush set inet mine allowed")
    (change,) = read_all(watch)
    assert {(it.key, it.deleted) for it in change.elements} == {(bytes((10, 0, 0, n)), True) for n in (1, 2)}
    assert change.emptied == (MINE,)


def test_an_element_that_becomes_permanent_is_told(gateway: Host, watch: Watch) -> None:
    """T33."""
    gateway.nft("add element inet mine allowed { 10.0.0.1 timeout 1h }")
    read_all(watch)
    gateway.nft("delete element inet mine allowed { 10.0.0.1 }\nadd element inet mine allowed { 10.0.0.1 }")
    (change,) = read_all(watch)
    assert [it.deleted for it in change.elements] == [True, False]
    assert change.emptied == ()


def test_a_load_of_many_elements_elsewhere_is_read_in_parts_and_told_of_nothing(gateway: Host, watch: Watch) -> None:
    gateway.nft(many_elements("inet mine black", 30_000))
    assert read_all(watch) == []
    assert watch.deliveries > 100


def test_notifications_that_are_lost_are_told_once(gateway: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOBUFS, by a receive buffer that is too small; and it goes on listening."""
    monkeypatch.setattr(watch_module, "RECEIVE_BUFFER", 4_096)
    gateway.nft("flush ruleset\ntable inet mine { set black { type ipv4_addr; }; }")
    with gateway.inside():
        watch = Watch(1)
    try:
        gateway.nft(many_elements("inet mine black", 2_000))
        assert [change.lost for change in read_all(watch)] == [True]
        gateway.nft("table inet logknock { }")
        assert [change.built for change in read_all(watch)] == [True]
    finally:
        watch.close()


def test_only_the_kernels_word_counts(gateway: Host, watch: Watch) -> None:
    """Whoever may send to a netlink group could say anything."""
    with gateway.inside(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as liar:
        liar.bind((0, 0))
        port = watch._socket.raw.getsockname()[0]
        for data in (FLUSHED, DONE):
            liar.sendto(data, (port, 0))
    assert read_all(watch) == []
    assert watch.deliveries == 2


NOBODY = """
import os
from logknock.errors import FirewallError
from logknock.firewall.watch import Watch
os.setuid(65534)
try:
    Watch(1)
except FirewallError as error:
    print(error.exit_code, error.words())
"""


def test_who_may_not_listen_is_told_why(gateway: Host) -> None:
    said = gateway.python(NOBODY).stdout
    assert said.startswith(f"{NO_PERMISSION} nftables' notifications: Operation not permitted (hint: CAP_NET_ADMIN")
    assert issubclass(FirewallError, Exception)


def many_elements(name: str, count: int) -> str:
    """A script that adds so many addresses to a set."""
    addresses = (f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(count))
    return f"add element {name} {{ {', '.join(addresses)} }}"
