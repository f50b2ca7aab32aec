"""To whom files belong that root makes for a daemon that is not root.

Rule: what root makes in a directory of the daemon's is the daemon's, and what it makes in one that is root's and shown
to one group is shown to that group. Elsewhere files stay as they were made.
"""

import os
import stat
from pathlib import Path


def give_to_owner(descriptor: int, folder: Path) -> None:
    """A file that root has made in the folder becomes the folder's owner's. Raises OSError."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != os.fstat(descriptor).st_uid:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def show_to_group(descriptor: int, folder: Path) -> None:
    """A file that root has made in the folder can be read by the folder's group. Raises OSError.

    Only where the folder is root's, a group may look into it and not write, and others may do neither: such as
    /etc/logknock, which is for the daemon to read. Nobody sees then what the folder was not meant to show.
    """
    found = folder.stat()
    readable = found.st_mode & 0o077 == stat.S_IRGRP | stat.S_IXGRP
    if os.geteuid() == 0 == found.st_uid and found.st_gid and readable:
        os.fchown(descriptor, -1, found.st_gid)
        os.fchmod(descriptor, 0o640)
