"""What SPA packets carry arrives whole through the real rules and a real NFLOG group; of all else the headers do.

Each claim holds for both rules files.
"""

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from logknock import netlink
from logknock.packet import ICMP, ICMP6, TCP, UDP, Carried, Packet, address_text
from logknock.sources.nflog import COPY_RANGE, Mail, Nflog

from ..netns import Host, pair
from .instruments import ROLES, at, running, take_roles
from .test_doctor import install, remedy
from .world import World, until

SPA_PORT, OTHER_PORT, KNOCK, GUARDED = 62201, 62300, 9000, 62250

ELEMENTS = f"""
add element inet logknock spa {{ tcp . {SPA_PORT}, udp . {SPA_PORT}-{OTHER_PORT}, icmp . 0-65535, ipv6-icmp . 0-65535 }}
add element inet logknock watched {{ udp . {KNOCK}, udp . {SPA_PORT}, tcp . {SPA_PORT} }}
add element inet logknock guarded {{ udp . {GUARDED} }}
add element inet logknock trusted4 {{ {ROLES[4]["trusted"]} }}
add element inet logknock trusted6 {{ {ROLES[6]["trusted"]} }}
add element inet logknock banned4 {{ {ROLES[4]["banned"]} }}
"""

# Sends what the words ask for from SOURCE to TARGET, `kind:port:length[:number[:sport]]` each. Kinds: udp; syn, ack or
# another name of a set of TCP flags; echo, reply and other names of ICMP types; fragment, the first of an echo request;
# boast, a datagram whose header says that it is longer than it is.
SEND = """
import ipaddress, os, socket, struct, sys, time
source, target, *words = sys.argv[1:]
s, d = ipaddress.ip_address(source).packed, ipaddress.ip_address(target).packed
six = len(s) == 16
family = socket.AF_INET6 if six else socket.AF_INET
flags = {"syn": 2, "syn-wrong": 2, "ack": 16, "syn-ack": 18, "syn-fin": 3, "syn-rst": 6, "psh-syn": 10}
types = {"echo": (8, 128), "reply": (0, 129), "unreachable": (3, 1), "fragment": (8, 128)}
def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
def raw(proto, data, fragment=0):
    if six:
        header = struct.pack("!IHBB16s16s", 6 << 28, len(data), proto, 64, s, d)
    else:
        rest = (os.getpid() & 0xFFFF, fragment, 64, proto, 0)
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), *rest, s, d)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
        out.sendto(header + data, (target, 0))
for number, word in enumerate(words):
    kind, port, size, *many = word.split(":")
    port, body = int(port), (b"SPA packet " * 200)[:int(size)]
    for again in range(int(many[0]) if many else 1):
        # Or an echo request's id: a new conversation each, where it is not said.
        sport = int(many[1]) if many[1:] else 20000 + (os.getpid() + number + again) % 20000
        if kind == "udp":
            with socket.socket(family, socket.SOCK_DGRAM) as out:
                out.bind((source, 0))
                out.sendto(body, (target, port))
        elif kind == "boast":
            raw(17, struct.pack("!HHHH", sport, port, 9 + len(body), 0) + body)
        elif kind in flags:
            head = struct.pack("!HHIIBBH", sport, port, 1, 0, 5 << 4, flags[kind], 64240)
            known = s + d + struct.pack("!HH", 6, 20 + len(body)) + head + bytes(4) + body
            wrong = kind == "syn-wrong"
            raw(6, head + struct.pack("!HH", 1 if wrong else checksum(known), 0) + body)
        else:
            head, rest = bytes((types[kind][six], 0)), struct.pack("!HH", sport, number) + body
            code = checksum(head + bytes(2) + rest)
            if kind == "fragment" and six:
                raw(44, struct.pack("!BBHI", 58, 0, 1, number) + head + bytes(2) + rest)
            elif kind == "fragment":
                raw(1, head + code.to_bytes(2, "big") + rest, 0x2000)
            else:  # the kernel sends it in fragments where it is too long for the link
                with socket.socket(family, socket.SOCK_RAW, 58 if six else 1) as out:
                    out.bind((source, 0))
                    out.sendto(head + code.to_bytes(2, "big") + rest, (target, 0))
"""


def pattern(length: int) -> bytes:
    return (b"SPA packet " * 200)[:length]


