"""The page over HTTP and the textfile: what is answered, and that nobody who asks badly costs the daemon anything."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from logknock import exposition
from logknock.config import Metrics
from logknock.config_values import Endpoint
from logknock.counts import Counts, Facts
from logknock.errors import UNSEEN_PACKAGES
from logknock.exposition import MAX_CLIENTS, MAX_HEAD, Answer, Exposition, Request, parse, write_file
from logknock.standing import DoorStanding, Standing

from .e2e.world import PATIENCE, until

HOST = "Host: localhost:9141\r\n"
GET = f"GET /metrics HTTP/1.1\r\n{HOST}\r\n".encode()


def facts(doors: int = 1) -> Facts:
    """A daemon with so many doors, at which nothing has happened."""
    standing = tuple(DoorStanding(f"d{number}", 0, 0) for number in range(doors))
    numbers = dict.fromkeys(
        ("attempts", "opened", "closed", "refused", "stale", "banned", "firewall_errors", "store_errors"), 0
    )
    return Facts(Standing("0", 1.0, 2.0, (), standing, degraded=(), **numbers), Counts().counted(), ())


# ---- what is asked


@pytest.mark.parametrize(
    ("text", "accept"),
    [
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}\r\n", "", id="as curl asks"),
        pytest.param("GET /metrics HTTP/1.0\r\n\r\n", "", id="HTTP/1.0 has no host"),
        pytest.param(f"GET /metrics?x=1 HTTP/1.1\r\n{HOST}\r\n", "", id="a query changes nothing"),
        pytest.param(f"GET http://h:1/metrics HTTP/1.1\r\n{HOST}\r\n", "", id="as a proxy asks"),
        pytest.param(
            f"GET /metrics HTTP/1.1\r\n{HOST}aCCept:\ta/b \r\nAccept:c/d\r\n\r\n", "a/b, c/d", id="twice Accept"
        ),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}Content-Length: 0\r\n\r\n", "", id="no body"),
    ],
)
def test_a_request_for_the_page_is_understood(text: str, accept: str) -> None:
    assert parse(text.encode()) == Request(accept)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        pytest.param(f"GET / HTTP/1.1\r\n{HOST}\r\n", 404, id="another path"),
        pytest.param(f"GET /metrics/ HTTP/1.1\r\n{HOST}\r\n", 404, id="a path below"),
        pytest.param(f"GET /../metrics HTTP/1.1\r\n{HOST}\r\n", 404, id="a path from above"),
        pytest.param(f"POST / HTTP/1.1\r\n{HOST}\r\n", 404, id="another path, posted"),
        pytest.param(f"HEAD /metrics HTTP/1.1\r\n{HOST}\r\n", 405, id="HEAD"),
        pytest.param(f"POST /metrics HTTP/1.1\r\n{HOST}\r\n", 405, id="POST"),
        pytest.param(f"get /metrics HTTP/1.1\r\n{HOST}\r\n", 405, id="methods are case-sensitive"),
        pytest.param("GET /metrics HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}{HOST}\r\n", 400, id="two hosts"),
        pytest.param(f"GET /metrics HTTP/2.0\r\n{HOST}\r\n", 400, id="another version"),
        pytest.param(f"GET /metrics\r\n{HOST}\r\n", 400, id="no version"),
        pytest.param(f"GET  /metrics HTTP/1.1\r\n{HOST}\r\n", 400, id="two blanks"),
        pytest.param(f"GET metrics HTTP/1.1\r\n{HOST}\r\n", 400, id="a relative path"),
        pytest.param(f"GET /metrics\x01 HTTP/1.1\r\n{HOST}\r\n", 400, id="a control character"),
        pytest.param(f"GET /metrics#x HTTP/1.1\r\n{HOST}\r\n", 400, id="a fragment"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}x\r\n\r\n", 400, id="a header without a colon"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}x : y\r\n\r\n", 400, id="a blank before the colon"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}x: y\r\n z\r\n\r\n", 400, id="a folded header"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}x: y\nz: a\r\n\r\n", 400, id="a bare line feed"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}x: \x00\r\n\r\n", 400, id="a NUL"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\n", 400, id="a body"),
        pytest.param(f"GET /metrics HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n", 400, id="a chunked body"),
        pytest.param("\r\n\r\n", 400, id="nothing"),
        pytest.param("\x16\x03\x01\x02\x00\r\n\r\n", 400, id="TLS"),
    ],
)
def test_anything_else_has_its_refusal(text: str, status: int) -> None:
    answer = parse(text.encode())
    assert isinstance(answer, Answer)
    assert answer.status.startswith(f"{status} ")
    assert ("Allow" in answer.fields) == (status == 405)


# ---- the server


class Served:
    """An Exposition in a loop of its own thread, and what it has told."""

    def __init__(self, made: Callable[[], Facts] = facts) -> None:
        self.told: list[str] = []
        self.loop = asyncio.new_event_loop()
        self.met = 0  # clients
        self.exposition = Exposition(
            made, lambda text, bad: self.told.append(f"{'bad: ' if bad else ''}{text}"), self.add_client
        )
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def add_client(self) -> None:
        self.met += 1

    def use(self, listen: Endpoint | None = None, textfile: Path | None = None) -> None:
        self.run(lambda: self.exposition.use(Metrics(listen, textfile)))

    def tick(self) -> None:
        self.run(self.exposition.tick)

    def run(self, call: Callable[[], object]) -> None:
        async def inside() -> None:
            call()

        asyncio.run_coroutine_threadsafe(inside(), self.loop).result(PATIENCE)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.exposition.close(), self.loop).result(PATIENCE)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    try:
        yield made
        made.close()
    finally:
        made.end()


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Path:
    """The socket that it is served on."""
    path = tmp_path / "metrics.sock"
    served.use(Endpoint("", 0, str(path)))
    assert served.told == []
    return path


def connect(path: Path) -> socket.socket:
    wire = socket.socket(socket.AF_UNIX)
    wire.settimeout(PATIENCE)
    until(lambda: wire.connect_ex(str(path)) == 0, "room for a connection")  # EAGAIN: too many wait in the kernel
    return wire


def rest(wire: socket.socket) -> bytes:
    """All that comes until the other side has ended."""
    found = b""
    with suppress(ConnectionResetError):
        while some := wire.recv(65536):
            found += some
    return found


def asked(path: Path, data: bytes = GET) -> tuple[str, Mapping[str, str], bytes]:
    """The status, the headers and the body of the answer."""
    with connect(path) as wire:
        wire.sendall(data)
        head, _, body = rest(wire).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def test_the_page_is_served_with_its_length_and_the_connection_ends(page: Path) -> None:
    status, headers, body = asked(page)
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert (int(headers["Content-Length"]), headers["Connection"]) == (len(body), "close")
    assert b'\nlogknock_grants_open{door="d0"} 0.0\n' in body


def test_openmetrics_is_for_who_asks_for_it(page: Path) -> None:
    """What Prometheus sends, and what it gets: the same as prometheus-client's own server gives."""
    accept = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    _, headers, body = asked(page, GET.replace(b"\r\n\r\n", f"\r\nAccept: {accept}\r\n\r\n".encode()))
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=")
    assert body.endswith(b"\n# EOF\n")
    assert body.count(b"# EOF") == 1
    assert b"# EOF" not in asked(page)[2]


