"""The rules in a kernel: who gets where, what is recorded of it, and what loading them leaves alone.

The client has many addresses, one a role; what is recorded is what comes out of the NFLOG group.
"""

import re
import time
from collections.abc import Iterator

import pytest

from ..netns import Host, pair
from .instruments import FLOOD, ROLES, Log, Session, at, logging, probe, serving, take_roles
from .world import World, until

CONFIG = """
[firewall]
trusted = ["198.51.100.40", "fd98::40"]
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp", "53/udp"]
"""

SETS = f"""
add element inet logknock granted4 {{ {ROLES[4]["granted"]} . tcp . 22 timeout 1h }}
add element inet logknock granted6 {{ {ROLES[6]["granted"]} . tcp . 22 timeout 1h }}
add element inet logknock banned4 {{ {ROLES[4]["banned"]} timeout 1h }}
add element inet logknock banned6 {{ fd98:0:0:30:: timeout 1h }}
"""


# ---- who gets where


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host, Log]]:
    """A gateway with rules, elements and servers, a client of many addresses, and the log."""
    with pair() as (gateway, client):
        world = World(gateway, client, tmp_path_factory.mktemp("guarded") / "logknock.toml")
        world.configure(CONFIG)
        world.apply()
        gateway.nft(SETS)
        take_roles(client)
        # Not before the rules are made: what something listens on is no trap.
        with (
            serving(gateway, "22/tcp", "53/udp", "80/tcp", "6999/tcp", "6999/udp"),
            logging(gateway, client) as log,
        ):
            yield gateway, client, log


CLAIMS = [
    pytest.param("stranger", "22/tcp", "silence", True, id="guarded: dropped and recorded"),
    pytest.param("stranger", "53/udp", "silence", True, id="guarded over UDP: dropped and recorded"),
    pytest.param("stranger", "7000/tcp", "refused", True, id="a knock port answers as any port does"),
    pytest.param("stranger", "9000/udp", "refused", True, id="a knock port over UDP too"),
    pytest.param("stranger", "6999/tcp", "answered", True, id="a service on a trap works and is recorded"),
    pytest.param("stranger", "6999/udp", "answered", True, id="a service over UDP on a trap works and is recorded"),
    pytest.param("stranger", "7001/tcp", "refused", True, id="a trap without a service answers as any port does"),
    pytest.param("stranger", "80/tcp", "answered", False, id="what is not ours is left alone"),
    pytest.param("granted", "22/tcp", "answered", False, id="a grant opens its service"),
    pytest.param("granted", "53/udp", "silence", True, id="a grant opens no other service"),
    pytest.param("granted", "7000/tcp", "refused", True, id="a grantee's knocks are knocks"),
    pytest.param("trusted", "22/tcp", "answered", True, id="trusted: in, and recorded"),
    pytest.param("trusted", "7000/tcp", "refused", True, id="trusted: a knock is recorded, not dropped"),
    pytest.param("trusted", "6999/tcp", "answered", True, id="trusted: on a trap too"),
    pytest.param("trusted", "80/tcp", "answered", False, id="trusted: not recorded elsewhere"),
    pytest.param("banned", "22/tcp", "silence", False, id="banned: no guarded service"),
    pytest.param("banned", "7000/tcp", "silence", False, id="banned: no knock"),
    pytest.param("banned", "6999/tcp", "silence", False, id="banned: no trap"),
    pytest.param("banned", "80/tcp", "silence", False, id="banned: nothing else either"),
    pytest.param("its neighbour", "80/tcp", "answered", False, id="a ban is one address's, or one IPv6 prefix's"),
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("role", "service", "expected", "recorded"), CLAIMS)
def test_who_gets_where(
    guarded: tuple[Host, Host, Log], version: int, role: str, service: str, expected: str, recorded: bool
) -> None:
    gateway, client, log = guarded
    source = ROLES[version][role]
    sent = probe(client, source, at(gateway, version), service, expected)
    assert log.read() == ([f"{source} {service}"] * sent if recorded else [])


# A datagram to a HOST that answers from another address; `silence` if it does not.
CALL = """
import socket, sys
host, timeout = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.settimeout(float(timeout))
    try:
        s.sendto(b"x", socket.getaddrinfo(host, 53, type=socket.SOCK_DGRAM)[0][4])
        s.recvfrom(9)
        print("answered")
    except OSError:
        print("silence")
"""


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("10.99.0.255", id="broadcast"),
        pytest.param("ff02::1%eth0", id="multicast"),
        pytest.param("fd99::", id="anycast"),
    ],
)
def test_no_address_of_many_leads_around_the_guard(world: World, address: str) -> None:
    """The answer to a broadcast would begin a conversation that passes as established."""

    def call(seconds: float) -> str:
        return world.client.python(CALL, address, str(seconds)).stdout.strip()

    world.gateway.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")  # a router has the anycast address
    world.configure(CONFIG)
    with serving(world.gateway, "53/udp"):
        until(lambda: call(1) == "answered", "an answer without the rules")
        world.apply()
        assert call(0.3) == "silence"


