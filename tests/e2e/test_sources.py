"""Any firewall log will do: the same knock opens the same door, whoever wrote down what the firewall said.

Everything is real: the kernel, the programs that keep its log, and `logknock run` with our own rules. Where a way needs
other rules than `logknock rules apply` loads, an administrator edits what `logknock rules print` prints, and so do we.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from .. import peers
from .world import KNOCKS, SSH, Daemon, World, until

GROUP = 17  # for ulogd2
OPENED = "ssh: OPEN SESAME"


@dataclass
class Way:
    """How packets come from the firewall to logknock.

    world: the hosts; what runs on its gateway finds the journal, if there is one. log: lines of the table [log].
    statement: what the rules log with, a rule in each line, where it is not what ours say. pipe: what writes to
    logknock's standard input. written: when a text is in the log that is read, everything before it is too.
    """

    world: World
    log: str
    statement: str = ""
    pipe: Sequence[str] = ()
    written: Callable[[str], bool] = lambda text: True

    def load(self, doors: str = SSH) -> None:
        """The configuration, and the rules."""
        self.world.configure(f"[log]\n{self.log}\n{doors}")
        if not self.statement:
            self.world.apply()
            return
        printed = self.world.gateway.logknock("rules", "print", "-c", str(self.world.config)).stdout
        line = next(line for line in printed.splitlines() if line.strip().startswith("log "))
        self.world.gateway.nft(printed.replace(line, self.statement))

    @contextmanager
    def daemon(self) -> Iterator[Daemon]:
        """`logknock run`, its standard input connected to what it reads from, if it reads that."""
        if not self.pipe:
            with self.world.daemon() as daemon:
                yield daemon
            return
        gateway = self.world.gateway
        with gateway.start(*self.pipe, stdout=subprocess.PIPE) as writer:
            command = [sys.executable, "-m", "logknock", "run", "-c", str(self.world.config)]
            with gateway.start(*command, stdin=writer.stdout, stderr=subprocess.PIPE) as process:
                try:
                    daemon = Daemon(process)
                    daemon.wait_for("ready")
                    yield daemon
                finally:
                    process.kill()
                    writer.kill()


# ---- the ways


Open = Callable[[World, Path, str, ExitStack], Way]


def nflog(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    return Way(world, 'source = "nflog"')


def journal(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    stack.enter_context(peers.kernel_log())
    inside = replace(world, gateway=stack.enter_context(peers.journald(world.gateway, folder)))
    written = lambda text: text in inside.gateway.run("journalctl", "-qko", "cat").stdout  # noqa: E731
    return Way(inside, f'source = "journal"\nprefix = "{word}"', written=written)


def piped_journal(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    way = journal(world, folder, word, stack)
    return replace(way, log=f'source = "stdin"\nprefix = "{word}"', pipe=("journalctl", "-kf", "-o", "json"))


def rsyslog(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    stack.enter_context(peers.kernel_log())
    return _file(world, word, stack.enter_context(peers.rsyslog(folder, word)).traditional)


def rsyslog_iso(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    stack.enter_context(peers.kernel_log())
    return _file(world, word, stack.enter_context(peers.rsyslog(folder, word)).iso)


def rsyslog_uptime(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    stack.enter_context(peers.kernel_log())
    return _file(world, word, stack.enter_context(peers.rsyslog(folder, word, uptime=True)).traditional)


def piped_rsyslog(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    way = rsyslog(world, folder, word, stack)
    pipe = ("tail", "--follow=name", "--lines=0", str(folder / "rsyslog.log"))
    return replace(way, log=f'source = "stdin"\nprefix = "{word}"', pipe=pipe)


def syslog_ng(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    stack.enter_context(peers.kernel_log())
    return _file(world, word, stack.enter_context(peers.syslog_ng(folder, word)).traditional)


def ulogd_json(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    return _ulogd(world, folder, word, stack, "JSON")


def ulogd_logemu(world: World, folder: Path, word: str, stack: ExitStack) -> Way:
    return _ulogd(world, folder, word, stack, "LOGEMU")


def _ulogd(world: World, folder: Path, word: str, stack: ExitStack, output: str) -> Way:
    file = stack.enter_context(peers.ulogd(world.gateway, folder, GROUP, output)).file
    return replace(_file(world, word, file), statement=f'log prefix "{word}: " group {GROUP}')


def _file(world: World, word: str, file: Path) -> Way:
    return Way(
        world,
        f'source = "file"\nprefix = "{word}"\nfile.path = "{file}"',
        written=lambda text: file.exists() and text in file.read_text(errors="replace"),
    )


WAYS: dict[str, Open] = {
    "NFLOG": nflog,
    "the journal": journal,
    "journalctl by a pipe": piped_journal,
    "rsyslog": rsyslog,
    "rsyslog, ISO": rsyslog_iso,
    "rsyslog, with the uptime": rsyslog_uptime,
    "rsyslog by a pipe": piped_rsyslog,
    "syslog-ng": syslog_ng,
    "ulogd2, JSON": ulogd_json,
    "ulogd2, LOGEMU": ulogd_logemu,
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("way", WAYS)
def test_the_same_knock_opens_the_same_door(world: World, tmp_path: Path, stack: ExitStack, way: str) -> None:
    """T29: what was in the log before logknock started opens nothing."""
    wired = WAYS[way](world, tmp_path, peers.own_prefix(), stack)
    wired.load()
    wired.world.knock(*KNOCKS)
    until(lambda: wired.written("9000"), "the last knock in the log")
    with wired.daemon() as daemon, world.service(22):
        assert not world.reaches(patience=0.3)
        world.knock(*KNOCKS)
        daemon.wait_for(f"{world.client.ipv4}: {OPENED}")
        assert world.reaches()

        world.knock(*KNOCKS, address=world.gateway.ipv6)
        daemon.wait_for(f"{world.client.ipv6}: {OPENED}")
        assert world.reaches(address=world.gateway.ipv6)
        assert sum(OPENED in line for line in daemon.lines) == 2


# ---- a log daemon that was late (T29)


def journald_of(way: Way, folder: Path) -> int:
    assert isinstance(way.world.gateway, peers.JournalHost)
    return way.world.gateway.journald


def rsyslog_of(way: Way, folder: Path) -> int:
    """The process that reads its configuration there."""
    word = str(folder / "rsyslog.conf").encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has ended since
            if word in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
    (only,) = found
    return only


LATE: dict[str, Callable[[Way, Path], int]] = {
    "journalctl by a pipe": journald_of,
    "rsyslog, with the uptime": rsyslog_of,
    "rsyslog": rsyslog_of,
}


@pytest.mark.parametrize("way", LATE)
def test_t29_a_knock_that_the_log_daemon_was_too_late_with(
    world: World, tmp_path: Path, stack: ExitStack, way: str
) -> None:
    """T29: it does not run while somebody knocks, and writes it all when it goes on: too late to open."""
    wired = WAYS[way](world, tmp_path, peers.own_prefix(), stack)
    wired.load(f'{SSH}seq_timeout = "2s"\n')
    with wired.daemon() as daemon:

        def heard(source: str) -> bool:
            world.spoof(f"{source}>{world.gateway.ipv4}:7000/tcp")
            return daemon.says(f"{source}: ssh: Stage 1")

        until(lambda: heard("198.51.100.6"), "a first knock, again if this machine took too long for the timeout")
        process = LATE[way](wired, tmp_path)
        os.kill(process, signal.SIGSTOP)
        try:
            world.knock(*KNOCKS)
            time.sleep(4)  # no longer than that is needed, and more does no harm
        finally:
            os.kill(process, signal.SIGCONT)
        until(lambda: heard("198.51.100.7"), "a first knock: all before it has been read")
        assert not daemon.says(OPENED)
        assert not world.granted()

        def opened() -> bool:
            world.knock(*KNOCKS)
            return daemon.says(OPENED)

        until(opened, "an opening, again if this machine took too long for the timeout")


# ---- standard input that holds nothing new, or ends


def run_with(world: World, stdin: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "logknock", "run", "-c", str(world.config)]
    return world.gateway.start(*command, stdin=stdin, stderr=subprocess.PIPE)


def test_t29_the_end_of_a_log_as_standard_input(world: World, tmp_path: Path) -> None:
    """T29: `logknock run < FILE` opens nothing: it is refused; and so is /dev/null, by which nothing ever comes."""
    world.configure(f'[log]\nsource = "stdin"\n{SSH}')
    world.apply()
    log = tmp_path / "kern.log"
    log.write_text("")
    for path, words in ((log, "is a regular file"), (Path("/dev/null"), "is /dev/null, and nothing is piped in")):
        with path.open() as stream:
            process = run_with(world, stream.fileno())
            told = process.communicate(timeout=20)[1]
        assert process.returncode == 69
        assert f"standard input: {words}" in told
        assert "hint: " in told


def test_standard_input_that_ends(world: World) -> None:
    """Who is piped in must go on: else the daemon would run on and hear nothing."""
    world.configure(f'[log]\nsource = "stdin"\n{SSH}')
    world.apply()
    ours, theirs = os.pipe()
    with ExitStack() as stack:
        process = run_with(world, ours)
        stack.callback(process.kill)
        os.close(ours)
        daemon = Daemon(process)
        daemon.wait_for("ready")
        os.close(theirs)
        daemon.wait_for("standard input: has ended")
        assert process.wait(20) == 69


# ---- one packet, told of more than once (T10)

AGAIN = """
[doors.ssh]
sequence = ["7000/tcp", "7000/tcp", "8000/tcp"]
opens = ["22/tcp"]
timeout = "30s"
"""

# For each rule that logs, a door that no other rule tells of: when it opens, its source has read all that came before.
FENCES = "".join(
    f"""
