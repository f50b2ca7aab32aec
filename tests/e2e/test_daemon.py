"""A knock in the firewall's log opens a door, and the kernel closes it: the whole way, for real."""

import fcntl
import signal
import subprocess
import sys
import time

import pytest

from logknock.sources.nflog import Nflog

from .world import KNOCKS, PATIENCE, SSH, World, until

SSH_4 = "10.99.0.2 . tcp . 22"
SSH_6 = "fd99::2 . tcp . 22"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_knock_opens_the_door_and_time_closes_it(world: World, family: str) -> None:
    world.configure(SSH.replace("30s", "8s"))
    address = getattr(world.gateway, family)
    src = getattr(world.client, family)
    world.apply()
    with world.service(22), world.daemon() as daemon:
        assert not world.reaches(address=address)
        world.knock(*KNOCKS, address=address)
        daemon.wait_for(f"{src}: ssh: OPEN SESAME")
        assert world.reaches(address=address)
        daemon.wait_for(f"{src}: ssh: command timeout")
        assert not world.reaches(address=address)
        told = [line for line in daemon.lines if line.startswith(f"{src}: ssh: ")]
        assert [line.removeprefix(f"{src}: ssh: ") for line in told] == [
            "Stage 1",
            "Stage 2",
            "Stage 3",
            "OPEN SESAME",
            "command timeout, closed",
        ]
        assert daemon.stop() == 0


def test_the_elements_comment_is_the_door(world: World) -> None:
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        element = world.granted()[SSH_4]
    assert (element["comment"], element["timeout"]) == ("ssh", 30)
    assert 0 < element["expires"] <= 30


@pytest.mark.parametrize(
    "services",
    [
        pytest.param(("7000/tcp", "9000/udp", "8000/tcp"), id="T9: reordered"),
        pytest.param(("7000/tcp", "7001/tcp", "8000/tcp", "9000/udp"), id="T1: a trap in between"),
        pytest.param(("7000/tcp", "8000/tcp", "7000/tcp", "9000/udp"), id="T4: a,b,a,c"),
        pytest.param(("8000/tcp", "9000/udp"), id="without the first"),
        pytest.param(("7000/udp", "8000/tcp", "9000/udp"), id="the right port by the wrong protocol"),
    ],
)
def test_wrong_knocks_open_nothing_and_a_retry_does(world: World, services: tuple[str, ...]) -> None:
    world.apply()
    with world.daemon() as daemon:
        world.knock(*services)
        recorded = [service for service in services if service != "7000/udp"]
        until(lambda: daemon.counter("records") >= len(recorded), "the records")
        assert not daemon.says("OPEN SESAME")
        assert world.granted() == {}
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")


def test_t7_a_blocking_client_opens_once(world: World) -> None:
    """T7: connect() with a timeout sends each SYN again after a second; the door opens, and once."""
    blocking = """
import socket, sys
held = []
for port in (7000, 8000):
    s = socket.socket(); s.settimeout(1.3); held.append(s)  # kept: the kernel goes on sending
    try: s.connect((sys.argv[1], port))
    except OSError: pass
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", (sys.argv[1], 9000))
import time; time.sleep(3)
"""
    world.apply()
    world.gateway.nft("table inet host { chain input { type filter hook input priority 0; policy drop; }; }")
    with world.daemon() as daemon:
        world.client.python(blocking, world.gateway.ipv4)
        daemon.wait_for("OPEN SESAME")
        until(lambda: daemon.counter("records") > 3, "what the client was meant to send again")
        assert sum("OPEN SESAME" in line for line in daemon.lines) == 1


def test_t15_clients_do_not_disturb_each_other(world: World) -> None:
    """T5, T15, T11: a second source knocks in between, wrong and right, and a spoofed source fails."""
    world.configure(SSH + 'seq_timeout = "2m"\n')
    world.apply()
    other = "198.51.100.9"
    to = world.gateway.ipv4
    with world.daemon() as daemon:
        world.knock("7000/tcp")
        world.spoof(f"{other}>{to}:7000/tcp", f"{other}>{to}:8000/tcp")
        world.knock("8000/tcp")
        world.spoof(f"{other}>{to}:7001/tcp")
        world.knock("9000/udp")
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        assert daemon.says(f"{other}: ssh: wrong port 7001/tcp (stage 2)")
        assert set(world.granted()) == {SSH_4}


