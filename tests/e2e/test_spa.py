"""Doors with `spa`, with packets of our own making, through the real rules, the real daemon and the real kernel."""

import json
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from logknock import spa
from logknock.clock import is_synchronised
from logknock.knock import Service
from logknock.mailbox import MAX_WAITING

from .crashes import check_every_line, check_order_on_disk
from .world import SSH, Daemon, World, until

KEY, HMAC_KEY = b"correct horse battery staple", b"an HMAC key that is another one"
GUEST_KEY, GUEST_HMAC_KEY = b"the guest's own key, 32 bytes ok", b"the guest's own HMAC key"

DOORS = """
[doors.vpn]
opens = ["22/tcp", "1194/udp"]
timeout = "30s"
spa = {ports = ["62201/udp", "62201/tcp", "icmp"]}
"""

LAPTOP = f"""
[clients.vpn.laptop]
key = "{KEY.decode()}"
hmac_key = "{HMAC_KEY.decode()}"
allow = ["22/tcp", "1194/udp"]
"""

GUEST = f"""
[clients.vpn.guest]
key = "{GUEST_KEY.decode()}"
hmac_key = "{GUEST_HMAC_KEY.decode()}"
allow = ["22/tcp"]
max_timeout = "60s"
require_source = false
"""

# Sends a payload: how, whereto, to which port, from where (empty: as the route says), in hexadecimal.
SEND = """
import random, socket, sys
from logknock import raw
how, host, port, source, payload = *sys.argv[1:5], bytes.fromhex(sys.argv[5])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
if how == "udp":
    with socket.socket(family, socket.SOCK_DGRAM) as wire:
        if source:
            wire.bind((source, 0))
        wire.sendto(payload, (host, int(port)))
elif how == "tcp":
    raw.send_syn(family, (host, int(port)), random.randrange(20_000, 30_000), payload)
else:
    raw.send_echo(family, (host, 0), payload)
"""

# Another address of the client's, to which the gateway has a route.
ELSEWHERE = "198.51.100.7"


def packet(
    address: str,
    *services: str,
    timeout: int = 0,
    sent: float = 0.0,
    keys: tuple[bytes, bytes] = (KEY, HMAC_KEY),
    user: str = "anna",
) -> bytes:
    """What a client sends to ask for these services; sent: so many seconds from now."""
    message = spa.request(
        ip_address(address).packed,
        [Service.parse(service) for service in services or ("22/tcp",)],
        user=user,
        timestamp=int(time.time() + sent),
        rand=f"{secrets.randbelow(10**16):016}",
        timeout=timeout,
    )
    return spa.encode(message, *keys, "sha256", secrets.token_bytes(8))


