"""Single packets that wait: in order, in slices, and no more of them than there is room for."""

import time

from logknock.mailbox import MAX_WAITING, SLICE, Mailbox
from logknock.packet import UDP, Carried, Packet


def carried(number: int) -> Carried:
    return Carried(Packet(1.0, number.to_bytes(4), bytes(4), UDP, 40_000, 62_201, 0), b"8")


def test_they_are_judged_in_the_order_of_their_coming_and_none_before_work() -> None:
    judged: list[tuple[Carried, str]] = []
    box = Mailbox(lambda came, source: judged.append((came, source)))
    for number in range(5):
        assert box.put(carried(number), f"source {number}")
    assert judged == []
    while box.work():
        pass
    assert judged == [(carried(number), f"source {number}") for number in range(5)]
    assert not box.work()


def test_t30_a_slice_ends_whatever_waits() -> None:
    """T30: what takes long is judged one by one, and the loop does something else in between."""
    judged: list[Carried] = []

    def judge(came: Carried, source: str) -> None:
        judged.append(came)
        time.sleep(SLICE)

    box = Mailbox(judge)
    for number in range(3):
        box.put(carried(number), "")
    assert [(box.work(), len(judged)) for _ in range(3)] == [(True, 1), (True, 2), (False, 3)]


def test_what_finds_no_room_is_counted_and_not_looked_at() -> None:
    judged: list[Carried] = []
    box = Mailbox(lambda came, source: judged.append(came))
    taken = [box.put(carried(number), "") for number in range(MAX_WAITING + 7)]
    assert taken == [True] * MAX_WAITING + [False] * 7
    assert (box.settle(), box.settle()) == (7, 0)
    while box.work():
        pass
    assert len(judged) == MAX_WAITING
    assert box.put(carried(0), "")
