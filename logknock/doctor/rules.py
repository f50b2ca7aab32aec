"""What a host's rules do with a packet, as far as their text shows: nftables' (libnftables' JSON) and iptables' alike.

Rule 1: pure; a listing comes in, and how it was had is known elsewhere. Rule 2: no packet is ever judged for certain on
a condition that cannot be decided here (a set, a mark, an address): such a rule may match or not, and both are
followed. Rule 3: what is not known in a listing, or not of the shape that is known, is such a condition, and no error.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from ipaddress import ip_address, ip_network, summarize_address_range
from itertools import pairwise
from typing import Any, NamedTuple

from ..config_values import Network
from ..knock import Service, SetName
from ..packet import ICMP, ICMP6, PROTOCOLS

# What nft and iptables call them, too.
_PROTOCOLS = PROTOCOLS | {"icmp": ICMP, "ipv6-icmp": ICMP6, "icmpv6": ICMP6}

# An echo request, which is the one kind of ICMP that anything here is about: by protocol, its type's names and number.
_ECHO = {ICMP: {"echo-request", "ping", "8", 8}, ICMP6: {"echo-request", "ping", "128", 128}}

# Where a packet to this host passes, in order; what is routed on or sent is not looked at.
HOOKS = ("ingress", "prerouting", "input")

# Families whose chains see no packets to a service of this host, though their hooks have the same names.
_OTHERS = ("arp", "bridge")

# The kernel refuses loops and more than 16 jumps (NFT_JUMP_STACK_SIZE); a listing may say anything.
_MAX_DEPTH = 16

# Behind the family of iptables' old tables: there may be one of the same name in nftables.
LEGACY = "-legacy"

# linux/netfilter_ipv4.h: the chains that iptables' tables have by themselves, with hook and priority.
_BUILT_IN = {
    ("raw", "PREROUTING"): ("prerouting", -300),
    ("mangle", "PREROUTING"): ("prerouting", -150),
    ("nat", "PREROUTING"): ("prerouting", -100),
    ("mangle", "INPUT"): ("input", -150),
    ("filter", "INPUT"): ("input", 0),
    ("security", "INPUT"): ("input", 50),
}


class Log(NamedTuple):
    """What a rule logs with: an NFLOG group, or None for the kernel log; limit: what bounds it ("3/minute"), if so.

    size: the most of each packet that is handed over, in bytes; 0: all that is asked for.
    """

    where: str
    group: int | None
    prefix: str
    limit: str = ""
    size: int = 0


class Match(Enum):
    """Whether a rule matches a new connection from outside."""

    NO = auto()
    MAYBE = auto()
    YES = auto()


class Mark(NamedTuple):
    """What a rule asks of a packet's mark: that the bits of the mask are those of the value, or that they are not."""

    mask: int
    value: int
    equal: bool = True

    def match(self, bit: int) -> Match:
        """Whether it holds for a packet that has this bit, and of which the others are not known; 0: none is."""
        if self.mask & bit and not self.value & bit:
            return Match.NO if self.equal else Match.YES
        if bit and self.mask == bit:
            return Match.YES if self.equal else Match.NO
        return Match.MAYBE


class Rule(NamedTuple):
    """One rule: what it does, and what it asks of a packet before.

    verdict: accept, drop, jump, goto, return, or "" for one that goes on; target: the chain of a jump or goto.
    protocols, ports: None for any; ports are (first, last). never: it is not about new connections from outside.
    unknown: it asks for more than can be told here. translates: it changes the destination.
    sets: the named sets of its table that it looks into. marks: what it asks of the mark; sets_mark: the bits that it
    sets there.
    """

    verdict: str = ""
    target: str = ""
    protocols: frozenset[int] | None = None
    ports: tuple[tuple[int, int], ...] | None = None
    never: bool = False
    unknown: bool = False
    log: Log | None = None
    translates: bool = False
    sets: frozenset[str] = frozenset()
    marks: tuple[Mark, ...] = ()
    sets_mark: int = 0

    def match(self, service: Service, bit: int = 0) -> Match:
        """Whether it matches the first packet of somebody else to this service; bit: one that its mark has for sure."""
        if self.never or (self.protocols is not None and service.proto not in self.protocols):
            return Match.NO
        if self.ports is not None and not any(first <= service.port <= last for first, last in self.ports):
            return Match.NO
        found = {mark.match(bit) for mark in self.marks}
        if Match.NO in found:
            return Match.NO
        return Match.MAYBE if self.unknown or Match.MAYBE in found else Match.YES


