"""The journal as a source: the arithmetic of its clocks, and a real journald that reads the real kernel's log."""

import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock.errors import NO_PERMISSION, UNAVAILABLE, SourceError
from logknock.packet import UDP, Packet
from logknock.records import Grammar, Wanted
from logknock.sources.journal import Journal, entries
from logknock.stamps import KernelClock
from logknock.trusted_files import Untrusted

from .e2e.world import until
from .netns import Host
from .peers import kernel_log, own_prefix

BOOT = bytes(range(16))
SECOND = 1_000_000
HOUR = 3600 * SECOND
EPOCH = 1_790_000_000 * SECOND

# ---- the arithmetic


class Machine:
    """A kernel's log clock that errs by some parts in a million, and a journald that is late; true times in us."""

    def __init__(self, ppm: int = 0) -> None:
        self.clock = KernelClock()
        self.ppm = ppm
        self.step = 0  # of the wall clock
        self.parted = 0  # of the log clock

    def entry(self, made: int, written: int) -> float:
        """By how many seconds the clock is wrong about a record made and written at these times since the boot."""
        source = made + made * self.ppm // 1_000_000 + self.parted
        realtime = EPOCH + self.step + written
        return self.clock.time(BOOT, realtime, written, source) - (EPOCH + self.step + made) / SECOND


@pytest.mark.parametrize("ppm", [-100, -20, 0, 20, 100])
def test_the_clocks_part_for_weeks(ppm: int) -> None:
    machine = Machine(ppm)
    wrong = [machine.entry(hour * HOUR, hour * HOUR + 20_000) for hour in range(1, 24 * 21)]
    assert all(abs(error) < 0.05 for error in wrong[1:])


def test_t29_a_batch_is_as_old_as_it_is() -> None:
    """T29: three records, made 50 ms apart, written at one moment."""
    machine = Machine()
    machine.entry(HOUR, HOUR + 1000)
    wrong = [machine.entry(HOUR + at, HOUR + 150_000) for at in (10_000, 60_000, 110_000)]
    assert all(abs(error) < 0.002 for error in wrong)


@pytest.mark.parametrize("quiet", [1, HOUR, 24 * HOUR])
def test_t29_after_a_journald_that_was_stopped_for_a_minute(quiet: int) -> None:
    """T29: the backlog is a minute old, but for what the clocks may have parted since the last record."""
    machine = Machine()
    machine.entry(HOUR, HOUR + 1000)
    start = HOUR + quiet
    wrong = [machine.entry(start + at * SECOND, start + 60 * SECOND + at) for at in range(59)]
    assert all(0 <= error < 0.05 + 0.0002 * quiet / SECOND for error in wrong[:40])
    assert machine.entry(start + 61 * SECOND, start + 61 * SECOND + 900) < 0.05


@pytest.mark.parametrize("uptime", [600 * SECOND, 10 * HOUR])
def test_t29_a_backlog_is_the_first_that_is_seen_of_a_boot(uptime: int) -> None:
    """T29: nothing is known of journald's delay yet; two clocks that start at zero are not a minute apart."""
    machine = Machine()
    wrong = [machine.entry(uptime + at, uptime + 60 * SECOND + at) for at in range(3)]
    assert all(0 < error < 15 for error in wrong)


def test_the_wall_clock_is_stepped() -> None:
    machine = Machine()
    for at, step in ((1, 0), (2, -3600), (3, 86_400), (4, 0)):
        machine.step = step * SECOND
        assert abs(machine.entry(HOUR + at * SECOND, HOUR + at * SECOND + 1000)) < 0.002


def test_a_virtual_machine_is_moved_and_its_clocks_part() -> None:
    """Else no knock would be in time again before the next boot."""
    machine = Machine()
    machine.entry(HOUR, HOUR + 1000)
    machine.parted = -300 * SECOND
    times = [HOUR + at * SECOND for at in range(10, 700, 10)]
    wrong = [machine.entry(at, at + 1000 + at % 7) for at in times]
    assert wrong[0] < -299
    assert abs(wrong[-1]) < 0.2


