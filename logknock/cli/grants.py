"""`logknock grants`, `grant` and `revoke`: who is in. Rule: the daemon decides; here it is asked, and shown."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ..control import ask
from ..errors import printable
from ..packet import parse_address
from . import config_option
from .bans import asked_time
from .runtime import runtime_of
from .status import aligned, duration

_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")

# What closes 65,536 doors takes half a minute, between packets; it answers on the way, 64 at a time.
_PATIENCE = 60.0


@click.command(epilog="Example: logknock grants --json | jq -r .address")
@config_option
@_json_option
def grants(config_path: Path, as_json: bool) -> None:
    """Which doors are open, for whom, for how much longer, and who opened them; what closes next comes first.

    Asks the running daemon; `logknock status` says without one what was recorded last. In the JSON `left` is in
    seconds, `by` is empty where a knock opened the door, and `open` is false where the firewall does not have it (its
    set is full, say, or missing): it opens as soon as that can be.
    """
    found = [grant for answer in ask(runtime_of(config_path), "grants") for grant in answer["grants"]]
    found.sort(key=lambda grant: grant["left"])
    if as_json:
        for grant in found:
            click.echo(json.dumps(grant))
    elif found:
        for line in _table(found):
            click.echo(line)
    else:
        click.echo("no door is open")


@click.command(epilog="Examples: logknock grant ssh 192.0.2.7\n\nlogknock grant ssh 2001:db8::7 8h")
@config_option
@click.argument("door", metavar="DOOR")
@click.argument("address", metavar="ADDRESS")
@click.argument("time", metavar="[TIME]", default="")
@_json_option
def grant(config_path: Path, door: str, address: str, time: str, as_json: bool) -> None:
    """Open DOOR for ADDRESS without a knock, for TIME (30s, 1h30m, 2d; else the door's timeout; at most 365d).

    Otherwise it is as if ADDRESS had knocked: what the door runs is run, its ban ends, and addresses of this host,
    loopback and the like are refused. A door that is open already gets the new time, a shorter one too; a knock
    meanwhile never shortens it. It outlives restarts and reboots with the time that it has left. The log and
    `logknock status` say who granted it.
    """
    (answer,) = ask(runtime_of(config_path), "grant", door=door, address=_parsed(address), **asked_time(time))
    made = answer["grant"]
    words = f"{made['door']} is open for {made['address']} for {duration(made['left'])}"
    click.echo(json.dumps(made) if as_json else words)


@click.command(
    epilog="Examples: logknock revoke 192.0.2.7\n\nlogknock revoke ssh 192.0.2.7\n\nlogknock revoke --all ssh"
)
@config_option
@click.argument("words", metavar="[DOOR] ADDRESS", nargs=-1)
@click.option("--all", "every", is_flag=True, help="For everybody: `--all` closes all doors, `--all DOOR` one.")
@_json_option
def revoke(config_path: Path, words: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Close DOOR for ADDRESS now, or all doors that are open for it.

    Only new connections are kept out: those that are there go on. What the door runs when it closes is run.
    """
    if not (len(words) <= 1 if every else 1 <= len(words) <= 2):
        raise click.UsageError("say --all, or --all DOOR" if every else "name an address, or a door and an address")
    details: dict[str, Any] = {"all": True} if every else {"address": _parsed(words[-1])}
    if len(words) == (1 if every else 2):
        details["door"] = words[0]
    for answer in ask(runtime_of(config_path), "revoke", _PATIENCE, **details):
        for closed in answer["revoked"]:
            click.echo(json.dumps(closed) if as_json else f"{closed['door']} is closed for {closed['address']}")


def _parsed(address: str) -> str:
    """The address as it was written, if it is one: the daemon has the last word."""
    try:
        parse_address(address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS") from None
    return address


def _shut(grant: dict[str, Any]) -> str:
    return "" if grant.get("open", True) else "not in the firewall"


def _table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = [
        ("door", "address", "left", "by", ""),
        *(
            (grant["door"], grant["address"], duration(grant["left"]), printable(grant["by"]) or "knock", _shut(grant))
            for grant in found
        ),
    ]
    heading, *lines = aligned(rows)
    yield click.style(heading, bold=True)
    yield from lines
