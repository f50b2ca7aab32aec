"""`logknock replay` as an administrator meets it: the real command, logs as daemons write them, and its answers."""

import bz2
import gzip
import json
import lzma
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock import totp
from logknock.config import load
from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE, USAGE
from logknock.logs import MAX_LOGS
from logknock.replay import parse_network, parse_when
from logknock.skipped import prefix_of
from logknock.trail import Verdict

from .config_files import write
from .e2e.world import until, write_sequences
from .netns import Host
from .peers import journald, kernel_log, own_prefix

NOBODY = 65534
BEGIN = datetime(2026, 11, 21, 10, tzinfo=UTC)

CONFIG = """
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp"]

[doors.shut]
sequence = ["7500/tcp", "7400/tcp"]
closes = ["ssh"]
"""

# Where a door of each kind is wanted.
MORE = """
[doors.aimed]
sequence = ["5000/tcp", "5100/tcp"]
opens = ["23/tcp"]
target = ["10.99.0.77"]

[doors.seldom]
sequence = ["6000/tcp", "6100/tcp"]
opens = ["24/tcp"]
cooldown = "1m"

[doors.once]
onetime = ["{folder}/once"]
opens = ["25/tcp"]
"""

OPENING = "0:a:7000/tcp 0.5:a:8000/tcp 1:a:9000/udp"
NAMES = {"a": "203.0.113.7", "b": "198.51.100.9", "c": "198.51.100.23", "s": "2001:db8::7", "l": "127.0.0.1"}


def record(src: str, service: str, *, sport: int = 0, flags: str = "SYN", out: str = "") -> str:
    """What the kernel writes behind the prefix."""
    port, _, protocol = service.partition("/")
    sport = sport or 20_000 + int(port)
    if ":" in src:
        groups = [f"{int(group or '0', 16):04x}" for group in exploded(src)]
        addresses = (
            f"SRC={':'.join(groups)} DST=fd99:0000:0000:0000:0000:0000:0000:0001 LEN=60 TC=0 HOPLIMIT=64 FLOWLBL=1"
        )
    else:
        addresses = f"SRC={src} DST=10.99.0.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=64206 DF"
    rest = f"WINDOW=64240 RES=0x00 {flags} URGP=0" if protocol == "tcp" else "LEN=9"
    return f"IN=eth0 OUT={out} MAC= {addresses} PROTO={protocol.upper()} SPT={sport} DPT={port} {rest} "


def exploded(address: str) -> list[str]:
    head, _, tail = address.partition("::")
    first, last = head.split(":"), tail.split(":")
    return [*first, *["0"] * (8 - len(first) - len(last)), *last]


def line(at: float, text: str, prefix: str = "logknock: ") -> str:
    """A line as rsyslog writes it: ISO dates."""
    when = BEGIN + timedelta(seconds=at)
    return f"{when.isoformat(timespec='microseconds')} gate kernel: [ 2247.519434] {prefix}{text}"


def story(text: str) -> list[str]:
    """`seconds:source:service[:TCP flags or source port]`, blanks between."""
    lines = []
    for word in text.split():
        at, name, service, *more = word.split(":")
        sport = int(more[0]) if more and more[0].isdigit() else 0
        flags = more[0] if more and not sport else "SYN"
        lines.append(line(float(at), record(NAMES[name], service, sport=sport, flags=flags.replace("+", " "))))
    return lines


def log(folder: Path, lines: Iterable[str], name: str = "kern.log") -> Path:
    path = folder / name
    path.write_text("".join(f"{each}\n" for each in lines))
    return path


def replay(
    config: Path, *args: str | Path, stdin: bytes = b"", start: tuple[str, ...] = ("-m", "logknock"), **env: str
) -> subprocess.CompletedProcess[str]:
    """`logknock replay` with these arguments; a minute is more than it may take."""
    argv = [sys.executable, *start, "replay", "-c", str(config), *map(str, args)]
    done = subprocess.run(
        argv, input=stdin, capture_output=True, check=False, timeout=60, env=os.environ | {"TZ": "UTC"} | env
    )
    return subprocess.CompletedProcess(argv, done.returncode, done.stdout.decode(), done.stderr.decode())