def test_t16_a_spoofed_sequence_opens_for_the_spoofed_source_only(world: World) -> None:
    """T16."""
    world.apply()
    to = world.gateway.ipv4
    with world.service(22), world.daemon() as daemon:
        world.spoof(*(f"198.51.100.9>{to}:{service}" for service in KNOCKS))
        daemon.wait_for("198.51.100.9: ssh: OPEN SESAME")
        assert set(world.granted()) == {"198.51.100.9 . tcp . 22"}
        assert not world.reaches()


def test_t37_the_hosts_own_addresses_are_never_granted(world: World) -> None:
    """T37: with sources forged by a neighbour, who can send such packets."""
    world.apply()
    with world.daemon() as daemon:
        for src, to in (("10.99.0.1", "10.99.0.1"), ("10.99.0.255", "10.99.0.1"), ("fd99::1", "fd99::1")):
            world.spoof(*(f"{src}>{to}:{service}" for service in KNOCKS))
            daemon.wait_for(f"{src}: ssh: not opened: ")
            assert not daemon.says(f"{src}: ssh: OPEN SESAME")
        assert world.granted() == world.granted("granted6") == {}
        assert daemon.counter("refused") == 3


def test_t12_spoofed_failures_never_lock_out_a_trusted_address(world: World) -> None:
    """T12: whatever comes in its name, a trusted address reaches the service without a knock."""
    world.configure(SSH + '[firewall]\ntrusted = ["10.99.0.2"]\n')
    world.apply()
    with world.service(22), world.daemon():
        world.spoof(*(f"10.99.0.2>{world.gateway.ipv4}:{port}/tcp" for port in range(6990, 7090)))
        assert world.reaches()


def test_t32_kill_9_leaves_no_door_open(world: World) -> None:
    """T32: the kernel closes the door on time, daemon or no daemon."""
    world.configure(SSH.replace("30s", "8s"))
    world.apply()
    with world.service(22), world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        daemon.signal(signal.SIGKILL)
        assert daemon.process.wait() == -signal.SIGKILL
        assert SSH_4 in world.granted()
        until(lambda: SSH_4 not in world.granted(), "the element's expiry")
        assert not world.reaches()


def test_t33_a_knock_on_an_open_door_refreshes_it(world: World) -> None:
    """T33."""
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        until(lambda: world.granted()[SSH_4]["expires"] <= 24, "some of its time to pass")
        world.knock(*KNOCKS)
        until(lambda: world.granted()[SSH_4]["expires"] > 24, "the refresh")
        assert world.granted()[SSH_4]["timeout"] == 30


def test_t29_a_backlog_opens_nothing(world: World) -> None:
    """T29: knocks that waited for a stopped daemon longer than seq_timeout are too old when it goes on."""
    world.configure(SSH + 'seq_timeout = "4s"\n')
    world.apply()
    with world.daemon() as daemon:
        world.knock("7000/tcp")
        daemon.wait_for("Stage 1")  # the kernel stamps packets from about now on
        daemon.wait_for("sequence timeout (stage 1)")
        daemon.signal(signal.SIGSTOP)
        world.knock(*KNOCKS)
        time.sleep(5)  # they are too old then, the last one too
        daemon.signal(signal.SIGCONT)
        until(lambda: daemon.counter("records") == 4, "the backlog to be read")
        assert daemon.counter("too old") > 0
        assert not daemon.says("OPEN SESAME")


def test_t29_a_restart_opens_nothing(world: World) -> None:
    """T29: what was knocked before the start, or in part, means nothing after it."""
    world.apply()
    world.knock(*KNOCKS)
    with world.daemon() as daemon:
        world.knock("7000/tcp", "8000/tcp")
        daemon.wait_for("Stage 2")
        daemon.stop()
    with world.daemon() as daemon:
        world.knock("9000/udp")
        until(lambda: daemon.counter("records") == 1, "the record")
        assert not daemon.says("OPEN SESAME")


