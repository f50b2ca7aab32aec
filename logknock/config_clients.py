"""Doors that ask their clients for a proof (TOTP, code and SPA doors), and who those clients are, as tables say it.

Rule 1: nothing of a secret or a key is in what is said of it, whatever is wrong with it. Rule 2: what is wrong with
one client hides nothing of the next. Rule 3: no file is read here, and no clock: tables in, doors' proofs out.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from . import config_values as values
from . import spa, totp
from .config_values import PortRange, WrongError
from .knock import Door, Proof, Service
from .packet import UDP
from .toml_tables import Table
from .tries import CODE_SPAN, CODE_TRIES_IN_ALL

# Where the stock client sends its packets.
_SPA_PORT = PortRange(UDP, 62_201, 62_201)

# How old a packet may at most be. Who was here is remembered for twice as long.
_OLDEST = "1h"

# A code that is guessed once within so many days at the limit of wrong tries is worth a warning.
_SOON = 100

# Of ports of a door: each is compared with each.
_MAX_RANGES = 64

_DAY = 86_400

# How many ranges or names a hint lists, so that it stays readable.
_MAX_NAMED = 8

_HMACS = ("sha256", "sha384", "sha512", "sha3_256", "sha3_512", "sha1", "md5")
_OUTDATED = ("md5", "sha1")
_ANEW = "take this table out, and `logknock {}` makes one"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a door asks of its clients. Without a proof: nothing, it has a sequence or one-time sequences.

    `skew` is in steps, `step` in seconds; `digits` are those of a code door's code. No two of `ports` overlap.
    """

    proof: Proof = ""
    ports: tuple[PortRange, ...] = ()
    icmp: bool = False
    length: int = totp.DEFAULT_LENGTH
    step: int = totp.DEFAULT_STEP
    skew: int = totp.DEFAULT_SKEW
    digits: int = 0

    @property
    def services(self) -> tuple[Service, ...]:
        """All ports of a TOTP or code door, in the order that the derivation has."""
        return tuple(Service(proto, port) for proto, first, last in self.ports for port in range(first, last + 1))


class Proven(NamedTuple):
    """A door that asks for a proof: what is read of it, what it asks, and its table to note in."""

    door: Door
    table: Table
    terms: Terms


class Clients(NamedTuple):
    """What the tables of all clients say."""

    totp: tuple[totp.TotpDoor, ...]
    keys: tuple[spa.Key, ...]


# ---- a door's own table

_NONE = Terms()


def read_terms(table: Table) -> Terms:
    """What the keys `totp` and `spa` of a door's table ask for; that they stand alone is for others to check."""
    derived, packets = table.table("totp"), table.table("spa")
    terms = _read_totp(derived) if table.has("totp") else _NONE
    return _read_spa(packets) if table.has("spa") else terms


def _read_totp(table: Table) -> Terms:
    digits = table.read("code", _digits, 0)
    default = totp.DEFAULT_CODE_PORTS[digits] if digits else totp.DEFAULT_PORTS
    ports = table.read_list("ports", values.port_range, most=_MAX_RANGES)[:_MAX_RANGES]
    _check_distinct(ports, table)
    terms = Terms(
        proof="code" if table.has("code") else "totp",
        ports=ports if table.has("ports") else tuple(map(values.port_range, default)),
        length=table.read("length", values.whole(totp.MIN_LENGTH, totp.MAX_LENGTH), _NONE.length),
        step=table.read("step", _step, _NONE.step),
        skew=table.read("skew", values.whole(0, totp.MAX_SKEW), _NONE.skew),
        digits=digits,
    )
    table.finish()
    if terms.proof == "code":
        _check_code(terms, table)
    if not terms.ports and "ports" not in table.wrong:
        table.error("ports", "names no port", f"leave it out, or write {_written(default)}")
    if "ports" not in table.wrong:
        _check_pool(terms, table)
    if terms.skew > 1:
        message = f"{terms.skew}: a sequence that was heard and not used up is good for {_span(terms)} s"
        table.warn("skew", message, "1, and clocks that are kept right (NTP)")
    return terms


def _check_code(terms: Terms, table: Table) -> None:
    """What a code spells, and what authenticators do, leave no choice."""
    if table.has("length"):
        table.error("length", "does not apply to a code door: two digits are a knock", "leave it out")
    if terms.step != _NONE.step and "step" not in table.wrong:
        table.error("step", f"a code door's step is {_NONE.step}s, which is what authenticators have", "leave it out")


