"""What is cleared away when: by clients, by seconds, and past a crowd."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from logknock.garbage import CLIENTS, CROWD, EVERY, Garbage


class Cycle:
    """What reference counting leaves."""

    def __init__(self) -> None:
        self.itself = self


def left() -> weakref.ref[Cycle]:
    return weakref.ref(Cycle())


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    made = Garbage()
    made.begin()
    yield made
    gc.unfreeze()
    gc.enable()


def test_nothing_is_cleared_away_at_a_time_of_its_own(garbage: Garbage) -> None:
    cycle = left()
    crowd = [[number] for number in range(200_000)]
    assert cycle() is not None
    assert gc.get_freeze_count(), "what was there before is not walked over"
    del crowd


def test_so_many_clients_leave_nothing_whatever_the_time(garbage: Garbage) -> None:
    for _ in range(3):
        cycle = left()
        for _ in range(CLIENTS - 1):
            garbage.add_client()
        assert cycle() is not None
        garbage.add_client()
        assert cycle() is None


def test_who_was_still_there_then_is_cleared_away_at_the_next_tick(garbage: Garbage) -> None:
    kept = Cycle()
    cycle = weakref.ref(kept)
    for _ in range(CLIENTS):
        garbage.add_client()
    del kept
    garbage.tick(10 * CROWD)
    assert cycle() is None


def test_clients_are_cleared_away_in_the_end_however_many_knock(garbage: Garbage) -> None:
    """One that stayed over several clearings, among more attempts than any clearing is made beside otherwise."""
    kept = Cycle()
    cycle = weakref.ref(kept)
    for second in range(EVERY + 1):
        for _ in range(CLIENTS):
            garbage.add_client()
        if second == 2:
            del kept
        garbage.tick(CROWD)
    assert cycle() is None


def test_without_clients_a_minute_passes_and_no_crowd_is_walked_over(garbage: Garbage) -> None:
    cycle = left()
    for _ in range(EVERY - 1):
        garbage.tick(CROWD - 1)
    assert cycle() is not None
    garbage.tick(CROWD - 1)
    assert cycle() is None
    cycle = left()
    for _ in range(2 * EVERY):
        garbage.tick(CROWD)
    assert cycle() is not None
