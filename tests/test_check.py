"""`logknock check` as a person or a script meets it: the real command, its two outputs and its exit code."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from logknock.cli.check import NOTHING_TO_DO
from logknock.errors import BAD_CONFIG, NO_PERMISSION, LogknockError

from .netns import pair

DOOR = '[doors.ssh]\nsequence = ["7000/tcp", "9000/udp", "8000/tcp"]\nopens = ["22/tcp"]\n'
SHORT = '[doors.b]\nsequence = ["7000/tcp"]\ncloses = ["ssh"]\n'
NOBODY = 65534

# The command as it would run for another user: that user need not be able to read this tree.
AS_NOBODY = f"""
import os
import logknock.cli.check
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
logknock.cli.main()
"""


def write(folder: Path, text: str) -> Path:
    """A configuration as an administrator would leave it."""
    path = folder / "logknock.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def run(*args: str | Path, start: tuple[str, ...] = ("-m", "logknock")) -> subprocess.CompletedProcess[str]:
    """`logknock check` with these arguments; a minute is more than it may take."""
    argv = [sys.executable, *start, "check", *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_a_right_configuration_is_one_line_and_exit_0(tmp_path: Path) -> None:
    """Nothing on standard error."""
    path = write(tmp_path, DOOR)
    done = run("-c", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: ok, 1 door, 0 warnings\n", "")


def test_warnings_leave_it_at_exit_0(tmp_path: Path) -> None:
    """They are on standard error, each with its hint, and counted on standard output."""
    path = write(tmp_path, DOOR + SHORT)
    done = run("-c", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 2 doors, 2 warnings\n")
    assert done.stderr.splitlines() == [
        f"logknock: warning: {path}:5: doors.b.sequence: a single knock: any port scan opens the door",
        "hint: three knocks or more",
        f"logknock: warning: {path}:5: doors.b.sequence: begins door ssh's: whoever knocks that completes this one too",
        "hint: right if it is meant to happen; else begin it differently",
    ]


def test_without_traps_it_says_what_a_scan_opens(tmp_path: Path) -> None:
    """T3: T1 and T2 cannot hold then."""
    path = write(tmp_path, DOOR.replace("8000", "10000") + "[firewall]\ntraps = 0")
    stderr = run("-c", path).stderr
    assert "without traps, a random scan of all ports opens 3 knocks once in 6 times" in stderr
    assert "a port scan from low to high opens the door every time" in stderr


def test_what_is_wrong_with_one_time_files_is_a_warning(tmp_path: Path) -> None:
    """T3, and knocks on what the door itself opens: they count, and whoever passes there may be seen knocking."""
    files = {"anna": "7000,7002,22\n", "ben": "7000\n7001,7002\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "carl").symlink_to("anna")
    names = [f"{tmp_path}/{name}" for name in ("anna", "ben", "carl")]
    path = write(tmp_path, f'[doors.a]\nopens = ["22/tcp"]\nonetime = {names}\n[firewall]\ntraps = 0\n')
    anna, ben, carl = names
    expected = [
        f"{anna}: knocks on 22/tcp, which is guarded: choose other ports",
        f"{ben}: has a single knock in a sequence: any port scan opens the door (hint: three knocks or more)",
        f"{carl}: knocks on 22/tcp, which is guarded: choose other ports",
        f"{carl} (door a): is the same file as {anna} (door a) (hint: each client and each door has its own)",
    ]
    done = run("-c", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 1 door, 5 warnings\n")
    first, _, *rest = done.stderr.splitlines()
    assert first.endswith("without traps, a random scan of all ports opens n knocks once in n! times")
    assert rest == [f"logknock: warning: {line}" for line in expected]
    assert json.loads(run("--json", "-c", path).stdout)["onetime"] == expected


SPA = """[doors.vpn]
opens = ["22/tcp"]
spa = {}
[clients.vpn.a]
key = "sixteen-letters!"
hmac_key = "another-sixteen-letters"
allow = ["22/tcp"]
"""
WITHOUT = ("-c", "import sys; sys.modules['cryptography'] = None; from logknock.cli import main; main()")


def test_an_spa_door_where_nothing_can_decrypt_is_a_warning(tmp_path: Path) -> None:
    """The daemon would run, and the door stay shut. Doors that are knocked at need nothing."""
    path = write(tmp_path, SPA)
    assert run("-c", path).stderr == ""
    done = run("-c", path, start=WITHOUT)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 1 door, 1 warning\n")
    said, hint = done.stderr.splitlines()
    assert said.endswith(f"{path}: SPA needs the Python library cryptography: without it no SPA door opens")
    assert hint.startswith("hint: apt install python3-cryptography")
    (warning,) = json.loads(run("-c", path, "--json", start=WITHOUT).stdout)["warnings"]
    assert (warning["line"], "cryptography" in warning["message"]) == (None, True)
    assert run("-c", write(tmp_path, DOOR), start=WITHOUT).stderr == ""


LISTENER = "import socket, sys; s = socket.create_server(('', 2222)); print('up', flush=True); sys.stdin.read()"


def test_ssh_that_would_be_closed_for_good_is_a_warning_wherever_it_listens(tmp_path: Path) -> None:
    """T38: apply refuses it, and whoever asks before is to know. (The kernel calls a program as it was started.)"""
    path = write(tmp_path, DOOR + '[firewall]\nguarded = ["2222/tcp"]\n')
    (tmp_path / "dropbear").symlink_to("/usr/bin/python3")
    with pair() as (host, _):
        assert host.logknock("check", "-c", str(path)).stderr == ""
        daemon = host.start(str(tmp_path / "dropbear"), "-c", LISTENER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with daemon:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "up\n"
            done = host.logknock("check", "-c", str(path))
            assert "logknock: warning: 2222/tcp is ssh, it is guarded, and no door opens it" in done.stderr
            assert done.stdout == f"{path}: ok, 1 door, 1 warning\n"
            assert "2222/tcp" in json.loads(host.logknock("check", "--json", "-c", str(path)).stdout)["ssh"][0]


def test_every_error_is_a_line_with_its_hint_below_and_exit_78(tmp_path: Path) -> None:
    """Nothing on standard output."""
    path = write(tmp_path, "surce = 1\n" + DOOR + 'timeout = 30\nclose = ["x"]\n[log]\ngroup = 70000\n')
    done = run("-c", path)
    assert (done.returncode, done.stdout) == (BAD_CONFIG, "")
    assert done.stderr.splitlines() == [
        f"logknock: {path}:1: surce: unknown key",
        "hint: known here: log, firewall, scan, metrics, paths, totp, doors, clients",
        f"logknock: {path}:5: doors.ssh.timeout: 30 has no unit",
        'hint: write "30s"',
        f"logknock: {path}:6: doors.ssh.close: unknown key",
        "hint: did you mean closes?",
        f"logknock: {path}:8: log.group: 70000 is out of range (0-65535)",
        "hint: write a number from 0 to 65535",
    ]


def test_a_right_configuration_as_json(tmp_path: Path) -> None:
    """One object for scripts; warnings in it and not on standard error."""
    path = write(tmp_path, DOOR + SHORT)
    done = run("--json", "-c", path)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["file"], answer["ok"], answer["doors"], answer["errors"]) == (str(path), True, ["ssh", "b"], [])
    assert [warning["line"] for warning in answer["warnings"]] == [5, 5]
    assert answer["warnings"][0] == {
        "file": str(path),
        "line": 5,
        "key": "doors.b.sequence",
        "message": "a single knock: any port scan opens the door",
        "hint": "three knocks or more",
    }


def test_a_wrong_configuration_as_json(tmp_path: Path) -> None:
    """The same object and the same exit code as without --json; a line that is not known is null."""
    path = write(tmp_path, "[log]\ngroup = 70000")
    done = run("-c", path, "--json")
    assert (done.returncode, done.stderr) == (BAD_CONFIG, "")
    answer = json.loads(done.stdout)
    assert {key: answer[key] for key in ("file", "ok", "doors", "warnings")} == {
        "file": str(path),
        "ok": False,
        "doors": [],
        "warnings": [],
    }
    no_door, group = sorted(answer["errors"], key=lambda error: str(error["key"]))
    assert (no_door["line"], no_door["key"], no_door["message"]) == (None, "doors", "there is no door")
    assert group == {
        "file": str(path),
        "line": 2,
        "key": "log.group",
        "message": "70000 is out of range (0-65535)",
        "hint": "write a number from 0 to 65535",
    }


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory into which another user can look."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("closed", ["logknock.toml", "conf.d/a.toml", "conf.d"])
def test_what_this_user_may_not_read_is_exit_77(open_folder: Path, closed: str, options: tuple[str, ...]) -> None:
    """The file, a neighbour or their directory."""
    path = write(open_folder, DOOR)
    os.chown(path, NOBODY, -1)
    (open_folder / "conf.d").mkdir(mode=0o700 if closed == "conf.d" else 0o755)
    (open_folder / "conf.d/a.toml").touch(0o640)
    os.chown(open_folder / closed, 0, 0)
    done = run("-c", path, *options, start=("-c", AS_NOBODY))
    assert done.returncode == NO_PERMISSION
    if options:
        (error,) = json.loads(done.stdout)["errors"]
        assert (error["file"], error["message"]) == (f"{open_folder}/{closed}", "cannot be read: permission denied")
        assert done.stderr == ""
    else:
        assert done.stderr.splitlines() == [
            f"logknock: {open_folder}/{closed}: cannot be read: permission denied",
            "hint: run this as root, or as the file's owner",
        ]


def test_a_user_can_check_a_file_of_their_own(open_folder: Path) -> None:
    """Beside root, the owner may be whoever runs the command."""
    path = write(open_folder, DOOR)
    os.chown(path, NOBODY, NOBODY)
    assert run("-c", path, start=("-c", AS_NOBODY)).returncode == 0


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    """run() gives up after a minute."""
    os.mkfifo(tmp_path / "logknock.toml", 0o600)
    done = run("-c", tmp_path / "logknock.toml")
    assert done.returncode == BAD_CONFIG
    assert "logknock.toml: is no regular file" in done.stderr


def test_a_fifo_beside_the_file_is_refused_too(tmp_path: Path) -> None:
    """conf.d is read in the same way."""
    (tmp_path / "conf.d").mkdir(0o755)
    os.mkfifo(tmp_path / "conf.d/a.toml", 0o600)
    done = run("-c", write(tmp_path, DOOR))
    assert done.returncode == BAD_CONFIG
    assert "conf.d/a.toml: is no regular file" in done.stderr


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.toml"), "a\x1b[2Jb.toml"], ids=["no UTF-8", "terminal codes"])
@pytest.mark.parametrize("text", [DOOR, ""], ids=["right", "wrong"])
def test_a_file_name_of_any_bytes_is_told_and_leaves_the_terminal_alone(tmp_path: Path, name: str, text: str) -> None:
    """Neither a traceback nor a control character."""
    path = write(tmp_path, text).rename(tmp_path / name)
    done = run("-c", path)
    assert done.returncode == (0 if text else BAD_CONFIG)
    assert "Traceback" not in done.stderr
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        pytest.param(LogknockError("no"), ["logknock: no"], id="an error without a hint is one line"),
        pytest.param(LogknockError("no", "try"), ["logknock: no", "hint: try"], id="a hint is a line of its own"),
    ],
)
def test_an_error_is_reported_in_lines(error: LogknockError, lines: list[str]) -> None:
    """What every command prints."""
    assert error.report() == lines


def test_the_help_shows_an_example() -> None:
    """And the exit codes."""
    done = run("--help")
    assert done.returncode == 0
    assert "logknock check -c ./logknock.toml" in done.stdout
    assert "77" in done.stdout
    assert "78" in done.stdout


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("", NOTHING_TO_DO, id="nothing but a file"),
        pytest.param('[firewall]\ntrusted = ["192.0.2.0/24"]\n', NOTHING_TO_DO, id="all but a door"),
        pytest.param("[doors]\n", NOTHING_TO_DO, id="a place for doors"),
        pytest.param(DOOR, 0, id="a door"),
        pytest.param(DOOR.replace("22/tcp", "no port"), 0, id="a door with a mistake, which run tells"),
        pytest.param("[firewal]\n", 0, id="no door and a mistake"),
        pytest.param("[doors", 0, id="no TOML"),
    ],
)
def test_whether_there_is_any_door(tmp_path: Path, text: str, code: int) -> None:
    """What the unit asks before it starts: 3 skips it, and what is wrong otherwise is for `logknock run` to tell."""
    path = write(tmp_path, text)
    done = run("--any-door", "-c", path)
    assert (done.returncode, done.stdout) == (code, "")
    told = f"logknock: {path}: no door is configured yet: there is nothing to do\n"
    assert done.stderr == (told if code else "")


def test_a_configuration_that_is_not_there_is_for_run_to_tell(tmp_path: Path) -> None:
    assert run("--any-door", "-c", tmp_path / "none.toml").returncode == 0
