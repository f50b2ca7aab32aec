"""`logknock rules print`, `apply` and `remove`: what they load, what they leave, and what they say."""

import re
import sys

import pytest

from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE, USAGE

from ..netns import Host
from .instruments import bytecode
from .world import SSH, World

OTHER = """
[log]
group = 7
[firewall]
traps = 0
[doors.web]
sequence = ["7000/tcp", "7001/tcp", "7002/tcp"]
opens = ["443/tcp"]
"""


def table(host: Host) -> str:
    """All that is in our table."""
    return host.run("nft", "list", "table", "inet", "logknock").stdout + bytecode(host)


def elements(host: Host, name: str) -> list[str]:
    """A set's elements with what is said of them."""
    listed = host.run("nft", "list", "set", "inet", "logknock", name).stdout
    found = re.search(r"elements = \{([^}]*)\}", listed)
    return sorted(" ".join(element.split()) for element in found[1].split(",")) if found else []


def expires(element: str) -> float:
    """How many seconds an element has left."""
    found = re.search(r"expires (?:(\d+)s)?(?:(\d+)ms)?", element)
    assert found
    return int(found[1] or 0) + int(found[2] or 0) / 1000


# ---- print and apply


def test_the_rules_load_as_they_stand_and_guard_nothing(world: World) -> None:
    for _ in range(2):
        world.gateway.run("nft", "-f", "rules/logknock.nft")
        with world.service(22):
            assert world.reaches()


def test_what_is_printed_loads_and_is_what_apply_loads(world: World) -> None:
    printed = world.gateway.logknock("rules", "print", "-c", str(world.config)).stdout
    world.gateway.nft(printed)
    by_hand = table(world.gateway)
    world.gateway.nft("flush ruleset")
    world.apply()
    assert table(world.gateway) == by_hand
    assert elements(world.gateway, "watched") == ["tcp . 7000", "tcp . 8000", "udp . 9000"]
    assert elements(world.gateway, "guarded") == ["tcp . 22"]
    assert len(elements(world.gateway, "traps")) == 2 * (1024 + 6)


def test_apply_says_in_a_line_what_it_did(world: World) -> None:
    world.configure(SSH + "[firewall]\ntraps = 10\nexclude = ['7001/tcp']\n[log]\ngroup = 77\n")
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config))
    assert done.stdout == "loaded: 1 guarded, 3 knock ports, 31 traps; NFLOG group 77\n"
    assert done.stderr == ""


def test_what_listens_is_no_trap_and_what_is_connected_does_not_listen(world: World) -> None:
    world.configure(SSH + "[firewall]\ntraps = 0\n")
    code = """
import socket
from logknock.firewall.ruleset import listening
tcp, tcp6 = socket.create_server(("127.0.0.1", 1001)), socket.create_server(("::1", 1002), family=socket.AF_INET6)
udp, udp6, peer = (socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6) * 2[:3])
udp.bind(("0.0.0.0", 1003))
udp6.bind(("::", 1004))
peer.bind(("127.0.0.1", 1005))
peer.connect(("127.0.0.1", 1003))
client = socket.socket()
client.bind(("127.0.0.1", 1006))
client.connect(("127.0.0.1", 1001))
print(*sorted(map(str, listening())))
""".replace("(socket.AF_INET, socket.AF_INET6) * 2[:3]", "(socket.AF_INET, socket.AF_INET6, socket.AF_INET)")
    assert world.gateway.python(code).stdout == "1001/tcp 1002/tcp 1003/udp 1004/udp\n"


# ---- a second apply


def test_a_second_apply_is_the_new_configuration_and_keeps_what_runs(world: World) -> None:
    """Grants run on with the time they have, and so do bans; of the old configuration nothing is left."""
    gateway = world.gateway
    world.configure(SSH + '[firewall]\ntrusted = ["192.0.2.0/24", "10.0.0.0/8", "fd00::/8"]\n')
    world.apply()
    gateway.nft(
        "add element inet logknock granted4 { 203.0.113.1 . tcp . 22 timeout 50s }\n"
        "add element inet logknock granted6 { fd98::1 . tcp . 22 timeout 50s }\n"
        "add element inet logknock banned4 { 203.0.113.2 timeout 50s }\n"
        "add element inet logknock banned6 { fd98:: timeout 50s }"
    )
    names = ("granted4", "granted6", "banned4", "banned6")
    before = [elements(gateway, name)[0] for name in names]
    world.configure(OTHER.replace("traps = 0", 'traps = 0\ntrusted = ["192.0.2.128/25", "192.0.4.1"]'))
    world.apply()
    after = [elements(gateway, name)[0] for name in names]
    for old, new in zip(before, after, strict=True):
        assert new.partition(" expires")[0] == old.partition(" expires")[0]
        assert 0 < expires(new) < expires(old) <= 50
    assert elements(gateway, "trusted4") == ["192.0.2.128/25", "192.0.4.1"]
    assert elements(gateway, "trusted6") == []
    assert elements(gateway, "guarded") == ["tcp . 443"]
    assert elements(gateway, "watched") == ["tcp . 7000", "tcp . 7001", "tcp . 7002"]
    assert elements(gateway, "traps") == []
    assert re.findall(r"^\t\tlog .*", table(gateway), re.MULTILINE) == ["\t\tlog group 7"]


