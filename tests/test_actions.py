"""Commands of a door and its file for hosts.allow: real programs, real processes, real files."""

import asyncio
import errno
import ipaddress
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock import actions
from logknock.actions import (
    MAX_RUNNING,
    OUTPUT_LINE_BYTES,
    OUTPUT_LINES,
    READ_BYTES,
    READ_PAUSE,
    ActionError,
    AllowFile,
    Command,
    Runner,
    Told,
    command,
)
from logknock.knock import Door, Service

V4 = ipaddress.ip_address("192.0.2.7").packed
V6 = ipaddress.ip_address("2001:db8::7").packed
PATIENCE = 30.0
ROOT = Path(__file__).parent.parent


def a_door(**settings: object) -> Door:
    return Door("ssh", (Service.parse("7000/tcp"),), **settings)  # type: ignore[arg-type]


def a_command(*argv: str, src: bytes = V4, limit: float = PATIENCE, door: str = "ssh") -> Command:
    return Command(door, src, "open", argv, limit)


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.005)


async def run_all(runner: Runner, *commands: Command) -> None:
    """Have the commands run, and wait until each has ended."""
    ended = 0

    def done() -> None:
        nonlocal ended
        ended += 1

    for each in commands:
        runner.run(each, done)
    await until(lambda: ended == len(commands))
    assert (runner.running, runner.waiting) == (0, 0)


def play(*commands: Command) -> list[Told]:
    """All that is told of the commands, from the beginning to the end."""
    told: list[Told] = []

    async def main() -> None:
        runner = Runner(told.append)
        await run_all(runner, *commands)
        assert await runner.stop() == 0

    asyncio.run(main())
    return told


def texts(*argv: str, limit: float = PATIENCE) -> list[str]:
    """What is told of one command after the line that says that it runs; what is bad begins with `bad: `."""
    first, *rest = play(a_command(*argv, limit=limit))
    assert first.text.startswith("running command: ")
    return ["bad: " * told.bad + told.text for told in rest]


def output(*argv: str) -> list[str]:
    """The lines that the command writes; it must succeed."""
    lines = texts(*argv)
    assert all(line.startswith("output: ") for line in lines), lines
    return [line.removeprefix("output: ") for line in lines]


def script(folder: Path, text: str) -> str:
    path = folder / "command"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


# What is run


@pytest.mark.parametrize(
    ("settings", "ipv4", "ipv6"),
    [
        pytest.param({}, None, None, id="nothing"),
        pytest.param({"on_open": ("/a",)}, ("/a",), ("/a",), id="one form for both"),
        pytest.param({"on_open": ("/a",), "on_open_6": ("/b",)}, ("/a",), ("/b",), id="a form each"),
        pytest.param({"on_open": ("/a",), "on_open_6": ()}, ("/a",), None, id="nothing for IPv6"),
        pytest.param({"on_open_6": ("/b",)}, None, ("/b",), id="IPv6 only"),
        pytest.param({"on_close": ("/a",), "on_close_6": ("/b",)}, None, None, id="the other event"),
    ],
)
def test_which_form_counts(settings: dict[str, object], ipv4: object, ipv6: object) -> None:
    for src, expected in ((V4, ipv4), (V6, ipv6)):
        found = command(a_door(**settings), src, "open")
        assert (found and found.argv) == expected
        swapped = {name.replace("open", "CLOSE").replace("close", "open").replace("CLOSE", "close"): value
                   for name, value in settings.items()}  # fmt: skip
        found = command(a_door(**swapped), src, "close")
        assert (found and found.argv) == expected


def test_the_limit_is_the_doors() -> None:
    found = command(a_door(on_close=("/a",), command_limit=3.5), V4, "close")
    assert found == Command("ssh", V4, "close", ("/a",), 3.5)


@given(st.lists(st.lists(st.sampled_from(["{src}", "{", "}", "{door}", "src", "%IP%", "$x", "\\"]), max_size=5)))
def test_only_src_is_replaced(arguments: list[list[str]]) -> None:
    template = ("/bin/{src}", *("".join(argument) for argument in arguments))
    program, *rest = Command("ssh", V6, "open", template, 1.0).argv
    assert program == "/bin/{src}"  # the program is the configuration's alone
    assert rest == ["2001:db8::7".join(argument.split("{src}")) for argument in template[1:]]


