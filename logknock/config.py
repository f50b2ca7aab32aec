"""The configuration: TOML files in, a frozen Config out, or every error at once, each with its file, line and key.

Rule 1: a wrong value is noted and the reading goes on; what depends on a part that could not be read is not judged.
Rule 2: the files may say anything: load() answers with a Config or a ConfigError and raises nothing else.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from math import factorial
from pathlib import Path
from typing import Any, TypeVar

from . import config_clients as clients
from . import config_values as values
from . import spa
from .config_values import Endpoint, Network, PortRange, parse_duration
from .knock import MAX_SEQUENCE, Door, Proof, Service, TcpFlags
from .ownership import read_hint
from .packet import ICMP, ICMP6, TCP, UDP
from .records import Wanted
from .toml_files import MINIMAL, ConfigError, Note, Problem, Report, credentials_folder, read_files
from .toml_lines import KeyPath
from .toml_tables import Table
from .totp import TotpDoor

# What other rooms and their users need to load a configuration and to report what is wrong with it.
__all__ = ["Config", "ConfigError", "Firewall", "Metrics", "PortRange", "Problem", "Scan", "load", "parse_duration"]

# Traps are elements of a set and names in a log: more of them than a quarter of all ports tell nothing more of a scan.
MAX_TRAPS = 16_384

# Files of one-time sequences of a door, a client's each; they are looked at once a second.
MAX_FILES = 1_024

# The rate above which a source is not listened to. A client that knocks needs less than 20 a second; at 1,000 a second
# the daemon would hear most of a scan.
MAX_RATE = 1_000

# Distinct ports after which a source is a scanner. Each is remembered for each source, so it is a bound on memory too.
MAX_SCAN_PORTS = 64

# Fewer of them make scanners of people: a browser and a mail program at the wrong host try four.
FEW_SCAN_PORTS = 5

_DAY = 86_400

_SSH = Service(TCP, 22)

# What a configuration lacks that nobody has written yet.
NO_DOOR = "there is no door"

# How many doors an error lists, so that it stays readable.
_MAX_NAMED = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Firewall:
    """What the ruleset needs besides the doors. No two of `trusted` overlap."""

    trusted: tuple[Network, ...] = ()
    traps: int = 1024
    exclude: tuple[PortRange, ...] = ()
    rate: int = 20
    burst: int = 40
    guarded: tuple[Service, ...] = ()  # besides what the doors open
    mark: int = 0  # the bit that the packets of grantees get; 0: what is guarded is dropped instead
    record: bool = True  # whether our rules record knock ports and traps; else another firewall logs what it drops
    restore: bool = True  # whether the daemon puts the rules back when somebody else has removed them


@dataclass(frozen=True, slots=True)
class Scan:
    """Who is a scanner: so many distinct ports within so many seconds; banned for so many. No ports: nobody is."""

    ports: int = 0
    within: float = 60.0
    ban: float = 3600.0
    counts: frozenset[str] = frozenset({"syn"})


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where numbers for Prometheus are to be had: none of it unless it is asked for."""

    listen: Endpoint | None = None
    textfile: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration without errors, as its files say it; `warnings` is what its author should hear of."""

    file: Path
    sources: tuple[str, ...]
    group: int
    to_group: bool  # whether our own rules log to the NFLOG group, be it for us or for a ulogd2 that writes a file
    wanted: Wanted
    journal: Path | None
    files: tuple[Path, ...]
    doors: tuple[Door, ...]
    firewall: Firewall
    scan: Scan
    metrics: Metrics
    state: Path
    runtime: Path
    warnings: tuple[Problem, ...]
    totp: tuple[TotpDoor, ...] = ()  # of doors with proof "totp" or "code": what their clients derive and from what
    host: str = ""  # what clients derive with: this host's name
    spa_keys: tuple[spa.Key, ...] = ()  # their `door` is the name as it is written
    spa_ports: tuple[PortRange, ...] = ()  # where packets to SPA doors come in; no two of them overlap
    spa_icmp: bool = False  # whether echo requests are looked at, too
    terms: Mapping[str, clients.Terms] = field(default_factory=dict)  # of doors with clients, by names as written
    homes: Mapping[tuple[str, str], Path] = field(default_factory=dict)  # the file of each client, by door and name

    @property
    def logged_to(self) -> str:
        """Where our own rules send records, in words."""
        return (
            f"NFLOG group {self.group}"
            if "nflog" in self.sources
            else f'kernel log, prefix "{self.wanted.prefixes[0]}"'
        )

    @property
    def guarded(self) -> frozenset[Service]:
        """The services that are closed to all but grantees."""
        return frozenset(service for door in self.doors if door.guard for service in door.opens).union(
            self.firewall.guarded
        )

    @property
    def knocked(self) -> frozenset[Service]:
        """The services that some sequence knocks on, or can; but for those in files of one-time sequences."""
        return frozenset(service for door in self.doors for service in door.sequence).union(
            *(door.services for door in self.totp)
        )

    @property
    def watched(self) -> frozenset[Service]:
        """Of these the ones that our own rules record: none where another firewall's log is read."""
        return self.knocked if self.firewall.record else frozenset()

    @property
    def watched_places(self) -> tuple[PortRange, ...]:
        """The same by ranges of ports, as the rules have them."""
        if not self.firewall.record:
            return ()
        fixed = {PortRange(proto, port, port) for door in self.doors for proto, port in door.sequence}
        return tuple(sorted(fixed.union(*(asked.ports for asked in self.terms.values() if asked.proof != "spa"))))

    def to_enroll(self, name: str, client: str = "CLIENT") -> str:
        """The command of ours that makes a client of the door, which has a proof and is called so in its table."""
        doors = (door for door in self.doors if door.name.partition(":")[0] == name)
        return clients.to_enroll(*doors, client=client)

    @property
    def derived(self) -> dict[str, int]:
        """How many knocks a sequence has, by the names of the doors whose clients derive theirs."""
        return {door.door: door.knocks for door in self.totp}

    @property
    def spa_places(self) -> tuple[PortRange, ...]:
        """Where our own rules look for SPA packets, no two overlapping: nowhere where another firewall's log is read.

        Echo requests have no port, so that any stands for it.
        """
        icmp = (PortRange(proto, 0, 65_535) for proto in (ICMP, ICMP6) if self.spa_icmp)
        return (*self.spa_ports, *icmp) if self.firewall.record else ()

    @property
    def onetime_files(self) -> tuple[Path, ...]:
        """The files of one-time sequences that some door reads."""
        return tuple(dict.fromkeys(Path(file) for door in self.doors for file in door.onetime))

    @property
    def remembering(self) -> str:
        """The kinds of doors that open on nothing that cannot be remembered, in words; empty where there are none."""
        proofs = {door.proof for door in self.doors}
        kinds = {"one-time": self.onetime_files, "TOTP": proofs & {"totp", "code"}, "SPA": "spa" in proofs}
        *some, last = [kind for kind, there in kinds.items() if there] or [""]
        return f"{', '.join(some)} and {last}" if some else last

    @property
    def spa_doors(self) -> dict[tuple[str, Service], Door]:
        """What opens a service of an SPA door, by the door's name as it is written: a key's `door` and what it asks."""
        return {
            (door.name.partition(":")[0], service): door
            for door in self.doors
            if door.proof == "spa"
            for service in door.opens
        }


