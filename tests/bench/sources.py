"""The firewall's log by way of other programs: how many lines a second can be read, and how soon a door opens.

Rule 1: what is read is what the sources of `logknock run` read, from files and journals as other programs write them.
Rule 2: fail2ban-regex reads the same files in the same run, with an expression that takes the same out of a line.
"""

import gc
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from logknock.packet import Packet
from logknock.records import Grammar, Wanted
from logknock.sources.journal import entries
from logknock.sources.logfile import LogFile

from .. import peers
from ..netns import Host, pair
from .field import RANDOM, Plan, field
from .figures import Figure, percentile
from .peers import DoorSet, Peer, Running, logknock, running

_PARSE = "processor time a line, beside fail2ban-regex"
_TARGET_US = 4.0  # 250,000 lines a second
_TARGET_TIMES = 3.0  # faster than fail2ban-regex

_KERNEL = (
    "logknock: IN=eth0 OUT= MAC=d6:af:d0:9f:de:3d:c6:a7:e5:6f:86:6a:08:00 SRC={src} DST=10.99.0.1 LEN=60 TOS=0x00 "
    "PREC=0x00 TTL=64 ID={id} DF PROTO=TCP SPT={sport} DPT={dport} WINDOW=64240 RES=0x00 SYN URGP=0 "
)
_LOGEMU = _KERNEL.replace("TOS=0x00", "TOS=00").replace("WINDOW=64240 RES=0x00", "SEQ=12345 ACK=0 WINDOW=64240")
_JSON = (
    '{{"timestamp": "{iso}.{micros:06}+0000", "dvc": "Netfilter", "raw.pktlen": 60, "raw.pktcount": 1, '
    '"oob.prefix": "logknock: ", "oob.time.sec": {seconds}, "oob.time.usec": {micros}, "oob.mark": 0, '
    '"oob.ifindex_in": 2, "oob.hook": 0, "raw.mac_len": 14, "oob.family": 2, "oob.protocol": 2048, "raw.label": 0, '
    '"raw.type": 1, "raw.mac.addrlen": 6, "ip.protocol": 6, "ip.tos": 0, "ip.ttl": 64, "ip.totlen": 60, "ip.ihl": 5, '
    '"ip.csum": 29558, "ip.id": {id}, "ip.fragoff": 16384, "src_port": {sport}, "dest_port": {dport}, '
    '"tcp.seq": 12345, "tcp.ackseq": 0, "tcp.window": 64240, "tcp.offset": 0, "tcp.reserved": 0, "tcp.urg": 0, '
    '"tcp.ack": 0, "tcp.psh": 0, "tcp.rst": 0, "tcp.syn": 1, "tcp.fin": 0, "tcp.res1": 0, "tcp.res2": 0, '
    '"tcp.csum": 5367, "oob.in": "eth0", "oob.out": "", "src_ip": "{src}", "dest_ip": "10.99.0.1", '
    '"mac.saddr.str": "c6:a7:e5:6f:86:6a", "mac.daddr.str": "d6:af:d0:9f:de:3d", '
    '"mac.str": "d6:af:d0:9f:de:3d:c6:a7:e5:6f:86:6a:08:00"}}'
)

_FAILREGEX = r"IN=\S+ OUT= .*SRC=<HOST> DST=\S+ .*PROTO=(?:TCP|UDP) SPT=\d+ DPT=\d+ "

# What a line looks like, and the expression that fail2ban gets for it.
_FORMATS = {
    "rsyslog": ("{head} host kernel: " + _KERNEL, r"kernel: (?:\[[ \d.]+\] )?logknock: " + _FAILREGEX),
    "rsyslog, ISO": ("{iso}.{micros:06}+00:00 host kernel: " + _KERNEL, "kernel: logknock: " + _FAILREGEX),
    "ulogd2, LOGEMU": ("{head} host " + _LOGEMU, "logknock: " + _FAILREGEX),
    "ulogd2, JSON": (
        _JSON,
        r'"oob\.prefix": "logknock: ".*"ip\.protocol": (?:6|17),.*"src_port": \d+, "dest_port": \d+,.*'
        r'"oob\.in": "[^"]+", "oob\.out": "".*"src_ip": "<HOST>"',
    ),
}

