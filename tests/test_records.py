"""A line is the packet that it tells of, in so many words, or nothing."""

import ipaddress
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logknock.packet import TCP, UDP, Packet, address_text, bare
from logknock.records import MAX_LINE, Grammar, Wanted
from logknock.stamps import Dates

from . import corpus_files
from .corpus_files import END, Block

CORPUS = {path.stem: corpus_files.read(path) for path in corpus_files.files()}
BLOCKS = [
    pytest.param(block, id=f"{name}: {block.title}".encode("ascii", "replace").decode())
    for name, blocks in CORPUS.items()
    for block in blocks
]
LINES = sorted({block.line for blocks in CORPUS.values() for block in blocks})
TELLING = [block.line for blocks in CORPUS.values() for block in blocks if block.packet != "none"]
EVERYTHING = Grammar(Wanted(("logknock", ""), frozenset({"in", "out", "forward"})))


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The heads of syslog's lines are local time; here that is UTC unless a test says otherwise."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield patch
    time.tzset()


@pytest.mark.parametrize("block", BLOCKS)
def test_the_corpus(block: Block, zone: pytest.MonkeyPatch) -> None:
    """T22, T23, T24, T25, T26, T27: the blocks that show them begin with their names."""
    zone.setenv("TZ", block.zone)
    time.tzset()
    assert block.parse() == block.packet