class Chain(NamedTuple):
    """A chain; hook is "" for one that others jump to. A lower priority comes first.

    program: what changes it, "iptables" or one of its kind; "" for nft.
    """

    family: str
    table: str
    name: str
    hook: str
    priority: int
    policy: str
    rules: tuple[Rule, ...]
    program: str = ""

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"

    @property
    def place(self) -> tuple[int, int]:
        """By which chains with a hook are in order."""
        return HOOKS.index(self.hook), self.priority


class Set(NamedTuple):
    """A set as it is listed, without its elements; size 0: unlimited."""

    full_name: SetName
    types: tuple[str, ...]
    flags: frozenset[str]
    size: int


class Listing(NamedTuple):
    """All that is listed of a host's firewall."""

    chains: tuple[Chain, ...] = ()
    sets: tuple[Set, ...] = ()
    tables: frozenset[tuple[str, str]] = frozenset()
    version: str = ""

    @property
    def logs(self) -> tuple[Log, ...]:
        """What logs anywhere, each way of it once."""
        return tuple(dict.fromkeys(rule.log for chain in self.chains for rule in chain.rules if rule.log))

    @property
    def bases(self) -> tuple[Chain, ...]:
        """The chains that a packet to this host passes, in order."""
        found = (chain for chain in self.chains if chain.hook in HOOKS and chain.family not in _OTHERS)
        return tuple(sorted(found, key=lambda chain: chain.place))

    @property
    def translates(self) -> bool:
        """Whether some rule sends packets elsewhere than they were sent to."""
        return any(rule.translates for chain in self.chains for rule in chain.rules)

    def users(self, name: SetName) -> tuple[Rule, ...]:
        """The rules that look into a set; only those of its own table can."""
        chains = (chain for chain in self.chains if (chain.family, chain.table) == (name.family, name.table))
        return tuple(rule for chain in chains for rule in chain.rules if name.name in rule.sets)

    def fate(self, base: Chain, service: Service, bit: int = 0) -> "Fate":
        """What may happen to a new connection to the service in this chain and those that it jumps to.

        bit: one that the mark of its packets has, whatever else is in it; 0: nothing is known of it.
        """
        walk = _Walk({chain.name: chain for chain in self.chains if chain[:2] == base[:2]}, service, bit)
        if not walk.through(base, 0):
            walk.verdicts.add(base.policy)
        return Fate(frozenset(walk.verdicts), tuple(dict.fromkeys(walk.logs)))


class Fate(NamedTuple):
    """What may become of a packet: the verdicts that are possible, and what may have logged it before."""

    verdicts: frozenset[str]
    logs: tuple[Log, ...]


class _Walk:
    """One packet's way through the chains of a table."""

    def __init__(self, chains: dict[str, Chain], service: Service, bit: int) -> None:
        self._chains = chains
        self._service = service
        self._bit = bit
        self._ended: dict[str, bool] = {}  # what through() has found; until then, for a chain that jumps to itself
        self.verdicts: set[str] = set()
        self.logs: list[Log] = []

    def through(self, chain: Chain, depth: int) -> bool:
        """Whether the packet has surely met its verdict when the chain is over; each chain is gone through once."""
        if chain.name not in self._ended:
            self._ended[chain.name] = False
            self._ended[chain.name] = self._follow(chain, depth)
        return self._ended[chain.name]

    def _follow(self, chain: Chain, depth: int) -> bool:
        certain = True  # that it has not left the chain already
        for rule in chain.rules if depth < _MAX_DEPTH else ():
            match = rule.match(self._service, self._bit)
            if match is Match.NO:
                continue
            if rule.log:
                self.logs.append(rule.log)
            if rule.verdict in ("jump", "goto"):
                target = self._chains.get(rule.target)
                if target is None:  # it is not listed, or no chain, but something that is not known here
                    self.verdicts |= _ANY
                ended = target is not None and self.through(target, depth + 1)
            elif rule.verdict in ("", "return"):
                ended = False
            else:
                self.verdicts.add(rule.verdict)
                ended = True
            if match is Match.YES and ended:
                return certain
            if rule.verdict in ("return", "goto") and not ended:
                if match is Match.YES:
                    return False
                certain = False
        return False