def test_a_request_may_come_byte_by_byte(page: Path) -> None:
    with connect(page) as wire:
        for at in range(len(GET)):
            wire.sendall(GET[at : at + 1])
        assert rest(wire).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"\0" * 64 + b"\r\n\r\n", b"400 ", id="no HTTP"),
        pytest.param(GET.replace(b"GET", b"PUT") + b"x" * 65_000, b"405 ", id="with much behind it"),
        pytest.param(b"GET /" + b"x" * MAX_HEAD + b" HTTP/1.1\r\n\r\n", b"431 ", id="too long a line"),
        pytest.param(b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEAD, b"431 ", id="headers without an end"),
    ],
)
def test_what_is_wrong_gets_one_answer_that_arrives(page: Path, data: bytes, status: bytes) -> None:
    """Although something is left unread, which ends the connection in a reset (RFC 9112, 9.6)."""
    with connect(page) as wire:
        wire.sendall(data)
        assert rest(wire).startswith(b"HTTP/1.1 " + status)
    assert asked(page)[0] == "HTTP/1.1 200 OK"


def test_an_answer_arrives_over_tcp_too_though_more_was_said_than_is_read(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    served.use(Endpoint("127.0.0.1", port))
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as wire:
            wire.sendall(GET + b"x" * 60_000)
            time.sleep(0.02)  # the reset is there before anything is read
            answer = rest(wire)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"\n")