def test_t34_a_flushed_ruleset_is_told_and_grants_come_back(world: World) -> None:
    """T34: with the time that they still have (T33). Who wants no rules put back puts them there himself."""
    world.configure(SSH.replace("30s", "2m") + "[firewall]\nrestore = false\n")
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        world.gateway.nft("flush ruleset")
        daemon.wait_for("set inet logknock granted4 is missing: No such file or directory")
        world.knock(*KNOCKS)
        world.apply()
        daemon.wait_for("the open doors of 1 address are put back")
        element = world.granted()[SSH_4]
        assert 0 < element["expires"] < 120
        assert daemon.stop() == 0


def test_t34_rules_that_are_gone_are_told_although_the_sets_are_there(world: World) -> None:
    """T34: `nft flush table` leaves sets and elements, and guards nothing."""
    world.configure(SSH + "[firewall]\nrestore = false\n")
    world.apply()
    with world.daemon() as daemon:
        world.gateway.nft("flush table inet logknock")
        daemon.wait_for("error: the rules of table inet logknock are gone: nothing is guarded")
        world.apply()
        daemon.wait_for("the firewall has what it needs again")
        assert daemon.stop() == 0
    world.gateway.nft("flush table inet logknock")
    fails(world, 69, "the rules of table inet logknock are gone")


def test_t34_a_set_that_is_missing_harms_no_other_door(world: World) -> None:
    """T34: and its own door says that it was not opened, not OPEN SESAME."""
    own = '[doors.own]\nsequence = ["7100/tcp", "8100/tcp", "9100/udp"]\nsets = ["inet mine allowed"]\n'
    world.configure(SSH + own)
    world.gateway.nft("table inet mine { set allowed { type ipv4_addr; flags timeout; }; }")
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        world.gateway.nft("delete set inet mine allowed\nflush set inet logknock granted4")
        until(lambda: SSH_4 in world.granted(), "the grant to be put back")
        world.knock("7100/tcp", "8100/tcp", "9100/udp")
        daemon.wait_for("10.99.0.2: own: not opened: set inet mine allowed is missing: No such file or directory")
        assert not daemon.says("own: OPEN SESAME")


def test_t34_a_door_closes_although_one_of_its_sets_is_missing(world: World) -> None:
    """T34: and says nothing of a failure, since what was in that set is gone with it."""
    own = 'sets = ["inet mine allowed"]\n'
    own += '[doors.done]\nsequence = ["9000/udp", "8000/tcp", "7000/tcp"]\ncloses = ["ssh"]\n'
    mine = "table inet mine { set allowed { type ipv4_addr; flags timeout; }; }"
    world.configure(SSH.replace("30s", "10m") + own)
    world.gateway.nft(mine)
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        world.gateway.nft("delete table inet mine")
        daemon.wait_for("set inet mine allowed is missing")
        world.knock(*reversed(KNOCKS))
        daemon.wait_for("closed by done")
        assert SSH_4 not in world.granted()


def test_t36_a_bad_reload_keeps_configuration_attempts_and_grants(world: World) -> None:
    """T36: and says what is wrong; a good one then takes over, attempts and grants included."""
    patient = 'seq_timeout = "2m"\n'
    ssh = SSH.replace("30s", "10m") + patient
    good = f'{ssh}[doors.web]\nsequence = ["7000/tcp", "8000/tcp", "9001/udp"]\nopens = ["80/tcp"]\n{patient}'
    world.configure(ssh)
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        world.spoof(*(f"198.51.100.9>{world.gateway.ipv4}:{service}" for service in KNOCKS[:2]))
        daemon.wait_for("198.51.100.9: ssh: Stage 2")
        world.configure(ssh.replace("9000/udp", "90000/udp").replace("22/tcp", "0/tcp"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("not reloaded")
        assert daemon.says("doors.ssh.sequence")
        assert daemon.says("doors.ssh.opens")
        world.configure(good)
        world.apply()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded: NFLOG group 5, doors: ssh, web")
        assert SSH_4 in world.granted()
        world.spoof(f"198.51.100.9>{world.gateway.ipv4}:9001/udp")
        daemon.wait_for("198.51.100.9: web: OPEN SESAME")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param('sets = ["inet logknock trusted4"]\n', "must have `flags timeout`", id="a set that does not fit"),
        pytest.param("[log]\ngroup = 7\n", "NFLOG group 7 is held by another process", id="a group that is held"),
    ],
)
def test_t36_a_reload_that_the_kernel_refuses_changes_nothing(world: World, change: str, says: str) -> None:
    """T36: right as TOML, wrong on this host."""
    world.apply()
    with world.daemon() as daemon, world.gateway.inside():
        held = Nflog(7, lambda *_: True)
        world.configure(SSH + change)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("not reloaded")
        held.close()
        assert daemon.says(says)
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        assert SSH_4 in world.granted()


