"""Scanners are banned, and nobody else: real nmap, the real rules, the real daemon; and bans by hand."""

import json
import re
import signal
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from logknock.errors import FAILURE

from .test_intake import write_knocks
from .test_lockout import LOGKNOCK, Administrator, administrator
from .world import KNOCKS, SSH, Daemon, World, until

__all__ = ["administrator"]  # a fixture

SCAN = '[scan]\nports = 5\nwithin = "2m"\nban = "1h"\n'
SCANNER = "198.51.100.7"
TRUSTED = "198.51.100.99"
FIREWALL = f'[firewall]\ntrusted = ["{TRUSTED}", "fd98:9::/64"]\n'


@pytest.fixture
def scanned(world: World) -> World:
    """The gateway looks for scanners."""
    world.configure(SSH.replace("30s", "10m") + FIREWALL + SCAN)
    world.apply()
    return world


def traps(world: World, count: int, proto: str = "tcp") -> str:
    """Some of the ports that are recorded and knocked by nobody, as nmap takes them."""
    listing = json.loads(world.gateway.run("nft", "-j", "list", "set", "inet", "logknock", "traps").stdout)
    found = next(entry["set"] for entry in listing["nftables"] if "set" in entry)
    ports = [port for name, port in (element["concat"] for element in found["elem"]) if name == proto]
    return ",".join(map(str, ports[:count]))


def scan(world: World, *options: str, ports: str, source: str = SCANNER) -> None:
    """A scan of these ports from a source of its own."""
    is_6 = ":" in source
    length, target = ("128", world.gateway.ipv6) if is_6 else ("32", world.gateway.ipv4)
    world.client.run("ip", "addr", "replace", f"{source}/{length}", "dev", "lo")
    family = ("-6",) if is_6 else ()
    world.client.run(
        "nmap", *family, *options, "-e", "eth0", "-S", source, "-Pn", "-n", "--max-retries", "0", "-p", ports, target,
        timeout=120,
    )  # fmt: skip


def banned(world: World) -> dict[str, dict[str, Any]]:
    """What the kernel has, of both families."""
    return world.granted("banned4") | world.granted("banned6")


def listed(world: World) -> dict[str, dict[str, Any]]:
    """What `logknock bans` says."""
    lines = world.gateway.logknock("bans", "--json", "-c", str(world.config)).stdout.splitlines()
    return {ban["address"]: ban for ban in map(json.loads, lines)}


def command(world: World, *words: str, code: int = 0) -> str:
    """A command about bans, and what it says."""
    done = world.gateway.logknock(words[0], "-c", str(world.config), *words[1:], check=False)
    assert done.returncode == code, done
    return done.stdout if code == 0 else done.stderr


def knocks_in(world: World, daemon: Daemon, source: str) -> bool:
    """Whether an honest knock of a source, right now, opens the door for it."""
    target, bits = (world.gateway.ipv6, 64) if ":" in source else (world.gateway.ipv4, 32)
    key = str(ip_network((source, bits), strict=False).network_address)

    def openings() -> int:
        daemon.read()
        return sum("OPEN SESAME" in line and line.startswith(source) for line in daemon.lines)

    before = openings()
    world.spoof(*(f"{source}>{target}:{service}" for service in KNOCKS))
    until(lambda: openings() > before or key in banned(world), "an open door, or a ban that keeps it shut")
    daemon.counter("records")  # told when what has come in is read
    return openings() > before


