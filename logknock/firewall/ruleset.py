"""The rules in the kernel: made from a configuration, loaded, removed, and undone where nobody confirms them.

Rule 1: the rules are in rules/logknock.nft; this file puts a configuration into them, and knows no others.
Rule 2: what goes to the kernel is one text and one transaction: all of it, or nothing changes.
Rule 3: what undoes a load is made, and known to work, before the load.
"""

import ctypes
import errno
import json
import os
import re
import struct
import tempfile
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from hashlib import shake_256
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .. import netlink, trial
from ..config import Config, PortRange
from ..errors import NO_PERMISSION, UNAVAILABLE, UNSEEN_PACKAGES, FirewallError, LogknockError
from ..knock import Service
from ..onetime_files import OnetimeError, knocked_in, named_twice
from ..ownership import give_to_owner, take_in
from ..packet import ICMP, ICMP6, PROTOCOL_NAMES, TCP, UDP, address_text
from ..trial import Outcome, Trial
from .intent import Intent

TABLE = "inet logknock"

# What apply fills, and an undo puts back. The other sets are the kernel's and the daemon's: grants among them run on
# through a load and its undoing, so that none is lost and none comes back after its end (T33).
CONFIGURED = ("trusted4", "trusted6", "guarded", "watched", "traps", "spa")

# Of these the ones in which an element may have a timeout: the address of the session that tries rules out. It is no
# part of the configuration, and nothing that an undo brings back.
_TRUSTED = ("trusted4", "trusted6")
_SESSION = 'comment "ssh session"'  # what tells it from one that somebody else has made

# What Debian 12 has; the rules were tried on nothing older.
OLDEST_NFT = (1, 0, 6)

_MARK = 0x10000  # the bit in rules/mark.nft

_GETGEN = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN: the smallest question there is

SEED_BYTES = 32  # nobody guesses 256 bits
_LAST_PORT = 65_535
_ELEMENTS_PER_LINE = 8  # fits a terminal

_PROTOCOLS = PROTOCOL_NAMES | {ICMP: "icmp", ICMP6: "ipv6-icmp"}  # as nft has them


# ---- the text


def render(
    config: Config, seed: bytes, listening: Collection[Service], onetime: Collection[Service] = frozenset()
) -> str:
    """The rules with this configuration in them, as `nft -f` takes them. Reads nothing but the rules themselves.

    `onetime` is what the one-time sequences knock on.
    """
    mark = config.firewall.mark
    text = _rules_file("mark.nft" if mark else "logknock.nft").read_text(encoding="ascii")
    if mark:
        for statement in ("meta mark & {:#x} != 0 meta mark set meta mark ^ {:#x}", "meta mark set meta mark | {:#x}"):
            text = _put(text, statement.format(_MARK, _MARK), statement.format(mark, mark))
    rate, burst = config.firewall.rate, config.firewall.burst
    whole = _log_statement(config)
    text = _put(text, "log group 5 return", f"{whole} return")
    # For ulogd2 it is as it was: what that writes of a packet is somebody else's choice.
    text = _put(text, "log group 5 snaplen 128", f"{whole} snaplen 128" if "nflog" in config.sources else whole)
    for source in ("ip saddr", "ip6 saddr & ffff:ffff:ffff:ffff::"):
        default = f"{source} limit rate over 20/second burst 40 packets"
        text = _put(text, default, f"{source} limit rate over {rate}/second burst {burst} packets")
    trusted = sorted(config.firewall.trusted, key=lambda network: (network.version, network))
    return text + "".join(
        (
            "\n# From the configuration.\n",
            _add("trusted4", [str(network) for network in trusted if network.version == 4]),
            _add("trusted6", [str(network) for network in trusted if network.version == 6]),
            _add("guarded", _elements(config.guarded)),
            _add("watched", _elements(config.watched.union(onetime if config.firewall.record else ()))),
            _add("traps", _elements(traps(config, seed, listening, onetime))),
            _add("spa", _ranges(sorted(config.spa_places))),
        )
    )


def session_element(config: Config, src: bytes, seconds: float) -> str:
    """What makes an address trusted for so long, behind the rules' text; nothing where it is trusted anyway."""
    if trusts(config, src):
        return ""
    name = "trusted4" if len(src) == 4 else "trusted6"
    return _add(name, [f"{address_text(src)} timeout {round(seconds * 1000)}ms {_SESSION}"])


