"""`logknock import-knockd`: a knockd.conf as a configuration of ours. Rule: it reads, prints and writes, no more."""

import os
import stat
import sys
import tempfile
from pathlib import Path
from shlex import quote

import click

from ..config import ConfigError, Problem
from ..errors import FAILURE, NO_PERMISSION, UNAVAILABLE, LogknockError, printable
from ..knockd_conf import MAX_BYTES, Finding, convert
from ..ownership import show_to_group

# Where knockd's shell looks for programs: systemd's default for services, without what belongs to nobody's package.
_PROGRAMS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")

# Never waits for the other end of a FIFO, never becomes a terminal's session.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_DASH = Path("-")  # standard input, or output
_PATH = click.Path(path_type=Path, readable=False)  # we say more of what cannot be read


@click.command("import-knockd", epilog="Example: logknock import-knockd -o /etc/logknock/logknock.toml")
@click.argument("file", type=_PATH, default=Path("/etc/knockd.conf"))
@click.option(
    "-o",
    "--output",
    type=_PATH,
    metavar="TOML",
    help="Write it to this file, which must not exist yet; without this it goes to standard output.",
)
def import_knockd(file: Path, output: Path | None) -> int:
    """Write what a knockd.conf says as a configuration of logknock.

    FILE is /etc/knockd.conf if it is not named, and - is standard input. The usual commands of iptables, ip6tables,
    ufw, firewall-cmd and nft become opens, sets, closes and timeout, other commands on_open and on_close. A door that
    cannot be said stays as comments with the reason. Exit code 0: all is converted, and notes say what differs for
    doors of a kind; 1: something is left to do by hand; 78: FILE has errors, and nothing is written; 69: it is not
    there; 77: it cannot be read for lack of permission.
    """
    imported = convert(_read(file).decode(errors="surrogateescape"), str(file), _find_program)
    if imported.errors:
        raise ConfigError(tuple(_problem(file, finding) for finding in imported.errors))
    if output == _DASH:
        output = None
    if output is None:
        click.echo(imported.toml, nl=False)
    else:
        _write(output, imported.toml)
    for findings, prefix in ((imported.told, "logknock: note: "), (imported.left, "logknock: ")):
        for finding in findings:
            for line in _problem(file, finding).report(prefix):
                click.echo(line, err=True)
    if not imported.doors:
        click.echo(f"logknock: {printable(str(file))}: no door could be converted, so `check` will not pass", err=True)
    if output is not None:
        count = f"{imported.doors} door" + ("" if imported.doors == 1 else "s")
        click.echo(f"{printable(str(output))}: {count}; next: logknock check -c {printable(quote(str(output)))}")
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


def _read(path: Path) -> bytes:
    """What the file holds; raises LogknockError if it cannot be read, or is no text file of a likely size."""
    try:
        if path == _DASH:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(os.open(path, _OPEN), "rb") as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise LogknockError(f"{_shown(path)}: is no regular file", "name the file that knockd reads")
                data = stream.read(MAX_BYTES + 1)
    except PermissionError:
        hint = "run this as root, or as the file's owner"
        raise LogknockError(f"{_shown(path)}: cannot be read: permission denied", hint, NO_PERMISSION) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name has a NUL byte"
        hint = "logknock import-knockd FILE, if knockd reads another one"
        code = UNAVAILABLE if isinstance(error, FileNotFoundError) else FAILURE
        raise LogknockError(f"{_shown(path)}: cannot be read: {why}", hint, code) from None
    if len(data) > MAX_BYTES:
        message = f"{_shown(path)}: larger than {MAX_BYTES >> 10} KiB: this is no configuration of knockd"
        raise LogknockError(message, "name the file that knockd reads")
    return data


def _write(path: Path, text: str) -> None:
    """Make the file at once and whole, for its owner and the group that the directory is shown to.

    Raises LogknockError, also if there is one already.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".logknock-") as stream:  # mode 0600
            show_to_group(stream.fileno(), path.parent)
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
            os.link(stream.name, path)
    except FileExistsError:
        raise LogknockError(f"{_shown(path)}: exists, and is not overwritten", "name another file with -o") from None
    except PermissionError:
        message = f"{_shown(path)}: cannot be written: permission denied"
        raise LogknockError(message, "run this as root, or name another file", NO_PERMISSION) from None
    except OSError as error:
        hint = f"make its directory first: install -d -m 700 {quote(str(path.parent))}" if error.errno == 2 else ""
        raise LogknockError(f"{_shown(path)}: cannot be written: {error.strerror}", printable(hint)) from None


def _shown(path: Path) -> str:
    return printable(str(path))