def load(path: Path) -> Config:
    """Read the file, its neighbours conf.d/*.toml and clients/*.toml, and the service's credentials *.toml.

    Raises ConfigError with every problem.
    """
    report = Report(denied=read_hint)
    shared = {name: Table((name,), path, report) for name in ("log", "firewall", "scan", "metrics", "paths")}
    log, firewall, scan, metrics, paths = shared.values()
    shared["totp"] = Table(("totp",), path, report)
    tables, client_tables = _sort_in(read_files(path, report, credentials_folder(path)), shared, report)
    terms = [clients.read_terms(table) for table in tables]
    doors = [(_door(table, asked.proof), table) for table, asked in zip(tables, terms, strict=True)]
    proven = [clients.Proven(*door, asked) for door, asked in zip(doors, terms, strict=True) if asked.proof]
    host = clients.read_host(shared["totp"], proven)
    known = clients.read_clients(client_tables, proven, host)
    config = Config(
        file=path,
        **_log(log),
        doors=clients.split(door for door, _ in doors),
        firewall=_firewall(firewall),
        scan=_scan(scan),
        metrics=Metrics(
            listen=metrics.read("listen", values.endpoint, _METRICS.listen),
            textfile=metrics.read("textfile", values.textfile, _METRICS.textfile),
        ),
        state=paths.read("state", values.path("/var/lib/logknock"), Path("/var/lib/logknock")),
        runtime=paths.read("runtime", values.path("/run/logknock"), Path("/run/logknock")),
        warnings=(),
        totp=known.totp,
        host=host,
        spa_keys=known.keys,
        spa_ports=clients.spa_ports(proven),
        spa_icmp=any(asked.icmp for asked in terms),
        terms={door.name: asked for door, _, asked in proven},
        homes={(str(table.name[-2]), str(table.name[-1])): table.home for table in client_tables},
    )
    for table in (*shared.values(), *tables):
        table.finish()
    _check_metrics(config, metrics)
    if report.complete:
        _check_together(path, doors, report)
        _check_guarded(config.firewall, firewall, doors)
        clients.check_ports(proven, config.doors, config.guarded, config.firewall.exclude)
        clients.check_source(proven, config.sources, log)
        clients.check_owners(client_tables, {door.name: door.proof for door, _ in doors})
    if report.errors:
        raise ConfigError(report.located(report.errors), report.exit_code)
    if config.firewall.record:
        _warn_of_scans(config.firewall.traps, firewall, doors)
    _warn_of_overlaps(doors)
    clients.warn_of_clients(known, proven)
    if config.scan.ports:
        _warn_of_bans(config, scan)
    return replace(config, warnings=report.located(report.warnings))


