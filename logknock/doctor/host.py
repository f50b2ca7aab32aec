"""What the host says of itself: /proc, its rules, its journal's settings. Nothing here judges what it finds.

Rule 1: nothing is changed, loaded, bound or locked: it reads files, lists rules, and starts programs that print rules.
Rule 2: what is not there is None or empty; what may not be seen is a LogknockError with NO_PERMISSION.
Rule 3: what takes a format apart is a pure function, here, beside what reads it.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..clock import is_synchronised
from ..errors import NO_PERMISSION, FirewallError, LogknockError
from ..firewall import iptables, ruleset
from ..knock import Service
from ..packet import TCP, UDP
from .rules import LEGACY, Listing, elements_of, from_nft, from_save

CAP_NET_ADMIN = 12  # linux/capability.h

_LIMIT = 10.0  # seconds for a program that prints something short

# Network namespaces that are asked for the switch of the first one; a host of many containers has it at its first
# process, and elsewhere few are to be seen.
_MAX_NAMESPACES = 32

_SSH_DAEMONS = ("sshd", "dropbear")

_LAST_PORT = 65_535

# sshd_config(5): keywords in any letters, a blank or = behind them; an address is alone, or with a port.
_SSHD_PORT = re.compile(
    r'^[ \t]*(?:port[ \t=]+"?|listenaddress[ \t=]+"?(?:\[[^\]\n]*\]|[^:\s\[]+):)(\d{1,5})\b',
    re.MULTILINE | re.IGNORECASE,
)

_COMM = 15  # letters of a process's name that the kernel keeps (TASK_COMM_LEN)

_JOURNALD = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")  # the first has precedence


class Process(NamedTuple):
    """A process, as far as it can be seen: 0 and "" where it cannot."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name or 'a process'} (process {self.pid})" if self.pid else "a process that cannot be seen"


class Socket(NamedTuple):
    """Something that waits for packets: where, and as which inode."""

    service: Service
    local: bool  # on a loopback address only: nobody else reaches it
    inode: int


class Interface(NamedTuple):
    """A network interface with its own rp_filter (0 no, 1 strict, 2 loose), and whether a default route uses it."""

    name: str
    rp_filter: int
    default_route: bool


