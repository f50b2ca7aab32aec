"""To whom files belong that root makes for a daemon that is not root.

Rule 1: what root makes in a directory of the daemon's is the daemon's, and what it makes in one that is root's and
shown to one group is shown to that group. Elsewhere files stay as they were made. Rule 2: no link is followed, since
the daemon's user may put one in the place of whatever is to be given away.
"""

import os
import pwd
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple

# As whom the unit runs the daemon (packaging/systemd/logknock.sysusers), and what it reads.
SERVICE = "logknock"
_SERVICE_CONFIG = Path("/etc/logknock")

_PROTECTED = Path("/proc/sys/fs/protected_hardlinks")  # proc(5)
_ACCESS_LIST = "system.posix_acl_access"  # acl(5)


def give_to_owner(descriptor: int, folder: Path) -> None:
    """A file that root has made in the folder becomes the folder's owner's. Raises OSError."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != os.fstat(descriptor).st_uid:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def take_in(folder: Path) -> None:
    """What root has left in the daemon's directory, by a daemon that ran as root, becomes the owner's. Raises OSError.

    Only files and directories, and only where nobody can have a link to a file that is not theirs (T31).
    """
    owner = folder.stat()
    if os.geteuid() or not owner.st_uid or _PROTECTED.read_text("ascii").strip() != "1":
        return
    for _, folders, files, inside in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
                try:
                    found = os.fstat(descriptor)
                    plain = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
                    if plain and not found.st_uid:
                        os.chown(f"/proc/self/fd/{descriptor}", owner.st_uid, owner.st_gid)
                finally:
                    os.close(descriptor)


def show_to_group(descriptor: int, folder: Path) -> None:
    """A file that root has made in the folder can be read by the folder's group. Raises OSError.

    Only where the folder is root's, a group may look into it and not write, and others may do neither: such as
    /etc/logknock, which is for the daemon to read. Nobody sees then what the folder was not meant to show. A directory
    that root has made in it can be looked into by them.
    """
    found = folder.stat()
    readable = found.st_mode & 0o077 == stat.S_IRGRP | stat.S_IXGRP
    if os.geteuid() == 0 == found.st_uid and found.st_gid and readable:
        os.fchown(descriptor, -1, found.st_gid)
        os.fchmod(descriptor, 0o750 if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 0o640)


def write_new(path: Path, pieces: Iterable[bytes], *, shown: bool = True) -> None:
    """Write a file: whole and on the disk, or not at all; never over another one. Raises OSError.

    Only its owner can read it and, where it is `shown`, the group that the directory is shown to. Where the file is
    there already, it is FileExistsError, before the first of the pieces is asked for.
    """
    if os.path.lexists(path):
        raise FileExistsError
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            if shown:
                show_to_group(descriptor, path.parent)
            file.writelines(pieces)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)  # unlike a rename, never in another file's place
    finally:
        os.unlink(temporary)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk know what files there are in it. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- what the service can read


class Unreadable(NamedTuple):
    """A file that the service's user cannot read, or what is on the way to it, and the command that helps."""

    path: Path
    remedy: str


def service_user() -> pwd.struct_passwd | None:
    """Whom the unit runs the daemon as; None: there is no such user here."""
    with suppress(KeyError):
        return pwd.getpwnam(SERVICE)
    return None


def kept_from_service(config_file: Path, onetime_files: Iterable[Path] = ()) -> Iterator[Unreadable]:
    """Of a configuration that a service reads: which of its files its user cannot read, for root to know."""
    user = service_user()
    if os.geteuid() or user is None or _SERVICE_CONFIG not in config_file.absolute().parents:
        return
    beside = [path for name in ("conf.d", "clients") for path in _with_files(config_file.parent / name)]
    told: set[str] = set()
    for path in (config_file, *beside, *onetime_files):
        remedy = _remedy(path, user)
        if remedy and remedy not in told:  # a directory keeps them from all that is in it
            told.add(remedy)
            yield Unreadable(path, remedy)


def _with_files(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.glob("*.toml"))]


def read_hint(path: Path) -> str:
    """What to do where this process may not read a file."""
    user = service_user()
    remedy = _remedy(path, user) if user is not None and os.geteuid() == user.pw_uid else ""
    return f"as root: {remedy}" if remedy else "run this as root, or as the file's owner"


def _remedy(path: Path, user: pwd.struct_passwd) -> str:
    """A command that lets the user read the file; empty where they can, or it is not there."""
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    absolute = path.absolute()
    for place in (*reversed(absolute.parents), absolute):
        try:
            found = place.stat()
        except OSError:
            return ""
        folder = stat.S_ISDIR(found.st_mode)
        needed = (0o4 if place == absolute else 0) | (0o1 if folder else 0)
        shift = 6 if found.st_uid == user.pw_uid else 3 if found.st_gid in groups else 0
        if found.st_mode >> shift & needed != needed and not _has_access_list(place):
            return f"chgrp {SERVICE} {quote(str(place))}; chmod {750 if folder else 640} {quote(str(place))}"
    return ""


def _has_access_list(path: Path) -> bool:
    try:
        os.getxattr(path, _ACCESS_LIST)
    except OSError:
        return False
    return True