# ---- nftables, as libnftables lists it (libnftables-json(5))


def from_nft(items: Iterable[Any], without: frozenset[tuple[str, str]] = frozenset()) -> Listing:
    """What `nft -j list ruleset` shows, but for the chains of the tables (family, table) that are listed otherwise."""
    chains: dict[tuple[str, str, str], Chain] = {}
    rules: dict[tuple[str, str, str], list[Rule]] = defaultdict(list)
    sets: list[Set] = []
    tables: set[tuple[str, str]] = set()
    version = ""
    for kind, shown in _parts(list(items)):
        match kind, shown:
            case "metainfo", {"version": str(version)}:
                pass
            case "table", {"family": str(family), "name": str(name)}:
                tables.add((family, name))
            case "set", {"family": str(family), "table": str(table), "name": str(name)}:
                sets.append(_set(SetName(family, table, name), shown))
            case "chain", {"family": str(family), "table": str(table), "name": str(name)}:
                if (family, table) not in without:
                    chains[family, table, name] = _chain((family, table, name), shown)
            case "rule", {"family": str(family), "table": str(table), "chain": str(name)}:
                key = family, table, name
                if key in chains:
                    rules[key] += _nft_rules(shown.get("expr"), str(chains[key]))
    complete = (chain._replace(rules=tuple(rules[key])) for key, chain in chains.items())
    return Listing(tuple(complete), tuple(sets), frozenset(tables), version)


def _parts(shown: Any) -> Iterator[tuple[str, Any]]:
    """A list of objects as pairs of key and value; "" for what is no object."""
    for one in shown if isinstance(shown, list) else [shown]:
        yield from one.items() if isinstance(one, dict) else [("", one)]


def _chain(key: tuple[str, str, str], shown: dict[str, Any]) -> Chain:
    hook, priority, policy = shown.get("hook"), shown.get("prio"), shown.get("policy")
    return Chain(
        *key,
        hook if isinstance(hook, str) else "",
        priority if isinstance(priority, int) else 0,
        "drop" if policy == "drop" else "accept",
        (),
    )


def _set(name: SetName, shown: dict[str, Any]) -> Set:
    kind, flags, size = shown.get("type"), shown.get("flags", ()), shown.get("size")
    types = tuple(map(str, kind)) if isinstance(kind, list) and kind else (str(kind),)
    named = frozenset(map(str, flags) if isinstance(flags, (list, tuple)) else (str(flags),))
    return Set(name, types, named, size if isinstance(size, int) else 0)


_ANY = frozenset({"accept", "drop"})
_VERDICTS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return", "continue": ""}
_NEUTRAL = {"counter", "comment", "mangle", "set", "map", "notrack", "last", "dup", "secmark"}
_NEUTRAL |= {"ct helper", "ct timeout", "ct expectation"}
_CONDITIONS = {"quota", "ct count", "meter", "flow"}  # it goes on with the rule, or not


def _nft_rules(expressions: Any, where: str) -> Iterator[Rule]:
    """A rule; more than one where it may have several verdicts."""
    rule, limit = Rule(), ""
    for kind, shown in _parts(expressions):
        match kind, shown:
            case "match", dict():
                rule = _nft_match(rule, shown)
            case "mangle", {"key": {"meta": {"key": "mark"}}, "value": {"|": [_, int(bits)]}}:
                rule = rule._replace(sets_mark=rule.sets_mark | bits)
            case "limit", _:
                rule, limit = rule._replace(unknown=True), _limit(shown)
            case "log", dict() | None:
                rule = rule._replace(log=_log(where, shown or {}, limit))
            case "jump" | "goto", {"target": str(target)}:
                rule = rule._replace(verdict=kind, target=target)
            case "dnat" | "redirect", _:
                rule = rule._replace(verdict="accept", translates=True)
            case "queue", _:  # what reads the queue says which
                yield rule._replace(verdict="drop", unknown=True)
                rule = rule._replace(verdict="accept")
            case "vmap", _:
                yield from _nft_map(rule, shown)
                return
            case _ if kind in _VERDICTS:
                rule = rule._replace(verdict=_VERDICTS[kind])
            case _ if kind in _CONDITIONS:
                rule = rule._replace(unknown=True)
            case _ if kind not in _NEUTRAL:  # "xt" too, which is iptables' own
                rule = rule._replace(unknown=True)
                yield from _either(rule)
    yield rule