def test_t35_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    """T35: there is no shell on the way."""
    arguments = [
        "$(touch here)",
        "`id`",
        "; rm -rf /",
        "*",
        "a b",
        "",
        "'\"",
        "--",
        "-x",
        "\\",
        "é",
        "{src}",
        "x={src}",
    ]
    expected = [f"<{argument.replace('{src}', '192.0.2.7')}>" for argument in arguments]
    assert output("/usr/bin/printf", "<%s>\\n", *arguments) == expected


def test_the_environment_is_exactly_this() -> None:
    os.environ["LEAK"] = "1"
    try:
        told = play(Command("ssh", V6, "close", ("/usr/bin/env",), 9.0))
    finally:
        del os.environ["LEAK"]
    assert {line.text for line in told[1:]} == {
        "output: LOGKNOCK_SRC=2001:db8::7",
        "output: LOGKNOCK_DOOR=ssh",
        "output: LOGKNOCK_EVENT=close",
        "output: PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "output: LANG=C.UTF-8",
    }


# What it may do

NO_CAPABILITIES = {f"Cap{name}:\\t{0:016x}" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
CAPABILITIES = ("/bin/grep", "-E", "^(Cap|NoNewPrivs|Uid)", "/proc/self/status")

# A daemon in a process of its own: what it tells, line by line.
ELSEWHERE = """
import asyncio, sys
from logknock.actions import Command, Runner
async def main():
    ended = asyncio.Event()
    runner = Runner(lambda told: print(told.text, flush=True))
    runner.run(Command("ssh", bytes(4), "open", tuple(sys.argv[1:]), 60.0), ended.set)
    await ended.wait()
asyncio.run(main())
"""


def elsewhere(privileges: list[str], *argv: str) -> list[str]:
    """What a daemon with these privileges, in setpriv's words, tells of the command."""
    process = ["setpriv", *privileges, sys.executable, "-c", ELSEWHERE, *argv]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert not done.stderr
    return done.stdout.splitlines()[1:]


def test_a_command_of_root_has_no_capabilities() -> None:
    told = set(output(*CAPABILITIES))
    assert told >= NO_CAPABILITIES | {"NoNewPrivs:\\t1"}


def test_a_command_of_another_user_has_no_capabilities() -> None:
    """A daemon with CAP_NET_ADMIN and no other rights. (CAP_DAC_READ_SEARCH only so that it finds this project.)"""
    some = "+net_admin,+dac_read_search"
    user = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    told = elsewhere([*user, f"--inh-caps={some}", f"--ambient-caps={some}"], *CAPABILITIES)
    told = [line.removeprefix("output: ") for line in told]
    assert set(told) >= {line for line in NO_CAPABILITIES if "Bnd" not in line} | {"NoNewPrivs:\\t1"}
    assert told[0] == "Uid:" + "\\t65534" * 4


def test_without_a_way_to_take_capabilities_nothing_runs(tmp_path: Path) -> None:
    """Root that lacks CAP_SETPCAP would hand on what its bounding set has."""
    mark = tmp_path / "mark"
    (told,) = elsewhere(["--bounding-set=-all,+net_admin"], "/usr/bin/touch", str(mark))
    assert told.startswith("cannot be started: it would have capabilities (hint: ")
    assert not mark.exists()


def test_root_that_has_nothing_to_hand_on_may_run_commands() -> None:
    told = elsewhere(["--bounding-set=-all"], *CAPABILITIES)
    assert {line.removeprefix("output: ") for line in told} >= NO_CAPABILITIES


@contextmanager
def disposition(number: signal.Signals, how: signal.Handlers) -> Iterator[None]:
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_no_signal_is_ignored_or_blocked() -> None:
    with disposition(signal.SIGHUP, signal.SIG_IGN), disposition(signal.SIGQUIT, signal.SIG_IGN):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            told = output("/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
            assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # 32 and 33 are the C library's own, which nobody can set: make(1) leaves them ignored in what it starts.
    assert [int(line.partition("\\t")[2], 16) & ~(3 << 31) for line in told] == [0, 0]


def test_a_parent_that_ignores_sigchld_still_learns_the_exit_status(tmp_path: Path) -> None:
    with disposition(signal.SIGCHLD, signal.SIG_IGN):
        assert texts(script(tmp_path, "exit 3")) == ["bad: exit status 3"]


@contextmanager
def something_to_read() -> Iterator[None]:
    """Standard input is a pipe meanwhile."""
    before = os.dup(0)
    pipe, its_end = os.pipe()
    try:
        os.dup2(pipe, 0)
        yield
    finally:
        os.dup2(before, 0)
        for descriptor in (before, pipe, its_end):
            os.close(descriptor)


def test_where_it_runs(tmp_path: Path) -> None:
    """In /, in a session of its own, with nothing to read, and what it writes is for its user alone."""
    path = script(tmp_path, "pwd; umask; readlink /proc/$$/fd/0; echo $$ $(ps -o pgid=,sid= -p $$)")
    with something_to_read():
        *where, ids = output(path)
    assert where == ["/", "0077", "/dev/null"]
    assert len(set(ids.split())) == 1


def test_no_descriptor_of_the_daemon_is_there(tmp_path: Path) -> None:
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        told = set(output("/bin/ls", "/proc/self/fd"))
    finally:
        os.close(inherited)
    assert told == {"0", "1", "2", "3"}  # ls reads the directory as 3


# How it ends


def test_success_needs_no_words(tmp_path: Path) -> None:
    assert play(a_command("/bin/true", "a b")) == [Told("ssh", V4, "running command: /bin/true 'a b'", bad=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("exit 3", "bad: exit status 3", id="an exit status"),
        pytest.param("exit 127", "bad: exit status 127", id="setpriv's own exit status, without its words"),
        pytest.param("kill -SEGV $$", "bad: killed by SIGSEGV", id="a signal"),
        pytest.param("kill -KILL $$", "bad: killed by SIGKILL", id="a SIGKILL that is not ours"),
        pytest.param("kill -40 $$", "bad: killed by signal 40", id="a signal without a name"),
    ],
)
def test_a_bad_end_is_told(tmp_path: Path, text: str, expected: str) -> None:
    assert texts(script(tmp_path, text)) == [expected]


def test_setprivs_words_count_only_where_it_failed(tmp_path: Path) -> None:
    said = "echo setpriv: failed to execute me: No such file or directory"
    expected = "output: setpriv: failed to execute me: No such file or directory"
    assert texts(script(tmp_path, f"{said}; exit 1")) == [expected, "bad: exit status 1"]
    assert texts(script(tmp_path, f"{said}; echo more; exit 127")) == [
        expected,
        "output: more",
        "bad: exit status 127",
    ]
    assert texts(script(tmp_path, f"echo less; {said}; exit 127")) == [
        "output: less",
        expected,
        "bad: exit status 127",
    ]


@pytest.mark.parametrize("case", ["missing", "interpreter", "mode", "directory", "nul"])
def test_what_cannot_be_started_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "command"
    reason = {
        "missing": f"No such file or directory (hint: look at the path in on_open or on_close: {path})",
        "interpreter": f"No such file or directory (hint: look at the interpreter that its first line names: {path})",
        "mode": f"Permission denied (hint: is {path} a file that may be executed, and by this user?)",
        "directory": f"Permission denied (hint: is {path} a file that may be executed, and by this user?)",
        "nul": "embedded null byte",
    }[case]
    if case == "directory":
        path.mkdir()
    elif case != "missing":
        path.write_text("#!/no/such/interpreter\n")
        path.chmod(0o600 if case == "mode" else 0o700)
    arguments = ["\0"] if case == "nul" else []
    assert texts(str(path), *arguments) == [f"bad: cannot be started: {reason}"]


def test_a_missing_setpriv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "_SETPRIV", str(tmp_path / "setpriv"))
    (told,) = texts("/bin/true")
    assert told.startswith(f"bad: cannot be started: {tmp_path}/setpriv: No such file or directory (hint: ")


@contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """So many files may be opened, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 16, hard))
    held = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(number):
            os.close(held.pop())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_without_descriptors_says_so_and_goes_on() -> None:
    told: list[Told] = []

    done: list[bool] = []

    async def main() -> None:
        runner = Runner(told.append)
        await run_all(runner, a_command("/bin/true"))
        before = open_files()
        for left in range(8):  # one more each time: every step of the start meets the limit
            with descriptors_left(left):
                runner.run(a_command("/bin/true"), lambda: done.append(True))
                await until(lambda: runner.running + runner.waiting == 0)
        assert open_files() == before
        await run_all(runner, a_command("/bin/echo", "again"))
        assert await runner.stop() == 0

    before = children()
    asyncio.run(main())
    assert children() == before
    failed = [line.text for line in told if line.bad]
    assert set(failed) == {"cannot be started: Too many open files"}
    assert 3 <= len(failed) < 8
    assert len(done) == 8 - len(failed), "what could not be started is to be run another time"
    assert told[-1].text == "output: again"


def test_what_cannot_be_watched_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may forbid pidfd_open."""

    def forbidden(pid: int, flags: int = 0) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    before = children()
    began = time.monotonic()
    assert texts("/bin/sleep", str(2 * PATIENCE)) == ["bad: cannot be started: Operation not permitted"]
    assert time.monotonic() - began < PATIENCE
    assert children() == before


def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    path = script(tmp_path, f"trap '' TERM INT HUP\nsleep 1000 & echo $! > {tmp_path}/pid; echo begun; wait; wait")
    assert texts(path, limit=6.0) == ["output: begun", "bad: killed after 6 s"]
    pid = int((tmp_path / "pid").read_text())
    asyncio.run(until(lambda: not is_running(pid)))


def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path) -> None:
    (pid,) = output(script(tmp_path, "sleep 1000 & echo $!"))
    asyncio.run(until(lambda: not is_running(int(pid))))