@pytest.mark.parametrize(
    ("options", "counts", "proto", "is_caught"),
    [
        pytest.param(["-sS"], "syn", "tcp", True, id="SYN"),
        pytest.param(["-sS", "-T2"], "syn", "tcp", True, id="SYN, slowly"),
        pytest.param(["-sF"], "syn", "tcp", False, id="FIN, which is no SYN"),
        pytest.param(["-sX"], "syn", "tcp", False, id="XMAS, which is no SYN"),
        pytest.param(["-sN"], "syn", "tcp", False, id="NULL, which is no SYN"),
        pytest.param(["-sU"], "syn", "udp", False, id="UDP, which anybody forges"),
        pytest.param(["-sF"], "tcp", "tcp", True, id="FIN, counted"),
        pytest.param(["-sX"], "tcp", "tcp", True, id="XMAS, counted"),
        pytest.param(["-sN"], "tcp", "tcp", True, id="NULL, counted"),
        pytest.param(["-sU"], "udp", "udp", True, id="UDP, counted"),
    ],
)
def test_t6_a_scanner_is_banned_and_nobody_else(
    world: World, options: Sequence[str], counts: str, proto: str, is_caught: bool
) -> None:
    """T6: six traps, of which five make a scanner. -T2 takes 0.4 s for each."""
    world.configure(SSH + FIREWALL + SCAN + f'counts = "{counts}"\n')
    world.apply()
    with world.daemon() as daemon:
        scan(world, *options, ports=traps(world, 6, proto))
        until(lambda: daemon.counter("records") >= 5, "the scan to be recorded")
        if is_caught:
            until(lambda: banned(world), "the ban")
            assert set(banned(world)) == {SCANNER}
            daemon.wait_for(f"{SCANNER}: banned for 3600 s: scan of 5 ports")
            assert not knocks_in(world, daemon, SCANNER), "its knocks are dropped"
        assert knocks_in(world, daemon, "198.51.100.8"), "beside it, through the same router, nobody is disturbed"
        assert set(listed(world)) == set(banned(world)) == ({SCANNER} if is_caught else set())


def test_t6_beside_a_firewall_of_the_hosts_own(world: World) -> None:
    """T6: with rules/mark.nft, and all that the host's firewall drops in its own NFLOG rule: no traps are needed."""
    mark = "[firewall]\nmark = 0x10000\nrecord = false\n"
    world.configure(SSH + mark + SCAN)
    world.apply()
    world.gateway.nft(
        "table inet host { chain input { type filter hook input priority 0; policy drop\n"
        'iifname "lo" accept\nct state established,related accept\nmeta mark & 0x10000 == 0x10000 accept\n'
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\nlog group 5\n}\n}"
    )
    with world.daemon() as daemon:
        scan(world, "-sS", ports="80,443,8080,25,110,143")
        daemon.wait_for(f"{SCANNER}: banned for 3600 s: scan of 5 ports")
        assert not knocks_in(world, daemon, SCANNER)
        assert knocks_in(world, daemon, "198.51.100.8")
        assert set(banned(world)) == {SCANNER}


def test_without_our_table_it_is_said_that_nobody_can_be_banned(world: World) -> None:
    """Doors into sets of the administrator's own need no rules of ours; bans do."""
    world.gateway.nft("table inet filter { set allowed { type ipv4_addr; flags timeout; }; }")
    world.configure(SSH + 'guard = false\nsets = ["inet filter allowed"]\n' + SCAN)
    assert "bans need the rules of logknock" in world.gateway.logknock("check", "-c", str(world.config)).stderr
    with world.daemon() as daemon:
        assert daemon.says("no scanner can be banned: set inet logknock banned4 is missing")
        assert daemon.says("`logknock rules apply` loads it")
        assert "set inet logknock banned4 is missing" in command(world, "ban", "203.0.113.7", code=1)
        world.apply()
        scan(world, "-sS", ports=traps(world, 6))
        daemon.wait_for(f"{SCANNER}: banned for 3600 s: scan of 5 ports")
        assert set(banned(world)) == {SCANNER}


def test_t12_decoys_do_not_lock_out_the_trusted_nor_whoever_is_in(scanned: World) -> None:
    """T6, T12: `nmap -D` scans in the names of others too. What is nobody's in particular is banned like a scanner."""
    granted, other = "203.0.113.7", "203.0.113.8"
    with scanned.daemon() as daemon:
        assert knocks_in(scanned, daemon, granted)
        scan(scanned, "-sS", "-D", f"{TRUSTED},{granted},{other},ME", ports=traps(scanned, 8))
        until(lambda: {SCANNER, other} <= set(banned(scanned)), "the bans")
        until(lambda: daemon.counter("records") >= 3 + 2 * 8 + 2 * 5, "all that the decoys seem to have sent")
        assert knocks_in(scanned, daemon, TRUSTED)
        assert knocks_in(scanned, daemon, "203.0.113.9"), "nor anybody else"
        assert set(banned(scanned)) == {SCANNER, other}
        assert f"{granted} . tcp . 22" in scanned.granted()


