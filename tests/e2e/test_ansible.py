"""The Ansible collection, played against a booted Debian: installed, configured, mistaken, rotated, as the guide says.

Rule 1: there is one host and one controller, and the tests are a story: each goes on where the one before it ended.
Rule 2: what the controller does to itself is gone with the test. Rule 3: whatever is printed, at any verbosity, is
kept, and no knock is in it.
"""

import json
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from logknock import __version__, totp
from logknock.config_values import port_range
from logknock.knock import Service

from ..netns import Host, pair
from .booted import PROJECT, BootedHost, booted
from .pages import COMMANDS, Guide, PrivateHost, follows, private
from .world import until

PAGE = follows("docs/howto/fleet.md")
COLLECTION = PROJECT / "packaging/ansible"

# What Debian 12 has of Ansible, and a newer one.
OLD, NEW = PROJECT / ".venv/ansible-2.14/bin", PROJECT / ".venv/ansible/bin"

# The knocks that the guide writes down.
KNOCKS = ("7012/tcp", "9034/udp", "8056/tcp")

FLEET = Path("/root/fleet")

# What makes a play fast, and its output easy to read. No other Python than Debian's, whatever a login finds first.
SETTINGS = """
[defaults]
nocolor = true
interpreter_python = /usr/bin/python3
[ssh_connection]
pipelining = true
"""

# dropbear, since installing Debian's openssh-server starts it on the host.
SSHD = ("dropbear", "-F", "-E", "-s", "-p", "22", "-P", "", "-r")

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 22), timeout=0.7)"

# All that a play could have changed; what a package's own programs keep besides it is none of ours.
STATE = """
find /etc /opt /usr/local /usr/bin /usr/lib/systemd /var/lib/logknock -printf '%p %y %m %u %g %l\\n' 2>/dev/null | sort
find /etc/logknock -type f -exec md5sum {} + 2>/dev/null | sort
dpkg-query -W -f '${Package} ${Version} ${Status}\\n'
nft --stateless --terse list table inet logknock 2>/dev/null
systemctl is-active logknock logknock-trial
true
"""


