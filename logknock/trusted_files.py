"""Files that nobody could have written but root, the log daemon and this process's own user (T31).

Rule 1: a file is trusted when it is, and every directory and link on the way to it: whoever may change one of them may
put another file there. Rule 2: what was looked at is what is opened; nobody can change the way in between. Rule 3: what
is refused is not opened, since opening a device may do something.
"""

import errno
import grp
import os
import pwd
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from .errors import UNAVAILABLE, SourceError

# Links to follow on the way to a file, as the kernel does (path_resolution(7)).
_MAX_LINKS = 40

# Who may write a log, beside root and the process's own user: the users and groups that rsyslog (on Ubuntu, where the
# group may write /var/log), ulogd2 and the collector of journals run as. Not adm and systemd-journal: their members are
# persons, who may read logs and not make them.
_LOG_DAEMONS = ("syslog", "ulog", "systemd-journal-remote")
_MAX_SYSTEM_ID = 999  # login.defs(5): whoever has a higher number is no daemon, whatever the name

_ACCESS_LIST = "system.posix_acl_access"

# O_NONBLOCK: what has taken the file's place since it was looked at may be a FIFO.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Untrusted(SourceError):  # noqa: N818 - a property of the file, as the operator reads it
    """Others could have written the file, or could put another one in its place."""


class Trusted(NamedTuple):
    """An open file: where it really is, and the status by which it is trusted."""

    descriptor: int
    path: Path
    status: os.stat_result


def open_trusted(path: Path) -> Trusted:
    """Open a regular file to be read.

    Raises Untrusted (T31), SourceError for what is no regular file, and OSError.
    """
    _refuse_other_kinds(path, os.stat(path))
    real = _trusted_way(path)
    descriptor = os.open(real, _FLAGS)
    try:
        status = os.fstat(descriptor)
        _refuse_other_kinds(path, status)
        trust(path, status)
    except (OSError, SourceError):
        os.close(descriptor)
        raise
    return Trusted(descriptor, real, status)


def check_trusted(path: Path) -> None:
    """For what others open by its name, a file or a directory. Raises Untrusted (T31), and OSError."""
    trust(path, os.lstat(_trusted_way(path)))


def trust(path: Path, status: os.stat_result) -> None:
    """Raise Untrusted if others could have made the file, directory or link what it is."""
    users, groups = _trusted_ids()
    name, mode = quote(str(path)), status.st_mode
    if status.st_uid not in users and status.st_uid != os.geteuid():
        daemons = ", ".join(_LOG_DAEMONS)
        hint = f"it must belong to root, to a log daemon ({daemons}) or to the user that logknock runs as"
        raise Untrusted(f"{path}: belongs to another user (uid {status.st_uid})", hint, UNAVAILABLE)
    if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return  # in a sticky directory others can only put things of their own
    if mode & stat.S_IWOTH:
        raise Untrusted(f"{path}: can be written by everybody", f"chmod o-w {name}", UNAVAILABLE)
    if not mode & stat.S_IWGRP:
        return
    if status.st_gid not in groups:
        raise Untrusted(f"{path}: can be written by its group (gid {status.st_gid})", f"chmod g-w {name}", UNAVAILABLE)
    if _has_access_list(path):
        raise Untrusted(f"{path}: can be written by whom its access list names", f"setfacl -b {name}", UNAVAILABLE)


@cache
def _trusted_ids() -> tuple[frozenset[int], frozenset[int]]:
    """The users, beside the process's own, and the groups that may write logs."""
    users, groups = {0}, {0}
    for name in _LOG_DAEMONS:
        with suppress(KeyError):
            users.add(pwd.getpwnam(name).pw_uid)
        with suppress(KeyError):
            groups.add(grp.getgrnam(name).gr_gid)
    return frozenset(n for n in users if n <= _MAX_SYSTEM_ID), frozenset(n for n in groups if n <= _MAX_SYSTEM_ID)


def _has_access_list(path: Path) -> bool:
    """Whether the group's rights are those of an access list (acl(5))."""
    try:
        os.getxattr(path, _ACCESS_LIST)
    except OSError:
        return False
    return True


def _trusted_way(path: Path) -> Path:
    """Where the path leads, when every directory and link on the way can be changed by trusted users only.

    Nobody else can then change the way after it was looked at. Raises Untrusted, and OSError.
    """
    at = Path("/")
    trust(at, os.lstat(at))
    todo = list(reversed(path.absolute().parts[1:]))
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            at = at.parent
            continue
        at /= part
        status = os.lstat(at)
        if stat.S_ISLNK(status.st_mode):
            trust(at, status)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = Path(os.readlink(at))
            todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            at = Path("/") if target.is_absolute() else at.parent
        elif todo:
            trust(at, status)
    return at


def _refuse_other_kinds(path: Path, status: os.stat_result) -> None:
    """Raise SourceError for what is no regular file."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        return
    fifo = kind == stat.S_IFIFO
    hint = 'a FIFO can be read with [log] source = "stdin"' if fifo else "[log] file.path names the log"
    raise SourceError(f"{path}: is {_KINDS.get(kind, 'no file')}, not a regular file", hint, UNAVAILABLE)
