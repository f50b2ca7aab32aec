"""`logknock import-knockd` as an administrator meets it on the evening of the move: the real command and its files."""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from logknock.config import load
from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE
from logknock.knockd_conf import MAX_BYTES

from .e2e.world import World, until
from .netns import Host

CORPUS = Path(__file__).parent / "corpus/knockd"
NOBODY = 65534

# The command as it would run for another user, who need not be able to read this tree.
AS_NOBODY = f"""
import os
import logknock.cli.import_knockd
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
logknock.cli.main()
"""

DOOR = "[ssh]\nsequence = 7000,9000:udp,8000\ncommand = iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT\n"


def run(
    *args: str | Path, start: tuple[str, ...] = ("-m", "logknock"), stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """`logknock import-knockd` with these arguments; a minute is more than it may take."""
    argv = [sys.executable, *start, "import-knockd", *map(str, args)]
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=60)
    return subprocess.CompletedProcess(argv, done.returncode, done.stdout.decode(), done.stderr.decode())


def conf(folder: Path, text: str | bytes = DOOR) -> Path:
    path = folder / "knockd.conf"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory into which another user can look."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.conf")), ids=lambda path: path.stem)
def test_what_comes_out_of_the_corpus_passes_check(path: Path, tmp_path: Path) -> None:
    """Each door that is written is a door for the daemon; exit codes say whether anything is left to do."""
    out = tmp_path / "logknock.toml"
    done = run(path, "-o", out)
    if not (path.parent / f"{path.stem}.toml").exists():
        assert (done.returncode, done.stdout, out.exists()) == (BAD_CONFIG, "", False)
        return
    assert done.returncode == (FAILURE if (path.parent / f"{path.stem}.said").exists() else 0)
    written = tomllib.loads(out.read_text())["doors"]
    assert [door.name for door in load(out).doors] == list(written)


def test_debian_s_own_file_is_converted_without_naming_it() -> None:
    """/etc/knockd.conf, as the package installs it."""
    done = run()
    assert (done.returncode, done.stderr.splitlines()) == (
        0,
        [
            "logknock: note: /etc/knockd.conf:7: openSSH: IPv6 knockers get in too: knockd's command failed for their"
            " addresses (1 more like it)"
        ],
    )
    doors = tomllib.loads(done.stdout)["doors"]
    assert doors["openSSH"]["opens"] == ["22/tcp"]
    assert doors["closeSSH"]["closes"] == ["openSSH"]
    assert doors["openHTTPS"]["opens"] == ["443/tcp"]


def test_the_file_is_for_its_owner_alone_and_says_what_is_next(tmp_path: Path) -> None:
    """It holds the sequence: 0600, and nothing else is left in the directory."""
    out = tmp_path / "etc/logknock.toml"
    out.parent.mkdir()
    done = run(conf(tmp_path), "-o", out)
    assert done.returncode == 0
    assert done.stdout == f"{out}: 1 door; next: logknock check -c {out}\n"
    assert (out.stat().st_mode & 0o7777, out.stat().st_nlink, os.listdir(out.parent)) == (0o600, 1, ["logknock.toml"])


