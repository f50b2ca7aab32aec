"""Who is a scanner, told as stories: words `time:source:port/protocol[:flags]`, and who is caught at which word."""

import gc
import ipaddress
import sys
import tracemalloc
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock import scan
from logknock.knock import Door, Matcher, Service
from logknock.packet import ACK, FIN, PROTOCOLS, PSH, SYN, TCP, UDP, URG
from logknock.scan import MAX_ONCE, MAX_PORTS, Caught, Scanners

FLAGS = {"S": SYN, "SA": SYN | ACK, "F": FIN, "FPU": FIN | PSH | URG, "-": 0, "A": ACK, "SF": SYN | FIN}
SOURCES = {"a": "198.51.100.1", "b": "198.51.100.2", "6": "2001:db8::3", "7": "2001:db8::ffff", "8": "2001:db8:0:1::3"}
KNOCKED = frozenset((Service.parse("7000/tcp"), Service.parse("8000/tcp"), Service.parse("22/tcp")))


def source(word: str) -> bytes:
    return ipaddress.ip_address(SOURCES.get(word, word)).packed


def nobody(src: bytes, proto: int, dport: int, flags: int) -> bool:
    return False


def none(sources: Sequence[bytes], proto: int, dports: Sequence[int], flags: memoryview) -> bool:
    return True


def scanners(ports: int = 3, within: float = 60.0, counts: Iterable[str] = ("syn",)) -> Scanners:
    made = Scanners(nobody, none)
    made.use(ports, within, frozenset(counts), KNOCKED)
    return made


def play(made: Scanners, story: str) -> str:
    """Who is caught, as `time:source`."""
    caught = []
    for word in story.split():
        time, src, service, *flags = word.split(":")
        port, _, proto = service.partition("/")
        made.at(1_000.0 + float(time))
        number = PROTOCOLS[proto or "tcp"]
        if made.see(source(src), number, int(port), FLAGS[flags[0] if flags else "S"] if number == TCP else 0):
            assert made.caught is not None
            assert made.caught.src == source(src)
            caught.append(f"{time}:{src}")
    return " ".join(caught)


@pytest.mark.parametrize(
    ("story", "caught"),
    [
        pytest.param("0:a:1 0:a:2 0:a:3", "0:a", id="so many distinct ports make a scanner"),
        pytest.param("0:a:1 0:a:2", "", id="fewer do not"),
        pytest.param("0:a:1 0:a:2 0:a:1 0:a:2 0:a:2", "", id="the same ports again are no more of them"),
        pytest.param("0:a:1 30:a:2 60:a:3", "60:a", id="within the time, its end included"),
        pytest.param("0:a:1 30:a:2 61:a:3", "", id="not over a longer time"),
        pytest.param("0:a:1 30:a:2 61:a:3 62:a:4", "62:a", id="the window slides: a stray packet before hides nothing"),
        pytest.param("0:a:1 30:a:2 59:a:1 61:a:3", "61:a", id="a port counts from the last time that it was tried"),
        pytest.param("0:a:1 0:b:2 0:a:3 0:b:4", "", id="sources are counted apart (T15)"),
        pytest.param("0:6:1 0:7:2 0:6:3", "0:6", id="IPv6 by /64"),
        pytest.param("0:6:1 0:8:2 0:6:3", "", id="another /64 is another source"),
        pytest.param("0:a:1 0:a:2 0:a:3 0:a:4 0:a:5 0:a:6", "0:a 0:a", id="who goes on is caught again"),
        pytest.param("0:a:1 0:a:2 0:a:3 0:a:1 0:a:2", "0:a", id="who was caught begins anew"),
        pytest.param(
            "0:a:7000 0:a:8000 0:a:22 0:a:8000 0:a:1 0:a:2", "", id="knock ports and guarded ones never count"
        ),
        pytest.param("0:a:1/udp 0:a:2/udp 0:a:3/udp", "", id="UDP does not count: its sources are forged for free"),
        pytest.param("0:a:1:F 0:a:2:FPU 0:a:3:- 0:a:4:A 0:a:5:SA", "", id="nor TCP without a SYN, or with its answer"),
        pytest.param("0:a:1:SA 0:a:2:SA 0:a:3:SA", "", id="answers to forged packets are no scan"),
        pytest.param("0:a:1:SF 0:a:2:S 0:a:3:S", "0:a", id="a SYN with other flags is one"),
    ],
)
def test_t6_stories(story: str, caught: str) -> None:
    """T6: three distinct ports within 60 s."""
    assert play(scanners(), story) == caught


