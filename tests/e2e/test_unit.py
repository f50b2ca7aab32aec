"""The unit on a booted systemd: it starts, knocks open, it reloads, is killed, comes back, and says what is wrong.

One host for all tests of this file; each leaves the service stopped and its own configuration behind.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from logknock.report import MESSAGE_IDS

from ..config_files import write
from ..netns import pair
from .booted import PROJECT, BootedHost, booted
from .pages import Guide, follows, read
from .world import KNOCKS, SSH, World, derived, until

UNITS = PROJECT / "packaging/systemd"
PAGE = follows("docs/howto/service.md")

EXPOSURE = 1.3

# What a package does: the program for Debian's own Python, the unit and what belongs to it.
INSTALL = r"""
rm -rf /var/lib/logknock /run/logknock
place=/usr/lib/python3/dist-packages/logknock
cp -r {project}/logknock $place && rm -rf $place/rules && cp -r {project}/rules $place/rules
printf '#!/usr/bin/python3\nfrom logknock.cli import main\nmain()\n' | install -m 755 /dev/stdin /usr/bin/logknock
cd {project}/packaging/systemd
install -m 644 logknock.service logknock@.service /usr/lib/systemd/system/
install -m 644 -D logknock.sysusers /usr/lib/sysusers.d/logknock.conf
install -m 644 -D logknock.tmpfiles /usr/lib/tmpfiles.d/logknock.conf
install -m 644 -D logknock.catalog /usr/lib/systemd/catalog/logknock.catalog
systemd-sysusers && systemd-tmpfiles --create logknock.conf && journalctl --update-catalog
printf '127.0.0.1 localhost\n' > /etc/hosts
systemctl daemon-reload
"""

# What `rules remove` says where it does not help for long.
COMES_BACK = "logknock.service loads them again at its next start: systemctl disable --now logknock\n"

DROP_INS = "/etc/systemd/system/{unit}.d"


@dataclass
class Server(World):
    """A host on which logknock is installed, and somebody who knocks."""

    host: BootedHost
    group: int
    cursor: str = ""  # where the journal was when the test began

    def configure(self, text: str, name: str = "") -> None:
        """Write the configuration of the service, or of an instance, as the howto says."""
        file = self.host.root(f"/etc/logknock/{name}/logknock.toml")
        file.parent.mkdir(mode=0o750, exist_ok=True)
        file.write_text(text)
        for path, mode in ((file.parent, 0o750), (file, 0o640)):
            os.chown(path, 0, self.group)
            path.chmod(mode)

    @contextmanager
    def drop_in(self, text: str, unit: str = "logknock.service") -> Iterator[None]:
        """Change the unit as an administrator does."""
        folder = self.host.root(DROP_INS.format(unit=unit))
        folder.mkdir()
        (folder / "test.conf").write_text(text)
        self.systemctl("daemon-reload")
        try:
            yield
        finally:
            (folder / "test.conf").unlink()
            folder.rmdir()
            self.systemctl("daemon-reload")

    def systemctl(self, *words: str, check: bool = True) -> int:
        return self.host.run("systemctl", *words, check=check).returncode

    def show(self, name: str, unit: str = "logknock.service") -> str:
        """A property of the unit."""
        return self.host.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def said(self, unit: str = "logknock.service") -> str:
        """What the unit, and systemd about it, has said in this test."""
        self.host.run("journalctl", "--sync")  # what was said and not taken in yet
        return self.host.run("journalctl", "-o", "cat", f"--after-cursor={self.cursor}", "-u", unit).stdout

    def entries(self, **fields: str) -> list[dict[str, str]]:
        """Entries of the journal that have these fields."""
        self.host.run("journalctl", "--sync")
        matches = [f"{name}={value}" for name, value in fields.items()]
        lines = self.host.run("journalctl", "-o", "json", *matches).stdout.splitlines()
        return [json.loads(line) for line in lines]

    @contextmanager
    def running(self, unit: str = "logknock.service") -> Iterator[int]:
        """The service, until the block ends; its main process."""
        self.systemctl("start", unit)
        try:
            yield self.host.pid_of(unit)
        finally:
            self.systemctl("stop", unit)

    def opens(self, *knocks: str) -> None:
        """Knock, and see that the door is open, for the time that it has."""
        self.host.nft("flush set inet logknock granted4")
        self.knock(*(knocks or KNOCKS))
        until(lambda: [each["timeout"] for each in self.granted().values()] == [30], "an open door")

    def standing(self) -> dict[str, list[dict[str, str]]]:
        """How the daemon stands, by its control socket."""
        answer: dict[str, list[dict[str, str]]] = json.loads(
            self.host.run("logknock", "status", "--json", check=False).stdout
        )
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("host")
    with pair() as (gateway, client), booted(gateway, folder, capabilities="CAP_SYSLOG,CAP_NET_ADMIN") as inside:
        inside.run("sh", "-ec", INSTALL.format(project=PROJECT))
        group = int(inside.run("id", "-g", "logknock").stdout)
        # Beside the booted system, not in it: what is killed there through nsenter lives on.
        with World(gateway, client, folder).service(22):
            yield Server(inside, client, Path("/etc/logknock/logknock.toml"), inside, group)


@pytest.fixture(autouse=True)
def clean(server: Server) -> Iterator[None]:
    """No rules and nothing remembered; a unit that failed may start again."""
    server.configure(SSH)
    server.host.run("sh", "-c", "rm -rf /var/lib/logknock/*")
    server.cursor = server.host.run("journalctl", "-n", "0", "--show-cursor").stdout.partition("-- cursor: ")[2].strip()
    yield
    server.systemctl("stop", "logknock")
    server.systemctl("reset-failed")
    server.host.run("logknock", "rules", "remove", check=False)


# ---- what the unit is


def exposure(text: str) -> float:
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
    assert found
    return float(found[1])


@pytest.mark.parametrize("unit", ["logknock.service", "logknock@.service"])
def test_the_exposure_is_small_on_paper(server: Server, unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"/usr/lib/systemd/system/{unit}"]
    assert exposure(server.host.run(*command).stdout) <= EXPOSURE


def test_the_exposure_is_small_as_systemd_has_it(server: Server) -> None:
    with server.running():
        found = server.host.run("systemd-analyze", "security", "--no-pager", "logknock.service").stdout
    assert exposure(found) <= EXPOSURE


def test_the_units_are_sound(server: Server) -> None:
    for unit in ("logknock.service", "logknock@lab.service"):
        done = server.host.run("systemd-analyze", "verify", "--man=no", unit)
        assert [line for line in done.stderr.splitlines() if "logknock" in line] == []


def test_the_template_is_the_unit_but_for_names_and_paths() -> None:
    one, several = ((UNITS / name).read_text().splitlines() for name in ("logknock.service", "logknock@.service"))
    differs = [line for line in several if line not in one and not line.startswith("#")]
    assert differs == [
        "Description=Port knocking from the firewall's log (%i)",
        "Environment=LOGKNOCK_CONFIG=/etc/logknock/%i/logknock.toml",
        "ConfigurationDirectory=logknock/%i",
        "StateDirectory=logknock-%i",
        "RuntimeDirectory=logknock-%i",
    ]
    assert len([line for line in one if line not in several]) == 4


def test_the_rules_are_there_before_the_network_and_after_firewalls(server: Server) -> None:
    before, after = server.show("Before").split(), server.show("After").split()
    assert {"network-pre.target", "shutdown.target"} <= set(before)
    firewalls = {"nftables.service", "firewalld.service", "ufw.service", "netfilter-persistent.service"}
    assert firewalls <= set(after)
    assert "sysinit.target" not in after, "what waits for the network there would wait for us"


# What Debian 12's cloud-init (22.4) and shorewall (5.2.8) say of when they start.
CLOUD_INIT = "DefaultDependencies=no\nAfter=network-pre.target\nBefore=sysinit.target\n"
SHOREWALL = "Wants=network-online.target network.target\nAfter=network-online.target\n"


@pytest.mark.parametrize(
    ("name", "order"), [("cloud-init", CLOUD_INIT), ("shorewall", SHOREWALL)], ids=["cloud-init", "shorewall"]
)
def test_with_what_waits_for_the_network_it_makes_no_circle(server: Server, name: str, order: str) -> None:
    """Systemd would leave out one of the units, and which one nobody knows."""
    file = server.host.root(f"/etc/systemd/system/{name}.service")
    file.write_text(f"[Unit]\n{order}Wants=logknock.service\n[Service]\nType=oneshot\nExecStart=/bin/true\n")
    try:
        server.systemctl("daemon-reload")
        said = server.host.run("systemd-analyze", "verify", "--man=no", file.name, check=False).stderr
        assert [line for line in said.splitlines() if "cycle" in line] == []
    finally:
        file.unlink()
        server.systemctl("daemon-reload")


# ---- from start to stop


def test_without_a_door_it_is_skipped_and_has_not_failed(server: Server) -> None:
    server.configure('[firewall]\ntrusted = ["192.0.2.0/24"]\n')
    server.systemctl("start", "logknock")
    assert server.show("ActiveState") == "inactive"
    assert server.systemctl("is-failed", "-q", "logknock", check=False), "it has not failed"
    assert "logknock.toml: no door is configured yet: there is nothing to do" in server.said()
    assert "ready" not in server.said()
    assert server.host.run("nft", "list", "tables").stdout == ""


def test_a_program_that_is_broken_fails_and_is_not_skipped(server: Server) -> None:
    """T38: its rules may be loaded, and Python's exit code of a traceback is 1."""
    module = server.host.root("/usr/lib/python3/dist-packages/logknock/config.py")
    whole = module.read_text()
    module.write_text("raise ImportError\n" + whole)
    try:
        assert server.systemctl("start", "logknock", check=False)
        assert server.show("Result") == "exit-code"
        assert server.show("ActiveState") == "activating", "it is tried again"
    finally:
        server.systemctl("stop", "logknock")
        module.write_text(whole)


