"""Pages of the documentation, and the commands in them, run as they stand.

Rule 1: what a page says is not repeated in a test: a test names a block by words in it, and runs that. Rule 2: on pages
that somebody follows (docs/tutorial.md, docs/howto/*.md) ```sh are commands, every one of which is run; ```toml is a
configuration or a part of one; ```text is what is printed, or a picture of it. Rule 3: a comment just before a block,
`<!-- run: client -->`, names the host that it is for, if that is another than the page's own.

A test module says which page it follows (`PAGE = follows("docs/howto/ssh.md")`); tests/test_pages.py finds pages that
nobody follows or two do, and `every_block_is_run` of conftest.py the commands that none of its tests has run.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..netns import Host
from .booted import PROJECT
from .world import PATIENCE

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Whoever follows a page has a terminal of root's; nothing of the tests' own environment comes through.
_ENVIRONMENT = ("env", "-i", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "PYTHONDONTWRITEBYTECODE=1")

# What one block may take, in seconds: one that installs packages takes ten on a machine with nothing else to do.
_LONG = 180

_FENCE = re.compile(r"^( *)(`{3,})\s*(\S*).*$")
_HEADING = re.compile(r"^(#{1,6}) +(.*?) *$")
_PLACE = re.compile(r"^ *<!-- *run: *(.*?) *-->$")

# What differs each time that a page is followed: addresses, moments, numbers, and how wide a column is.
_ADDRESS = re.compile(r"\b\d+\.\d+\.\d+\.\d+\b|(?<![\w:])(?:[0-9a-f]{1,4}:+)+[0-9a-f]{1,4}(?![\w:])")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Block(NamedTuple):
    """A fenced block: where it is (line: of its first line, from 1), under which headings, and for which host."""

    page: str
    line: int
    headings: tuple[str, ...]
    language: str
    text: str
    place: str = ""


# The blocks that have been run by now.
_ran: set[Block] = set()


@dataclass(frozen=True, slots=True)
class Page:
    """A page, or a part of one. followed: whether its test module answers for every command on it."""

    name: str
    blocks: tuple[Block, ...]
    followed: bool = False

    def under(self, heading: str) -> "Page":
        """The part under a heading."""
        found = tuple(block for block in self.blocks if heading in block.headings)
        assert found, f"{self.name} has no block under {heading!r}"
        return Page(self.name, found)

    def written_in(self, language: str) -> tuple[Block, ...]:
        """The blocks in a language, in their order."""
        return tuple(block for block in self.blocks if block.language == language)

    @property
    def commands(self) -> tuple[Block, ...]:
        """The blocks of commands, in their order."""
        return self.written_in("sh")

    def block(self, words: str = "", language: str = "sh") -> Block:
        """The one block that holds these words; of several the first that was not run yet."""
        found = [block for block in self.written_in(language) if words in block.text]
        assert found, f"{self.name} has no ```{language} with {words!r}"
        fresh = [block for block in found if block not in _ran] if len(found) > 1 else found
        assert fresh, f"each ```{language} of {self.name} with {words!r} has been run"
        return fresh[0]

    def not_run(self) -> list[str]:
        """Where the commands are that nobody has run by now."""
        return [f"{self.name}:{block.line}" for block in self.commands if block not in _ran]


def read(name: str) -> Page:
    """A page by its name in the checkout."""
    return Page(name, tuple(_blocks(name, (PROJECT / name).read_text())))


def follows(name: str) -> Page:
    """A page that the tests of this module follow to the last command."""
    page = read(name)
    return Page(page.name, page.blocks, followed=True)


def _blocks(name: str, text: str) -> Iterator[Block]:
    lines = iter(enumerate(text.split("\n"), 1))
    headings: list[str] = []
    place = ""
    for number, line in lines:
        if fence := _FENCE.match(line):
            indent, ticks, language = fence.groups()
            inside = []
            for _, within in lines:
                if within.strip() == ticks:
                    break
                inside.append(within.removeprefix(indent) + "\n")
            yield Block(name, number + 1, tuple(headings), language, "".join(inside), place)
        elif heading := _HEADING.match(line):
            headings[len(heading[1]) - 1 :] = [heading[2]]
        found = _PLACE.match(line)
        place = found[1] if found else ""


def agree(shown: str, said: str) -> None:
    """Each line that a page shows was said, or is part of one, in this order: but for numbers and how wide columns are.

    An … stands for anything, in a line or as a line.
    """
    rest = iter([_alike(line) for line in said.splitlines()])
    for line in shown.splitlines():
        parts = [re.escape(part) for part in _alike(line).split("…")]
        if any(parts):
            found = re.compile(".*".join(parts))
            assert any(found.search(other) for other in rest), f"{line!r} was not said, or not in its place:\n{said}"


def _alike(line: str) -> str:
    return " ".join(_NUMBER.sub("0", _ADDRESS.sub("ADDRESS", line)).split())


# ---- terminals


@dataclass
class Terminal:
    """Commands that go on while others run; `said` is what they have said by now."""

    process: subprocess.Popen[bytes]
    said: str = ""
    _rest: bytes = field(default=b"", repr=False)

    def expect(self, words: str) -> None:
        """Wait until these words have come."""
        end = time.monotonic() + PATIENCE
        while words not in self.said:
            more = self._read(end - time.monotonic())
            assert more, f"no {words!r} in:\n{self.said}"

    def so_far(self) -> str:
        """What has been said by now."""
        while self._read(0):
            pass
        return self.said

    def end(self, *, fails: bool = False) -> str:
        """All that is said until the commands have come to their end by themselves, and have not failed, or have."""
        end = time.monotonic() + _LONG
        while self._read(end - time.monotonic()):
            pass
        try:
            code = self.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {_LONG} s:\n{self.said}") from None
        assert bool(code) == fails, f"exit {code}\n{self.said}"
        return self.said

    def interrupt(self) -> None:
        """Ctrl-C, and wait until all is over."""
        self._signal(signal.SIGINT)
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """End what runs still."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _read(self, patience: float) -> bool:
        """Take over what comes next; whether anything did before the end or the patience was over."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], max(0.0, patience))[0]:
            return False
        some = os.read(self.process.stdout.fileno(), 65536)
        self._rest += some
        whole, newline, self._rest = self._rest.rpartition(b"\n")
        self.said += (whole + newline if some else self._rest).decode()
        return bool(some)


@contextmanager
def terminal(host: Host, commands: str | Block, folder: Path | str = "/root") -> Iterator[Terminal]:
    """A shell that begins with these commands in a folder, and stops at the first that fails."""
    text = commands.text if isinstance(commands, Block) else commands
    shell = [*_ENVIRONMENT, "bash", "-euo", "pipefail", "-c", f"exec 2>&1; cd {folder}\n{text}"]
    process = subprocess.Popen(
        host.argv(shell), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    made = Terminal(process)
    if isinstance(commands, Block):
        _ran.add(commands)
    try:
        yield made
    finally:
        made.close()


def run(host: Host, commands: str | Block, folder: Path | str = "/root", *, fails: bool = False) -> str:
    """What the commands say; they must succeed, or must not."""
    with terminal(host, commands, folder) as made:
        return made.end(fails=fails)


@dataclass
class Guide:
    """Somebody who follows a page: `hosts` by the names in its comments, "" for the page's own."""

    page: Page
    hosts: Mapping[str, Host]
    folder: Path | str = "/root"

    def run(self, words: str = "", *, fails: bool = False) -> str:
        """What the block with these words says; it must succeed, or must not."""
        block = self.page.block(words)
        return run(self.hosts[block.place], block, self.folder, fails=fails)

    @contextmanager
    def start(self, words: str = "") -> Iterator[Terminal]:
        """The block with these words in a terminal of its own, until the Python block ends."""
        block = self.page.block(words)
        with terminal(self.hosts[block.place], block, self.folder) as made:
            yield made

    def shown(self, words: str, said: str) -> None:
        """What the page shows in the block with these words was said."""
        agree(self.page.block(words, "text").text, said)


