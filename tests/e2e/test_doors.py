"""The rest of a door with the real daemon: commands, allow files, targets, cooldown, and what a restart finds."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from logknock.knock import Grant
from logknock.store import open_store

from .world import Daemon, World, until

KNOCKS = ("7000/tcp", "8000/tcp", "9000/udp")
KNOCK_LINE = 'sequence = ["7000/tcp", "8000/tcp", "9000/udp"]'
OPENS = "10.99.0.2: ssh: OPEN SESAME"

# Notes down what it is told, where nobody else has to look.
NOTE = """#!/bin/sh
echo "$LOGKNOCK_EVENT $LOGKNOCK_DOOR $LOGKNOCK_SRC $*" >> "$0.log"
"""


@pytest.fixture
def note(world: World) -> Path:
    """A command that writes down how it was called; reading what it wrote is `noted`."""
    path = world.config.parent / "note"
    path.write_text(NOTE)
    path.chmod(0o755)
    return path


def noted(note: Path) -> list[str]:
    log = Path(f"{note}.log")
    return log.read_text().splitlines() if log.exists() else []


def configure(world: World, text: str) -> None:
    world.configure(f'[doors.ssh]\n{KNOCK_LINE}\nopens = ["22/tcp"]\n{text}')
    world.apply()


def opened(world: World, daemon: Daemon, address: str = "") -> None:
    """Knock, and wait until the door is open."""
    daemon.read()
    daemon.lines.clear()
    world.knock(*KNOCKS, address=address)
    daemon.wait_for("ssh: OPEN SESAME")


def test_commands_run_when_a_door_opens_and_closes(world: World, note: Path) -> None:
    """Once an opening: a knock that refreshes it runs nothing; with the address, and what they say is in the log."""
    arguments = f'["{note}", "{{src}}", "a b; $(id)"]'
    configure(world, f'on_open = {arguments}\non_close = ["{note}"]\ntimeout = "8s"\n')
    with world.daemon() as daemon:
        opened(world, daemon)
        until(lambda: len(noted(note)) == 1, "the command")
        opened(world, daemon)
        until(lambda: len(noted(note)) == 2, "the other command")
        assert noted(note) == ["open ssh 10.99.0.2 10.99.0.2 a b; $(id)", "close ssh 10.99.0.2 "]
        assert daemon.says("10.99.0.2: ssh: running command: ")
        assert daemon.says("10.99.0.2: ssh: command timeout, closed")


def test_ipv6_knockers_have_commands_of_their_own(world: World, note: Path) -> None:
    configure(
        world, f'on_open = ["{note}", "4"]\non_open_6 = ["{note}", "6"]\non_close = ["{note}"]\non_close_6 = []\n'
    )
    with world.daemon() as daemon:
        opened(world, daemon, world.gateway.ipv6)
        until(lambda: len(noted(note)) == 1, "the first")
        opened(world, daemon)
        until(lambda: len(noted(note)) == 2, "both")
        assert noted(note) == ["open ssh fd99::2 6", "open ssh 10.99.0.2 4"]


def test_a_door_may_do_nothing_but_run_a_command(world: World, note: Path) -> None:
    world.configure(f'[doors.light]\n{KNOCK_LINE}\non_open = ["{note}"]\ntimeout = "1s"\n')
    world.apply()
    with world.daemon() as daemon:

        def turned_on(times: int) -> None:
            daemon.lines.clear()
            world.knock(*KNOCKS)
            daemon.wait_for("light: command timeout, closed")
            until(lambda: len(noted(note)) == times, "the command")

        turned_on(1)
        turned_on(2)


def test_a_command_that_hangs_keeps_no_door_shut(world: World, note: Path) -> None:
    """A command that sleeps, one that floods, one that is not there: a line each, and doors open meanwhile."""
    configure(world, 'on_open = ["/bin/sleep", "60"]\ncommand_limit = "2s"\n')
    text = world.config.read_text()
    text += '[doors.flood]\nsequence = ["1/tcp", "2/tcp", "3/tcp"]\non_open = ["/usr/bin/yes"]\ncommand_limit = "2s"\n'
    text += '[doors.gone]\nsequence = ["4/tcp", "5/tcp", "6/tcp"]\non_open = ["/nowhere/at/all"]\n'
    world.config.write_text(text)
    world.apply()
    with world.daemon() as daemon:
        world.knock("1/tcp", "2/tcp", "3/tcp")
        daemon.wait_for("flood: running command")
        world.knock("4/tcp", "5/tcp", "6/tcp")
        daemon.wait_for("gone: cannot be started: No such file or directory")
        world.knock(*KNOCKS)
        daemon.wait_for(OPENS)
        assert world.granted()
        daemon.wait_for("ssh: killed after 2 s")
        daemon.wait_for("more lines left out")
        assert daemon.stop() == 0


def test_what_closes_a_door_runs_after_a_kill(world: World, note: Path) -> None:
    """T32: the kernel has closed the door in time; on_close runs at the next start, once."""
    configure(world, f'on_close = ["{note}"]\ntimeout = "8s"\nallow_file = "sshd"\n')
    allow = world.config.parent / "state/allow/sshd"
    with world.daemon() as daemon:
        assert allow.read_text() == ""
        opened(world, daemon)
        until(lambda: allow.read_text() == "10.99.0.2\n", "the address")
        daemon.process.kill()
        daemon.process.wait()
    until(lambda: not world.granted(), "the kernel's closing")
    assert noted(note) == []
    with world.daemon() as daemon:
        until(lambda: noted(note) == ["close ssh 10.99.0.2 "], "the command")
        assert allow.read_text() == ""
        assert daemon.stop() == 0
    with world.daemon() as daemon:
        assert daemon.stop() == 0, "which waits for commands"
    assert noted(note) == ["close ssh 10.99.0.2 "]


def test_t34_open_doors_outlive_a_kill_and_a_flushed_table(world: World, note: Path) -> None:
    """T34: with the time they have left, not with all of it; on_open does not run again."""
    configure(world, f'on_open = ["{note}"]\ntimeout = "1h"\nallow_file = "sshd"\n')
    with world.daemon() as daemon:
        opened(world, daemon)
        until(lambda: noted(note), "the command")
        daemon.process.kill()
        daemon.process.wait()
    world.gateway.nft("flush set inet logknock granted4")
    with world.daemon() as daemon:
        daemon.wait_for("1 door is still open")
        until(world.granted, "the grant")
        assert 3500 < world.granted()["10.99.0.2 . tcp . 22"]["expires"] < 3600
        assert (world.config.parent / "state/allow/sshd").read_text() == "10.99.0.2\n"
        assert daemon.stop() == 0
        assert (world.config.parent / "state/allow/sshd").read_text() == "", "nobody is left to take it out"
    assert len(noted(note)) == 1


def test_t37_a_start_takes_over_nothing_that_could_not_be(world: World) -> None:
    """T37: not the host's own loopback, not a door that is gone; and what no door keeps any more lets nobody in."""
    configure(world, 'timeout = "1h"\n')
    state = world.config.parent / "state"
    store = open_store(state)
    for door, address in (("ssh", "127.0.0.1"), ("ssh", "198.51.100.1"), ("gone", "198.51.100.2")):
        grant = Grant(door, ip_address(address).packed, time.monotonic() + 1000)
        store.opened(grant, time.time(), time.monotonic())
    store.close()
    (state / "allow").mkdir(mode=0o755)
    (state / "allow/old").write_text("198.51.100.3\n")
    with world.daemon() as daemon:
        daemon.wait_for("1 door is still open")
        assert daemon.says("door gone is gone")
        until(world.granted, "the one that could be")
        assert set(world.granted()) == {"198.51.100.1 . tcp . 22"}
        assert (state / "allow/old").read_text() == ""


