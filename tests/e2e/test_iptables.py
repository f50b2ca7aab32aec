"""`logknock rules --iptables` on hosts whose own firewall is iptables, of both kinds."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from logknock.errors import FAILURE, NO_PERMISSION, UNAVAILABLE

from .instruments import logging, take_roles
from .world import KNOCKS, SSH, World, until

CONFIG = SSH + "[firewall]\nmark = 0x10000\ntraps = 8\n"

# What an administrator has: all but a little is dropped, by the policy over IPv4 and by rules over IPv6.
IPV4 = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:mine - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 80 -m comment --comment "the web, LOGKNOCK or not" -j ACCEPT
-A INPUT -j mine
COMMIT
"""
IPV6 = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -j ACCEPT
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
-A INPUT -j DROP
COMMIT
"""


@dataclass
class Firewall:
    """The gateway with an iptables of one kind, which is what `iptables` means there."""

    world: World
    kind: str
    folder: Path

    @property
    def other(self) -> str:
        return "nft" if self.kind == "legacy" else "legacy"

    def run(self, *command: str, check: bool = True, **options: Any) -> str:
        """A command of the administrator's; what it prints."""
        return self.world.gateway.run(*command, check=check, env=self.environment(), **options).stdout

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", **more}

    def logknock(self, *args: str, check: bool = True, **more: str) -> Any:
        """`logknock rules ...`, with what is more in its environment."""
        words = ("rules", *args, "-c", str(self.world.config))
        return self.world.gateway.logknock(*words, check=check, env=self.environment(**more))

    @contextmanager
    def trial(self, seconds: str, **more: str) -> Iterator[Callable[[], str]]:
        """An `apply --iptables --confirm` that has loaded the rules; what it says of the end, once that has come."""
        words = (sys.executable, "-m", "logknock", "rules", "apply", "--iptables", "--confirm", seconds)
        streams: dict[str, Any] = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
        command = (*words, "-c", str(self.world.config))
        with self.world.gateway.start(*command, env=self.environment(**more), **streams) as process:
            assert process.stdout
            assert any(line.startswith("still reachable") for line in process.stdout)
            yield lambda: str(process.communicate(timeout=60)[1])

    def saved(self, *programs: str) -> str:
        """All rules of both families but for counters and times, and our table."""
        shown = "".join(self.run(f"{name}-save") for name in programs or ("iptables", "ip6tables"))
        return re.sub(r"\[\d+:\d+\]", "", "".join(re.findall(r"^[^#].*\n", shown, re.MULTILINE)))

    def tables(self) -> str:
        return self.world.gateway.nft("list tables")


def prepare(world: World, kind: str, folder: Path) -> Firewall:
    """Links that make `iptables` one of the kinds, as Debian's alternatives do."""
    folder.mkdir()
    for name in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            program = which(f"{name}-{kind}{verb}")
            assert program
            (folder / f"{name}{verb}").symlink_to(program)
    world.configure(CONFIG)
    return Firewall(world, kind, folder)