def wants(proto: int, dport: int) -> bool:
    return proto in (ICMP, ICMP6) or SPA_PORT <= dport <= OTHER_PORT


class Post(NamedTuple):
    """Two hosts, rules between them, and what comes of the client's packets."""

    gateway: Host
    client: Host
    source: Nflog
    mail: list[Carried]
    packets: list[Packet]

    def send(self, version: int, *words: str, role: str = "stranger") -> None:
        """Send from an address of the client's, and read until a knock that was sent behind has come."""
        target = at(self.gateway, version)
        self.client.python(SEND, ROLES[version][role], target, *words)
        self.client.python(SEND, ROLES[4]["sentinel"], self.gateway.ipv4, f"udp:{KNOCK}:1")
        last = len(self.packets)

        def is_over() -> bool:
            self.source.read(time.time(), self.packets.append)
            return any(address_text(found.src) == ROLES[4]["sentinel"] for found in self.packets[last:])

        until(is_over, "the last packet")
        self.packets.pop()

    @property
    def lengths(self) -> list[int]:
        """How much of each packet the records hold, but for the sentinel's."""
        found = []
        for _, data in self.source._recent:
            for message in netlink.messages(memoryview(data)):
                payload = bytes(netlink.attributes(message.body[4:])[9])
                if payload[12:16] != bytes(map(int, ROLES[4]["sentinel"].split("."))):
                    found.append(len(payload))
        return found

    def forget(self) -> None:
        for kept in (self.mail, self.packets, self.source._recent):
            kept.clear()
        self.source._recent_bytes = 0


@pytest.fixture(scope="module", params=["logknock.nft", "mark.nft"])
def posted(request: pytest.FixtureRequest) -> Iterator[Post]:
    with pair() as (gateway, client):
        gateway.run("nft", "-f", f"rules/{request.param}")
        gateway.nft(ELEMENTS)
        take_roles(client)
        mail: list[Carried] = []
        with gateway.inside():
            source = Nflog(5, lambda *_: True)
            source.count(lambda *_: True, frozenset({"in"}), mail=Mail(wants, mail.append))
        yield Post(gateway, client, source, mail, [])
        source.close()


@pytest.fixture
def post(posted: Post) -> Post:
    """With nothing in it; the sender is not noisy any more."""
    posted.forget()
    for version in (4, 6):
        for name in ("rate", "noisy"):
            posted.gateway.nft(f"flush set inet logknock {name}{version}")
    return posted


# ---- what is for SPA


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("kind", "proto", "longest"),
    [
        pytest.param("udp", UDP, 1500, id="UDP"),
        pytest.param("syn", TCP, 1440, id="a lone TCP SYN"),
        pytest.param("syn-wrong", TCP, 1440, id="a lone TCP SYN whose checksum is wrong"),
        pytest.param("psh-syn", TCP, 1440, id="a TCP SYN with PSH"),
        pytest.param("echo", ICMP, 1500, id="ICMP echo requests"),
    ],
)
def test_what_an_spa_packet_carries_arrives_whole(
    post: Post, version: int, kind: str, proto: int, longest: int
) -> None:
    """From the shortest to the longest, in one packet or (by the sender's kernel) in fragments."""
    sizes = (140, 141, 204, 1000, longest)
    post.send(version, *(f"{kind}:{SPA_PORT}:{size}" for size in sizes))
    assert [carried.payload for carried in post.mail] == [pattern(size) for size in sizes]
    number = ICMP6 if version == 6 and proto == ICMP else proto
    port = 0 if proto == ICMP else SPA_PORT
    assert {(address_text(c.packet.src), c.packet.proto, c.packet.dport) for c in post.mail} == {
        (ROLES[version]["stranger"], number, port)
    }
    assert post.packets == [], "neither a knock nor a wrong one"
    recent = list(post.source.recent(post.mail[0].packet.src))
    assert recent, "they are kept"
    assert {packet for _, packet in recent} == {None}, "and are none for whoever asks later, either"


def test_an_echo_reply_that_nobody_asked_for_arrives_whole_over_ipv4(post: Post) -> None:
    """The stock fwknop client sends ICMP so. Connection tracking calls it invalid, which is not established."""
    post.send(4, f"reply:{SPA_PORT}:204")
    assert [(carried.packet.proto, carried.payload) for carried in post.mail] == [(ICMP, pattern(204))]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["udp", "syn", "echo"])
