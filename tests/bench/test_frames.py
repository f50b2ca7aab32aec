"""The benchmark's packets are what they claim to be: a flood of damaged ones would measure something else."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock.packet import SYN, TCP, UDP, Packet, from_ip

from . import hostile
from .frames import LENGTH, Link, Wave, checksum, wave_frames, wave_words

TARGET6 = bytes.fromhex("fd99") + bytes(13) + b"\1"
LINK = Link(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", bytes((10, 99, 0, 1)), TARGET6)

waves = st.builds(Wave, st.integers(1 << 8, 0xDFFF), st.integers(1, 0xFFFF))


@given(first=waves, wave=waves, low=st.integers(0, 0xFFFF), port=st.integers(1, 0xFFFF))
def test_a_frame_of_a_later_wave_has_right_checksums(first: Wave, wave: Wave, low: int, port: int) -> None:
    frame = bytearray(wave_frames(LINK, first, [low], [port])[0])
    for at, word in wave_words(first, wave):
        frame[at : at + 2] = word.to_bytes(2, "big")

    source = wave.source_high.to_bytes(2, "big") + low.to_bytes(2, "big")
    ip, tcp = bytes(frame[14:34]), bytes(frame[34:])
    assert len(frame) == LENGTH
    assert checksum(ip) == 0
    assert checksum(source + LINK.target + bytes((0, TCP, 0, 20)) + tcp) == 0


@given(first=waves, wave=waves, low=st.integers(0, 0xFFFF), port=st.integers(1, 0xFFFF))
def test_a_frame_of_a_later_wave_knocks_from_its_own_source(first: Wave, wave: Wave, low: int, port: int) -> None:
    frame = bytearray(wave_frames(LINK, first, [low], [port])[0])
    for at, word in wave_words(first, wave):
        frame[at : at + 2] = word.to_bytes(2, "big")

    packet = from_ip(bytes(frame[14:]), 0.0)
    source = wave.source_high.to_bytes(2, "big") + low.to_bytes(2, "big")
    assert packet is not None
    assert packet == (0.0, source, LINK.target, TCP, wave.source_port, port, SYN)


def packets(kind: hostile.Kind, turn: int) -> list[Packet | None]:
    """What a flood's frames are at a turn, each with right checksums."""
    found = []
    for original in kind.frames:
        frame = bytearray(original)
        for at, word in kind.turns[turn] if kind.turns else ():
            frame[at : at + 2] = word.to_bytes(2, "big")
        packet = bytes(frame[14:])
        if packet[0] >> 4 == 4:
            assert checksum(packet[: 4 * (packet[0] & 15)]) == 0
        else:
            pseudo = packet[8:40] + len(packet[40:]).to_bytes(4, "big") + bytes((0, 0, 0, TCP))
            assert checksum(pseudo + packet[40:]) == 0
        found.append(from_ip(packet, 0.0))
    return found


def flood(make: hostile.Make) -> hostile.Kind:
    return make(LINK, 7000, 640, Random(1))  # noqa: S311  # nothing to guess here


@pytest.mark.parametrize(
    ("make", "proto"),
    [
        (hostile.first_knocks, TCP),
        (hostile.datagrams, UDP),
        (hostile.within_prefix, TCP),
        (hostile.across_prefixes, TCP),
    ],
)
def test_a_spoofed_flood_is_of_first_knocks_none_of_which_comes_again(make: hostile.Make, proto: int) -> None:
    kind = flood(make)
    sent = [packet for turn in (0, 1, 2) for packet in packets(kind, turn) if packet]
    assert {(packet.proto, packet.dport) for packet in sent} == {(proto, 7000)}
    assert len({(packet.src, packet.sport) for packet in sent}) == len(sent) == 3 * 640


def test_addresses_rotate_within_one_prefix_or_across_many() -> None:
    within, across = (packets(flood(make), 1) for make in (hostile.within_prefix, hostile.across_prefixes))
    assert len({packet.src[:8] for packet in within if packet}) == 1
    assert len({packet.src[:8] for packet in across if packet}) == 640


def test_what_is_malformed_is_and_what_is_in_pieces_is_no_packet() -> None:
    assert packets(flood(hostile.malformed), 0).count(None) >= 2 * 640 // 5
    assert set(packets(flood(hostile.fragments), 0)) == {None}