# ---- tables


_DOORS, _CLIENTS = "[doors.NAME]", "[clients.DOOR.NAME]"

_Files = list[tuple[Path, dict[str, Any]]]


def _sort_in(files: _Files, merged: dict[str, Table], report: Report) -> tuple[list[Table], list[Table]]:
    """Fill the tables that files share, and give back a table for each door and each client, with its keys.

    A door has all its keys in one file, and so has a client.
    """
    doors: list[Table] = []
    found: list[Table] = []
    homes: dict[KeyPath, Path] = {}
    for file, data in files:
        top = Table((), file, report)
        top.add(file, data)
        for name, table in merged.items():
            table.add(file, top.read(name, values.table(f"[{name}]"), {}))
        doors += _named(top.table("doors", _DOORS), _DOORS, homes)
        for owner in top.table("clients", _CLIENTS).tables(_CLIENTS):
            found += _named(owner, _CLIENTS, homes)
        top.finish()
    return doors, found


def _named(tables: Table, header: str, homes: dict[KeyPath, Path]) -> Iterator[Table]:
    """The tables in one; `homes` says in which file each was found first."""
    what = "door" if tables.name[0] == "doors" else "client"
    for table in tables.tables(header):
        home = homes.setdefault(table.name, table.home)
        if home != table.home:
            message = f"the same {what} is in {home} too"
            tables.error(str(table.name[-1]), message, f"a {what} has all its keys in one file")
        yield table


_DOOR = Door("", ())  # for its defaults
_WANTED = Wanted()
_FIREWALL = Firewall()
_SCAN = Scan()
_METRICS = Metrics()
CONTROL = "control.sock"  # control.NAME, in the runtime directory


def _log(table: Table) -> dict[str, Any]:
    """Where records come from, and which of them count: the fields of Config by their names."""
    journal, file = table.table("journal"), table.table("file")
    words: tuple[str, ...] = ("nflog",)
    nowhere: tuple[Path, ...] = ()
    directions = values.some_of(values.one_of(values.DIRECTIONS, "direction"))
    found: dict[str, Any] = {
        "sources": table.read("source", values.some_of(values.one_of(values.SOURCES, "source")), words),
        "group": table.read("group", values.whole(0, 65_535), 5),
        "wanted": Wanted(
            prefixes=table.read("prefix", values.some_of(values.prefix), _WANTED.prefixes),
            directions=frozenset(table.read("directions", directions, tuple(_WANTED.directions))),
        ),
        "journal": journal.read("path", values.path("/var/log/journal/remote"), None),
        "files": file.read("path", values.some_of(values.path("/var/log/kern.log")), nowhere),
    }
    found["to_group"] = "nflog" in found["sources"] or table.has("group")
    for inner in (journal, file):
        inner.finish()
        name = str(inner.name[-1])
        if inner.has("path") and name not in found["sources"] and "source" not in table.wrong:
            inner.warn("path", f"is not read: it is for source {name}", f'source = "{name}"')
    if "file" in found["sources"] and not file.has("path"):
        table.error("source", "which file is not said", 'file.path = "/var/log/kern.log"')
    return found


