"""What profiles with a secret or with keys put on the wire, as the host that is knocked at decodes it.

Rule 1: what is looked at was sent by the real command through real sockets, and is read by packet.py and spa.py as the
daemon reads it. Rule 2: checksums are for another program to judge: tcpdump.
"""

import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from logknock import clock, spa, totp
from logknock.knock import Sequence, Service
from logknock.packet import ICMP, ICMP6, SYN, TCP, UDP, Carried, Packet, address_text, carried_from_ip, from_ip

from ..config_files import write
from ..netns import Host
from .test_client import LOGKNOCK, Knocker
from .world import World, until

KEY, HMAC_KEY = b"a passphrase of 24 b.", b"another one of 22."
SECRET = b"1234567890123456"
POOL = tuple(Service(proto, port) for proto in (TCP, UDP) for port in range(20000, 20500))

FAMILIES = pytest.mark.parametrize("family", [4, 6])

# A process that may do nothing but what anybody may, though it owns what root owns.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

# What pcap begins with (pcap-savefile(5)), for packets from their IP header on.
PCAP = struct.Struct("=IHHiIII").pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)


class Ear:
    """All packets that come in by the gateway's link, from their IP headers on."""

    def __init__(self, listening: socket.socket, client: Host, gateway: Host) -> None:
        self._listening = listening
        self._client = client
        self._gateway = gateway
        self._heard: list[bytes] = []

    def heard(self) -> list[bytes]:
        """What has been sent by now by the command, in order."""
        end = repr(time.monotonic()).encode()
        code = (
            "import sys\nfrom socket import *\nsocket(type=SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 9))"
        )
        self._client.python(code, self._gateway.ipv4, end.decode())
        until(lambda: self._has(end), "the end of what was sent")
        return [data for data in self._heard if not data.endswith(end)]

    def _has(self, end: bytes) -> bool:
        while True:
            try:
                data, (_, _, kind, *_) = self._listening.recvfrom(65536)
            except BlockingIOError:
                return any(data.endswith(end) for data in self._heard)
            if kind != socket.PACKET_OUTGOING:
                self._heard.append(data)

    def packets(self) -> list[Packet]:
        """The TCP and UDP packets among it."""
        found = (from_ip(data, 0) for data in self.heard())
        return [packet for packet in found if packet is not None]

    def carried(self) -> list[Carried]:
        """What the SPA packets among it came in."""
        found = (carried_from_ip(data, 0) for data in self.heard())
        return [carried for carried in found if carried is not None and len(carried.payload) >= spa.MIN_PAYLOAD]

    def messages(self) -> list[spa.Message]:
        """What the SPA packets among it ask for, each authentic."""
        key = spa.Key("vpn", "laptop", KEY, HMAC_KEY, "sha256", (Service(TCP, 22),))
        found = [spa.unwrap(carried.payload, [key]) for carried in self.carried()]
        assert all(isinstance(opened, spa.Opened) for opened in found), found
        return [opened.message for opened in found if isinstance(opened, spa.Opened)]


@pytest.fixture
def ear(hosts: tuple[Host, Host]) -> Iterator[Ear]:
    gateway, client = hosts
    every = 0x0003  # ETH_P_ALL
    with gateway.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(every)) as listening:
        listening.setblocking(False)
        yield Ear(listening, client, gateway)


@pytest.fixture
def knocker(hosts: tuple[Host, Host], tmp_path: Path) -> Knocker:
    return Knocker(hosts[1], tmp_path)


def vpn(host: str, **keys: str) -> str:
    """A profile with keys."""
    words = {"key": KEY.decode(), "hmac_key": HMAC_KEY.decode(), **keys}
    written = "".join(f"{name} = {json.dumps(value)}\n" for name, value in words.items())
    return f'[profiles.vpn]\nhost = "{host}"\n[profiles.vpn.spa]\naccess = ["22/tcp"]\n{written}'


