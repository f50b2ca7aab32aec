"""What `logknock knock` puts on the wire, as the host that is knocked at sees it before its firewall does."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from logknock.packet import UDP, address_text

from ..netns import Host
from ..wire import CONTROL, Seen, Wire, capture, ended, line
from .world import PATIENCE, until

# On the gateway: the first is dropped without a word, the next refuses, the last is open.
SILENT, CLOSED, OPEN = 7000, 7001, 7002


@pytest.fixture
def wire(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Wire]:
    gateway, knocker = hosts
    gateway.nft(
        f"""table inet test {{
            chain input {{
                type filter hook input priority 0
                meta l4proto {{ tcp, udp }} th dport {{ {SILENT}, {CONTROL} }} drop
            }}
        }}
        """
    )
    listener = gateway.start(
        sys.executable,
        "-c",
        "import socket, sys\n"
        "listening = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()",
        str(OPEN),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    file = tmp_path / "wire.pcap"
    with ended(listener), capture(gateway, "eth0", file):
        assert line(listener.stdout) == "ready"
        yield Wire(file, knocker, gateway)


def address(host: Host, family: str) -> str:
    return host.ipv4 if family == "ipv4" else host.ipv6


FAMILIES = pytest.mark.parametrize("family", ["ipv4", "ipv6"])

# Knocks, says so, and stays: what the kernel would send for a socket that was left open is sent.
KNOCK_AND_STAY = """
import sys
from logknock import client
client.knock(client.resolve(sys.argv[1]), client.parse_knocks(sys.argv[2:]), 0.02)
print("sent", flush=True)
sys.stdin.read()
"""


@FAMILIES
def test_a_tcp_knock_is_one_syn_whether_the_port_is_silent_closed_or_open(
    hosts: tuple[Host, Host], wire: Wire, family: str
) -> None:
    gateway, knocker = hosts
    ports = [str(port) for port in (SILENT, CLOSED, OPEN)]
    argv = [sys.executable, "-c", KNOCK_AND_STAY, address(gateway, family), *ports]
    with ended(knocker.start(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as staying:
        assert line(staying.stdout) == "sent"
        wire.wait_for_resends()
    assert [seen.service for seen in wire.knocks()] == [f"{port}/tcp" for port in ports]
    sent = Counter(seen.packet.dport for seen in wire.seen())
    assert (sent[SILENT], sent[CLOSED]) == (1, 1), "where nothing was open, the SYN is all that was sent"


@FAMILIES
def test_a_udp_knock_is_one_datagram_of_one_nul_byte_whatever_comes_back(
    hosts: tuple[Host, Host], wire: Wire, family: str
) -> None:
    gateway, knocker = hosts
    knocker.logknock("knock", "-d20", address(gateway, family), f"{CLOSED}/udp", f"{SILENT}/udp", f"{CLOSED}/udp")
    wire.wait_for_resends()
    sent = [(seen.service, seen.payload) for seen in wire.knocks()]
    assert sent == [(f"{CLOSED}/udp", b"\0"), (f"{SILENT}/udp", b"\0"), (f"{CLOSED}/udp", b"\0")]


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        pytest.param([], 0.1, id="by_default_knocks_are_a_tenth_of_a_second_apart"),
        pytest.param(["-d", "200"], 0.2, id="a_bare_number_is_milliseconds"),
        pytest.param(["--delay", "300ms"], 0.3, id="a_delay_with_its_unit"),
    ],
)
def test_knocks_come_in_order_and_never_closer_than_the_delay(
    hosts: tuple[Host, Host], wire: Wire, options: list[str], delay: float
) -> None:
    gateway, knocker = hosts
    services = ["7000/tcp", "8000/udp", "7000/tcp", "6000/udp", "9000/tcp"]
    assert wire.knocks() == []  # from now on no packet waits until the neighbour is found
    knocker.logknock("knock", *options, gateway.ipv4, *services)
    knocks = wire.knocks()
    assert [seen.service for seen in knocks] == services
    times = [seen.packet.time for seen in knocks]
    # Not a bound on speed: however late a knock is, the next is as late. A hundredth is left for a clock being slewed.
    assert min(after - before for before, after in pairwise(times)) > delay * 0.99


def test_a_pause_between_two_services_takes_the_delays_place(hosts: tuple[Host, Host], wire: Wire) -> None:
    gateway, knocker = hosts
    assert wire.knocks() == []  # from now on no packet waits until the neighbour is found
    knocker.logknock("knock", "-d", "20", gateway.ipv4, "7000", "700ms", "8000", "9000")
    first, second, third = (seen.packet.time for seen in wire.knocks())
    assert second - first > 0.69
    assert third - second < second - first


def test_knocks_own_options_work_all_together(hosts: tuple[Host, Host], wire: Wire) -> None:
    gateway, knocker = hosts
    told = knocker.logknock("knock", "-uv4", "-d", "20", gateway.ipv4, "7000", "8000:tcp", "9000:udp").stdout
    assert [seen.service for seen in wire.knocks()] == ["7000/udp", "8000/tcp", "9000/udp"]
    assert told.splitlines()[0] == "knock 1 of 3: 10.99.0.1 7000/udp"
    assert knocker.logknock("knock", "-V").stdout.startswith("logknock ")


def test_no_delay_at_all_is_allowed(hosts: tuple[Host, Host], wire: Wire) -> None:
    gateway, knocker = hosts
    knocker.logknock("knock", "-d", "0", gateway.ipv4, "7000", "8000/udp", "9000")
    assert sorted(seen.service for seen in wire.knocks()) == ["7000/tcp", "8000/udp", "9000/tcp"]


@FAMILIES
@pytest.mark.parametrize(("protocol", "times"), [("tcp", 5), ("udp", 8)])
def test_t8_knocks_at_the_same_service_have_different_source_ports_however_few_there_are(
    hosts: tuple[Host, Host], wire: Wire, protocol: str, times: int, family: str
) -> None:
    """A knock from the source port of an earlier one would be taken for its resend.

    With 12 ports to draw from (TCP draws from every other one), the kernel by itself would nearly always repeat one.
    """
    gateway, knocker = hosts
    knocker.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50011")
    knocker.logknock("knock", "-d0", address(gateway, family), *[f"{SILENT}/{protocol}"] * times)
    ports = {seen.packet.sport for seen in wire.knocks()}
    assert len(ports) == times
    assert min(ports) >= 50000


def test_a_service_is_knocked_more_often_than_there_are_source_ports(hosts: tuple[Host, Host], wire: Wire) -> None:
    gateway, knocker = hosts
    knocker.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50001")
    knocker.logknock("knock", "-d0", gateway.ipv4, *[f"{SILENT}/udp"] * 4)
    assert len(wire.knocks()) == 4


KNOCKD_SEQUENCE = [f"{SILENT}:tcp", f"{CLOSED}:udp", f"{OPEN}:tcp", f"{SILENT}:udp", f"{CLOSED}"]


@FAMILIES
def test_the_packets_are_those_of_knockds_client(hosts: tuple[Host, Host], wire: Wire, family: str) -> None:
    """The same ports in the same order with the same flags, of the same length: no option more, no data."""
    gateway, knocker = hosts
    words = ["-d", "50", address(gateway, family), *KNOCKD_SEQUENCE]
    knocker.run("knock", *words)
    theirs = wire.knocks()
    knocker.logknock("knock", *words)
    ours = wire.knocks()[len(theirs) :]
    assert len(theirs) == len(KNOCKD_SEQUENCE)
    assert [_shape(seen) for seen in ours] == [_shape(seen) for seen in theirs]


def _shape(seen: Seen) -> tuple[str, int, int, bytes]:
    datagram = seen.payload if seen.packet.proto == UDP else b""
    return seen.service, seen.packet.flags, len(seen.data), datagram


def test_verbose_prints_a_line_for_each_knock_and_else_nothing_is_printed(hosts: tuple[Host, Host]) -> None:
    gateway, knocker = hosts
    words = ["-d0", gateway.ipv4, "7000/tcp", "8000:UDP", "9000"]
    assert knocker.logknock("knock", *words).stdout == ""
    assert knocker.logknock("knock", "-v", *words).stdout.splitlines() == [
        "knock 1 of 3: 10.99.0.1 7000/tcp",
        "knock 2 of 3: 10.99.0.1 8000/udp",
        "knock 3 of 3: 10.99.0.1 9000/tcp",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_knock_at_this_machine_itself_is_one_syn_too(hosts: tuple[Host, Host], tmp_path: Path, host: str) -> None:
    """Its answer is there before connect() returns."""
    _, knocker = hosts
    file = tmp_path / "loopback.pcap"
    with capture(knocker, "lo", file):
        knocker.logknock("knock", host, "7000")
        seen = Wire(file, knocker, knocker)
        until(lambda: len(seen.seen()) > 1, "the SYN and its answer")
    assert [found.service for found in seen.seen() if found.is_knock] == ["7000/tcp"]


def test_a_zone_chooses_the_link(hosts: tuple[Host, Host], wire: Wire) -> None:
    for host, link_local in zip(hosts, ("fe80::99:1", "fe80::99:2"), strict=True):
        host.run("ip", "addr", "add", f"{link_local}/64", "dev", "eth0", "nodad")
    done = hosts[1].logknock("knock", "-v", "fe80::99:1%eth0", "7000", "8000/udp")
    assert done.stdout.splitlines()[0] == "knock 1 of 2: fe80::99:1%eth0 7000/tcp"
    assert [(address_text(seen.packet.dst), seen.service) for seen in wire.knocks()] == [
        ("fe80::99:1", "7000/tcp"),
        ("fe80::99:1", "8000/udp"),
    ]


# Runs a command with /etc/hosts and /etc/resolv.conf of its own: its mounts are its own too.
WITH_NAMES = (
    'mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf && shift && exec "$@"'
)


def named(tmp_path: Path, names: str, *argv: str) -> list[str]:
    (tmp_path / "hosts").write_text(names)
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # where nobody answers, inside the namespace
    logknock = [sys.executable, "-m", "logknock", *argv]
    return ["unshare", "-m", "sh", "-ec", WITH_NAMES, "sh", str(tmp_path), *logknock]


@pytest.mark.parametrize(
    ("options", "addresses"),
    [
        pytest.param(["-4"], [{"10.99.0.1"}], id="4_asks_for_ipv4"),
        pytest.param(["-6"], [{"fd99::1"}], id="6_asks_for_ipv6"),
        pytest.param([], [{"10.99.0.1"}, {"fd99::1"}], id="a_name_of_both_families_is_knocked_in_one"),
    ],
)
def test_all_knocks_go_to_one_address(
    hosts: tuple[Host, Host], wire: Wire, tmp_path: Path, options: list[str], addresses: list[set[str]]
) -> None:
    names = "fd99::1 gateway.test\n10.99.0.1 gateway.test\n"
    services = ["7000", "8000/udp", "9000", "6000/udp"]
    hosts[1].run(*named(tmp_path, names, "knock", *options, "-d0", "gateway.test", *services))
    knocks = wire.knocks()
    assert len(knocks) == len(services)
    assert {address_text(seen.packet.dst) for seen in knocks} in addresses


def test_a_name_is_resolved_once(hosts: tuple[Host, Host], wire: Wire, tmp_path: Path) -> None:
    """The name moves to another host between the first knock and the second, which does not follow it."""
    argv = named(
        tmp_path, "10.99.0.1 gateway.test\n", "knock", "-v", "-d500", "gateway.test", "7000", "8000", "9000/udp"
    )
    with ended(hosts[1].start(*argv, stdout=subprocess.PIPE)) as knocking:
        assert line(knocking.stdout) == "knock 1 of 3: 10.99.0.1 7000/tcp"
        (tmp_path / "hosts").write_text("10.99.0.77 gateway.test\n")
        assert knocking.wait(PATIENCE) == 0
    assert [address_text(seen.packet.dst) for seen in wire.knocks()] == ["10.99.0.1"] * 3


def test_a_name_that_does_not_resolve_fails_in_the_resolvers_words(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    done = hosts[1].run(*named(tmp_path, "", "knock", "gateway.test", "7000"), check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "logknock: 'gateway.test' does not resolve: Temporary failure in name resolution",
        "hint: check the spelling, or give the host's address instead of its name",
    ]


NO_ROUTE = "hint: this machine has no route to {host}: "
FORBIDDEN = "hint: a firewall or a route of this machine forbids it: "


@pytest.mark.parametrize("service", ["7000/tcp", "7000/udp"])
@pytest.mark.parametrize(
    ("route", "host", "words", "hint"),
    [
        pytest.param("", "192.0.2.1", "Network is unreachable", NO_ROUTE, id="no_route"),
        pytest.param("", "2001:db8::1", "Network is unreachable", NO_ROUTE, id="no_route_for_ipv6"),
        pytest.param("unreachable 192.0.2.0/24", "192.0.2.1", "No route to host", NO_ROUTE, id="an_unreachable_host"),
        pytest.param("prohibit 192.0.2.0/24", "192.0.2.1", "Permission denied", FORBIDDEN, id="a_forbidden_route"),
    ],
)
def test_a_network_that_refuses_a_knock_is_told_with_a_hint(
    hosts: tuple[Host, Host], service: str, route: str, host: str, words: str, hint: str
) -> None:
    if route:
        hosts[1].run("ip", "route", "add", *route.split())
    done = hosts[1].logknock("knock", host, service, "8000", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    told, hinted = done.stderr.splitlines()
    assert told == f"logknock: knock 1 of 2 ({service}) could not be sent: {words}"
    assert hinted.startswith(hint.format(host=host))


@FAMILIES
@pytest.mark.parametrize("verdict", ["drop", "reject"])
def test_a_knock_that_the_local_firewall_refuses_ends_the_run(
    hosts: tuple[Host, Host], wire: Wire, verdict: str, family: str
) -> None:
    gateway, knocker = hosts
    knocker.nft(
        f"""table inet test {{
            chain output {{
                type filter hook output priority 0
                udp dport 8000 {verdict}
            }}
        }}
        """
    )
    words = ["knock", "-v", "-d0", address(gateway, family), "7000/tcp", "8000/udp", "9000/tcp"]
    done = knocker.logknock(*words, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"knock 1 of 3: {address(gateway, family)} 7000/tcp"]
    told, hinted = done.stderr.splitlines()
    assert told == "logknock: knock 2 of 3 (8000/udp) could not be sent: Operation not permitted"
    assert hinted.startswith(FORBIDDEN)
    assert [seen.service for seen in wire.knocks()] == ["7000/tcp"]


def test_a_process_with_no_descriptor_left_is_told_so(hosts: tuple[Host, Host]) -> None:
    code = """