[doors.fence{number}]
sequence = ["500{number}/udp"]
opens = ["23/tcp"]
timeout = "30s"
"""
    for number in range(3)
)


def fenced(*statements: str) -> str:
    """Rules that log with each of these, but for the others' fences."""
    rules = []
    for number, statement in enumerate(statements):
        others = (f"500{other}" for other in range(len(statements)) if other != number)
        rules.append(f"th dport != {{ {', '.join(others)} }} {statement}")
    return "\n".join(rules)


def wait_for_fences(world: World, daemon: Daemon, count: int) -> None:
    """Knock on each fence, and wait until all are open: everything that was sent before has been read."""
    daemon.read()
    seen = len(daemon.lines)
    world.knock(*(f"500{number}/udp" for number in range(count)))
    for number in range(count):
        until(partial(_opened, daemon, seen, f"fence{number}"), f"fence {number}")


def _opened(daemon: Daemon, seen: int, door: str) -> bool:
    daemon.read()
    return any(f": {door}: OPEN SESAME" in line for line in daemon.lines[seen:])


def nflog_and_journal(world: World, folder: Path, word: str, stack: ExitStack) -> tuple[Way, int]:
    way = journal(world, folder, word, stack)
    statement = fenced("log group 5", f'log prefix "{word}: "')
    return replace(way, log=f'source = ["nflog", "journal"]\nprefix = "{word}"', statement=statement), 2


