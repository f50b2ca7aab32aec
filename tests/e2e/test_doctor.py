"""`logknock doctor`: real faults, one by one. Each gives its finding and no other, and its remedy takes it away."""

import fcntl
import json
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from logknock.totp import format_secret

from ..netns import Host, pair
from ..peers import kernel_log, own_prefix
from ..test_nflog import FLOOD, dropped
from .booted import booted
from .world import ECHO, LINES, World, until, write_sequences

ALL_NETNS = Path("/proc/sys/net/netfilter/nf_log_all_netns")

# The daemon leaves the faults that the tests make.
CONFIG = """
[firewall]
restore = false
traps = 64
trusted = ["192.0.2.0/25", "192.0.2.128/25", "2001:db8::/32"]
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp"]
"""

# What a machine without anything that keeps the clock right says of that is no matter of these tests.
ASIDE = {"clock"}

Found = dict[str, dict[str, Any]]


def findings(world: World, *options: str, code: int | None = None) -> list[dict[str, Any]]:
    """What is not as it should be."""
    done = world.gateway.logknock("doctor", "--json", "-c", str(world.config), *options, check=False)
    assert not done.stderr, done.stderr
    answer = json.loads(done.stdout)
    assert done.returncode == answer["code"] == (done.returncode if code is None else code), done.stdout
    return [found for found in answer["findings"] if found["level"] != "ok" and found["check"] not in ASIDE]


def doctor(world: World, *options: str, code: int | None = None) -> Found:
    """The same by check; of a check that finds two things, the worse."""
    order = ["note", "unseen", "warning", "error"]
    found = findings(world, *options, code=code)
    return {one["check"]: one for one in sorted(found, key=lambda one: order.index(one["level"]))}


def remedy(world: World, command: str) -> None:
    """Do what was said, as it was said: copied into a shell."""
    path = f"{world.config.parent}/bin:{os.environ['PATH']}"
    world.gateway.run("sh", "-ec", command, env={**os.environ, "PATH": path})