class Vpn:
    """The world with its SPA door, and who sends packets there."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.client.run("ip", "addr", "add", f"{ELSEWHERE}/32", "dev", "lo")
        world.configure(DOORS + LAPTOP + GUEST)
        world.apply()

    def send(self, payload: bytes, how: str = "udp", address: str = "", port: int = 62201, source: str = "") -> None:
        host = address or self.world.gateway.ipv4
        self.world.client.python(SEND, how, host, str(port), source, payload.hex())

    def open_now(self) -> dict[str, float]:
        """What is open in the kernel, IPv4 and IPv6, and how many seconds it has left."""
        found = self.world.granted() | self.world.granted("granted6")
        return {name: float(element["expires"]) for name, element in found.items()}

    def is_open(self, name: str) -> bool:
        """Whether the kernel has this element."""
        return name in self.open_now()

    def asked(self, *words: str) -> str:
        """What a command says that asks the daemon."""
        return self.world.gateway.logknock(*words, "-c", str(self.world.config), check=False).stdout

    @contextmanager
    def daemon(self) -> Iterator[Daemon]:
        """The daemon, until the block ends."""
        with self.world.daemon() as daemon:
            yield daemon


@pytest.fixture
def vpn(world: World) -> Vpn:
    return Vpn(world)


def test_t18_a_packet_opens_what_it_asks_for_once_and_never_again(vpn: Vpn) -> None:
    """T18: the same bytes from anywhere, after a restart and a kill -9, are a replay; and who opened it is known."""
    ours = vpn.world.client.ipv4
    sent = packet(ours, timeout=200)
    replayed = "vpn: SPA packet of client laptop refused: replayed"
    with vpn.daemon() as daemon, vpn.world.service(22):
        assert not vpn.world.reaches()
        vpn.send(sent)
        daemon.wait_for(f"{ours}: vpn:22/tcp: OPEN SESAME")
        assert daemon.says(f"{ours}: vpn: SPA packet of client laptop accepted: 22/tcp")
        assert vpn.world.reaches()
        assert vpn.open_now().keys() == {f"{ours} . tcp . 22"}, "and not the door's other service"
        assert f"vpn:22/tcp  {ours}" in vpn.asked("grants")
        assert "by client laptop" in vpn.asked("status", "--door", "vpn")
        happened = json.loads(vpn.asked("status", "--json"))["history"]
        assert ("opened", "vpn:22/tcp", "200 s, by client laptop") in [
            (entry["event"], entry["door"], entry["detail"]) for entry in happened
        ]
        vpn.asked("revoke", "--all")
        vpn.send(sent)
        daemon.wait_for(f"{ours}: {replayed}")
        vpn.send(sent, source=ELSEWHERE)
        daemon.wait_for(f"{ELSEWHERE}: {replayed}")
        said = vpn.asked("explain", ours)
        assert "vpn: SPA packet of client laptop accepted: 22/tcp" in said
        assert re.search(r"62201/udp +vpn: SPA packet of client laptop refused: replayed", said)
        daemon.signal(signal.SIGKILL)
        daemon.process.wait()
    with vpn.daemon() as daemon:
        vpn.send(sent)
        daemon.wait_for(replayed)
        daemon.stop()
    with vpn.daemon() as daemon:
        vpn.send(sent, "tcp")
        daemon.wait_for(replayed)
        assert vpn.open_now() == {}
        vpn.send(packet(ours))
        daemon.wait_for("vpn:22/tcp: OPEN SESAME")


def test_every_way_in(vpn: Vpn) -> None:
    """UDP, a lone SYN and an echo request, over both families; an address in the packet, and 0.0.0.0 for its source."""
    pairs = [
        (vpn.world.client.ipv4, vpn.world.gateway.ipv4),
        (vpn.world.client.ipv6, vpn.world.gateway.ipv6),
    ]
    guest = (GUEST_KEY, GUEST_HMAC_KEY)
    with vpn.daemon():
        for ours, theirs in pairs:
            for how in ("udp", "tcp", "icmp"):
                for sent in (packet(ours), packet("0.0.0.0", keys=guest)):
                    vpn.send(sent, how, theirs)
                    until(partial(vpn.is_open, f"{ours} . tcp . 22"), f"{how} from {ours}")
                    vpn.asked("revoke", "--all")
                    assert vpn.open_now() == {}


def test_t18_what_was_altered_delayed_or_made_by_another_opens_nothing(vpn: Vpn) -> None:
    """T18: each refused with its reason; and what it was made of opens all the same."""
    ours = vpn.world.client.ipv4
    good = packet(ours)
    other = b"+" if good[40:41] != b"+" else b"/"
    strangers = (b"somebody else's key, 32 bytes ok", b"somebody else's HMAC key")
    nobody = "SPA packet of nobody refused: "
    laptop, guest = (f"vpn: SPA packet of client {name} refused: " for name in ("laptop", "guest"))
    refused = [
        (good[:40] + other + good[41:], f"{nobody}no key's HMAC fits"),  # altered
        (good[:-1], f"{nobody}no key's HMAC fits"),  # truncated
        (good + b"=", f"{nobody}byte 0x3d"),  # padded, as base64 may be
        (b"U2FsdGVkX1" + good, f"{nobody}byte 0x55 is first"),  # with what the client leaves out
        (good.replace(good[1:2], b"-"), f"{nobody}byte 0x2d"),  # another alphabet
        (b"8" + bytes(200), f"{nobody}byte 0x00"),
        (b"8" * 1501, f"{nobody}1501 bytes"),
        (packet(ours, keys=strangers), f"{nobody}no key's HMAC fits"),
        (packet(ours, sent=-150), f"{laptop}wrong time (sent 1"),
        (packet(ours, sent=150), f"{laptop}wrong time (sent in 1"),
        (packet(ELSEWHERE), f"{laptop}wrong address (asks for {ELSEWHERE}, and came from elsewhere)"),
        (packet("0.0.0.0"), f"{laptop}wrong address (names no address"),
        (packet(ours, "22/tcp", "443/tcp"), f"{laptop}service not allowed (asks for 443/tcp"),
        (packet(ours, "22/tcp", "1194/udp", keys=(GUEST_KEY, GUEST_HMAC_KEY)), f"{guest}service not allowed"),
        (packet("127.0.0.1", keys=(GUEST_KEY, GUEST_HMAC_KEY)), "vpn:22/tcp: not opened: "),  # T37
    ]
    with vpn.daemon() as daemon:
        for payload, words in refused:
            vpn.send(payload)
            daemon.wait_for(words)
            daemon.lines.clear()
        vpn.send(good, port=62202)  # nobody listens there
        assert vpn.open_now() == {}
        vpn.send(good)
        until(lambda: f"{ours} . tcp . 22" in vpn.open_now(), "the packet as it was made")
        said = vpn.asked("explain", ours)
        assert "vpn: SPA packet of client laptop refused: wrong time (sent 1" in said


def test_each_service_has_an_end_of_its_own(vpn: Vpn) -> None:
    """T33: as long as the client asks for, within what it may; and no packet shortens what is open for longer."""
    ours = vpn.world.client.ipv4
    ssh, tunnel = f"{ours} . tcp . 22", f"{ours} . udp . 1194"
    guest = (GUEST_KEY, GUEST_HMAC_KEY)
    with vpn.daemon() as daemon:
        vpn.send(packet(ours, "22/tcp", "1194/udp"))
        until(lambda: vpn.open_now().keys() == {ssh, tunnel}, "both services")
        assert all(10 < left <= 30 for left in vpn.open_now().values()), "the door's own timeout"
        vpn.send(packet(ours, "1194/udp", timeout=300))
        until(lambda: vpn.open_now()[tunnel] > 250, "the longer time")
        assert vpn.open_now()[ssh] <= 30
        vpn.send(packet(ours, "22/tcp", "1194/udp", timeout=200))
        until(lambda: vpn.open_now()[ssh] > 150, "the longer time of the other")
        assert 200 < vpn.open_now()[tunnel] <= 300, "not shortened"
        vpn.send(packet(ours, "22/tcp", timeout=10))
        kept = re.compile(r"vpn:22/tcp: opened for 1\d\d s")
        until(lambda: kept.search(vpn.asked("explain", ours)), "the end that it has")
        assert sorted(vpn.asked("revoke", "vpn", ours).splitlines()) == [
            f"vpn:1194/udp is closed for {ours}",
            f"vpn:22/tcp is closed for {ours}",
        ]
        vpn.send(packet(ours, keys=guest, timeout=65_535))
        until(lambda: ssh in vpn.open_now(), "the guest")
        assert 30 < vpn.open_now()[ssh] <= 60, "the most that it may have"
        vpn.asked("revoke", "--all")
        before = time.monotonic()
        vpn.send(packet(ours, timeout=2))
        daemon.wait_for("vpn:22/tcp: command timeout, closed")
        assert time.monotonic() - before >= 2
        assert vpn.open_now() == {}


def test_a_door_looks_at_packets_to_its_target_alone_and_closes_what_it_closes(vpn: Vpn) -> None:
    """A door's `target` and `closes` count for its packets as for knocks."""
    ours, theirs = vpn.world.client, vpn.world.gateway
    aimed = DOORS + f'target = ["{theirs.ipv6}"]\ncloses = ["ssh"]\n' + LAPTOP + GUEST
    vpn.world.configure(SSH.replace('"22/tcp"', '"2222/tcp"') + aimed)
    vpn.world.apply()
    with vpn.daemon() as daemon:
        for address in (ours.ipv4, ours.ipv6):
            vpn.asked("grant", "ssh", address)
        vpn.send(packet(ours.ipv4))
        daemon.wait_for(f"{ours.ipv4}: vpn:22/tcp: not opened: sent to another address than the door asks for")
        assert vpn.open_now().keys() == {f"{address} . tcp . 2222" for address in (ours.ipv4, ours.ipv6)}
        vpn.send(packet(ours.ipv6), address=theirs.ipv6)
        daemon.wait_for(f"{ours.ipv6}: ssh: closed by vpn")
        assert vpn.open_now().keys() == {f"{ours.ipv4} . tcp . 2222", f"{ours.ipv6} . tcp . 22"}


