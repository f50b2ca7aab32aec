"""The programs that are compared, each behind the same firewall in a namespace of its own.

Rule 1: what runs is the real thing, `logknock run` with its own ruleset and Debian's knockd, configured as their
documentation says. Rule 2: all are started, watched and ended in the same way, on the same processor. Rule 3: what
the kernel knows about a process is read from /proc, what only the program knows from its own words.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b32encode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from logknock import netlink
from logknock.firewall.sets import FAMILIES, key
from logknock.knock import Sequence, Service, SetName
from logknock.packet import TCP

from ..netns import Host
from ..peers import UNPACKED
from .sender import inside

KNOCKS = (7000, 8000, 9000)
TIMEOUT = 60  # seconds that a door stays open: longer than any measurement looks at it
GROUP = 5
_SSH = Service(TCP, 22)

# Neither program is asked to be quick about ending, but nothing here may hang.
_START_LIMIT = 30
_STOP_LIMIT = 5
_POLL = 0.0005

# linux/netfilter/nf_tables.h
_GETSETELEM = 10 << 8 | 13
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _DATA_VALUE = 1, 1

# linux/netfilter/nf_tables.h, nfnetlink.h and netlink.h
_NEWRULE = 10 << 8 | 6
_RULES_GROUP = 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1

# Where single packets go, and the host's name in what its clients derive.
SPA_PORT = 62_201
HOST = "bench.example"

# So that the kernel says how many records there were, and which knocks of the honest came so far.
_COUNTING = """
table inet bench {
	set arrived { type ipv4_addr . inet_service; flags dynamic; size 65535; }
	chain count {
		type filter hook prerouting priority mangle - 1; policy accept;
		ip saddr 203.0.113.0/24 add @arrived { ip saddr . th dport }
	}
}
insert rule inet logknock tell counter
"""

_T = TypeVar("_T")

# The traffic's side and the daemon's side share nothing but memory, where there are two processors.
_PROCESSORS = sorted(os.sched_getaffinity(0))
SENDER_CPU, DAEMON_CPU = _PROCESSORS[0], _PROCESSORS[-1]

# The host's own firewall. It drops what it does not know, so that no reset answers a spoofed packet.
_FILTER = """
table inet filter {
	set allowed { type ipv4_addr; size 65535; flags timeout; }
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "lo" accept
		%s
	}
}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program, ready to be started on a host: what it says when it listens, and the set it opens doors in.

    runtime: where its control socket is; None where it has none.
    """

    name: str
    host: Host
    argv: tuple[str, ...]
    log: Path
    ready: str
    set: SetName
    service: Service | None
    runtime: Path | None = None

    def recorded(self) -> int:
        """How many packets the kernel has made a record of, by its own count; 0 where the rules are others'."""
        rules = (entry["rule"] for entry in self._listed("chain", "logknock", "tell") if "rule" in entry)
        expressions = (one for rule in rules for one in rule["expr"] if "counter" in one)
        return sum(int(one["counter"]["packets"]) for one in expressions)

    def arrived_of(self, source: str) -> int:
        """How many ports of the gateway an honest knocker has reached, as its kernel says; 0 where nobody counts."""
        sets = (entry["set"] for entry in self._listed("set", "bench", "arrived") if "set" in entry)
        return sum(element["concat"][0] == source for each in sets for element in each.get("elem", []))

    @property
    def has_read_all(self) -> bool:
        """Whether nothing waits at a netfilter socket of the host (column 5 of the kernel's list; family 12)."""
        rows = [line.split() for line in self.host.run("cat", "/proc/net/netlink").stdout.splitlines()[1:]]
        return not any(row[1] == "12" and int(row[4]) for row in rows)

    def _listed(self, *words: str) -> list[dict[str, Any]]:
        kind, *names = words
        done = self.host.run("nft", "-j", "list", kind, "inet", *names, check=False)
        return list(json.loads(done.stdout)["nftables"]) if not done.returncode else []


Make = Callable[[Host, Path], Peer]


