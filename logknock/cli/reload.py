"""`logknock reload`: have the running daemon go on with the configuration as it is now."""

import json
from pathlib import Path

import click

from ..control import ask
from . import config_option
from .runtime import runtime_of

# Seconds: reloads that others ask for may be before this one, and a large configuration takes some tenths of one.
_PATIENCE = 60.0


@click.command(epilog="Example: logknock check && logknock reload")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
def reload(config_path: Path, as_json: bool) -> int:
    """Have the running daemon read its configuration again.

    Where anything is wrong with it, each error is printed as `logknock check` would, and the daemon goes on with what
    it had: doors that are open stay open, and so does what others have begun to knock. Rules are not loaded: where
    `logknock rules apply` is needed, that is said. Exit code 0: done, perhaps with warnings; 78: the configuration
    is wrong; 69: no daemon runs.
    """
    runtime = runtime_of(config_path)
    (answer,) = ask(runtime, "reload", _PATIENCE)
    if as_json:
        click.echo(json.dumps(answer))
        return int(answer["code"])
    for line in answer["lines"]:
        click.echo(line, err=True)
    if answer["reloaded"]:
        click.echo("reloaded")
    else:
        click.echo("logknock: not reloaded: the configuration from before stays in force", err=True)
    return int(answer["code"])
