"""`logknock bans`, `ban` and `unban`: who is kept out. Rule: the daemon decides; here it is asked, and shown."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ..bans import Target, parse_target, parse_time
from ..control import ask
from ..errors import LogknockError, printable
from ..session import current
from . import config_option
from .runtime import runtime_of
from .status import aligned, duration, local_time

# Lifting 65,535 bans takes the daemon some seconds, between packets; it answers at the end.
_PATIENCE = 60.0


@click.command(epilog="Example: logknock bans --json | jq -r .address")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def bans(config_path: Path, as_json: bool) -> None:
    """Who is banned, since when, for how much longer, and why; the latest first.

    Asks the running daemon. An IPv6 ban is of a /64. In the JSON `since` is in seconds since the epoch, `left` in
    seconds, null where the ban has no end.
    """
    found = [ban for answer in ask(runtime_of(config_path), "bans") for ban in answer["bans"]]
    found.sort(key=lambda ban: -ban["since"])
    if as_json:
        for ban in found:
            click.echo(json.dumps(ban))
    elif found:
        for line in _table(found):
            click.echo(line)
    else:
        click.echo("nobody is banned")


@click.command(epilog="Examples: logknock ban 192.0.2.7\n\nlogknock ban 2001:db8:0:7::/64 2d")
@config_option
@click.argument("whom", metavar="ADDRESS|PREFIX")
@click.argument("time", metavar="[TIME]", default="")
def ban(config_path: Path, whom: str, time: str) -> None:
    """Ban an IPv4 address or an IPv6 /64 for TIME (30s, 1h30m, 2d; else [scan] ban of the configuration).

    Nothing that it sends passes, but connections that are there go on. Of an IPv6 address its /64 is banned. It works
    whether scanners are looked for or not. Who is banned already gets the new time. Never banned are the trusted, who
    has an open door, addresses of this host, and where your own ssh session comes from. A ban outlives a restart of
    the daemon, and no reboot.
    """
    _refuse_own_session(_parsed(whom))
    (answer,) = ask(runtime_of(config_path), "ban", address=whom, **asked_time(time))
    click.echo(f"banned for {duration(answer['seconds'])}: {answer['banned']}")


@click.command(epilog="Example: logknock unban 192.0.2.7")
@config_option
@click.argument("whom", metavar="[ADDRESS|PREFIX]", required=False)
@click.option("--all", "every", is_flag=True, help="Lift all bans.")
def unban(config_path: Path, whom: str | None, every: bool) -> None:
    """Lift the ban of an IPv4 address, or of an IPv6 /64 (any address in it will do)."""
    if (whom is None) != every:
        raise click.UsageError("name an address or a prefix, or say --all")
    if whom is not None:
        _parsed(whom)
    details = {} if whom is None else {"address": whom}
    (answer,) = ask(runtime_of(config_path), "unban", _PATIENCE, **details)
    lifted = answer["unbanned"]
    click.echo(f"no longer banned: {lifted if whom else f'all {lifted}'}")


def asked_time(time: str) -> dict[str, float]:
    """TIME as a part of a request; nothing where it is left out."""
    try:
        return {"seconds": parse_time(time)} if time else {}
    except ValueError as error:
        raise click.BadParameter(f"{error}: write 30s, 1h30m or 2d", param_hint="TIME") from None


def _parsed(whom: str) -> Target:
    try:
        return parse_target(whom)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS|PREFIX") from None


def _refuse_own_session(target: Target) -> None:
    """Nobody is to lock themselves out (T38)."""
    session = current()
    if session is not None and session.is_seen and Target(session.peer, is_prefix=False).key == target.key:
        message = f"{session.address} is where this ssh session comes from: you could not come back"
        raise LogknockError(message, "ban it from elsewhere; to keep it from being banned there is [firewall] trusted")


def _table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = [
        ("address", "since", "left", "reason"),
        *(
            (printable(ban["address"]), local_time(ban["since"]), _left(ban["left"]), printable(ban["reason"]))
            for ban in found
        ),
    ]
    heading, *lines = aligned(rows)
    yield click.style(heading, bold=True)
    yield from lines


def _left(seconds: float | None) -> str:
    return "for ever" if seconds is None else duration(seconds)