def objects(done: subprocess.CompletedProcess[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The findings and the summary of `--json`."""
    found = [json.loads(text) for text in done.stdout.splitlines()]
    return [each["finding"] for each in found[:-1]], found[-1]["summary"]


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The findings as `source door verdict`, as short as possible."""
    short = {address: name for name, address in NAMES.items()}
    return [f"{short.get(each['src'], each['src'])} {each['door']} {each['verdict']}" for each in objects(done)[0]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path, CONFIG)


@pytest.fixture
def rich_config(tmp_path: Path) -> Path:
    """A door of each kind."""
    write_sequences(tmp_path / "once", ["4000,4100,4200", "4300,4100,4000"])
    return write(tmp_path, CONFIG + MORE.format(folder=tmp_path))


# One packet, and no second try: SO_RCVTIMEO says nothing of a SYN, so the socket is closed at once.
SEND = """
import socket, sys
proto, host, port = sys.argv[1:]
kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET, kind) as one:
    one.setblocking(False)
    one.connect_ex((host, int(port)))
    if proto == "udp":
        one.send(b"")
"""


# ---- what a person sees


def test_a_log_from_its_lines_to_the_answer(tmp_path: Path, config: Path) -> None:
    """One door opens, one attempt fails, and the rest of the log is accounted for."""
    lines = [
        *story(OPENING),
        line(1.5, "eth0: link up", ""),
        *story("2:b:7000/tcp 2.25:b:8000/tcp 2.5:b:8080/tcp"),
        line(3, record(NAMES["c"], "22/tcp"), "[UFW BLOCK] "),
        line(3, record(NAMES["c"], "7000/tcp", out="eth1")),
        *story("4:c:23/tcp 5:s:7000/tcp"),
    ]
    path = log(tmp_path, lines)
    done = replay(config, path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "2026-11-21 10:00:00  203.0.113.7      7000/tcp   ssh   stage 1 of 3",
        "2026-11-21 10:00:00.500  203.0.113.7      8000/tcp   ssh   stage 2 of 3",
        "2026-11-21 10:00:01.000  203.0.113.7      9000/udp   ssh   stage 3 of 3",
        "2026-11-21 10:00:01.000  203.0.113.7      9000/udp   ssh   opened for 30 s",
        "2026-11-21 10:00:02.000  198.51.100.9     7000/tcp   ssh   stage 1 of 3",
        "2026-11-21 10:00:02.250  198.51.100.9     8000/tcp   ssh   stage 2 of 3",
        "2026-11-21 10:00:02.500  198.51.100.9     8080/tcp   ssh   wrong port at stage 2 of 3: 9000/udp was expected",
        "2026-11-21 10:00:05.000  2001:db8::7      7000/tcp   ssh   stage 1 of 3",
        "2026-11-21 10:00:20.000  2001:db8::7                 ssh   "
        "given up at stage 1 of 3: 8000/tcp did not come within 15 s of the first knock",
        "",
        str(path),
        "  from      2026-11-21 10:00:00",
        "  to        2026-11-21 10:00:05",
        "  records   11",
        "  packets   8 from 4 sources",
        "  skipped   1 no firewall record, 1 another prefix, 1 not in a direction that counts",
        "  prefixes  others' were '[UFW BLOCK]' (1)",
        "  opened    ssh once",
        "  failed    1 by a wrong port, 1 by timeout",
        "  noise     1 packet that no door knows",
        "",
        "came closest",
        "  198.51.100.9, stage 2 of 3",
        "    wrong port at stage 2 of 3: 9000/udp was expected",
        "    ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 15 s; it got to stage 2 of 3",
        "  2001:db8::7, stage 1 of 3",
        "    given up at stage 1 of 3: 8000/tcp did not come within 15 s of the first knock",
        "    ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 15 s; it got to stage 1 of 3",
    ]


def test_whole_seconds_are_told_as_such_and_in_local_time(tmp_path: Path, config: Path) -> None:
    """The traditional head: no year, which is the file's, no zone, which is this host's."""
    text = record("192.0.2.1", "7000/tcp")
    path = log(tmp_path, [f"Dec 31 11:00:0{at} gate kernel: logknock: {text}" for at in (0, 2)])
    os.utime(path, (datetime(2024, 1, 2, tzinfo=UTC).timestamp(),) * 2)
    done = replay(config, path, TZ="Europe/Berlin")
    assert done.stdout.splitlines()[0] == "2023-12-31 11:00:00  192.0.2.1        7000/tcp   ssh   stage 1 of 3"
    assert "  from     2023-12-31 11:00:00" in done.stdout.splitlines()


def test_quiet_is_the_summary_alone(tmp_path: Path, config: Path) -> None:
    path = log(tmp_path, story(OPENING))
    assert replay(config, path, "--quiet").stdout == replay(config, path, "--summary").stdout
    assert replay(config, path, "-q").stdout.splitlines()[:2] == ["", str(path)]


# ---- every verdict

STORIES: list[Any] = [
    pytest.param(OPENING, "a ssh advanced, a ssh advanced, a ssh advanced, a ssh opened", id="opened"),
    pytest.param(
        f"{OPENING} 5:a:7500/tcp 5.5:a:7400/tcp",
        "a ssh advanced, a ssh advanced, a ssh advanced, a ssh opened, "
        "a ssh done, a shut advanced, a ssh done, a shut advanced, a shut closed",
        id="closed, and done before",
    ),
    pytest.param("0:a:7000/tcp 1:a:1/tcp", "a ssh advanced, a ssh wrong", id="wrong"),
    pytest.param("0:a:7000/tcp", "a ssh advanced, a ssh timeout", id="timeout at the end of the log"),
    pytest.param("0:a:7000/tcp 15.5:a:8000/tcp", "a ssh advanced, a ssh timeout, a ssh late", id="late"),
    pytest.param(
        "0.9:a:7000/tcp 15.2:b:1/tcp 16:a:8000/tcp",
        "a ssh advanced, b  unknown, a ssh timeout",
        id="timeout by a packet",
    ),
    pytest.param("9:a:7000/tcp 5:a:8000/tcp", "a ssh advanced, a ssh clock", id="clock"),
    pytest.param(
        "0:a:4000/tcp 1:a:4100/tcp 2:b:4000/tcp 3:b:4100/tcp 4:b:4200/tcp 5:a:4200/tcp 6:a:4300/tcp "
        "7:a:4100/tcp 8:a:4000/tcp",
        "a once advanced, a once advanced, b once advanced, b once advanced, b once advanced, b once used, "
        "b once opened, a once spent, a once advanced, a once advanced, a once advanced, "
        "a once used, a once opened",
        id="used and spent",
    ),
    pytest.param(
        "0:a:6000/tcp 1:a:6100/tcp 40:a:6000/tcp:1 41:a:6100/tcp:2 62:a:6000/tcp:3 63:a:6100/tcp:4",
        "a seldom advanced, a seldom advanced, a seldom opened, a seldom advanced, a seldom advanced, "
        "a seldom cooldown, a seldom advanced, a seldom advanced, a seldom opened",
        id="cooldown",
    ),
    pytest.param(
        "0:l:7000/tcp 1:l:8000/tcp 2:l:9000/udp",
        "l ssh advanced, l ssh advanced, l ssh advanced, l ssh refused",
        id="T37: refused",
    ),
    pytest.param("0:a:7000/tcp 0.1:a:7000/tcp", "a ssh advanced, a ssh resend, a ssh timeout", id="resend"),
    pytest.param("0:a:7000/tcp:ACK", "a ssh flags", id="flags"),
    pytest.param("0:a:5000/tcp", "a aimed target", id="target"),
    pytest.param("0:a:7000/tcp 1:a:22/tcp", "a ssh advanced, a ssh guarded, a ssh timeout", id="guarded"),
    pytest.param("0:a:1/udp", "a  unknown", id="unknown"),
]


@pytest.mark.parametrize(("text", "expected"), STORIES)
def test_each_packet_gets_the_verdict_that_the_daemon_would_come_to(
    text: str, expected: str, tmp_path: Path, rich_config: Path
) -> None:
    assert ", ".join(told(replay(rich_config, log(tmp_path, story(text)), "--json", "--all"))) == expected


def test_the_first_of_too_many_in_a_64_gives_way(tmp_path: Path, config: Path) -> None:
    """T17: the last of the verdicts, evicted."""
    lines = [line(at / 1000, record(f"2001:db8::{at:x}", "7000/tcp")) for at in range(1, 259)]
    found = objects(replay(config, log(tmp_path, lines), "--json"))[0]
    assert [each["src"] for each in found if each["verdict"] == Verdict.EVICTED] == ["2001:db8::1", "2001:db8::2"]


def test_no_verdict_is_without_a_story() -> None:
    told_in_stories = {word.rstrip(",") for story in STORIES for word in story.values[1].split()}
    # Evicted has a test of its own; stale is what waited too long for the daemon, and a log's clock waits for nobody.
    # A log has nothing of what a single packet (SPA) carries, and these doors have no clients that derive anything.
    mailed = {Verdict.ACCEPTED, Verdict.REJECTED, Verdict.AGE}
    derived = {Verdict.REPLAYED, Verdict.OUTSIDE, Verdict.WARY}
    assert set(Verdict) - told_in_stories == {Verdict.EVICTED, Verdict.STALE} | mailed | derived


# ---- what is asked


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """One that opens ssh, one that does not, and noise of both."""
    return log(
        tmp_path,
        story(f"{OPENING} 2:a:1/tcp 60:b:7000/tcp 61:s:7500/tcp 61.5:s:7400/tcp 62:b:1/udp 63:b:2/udp 64:c:3/tcp"),
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        pytest.param("--from 198.51.100.9", "b ssh advanced, b ssh wrong, b  unknown", id="one source, with its noise"),
        pytest.param("--from ::ffff:198.51.100.9", "b ssh advanced, b ssh wrong, b  unknown", id="T27: IPv4 in IPv6"),
        pytest.param("--from 2001:DB8:0:0::7", "s shut advanced, s shut advanced, s shut closed", id="T27: IPv6"),
        pytest.param("--from 198.51.100.0/24 --door ssh", "b ssh advanced, b ssh wrong", id="a network, and a door"),
        pytest.param("--from 192.0.2.1", "", id="a source that is not there"),
        pytest.param("--door shut", "s shut advanced, s shut advanced, s shut closed", id="one door"),
        pytest.param("--since 10:00:30 --door ssh", "b ssh advanced, b ssh wrong", id="since a time of today"),
        pytest.param("--since 2026-11-21T11:00:30+01:00 --door ssh", "b ssh advanced, b ssh wrong", id="with a zone"),
        pytest.param("--until 2026-11-21T10:00:00.6 --door ssh", "a ssh advanced, a ssh advanced, a ssh timeout",
                     id="until a moment in the middle of an attempt"),
    ],
)  # fmt: skip
def test_only_what_is_asked_is_told(args: str, expected: str, two: Path, config: Path) -> None:
    if "10:00:30" in args.split():
        args = args.replace("10:00:30", "2026-11-21T10:00:30")
    assert ", ".join(told(replay(config, two, "--json", *args.split()))) == expected


def test_until_is_not_where_the_first_record_after_it_stands(tmp_path: Path, config: Path) -> None:
    """Records of one log may be out of order."""
    path = log(tmp_path, story("0:a:7000/tcp 40:b:7000/tcp 1:a:8000/tcp 2:a:9000/udp"))
    done = replay(config, path, "--json", "--until", "2026-11-21T10:00:10Z")
    assert told(done) == ["a ssh advanced", "a ssh advanced", "a ssh advanced", "a ssh opened"]
    assert objects(done)[1]["outside"] == 1


def test_noise_is_counted_and_shown_on_request(two: Path, config: Path) -> None:
    quiet, loud = replay(config, two), replay(config, two, "--all")
    assert "means nothing: no door begins with 3/tcp" in loud.stdout
    assert "3/tcp" not in quiet.stdout
    assert all("  noise    2 packets that no door knows" in done.stdout.splitlines() for done in (quiet, loud))


def test_one_who_is_asked_about_hears_what_would_have_opened(two: Path, config: Path) -> None:
    done = replay(config, two, "--from", NAMES["b"])
    assert done.stdout.splitlines()[-4:] == [
        "came closest",
        "  198.51.100.9, stage 1 of 3",
        "    wrong port at stage 1 of 3: 8000/tcp was expected",
        "    ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 15 s; it got to stage 1 of 3",
    ]


def test_one_of_whom_there_is_only_noise_hears_it_too(two: Path, config: Path) -> None:
    done = replay(config, two, "--from", NAMES["c"], "--door", "shut")
    assert "came closest" not in done.stdout
    done = replay(config, two, "--from", NAMES["c"])
    assert done.stdout.splitlines()[-4:] == [
        "came closest",
        "  198.51.100.23",
        "    ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 15 s",
        "    shut opens with 7500/tcp, 7400/tcp within 15 s",
    ]
    row = "  asked    nothing of 192.0.2.99: do its packets come here, and does a rule log them?"
    assert row in replay(config, two, "--from", "192.0.2.99").stdout.splitlines()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(["--from", "host.example"], "'host.example' is no address", id="a name"),
        pytest.param(["--from", "fe80::1%eth0"], "has a zone", id="T27: a zone"),
        pytest.param(["--since", "tomorrow"], "'tomorrow' is no time", id="a time that is none"),
        pytest.param(["--door", "cellar"], "the doors are: ssh, shut", id="a door that is not there"),
        pytest.param(["--plot", "kern.log"], "ends in .svg", id="a picture over a log"),
    ],
)
def test_wrong_questions_are_told_as_such(args: list[str], message: str, two: Path, config: Path) -> None:
    done = replay(config, two, *args)
    assert done.returncode == USAGE
    assert message in done.stderr


