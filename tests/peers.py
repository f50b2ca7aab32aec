"""The programs of other people that write down what a firewall logged: rsyslog, syslog-ng, ulogd2 and journald.

Rule 1: what runs is Debian's program, unpacked by `make setup-test` and never installed, with a configuration of the
test's own that follows the one it comes with. Rule 2: nobody's log is touched: records are read where reading takes
them from nobody, written to the test's folder, and only those with a word that the test alone logs; journald has a
mount namespace to itself. Rule 3: who enters a block finds a program that writes, and nothing is left behind it.
"""

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .netns import Host

UNPACKED = Path(sys.prefix) / "peers"
_LIBRARIES = UNPACKED / "usr/lib" / f"{os.uname().machine}-linux-gnu"

# What a slow machine needs at worst for a step that usually takes milliseconds.
_PATIENCE = 20.0

_ALL_NETNS = Path("/proc/sys/net/netfilter/nf_log_all_netns")
_KMSG = Path("/dev/kmsg")

# One record of /dev/kmsg at most (CONSOLE_EXT_LOG_MAX of the kernel); a shorter read fails.
_KMSG_RECORD = 8192

_serial = itertools.count()


def own_prefix() -> str:
    """A prefix for rules that nobody else on this machine logs with: short, since iptables takes 29 characters."""
    return f"lk{os.getpid()}x{next(_serial)}"


# ---- the kernel's log


@contextmanager
def kernel_log() -> Iterator[None]:
    """LOG in a network namespace reaches the kernel's log meanwhile.

    The switch is the whole machine's: who finds it off puts it back, but not before all others here have gone.
    """
    with _ALL_NETNS.open("r+") as switch:
        fcntl.flock(switch, fcntl.LOCK_SH)
        was = switch.read().strip()
        _ALL_NETNS.write_text("1")
        try:
            yield
        finally:
            if was != "1":
                fcntl.flock(switch, fcntl.LOCK_EX)
                _ALL_NETNS.write_text(was)