def test_who_escapes_from_the_group_holds_nothing_up(tmp_path: Path) -> None:
    """A daemon that a command starts keeps the pipe open for as long as it lives."""
    mark = tmp_path / "pid"
    path = script(
        tmp_path,
        f"setsid sh -c 'echo $$ > {mark}; exec sleep 1000' &\nwhile [ ! -s {mark} ]; do sleep 0.01; done\necho left",
    )
    began = time.monotonic()
    try:
        assert output(path) == ["left"]
        assert time.monotonic() - began < PATIENCE / 2
        assert is_running(int(mark.read_text()))
    finally:
        os.kill(int(mark.read_text()), signal.SIGKILL)


# What it writes


def test_output_is_told_line_by_line_while_it_runs(tmp_path: Path) -> None:
    told: list[Told] = []

    async def main() -> None:
        runner = Runner(told.append)
        runner.run(
            a_command(script(tmp_path, f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 1"))
        )
        await until(lambda: len(told) == 2)
        assert told[1] == Told("ssh", V4, "output: first", bad=False)
        (tmp_path / "go").touch()
        await until(lambda: len(told) == 3)
        await runner.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(r"printf 'a\033[2Jb\tc\r\n'", [r"a\x1b[2Jb\tc"], id="control characters"),
        pytest.param(r"printf 'a\0b\377\n'", [r"a\x00b\xff"], id="no text"),
        pytest.param(r"printf '\342\200\256abc\n'", [r"\u202eabc"], id="text that turns round what follows"),
        pytest.param("echo Grüße", ["Grüße"], id="other letters"),
        pytest.param(r"printf 'no end'", ["no end"], id="without a line end"),
        pytest.param(r"printf '\n\nx\n\n'", ["x"], id="empty lines"),
        pytest.param("echo out; echo err >&2", ["out", "err"], id="both streams"),
        pytest.param("exec >&- 2>&-; sleep 0.1", [], id="closed streams"),
        pytest.param(
            "head -c 1000000 /dev/zero | tr '\\0' x",
            [f"{'x' * OUTPUT_LINE_BYTES} ({1_000_000 - OUTPUT_LINE_BYTES} more bytes)"],
            id="a huge line",
        ),
        pytest.param(
            "seq 100",
            [*map(str, range(1, OUTPUT_LINES + 1)), f"({100 - OUTPUT_LINES} more lines left out)"],
            id="many lines",
        ),
        pytest.param(f"seq {OUTPUT_LINES}", [*map(str, range(1, OUTPUT_LINES + 1))], id="exactly as many as are told"),
    ],
)
def test_output_is_bounded_and_printable(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert output(script(tmp_path, text)) == expected


def test_random_bytes_are_bounded_text(tmp_path: Path) -> None:
    told = output(script(tmp_path, "head -c 300000 /dev/urandom"))
    assert len(told) <= OUTPUT_LINES + 1
    assert all(line.isprintable() and len(line) < 5 * OUTPUT_LINE_BYTES for line in told)


PIECES = st.lists(st.sampled_from([b"\n", b"\n", b"a", b"\r", b"\xff", b"x" * 21]), max_size=30)


@given(PIECES, st.lists(st.integers(0, 400), max_size=6))
def test_the_pieces_it_comes_in_do_not_matter(written: list[bytes], cuts: list[int]) -> None:
    data = b"".join(written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "OUTPUT_LINES", 3)
        patch.setattr(actions, "OUTPUT_LINE_BYTES", 20)
        whole, parts = actions._Output(), actions._Output()
        expected = [*whole.feed(data), *whole.finish()]
        edges = [0, *sorted(cuts), len(data)]
        pieces = [line for at, end in pairwise(edges) for line in parts.feed(data[at:end])]
        assert [*pieces, *parts.finish()] == expected
    beyond = data.split(b"\n")[3:]
    left_out = len(beyond) - (beyond[-1:] == [b""])
    assert expected[-1:] == [f"({left_out} more lines left out)"] or not left_out
    assert sum("left out" in line for line in expected) == bool(left_out)


def test_a_command_that_says_much_gets_to_its_end(tmp_path: Path) -> None:
    told = output(script(tmp_path, "seq 200000"))
    assert told[-1] == f"({200_000 - OUTPUT_LINES} more lines left out)"


def test_a_flood_of_output_leaves_the_loop_its_time() -> None:
    told: list[Told] = []
    ticks = 0
    seconds = 1.0

    async def main() -> float:
        nonlocal ticks
        runner = Runner(told.append)
        ended = asyncio.Event()
        began = time.monotonic()
        runner.run(a_command("/usr/bin/yes", limit=seconds), ended.set)
        while not ended.is_set():
            await asyncio.sleep(0.001)
            ticks += 1
        await runner.stop()
        return time.monotonic() - began

    took = asyncio.run(main())
    assert told[-1] == Told("ssh", V4, "killed after 1 s", bad=True)
    assert [line.text for line in told[1:-2]] == ["output: y"] * OUTPUT_LINES
    assert ticks > 10
    left_out = int(told[-2].text.removeprefix("output: (").split()[0])
    reads = (2 * left_out) / READ_BYTES  # "y\n"
    assert 1 < reads <= took / READ_PAUSE + 3


# Many at once


def test_so_many_run_at_once_and_the_rest_wait_in_order(tmp_path: Path) -> None:
    told: list[Told] = []
    count = 3 * MAX_RUNNING
    go = tmp_path / "go"
    path = script(tmp_path, f"while [ ! -e {go} ]; do sleep 0.01; done")

    async def main() -> None:
        runner = Runner(told.append)
        most = ended = 0

        def done() -> None:
            nonlocal ended
            ended += 1

        for number in range(count):
            runner.run(a_command(path, src=address(number)), done)
        assert (runner.running, runner.waiting) == (0, count)  # nothing is started before the loop's next turn
        await until(lambda: runner.running == MAX_RUNNING)
        assert runner.waiting == count - MAX_RUNNING
        go.touch()
        while ended < count:
            most = max(most, runner.running)
            await asyncio.sleep(0)
        assert most <= MAX_RUNNING
        assert await runner.stop() == 0

    asyncio.run(main())
    assert [line.src for line in told] == [address(number) for number in range(count)]


def test_commands_of_one_door_and_address_run_one_after_the_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # The first of each waits until all three have begun.
    together = f"[ $2 != 0 ] || until [ $(wc -l < {log}) -ge 3 ]; do sleep 0.01; done"
    path = script(tmp_path, f'echo "begin $1 $2" >> {log}; {together}; sleep $3; echo "end $1 $2" >> {log}')
    whose = [(V4, "ssh"), (V6, "ssh"), (V4, "web")]
    pauses = ["0", "0", "0.1", "0"]
    play(
        *(
            a_command(path, f"{door}-{len(src)}", str(number), pause, src=src, door=door)
            for number, pause in enumerate(pauses)
            for src, door in whose
        )
    )
    lines = [line.split() for line in log.read_text().splitlines()]
    for src, door in whose:
        mine = [(word, number) for word, name, number in lines if name == f"{door}-{len(src)}"]
        assert mine == [(word, str(number)) for number in range(len(pauses)) for word in ("begin", "end")]
    assert [word for word, _, _ in lines[:3]] == ["begin"] * 3, "different doors and addresses do not wait"


def test_a_command_that_waited_behind_another_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "MAX_RUNNING", 1)
    told = play(*(a_command("/bin/true", str(n), src=src) for n, src in enumerate([V4, V6, V4, V6, V4])))
    assert [line.text for line in told] == [f"running command: /bin/true {number}" for number in range(5)]


