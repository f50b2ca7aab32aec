"""`logknock import-knockd`: a knockd.conf as a configuration of ours. Rule: it reads, prints and writes, no more."""

import os
from pathlib import Path
from shlex import quote

import click

from ..config import ConfigError, Problem
from ..errors import FAILURE, printable
from ..knockd_conf import MAX_BYTES, Finding, convert
from .converting import PATH, configuration_of, hand_out, output_option, read_original, tell

# Where knockd's shell looks for programs: systemd's default for services, without what belongs to nobody's package.
_PROGRAMS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")


@click.command("import-knockd", epilog="Example: logknock import-knockd -o /etc/logknock/logknock.toml")
@click.argument("file", type=PATH, default=Path("/etc/knockd.conf"))
@output_option()
def import_knockd(file: Path, output: Path | None) -> int:
    """Write what a knockd.conf says as a configuration of logknock.

    FILE is /etc/knockd.conf if it is not named, and - is standard input. The usual commands of iptables, ip6tables,
    ufw, firewall-cmd and nft become opens, sets, closes and timeout, other commands on_open and on_close. A door that
    cannot be said stays as comments with the reason. Exit code 0: all is converted, and notes say what differs for
    doors of a kind; 1: something is left to do by hand; 78: FILE has errors, and nothing is written; 69: it is not
    there; 77: it cannot be read for lack of permission.
    """
    original = read_original(file, configuration_of("knockd", "import-knockd"), MAX_BYTES)
    imported = convert(original.data.decode(errors="surrogateescape"), str(file), _find_program)
    if imported.errors:
        raise ConfigError(tuple(_problem(file, finding) for finding in imported.errors))
    made = hand_out(imported.toml, output)
    tell((_problem(file, finding) for finding in imported.told), (_problem(file, finding) for finding in imported.left))
    if not imported.doors:
        click.echo(f"logknock: {printable(str(file))}: no door could be converted, so `check` will not pass", err=True)
    if made is not None:
        count = f"{imported.doors} door" + ("" if imported.doors == 1 else "s")
        click.echo(f"{printable(str(made))}: {count}; next: logknock check -c {printable(quote(str(made)))}")
    return FAILURE if imported.left or not imported.doors else 0


def _problem(file: Path, finding: Finding) -> Problem:
    return Problem(file, finding.line or None, finding.section, finding.message, finding.hint)


def _find_program(name: str) -> str | None:
    """The path of a program that is named without one; None if there is none."""
    for folder in _PROGRAMS:
        path = f"{folder}/{name}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
