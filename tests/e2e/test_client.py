"""The client beyond a plain knock: profiles, one-time sequences, several hosts, waiting for a service, ssh's proxy."""

import json
import os
import re
import select
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO

import pytest

from logknock.packet import address_text
from logknock.runs import RETRY_PAUSE

from ..config_files import write
from ..netns import Host
from ..wire import Wire, capture, ended, line
from .world import PATIENCE, SSH, World, until

KNOCKS = ["7000/tcp", "8000/tcp", "9000/udp"]
HOME = f'[profiles.home]\nhost = "10.99.0.1"\nsequence = {json.dumps(KNOCKS)}\ndelay = "20ms"\n'
ONETIME = '[profiles.vault]\nhost = "10.99.0.1"\nonetime = "codes"\ndelay = "20ms"\n'
GATE = '[profiles.gate]\nhost = "10.99.0.1"\ntotp = {secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY", door = "ssh"}\n'
VPN = """
[profiles.vpn]
host = "10.99.0.1"
spa = {key = "a passphrase of 24 b.", hmac_key = "another one of 22.", access = ["22/tcp"]}
"""
LOGKNOCK = [sys.executable, "-m", "logknock"]


class Knocker:
    """The client host, with profiles and positions of its own."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.environment = {
            **os.environ,
            "LOGKNOCK_CLIENT": str(folder / "client.toml"),
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def profiles(self, text: str) -> None:
        write(self.folder, text, "client.toml")

    def codes(self, *lines: str) -> None:
        write(self.folder, "".join(f" {line}\n" for line in lines), "codes")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.run(*LOGKNOCK, *words, check=check, env=self.environment)

    @contextmanager
    def start(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """The command with three pipes; it ends within a minute, and behind the block in any case."""
        argv = self.host.argv([*LOGKNOCK, *words])
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment, bufsize=0) as process:
            limit = threading.Timer(60, process.kill)
            limit.start()
            try:
                yield process
            finally:
                limit.cancel()
                process.kill()

    def fails(self, *words: str) -> tuple[int, list[str]]:
        """The exit status of a command that must fail, and its lines on standard error."""
        done = self.run(*words, check=False)
        assert done.returncode
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.splitlines()


@pytest.fixture
def knocker(hosts: tuple[Host, Host], tmp_path: Path) -> Knocker:
    made = Knocker(hosts[1], tmp_path)
    made.profiles(HOME)
    return made


@pytest.fixture
def wire(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Wire]:
    hosts[0].nft(
        "table inet test { chain input { type filter hook input priority 0; th dport { 22, 7000-9000 } drop; }; }"
    )
    with capture(hosts[0], "eth0", tmp_path / "wire.pcap"):
        yield Wire(tmp_path / "wire.pcap", hosts[1], hosts[0])


def services(wire: Wire) -> list[str]:
    return [seen.service for seen in wire.knocks()]


# ---- profiles


def test_a_profile_is_knocked_by_its_name(knocker: Knocker, wire: Wire) -> None:
    assert knocker.run("knock", "home").stdout == ""
    assert services(wire) == KNOCKS


def test_options_come_before_what_the_profile_says(knocker: Knocker, wire: Wire) -> None:
    knocker.run("knock", "-d", "300ms", "home")
    times = [seen.packet.time for seen in wire.knocks()]
    assert min(after - before for before, after in pairwise(times)) > 0.29


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(["hone"], 2, "there is no profile 'hone'", id="an_unknown_profile"),
        pytest.param(["home", "hone"], 2, "there is no profile 'hone'", id="the_second_one_unknown"),
        pytest.param(["fleet"], 1, "profile fleet names no host", id="no_host"),
        pytest.param(["-u", "home"], 2, "a PROFILE has its own", id="u_with_a_profile"),
        pytest.param(["--again", "home"], 2, "home has no file of one-time sequences", id="again_without_a_file"),
        pytest.param(["--profiles", "/nowhere/client.toml", "home"], 78, "does not exist", id="no_file"),
        pytest.param(["--tries", "2", "home"], 2, "without --verify", id="tries_of_nothing"),
        pytest.param(["-6", "home"], 1, "does not resolve", id="the_wrong_family"),
    ],
)
def test_a_profile_that_cannot_be_knocked_sends_nothing(
    knocker: Knocker, wire: Wire, words: list[str], code: int, told: str
) -> None:
    knocker.profiles(HOME + f"[profiles.fleet]\nsequence = {json.dumps(KNOCKS)}\n")
    status, lines = knocker.fails("knock", *words)
    assert status == code
    assert told in "\n".join(lines)
    assert services(wire) == []


def test_without_profiles_a_missing_service_is_what_is_missing(knocker: Knocker) -> None:
    knocker.environment["XDG_CONFIG_HOME"] = str(knocker.folder)
    del knocker.environment["LOGKNOCK_CLIENT"]
    status, lines = knocker.fails("knock", "host.example")
    assert status == 2
    assert "there is no SERVICE to knock at host.example, such as 7000/tcp" in lines[-1]


# ---- several at once


def test_several_hosts_are_knocked_at_once_each_with_its_line(knocker: Knocker, wire: Wire) -> None:
    done = knocker.run("knock", "-d", "700ms", "10.99.0.1,[fd99::1]", "7000", "8000", "9000/udp")
    assert sorted(done.stdout.splitlines()) == [
        "10.99.0.1: 3 knocks sent",
        "fd99::1: 3 knocks sent",
    ]
    seen = wire.knocks()
    for address in ("10.99.0.1", "fd99::1"):
        assert [found.service for found in seen if address_text(found.packet.dst) == address] == KNOCKS
    assert len({address_text(found.packet.dst) for found in seen[:3]}) == 2, (
        "the second host did not wait for the first"
    )


def test_one_that_fails_fails_the_call_and_not_the_others(knocker: Knocker, wire: Wire) -> None:
    knocker.profiles(HOME + '[profiles.office]\nhost = ["192.0.2.1", "fd99::1"]\nsequence = ["7500/tcp"]\n')
    done = knocker.run("knock", "office", "home", check=False)
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == [
        "home: 10.99.0.1: 3 knocks sent",
        "office: fd99::1: 1 knock sent",
    ]
    assert done.stderr.splitlines()[0].startswith(
        "logknock: office: 192.0.2.1: knock 1 of 1 (7500/tcp) could not be sent"
    )
    assert sorted(services(wire)) == ["7000/tcp", "7500/tcp", "8000/tcp", "9000/udp"]


def test_a_host_that_fails_is_named_once(knocker: Knocker, wire: Wire) -> None:
    done = knocker.run("knock", "10.99.0.1,a..b,localhost", "7000", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "logknock: 'a..b' is no host name"
    assert any(told.startswith("localhost: ") for told in done.stdout.splitlines()), "where the address is another"


def test_two_runs_at_one_address_wait_for_each_other(knocker: Knocker, wire: Wire) -> None:
    knocker.run("knock", "-d", "200ms", "10.99.0.1,::ffff:10.99.0.1", *KNOCKS)
    assert services(wire) == KNOCKS * 2


# ---- one-time sequences


def test_a_position_advances_only_when_the_whole_knock_was_sent(knocker: Knocker, wire: Wire) -> None:
    knocker.profiles(ONETIME)
    knocker.codes("7001,8001:udp,7003", "7004,7005", "7006,7007")
    knocker.host.nft("table inet t { chain o { type filter hook output priority 0; udp dport 8001 reject; }; }")
    status, lines = knocker.fails("knock", "vault")
    assert (status, lines[0].partition(": warning")[1]) == (1, ": warning")
    assert "knock 2 of 3 (8001/udp) could not be sent" in lines[1]
    knocker.host.nft("flush ruleset")
    knocker.run("knock", "vault")
    knocker.run("knock", "vault")
    knocker.run("knock", "--again", "vault")
    first, second = ["7001/tcp", "8001/udp", "7003/tcp"], ["7004/tcp", "7005/tcp"]
    assert services(wire) == [first[0], *first, *second, *second]


def test_nothing_is_sent_that_could_be_sent_twice_or_is_not_there(knocker: Knocker, wire: Wire) -> None:
    knocker.profiles(ONETIME)
    status, lines = knocker.fails("knock", "vault")
    assert (status, lines[0]) == (78, f"logknock: {knocker.folder}/codes: does not exist")
    knocker.codes("abc")
    assert knocker.fails("knock", "vault")[1][-2] == f"logknock: {knocker.folder}/codes: no sequence is left"
    knocker.codes("7001,8001")
    for name in (knocker.folder / "state").glob("logknock/*"):
        name.unlink()
    (knocker.folder / "state" / "logknock").rmdir()
    (knocker.folder / "state" / "logknock").write_text("")
    assert "nothing was sent" in knocker.fails("knock", "vault")[1][-1]
    assert services(wire) == []


# ---- waiting for a service


@contextmanager
def serving(host: Host, code: str, port: int = 22) -> Iterator[IO[str]]:
    """A server of one connection on both families of the host; what it prints is read from what this gives."""
    prelude = (
        "import socket, struct, sys\n"
        f"listening = socket.create_server(('::', {port}), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "print('ready', flush=True)\n"
        "s = listening.accept()[0]\n"
    )
    argv = [sys.executable, "-c", prelude + code]
    with ended(host.start(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)) as server:
        assert server.stdout is not None
        assert line(server.stdout) == "ready"
        yield server.stdout


def test_verify_knocks_again_until_the_service_answers(world: World, knocker: Knocker) -> None:
    """Every other packet to one knock port is lost on the way."""
    world.apply()
    world.gateway.nft(
        "table inet lossy { chain p { type filter hook prerouting priority raw;"
        " tcp dport 8000 numgen inc mod 2 0 drop; }; }"
    )
    with world.daemon() as daemon, world.service(22):
        done = knocker.run("knock", "-v", "--verify", "22/tcp", "--timeout", "5s", "home")
        told = done.stdout.splitlines()
        assert told[-1] == "10.99.0.1: 22/tcp answers"
        assert len(told) == 7, "one knock was repeated"
        daemon.wait_for("OPEN SESAME")


def test_a_service_that_stays_silent_is_probed_few_times_and_knocked_at_with_pauses(
    knocker: Knocker, wire: Wire
) -> None:
    knocker.host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50003")
    status, lines = knocker.fails("knock", "--verify", "22", "--tries", "2", "--timeout", "1s", "home")
    assert status == 1
    assert lines[0] == "logknock: 10.99.0.1: 22/tcp did not answer within 1 s of the knock (2 tries)"
    seen = wire.knocks()
    assert [found.service for found in seen if found.packet.dport != 22] == KNOCKS * 2
    probes = [found for found in seen if found.packet.dport == 22]
    assert 2 <= len(probes) <= 8
    for service in KNOCKS:
        first, second = (found.packet for found in seen if found.service == service)
        assert second.time - first.time > RETRY_PAUSE
        assert second.sport != first.sport, "T8: it would be a resend of the first"


def test_a_service_that_refuses_is_said_to_do_so(knocker: Knocker) -> None:
    status, lines = knocker.fails("knock", "--verify", "22", "--tries", "1", "--timeout", "300ms", "home")
    assert (status, lines[0]) == (1, "logknock: 10.99.0.1: 22/tcp refuses the connection after the knock")


def test_a_service_that_comes_up_late_is_waited_for(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    with knocker.start("knock", "-v", "--verify", "22", "--tries", "1", "--timeout", "20s", "home") as verifying:
        assert verifying.stdout is not None
        while b"knock 3" not in verifying.stdout.readline():
            assert verifying.poll() is None
        with serving(hosts[0], "s.recv(1)"):
            assert verifying.wait(PATIENCE) == 0


def test_a_lost_one_time_knock_is_sent_again_and_nothing_else_is(knocker: Knocker, wire: Wire) -> None:
    knocker.profiles(ONETIME + 'verify = "22/tcp"\ntries = 2\n')
    knocker.codes("7001,8001", "7002,8002")
    for _ in range(2):
        assert "did not answer" in "\n".join(knocker.fails("knock", "--timeout", "100ms", "vault")[1])
    sent = [found for found in services(wire) if found != "22/tcp"]
    assert sent == ["7001/tcp", "8001/tcp"] * 3 + ["7002/tcp", "8002/tcp"]


def test_a_firewall_that_refuses_is_not_taken_for_an_answer(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    """A knock that it swallowed would count as used."""
    knocker.profiles(ONETIME + 'verify = "22/tcp"\ntries = 1\n')
    knocker.codes("7001", "7002", "7003")
    hosts[0].nft(
        "table inet test { chain input { type filter hook input priority 0;"
        " tcp dport 22 reject with icmpx type port-unreachable; tcp dport 7000-7100 drop; }; }"
    )
    for _ in range(3):
        refused = knocker.run("knock", "-v", "--timeout", "100ms", "vault", check=False)
        assert "7001/tcp" in refused.stdout
        assert "22/tcp refuses the connection" in refused.stderr
        assert "or a firewall refuses" in refused.stderr


def test_a_one_time_knock_that_was_answered_is_not_sent_again(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    knocker.profiles(ONETIME + 'verify = "22/tcp"\ntries = 1\n')
    knocker.codes("7001", "7002", "7003")
    words = ("knock", "-v", "--timeout", "300ms", "vault")
    for port in (7001, 7002):
        with serving(hosts[0], "s.recv(1)"):
            assert f"{port}/tcp" in knocker.run(*words).stdout


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param("udp dport 8010", id="the_knock"),
        pytest.param("tcp dport 22", id="the_answer"),
    ],
)
@pytest.mark.parametrize("shut", [True, False], ids=["behind_a_shut_door", "behind_an_open_door"])
def test_client_and_daemon_find_each_other_again_whatever_was_lost(
    world: World, knocker: Knocker, lost: str, shut: bool
) -> None:
    """Behind an open door, a service that answers says nothing of the knock before it."""
    knocker.codes(*[f"{port},{port + 1000}:udp,{port + 2000}" for port in range(7000, 7120, 10)])
    knocker.profiles(ONETIME + 'verify = "22/tcp"\n')
    world.configure(f'[doors.ssh]\nonetime = ["{knocker.folder}/codes"]\nopens = ["22/tcp"]\ntimeout = "1s"\n')
    world.apply()
    words = ("knock", "--timeout", "2s", "vault")  # no longer than a client pauses between two tries anyway
    with world.daemon() as daemon, world.service(22):
        knocker.run(*words)
        if shut:
            daemon.wait_for("closed")
        rule = f"{{ type filter hook prerouting priority raw; {lost} drop; }}"
        world.gateway.nft(f"table inet lossy {{ chain p {rule}; }}")
        knocker.run("knock", "--timeout", "300ms", "--tries", "1", "vault", check=False)
        world.gateway.nft("delete table inet lossy")
        until(lambda: not world.reaches(), "the door to be shut")
        knocker.run(*words)


@pytest.mark.parametrize(
    ("lost", "times", "most"),
    [
        pytest.param("tcp dport 7000-9999", 6, 2, id="after_an_outage_of_some_length"),
        pytest.param("tcp dport 22", 1, 3, id="after_an_answer_that_was_lost"),
    ],
)
def test_runs_of_one_try_find_the_daemon_again(
    world: World, knocker: Knocker, lost: str, times: int, most: int
) -> None:
    """As through ssh with ConnectTimeout, which gives up before the second try."""
    knocker.codes(*[f"{port},{port + 1000},{port + 2000}" for port in range(7000, 7120, 10)])
    knocker.profiles(ONETIME + 'verify = "22/tcp"\ntries = 1\n')
    world.configure(f'[doors.ssh]\nonetime = ["{knocker.folder}/codes"]\nopens = ["22/tcp"]\ntimeout = "1s"\n')
    world.apply()
    words, in_haste = ("knock", "--timeout", "3s", "vault"), ("knock", "--timeout", "200ms", "vault")
    with world.daemon(), world.service(22):
        knocker.run(*words)
        until(lambda: not world.granted(), "the door to be shut")
        rule = f"{{ type filter hook prerouting priority raw; {lost} drop; }}"
        world.gateway.nft(f"table inet lossy {{ chain p {rule}; }}")
        for _ in range(times):
            knocker.fails(*in_haste)
        until(lambda: not world.granted(), "the door to be shut")
        world.gateway.nft("delete table inet lossy")
        in_vain = 0
        while knocker.run(*words, check=False).returncode:
            in_vain += 1
            assert in_vain < most
        until(lambda: not world.granted(), "the door to be shut")
        knocker.run(*words)


# ---- the proxy: its streams

PROXY = ("proxy", "home", "10.99.0.1", "22")


def test_the_end_of_input_is_passed_on_and_the_answer_still_comes(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    code = "n = 0\nwhile data := s.recv(65536): n += len(data)\ns.sendall(b'%d' % n)"
    with serving(hosts[0], code), knocker.start(*PROXY) as proxy:
        assert proxy.communicate(b"x" * 5_000_000, PATIENCE) == (b"5000000", b"")
        assert proxy.returncode == 0


def test_the_end_of_output_is_passed_on_and_input_still_goes(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    code = "s.sendall(b'bye'); s.shutdown(socket.SHUT_WR); print(s.recv(9), s.recv(9), flush=True)"
    with serving(hosts[0], code) as printed, knocker.start(*PROXY) as proxy:
        assert proxy.stdout is not None
        assert proxy.stdin is not None
        assert proxy.stdout.read() == b"bye", "to its end"
        proxy.stdin.write(b"late")
        proxy.stdin.close()
        assert proxy.wait(PATIENCE) == 0
        assert line(printed) == "b'late' b''"


def test_no_more_is_read_than_the_other_side_takes(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    code = "import os\nos.read(0, 1)\nn = 0\nwhile data := s.recv(65536): n += len(data)\nprint(n, flush=True)"
    with serving(hosts[0], code.replace("os.read(0, 1)", "s.recv(1); listening.accept()")) as printed:
        with knocker.start(*PROXY) as proxy:
            assert proxy.stdin is not None
            os.set_blocking(proxy.stdin.fileno(), False)
            proxy.stdin.write(b"x")
            sent = 0
            while select.select([], [proxy.stdin], [], 1.5)[1]:
                sent += proxy.stdin.write(bytes(65536)) or 0
                assert sent < 200_000_000, "what nobody reads is taken in without end"
            knocker.host.python("import socket; socket.create_connection(('10.99.0.1', 22))")
            proxy.stdin.close()
            assert proxy.wait(PATIENCE) == 0
        assert line(printed) == str(sent)


def test_both_directions_at_once_lose_nothing(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    data = os.urandom(1 << 20) * 24
    with serving(hosts[0], "while data := s.recv(65536): s.sendall(data)"), knocker.start(*PROXY) as proxy:
        assert proxy.communicate(data, 60)[0] == data


def test_a_key_that_is_pressed_goes_at_once(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    with serving(hosts[0], "while data := s.recv(65536): s.sendall(data)"), knocker.start(*PROXY) as proxy:
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        for key in (b"a", b"b", b"c"):
            proxy.stdin.write(key)
            assert proxy.stdout.read(1) == key


def test_a_connection_that_is_reset_ends_the_proxy_with_one_line(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    """Even while its own input is still open."""
    code = "s.recv(1); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()"
    with serving(hosts[0], code), knocker.start(*PROXY) as proxy:
        assert proxy.stdin is not None
        assert proxy.stderr is not None
        proxy.stdin.write(b"x")
        assert proxy.wait(PATIENCE) == 1
        assert proxy.stderr.read().splitlines()[0] == b"logknock: the connection broke: Connection reset by peer"


def test_a_reader_that_has_gone_is_no_news(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    code = "s.recv(1)\nwhile True: s.sendall(bytes(65536))"
    with serving(hosts[0], code), knocker.start(*PROXY) as proxy:
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        assert proxy.stderr is not None
        proxy.stdout.close()
        proxy.stdin.write(b"x")
        assert proxy.wait(PATIENCE) == 1
        assert proxy.stderr.read() == b""


@pytest.mark.parametrize("streams", ["</dev/null", "<&-"])
def test_input_that_is_closed_from_the_start_leaves_the_output(
    knocker: Knocker, hosts: tuple[Host, Host], streams: str
) -> None:
    with serving(hosts[0], "s.sendall(b'banner'); assert s.recv(9) == b''; s.sendall(b' end')"):
        shell = ["sh", "-c", f'exec "$@" {streams}', "sh", *LOGKNOCK, *PROXY, "-v"]
        done = knocker.host.run(*shell, env=knocker.environment)
    assert done.stdout == "banner end", "nothing but data, even with -v"
    assert len(done.stderr.splitlines()) == 3


def test_one_socket_for_input_and_output_ends_both_ways(knocker: Knocker, hosts: tuple[Host, Host]) -> None:
    """Some libraries give their proxy command a socket pair instead of two pipes."""
    code = (
        "import socket, subprocess, sys\n"
        "ours, its = socket.socketpair()\n"
        "ours.settimeout(20)\n"
        "proxy = subprocess.Popen(sys.argv[1:], stdin=its, stdout=its)\n"
        "its.close()\n"
        "try:\n"
        "    print(ours.makefile('rb').read().decode())\n"
        "    ours.shutdown(socket.SHUT_WR)\n"
        "    sys.exit(proxy.wait(20))\n"
        "finally:\n"
        "    proxy.kill()\n"
    )
    with serving(hosts[0], "s.sendall(b'bye'); s.close()"):
        done = knocker.host.run(sys.executable, "-c", code, *LOGKNOCK, *PROXY, env=knocker.environment)
    assert done.stdout == "bye\n"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(["home", "10.99.0.1"], 2, "Missing argument 'PORT'", id="no_port"),
        pytest.param(["home", "10.99.0.1", "0"], 2, "0 is not in the range", id="port_0"),
        pytest.param(["home", "10.99.0.1", "ssh"], 2, "'ssh' is not a valid integer", id="a_named_port"),
        pytest.param(["hone", "10.99.0.1", "22"], 2, "did you mean home?", id="an_unknown_profile"),
        pytest.param(["home", "a..b", "22"], 1, "'a..b' is no host name", id="no_host"),
        pytest.param(
            ["--tries", "1", "--timeout", "200ms", "home", "10.99.0.1", "22"], 1, "22/tcp refuses", id="nobody_there"
        ),
    ],
)
def test_a_proxy_that_cannot_connect_says_so_and_prints_nothing(
    knocker: Knocker, words: list[str], code: int, told: str
) -> None:
    done = knocker.run("proxy", *words, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


# ---- the proxy: ssh itself

# dropbear, since installing Debian's openssh-server starts it on the host. Its user's home is the server's own.
SSHD = """
mount -t tmpfs -o mode=700 tmpfs /root
mkdir -m 700 /root/.ssh
cp user_key.pub /root/.ssh/authorized_keys
exec dropbear -F -E -s -r host_key -P "" -p 22
"""
SSH_CONFIG = """
Host gateway.example
  HostName 10.99.0.1
  ProxyCommand {logknock} proxy home %h %p
  IdentityFile {folder}/user_key
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking accept-new
  BatchMode yes
  LogLevel ERROR