def _either(rule: Rule) -> Iterator[Rule]:
    """Whatever it does: it may let a packet pass, drop it, or do neither."""
    for verdict in sorted(_ANY):
        yield rule._replace(verdict=verdict, unknown=True)


def _limit(shown: Any) -> str:
    if not isinstance(shown, dict):
        return f"limit {shown}"  # the name of one
    unit = shown.get("rate_unit", "")  # of bytes, where there is one
    return f"{shown.get('rate')}{unit and ' '}{unit}/{shown.get('per', 'second')}"


def _log(where: str, shown: dict[str, Any], limit: str) -> Log:
    group, prefix, size = shown.get("group"), shown.get("prefix", ""), shown.get("snaplen", 0)
    return Log(
        where,
        group if isinstance(group, int) else None,
        str(prefix),
        limit,
        size if isinstance(size, int) else 0,
    )


def _nft_match(rule: Rule, match: dict[str, Any]) -> Rule:
    left, plain = match.get("left"), match.get("op") in ("==", "in")
    what, values = _left(left), _values(match.get("right"))
    named = {value[1:] for value in values if isinstance(value, str) and value.startswith("@")}
    rule = rule._replace(sets=rule.sets | named)
    known = _with_mark(rule, match)
    if plain and what == "dport":
        known = _with_dport(rule, left, values)
    elif plain and what == "l4proto":
        known = _with_protocols(rule, values)
    elif plain and what == "icmp":
        known = _with_icmp_types(rule, left, values)
    elif plain and what == "state":
        known = _with_states(rule, values)
    elif plain and what == "input" and values == ["lo"]:
        known = rule._replace(never=True)
    return known or rule._replace(unknown=True)


def _with_dport(rule: Rule, left: Any, values: list[Any]) -> Rule | None:
    """None where a value is not known: a named set, say, whose elements are not here."""
    ports = [_range(value) for value in values]
    if None in ports:
        return None
    rule = rule._replace(ports=tuple(port for port in ports if port))
    proto = PROTOCOLS.get(str(left["payload"].get("protocol")))
    # For `th dport` a match on the protocol stands beside it.
    return rule if proto is None else rule._replace(protocols=frozenset((proto,)))


def _with_protocols(rule: Rule, values: list[Any]) -> Rule | None:
    numbers = [_number_of(value) for value in values]
    return None if None in numbers else rule._replace(protocols=frozenset(number for number in numbers if number))


def _number_of(value: Any) -> int | None:
    """A protocol's number, -1 for a name that is none of ours; None for what is neither name nor number."""
    if isinstance(value, str) and not value.startswith("@"):
        return _PROTOCOLS.get(value, -1)
    return value if isinstance(value, int) else None


def _with_icmp_types(rule: Rule, left: Any, values: list[Any]) -> Rule | None:
    """None where a value is not known."""
    if not all(isinstance(value, (str, int)) and not str(value).startswith("@") for value in values):
        return None
    proto = _PROTOCOLS[left["payload"]["protocol"]]
    return rule._replace(protocols=frozenset((proto,)), never=_ECHO[proto].isdisjoint(values))


_WHOLE_MARK = 0xFFFFFFFF


def _with_mark(rule: Rule, match: dict[str, Any]) -> Rule | None:
    """None where it is not about the mark, or with more than a number."""
    equal = match.get("op") in ("==", "in")
    match match:
        case {"op": "==" | "!=", "left": {"&": [{"meta": {"key": "mark"}}, int(mask)]}, "right": int(value)}:
            return rule._replace(marks=(*rule.marks, Mark(mask, value, equal)))
        case {"op": "==" | "!=" | "in", "left": {"meta": {"key": "mark"}}, "right": int(value)}:
            return rule._replace(marks=(*rule.marks, Mark(_WHOLE_MARK, value, equal)))
    return None


_NOT_NEW = {"established", "related", "invalid"}


def _with_states(rule: Rule, values: list[Any]) -> Rule | None:
    if "new" in values:
        return rule
    return rule._replace(never=True) if all(value in _NOT_NEW for value in map(str, values)) else None


