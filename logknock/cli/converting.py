"""What the commands that read another program's files have in common: to read one, and to write ours.

Rule: a file is read and written whole or not at all, and none is ever overwritten.
"""

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from shlex import quote
from typing import NamedTuple, TypeVar

import click

from ..config import Problem
from ..errors import FAILURE, NO_PERMISSION, UNAVAILABLE, LogknockError, printable
from ..ownership import show_to_group

# Never waits for the other end of a FIFO, never becomes a terminal's session.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

DASH = Path("-")  # standard input, or output
PATH = click.Path(path_type=Path, readable=False)  # we say more of what cannot be read

_Command = TypeVar("_Command", bound=Callable[..., object])


def output_option(also: str = "") -> Callable[[_Command], _Command]:
    """The option that names the file to write; also: what is to be known where it is printed instead."""
    return click.option(
        "-o",
        "--output",
        type=PATH,
        metavar="TOML",
        help=f"Write it to this file, which must not exist yet; without this it goes to standard output{also}.",
    )


class Sought(NamedTuple):
    """What a file is to hold, and the hints for one that does not, or is not there; absent: the exit code then."""

    what: str
    hint: str
    elsewhere: str
    absent: int


def configuration_of(program: str, command: str) -> Sought:
    """The configuration of a program, which the command of ours reads where the program does."""
    return Sought(
        what=f"configuration of {program}",
        hint=f"name the file that {program} reads",
        elsewhere=f"logknock {command} FILE, if {program} reads another one",
        absent=UNAVAILABLE,
    )


class Original(NamedTuple):
    """What a file holds. status: None of standard input."""

    data: bytes
    status: os.stat_result | None


def read_original(path: Path, sought: Sought, limit: int) -> Original:
    """Another program's file, of `limit` bytes at most.

    Raises LogknockError if it cannot be read, or is no file of a likely size.
    """
    try:
        if path == DASH:
            status, data = None, sys.stdin.buffer.read(limit + 1)
        else:
            with open(os.open(path, _OPEN), "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise LogknockError(f"{_shown(path)}: is no regular file", sought.hint)
                data = stream.read(limit + 1)
    except PermissionError:
        hint = "run this as root, or as the file's owner"
        raise LogknockError(f"{_shown(path)}: cannot be read: permission denied", hint, NO_PERMISSION) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name has a NUL byte"
        code = sought.absent if isinstance(error, FileNotFoundError) else FAILURE
        raise LogknockError(f"{_shown(path)}: cannot be read: {why}", sought.elsewhere, code) from None
    if len(data) > limit:
        message = f"{_shown(path)}: larger than {limit >> 10} KiB: this is no {sought.what}"
        raise LogknockError(message, sought.hint)
    return Original(data, status)


def write_new(path: Path, text: str) -> None:
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


def hand_out(text: str, output: Path | None) -> Path | None:
    """The file that was made, whole; None where it was printed. Raises LogknockError."""
    if output is None or output == DASH:
        click.echo(text, nl=False)
        return None
    write_new(output, text)
    return output


def tell(told: Iterable[Problem], left: Iterable[Problem]) -> None:
    """Say on standard error what differs, and then what is left to do by hand."""
    for problems, prefix in ((told, "logknock: note: "), (left, "logknock: ")):
        for problem in problems:
            for line in problem.report(prefix):
                click.echo(line, err=True)


def _shown(path: Path) -> str:
    return printable(str(path))
