"""The howtos for a host with logknock, followed to the last command on one that has systemd, ssh and a firewall.

What runs is real: the unit, the rules, sshd's part played by dropbear, and the services that a page speaks of, as
Debian packages them. Rule 1: a page's commands run as they stand, and what the page shows is what they said. Rule 2:
what a page promises of them (a door that opens, a ban) is looked for.
"""

import json
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..checkout import copy_checkout
from ..netns import Host
from ..peers import UNPACKED, kernel_log
from .booted import PROJECT, BootedHost, booted
from .neighbours import SSH, configure, install
from .pages import (
    COMMANDS,
    HOST,
    KNOCKER,
    Block,
    Guide,
    Page,
    agree,
    documented,
    follows,
    private,
    run,
    terminal,
)
from .test_neighbours import FIREWALLD, UFW
from .world import World, until

APPLY = follows("docs/howto/apply.md")
CLIENT = follows("docs/howto/client.md")
DOCTOR = follows("docs/howto/doctor.md")
IPTABLES = follows("docs/howto/iptables.md")
KNOCKD = follows("docs/howto/knockd.md")
LOGS = follows("docs/howto/logs.md")
ONE_TIME = follows("docs/howto/one-time.md")
RELOAD = follows("docs/howto/reload.md")
REPLAY = follows("docs/howto/replay.md")
SCANNERS = follows("docs/howto/scanners.md")
WHY = follows("docs/howto/why.md")

KNOCKS = ("7000/tcp", "9000/udp", "8000/tcp")
WEB = ("7100/tcp", "9100/udp", "8100/tcp")
DONE = ("7300/tcp", "9300/udp", "8300/tcp")
CLOSING = """
[doors.ssh-done]
sequence = ["7300/tcp", "9300/udp", "8300/tcp"]
closes = ["ssh"]
"""

# By IPv4, where the pages show what the daemon says.
NAMES = dict.fromkeys(("host.example", "gateway.example", "vault.example", "web.fleet.example"), HOST[:1])

# Debian's own openssh-server would start on this machine when it is installed.
SSHD = """
mount -t tmpfs -o mode=700 tmpfs /root
install -D -m 600 {keys}/id_ed25519.pub /root/.ssh/authorized_keys
systemd-run -q --unit=sshd-of-the-test --property=SyslogIdentifier=dropbear \
    dropbear -F -E -s -r {keys}/host_key -P '' -p 22
"""

LAPTOP = """
install -D -m 600 -t /root/.ssh {keys}/id_ed25519 {keys}/known_hosts
chmod 700 /root/.ssh
"""

# `1d23h` as well as `2d`, `26s528ms` as well as `27s`, `829 ms` as well as `2.9 s`.
_DURATION = re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|[dhms])(?:\d+(?:ms|[hms]))*\b")
_PROCESS = re.compile(r"\b(process|kill) \d+")
# What doctor notes of this machine, and not of the host: whether something keeps its clock right.
_CLOCK = re.compile(r"^. clock: .*\n(?: .*\n)?|, \d+ notes?$", re.MULTILINE)


@dataclass
class Scene:
    """Whoever reads a page: the host that it is about, a laptop with a key for it, and a view of both."""

    world: World
    gateway: BootedHost
    client: Host

    def guide(self, page: Page) -> Guide:
        """The page, in the reader's hands."""
        return Guide(page, {"": self.gateway, "client": self.client})

    def shell(self, commands: str) -> str:
        """What commands of no page say on the host."""
        return run(self.gateway, commands)

    @contextmanager
    def kernel_log(self) -> Iterator[None]:
        """What its firewall logs comes into its journal.

        A unit's own /proc shows the machine's boot, and not the one that systemd-nspawn puts in its place: the journal
        is to be of the same.
        """
        with kernel_log():
            self.shell("umount /proc/sys/kernel/random/boot_id && systemctl restart systemd-journald")
            yield

    def knock(self, *services: str) -> None:
        """Knock from the laptop."""
        run(self.client, f"logknock-client knock host.example {' '.join(services)}")

    def is_open(self) -> bool:
        """Whether the laptop gets an answer from ssh."""
        script = "exec 3<>/dev/tcp/host.example/22 && head -c 4 <&3"
        return self.client.run("timeout", "0.6", "bash", "-c", script, check=False).stdout.startswith("SSH-")

    def opens(self) -> None:
        """ssh is shut, and opens with the knocks."""
        assert not self.is_open()
        self.knock(*KNOCKS)
        until(self.is_open, "a door that opens")

    def closes(self) -> None:
        """The door is closed again, by the knocks for that."""
        self.knock(*DONE)
        until(lambda: not self.is_open(), "a door that is closed")

    def is_active(self, unit: str) -> bool:
        """Whether a service runs."""
        return not self.gateway.run("systemctl", "is-active", "-q", unit, check=False).returncode

    def journal(self, words: str) -> bool:
        """Whether the daemon has said so."""
        return words in self.shell("journalctl --no-pager -u logknock -o cat")