@pytest.mark.parametrize("threat", ["T22", "T23", "T24", "T25", "T26", "T27", "T29"])
def test_the_corpus_has_forged_lines_for_each_threat(threat: str) -> None:
    assert [block for blocks in CORPUS.values() for block in blocks if block.title.startswith(threat)]


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_a_file_of_the_corpus_says_the_same_when_it_is_written_anew(name: str, tmp_path: Path) -> None:
    corpus_files.write(tmp_path / "anew.txt", "A remark\nof two lines.", CORPUS[name])
    assert corpus_files.read(tmp_path / "anew.txt") == CORPUS[name]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("title: one\nline: x\n", id="no packet"),
        pytest.param("title: one\npacket: none\n", id="no line"),
        pytest.param("title: one\nline: x\nbytes: x\npacket: none\n", id="two lines"),
        pytest.param("title: one\nline: x\npackets: none\n", id="an unknown field"),
        pytest.param("title: one\nnonsense\npacket: none\n", id="no field at all"),
        pytest.param("title: one\nline: x\npacket: none\n\ntitle: one\nline: y\npacket: none\n", id="a title twice"),
    ],
)
def test_a_corpus_that_is_wrong_is_told_of(text: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.txt").write_text(text)
    with pytest.raises(AssertionError, match=r"wrong\.txt"):
        corpus_files.read(tmp_path / "wrong.txt")


ports = st.integers(0, 65535)
ipv4 = st.binary(min_size=4, max_size=4)
# An address of IPv4 within IPv6 has the form of IPv4 (T27), and would not come back as it went in.
ipv6 = st.binary(min_size=16, max_size=16).filter(lambda address: ipaddress.IPv6Address(address).ipv4_mapped is None)
ends = st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6))
times = st.integers(0, 4_000_000_000).map(float)
tcp = st.builds(
    lambda t, e, s, d, f: Packet(t, e[0], e[1], TCP, s, d, f), times, ends, ports, ports, st.integers(0, 255)
)
udp = st.builds(lambda t, e, s, d: Packet(t, e[0], e[1], UDP, s, d, 0), times, ends, ports, ports)
packets = st.one_of(tcp, udp)
# What a name of an interface may hold, and what somebody would choose for one.
names = st.one_of(
    st.sampled_from(["eth0", "SRC=9.9.9.9", "DPT=7000", "IN=", "OUT=", "logknock:", "kernel:", "]", "PROTO=TCP"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1, max_size=15),
)


@st.composite
def kernel_records(draw: st.DrawFn) -> tuple[Packet, bytes]:
    """A packet, and its record as the kernel writes it, with any of its options."""
    packet = draw(packets)
    four = len(packet.src) == 4
    link = draw(st.sampled_from(["MAC= ", f"MAC={':'.join(['0a'] * 14)} ", "", "decoded"]))
    if link == "decoded":
        vlan = draw(st.sampled_from(["", "VPROTO=8100 VID=5 "]))
        link = f"MACSRC=0a:0b:0c:0d:0e:0f MACDST=0f:0e:0d:0c:0b:0a {vlan}MACPROTO=0800 "
    src, dst = (ipaddress.ip_address(address).exploded for address in (packet.src, packet.dst))
    network = "LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF " if four else "LEN=60 TC=0 HOPLIMIT=64 FLOWLBL=613588 "
    if draw(st.booleans()):
        network += "OPT (94040000) " if four else "OPT ( ) OPT ( AH SPI=0xff ) "
    if packet.proto == TCP:
        words = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"]
        there = [word for bit, word in enumerate(words) if packet.flags & 1 << bit]
        order = [word for word in ("CWR", "ECE", "URG", "ACK", "PSH", "RST", "SYN", "FIN") if word in there]
        transport = (
            f"PROTO=TCP SPT={packet.sport} DPT={packet.dport} {draw(st.sampled_from(['', 'SEQ=1 ACK=0 ']))}"
            f"WINDOW=64240 RES=0x00 {''.join(word + ' ' for word in order)}URGP=0 "
            f"{draw(st.sampled_from(['', 'OPT (020405B4) ']))}"
        )
    else:
        transport = f"PROTO=UDP SPT={packet.sport} DPT={packet.dport} LEN=40 "
    end = draw(st.sampled_from(["", "UID=0 GID=0 "])) + draw(st.sampled_from(["", "MARK=0x4b0000 "]))
    port = draw(st.sampled_from(["", "PHYSIN=DST=1.2.3.4 "]))
    prefix = draw(st.sampled_from(["logknock", "logknock ", "logknock:", "logknock: "]))
    text = f"{prefix}IN={draw(names)} OUT= {port}{link}SRC={src} DST={dst} {network}{transport}{end}"
    return packet, text.encode()


@given(kernel_records())
def test_a_record_tells_of_its_packet(written: tuple[Packet, bytes]) -> None:
    """T24, T27: whatever the interfaces are called, and for every address there is."""
    packet, record = written
    assert Grammar(Wanted()).from_kernel(record, packet.time) == packet
    assert Grammar(Wanted()).from_kernel(record.rstrip(), packet.time) == packet


@given(kernel_records(), st.data())
def test_a_record_that_was_cut_short_tells_nothing_else(written: tuple[Packet, bytes], data: st.DataObject) -> None:
    """T26: a port that was cut short is not another port."""
    packet, record = written
    cut = record[: data.draw(st.integers(0, len(record)))]
    assert Grammar(Wanted()).from_kernel(cut, packet.time) in (packet, None)


@given(kernel_records())
def test_a_line_is_its_record_behind_a_head(written: tuple[Packet, bytes]) -> None:
    packet, record = written
    there = time.gmtime(packet.time)
    grammar = Grammar(Wanted())
    for head, exact in (
        (time.strftime("%b %e %H:%M:%S host kernel: [ 2247.519434] ", there), True),
        (time.strftime("%Y-%m-%dT%H:%M:%S.250000+00:00 host kernel: ", there), False),
    ):
        told = grammar.from_line(head.encode() + record, Dates(packet.time + 60, live=False))
        assert told == packet._replace(time=packet.time + (0.0 if exact else 0.25))


def ulogd_json(packet: Packet) -> str:
    src, dst = (str(ipaddress.ip_address(address)) for address in (packet.src, packet.dst))
    entry: dict[str, object] = {
        "oob.prefix": "logknock",
        "oob.in": "eth0",
        "oob.out": "",
        "src_ip": src,
        "dest_ip": dst,
    }
    entry |= {"ip.protocol": packet.proto, "src_port": packet.sport, "dest_port": packet.dport}
    entry |= {"oob.time.sec": int(packet.time), "oob.time.usec": 0}
    if packet.proto == TCP:
        for bit, name in enumerate(("fin", "syn", "rst", "psh", "ack", "urg")):
            entry[f"tcp.{name}"] = packet.flags >> bit & 1
        entry["tcp.res2"] = packet.flags >> 6
    return json.dumps(entry)


@given(packets)
def test_ulogd2s_json_tells_of_its_packet(packet: Packet) -> None:
    assert Grammar(Wanted()).from_line(ulogd_json(packet).encode(), Dates(END, live=False)) == packet


def journals_stamps(second: float, late: float = 0.0) -> dict[str, str]:
    """What an entry says about when it was written and, an hour after the boot, when its record was made."""
    return {
        "_BOOT_ID": "5f2c6f2d7a5b4a6f8d3f0a1b2c3d4e5f",
        "__REALTIME_TIMESTAMP": str(int((second + late) * 1_000_000)),
        "__MONOTONIC_TIMESTAMP": str(int((3600 + late) * 1_000_000)),
        "_SOURCE_MONOTONIC_TIMESTAMP": str(3600 * 1_000_000),
    }


@given(kernel_records())
def test_a_journal_entry_tells_of_its_packet(written: tuple[Packet, bytes]) -> None:
    packet, record = written
    for message in (record.decode(), list(record)):
        entry = {"_TRANSPORT": "kernel", "SYSLOG_IDENTIFIER": "kernel", "SYSLOG_FACILITY": "0", "MESSAGE": message}
        line = json.dumps(entry | journals_stamps(packet.time)).encode()
        assert Grammar(Wanted()).from_line(line, Dates(END, live=False)) == packet


@given(
    kernel_records(),
    st.fixed_dictionaries(
        {},
        optional={
            "_TRANSPORT": st.sampled_from(["journal", "syslog", "stdout", "audit", "driver", "", None, ["kernel"]]),
            "SYSLOG_IDENTIFIER": st.sampled_from(["logger", "kernel:", "", None, 0, ["kernel", "kernel"]]),
            "SYSLOG_FACILITY": st.sampled_from(["1", "3", "00", "", None, 0, False]),
        },
    ),
)
def test_t22_one_condition_that_fails_is_enough(written: tuple[Packet, bytes], forged: dict[str, object]) -> None:
    """T22: of what a local process sends at least one of the three is wrong."""
    packet, record = written
    true = {"_TRANSPORT": "kernel", "SYSLOG_IDENTIFIER": "kernel", "SYSLOG_FACILITY": "0"}
    entry = {**true, "MESSAGE": record.decode(), **journals_stamps(packet.time), **forged}
    told = Grammar(Wanted()).from_line(json.dumps(entry).encode(), Dates(END, live=False))
    assert told == (None if forged else packet)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda junk: b"logknock: IN=" + junk)))