def test_times_are_written_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        now = datetime(2026, 11, 21, 14, 30, 5, tzinfo=UTC).timestamp()
        for text, hours in {
            "now": 14 + 30 / 60 + 5 / 3600,
            "2h ago": 12 + 30 / 60 + 5 / 3600,
            "-1h30m": 13 + 5 / 3600,
            "today": -1,
            "yesterday": -25,
            "10:00": 9,
            "10:00:30": 9 + 30 / 3600,
            "2026-11-21 10:00": 9,
            "2026-11-21": -1,
            "2026-11-21T10:00:00Z": 10,
            "2026-11-21T10:00:00+05:00": 5,
            "2026-07-01 12:00": (datetime(2026, 7, 1) - datetime(2026, 11, 21)).total_seconds() / 3600 + 10,
        }.items():
            midnight = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
            assert parse_when(text, now) == pytest.approx(midnight + hours * 3600), text
        for text in ("", "soon", "25:00", "2026-13-01", "1 ago", "-", "9999999999d ago", "2h", "\u0661\u0660:00"):
            with pytest.raises(ValueError, match="is no time"):
                parse_when(text, now)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_t27_one_address_in_all_its_forms() -> None:
    """T27: those of a network, too."""
    assert str(parse_network("::ffff:192.0.2.7")) == "192.0.2.7/32"
    assert str(parse_network("::ffff:192.0.2.7/120")) == "192.0.2.0/24"
    assert parse_network("2001:db8:0::7") == parse_network("2001:0DB8:0:0:0:0:0:7")
    assert str(parse_network("192.0.2.7/24")) == "192.0.2.0/24"


