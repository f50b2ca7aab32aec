"""`logknock demo`: what a person sees is what happened, and nothing of it remains, however it ends."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from logknock.demo import PROGRAMS, time_left

ROOT = Path(__file__).parents[2]

# Namespaces of a test's own, for what must not be done in the host's.
UNSHARE = (
    "unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
DEMO = (sys.executable, "-m", "logknock", "demo")
PATIENCE = 120.0  # more than the demo takes on the slowest machine: nothing waits for it to pass


@contextmanager
def running(*before: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The demo, with these words before its command; ended if it has not ended itself.

    It waits for its reader: the pipe has room for one write, and is a packet each (pipe(2)).
    """
    command = [*before, *DEMO]
    ours, its = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
    fcntl.fcntl(its, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen(command, cwd=ROOT, stdout=its, stderr=its, text=True, **options) as process:
        os.close(its)
        process.stdout = os.fdopen(ours)
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if wanted in line:
            return
    pytest.fail(f"{wanted!r} was not shown")


def finished(*before: str, **options: Any) -> tuple[int, str]:
    with running(*before, **options) as process:
        shown, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, shown


# A host of its own: processes, mounts (shared, as systemd has them), networks and folders that nobody else changes
# meanwhile. It says what there is before the demo, while it runs, and after its end.
_HOST = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
number, wanted, folders, demo = int(sys.argv[1]), sys.argv[2], sys.argv[3].split(), sys.argv[4:]
def do(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
    if (mounted := line.split()[4]).startswith("/run/netns"):  # other tests' hosts, which come and go
        subprocess.run(["umount", "--lazy", mounted], capture_output=True)
do("mount", "--make-rshared", "/")
for folder in folders:
    do("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", folder)
def links(pattern):
    for path in Path("/proc").glob(pattern):
        try:
            yield os.readlink(path)
        except OSError:
            pass
def look():
    rules, mounts = do("nft", "list", "ruleset"), Path("/proc/self/mountinfo").read_text()
    there = sorted(str(path) for folder in folders for path in Path(folder).rglob("*"))
    kept = [path for path in ("/etc/logknock", "/var/lib/logknock", "/run/netns") if os.path.exists(path)]
    return {"rules": rules, "mounts": mounts, "links": do("ip", "-o", "link"), "files": there + kept}
def alive():
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    processes = sorted(path.name for path in Path("/proc").glob("[0-9]*"))
    return {"processes": processes, "namespaces": sorted(set(links("[0-9]*/ns/*")))}
before = look() | alive()
process = subprocess.Popen(demo, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
during, shown = None, ""
for line in process.stdout:
    shown += line
    if wanted in line:
        during = look() | alive()
        if number:
            process.send_signal(number)
            break
code = process.wait()
end = time.monotonic() + (20 if code == -signal.SIGKILL else 0)
while (after := look() | alive()) != before and time.monotonic() < end:
    time.sleep(0.01)
print(json.dumps({"before": before, "during": during, "after": after, "code": code, "shown": shown}))
"""


def on_a_host(number: int, wanted: str) -> dict[str, Any]:
    """Run the demo on such a host, and when it shows `wanted`, send it the signal with that number, if it is not 0."""
    needed = (ROOT, Path(sys.executable))
    folders = [folder for folder in ("/run", gettempdir()) if not any(path.is_relative_to(folder) for path in needed)]
    command = [*UNSHARE, sys.executable, "-c", _HOST, str(int(number)), wanted, " ".join(folders), *DEMO]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """One demo from its beginning to its end, printed where there is no terminal."""
    return on_a_host(0, "7 of 9")


def test_each_step_happens(whole: dict[str, Any]) -> None:
    shown = whole["shown"]
    assert whole["code"] == 0, shown
    headings = re.findall(r"^(\d) of 9: (.*)$", shown, re.MULTILINE)
    assert [number for number, _ in headings] == list("123456789")
    assert shown.count("✓ ") == 9
    assert "9 of 9 steps" in shown


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param("daemon: 10.99.0.2: ssh: wrong port 8000/tcp (stage 1)", id="the_wrong_sequence"),
        pytest.param("65534 closed, 0 open, no answer from 22", id="the_port_scan"),
        pytest.param("elements = { 10.99.0.3 ", id="the_scanner_is_noisy"),
        pytest.param("knock 3 of 3: 10.99.0.1 8000/tcp", id="the_right_knock"),
        pytest.param("daemon: 10.99.0.2: ssh: OPEN SESAME", id="the_record"),
        pytest.param("elements = { 10.99.0.2 . tcp . 22 ", id="the_grant"),
        pytest.param("welcome, this is the service", id="the_connection"),
        pytest.param("daemon: 10.99.0.2: ssh: command timeout, closed", id="the_end_of_the_grant"),
        pytest.param("you said: still there?", id="the_connection_outlives_the_grant"),
        pytest.param("daemon: fd99::2: ssh: OPEN SESAME", id="ipv6"),
    ],
)
def test_what_a_person_sees(whole: dict[str, Any], wanted: str) -> None:
    assert wanted in whole["shown"]


def test_plain_lines_where_there_is_no_terminal(whole: dict[str, Any]) -> None:
    assert not re.search(r"[^\n -~✓]", whole["shown"])


# ---- a step that does not happen


def do(demo: subprocess.Popen[str], command: str) -> None:
    """Do this on the gateway: the demo's only child is in its namespaces."""
    child = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()[0]
    subprocess.run(["nsenter", "-t", child, "-m", "-n", "bash", "-c", command], cwd=ROOT, check=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("when", "command", "step", "seen"),
    [
        pytest.param(
            "3 of 9", "nft add element inet logknock trusted4 { 10.99.0.2 }", 3, "exit status 0, where 124",
            id="the_closed_port_is_open",
        ),
        pytest.param(
            "ready: ", "nft insert rule inet logknock tell return", 3, "'10.99.0.2: ssh: Stage 1' did not come",
            id="nothing_is_recorded",
        ),
        pytest.param(
            "3 of 9", "nft insert rule inet logknock record ip saddr 10.99.0.3 goto tell", 4, "not among the noisy",
            id="the_scanner_is_listened_to",
        ),
        pytest.param(
            "4 of 9",
            "nsenter --net=/run/netns/client /run/demo/bin/logknock knock -d 0 10.99.0.1 7000 9000/udp 8000",
            4, "a door opened", id="a_door_opens_during_the_scan",
        ),
        pytest.param(
            "65534 closed", "nft insert rule inet logknock record udp dport 9000 return", 5,
            "ssh: Stage 2' did not come",
            id="a_knock_is_not_recorded",
        ),
        pytest.param(
            "✓ the service answers", "nft add element inet logknock trusted4 { 10.99.0.2 }", 8, "status 0, where 124",
            id="the_door_stays_open",
        ),
        pytest.param(
            "✓ the service answers", "nft insert rule inet logknock guard ct state established drop", 8, "still there?",
            id="the_connection_is_cut",
        ),
    ],
)  # fmt: skip
def test_a_step_that_does_not_happen_fails_the_demo(when: str, command: str, step: int, seen: str) -> None:
    with running() as process:
        read_until(process, when)
        do(process, command)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(PATIENCE) == 1
    failure = rest[rest.index("✗ ") :]
    assert f"step {step} of 9 " in failure
    assert seen in failure


@pytest.mark.parametrize(
    ("listing", "left"),
    [
        pytest.param('elements = { 10.99.0.2 . tcp . 22 timeout 6s expires 4s972ms comment "ssh" }', 4.972, id="there"),
        pytest.param("elements = { 10.99.0.2 . tcp . 22 expires 972ms }", 0.972, id="less_than_a_second"),
        pytest.param("elements = { 110.99.0.2 . tcp . 22 timeout 6s expires 4s972ms }", None, id="another_address"),
        pytest.param("elements = { 10.99.0.2 . tcp . 2222 timeout 6s expires 4s972ms }", None, id="another_port"),
        pytest.param("elements = { 10.99.0.2 . tcp . 22 }", None, id="for_ever"),
        pytest.param("", None, id="not_there"),
    ],
)
def test_time_left(listing: str, left: float | None) -> None:
    assert time_left(listing, "10.99.0.2") == (left and pytest.approx(left))


# ---- what is missing


def without(tmp_path: Path, program: str) -> str:
    """A PATH with all that the demo starts, but for this program."""
    for name in {*PROGRAMS, "cat", "grep", "head"} - {program}:
        found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return str(tmp_path)


@pytest.mark.parametrize("program", ["nft", "ip", "unshare"])
def test_a_missing_program_is_named_before_anything_begins(tmp_path: Path, program: str) -> None:
    environment = os.environ | {"PATH": without(tmp_path, program)}
    code, shown = finished(env=environment)
    assert code == 69
    first, hint = shown.splitlines()
    assert first == f"logknock: the demo needs {program}, not found on the PATH"
    assert hint.startswith(f"hint: apt install {PROGRAMS[program]}")


@pytest.mark.parametrize(
    ("before", "message"),
    [
        pytest.param(
            "setpriv --reuid 65534 --regid 65534 --clear-groups "
            "--inh-caps +dac_read_search --ambient-caps +dac_read_search",
            "the demo makes network namespaces",
            id="not_root",
        ),
        pytest.param("setpriv --bounding-set -sys_admin", "no namespaces can be made: ", id="no_namespaces"),
        pytest.param("setpriv --bounding-set -net_admin", "`ip link add eth0 ", id="no_rights_in_a_namespace"),
    ],
)
def test_what_is_not_permitted_is_said_before_anything_begins(before: str, message: str) -> None:
    code, shown = finished(*before.split())
    assert code == 77
    first, hint = shown.splitlines()
    assert first.startswith(f"logknock: {message}")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param('"$@" --outside "net:[1] mnt:[1] pid:[1]"; exit $?', id="where_it_is_not_the_first_process"),
        pytest.param('exec "$@" --outside "$(readlink /proc/self/ns/net) mnt:[1] pid:[1]"', id="in_the_same_network"),
        pytest.param('exec "$@" --outside ""', id="where_it_cannot_tell"),
    ],
)
def test_the_inner_half_refuses_to_run_outside(command: str) -> None:
    """In namespaces of the test's own: were it not refused, it would mount over /run and take addresses."""
    sandbox = [*UNSHARE, "bash", "-c", command, "bash", *DEMO]
    done = subprocess.run(sandbox, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.startswith("logknock: --outside is for the demo's own use")


# ---- where it is shown


def on_terminal(columns: int, wanted: str, **environment: str) -> str:
    """What the demo writes to a terminal of that width, until it has written `wanted`."""
    shown = b""
    deadline = time.monotonic() + PATIENCE
    ours, its = pty.openpty()
    subprocess.run(["stty", "cols", str(columns)], stdin=its, check=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(DEMO, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=kept | environment)
    os.close(its)
    try:
        while wanted.encode() not in shown and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65_536)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(ours)
    return re.sub(" *\r\n", "\n", shown.decode())


def test_a_terminal_gets_colours_and_no_cursor_tricks() -> None:
    shown = on_terminal(100, "3 of 9", TERM="xterm")
    escapes = set(re.findall(r"\x1b\[?[0-9;?]*.", shown))
    assert escapes
    assert all(escape.endswith("m") for escape in escapes)


def test_a_narrow_terminal_breaks_sentences_between_words_and_commands_nowhere() -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(30, "3 of 9", TERM="xterm"))
    assert "\nNobody has knocked, and the\nclient tries the service all\nthe same.\n" in shown
    assert "\n  client$ timeout 1 bash -c 'head -n1 </dev/tcp/10.99.0.1/22'\n" in shown


def test_a_terminal_without_unicode_gets_words_for_the_marks() -> None:
    with running(env=os.environ | {"PYTHONIOENCODING": "ascii"}) as process:
        read_until(process, "ok: the rules are loaded")


# ---- what remains


def check_traces(told: dict[str, Any]) -> None:
    before, during, after = told["before"], told["during"], told["after"]
    for what in ("processes", "namespaces"):
        assert set(before[what]) < set(during[what]), "nothing was there that could have remained"
    for what in ("rules", "mounts", "links", "files"):
        assert during[what] == before[what], "touched while it ran"
    assert after == before


def test_nothing_outside_is_touched_and_nothing_remains(whole: dict[str, Any]) -> None:
    check_traces(whole)


@pytest.mark.parametrize(
    ("number", "wanted", "code"),
    [
        pytest.param(signal.SIGINT, "5 of 9", 130, id="after_ctrl_c"),
        pytest.param(signal.SIGTERM, "1 of 9", 143, id="after_sigterm"),
        pytest.param(signal.SIGKILL, "3 of 9", -9, id="after_kill_9"),
    ],
)
def test_nothing_remains_when_it_is_ended(number: int, wanted: str, code: int) -> None:
    told = on_a_host(number, wanted)
    check_traces(told)
    assert told["code"] == code