def trusts(config: Config, src: bytes) -> bool:
    """Whether the configuration trusts an address."""
    return any(ip_address(src) in network for network in config.firewall.trusted)


def _log_statement(config: Config) -> str:
    """To the NFLOG group, for us or for ulogd2; else to the kernel's log, for journal, file and pipe."""
    prefix = config.wanted.prefixes[0]
    words = f' prefix "{prefix}: "' if prefix and "nflog" not in config.sources else ""
    if config.to_group:
        return f"log group {config.group}{words}"
    # At level info, so that a console that shows warnings does not fill with knocks.
    return f"log{words} level info"


def traps(
    config: Config, seed: bytes, listening: Collection[Service], onetime: Collection[Service] = frozenset()
) -> frozenset[Service]:
    """The services whose every packet is a wrong knock: the neighbours of the knock ports, and others.

    In each protocol that a sequence uses. The same seed gives the same ports, but for those that may not be traps:
    what a sequence or a door uses, what something listens on, and what the configuration excludes.
    """
    wanted = config.firewall.traps
    if not (wanted and config.firewall.record):
        return frozenset()
    knocked = config.knocked.union(onetime)
    opened = {service for door in config.doors for service in door.opens}
    excluded = {
        Service(ports.proto, port) for ports in config.firewall.exclude for port in range(ports.first, ports.last + 1)
    }
    taken = opened.union(config.guarded, knocked, listening, excluded)
    beside = {service.port + step for service in knocked for step in (-1, 1)}
    chosen: set[Service] = set()
    for proto in {service.proto for service in knocked}:
        free = [port for port in _shuffled_ports(seed, proto) if Service(proto, port) not in taken]
        near = [port for port in free if port in beside]
        far = [port for port in free if port not in beside]
        chosen.update(Service(proto, port) for port in near + far[:wanted])
    return frozenset(chosen)


def _shuffled_ports(seed: bytes, proto: int) -> list[int]:
    """All ports in an order that only the seed tells, and that no version of Python changes."""
    keys = struct.unpack(f"!{_LAST_PORT}Q", shake_256(bytes((proto,)) + seed).digest(_LAST_PORT * 8))
    return sorted(range(1, _LAST_PORT + 1), key=lambda port: keys[port - 1])


def _rules_file(name: str) -> Path:
    package = Path(__file__).parents[1]
    installed = package / "rules" / name
    return installed if installed.exists() else package.parent / "rules" / name


def _put(text: str, default: str, value: str) -> str:
    """Put a value in the default's place: never nowhere, never in two places."""
    assert text.count(default) == 1, f"{default!r} is in the rules {text.count(default)} times"
    return text.replace(default, value)


def _elements(services: Collection[Service]) -> list[str]:
    return [f"{PROTOCOL_NAMES[service.proto]} . {service.port}" for service in sorted(services)]


def _ranges(places: Iterable[PortRange]) -> list[str]:
    return [f"{_PROTOCOLS[proto]} . {first}" + (f"-{last}" if last > first else "") for proto, first, last in places]


def _add(name: str, elements: list[str]) -> str:
    if not elements:
        return ""
    lines = (elements[at : at + _ELEMENTS_PER_LINE] for at in range(0, len(elements), _ELEMENTS_PER_LINE))
    return f"add element {TABLE} {name} {{\n\t" + ",\n\t".join(map(", ".join, lines)) + "\n}\n"


# ---- what the text depends on besides the configuration


def knocked_once(config: Config) -> tuple[frozenset[Service], tuple[str, ...]]:
    """What the doors' one-time sequences knock on, and what is wrong with their files, a line of text each.

    A file that cannot be used is no reason to leave the host unguarded. Reads the files whole.
    """
    services: set[Service] = set()
    problems: list[str] = []
    for path in config.onetime_files:
        try:
            found = knocked_in([path])
        except OnetimeError as error:
            problems.append(error.words())
            continue
        services |= found.services
        problems += found.problems
        if guarded := sorted(found.services & config.guarded):
            problems.append(f"{path}: knocks on {guarded[0]}, which is guarded: choose other ports")
    return frozenset(services), (*problems, *named_twice(config.doors))


