"""`logknock onetime generate` as a person or a script meets it: the real command, its file and its words."""

import os
import pty
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from logknock.config import load
from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, USAGE
from logknock.firewall import ruleset
from logknock.knock import Sequence, Service
from logknock.onetime import Place
from logknock.onetime_files import find_next, survey
from logknock.packet import TCP, UDP

NOBODY = 65534

# Ports of everything that is to be avoided, in a range of a hundred.
CONFIG = """
doors.ssh = {sequence = ["20001/tcp", "20002/udp", "20003/tcp"], opens = ["20010/tcp", "20011/udp"]}
doors.web = {sequence = ["20004/tcp", "3000/tcp", "20005/tcp"], opens = ["20012/tcp"], sets = ["ip f s"], guard = false}
firewall.exclude = ["20090-20099/tcp"]
"""

# The command as it would run for another user: that user need not be able to read this tree.
AS_NOBODY = f"""
import os
import logknock.cli.onetime
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
logknock.cli.main()
"""


def write(folder: Path, traps: int = 8) -> Path:
    """A configuration as an administrator would leave it, with a state directory of its own."""
    path = folder / "logknock.toml"
    path.write_text(f"{CONFIG}firewall.traps = {traps}\npaths.state = '{folder}/state'\n")
    path.chmod(0o600)
    return path


def command(*args: str | Path | int, start: tuple[str, ...] = ("-m", "logknock")) -> list[str]:
    return [sys.executable, *start, "onetime", "generate", *map(str, args)]


def run(*args: str | Path | int) -> subprocess.CompletedProcess[str]:
    """`logknock onetime generate` with these arguments; a minute is more than it may take."""
    return subprocess.run(command(*args), capture_output=True, text=True, check=False, timeout=60)


def sequences(path: Path) -> list[Sequence]:
    """All of a file, as the daemon reads it."""
    made, place = [], Place()
    while (found := find_next(path, place)).sequence is not None:
        made.append(found.sequence)
        place = found.place
    assert found.ended
    return made


def test_a_file_and_what_to_do_with_it(tmp_path: Path) -> None:
    """One line on standard output; a hundred sequences that the daemon reads, in a file of its owner's."""
    path = tmp_path / "alice"
    done = run(path, "-c", write(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f'100 sequences of 5 knocks, 78 bits each; next: onetime = ["{path}"] in the door, '
        "`logknock rules apply`, and a copy of the file to the client\n"
    )
    made = sequences(path)
    assert len(set(made)) == 100
    assert all(len(sequence) == 5 for sequence in made)
    assert all(proto == TCP and 10000 <= port <= 60999 for sequence in made for proto, port in sequence)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("# One-time sequences for logknock")


def test_no_file_is_like_another(tmp_path: Path) -> None:
    config = write(tmp_path)
    for name in ("alice", "bob"):
        assert run(tmp_path / name, "-c", config).returncode == 0
    assert not set(sequences(tmp_path / "alice")) & set(sequences(tmp_path / "bob"))


def test_only_free_ports_are_knocked_on(tmp_path: Path) -> None:
    """All of those, and no knock port of a door, nothing that is opened or listened on, and no trap."""
    config_path, path = write(tmp_path), tmp_path / "alice"
    with socket.socket() as server, socket.socket(type=socket.SOCK_DGRAM) as udp_server:
        server.bind(("127.0.0.1", 20050))
        server.listen()
        udp_server.bind(("127.0.0.1", 20051))
        args = (path, "-c", config_path, "--count", 500, "--length", 12)
        done = run(*args, "--ports", "20000-20099/tcp", "--ports", "20000-20099/udp")
        assert done.returncode == 0, done.stderr
        config = load(config_path)
        seed, listening = ruleset.trap_seed(config.state), ruleset.listening()
    assert {Service(TCP, 20050), Service(UDP, 20051)} <= listening
    traps = ruleset.traps(config, seed, listening)
    assert {Service(TCP, 20000), Service(TCP, 20006), Service(UDP, 20001)} <= traps  # beside the knock ports
    opened = {Service(TCP, 20010), Service(UDP, 20011), Service(TCP, 20012)}
    asked = {Service(proto, port) for proto in (TCP, UDP) for port in range(20000, 20100)}
    *_, complete = survey(path)
    assert complete.services == asked - traps - listening - config.knocked - opened
    assert Service(TCP, 20095) in complete.services  # excluded from the traps


def test_count_and_length_are_as_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "alice"
    done = run(path, "-c", write(tmp_path), "--count", 1, "--length", 32, "--ports", "40000-49999/udp")
    assert done.stdout.startswith("1 sequence of 32 knocks, ")
    (sequence,) = sequences(path)
    assert len({port for proto, port in sequence if proto == UDP}) == 32


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        pytest.param("--ports 40000-40019/tcp", USAGE, ["are too few", "hint: use 67 ports or more"], id="few ports"),
        pytest.param("--length 3 --ports 40000-40499/tcp", USAGE, ["3 knocks on ", "or 4 knocks"], id="few knocks"),
        pytest.param("--ports 20010/tcp", USAGE, ["5 knocks on 0 ports", "(1 of those asked for"], id="no free port"),
        pytest.param("--ports 40019-40000/tcp", USAGE, ['runs backwards: write "40000-40019/tcp"'], id="backwards"),
        pytest.param("--ports 40000-40019", USAGE, ["has no protocol", '"6000-6010/tcp"'], id="no protocol"),
        pytest.param("--ports 40000-70000/tcp", USAGE, ["40000-70000/tcp is no port"], id="no port"),
        pytest.param("--ports abc/tcp", USAGE, ["'abc' is no port number"], id="no number"),
        pytest.param("--length 2", USAGE, ["2 is not in the range 3<=x<=32"], id="a port scan knocks twice"),
        pytest.param("--length 33", USAGE, ["33 is not in the range"], id="too many knocks"),
        pytest.param("--count 0", USAGE, ["0 is not in the range"], id="no sequence"),
        pytest.param("--count 10000001", USAGE, ["10000001 is not in the range"], id="too many sequences"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, args: str, code: int, words: list[str]) -> None:
    """T21, and slips: nothing is written."""
    done = run(tmp_path / "alice", "-c", write(tmp_path), *args.split())
    assert (done.returncode, done.stdout) == (code, "")
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "alice").exists()


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path, config = tmp_path / "alice", write(tmp_path)
    path.write_text("mine")
    done = run(path, "-c", config)
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert done.stderr.splitlines()[0] == f"logknock: {path}: is there already, and is never overwritten"
    assert path.read_text() == "mine"