def test_t29_a_packet_that_waited_too_long_for_the_daemon_opens_nothing(vpn: Vpn) -> None:
    """T29: as for knocks: longer than any door's seq_timeout."""
    vpn.world.configure(DOORS + 'seq_timeout = "1s"\n' + LAPTOP + GUEST)
    vpn.world.apply()
    with vpn.daemon() as daemon:
        daemon.signal(signal.SIGSTOP)
        vpn.send(packet(vpn.world.client.ipv4))
        time.sleep(1.1)
        daemon.signal(signal.SIGCONT)
        until(lambda: daemon.counter("too old") == 1, "the packet")
        assert vpn.open_now() == {}
        assert "late, and no door waits that long" in vpn.asked("explain", vpn.world.client.ipv4)


def test_t36_a_reload_takes_a_clients_keys_away_and_leaves_the_others(vpn: Vpn) -> None:
    """T36: and one that is bad changes nothing."""
    ours = vpn.world.client.ipv4
    guest = (GUEST_KEY, GUEST_HMAC_KEY)
    with vpn.daemon() as daemon:
        early = packet(ours)
        vpn.send(packet(ours, timeout=200))
        daemon.wait_for("vpn:22/tcp: OPEN SESAME")
        vpn.world.configure(DOORS + GUEST)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded: ")
        assert [left > 100 for left in vpn.open_now().values()] == [True], "what is open stays open for its time"
        vpn.asked("revoke", "--all")
        vpn.send(early)
        daemon.wait_for("SPA packet of nobody refused: no key's HMAC fits")
        vpn.world.configure(DOORS + GUEST + LAPTOP.replace("22/tcp", "25/tcp"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("not reloaded")
        assert vpn.open_now() == {}
        daemon.lines.clear()
        vpn.send(packet(ours, keys=guest))
        daemon.wait_for("vpn:22/tcp: OPEN SESAME")
        vpn.world.configure(DOORS.replace('"icmp"', '"62300/udp"') + GUEST)
        vpn.world.apply()
        daemon.signal(signal.SIGHUP)
        until(lambda: sum("reloaded: " in line for line in daemon.lines if daemon.says("")) == 1, "another place")
        vpn.asked("revoke", "--all")
        vpn.send(packet(ours, keys=guest), port=62300)
        until(lambda: vpn.open_now() != {}, "a packet to the new port")


def test_rules_that_are_older_than_the_door_are_told_of(vpn: Vpn) -> None:
    """Of a range its ends are asked about: a pool of ports has a thousand."""
    vpn.world.configure(SSH)
    vpn.world.apply()
    pool = '[totp]\nhost = "gate.example"\n[doors.web]\nopens = ["80/tcp"]\ntotp = {}\n'
    vpn.world.configure(DOORS + LAPTOP + GUEST + pool)
    with vpn.daemon() as daemon:
        daemon.wait_for("set inet logknock spa lacks icmp, 62201/tcp, 62201/udp")
        daemon.wait_for("set inet logknock watched lacks 20000-20499/tcp, 20000-20499/udp")
        lacks = "set inet logknock spa lacks icmp, 62201/tcp, 62201/udp: what is sent there opens nothing"
        until(lambda: lacks in vpn.asked("status"), "it is degraded (T34)")
        said = vpn.asked("status")
        assert [line.split(maxsplit=2)[2] for line in said.splitlines() if line.startswith("  door ")] == [
            "0 open, 0 opened, 2 clients",
            "0 open, 0 opened, 1 client",
            "0 open, 0 opened, 0 clients",
        ]
        vpn.world.apply()
        daemon.read()
        daemon.lines.clear()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded: ")
        daemon.counter("records")  # all that there was to say of the reload has been said
        assert not daemon.says(" lacks ")
        until(lambda: "lacks" not in vpn.asked("status"), "it is well again")
        found = json.loads(vpn.asked("doctor", "--json"))["findings"]
        assert [finding["text"] for finding in found if finding["check"] == "clients"] == [
            "door web has no client: it opens for nobody"
        ]


def test_t20_without_a_store_these_doors_stay_shut_and_say_so(vpn: Vpn) -> None:
    """T20: in the log, in the status, and in what is said of the packet."""
    state = vpn.world.config.parent / "state"
    state.mkdir(exist_ok=True)
    (state / "logknock.db").write_bytes(b"no database" * 1_000)
    (state / "logknock.db").chmod(0o600)
    with vpn.daemon() as daemon:
        assert daemon.says("nothing is remembered, and SPA doors stay shut until a restart")
        vpn.send(packet(vpn.world.client.ipv4))
        daemon.wait_for("vpn: SPA packet of client laptop refused: not on record (")
        assert vpn.open_now() == {}
        assert "degraded: store" in vpn.asked("status").splitlines()[0]


def test_without_the_library_these_doors_stay_shut_and_the_others_open(vpn: Vpn, tmp_path: Path) -> None:
    """What decrypts packets is an extra; the doctor says what to install."""
    web = '[doors.web]\nsequence = ["7000/tcp", "9000/tcp", "8000/tcp"]\nopens = ["80/tcp"]\n'
    vpn.world.configure(DOORS + LAPTOP + web)
    vpn.world.apply()
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "cryptography.py").write_text("raise ImportError\n")
    command = ["env", f"PYTHONPATH={hidden}", sys.executable, "-m", "logknock"]
    config = ["-c", str(vpn.world.config)]
    missing = "SPA needs the Python library cryptography"
    process = vpn.world.gateway.start(*command, "run", *config, stderr=subprocess.PIPE)
    daemon = Daemon(process)
    try:
        daemon.wait_for(f"SPA doors stay shut: {missing}")
        vpn.send(packet(vpn.world.client.ipv4))
        vpn.world.knock("7000/tcp", "9000/tcp", "8000/tcp")
        daemon.wait_for("web: OPEN SESAME")
        assert vpn.open_now().keys() == {f"{vpn.world.client.ipv4} . tcp . 80"}
        assert "degraded: clients" in vpn.asked("status").splitlines()[0]
        found = json.loads(vpn.world.gateway.run(*command, "doctor", "--json", *config, check=False).stdout)["findings"]
        (finding,) = [finding for finding in found if finding["check"] == "clients"]
        assert (finding["level"], missing in finding["text"]) == ("error", True)
        assert finding["remedy"].startswith("apt install python3-cryptography")
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_clock_that_nobody_keeps_right_is_a_warning_where_a_door_goes_by_it(vpn: Vpn) -> None:
    """Said by `status` where the kernel says so, and by the doctor in any case; it is no failure of anything."""
    words = "nothing keeps this host's clock right, and these doors go by it: vpn"
    with vpn.daemon():
        found = json.loads(vpn.asked("status", "--json"))
        assert [words in warning for warning in found["warnings"]] == [True] * (is_synchronised() is False)
        assert (found["ok"], found["degraded"]) == (True, [])
        assert (f"warning: {words}" in vpn.asked("status")) == (is_synchronised() is False)
        vpn.world.configure(SSH)
        assert json.loads(vpn.asked("status", "--json"))["warnings"] == []


def test_what_came_is_counted_by_what_became_of_it(vpn: Vpn, tmp_path: Path) -> None:
    place = tmp_path / "metrics.sock"
    vpn.world.configure(DOORS + LAPTOP + f'[metrics]\nlisten = "unix:{place}"\n')
    vpn.world.apply()
    sent = packet(vpn.world.client.ipv4)
    with vpn.daemon() as daemon:
        for payload in (sent, sent, sent[:-1], packet(vpn.world.client.ipv4, sent=-150)):
            vpn.send(payload)
        daemon.wait_for("refused: wrong time")
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(place))
            wire.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            page = b"".join(iter(partial(wire.recv, 65_536), b"")).decode()
        counted = dict(re.findall(r'logknock_spa_packets_total{result="(\w+)"} (\d+)', page))
        assert {result: times for result, times in counted.items() if times != "0"} == {
            "accepted": "1",
            "replayed": "1",
            "hmac": "1",
            "age": "1",
        }