def test_200_commands_leave_nothing_behind() -> None:
    told: list[Told] = []
    before = children()

    async def main() -> None:
        runner = Runner(told.append)
        await run_all(runner, a_command("/bin/true"))
        files = open_files()
        some = [a_command("/bin/echo", "x", src=address(n)) for n in range(100)]
        await run_all(runner, *some, *(a_command("/bin/false", src=address(n)) for n in range(100)))
        assert open_files() == files
        assert await runner.stop() == 0

    asyncio.run(main())
    assert children() == before
    assert sum(line.text == "output: x" for line in told) == 100
    assert sum(line.text == "exit status 1" for line in told) == 100


def test_the_number_of_waiting_commands_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "MAX_WAITING", 3)
    told: list[Told] = []
    done: list[int] = []

    async def main() -> None:
        runner = Runner(told.append)
        for number in range(5):
            runner.run(a_command("/bin/true"), lambda number=number: done.append(number))  # type: ignore[misc]
        await until(lambda: len(done) == 3)
        await runner.stop()

    asyncio.run(main())
    assert done == [0, 1, 2]
    assert [line.text for line in told if line.bad] == ["not run: 3 commands are waiting already"] * 2


# The daemon's end


def test_at_the_end_what_runs_is_killed_and_counts_as_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "STOP_GRACE", 0.2)
    monkeypatch.setattr(actions, "STOP_PATIENCE", PATIENCE)
    told: list[Told] = []
    done: list[str] = []
    before = children()

    async def main() -> None:
        runner = Runner(told.append)
        files = open_files()
        runner.run(a_command("/bin/sleep", "1000"), lambda: done.append("running"))
        runner.run(a_command("/bin/true"), lambda: done.append("waiting"))
        await until(lambda: runner.running)
        assert await runner.stop() == 2
        assert runner.running == 0
        assert open_files() == files

    asyncio.run(main())
    assert done == []
    assert children() == before
    assert [line.text for line in told[1:]] == ["killed: logknock ends", "killed by SIGKILL"]


