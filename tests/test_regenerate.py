"""What firewalls log today: the real kernel's records of known packets, by way of each program that writes them down.

Each line that says anything must say exactly what was sent, and the corpus must hold a line of each shape. Where one
is missing, the test prints it as a block for the corpus.
"""

import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import pytest

from logknock.packet import ACK, FIN, PSH, RST, SYN, TCP, UDP, URG, Packet
from logknock.records import CWR, ECE, Grammar, Wanted
from logknock.stamps import Dates

from . import corpus_files, peers
from .netns import Host, pair

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_TCP = Struct("!HHIIBBHHH")
_UDP = Struct("!HHHH")

ROUTER_ALERT = bytes.fromhex("94040000")  # an IPv4 option (RFC 2113)
HOP_BY_HOP = bytes.fromhex("0502000001 00".replace(" ", ""))  # IPv6's router alert (RFC 2711), padded
MAXIMUM_SEGMENT = bytes.fromhex("020405b4")
MORE_FRAGMENTS = 0x2000

CLIENT, GATEWAY, BEHIND = ("10.99.0.2", "fd99::2"), ("10.99.0.1", "fd99::1"), ("192.0.2.7", "fd97::7")
KNOCK = 7000

# The last packet of all, and what a line about it has in each shape.
LAST_PORT = 29999
FENCE = re.compile(rb'SPT=29999 |"src_port": 29999,')


class Case(NamedTuple):
    """A packet as it is put on the wire (from the IP header on), and what a record of it says.

    raw: as it comes in. whole: as a program would get it, with its fragments put together. None: no packet.
    """

    name: str
    data: tuple[bytes, ...]
    raw: Packet | None
    whole: Packet | None