def logknock(host: Host, directory: Path, doors: int = 1, log: str = f"group = {GROUP}", proto: str = "tcp") -> Peer:
    """logknock with its own rules. The first door is everybody's; the others are there to be many.

    log: the lines of its table [log].
    """
    sequences = (", ".join(f'"{port}/{proto}"' for port in sequence(number)) for number in range(doors))
    return _logknock(host, directory, log, *(f"sequence = [{services}]" for services in sequences))


def logknock_onetime(host: Host, directory: Path, file: Path, state: Path) -> Peer:
    """logknock with a one-time door (`door0`) for this file, and a state directory that begins as a copy of `state`."""
    shutil.copytree(state, directory / "state")
    os.sync()  # so that what it syncs itself does not wait for this
    return _logknock(host, directory, f"group = {GROUP}", f'onetime = ["{file}"]')


def logknock_fixed(host: Host, directory: Path, services: Sequence) -> Peer:
    """logknock with one door (`door0`) for this sequence."""
    words = ", ".join(f'"{service}"' for service in services)
    return _logknock(host, directory, f"group = {GROUP}", f"sequence = [{words}]")


def logknock_totp(host: Host, directory: Path, clients: int) -> Peer:
    """logknock with a TOTP door (`door0`) for so many clients."""
    secrets = "".join(f'c{number}.secret = "{_base32(totp_secret(number))}"\n' for number in range(clients))
    more = f'[totp]\nhost = "{HOST}"\n[clients.door0]\n{secrets}'
    return _logknock(host, directory, f"group = {GROUP}", "totp = {}", more=more)


def totp_secret(client: int) -> bytes:
    """The secret of the TOTP door's client of this number."""
    return hashlib.sha256(b"totp %d" % client).digest()


def logknock_spa(host: Host, directory: Path, clients: int = 1) -> Peer:
    """logknock with an SPA door (`door0`) for so many clients, the first of whom is everybody's."""
    stanzas = (
        f'c{number} = {{key_base64 = "{_base64(key)}", hmac_key_base64 = "{_base64(hmac_key)}", allow = ["22/tcp"]}}\n'
        for number, (key, hmac_key) in enumerate(map(spa_keys, range(clients)))
    )
    return _logknock(host, directory, f"group = {GROUP}", "spa = {}", more=f"[clients.door0]\n{''.join(stanzas)}")


def spa_keys(client: int) -> tuple[bytes, bytes]:
    """The keys of the SPA door's client of this number: of the encryption and of the HMAC."""
    return hashlib.sha256(b"spa %d" % client).digest(), hashlib.sha512(b"hmac %d" % client).digest()


def _base32(data: bytes) -> str:
    return b32encode(data).decode().rstrip("=")


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _logknock(host: Host, directory: Path, log: str, *knocked: str, more: str = "") -> Peer:
    """A door for each of these, that say how it is knocked at; more: other tables."""
    config = directory / "logknock.toml"
    text = [f'[log]\n{log}\n[paths]\nstate = "{directory}/state"\nruntime = "{directory}/run"\n{more}']
    for number, knocks in enumerate(knocked):
        text.append(f'[doors.door{number}]\n{knocks}\nopens = ["22/tcp"]\ntimeout = "{TIMEOUT}s"\n')
    config.touch(0o600)
    config.write_text("".join(text))
    host.nft(_FILTER % "tcp dport 22 accept")
    host.logknock("rules", "apply", "-c", str(config))
    host.nft(_COUNTING)
    argv = (sys.executable, "-m", "logknock", "run", "-c", str(config))
    granted = SetName("inet", "logknock", "granted4")
    return Peer("logknock", host, argv, directory / "log", " ready: ", granted, _SSH, directory / "run")


def knockd(host: Host, directory: Path, proto: str = "tcp") -> Peer:
    """knockd with a command as light as there is one: nft adds an element, the kernel's timeout closes the door."""
    return _knockd(host, directory, f"sequence = {','.join(f'{port}:{proto}' for port in KNOCKS)}")