def test_a_door_that_another_one_closes_runs_its_command(world: World, note: Path) -> None:
    """knockd's second example: one sequence opens, another closes."""
    world.configure(
        f'[doors.ssh]\n{KNOCK_LINE}\nopens = ["22/tcp"]\ntimeout = "1h"\non_close = ["{note}"]\nallow_file = "sshd"\n'
        '[doors.close]\nsequence = ["9000/udp", "8000/tcp", "7000/tcp"]\ncloses = ["ssh"]\n'
    )
    world.apply()
    with world.daemon() as daemon:
        opened(world, daemon)
        world.knock(*reversed(KNOCKS))
        daemon.wait_for("10.99.0.2: ssh: closed by close")
        until(lambda: noted(note) == ["close ssh 10.99.0.2 "], "the command")
        assert world.granted() == {}
        until(lambda: not (world.config.parent / "state/allow/sshd").read_text(), "the address to go")


def test_a_reload_takes_nothing_from_open_doors(world: World, note: Path) -> None:
    """T36: a door that the new configuration has no more still closes as it was to."""
    configure(world, f'on_close = ["{note}"]\ntimeout = "8s"\nallow_file = "sshd"\n')
    with world.daemon() as daemon:
        opened(world, daemon)
        world.configure('[doors.other]\nsequence = ["1/tcp", "2/tcp", "3/tcp"]\nopens = ["80/tcp"]\n')
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        assert (world.config.parent / "state/allow/sshd").read_text() == "10.99.0.2\n"
        until(lambda: noted(note) == ["close ssh 10.99.0.2 "], "the command")
        until(lambda: not (world.config.parent / "state/allow/sshd").read_text(), "the address to go")