@dataclass
class Fleet:
    """The host that is guarded, and the controller, which knocks too; `printed` is all that plays have said."""

    gate: BootedHost
    controller: PrivateHost
    folder: Path
    printed: list[str] = field(default_factory=list)

    @property
    def guide(self) -> Guide:
        return Guide(PAGE, {"": self.controller}, folder=self.folder)

    def follow(self, words: str) -> str:
        """The block of the guide with these words."""
        self.printed.append(self.guide.run(words))
        return self.printed[-1]

    def play(self, *words: str, book: str = "logknock.logknock.site", code: int = 0, ansible: Path = OLD) -> str:
        """A play of the controller's; what it says."""
        shell = f"cd {FLEET} && exec {ansible}/ansible-playbook -i inventory.yml {book} " + " ".join(words)
        environment = {"HOME": "/root", "PATH": "/usr/bin:/usr/sbin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        done = self.controller.run("bash", "-c", shell, check=False, env=environment, timeout=180)
        self.printed.append(done.stdout + done.stderr)
        assert done.returncode == code, self.printed[-1]
        return self.printed[-1]

    def write(self, name: str, text: str) -> None:
        """A file of the inventory's."""
        self.controller.run("sh", "-c", f"mkdir -p $(dirname {FLEET}/{name}); cat > {FLEET}/{name}", input=text)

    def read(self, name: str) -> str:
        """A file of the inventory's."""
        return self.controller.run("cat", f"{FLEET}/{name}").stdout

    def state(self) -> str:
        """All of the host that a play could have changed."""
        return self.gate.run("bash", "-c", STATE).stdout

    def configured(self) -> dict[str, dict[str, list[str]]]:
        """The doors that the host has."""
        return dict(tomllib.loads(self.gate.run("cat", "/etc/logknock/logknock.toml").stdout)["doors"])

    def gets_in(self) -> bool:
        """Whether a connection can be made by IPv6, over which nobody here is ever trusted."""
        return not self.controller.run("python3", "-c", CONNECT, self.gate.ipv6, check=False).returncode

    def logknock(self, *words: str, check: bool = True) -> str:
        """What a command of the host says."""
        return self.gate.run("env", "PATH=/usr/local/bin:/usr/bin:/usr/sbin", "logknock", *words, check=check).stdout

    def opens(self, *services: str) -> None:
        """These knocks must open ssh, over IPv6."""
        self.knock(*services)
        until(lambda: self.granted(self.controller.ipv6), "an open door")
        assert self.gets_in()
        self.logknock("revoke", "--all")

    def knock(self, *services: str) -> None:
        """As a client does who has no profile."""
        self.controller.run("logknock-client", "knock", self.gate.ipv6, *services)

    def granted(self, address: str) -> list[str]:
        """The doors that are open for an address by now."""
        grants = map(json.loads, self.logknock("grants", "--json").splitlines())
        return [str(grant["door"]) for grant in grants if grant["address"] == address]

    def opened(self) -> int:
        """How often a door has opened over IPv6."""
        self.gate.run("journalctl", "--sync")  # the daemon has said it, and journald taken it in
        said = self.gate.run("journalctl", "-u", "logknock", "-o", "cat").stdout
        return said.count(f"{self.controller.ipv6}: ssh: OPEN")


def recap(said: str, host: str) -> dict[str, int]:
    """The last line that Ansible says of a host."""
    line = re.findall(rf"^{re.escape(host)} +: (.*)$", said, re.MULTILINE)[-1]
    return {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", line)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, the wheel and the collection, as `make` builds them from what belongs to the repository."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    shutil.copytree(PROJECT, tree, symlinks=True, ignore=shutil.ignore_patterns(".*", "dist", "build", "__pycache__"))
    command = ["make", "deb", "wheel", "collection", f"VENV={PROJECT}/.venv"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert not done.returncode, (done.stdout + done.stderr)[-5000:]
    return tree


@pytest.fixture(scope="module")
def fleet(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A host with an ssh server and without logknock, and a controller that is allowed to log in there."""
    folder = tmp_path_factory.mktemp("gate")
    names = {"gate.example": ["10.99.0.1"]}
    with (
        pair() as (gateway, client),
        booted(gateway, folder, capabilities="CAP_SYSLOG,CAP_NET_ADMIN") as gate,
        private(
            client, names, [*COMMANDS, *(OLD / name for name in ("ansible", "ansible-playbook", "ansible-galaxy"))]
        ) as controller,
        _sshd(gate, controller, folder),
    ):
        # What a machine of tests may have, and no host: leftovers, and a word that packages start and stop nothing.
        gate.run("rm", "-rf", "/etc/logknock", "/var/lib/logknock", "/usr/sbin/policy-rc.d")
        controller.run(
            "sh",
            "-c",
            "cat > /etc/ansible.cfg; mkdir -p /etc/ansible; mv /etc/ansible.cfg /etc/ansible",
            input=SETTINGS,
        )
        made = Fleet(gate, controller, built)
        inventory, secrets, *_ = (block.text for block in PAGE.written_in("yaml"))
        made.write("inventory.yml", inventory)
        made.write("group_vars/all.yml", secrets)
        yield made


@contextmanager
def _sshd(gate: Host, controller: Host, folder: Path) -> Iterator[None]:
    controller.run("sh", "-c", "mkdir -m 700 -p /root/.ssh && ssh-keygen -qt ed25519 -N '' -f /root/.ssh/id_ed25519")
    key = controller.run("cat", "/root/.ssh/id_ed25519.pub").stdout
    gate.run("sh", "-c", "mkdir -m 700 -p /root/.ssh && cat > /root/.ssh/authorized_keys", input=key)
    gate.run("dropbearkey", "-t", "ed25519", "-f", f"{folder}/host_key")
    server = gate.start(*SSHD, f"{folder}/host_key", stderr=subprocess.DEVNULL)
    try:
        known = "cd /root/.ssh && ssh-keyscan -t ed25519 gate.example > known_hosts 2> /dev/null && test -s known_hosts"
        until(lambda: not controller.run("sh", "-c", known, check=False).returncode, "an ssh server")
        yield
    finally:
        server.kill()
        server.wait()


# ---- the first play


def test_check_mode_on_a_fresh_host_changes_nothing(fleet: Fleet) -> None:
    fleet.follow("ansible-galaxy collection install")
    before = fleet.state()
    said = fleet.follow("--check --diff")
    assert recap(said, "gate.example")["failed"] == 0
    assert recap(said, "gate.example")["changed"] > 0
    assert fleet.state() == before
    assert "logknock" not in before.replace(str(PROJECT), "")


def test_a_host_that_cannot_run_logknock_is_refused_before_anything_is_changed(fleet: Fleet) -> None:
    """No nftables: the kernel refuses netlink to this play, as one does that was built without it."""
    before = fleet.state()
    host = {"hosts": "localhost", "gather_facts": False, "roles": ["logknock.logknock.server"]}
    host["vars"] = {"logknock_doors": {"ssh": {"sequence": list(KNOCKS), "opens": ["22/tcp"]}}}
    fleet.gate.run("sh", "-c", "mkdir -p /run/play && cat > /run/play/host.yml", input=json.dumps([host]))
    done = fleet.gate.run(
        *("systemd-run", "-q", "--property=Type=oneshot", "--property=StandardOutput=file:/run/play/out"),
        "--property=RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        *("--setenv=HOME=/root", f"--setenv=ANSIBLE_COLLECTIONS_PATH={OLD.parent}/collections"),
        *(str(OLD / "ansible-playbook"), "-i", "localhost,", "-c", "local", "/run/play/host.yml"),
        check=False,
    )
    said = fleet.gate.run("cat", "/run/play/out").stdout
    assert done.returncode
    assert "the kernel of this host has no nftables (Address family not supported by protocol)" in said
    assert ": nothing is changed" in said
    assert recap(said, "localhost")["changed"] == 0
    assert fleet.state() == before


def test_the_first_play_installs_configures_and_starts_and_a_knock_opens(fleet: Fleet) -> None:
    assert fleet.gets_in()
    said = fleet.play("-vvv")
    assert recap(said, "gate.example")["failed"] == 0
    assert fleet.gate.run("systemctl", "is-active", "logknock").stdout == "active\n"
    assert fleet.gate.run("systemctl", "is-enabled", "logknock").stdout == "enabled\n"
    assert fleet.gate.run("stat", "-c", "%a %U %G", "/etc/logknock/logknock.toml").stdout == "640 root logknock\n"
    assert not fleet.gets_in()
    fleet.opens(*KNOCKS)


def test_the_controller_is_trusted_by_the_address_that_the_host_sees(fleet: Fleet) -> None:
    text = fleet.gate.run("cat", "/etc/logknock/logknock.toml").stdout
    assert tomllib.loads(text)["firewall"]["trusted"] == [fleet.controller.ipv4]


def test_played_again_it_changes_nothing(fleet: Fleet) -> None:
    before = fleet.state()
    said = fleet.follow("ansible-playbook -i inventory.yml logknock.logknock.site\n")
    assert [recap(said, host)["changed"] for host in ("gate.example", "localhost")] == [0, 0]
    assert fleet.state() == before


# ---- mistakes


def test_a_variable_that_nobody_knows_is_refused_with_the_nearest_one(fleet: Fleet) -> None:
    said = fleet.play("--limit gate.example -e logknock_dors=1", code=2)
    fleet.guide.shown("logknock_dors", said)
    assert recap(said, "gate.example")["changed"] == 0


def test_a_wrong_value_is_refused_in_the_words_of_check_and_nothing_is_changed(fleet: Fleet) -> None:
    """With the neighbours in conf.d, which somebody else may write; a sequence that is mistyped is not in the words."""
    neighbour = "/etc/logknock/conf.d/another.toml"
    fleet.gate.run("sh", "-c", f"umask 027; cat > {neighbour}", input='doors.ssh.opens = ["22/tcp"]\n')
    before = fleet.state()
    wrong = {"logknock_scan": {"ports": 100}, "fleet_secrets": {"ssh": f"{KNOCKS[0]},{KNOCKS[1]}"}}
    said = fleet.play(f"--limit gate.example -e '{json.dumps(wrong)}'", code=2)
    assert "doors.ssh.sequence" in said
    assert "(hidden)" in said
    assert "refused, and nothing is changed" in said
    assert re.search(r"/etc/logknock/logknock\.toml:\d+: scan\.ports: 100 is out of range", said), said
    assert f"{neighbour}:1: doors.ssh: the same door is in /etc/logknock/logknock.toml too" in said
    assert fleet.state() == before
    fleet.gate.run("rm", neighbour)
    fleet.logknock("reload")  # conf.d is another one than it was


def test_what_the_service_cannot_read_does_not_stay(fleet: Fleet) -> None:
    """Root can, so that `check` has nothing against it."""
    before = fleet.gate.run("cat", "/etc/logknock/logknock.toml").stdout
    neighbour = "/etc/logknock/conf.d/another.toml"
    fleet.gate.run("sh", "-c", f"umask 077; echo > {neighbour}")
    wanted = {"logknock_scan": {"ports": 11}, "logknock_confirm": 0, "logknock_packages": []}
    said = fleet.play(f"--limit gate.example -e '{json.dumps(wanted)}'", code=2)
    assert "the service does not run with this configuration, and the one from before is back" in said
    assert fleet.gate.run("cat", "/etc/logknock/logknock.toml").stdout == before
    fleet.gate.run("rm", neighbour)
    said = fleet.play("--limit gate.example -e logknock_install=none")
    assert recap(said, "gate.example")["changed"] == 1, "the service goes on with what there is"


def test_check_mode_says_what_would_change_and_shows_no_secret(fleet: Fleet) -> None:
    """By a newer Ansible than the one before, which finds nothing to change where nothing is to be changed."""
    before = fleet.state()
    assert recap(fleet.play("--check --diff --limit gate.example", ansible=NEW), "gate.example")["changed"] == 0
    other = """-e '{"fleet_secrets": {"ssh": ["7100/tcp", "9100/udp", "8100/tcp"]}}'"""
    said = fleet.play("--check --diff --limit gate.example", other, ansible=NEW)
    assert recap(said, "gate.example")["changed"] == 1, "the configuration with the rules and the service's reload"
    assert "+doors.ssh.sequence = (hidden, another)" in said
    assert re.search(r"^-watched: \d+ elements \(hidden\)$", said, re.MULTILINE)
    assert "7100" not in said
    assert fleet.state() == before


def test_t38_rules_that_lock_the_controller_out_undo_themselves(fleet: Fleet) -> None:
    """T38. It is neither trusted nor does it knock: the new connection fails, and all is as it was."""
    before = fleet.state()
    words = "-e logknock_trust_controller=false -e logknock_confirm=20 -e 'ansible_ssh_common_args=\"-F none\"'"
    said = fleet.play("--limit gate.example", words, code=2)
    fleet.guide.shown("No new connection", said)
    assert fleet.state() == before
    assert fleet.logknock("rules", "diff") == ""
    fleet.opens(*KNOCKS)  # the service has the configuration from before, too


TRIAL = """
- hosts: logknock_servers
  gather_facts: false
  tasks:
    - logknock.logknock.logknock_config:
        path: /etc/logknock/logknock.toml
        content: "{{ wanted }}"
        owner: root
        group: logknock
        mode: "0640"
        validate: logknock check -c %s
        rules: "{{ rules | default('trial') }}"
        confirm: 20
        reload: true
"""


def test_t38_a_trial_that_is_broken_off_leaves_the_configuration_from_before(fleet: Fleet) -> None:
    """T38. When the host starts; when the trial's unit is killed; when the next play finds what is left."""
    path = "/etc/logknock/logknock.toml"
    before, state = fleet.gate.run("cat", path).stdout, fleet.state()
    fleet.write("trial.yml", TRIAL)
    wanted = json.dumps({"wanted": before.replace("[firewall]", '[firewall]\nguarded = ["23/tcp"]')})
    fleet.play(f"-e '{wanted}'", book="trial.yml")
    assert "23/tcp" in fleet.gate.run("cat", path).stdout
    fleet.gate.run("systemctl", "daemon-reload")
    assert "logknock-unconfirmed.service" in fleet.gate.run("systemctl", "show", "-P", "Wants", "logknock").stdout
    fleet.gate.run("systemctl", "start", "logknock-unconfirmed")
    assert "23/tcp" in fleet.gate.run("cat", path).stdout, "the trial goes on"
    fleet.gate.run("rm", "/run/logknock-trial")  # as a host has it that has just started
    fleet.gate.run("systemctl", "start", "logknock-unconfirmed")
    assert fleet.gate.run("cat", path).stdout == before
    until(lambda: fleet.state() == state, "an end of the trial")
    fleet.play(f"-e '{wanted}'", book="trial.yml")
    fleet.gate.run("systemctl", "kill", "--signal=KILL", "logknock-trial")
    until(lambda: fleet.state() == state, "what was there before")
    fleet.gate.run("sh", "-c", f"cp -p {path} {path}.previous; echo >> {path}")
    said = fleet.play(f"-e '{json.dumps({'wanted': before, 'rules': 'keep'})}'", book="trial.yml")
    assert "an earlier play was broken off" in said
    until(lambda: fleet.state() == state, "what was there before")


SCRAPE = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9141/metrics').read().decode())"


def test_metrics_are_given_with_all_that_they_need(fleet: Fleet) -> None:
    folder = "/var/lib/logknock-metrics"
    metrics = {"listen": "127.0.0.1:9141", "textfile": f"{folder}/logknock.prom"}
    wanted = {"logknock_metrics": metrics, "logknock_packages": []}
    said = fleet.play(f"--limit gate.example -e '{json.dumps(wanted)}'")
    assert recap(said, "gate.example")["failed"] == 0
    assert "logknock_build_info{" in fleet.gate.run("python3", "-c", SCRAPE).stdout
    until(lambda: not fleet.gate.run("test", "-s", f"{folder}/logknock.prom", check=False).returncode, "a file")


SECRET_KEYS = ("secret", "key_base64", "hmac_key_base64")


def test_clients_of_doors_are_a_variable_and_their_secrets_are_never_shown(fleet: Fleet) -> None:
    """Secrets and keys as the page has them made; a TOTP door, and then one for single packets in its place."""
    part = PAGE.under("Doors that cannot be replayed")
    made = dict(zip(SECRET_KEYS, fleet.guide.run("/dev/urandom").split(), strict=True))
    derives, packets = (
        re.sub(r'(\w+): "[\w+/=]{40,}"', lambda found: f'{found[1]}: "{made[found[1]]}"', block.text)
        for block in part.written_in("yaml")
    )
    fleet.write("host_vars/gate.example.yml", derives)
    said = fleet.play("--limit gate.example --diff")
    assert recap(said, "gate.example")["failed"] == 0
    assert "+clients.ssh.anna.secret = (hidden)" in said
    secret = made["secret"]
    assert secret not in said
    assert "warning: clients" not in fleet.logknock("check")
    step = totp.step_at(time.time(), totp.DEFAULT_STEP)
    pool = tuple(service for words in totp.DEFAULT_PORTS for service in services(words))
    knocks = totp.derive(totp.parse_secret(secret), step, "ssh", "gate.example", pool, totp.DEFAULT_LENGTH)
    fleet.opens(*map(str, knocks))
    fleet.write("host_vars/gate.example.yml", packets)
    said = fleet.play("--limit gate.example --diff")
    assert recap(said, "gate.example")["failed"] == 0
    assert not [secret for secret in made.values() if secret in said]
    keys = "".join(f'{name} = "{made[name]}"\n' for name in SECRET_KEYS[1:])
    profile = f'[profiles.gate]\nhost = "{fleet.gate.ipv6}"\n[profiles.gate.spa]\n{keys}access = ["22/tcp"]\n'
    fleet.write("spa.toml", f'{profile}address = "source"\n')
    fleet.controller.run("chmod", "600", f"{FLEET}/spa.toml")
    fleet.controller.run("logknock-client", "knock", "--profiles", f"{FLEET}/spa.toml", "gate")
    until(lambda: fleet.granted(fleet.controller.ipv6), "an open door")
    fleet.logknock("revoke", "--all")
    fleet.controller.run("rm", f"{FLEET}/host_vars/gate.example.yml", f"{FLEET}/spa.toml")


def services(words: str) -> list[Service]:
    """Those of a range of ports."""
    proto, first, last = port_range(words)
    return [Service(proto, port) for port in range(first, last + 1)]


# ---- knocks in place of trust


def test_ansible_connects_only_because_it_knocks(fleet: Fleet) -> None:
    (knocking,) = (block.text for block in PAGE.under("Knock before you connect").written_in("yaml"))
    fleet.write("group_vars/logknock_servers.yml", knocking)
    assert "pong" in fleet.follow("ansible.builtin.ping")
    assert not fleet.gate.run("ls", "/etc/systemd/system/logknock.service.d").stdout, "no metrics, no drop-in"
    assert "trusted" not in fleet.gate.run("cat", "/etc/logknock/logknock.toml").stdout
    fleet.logknock("revoke", "--all", check=False)

    def pings(*more: str, patience: int = 20) -> bool:
        once = f"env ANSIBLE_SSH_ARGS='-F none -o ControlPath=none -o ConnectTimeout={patience}'"
        shell = f"cd {FLEET} && exec {once} ansible -i inventory.yml logknock_servers -m ping {' '.join(more)}"
        return not fleet.controller.run(
            "bash", "-c", shell, check=False, env={"PATH": "/usr/bin", "HOME": "/root"}
        ).returncode

    assert not pings("-e ansible_ssh_common_args=", patience=2)
    assert fleet.granted(fleet.controller.ipv4) == []
    assert pings()
    assert fleet.granted(fleet.controller.ipv4) == ["ssh"]
    # ssh itself, as the role has configured it.
    fleet.logknock("revoke", "--all")
    assert fleet.controller.run("ssh", "-o", "BatchMode=yes", "root@gate.example", "echo in").stdout == "in\n"
    assert fleet.granted(fleet.controller.ipv4) == ["ssh"]


GRANTS = """
- hosts: logknock_servers
  gather_facts: false
  tasks:
    - logknock.logknock.logknock_grant: {door: ssh, address: "2001:DB8::7", timeout: 2h}
      register: first
    - logknock.logknock.logknock_grant: {door: ssh, address: "2001:db8:0::7", timeout: 1h}
      register: again
    - logknock.logknock.logknock_grant: {address: "2001:db8::7", state: absent}
      check_mode: true
      register: tried
    - logknock.logknock.logknock_info:
      register: found
    - logknock.logknock.logknock_grant: {address: "2001:db8::7", state: absent}
      register: gone
    - logknock.logknock.logknock_grant: {address: "2001:db8::7", state: absent}
      register: gone_again
    - logknock.logknock.logknock_grant: {door: shs, address: "2001:db8::7"}
      ignore_errors: true
      register: unknown
    - logknock.logknock.logknock_grant: {door: shs, address: "2001:db8::7", state: absent}
      ignore_errors: true
      register: unknown_too
    - ansible.builtin.assert:
        that:
          - unknown_too is failed and "there is no door shs" in unknown_too.msg
          - first.changed and not again.changed and tried.changed and gone.changed and not gone_again.changed
          - 7100 < again.grants[0].left and again.grants[0].left < 7201
          - found.status.open | selectattr('address', 'eq', '2001:db8::7') | list | length == 1
          - found.installed and not found.unfit and "22/tcp" in found.listening
          - gone.grants == []
          - "'there is no door shs' in unknown.msg"
"""


def test_a_door_is_granted_once_and_revoked_once(fleet: Fleet) -> None:
    said = fleet.follow("logknock_grant")
    assert re.findall(r"^gate\.example \| (\w+)", said, re.MULTILINE) == ["CHANGED", "SUCCESS", "CHANGED"]
    fleet.write("grants.yml", GRANTS)
    fleet.play(book="grants.yml")


# ---- rotation


def test_what_would_lock_out_clients_is_refused_before_anything_is_kept(fleet: Fleet) -> None:
    for half in ("rotate", "rotate_finish"):
        said = fleet.play("--limit gate.example", book=f"logknock.logknock.{half}", code=2)
        assert "--limit leaves out localhost: every client has to be there, nothing is changed" in said
    given = {"gate.exampel": {}, "gate.example": {"shs": [], "ssh": ["7300/tcp", "7400/icmp", "22/tcp"]}}
    words = f"-e '{json.dumps({'logknock_rotate_sequences': given})}'"
    said = fleet.play(words, book="logknock.logknock.rotate", code=2)
    assert "there is no host gate.exampel" in said
    assert "door shs is not among logknock_rotate_doors" in said
    assert "the new sequence has no PORT/tcp or PORT/udp as its knock 2" in said
    assert "the new sequence knocks on a port that is guarded" in said
    assert "7400/icmp" not in said.replace(words, "")
    assert fleet.controller.run("test", "-e", f"{FLEET}/logknock/gate.example.yml", check=False).returncode


def test_a_rotation_in_check_mode_ends_well_and_keeps_nothing(fleet: Fleet) -> None:
    said = fleet.play("--check", book="logknock.logknock.rotate")
    assert recap(said, "gate.example")["failed"] == 0
    assert fleet.controller.run("test", "-e", f"{FLEET}/logknock/gate.example.yml", check=False).returncode
    assert fleet.configured()["ssh"]["sequence"] == list(KNOCKS)


def test_new_sequences_work_beside_the_old_and_who_cannot_be_reached_keeps_his(fleet: Fleet) -> None:
    inventory = fleet.read("inventory.yml")
    lost = "    lost.example: {ansible_host: 10.99.0.1, ansible_port: 2, ansible_ssh_common_args: ''}\n"
    fleet.write("inventory.yml", inventory.replace("    gate.example:\n", lost + "    gate.example:\n"))
    said = fleet.play("-vvv", book="logknock.logknock.rotate", code=2)
    assert "lost.example has no new sequence that clients know, and takes the old one" in said
    assert recap(said, "gate.example")["failed"] == 0
    old, new = list(KNOCKS), published(fleet)
    assert old != new
    assert [knock.partition("/")[2] for knock in new] == ["tcp", "udp", "tcp"]
    doors = fleet.configured()
    assert (doors["ssh"]["sequence"], doors["ssh-previous"]["sequence"]) == (new, old)
    fleet.opens(*old)
    fleet.opens(*new)
    profiles = tomllib.loads(fleet.controller.run("cat", "/root/.config/logknock/client.toml").stdout)["profiles"]
    assert {name: profile["sequence"] for name, profile in profiles.items()} == {
        "gate.example": new,
        "lost.example": old,
    }
    fleet.write("inventory.yml", inventory)
    said = fleet.follow("logknock.logknock.rotate\n")
    assert recap(said, "gate.example")["changed"] == 0, "what has been begun is not begun anew"
    assert published(fleet) == new


def test_after_the_second_half_the_old_sequence_opens_nothing(fleet: Fleet) -> None:
    new = published(fleet)
    fleet.follow("rotate_finish")
    assert list(fleet.configured()) == ["ssh"]
    before = fleet.opened()
    fleet.knock(*KNOCKS)
    fleet.opens(*new)
    assert fleet.opened() == before + 1, "the second time, and not the first"


def published(fleet: Fleet) -> list[str]:
    """What clients knock, as the controller keeps it."""
    kept = "logknock/gate.example.yml"
    assert fleet.controller.run("stat", "-c", "%a", f"{FLEET}/{kept}").stdout == "600\n"
    code = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))['ssh']['sequence']))"
    return list(json.loads(fleet.controller.run(str(OLD / "python"), "-c", code, f"{FLEET}/{kept}").stdout))


