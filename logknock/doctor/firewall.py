"""Checks of the firewall: our table and its sets, the doors' own sets, what logs, and what else drops.

What a rule does is told from its text: see rules.py. What depends on an address, a mark, a set or the like may match or
not; a finding says what surely happens, or that nothing that could help is there.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from shlex import quote

from ..config_values import Network, PortRange
from ..errors import FirewallError, LogknockError
from ..firewall import iptables, marks
from ..firewall.sets import GUARDED, SPA, WATCHED
from ..knock import Door, Service, SetName
from ..packet import ICMP, ICMP6, TCP, UDP, bare
from ..totp import ranges
from .case import Case
from .finding import Finding, Level, counted, some
from .rules import HOOKS, LEGACY, Chain, Listing, Log, Match, networks_of, services_of

# What rules/logknock.nft makes, and what has to be in it; what rules/mark.nft has besides.
_CHAINS = ("guard", "guarded", "record", "tell", "trusted")
_ADMIT = "admit"
_OURS = ("inet", "logknock")
_PLACE = (HOOKS.index("prerouting"), -150)

# The sets that fill while it runs. From so full on it is time to look: what does not fit is not banned, or not let in.
_FILLING = ("granted4", "granted6", "banned4", "banned6", "noisy4", "noisy6", "rate4", "rate6")
_NEARLY_FULL = 0.9

_MOST_PORTS = 64  # in a command that is to be copied; where there are more, it does without

_KEPT = 0xFFFFFFFF  # a mask of the packet's mark: all of it

_FAMILIES = {4: "ip", 6: "ip6"}  # whose chains see one version of IP alone

_ICMP = {ICMP: "icmp", ICMP6: "icmpv6"}  # in nft's words

_WHOLE = 1_600  # bytes of the longest SPA packet, with its headers

# Before what comes at the usual priority, iptables' own chains too: those may drop what is to be seen.
_EARLY = -10


def table(case: Case) -> Iterator[Finding]:
    """`table inet logknock`: there, with its rules where they belong."""
    if not case.guards:
        yield Finding("table", Level.OK, "not needed: each door leaves the guard to rules of your own (guard = false)")
        return
    apply = case.command("rules apply")
    chains = _ours(case)
    empty = [name for name in _CHAINS if name not in chains or not chains[name].rules]
    if not chains:
        text = "there is no table inet logknock: nothing is guarded, no knock is logged, and the daemon does not start"
        yield Finding("table", Level.ERROR, text, apply)
    elif empty:
        text = f"table inet logknock has lost the rules of {_chains(empty)}: nothing is guarded, no knock is logged"
        yield Finding("table", Level.ERROR, text, apply)
    elif other := _other_rules(case):
        yield Finding("table", Level.ERROR, other, apply)
    elif not _is_sound(case):
        text = "chain guard is not at prerouting, priority mangle, any more: it guards nothing"
        yield Finding("table", Level.ERROR, text, f"logknock rules remove; {apply}")
    else:
        yield Finding("table", Level.OK, "inet logknock has its rules")


def _ours(case: Case) -> dict[str, Chain]:
    return {chain.name: chain for chain in case.host.listing.chains if (chain.family, chain.table) == _OURS}


def _other_rules(case: Case) -> str:
    """What is wrong where the rules are not those that [firewall] mark asks for; "" where they are."""
    wanted, there = case.config.firewall.mark, _marked(case)
    if wanted == there:
        return ""
    if not there:
        return (
            f"table inet logknock gives grantees no mark, and [firewall] mark is {wanted:#x}: it drops what is guarded"
        )
    if not wanted:
        return (
            f"table inet logknock only marks what it lets in ({there:#x}), and no mark is configured: it guards nothing"
        )
    return f"table inet logknock marks what it lets in with {there:#x}, and [firewall] mark is {wanted:#x}"


def _marked(case: Case) -> int:
    """The bit that our table sets; 0 where it sets none."""
    chain = _ours(case).get(_ADMIT)
    return next((rule.sets_mark for rule in chain.rules if rule.sets_mark), 0) if chain else 0


def _is_sound(case: Case) -> bool:
    """Whether our table has all its rules, where packets pass, and is the one that the configuration wants."""
    chains = _ours(case)
    if _other_rules(case):
        return False
    complete = all(name in chains and chains[name].rules for name in _CHAINS)
    return complete and chains["guard"].hook in HOOKS and chains["guard"].place == _PLACE


def _chains(names: list[str]) -> str:
    return f"chain {names[0]}" if len(names) == 1 else f"chains {', '.join(names)}"


# ---- our sets


def sets(case: Case) -> Iterator[Finding]:
    """Our sets: there, of the right kind, and holding what the configuration says."""
    if not case.guards or not _ours(case):
        return
    failure = case.sets.check([replace(door, sets=()) for door in case.config.doors]).ours
    if failure is not None and "rules of table" not in failure.message:  # those are told of above
        yield Finding("set-granted", Level.ERROR, failure.message, case.command("rules apply"))
    for check, name, wanted in (
        ("set-watched", WATCHED, case.knocked if case.config.firewall.record else frozenset()),
        ("set-guarded", GUARDED, case.config.guarded),
    ):
        yield from _compare(case, check, name, wanted)
    yield from _traps(case)
    yield from _spa(case)
    yield from _trusted(case)


def _compare(case: Case, check: str, name: SetName, wanted: frozenset[Service]) -> Iterator[Finding]:
    apply = case.command("rules apply")
    missing = case.sets.lacks(name, sorted(wanted))
    there = frozenset(services_of(case.host.elements(name.name)))
    if missing:
        what = "no knock there is logged" if name == WATCHED else "everybody reaches what it does not hold"
        text = f"set {name.name} lacks {some(ranges(missing))}: {what}; the configuration is newer than the rules"
        yield Finding(check, Level.ERROR, text, apply)
    elif (older := there - wanted) and (name != WATCHED or case.knows_all_knocks):
        what = "a packet there is a wrong knock" if name == WATCHED else "no door opens that any more"
        held = some(ranges(sorted(older)))
        text = f"set {name.name} still holds {held}: {what}; the configuration is newer than the rules"
        yield Finding(check, Level.WARNING, text, apply)
    else:
        yield Finding(check, Level.OK, counted(len(wanted), "service"))


def _traps(case: Case) -> Iterator[Finding]:
    wanted = case.config.firewall.traps if case.config.firewall.record else 0
    there = len(case.host.elements("traps"))
    if there < wanted:
        text = f"set traps holds {counted(there, 'port')} of {wanted:,} configured: a port scan has it easier (T1)"
        yield Finding("set-traps", Level.WARNING, text, case.command("rules apply"))
    elif there and not wanted:
        text = f"set traps holds {counted(there, 'port')}, and none is configured"
        yield Finding("set-traps", Level.WARNING, text, case.command("rules apply"))
    else:
        yield Finding("set-traps", Level.OK, counted(there, "port"))


def _spa(case: Case) -> Iterator[Finding]:
    config = case.config
    missing = set(case.sets.lacks(SPA, sorted({end for place in config.spa_places for end in place.ends})))
    if missing:
        lacking = (place for place in sorted(config.spa_places) if not missing.isdisjoint(place.ends))
        text = f"set spa lacks {_each(lacking)}: no SPA packet is read there; the configuration is newer than the rules"
        yield Finding("set-spa", Level.ERROR, text, case.command("rules apply"))
        return
    older = {to for to in services_of(case.host.elements(SPA.name)) if not _is_within(to, config.spa_places)}
    if older:
        text = f"set spa still holds {_each(sorted(older))}; the configuration is newer than the rules"
        yield Finding("set-spa", Level.WARNING, text, case.command("rules apply"))
    elif config.spa_places:
        yield Finding("set-spa", Level.OK, f"{counted(len(config.spa_places), 'range')} of ports")


def _is_within(service: Service, places: Iterable[PortRange]) -> bool:
    return any(proto == service.proto and first <= service.port <= last for proto, first, last in places)


def _each(services: Iterable[Service | PortRange]) -> str:
    """The first few of these; ICMP is ICMP, over IPv4 and IPv6."""
    return some(dict.fromkeys(map(str, services)))


def _is_timed(element: object) -> bool:
    """Whether it is an ssh session that tries rules out: that is trusted meanwhile, and goes by itself."""
    return isinstance(element, dict) and "timeout" in element.get("elem", ())


def _trusted(case: Case) -> Iterator[Finding]:
    elements = [element for name in ("trusted4", "trusted6") for element in case.host.elements(name)]
    there = list(networks_of(element for element in elements if not _is_timed(element)))
    wanted = case.config.firewall.trusted
    apply = case.command("rules apply")
    missing = [net for net in wanted if not _covered(net, there)]
    older = [net for net in there if not _covered(net, wanted)]
    if missing:
        text = f"the sets of the trusted lack {some(missing)}; the configuration is newer than the rules"
        yield Finding("set-trusted", Level.ERROR, text, apply)
    elif older:
        text = f"the rules still trust {some(older)}, and the configuration does not"
        yield Finding("set-trusted", Level.ERROR, text, apply)
    else:
        yield Finding("set-trusted", Level.OK, counted(len(wanted), "network"))


def _covered(net: Network, by: Iterable[Network]) -> bool:
    return any(other.prefixlen <= net.prefixlen and net.network_address in other for other in by)


def full(case: Case) -> Iterator[Finding]:
    """Sets that have hardly room for more."""
    sizes = {found.full_name.name: found.size for found in case.host.listing.sets if found.full_name[:2] == _OURS}
    crowded = False
    for name in _FILLING:
        size = sizes.get(name, 0)
        held = len(case.host.elements(name)) if size else 0
        if size and held >= size * _NEARLY_FULL:
            crowded = True
            level = Level.ERROR if name.startswith("granted") and held >= size else Level.WARNING
            text = f"set {name} holds {held:,} of {counted(size, 'element')}: {_what_then(name)}"
            yield Finding(
                "set-full",
                level,
                text,
                f"nft flush set inet logknock {name}  # look at it first: nft list set inet logknock {name}",
            )
    if sizes and not crowded:
        yield Finding("set-full", Level.OK, "all sets have room")


def _what_then(name: str) -> str:
    if name.startswith("granted"):
        return "when it is full, no door opens for anybody else"
    if name.startswith("banned"):
        return "when it is full, nobody else is banned"
    return "packets come from very many addresses, forged ones perhaps; when it is full, more is logged than needed"


# ---- doors' own sets


def door_sets(case: Case) -> Iterator[Finding]:
    """The sets that doors name: there, of a type that a door can be written to, with `flags timeout`."""
    named = False
    failed = False
    for door in case.config.doors:
        for name in door.sets:
            named = True
            failure = next(iter(case.sets.check([replace(door, sets=(name,), guard=False)]).others), None)
            if failure is not None:
                failed = True
                yield Finding(
                    "door-set", Level.ERROR, f"door {door.name}: {failure.message}", _remedy(case, name, failure)
                )
    if named and not failed:
        yield Finding("door-set", Level.OK, "the doors' own sets are there")


def _remedy(case: Case, name: SetName, failure: FirewallError) -> str:
    if any(found.full_name == name for found in case.host.listing.sets):
        return case.hint(failure.hint)
    (address,) = _types(case, name)
    make = f"nft 'add set {name} {{ type {address}; flags timeout; }}'"
    there = (name.family, name.table) in case.host.listing.tables
    return make if there else f"nft add table {name.family} {name.table}; {make}"


def _types(case: Case, name: SetName) -> tuple[str, ...]:
    """What a set holds; of one that is not there, what its name says."""
    for found in case.host.listing.sets:
        if found.full_name == name:
            return found.types
    return ("ipv6_addr" if name.family == "ip6" or name.name.endswith("6") else "ipv4_addr",)


# ---- what logs


def logs(case: Case) -> Iterator[Finding]:
    """A rule that logs to this group, or with this prefix, and that a packet to a knock port reaches."""
    config = case.config
    if case.guards and not _is_sound(case):
        return  # told of already, and the remedy is the same
    if "nflog" in config.sources:
        wanted = f"NFLOG group {config.group}"
        yield from _logs(case, wanted, lambda log: log.group == config.group, f"log group {config.group}")
        yield from _spa_logs(case)
    if case.reads_text:
        prefixes = [bare(prefix) for prefix in config.wanted.prefixes]
        wanted = "the kernel's log with the prefix " + " or ".join(map(_quoted, prefixes))
        if "nflog" not in config.sources:
            yield from _logs(case, wanted, case.is_read, f'log prefix "{prefixes[0]}: "')
        elif not any(log.group != config.group and case.is_read(log) for log in case.host.listing.logs):
            text = f"no rule logs to {wanted}: all records come by NFLOG, and none as text"
            yield Finding("log-rule", Level.NOTE, text, 'source = "nflog" alone would do in [log]')


def _logs(case: Case, wanted: str, fits: Callable[[Log], bool], statement: str) -> Iterator[Finding]:
    listing = case.host.listing
    fitting = [log for log in listing.logs if fits(log) and _records(case, log)]
    if not fitting:
        text = f"no rule logs to {wanted}: no knock is ever seen; {_others(listing.logs)}"
        yield Finding("log-rule", Level.ERROR, text, _log_remedy(case, sorted(case.knocked), statement))
        return
    where = ", ".join(dict.fromkeys(log.where for log in fitting))
    missed = [service for service in case.tried if not any(map(fits, _logged(case, service)))]
    if missed:
        text = f"packets to {some(missed)} do not reach the rule that logs to {wanted} (in {where})"
        yield Finding("log-rule", Level.ERROR, text, _log_remedy(case, missed, statement))
    else:
        yield Finding("log-rule", Level.OK, f"a rule logs to {wanted} (in {where})")
    if all(log.limit for log in fitting):
        limits = ", ".join(dict.fromkeys(log.limit for log in fitting))
        text = f"what logs to {wanted} (in {where}) is limited to {limits}: knocks get lost in a scan"
        ours = all(log.where.startswith(" ".join(_OURS)) for log in fitting)
        remedy = case.command("rules apply") if ours else "take the limit out of that rule, or raise it to 20/second"
        yield Finding("log-limit", Level.WARNING, text, remedy)


def _spa_logs(case: Case) -> Iterator[Finding]:
    """Whether packets to where SPA is awaited come to the group, and whole."""
    config = case.config
    found = {to: [log for log in _logged(case, to) if log.group == config.group] for to in _mailed(case)}
    statement = f"log group {config.group}"
    if missed := [to for to, logs in found.items() if not logs]:
        text = f"packets to {_each(missed)}, where SPA packets are to come, do not reach a rule with {statement}"
        yield Finding("log-rule", Level.ERROR, text, _log_remedy(case, missed, statement))
    elif cut := [to for to, logs in found.items() if all(0 < log.size < _WHOLE for log in logs)]:
        where = ", ".join(dict.fromkeys(log.where for to in cut for log in found[to]))
        text = f"packets to {_each(cut)}, where SPA packets are to come, are logged and cut (in {where})"
        own = "have that rule log whole packets: no snaplen, no --nflog-size"
        remedy = case.command("rules apply") if where.startswith(" ".join(_OURS)) else own
        yield Finding("log-rule", Level.ERROR, text, remedy)


def _mailed(case: Case) -> list[Service]:
    """Where SPA packets come, of each range its ends, whichever rules are to log them there."""
    ends = {Service(ports.proto, port) for ports in case.config.spa_ports for port in ports[1:]}
    icmp = [Service(ICMP, 0), Service(ICMP6, 0)] if case.host.has_ipv6 else [Service(ICMP, 0)]
    return [*sorted(ends - case.config.guarded), *(icmp if case.config.spa_icmp else ())]


def _logged(case: Case, service: Service) -> list[Log]:
    """What may log a packet to the service."""
    listing = case.host.listing
    found = (log for base in _passed(listing, service) for log in listing.fate(base, service).logs)
    return [log for log in found if _records(case, log)]


def _passed(listing: Listing, service: Service) -> Iterator[Chain]:
    """The chains that packets to a service pass: ICMP is of one version of IP, and never in the other's tables."""
    other = {ICMP: "ip6", ICMP6: "ip"}.get(service.proto)
    return (base for base in listing.bases if base.family.removesuffix(LEGACY) != other)