def trap_seed(state: Path) -> bytes:
    """The secret that the traps are chosen by; made when it is first needed."""
    path = state / "traps.seed"
    try:
        with suppress(FileNotFoundError):
            take_in(state)
            return _checked_seed(path)
        with suppress(FileExistsError):
            state.mkdir(mode=0o711, parents=True)
            state.chmod(0o711)  # whatever the umask: as the daemon makes it, for others to pass through to allow/
        _make_seed(path)
        return _checked_seed(path)
    except OSError as error:
        raise trial.file_error(path, error) from None


def _checked_seed(path: Path) -> bytes:
    seed = path.read_bytes()
    if len(seed) != SEED_BYTES:
        raise LogknockError(
            f"{path} is damaged: {len(seed)} bytes, not {SEED_BYTES}",
            "delete it: the next `logknock rules apply` makes a new one and chooses other traps",
        )
    return seed


def _make_seed(path: Path) -> None:
    """Whole and on the disk before it has its name; of two that are made at a time the first counts."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            give_to_owner(descriptor, path.parent)
            file.write(os.urandom(SEED_BYTES))
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# linux/include/net/tcp_states.h, as /proc/net shows them; a UDP socket without a peer counts as closed.
_LISTEN, _CLOSE = "0A", "07"


def listening() -> frozenset[Service]:
    """The services that programs of this host listen on, at any address."""
    found = set()
    for name, proto, state in (
        ("tcp", TCP, _LISTEN),
        ("tcp6", TCP, _LISTEN),
        ("udp", UDP, _CLOSE),
        ("udp6", UDP, _CLOSE),
    ):
        with suppress(FileNotFoundError):  # a host without IPv6
            for line in Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, shown, *_ = line.split()
                if shown == state:
                    found.add(Service(proto, int(local.rpartition(":")[2], 16)))
    return frozenset(found)


# ---- the kernel


def load(text: str) -> None:
    """Give the text to the kernel: all of it counts from now on, or a FirewallError says why none of it does."""
    there = loaded()
    if there:
        _check_ours()
    try:
        _nft((_make_room() if there else "") + text)
    except FirewallError as error:
        if there:
            error.hint = f"where logknock did not make the table {TABLE}: `logknock rules remove` deletes it"
        raise


_GUARD = re.compile(r"^\tchain guard \{\n\t\ttype filter hook prerouting priority mangle;", re.MULTILINE)
_PARTS = re.compile(r"^\t((?:set|map|chain|counter|quota|limit|flowtable|ct \w+) \w+) \{", re.MULTILINE)
_LATER = {"set spa"}  # what the tables of earlier versions lack


def _check_ours() -> None:
    """Raises FirewallError where the table of our name has something in it that is not of our rules.

    nft would put ours beside it, and empty its chains.
    """
    known = {part for name in ("logknock.nft", "mark.nft") for part in _PARTS.findall(_rules_file(name).read_text())}
    there = _nft(f"list table {TABLE}", terse=True)
    parts = _PARTS.findall(there)
    reasons = [f"{part} is none of ours" for part in parts if part not in known]
    # One or two of the names may be anybody's. Where somebody has deleted our chain guard, all of the sets are there.
    ours = {part for part in known - _LATER if part.startswith("set ")}
    lost_guard = "chain guard" not in parts and ours <= set(parts)
    if parts and not (_GUARD.search(there) or lost_guard):
        reasons.append("it has no chain guard at prerouting, priority mangle")
    if reasons:
        hint = "give that table another name; where nobody needs it, `logknock rules remove` deletes it"
        raise FirewallError(f"table {TABLE} is not logknock's: {reasons[0]}", hint)


# A set of trusted networks as versions before this one made it, in libnftables' words.
_EARLIER = re.compile(
    r"^\tset (trusted[46]) \{\n\t\ttype ipv[46]_addr\n\t\tflags interval(?:,timeout)?\n\t\tauto-merge\n\t\}$",
    re.MULTILINE,
)


def _make_room() -> str:
    """What takes away, in the same transaction, sets that an earlier version made in a way that does not fit any more.

    The kernel does not let go of a set that a rule looks into: the rules, which are to be replaced, go first.
    """
    names = _EARLIER.findall(_nft(f"list table {TABLE}", terse=True))
    deletions = [f"delete set {TABLE} {name}\n" for name in names]
    return "".join((f"flush table {TABLE}\n", *deletions)) if names else ""


class Snapshot(NamedTuple):
    """The table as libnftables lists it: without elements, and the elements of the configured sets that it has.

    Elements with a timeout are left out: a session's, that goes by itself.
    """

    rules: str
    elements: dict[str, tuple[str, ...]]

    @property
    def text(self) -> str:
        """What makes the same again, as `nft -f` takes it."""
        return self.rules + "".join(_add(name, list(elements)) for name, elements in self.elements.items())


def snapshot() -> Snapshot | None:
    """The table that is loaded; None where there is none. Raises FirewallError."""
    if not loaded():
        return None
    rules = _nft(f"list table {TABLE}", terse=True)
    there = set(re.findall(r"^\tset (\w+) \{$", rules, re.MULTILINE))
    return Snapshot(rules, {name: _elements_there(name) for name in CONFIGURED if name in there})


# An element in libnftables' words, up to the comma behind it: a comment is the one thing that may hold another.
_ELEMENT = re.compile(r'(?:[^",]|"[^"]*")+')


def _elements_there(name: str, *, with_timeout: bool = False) -> tuple[str, ...]:
    """The elements of a set without a timeout, or those that have one."""
    _, _, inside = _nft(f"list set {TABLE} {name}").partition("elements = {")
    inside, _, _ = inside.rpartition("\n\t}")[0].rpartition("}")
    found = (" ".join(element.split()) for element in _ELEMENT.findall(inside))
    return tuple(element for element in found if (" timeout " in element.partition('"')[0]) == with_timeout)


def loaded() -> bool:
    """Whether there is a table of our name. Raises FirewallError where nftables cannot be used at all."""
    listed("list counters")  # which says the version
    return f"table {TABLE}" in _nft("list tables").splitlines()


def listed(command: str, *, terse: bool = False) -> list[dict[str, Any]]:
    """What libnftables lists, as libnftables-json(5) has it; terse: without elements. Raises FirewallError.

    Not for what lists tables: see everything.
    """
    return from_json(_nft(command, as_json=True, terse=terse), command)


def from_json(text: str, command: str) -> list[dict[str, Any]]:
    """What libnftables has listed for a command. Raises FirewallError where it is no JSON, or by too old a version."""
    try:
        found: list[dict[str, Any]] = json.loads(text)["nftables"]
    except ValueError as error:
        raise FirewallError(
            f"nftables: what libnftables lists is no JSON: {error}", f"`nft -j {command}` shows what it is"
        ) from None
    check_version(found[0]["metainfo"]["version"])
    return found


# The head of a table in libnftables' words, with the flags that it has: dormant, owner.
_TABLE = re.compile(r"^table (\w+ \S+) \{.*\n(?:\tcomment .*\n)?(?:\tflags ([\w, ]+)\n)?", re.MULTILINE)


def everything() -> list[dict[str, Any]]:
    """All tables of this host as `listed` has them, without elements. Raises FirewallError.

    libnftables 1.0.6 uses freed memory for a table with flags, where it is to list it in JSON: what comes is no JSON,
    or the process ends (table_flags_json). So where one has flags all is listed without the tables.
    The chains of one that is dormant, which see no packets, are left out then.
    """
    tables = dict(_TABLE.findall(_nft("list ruleset", terse=True)))
    if not any(tables.values()):
        return listed("list ruleset", terse=True)
    found: list[dict[str, Any]] = []
    for family, name in map(str.split, tables):
        found.append({"table": {"family": family, "name": name}})
    for command in ("list sets", "list maps"):
        found += listed(command, terse=True)
    for chain in (item["chain"] for item in listed("list chains") if "chain" in item):
        table = f"{chain['family']} {chain['table']}"
        if "dormant" not in tables.get(table, ""):
            # iptables' names can be such as nft does not take; but these chains iptables-save lists.
            with suppress(FirewallError):
                found += listed(f"list chain {table} {chain['name']}", terse=True)
    return found


def check_version(version: str) -> None:
    """Raises FirewallError for a libnftables that these rules were not made for."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_NFT:
        needed = ".".join(map(str, OLDEST_NFT))
        raise FirewallError(
            f"nftables {version} is too old: {needed} or newer is needed", "Debian 12 has it", UNAVAILABLE
        )