@pytest.mark.parametrize("kind", ["file", "link to nowhere", "directory"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    """Not even through a symbolic link that leads nowhere."""
    out = tmp_path / "logknock.toml"
    if kind == "file":
        out.write_text("mine")
    elif kind == "directory":
        out.mkdir()
    else:
        out.symlink_to(tmp_path / "elsewhere")
    before = sorted([*os.listdir(tmp_path), "knockd.conf"])
    done = run(conf(tmp_path), "-o", out)
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert done.stderr.splitlines() == [
        f"logknock: {out}: exists, and is not overwritten",
        "hint: name another file with -o",
    ]
    assert sorted(os.listdir(tmp_path)) == before
    assert kind != "file" or out.read_text() == "mine"


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With the command that makes it."""
    done = run(conf(tmp_path), "-o", tmp_path / "a b/logknock.toml")
    assert done.returncode == FAILURE
    assert done.stderr.splitlines() == [
        f"logknock: {tmp_path}/a b/logknock.toml: cannot be written: No such file or directory",
        f"hint: make its directory first: install -d -m 700 '{tmp_path}/a b'",
    ]


def test_errors_are_all_told_and_nothing_is_written(tmp_path: Path) -> None:
    """With file, line, section and hint; exit code 78."""
    path = conf(tmp_path, "[ssh]\nsequence = abc,7000,\n[web]\nsequence = 7000\nseq_timeout = 5s\n" + "x\n")
    out = tmp_path / "logknock.toml"
    done = run(path, "-o", out)
    assert (done.returncode, done.stdout, out.exists()) == (BAD_CONFIG, "", False)
    assert done.stderr.splitlines() == [
        f"logknock: {path}:2: ssh: 'abc' is no port (1-65535), and knockd takes it for port 0",
        "hint: 7000, or 7000:udp",
        f"logknock: {path}:5: web: '5s' is no number of seconds: knockd takes it for 5",
        "hint: a whole number, without a unit, and with nothing behind it",
        f"logknock: {path}:6: web: 'x' has no =",
        "hint: write key = value",
    ]


def test_what_is_left_is_told_and_the_others_are_written(tmp_path: Path) -> None:
    """Exit code 1: a door is comments only."""
    path = conf(tmp_path, DOOR + "[mail]\nsequence = 1,2,3\ncommand = echo %IP% | mail root\n")
    done = run(path)
    assert done.returncode == FAILURE
    assert list(tomllib.loads(done.stdout)["doors"]) == ["ssh"]
    assert done.stderr.splitlines()[1:] == [
        f"logknock: {path}:6: mail: start_command: '|' needs a shell",
        "hint: put the command into a script, and name that in the door",
    ]


def test_what_differs_for_every_door_of_a_kind_is_told(tmp_path: Path) -> None:
    """On standard error, with the line and what to do; exit code 0."""
    text = "[options]\nInterface = wg0\n[a]\nsequence = 1,2,3\ncommand = /usr/local/bin/open.sh %IP%\n"
    path = conf(tmp_path, text)
    done = run(path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"logknock: note: {path}:2: options: Interface: a knock counts on whatever interface it comes in, if it is for"
        " this host",
        'hint: target = ["192.0.2.1"] limits a door to packets for that address of this host',
        f"logknock: note: {path}:5: a: '/usr/local/bin/open.sh {{src}}' runs without privileges and without a shell:"
        " does it need root?",
    ]


@pytest.mark.parametrize(
    "text", ["", "[options]\nUseSyslog\n", "[a]\nsequence = 1\n"], ids=["empty", "options", "kept"]
)
def test_a_file_without_a_door_for_us_is_told(tmp_path: Path, text: str) -> None:
    """The result has no door, and `check` would say so."""
    path = conf(tmp_path, text)
    done = run(path)
    assert (done.returncode, tomllib.loads(done.stdout)) == (FAILURE, {})
    assert f"logknock: {path}: no door could be converted, so `check` will not pass" in done.stderr


def test_standard_input_can_be_read() -> None:
    """As in `ssh host cat /etc/knockd.conf | logknock import-knockd -`."""
    for output in ((), ("-o", "-")):
        done = run("-", *output, stdin=DOOR.encode())
        assert (done.returncode, list(tomllib.loads(done.stdout)["doors"])) == (0, ["ssh"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"#" * (MAX_BYTES + 1), "larger than 256 KiB: this is no configuration of knockd", id="too large"),
        pytest.param(b"\x7fELF\x02\x01\0\0\n\xff\xfe", "a NUL byte, where knockd stops reading", id="a program"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """In a line, and without a traceback."""
    done = run(conf(tmp_path, content))
    assert (done.returncode in (FAILURE, BAD_CONFIG), done.stdout) == (True, "")
    assert message in done.stderr
    assert done.stderr.replace("\n", "").isprintable()


def test_a_fifo_a_directory_and_nothing_are_refused(tmp_path: Path) -> None:
    """Without waiting for a FIFO's writer: run() gives up after a minute."""
    os.mkfifo(tmp_path / "fifo")
    for path, why in ((tmp_path / "fifo", "is no regular file"), (tmp_path, "cannot be read: Is a directory")):
        done = run(path)
        assert (done.returncode, done.stderr.splitlines()[0]) == (FAILURE, f"logknock: {path}: {why}")
    done = run(tmp_path / "none")
    assert done.returncode == UNAVAILABLE
    assert done.stderr.splitlines()[0] == f"logknock: {tmp_path}/none: cannot be read: No such file or directory"


def test_what_this_user_may_not_read_or_write_is_exit_77(open_folder: Path) -> None:
    """knockd.conf is root's, and so is /etc/logknock."""
    path = conf(open_folder)
    path.chmod(0o600)
    done = run(path, start=("-c", AS_NOBODY))
    assert (done.returncode, "permission denied" in done.stderr) == (NO_PERMISSION, True)
    path.chmod(0o644)
    done = run(path, "-o", open_folder / "a.toml", start=("-c", AS_NOBODY))
    assert (done.returncode, "permission denied" in done.stderr) == (NO_PERMISSION, True)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a part of a configuration nor a temporary file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    # The mount ends with the namespace that it is made in.
    script = 'mount -t tmpfs -o size=4k,nr_inodes=8 none "$0" && "$@"; code=$?; ls -A "$0"; exit $code'
    command = [sys.executable, "-m", "logknock", "import-knockd", str(CORPUS / "kept.conf"), "-o", str(disk / "a.toml")]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(disk), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert done.stderr.splitlines()[0] == f"logknock: {disk}/a.toml: cannot be written: No space left on device"


def test_a_name_of_any_bytes_leaves_the_terminal_alone(tmp_path: Path) -> None:
    """In messages, and in the comments."""
    path = conf(tmp_path, b"[\x1b[2J\xff]\nsequence = 1,2,3\ncommand = $X\n").rename(tmp_path / "a\x1b[2J.conf")
    done = run(path)
    assert done.returncode == FAILURE
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()


# A firewall that drops by default, and knockd's pair of doors for it.
FIREWALL = """table inet filter { chain input { type filter hook input priority filter; policy drop
    ct state established,related accept; iif lo accept; meta l4proto icmpv6 accept
}
}
"""
RULE = "rule inet filter input ip saddr %IP% tcp dport 22 accept"
PAIR = f"""[options]
    logfile = {{}}
[openSSH]
    sequence = 7000,9000:udp,8000
    tcpflags = syn
    command  = /usr/sbin/nft insert {RULE}
[closeSSH]
    sequence = 8000,9000:udp,7000
    tcpflags = syn
    command  = /usr/sbin/nft delete {RULE}
"""


def test_the_evening_of_the_move(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """docs/howto/knockd.md: import, check, both at once with one knock, and then without knockd."""
    world = World(*hosts, tmp_path / "logknock.toml")
    gateway, config, log = world.gateway, world.config, tmp_path / "knockd.log"
    gateway.nft(FIREWALL)
    assert run(conf(tmp_path, PAIR.format(log)), "-o", config).returncode == 0
    with config.open("a") as stream:
        stream.write(f'[paths]\nstate = "{tmp_path}/state"\nruntime = "{tmp_path}/run"\n')
    gateway.logknock("check", "-c", str(config))
    knockd = gateway.start("knockd", "-i", "eth0", "-c", str(tmp_path / "knockd.conf"))
    try:
        until(lambda: log.exists() and "starting up" in log.read_text(), "knockd to listen")
        world.apply()
        with world.daemon() as daemon, world.service(22):
            assert not world.reaches()
            world.client.run("knock", "-d", "50", gateway.ipv4, "7000", "9000:udp", "8000")
            daemon.wait_for("openSSH: OPEN SESAME")
            until(lambda: "saddr" in gateway.run("nft", "list", "chain", "inet", "filter", "input").stdout, "knockd")
            assert world.reaches()

            knockd.kill()
            knockd.wait()
            gateway.nft("flush chain inet filter input\nadd rule inet filter input tcp dport 22 accept")
            gateway.nft("insert rule inet filter input ct state established accept")
            world.client.run("knock", "-d", "50", gateway.ipv4, "8000", "9000:udp", "7000")
            until(lambda: not world.granted(), "the door to close")
            assert not world.reaches()
            world.client.run("knock", "-d", "50", gateway.ipv4, "7000", "9000:udp", "8000")
            until(world.granted, "the door to open")
            assert world.reaches()
    finally:
        knockd.kill()
        knockd.wait()
