"""`logknock clients` and `revoke-client`: who has a secret. Rule: it prints and asks; what there is, others know."""

import json
from collections.abc import Iterator
from os.path import lexists
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..config import Config, ConfigError, load
from ..control import ControlError, ask
from ..errors import UNAVAILABLE, USAGE, LogknockError, printable
from ..key_files import Place, path_of, places_of, remove_client
from ..store import DATABASE, StoreError, read_only
from . import config_option, fail
from .enroll import check_name, json_option, tell
from .status import aligned, local_time

# What closes 65,536 doors takes half a minute, between packets; a reload waits for those that others ask for.
_PATIENCE = 60.0


class _Client(NamedTuple):
    """A client as it is shown. used: seconds since the epoch, None: never; step: that one, of TOTP."""

    door: str
    name: str
    kind: str
    place: Place
    used: int | None
    step: int | None


@click.command(epilog="Example: logknock clients ssh --json | jq -r .client")
@click.argument("door", metavar="[DOOR]", default="")
@json_option
@config_option
def clients(door: str, as_json: bool, config_path: Path) -> int:
    """Who may knock with a secret or keys of their own: all clients, or those of DOOR.

    With each where it stands, and when it was last used: the beginning of the time step of a sequence, or when a packet
    was sent, by the client's clock. In the JSON `used` and `step` are null where it was not, and `known` is false where
    the database that says so cannot be read.
    """
    config = load(config_path)
    if door:
        _check_door(config, door)
    used, why = _last_used(config)
    found = [client for client in _found(config, used) if door in ("", client.door)]
    if why:
        tell(f"when clients were last used is not known: {why.message}", why.hint)
    if as_json:
        for client in found:
            click.echo(json.dumps(_plain(client, known=not why)))
    elif found:
        for line in _table(found, known=not why):
            click.echo(line)
    else:
        click.echo("no client")
    return 0


@click.command("revoke-client", epilog="Example: logknock revoke-client ssh laptop")
@click.argument("door")
@click.argument("client")
@config_option
def revoke_client(door: str, client: str, config_path: Path) -> int:
    """Take back CLIENT's secret for DOOR, and close what it has opened.

    Its file in clients/ is removed; a client that stands elsewhere is not, and the file and line are said. Then the
    running daemon reads its configuration again, and doors that this client opened are closed: only new connections are
    kept out, those that are there go on. Exit code 0: done; 1: there is no such client, or it has no file of its own;
    77: not allowed; 78: the configuration is wrong, and whether the file is removed all the same; another: the daemon
    still lets it in, and why.
    """
    check_name(client, "client")
    try:
        config = load(config_path)
    except ConfigError as error:
        return _take_file(config_path, door, client, error)
    _check_door(config, door)
    file = config.homes.get((door, client))
    if file is None:
        names = [name for owner, name in config.homes if owner == door]
        hint = f"its clients are: {', '.join(names)}" if names else _how_to_begin(config, door)
        raise LogknockError(printable(f"door {door} has no client {client}"), hint)
    remove_client(config_path, places_of({(door, client): file})[door, client], door, client)
    click.echo(f"{printable(str(file))} is removed")
    try:
        return _take_back(config, door, client)
    except ControlError as error:
        if error.exit_code == UNAVAILABLE:
            tell("no daemon runs: what is open now closes by its timeout", "`logknock status` lists it")
            return 0
        tell(f"the running daemon still lets it in: {error.message}", "`logknock reload`, then `logknock grants`")
        return error.exit_code


def _take_file(config_path: Path, door: str, client: str, wrong: ConfigError) -> int:
    """What can be done beside a configuration that is wrong: the client's own file goes, the daemon is for later."""
    check_name(door, "door")
    fail(wrong)
    file = path_of(config_path, door, client)
    if not lexists(file):
        words = f"there is no file {file}; whether client {client} of door {door} stands elsewhere is not known"
        tell(words, f"mend what is wrong, then `logknock revoke-client {door} {client}`")
        return wrong.exit_code
    try:
        remove_client(config_path, Place(file, None), door, client)
    except LogknockError as error:
        again = f"mend what is wrong, then `logknock revoke-client {door} {client}`"
        tell(f"not revoked: client {client} of door {door} still gets in: {error.message}", again)
        return wrong.exit_code
    click.echo(f"{printable(str(file))} is removed")
    tell("a running daemon still lets it in", "mend what is wrong, then `logknock reload` and `logknock grants`")
    return wrong.exit_code