def test_two_late_records_in_a_row_prove_nothing() -> None:
    """T29: for ten minutes and more journald was late each time, and once it was not."""
    machine = Machine()
    machine.entry(HOUR, HOUR + 1000)
    for at in (100, 400, 650):
        machine.entry(HOUR + at * SECOND, HOUR + at * SECOND + 1000 + at % 7)
    machine.entry(HOUR + 800 * SECOND, HOUR + 860 * SECOND)
    assert machine.entry(HOUR + 801 * SECOND, HOUR + 861 * SECOND) < 0.5


numbers = st.integers(0, 1 << 62)


@given(st.lists(st.tuples(st.binary(max_size=2), numbers, numbers, numbers), max_size=50))
def test_a_record_is_never_from_after_its_entry(rows: list[tuple[bytes, int, int, int]]) -> None:
    clock = KernelClock()
    for boot, realtime, monotonic, source in rows:
        assert clock.time(boot, realtime, monotonic, source) <= realtime / SECOND


def test_boots_without_end() -> None:
    clock = KernelClock()
    for number in range(20_000):
        clock.time(number.to_bytes(16, "big"), EPOCH, HOUR, HOUR)
    assert len(clock._boots) <= 4096


# ---- a journald of this test's own


class Journald:
    """journald in a mount namespace that only these tests are in; the kernel's log is the machine's."""

    def __init__(self) -> None:
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        socket_path = Path("/run/systemd/journal/io.systemd.journal")
        socket_path.unlink(missing_ok=True)
        process = subprocess.Popen(["/lib/systemd/systemd-journald"], stdin=subprocess.DEVNULL)
        until(lambda: socket_path.exists() and journalctl("-n1"), "journald's start")
        return process

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(20)

    def restart(self) -> None:
        self.end()
        self.process = self._start()

    def crash(self) -> None:
        self.end(signal.SIGKILL)
        self.process = self._start()


def journalctl(*words: str) -> str:
    return subprocess.run(["journalctl", "-q", *words], capture_output=True, text=True, check=True, timeout=20).stdout


@contextmanager
def mounts_of_our_own() -> Iterator[None]:
    """What this thread does, and starts, finds an empty /run/systemd, /run/log and /var/log meanwhile."""
    clone_newns = 0x00020000
    libc = ctypes.CDLL(None, use_errno=True)
    folder = Path.cwd()
    with open("/proc/thread-self/ns/mnt") as home:
        assert libc.unshare(clone_newns) == 0
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            for place in ("/run/systemd", "/run/log", "/var/log"):
                Path(place).mkdir(exist_ok=True)
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
            yield
        finally:
            assert libc.setns(home.fileno(), clone_newns) == 0
            os.chdir(folder)


@pytest.fixture
def journald() -> Iterator[Journald]:
    with mounts_of_our_own():
        running = Journald()
        try:
            yield running
        finally:
            running.end()


class Wire:
    """A client whose UDP packets the gateway logs; `prefix` is the rule's."""

    def __init__(self, gateway: Host, client: Host) -> None:
        self.prefix = own_prefix()
        self.grammar = Grammar(Wanted((self.prefix,)))
        self.to = {4: gateway.ipv4, 6: gateway.ipv6}
        self.port = 1000
        gateway.nft(
            "table inet t { chain c { type filter hook prerouting priority mangle; policy accept;\n"
            f'meta l4proto udp log prefix "{self.prefix}: " drop\n}}; }}'
        )
        with client.inside():
            self.sockets = {4: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                            6: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)}  # fmt: skip

    def send(self, count: int = 1, family: int = 4) -> list[int]:
        """Packets to so many ports that none was sent to yet; which."""
        ports = list(range(self.port, self.port + count))
        self.port += count
        for port in ports:
            self.sockets[family].sendto(b"x", (self.to[family], port))
        return ports

    def close(self) -> None:
        for one in self.sockets.values():
            one.close()


@pytest.fixture
def wire(hosts: tuple[Host, Host]) -> Iterator[Wire]:
    with kernel_log():
        made = Wire(*hosts)
        yield made
        made.close()


class Reading:
    """A source, and what has been read from it; the port of the last packet that was sent ends a read."""

    def __init__(self, source: Journal) -> None:
        self.source = source
        self.packets: list[Packet] = []
        self.told: list[str] = []

    @property
    def ports(self) -> list[int]:
        return [packet.dport for packet in self.packets]

    def look(self) -> list[int]:
        """Read all there is, and let a second pass; the ports of all packets so far."""
        while self.source.read(time.time(), self.packets.append):
            pass
        self.told += self.source.settle()
        return self.ports

    def until_read(self, port: int) -> None:
        def there() -> bool:
            return port in self.look()

        until(there, f"the packet to {port}; so far {self.ports[-5:]}, {self.told}")


