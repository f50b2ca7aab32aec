"""Relays between a process's standard streams and a connection, for ssh's ProxyCommand.

Rule 1: what comes in goes out as it is, and nothing else does. Rule 2: the end of one direction is passed on as the end
of that direction alone. Rule 3: no more is read than the other side takes: whatever is sent, little is under way.

Two threads, each blocked in one direction: the kernel does the waiting. (It could do the copying as well, but splice()
keeps the pipe locked while it waits for the socket, and whoever is at the pipe's other end then waits too.)
"""

import os
import socket
import stat
import threading
from contextlib import suppress
from queue import SimpleQueue

from .errors import LogknockError

# What is moved at a time: as much as a pipe of usual size holds.
CHUNK = 65_536


def relay(connection: socket.socket, source: int = 0, target: int = 1) -> None:
    """Copy `source` to the connection and the connection to `target`, until both have ended.

    When the connection has nothing more to say, `target` ends too: it is /dev/null from then on. Raises LogknockError
    where the connection breaks, and BrokenPipeError where nobody reads `target` any more.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a key that is pressed does not wait for more
    for descriptor in (source, target):
        os.set_blocking(descriptor, True)
    sent: SimpleQueue[OSError | None] = SimpleQueue()
    # A daemon thread: where the other direction breaks, nobody waits for the end of what is typed.
    threading.Thread(target=_send_all, args=(source, connection, sent), daemon=True).start()
    try:
        _copy(connection.fileno(), target)
        _end(target)
        failure = sent.get()
    except BrokenPipeError:
        raise
    except OSError as error:
        failure = error
    if failure is not None:
        raise LogknockError(f"the connection broke: {failure.strerror}", "the other side's log may say why")


def _send_all(source: int, connection: socket.socket, sent: "SimpleQueue[OSError | None]") -> None:
    """Copy to the connection. What breaks here makes the other direction end, after what is still to be read."""
    try:
        _copy(source, connection.fileno())
        with suppress(OSError):  # it is gone already, which the other direction sees
            connection.shutdown(socket.SHUT_WR)
        sent.put(None)
    except OSError as error:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        sent.put(error)


def _copy(source: int, target: int) -> None:
    """Copy until `source` ends, and no faster than `target` takes it; raises OSError."""
    while data := os.read(source, CHUNK):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(target, rest) :]


def _end(target: int) -> None:
    """Let whoever reads the target see its end; the descriptor stays taken."""
    if stat.S_ISSOCK(os.fstat(target).st_mode):  # whose other uses, such as standard input, would keep it open
        with suppress(OSError), socket.socket(fileno=os.dup(target)) as shared:
            shared.shutdown(socket.SHUT_WR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)
