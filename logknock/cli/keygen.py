"""`logknock keygen`: the keys of a new client of an SPA door. Rule: it prints and asks, no more."""

import json
import secrets
from contextlib import nullcontext
from pathlib import Path

import click

from .. import enrolment, spa
from ..config import Config, load
from ..config_values import WrongError
from ..config_values import address as parse_address
from ..config_values import service as parse_service
from ..errors import USAGE, LogknockError
from ..firewall.sets import never_granted
from ..key_files import write_client
from ..knock import Service
from ..packet import address_text
from . import check_output, config_option
from .enroll import address_option, check_new, handing_over, json_option, put_in_force, reload_option, tell, wrong_door

# What the stock client's `--key-gen` makes: as many bytes as AES-256 has, and as SHA-256 has in a block.
_KEY, _HMAC_KEY = 32, 64


def _services(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[Service, ...]:
    try:
        return tuple(dict.fromkeys(map(parse_service, words)))
    except WrongError as error:
        raise click.BadParameter(f"{error}: {error.hint}", ctx, param) from None


def _source(ctx: click.Context, param: click.Parameter, word: str | None) -> str:
    if word is None:
        return ""
    try:
        address = parse_address(word)
    except WrongError as error:
        raise click.BadParameter(f"{error}: {error.hint}", ctx, param) from None
    if why := never_granted(address):
        raise click.BadParameter(f"{word} is {why}: no door opens for it", ctx, param)
    return address_text(address)


@click.command(
    epilog="Examples: logknock keygen vpn laptop --allow 22/tcp --address gate.example --write\n\n"
    "logknock keygen vpn office --allow 22/tcp --allow 1194/udp --from 192.0.2.7"
)
@click.argument("door_name", metavar="DOOR")
@click.argument("client_name", metavar="CLIENT")
@click.option(
    "--allow",
    multiple=True,
    metavar="SERVICE",
    callback=_services,
    help="What it may open, 22/tcp; may be given several times, and left out where DOOR opens one service.",
)
@address_option
@click.option(
    "--from",
    "source",
    metavar="ADDRESS",
    callback=_source,
    help="The address that this client always comes from; its packets name it then. Without this: require_source is"
    " false.",
)
@click.option(
    "--hmac",
    "digest",
    type=click.Choice(list(spa.DIGESTS)),
    default="sha256",
    show_default=True,
    help="What its packets are signed with.",
)
@click.option("--write", is_flag=True, help="Write this host's part to clients/, and have the daemon read it.")
@json_option
@reload_option
@config_option
def keygen(
    door_name: str,
    client_name: str,
    allow: tuple[Service, ...],
    address: str,
    source: str,
    digest: str,
    write: bool,
    as_json: bool,
    no_reload: bool,
    config_path: Path,
) -> int:
    """Make the keys of CLIENT for DOOR, which has spa, and print what each side needs.

    Printed are this host's table, unless it is written, the stanza of a .fwknoprc for the stock fwknop client, and a
    profile for ours: they hold the keys, so show them to nobody else. Without --from the client asks for whatever
    address its packet comes from, which a client behind another router needs, and require_source is false for it: who
    holds up a packet and sends it on opens for themselves. Exit code 0: done; 1: there is such a client, it cannot
    be written, or what it needs cannot be printed; 77: not allowed; 78: the configuration is wrong.
    """
    config = load(config_path)
    opens = _opens(config, door_name)
    check_new(config, door_name, client_name)
    if len(config.spa_keys) >= spa.MAX_SPA_KEYS:
        raise LogknockError(f"there are {spa.MAX_SPA_KEYS} SPA keys, which is the most", "revoke some of them")
    check_output()
    key = spa.Key(
        door=door_name,
        client=client_name,
        key=secrets.token_bytes(_KEY),
        hmac_key=secrets.token_bytes(_HMAC_KEY),
        digest=digest,
        allow=_allowed(door_name, opens, allow),
        require_source=bool(source),
    )
    terms = config.terms[door_name]
    ways = enrolment.Ways(terms.ports, terms.icmp)
    table = enrolment.spa_table(key)
    host = address or config.host
    told = {
        "door": door_name,
        "client": client_name,
        "file": "",
        "table": table,
        "fwknoprc": enrolment.fwknoprc(key, ways, host, source),
        "profile": enrolment.spa_profile(key, ways, host, source),
    }
    code = 0
    if write:
        note = f"# The keys of client {client_name} of door {door_name}; `logknock revoke-client` takes them back.\n"
        told["file"] = str(write_client(config_path, door_name, client_name, note + table))
        code = put_in_force(config, no_reload)
    with handing_over(door_name, client_name) if write else nullcontext():
        if as_json:
            click.echo(json.dumps(told))
        else:
            _print(told)
    if not address:
        tell(f"the client is told to reach this host as {host}", "--address HOST, where that does not lead here")
    if not source:
        tell(
            f"client {client_name} asks for whatever address its packets come from (require_source = false)",
            "where it always comes from one address, --from ADDRESS is safer",
        )
    return code


def _opens(config: Config, name: str) -> tuple[Service, ...]:
    opens = tuple(service for door, service in config.spa_doors if door == name)
    if not opens:
        right = [door for door, asked in config.terms.items() if asked.proof == "spa"]
        raise wrong_door(config, name, right, "spa = {}")
    return opens


def _allowed(name: str, opens: tuple[Service, ...], asked: tuple[Service, ...]) -> tuple[Service, ...]:
    """What of the door's services the client may open."""
    shown = " ".join(f"--allow {service}" for service in opens)
    if not asked and len(opens) > 1:
        raise LogknockError(f"door {name} opens several services: which of them may the client open?", shown, USAGE)
    for service in asked:
        if service not in opens:
            raise LogknockError(f"door {name} does not open {service}", shown, USAGE)
    return asked or opens


def _print(told: dict[str, str]) -> None:
    if not told["file"]:
        click.echo(f"# ---- on this host: clients/{told['door']}.{told['client']}.toml beside its configuration")
        click.echo(told["table"])
    click.echo("# ---- for the stock client: ~/.fwknoprc")
    click.echo(told["fwknoprc"])
    click.echo("# ---- for `logknock knock`: ~/.config/logknock/client.toml")
    click.echo(told["profile"], nl=False)