def test_a_mistake_in_the_configuration_is_told_and_not_tried_again(server: Server) -> None:
    server.configure(SSH + "[firewal]\n")
    assert server.systemctl("start", "logknock", check=False)
    assert server.show("ActiveState") == "failed", "and not activating again and again"
    assert server.show("ExecMainStatus") == "78"
    assert "firewal: unknown key" in server.said()
    assert "hint: did you mean firewall?" in server.said()


def test_it_starts_says_how_it_stands_and_a_knock_opens(server: Server) -> None:
    with server.running():
        assert server.show("ActiveState") == "active"
        assert server.show("StatusText") == "0 doors open", "and nothing that tells of a single knock"
        assert not server.reaches()
        server.opens()
        assert server.reaches()
        until(lambda: server.show("StatusText") == "1 door open", "the status text")
        assert server.standing()["degraded"] == []


CAPABILITIES = 'on_open = ["/bin/grep", "-E", "^(Cap|NoNew)", "/proc/self/status"]\n'


def test_a_command_of_a_door_has_no_capability(server: Server) -> None:
    server.configure(SSH + CAPABILITIES)
    with server.running():
        server.opens()
        until(lambda: "output: NoNewPrivs" in server.said(), "the output of the command")
    told = dict(re.findall(r"output: (\w+):\\t(\w+)", server.said()))
    assert {name: int(value, 16) for name, value in told.items() if name != "CapBnd"} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapAmb": 0,
        "NoNewPrivs": 1,
    }