def knockd_onetime(host: Host, directory: Path, file: Path) -> Peer:
    """knockd with a one-time door and a copy of this file: it writes into it."""
    shutil.copyfile(file, directory / "sequences")
    os.sync()  # so that what others sync later does not wait for this
    return _knockd(host, directory, f"one_time_sequences = {directory}/sequences")


def _knockd(host: Host, directory: Path, knocked: str) -> Peer:
    config, log = directory / "knockd.conf", directory / "log"
    config.write_text(
        f"[options]\n\tlogfile = {log}\n[ssh]\n\t{knocked}\n\tseq_timeout = 15\n"
        f"\ttcpflags = syn\n"
        f"\tcommand = /usr/sbin/nft add element inet filter allowed {{ %IP% timeout {TIMEOUT}s }}\n"
    )
    host.nft(_FILTER % "ip saddr @allowed tcp dport 22 accept")
    argv = ("/usr/sbin/knockd", "-i", "eth0", "-c", str(config))
    return Peer("knockd", host, argv, log, "starting up", SetName("inet", "filter", "allowed"), None)


def fwknopd(host: Host, directory: Path) -> Peer:
    """fwknopd as it comes, over iptables, for the client that logknock_spa has.

    iptables is the one over nf_tables, whose rules the kernel tells of when they are made.
    """
    key, hmac_key = map(_base64, spa_keys(0))
    iptables = "/usr/sbin/iptables-nft"
    for rule in ("-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-P INPUT DROP"):
        host.run(iptables, *rule.split())
    config, access, log = directory / "fwknopd.conf", directory / "access.conf", directory / "log"
    config.write_text(f"PCAP_INTF eth0;\nFIREWALL_EXE {iptables};\n")
    access.write_text(
        f"SOURCE ANY\nOPEN_PORTS tcp/22\nREQUIRE_SOURCE_ADDRESS Y\nFW_ACCESS_TIMEOUT {TIMEOUT}\n"
        f"KEY_BASE64 {key}\nHMAC_KEY_BASE64 {hmac_key}\n"
    )
    for file in (config, access):
        file.chmod(0o600)
    (directory / "run").mkdir()
    argv = (f"{UNPACKED}/usr/sbin/fwknopd", "-f", "-c", str(config), "-a", str(access), "-r", f"{directory}/run")
    unused = SetName("ip", "filter", "FWKNOP_INPUT")
    return Peer("fwknopd", host, argv, log, "Starting fwknopd main event loop", unused, None)


def bare(host: Host, directory: Path) -> Peer:
    """Logknock's rules, and a reader that receives their records and looks at none of them."""
    ruled = logknock(host, directory)
    argv = (sys.executable, "-m", "tests.bench.bare", str(GROUP))
    return Peer("bare reader", host, argv, ruled.log, "ready", ruled.set, None)


