"""`logknock spa-test` as an administrator meets it: the real command, and packets of the stock fwknop client."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from logknock.errors import BAD_CONFIG, FAILURE, USAGE
from logknock.store import SQLiteStore, open_store

from .peers import UNPACKED

KEY, HMAC = "sixteen-letters!", "another-sixteen-letters"
DOOR = f"""
[doors.vpn]
opens = ["22/tcp", "1194/udp"]
timeout = "45s"
spa = {{}}
[clients.vpn.laptop]
key = "{KEY}"
hmac_key = "{HMAC}"
allow = ["22/tcp"]
max_timeout = "90s"
source = ["192.0.2.0/24"]
user = "anna"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tmp_path / "logknock.toml"
    config.write_text(f'{DOOR}[paths]\nstate = "{tmp_path}/state"\nruntime = "{tmp_path}/run"\n')
    config.chmod(0o600)
    return tmp_path


def packet(folder: Path, *options: str) -> bytes:
    """What the stock client would send: it is asked not to."""
    rc, saved = folder / "rc", folder / "packet"
    rc.write_text(f"[gate]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nUSE_HMAC Y\nKEY {KEY}\nHMAC_KEY {HMAC}\n")
    rc.chmod(0o600)
    saved.unlink(missing_ok=True)
    words = ("--rc-file", rc, "-n", "gate", "--no-save-args", "--test", "--save-packet", saved, "-U", "anna", *options)
    subprocess.run(
        [f"{UNPACKED}/usr/bin/fwknop", *map(str, words)],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder)},
    )
    return saved.read_bytes()


def run(folder: Path, *args: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """`logknock spa-test` with this configuration; a minute is more than it may take."""
    argv = [sys.executable, "-m", "logknock", "spa-test", "-c", str(folder / "logknock.toml"), *map(str, args)]
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=60)
    assert KEY not in done.stdout.decode() + done.stderr.decode()
    return subprocess.CompletedProcess(argv, done.returncode, done.stdout.decode(), done.stderr.decode())


OWN = ("-a", "192.0.2.7")


def test_a_packet_that_would_open_is_explained_check_by_check(folder: Path) -> None:
    payload = packet(folder, *OWN, "-f", "60")
    done = run(folder, folder / "packet", "--from", "192.0.2.7")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("shape", "HMAC", "decryption", "contents", "first", "age", "kind", "user", "address", "services", "would")
    ]
    assert lines[-1] == "would open 22/tcp for 192.0.2.7 for 60 s"
    assert f"{len(payload) - 1} bytes" in lines[0]
    assert "client laptop of door vpn" in lines[1]
    assert not (folder / "state").exists(), "nothing is recorded"


def test_a_time_that_is_not_asked_for_is_the_door_s(folder: Path) -> None:
    packet(folder, *OWN)
    assert "for 192.0.2.7 for 45 s" in run(folder, folder / "packet").stdout
    packet(folder, *OWN, "-f", "3600")
    assert "for 192.0.2.7 for 90 s" in run(folder, folder / "packet").stdout


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda payload: payload, id="as it is"),
        pytest.param(lambda payload: payload + b"\n", id="as fwknop saves it"),
        pytest.param(lambda payload: payload[:80] + b"\n" + payload[80:], id="in two lines"),
        pytest.param(lambda payload: payload.hex().encode(), id="in hex"),
        pytest.param(lambda payload: payload.hex(" ", 2).upper().encode(), id="in hex with blanks"),
        pytest.param(lambda payload: payload.hex(":").encode() + b"\n", id="in hex with colons"),
        pytest.param(lambda payload: base64.encodebytes(payload), id="in base64"),
        pytest.param(lambda payload: base64.b64encode(payload + b"\n"), id="the file in base64"),
    ],
)
def test_a_packet_may_be_written_down_in_several_ways(folder: Path, written: object) -> None:
    assert callable(written)
    payload = packet(folder, *OWN).strip()
    assert run(folder, stdin=written(payload)).returncode == 0