def nflog_and_rsyslog(world: World, folder: Path, word: str, stack: ExitStack) -> tuple[Way, int]:
    way = rsyslog(world, folder, word, stack)
    statement = fenced("log group 5", f'log prefix "{word}: "')
    return replace(way, log=way.log.replace('"file"', '["nflog", "file"]'), statement=statement), 2


def three_sources(world: World, folder: Path, word: str, stack: ExitStack) -> tuple[Way, int]:
    way = ulogd_json(journal(world, folder, word, stack).world, folder, word, stack)
    statement = fenced("log group 5", f'log prefix "{word}: "', f'log prefix "{word}: " group {GROUP}')
    return replace(way, log=way.log.replace('"file"', '["nflog", "journal", "file"]'), statement=statement), 3


def two_rules_for_nflog(world: World, folder: Path, word: str, stack: ExitStack) -> tuple[Way, int]:
    return replace(nflog(world, folder, word, stack), statement="log group 5\nlog group 5"), 1


def two_rules_for_the_journal(world: World, folder: Path, word: str, stack: ExitStack) -> tuple[Way, int]:
    way = journal(world, folder, word, stack)
    statement = f'log prefix "{word}: "\nlog prefix "{word} BLOCK] "'
    return replace(way, log=f'source = "journal"\nprefix = ["{word}", "{word} BLOCK]"]', statement=statement), 1


TWICE = {
    "NFLOG and the journal": nflog_and_journal,
    "NFLOG and rsyslog": nflog_and_rsyslog,
    "NFLOG, the journal and ulogd2": three_sources,
    "two rules, NFLOG": two_rules_for_nflog,
    "two rules, the journal": two_rules_for_the_journal,
}


@pytest.mark.parametrize("way", TWICE)
def test_a_packet_that_is_told_of_twice_counts_once(world: World, tmp_path: Path, stack: ExitStack, way: str) -> None:
    """T10, T8: a sequence that repeats a port opens with two packets, and not with two records of one."""
    wired, fences = TWICE[way](world, tmp_path, peers.own_prefix(), stack)
    wired.load(AGAIN + FENCES)
    with wired.daemon() as daemon:
        world.knock("7000/tcp", "8000/tcp")
        wait_for_fences(world, daemon, fences)
        assert not daemon.says(OPENED)

        world.knock("7000/tcp", "7000/tcp", "8000/tcp")
        wait_for_fences(world, daemon, fences)
        assert sum(OPENED in line for line in daemon.lines) == 1, "\n".join(daemon.lines)


def test_copies_that_come_late_open_nothing_again(world: World, tmp_path: Path, stack: ExitStack) -> None:
    """T10: a log that lags behind tells of the whole knock once more, when the door is long closed again."""
    word = peers.own_prefix()
    writer = stack.enter_context(peers.ulogd(world.gateway, tmp_path, GROUP, "JSON"))
    log = f'source = ["nflog", "file"]\nprefix = "{word}"\nfile.path = "{writer.file}"'
    way = Way(world, log, fenced("log group 5", f'log prefix "{word}: " group {GROUP}'))
    way.load(SSH.replace('"30s"', '"1s"') + FENCES)
    with way.daemon() as daemon:
        os.kill(writer.process, signal.SIGSTOP)
        try:
            world.knock(*KNOCKS)
            daemon.wait_for(f"{world.client.ipv4}: {OPENED}")
            until(lambda: not world.granted(), "the door closed")
            seen = len(daemon.lines)
        finally:
            os.kill(writer.process, signal.SIGCONT)
        wait_for_fences(world, daemon, 2)
        assert not any(OPENED in line for line in daemon.lines[seen:])