def test_trusted_addresses_send_them_too_and_banned_ones_in_vain(post: Post, version: int, kind: str) -> None:
    post.send(version, f"{kind}:{SPA_PORT}:200", role="trusted")
    assert [carried.payload for carried in post.mail] == [pattern(200)]
    post.forget()
    if version == 4:
        post.send(version, f"{kind}:{SPA_PORT}:200", role="banned")
        assert (post.mail, post.packets) == ([], [])


@pytest.mark.parametrize("kind", ["udp", "echo"])
def test_who_sends_more_of_them_than_anybody_needs_is_not_heard(post: Post, kind: str) -> None:
    """T13: a forged packet costs the daemon an HMAC a key, and the kernel's limiter stands before that."""
    post.send(4, f"{kind}:{SPA_PORT}:200:300")
    assert 40 <= len(post.mail) < 100
    post.forget()
    post.send(4, f"{kind}:{SPA_PORT}:200")
    assert post.mail == [], "deaf for 10 s, and not at the rate"


# ---- what is not


@pytest.mark.parametrize("version", [4, 6])
def test_shorter_ones_are_knocks_as_anywhere_and_all_else_is_cut(post: Post, version: int) -> None:
    """A packet shorter than any SPA packet is to an SPA port what it is to another: here, a knock."""
    shortest = 168 - (28 if version == 4 else 48)
    words = [f"udp:{SPA_PORT}:{shortest - 1}", f"udp:{KNOCK}:1400", f"udp:{GUARDED}:1400"]
    post.send(version, *words, f"udp:{OTHER_PORT}:{shortest - 1}")
    assert post.mail == []
    assert [packet.dport for packet in post.packets] == [SPA_PORT, KNOCK, GUARDED]
    assert post.lengths == [COPY_RANGE] * 3


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_guarded_is_no_spa_packet_though_it_is_among_spa_ports(post: Post, version: int) -> None:
    """Neither a stranger's nor a trusted one's: it is for the service."""
    for role in ("stranger", "trusted"):
        post.send(version, f"udp:{GUARDED}:300", role=role)
    assert post.mail == []
    assert post.lengths == [COPY_RANGE] * 2


CALL = """
import socket, sys
source, target, port = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(10)
    s.bind((source, 0))
    for size in (200, 201, 202, 20):
        s.sendto(bytes(size), (target, int(port)))
        assert len(s.recv(2000)) == size
"""

ANSWER = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    s.bind(("::", int(sys.argv[1])))
    print("up", flush=True)
    while True:
        s.sendto(*s.recvfrom(2000))
"""


@pytest.mark.parametrize("version", [4, 6])
def test_what_belongs_to_a_conversation_is_no_spa_packet_and_a_service_there_hears_all(
    post: Post, version: int
) -> None:
    """It is passed on like a knock, and what comes after the service's answer is established."""
    with running(post.gateway, sys.executable, "-c", ANSWER, str(OTHER_PORT), ready="up"):
        target = at(post.gateway, version)
        post.client.python(CALL, ROLES[version]["stranger"], target, str(OTHER_PORT))
        post.send(version)
    assert [len(carried.payload) for carried in post.mail] == [200], "the first is a stranger's, and passed on"
    assert (post.packets, post.lengths) == ([], [200 + (28 if version == 4 else 48)])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["ack", "syn-ack", "syn-fin", "syn-rst"])
def test_other_tcp_packets_carry_nothing(post: Post, version: int, kind: str) -> None:
    post.send(version, f"{kind}:{SPA_PORT}:200")
    assert post.mail == []
    assert [packet.proto for packet in post.packets] == [TCP], "a wrong knock, perhaps"


@pytest.mark.parametrize(
    ("version", "kind"),
    [*((version, kind) for version in (4, 6) for kind in ("unreachable", "fragment", "boast")), (6, "reply")],
)
def test_t26_other_icmp_fragments_and_headers_that_say_too_much_carry_nothing(
    post: Post, version: int, kind: str
) -> None:
    """T23, T26."""
    post.send(version, f"{kind}:{SPA_PORT}:200")
    assert post.mail == []
    assert len(post.packets) == (kind == "boast")


