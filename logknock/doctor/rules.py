"""What a host's rules do with a packet, as far as their text shows: nftables' (libnftables' JSON) and iptables' alike.

Rule 1: pure; a listing comes in, and how it was had is known elsewhere. Rule 2: no packet is ever judged for certain on
a condition that cannot be decided here (a set, a mark, an address): such a rule may match or not, and both are
followed. Rule 3: what is not known in a listing is such a condition, and no error.
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
from ..packet import PROTOCOLS

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
    """What a rule logs with: an NFLOG group, or None for the kernel log; limit: what bounds it ("3/minute"), if so."""

    where: str
    group: int | None
    prefix: str
    limit: str = ""


def bare(prefix: str) -> str:
    """A prefix as two of them are compared: without blanks and a colon at its end."""
    return prefix.rstrip().removesuffix(":").rstrip()


class Match(Enum):
    """Whether a rule matches a new connection from outside."""

    NO = auto()
    MAYBE = auto()
    YES = auto()


class Rule(NamedTuple):
    """One rule: what it does, and what it asks of a packet before.

    verdict: accept, drop, jump, goto, return, or "" for one that goes on; target: the chain of a jump or goto.
    protocols, ports: None for any; ports are (first, last). never: it is not about new connections from outside.
    unknown: it asks for more than can be told here. translates: it changes the destination.
    """

    verdict: str = ""
    target: str = ""
    protocols: frozenset[int] | None = None
    ports: tuple[tuple[int, int], ...] | None = None
    never: bool = False
    unknown: bool = False
    log: Log | None = None
    translates: bool = False

    def match(self, service: Service) -> Match:
        """Whether it matches the first packet of somebody else to this service."""
        if self.never or (self.protocols is not None and service.proto not in self.protocols):
            return Match.NO
        if self.ports is not None and not any(first <= service.port <= last for first, last in self.ports):
            return Match.NO
        return Match.MAYBE if self.unknown else Match.YES


class Chain(NamedTuple):
    """A chain; hook is "" for one that others jump to. A lower priority comes first."""

    family: str
    table: str
    name: str
    hook: str
    priority: int
    policy: str
    rules: tuple[Rule, ...]

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

    def fate(self, base: Chain, service: Service) -> "Fate":
        """What may happen to a new connection to the service in this chain and those that it jumps to."""
        walk = _Walk({chain.name: chain for chain in self.chains if chain[:2] == base[:2]}, service)
        if not walk.through(base, 0):
            walk.verdicts.add(base.policy)
        return Fate(frozenset(walk.verdicts), tuple(dict.fromkeys(walk.logs)))


class Fate(NamedTuple):
    """What may become of a packet: the verdicts that are possible, and what may have logged it before."""

    verdicts: frozenset[str]
    logs: tuple[Log, ...]


class _Walk:
    """One packet's way through the chains of a table."""

    def __init__(self, chains: dict[str, Chain], service: Service) -> None:
        self._chains = chains
        self._service = service
        self.verdicts: set[str] = set()
        self.logs: list[Log] = []

    def through(self, chain: Chain, depth: int) -> bool:
        """Whether the packet has surely met its verdict when the chain is over."""
        certain = True  # that it has not left the chain already
        for rule in chain.rules if depth < _MAX_DEPTH else ():
            match = rule.match(self._service)
            if match is Match.NO:
                continue
            if rule.log:
                self.logs.append(rule.log)
            if rule.verdict in ("jump", "goto"):
                target = self._chains.get(rule.target)
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


def from_nft(items: Iterable[dict[str, Any]], without: frozenset[tuple[str, str]] = frozenset()) -> Listing:
    """What `nft -j list ruleset` shows, but for the chains of the tables (family, table) that are listed otherwise."""
    chains: dict[tuple[str, str, str], Chain] = {}
    rules: dict[tuple[str, str, str], list[Rule]] = defaultdict(list)
    sets: list[Set] = []
    tables: set[tuple[str, str]] = set()
    version = ""
    for item in items:
        for kind, shown in item.items():
            if kind == "metainfo":
                version = str(shown.get("version", ""))
            elif kind == "table":
                tables.add((shown["family"], shown["name"]))
            elif kind == "set":
                sets.append(_set(shown))
            elif kind == "chain" and (shown["family"], shown["table"]) not in without:
                key = shown["family"], shown["table"], shown["name"]
                policy = str(shown.get("policy", "accept"))
                chains[key] = Chain(*key, str(shown.get("hook", "")), int(shown.get("prio", 0)), policy, ())
            elif kind == "rule":
                key = shown["family"], shown["table"], shown["chain"]
                if key in chains:
                    rules[key] += _nft_rules(shown.get("expr", []), str(chains[key]))
    complete = (chain._replace(rules=tuple(rules[key])) for key, chain in chains.items())
    return Listing(tuple(complete), tuple(sets), frozenset(tables), version)


