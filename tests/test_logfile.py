"""Following a log file through whatever happens to it, and reading a pipe: real files, logrotate and watchdog."""

import itertools
import json
import os
import pty
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from logknock.errors import NO_PERMISSION, UNAVAILABLE, SourceError
from logknock.packet import Packet
from logknock.records import MAX_LINE, Grammar, Wanted
from logknock.sources import logfile
from logknock.sources.logfile import LogFile, Pipe, lines

from .e2e.world import until

NOBODY = 65534
RECORD = (
    "IN=eth0 OUT= MAC= SRC=192.0.2.7 DST=192.0.2.1 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 PROTO=TCP SPT={} DPT=7000 \
WINDOW=1024 RES=0x00 SYN URGP=0 MARK=0x{:x} "
)


def text(number: int, *, prefix: str = "logknock", when: float | None = None) -> str:
    """A line of a log, known again by the source port."""
    head = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() if when is None else when))
    return f"{head} host kernel: {prefix}: {RECORD.format(number, number)}\n"


def grammar() -> Grammar:
    return Grammar(Wanted())


class Reader:
    """A source and what has come out of it: the numbers of the lines, and what was told."""

    def __init__(self, source: LogFile | Pipe) -> None:
        self.source = source
        self.packets: list[Packet] = []
        self.told: list[str] = []

    def read(self, now: float | None = None) -> list[int]:
        """Read until nothing more waits; all numbers so far."""
        while self.source.read(time.time() if now is None else now, self.packets.append):
            pass
        return self.numbers

    @property
    def numbers(self) -> list[int]:
        return [packet.sport for packet in self.packets]

    def settle(self, times: int = 1) -> list[str]:
        """Settle and read so often; everything told so far."""
        for _ in range(times):
            self.told += self.source.settle()
            self.read()
        return self.told


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An empty log."""
    path = tmp_path / "kern.log"
    path.touch(0o640)
    return path


@contextmanager
def following(path: Path) -> Iterator[Reader]:
    with closing(LogFile(path, grammar())) as source:
        yield Reader(source)


@pytest.fixture
def reader(log: Path) -> Iterator[Reader]:
    """The log followed, from its empty beginning; nothing wakes."""
    with following(log) as found:
        yield found


def append(path: Path, *numbers: int) -> None:
    with path.open("a") as file:
        file.write("".join(map(text, numbers)))


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
    pytest.param("1 read rotate hup 2 rotate hup 3", "1 2 3", "", id="T28: two rotations between two looks"),
    pytest.param("1 read rotate hup 2 rotate hup 3 rotate hup 4 rotate hup 5", "1 2 3 4 5", "", id="T28: four"),
    pytest.param("1 read 2 rotate hup gzip1 3", "1 2 3", "gone", id="T28: compressed at once, but open"),
    pytest.param(
        "1 read rotate hup 2 rotate hup gzip2 3", "1 3", "gone", id="compressed, and nobody knows what was between"
    ),
    pytest.param(
        "1 read rotate hup 2 rotate hup gzip1 3", "1 3", "compressed, or made unreadable", id="what is lost is told"
    ),
    pytest.param(
        "1 read rotate hup 2 rotate read 3 hup 4", "1 2 3 4", "", id="T28: and who still writes to the second"
    ),
    pytest.param("1 read rm hup 2", "1 2", "gone", id="deleted and made again"),
    pytest.param("1 read rm 2 read hup 3", "1 2 3", "gone", id="deleted while somebody writes to it"),
    pytest.param("1 copytruncate 2", "1 2", "", id="T28: copytruncate before anything is read"),
    pytest.param("1 read copytruncate read 2 copytruncate 3", "1 2 3", "", id="T28: copytruncate of what was empty"),
    pytest.param("1 read copytruncate read 2 copytruncate 3 copytruncate 4", "1 2 3 4", "", id="T28: and twice"),
    pytest.param("1 copytruncate 2 copytruncate 3", "1 2 3", "", id="T28: copytruncate twice before anything is read"),
    pytest.param("1 read copytruncate 2", "1 2", "", id="T28: copytruncate"),
    pytest.param("1 read 2 copytruncate 3", "1 2 3", "", id="T28: copytruncate, with the rest in the copy"),
    pytest.param("1 read copytruncate 2 3", "1 2 3", "", id="T28: copytruncate, and longer than before"),
    pytest.param("1 read 2 copytruncate 3 4 5", "1 2 3 4 5", "", id="T28: the same with a rest in the copy"),
    pytest.param("1 read copytruncate 2 copytruncate 3", "1 2 3", "", id="T28: copytruncate twice"),
    pytest.param("1 read 2 copytruncate 3 copytruncate 4 copytruncate 5", "1 2 3 4 5", "", id="T28: three times"),
    pytest.param("1 read 2 copytruncate rename hup 3", "1 2 3", "", id="T28: copytruncate, then renamed"),
    pytest.param("1 read rotate read hup 2 copytruncate 3", "1 2 3", "", id="T28: noticed, and cut before it is begun"),
    pytest.param("1 read rotate read gzip1 hup 2", "1 2", "", id="compressed once it is read, as logrotate does"),
    pytest.param("1 read rotate hup 2 copytruncate 3", "1 2 3", "", id="T28: renamed, then copytruncate"),
    pytest.param("1 read copytruncate gzip1 2", "1 2", "truncated", id="the copy is compressed: perhaps lost"),
    pytest.param("1 read truncate 2 3 read", "1 2 3", "truncated", id="truncated, and longer than before"),
    pytest.param("1 read 2< read copytruncate > 3", "1 3", "unfinished", id="cut in the middle of a line"),
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
        self.turns = 0  # how many rotations there were since the last look
        self.cut = False  # whether the log was truncated since the last look
        # The first line is read: what was written to an empty file and cut again before a look nobody can know of.
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
        self.turns += 1
        self.lossy |= self.turns > 15  # so many files between two looks are not believed
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
        self.lossy |= bool(self.log.half)
        self.cut = True
        self.turns += 1
        self.lossy |= self.turns > 15
        self.log.copytruncate()

    @precondition(lambda self: self.log.path.exists() and self.log.path.stat().st_size)
    @rule()
    def truncate(self) -> None:
        if self.cut or self.blank or not self.seen():
            self.look()  # of two cuts between two looks one that has left a copy may hide one that has not
        self.lossy = self.cut = True
        self.log.do("truncate", self.reader)

    def seen(self) -> bool:
        known = (self.source._file, *self.source._next)
        return any(file is not None and file.is_at(os.stat(self.log.path)) for file in known)

    @rule(number=st.integers(1, 3))
    def compress(self, number: int) -> None:
        self.look()  # one of several copies that is compressed before a look may leave no trace: see the stories
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
        self.turns = 0
        self.blank = any(file is not None and not file.position for file in (self.source._file, *self.source._next))
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


def open_descriptors(folder: Path) -> list[str]:
    """What this process has open there."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        target = os.readlink(link) if os.path.lexists(link) else ""
        found += [target] if target.startswith(f"{folder}/") else []
    return found


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

    def test_t29_a_backlog_without_dates_is_as_old_as_the_file(self, log: Path, reader: Reader) -> None:
        """T29: a record that says nothing of its time was not made after its file was last written."""
        log.write_text(f"logknock: {RECORD.format(1, 1)}\n")
        os.utime(log, (1000.0, 1000.0))
        reader.read()
        assert reader.packets[0].time == 1000.0

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
            assert len(reader.settle(5)) == 1
            assert "no such file" in reader.told[0]
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
                        if "compress" in options:  # what is compressed is not read: it must have been read before
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
        assert reader.read() == []
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

    def test_permission_denied(self, open_folder: Path) -> None:
        path = open_folder / "kern.log"
        path.touch(0o600)
        code = """
import sys; from pathlib import Path
from logknock.errors import SourceError
from logknock.records import Grammar, Wanted
from logknock.sources.logfile import LogFile
try: LogFile(Path(sys.argv[1]), Grammar(Wanted()))
except SourceError as error: print(error.exit_code, error.words())
"""
        done = as_nobody(sys.executable, "-c", code, str(path))
        assert done.stdout.startswith(f"{NO_PERMISSION} {path}: cannot be read: Permission denied (hint: run as root")

    def test_the_same_thing_is_told_once_a_minute(self) -> None:
        told = logfile._Told("x")
        came = []
        for second in range(150):
            told.count("happened {n} times")
            came += told.due(second)
        assert came == [f"x: happened {n} times" for n in (1, 60, 60)]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that others than root can get to, unlike tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="lk"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--", *command]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)


