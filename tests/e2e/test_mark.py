"""rules/mark.nft in a kernel: who gets the mark, and what is left alone. It is the host that drops, not our rules."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ..netns import Host, pair
from .instruments import FLOOD, ROLES, Log, Session, at, bytecode, logging, probe, serving, take_roles
from .test_rules import CONFIG, SETS
from .world import World, until

MARKED = CONFIG.replace("[firewall]", "[firewall]\nmark = 0x40000")

# Somebody else's mark is on every packet; what has ours and theirs may come in, and on one port what has theirs alone.
FIREWALL = """
table inet host {
    chain others { type filter hook prerouting priority raw; meta mark set 0x5; }
    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        meta mark 0x40005 accept
        meta mark 0x5 tcp dport { 80, 6999 } accept
    }
}
"""


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host, Log]]:
    """A gateway with rules, elements, servers and a firewall of its own, a client of many addresses, and the log."""
    with pair() as (gateway, client):
        world = World(gateway, client, tmp_path_factory.mktemp("marked") / "logknock.toml")
        world.configure(MARKED)
        world.apply()
        gateway.nft(FIREWALL)
        gateway.nft(SETS)
        take_roles(client)
        with serving(gateway, "22/tcp", "53/udp", "80/tcp", "6999/tcp"), logging(gateway, client) as log:
            for version in (4, 6):  # so that they know each other as neighbours: no packet waits, and overtakes none
                probe(client, ROLES[version]["stranger"], at(gateway, version), "80/tcp", "answered")
            yield gateway, client, log


CLAIMS = [
    pytest.param("stranger", "22/tcp", "silence", True, id="guarded: no mark, and recorded"),
    pytest.param("stranger", "53/udp", "silence", True, id="guarded over UDP: no mark, and recorded"),
    pytest.param("stranger", "7000/tcp", "silence", True, id="a knock is recorded, and has no mark"),
    pytest.param("stranger", "9000/udp", "silence", True, id="a knock over UDP too"),
    pytest.param("stranger", "6999/tcp", "answered", True, id="a service on a trap works, is recorded, has no mark"),
    pytest.param("stranger", "80/tcp", "answered", False, id="what is not ours is left alone"),
    pytest.param("granted", "22/tcp", "answered", False, id="a grant marks its service, and leaves other bits"),
    pytest.param("granted", "53/udp", "silence", True, id="a grant marks no other service"),
    pytest.param("granted", "7000/tcp", "silence", True, id="a grantee's knocks are knocks"),
    pytest.param("granted", "80/tcp", "answered", False, id="a grant marks nothing that is not guarded"),
    pytest.param("trusted", "22/tcp", "answered", True, id="trusted: marked, and recorded"),
    pytest.param("trusted", "53/udp", "answered", True, id="trusted: for every guarded service"),
    pytest.param("trusted", "7000/tcp", "silence", True, id="trusted: a knock is recorded, and has no mark"),
    pytest.param("trusted", "80/tcp", "answered", False, id="trusted: nothing else has a mark"),
    pytest.param("banned", "22/tcp", "silence", False, id="banned: no guarded service"),
    pytest.param("banned", "7000/tcp", "silence", False, id="banned: no knock"),
    pytest.param("banned", "80/tcp", "silence", False, id="banned: nothing else either"),
    pytest.param("its neighbour", "80/tcp", "answered", False, id="a ban is one address's, or one IPv6 prefix's"),
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("role", "service", "expected", "recorded"), CLAIMS)
def test_who_gets_the_mark(
    marked: tuple[Host, Host, Log], version: int, role: str, service: str, expected: str, recorded: bool
) -> None:
    gateway, client, log = marked
    source = ROLES[version][role]
    packets = probe(client, source, at(gateway, version), service, expected)
    assert log.read() == ([f"{source} {service}"] * packets if recorded else [])


TUNNEL = """
table inet host {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        meta mark & 0x40000 == 0x40000 accept
        tcp dport 80 accept
    }
}
add element inet logknock granted4 { 10.99.0.2 . udp . 4789 timeout 1h }
"""


def test_what_comes_out_of_a_tunnel_that_a_grantee_may_use_has_no_mark(world: World) -> None:
    """The kernel gives what it unpacks the mark of what it was in: a door to vxlan is no door to all that is inside."""
    world.configure(MARKED + '[doors.tunnel]\nsequence = ["7001/tcp", "8001/tcp", "9001/udp"]\nopens = ["4789/udp"]\n')
    world.apply()
    world.gateway.nft(TUNNEL)
    for host, other in ((world.gateway, world.client), (world.client, world.gateway)):
        link = f"vx0 type vxlan id 7 local {host.ipv4} remote {other.ipv4} dstport 4789"
        host.run("ip", "link", "add", *link.split())
        host.run("ip", "addr", "add", f"{host.ipv4.replace('.99.', '.98.')}/24", "dev", "vx0")
        host.run("ip", "link", "set", "vx0", "up")
    with serving(world.gateway, "80/tcp", "3306/tcp"):
        probe(world.client, "10.98.0.2", "10.98.0.1", "80/tcp", "answered")
        probe(world.client, "10.98.0.2", "10.98.0.1", "3306/tcp", "silence")


@pytest.mark.parametrize("version", [4, 6])
def test_t38_sessions_go_on_and_need_no_mark(world: World, version: int) -> None:
    """T38: made before the load that switches connection tracking on, and under the rules by a grant that ends."""
    gateway, client = world.gateway, world.client
    world.configure(MARKED)
    with serving(gateway, "22/tcp"), Session(client, at(gateway, version)) as session:
        world.apply()
        gateway.nft(FIREWALL.replace("policy drop", "policy accept"))
        assert session.say() == "answered"
        gateway.nft(f"add element inet logknock granted{version} {{ {at(client, version)} . tcp . 22 timeout 1h }}")
        gateway.nft("delete table inet host\n" + FIREWALL)
        with Session(client, at(gateway, version)) as granted:
            gateway.nft(f"flush set inet logknock granted{version}")
            assert granted.say() == "answered"
            gateway.logknock("rules", "remove", "-c", str(world.config))
            assert granted.say() == "answered"


@pytest.mark.parametrize("version", [4, 6])
def test_of_a_noisy_source_nothing_is_recorded(world: World, version: int) -> None:
    """As under the guard: no n-th packet either (T1, T2), and what is deaf to it drops nothing of it."""
    gateway, client = world.gateway, world.client
    target, stranger = at(gateway, version), ROLES[version]["stranger"]
    take_roles(client)
    world.configure(MARKED.replace("[firewall]", "[firewall]\nrate = 5\nburst = 10"))
    world.apply()
    with logging(gateway, client) as log, serving(gateway, "80/tcp"):
        client.python(FLOOD, stranger, target, "9000", "500")
        assert 10 <= len(log.read()) < 100
        probe(client, stranger, target, "80/tcp", "answered")
        probe(client, stranger, target, "7000/tcp", "refused")
        assert log.read() == []


def test_nothing_is_closed_without_a_firewall_that_does_so(world: World) -> None:
    """It marks and records; whether anything is dropped is the host's business."""
    world.configure(MARKED)
    with world.service(22):
        world.apply()
        until(world.reaches, "an answer")


