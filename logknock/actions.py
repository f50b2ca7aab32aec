"""What a door does besides opening sets: commands of the administrator's, and a file for /etc/hosts.allow.

Rule 1: no shell. What is run is the configuration's argv; of a packet nothing gets there but an address as text (T35).
Rule 2: nothing here waits: a command is started, watched and ended from the loop, with a limit on its time, on its
output, and on how many run at once. Rule 3: a command has no capabilities, whatever the daemon has, and gets none.
"""

import asyncio
import errno
import heapq
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from .errors import NO_PERMISSION, LogknockError, printable
from .knock import Door
from .packet import address_text

# So many commands at once: a crowd that comes or goes does not become a crowd of processes.
MAX_RUNNING = 16

# Twice the grants there can be (an opening and a closing each), about 45 MB. More can only come where commands take
# longer than their doors stay open, again and again.
MAX_WAITING = 131_072

# Of a command's output so much is told: enough for any message, too little to drown the log.
OUTPUT_LINES = 32
OUTPUT_LINE_BYTES = 512  # four characters each at most, so that a line still fits into one write to a pipe

# What a command writes beyond that is read too, so that it can go on with its work; but not faster than this after
# each READ_BYTES (what a pipe holds): 6.5 MB a second, some 20 microseconds of the loop's time every 10 milliseconds.
READ_BYTES = 65_536
READ_PAUSE = 0.01

# At the daemon's end: seconds in which running commands may end by themselves, and until killed ones are gone.
STOP_GRACE = 2.0
STOP_PATIENCE = 1.0

_SETPRIV = "/usr/bin/setpriv"
_CAP_SETPCAP = 8  # linux/capability.h

# setpriv(1) exits with one of these, and says why, when it could not become the command.
_NOT_STARTED = (126, 127)


# Why a process cannot be started now and can be later: what is to close a door is then not done with.
_PASSING = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class ActionError(LogknockError):
    """A file of addresses cannot be written."""


class Command(NamedTuple):
    """What is to be run for a door and a knocker. `limit`: seconds that it may take."""

    door: str
    src: bytes
    event: Literal["open", "close"]
    template: tuple[str, ...]
    limit: float

    @property
    def argv(self) -> tuple[str, ...]:
        """The program, which is the configuration's alone, and its arguments with the address in them."""
        program, *arguments = self.template
        src = address_text(self.src)
        return (program, *(argument.replace("{src}", src) for argument in arguments))

    @property
    def environment(self) -> dict[str, str]:
        """All variables that the command gets."""
        return {
            "LOGKNOCK_SRC": address_text(self.src),
            "LOGKNOCK_DOOR": self.door,
            "LOGKNOCK_EVENT": self.event,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
        }


def command(door: Door, src: bytes, event: Literal["open", "close"]) -> Command | None:
    """What the door runs when it opens or closes for this address; None: nothing."""
    template, for_ipv6 = (door.on_open, door.on_open_6) if event == "open" else (door.on_close, door.on_close_6)
    if len(src) == 16 and for_ipv6 is not None:
        template = for_ipv6
    return Command(door.name, src, event, template, door.command_limit) if template else None


class Told(NamedTuple):
    """Something to log about a command; `bad`: it did not do what it was there for."""

    door: str
    src: bytes
    text: str
    bad: bool


Tell = Callable[[Told], None]


class _Job(NamedTuple):
    """A command in the queue; `number` is its place in the order of coming."""

    number: int
    command: Command
    done: Callable[[], None] | None

    @property
    def key(self) -> tuple[str, bytes]:
        return self.command.door, self.command.src