def test_without_mail_nothing_is_copied_but_headers(post: Post) -> None:
    """The kernel is asked anew with each change."""
    nobody: Callable[..., bool] = lambda *_: True  # noqa: E731
    post.source.count(nobody, frozenset({"in"}))
    post.send(4, f"udp:{SPA_PORT}:300")
    assert post.mail == []
    assert [packet.dport for packet in post.packets] == [SPA_PORT]
    assert post.lengths == [COPY_RANGE]
    post.forget()
    post.source.count(nobody, frozenset({"in"}), mail=Mail(wants, post.mail.append))
    post.send(4, f"udp:{SPA_PORT}:300")
    assert [carried.payload for carried in post.mail] == [pattern(300)]


# ---- another firewall's log


@pytest.mark.parametrize("program", ["iptables", "iptables-legacy"])
@pytest.mark.parametrize(
    ("options", "whole"),
    [
        pytest.param([], True, id="as rules/iptables.rules has it"),
        pytest.param(["--nflog-size", "128"], False, id="cut"),
    ],
)
def test_what_iptables_logs_is_whole_unless_it_says_otherwise(
    hosts: tuple[Host, Host], program: str, options: list[str], whole: bool
) -> None:
    """With [firewall] record = false it is this that is read."""
    gateway, client = hosts
    take_roles(client)
    for family in (program, program.replace("ip", "ip6", 1)):
        gateway.run(family, "-A", "INPUT", "-j", "NFLOG", "--nflog-group", "5", *options)
    mail: list[Carried] = []
    with gateway.inside():
        source = Nflog(5, lambda *_: True)
    try:
        source.count(lambda *_: True, frozenset({"in"}), mail=Mail(wants, mail.append))
        post = Post(gateway, client, source, mail, [])
        for version in (4, 6):
            post.send(version, *(f"{kind}:{SPA_PORT}:700" for kind in ("udp", "syn", "echo")))
        assert [carried.payload for carried in mail] == ([pattern(700)] * 6 if whole else [])
    finally:
        source.close()
        for family in (program, program.replace("ip", "ip6", 1)):
            gateway.run(family, "-F")


def test_t10_what_our_rules_and_the_hosts_log_counts_once_and_what_is_sent_again_twice(
    hosts: tuple[Host, Host],
) -> None:
    """T10: mark.nft records knocks that iptables drops and records, too. The second record is no replay."""
    gateway, client = hosts
    gateway.run("nft", "-f", "rules/mark.nft")
    gateway.nft(ELEMENTS)
    take_roles(client)
    for family in ("iptables", "ip6tables"):
        gateway.run(family, "-A", "INPUT", "-j", "NFLOG", "--nflog-group", "5")
    mail: list[Carried] = []
    with gateway.inside():
        source = Nflog(5, lambda *_: True)
    try:
        source.count(lambda *_: True, frozenset({"in"}), mail=Mail(wants, mail.append))
        post = Post(gateway, client, source, mail, [])
        for version in (4, 6):
            post.send(version, *(f"{kind}:{SPA_PORT}:700" for kind in ("udp", "syn", "echo")))
        assert len(mail) == 6
        assert post.lengths.count(700 + 28) >= 4, "each was recorded twice"
        post.forget()
        post.send(4, f"syn:{SPA_PORT}:700:3:20000")
        assert len(mail) == 3
        assert len({carried._replace(packet=carried.packet._replace(time=0.0)) for carried in mail}) == 1
    finally:
        source.close()


# ---- rules of an earlier version, which knew nothing of it


def earlier(text: str) -> str:
    """The rules as they were before there was SPA, and before a /64 was one source."""
    assert text.count(" & ffff:ffff:ffff:ffff::") == 4
    text = re.sub(r" & ffff:ffff:ffff:ffff::(?= limit| timeout| @noisy6)", "", text)
    text = re.sub(r"^.*\bspa\b.*\n", "", text.replace("log group 5 snaplen 128", "log group 5"), flags=re.MULTILINE)
    return re.sub(r"^add element inet logknock spa \{[^}]*\}\n", "", text, flags=re.MULTILINE)


PLAIN = """
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp"]
"""


