"""The benchmark's packets are what they claim to be: a flood of damaged ones would measure something else."""

from hypothesis import given
from hypothesis import strategies as st

from logknock.packet import SYN, TCP, from_ip

from .frames import LENGTH, Link, Wave, checksum, wave_frames, wave_words

LINK = Link(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", bytes((10, 99, 0, 1)))

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