def access_list(path: Path) -> None:
    """Let nobody write it by name, as `setfacl -m u:nobody:rw` does (linux/posix_acl_xattr.h)."""
    entries = [(1, 6, 2**32 - 1), (2, 6, NOBODY), (4, 4, 2**32 - 1), (0x10, 6, 2**32 - 1), (0x20, 0, 2**32 - 1)]
    packed = b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, rights, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", (2).to_bytes(4, "little") + packed)


Prepare = Callable[[Path], None]
REFUSED: list[tuple[str, Prepare, str]] = [
    ("another's file", lambda log: own(log, NOBODY), "kern.log: belongs to another user"),
    ("everybody's file", lambda log: own(log, 0, 0, 0o646), "kern.log: can be written by everybody"),
    ("adm's file", lambda log: own(log, 0, 4, 0o660), "kern.log: can be written by its group"),
    ("an access list", lambda log: access_list(log), "kern.log: can be written by whom its access list names"),
    ("another's directory", lambda log: own(log.parent, NOBODY), "log: belongs to another user"),
    ("everybody's directory", lambda log: own(log.parent, 0, 0, 0o777), "log: can be written by everybody"),
    ("a group's directory", lambda log: own(log.parent, 0, 50, 0o775), "log: can be written by its group"),
    ("a directory above", lambda log: own(log.parent.parent, 0, 0, 0o777), "can be written by everybody"),
    ("another's link", lambda log: link_of(log, NOBODY), "kern.log: belongs to another user"),
    ("a way over another's", lambda log: way_over(log), "theirs: belongs to another user"),
]
ALLOWED: list[tuple[str, Prepare]] = [
    ("root's group", lambda log: own(log, 0, 0, 0o660)),
    ("readers", lambda log: own(log, 0, 4, 0o644)),
    ("a sticky directory", lambda log: own(log.parent, 0, 0, 0o1777)),
    ("root's link", lambda log: link_of(log, 0)),
    ("the log daemon's file", lambda log: own(log, 1, 4)),
    ("the log daemon's group's directory", lambda log: own(log.parent, 0, 1, 0o775)),
]