def test_only_packets_to_the_target_knock(world: World) -> None:
    world.gateway.run("ip", "addr", "add", "10.99.0.7/24", "dev", "eth0")
    configure(world, 'target = ["10.99.0.7"]\n')
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        world.knock(*KNOCKS, address="10.99.0.7")
        until(lambda: daemon.counter("records") >= 2 * len(KNOCKS), "the records")
        daemon.wait_for(OPENS)
        assert len([line for line in daemon.lines if "Stage 1" in line]) == 1


def test_cooldown(world: World) -> None:
    configure(world, 'cooldown = "1h"\n')
    with world.daemon() as daemon:
        opened(world, daemon)
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: too soon after the last time (stage 3)")
        world.spoof(*(f"198.51.100.1>{world.gateway.ipv4}:{knock}" for knock in KNOCKS))
        daemon.wait_for("198.51.100.1: ssh: OPEN SESAME")


def test_what_could_not_be_opened_has_no_cooldown(world: World, note: Path) -> None:
    """The firewall's fault is not the knocker's; the command runs when the door really opens."""
    make = "add set inet filter a { type ipv4_addr; flags timeout; }"
    world.gateway.nft(f"add table inet filter\n{make}")
    configure(world, f'sets = ["inet filter a"]\nguard = false\ncooldown = "1h"\non_open = ["{note}"]\n')
    with world.daemon() as daemon:
        world.gateway.nft("delete set inet filter a")
        world.knock(*KNOCKS)
        daemon.wait_for("ssh: not opened: set inet filter a is missing")
        assert noted(note) == []
        world.gateway.nft(make)
        opened(world, daemon)
        until(lambda: len(noted(note)) == 1, "the command")


