"""T10: one packet that several sources tell of counts once, and one that was sent twice does not."""

import pytest

from logknock import copies
from logknock.copies import WINDOW, Copies
from logknock.packet import SYN, TCP, Packet

DST = bytes((10, 99, 0, 1))


def packet(time: float, sport: int, flags: int = SYN, last: int = 7) -> Packet:
    return Packet(time, bytes((198, 51, 100, last)), DST, TCP, sport, 7000, flags)


@pytest.mark.parametrize(
    ("story", "new"),
    [
        # source:time:source port
        pytest.param("0:0:1 1:0:1", "y n", id="two sources tell of one packet"),
        pytest.param("1:0.1:1 0:0:1", "y n", id="whichever is first is believed"),
        pytest.param("0:0:1 0:1:1", "y y", id="what one source tells twice was sent twice"),
        pytest.param("0:0:1 0:1:1 1:0:1 1:1:1", "y y n n", id="both tell of both"),
        pytest.param("0:0:1 1:0:1 0:1:1 1:1:1", "y n y n", id="in turn"),
        pytest.param("0:0:1 1:0:2", "y y", id="another source port is another packet"),
        pytest.param("0:0:1 1:0:1 2:0:1", "y n n", id="three sources"),
        pytest.param("1:0:1 1:1:1 0:1:1 0:2:1 0:3:1", "y y n n y", id="one that saw more than the other"),
        pytest.param(f"0:0:1 1:{WINDOW + 1}:1", "y y", id="much later it is another packet from the same port"),
        pytest.param(f"0:0:1 1:-{WINDOW + 1}:1", "y y", id="much earlier too"),
    ],
)
def test_one_packet_counts_once(story: str, new: str) -> None:
    known = Copies(3)
    told = []
    for word in story.split():
        source, time, sport = word.split(":")
        told.append("n" if known.is_copy(int(source), packet(float(time), int(sport))) else "y")
    assert " ".join(told) == new


def test_a_kernel_log_tells_fewer_flags_of_the_same_packet() -> None:
    known = Copies(2)
    assert not known.is_copy(0, packet(0, 1, SYN | 0xC0))
    assert known.is_copy(1, packet(0, 1, SYN))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MAX_REMEMBERED", 100)
    monkeypatch.setattr(copies, "_SWEEP", 10)
    known = Copies(2)
    for sport in range(1, 1001):
        assert not known.is_copy(0, packet(0, sport))
        assert len(known._seen) <= 100
    assert len(known._seen) > 90
    assert known.is_copy(1, packet(0, 1000))
    assert not known.is_copy(1, packet(0, 1))
