"""What is told of an event, and what is not told a hundred thousand times."""

import ast
import contextlib
import ipaddress
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from logknock.knock import (
    Advanced,
    Code,
    Derived,
    Door,
    Event,
    Evicted,
    Failed,
    Grant,
    Granted,
    Matcher,
    Reason,
    Revoked,
    Service,
    Spent,
)
from logknock.packet import SYN, TCP, Packet
from logknock.report import (
    MESSAGE_IDS,
    ROUTINE_LINES_PER_SECOND,
    JournalLog,
    Level,
    Line,
    Reporter,
    StderrLog,
    ban_lifted,
    ban_made,
    choose_log,
    closed,
    command,
    lines,
    notice,
    revoked,
)
from logknock.spa import Reason as SpaReason
from logknock.trail import Mailed, Refused

PROJECT = Path(__file__).parents[1]
CATALOG = PROJECT / "packaging/systemd/logknock.catalog"

SRC = ipaddress.ip_address("192.0.2.7").packed
PACKET = Packet(0.0, SRC, SRC, TCP, 1, 7001, SYN)
GRANT = Grant("ssh", SRC, 30.0)


class Kept:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def write(self, line: Line) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        pytest.param(Advanced(PACKET, ("ssh",), 2), ["192.0.2.7: ssh: Stage 2"], id="knockd's stage"),
        pytest.param(Granted(PACKET, GRANT), ["192.0.2.7: ssh: OPEN SESAME"], id="knockd's opening"),
        pytest.param(
            Failed(SRC, ("ssh",), 1, Reason.TIMEOUT, PACKET),
            ["192.0.2.7: ssh: sequence timeout (stage 1)"],
            id="knockd's timeout",
        ),
        pytest.param(
            Failed(SRC, ("ssh",), 1, Reason.WRONG, PACKET),
            ["192.0.2.7: ssh: wrong port 7001/tcp (stage 1)"],
            id="which port was wrong",
        ),
        pytest.param(
            Revoked(PACKET, "ssh", "done"), ["192.0.2.7: done: OPEN SESAME, closes ssh"], id="a door that closes"
        ),
        pytest.param(
            Spent(PACKET, Derived("ssh", "laptop", 1_779_370_350, (), 0.0, 90.0, 59_312_345)),
            ["192.0.2.7: ssh: step 59312345 of client laptop used"],
            id="whose step it was",
        ),
        pytest.param(
            Failed(SRC, ("ssh",), 4, Reason.REPLAYED, PACKET),
            ["192.0.2.7: ssh: sequence of a step that is used up (stage 4)"],
            id="a step that comes again",
        ),
        pytest.param(
            Mailed(PACKET, "vpn", "laptop", None, "22/tcp"),
            ["192.0.2.7: vpn: SPA packet of client laptop accepted: 22/tcp"],
            id="a single packet",
        ),
        pytest.param(
            Mailed(PACKET, "vpn", "laptop", SpaReason.AGE, "sent 3 minutes ago"),
            ["192.0.2.7: vpn: SPA packet of client laptop refused: wrong time (sent 3 minutes ago)"],
            id="a single packet that opens nothing",
        ),
        pytest.param(
            Mailed(PACKET, "", "", SpaReason.HMAC, "no key's HMAC fits"),
            ["192.0.2.7: SPA packet of nobody refused: no key's HMAC fits"],
            id="a single packet of anybody's",
        ),
        pytest.param(
            Advanced(PACKET, ("a", "b"), 1),
            ["192.0.2.7: a: Stage 1", "192.0.2.7: b: Stage 1"],
            id="a line for each door that shares the knock",
        ),
        pytest.param(
            Advanced(PACKET, tuple(f"d{n}" for n in range(1000)), 1),
            [*(f"192.0.2.7: d{n}: Stage 1" for n in range(4)), "192.0.2.7: (996 more doors): Stage 1"],
            id="but not for a thousand of them",
        ),
    ],
)
def test_the_words_for_an_event(event: Event, told: list[str]) -> None:
    assert [line.text for line in lines(event)] == told


def test_the_words_for_what_the_daemon_does() -> None:
    assert closed(GRANT).text == "192.0.2.7: ssh: command timeout, closed"
    assert revoked(GRANT, "done").text == "192.0.2.7: ssh: closed by done"
    (line,) = lines(Refused(PACKET, "ssh", "a loopback address"))
    assert line.text == "192.0.2.7: ssh: not opened: a loopback address"