def test_a_reload_may_change_the_group(world: World) -> None:
    world.apply()
    with world.daemon() as daemon:
        world.configure("[log]\ngroup = 6\n" + SSH)
        world.apply()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded: NFLOG group 6")
        groups = world.gateway.run("cat", "/proc/net/netfilter/nfnetlink_log").stdout.splitlines()
        assert [line.split()[0] for line in groups] == ["6"], "the other group is free for others"
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")


def test_rules_older_than_the_configuration_are_told(world: World) -> None:
    world.apply()
    world.configure(SSH.replace("8000", "8765"))
    with world.daemon() as daemon:
        daemon.wait_for("set inet logknock watched lacks 8765/tcp")


def test_a_door_that_closes_another(world: World) -> None:
    world.configure(SSH + '[doors.ssh-done]\nsequence = ["9000/udp", "8000/tcp", "7000/tcp"]\ncloses = ["ssh"]\n')
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("ssh: OPEN SESAME")
        world.knock(*reversed(KNOCKS))
        daemon.wait_for("10.99.0.2: ssh: closed by ssh-done")
        assert world.granted() == {}


def test_an_administrators_own_sets_of_both_types(world: World) -> None:
    """No guard of ours: the host's own firewall closes the services, and its sets are filled."""
    world.configure(
        """
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp", "500/udp"]
sets = ["ip filter plain", "ip filter services", "ip6 filter plain"]
guard = false
"""
    )
    world.gateway.nft(
        """
table ip filter {
	set plain { type ipv4_addr; flags timeout; }
	set services { type ipv4_addr . inet_proto . inet_service; flags timeout; }
	chain input { type filter hook input priority 0; policy accept;
		meta l4proto { tcp, udp } th dport { 7000, 8000, 9000 } log group 5 drop
	}
}
table ip6 filter { set plain { type ipv6_addr; flags timeout; }; }
"""
    )
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        assert "10.99.0.2" in world.gateway.run("nft", "list", "set", "ip", "filter", "plain").stdout
        services = world.gateway.run("nft", "list", "set", "ip", "filter", "services").stdout
        assert "10.99.0.2 . tcp . 22" in services
        assert "10.99.0.2 . udp . 500" in services


def test_t37_a_door_that_is_gone_or_renamed_over_a_restart_is_closed(world: World) -> None:
    """Nobody is let in by what no configuration has any more; an element that is none of ours stays."""
    world.configure(SSH)
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        assert daemon.stop() == 0
    world.gateway.nft('add element inet logknock granted4 { 192.0.2.9 . tcp . 22 timeout 60s comment "mine" }')
    assert len(world.granted()) == 2
    world.configure(SSH.replace("doors.ssh", "doors.renamed"))
    with world.daemon() as daemon:
        daemon.wait_for("door ssh is gone")
        until(lambda: list(world.granted()) == ["192.0.2.9 . tcp . 22"], "the door that is closed")
        world.knock(*KNOCKS)
        daemon.wait_for("renamed: OPEN SESAME")
        assert SSH_4 in world.granted()


def test_sigterm_and_sigint_end_it_cleanly(world: World) -> None:
    world.apply()
    for number in (signal.SIGTERM, signal.SIGINT):
        with world.daemon() as daemon:
            daemon.signal(number)
            assert daemon.process.wait(PATIENCE) == 0
            assert daemon.says("stopped")


def test_a_reader_that_does_not_read_does_not_stop_the_daemon(world: World) -> None:
    """Standard error is a pipe that nobody empties: lines are lost, doors open."""
    world.apply()
    with world.daemon() as daemon:
        pipe = daemon.process.stderr
        assert pipe is not None
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)  # a page, which is the least
        # More than a page of lines, within what is told a second; they come before the knocks.
        sources = [f"fd98:1111:2222:3333:4444:5555:6666:{number:x}" for number in range(1, 101)]
        world.spoof(*(f"{src}>{world.gateway.ipv6}:{port}/tcp" for src in sources for port in (7000, 7001)))
        world.knock(*KNOCKS)
        until(lambda: SSH_4 in world.granted(), "the door to open")
        assert daemon.process.poll() is None