"""


@contextmanager
def sshd(host: Host, folder: Path) -> Iterator[None]:
    """An ssh server on port 22 of the host, and what its client needs in the folder."""
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(folder / "user_key")], check=True)
    subprocess.run(["dropbearkey", "-t", "ed25519", "-f", str(folder / "host_key")], check=True, capture_output=True)
    (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder, logknock=" ".join(LOGKNOCK)))
    argv = ["unshare", "-m", "sh", "-ec", SSHD]
    with ended(host.start(*argv, stderr=subprocess.PIPE, cwd=folder)) as server:
        assert server.stderr is not None
        while "Not backgrounding" not in (said := line(server.stderr)):
            assert server.poll() is None, said
        yield


def test_ssh_scp_and_what_ansible_does_just_work(world: World, knocker: Knocker) -> None:
    """A real ssh server behind the real door; the client's ssh knows nothing but the ProxyCommand."""
    world.configure(SSH.replace("30s", "2s"))
    world.apply()
    folder = knocker.folder

    def client(*argv: str, status: int = 0) -> str:
        done = knocker.host.run(
            argv[0], "-F", str(folder / "ssh_config"), *argv[1:], check=False, env=knocker.environment, cwd=folder
        )
        assert (done.returncode, done.stderr) == (status, "")
        return done.stdout

    big, copy, back = folder / "big", folder / "copy", folder / "back"
    big.write_bytes(os.urandom(1 << 20) * 16)
    with sshd(world.gateway, folder), world.daemon():
        assert not world.reaches()
        assert client("ssh", "gateway.example", "echo hello; exit 7", status=7) == "hello\n"
        client("scp", str(big), f"gateway.example:{copy}")
        client("scp", f"gateway.example:{copy}", str(back))
        assert back.read_bytes() == big.read_bytes()
        # As Ansible: one connection stays, and whatever follows goes through it.
        shared = ["-o", "ControlMaster=auto", "-o", "ControlPersist=60s", "-o", "ControlPath=shared"]
        try:
            client("ssh", *shared, "gateway.example", "true")
            for number in range(3):
                assert client("ssh", *shared, "gateway.example", f"echo {number}") == f"{number}\n"
            until(lambda: not world.granted(), "the door to be shut")
            assert client("ssh", *shared, "gateway.example", "echo behind a shut door") == "behind a shut door\n"
        finally:
            knocker.host.run(
                "ssh", "-F", "ssh_config", *shared, "-O", "exit", "gateway.example", check=False, cwd=folder
            )