def install(world: World) -> None:
    """The command of this tree by its name."""
    script = world.config.parent / "bin" / "logknock"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m logknock "$@"\n')
    script.chmod(0o755)


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A host on which nothing is wrong: rules, daemon, a service behind the door."""
    with pair() as (gateway, client):
        world = World(gateway, client, tmp_path_factory.mktemp("well") / "logknock.toml")
        world.configure(CONFIG)
        install(world)
        world.apply()
        with world.daemon(), world.service(22):
            yield world


def test_where_all_is_well_it_says_so_in_a_few_lines(well: World) -> None:
    assert doctor(well, code=0) == {}
    done = well.gateway.logknock("doctor", "-c", str(well.config))
    assert re.search(r"^\d+ checks: (all is well|1 note)\n\Z", done.stdout, re.MULTILINE)
    assert len(done.stdout.splitlines()) <= 3
    every = well.gateway.logknock("doctor", "-v", "-c", str(well.config)).stdout
    assert "✓ table: inet logknock has its rules" in every
    assert f"✓ config: {well.config}" in every
    assert "\x1b" not in every, "what is piped is plain"


def trap(world: World) -> int:
    """Some port that is a trap."""
    listed = world.gateway.run("nft", "list", "set", "inet", "logknock", "traps").stdout
    found = re.search(r"tcp \. (\d+)", listed)
    assert found
    return int(found[1])


LEAD = "ip link add eth1 type veth && ip link set eth1 up && ip route replace default via 10.99.0.2"

# What is done to the host, and: the check, its level, a part of its text.
FAULTS = [
    pytest.param("nft delete table inet logknock", "table", "error", "there is no table", id="the table is missing"),
    pytest.param("nft flush table inet logknock", "table", "error", "has lost the rules", id="the rules are gone"),
    pytest.param("nft flush chain inet logknock tell", "table", "error", "of chain tell", id="a chain is empty"),
    pytest.param(
        "nft delete element inet logknock watched '{ tcp . 7000 }'",
        "set-watched", "error", "lacks 7000/tcp", id="a knock port is not watched",
    ),
    pytest.param(
        "nft delete element inet logknock guarded '{ tcp . 22 }'",
        "set-guarded", "error", "lacks 22/tcp", id="a service is not guarded",
    ),
    pytest.param(
        "nft add element inet logknock watched '{ tcp . 7777 }'",
        "set-watched", "warning", "still holds 7777/tcp", id="a knock port of an older configuration",
    ),
    pytest.param(
        "nft add element inet logknock guarded '{ tcp . 443 }'",
        "set-guarded", "warning", "still holds 443/tcp", id="a guarded port that no door opens",
    ),
    pytest.param("nft flush set inet logknock traps", "set-traps", "warning", "holds 0 ports", id="no traps"),
    pytest.param("nft flush set inet logknock trusted4", "set-trusted", "error", "lack 192.0.2.0/24", id="not trusted"),
    pytest.param(
        "nft add element inet logknock trusted6 '{ fd99::/64 }'",
        "set-trusted", "error", "still trust fd99::/64", id="trusted by an older configuration",
    ),
    pytest.param(
        "nft flush chain inet logknock tell; nft add rule inet logknock tell log group 6",
        "log-rule", "error", "NFLOG group 5: no knock is ever seen; rules log to group 6", id="another group",
    ),
    pytest.param(
        "nft flush chain inet logknock tell; nft add rule inet logknock tell limit rate 3/minute log group 5",
        "log-limit", "warning", "limited to 3/minute", id="a limit before the log",
    ),
    pytest.param(
        "nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; policy drop; }'",
        "dropped-after", "error", "inet f in (input, priority 0) drops 22/tcp", id="a firewall of one's own behind",
    ),
    pytest.param("iptables -P INPUT DROP", "dropped-after", "error", "chain ip filter INPUT", id="iptables behind"),
    pytest.param(
        "ip6tables-legacy -P INPUT DROP; ip6tables -P INPUT ACCEPT",
        "dropped-after", "error", "chain ip6-legacy filter INPUT", id="iptables of the old kind, beside the new",
    ),
    pytest.param(
        "nft add table inet r; nft 'add chain inet r pre { type filter hook prerouting priority raw; }';"
        " nft add rule inet r pre tcp dport 6000-8000 drop",
        "dropped-before", "error", "drops 7000/tcp, 8000/tcp before", id="a firewall of one's own before",
    ),
    pytest.param(
        "iptables -t raw -A PREROUTING -p tcp --dport 7000 -j DROP",
        "dropped-before", "error", "chain ip raw PREROUTING (prerouting, priority -300) drops 7000/tcp",
        id="iptables before",
    ),
    pytest.param(
        f"{LEAD} && sysctl -qw net.ipv4.conf.all.rp_filter=1",
        "rp-filter", "note", "strict on eth1", id="strict where no default route leads",
    ),
    pytest.param(
        "i=0; { echo 'add element inet logknock granted4 {'; while [ $i -lt 60000 ]; do"
        " echo \"10.$((i / 256 / 256)).$((i / 256 % 256)).$((i % 256)) . tcp . 22 timeout 1h,\"; i=$((i + 1)); done;"
        " echo '}'; } | nft -f -",
        "set-full", "warning", "set granted4 holds 60,000 of 65,535", id="a set is nearly full",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "check", "level", "text"), FAULTS)
def test_a_fault_gives_its_finding_and_its_remedy_helps(
    well: World, fault: str, check: str, level: str, text: str
) -> None:
    well.gateway.run("sh", "-ec", fault)
    try:
        (found,) = findings(well, code=1 if level == "error" else 0)
        assert (found["check"], found["level"]) == (check, level)
        assert text in found["text"]
        remedy(well, found["remedy"])
        assert findings(well, code=0) == [], found["remedy"]
    finally:
        mended = "nft flush ruleset; ip link del eth1; sysctl -qw net.ipv4.conf.all.rp_filter=0;"
        mended += " ip6tables-legacy -P INPUT ACCEPT; ip6tables-legacy -F"
        well.gateway.run("sh", "-c", mended, check=False)
        well.apply()


def test_a_service_on_a_trap(well: World) -> None:
    port = trap(well)
    with well.service(port):
        found = doctor(well, code=0)
        assert list(found) == ["trap-listening"]
        assert re.match(rf"python3?\S* on {port}/tcp listens on a trap", found["trap-listening"]["text"])
        remedy(well, found["trap-listening"]["remedy"])
        assert doctor(well) == {}
    well.apply()


def test_a_service_where_one_knocks(well: World) -> None:
    with well.service(8000):
        found = doctor(well, code=0)
    assert list(found) == ["knock-listening"]
    assert "on 8000/tcp" in found["knock-listening"]["text"]


def test_an_ssh_daemon_that_no_door_guards(well: World, tmp_path: Path) -> None:
    """By its name: the kernel calls a program as it was started."""
    (tmp_path / "sshd").symlink_to("/usr/bin/python3")
    process = well.gateway.start(str(tmp_path / "sshd"), "-c", ECHO, "2222", stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        (found,) = findings(well, code=0)
        assert (found["check"], found["level"]) == ("ssh-open", "note")
        assert "2222/tcp, which no door opens" in found["text"]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_packets_that_rp_filter_drops(well: World) -> None:
    """Not a guess then: the kernel counts them."""
    try:
        well.gateway.run(
            "sh", "-ec", f"{LEAD}; ip route replace 203.0.113.0/24 dev eth1; sysctl -qw net.ipv4.conf.eth0.rp_filter=1"
        )
        assert doctor(well) == {}, "no stranger comes in by eth1, where it is loose"
        well.spoof(f"203.0.113.9>{well.gateway.ipv4}:7000/tcp")
        found = doctor(well, code=0)
        assert list(found) == ["rp-filter"]
        assert "strict on eth0: 1 packet that" in found["rp-filter"]["text"]
        remedy(well, found["rp-filter"]["remedy"])
        assert doctor(well) == {}
    finally:
        well.gateway.run("ip", "link", "del", "eth1")


def test_a_changed_configuration_is_told_of_until_it_counts(well: World) -> None:
    """And no longer: the daemon says by its lock when it read it."""
    os.utime(well.config)
    found = doctor(well, code=0)
    assert list(found) == ["daemon-config"]
    assert f"&& kill -HUP {doctor_pid(well)}" in found["daemon-config"]["remedy"]
    remedy(well, found["daemon-config"]["remedy"])
    until(lambda: doctor(well) == {}, "the reload")


def test_a_daemon_that_does_nothing(well: World) -> None:
    """It has its lock and its group, and lets nobody in."""
    os.kill(doctor_pid(well), signal.SIGSTOP)
    try:
        found = doctor(well, code=1)
        assert list(found) == ["daemon"]
        assert "is stopped" in found["daemon"]["text"]
        remedy(well, found["daemon"]["remedy"])
        assert doctor(well, code=0) == {}
    finally:
        os.kill(doctor_pid(well), signal.SIGCONT)


def test_a_limit_that_has_a_name(well: World) -> None:
    """As nft lists it, it is a word where other limits are objects."""
    well.gateway.nft(
        "table inet pre {\nlimit l { rate 3/minute; }\nchain c {\n"
        'type filter hook prerouting priority -400; limit name "l" log prefix "x"; limit name "l" log group 9; }; }'
    )
    try:
        assert doctor(well, code=0) == {}
    finally:
        well.gateway.nft("delete table inet pre")


def doctor_pid(world: World) -> int:
    """The daemon's process, as `status` has it."""
    answer = json.loads(world.gateway.logknock("status", "--json", "-c", str(world.config)).stdout)
    return int(answer["daemon"]["pid"])