def test_each_entry_of_the_journal_has_its_fields_and_the_catalog_explains_it(server: Server) -> None:
    with server.running():
        server.opens()
        until(lambda: server.entries(LOGKNOCK_EVENT="granted"), "an entry")
    entry = server.entries(LOGKNOCK_EVENT="granted")[-1]
    assert entry["MESSAGE"] == f"{server.client.ipv4}: ssh: OPEN SESAME"
    assert (entry["LOGKNOCK_DOOR"], entry["LOGKNOCK_SRC"]) == ("ssh", server.client.ipv4)
    assert entry["MESSAGE_ID"] == MESSAGE_IDS["granted"]
    assert (entry["SYSLOG_IDENTIFIER"], entry["_SYSTEMD_UNIT"]) == ("logknock", "logknock.service")
    explained = server.host.run("journalctl", "-x", "-n", "1", f"MESSAGE_ID={MESSAGE_IDS['granted']}").stdout
    assert f"Subject: Door ssh is open for {server.client.ipv4}" in explained
    assert "Defined-By: logknock" in explained
    for event in ("ready", "advanced", "stopped"):
        assert server.entries(MESSAGE_ID=MESSAGE_IDS[event]), event
    known = [entry for entry in server.entries(_SYSTEMD_UNIT="logknock.service") if "LOGKNOCK_EVENT" in entry]
    assert {entry["MESSAGE_ID"] for entry in known} <= set(MESSAGE_IDS.values())


def test_a_reload_takes_over_and_a_bad_one_fails_and_changes_nothing(server: Server) -> None:
    with server.running() as process:
        server.opens()
        server.configure(SSH + SSH.replace("ssh", "web").replace("22/tcp", "80/tcp").replace("7000", "7007"))
        server.systemctl("reload", "logknock")
        assert "reloaded: NFLOG group 5, doors: ssh, web" in server.said()
        server.configure(SSH.replace("22/tcp", "99999/tcp"))
        assert server.systemctl("reload", "logknock", check=False)
        said = server.said()
        assert "doors.ssh.opens: 99999/tcp is no port (1-65535)" in said
        assert "not reloaded: the configuration from before stays in force" in said
        assert server.host.pid_of("logknock.service") == process
        assert server.show("ActiveState") == "active"
        assert server.granted(), "open doors stay open"
        server.opens()


# Seconds, in half of which a daemon gives a sign of life: what the machine may pause for is not more than the other.
WATCHDOG = 10


@pytest.mark.parametrize("how", ["watchdog", "crash"])
def test_it_comes_back_and_open_doors_are_open(server: Server, how: str) -> None:
    """SIGSTOP, which the watchdog notices, and kill -9: the kernel has the grants, and the new process knows them."""
    with server.drop_in(f"[Service]\nWatchdogSec={WATCHDOG}s\nRestartSec=100ms\n"), server.running() as process:
        server.opens()
        server.host.run("kill", "-STOP" if how == "watchdog" else "-KILL", str(process))
        until(lambda: server.show("NRestarts") == "1", "a restart")
        until(lambda: server.show("ActiveState") == "active", "a new process")
        assert server.host.pid_of("logknock.service") not in (0, process)
        assert "1 door is still open" in server.said()
        assert list(server.granted()) == [f"{server.client.ipv4} . tcp . 22"]
        if how == "watchdog":
            log = server.host.run("journalctl", "-u", "logknock", "-o", "cat").stdout
            assert f"Watchdog timeout (limit {WATCHDOG}s)!" in log
        server.opens()


def test_a_daemon_that_works_is_not_killed_by_the_watchdog(server: Server) -> None:
    with server.drop_in(f"[Service]\nWatchdogSec={WATCHDOG}s\n"), server.running() as process:
        since = float(server.show("WatchdogTimestampMonotonic"))
        longer = 1.25 * WATCHDOG * 1e6
        until(lambda: float(server.show("WatchdogTimestampMonotonic")) > since + longer, "signs of life")
        assert server.host.pid_of("logknock.service") == process


def test_a_stop_leaves_the_rules_and_the_open_doors(server: Server) -> None:
    with server.running():
        server.opens()
    assert server.show("Result") == "success"
    assert "stopped; open doors close on time by themselves" in server.said()
    assert server.granted(), "the kernel closes it in time"
    assert "tcp . 22" in server.host.run("nft", "list", "set", "inet", "logknock", "guarded").stdout
    server.host.root("/run/logknock/rules.lock").stat()


