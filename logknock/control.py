"""The control socket: questions to the running daemon, a JSON object a line, and its answers in the same form.

Rule 1: who may ask is decided before a byte is read. Rule 2: a client that is slow, silent, malformed or greedy costs
the daemon next to nothing and delays nobody. Rule 3: what is asked and answered is not known here. Rule 4: in a flood
each turn of the loop is as long as a read: an answer takes as few turns as its work allows, and no wait makes a task.

A request is {"version": 1, "do": "...", ...}; its answers are lines, the last of which is {"done": true} or
{"error": "...", "hint": "...", "code": exit code}. Requests may follow each other on one connection; behind one that
watches nothing is read any more, and its answers go on until the client or the daemon ends.
"""

import asyncio
import contextlib
import errno
import grp
import json
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import systemd
from .errors import FAILURE, NO_PERMISSION, UNAVAILABLE, LogknockError, printable
from .feed import Feed, Watcher

VERSION = 1
NAME = "control.sock"
GROUP = "logknock"  # whose members may ask, besides root and the daemon's own user

# Clients at a time: an administrator has a few, and each costs a descriptor and some kilobytes. Who only waits gives
# way to the next; there is some room for root alone, whatever those of the group do.
MAX_CLIENTS = 16
ROOT_CLIENTS = 4
# Bytes; a request is an action and an address or two. No more is read at once, either: asyncio's 256 KiB would stay
# until the garbage collector runs, for each who sends as much.
MAX_REQUEST = 4_096
PATIENCE = 10.0  # seconds that a client may take to say something, or to read what it asked for

# Seconds of work for a client before packets have their turn again; it is less than a read takes in a flood.
TURN = 0.002

_BACKLOG = 16
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python does not name it
_MOST_GROUPS = 1_024  # bytes, of 256 groups: what Python's getsockopt() takes
_GID = struct.Struct("I")
_UCRED = struct.Struct("iII")

# Bytes that wait for a client before its next answer is made.
_WAITING = 65_536

_USERS = Path("/etc/passwd")
_MOST_USERS = 1 << 20  # bytes of it that are looked at


class Peer(NamedTuple):
    """Who asks: the user, as the kernel has it."""

    uid: int

    @property
    def name(self) -> str:
        """The user's name where this host has one for it; reads a file.

        It is this host's own: a directory service may take seconds, and knocks would wait.
        """
        with contextlib.suppress(OSError), _USERS.open("rb") as users:
            for line in users.read(_MOST_USERS).split(b"\n"):
                fields = line.split(b":")
                if len(fields) > 3 and fields[2] == str(self.uid).encode():
                    return printable(fields[0].decode(errors="replace"))
        return ""

    def __str__(self) -> str:
        name = self.name
        return f"{name} (uid {self.uid})" if name else f"uid {self.uid}"


Answer = Mapping[str, Any]
# What may stand among the answers to a request: None, a place for a pause in which others have their turn; a number,
# seconds to wait; "watch": this client is to hear of all that is put into the feed from here on.
Said = Answer | float | Literal["watch"] | None
# What answers a request of somebody. May raise LogknockError.
Answers = Callable[[Answer, Peer], Iterable[Said]]


class ControlError(LogknockError):
    """The control socket cannot be made or reached, or the daemon refused what was asked."""


