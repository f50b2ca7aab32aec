"""The control socket, and clients that are slow, silent, malformed, greedy or not meant to be there."""

import asyncio
import errno
import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from logknock import control, feed
from logknock.control import (
    MAX_CLIENTS,
    MAX_REQUEST,
    NAME,
    ROOT_CLIENTS,
    Answer,
    Control,
    ControlError,
    Peer,
    Said,
    ask,
)
from logknock.errors import LogknockError
from logknock.feed import MAX_WATCHERS, QUEUED

MANY = 200_000  # answers: far more than a socket's buffer holds


def answers(request: Answer, peer: Peer) -> Iterator[Said]:
    match request.get("do"):
        case "count":
            for number in range(int(request["to"])):
                yield None
                yield {"number": number}
        case "fail":
            yield {"number": 0}
            raise LogknockError("that does not go", "do something else")
        case "who":
            yield {"uid": peer.uid, "name": peer.name, "text": str(peer)}
        case "wait":
            yield 0.2
            yield {"waited": True}
        case "watch":
            yield "watch"
            for number in range(int(request.get("first", 1))):
                yield {"first": number}
        case _:
            raise LogknockError(f"{request.get('do')!r} is nothing")


class Served:
    """A control socket in a loop of its own."""

    control: Control
    loop: asyncio.AbstractEventLoop
    met = 0  # clients

    def add_client(self) -> None:
        self.met += 1

    def put(self, *said: Answer) -> None:
        """Something happens."""
        for each in said:
            self.loop.call_soon_threadsafe(self.control.feed.put, each)

    def put_latest(self, said: Answer) -> None:
        self.loop.call_soon_threadsafe(self.control.feed.put_latest, said)


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def runtime(tmp_path: Path, served: Served) -> Iterator[Path]:
    """Where that is served."""
    ready, done = threading.Event(), None
    failures: list[BaseException] = []

    async def serve() -> None:
        nonlocal done
        done = asyncio.Event()
        control = served.control = Control(tmp_path / "run", answers, served.add_client)
        await control.open()
        ready.set()
        await done.wait()
        await control.close()

    loop = served.loop = asyncio.new_event_loop()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001  # the test's thread is to hear of it
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    assert not failures
    yield tmp_path / "run"
    assert done is not None
    loop.call_soon_threadsafe(done.set)
    thread.join(20)
    loop.close()
    assert not thread.is_alive()
    assert not failures
    assert not (tmp_path / "run" / NAME).exists()


def connect(runtime: Path) -> socket.socket:
    wire = socket.socket(socket.AF_UNIX)
    wire.settimeout(20)
    wire.connect(str(runtime / NAME))
    return wire


def said(runtime: Path, data: bytes) -> list[dict[str, object]]:
    with connect(runtime) as wire:
        wire.sendall(data)
        wire.shutdown(socket.SHUT_WR)
        with wire.makefile("rb") as stream:
            return [json.loads(line) for line in stream]


def refused(runtime: Path) -> str:
    """What a question is refused with; empty where it is answered."""
    try:
        assert list(ask(runtime, "count", to=1)) == [{"number": 0}]
    except ControlError as error:
        return error.message
    return ""


def test_what_is_asked_is_answered_line_by_line(runtime: Path) -> None:
    assert list(ask(runtime, "count", to=3)) == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_questions_may_follow_each_other(runtime: Path) -> None:
    line = b'{"version": 1, "do": "count", "to": 1}\n'
    assert said(runtime, line + line) == [{"number": 0}, {"done": True}] * 2


