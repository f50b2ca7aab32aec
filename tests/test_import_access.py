"""`logknock import-access` as an administrator meets it: the real command and its files."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from logknock.access_conf import MAX_BYTES
from logknock.config import load
from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE, USAGE

from .test_access_conf import ANY, WHOLE

NOBODY = 65534
AS_NOBODY = f"""
import os
import logknock.cli.import_access
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
logknock.cli.main()
"""


def run(
    *args: str | Path, start: tuple[str, ...] = ("-m", "logknock"), stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """`logknock import-access` with these arguments; a minute is more than it may take."""
    argv = [sys.executable, *start, "import-access", *map(str, args)]
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=60)
    return subprocess.CompletedProcess(argv, done.returncode, done.stdout.decode(), done.stderr.decode())


def conf(folder: Path, text: str | bytes = WHOLE, name: str = "access.conf") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return path


def test_what_is_written_passes_check_and_is_nobody_else_s(tmp_path: Path) -> None:
    out = tmp_path / "logknock.toml"
    done = run(conf(tmp_path), "-o", out)
    assert (done.returncode, done.stdout) == (0, f"{out}: 1 client; next: logknock check -c {out}\n")
    assert out.stat().st_mode & 0o777 == 0o600
    (key,) = load(out).spa_keys
    assert (key.door, key.client, [str(service) for service in key.allow]) == ("fwknop", "client-1", ["22/tcp"])


def test_without_an_output_it_is_printed_and_notes_go_to_standard_error(tmp_path: Path) -> None:
    done = run(conf(tmp_path))
    assert done.returncode == 0
    assert list(tomllib.loads(done.stdout)) == ["doors", "clients"]
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["logknock", "hint"] * 2


def test_standard_input_is_read_for_a_dash() -> None:
    assert run("-", stdin=WHOLE.encode()).stdout == run("-", "-o", "-", stdin=WHOLE.encode()).stdout != ""


def test_what_is_left_to_do_is_named_with_its_line(tmp_path: Path) -> None:
    path = conf(tmp_path, WHOLE + "FORCE_NAT 192.168.1.1 22\n")
    done = run(path)
    assert done.returncode == FAILURE
    assert f"{path}:5: SOURCE ANY: FORCE_NAT: it opens what lies behind this host, by NAT" in done.stderr
    assert "no stanza could be converted" in done.stderr


def test_all_errors_come_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    path, out = conf(tmp_path, ANY + "open_ports tcp/22\nFW_ACCESS_TIMEOUT 30s\n"), tmp_path / "out.toml"
    done = run(path, "-o", out)
    assert (done.returncode, done.stdout, out.exists()) == (BAD_CONFIG, "", False)
    assert [line for line in done.stderr.splitlines() if line.startswith("logknock: ")] == [
        f"logknock: {path}:4: SOURCE ANY: 'open_ports' is no variable of access.conf, and fwknopd passes over it",
        f"logknock: {path}:5: SOURCE ANY: FW_ACCESS_TIMEOUT: '30s' is no number of seconds",
    ]


def test_an_error_of_an_included_file_names_that_file(tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    other = conf(folder, "SOURCE nonsense\n", "a.conf")
    done = run(conf(tmp_path, f"{WHOLE}%include_folder {folder}\n"))
    assert done.returncode == BAD_CONFIG
    assert f"logknock: {other}:1: SOURCE nonsense: SOURCE: 'nonsense' is no IPv4 network" in done.stderr


def test_what_cannot_be_included_is_an_error_of_the_line_that_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for word, why in (
        (f"%include {tmp_path}/gone", "No such file"),
        (f"%include {tmp_path}/fifo", "is no regular file"),
        (f"%include {tmp_path}/folder", "Is a directory"),
        (f"%include_keys {tmp_path}/gone", "No such file"),
        (f"%include_folder {tmp_path}/gone", "No such file"),
    ):
        done = run(conf(tmp_path, f"{WHOLE}{word}\n"))
        assert (done.returncode, why in done.stderr, "access.conf:5" in done.stderr) == (BAD_CONFIG, True, True), word


def test_who_else_may_read_or_write_the_keys_is_said(tmp_path: Path) -> None:
    path = conf(tmp_path)
    path.chmod(0o644)
    done = run(path)
    assert done.returncode == 0
    assert f"note: {path}: can be read by its group and everybody" in done.stderr
    path.chmod(0o622)
    done = run(path)
    assert (done.returncode, done.stdout) == (BAD_CONFIG, "")
    assert "can be written by its group and everybody" in done.stderr


def test_fwknopd_s_own_configuration_says_where_packets_come_in_unless_the_command_does(tmp_path: Path) -> None:
    conf(tmp_path, "PCAP_FILTER udp dst portrange 10000-65535;\nENABLE_TCP_SERVER Y;\n", "fwknopd.conf")
    path = conf(tmp_path)
    done = run(path)
    assert 'spa = {ports = ["10000-65535/udp"]}' in done.stdout
    assert f"note: {tmp_path}/fwknopd.conf:2: ENABLE_TCP_SERVER: nothing listens for connections" in done.stderr
    assert 'spa = {ports = ["4711/udp", "icmp"]}' in run(path, "--port", "4711/udp", "--port", "icmp").stdout


@pytest.mark.parametrize("ports", ["nonsense", "99999/udp", "0/udp", "70000-80000/udp", "20-10/udp", "62201", ""])
def test_ports_that_there_are_not_are_a_mistake_of_the_call(ports: str, tmp_path: Path) -> None:
    done = run(conf(tmp_path), "--port", ports)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (USAGE, "", False)
    assert "Error: Invalid value for --port: " in done.stderr


def test_ports_that_are_named_again_are_written_once(tmp_path: Path) -> None:
    """The configuration has each of them once; which of two ranges is meant is for who calls to say."""
    path = conf(tmp_path)
    twice = ("--port", "7/udp", "--port", "icmp", "--port", "7/udp", "--port", "icmp", "--port", "7/tcp")
    assert 'spa = {ports = ["7/udp", "icmp", "7/tcp"]}' in run(path, *twice).stdout
    done = run(path, "--port", "5-9/udp", "--port", "7/udp")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "Invalid value for --port: 5-9/udp and 7/udp have ports in common" in done.stderr


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    out = conf(tmp_path, "mine", "out.toml")
    done = run(conf(tmp_path), "-o", out)
    assert (done.returncode, out.read_text()) == (FAILURE, "mine")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00" * 99, b"\0", b"SOURCE " * 99, bytes(range(256))])
def test_a_file_of_something_else_ends_in_errors(data: bytes, tmp_path: Path) -> None:
    done = run(conf(tmp_path, data))
    assert (done.returncode, "Traceback" in done.stderr) == (BAD_CONFIG, False)


def test_what_cannot_be_read_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    assert run(tmp_path / "gone").returncode == UNAVAILABLE
    assert run(tmp_path).returncode == FAILURE
    assert run(conf(tmp_path, b"#" * (MAX_BYTES + 1))).returncode == FAILURE
    tmp_path.chmod(0o755)
    done = run(conf(tmp_path), start=("-c", AS_NOBODY))
    assert (done.returncode, "permission denied" in done.stderr) == (NO_PERMISSION, True)