def _check_pool(terms: Terms, table: Table) -> None:
    """Whether the ports are enough for sequences that nobody guesses (T21), or just what a code is spelled on."""
    if terms.proof == "totp":
        try:
            totp.check_strength(totp.TotpDoor("", "", terms.services, terms.length))
        except totp.WeakError as error:
            table.error("ports", str(error), error.hint)
    elif terms.digits:
        first = Service(*terms.ports[0][:2])
        count = totp.PAIRS * terms.digits // 2
        try:
            right = totp.code_services(first, terms.digits) == terms.services
        except ValueError:
            right = False
        if not right:
            message = f"a code of {terms.digits} digits is spelled on one range of {count} TCP ports from a hundred on"
            table.error("ports", message, f"leave it out, or write {_written(totp.DEFAULT_CODE_PORTS[terms.digits])}")


def _span(terms: Terms) -> int:
    begins, ends = totp.window(0, terms.step, terms.skew)
    return ends - begins


def _read_spa(table: Table) -> Terms:
    places = table.read_list("ports", _place, most=_MAX_RANGES)[:_MAX_RANGES]
    ports = tuple(place for place in places if place != _ICMP)
    _check_distinct(places, table)
    table.finish()
    if not places and table.has("ports") and "ports" not in table.wrong:
        table.error("ports", "names no port", f'leave it out for "{_shown(_SPA_PORT)}"')
    return Terms("spa", ports if table.has("ports") else (_SPA_PORT,), icmp=_ICMP in places)


_ICMP = PortRange(0, 0, 0)  # has no ports


def _place(value: object) -> PortRange:
    return _ICMP if value == "icmp" else values.port_range(value)


_digits = values.number_of(
    totp.CODE_DIGITS, "a code has 6 or 8 digits", "6 is what authenticators show; 8 is harder to guess"
)
_step = values.whole_seconds(f"{totp.MIN_STEP}s", f"{totp.MAX_STEP // 60}m", "a step is whole seconds", 'write "30s"')


def _check_distinct(ranges: tuple[PortRange, ...], table: Table) -> None:
    """Each port counts as often as it is named, and a sequence has it once."""
    for at, ports in enumerate(ranges):
        for other in ranges[:at]:
            if _overlap(ports, other):
                message = f"{_shown(ports)} and {_shown(other)} have ports in common"
                table.error("ports", message, "write each port once", item=at)


def _overlap(one: PortRange, other: PortRange) -> bool:
    return one.proto == other.proto and one.first <= other.last and other.first <= one.last


# ---- doors beside doors


def split(doors: Iterable[Door]) -> tuple[Door, ...]:
    """The doors as they are opened: an SPA door is one for each of its services, so that each may be asked for.

    Who closes the door as it is written closes all of them. One that has a single service is called after it all the
    same: what is open, and on record, goes by that name, and a service that is added later is no reason to lose it.
    """
    doors = tuple(doors)
    leaves = {door.name: _leaves(door) for door in doors if door.proof == "spa" and door.opens}
    if not leaves:
        return doors
    names = {name: tuple(leaf.name for leaf in found) for name, found in leaves.items()}
    whole = [leaf for door in doors for leaf in leaves.get(door.name, (door,))]
    return tuple(
        replace(door, closes=tuple(name for closed in door.closes for name in names.get(closed, (closed,))))
        for door in whole
    )


def _leaves(door: Door) -> tuple[Door, ...]:
    return tuple(replace(door, name=f"{door.name}:{service}", opens=(service,)) for service in door.opens)


def spa_ports(proven: Iterable[Proven]) -> tuple[PortRange, ...]:
    """The ports of all SPA doors, without what two of them share."""
    merged: list[PortRange] = []
    for each in sorted(ports for _, _, terms in proven if terms.proof == "spa" for ports in terms.ports):
        if merged and merged[-1].proto == each.proto and each.first <= merged[-1].last + 1:
            merged[-1] = merged[-1]._replace(last=max(merged[-1].last, each.last))
        else:
            merged.append(each)
    return tuple(merged)


def check_source(proven: Iterable[Proven], sources: Collection[str], log: Table) -> None:
    """Note the SPA doors whose packets are not to be had from where records are read."""
    for _, table, terms in proven:
        if terms.proof == "spa" and "nflog" not in sources and "source" not in log.wrong:
            message = "kernel log lines carry no payload: SPA needs the NFLOG source"
            table.error("spa", message, 'write [log] source = "nflog", which our rules log to')


