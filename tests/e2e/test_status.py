"""`logknock status`: what it says of a daemon, of open doors and of one-time files, and that it disturbs none."""

import fcntl
import json
import os
import pty
import re
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logknock.knock import Code, Door, Grant
from logknock.knock import Sequence as Knocks
from logknock.onetime import Place
from logknock.onetime_files import find_next, fits
from logknock.status import Running, find_daemon, look
from logknock.store import LOCK, open_store
from logknock.turns import FEW, Turns

from .world import LINES, Daemon, World, write_sequences

KNOCKED = re.compile(r"\b[789]00[0-9]\b")
SRC = bytes([203, 0, 113, 7])


@pytest.fixture
def file(world: World) -> Path:
    """A door with a file of four sequences."""
    path = write_sequences(world.config.parent / "anna", LINES)
    configure(world, path)
    return path


def configure(world: World, *files: Path) -> None:
    names = ", ".join(json.dumps(str(path)) for path in files)
    world.configure(f'[doors.ssh]\nonetime = [{names}]\nopens = ["22/tcp"]\ntimeout = "50s"\n')


def status(world: World, *options: str, code: int = 0) -> str:
    """What it prints; no sequence is ever in it."""
    done = world.gateway.logknock("status", "-c", str(world.config), *options, check=False)
    assert (done.returncode, done.stderr) == (code, ""), done
    assert not KNOCKED.search(done.stdout)
    assert "\x1b" not in done.stdout, "what is piped is plain"
    return done.stdout


def told(world: World, *options: str, code: int = 0) -> Any:
    return json.loads(status(world, "--json", *options, code=code))


def use(world: World, daemon: Daemon, line: str) -> None:
    """Knock one sequence of the file, until the door is open and what is left has been said."""
    daemon.read()
    daemon.lines.clear()
    world.knock(*(word.strip() for word in line.split(",")))
    daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")