def alike(shown: Block, said: str) -> None:
    """What a page shows was said, but for what differs each time: durations too."""
    agree(_DURATION.sub("1s", shown.text), _DURATION.sub("1s", said))


def exactly(shown: Block, said: str) -> None:
    """Each line that a page shows was said, in this order and to the digit, but for the width of columns."""
    rest = iter([" ".join(line.split()) for line in said.splitlines()])
    for line in shown.text.splitlines():
        assert line == "…" or " ".join(line.split()) in rest, f"{line!r} was not said, or not in its place:\n{said}"


def fails(guide: Guide, words: str, code: int) -> str:
    """What the block with these words says, which ends with an exit code that the page tells of."""
    with guide.start(words) as made:
        with pytest.raises(AssertionError, match=f"^exit {code}\n"):
            made.end()
        return made.said


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key for whoever comes, and one for the host, which the laptop knows."""
    folder = tmp_path_factory.mktemp("keys")
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(folder / "id_ed25519")], check=True)
    made = subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", str(folder / "host_key")], check=True, capture_output=True, text=True
    )
    (key,) = [line for line in made.stdout.splitlines() if line.startswith("ssh-")]
    (folder / "known_hosts").write_text(f"{','.join([*NAMES, *HOST])} {' '.join(key.split()[:2])}\n")
    return folder


@pytest.fixture
def scene(hosts: tuple[Host, Host], keys: Path, tmp_path: Path) -> Iterator[Scene]:
    """The host with logknock installed, a door for ssh configured, and nothing started but ssh; and the laptop."""
    documented(hosts)
    folder = tmp_path / "host"
    shutil.copytree(keys, folder / "keys")
    with booted(hosts[0], folder, UNPACKED) as gateway, private(hosts[1], NAMES, COMMANDS) as client:
        install(gateway)
        run(gateway, SSHD.format(keys=folder / "keys"))
        run(client, LAPTOP.format(keys=keys))
        made = Scene(World(gateway, client, Path("/etc/logknock/logknock.toml")), gateway, client)
        until(made.is_open, "ssh, as it is before anything is done")
        yield made


# ---- loading rules, and what happens to them


def test_apply(scene: Scene) -> None:
    """T38: rules are loaded on trial, and confirmed elsewhere; what a new door comes to is seen before it is loaded."""
    guide = scene.guide(APPLY)
    with guide.start("apply --confirm") as first:
        first.expect("still reachable?")
        assert not scene.is_open()
        exactly(APPLY.block("confirmed: ", "text"), guide.run("rules confirm"))
        guide.shown("still reachable?", first.end())
    scene.shell("systemctl start logknock")
    scene.opens()

    guide.run("[doors.web]")
    guide.shown("element tcp . 443", fails(guide, "rules diff\n", 1))
    assert '"tcp . 443"' in fails(guide, "diff --json", 1)
    guide.run("apply --yes")
    assert run(scene.gateway, APPLY.block("rules diff\n")) == ""
    scene.knock(*WEB)
    until(lambda: f"{KNOCKER[0]} . tcp . 443" in scene.world.granted(), "the door that was added")
    guide.run("rules remove")
    assert scene.shell("nft list tables") == ""


def test_reload(scene: Scene) -> None:
    """T34: the door is open after the firewall's reload; what is removed stays away, and so with restore = false."""
    guide = scene.guide(RELOAD)
    scene.shell("systemctl enable --now nftables; systemctl start logknock")
    scene.opens()
    guide.run("systemctl reload nftables")
    until(lambda: scene.journal("the open doors of 1 address"), "the rules and the door")
    guide.shown("was deleted by nft", guide.run("journalctl"))
    alike(RELOAD.block("elements = ", "text"), guide.run("list set"))
    until(scene.is_open, "the door, as before")

    configure(scene.gateway, SSH + RELOAD.block("restore = false", "toml").text)
    scene.shell("systemctl reload logknock")
    until(lambda: scene.journal("reloaded: "), "the reload")
    run(scene.gateway, RELOAD.block("systemctl reload nftables"))
    until(lambda: scene.shell("journalctl -u logknock -o cat").count("was deleted by nft") == 2, "word of it")
    time.sleep(1)  # the rules were back in far less, before
    assert "logknock" not in scene.shell("nft list tables")
    scene.shell("logknock rules apply --yes")
    guide.run("rules remove")
    assert "logknock" not in scene.shell("nft list tables")