def test_a_wrong_configuration_is_said_first(tmp_path: Path) -> None:
    done = run(tmp_path / "alice", "-c", tmp_path / "none.toml")
    assert done.returncode == BAD_CONFIG
    assert "none.toml: does not exist" in done.stderr


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    done = run(tmp_path / "no" / "alice", "-c", write(tmp_path))
    assert done.returncode == FAILURE
    assert done.stderr.splitlines() == [
        f"logknock: {tmp_path}/no/alice: cannot be written: No such file or directory",
        f"hint: make the directory first: mkdir -m 700 {tmp_path}/no",
    ]


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        pytest.param("size=64k", "No space left on device", "make room on the disk, or ask for fewer", id="full disk"),
        pytest.param("ro", "Read-only file system", "name a file in another directory", id="read-only"),
    ],
)
def test_a_disk_that_takes_nothing(tmp_path: Path, options: str, words: str, hint: str) -> None:
    """A line and a hint; no file, and no temporary one."""
    config, disk = write(tmp_path), tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o {options} none "$0"; "$@"; code=$?; ls -A "$0"; exit $code'
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        str(disk),
        *command(disk / "alice", "-c", config, "--count", 10000),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert done.stderr.splitlines() == [f"logknock: {disk}/alice: cannot be written: {words}", f"hint: {hint}"]


def test_a_directory_that_is_somebody_elses() -> None:
    """A user who may write none of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        config = write(folder)
        os.chown(config, NOBODY, NOBODY)
        (folder / "state").mkdir()
        os.chown(folder / "state", NOBODY, NOBODY)
        argv = command(folder / "alice", "-c", config, start=("-c", AS_NOBODY))
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (NO_PERMISSION, "")
    assert done.stderr.splitlines() == [
        f"logknock: {folder}/alice: cannot be written: Permission denied",
        f"hint: run this as root, or as one who can write to {folder}",
    ]


def test_on_a_terminal_a_bar_shows_how_far_it_is(tmp_path: Path) -> None:
    """Where there are many; nothing of it is on standard output."""
    ours, theirs = pty.openpty()
    argv = command(tmp_path / "alice", "-c", write(tmp_path), "--count", 100_000)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True, timeout=60)
        os.set_blocking(ours, False)
        shown = terminal.read(65_536) or b""
        os.close(theirs)
    assert b"writing" in shown
    assert done.stdout.startswith("100,000 sequences of 5 knocks, ")


def test_the_help_names_the_command() -> None:
    argv = [sys.executable, "-m", "logknock", "onetime", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "generate" in done.stdout