def check_ports(
    proven: Sequence[Proven], doors: Iterable[Door], guarded: frozenset[Service], exclude: Iterable[PortRange]
) -> None:
    """Note what stands in the way of a door's ports: guarded services, other doors' knocks, what is not to be used."""
    taken = {service: f"what door {door.name} is knocked with" for door in doors for service in door.sequence}
    for proto, first, last in exclude if any(terms.proof != "spa" for _, _, terms in proven) else ():
        taken.update((Service(proto, port), "in [firewall] exclude") for port in range(first, last + 1))
    for _, table, terms in proven:
        if terms.proof == "spa":
            _check_spa_ports(terms, guarded, table)
            continue
        services = frozenset(terms.services)
        closed = sorted(services & guarded)
        used = sorted(services & taken.keys() - guarded)
        said = [f"{service} is guarded" for service in closed] + [f"{each} is {taken[each]}" for each in used]
        if said and "totp" not in table.wrong:
            more = f", and {len(said) - 1} more of its ports are taken" if len(said) > 1 else ""
            free = (service for service in terms.services if service not in guarded and service not in taken)
            ranges = _written(totp.ranges(free))
            elsewhere = "another range, here and in the clients' profiles"
            hint = elsewhere if terms.proof == "code" else f"write totp.ports = {ranges}, here and in the clients'"
            table.error("totp", f"{said[0]}{more}: no knock of this door can be on it", hint)


def _check_spa_ports(terms: Terms, guarded: frozenset[Service], table: Table) -> None:
    for proto, first, last in terms.ports:
        if all(Service(proto, port) in guarded for port in range(first, last + 1)):
            message = f"{_shown(PortRange(proto, first, last))} is guarded: no packet to it is read as SPA"
            table.error("spa", message, "name a port that no door opens")


def _shown(ports: PortRange) -> str:
    return str(ports) if ports != _ICMP else "icmp"


def _written(ranges: Iterable[str]) -> str:
    shown = list(ranges)
    return f"[{', '.join(f'{each!r}' for each in shown)}]".replace("'", '"')


# ---- clients


def read_host(table: Table, proven: Iterable[Proven]) -> str:
    """What clients derive with as this host's name."""
    own = os.uname().nodename.lower()
    if not table.has("host") and any(terms.proof != "spa" for _, _, terms in proven):
        message = "is not written: if this host gets another name, no client gets in until its profile has that, too"
        table.warn("host", message, f'[totp] host = "{own}"')
    return table.read("host", values.host_name, own)


def read_clients(tables: Iterable[Table], proven: Sequence[Proven], host: str) -> Clients:
    """Who the clients of these doors are; of a table that names another door nothing is read."""
    by_door = {each.door.name: each for each in proven}
    secrets = _Secrets()
    totps: dict[str, list[totp.Client]] = defaultdict(list)
    keys: list[spa.Key] = []
    for table in tables:
        asking = by_door.get(str(table.name[-2]))
        if asking is None:
            continue
        if asking.terms.proof == "spa":
            keys += _read_key(table, asking, secrets)
        else:
            totps[asking.door.name] += _read_client(table, asking, secrets)
        table.finish()
    if len(keys) > spa.MAX_SPA_KEYS:
        hint = "each packet is tried with each of them: divide them among hosts"
        _last(proven, "spa").error("spa", f"there are {len(keys)} SPA keys, and {spa.MAX_SPA_KEYS} are the most", hint)
    if (count := sum(map(len, totps.values()))) > totp.MAX_CLIENTS:
        message = f"there are {count:,} clients, and {totp.MAX_CLIENTS:,} are the most"
        _last(proven, "totp").error("totp", message, "divide them among hosts")
    doors = tuple(
        totp.TotpDoor(
            door=door.name,
            host=host,
            services=terms.services,
            length=terms.length,
            step=terms.step,
            skew=terms.skew,
            digits=terms.digits,
            clients=tuple(totps[door.name]),
        )
        for door, _, terms in proven
        if terms.proof != "spa"
    )
    return Clients(doors, tuple(keys))


def _last(proven: Sequence[Proven], key: str) -> Table:
    """The last door's table that has the key."""
    return next(table for _, table, _ in reversed(proven) if table.has(key))


