"""A door closed, opened and closed again by the real ruleset, daemon and client, for a person to watch.

Rule 1: nothing outside is touched: everything happens in namespaces that end with the process, however it ends.
Rule 2: a step has passed only if what it claims was seen. Rule 3: it says what there is to show and prints none of it
(the scan at the end is a program of its own).
"""

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from enum import Enum, auto
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import NamedTuple

from .config import parse_duration
from .errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE, LogknockError

# What is started here, and the package of Debian that has it.
PROGRAMS = {
    "bash": "bash", "ip": "iproute2", "mount": "mount", "nft": "nftables", "nsenter": "util-linux",
    "setpriv": "util-linux", "ss": "iproute2", "timeout": "coreutils", "unshare": "util-linux",
}  # fmt: skip

# The namespaces go when their first process does; that one dies with unshare, and unshare, by setpriv, with us: no
# cleaning up that a kill -9 could prevent. Private: what is mounted inside is seen inside only.
NAMESPACES = (
    "unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
_KINDS = ("net", "mnt", "pid")
_PRIVILEGED = "in a container this takes --privileged, or CAP_SYS_ADMIN and CAP_NET_ADMIN without a seccomp filter"

LIMIT = 60.0  # seconds; each step has its own limits, this is for what nobody thought of
_END_LIMIT = 0.5  # how long the inner process may take to end when it is told to, before it is made to
_COMMAND_LIMIT = 10.0  # for a command of a step: these take half a second, and machines can be busy
_SEEN_LIMIT = 5.0  # for what comes by itself, such as a line of the daemon's

GATEWAY4, GATEWAY6 = "10.99.0.1", "fd99::1"
CLIENT4, CLIENT6 = "10.99.0.2", "fd99::2"
SCANNER4 = "10.99.0.3"  # the client's too: the knocker need not wait until a scanner is listened to again
TIMEOUT = 6.0  # long enough to look at it three times and to connect, short enough to be waited for
GREETING = "welcome, this is the service behind the door"

# nodad: an IPv6 address is to be used at once.
_WIRING = f"""\
mount -n -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
ip netns add client
ip link add eth0 type veth peer name eth0 netns client
ip addr add {GATEWAY4}/24 dev eth0
ip addr add {GATEWAY6}/64 dev eth0 nodad
ip link set eth0 up
ip -n client addr add {CLIENT4}/24 dev eth0
ip -n client addr add {SCANNER4}/24 dev eth0
ip -n client addr add {CLIENT6}/64 dev eth0 nodad
ip -n client link set eth0 up
"""

_HOME = Path("/run/demo")  # in a /run of our own
_CONFIG = _HOME / "logknock.toml"
_TOML = f"""\
[doors.ssh]
sequence = ["7000/tcp", "9000/udp", "8000/tcp"]
seq_timeout = "15s"
opens = ["22/tcp"]
timeout = "{TIMEOUT:g}s"

[paths]
state = "{_HOME}/state"
runtime = "{_HOME}/runtime"
"""
_RIGHT = "7000/tcp 9000/udp 8000/tcp"
_WRONG = "7000/tcp 8000/tcp 9000/udp"
_NO_ANSWER = 124  # timeout(1): the command was still waiting
_LOOKS = 3  # at the time that runs down, a second apart
_OPEN = "OPEN SESAME"


class Kind(Enum):
    """What a piece of the demonstration is."""

    STEP = auto()  # a heading
    SAY = auto()  # what is going to be seen
    COMMAND = auto()  # typed at a host's prompt
    OUTPUT = auto()  # what the command printed
    TYPED = auto()  # a line typed into a connection
    DAEMON = auto()  # a line of the daemon's log
    PASSED = auto()  # what has been seen to be true
    SUMMARY = auto()


class Shown(NamedTuple):
    """One piece: of which kind, its text, and the host, where it is a command."""

    kind: Kind
    text: str
    host: str = ""


class StepError(LogknockError):
    """A step did not happen; the message says what was seen instead."""


Play = Generator[Shown, None, str]  # a step: what it shows, and in the end what has been seen to be true


# ---- outside: what is missing, and a world of its own


def require() -> None:
    """Raise the one error that says what the demonstration lacks, before anything is begun."""
    if os.geteuid():
        raise LogknockError("the demo makes network namespaces, and only root may", "sudo logknock demo", NO_PERMISSION)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({PROGRAMS[program] for program in missing}))
        hint = f"apt install {packages}; if that is done, /usr/sbin is not on the PATH"
        raise LogknockError(f"the demo needs {', '.join(missing)}, not found on the PATH", hint, UNAVAILABLE)
    tried = _complete([*NAMESPACES, "true"])
    if tried.returncode:
        raise LogknockError(f"no namespaces can be made: {tried.stdout.strip()}", _PRIVILEGED, NO_PERMISSION)