@pytest.mark.parametrize(
    ("counts", "story", "caught"),
    [
        ("tcp", "0:a:1:F 0:a:2:FPU 0:a:3:-", "0:a"),
        ("tcp", "0:a:1/udp 0:a:2:F 0:a:3/udp 0:a:4:A", ""),
        ("udp", "0:a:1/udp 0:a:2/udp 0:a:3/udp", "0:a"),
        ("udp", "0:a:1 0:a:2 0:a:3 0:a:4:F", ""),
        ("syn udp", "0:a:1 0:a:1/udp 0:a:2/udp", "0:a"),
    ],
)
def test_what_counts_is_configured(counts: str, story: str, caught: str) -> None:
    assert play(scanners(counts=counts.split()), story) == caught


@pytest.mark.parametrize("ports", [1, 2, 64])
def test_any_number_of_ports_can_be_asked_for(ports: int) -> None:
    story = " ".join(f"0:a:{port}" for port in range(100, 100 + ports))
    assert play(scanners(ports), story) == "0:a"
    assert play(scanners(ports), story.rpartition(" ")[0]) == ""


def test_who_is_told_of_is_the_source_and_how_many_ports_it_was_seen_at() -> None:
    made = scanners()
    play(made, "0:6:1 1:7:2 2:6:3")
    assert made.caught == Caught(source("6"), 3)


def test_one_time_ports_count_no_more_once_they_are_known() -> None:
    """A client whose one-time file is ahead of ours knocks ports that no door waits for now."""
    known: set[tuple[int, int]] = set()
    made = Scanners(nobody, none, known)
    made.use(3, 60.0, frozenset({"syn"}), frozenset())
    known.update({(TCP, 1), (TCP, 2)})
    assert play(made, "0:a:1 0:a:2 0:a:3") == ""


def test_what_the_matcher_heeds_stays_heeded_and_a_scanner_is_heeded_once() -> None:
    matcher = Matcher([Door("ssh", (Service.parse("7000/tcp"), Service.parse("8000/tcp")))])
    made = Scanners(matcher.heeds, matcher.heeds_none)
    made.use(3, 60.0, frozenset({"syn"}), KNOCKED)
    assert made.heeds(source("a"), TCP, 7000, SYN)
    assert [made.heeds(source("a"), TCP, port, SYN) for port in (1, 2, 3, 4, 5)] == [False, False, True, False, False]
    assert not made.heeds(source("a"), UDP, 6, 0)


PACKETS = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from("ab67"), st.integers(1, 7), st.sampled_from(["tcp", "udp"])),
    max_size=60,
)


def naive(ports: int, within: float, packets: Sequence[tuple[float, str, int, str]]) -> list[int]:
    """The law as it is written: at which packets a source has so many distinct services within so long."""
    seen: dict[bytes, dict[tuple[str, int], float]] = {}
    caught = []
    for at, (time, src, port, proto) in enumerate(packets):
        services = seen.setdefault(source(src)[:8], {})
        services[proto, port] = time
        if sum(1 for last in services.values() if last >= time - within) >= ports:
            caught.append(at)
            services.clear()
    return caught


@given(ports=st.integers(1, 6), within=st.integers(1, 40), gaps=PACKETS, settle=st.booleans())
@settings(max_examples=300, deadline=None)
def test_it_is_the_law_as_written(ports: int, within: int, gaps: list[tuple[int, str, int, str]], settle: bool) -> None:
    """Whatever comes, and whether what is too old is forgotten in between or not."""
    made = scanners(ports, within, ("syn", "udp"))
    time, packets, caught = 1_000.0, [], []
    for at, (gap, src, port, proto) in enumerate(gaps):
        time += gap
        packets.append((time, src, port, proto))
        made.at(time)
        if settle:
            made.settle()
        if made.see(source(src), PROTOCOLS[proto], port, SYN if proto == "tcp" else 0):
            caught.append(at)
    assert caught == naive(ports, within, packets)