def _records(case: Case, log: Log) -> bool:
    """Whether it is another's, or our own rules are to record knocks; where they are not, their sets are empty."""
    return case.config.firewall.record or not log.where.startswith(" ".join(_OURS))


def _others(found: Collection[Log]) -> str:
    groups = sorted({log.group for log in found if log.group is not None})
    prefixes = sorted({bare(log.prefix) for log in found if log.group is None})
    said = [
        *([f"rules log to group {', '.join(map(str, groups))}"] if groups else []),
        *([f"rules log with the prefix {', '.join(map(_quoted, prefixes))}"] if prefixes else []),
    ]
    return ", and ".join(said) if said else "no rule logs anything"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _log_remedy(case: Case, services: list[Service], statement: str) -> str:
    if case.guards and not case.config.firewall.record:
        if case.config.firewall.mark and any(base.program for base in _others_chains(case.host.listing)):
            apply = case.command("rules apply --iptables")
            return f"record = true  # in [firewall], then {apply}" if iptables.hides() else apply
        return f"have this host's own firewall log what it drops ({statement}), or leave [firewall] record out"
    if case.guards:
        return case.command("rules apply")
    chain, make = _entrance(case, "inet")
    ported = [service for service in services if service.proto not in _ICMP]
    ports = ", ".join(dict.fromkeys(str(service.port) for service in ported))
    which = f"th dport {{ {ports} }}" if len(ported) <= _MOST_PORTS else "ct state new"
    conditions = [f"meta l4proto {{ tcp, udp }} {which}"] if ported else []
    conditions += [to for to in _ports(services) if "icmp" in to]
    rules = [f"nft {quote(f'insert rule {chain} {condition} {statement}')}" for condition in conditions]
    return f"{'; '.join([*make, *rules])}  # or write into [log] what your rules do"