def test_the_host_reaches_its_own_services(guarded: tuple[Host, Host, Log]) -> None:
    gateway, _, log = guarded
    for address in ("127.0.0.1", "::1", gateway.ipv4, gateway.ipv6):
        probe(gateway, address, address, "22/tcp", "answered")
    assert log.read() == []


def test_what_is_routed_on_is_none_of_ours(guarded: tuple[Host, Host, Log]) -> None:
    gateway, client, log = guarded
    gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    gateway.run("ip", "link", "add", "beyond", "type", "veth")
    gateway.run("ip", "link", "set", "beyond", "up")
    gateway.run("ip", "route", "add", "192.0.2.0/24", "dev", "beyond")
    client.run("ip", "route", "add", "192.0.2.0/24", "via", gateway.ipv4)
    gateway.nft(
        "table inet t { set seen { type ipv4_addr . inet_service; size 9; flags dynamic; };"
        " chain c { type filter hook forward priority 0; tcp dport 1-9999 add @seen { ip saddr . tcp dport }; }; }"
    )
    for source in (ROLES[4]["stranger"], ROLES[4]["banned"]):
        for service in ("22/tcp", "7000/tcp"):
            probe(client, source, "192.0.2.1", service, "silence")
    assert len(re.findall(r"198\.51\.100\.\d+ \. \d+", gateway.nft("list set inet t seen"))) == 4
    assert log.read() == []


def test_a_banned_neighbour_does_not_take_ipv6_away(world: World) -> None:
    """A ban is of a /64, and the router's address may be in it."""
    gateway, client = world.gateway, world.client
    take_roles(client)
    world.apply()
    gateway.nft("add element inet logknock banned6 { fe80:: timeout 1h, fd99:: timeout 1h }")
    with serving(gateway, "80/tcp"):
        for host in (gateway, client):
            host.run("ip", "neigh", "flush", "all")
        probe(client, ROLES[6]["stranger"], gateway.ipv6, "80/tcp", "answered")
        probe(client, client.ipv6, gateway.ipv6, "80/tcp", "silence")


# ---- deaf, not sampled


@pytest.mark.parametrize("version", [4, 6])
def test_of_a_noisy_source_nothing_is_recorded(world: World, version: int) -> None:
    """No n-th packet either: a scan in step with a limit could show the right knocks only (T1, T2)."""
    gateway, client = world.gateway, world.client
    target, stranger, trusted = at(gateway, version), ROLES[version]["stranger"], ROLES[version]["trusted"]
    take_roles(client)
    world.configure(CONFIG.replace("[firewall]", "[firewall]\nrate = 5\nburst = 10"))
    world.apply()
    with logging(gateway, client) as log, serving(gateway, "6999/udp"):
        client.python(FLOOD, stranger, target, "9000", "500")
        heard = log.read()
        assert set(heard) == {f"{stranger} 9000/udp"}
        assert 10 <= len(heard) < 100
        probe(client, stranger, target, "6999/udp", "answered")
        probe(client, stranger, target, "22/tcp", "silence")
        assert log.read() == []
        client.python(FLOOD, trusted, target, "9000", "100")
        assert log.read() == [f"{trusted} 9000/udp"] * 100
        gateway.nft(f"flush set inet logknock noisy{version}\nflush set inet logknock rate{version}")
        sent = probe(client, stranger, target, "22/tcp", "silence")
        assert log.read() == [f"{stranger} 22/tcp"] * sent


def test_who_goes_on_stays_deaf_and_who_is_silent_is_heard_again(world: World) -> None:
    gateway, client = world.gateway, world.client

    def left() -> list[float]:
        """What time the one noisy source of each version has left."""
        shown = (gateway.run("nft", "list", "set", "inet", "logknock", name).stdout for name in ("noisy4", "noisy6"))
        times = (re.findall(r"expires (?:(\d+)s)?(?:(\d+)ms)?", text) for text in shown)
        return [int(s or 0) + int(ms or 0) / 1000 for found in times for s, ms in found]

    def send(count: int) -> list[str]:
        for version in (4, 6):
            client.python(FLOOD, ROLES[version]["stranger"], at(gateway, version), "9000", str(count))
        return log.read()

    take_roles(client)
    world.apply()
    with logging(gateway, client) as log:
        send(100)
        assert len(left()) == 2
        until(lambda: max(left()) < 9, "its time goes by")
        assert send(1) == []
        assert max(left()) < 9, "T11: a packet now and then, which anybody can forge, does not prolong it"
        began = time.monotonic()
        assert send(100) == []
        # All of it again, but for what has gone by since, and what nft and the kernel round.
        assert all(0 <= 10 - seconds < time.monotonic() - began + 0.1 for seconds in left())
        until(lambda: not left(), "10 s of silence")
        assert send(1) == [f"{ROLES[version]['stranger']} 9000/udp" for version in (4, 6)]