def test_a_refresh_that_is_refused_changes_nothing_of_the_end(world: World, note: Path) -> None:
    """The door was open: what belongs to its end is done, and what belongs to its opening is not done twice."""
    make = "add set inet filter a { type ipv4_addr; flags timeout; }"
    world.gateway.nft(f"add table inet filter\n{make}")
    commands = f'on_open = ["{note}"]\non_close = ["{note}"]\n'
    configure(world, f'sets = ["inet filter a"]\nguard = false\ntimeout = "8s"\n{commands}')
    with world.daemon() as daemon:
        opened(world, daemon)
        world.gateway.nft("delete set inet filter a")
        world.knock(*KNOCKS)
        daemon.wait_for("ssh: not opened: set inet filter a is missing")
        world.gateway.nft(make)
        until(lambda: len(noted(note)) == 2, "the end")
        assert [line.split()[0] for line in noted(note)] == ["open", "close"]


def test_several_services_and_sets(world: World) -> None:
    """Each of them, in our set and in the administrator's."""
    world.gateway.nft("table inet filter { set a { type ipv4_addr; flags timeout; }; }")
    world.gateway.nft("table inet filter { set b { type ipv4_addr . inet_proto . inet_service; flags timeout; }; }")
    world.configure(
        f'[doors.ssh]\n{KNOCK_LINE}\nopens = ["22/tcp", "443/udp"]\nsets = ["inet filter a", "inet filter b"]\n'
    )
    world.apply()
    with world.daemon() as daemon:
        opened(world, daemon)
        assert set(world.granted()) == {"10.99.0.2 . tcp . 22", "10.99.0.2 . udp . 443"}
        assert "10.99.0.2 timeout 30s" in world.gateway.run("nft", "list", "set", "inet", "filter", "a").stdout
        listed = world.gateway.run("nft", "list", "set", "inet", "filter", "b").stdout
        assert re.search(r"10\.99\.0\.2 \. tcp \. 22 timeout 30s", listed)
        assert re.search(r"10\.99\.0\.2 \. udp \. 443 timeout 30s", listed)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


@contextmanager
def daemon_with_state_on(world: World, options: str) -> Iterator[Daemon]:
    """The daemon, in a mount namespace where its state directory is a tmpfs of its own."""
    state = world.config.parent / "state"
    mount = f"mount -t tmpfs -o {options},mode=700 tmpfs {state}"
    script = f"{mount} && exec {sys.executable} -m logknock run -c {world.config}"
    process = world.gateway.start("unshare", "-m", "sh", "-c", script, stderr=subprocess.PIPE)
    try:
        yield Daemon(process)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_state_directory_that_cannot_be_written(world: World) -> None:
    """Plain doors go on working, and it is said; read-only by mount, which stops root too."""
    configure(world, "")
    with daemon_with_state_on(world, "ro") as daemon:
        daemon.wait_for("nothing is remembered until a restart: ")
        daemon.wait_for("ready")
        opened(world, daemon)


def test_t20_a_full_disk(world: World) -> None:
    """T20: one-time doors stay shut while it is full, plain ones open; each said once, and when it is over."""
    file = world.config.parent / "anna"
    file.write_text("1, 2, 3\n")
    file.chmod(0o600)
    once = f'[doors.once]\nonetime = ["{file}"]\nopens = ["80/tcp"]\ncooldown = "1h"\n'
    configure(world, f'allow_file = "sshd"\n{once}')
    with daemon_with_state_on(world, "size=1m") as daemon:
        daemon.wait_for("1 one-time sequence left")
        filler = Path(f"/proc/{daemon.process.pid}/root{world.config.parent}/state/filler")
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        world.knock("1", "2", "3")
        daemon.wait_for("once: not opened: its use cannot be put on record: ")
        assert daemon.says("database or disk is full (hint: make room")
        assert world.granted() == {}
        opened(world, daemon)
        daemon.wait_for("allow/sshd: No space left on device")
        opened(world, daemon)
        assert not daemon.says("can be written again")
        filler.unlink()
        daemon.wait_for("the files of addresses are written again")
        assert not [line for line in daemon.lines if "No space left" in line], "it was said already"
        world.knock("1", "2", "3")
        daemon.wait_for("once: OPEN SESAME")
        daemon.wait_for("the state database can be written again")