def test_at_the_end_what_runs_has_a_moment_to_end_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "STOP_GRACE", PATIENCE)
    told: list[Told] = []
    done: list[str] = []

    async def main() -> None:
        runner = Runner(told.append)
        path = script(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")
        runner.run(a_command(path), lambda: done.append("running"))
        runner.run(a_command("/bin/true"), lambda: done.append("waiting"))
        await until(lambda: runner.running)
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0)  # it has begun to
        (tmp_path / "go").touch()
        assert await stopping == 1

    asyncio.run(main())
    assert done == ["running"]
    assert len(told) == 1


def test_a_command_does_not_outlive_a_killed_daemon(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    path = script(tmp_path, f"echo $$ > {mark}; exec sleep 1000")
    daemon = subprocess.Popen([sys.executable, "-c", ELSEWHERE, path], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        asyncio.run(until(lambda: mark.exists() and mark.read_text()))
    finally:
        daemon.kill()
        daemon.wait()
    pid = int(mark.read_text())
    asyncio.run(until(lambda: not is_running(pid)))


# The file for hosts.allow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "allow" / "sshd"


def test_addresses_are_sorted_lines(path: Path) -> None:
    sources = ["2001:db8::1", "10.99.0.10", "10.99.0.9", "64:ff9b::1", "10.99.0.9"]
    AllowFile(path).write(ipaddress.ip_address(text).packed for text in sources)
    assert path.read_text() == "10.99.0.9\n10.99.0.10\n[64:ff9b::1]\n[2001:db8::1]\n"
    AllowFile(path).write([])
    assert path.read_bytes() == b""
    assert os.listdir(path.parent) == ["sshd"]


@given(st.sets(st.ip_addresses()))
def test_each_address_comes_back(addresses: set[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    lines = actions._hosts(address.packed for address in addresses).decode().splitlines()
    assert len(lines) == len(addresses)
    assert {ipaddress.ip_address(line.strip("[]")) for line in lines} == addresses
    assert all((line[0] == "[") == (":" in line) == (line[-1] == "]") for line in lines)


def test_everybody_may_read_it_whatever_the_umask(path: Path) -> None:
    path.parent.parent.mkdir()
    before = os.umask(0o077)
    try:
        AllowFile(path).write([V4])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o644
    assert path.parent.stat().st_mode & 0o7777 == 0o755


def test_a_directory_that_is_there_keeps_its_mode(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o750)
    AllowFile(path).write([V4])
    assert path.parent.stat().st_mode & 0o7777 == 0o750


@pytest.mark.parametrize("kind", ["file", "hard link", "symlink", "fifo"])
@pytest.mark.parametrize("name", ["sshd", "sshd~"])
def test_what_is_in_the_way_is_replaced_and_never_followed(path: Path, name: str, kind: str) -> None:
    """`sshd~` is what a process that was killed leaves."""
    path.parent.mkdir(parents=True)
    other = path.parent.parent / "other"
    other.write_text("precious")
    there = path.parent / name
    if kind == "file":
        there.write_text("x" * 1000)
    elif kind == "hard link":
        there.hardlink_to(other)
    elif kind == "symlink":
        there.symlink_to(other)
    else:
        os.mkfifo(there)
    AllowFile(path).write([V4])
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("precious", 0o644)
    assert path.read_text() == "192.0.2.7\n"
    assert not path.is_symlink()
    assert os.listdir(path.parent) == ["sshd"]


@pytest.mark.parametrize(
    "case", ["directory", "draft is a directory", "file above", "link above", "dangling link above"]
)
def test_what_cannot_be_replaced_is_an_error_with_a_hint(path: Path, case: str) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir(parents=True)
    if case == "directory":
        path.mkdir(parents=True)
    elif case == "draft is a directory":
        (path.parent / "sshd~").mkdir(parents=True)
    elif case == "file above":
        path.parent.touch()
    else:
        path.parent.symlink_to(elsewhere if case == "link above" else elsewhere / "missing")
    with pytest.raises(ActionError) as caught:
        AllowFile(path).write([V4])
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.hint
    assert os.listdir(elsewhere) == []
    if case == "directory":
        assert os.listdir(path.parent) == ["sshd"]


WRITE = """
import sys
from pathlib import Path
from logknock.actions import ActionError, AllowFile
try:
    AllowFile(Path(sys.argv[1])).write(number.to_bytes(4, "big") for number in range(int(sys.argv[2])))
except ActionError as error:
    print(error.message, error.hint, sep="\\n")
"""


@pytest.mark.parametrize(
    ("options", "reason"),
    [pytest.param("size=16k", "No space left on device", id="a full disk"), ("ro", "Read-only file system")],
)
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, options: str, reason: str) -> None:
    """On a file system of the test's own, in a mount namespace of its own."""
    text = f"""
        mount -t tmpfs -o size=1m none {tmp_path} && "$0" -c "$1" {tmp_path}/allow/sshd 3 &&
        mount -o remount,{options} {tmp_path} && "$0" -c "$1" {tmp_path}/allow/sshd 65535 &&
        cat {tmp_path}/allow/sshd && ls -A {tmp_path}/allow"""
    shell = ["unshare", "--mount", "sh", "-c", text, sys.executable, WRITE]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert not done.stderr
    message, hint, *rest = done.stdout.splitlines()
    assert message == f"{tmp_path}/allow/sshd: {reason}"
    assert hint
    assert rest == ["0.0.0.0", "0.0.0.1", "0.0.0.2", "sshd"]