# A datagram each to HOST PORT from COUNT addresses of a /64, such as fd98:0:0:64::.
FROM_ALL_OF = """
import socket, sys
prefix, host, port, count = sys.argv[1:]
for number in range(int(count)):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND, of IPv6 too: to have the addresses takes longer
        s.bind((f"{prefix}{number + 1:x}", 0))
        s.sendto(b"x", (host, int(port)))
"""


@pytest.mark.parametrize("mark", ["", "mark = 0x10000\n"], ids=["guard", "mark"])
def test_t17_all_addresses_of_a_64_are_one_source_of_packets(world: World, mark: str) -> None:
    """T17: who has one has an address for each packet. So its honest hosts share the rate; another /64 does not."""
    gateway, client = world.gateway, world.client
    take_roles(client)
    world.configure(CONFIG.replace("[firewall]", f"[firewall]\n{mark}rate = 5\nburst = 10"))
    world.apply()
    with logging(gateway, client) as log:
        client.python(FROM_ALL_OF, "fd98:0:0:64::", gateway.ipv6, "9000", "300")
        assert 10 <= len(log.read()) < 100
        client.python(FROM_ALL_OF, "fd98:0:0:64::ffff:", gateway.ipv6, "9000", "1")
        assert log.read() == [], "nor an address that had not sent anything"
        client.python(FROM_ALL_OF, "fd98:0:0:65::", gateway.ipv6, "9000", "2")
        assert log.read() == [f"fd98:0:0:65::{number} 9000/udp" for number in (1, 2)]
    listed = gateway.run("nft", "list", "set", "inet", "logknock", "noisy6").stdout
    assert re.findall(r"fd98:\S*", listed) == ["fd98:0:0:64::"]


@pytest.mark.parametrize("version", [4, 6])
def test_where_a_set_is_full_every_packet_is_recorded(world: World, version: int) -> None:
    """Neither lost nor sampled: spoofed sources that fill the sets gain nothing for a scan."""
    gateway, client = world.gateway, world.client
    first, second = ROLES[version]["stranger"], ROLES[version]["its neighbour"]
    take_roles(client)
    printed = gateway.logknock("rules", "print", "-c", str(world.config)).stdout
    for full in ("rate", "noisy"):
        text, count = re.subn(rf"(set {full}{version} .* size )65535", r"\g<1>1", printed)
        assert count == 1
        with logging(gateway, client) as log:
            gateway.nft(text)
            client.python(FLOOD, first, at(gateway, version), "9000", "100")
            assert len(log.read()) < 100
            client.python(FLOOD, second, at(gateway, version), "9000", "100")
            assert log.read() == [f"{second} 9000/udp"] * 100
            gateway.logknock("rules", "remove", "-c", str(world.config))


# ---- sessions that are there


@pytest.mark.parametrize("version", [4, 6])
def test_t38_a_session_from_before_connection_tracking_goes_on(world: World, version: int) -> None:
    """T38: this very load switches connection tracking on, which takes the session's next packet for a new one."""
    with serving(world.gateway, "22/tcp"), Session(world.client, at(world.gateway, version)) as session:
        world.apply()
        assert session.say() == "answered"
        probe(world.client, at(world.client, version), at(world.gateway, version), "22/tcp", "silence")


@pytest.mark.parametrize("version", [4, 6])
def test_t38_without_its_rule_that_session_would_be_cut(world: World, version: int) -> None:
    """T38: the rule is there for a reason; when this fails, it can go."""
    printed = world.gateway.logknock("rules", "print", "-c", str(world.config)).stdout
    rule = "tcp flags & (syn | ack) == ack socket wildcard 0 accept"
    assert printed.count(rule) == 1
    with serving(world.gateway, "22/tcp"), Session(world.client, at(world.gateway, version)) as session:
        world.gateway.nft(printed.replace(rule, ""))
        assert session.say(0.5) == "silence"


@pytest.mark.parametrize("version", [4, 6])
def test_t38_a_session_outlives_a_second_load_and_its_grant(world: World, version: int) -> None:
    """T38: made under the rules by a grant that ends; loaded again, and removed."""
    gateway, client = world.gateway, world.client
    world.apply()
    gateway.nft(f"add element inet logknock granted{version} {{ {at(client, version)} . tcp . 22 timeout 1h }}")
    with serving(gateway, "22/tcp"), Session(client, at(gateway, version)) as session:
        gateway.nft(f"flush set inet logknock granted{version}")
        assert session.say() == "answered"
        world.apply()
        assert session.say() == "answered"
        gateway.logknock("rules", "remove", "-c", str(world.config))
        assert session.say() == "answered"