# What the daemon makes of a delivery of forged packets, of one that there is no room for, and of all when it has worked
# on them: how many were counted, and whether the status tells of what was left out.
DELIVERY = """
import asyncio, json, sys, time
from pathlib import Path
from logknock.daemon import Daemon
from logknock.mailbox import MAX_WAITING
from logknock.packet import UDP, Carried, Packet
from logknock.report import Reporter, StderrLog

def forged(number):
    packet = Packet(time.time(), number.to_bytes(4, "big"), bytes(4), UDP, 40000, 62201, 0)
    return Carried(packet, b"8" + b"A" * 199)

async def main():
    daemon = Daemon(Path(sys.argv[1]), Reporter(StderrLog()))
    daemon._counts.use(daemon._config.doors, ())

    def told():
        counted = {result: times for result, times in daemon._counts.counted().mailed.items() if times}
        print(json.dumps([counted, [trouble.why for trouble in daemon._in_trouble()]]))

    for number in range(217):
        daemon._take_in(forged(number))
    told()
    for number in range(217, MAX_WAITING + 5):
        daemon._take_in(forged(number))
    daemon._tell_left_out()
    told()
    while daemon._work_on_mail():
        pass
    daemon._tell_left_out()
    told()

asyncio.run(main())
"""


def test_t30_a_delivery_of_forged_packets_is_judged_between_reads(vpn: Vpn) -> None:
    """T30: none of them inside the read, and no more than there is room for; what is left out is counted and told."""
    done = vpn.world.gateway.python(DELIVERY, str(vpn.world.config))
    left_out = "5 SPA packets left out within a second: more came than there is time to look at"
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        [{}, []],
        [{"left_out": 5}, [left_out]],
        [{"left_out": 5, "hmac": MAX_WAITING}, []],
    ]
    assert left_out in done.stderr