def table(host: Host) -> str:
    return host.run("nft", "-s", "list", "table", "inet", "logknock").stdout


@pytest.mark.parametrize("firewall", ["", "[firewall]\nmark = 0x10000\n"], ids=["guard", "mark"])
def test_rules_of_an_earlier_version_are_replaced_and_come_back_whole(world: World, firewall: str) -> None:
    """T38: in one transaction; and an undo leaves no set that the earlier version would not know."""
    gateway = world.gateway
    world.configure(firewall + PLAIN)
    printed = gateway.logknock("rules", "print", "-c", str(world.config)).stdout
    gateway.nft(earlier(printed))
    before = table(gateway)
    assert "spa" not in before
    assert before.count("ffff:ffff:ffff:ffff::") == 1
    done = gateway.logknock("rules", "apply", "-c", str(world.config), "--confirm", "1s", check=False)
    assert "undone" in done.stderr
    assert table(gateway) == before
    world.apply()
    assert "set spa {" in table(gateway)
    assert "ffff:ffff:ffff:ffff:: limit" in table(gateway)
    assert gateway.logknock("rules", "diff", "-c", str(world.config)).stdout == ""


def test_an_earlier_table_whose_guard_is_gone_is_still_ours(world: World) -> None:
    world.configure(PLAIN)
    gateway = world.gateway
    gateway.nft(earlier(gateway.logknock("rules", "print", "-c", str(world.config)).stdout))
    gateway.nft("flush chain inet logknock guard\ndelete chain inet logknock guard")
    world.apply()
    assert "set spa {" in table(gateway)


# ---- rules and configuration together


SPA = """
[doors.vpn]
opens = ["22/tcp"]
spa = {ports = ["62201/udp", "62201/tcp", "50000-50999/udp", "icmp"]}
[clients.vpn.laptop]
key = "sixteen bytes of"
hmac_key = "another sixteen bytes"
allow = ["22/tcp"]
"""


def test_what_is_configured_is_in_the_set(world: World) -> None:
    world.configure(SPA)
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config))
    assert "0 traps, 5 ranges of SPA ports; NFLOG group 5" in done.stdout
    assert set(world.granted("spa")) == {
        "tcp . 62201", "udp . 62201", "udp . {'range': [50000, 50999]}",
        "icmp . {'range': [0, 65535]}", "ipv6-icmp . {'range': [0, 65535]}",
    }  # fmt: skip
    world.configure(PLAIN)
    difference = json.loads(
        world.gateway.logknock("rules", "diff", "--json", "-c", str(world.config), check=False).stdout
    )
    assert difference["elements"]["spa"] == {
        "added": [],
        "removed": ["icmp . 0-65535", "ipv6-icmp . 0-65535", "tcp . 62201", "udp . 50000-50999", "udp . 62201"],
    }
    world.apply()
    assert world.granted("spa") == {}


def test_kept_rules_of_an_earlier_version_are_put_back_and_what_they_lack_is_said(world: World) -> None:
    """A host that was updated and rebooted: the doors are guarded as before, and SPA waits for `rules apply`."""
    world.configure(PLAIN)
    world.apply()
    kept = world.config.parent / "state" / "rules.nft"
    kept.write_text(earlier(kept.read_text()))
    world.gateway.nft("delete table inet logknock")
    world.configure(SPA)
    with world.daemon() as daemon:
        daemon.wait_for("they are put back as they were loaded last")
        assert "set spa" not in table(world.gateway)
        daemon.wait_for("set inet logknock spa lacks")
        assert daemon.says("logknock rules apply")
        world.apply()
        daemon.read()
        daemon.lines.clear()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        daemon.counter("records")  # all that there was to say of the reload has been said
        assert not daemon.says("lacks")