class Runner:
    """Runs commands: many at once, those of one door and address one after the other, in the order of coming."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._prefix = _confinement(Path("/proc/self/status").read_text())
        self._count = 0
        self._waiting = 0
        self._ready: list[_Job] = []  # a heap: those that wait for nothing but their turn
        # Who has a command ready or running, and what must wait for it to end.
        self._behind: dict[tuple[str, bytes], list[_Job]] = {}
        self._running: set[_Running] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._scheduled = False
        self._stopping = False
        self._killing = False
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # Inherited from whoever started us. The kernel would then reap our children behind our back.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    @property
    def running(self) -> int:
        """How many commands run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many commands wait for others to end."""
        return self._waiting

    def run(self, command: Command, done: Callable[[], None] | None = None) -> None:
        """Have the command run soon, in order; needs the running loop.

        `done` is called once it has ended, however it did, or cannot be started; not when it never had its turn, could
        not be started for want of processes, files or memory, or was killed because the daemon ends: then it is to be
        run again.
        """
        if self._waiting >= MAX_WAITING:
            self._say(command, f"not run: {self._waiting} commands are waiting already", bad=True)
            return
        self._count += 1
        self._waiting += 1
        job = _Job(self._count, command, done)
        if job.key in self._behind:
            self._behind[job.key].append(job)
        else:
            self._behind[job.key] = []
            heapq.heappush(self._ready, job)
        self._schedule()

    async def stop(self) -> int:
        """Start nothing any more, end what runs, within STOP_GRACE + STOP_PATIENCE; how many were not run to the end.

        Closes everything. Call it once, as the last thing.
        """
        self._stopping = True
        await self._until_idle(STOP_GRACE)
        unfinished = self._waiting + len(self._running)
        self._killing = True
        for running in self._running:
            self._say(running.job.command, "killed: logknock ends", bad=True)
            running.kill()
        await self._until_idle(STOP_PATIENCE)
        for running in self._running:  # in the kernel's hands, waiting for a device: nothing ends it now
            running.close()
        return unfinished

    async def _until_idle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _schedule(self) -> None:
        """Start one command in the loop's next turn: a start costs a millisecond, and packets come in between."""
        if self._ready and len(self._running) < MAX_RUNNING and not (self._scheduled or self._stopping):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start_next)

    def _start_next(self) -> None:
        self._scheduled = False
        if self._stopping:
            return
        job = heapq.heappop(self._ready)
        self._waiting -= 1
        self._say(job.command, f"running command: {printable(shlex.join(job.command.argv))}")
        try:
            self._running.add(_Running(job, self._prefix, self._tell, self._on_end))
            self._idle.clear()
        except FileNotFoundError as error:
            hint = "logknock starts commands through setpriv, of the package util-linux"
            self._say(job.command, f"cannot be started: {error.filename}: {error.strerror} (hint: {hint})", bad=True)
            self._leave(job)
        except (OSError, ValueError) as error:  # no process or descriptor to be had; a NUL in an argument
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._say(job.command, f"cannot be started: {reason}", bad=True)
            passing = isinstance(error, OSError) and error.errno in _PASSING
            self._leave(job._replace(done=None) if passing else job)
        except LogknockError as error:
            self._say(job.command, f"cannot be started: {error.words()}", bad=True)
            self._leave(job)
        self._schedule()

    def _on_end(self, running: "_Running") -> None:
        self._running.remove(running)
        if not self._running:
            self._idle.set()
        self._leave(running.job)

    def _leave(self, job: _Job) -> None:
        """The command's turn is over: the next one of its door and address gets its own."""
        behind = self._behind[job.key]
        if behind:
            heapq.heappush(self._ready, behind.pop(0))
        else:
            del self._behind[job.key]
        self._schedule()
        if job.done is not None and not self._killing:
            job.done()

    def _say(self, command: Command, text: str, *, bad: bool = False) -> None:
        self._tell(Told(command.door, command.src, text, bad))


