"""Who loads the rules stays in: the session, the way back when it is cut, and ssh that no door could open (T38)."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from logknock.errors import FAILURE

from ..netns import Host
from .booted import booted
from .test_client import sshd
from .world import PATIENCE, SSH, World, until, write_sequences

# Whatever environment it is started in.
LOGKNOCK = f"env PYTHONPATH={Path(__file__).parents[2]} {sys.executable} -m logknock"

BANNER = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 22), timeout=0.7, source_address=(sys.argv[2], 0)) as s:
        print(s.recv(4).decode())
except OSError as error:
    sys.exit(str(error))
"""


class Session:
    """An ssh session from the client to the gateway, and a command in it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def read_until(self, words: str) -> str:
        """What is said up to a line with these words; as much as there is if the command ends before."""
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if words in line or line.startswith("ended "):
                break
        return said

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


class Administrator:
    """Who administers the gateway from the client, over ssh."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder

    def argv(self, address: str, *words: str) -> list[str]:
        options = {"IdentityFile": "user_key", "UserKnownHostsFile": "known_hosts", "StrictHostKeyChecking": "no"}
        options |= {"BatchMode": "yes", "LogLevel": "ERROR", "ConnectTimeout": "20"}
        return ["ssh", "-F", "none", *(f"-o{key}={value}" for key, value in options.items()), f"root@{address}", *words]

    @contextmanager
    def session(self, command: str, *, address: str = "", terminal: bool = False) -> Iterator[Session]:
        """A session that runs a command, until the block ends."""
        argv = self.argv(address or self.world.gateway.ipv4, *(["-tt"] if terminal else []), command)
        pipe = subprocess.PIPE
        process = self.world.client.start(
            *argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, cwd=self.folder, errors="replace"
        )
        # Whoever waits for a line that does not come is not to wait for ever.
        limit = Timer(4 * PATIENCE, process.kill)
        limit.start()
        with process:
            try:
                yield Session(process)
            finally:
                limit.cancel()
                process.kill()

    def apply(self, time: str) -> str:
        """The command that loads the rules on trial. As after sudo: the variable is in the shell's environment only."""
        return (
            f"env -u SSH_CONNECTION {LOGKNOCK} rules apply -c {self.world.config} --confirm {time}; echo ended $?; cat"
        )

    def comes_in(self, source: str = "", address: str = "") -> bool:
        """Whether a new connection to ssh can be made, from this address of the client's."""
        hosts = self.world
        to = address or hosts.gateway.ipv4
        done = hosts.client.python(BANNER, to, source or hosts.client.ipv4, check=False)
        return done.stdout == "SSH-\n"


@pytest.fixture
def administrator(world: World, tmp_path: Path) -> Iterator[Administrator]:
    with sshd(world.gateway, tmp_path):
        yield Administrator(world, tmp_path)


def trusted(host: Host, name: str = "trusted4") -> list[str]:
    """The elements of a set of the trusted, with their timeouts, and without what is left of these and comments."""
    listed = host.run("nft", "list", "set", "inet", "logknock", name).stdout
    found = re.search(r"elements = \{([^}]*)\}", listed)
    return (
        [re.sub(r' expires \w+| comment ".*"', "", " ".join(text.split())) for text in found[1].split(",")]
        if found
        else []
    )


def findings(doctor: str) -> set[tuple[str, str]]:
    """What the doctor has found, each with its level."""
    return {(finding["check"], finding["level"]) for finding in json.loads(doctor)["findings"]}


def is_loaded(world: World) -> bool:
    return "logknock" in world.gateway.nft("list tables")


def unconfirmed(world: World) -> Path:
    return world.config.parent / "run" / "rules.unconfirmed"


# ---- the session's own address