class KernelLog:
    """The records that come into the kernel's log from now on."""

    def __init__(self) -> None:
        self._descriptor = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def close(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> Iterator["Record"]:
        """All that has come since the last time (Documentation/ABI/testing/dev-kmsg)."""
        while True:
            try:
                data = os.read(self._descriptor, _KMSG_RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:  # some were overwritten before they were read
                continue
            head, _, text = data.partition(b";")
            priority, _, micros, *_ = head.split(b",")
            yield Record(int(priority), int(micros) / 1e6, text.partition(b"\n")[0])


class Record(NamedTuple):
    """A record of the kernel's log. uptime: seconds. priority: facility and level (syslog(3))."""

    priority: int
    uptime: float
    message: bytes

    @property
    def line(self) -> bytes:
        """As /proc/kmsg has it."""
        return b"<%d>[%12.6f] %s\n" % (self.priority, self.uptime, self.message)


def say(text: str) -> None:
    """A record that a program, and not the kernel, puts into the kernel's log: its facility is never the kernel's."""
    _KMSG.write_text(f"<4>{text}\n")


# ---- programs


@contextmanager
def _running(argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """A daemon in the foreground, ended with the block; its words go to `log`. Gives its process's number."""
    with log.open("w") as words:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=words, stderr=words, env=os.environ | (environment or {})
        )
    try:
        yield process.pid
        assert process.poll() is None, f"{argv[0]} ended by itself:\n{log.read_text()}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_text(text: str, files: Sequence[Path], log: Path, again: Callable[[], None] = lambda: None) -> None:
    """Wait until all the files have the text; `again` is what may make it come, and is repeated."""
    end = time.monotonic() + _PATIENCE
    while not all(file.exists() and text in file.read_text(errors="replace") for file in files):
        assert time.monotonic() < end, f"no {text!r} in {files}:\n{log.read_text()}"
        again()
        time.sleep(0.02)


class Files(NamedTuple):
    """A log in the two shapes that rsyslog and syslog-ng write."""

    traditional: Path
    iso: Path


@contextmanager
def rsyslog(folder: Path, word: str, *, uptime: bool = False) -> Iterator[Files]:
    """rsyslog, which writes the kernel's records that contain the word.

    By imkmsg, which reads a copy of the kernel's log. With `uptime` by imklog, as Debian configures it, and so with
    the kernel's own stamp at the head of each message: that one would take /proc/kmsg from others, so it reads a pipe
    that is filled with the same lines.
    """
    files = Files(folder / "rsyslog.log", folder / "rsyslog-iso.log")
    pipe, log = folder / "rsyslog.pipe", folder / "rsyslog.out"
    source = f'"imklog" LogPath="{pipe}"' if uptime else '"imkmsg"'
    config = folder / "rsyslog.conf"
    config.write_text(
        f"module(load={source})\n"
        f'if $msg contains "{word}" then {{\n'
        f'\taction(type="omfile" file="{files.traditional}" template="RSYSLOG_TraditionalFileFormat")\n'
        f'\taction(type="omfile" file="{files.iso}" template="RSYSLOG_FileFormat")\n'
        "}\n"
    )
    argv = [f"{UNPACKED}/usr/sbin/rsyslogd", "-n", "-i", "NONE", "-f", str(config), "-M", f"{_LIBRARIES}/rsyslog"]
    with ExitStack() as stack:
        if uptime:
            os.mkfifo(pipe)
            feed = stack.enter_context(_feeding(pipe))
        stack.enter_context(_running(argv, log))
        text = f"{word} rsyslog begins"
        if uptime:
            feed.put(f"<4>[    0.000001] {text}\n".encode())
        else:
            say(text)
        _wait_for_text(text, files, log)
        yield files


class _Feed(threading.Thread):
    """Puts the kernel's log into a pipe, as /proc/kmsg gives it."""

    def __init__(self, pipe: Path) -> None:
        super().__init__(daemon=True)
        self._pipe = os.open(pipe, os.O_RDWR)
        self._records = KernelLog()
        self._over = threading.Event()

    def put(self, line: bytes) -> None:
        os.write(self._pipe, line)

    def run(self) -> None:
        while not self._over.wait(0.01):
            for record in self._records.read():
                self.put(record.line)

    def stop(self) -> None:
        self._over.set()
        self.join()
        self._records.close()
        os.close(self._pipe)


@contextmanager
def _feeding(pipe: Path) -> Iterator[_Feed]:
    feed = _Feed(pipe)
    feed.start()
    try:
        yield feed
    finally:
        feed.stop()


@contextmanager
def syslog_ng(folder: Path, word: str) -> Iterator[Files]:
    """syslog-ng, which writes the kernel's records that contain the word."""
    files = Files(folder / "syslog-ng.log", folder / "syslog-ng-iso.log")
    log, config = folder / "syslog-ng.out", folder / "syslog-ng.conf"
    libraries = UNPACKED / "usr/lib/syslog-ng"
    modules = next(path for path in libraries.iterdir() if path.is_dir() and path.name[0].isdigit())
    config.write_text(
        f"@version: {modules.name}\n"
        # What its own system() source comes to on Linux.
        'source kernel { file("/dev/kmsg" program-override("kernel") flags(kernel) format("linux-kmsg")); };\n'
        f'filter ours {{ message("{word}"); }};\n'
        f'destination traditional {{ file("{files.traditional}"); }};\n'
        f'destination iso {{ file("{files.iso}" template("$ISODATE $HOST $MSGHDR$MESSAGE\\n")); }};\n'
        "log { source(kernel); filter(ours); destination(traditional); destination(iso); };\n"
    )
    argv = [f"{UNPACKED}/usr/sbin/syslog-ng", "--foreground", "--no-caps", "-f", str(config)]
    argv += ["--module-path", str(modules), "--persist-file", f"{folder}/syslog-ng.persist"]
    argv += ["--pidfile", f"{folder}/syslog-ng.pid", "--control", f"{folder}/syslog-ng.ctl"]
    with _running(argv, log, {"LD_LIBRARY_PATH": str(libraries)}):
        text = f"{word} syslog-ng begins"
        _wait_for_text(text, files, log, lambda: say(text))  # it begins at the end of the kernel's log
        yield files


# The stacks of the configuration that ulogd2 comes with; its own plugins are found by their full paths only.
_ULOGD = {
    "LOGEMU": ("NFLOG", "BASE", "IFINDEX", "IP2STR", "PRINTPKT", "LOGEMU"),
    "JSON": ("NFLOG", "BASE", "IFINDEX", "IP2STR", "HWHDR", "JSON"),
}
_ULOGD_PLUGINS = {"NFLOG": "inppkt", "BASE": "raw2packet", "LOGEMU": "output", "JSON": "output"}


class Ulogd(NamedTuple):
    """What it writes, and its process."""

    file: Path
    process: int


@contextmanager
def ulogd(host: Host, folder: Path, group: int, output: str) -> Iterator[Ulogd]:
    """ulogd2, which writes what this NFLOG group of the host brings, as "LOGEMU" or as "JSON"."""
    file, log, config = (folder / f"ulogd-{output}.{end}" for end in ("log", "out", "conf"))
    stack = _ULOGD[output]
    plugins = (f"ulogd_{_ULOGD_PLUGINS.get(name, 'filter')}_{name}.so" for name in stack)
    config.write_text(
        '[global]\nlogfile="stdout"\nloglevel=3\n'
        + "".join(f'plugin="{_LIBRARIES}/ulogd/{plugin}"\n' for plugin in plugins)
        + f"stack={','.join(f'{name.lower()}1:{name}' for name in stack)}\n"
        + f"[nflog1]\ngroup={group}\nnetlink_qthreshold=1\n"  # each record at once, and not a second late
        + f'[{output.lower()}1]\nfile="{file}"\nsync=1\n'
    )
    argv = host.argv([f"{UNPACKED}/usr/sbin/ulogd", "-c", str(config)])
    with _running(argv, log) as process:
        _wait_for_text("initialization finished", [log], log)
        yield Ulogd(file, process)


# ---- the journal

# What journald writes to is its own: an empty journal, in memory.
_JOURNALD = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/log/journal /run/systemd/journal
touch /run/of-its-own
exec /lib/systemd/systemd-journald
"""


@dataclass(frozen=True, slots=True)
class JournalHost(Host):
    """A host whose programs find the journal of a journald of their own; `journald` is its process."""

    journald: int

    def argv(self, command: Sequence[str]) -> list[str]:
        spaces = [f"--mount=/proc/{self.journald}/ns/mnt", f"--net=/run/netns/{self.name}"]
        return ["nsenter", *spaces, "--", "env", f"--chdir={os.getcwd()}", *command]


@contextmanager
def journald(host: Host, folder: Path) -> Iterator[JournalHost]:
    """The host with a journald that keeps the kernel's records."""
    log = folder / "journald.out"
    word = f"{own_prefix()} journald begins"
    with _running(["unshare", "--mount", "sh", "-c", _JOURNALD], log) as process:
        inside = JournalHost(host.name, host.ipv4, host.ipv6, process)
        end = time.monotonic() + _PATIENCE
        while not Path(f"/proc/{process}/root/run/of-its-own").exists():
            assert time.monotonic() < end, f"no mounts:\n{log.read_text()}"
        say(word)
        while word not in inside.run("journalctl", "-q", "-o", "cat", "--grep", word, check=False).stdout:
            assert time.monotonic() < end, f"journald does not begin:\n{log.read_text()}"
            time.sleep(0.02)
        yield inside