def test_every_source_can_be_read_by_its_own_user(server: Server) -> None:
    """NFLOG, the journal (the group systemd-journal), a file that only adm may read, as rsyslog makes it."""
    log = server.host.root("/var/log/firewall.log")
    log.touch()
    adm = server.host.run("getent", "group", "adm").stdout.split(":")[2]
    os.chown(log, 0, int(adm))
    log.chmod(0o640)
    wanted = 'source = ["nflog", "journal", "file"]\nfile.path = "/var/log/firewall.log"'
    server.configure(f"[log]\n{wanted}\n{SSH}")
    with server.running():
        standing = server.standing()
        sources = [source["name"] for source in standing["sources"]]
        assert sources == ["NFLOG group 5", "the journal", "/var/log/firewall.log"]
        assert standing["degraded"] == []
        server.opens()


# ---- root's commands beside it


def of_root(server: Server) -> list[str]:
    """Files of root's where all is to be the daemon's."""
    return server.host.run("find", "/var/lib/logknock", "/run/logknock", "-user", "root").stdout.split()


def test_what_root_does_leaves_nothing_that_the_daemon_cannot_use(server: Server) -> None:
    """Before the daemon has ever run, and while it does; what it reads in /etc it can read."""
    run = server.host.run
    knockd = "[ssh]\nsequence = 7100,8100,9100\ntcpflags = syn\ncommand = /usr/sbin/nft add element x\n"
    server.host.root("/etc/knockd.conf").write_text(knockd)
    for _ in range(2):
        run("logknock", "onetime", "generate", "/etc/logknock/onetime/laptop", "--count", "3")
        run("logknock", "import-knockd", "/etc/knockd.conf", "-o", "/etc/logknock/imported", check=False)
        server.configure(SSH + '[doors.once]\nonetime = ["/etc/logknock/onetime/laptop"]\nopens = ["80/tcp"]\n')
        run("logknock", "rules", "apply", "--confirm", "1s", check=False)
        run("logknock", "rules", "apply")
        for command in ("status", "doctor"):
            said = run("logknock", command, check=False)
            assert "Traceback" not in said.stderr
        assert of_root(server) == []
        for name in ("onetime/laptop", "imported"):
            assert run("stat", "-c", "%U:%G %a", f"/etc/logknock/{name}").stdout == "root:logknock 640\n"
        server.systemctl("restart", "logknock")
        until(lambda: "laptop: 3 one-time sequences left" in server.said(), "the one-time file")
        assert "loaded: 2 guarded" in server.said()
        assert "denied" not in server.said()
        run("rm", "/etc/logknock/onetime/laptop", "/etc/logknock/imported")
    assert of_root(server) == []


def test_what_a_daemon_of_root_has_left_is_the_service_s_when_it_starts(server: Server) -> None:
    """The directories are root's: tmpfiles leaves them so, and systemd gives all of it to the service."""
    run = server.host.run
    run("chown", "root:root", "/var/lib/logknock", "/run/logknock")
    run("logknock", "rules", "apply")
    run("systemd-tmpfiles", "--create", "logknock.conf")
    assert "/var/lib/logknock/traps.seed" in of_root(server)
    with server.running():
        assert of_root(server) == []
        assert "denied" not in server.said()
        server.opens()


def test_t31_what_root_has_left_in_the_service_s_directory_is_told_and_given_to_it(
    server: Server, tmp_path: Path
) -> None:
    """By root's next `rules apply`, and never more than was meant: no link is followed."""
    run, state = server.host.run, "/var/lib/logknock"
    run("systemd-tmpfiles", "--create", "logknock.conf")
    left = [f"{state}/logknock.db", f"{state}/lock", f"{state}/traps.seed", f"{state}/allow/sshd"]
    run(
        "sh",
        "-ec",
        f"cd {state}; mkdir allow; umask 077; head -c 32 /dev/zero >traps.seed; touch lock logknock.db allow/sshd",
    )
    run(
        "sh",
        "-ec",
        f"touch /etc/of-root; cd {state}; ln -s /etc/of-root symbolic; ln /etc/of-root hard; rm logknock.db",
    )
    left.remove(f"{state}/logknock.db")
    assert set(left) < set(of_root(server))
    assert server.systemctl("start", "logknock", check=False), "rules that cannot be made are not there"
    assert f"{state}/traps.seed: Permission denied" in server.said()
    assert "hint: `logknock rules apply` by root gives the service what root has left there" in server.said()
    server.systemctl("stop", "logknock")
    found = doctor(server)["state"]
    assert found["level"] == "error"
    assert found["remedy"] == "logknock rules apply && systemctl restart logknock"
    run("sh", "-ec", found["remedy"])
    assert sorted(of_root(server)) == [f"{state}/hard", f"{state}/symbolic"]
    assert run("stat", "-c", "%U", "/etc/of-root").stdout == "root\n"
    assert "state" not in doctor(server)
    server.opens()
    run("rm", f"{state}/symbolic", f"{state}/hard", "/etc/of-root")


def doctor(server: Server) -> dict[str, dict[str, str]]:
    """What root is told, by its ids; the worst of each."""
    told = json.loads(server.host.run("logknock", "doctor", "--json", check=False).stdout)["findings"]
    order = ["ok", "note", "unseen", "warning", "error"]
    return {found["check"]: found for found in sorted(told, key=lambda found: order.index(found["level"]))}