def _nft(command: str, *, as_json: bool = False, terse: bool = False, dry_run: bool = False) -> str:
    """Run a command in libnftables, which remembers too much: each has a handle of its own."""
    nft = _handle()
    nft.set_json_output(as_json)
    nft.set_terse_output(terse)
    nft.set_dry_run(dry_run)
    # Given bytes it gives bytes: a comment may hold any.
    code, output, words = nft.cmd(command.encode(errors="surrogateescape"))
    if code:
        raise refusal(words.decode(errors="replace"))
    return str(output.decode(errors="surrogateescape"))


_LIBRARY = "libnftables.so.1"


def _handle() -> Any:
    try:
        import nftables
    except ImportError:
        hint = f"install the package python3-nftables{UNSEEN_PACKAGES}"
        raise FirewallError("Python has no nftables module", hint, UNAVAILABLE) from None
    _check_kernel()
    try:
        ctypes.CDLL(_LIBRARY)  # what the binding loads; its own failure would leave half an object
    except OSError as error:
        raise FirewallError(f"nftables: {error}", "install the package libnftables1", UNAVAILABLE) from None
    return nftables.Nftables(_LIBRARY)


def _check_kernel() -> None:
    """Find out first what would make libnftables end the process, or write to standard error itself."""
    try:
        with netlink.Socket(netlink.NETLINK_NETFILTER) as kernel:
            number = kernel.sequence()
            kernel.request(netlink.netfilter_message(_GETGEN, netlink.NLM_F_ACK, number, 0, 0), number)
    except OSError as error:
        raise kernel_error(error) from error