def test_t38_who_loads_the_rules_over_ssh_is_let_in_until_they_are_undone(administrator: Administrator) -> None:
    """T38: the session goes on, a second one can be made, from nowhere else; and then all is as it was."""
    world = administrator.world
    world.configure(SSH + '[firewall]\ntrusted = ["10.99.0.3"]\n')
    other = "10.99.0.4"
    world.client.run("ip", "addr", "add", f"{other}/24", "dev", "eth0")
    with administrator.session(administrator.apply("15s")) as session:
        said = session.read_until("still reachable?")
        assert "\n10.99.0.2, where you come from, is trusted meanwhile: knock from elsewhere to try it\n" in said
        # A neighbour of the address that is trusted for good: neither takes on the other's timeout.
        assert trusted(world.gateway) == ["10.99.0.2 timeout 15s", "10.99.0.3"]
        until(administrator.comes_in, "a second session")
        assert not administrator.comes_in(other)
        assert "ended 1" in session.read_until("ended")
        assert not is_loaded(world)
        session.type("the session goes on")
        assert session.read_until("goes on")
        until(lambda: administrator.comes_in(other), "a session from elsewhere")


def test_t38_a_confirmation_ends_the_session_s_privilege(administrator: Administrator) -> None:
    """T38: at once, so that who has confirmed sees how things stand from now on; the session itself goes on."""
    world = administrator.world
    with administrator.session(administrator.apply("1h")) as session:
        session.read_until("still reachable?")
        assert trusted(world.gateway) == ["10.99.0.2 timeout 1h"]
        diff = world.gateway.logknock("rules", "diff", "-c", str(world.config), check=False)
        assert not re.search(r"^[-+].*10\.99\.0\.2", diff.stdout, re.MULTILINE)
        doctor = world.gateway.logknock("doctor", "--json", "-c", str(world.config), check=False)
        assert ("set-trusted", "error") not in findings(doctor.stdout)
        world.gateway.nft("add element inet logknock trusted4 { 203.0.113.7 timeout 1h }")  # an administrator's
        world.gateway.logknock("rules", "confirm", "-c", str(world.config))
        assert "ended 0" in session.read_until("ended")
        assert trusted(world.gateway) == ["203.0.113.7 timeout 1h"]
        assert not administrator.comes_in()
        session.type("the session goes on")
        assert session.read_until("goes on")


def test_t38_a_session_over_ipv6_is_let_in_too(administrator: Administrator) -> None:
    world = administrator.world
    with administrator.session(administrator.apply("1h"), address=world.gateway.ipv6) as session:
        session.read_until("still reachable?")
        assert trusted(world.gateway, "trusted6") == ["fd99::2 timeout 1h"]
        assert trusted(world.gateway) == []
        until(lambda: administrator.comes_in("fd99::2", "fd99::1"), "a second session")
        world.gateway.logknock("rules", "remove", "-c", str(world.config))


def test_who_is_trusted_anyway_is_not_trusted_for_a_time(administrator: Administrator) -> None:
    world = administrator.world
    world.configure(SSH + '[firewall]\ntrusted = ["10.99.0.0/24"]\n')
    with administrator.session(administrator.apply("1h")) as session:
        assert "where you come from" not in session.read_until("still reachable?")
        assert trusted(world.gateway) == ["10.99.0.0/24"]
        world.gateway.logknock("rules", "remove", "-c", str(world.config))


@pytest.mark.parametrize(
    ("word", "line"),
    [
        pytest.param(
            "203.0.113.9 50022 10.99.0.1 22",
            "203.0.113.9, where you come from (as SSH_CONNECTION says, of a connection that is over), "
            "is trusted meanwhile: knock from elsewhere to try it",
            id="over, as mosh's is at once: said to be",
        ),
        pytest.param(
            "203.0.113.9 no 10.99.0.1 22",
            "where you come from cannot be told from SSH_CONNECTION: nobody is trusted meanwhile",
            id="malformed: nobody is trusted",
        ),
    ],
)
def test_what_the_kernel_does_not_know_of(world: World, word: str, line: str) -> None:
    told = {**os.environ, "SSH_CONNECTION": word}
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config), "--confirm", "1s", check=False, env=told)
    assert f"\n{line}\n" in done.stdout


# ---- the way back


def test_t38_a_session_that_is_cut_does_not_keep_the_rules(administrator: Administrator) -> None:
    """T38: the connection goes, sshd hangs up the terminal, and the rules are undone all the same."""
    world = administrator.world
    with administrator.session(administrator.apply("8s"), terminal=True) as session:
        session.read_until("still reachable?")
        undoer = int(unconfirmed(world).read_text().split()[-1])
        session.process.kill()
        until(lambda: not is_loaded(world), "the undoing")
        until(lambda: not Path(f"/proc/{undoer}").exists(), "the end of the undoing process")
        assert not unconfirmed(world).exists()
    until(administrator.comes_in, "a session")