def test_an_error_is_the_last_answer(runtime: Path) -> None:
    found = ask(runtime, "fail")
    assert next(found) == {"number": 0}
    with pytest.raises(ControlError, match="that does not go") as raised:
        next(found)
    assert raised.value.hint == "do something else"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"\n", "JSON object", id="nothing"),
        pytest.param(b"\xff\xfe\n", "JSON object", id="no UTF-8"),
        pytest.param(b"[" * 4000 + b"\n", "JSON object", id="a deep one"),
        pytest.param(b"[]\n", "version 1", id="no object"),
        pytest.param(b"{}\n", "version 1", id="no version"),
        pytest.param(b'{"version": 2, "do": "count"}\n', "version 1", id="another version"),
        pytest.param(b'{"version": true, "do": "count"}\n', "version 1", id="true for a version"),
        pytest.param(b'{"version": 1}\n', "None is nothing", id="nothing to do"),
        pytest.param(b'{"version": 1, "do": {"x": []}}\n', "is nothing", id="an object to do"),
        pytest.param(b"x" * (MAX_REQUEST + 10), "at most", id="a line that is too long"),
        pytest.param(b"x" * 1_000_000 + b"\n", "at most", id="a line that is far too long"),
    ],
)
def test_what_is_no_request_is_one_error(runtime: Path, data: bytes, words: str) -> None:
    try:
        (answer,) = said(runtime, data)
    except (BrokenPipeError, ConnectionResetError):
        assert len(data) > MAX_REQUEST  # it was hung up on before it had said all
    else:
        assert words in str(answer["error"])
    assert list(ask(runtime, "count", to=1)) == [{"number": 0}]


def test_who_has_no_more_to_ask_gets_all_that_was_answered(runtime: Path) -> None:
    """Half closed, as `nc -N` leaves it; the answers are more than a socket holds."""
    with connect(runtime) as wire:
        wire.sendall(b'{"version": 1, "do": "count", "to": 20000}\n')
        wire.shutdown(socket.SHUT_WR)
        with wire.makefile("rb") as stream:
            assert len(stream.readlines()) == 20_001


