"""A client's profiles: client.toml in, frozen profiles out, or every error at once, each with file, line and key.

Rule 1: a file with an error in it gives no profile at all. Rule 2: what is written here means what it means on the
command line. Rule 3: nothing is looked up here: no host, no file of sequences.
"""

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config_values as values
from .client import DELAY, MAX_DELAY, MAX_HOSTS, MISPLACED, SERVICE_HINT, Knock, arrange, misplaced, parse_word
from .config_values import WrongError
from .errors import USAGE, LogknockError, printable
from .knock import MAX_SEQUENCE, Service
from .packet import TCP
from .runs import MAX_TRIES, TRIES
from .toml_files import ConfigError, Report, read_file
from .toml_tables import Table

if TYPE_CHECKING:  # a profile of knocks does not wait for what secrets take
    from .profile_proofs import Asked
    from .totp import TotpDoor

_MINIMAL = 'profiles.home = {host = "host.example", sequence = ["7000/tcp", "9000/udp", "8000/tcp"]}'

# The first a letter, so that no profile reads as a service, a pause or an address.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
_NAME_HINT = "up to 63 letters, digits and . _ -, the first a letter"

_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}

# What a profile has one of.
_KINDS = ("sequence", "onetime", "totp", "spa")

# How many profiles an error lists, so that it stays readable.
_MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class Profile:
    """How to knock at some host: one of `knocks`, `onetime` (a file of one-time sequences), `totp` and `spa`.

    Times are in seconds.
    """

    name: str
    hosts: tuple[str, ...] = ()
    knocks: tuple[Knock, ...] = ()
    onetime: Path | None = None
    totp: "TotpDoor | None" = None
    spa: "Asked | None" = None
    delay: float = DELAY
    family: socket.AddressFamily = socket.AF_UNSPEC
    verify: Service | None = None
    tries: int = TRIES


@dataclass(frozen=True, slots=True)
class Profiles:
    """What a client.toml says."""

    file: Path
    by_name: dict[str, Profile]

    def get(self, name: str) -> Profile:
        """The profile of that name; raises LogknockError."""
        if name in self.by_name:
            return self.by_name[name]
        alike = get_close_matches(name, self.by_name, n=1)
        names = [*list(self.by_name)[:_MAX_NAMED], *(["..."] if len(self.by_name) > _MAX_NAMED else [])]
        hint = f"did you mean {alike[0]}?" if alike else f"the profiles are: {', '.join(names)}"
        raise LogknockError(printable(f"{self.file}: there is no profile {name!r}"), hint, USAGE)


def is_name(text: str) -> bool:
    """Whether a profile could have this name."""
    return _NAME.fullmatch(text) is not None


def default_file() -> Path:
    """`$XDG_CONFIG_HOME/logknock/client.toml`, by default below `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # which the specification says to ignore
        base = os.path.expanduser("~/.config")
    return Path(base, "logknock", "client.toml")


def load(path: Path) -> Profiles:
    """Read the file; raises ConfigError with every problem."""
    report = Report("--profiles", _MINIMAL)
    data = read_file(path, report) or {}
    top = Table((), path, report)
    top.add(path, data)
    written: dict[str, Any] = top.read("profiles", values.table("[profiles.NAME]"), {})
    everyone = Table(("profiles",), path, report)
    everyone.add(path, written)
    found = {}
    for name in written:
        table: dict[str, Any] = everyone.read(name, values.table("[profiles.NAME]"), {})
        if name not in everyone.wrong:
            found[name] = _profile(name, table, path, report)
    top.finish()
    if report.complete and not report.errors and not found:
        top.error("profiles", "there is no profile", f"a minimal one: {_MINIMAL}")
    if report.errors:
        raise ConfigError(report.located(report.errors), report.exit_code)
    return Profiles(path, found)


def _profile(name: str, data: dict[str, object], path: Path, report: Report) -> Profile:
    table = Table(("profiles", name), path, report)
    table.add(path, data)
    profile = Profile(
        name=name,
        hosts=table.read_list("host", _host, most=MAX_HOSTS)
        if isinstance(data.get("host"), list)
        else table.read("host", lambda value: (_host(value),), ()),
        knocks=_knocks(table),
        onetime=table.read("onetime", _onetime(path.parent), None),
        totp=_totp(table),
        spa=_spa(table),
        delay=table.read("delay", _delay, DELAY),
        family=table.read("family", _family, socket.AF_UNSPEC),
        verify=table.read("verify", _verify, None),
        tries=table.read("tries", values.whole(1, MAX_TRIES), TRIES),
    )
    _check(profile, table)
    table.finish()
    return profile


def _check(profile: Profile, table: Table) -> None:
    """What a profile's keys show together."""
    if not is_name(profile.name):
        table.error("", "this is no name for a profile", _NAME_HINT)
    kinds = [key for key in _KINDS if table.has(key)]
    if len(kinds) > 1:
        message = f"a profile knocks in one way, and this one has {' and '.join(kinds)}"
        table.error(kinds[-1], message, "leave one out")
    elif not kinds:
        hint = 'sequence = ["7000/tcp", "9000/udp", "8000/tcp"], or onetime = "FILE", totp = {...} or spa = {...}'
        table.error("sequence", "is missing", hint)
    elif table.has("sequence") and not profile.knocks and "sequence" not in table.wrong:
        table.error("sequence", "has no knock", "write what the door's sequence is on the host")
    if table.has("host") and not profile.hosts and "host" not in table.wrong:
        table.error("host", "names no host", "leave it out in a profile that is for `logknock proxy` only")
    for at, host in enumerate(profile.hosts):
        if host in profile.hosts[:at]:
            table.error("host", f"{host} is named twice", "leave one out", item=at)
    if table.has("onetime") and len(profile.hosts) > 1:
        hint = "write a profile for each host, each with a file of its own"
        table.error("host", "one file of one-time sequences serves one host: each host counts its own", hint)


