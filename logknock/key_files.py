"""The files of clients' secrets beside the configuration: writes one a client, takes it away, says where one stands.

Rule 1: a file is whole and on the disk or not there, and none is written over another. Rule 2: what is taken away is
a file that says nothing but this client; all else is an administrator's to edit. Rule 3: nothing of a secret is in
what is raised.
"""

import errno
import os
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from . import ownership
from .errors import FAILURE, NO_PERMISSION, LogknockError, printable
from .toml_files import CLIENTS, MAX_BYTES, credentials_folder, header
from .toml_lines import KeyPath, find_lines

_HINTS = {
    errno.ENOSPC: "make room on this disk",
    errno.EDQUOT: "make room on this disk",
    errno.EROFS: "the file system is mounted read-only",
}


Client = tuple[str, str]  # its door and its name


class Place(NamedTuple):
    """Where a client stands. line: None where that cannot be known."""

    file: Path
    line: int | None

    def __str__(self) -> str:
        return printable(str(self.file) + ("" if self.line is None else f":{self.line}"))


def path_of(config_file: Path, door: str, client: str) -> Path:
    """Where the client's file is, or is to be."""
    return config_file.absolute().parent / CLIENTS / f"{door}.{client}.toml"


def write_client(config_file: Path, door: str, client: str, text: str) -> Path:
    """Write a client's file; only its owner reads it, and the group that may read the configuration's directory.

    The folder is made where it is not there. Raises LogknockError; also if there is such a file, whatever is in it.
    """
    path = path_of(config_file, door, client)
    try:
        _make_folder(path.parent)
        ownership.write_new(path, [text.encode()])
    except OSError as error:
        raise _refused(path, error, "written") from None
    return path


def _make_folder(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            ownership.show_to_group(descriptor, folder.parent)
        finally:
            os.close(descriptor)
        ownership.sync_folder(folder.parent)


def places_of(homes: Mapping[Client, Path]) -> dict[Client, Place]:
    """Where in their files the clients stand."""
    by_file: dict[Path, list[Client]] = defaultdict(list)
    for client, file in homes.items():
        by_file[file].append(client)
    found: dict[Client, Place] = {}
    for file, clients in by_file.items():
        lines: dict[KeyPath, int] = {}
        with suppress(OSError, ValueError):
            lines = find_lines(_read(file), {("clients", *client) for client in clients})
        found.update((client, Place(file, lines.get(("clients", *client)))) for client in clients)
    return found


def remove_client(config_file: Path, place: Place, door: str, client: str) -> None:
    """Take the client's file away, for good; raises LogknockError, also where it is another one than ours."""
    if by_hand := how_by_hand(config_file, place, door, client):
        raise LogknockError(f"{place}: client {client} of door {door} has no file of its own", by_hand)
    try:
        place.file.unlink()
        ownership.sync_folder(place.file.parent)
    except OSError as error:
        raise _refused(place.file, error, "removed") from None


def how_by_hand(config_file: Path, place: Place, door: str, client: str) -> str:
    """How an administrator takes a client away that has no file of its own; empty for one that has.

    Raises LogknockError where the file cannot be read.
    """
    file = place.file
    if file.parent == credentials_folder(config_file):
        return "it is a credential: take it out of the service's LoadCredential=, and restart the service"
    if file.absolute().parent == path_of(config_file, door, client).parent:
        try:
            if _is_alone(file, door, client):
                return ""
        except OSError as error:
            raise _refused(file, error, "read") from None
    return f"take its table {header('clients', door, client)} out there, then `logknock reload`"


def _is_alone(file: Path, door: str, client: str) -> bool:
    """Whether that is all that the file says; raises OSError."""
    try:
        said = tomllib.loads(_read(file))
    except ValueError:
        return False
    owners = said.get("clients")
    if list(said) != ["clients"] or not isinstance(owners, dict) or list(owners) != [door]:
        return False
    return isinstance(owners[door], dict) and list(owners[door]) == [client]


def _read(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(MAX_BYTES).decode()


def _refused(path: Path, error: OSError, what: str) -> LogknockError:
    shown = printable(str(path))
    if isinstance(error, FileExistsError):
        hint = "secrets that were given to a client are not made anew: name another client, or see what is in it"
        return LogknockError(f"{shown}: is there already, and is never overwritten", hint, FAILURE)
    message = f"{shown}: cannot be {what}: {error.strerror}"
    if isinstance(error, PermissionError):
        return LogknockError(message, f"run this as root, or as the owner of {quote(str(path.parent))}", NO_PERMISSION)
    return LogknockError(message, _HINTS.get(error.errno or 0, "the configuration's directory has to be there"))
