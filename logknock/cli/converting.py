"""What the commands that convert another program's configuration have in common: to read it, and to write ours.

Rule: a file is read and written whole or not at all, and none is ever overwritten.
"""

import os
import stat
import sys
import tempfile
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import click

from ..errors import FAILURE, NO_PERMISSION, UNAVAILABLE, LogknockError, printable
from ..ownership import show_to_group

# Never waits for the other end of a FIFO, never becomes a terminal's session.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

DASH = Path("-")  # standard input, or output
PATH = click.Path(path_type=Path, readable=False)  # we say more of what cannot be read


class Original(NamedTuple):
    """What a file holds. status: None of standard input."""

    data: bytes
    status: os.stat_result | None


def read_original(path: Path, program: str, command: str, limit: int, kind: str = "configuration") -> Original:
    """A file of the program's that the command reads, of `limit` bytes at most; kind: what it is to hold.

    Raises LogknockError if it cannot be read, or is no file of a likely size.
    """
    try:
        if path == DASH:
            status, data = None, sys.stdin.buffer.read(limit + 1)
        else:
            with open(os.open(path, _OPEN), "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise LogknockError(f"{_shown(path)}: is no regular file", f"name the file that {program} reads")
                data = stream.read(limit + 1)
    except PermissionError:
        hint = "run this as root, or as the file's owner"
        raise LogknockError(f"{_shown(path)}: cannot be read: permission denied", hint, NO_PERMISSION) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name has a NUL byte"
        hint = f"logknock {command} FILE, if {program} reads another one"
        code = UNAVAILABLE if isinstance(error, FileNotFoundError) else FAILURE
        raise LogknockError(f"{_shown(path)}: cannot be read: {why}", hint, code) from None
    if len(data) > limit:
        message = f"{_shown(path)}: larger than {limit >> 10} KiB: this is no {kind} of {program}"
        raise LogknockError(message, f"name the file that {program} {'reads' if kind == 'configuration' else 'wrote'}")
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


def _shown(path: Path) -> str:
    return printable(str(path))