@pytest.fixture(params=["legacy", "nft"])
def firewall(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Firewall:
    """The administrator's rules are loaded, and nothing of ours."""
    made = prepare(world, request.param, tmp_path / "bin")
    made.run("iptables-restore", input=IPV4)
    made.run("ip6tables-restore", input=IPV6)
    return made


@pytest.fixture
def legacy(world: World, tmp_path: Path) -> Firewall:
    made = prepare(world, "legacy", tmp_path / "bin")
    made.run("iptables-restore", input=IPV4)
    made.run("ip6tables-restore", input=IPV6)
    return made


# ---- the whole way


def test_a_knock_opens_and_remove_leaves_no_trace(firewall: Firewall) -> None:
    """A default-drop host: ssh is closed, opens by a knock over either family, and all is as before in the end."""
    world, before = firewall.world, firewall.saved()
    tables = firewall.tables()
    done = firewall.logknock("apply", "--iptables")
    kind = "nf_tables" if firewall.kind == "nft" else "legacy"
    assert done.stdout.splitlines()[1] == (
        f"iptables ({kind}), ip6tables ({kind}): mark 0x10000 accepted, what is dropped goes to NFLOG group 5"
    )
    assert done.stderr == ""
    with world.service(22), world.daemon() as daemon:
        for address in (world.gateway.ipv4, world.gateway.ipv6):
            assert not world.reaches(address=address)
            world.knock(*KNOCKS, address=address)
            until(lambda address=address: world.reaches(address=address), "the door is open")  # type: ignore[misc]
        daemon.read()
        said = [line.split(": ")[-1] for line in daemon.lines if ": ssh: " in line]
        assert said == ["Stage 1", "Stage 2", "Stage 3", "OPEN SESAME"] * 2, "T10: what is recorded twice counts once"
    assert firewall.logknock("remove").stdout == f"removed, from iptables ({kind}), ip6tables ({kind}) too\n"
    assert firewall.saved() == before
    assert firewall.tables() == tables


def test_t10_both_record_a_knock_and_iptables_records_what_else_is_dropped(firewall: Firewall) -> None:
    """T10: the same packet twice, one behind the other; a port that is neither knocked on nor a trap once."""
    world = firewall.world
    here, there = world.client, world.gateway
    firewall.logknock("apply", "--iptables")
    take_roles(here)
    with logging(there, here) as log:
        found: list[str] = []

        def came() -> bool:
            """Over IPv6 it may take a moment: the neighbour has to be found first."""
            found.extend(line for line in log.read() if "198.51.100.99" not in line)  # which is how it ends
            return f"{here.ipv6} 1/udp" in found

        world.spoof(f"{here.ipv4}>{there.ipv4}:7000/tcp", f"{here.ipv6}>{there.ipv6}:1/udp")
        until(came, "the packets")
    assert found == [f"{here.ipv4} 7000/tcp"] * 2 + [f"{here.ipv6} 1/udp"]


def test_where_our_rules_record_nothing_iptables_alone_does(firewall: Firewall) -> None:
    world = firewall.world
    world.configure(CONFIG + "record = false\n")
    firewall.logknock("apply", "--iptables")
    with world.service(22), world.daemon():
        world.knock("7000/tcp", "7005/tcp", "8000/tcp", "9000/udp")
        world.knock("7000/tcp", "8000/tcp", "9000/udp")
        until(world.reaches, "the door is open")
        assert len(world.granted()) == 1


# ---- print


def test_what_is_printed_does_what_apply_does_and_again_changes_nothing(firewall: Firewall) -> None:
    before = firewall.saved()
    firewall.logknock("apply", "--iptables")
    applied = firewall.saved()
    firewall.logknock("remove")
    assert firewall.saved() == before
    for _ in range(2):
        text = firewall.logknock("print", "--iptables").stdout
        for program in ("iptables-restore", "ip6tables-restore"):
            firewall.run(program, "--noflush", input=text)
        assert firewall.saved() == applied
    for program in ("iptables-restore", "ip6tables-restore"):
        firewall.run(program, "--noflush", input=text)
    assert firewall.saved() == applied


def test_a_text_that_was_printed_before_is_refused_where_the_rules_are_there(firewall: Firewall) -> None:
    """As a whole: it would put second jumps into INPUT. So is the file in rules/ as it stands."""
    for text in (firewall.logknock("print", "--iptables").stdout, Path("rules/iptables.rules").read_text()):
        for program in ("iptables-restore", "ip6tables-restore"):
            firewall.run(program, "--noflush", input=text)
        once = firewall.saved()
        for program in ("iptables-restore", "ip6tables-restore"):
            done = firewall.world.gateway.run(program, "--noflush", input=text, check=False, env=firewall.environment())
            assert done.returncode
        assert firewall.saved() == once
        firewall.logknock("remove")


def test_print_works_for_another_host_without_permission(firewall: Firewall) -> None:
    """It says what it assumes, and what it prints loads on a fresh host."""
    words = (sys.executable, "-m", "logknock", "rules", "print", "--iptables", "-c", str(firewall.world.config))
    done = firewall.run("setpriv", "--bounding-set=-net_admin,-net_raw", *words)
    assert "# It is assumed that INPUT drops by its policy" in done
    for program in ("iptables-restore", "ip6tables-restore"):
        firewall.run(program, "--noflush", input=done)
    assert firewall.saved().count("-A INPUT -j LOGKNOCK-LOG\n") == 2


# ---- apply again, remove, and what others did meanwhile


def test_apply_again_changes_nothing_and_another_configuration_replaces(firewall: Firewall) -> None:
    firewall.logknock("apply", "--iptables")
    once = firewall.saved()
    firewall.run("iptables", "-Z")
    firewall.logknock("apply", "--iptables")
    assert firewall.saved() == once
    firewall.world.configure(
        CONFIG.replace("0x10000", "0x400000") + '[log]\nsource = "journal"\nprefix = "who is it"\n'
    )
    firewall.logknock("apply", "--iptables")
    after = firewall.saved()
    assert after == once.replace("0x10000/0x10000", "0x400000/0x400000").replace(
        "-j NFLOG --nflog-group 5", '-j LOG --log-prefix "who is it: " --log-level 6'
    )
    assert after != once


def test_a_group_with_a_prefix_for_who_writes_a_file(firewall: Firewall) -> None:
    """What python-iptables has crashed at: the prefix of NFLOG."""
    log = '[log]\nsource = "file"\nfile.path = "/var/log/knocks"\ngroup = 9\nprefix = "who is it"\n'
    firewall.world.configure(CONFIG + log)
    firewall.logknock("apply", "--iptables")
    assert firewall.saved().count('-A LOGKNOCK-LOG -j NFLOG --nflog-prefix "who is it: " --nflog-group 9') == 2


def test_the_log_moves_to_where_the_drop_is_now(firewall: Firewall) -> None:
    firewall.logknock("apply", "--iptables")
    firewall.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "443", "-j", "ACCEPT")
    firewall.run("iptables", "-A", "INPUT", "-j", "REJECT")
    firewall.logknock("apply", "--iptables")
    lines = [line for line in firewall.saved("iptables").splitlines() if line.startswith("-A INPUT")]
    assert lines[0] == "-A INPUT -j LOGKNOCK"
    assert lines[-3].endswith("--dport 443 -j ACCEPT")
    assert lines[-2:] == ["-A INPUT -j LOGKNOCK-LOG", "-A INPUT -j REJECT --reject-with icmp-port-unreachable"]


