"""`logknock run` behind a log file that is rotated, and behind a pipe."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

from .world import KNOCKS, SSH, Daemon, World, until

SRC = "192.0.2.7"
OPENED = f"{SRC}: ssh: OPEN SESAME"


def line(service: str, *, when: float | None = None, src: str = SRC) -> bytes:
    """What rsyslog writes of a packet that the rules have logged."""
    port, _, proto = service.partition("/")
    when = time.time() if when is None else when
    head = f"{time.strftime('%b %d %H:%M:%S', time.localtime(when))} gateway kernel: [{when % 1_000_000:12.6f}]"
    transport = "WINDOW=1024 RES=0x00 SYN URGP=0 " if proto == "tcp" else "LEN=9 "
    return (
        f"{head} logknock: IN=eth0 OUT= MAC= SRC={src} DST=10.99.0.1 LEN=40 TOS=0x00 "
        f"PREC=0x00 TTL=64 ID=1 PROTO={proto.upper()} SPT={20000 + int(port)} DPT={port} {transport}\n"
    ).encode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kern.log"
    path.touch(0o640)
    return path


@pytest.fixture
def world(world: World, log: Path) -> World:
    """With the log as its source."""
    world.configure(f'[log]\nsource = "file"\nfile.path = "{log}"\n{SSH}')
    world.apply()
    return world


def write(log: Path, *services: str, when: float | None = None, src: str = SRC) -> None:
    with log.open("ab") as file:
        file.write(b"".join(line(service, when=when, src=src) for service in services))


def rotate(log: Path, options: str) -> None:
    config = log.with_name("rotate.conf")
    config.write_text(f"{log} {{\n rotate 3\n {options}\n}}\n")
    config.chmod(0o600)
    subprocess.run(["logrotate", "--force", "--state", log.with_name("rotate.state"), config], check=True)


def test_t29_a_knock_that_was_there_before_opens_nothing(world: World, log: Path) -> None:
    """T29: neither what stood in the file, nor an old knock that is written to it now."""
    write(log, *KNOCKS)
    with world.daemon() as daemon:
        write(log, *KNOCKS, when=time.time() - 3600)
        until(lambda: daemon.counter("records") == 3, "the old knock to be read")
        assert not daemon.says("OPEN SESAME")
        write(log, *KNOCKS)
        daemon.wait_for(OPENED)
        assert daemon.counter("records") == 6


@pytest.mark.parametrize("options", ["create", "create\n compress", "copytruncate", "create\n dateext"])
def test_t28_a_rotation_between_two_knocks(world: World, log: Path, options: str) -> None:
    """T28: the knock goes on in the new file, and nothing counts twice."""
    with world.daemon() as daemon:
        write(log, KNOCKS[0])
        daemon.wait_for(f"{SRC}: ssh: Stage 1")
        rotate(log, options)
        write(log, *KNOCKS[1:])
        daemon.wait_for(OPENED)
        assert daemon.counter("records") == 3
        assert sum("OPEN SESAME" in told for told in daemon.lines) == 1


def test_it_opens_at_once(world: World, log: Path) -> None:
    """Watchdog wakes: a door does not wait for the next second."""
    with world.daemon() as daemon:
        took = []
        for number in range(5):
            began = time.monotonic()
            write(log, *KNOCKS, src=f"192.0.2.{number}")
            daemon.wait_for(f"192.0.2.{number}: ssh: OPEN SESAME")
            took.append(time.monotonic() - began)
        assert median(took) < 0.5, "woken, not looked at each second"


def test_t31_a_file_that_another_may_write_is_refused(world: World, log: Path) -> None:
    """T31: at the start the daemon does not start; later it says so and goes on without."""
    log.chmod(0o666)
    with world.daemon(ready=False) as daemon:
        assert daemon.process.wait(20) == 69
        daemon.wait_for(f"{log}: can be written by everybody")
        daemon.wait_for(f"hint: chmod o-w {log}")
    log.chmod(0o640)
    with world.daemon() as daemon:
        foreign = log.with_name("foreign.log")
        write(foreign, *KNOCKS)
        foreign.chmod(0o640)
        os.chown(foreign, 65534, 65534)
        foreign.replace(log)
        daemon.wait_for(f"{log}: belongs to another user (uid 65534)")
        os.chown(log, 0, 0)
        daemon.wait_for("is read now, from its end on")
        assert not daemon.says("OPEN SESAME")
        write(log, *KNOCKS)
        daemon.wait_for(OPENED)


def test_a_late_file_and_one_that_goes(world: World, log: Path) -> None:
    """The daemon starts without it, and stays when it goes."""
    log.unlink()
    with world.daemon() as daemon:
        daemon.wait_for(f"{log}: no such file")
        write(log, *KNOCKS)
        daemon.wait_for(OPENED)
        log.unlink()
        log.mkdir()
        daemon.wait_for(f"{log}: is a directory")
        shutil.rmtree(log)
        write(log, *KNOCKS, src="192.0.2.8")
        daemon.wait_for("192.0.2.8: ssh: OPEN SESAME")
        assert daemon.stop() == 0


@contextmanager
def piped(world: World, *, stdin: int, extra: Sequence[str] = ()) -> Iterator[Daemon]:
    """The daemon with that standard input."""
    world.configure(f'[log]\nsource = "stdin"\n{SSH}')
    command = [sys.executable, "-m", "logknock", "run", "-c", str(world.config)]
    process = world.gateway.start(*command, stdin=stdin, stderr=subprocess.PIPE)
    try:
        daemon = Daemon(process)
        daemon.wait_for("ready")
        yield daemon
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_pipe_and_its_end(world: World) -> None:
    """A knock through a pipe opens; the end is told once, ends the daemon, and ends no door."""
    with piped(world, stdin=subprocess.PIPE) as daemon:
        assert daemon.process.stdin is not None
        for service in KNOCKS:
            daemon.process.stdin.buffer.write(line(service))  # type: ignore[attr-defined]
            daemon.process.stdin.flush()
        daemon.wait_for(OPENED)
        daemon.process.stdin.close()
        daemon.wait_for("standard input: has ended")
        assert daemon.process.wait(20) == 69
        daemon.read()
        assert sum("standard input: has ended" in told for told in daemon.lines) == 1
        assert f"{SRC} . tcp . 22" in world.granted()