# ---- logs


PACKERS: list[Any] = [
    pytest.param(lambda data: data, id="plain"),
    pytest.param(gzip.compress, id="gzip"),
    pytest.param(lzma.compress, id="xz"),
    pytest.param(bz2.compress, id="bzip2"),
]


@pytest.mark.parametrize("pack", PACKERS)
def test_a_packed_log_is_known_by_its_content(pack: Callable[[bytes], bytes], tmp_path: Path, config: Path) -> None:
    """Also through standard input and through a FIFO."""
    data = pack("\n".join(story(OPENING)).encode())  # without a last newline
    path = tmp_path / "kern.log.1"
    path.write_bytes(data)
    for source, stdin in ((path, b""), ("-", data), ("/dev/fd/0", data)):
        assert told(replay(config, source, "--json", stdin=stdin))[-1] == "a ssh opened"


def test_xz_in_several_streams_is_one_log(tmp_path: Path, config: Path) -> None:
    """As `cat a.xz b.xz` makes it, padded or not; what is large comes in pieces."""
    first, *rest = story(OPENING)
    padding = "\n".join(["", *(os.urandom(4_000).hex() for _ in range(100)), ""])
    parts = [lzma.compress(part.encode()) for part in (first + padding, "\n".join(rest))]
    for between in (b"", bytes(4), bytes(400_000)):
        assert told(replay(config, "-", "--json", stdin=between.join(parts) + between))[-1] == "a ssh opened"


def test_xz_that_takes_too_much_memory_is_left_to_xz(tmp_path: Path, config: Path) -> None:
    """A few bytes can ask for 4 GiB; what `xz -9` makes is read."""
    path = tmp_path / "kern.log.xz"
    large = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 256 << 20}]
    text = "\n".join(story(OPENING)).encode()
    path.write_bytes(lzma.compress(text, filters=large))
    done = replay(config, path, "-q")
    assert done.returncode == FAILURE
    assert f"{path}: unpacking it takes more than 80 MiB of memory, so give it as - from `xz -dc`" in done.stderr
    path.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert replay(config, path, "-q").returncode == 0


def test_several_logs_are_one_in_the_order_of_time(tmp_path: Path, config: Path) -> None:
    """Rotated files, one of them packed, in any order; standard input among them."""
    first, second, third = story(OPENING)
    (tmp_path / "kern.log.1").write_bytes(gzip.compress(second.encode()))
    logs: list[str | Path] = [log(tmp_path, [third]), "-", tmp_path / "kern.log.1"]
    done = replay(config, *logs, "--json", stdin=first.encode())
    assert told(done) == ["a ssh advanced", "a ssh advanced", "a ssh advanced", "a ssh opened"]


def test_t10_a_packet_that_stands_in_two_logs_counts_once(tmp_path: Path, config: Path) -> None:
    """T10: a second copy of the wrong kind would be a resend; one of the last knock's, a knock after the opening."""
    lines = story(f"{OPENING} 2:b:7000/tcp 3:b:7001/tcp")
    done = replay(config, log(tmp_path, lines), log(tmp_path, lines, "messages"), "--json")
    assert told(done) == told(replay(config, log(tmp_path, lines), "--json"))
    summary = objects(done)[1]
    assert (summary["records"], summary["packets"], summary["copies"]) == (10, 5, 5)