def _entrance(case: Case, family: str, table: str = "") -> tuple[str, list[str]]:
    """The first chain at input of a family, and of a table where one is named; and what makes it where there is none.

    None at prerouting, where what is routed on to others looks as if it were for this host (T25).
    """
    for base in case.host.listing.bases:
        fits = base.hook == "input" and not base.program and base.family == family and table in ("", base.table)
        if fits and (base.family, base.table) != _OURS:
            return str(base), []
    table = table or "filter"
    taken = {chain.name for chain in case.host.listing.chains if (chain.family, chain.table) == (family, table)}
    name = next(name for name in ("input", *map("input{}".format, range(len(taken)))) if name not in taken)
    chain = f"{family} {table} {name}"
    made = quote(f"add chain {chain} {{ type filter hook input priority {_EARLY}; }}")
    return chain, [f"nft add table {family} {table}", f"nft {made}"]


# ---- what else drops


def before(case: Case) -> Iterator[Finding]:
    """Chains that come before what logs the knocks, and surely drop them: by port, or all that they do not accept."""
    listing = case.host.listing
    bases = listing.bases
    knocked = (*case.tried, *_mailed(case))
    logging = [
        base for base in bases if any(case.is_read(log) for to in knocked for log in listing.fate(base, to).logs)
    ]
    if not logging:
        return
    first = min(base.place for base in logging)
    clean = True
    for base in bases:
        if base.place >= first:
            continue
        seen = (service for service in knocked if base in _passed(listing, service))
        dropped = [service for service in seen if listing.fate(base, service).verdicts == {"drop"}]
        if dropped:
            clean = False
            text = f"{_placed(base)} drops {_each(dropped)} before the knock is logged"
            yield Finding("dropped-before", Level.ERROR, text, _open_up(base, dropped))
    if clean:
        yield Finding("dropped-before", Level.OK, "no earlier chain surely drops what is knocked on")


