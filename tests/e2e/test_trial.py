"""`logknock rules apply --confirm`: rules that nobody confirms are undone, whatever becomes of the command (T38)."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from logknock.errors import FAILURE

from ..netns import Host
from .instruments import bytecode
from .world import SSH, World, until

OTHER = """
[log]
group = 7
[firewall]
traps = 0
trusted = ["192.0.2.0/24", "fd00::/8"]
[doors.web]
sequence = ["7000/tcp", "7001/tcp", "7002/tcp"]
opens = ["443/tcp"]
"""


def rules(host: Host) -> str:
    """The rules and the configured sets; nothing if there is no table."""
    if "logknock" not in host.nft("list tables"):
        return ""
    shown = host.run("nft", "--terse", "list", "table", "inet", "logknock").stdout + bytecode(host)
    for name in ("trusted4", "trusted6", "guarded", "watched", "traps"):
        shown += host.run("nft", "list", "set", "inet", "logknock", name).stdout
    return shown


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class Trial:
    """An `apply --confirm` that waits, and the process that is to undo it."""

    def __init__(self, world: World, command: subprocess.Popen[str], undoer: int) -> None:
        self.world, self.command, self.undoer = world, command, undoer

    def logknock(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.world.gateway.logknock("rules", *args, "-c", str(self.world.config), check=False)

    def time_is_over(self) -> None:
        """At once, and not when the machine happens to get there: the undoing process is told to end."""
        os.kill(self.undoer, signal.SIGTERM)

    def ends(self, code: int, words: str) -> None:
        """The command ends so, saying so; and nothing is left that could undo anything later."""
        out, err = self.command.communicate(timeout=20)
        assert words in out + err
        assert self.command.returncode == code
        self.is_over()

    def is_over(self) -> None:
        until(lambda: not alive(self.undoer), "the undoing process ends")
        assert not unconfirmed(self.world).exists()


def unconfirmed(world: World) -> Path:
    return world.config.parent / "run" / "rules.unconfirmed"


@contextmanager
def trial(world: World, time: str, stdin: int = subprocess.DEVNULL) -> Iterator[Trial]:
    """An `apply --confirm` in a session of its own, from the moment on when it waits."""
    # Whoever started the tests may ignore SIGHUP (nohup), and children inherit that.
    words = ["env", "--default-signal", sys.executable, "-m", "logknock", "rules", "apply"]
    words += ["-c", str(world.config), "--confirm", time]
    pipe = subprocess.PIPE
    command = world.gateway.start(*words, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True)
    undoer = 0
    try:
        assert command.stdout is not None
        assert command.stdout.readline().startswith("loaded: 1 guarded")
        until(lambda: "by process" in unconfirmed(world).read_text(), "the undoing process waits")
        undoer = int(unconfirmed(world).read_text().split()[-1])
        assert command.stdout.readline().startswith("still reachable? open a new connection and run `logknock rules")
        yield Trial(world, command, undoer)
    finally:
        if undoer and alive(undoer):
            os.kill(undoer, signal.SIGKILL)
        command.kill()
        command.communicate()


# ---- confirmed


def test_a_confirmed_load_stands(world: World) -> None:
    with trial(world, "60s") as tried:
        loaded = rules(world.gateway)
        done = tried.logknock("confirm")
        assert (done.returncode, done.stdout) == (0, "confirmed: the rules stand\n")
        tried.ends(0, "confirmed: the rules stand")
        assert rules(world.gateway) == loaded != ""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Where somebody types, and what a command reads it from."""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_a_yes_on_the_terminal_confirms(world: World, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with trial(world, "60s", stdin=theirs) as tried:
        os.write(ours, b"what?\n Yes\n")
        tried.ends(0, "confirmed: the rules stand")
        assert rules(world.gateway) != ""


def test_nothing_else_on_the_terminal_confirms(world: World, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with trial(world, "8s", stdin=theirs) as tried:
        os.write(ours, b"yesterday\n\ny\nno\n\4")  # at last the end of the file
        tried.ends(FAILURE, "they are undone")
        assert rules(world.gateway) == ""


def test_the_command_says_what_to_run_in_the_new_session(world: World) -> None:
    words = ["-m", "logknock", "rules", "apply", "-c", world.config.name, "--confirm", "1s"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = world.gateway.run(sys.executable, *words, check=False, cwd=world.config.parent, env=environment)
    assert f"run `logknock rules confirm -c {world.config}`, within 1 s" in done.stdout


def test_without_a_trial_there_is_nothing_to_confirm(world: World) -> None:
    world.apply()
    done = world.gateway.logknock("rules", "confirm", "-c", str(world.config), check=False)
    assert done.returncode == FAILURE
    assert done.stderr.startswith("logknock: no rules wait to be confirmed\nhint: ")


# ---- not confirmed


def test_unconfirmed_rules_are_gone_where_there_were_none(world: World) -> None:
    with trial(world, "8s") as tried:
        assert rules(world.gateway) != ""
        tried.ends(FAILURE, "nobody confirmed the rules: they are undone")
        assert rules(world.gateway) == ""
        assert tried.logknock("confirm").returncode == FAILURE
        assert rules(world.gateway) == ""


def test_t33_what_was_there_before_comes_back_but_no_grant_does(world: World) -> None:
    """T33: grants run on through load and undoing; one that ended meanwhile stays ended, a new one stays."""
    gateway = world.gateway
    world.configure(OTHER)
    world.apply()
    gateway.nft(
        "add element inet logknock granted4 { 203.0.113.1 . tcp . 443 timeout 1s }\n"
        "add element inet logknock granted4 { 203.0.113.2 . tcp . 443 timeout 1h }"
    )
    before = rules(gateway)
    world.configure(SSH)
    with trial(world, "1h") as tried:
        assert rules(gateway) != before
        gateway.nft("add element inet logknock granted4 { 203.0.113.3 . tcp . 22 timeout 1h }")
        until(lambda: "203.0.113.1 . tcp . 443" not in world.granted(), "the end of one")
        tried.time_is_over()
        tried.ends(FAILURE, "what was there before is back")
    assert rules(gateway) == before
    assert sorted(world.granted()) == ["203.0.113.2 . tcp . 443", "203.0.113.3 . tcp . 22"]
    assert all(0 < element["expires"] <= element["timeout"] == 3600 for element in world.granted().values())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_t38_the_end_of_the_command_or_its_session_stops_no_undoing(world: World, number: signal.Signals) -> None:
    """T38: the very thing that --confirm is for: the connection is cut, and takes what runs in it along."""
    world.configure(OTHER)
    world.apply()
    before = rules(world.gateway)
    world.configure(SSH)
    with trial(world, "1h") as tried:
        os.killpg(tried.command.pid, number)
        assert tried.command.wait(20) != 0
        assert rules(world.gateway) != before
        tried.time_is_over()
        until(lambda: rules(world.gateway) == before, "the undoing")
        tried.is_over()


def test_t38_the_undoing_process_holds_nothing_of_its_caller(world: World) -> None:
    """T38: a pipe, a terminal or a directory that it held would keep others waiting, or take it along."""
    with trial(world, "1h") as tried:
        tried.command.kill()
        tried.command.communicate(timeout=20)
        fds = Path(f"/proc/{tried.undoer}/fd")
        held = sorted(os.readlink(fd) for fd in fds.iterdir())
        assert held == ["/dev/null"] * 3 + [str(unconfirmed(world).with_name("rules.lock")), str(unconfirmed(world))]
        assert os.readlink(f"/proc/{tried.undoer}/cwd") == "/"
        assert os.getsid(tried.undoer) != tried.command.pid
        os.kill(tried.undoer, signal.SIGHUP)
        os.kill(tried.undoer, signal.SIGINT)
        assert tried.logknock("confirm").returncode == 0
        tried.is_over()


def test_t38_told_to_end_the_undoing_process_undoes_at_once(world: World) -> None:
    """T38: at a shutdown of what it runs in, say; unconfirmed is unconfirmed."""
    with trial(world, "1h") as tried:
        tried.time_is_over()
        tried.ends(FAILURE, "they are undone")
        assert rules(world.gateway) == ""


def test_t38_a_directory_that_is_tidied_up_confirms_nothing(world: World) -> None:
    """T38: systemd removes a service's runtime directory when the service stops."""
    with trial(world, "1h") as tried:
        shutil.rmtree(unconfirmed(world).parent)
        tried.time_is_over()
        tried.ends(FAILURE, "they are undone")
        assert rules(world.gateway) == ""


# ---- what else may happen meanwhile


@pytest.mark.parametrize("option", [[], ["--confirm", "60s"]])
def test_one_trial_at_a_time(world: World, option: list[str]) -> None:
    with trial(world, "60s") as tried:
        before = rules(world.gateway)
        world.configure(OTHER)
        done = tried.logknock("apply", *option)
        assert done.returncode == FAILURE
        assert "wait to be confirmed" in done.stderr
        assert "hint: `logknock rules confirm` first" in done.stderr
        assert rules(world.gateway) == before
        tried.logknock("confirm")
        tried.ends(0, "confirmed")


@pytest.mark.parametrize("command", [["apply"], ["apply", "--confirm", "60s"], ["confirm"], ["remove"]])
def test_who_changes_something_waits_for_who_does(world: World, command: list[str]) -> None:
    """One that looks while another loads would see no trial yet."""
    with trial(world, "1h") as tried:
        tried.time_is_over()
        tried.ends(FAILURE, "they are undone")
    words = [sys.executable, "-m", "logknock", "rules", command[0], "-c", str(world.config), *command[1:]]
    with unconfirmed(world).with_name("rules.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = world.gateway.start(*words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        held = re.compile(rf"-> FLOCK .* {waiting.pid} ")
        until(lambda: held.search(Path("/proc/locks").read_text()) or waiting.poll() is not None, "it waits")
        assert waiting.poll() is None
        assert rules(world.gateway) == ""
    if command == ["apply", "--confirm", "60s"]:
        until(unconfirmed(world).exists, "its trial")
        tried.logknock("remove")
    waiting.communicate(timeout=20)


def test_a_confirmation_at_the_last_moment_counts(world: World) -> None:
    """The time is up, and the undoing process waits for one who is just confirming."""
    with trial(world, "1h") as tried:
        with unconfirmed(world).with_name("rules.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tried.time_is_over()
            waits = re.compile(rf"-> FLOCK .* {tried.undoer} ")
            until(lambda: waits.search(Path("/proc/locks").read_text()), "it wants to undo")
            with unconfirmed(world).open("a") as file:
                file.write("confirmed\n")
            unconfirmed(world).unlink()
        tried.ends(0, "confirmed: the rules stand")
        assert rules(world.gateway) != ""


def test_rules_that_are_removed_stay_removed(world: World) -> None:
    world.configure(OTHER)
    world.apply()
    world.configure(SSH)
    with trial(world, "60s") as tried:
        assert tried.logknock("remove").stdout == "removed\n"
        tried.ends(FAILURE, "the rules were removed")
        assert rules(world.gateway) == ""


def test_rules_that_are_removed_by_hand_stay_removed(world: World) -> None:
    world.configure(OTHER)
    world.apply()
    world.configure(SSH)
    with trial(world, "1h") as tried:
        world.gateway.nft("delete table inet logknock")
        tried.time_is_over()
        tried.ends(FAILURE, "the rules were removed")
        assert rules(world.gateway) == ""


def test_where_the_undoing_process_is_killed_the_rules_stand_and_all_are_told(world: World) -> None:
    """As after a crash of the machine, but that the file may be left then: it means nothing any more."""
    with trial(world, "60s") as tried:
        left = unconfirmed(world).read_text()
        os.kill(tried.undoer, signal.SIGKILL)
        _, err = tried.command.communicate(timeout=20)
        assert "was killed: they stand, unconfirmed" in err
        assert rules(world.gateway) != ""
        assert unconfirmed(world).read_text() == left
        assert tried.logknock("confirm").returncode == FAILURE
        assert tried.logknock("apply").returncode == 0
    with trial(world, "60s") as tried:
        tried.logknock("confirm")
        tried.ends(0, "confirmed")


def test_a_refused_load_leaves_no_trial(world: World) -> None:
    world.gateway.nft("table inet logknock { set granted6 { type ipv6_addr . inet_proto . inet_service; }; }")
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config), "--confirm", "1h", check=False)
    assert done.returncode == FAILURE
    assert not unconfirmed(world).exists()
    listed = ["ip", "netns", "pids", world.gateway.name]
    until(lambda: not subprocess.run(listed, capture_output=True, check=True).stdout, "no process is left")


SLOW = """
import sys, time
from pathlib import Path
from logknock import trial
runtime, let_go = Path(sys.argv[1]), trial._let_go
def let_go_late(keep):
    time.sleep(0.5)
    let_go(keep)
def undo():
    (runtime / "undone").touch()
    return trial.Outcome.UNDONE
trial._let_go = let_go_late
with trial.alone(runtime), trial.start(runtime, 60.0, undo) as one:
    one.end(trial.Outcome(sys.argv[2]))
"""


@pytest.mark.parametrize("outcome", ["refused", "confirmed", "removed"])
def test_an_undoing_that_is_slow_to_begin_sees_what_was_decided_before_it(
    world: World, tmp_path: Path, outcome: str
) -> None:
    """T38: else it would undo, an hour later, what somebody has loaded since."""
    world.gateway.python(SLOW, str(tmp_path), outcome)
    listed = ["ip", "netns", "pids", world.gateway.name]
    until(lambda: not subprocess.run(listed, capture_output=True, check=True).stdout, "no process is left")
    assert not (tmp_path / "undone").exists()


def test_only_root_can_hold_the_lock_that_an_undoing_needs(world: World) -> None:
    """T38: whoever may open a file may lock it, and nothing could be undone."""
    with trial(world, "60s") as tried:
        modes = {path.name: path.stat().st_mode & 0o777 for path in unconfirmed(world).parent.iterdir()}
        assert modes == {"rules.lock": 0o600, "rules.unconfirmed": 0o600}
        tried.logknock("confirm")
        tried.ends(0, "confirmed")