def test_fields_are_the_events_facts() -> None:
    (line,) = lines(Failed(SRC, ("ssh",), 1, Reason.WRONG, PACKET))
    assert line.fields == {"SRC": "192.0.2.7", "DOOR": "ssh", "EVENT": "failed", "STAGE": "1", "REASON": "wrong port"}


def test_those_who_give_way_to_a_flood_have_a_line_each_and_are_counted_where_there_is_none_left() -> None:
    kept = Kept()
    reporter, matcher = Reporter(kept), Matcher([Door("ssh", (Service(TCP, 7001),) * 2)], max_knockers=1600)
    events: list[Event] = []
    for number in range(1601):
        events += matcher.receive(PACKET._replace(src=number.to_bytes(4, "big")))
    (evicted,) = [event for event in events if isinstance(event, Evicted)]
    assert evicted.ended == ROUTINE_LINES_PER_SECOND
    reporter.tell([*events[:50], evicted])
    assert kept.lines[-1].text == "0.0.0.49: ssh: too many attempts (stage 1)"
    reporter.tell([evicted])
    reporter.settle()
    assert kept.lines[-1].fields == {
        "EVENT": "left-out",
        "LEFT_OUT": str(50 + ROUTINE_LINES_PER_SECOND),
    }


def test_a_flood_of_attempts_is_summed_up_and_openings_are_not() -> None:
    kept = Kept()
    reporter = Reporter(kept)
    for _ in range(ROUTINE_LINES_PER_SECOND + 50):
        reporter.tell([Advanced(PACKET, ("ssh",), 1)])
    reporter.tell([Granted(PACKET, GRANT)])
    assert len(kept.lines) == ROUTINE_LINES_PER_SECOND + 1
    assert kept.lines[-1].text.endswith("OPEN SESAME")
    reporter.settle()
    assert kept.lines[-1].text == "50 more lines about attempts left out"
    reporter.tell([Advanced(PACKET, ("ssh",), 1)])
    reporter.settle()
    assert kept.lines[-1].text.endswith("Stage 1")


def test_t18_a_packet_that_is_sent_again_without_end_does_not_fill_the_log() -> None:
    """T18: be it one that was overheard, which a client's keys vouch for. What is accepted is told in any case."""
    kept = Kept()
    reporter = Reporter(kept)
    for _ in range(ROUTINE_LINES_PER_SECOND):
        reporter.tell([Mailed(PACKET, "vpn", "laptop", SpaReason.REPLAYED, "")])
        reporter.tell([Mailed(PACKET, "", "", SpaReason.HMAC, "")])
    reporter.tell([Mailed(PACKET, "vpn", "laptop", None, "for 22/tcp")])
    assert len(kept.lines) == ROUTINE_LINES_PER_SECOND + 1
    assert kept.lines[-1].fields["EVENT"] == "spa"


def test_a_full_pipe_loses_lines_and_does_not_block() -> None:
    reader, writer = os.pipe()
    try:
        log = StderrLog(writer)
        for number in range(100_000):  # a pipe holds 64 KiB: this blocks for ever if anything does
            log.write(notice(f"line {number}"))
        assert log.dropped > 0
        assert os.read(reader, 100).startswith(b"line 0\nline 1\n")
    finally:
        os.close(reader)
        os.close(writer)


def test_a_line_that_is_too_long_is_still_a_line() -> None:
    reader, writer = os.pipe()
    try:
        StderrLog(writer).write(notice("x" * 10_000))
        StderrLog(writer).write(notice("next"))
        assert os.read(reader, 10_000).splitlines()[1:] == [b"next"]
    finally:
        os.close(reader)
        os.close(writer)


def test_a_reader_that_is_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        StderrLog(writer).write(notice("to nobody"))
    finally:
        os.close(writer)


def test_levels_show_on_standard_error() -> None:
    reader, writer = os.pipe()
    try:
        StderrLog(writer).write(notice("no room", Level.ERROR))
        assert os.read(reader, 100) == b"error: no room\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_the_journal_is_chosen_where_standard_error_is_its_stream() -> None:
    """systemd.exec(5): JOURNAL_STREAM holds device and inode, so that a redirected descriptor is not taken for it."""
    status = os.fstat(2)
    assert isinstance(choose_log({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}), JournalLog)
    assert isinstance(choose_log({"JOURNAL_STREAM": "1:2"}), StderrLog)
    assert isinstance(choose_log({}), StderrLog)


