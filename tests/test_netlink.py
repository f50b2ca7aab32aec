"""Netlink's envelope, and NFLOG's messages in it: what is whole is read, what is not is nothing."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock import netlink
from logknock.knock import Door, Matcher, Service
from logknock.netlink import attribute, attributes, message, messages, nested, refusal
from logknock.packet import SYN, TCP, UDP, Carried, Packet
from logknock.sources.nflog import COPY_RANGE, Decoder, Mail

from .test_packet import TCP_SYN, UDP_ONE, V4, V6, extension, ipv4, ipv6


def everything(src: bytes, proto: int, dport: int, flags: int) -> bool:
    return True


def record(
    payload: bytes,
    number: int | None = 0,
    stamp: tuple[int, int] | None = (100, 500_000),
    mac: bytes = b"\2" * 8,
) -> bytes:
    """One NFLOG message as the kernel lays it out (order and padding as seen from 6.18)."""
    parts = [
        attribute(1, b"\x08\x00\x00\x00"),
        attribute(10, b"\0"),
        attribute(4, b"\0\0\0\2"),
        attribute(8, mac),
    ]
    if stamp is not None:
        parts.append(attribute(3, struct.pack("!QQ", *stamp)))
    if number is not None:
        parts.append(attribute(12, struct.pack("!I", number)))
    parts.append(attribute(9, payload))
    return message(0x400, 0, 0, bytes((2, 0, 0, 5)) + b"".join(parts))


DONE = message(netlink.NLMSG_DONE, 2, 0, bytes(4))


def decode(decoder: Decoder, data: bytes) -> list[Packet]:
    packets: list[Packet] = []
    decoder.decode(memoryview(data), 7.0, packets.append)
    return packets


def test_golden_bytes() -> None:
    """linux/netlink.h: lengths count the header, padding does not count."""
    assert attribute(2, b"abc").hex() == "07000200" + "61626300"
    assert nested(1, attribute(2, b"\1")).hex() == "0c000180" + "05000200" + "01000000"
    assert message(0x10, 5, 7, b"\1\2\3\4").hex() == "14000000" + "1000" + "0500" + "07000000" + "00000000" + "01020304"


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=20)), unique_by=lambda pair: pair[0]))
def test_attributes_read_back_as_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in pairs)
    assert {kind: bytes(value) for kind, value in attributes(memoryview(data)).items()} == dict(pairs)


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_and_attributes_or_nothing(data: bytes) -> None:
    """T26."""
    for found in messages(memoryview(data)):
        attributes(found.body)
        refusal(found)
    attributes(memoryview(data))


def test_a_refusal_has_the_kernels_own_explanation() -> None:
    quoted = netlink.HEADER.pack(16, 0xA0C, 0, 9, 0)
    body = struct.pack("=i", -2) + quoted + attribute(1, b"set is gone\0")
    capped_with_words = netlink.NLM_F_CAPPED | netlink.NLM_F_ACK_TLVS
    (answer,) = messages(memoryview(message(netlink.NLMSG_ERROR, capped_with_words, 9, body)))
    error = refusal(answer)
    assert error is not None
    assert str(error.strerror) == "No such file or directory (set is gone)"
    assert error.errno == 2


Layout = tuple[str, Callable[[int], bytes], Callable[[int], Packet]]
LAYOUTS: list[Layout] = [
    (
        "tcp4",
        lambda n: ipv4(struct.pack("!H", n) + TCP_SYN[2:], 6),
        lambda n: Packet(0, *V4, TCP, n, 7000, SYN),
    ),
    ("udp4", lambda n: ipv4(struct.pack("!H", n) + UDP_ONE[2:], 17), lambda n: Packet(0, *V4, UDP, n, 9000, 0)),
    ("tcp6", lambda n: ipv6(struct.pack("!H", n) + TCP_SYN[2:], 6), lambda n: Packet(0, *V6, TCP, n, 7000, SYN)),
    ("udp6", lambda n: ipv6(struct.pack("!H", n) + UDP_ONE[2:], 17), lambda n: Packet(0, *V6, UDP, n, 9000, 0)),
    (
        "tcp6 with extensions",
        lambda n: ipv6(extension(6) + struct.pack("!H", n) + TCP_SYN[2:], 0),
        lambda n: Packet(0, *V6, TCP, n, 7000, SYN),
    ),
    (
        "tcp4 with don't-fragment",
        lambda n: ipv4(struct.pack("!H", n) + TCP_SYN[2:], 6, fragment=0x4000),
        lambda n: Packet(0, *V4, TCP, n, 7000, SYN),
    ),
    (
        "tcp4 with options",
        lambda n: ipv4(struct.pack("!H", n) + TCP_SYN[2:], 6, options=bytes(8)),
        lambda n: Packet(0, *V4, TCP, n, 7000, SYN),
    ),
]


@pytest.mark.parametrize(("make", "expect"), [pytest.param(*rest, id=name) for name, *rest in LAYOUTS])
@pytest.mark.parametrize("stamp", [(100, 500_000), None], ids=["stamped", "unstamped"])
def test_a_batch_of_one_shape(
    make: Callable[[int], bytes], expect: Callable[[int], Packet], stamp: tuple[int, int] | None
) -> None:
    """Bulk and single decoding say the same: the first message is walked, the others are unpacked."""
    data = b"".join(record(make(number), number, stamp) for number in range(50)) + DONE
    decoder = Decoder(everything)
    time = 100.5 if stamp else 7.0
    assert decode(decoder, data) == [expect(number)._replace(time=time) for number in range(50)]
    assert (decoder.records, decoder.lost, decoder.ignored) == (50, 0, 0)


@given(st.lists(st.tuples(st.sampled_from(LAYOUTS), st.booleans(), st.sampled_from([b"\2" * 8, b"\3" * 8]))))
def test_shapes_may_mix(
    chosen: list[tuple[tuple[str, Callable[[int], bytes], Callable[[int], Packet]], bool, bytes]],
) -> None:
    """Whatever the order of shapes, each message is read as if it came alone."""
    data, expected = b"", []
    for number, ((_, make, expect), stamped, mac) in enumerate(chosen):
        data += record(make(number), number, (100, 500_000) if stamped else None, mac)
        expected.append(expect(number)._replace(time=100.5 if stamped else 7.0))
    assert decode(Decoder(everything), data) == expected


def test_only_what_is_heeded_becomes_a_packet() -> None:
    data = b"".join(record(LAYOUTS[0][1](number), number) for number in range(10))
    asked = []

    def heeds(src: bytes, proto: int, dport: int, flags: int) -> bool:
        asked.append((src, proto, dport))
        return len(asked) % 2 == 0

    decoder = Decoder(heeds)
    assert [packet.sport for packet in decode(decoder, data)] == [1, 3, 5, 7, 9]
    assert asked == [(V4[0], TCP, 7000)] * 10
    assert decoder.records == 10


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        pytest.param([0, 1, 2, 3], 0, id="none"),
        pytest.param([5, 6], 0, id="the first number is whatever it is"),
        pytest.param([0, 1, 5, 6], 3, id="a gap"),
        pytest.param([0, 4, 5, 9], 6, id="two gaps"),
        pytest.param([0xFFFFFFFE, 0xFFFFFFFF, 0, 1], 0, id="the number begins anew"),
        pytest.param([0xFFFFFFFE, 2], 3, id="a gap where it does"),
        pytest.param([7, 3, 4], 0, id="a number from before is no gap"),
    ],
)
def test_t30_lost_records_are_counted(numbers: list[int], lost: int) -> None:
    """T30: by the gap in NFLOG's own numbers, in bulk decoding and in single."""
    data = b"".join(record(ipv4(TCP_SYN, 6), number) for number in numbers)
    bulk, single = Decoder(everything), Decoder(everything)
    decode(bulk, data)
    for one in numbers:
        decode(single, record(ipv4(TCP_SYN, 6), one))
    assert (bulk.lost, single.lost) == (lost, lost)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_from_the_socket_are_packets_or_none(data: bytes) -> None:
    """T26."""
    decode(Decoder(everything), data)