def test_t6_ipv6_is_banned_by_its_64(scanned: World) -> None:
    """T6: who has a /64 has 2^64 addresses to go on from."""
    with scanned.daemon() as daemon:
        for number, port in enumerate(traps(scanned, 4).split(",")):
            scan(scanned, "-sS", ports=port, source=f"fd98:0:0:5::{number + 1}")
        until(lambda: daemon.counter("records") >= 4, "the scans to be recorded")
        assert banned(scanned) == {}
        scan(scanned, "-sS", ports=traps(scanned, 6), source="fd98:0:0:5:a:b:c:d")
        until(lambda: banned(scanned), "the ban")
        assert set(banned(scanned)) == {"fd98:0:0:5::"}
        daemon.wait_for("fd98:0:0:5::/64: banned for 3600 s: scan of ")
        assert not knocks_in(scanned, daemon, "fd98:0:0:5::77")
        assert knocks_in(scanned, daemon, "fd98:0:0:6::77")
        scan(scanned, "-sS", ports=traps(scanned, 8), source="fd98:9::1")
        assert command(scanned, "unban", "fd98:0:0:5::1") == "no longer banned: fd98:0:0:5::/64\n"
        assert knocks_in(scanned, daemon, "fd98:0:0:5::77")
        assert banned(scanned) == {}, "T12: fd98:9::/64 is trusted"


def test_who_knocks_at_every_door_in_every_order_is_no_scanner(world: World) -> None:
    """Knock ports are not counted, whoever tries them how often, nor is what is guarded."""
    doors = "".join(
        f'[doors.d{number}]\nsequence = ["{7000 + number}/tcp", "{7100 + number}/tcp", "{7200 + number}/tcp"]\n'
        f'opens = ["{1000 + number}/tcp"]\n'
        for number in range(4)
    )
    world.configure(doors + SCAN)
    world.apply()
    with world.daemon() as daemon:
        ports = [base + number for base in (7200, 7100, 7000, 1000) for number in range(4)]
        world.spoof(*(f"{SCANNER}>{world.gateway.ipv4}:{port}/tcp" for port in ports))
        until(lambda: daemon.counter("records") >= len(ports), "the knocks")
        world.spoof(*(f"{SCANNER}>{world.gateway.ipv4}:{7000 + 100 * step}/tcp" for step in range(3)))
        daemon.wait_for(f"{SCANNER}: d0: OPEN SESAME")
        assert banned(world) == {}


@pytest.mark.parametrize("end", ["by itself", "by hand"])
def test_when_a_ban_has_ended_a_knock_opens(world: World, end: str) -> None:
    world.configure(SSH + SCAN.replace("1h", "2s" if end == "by itself" else "1h"))
    world.apply()
    with world.daemon() as daemon:
        scan(world, "-sS", ports=traps(world, 6))
        daemon.wait_for(f"{SCANNER}: banned for ")
        if end == "by hand":
            assert not knocks_in(world, daemon, SCANNER)
            assert command(world, "unban", SCANNER) == f"no longer banned: {SCANNER}\n"
            daemon.wait_for(f"{SCANNER}: no longer banned: by hand")
        until(lambda: not banned(world), "the end of the ban")
        assert listed(world) == {}
        assert knocks_in(world, daemon, SCANNER)


def test_t13_a_flood_of_forged_scanners_keeps_nobody_out_and_is_told_in_few_lines(scanned: World) -> None:
    """T13: 300 of them at once. Batches of 64, ten a second, and as many lines."""
    target = scanned.gateway.ipv4
    ports = traps(scanned, 5).split(",")
    with scanned.daemon() as daemon:
        forged = (f"203.0.113.{number}>{target}:{port}/tcp" for number in range(1, 251) for port in ports)
        scanned.spoof(*forged)
        assert knocks_in(scanned, daemon, "198.51.100.8")
        until(lambda: daemon.counter("banned,") + daemon.counter("scanners not banned") == 250, "all to be caught")
        many = daemon.counter("banned,")
        assert 64 <= many == len(banned(scanned)) == len(listed(scanned))
        until(lambda: daemon.says("more lines about bans left out"), "the count")
        assert sum("scan of 5 ports" in line for line in daemon.lines) <= many / 2
        assert command(scanned, "unban", "--all") == f"no longer banned: all {many}\n"
        assert banned(scanned) == {}


