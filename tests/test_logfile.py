"""Following a log file through whatever happens to it: real files, logrotate and watchdog."""

import itertools
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from logknock.errors import UNAVAILABLE, SourceError
from logknock.records import MAX_LINE, Grammar, Wanted
from logknock.sources import logfile
from logknock.sources.logfile import LogFile

from .e2e.world import until
from .log_lines import RECORD, Reader, append, following, grammar, open_descriptors, text


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An empty log."""
    path = tmp_path / "kern.log"
    path.touch(0o640)
    return path


@pytest.fixture
def reader(log: Path) -> Iterator[Reader]:
    """The log followed, from its empty beginning; nothing wakes."""
    with following(log) as found:
        yield found


class Log:
    """A log, its writer, who keeps the file open as log daemons do, and those who rotate it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = path.open("ab", buffering=0)
        self.half = b""

    def close(self) -> None:
        self.writer.close()

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def hup(self) -> None:
        """The log daemon opens its file anew."""
        self.writer.close()
        self.writer = self.path.open("ab", buffering=0)

    def rotated(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def shift(self) -> None:
        old = [path.name.removeprefix(f"{self.path.name}.") for path in self.path.parent.iterdir() if path != self.path]
        for suffix in sorted(old, key=lambda suffix: -int(suffix.removesuffix(".gz"))):
            number, dot, gz = suffix.partition(".")
            Path(f"{self.path}.{suffix}").rename(f"{self.rotated(int(number) + 1)}{dot}{gz}")

    def rename(self) -> None:
        self.shift()
        self.path.rename(self.rotated(1))

    def copytruncate(self) -> None:
        self.shift()
        shutil.copy(self.path, self.rotated(1))
        os.truncate(self.path, 0)

    def gzip(self, number: int) -> None:
        if self.rotated(number).exists():
            Path(f"{self.rotated(number)}.gz").write_bytes(b"\x1f\x8b")
            self.rotated(number).unlink()

    def do(self, word: str, reader: Reader) -> None:
        """One step of a story."""
        match word:
            case "read":
                reader.read()
            case "rotate":
                self.rename()
                self.path.touch(0o640)
            case "hup" | "rename" | "copytruncate":
                getattr(self, word)()
            case "truncate":
                os.truncate(self.path, 0)
            case "rm":
                self.path.unlink()
            case "edit":
                shutil.copy(self.path, f"{self.path}~")
                Path(f"{self.path}~").rename(self.path)
                self.hup()
            case "back":
                self.rotated(1).rename(self.path)
                self.hup()
            case _ if word.startswith("gzip"):
                self.gzip(int(word[4:]))
            case _ if word.endswith("<"):
                whole = text(int(word[:-1])).encode()
                self.write(whole[:150])
                self.half = whole[150:]
            case _ if word.startswith(">"):
                self.write(self.half)
                self.half = b""
            case _:
                self.write(text(int(word)).encode())


STORIES = [
    pytest.param("1 2 read 3", "1 2 3", "", id="what is written is read"),
    pytest.param("1 read read 2 read read", "1 2", "", id="and once"),
    pytest.param("1 read 2< read > read 3", "1 2 3", "", id="half a line waits for its rest"),
    pytest.param("1 rotate hup 2", "1 2", "", id="T28: the old file before the new one"),
    pytest.param("1 rotate 2 read 3 hup 4", "1 2 3 4", "", id="T28: who still writes to the old file is heard"),
    pytest.param("1 read rotate read 2 read 3 hup 4 read", "1 2 3 4", "", id="T28: and at each look"),
    pytest.param("1 rename read 2 read hup 3", "1 2 3", "", id="T28: nothing under the name for a while"),
    pytest.param("1 rotate 2< read > hup 3", "1 2 3", "", id="T28: a rotation in the middle of a line"),
    pytest.param("1 read 2< read rotate read > read hup 3", "1 2 3", "", id="T28: and half of it read"),
    pytest.param("1 read 2< rotate hup 3", "1 3", "1 records lost", id="T30: half a line that nobody ends is counted"),
    pytest.param("1 read rotate read 2 rotate read 3 hup 4", "1 2 3 4", "", id="T28: new files that nobody writes to"),
    pytest.param("1 read rotate hup 2 rotate hup 3", "1 3", "1 times more", id="two rotations between two looks"),
    pytest.param("1 read rotate hup 2 rotate hup 3 rotate hup 4 rotate hup 5", "1 5", "3 times more", id="four"),
    pytest.param("1 read rotate hup 2 rotate hup gzip1 3", "1 3", "1 times more", id="and compressed"),
    pytest.param("1 read rotate hup 2 rotate hup gzip2 3", "1 3", "gone", id="and nobody knows what was between"),
    pytest.param("1 read 2 rotate hup gzip1 3", "1 2 3", "gone", id="T28: compressed at once, but open"),
    pytest.param("1 read rotate read gzip1 hup 2", "1 2", "", id="compressed once it is read, as logrotate does"),
    pytest.param("1 read rm hup 2", "1 2", "gone", id="deleted and made again"),
    pytest.param("1 read rm 2 read hup 3", "1 2 3", "gone", id="deleted while somebody writes to it"),
    pytest.param("1 2 read edit 3", "1 2 3", "gone", id="T28: a copy under the name, as editors make, is read on"),
    pytest.param("1 2 read rotate hup 3 read back 4", "1 2 3 4", "gone", id="T28: renamed back, it is read on"),
    pytest.param("1 read copytruncate 2", "1 2", "", id="T28: copytruncate"),
    pytest.param("1 read 2 copytruncate 3", "1 2 3", "", id="T28: copytruncate, with the rest in the copy"),
    pytest.param("1 read copytruncate 2 3", "1 2 3", "", id="T28: copytruncate, and longer than before"),
    pytest.param("1 read 2 copytruncate 3 4 5", "1 2 3 4 5", "", id="T28: the same with a rest in the copy"),
    pytest.param("1 read copytruncate 2 read copytruncate 3", "1 2 3", "", id="T28: copytruncate again"),
    pytest.param("1 read copytruncate 2 copytruncate 3", "1 3", "truncated", id="copytruncate twice between two looks"),
    pytest.param("1 read 2 copytruncate rename hup 3", "1 2 3", "", id="T28: copytruncate, then renamed"),
    pytest.param("1 read rotate hup 2 copytruncate 3", "1 3", "1 times more", id="renamed, then copytruncate"),
    pytest.param("1 read copytruncate gzip1 2", "1 2", "truncated", id="the copy is compressed: perhaps lost"),
    pytest.param("1 read truncate 2 3 read", "1 2 3", "truncated", id="truncated, and longer than before"),
    pytest.param("1 read 2< read copytruncate > 3", "1 3", "1 records lost", id="T30: cut in the middle of a line"),
]


@pytest.mark.parametrize(("story", "numbers", "told"), STORIES)
def test_t28_each_line_once_and_in_order(log: Path, reader: Reader, story: str, numbers: str, told: str) -> None:
    """T28: a story of a log; what of it is read, and what is told."""
    with closing(Log(log)) as writing:
        for word in story.split():
            writing.do(word, reader)
        assert reader.read() == [int(word) for word in numbers.split()]
    assert len(reader.settle(2)) == bool(told), reader.told
    assert told in "".join(reader.told)


class Life(RuleBasedStateMachine):
    """Whatever is done to a log, in whatever order: each line once, in order, or it is told that something is lost."""

    folder: Path
    serial = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.here = self.folder / str(next(self.serial))
        self.here.mkdir()
        self.log = Log(self.here / "kern.log")
        self.log.path.chmod(0o640)
        self.source = LogFile(self.log.path, grammar())
        self.reader = Reader(self.source)
        self.next = 1
        self.lossy = False  # whether something was done that can lose lines
        self.cut = False  # whether the log was truncated since the last look
        self.write(1)
        self.look()

    @rule(count=st.integers(1, 3))
    def write(self, count: int) -> None:
        for _ in range(count):
            self.finish()
            self.log.do(str(self.next), self.reader)
            self.next += 1

    @rule()
    def finish(self) -> None:
        if self.log.half:
            self.log.do(">", self.reader)

    @precondition(lambda self: not self.log.half)
    @rule()
    def begin_line(self) -> None:
        self.log.do(f"{self.next}<", self.reader)
        self.next += 1

    @precondition(lambda self: self.log.path.exists())
    @rule(made=st.booleans(), told=st.booleans())
    def rotate(self, made: bool, told: bool) -> None:
        self.lossy |= self.seen() is None
        self.log.rename()
        if made:
            self.log.path.touch(0o640)
        if told:
            self.hup()

    @rule()
    def hup(self) -> None:
        self.finish()  # a log daemon closes its file with whole lines in it
        self.log.hup()
        self.log.path.chmod(0o640)

    @precondition(lambda self: self.log.path.exists() and self.log.path.stat().st_size)
    @rule()
    def copytruncate(self) -> None:
        self.look_if_blank()
        self.lossy |= self.cut or bool(self.log.half)
        self.cut = True
        self.log.copytruncate()

    @precondition(lambda self: self.log.path.exists() and self.log.path.stat().st_size)
    @rule()
    def truncate(self) -> None:
        if self.cut:
            self.look()  # of two cuts between two looks one that has left a copy may hide one that has not
        self.look_if_blank()
        self.lossy = self.cut = True
        self.log.do("truncate", self.reader)

    def look_if_blank(self) -> None:
        """What is written to a file that was empty or not there, and is cut before a look, nobody can know of."""
        file = self.seen()
        if file is None or not file.position:
            self.look()

    def seen(self) -> logfile._Open | None:
        """What stands under the name, if it was looked at."""
        known = (self.source._file, *self.source._next)
        return next((file for file in known if file is not None and file.is_at(os.stat(self.log.path))), None)

    @rule(number=st.integers(1, 3))
    def compress(self, number: int) -> None:
        self.look()  # one of several files that is compressed before a look may leave no trace
        self.lossy |= self.log.rotated(number).exists()
        self.log.gzip(number)

    @precondition(lambda self: self.log.path.exists())
    @rule()
    def delete(self) -> None:
        self.look()  # what stood there and was never seen nobody can know of
        self.lossy = True
        self.log.do("rm", self.reader)
        self.hup()

    @rule()
    def look(self) -> None:
        numbers = self.reader.read()
        self.cut = False
        assert numbers == sorted(set(numbers)), "each once and in order"
        assert len(self.source._next) <= 20

    @rule()
    def settle(self) -> None:
        self.look()
        self.reader.settle()

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        self.finish()
        if not self.log.path.exists() or os.fstat(self.log.writer.fileno()).st_ino != self.log.path.stat().st_ino:
            self.hup()
        self.write(1)
        self.look()
        self.reader.settle(3)
        told = [line for line in self.reader.told if "no such file" not in line and "is read now" not in line]
        lost = set(range(1, self.next)) - set(self.reader.numbers)
        self.source.close()
        self.log.close()
        assert not lost or told, f"lost in silence: {sorted(lost)}"
        assert self.lossy or not told, told
        assert open_descriptors(self.here) == []
        shutil.rmtree(self.here)


def test_t28_whatever_is_done_to_a_log(tmp_path: Path) -> None:
    """T28: hypothesis makes the stories up."""
    Life.folder = tmp_path
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


class TestBeginningAndRotating:
    """Where reading begins, what is between two files, and what logrotate does for real."""

    def test_t29_what_stood_there_before_is_never_read(self, log: Path) -> None:
        """T29."""
        append(log, 1, 2)
        with following(log) as reader:
            assert reader.read() == []
            append(log, 3)
            assert reader.read() == [3]
            assert (reader.source.records, reader.source.ignored) == (1, 0)

    def test_t29_the_rest_of_a_line_that_stood_there_is_no_line(self, log: Path) -> None:
        """T29: who begins in the middle of a line would take its end for a bare record."""
        whole = "2026-11-21T10:00:00+00:00 host ulogd: told by somebody: " + RECORD.format(1, 1)
        at = whole.index("IN=")
        log.write_text(whole[:at])
        with closing(LogFile(log, Grammar(Wanted(("",))))) as source:
            with log.open("a") as file:
                file.write(f"{whole[at:]}\n{RECORD.format(2, 2)}\n")
            assert Reader(source).read() == [2]

    def test_t22_the_rest_of_a_line_after_a_cut_is_no_line(self, log: Path) -> None:
        """T22: somebody's words, cut in two by copytruncate, would be a bare record."""
        with closing(LogFile(log, Grammar(Wanted(("",))))) as source, closing(Log(log)) as writing:
            reader = Reader(source)
            writing.write(f"{RECORD.format(1, 1)}\n2026-11-21T10:00:00+00:00 host ulogd: told by somebody: ".encode())
            assert reader.read() == [1]
            writing.copytruncate()
            writing.write(f"{RECORD.format(666, 666)}\n{RECORD.format(2, 2)}\n".encode())
            assert reader.read() == [1, 2]
            assert source.lost == 1

    def test_t29_a_backlog_without_dates_is_as_old_as_the_file(self, log: Path, reader: Reader) -> None:
        """T29: a record that says nothing of its time was not made after its file was last written."""
        log.write_text(f"logknock: {RECORD.format(1, 1)}\n")
        os.utime(log, (1000.0, 1000.0))
        reader.read()
        assert reader.packets[0].time == 1000.0

    def test_t29_a_record_with_nothing_but_an_uptime_is_as_old_as_that(self, log: Path, reader: Reader) -> None:
        """T29: what `dmesg -w >> kern.log` begins with is from the host's start on."""
        now = time.time()
        log.write_text(f"[{time.monotonic() - 500:12.6f}] logknock: {RECORD.format(1, 1)}\n")
        os.utime(log, (now - 100, now - 100))
        reader.read(now)
        assert reader.packets[0].time == pytest.approx(now - 500, abs=50)

    def test_whole_seconds_read_promptly_are_exact(self, log: Path, reader: Reader) -> None:
        """The traditional head has whole seconds: the time between two knocks is that between two reads."""
        now = 1795248000.6
        log.write_text(time.strftime("%b %d %H:%M:%S", time.localtime(now)) + text(1)[25:])
        os.utime(log, (now + 5, now + 5))
        reader.read(now)
        assert reader.packets[0].time == now

    def test_lines_that_are_no_record_are_counted_and_not_told(self, log: Path, reader: Reader) -> None:
        append(log, 1)
        with log.open("a") as file:
            file.write("Nov 21 10:00:00 host systemd[1]: Started something.\n\n")
        reader.read()
        assert (reader.source.records, reader.source.ignored) == (3, 2)
        assert reader.settle(2) == []

    def test_a_late_file_is_told_of_once_and_read_from_its_beginning(self, tmp_path: Path) -> None:
        path = tmp_path / "later" / "kern.log"
        with following(path) as reader:
            assert "no such file" in reader.settle()[0], "at once"
            assert len(reader.settle(5)) == 1
            path.parent.mkdir()
            append(path, 1, 2)
            assert reader.read() == [1, 2]
            assert reader.settle(3)[1:] == [f"{path}: is read now"]

    def test_another_log_under_a_link(self, tmp_path: Path) -> None:
        """A link that is turned to another file, as some keep a day's log: the old one first."""
        link, first, second = (tmp_path / name for name in ("kern.log", "monday", "tuesday"))
        append(first, 1)
        link.symlink_to(first)
        with following(link) as reader:
            append(first, 2)
            append(second, 3)
            link.unlink()
            link.symlink_to(second)
            append(second, 4)
            assert reader.read() == [2, 3, 4]
            assert reader.settle() == []

    def test_another_devices_file(self, log: Path, reader: Reader, tmp_path: Path) -> None:
        """Mounted over: the old one to its end, then the other from its beginning."""
        append(log, 1)
        assert reader.read() == [1]
        other = tmp_path / "mount"
        other.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", other], check=True)
        try:
            append(other / "log", 2)
            subprocess.run(["mount", "--bind", other / "log", log], check=True)
            append(log, 0)
            assert reader.read() == [1, 2, 0]
        finally:
            for mounted in (log, other):
                subprocess.run(["umount", "--lazy", mounted], check=False)
        append(log, 3)
        assert reader.read() == [1, 2, 0, 3], "the first file is back, and is read on where it was left"

    def test_lines_that_are_alike_are_read_after_each_rotation(self, log: Path, reader: Reader) -> None:
        """Without dates two files may begin with the same bytes, and none is the other's copy."""
        for number in range(1, 4):
            log.write_text(f"logknock: {RECORD.format(1, 1)}\n" * 3)
            assert len(reader.read()) == 3 * number
            log.rename(f"{log}.{number}")

    def test_rotations_that_nobody_heeds_leave_few_files_open(self, log: Path, reader: Reader) -> None:
        """logrotate without its postrotate: each day a new file, and the log daemon still writes to the first."""
        with closing(Log(log)) as writing:
            for _ in range(40):
                writing.do("rotate", reader)
                reader.read()
            assert len(open_descriptors(log.parent)) < 25
            writing.hup()
            writing.write(text(1).encode())
            assert reader.read() == [1]

    def test_names_that_count_upwards_are_no_rotations(self, log: Path, reader: Reader) -> None:
        """Where the newest has the highest number, those below are older, and were read long ago."""
        for number in range(1, 4):
            append(Path(f"{log}.{number}"), 100 + number)
            os.utime(f"{log}.{number}", (number, number))
        append(log, 1)
        log.rename(f"{log}.4")
        append(log, 2)
        assert reader.read() == [1, 2]
        assert reader.settle() == []

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param("create 0640 root adm", id="create"),
            pytest.param("nocreate", id="nocreate"),
            pytest.param("create\n delaycompress\n compress", id="compress, delayed"),
            pytest.param("create\n compress", id="compress"),
            pytest.param("create\n dateext\n dateformat -%s", id="dateext"),
            pytest.param("create\n start 0", id="start 0"),
            pytest.param("create\n olddir old\n createolddir", id="olddir"),
            pytest.param("copytruncate", id="copytruncate"),
            pytest.param("copytruncate\n compress", id="copytruncate and compress"),
            pytest.param("copytruncate\n dateext\n dateformat -%s", id="copytruncate and dateext"),
        ],
    )
    def test_t28_logrotate(self, log: Path, options: str) -> None:
        """T28: the real logrotate, a writer that opens anew when told to, and watchdog."""
        config, state = log.with_name("rotate.conf"), log.with_name("state")
        config.write_text(f"{log} {{\n rotate 4\n {options}\n}}\n")
        config.chmod(0o600)
        written = 0
        with closing(Log(log)) as writing, watched(log) as reader:
            for _ in range(3):
                for step in ("write", "rotate", "write", "hup", "write"):
                    if step == "write":
                        written += 1
                        writing.do(str(written), reader)
                    elif step == "hup":
                        writing.hup()
                    else:
                        # Rotations come hours apart: of two between two looks only the loss is told.
                        until(lambda: len(reader.numbers) == written, "the lines")  # noqa: B023 - used at once
                        if "dateext" in options:  # the dates must differ, by a second
                            until(lambda: not log.with_name(time.strftime("kern.log-%s")).exists(), "a second")
                        subprocess.run(["logrotate", "--force", "--state", state, config], check=True)
            until(lambda: len(reader.numbers) >= written, f"{written} lines")
            assert reader.numbers == list(range(1, written + 1))
            reader.settle()
        if "compress" not in options:  # gzip may have been quicker than we: then nobody can know, and that is told
            assert reader.told == []
        assert len(list(log.parent.rglob("kern.log*"))) > 1, "nothing was rotated"


