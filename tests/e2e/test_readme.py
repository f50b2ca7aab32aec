"""The README's way to a guarded ssh, followed word for word on a host of one's own.

The host is a network namespace with a private /etc, /run and /var/lib over the real ones; only `ssh` itself is
replaced by an attempt to talk to the service on its port.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..netns import Host
from .world import World, until

TREE = Path(__file__).parents[2]
README = (TREE / "README.md").read_text()
GUIDE = README.partition("## Guard ssh on a real host")[2].partition("\n### ")[0]
BLOCKS: list[str] = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)

# Writes go to memory: to an overlay of /etc, where programs still find what is theirs, to an empty /run and /var/lib.
PRIVATE = """
mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib
echo "10.99.0.1 host.example" >> /etc/hosts
echo private; exec sleep infinity
"""


def block(marker: str) -> str:
    """The commands of the one block that holds this text."""
    (found,) = [text for text in BLOCKS if marker in text]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make install` has put the command; the target is the README's, its places are the test's."""
    folder = tmp_path_factory.mktemp("installed")
    assert block("make install") == "make install\n"
    command = folder / "bin" / "logknock"
    command.parent.mkdir()
    make = ["make", "-C", str(TREE), "install", f"PREFIX={folder}/opt", f"COMMAND={command}"]
    done = subprocess.run(make, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return command.parent


class Machine:
    """A host with a private file system, and shells on it."""

    def __init__(self, holder: subprocess.Popen[str], path: Path) -> None:
        self._enter = [
            "nsenter",
            "-t",
            str(holder.pid),
            "-m",
            "-n",
            "--",
            "env",
            f"PATH={path}:/usr/sbin:/usr/bin:/sbin:/bin",
        ]

    def terminal(self, commands: str) -> subprocess.Popen[str]:
        """A shell that stops at the first command that fails; what it says comes on its standard output."""
        shell = [*self._enter, "bash", "-e", "-c", f"exec 2>&1; cd /; {commands}"]
        return subprocess.Popen(shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def run(self, commands: str) -> str:
        """What the commands say; they must succeed."""
        shell = self.terminal(commands)
        said, _ = shell.communicate(timeout=60)
        assert shell.returncode == 0, said
        return said


@contextmanager
def machine(host: Host, path: Path) -> Iterator[Machine]:
    holder = host.start("unshare", "--mount", "sh", "-e", "-c", PRIVATE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "private\n"
        yield Machine(holder, path)
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def expect(terminal: subprocess.Popen[str], text: str) -> None:
    """Read the terminal's lines until one has this text."""
    assert terminal.stdout is not None
    seen = []
    while text not in (line := terminal.stdout.readline()):
        seen.append(line)
        assert line, f"no {text!r} in:\n" + "".join(seen)


def test_the_guide_works_word_for_word(world: World, installed: Path) -> None:
    with machine(world.gateway, installed) as gateway, machine(world.client, installed) as client, world.service(22):
        assert "ok, 1 door, 0 warnings" in gateway.run(block("logknock check"))
        first = gateway.terminal(block("rules apply --confirm"))
        expect(first, "within 60 s")
        second = gateway.terminal(block("rules confirm"))
        try:
            expect(second, "ready: NFLOG group 5, doors: ssh")
            expect(first, "confirmed")
            assert first.wait(10) == 0
            assert not world.reaches()
            knock, ssh = block("ssh host.example").splitlines()
            assert ssh == "ssh host.example"
            client.run(knock)
            for line in GUIDE.partition("```\n198.51.100.7")[2].partition("command timeout")[0].splitlines()[1:-1]:
                expect(second, line.replace("198.51.100.7", world.client.ipv4))
            assert world.reaches()
            assert "10.99.0.2 . tcp . 22 timeout 30s" in gateway.run(block("nft list set"))
            second.terminate()
            assert second.wait(10) == 0
        finally:
            second.kill()
        gateway.run("logknock rules remove")
        until(world.reaches, "ssh open to all again")


def test_the_unit_is_one_that_systemd_takes(world: World, tmp_path: Path) -> None:
    """systemd-analyze reads it, and finds fault with nothing but the command that is not installed here."""
    unit = block("logknock.service").partition("<<'END'\n")[2].partition("END\n")[0]
    file = tmp_path / "logknock.service"
    file.write_text(unit.replace("/usr/local/bin/logknock", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_of_the_readme_is_there(world: World) -> None:
    """The README promises no command or option that does not exist."""
    promised = set(re.findall(r"`logknock ([a-z-]+)(?: ([a-z]+)| \[?(--[a-z]+))?", README))
    assert len(promised) >= 6
    for command, sub, option in promised:
        words = [command, sub] if command == "rules" and sub else [command]
        helped = world.gateway.logknock(*words, "--help").stdout
        assert option in helped