def _take_back(config: Config, door: str, client: str) -> int:
    """Have the daemon forget the client, then close what it opened; the answer is an exit code. Raises ControlError."""
    (answer,) = ask(config.runtime, "reload", _PATIENCE)
    for line in answer["lines"]:
        click.echo(line, err=True)
    if not answer["reloaded"]:
        tell("not reloaded: the running daemon still lets it in", "mend what is wrong, then `logknock reload`")
    for grant in list(_opened(config, door, client)):
        try:
            for closed in ask(config.runtime, "revoke", _PATIENCE, door=grant["door"], address=grant["address"]):
                for one in closed["revoked"]:
                    click.echo(f"{one['door']} is closed for {one['address']}")
        except ControlError as error:
            if error.exit_code == UNAVAILABLE:
                raise
            tell(error.message, f"`logknock revoke {grant['door']} {grant['address']}`, if `logknock grants` has it")
    return int(answer["code"])


def _opened(config: Config, door: str, client: str) -> Iterator[dict[str, Any]]:
    for answer in ask(config.runtime, "grants", _PATIENCE):
        for grant in answer["grants"]:
            if grant["by"] == f"client {client}" and grant["door"].partition(":")[0] == door:
                yield grant


def _check_door(config: Config, name: str) -> None:
    known = list(dict.fromkeys(door.name.partition(":")[0] for door in config.doors))
    if name not in known:
        raise LogknockError(printable(f"there is no door {name}"), f"the doors are: {', '.join(known)}", USAGE)


def _how_to_begin(config: Config, name: str) -> str:
    """What makes the door's first client."""
    proof = next(door.proof for door in config.doors if door.name.partition(":")[0] == name)
    if not proof:
        return "it takes no clients: whoever knocks its sequence passes"
    return f"`logknock {config.to_enroll(name)}` makes one"


# ---- what is shown


class _Used(NamedTuple):
    """By door and client: when the last time step began, and when the newest packet was sent (seconds)."""

    steps: dict[tuple[str, str], int]
    packets: dict[tuple[str, str], int]


def _last_used(config: Config) -> tuple[_Used, StoreError | None]:
    try:
        (config.state / DATABASE).lstat()
        with read_only(config.state) as reader:
            return _Used(reader.steps(), reader.packets()), None
    except FileNotFoundError:  # nothing has happened yet
        return _Used({}, {}), None
    except PermissionError:
        hint = "run this as root, or as the user that the daemon runs as"
        return _Used({}, {}), StoreError(f"{config.state / DATABASE}: cannot be read: permission denied", hint)
    except StoreError as error:
        return _Used({}, {}), error


def _found(config: Config, used: _Used) -> Iterator[_Client]:
    places = places_of(config.homes)
    for door in config.totp:
        for client in door.clients:
            begun = used.steps.get((door.door, client.name))
            step = None if begun is None else begun // door.step
            kind = f"code {door.digits}" if door.digits else "totp"
            yield _Client(door.door, client.name, kind, places[door.door, client.name], begun, step)
    for key in config.spa_keys:
        when = used.packets.get((key.door, key.client))
        yield _Client(key.door, key.client, "spa", places[key.door, key.client], when, None)


def _plain(client: _Client, *, known: bool) -> dict[str, Any]:
    return {
        "door": client.door,
        "client": client.name,
        "kind": client.kind.partition(" ")[0],
        "file": str(client.place.file),
        "line": client.place.line,
        "used": client.used,
        "step": client.step,
        "known": known,
    }


def _table(found: list[_Client], *, known: bool) -> Iterator[str]:
    rows = [
        ("door", "client", "kind", "last used", "step", "where"),
        *(
            (
                client.door,
                client.name,
                client.kind,
                "never" if client.used is None and known else "?" if client.used is None else local_time(client.used),
                "" if client.step is None else str(client.step),
                str(client.place),
            )
            for client in found
        ),
    ]
    heading, *lines = aligned(rows)
    yield click.style(heading, bold=True)
    yield from lines