@pytest.mark.parametrize("command", ["run"])
def test_help_shows_an_example(world: World, command: str) -> None:
    assert "Example: " in world.gateway.logknock(command, "--help").stdout


def fails(world: World, status: int, *words: str, command: tuple[str, ...] = ("run",)) -> None:
    """The command fails with this status and one clear error: these words, a hint, no traceback."""
    done = world.gateway.logknock(*command, "-c", str(world.config), check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    first, *others = done.stderr.splitlines()
    assert first.startswith("logknock: ")
    for word in words:
        assert word in first
    assert any(line.startswith("hint: ") for line in others)


def test_rules_not_loaded_is_one_clear_error(world: World) -> None:
    fails(world, 69, "set inet logknock granted4 is missing")


def test_a_group_that_another_process_holds_is_one_clear_error(world: World) -> None:
    world.apply()
    with world.daemon() as daemon:
        fails(world, 69, "NFLOG group 5 is held by another process", str(daemon.process.pid))


def test_without_rights_is_one_clear_error(world: World) -> None:
    world.apply()
    world.config.chmod(0o600)
    done = world.gateway.run(
        "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", *_logknock(world), check=False
    )
    assert done.returncode == 77, done.stderr
    assert "Operation not permitted" in done.stderr
    assert "hint: CAP_NET_ADMIN is needed" in done.stderr


# As a kernel without nftables and NFLOG would: no netlink socket of the netfilter family (seccomp(2), BPF).
WITHOUT_NETFILTER = """
import ctypes, os, platform, struct, sys
def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
NETFILTER, EPROTONOSUPPORT = 12, 93
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
program = b"".join([
    op(0x20, 0, 0, 0), op(0x15, 0, 3, SOCKET),
    op(0x20, 0, 0, 32), op(0x15, 0, 1, NETFILTER),
    op(0x06, 0, 0, 0x00050000 | EPROTONOSUPPORT), op(0x06, 0, 0, 0x7FFF0000),
])
buffer = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(filter), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_kernel_without_netfilter_is_one_clear_error(world: World) -> None:
    done = world.gateway.python(WITHOUT_NETFILTER, *_logknock(world), check=False)
    assert done.returncode == 69, done.stderr
    assert done.stderr.startswith("logknock: NFLOG is not available: Protocol not supported\nhint: the kernel needs ")


def _logknock(world: World) -> list[str]:
    return [sys.executable, "-m", "logknock", "run", "-c", str(world.config)]


def test_under_systemd_events_have_fields(world: World, tmp_path: object) -> None:
    """Standard error is the journal's: entries go to it with fields, which the journal's socket shows."""
    world.apply()
    receiver = """
import os, socket, subprocess, sys
os.makedirs("/run/systemd/journal", exist_ok=True)
path = "/run/systemd/journal/socket"
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(path)
stream, other = socket.socketpair()
status = os.fstat(other.fileno())
env = dict(os.environ, JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
daemon = subprocess.Popen(sys.argv[1:], stderr=other, env=env)
try:
    while True:
        entry = s.recv(65536).decode()
        print(entry.replace("\\n", "|"), flush=True)
        if "OPEN SESAME" in entry: break
finally:
    daemon.kill(); daemon.wait()
"""
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
    command += [sys.executable, "-c", receiver, *_logknock(world)]
    process = world.gateway.start(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        until(lambda: "ready" in process.stdout.readline(), "the ready line")  # type: ignore[union-attr]
        world.knock(*KNOCKS)
        entries = process.stdout.read().splitlines()
    finally:
        process.terminate()
        process.wait()
    opened = entries[-1].split("|")
    for field in (
        "LOGKNOCK_DOOR=ssh",
        "LOGKNOCK_SRC=10.99.0.2",
        "LOGKNOCK_EVENT=granted",
        "SYSLOG_IDENTIFIER=logknock",
    ):
        assert field in opened
    assert any("LOGKNOCK_STAGE=2" in entry for entry in entries)