def _check_metrics(config: Config, table: Table) -> None:
    listen = config.metrics.listen
    if listen is not None and listen.path == str(config.runtime / CONTROL):
        table.error("listen", "that is the control socket", f'listen = "unix:{config.runtime / "metrics.sock"}"')
    elif listen is not None and not listen.path:
        message = "every local user can read the numbers, which tell with each knock whether it was right"
        table.warn("listen", message, f'listen = "unix:{config.runtime / "metrics.sock"}"')


def _door(table: Table, proof: Proof) -> Door:
    door = Door(
        name=str(table.name[-1]),
        sequence=table.read_list("sequence", values.service, most=MAX_SEQUENCE),
        seq_timeout=table.read("seq_timeout", values.duration("1s", "1h"), _DOOR.seq_timeout),
        tcp_flags=table.read("tcp_flags", values.tcp_flags, _DOOR.tcp_flags),
        opens=table.read_list("opens", values.service, repeats=False),
        sets=table.read_list("sets", values.set_name, repeats=False),
        closes=table.read_list("closes", values.text("ssh"), repeats=False),
        timeout=table.read("timeout", values.duration("1s", "365d"), _DOOR.timeout),
        guard=table.read("guard", values.switch, _DOOR.guard),
        proof=proof,
        onetime=tuple(map(str, table.read_list("onetime", values.path("/etc/logknock/onetime/laptop"), repeats=False))),
        target=frozenset(table.read_list("target", values.address)),
        cooldown=table.read("cooldown", values.duration("0s", "365d"), _DOOR.cooldown),
        allow_file=table.read("allow_file", values.file_name, _DOOR.allow_file),
        on_open=table.read_list("on_open", values.argument),
        on_close=table.read_list("on_close", values.argument),
        on_open_6=_variant("on_open_6", table),
        on_close_6=_variant("on_close_6", table),
        command_limit=table.read("command_limit", values.duration("1s", "10m"), _DOOR.command_limit),
    )
    _check_door(door, table)
    return door


def _variant(key: str, table: Table) -> tuple[str, ...] | None:
    """A command that stands for another; None where the other counts."""
    command = table.read_list(key, values.argument)
    return command if table.has(key) else None


# What counts for knocks alone. (After seq_timeout a record is too old to open anything, a packet's too.)
_NOT_OF_PACKETS = ("tcp_flags", "cooldown")


def _check_door(door: Door, table: Table) -> None:
    """What a door's own table shows of it."""
    if not values.NAME.fullmatch(door.name):
        table.error(
            "", "this is no name for a door", "up to 63 letters, digits and . _ -, the first a letter or a digit"
        )
    asked = [key for key in ("sequence", "onetime", "totp", "spa") if table.has(key)]
    if len(asked) > 1:
        message = "a door has a sequence or files of one-time sequences" + ", or totp, or spa" * bool(door.proof)
        table.error(asked[-1], message, "make two doors of it")
    elif not asked:
        table.error("sequence", "is missing", 'sequence = ["7000/tcp", "9000/udp", "8000/tcp"]; or onetime, totp, spa')
    elif not door.sequence and table.has("sequence") and "sequence" not in table.wrong:
        table.error("sequence", "has no knock", "three knocks are a good beginning")
    elif not door.onetime and table.has("onetime") and "onetime" not in table.wrong:
        table.error("onetime", "names no file", "`logknock onetime generate` makes one")
    if len(door.onetime) > MAX_FILES:
        table.error("onetime", f"names {len(door.onetime)} files, and {MAX_FILES} are the most", "make two doors of it")
    if door.proof == "spa" and not door.opens and "opens" not in table.wrong:
        table.error("opens", "is missing: a packet asks for services by name", 'opens = ["22/tcp"]')
    for key in _NOT_OF_PACKETS if door.proof == "spa" else ():
        if table.has(key):
            table.error(key, "does not apply to an SPA door: a single packet opens it", "leave it out")
    if door.name in door.closes:
        table.error("closes", "a door cannot close itself", "its timeout does that")
    for key in ("on_open", "on_close", "on_open_6", "on_close_6"):
        _check_command(key, getattr(door, key), table)
    if table.wrong.isdisjoint(("opens", "sets", "closes", "guard", "allow_file", "on_open", "on_close")):
        if not (door.grants or door.closes):
            table.error("", "this door does nothing", 'opens = ["22/tcp"], or sets, or closes')
        elif door.opens and not door.guard and not door.sets:
            hint = "leave guard out, or name the sets that your own rules look into"
            table.error("opens", "guard is false and there are no sets: nothing is opened", hint)
    if door.timeout > _DAY:
        message = "over a day: by then the address may be somebody else's"
        table.warn("timeout", message, "it limits new connections only, established ones live on")