def test_the_story_of_a_door(world: World, file: Path) -> None:
    """Before the first start, while the daemon runs, and after it was killed."""
    before = status(world)
    assert "logknock does not run" in before
    assert re.search(r"ssh  \S+/anna  0 used  4 left  line 1 is next", before)
    assert not (file.parent / "state").exists(), "it makes nothing"
    world.apply()
    with world.daemon() as daemon:
        daemon.wait_for("4 one-time sequences left")
        use(world, daemon, LINES[0])
        text = status(world)
        assert f"logknock runs (process {daemon.process.pid})" in text
        assert re.search(r"^  ssh  10\.99\.0\.2  \d+s left$", text, re.MULTILINE)
        assert re.search(r"ssh  \S+/anna  1 used  3 left  line 2 is next\n    warning: 3 left", text)
        assert re.search(r"^  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  opened  ssh  10\.99\.0\.2  50 s$", text, re.MULTILINE)
        assert re.search(rf"used    ssh  10\.99\.0\.2  line 1 of {file}", text)
        answer = told(world)
        assert answer["daemon"] == {"runs": True, "pid": daemon.process.pid}
        assert 0 < answer["open"][0].pop("left") <= 50
        opened = answer["open"][0].pop("opened")
        assert abs(time.time() - time.mktime(time.strptime(opened, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 60
        assert answer["open"] == [{"door": "ssh", "address": "10.99.0.2"}]
        assert [entry["event"] for entry in answer["history"]] == ["opened", "used"]
        assert len(told(world, "--history", "1")["history"]) == 1
        daemon.process.kill()
        daemon.process.wait()
    after = told(world)
    assert after["daemon"] == {"runs": False, "pid": None}
    assert (after["onetime"], after["history"]) == (answer["onetime"], answer["history"])
    assert after["open"], "the kernel closes it, not the daemon's death"


@pytest.mark.parametrize(
    ("lines", "left", "says", "code"),
    [
        pytest.param(None, None, "does not exist", 1, id="missing"),
        pytest.param(LINES, None, "can be read by others", 1, id="readable by others"),
        pytest.param(["# nothing"], 0, "is used up: it opens nothing", 1, id="used up"),
        pytest.param(["abc", *LINES * 4, "7,"], 16, "line 18: a port is missing", 0, id="malformed"),
        pytest.param([*["abc"] * 20, *LINES * 4], 16, "20 malformed lines in all", 0, id="many malformed"),
        pytest.param(LINES * 4, 16, "", 0, id="right"),
    ],
)
def test_what_is_wrong_with_a_file(
    world: World, file: Path, lines: list[str] | None, left: int | None, says: str, code: int
) -> None:
    """The exit code is 1 where nothing opens, and the other door is told of all the same."""
    file.unlink()
    if lines is not None:
        write_sequences(file, lines)
    if "others" in says:
        file.chmod(0o644)
    configure(world, file, write_sequences(file.parent / "ben", LINES * 5))
    answer = told(world, code=code)
    anna, ben = answer["onetime"]
    remarks = anna["errors" if code else "warnings"]
    assert any(says in text for text in remarks) if says else not anna["errors"] + anna["warnings"]
    assert (anna["left"], ben["left"], answer["ok"]) == (left, 20, not code)


def test_a_file_that_was_edited(world: World, file: Path) -> None:
    world.apply()
    with world.daemon() as daemon:
        use(world, daemon, LINES[0])
        use(world, daemon, LINES[1])
    write_sequences(file, ["# new", *LINES[1:]])
    (anna,) = told(world)["onetime"]
    assert "was edited where it was used; goes on at line 3" in anna["warnings"]
    assert (anna["used"], anna["left"], anna["next_line"]) == (2, 2, 3)
    write_sequences(file, [LINES[0], LINES[3]])
    (anna,) = told(world)["onetime"]
    assert "its beginning: the sequence that was used last is gone" in anna["warnings"][0]
    assert (anna["left"], anna["next_line"]) == (1, 2), "what was used before does not count again"


@pytest.mark.parametrize(
    ("damage", "says", "code"),
    [
        pytest.param("random", "file is not a database", 1, id="damaged"),
        pytest.param("newer", "was written by a newer logknock", 1, id="newer"),
        pytest.param("denied", "permission denied", 77, id="no permission"),
        pytest.param("gone", "is gone, but logknock.db-wal", 1, id="gone"),
    ],
)
def test_a_database_that_cannot_be_read(world: World, file: Path, damage: str, says: str, code: int) -> None:
    """One line and what to do; the rest is answered: the daemon, and what is wrong with the file itself."""
    write_sequences(file, ["abc", *LINES])
    state = file.parent / "state"
    open_store(state).close()
    database = state / "logknock.db"
    if damage == "random":
        database.write_bytes(os.urandom(8192))
    elif damage == "newer":
        data = bytearray(database.read_bytes())
        data[60:64] = (99).to_bytes(4)  # the header's user_version (sqlite.org/fileformat.html)
        database.write_bytes(data)
    elif damage == "denied":
        database.chmod(0)
    else:
        database.rename(state / "logknock.db-wal")
    command = [sys.executable, "-m", "logknock", "status", "--json", "-c", str(world.config)]
    # Root without its powers: the permissions of files count.
    done = world.gateway.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", *command, check=False)
    assert done.returncode == code, done
    answer = json.loads(done.stdout)
    (error,) = answer["errors"]
    assert says in error
    assert "(hint: " in error
    assert answer["daemon"]["runs"] is False
    (anna,) = answer["onetime"]
    assert (anna["used"], anna["left"]) == (None, None)
    assert any(text.startswith("line 1: ") for text in anna["warnings"])


def test_it_never_holds_the_lock_that_a_daemon_needs(tmp_path: Path) -> None:
    """Whatever the moment at which a daemon starts: its lock is free."""
    ended = threading.Event()
    seen: set[Running] = set()

    def ask() -> None:
        while not ended.is_set():
            seen.add(find_daemon(tmp_path))
            look((), tmp_path, 1, lambda *_: None)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end or len(seen) < 2:
            assert time.monotonic() < end + 20, f"only {seen} was seen"
            lock = os.open(tmp_path / LOCK, os.O_RDONLY | os.O_CREAT)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(lock)
    finally:
        ended.set()
        thread.join()
    assert seen == {Running(False), Running(True, os.getpid())}


def test_who_can_read_the_directory_is_no_daemon(tmp_path: Path) -> None:
    """The directory's own lock is anybody's to have; a daemon has that of a file in it, and is seen by it."""
    state = tmp_path / "state"
    assert find_daemon(state) == Running(False), "there is none yet"
    store = open_store(state)
    lock = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert find_daemon(state) == Running(True, os.getpid())
        store.close()
        assert find_daemon(state) == Running(False)
    finally:
        os.close(lock)


def test_one_door_alone(world: World, file: Path) -> None:
    other = f'[doors.web]\nonetime = ["{write_sequences(file.parent / "ben", LINES)}"]\nopens = ["80/tcp"]\n'
    world.config.write_text(world.config.read_text() + other)
    store = open_store(file.parent / "state")
    now = time.monotonic()
    for door in ("web", "ssh", "ssh"):
        store.opened(Grant(door, SRC, now + 60), time.time(), now)
    store.opened(Grant("web", SRC[::-1], now), time.time(), now)
    store.close()
    every, web = told(world), told(world, "--door", "web", "--history", "2")
    assert [entry["door"] for entry in every["onetime"]] == ["ssh", "web"]
    assert [entry["door"] for entry in every["open"]] == ["ssh", "web"], "one that has ended is not open"
    assert [entry["door"] for entry in every["history"]] == ["web", "ssh", "ssh", "web"]
    for part, count in (("onetime", 1), ("open", 1), ("history", 2)):
        assert [entry["door"] for entry in web[part]] == ["web"] * count
    done = world.gateway.logknock("status", "-c", str(world.config), "--door", "x\x1b[2J", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "logknock: there is no door x\\x1b[2J\nhint: the doors are: ssh, web\n"


def test_nothing_foreign_reaches_the_terminal_raw(world: World, file: Path) -> None:
    """Not what a malformed line holds, nor what the database does; of ours, colours and no more."""
    configure(world, write_sequences(file.parent / "[bold]", [*LINES * 4, "\x1b[2Jabc"]))
    sequence = find_next(file, Place()).sequence
    assert sequence
    store = open_store(file.parent / "state")
    store.use(Code("ssh", "\x1b]0;owned\x07", sequence), Place(1, 9, sequence), SRC, 1e30)
    store.close()
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "logknock", "status", "-c", str(world.config)]
    process = world.gateway.start(*command, stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    try:
        while some := os.read(master, 65536):
            text += some
    except OSError:  # EIO: nobody has the other end any more
        pass
    finally:
        os.close(master)
    assert process.wait() == 0
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", text.replace(b"\r\n", b"\n")).decode()
    assert plain != text.decode(), "there are colours"
    assert [c for c in plain if not c.isprintable() and c != "\n"] == []
    assert r"/[bold]  0 used  15 left  line 2 is next" in plain
    assert r"line 17: '\x1b[2Jabc' is no port number" in plain
    assert r"?  used  ssh  203.0.113.7  line 1 of \x1b]0;owned\x07" in plain, "and a time beyond all calendars is none"


def test_what_sqlite_quotes_of_a_damaged_database_is_printable(world: World, file: Path) -> None:
    state = file.parent / "state"
    open_store(state).close()
    with closing(sqlite3.connect(state / "logknock.db", isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET name = char(27) || '[2J', sql = 'CREATE TABLE' WHERE name = 'used'")
    assert r"malformed database schema (\x1b[2J)" in status(world, code=1)


EDITED = st.lists(st.sampled_from([*LINES, "", "# a comment", "abc", " 1, 2, 3"]), max_size=12)


class Said:
    """A daemon's turns on a file, with a real store: which sequence counts, and how many it says are left."""

    def __init__(self, state: Path, file: Path) -> None:
        self.store = open_store(state)
        self.planted: Knocks | None = None
        self.lines: list[str] = []
        self.turns = Turns(self.store, self.plant, lambda text, bad: self.lines.append(text))
        self.turns.use([Door("ssh", (), onetime=(str(file),))])
        self.work()

    def plant(self, door: str, file: str, sequence: Knocks | None) -> None:
        self.planted = sequence

    def work(self) -> None:
        while self.turns.work():
            pass

    def left(self) -> int:
        counts = [found[1] for line in self.lines if (found := re.search(r": (\d+) one-time", line))]
        return int(counts[-1]) if counts else 0


@settings(max_examples=60, deadline=None)
@given(first=EDITED, uses=st.integers(0, 4), then=EDITED)
def test_it_says_what_the_daemon_says(first: list[str], uses: int, then: list[str]) -> None:
    """Some of a file is used, then it is edited: both go on at the same sequence, and count the same."""
    assert max(map(len, (first, then))) <= FEW + 2, "a daemon tells of few only"
    with tempfile.TemporaryDirectory() as folder:
        state, path = Path(folder, "state"), write_sequences(Path(folder, "anna"), first)
        door = Door("ssh", (), onetime=(str(path),))
        before = Said(state, path)
        for _ in range(uses):
            if before.planted:
                before.turns.spend(Code("ssh", str(path), before.planted), SRC, 1e9)
                before.work()
        place = before.store.place("ssh", str(path)) or Place()
        before.store.close()
        write_sequences(path, then)
        # Where the same sequence stands at the same place, nobody sees that there are more or fewer lines before it.
        assume(not fits(path, place) or len(path.read_bytes()[: place.offset].splitlines()) == place.line)
        (file,) = look((door,), state, 0, lambda *_: None).files
        after = Said(state, path)
        after.store.close()
        lines = path.read_bytes().splitlines()
        following = (
            None
            if file.next_line is None
            else write_sequences(Path(folder, "line"), [lines[file.next_line - 1].decode()])
        )
        assert (find_next(following, Place()).sequence if following else None) == after.planted
        if (file.left or 0) <= FEW:
            assert file.left == after.left()