def test_the_state_of_a_service_that_is_stopped_is_not_root_s_to_take(server: Server) -> None:
    with server.running():
        server.opens()
    found = doctor(server)
    assert "state" not in found
    assert found["daemon"]["remedy"] == "systemctl start logknock"
    ran = server.host.run("timeout", "-s", "INT", "10", "logknock", "run", check=False)
    assert "belongs to another user" in ran.stderr
    assert "(hint: the service has it, which runs as that user: systemctl start logknock)" in ran.stderr
    assert "chown" not in ran.stderr


@pytest.fixture
def as_it_was(server: Server) -> Iterator[None]:
    """Nothing but what the package has made below /etc/logknock, and whose it is, after the test."""
    yield
    folders = "clients conf.d onetime"
    clean = f"for i in {folders}; do rm -f $i/*; done; chgrp -R logknock .; chmod 750 . {folders}"
    server.host.run("sh", "-ec", f"cd /etc/logknock; {clean}")


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("name", ["logknock.toml", "conf.d", "conf.d/web.toml", "onetime/laptop"])
def test_what_the_service_cannot_read_is_told_before_it_fails(server: Server, name: str) -> None:
    """`check` and `doctor` by root, and the daemon itself, name the command that helps."""
    run, path = server.host.run, f"/etc/logknock/{name}"
    run("logknock", "onetime", "generate", "/etc/logknock/onetime/laptop", "--count", "3")
    server.configure(SSH + '[doors.once]\nonetime = ["/etc/logknock/onetime/laptop"]\nopens = ["80/tcp"]\n')
    run("install", "-m", "640", "-g", "logknock", "/dev/null", "/etc/logknock/conf.d/web.toml")
    assert run("logknock", "check").stderr == ""
    run("chgrp", "root", path)
    remedy = f"chgrp logknock {path}; chmod {750 if name == 'conf.d' else 640} {path}"
    checked = run("logknock", "check")
    assert checked.stderr.splitlines()[-2:] == [
        f"logknock: warning: {path}: cannot be read by the user logknock, as whom the service runs",
        f"hint: {remedy}",
    ]
    assert doctor(server)["config"]["remedy"] == remedy
    failed = server.systemctl("start", "logknock", check=False)
    assert bool(failed) == (name != "onetime/laptop")
    assert f"hint: as root: {remedy}" in server.said()
    run("sh", "-ec", remedy)
    assert run("logknock", "check").stderr == ""
    server.systemctl("restart", "logknock")


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--inh-caps=-all")


def test_members_of_the_group_may_ask_and_others_may_not(server: Server) -> None:
    with server.running():
        asked = server.host.run(*NOBODY, f"--groups={server.group}", "logknock", "bans", check=False)
        assert (asked.returncode, asked.stderr) == (0, "")
        server.opens()
        asked = server.host.run(*NOBODY, f"--groups={server.group}", "logknock", "status", check=False)
        assert (asked.returncode, asked.stderr) == (0, "")
        assert "note: /var/lib/logknock/logknock.db: cannot be read: permission denied" in asked.stdout
        assert re.search(rf"^  ssh  {server.client.ipv4}  \d+s left$", asked.stdout, re.MULTILINE)
        refused = server.host.run(*NOBODY, "--clear-groups", "logknock", "bans", check=False)
        assert refused.returncode == 77
        assert "permission denied" in refused.stderr


def test_others_can_read_the_addresses_for_hosts_allow_and_nothing_else(server: Server) -> None:
    server.configure(SSH + 'allow_file = "sshd"\n')
    with server.running():
        server.opens()
        told = server.host.run(*NOBODY, "--clear-groups", "cat", "/var/lib/logknock/allow/sshd").stdout
        assert told == f"{server.client.ipv4}\n"
        for look in ("ls /var/lib/logknock", "cat /var/lib/logknock/logknock.db", "cat /var/lib/logknock/rules.nft"):
            looked = server.host.run(*NOBODY, "--clear-groups", *look.split(), check=False)
            assert looked.stdout == ""
            assert "Permission denied" in looked.stderr


# ---- clients with secrets

CLIENTS = """
[totp]
host = "gate.example"
[doors.ssh]
totp = {}
opens = ["22/tcp"]
timeout = "30s"
[doors.vpn]
spa = {}
opens = ["80/tcp"]
timeout = "30s"
"""


def test_what_enroll_and_keygen_write_the_service_reads_and_its_limits_let_it_decrypt(
    server: Server, tmp_path: Path
) -> None:
    """Written by root for the group, before it runs and while it does; MemoryDenyWriteExecute= and the rest hold."""
    run, address = server.host.run, server.client.ipv4
    server.configure(CLIENTS + '[firewall]\ntrusted = ["192.0.2.0/24"]\n')
    more = ("--json", "--address", server.gateway.ipv4)
    told = [run("logknock", "enroll", "ssh", "laptop", *more).stdout]
    with server.running():
        told.append(
            run("logknock", "keygen", "vpn", "laptop", "--allow", "80/tcp", "--from", address, "--write", *more).stdout
        )
        for door in ("ssh", "vpn"):
            file = f"/etc/logknock/clients/{door}.laptop.toml"
            assert run("stat", "-c", "%U:%G %a", file).stdout == "root:logknock 640\n"
        profiles = write(tmp_path, "".join(json.loads(one)["profile"] for one in told), "client.toml")
        environment = os.environ | {"LOGKNOCK_CLIENT": str(profiles), "XDG_STATE_HOME": str(tmp_path)}
        for name in tomllib.loads(profiles.read_text())["profiles"]:
            server.client.logknock("knock", name, "--tries", "1", env=environment, check=False)  # nothing is at port 80
        both = {f"{address} . tcp . 22", f"{address} . tcp . 80"}
        until(lambda: set(server.granted()) == both, "two open doors")
        assert "denied" not in server.said()
    run("sh", "-c", "rm /etc/logknock/clients/*")