def kernel_error(error: OSError) -> FirewallError:
    """What it means that the kernel does not let us ask for nftables at all."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return FirewallError(f"nftables: {error.strerror}", "CAP_NET_ADMIN is needed: run it as root", NO_PERMISSION)
    # EINVAL is what netfilter says to a subsystem that it does not have.
    if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
        hint = "this kernel has no nftables (CONFIG_NF_TABLES), or its module is not there"
        return FirewallError(f"nftables: {error.strerror}", hint, UNAVAILABLE)
    return FirewallError(f"nftables: {error.strerror}")


def refusal(words: str) -> FirewallError:
    """The error that libnftables' words stand for: the first of them, with the line that it is about."""
    match = re.search(r"Error: (.*)(?:\n\s*(.*))?", words)
    if match is None:
        return FirewallError(f"nftables: {words.strip()}")
    quoted = (match[2] or "").strip()
    # What is about no line in particular, like a set that is there already, has the text's first: a comment.
    return FirewallError(f"nftables: {match[1]}" + (f" ({quoted})" if quoted and not quoted.startswith("#") else ""))


# ---- one change at a time, for good or on trial


class Beside(Protocol):
    """A change of another firewall that belongs to a load: made before it, and taken back where it is undone.

    What takes it back may be another process than the one that makes it. Both raise LogknockError.
    """

    def make(self) -> None:
        """Make it, all or nothing."""

    def undo(self) -> None:
        """Bring back what was there before it, whether it has been made or not."""


def _load_both(text: str, beside: Beside | None) -> None:
    if beside is None:
        load(text)
        return
    beside.make()
    try:
        load(text)
    except LogknockError as error:
        try:
            beside.undo()
        except LogknockError as failed:
            error.hint = f"what was done before cannot be undone: {failed.words()}"
        raise


def apply(text: str, runtime: Path, state: Path, beside: Beside | None = None) -> None:
    """Load the text for good: from now on it is what the daemon puts back."""
    with trial.alone(runtime):
        _refuse_second(runtime)
        intent = Intent(state)
        intent.draft(text)
        try:
            _load_both(text, beside)
        except LogknockError:
            intent.drop()
            raise
        intent.settle()


def try_out(
    text: str, runtime: Path, state: Path, seconds: float, session: str = "", beside: Beside | None = None
) -> Trial:
    """Load the text until it is confirmed; after so many seconds without, what was there before comes back.

    `session` is loaded with it, in the same transaction, and goes with its end: see session_element.
    """
    with trial.alone(runtime):
        _refuse_second(runtime)
        before = _undo_text()
        intent = Intent(state)
        intent.draft(text)
        started = trial.start(runtime, seconds, lambda: _undo(before, intent, beside))
        try:
            _load_both(text + session, beside)
        except LogknockError:
            started.end(Outcome.REFUSED)
            started.close()
            intent.drop()
            raise
        return started