def after(case: Case) -> Iterator[Finding]:
    """Chains that surely drop what a door opens, whoever is let in by us: one more accept is needed there."""
    listing, guarded = case.host.listing, case.config.guarded
    opened = {service for door in case.config.doors for service in door.opens}
    clean = True
    for base in _others_chains(listing):
        dropped = {service for service in opened if _stopped(case, base, service)}
        for services, remedy in ((dropped & guarded, _open_guarded), (dropped - guarded, _let_in)):
            if services:
                clean = False
                text = f"{_placed(base)} drops {some(services)}: whom logknock lets in is stopped there"
                yield Finding("dropped-after", Level.ERROR, text, remedy(case, base, sorted(services)))
    if clean:
        yield Finding("dropped-after", Level.OK, "no other chain surely drops what the doors open")


def _stopped(case: Case, base: Chain, service: Service) -> bool:
    """Whether a chain surely drops it, whoever is let in by us: with the mark, where that is what lets in."""
    bit = case.config.firewall.mark if service in case.config.guarded else 0
    return case.host.listing.fate(base, service, bit).verdicts == {"drop"}


def _others_chains(listing: Listing) -> list[Chain]:
    return [base for base in listing.bases if (base.family, base.table) != _OURS]


def _open_guarded(case: Case, base: Chain, services: list[Service]) -> str:
    """Everybody may pass there, since our own rules guard it; they have to, before that. Or only who has the mark."""
    mark = case.config.firewall.mark
    if mark:
        accepted = f"nft {quote(f'insert rule {base} meta mark & {mark:#x} == {mark:#x} accept')}"
        return case.command("rules apply --iptables") if base.program else accepted
    command = _open_up(base, services)
    sound = _is_sound(case) and not case.sets.lacks(GUARDED, services)
    return command if sound else f"{case.command('rules apply')} && {{ {command}; }}"