def own(path: Path, uid: int, gid: int = 0, mode: int | None = None) -> None:
    """chown and chmod."""
    os.chown(path, uid, gid)
    if mode is not None:
        path.chmod(mode)


def link_of(log: Path, uid: int) -> None:
    """A link instead of the log, in a directory where everybody may make one."""
    log.rename(log.with_name("real.log"))
    log.symlink_to("real.log")
    os.chown(log, uid, 0, follow_symlinks=False)
    log.parent.chmod(0o1777)


def way_over(log: Path) -> None:
    """root's link to root's file, through a directory of another's."""
    theirs = log.parent / "theirs"
    theirs.mkdir()
    log.rename(theirs / "real.log")
    log.symlink_to("theirs/../theirs/real.log")
    os.chown(theirs, NOBODY, 0)


class TestT31:
    """T31: what another could have written is not read, however it got there."""

    @pytest.fixture(autouse=True)
    def log_daemon(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The user and group `daemon` (1) stand for rsyslog's, which not every host has."""
        monkeypatch.setattr(logfile, "_LOG_DAEMONS", ("daemon", "nobody", "nogroup"))
        logfile._trusted_ids.cache_clear()
        yield
        logfile._trusted_ids.cache_clear()

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        path = tmp_path / "var" / "log" / "kern.log"
        path.parent.mkdir(parents=True)
        path.touch(0o640)
        return path

    @pytest.mark.parametrize(
        ("prepare", "words"), [pytest.param(prepare, words, id=name) for name, prepare, words in REFUSED]
    )
    def test_t31_refused_at_opening(self, log: Path, prepare: Prepare, words: str) -> None:
        prepare(log)
        with pytest.raises(SourceError) as caught:
            LogFile(log, grammar())
        assert words in caught.value.message
        assert caught.value.exit_code == UNAVAILABLE
        assert caught.value.hint

    @pytest.mark.parametrize("prepare", [pytest.param(prepare, id=name) for name, prepare in ALLOWED])
    def test_what_is_in_order(self, log: Path, prepare: Prepare) -> None:
        prepare(log)
        with following(log) as reader:
            append(log, 1)
            assert reader.read() == [1]

    @pytest.mark.parametrize(
        ("prepare", "words"), [pytest.param(prepare, words, id=name) for name, prepare, words in REFUSED]
    )
    def test_t31_refused_after_a_rotation(self, log: Path, prepare: Prepare, words: str) -> None:
        """Told once; and once it is in order, only what is written then is read."""
        with following(log) as reader:
            append(log, 1)
            log.rename(log.with_name("kern.log.1"))
            append(log, 2)
            log.chmod(0o640)
            prepare(log)
            assert reader.read() == [1]
            append(log, 3)
            assert len(reader.settle(3)) == 1
            assert words in reader.told[0]
            assert reader.numbers == [1]
            for path in (log.parent.parent, log.parent, log.parent / "theirs", log):
                if path.exists():
                    os.chown(path, 0, 0, follow_symlinks=False)
                    os.chown(path, 0, 0)
                    path.chmod(0o755 if path.is_dir() else 0o600)
            if "access list" in words:
                os.removexattr(log, "system.posix_acl_access")
            reader.settle()
            append(log, 4)
            assert reader.settle(2)[1:] == [f"{log}: {logfile._BACK_AT_END}"]
            assert reader.numbers == [1, 4]

    def test_t31_refused_as_soon_as_it_can_be_written(self, log: Path) -> None:
        """A file that was in order and is opened to others meanwhile."""
        with following(log) as reader:
            append(log, 1)
            assert reader.read() == [1]
            log.chmod(0o666)
            append(log, 2)
            assert reader.read() == [1]
            log.chmod(0o640)
            reader.settle()
            append(log, 3)
            assert reader.read() == [1, 3]

    def test_t31_a_copy_or_a_file_in_between_is_trusted_no_more(self, log: Path) -> None:
        """In a sticky directory others may put files with the names that logrotate gives."""
        log.parent.chmod(0o1777)
        with following(log) as reader:
            append(log, 1)
            assert reader.read() == [1]
            forged = log.with_name("kern.log.1")
            forged.write_text(log.read_text() + text(666))
            os.chown(forged, NOBODY, NOBODY)
            log.write_text("")
            append(log, 2)
            assert reader.read() == [1, 2]
            log.rename(log.with_name("kern.log.2"))
            append(log, 3)
            assert reader.read() == [1, 2, 3]
            assert len(reader.settle()) == 2

    def test_the_own_users_file(self, open_folder: Path) -> None:
        """Who runs as a user of its own may keep its log itself."""
        path = open_folder / "own" / "kern.log"
        path.parent.mkdir()
        path.touch(0o600)
        os.chown(path.parent, NOBODY, NOBODY)
        os.chown(path, NOBODY, NOBODY)
        code = """
import sys; from pathlib import Path
from logknock.records import Grammar, Wanted
from logknock.sources.logfile import LogFile
LogFile(Path(sys.argv[1]), Grammar(Wanted())).close(); print("read")
"""
        done = as_nobody(sys.executable, "-c", code, str(path))
        assert done.stdout == "read\n", done.stderr


@pytest.fixture
def pipe() -> Iterator[tuple[Reader, BinaryIO]]:
    """A pipe, and what reads it."""
    inner, outer = os.pipe()
    with closing(Pipe(grammar(), inner)) as source, open(outer, "wb", buffering=0) as writer:
        yield Reader(source), writer
    os.close(inner)


class TestPipe:
    """Standard input, whatever that is."""

    def test_each_line_once(self, pipe: tuple[Reader, BinaryIO]) -> None:
        reader, writer = pipe
        assert reader.read() == []
        whole = text(2).encode()
        writer.write(text(1).encode() + whole[:70])
        assert reader.read() == [1]
        writer.write(whole[70:])
        assert reader.read() == [1, 2]
        assert (reader.source.records, reader.source.ignored) == (2, 0)
        assert reader.settle() == []

    def test_the_journal_in_json(self, pipe: tuple[Reader, BinaryIO]) -> None:
        """`journalctl -kf -o json | logknock run`; T22: what is not the kernel's is none."""
        reader, writer = pipe
        for number, transport in ((1, "syslog"), (2, "kernel")):
            entry = {
                "__REALTIME_TIMESTAMP": str(time.time_ns() // 1000),
                "_TRANSPORT": transport,
                "SYSLOG_IDENTIFIER": "kernel",
                "SYSLOG_FACILITY": "0",
                "MESSAGE": f"logknock: {RECORD.format(number, number)}",
            }
            writer.write(json.dumps(entry).encode() + b"\n")
        assert reader.read() == [2]
        assert reader.source.ignored == 1

    def test_its_descriptor_tells_and_after_the_end_is_silent(self, pipe: tuple[Reader, BinaryIO]) -> None:
        """The end of a pipe is readable for ever: who waits for that would do nothing else."""
        reader, writer = pipe
        with select.epoll() as waiting:
            waiting.register(reader.source.fileno(), select.EPOLLIN)
            assert waiting.poll(0) == []
            writer.write(text(1).encode())
            assert waiting.poll(20) == [(reader.source.fileno(), select.EPOLLIN)]
            assert reader.read() == [1]
            assert waiting.poll(0) == []
            writer.close()
            assert waiting.poll(20)
            reader.read()
            assert waiting.poll(0) == []
        assert reader.settle(3) == ["standard input: has ended"]
        assert reader.source.interval == 0.0

    def test_half_a_line_at_the_end_is_not_read(self, pipe: tuple[Reader, BinaryIO]) -> None:
        """A port may be cut in two; what is lost is counted (T30)."""
        reader, writer = pipe
        writer.write(text(1).encode()[:-1])
        writer.close()
        assert reader.read() == []
        assert reader.settle() == ["standard input: has ended, in the middle of a line, which is not read"]
        assert reader.source.lost == 1

    def test_a_read_is_bounded(self, pipe: tuple[Reader, BinaryIO]) -> None:
        reader, writer = pipe
        writer.write(b"\n" * 60_000)
        assert reader.source.read(time.time(), reader.packets.append)
        assert reader.source.records < 1000
        reader.read()
        assert reader.source.records == 60_000

    def test_an_overlong_line(self, pipe: tuple[Reader, BinaryIO]) -> None:
        reader, writer = pipe
        for _ in range(160):
            writer.write(b"x" * 60_000)
            reader.read()
        writer.write(b"\n" + text(1).encode())
        assert reader.read() == [1]
        assert reader.settle() == ["standard input: skipped 9600000 bytes of lines longer than any record (8192 bytes)"]

    @pytest.mark.parametrize("kind", ["a pipe", "a terminal", "a socket"])
    def test_nobody_elses_standard_input_is_made_non_blocking(self, kind: str) -> None:
        """O_NONBLOCK belongs to all who share what was opened: a shell would find its terminal changed."""
        if kind == "a pipe":
            ours, theirs = os.pipe()
        elif kind == "a terminal":
            theirs, ours = pty.openpty()
        else:
            ours, theirs = (end.detach() for end in socket.socketpair())
        with closing(Pipe(grammar(), ours)) as source:
            assert os.get_blocking(ours)
            reader = Reader(source)
            assert reader.read() == []
            os.write(theirs, text(1).encode())
            until(lambda: reader.read() == [1], "the line")
        assert os.get_blocking(ours)
        for descriptor in (ours, theirs):
            os.close(descriptor)

    def test_a_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with open(tmp_path / "fifo", "r+b", buffering=0) as fifo, closing(Pipe(grammar(), fifo.fileno())) as source:
            reader = Reader(source)
            assert reader.read() == []
            fifo.write(text(1).encode())
            assert reader.read() == [1]

    def test_a_regular_file_is_read_to_its_end(self, log: Path) -> None:
        """`logknock run < kern.log`: epoll knows no regular files."""
        append(log, *range(1, 2001))
        with log.open("rb") as stream, closing(Pipe(grammar(), stream.fileno())) as source:
            assert (source.fileno(), source.interval) == (-1, 0.02)
            reader = Reader(source)
            assert reader.read() == list(range(1, 2001))
            assert source.interval == 0.0
            assert reader.settle(2) == ["standard input: has ended"]

    def test_t29_a_regular_files_records_are_as_old_as_they_say(self, log: Path) -> None:
        """T29: with a date by that; without one they are not from now."""
        log.write_text(text(1, when=1000.0) + f"logknock: {RECORD.format(2, 2)}\n")
        with log.open("rb") as stream, closing(Pipe(grammar(), stream.fileno())) as source:
            reader = Reader(source)
            reader.read()
        assert [packet.time < 1002 for packet in reader.packets] == [True, True]

    def test_nothing_to_read(self) -> None:
        """/dev/null, as systemd gives it, ends at once."""
        with open("/dev/null", "rb") as stream, closing(Pipe(grammar(), stream.fileno())) as source:
            reader = Reader(source)
            assert reader.read() == []
            assert reader.settle() == ["standard input: has ended"]

    def test_a_closed_standard_input(self) -> None:
        """Whatever is opened first gets its number, and must not be read."""
        code = """
from logknock.errors import SourceError
from logknock.records import Grammar, Wanted
from logknock.sources.logfile import Pipe
taken = open("/dev/zero")
try: Pipe(Grammar(Wanted()))
except SourceError as error: print(taken.fileno(), error.exit_code, error.words())
"""
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"0 {UNAVAILABLE} standard input: cannot be read: it was closed"), done.stderr
        assert "journalctl -kf -o json" in done.stdout

    def test_a_directory(self, tmp_path: Path) -> None:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(SourceError, match="standard input: cannot be read: Is a directory"):
            Pipe(grammar(), descriptor)
        os.close(descriptor)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"a\n\nb\n", [b"a", b"", b"b"], id="lines"),
        pytest.param(b"a\nb", [b"a", b"b"], id="half a line at the end"),
        pytest.param(b"x" * MAX_LINE + b"\n", [b"x" * MAX_LINE], id="the longest line"),
        pytest.param(b"x" * (MAX_LINE + 1) + b"\na", [b"x" * (MAX_LINE + 1), b"a"], id="one byte more"),
        pytest.param(b"x" * (10 << 20) + b"\na\n", [b"x" * (MAX_LINE + 1), b"a"], id="10 MiB in a line"),
        pytest.param(b"x" * (10 << 20), [b"x" * (MAX_LINE + 1)], id="10 MiB without a newline"),
        pytest.param(b"\0" * (1 << 20) + b"a\nb\n", [b"a", b"b"], id="NULs where a hole was"),
        pytest.param(b"\0" * 8100 + b"x" * 200 + b"\nb\n", [b"x" * 200, b"b"], id="NULs, and a line over the limit"),
        pytest.param(b"a\0b\n", [b"a\0b"], id="a NUL inside a line"),
    ],
)
def test_lines_of_a_stream(data: bytes, expected: list[bytes]) -> None:
    assert list(lines(BytesIO(data))) == expected


@given(st.lists(st.sampled_from([b"a", b"\n", b"\0", b"x" * 5000, b"line\n", b"\0\0\n"])), st.integers(1, 9000))
def test_a_stream_and_a_pipe_have_the_same_lines(parts: list[bytes], size: int) -> None:
    """However the bytes come; but for half a line at the end, and what is overlong."""
    data = b"".join(parts)
    splitter = logfile._Lines(logfile._Told("x"))
    came = [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])]
    assert came == [line for line in lines(BytesIO(data[: data.rfind(b"\n") + 1])) if len(line) <= MAX_LINE]