def test_remove_takes_out_ours_alone_whatever_was_done_since(firewall: Firewall) -> None:
    """Rules put in before and between, our jump moved to another chain and doubled; a configuration with errors."""
    firewall.logknock("apply", "--iptables")
    firewall.run("iptables", "-I", "INPUT", "1", "-s", "203.0.113.9", "-j", "DROP")
    firewall.run("iptables", "-I", "INPUT", "3", "-p", "udp", "--dport", "53", "-j", "ACCEPT")
    firewall.run("iptables", "-D", "INPUT", "-j", "LOGKNOCK-LOG")
    firewall.run("iptables", "-A", "mine", "-p", "udp", "-j", "LOGKNOCK-LOG")
    firewall.run("iptables", "-A", "mine", "-p", "udp", "-j", "LOGKNOCK-LOG")
    theirs = [
        line
        for line in firewall.saved().splitlines()
        if not re.search("LOGKNOCK(-LOG)?( |$)", line.replace("LOGKNOCK or", ""))
    ]
    firewall.world.configure("no TOML")
    firewall.logknock("remove")
    assert firewall.saved().splitlines() == theirs


def test_both_kinds_on_one_host_are_both_asked(firewall: Firewall) -> None:
    """A packet has to pass both: the tables of the other kind too accept the mark, and are cleared again."""
    programs = ("iptables", f"iptables-{firewall.other}", "ip6tables")
    firewall.run(f"iptables-{firewall.other}", "-P", "INPUT", "DROP")
    before = firewall.saved(*programs)
    firewall.logknock("apply", "--iptables")
    assert firewall.saved(*programs).count("-A LOGKNOCK -m mark") == 3
    firewall.logknock("remove")
    assert firewall.saved(*programs) == before


def test_a_host_without_ipv6_rules_goes_on_with_ipv4(world: World, tmp_path: Path) -> None:
    """And says that IPv6 is open, where there is IPv6."""
    firewall = prepare(world, "nft", tmp_path / "bin")
    firewall.run("iptables-restore", input=IPV4)
    done = firewall.logknock("apply", "--iptables")
    assert done.stderr == (
        "logknock: warning: ip6tables drops nothing: over IPv6 everybody reaches what nothing else drops\n"
    )
    assert firewall.saved("ip6tables") == ""
    world.gateway.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    assert firewall.logknock("apply", "--iptables").stderr == ""


# ---- on trial


@pytest.mark.parametrize("earlier", [False, True], ids=["from nothing", "from another configuration"])
def test_t38_what_nobody_confirms_is_undone_in_iptables_too(firewall: Firewall, earlier: bool) -> None:
    """T38: taken out, or put back as it was; and what is confirmed stays."""
    if earlier:
        firewall.world.configure(CONFIG + "[log]\ngroup = 7\n")
        firewall.logknock("apply", "--iptables")
    before, tables = firewall.saved(), firewall.tables()
    firewall.world.configure(CONFIG.replace("0x10000", "0x40000"))
    done = firewall.logknock("apply", "--iptables", "--confirm", "1s", check=False)
    assert done.returncode == FAILURE
    assert "0x40000 accepted" in done.stdout
    assert "what was there before is back" in done.stderr
    assert (firewall.saved(), firewall.tables()) == (before, tables)


def test_t38_a_trial_takes_iptables_back_where_the_table_is_gone(firewall: Firewall) -> None:
    """T38: somebody flushes all of nftables, and legacy iptables would keep a jump that nobody asked for."""
    before = firewall.saved()
    with firewall.trial("8s") as ended:
        firewall.world.gateway.nft("delete table inet logknock")
        assert "removed before anybody confirmed" in ended()
    assert firewall.saved() == before