class _Running:
    """A command that has been started. Raises OSError or ValueError if it cannot be, LogknockError if it must not."""

    def __init__(self, job: _Job, prefix: tuple[str, ...], tell: Tell, on_end: Callable[["_Running"], None]) -> None:
        self.job = job
        self._tell = tell
        self._on_end = on_end
        self._output = _Output()
        self._complaint = ""  # a first line that may be setpriv's
        self._begun = False  # whether a line of output has come
        self._loop = asyncio.get_running_loop()
        with ExitStack() as undo:
            self._process, self._pipe = _start(prefix, job.command, undo)
            self._pidfd = os.pidfd_open(self._process.pid)
            undo.pop_all()
        self._late = False
        self._limit = self._loop.call_later(job.command.limit, self._on_limit)
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._loop.add_reader(self._pipe, self._on_output)

    def kill(self) -> None:
        """End the command and all that it has started in its process group.

        At once: a limit that can be stretched is none, and a command that wants to tidy up has timeout(1).
        """
        # Only before the process is reaped: until then nobody else can have its number.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it, whatever it does."""
        self._limit.cancel()
        self._close_pipe()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _close_pipe(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._pipe >= 0:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    def _on_limit(self) -> None:
        self._late = True
        self.kill()

    def _on_output(self) -> None:
        if not self._read():
            self._close_pipe()
            return
        # Whoever writes byte by byte, or without end, gets no more of the loop's time than this.
        self._loop.remove_reader(self._pipe)
        self._pause = self._loop.call_later(READ_PAUSE, self._loop.add_reader, self._pipe, self._on_output)

    def _read(self) -> bool:
        """Tell of what has been written; False at the end of it."""
        try:
            data = os.read(self._pipe, READ_BYTES)
        except BlockingIOError:
            return True
        for line in self._output.feed(data):
            self._say_output(line)
        return bool(data)

    def _on_exit(self) -> None:
        self.kill()  # what it has left running
        status = self._process.wait()  # it is a zombie: this reaps it
        if self._pipe >= 0:
            # Once, and not until the end of the pipe: a process that left the group may hold that open for ever.
            self._read()
        self.close()
        for line in self._output.finish():
            self._say_output(line)
        if self._complaint and status in _NOT_STARTED:
            self._say(f"cannot be started: {_why_not(self._complaint, self.job.command.template[0])}", bad=True)
        else:
            self._say_complaint()
            if status:
                self._say(self._end(status), bad=True)
        self._on_end(self)

    def _end(self, status: int) -> str:
        if status > 0:
            return f"exit status {status}"
        if self._late and status == -signal.SIGKILL:
            return f"killed after {self.job.command.limit:g} s"
        return f"killed by {_signal_name(-status)}"

    def _say_output(self, line: str) -> None:
        if not self._begun and line.startswith("setpriv: "):
            self._complaint = line
        else:
            self._say_complaint()
            self._say(f"output: {line}")
        self._begun = True

    def _say_complaint(self) -> None:
        if self._complaint:
            self._say(f"output: {self._complaint}")
            self._complaint = ""

    def _say(self, text: str, *, bad: bool = False) -> None:
        self._tell(Told(self.job.command.door, self.job.command.src, text, bad))


class _Output:
    """The lines in what a command writes, as far as they are told, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._line = b""
        self._cut = 0  # bytes of the line that are not in it
        self._lines = 0
        self._left_out = 0
        self._hanging = False  # whether the last line left out has not ended

    def feed(self, data: bytes) -> list[str]:
        """The lines that end in these bytes."""
        lines: list[str] = []
        at = 0
        while self._lines < OUTPUT_LINES:
            end = data.find(b"\n", at)
            self._hold(data[at : end if end >= 0 else len(data)])
            if end < 0:
                return lines
            lines += self._take()
            at = end + 1
        self._left_out += data.count(b"\n", at)
        if at < len(data):
            self._hanging = not data.endswith(b"\n")
        return lines

    def finish(self) -> list[str]:
        """What is left to tell when nothing more comes."""
        lines = self._take() if self._line else []
        left_out = self._left_out + self._hanging
        return [*lines, f"({left_out} more lines left out)"] if left_out else lines

    def _hold(self, piece: bytes) -> None:
        room = OUTPUT_LINE_BYTES - len(self._line)
        self._line += piece[:room]
        self._cut += max(0, len(piece) - room)

    def _take(self) -> list[str]:
        """The line held, and begin another; an empty one counts and is not worth telling."""
        text = printable(self._line.rstrip(b"\r").decode(errors="backslashreplace"))
        cut = f" ({self._cut} more bytes)" if self._cut else ""
        self._line, self._cut = b"", 0
        self._lines += 1
        return [text + cut] if text else []


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _why_not(complaint: str, program: str) -> str:
    """setpriv's words on why it did not become the program, and what to do."""
    reason = complaint.removeprefix("setpriv: ").removeprefix(f"failed to execute {program}: ")
    if reason == "No such file or directory":
        there = os.path.lexists(program)
        what = "the interpreter that its first line names" if there else "the path in on_open or on_close"
        return f"{reason} (hint: look at {what}: {program})"
    if reason == "Permission denied":
        return f"{reason} (hint: is {program} a file that may be executed, and by this user?)"
    return reason


def _confinement(status: str) -> tuple[str, ...]:
    """What comes before a command's own words so that it has no capabilities and gains none (proc(5)'s status).

    Empty where that cannot be had: root gets back at each execve what is in the bounding set, and to take something
    out of it needs CAP_SETPCAP. For everybody else what is neither inheritable nor ambient is gone with the execve,
    and no_new_privs keeps set-user-ID programs and file capabilities from bringing it back.
    """
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    has_setpcap = int(fields["CapEff"], 16) >> _CAP_SETPCAP & 1
    if not has_setpcap and fields["Uid"].split()[1] == "0" and int(fields["CapBnd"], 16):
        return ()
    bounding = ("--bounding-set=-all",) if has_setpcap else ()
    # pdeathsig: where the daemon is killed nobody is left to see to the limit.
    rest = ("--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--pdeathsig=KILL")
    return (_SETPRIV, *bounding, *rest, "--")


def _start(prefix: tuple[str, ...], command: Command, undo: ExitStack) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the end of the pipe that its output comes out of; `undo` takes both back."""
    if not prefix:
        hint = "logknock as root without CAP_SETPCAP cannot take the other capabilities from a command: grant it"
        raise LogknockError("it would have capabilities", hint)
    pipe, its_end = os.pipe()
    undo.callback(os.close, pipe)
    os.set_blocking(pipe, False)
    try:
        with _default_signals():
            # No preexec_fn and no change of user: subprocess then uses vfork, which does not copy our page tables.
            process = subprocess.Popen(
                (*prefix, *command.argv),
                stdin=subprocess.DEVNULL,
                stdout=its_end,
                stderr=its_end,
                cwd="/",
                env=command.environment,
                umask=0o077,
                start_new_session=True,
            )
    finally:
        os.close(its_end)
    undo.callback(process.wait)
    undo.callback(process.kill)
    return process, pipe


@contextmanager
def _default_signals() -> Iterator[None]:
    """A process started meanwhile blocks and ignores no signal.

    execve keeps what is ignored and sets back what is caught: so what we ignore we catch meanwhile, and do nothing.
    """
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, _do_nothing)
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(number: int, frame: object) -> None:
    pass


class AllowFile:
    """The addresses that a door is open for, as a file that /etc/hosts.allow can name: `sshd: /path/of/the/file`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # In the same directory, for rename; one name, so that a killed process leaves one file at most, which the
        # next write takes away; with a character that no allow_file has.
        self._draft = f"{path.name}~"

    def write(self, sources: Iterable[bytes]) -> None:
        """Put these addresses into the file, in one step for whoever reads it; raises ActionError.

        There is no fsync: after a crash of the machine the file is written anew at the daemon's start, and until then
        an old one is worth no more than none.
        """
        try:
            folder = self._open_folder()
            try:
                self._replace(folder, _hosts(sources))
            finally:
                os.close(folder)
        except OSError as error:
            raise self._error(error) from None

    def _open_folder(self) -> int:
        # O_NOFOLLOW: never a directory elsewhere that somebody pointed a link to.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = self._path.parent
        with suppress(FileNotFoundError):
            return os.open(folder, flags)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, flags)
        os.fchmod(descriptor, 0o755)  # whatever the umask: services that are not root's read it too
        return descriptor

    def _replace(self, folder: int, content: bytes) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._draft, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with open(os.open(self._draft, flags, 0o600, dir_fd=folder), "wb", buffering=0) as draft:
                os.fchmod(draft.fileno(), 0o644)
                _write_all(draft.fileno(), content)
            os.rename(self._draft, self._path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):  # the first error is the one to tell
                os.unlink(self._draft, dir_fd=folder)
            raise

    def _error(self, error: OSError) -> ActionError:
        message = f"{self._path}: {error.strerror}"
        if isinstance(error, PermissionError):
            return ActionError(message, f"{self._path.parent} must be writable for logknock", NO_PERMISSION)
        if isinstance(error, IsADirectoryError):
            return ActionError(message, "logknock keeps a file there: move the directory away")
        if isinstance(error, (NotADirectoryError, FileExistsError)):
            return ActionError(message, f"{self._path.parent} must be a directory, and no link to one")
        return ActionError(message, "until it can be written, it lets in whom it let in before")


def _write_all(descriptor: int, content: bytes) -> None:
    """A full disk may take a part: the rest then says why."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _hosts(sources: Iterable[bytes]) -> bytes:
    """The addresses as hosts_access(5) wants them in a file. It knows no comments there: each word is a pattern.

    1,000 addresses take half a millisecond, the 65,535 that there can be at most 60. (ipaddress would take 300.)
    """
    every = set(sources)
    ipv4 = (socket.inet_ntop(socket.AF_INET, src) for src in sorted(src for src in every if len(src) == 4))
    ipv6 = (f"[{socket.inet_ntop(socket.AF_INET6, src)}]" for src in sorted(src for src in every if len(src) == 16))
    return "".join(f"{line}\n" for line in (*ipv4, *ipv6)).encode()
