"""One daemon a network namespace: what a second one is told, and what a stranger can do about it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from logknock.errors import UNAVAILABLE
from logknock.sole import NAME

from .config_files import DOOR, write
from .netns import Host

CLAIM = """
import sys
from pathlib import Path
from logknock.config import load
from logknock.errors import LogknockError
from logknock.sole import Sole
sole = Sole()
try:
    sole.use(load(Path(sys.argv[1])))
    print(" ".join(filter(None, ("claimed", sole.stranger))), flush=True)
except LogknockError as error:
    print(error.exit_code, error.message, flush=True)
sys.stdin.read()
"""

# Before the daemon has begun to load its rules: may another's be replaced?
RULES = """
import sys
from logknock.errors import LogknockError
from logknock.sole import refuse_others
try:
    refuse_others(int(sys.argv[1]))
except LogknockError as error:
    print(error.exit_code, error.message)
"""

STRANGER = """
import os, socket, sys
os.setuid(65534)
wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
wire.bind(chr(0) + sys.argv[1])
wire.listen()
print("claimed", flush=True)
sys.stdin.read()
"""

REFUSED = f"{UNAVAILABLE} another logknock (process {{}}) keeps table inet logknock in this network namespace"


@contextmanager
def process(host: Host, code: str, argument: str) -> Iterator[tuple[int, str]]:
    """A process that holds on to what it has until the block ends: its number, and what it has said."""
    pipe = subprocess.PIPE
    with host.start(sys.executable, "-c", code, argument, stdin=pipe, stdout=pipe) as started:
        assert started.stdout is not None
        try:
            yield started.pid, started.stdout.readline().strip()
        finally:
            started.kill()


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(write(tmp_path, DOOR))


def test_a_second_daemon_is_told_who_has_the_table(hosts: tuple[Host, Host], config: str) -> None:
    """In the same network namespace, whatever its files; in another it is another table."""
    one, other = hosts
    with process(one, CLAIM, config) as (first, said):
        assert said == "claimed"
        with process(one, CLAIM, config) as (_, said), process(other, CLAIM, config) as (_, elsewhere):
            assert said == REFUSED.format(first)
            assert elsewhere == "claimed"
        assert one.python(RULES, "0").stdout.strip() == REFUSED.format(first)
        assert one.python(RULES, str(first)).stdout == "", "a daemon's own rules may be replaced"
    with process(one, CLAIM, config) as (_, said):
        assert said == "claimed", "kill -9 leaves nothing behind"


def test_a_daemon_that_keeps_no_table_of_ours_is_in_nobody_s_way(
    hosts: tuple[Host, Host], tmp_path: Path, config: str
) -> None:
    text = f'{DOOR}guard = false\nsets = ["inet filter knocked4"]\n'
    guest = str(write(tmp_path / "guest", text))
    with process(hosts[0], CLAIM, config) as (_, first), process(hosts[0], CLAIM, guest) as (_, second):
        assert (first, second) == ("claimed", "claimed")


def test_a_stranger_who_takes_the_name_keeps_no_daemon_from_its_work(hosts: tuple[Host, Host], config: str) -> None:
    with process(hosts[0], STRANGER, NAME[1:]) as (pid, stranger), process(hosts[0], CLAIM, config) as (_, said):
        assert stranger == "claimed"
        words = "has the name by which daemons know of each other, and is no logknock"
        assert said == f"claimed process {pid} of uid 65534 {words}"
        assert hosts[0].python(RULES, "0").stdout == ""