class Host:
    """The host. Each thing is read when it is first asked for, and once; `root` is where the files are."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, path: str) -> Path:
        """A path of the host's, to ask the file system about."""
        return self._root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """What a file of the host says; None where it is not there."""
        try:
            return self.path(path).read_text("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise _forbidden(path) from None
        except OSError:  # /proc refuses some files in ways of its own
            return None

    def number(self, path: str) -> int | None:
        """The number that a file holds."""
        found = (self.text(path) or "").strip()
        return int(found) if re.fullmatch(r"-?\d+", found) else None

    # ---- the process and the kernel

    @cached_property
    def capabilities(self) -> int:
        """What this process may do, a bit each."""
        return int((self.text("/proc/self/status") or "").partition("CapEff:")[2].split()[0], 16)

    @property
    def administers(self) -> bool:
        """Whether this process may ask about the network's filters at all."""
        return bool(self.capabilities >> CAP_NET_ADMIN & 1)

    def need_administrator(self) -> None:
        """Raise the one error that says what is missing to look at rules, sets and groups."""
        if not self.administers:
            text = "this user has no CAP_NET_ADMIN: rules, sets and groups cannot be seen"
            raise LogknockError(text, "run the doctor as root", NO_PERMISSION)

    @cached_property
    def loggers(self) -> dict[int, frozenset[str]]:
        """By protocol family (2: IPv4, 10: IPv6), who can log packets."""
        return parse_loggers(self.text("/proc/net/netfilter/nf_log") or "")

    def module_there(self, *names: str) -> bool:
        """Whether one of these can be loaded into the running kernel."""
        folder = f"/lib/modules/{os.uname().release}"
        listed = (self.text(f"{folder}/{name}") or "" for name in ("modules.dep", "modules.builtin"))
        return any(f"/{name}.ko" in text for text in listed for name in names)

    @cached_property
    def synchronised(self) -> bool | None:
        """Whether something keeps the clock right, as the kernel has been told; None where it may not be asked."""
        return is_synchronised()

    # ---- namespaces

    @cached_property
    def first_namespace(self) -> bool | None:
        """Whether this is the network namespace that the kernel began with; None where nothing tells."""
        if self.path("/proc/sys/net/netfilter/nf_log_all_netns").exists():
            return True  # the one switch that the others have not
        return False if self.path("/proc/sys/net/netfilter/nf_log").exists() else None

    @cached_property
    def others_log(self) -> bool | None:
        """Whether the kernel's log has other namespaces' records too; None where that cannot be seen from here."""
        switch = "/proc/sys/net/netfilter/nf_log_all_netns"
        if self.first_namespace:
            return self.number(switch) == 1
        seen = {_namespace("self")}
        pids = sorted(int(path.name) for path in Path("/proc").glob("[0-9]*"))
        for pid in pids:
            name = _namespace(str(pid))
            if name in seen or len(seen) > _MAX_NAMESPACES:
                continue
            seen.add(name)
            found = _run(["nsenter", f"--net=/proc/{pid}/ns/net", "cat", switch])
            if found.strip() in ("0", "1"):
                return found.strip() == "1"
        return None

    def shares_network(self, pid: int) -> bool | None:
        """Whether a process is in our network namespace; None where that may not be seen."""
        theirs = _namespace(str(pid))
        return theirs == _namespace("self") if theirs else None

    # ---- the rules

    @cached_property
    def listing(self) -> Listing:
        """All rules, nftables' and iptables'. Raises FirewallError where nftables cannot be asked."""
        self.need_administrator()
        items = ruleset.everything()
        saved = tuple(self._saved())
        tables = frozenset((chain.family, chain.table) for found in saved for chain in found.chains)
        known = from_nft(items, tables)
        chains = [*known.chains, *(chain for found in saved for chain in found.chains)]
        return known._replace(chains=tuple(chains))

    def _saved(self) -> Iterator[Listing]:
        for program in iptables.programs():
            with suppress(FirewallError):  # what cannot be listed has no rules
                yield from_save(program.save(), program.family + (LEGACY if program.legacy else ""))

    def elements(self, name: str) -> list[Any]:
        """The elements of a set of ours, as libnftables lists them; none of a set that is missing."""
        if not any(found.full_name == ("inet", "logknock", name) for found in self.listing.sets):
            return []
        items = ruleset.listed(f"list set inet logknock {name}")
        return elements_of(items)

    # ---- who has what

    @cached_property
    def groups(self) -> dict[int, int]:
        """The NFLOG groups that are bound, and the netlink port of who has each."""
        return parse_groups(self.text("/proc/net/netfilter/nfnetlink_log") or "")

    def behind(self, port: int) -> Process:
        """The process behind a netlink port: its own number, or that of whoever has the socket."""
        for inode in parse_netlink(self.text("/proc/net/netlink") or "", port):
            if inode in self.owners:
                return self.owners[inode]
        name = (self.text(f"/proc/{port}/comm") or "").strip()
        return Process(port if name else 0, name)

    @cached_property
    def owners(self) -> dict[int, Process]:
        """Who has a socket, by its inode; without root's rights, of one's own processes only."""
        found: dict[int, Process] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it may end meanwhile, and need not be ours
                process = Process(int(folder.name), (folder / "comm").read_text("utf-8", "replace").strip())
                for link in os.scandir(folder / "fd"):
                    with suppress(OSError):
                        kind, _, inode = os.readlink(link.path).partition(":")
                        if kind == "socket":
                            found.setdefault(int(inode.strip("[]")), process)
        return found

    @cached_property
    def sockets(self) -> tuple[Socket, ...]:
        """What listens on this host."""
        return tuple(
            socket
            for name, proto in (("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP))
            for socket in parse_sockets(self.text(f"/proc/net/{name}") or "", proto)
        )

    @cached_property
    def _reached(self) -> dict[Service, int]:
        return {socket.service: socket.inode for socket in self.sockets if not socket.local}

    @property
    def ssh(self) -> frozenset[Service]:
        """Where an ssh daemon can be seen to listen, for others than this host."""
        return frozenset(
            socket.service
            for socket in self.sockets
            if not socket.local and (who := self.owners.get(socket.inode)) and who.name in _SSH_DAEMONS
        )

    @property
    def configured_ssh(self) -> frozenset[Service]:
        """Where sshd is to listen, by its own configuration: all that a user sees who may not see its process."""
        found: set[int] = set()
        with suppress(OSError, LogknockError):  # it may be for root alone
            folder = self.path("/etc/ssh/sshd_config.d")
            for path in (
                "/etc/ssh/sshd_config",
                *(f"/etc/ssh/sshd_config.d/{each.name}" for each in folder.glob("*.conf")),
            ):
                found |= parse_sshd_ports(self.text(path) or "")
        return frozenset(Service(TCP, port) for port in found if 0 < port <= _LAST_PORT)

    def listens(self, service: Service) -> Process | None:
        """Who listens on a service where others reach it; None: nobody."""
        inode = self._reached.get(service)
        return None if inode is None else self.owners.get(inode, Process(0, ""))

    # ---- the network

    @cached_property
    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces for IPv4, but for lo."""
        conf = "/proc/sys/net/ipv4/conf"
        routes = parse_default_routes(self.text("/proc/net/route") or "")
        every = self.number(f"{conf}/all/rp_filter") or 0
        names = sorted(path.name for path in self.path(conf).glob("*") if path.name not in ("all", "default", "lo"))
        # The kernel takes the larger (networking/ip-sysctl).
        return tuple(
            Interface(name, max(every, self.number(f"{conf}/{name}/rp_filter") or 0), name in routes) for name in names
        )

    @property
    def filtered(self) -> int:
        """How many packets rp_filter has dropped since the start."""
        return parse_counters(self.text("/proc/net/netstat") or "").get("IPReversePathFilter", 0)

    @property
    def has_ipv6(self) -> bool:
        """Whether there is IPv6, and not switched off for every interface."""
        return self.number("/proc/sys/net/ipv6/conf/all/disable_ipv6") == 0

    # ---- the journal

    @cached_property
    def journald(self) -> dict[str, str]:
        """journald's settings by name, as its files say them (journald.conf(5))."""
        files: dict[str, Path] = {}
        main: Path | None = None
        for folder in reversed([self._root / name for name in _JOURNALD]):
            main = folder / "journald.conf" if (folder / "journald.conf").exists() else main
            files |= {path.name: path for path in folder.glob("journald.conf.d/*.conf")}
        paths = [*([main] if main else []), *(files[name] for name in sorted(files))]
        texts = (self.text(str(path.relative_to(self._root))) or "" for path in paths)
        return parse_settings(texts)

    def runs(self, name: str) -> bool:
        """Whether a process of that name is to be seen, which is in no container on this host."""
        here = _namespace("self", "pid")
        for path in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                found = path.read_text("utf-8", "replace").strip()
                if found == name[:_COMM] and _namespace(path.parent.name, "pid") in ("", here):
                    return True
        return False


def _run(command: list[str]) -> str:
    """What a program prints; nothing where it is not there or fails."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_LIMIT,
            check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout
    return ""


def _namespace(process: str, kind: str = "net") -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{process}/ns/{kind}")
    return ""


def _forbidden(path: str) -> LogknockError:
    return LogknockError(f"{path}: permission denied", "run the doctor as root", NO_PERMISSION)


# ---- formats


def parse_sshd_ports(text: str) -> set[int]:
    """The ports that a configuration of sshd names."""
    return {int(port) for port in _SSHD_PORT.findall(text)}


def parse_loggers(text: str) -> dict[int, frozenset[str]]:
    """/proc/net/netfilter/nf_log: ` 2 nf_log_ipv4 (nf_log_ipv4,nfnetlink_log)` by family, the one in use first."""
    found = re.findall(r"^\s*(\d+) \S+ \(([^)]*)\)", text, re.MULTILINE)
    return {int(family): frozenset(names.split(",")) for family, names in found}


def parse_groups(text: str) -> dict[int, int]:
    """/proc/net/netfilter/nfnetlink_log: group, netlink port, and what is of no interest here."""
    rows = (line.split() for line in text.splitlines())
    return {int(row[0]): int(row[1]) for row in rows if len(row) > 1}


def parse_netlink(text: str, port: int) -> list[int]:
    """/proc/net/netlink: the inodes of netfilter's sockets (protocol 12) that have the port."""
    rows = (line.split() for line in text.splitlines()[1:])
    return [int(row[-1]) for row in rows if len(row) > 9 and row[1] == "12" and int(row[2]) == port]


# linux/include/net/tcp_states.h; a UDP socket without a peer counts as closed.
_WAITS = {TCP: "0A", UDP: "07"}


def parse_sockets(text: str, proto: int) -> Iterator[Socket]:
    """/proc/net/tcp and its like: what waits for whoever comes."""
    for row in (line.split() for line in text.splitlines()[1:]):
        if len(row) > 9 and row[3] == _WAITS[proto]:
            address, _, port = row[1].rpartition(":")
            yield Socket(Service(proto, int(port, 16)), _is_loopback(address), int(row[9]))


def _is_loopback(address: str) -> bool:
    """In /proc/net, words of four bytes are in the machine's own order, least significant first on most."""
    data = b"".join(int(address[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(address), 8))
    mapped = data[12:] if data[:12] == bytes(10) + b"\xff\xff" else data
    return mapped == bytes(15) + b"\1" or (len(mapped) == 4 and mapped[0] == 127)


def parse_default_routes(text: str) -> frozenset[str]:
    """/proc/net/route: the interfaces that a default route leads to."""
    rows = (line.split() for line in text.splitlines()[1:])
    return frozenset(row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000")


def parse_counters(text: str) -> dict[str, int]:
    """/proc/net/netstat: a line of names, then a line of numbers."""
    lines = text.splitlines()
    pairs = ((name, number) for names, numbers in zip(lines[::2], lines[1::2], strict=False)
             for name, number in zip(names.split()[1:], numbers.split()[1:], strict=False))  # fmt: skip
    return {name: int(number) for name, number in pairs}


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """The settings in files of systemd's kind, in the order in which they are read; an empty one is the default."""
    found: dict[str, str] = {}
    for text in texts:
        for name, value in re.findall(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE):
            found[name] = value
    return {name: value for name, value in found.items() if value}


def started(pid: int) -> float | None:
    """When a process was started, in seconds since the epoch; None where it is gone."""
    with suppress(OSError, ValueError, IndexError):
        ticks = int(_stat(pid)[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    return None


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger keeps a process from doing anything."""
    with suppress(OSError, IndexError):
        return _stat(pid)[0] in ("T", "t")
    return False


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on (proc(5)): behind the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