def test_t38_what_is_removed_in_a_trial_stays_so(firewall: Firewall) -> None:
    """T38: not even rules that were in iptables before the trial come back."""
    before = firewall.saved()
    firewall.logknock("apply", "--iptables")
    firewall.world.configure(CONFIG.replace("0x10000", "0x40000"))
    with firewall.trial("60s") as ended:
        firewall.logknock("remove")
        assert "removed before anybody confirmed" in ended()
    assert firewall.saved() == before


def test_t38_an_undo_waits_for_the_lock_as_long_as_it_has_to(legacy: Firewall) -> None:
    """T38: the lock is held for longer than iptables waits for it, when the time is up."""
    before = legacy.saved()
    lock = str(legacy.folder / "lock")
    start = legacy.world.gateway.start
    with legacy.trial("1s", XTABLES_LOCKFILE=lock) as ended, start("flock", lock, "sleep", "8"):
        assert "what was there before is back" in ended()
    assert legacy.saved() == before


def test_a_terminal_is_asked_where_iptables_alone_would_change(firewall: Firewall) -> None:
    """And once all is there, nobody is."""
    firewall.logknock("apply")
    before = firewall.saved()
    words = f"{sys.executable} -m logknock rules apply --iptables -c {firewall.world.config}"
    told = firewall.run("script", "-qec", words, "/dev/null", input="n\n", check=False)
    assert "this changes iptables (" in told
    assert "Load it? [y/N]" in told
    assert "this loads" not in told
    assert firewall.saved() == before
    firewall.logknock("apply", "--iptables")
    assert "Load it?" not in firewall.run("script", "-qec", words, "/dev/null", input="n\n")


# ---- what cannot be done


def refused(firewall: Firewall, *words: str, **more: str) -> tuple[int, str]:
    """The exit code and the lines of an apply that changes nothing at all."""
    before = firewall.saved()
    done = firewall.logknock("apply", "--iptables", *words, check=False, **more)
    assert firewall.saved() == before
    assert "inet logknock" not in firewall.tables()
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["print", "apply"])
def test_without_a_mark_it_says_which_key(firewall: Firewall, command: str) -> None:
    firewall.world.configure(SSH)
    done = firewall.logknock(command, "--iptables", check=False)
    assert done.returncode == FAILURE
    assert done.stderr == (
        "logknock: there is no mark for iptables to accept: [firewall] mark is not set\n"
        "hint: [firewall] mark = 0x10000  # the bit that iptables then accepts\n"
    )


def test_a_host_without_rules_is_told_what_to_do(world: World, tmp_path: Path) -> None:
    firewall = prepare(world, "nft", tmp_path / "bin")
    code, words = refused(firewall)
    assert code == FAILURE
    assert words.startswith("logknock: iptables drops nothing on this host: everybody reaches what is guarded\nhint: ")


def test_without_iptables_it_names_the_package_and_remove_works(world: World) -> None:
    world.configure(CONFIG)
    world.apply()
    code = "from logknock.firewall import iptables; iptables.find = lambda name: None; "
    code += "from logknock.cli import main; main()"
    done = world.gateway.python(code, "rules", "apply", "--iptables", "-c", str(world.config), check=False)
    assert (done.returncode, done.stderr) == (
        UNAVAILABLE,
        "logknock: iptables is not installed\nhint: install the package iptables\n",
    )
    assert world.gateway.python(code, "rules", "remove", "-c", str(world.config)).stdout == "removed\n"


def test_a_chain_of_our_name_that_is_somebody_elses_stays(firewall: Firewall) -> None:
    firewall.run("iptables", "-N", "LOGKNOCK")
    firewall.run("iptables", "-A", "LOGKNOCK", "-p", "tcp", "-j", "DROP")
    code, words = refused(firewall)
    assert code == FAILURE
    assert words.startswith(
        "logknock: iptables has a rule in a chain of logknock's name: -A LOGKNOCK -p tcp -j DROP\nhint: rename"
    )
    before = firewall.saved()
    done = firewall.logknock("remove", check=False)
    assert (done.returncode, firewall.saved()) == (FAILURE, before)


