"""The state store: what it remembers, through crashes, full disks, damage and other people's clocks."""

import ctypes
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock import store as module
from logknock.errors import UNAVAILABLE
from logknock.knock import Code, Grant, Sequence, Service
from logknock.onetime import Place
from logknock.packet import TCP, UDP
from logknock.store import (
    CHECKPOINT_COMMITS,
    DATABASE,
    LOCK,
    MAX_HISTORY,
    Authentic,
    NoStore,
    Reader,
    SQLiteStore,
    StateInUse,
    Store,
    StoredGrant,
    StoreError,
    open_store,
    read_only,
)

ALICE, BOB = "/etc/logknock/onetime/alice", "/etc/logknock/onetime/bob"
SRC = bytes([203, 0, 113, 7])
GRANT = Grant("ssh", SRC, 130.0)
NOW, MONO = 1_800_000_000.0, 100.0


@pytest.fixture(autouse=True, scope="module")
def private() -> Iterator[None]:
    """The files that these tests write in logknock's place are nobody else's, as its own are."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def sequence(number: int) -> Sequence:
    return (Service(TCP, 7000), Service(UDP, 1 + number % 65535), Service(TCP, 1 + number // 65535))


def code(number: int, file: str = ALICE, door: str = "ssh") -> Code:
    return Code(door, file, sequence(number))


def place(number: int) -> Place:
    return Place(number, number * 20, sequence(number))


def use(store: Store, number: int, file: str = ALICE, door: str = "ssh") -> bool:
    return store.use(code(number, file, door), place(number), SRC, NOW)


def use_step(store: Store, step: int, client: str = "laptop", door: str = "ssh") -> bool:
    return store.use_step(door, client, step, SRC, NOW)


def identity(number: int) -> bytes:
    return number.to_bytes(32)


def authentic(number: int, stamp: int = int(NOW), client: str = "laptop", signer: bytes = b"") -> Authentic:
    """A packet of a client's, signed with the key of that name where none else is said."""
    return Authentic(identity(number), stamp, signer or client.encode().ljust(32), "vpn", client)


def see(store: Store, number: int, stamp: int = int(NOW), client: str = "laptop", signer: bytes = b"") -> bool:
    return store.see(authentic(number, stamp, client, signer), SRC, NOW)


@contextmanager
def opened(state: Path) -> Iterator[SQLiteStore]:
    """The store, which has to open."""
    store = open_store(state)
    if isinstance(store, NoStore):
        store.close()
        raise store.reason
    with closing(store):
        yield store


def refused(state: Path) -> StoreError:
    """Why the store does not open."""
    with closing(open_store(state)) as store:
        assert isinstance(store, NoStore)
        return store.reason