@contextmanager
def reading(wire: Wire, path: Path | None = None) -> Iterator[Reading]:
    source = Journal(wire.grammar, path)
    try:
        yield Reading(source)
    finally:
        source.close()


def in_the_journal(port: int, prefix: str) -> None:
    """Wait until journald has written what it was sent."""
    command = ("journalctl", "-q", "-o", "cat", "--grep", f"^{prefix}: .* DPT={port} ")
    until(lambda: not subprocess.run(command, capture_output=True).returncode, f"an entry of the packet to {port}")


@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_that_the_kernel_logged(journald: Journald, wire: Wire, family: int) -> None:
    with reading(wire) as log:
        before = time.time()
        (port,) = wire.send(family=family)
        log.until_read(port)
        (packet,) = log.packets
        assert (packet.proto, packet.dport, packet.flags) == (UDP, port, 0)
        assert packet.src == socket.inet_pton(
            *((socket.AF_INET, "10.99.0.2"), (socket.AF_INET6, "fd99::2"))[family > 4]
        )
        assert before - 0.2 < packet.time < time.time()
        assert log.source.name == "the journal"
        assert log.source.fileno() == -1


def test_t29_nothing_from_before_the_opening(journald: Journald, wire: Wire) -> None:
    """T29: neither what journald has written already, nor anything by way of files that are opened later."""
    ports = wire.send(5)
    in_the_journal(ports[-1], wire.prefix)
    with reading(wire) as log:
        journalctl("--rotate")
        (port,) = wire.send()
        log.until_read(port)
        assert log.ports == [port]


def test_t29_a_journal_without_any_record_yet(journald: Journald, wire: Wire) -> None:
    journalctl("--rotate")
    journalctl("--vacuum-size=1")
    with reading(wire) as log:
        assert not journalctl("_TRANSPORT=kernel", "SYSLOG_FACILITY=0")
        log.look()
        (port,) = wire.send()
        log.until_read(port)
        assert log.ports == [port]


def test_t29_a_backlog_is_as_old_as_it_is(journald: Journald, wire: Wire) -> None:
    """T29: journald is stopped while packets come; what it writes 2 s later is 2 s old, and what comes then is not."""
    with reading(wire) as log:
        log.until_read(wire.send()[0])
        journald.process.send_signal(signal.SIGSTOP)
        sent = time.time()
        ports = wire.send(3)
        done = time.time()
        time.sleep(2)
        journald.process.send_signal(signal.SIGCONT)
        log.until_read(ports[-1])
        assert all(sent - 0.3 < packet.time < done + 0.3 for packet in log.packets[1:])
        sent = time.time()
        (port,) = wire.send()
        done = time.time()
        log.until_read(port)
        assert sent - 0.3 < log.packets[-1].time < done + 0.3


def test_t29_t30_a_journald_that_reads_the_kernels_log_again(journald: Journald, wire: Wire) -> None:
    """T29, T30: it has lost its place, and says that it has missed some. What comes twice so is old the second time."""
    with reading(wire) as log:
        ports = wire.send(3)
        log.until_read(ports[-1])
        time.sleep(2)
        journald.end()
        oldest = oldest_in_kernel_log()
        Path("/run/systemd/journal/kernel-seqnum").write_bytes(struct.pack("=Q", oldest - 17))
        again = time.time()
        journald.process = journald._start()
        port = wire.send()[0]
        log.until_read(port)
        assert log.source.lost >= 17
        assert all(packet.time < again - 1 for packet in log.packets if packet.dport in ports)
        assert log.packets[-1].time > again - 0.5


def oldest_in_kernel_log() -> int:
    with open("/dev/kmsg", "rb", buffering=0) as log:
        return int(log.read(8192).split(b",")[1])


def vacuum(journald: Journald) -> None:
    journalctl("--rotate")
    journalctl("--vacuum-size=1")


def delete(pattern: str) -> None:
    for file in Path("/run/log/journal").rglob(pattern):
        file.unlink()


def lose_all(journald: Journald) -> None:
    delete("*.journal")
    journald.restart()


