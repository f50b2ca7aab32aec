"""`logknock check`: is the configuration right? Rule: it says what others found, and finds nothing itself."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from .. import lockout, session, spa
from ..config import NO_DOOR, Config, ConfigError, Problem, load
from ..errors import LogknockError, printable
from ..firewall.ruleset import knocked_once
from ..ownership import SERVICE, kept_from_service
from . import config_option
from .rules import ssh_services

# With --any-door: a code that no failure has, Python's own (1) included, since the unit is skipped for it.
NOTHING_TO_DO = 3


@click.command(epilog="Example: logknock check -c ./logknock.toml")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
@click.option("--any-door", is_flag=True, help="Say only whether there is a door at all, as the systemd unit asks.")
def check(config_path: Path, as_json: bool, any_door: bool) -> int:
    """Is the configuration right?

    Prints every error and every warning with its file, line and key. Exit code 0: right, perhaps with warnings;
    78: errors; 77: it cannot be read for lack of permission. With --any-door: 3 if all that is wrong is that there is
    no door yet, and else 0.
    """
    if any_door:
        return _check_for_doors(config_path)
    if as_json:
        return _check_as_json(config_path)
    config = load(config_path)
    unwise = _unwise(config)
    for problem in unwise:
        for line in problem.report("logknock: warning: "):
            click.echo(line, err=True)
    _, onetime = knocked_once(config)
    for text in onetime:
        click.echo(f"logknock: warning: {printable(text)}", err=True)
    shut = _shut(config)
    for text in shut:
        click.echo(f"logknock: warning: {text}", err=True)
    warned = len(unwise) + len(onetime) + len(shut)
    written = {door.name.partition(":")[0] for door in config.doors}  # an SPA door may be one for each service
    doors, warnings = _count(len(written), "door"), _count(warned, "warning")
    click.echo(f"{printable(str(config_path))}: ok, {doors}, {warnings}")
    return 0


def _check_for_doors(path: Path) -> int:
    """NOTHING_TO_DO where nobody has configured anything yet; other mistakes are for `logknock run` to tell."""
    try:
        load(path)
    except ConfigError as error:
        if [problem.message for problem in error.problems] == [NO_DOOR]:
            click.echo(f"logknock: {printable(str(path))}: no door is configured yet: there is nothing to do", err=True)
            return NOTHING_TO_DO
    return 0


def _check_as_json(path: Path) -> int:
    config: Config | None = None
    errors: tuple[Problem, ...] = ()
    code = 0
    try:
        config = load(path)
    except ConfigError as error:
        errors, code = error.problems, error.exit_code
    answer = {
        "file": str(path),
        "ok": config is not None,
        "doors": [door.name for door in config.doors] if config else [],
        "errors": [_plain(problem) for problem in errors],
        "warnings": [_plain(problem) for problem in _unwise(config)] if config else [],
        "onetime": list(knocked_once(config)[1]) if config else [],
        "ssh": _shut(config) if config else [],
    }
    click.echo(json.dumps(answer, indent=2))
    return code


def _unwise(config: Config) -> list[Problem]:
    """What is unwise about it, what the service cannot read of it, and what it cannot be used without."""
    text = f"cannot be read by the user {SERVICE}, as whom the service runs"
    kept = kept_from_service(config.file, config.onetime_files)
    unread = (Problem(found.path, None, "", text, found.remedy) for found in kept)
    return [*config.warnings, *unread, *_missing(config)]


def _missing(config: Config) -> Iterator[Problem]:
    """What is not installed here: another host may have it."""
    if any(door.proof == "spa" for door in config.doors):
        try:
            spa.require()
        except LogknockError as error:
            yield Problem(config.file, None, "", f"{error.message}: without it no SPA door opens", error.hint)


def _shut(config: Config) -> list[str]:
    """What `rules apply` would refuse, as far as this user can see what listens; one-time files are told of already."""
    own = session.current()
    ssh = {lockout.SSH, *([own.service] if own else [])}
    with suppress(LogknockError):
        ssh |= ssh_services(own)
    return [error.words() for error in lockout.unopened(config, ssh)]


def _plain(problem: Problem) -> dict[str, Any]:
    return {
        "file": str(problem.file),
        "line": problem.line,
        "key": problem.key,
        "message": problem.message,
        "hint": problem.hint,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
