"""The house as DESIGN draws it: who may know whom, and who may touch the world."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "logknock"

# A room, and the rooms it may know. Siblings do not know each other; no arrow points back up.
BASE = {"errors"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "clock": set(),
    "packet": set(),
    "netlink": set(),
    "tries": {"packet"},
    "knock": {"packet", "tries"},
    "client": BASE | {"knock", "packet", "raw"},
    "raw": BASE,
    "runs": BASE | {"client", "knock"},
    "positions": BASE | {"client", "knock", "onetime", "onetime_files"},
    "supplies": {"client", "clock", "knock", "packet", "profile_proofs", "runs", "spa", "totp"},
    "profiles": BASE
    | {"client", "config_values", "knock", "packet", "profile_proofs", "runs", "toml_files", "toml_tables", "totp"},
    "profile_proofs": {"config_values", "knock", "packet", "spa", "toml_tables", "totp"},
    "proxy": BASE,
    "onetime": {"knock", "packet"},
    "spa": BASE | {"knock", "packet"},
    "garbage": set(),
    "gate": {"knock", "packet", "spa", "store"},
    "mailbox": {"packet"},
    "onetime_files": BASE | {"knock", "onetime", "ownership", "packet"},
    "toml_lines": set(),
    "toml_files": BASE | {"toml_lines"},
    "toml_tables": {"config_values", "toml_files", "toml_lines"},
    "config_values": {"knock", "packet"},
    "key_files": BASE | {"ownership", "toml_files", "toml_lines"},
    "enrolment": {"config_values", "knock", "packet", "spa", "toml_files", "totp"},
    "config_clients": {"config_values", "knock", "packet", "spa", "toml_tables", "totp", "tries"},
    "config": {"config_clients", "config_values", "knock", "ownership", "packet", "records", "spa", "toml_files"}
    | {"toml_lines", "toml_tables", "totp"},
    "knockd_commands": {"knock", "packet"},
    "imported": {"knock"},
    "knockd_conf": {"config_values", "imported", "knock", "knockd_commands", "packet"},
    "access_conf": {"config_values", "imported", "knock", "packet", "spa"},
    "spa_checks": {"firewall.sets", "gate", "packet", "spa", "store"},
    "report": {"knock", "packet", "trail"},
    "actions": BASE | {"knock", "packet"},
    "records": {"packet", "stamps"},
    "stamps": set(),
    "copies": {"packet"},
    "scan": {"packet"},
    "bans": BASE | {"config", "config_values", "firewall.sets", "packet", "report", "scan"},
    "counts": {"knock", "spa", "standing"},
    "metrics": {"counts", "standing"},
    "exposition": BASE | {"config", "config_values", "control", "counts", "metrics"},
    "trail": {"counts", "knock", "packet", "spa"},
    "lines": {"packet", "records", "stamps"},
    "trusted_files": BASE,
    "sources": BASE | {"lines", "netlink", "packet", "records", "stamps", "trusted_files"},
    "intake": BASE | {"config", "copies", "packet", "records", "sources"},
    "feed": BASE,
    "control": BASE | {"feed", "systemd"},
    "desk": BASE | {"bans", "control", "doorkeeper", "explain", "feed", "packet", "report", "standing"},
    "explain": BASE | {"bans", "config", "firewall.sets", "intake", "knock", "packet", "steps", "trail"},
    "timeline": {"knock", "trail"},
    "axis": {"timeline"},
    "plot": BASE | {"axis", "timeline"},
    "skipped": BASE | {"packet", "records"},
    "logs": BASE | {"lines", "packet", "records", "skipped", "sources", "stamps"},
    "replay": BASE
    | {"config_values", "copies", "firewall.sets", "knock", "logs", "onetime", "onetime_files", "packet", "records"}
    | {"skipped", "steps", "timeline", "totp", "trail"},
    "doctor": BASE
    | {"client", "clock", "config", "config_values", "control", "demo", "doctor", "enrolment", "firewall.iptables"}
    | {"firewall.marks", "firewall.ruleset", "firewall.sets", "knock"}
    | {"lockout", "netlink", "onetime", "onetime_files", "ownership", "packet", "profile_proofs"}
    | {"records", "sources", "spa", "status", "store", "supplies", "totp"},
    "firewall.sets": BASE | {"knock", "netlink"},
    "firewall.ruleset": BASE
    | {"config", "firewall.intent", "knock", "netlink", "onetime_files", "ownership", "packet", "trial"},
    "firewall.intent": BASE | {"ownership", "trial"},
    "firewall.watch": BASE | {"knock", "netlink"},
    "firewall.difference": BASE | {"firewall.ruleset"},
    "firewall.iptables": BASE | {"config"},
    "firewall.marks": BASE | {"firewall.iptables", "firewall.ruleset"},
    "firewall": set(),
    "session": {"knock", "packet"},
    "lockout": BASE | {"config", "knock", "packet", "status"},
    "trial": BASE | {"ownership"},
    "store": BASE | {"knock", "onetime", "ownership", "packet"},
    "turns": BASE | {"knock", "onetime", "onetime_files", "store"},
    "totp": {"knock", "packet"},
    "steps": BASE | {"knock", "packet", "store", "totp"},
    "status": BASE | {"clock", "knock", "onetime", "onetime_files", "packet", "standing", "store", "turns"},
    "standing": set(),
    "ownership": set(),
    "sole": BASE | {"config", "ownership"},
    "systemd": BASE | {"standing"},
    "doorkeeper": BASE | {"actions", "firewall.sets", "knock", "report", "standing", "store"},
    "reconcile": BASE | {"config", "firewall.intent", "firewall.sets", "firewall.watch", "knock", "report"},
    "daemon": BASE
    | {"reconcile"}
    | {"__init__", "config", "control", "doorkeeper", "explain", "firewall.sets", "intake", "knock", "packet", "report"}
    | {
        "bans",
        "counts",
        "desk",
        "exposition",
        "garbage",
        "gate",
        "mailbox",
        "scan",
        "sole",
        "sources",
        "spa",
        "standing",
        "steps",
        "store",
    }
    | {"systemd", "trail", "turns"},
    "cli": BASE
    | {
        "__init__",
        "access_conf",
        "bans",
        "cli",
        "client",
        "config",
        "config_values",
        "control",
        "daemon",
        "demo",
        "doctor",
        "enrolment",
        "explain",
        "firewall.difference",
        "firewall.iptables",
        "firewall.marks",
        "firewall.ruleset",
        "firewall.sets",
        "gate",
        "knock",
        "key_files",
        "knockd_conf",
        "lockout",
        "onetime",
        "onetime_files",
        "ownership",
        "packet",
        "plot",
        "positions",
        "profiles",
        "proxy",
        "replay",
        "report",
        "runs",
        "session",
        "sole",
        "spa",
        "spa_checks",
        "standing",
        "status",
        "store",
        "supplies",
        "systemd",
        "timeline",
        "totp",
        "trail",
        "trial",
    },
    "demo": BASE | {"config", "client", "knock", "packet"},
}

# The core knows no clock and no world.
PURE = {
    "tries": {"collections", "typing"},
    "packet": {"ipaddress", "typing"},
    "knock": {"collections", "dataclasses", "enum", "itertools", "struct", "typing"},
    "records": {"collections", "functools", "ipaddress", "itertools", "json", "re", "typing"},
    "lines": {"collections", "typing"},
    "skipped": {"collections", "enum", "re"},
    "timeline": {"collections", "datetime", "typing"},
    "axis": {"bisect", "collections", "datetime", "math", "typing"},
    "plot": {"collections", "datetime", "math", "xml"},
    "stamps": {"datetime", "math", "re", "typing"},
    "copies": {"itertools", "typing"},
    "standing": {"collections", "typing"},
    "metrics": {"collections", "itertools", "prometheus_client", "typing"},
    "counts": {"bisect", "collections", "itertools", "operator", "typing"},
    "scan": {"collections", "itertools", "typing"},
    "doctor.finding": {"collections", "enum", "typing"},
    "doctor.rules": {"collections", "enum", "ipaddress", "itertools", "re", "shlex", "typing"},
    "trail": {"collections", "enum", "itertools", "typing"},
    "onetime": {"collections", "itertools", "math", "typing"},
    "totp": {"base64", "binascii", "collections", "dataclasses", "hmac", "itertools", "math", "struct", "typing"}
    | {"urllib"},
    "spa": {"base64", "binascii", "collections", "cryptography", "dataclasses", "enum", "hashlib", "hmac", "ipaddress"}
    | {"re", "typing"},
    "gate": {"collections", "hashlib", "typing"},
    "knockd_commands": {"collections", "re", "typing"},
    "imported": {"collections", "textwrap", "typing"},
    "knockd_conf": {"collections", "dataclasses", "ipaddress", "re", "typing"},
    "access_conf": {"base64", "binascii", "collections", "dataclasses", "ipaddress", "json", "re", "typing"},
}

# Who may start another program: no byte of a packet ever reaches a shell (T35). `actions` runs the argv of a door's
# on_open and on_close: no shell, the argv from the configuration only, and in it one thing from a packet, an address
# as text.
# `firewall.intent` starts nft, to put back the rules that an administrator loaded: its argv is fixed, its input a file
# of root's or of logknock's own, and nothing of a packet is near it. Nothing else of the daemon is among them.
# `doctor` lists what other programs' rules are, and tries a knock in a namespace of its own.
STARTS_PROGRAMS = {"actions", "cli.demo", "demo", "doctor.host", "doctor.live", "firewall.intent", "trial"}
# `rules --iptables` starts iptables' own programs, and asks `ip` who routes by marks.
STARTS_PROGRAMS |= {"firewall.iptables", "firewall.marks"}
# `rules remove` asks systemctl whether the unit will load them again.
STARTS_PROGRAMS |= {"cli.rules"}


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(name: str) -> tuple[set[str], set[str]]:
    """The modules of ours, and the top names of others, that a module imports anywhere in it."""
    ours, others = set(), set()
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = ".".join([*base, alias.name])
                ours.add(full if full in modules() else ".".join(base) or "__init__")
    return ours, others


def room(name: str) -> str:
    """The room that a module belongs to: itself, or the folder where all of a folder's modules are alike."""
    return name if name in ALLOWED else name.split(".")[0]


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_knows_what_it_should_not(name: str) -> None:
    known = {room(found.removesuffix(".__init__")) for found in imports(name)[0]}
    if room(name) in known and room(name) not in ("cli", "doctor"):  # what these hold is one thing in several files
        pytest.fail(f"{name} imports a sibling")
    assert known <= ALLOWED[room(name)], f"{name} must not know {known - ALLOWED[room(name)]}"