def test_a_log_that_is_out_of_order_stays_in_its_own_order(tmp_path: Path, config: Path) -> None:
    """Else a clock that stepped back would look like a knock in time."""
    lines = story("9:a:7000/tcp 5:a:8000/tcp 6:a:9000/udp")
    other = story("5.5:b:7000/tcp 20:b:1/tcp")
    done = replay(config, log(tmp_path, lines), log(tmp_path, other, "other"), "--json")
    assert [text for text in told(done) if text.startswith("a")] == ["a ssh advanced", "a ssh clock"]


def test_a_journal_of_a_real_journald(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """A host's own by its word, and as a directory, a file, or as JSON that somebody exported."""
    gateway, client = hosts
    prefix = own_prefix()
    config = write(tmp_path, CONFIG + f'[log]\nprefix = "{prefix}"\n')
    gateway.nft(
        "table inet t { chain c { type filter hook prerouting priority mangle; policy accept;\n"
        f'meta l4proto {{ tcp, udp }} log prefix "{prefix}: " drop\n}}; }}'
    )
    with kernel_log(), journald(gateway, tmp_path) as host:
        until(lambda: knocked(client, host, prefix), "the last knock in the journal")
        exported = host.run("journalctl", "-o", "json", "-k").stdout
        folder = host.run("sh", "-c", "echo /run/log/journal/*").stdout.strip()
        for args in (["journal"], ["journal", "--since", "1h ago"], ["/run/log/journal"], [folder],
                     [f"{folder}/system.journal"]):  # fmt: skip
            done = host.logknock("replay", "-c", str(config), "--json", *args)
            assert [each["verdict"] for each in objects(done)[0]] == ["advanced"] * 3 + ["opened"], args
            assert {each["src"] for each in objects(done)[0]} == {client.ipv4}
    assert objects(replay(config, "-", "--json", stdin=exported.encode()))[1]["opened"] == {"ssh": 1}
    ours = "\n".join(entry for entry in exported.splitlines() if prefix in entry and "SRC=" in entry)
    nothing = replay(write(tmp_path, CONFIG), "-", stdin=ours.encode())
    assert f"hint: prefixes there: {prefix!r} (3)" in nothing.stderr


def knocked(client: Host, host: Host, prefix: str) -> bool:
    """Knock, until the journal has a whole opening; each knock is waited for, and sent once."""
    for number, (port, proto) in enumerate(((7000, "tcp"), (8000, "tcp"), (9000, "udp")), 1):
        client.python(SEND, proto, host.ipv4, str(port))
        find = ("journalctl", "-q", "-o", "cat", "-g", f"^{prefix}: .* DPT={port} ")
        until(lambda: host.run(*find, check=False).stdout, f"knock {number} in the journal")  # noqa: B023
    return True


def test_years_of_logs_are_too_many_files(tmp_path: Path, config: Path) -> None:
    done = replay(config, *[log(tmp_path, [])] * (MAX_LOGS + 1))
    assert done.returncode == FAILURE
    assert done.stderr.startswith("logknock: 401 logs, and 400 are the most\nhint: ")


def test_standard_input_is_read_once(config: Path) -> None:
    assert replay(config, "-", "-").stderr == "logknock: standard input is named twice\nhint: name it once\n"


def test_what_comes_through_a_pipe_is_told_as_it_comes_and_ctrl_c_ends_with_the_summary(config: Path) -> None:
    # Whoever started the tests may ignore SIGINT (`&` in a script), and children inherit that.
    argv = ["env", "--default-signal", sys.executable, "-m", "logknock", "replay", "-c", str(config), "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write("".join(f"{each}\n" for each in story("0:a:7000/tcp 1:a:8000/tcp")).encode())
            process.stdin.flush()
            for stage in (1, 2):
                assert select.select([process.stdout], [], [], 30)[0]
                assert process.stdout.readline().endswith(f"stage {stage} of 3\n".encode())
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr.read() == b""
            rest = process.stdout.read().decode().splitlines()
        finally:
            process.kill()
    assert rest[1] == "standard input, as far as it was read"
    assert "  packets  2 from 1 source" in rest


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, config: Path) -> None:
    path = log(tmp_path, story(OPENING) * 2_000)
    command = f"{sys.executable} -m logknock replay -c {config} {path} --all | head -n1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == str(FAILURE)


# ---- logs that are not what they should be


@pytest.mark.parametrize("pack", PACKERS[1:])
def test_a_damaged_log_ends_where_it_is_damaged(pack: Callable[[bytes], bytes], tmp_path: Path, config: Path) -> None:
    """What was read counts, what is missing is said, the other logs are read."""
    path = tmp_path / "kern.log.1"
    path.write_bytes(pack("\n".join(story(OPENING) * 5_000).encode())[:-30])
    done = replay(config, path, log(tmp_path, story("9:b:7000/tcp")), "-q")
    assert done.returncode == FAILURE
    assert done.stderr.startswith(f"logknock: {path}: ")
    assert done.stderr.endswith("what comes after that is missing\n")
    assert len(done.stderr.splitlines()) == 1
    assert f"{path}, {tmp_path}/kern.log" in done.stdout


def test_bad_input_is_passed_over_and_counted(tmp_path: Path, config: Path) -> None:
    """T26: junk, a line of 10 MiB, half a line at the end."""
    path = tmp_path / "kern.log"
    junk = [os.urandom(64).replace(b"\n", b""), b"\xff" * 10 * 2**20, b"", b"\0" * 100, b"{", b'{"MESSAGE":1}']
    knocks = [text.encode() for text in story(OPENING)]
    path.write_bytes(b"\n".join([*junk, *knocks, story("2:b:7000/tcp")[0].encode()[:-20]]))
    done = replay(config, path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    findings, summary = objects(done)
    assert [each["verdict"] for each in findings] == ["advanced", "advanced", "advanced", "opened"]
    assert summary["skipped"]["too long"] == 1
    assert summary["skipped"]["malformed, or not from the kernel"] == 1


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        pytest.param("", USAGE, "the name of a log is empty", id="no name"),
        pytest.param("nowhere", UNAVAILABLE, "No such file or directory", id="a missing file"),
        pytest.param("empty", FAILURE, "there is no journal in this directory", id="a directory that is no journal"),
        pytest.param("/dev/null", FAILURE, "is no file", id="a device"),
        pytest.param("nowhere/system.journal", UNAVAILABLE, "No such file or directory", id="a missing journal"),
    ],
)
def test_what_cannot_be_read_is_one_error_before_anything_is_printed(
    name: str, code: int, message: str, tmp_path: Path, config: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = replay(config, log(tmp_path, story(OPENING)), tmp_path / name if name else "")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"logknock: {tmp_path / name if name else 'the name'}")
    assert message in done.stderr.splitlines()[0]


