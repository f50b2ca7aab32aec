"""The control socket: questions to the running daemon, a JSON object a line, and its answers in the same form.

Rule 1: who may ask is decided before a byte is read. Rule 2: a client that is slow, silent, malformed or greedy costs
the daemon next to nothing and delays nobody. Rule 3: what is asked and answered is not known here. Rule 4: in a flood
each turn of the loop is as long as a read: an answer takes as few turns as its work allows, and no wait makes a task.

A request is {"version": 1, "do": "...", ...}; its answers are lines, the last of which is {"done": true} or
{"error": "...", "hint": "..."}. Requests may follow each other on one connection.
"""

import asyncio
import contextlib
import grp
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import NO_PERMISSION, UNAVAILABLE, LogknockError

VERSION = 1
NAME = "control.sock"
GROUP = "logknock"  # whose members may ask, besides root and the daemon's own user

# Clients at a time: an administrator has a few, and each costs a descriptor and some kilobytes.
MAX_CLIENTS = 16
MAX_REQUEST = 4_096  # bytes; a request is an action and an address or two
PATIENCE = 10.0  # seconds that a client may take to say something, or to read what it asked for

# Seconds of work for a client before packets have their turn again; it is less than a read takes in a flood.
TURN = 0.002

_BACKLOG = 16
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python does not name it
_GID = struct.Struct("I")
_UCRED = struct.Struct("iII")

Answer = Mapping[str, Any]
# What answers a request; None among the answers is a place for a pause in which others have their turn. May raise
# LogknockError.
Answers = Callable[[Answer], Iterable[Answer | None]]


class ControlError(LogknockError):
    """The control socket cannot be made or reached, or the daemon refused what was asked."""


class Control:
    """The daemon's side. `open()` needs a running loop; close() when done."""

    def __init__(self, runtime: Path, answers: Answers) -> None:
        self._path = runtime / NAME
        self._answers = answers
        self.met = 0  # clients since the start
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen. Raises ControlError."""
        try:
            _make_folder(self._path.parent)
            self._server = await asyncio.start_unix_server(self._meet, sock=_listen(self._path), limit=MAX_REQUEST)
        except OSError as error:
            hint = "[paths] runtime of the configuration names the directory"
            raise ControlError(f"{self._path}: {error.strerror}", hint) from None

    async def close(self) -> None:
        """Stop to listen, and leave those who are still asking."""
        if self._server is None:
            return
        self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        self.met += 1
        try:
            if not _may_ask(writer.get_extra_info("socket")):
                await _send(writer, _refusal("not permitted", f"ask as root or as a member of the group {GROUP}"))
            elif len(self._clients) > MAX_CLIENTS:
                await _send(writer, _refusal("too many clients at a time", "try again"))
            else:
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it is gone, or as good as that
        except ValueError:  # what asyncio raises for a line that is too long
            with contextlib.suppress(OSError, TimeoutError):
                await _send(writer, _refusal(f"a request is a line of at most {MAX_REQUEST} bytes"))
        finally:
            self._clients.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await _line(reader):
            try:
                await self._give(_parse(line), writer)
            except LogknockError as error:
                await _send(writer, _refusal(error.message, error.hint))
            else:
                await _send(writer, {"done": True})
            await asyncio.sleep(0)  # the next request may be there already, and a hundred behind it
        # It has no more to ask, and may still be reading: what has not left here yet would go with the connection.
        writer.transport.set_write_buffer_limits(high=0)
        await _drain(writer)

    async def _give(self, request: Answer, writer: asyncio.StreamWriter) -> None:
        """All answers to a request, as many in a turn as fit into it."""
        end = time.monotonic() + TURN
        for answer in self._answers(request):
            if answer is not None:
                await _send(writer, answer)
            if time.monotonic() >= end:
                await asyncio.sleep(0)
                end = time.monotonic() + TURN


def _make_folder(path: Path) -> None:
    """For others to pass through, whatever the umask."""
    if not path.exists():
        path.mkdir(mode=0o755, parents=True)
        path.chmod(0o755)


def _listen(path: Path) -> socket.socket:
    """A listening socket that only those may connect to who may ask; one that nobody answers at is replaced."""
    with contextlib.ExitStack() as undo:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        undo.callback(server.close)
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                other.settimeout(1.0)
                if not other.connect_ex(str(path)):
                    raise ControlError(f"{path}: another logknock answers there", "give each its own [paths] runtime")
            path.unlink()
        before = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(before)
        _share(path)
        server.listen(_BACKLOG)
        undo.pop_all()
    return server


def _share(path: Path) -> None:
    """Let the group connect, where there is one and we may."""
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid, follow_symlinks=False)
        path.chmod(0o660)


def _may_ask(peer: socket.socket) -> bool:
    """By what the kernel says of who connected (SO_PEERCRED and SO_PEERGROUPS, unix(7)), whatever the socket's mode."""
    _, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid in (0, os.geteuid()):
        return True
    try:
        group = grp.getgrnam(GROUP).gr_gid
        groups = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4096)
    except (KeyError, OSError):
        return False
    return group == gid or any(group == other for (other,) in _GID.iter_unpack(groups))


def _parse(line: bytes) -> Answer:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("a request is a JSON object in a line") from None
    if not isinstance(request, dict) or request.get("version") != VERSION:
        raise ControlError(f"a request is an object with version {VERSION}", "this may be another version of logknock")
    return request


def _refusal(message: str, hint: str = "") -> Answer:
    return {"error": message, "hint": hint}


async def _line(reader: asyncio.StreamReader) -> bytes:
    """What a client says next, empty at its end; one that says nothing in time is given up (TimeoutError)."""
    async with asyncio.timeout(PATIENCE):
        return await reader.readline()


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    """One line; a client that does not read it in time is given up (TimeoutError)."""
    writer.write(json.dumps(answer).encode() + b"\n")
    await _drain(writer)


async def _drain(writer: asyncio.StreamWriter) -> None:
    """Comes back at once while little is waiting for the client (see StreamWriter.drain)."""
    async with asyncio.timeout(PATIENCE):
        await writer.drain()


# ---- the client's side


def ask(runtime: Path, do: str, patience: float = PATIENCE, **details: Any) -> Iterator[dict[str, Any]]:
    """Ask the running daemon, and give its answers as they come, each in `patience` seconds. Raises ControlError."""
    path = runtime / NAME
    with contextlib.ExitStack() as stack:
        try:
            wire = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            wire.settimeout(patience)
            wire.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # refused at once: why is there to be read
                wire.sendall(json.dumps({"version": VERSION, "do": do, **details}).encode() + b"\n")
            for line in stack.enter_context(wire.makefile("rb")):
                answer = json.loads(line)
                if "error" in answer:
                    raise ControlError(answer["error"], answer.get("hint", ""))
                if "done" in answer:
                    return
                yield answer
        except PermissionError:
            hint = f"run it as root, or as a member of the group {GROUP}"
            raise ControlError(f"{path}: permission denied", hint, NO_PERMISSION) from None
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            hint = "`logknock run` starts the daemon; [paths] runtime must be the same for both"
            raise ControlError(f"no daemon answers at {path}", hint, UNAVAILABLE) from None
        except TimeoutError:
            hint = "it is stopped, or has too much to do: its log may say more"
            raise ControlError(f"{path}: the daemon does not answer", hint, UNAVAILABLE) from None
        except (OSError, ValueError) as error:
            raise ControlError(f"{path}: {error}", "the daemon's log may say more") from None
    raise ControlError(f"{path}: the daemon ended before its answer did", "ask again", UNAVAILABLE)