# iptables as it is usual on a host of one's own.
DROPPING = """
for family in iptables ip6tables; do update-alternatives --quiet --set $family /usr/sbin/$family-nft; done
for program in iptables ip6tables; do
    $program -P INPUT DROP
    $program -A INPUT -i lo -j ACCEPT
    $program -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
done
iptables -A INPUT -p icmp -j ACCEPT
ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
mkdir -p /etc/iptables
"""


def test_iptables(scene: Scene) -> None:
    """Each way to have the mark accepted opens the door; without our rules the firewall is what it was."""
    guide = scene.guide(IPTABLES)
    scene.shell(DROPPING)
    before = scene.shell("iptables -S; ip6tables -S; iptables-save > bare.v4; ip6tables-save > bare.v6")
    guide.shown("mark 0x10000 accepted", guide.run("mark = 0x10000"))
    scene.opens()
    exactly(IPTABLES.block("-A LOGKNOCK ", "text"), guide.run("iptables -S LOGKNOCK\n"))
    guide.run("/etc/iptables/rules.v4")
    assert scene.shell("cat /etc/iptables/rules.v4 /etc/iptables/rules.v6").count("-j LOGKNOCK-LOG") == 2

    scene.shell("iptables-restore bare.v4; ip6tables-restore bare.v6")
    assert not scene.is_open()
    guide.run("rules print --iptables")
    until(scene.is_open, "the door, as before")

    guide.run("rules remove")
    assert scene.shell("iptables -S; ip6tables -S") == before


# ---- what the daemon knows of somebody


def test_scanners(scene: Scene) -> None:
    """T6: a real scan is banned; what the page does by hand is done, and an element of somebody else's is a ban."""
    guide = scene.guide(SCANNERS)
    guide.run("[scan]")
    guide.run("logknock check")
    with terminal(scene.client, f"nmap -6 -n -Pn -sS -p 1000-9000 {HOST[1]}"):
        until(lambda: "scan of 5 ports" in scene.shell("logknock bans"), "a ban")
    exactly(SCANNERS.block("banned for", "text"), guide.run("logknock ban "))
    alike(SCANNERS.block("by hand\n2001", "text"), guide.run("logknock bans"))
    assert not scene.is_open()
    guide.shown("is banned: ", guide.run("logknock explain"))
    exactly(SCANNERS.block("no longer banned", "text"), guide.run("logknock unban"))
    assert "by hand" in guide.run("LOGKNOCK_EVENT=banned")

    guide.run("banned4")
    until(lambda: "spam" in scene.shell("logknock bans"), "a ban by another program")
    scene.shell("nft flush set inet logknock banned4")
    until(lambda: "spam" in scene.shell("nft list set inet logknock banned4"), "the ban, put back")
    run(scene.gateway, SCANNERS.block("logknock unban"))
    scene.opens()


def test_why(scene: Scene) -> None:
    """Each reason that the page shows, of real packets that fail in these ways."""
    guide = scene.guide(WHY)
    configure(scene.gateway, SSH.replace('"15s"', '"6s"'))
    scene.shell("systemctl start logknock")
    asked = WHY.block("logknock explain 203.0.113.7\n")
    for service in ("7000/tcp", "7001/tcp", "7000/tcp"):
        scene.knock(service)
    until(lambda: "given up" in run(scene.gateway, asked), "the end of an attempt")
    scene.knock("9000/udp")
    until(lambda: "too late" in run(scene.gateway, asked), "the last of them")
    alike(WHY.block("given up", "text"), run(scene.gateway, asked))
    with guide.start("explain -f") as watching:
        watching.expect("too late")
        scene.opens()
        watching.expect("opened for 30 s")
        watching.interrupt()
    alike(WHY.block("opened for", "text"), watching.said)
    assert "opened for 30 s\n" in guide.run("--json")