import resource, sys
from logknock import client, errors
address = client.resolve(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    client.knock(address, client.parse_knocks(["7000"]))
except errors.LogknockError as error:
    print(*error.report(), sep="\\n")
"""
    assert hosts[1].python(code, hosts[0].ipv4).stdout.splitlines() == [
        "logknock: knock 1 of 1 (7000/tcp) could not be sent: Too many open files",
        "hint: too many files are open: see `ulimit -n`",
    ]


def test_ctrl_c_ends_the_run_between_two_knocks_without_a_traceback(hosts: tuple[Host, Host], wire: Wire) -> None:
    gateway, knocker = hosts
    logknock = [sys.executable, "-m", "logknock", "knock", "-v", "-d60s", gateway.ipv4, "7000", "8000"]
    argv = ["env", "--default-signal=INT", *logknock]  # who runs the tests in the background has it ignored
    with ended(knocker.start(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)) as knocking:
        assert line(knocking.stdout) == "knock 1 of 2: 10.99.0.1 7000/tcp"
        knocking.send_signal(signal.SIGINT)
        assert knocking.communicate(timeout=PATIENCE)[1].strip() == ""
        assert knocking.returncode == 1
    assert [seen.service for seen in wire.knocks()] == ["7000/tcp"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param([], ["Missing argument '{HOST"], id="no_host"),
        pytest.param(["10.99.0.1"], ["'10.99.0.1' is no PROFILE", "no SERVICE"], id="no_service"),
        pytest.param(["10.99.0.1", "ssh"], ["'ssh' is no SERVICE"], id="a_name_as_service"),
        pytest.param(["7000"], ["'7000' is a service", "HOST"], id="one_service_without_a_host"),
        pytest.param(["a,,b", "7000"], ["'a,,b': a host is missing"], id="a_host_missing_between_two"),
        pytest.param(["10.99.0.1", "2s", "7000"], ["'2s': a pause stands between"], id="a_pause_first"),
        pytest.param(["10.99.0.1", "7000", "61s", "8000"], ["a pause is 60s at most"], id="a_pause_too_long"),
        pytest.param(["--verify", "53/udp", "10.99.0.1", "7000"], ["53/udp cannot be verified"], id="udp_verified"),
        pytest.param(["--verify", "ssh", "10.99.0.1", "7000"], ["'ssh' is no port number"], id="a_name_verified"),
        pytest.param(["--verify", "2s", "10.99.0.1", "7000"], ["'2s' is no service"], id="a_pause_verified"),
        pytest.param(["--tries", "3", "10.99.0.1", "7000"], ["without --verify"], id="tries_of_nothing"),
        pytest.param(["--verify", "22", "--tries", "0", "10.99.0.1", "7000"], ["1<=x<=10"], id="no_try"),
        pytest.param(["--verify", "22", "--tries", "11", "10.99.0.1", "7000"], ["1<=x<=10"], id="too_many_tries"),
        pytest.param(["--timeout", "61s", "10.99.0.1", "7000"], ["'61s' is no delay"], id="a_timeout_too_long"),
        pytest.param(
            ["--timeout", "99ms", "10.99.0.1", "7000"], ["out of range (100ms-60s)"], id="a_timeout_too_short"
        ),
        pytest.param(["--again", "10.99.0.1", "7000"], ["--again is for a PROFILE"], id="again_at_a_host"),
        pytest.param(["7000/tcp", "8000"], ["'7000/tcp' is a service", "HOST"], id="services_without_a_host"),
        pytest.param(["-4", "-6", "10.99.0.1", "7000"], ["-4 and -6 exclude each other"], id="both_families"),
        pytest.param(["-d", "2m", "10.99.0.1", "7000"], ["'2m' is no delay"], id="a_delay_that_is_none"),
        pytest.param(["-d", "-5", "10.99.0.1", "7000"], ["'-5' is no delay"], id="a_delay_below_zero"),
        pytest.param(["-d", "61s", "10.99.0.1", "7000"], ["'61s' is no delay", "60s at most"], id="a_delay_too_long"),
        pytest.param(["--loud", "10.99.0.1", "7000"], ["No such option: --loud"], id="an_unknown_option"),
        pytest.param(["10.99.0.1", "7000", "-x"], ["No such option: -x"], id="an_unknown_option_among_services"),
        pytest.param(["10.99.0.1", "7000", "-5"], ["'-5' is no port number"], id="a_negative_port_is_no_option"),
        pytest.param(
            ["10.99.0.1", "7000", "0", "70000/udp", "abc", "12x", "-5", "", "7000/sctp"],
            ["0 is no port", "70000/udp is no port", "'abc'", "'12x'", "'-5'", "''", "'sctp'", "hint: a service is"],
            id="every_bad_service_at_once",
        ),
    ],
)
def test_a_usage_error_exits_2_and_sends_nothing(
    hosts: tuple[Host, Host], wire: Wire, words: list[str], told: list[str]
) -> None:
    done = hosts[1].logknock("knock", *words, check=False)
    assert done.returncode == 2
    for text in told:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert wire.knocks() == []


def test_the_help_has_an_example(hosts: tuple[Host, Host]) -> None:
    shown = hosts[1].logknock("knock", "-h").stdout
    assert "Example: logknock knock -v host.example 7000/tcp 9000/udp 8000" in shown