def flush(journald: Journald) -> None:
    """To a disk that was not there when the journal was opened."""
    Path("/var/log/journal").mkdir(exist_ok=True)
    journalctl("--flush")
    until(lambda: list(Path("/var/log/journal").rglob("system.journal")), "a journal on disk")


HAPPENINGS: dict[str, Callable[[Journald], object]] = {
    "rotation": lambda _: journalctl("--rotate"),
    "vacuum": vacuum,
    "restart": Journald.restart,
    "kill -9": Journald.crash,
    "old files deleted": lambda _: delete("*@*.journal"),
    "a restart without files": lose_all,
    "flush to disk": flush,
}
# What is not read when its file is deleted is gone, for everybody; so is the record that journald is just writing when
# it is killed, so the tests wait for its writing.
LOSING = ("vacuum", "old files deleted", "a restart without files")


@pytest.mark.parametrize("names", [*((name,) for name in HAPPENINGS), ("rotation", "kill -9", "vacuum", "restart")],
                         ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("looking", [pytest.param(True, id="looking meanwhile"), pytest.param(False, id="afterwards")])
def test_t28_neither_lost_nor_twice(journald: Journald, wire: Wire, names: tuple[str, ...], looking: bool) -> None:
    """T28: packets before, while and after something happens to the journal's files are each read once."""
    with reading(wire) as log:
        sent = wire.send(20)
        log.until_read(sent[-1])
        for name in names:
            sent += wire.send(20)
            if looking or name in LOSING:
                log.until_read(sent[-1])
            in_the_journal(sent[-1], wire.prefix)
            HAPPENINGS[name](journald)
            sent += wire.send(20)
            if looking:
                log.until_read(sent[-1])
        sent += wire.send(20)
        log.until_read(sent[-1])
        assert log.ports == sent


@pytest.mark.parametrize("stride", [1, 7])
def test_t28_opened_anew_at_each_place(journald: Journald, wire: Wire, stride: int) -> None:
    """T28: however often, and wherever in the journal it then stands."""
    with reading(wire) as log:
        sent = wire.send(60)
        in_the_journal(sent[-1], wire.prefix)
        (place,) = log.source._places
        done = False
        while not done:
            done = True
            for number, entry in enumerate(place.entries(time.monotonic() + 60), start=1):
                log.source._take(place, entry, log.packets.append)
                if number == stride:
                    done = False
                    place._cursor = place._reader._get_cursor()
                    break
            place.refresh(at_once=True)
        assert log.ports == sent


def test_nobody_looked_for_long(journald: Journald, wire: Wire) -> None:
    """The kernel may have dropped what it had to say of files; then they are looked at anew."""
    with reading(wire) as log:
        log.until_read(wire.send()[0])
        log.source._looked -= 3600
        place, reader = log.source._places[0], log.source._places[0]._reader
        log.until_read(wire.send()[0])
        assert place._reader is not reader


def test_a_read_ends_in_time(journald: Journald, wire: Wire) -> None:
    with reading(wire) as log:
        sent = []
        for _ in range(10):
            sent += wire.send(300)  # more at once than the kernel's log holds would be lost
            in_the_journal(sent[-1], wire.prefix)
        took, more = [], True
        while more:
            start = time.thread_time()
            more = log.source.read(time.time(), log.packets.append)
            took.append(time.thread_time() - start)
        assert log.ports == sent
        assert len(took) > 2
        assert sorted(took)[len(took) // 2] < 0.004


# ---- other journals


def machine_folder() -> Path:
    (folder,) = Path("/run/log/journal").iterdir()
    return folder


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("", "rotation"),
        ("", "kill -9"),
        (".", "rotation"),
        (".", "a restart without files"),
        ("system.journal", "rotation"),
        ("system.journal", "kill -9"),
        ("system.journal", "vacuum"),
    ],
)
def test_t28_a_journal_by_its_path(journald: Journald, wire: Wire, name: str, what: str) -> None:
    """T28: by its folder, by the folder of folders, by its file."""
    before = wire.send(3)
    in_the_journal(before[-1], wire.prefix)
    path = Path("/run/log/journal") if name == "" else machine_folder() / name
    with reading(wire, path) as log:
        sent = []
        for _ in range(3):
            sent += wire.send(20)
            if what in LOSING:
                log.until_read(sent[-1])
            in_the_journal(sent[-1], wire.prefix)
            HAPPENINGS[what](journald)
            sent += wire.send(20)
        log.until_read(sent[-1])
        assert log.ports == sent
        assert log.source.name == f"the journal {path}"