def _check_command(key: str, command: tuple[str, ...] | None, table: Table) -> None:
    if command and key not in table.wrong and (not command[0].startswith("/") or "{src}" in command[0]):
        hint = "its arguments follow, an element each: no shell splits or expands anything"
        table.error(key, f"{command[0]!r} is no absolute path of a program", hint, item=0)


def _firewall(table: Table) -> Firewall:
    trusted = table.read_list("trusted", values.network)
    for at, network in enumerate(trusted):
        if not network.prefixlen:
            table.warn("trusted", f"{network} is everybody: nothing is closed", "name the networks", item=at)
    # nft refuses a set whose networks overlap
    v4 = collapse_addresses(net for net in trusted if isinstance(net, IPv4Network))
    v6 = collapse_addresses(net for net in trusted if isinstance(net, IPv6Network))
    return Firewall(
        trusted=(*v4, *v6),
        traps=table.read("traps", values.whole(0, MAX_TRAPS), _FIREWALL.traps),
        exclude=table.read_list("exclude", values.port_range),
        rate=table.read("rate", values.whole(1, MAX_RATE), _FIREWALL.rate),
        burst=table.read("burst", values.whole(1, MAX_RATE), _FIREWALL.burst),
        guarded=table.read_list("guarded", values.service, repeats=False),
        mark=table.read("mark", values.one_bit, _FIREWALL.mark),
        record=table.read("record", values.switch, _FIREWALL.record),
        restore=table.read("restore", values.switch, _FIREWALL.restore),
    )


def _scan(table: Table) -> Scan:
    counts = values.some_of(values.one_of(values.SCANS, "kind of packet"))
    return Scan(
        ports=table.read("ports", values.whole(0, MAX_SCAN_PORTS), _SCAN.ports),
        within=table.read("within", values.duration("1s", "1h"), _SCAN.within),
        ban=table.read("ban", values.duration("1s", "365d"), _SCAN.ban),
        counts=frozenset(table.read("counts", counts, tuple(_SCAN.counts))),
    )


# ---- doors beside doors

_Doors = list[tuple[Door, Table]]


def _check_together(path: Path, doors: _Doors, report: Report) -> None:
    """What only all doors together show."""
    if not doors and not any(note.path[:1] == ("doors",) for note in report.errors):
        hint = f"a minimal one, at the head of the file: {MINIMAL}"
        report.errors.append(Note(path, ("doors",), NO_DOOR, hint))
    names = {door.name for door, _ in doors}
    shown = ", ".join([*sorted(names)[:_MAX_NAMED], *(["..."] if len(names) > _MAX_NAMED else [])])
    guards = {service: door.name for door, _ in reversed(doors) if door.guard for service in door.opens}
    for door, table in doors:
        for service in dict.fromkeys(door.sequence):
            if service in guards:
                message = f"{service} is guarded, since door {guards[service]} opens it: a packet to it is no knock"
                table.error("sequence", message, "knock on a port that no door opens")
        for name in door.closes:
            if name not in names:
                table.error("closes", f"there is no door {name!r}", f"the doors are: {shown}")


def _check_guarded(wanted: Firewall, firewall: Table, doors: _Doors) -> None:
    """What is closed besides what the doors open: to all but the trusted, for good, if no door opens it.

    With a mark it is not we who close it.
    """
    opened = {service for door, _ in doors for service in door.opens}
    for at, service in enumerate(wanted.guarded):
        if service == _SSH and service not in opened and not wanted.mark:
            message = f"{service} is ssh, and no door opens it: it would be closed to you, too"
            firewall.error("guarded", message, f'a door needs opens = ["{service}"]', item=at)
        for door, table in doors:
            if service in door.sequence:
                message = f"{service} is guarded, by [firewall] guarded: a packet to it is no knock"
                table.error("sequence", message, "knock on another port")