def raw(state: Path, *statements: str) -> None:
    """Do to the database what logknock itself never does."""
    with closing(sqlite3.connect(state / DATABASE, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def contents(state: Path) -> str:
    """Names, times and sums, as another process sees them: to close such a file here would drop SQLite's locks."""
    command = ["sh", "-c", 'cd "$0" && stat -c "%n %s %y" * && sha256sum *', str(state)]
    done: subprocess.CompletedProcess[str] = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def in_child(action: Callable[[], None]) -> int:
    """Fork, do it there, and give back the child's wait status: 0 where it came to its end."""
    child = os.fork()
    if not child:
        status = 1
        try:
            action()
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, nothing of pytest may run in the child
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def in_private_mounts(action: Callable[[], None]) -> None:
    """Do it in a child whose mounts nobody else sees, and which are gone with it."""

    def apart() -> None:
        clone_newns = 0x00020000
        if ctypes.CDLL(None, use_errno=True).unshare(clone_newns):
            raise OSError(ctypes.get_errno(), "unshare")
        mount("--make-rprivate", "/")
        action()

    assert in_child(apart) == 0


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True, capture_output=True)


def at_each_step(state: Path, prepare: Callable[[Path], Any], action: Callable[[Any, int], None]) -> Iterator[bytes]:
    """Kill a process before the first line of the action, then before the second, until it survives.

    Yields, after each of its ends, what the action wrote to the descriptor it got.
    """
    for step in range(1, 10_000):
        shutil.rmtree(state, ignore_errors=True)
        reader, writer = os.pipe()
        status = in_child(lambda step=step, writer=writer: _killed(step, prepare(state), action, writer))  # type: ignore[misc]
        os.close(writer)
        with open(reader, "rb") as reports:
            yield reports.read()
        if status == 0:
            assert step > 10
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


def _killed(step: int, prepared: Any, action: Callable[[Any, int], None], writer: int) -> None:
    left = step

    def count(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in (module.__file__, __file__):
            return None
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)
    action(prepared, writer)
    sys.settrace(None)


class TestRemembering:
    """What is recorded is there again."""

    def test_t18_a_used_sequence_stays_used(self, tmp_path: Path) -> None:
        """T18: at its door it is used whatever the file, also after a restart; another door has its own."""
        with opened(tmp_path) as store:
            assert store.created
            assert use(store, 1)
            assert not use(store, 1)
            assert not use(store, 1, BOB)
        with opened(tmp_path) as store:
            assert not store.created
            assert store.checked
            assert store.was_used("ssh", sequence(1))
            assert not use(store, 1)
            assert not use(store, 1, BOB)
            assert not store.was_used("web", sequence(1))
            assert use(store, 1, door="web")
            assert not store.was_used("ssh", sequence(2))
            assert not store.was_used("ssh", sequence(1)[:2])
            assert [store.used("ssh", ALICE), store.used("ssh", BOB), store.used("web", ALICE)] == [1, 0, 1]

    def test_places(self, tmp_path: Path) -> None:
        """A file's place moves with each use, used before or not, and without one; each door has its own."""
        with opened(tmp_path) as store:
            assert store.place("ssh", ALICE) is None
            assert use(store, 3)
            assert store.place("ssh", ALICE) == place(3)
            store.move("ssh", ALICE, Place(9, 900))
            store.move("ssh", BOB, place(4))
            assert not use(store, 3, BOB, "ssh")
        with opened(tmp_path) as store:
            assert store.place("ssh", ALICE) == Place(9, 900)
            assert store.place("ssh", BOB) == place(3)
            assert store.place("web", ALICE) is None
            assert [store.used("ssh", ALICE), store.used("ssh", BOB), store.used("web", ALICE)] == [1, 0, 0]

    def test_t18_a_used_step_stays_used_and_each_before_it(self, tmp_path: Path) -> None:
        """T19: by door and client, so that two clients in one step both get in; also after a restart."""
        with opened(tmp_path) as store:
            assert store.steps() == {}
            assert use_step(store, 60_000_000)
            assert not use_step(store, 60_000_000)
            assert use_step(store, 60_000_000, "phone")
            assert use_step(store, 60_000_000, door="web")
            assert use_step(store, 60_000_001)
        with opened(tmp_path) as store:
            for step in (0, 59_999_999, 60_000_000, 60_000_001):
                assert not use_step(store, step)
            assert use_step(store, 60_000_002)
            last = {("ssh", "laptop"): 60_000_002, ("ssh", "phone"): 60_000_000, ("web", "laptop"): 60_000_000}
            assert store.steps() == last
            with read_only(tmp_path) as reader:
                assert reader.steps() == last
            assert [entry.event for entry in store.history(9)] == ["used"] * 5
            words = f"the step of {datetime.fromtimestamp(60_000_002)} of client laptop"
            assert store.history(1)[0] == (NOW, "used", "ssh", SRC, words)

    def test_t18_a_packet_that_was_seen_stays_seen(self, tmp_path: Path) -> None:
        """Whoever sends it, whatever time it claims; another one is another one."""
        with opened(tmp_path) as store:
            assert see(store, 1)
            assert see(store, 2)
        with opened(tmp_path) as store:
            assert not see(store, 1)
            assert not see(store, 1, int(NOW) + 1)
            assert not see(store, 2, client="phone")
            with read_only(tmp_path) as reader:
                seen = [reader.was_seen(authentic(number)) for number in (1, 2, 3)]
            assert seen == [True, True, False]
            assert see(store, 3)
            assert [entry.detail for entry in store.history(9)] == ["a packet of client laptop"] * 3

    def test_t19_what_is_forgotten_leaves_a_mark(self, tmp_path: Path) -> None:
        """The newest forgotten packet of a client: none of its that is not newer is ever new again."""
        with opened(tmp_path) as store:
            for number, client in ((10, "laptop"), (20, "phone"), (30, "laptop"), (40, "laptop")):
                assert see(store, number, number, client)
            store.forget(31)
            assert not see(store, 40, 40), "not forgotten"
        with opened(tmp_path) as store:
            for number, client in ((10, "laptop"), (30, "laptop"), (20, "phone")):
                assert not see(store, number, number, client)
            assert store.was_seen(authentic(31, 30))
            assert not see(store, 31, 30), "another one of that second may be one that was forgotten"
            assert see(store, 32, 31)
            assert see(store, 33, 21, "phone")
            assert see(store, 34, 0, "tablet"), "nothing of it was ever forgotten"
            store.forget(0)
            store.forget(22)
            assert not see(store, 35, 29), "no mark ever goes back"
            assert not see(store, 36, 21, "phone")

    def test_t19_a_mark_is_the_key_s_and_not_a_name_s(self, tmp_path: Path) -> None:
        """T18: else a client that is called otherwise, with the keys that it had, would be new to the store."""
        key, other = b"k" * 32, b"o" * 32
        with opened(tmp_path) as store:
            assert see(store, 1, 10, "laptop", key)
            store.forget(11)
            assert not see(store, 1, 10, "notebook", key)
            assert see(store, 2, 10, "laptop", other), "a new client of the old name has nothing to wait for"
            assert see(store, 3, 12, "notebook", key)
            store.forget(13)
            assert not see(store, 3, 12, "laptop", key)
            assert store.packets() == {("vpn", "laptop"): 10, ("vpn", "notebook"): 12}

    def test_forgetting_has_a_bound(self, tmp_path: Path) -> None:
        """Part by part, the oldest first."""
        with opened(tmp_path) as store:
            for number in range(module.TRIM_ROWS + 5):
                assert see(store, number, number)
            store.forget(1_000_000)
            assert [see(store, number, number) for number in (module.TRIM_ROWS - 1, 1_000_000)] == [False, True]
            (left,) = store._db.execute("SELECT min(stamp) FROM seen").fetchone()
            assert left == module.TRIM_ROWS
            for _ in range(3):
                store.forget(1_000_000)
            assert store._db.execute("SELECT stamp FROM seen").fetchall() == [(1_000_000,)]

    def test_grants(self, tmp_path: Path) -> None:
        """An opening is there until its end is told; the end of one that was refreshed since ends nothing."""
        other = Grant("ssh", bytes(16), 140.5)
        longer = GRANT._replace(expires=160.123456789)
        with opened(tmp_path) as store:
            store.opened(GRANT, NOW, MONO)
            store.opened(other, NOW + 1, MONO + 1)
            store.opened(longer, NOW + 2, MONO + 2)
            store.ended(GRANT, "timeout", NOW + 30)
        with opened(tmp_path) as store:
            kept = store.grants(NOW + 31, MONO + 31)
            assert set(kept) == {StoredGrant(longer, NOW + 2), StoredGrant(other, NOW + 1)}
            store.ended(longer, "timeout", NOW + 62)
            assert store.grants(NOW + 63, MONO + 63) == [StoredGrant(other, NOW + 1)]

    def test_history(self, tmp_path: Path) -> None:
        """Uses, openings and closings, the latest first."""
        with opened(tmp_path) as store:
            use(store, 1)
            use(store, 1)
            store.opened(GRANT, NOW + 1, MONO)
            store.ended(GRANT, "closed by close-ssh", NOW + 2)
            store.ended(GRANT, "timeout", NOW + 3)
            assert [entry[:3] for entry in store.history(10)] == [
                (NOW + 2, "ended", "ssh"),
                (NOW + 1, "opened", "ssh"),
                (NOW, "used", "ssh"),
            ]
            assert store.history(1)[0].detail == "closed by close-ssh"
            assert store.history(1)[0].src == SRC

    def test_history_has_a_bound(self, tmp_path: Path) -> None:
        """trim() comes back to the bound part by part, and forgets the oldest."""
        with opened(tmp_path):
            pass
        more = 3 * module.TRIM_ROWS // 2
        with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
            rows = ((NOW + number, SRC) for number in range(1, MAX_HISTORY + more + 1))
            database.executemany("INSERT INTO history VALUES (NULL, ?, 'ended', 'ssh', ?, '')", rows)
        with opened(tmp_path) as store:
            sizes = []
            for _ in range(4):
                store.trim()
                sizes.append(len(store.history(2 * MAX_HISTORY)))
            assert sizes == [MAX_HISTORY + more - module.TRIM_ROWS, *[MAX_HISTORY] * 3]
            assert store.history(1)[0].wall == NOW + MAX_HISTORY + more

    def test_nothing_is_left_open(self, tmp_path: Path) -> None:
        """Stores, readers, checkpoints and refusals give back each descriptor."""
        with opened(tmp_path) as store:
            use(store, 1)
        before = descriptors()
        for _ in range(20):
            with opened(tmp_path) as store:
                for _ in range(5):
                    store.checkpoint()
                with read_only(tmp_path) as reader:
                    assert reader.was_used("ssh", sequence(1))
                with pytest.raises(StateInUse):
                    open_store(tmp_path)
        (tmp_path / DATABASE).write_bytes(b"no database" * 1000)
        for _ in range(20):
            refused(tmp_path)
            with pytest.raises(StoreError):
                read_only(tmp_path)
        assert descriptors() == before

    @pytest.mark.parametrize("umask", [0o077, 0])
    def test_modes(self, tmp_path: Path, umask: int) -> None:
        """The directory lets others through to what is theirs; the files are the daemon's alone, whatever the umask."""
        before = os.umask(umask)
        try:
            with opened(tmp_path / "var" / "state") as store:
                use(store, 1)
                found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "var" / "state").iterdir()}
        finally:
            os.umask(before)
        assert found == {DATABASE: 0o600, f"{DATABASE}-wal": 0o600, f"{DATABASE}-shm": 0o600, LOCK: 0o600}
        assert (tmp_path / "var" / "state").stat().st_mode & 0o777 == 0o711

    def test_the_log_is_merged_when_it_is_due(self, tmp_path: Path) -> None:
        """It begins anew then, instead of growing. (What is written meanwhile puts that off until the next time.)"""
        log = tmp_path / f"{DATABASE}-wal"
        with opened(tmp_path) as store:
            for number in range(3 * CHECKPOINT_COMMITS):
                store.opened(GRANT._replace(expires=130.0 + number), NOW, MONO)
                if store.needs_checkpoint:
                    worker = threading.Thread(target=store.checkpoint)
                    worker.start()
                    worker.join()
                    assert not store.needs_checkpoint
            assert log.stat().st_size < 16 << 20
        assert not log.exists()
        store.checkpoint()  # too late, and harmless
        assert not log.exists()

    def test_one_writes_while_the_log_is_merged(self, tmp_path: Path) -> None:
        with opened(tmp_path) as store:
            worker = threading.Thread(target=store.checkpoint)
            worker.start()
            for number in range(100):
                store.opened(GRANT._replace(expires=130.0 + number), NOW, MONO)
            worker.join()
            assert [stored.grant.expires for stored in store.grants(NOW, MONO)] == [229.0]