# ---- credentials


def test_doors_come_from_credentials(server: Server) -> None:
    """A file that only root can read; the configuration itself has no door. Others see nothing of it."""
    server.configure('[firewall]\ntrusted = ["192.0.2.0/24"]\n')
    secret = server.host.root("/etc/secret.toml")
    secret.write_text(SSH)
    secret.chmod(0o600)
    with server.drop_in("[Service]\nLoadCredential=doors.toml:/etc/secret.toml\n"), server.running():
        server.opens()
        assert "ok, 1 door" in server.host.run("logknock", "check").stdout, "root's commands find them"
        assert "loaded: 1 guarded" in server.host.run("logknock", "rules", "apply").stdout
        assert doctor(server)["config"]["level"] == "ok"
        elsewhere = server.host.run(
            "sh", "-ec", "cp -r /etc/logknock /srv && logknock check -c /srv/logknock/logknock.toml", check=False
        )
        assert elsewhere.returncode == 78, "another configuration's they are not"
        server.host.run("rm", "-r", "/srv/logknock")
    secret.write_text(SSH.replace("22/tcp", "no port"))
    with server.drop_in("[Service]\nLoadCredential=doors.toml:/etc/secret.toml\n"):
        assert server.systemctl("start", "logknock", check=False)
        assert "/run/credentials/logknock.service/doors.toml:4: doors.ssh.opens: " in server.said()


def test_doors_come_from_encrypted_credentials(server: Server) -> None:
    server.configure('[firewall]\ntrusted = ["192.0.2.0/24"]\n')
    made = server.host.run(
        "systemd-creds", "encrypt", "--with-key=host", "--name=doors.toml", "-p", "-", "-", input=SSH
    )
    with server.drop_in(f"[Service]\n{made.stdout}"), server.running():
        assert "SetCredentialEncrypted=doors.toml" in made.stdout
        server.opens()


# ---- several instances


PATHS = '[paths]\nstate = "/var/lib/logknock-{0}"\nruntime = "/run/logknock-{0}"\n'


@contextmanager
def namespace(server: Server, name: str) -> Iterator[None]:
    server.host.run("ip", "netns", "add", name)
    try:
        yield
    finally:
        server.host.run("ip", "netns", "del", name)


def test_an_instance_in_each_network_namespace(server: Server) -> None:
    unit = "logknock@lab.service"
    server.configure(PATHS.format("lab") + SSH.replace("22/tcp", "2222/tcp"), "lab")
    drop_in = "[Service]\nNetworkNamespacePath=/run/netns/lab\n"
    with namespace(server, "lab"), server.drop_in(drop_in, unit), server.running(), server.running(unit):
        assert (server.show("ActiveState"), server.show("ActiveState", unit)) == ("active", "active")
        inside = server.host.run("ip", "netns", "exec", "lab", "nft", "list", "set", "inet", "logknock", "guarded")
        assert "tcp . 2222" in inside.stdout
        assert "tcp . 2222" not in server.host.run("nft", "list", "set", "inet", "logknock", "guarded").stdout
        told = server.host.run("logknock", "status", "-c", "/etc/logknock/lab/logknock.toml").stdout
        assert f"process {server.host.pid_of(unit)}" in told
        server.opens()


def test_a_second_daemon_for_the_same_table_is_refused_and_the_first_goes_on(server: Server) -> None:
    """By another log, so that nothing but the table is the same; and it does not load its rules either."""
    unit = "logknock@twin.service"
    second = SSH.replace("22/tcp", "2222/tcp")
    server.configure(f"[log]\nsource = 'journal'\n{PATHS.format('twin')}{second}", "twin")
    line = "logknock: another logknock (process {}) keeps table inet logknock in this network namespace"
    with server.running() as first, server.drop_in("[Service]\nRestart=no\n", unit):
        assert server.systemctl("start", unit, check=False)
        assert server.said(unit).count(line.format(first)) == 2, "by its rules, and by itself"
        done = server.host.run("logknock", "rules", "apply", "-c", "/etc/logknock/twin/logknock.toml", check=False)
        assert (done.returncode, done.stderr.splitlines()[0]) == (69, line.format(first))
        assert "tcp . 2222" not in server.host.run("nft", "list", "set", "inet", "logknock", "guarded").stdout
        server.opens()


def test_an_instance_without_paths_of_its_own_says_so(server: Server) -> None:
    unit = "logknock@lost.service"
    server.configure(SSH, "lost")
    assert server.systemctl("start", unit, check=False)
    text = "[paths] state is /var/lib/logknock, where this service may not write; its own is /var/lib/logknock-lost"
    assert text in server.said(unit)
    assert 'hint: in the configuration: paths.state = "/var/lib/logknock-lost"' in server.said(unit)


# ---- bad input: a clear line each, and nobody is locked out


TRUSTED = '[firewall]\ntrusted = ["10.99.0.3"]\n'


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


