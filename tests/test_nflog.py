"""The NFLOG source against the real kernel."""

import socket
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from logknock.errors import NO_PERMISSION, UNAVAILABLE, SourceError
from logknock.netlink import NETLINK_NETFILTER
from logknock.packet import SYN, TCP, UDP, Packet
from logknock.sources import nflog
from logknock.sources.nflog import Nflog

from .e2e.world import SPOOF, until
from .netns import Host
from .test_netlink import record
from .test_packet import TCP_SYN, ipv4

LOG_ALL = """
table inet t { chain c { type filter hook prerouting priority mangle; policy accept;
	meta l4proto { tcp, udp, sctp } log group 5 prefix "whatever it is" drop
}; }
"""

FLOOD = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect((sys.argv[1], 9))
    for _ in range(int(sys.argv[2])):
        s.send(b"x")
"""


def everything(src: bytes, proto: int, dport: int, flags: int) -> bool:
    return True


@pytest.fixture
def source(hosts: tuple[Host, Host]) -> Iterator[Nflog]:
    gateway, _ = hosts
    gateway.nft(LOG_ALL)
    with gateway.inside():
        found = Nflog(5, everything)
    yield found
    found.close()


def collect(source: Nflog, enough: Callable[[list[Packet]], bool]) -> list[Packet]:
    packets: list[Packet] = []

    def more() -> bool:
        source.read(time.time(), packets.append)
        return enough(packets)

    until(more, "packets from the kernel")
    return packets


def drain(source: Nflog) -> None:
    """Read until there is nothing more."""
    before = -1
    while before != source.records:
        before = source.records
        collect(source, lambda _: True)


def test_packets_of_both_families_and_protocols(hosts: tuple[Host, Host], source: Nflog) -> None:
    gateway, client = hosts
    words = [f"{src}>{to}:{port}/{proto}"
             for src, to in (("198.51.100.7", gateway.ipv4), ("fd98::7", gateway.ipv6))
             for port, proto in ((7000, "tcp"), (9000, "udp"))]  # fmt: skip
    before = time.time()
    client.python(SPOOF, *words)
    packets = collect(source, lambda found: len(found) >= 4)
    assert {(len(p.src), p.proto, p.dport, p.flags) for p in packets} == {
        (size, proto, port, flags) for size in (4, 16) for proto, port, flags in ((TCP, 7000, SYN), (UDP, 9000, 0))
    }
    assert all(before - 1 < packet.time <= time.time() for packet in packets)
    assert source.ignored == source.lost == 0


def test_a_record_without_a_packet_of_ours_is_counted_and_passed_over(hosts: tuple[Host, Host], source: Nflog) -> None:
    """T26: SCTP stands for whatever else a firewall logs."""
    gateway, client = hosts
    client.python(
        "import socket, sys\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 132).sendto(bytes(40), (sys.argv[1], 0))",
        gateway.ipv4,
    )
    client.python(SPOOF, f"198.51.100.7>{gateway.ipv4}:7000/tcp")
    (packet,) = collect(source, lambda found: bool(found))
    assert packet.dport == 7000
    assert source.ignored == 1


def test_a_flood_comes_in_batches_and_quiet_returns(hosts: tuple[Host, Host], source: Nflog) -> None:
    gateway, client = hosts
    assert not source.busy
    flood = client.start("python3", "-c", FLOOD, gateway.ipv4, "100000")
    collect(source, lambda _: source.busy)
    flood.wait(60)
    drain(source)
    source.settle()
    source.settle()
    assert not source.busy
    sent = time.time()
    client.python(SPOOF, f"198.51.100.7>{gateway.ipv4}:7000/tcp")
    packets = collect(source, lambda found: any(packet.dport == 7000 for packet in found))
    assert packets[-1].time >= sent - 1


def test_a_read_ends_with_the_delivery_in_which_its_time_is_over(
    hosts: tuple[Host, Host], source: Nflog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks the daemon something in a flood waits for a few reads: none of them may be as long as the flood."""
    gateway, client = hosts
    monkeypatch.setattr(nflog, "_READ_FOR", 0.0)
    client.python(SPOOF, *(f"198.51.100.{number}>{gateway.ipv4}:7000/tcp" for number in range(8)))
    packets: list[Packet] = []
    until(lambda: source.read(time.time(), packets.append) or packets, "the first packet")
    for count in range(2, 9):
        source.read(time.time(), packets.append)
        assert len(packets) == count, "quiet: a delivery is a packet"


def test_t30_what_the_kernel_could_not_deliver_is_counted(hosts: tuple[Host, Host], source: Nflog) -> None:
    """T30: nobody reads while more comes than the queue holds; afterwards the sum is right to the record."""
    gateway, client = hosts
    sent = 0
    while sent < 600_000 and not dropped(gateway):
        client.python(FLOOD, gateway.ipv4, "30000")
        sent += 30_000
    drain(source)
    client.python(FLOOD, gateway.ipv4, "1")
    collect(source, lambda found: bool(found))
    assert source.lost > 0
    assert source.overruns > 0
    assert source.records + source.lost == sent + 1


def dropped(host: Host) -> bool:
    """Whether the kernel has dropped messages to a netfilter socket of this host (family 12; drops are column 9)."""
    rows = [line.split() for line in host.run("cat", "/proc/net/netlink").stdout.splitlines()[1:]]
    return any(row[1] == "12" and int(row[8]) for row in rows)