class TestBoots:
    """T33: what is left of a grant, by which clock."""

    def test_within_a_boot_the_wall_clock_says_nothing(self, tmp_path: Path) -> None:
        """Setting the clock changes nothing at all."""
        with opened(tmp_path) as store:
            store.opened(GRANT, NOW, MONO)
            for wall in (0.0, NOW - 1e6, NOW + 1e6):
                assert store.grants(wall, MONO + 10) == [StoredGrant(GRANT, NOW)]

    @pytest.mark.parametrize(
        ("passed", "left"),
        [
            pytest.param(0.0, 30.0, id="at once"),
            pytest.param(10.0, 20.0, id="the time that passed is gone"),
            pytest.param(-1e6, 30.0, id="a clock set back gives no time"),
            pytest.param(30.0, 0.0, id="ended"),
            pytest.param(1e9, 0.0, id="ended long ago"),
        ],
    )
    def test_after_another_boot(self, tmp_path: Path, passed: float, left: float) -> None:
        """The wall clock counts, once: from then on it is this boot's grant, and setting the clock gives nothing."""
        with opened(tmp_path), closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
            database.execute(module._GRANT, module._Record(GRANT, NOW, "another", MONO, NOW).row())
        with read_only(tmp_path) as reader:
            assert reader.grants(NOW + passed, 7.0) == [StoredGrant(GRANT._replace(expires=7.0 + left), NOW)]
        with opened(tmp_path) as store:
            (found,) = store.grants(NOW + passed, 7.0)
            assert found == StoredGrant(GRANT._replace(expires=7.0 + left), NOW)
            assert store.grants(NOW - 1e6, 8.0) == [found]
        with opened(tmp_path) as store:
            assert store.grants(NOW - 1e6, 9.0) == [found]
            store.ended(found.grant, "timeout", NOW)
            assert store.grants(NOW, 9.0) == []

    @given(st.floats(0, 1e8), st.floats(0, 3e7), st.floats(-1e9, 1e9), st.floats(0, 1e8), st.sampled_from(["", "b"]))
    def test_nobody_gets_more_than_was_left(self, mono: float, left: float, step: float, now: float, boot: str) -> None:
        """Whatever the clocks do, no record has more time left than when it was written."""
        record = module._Record(GRANT._replace(expires=mono + left), NOW, "a", mono, NOW)
        after = record.in_boot(boot, NOW + step, now)
        assert after.grant.expires - now <= left * (1 + 1e-6) + 1e-6


class TestCrashes:
    """T20: a process that dies at any step leaves all of a transaction, or nothing."""

    def test_t20_killed_at_each_step_of_a_use(self, tmp_path: Path) -> None:
        """A use that was answered is recorded; the place, the count and the history never go without the use."""

        def act(store: SQLiteStore, writer: int) -> None:
            answer = use(store, 1)
            os.write(writer, b"used" if answer else b"not")

        outcomes = set()
        for report in at_each_step(tmp_path / "state", open_store, act):
            with opened(tmp_path / "state") as store:
                used = store.was_used("ssh", sequence(1))
                outcomes.add((report, used))
                assert store.place("ssh", ALICE) == (place(1) if used else None)
                assert store.used("ssh", ALICE) == used
                assert len(store.history(9)) == used
        assert outcomes == {(b"", False), (b"", True), (b"used", True)}

    def test_t20_killed_at_each_step_of_a_client_s_use(self, tmp_path: Path) -> None:
        """A time step that was answered is recorded, and so is a packet; their history never goes without them."""

        def act(store: SQLiteStore, writer: int) -> None:
            os.write(writer, b"s" if use_step(store, 7) else b"n")
            os.write(writer, b"p" if see(store, 1) else b"n")

        outcomes = set()
        for report in at_each_step(tmp_path / "state", open_store, act):
            with opened(tmp_path / "state") as store:
                step, history = bool(store.steps()), len(store.history(9))
                seen = not see(store, 1)
                outcomes.add((report, step, seen))
                assert history == step + seen
                assert use_step(store, 7) is not step
        assert outcomes == {
            (b"", False, False),
            (b"", True, False),
            (b"s", True, False),
            (b"s", True, True),
            (b"sp", True, True),
        }

    def test_t20_killed_at_each_step_of_forgetting(self, tmp_path: Path) -> None:
        """What is gone has left its mark: whenever it dies, no packet is new again."""

        def prepare(state: Path) -> SQLiteStore:
            store = open_store(state)
            assert isinstance(store, SQLiteStore)
            for number in range(1, 4):
                assert see(store, number, number)
            return store

        kept = set()
        for _ in at_each_step(tmp_path / "state", prepare, lambda store, _: store.forget(3)):
            with opened(tmp_path / "state") as store:
                kept.add(len(store._db.execute("SELECT * FROM seen").fetchall()))
                assert not any(see(store, number, number) for number in range(1, 4))
        assert kept == {1, 3}

    def test_t20_killed_at_each_step_of_an_opening(self, tmp_path: Path) -> None:
        """A grant is there whole or not at all, with its entry in the history; so is its end."""

        def act(store: SQLiteStore, writer: int) -> None:
            store.opened(GRANT, NOW, MONO)
            os.write(writer, b"o")
            store.ended(GRANT, "timeout", NOW + 30)
            os.write(writer, b"e")

        outcomes = set()
        for report in at_each_step(tmp_path / "state", open_store, act):
            with opened(tmp_path / "state") as store:
                grants, history = store.grants(NOW, MONO), [entry.event for entry in store.history(9)]
                outcomes.add((report, len(grants), len(history)))
                assert grants in ([], [StoredGrant(GRANT, NOW)])
                assert history == {0: [], 1: ["opened"], 2: ["ended", "opened"]}[len(history)]
        assert outcomes == {(b"", 0, 0), (b"", 1, 1), (b"o", 1, 1), (b"o", 0, 2), (b"oe", 0, 2)}

    def test_killed_at_each_step_of_the_first_start(self, tmp_path: Path) -> None:
        """Whatever is left of a first start, the second one succeeds."""

        def act(state: Path, _writer: int) -> None:
            open_store(state)

        for _ in at_each_step(tmp_path / "state", lambda state: state, act):
            with opened(tmp_path / "state") as store:
                assert use(store, 1)
            assert {path.name for path in (tmp_path / "state").iterdir()} == {DATABASE, LOCK}

    def test_t20_killed_at_any_time(self, tmp_path: Path) -> None:
        """While another thread makes checkpoints: what was answered is there, and the parts fit together."""
        answered = 0
        for delay in (0.0, 0.001, 0.002, 0.005, 0.01, 0.02):  # the longer, the more; nothing depends on it
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                _use_for_ever(tmp_path, answered, writer)
            os.close(writer)
            with open(reader, "rb") as reports:
                got = reports.read(4 * 20)
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
                got += reports.read()
            os.waitpid(child, 0)
            last = int.from_bytes(got[-4:], "big")
            with opened(tmp_path) as store:
                assert store.checked
                assert all(store.was_used("ssh", sequence(number)) for number in range(answered, last + 1))
                count = store.used("ssh", ALICE)
                assert count in (last + 1, last + 2)
                assert store.place("ssh", ALICE) == place(count - 1)
                assert not use(store, count - 1)
                answered = count

    def test_t20_the_power_fails(self, tmp_path: Path) -> None:
        """What use() has answered is on the disk: a copy of the disk at that instant has it, and is sound."""
        image, mounted = tmp_path / "disk", tmp_path / "mounted"
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})

        def until_it_fails() -> None:
            mount("-o", "loop", str(image), str(mounted))
            store = open_store(mounted / "state")
            for number in range(30):
                store.opened(GRANT, NOW, MONO)
                if number % 10 == 5:
                    store.checkpoint()
                by_turns: list[Callable[[Store, int], bool]] = [use, use_step, see, use, use_step]
                assert all(record(store, number) for record in by_turns[number % 3 :][:3])
                if number in (0, 5, 13, 25):
                    shutil.copyfile(image, tmp_path / f"copy{number}")

        def afterwards() -> None:
            for number in (0, 5, 13, 25):
                mount("-o", "loop", str(tmp_path / f"copy{number}"), str(mounted))
                with opened(mounted / "state") as store:
                    assert store.used("ssh", ALICE) == number + 1
                    assert all(store.was_used("ssh", sequence(used)) for used in range(number + 1))
                    assert store.place("ssh", ALICE) == place(number)
                    assert store.steps() == {("ssh", "laptop"): number}
                    assert not any(see(store, seen) for seen in range(number + 1))
                subprocess.run(["umount", str(mounted)], check=True)

        in_private_mounts(until_it_fails)
        in_private_mounts(afterwards)