def tcp(sport: int, flags: int, options: bytes = b"") -> bytes:
    return _TCP.pack(sport, KNOCK, 12345, 0, (5 + len(options) // 4) << 4, flags, 64240, 0, 0) + options


def udp(sport: int, payload: bytes = b"x") -> bytes:
    return _UDP.pack(sport, KNOCK, 8 + len(payload), 0) + payload


def ip(version: int, proto: int, payload: bytes, ends: Sequence[str] = GATEWAY) -> bytes:
    return ipv4(proto, payload, target=ends[0]) if version == 4 else ipv6(proto, payload, target=ends[1])


def ipv4(proto: int, payload: bytes, *, options: bytes = b"", fragment: int = 0, target: str = GATEWAY[0]) -> bytes:
    src, dst = ip_address(CLIENT[0]).packed, ip_address(target).packed
    words = 5 + len(options) // 4
    head = _IPV4.pack(0x40 | words, 0, words * 4 + len(payload), 77, fragment, 64, proto, 0, src, dst)
    return head + options + payload


def ipv6(proto: int, payload: bytes, *, target: str = GATEWAY[1]) -> bytes:
    src, dst = ip_address(CLIENT[1]).packed, ip_address(target).packed
    return _IPV6.pack(6 << 28, len(payload), proto, 64, src, dst) + payload


def cases() -> Iterator[Case]:
    """Packets of every kind; each has a source port of its own."""
    ports = iter(range(20000, LAST_PORT))
    for version in (4, 6):
        yield from _plain(version, ports)
        yield from _never(version)
    sport = next(ports)
    yield Case("with an IP option", (ipv4(TCP, tcp(sport, SYN), options=ROUTER_ALERT),), *_twice(4, TCP, sport, SYN))
    sport = next(ports)
    whole = udp(sport, b"x" * 64)
    parts = ipv4(UDP, whole[:32], fragment=MORE_FRAGMENTS), ipv4(UDP, whole[32:], fragment=4)
    yield Case("in two fragments", parts, None, _packet(4, UDP, sport, 0))
    sport = next(ports)
    data = ipv6(0, bytes((TCP, 0)) + HOP_BY_HOP + tcp(sport, SYN))
    yield Case("behind an IPv6 hop-by-hop header", (data,), *_twice(6, TCP, sport, SYN))
    yield Case("an IPv6 fragment", (ipv6(44, bytes((UDP, 0, 0, 1, 0, 0, 0, 9)) + udp(next(ports))),), None, None)


def _plain(version: int, ports: Iterator[int]) -> Iterator[Case]:
    flagged = {
        "SYN": SYN,
        "SYN for ECN": SYN | ECE | CWR,
        "SYN ACK": SYN | ACK,
        "ACK": ACK,
        "PSH ACK": PSH | ACK,
        "RST": RST,
        "FIN PSH URG": FIN | PSH | URG,
        "no flag": 0,
        "every flag": FIN | SYN | RST | PSH | ACK | URG | ECE | CWR,
    }
    for name, flags in flagged.items():
        sport = next(ports)
        data = ip(version, TCP, tcp(sport, flags))
        yield Case(f"TCP over IPv{version}, {name}", (data,), *_twice(version, TCP, sport, flags))
    sport = next(ports)
    data = ip(version, TCP, tcp(sport, SYN, MAXIMUM_SEGMENT))
    yield Case(f"TCP over IPv{version} with an option", (data,), *_twice(version, TCP, sport, SYN))
    for name, payload in (("a datagram", b"x"), ("an empty datagram", b"")):
        sport = next(ports)
        data = ip(version, UDP, udp(sport, payload))
        yield Case(f"{name} over IPv{version}", (data,), *_twice(version, UDP, sport, 0))


def _never(version: int) -> Iterator[Case]:
    """What is no knock, though some of it has ports in it (T23)."""
    inner = ip(version, TCP, tcp(7777, SYN))
    icmp, unreachable = (1, b"\3\3") if version == 4 else (58, b"\1\4")
    echo = b"\x08\0" if version == 4 else b"\x80\0"
    yield Case("an ICMP error", (ip(version, icmp, unreachable + bytes(6) + inner),), None, None)
    yield Case("an ICMP error cut short", (ip(version, icmp, unreachable + bytes(6) + inner[:-8]),), None, None)
    yield Case("a ping", (ip(version, icmp, echo + b"\0\0\0\7\0\1"),), None, None)
    yield Case("TCP cut short", (ip(version, TCP, tcp(7777, SYN)[:12]),), None, None)
    yield Case("UDP cut short", (ip(version, UDP, udp(7777)[:6]),), None, None)
    yield Case("SCTP", (ip(version, 132, udp(7777) + bytes(16)),), None, None)
    yield Case("a protocol that nobody knows", (ip(version, 253, udp(7777)),), None, None)


def _packet(version: int, proto: int, sport: int, flags: int, target: Sequence[str] = GATEWAY) -> Packet:
    at = 0 if version == 4 else 1
    return Packet(0.0, ip_address(CLIENT[at]).packed, ip_address(target[at]).packed, proto, sport, KNOCK, flags)


def _twice(version: int, proto: int, sport: int, flags: int) -> tuple[Packet, Packet]:
    packet = _packet(version, proto, sport, flags)
    return packet, packet


CASES = tuple(cases())
FORWARDED = tuple(
    Case("", (ip(version, TCP, tcp(29000 + version, SYN), BEHIND),), packet, packet)
    for version in (4, 6)
    for packet in (_packet(version, TCP, 29000 + version, SYN, BEHIND),)
)
LAST = Case("", (ipv4(UDP, udp(LAST_PORT)),), *_twice(4, UDP, LAST_PORT, 0))
# Sent by the gateway to itself and to the client: source port, addresses.
LOCAL = ((29100, ("127.0.0.1", "127.0.0.1")), (29101, ("::1", "::1")))
# Sent with a tag, so that no interface takes it.
TAGGED, TAG = 29120, bytes.fromhex("8100 0007 0800")
OUTGOING = ((29110, (GATEWAY[0], CLIENT[0])), (29111, (GATEWAY[1], CLIENT[1])))


def _datagram(sport: int, ends: tuple[str, str]) -> Packet:
    src, dst = (ip_address(end).packed for end in ends)
    return Packet(0.0, src, dst, UDP, sport, KNOCK, 0)


INCOMING = (*CASES, LAST)
_LOCAL = tuple(_datagram(*one) for one in LOCAL)
_SEEN_FIRST = [case.raw for case in (*INCOMING, *FORWARDED) if case.raw] + [*_LOCAL]
_SEEN_BY_INPUT = [case.whole for case in INCOMING if case.whole] + [*_LOCAL]


class Rule(NamedTuple):
    """A rule that logs: what stands before its records, and the packets among all those that it logs."""

    prefix: str
    packets: Sequence[Packet]


# By what makes the record. `%` is the test's own word. Blanks, colons and brackets as administrators, UFW and firewalld
# write them.
RULES = {
    "nft": Rule("% nft: ", _SEEN_FIRST),
    "nft, flags all": Rule("%_FINAL_REJECT: ", _SEEN_FIRST),
    "nft, with a mark": Rule("%", _SEEN_FIRST),
    "iptables-legacy": Rule("[% BLOCK] ", _SEEN_BY_INPUT),
    "iptables-legacy, all options": Rule("%:legacy:DROP:", _SEEN_BY_INPUT),
    "iptables-nft": Rule("%-n ", _SEEN_BY_INPUT),
    "iptables-nft, all options": Rule("% n all: ", _SEEN_BY_INPUT),
    "forwarded": Rule("% forward: ", [case.raw for case in FORWARDED if case.raw]),
    "outgoing": Rule("% out: ", [_datagram(*one) for one in OUTGOING]),
    "a VLAN": Rule("% vlan: ", [_packet(4, UDP, TAGGED, 0)]),
}
GROUPS = {"LOGEMU": 21, "JSON": 22}
NFLOG = {
    "JSON": Rule("% nflog: ", _SEEN_FIRST),
    # It says nothing of ECN's two flags.
    "LOGEMU": Rule("% nflog: ", [packet._replace(flags=packet.flags & ~(ECE | CWR)) for packet in _SEEN_FIRST]),
}

_EVERY_OPTION = ["--log-tcp-sequence", "--log-tcp-options", "--log-ip-options", "--log-uid", "--log-macdecode"]


def firewall(gateway: Host, word: str) -> None:
    """All the rules that log."""
    named = {name: rule.prefix.replace("%", word) for name, rule in RULES.items()}
    nflog = NFLOG["JSON"].prefix.replace("%", word)
    gateway.nft(f"""
        table inet lk {{
            chain first {{
                type filter hook prerouting priority -450;
                log prefix "{named["nft"]}"
                log prefix "{named["nft, flags all"]}" flags all
                log prefix "{nflog}" group {GROUPS["LOGEMU"]}
                log prefix "{nflog}" group {GROUPS["JSON"]}
                meta mark set 0x2a log prefix "{named["nft, with a mark"]}"
            }}
        }}
        table netdev lk {{
            chain first {{
                type filter hook ingress device "eth0" priority 0;
                vlan id 7 udp dport {KNOCK} log prefix "{named["a VLAN"]}" flags all
            }}
        }}
    """)
    for version in ("iptables", "ip6tables"):
        for kind in ("legacy", "nft"):
            command = f"{version}-{kind}"
            log = ("-A", "INPUT", "-j", "LOG", "--log-prefix")
            gateway.run(command, *log, named[f"iptables-{kind}"])
            gateway.run(command, *log, named[f"iptables-{kind}, all options"], *_EVERY_OPTION)
        legacy, nft = f"{version}-legacy", f"{version}-nft"
        gateway.run(legacy, "-A", "FORWARD", "-j", "LOG", "--log-prefix", named["forwarded"])
        only = ("-o", "eth0", "-p", "udp", "--dport", str(KNOCK))
        gateway.run(nft, "-A", "OUTPUT", *only, "-j", "LOG", "--log-prefix", named["outgoing"], "--log-uid")


def routes(gateway: Host, client: Host) -> None:
    """Something behind the gateway."""
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        gateway.run("sh", "-c", f"echo 1 > /proc/sys/net/{name}")
    gateway.run("ip", "link", "add", "behind", "type", "veth", "peer", "name", "far")
    for name in ("behind", "far"):
        gateway.run("ip", "link", "set", name, "up")
    gateway.run("ip", "addr", "add", "192.0.2.1/24", "dev", "behind")
    gateway.run("ip", "addr", "add", "fd97::1/64", "dev", "behind", "nodad")
    client.run("ip", "route", "add", "192.0.2.0/24", "via", gateway.ipv4)
    client.run("ip", "-6", "route", "add", "fd97::/64", "via", gateway.ipv6)


def send(gateway: Host, client: Host) -> None:
    """Everything, and the fence behind it."""
    for sport, ends in LOCAL + OUTGOING:
        _datagram_from(gateway, sport, ends)
    with client.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        wire.send(_hardware(gateway) + _hardware(client) + TAG + ipv4(UDP, udp(TAGGED)))
    with client.inside():
        raw4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        raw6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw4, raw6:
        for case in (*CASES, *FORWARDED, LAST):
            for data in case.data:
                version = data[0] >> 4
                target = str(ip_address(data[16:20] if version == 4 else data[24:40]))
                (raw4 if version == 4 else raw6).sendto(data, (target, 0))


def _hardware(host: Host) -> bytes:
    return bytes.fromhex(host.run("cat", "/sys/class/net/eth0/address").stdout.strip().replace(":", ""))


def _datagram_from(host: Host, sport: int, ends: tuple[str, str]) -> None:
    family = socket.AF_INET6 if ":" in ends[0] else socket.AF_INET
    with host.inside(), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((ends[0], sport))
        sender.sendto(b"x", (ends[1], KNOCK))


class Written(NamedTuple):
    """What each program wrote, line by line; and when everything had been sent."""

    word: str
    lines: dict[str, list[bytes]]
    kernel: list[bytes]
    time: float


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """Everything sent once, and logged by all rules to all programs."""
    folder = tmp_path_factory.mktemp("regenerate")
    word = peers.own_prefix()
    with ExitStack() as stack:
        enter = stack.enter_context
        gateway, client = enter(pair())
        enter(peers.kernel_log())
        files: dict[str, Path] = {}
        for name, uptime in (("rsyslog, imkmsg", False), ("rsyslog, imklog", True)):
            (place := folder / f"rsyslog{uptime:d}").mkdir()  # rsyslog takes no blank in a path
            files[name], files[f"{name}, ISO"] = enter(peers.rsyslog(place, word, uptime=uptime))
        files["syslog-ng"], files["syslog-ng, ISO"] = enter(peers.syslog_ng(folder, word))
        for output, group in GROUPS.items():
            files[f"ulogd2, {output}"] = enter(peers.ulogd(gateway, folder, group, output)).file
        journal = enter(peers.journald(gateway, folder))
        records = peers.KernelLog()
        stack.callback(records.close)
        routes(gateway, client)
        firewall(gateway, word)
        send(gateway, client)
        kernel: list[bytes] = []
        rules = sum(LAST.raw in rule.packets for rule in RULES.values())
        until_fenced(rules, lambda: b"\n".join(_more(kernel, records)))
        for name, file in files.items():
            until_fenced(1 if "ulogd" in name else rules, file.read_bytes)
        until_fenced(rules, lambda: journal.run("journalctl", "-qko", "cat").stdout.encode())
        entries = journal.run("journalctl", "-qko", "json").stdout.encode().splitlines()
        lines = {name: file.read_bytes().splitlines() for name, file in files.items()}
        ours = [message for message in kernel if word.encode() in message]
        yield Written(word, lines | {"journalctl": [e for e in entries if word.encode() in e]}, ours, time.time())


def _more(kernel: list[bytes], records: peers.KernelLog) -> list[bytes]:
    kernel += [one.message for one in records.read()]
    return kernel


def until_fenced(times: int, read: Callable[[], bytes]) -> None:
    """Wait until the last packet has been logged so many times."""
    _wait_for(FENCE, times, read)


def _wait_for(text: re.Pattern[bytes], times: int, read: Callable[[], bytes]) -> None:
    end = time.monotonic() + 20
    while len(text.findall(found := read())) < times:
        assert time.monotonic() < end, f"no {text.pattern!r}, {times} times, in:\n{found.decode(errors='replace')}"
        time.sleep(0.02)


WRITERS = (
    "rsyslog, imkmsg",
    "rsyslog, imkmsg, ISO",
    "rsyslog, imklog",
    "rsyslog, imklog, ISO",
    "syslog-ng",
    "syslog-ng, ISO",
    "journalctl",
)
EVERYWHERE = frozenset({"in", "forward", "out"})


def grammar(word: str, rule: Rule, directions: frozenset[str] = EVERYWHERE) -> Grammar:
    return Grammar(Wanted((rule.prefix.replace("%", word),), directions))


def said(packets: Sequence[Packet | None]) -> list[Packet]:
    """The packets, without their times and in an order of their own."""
    return sorted(packet._replace(time=0.0) for packet in packets if packet is not None)


@pytest.mark.parametrize("name", RULES)
def test_a_record_of_the_kernel_says_what_was_sent(written: Written, name: str) -> None:
    """T23, T26: and what is no knock says nothing."""
    one = grammar(written.word, RULES[name])
    assert said([one.from_kernel(message, 0.0) for message in written.kernel]) == sorted(RULES[name].packets)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", RULES)
def test_a_line_in_a_log_says_what_was_sent(written: Written, name: str, writer: str) -> None:
    one, dates = grammar(written.word, RULES[name]), Dates(written.time, live=True)
    packets = [one.from_line(line, dates) for line in written.lines[writer]]
    assert said(packets) == sorted(RULES[name].packets)
    assert all(abs(packet.time - written.time) < 30 for packet in packets if packet)


@pytest.mark.parametrize("output", GROUPS)
def test_a_line_of_ulogd2_says_what_was_sent(written: Written, output: str) -> None:
    one, dates = grammar(written.word, NFLOG[output]), Dates(written.time, live=True)
    packets = [one.from_line(line, dates) for line in written.lines[f"ulogd2, {output}"]]
    assert said(packets) == sorted(NFLOG[output].packets)
    assert all(abs(packet.time - written.time) < 30 for packet in packets if packet)


@pytest.mark.parametrize("name", ["forwarded", "outgoing"])
def test_what_passed_or_left_is_no_knock(written: Written, name: str) -> None:
    """T25, unless the configuration says so."""
    one = grammar(written.word, RULES[name], frozenset({"in"}))
    assert said([one.from_kernel(message, 0.0) for message in written.kernel]) == []


@pytest.mark.parametrize("name", RULES)
def test_another_rules_prefix_is_not_ours(written: Written, name: str) -> None:
    """T26: the prefixes of all these rules begin alike, and each grammar takes its own only."""
    one = grammar(written.word, RULES[name]._replace(prefix="% other: "))
    assert said([one.from_kernel(message, 0.0) for message in written.kernel]) == []


# A record as the kernel makes it, but for the prefix before it and the source port in it.
_RECORD = (
    "IN=eth0 OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 SRC=10.99.0.2 DST=10.99.0.1 LEN=29 TOS=0x00 PREC=0x00 "
    "TTL=64 ID=1 DF PROTO=UDP SPT={} DPT=7000 LEN=9 "
)


@pytest.mark.parametrize("start", [peers.rsyslog, peers.syslog_ng])
def test_the_times_of_records_go_on(tmp_path: Path, start: Callable[..., AbstractContextManager[peers.Files]]) -> None:
    """Two programs work out a record's time from the kernel's uptime, and from seconds that they have rounded.

    Their stamps fall back by a second now and then; for an attempt that would be a clock that steps back.
    """
    word = peers.own_prefix()
    made: list[float] = []
    with start(tmp_path, word) as files:
        for number in range(30):
            made.append(time.time())
            peers.say(f"{word}: {_RECORD.format(number)}")
            time.sleep(0.05)
        for file in files:
            _wait_for(re.compile(b"SPT=%d " % (len(made) - 1)), 1, file.read_bytes)
            one, dates = Grammar(Wanted((word,))), Dates(time.time(), live=False)
            packets = [packet for line in file.read_bytes().splitlines() if (packet := one.from_line(line, dates))]
            times = [packet.time for packet in packets]
            assert [packet.sport for packet in packets] == list(range(len(made)))
            assert times == sorted(times), file.read_text()
            assert all(abs(time - at) < 2.5 for time, at in zip(times, made, strict=True))


def neighbours(line: bytes) -> set[tuple[bytes, bytes]]:
    """Which field follows which in a record: names, flags and brackets without their values.

    Of ulogd2's JSON the names, in order; nothing of what is neither.
    """
    if line.startswith(b"{"):
        fields = re.findall(rb'"([^"]+)": ', line)
        return set(pairwise(fields)) if b"oob.prefix" in fields else set()
    at = line.find(b"IN=")
    body = re.sub(rb"(=|FRAG:|ID:)[^ \]]+|[0-9A-F]+(?=\))|\d+(?= bytes\])", rb"\1", line[max(at, 0) :])
    return set(pairwise([*body.split(), b""])) if at >= 0 else set()


def test_the_corpus_knows_what_is_written_today(written: Written) -> None:
    """Whatever follows whatever in a record does so in a line of the corpus; a line where it does not is printed."""
    known: set[tuple[bytes, bytes]] = set()
    for file in corpus_files.files():
        known.update(*(neighbours(block.line) for block in corpus_files.read(file)))
    unknown: dict[tuple[bytes, bytes], bytes] = {}
    for line in [*written.kernel, *(line for name in written.lines if "ulogd" in name for line in written.lines[name])]:
        unknown.update(dict.fromkeys(neighbours(line) - known, line))
    assert not unknown, "\n" + "\n".join(f"{b' '.join(pair)!r}\n    {line!r}" for pair, line in unknown.items())