def test_somebody_who_takes_a_port_out_of_the_set_is_noticed(world: World) -> None:
    world.configure(SPA)
    world.apply()
    with world.daemon() as daemon:
        world.gateway.nft("delete element inet logknock spa { tcp . 62201 }")
        daemon.wait_for("put back")
        until(lambda: "tcp . 62201" in world.granted("spa"), "the rules")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A host whose rules are as the configuration asks, with commands by their names."""
    with pair() as (gateway, client):
        world = World(gateway, client, tmp_path_factory.mktemp("sound") / "logknock.toml")
        world.configure(SPA)
        install(world)
        world.apply()
        assert told(world) == []
        yield world


RAW = "nft add table inet r; nft 'add chain inet r pre { type filter hook prerouting priority raw; }'; nft"
FAULTS = [
    pytest.param(
        "nft delete element inet logknock spa '{ udp . 62201 }'", "set-spa", "lacks 62201/udp: no SPA packet",
        id="a port that is not in the set",
    ),
    pytest.param("nft flush set inet logknock spa", "set-spa", "lacks icmp, 62201/tcp", id="none is"),
    pytest.param(
        "nft add element inet logknock spa '{ udp . 7 }'", "set-spa", "still holds 7/udp", id="one of an older one",
    ),
    pytest.param(
        "nft flush chain inet logknock tell; nft add rule inet logknock tell log group 5 snaplen 128",
        "log-rule", "are logged and cut (in inet logknock tell)", id="what is logged is cut",
    ),
    pytest.param(
        f"{RAW} add rule inet r pre udp dport 60000-65535 drop",
        "dropped-before", "drops 62201/udp", id="dropped before",
    ),
    pytest.param(
        f"{RAW} add rule inet r pre icmp type echo-request drop; nft add rule inet r pre meta l4proto ipv6-icmp drop",
        "dropped-before", "drops icmp before", id="ICMP dropped before",
    ),
    pytest.param(
        "iptables -t raw -A PREROUTING -p icmp --icmp-type echo-request -j DROP;"
        " ip6tables-legacy -t raw -A PREROUTING -p ipv6-icmp -j DROP",
        "dropped-before", "drops icmp before", id="ICMP dropped before by iptables",
    ),
    pytest.param(
        "nft add table ip r; nft 'add chain ip r pre { type filter hook prerouting priority raw; policy drop; }'",
        "dropped-before", "drops 62201/tcp, 50000/udp, 50999/udp, 62201/udp, icmp before",
        id="all of IPv4 dropped before",
    ),
]  # fmt: skip


def told(world: World) -> list[tuple[str, str, str]]:
    """What the doctor finds wrong with the rules: check, text, remedy."""
    shown = world.gateway.logknock("doctor", "--json", "-c", str(world.config), check=False).stdout
    found = [finding for finding in json.loads(shown)["findings"] if finding["level"] in ("error", "warning")]
    checks = ("set-spa", "log-rule", "dropped-before", "table", "set-watched")
    return [(each["check"], each["text"], each["remedy"]) for each in found if each["check"] in checks]


@pytest.mark.parametrize(("fault", "check", "text"), FAULTS)
def test_the_doctor_finds_what_keeps_spa_packets_from_being_read(
    sound: World, fault: str, check: str, text: str
) -> None:
    sound.gateway.run("sh", "-ec", fault)
    try:
        first, *more = told(sound)
        assert first[0] == check
        assert text in first[1]
        for each in (first, *more):
            remedy(sound, each[2])
        assert told(sound) == []
    finally:
        sound.gateway.run("sh", "-c", "nft flush ruleset; ip6tables-legacy -t raw -F")
        sound.apply()


def test_the_doctor_finds_a_firewall_of_ones_own_that_logs_no_spa_packets_or_parts_of_them(sound: World) -> None:
    """With `record = false` the host's own rules are to log them."""
    own = SPA + "[firewall]\nmark = 0x10000\nrecord = false\n"
    sound.configure(own)
    chain = "table inet host {{ chain in {{ type filter hook input priority 0; policy drop; {}; }}; }}"
    try:
        sound.apply()
        for rules, text in (
            ("tcp dport 1-65535 log group 5", "packets to 50000/udp, 50999/udp, 62201/udp, icmp, where SPA"),
            ("icmp type echo-request accept; log group 5", "packets to icmp, where SPA"),
            ("log group 5 snaplen 128", "are logged and cut (in inet host in)"),
            ("log group 5", ""),
        ):
            sound.gateway.nft(chain.format(f"meta mark & 0x10000 == 0x10000 accept; {rules}"))
            found = [each[1] for each in told(sound) if each[0] == "log-rule"]
            sound.gateway.nft("delete table inet host")
            assert [text in each for each in found] == ([True] if text else [])
    finally:
        sound.configure(SPA)
        sound.apply()