def test_tables_that_nft_has_made_in_iptables_place(world: World, tmp_path: Path) -> None:
    """A host with nftables alone, whose tables have iptables' names and rules that iptables cannot list."""
    firewall = prepare(world, "nft", tmp_path / "bin")
    world.gateway.nft(
        "table ip filter { chain INPUT { type filter hook input priority 0; policy drop;\n"
        "meta mark set ip saddr map { 192.0.2.1 : 0x20000 } \n meta mark & 0x10000 == 0x10000 accept; }; }"
    )
    before = world.gateway.nft("list ruleset")
    done = firewall.logknock("apply", "--iptables", check=False)
    assert done.returncode == FAILURE
    assert done.stderr.endswith("have the rules that drop there accept the mark\n")
    firewall.logknock("apply")
    assert found(firewall)["mark-accepted"][0] == "ok"
    assert firewall.logknock("remove").stdout == "removed\n"
    assert world.gateway.nft("list ruleset") == before
    world.configure(CONFIG.replace("0x10000", "0x20000"))
    assert "used by table ip filter, chain INPUT (bits 0x20000)" in firewall.logknock("apply", check=False).stderr


def test_a_prefix_that_is_too_long_for_iptables(firewall: Firewall) -> None:
    firewall.world.configure(CONFIG + f'[log]\nsource = "journal"\nprefix = "{"x" * 28}"\n')
    code, words = refused(firewall)
    assert (code, "too long for LOG of iptables" in words) == (FAILURE, True)


def test_a_load_that_fails_takes_iptables_back(firewall: Firewall) -> None:
    """A table of our name that somebody else has made: nftables refuses, and iptables is as before."""
    firewall.world.gateway.nft("table inet logknock { set granted4 { type inet_service; }; }")
    before = firewall.saved()
    done = firewall.logknock("apply", "--iptables", check=False)
    assert done.returncode == FAILURE
    assert "`logknock rules remove` deletes it" in done.stderr
    assert firewall.saved() == before


@pytest.mark.parametrize("option", [(), ("--confirm", "60s")], ids=["for good", "on trial"])
def test_the_lock_of_iptables_is_waited_for_and_told_of(legacy: Firewall, option: tuple[str, ...]) -> None:
    """The lock is a file that another iptables holds; here it is one of this host's own."""
    lock = legacy.folder / "lock"
    world, before = legacy.world, legacy.saved()
    words = [sys.executable, "-m", "logknock", "rules", "apply", "--iptables", *option, "-c", str(world.config)]
    script = f"mount -t tmpfs none /run && exec flock /run/xtables.lock {' '.join(words)}"
    done = world.gateway.run("unshare", "-m", "sh", "-c", script, check=False, env=legacy.environment())
    assert not lock.exists()
    assert done.returncode == FAILURE
    assert done.stderr == (
        "logknock: iptables: somebody else holds the xtables lock (/run/xtables.lock), for 5 s and more\n"
        "hint: `fuser -v /run/xtables.lock` shows who; then run it again\n"
    )
    assert legacy.saved() == before
    assert "inet logknock" not in legacy.tables()


FAKES: dict[str, tuple[str, int, str]] = {
    "is not there": (
        "raise ImportError",
        UNAVAILABLE,
        "Python has no iptc module (python-iptables), for legacy iptables",
    ),
    "crashes": ("import os; os.abort()", FAILURE, "python-iptables crashed (SIGABRT): nothing is changed"),
    "crashes when half is done": (
        """
import sys
here = sys.path.pop(sys.path.index({folder!r}))
del sys.modules["iptc"]
from iptc import *
import iptc, os
class Table6:
    FILTER = "filter"
    def __init__(self, name): os.kill(os.getpid(), 11)
iptc.Table6 = Table6
sys.modules["iptc"] = iptc
""",
        FAILURE,
        "python-iptables crashed (SIGSEGV): nothing is changed",
    ),
    "raises something": (
        "import iptcc",
        UNAVAILABLE,
        "Python has no iptc module (python-iptables), for legacy iptables",
    ),
}


@pytest.mark.parametrize("name", FAKES)
def test_a_module_that_fails_changes_nothing(legacy: Firewall, tmp_path: Path, name: str) -> None:
    """The one that crashes in the middle has put in the rules for IPv4 by then."""
    code, status, words = FAKES[name]
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/iptc.py").write_text(code.replace("{folder!r}", repr(str(tmp_path / "fake"))))
    found, told = refused(legacy, PYTHONPATH=str(tmp_path / "fake"))
    assert (found, told.splitlines()[0]) == (status, f"logknock: {words}")
    assert "| iptables-restore --noflush`" in told


def test_remove_needs_no_module(legacy: Firewall, tmp_path: Path) -> None:
    before = legacy.saved()
    legacy.logknock("apply", "--iptables")
    (tmp_path / "iptc.py").write_text("raise ImportError")
    legacy.logknock("remove", PYTHONPATH=str(tmp_path))
    assert legacy.saved() == before


