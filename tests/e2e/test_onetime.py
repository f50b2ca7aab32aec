"""One-time doors with the real daemon: each sequence once, in order, whatever happens to files, store and processes."""

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from .world import LINES, Daemon, World, until, write_sequences


def knocks(line: str) -> list[str]:
    """A line of the file as the words of a knock."""
    return [word.strip() for word in line.split(",")]


@pytest.fixture
def file(world: World) -> Path:
    """A door with a file of four sequences; the rules are loaded."""
    path = write_sequences(world.config.parent / "anna", LINES)
    configure(world, path)
    world.apply()
    return path


def configure(world: World, *files: Path, more: str = "") -> None:
    names = ", ".join(f'"{path}"' for path in files)
    world.configure(f'[doors.ssh]\nonetime = [{names}]\nopens = ["22/tcp"]\ntimeout = "1h"\n{more}')


def attempt(world: World, daemon: Daemon, line: str, says: str) -> None:
    """Knock, and wait for this to be said anew."""
    daemon.read()
    known = len(daemon.lines)
    world.knock(*knocks(line))
    until(lambda: daemon.says(says) and any(says in line for line in daemon.lines[known:]), says)


def openings(daemon: Daemon) -> int:
    daemon.read()
    return sum("OPEN SESAME" in line for line in daemon.lines)


OPENS = "10.99.0.2: ssh: OPEN SESAME"


def test_t18_each_sequence_opens_once_and_in_order(world: World, file: Path) -> None:
    """T18: not before its turn, not a second time, and not after a restart."""
    with world.daemon() as daemon:
        world.knock(*knocks(LINES[1]))
        attempt(world, daemon, LINES[0], OPENS)
        assert "10.99.0.2 . tcp . 22" in world.granted()
        daemon.wait_for("3 one-time sequences left")
        world.knock(*knocks(LINES[0]))
        attempt(world, daemon, LINES[1], OPENS)
        assert openings(daemon) == 2
        daemon.process.kill()
        daemon.process.wait()
    with world.daemon() as daemon:
        for line in LINES[:2]:
            world.knock(*knocks(line))
        attempt(world, daemon, LINES[2], OPENS)
        daemon.wait_for("1 one-time sequence left")
        assert openings(daemon) == 1
    assert file.read_text() == "".join(f"{line}\n" for line in LINES), "the file is never written"


def test_t18_a_captured_sequence_is_refused_from_every_source(world: World, file: Path) -> None:
    """T18: while the client is knocking it, and afterwards."""
    with world.daemon() as daemon:
        words = [knock.replace(":", "/") if ":" in knock else f"{knock}/tcp" for knock in knocks(LINES[0])]
        both = [f"{src}>{world.gateway.ipv4}:{word}" for word in words for src in ("198.51.100.1", "198.51.100.2")]
        world.spoof(*both)
        daemon.wait_for("198.51.100.1: ssh: OPEN SESAME")
        daemon.wait_for("198.51.100.2: ssh: one-time sequence used up")
        world.spoof(*(f"198.51.100.3>{world.gateway.ipv4}:{word}" for word in words))
        attempt(world, daemon, LINES[1], OPENS)
        assert sum("OPEN" in line and "198.51.100" in line for line in daemon.lines) == 1
        assert set(world.granted()) <= {"198.51.100.1 . tcp . 22", "10.99.0.2 . tcp . 22"}


def test_t19_each_client_has_its_own_turn(world: World, file: Path) -> None:
    """T19: two files at one door; what one client uses is no other's loss."""
    other = write_sequences(file.parent / "ben", [" 7011, 8011, 9011", " 7012, 8012, 9012"])
    configure(world, file, other)
    world.apply()
    with world.daemon() as daemon:
        for line in (LINES[0], " 7011, 8011, 9011", LINES[1], " 7012, 8012, 9012"):
            attempt(world, daemon, line, OPENS)
        daemon.wait_for("ben is used up")


