"""What the whole program shows too late or with too many doors, with the real kernel and a real store."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from logknock.doorkeeper import Doorkeeper, Hand, Open
from logknock.errors import FirewallError
from logknock.firewall import sets as sets_module
from logknock.firewall.sets import Sets
from logknock.knock import Door, Grant, Service
from logknock.report import Line
from logknock.store import SQLiteStore, StoreError, open_store

from .netns import Host, pair

DOOR = Door("ssh", (Service(6, 7000),), opens=(Service(6, 22),), timeout=10.0)
SOURCES = [bytes((198, 51, 100, number)) for number in (1, 2)]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Host]:
    with pair() as (gateway, _):
        rules = Path(__file__).parent.parent / "rules/logknock.nft"
        gateway.run("nft", "-f", str(rules))
        yield gateway


@pytest.fixture
def sets(gateway: Host) -> Iterator[Sets]:
    gateway.nft("flush set inet logknock granted4")
    with gateway.inside():
        made = Sets()
    made.use([DOOR])
    yield made
    made.disconnect()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    made = open_store(tmp_path)
    assert isinstance(made, SQLiteStore)
    yield made
    made.close()


def keeper(store: SQLiteStore, sets: Sets, folder: Path) -> tuple[Doorkeeper, list[Line]]:
    lines: list[Line] = []
    made = Doorkeeper(store, sets, folder, lines.append)
    made.use([DOOR])
    return made, lines


def test_a_grant_beyond_the_bound_leaves_nothing(
    store: SQLiteStore, sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be open after the next start."""
    monkeypatch.setattr(sets_module, "MAX_KNOCKERS", 1)
    kept, _ = keeper(store, sets, tmp_path)
    now = time.monotonic()
    assert kept.open("ssh", SOURCES[0], 1.0, now) == ""
    with pytest.raises(FirewallError, match="already"):
        kept.open("ssh", SOURCES[1], 1.0, now)
    assert [stored.grant.src for stored in store.grants(1.0, now)] == SOURCES[:1]


def test_t33_what_is_taken_over_has_no_more_time_than_the_door_gives_now(
    store: SQLiteStore, sets: Sets, tmp_path: Path
) -> None:
    """T33: the configuration may have become stricter since."""
    now = time.monotonic()
    store.opened(Grant("ssh", SOURCES[0], now + 1000), 1.0, now)
    kept, _ = keeper(store, sets, tmp_path)
    assert kept.restore(1.0, now) == 1
    found = sets.find("ssh", SOURCES[0])
    assert found is not None
    assert found.expires == now + DOOR.timeout
    assert sets.reconcile(now) == 1
    assert kept.close("ssh", "another", SOURCES[0], 1.0, now) is not None
    assert store.grants(1.0, now) == [], "it would open again at the next start"


def test_a_refresh_is_one_grant_with_one_end(store: SQLiteStore, sets: Sets, tmp_path: Path) -> None:
    kept, lines = keeper(store, sets, tmp_path)
    now = time.monotonic()
    for later in (0, 5):
        kept.open("ssh", SOURCES[0], 1.0, now + later)
    kept.expire(1.0, now + 12)
    assert (lines, kept.counters.closed) == ([], 0)
    kept.expire(1.0, now + 16)
    assert [line.text for line in lines] == ["198.51.100.1: ssh: command timeout, closed"]
    assert store.grants(1.0, now) == []


def test_many_that_end_together_end_in_parts(store: SQLiteStore, sets: Sets, tmp_path: Path) -> None:
    kept, lines = keeper(store, sets, tmp_path)
    now = time.monotonic()
    for number in range(100):
        kept.open("ssh", bytes((198, 51, 100, number)), 1.0, now)
    assert kept.expire(1.0, now + 11)
    assert 0 < len(lines) < 100
    assert not kept.expire(1.0, now + 11)
    assert len(lines) == 100


def test_a_folder_that_cannot_be_listed_is_told_once(store: SQLiteStore, sets: Sets, tmp_path: Path) -> None:
    (tmp_path / "allow").write_text("no folder")
    kept, lines = keeper(store, sets, tmp_path)
    kept.use([DOOR])
    assert [line.text.partition(" (hint")[0] for line in lines] == [f"{tmp_path}/allow: Not a directory"]


# ---- by hand


def open_now(kept: Doorkeeper) -> tuple[int, int]:
    (standing,) = kept.doors
    return standing.open, standing.opened


def test_what_is_opened_by_hand_has_its_own_time_after_a_restart(
    store: SQLiteStore, sets: Sets, tmp_path: Path
) -> None:
    """Whoever gave it for longer than the door's timeout meant it; the configuration binds what a knock opened."""
    now = time.monotonic()
    store.opened(Grant("ssh", SOURCES[0], now + 1000), 1.0, now, "root (uid 0)")
    store.opened(Grant("ssh", SOURCES[1], now + 1000), 1.0, now)
    kept, _ = keeper(store, sets, tmp_path)
    assert kept.restore(1.0, now) == 2
    assert sorted(kept.listed(now)) == [
        Open("ssh", SOURCES[0], 1000.0, "root (uid 0)", is_open=False),
        Open("ssh", SOURCES[1], 10.0, "", is_open=False),
    ], "they are held to, and not yet open"
    assert [stored.by for stored in sorted(store.grants(1.0, now))] == ["root (uid 0)", ""]
    while sets.reconcile(now):
        pass
    assert [found.is_open for found in kept.listed(now)] == [True, True]
    assert open_now(kept) == (2, 0)


