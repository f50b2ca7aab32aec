"""Where Prometheus gets its numbers: a page over HTTP, on loopback or a unix socket, and a file for node_exporter.

Rule 1: what is wrong here is told, shown as degraded and tried again each second; it never keeps a knock from opening a
door. Rule 2: whoever connects costs the daemon next to nothing: so many connections a second, so many at a time, so
many bytes and seconds each, and a page is made again only when ten times what it took to make has passed. Rule 3: one
request a connection, GET /metrics (RFC 9110, RFC 9112); whatever else is said gets one answer and the end of it.
"""

import asyncio
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from .config import Metrics
from .config_values import Endpoint
from .control import identity, share
from .counts import Facts
from .errors import UNSEEN_PACKAGES, LogknockError

PATH = "/metrics"

# Prometheus and a person or two; the oldest gives way to the next, so that none who are slow keep others out.
MAX_CLIENTS = 8
# Between two connections: a hundred a second take 2 % of a processor, and what comes faster waits in the kernel.
ACCEPT_PAUSE = 0.01
_BACKLOG = 16
MAX_HEAD = 8_192  # bytes of a request; Prometheus's have 300
PATIENCE = 5.0  # seconds for a whole exchange: Prometheus itself waits for 10

# Seconds of work on a page before packets have their turn again, and how much of the time may go into pages in all.
TURN = 0.002
_SHARE = 10

TEXTFILE_INTERVAL = 15  # seconds; Prometheus asks node_exporter once in 15 to 60
_STOP_PATIENCE = 1.0  # seconds for the last writing, at the daemon's end
_READABLE = 0o644  # node_exporter is another user