def test_t28_a_file_that_is_deleted_before_it_is_read(journald: Journald, wire: Wire) -> None:
    """T28: by its path a journal is one file after the other, and each is read to its end, however much that is."""
    with reading(wire, machine_folder() / "system.journal") as log:
        sent = []
        for _ in range(4):
            sent += wire.send(300)
            in_the_journal(sent[-1], wire.prefix)
        lose_all(journald)
        sent += wire.send(3)
        log.until_read(sent[-1])
        assert log.ports == sent


def test_t28_a_host_whose_journal_comes_late(journald: Journald, wire: Wire, tmp_path: Path) -> None:
    """T28: what one host's file tells later than another's, and a host that is new, are not passed over."""

    def taken(name: str) -> Path:
        """The journal as it is now."""
        return Path(shutil.copy(machine_folder() / "system.journal", tmp_path / name))

    def comes(copy: Path, host: str) -> None:
        """It is a host's from now on."""
        copy.rename(tmp_path / f"remote-{host}.journal")

    old = wire.send(3)
    in_the_journal(old[-1], wire.prefix)
    comes(taken("1"), "a")
    comes(taken("2"), "b")
    with reading(wire, tmp_path) as log:
        early = wire.send(3)
        in_the_journal(early[-1], wire.prefix)
        kept = taken("3")
        journalctl("--rotate")
        late = wire.send(3)
        in_the_journal(late[-1], wire.prefix)
        comes(taken("4"), "a")
        log.until_read(late[-1])
        comes(kept, "b")
        log.until_read(early[-1])
        assert log.ports == late + early
        comes(taken("5"), "c")
        until(lambda: log.look() == late + early + late, "the third host's")


BOOT_ID = "/proc/sys/kernel/random/boot_id"


def pretend_boot(folder: Path) -> None:
    """What starts from now on finds another boot's id; its journald reads the kernel's log from the beginning."""
    boot = folder / "boot_id"
    boot.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    subprocess.run(["mount", "--bind", str(boot), BOOT_ID], check=True)
    Path("/run/systemd/journal/kernel-seqnum").unlink()


def test_t29_the_files_of_another_boot_appear(journald: Journald, wire: Wire, tmp_path: Path) -> None:
    """T29: a disk with old journals is mounted after the opening, and there is no entry yet to stand behind."""
    old = wire.send(3)
    journald.end()
    pretend_boot(tmp_path)
    delete("*.journal")
    journald.process = journald._start()
    in_the_journal(old[-1], wire.prefix)
    journald.end()
    subprocess.run(["umount", BOOT_ID], check=True)
    kept = machine_folder() / "system.journal"
    shutil.move(kept, tmp_path / "kept")
    journald.process = journald._start()
    vacuum(journald)
    with reading(wire) as log:
        shutil.copy(tmp_path / "kept", kept.with_name("system@old.journal"))
        log.look()
        (port,) = wire.send()
        log.until_read(port)
        assert log.ports == [port]


def test_all_boots_of_a_journal(journald: Journald, wire: Wire, tmp_path: Path) -> None:
    """What is read offline; to have records, the second boot's journald reads the kernel's log anew."""
    began = time.time()
    first = wire.send(3)
    in_the_journal(first[-1], wire.prefix)
    journald.end()
    pretend_boot(tmp_path)
    time.sleep(1)
    journald.process = journald._start()
    second = wire.send(3)
    in_the_journal(second[-1], wire.prefix)
    for path in (None, machine_folder(), machine_folder() / "system.journal"):
        found = [packet for packet in entries(wire.grammar, path, None) if packet]
        assert [packet.dport for packet in found] == first + first + second
        assert all(packet.time < found[-1].time - 0.9 for packet in found[:3])
        assert all(began - 0.2 < packet.time < time.time() for packet in found)
    middle = time.time()
    third = wire.send(2)
    in_the_journal(third[-1], wire.prefix)
    assert [packet.dport for packet in entries(wire.grammar, None, middle) if packet] == third
    assert None in list(entries(Grammar(Wanted(("nobody's",))), None, None))


# ---- bad input


