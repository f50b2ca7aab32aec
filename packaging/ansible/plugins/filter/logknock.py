# MIT License (see LICENSE or https://opensource.org/license/mit)
"""From variables to configuration: TOML, names that nobody knows, and sequences while they are being replaced.

Rule: nothing is read or written here but the roles' own argument_specs.yml.

A host's rotation is {DOOR: {"sequence": [...], "next": [...], "previous": [...]}}: `sequence` is what clients knock;
`next` is what the host may take already and clients do not know yet; `previous` what the host still takes.
"""

import json
import os
import random
import re
from difflib import get_close_matches

import yaml
from ansible.errors import AnsibleFilterError

ROLES = os.path.join(os.path.dirname(__file__), "..", "..", "roles")

# Knock ports that are made up here lie between those that need a privilege and those that the kernel gives to
# connections of its own (ip-sysctl, ip_local_port_range): 2^44 sequences of three.
PORTS = range(1024, 32768)

# Where the sequences of a door are that derives them, if it does not say: of a door's own, of 6 and of 8 digits.
POOLS = {0: ("20000-20499/tcp",), 6: ("21000-21299/tcp",), 8: ("21000-21399/tcp",)}

# What is made up is at least this long, and not longer than a door may have it.
SHORTEST = 3
LONGEST = 32

# The door that has the sequence from before, beside the door itself.
PREVIOUS = "-previous"

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(settings):
    """A dictionary as a TOML document; what is empty is left out."""
    lines = []
    _table((), settings, lines)
    return "\n".join(["# Written by Ansible (logknock.logknock): what is changed here is overwritten.", *lines]) + "\n"


def _table(path, table, lines):
    values = [(key, value) for key, value in table.items() if not isinstance(value, dict) and value is not None]
    if path and (values or not table):
        lines.extend(["", "[{}]".format(".".join(map(_key, path)))])
    for key, value in values:
        lines.append(f"{_key(key)} = {_value((*path, key), value)}")
    for key, value in table.items():
        if isinstance(value, dict) and (value or len(path) > 0):
            _table((*path, key), value, lines)


def _key(key):
    text = str(key)
    return text if _BARE.fullmatch(text) else _string(text)


