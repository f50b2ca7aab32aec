"""Checks of the firewall: our table and its sets, the doors' own sets, what logs, and what else drops.

What a rule does is told from its text: see rules.py. What depends on an address, a mark, a set or the like may match or
not; a finding says what surely happens, or that nothing that could help is there.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from ..config_values import Network
from ..errors import FirewallError
from ..firewall.sets import GUARDED, WATCHED
from ..knock import Service, SetName
from .case import Case
from .finding import Finding, Level, some
from .rules import HOOKS, LEGACY, Chain, Listing, Log, bare, networks_of, services_of

# What rules/logknock.nft makes, and what has to be in it.
_CHAINS = ("guard", "guarded", "record", "tell", "trusted")
_OURS = ("inet", "logknock")
_PLACE = (HOOKS.index("prerouting"), -150)

# The sets that fill while it runs. From so full on it is time to look: what does not fit is not banned, or not let in.
_FILLING = ("granted4", "granted6", "banned4", "banned6", "noisy4", "noisy6", "rate4", "rate6")
_NEARLY_FULL = 0.9

_SHOWN = 8  # ports in a command that is to be copied


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
    elif not _is_sound(case):
        text = "chain guard is not at prerouting, priority mangle, any more: it guards nothing"
        yield Finding("table", Level.ERROR, text, f"logknock rules remove; {apply}")
    else:
        yield Finding("table", Level.OK, "inet logknock has its rules")


def _ours(case: Case) -> dict[str, Chain]:
    return {chain.name: chain for chain in case.host.listing.chains if (chain.family, chain.table) == _OURS}


def _is_sound(case: Case) -> bool:
    """Whether our table has all its rules, where packets pass."""
    chains = _ours(case)
    complete = all(name in chains and chains[name].rules for name in _CHAINS)
    return complete and chains["guard"].hook in HOOKS and chains["guard"].place == _PLACE


def _chains(names: list[str]) -> str:
    return f"chain {names[0]}" if len(names) == 1 else f"chains {', '.join(names)}"


# ---- our sets


def sets(case: Case) -> Iterator[Finding]:
    """Our sets: there, of the right kind, and holding what the configuration says."""
    if not case.guards or not _ours(case):
        return
    failure = case.sets.check([replace(door, sets=()) for door in case.config.doors])
    if failure is not None and "rules of table" not in failure.message:  # those are told of above
        yield Finding("set-granted", Level.ERROR, failure.message, case.command("rules apply"))
    for check, name, wanted in (
        ("set-watched", WATCHED, case.knocked),
        ("set-guarded", GUARDED, case.config.guarded),
    ):
        yield from _compare(case, check, name, wanted)
    yield from _traps(case)
    yield from _trusted(case)


def _compare(case: Case, check: str, name: SetName, wanted: frozenset[Service]) -> Iterator[Finding]:
    apply = case.command("rules apply")
    missing = case.sets.lacks(name, sorted(wanted))
    there = frozenset(services_of(case.host.elements(name.name)))
    if missing:
        what = "no knock there is logged" if name == WATCHED else "everybody reaches what it does not hold"
        text = f"set {name.name} lacks {some(missing)}: {what}; the configuration is newer than the rules"
        yield Finding(check, Level.ERROR, text, apply)
    elif (older := there - wanted) and (name != WATCHED or case.knows_all_knocks):
        what = "a packet there is a wrong knock" if name == WATCHED else "no door opens that any more"
        text = f"set {name.name} still holds {some(older)}: {what}; the configuration is newer than the rules"
        yield Finding(check, Level.WARNING, text, apply)
    else:
        yield Finding(check, Level.OK, f"{len(wanted)} services")


def _traps(case: Case) -> Iterator[Finding]:
    wanted = case.config.firewall.traps
    there = len(case.host.elements("traps"))
    if there < wanted:
        text = f"set traps holds {there:,} ports, and {wanted:,} are configured: a port scan has it easier (T1)"
        yield Finding("set-traps", Level.WARNING, text, case.command("rules apply"))
    elif there and not wanted:
        text = f"set traps holds {there:,} ports, and none is configured"
        yield Finding("set-traps", Level.WARNING, text, case.command("rules apply"))
    else:
        yield Finding("set-traps", Level.OK, f"{there:,} ports")


def _trusted(case: Case) -> Iterator[Finding]:
    there = [net for name in ("trusted4", "trusted6") for net in networks_of(case.host.elements(name))]
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
        yield Finding("set-trusted", Level.OK, f"{len(wanted)} networks")


def _covered(net: Network, by: Iterable[Network]) -> bool:
    return any(other.prefixlen <= net.prefixlen and net.network_address in other for other in by)


def full(case: Case) -> Iterator[Finding]:
    """Sets that have hardly room for more."""
    sizes = {found.full_name.name: found.size for found in case.host.listing.sets if found.full_name[:2] == _OURS}
    crowded = False
    for name in _FILLING:
        size = sizes.get(name, 0)
        count = len(case.host.elements(name)) if size else 0
        if size and count >= size * _NEARLY_FULL:
            crowded = True
            level = Level.ERROR if name.startswith("granted") and count >= size else Level.WARNING
            text = f"set {name} holds {count:,} of {size:,} elements: {_what_then(name)}"
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
            failure = case.sets.check([replace(door, sets=(name,), guard=False)])
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
    address = "ipv6_addr" if name.family == "ip6" or name.name.endswith("6") else "ipv4_addr"
    make = f"nft 'add set {name} {{ type {address}; flags timeout; }}'"
    there = (name.family, name.table) in case.host.listing.tables
    return make if there else f"nft add table {name.family} {name.table}; {make}"


# ---- what logs


def logs(case: Case) -> Iterator[Finding]:
    """A rule that logs to this group, or with this prefix, and that a packet to a knock port reaches."""
    config = case.config
    if case.guards and not _is_sound(case):
        return  # told of already, and the remedy is the same
    if "nflog" in config.sources:
        wanted = f"NFLOG group {config.group}"
        yield from _logs(case, wanted, lambda log: log.group == config.group, f"log group {config.group}")
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
    fitting = [log for log in listing.logs if fits(log)]
    if not fitting:
        text = f"no rule logs to {wanted}: no knock is ever seen; {_others(listing.logs)}"
        yield Finding("log-rule", Level.ERROR, text, _log_remedy(case, statement))
        return
    where = ", ".join(dict.fromkeys(log.where for log in fitting))
    missed = [service for service in case.tried if not any(map(fits, _logged(listing, service)))]
    if missed:
        text = f"packets to {some(missed)} do not reach the rule that logs to {wanted} (in {where})"
        yield Finding("log-rule", Level.ERROR, text, _log_remedy(case, statement))
    else:
        yield Finding("log-rule", Level.OK, f"a rule logs to {wanted} (in {where})")
    if all(log.limit for log in fitting):
        limits = ", ".join(dict.fromkeys(log.limit for log in fitting))
        text = f"what logs to {wanted} (in {where}) is limited to {limits}: knocks get lost in a scan"
        ours = all(log.where.startswith(" ".join(_OURS)) for log in fitting)
        remedy = case.command("rules apply") if ours else "take the limit out of that rule, or raise it to 20/second"
        yield Finding("log-limit", Level.WARNING, text, remedy)


def _logged(listing: Listing, service: Service) -> list[Log]:
    """What may log a packet to the service."""
    return [log for base in listing.bases for log in listing.fate(base, service).logs]


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


def _log_remedy(case: Case, statement: str) -> str:
    if case.guards:
        return case.command("rules apply")
    knocked = sorted(case.knocked)
    ports = ", ".join(f"{service.port}" for service in knocked[:_SHOWN])
    rule = f"nft insert rule inet filter input meta l4proto '{{ tcp, udp }}' th dport '{{ {ports} }}' {statement}"
    return f"{rule}  # or write into [log] what your rules do"


# ---- what else drops


def before(case: Case) -> Iterator[Finding]:
    """Chains that come before what logs the knocks, and surely drop them: by port, or all that they do not accept."""
    listing = case.host.listing
    bases = listing.bases
    knocked = case.tried
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
        dropped = [service for service in knocked if listing.fate(base, service).verdicts == {"drop"}]
        if dropped:
            clean = False
            text = f"{_placed(base)} drops {some(dropped)} before the knock is logged"
            yield Finding("dropped-before", Level.ERROR, text, _open_up(base, dropped))
    if clean:
        yield Finding("dropped-before", Level.OK, "no earlier chain surely drops what is knocked on")


def after(case: Case) -> Iterator[Finding]:
    """Chains that surely drop what a door opens, whoever is let in by us: one more accept is needed there."""
    listing = case.host.listing
    clean = True
    for base in listing.bases:
        if (base.family, base.table) == _OURS:
            continue
        opened = sorted({service for door in case.config.doors for service in door.opens})
        dropped = [service for service in opened if listing.fate(base, service).verdicts == {"drop"}]
        if dropped:
            clean = False
            text = f"{_placed(base)} drops {some(dropped)}: whom logknock lets in is stopped there"
            yield Finding("dropped-after", Level.ERROR, text, _open_up(base, dropped))
    if clean:
        yield Finding("dropped-after", Level.OK, "no other chain surely drops what the doors open")


def _placed(base: Chain) -> str:
    return f"chain {base} ({base.hook}, priority {base.priority})"


def _open_up(base: Chain, services: list[Service]) -> str:
    """The command that lets these services through a chain; what is guarded stays guarded by us."""
    commands = []
    for proto, name in ((6, "tcp"), (17, "udp")):
        ports = [str(service.port) for service in services if service.proto == proto]
        if ports and base.name.isupper():  # iptables'
            program = ("ip6tables" if "6" in base.family else "iptables") + (LEGACY if LEGACY in base.family else "")
            commands += [
                f"{program} -t {base.table} -I {base.name} -p {name} --dport {port} -j ACCEPT" for port in ports
            ]
        elif ports:
            which = ports[0] if len(ports) == 1 else f"'{{ {', '.join(ports)} }}'"
            commands.append(f"nft insert rule {base} {name} dport {which} accept")
    return "; ".join(commands)