# ---- the wheel


def test_the_wheel_in_place_of_the_packages(fleet: Fleet) -> None:
    fleet.gate.run("dpkg", "--purge", "logknock", "logknock-client")
    wheel = next((fleet.folder / "dist").glob("*.whl"))
    words = f"-e logknock_install=wheel -e logknock_wheel={wheel}"
    said = fleet.play(words)
    assert recap(said, "gate.example")["changed"] > 0
    assert "/opt/logknock/bin/logknock run" in fleet.gate.run("systemctl", "cat", "logknock").stdout
    fleet.opens(*published(fleet))
    said = fleet.play(words)
    assert recap(said, "gate.example")["changed"] == 0
    fleet.write("client.yml", CLIENT.replace("WHEEL", str(wheel)))
    fleet.play(book="client.yml")
    profile = fleet.gate.run("cat", "/root/.config/logknock/client.toml").stdout
    assert tomllib.loads(profile)["profiles"]["home"] == {"host": "192.0.2.1", "sequence": list(KNOCKS)}
    assert fleet.gate.run("/usr/local/bin/logknock-client", "--version").stdout == f"logknock {__version__}\n"


CLIENT = """
- hosts: logknock_servers
  gather_facts: false
  roles: [logknock.logknock.client]
  vars:
    logknock_client_user: root
    logknock_client_install: wheel
    logknock_client_wheel: WHEEL
    logknock_client_profiles: {home: {host: 192.0.2.1, sequence: "{{ fleet_secrets.ssh }}"}}
"""