def test_a_log_that_may_not_be_read() -> None:
    """Whoever asks is told who may."""
    as_nobody = (
        f"import os, logknock.cli.replay\nos.setgroups([])\nos.setresgid({NOBODY}, {NOBODY}, {NOBODY})\n"
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\nlogknock.cli.main()"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        config = write(folder, CONFIG)
        os.chown(config, NOBODY, NOBODY)
        path = log(folder, story(OPENING))
        path.chmod(0o600)
        (folder / "journal").mkdir(0o700)
        for log_name in (path, folder / "journal", folder / "journal/system"):
            done = replay(config, log_name, start=("-c", as_nobody))
            assert done.returncode == NO_PERMISSION
            assert done.stderr.splitlines() == [
                f"logknock: {log_name}: Permission denied",
                "hint: run this as root, or as a member of the group adm",
            ]


def test_a_wrong_configuration_comes_first(tmp_path: Path) -> None:
    assert replay(write(tmp_path, "[log"), tmp_path / "nowhere").returncode == BAD_CONFIG


def test_a_log_with_other_prefixes_says_which(tmp_path: Path, config: Path) -> None:
    """What people get wrong most."""
    prefixes = ["[UFW BLOCK] ", "Shorewall:net-fw:DROP:", "[UFW BLOCK] "]
    path = log(tmp_path, [line(at, record("192.0.2.1", "7000/tcp"), prefix) for at, prefix in enumerate(prefixes)])
    done = replay(config, path)
    assert done.returncode == FAILURE
    assert done.stderr.splitlines() == [
        f"logknock: no record of {path} has the prefix 'logknock'",
        "hint: prefixes there: '[UFW BLOCK]' (2), 'Shorewall:net-fw:DROP' (1); put yours into [log] prefix",
    ]
    assert "  packets   0 from 0 sources" in done.stdout.splitlines()


@pytest.mark.parametrize("written", [" logknock: ", "logknock", "logknock :", "\tlogknock\t"])
def test_blanks_round_a_prefix_do_not_count(written: str, tmp_path: Path, config: Path) -> None:
    """Else it would neither match nor be told as another one."""
    knocks = [text.replace("logknock: ", written + ("" if written.endswith(" ") else " ")) for text in story(OPENING)]
    done = replay(config, log(tmp_path, knocks), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert objects(done)[1]["opened"] == {"ssh": 1}


def test_holes_are_counted(config: Path) -> None:
    """NULs stand where a log was cut off while somebody wrote to it."""
    done = replay(config, "-", "--json", stdin=bytes(1 << 20))
    assert done.returncode == FAILURE
    assert done.stderr.splitlines()[1].startswith("hint: no firewall record was found")
    assert (objects(done)[1]["records"], objects(done)[1]["skipped"]) == (1, {"nothing but NULs": 1})
    between = story(OPENING)[0].encode() + b"\n" + bytes(1 << 20) + story(OPENING)[1].encode()
    summary = objects(replay(config, "-", "--json", stdin=between))[1]
    assert (summary["packets"], summary["skipped"]) == (2, {"nothing but NULs": 1})


def test_a_log_without_firewall_records_says_so(tmp_path: Path, config: Path) -> None:
    done = replay(config, log(tmp_path, [line(0, "eth0: link up", "")]))
    assert done.returncode == FAILURE
    assert "hint: no firewall record was found" in done.stderr
    done = replay(config, log(tmp_path, []))
    assert done.stderr.splitlines()[1] == "hint: there is no record in it at all"


def test_records_with_the_prefix_that_are_no_knocks_are_no_wrong_prefix(tmp_path: Path, config: Path) -> None:
    lines = [line(0, record("192.0.2.1", "7000/tcp").replace("PROTO=TCP", "PROTO=47"))]
    done = replay(config, log(tmp_path, lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert "  skipped  1 neither TCP nor UDP" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        pytest.param("Nov 21 10:00:00 gate kernel: [ 2247.519434] fw: IN=eth0 OUT= SRC=1.2.3.4", "fw", id="rsyslog"),
        pytest.param("Nov  1 10:00:00 gate kernel: fw IN=eth0 OUT= SRC=1.2.3.4", "fw", id="without the uptime"),
        pytest.param("2026-11-21T10:00:00+00:00 gate kernel: [UFW BLOCK] IN= SRC=1.2.3.4", "[UFW BLOCK]", id="ISO"),
        pytest.param("Nov 21 10:00:00 gate fw: IN=eth0 OUT= MAC= SRC=1.2.3.4", "fw", id="LOGEMU"),
        pytest.param("[ 2247.519434] fw: IN=eth0 OUT= SRC=1.2.3.4", "fw", id="dmesg"),
        pytest.param("IN=eth0 OUT= SRC=1.2.3.4", "", id="no prefix"),
        pytest.param('{"oob.prefix": "fw: ", "src_ip": "1.2.3.4"}', "fw", id="ulogd2's JSON"),
        pytest.param('{"MESSAGE": "fw: IN=eth0 OUT= SRC=1.2.3.4"}', "fw", id="journalctl's JSON"),
        pytest.param("Nov 21 10:00:00 gate root: fw: IN=eth0 OUT= SRC=1.2.3.4", "root: fw", id="T22: logger's"),
        pytest.param("Nov 21 10:00:00 gate kernel: eth0: link up", None, id="no firewall's"),
        pytest.param("\x1b[31mIN=eth0 SRC=1.2.3.4", "\\x1b[31m", id="what would write to the terminal"),
    ],
)
def test_prefixes_are_told_as_the_configuration_would_have_them(text: str, prefix: str | None) -> None:
    assert prefix_of(text.encode()) == prefix


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: b"kernel: " + data + b"IN= SRC=" + data))
def test_t26_any_bytes_have_a_prefix_or_none(data: bytes) -> None:
    """T26: and it leaves the terminal as it was."""
    prefix = prefix_of(data)
    assert prefix is None or prefix.isprintable()