# A log in which one source fails as the page says, and another one, later, does not.
KERNEL_LINE = "2026-03-01T{at}+00:00 host kernel: {words}\n"
FIREWALL_LINE = (
    "{prefix}IN=eth0 OUT= MAC=00:16:3e:00:00:01:00:16:3e:00:00:02:08:00 SRC={src} DST=192.0.2.10 LEN=60 TOS=0x00 "
    "PREC=0x00 TTL=57 ID=4711 DF PROTO={proto}"
)
TAIL = {
    "tcp": "TCP SPT=40312 DPT={port} WINDOW=64240 RES=0x00 SYN URGP=0",
    "udp": "UDP SPT=40312 DPT={port} LEN=9",
}
FAILED = [
    ("09:10:02.318204", "203.0.113.80", "23/tcp", "logknock: "),
    ("09:12:44.101388", "198.51.100.9", "7000/tcp", "logknock: "),
    ("09:12:44.602120", "198.51.100.9", "9000/udp", "logknock: "),
    ("09:12:45.104233", "198.51.100.9", "8000/udp", "logknock: "),
    ("09:13:20.700114", "203.0.113.80", "445/tcp", "[UFW BLOCK] "),
    ("09:14:02.900871", "203.0.113.80", "2323/tcp", "logknock: "),
    ("09:14:31.500960", "203.0.113.81", "8080/tcp", "logknock: "),
]
OPENED = [(f"10:02:51.{number}00000", "203.0.113.7", service, "logknock: ") for number, service in enumerate(KNOCKS, 1)]
LINK = [("09:11:15.000112", "eth0: Link is Down"), ("09:11:17.204001", "eth0: Link is Up - 1Gbps/Full")]


def kernel_lines(records: Sequence[tuple[str, str, str, str]]) -> str:
    """What rsyslog writes of these records of a firewall."""
    text = ""
    for at, src, service, prefix in records:
        port, _, proto = service.partition("/")
        words = FIREWALL_LINE.format(prefix=prefix, src=src, proto=TAIL[proto].format(port=port))
        text += KERNEL_LINE.format(at=at, words=words)
    return text


def test_replay(scene: Scene) -> None:
    """What the page shows to the digit, of a log that is as old; and a picture of the journal's knocks of just now."""
    guide = scene.guide(REPLAY)
    log = scene.gateway.root("/var/log/kern.log")
    log.write_text(kernel_lines(FAILED) + "".join(KERNEL_LINE.format(at=at, words=words) for at, words in LINK))
    configure(scene.gateway, '[log]\nsource = "journal"\n' + SSH)
    shown = REPLAY.block("came closest", "text").text
    assert guide.run("--from 198.51.100.9") == shown
    with log.open("a") as more:
        more.write(kernel_lines(OPENED))
    assert guide.run("jq") == REPLAY.block("ssh\n", "text").text

    with scene.kernel_log():
        scene.shell("systemctl start logknock")
        scene.opens()
    assert re.search(r"^  opened +ssh", guide.run("--plot knocks.svg"), re.MULTILINE)
    assert KNOCKER[0] in scene.shell("cat knocks.svg")


# ---- knocks from elsewhere


# The packages that `make setup-test` has put there, and no others.
OFFLINE = f"[global]\nno-index = true\nfind-links = {PROJECT}/.venv/wheels\n"

PROFILES = "/root/.config/logknock/client.toml"


def add_profile(scene: Scene, block: Block) -> None:
    """What the page has for the profiles, written by an editor that leaves it readable by all."""
    scene.client.run("sh", "-c", f"mkdir -p -m 700 /root/.config/logknock && cat >> {PROFILES}", input=block.text)