def _let_in(case: Case, base: Chain, services: list[Service]) -> str:
    """Those may pass whom the doors' own sets hold, and nobody else: nothing of ours guards what they open."""
    rules = [
        f"insert rule {base} {condition} accept"
        for door in case.config.doors
        for name in door.sets
        if not door.guard and (name.family, name.table) == (base.family, base.table)
        for condition in _held(case, name, [service for service in door.opens if service in services])
    ]
    if rules and not base.program:
        return "; ".join(f"nft {rule}" for rule in dict.fromkeys(rules))
    if base.program:
        return (
            f"accept {some(services)} in chain {base.name} for those alone who may come in: a rule of {base.program}"
            " cannot look into sets of nftables, but on_open and on_close of the door can add and delete rules there"
        )
    return (
        f"name a set of table {base.family} {base.table} in the door's sets, too, and have that chain accept"
        f" {some(services)} for those whom it holds: a rule looks into sets of its own table alone"
    )


def _held(case: Case, name: SetName, services: list[Service]) -> Iterator[str]:
    """The conditions of rules, in nft's words, that hold for packets to these services from those in the set."""
    types = _types(case, name)
    saddr = "ip6 saddr" if types[0] == "ipv6_addr" else "ip saddr"
    if len(types) > 1 and services:
        yield f"{saddr} . meta l4proto . th dport @{name.name}"
    elif services:
        yield from (f"{saddr} @{name.name} {ports}" for ports in _ports(services))


