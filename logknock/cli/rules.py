"""`logknock rules`: the firewall rules, from the configuration to the kernel. Rule: it prints and asks, no more."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote

import click
from click.core import ParameterSource

from .. import lockout, session, sole, status, systemd
from ..config import Config, ConfigError, load, parse_duration
from ..errors import FAILURE, USAGE, LogknockError, printable
from ..firewall import difference, iptables, marks, ruleset
from ..firewall.difference import Difference, UntriedError
from ..knock import Service
from ..session import Session
from ..trial import POLL, Outcome, Trial
from . import Group, UnwrittenError, config_option

# Long enough to open a second session. Whoever wants to try for longer than this means another thing.
_SHORTEST, _LONGEST = 1, 3600

# What loads the rules at its start, and how long systemd may take to say how it stands, in seconds.
_UNIT = "logknock.service"
_ANSWER_LIMIT = 5.0

# How many services a question lists, so that it fits on two lines.
_MAX_NAMED = 8


@click.group(cls=Group, epilog="Example: logknock rules apply --confirm 60s")
def rules() -> None:
    """Show, compare, load, confirm and remove the firewall rules.

    They are one table of nftables, inet logknock, that stands before any other firewall and needs none.
    """


@rules.command("print", epilog="Example: logknock rules print | nft -f -")
@config_option
@click.option("--iptables", "for_iptables", is_flag=True, help="Print what iptables-restore --noflush takes.")
def print_(config_path: Path, for_iptables: bool) -> None:
    """Print the rules as `nft -f` takes them: exactly what apply loads.

    They hold the secret knock ports. With --iptables: what an iptables firewall needs where [firewall] mark is set, for
    IPv4 and IPv6 alike, made for the rules that this host has.
    """
    if for_iptables:
        click.echo(iptables.printed(load(config_path)), nl=False)
        return
    text, _ = _render(load(config_path))
    click.echo(text, nl=False)


@rules.command(epilog="Example: logknock rules diff && echo nothing to apply")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
def diff(config_path: Path, as_json: bool) -> int:
    """Show what apply would change, as diff -u does.

    In the rules that are loaded, whoever changed them, and in the sets that come from the configuration; not who is
    granted or banned, nor what apply --iptables would change in iptables. The output holds the secret knock ports.
    Nothing is changed. Exit code 0: nothing differs; 1: something does; 2: that cannot be found out; 77: not allowed;
    69: there is no nftables here.
    """
    config = load(config_path)
    for error in lockout.shut(config, ssh_services(session.current())):
        click.echo(f"logknock: warning: {error.words()}", err=True)
    text, _ = _render(config)
    try:
        found = difference.of(text)
    except LogknockError as error:
        code = USAGE if error.exit_code == FAILURE else error.exit_code  # 1 is an answer here
        raise LogknockError(error.message, error.hint, code) from None
    try:
        if as_json:
            click.echo(json.dumps(_plain(found), indent=2))
        else:
            for line in found.unified():
                click.echo(click.style(line, fg=_COLOURS.get(line[:1])))
        sys.stdout.flush()
    except OSError as error:
        raise UnwrittenError(error.errno, error.strerror) from None
    return 1 if found else 0


_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def _plain(found: Difference) -> dict[str, object]:
    elements = {name: found.elements(name) for name in ruleset.CONFIGURED}
    return {
        "differs": bool(found),
        "loaded": found.before is not None,
        "rules": list(found.unified(elements=False)),
        "elements": {name: {"added": list(added), "removed": list(gone)} for name, (added, gone) in elements.items()},
    }


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
@click.option("-y", "--yes", is_flag=True, help="Do not ask on a terminal.")
@click.option(
    "--iptables",
    "with_iptables",
    is_flag=True,
    help="Have this host's iptables accept [firewall] mark, and log what it drops, too.",
)
def apply(config_path: Path, seconds: float | None, yes: bool, with_iptables: bool) -> None:
    """Load the rules in one transaction: all of them, or nothing changes.

    Sessions that are there go on, and open doors stay open. With --confirm over ssh, the address that you come from
    is trusted meanwhile; without it you are asked first, on a terminal. Refused is what would close ssh with no door
    that could open it. Exit code 1: refused, not wanted, or undone; 77: not allowed; 69: there is no nftables here.
    """
    config = load(config_path)
    daemon = status.find_daemon(config.state)
    if daemon.runs is not None:
        sole.refuse_others(daemon.pid)
    own = session.current()
    for error in lockout.shut(config, ssh_services(own)):
        raise error
    if config.firewall.mark:
        marks.check(config.firewall.mark)
        for where in marks.overwriting(config.firewall.mark):
            text = f"{where}: a rule may put another mark in place of the whole, and whoever it concerns is not let in"
            click.echo(f"logknock: warning: {text}", err=True)
    change = _iptables_change(config) if with_iptables else None
    text, summary = _render(config)
    if change is not None:
        summary += f"\n{change.summary}"
    if seconds is None:
        if not yes and sys.stdin.isatty():
            _ask(config, text, own, change)
        ruleset.apply(text, config.runtime, config.state, change)
        click.echo(summary)
        return
    passing = "" if own is None or own.is_local else ruleset.session_element(config, own.peer, seconds)
    with ruleset.try_out(text, config.runtime, config.state, seconds, passing, change) as trial:
        click.echo(summary)
        if own is not None and passing:
            over = "" if own.is_seen else " (as SSH_CONNECTION says, of a connection that is over)"
            click.echo(
                f"{own.address}, where you come from{over}, is trusted meanwhile: knock from elsewhere to try it"
            )
        elif own is None and "SSH_CONNECTION" in os.environ:
            click.echo("where you come from cannot be told from SSH_CONNECTION: nobody is trusted meanwhile")
        _wait(trial, config, seconds)


@rules.command(epilog="Example: logknock rules confirm")
@config_option
def confirm(config_path: Path) -> None:
    """Let the rules stand that `apply --confirm` loaded.

    Run it from a new session: that it can be opened is what is to be confirmed.
    """
    config = load(config_path)
    ruleset.confirm(config.runtime, config.state)
    click.echo("confirmed: the rules stand")


@rules.command(epilog="Example: logknock rules remove")
@config_option
def remove(config_path: Path) -> None:
    """Delete the table and all that is in it: nothing is guarded any more.

    And what apply --iptables has put into iptables. A configuration with errors is no obstacle. logknock.service
    loads the rules again when it starts: systemctl disable --now logknock.
    """
    runtime = state = None
    try:
        config = load(config_path)
        runtime, state = config.runtime, config.state
    except ConfigError:
        hint = "the configuration has errors; a logknock that runs may load the rules again: stop it first"
        click.echo(f"hint: {hint}", err=True)
    there, kept = False, None
    try:
        there = ruleset.remove(runtime, state)  # the trial too, which would bring back what iptables had
    except LogknockError as error:
        kept = error
    cleared, failure = _clear_iptables()
    failure = kept or failure
    if cleared:
        click.echo(f"removed, from {', '.join(cleared)} too" if there else f"removed from {', '.join(cleared)}")
    elif failure is None:
        click.echo("removed" if there else "no rules are loaded: there is nothing to remove")
    elif there:
        click.echo("removed from nftables")
    if _comes_back():
        text = f"{_UNIT} loads them again at its next start: systemctl disable --now logknock"
        click.echo(f"logknock: warning: {text}", err=True)
    if failure is not None:
        raise failure


def _comes_back() -> bool:
    """Whether the unit runs, is about to be started again, or will be started with the host.

    Not where the package itself is being removed, and its unit with it (dpkg(1) says so).
    """
    if not systemd.runs_host() or os.environ.get("DPKG_MAINTSCRIPT_PACKAGE"):
        return False
    argv = ["systemctl", "show", "--property=ActiveState,UnitFileState", _UNIT]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ANSWER_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired):  # there is no systemctl, or it hangs: nothing is known
        return False
    return bool({"ActiveState=active", "ActiveState=activating", "UnitFileState=enabled"} & {*done.stdout.splitlines()})


def _iptables_change(config: Config) -> iptables.Change:
    change = iptables.Change(config)
    for warning in change.warnings:
        click.echo(f"logknock: warning: {warning}", err=True)
    return change


def _clear_iptables() -> tuple[list[str], LogknockError | None]:
    """Where our rules were taken out of, and what kept them from it: no reason to keep those of nftables."""
    try:
        return iptables.remove(), None
    except LogknockError as error:
        return [], error


def ssh_services(own: Session | None) -> set[Service]:
    """Where ssh is on this host, as far as that can be seen."""
    from ..doctor.host import Host

    host = Host()
    return {lockout.SSH, *host.ssh, *host.configured_ssh, *([own.service] if own else [])}


def _ask(config: Config, text: str, own: Session | None, change: iptables.Change | None) -> None:
    """Ask whether to load the text and make the change, if either would change anything.

    Raises LogknockError without a yes.
    """
    beside = [f"this changes {change.summary}"] if change is not None and change.differs else []
    lines: list[str] = []
    try:
        found = difference.of(text)
        lines = list(_consequences(config, found, own)) if found else []
    except UntriedError:
        lines = list(_consequences(config, None, own))
    if not lines and not beside:
        return
    for line in (*lines, *beside):
        click.echo(line, err=True)
    typed = ""
    with suppress(KeyboardInterrupt):
        click.echo("Load it? [y/N] ", nl=False, err=True)
        typed = sys.stdin.readline()
    if not typed.endswith("\n"):
        click.echo(err=True)
    if typed.strip().lower() not in ("y", "yes"):
        raise LogknockError("not loaded: nothing is changed", "`logknock rules apply --confirm 60s` loads it on trial")


def _consequences(config: Config, found: Difference | None, own: Session | None) -> Iterator[str]:
    """What somebody should know who is asked; without a difference that could be found, the worst."""
    closed = [str(service) for service in sorted(config.guarded)]
    if config.firewall.mark:
        closed = []
    elif found is not None:
        closed = [f"{port}/{proto}" for proto, _, port in map(str.split, found.elements("guarded")[0])]
    if closed:
        more = f" and {len(closed) - _MAX_NAMED} more" if len(closed) > _MAX_NAMED else ""
        yield f"this closes {', '.join(closed[:_MAX_NAMED])}{more} to everybody but the trusted and those who knock"
        if own is not None and not (own.is_local or ruleset.trusts(config, own.peer)):
            yield f"{own.address}, where you come from, is not trusted: this session goes on, a new one needs a knock"
        if status.find_daemon(config.state).runs is False:
            yield "no daemon runs: knocks open nothing until `logknock run`"
    elif found is not None and found.before is None:
        yield "this loads the rules, which close nothing by themselves"
    else:
        yield "this changes the rules that are loaded: `logknock rules diff` shows how"


def _render(config: Config) -> tuple[str, str]:
    """The rules, and a line on what they do."""
    seed, listening = ruleset.trap_seed(config.state), ruleset.listening()
    onetime, problems = ruleset.knocked_once(config)
    for problem in problems:
        click.echo(f"logknock: warning: {printable(problem)}", err=True)
    traps = len(ruleset.traps(config, seed, listening, onetime))
    # Numbers only: the ports are the secret, and under systemd this goes to the journal.
    watched = len(config.watched | onetime) if config.firewall.record else 0
    ranges = len(config.spa_places)
    spa = f", {ranges} range{'s' if ranges > 1 else ''} of SPA ports" if ranges else ""
    summary = f"loaded: {len(config.guarded)} guarded, {watched} knock ports, {traps} traps{spa}; {config.logged_to}"
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
                ruleset.confirm(config.runtime, config.state)
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