@contextmanager
def watched(path: Path) -> Iterator[Reader]:
    """The file followed as the daemon does: read when woken, in a thread of its own here."""
    woken = threading.Event()
    with following(path) as reader:
        reader.source.watch(woken.set)
        running = True

        def loop() -> None:
            ticks = time.monotonic() + 1
            while running:
                if woken.wait(0.1):
                    woken.clear()
                    reader.read()
                if time.monotonic() > ticks:
                    ticks += 1
                    reader.settle()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield reader
        finally:
            running = False
            thread.join()


class TestWaking:
    """Watchdog wakes, and what there is without it."""

    def test_a_write_wakes(self, log: Path) -> None:
        woken = threading.Event()
        with following(log) as reader:
            reader.source.watch(woken.set)
            assert (reader.source.interval, reader.source.fileno()) == (0.0, -1)
            append(log, 1)
            assert woken.wait(20)
            assert reader.read() == [1]

    def test_many_writes_wake_once_and_other_files_never(self, log: Path) -> None:
        woken: list[float] = []
        with following(log) as reader:
            reader.source.watch(lambda: woken.append(time.monotonic()))
            append(log.with_name("syslog"), *range(50))
            time.sleep(0.1)  # for a call that must not come
            assert woken == []
            for number in range(50, 100):
                append(log, number)
            until(lambda: woken, "to be woken")
            time.sleep(0.1)  # for a second call, which must not come
            assert len(woken) == 1
            assert reader.read() == list(range(50, 100))
            append(log, 100)
            until(lambda: len(woken) == 2, "to be woken again")

    def test_each_second_is_a_look_whatever_watchdog_lost(self, log: Path) -> None:
        """T28: inotify's queue may overflow, and watchdog says nothing of that."""
        woken: list[bool] = []
        with following(log) as reader:
            reader.source.watch(lambda: woken.append(True))
            reader.source.settle()
            assert woken == [True]

    def test_a_directory_that_is_made_anew_is_watched(self, tmp_path: Path) -> None:
        path = tmp_path / "logs" / "kern.log"
        path.parent.mkdir()
        append(path, 1)
        woken = threading.Event()
        with following(path) as reader:
            reader.source.watch(woken.set)
            shutil.rmtree(path.parent)
            path.parent.mkdir()
            append(path, 2)
            reader.settle()
            assert reader.source.interval == 0.0
            assert reader.read() == [2]
            time.sleep(0.1)  # for events of before
            reader.read()
            woken.clear()
            append(path, 3)
            assert woken.wait(20)
            assert reader.read() == [2, 3]

    def test_without_watchdog_it_looks_and_says_so_once(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """10 ms later is no reason to stay shut."""
        monkeypatch.setitem(sys.modules, "watchdog.observers.inotify", None)
        with following(log) as reader:
            reader.source.watch(lambda: None)
            assert reader.source.interval == 0.02
            append(log, 1)
            assert reader.read() == [1]
            assert len(reader.settle(3)) == 1
            assert "apt-get install python3-watchdog" in reader.told[0]

    def test_without_room_for_a_watch_it_looks_and_says_so(self, log: Path) -> None:
        """inotify instances are limited for each user: here to none, in a user namespace of its own."""
        code = """
import sys; from pathlib import Path
from logknock.records import Grammar, Wanted
from logknock.sources.logfile import LogFile
source = LogFile(Path(sys.argv[1]), Grammar(Wanted()))
source.watch(lambda: None)
print(source.interval, *source.settle(), *source.settle())
source.close()
"""
        script = 'echo 0 > /proc/sys/user/max_inotify_instances; exec "$@"'
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-c", code, log],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("0.02 ")
        assert done.stdout.count("cannot be watched") == 1

    def test_rotations_leave_no_descriptor_and_no_thread_behind(self, log: Path) -> None:
        with closing(Log(log)) as writing, following(log) as reader:
            reader.source.watch(lambda: None)
            before = len(os.listdir("/proc/self/fd")), threading.active_count()
            for number in range(1, 1001):
                for word in (str(number), "read", ("rename", "copytruncate", "rm", "truncate")[number % 4], "hup"):
                    writing.do(word, reader)
                for old in (5, 6):
                    writing.rotated(old).unlink(missing_ok=True)
            writing.do("1001", reader)
            reader.settle()
            assert reader.numbers == list(range(1, 1002))
            assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before

    def test_close_ends_the_threads(self, log: Path) -> None:
        before = threading.active_count()
        with following(log) as reader:
            reader.source.watch(lambda: None)
            assert threading.active_count() > before
        until(lambda: threading.active_count() == before, "the threads to end")
        assert open_descriptors(log.parent) == []


class TestBadInput:
    """What is under the name, or in the file, that should not be."""

    @pytest.mark.parametrize("size", [MAX_LINE + 1, 50_000, 10 << 20])
    def test_an_overlong_line_is_skipped_as_a_whole(self, log: Path, reader: Reader, size: int) -> None:
        """T26: bounded memory, told once with how much; the lines around it are read."""
        append(log, 1)
        with log.open("a") as file:
            file.write("x" * size + "\n")
        append(log, 2)
        tracemalloc.start()
        assert reader.read() == [1, 2]
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 1 << 20
        assert reader.settle(2) == [f"{log}: skipped {size} bytes of lines longer than any record (8192 bytes)"]

    def test_the_longest_line_is_a_line(self, log: Path, reader: Reader) -> None:
        log.write_bytes(b"x" * MAX_LINE + b"\n")
        reader.read()
        assert (reader.source.records, reader.settle()) == (1, [])

    def test_junk(self, log: Path, reader: Reader) -> None:
        """T26: any bytes; a line after them is read."""
        for junk in (bytes(range(256)) * 100, b"\xff" * 9000, os.urandom(300_000)):
            with log.open("ab") as file:
                file.write(junk + b"\n")
        append(log, 1)
        assert reader.read() == [1]

    def test_lines_of_nothing_take_no_longer(self, log: Path, reader: Reader) -> None:
        """2 ms a read, by the number of lines too."""
        log.write_bytes(b"\n" * 10_000)
        reader.source.read(time.time(), reader.packets.append)
        assert reader.source.records < 1000
        reader.read()
        assert reader.source.records == 10_000

    def test_a_hole_takes_no_time(self, log: Path, reader: Reader) -> None:
        """A writer without O_APPEND leaves 1 GiB of NULs when its file is truncated (T28)."""
        append(log, 1)
        reader.read()
        with log.open("r+b", buffering=0) as file:
            file.truncate(0)
            file.seek(1 << 30)
            file.write(text(2).encode())
            reads = 0
            while reader.source.read(time.time(), reader.packets.append):
                reads += 1
            assert reader.numbers == [1, 2]
            assert reads < 20
            file.write(text(3).encode())
            assert reader.read() == [1, 2, 3]
        assert reader.source.ignored == 0

    def test_a_hole_up_to_the_end(self, log: Path, reader: Reader) -> None:
        os.truncate(log, 1 << 30)
        for _ in range(5):
            more = reader.source.read(time.time(), reader.packets.append)
        assert not more
        append(log, 1)
        assert reader.read() == [1]

    @pytest.mark.parametrize("kind", ["a directory", "a FIFO", "a socket", "a device"])
    def test_what_is_no_regular_file(self, log: Path, kind: str) -> None:
        """Neither at the start nor later; and what comes after it is read from its beginning."""

        def make() -> None:
            match kind:
                case "a directory":
                    log.mkdir()
                case "a FIFO":
                    os.mkfifo(log)
                case "a socket":
                    socket.socket(socket.AF_UNIX).bind(str(log))
                case _:
                    os.mknod(log, stat.S_IFCHR | 0o600, os.makedev(1, 3))

        log.unlink()
        make()
        with pytest.raises(SourceError, match=f"kern.log: is {kind}, not a regular file") as caught:
            LogFile(log, grammar())
        assert caught.value.exit_code == UNAVAILABLE
        log.rmdir() if kind == "a directory" else log.unlink()
        append(log, 1)
        with following(log) as reader:
            append(log, 2)
            log.rename(log.with_name("kern.log.1"))
            make()
            assert reader.read() == [2]
            assert len(reader.settle(3)) == 1
            assert f"is {kind}, not a regular file" in reader.told[0]
            log.rmdir() if kind == "a directory" else log.unlink()
            append(log, 3)
            assert reader.settle(2)[1:] == [f"{log}: is read now"]
            assert reader.numbers == [2, 3]