def test_without_permission_it_says_who_may(firewall: Firewall) -> None:
    words = (sys.executable, "-m", "logknock", "rules", "apply", "--iptables", "-c", str(firewall.world.config))
    done = firewall.world.gateway.run(
        "setpriv", "--bounding-set=-net_admin", *words, check=False, env=firewall.environment()
    )
    assert done.returncode == NO_PERMISSION
    assert done.stderr.splitlines()[-1] == "hint: CAP_NET_ADMIN is needed: run it as root"


# RHEL's: everything goes to a chain, which ends in a rejection.
RHEL = """*filter
:INPUT ACCEPT [0:0]
:RH - [0:0]
-A INPUT -j RH
-A RH -i lo -j ACCEPT
-A RH -p ipv6-icmp -j ACCEPT
-A RH -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A RH -j REJECT
COMMIT
"""


def test_what_iptables_cannot_log_our_own_rules_have_to(world: World, tmp_path: Path) -> None:
    """A knock that only iptables would record, behind what drops it, opens nothing: refused, and the hint helps."""
    firewall = prepare(world, "nft", tmp_path / "bin")
    for program in ("iptables-restore", "ip6tables-restore"):
        firewall.run(program, input=RHEL)
    world.configure(CONFIG + "record = false\n")
    code, words = refused(firewall)
    assert (code, words) == (
        FAILURE,
        "logknock: iptables (nf_tables) cannot record the knocks: `-A INPUT -j RH` drops what comes before it can be"
        " logged\nhint: [firewall] record = true: then logknock's own rules record the knocks\n",
    )
    assert "# iptables (nf_tables): `-A INPUT -j RH` drops what" in firewall.logknock("print", "--iptables").stdout
    firewall.logknock("apply")
    assert found(firewall)["log-rule"][2].startswith("record = true  # in [firewall], then logknock rules apply")
    world.configure(CONFIG + "record = true\n")
    done = firewall.logknock("apply", "--iptables")
    assert done.stderr.count("logknock: warning: ") == 2
    assert done.stdout.endswith("mark 0x10000 accepted, what is dropped is not logged\n")
    assert "-A INPUT -j LOGKNOCK-LOG" not in firewall.saved()
    with world.service(22), world.daemon():
        assert not world.reaches()
        world.knock(*KNOCKS)
        until(world.reaches, "the door is open")


def test_a_policy_that_accepts_logs_nothing_that_is_let_in(firewall: Firewall) -> None:
    """fail2ban's jump is a rule, and drops nobody who has not been banned."""
    for program in ("iptables", "ip6tables"):
        firewall.run(program, "-P", "INPUT", "ACCEPT")
        firewall.run(program, "-F", "INPUT")
        firewall.run(program, "-N", "f2b-sshd")
        firewall.run(program, "-A", "INPUT", "-p", "tcp", "-m", "multiport", "--dports", "22", "-j", "f2b-sshd")
    code, words = refused(firewall)
    assert (code, "iptables drops nothing on this host" in words) == (FAILURE, True)
    firewall.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP")
    done = firewall.logknock("apply", "--iptables")
    assert "does not log all that it drops" in done.stderr
    assert "-A INPUT -j LOGKNOCK-LOG" not in firewall.saved()
    once = firewall.saved()
    firewall.logknock("apply", "--iptables")
    assert firewall.saved() == once


def test_a_table_that_iptables_cannot_read_is_none_that_is_empty(world: World, tmp_path: Path) -> None:
    """It shows nothing, with exit code 0: neither does apply go by that, nor remove say that all is gone."""
    firewall = prepare(world, "nft", tmp_path / "bin")
    firewall.run("iptables-restore", input=IPV4)
    firewall.logknock("apply", "--iptables")
    world.gateway.nft("add chain ip filter own; add rule ip filter own fib daddr type local accept")
    done = firewall.logknock("apply", "--iptables", check=False)
    assert done.returncode == FAILURE
    assert done.stderr.endswith("have the rules that drop there accept the mark\n")
    assert "Table `filter' is incompatible" in done.stderr
    done = firewall.logknock("remove", check=False)
    assert (done.returncode, done.stdout) == (FAILURE, "removed from nftables\n")
    assert "hint: its jumps to LOGKNOCK and LOGKNOCK-LOG stay: `nft -a list table ip filter`" in done.stderr
    world.gateway.nft("flush chain ip filter own")
    assert firewall.logknock("remove").stdout == "removed from iptables (nf_tables)\n"
    world.gateway.nft("add rule ip filter own fib daddr type local accept")
    assert firewall.logknock("remove").stderr == ""