# ---- one-time sequences


def test_t18_replay_uses_sequences_up_and_leaves_no_trace(tmp_path: Path, rich_config: Path) -> None:
    """T18: each once, in the file's order; nothing is written, nothing of the file is told."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    knocks = "0:a:4000/tcp 1:a:4100/tcp 2:a:4200/tcp 20:b:4000/tcp 21:b:4100/tcp 22:b:4200/tcp"
    data = "\n".join(story(knocks)).encode()
    done = replay(rich_config, "-", stdin=data)
    assert done.stdout.count("opened for") == 1
    assert "One-time files and clients' steps count as unused at first" in done.stdout
    assert "4300" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert objects(replay(rich_config, "-", "--json", stdin=data))[1]["opened"] == {"once": 1}


def test_a_file_of_sequences_that_cannot_be_read_is_a_problem_and_no_end(tmp_path: Path, rich_config: Path) -> None:
    (tmp_path / "once").unlink()
    done = replay(rich_config, log(tmp_path, story(OPENING)), "--json")
    assert done.returncode == FAILURE
    assert done.stderr.startswith(f"logknock: once: {tmp_path}/once: ")
    assert objects(done)[1]["opened"] == {"ssh": 1}


# ---- doors whose clients derive their sequences, and single packets

DERIVED = """
[totp]
host = "gate.example"

[doors.lab]
opens = ["22/tcp"]
totp = {{}}

[clients.lab.laptop]
secret = "{secret}"

[doors.phone]
opens = ["23/tcp"]
totp = {{code = 6}}

[clients.phone.anna]
secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
"""

SPA = """
[doors.mail]
opens = ["24/tcp"]
spa = {}

[clients.mail.laptop]
key_base64 = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
hmac_key_base64 = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI="
allow = ["24/tcp"]
"""

SECRET = bytes(range(32))


def knocked_at(path: str, at: float, name: str, *, off: int = 0, src: str = "a") -> str:
    """A story of the knocks that the client sends at that time, its clock so many steps off."""
    config = load(Path(path))
    (found,) = [each for each in config.totp if each.door == name]
    step = totp.step_at(BEGIN.timestamp() + at, found.step) + off
    services = totp.sequence_of(found, found.clients[0], step)
    return " ".join(f"{at + 0.1 * number}:{src}:{service}" for number, service in enumerate(services))


def test_derived_sequences_are_those_of_the_logs_own_time(tmp_path: Path) -> None:
    """T18, T19: each once, in its time, whatever the time is now; an hour's silence in between is nothing."""
    path = str(write(tmp_path, DERIVED.format(secret=totp.format_secret(SECRET))))
    words = [
        knocked_at(path, 5.0, "lab"),
        knocked_at(path, 12.0, "lab", src="b"),
        knocked_at(path, 40.0, "lab"),
        knocked_at(path, 3600.0, "lab"),
        knocked_at(path, 3625.0, "lab", off=2),
        knocked_at(path, 3700.0, "phone"),
    ]
    done = replay(Path(path), log(tmp_path, story(" ".join(words))), "--json")
    findings, summary = objects(done)
    assert summary["opened"] == {"lab": 3, "phone": 1}
    assert {"replayed", "outside"} <= {each["verdict"] for each in findings}
    assert summary["onetime"] is True
    assert totp.format_secret(SECRET) not in done.stdout


def test_of_spa_doors_a_log_tells_nothing_which_is_said(tmp_path: Path) -> None:
    done = replay(write(tmp_path, CONFIG + SPA), log(tmp_path, story(OPENING)))
    assert "What opens mail is not told here: a log carries no payload, and so no SPA packet." in done.stdout
    assert objects(replay(write(tmp_path, CONFIG + SPA), tmp_path / "kern.log", "--json"))[1]["spa"] == ["mail"]


# ---- for programs


def test_json_has_a_line_for_each_finding_and_the_summary_at_the_end(tmp_path: Path, config: Path) -> None:
    path = log(tmp_path, [*story(f"{OPENING} 2:b:7000/tcp 3:b:1/tcp"), "else"])
    findings, summary = objects(replay(config, path, "--json"))
    assert findings[0] == {
        "time": BEGIN.timestamp(),
        "src": "203.0.113.7",
        "service": "7000/tcp",
        "door": "ssh",
        "stage": 1,
        "of": 3,
        "verdict": "advanced",
        "words": "stage 1 of 3",
    }
    assert summary == {
        "logs": [str(path)],
        "first": BEGIN.timestamp(),
        "last": BEGIN.timestamp() + 3,
        "records": 6,
        "packets": 5,
        "copies": 0,
        "outside": 0,
        "sources": 2,
        "findings": 6,
        "noise": 0,
        "opened": {"ssh": 1},
        "closed": {},
        "failed": {"wrong": 1},
        "other": {},
        "skipped": {"no firewall record": 1},
        "prefixes": {},
        "close": [
            {
                "src": "198.51.100.9",
                "stage": 1,
                "of": 3,
                "why": "wrong port at stage 1 of 3: 8000/tcp was expected",
                "advice": [
                    "ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 15 s; it got to stage 1 of 3",
                ],
            }
        ],
        "problems": [],
        "onetime": False,
        "spa": [],
        "interrupted": False,
    }