def test_a_journal_that_does_not_read_keeps_nobody_waiting_and_gets_all_but_too_much_of_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setattr("logknock.report.JOURNAL_SOCKET", path)
    log = JournalLog()
    reporter = Reporter(log)
    reporter.write(notice("before it is there"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as journald:
        journald.bind(path)
        for number in range(3_000):  # a socket holds some hundred entries at most: this blocks if anything does
            reporter.write(notice(f"line\n{number}", DOOR="ssh"))
        assert 0 < log.dropped < 2_000
        entries: list[bytes] = []
        while log._waiting:
            entries += received(journald)
            reporter.settle()
        entries += received(journald)
    assert b"MESSAGE=before it is there\n" in entries[0]
    text = b"MESSAGE\n" + (6).to_bytes(8, "little") + b"line\n0\nPRIORITY=5\n"
    assert entries[1].startswith(b"LOGKNOCK_EVENT=notice\nLOGKNOCK_DOOR=ssh\n" + text)
    *taken, told = entries
    found = re.search(rb"LOGKNOCK_LEFT_OUT=(\d+)\n", told)
    assert found
    assert int(found[1]) + len(taken) == 3_001, "those lost, and those that came"


def received(journald: socket.socket) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(journald.recv(4096))
    return found


def test_a_socket_for_standard_error_works_as_a_pipe_does() -> None:
    one, other = socket.socketpair()
    with one, other:
        StderrLog(one.fileno()).write(notice("hello"))
        assert other.recv(100) == b"hello\n"


def test_the_catalog_the_documentation_and_the_code_have_the_same_ids(tmp_path: Path) -> None:
    """The catalog as journalctl itself takes it; each id once, and each event's own."""
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (folder / CATALOG.name).write_text(CATALOG.read_text())
    journalctl = ["journalctl", f"--root={tmp_path}", "--no-pager"]
    subprocess.run([*journalctl, "--update-catalog"], check=True)
    listed = subprocess.run([*journalctl, "--list-catalog"], check=True, capture_output=True, text=True).stdout
    ids = set(MESSAGE_IDS.values())
    assert {line.split()[0] for line in listed.splitlines()} == ids
    assert len(ids) == len(MESSAGE_IDS)
    page = (PROJECT / "docs/howto/service.md").read_text()
    assert dict(re.findall(r"^\| `([\w-]+)` \|.*\| `([0-9a-f]{32})` \|$", page, re.MULTILINE)) == MESSAGE_IDS


def test_the_catalog_names_fields_that_the_events_have() -> None:
    """Those in its words (@LOGKNOCK_SRC@), by what the code says of each event."""
    told = {event: set(fields) for event, fields in fields_of_events().items()}
    for part in CATALOG.read_text().split("\n-- ")[1:]:
        event = next(name for name, number in MESSAGE_IDS.items() if part.startswith(number))
        assert set(re.findall(r"@LOGKNOCK_(\w+)@", part)) <= told.get(event, set()), event


def fields_of_events() -> dict[str, set[str]]:
    every = [
        *lines(Advanced(PACKET, ("ssh",), 2)),
        *lines(Failed(SRC, ("ssh",), 1, Reason.WRONG, PACKET)),
        *lines(Refused(PACKET, "ssh", "a loopback address")),
        *lines(Spent(PACKET, Code("ssh", "/etc/laptop", ()))),
        *lines(Spent(PACKET, Derived("ssh", "laptop", 1_779_370_350, (), 0.0, 90.0, 59_312_345))),
        *lines(Mailed(PACKET, "vpn", "laptop", None, "")),
        *lines(Mailed(PACKET, "vpn", "laptop", SpaReason.REPLAYED, "")),
        *lines(Granted(PACKET, GRANT)),
        *lines(Revoked(PACKET, "ssh", "done")),
        closed(GRANT),
        revoked(GRANT, "done"),
        command("ssh", SRC, "it runs", bad=False),
        ban_made("192.0.2.7", 60.0, "it scans"),
        ban_lifted("192.0.2.7", "by an administrator"),
        notice("records", EVENT="lost", LOST="1"),
        notice("lines", LEFT_OUT="1"),
    ]
    return {line.fields["EVENT"]: set(line.fields) for line in every}


def test_every_event_that_the_program_tells_of_has_an_id() -> None:
    """Whatever is written as EVENT="...", or given to `_line` and `_ban_line`, anywhere in it."""
    written = set(fields_of_events())
    for module in (PROJECT / "logknock").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "EVENT":
                constants = (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
                written |= {str(value) for value in constants if value != "LOST"}
    assert written <= MESSAGE_IDS.keys()
    assert written >= MESSAGE_IDS.keys() - {"notice"}
