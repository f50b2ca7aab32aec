"""The wheel, in a virtual environment that has nothing but it and click, and sees nothing of the distribution's."""

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from logknock.errors import UNAVAILABLE

from .checkout import PROJECT, copy_checkout
from .netns import Host

# What `make setup-test` puts there, so that no test needs a network.
WHEELS = PROJECT / ".venv/wheels"

CONFIG = """
[paths]
state = "{folder}/state"
runtime = "{folder}/run"
[log]
source = "{source}"
[doors.ssh]
sequence = ["7000/tcp", "9000/udp", "8000/tcp"]
opens = ["22/tcp"]
[firewall]
mark = 0x10000
"""


def _run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables, cwd="/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = copy_checkout(tmp_path_factory.mktemp("wheel") / "tree")
    subprocess.run(["make", "-s", "wheel"], cwd=tree, check=True, capture_output=True)
    (made,) = (tree / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def plain(wheel: Path) -> Path:
    """The commands of the environment."""
    place = wheel.parent / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", str(place)], check=True)
    offline = ("--no-index", f"--find-links={WHEELS}", "--quiet", "--disable-pip-version-check")
    subprocess.run([str(place / "bin/pip"), "install", *offline, str(wheel)], check=True)
    return place / "bin"


def test_the_wheel_has_every_file_of_the_program_and_the_rules(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for name in ("logknock", "rules") for path in (PROJECT / name).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(PROJECT)) for path in files if path.suffix not in (".pyc",)}
    assert {f"logknock/{name}" if name.startswith("rules/") else name for name in wanted} <= names


def test_a_client_knocks_from_a_plain_environment(plain: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(20)
        for command in ("logknock", "logknock-client"):
            done = _run(str(plain / command), "knock", "127.0.0.1", f"{service.getsockname()[1]}/udp")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert service.recv(10) == b"\0"


def test_what_needs_no_binding_works_in_a_plain_environment(plain: Path, tmp_path: Path) -> None:
    config = _configured(tmp_path, "nflog")
    for words in (["check"], ["rules", "print"], ["knock", "--help"]):
        done = _run(str(plain / "logknock"), *words, LOGKNOCK_CONFIG=str(config))
        assert done.returncode == 0, done.stderr
    assert "table inet logknock" in _run(str(plain / "logknock"), "rules", "print", "-c", str(config)).stdout


def _configured(folder: Path, source: str) -> Path:
    config = folder / "logknock.toml"
    config.write_text(CONFIG.format(folder=folder, source=source))
    config.chmod(0o600)
    return config


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["rules", "apply"], "python3-nftables"),
        (["rules", "apply", "--iptables"], "python3-nftables"),
        (["rules", "diff"], "python3-nftables"),
        (["rules", "remove"], "python3-nftables"),
        (["run"], "python3-systemd"),
        (["replay", "journal"], "python3-systemd"),
        (["demo"], "python3-rich"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_names_the_package_of_the_binding_that_it_misses(
    plain: Path, hosts: tuple[Host, Host], tmp_path: Path, words: list[str], package: str
) -> None:
    config = [] if words == ["demo"] else ["-c", str(_configured(tmp_path, "journal"))]
    done = hosts[0].run(str(plain / "logknock"), *words, *config, check=False, cwd="/")
    assert done.returncode == UNAVAILABLE
    *_, said, hint = done.stderr.splitlines()
    assert said.startswith("logknock: ")
    assert hint.startswith(("hint: install the package ", "hint: install "))
    assert package in hint
    assert "--system-site-packages" in hint


def test_an_environment_that_sees_the_distribution_is_not_told_to(tmp_path: Path) -> None:
    done = _run(sys.executable, "-c", "import logknock.errors as e; print(repr(e.UNSEEN_PACKAGES))")
    assert done.stdout == "''\n"