@given(st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=60)), max_size=8), st.data())
@settings(max_examples=300)
def test_any_attributes_are_a_packet_or_none(parts: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """T26: also after honest messages have taught their shapes, with bytes of those changed, and cut anywhere."""
    odd = message(0x400, 0, 0, bytes(4) + b"".join(attribute(kind, payload) for kind, payload in parts))
    honest = bytearray(record(ipv4(TCP_SYN, 6), 1) + record(ipv6(UDP_ONE, 17), 2))
    at = data.draw(st.integers(0, len(honest) - 1))
    honest[at] = data.draw(st.integers(0, 255))
    stream = record(ipv4(TCP_SYN, 6), 0) + record(ipv6(UDP_ONE, 17), 1) + bytes(honest) + odd
    decode(Decoder(everything), stream[: data.draw(st.integers(0, len(stream)))])


def test_fragments_and_short_packets_are_ignored_and_counted() -> None:
    """T26."""
    decoder = Decoder(everything)
    short = [ipv4(TCP_SYN, 6)[:30], ipv4(TCP_SYN, 6, fragment=0x2000), b"", ipv4(TCP_SYN, 1)]
    assert decode(decoder, b"".join(record(payload, number) for number, payload in enumerate(short))) == []
    assert decoder.ignored == 4


def test_what_is_heeded_may_change_from_packet_to_packet() -> None:
    """Knocks that come in one delivery are all heard: the first of them makes the others matter."""
    live: set[bytes] = set()
    packets: list[Packet] = []

    def receive(packet: Packet) -> None:
        live.add(packet.src)
        packets.append(packet)

    def heeds(src: bytes, proto: int, dport: int, flags: int) -> bool:
        return dport == 7000 or src in live

    payloads = [ipv4(UDP_ONE, 17), ipv4(TCP_SYN, 6), ipv4(UDP_ONE, 17), ipv4(UDP_ONE, 17)]
    data = b"".join(record(payload, number) for number, payload in enumerate(payloads * 2))
    Decoder(heeds).decode(memoryview(data), 7.0, receive)
    assert [packet.dport for packet in packets] == [7000, 9000, 9000, 9000, 7000, 9000, 9000]


DOOR = Door("ssh", tuple(Service(TCP, port) for port in (7000, 8000, 9000)), opens=(Service(TCP, 22),))


def packet(version: int, proto: int, source: int, sport: int, dport: int) -> bytes:
    """An IP packet whose source's last byte is this one."""
    data = struct.pack("!HH", sport, dport) + {TCP: TCP_SYN, UDP: UDP_ONE}[proto][4:]
    made = bytearray((ipv4 if version == 4 else ipv6)(data, proto))
    made[15 if version == 4 else 23] = source
    return bytes(made)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([4, 4, 4, 6]),
            st.sampled_from([TCP, TCP, TCP, UDP]),
            st.sampled_from([1, 1, 1, 2]),  # sources
            st.sampled_from([7000, 8000, 9000, 5, 5, 5]),
            st.sampled_from([1, 1, 1, 2]),  # from each record's number to the next
            st.sampled_from([1, 2, 7, 40]),  # how many there are
        ),
        max_size=20,
    )
)
def test_what_is_passed_over_in_bulk_could_have_changed_nothing(
    runs: list[tuple[int, int, int, int, int, int]],
) -> None:
    """Whether or not many are passed over at a time: the same packets matter, and the counts are the same."""
    data, number = b"", 0
    for version, proto, sources, dport, step, many in runs:
        for each in range(many):
            data += record(packet(version, proto, each % sources, number, dport), number)
            number += step
    ends = [received(data, in_bulk) for in_bulk in (True, False)]
    assert ends[0] == ends[1]