# ---- hosts as the pages have them

# What is to be found by its name where logknock is installed.
COMMANDS = (PROJECT / ".venv/bin/logknock", PROJECT / ".venv/bin/logknock-client")

# The addresses of host.example and of who knocks there, of each family (RFC 5737, RFC 3849).
HOST = ("192.0.2.10", "2001:db8:1::10")
KNOCKER = ("203.0.113.7", "2001:db8:7::7")


def documented(hosts: tuple[Host, Host]) -> None:
    """Give the gateway and the client the addresses that the pages speak of; they use them with each other."""
    gateway, client = hosts
    for host, addresses in ((gateway, HOST), (client, KNOCKER)):
        host.run("ip", "addr", "add", f"{addresses[0]}/32", "dev", "eth0")
        host.run("ip", "addr", "add", f"{addresses[1]}/128", "dev", "eth0", "nodad")
    for host, there, here in ((gateway, KNOCKER, HOST), (client, HOST, KNOCKER)):
        for number in range(2):
            host.run("ip", "route", "replace", there[number], "dev", "eth0", "src", here[number])


# Writes go to memory: to overlays, where programs still find what is theirs.
_PRIVATE = """
mount -t tmpfs tmpfs /run
for place in etc root usr var; do
    written=/run/overlay/$place
    mkdir -p $written/upper $written/work
    mount -t overlay overlay -o lowerdir=/$place,upperdir=$written/upper,workdir=$written/work /$place
done
rm -rf /etc/logknock /var/lib/logknock /root/.ssh /root/.config/logknock
echo private
exec sleep infinity
"""