def refused(path: Path | None) -> SourceError:
    grammar = Grammar(Wanted())
    with pytest.raises(SourceError) as offline:
        list(entries(grammar, path, None))
    with pytest.raises(SourceError) as caught:
        Journal(grammar, path)
    if path is None or not path.is_dir():
        assert caught.value.message == offline.value.message
    assert caught.value.hint
    return caught.value


def test_a_host_without_a_journal() -> None:
    with mounts_of_our_own():
        error = refused(None)
        assert (error.message, error.exit_code) == (
            "this host has no journal in /run/log/journal or /var/log/journal", UNAVAILABLE,
        )  # fmt: skip
        Path("/run/log/journal").mkdir()
        assert refused(None).exit_code == UNAVAILABLE


def folder_of_junk(path: Path) -> None:
    path.mkdir()
    (path / "system.journal").write_bytes(bytes(100_000))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda _: None, "cannot be read: No such file or directory"),
    "an empty file": (Path.touch, "is no journal, or damaged: No data available"),
    "junk": (lambda path: path.write_bytes(os.urandom(100_000)), "is no journal, or damaged: Bad message"),
    "a pipe": (os.mkfifo, "cannot be read: File descriptor in bad state"),
    "an empty folder": (Path.mkdir, "holds no journal"),
    "a folder of junk": (
        folder_of_junk,
        "system.journal is no journal, or damaged: Bad message",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_journal(tmp_path: Path, what: str) -> None:
    make, words = BAD[what]
    path = tmp_path / "x.journal"
    make(path)
    error = refused(path)
    assert words in error.message
    assert str(path) in error.message
    assert error.exit_code == UNAVAILABLE


def owned_by_another(path: Path) -> None:
    os.chown(path, 12_345, 0)


def writable_by_a_group(path: Path) -> None:
    os.chown(path, 0, 12_345)
    path.chmod(0o770)


UNTRUSTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another user's": (owned_by_another, "belongs to another user (uid 12345)"),
    "everybody's": (lambda path: path.chmod(path.stat().st_mode | 0o002), "can be written by everybody"),
    "a group's": (writable_by_a_group, "can be written by its group (gid 12345)"),
}


@pytest.fixture
def kept(journald: Journald, wire: Wire, tmp_path: Path) -> Path:
    """A collector's folder, with the journal of one host."""
    (port,) = wire.send()
    in_the_journal(port, wire.prefix)
    folder = tmp_path / "remote"
    folder.mkdir()
    shutil.copy(machine_folder() / "system.journal", folder / "remote-a.journal")
    return folder


@pytest.mark.parametrize("what", UNTRUSTED)
@pytest.mark.parametrize("which", ["..", ".", "remote-a.journal", "remote-a@old.journal"])
def test_t31_a_journal_that_others_could_have_written(kept: Path, wire: Wire, which: str, what: str) -> None:
    """T31: at its opening, by whatever name: the folder, a file, a file of old, the way there; one is enough."""
    for name in ("remote-a@old.journal", "remote-b.journal"):
        shutil.copy(kept / "remote-a.journal", kept / name)
    change, words = UNTRUSTED[what]
    for path in (kept, kept / "remote-a.journal"):
        Journal(wire.grammar, path).close()
    change(kept / which)
    for path in (kept, kept / "remote-a.journal"):
        with pytest.raises(Untrusted) as caught:
            Journal(wire.grammar, path)
        assert words in caught.value.message
        assert caught.value.hint
    assert list(entries(wire.grammar, kept / "remote-a.journal", None)), "what opens nothing may read what it may read"


def test_t31_a_journal_that_comes_later(kept: Path, wire: Wire) -> None:
    """T31: told of, and not read; and read when it is nobody else's any more."""
    with reading(wire, kept) as log:
        comes = kept / "remote-b.journal"
        shutil.copy(kept / "remote-a.journal", kept / "b")
        owned_by_another(kept / "b")
        (kept / "b").rename(comes)
        assert log.look() == []
        assert log.told == [f"{comes}: belongs to another user (uid 12345)"]
        os.chown(comes, 0, 0)
        until(log.look, "what the journal holds")