def test_who_goes_without_a_word_costs_nothing(page: Path, served: Served) -> None:
    for data in (b"", GET[:20], GET):
        with connect(page) as wire:
            wire.sendall(data)
    assert asked(page)[0] == "HTTP/1.1 200 OK"
    assert served.told == []


@pytest.mark.parametrize("said", [b"", GET[:-1]], ids=["silent", "never at an end"])
def test_who_is_slow_is_given_up(page: Path, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "PATIENCE", 0.3)
    with connect(page) as wire:
        with suppress(BrokenPipeError):  # given up already, by a machine that paused here
            wire.sendall(said)
        assert rest(wire) == b""


def test_who_does_not_read_is_given_up(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "PATIENCE", 0.5)
    monkeypatch.setattr(exposition.Answer, "encode", lambda answer: b"x" * 50_000_000)
    with connect(page) as wire:
        wire.sendall(GET)
        time.sleep(1)
        assert 0 < len(rest(wire)) < 50_000_000


def test_who_holds_all_places_gives_way_to_the_next(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, at once: an honest client is not one of those that wait."""
    monkeypatch.setattr(exposition, "PATIENCE", 10 * PATIENCE)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(page)) for _ in range(3 * MAX_CLIENTS)]
        assert asked(page)[0] == "HTTP/1.1 200 OK"
        assert [rest(wire) for wire in held[:-MAX_CLIENTS]] == [b""] * 2 * MAX_CLIENTS


def test_a_flood_of_clients_takes_no_more_turns_than_it_may(page: Path, served: Served) -> None:
    """As many connections as two threads can make: a hundred a second are met, and the others wait in the kernel."""
    began = time.monotonic()
    end = began + 1.0
    before = served.met

    def flood() -> None:
        while time.monotonic() < end:
            with socket.socket(socket.AF_UNIX) as wire, suppress(OSError):
                wire.settimeout(0.05)
                wire.connect(str(page))
                wire.sendall(GET)

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    met = served.met - before
    assert 5 < met <= 1.2 * (time.monotonic() - began) / exposition.ACCEPT_PAUSE


def test_a_page_of_many_doors_is_made_in_turns_and_not_again_at_once() -> None:
    """A thousand doors are ten thousand lines: others have their turn meanwhile, and a flood of requests makes one."""
    made: list[float] = []

    def thousand() -> Facts:
        made.append(time.monotonic())
        return facts(1_000)

    async def get() -> tuple[int, bytes]:
        turns, done = 0, False

        async def count() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        pages = exposition.Pages(thousand)
        counting = asyncio.create_task(count())
        found = await asyncio.gather(*(pages.get() for _ in range(50)))
        done = True
        await counting
        return turns, found[0][1]

    turns, body = asyncio.run(get())
    assert body.count(b"\nlogknock_grants_open{") == 1_000
    assert len(made) == 1
    assert turns > 5


def test_a_page_is_made_once_though_all_who_ask_for_it_give_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a flood nobody stays until it is made: it is made all the same, and counts for ten times what it took."""
    monkeypatch.setattr(exposition, "TURN", 0.0)
    made: list[float] = []

    def thousand() -> Facts:
        made.append(time.monotonic())
        return facts(1_000)

    async def flood() -> bytes:
        pages = exposition.Pages(thousand)
        for _ in range(100):
            asking = asyncio.create_task(pages.get())
            await asyncio.sleep(0)
            asking.cancel()
        return (await pages.get())[1]

    assert asyncio.run(flood()).count(b"\nlogknock_grants_open{") == 1_000
    assert len(made) == 1


def test_a_page_that_is_made_quickly_is_made_anew(page: Path) -> None:
    """What has just happened is there a moment later."""
    _, _, first = asked(page)
    assert first
    until(lambda: len(asked(page)[2]) == len(first), "the same page again")


# ---- unix sockets and ports


def test_the_socket_is_for_root_and_the_group(page: Path, served: Served) -> None:
    """And for nobody at all before it has its group; it goes with the server."""
    assert not stat.S_IMODE(page.stat().st_mode) & 0o117
    served.use()
    assert not page.exists()


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path, served: Served) -> None:
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    served.use(Endpoint("", 0, str(path)))
    assert asked(path)[0] == "HTTP/1.1 200 OK"
    assert served.told == []


def somebody_answers(path: Path, stack: ExitStack) -> None:
    other = stack.enter_context(socket.socket(socket.AF_UNIX))
    other.bind(str(path))
    other.listen(0)
    for _ in range(2):  # its queue is full
        wire = stack.enter_context(socket.socket(socket.AF_UNIX))
        wire.setblocking(False)
        wire.connect_ex(str(path))