def _warn_of_scans(traps: int, firewall: Table, doors: _Doors) -> None:
    """What a port scan can open: with traps, sequences of one or two knocks; without, every sequence sometimes (T3)."""
    lengths = [len(door.sequence) for door, _ in doors if len(door.sequence) > 1]
    onetime = any(door.onetime for door, _ in doors)  # how long their sequences are is not known here
    # Where nothing is guarded by our rules, the administrator's own log what they drop: that is better than traps.
    untrapped = not traps and any(door.guard and door.opens for door, _ in doors)
    if (lengths or onetime) and untrapped:
        many, times = ("n", "n!") if onetime else (str(min(lengths)), f"{factorial(min(lengths)):,}")
        message = f"without traps, a random scan of all ports opens {many} knocks once in {times} times"
        hint = "leave it out (1024), unless your own rules log all that they drop"
        firewall.warn("traps", message, hint)
    for door, table in doors:
        ports = [service.port for service in door.sequence]
        ascending = ports == sorted(ports) and len(set(door.sequence)) == len(ports)
        if len(ports) == 1:
            table.warn("sequence", "a single knock: any port scan opens the door", "three knocks or more")
        elif len(ports) == 2:
            message = f"two knocks: a random port scan opens the door about once in {max(traps, 2):,} times"
            table.warn("sequence", message, "three knocks or more")
        if len(ports) > 1 and len(set(ports)) == 1:
            message = f"all knocks are on port {ports[0]}: a client that just tries again opens the door"
            table.warn("sequence", message, "knock on different ports")
        elif len(ports) > 1 and ascending and untrapped:
            message = "ascending, and there are no traps: a port scan from low to high opens the door every time"
            table.warn("sequence", message, "knock in another order, or leave traps at 1024")


def _warn_of_bans(config: Config, scan: Table) -> None:
    """Where no scanner would be noticed or banned, and where others would be (T6, T12)."""
    ports, firewall = config.scan.ports, config.firewall
    if ports < FEW_SCAN_PORTS:
        message = f"{ports}: who tries {ports} ports by mistake is banned"
        scan.warn("ports", message, f"{FEW_SCAN_PORTS} or more")
    if not config.guarded:
        message = "bans need the rules of logknock, which nothing else here needs"
        scan.warn("ports", message, "`logknock rules apply` loads them; they guard nothing then")
    if firewall.record and not firewall.traps:
        message = "without traps our rules record knock ports only, and those do not count: no scan is noticed"
        scan.warn("ports", message, "leave traps at 1024, unless your own rules log what they drop")
    elif firewall.record and ports > firewall.burst:
        message = f"of a fast scan {firewall.burst} packets are recorded ([firewall] burst): it is not noticed"
        scan.warn("ports", message, f"{firewall.burst // 2} or fewer")
    if "udp" in config.scan.counts:
        message = "sources of UDP are forged for free: anybody can have anybody banned but the trusted"
        scan.warn("counts", message, 'counts = "syn", which is harder to forge')


# What makes two sequences the same; TCP flags (None here) say nothing of knocks that are all over UDP.
_Signature = tuple[TcpFlags | None, tuple[Service, ...]]


def _signature(flags: TcpFlags | None, knocks: tuple[Service, ...]) -> _Signature:
    return (None if all(knock.proto == UDP for knock in knocks) else flags, knocks)


def _warn_of_overlaps(doors: _Doors) -> None:
    """Sequences that are the same as another's, or part of it: one who knocks the other's completes both."""
    first: dict[_Signature, tuple[Door, Table]] = {}
    for door, table in doors:
        if not door.sequence:
            continue
        same, _ = first.setdefault(_signature(door.tcp_flags, door.sequence), (door, table))
        if same is not door:
            message = f"the same as door {same.name}'s: whoever knocks it completes both"
            table.warn("sequence", message, "right if both are meant to open together")
    lengths = {len(knocks) for _, knocks in first}
    holders: dict[_Signature, list[str]] = defaultdict(list)
    for (flags, knocks), (door, _) in first.items():
        for part in _parts(flags, knocks, lengths) & first.keys():
            begins = "begins" if knocks[: len(part[1])] == part[1] else "is part of"
            holders[part].append(f"{begins} door {door.name}'s")
    for part, where in holders.items():
        more = f" (and {len(where) - 1} others)" if len(where) > 1 else ""
        message = f"{where[0]}{more}: whoever knocks that completes this one too"
        first[part][1].warn("sequence", message, "right if it is meant to happen; else begin it differently")


def _parts(flags: TcpFlags | None, knocks: tuple[Service, ...], lengths: set[int]) -> set[_Signature]:
    """The proper parts of a sequence that are as long as some door's whole sequence."""
    return {
        _signature(flags, knocks[at : at + length])
        for length in lengths
        if length < len(knocks)
        for at in range(len(knocks) - length + 1)
    }
