"""What is asked of the running daemon where there is much of it, or where the firewall refuses some of it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from logknock.control import Peer
from logknock.desk import Desk, Duties
from logknock.doorkeeper import Doorkeeper, Open
from logknock.errors import FirewallError
from logknock.feed import Feed
from logknock.firewall.sets import Sets
from logknock.packet import address_text
from logknock.store import SQLiteStore

from .test_doorkeeper import gateway, keeper, sets, store

__all__ = ["gateway", "sets", "store"]  # fixtures

ROOT = Peer(0)
SOURCES = [bytes((198, 51, 100, number)) for number in range(1, 101)]


@pytest.fixture
def kept(store: SQLiteStore, sets: Sets, tmp_path: Path) -> Doorkeeper:
    """A hundred for whom a door is open."""
    made, _ = keeper(store, sets, tmp_path)
    for src in SOURCES:
        assert made.open("ssh", src, 1.0, time.monotonic()) == ""
    return made


def desk(kept: Doorkeeper, refuses: bytes = b"") -> Desk:
    def close(door: str, src: bytes, by: str) -> bool:
        closed = kept.close(door, by, src, 1.0, time.monotonic())
        if src == refuses:
            raise FirewallError("the kernel will not")
        return closed is not None

    nothing: Any = None
    return Desk(Duties(nothing, nothing, nothing, close, nothing), kept, nothing, Feed())


def revoke(asked: Desk, into: list[str], **what: Any) -> None:
    """What is answered, as it comes."""
    for answer in asked.answer({"do": "revoke", **what}, ROOT):
        if isinstance(answer, Mapping):
            into += [each["address"] for each in answer["revoked"]]


def test_one_that_the_firewall_refuses_keeps_no_other_open(kept: Doorkeeper) -> None:
    """What was closed is told, and then what was wrong first."""
    found: list[str] = []
    with pytest.raises(FirewallError, match="will not"):
        revoke(desk(kept, refuses=SOURCES[1]), found, all=True)
    assert sorted(found) == sorted(address_text(src) for src in SOURCES if src != SOURCES[1])
    assert list(kept.listed(time.monotonic())) == []


def test_however_many_are_open_no_turn_looks_at_all_of_them(kept: Doorkeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 65,536 that would be a tenth of a second in which no packet is read."""
    looked: list[bytes] = []
    listed_of = Doorkeeper.listed_of

    def counted(self: Doorkeeper, src: bytes, now: float) -> list[Open]:
        looked.append(src)
        return listed_of(self, src, now)

    monkeypatch.setattr(Sets, "grants", property(lambda _: pytest.fail("all are listed at once")))
    monkeypatch.setattr(Doorkeeper, "listed_of", counted)
    asked = desk(kept)
    for request, most in (({"do": "grants"}, 64), ({"do": "revoke", "all": True}, 1)):
        looked.clear()
        next(iter(asked.answer(request, ROOT)))
        assert len(looked) <= most
    looked.clear()
    found: list[str] = []
    revoke(asked, found, address="198.51.100.50")
    assert found == ["198.51.100.50"]
    assert looked == [SOURCES[49]], "one that is named is found without the others"