def copy_sequences(scene: Scene, name: str) -> None:
    """The host's file of one-time sequences, brought to the laptop under this name."""
    scene.client.run(
        *("install", "-m", "600", "/dev/stdin", f"/root/.config/logknock/{name}"),
        input=scene.shell("cat /etc/logknock/onetime/laptop"),
    )


@contextmanager
def lossy(scene: Scene) -> Iterator[None]:
    """What is knocked on one-time ports is lost on the way."""
    scene.gateway.nft(
        "table inet lossy { chain p { type filter hook prerouting priority raw; tcp dport 10000-60999 drop; }; }"
    )
    yield
    scene.gateway.nft("delete table inet lossy")


def test_client(scene: Scene) -> None:
    """Each way to knock opens the door, which is shut before; and what is shown is said."""
    configure(scene.gateway, SSH + CLOSING)
    scene.shell("systemctl start logknock")
    knocks = CLIENT.under("Knock")
    assert len(knocks.commands) == 4
    assert not scene.is_open()
    said = [opened_by(scene, block) for block in knocks.commands]
    exactly(CLIENT.block("knock 1 of 3", "text"), said[1])
    exactly(CLIENT.block("3 knocks sent", "text"), "\n".join(sorted(said[2].splitlines())))  # each when it is done
    assert scene.world.granted("granted6")
    assert opened_by(scene, CLIENT.block("--verify"))

    profile, fleet, gate, vpn, vault = CLIENT.written_in("toml")
    add_profile(scene, profile)
    assert opened_by(scene, CLIENT.block("logknock-client knock home")) == ""
    assert "load average" in opened_by(scene, CLIENT.block("ProxyCommand="))
    add_profile(scene, fleet)
    assert "load average" in opened_by(scene, CLIENT.block("*.fleet.example"))

    add_profile(scene, gate)
    add_profile(scene, vpn)
    ask_for(scene, gate, "totp", "secret")
    opened_by(scene, CLIENT.block("logknock-client knock gate"))
    ask_for(scene, vpn, "spa", "key_base64", "hmac_key_base64")
    assert "load average" in opened_by(scene, CLIENT.block("logknock-client knock vpn\nssh"))
    run(scene.client, CLIENT.block("ping_group_range"))

    scene.shell("logknock onetime generate /etc/logknock/onetime/laptop")
    configure(scene.gateway, ONE_TIME.block("[doors.ssh]", "toml").text + CLOSING)
    scene.shell("logknock rules apply --yes && systemctl reload logknock")
    add_profile(scene, vault)
    copy_sequences(scene, "vault.onetime")
    opened_by(scene, CLIENT.block("logknock-client knock vault"))
    with lossy(scene):
        run(scene.client, CLIENT.block("logknock-client knock vault"))
    opened_by(scene, CLIENT.block("--again"))


def ask_for(scene: Scene, profile: Block, proof: str, *keys: str) -> None:
    """Have the host's door ask its client for what the profile has: the same secret, or the same keys."""
    (written,) = tomllib.loads(profile.text)["profiles"].values()
    client = "".join(f"{key} = {json.dumps(written[proof][key])}\n" for key in keys)
    if proof == "spa":
        client += 'allow = ["22/tcp"]\nrequire_source = false\n'
    door = f'[totp]\nhost = "host.example"\n[doors.ssh]\nopens = ["22/tcp"]\n{proof} = {{}}\n'
    configure(scene.gateway, f"{door}[clients.ssh.laptop]\n{client}{CLOSING}")
    scene.shell("logknock rules apply --yes && systemctl reload logknock")