def turns_of(runtime: Path, count: int, questions: int = 1) -> list[int]:
    """In which turn of the loop each of so many answers to a question is made; all questions come at once."""
    turn, found = 0, list[int]()

    def pulled(request: Answer, _peer: Peer) -> Iterator[Said]:
        for number in range(count):
            found.append(turn)
            yield {"number": number} if number % 2 else None

    async def serve() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()

        def tick() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(tick)

        served = Control(runtime, pulled)
        await served.open()
        tick()
        lines = b'{"version": 1, "do": "count"}\n' * questions
        answers = await loop.run_in_executor(None, lambda: said(runtime, lines))
        assert len(answers) == questions * (count // 2 + 1)
        await served.close()

    asyncio.run(serve())
    return found


def test_answers_take_as_few_turns_of_the_loop_as_their_work_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a flood each turn is as long as a read: a turn for each answer would make seconds of a whole `explain`."""
    monkeypatch.setattr(control, "TURN", 60.0)
    assert len(set(turns_of(tmp_path, 1000))) == 1


def test_who_takes_long_leaves_others_their_turn_after_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TURN", 0.0)
    assert len(set(turns_of(tmp_path, 1000))) == 1000


def test_questions_that_come_all_at_once_have_a_turn_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TURN", 60.0)
    assert len(set(turns_of(tmp_path, 2, 100))) == 100


def test_who_does_not_read_does_not_keep_others_waiting(runtime: Path) -> None:
    with connect(runtime) as greedy:
        greedy.sendall(json.dumps({"version": 1, "do": "count", "to": MANY}).encode() + b"\n")
        assert list(ask(runtime, "count", to=1)) == [{"number": 0}]


def test_who_never_reads_is_given_up(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.05)
    with connect(runtime) as greedy:
        greedy.sendall(json.dumps({"version": 1, "do": "count", "to": MANY}).encode() + b"\n")
        hung_up = select.poll()
        hung_up.register(greedy, select.POLLRDHUP)
        assert hung_up.poll(20_000)
        with greedy.makefile("rb") as stream:
            assert b"done" not in stream.read()


def test_who_says_nothing_is_hung_up_on(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.05)
    with connect(runtime) as silent:
        assert silent.recv(1) == b""


@contextmanager
def many(runtime: Path, served: Served, number: int, says: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many that have all been met, each after the one before."""
    with ExitStack() as stack:
        found = []
        for _ in range(number):
            before = served.met
            found.append(stack.enter_context(closing(connect(runtime))))
            found[-1].sendall(says)
            if says:
                assert found[-1].recv(1)
            end = time.monotonic() + 20
            while served.met == before:
                assert time.monotonic() < end
        yield found


def test_who_is_silent_gives_way_the_oldest_first(
    runtime: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are of them, nobody is locked out by who asks nothing."""
    monkeypatch.setattr(control, "PATIENCE", 60.0)
    with many(runtime, served, MAX_CLIENTS + 4) as silent:
        assert [refused(runtime) for _ in range(3)] == [""] * 3
        assert [wire.recv(1) for wire in silent[:5]] == [b""] * 5
        silent[-1].sendall(b'{"version": 1, "do": "count", "to": 0}\n')
        assert silent[-1].recv(100) == b'{"done": true}\n'


def test_who_is_silent_gives_way_to_others_of_its_own(
    runtime: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who connects again and again pushes out nobody else's terminal that is between two questions."""
    monkeypatch.setattr(control, "PATIENCE", 60.0)
    monkeypatch.setattr(control, "_peer", lambda _: Peer(8))
    with many(runtime, served, 1) as (other,):
        monkeypatch.setattr(control, "_peer", lambda _: Peer(7))
        with many(runtime, served, 3 * MAX_CLIENTS):
            other.sendall(b'{"version": 1, "do": "count", "to": 0}\n')
            assert other.recv(100) == b'{"done": true}\n'


def test_who_is_being_answered_stays_and_some_room_is_root_s(
    runtime: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE", 60.0)
    greedy = json.dumps({"version": 1, "do": "count", "to": MANY}).encode() + b"\n"
    monkeypatch.setattr(control, "_peer", lambda _: Peer(7))
    with many(runtime, served, MAX_CLIENTS, greedy) as held:
        assert refused(runtime) == "too many clients at a time"
        monkeypatch.setattr(control, "_peer", lambda _: Peer(0))
        assert refused(runtime) == ""
        for wire in held:
            assert wire.recv(1), "it goes on"
        with many(runtime, served, ROOT_CLIENTS, greedy):
            assert refused(runtime) == "too many clients at a time", "root too has an end"


def test_who_asks_what_is_no_deed_has_no_name_looked_up(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/passwd may be long, and a client may come each millisecond."""

    class Never:
        def open(self, mode: str) -> None:
            raise AssertionError(mode)

    monkeypatch.setattr(control, "_USERS", Never())
    assert refused(runtime) == ""


def test_who_is_refused_at_once_learns_why(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_may_ask", lambda peer: False)
    for _ in range(20):
        assert refused(runtime) == "not permitted"


def test_who_asks_is_what_the_kernel_says(runtime: Path) -> None:
    assert list(ask(runtime, "who")) == [{"uid": 0, "name": "root", "text": "root (uid 0)"}]


def test_who_has_no_name_here_has_a_number(runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control, "_USERS", tmp_path / "none")
    assert list(ask(runtime, "who")) == [{"uid": 0, "name": "", "text": "uid 0"}]


def test_a_wait_is_no_work(runtime: Path) -> None:
    begin = time.monotonic()
    waiting = [ask(runtime, "wait") for _ in range(3)]
    assert list(ask(runtime, "count", to=1)) == [{"number": 0}]
    assert [list(each) for each in waiting] == [[{"waited": True}]] * 3
    assert time.monotonic() - begin >= 0.2


def test_several_who_ask_at_once_share_a_turn_s_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, what is done for them between two reads is one turn's work."""
    monkeypatch.setattr(control, "TURN", 0.0)
    turn, found = 0, list[int]()

    def pulled(request: Answer, _peer: Peer) -> Iterator[Said]:
        for number in range(50):
            found.append(turn)
            yield {"number": number}

    async def serve() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()

        def tick() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(tick)

        one = Control(tmp_path, pulled)
        await one.open()
        tick()
        lines = b'{"version": 1, "do": "count"}\n'
        await asyncio.gather(*(loop.run_in_executor(None, said, tmp_path, lines) for _ in range(4)))
        await one.close()

    asyncio.run(serve())
    assert len(found) == len(set(found)) == 200


# ---- those who watch


def watching(runtime: Path, **details: Any) -> tuple[socket.socket, Iterator[dict[str, Any]]]:
    """A watcher that has had its first answers, and what comes from there on."""
    wire = connect(runtime)
    wire.sendall(json.dumps({"version": 1, "do": "watch", **details}).encode() + b"\n")
    lines = map(json.loads, iter(wire.makefile("rb").readline, b""))
    for number in range(details.get("first", 1)):
        assert next(lines) == {"first": number}
    return wire, lines


def test_who_watches_hears_what_happens_after_what_it_asked_for(runtime: Path, served: Served) -> None:
    assert not served.control.feed.watched
    wire, lines = watching(runtime, first=1000)
    with wire:
        assert served.control.feed.watched
        served.put({"event": 1}, {"event": 2})
        assert [next(lines), next(lines)] == [{"event": 1}, {"event": 2}]


def test_what_happens_while_the_first_answers_are_given_is_not_lost(tmp_path: Path) -> None:
    def pulled(_request: Answer, _peer: Peer) -> Iterator[Said]:
        yield "watch"
        one.feed.put({"event": 1})
        yield {"first": 0}

    one = Control(tmp_path, pulled)

    async def serve() -> list[bytes]:
        await one.open()
        reader, writer = await asyncio.open_unix_connection(tmp_path / NAME)
        writer.write(b'{"version": 1, "do": "watch"}\n')
        lines = [await reader.readline(), await reader.readline()]
        writer.close()
        await one.close()
        return lines

    assert list(map(json.loads, asyncio.run(serve()))) == [{"first": 0}, {"event": 1}]


def test_who_watches_may_be_silent_and_may_have_nothing_more_to_ask(
    runtime: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE", 2.0)
    wire, lines = watching(runtime)
    with wire:
        wire.shutdown(socket.SHUT_WR)  # as `nc -N` leaves it
        time.sleep(2.5)
        served.put({"event": 1})
        assert next(lines) == {"event": 1}


def test_what_a_watcher_says_besides_costs_nothing(runtime: Path, served: Served) -> None:
    wire, lines = watching(runtime)
    with wire:
        wire.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wire.sendall(b"x" * 10_000_000)
        wire.settimeout(20)
        served.put({"event": 1})
        assert next(lines) == {"event": 1}


def test_who_does_not_read_hears_how_much_it_missed(
    runtime: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And costs no more than the bound while it does not, nor any time of those who do."""
    monkeypatch.setattr(feed, "FLUSH", 0.001)
    slow, slow_lines = watching(runtime)
    quick, quick_lines = watching(runtime)
    events = [{"event": number, "text": "x" * 1000} for number in range(3000)]
    with slow, quick:
        served.put({"ready": True})  # both have had what they asked for, and hear the rest as it comes
        assert [next(slow_lines), next(quick_lines)] == [{"ready": True}] * 2
        for at in range(0, len(events), 50):
            served.put(*events[at : at + 50])
            assert [next(quick_lines) for _ in range(50)] == events[at : at + 50]
        heard: list[Any] = [{}]
        while heard[-1].get("event") != len(events) - 1:
            served.put_latest({"second": True})  # what waits goes out with what comes next
            heard.append(next(slow_lines))
    first, rest, missed = list[int](), list[int](), 0
    for each in heard:
        missed += each.get("missed", 0)
        if "event" in each:
            (rest if missed else first).append(each["event"])
    assert missed == len(events) - len(first) - len(rest) > 0
    assert first == list(range(len(first))), "first what had left already"
    assert rest == list(range(len(events) - len(rest), len(events))), "then the latest"
    assert sum(len(json.dumps(events[number])) + 1 for number in rest) <= QUEUED


def test_of_what_is_worth_nothing_later_the_last_comes(runtime: Path, served: Served) -> None:
    wire, lines = watching(runtime)
    with wire:

        def happen() -> None:
            """In one turn of the loop: nothing is sent in between."""
            served.control.feed.put_latest({"standing": 1})
            served.control.feed.put({"event": 1})
            served.control.feed.put_latest({"standing": 2})

        served.loop.call_soon_threadsafe(happen)
        assert [next(lines), next(lines)] == [{"event": 1}, {"standing": 2}]


def test_who_is_gone_is_forgotten(runtime: Path, served: Served) -> None:
    wire, _ = watching(runtime)
    wire.shutdown(socket.SHUT_RDWR)
    wire.close()
    end = time.monotonic() + 20
    while served.control.feed.watched:
        served.put({"event": 1})
        assert time.monotonic() < end
        time.sleep(0.05)


def test_those_who_watch_leave_room_for_those_who_ask(runtime: Path) -> None:
    watchers = [watching(runtime) for _ in range(MAX_WATCHERS)]
    try:
        with pytest.raises(ControlError, match="8 are watching already"):
            next(ask(runtime, "watch"))
        assert list(ask(runtime, "count", to=1)) == [{"number": 0}]
    finally:
        for wire, _ in watchers:
            wire.close()
    assert MAX_WATCHERS < MAX_CLIENTS


def test_those_who_watch_are_told_of_the_end(tmp_path: Path) -> None:
    one = Control(tmp_path, answers)

    async def serve() -> bytes:
        await one.open()
        reader, writer = await asyncio.open_unix_connection(tmp_path / NAME)
        writer.write(b'{"version": 1, "do": "watch"}\n')
        await reader.readline()
        one.feed.put({"event": 1})
        await one.close()
        rest = await reader.read()
        writer.close()
        return rest

    assert asyncio.run(serve()) == b'{"event": 1}\n{"ended": "logknock has stopped"}\n{"done": true}\n'


def test_without_a_watcher_nothing_is_made() -> None:
    """No loop is even asked for."""
    Control(Path("/"), answers).feed.put({"event": object()})


def test_others_than_the_group_cannot_even_connect(runtime: Path) -> None:
    assert not stat.S_IMODE((runtime / NAME).stat().st_mode) & 0o117


def test_others_pass_through_the_directory_whatever_the_umask(tmp_path: Path) -> None:
    async def serve() -> int:
        served = Control(tmp_path / "run" / "a", answers)
        await served.open()
        mode = stat.S_IMODE((tmp_path / "run" / "a").stat().st_mode)
        await served.close()
        return mode

    before = os.umask(0o077)
    try:
        assert asyncio.run(serve()) == 0o755
    finally:
        os.umask(before)


def test_a_second_daemon_leaves_the_first_its_socket(runtime: Path) -> None:
    with pytest.raises(ControlError, match="another logknock answers there"):
        asyncio.run(Control(runtime, answers).open())
    assert list(ask(runtime, "count", to=1)) == [{"number": 0}]


def test_a_socket_that_nobody_answers_at_is_replaced(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(tmp_path / NAME))

    async def serve() -> None:
        served = Control(tmp_path, answers)
        await served.open()
        await served.close()

    asyncio.run(serve())
    assert not (tmp_path / NAME).exists()


def test_a_daemon_that_has_no_room_for_a_connection_is_one_too(tmp_path: Path) -> None:
    """Its socket has more connections waiting than there is room for: EAGAIN of connect(2), and not that it is dead."""
    with closing(socket.socket(socket.AF_UNIX)) as other, ExitStack() as waiting:
        other.bind(str(tmp_path / NAME))
        other.listen(0)
        full = False
        while not full:
            wire = waiting.enter_context(closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
            wire.setblocking(False)
            full = wire.connect_ex(str(tmp_path / NAME)) == errno.EAGAIN
        with pytest.raises(ControlError, match="another logknock answers there"):
            asyncio.run(Control(tmp_path, answers).open())
        assert (tmp_path / NAME).is_socket()


def test_a_socket_that_somebody_removes_is_missed_and_made_anew(tmp_path: Path) -> None:
    """Who watches goes on watching; and at the end another's socket of that name stays."""
    one, path = Control(tmp_path, answers), tmp_path / NAME

    async def serve() -> None:
        await one.open()
        assert one.is_there
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"version": 1, "do": "watch"}\n')
        await reader.readline()
        path.unlink()
        assert not one.is_there
        path.mkdir()
        with pytest.raises(ControlError):
            await one.open()
        assert not one.is_there
        path.rmdir()
        await one.open()
        assert one.is_there
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, lambda: list(ask(tmp_path, "count", to=1))) == [{"number": 0}]
        one.feed.put({"event": 1})
        assert await reader.readline() == b'{"event": 1}\n'
        writer.close()
        path.unlink()
        path.write_text("another's")
        await one.close()

    asyncio.run(serve())
    assert path.read_text() == "another's"


def test_a_directory_that_cannot_be_used_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError) as raised:
        asyncio.run(Control(tmp_path / "file", answers).open())
    assert "[paths] runtime" in raised.value.hint


def test_no_daemon_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no daemon answers at") as raised:
        list(ask(tmp_path, "count", to=1))
    assert (raised.value.exit_code, raised.value.hint.split(";")[0]) == (69, control.start_hint())