@contextmanager
def control_group() -> Iterator[Path]:
    """A group of version 2, for the processes of a session."""
    top = next(
        top for top in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if (top / "cgroup.procs").exists()
    )
    group = top / f"logknock-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        until(lambda: not (group / "cgroup.procs").read_text(), "the group to be empty")
        group.rmdir()


def test_t38_the_end_of_the_session_s_control_group_stops_no_undoing(world: World) -> None:
    """T38: systemd-logind kills what is in a session's group, a session leader of its own or not."""
    apply = f'echo $$ > "$0"; exec {LOGKNOCK} rules apply -c {world.config} --confirm 10s'
    with control_group() as group:
        # `ip netns exec` would hide the groups.
        argv = ["nsenter", f"--net=/run/netns/{world.gateway.name}", "sh", "-c", apply, str(group / "cgroup.procs")]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as command:
            assert command.stdout is not None
            assert "loaded: 1 guarded" in command.stdout.readline()
            (group / "cgroup.kill").write_text("1")
            assert command.wait(PATIENCE) == -signal.SIGKILL
        assert is_loaded(world)
        until(lambda: not is_loaded(world), "the undoing")


def test_t38_systemd_ends_a_session_and_not_its_undoing(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """T38: with a real systemd, that stops a scope such as logind makes for each session."""
    folder = tmp_path / "host"
    folder.mkdir()
    with booted(hosts[0], folder) as inside:
        world = World(inside, hosts[1], folder / "logknock.toml")
        world.configure(SSH)
        apply = [*LOGKNOCK.split(), "rules", "apply", "-c", str(world.config), "--confirm", "12s"]
        scope = ["systemd-run", "-q", "--scope", "--unit=session-1.scope", "--slice=user-0.slice", "--", *apply]
        # A process of that host, for which its control groups are where it sees them.
        argv = ["nsenter", f"--target={inside.init}", "--cgroup", *inside.argv(scope)]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as command:
            assert command.stdout is not None
            assert "loaded: 1 guarded" in command.stdout.readline()
            inside.run("systemctl", "stop", "session-1.scope")
            assert command.wait(PATIENCE) != 0
        assert is_loaded(world)
        until(lambda: not is_loaded(world), "the undoing")


# ---- rules of an earlier version


def earlier(text: str) -> str:
    """The rules as they were before a session could be trusted for a time."""
    for family in "46":
        now = f"type ipv{family}_addr; flags interval, timeout; }}"
        assert text.count(now) == 1
        text = text.replace(now, f"type ipv{family}_addr; flags interval; auto-merge; }}")
    return text


@pytest.mark.parametrize("option", [[], ["--confirm", "1s"]], ids=["for good", "on trial"])
def test_rules_of_an_earlier_version_are_replaced_as_they_are(world: World, option: list[str]) -> None:
    """In one transaction, though the kernel changes no set's flags; grants stay; an undo brings the old ones back."""
    gateway = world.gateway
    world.configure(SSH + '[firewall]\ntraps = 0\ntrusted = ["192.0.2.0/24"]\n')
    gateway.nft(earlier(gateway.logknock("rules", "print", "-c", str(world.config)).stdout))
    gateway.nft("add element inet logknock granted4 { 203.0.113.1 . tcp . 22 timeout 1h }")
    before = gateway.nft("list set inet logknock trusted4")
    world.configure(SSH + '[firewall]\ntraps = 0\ntrusted = ["192.0.2.0/25"]\n')
    done = gateway.logknock("rules", "apply", "-c", str(world.config), *option, check=False)
    after = gateway.nft("list set inet logknock trusted4")
    if option:
        assert "they are undone, what was there before is back" in done.stderr
        assert after == before
    else:
        assert "flags interval,timeout" in after
        assert trusted(gateway) == ["192.0.2.0/25"]
    assert list(world.granted()) == ["203.0.113.1 . tcp . 22"]
    assert "ip saddr @trusted4 goto trusted" in gateway.run("nft", "list", "chain", "inet", "logknock", "guard").stdout


# ---- ssh that no door could open


@contextmanager
def listening(host: Host, folder: Path, name: str, port: int) -> Iterator[None]:
    """A process of that name, which listens."""
    (folder / name).symlink_to("/usr/bin/python3")
    code = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with host.start(str(folder / name), "-c", code, str(port), stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
            yield
        finally:
            process.kill()


def refused(world: World, *option: str) -> str:
    """What apply says when it refuses; nothing is loaded."""
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config), *option, check=False)
    assert done.returncode == FAILURE
    assert not is_loaded(world)
    return done.stderr