_JOURNAL_RATE = 5_000  # packets a second: the kernel's log loses none
_WRITTEN = 60.0  # seconds within which journald must have written them

# fail2ban-regex takes its time: it has fewer turns. What it takes for a few lines is its start.
_THEIR_TURNS = 2
_LINES = 40_000
_FEW = 1000

# ---- how many lines a second


def reading(plan: Plan) -> Iterator[Figure]:
    """Processor time a line, from reading it to the packet, and the same of fail2ban-regex."""
    with TemporaryDirectory() as directory:
        for name, (line, failregex) in _FORMATS.items():
            file = Path(directory) / "log"
            _write(file, line, _LINES)
            small = Path(directory) / "small"
            _write(small, line, _FEW)
            ours, theirs = [], []
            for turn in range(plan.repeats):
                ours.append(_our_time(file, _LINES))
                if turn < _THEIR_TURNS:
                    theirs.append(_their_time(file, _LINES, small, failregex))
            yield _line_figure(name, ours, theirs)
    yield _line_figure("the journal", _journal_times(plan), [])


def _line_figure(name: str, ours: list[float], theirs: list[float]) -> Figure:
    met = median(ours) <= _TARGET_US
    target = f"at most {_TARGET_US:.0f} us"
    if theirs:
        target += f", {_TARGET_TIMES:.0f} times less"
        met = met and median(theirs) >= _TARGET_TIMES * median(ours)
    return Figure(_PARSE, name, "us", tuple(ours), tuple(theirs), target, met)


def _write(file: Path, line: str, count: int) -> None:
    """So many lines of the last minutes, from many sources to many ports."""
    now = int(time.time()) - count // 1000
    with file.open("w") as out:
        for number in range(count):
            second = now + number // 1000
            local = time.localtime(second)
            out.write(
                line.format(
                    head=time.strftime("%b %e %H:%M:%S", local),
                    iso=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)),
                    seconds=second,
                    micros=number % 1000 * 1000,
                    src=f"198.51.{number >> 8 & 255}.{number & 255}",
                    id=number & 65535,
                    sport=20_000 + number % 40_000,
                    dport=1 + RANDOM.randrange(65_535),
                )
                + "\n"
            )


def _our_time(file: Path, count: int) -> float:
    """Microseconds of processor time a line, read as it is read when it is appended to a log."""
    log = file.with_name("appended")
    log.write_bytes(b"")
    source = LogFile(log, Grammar(Wanted()))
    try:
        log.write_bytes(file.read_bytes())
        found: list[Packet] = []
        with _collecting():
            start = time.process_time()
            while source.records < count:
                source.read(time.time(), found.append)
            used = time.process_time() - start
        assert len(found) == count, f"{len(found)} of {count} lines are packets"
    finally:
        source.close()
        log.unlink()
    return used / count * 1e6


@contextmanager
def _collecting() -> Iterator[None]:
    """With the collector at work, as in any program."""
    gc.enable()
    try:
        yield
    finally:
        gc.disable()


def _their_time(file: Path, count: int, small: Path, failregex: str) -> float:
    """The same of fail2ban-regex: the difference between two files, so that its start is no part of it."""
    more, less = (_fail2ban(one, failregex, lines) for one, lines in ((file, count), (small, _FEW)))
    return (more - less) / (count - _FEW) * 1e6


def _fail2ban(file: Path, failregex: str, count: int) -> float:
    """Seconds of processor time."""
    command = [f"{peers.UNPACKED}/usr/bin/fail2ban-regex", "-c", f"{peers.UNPACKED}/etc/fail2ban", str(file), failregex]
    environment = os.environ | {"PYTHONPATH": f"{peers.UNPACKED}/usr/lib/python3/dist-packages"}
    before = os.times()
    done = subprocess.run(["/usr/bin/python3", *command], env=environment, capture_output=True, text=True, check=True)
    after = os.times()
    assert f"{count} matched" in done.stdout, done.stdout[-2000:]
    return after.children_user + after.children_system - before.children_user - before.children_system