def test_nothing_on_the_host_is_changed(well: World) -> None:
    """No rule, set, module, sysctl or file; not by asking iptables of either kind."""

    def state() -> list[str]:
        commands = (
            "nft -s list ruleset",
            "nft list tables",
            "cat /proc/net/netfilter/nfnetlink_log",
            "ip -s neigh flush all",
        )
        shown = [well.gateway.run("sh", "-c", command).stdout for command in commands[:3]]
        files = sorted(f"{path} {path.stat().st_mtime_ns}" for path in well.config.parent.rglob("*"))
        names = "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"
        return [*shown, *(well.gateway.run("cat", name, check=False).stdout for name in names), *files]

    before = state()
    doctor(well)
    assert state() == before


def test_colours_are_for_terminals(well: World) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "logknock", "doctor", "-v", "-c", str(well.config)]
    process = well.gateway.start(*command, stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    try:
        while some := os.read(master, 65536):
            text += some
    except OSError:  # EIO: nobody has the other end any more
        pass
    finally:
        os.close(master)
    assert process.wait() == 0
    assert b"\x1b[32m" in text
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", text.replace(b"\r\n", b"\n")).decode()
    assert [c for c in plain if not c.isprintable() and c != "\n"] == []


# ---- without a daemon


@pytest.fixture
def still(world: World) -> World:
    """Rules and a service, and no daemon."""
    world.configure(CONFIG)
    install(world)
    world.apply()
    return world


def test_no_daemon(still: World) -> None:
    with still.service(22):
        found = doctor(still, code=1)
        assert list(found) == ["daemon"]
        assert found["daemon"]["remedy"] == f"logknock run -c {still.config}"
        with still.daemon():
            assert doctor(still) == {}


HOLDER = """
import sys
from logknock.sources.nflog import Nflog
held = Nflog(5, lambda *_: True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_daemon_that_does_not_believe_its_state(still: World) -> None:
    """Others can write the directory: nothing is remembered. From there to well by the remedies, and a restart."""
    folder = still.config.parent / "state"
    folder.chmod(0o777)
    with still.service(22):
        with still.daemon():
            found = doctor(still, code=1)
            assert sorted(found) == ["daemon", "nflog-group", "state"]
            assert "can be written by others" in found["state"]["text"]
            remedy(still, found["state"]["remedy"])
            found = doctor(still, code=1)
            assert "runs without its state directory" in found["daemon"]["text"], "it has to be restarted"
        with still.daemon():
            assert doctor(still, code=0) == {}


def test_t30_lost_records(still: World) -> None:
    """T30: the daemon was stopped while more came than the kernel keeps for it; the next record tells how many."""
    rule = "udp dport 9 log group 5 drop"
    still.gateway.nft(f"table inet x {{ chain c {{ type filter hook prerouting priority mangle\n{rule}\n}}\n}}")
    with still.daemon() as daemon, still.service(22):
        daemon.signal(signal.SIGSTOP)
        for _ in range(20):
            still.client.python(FLOOD, still.gateway.ipv4, "30000")
            if dropped(still.gateway):
                break
        daemon.signal(signal.SIGCONT)

        def is_told() -> bool:
            still.client.python(FLOOD, still.gateway.ipv4, "1")
            return "records-lost" in doctor(still)

        until(is_told, "the loss to be told")
        found = doctor(still, code=0)
        assert list(found) == ["records-lost"]
        assert re.match(r"NFLOG group 5: [0-9,]+ records? lost since", found["records-lost"]["text"])


def test_somebody_else_has_the_group(still: World) -> None:
    other = still.gateway.start(sys.executable, "-c", HOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with still.service(22):
            found = doctor(still, code=1)
            assert sorted(found) == ["daemon", "nflog-group"]
            assert re.search(rf"is held by python3?\S* \(process {other.pid}\)", found["nflog-group"]["text"])
            assert "[log] group = 6" in found["nflog-group"]["remedy"]
            remedy(still, found["nflog-group"]["remedy"])
            other.wait(20)
            with still.daemon():
                assert doctor(still) == {}
    finally:
        other.kill()
        other.wait()
        other.stdin.close() if other.stdin else None
        other.stdout.close() if other.stdout else None


def test_a_daemon_that_reads_another_group(still: World) -> None:
    """The configuration was changed, and the daemon not told; after a reload it is not its first socket that reads."""
    with still.daemon(), still.service(22):
        still.config.write_text(still.config.read_text() + "[log]\ngroup = 7\n")
        still.apply()
        found = doctor(still, code=1)
        assert [name for name in found if name != "daemon-config"] == ["nflog-group"]
        remedy(still, found["nflog-group"]["remedy"])
        until(lambda: "nflog-group" not in doctor(still), "the reload")


def test_a_daemon_in_another_namespace(still: World) -> None:
    with still.service(22):
        process = still.client.start(sys.executable, "-m", "logknock", "rules", "apply", "-c", str(still.config))
        assert process.wait(20) == 0
        process = still.client.start(
            sys.executable, "-m", "logknock", "run", "-c", str(still.config), stderr=subprocess.PIPE
        )
        try:
            assert process.stderr is not None
            assert "ready" in process.stderr.readline()
            found = doctor(still, code=1)
            assert list(found) == ["daemon"]
            assert "another network namespace" in found["daemon"]["text"]
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def test_no_service_behind_the_door(still: World) -> None:
    with still.daemon():
        found = doctor(still, code=0)
        assert list(found) == ["door-service"]
        with still.service(22):
            assert doctor(still) == {}


def test_no_ipv6_where_it_is_expected(still: World) -> None:
    with still.daemon(), still.service(22):
        still.gateway.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        found = doctor(still, code=0)
        assert list(found) == ["ipv6"]
        remedy(still, found["ipv6"]["remedy"])
        assert doctor(still) == {}


def test_everybody_is_trusted(still: World) -> None:
    still.config.write_text(still.config.read_text().replace("192.0.2.128/25", "0.0.0.0/0"))
    still.apply()
    with still.daemon(), still.service(22):
        found = doctor(still, code=0)
        assert sorted(found) == ["config", "trusted"], "check warns of it too"


def test_one_time_files(still: World) -> None:
    path = still.config.parent / "anna"
    still.configure(f'[doors.ssh]\nonetime = ["{path}"]\nopens = ["22/tcp"]\n[firewall]\ntraps = 64\n')
    write_sequences(path, LINES * 4)
    still.apply()
    with still.daemon(), still.service(22):
        assert doctor(still) == {}
        path.chmod(0o644)
        found = doctor(still, code=1)
        assert list(found) == ["onetime"]
        assert "can be read by others" in found["onetime"]["text"]
        remedy(still, found["onetime"]["remedy"])
        assert doctor(still) == {}
        write_sequences(path, LINES)
        found = doctor(still, code=0)
        assert list(found) == ["onetime"]
        assert "4 left" in found["onetime"]["text"]
        path.unlink()
        found = doctor(still, code=1)
        assert found["onetime"]["level"] == "error"
        command = re.search("`(.*?)`", found["onetime"]["remedy"])
        assert command
        remedy(still, command[1])
        found = doctor(still, code=1)
        assert list(found) == ["set-watched"], "the new ports are not watched yet"
        remedy(still, found["set-watched"]["remedy"])
        assert doctor(still) == {}
        assert not re.search(r"\b[789]00[1-4]\b", json.dumps(found))


OWN = """
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp"]
guard = false
sets = ["inet filter allowed4"]
"""


def test_a_firewall_of_ones_own(still: World) -> None:
    """From nothing to a host on which all is well, by the remedies alone."""
    still.gateway.run("nft", "flush", "ruleset")
    still.configure(OWN)
    with still.service(22):
        found = doctor(still, code=1)
        assert sorted(found) == ["daemon", "door-rule", "door-set", "log-rule"]
        assert "no rule logs anything" in found["log-rule"]["text"]
        for check in ("door-set", "log-rule", "door-rule"):
            remedy(still, found[check]["remedy"])
        found = doctor(still, code=1)
        assert sorted(found) == ["daemon", "door-family"]
        with still.daemon() as daemon:
            assert not still.reaches()
            still.knock("7000/tcp", "8000/tcp", "9000/udp")
            daemon.wait_for("OPEN SESAME")
            assert still.reaches()


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        pytest.param("ipv4_addr", "", id="no rule looks into the set"),
        pytest.param("ipv4_addr", "ip saddr @allowed4 tcp dport 2222 accept;", id="one that is about another port"),
        pytest.param("ipv4_addr . inet_proto . inet_service", "", id="a set of addresses and services"),
    ],
)
def test_a_remedy_opens_to_those_alone_who_have_knocked(still: World, kind: str, rule: str) -> None:
    """Nothing of ours guards the door: a chain that drops must go on doing so."""
    still.configure(OWN)
    still.gateway.nft(
        f"flush ruleset\ntable inet filter {{\nset allowed4 {{ type {kind}; flags timeout; }}\nchain input {{\n"
        f"type filter hook input priority 0; policy drop; ct state established accept; {rule} log group 5; }}; }}"
    )
    with still.service(22), still.daemon() as daemon:
        found = doctor(still, code=1)
        assert sorted(found) == ["door-family", "dropped-after"]
        remedy(still, found["dropped-after"]["remedy"])
        assert list(doctor(still, code=0)) == ["door-family"]
        assert not still.reaches()
        still.knock("7000/tcp", "8000/tcp", "9000/udp")
        daemon.wait_for("OPEN SESAME")
        assert still.reaches()


def test_a_door_that_stands_open(still: World) -> None:
    """The set is there, and no rule looks into it."""
    still.configure(OWN)
    still.gateway.nft(
        "flush ruleset\ntable inet filter {\nset allowed4 { type ipv4_addr; flags timeout; }\nchain input {\n"
        "type filter hook input priority 0; policy accept; log group 5; }; }"
    )
    with still.service(22), still.daemon() as daemon:
        assert still.reaches()
        found = doctor(still, code=1)
        assert sorted(found) == ["door-family", "door-rule"]
        assert "everybody reaches 22/tcp without a knock" in found["door-rule"]["text"]
        remedy(still, found["door-rule"]["remedy"])
        assert list(doctor(still, code=0)) == ["door-family"]
        assert not still.reaches()
        still.knock("7000/tcp", "8000/tcp", "9000/udp")
        daemon.wait_for("OPEN SESAME")
        assert still.reaches()


def test_a_rule_for_text_where_there_is_no_chain(still: World) -> None:
    """The command holds a prefix, which has to pass the shell whole."""
    path = still.config.parent / "kern.log"
    path.write_text("")
    path.chmod(0o640)
    still.configure(f'[log]\nsource = "file"\nprefix = "{own_prefix()}"\nfile.path = "{path}"\n{OWN}')
    still.gateway.run("nft", "flush", "ruleset")
    remedy(still, doctor(still)["log-rule"]["remedy"])
    assert "log-rule" not in doctor(still)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        pytest.param("type ipv4_addr;", "must have `flags timeout`", id="without a timeout"),
        pytest.param("type inet_service; flags timeout;", "holds neither addresses", id="of another type"),
    ],
)
def test_a_doors_set_that_does_not_fit(still: World, made: str, text: str) -> None:
    still.configure(OWN)
    still.gateway.nft(f"add table inet filter\nadd set inet filter allowed4 {{ {made} }}")
    found = doctor(still, code=1)
    assert text in found["door-set"]["text"]
    assert found["door-set"]["remedy"]


def test_a_log_rule_that_packets_do_not_reach(still: World) -> None:
    """The rule stands behind one that takes the packets away."""
    still.configure(OWN)
    still.gateway.nft(
        "flush ruleset\ntable inet filter {\nset allowed4 { type ipv4_addr; flags timeout; }\nchain input {\n"
        "type filter hook input priority 0; ip saddr @allowed4 accept; tcp dport 7000 drop; log group 5; }; }"
    )
    found = doctor(still, code=1)
    assert "packets to 7000/tcp do not reach the rule that logs" in found["log-rule"]["text"]


# ---- text sources


def text_source(world: World, source: str, path: Path) -> str:
    """A configuration for a text source, with a prefix of this test's own."""
    prefix = own_prefix()
    file = f'file.path = "{path}"\n' if source == "file" else ""
    world.configure(f'[log]\nsource = "{source}"\nprefix = "{prefix}"\n{file}{CONFIG}')
    return prefix


def test_a_log_file(still: World) -> None:
    path = still.config.parent / "kern.log"
    path.write_text("")
    path.chmod(0o640)
    prefix = text_source(still, "file", path)
    found = doctor(still)
    assert f'no rule logs to the kernel\'s log with the prefix "{prefix}"' in found["log-rule"]["text"]
    assert "rules log to group 5" in found["log-rule"]["text"]
    remedy(still, found["log-rule"]["remedy"])
    assert {"log-rule", "file", "nflog-group"}.isdisjoint(doctor(still))
    path.chmod(0o666)
    found = doctor(still, code=1)
    assert found["file"]["level"] == "error", "T31"
    remedy(still, found["file"]["remedy"])
    assert "file" not in doctor(still)
    path.unlink()
    assert doctor(still)["file"]["level"] == "warning"


def test_two_sources_of_which_one_gets_nothing(still: World) -> None:
    """That is no fault: NFLOG has it all."""
    path = still.config.parent / "kern.log"
    path.write_text("")
    path.chmod(0o640)
    still.configure(f'[log]\nsource = ["nflog", "file"]\nprefix = "{own_prefix()}"\nfile.path = "{path}"\n{CONFIG}')
    with still.service(22), still.daemon():
        found = doctor(still, code=0)
    assert set(found) <= {"log-rule", "nf-log-all-netns"}
    assert {one["level"] for one in found.values()} == {"note"}
    assert "all records come by NFLOG" in found["log-rule"]["text"]


def test_a_namespace_whose_log_goes_nowhere(still: World) -> None:
    """The switch is the machine's: whoever needs it waits, as peers.kernel_log() does."""
    text_source(still, "file", still.config)
    still.apply()
    with ALL_NETNS.open("r+") as switch:
        fcntl.flock(switch, fcntl.LOCK_EX)
        before = ALL_NETNS.read_text()
        try:
            ALL_NETNS.write_text("0")
            found = doctor(still, code=1)["nf-log-all-netns"]
            assert found["level"] == "error"
            on_the_host = found["remedy"].partition("  #")[0]
            subprocess.run(on_the_host.split(), check=True, stdout=subprocess.DEVNULL)
            assert "nf-log-all-netns" not in doctor(still)
        finally:
            ALL_NETNS.write_text(before)


def test_t22_a_host_whose_users_can_have_the_kernel_log_what_they_like(still: World) -> None:
    """T22: with the switch on, a rule in a namespace of their own makes a record that nobody can tell from ours."""
    text_source(still, "file", still.config)
    with ALL_NETNS.open("r+") as switch:
        fcntl.flock(switch, fcntl.LOCK_EX)
        before = ALL_NETNS.read_text()
        argv = [sys.executable, "-m", "logknock", "doctor", "--json", "-c", str(still.config)]
        try:
            levels = []
            for value in ("1", "0"):
                ALL_NETNS.write_text(value)
                told = json.loads(subprocess.run(argv, capture_output=True, text=True, check=False).stdout)
                levels.append([one["level"] for one in told["findings"] if one["check"] == "nf-log-all-netns"])
            assert levels == [["warning"], []]
        finally:
            ALL_NETNS.write_text(before)


def test_a_file_that_ulogd_writes_needs_no_kernel_log(still: World) -> None:
    """The rule logs to an NFLOG group, with the prefix; the file is another program's."""
    prefix = text_source(still, "file", still.config)
    still.apply()
    still.gateway.nft(f'flush chain inet logknock tell\nadd rule inet logknock tell log group 9 prefix "{prefix}"')
    found = doctor(still)
    assert {"log-rule", "nf-log-all-netns", "kernel-log"}.isdisjoint(found)
    assert "NFLOG group 9" in found["nflog-group"]["text"]


def test_a_host_that_reads_its_journal(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """With systemd and journald as they are: what they can be told that leaves nothing to read."""
    folder = tmp_path / "host"
    folder.mkdir()
    with kernel_log(), booted(hosts[0], folder) as inside:
        world = World(inside, hosts[1], folder / "logknock.toml")
        text_source(world, "journal", folder)
        world.apply()
        with world.service(22), world.daemon():
            found = doctor(world, code=0)
            assert list(found) == ["nf-log-all-netns"], "the switch is on another host, and cannot be seen from here"
            assert found["nf-log-all-netns"]["level"] == "warning"
            for setting in ("ReadKMsg=no", "Storage=none", "MaxLevelStore=notice"):
                see_setting(world, setting)
            inside.run(
                "systemctl", "stop", *(f"systemd-journald{kind}" for kind in (".service", ".socket", "-dev-log.socket"))
            )
            found = doctor(world, code=1)
            assert found["journald"]["text"] == "systemd-journald does not run"
            remedy(world, found["journald"]["remedy"])
            assert list(doctor(world)) == ["nf-log-all-netns"]


def see_setting(world: World, setting: str) -> None:
    """A drop-in for journald is told of, and its remedy helps once the file is as it should be."""
    drop_in = "/etc/systemd/journald.conf.d/test.conf"
    write = f"mkdir -p /etc/systemd/journald.conf.d && printf '[Journal]\\n%s\\n' {setting} >{drop_in}"
    world.gateway.run("sh", "-ec", write)
    found = doctor(world, code=1)
    assert sorted(found) == ["journald", "nf-log-all-netns"]
    assert found["journald"]["text"].startswith(f"{setting}: ")
    world.gateway.run("rm", drop_in)
    remedy(world, found["journald"]["remedy"])
    assert list(doctor(world)) == ["nf-log-all-netns"]


# ---- who asks, and what is asked


def test_a_wrong_configuration_is_one_thing(world: World) -> None:
    world.config.write_text('[doors.ssh]\nsequence = ["70000/tcp"]\n')
    world.config.chmod(0o600)
    done = world.gateway.logknock("doctor", "-c", str(world.config), check=False)
    assert done.returncode == 78
    assert f"✗ config: {world.config}:2: doors.ssh.sequence" in done.stdout
    assert re.match(r"1 check: [0-9] errors?$", done.stdout.splitlines()[-1])


NOBODY = 65534


def test_what_may_not_be_seen_is_said_and_the_rest_looked_at(still: World) -> None:
    """Root without its powers, and with files of its own."""
    command = [sys.executable, "-m", "logknock", "doctor", "-c", str(still.config)]
    done = still.gateway.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", *command, check=False)
    assert done.returncode == 1, "in a container that is a fault"
    assert "--cap-add NET_ADMIN" in done.stdout
    with tempfile.TemporaryDirectory() as name:  # that of the test is root's alone
        folder = Path(name)
        folder.chmod(0o755)
        config = folder / "logknock.toml"
        door = f'[doors.anna]\nonetime = ["{folder}/anna"]\nopens = ["80/tcp"]\n'
        write_sequences(folder / "anna", LINES)
        config.write_text(still.config.read_text() + door)
        config.chmod(0o640)
        os.chown(config, 0, NOBODY)
        ask_as_nobody(still.gateway, config)


def ask_as_nobody(host: Host, config: Path) -> None:
    command = [sys.executable, "-m", "logknock", "doctor", "-c", str(config)]
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = host.run(*user, *command, check=False)
    assert done.returncode == 77, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum("no CAP_NET_ADMIN" in line for line in lines) == 1, "once, and not for each check"
    done = host.run(*user, *command, "--json", "--live", check=False)
    found = {finding["check"]: finding["level"] for finding in json.loads(done.stdout)["findings"]}
    assert found["rp-filter"] == "ok"
    assert found["table"] == found["live"] == "unseen"


def test_a_daemon_that_starts_meanwhile_finds_everything_free(still: World) -> None:
    """Neither its lock nor its group is ever taken to find out whether it is free."""
    ended = threading.Event()
    looks = [0]

    def ask() -> None:
        while not ended.is_set():
            doctor(still)
            looks[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        while looks[0] < 6:
            with still.daemon() as daemon:
                assert daemon.stop() == 0
    finally:
        ended.set()
        for thread in threads:
            thread.join()


# ---- the proof


# A door of each kind; most open the same service, so that one that was open already would prove nothing.
EACH_KIND = """
[totp]
host = "gate.example"
[doors.once]
onetime = ["{file}"]
opens = ["80/tcp"]
sets = ["inet nobody has"]
[doors.anna]
totp = {{length = 5, step = "10s", skew = 0, ports = ["30000-30999/tcp"]}}
opens = ["22/tcp", "443/tcp"]
[doors.phone]
totp = {{code = 8, ports = ["45000-45399/tcp"]}}
opens = ["22/tcp"]
[doors.vpn]
spa = {{ports = {places}}}
opens = ["22/tcp", "1194/udp"]
[clients.anna.laptop]
secret = "{secret}"
[clients.vpn.laptop]
key = "0123456789abcdef"
hmac_key = "fedcba9876543210"
allow = ["22/tcp"]
"""
PROVED = {
    "ssh (a sequence)": "3 knocks",
    "once (one-time sequences)": "3 knocks",
    "anna (TOTP)": "5 knocks",
    "phone (codes of an authenticator)": "4 knocks",
    "vpn:22/tcp (SPA)": "a packet",
}


@pytest.mark.parametrize("places", [["62000-62999/udp", "icmp"], ["62201/tcp"], ["icmp"]], ids=["udp", "tcp", "icmp"])
def test_a_live_proof(world: World, places: list[str]) -> None:
    """A door of each kind, one of them at an address of its own; on a host without rules or daemon."""
    path = write_sequences(world.config.parent / "anna", LINES)
    secret = format_secret(secrets.token_bytes(32))
    world.configure(
        CONFIG
        + f'target = ["192.0.2.77"]\non_open = ["/bin/touch", "{path}-touched"]\n'
        + EACH_KIND.format(file=path, secret=secret, places=json.dumps(places))
    )
    world.config.chmod(0o600)
    before = world.gateway.run("nft", "list", "ruleset").stdout
    done = world.gateway.logknock("doctor", "--live", "--json", "-c", str(world.config), check=False)
    steps = [found for found in json.loads(done.stdout)["findings"] if found["check"] == "live"]
    assert [step["level"] for step in steps] == ["ok"] * 8, steps
    told = (
        re.fullmatch(r"door (.+): (.+), open (\d+\.\d) ms after (.+), for 30 s", step["text"]) for step in steps[3:]
    )
    proved = [found.groups() for found in told if found]
    assert {door: sent for door, sent, _, _ in proved} == PROVED
    assert all(0 < float(ms) < 10_000 for _, _, ms, _ in proved)
    assert not re.search(r"\b([789]00[0-9]|30\d{3}|45\d{3})\b|" + secret, json.dumps(steps)), "no sequence is told"
    assert world.gateway.run("nft", "list", "ruleset").stdout == before
    assert not (path.parent / "anna-touched").exists()
    assert not (path.parent / "state").exists()
    shown = world.gateway.logknock("doctor", "--live", "-c", str(world.config), check=False).stdout
    assert re.search(r"^✓ live: door once \(one-time sequences\): 3 knocks, open", shown, re.MULTILINE)


def test_a_live_proof_that_fails_says_what_the_daemon_saw(world: World) -> None:
    """So many knocks take longer than the door waits for them."""
    steps = json.dumps([f"{port}/udp" for port in range(40_000, 40_032)])
    world.configure(f'[doors.slow]\nsequence = {steps}\nseq_timeout = "1s"\nopens = ["22/tcp"]\n')
    found = doctor(world, "--live", code=1)["live"]
    assert found["level"] == "error"
    assert "door slow (a sequence): 32 knocks, and it did not open" in found["text"]
    assert "slow: Stage 1" in found["text"]


def test_what_a_live_proof_by_text_does_not_prove(world: World) -> None:
    text_source(world, "file", world.config)
    found = doctor(world, "--live")["live"]
    assert found["level"] == "note"
    assert "kernel's log" in found["text"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_live_proof_that_is_broken_off_leaves_nothing(world: World, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "logknock", "doctor", "--live", "-c", str(world.config)]
    process = world.gateway.start(*command, stdout=subprocess.PIPE)
    try:
        until(lambda: proofs(process.pid), "the processes of the proof")
        inside = proofs(process.pid)
        for pid in inside:  # none of them comes to its end by itself
            with suppress(ProcessLookupError):  # one that had just done so
                os.kill(pid, signal.SIGSTOP)
        process.send_signal(number)
        process.wait(20)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside), "the end of all of them")
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert not Path("/run/demo").exists()
    assert "/run/netns/client" not in Path("/proc/self/mountinfo").read_text()


def proofs(pid: int) -> list[int]:
    """The processes below one, once the daemon of a proof is among them."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    parents, lines = {}, {}
    for row in rows.splitlines():
        child, parent, args = row.split(None, 2)
        parents[int(child)], lines[int(child)] = int(parent), args
    found = [child for child in parents if pid in ancestors(child, parents)]
    return found if any("logknock run" in lines[child] for child in found) else []


def ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while pid in parents:
        pid = parents[pid]
        found.append(pid)
    return found
