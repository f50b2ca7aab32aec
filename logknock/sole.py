"""One daemon keeps the table of a network namespace: a second one is told so, and does not begin.

Rule 1: the kernel tells: an abstract unix socket is its network namespace's, and goes with its process however that
ends. Rule 2: any local user can take such a name first; who is not trusted with rules keeps no daemon from its work.
"""

import errno
import os
import socket
from struct import Struct

from .config import Config
from .errors import UNAVAILABLE, LogknockError
from .ownership import service_user

NAME = "\0logknock keeps inet logknock"

_UCRED = Struct("iII")  # pid, uid, gid (unix(7))
_BACKLOG = 16  # who asks does so for a moment


class Sole:
    """The claim of this process on the table, until it ends."""

    def __init__(self) -> None:
        self._claim: socket.socket | None = None
        self.stranger = ""  # who has the name instead of us, in words

    def use(self, config: Config) -> None:
        """Claim the table if the configuration needs it: for doors and what is guarded, or for bans.

        Raises LogknockError where another daemon has it.
        """
        if self._claim is None and (config.guarded or config.scan.ports):
            self._claim, self.stranger = _claim()


def refuse_others(ours: int | None) -> None:
    """Raise LogknockError where another daemon than the process `ours` keeps the table, whose rules would be lost."""
    process, user = _holder()
    if process and process != ours and user in _trusted():
        raise _refusal(process)


def _claim() -> tuple[socket.socket | None, str]:
    """Where a stranger has the name there is no claim, and words that say so."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        claim.bind(NAME)
        claim.listen(_BACKLOG)
        return claim, ""
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            return None, ""  # a kernel that has no such names
    process, user = _holder()
    if user in _trusted():
        raise _refusal(process)
    who = f"process {process} of uid {user}" if process else "another process"
    return None, f"{who} has the name by which daemons know of each other, and is no logknock"


def _refusal(process: int) -> LogknockError:
    who = f" (process {process})" if process else ""
    message = f"another logknock{who} keeps table inet logknock in this network namespace"
    hint = "stop that one, or give this one a network namespace of its own (docs/howto/service.md, Several instances)"
    return LogknockError(message, hint, UNAVAILABLE)


def _holder() -> tuple[int, int]:
    """Process and user of whoever has the name; 0 and -1 where that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as wire:
        try:
            wire.connect(NAME)
            process, user, _ = _UCRED.unpack(wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except OSError:  # it has gone, or never listened
            return 0, -1
    return process, user


def _trusted() -> set[int]:
    users = {0, os.geteuid()}
    if (service := service_user()) is not None:
        users.add(service.pw_uid)
    return users
