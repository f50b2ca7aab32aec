"""`logknock rules`: the firewall rules, from the configuration to the kernel. Rule: it prints and asks, no more."""

import select
import sys
from pathlib import Path
from shlex import quote

import click
from click.core import ParameterSource

from ..config import Config, ConfigError, load, parse_duration
from ..errors import LogknockError, printable
from ..firewall import ruleset
from ..trial import POLL, Outcome, Trial
from . import config_option

# Long enough to open a second session. Whoever wants to try for longer than this means another thing.
_SHORTEST, _LONGEST = 1, 3600


@click.group(epilog="Example: logknock rules apply --confirm 60s")
def rules() -> None:
    """Show, load, confirm and remove the firewall rules.

    They are one table of nftables, inet logknock, that stands before any other firewall and needs none.
    """


@rules.command("print", epilog="Example: logknock rules print | nft -f -")
@config_option
def print_(config_path: Path) -> None:
    """Print the rules as `nft -f` takes them: exactly what apply loads.

    They hold the secret knock ports.
    """
    text, _ = _render(load(config_path))
    click.echo(text, nl=False)


def _confirm_option(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}: write 60s or 5m", ctx, param) from None
    if not _SHORTEST <= seconds <= _LONGEST:
        raise click.BadParameter(f"{text} is out of range ({_SHORTEST}s-1h)", ctx, param)
    return seconds


@rules.command(epilog="Example: logknock rules apply --confirm 60s")
@config_option
@click.option(
    "--confirm",
    "seconds",
    metavar="TIME",
    callback=_confirm_option,
    help="Undo everything after TIME (60s, 5m), unless `logknock rules confirm` is run before.",
)
def apply(config_path: Path, seconds: float | None) -> None:
    """Load the rules in one transaction: all of them, or nothing changes.

    Sessions that are there go on, and open doors stay open. Exit code 1: refused, or undone; 77: not
    allowed; 69: there is no nftables here.
    """
    config = load(config_path)
    text, summary = _render(config)
    if seconds is None:
        ruleset.apply(text, config.runtime)
        click.echo(summary)
        return
    with ruleset.try_out(text, config.runtime, seconds) as trial:
        click.echo(summary)
        _wait(trial, config, seconds)


@rules.command(epilog="Example: logknock rules confirm")
@config_option
def confirm(config_path: Path) -> None:
    """Let the rules stand that `apply --confirm` loaded.

    Run it from a new session: that it can be opened is what is to be confirmed.
    """
    ruleset.confirm(load(config_path).runtime)
    click.echo("confirmed: the rules stand")


@rules.command(epilog="Example: logknock rules remove")
@config_option
def remove(config_path: Path) -> None:
    """Delete the table and all that is in it: nothing is guarded any more.

    A configuration with errors is no obstacle.
    """
    try:
        runtime = load(config_path).runtime
    except ConfigError:
        runtime = None
    click.echo("removed" if ruleset.remove(runtime) else "no rules are loaded: there is nothing to remove")


def _render(config: Config) -> tuple[str, str]:
    """The rules, and a line on what they do."""
    seed, listening = ruleset.trap_seed(config.state), ruleset.listening()
    onetime, problems = ruleset.knocked_once(config)
    for problem in problems:
        click.echo(f"logknock: warning: {printable(problem)}", err=True)
    traps = len(ruleset.traps(config, seed, listening, onetime))
    # Numbers only: the ports are the secret, and under systemd this goes to the journal.
    watched = len(config.watched | onetime) if config.firewall.record else 0
    summary = f"loaded: {len(config.guarded)} guarded, {watched} knock ports, {traps} traps; {config.logged_to}"
    return ruleset.render(config, seed, listening, onetime), summary


# What to tell of a trial that was not confirmed: a message and a hint.
_ENDS = {
    Outcome.UNDONE: ("nobody confirmed the rules: they are undone, what was there before is back", ""),
    Outcome.UNDO_FAILED: (
        "nobody confirmed the rules, and undoing them failed",
        "`logknock rules remove` deletes them, `logknock rules apply` loads them",
    ),
    Outcome.REMOVED: ("the rules were removed before anybody confirmed them", ""),
    Outcome.ABANDONED: (
        "the process that would undo the rules was killed: they stand, unconfirmed",
        "`logknock rules remove` deletes them, `logknock rules apply` loads them for good",
    ),
}


def _wait(trial: Trial, config: Config, seconds: float) -> None:
    """Wait for the end of the trial, and on a terminal for a yes; raises LogknockError if nobody confirms."""
    command = _confirm_command(config.file)
    terminal = sys.stdin.isatty()
    here = ", or type yes here" if terminal else ""
    click.echo(f"still reachable? open a new connection and run `{command}`{here}, within {seconds:g} s")
    try:
        while (outcome := trial.outcome()) is None:
            typed, _, _ = select.select([sys.stdin] if terminal else [], [], [], POLL)
            line = sys.stdin.readline() if typed else None
            terminal = terminal and line != ""  # nobody can type any more
            if line and line.strip().lower() == "yes":
                ruleset.confirm(config.runtime)
    except KeyboardInterrupt:
        raise LogknockError("not confirmed: the rules will be undone", f"to keep them: {command}") from None
    if outcome is not Outcome.CONFIRMED:
        raise LogknockError(*_ENDS[outcome])
    click.echo("confirmed: the rules stand")


def _confirm_command(config_path: Path) -> str:
    """What to type in another session, where neither the directory nor the environment need be the same."""
    command = "logknock rules confirm"
    if click.get_current_context().get_parameter_source("config_path") is ParameterSource.DEFAULT:
        return command
    return f"{command} -c {quote(str(config_path.absolute()))}"