def test_a_client_without_a_package(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """A wheel of the checkout, in an environment that sees nothing of the distribution's."""
    tree = copy_checkout(tmp_path / "tree")
    subprocess.run(["make", "-s", "wheel"], cwd=tree, check=True, capture_output=True)
    with private(hosts[1], {}) as client:
        client.run("install", "-D", "/dev/stdin", "/root/.config/pip/pip.conf", input=OFFLINE)
        run(client, CLIENT.block("python3 -m venv"), tree)
        assert "proxy" in run(client, "~/.local/bin/logknock-client --help")


def opened_by(scene: Scene, block: Block) -> str:
    """What a block says that opens the door, which is closed afterwards."""
    said = run(scene.client, block)
    until(scene.is_open, block.text)
    scene.closes()
    return said


def test_one_time_sequences(scene: Scene) -> None:
    """T18: from an empty directory to a door that opens with each line once, after a lost knock too."""
    guide = scene.guide(ONE_TIME)
    scene.shell("systemctl start logknock")
    guide.run("onetime generate")
    scene.knock(*KNOCKS)  # ssh is guarded already: it is copied through the door that is there
    until(scene.is_open, "the door as it is before")
    guide.run("scp ")
    profile, door = ONE_TIME.written_in("toml")
    add_profile(scene, profile)
    scene.client.run("chmod", "600", PROFILES)
    configure(scene.gateway, door.text + CLOSING)
    guide.run("logknock check")
    scene.closes()

    assert "load average" in guide.run("logknock-client knock home\n")
    exactly(ONE_TIME.block("1 used", "text"), guide.run("logknock status"))
    scene.closes()
    with lossy(scene):
        run(scene.client, "logknock-client knock home")
    assert not scene.is_open()
    guide.run("--again")
    until(scene.is_open, "the door, for the knock that was lost")


# ---- beside others


# What the installation of ulogd2 does besides unpacking.
ULOGD = """
adduser --system --group --no-create-home --quiet ulog
install -d -o ulog -g adm -m 750 /var/log/ulog
systemd-tmpfiles --create ulogd2.conf
"""


def test_doctor(scene: Scene) -> None:
    """A group that somebody else holds, a trap that is listened on: found, and nothing else when they are gone."""
    guide = scene.guide(DOCTOR)
    scene.shell(f"{ULOGD}\nlogknock rules apply")
    run(scene.gateway, LOGS.block("/etc/ulogd.conf"))
    scene.shell("systemd-run -q --unit=web python3 -m http.server 8001")
    until(lambda: "8001" in scene.shell("ss -ltn"), "a web server")
    said = _CLOCK.sub("", fails(guide, "logknock doctor\n", 1))
    for words, told in (("held by ulogd", said), ("nflog-group: kill", fails(guide, "jq", 1))):
        assert _PROCESS.sub(r"\1 812", told).splitlines() == DOCTOR.block(words, "text").text.splitlines()
    assert "error" not in guide.run("systemctl restart logknock")
    scene.opens()
    guide.shown("door ssh (a sequence)", guide.run("--live"))


# Debian's rsyslog, which takes the kernel's records from where nobody else misses them.
RSYSLOG = """
sed -i 's/load="imklog"/load="imkmsg"/' /etc/rsyslog.conf
mkdir -p /var/spool/rsyslog
systemctl restart rsyslog
"""


def test_logs(scene: Scene) -> None:
    """Each configuration of the page, with the programs that write those logs: shut, open with a knock."""
    guide = scene.guide(LOGS)
    journal, file, ulogd, pipe = LOGS.written_in("toml")
    read_it = LOGS.block("systemctl restart logknock\nlogknock doctor")
    scene.shell("systemctl start logknock")
    with scene.kernel_log():
        scene.gateway.nft(LOGS.block("dropped: ", "nft").text)
        scene.knock("4444/tcp")
        until(lambda: "dropped: " in scene.shell("journalctl -qk"), "a record")
        assert "dropped: IN=eth0" in guide.run("-g SRC=")
        follow(scene, journal, read_it)
        scene.gateway.nft("delete table inet filter")

        scene.shell(RSYSLOG)
        follow(scene, file, read_it)
        assert "DPT=8000" in scene.shell("cat /var/log/kern.log")

        scene.shell(f"systemctl stop logknock\n{ULOGD}")
        guide.run("/etc/ulogd.conf")
        follow(scene, ulogd, read_it)
        assert '"dest_port": 8000' in scene.shell("cat /var/log/ulog/knocks.json")

        configure(scene.gateway, pipe.text + CLOSING)
        with guide.start("journalctl -kf") as daemon:
            daemon.expect("ready: ")
            scene.opens()
            daemon.expect("OPEN SESAME")


def follow(scene: Scene, configuration: Block, read_it: Block) -> None:
    """The service reads the log of this configuration: a knock opens, and closes again."""
    configure(scene.gateway, configuration.text + CLOSING)
    run(scene.gateway, read_it)
    scene.opens()
    scene.closes()


# What Debian's own knockd.conf has, and what else is to be done until knockd runs.
KNOCKD_CONF = """
[options]
    UseSyslog

[openSSH]
    sequence    = 7000,8000,9000
    seq_timeout = 15
    command     = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
    tcpflags    = syn

[closeSSH]
    sequence    = 9000,8000,7000
    seq_timeout = 15
    command     = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
    tcpflags    = syn
"""
KNOCKD_RUNS = """
printf 'START_KNOCKD=1\nKNOCKD_OPTS="-i eth0"\n' > /etc/default/knockd
systemctl enable --now knockd
"""


def test_from_knockd_and_back(scene: Scene) -> None:
    """The real knockd beside logknock, then logknock alone, then knockd again: shut, and open with the same knock."""
    guide = scene.guide(KNOCKD)
    opening, closing = KNOCKD.block("knock host.example 7000"), KNOCKD.block("knock host.example 9000")
    packaged = scene.gateway.root("/etc/knockd.conf")
    packaged.write_text(KNOCKD_CONF)
    scene.gateway.root("/etc/logknock/logknock.toml").write_text("# no door yet\n")
    scene.shell(DROPPING + KNOCKD_RUNS)
    assert not scene.is_open()
    before = scene.shell("iptables -S; ip6tables -S")

    guide.run("import-knockd")
    exactly(KNOCKD.block("2 doors", "text"), guide.run("logknock check"))
    with guide.start("apply --confirm") as first:
        first.expect("still reachable?")
        with guide.start("rules confirm") as second:
            first.end()
            until(lambda: scene.is_active("logknock"), "the service")
            assert "load average" in run(scene.client, opening)
            second.expect("OPEN SESAME")
            assert f"-s {KNOCKER[0]}/32" in scene.shell("iptables -S INPUT")
            run(scene.client, closing)
            second.expect("closed by closeSSH")
            exactly(KNOCKD.block("OPEN SESAME", "text"), second.said)
            exactly(KNOCKD.block("closed by", "text"), second.said)
    until(lambda: not scene.is_open(), "both have closed it")

    guide.run("iptables -I INPUT")
    guide.run("disable --now knockd")
    assert not scene.is_open()
    assert "load average" in run(scene.client, opening)
    run(scene.client, closing)
    until(lambda: not scene.is_open(), "logknock has closed it")
    assert guide.run("rules diff") == ""

    guide.run("iptables -D INPUT")
    guide.run("disable --now logknock")
    assert scene.shell("iptables -S; ip6tables -S") == before
    assert not scene.is_open()
    listens = "starting up, listening on eth0"
    until(lambda: scene.shell("journalctl -t knockd -o cat").count(listens) == 2, "knockd, for the second time")
    assert "load average" in run(scene.client, opening)
    assert packaged.read_text() == KNOCKD_CONF


NFTABLES = """
nft -f - <<'END'
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        ct state established,related accept
        meta l4proto { icmp, icmpv6 } accept
    }
}
END
"""

# Each firewall, closed for ssh, and what in the page opens and closes it again.
OTHERS = {
    "ufw": (UFW.replace("ufw allow 22/tcp\n", ""), "ufw allow", "ufw delete"),
    "firewalld": (
        f"{FIREWALLD}\nfirewall-cmd --permanent --remove-service=ssh\nfirewall-cmd --reload",
        "--add",
        "--remove",
    ),
    "nftables": (NFTABLES, "nft insert", "nft delete"),
}


@pytest.mark.parametrize("firewall", OTHERS)
def test_the_firewall_lets_in_whom_logknock_lets_pass(scene: Scene, firewall: str) -> None:
    """A migration's step for each firewall: before it a knock alone does not open, with it nothing else does."""
    guide = scene.guide(KNOCKD)
    closed, accept, back = OTHERS[firewall]
    scene.shell(closed)
    configure(scene.gateway, SSH + CLOSING)
    scene.shell("systemctl start logknock")
    scene.knock(*KNOCKS)
    until(scene.world.granted, "a door that is open in logknock's rules")
    assert not scene.is_open()
    guide.run(accept)
    until(scene.is_open, "the same in the firewall")
    scene.closes()
    scene.opens()
    guide.run(back)
    until(lambda: not scene.is_open(), "the firewall, closed as before")
