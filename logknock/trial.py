"""A change on trial: it is undone unless somebody confirms it in time.

Rule 1: the process that is to undo the change is running before the change is made, is nobody's child, and needs
nothing any more but what it holds: the command may be killed, the connection it came over may break, and systemd may
end the session with all that is in it.
Rule 2: only a word in the trial's file confirms. A file that is gone confirms nothing, whoever tidied up.

The file is `rules.unconfirmed`. A line of it says how the trial ended, once it has, and the first such line counts: the
undoing process may write its own later. It holds a lock on the file for as long as it lives. `rules.lock` is for
whoever decides, and for whoever changes what may be on trial.
"""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Self

from .errors import FAILURE, NO_PERMISSION, LogknockError
from .ownership import give_to_owner, service_user

# Seconds until a decision is noticed: too short for anybody to wait for, too long to cost anything.
POLL = 0.1

# The file holds two short lines.
_MAX_BYTES = 4096


class Outcome(StrEnum):
    """How a trial ended."""

    CONFIRMED = "confirmed"
    UNDONE = "undone"
    UNDO_FAILED = "undo failed"
    REFUSED = "refused"  # the change was not made: there was nothing to undo
    REMOVED = "removed"  # what was on trial is gone by somebody's command
    ABANDONED = "abandoned"  # nobody decided, and the undoing process is no more


class Trial:
    """One trial, by its file: how it ended, and a way to say so."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def going_on(cls, runtime: Path) -> Self | None:
        """The one that waits for a decision. A file whose undoing process is gone (with the machine, say) is none."""
        path = _file(runtime)
        try:
            trial = cls(path, os.open(path, _OPEN))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_error(path, error) from None
        if trial.outcome() is None:
            return trial
        trial.close()
        return None

    def close(self) -> None:
        """Let go of the file; the trial goes on."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def outcome(self) -> Outcome | None:
        """How it ended; None while it waits. Not for the undoing process, whose own lock it would undo."""
        told = self.told()
        if told is None and not _is_locked(self._descriptor):
            return self.told() or Outcome.ABANDONED  # it may have been told just before the lock came free
        return told

    def told(self) -> Outcome | None:
        """What the file says of it."""
        *lines, _unfinished = os.pread(self._descriptor, _MAX_BYTES, 0).decode().split("\n")
        return next((Outcome(line) for line in lines if line in set(Outcome)), None)

    def note(self, line: str) -> None:
        """Add a line to the file, in one piece. (Only the first can find the disk full: it takes the room of all.)"""
        os.write(self._descriptor, f"{line}\n".encode())

    def end(self, outcome: Outcome) -> None:
        """Say how it ended, and make room for the next. Only for one who is `alone`."""
        self.note(outcome)
        with suppress(FileNotFoundError):
            self._path.unlink()


# O_NOFOLLOW: never a file elsewhere that somebody pointed a link to.
_OPEN = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


def _file(runtime: Path) -> Path:
    return runtime / "rules.unconfirmed"


@contextmanager
def alone(runtime: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold `rules.lock`; waits for whoever has it, which takes as long as one change does. Gives its descriptor.

    Without `wait` it raises BlockingIOError where somebody has it.
    """
    descriptor = _open_lock(runtime)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a forked process may still have a copy
        os.close(descriptor)


def start(runtime: Path, seconds: float, undo: Callable[[], Outcome]) -> Trial:
    """Begin a trial: `undo` is called in a process of its own after so many seconds without a decision.

    Only for one who is `alone` and has seen that no trial is going on.
    """
    path = _file(runtime)
    deadline = _now() + seconds
    lock = _open_lock(runtime)
    held = -1
    try:
        path.unlink(missing_ok=True)  # of a trial that nobody ended
        held = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        give_to_owner(held, runtime)
        fcntl.flock(held, fcntl.LOCK_EX)
        trial = Trial(path, os.open(path, _OPEN))
        trial.note(f"unless confirmed, undone at {time.strftime('%F %T %z', time.localtime(time.time() + seconds))}")
        _start_orphan((held, lock), lambda: _wait_and_undo(Trial(path, held), lock, deadline, undo))
        return trial
    except OSError as error:
        raise file_error(path, error) from None
    finally:
        os.close(lock)
        if held >= 0:
            os.close(held)


def _start_orphan(keep: tuple[int, ...], work: Callable[[], None]) -> None:
    """Run `work` in a process that no terminal, session or parent takes along when it goes; raises OSError."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            _leave_groups()
            # What a terminal sends when it goes. SIGTERM waits until it is asked for.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
            if os.fork() == 0:
                _let_go(keep)
                work()
            code = 0
        finally:
            os._exit(code)  # the caller's exit is the caller's: its buffers, its cleaning up
    if os.waitpid(child, 0)[1]:
        raise OSError(errno.EAGAIN, "the process that would undo the change cannot be started")


# Where control groups are: of the second version alone, or beside the first. In these systemd finds its processes.
_HIERARCHIES = {"": ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"), "name=systemd": ("/sys/fs/cgroup/systemd",)}


def _leave_groups() -> None:
    """Go to the control groups that process 1 is in: whoever ends a session kills what is in the session's.

    systemd-logind does so where a user's processes are to be killed (logind.conf(5), KillUserProcesses), and ends a
    session that is told to end. Where this is not allowed (for one who is not root; in a container whose groups are
    not its own) the process stays where it is.
    """
    with suppress(OSError):
        for line in Path("/proc/1/cgroup").read_text("utf-8").splitlines():
            _, hierarchy, group = line.split(":", 2)  # cgroups(7)
            for top in _HIERARCHIES.get(hierarchy, ()):
                with suppress(OSError):
                    _enter_group(Path(f"{top}{group}/cgroup.procs"))


def _enter_group(processes: Path) -> None:
    """Raises OSError. Never makes the file: beside version 1, what is above the groups is an ordinary directory."""
    descriptor = os.open(processes, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def _let_go(keep: tuple[int, ...]) -> None:
    """Close what is the caller's: a pipe that stays open would keep whoever reads it waiting."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in keep:
            with suppress(OSError):  # the one that listed them is closed already
                os.close(descriptor)


def _wait_and_undo(trial: Trial, lock: int, deadline: float, undo: Callable[[], Outcome]) -> None:
    trial.note(f"by process {os.getpid()}")
    # Told to end before its time, it does at once what it is there for.
    while _now() < deadline and signal.sigtimedwait({signal.SIGTERM}, POLL) is None:
        if trial.told():
            return
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not trial.told():
        trial.end(undo())


def _now() -> float:
    """Not the wall clock, which may be set; goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _open_lock(runtime: Path) -> int:
    path = runtime / "rules.lock"
    try:
        runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Not the directory itself: whoever can read that could hold its lock, and no undo would ever happen.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        give_to_owner(descriptor, runtime)
        return descriptor
    except OSError as error:
        raise file_error(path, error) from None


def file_error(path: Path, error: OSError) -> LogknockError:
    """What to say where the system refuses a file of ours."""
    if isinstance(error, PermissionError):
        user = service_user()
        if user is not None and os.geteuid() == user.pw_uid:
            hint = "`logknock rules apply` by root gives the service what root has left there"
        else:
            hint = "run it as root"
        return LogknockError(f"{path}: {error.strerror}", hint, NO_PERMISSION)
    hint = "[paths] state and runtime of the configuration name the directories"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room on its file system; what was there before stays in force"
    return LogknockError(f"{path}: {error.strerror}", hint, FAILURE)