def _ports(services: Collection[Service]) -> Iterator[str]:
    """These services in nft's words, a condition for each protocol, as a shell takes it."""
    for proto, name in ((TCP, "tcp"), (UDP, "udp")):
        ports = [str(service.port) for service in services if service.proto == proto]
        if ports:
            yield f"{name} dport {ports[0]}" if len(ports) == 1 else f"{name} dport '{{ {', '.join(ports)} }}'"
    protos = {service.proto for service in services}
    yield from (f"{name} type echo-request" for proto, name in _ICMP.items() if proto in protos)


def _placed(base: Chain) -> str:
    return f"chain {base} ({base.hook}, priority {base.priority})"


def _open_up(base: Chain, services: list[Service]) -> str:
    """The command that lets everybody through a chain to these services, which something else has to guard."""
    if not base.program:
        return "; ".join(f"nft insert rule {base} {ports} accept" for ports in _ports(services))
    rule = f"{base.program} -t {base.table} -I {base.name}"
    return "; ".join(f"{rule} {_asked(service)} -j ACCEPT" for service in services)


def _asked(service: Service) -> str:
    """A packet to the service, in iptables' words."""
    if service.proto in _ICMP:
        return f"-p {'icmp' if service.proto == ICMP else 'ipv6-icmp'} --{_ICMP[service.proto]}-type echo-request"
    return f"-p {'tcp' if service.proto == TCP else 'udp'} --dport {service.port}"