def test_a_rule_that_sets_the_mark_as_a_whole_is_warned_of_and_found(world: World) -> None:
    """It would take the bit away again, and nobody would know why the door that opened lets nobody in."""
    world.configure(MARKED)
    rules = (("PREROUTING", "CONNMARK", "--restore-mark"), ("INPUT", "MARK", "--set-mark", "1"))
    for chain, target, *options in rules:
        world.gateway.run("iptables-nft", "-t", "mangle", "-A", chain, "-j", target, *options)
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config))
    warned = [line for line in done.stderr.splitlines() if "a rule may put another mark" in line]
    assert [line.partition(": a rule")[0] for line in warned] == [
        f"logknock: warning: iptables, table mangle, chain {chain}" for chain, *_ in rules
    ]
    doctor = world.gateway.logknock("doctor", "--json", "-c", str(world.config), check=False).stdout
    assert "mark-lost" in {finding["check"] for finding in json.loads(doctor)["findings"]}
    world.gateway.run("iptables-nft", "-t", "mangle", "-F")
    assert world.gateway.logknock("rules", "apply", "-c", str(world.config)).stderr == ""


def test_the_file_loads_as_it_stands_and_marks_nobody(world: World) -> None:
    for _ in range(2):
        world.gateway.run("nft", "-f", "rules/mark.nft")
    shown = world.gateway.run("nft", "list", "table", "inet", "logknock").stdout
    assert "meta mark set meta mark | 0x00010000" in shown
    assert "elements" not in shown


# ---- in place of logknock.nft


def rules(host: Host) -> str:
    """Our table, without what runs out."""
    shown = host.run("nft", "-s", "list", "table", "inet", "logknock").stdout
    return re.sub(r" expires \w+", "", shown) + bytecode(host)


@pytest.mark.parametrize("first", ["guard", "mark"])
def test_each_of_the_two_replaces_the_other_and_leaves_nothing_of_it(world: World, first: str) -> None:
    """With the doors that are open, in one transaction, and under --confirm back again."""
    gateway = world.gateway
    texts = {"guard": CONFIG, "mark": MARKED}
    (second,) = texts.keys() - {first}
    grant = "add element inet logknock granted4 { 203.0.113.1 . tcp . 22 timeout 1h }"
    pure = {}
    for name in (second, first):
        world.configure(texts[name])
        gateway.logknock("rules", "remove", "-c", str(world.config))
        world.apply()
        gateway.nft(grant)
        pure[name] = rules(gateway)
    assert set(re.findall(r"chain (\w+) {", pure["mark"])) - set(re.findall(r"chain (\w+) {", pure["guard"])) == {
        "admit"
    }
    world.configure(texts[second])
    done = gateway.logknock("rules", "apply", "-c", str(world.config), "--confirm", "1s", check=False)
    assert "undone" in done.stderr
    assert rules(gateway) == pure[first]
    world.apply()
    assert rules(gateway) == pure[second]


def test_the_replacing_is_one_transaction(world: World) -> None:
    """There is no moment at which the chain at prerouting has no rules, for one who looks all the time."""
    gateway = world.gateway
    world.configure(CONFIG)
    world.apply()
    watcher = """
import select, subprocess, sys
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    shown = subprocess.run(["nft", "list", "chain", "inet", "logknock", "guard"], capture_output=True, text=True).stdout
    if "@guarded" not in shown:
        print("empty", flush=True)
print("done", flush=True)
"""

    process = gateway.start(sys.executable, "-c", watcher, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        for text in (MARKED, CONFIG):
            world.configure(text)
            world.apply()
    said, _ = process.communicate("\n", timeout=20)
    assert said == "done\n"


def test_a_knock_opens_through_the_hosts_firewall(world: World) -> None:
    """The whole way: knocks that are dropped behind our table open ssh there, over IPv4 and IPv6."""
    world.configure(MARKED)
    world.apply()
    world.gateway.nft(FIREWALL)
    with world.service(22), world.daemon():
        for address in (world.gateway.ipv4, world.gateway.ipv6):
            assert not world.reaches(address=address)
            world.knock("7000/tcp", "8000/tcp", "9000/udp", address=address)
            until(lambda address=address: world.reaches(address=address), "the door is open")  # type: ignore[misc]