@pytest.mark.parametrize(
    ("options", "args", "check", "words"),
    [
        pytest.param([*OWN, "--time-offset-minus", "10min"], [], "age", "sent 60", id="too old"),
        pytest.param([*OWN, "-A", "tcp/23"], [], "services", "asks for 23/tcp", id="another service"),
        pytest.param([*OWN], ["--from", "192.0.2.8"], "address", "came from elsewhere", id="from elsewhere"),
        pytest.param(["-s"], [], "address", "names no address", id="no address, where one is asked for"),
        pytest.param(["-a", "127.0.0.1"], [], "address", "loopback", id="T37: an address that is nobody's"),
        pytest.param([*OWN, "-U", "bob"], [], "user", "from user bob", id="another user"),
        pytest.param([*OWN, "-N", "10.0.0.1:22"], [], "kind", "address translation", id="NAT"),
        pytest.param([*OWN, "-C", "true"], [], "kind", "none is ever run", id="a command"),
        pytest.param(
            [*OWN, "--hmac-digest-type", "sha512"], [], "HMAC", 'with hmac = "sha512" it would be', id="another digest"
        ),
        pytest.param(
            [*OWN], ["--from", "198.51.100.1"], "HMAC", "whose source 198.51.100.1 is not in", id="its source"
        ),
        pytest.param([*OWN, "-M", "CFB"], [], "decryption", "the key is not", id="another mode"),
    ],
)
def test_what_is_refused_says_at_which_check_and_why(
    folder: Path, options: list[str], args: list[str], check: str, words: str
) -> None:
    packet(folder, *options)
    done = run(folder, folder / "packet", *args)
    assert done.returncode == FAILURE
    *_, last, verdict = done.stdout.splitlines()
    assert last.split()[:2] == [check, "refused"]
    assert words in last
    assert verdict.startswith("refused: ")


def test_when_it_came_in_may_be_said(folder: Path) -> None:
    packet(folder, *OWN, "--time-offset-minus", "10min")
    then = time.time() - 600
    assert run(folder, folder / "packet", "--at", f"{then:.0f}").returncode == 0
    assert run(folder, folder / "packet", "--at", "9m ago").returncode == 0
    assert run(folder, folder / "packet", "--at", time.strftime("%F %T", time.localtime(then))).returncode == 0
    assert run(folder, folder / "packet", "--at", "sometime").returncode == USAGE


def test_t18_a_packet_that_the_daemon_has_seen_is_said_to_be_one(folder: Path) -> None:
    """And looking does not make one seen."""
    packet(folder, *OWN)
    store = open_store(folder / "state")
    assert isinstance(store, SQLiteStore)
    from logknock.config import load
    from logknock.gate import authentic
    from logknock.spa import Opened, unwrap

    found = unwrap((folder / "packet").read_bytes().strip(), load(folder / "logknock.toml").spa_keys)
    assert isinstance(found, Opened)
    try:
        for _ in range(2):
            assert run(folder, folder / "packet").returncode == 0
        assert store.see(authentic(found), bytes(4), time.time())
        done = run(folder, folder / "packet")
        assert (done.returncode, "first time  refused" in done.stdout) == (FAILURE, True)
    finally:
        store.close()


def test_the_same_for_programs(folder: Path) -> None:
    packet(folder, *OWN)
    said = json.loads(run(folder, folder / "packet", "--json").stdout)
    assert {name: said[name] for name in ("opens", "door", "client", "services", "address", "seconds")} == {
        "opens": True,
        "door": "vpn",
        "client": "laptop",
        "services": ["22/tcp"],
        "address": "192.0.2.7",
        "seconds": 45,
    }
    assert [check["passed"] for check in said["checks"]].count(False) == 0
    packet(folder, *OWN, "-A", "tcp/23")
    said = json.loads(run(folder, folder / "packet", "--json").stdout)
    assert (said["opens"], said["client"], said["reason"]) == (False, "laptop", "service not allowed")


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\xff" * 200, b"zz", b"8" * 15_000, b"8" * 200, b"30 31", bytes(range(256))]
)
def test_what_is_no_packet_is_refused_by_its_shape_or_by_nobody_s_key(folder: Path, data: bytes) -> None:
    done = run(folder, stdin=data)
    assert (done.returncode, "Traceback" in done.stderr) == (FAILURE, False)
    assert "refused" in done.stdout


def test_a_file_that_is_not_there_or_no_file_says_which_one_to_name(folder: Path) -> None:
    """Exit code 69 is for the library alone."""
    hint = "hint: name the file that `fwknop --save-packet` wrote, or write - and give the packet on standard input"
    for path, why in (
        (folder / "gone", "cannot be read: No such file or directory"),
        (folder, "cannot be read: Is a directory"),
        (Path("/dev/null"), "is no regular file"),
    ):
        done = run(folder, path)
        assert (done.returncode, done.stdout) == (FAILURE, "")
        assert done.stderr.splitlines() == [f"logknock: {path}: {why}", hint]


def test_what_cannot_be_a_packet_or_asked_about_says_so(folder: Path) -> None:
    two = packet(folder, *OWN) * 2
    assert "more than one packet" in run(folder, stdin=two).stderr
    assert "this is no packet of fwknop" in run(folder, stdin=b"8" * 99_999).stderr
    assert run(folder, "--from", "nonsense").returncode == USAGE
    (folder / "logknock.toml").write_text('[doors.a]\nsequence = ["7000/tcp"]\nopens = ["22/tcp"]\n')
    assert "no SPA door has a client" in run(folder).stderr
    (folder / "logknock.toml").write_text("[doors.a]\n")
    assert run(folder).returncode == BAD_CONFIG