# ---- the mark


def mark(case: Case) -> Iterator[Finding]:
    """Where grantees get a mark: nobody else uses it, what they are let into is closed, and the mark is accepted."""
    bit = case.config.firewall.mark
    if not bit:
        return
    try:
        marks.check(bit)
    except LogknockError as error:
        remedy = f"{error.hint}  # in [firewall] mark, then {case.command('rules apply')}"
        yield Finding("mark-used", Level.ERROR, error.message, remedy)
    if overwriting := marks.overwriting(bit):
        text = (
            f"a rule puts another mark in place of the whole ({'; '.join(overwriting)}): grantees lose {bit:#x} there"
        )
        remedy = f"have it keep that bit: --restore-mark --mask {_KEPT ^ bit:#x}, --set-mark 1/{_KEPT ^ bit:#x}"
        yield Finding("mark-lost", Level.WARNING, text, f"{remedy}, or meta mark set meta mark & {bit:#x} | ... in nft")
    yield from _unclosed(case)
    dropping = [base for base in _others_chains(case.host.listing) if _may_drop(case, base)]
    accepting = [base for base in dropping if any(_lets_in(case, base, service) for service in _behind(case))]
    if accepting:
        yield Finding("mark-accepted", Level.OK, f"{bit:#x}, in chain {', '.join(map(str, accepting))}")
    elif dropping:
        text = f"this host's own firewall does not accept the mark {bit:#x}: nobody whom logknock lets in passes there"
        yield Finding("mark-accepted", Level.ERROR, text, _open_guarded(case, dropping[0], _behind(case)))


def _may_drop(case: Case, base: Chain) -> bool:
    return any("drop" in case.host.listing.fate(base, service).verdicts for service in _behind(case))


def _behind(case: Case) -> list[Service]:
    return sorted(case.config.guarded)


def _unclosed(case: Case) -> Iterator[Finding]:
    """What is guarded and surely accepted everywhere: with a mark, our own rules drop nothing."""
    for families, over in (((4, 6), ""), ((4,), " over IPv4"), ((6,), " over IPv6")):
        bare = [to for to in _behind(case) if all(_accepts_all(case, to, family) for family in families)]
        if bare:
            text = f"everybody reaches {some(bare)}{over} without a knock: with [firewall] mark, our rules drop nothing"
            remedy = f"leave mark out of [firewall], then {case.command('rules apply')}: logknock's rules drop it then"
            yield Finding("mark-open", Level.ERROR, f"{text}, and neither does this host's own firewall", remedy)
            return


def _lets_in(case: Case, base: Chain, service: Service) -> bool:
    """Whether a chain that may drop a packet may accept it if it has the mark, and that is what does it."""
    listing, bit = case.host.listing, case.config.firewall.mark
    chains = [chain for chain in listing.chains if chain[:2] == base[:2]]
    asks = any(asked.match(bit) is Match.YES for chain in chains for rule in chain.rules for asked in rule.marks)
    return asks and "accept" in listing.fate(base, service, bit).verdicts