@given(
    ports=st.integers(1, 4),
    counts=st.sampled_from(["syn", "tcp", "udp", "syn udp"]),
    parts=st.lists(
        st.tuples(
            st.sampled_from([TCP, UDP]),
            st.sampled_from([4, 16]),
            st.lists(
                st.tuples(
                    st.integers(0, 12),
                    st.sampled_from([1, 2, 3, 4, 5, 7000, 22]),
                    st.sampled_from([SYN, FIN, SYN | ACK]),
                ),
                min_size=1,
                max_size=6,
            ),
        ),
        max_size=20,
    ),
)
@settings(max_examples=400, deadline=None)
def test_many_at_a_time_count_as_one_by_one(
    ports: int, counts: str, parts: list[tuple[int, int, list[tuple[int, int, int]]]]
) -> None:
    """What is quickly told of many packets at a time is what is told of each."""
    knocks = Matcher([Door("ssh", (Service.parse("7000/tcp"), Service.parse("8000/tcp")))])
    known = {(TCP, 5)}
    quick, slow = (Scanners(knocks.heeds, knocks.heeds_none, known) for _ in range(2))
    for made in (quick, slow):
        made.use(ports, 3.0, frozenset(counts.split()), KNOCKED)
    for time, (proto, size, packets) in enumerate(parts):
        sources = tuple(bytes((number,)) * size for number, _, _ in packets)
        dports, flags = tuple(port for _, port, _ in packets), bytes(flag for _, _, flag in packets)
        for made in (quick, slow):
            made.at(1_000.0 + time)
            made.settle()
        one_by_one = [slow.heeds(*each) for each in zip(sources, [proto] * len(packets), dports, flags, strict=True)]
        if quick.heeds_none(sources, proto, dports, memoryview(flags)):
            assert not any(one_by_one)
        else:
            each = zip(sources, [proto] * len(packets), dports, flags, strict=True)
            assert [quick.heeds(*packet) for packet in each] == one_by_one
        assert (quick._young, quick._old, quick._several) == (slow._young, slow._old, slow._several)


@pytest.mark.parametrize(("ports", "each"), [(10, 1), (10, 9), (64, 63), (2, 1)])
def test_t13_a_flood_of_sources_stays_within_its_memory(ports: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """T13: forged sources, each at as many ports as leave it unremarkable. (With a hundredth of the bounds.)"""
    monkeypatch.setattr(scan, "MAX_ONCE", MAX_ONCE // 100)
    monkeypatch.setattr(scan, "MAX_PORTS", MAX_PORTS // 100)
    made = scanners(ports)
    made.at(1_000.0)
    for number in range(3 * MAX_ONCE // 100):
        for port in range(1, each + 1):
            assert not made.see(number.to_bytes(4, "big"), TCP, port, SYN)
    assert made.sources <= MAX_ONCE // 100 + MAX_PORTS // 100 // ports + 1


def test_t13_a_flood_that_is_read_in_bulk_stays_within_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """T13."""
    monkeypatch.setattr(scan, "MAX_ONCE", 1_024)
    made = scanners()
    made.at(1_000.0)
    for at in range(0, 10_240, 128):
        sources = tuple(number.to_bytes(4, "big") for number in range(at, at + 128))
        assert made.heeds_none(sources, TCP, (1,) * 128, memoryview(bytes((SYN,)) * 128))
        assert made.sources <= 1_024 + 128
    assert made.sources > 512


def test_t13_bounds_are_what_the_documentation_says_in_bytes() -> None:
    """T13: 50 MB at worst."""
    made = scanners(10)
    made.at(1_000.0)
    gc.collect()
    tracemalloc.start()
    for number in range(1, MAX_PORTS // 10 + 1):
        src = number.to_bytes(4, "big")
        for port in range(1_000, 1_009):
            made.see(bytes(bytearray(src)), TCP, port, SYN)
    for number in range(MAX_ONCE):
        made.see((number + (1 << 31)).to_bytes(4, "big"), TCP, 1_000 + number % 50_000, SYN)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 50e6, f"{size / 1e6:.0f} MB, {made.sources} sources, Python {sys.version}"


def test_a_flood_of_sources_at_one_port_does_not_hide_who_is_at_several() -> None:
    """What anybody can cause with one packet does not push out what took more."""
    made = scanners()
    assert play(made, "0:a:1 0:a:2") == ""
    for number in range(2 * MAX_ONCE):
        made.see(number.to_bytes(4, "big"), TCP, 1, SYN)
    assert play(made, "0:a:3") == "0:a"


def test_what_is_not_too_old_yet_is_kept() -> None:
    made = scanners()
    play(made, "0:a:1 5:a:2 5:b:1")
    made.at(1_061.0)
    made.settle()
    assert play(made, "61:a:3 64:a:4 64:b:2 64:b:3") == "64:a 64:b"


def test_what_is_too_old_to_count_is_forgotten() -> None:
    made = scanners()
    play(made, "0:a:1 0:a:2 0:b:1")
    made.settle()
    assert made.sources == 2
    for later in (1_061.0, 1_200.0):
        made.at(later)
        made.settle()
    assert made.sources == 0