def confirm(runtime: Path, state: Path) -> None:
    """Let the load that is on trial stand: from now on it is what the daemon puts back."""
    with trial.alone(runtime):
        waiting = Trial.going_on(runtime)
        if waiting is None:
            raise LogknockError("no rules wait to be confirmed", "`logknock rules apply --confirm 60s` loads some")
        with waiting:
            _forget_session()
            waiting.end(Outcome.CONFIRMED)
        Intent(state).settle()


def remove(runtime: Path | None = None, state: Path | None = None) -> bool:
    """Delete the table with all that is in it, and end its trial; False where there was no table.

    A daemon that knows this state directory puts nothing back any more. Raises LogknockError where it would: the table
    is deleted all the same.
    """
    # The way out needs no file. A trial that goes on will find no table, and bring nothing back.
    alone = None
    kept: LogknockError | None = None
    with ExitStack() as held:
        if runtime is not None:
            with suppress(LogknockError):
                held.enter_context(trial.alone(runtime))
                alone = runtime
        if state is not None:
            try:
                Intent(state).forget()
            except LogknockError as error:
                kept = error if Intent(state).is_kept else None
        there = _delete_table()
        waiting = Trial.going_on(alone) if alone is not None else None
        if waiting is not None:
            with waiting:
                waiting.end(Outcome.REMOVED)
    if kept is not None:
        words = f"removed, but a running logknock puts the rules back: {kept.message}"
        raise LogknockError(words, "stop it first, or have it not do so: [firewall] restore = false", kept.exit_code)
    return there


def _delete_table() -> bool:
    there = loaded()
    if there:
        _nft(f"delete table {TABLE}")
    return there


def _refuse_second(runtime: Path) -> None:
    waiting = Trial.going_on(runtime)
    if waiting is not None:
        waiting.close()
        raise LogknockError(
            "the rules that are loaded wait to be confirmed",
            "`logknock rules confirm` first, or wait for their undoing",
        )


def _forget_session() -> None:
    """Trust only whom the configuration trusts. What cannot be taken out goes with its timeout."""
    with suppress(FirewallError):
        for name in _TRUSTED:
            for element in _elements_there(name, with_timeout=True):
                if element.endswith(_SESSION):
                    _nft(f"delete element {TABLE} {name} {{ {element.partition(' ')[0]} }}")


def _undo_text() -> str:
    """What brings back the rules and the configuration that are there now."""
    before = snapshot()
    if before is None:
        return f"delete table {TABLE}\n"
    earlier = _EARLIER.findall(before.rules)
    empty = [f"{'delete' if name in earlier else 'flush'} set {TABLE} {name}\n" for name in before.elements]
    text = "".join((f"flush table {TABLE}\n", *empty, before.text))
    _nft(text, dry_run=True)  # better to know now than when it is needed
    return text


# Who holds the lock of the other firewall does so for milliseconds, but for a program that hangs: somebody has to see
# that first, and end it. Meanwhile nobody else can change what was on trial.
_UNDO_FOR = 300.0  # seconds
_UNDO_PAUSE = 1.0  # seconds


def _undo(before: str, intent: Intent, beside: Beside | None) -> Outcome:
    with suppress(LogknockError):
        intent.drop()
    try:
        there = loaded()
        if there:
            _nft(before + _newer_parts(before))
        outcome = Outcome.UNDONE if there else Outcome.REMOVED  # on purpose: nothing of ours comes back
    except LogknockError:
        outcome = Outcome.UNDO_FAILED
    return outcome if beside is None or _is_undone(beside) else Outcome.UNDO_FAILED


def _is_undone(beside: Beside) -> bool:
    """Whether it could be taken back, at last."""
    end = time.monotonic() + _UNDO_FOR
    while True:
        try:
            beside.undo()
        except LogknockError:
            if time.monotonic() > end:
                return False
            time.sleep(_UNDO_PAUSE)
        else:
            return True


def _newer_parts(before: str) -> str:
    """What deletes the chains and sets that the load brought, once their rules are gone.

    They are another rules file's perhaps, or a later version's.
    """
    if before.startswith("delete "):
        return ""
    parts = re.compile(r"^\t((?:chain|set) \w+) \{", re.MULTILINE)
    newer = set(parts.findall(_nft(f"list table {TABLE}", terse=True))) - set(parts.findall(before))
    return "".join(f"delete {kind} {TABLE} {name}\n" for kind, name in map(str.split, sorted(newer)))