# ---- what the doors' own sets are for


def door_rules(case: Case) -> Iterator[Finding]:
    """The doors that leave the guard to other rules: these close what the door opens, and look into its sets."""
    told = False
    for door in case.config.doors:
        found = next(_open_to_all(case, door), None) or next(_unused(case, door), None)
        if found:
            told = True
            yield found
    if not told and any(door.sets for door in case.config.doors):
        yield Finding("door-rule", Level.OK, "rules look into the doors' own sets")


def _open_to_all(case: Case, door: Door) -> Iterator[Finding]:
    """Services that everybody reaches for certain, without a knock."""
    if door.guard or "in" not in case.config.wanted.directions:
        return
    services = [service for service in door.opens if service not in case.config.guarded]
    for families, over in (((4, 6), ""), ((4,), " over IPv4"), ((6,), " over IPv6")):
        bare = [service for service in services if all(_accepts_all(case, service, family) for family in families)]
        if bare:
            text = f"door {door.name}: everybody reaches {some(bare)}{over} without a knock: no rule closes it"
            yield Finding("door-rule", Level.ERROR, text, _close(case, door, bare, families))
            return


def _accepts_all(case: Case, service: Service, version: int) -> bool:
    """Whether each chain that a packet of this version of IP passes surely accepts it, and it is for this host."""
    listing = case.host.listing
    if (version == 6 and not case.host.has_ipv6) or (listing.translates and not case.host.listens(service)):
        return False
    passed = (
        base
        for base in _others_chains(listing)
        if base.family.removesuffix(LEGACY) not in {"ip", "ip6"} - {_FAMILIES[version]}
    )
    return all(listing.fate(base, service).verdicts == {"accept"} for base in passed)


def _close(case: Case, door: Door, services: list[Service], versions: Iterable[int]) -> str:
    """The command that closes them but for those whom the door's sets hold; sessions that are there go on."""
    commands: dict[str, None] = {}
    for version in versions:
        tables = [(name.family, name.table) for name in door.sets if name.family in ("inet", _FAMILIES[version])]
        family, table = tables[0] if tables else ("inet", "")
        chain, make = _entrance(case, family, table)
        only = "" if tables else f"meta nfproto ipv{version} "
        rules = [f"{only}{ports} ct state new drop" for ports in _ports(services)]
        held = [name for name in door.sets if (name.family, name.table) == (family, table)]
        rules += [f"{condition} accept" for name in held for condition in _held(case, name, services)]
        commands |= dict.fromkeys([*make, *(f"nft insert rule {chain} {rule}" for rule in rules)])
    return f"{'; '.join(commands)}  # from then on a knock is needed"


def _unused(case: Case, door: Door) -> Iterator[Finding]:
    """Sets that no rule looks into, or none that concerns what the door opens."""
    listing = case.host.listing
    listed = {found.full_name for found in listing.sets}
    for name in door.sets:
        rules = listing.users(name)
        fitting = [service for service in door.opens if any(rule.match(service) is not Match.NO for rule in rules)]
        if name not in listed or fitting or (rules and (not door.opens or listing.translates)):
            continue
        bases = [base for base in listing.bases if (base.family, base.table) == (name.family, name.table)]
        if any(listing.fate(base, service).verdicts == {"drop"} for base in bases for service in door.opens):
            continue  # told of by `after`, with the same remedy
        what = f" for {some(door.opens)}" if rules else ""
        text = f"no rule looks into set {name}{what}: door {door.name} lets nobody in by it"
        chain, make = _entrance(case, name.family, name.table)
        conditions = [f"nft insert rule {chain} {held} accept" for held in _held(case, name, list(door.opens))]
        remedy = "; ".join([*make, *conditions]) if conditions else f"have a rule of yours accept for @{name.name}"
        yield Finding("door-rule", Level.WARNING, text, remedy)