def isolated() -> int:
    """Run `logknock demo` once more, in namespaces of its own, to its end or to ours; its exit code."""
    require()
    again = [sys.executable, "-P", "-m", "logknock", "demo", "--outside", " ".join(_namespaces())]
    command = ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, *again]
    # The terminal's Ctrl-C is for this process alone, which then ends the session of the others.
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    process = None
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment(), start_new_session=True)
        code = process.wait(LIMIT)
        return code if code >= 0 else 128 - code
    except subprocess.TimeoutExpired:
        raise LogknockError(f"the demo was not done after {LIMIT:g} s, and was ended") from None
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # it is ending already
        if process is not None:
            _end(process)
        for number, action in before.items():
            signal.signal(number, action)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise LogknockError(f"ended by {signal.Signals(number).name}; nothing of the demo remains", "", 128 + number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have the inner process exit, and all others with it: unshare, who waits for it, ends when all are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_LIMIT)


def _namespaces() -> list[str]:
    return [os.readlink(f"/proc/self/ns/{kind}") for kind in _KINDS]


def environment() -> dict[str, str]:
    """Ours, with the modules found where we found them, and not in the directory that root happens to be in."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    kept = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "JOURNAL_STREAM")}
    return kept | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _complete(command: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run it to its end, a few seconds at most; both of its outputs are in `stdout`."""
    command = tuple(command)
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=_COMMAND_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StepError(f"{' '.join(command)}: not done after {_COMMAND_LIMIT:g} s") from None


# ---- inside: two hosts, and what runs on them


def enter(outside: str) -> None:
    """Make the hosts: this namespace is the gateway, the client is another. `outside` is where we must not be."""
    names = outside.split()
    if os.getpid() != 1 or len(names) != len(_KINDS) or set(names) & set(_namespaces()):
        raise LogknockError("--outside is for the demo's own use", "run `logknock demo` without it")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    os.umask(0o077)
    for command in _WIRING.splitlines():
        if "fd99::" not in command or _has_ipv6():
            _prepare(command)
    (_HOME / "bin").mkdir(parents=True)
    for name, command in (("python3", ""), ("logknock", " -m logknock")):
        script = _HOME / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        script.chmod(0o700)
    _CONFIG.write_text(_TOML)
    path = f"{_HOME}/bin:{os.environ['PATH']}"
    os.environ.update(PATH=path, LC_ALL="C.UTF-8", LOGKNOCK_CONFIG=str(_CONFIG))


def _prepare(command: str) -> None:
    done = _complete(command.split())
    if done.returncode:
        words = done.stdout.strip()
        denied = "not permitted" in words or "denied" in words
        code, hint = (NO_PERMISSION, _PRIVILEGED) if denied else (UNAVAILABLE, "")
        raise LogknockError(f"`{command}`: {words}", hint, code)


def _has_ipv6() -> bool:
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    return switch.exists() and switch.read_text().strip() == "0"


def _argv(host: str, command: str) -> list[str]:
    """The command line as it is typed on that host."""
    there = ["nsenter", "--net=/run/netns/client"] if host == "client" else []
    return [*there, "bash", "-c", command]