def gate(host: str, **keys: str) -> str:
    """A profile with a secret."""
    words = {"secret": totp.format_secret(SECRET), "door": "ssh", "host": "gate.example", **keys}
    written = "".join(f"{name} = {json.dumps(value)}\n" for name, value in words.items())
    return f'[profiles.gate]\nhost = "{host}"\ndelay = "20ms"\n[profiles.gate.totp]\n{written}'


def address(host: Host, family: int) -> str:
    return host.ipv4 if family == 4 else host.ipv6


# ---- encrypted packets


@FAMILIES
@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        pytest.param("62201/udp", UDP, id="over_udp"),
        pytest.param("62201/tcp", TCP, id="in_a_lone_syn"),
        pytest.param("icmp", ICMP, id="in_an_echo_request"),
    ],
)
def test_what_is_sent_is_what_the_daemon_reads(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear, port: str, protocol: int, family: int
) -> None:
    gateway, client = hosts
    knocker.profiles(vpn(address(gateway, family), port=port, timeout="60s", user="anna"))
    done = knocker.run("knock", "-v", "vpn")
    assert done.stdout == f"knock 1 of 1: {address(gateway, family)} {port}\n"
    (carried,) = ear.carried()
    assert carried.packet.proto == (ICMP6 if protocol == ICMP and family == 6 else protocol)
    assert carried.packet.dport == (0 if protocol == ICMP else 62201)
    assert address_text(carried.packet.src) == address(client, family)
    (message,) = ear.messages()
    assert message.text == f"{address(client, family)},tcp/22"
    assert (message.timeout, message.user) == (60, "anna")
    assert abs(message.timestamp - time.time()) < 60


@FAMILIES
@pytest.mark.parametrize(
    ("port", "right", "wrong"),
    [
        pytest.param("62201/tcp", "(correct)", "(incorrect", id="of_a_syn"),
        pytest.param("icmp", "echo request", "wrong icmp cksum", id="of_an_echo_request"),
    ],
)
@pytest.mark.parametrize("letters", [1, 2], ids=["of_odd_length", "of_even_length"])
def test_another_program_finds_the_checksum_right(
    hosts: tuple[Host, Host],
    knocker: Knocker,
    ear: Ear,
    tmp_path: Path,
    port: str,
    right: str,
    wrong: str,
    letters: int,
    family: int,
) -> None:
    """tcpdump says so of the packet as it came; of ICMPv6 it says `sum ok`."""
    # What a packet is long depends on blocks of 16 bytes and on its HMAC's digest: md5's is even, sha1's odd.
    knocker.profiles(vpn(address(hosts[0], family), port=port, hmac=("md5", "sha1")[letters - 1]))
    knocker.run("knock", "vpn")
    (data,) = [data for data in ear.heard() if len(data) > spa.MIN_PAYLOAD and data[9 if family == 4 else 6] != UDP]
    (tmp_path / "one.pcap").write_bytes(PCAP + struct.pack("=IIII", 0, 0, len(data), len(data)) + data)
    argv = ["tcpdump", "-nvvr", str(tmp_path / "one.pcap")]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert ("sum ok" if port == "icmp" and family == 6 else right) in said
    assert wrong not in said
    assert "bad" not in said