def _set(shown: dict[str, Any]) -> Set:
    kind = shown["type"]
    types = tuple(map(str, kind)) if isinstance(kind, list) else (str(kind),)
    flags = shown.get("flags", ())
    named = frozenset(flags if isinstance(flags, (list, tuple)) else (flags,))
    name = SetName(shown["family"], shown["table"], shown["name"])
    return Set(name, types, named, int(shown.get("size", 0)))


_VERDICTS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return", "queue": "accept"}
_NEUTRAL = {"counter", "comment", "log", "mangle", "set", "ct helper", "notrack", "xt target"}


def _nft_rules(expressions: list[dict[str, Any]], where: str) -> Iterator[Rule]:
    """A rule, or for a verdict map a rule for each of its entries."""
    rule, limit = Rule(), ""
    for expression in expressions:
        for kind, shown in expression.items():
            if kind == "match":
                rule = _nft_match(rule, shown)
            elif kind == "limit":
                rule, limit = rule._replace(unknown=True), _limit(shown)
            elif kind == "log":
                shown = shown or {}
                rule = rule._replace(log=Log(where, shown.get("group"), str(shown.get("prefix", "")), limit))
            elif kind in ("jump", "goto"):
                rule = rule._replace(verdict=kind, target=str(shown["target"]))
            elif kind in _VERDICTS:
                rule = rule._replace(verdict=_VERDICTS[kind])
            elif kind in ("dnat", "redirect"):
                rule = rule._replace(verdict="accept", translates=True)
            elif kind == "vmap":
                yield from _nft_map(rule, shown)
                return
            elif kind not in _NEUTRAL:
                rule = rule._replace(unknown=True)
                if kind == "xt":  # iptables' own: it may be any verdict too
                    yield rule._replace(verdict="accept")
    yield rule


def _limit(shown: dict[str, Any]) -> str:
    unit = shown.get("rate_unit", "")  # of bytes, where there is one
    return f"{shown.get('rate')}{unit and ' '}{unit}/{shown.get('per', 'second')}"


def _nft_match(rule: Rule, match: dict[str, Any]) -> Rule:
    left, right, plain = match.get("left"), match.get("right"), match.get("op") in ("==", "in")
    what = _left(left)
    values = _values(right)
    if not plain or values is None:
        return rule._replace(unknown=True)
    if what == "dport":
        return _with_dport(rule, left, values)
    if what == "l4proto":
        protocols = [PROTOCOLS.get(str(value), value) for value in values]
        return rule._replace(protocols=frozenset(number for number in protocols if isinstance(number, int)))
    if what == "state":
        return rule if "new" in values else rule._replace(never=True)
    if what == "input":
        return rule._replace(never=True) if values == ["lo"] else rule._replace(unknown=True)
    return rule._replace(unknown=True)


def _with_dport(rule: Rule, left: Any, values: list[Any]) -> Rule:
    proto = PROTOCOLS.get(str(left["payload"].get("protocol")))
    ports = tuple(_ports(values))
    if proto is None:  # `th dport`, beside which a match on the protocol stands
        return rule._replace(ports=ports)
    return rule._replace(ports=ports, protocols=frozenset((proto,)))


def _left(left: Any) -> str:
    """What of a packet is looked at, where it is something that matters here."""
    match left:
        case {"payload": {"field": "dport"}}:
            return "dport"
        case {"meta": {"key": "l4proto"}}:
            return "l4proto"
        case {"ct": {"key": "state"}}:
            return "state"
        case {"meta": {"key": "iifname" | "iif"}}:
            return "input"
    return ""