def of_another_user(path: Path, stack: ExitStack) -> None:
    other = stack.enter_context(socket.socket(socket.AF_UNIX))
    other.bind(str(path))
    os.chown(path, 65_534, 65_534)


def no_socket(path: Path, stack: ExitStack) -> None:
    path.write_text("precious")


def no_directory(path: Path, stack: ExitStack) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(
            somebody_answers, "somebody answers there (hint: name another path for this instance)", id="alive"
        ),
        pytest.param(of_another_user, "the socket is somebody else's", id="somebody else's"),
        pytest.param(no_socket, "it is there and is no socket", id="a file"),
        pytest.param(no_directory, "no such file or directory", id="no directory"),
    ],
)
def test_what_is_in_the_way_is_left_alone_told_once_and_tried_again(
    tmp_path: Path, served: Served, make: Callable[[Path, ExitStack], None], words: str
) -> None:
    path = tmp_path / "run" / "metrics.sock"
    path.parent.mkdir()
    with ExitStack() as stack:
        make(path, stack)
        before = path.lstat().st_ino if path.parent.exists() else 0
        served.use(Endpoint("", 0, str(path)))
        served.tick()
        (line,) = served.told
        assert line.startswith(f"bad: no metrics at unix:{path}: {words}")
        (trouble,) = served.exposition.troubles
        assert trouble.words() == line.removeprefix("bad: ")
        assert (path.lstat().st_ino if before else 0) == before
    if before:
        path.unlink()
    else:
        path.parent.mkdir()
    served.tick()
    assert asked(path)[0] == "HTTP/1.1 200 OK"
    assert served.told[1:] == ["metrics are there again"]
    assert served.exposition.troubles == []


def test_a_socket_that_somebody_removes_is_made_anew(page: Path, served: Served) -> None:
    page.unlink()
    served.tick()
    assert asked(page)[0] == "HTTP/1.1 200 OK"
    assert served.told == []