def _left(left: Any) -> str:
    """What of a packet is looked at, where it is something that matters here."""
    match left:
        case {"payload": {"field": "dport"}}:
            return "dport"
        case {"payload": {"protocol": "icmp" | "icmpv6", "field": "type"}}:
            return "icmp"
        case {"meta": {"key": "l4proto"}}:
            return "l4proto"
        case {"ct": {"key": "state"}}:
            return "state"
        case {"meta": {"key": "iifname" | "iif"}}:
            return "input"
    return ""


def _values(right: Any) -> list[Any]:
    """The values that are compared with."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    return [_plain(value) for value in (right if isinstance(right, list) else [right])]


def _plain(element: Any) -> Any:
    """An element without what is said of it (a comment, a timeout)."""
    match element:
        case {"elem": {"val": value}}:
            return value
    return element


def _range(value: Any) -> tuple[int, int] | None:
    match value:
        case int():
            return value, value
        case {"range": [int(first), int(last)]}:
            return first, last
    return None


def _nft_map(rule: Rule, shown: Any) -> Iterator[Rule]:
    """A rule for each entry of a verdict map."""
    match shown:
        case {"key": key, "data": {"set": list(entries)}}:
            for entry in entries:
                yield from _nft_entry(rule, key, entry)
        case _:  # a named map, say
            yield from _either(rule)


def _nft_entry(rule: Rule, key: Any, entry: Any) -> Iterator[Rule]:
    match entry:
        case [value, dict(verdict)]:
            one = _nft_match(rule, {"op": "==", "left": key, "right": value})
            yield from (found._replace(unknown=found.unknown or one.unknown) for found in _verdict(one, verdict))
        case _:
            yield from _either(rule)


def _verdict(rule: Rule, shown: dict[str, Any]) -> Iterator[Rule]:
    for kind, said in shown.items():
        match kind, said:
            case "jump" | "goto", {"target": str(target)}:
                yield rule._replace(verdict=kind, target=target)
            case _ if kind in _VERDICTS:
                yield rule._replace(verdict=_VERDICTS[kind])
            case _:
                yield from _either(rule)


def elements_of(items: Any) -> list[Any]:
    """The elements of the sets that `nft -j list set` shows."""
    found: list[Any] = []
    for part in _parts(items):
        match part:
            case "set", {"elem": list(elements)}:
                found += elements
    return found


_MAX_PORT = 65_535


def services_of(elements: Iterable[Any]) -> Iterator[Service]:
    """The services that elements of `inet_proto . inet_service` are, a range of ports as its ends."""
    for element in map(_plain, elements):
        match element:
            case {"concat": [proto, int(port)]}:
                yield Service(_proto(proto), port)
            case {"concat": [proto, {"range": [int(first), int(last)]}]}:
                yield from (Service(_proto(proto), port) for port in range(max(first, 0), min(last, _MAX_PORT) + 1))


def _proto(shown: object) -> int:
    return _PROTOCOLS.get(str(shown), shown if isinstance(shown, int) else 0)


def networks_of(elements: Iterable[Any]) -> Iterator[Network]:
    """The networks that elements of an interval set of addresses are; what is none is left out."""
    for element in map(_plain, elements):
        try:
            yield from _networks(element)
        except (ValueError, TypeError):  # no addresses; TypeError: a range from one family to the other
            continue


def _networks(element: Any) -> Iterator[Network]:
    match element:
        case str():
            yield ip_network(element)
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            yield ip_network(f"{address}/{length}")
        case {"range": [str(first), str(last)]}:
            yield from summarize_address_range(ip_address(first), ip_address(last))


# ---- iptables, as iptables-save prints it


def from_save(text: str, family: str) -> Listing:
    """What `iptables-save` shows (family "ip"), or `ip6tables-save` ("ip6"); LEGACY may stand behind."""
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[Rule]] = defaultdict(list)
    program = ("ip6tables" if family.startswith("ip6") else "iptables") + (LEGACY if family.endswith(LEGACY) else "")
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and len(line[1:].split()) > 1:
            name, policy, *_ = line[1:].split()
            hook, priority = _BUILT_IN.get((table, name), ("", 0))
            known = "drop" if policy == "DROP" else "accept"
            chains[table, name] = Chain(family, table, name, hook, priority, known, (), program)
        elif line.startswith("-A "):
            _, name, *words = *_split(line), ""
            if chain := chains.get((table, name)):
                rule = _save_rule(words, str(chain))
                if rule.verdict == "queue":  # what reads the queue says which
                    rules[table, name].append(rule._replace(verdict="drop", unknown=True))
                    rule = rule._replace(verdict="accept")
                rules[table, name].append(rule)
    return Listing(tuple(chain._replace(rules=tuple(rules[key])) for key, chain in chains.items()))


def _split(line: str) -> list[str]:
    if '"' not in line and "\\" not in line:
        return line.split()  # ten times as fast
    try:
        return shlex.split(line)
    except ValueError:  # a quotation mark that has no second
        return line.split()


_TARGETS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return", "QUEUE": "queue"}
_TARGETS |= {"NFQUEUE": "queue", "DNAT": "accept", "REDIRECT": "accept"}
_GO_ON = {"LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TRACE", "SET", "TCPMSS", "CHECKSUM", "TOS", "DSCP"}
_GO_ON |= {"AUDIT", "CLASSIFY", "CONNSECMARK", "HL", "SECMARK", "TEE", "TTL"}
_HARMLESS = {"-m", "--reject-with", "--comment", "--limit-burst"}  # each with its word


def _save_rule(words: list[str], where: str) -> Rule:
    rule, limit, wanted, module, inverted = Rule(), "", "", "", False
    options = dict(pairwise(words))
    at = iter(words)
    for word in at:
        if word == "!":
            inverted = True
            continue
        if not word.startswith("-"):
            continue
        value = options.get(word, "")
        if word in ("-j", "-g"):
            wanted = value
            rule = _save_target(rule, word, value, options, where)
            break  # what follows is the target's
        if word == "--limit":
            limit = value
        if word == "-m":
            module = value
        if word == "--mark" and module == "mark" and (asked := _save_mark(value)):
            rule, inverted = rule._replace(marks=(*rule.marks, asked._replace(equal=not inverted))), False
            continue
        if word not in _HARMLESS:
            rule = rule._replace(unknown=True) if inverted else _save_match(rule, word, value)
        inverted = False
    if rule.log and wanted in ("LOG", "NFLOG") and limit:
        rule = rule._replace(log=rule.log._replace(limit=limit))
    return rule


def _save_match(rule: Rule, word: str, value: str) -> Rule:
    if word in ("-p", "--protocol"):
        if value in ("all", "0"):
            return rule
        number = _PROTOCOLS.get(value, _number(value))
        return rule._replace(protocols=frozenset((number,)))
    if word in ("--icmp-type", "--icmpv6-type"):
        echoes = _ECHO[ICMP if word == "--icmp-type" else ICMP6]
        return rule if value == "any" or value in echoes else rule._replace(never=True)
    if word in ("--dport", "--dports", "--destination-port"):
        ports = tuple(_save_ports(value))
        return rule._replace(ports=ports) if ports else rule._replace(unknown=True)
    if word in ("--ctstate", "--state"):
        return rule if "NEW" in value.split(",") else rule._replace(never=True)
    if word in ("-i", "--in-interface") and value == "lo":
        return rule._replace(never=True)
    return rule._replace(unknown=True)


def _save_mark(value: str) -> Mark | None:
    found = re.fullmatch(r"0x([0-9a-f]{1,8})(?:/0x([0-9a-f]{1,8}))?", value)
    return Mark(int(found[2], 16) if found[2] else _WHOLE_MARK, int(found[1], 16)) if found else None


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _save_ports(value: str) -> Iterator[tuple[int, int]]:
    for first, last in re.findall(r"([0-9]{1,5})(?::([0-9]{1,5}))?", value):
        yield int(first), int(last or first)


def _save_target(rule: Rule, word: str, value: str, options: dict[str, str], where: str) -> Rule:
    if value == "LOG":
        return rule._replace(log=Log(where, None, options.get("--log-prefix", "")))
    if value == "NFLOG":
        group = options.get("--nflog-group", "0")
        prefix = options.get("--nflog-prefix", "")
        size = _number(options.get("--nflog-size", "0"))  # --nflog-range cuts nothing: iptables-extensions(8)
        return rule._replace(log=Log(where, _number(group), prefix, size=size))
    if value in _TARGETS:
        return rule._replace(verdict=_TARGETS[value], translates=value in ("DNAT", "REDIRECT"))
    if value in _GO_ON:
        return rule
    return rule._replace(verdict="goto" if word == "-g" else "jump", target=value)