def test_t33_a_knock_refreshes_and_never_shortens_what_was_given_by_hand(
    store: SQLiteStore, sets: Sets, tmp_path: Path
) -> None:
    """T33: and once the knock's end is the later one, it is the knock's."""
    kept, _ = keeper(store, sets, tmp_path)
    now = time.monotonic()
    kept.open("ssh", SOURCES[0], 1.0, now, Hand(15.0, "anna (uid 7)"))
    kept.open("ssh", SOURCES[0], 1.0, now + 1)
    assert kept.find("ssh", SOURCES[0], now) == Open("ssh", SOURCES[0], 15.0, "anna (uid 7)")
    assert [stored.by for stored in store.grants(1.0, now)] == ["anna (uid 7)"]
    kept.open("ssh", SOURCES[0], 1.0, now + 8)
    assert kept.find("ssh", SOURCES[0], now + 8) == Open("ssh", SOURCES[0], 10.0, "")
    kept.open("ssh", SOURCES[0], 1.0, now + 9, Hand(2.0, "anna (uid 7)"))
    assert kept.find("ssh", SOURCES[0], now + 9) == Open("ssh", SOURCES[0], 2.0, "anna (uid 7)"), "a person may"
    assert open_now(kept) == (1, 4)


def test_t33_a_client_never_shortens_what_is_open_for_longer(store: SQLiteStore, sets: Sets, tmp_path: Path) -> None:
    """T33: whoever opened it: else who asks for a second closes the door on an administrator, or on another client."""
    kept, _ = keeper(store, sets, tmp_path)
    now = time.monotonic()
    kept.open("ssh", SOURCES[0], 1.0, now)
    kept.open("ssh", SOURCES[0], 1.0, now, Hand(2.0, "client laptop", shortens=False))
    assert kept.find("ssh", SOURCES[0], now) == Open("ssh", SOURCES[0], 10.0, "")
    kept.open("ssh", SOURCES[0], 1.0, now, Hand(300.0, "client laptop", shortens=False))
    assert kept.find("ssh", SOURCES[0], now) == Open("ssh", SOURCES[0], 300.0, "client laptop")
    kept.open("ssh", SOURCES[0], 1.0, now, Hand(60.0, "client phone", shortens=False))
    assert kept.find("ssh", SOURCES[0], now) == Open("ssh", SOURCES[0], 300.0, "client laptop")
    assert [(stored.by, stored.grant.expires - now) for stored in store.grants(1.0, now)] == [("client laptop", 300.0)]


def test_how_many_are_open_is_counted_whatever_ends_them(
    store: SQLiteStore, sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = keeper(store, sets, tmp_path)
    heard: list[bytes] = []
    kept.changed = lambda door, src: heard.append(src)
    now = time.monotonic()
    kept.open("ssh", SOURCES[0], 1.0, now)
    kept.open("ssh", SOURCES[0], 1.0, now)
    kept.open("ssh", SOURCES[1], 1.0, now)
    assert open_now(kept) == (2, 3)
    assert kept.open("ssh", bytes((127, 0, 0, 1)), 1.0, now) == "a loopback address"
    monkeypatch.setattr(sets_module, "MAX_KNOCKERS", 2)
    with pytest.raises(FirewallError):
        kept.open("ssh", bytes((198, 51, 100, 3)), 1.0, now, Hand(5.0, "x"))
    assert open_now(kept) == (2, 3)
    kept.close("ssh", "x", SOURCES[0], 1.0, now)
    assert open_now(kept) == (1, 3)
    kept.expire(1.0, now + 11)
    assert open_now(kept) == (0, 3)
    assert [src[-1] for src in heard] == [1, 1, 2, 3, 1, 2]


def test_a_store_that_can_be_written_again_is_found_out_without_a_knock(
    store: SQLiteStore, sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, lines = keeper(store, sets, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(SQLiteStore, "opened", failing)
        broken.setattr(SQLiteStore, "try_write", failing)
        kept.open("ssh", SOURCES[0], 1.0, time.monotonic())
        kept.tidy()
        kept.tidy()
        assert [error.message for error in kept.troubles] == ["full"]
        assert kept.counters.store_errors == 1, "that it lasts is no other error"
        kept.open("ssh", SOURCES[1], 1.0, time.monotonic())
        assert kept.counters.store_errors == 2, "that another grant is not on record is one"
    kept.tidy()
    assert kept.troubles == []
    assert [line.text for line in lines] == ["full", "the state database can be written again"]


def failing(*_: object) -> None:
    raise StoreError("full")