def test_a_syn_is_one_packet_and_nothing_comes_after_it_but_the_kernels_reset(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear
) -> None:
    """Where the port is open its host answers, and is told that there is no connection."""
    code = "import socket, sys\ns = socket.create_server(('', 62201))\nprint('ready', flush=True)\nsys.stdin.read()"
    argv = [sys.executable, "-c", code]
    with hosts[0].start(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            knocker.profiles(vpn(hosts[0].ipv4, port="62201/tcp"))
            knocker.run("knock", "vpn")
            until(lambda: len([packet for packet in ear.packets() if packet.proto == TCP]) == 2, "the reset")
        finally:
            server.kill()
    assert [packet.flags for packet in ear.packets() if packet.proto == TCP] == [2, 4]
    assert len(ear.messages()) == 1


def test_t18_each_try_is_a_packet_that_was_never_sent_before(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear
) -> None:
    knocker.profiles(vpn(hosts[0].ipv4, port="10000-65535/udp"))
    _, lines = knocker.fails("knock", "--verify", "22", "--tries", "2", "--timeout", "100ms", "vpn")
    first, second = ear.carried()
    assert first.payload[1:11] != second.payload[1:11], "the salt"
    assert len({message.rand for message in ear.messages()}) == 2
    assert min(first.packet.dport, second.packet.dport) >= 10000
    assert "two minutes by the host's clock" in lines[-1]
    assert "asks for 10.99.0.2" in lines[-1]


@FAMILIES
@pytest.mark.parametrize(
    ("written", "asked"),
    [
        pytest.param("source", "0.0.0.0", id="whatever_it_comes_from"),
        pytest.param("2001:db8::7", "2001:db8::7", id="an_address_of_ipv6"),
        pytest.param("192.0.2.7", "192.0.2.7", id="an_address_of_ipv4"),
    ],
)
def test_the_address_asked_for_is_the_one_that_is_written(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear, written: str, asked: str, family: int
) -> None:
    knocker.profiles(vpn(address(hosts[0], family), address=written))
    knocker.run("knock", "vpn")
    (message,) = ear.messages()
    assert message.text == f"{asked},tcp/22"
    assert message.address == ip_address(asked).packed


def test_a_zone_chooses_the_link_and_is_in_no_packet(hosts: tuple[Host, Host], knocker: Knocker, ear: Ear) -> None:
    """T27: of a SYN, a datagram and an echo request."""
    for host, link_local in zip(hosts, ("fe80::99:1", "fe80::99:2"), strict=True):
        host.run("ip", "addr", "add", f"{link_local}/64", "dev", "eth0", "nodad")
    for port in ("62201/udp", "62201/tcp", "icmp"):
        knocker.profiles(vpn("fe80::99:1%eth0", port=port))
        knocker.run("knock", "vpn")
    assert [message.text for message in ear.messages()] == ["fe80::99:2,tcp/22"] * 3


@pytest.mark.parametrize("keys", [{}, {"address": "source", "port": "62201/tcp"}], ids=["its_own_address", "a_syn"])
def test_a_network_that_cannot_be_reached_is_told_with_a_hint(
    hosts: tuple[Host, Host], knocker: Knocker, keys: dict[str, str]
) -> None:
    knocker.profiles(vpn("192.0.2.1", **keys))
    status, lines = knocker.fails("knock", "vpn")
    assert status == 1
    assert "Network is unreachable" in lines[-2]
    assert "this machine has no route to 192.0.2.1" in lines[-1]


# ---- privileges


def unprivileged(knocker: Knocker, *words: str) -> subprocess.CompletedProcess[str]:
    return knocker.host.run(*UNPRIVILEGED, *LOGKNOCK, *words, check=False, env=knocker.environment)


@FAMILIES
@pytest.mark.parametrize(
    ("port", "message", "hint"),
    [
        pytest.param("62201/tcp", "62201/tcp: a SYN with a payload takes a raw socket", "CAP_NET_RAW", id="a_syn"),
        pytest.param(
            "icmp", "icmp: an echo request takes a socket for pings", "ping_group_range", id="an_echo_request"
        ),
    ],
)
def test_who_lacks_the_privilege_is_told_what_else_would_do(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear, port: str, message: str, hint: str, family: int
) -> None:
    knocker.profiles(vpn(address(hosts[0], family), port=port))
    done = unprivileged(knocker, "knock", "vpn")
    assert done.returncode == 77
    told, hinted = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert message in told
    assert hint in hinted
    assert "send it over UDP" in hinted
    assert ear.carried() == []


@FAMILIES
@pytest.mark.parametrize("port", ["62201/udp", "icmp"])
def test_no_privilege_is_needed_for_a_datagram_nor_for_an_echo_request_where_anybody_may_ping(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear, port: str, family: int
) -> None:
    if port == "icmp":
        hosts[1].run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    knocker.profiles(vpn(address(hosts[0], family), port=port))
    assert unprivileged(knocker, "knock", "vpn").returncode == 0
    assert len(ear.messages()) == 1


def test_several_that_fail_and_succeed_each_have_their_line_and_their_code(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear
) -> None:
    text = vpn(hosts[0].ipv6, port="62201/tcp") + vpn(hosts[0].ipv4).replace("profiles.vpn", "profiles.other")
    knocker.profiles(text + gate(hosts[0].ipv4))
    done = unprivileged(knocker, "knock", "vpn", "other", "gate")
    assert done.returncode == 77
    assert sorted(done.stdout.splitlines()) == ["gate: 10.99.0.1: 4 knocks sent", "other: 10.99.0.1: 1 knock sent"]
    assert "logknock: vpn: 62201/tcp: a SYN with a payload" in done.stderr
    assert len(ear.messages()) == 1
    warned = done.stderr.count("warning: nothing keeps this machine's clock right")
    assert warned == (clock.is_synchronised() is False), "once, and only where the kernel says so"


# ---- steps of time


def sequences(ear: Ear, target: str) -> list[Sequence]:
    """What was knocked at an address, in order, in sequences of four; resets and probes are no knocks."""
    pool = frozenset(POOL)
    knocks = [
        Service(packet.proto, packet.dport)
        for packet in ear.packets()
        if address_text(packet.dst) == target and (packet.proto == UDP or packet.flags == SYN)
    ]
    found = [service for service in knocks if service in pool]
    return [tuple(found[at : at + 4]) for at in range(0, len(found), 4)]


def steps(sent: list[Sequence], since: float, length: int = 30, host: str = "gate.example") -> list[int]:
    """Of which step each sequence is, 0 being the one that was when the test began; only of one that has been."""
    first, last = (totp.step_at(moment, length) for moment in (since, time.time()))
    known = {totp.derive(SECRET, step, "ssh", host, POOL, 4): step - first for step in range(first, last + 1)}
    return [known[sequence] for sequence in sent]


@FAMILIES
def test_the_sequence_of_the_step_is_knocked(hosts: tuple[Host, Host], knocker: Knocker, ear: Ear, family: int) -> None:
    began = time.time()
    knocker.profiles(gate(address(hosts[0], family)))
    knocker.run("knock", "gate")
    assert len(steps(sequences(ear, address(hosts[0], family)), began)) == 1


def test_hosts_without_a_name_of_their_own_have_each_the_sequence_of_its_name(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear
) -> None:
    """A sequence heard at one is of no use at the other."""
    text = gate("HOSTS").replace('"HOSTS"', '["10.99.0.1", "fd99::1"]').replace('host = "gate.example"\n', "")
    knocker.profiles(text)
    began = time.time()
    knocker.run("knock", "gate")
    for name in ("10.99.0.1", "fd99::1"):
        assert len(steps(sequences(ear, name), began, host=name)) == 1


def test_a_lost_knock_is_sent_once_more_and_then_that_of_a_later_step(
    hosts: tuple[Host, Host], knocker: Knocker, ear: Ear
) -> None:
    """And what is said at the end names the clock."""
    hosts[0].nft("table inet t { chain i { type filter hook input priority 0; meta l4proto { tcp, udp } drop; }; }")
    knocker.profiles(gate(hosts[0].ipv4, step="10s"))
    until(lambda: time.time() % 10 < 2, "a step that has just begun, for the first two tries")
    began = time.time()
    done = knocker.run("knock", "--verify", "22", "--timeout", "100ms", "gate", check=False)
    assert done.returncode == 1
    (wait,) = [line for line in done.stderr.splitlines() if "to wait for the next step" in line]
    assert re.fullmatch(rf"logknock: {re.escape(hosts[0].ipv4)} does not answer: \d+ s to wait for the next step", wait)
    first, second, third = steps(sequences(ear, hosts[0].ipv4), began, 10)
    assert first <= second < third
    if time.time() - began < 12:  # the machine was quick enough for two in one step
        assert (first, second, third) == (0, 0, 1)
    hint = done.stderr.splitlines()[-1]
    for words in ("a step is 10 s", "`timedatectl`", "`logknock explain ADDRESS`"):
        assert words in hint
    assert totp.format_secret(SECRET) not in done.stdout + done.stderr


def test_a_secret_that_others_may_read_is_refused(hosts: tuple[Host, Host], knocker: Knocker, ear: Ear) -> None:
    write(knocker.folder, gate(hosts[0].ipv4), "client.toml").chmod(0o644)
    status, lines = knocker.fails("knock", "gate")
    assert status == 78
    assert "can be read by others" in lines[0]
    assert sequences(ear, hosts[0].ipv4) == []


# ---- with the daemon


def test_a_door_opens_for_a_packet_however_it_comes(world: World, knocker: Knocker) -> None:
    """The address in it is the one that it comes from, which the door insists on unless it is told otherwise."""
    world.configure(
        '[doors.vpn]\nspa = {ports = ["62201/udp", "62201/tcp", "icmp"]}\nopens = ["22/tcp"]\ntimeout = "30s"\n'
        f'[clients.vpn.laptop]\nkey = "{KEY.decode()}"\nhmac_key = "{HMAC_KEY.decode()}"\nallow = ["22/tcp"]\n'
    )
    world.apply()
    with world.daemon(), world.service(22):
        for family in (4, 6):
            for port in ("62201/udp", "62201/tcp", "icmp"):
                knocker.profiles(vpn(address(world.gateway, family), port=port))
                assert not world.reaches(address=address(world.gateway, family))
                knocker.run("knock", "--verify", "22", "--tries", "1", "vpn")
                shut(world)


def shut(world: World) -> None:
    world.gateway.logknock("revoke", "--all", "-c", str(world.config))
    assert world.granted() == world.granted("granted6") == {}


# The third try is in the next step at the latest, with a door that takes its time too.
WAITING = ("knock", "--verify", "22", "--timeout", "5s", "gate")


def configure_steps(world: World, knocker: Knocker) -> None:
    """A door with short steps, and a profile for it."""
    world.configure(
        '[totp]\nhost = "gate.example"\n[doors.ssh]\ntotp = {step = "10s"}\nopens = ["22/tcp"]\ntimeout = "30s"\n'
        f'[clients.ssh.laptop]\nsecret = "{totp.format_secret(SECRET)}"\n'
    )
    world.apply()
    knocker.profiles(gate(world.gateway.ipv4, step="10s"))


def test_t21_wrong_tries_in_the_clients_name_only_cost_the_wait_for_a_second_step(
    world: World, knocker: Knocker
) -> None:
    """T21, T11: the host asks for the sequences of two steps then, and the client's third try has the second."""
    configure_steps(world, knocker)
    with world.daemon() as daemon, world.service(22):
        until(lambda: time.time() % 10 < 4, "a step that has just begun")
        first, *_ = totp.derive(SECRET, totp.step_at(time.time(), 10), "ssh", "gate.example", POOL, 4)
        wrong = [service for service in POOL if service.port != first.port][:12]
        world.spoof(*(f"10.99.0.2>{world.gateway.ipv4}:{each}" for other in wrong for each in (first, other)))
        told = knocker.run(*WAITING).stderr
        assert "to wait for the next step" not in told or daemon.says("next step's sequence is asked for too")


def test_t18_a_step_that_is_used_up_only_costs_the_wait_for_the_next_one(world: World, knocker: Knocker) -> None:
    """T18: the same sequence again opens nothing, though the client cannot know that it was used."""
    configure_steps(world, knocker)
    with world.daemon() as daemon, world.service(22):
        until(lambda: time.time() % 10 < 3, "a step that has just begun, for the tries that are in vain")
        began = time.time()
        knocker.run(*WAITING)
        shut(world)
        told = knocker.run(*WAITING).stderr
        assert time.time() // 10 > began // 10
        daemon.read()
        assert sum("OPEN SESAME" in line for line in daemon.lines) == 2
        assert "to wait for the next step" not in told or daemon.says("used up")