def test_the_same_configuration_again_changes_nothing(world: World) -> None:
    world.apply()
    before = table(world.gateway)
    world.apply()
    assert table(world.gateway) == before


FOREIGN = {
    "another type": "set granted4 { type inet_service; }",
    "other flags": "set granted6 { type ipv6_addr . inet_proto . inet_service; }",
    "a chain that is elsewhere": "chain guard { type filter hook input priority 0; }",
    "a map of that name": "map watched { type inet_service : verdict; }",
}


@pytest.mark.parametrize("obstacle", FOREIGN.values(), ids=FOREIGN.keys())
def test_an_apply_that_fails_in_the_middle_changes_nothing(world: World, obstacle: str) -> None:
    """A table of our name that somebody else made; its rules are flushed early in the transaction that then fails."""
    world.gateway.nft(
        f"table inet logknock {{\n{obstacle}\n"
        "set traps { type inet_proto . inet_service; elements = { tcp . 1 }; }\n"
        "chain c { type filter hook input priority 0; tcp dport @bad drop; }; set bad { type inet_service; }; }"
    )
    before = table(world.gateway)
    for option in ([], ["--confirm", "60s"]):
        done = world.gateway.logknock("rules", "apply", "-c", str(world.config), *option, check=False)
        assert done.returncode == FAILURE
        assert re.fullmatch(
            r"logknock: nftables: .+\nhint: where logknock did not make .+ `logknock rules remove` deletes it\n",
            done.stderr,
        )
        assert table(world.gateway) == before
    assert world.gateway.logknock("rules", "confirm", "-c", str(world.config), check=False).returncode == FAILURE
    world.gateway.logknock("rules", "remove", "-c", str(world.config))
    world.apply()


# ---- remove


def test_remove_leaves_the_host_as_it_was(world: World) -> None:
    world.gateway.nft("table inet other { chain c { type filter hook input priority 0; }; }")
    before = world.gateway.nft("list ruleset")
    world.apply()
    assert world.gateway.logknock("rules", "remove", "-c", str(world.config)).stdout == "removed\n"
    assert world.gateway.nft("list ruleset") == before


def test_remove_without_rules_says_so_and_is_no_failure(world: World) -> None:
    done = world.gateway.logknock("rules", "remove", "-c", str(world.config))
    assert done.stdout == "no rules are loaded: there is nothing to remove\n"


def test_remove_works_without_a_usable_configuration(world: World) -> None:
    world.apply()
    world.configure("this is no TOML")
    assert world.gateway.logknock("rules", "apply", "-c", str(world.config), check=False).returncode == BAD_CONFIG
    assert world.gateway.logknock("rules", "remove", "-c", str(world.config)).stdout == "removed\n"


# ---- what cannot be done


@pytest.mark.parametrize("command", ["apply", "remove"])
def test_without_permission_it_says_who_may(world: World, command: str) -> None:
    unable = ("setpriv", "--bounding-set=-net_admin", sys.executable, "-m", "logknock")
    done = world.gateway.run(*unable, "rules", command, "-c", str(world.config), check=False)
    assert done.returncode == NO_PERMISSION
    assert done.stderr == (
        "logknock: nftables: Operation not permitted\nhint: CAP_NET_ADMIN is needed: run it as root\n"
    )


def test_without_the_nftables_module_it_names_the_package(world: World) -> None:
    code = "import sys; sys.modules['nftables'] = None; from logknock.cli import main; main()"
    done = world.gateway.python(code, "rules", "apply", "-c", str(world.config), check=False)
    assert done.returncode == UNAVAILABLE
    assert done.stderr == "logknock: Python has no nftables module\nhint: install the package python3-nftables\n"


def test_print_needs_neither_nftables_nor_the_kernel(world: World) -> None:
    code = "import sys; sys.modules['nftables'] = None; from logknock.cli import main; main()"
    assert "table inet logknock" in world.gateway.python(code, "rules", "print", "-c", str(world.config)).stdout


@pytest.mark.parametrize("command", [[], ["print"], ["apply"], ["confirm"], ["remove"]])
def test_each_command_shows_an_example(world: World, command: list[str]) -> None:
    assert "\nExample: logknock rules" in world.gateway.logknock("rules", *command, "--help").stdout.replace("  ", "")


@pytest.mark.parametrize("time", ["60", "0s", "1ms", "2h", "soon", ""])
def test_a_time_that_is_none_is_refused_before_anything_happens(world: World, time: str) -> None:
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config), "--confirm", time, check=False)
    assert done.returncode == USAGE
    assert "--confirm" in done.stderr
    assert world.gateway.nft("list tables") == ""


@pytest.mark.parametrize("closing", [">/dev/full", ">&-"], ids=["full", "closed"])
def test_output_that_cannot_be_written_is_no_traceback(world: World, closing: str) -> None:
    """One line at most, and what was to be done is done."""
    command = f"{sys.executable} -m logknock rules apply -c {world.config} {closing}"
    done = world.gateway.run("sh", "-c", command, check=False)
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("logknock: ")]) <= 1
    assert elements(world.gateway, "watched")


def test_t38_remove_needs_no_files(world: World) -> None:
    """T38: it is the way out: a runtime directory that cannot be used is no obstacle."""
    world.apply()
    world.config.write_text(world.config.read_text().replace('/run"', '/logknock.toml/run"'))
    assert world.gateway.logknock("rules", "remove", "-c", str(world.config)).stdout == "removed\n"