def test_what_another_process_sends_is_no_packet(hosts: tuple[Host, Host], source: Nflog) -> None:
    """T26: only the kernel's messages count; a netlink socket takes those of any privileged process too."""
    gateway, client = hosts
    port, _ = source._socket.raw.getsockname()
    with gateway.inside(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as forger:
        forger.sendto(record(ipv4(TCP_SYN, 6)), (port, 0))
    client.python(SPOOF, f"198.51.100.7>{gateway.ipv4}:7000/tcp")
    (packet,) = collect(source, lambda found: bool(found))
    assert packet.sport == 20000
    assert source.records == 1


def test_t29_the_kernel_is_asked_to_stamp_packets(source: Nflog) -> None:
    """T29: on a host where nothing else asks for stamps none would come; on most something does, so this asks too."""
    so_timestamp = 29
    assert source._stamps.getsockopt(socket.SOL_SOCKET, so_timestamp) == 1


def test_a_group_has_one_reader(hosts: tuple[Host, Host], source: Nflog) -> None:
    gateway, _ = hosts
    with gateway.inside(), pytest.raises(SourceError, match="NFLOG group 5 is held by another process") as caught:
        Nflog(5, everything)
    assert caught.value.exit_code == UNAVAILABLE
    assert "another number" in caught.value.hint


def test_a_group_is_free_again_after_close(hosts: tuple[Host, Host], source: Nflog) -> None:
    source.close()
    with hosts[0].inside():
        Nflog(5, everything).close()


def test_without_rights(hosts: tuple[Host, Host]) -> None:
    code = "from logknock.errors import SourceError\nfrom logknock.sources.nflog import Nflog\n" \
        "try: Nflog(5, lambda *_: True)\nexcept SourceError as e: print(e.exit_code, e.message, e.hint)"  # fmt: skip
    done = hosts[0].run("setpriv", "--bounding-set=-net_admin", "--", sys.executable, "-c", code)
    assert done.stdout.startswith(
        f"{NO_PERMISSION} NFLOG group 5 cannot be read: Operation not permitted CAP_NET_ADMIN"
    )


def test_a_container_with_users_of_its_own_may_read(hosts: tuple[Host, Host]) -> None:
    """There CAP_NET_ADMIN is not that of the host, which the size of the queue would need."""
    code = "from logknock.sources.nflog import Nflog; Nflog(5, lambda *_: True).close(); print('read')"
    done = hosts[0].run("unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", code)
    assert done.stdout == "read\n"


LOG_WAYS = """
table inet t {
	chain i { type filter hook input priority 0; meta l4proto udp log group 5
	}
	chain f { type filter hook forward priority 0; meta l4proto udp log group 5
	}
	chain o { type filter hook output priority 0; udp dport 7002 log group 5
	}
}
"""


@pytest.mark.parametrize(
    ("directions", "ports"),
    [
        (("in",), [7000, 7003]),
        (("forward",), [7001]),
        (("out",), [7002]),
        (("in", "forward", "out"), [7000, 7001, 7002, 7003]),
    ],
)
def test_t25_which_way_a_packet_went_decides_whether_it_counts(
    hosts: tuple[Host, Host], directions: tuple[str, ...], ports: list[int]
) -> None:
    """T25: in bulk and one by one, since the second packet of a shape is unpacked without a look at its attributes."""
    gateway, client = hosts
    gateway.nft(LOG_WAYS)
    gateway.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    client.run("ip", "route", "replace", "192.0.2.0/24", "via", gateway.ipv4)
    gateway.run("ip", "route", "replace", "192.0.2.0/24", "via", client.ipv4)
    with gateway.inside():
        found = Nflog(5, everything, frozenset(directions))
    try:
        send = "import socket, sys\nfor word in sys.argv[1:]:\n  host, port = word.split(':')\n"
        send += "  for _ in range(3): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', (host, int(port)))"
        client.python(send, f"{gateway.ipv4}:7000", "192.0.2.9:7001")
        gateway.python(send, f"{client.ipv4}:7002")
        client.python(send, f"{gateway.ipv4}:7003")
        packets: list[Packet] = []

        def all_read() -> bool:
            found.read(time.time(), packets.append)
            return found.records == 12

        until(all_read, "all the records")
        assert [packet.dport for packet in packets] == sorted(ports * 3)
        assert found.ignored == 12 - len(packets)
    finally:
        found.close()


def test_what_came_from_a_source_can_be_asked_for_though_nobody_heeded_it(hosts: tuple[Host, Host]) -> None:
    gateway, client = hosts
    gateway.nft(LOG_ALL)
    with gateway.inside():
        found = Nflog(5, lambda src, proto, dport, flags: False)
    try:
        client.python(SPOOF, *(f"198.51.100.{last}>{gateway.ipv4}:700{last}/tcp" for last in (7, 8, 7)))
        packets: list[Packet] = []
        until(lambda: found.read(time.time(), packets.append) or found.records == 3, "the records")
        assert packets == []
        recent = [packet for _, packet in found.recent(bytes((198, 51, 100, 7))) if packet]
        assert [(packet.dport, packet.sport) for packet in recent] == [(7007, 20000), (7007, 20002)]
        assert [packet for _, packet in found.recent(bytes((198, 51, 100, 9))) if packet] == []
    finally:
        found.close()


def test_what_is_kept_of_deliveries_is_bounded(source: Nflog) -> None:
    """Large ones, as in a flood, and small ones."""
    for size, number in ((65_536, 100), (200, 10_000)):
        for _ in range(number):
            source._keep(0.0, bytes(size))
        assert sum(len(data) for _, data in source._recent) == source._recent_bytes <= 1024 * 1024
        assert len(source._recent) <= 4096
    assert source._recent_bytes == 4096 * 200