# A packet; what is pure has no part in what a crash leaves behind.
CAME = """
from logknock.gate import Accepted, Gate

PURE = ("spa", "packet", "knock", "trail", "counts", "report", "netlink")

def carried():
    return Carried(Packet(time.time(), src, dst, UDP, 40000, 62201, 0), bytes.fromhex(given[0]))

def before(daemon):
    pass

def opens(daemon):
    daemon._take_in(carried())
    daemon._work_on_mail()

def is_used(store):
    gate = Gate(store)
    gate.use(loaded.spa_keys)
    return not isinstance(gate.judge(carried(), time.time()), Accepted)
"""


@pytest.fixture
def crashed(world: World) -> World:
    """The SPA door with its rules, and no daemon yet; on a slow machine too the packet is not too old at the end."""
    world.configure(DOORS + GUEST + 'max_age = "1h"\n')
    world.apply()
    return world


def guests_packet() -> str:
    return packet("198.51.100.1", keys=(GUEST_KEY, GUEST_HMAC_KEY)).hex()


def test_by_hand_a_service_is_named_unless_there_is_but_one(vpn: Vpn) -> None:
    """As `revoke` takes the door's own name for all of them, `grant` does for the only one."""
    ours = vpn.world.client.ipv4
    with vpn.world.daemon() as daemon:
        daemon.wait_for("ready")
        command = ("grant", "vpn", ours, "-c", str(vpn.world.config))
        refused = vpn.world.gateway.logknock(*command, check=False)
        assert refused.returncode != 0
        assert "there is no door vpn" in refused.stderr
        assert "vpn:22/tcp, vpn:1194/udp" in refused.stderr
        vpn.world.configure(DOORS.replace(', "1194/udp"', "") + LAPTOP.replace(', "1194/udp"', "") + GUEST)
        assert "reloaded" in vpn.world.gateway.logknock("reload", "-c", str(vpn.world.config)).stdout
        vpn.world.gateway.logknock(*command)
        until(lambda: vpn.is_open(f"{ours} . tcp . 22"), "the door")


def test_t18_t20_whatever_the_step_of_a_crash_what_opened_is_no_packet_any_more(crashed: World) -> None:
    """T18, T20: killed between any two lines of ours; and its end is seen to, since the grant is on record."""
    check_every_line(crashed, CAME, guests_packet())


def test_t20_the_packet_is_on_the_disk_before_the_door_opens(crashed: World) -> None:
    """T20: as the kernel sees it: the file is synced before the message that opens the door is sent."""
    check_order_on_disk(crashed, CAME, guests_packet())
