"""`logknock watch`: lines, objects and the picture on a terminal, while doors open and a flood goes on."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from logknock.control import follow, start_hint
from logknock.feed import MAX_WATCHERS
from logknock.report import ROUTINE_LINES_PER_SECOND

from ..netns import Host
from .pages import COMMANDS, HOST, KNOCKER, Guide, documented, follows, guarded, private
from .world import KNOCKS, PATIENCE, SSH, Daemon, World, until

PAGE = follows("docs/howto/watch.md")

FLOW = "{src}>10.99.0.1:{service}"


@contextmanager
def running(world: World, text: str = SSH) -> Iterator[Daemon]:
    world.configure(text)
    world.apply()
    with world.daemon() as daemon:
        yield daemon
        assert not daemon.says("Traceback")


@contextmanager
def watching(world: World, *options: str, begun: str = "") -> Iterator[subprocess.Popen[str]]:
    """`logknock watch` with its output piped, from when it has said its first line."""
    argv = [sys.executable, "-m", "logknock", "watch", "-c", str(world.config), *options]
    process = world.gateway.start(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert begun in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def up_to(process: subprocess.Popen[str], text: str) -> list[str]:
    """What it prints, up to a line with this text."""
    assert process.stdout is not None
    found = [""]
    while text not in found[-1]:
        found.append(process.stdout.readline())
        assert found[-1], f"it ended before {text!r}: {found}"
    return found[1:]


def test_piped_it_is_a_line_an_event(world: World) -> None:
    with running(world), watching(world, begun="logknock 0.1.0 runs since ") as process:
        world.knock(*KNOCKS)
        lines = up_to(process, "OPEN SESAME")
        told = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  10\.99\.0\.2: ssh: ", "", line) for line in lines]
        assert told == ["Stage 1\n", "Stage 2\n", "Stage 3\n", "OPEN SESAME\n"]


def test_objects_for_programs_have_all_that_the_daemon_tells(world: World) -> None:
    with running(world), watching(world, "--json", begun='{"standing": ') as process:
        world.gateway.logknock("grant", "ssh", "192.0.2.7", "1h", "-c", str(world.config))
        world.gateway.logknock("revoke", "192.0.2.7", "-c", str(world.config))
        found = [json.loads(line) for line in up_to(process, '"event": "closed"')]
        second = json.loads(up_to(process, '{"standing"')[-1])["standing"]
        assert second["sources"][0]["name"] == "NFLOG group 5"
        (granted,) = (each["grant"] for each in found if "grant" in each)
        assert 3590 < granted.pop("left") <= 3600
        assert granted == {"door": "ssh", "address": "192.0.2.7", "by": "root (uid 0)", "open": True}
        assert [each["gone"] for each in found if "gone" in each] == [{"door": "ssh", "address": "192.0.2.7"}]
        event = next(each["event"] for each in found if "event" in each)
        assert abs(event.pop("time") - time.time()) < 60
        assert event == {
            "level": "notice",
            "text": "192.0.2.7: ssh: opened by root (uid 0) for 3600 s",
            "event": "granted",
            "door": "ssh",
            "src": "192.0.2.7",
            "by": "root (uid 0)",
            "timeout": "3600",
        }


def test_it_shows_one_door_or_one_knocker_if_that_is_asked(world: World) -> None:
    two = SSH + SSH.replace("doors.ssh", "doors.web").replace("00/", "11/").replace("22/tcp", "80/tcp")
    with (
        running(world, two),
        watching(world, "--door", "web") as web,
        watching(world, "--json", "--address", "::ffff:192.0.2.8") as eight,
    ):
        for door, address in (("ssh", "192.0.2.7"), ("ssh", "192.0.2.8"), ("web", "192.0.2.7"), ("web", "192.0.2.8")):
            world.gateway.logknock("grant", door, address, "-c", str(world.config))
        assert [line.partition("  ")[2].partition(": opened")[0] for line in up_to(web, "192.0.2.8: web")] == [
            "192.0.2.7: web",
            "192.0.2.8: web",
        ]
        found = [json.loads(line) for line in up_to(eight, "192.0.2.8: web")]
        assert {each["event"]["src"] for each in found if "event" in each} == {"192.0.2.8"}
        assert {each["grant"]["address"] for each in found if "grant" in each} == {"192.0.2.8"}
        assert not web.poll()
    for wrong in ("x", "10.0.0.1/8"):
        done = world.gateway.logknock("watch", "--address", wrong, "-c", str(world.config), check=False)
        assert done.returncode == 2


@pytest.mark.parametrize("options", [pytest.param((), id="lines"), pytest.param(("--json",), id="objects")])
def test_a_door_that_is_not_there_is_told_at_once(world: World, options: tuple[str, ...]) -> None:
    with running(world):
        done = world.gateway.logknock("watch", "--door", "shh", *options, "-c", str(world.config), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "logknock: there is no door shh\nhint: the doors are: ssh\n"


@pytest.mark.parametrize("options", [pytest.param((), id="lines"), pytest.param(("--json",), id="objects")])
def test_it_says_so_when_the_daemon_ends(world: World, options: tuple[str, ...]) -> None:
    with running(world) as daemon, watching(world, *options) as stopped:
        daemon.stop()
        assert stopped.wait(PATIENCE) == 69
        assert stopped.stderr is not None
        assert stopped.stderr.read() == f"logknock: logknock has stopped\nhint: {start_hint()}\n"
    with world.daemon() as daemon, watching(world, *options) as killed:
        daemon.process.kill()
        assert killed.wait(PATIENCE) == 69
        assert killed.stderr is not None
        assert "the daemon ended before its answer did" in killed.stderr.read()
    assert world.gateway.logknock("watch", "-c", str(world.config), check=False).returncode == 69


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_when_it_is_to(world: World, number: signal.Signals) -> None:
    with running(world), watching(world) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_who_reads_its_output_may_go(world: World) -> None:
    with running(world), watching(world, "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_what_is_degraded_is_told_and_that_it_is_over(world: World) -> None:
    with running(world, SSH + "[firewall]\nrestore = false\n"), watching(world) as process:
        world.gateway.run("nft", "delete", "table", "inet", "logknock")
        line = up_to(process, "degraded since")[-1]
        assert "firewall: " in line
        assert "(hint: `logknock rules apply` loads it)" in line
        world.apply()
        up_to(process, "no longer degraded")


# ---- on a terminal


class Terminal:
    """A pseudo terminal with a program in it, and what that has written."""

    def __init__(self, world: World, *argv: str, rows: int = 24, columns: int = 100, kind: str = "xterm") -> None:
        self.descriptor, other = pty.openpty()
        self.resize(rows, columns)
        # Readline puts the size of the terminal that the tests run on into the environment, where it has precedence.
        own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = world.gateway.start(
            *argv, stdin=other, stdout=other, stderr=other, start_new_session=True,
            env=own | {"TERM": kind}, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(other)
        self.written = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> bytes:
        while select.select([self.descriptor], [], [], 0)[0]:
            try:
                some = os.read(self.descriptor, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
            self.written += some
        return self.written

    def shows(self, pattern: str, since: int = 0) -> list[str]:
        """What it has written of this, colours and all other commands left out."""
        text = re.sub(rb"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)", b"", self.read()[since:]).decode(errors="replace")
        return re.findall(pattern, text, re.MULTILINE)

    def wait_for(self, pattern: str, since: int = 0) -> list[str]:
        until(lambda: self.shows(pattern, since), f"{pattern} on the terminal, not {self.written[-2000:]!r}")
        return self.shows(pattern, since)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)


@contextmanager
def terminal(world: World, *options: str, **size: Any) -> Iterator[Terminal]:
    made = Terminal(world, sys.executable, "-m", "logknock", "watch", "-c", str(world.config), *options, **size)
    try:
        yield made
    finally:
        made.close()


def test_the_picture_has_all_of_it_and_leaves_the_terminal_as_it_was(world: World) -> None:
    with running(world, SSH + "[firewall]\nrestore = false\n"), terminal(world) as seen:
        seen.wait_for(r"logknock 0\.1\.0  all is well  0 open")
        seen.wait_for(r"^NFLOG group 5  0\.0/s  0 records  0 lost")
        seen.wait_for("^nothing yet")
        world.knock(*KNOCKS)
        seen.wait_for(r"\d\d:\d\d:\d\d  10\.99\.0\.2: ssh: OPEN SESAME")
        first = int(seen.wait_for(r"^ssh  10\.99\.0\.2  (\d+)s left")[-1])
        until(lambda: int(seen.shows(r"^ssh  10\.99\.0\.2  (\d+)s left")[-1]) < first, "it counts down")
        world.gateway.logknock("grant", "ssh", "2001:db8::7", "8h", "-c", str(world.config))
        seen.wait_for(r"^ssh  2001:db8::7  7h59m left  by root \(uid 0\)")
        world.gateway.run("nft", "delete", "table", "inet", "logknock")
        seen.wait_for(r"degraded since \S+ \S+: firewall: ")
        seen.wait_for(r"logknock 0\.1\.0  degraded")
        at = len(seen.written)
        os.write(seen.descriptor, b"\x03")
        assert seen.process.wait(PATIENCE) == 0
        assert seen.read()[at:].endswith(b"\x1b[?1049l"), "the other screen, and nothing behind it"
        assert b"\x1b[?25h" in seen.read()[at:], "the cursor is there again"


def test_it_takes_the_terminal_as_it_is(world: World) -> None:
    """Narrow, tiny and made larger while it runs: never a line more or longer than there is room for."""
    with running(world) as daemon, terminal(world, rows=10, columns=20) as seen:
        seen.wait_for("logknock 0.1.0")
        world.knock(*KNOCKS)
        seen.wait_for("OPEN|10.99.0.2")
        for rows, columns in ((5, 10), (1, 1), (2, 40), (50, 200)):
            seen.resize(rows, columns)
            at = len(seen.read())
            until(lambda at=at: seen.read()[at:].count(b"\x1b[H") >= 3, "pictures of that size")  # type: ignore[misc]
            pictures = seen.read()[at:].split(b"\x1b[H")[2:-1]  # the first may have been under way, of the size before
            for picture in pictures:
                lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", picture).decode().split("\r\n")
                assert len(lines) <= rows
                assert max(map(len, lines)) <= columns
        seen.wait_for(r"10\.99\.0\.2: ssh: OPEN SESAME", at)
        daemon.stop()
        assert seen.process.wait(PATIENCE) == 69
        assert re.search(r"\[\?1049llogknock: logknock has stopped\r\n", seen.read().decode())


def test_a_terminal_without_a_picture_gets_lines(world: World) -> None:
    with running(world), terminal(world, kind="dumb") as seen:
        seen.wait_for("logknock 0.1.0 runs since")
        assert b"\x1b" not in seen.read()


def test_nothing_foreign_reaches_the_terminal_raw(world: World) -> None:
    """What a command of a door says, say."""
    text = SSH.replace('timeout = "30s"', 'on_open = ["/usr/bin/printf", "\\\\033[2J\\\\033]0;owned\\\\007"]')
    with running(world, text), terminal(world) as seen:
        seen.wait_for("all is well")
        world.knock(*KNOCKS)
        seen.wait_for("OPEN SESAME")
        seen.wait_for(r"\\x1b\[2J")
        assert b"\x1b]0;owned" not in seen.read()


# ---- under load


def test_in_a_flood_watchers_hear_what_the_log_does_and_doors_open(world: World) -> None:
    """First knocks of hundreds: as many lines a second as the log takes, a word on the rest, and a door that opens."""
    runtime = world.config.parent / "run"
    with running(world) as daemon:
        watchers = [follow(runtime, "watch") for _ in range(MAX_WATCHERS)]
        for watcher in watchers:
            next(watcher)
        sources = [f"198.51.100.{low}" for low in range(1, 255)] + [f"203.0.113.{low}" for low in range(1, 255)]
        begin = time.monotonic()
        for _ in range(4):
            world.spoof(*(FLOW.format(src=src, service="7000/tcp") for src in sources))
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        lines: list[list[dict[str, Any]]] = []
        for watcher in watchers:
            heard: list[dict[str, Any]] = []
            while not all(any(text in each["text"] for each in heard) for text in ("OPEN SESAME", "left out")):
                heard += [each["event"] for each in next(watcher) if "event" in each]
            lines.append(heard)
        took = time.monotonic() - begin
        for heard in lines[1:]:
            both = min(len(heard), len(lines[0]))
            assert heard[:both] == lines[0][:both], "all hear the same"
        attempts = [each for each in lines[0] if each["event"] in ("advanced", "failed")]
        assert 0 < len(attempts) <= ROUTINE_LINES_PER_SECOND * (took + 2)


def test_who_does_not_read_costs_the_daemon_no_memory(world: World) -> None:
    """It is stopped, as with Ctrl-Z, while doors open thousands of times; then it hears how much it missed."""
    request = json.dumps({"version": 1, "do": "grant", "door": "ssh", "address": "192.0.2.7"}).encode() + b"\n"
    with running(world) as daemon, watching(world, "--json") as stopped:

        def memory() -> int:
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0])

        def open_often(stream: io.BufferedRWPair) -> None:
            for _ in range(1000):
                stream.write(request)
                stream.flush()
                assert (stream.readline()[:9], stream.readline()) == (b'{"grant":', b'{"done": true}\n')

        stopped.send_signal(signal.SIGSTOP)
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(world.config.parent / "run" / "control.sock"))
            with wire.makefile("rwb") as stream:
                open_often(stream)
                before = memory()
                open_often(stream)
                assert memory() - before < 2_000, "kB"
        stopped.send_signal(signal.SIGCONT)
        missed = 0
        while missed <= 100:  # a few perhaps before it was stopped, if much came at once
            missed += json.loads(up_to(stopped, '{"missed": ')[-1])["missed"]


def test_the_page_s_commands_and_what_they_show(hosts: tuple[Host, Host]) -> None:
    documented(hosts)
    with private(hosts[0], {"host.example": HOST[:1]}, COMMANDS) as gateway, guarded(gateway, SSH) as daemon:
        guide = Guide(PAGE, {"": gateway})
        with guide.start("logknock watch") as seen:
            seen.expect("runs since")
            hosts[1].logknock("knock", HOST[0], *KNOCKS)
            daemon.expect("OPEN SESAME")
            seen.expect("OPEN SESAME")
            guide.shown("OPEN SESAME", seen.so_far())
            seen.interrupt()
        guide.shown("left   by", guide.run("logknock grants"))
        guide.shown("is open for", guide.run("logknock grant ssh"))
        daemon.expect("2001:db8::7: ssh: opened by root (uid 0) for 30 s")
        said = guide.run("logknock revoke")
        assert said == "ssh is closed for 203.0.113.8\nssh is closed for 2001:db8::7\n"
        guide.shown("reloaded", guide.run("logknock reload"))
        assert KNOCKER[0] in gateway.run("logknock", "grants").stdout