def received(data: bytes, in_bulk: bool) -> tuple[list[Packet], int, int, int]:
    """The packets that a matcher was given of a delivery, and what was counted."""
    matcher, packets = Matcher([DOOR], max_knockers=2), []
    decoder = Decoder(matcher.heeds, heeds_none=matcher.heeds_none if in_bulk else None)

    def receive(sent: Packet) -> None:
        packets.append(sent)
        matcher.receive(sent)

    decoder.decode(memoryview(data), 7.0, receive)
    return packets, decoder.records, decoder.lost, decoder.ignored


def test_of_a_scan_few_are_asked_about_one_by_one() -> None:
    asked: list[int] = []

    def heeds(src: bytes, proto: int, dport: int, flags: int) -> bool:
        asked.append(dport)
        return dport == 7000

    def heeds_none(sources: tuple[bytes, ...], proto: int, dports: tuple[int, ...], flags: memoryview) -> bool:
        assert (bytes(flags), len(sources)) == (bytes((SYN,)) * len(dports), len(dports))
        return 7000 not in dports

    decoder = Decoder(heeds, heeds_none=heeds_none)
    ports = [*range(1000, 1700), 7000, *range(2000, 2300)]
    data = b"".join(record(packet(4, TCP, 1, 1, port), number) for number, port in enumerate(ports))
    assert [found.dport for found in decode(decoder, data)] == [7000]
    assert len(asked) < 300
    assert (decoder.records, decoder.lost) == (1001, 0)


def test_shapes_that_an_attacker_makes_up_are_bounded() -> None:
    """A neighbour's hardware address is in the message, and his to choose."""
    decoder = Decoder(everything)
    for number in range(1000):
        decode(decoder, record(ipv4(TCP_SYN, 6), number, mac=number.to_bytes(8, "big")))
    assert decoder.records == 1000
    assert len(decoder._shapes) <= 256


# ---- what packets carry