def _use_for_ever(state: Path, number: int, writer: int) -> None:
    try:
        store = open_store(state)

        def merge() -> None:
            while True:
                store.checkpoint()

        threading.Thread(target=merge, daemon=True).start()
        while use(store, number):
            os.write(writer, number.to_bytes(4, "big"))
            store.opened(GRANT, NOW, MONO)
            number += 1
    finally:
        os._exit(1)


class TestTrouble:
    """What a disk and other programs do: said in one line, nothing recorded, over when its cause is."""

    def test_a_full_disk_that_has_room_again(self, tmp_path: Path) -> None:
        """Nothing is recorded meanwhile; afterwards everything works, with the same connection."""

        def act() -> None:
            mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path))
            with opened(tmp_path / "state") as store:
                assert use(store, 0)
                store.checkpoint()  # SQLite keeps one descriptor of it for the next
                before = descriptors()
                number = 1
                for _ in range(3):
                    (tmp_path / "filler").write_bytes(bytes(os.statvfs(tmp_path).f_bavail * 4096))
                    number = self._until_full(store, number)
                    for call in (
                        lambda: store.opened(GRANT, NOW, MONO),
                        lambda: store.move("ssh", BOB, place(1)),
                        lambda number=number: use(store, number),
                    ):
                        with pytest.raises(StoreError, match="full") as caught:
                            call()
                        assert "make room" in caught.value.hint
                    assert not store.was_used("ssh", sequence(number))
                    assert store.place("ssh", ALICE) == place(number - 1)
                    assert store.place("ssh", BOB) is None
                    assert store.grants(NOW, MONO) == []
                    (tmp_path / "filler").unlink()
                    assert use(store, number)
                    number += 1
                    store.checkpoint()
                assert descriptors() == before
            with opened(tmp_path / "state") as store:
                assert store.used("ssh", ALICE) == number

        in_private_mounts(act)

    @pytest.mark.parametrize("record", [use_step, see])
    def test_a_full_disk_and_a_client(self, tmp_path: Path, record: Callable[[Store, int], bool]) -> None:
        """What could not be recorded counts as soon as there is room."""

        def act() -> None:
            mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path))
            with opened(tmp_path / "state") as store:
                assert record(store, 0)
                (tmp_path / "filler").write_bytes(bytes(os.statvfs(tmp_path).f_bavail * 4096))
                number = self._until_full(store, 1, record)
                with pytest.raises(StoreError, match="full"):
                    record(store, number)
                (tmp_path / "filler").unlink()
                assert record(store, number)
                assert not record(store, number)

        in_private_mounts(act)

    def _until_full(self, store: SQLiteStore, number: int, record: Callable[[Store, int], bool] = use) -> int:
        """The log has some room of its own: use until that is gone; the number that was refused."""
        try:
            while record(store, number):
                number += 1
        except StoreError:
            return number
        raise AssertionError(number)

    def test_a_full_disk_at_the_start(self, tmp_path: Path) -> None:
        """No half of a database is left."""

        def act() -> None:
            mount("-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(tmp_path))
            (tmp_path / "filler").write_bytes(bytes(60 << 10))
            refused(tmp_path)
            assert not (tmp_path / DATABASE).exists()
            mount("-o", "remount,size=1m", str(tmp_path))
            with opened(tmp_path) as store:
                assert use(store, 1)

        in_private_mounts(act)

    def test_a_read_only_directory(self, tmp_path: Path) -> None:
        """Refused when opening; who only reads can; the lock holds there too, if it is there."""

        def act() -> None:
            mount("-t", "tmpfs", "-o", "mode=700", "tmpfs", str(tmp_path))
            with opened(tmp_path) as store:
                assert use(store, 1)
            mount("-o", "remount,ro", str(tmp_path))
            reason = refused(tmp_path)
            assert DATABASE in reason.message
            assert reason.hint
            with read_only(tmp_path) as reader:
                assert reader.was_used("ssh", sequence(1))
            refused(tmp_path / "state")
            with closing(open_store(tmp_path)), pytest.raises(StateInUse):
                open_store(tmp_path)
            mount("-o", "remount,rw", str(tmp_path))
            (tmp_path / LOCK).unlink()
            mount("-o", "remount,ro", str(tmp_path))
            assert f"{LOCK}: Read-only" in refused(tmp_path).message
            mount("-o", "remount,rw", str(tmp_path))
            with opened(tmp_path) as store:
                assert not use(store, 1)

        in_private_mounts(act)

    def test_a_read_only_file(self, tmp_path: Path) -> None:
        """SQLite would open it all the same, and fail at the first knock."""

        def act() -> None:
            with opened(tmp_path):
                pass
            mount("--bind", str(tmp_path / DATABASE), str(tmp_path / DATABASE))
            mount("-o", "remount,bind,ro", str(tmp_path / DATABASE))
            assert "readonly" in refused(tmp_path).message

        in_private_mounts(act)

    def test_what_breaks_off_in_the_middle(self, tmp_path: Path) -> None:
        """A row that the tables refuse leaves no half of a transaction, and the next one works."""
        with opened(tmp_path) as store:
            for bad in (GRANT._replace(src=b"no"), GRANT._replace(expires=MONO + 1e9)):
                with pytest.raises(StoreError, match="CHECK"):
                    store.opened(bad, NOW, MONO)
                assert use(store, len(store.history(9)))
            assert store.grants(NOW, MONO) == []
            assert [entry.event for entry in store.history(9)] == ["used", "used"]

    def test_a_lock_of_another_program(self, tmp_path: Path) -> None:
        """A write fails at once rather than hold up the loop, and works when the lock is gone."""
        with opened(tmp_path) as store:
            with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                took = []
                for _ in range(3):  # the machine may pause, but not in each of them
                    started = time.monotonic()
                    with pytest.raises(StoreError, match="locked") as caught:
                        use(store, 1)
                    took.append(time.monotonic() - started)
                assert min(took) < 1
                assert "another program" in caught.value.hint
                assert not store.was_used("ssh", sequence(1))
                for record in (use_step, see):
                    with pytest.raises(StoreError, match="locked"):
                        record(store, 1)
            assert use(store, 1)
            assert use_step(store, 1)
            assert see(store, 1)

    @pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal"])
    def test_files_that_are_removed_while_in_use(self, tmp_path: Path, name: str) -> None:
        """What is recorded in a file without a name is lost at the end, so nobody gets in on it."""
        with opened(tmp_path) as store:
            assert use(store, 1)
            (tmp_path / name).rename(tmp_path / "elsewhere")
            calls: tuple[Callable[[], object], ...] = (
                lambda: use(store, 2),
                lambda: use_step(store, 2),
                lambda: see(store, 2),
                lambda: store.forget(0),
                store.trim,
            )
            for call in calls:
                with pytest.raises(StoreError, match="removed"):
                    call()
            (tmp_path / "elsewhere").rename(tmp_path / name)
            assert use(store, 2)
            store.trim()

    def test_a_directory_that_is_removed_while_in_use(self, tmp_path: Path) -> None:
        """It is known within a second, since trim() is called each: not only when somebody knocks."""
        with opened(tmp_path / "state") as store:
            shutil.rmtree(tmp_path / "state")
            with pytest.raises(StoreError, match="removed"):
                store.trim()

    def test_two_daemons(self, tmp_path: Path) -> None:
        """The second one refuses, and says which directory; a dead one holds nothing."""
        with opened(tmp_path):
            with pytest.raises(StateInUse) as caught:
                open_store(tmp_path)
            assert str(tmp_path) in caught.value.message
            assert caught.value.hint
            assert caught.value.exit_code == UNAVAILABLE
            status = in_child(lambda: open_store(tmp_path).close())
            assert os.WEXITSTATUS(status) == 1

        def die() -> None:
            open_store(tmp_path)
            os.kill(os.getpid(), signal.SIGKILL)

        in_child(die)
        with opened(tmp_path):
            pass

    def test_who_can_read_the_directory_cannot_stop_a_start(self, tmp_path: Path) -> None:
        """A lock of the directory is anybody's to have where it can be read."""
        tmp_path.chmod(0o755)
        lock = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with opened(tmp_path) as store:
                assert use(store, 1)
        finally:
            os.close(lock)

    def test_a_started_program_does_not_keep_the_lock(self, tmp_path: Path) -> None:
        """A command that outlives the daemon is no second daemon."""
        with opened(tmp_path):
            left = subprocess.Popen(["sleep", "60"], close_fds=False)
        try:
            with opened(tmp_path):
                pass
        finally:
            left.kill()
            left.wait()


_ASK = f"""
import sys
from pathlib import Path
from logknock.knock import Service
from logknock.store import read_only
with read_only(Path(sys.argv[1])) as reader:
    print((
        reader.was_used("ssh", {sequence(1)}),
        reader.place("ssh", "{ALICE}"),
        reader.used("ssh", "{ALICE}"),
        reader.grants({NOW}, {MONO}),
        [entry.event for entry in reader.history(9)][:2],
    ))
"""


class TestReading:
    """`logknock status` asks from another process, and leaves no trace."""

    def _ask(self, state: Path) -> None:
        """In a process of its own, as SQLite shares what it has open within one."""
        before = contents(state)
        asked = subprocess.run([sys.executable, "-c", _ASK, state], check=True, capture_output=True, text=True)
        assert asked.stdout == repr((True, place(1), 1, [StoredGrant(GRANT, NOW)], ["opened", "used"])) + "\n"
        assert contents(state) == before

    def test_while_a_daemon_runs_and_afterwards(self, tmp_path: Path) -> None:
        """The same answers before and after a checkpoint, and after the end."""
        with opened(tmp_path) as store:
            use(store, 1)
            store.opened(GRANT, NOW, MONO)
            self._ask(tmp_path)
            store.checkpoint()
            self._ask(tmp_path)
            store.move("ssh", BOB, place(1))
            self._ask(tmp_path)
        self._ask(tmp_path)

    def test_after_a_crash(self, tmp_path: Path) -> None:
        """What the daemon left in its log is read from there."""

        def die() -> None:
            store = open_store(tmp_path)
            use(store, 1)
            store.opened(GRANT, NOW, MONO)
            os.kill(os.getpid(), signal.SIGKILL)

        in_child(die)
        self._ask(tmp_path)
        (tmp_path / f"{DATABASE}-shm").unlink()
        before = contents(tmp_path)
        with pytest.raises(StoreError, match="log"):
            read_only(tmp_path)
        assert contents(tmp_path) == before
        with opened(tmp_path) as store:
            assert store.needs_checkpoint
        self._ask(tmp_path)

    def test_before_the_first_start(self, tmp_path: Path) -> None:
        """There is nothing to read, and nothing is made."""
        for state in (tmp_path, tmp_path / "state"):
            with pytest.raises(StoreError, match="not there yet"):
                read_only(state)
        assert not list(tmp_path.iterdir())


# Schema 1, as its own version of logknock made it.
SCHEMA_1 = (
    """CREATE TABLE used (
    door TEXT NOT NULL,
    sequence BLOB NOT NULL CHECK (length(sequence) % 3 = 0 AND length(sequence) BETWEEN 3 AND 96),
    PRIMARY KEY (door, sequence)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE places (
    door TEXT NOT NULL,
    file TEXT NOT NULL,
    line INTEGER NOT NULL CHECK (line >= 0),
    offset INTEGER NOT NULL CHECK (offset >= 0),
    last BLOB NOT NULL CHECK (length(last) % 3 = 0 AND length(last) <= 96),
    used INTEGER NOT NULL CHECK (used >= 0),
    PRIMARY KEY (door, file)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE grants (
    door TEXT NOT NULL,
    src BLOB NOT NULL CHECK (length(src) IN (4, 16)),
    expires REAL NOT NULL,
    opened REAL NOT NULL,
    boot TEXT NOT NULL,
    mono REAL NOT NULL,
    wall REAL NOT NULL,
    seal INTEGER NOT NULL,
    CHECK (expires - mono BETWEEN 0 AND 31622400),
    PRIMARY KEY (door, src)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    wall REAL NOT NULL,
    event TEXT NOT NULL,
    door TEXT NOT NULL,
    src BLOB NOT NULL CHECK (length(src) IN (4, 16)),
    detail TEXT NOT NULL
) STRICT""",
)


# Schema 2 had a column more, and no tables for what clients use.
SCHEMA_2 = tuple(table.replace("    seal", "    by TEXT NOT NULL,\n    seal") for table in SCHEMA_1)


def make_second(state: Path) -> Path:
    """The same in schema 2."""
    make_first(state)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    row = ("ssh", SRC, 130.0, NOW, boot, MONO, NOW, "")
    with closing(sqlite3.connect(state / DATABASE, isolation_level=None)) as database:
        for statement in ("BEGIN", "DROP TABLE grants", SCHEMA_2[2]):
            database.execute(statement)
        database.execute("INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, crc32(repr(row).encode())))
        for statement in ("PRAGMA user_version = 2", "COMMIT"):
            database.execute(statement)
    return state


def make_first(state: Path) -> Path:
    """A database of schema 1: a used sequence, an open door, one whose row is damaged, what happened."""
    state.mkdir(exist_ok=True)
    state.chmod(0o711)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    rest = (130.0, NOW, boot, MONO, NOW)
    sealed = [(*row, crc32(repr(row).encode())) for row in (("ssh", SRC, *rest), ("web", SRC, *rest))]
    changed = ("web", bytes([203, 0, 113, 8]), *sealed[1][2:])
    with closing(sqlite3.connect(state / DATABASE, isolation_level=None)) as database:
        for statement in ("PRAGMA page_size = 4096", "PRAGMA journal_mode = WAL", "BEGIN", *SCHEMA_1):
            database.execute(statement)
        packed = b"".join(service.proto.to_bytes() + service.port.to_bytes(2) for service in sequence(1))
        database.execute("INSERT INTO used VALUES ('ssh', ?)", (packed,))
        database.execute("INSERT INTO places VALUES ('ssh', ?, 1, 20, ?, 1)", (ALICE, packed))
        database.executemany("INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (sealed[0], changed))
        for event in ("used", "opened"):
            database.execute("INSERT INTO history VALUES (NULL, ?, ?, 'ssh', ?, '')", (NOW, event, SRC))
        for statement in (f"PRAGMA application_id = {0x6C6B6E6B}", "PRAGMA user_version = 1", "COMMIT"):
            database.execute(statement)
    return state


def schema(state: Path) -> int:
    """The number that the database has."""
    with closing(sqlite3.connect(state / DATABASE)) as database:
        (number,) = database.execute("PRAGMA user_version").fetchone()
    return int(number)


class TestEarlierSchema:
    """T18: a database of a version before is gone on with; nothing that was used becomes valid again."""

    made = pytest.mark.parametrize(("number", "make"), [(1, make_first), (2, make_second)], ids=["1", "2"])

    def _is_whole(self, state: Path) -> None:
        with opened(state) as store:
            assert not use(store, 1)
            assert (store.place("ssh", ALICE), store.used("ssh", ALICE)) == (place(1), 1)
            assert store.grants(NOW, MONO) == [StoredGrant(GRANT, NOW)]
            assert [entry.event for entry in store.history(9)] == ["opened", "used"]

    @made
    def test_it_is_gone_on_with_and_brought_up_to_date_once(
        self, tmp_path: Path, number: int, make: Callable[[Path], Path]
    ) -> None:
        """Used sequences, places, history and grants are kept; a row that was damaged then opens nothing now."""
        make(tmp_path)
        assert schema(tmp_path) == number
        self._is_whole(tmp_path)
        assert schema(tmp_path) == 3
        with opened(tmp_path) as store:
            longer = GRANT._replace(expires=140.0)
            store.opened(longer, NOW, MONO, "root")
        with opened(tmp_path) as store:
            assert store.grants(NOW, MONO) == [StoredGrant(longer, NOW, "root")]
            assert use(store, 2)
            assert use_step(store, 2)
            assert see(store, 2)
        with opened(tmp_path) as store:
            assert store.steps() == {("ssh", "laptop"): 2}
            assert not see(store, 2)

    @made
    def test_who_only_reads_it_has_its_answer_and_changes_nothing(
        self, tmp_path: Path, number: int, make: Callable[[Path], Path]
    ) -> None:
        """And the same one, if a daemon brings it up to date meanwhile."""
        make(tmp_path)
        TestReading()._ask(tmp_path)
        assert schema(tmp_path) == number
        with closing(sqlite3.connect(tmp_path / DATABASE)) as other:  # it has its log then, as beside a daemon
            other.execute("SELECT count(*) FROM used").fetchone()
            with read_only(tmp_path) as reader:
                assert in_child(lambda: open_store(tmp_path).close()) == 0
                assert reader.grants(NOW, MONO) == [StoredGrant(GRANT, NOW)]
                assert reader.steps() == {}
                assert not reader.was_seen(authentic(1, 1))
        assert schema(tmp_path) == 3

    @made
    def test_killed_at_any_moment_it_is_of_the_old_schema_or_of_the_new_one(
        self, tmp_path: Path, number: int, make: Callable[[Path], Path]
    ) -> None:
        def prepare(state: Path) -> sqlite3.Connection:
            return module._connect(make(state) / DATABASE, "rw", 1.0)

        def act(database: sqlite3.Connection, _: int) -> None:
            module._bring_up_to_date(database, number)

        found = set()
        for _ in at_each_step(tmp_path / "state", prepare, act):
            found.add(schema(tmp_path / "state"))
            with read_only(tmp_path / "state") as reader:
                assert reader.grants(NOW, MONO) == [StoredGrant(GRANT, NOW)]
            self._is_whole(tmp_path / "state")
        assert found == {number, 3}

    @made
    def test_on_a_full_disk_it_stays_as_it_was(self, tmp_path: Path, number: int, make: Callable[[Path], Path]) -> None:
        def act() -> None:
            mount("-t", "tmpfs", "-o", "size=1m,mode=711", "tmpfs", str(tmp_path))
            make(tmp_path)
            with suppress(OSError), (tmp_path / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            assert "full" in refused(tmp_path).hint
            (tmp_path / "filler").unlink()
            self._is_whole(tmp_path)

        in_private_mounts(act)


class TestDamage:
    """A file that cannot be trusted is refused, kept, and never made anew."""

    @pytest.mark.parametrize(
        "content", [b"", b"x", b"plain text\n" * 1000, bytes(8192), b"SQLite format 3\0" + b"\xff" * 8000]
    )
    def test_a_file_that_is_no_database(self, tmp_path: Path, content: bytes) -> None:
        """Also an empty one: a database that we made never is."""
        (tmp_path / DATABASE).write_bytes(content)
        assert "one-time files" in refused(tmp_path).hint
        assert (tmp_path / DATABASE).read_bytes() == content
        with pytest.raises(StoreError):
            read_only(tmp_path)

    def test_a_directory_in_its_place(self, tmp_path: Path) -> None:
        """Said as it is."""
        (tmp_path / DATABASE).mkdir()
        assert "no file" in refused(tmp_path).message
        (tmp_path / "file").touch()
        assert "Not a directory" in refused(tmp_path / "file").message

    @pytest.mark.parametrize("there", [True, False])
    def test_a_link_in_its_place(self, tmp_path: Path, there: bool) -> None:
        """Its log would be where nobody looks; and what leads nowhere is no reason to begin anew."""
        state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
        with opened(state) as store:
            use(store, 1)
        if there:
            (state / DATABASE).rename(elsewhere)
        else:
            (state / DATABASE).unlink()
        (state / DATABASE).symlink_to(elsewhere)
        assert "is a link" in refused(state).message
        with pytest.raises(StoreError, match="is a link"):
            read_only(state)
        assert (state / DATABASE).is_symlink()
        assert elsewhere.exists() == there

    def test_a_newer_schema(self, tmp_path: Path) -> None:
        """Another version's meaning is not guessed."""
        with opened(tmp_path):
            pass
        raw(tmp_path, "PRAGMA user_version = 4")
        before = (tmp_path / DATABASE).read_bytes()
        assert "newer logknock (schema 4, this is 3)" in refused(tmp_path).message
        assert "use that version again" in refused(tmp_path).hint
        with pytest.raises(StoreError, match="newer"):
            read_only(tmp_path)
        assert (tmp_path / DATABASE).read_bytes() == before

    @pytest.mark.parametrize(
        "statement",
        [
            pytest.param("PRAGMA application_id = 1", id="another program's"),
            pytest.param("PRAGMA user_version = 0", id="no version"),
            pytest.param("DROP TABLE used", id="a table is missing"),
            pytest.param("CREATE TRIGGER t AFTER INSERT ON used BEGIN DELETE FROM used; END", id="a trigger"),
            pytest.param("DELETE FROM used", id="used sequences are gone"),
            pytest.param("PRAGMA journal_mode = DELETE", id="another journal"),
            pytest.param("UPDATE grants SET src = x'00'", id="no address"),
            pytest.param("UPDATE grants SET expires = 1e300", id="a grant for ever"),
            pytest.param("UPDATE grants SET expires = mono - 1", id="a grant that ended before it began"),
            pytest.param("UPDATE places SET last = x'0600'", id="half a knock"),
            pytest.param("UPDATE places SET offset = -1", id="a place before the file"),
            pytest.param("DROP TABLE seen", id="no table of packets"),
            pytest.param("DROP INDEX seen_by_stamp", id="no index of packets"),
            pytest.param("CREATE TRIGGER t AFTER INSERT ON steps BEGIN DELETE FROM steps; END", id="T18 a trigger"),
            pytest.param("UPDATE steps SET step = step - 1", id="T18 a step that was not the last"),
            pytest.param("UPDATE steps SET client = 'phone'", id="T18 a step of another client"),
            pytest.param("UPDATE seen SET identity = zeroblob(32)", id="T18 another packet"),
            pytest.param("UPDATE seen SET stamp = stamp + 1", id="T18 a packet of another time"),
            pytest.param("UPDATE seen SET client = 'phone'", id="T18 a packet of another client"),
            pytest.param("UPDATE forgotten SET stamp = 1", id="T18 a mark that went back"),
            pytest.param("UPDATE forgotten SET client = 'phone'", id="T18 a mark of another client"),
            pytest.param("INSERT INTO steps VALUES ('ssh', 'tablet', -1, 1)", id="a step before the first one"),
        ],
    )
    def test_what_no_logknock_wrote(self, tmp_path: Path, statement: str) -> None:
        """Found at the start."""
        with opened(tmp_path) as store:
            see(store, 2, 2)
            store.forget(3)
            see(store, 1)
            use_step(store, 2)
            use(store, 1)
            store.opened(GRANT, NOW, MONO)
        raw(tmp_path, "PRAGMA ignore_check_constraints = ON", statement)
        assert "one-time files" in refused(tmp_path).hint

    def test_a_row_that_goes_bad_while_in_use(self, tmp_path: Path) -> None:
        """A grant that makes no sense opens nothing; a place that makes none keeps its door shut."""
        with opened(tmp_path) as store:
            use(store, 1)
            use(store, 2, BOB)
            store.opened(GRANT, NOW, MONO)
            raw(
                tmp_path,
                "PRAGMA ignore_check_constraints = ON",
                "INSERT INTO history (wall, event, door, src, detail) VALUES (1, '', '', x'00', '')",
                "UPDATE places SET last = x'000000', used = -1 WHERE file LIKE '%alice'",
                "UPDATE places SET line = -1 WHERE file LIKE '%bob'",
            )
            with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
                database.execute("PRAGMA ignore_check_constraints = ON")
                for src, expires, opened_at in ((b"no", 130.0, NOW), (SRC, 1e300, NOW), (SRC, 130.0, float("inf"))):
                    record = module._Record(Grant(f"{expires}{opened_at}", src, expires), opened_at, "", MONO, NOW)
                    database.execute(module._GRANT, record.row())
                altered = (*module._Record(GRANT, NOW, "", MONO, NOW).row()[:-1], 0)
                database.execute(module._GRANT, ("altered", *altered[1:]))
                assert database.execute("SELECT count(*) FROM grants").fetchone() == (5,)
            assert store.grants(NOW, MONO) == [StoredGrant(GRANT, NOW)]
            assert len(store.history(9)) == 3
            for file in (ALICE, BOB):
                with pytest.raises(StoreError, match="makes no sense"):
                    store.place("ssh", file)
            with pytest.raises(StoreError, match="makes no sense"):
                store.used("ssh", ALICE)

    def test_t18_a_client_s_row_that_goes_bad_while_in_use(self, tmp_path: Path) -> None:
        """What it says is not believed: nobody gets in on it, and another client is not touched by it."""
        with opened(tmp_path) as store:
            assert use_step(store, 5)
            assert see(store, 1, 1)
            store.forget(2)
            raw(tmp_path, "UPDATE steps SET step = 1", "UPDATE forgotten SET stamp = 0")
            for call in (lambda: use_step(store, 6), lambda: see(store, 2, 9), store.steps):
                with pytest.raises(StoreError, match="makes no sense"):
                    call()
            assert use_step(store, 5, "phone")
            assert see(store, 2, 9, "phone")

    def test_t18_a_packet_that_one_of_two_trees_has_lost(self, tmp_path: Path) -> None:
        """By time it is still there, by identity it would be new."""
        with opened(tmp_path) as store:
            see(store, 1)
        with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
            row = database.execute("SELECT * FROM sqlite_master WHERE name = 'seen_by_stamp'").fetchone()
        raw(tmp_path, "PRAGMA writable_schema = ON", "DELETE FROM sqlite_master WHERE name = 'seen_by_stamp'")
        raw(tmp_path, "DELETE FROM seen")
        with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
            database.execute("PRAGMA writable_schema = ON")
            database.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
        assert "is damaged" in refused(tmp_path).message

    @pytest.mark.parametrize("client", ["\x1b[2J", "a\nb", "s\u202eh"])
    def test_no_client_has_such_a_name(self, tmp_path: Path, client: str) -> None:
        """The seal is easily made; what is told of a client goes to the log as it is."""
        with opened(tmp_path) as store:
            assert use_step(store, 5, client)
            with pytest.raises(StoreError, match="makes no sense"):
                store.steps()
        assert "makes no sense" in refused(tmp_path).message

    def test_a_log_without_its_database(self, tmp_path: Path) -> None:
        """SQLite would apply the old log to a new database."""

        def die() -> None:
            use(open_store(tmp_path), 1)
            os.kill(os.getpid(), signal.SIGKILL)

        in_child(die)
        (tmp_path / DATABASE).unlink()
        assert "belongs to it" in refused(tmp_path).message
        assert not (tmp_path / DATABASE).exists()

    @pytest.fixture(scope="class")
    @staticmethod
    def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A database of some pages in each table."""
        state = tmp_path_factory.mktemp("whole")
        with opened(state) as store:
            for number in range(COUNT):
                use(store, number)
                use_step(store, number, f"client{number % 50}")
                if number % 5 == 0:
                    see(store, number, number + 1)
                    store.opened(Grant("ssh", number.to_bytes(4, "big"), 130.0), NOW, MONO)
            store.forget(COUNT // 2)
        return state / DATABASE

    def test_a_schema_that_is_no_text(self, whole: Path, tmp_path: Path) -> None:
        """SQLite's own complaint about it is no text either."""
        (tmp_path / DATABASE).write_bytes(whole.read_bytes().replace(b"door TEXT", b"door TE\xa0T"))
        assert "one-time files" in refused(tmp_path).hint

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_changed_bytes(self, whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        """Whatever one of the bytes is changed to: StoreError, or sound answers, and no sequence that works again."""
        content = whole.read_bytes()
        at = data.draw(st.integers(0, len(content) - 1))
        flip = data.draw(st.integers(1, 255))
        damaged = content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
        self._examine(tmp_path_factory, damaged, exact=False)

    @pytest.mark.parametrize("fill", [b"\0", b"\xff"])
    def test_lost_sectors(self, whole: Path, tmp_path_factory: pytest.TempPathFactory, fill: bytes) -> None:
        """Each sector, read as zeros or as ones: found at the start, or nothing was in it."""
        content = whole.read_bytes()
        for at in range(0, len(content), 512):
            self._examine(tmp_path_factory, content[:at] + fill * 512 + content[at + 512 :], exact=True)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_cut_short(self, whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        """A file that ends early is always found out."""
        state = tmp_path_factory.mktemp("cut")
        content = whole.read_bytes()
        (state / DATABASE).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        refused(state)

    def _examine(self, factory: pytest.TempPathFactory, content: bytes, *, exact: bool) -> None:
        state = factory.mktemp("damaged")
        (state / DATABASE).write_bytes(content)
        with closing(open_store(state)) as store:
            if isinstance(store, NoStore):
                assert store.reason.message
                assert (state / DATABASE).read_bytes() == content
                return
            try:
                reached = store.place("ssh", ALICE)
                lost = [number for number in range(COUNT) if not store.was_used("ssh", sequence(number))]
                grants = store.grants(NOW, MONO)
                store.history(COUNT)
                new = [number for number in range(0, COUNT, 5) if see(store, number, number + 1)]
                steps = store.steps()
                use(store, COUNT)
            except StoreError:
                return
        made = {StoredGrant(Grant("ssh", number.to_bytes(4, "big"), 130.0), NOW) for number in range(0, COUNT, 5)}
        assert set(grants) <= made
        assert not new
        assert steps == {("ssh", f"client{number % 50}"): number for number in range(COUNT - 50, COUNT)}
        if exact:
            assert not lost
            assert set(grants) == made
        # What one byte can undo in one table, the other still knows.
        assert not lost or reached == place(COUNT - 1)
        shutil.rmtree(state)


COUNT = 600

NOBODY = 65534


class TestForeign:
    """What other users could have written opens no door, whoever the daemon runs as."""

    @pytest.mark.parametrize(
        ("name", "mode", "owner", "says"),
        [
            pytest.param("", 0o777, 0, "can be written", id="a directory for all"),
            pytest.param("", 0o1777, 0, "can be written", id="a directory like that for temporary files"),
            pytest.param("", 0o770, 0, "can be written", id="a group's directory"),
            pytest.param("", 0o700, NOBODY, "another user", id="another user's directory"),
            pytest.param(DATABASE, 0o666, 0, "can be written", id="a database for all"),
            pytest.param(DATABASE, 0o660, 0, "can be written", id="a group's database"),
            pytest.param(DATABASE, 0o644, 0, "can be read", id="a database that all can read"),
            pytest.param(DATABASE, 0o600, NOBODY, "another user", id="another user's database"),
            pytest.param(f"{DATABASE}-wal", 0o600, NOBODY, "another user", id="another user's log"),
            pytest.param(f"{DATABASE}-shm", 0o666, 0, "can be written", id="an index for all"),
            pytest.param(f"{DATABASE}-journal", 0o600, NOBODY, "another user", id="another user's journal"),
            pytest.param(LOCK, 0o644, 0, "can be read", id="a lock that all can hold"),
            pytest.param(LOCK, 0o600, NOBODY, "another user", id="another user's lock"),
        ],
    )
    def test_refused_until_somebody_has_seen_to_it(
        self, tmp_path: Path, name: str, mode: int, owner: int, says: str
    ) -> None:
        """With nothing changed; the hint is the command that makes it ours."""
        with opened(tmp_path) as store:
            use(store, 1)
        path = tmp_path / name
        if name and not path.exists():
            path.touch()
        os.chown(path, owner, -1)
        path.chmod(mode)
        before = contents(tmp_path)
        reason = refused(tmp_path)
        assert f"{path}: " in reason.message
        assert says in reason.message
        assert contents(tmp_path) == before
        subprocess.run(["sh", "-c", reason.hint.partition("believed: ")[2]], check=True)
        with opened(tmp_path) as store:
            assert not use(store, 1)

    def test_before_there_is_a_database(self, tmp_path: Path) -> None:
        """In a directory for all none is made."""
        tmp_path.chmod(0o777)
        assert "can be written by others" in refused(tmp_path).message
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", [LOCK, f"{DATABASE}-wal"])
    def test_what_is_no_file(self, tmp_path: Path, name: str) -> None:
        """A pipe left there would hold up the start for ever."""
        with opened(tmp_path):
            pass
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        assert f"{name}: is no file" in refused(tmp_path).message

    @pytest.mark.parametrize(("mode", "database"), [(0o700, 0o600), (0o711, 0o600), (0o755, 0o640)])
    def test_what_is_nobody_else_s_to_write(self, tmp_path: Path, mode: int, database: int) -> None:
        """As `rules apply` or an older version has made it, or as an administrator may want it: it stays like that."""
        state = tmp_path / "state"
        state.mkdir()
        state.chmod(mode)
        with opened(state) as store:
            use(store, 1)
        (state / DATABASE).chmod(database)
        with opened(state) as store:
            assert not use(store, 1)
        assert (state.stat().st_mode & 0o777, (state / DATABASE).stat().st_mode & 0o777) == (mode, database)

    def test_a_daemon_that_is_not_root(self) -> None:
        """It has a directory of its own, which root can read; what is a third user's it refuses."""
        with tempfile.TemporaryDirectory() as folder:  # where another user can get to
            state, other, root_s = (Path(folder, name) for name in ("state", "other", "root"))
            Path(folder).chmod(0o711)
            for path, owner in ((state, NOBODY), (other, NOBODY - 1), (root_s, 0)):
                path.mkdir()
                path.chmod(0o711)
                os.chown(path, owner, owner)

            def act() -> None:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                with opened(state) as store:
                    use(store, 1)
                assert "another user" in refused(other).message
                assert f"{LOCK}: Permission denied" in refused(root_s).message

            assert in_child(act) == 0
            with read_only(state) as reader:
                assert reader.was_used("ssh", sequence(1))
            assert "another user" in refused(state).message, "root believes nobody else"

    @pytest.mark.parametrize("door", ["\x1b[2J", "ssh\nlogknock: 1 doors are open", "", "x" * 74, "s\u202eh"])
    def test_no_door_has_such_a_name(self, tmp_path: Path, door: str) -> None:
        """The seal is easily made; what is told of a grant goes to the log as it is."""
        with opened(tmp_path) as store:
            for name in (door, "x" * 73):
                store.opened(GRANT._replace(door=name), NOW, MONO)
            assert [stored.grant.door for stored in store.grants(NOW, MONO)] == ["x" * 73]


def test_without_a_store_one_time_doors_stay_shut(tmp_path: Path) -> None:
    """NoStore remembers nothing, answers nothing that decides, and holds the directory all the same."""
    (tmp_path / DATABASE).write_text("rubbish")
    store: Store = open_store(tmp_path)
    assert isinstance(store, NoStore)
    store.opened(GRANT, NOW, MONO)
    store.ended(GRANT, "timeout", NOW)
    store.move("ssh", ALICE, place(1))
    store.trim()
    store.checkpoint()
    assert store.grants(NOW, MONO) == []
    assert store.history(9) == []
    assert not store.needs_checkpoint
    store.forget(1)
    for call in (
        lambda: use(store, 1),
        lambda: use_step(store, 1),
        store.steps,
        lambda: see(store, 1),
        lambda: store.was_used("ssh", sequence(1)),
        lambda: store.place("ssh", ALICE),
        lambda: store.used("ssh", ALICE),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert caught.value is store.reason
    with pytest.raises(StateInUse):
        open_store(tmp_path)
    store.close()
    store.close()
    refused(tmp_path)


def test_after_the_end(tmp_path: Path) -> None:
    """A closed store raises StoreError and nothing else."""
    with opened(tmp_path) as store:
        use(store, 1)
    reader: Reader = store
    store.close()
    for call in (lambda: use(store, 2), lambda: see(store, 2), reader.steps, store.trim):
        with pytest.raises(StoreError):
            call()