def test_the_proxy_knocks_at_the_address_that_it_connects_to(knocker: Knocker, wire: Wire) -> None:
    knocker.fails("proxy", "--tries", "1", "--timeout", "100ms", "home", "fd99::1", "22")
    assert {address_text(seen.packet.dst) for seen in wire.knocks()} == {"fd99::1"}


# ---- logknock-client

CLIENT_ROOMS = {"errors", "client", "knock", "packet", "runs", "positions", "profiles", "proxy", "onetime"} | {
    "onetime_files",
    "ownership",
    "clock",
    "config_values",
    "profile_proofs",
    "raw",
    "spa",
    "supplies",
    "toml_files",
    "toml_lines",
    "toml_tables",
    "totp",
    "tries",
    "cli",
    "cli.client",
    "cli.knock",
    "cli.proxy",
}

# Runs the entry point as a machine would that has nothing but the standard library and click.
BARE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {"click", "logknock"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
from logknock.cli.client import main
try:
    main()
finally:
    print(*sorted(name for name in sys.modules if name.startswith("logknock.")), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--help"], id="help"),
        pytest.param(["--version"], id="version"),
        pytest.param(["knock", "10.99.0.1", "7000"], id="knock"),
        pytest.param(["knock", "vault"], id="a_one_time_profile"),
        pytest.param(["knock", "gate"], id="a_profile_with_a_secret"),
        pytest.param(["proxy", "gate", "10.99.0.1", "22"], id="proxy_with_a_secret"),
        pytest.param(["proxy", "home", "10.99.0.1", "22"], id="proxy"),
    ],
)
def test_the_client_alone_needs_nothing_but_the_standard_library_and_click(
    knocker: Knocker, hosts: tuple[Host, Host], words: list[str]
) -> None:
    knocker.profiles(HOME + ONETIME + GATE)
    knocker.codes(*["7001,8001"] * 12)
    with serving(hosts[0], "s.close()"):
        done = knocker.host.run(sys.executable, "-c", BARE, *words, env=knocker.environment)
    rooms = {name.removeprefix("logknock.") for name in done.stderr.splitlines()[-1].split()}
    assert rooms <= CLIENT_ROOMS
    if words[0] == "knock" and len(words) == 3:
        assert rooms == {"errors", "client", "knock", "packet", "runs", "tries", "cli", "cli.client", "cli.knock"}