@pytest.mark.parametrize("name", ["sshd", "dropbear", "nginx"])
def test_t38_ssh_on_another_port_is_not_closed_for_good(world: World, tmp_path: Path, name: str) -> None:
    world.configure(SSH + '[firewall]\nguarded = ["2222/tcp"]\n')
    with listening(world.gateway, tmp_path, name, 2222):
        if name == "nginx":
            world.apply()
            return
        doctor = world.gateway.logknock("doctor", "--json", "-c", str(world.config), check=False)
        assert ("ssh-shut", "error") in findings(doctor.stdout)
        for option in ([], ["--confirm", "60s"], ["--yes"]):
            assert refused(world, *option) == (
                "logknock: 2222/tcp is ssh, it is guarded, and no door opens it: it would be closed to you, too\n"
                'hint: a door needs opens = ["2222/tcp"]; or take it out of [firewall] guarded\n'
            )


def test_t38_a_door_into_other_rules_is_no_way_in(world: World) -> None:
    """T38: it fills sets of the administrator's, and ours is what closes ssh."""
    other = SSH + 'sets = ["inet filter allowed4"]\nguard = false\n[firewall]\n'
    world.configure(f'{other}guarded = ["22/tcp"]\n')
    said = refused(world)
    assert "22/tcp is ssh, it is guarded, and no door opens it" in said
    checked = world.gateway.logknock("check", "-c", str(world.config))
    assert f"warning: {said.splitlines()[0].removeprefix('logknock: ')}" in checked.stderr
    world.configure(other)
    world.apply()


def test_t38_the_port_of_the_session_is_ssh_whatever_listens(administrator: Administrator) -> None:
    """A one-time door without a sequence left cannot open it again."""
    world = administrator.world
    codes = write_sequences(world.config.parent / "codes", [])
    world.configure(f'[doors.ssh]\nonetime = ["{codes}"]\nopens = ["22/tcp"]\n')
    with administrator.session(administrator.apply("60s")) as session:
        said = session.read_until("ended")
        assert f"22/tcp is ssh, and no door can open it: door ssh: {codes} is used up" in said
        assert "ended 1" in said
    assert not is_loaded(world)


def test_t38_one_time_sequences_that_are_used_are_no_way_in(world: World) -> None:
    """T38: as long as one is left the rules are loaded, and not after that."""
    codes = write_sequences(world.config.parent / "codes", [" 7001, 8001, 9001"])
    world.configure(f'[doors.ssh]\nonetime = ["{codes}"]\nopens = ["22/tcp"]\n[firewall]\ntraps = 0\n')
    world.apply()
    with world.daemon() as daemon:
        world.knock("7001/tcp", "8001/tcp", "9001/tcp")
        daemon.wait_for("is used up")
    world.gateway.logknock("rules", "remove", "-c", str(world.config))
    assert refused(world) == (
        f"logknock: 22/tcp is ssh, and no door can open it: door ssh: {codes} is used up\n"
        "hint: `logknock onetime generate` makes a new file, for the door and the client\n"
    )
    doctor = world.gateway.logknock("doctor", "--json", "-c", str(world.config), check=False)
    assert ("onetime", "error") in findings(doctor.stdout)
    world.configure(
        f'[doors.ssh]\nonetime = ["{codes}"]\nopens = ["22/tcp"]\n' + SSH.replace("doors.ssh", "doors.known")
    )
    world.apply()


def test_with_a_mark_nothing_is_closed_and_nothing_refused(world: World) -> None:
    codes = write_sequences(world.config.parent / "codes", [])
    door = f'[doors.ssh]\nonetime = ["{codes}"]\nopens = ["22/tcp"]\n'
    world.configure(f"{door}[firewall]\nmark = 0x10000\n")
    world.apply()