def test_the_picture_is_an_svg_with_a_row_for_each_source(two: Path, tmp_path: Path, config: Path) -> None:
    """Those that got furthest first."""
    done = replay(config, two, "-q", "--plot", tmp_path / "knocks.svg")
    assert done.stdout.endswith(f"\nThe time line is in {tmp_path}/knocks.svg.\n")
    drawn = ElementTree.parse(tmp_path / "knocks.svg").getroot()  # noqa: S314  # our own
    words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert (words[1] or "").startswith("2026-11-21 10:00:00 to 10:01:04 (UTC+00:00), 1 min 4 s; drawn: ")
    names = [words.index(NAMES[name]) for name in "asb"]
    assert names == sorted(names)
    assert words[names[0] + 1] == "opened ssh"
    assert words[names[2] + 1] == "stage 1 of 3, wrong port"
    assert NAMES["c"] not in words
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_picture_that_cannot_be_is_told_before_anything_is_read(two: Path, tmp_path: Path, config: Path) -> None:
    done = replay(config, two, "--plot", tmp_path / "nowhere/knocks.svg")
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert done.stderr.startswith(f"logknock: {tmp_path}/nowhere/knocks.svg: No such file or directory\nhint: ")


@pytest.mark.parametrize("logs", [["nowhere"], ["kern.log"], ["quiet"]], ids=["no log", "a full disk", "little"])
def test_a_picture_that_fails_leaves_the_one_before(logs: list[str], two: Path, tmp_path: Path, config: Path) -> None:
    (tmp_path / "knocks.svg").write_text("before")
    log(tmp_path, story("0:a:1/tcp"), "quiet")
    limited = f"ulimit -f 0; exec {sys.executable} -m logknock replay -c {config} --plot knocks.svg {' '.join(logs)}"
    done = subprocess.run(["sh", "-c", limited], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (FAILURE, UNAVAILABLE)
    assert ("logknock: knocks.svg: File too large\nhint: " in done.stderr) == (logs != ["nowhere"])
    assert len(done.stderr.splitlines()) == 2
    assert (tmp_path / "knocks.svg").read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# ---- on a terminal


def on_terminal(config: Path, lines: Callable[[], Iterator[str]], seen: str, **env: str) -> str:
    """What a terminal shows while the lines come through a pipe, up to what is to be seen."""
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    master, slave = pty.openpty()
    argv = [sys.executable, "-m", "logknock", "replay", "-c", str(config), "-"]
    shown = b""
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=slave, stderr=slave, env=plain | {"TZ": "UTC"} | env
    ) as process:
        os.close(slave)
        assert process.stdin is not None
        end = time.monotonic() + 30
        for each in lines():
            process.stdin.write(each.encode() + b"\n")
            while select.select([master], [], [], 0)[0]:
                shown += os.read(master, 65_536)
            if seen.encode() in shown or time.monotonic() > end:
                break
        process.stdin.close()
        while chunk := read(master):
            shown += chunk
    os.close(master)
    return shown.decode()


def read(terminal: int) -> bytes:
    """What comes next; nothing once the other end is closed (which a terminal tells by an error)."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""


def noise() -> Iterator[str]:
    while True:
        yield from story("0:b:1/tcp") * 64


def test_a_terminal_sees_how_far_it_is_and_then_a_clean_line(config: Path) -> None:
    shown = on_terminal(config, noise, " a second")
    assert re.search(r"\r\x1b\[K[\d,]+ records, [\d,]+ a second\r\x1b\[K\r\n", shown)


@pytest.mark.parametrize(("env", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_sees_colours_unless_it_wants_none(env: dict[str, str], colour: bool, config: Path) -> None:
    shown = on_terminal(config, lambda: iter(story(OPENING)), "never", **env)
    assert ("\x1b[32m" in shown) is colour


# ---- memory

MEASURED = """
import sys
from pathlib import Path
import logknock.cli.replay
from logknock import replay, trail
logknock.cli.replay.MAX_COUNTED = replay.MAX_COUNTED = trail.MAX_LATE = replay.MAX_FINDINGS = 1_000
try:
    logknock.cli.main()
finally:
    status = Path("/proc/self/status").read_text()
    print("peak", status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


def peak(config: Path, path: Path, count: int) -> int:
    """How much memory a replay takes at most, in KiB, where so many sources knock, each once or at nothing."""
    with path.open("w") as file:
        for number in range(count):
            src = f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            file.write(line(number * 0.05, record(src, f"{7000 + number % 3}/tcp")) + "\n")
    done = replay(config, path, "-q", "--plot", path.with_suffix(".svg"), start=("-c", MEASURED))
    assert f"  packets  {count:,} from 1,000 or more sources" in done.stdout.splitlines()
    assert "  failed   " in done.stdout
    return int(done.stderr.split()[-1])


def test_memory_does_not_grow_with_the_log(tmp_path: Path, config: Path) -> None:
    """T13: nor does the picture."""
    small, large = (peak(config, tmp_path / f"{count}.log", count) for count in (20_000, 120_000))
    assert large < 1.1 * small
    assert (tmp_path / "120000.svg").stat().st_size < 1.5 * (tmp_path / "20000.svg").stat().st_size