@dataclass(frozen=True, slots=True)
class PrivateHost(Host):
    """A host whose /etc, /root, /usr, /var and /run are its own; `holder` is the process that holds them."""

    holder: int

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self.holder}", "--mount", "--net", "--", *command]


@contextmanager
def private(host: Host, names: Mapping[str, Sequence[str]], commands: Sequence[Path] = ()) -> Iterator[PrivateHost]:
    """The host with a file system of its own, addresses for names, and commands as if they were installed."""
    lines = "".join(f"{address} {name}\n" for name, addresses in names.items() for address in addresses)
    holder = host.start("unshare", "--mount", "sh", "-e", "-c", _PRIVATE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "private\n"
        made = PrivateHost(host.name, host.ipv4, host.ipv6, holder.pid)
        made.run("sh", "-c", "cat >> /etc/hosts", input=lines)
        for command in commands:
            made.run("ln", "-sf", str(command), f"/usr/bin/{command.name}")
        yield made
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


# As the package leaves it.
_CONFIGURED = """
groupadd --force --system logknock
install -d -m 750 -g logknock /etc/logknock /etc/logknock/conf.d
install -m 640 -g logknock /dev/stdin /etc/logknock/logknock.toml
logknock rules apply
"""


@contextmanager
def guarded(host: PrivateHost, configuration: str) -> Iterator[Terminal]:
    """A host with this configuration, the rules and the daemon."""
    host.run(*_ENVIRONMENT, "bash", "-ec", _CONFIGURED, input=configuration)
    with terminal(host, "exec logknock run") as daemon:
        daemon.expect("ready")
        yield daemon


_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.5)"


def reaches(host: Host, *addresses: str, port: int = 22) -> bool:
    """Whether the host can connect to a port of one of the addresses now; by default host.example's."""
    return any(not host.python(_CONNECT, address, str(port), check=False).returncode for address in addresses or HOST)


# ---- ssh

# Debian's own openssh-server would start on this machine when it is installed.
_SSHD = """
install -D -m 600 {keys}/id_ed25519.pub /root/.ssh/authorized_keys
exec dropbear -F -E -s -r {keys}/host_key -P "" -p 22
"""
_SSH = """
mkdir -m 700 /root/.ssh
install -m 600 -t /root/.ssh {keys}/id_ed25519 {keys}/known_hosts
"""


def make_keys(folder: Path, *names: str) -> None:
    """A key for who comes, and one for hosts of these names and addresses, which the other knows."""
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(folder / "id_ed25519")], check=True)
    command = ["dropbearkey", "-t", "ed25519", "-f", str(folder / "host_key")]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    (key,) = [line for line in made.stdout.splitlines() if line.startswith("ssh-")]
    (folder / "known_hosts").write_text(f"{','.join(names)} {' '.join(key.split()[:2])}\n")


@contextmanager
def ssh_server(host: Host, keys: Path) -> Iterator[None]:
    """An ssh server on the host, which lets in whom it has the key of; with these keys it is the only one."""
    with terminal(host, _SSHD.format(keys=keys)) as server:
        server.expect("Not backgrounding")
        try:
            yield
        finally:  # what serves a connection goes on behind its end
            subprocess.run(["pkill", "-f", f"{keys}/host_key"], check=False)


def may_ssh(host: PrivateHost, keys: Path) -> None:
    """Give the host's root the key, and the hosts' names."""
    run(host, _SSH.format(keys=keys))