def _values(right: Any) -> list[Any] | None:
    """The values that are compared with; None for a named set, whose elements are not here."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    values = right if isinstance(right, list) else [right]
    values = [value["elem"]["val"] if isinstance(value, dict) and "elem" in value else value for value in values]
    return None if any(isinstance(value, str) and value.startswith("@") for value in values) else values


def _ports(values: list[Any]) -> Iterator[tuple[int, int]]:
    for value in values:
        match value:
            case int():
                yield value, value
            case {"range": [int(first), int(last)]}:
                yield first, last


def _nft_map(rule: Rule, shown: dict[str, Any]) -> Iterator[Rule]:
    what, data = _left(shown.get("key")), shown.get("data")
    entries = data.get("set", []) if isinstance(data, dict) else None
    if entries is None:  # a named map: it may have any verdict
        for verdict in ("accept", "drop"):
            yield rule._replace(verdict=verdict, unknown=True)
        return
    for key, verdict in entries:
        one = _nft_match(rule, {"op": "==", "left": shown["key"], "right": key}) if what else rule
        for kind, target in verdict.items():
            name = str(target["target"]) if kind in ("jump", "goto") else ""
            yield one._replace(verdict=_VERDICTS.get(kind, kind), target=name, unknown=one.unknown or not what)


def services_of(elements: Iterable[Any]) -> Iterator[Service]:
    """The services that elements of `inet_proto . inet_service` are, a range of ports as its ends."""
    for element in elements:
        match element:
            case {"concat": [proto, int(port)]}:
                yield Service(_proto(proto), port)
            case {"concat": [proto, {"range": [int(first), int(last)]}]}:
                yield from (Service(_proto(proto), port) for port in range(first, last + 1))


def _proto(shown: object) -> int:
    return PROTOCOLS.get(str(shown), shown if isinstance(shown, int) else 0)


def networks_of(elements: Iterable[Any]) -> Iterator[Network]:
    """The networks that elements of an interval set of addresses are."""
    for element in elements:
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
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and len(line.split()) > 1:
            name, policy, *_ = line[1:].split()
            hook, priority = _BUILT_IN.get((table, name), ("", 0))
            known = "drop" if policy == "DROP" else "accept"
            chains[table, name] = Chain(family, table, name, hook, priority, known, ())
        elif line.startswith("-A "):
            _, name, *words = *_split(line), ""
            if chain := chains.get((table, name)):
                rules[table, name].append(_save_rule(words, str(chain)))
    return Listing(tuple(chain._replace(rules=tuple(rules[key])) for key, chain in chains.items()))


def _split(line: str) -> list[str]:
    if '"' not in line and "\\" not in line:
        return line.split()  # ten times as fast
    try:
        return shlex.split(line)
    except ValueError:  # a quotation mark that has no second
        return line.split()


_TARGETS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return", "QUEUE": "accept"}
_TARGETS |= {"NFQUEUE": "accept", "DNAT": "accept", "REDIRECT": "accept"}
_GO_ON = {"LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TRACE", "SET", "TCPMSS", "CHECKSUM", "TOS", "DSCP"}
_HARMLESS = {"-m", "--reject-with", "--comment", "--limit-burst"}  # each with its word


def _save_rule(words: list[str], where: str) -> Rule:
    rule, limit, wanted, inverted = Rule(), "", "", False
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
        if word not in _HARMLESS:
            rule = rule._replace(unknown=True) if inverted else _save_match(rule, word, value)
        inverted = False
    if rule.log and wanted in ("LOG", "NFLOG") and limit:
        rule = rule._replace(log=rule.log._replace(limit=limit))
    return rule


def _save_match(rule: Rule, word: str, value: str) -> Rule:
    if word in ("-p", "--protocol"):
        if value == "all":
            return rule
        number = PROTOCOLS.get(value, _number(value))
        return rule._replace(protocols=frozenset((number,)))
    if word in ("--dport", "--dports", "--destination-port"):
        return rule._replace(ports=tuple(_save_ports(value)))
    if word in ("--ctstate", "--state"):
        return rule if "NEW" in value.split(",") else rule._replace(never=True)
    if word in ("-i", "--in-interface") and value == "lo":
        return rule._replace(never=True)
    return rule._replace(unknown=True)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _save_ports(value: str) -> Iterator[tuple[int, int]]:
    for first, last in re.findall(r"(\d+)(?::(\d+))?", value):
        yield int(first), int(last or first)


def _save_target(rule: Rule, word: str, value: str, options: dict[str, str], where: str) -> Rule:
    if value == "LOG":
        return rule._replace(log=Log(where, None, options.get("--log-prefix", "")))
    if value == "NFLOG":
        group = options.get("--nflog-group", "0")
        prefix = options.get("--nflog-prefix", "")
        return rule._replace(log=Log(where, _number(group), prefix))
    if value in _TARGETS:
        return rule._replace(verdict=_TARGETS[value], translates=value in ("DNAT", "REDIRECT"))
    if value in _GO_ON:
        return rule
    return rule._replace(verdict="goto" if word == "-g" else "jump", target=value)