def _journal_times(plan: Plan) -> list[float]:
    """Of a journal that journald has just written: a record for each of so many packets."""
    word = peers.own_prefix()
    count = _LINES // 2
    with (
        TemporaryDirectory() as directory, pair() as (gateway, client), peers.kernel_log(),
        peers.journald(gateway, Path(directory)) as inside,
    ):  # fmt: skip
        gateway.nft(
            "table inet bench { chain early { type filter hook prerouting priority 0; "
            f'udp dport 7000 log prefix "{word}: " level info drop; }}\n}}\n'
        )
        with client.inside():
            _datagrams(gateway, count)
        journals = Path(f"/proc/{inside.journald}/root/run/log/journal")
        read = partial(_count_packets, next(journals.iterdir()), word)
        end = time.monotonic() + _WRITTEN
        while read()[0] < count and time.monotonic() < end:
            time.sleep(0.5)
        times = []
        for _ in range(plan.repeats):
            packets, records, used = read()
            assert packets == count, f"{packets} of {count} packets are in the journal"
            times.append(used / records * 1e6)
        return times


def _datagrams(gateway: Host, count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        start = time.monotonic()
        for number in range(count):
            sender.sendto(b"x", (gateway.ipv4, 7000))
            if (ahead := number / _JOURNAL_RATE - (time.monotonic() - start)) > 0.01:
                time.sleep(ahead)


def _count_packets(folder: Path, word: str) -> tuple[int, int, float]:
    """How many of a journal's records are packets, how many there are, and the seconds of processor time it took."""
    with _collecting():
        start = time.process_time()
        packets = records = 0
        for packet in entries(Grammar(Wanted((word,))), folder, None):
            records += 1
            packets += packet is not None
        return packets, records, time.process_time() - start


# ---- how soon a door opens


def latency(plan: Plan) -> Iterator[Figure]:
    """How long after its last knock a knocker's door is open, by each way that a record can take."""
    for name, way in _WAYS.items():
        with ExitStack() as stack:
            on = stack.enter_context(field(partial(way, stack)))
            program = stack.enter_context(running(on.peer))
            door = stack.enter_context(DoorSet(on.peer))
            idle = _idle(program, plan.idle_seconds)
            times = [on.opening(door, bytes((198, 51, 100, number + 1))) for number in range(plan.openings // 2)]
        p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
        section = f"knock to open, by {name}"
        if name == "the journal":
            yield Figure(section, "p50", "ms", (p50,), (), "below 15 ms", p50 < 15)
        else:
            yield Figure(section, "p50", "ms", (p50,))
        yield Figure(section, "p99", "ms", (p99,))
        if name == "the journal":
            yield Figure(section, "of a processor when idle", "%", (idle,), (), "about 1 %", idle < 1.5)
        else:
            yield Figure(section, "of a processor when idle", "%", (idle,))


def _idle(program: Running, seconds: float) -> float:
    """Percent of a processor that all its threads use when nobody knocks."""
    before = _all_threads(program)
    time.sleep(seconds)
    return (_all_threads(program) - before) / seconds * 100


def _all_threads(program: Running) -> float:
    threads = Path(f"/proc/{program.process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _by_nflog(stack: ExitStack, host: Host, folder: Path) -> Peer:
    return logknock(host, folder)


def _by_journal(stack: ExitStack, host: Host, folder: Path) -> Peer:
    stack.enter_context(peers.kernel_log())
    inside = stack.enter_context(peers.journald(host, folder))
    return logknock(inside, folder, log=f'source = "journal"\nprefix = "{peers.own_prefix()}"')


def _by_rsyslog(stack: ExitStack, host: Host, folder: Path) -> Peer:
    stack.enter_context(peers.kernel_log())
    word = peers.own_prefix()
    file = stack.enter_context(peers.rsyslog(folder, word)).traditional
    return logknock(host, folder, log=f'source = "file"\nprefix = "{word}"\nfile.path = "{file}"')


def _by_ulogd(stack: ExitStack, host: Host, folder: Path) -> Peer:
    group = 17
    file = stack.enter_context(peers.ulogd(host, folder, group, "JSON")).file
    made = logknock(host, folder, log=f'source = "file"\nfile.path = "{file}"')
    host.nft(f'flush chain inet logknock tell\nadd rule inet logknock tell log prefix "logknock: " group {group}\n')
    return made


_WAYS: dict[str, Callable[[ExitStack, Host, Path], Peer]] = {
    "NFLOG": _by_nflog,
    "the journal": _by_journal,
    "rsyslog's file": _by_rsyslog,
    "ulogd2's JSON": _by_ulogd,
}