# ---- after all of that


def test_no_secret_was_printed(fleet: Fleet) -> None:
    # Less the numbers of processes, in the names of folders too: any knock may have the same.
    everything = re.sub(r"ansible-tmp-[\d.-]+|\bpid=\d+", "", "".join(fleet.printed))
    assert "TASK" in everything
    for knock in (*KNOCKS, *published(fleet)):
        assert knock not in everything
        assert not re.search(rf"\b{knock.partition('/')[0]}\b", everything)


# With few ports that are free, so that what is avoided is seen to be avoided.
MADE_UP = """
import json, sys
sys.path.insert(0, sys.argv[1])
from logknock import new_sequence
print(json.dumps([new_sequence(["1/tcp", "2/udp", "3/tcp"], set(range(1, 32_700))) for _ in range(500)]))
"""


def test_sequences_that_are_made_up_are_in_no_order_and_knock_where_nothing_else_is() -> None:
    """T1: an ascending sequence is what a scan from low to high knocks."""
    argv = [str(OLD / "python"), "-c", MADE_UP, str(COLLECTION / "plugins/filter")]
    sequences = json.loads(subprocess.run(argv, cwd="/", capture_output=True, text=True, check=True).stdout)
    for sequence in sequences:
        ports, protos = zip(*(knock.split("/") for knock in sequence), strict=True)
        numbers = list(map(int, ports))
        assert protos == ("tcp", "udp", "tcp")
        assert all(32_700 <= number < 32_768 for number in numbers)
        assert len(set(numbers)) == 3
        assert numbers not in (sorted(numbers), sorted(numbers, reverse=True))
    assert len({tuple(sequence) for sequence in sequences}) > 490


BEGUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
from logknock import begun
old = {"sequence": ["7000/tcp", "9000/udp", "8000/tcp"], "opens": ["22/tcp"]}
doors = {"ssh": old, "web": {"totp": {"ports": ["1024-32700/tcp"]}}, "code": {"totp": {"code": 6}}, "one": {"totp": {}}}
print(json.dumps([begun({}, doors, ["ssh"])["ssh"]["next"] for _ in range(100)]))
"""


def test_sequences_that_are_made_up_stay_out_of_what_totp_doors_derive_theirs_from() -> None:
    argv = [str(OLD / "python"), "-c", BEGUN, str(COLLECTION / "plugins/filter")]
    made = json.loads(subprocess.run(argv, cwd="/", capture_output=True, text=True, check=True).stdout)
    assert len(made) == 100
    assert all(int(knock.partition("/")[0]) > 32_700 for sequence in made for knock in sequence)


def test_the_collection_has_the_program_s_version() -> None:
    assert f"\nversion: {__version__}\n" in (COLLECTION / "galaxy.yml").read_text()