def letter(number: int, length: int = 300, port: int = 62201) -> bytes:
    return ipv4(struct.pack("!HHHH", number, port, 8 + length, 0) + number.to_bytes(2, "big") * (length // 2), 17)


def post(decoder: Decoder, mail: list[Carried]) -> Decoder:
    """The decoder, with mail for one port that is put into the list."""
    return decoder.successor(everything, mail=Mail(lambda proto, dport: (proto, dport) == (UDP, 62201), mail.append))


def test_mail_is_taken_from_among_knocks_and_is_none() -> None:
    """In any order, stamped by the kernel, and counted like all records; knocks go on being unpacked in bulk."""
    mail: list[Carried] = []
    decoder = post(Decoder(everything), mail)
    kinds = [lambda n: letter(n), lambda n: letter(n, port=9000), lambda n: ipv4(TCP_SYN, 6)]
    order = [0, 2, 2, 0, 0, 1, 1, 2, 0, 2, 1, 0]
    packets = decode(decoder, b"".join(record(kinds[kind](number), number) for number, kind in enumerate(order)))
    assert [carried.packet.sport for carried in mail] == [n for n, kind in enumerate(order) if kind == 0]
    assert all(c.payload == c.packet.sport.to_bytes(2, "big") * 150 and c.packet.time == 100.5 for c in mail)
    assert [packet.dport for packet in packets] == [{1: 9000, 2: 7000}[kind] for kind in order if kind]
    assert (decoder.records, decoder.lost, decoder.ignored) == (len(order), 0, 0)


def test_what_is_no_longer_than_headers_is_never_mail() -> None:
    """A knock on an SPA port: it costs what any knock costs."""
    mail: list[Carried] = []
    decoder = post(Decoder(everything), mail)
    short = COPY_RANGE - 28
    assert len(decode(decoder, b"".join(record(letter(number, short), number) for number in range(9)))) == 9
    assert mail == []
    assert decode(decoder, record(letter(9, short + 2), 9)) == []
    assert len(mail) == 1


def test_where_nobody_wants_mail_all_is_unpacked_in_bulk() -> None:
    decoder = Decoder(everything)
    assert len(decode(decoder, b"".join(record(letter(number), number) for number in range(9)))) == 9
    assert len(decoder._shapes) == 1


def test_mail_that_begins_while_such_records_wait_is_not_unpacked_by_a_shape_from_before() -> None:
    mail: list[Carried] = []
    before = Decoder(everything)
    assert len(decode(before, record(letter(0), 0) + record(letter(1), 1))) == 2
    after = post(before, mail)
    assert decode(after, record(letter(2), 2) + record(letter(3, port=9000), 3)) == [
        Packet(100.5, *V4, UDP, 3, 9000, 0)
    ]
    assert [carried.packet.sport for carried in mail] == [2]
    assert (after.records, after.lost) == (4, 0)


def test_t10_a_letter_in_two_records_of_one_stamp_is_one() -> None:
    """T10: two rules logged it. Sent again it has another stamp, and is told of: perhaps somebody replays it."""
    mail: list[Carried] = []
    decoder = post(Decoder(everything), mail)
    stamps = [(100, 1), (100, 1), (100, 2), (100, 1), (100, 2)]
    assert decode(decoder, b"".join(record(letter(7), number, stamp) for number, stamp in enumerate(stamps))) == []
    assert [carried.packet.time for carried in mail] == [100.000001, 100.000002]
    assert decoder.records == 5


def test_t30_losses_are_counted_where_there_is_mail_too() -> None:
    """T30."""
    decoder = post(Decoder(everything), [])
    decode(decoder, b"".join(record(letter(number), number) for number in (0, 1, 5, 6, 8)))
    assert (decoder.records, decoder.lost) == (5, 4)


def test_t25_mail_that_goes_elsewhere_is_ignored() -> None:
    """T25: what is routed on is nobody's."""
    mail: list[Carried] = []
    wants = Mail(lambda proto, dport: True, mail.append)
    decoder = Decoder(everything, frozenset({"forward"}), mail=wants)
    assert decode(decoder, record(letter(0), 0)) == []
    assert (mail, decoder.ignored) == ([], 1)


@given(st.binary(min_size=COPY_RANGE, max_size=400), st.sampled_from([1, 6, 17, 58, 132]), st.data())
def test_any_long_record_is_mail_or_a_packet_or_ignored(payload: bytes, proto: int, data: st.DataObject) -> None:
    """T26: whatever is in it, and wherever it is cut."""
    mail: list[Carried] = []
    decoder = Decoder(everything, mail=Mail(lambda proto, dport: True, mail.append))
    whole = ipv4(payload, proto)
    packets = decode(decoder, record(whole[: data.draw(st.integers(0, len(whole)))], 1))
    assert len(packets) + len(mail) + decoder.ignored == 1