class _Secrets:
    """All secrets and keys, to find those that stand in two places."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[Table, str]] = {}

    def note(self, secret: bytes, key: str, table: Table) -> None:
        """Note an error at the key where it was seen before."""
        same = secret.rstrip(b"\0")  # as a key of HMAC, which is filled up with zeros, it is the same (RFC 2104)
        other, where = self._places.setdefault(same, (table, key))
        if other.name == table.name and other is not table:
            return  # the same client in two files, as is noted elsewhere
        if other is table and where != key:
            table.error(
                key, f"is the same as {where}", "two that have nothing in common, as `logknock keygen` makes them"
            )
        elif other is not table:
            message = f"is the same as {'.'.join(map(str, other.name))}.{where}"
            owned = "a secret" if key == "secret" else "keys"
            table.error(key, message, f"each client has {owned} of its own, so that it can be taken back alone")


def _read_client(table: Table, asking: Proven, secrets: _Secrets) -> Iterator[totp.Client]:
    _check_name(table)
    if not table.has("secret"):
        table.error("secret", "is missing", _ANEW.format(to_enroll(asking.door, client=str(table.name[-1]))))
    if secret := table.read("secret", secret_value, b""):
        secrets.note(secret, "secret", table)
        if secret.isascii() and secret.decode().isprintable():
            message = "is text in base32: who guesses the words knocks in this client's name"
            hint = "`head -c 32 /dev/urandom | base32 -w0 | tr -d =` makes one that nobody guesses"
            table.warn("secret", message, hint)
        yield totp.Client(str(table.name[-1]), secret)


def secret_value(value: object) -> bytes:
    """The secret of a client of a TOTP or code door; nothing of it is in what is raised."""
    if type(value) is not str:
        raise WrongError("must be text", "write it in quotes, as `logknock enroll` prints it")
    try:
        return totp.parse_secret(value)
    except ValueError as error:
        raise WrongError(str(error), "it is base32: A-Z and 2-7, as `logknock enroll` prints it") from None


_KEY = spa.Key("", "", b"", b"", "sha256", ())  # for its defaults


def _read_key(table: Table, asking: Proven, secrets: _Secrets) -> Iterator[spa.Key]:
    _check_name(table)
    found = spa.Key(
        door=asking.door.name,
        client=str(table.name[-1]),
        key=_read_bytes("key", spa.MIN_KEY, spa.MAX_KEY, table, asking),
        hmac_key=_read_bytes("hmac_key", spa.MIN_KEY, spa.MAX_HMAC_KEY, table, asking),
        digest=table.read("hmac", values.unquoted(_HMACS), _KEY.digest),
        allow=table.read_list("allow", values.service, repeats=False),
        require_source=table.read("require_source", values.switch, _KEY.require_source),
        max_age=table.read("max_age", values.duration("1s", _OLDEST), _KEY.max_age),
        max_timeout=table.read("max_timeout", values.duration("1s", f"{spa.MAX_TIMEOUT}s"), _KEY.max_timeout),
        user=table.read("user", _user, _KEY.user),
        source=table.read_list("source", values.network, repeats=False),
    )
    _check_allow(found, asking, table)
    if found.digest in _OUTDATED:
        table.warn("hmac", f"{found.digest} is outdated", 'hmac = "sha256", and so HMAC_DIGEST_TYPE at the client')
    if not found.require_source:
        message = "false: whoever holds the packet up and sends it first opens for the address that is in it"
        table.warn("require_source", message, "true, unless the client cannot know its address")
    for key, secret in (("key", found.key), ("hmac_key", found.hmac_key)):
        if secret:
            secrets.note(secret, key if table.has(key) else f"{key}_base64", table)
    if found.key and found.hmac_key:
        yield found


def _read_bytes(key: str, low: int, high: int, table: Table, asking: Proven) -> bytes:
    """A key, written as it is or in base64; empty where it is missing or wrong."""
    other = f"{key}_base64"
    typed, coded = (
        table.read(key, values.passphrase(low, high), b""),
        table.read(other, values.base64_key(low, high), b""),
    )
    if table.has(key) and table.has(other):
        table.error(other, f"there are {key} and {other}", "write one of them")
    elif not (table.has(key) or table.has(other)):
        anew = _ANEW.format(to_enroll(asking.door, client=str(table.name[-1])))
        table.error(other, "is missing", f"{anew}; or write {key}, a passphrase")
    return typed or coded


def _check_allow(found: spa.Key, asking: Proven, table: Table) -> None:
    opens = ", ".join(f'"{service}"' for service in asking.door.opens[:_MAX_NAMED])
    if not found.allow and "allow" not in table.wrong:
        message = "names no service" if table.has("allow") else "is missing: what may this client open?"
        hint = f"allow = [{opens}], or some of them" if opens else "services that the door opens, once it names some"
        table.error("allow", message, hint)
    if "opens" in asking.table.wrong:
        return  # what the door opens is not known
    for at, service in enumerate(found.allow):
        if service not in asking.door.opens:
            table.error("allow", f"door {asking.door.name} does not open {service}", f"it opens {opens}", item=at)


def to_enroll(*doors: Door, client: str = "CLIENT") -> str:
    """The command of ours that makes a client of a door: as it is written, or as it is split (all of its parts)."""
    name = doors[0].name.partition(":")[0]
    if doors[0].proof != "spa":
        return f"enroll {name} {client}"
    opens = [service for door in doors for service in door.opens][:_MAX_NAMED]
    allow = "".join(f" --allow {service}" for service in opens) if len(opens) > 1 else ""
    return f"keygen {name} {client}{allow} --write"


def _check_name(table: Table) -> None:
    if not values.NAME.fullmatch(str(table.name[-1])):
        hint = "up to 63 letters, digits and . _ -, the first a letter or a digit"
        table.error("", "this is no name for a client", hint)


def _user(value: object) -> str:
    written = values.text("anna")(value)
    if spa.fit_user(written) != written:
        hint = f"up to {spa.MAX_USER_BYTES} letters of ASCII, none of {spa.NOT_IN_USERS}"
        raise WrongError("is no user name that a packet can hold", hint)
    return written


def check_owners(tables: Iterable[Table], doors: Mapping[str, Proof]) -> None:
    """Note the clients of doors that there are not, or that take none."""
    names = ", ".join([*sorted(doors)[:_MAX_NAMED], *(["..."] if len(doors) > _MAX_NAMED else [])])
    for table in tables:
        name = str(table.name[-2])
        if name not in doors:
            table.error("", f"there is no door {name!r}", f"the doors are: {names}")
        elif not doors[name]:
            message = f"door {name} takes no clients: whoever knocks its sequence passes"
            table.error("", message, "a door with clients has totp = {} or spa = {} instead of a sequence")


# ---- what is unwise


def warn_of_clients(clients: Clients, proven: Iterable[Proven]) -> None:
    """Where nobody can pass yet, where a code is guessed too soon, and where it is knocked on other doors' ports."""
    passing = {key.door for key in clients.keys} | {door.door for door in clients.totp if door.clients}
    counts = {door.door: len(door.clients) for door in clients.totp}
    before: list[Proven] = []
    for asking in proven:
        door, table, terms = asking
        _warn_of_shared(asking, before)
        before.append(asking)
        key = "spa" if terms.proof == "spa" else "totp"
        if door.name not in passing:
            message = "this door has no client yet: nobody can open it"
            table.warn(key, message, f"`logknock {to_enroll(door)}` makes one")
        elif terms.digits:
            _warn_of_guesses(terms, counts[door.name], table)


def _warn_of_shared(asking: Proven, before: Iterable[Proven]) -> None:
    """Of a door before it that it shares ports with, if one of the two is a code door; two TOTP doors may."""
    _, table, terms = asking
    for other in before:
        kinds = {terms.proof, other.terms.proof}
        if "spa" in kinds or "code" not in kinds:
            continue
        if any(_overlap(one, two) for one in terms.ports for two in other.terms.ports):
            message = f"has ports in common with door {other.door.name}: a wrong knock at one is a wrong try at both"
            table.warn("totp", message, "ports of its own, here and in the clients' profiles")
            return


def _warn_of_guesses(terms: Terms, clients: int, table: Table) -> None:
    """How soon somebody who tries as often as one code is enough hits that of any client."""
    chance = CODE_TRIES_IN_ALL * clients * (2 * terms.skew + 1) / 10**terms.digits
    days = CODE_SPAN / chance / _DAY
    if days < _SOON:
        soon = f"{days:.0f} days" if days >= 2 else f"{max(round(days * 24), 1)} hours"
        what = f"a code of {terms.digits} digits for {clients:,} clients"
        message = f"{what}: who guesses without end hits one in {soon} on average"
        table.warn("totp", message, "code = 8, a TOTP door, or fewer clients")