class Control:
    """The daemon's side. `open()` needs a running loop; close() when done."""

    def __init__(self, runtime: Path, answers: Answers, add_client: Callable[[], object] = int) -> None:
        self._path = runtime / NAME
        self._answers = answers
        self._add_client = add_client  # told of each that connects
        self.feed = Feed()
        self._turn = asyncio.Lock()  # of which one client at a time has its work done, whoever asks how much
        self._clients: dict[asyncio.Task[None], _Client] = {}  # the oldest first
        self._server: asyncio.Server | None = None
        self._bound: tuple[int, int] | None = None  # the identity of the socket that is ours

    async def open(self) -> None:
        """Begin to listen, again where the socket is not there any more. Raises ControlError."""
        if self._server is not None:  # who has been met goes on
            self._server.close()
            self._server = self._bound = None
        try:
            _make_folder(self._path.parent)
            listening = _listen(self._path)
            self._bound = identity(self._path)
            self._server = await asyncio.start_unix_server(
                self._meet, sock=listening, limit=MAX_REQUEST, backlog=_BACKLOG
            )
        except OSError as error:
            hint = "[paths] runtime of the configuration names the directory"
            raise ControlError(f"{self._path}: {error.strerror}", hint) from None

    @property
    def is_there(self) -> bool:
        """Whether it can be reached: it could not be made before, or somebody has removed the socket."""
        return self._bound is not None and identity(self._path) == self._bound

    async def close(self) -> None:
        """Stop to listen, and leave those who are still asking; those who watch are told."""
        if self._server is not None:
            self._server.close()
        self.feed.end({"ended": "logknock has stopped"}, {"done": True})
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self.is_there:
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._add_client()
        writer.transport.max_size = MAX_REQUEST  # type: ignore[attr-defined]  # see asyncio.selector_events
        try:
            wire = writer.get_extra_info("socket")
            client = self._clients[task] = _Client(_peer(wire))
            if not _may_ask(wire):
                hint = f"ask as root or as a member of the group {GROUP}"
                await _send(writer, _refusal("not permitted", hint, NO_PERMISSION))
            elif not self._has_room(client):
                await _send(writer, _refusal("too many clients at a time", "try again"))
            else:
                await self._serve(client, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it is gone, or as good as that
        except ValueError:  # what asyncio raises for a line that is too long
            with contextlib.suppress(OSError, TimeoutError):
                await _send(writer, _refusal(f"a request is a line of at most {MAX_REQUEST} bytes"))
        finally:
            self._clients.pop(task, None)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    def _has_room(self, client: "_Client") -> bool:
        """Whether there is a place; where all are taken, one that waits for a request is made free.

        It is the oldest of the user who has the most of them, and root's last: nobody pushes out others.
        """
        if len(self._clients) <= MAX_CLIENTS:
            return True
        waiting = [(task, each.peer) for task, each in self._clients.items() if each.waits]
        if waiting:
            have = Counter(peer for _, peer in waiting)
            oldest, _ = max(waiting, key=lambda each: (each[1].uid != 0, have[each[1]]))
            self._clients[oldest].waits = False
            oldest.cancel()
            return True
        return client.peer.uid == 0 and len(self._clients) <= MAX_CLIENTS + ROOT_CLIENTS

    async def _serve(self, client: "_Client", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await client.hear(reader):
            try:
                await self._give(line, client.peer, writer)
            except LogknockError as error:
                # To who asks, "unavailable" is that no daemon answers, not that something is missing where it runs.
                code = FAILURE if error.exit_code == UNAVAILABLE else error.exit_code
                await _send(writer, _refusal(error.message, error.hint, code))
            else:
                await _send(writer, {"done": True})
            await asyncio.sleep(0)  # the next request may be there already, and a hundred behind it
        # It has no more to ask, and may still be reading: what has not left here yet would go with the connection.
        writer.transport.set_write_buffer_limits(high=0)
        await _drain(writer)

    async def _give(self, line: bytes, peer: Peer, writer: asyncio.StreamWriter) -> None:
        """All answers to a request, as many in a turn as fit into it."""
        work = _Work(lambda: self._answers(_parse(line), peer), writer, self.feed)
        try:
            while not work.is_done:
                async with self._turn:
                    pause = work.go_on()
                    await asyncio.sleep(0)
                await _drain(writer)
                if pause:
                    await asyncio.sleep(pause)
            if work.watcher is not None:
                work.watcher.release()
                await work.watcher.ended.wait()
        finally:
            if work.watcher is not None:
                self.feed.leave(work.watcher)


class _Client:
    """One that has connected; waits: it has asked nothing that is not answered."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.waits = False

    async def hear(self, reader: asyncio.StreamReader) -> bytes:
        """What it says next, empty at its end; one that says nothing in time is given up (TimeoutError)."""
        self.waits = True
        try:
            async with asyncio.timeout(PATIENCE):
                return await reader.readline()
        finally:
            self.waits = False


class _Work:
    """The answers to a request, as far as they are made."""

    def __init__(self, begin: Callable[[], Iterable[Said]], writer: asyncio.StreamWriter, feed: Feed) -> None:
        self.is_done = False
        self.watcher: Watcher | None = None
        self._begin = begin
        self._writer = writer
        self._feed = feed
        self._said: Iterator[Said] | None = None

    def go_on(self) -> float:
        """A turn's work; seconds to wait before the next. Raises LogknockError."""
        end = time.monotonic() + TURN
        self._said = self._said or iter(self._begin())
        for said in self._said:
            if isinstance(said, (int, float)):
                return said
            if isinstance(said, str):
                self.watcher = self._feed.join(self._writer.transport)
            elif said is not None:
                self._writer.write(_encode(said))
            if time.monotonic() >= end or self._writer.transport.get_write_buffer_size() > _WAITING:
                return 0.0
        self.is_done = True
        return 0.0


def identity(path: str | Path) -> tuple[int, int] | None:
    """What tells the file that is there now from any other; None: there is none."""
    try:
        status = os.lstat(path)
    except OSError:  # an empty path among them
        return None
    return status.st_dev, status.st_ino


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
                if other.connect_ex(str(path)) in (0, errno.EAGAIN):  # EAGAIN: more wait there than it has room for
                    raise ControlError(f"{path}: another logknock answers there", "give each its own [paths] runtime")
            path.unlink()
        before = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(before)
        share(path)
        server.listen(_BACKLOG)
        undo.pop_all()
    return server


def share(path: Path) -> None:
    """Let the group connect, where there is one and we may."""
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid, follow_symlinks=False)
        path.chmod(0o660)


def _peer(wire: socket.socket) -> Peer:
    """Who connected (SO_PEERCRED, unix(7))."""
    _, uid, _ = _UCRED.unpack(wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(uid)


def _may_ask(peer: socket.socket) -> bool:
    """By what the kernel says of who connected (SO_PEERCRED and SO_PEERGROUPS, unix(7)), whatever the socket's mode."""
    _, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid in (0, os.geteuid()):
        return True
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return False
    groups = b""
    with contextlib.suppress(OSError):  # it is in more groups than there is room for: then only its first counts
        groups = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS)
    return group == gid or any(group == other for (other,) in _GID.iter_unpack(groups))


def _parse(line: bytes) -> Answer:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("a request is a JSON object in a line") from None
    # To Python true is 1, and so is 1.0.
    if not isinstance(request, dict) or repr(request.get("version")) != str(VERSION):
        raise ControlError(f"a request is an object with version {VERSION}", "this may be another version of logknock")
    return request


def _refusal(message: str, hint: str = "", code: int = FAILURE) -> Answer:
    return {"error": message, "hint": hint, "code": code}


def _encode(answer: Answer) -> bytes:
    return json.dumps(answer).encode() + b"\n"


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    """One line; a client that does not read it in time is given up (TimeoutError)."""
    writer.write(_encode(answer))
    await _drain(writer)


async def _drain(writer: asyncio.StreamWriter) -> None:
    """Comes back at once while little is waiting for the client (see StreamWriter.drain)."""
    async with asyncio.timeout(PATIENCE):
        await writer.drain()


# ---- the client's side


def ask(runtime: Path, do: str, patience: float = PATIENCE, **details: Any) -> Iterator[dict[str, Any]]:
    """Ask the running daemon, and give its answers as they come, each in `patience` seconds. Raises ControlError."""
    for answers in follow(runtime, do, patience, **details):
        yield from answers


def follow(runtime: Path, do: str, patience: float = PATIENCE, **details: Any) -> Iterator[list[dict[str, Any]]]:
    """The same, as many at a time as have come: who shows what goes on shows it when the last of them is known."""
    path = runtime / NAME
    with _explained(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.settimeout(patience)
        wire.connect(str(path))
        with contextlib.suppress(BrokenPipeError):  # refused at once: why is there to be read
            wire.sendall(_encode({"version": VERSION, "do": do, **details}))
        rest = b""
        while some := wire.recv(1 << 16):
            *lines, rest = (rest + some).split(b"\n") if b"\n" in some else [rest + some]
            answers, error, is_done = _sort(lines)
            if answers:
                yield answers
            if error is not None:
                raise error
            if is_done:
                return
    raise ControlError(f"{path}: the daemon ended before its answer did", "ask again", UNAVAILABLE)


def start_hint() -> str:
    """How the daemon is started on this host."""
    if systemd.runs_host():
        return "`systemctl start logknock` starts it, `systemctl status logknock` says why it does not run"
    return "`logknock run` starts it"


def _sort(lines: Iterable[bytes]) -> tuple[list[dict[str, Any]], ControlError | None, bool]:
    """The answers among the lines, and how they end: with an error, or with all said."""
    answers: list[dict[str, Any]] = []
    for line in lines:
        answer = json.loads(line)
        if "error" in answer:
            return answers, ControlError(answer["error"], answer.get("hint", ""), answer.get("code", FAILURE)), False
        if "done" in answer:
            return answers, None, True
        answers.append(answer)
    return answers, None, False


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What goes wrong on the way to the daemon, as ControlError."""
    try:
        yield
    except PermissionError:
        hint = f"run it as root, or as a member of the group {GROUP}"
        raise ControlError(f"{path}: permission denied", hint, NO_PERMISSION) from None
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        hint = f"{start_hint()}; [paths] runtime must be the same for both"
        raise ControlError(f"no daemon answers at {path}", hint, UNAVAILABLE) from None
    except TimeoutError:
        hint = "it is stopped, or has too much to do: its log may say more"
        raise ControlError(f"{path}: the daemon does not answer", hint, UNAVAILABLE) from None
    except (OSError, ValueError) as error:
        raise ControlError(f"{path}: {error}", "the daemon's log may say more") from None
