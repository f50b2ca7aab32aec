"""`logknock rules print`, `apply` and `remove`: what they load, what they leave, and what they say."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE, USAGE

from ..netns import Host
from .instruments import bytecode
from .world import PATIENCE, SSH, World, until

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
    logs = re.findall(r"^\t\t(?:.* )?(log .*)", table(gateway), re.MULTILINE)
    assert logs == ["log group 7 return", "log group 7 snaplen 128"]


def test_the_same_configuration_again_changes_nothing(world: World) -> None:
    world.apply()
    before = table(world.gateway)
    world.apply()
    assert table(world.gateway) == before


GUARD = "chain guard { type filter hook prerouting priority mangle; }"

FOREIGN = {
    "another type": f"{GUARD}\nset granted4 {{ type inet_service; }}",
    "other flags": f"{GUARD}\nset granted6 {{ type ipv6_addr . inet_proto . inet_service; }}",
    "a chain that is elsewhere": "chain guard { type filter hook input priority 0; }",
    "a map of that name": "map watched { type inet_service : verdict; }",
}


@pytest.mark.parametrize(
    "strange",
    [
        "set bad { type inet_service; }",
        "chain input { tcp dport 1 drop; }",
        "chain guarded { tcp dport 1 drop; }",
        "chain guard { type filter hook prerouting priority raw; }",
    ],
)
def test_a_table_of_our_name_with_more_in_it_is_not_ours(world: World, strange: str) -> None:
    """nft would put our rules beside what is there, and empty its chains."""
    world.gateway.nft(f"table inet logknock {{ {strange}; }}")
    before = table(world.gateway)
    done = world.gateway.logknock("rules", "apply", "-c", str(world.config), check=False)
    assert done.returncode == FAILURE
    assert "table inet logknock is not logknock's: " in done.stderr
    assert "hint: give that table another name" in done.stderr
    assert table(world.gateway) == before


def test_our_table_without_its_chain_guard_is_still_ours(world: World) -> None:
    """Somebody has deleted it: apply puts it back."""
    world.apply()
    before = table(world.gateway)
    world.gateway.nft("delete chain inet logknock guard")
    world.apply()
    assert sorted(table(world.gateway).split("\n")) == sorted(before.split("\n"))


@pytest.mark.parametrize("obstacle", FOREIGN.values(), ids=FOREIGN.keys())
def test_an_apply_that_fails_in_the_middle_changes_nothing(world: World, obstacle: str) -> None:
    """A table of our name that somebody else made; its rules are flushed early in the transaction that then fails."""
    world.gateway.nft(
        f"table inet logknock {{\n{obstacle}\n"
        "set traps { type inet_proto . inet_service; elements = { tcp . 1 }; }\n"
        "chain tell { tcp dport 1 drop; }; }"
    )
    before = table(world.gateway)
    for option in ([], ["--confirm", "60s"]):
        done = world.gateway.logknock("rules", "apply", "-c", str(world.config), *option, check=False)
        assert done.returncode == FAILURE
        assert re.fullmatch(
            r"logknock: (nftables: |table inet logknock is not logknock's: (map|it has no chain guard at) )"
            r"[^#]+\n"
            r"hint: .+ `logknock rules remove` deletes it\n",
            done.stderr,
        )
        assert table(world.gateway) == before
    assert world.gateway.logknock("rules", "confirm", "-c", str(world.config), check=False).returncode == FAILURE
    world.gateway.logknock("rules", "remove", "-c", str(world.config))
    world.apply()


# ---- tables with flags

OWNED = """
add table ip owned { flags owner; }
add chain ip owned c { type filter hook input priority 0; }
add rule ip owned c meta mark & 0x10000 == 0 counter drop
"""


def test_tables_with_flags_are_no_obstacle(world: World) -> None:
    """libnftables 1.0.6 ends the process, or writes what is no JSON, where it is to tell of such a table."""
    gateway = world.gateway
    asleep = "set s { type mark; }; chain c { type filter hook input priority 0; meta mark 0x10000 drop; };"
    for number in range(3):
        gateway.nft(f'table ip asleep{number} {{ comment "{{"; flags dormant; {asleep} }}')
    world.apply()
    assert diff(world, 0) == ""
    world.configure(SSH + "[firewall]\nmark = 0x10000\n")
    world.apply()
    shown = gateway.logknock("doctor", "--json", "-c", str(world.config), check=False).stdout
    levels = {finding["check"]: finding["level"] for finding in json.loads(shown)["findings"]}
    assert levels["table"] == "ok"
    owner = gateway.start("nft", "-i", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert owner.stdin is not None
        owner.stdin.write(OWNED)
        owner.stdin.flush()
        until(lambda: gateway.run("nft", "list", "chain", "ip", "owned", "c", check=False).returncode == 0, "the table")
        until(lambda: "drop" in gateway.nft("list chain ip owned c"), "its rule")
        done = gateway.logknock("rules", "apply", "-c", str(world.config), check=False)
        assert "mark: 0x10000 is used by table ip owned, chain c" in done.stderr
    finally:
        owner.kill()
        owner.communicate()


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


@pytest.mark.parametrize("command", ["apply", "diff", "remove"])
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


@pytest.mark.parametrize("command", [[], ["print"], ["diff"], ["apply"], ["confirm"], ["remove"]])
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


# ---- apply asks first, on a terminal


class Question:
    """An `apply` on a terminal: what it has asked, and who answers."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process, self.terminal = process, terminal
        self.asked = self._read_question()

    def _read_question(self) -> str:
        """Up to the blank behind [y/N]; as much as there is if it ends before."""
        assert self.process.stderr is not None
        said = b""
        while not said.endswith(b"[y/N] ") and (some := os.read(self.process.stderr.fileno(), 4096)):
            said += some
        return said.decode()

    def ends(self) -> tuple[int, str]:
        """The exit status, and what was said since the question."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, (out + err).decode()

    def answer(self, keys: bytes) -> tuple[int, str]:
        """The same, after somebody has typed this."""
        os.write(self.terminal, keys)
        return self.ends()


@contextmanager
def question(world: World, *option: str, before: tuple[str, ...] = ()) -> Iterator[Question]:
    """The command with a terminal to read from, until it has asked or has ended; `before` are words before it."""
    ours, theirs = os.openpty()
    argv = [sys.executable, "-m", "logknock", "rules", "apply", "-c", str(world.config), *option]
    command = world.gateway.argv(["env", "--default-signal", *before, *argv])
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield Question(process, ours)
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


CLOSES = "this closes 22/tcp to everybody but the trusted and those who knock\n"
NO_DAEMON = "no daemon runs: knocks open nothing until `logknock run`\n"


@pytest.mark.parametrize("yes", [b"y\n", b"Yes\n"])
def test_t38_on_a_terminal_it_says_what_is_closed_and_a_yes_loads_it(world: World, yes: bytes) -> None:
    with question(world) as asked:
        assert asked.asked == f"{CLOSES}{NO_DAEMON}Load it? [y/N] "
        assert world.gateway.nft("list tables") == ""
        code, said = asked.answer(yes)
        assert code == 0
        assert said.startswith("loaded: 1 guarded")


@pytest.mark.parametrize("keys", [b"\n", b"n\n", b"yesterday\n", b"\4"], ids=["enter", "no", "another word", "EOF"])
def test_t38_nothing_else_loads_it(world: World, keys: bytes) -> None:
    """T38: what was loaded before stays as it is, too."""
    world.configure(OTHER)
    world.apply()
    before = table(world.gateway)
    world.configure(SSH)
    with question(world) as asked:
        code, said = asked.answer(keys)
        assert code == FAILURE
        assert "logknock: not loaded: nothing is changed\n" in said
        assert table(world.gateway) == before


def test_t38_ctrl_c_at_the_question_loads_nothing(world: World) -> None:
    with question(world) as asked:
        asked.process.send_signal(signal.SIGINT)
        code, said = asked.ends()
        assert (code, said.partition(": nothing")[0]) == (FAILURE, "\nlogknock: not loaded")
        assert world.gateway.nft("list tables") == ""


def test_without_anything_to_change_there_is_no_question(world: World) -> None:
    world.apply()
    with question(world) as asked:
        assert asked.asked == ""
        assert asked.ends()[0] == 0


@pytest.mark.parametrize("option", [["--yes"], ["-y"], ["--confirm", "1s"]])
def test_who_says_yes_before_or_tries_it_out_is_not_asked(world: World, option: list[str]) -> None:
    with question(world, *option) as asked:
        assert "Load it" not in asked.asked


def test_a_change_that_closes_nothing_more_is_asked_for_in_other_words(world: World) -> None:
    world.apply()
    world.configure(SSH + "[firewall]\ntraps = 7\n")
    with question(world) as asked:
        assert asked.asked == "this changes the rules that are loaded: `logknock rules diff` shows how\nLoad it? [y/N] "
    world.gateway.nft("delete table inet logknock")
    world.configure(SSH + "[firewall]\nmark = 0x10000\n")
    with question(world) as asked:
        assert asked.asked == "this loads the rules, which close nothing by themselves\nLoad it? [y/N] "


def test_what_cannot_be_tried_is_asked_for_all_the_same(world: World) -> None:
    """Loading needs no network namespace."""
    world.apply()
    with question(world, before=("setpriv", "--bounding-set=-sys_admin")) as asked:
        assert asked.asked == f"{CLOSES}{NO_DAEMON}Load it? [y/N] "
        assert asked.answer(b"y\n")[0] == 0


def test_the_question_lists_a_few_services_and_counts_the_rest(world: World) -> None:
    ports = ", ".join(f'"{port}/tcp"' for port in range(100, 120))
    world.configure(SSH + f"[firewall]\nguarded = [{ports}]\n")
    with question(world) as asked:
        line = (
            "this closes 22/tcp, 100/tcp, 101/tcp, 102/tcp, 103/tcp, 104/tcp, 105/tcp, 106/tcp and 13 more to everybody"
        )
        assert asked.asked.startswith(line)


# ---- diff


def diff(world: World, code: int, *option: str) -> str:
    done = world.gateway.logknock("rules", "diff", "-c", str(world.config), *option, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout


def changed(text: str) -> list[str]:
    """The lines that differ."""
    return [line for line in text.splitlines() if re.match(r"[-+](?![-+])", line)]


def test_what_is_loaded_differs_in_nothing_and_what_is_not_in_everything(world: World) -> None:
    shown = diff(world, 1)
    assert shown.startswith("--- loaded\n+++ to be loaded\n@@ -0,0 +1,")
    assert "\n+\t\telement tcp . 7000\n" in shown
    assert world.gateway.nft("list tables") == ""
    world.apply()
    before = table(world.gateway)
    assert diff(world, 0) == ""
    assert table(world.gateway) == before


def test_the_difference_is_what_somebody_changed_by_hand_and_what_is_configured_anew(world: World) -> None:
    """Rules and elements, each below the name of its chain or set; not what comes and goes while the rules run."""
    gateway = world.gateway
    world.configure(SSH + '[firewall]\ntrusted = ["192.0.2.0/24", "fd00::/8"]\nexclude = ["443/tcp"]\ntraps = 0\n')
    world.apply()
    gateway.nft(
        "add element inet logknock granted4 { 203.0.113.1 . tcp . 22 timeout 50s }\n"
        "add element inet logknock banned4 { 203.0.113.2 timeout 50s }\n"
        "add element inet logknock noisy4 { 203.0.113.3 timeout 50s }\n"
        "add element inet logknock trusted4 { 203.0.113.4 timeout 50s }\n"
        "add element inet logknock granted6 { fd98::1 . tcp . 22 timeout 50s }"
    )
    assert diff(world, 0) == ""
    gateway.nft(
        "add rule inet logknock guard tcp dport 99 counter accept\n"
        "add element inet logknock guarded { tcp . 1000-1009 }"
    )
    world.configure(SSH + '[firewall]\ntrusted = ["192.0.2.0/25", "fd00::/8"]\ntraps = 0\n[log]\ngroup = 7\n')
    shown = diff(world, 1)
    long = "meta length >= 168 meta l4proto . th dport @spa meta l4proto . th dport != @guarded"
    assert changed(shown) == [
        "-\t\ttcp dport 99 counter packets 0 bytes 0 accept",
        f"-\t\t{long} log group 5 return",
        "-\t\tlog group 5 snaplen 128",
        f"+\t\t{long} log group 7 return",
        "+\t\tlog group 7 snaplen 128",
        "-\t\telement tcp . 1000-1009",
        "-\t\telement 192.0.2.0/24",
        "+\t\telement 192.0.2.0/25",
    ]
    assert "@@ chain guard\n" in shown
    found = json.loads(diff(world, 1, "--json"))
    assert (found["differs"], found["loaded"]) == (True, True)
    assert changed("\n".join(found["rules"])) == changed(shown)[:5]
    assert found["elements"] == {
        "trusted4": {"added": ["192.0.2.0/25"], "removed": ["192.0.2.0/24"]},
        "trusted6": {"added": [], "removed": []},
        "guarded": {"added": [], "removed": ["tcp . 1000-1009"]},
        "watched": {"added": [], "removed": []},
        "traps": {"added": [], "removed": []},
        "spa": {"added": [], "removed": []},
    }
    world.apply()
    assert diff(world, 0) == ""
    assert json.loads(diff(world, 0, "--json"))["differs"] is False


def test_colours_are_for_a_terminal_and_for_who_wants_them(world: World) -> None:
    assert "\33" not in diff(world, 1)
    for no_color, wanted in (("", True), ("1", False)):
        ours, theirs = os.openpty()
        argv = world.gateway.argv([sys.executable, "-m", "logknock", "rules", "diff", "-c", str(world.config)])
        with subprocess.Popen(argv, stdout=theirs, env={**os.environ, "NO_COLOR": no_color}) as process:
            os.close(theirs)
            shown = b""
            try:
                while some := os.read(ours, 65536):
                    shown += some
            except OSError:  # the terminal's other end is closed
                pass
            assert process.wait(PATIENCE) == 1
        os.close(ours)
        assert (b"\33[32m+\t\telement tcp . 7000" in shown) == wanted
        assert (b"\33" in shown) == wanted


def test_a_difference_that_cannot_be_found_is_none_of_the_answers(world: World) -> None:
    """As with diff(1): 2 is trouble."""
    world.gateway.nft(f"table inet logknock {{\n{GUARD}\nset granted6 {{ type ipv6_addr . inet_service; }}; }}")
    done = world.gateway.logknock("rules", "diff", "-c", str(world.config), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("logknock: nftables: ")
    unable = ("setpriv", "--bounding-set=-sys_admin", sys.executable, "-m", "logknock")
    done = world.gateway.run(*unable, "rules", "diff", "-c", str(world.config), check=False)
    assert done.returncode == NO_PERMISSION
    assert done.stderr == (
        "logknock: a network namespace, to try the rules in, cannot be made: Operation not permitted\n"
        "hint: CAP_SYS_ADMIN is needed: run it as root\n"
    )


def test_a_difference_that_cannot_be_written_is_none_of_the_answers(world: World) -> None:
    """Of `diff`, 1 would say that something differs; what is written where it can be has the answer's exit code."""
    for command, code in ((">/dev/full", USAGE), ("--json >/dev/full", USAGE), (">/dev/null", 1)):
        line = f"{sys.executable} -m logknock rules diff -c {world.config} {command}"
        done = world.gateway.run("sh", "-c", line, check=False)
        assert done.returncode == code
        assert done.stderr.startswith("logknock: standard output: No space left" if code == USAGE else "")
        assert "Traceback" not in done.stderr


def test_rules_of_the_administrator_s_that_hang_on_an_interface_are_shown_as_they_go(world: World) -> None:
    """What cannot be in a namespace without that interface."""
    world.apply()
    world.gateway.nft("add rule inet logknock guard iif eth0 tcp dport 99 accept")
    assert changed(diff(world, 1)) == ['-\t\tiif "eth0" tcp dport 99 accept']