class Program:
    """A program that goes on in the background of a host, and what it prints. It ends with the namespaces."""

    def __init__(self, host: str, command: str) -> None:
        self._process = subprocess.Popen(
            _argv(host, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout.fileno()
        self._rest = b""
        self._ended = False

    def type(self, line: str) -> None:
        """Give it a line to read."""
        try:
            self._input.write(f"{line}\n".encode())
            self._input.flush()
        except BrokenPipeError:
            raise StepError("the connection is gone") from None

    def until(self, wanted: str, seconds: float = _SEEN_LIMIT) -> list[str]:
        """The lines that are new, the last one with `wanted` in it; raises StepError where none comes in time."""
        lines: list[str] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._ended:
            for line in self.new_lines(left):
                lines.append(line)
                if wanted in line:
                    return lines
        when = "before the program ended" if self._ended else f"within {seconds:g} s"
        raise StepError(f"{wanted!r} did not come {when}; what came: {' | '.join(lines) or 'nothing'}")

    def new_lines(self, wait: float = 0.0) -> Iterator[str]:
        """What it has printed, line by line; of lines that are not asked for any more the next call has the rest."""
        if b"\n" not in self._rest and select.select([self._output], [], [], wait)[0]:
            data = os.read(self._output, 65_536)
            self._rest += data
            self._ended = not data
        while b"\n" in self._rest:
            line, _, self._rest = self._rest.partition(b"\n")
            yield line.decode(errors="replace")


def _serve() -> None:
    """The service behind the door: it greets, and says each line back."""
    family = socket.AF_INET6 if _has_ipv6() else socket.AF_INET
    listener = socket.create_server(("", 22), family=family, dualstack_ipv6=family == socket.AF_INET6)
    while True:
        connection, _ = listener.accept()
        Thread(target=_talk, args=(connection,), daemon=True).start()


def _talk(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection, connection.makefile("rw", errors="replace") as lines:
        print(GREETING, file=lines, flush=True)
        for line in lines:
            print(f"you said: {line.rstrip()}", file=lines, flush=True)


# ---- the steps


class _Step(NamedTuple):
    title: str
    sentence: str
    play: Callable[[], Play]


def _run(host: str, command: str, expected: int = 0) -> Play:
    """Show the command and what it prints, which is also returned; raises StepError for any other exit status."""
    yield Shown(Kind.COMMAND, command, host)
    done = _complete(_argv(host, command))
    for line in done.stdout.splitlines():
        yield Shown(Kind.OUTPUT, line)
    if done.returncode != expected:
        code = done.returncode if done.returncode in (UNAVAILABLE, NO_PERMISSION, BAD_CONFIG) else FAILURE
        message = f"`{command}` on the {host}: exit status {done.returncode}, where {expected} was to be"
        raise StepError(message, exit_code=code)
    return done.stdout


def _refused(address: str) -> Generator[Shown, None, None]:
    yield from _run("client", f"timeout 1 bash -c 'head -n1 </dev/tcp/{address}/22'", _NO_ANSWER)
    yield Shown(Kind.OUTPUT, f"(exit status {_NO_ANSWER}: no answer within a second)")


def time_left(listing: str, address: str) -> float | None:
    """How many seconds the element with that address has, in what `nft list set` prints; None if it is not there."""
    found = re.search(rf"\b{re.escape(address)} \. (?:tcp|6) \. 22 .*?\bexpires (\w+)", listing)
    return parse_duration(found[1]) if found else None


class Demo:
    """The steps, in their order. For a process that has been through `enter`."""

    _daemon: Program
    _connection: Program

    def story(self) -> Iterator[Shown]:
        """All there is to show; raises StepError at the first step that does not happen."""
        begun, steps = time.monotonic(), self._steps()
        for number, step in enumerate(steps, 1):
            yield Shown(Kind.STEP, f"{number} of {len(steps)}: {step.title}")
            yield Shown(Kind.SAY, step.sentence)
            try:
                passed = yield from step.play()
            except StepError as error:
                where = f"step {number} of {len(steps)} ({step.title}) did not happen"
                raise StepError(f"{where}: {error.message}", error.hint, error.exit_code) from error
            yield Shown(Kind.PASSED, passed)
        without = "" if _has_ipv6() else "This kernel has no IPv6: a ninth step, the same over IPv6, was left out. "
        yield Shown(
            Kind.SUMMARY,
            f"{len(steps)} of {len(steps)} steps, in {time.monotonic() - begun:.0f} s. {without}Both hosts end here, "
            "and nothing of them remains. README.md says how to do the same on a host of yours.",
        )

    def _steps(self) -> list[_Step]:
        gateway = (
            f"A service on port 22, and a door before it that opens for {TIMEOUT:g} s. LOGKNOCK_CONFIG names the file."
        )
        scan = (
            f"One SYN to each port, from another address of the client ({SCANNER4}): whoever sends faster than anybody "
            "knocks is not listened to until it has kept to a knocker's pace for 10 s. The first need not wait for it."
        )
        grant = "An open door is an element of a set, with a timeout: the kernel closes it, even if the daemon is dead."
        steps = [
            _Step("The gateway", gateway, self._gateway),
            _Step(
                "A closed port", "Nobody has knocked, and the client tries the service all the same.", self._closed_port
            ),
            _Step("A wrong sequence", "The right ports in the wrong order open nothing.", self._wrong_sequence),
            _Step("A port scan", scan, self._port_scan),
            _Step(
                "The right knock", "The firewall records three packets; the daemon reads the record.", self._right_knock
            ),
            _Step("The grant", grant, self._grant),
            _Step("The connection", "The client connects while the door is open.", self._connect),
            _Step("The door closed again", "New connections fail; the one that was made lives on.", self._closed_again),
        ]
        ipv6 = _Step("The same over IPv6", "The same rules and the same door serve both families.", self._over_ipv6)
        return [*steps, ipv6] if _has_ipv6() else steps

    def _gateway(self) -> Play:
        Thread(target=_serve, daemon=True).start()
        yield from _run("gateway", f"cat {_CONFIG}")
        yield from _run("gateway", "ss -Hltn sport = :22 | grep 22")
        yield from _run("gateway", "logknock check")
        yield from _run("gateway", "logknock rules apply")
        yield Shown(Kind.COMMAND, "logknock run &", "gateway")
        self._daemon = Program("gateway", "exec logknock run")
        yield from self._told("ready: ")
        return "the rules are loaded, the daemon reads their records"

    def _closed_port(self) -> Play:
        yield from _refused(GATEWAY4)
        return "no answer, not even a refusal: the packet was dropped"

    def _wrong_sequence(self) -> Play:
        yield from _run("client", f"logknock knock {GATEWAY4} {_WRONG}")
        yield from self._told(f"{CLIENT4}: ssh: Stage 1")
        yield from self._told(f"{CLIENT4}: ssh: wrong port 8000/tcp")
        yield from _refused(GATEWAY4)
        yield from self._told_no_opening()
        return "the attempt ended at the wrong port; the service is as closed as before"

    def _port_scan(self) -> Play:
        seen = yield from _run("client", f"python3 -m logknock.demo {SCANNER4} {GATEWAY4} 1-65535")
        if "65534 closed, 0 open, no answer from 22\n" not in seen + "\n":
            raise StepError("the scan was to find port 22 silent and all others closed, the knock ports among them")
        noisy = yield from _run("gateway", "nft list set inet logknock noisy4")
        if f"{SCANNER4} " not in noisy:
            raise StepError(f"{SCANNER4} is not among the noisy")
        seen = yield from _run("client", f"python3 -m logknock.demo {SCANNER4} {GATEWAY4} 22")
        if "0 closed, 0 open, no answer from 22" not in seen:
            raise StepError("port 22 is not silent any more")
        yield from self._told_no_opening()
        return "it opened nothing, did not find the knock ports, and nobody listens to its source any more"

    def _right_knock(self) -> Play:
        yield from _run("client", f"logknock knock -v {GATEWAY4} {_RIGHT}")
        for stage in (1, 2, 3):
            yield from self._told(f"{CLIENT4}: ssh: Stage {stage}")
        yield from self._told(f"{CLIENT4}: ssh: {_OPEN}")
        return f"the door is open for {CLIENT4}"

    def _grant(self) -> Play:
        before = float("inf")
        for look in range(_LOOKS):
            if look:
                time.sleep(1)
            listing = yield from _run("gateway", "nft list set inet logknock granted4 | grep expires")
            left = time_left(listing, CLIENT4)
            if left is None or not left < before or left > TIMEOUT:
                raise StepError(f"the time of {CLIENT4} was to run down from {TIMEOUT:g} s")
            if "," in listing:
                raise StepError("the door was to be open for nobody else")
            before = left
        return f"the door is open for {CLIENT4} alone, and its time runs down, in the kernel"

    def _connect(self) -> Play:
        command = f"exec 3<>/dev/tcp/{GATEWAY4}/22; cat <&3 & cat >&3"
        yield Shown(Kind.COMMAND, command, "client")
        self._connection = Program("client", command)
        for line in self._connection.until(GREETING):
            yield Shown(Kind.OUTPUT, line)
        yield from self._say("hello")
        return "the service answers"

    def _closed_again(self) -> Play:
        yield from self._told(f"{CLIENT4}: ssh: command timeout, closed", TIMEOUT + _SEEN_LIMIT)
        yield from _refused(GATEWAY4)
        yield from self._say("still there?")
        return "closed to new connections; the old one still answers"

    def _over_ipv6(self) -> Play:
        yield from _refused(GATEWAY6)
        yield from _run("client", f"logknock knock {GATEWAY6} {_RIGHT}")
        yield from self._told(f"{CLIENT6}: ssh: {_OPEN}")
        seen = yield from _run("client", f"timeout 5 bash -c 'head -n1 </dev/tcp/{GATEWAY6}/22'")
        if seen.strip() != GREETING:
            raise StepError("the service's greeting was to come")
        return f"closed before the knock, open for {CLIENT6} after it"

    def _say(self, line: str) -> Iterator[Shown]:
        """Type a line into the connection, and wait for the service to say it back."""
        yield Shown(Kind.TYPED, line)
        self._connection.type(line)
        for answer in self._connection.until(f"you said: {line}"):
            yield Shown(Kind.OUTPUT, answer)

    def _told(self, wanted: str, seconds: float = _SEEN_LIMIT) -> Iterator[Shown]:
        """Show the daemon's lines until the wanted one has come."""
        for line in self._daemon.until(wanted, seconds):
            yield Shown(Kind.DAEMON, line)

    def _told_no_opening(self) -> Iterator[Shown]:
        for line in self._daemon.new_lines():
            yield Shown(Kind.DAEMON, line)
            if _OPEN in line:
                raise StepError("a door opened")


# ---- the scan


_AT_A_TIME = 500  # sockets; 1,024 files are what a process may usually have open
_PATIENCE = 0.5  # seconds for an answer; after one, the kernel would send the SYN again


def scan(src: str, dst: str, ports: Sequence[int]) -> tuple[int, list[int], list[int]]:
    """Send one SYN to each port; how many are closed, which are open, and which do not answer."""
    closed, opened, silent = 0, list[int](), list[int]()
    for at in range(0, len(ports), _AT_A_TIME):
        waiting: dict[int, socket.socket] = {}
        for port in ports[at : at + _AT_A_TIME]:
            waiting[port] = probe = socket.socket()
            probe.setblocking(False)
            probe.bind((src, 0))
            probe.connect_ex((dst, port))
        deadline = time.monotonic() + _PATIENCE
        while waiting and time.monotonic() < deadline:
            for port, probe in list(waiting.items()):
                answer = probe.connect_ex((dst, port))
                if answer not in (errno.EALREADY, errno.EINPROGRESS):
                    waiting.pop(port).close()
                    closed += answer == errno.ECONNREFUSED
                    opened += [port] if answer in (0, errno.EISCONN) else []
            time.sleep(0.01 if waiting else 0)
        for port, probe in waiting.items():
            silent.append(port)
            probe.close()
    return closed, opened, silent


def _scan() -> None:
    src, dst, text = sys.argv[1:]
    first, _, last = text.partition("-")
    begun = time.monotonic()
    closed, opened, silent = scan(src, dst, range(int(first), int(last or first) + 1))
    took = f"port {text}, in {time.monotonic() - begun:.1f} s"
    print(f"{took}: {closed} closed, {len(opened)} open, no answer from {', '.join(map(str, silent)) or 'none'}")


if __name__ == "__main__":
    _scan()