def test_a_packet_without_the_library_that_encrypts_is_one_line_with_the_packages_name(
    knocker: Knocker, wire: Wire
) -> None:
    knocker.profiles(VPN)
    done = knocker.host.run(sys.executable, "-c", BARE, "knock", "vpn", check=False, env=knocker.environment)
    assert done.returncode == 69
    *_, told, hint, rooms = done.stderr.splitlines()
    assert told == "logknock: SPA needs the Python library cryptography"
    assert "apt install python3-cryptography" in hint
    assert {name.removeprefix("logknock.") for name in rooms.split()} <= CLIENT_ROOMS
    assert services(wire) == []


def test_the_command_is_installed_and_has_these_two_commands(knocker: Knocker) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert [word.partition(">")[0] for word in project["dependencies"]] == ["click"]
    scripts = project["scripts"]
    assert scripts["logknock-client"] == "logknock.cli.client:main"
    for name in ("knock", "proxy"):
        shown = knocker.host.run(sys.executable, "-c", BARE, name, "-h").stdout
        assert "logknock-client " in shown.partition("Example: ")[2]
    shown = knocker.host.run(sys.executable, "-c", BARE, "-h").stdout
    assert re.findall(r"^  (\w+)  ", shown.partition("Commands:")[2], re.MULTILINE) == ["knock", "proxy"]