def _totp(table: Table) -> "TotpDoor | None":
    inner = table.table("totp")
    if not table.has("totp") or "totp" in table.wrong:
        return None
    from .profile_proofs import read_totp

    return read_totp(inner)


def _spa(table: Table) -> "Asked | None":
    inner = table.table("spa")
    if not table.has("spa") or "spa" in table.wrong:
        return None
    from .profile_proofs import read_spa

    return read_spa(inner)


def _knocks(table: Table) -> tuple[Knock, ...]:
    items = table.read_list("sequence", _item)
    if "sequence" in table.wrong:
        return ()
    for at in misplaced(items):
        table.error("sequence", MISPLACED, "leave it out, or make one of two", item=at)
    knocks = arrange(items)
    if len(knocks) > MAX_SEQUENCE:
        hint = "no door has a longer sequence: leave some out here and on the host"
        table.error("sequence", f"has {len(knocks)} knocks, and {MAX_SEQUENCE} are the most", hint)
    return knocks


# ---- values


def _item(value: object) -> Service | float:
    if type(value) is int:
        raise WrongError(f"{value} is not in quotes", f'write "{value}/tcp" or "{value}/udp"')
    word = values.text("7000/tcp")(value)
    try:
        return parse_word(word)
    except ValueError as error:
        raise WrongError(str(error), SERVICE_HINT) from None


def _host(value: object) -> str:
    host = values.text("host.example")(value)
    if not host or not host.isprintable() or set(host) & set(" ,[]"):
        raise WrongError(f"{host!r} is no host", 'a name or an address; several stand in a list: ["one", "two"]')
    return host


def _onetime(folder: Path) -> Callable[[object], Path]:
    def parse(value: object) -> Path:
        written = values.text("~/.config/logknock/home.onetime")(value)
        if not written or not written.isprintable():
            raise WrongError(f"{written!r} is no path", "a path, relative ones from the directory of this file")
        expanded = os.path.expanduser(written)
        if expanded.startswith("~"):
            raise WrongError(f"{written!r}: there is no such home directory", "write the path out, from /")
        return folder / expanded

    return parse


def _delay(value: object) -> float:
    if type(value) is int:
        raise WrongError(f"{value} has no unit", f'write "{value}ms"')
    return values.duration("0s", f"{MAX_DELAY:.0f}s")(value)


def _family(value: object) -> socket.AddressFamily:
    written = values.text("ipv4")(value)
    if written not in _FAMILIES:
        raise WrongError(f"{written!r} is no family of addresses", 'write "ipv4" or "ipv6", or leave it out for either')
    return _FAMILIES[written]


def _verify(value: object) -> Service:
    service = values.service(value)
    if service.proto != TCP:
        raise WrongError(f"{service} cannot be verified: over UDP nothing need answer", 'a TCP service, like "22/tcp"')
    return service