# What a machine has that only knocks (packaging/debian/logknock-client.install).
CLIENT = {"__init__", "errors", "cli.__init__", "cli.client", "cli.knock", "cli.proxy"}
CLIENT |= {"client", "config_values", "knock", "onetime", "onetime_files", "ownership", "packet", "positions"}
CLIENT |= {"profiles", "proxy", "runs", "toml_files", "toml_lines", "toml_tables"}
CLIENT |= {"clock", "profile_proofs", "raw", "spa", "supplies", "totp", "tries"}


def test_what_only_knocks_loads_its_own_modules_alone() -> None:
    """Wherever in a file it is imported: nothing of the daemon, and no configuration of one."""
    known, todo = set(), {"cli.client", "cli.knock", "cli.proxy"}
    while todo:
        known.add(name := todo.pop())
        found = {other if other in modules() else f"{other}.__init__" for other in imports(name)[0]}
        todo |= found - known
    assert known == CLIENT


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_core_knows_no_clock_and_no_world(name: str) -> None:
    assert imports(name)[1] <= PURE[name]


@pytest.mark.parametrize("name", sorted(modules()))
def test_t35_only_these_start_programs(name: str) -> None:
    """T35: what reads packets and logs cannot start anything, and what can start something uses no shell."""
    tree = ast.parse(modules()[name].read_text())
    starters = {
        "system",
        "popen",
        "execv",
        "execvp",
        "execve",
        "execvpe",
        "execl",
        "execlp",
        "spawnv",
        "posix_spawn",
        "fork",
        "create_subprocess_exec",
        "create_subprocess_shell",
    }
    starts = "subprocess" in imports(name)[1] or any(
        isinstance(node, ast.Attribute) and node.attr in starters for node in ast.walk(tree)
    )
    shells = any(isinstance(node, ast.keyword) and node.arg == "shell" for node in ast.walk(tree))
    assert not shells
    assert not starts or name in STARTS_PROGRAMS


def test_the_daemon_makes_up_no_rule() -> None:
    """Rules are made and loaded by a person, with `logknock rules`; the daemon can put back that text and has no other.

    For all else it holds no verb but add, delete and list on elements, so it cannot lock anybody out.
    """
    lives_there = ("daemon", "reconcile", "firewall.intent", "firewall.sets", "firewall.watch", "report")
    for name in lives_there:
        assert "firewall.ruleset" not in imports(name)[0]
        assert "nftables" not in imports(name)[1]
        assert name == "firewall.intent" or "nft" not in _strings(name)


def _strings(name: str) -> set[str]:
    tree = ast.parse(modules()[name].read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
