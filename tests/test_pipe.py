"""Reading standard input, whatever that is: real pipes, terminals, sockets and files."""

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import pytest

from logknock.errors import UNAVAILABLE, SourceError
from logknock.sources.pipe import Pipe
from logknock.trusted_files import Untrusted

from .e2e.world import until
from .log_lines import RECORD, Reader, append, grammar, open_descriptors, text


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An empty log."""
    path = tmp_path / "kern.log"
    path.touch(0o640)
    return path


@pytest.fixture
def pipe() -> Iterator[tuple[Reader, BinaryIO]]:
    """A pipe, and what reads it."""
    inner, outer = os.pipe()
    with closing(Pipe(grammar(), inner)) as source, open(outer, "wb", buffering=0) as writer:
        yield Reader(source), writer
    os.close(inner)


def journal_line(number: int, ago: float = 0.0, transport: str = "kernel") -> bytes:
    """What `journalctl -o json` says of a packet that came in so many seconds ago, and was written down at once."""
    entry = {
        "_BOOT_ID": "5f2c6f2d7a5b4a6f8d3f0a1b2c3d4e5f",
        "__REALTIME_TIMESTAMP": str(int((time.time() - ago) * 1_000_000)),
        "__MONOTONIC_TIMESTAMP": str(int((time.monotonic() - ago) * 1_000_000)),
        "_SOURCE_MONOTONIC_TIMESTAMP": str(int((time.monotonic() - ago) * 1_000_000)),
        "_TRANSPORT": transport,
        "SYSLOG_IDENTIFIER": "kernel",
        "SYSLOG_FACILITY": "0",
        "MESSAGE": f"logknock: {RECORD.format(number, number)}",
    }
    return json.dumps(entry).encode() + b"\n"


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
            writer.write(journal_line(number, transport=transport))
        assert reader.read() == [2]
        assert reader.source.ignored == 1

    def test_t29_a_record_with_nothing_but_an_uptime_is_as_old_as_that(self, pipe: tuple[Reader, BinaryIO]) -> None:
        """T29: `dmesg -w | logknock run` begins with what the kernel has said since its start."""
        reader, writer = pipe
        for number, age in ((1, 500), (2, 0)):
            writer.write(f"[{time.monotonic() - age:12.6f}] logknock: {RECORD.format(number, number)}\n".encode())
        assert reader.read() == [2]

    def test_t29_what_was_before_it_is_not_handed_over(self, pipe: tuple[Reader, BinaryIO]) -> None:
        """T29: `tail -f` begins with the last lines. But rsyslog's imkmsg stamps a second too early, now and then."""
        reader, writer = pipe
        now = time.time()
        for number, when in ((1, now - 60), (2, now - 12), (3, now - 1), (4, now + 1)):
            writer.write(text(number, when=when).replace("+00:00", f".{int(when % 1 * 1e6):06}+00:00").encode())
        assert reader.read() == [3, 4]

    def test_t29_what_the_journal_held_before_is_known_to_the_moment(self) -> None:
        """T29: `journalctl -f` begins with the last lines, be they from a tenth of a second ago."""
        inner, outer = os.pipe()
        with open(outer, "wb", buffering=0) as writer:
            writer.write(journal_line(1, ago=0.1))
            with closing(Pipe(grammar(), inner)) as source:
                writer.write(journal_line(2))
                assert Reader(source).read() == [2]
        os.close(inner)

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
        assert isinstance(reader.source, Pipe)
        assert reader.source.ended

    def test_it_has_not_ended_before_all_is_handed_over(self, pipe: tuple[Reader, BinaryIO]) -> None:
        """Who stops when it has ended must not lose the last knock."""
        reader, writer = pipe
        writer.write(b"\n" * 1000 + text(1).encode())
        writer.close()
        assert isinstance(reader.source, Pipe)
        while not reader.source.ended:
            reader.source.read(time.time(), reader.packets.append)
        assert reader.numbers == [1]

    def test_half_a_line_at_the_end_is_not_read(self, pipe: tuple[Reader, BinaryIO]) -> None:
        """A port may be cut in two; what is lost is counted (T30)."""
        reader, writer = pipe
        writer.write(text(1).encode()[:-1])
        writer.close()
        assert reader.read() == []
        assert reader.settle() == ["standard input: has ended", "standard input: 1 records lost on the way"]
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

    def test_a_fifo_waits_for_the_next_writer(self, tmp_path: Path) -> None:
        """A log daemon that is started anew finds it open, and writes on."""
        path = tmp_path / "fifo"
        os.mkfifo(path)
        ours = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with closing(Pipe(grammar(), ours)) as source:
            os.close(ours)
            reader = Reader(source)
            for number in (1, 2, 3):
                with path.open("wb", buffering=0) as fifo:
                    fifo.write(text(number).encode())
                assert reader.read() == list(range(1, number + 1))
                assert not source.ended
            assert reader.settle(2) == []

    @pytest.mark.parametrize(("owner", "mode"), [(0, 0o622), (0, 0o620), (12_345, 0o600)])
    def test_t31_a_fifo_that_others_can_write_into(self, tmp_path: Path, owner: int, mode: int) -> None:
        """T31: whoever may write into it could make up a knock."""
        path = tmp_path / "fifo"
        os.mkfifo(path)
        path.chmod(mode)
        os.chown(path, owner, 12_345)
        with path.open("r+b", buffering=0) as fifo, pytest.raises(Untrusted, match=re.escape(str(path))):
            Pipe(grammar(), fifo.fileno())
        assert not open_descriptors(tmp_path)

    def test_t29_a_regular_file_is_refused(self, log: Path) -> None:
        """T29: `logknock run < kern.log`: what a file holds is old, even if it was written just now."""
        append(log, 1, 2)
        before = len(os.listdir("/proc/self/fd"))
        with log.open("rb") as stream, pytest.raises(SourceError) as caught:
            Pipe(grammar(), stream.fileno())
        assert caught.value.message == "standard input: is a regular file, whose records are old"
        assert caught.value.exit_code == UNAVAILABLE
        assert "logknock replay" in caught.value.hint
        assert len(os.listdir("/proc/self/fd")) == before

    def test_t29_the_end_of_a_log_by_a_pipe(self, log: Path) -> None:
        """T29: `tail -f` and `cat` begin with what was there before."""
        log.write_text("".join(text(number, when=time.time() - 3) for number in (1, 2)))
        with subprocess.Popen(["cat", log], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.wait(20)
            with closing(Pipe(grammar(), process.stdout.fileno())) as source:
                reader = Reader(source)
                assert reader.read() == []
                assert (source.records, source.ended) == (2, True)

    @pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
    def test_nothing_is_piped_in(self, device: str) -> None:
        """/dev/null, as systemd gives it: nothing would ever come, and nobody would know why."""
        with open(device, "rb") as stream, pytest.raises(SourceError) as caught:
            Pipe(grammar(), stream.fileno())
        assert caught.value.message == f"standard input: is {device}, and nothing is piped in"
        assert "journalctl" in caught.value.hint

    def test_a_closed_standard_input(self) -> None:
        """Whatever is opened first gets its number, and must not be read."""
        code = """
from logknock.errors import SourceError
from logknock.records import Grammar, Wanted
from logknock.sources.pipe import Pipe
from logknock.trusted_files import Untrusted
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