def test_a_socket_that_somebody_else_has_put_there_meanwhile_stays(page: Path, served: Served) -> None:
    page.unlink()
    page.write_text("precious")
    served.use()
    assert page.read_text() == "precious"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_told_and_taken_when_it_is_free(served: Served, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as other:
        other.bind((address, 0))
        other.listen()
        port = other.getsockname()[1]
        served.use(Endpoint(address, port))
        served.tick()
        shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        hint = "`ss -ltnp` says who listens there; [metrics] listen takes another port"
        assert served.told == [f"bad: no metrics at {shown}: address already in use (hint: {hint})"]
    served.tick()
    with socket.create_connection((address, port), timeout=PATIENCE) as wire:
        wire.sendall(GET)
        assert rest(wire).startswith(b"HTTP/1.1 200 OK")


def test_a_reload_that_changes_nothing_leaves_clients_alone(page: Path, served: Served) -> None:
    with connect(page) as wire:
        wire.sendall(GET[:10])
        served.use(Endpoint("", 0, str(page)))
        wire.sendall(GET[10:])
        assert rest(wire).startswith(b"HTTP/1.1 200 OK")


def test_a_reload_moves_both(page: Path, served: Served, tmp_path: Path) -> None:
    """The old ones are gone, the new ones there."""
    served.use(Endpoint("", 0, str(page)), tmp_path / "a.prom")
    until((tmp_path / "a.prom").exists, "the first file")
    served.use(Endpoint("", 0, str(tmp_path / "other.sock")), tmp_path / "b.prom")
    until(lambda: (tmp_path / "b.prom").exists() and not (tmp_path / "a.prom").exists(), "the other file")
    assert not page.exists()
    assert asked(tmp_path / "other.sock")[0] == "HTTP/1.1 200 OK"


# ---- the library


WITHOUT = """
import asyncio, sys
sys.modules["prometheus_client"] = None
import logknock.daemon
from logknock.config import Metrics
from logknock.config_values import Endpoint
from logknock.exposition import Exposition
async def main():
    made = Exposition(lambda: None, lambda text, bad: print(text))
    made.use(Metrics())
    made.use(Metrics(Endpoint("127.0.0.1", 9141)))
    made.tick()
    print(len(made.troubles))
    await made.close()
asyncio.run(main())
"""


def test_without_the_library_one_line_names_debians_package() -> None:
    """And nothing is said, or imported, where no metrics are configured."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    hint = f"`apt install python3-prometheus-client`{UNSEEN_PACKAGES}; or `pip install prometheus-client`"
    assert done.stdout == f"no metrics: prometheus-client is not installed (hint: {hint})\n1\n"


# ---- the textfile


def test_the_file_is_whole_readable_by_all_and_gone_with_the_daemon(served: Served, tmp_path: Path) -> None:
    """What it says of a daemon that has ended would be taken for the present."""
    file = tmp_path / "logknock.prom"
    before = os.umask(0o077)
    try:
        served.use(textfile=file)
        until(file.exists, "the file")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    text = file.read_text()
    assert text.endswith("\n")
    assert 'logknock_grants_open{door="d0"} 0.0\n' in text
    assert [path.name for path in tmp_path.iterdir()] == ["logknock.prom"]
    served.close()
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_written_again_and_again_and_not_each_second(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "logknock.prom"
    served.use(textfile=file)
    until(file.exists, "the file")
    first = file.stat().st_ino, file.stat().st_mtime_ns
    served.tick()
    served.tick()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == first
    monkeypatch.setattr(exposition, "TEXTFILE_INTERVAL", 0)
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 60)

    def is_new() -> bool:
        served.tick()
        return (file.stat().st_ino, file.stat().st_mtime_ns) != first

    until(is_new, "a new file")


def test_who_ends_late_leaves_the_file_that_another_has_written(tmp_path: Path) -> None:
    """The path was given up and is wanted again, before the first has written for the last time."""
    path = tmp_path / "logknock.prom"

    async def serve() -> None:
        pages = exposition.Pages(facts)
        old, new = exposition.Textfile(path, pages), exposition.Textfile(path, pages)
        for textfile in (old, new):
            textfile.tick(time.monotonic())
            assert textfile._writing is not None
            await textfile._writing
        await old.close()
        assert path.exists()
        await new.close()
        assert not path.exists()

    asyncio.run(serve())


def test_a_directory_that_cannot_be_written_is_told_once(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "gone" / "logknock.prom"
    served.use(textfile=file)
    until(lambda: served.exposition.troubles, "the trouble")
    served.tick()
    served.tick()
    hint = f"the daemon's user and ReadWritePaths of its unit have to allow it: {file.parent}"
    assert served.told == [f"bad: {file} cannot be written: no such file or directory (hint: {hint})"]


def test_no_link_of_somebodys_is_written_through(tmp_path: Path) -> None:
    """The directory may be others' too: what they put in the way is replaced, and what it leads to stays."""
    precious = tmp_path / "precious"
    precious.write_text("x")
    file = tmp_path / "logknock.prom"
    file.symlink_to(precious)
    (tmp_path / ".logknock.prom~").symlink_to(precious)
    write_file(file, b"numbers\n")
    assert (precious.read_text(), file.read_text(), file.is_symlink()) == ("x", "numbers\n", False)


FULL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.test_exposition import Served
from logknock import exposition
exposition.TEXTFILE_INTERVAL = 0
folder, served = Path(sys.argv[1]), Served()
file = folder / "logknock.prom"
def write():
    served.tick()
    while served.exposition._textfile._writing is not None:
        pass
try:
    served.use(textfile=file)
    write()
    before = file.read_bytes()
    with open(folder / "stuffing", "wb", buffering=0) as stuffing:
        try:
            while stuffing.write(bytes(4096)):
                pass
        except OSError:
            pass
    write(); write(); write()
    print(file.read_bytes() == before, sorted(path.name for path in folder.iterdir()))
    (folder / "stuffing").unlink()
    write(); write()
    print(*served.told, sep="\\n")
finally:
    served.end()
"""


def test_a_full_disk_is_told_once_and_keeps_what_is_there(tmp_path: Path) -> None:
    """No half of a file, and nothing of ours left beside it; when there is room again, that is told too."""
    script = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'
    root = str(Path(__file__).parent.parent)
    command = ["unshare", "--mount", "sh", "-c", script, str(tmp_path), sys.executable, "-c", FULL, str(tmp_path), root]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    file = tmp_path / "logknock.prom"
    hint = "make room: it is tried again by itself"
    assert done.stdout.splitlines() == [
        "True ['logknock.prom', 'stuffing']",
        f"bad: {file} cannot be written: no space left on device (hint: {hint})",
        "metrics are there again",
    ]
