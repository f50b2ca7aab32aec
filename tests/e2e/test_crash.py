"""kill -9 at every step of an opening, with the real store and the real kernel: what opened is used up (T20)."""

import pytest

from .crashes import check_every_line, check_order_on_disk
from .world import World

# The knocks of a one-time sequence.
KNOCKED = """
from logknock.knock import Service

sequence = tuple(Service(TCP, port) for port in (7001, 8001, 9001))

def knock(daemon, first, end):
    for number in range(first, end):
        daemon._receive(Packet(time.time(), src, dst, TCP, 40000 + number, sequence[number].port, SYN))

def before(daemon):
    while daemon._turns.work():
        pass
    knock(daemon, 0, 2)

def opens(daemon):
    knock(daemon, 2, 3)

def is_used(store):
    return store.was_used("ssh", sequence)
"""


@pytest.fixture
def crashed(world: World) -> World:
    """A one-time door, with its rules."""
    file = world.config.parent / "anna"
    file.write_text(" 7001, 8001, 9001\n 7002, 8002, 9002\n")
    file.chmod(0o600)
    world.configure(f'[doors.ssh]\nonetime = ["{file}"]\nopens = ["22/tcp"]\ntimeout = "1h"\n')
    world.apply()
    return world


def test_t18_t20_whatever_the_step_what_opened_is_used_up(crashed: World) -> None:
    """T18, T20: and its end is seen to, since the grant is on record."""
    check_every_line(crashed, KNOCKED)


def test_t20_the_use_is_on_the_disk_before_the_door_opens(crashed: World) -> None:
    """T20: as the kernel sees it: the file is synced before the message that opens the door is sent."""
    check_order_on_disk(crashed, KNOCKED)