def test_without_ip6tables_it_says_that_it_is_not_there(world: World) -> None:
    world.configure(CONFIG)
    world.gateway.run("iptables-nft-restore", input=IPV4)
    code = "from logknock.firewall import iptables; found = iptables.find; "
    code += "iptables.find = lambda name: None if name.startswith('ip6') else found(name); "
    code += "from logknock.cli import main; main()"
    done = world.gateway.python(code, "rules", "apply", "--iptables", "-c", str(world.config))
    assert "warning: there is no ip6tables on this host: over IPv6 everybody" in done.stderr


# ---- a mark that somebody uses


USERS: dict[str, tuple[Callable[[Firewall], object], str]] = {
    "nftables": (
        lambda host: host.world.gateway.nft("table ip foo { chain bar { meta mark set meta mark | 0x30000; }; }"),
        "table ip foo, chain bar (bits 0x30000)",
    ),
    "a set of nftables": (
        lambda host: host.world.gateway.nft("table ip foo { set bar { type mark; elements = { 0x10001 }; }; }"),
        "set ip foo bar (bits 0x10001)",
    ),
    "iptables": (
        lambda host: host.run("iptables", "-t", "mangle", "-A", "INPUT", "-j", "MARK", "--set-mark", "0x10000"),
        "iptables, chain INPUT (bits 0x10000)",
    ),
    "connections in iptables": (
        lambda host: host.run("ip6tables", "-A", "INPUT", "-m", "connmark", "--mark", "0x0/0xff0000", "-j", "DROP"),
        "ip6tables, chain INPUT (bits 0xff0000)",
    ),
    "routing": (
        lambda host: host.world.gateway.run("ip", "-6", "rule", "add", "fwmark", "0x10000/0x10000", "table", "7"),
        "`ip rule` 32765, to table 7 (bits 0x10000)",
    ),
}


@pytest.mark.parametrize("who", USERS)
def test_a_mark_that_somebody_uses_is_refused_with_one_that_is_free(firewall: Firewall, who: str) -> None:
    use, where = USERS[who]
    use(firewall)
    free = "0x1000000" if "0xff0000" in where else "0x400000"
    message = f"logknock: [firewall] mark: 0x10000 is used by {where}\nhint: choose another bit, like {free}\n"
    assert refused(firewall) == (FAILURE, message)
    done = firewall.logknock("apply", check=False)
    assert (done.returncode, done.stderr) == (FAILURE, message)
    firewall.world.configure(CONFIG.replace("0x10000", free))
    firewall.logknock("apply", "--iptables")


def test_who_accepts_the_mark_is_no_other_user(firewall: Firewall) -> None:
    """An administrator's own rules of iptables and nftables that let in what has it."""
    firewall.world.gateway.nft(
        "table inet own { chain c { meta mark & 0x10000 == 0x10000 accept; meta mark 0x10000 accept; }; }"
    )
    firewall.run("iptables", "-I", "INPUT", "-m", "mark", "--mark", "0x10000/0x10000", "-j", "ACCEPT")
    for _ in range(2):
        firewall.logknock("apply", "--iptables")


# ---- the doctor


def found(firewall: Firewall) -> dict[str, tuple[str, str, str]]:
    """What the doctor says of the mark and of rules: level, text and remedy by check."""
    words = ("doctor", "--json", "-c", str(firewall.world.config))
    answer = firewall.world.gateway.logknock(*words, check=False, env=firewall.environment()).stdout
    told = json.loads(answer)["findings"]
    asked = ("table", "dropped-after", "log-rule", "set-watched", "mark-used", "mark-open", "mark-accepted")
    return {one["check"]: (one["level"], one["text"], one["remedy"]) for one in told if one["check"] in asked}


def do(firewall: Firewall, remedy: str) -> None:
    """A remedy, copied into a shell where `logknock` is this tree's."""
    command = firewall.folder / "logknock"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={Path.cwd()} exec {sys.executable} -m logknock "$@"\n')
    command.chmod(0o755)
    firewall.run("sh", "-ec", remedy)


def test_the_doctor_knows_who_has_to_accept_the_mark(firewall: Firewall) -> None:
    """Whether it is accepted, behind a policy that drops; and its remedy opens nothing to those who have no mark."""
    firewall.logknock("apply", "--iptables")
    well = found(firewall)
    assert {level for level, _, _ in well.values()} == {"ok"}
    assert well.keys() >= {"table", "dropped-after", "mark-accepted"}
    for program in ("iptables", "ip6tables"):
        firewall.run(program, "-F", "LOGKNOCK")
    ill = found(firewall)
    assert [ill[check][0] for check in ("mark-accepted", "dropped-after")] == ["error", "error"]
    assert {ill[check][2] for check in ("mark-accepted", "dropped-after")} == {
        f"logknock rules apply --iptables -c {firewall.world.config}"
    }
    do(firewall, ill["mark-accepted"][2])
    assert found(firewall) == well


