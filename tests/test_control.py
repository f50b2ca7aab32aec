"""The control socket, and clients that are slow, silent, malformed, greedy or not meant to be there."""

import asyncio
import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from logknock import control
from logknock.control import MAX_CLIENTS, MAX_REQUEST, NAME, Answer, Control, ControlError, ask
from logknock.errors import LogknockError

MANY = 200_000  # answers: far more than a socket's buffer holds


def answers(request: Answer) -> Iterator[Answer | None]:
    match request.get("do"):
        case "count":
            for number in range(int(request["to"])):
                yield None
                yield {"number": number}
        case "fail":
            yield {"number": 0}
            raise LogknockError("that does not go", "do something else")
        case _:
            raise LogknockError(f"{request.get('do')!r} is nothing")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A control socket that is served in a loop of its own."""
    ready, done = threading.Event(), None
    failures: list[BaseException] = []

    async def serve() -> None:
        nonlocal done
        done = asyncio.Event()
        served = Control(tmp_path / "run", answers)
        await served.open()
        ready.set()
        await done.wait()
        await served.close()

    loop = asyncio.new_event_loop()

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

    def pulled(request: Answer) -> Iterator[Answer | None]:
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


def test_there_is_room_for_some_and_no_more(runtime: Path) -> None:
    silent = [connect(runtime) for _ in range(MAX_CLIENTS)]
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if refused(runtime) == "too many clients at a time":  # they have not all been met at once
                break
        else:
            pytest.fail("there was room for more")
    finally:
        for wire in silent:
            wire.close()
    while refused(runtime):
        assert time.monotonic() < end


def test_who_is_refused_at_once_learns_why(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_may_ask", lambda peer: False)
    for _ in range(20):
        assert refused(runtime) == "not permitted"


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


def test_a_directory_that_cannot_be_used_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError) as raised:
        asyncio.run(Control(tmp_path / "file", answers).open())
    assert "[paths] runtime" in raised.value.hint


def test_no_daemon_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no daemon answers at") as raised:
        list(ask(tmp_path, "count", to=1))
    assert (raised.value.exit_code, raised.value.hint.split(";")[0]) == (69, "`logknock run` starts the daemon")
