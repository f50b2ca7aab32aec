"""Real nmap against the real rules and the real daemon: a scan is no knock, in whatever order and at whatever rate."""

import json
import re

import pytest

from .world import World, until

# All over TCP, and ascending: what a scan would open at once if nothing but the knock ports were logged.
DOOR = """
[doors.ssh]
sequence = ["7000/tcp", "7010/tcp", "7020/tcp"]
opens = ["22/tcp"]
timeout = "30s"
seq_timeout = "1h"
"""

FULL_SCANS = 24


def scan(world: World, number: int, *options: str, ports: str = "-") -> str:
    """One scan, each from a source of its own, so that none is deaf from the one before; gives what nmap prints."""
    source = f"198.51.100.{number + 1}"
    world.client.run("ip", "addr", "add", f"{source}/32", "dev", "lo", check=False)
    options = ("-e", "eth0", "-S", source, "-Pn", "-n", "--max-retries", "0", "-p", ports, *options)
    return world.client.run("nmap", "-sS", *options, world.gateway.ipv4, timeout=120).stdout


def knocked(world: World, trace: str) -> bool:
    """Whether the scan happened to send the three knocks one after the other, with no packet between that is recorded.

    Chance does that with one random scan of some hundreds over so few ports; it is a knock then, and may open.
    """
    recorded: set[int] = set()
    for name in ("watched", "traps"):
        listing = json.loads(world.gateway.run("nft", "-j", "list", "set", "inet", "logknock", name).stdout)
        found = next(entry["set"] for entry in listing["nftables"] if "set" in entry)
        recorded |= {port for proto, port in (element["concat"] for element in found["elem"]) if proto == "tcp"}
    sent = [int(port) for port in re.findall(r"^SENT .* > [\d.]+:(\d+) S ", trace, re.MULTILINE)]
    assert len(sent) == 201, trace
    heard = [port for port in sent if port in recorded]
    assert len(heard) > 25, "an eighth at least, of a quarter that is chosen at random"
    return any(heard[at : at + 3] == [7000, 7010, 7020] for at in range(len(heard)))


def test_t1_full_scans_in_ascending_order_open_nothing(world: World) -> None:
    """T1."""
    world.configure(DOOR)
    world.apply()
    with world.daemon() as daemon:
        for number in range(3):
            scan(world, number, "-r", "-T5", "--min-rate", "20000")
        until(lambda: daemon.counter("records") >= 3 * 40, "what a source is heard of before it is deaf")
        assert world.granted() == {}
        assert daemon.counter("opened") == 0, "what has closed again, and whose line found no room, counts too"


def test_t2_full_scans_in_random_order_open_nothing(world: World) -> None:
    """T2: nmap's own random order."""
    world.configure(DOOR)
    world.apply()
    with world.daemon() as daemon:
        for number in range(FULL_SCANS):
            scan(world, number, "-T5", "--min-rate", "20000")
        until(lambda: daemon.counter("records") >= FULL_SCANS * 40, "what each source is heard of")
        assert world.granted() == {}
        assert daemon.counter("opened") == 0, "what has closed again, and whose line found no room, counts too"


@pytest.mark.parametrize("order", [("-r",), ()], ids=["ascending", "random"])
@pytest.mark.parametrize("rate", ["40", "80", "120", "400"])
def test_t1_t2_scans_around_the_limiters_own_rate_open_nothing(world: World, order: tuple[str, ...], rate: str) -> None:
    """T1, T2: fast enough to be told from a person, slow enough to be heard in full, and both sides of the line.

    Of the ports about the knock ports nearly a third is recorded, 12 to 120 packets a second: there a limit of 20 a
    second could sample.
    """
    world.configure(DOOR + "[firewall]\ntraps = 16384\n")
    world.apply()
    with world.daemon() as daemon:
        trace = scan(world, 0, *order, "--packet-trace", "--min-rate", rate, "--max-rate", rate, ports="6840-7040")
        until(lambda: daemon.counter("records") >= 25, "some of the scan")
        if not knocked(world, trace):
            assert world.granted() == {}
            assert daemon.counter("opened") == 0


@pytest.mark.parametrize("policy", ["accept", "drop"], ids=["no other firewall", "behind a firewall that drops"])
def test_a_scan_does_not_tell_knock_ports_from_others(world: World, policy: str) -> None:
    """Who knew the three ports would have six orders to try: they answer, or do not, as their neighbours do."""
    world.configure(DOOR.replace('"7020/tcp"', '"7020/tcp", "7030/udp"'))
    world.apply()
    world.gateway.nft(f"table inet host {{ chain input {{ type filter hook input priority 0; policy {policy}; }}; }}")
    ports = "T:6990-7040,U:7025-7035"
    # The host's limit of ICMP errors, one a second, would hide UDP ports at random.
    world.gateway.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
    options = ("-sS", "-sU", "-Pn", "-n", "--max-rate", "30", "--max-retries", "3", "-p", ports, "-oG", "-")
    done = world.client.run("nmap", *options, world.gateway.ipv4, timeout=120)
    assert "/open/" not in done.stdout
    shown = {int(port): state for port, state in re.findall(r"(\d+)/(closed|filtered|open\|filtered)/", done.stdout)}
    for knock in (7000, 7010, 7020, 7030):
        assert shown.get(knock) == shown.get(knock + 2), done.stdout


def test_t3_without_traps_check_says_what_a_scan_would_do(world: World) -> None:
    """T3, and the proof that these tests can fail: with traps switched off the same ascending scan opens the door."""
    world.configure(DOOR + "[firewall]\ntraps = 0\n")
    assert "scan" in world.gateway.logknock("check", "-c", str(world.config)).stderr
    world.apply()
    with world.daemon() as daemon:
        scan(world, 0, "-r", "--max-rate", "20", ports="6990-7030")
        daemon.wait_for("198.51.100.1: ssh: OPEN SESAME")