def test_t31_a_journal_that_becomes_anothers(journald: Journald, wire: Wire) -> None:
    """T31: it is looked at anew once in a while; what is in it by then is read when it is nobody else's any more."""
    file = machine_folder() / "system.journal"
    with reading(wire, file) as log:
        log.until_read(wire.send()[0])
        owned_by_another(file)
        log.source._places[0]._opened -= 3600
        log.look()
        assert log.told == [f"{file}: belongs to another user (uid 12345)"]
        ports = wire.send(3)
        in_the_journal(ports[-1], wire.prefix)
        assert log.look()[1:] == []
        os.chown(file, 0, 0)
        until(lambda: log.look()[1:] == ports, "what came meanwhile")


NO_RIGHTS = """
import os, sys
from pathlib import Path
from systemd import journal
from logknock.errors import SourceError
from logknock.records import Grammar, Wanted
from logknock.sources.journal import Journal
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for path in (None, *map(Path, sys.argv[1:])):
    try:
        Journal(Grammar(Wanted()), path)
    except SourceError as error:
        print(error.exit_code, error.message, "|", error.hint)
"""


def test_without_rights(journald: Journald) -> None:
    file = Path("/var/log/system.journal")
    shutil.copy(machine_folder() / file.name, file)
    file.chmod(0o640)
    closed = Path("/run/log/journal/x")
    closed.mkdir(mode=0o700)
    paths = [str(path) for path in (closed.parent, closed, closed / file.name, file)]
    command = [sys.executable, "-c", NO_RIGHTS, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    told = done.stdout.splitlines()
    assert len(told) == 5, done.stdout
    assert all(line.startswith(f"{NO_PERMISSION} the journal") for line in told), done.stdout
    assert all("Permission denied | run as root, or as a member of the group systemd-journal or adm" in x for x in told)


def test_without_the_binding() -> None:
    code = "import sys; sys.modules['systemd'] = None\n" + NO_RIGHTS.replace("from systemd import journal\n", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    line = "the journal cannot be read: there is no python3-systemd"
    assert done.stdout.startswith(f"{UNAVAILABLE} {line} | install python3-systemd")


@pytest.mark.parametrize("where", [0x100, 0x8000, 300_000])
def test_a_journal_that_is_overwritten(journald: Journald, wire: Wire, where: int) -> None:
    """Nothing is raised and no packet is made up; when journald has begun a new file, packets come again."""
    with reading(wire) as log:
        sent = wire.send(5)
        log.until_read(sent[-1])
        overwrite(machine_folder() / "system.journal", where, os.urandom(500_000))
        wire.send(5)
        for _ in range(20):
            log.look()
        journalctl("--rotate")
        journald.restart()

        def again() -> bool:
            (port,) = wire.send()
            return port in log.look()

        until(again, "packets again")
        assert len(set(log.ports)) == len(log.ports)
        assert set(log.ports) <= set(range(1000, wire.port))


def test_a_file_that_was_unreadable_for_a_moment(journald: Journald, wire: Wire) -> None:
    """libsystemd gives up a file at which it stumbles, and says nothing; it is opened anew within a second."""
    file = machine_folder() / "system.journal"
    with reading(wire, file) as log:
        log.source._places[0]._opened = time.monotonic()
        log.until_read(wire.send()[0])
        sent = wire.send(5)
        in_the_journal(sent[-1], wire.prefix)
        journald.process.send_signal(signal.SIGSTOP)
        try:
            content = file.read_bytes()
            overwrite(file, 0x1000, os.urandom(len(content) - 0x1000))
            log.source.read(time.time(), log.packets.append)
            overwrite(file, 0, content)
        finally:
            journald.process.send_signal(signal.SIGCONT)
        sent += wire.send()
        log.until_read(sent[-1])
        assert log.ports[1:] == sent


def overwrite(file: Path, where: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(where)
        opened.write(data)


def test_the_same_trouble_is_told_once_a_minute(journald: Journald, wire: Wire) -> None:
    with reading(wire) as log:
        for _ in range(3):
            log.source._trouble("one thing")
        log.source._trouble("another")
        assert log.source.settle() == ("one thing (3 times)", "another")
        log.source._trouble("one thing")
        assert log.source.settle() == ()


def test_a_journal_that_is_gone_comes_back(journald: Journald, wire: Wire) -> None:
    with reading(wire) as log:
        log.until_read(wire.send()[0])
        journald.end()
        delete("*.journal")
        machine_folder().rmdir()
        log.look()
        assert log.source.settle() == ()
        assert log.told == ["this host has no journal in /run/log/journal or /var/log/journal"]
        journald.process = journald._start()
        log.until_read(wire.send()[0])