def test_a_file_that_was_edited_goes_on_behind_what_was_used(world: World, file: Path) -> None:
    """Said plainly, and noticed while it runs: lines before the place gone, lines behind it added, a whole new file."""
    with world.daemon() as daemon:
        attempt(world, daemon, LINES[0], OPENS)
        attempt(world, daemon, LINES[1], OPENS)
        daemon.lines.clear()
        write_sequences(file, LINES[1:])
        daemon.wait_for("was edited where it was used; goes on at line 2")
        attempt(world, daemon, LINES[2], OPENS)
        daemon.lines.clear()
        write_sequences(file, ["# a new one", LINES[0], "nonsense", LINES[3], LINES[2]])
        daemon.wait_for("goes on at line 6")
        daemon.wait_for("is used up")
        write_sequences(file, [LINES[0], LINES[3], LINES[2], LINES[1]])
        daemon.wait_for("goes on at line 4")
        daemon.wait_for("is used up")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        pytest.param([], "is used up: it opens nothing", id="empty"),
        pytest.param(["# nothing but this"], "is used up: it opens nothing", id="comments only"),
        pytest.param(["abc", *LINES], "line 1: 'abc' is no port number: passed over", id="a malformed line"),
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(LINES, "can be read by others", id="readable by others"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(world: World, file: Path, lines: list[str] | None, says: str) -> None:
    """And the daemon lives on; as soon as the file is right it counts."""
    file.unlink()
    if lines is not None:
        write_sequences(file, lines)
    if "others" in says:
        file.chmod(0o644)
    with world.daemon() as daemon:
        daemon.wait_for(says)
        write_sequences(file, LINES)
        daemon.wait_for("4 one-time sequences left")
        attempt(world, daemon, LINES[0], OPENS)


def test_t20_what_cannot_be_put_on_record_opens_nothing(world: World, file: Path) -> None:
    """T20: a damaged store; plain doors go on working, and say nothing of it."""
    configure(world, file, more='[doors.plain]\nsequence = ["7000/tcp", "8000/tcp", "9000/tcp"]\nopens = ["80/tcp"]\n')
    world.apply()
    state = file.parent / "state"
    (state / "logknock.db").write_bytes(os.urandom(8192))
    with world.daemon() as daemon:
        daemon.wait_for("one-time doors stay shut")
        world.knock(*knocks(LINES[0]))
        attempt(world, daemon, "7000, 8000, 9000", "10.99.0.2: plain: OPEN SESAME")
        assert set(world.granted()) == {"10.99.0.2 . tcp . 80"}


def test_a_store_that_cannot_be_written_for_a_while(world: World, file: Path) -> None:
    """Somebody else holds the database: the door stays shut and says so, and the same sequence opens it afterwards."""
    with world.daemon() as daemon:
        daemon.wait_for("4 one-time sequences left")
        with sqlite3.connect(file.parent / "state" / "logknock.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            attempt(world, daemon, LINES[0], "not opened: its use cannot be put on record")
            assert world.granted() == {}
            other.execute("ROLLBACK")
        other.close()
        attempt(world, daemon, LINES[0], OPENS)


def test_t20_what_cannot_be_put_on_record_closes_nothing_either(world: World, file: Path) -> None:
    """T20: a door that a one-time sequence closes stays as it is."""
    world.configure(
        '[doors.ssh]\nsequence = ["7000/tcp", "8000/tcp", "9000/tcp"]\nopens = ["22/tcp"]\ntimeout = "1h"\n'
        f'[doors.lock]\nonetime = ["{file}"]\ncloses = ["ssh"]\n'
    )
    world.apply()
    with world.daemon() as daemon:
        attempt(world, daemon, "7000, 8000, 9000", OPENS)
        with sqlite3.connect(file.parent / "state" / "logknock.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            attempt(world, daemon, LINES[0], "lock: not opened: its use cannot be put on record")
            assert world.granted()
            other.execute("ROLLBACK")
        other.close()
        attempt(world, daemon, LINES[0], "10.99.0.2: ssh: closed by lock")
        assert world.granted() == {}


def test_what_a_kill_left_in_the_log_is_merged(world: World, file: Path) -> None:
    """So that the log does not grow from crash to crash."""
    database = file.parent / "state" / "logknock.db"
    with world.daemon() as daemon:
        attempt(world, daemon, LINES[0], OPENS)
        daemon.process.kill()
        daemon.process.wait()
    assert str(file).encode() not in database.read_bytes()
    with world.daemon():
        until(lambda: str(file).encode() in database.read_bytes(), "the place of the file in the database itself")


def test_two_daemons_on_one_state_directory(world: World, file: Path) -> None:
    """The second refuses."""
    with world.daemon():
        other = world.config.with_name("other.toml")
        other.write_text("[log]\ngroup = 6\n" + world.config.read_text())
        other.chmod(0o600)
        second = world.gateway.logknock("run", "-c", str(other), check=False)
        assert (second.returncode, "another logknock daemon uses it" in second.stderr) == (69, True)
        assert "hint:" in second.stderr


def test_t36_a_reload_keeps_whose_turn_it_is(world: World, file: Path) -> None:
    with world.daemon() as daemon:
        attempt(world, daemon, LINES[0], OPENS)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        attempt(world, daemon, LINES[1], OPENS)
        other = write_sequences(file.parent / "ben", [" 7001, 8001:udp, 9002:udp"])
        configure(world, file, other)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(f"{other}: 1 one-time sequence left")
        attempt(world, daemon, " 7001, 8001:udp, 9002:udp", OPENS)


def test_t36_another_state_directory_needs_a_restart(world: World, file: Path) -> None:
    """T36: what was used is in this one."""
    with world.daemon() as daemon:
        world.config.write_text(world.config.read_text().replace("/state", "/elsewhere"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("[paths] state cannot change while logknock runs")
        daemon.wait_for("not reloaded")
        attempt(world, daemon, LINES[0], OPENS)


def test_the_rules_watch_all_ports_of_the_files(world: World, file: Path) -> None:
    watched = world.gateway.run("nft", "list", "set", "inet", "logknock", "watched").stdout
    for port in ("tcp . 7001", "udp . 8003", "tcp . 9004"):
        assert port in watched
    write_sequences(file, ["abc", *LINES])
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config))
    assert "line 1" in done.stderr
    assert "line 1" in world.gateway.logknock("check", "-c", str(world.config)).stderr


def test_ports_that_nobody_watches_are_told(world: World, file: Path) -> None:
    """A new file, and the rules are older: its knocks would not be heard."""
    with world.daemon() as daemon:
        daemon.wait_for("4 one-time sequences left")
        write_sequences(file, [" 7101, 8001:udp, 9101"])
        daemon.wait_for("set inet logknock watched lacks 7101/tcp, 9101/tcp (hint: the configuration is newer")
