"""`logknock status`: what it says of a daemon, of open doors and of one-time files, and that it disturbs none."""

import fcntl
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logknock.control import ask
from logknock.knock import Code, Door, Grant
from logknock.knock import Sequence as Knocks
from logknock.onetime import Place
from logknock.onetime_files import find_next, fits
from logknock.status import Running, find_daemon, look
from logknock.store import LOCK, open_store
from logknock.turns import FEW, Turns

from ..netns import Host
from .pages import COMMANDS, HOST, KNOCKER, Guide, documented, follows, guarded, private, run
from .world import KNOCKS, LINES, SSH, Daemon, World, until, write_sequences

PAGE = follows("docs/howto/status.md")

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
    before = status(world, code=69)
    assert before.startswith("logknock does not run: nobody is let in\n")
    assert re.search(r"ssh  \S+/anna  0 used  4 left  line 1 is next", before)
    assert not (file.parent / "state").exists(), "it makes nothing"
    world.apply()
    with world.daemon() as daemon:
        daemon.wait_for("4 one-time sequences left")
        use(world, daemon, LINES[0])
        text = status(world)
        first = rf"logknock \S+ runs \(process {daemon.process.pid}\) since \d{{4}}-\d\d-\d\d [\d:]{{8}}, all is well\n"
        assert re.match(first, text)
        assert re.search(r"^  ssh  10\.99\.0\.2  \d+s left$", text, re.MULTILINE)
        assert re.search(r"ssh  \S+/anna  1 used  3 left  line 2 is next\n    warning: 3 left", text)
        assert re.search(r"^  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  opened  ssh  10\.99\.0\.2  50 s$", text, re.MULTILINE)
        assert re.search(rf"used    ssh  10\.99\.0\.2  line 1 of {file}", text)
        answer = told(world)
        assert answer["daemon"] == {"runs": True, "pid": daemon.process.pid}
        assert 0 < answer["open"][0].pop("left") <= 50
        opened = answer["open"][0].pop("opened")
        assert abs(time.time() - time.mktime(time.strptime(opened, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 60
        assert answer["open"] == [{"door": "ssh", "address": "10.99.0.2", "by": "", "open": True}]
        assert [entry["event"] for entry in answer["history"]] == ["opened", "used"]
        assert len(told(world, "--history", "1")["history"]) == 1
        daemon.process.kill()
        daemon.process.wait()
    after = told(world, code=69)
    assert after["daemon"] == {"runs": False, "pid": None}
    assert (after["onetime"], after["history"]) == (answer["onetime"], answer["history"])
    assert after["open"], "the kernel closes it, not the daemon's death"


@pytest.mark.parametrize(
    ("lines", "left", "says", "code"),
    [
        pytest.param(None, None, "does not exist", 1, id="missing"),
        pytest.param(LINES, None, "can be read by others", 1, id="readable by others"),
        pytest.param(["# nothing"], 0, "is used up: it opens nothing", 1, id="used up"),
        pytest.param(["abc", *LINES * 4, "7,"], 16, "line 18: a port is missing", 69, id="malformed"),
        pytest.param([*["abc"] * 20, *LINES * 4], 16, "20 malformed lines in all", 69, id="many malformed"),
        pytest.param(LINES * 4, 16, "", 69, id="right"),
    ],
)
def test_what_is_wrong_with_a_file(
    world: World, file: Path, lines: list[str] | None, left: int | None, says: str, code: int
) -> None:
    """The exit code is 1 where nothing opens, more than that no daemon runs; the other door is told of all the same."""
    file.unlink()
    if lines is not None:
        write_sequences(file, lines)
    if "others" in says:
        file.chmod(0o644)
    configure(world, file, write_sequences(file.parent / "ben", LINES * 5))
    answer = told(world, code=code)
    anna, ben = answer["onetime"]
    remarks = anna["errors" if code == 1 else "warnings"]
    assert any(says in text for text in remarks) if says else not anna["errors"] + anna["warnings"]
    assert (anna["left"], ben["left"], answer["ok"]) == (left, 20, False)


def test_a_file_that_was_edited(world: World, file: Path) -> None:
    world.apply()
    with world.daemon() as daemon:
        use(world, daemon, LINES[0])
        use(world, daemon, LINES[1])
    write_sequences(file, ["# new", *LINES[1:]])
    (anna,) = told(world, code=69)["onetime"]
    assert "was edited where it was used; goes on at line 3" in anna["warnings"]
    assert (anna["used"], anna["left"], anna["next_line"]) == (2, 2, 3)
    write_sequences(file, [LINES[0], LINES[3]])
    (anna,) = told(world, code=69)["onetime"]
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
    every, web = told(world, code=69), told(world, "--door", "web", "--history", "2", code=69)
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
    assert process.wait() == 69
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


# ---- how the daemon says that it stands


def degraded(world: World) -> list[dict[str, Any]]:
    """What is degraded; the exit code is 1 then."""
    done = world.gateway.logknock("status", "--json", "-c", str(world.config), check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout)["degraded"]
    assert done.returncode == (1 if found else 0), done
    return found


def test_what_the_daemon_does_is_counted(world: World) -> None:
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        answer = told(world)
        (source,) = answer["sources"]
        assert source.pop("rate") >= 0
        assert source == {"name": "NFLOG group 5", "records": 3, "lost": 0, "ignored": 0, "trouble": ""}
        standing = answer["standing"]
        assert standing["doors"] == [{"name": "ssh", "open": 1, "opened": 1}]
        assert (standing["opened"], standing["closed"], standing["refused"]) == (1, 0, 0)

        def rate() -> float:
            world.knock("7000/tcp")
            return float(told(world)["sources"][0]["rate"])

        until(rate, "a rate")
        world.gateway.logknock("revoke", "--all", "-c", str(world.config))
        standing = told(world)["standing"]
        assert standing["doors"] == [{"name": "ssh", "open": 0, "opened": 1}]
        assert standing["started"] <= standing["loaded"]
        assert told(world, "--door", "ssh")["standing"]["doors"] == standing["doors"]
        world.gateway.logknock("reload", "-c", str(world.config))
        assert "  door ssh       0 open, 1 opened\n" in status(world)


def test_t34_a_firewall_that_lost_its_table_is_degraded_until_it_is_back(world: World) -> None:
    """T34: at a glance, with since when and what to do."""
    world.configure(SSH + "[firewall]\nrestore = false\n")
    world.apply()
    with world.daemon():
        assert degraded(world) == []
        world.gateway.run("nft", "delete", "table", "inet", "logknock")
        until(lambda: degraded(world), "it is noticed")
        (found,) = degraded(world)
        assert found["part"] == "firewall"
        assert found["hint"] == "`logknock rules apply` loads it"
        first, second, *_ = status(world, code=1).splitlines()
        assert first.endswith(", degraded: firewall")
        assert re.match(r"degraded: firewall, since \d{4}-\S+ \S+: .*granted4 is missing.*\(hint: ", second)
        assert degraded(world)[0]["since"] == found["since"]
        world.apply()
        until(lambda: not degraded(world), "it is over")


def test_a_log_that_is_not_there_is_degraded_until_it_is(world: World, tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    world.configure(f'[log]\nsource = ["nflog", "file"]\nfile.path = "{log}"\n' + SSH)
    world.apply()
    with world.daemon():
        until(lambda: degraded(world), "it is noticed")
        (found,) = degraded(world)
        assert found["part"] == "source"
        assert f"{log}: no such file" in found["why"]
        assert [bool(each["trouble"]) for each in json.loads(status(world, "--json", code=1))["sources"]] == [
            False,
            True,
        ]
        log.write_text("")
        until(lambda: not degraded(world), "it is over")


def test_a_database_that_cannot_be_written_is_degraded_until_it_can(world: World, tmp_path: Path) -> None:
    """A full disk; nobody has to knock for it to be seen that there is room again."""
    state = tmp_path / "state"
    world.apply()
    state.mkdir(exist_ok=True)
    inside = ("sh", "-c", f'mount -t tmpfs -o size=300k,mode=700 tmpfs {state} && exec "$@"', "sh")
    command = [*inside, sys.executable, "-m", "logknock", "run", "-c", str(world.config)]
    process = world.gateway.start(*command, stderr=subprocess.PIPE)
    daemon = Daemon(process)
    fill = Path(f"/proc/{process.pid}/root{state}/fill")

    def standing() -> Any:
        (answer,) = ask(tmp_path / "run", "status")
        return answer["standing"]

    try:
        daemon.wait_for("ready")
        with suppress(OSError):
            fill.write_bytes(bytes(1 << 20))
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        until(lambda: [each["part"] for each in standing()["degraded"]] == ["store"], "it is degraded")
        assert standing()["store_errors"] > 0
        assert "make room" in standing()["degraded"][0]["hint"]
        fill.unlink()
        until(lambda: not standing()["degraded"], "it is over")
        daemon.wait_for("the state database can be written again")
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_who_may_not_read_the_database_hears_from_the_daemon_who_is_in(world: World, tmp_path: Path) -> None:
    """As a member of the group does, to whom the state directory is shut."""
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        (tmp_path / "state" / "logknock.db").chmod(0)
        command = [sys.executable, "-m", "logknock", "status", "--json", "-c", str(world.config)]
        done = world.gateway.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", *command, check=False)
        assert done.returncode == 0, done
        answer = json.loads(done.stdout)
        assert (answer["ok"], answer["errors"]) == (True, [])
        assert "permission denied" in answer["warnings"][0]
        assert (answer["open"][0]["door"], answer["open"][0]["opened"]) == ("ssh", None)


def test_a_daemon_that_uses_another_state_directory_runs_all_the_same(world: World) -> None:
    """[paths] state was changed since it has started: it is asked, and not only looked for there."""
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        world.config.write_text(world.config.read_text().replace('/state"', '/other"'))
        text = status(world, code=1)
        assert re.match(r"logknock \S+ runs since ", text)
        assert re.search(
            r"^error: the daemon that runs does not use \S+/other, as the configuration", text, re.MULTILINE
        )
        assert re.search(r"^  ssh  10\.99\.0\.2  \d+s left$", text, re.MULTILINE)


def test_a_one_time_file_that_opens_nothing_is_degraded(world: World, file: Path) -> None:
    write_sequences(file, LINES[:1])
    world.apply()
    with world.daemon() as daemon:
        daemon.wait_for("1 one-time sequence left")
        assert degraded(world) == []
        use(world, daemon, LINES[0])
        until(
            lambda: json.loads(world.gateway.logknock("status", "--json", "-c", str(world.config), check=False).stdout)[
                "degraded"
            ],
            "it is used up",
        )
        (found,) = degraded(world)
        assert found["part"] == "files"
        assert f"ssh: {file} is used up" in found["why"]
        write_sequences(file, LINES)
        until(lambda: not degraded(world), "it is over")


def test_a_daemon_that_cannot_be_asked_is_degraded(world: World, tmp_path: Path) -> None:
    """Its log and systemd say so; here it is seen that it runs, and not how."""
    (tmp_path / "run" / "control.sock").mkdir(parents=True)
    world.apply()
    with world.daemon(ready=False) as daemon:
        daemon.wait_for("nobody can ask this daemon anything")
        daemon.counter("doors open")
        assert daemon.says("degraded: control: ")
        text = status(world, code=1)
        assert re.match(rf"logknock runs \(process {daemon.process.pid}\)\nerror: how it stands is not known: ", text)


def test_the_page_s_commands_and_what_they_show(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    documented(hosts)
    configuration = """[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp"]
timeout = "5m"

[firewall]
restore = false
"""
    with private(hosts[0], {"host.example": HOST[:1]}, COMMANDS) as gateway, guarded(gateway, configuration) as daemon:
        hosts[1].logknock("knock", HOST[0], *KNOCKS)
        daemon.expect("OPEN SESAME")
        guide = Guide(PAGE, {"": gateway})
        said = guide.run("logknock status\n").splitlines()
        shown = PAGE.block("one-time files", "text").text.splitlines()
        number = re.compile(r"\d[\d,.:-]*")

        def alike(lines: list[str]) -> list[str]:
            return [" ".join(number.sub("0", line).split()) for line in lines]

        assert alike(said)[:9] == alike(shown)[:9]
        assert alike(shown)[alike(shown).index("open doors") - 1] == ""
        assert re.search(rf"^  ssh  {KNOCKER[0]}  .* left$", "\n".join(said), re.MULTILINE)
        answer = json.loads(guide.run("--json"))
        page = (Path(__file__).parents[2] / PAGE.name).read_text()
        for name in (*answer, *answer["standing"], *answer["sources"][0], *answer["open"][0], *answer["history"][0]):
            assert f"`{name}`" in page or f"`{name}." in page, f"the page says nothing of {name}"
        gateway.run("nft", "delete", "table", "inet", "logknock")
        daemon.expect("granted4 is missing")
        guide.shown("degraded: firewall", run(gateway, "logknock status", fails=True))