def test_the_doctor_says_where_nothing_is_closed(firewall: Firewall) -> None:
    firewall.logknock("apply", "--iptables")
    firewall.run("ip6tables", "-F", "INPUT")
    level, text, _ = found(firewall)["mark-open"]
    assert (level, text.partition(" without")[0]) == ("error", "everybody reaches 22/tcp over IPv6")


def test_the_doctor_says_where_the_rules_are_the_other_ones(firewall: Firewall) -> None:
    world = firewall.world
    for before, after, words in (
        ("0x10000", "0", "only marks what it lets in (0x10000), and no mark is configured"),
        ("0", "0x10000", "gives grantees no mark, and [firewall] mark is 0x10000"),
        ("0x10000", "0x20000", "marks what it lets in with 0x10000, and [firewall] mark is 0x20000"),
    ):
        world.configure(CONFIG.replace("0x10000", before))
        firewall.logknock("apply")
        world.configure(CONFIG.replace("0x10000", after))
        level, text, remedy = found(firewall)["table"]
        assert (level, words in text) == ("error", True)
        do(firewall, remedy)
        assert found(firewall)["table"][0] == "ok"


def test_the_doctor_has_a_firewall_of_nftables_accept_the_mark(world: World, tmp_path: Path) -> None:
    """Its remedy, copied, lets in who knocks and nobody else; and another user of the mark is told of."""
    firewall = prepare(world, "nft", tmp_path / "bin")
    world.gateway.nft(
        'table inet own { chain in { type filter hook input priority 0; policy drop; iifname "lo" accept; '
        "ct state established,related accept; icmpv6 type nd-neighbor-solicit accept; }; }"
    )
    firewall.logknock("apply")
    level, _, remedy = found(firewall)["mark-accepted"]
    assert level == "error"
    do(firewall, remedy)
    assert found(firewall)["mark-accepted"][0] == "ok"
    with world.service(22), world.daemon():
        assert not world.reaches()
        world.knock(*KNOCKS)
        until(world.reaches, "the door is open")
    world.gateway.nft("table ip foo { chain bar { meta mark set 0x10000; }; }")
    assert found(firewall)["mark-used"][:2] == (
        "error",
        "[firewall] mark: 0x10000 is used by table ip foo, chain bar (bits 0x10000)",
    )


def test_the_doctor_without_records_of_our_own(firewall: Firewall) -> None:
    """With record = false no knock port has to be watched, and iptables has to log."""
    firewall.world.configure(CONFIG + "record = false\n")
    firewall.logknock("apply")
    ill = found(firewall)
    assert (ill["set-watched"][0], ill["log-rule"][0]) == ("ok", "error")
    do(firewall, ill["log-rule"][2])
    assert found(firewall)["log-rule"][0] == "ok"


# ---- the guide

HOWTO = Path(__file__).parents[2] / "docs/howto/iptables.md"
BLOCKS: list[str] = re.findall(r"```sh\n(.*?)```", HOWTO.read_text(), re.DOTALL)

# Writes to /etc go to memory.
PRIVATE = """
mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
rm -rf /etc/logknock; mkdir -p /etc/iptables /etc/logknock; cd /mnt
getent group logknock >/dev/null || echo logknock:x:64990: >>/etc/group
systemctl() {{ :; }}  # no daemon belongs to this story; tests/e2e/test_howtos.py has the service
install -m 600 {config} /etc/logknock/logknock.toml
shown() {{ (iptables-save; ip6tables-save) | grep -v '^#' | sed 's/\\[.*//'; }}
shown > before
"""
CHECKS = {
    "rules apply": "test $(shown | grep -c '^-A INPUT -j LOGKNOCK') = 4; shown > applied",
    "iptables-save": """
for family in 4 6; do
    restore=$(test $family = 4 && echo iptables-restore || echo ip6tables-restore)
    $restore < /etc/iptables/rules.v$family
done
shown | cmp - applied
""",
    "rules print": "shown | cmp - applied",
    "rules remove": 'shown | cmp - before; test -z "$(nft list tables | grep logknock)"',
}


def test_the_guide_followed_word_for_word(firewall: Firewall) -> None:
    """Its blocks in their order: put in, looked at, saved and loaded, loaded by hand once more, taken out."""
    firewall.world.configure(SSH)
    do(firewall, "true")  # for the command by its name
    script = PRIVATE.format(config=firewall.world.config)
    for text in BLOCKS:
        script += text + next((check + "\n" for marker, check in CHECKS.items() if marker in text), "")
    told = firewall.run("unshare", "-m", "bash", "-ec", script)
    assert "-A LOGKNOCK -m mark --mark 0x10000/0x10000 -j ACCEPT" in told
    assert len(BLOCKS) == len(CHECKS) + 1