@contextmanager
def state_on(server: Server, options: str) -> Iterator[Path]:
    """The state directory on a file system of its own."""
    place = "/var/lib/logknock"
    user = server.host.run("id", "-u", "logknock").stdout.strip()
    options = f"mode=711,uid={user},gid={server.group},{options}"
    server.host.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", place)
    try:
        yield server.host.root(place)
    finally:
        server.host.run("umount", "--lazy", place)


def test_a_disk_that_is_full_is_told_and_plain_doors_open(server: Server) -> None:
    """With the rules that were there before: those of the configuration cannot be kept, so they are not loaded."""
    server.host.run("logknock", "rules", "apply")
    with state_on(server, "size=16k") as place:
        fill(place / "filler")
        with server.running():
            said = server.said()
            assert "/var/lib/logknock/traps.seed: No space left on device\nhint: make room" in said
            assert "nothing is remembered until a restart: " in said
            (trouble,) = server.standing()["degraded"]
            assert trouble["part"] == "store"
            server.opens()


def test_a_state_directory_that_cannot_be_written_is_told_and_plain_doors_open(server: Server) -> None:
    server.host.run("logknock", "rules", "apply")
    with state_on(server, "ro"), server.running():
        said = server.said()
        assert "Read-only file system" in said
        assert "nothing is remembered until a restart: " in said
        server.opens()


def test_t38_ssh_on_a_port_of_its_own_is_not_closed_by_the_unit(server: Server) -> None:
    """T38: the daemon's user sees no other's processes; what sshd's configuration says it can read."""
    server.host.root("/etc/ssh").mkdir(exist_ok=True)
    file = server.host.root("/etc/ssh/sshd_config")
    before = file.read_bytes() if file.exists() else b""
    file.write_text("Port 2222\n")
    try:
        server.host.run("logknock", "rules", "apply")
        server.configure('[firewall]\nguarded = ["2222/tcp"]\n' + SSH)
        with server.running():
            assert "2222/tcp is ssh, it is guarded, and no door opens it" in server.said()
            assert "tcp . 2222" not in server.host.run("nft", "list", "set", "inet", "logknock", "guarded").stdout
            server.opens()
    finally:
        file.write_bytes(before)


def test_without_its_capability_it_says_so_and_closes_nothing(server: Server) -> None:
    with server.drop_in("[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\n"):
        assert server.systemctl("start", "logknock", check=False)
        assert server.show("ExecMainStatus") == "77"
        assert "Operation not permitted" in server.said()
        assert "hint: CAP_NET_ADMIN is needed" in server.said()
        assert server.reaches()
        server.host.run("logknock", "rules", "apply")
        assert not server.reaches()
    with server.running():
        server.opens()


@pytest.mark.parametrize(
    ("missing", "line", "hint"),
    [
        pytest.param(
            "/usr/lib/python3/dist-packages/nftables",
            "logknock: Python has no nftables module",
            "hint: install the package python3-nftables",
            id="no binding",
        ),
        pytest.param(
            "/usr/lib/*/libnftables.so.1*",
            "logknock: nftables: libnftables.so.1: cannot open shared object file",
            "hint: install the package libnftables1",
            id="no library",
        ),
    ],
)
def test_without_nftables_it_says_which_package_is_missing_and_closes_nothing(
    server: Server, missing: str, line: str, hint: str
) -> None:
    """A host on which no rules were ever loaded; where some were, the daemon needs neither."""
    paths = ["/usr/sbin/nft", *map(str, Path("/").glob(missing.lstrip("/")))]
    for path in paths:
        server.host.run("mv", path, f"{path}.away")
    try:
        with server.drop_in("[Service]\nRestart=no\n"):
            assert server.systemctl("start", "logknock", check=False)
        assert line in server.said()
        assert hint in server.said()
        assert "the ruleset is not loaded" in server.said() or "`logknock rules apply` loads" in server.said()
        assert server.reaches()
        done = server.host.run("logknock", "rules", "apply", check=False)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (69, hint)
    finally:
        for path in paths:
            server.host.run("mv", f"{path}.away", path)


def test_on_a_kernel_without_nftables_it_says_so_and_closes_nothing(server: Server) -> None:
    """As far as a process can tell: the kernel has no such sockets."""
    with server.drop_in("[Service]\nRestart=no\nRestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX\n"):
        assert server.systemctl("start", "logknock", check=False)
    assert server.show("ExecMainStatus") == "69"
    assert "logknock: nftables: Address family not supported by protocol" in server.said()
    assert "hint: this kernel has no nftables (CONFIG_NF_TABLES), or its module is not there" in server.said()
    assert "logknock: NFLOG is not available: Address family not supported by protocol" in server.said()
    assert server.reaches()


# ---- the page, as it stands


@pytest.fixture
def tidy(server: Server) -> Iterator[None]:
    """What the page's commands have put there goes again."""
    yield
    server.host.run("sh", "-ec", TIDY)


TIDY = """
systemctl stop opened.path logknock logknock@lab || true
systemctl disable -q logknock
rm -rf /etc/systemd/system/logknock*.d /etc/systemd/system/opened.* /etc/logknock/conf.d/* /etc/logknock/lab
rm -rf /etc/credstore /etc/credstore.encrypted
ip netns del lab 2>/dev/null || true
systemctl daemon-reload
"""