def _string(text):
    # JSON writes all that a basic string of TOML may not hold as TOML does, but for DEL.
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(path, value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return "[{}]".format(", ".join(_value(path, item) for item in value))
    raise AnsibleFilterError("{}: {} has no place in TOML".format(".".join(map(str, path)), type(value).__name__))


def metrics_drop_in(metrics):
    """What the service's unit needs beside it for these metrics, as docs/howto/metrics.md has it; empty: nothing."""
    lines = []
    listen = str(metrics.get("listen") or "")
    if listen and not listen.startswith("unix:"):
        lines += ["RestrictAddressFamilies=AF_INET AF_INET6", "IPAddressAllow=localhost"]
    if metrics.get("textfile"):
        folder = os.path.dirname(str(metrics["textfile"]))
        for special, plain in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
            folder = folder.replace(special, plain)
        lines.append(f'ReadWritePaths="-{folder}"')
    head = ["# Written by Ansible (logknock.logknock).", "[Service]"]
    return "\n".join([*head, *lines, ""]) if lines else ""


def known_variables():
    """Every variable of this collection's roles, as their argument_specs.yml name them."""
    found = set()
    for role in sorted(os.listdir(ROLES)):
        with open(os.path.join(ROLES, role, "meta", "argument_specs.yml")) as file:
            for entry in yaml.safe_load(file)["argument_specs"].values():
                found.update(entry["options"])
    return found


def unknown_variables(names):
    """A line for each of these names that begins like ours and is none, with the nearest that is one."""
    known = known_variables()
    lines = []
    for name in sorted(set(names) - known):
        alike = get_close_matches(name, sorted(known), n=1)
        lines.append(name + (f" (did you mean {alike[0]}?)" if alike else ""))
    return lines


def with_rotation(doors, rotation):
    """The doors as the host is to have them: with sequences that are being replaced, both of them."""
    found = {}
    replaced = {}
    for name, door in doors.items():
        state = (rotation or {}).get(name)
        if not state:
            found[name] = door
            continue
        found[name] = dict(door, sequence=state.get("next") or state["sequence"])
        older = state["sequence"] if state.get("next") else state.get("previous")
        if older:
            replaced[name] = name + PREVIOUS
            found[name + PREVIOUS] = dict(door, sequence=older)
    for name, door in found.items():
        closed = list(door.get("closes") or [])
        more = [replaced[other] for other in closed if other in replaced and replaced[other] not in closed]
        if more:
            found[name] = dict(door, closes=closed + more)
    return found


def published(doors, rotation, door):
    """The sequence that clients knock at a door."""
    state = (rotation or {}).get(door) or {}
    sequence = state.get("sequence") or (doors or {}).get(door, {}).get("sequence")
    if not sequence:
        raise AnsibleFilterError(f"logknock_doors has no door {door} with a sequence")
    return sequence


def fleet_profiles(hosts, hostvars, rotations, door):
    """A client's profile for each of these hosts of the inventory, by its name there."""
    found = {}
    for host, rotation in zip(hosts, rotations, strict=True):
        known = hostvars[host]
        try:
            sequence = published(known.get("logknock_doors"), rotation, door)
        except AnsibleFilterError as error:
            raise AnsibleFilterError(f"{host}: {error}") from None
        found[host] = {"host": str(known.get("ansible_host", host)), "sequence": list(sequence)}
    return found


def begun(rotation, doors, names, given=None, taken=()):
    """The rotation with a `next` for each door of these names; one that has been begun stays as it is.

    given: sequences by door. taken: services that no new sequence may knock on, besides those of the doors.
    """
    found = dict(rotation or {})
    avoided = set(taken)
    for name, door in doors.items():
        avoided.update(door.get("opens") or [])
        avoided.update(door.get("sequence") or [])
        for sequence in found.get(name, {}).values():
            avoided.update(sequence)
        avoided.update(_pool(door))
    ports = {port for service in avoided for port in _ports(service)}
    for name in names:
        state = found.get(name, {})
        chosen = (given or {}).get(name)
        if state.get("previous") or (state.get("next") and not chosen):
            continue
        sequence = list(published(doors, found, name))
        new = chosen or new_sequence(sequence, ports)
        if list(new) == sequence:
            raise AnsibleFilterError(f"door {name}: the new sequence is the one that it has")
        ports.update(int(service.partition("/")[0]) for service in new)
        found[name] = {"sequence": sequence, "next": list(new)}
    return found


def _pool(door):
    """The ranges that belong to a door which derives its sequences, or takes single packets."""
    found = []
    if isinstance(door.get("totp"), dict):
        found += door["totp"].get("ports") or POOLS.get(door["totp"].get("code") or 0, ())
    if isinstance(door.get("spa"), dict):
        found += door["spa"].get("ports") or ()
    return map(str, found)


def _ports(text):
    """The ports of `PORT/tcp` or `FIRST-LAST/tcp`; none where it is neither."""
    first, _unused, last = text.partition("/")[0].partition("-")
    return range(int(first), int(last or first) + 1) if first.isdigit() and (last or first).isdigit() else ()


def mistakes(given, doors, names, host, hosts, guarded=()):
    """A line for each thing that is wrong with sequences that are given, by host and door. No line has a knock in it.

    names: the doors that get new sequences on this host. hosts: those that there are. guarded: of the firewall.
    """
    lines = [f"there is no host {other}" for other in sorted(set(map(str, given or {})) - set(map(str, hosts)))]
    lines += [f"{host} has no door {name} in logknock_doors" for name in names if name not in doors]
    mine = (given or {}).get(host) or {}
    if not isinstance(mine, dict):
        return [*lines, f"{host}: no dictionary of doors"]
    lines += [f"{host}: door {name} is not among logknock_rotate_doors" for name in sorted(set(mine) - set(names))]
    taken = {_service(service) for door in doors.values() for service in door.get("opens") or []}
    taken.update(map(_service, guarded))
    for name in sorted(set(mine) & set(names)):
        lines.extend(f"{host}: door {name}: the new sequence {words}" for words in _wrong(mine[name], taken))
    return ["logknock_rotate_sequences: " + line if "logknock_doors" not in line else line for line in lines]


def _wrong(sequence, taken):
    if not isinstance(sequence, (list, tuple)) or not sequence:
        return ["is no list of knocks"]
    services = [_service(knock) for knock in sequence]
    wrong = [f"has no PORT/tcp or PORT/udp as its knock {n}" for n, knock in enumerate(services, 1) if not knock]
    if len(services) < SHORTEST:
        wrong.append(f"has fewer than {SHORTEST} knocks")
    if len(services) > LONGEST:
        wrong.append(f"has more than {LONGEST} knocks")
    if any(knock in taken for knock in services if knock):
        wrong.append("knocks on a port that is guarded")
    ports = [knock[0] for knock in services if knock]
    if not wrong and ports == sorted(ports):
        wrong.append("ascends: a port scan from low to high knocks it")
    return wrong


def _service(text):
    """The port and the protocol of a service as logknock.toml has it; None where it is none."""
    port, _unused, proto = str(text).partition("/")
    right = re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535 and proto in ("", "tcp", "udp")
    return (int(port), proto or "tcp") if right else None


def new_sequence(like, avoided):
    """As many knocks over the same protocols, at ports of the kernel's own random numbers, never in one direction."""
    draw = random.SystemRandom()
    protos = [service.partition("/")[2] or "tcp" for service in like][:LONGEST]
    protos += ["tcp"] * (SHORTEST - len(protos))
    free = [port for port in PORTS if port not in avoided]
    while True:
        ports = draw.sample(free, len(protos))
        if ports not in (sorted(ports), sorted(ports, reverse=True)):
            return [f"{port}/{proto}" for port, proto in zip(ports, protos, strict=True)]


def promoted(rotation):
    """The rotation once the host takes what is next: clients are to knock that, and what they knocked is previous."""
    found = {}
    for name, state in (rotation or {}).items():
        found[name] = {"sequence": state["next"], "previous": state["sequence"]} if state.get("next") else state
    return found


def finished(rotation):
    """The rotation without what is previous. What is still next stays: no client knows it."""
    found = {}
    for name, state in (rotation or {}).items():
        found[name] = {key: sequence for key, sequence in state.items() if key != "previous"}
    return found


def changing(rotation, names):
    """The doors of these names that have two sequences now."""
    return [name for name in names if len((rotation or {}).get(name, {})) > 1]


def pending(rotation, names):
    """The doors of these names that have a sequence which no client knows yet."""
    return [name for name in names if (rotation or {}).get(name, {}).get("next")]


class FilterModule:
    """What Ansible finds here."""

    def filters(self):
        """The filters by their names."""
        return {
            "begun": begun,
            "changing": changing,
            "finished": finished,
            "fleet_profiles": fleet_profiles,
            "metrics_drop_in": metrics_drop_in,
            "mistakes": mistakes,
            "pending": pending,
            "promoted": promoted,
            "to_toml": to_toml,
            "unknown_variables": unknown_variables,
            "with_rotation": with_rotation,
        }
