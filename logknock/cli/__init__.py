"""The command line: one file a group of commands. Rule: it prints and asks, and decides nothing."""

import errno
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import click

from .. import __version__
from ..errors import FAILURE, UNAVAILABLE, UNSEEN_PACKAGES, USAGE, LogknockError


def fail(error: LogknockError) -> int:
    """Print the error's report and return its exit code."""
    for line in error.report():
        click.echo(line, err=True)
    return error.exit_code


class UnwrittenError(OSError):
    """Standard output takes no more, from a command of which exit code 1 says something else: 2 it is then."""


class LostError(LogknockError):
    """Standard output takes no more of what is nowhere else: that is told even where nobody reads on (`| true`)."""


# What a client's machine need not have, and a virtual environment may not see, by the names of Debian's packages.
_PACKAGES = {"rich": "python3-rich", "systemd": "python3-systemd"}

DEFAULT_CONFIG = Path("/etc/logknock/logknock.toml")

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, readable=False),  # load() says more of what it cannot read
    default=DEFAULT_CONFIG,
    envvar="LOGKNOCK_CONFIG",
    show_default=True,
    show_envvar=True,
    metavar="FILE",
    help="The configuration; FILE's neighbours conf.d/*.toml and clients/*.toml are read after it.",
)


class Group(click.Group):
    """Says which command was meant, where one that is not known looks like one that is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            for close in get_close_matches(args[0], self.list_commands(ctx), 1):
                error.message += f" Did you mean '{close}'?"
            raise


class Commands(Group):
    """Imports a command's file when it is asked for: a knock does not wait for libnftables to load."""

    files: ClassVar = {
        "ban": "bans",
        "bans": "bans",
        "check": "check",
        "clients": "clients",
        "demo": "demo",
        "doctor": "doctor",
        "enroll": "enroll",
        "explain": "explain",
        "grant": "grants",
        "grants": "grants",
        "import-access": "import_access",
        "import-knockd": "import_knockd",
        "keygen": "keygen",
        "knock": "knock",
        "onetime": "onetime",
        "proxy": "proxy",
        "reload": "reload",
        "replay": "replay",
        "revoke": "grants",
        "revoke-client": "clients",
        "rules": "rules",
        "run": "run",
        "spa-test": "spa_test",
        "status": "status",
        "unban": "bans",
        "watch": "watch",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.files)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.files:
            return None
        command = getattr(import_module(f"{__name__}.{self.files[cmd_name]}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: logknock knock host.example 7000/tcp 9000/udp 8000/tcp",
)
@click.version_option(__version__, "-V", "--version", message="logknock %(version)s")
def cli() -> None:
    """Port knocking from the firewall's log: a knock opens a door, and the kernel closes it."""


def main(commands: click.Group = cli) -> None:
    """Run the command line and exit: 0, or the code that fits (see errors.py)."""
    _open_missing()
    try:
        code = commands(standalone_mode=False, color=False if os.environ.get("NO_COLOR") else None)  # no-color.org
        sys.stdout.flush()
    except LogknockError as error:
        code = fail(error)
        if isinstance(error, LostError):
            _discard()
    except click.exceptions.Abort:
        code = FAILURE
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _PACKAGES:
            raise
        hint = f"install the package {_PACKAGES[module]}{UNSEEN_PACKAGES}"
        code = fail(LogknockError(f"this needs the Python module {module}", hint, UNAVAILABLE))
    except OSError as error:  # the files that we work on are seen to elsewhere: this is what we print to
        code = USAGE if isinstance(error, UnwrittenError) else FAILURE
        if error.errno != errno.EPIPE:  # `logknock … | head` needs no telling
            fail(LogknockError(f"standard output: {error.strerror}", "not all that was to be said could be written"))
        _discard()
    sys.exit(code if isinstance(code, int) else 0)


def _discard() -> None:
    """What is still in standard output's buffer is not to fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def check_output() -> None:
    """Raise LogknockError where the process was started without standard output, which no more than looks written."""
    if isinstance(getattr(sys.stdout, "name", ""), int):  # _open_missing has opened it, by its number
        hint = "what is made here is shown once: begin anew, with a terminal or a file"
        raise LogknockError("there is no standard output: what the client needs would be lost", hint)


def _open_missing() -> None:
    """Give a process that was started without standard streams (`>&-`) something to print to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115  # for the process's life