def sequence(door: int) -> tuple[int, ...]:
    """The ports of the door of this number, of 0 to 999; no two doors share one."""
    return KNOCKS if door == 0 else tuple(10_000 + 10_000 * stage + door for stage in range(len(KNOCKS)))


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that runs, `started` at that time.monotonic().

    `ready_after` is the time from its start until it said that it is ready, in seconds.
    """

    peer: Peer
    process: subprocess.Popen[str]
    started: float
    ready_after: float

    def times(self) -> tuple[float, float]:
        """Seconds of processor time used so far, in the program and in the kernel for it, and of waiting for it.

        The first is the sum of `utime` and `stime` in /proc/PID/stat, which comes in hundredths of a second only.
        """
        ran, waited, _ = Path(f"/proc/{self.process.pid}/schedstat").read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9

    def cpu(self) -> float:
        """Seconds of processor time used so far."""
        return self.times()[0]

    def kept(self, since: tuple[float, float]) -> float:
        """Percent of the time since those `times` in which it could have run and something else had its processor."""
        ran, waited = (now - then for now, then in zip(self.times(), since, strict=True))
        return waited / (ran + waited) * 100

    def memory(self, what: str) -> float:
        """MiB of VmRSS or VmHWM (proc(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{what}:")[2].split()[0]) / 1024

    def packets(self) -> tuple[int, int]:
        """How many packets the program has read, and how many it knows to be lost on the way to it."""
        if self.peer.name == "knockd":  # it logs a line for each first knock, and learns nothing of losses
            return self.peer.log.read_text(errors="replace").count(": Stage 1"), 0
        seen = len(self.peer.log.read_text())
        self.process.send_signal(signal.SIGUSR1)
        said = _until(lambda: re.search(r"(\d+) records, (\d+) lost", self.peer.log.read_text()[seen:]), self.process)
        return int(said[1]), int(said[2])

    def settle(self, seconds: float) -> None:
        """Return when the program has used next to no processor time for a tenth of a second, or after `seconds`."""
        end = time.monotonic() + seconds
        before = self.cpu()
        while time.monotonic() < end:
            time.sleep(0.1)
            now = self.cpu()
            if now - before < 0.02:
                return
            before = now


@contextmanager
def running(peer: Peer) -> Iterator[Running]:
    """Start the peer, wait until it listens, and end it."""
    peer.log.touch()
    seen = peer.log.stat().st_size
    with peer.log.open("a") as log:
        start = time.monotonic()
        process = peer.host.start(*peer.argv, stdout=subprocess.DEVNULL, stderr=log, preexec_fn=_pin)
    try:
        _until(lambda: peer.ready in _tail(peer.log, seen), process)
        yield Running(peer, process, start, time.monotonic() - start)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pin() -> None:
    os.sched_setaffinity(0, {DAEMON_CPU})


def _tail(log: Path, seen: int) -> str:
    with log.open("rb") as file:
        file.seek(seen)
        return file.read().decode(errors="replace")


class DoorSet:
    """Looks whether a peer has opened its door, in the kernel's set itself: a few microseconds a look."""

    def __init__(self, peer: Peer) -> None:
        self._set = peer.set
        self._service = peer.service
        with inside(peer.host):
            self._socket = netlink.Socket(netlink.NETLINK_NETFILTER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, source: bytes) -> bytes:
        """The question whether the set holds this source, ready to be asked many times."""
        element = netlink.nested(_ELEM_KEY, netlink.attribute(_DATA_VALUE, key(source, self._service)))
        return netlink.netfilter_message(
            _GETSETELEM, 0, 0, FAMILIES[self._set.family], 0,
            netlink.attribute(_LIST_TABLE, self._set.table.encode() + b"\0"),
            netlink.attribute(_LIST_SET, self._set.name.encode() + b"\0"),
            netlink.nested(_LIST_ELEMENTS, netlink.nested(_LIST_ELEM, element)),
        )  # fmt: skip

    def holds(self, request: bytes) -> bool:
        """Ask it. The kernel answers with the element, or with an error where there is none."""
        self._socket.raw.send(request)
        kind: int = netlink.HEADER.unpack_from(self._socket.raw.recv(4096))[1]
        return kind != netlink.NLMSG_ERROR


class RuleWatch:
    """Hears of the rules that are made on a host, as the kernel tells of them when it takes them (nf_tables)."""

    def __init__(self, host: Host) -> None:
        with inside(host):
            self._socket = netlink.Socket(netlink.NETLINK_NETFILTER)
        self._socket.raw.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _RULES_GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait(self, source: bytes, seconds: float) -> bool:
        """Wait until a rule with this address is made; whether one was, within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                data = self._socket.raw.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            messages = netlink.messages(memoryview(data))
            if any(message.kind == _NEWRULE and source in bytes(message.body) for message in messages):
                return True
        return False


def _until(done: Callable[[], _T | None], process: subprocess.Popen[str]) -> _T:
    """Wait for something true, as long as the process lives and the limit lasts."""
    end = time.monotonic() + _START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        if found := done():
            return found
        time.sleep(_POLL)
    raise AssertionError(f"{process.args!r}: no sign of life (exit {process.returncode})")