def test_the_page_from_start_to_stop(server: Server, tidy: None) -> None:
    guide = Guide(PAGE, {"": server.host})
    guide.shown("Status:", guide.run("systemctl enable logknock"))
    assert server.show("UnitFileState") == "enabled"
    guide.run("logknock rules apply\nsystemctl reload")
    server.opens("7000/tcp", "9000/udp", "8000/tcp")
    server.configure(SSH.replace("22/tcp", "99999/tcp"))
    assert server.systemctl("reload", "logknock", check=False)
    guide.shown("99999/tcp", server.said())
    until(lambda: server.entries(LOGKNOCK_EVENT="granted"), "an entry")
    assert f'"LOGKNOCK_SRC":"{server.client.ipv4}"' in guide.run("LOGKNOCK_EVENT=granted").replace(" ", "")
    guide.shown("Subject:", guide.run("journalctl --no-pager -x"))
    server.configure(SSH)
    assert COMES_BACK in server.host.run("logknock", "rules", "remove").stderr
    server.systemctl("stop", "logknock")
    assert COMES_BACK in server.host.run("logknock", "rules", "remove").stderr, "it is enabled still"
    server.systemctl("start", "logknock")
    assert COMES_BACK not in guide.run("systemctl disable --now")
    assert (server.show("UnitFileState"), server.show("ActiveState")) == ("disabled", "inactive")
    assert server.reaches()


def test_whoever_removes_the_rules_is_told_that_a_failing_service_loads_them_again(server: Server) -> None:
    with server.drop_in("[Service]\nExecStart=\nExecStart=/bin/false\nRestartSec=1h\n"):
        server.systemctl("start", "logknock", check=False)
        until(lambda: server.show("SubState") == "auto-restart", "the pause before the next start")
        assert (server.show("UnitFileState"), server.show("ActiveState")) == ("disabled", "activating")
        assert COMES_BACK in server.host.run("logknock", "rules", "remove").stderr
        server.systemctl("stop", "logknock")
    assert server.host.run("logknock", "rules", "remove").stderr == ""


def test_a_door_s_command_has_a_unit_do_what_it_may_not(server: Server, tidy: None) -> None:
    guide = Guide(PAGE, {"": server.host})
    guide.run("opened.path")
    server.knock("7300/tcp", "9300/udp", "8300/tcp")
    until(server.host.root("/var/log/opened.log").exists, "what the other unit does")


NETWORK = 'on_open = ["/usr/bin/python3", "-c", "import socket; print(socket.create_server((\'127.0.0.1\', 0)))"]\n'


def test_a_drop_in_loosens_a_line_for_commands(server: Server, tidy: None) -> None:
    guide = Guide(PAGE, {"": server.host})
    server.configure(SSH + NETWORK)
    with server.running():
        server.opens()
        until(lambda: "Address family not supported by protocol" in server.said(), "the refusal")
    server.host.run("sh", "-c", "rm -rf /var/lib/logknock/*")
    guide.run("network.conf")
    server.opens()
    until(lambda: "laddr=('127.0.0.1'" in server.said(), "a socket")


def test_secrets_as_the_page_has_them(server: Server, tidy: None) -> None:
    """From a file of root's, then encrypted with the host's key; `rules apply` with them keeps their door guarded."""
    guide = Guide(PAGE, {"": server.host})
    for block in ("LoadCredential=", "LoadCredentialEncrypted="):
        guide.run(block)
        assert "doors: ssh, vault" in server.said().rpartition("Starting")[2]
        guarded = server.host.run("nft", "list", "set", "inet", "logknock", "guarded").stdout
        assert "tcp . 8443" in guarded
    assert "ok, 2 doors" in guide.run("logknock rules diff")
    assert server.host.run("nft", "list", "set", "inet", "logknock", "guarded").stdout == guarded
    secret = server.host.root("/etc/credstore.encrypted/vault.toml").read_bytes()
    assert b"8443" not in secret
    assert not server.host.root("/etc/credstore/vault.toml").exists()


TOTP = '[totp]\nhost = "server.example"\n[doors.ssh]\nopens = ["22/tcp"]\ntimeout = "30s"\ntotp = {}\n'


def test_a_client_in_a_credential_as_the_reference_has_it(server: Server, tidy: None) -> None:
    """Its secret is on the disk in no other form, and what it derives opens the door."""
    guide = Guide(read("docs/reference/logknock.toml.md"), {"": server.host})
    server.configure(TOTP)
    said = guide.run("--name=ssh.laptop.toml")
    assert "laptop" in server.host.run("logknock", "clients").stdout
    profile = re.search(r"^\[profiles\..*?(?=^#)", said, re.DOTALL | re.MULTILINE)
    assert profile, said
    (secret,) = re.findall('secret = "([A-Z2-7]+)"', profile[0])
    places = ("/etc/logknock", "/etc/credstore.encrypted", "/etc/systemd", "/var/lib/logknock")
    assert not server.host.run("grep", "-rl", secret, *places, check=False).stdout
    server.opens(*derived(profile[0]))


def test_an_instance_as_the_page_has_it(server: Server, tidy: None) -> None:
    guide = Guide(PAGE, {"": server.host})
    with server.running() as first:
        status = guide.run("NetworkNamespacePath=")
        assert f"process {server.host.pid_of('logknock@lab.service')}" in status
        server.configure(f"[log]\nsource = 'journal'\n{PATHS.format('twin')}{SSH}", "twin")
        assert server.systemctl("start", "logknock@twin", check=False)
        said = server.said("logknock@twin.service")
        assert str(first) in said
        guide.shown("another logknock", said)