def test_t38_nobody_bans_the_address_of_their_own_session(administrator: Administrator) -> None:
    """T38: nor the /64 that it is in."""
    world = administrator.world
    world.apply()
    with world.daemon():
        for address, mine in ((world.gateway.ipv4, world.client.ipv4), (world.gateway.ipv6, "fd99::3")):
            line = f"{LOGKNOCK} ban -c {world.config} {mine}; echo ended $?; cat"
            world.gateway.run("nft", "add", "element", "inet", "logknock", "trusted4", f"{{ {world.client.ipv4} }}")
            world.gateway.run("nft", "add", "element", "inet", "logknock", "trusted6", f"{{ {world.client.ipv6} }}")
            with administrator.session(line, address=address) as session:
                said = session.read_until("ended")
            assert "is where this ssh session comes from" in said
            assert said.endswith(f"ended {FAILURE}\n")
        assert banned(world) == {}


def test_bans_outlive_a_restart_and_a_new_load_of_the_rules(scanned: World) -> None:
    with scanned.daemon() as daemon:
        scan(scanned, "-sS", ports=traps(scanned, 6))
        daemon.wait_for(f"{SCANNER}: banned")
        command(scanned, "ban", "fd98:0:0:5::1", "2h")
        scanned.apply()
        assert set(banned(scanned)) == {SCANNER, "fd98:0:0:5::"}
        daemon.process.kill()
    assert set(banned(scanned)) == {SCANNER, "fd98:0:0:5::"}, "the kernel holds them"
    with scanned.daemon() as daemon:
        assert daemon.says("2 are still banned")
        found = listed(scanned)
        assert 3500 < found[SCANNER]["left"] <= 3600
        assert found[SCANNER]["reason"] == "scan of 5 ports"
        assert 7100 < found["fd98:0:0:5::/64"]["left"] <= 7200
        command(scanned, "unban", SCANNER)
        assert knocks_in(scanned, daemon, SCANNER)


def test_t34_a_flush_frees_nobody(scanned: World) -> None:
    """T34: of a set, and of everything."""
    with scanned.daemon() as daemon:
        scan(scanned, "-sS", ports=traps(scanned, 6))
        daemon.wait_for(f"{SCANNER}: banned")
        scanned.gateway.run("nft", "flush", "set", "inet", "logknock", "banned4")
        until(lambda: banned(scanned), "the ban to be back")
        scanned.gateway.run("nft", "delete", "table", "inet", "logknock")
        until(lambda: banned(scanned), "the ban to be back")
        left = banned(scanned)[SCANNER]["expires"]
        assert 3500 < left <= 3600


def test_scanners_are_looked_for_from_a_reload_on_and_not_any_more_after_another(world: World) -> None:
    world.apply()
    with world.daemon() as daemon:

        def reload(text: str) -> None:
            daemon.lines.clear()
            world.configure(text)
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("reloaded")

        ports = traps(world, 6)
        scan(world, "-sS", ports=ports)
        reload(SSH + SCAN)
        scan(world, "-sS", ports=ports)
        daemon.wait_for(f"{SCANNER}: banned")
        reload(SSH + SCAN + f'[firewall]\ntrusted = ["{SCANNER}"]\n')
        assert banned(world) == {}, "T12: trusted now"
        reload(SSH)
        scan(world, "-sS", ports=ports)
        assert command(world, "bans") == "nobody is banned\n"
        assert knocks_in(world, daemon, SCANNER)