@example(b"x" * (MAX_LINE + 1))
def test_t26_any_bytes_are_a_packet_or_none(junk: bytes) -> None:
    for live in (True, False):
        assert isinstance(EVERYTHING.from_line(junk, Dates(END, live=live)), Packet | None)
    assert isinstance(EVERYTHING.from_kernel(junk, END), Packet | None)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A line of the corpus after up to four accidents: bytes lost, doubled, changed, moved in from another line."""
    line = draw(st.sampled_from(TELLING))
    for _ in range(draw(st.integers(1, 4))):
        begin, end = sorted(draw(st.tuples(st.integers(0, len(line)), st.integers(0, len(line)))))
        other = draw(st.sampled_from(LINES))
        at = draw(st.integers(0, len(other)))
        line = draw(
            st.sampled_from(
                [
                    line[:begin] + line[end:],
                    line[:end] + line[begin:],
                    line[:begin] + draw(st.binary(max_size=3)) + line[begin + 1 :],
                    line[:begin] + other[at : at + 40] + line[end:],
                    line[:begin] + draw(st.sampled_from(TOKENS)) + line[begin:],
                    line[:begin] + other[at:],
                ]
            )
        )
    return line[: MAX_LINE + 1]


TOKENS = [
    *(b"IN=eth9 ", b"OUT=eth9 ", b"SRC=9.9.9.9 ", b"DST=9.9.9.9 ", b"SPT=9 ", b"DPT=9 ", b"PROTO=TCP ", b"PROTO=UDP "),
    *(b" ", b"  ", b"\t", b"\n", b"\r", b"\0", b"[", b"] ", b"logknock: ", b"kernel: ", b"MF ", b"FRAG:1 ", b"OPT ("),
    *(b"LEN=9 ", b"URGP=0 ", b"SYN ", b"%eth0", b"::ffff:", b"0", b'"', b",", b"{", b"}"),
]


@settings(max_examples=400)
@given(mutants())
def test_no_accident_moves_a_field(line: bytes) -> None:
    """T24, T26: a packet never has an address or a port that does not stand in its place."""
    packet = EVERYTHING.from_line(line, Dates(END, live=False))
    if packet is None or line.startswith(b"{"):
        return
    places = corpus_files.in_their_places(line)
    assert places is not None
    src, dst = (ipaddress.ip_address(text) for text in places[:2])
    assert [int(text) for text in places[2:]] == [packet.sport, packet.dport]
    assert [address_text(packet.src), address_text(packet.dst)] == [
        str(getattr(address, "ipv4_mapped", None) or address) for address in (src, dst)
    ]


def cost(line: bytes) -> float:
    """Seconds of processor time that a line costs, at best."""
    best = 1.0
    for _ in range(7):
        begin = time.process_time_ns()
        for _ in range(20):
            EVERYTHING.from_line(line, Dates(END, live=False))
        best = min(best, (time.process_time_ns() - begin) / 20e9)
    return best


HEAD = b"Nov 21 10:00:00 "


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        pytest.param(b"", b" ", id="blanks"),
        pytest.param(b"", b"[", id="brackets"),
        pytest.param(b"", b"[ 1.000000]", id="uptimes"),
        pytest.param(b"", b"<4>", id="priorities"),
        pytest.param(b"", b"\t", id="tabs"),
        pytest.param(HEAD, b"a", id="a host without an end"),
        pytest.param(HEAD, b"a:", id="a host of colons"),
        pytest.param(HEAD, b"kernel: ", id="tags"),
        pytest.param(HEAD + b"host kernel: ", b"logknock: ", id="prefixes"),
        pytest.param(HEAD + b"host kernel: logknock", b" ", id="blanks behind the prefix"),
        pytest.param(b"logknock: ", b"IN=a ", id="interfaces"),
        pytest.param(b"logknock: IN=a OUT= MAC=", b"0:", id="a link layer's address without an end"),
        pytest.param(b"logknock: IN=a OUT= MAC= SRC=1.2.3.4 DST=1.2.3.4 LEN=", b"9", id="digits"),
        pytest.param(
            b"logknock: IN=a OUT= MAC= SRC=::1 DST=::1 LEN=9 TC=0 HOPLIMIT=0 FLOWLBL=0 ", b"OPT ( ) ", id="options"
        ),
        pytest.param(
            b"logknock: IN=a OUT= SRC=1.2.3.4 DST=1.2.3.4 LEN=9 TOS=00 PREC=0x00 TTL=0 ID=0 PROTO=TCP SPT=1 DPT=2 "
            b"SEQ=1 ACK=1 WINDOW=1 ",
            b"SYN ",
            id="flags",
        ),
        pytest.param(b"", b"Nov 21 10:00:00 host kernel: logknock: IN=a OUT= ", id="heads"),
        pytest.param(b"{", b'"a":{', id="objects"),
        pytest.param(b'{"a":', b"9", id="a number in JSON"),
        pytest.param(b'{"a":"', b"\\u0000", id="a text in JSON"),
    ],
)
def test_t26_a_hostile_line_costs_no_more_than_its_length(head: bytes, unit: bytes) -> None:
    """Sixteen times the length costs at most sixteen times as much (twice that, for a busy machine): not its square.

    Below 20 us nothing grows that could hurt, and the clock would be measured rather than the parser.
    """
    short, long = (head + unit * ((size - len(head)) // len(unit)) for size in (MAX_LINE // 16, MAX_LINE))
    assert cost(long) <= max(2 * 16 * cost(short), 20e-6)


def test_more_than_a_line_is_not_looked_at() -> None:
    """T26: 10 MiB cost what nothing costs."""
    assert cost(b"logknock: IN=" + b"a" * 10 * 2**20) <= max(10 * cost(b""), 20e-6)


def test_t26_a_line_longer_than_a_record_is_none() -> None:
    """T26: and one that is exactly as long as one may be is read."""
    line = next(block.line for block in CORPUS["journalctl-json"] if block.packet != "none")
    padded = line + b" " * (MAX_LINE - len(line))
    assert EVERYTHING.from_line(padded, Dates(END, live=False)) is not None
    assert EVERYTHING.from_line(padded + b" ", Dates(END, live=False)) is None


def test_what_counts_is_what_is_wanted() -> None:
    record = next(block.line for block in CORPUS["broken"] if block.title == "a prefix with a colon")
    for wanted, counts in (
        (Wanted(), True),
        (Wanted(("logknock: ",)), True),
        (Wanted(("other", "logknock")), True),
        (Wanted(("other",)), False),
        (Wanted(("",)), False),
        (Wanted(()), False),
        (Wanted(directions=frozenset()), False),
        (Wanted(directions=frozenset({"out", "forward"})), False),
    ):
        assert (Grammar(wanted).from_line(record, Dates(END, live=False)) is not None) == counts


def test_t29_an_entry_that_was_written_late_is_as_old_as_its_record() -> None:
    """T29: journald was stopped for eight seconds; what it writes then is no newer for it."""
    record = TELLING[0][TELLING[0].index(b"logknock") :].decode()
    grammar, dates = Grammar(Wanted()), Dates(END, live=True)
    entry = {"_TRANSPORT": "kernel", "SYSLOG_IDENTIFIER": "kernel", "SYSLOG_FACILITY": "0", "MESSAGE": record}

    def told(late: float) -> float:
        packet = grammar.from_line(json.dumps(entry | journals_stamps(END, late)).encode(), dates)
        assert packet is not None
        return packet.time

    assert told(0.0) == END
    assert told(8.0) == pytest.approx(END, abs=0.01)


def test_t29_a_line_that_was_written_late_is_as_old_as_its_record() -> None:
    """T29: the log daemon was stopped for eight seconds, and its head says when it went on."""
    record = TELLING[0][TELLING[0].index(b"logknock") :]
    for form in ("%b %e %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"):
        grammar, dates = Grammar(Wanted()), Dates(END, live=True)
        ages = []
        for second, uptime in ((0, 100.0), (1, 101.0), (10, 102.0), (11, 111.0)):
            dates.reference = END + second
            head = time.strftime(form, time.gmtime(END + second)).encode()
            packet = grammar.from_line(head + b" host kernel: [%12.6f] " % uptime + record, dates)
            assert packet is not None
            ages.append(dates.reference - packet.time)
        assert ages == pytest.approx([0, 0, 8, 0], abs=0.01)


@pytest.mark.parametrize(
    ("written", "same"),
    [
        pytest.param("logknock", True, id="as it is"),
        pytest.param("logknock: ", True, id="a colon and a blank"),
        pytest.param("logknock :", True, id="a blank and a colon"),
        pytest.param(" logknock", True, id="a blank before it"),
        pytest.param("\tlogknock\t: ", True, id="tabs"),
        pytest.param("logknock::", True, id="two colons"),
        pytest.param(":logknock", False, id="a colon before it"),
        pytest.param("log knock", False, id="a blank in it"),
    ],
)
def test_a_prefix_is_one_for_the_configuration_and_in_every_form_of_a_record(written: str, same: bool) -> None:
    """Blanks around it and colons at its end do not count, wherever they stand."""
    assert (bare(written) == "logknock") == same
    record = TELLING[0][TELLING[0].index(b"IN=") :]
    ulogd = json.loads(ulogd_json(Packet(END, bytes(4), bytes(4), UDP, 1, 2, 0))) | {"oob.prefix": written}
    for wanted, line in (
        ("logknock", b"Nov 21 10:00:00 host kernel: " + written.encode() + record),
        ("logknock", b"Nov 21 10:00:00 host kernel: [    1.000000] " + written.encode() + record),
        ("logknock", json.dumps(ulogd).encode()),
        (written, b"Nov 21 10:00:00 host kernel: logknock: " + record),
    ):
        found = Grammar(Wanted((wanted,))).from_line(line, Dates(END, live=False))
        assert (found is not None) == same, line
    assert (Grammar(Wanted()).from_kernel(written.encode() + record, END) is not None) == same