_PACKAGE_HINT = f"`apt install python3-prometheus-client`{UNSEEN_PACKAGES}; or `pip install prometheus-client`"

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_NAME}) (?:http://[^/?#\s]+)?(/[!-\"$-~]*) HTTP/1\.([01])")
_HEADER = re.compile(rf"({_NAME}):[ \t]*([\t -~\x80-\xff]*)")


class MetricsError(LogknockError):
    """Metrics cannot be served or written."""


class Tell(Protocol):
    """Takes what the administrator should know, and whether it is bad."""

    def __call__(self, text: str, bad: bool) -> None: ...


# ---- requests and answers


class Request(NamedTuple):
    """A GET of the page; accept: which formats the client takes."""

    accept: str


class Answer(NamedTuple):
    """A whole response."""

    status: str
    body: bytes
    fields: Mapping[str, str] = {"Content-Type": "text/plain; charset=utf-8"}

    def encode(self) -> bytes:
        fields = {**self.fields, "Content-Length": str(len(self.body)), "Connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {self.status}\r\n{head}\r\n".encode() + self.body


def _refusal(status: str, words: str = "", **fields: str) -> Answer:
    text = {"Content-Type": "text/plain; charset=utf-8"}
    return Answer(status, f"{words or status}\n".encode(), text | fields)


_MALFORMED = _refusal("400 Bad Request")
_TOO_LARGE = _refusal("431 Request Header Fields Too Large")
_NOT_FOUND = _refusal("404 Not Found", f"there is {PATH} and nothing else")
_NOT_ALLOWED = _refusal("405 Method Not Allowed", "GET is all that is answered", Allow="GET")


def parse(head: bytes) -> Request | Answer:
    """A request as it came, with the empty line at its end: what is wanted, or the answer to what cannot be."""
    first, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    headers = [_HEADER.fullmatch(each) for each in rest]
    if line is None:
        return _MALFORMED
    fields: dict[str, list[str]] = {}
    for header in headers:
        if header is None:
            return _MALFORMED
        fields.setdefault(header[1].lower(), []).append(header[2].strip(" \t"))
    hosts = len(fields.get("host", ()))
    if hosts > 1 or (not hosts and line[3] == "1"):  # RFC 9112, 3.2
        return _MALFORMED
    if "transfer-encoding" in fields or set(fields.get("content-length", ())) - {"0"}:  # nothing here has a body
        return _MALFORMED
    if line[2].partition("?")[0] != PATH:
        return _NOT_FOUND
    return Request(", ".join(fields.get("accept", ()))) if line[1] == "GET" else _NOT_ALLOWED


# ---- the page


class Pages:
    """The text in each format, made when it is asked for. `facts` gives what it is made of."""

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts
        self._lock = asyncio.Lock()
        self._made: dict[str, tuple[float, bytes]] = {}  # by content type: until when it is good enough, and itself
        self._making: dict[str, asyncio.Task[bytes]] = {}

    async def get(self, accept: str = "") -> tuple[str, bytes]:
        """The content type and the page; a little old where it takes long to make."""
        from . import metrics

        kind = metrics.content_type(accept)
        good_until, page = self._made.get(kind, (0.0, b""))
        if time.monotonic() < good_until:
            return kind, page
        if kind not in self._making:
            self._making[kind] = asyncio.get_running_loop().create_task(self._make(kind, accept))
        # It goes on when who asked is gone, or has given way to another: in a flood it would never be made else.
        return kind, await asyncio.shield(self._making[kind])

    async def _make(self, kind: str, accept: str) -> bytes:
        from . import metrics

        try:
            async with self._lock:
                page, seconds = await _in_turns(metrics.text(self._facts(), accept))
            self._made[kind] = time.monotonic() + _SHARE * seconds, page
            return page
        finally:
            del self._making[kind]


async def _in_turns(parts: Iterable[bytes]) -> tuple[bytes, float]:
    """All parts, and what they took; in between others have their turn."""
    made: list[bytes] = []
    begin, spent = time.monotonic(), 0.0
    for part in parts:
        made.append(part)
        if (took := time.monotonic() - begin) >= TURN:
            await asyncio.sleep(0)
            begin, spent = time.monotonic(), spent + took
    return b"".join(made), spent + time.monotonic() - begin


# ---- the server


class Server:
    """Listens until close(). Raises MetricsError where that cannot be. Needs a running loop."""

    def __init__(self, endpoint: Endpoint, pages: Pages, add_client: Callable[[], object]) -> None:
        self.endpoint = endpoint
        self._pages = pages
        self._add_client = add_client  # told of each that connects
        self._clients: dict[asyncio.Task[None], None] = {}
        self._socket = _listen(endpoint)
        self._bound = identity(endpoint.path)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    @property
    def is_there(self) -> bool:
        """Whether it can be reached: somebody may have removed the socket."""
        return not self.endpoint.path or identity(self.endpoint.path) == self._bound is not None

    def close(self) -> None:
        """Stop to listen, and leave those who are still asking."""
        self._loop.remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()
        self._socket.close()
        for task in self._clients:
            task.cancel()
        if self.endpoint.path and self.is_there:
            with suppress(OSError):
                os.unlink(self.endpoint.path)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """One at a time: those that come faster wait in the kernel, where they cost nothing."""
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(ACCEPT_PAUSE, self._resume)
        try:
            client, _ = self._socket.accept()
        except OSError:  # it is gone again, or there is no descriptor left
            return
        client.setblocking(False)
        self._add_client()
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).cancel()
        task = self._loop.create_task(self._serve(client))
        self._clients[task] = None
        task.add_done_callback(lambda task: self._clients.pop(task, None))

    async def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(PATIENCE):
                head = await self._head(client)
                if head is not None:
                    # Linux hands it over even where something is left unread here, and the connection ends in a reset.
                    await self._loop.sock_sendall(client, (await self._answer(head)).encode())

    async def _head(self, client: socket.socket) -> bytes | None:
        """What a client asks, up to the empty line; longer than MAX_HEAD where there is none; None: it has gone."""
        head = b""
        while len(head) <= MAX_HEAD:
            some = await self._loop.sock_recv(client, 4_096)
            if not some:
                return None
            # The empty line may be in two parts.
            end = (head + some).find(b"\r\n\r\n", max(0, len(head) - 3))
            head += some
            if end >= 0:
                return head[: end + 4]
        return head

    async def _answer(self, head: bytes) -> Answer:
        if len(head) > MAX_HEAD:
            return _TOO_LARGE
        request = parse(head)
        if isinstance(request, Answer):
            return request
        kind, page = await self._pages.get(request.accept)
        return Answer("200 OK", page, {"Content-Type": kind})


def _listen(endpoint: Endpoint) -> socket.socket:
    """A listening socket. Raises MetricsError."""
    try:
        return _listen_unix(endpoint.path) if endpoint.path else _listen_tcp(endpoint)
    except OSError as error:
        hint = "`ss -ltnp` says who listens there; [metrics] listen takes another port"
        if error.errno == errno.EAFNOSUPPORT:
            hint = "RestrictAddressFamilies of the service's unit keeps it from that: docs/howto/metrics.md"
        elif endpoint.path:
            hint = "[metrics] listen names the socket"
        raise MetricsError(f"no metrics at {endpoint}: {_words(error)}", hint) from None


def _listen_tcp(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
    with ExitStack() as undo:
        server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        undo.callback(server.close)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the daemon before us linger
        server.bind((endpoint.address, endpoint.port))
        server.listen(_BACKLOG)
        undo.pop_all()
    return server


def _listen_unix(path: str) -> socket.socket:
    """On a socket that root and the group may connect to, in place of one of ours that nobody answers at."""
    with ExitStack() as undo:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        undo.callback(server.close)
        _make_way(path)
        os.fchmod(server.fileno(), 0o600)  # what bind(2) gives the file, so that there is no moment without
        server.bind(path)
        share(Path(path))
        server.listen(_BACKLOG)
        undo.pop_all()
    return server


def _make_way(path: str) -> None:
    """Remove a socket of ours that nobody answers at; raises MetricsError where something else is there, or OSError."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise MetricsError(
            f"no metrics at unix:{path}: it is there and is no socket", "remove it, or name another path"
        )
    if status.st_uid != os.geteuid():
        raise MetricsError(
            f"no metrics at unix:{path}: the socket is somebody else's", "remove it, or name another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(path) in (0, errno.EAGAIN):  # EAGAIN: more wait there than it has room for
            raise MetricsError(
                f"no metrics at unix:{path}: somebody answers there", "name another path for this instance"
            )
    os.unlink(path)


# ---- the file


def write_file(path: Path, content: bytes) -> tuple[int, int] | None:
    """Put the content there in one step, readable by all; its identity. Raises OSError, and then all is as it was."""
    # node_exporter reads what ends with .prom; whatever else has this name, a link of somebody's, goes.
    temporary = path.with_name(f".{path.name}~")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _READABLE)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, _READABLE)
            file.write(content)
        made = identity(temporary)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    return made


class Textfile:
    """Writes the page to a file now and then. Needs a running loop."""

    def __init__(self, path: Path, pages: Pages) -> None:
        self.path = path
        self.trouble: MetricsError | None = None
        self._pages = pages
        self._due = 0.0
        self._writing: asyncio.Task[None] | None = None
        self._written: tuple[int, int] | None = None  # the identity of the file that is there

    def tick(self, now: float) -> None:
        """A second has passed; `now` is time.monotonic()."""
        if now >= self._due and self._writing is None:
            self._due = now + TEXTFILE_INTERVAL
            self._writing = asyncio.get_running_loop().create_task(self._write())
            self._writing.add_done_callback(self._end)

    async def close(self) -> None:
        """Stop, and take the file away: what it says of a daemon that has ended would be taken for the present.

        Unless it is another's by now: the configuration may have named this path again.
        """
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_STOP_PATIENCE)
        if self._written is not None and identity(self.path) == self._written:
            with suppress(OSError):
                self.path.unlink()

    async def _write(self) -> None:
        """In a thread, since it waits for the disk."""
        _, page = await self._pages.get()
        try:
            written = await asyncio.get_running_loop().run_in_executor(None, partial(write_file, self.path, page))
        except OSError as error:
            hint = "make room: it is tried again by itself"
            if error.errno != errno.ENOSPC:
                hint = f"the daemon's user and ReadWritePaths of its unit have to allow it: {self.path.parent}"
            self.trouble = MetricsError(f"{self.path} cannot be written: {_words(error)}", hint)
        else:
            self.trouble = None
            self._written = written

    def _end(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if not task.cancelled():
            task.result()


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# ---- both


class Exposition:
    """What the configuration asks for of both, and what is wrong with it. Needs a running loop."""

    def __init__(self, facts: Callable[[], Facts], tell: Tell, add_client: Callable[[], object] = int) -> None:
        self._facts = facts
        self._tell = tell
        self._add_client = add_client
        self._terms = Metrics()
        self._pages: Pages | None = None
        self._server: Server | None = None
        self._textfile: Textfile | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._missing: MetricsError | None = None  # the library
        self._closed: MetricsError | None = None  # why nothing listens that should
        self._told: set[str] = set()

    @property
    def troubles(self) -> list[MetricsError]:
        """What is wrong now."""
        of_file = self._textfile.trouble if self._textfile is not None else None
        return [trouble for trouble in (self._missing, self._closed, of_file) if trouble is not None]

    def use(self, terms: Metrics) -> None:
        """Go on with these: what stays as it is goes on undisturbed."""
        self._terms = terms
        self._missing = None
        wanted = terms.listen is not None or terms.textfile is not None
        if wanted and not self._load():
            terms = self._terms = Metrics()
        if self._server is not None and self._server.endpoint != terms.listen:
            self._hang_up()
        if self._textfile is not None and self._textfile.path != terms.textfile:
            self._end(self._textfile)
            self._textfile = None
        if terms.textfile is not None and self._textfile is None and self._pages is not None:
            self._textfile = Textfile(terms.textfile, self._pages)
        self.tick()

    def tick(self) -> None:
        """A second has passed: listen where that could not be before, write the file, tell what is new."""
        if self._server is not None and not self._server.is_there:
            self._hang_up()
        if self._server is None:
            self._listen()
        if self._textfile is not None:
            self._textfile.tick(time.monotonic())
        self._tell_troubles()

    async def close(self) -> None:
        """The daemon ends."""
        if self._server is not None:
            self._hang_up()
        if self._textfile is not None:
            self._end(self._textfile)
            self._textfile = None
        if self._ending:
            await asyncio.wait(self._ending)

    def _load(self) -> bool:
        """Whether prometheus-client is there; it takes 40 ms, once, and nobody pays for it who has no metrics."""
        try:
            from . import metrics  # noqa: F401
        except ImportError:
            self._missing = MetricsError("no metrics: prometheus-client is not installed", _PACKAGE_HINT)
            return False
        self._pages = self._pages or Pages(self._facts)
        return True

    def _listen(self) -> None:
        self._closed = None
        if self._terms.listen is None or self._pages is None:
            return
        try:
            self._server = Server(self._terms.listen, self._pages, self._add_client)
        except MetricsError as error:
            self._closed = error

    def _hang_up(self) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None

    def _end(self, textfile: Textfile) -> None:
        task = asyncio.get_running_loop().create_task(textfile.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _tell_troubles(self) -> None:
        """Each once, and when all is well again."""
        now = {trouble.message: trouble.words() for trouble in self.troubles}
        for message, words in now.items():
            if message not in self._told:
                self._tell(words, bad=True)
        if self._told and not now:
            self._tell("metrics are there again", bad=False)
        self._told = set(now)