def test_t10_t29_scans_in_a_log_file_count_once_and_old_ones_not_at_all(world: World) -> None:
    """T10, T29: a firewall that drops everything else writes down what it drops, and NFLOG may tell of it too."""
    log = world.config.parent / "kern.log"
    log.touch(0o640)
    world.configure(SSH + SCAN + f'[log]\nsource = ["nflog", "file"]\nfile.path = "{log}"\n')
    world.apply()
    ports = traps(world, 6).split(",")
    with world.daemon() as daemon:
        tried = tuple(f"{port}/tcp" for port in ports)
        write_knocks(log, SCANNER, tried, ahead=timedelta(hours=-1))
        until(lambda: daemon.counter("too old") == 6, "the old scan to be read")
        write_knocks(log, SCANNER, tried[:4])
        world.spoof(*(f"{SCANNER}>{world.gateway.ipv4}:{service}" for service in tried[:4]))
        until(lambda: daemon.counter("records") == 14, "four packets, each from two sources")
        write_knocks(log, "198.51.100.8", tried[4:5])
        until(lambda: daemon.counter("records") == 15, "somebody else's")
        assert banned(world) == {}
        write_knocks(log, SCANNER, tried[4:5])
        daemon.wait_for(f"{SCANNER}: banned for 3600 s: scan of 5 ports")
        assert set(banned(world)) == {SCANNER}
        write_knocks(log, SCANNER)  # what was on its way
        daemon.wait_for(f"{SCANNER}: no longer banned: a door is open for it")
        assert banned(world) == {}


def test_bans_by_hand_are_told_and_shown(world: World) -> None:
    """With [scan] off, too."""
    world.apply()
    with world.daemon() as daemon:
        assert command(world, "bans") == "nobody is banned\n"
        assert command(world, "ban", "203.0.113.7") == "banned for 1h: 203.0.113.7\n"
        assert command(world, "ban", "fd98::7", "1d12h") == "banned for 1d12h: fd98::/64\n"
        daemon.wait_for("fd98::/64: banned for 129600 s: by hand")
        shown = command(world, "bans").splitlines()
        assert shown[0].split() == ["address", "since", "left", "reason"]
        when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        ipv4, ipv6 = sorted(shown[1:])
        assert re.fullmatch(rf"203\.0\.113\.7 +{when}  (1h|\d+m(\d+s)?) +by hand", ipv4), shown
        assert re.fullmatch(rf"fd98::/64 +{when}  1d1[12]h(\d+m)? +by hand", ipv6), shown
        explained = world.gateway.logknock("explain", "-c", str(world.config), "fd98::5").stdout
        assert "fd98::5 is banned: all that it sends is dropped" in explained
        assert re.search(
            r"nothing of it is logged \(by hand; fd98::/64 since [-0-9]+ [:0-9]+, until [-0-9]+ [:0-9]+\)$",
            explained,
            re.M,
        )
        assert command(world, "unban", "--all") == "no longer banned: all 2\n"
        assert banned(world) == {}
        assert daemon.counter("banned,") == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("ban", "host.example"), 2, "no IP address"),
        (("ban", "192.0.2.0/24"), 2, "one IPv4 address or of an IPv6 /64"),
        (("ban", "192.0.2.7", "forever"), 2, "'forever' is no duration: write 30s, 1h30m or 2d"),
        (("ban", "192.0.2.7", "400d"), 2, "out of range"),
        (("ban", TRUSTED), 1, "take it out of [firewall] trusted"),
        (("ban", "10.99.0.1"), 1, "one of this host's own addresses: it is never banned"),
        (("ban", "fe80::1"), 1, "link-local"),
        (("unban", "192.0.2.7"), 1, "hint: `logknock bans` lists who is"),
        (("unban",), 2, "name an address or a prefix, or say --all"),
        (("unban", "192.0.2.7", "--all"), 2, "name an address or a prefix, or say --all"),
    ],
)
def test_what_cannot_be_banned_or_lifted_is_said(scanned: World, words: Sequence[str], code: int, says: str) -> None:
    with scanned.daemon():
        assert says in command(scanned, *words, code=code)
        assert banned(scanned) == {}


@pytest.mark.parametrize("words", [("bans",), ("ban", "192.0.2.7"), ("unban", "192.0.2.7")])
def test_without_a_daemon_there_is_nobody_to_ask(world: World, words: Sequence[str]) -> None:
    said = command(world, *words, code=69)
    assert "no daemon answers" in said
    assert "starts it; [paths] runtime must be the same" in said
