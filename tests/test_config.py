"""What the configuration's reader must say of files: right, wrong (all of it, and where), or worth a warning."""

import os
import random
import re
import tomllib
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logknock.config import MAX_BYTES, Config, ConfigError, Firewall, PortRange, find_lines, load, parse_duration
from logknock.knock import MAX_SEQUENCE, Door, Granted, Matcher, Service, SetName, TcpFlags
from logknock.packet import FIN, SYN, TCP, UDP, Packet

from .netns import Host, pair

STEPS = '["7000/tcp", "9000/udp", "8000/tcp"]'
DOOR = f'[doors.ssh]\nsequence = {STEPS}\nopens = ["22/tcp"]\n'
MOST = ", ".join(f'"{7000 + number}/tcp"' for number in range(MAX_SEQUENCE))
PAGE = Path(__file__).parent.parent / "docs/reference/logknock.toml.md"
NOBODY = 65534


def write(folder: Path, text: str | bytes, name: str = "logknock.toml") -> Path:
    """A file as an administrator would leave it, in a folder that is made where it is not there."""
    path = folder / name
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return path


def errors(path: Path) -> tuple[list[str], list[str]]:
    """Each problem as `FILE:LINE: KEY: MESSAGE`, FILE from the folder on, and their hints."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    found = caught.value.problems
    return [str(problem).removeprefix(f"{path.parent}/") for problem in found], [problem.hint for problem in found]


def test_a_full_configuration_is_what_its_file_says(tmp_path: Path) -> None:
    """Every key of every table, each at a value that is not its default."""
    text = """
        [log]
        source = "nflog"
        group = 0
        [firewall]
        trusted = ["192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "2001:db9::1"]
        traps = 16384
        exclude = ["5353/udp", "6000-6010/tcp"]
        rate = 1000
        burst = 1
        [paths]
        state = "/var/lib/x"
        runtime = "/run/x"
        [doors.a]
        sequence = ["7000/tcp", "9000/udp", "8000/tcp"]
        seq_timeout = "1m30s"
        tcp_flags = "fin,!syn"
        opens = ["22/tcp", "443/udp"]
        sets = ["inet filter allowed4", "ip6 t-1 a.b"]
        closes = ["B.2"]
        timeout = "1d"
        guard = false
        [doors."B.2"]
        sequence = ["1/udp", "65535/tcp", "3/udp"]
        opens = ["80/tcp"]
    """
    path = write(tmp_path, text)
    config = load(path)
    assert config == Config(
        file=path,
        source="nflog",
        group=0,
        firewall=Firewall(
            trusted=tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32", "2001:db9::1/128"))),
            traps=16384,
            exclude=(PortRange(UDP, 5353, 5353), PortRange(TCP, 6000, 6010)),
            rate=1000,
            burst=1,
        ),
        state=Path("/var/lib/x"),
        runtime=Path("/run/x"),
        doors=(
            Door(
                name="a",
                sequence=(Service(TCP, 7000), Service(UDP, 9000), Service(TCP, 8000)),
                seq_timeout=90.0,
                tcp_flags=TcpFlags(FIN | SYN, FIN),
                opens=(Service(TCP, 22), Service(UDP, 443)),
                sets=(SetName("inet", "filter", "allowed4"), SetName("ip6", "t-1", "a.b")),
                closes=("B.2",),
                timeout=86400.0,
                guard=False,
            ),
            Door("B.2", (Service(UDP, 1), Service(TCP, 65535), Service(UDP, 3)), opens=(Service(TCP, 80),)),
        ),
        warnings=(),
    )
    assert config.guarded == {Service(TCP, 80)}
    assert config.knocked == {service for door in config.doors for service in door.sequence}


def test_the_longest_sequence_is_allowed(tmp_path: Path) -> None:
    """The limit itself."""
    assert len(load(write(tmp_path, DOOR.replace(STEPS, f"[{MOST}]"))).doors[0].sequence) == MAX_SEQUENCE


def test_a_knock_may_be_on_a_service_that_is_opened_and_not_guarded(tmp_path: Path) -> None:
    """logknock sees such packets if the administrator's own rules log them."""
    text = (
        f"{DOOR}guard = false\nsets = ['ip t s']\n[doors.b]\nsequence = ['22/tcp', '9/tcp', '5/tcp']\ncloses = ['ssh']"
    )
    config = load(write(tmp_path, text))
    assert config.guarded == frozenset()
    assert Service(TCP, 22) in config.knocked


def test_networks_that_overlap_become_one(tmp_path: Path) -> None:
    """nft refuses a set of networks that overlap."""
    path = write(tmp_path, DOOR + '[firewall]\ntrusted = ["10.1.0.0/16", "10.0.0.0/8", "::1", "10.0.0.0/8"]')
    assert load(path).firewall.trusted == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


def beside_a_door(table: str, line: str) -> str:
    """A file whose second line is this one, in this table; the usual door makes it complete."""
    if table != "doors.ssh":
        return f"[{table}]\n{line}\n{DOOR}"
    key = line.partition(" ")[0]
    kept = [other for other in DOOR.splitlines()[1:] if not other.startswith(f"{key} ")]
    return "\n".join(["[doors.ssh]", line, *kept])


# Claim: (a line, what is wrong with it, the hint).
Claims = dict[str, tuple[str, str, str]]
LOG: Claims = {
    "a key like no other gets the list": ("zzz = 1", "unknown key", "known here: source, group, prefix"),
    "another source": ('source = "journal"', "nflog is the only source there is", 'write "nflog", or leave it out'),
    "a source that is no text": ("source = 1", "nflog is the only source there is", 'write "nflog", or leave it out'),
    "a group above 65535": ("group = 65536", "65536 is out of range (0-65535)", ""),
    "a group below 0": ("group = -1", "-1 is out of range (0-65535)", ""),
    "a bool is no number": ("group = true", "must be a whole number, not true or false", "0-65535, without quotes"),
    "a number in quotes": ('group = "5"', "must be a whole number, not text", "0-65535, without quotes"),
    "a fraction is no whole number": ("group = 5.0", "must be a whole number, not a number", "0-65535, without quotes"),
    "a prefix that is no text": (
        "prefix = 5",
        "must be text, not a whole number",
        'write it in quotes, like "logknock"',
    ),
}
IP_HINT = 'write "192.0.2.0/24", "2001:db8::/32" or a single address'
TEXT_HINT = "write it in quotes, like "
ZONE_HINT = "a packet's source has none: leave out what begins with %"
BITS = "has bits set behind its prefix"
MAPPED = "is IPv4 written as IPv6"
FIREWALL: Claims = {
    "too many traps": ("traps = 16385", "16385 is out of range (0-16384)", ""),
    "a negative number of traps": ("traps = -1", "-1 is out of range (0-16384)", ""),
    "a rate of nothing": ("rate = 0", "0 is out of range (1-1000)", ""),
    "a rate that limits nothing": ("rate = 1001", "1001 is out of range (1-1000)", ""),
    "a burst of nothing": ("burst = 0", "0 is out of range (1-1000)", ""),
    "a burst that limits nothing": ("burst = 1001", "1001 is out of range (1-1000)", ""),
    "a network without brackets": ('trusted = "10.0.0.0/8"', "must be a list, not text", 'write ["10.0.0.0/8"]'),
    "a date where a list belongs": ("trusted = 2026-01-02", "must be a list, not a date or time", ""),
    "a number": ("trusted = [10]", "must be text, not a whole number", f'{TEXT_HINT}"192.0.2.0/24"'),
    "host bits, IPv4": ('trusted = ["192.0.2.7/24"]', f"192.0.2.7/24 {BITS}", 'write "192.0.2.0/24"'),
    "host bits, IPv6": ('trusted = ["2001:db8::1/64"]', f"2001:db8::1/64 {BITS}", 'write "2001:db8::/64"'),
    "T27: a zone": ('trusted = ["fe80::1%eth0"]', "'fe80::1%eth0' has a zone", ZONE_HINT),
    "T27: v4-mapped": ('trusted = ["::ffff:192.0.2.7"]', f"::ffff:192.0.2.7 {MAPPED}", 'write "192.0.2.7/32"'),
    "T27: v4-mapped, expanded": (
        'trusted = ["0:0:0:0:0:ffff:c000:207/120"]',
        f"0:0:0:0:0:ffff:c000:207/120 {MAPPED}",
        'write "192.0.2.0/24"',
    ),
    "a host's name is no network": ('trusted = ["host.example"]', "'host.example' is no IP network", IP_HINT),
    "an empty text is no network": ('trusted = [""]', "'' is no IP network", IP_HINT),
    "port 0 in a range": ('exclude = ["0-5/tcp"]', "0-5/tcp is no port (1-65535)", ""),
    "a range that runs backwards": ('exclude = ["9-5/tcp"]', "9-5/tcp runs backwards", 'write "5-9/tcp"'),
    "a range without its end": ('exclude = ["6000-/tcp"]', "'6000-/tcp': '' is no port number", ""),
    "a range and no protocol": ('exclude = ["60"]', "'60' has no protocol", 'write "5353/udp" or "6000-6010/tcp"'),
}
PATHS: Claims = {
    "a relative directory": ('state = "lib"', "'lib' is no absolute path", "begin it with /"),
    "a directory in somebody's home": ('runtime = "~/run"', "'~/run' is no absolute path", "begin it with /"),
    "a path that the kernel cannot take": (r'state = "/a\u0000b"', r"'/a\x00b' is no absolute path", "begin it with /"),
}
UNIT_HINT = 'write it as nft does: "30s", "1h30m", "2d", "500ms"'
SET_HINT = 'write family (ip, ip6, inet), table and name: "inet filter allowed4"'
NAME_HINT = "letters, digits and _ . / -, the first a letter, _ or ."
GUARDED = "22/tcp is guarded, since door ssh opens it: a packet to it is no knock"
GUARDED_HINT = "knock on a port that no door opens"
DOORS: Claims = {
    "a misspelt key gets the nearest one": ('opnes = ["22/tcp"]', "unknown key", "did you mean opens?"),
    "a sequence without a knock": ("sequence = []", "has no knock", "three knocks are a good beginning"),
    "a sequence that is too long": (f'sequence = [{MOST}, "9/udp"]', "has 33 elements, and 32 are the most", ""),
    "a port above 65535": ('sequence = ["70000/tcp"]', "70000/tcp is no port (1-65535)", ""),
    "port 0": ('sequence = ["0/tcp"]', "0/tcp is no port (1-65535)", ""),
    "a port without its protocol": ("sequence = [7000]", "7000 has no protocol", 'write "7000/tcp" or "7000/udp"'),
    "another protocol": ('sequence = ["7/icmp"]', "'7/icmp': the protocol is tcp or udp, not 'icmp'", ""),
    "a bool is no port": ("sequence = [true]", "must be text, not true or false", f'{TEXT_HINT}"22/tcp"'),
    "a knock on a guarded service": ('sequence = ["7000/tcp", "22/tcp", "8000/tcp"]', GUARDED, GUARDED_HINT),
    "a service twice in opens": ('opens = ["22/tcp", "80/tcp", "22/tcp"]', "22/tcp is named twice", ""),
    "a service without brackets": ('opens = "22/tcp"', "must be a list, not text", 'write ["22/tcp"]'),
    "a guard that is text": ('guard = "no"', "must be true or false, not text", "without quotes"),
    "a close of an unknown door": ('closes = ["shs"]', "there is no door 'shs'", "the doors are: ssh"),
    "a door that closes itself": ('closes = ["ssh"]', "a door cannot close itself", "its timeout does that"),
    "an unknown flag": ('tcp_flags = "sin"', "'sin' is no TCP flag (fin, syn, rst, psh, ack, urg)", ""),
    "a duration without quotes and unit": ("timeout = 30", "30 has no unit", 'write "30s"'),
    "a duration without its unit": ('timeout = "30"', "'30' has no unit", 'write "30s"'),
    "a fraction as a duration": ("timeout = 1.5", "must be text, not a number", f'{TEXT_HINT}"30s"'),
    "a duration in weeks": ('timeout = "1w"', "'1w' is no duration", UNIT_HINT),
    "a duration in other digits": ('timeout = "\u0663\u0660s"', "'\u0663\u0660s' is no duration", UNIT_HINT),
    "no duration at all": ('timeout = ""', "'' is no duration", UNIT_HINT),
    "a timeout under a second": ('timeout = "999ms"', "999ms is out of range (1s-365d)", ""),
    "a timeout over a year": ('timeout = "365d1ms"', "365d1ms is out of range (1s-365d)", ""),
    "a seq_timeout under a second": ('seq_timeout = "999ms"', "999ms is out of range (1s-1h)", ""),
    "a seq_timeout over an hour": ('seq_timeout = "1h1ms"', "1h1ms is out of range (1s-1h)", ""),
    "a set without its family": ('sets = ["filter allowed4"]', "'filter allowed4' is no set", SET_HINT),
    "a set of a family without IP": ('sets = ["bridge filter s"]', "'bridge filter s' is no set", SET_HINT),
    "a set's name that begins with a digit": ('sets = ["ip filter 4s"]', "'4s' is no name that nft takes", NAME_HINT),
    "a table's name that begins with a digit": ('sets = ["ip 4t s"]', "'4t' is no name that nft takes", NAME_HINT),
    "T35: a name that would end a command": ('sets = ["ip t s;x"]', "'s;x' is no name that nft takes", NAME_HINT),
    "a set twice": ('sets = ["ip t s", "ip  t  s"]', "ip t s is named twice", ""),
}


def cases(table: str, claims: Claims) -> list[Any]:
    return [pytest.param(table, *case, id=f"{table}: {claim}") for claim, case in claims.items()]


@pytest.mark.parametrize(
    ("table", "line", "message", "hint"),
    [*cases("log", LOG), *cases("firewall", FIREWALL), *cases("paths", PATHS), *cases("doors.ssh", DOORS)],
)
def test_a_wrong_value_is_one_error_with_its_line_and_a_hint(
    tmp_path: Path, table: str, line: str, message: str, hint: str
) -> None:
    """Nothing else is said: no error follows from another."""
    key = line.partition(" ")[0]
    path = write(tmp_path, beside_a_door(table, line))
    assert errors(path) == ([f"logknock.toml:2: {table}.{key}: {message}"], [hint])


NO_DOOR_HINT = (
    "a minimal one, at the head of the file: "
    'doors.ssh = {sequence = ["7000/tcp", "8000/tcp", "9000/udp"], opens = ["22/tcp"]}'
)
DOOR_NAME_HINT = "up to 63 letters, digits and . _ -, the first a letter or a digit"
REST = DOOR.partition("\n")[2]
NO_DOOR = "it begins with a line [doors.NAME]"
# Claim: (a file, what is wrong with it, the hint).
TABLES: Claims = {
    "an empty file": ("", " doors: there is no door", NO_DOOR_HINT),
    "no door in [doors]": ("[log]\n[doors]", "2: doors: there is no door", NO_DOOR_HINT),
    "an unknown table": (f"loog = {{}}\n{DOOR}", "1: loog: unknown key", "did you mean log?"),
    "a value where a table belongs": (
        f"log = 5\n{DOOR}",
        "1: log: must be a table, not a whole number",
        "it begins with a line [log]",
    ),
    "doors as an array of tables": ("[[doors]]\nx = 1", "1: doors: must be a table, not a list", NO_DOOR),
    "a door without its name": ('[doors]\nopens = ["22/tcp"]', "2: doors.opens: must be a table, not a list", NO_DOOR),
    "a blank in a name": (f'[doors."a b"]\n{REST}', '1: doors."a b": this is no name for a door', DOOR_NAME_HINT),
    "a name like an option": (f"[doors.-x]\n{REST}", "1: doors.-x: this is no name for a door", DOOR_NAME_HINT),
    "a name of 64 letters": (
        f"[doors.{'a' * 64}]\n{REST}",
        f"1: doors.{'a' * 64}: this is no name for a door",
        DOOR_NAME_HINT,
    ),
    "a line end behind a name": (
        f'[doors."d\\n"]\n{REST}',
        r'1: doors."d\n": this is no name for a door',
        DOOR_NAME_HINT,
    ),
    "a door without a sequence": (
        '[doors.a]\nopens = ["22/tcp"]',
        "1: doors.a.sequence: is missing",
        'sequence = ["7000/tcp", "8000/tcp", "9000/udp"]',
    ),
    "a door that does nothing": (
        f"[doors.a]\nsequence = {STEPS}",
        "1: doors.a: this door does nothing",
        'opens = ["22/tcp"], or sets, or closes',
    ),
    "an unguarded service and no sets": (
        f"{DOOR}guard = false",
        "3: doors.ssh.opens: guard is false and there are no sets: nothing is opened",
        "leave guard out, or name the sets that your own rules look into",
    ),
    "a knock on what another door guards": (
        f'{DOOR}[doors.b]\nsequence = ["1/tcp", "3/tcp", "22/tcp"]\ncloses = ["ssh"]',
        f"5: doors.b.sequence: {GUARDED}",
        GUARDED_HINT,
    ),
    "an element of a list on its own line": (
        f"{DOOR}sets = [\n  # one\n  'ip t s',\n  '''ip t'''\n]",
        "7: doors.ssh.sets: 'ip t' is no set",
        SET_HINT,
    ),
}


@pytest.mark.parametrize(("text", "problem", "hint"), [pytest.param(*case, id=claim) for claim, case in TABLES.items()])
def test_a_wrong_table_is_one_error_with_its_line_and_a_hint(
    tmp_path: Path, text: str, problem: str, hint: str
) -> None:
    """What is missing stands where its table begins, and without a line where there is no such table."""
    assert errors(write(tmp_path, text)) == ([f"logknock.toml:{problem}"], [hint])


def test_every_error_is_reported_at_once_from_top_to_bottom(tmp_path: Path) -> None:
    """Errors of values, of doors beside each other and of keys, whatever the order in which they are found."""
    text = """[doors.a]
sequence = ["22/tcp", "x/tcp", "70000/udp"]
opens = ["22/tcp"]
timeout = 5
[log]
grup = 1
group = 1.5
[doors.b]
closes = ["c"]
"""
    found, _ = errors(write(tmp_path, text))
    assert found == [
        "logknock.toml:2: doors.a.sequence: 'x/tcp': 'x' is no port number",
        "logknock.toml:2: doors.a.sequence: 70000/udp is no port (1-65535)",
        "logknock.toml:2: doors.a.sequence: 22/tcp is guarded, since door a opens it: a packet to it is no knock",
        "logknock.toml:4: doors.a.timeout: 5 has no unit",
        "logknock.toml:6: log.grup: unknown key",
        "logknock.toml:7: log.group: must be a whole number, not a number",
        "logknock.toml:8: doors.b.sequence: is missing",
        "logknock.toml:9: doors.b.closes: there is no door 'c'",
    ]


def test_a_hint_lists_a_few_doors_of_many(tmp_path: Path) -> None:
    """A hint that lists a thousand doors is none."""
    doors = "".join(f'[doors.d{n:03}]\nsequence = {STEPS}\ncloses = ["x"]\n' for n in range(100))
    _, hints = errors(write(tmp_path, doors))
    assert hints == ["the doors are: d000, d001, d002, d003, d004, d005, d006, d007, ..."] * 100


def test_the_minimal_door_of_the_hints_is_a_configuration_without_warnings(tmp_path: Path) -> None:
    """A hint can be pasted."""
    _, (hint,) = errors(write(tmp_path, ""))
    assert load(write(tmp_path, hint.partition("file: ")[2])).warnings == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("[log]\ngroup = = 5\n", ":2: Invalid value (column 9)", id="a syntax error"),
        pytest.param("[log]\ngroup = [1,\n", ":3: Invalid value (at the end)", id="an end that comes too soon"),
        pytest.param("[log]\n[log]\n", ":2: Cannot declare ('log',) twice (column 5)", id="a table twice in a file"),
        pytest.param(f"a = {'[' * 5000}", ": lists or tables are nested too deeply", id="lists without end"),
        pytest.param(f"a = {'1' * 5000}", ": a number has too many digits", id="a number without end"),
        pytest.param(b"[log]\n# caf\xe9\n", ":2: is not UTF-8: byte 0xe9", id="Latin-1"),
        pytest.param(b" " * (MAX_BYTES + 1), ": is larger than 1 MiB", id="one byte over the limit"),
    ],
)
def test_a_file_that_cannot_be_understood_is_one_error(tmp_path: Path, text: str | bytes, problem: str) -> None:
    """What is wrong with the TOML hides what it says, and nothing is concluded from what is not there."""
    assert errors(write(tmp_path, text))[0] == [f"logknock.toml{problem}"]


def test_a_file_of_just_the_largest_size_is_read(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    assert load(write(tmp_path, DOOR + "#" * (MAX_BYTES - len(DOOR)))).doors


# ---- files


def test_a_later_file_replaces_keys_and_adds_doors(tmp_path: Path) -> None:
    """Tables merge, in the order of the names; what is not a *.toml file or begins with a dot is not read."""
    path = write(tmp_path, "log.group = 1\nfirewall = {rate = 7, burst = 8}\n" + DOOR)
    write(tmp_path, "log.group = 3\n[firewall]\nburst = 9", "conf.d/20-b.toml")
    write(tmp_path, f'log.group = 2\ndoors.b = {{sequence = {STEPS}, closes = ["ssh"]}}', "conf.d/10-a.toml")
    for ignored in (".30-c.toml", "40-d.toml.bak", "README"):
        write(tmp_path, "unknown = 1", f"conf.d/{ignored}")
    config = load(path)
    assert (config.group, config.firewall.rate, config.firewall.burst) == (3, 7, 9)
    assert [door.name for door in config.doors] == ["ssh", "b"]


def test_a_wrong_value_that_a_later_file_replaces_is_no_error(tmp_path: Path) -> None:
    """Only what counts is judged, and in the file that it counts from."""
    path = write(tmp_path, "log.group = 'x'\nfirewall.rate = 5\n" + DOOR)
    write(tmp_path, "log.group = 3\n", "conf.d/a.toml")
    assert load(path).group == 3
    write(tmp_path, "\nfirewall.rate = 0\n", "conf.d/b.toml")
    assert errors(path)[0] == ["conf.d/b.toml:2: firewall.rate: 0 is out of range (1-1000)"]


def test_the_same_door_in_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    """And each is judged for itself."""
    path = write(tmp_path, DOOR)
    write(tmp_path, f"[log]\n{DOOR}guard = 1\n", "conf.d/a.toml")
    assert errors(path)[0] == [
        f"conf.d/a.toml:2: doors.ssh: the same door is in {path} too",
        "conf.d/a.toml:5: doors.ssh.guard: must be true or false, not a whole number",
    ]


def test_errors_of_several_files_come_together(tmp_path: Path) -> None:
    """A file that cannot be read does not hide what is wrong in another; but what it may hold is not missed."""
    path = write(tmp_path, "[log]\ngroup = 'x'\n" + DOOR + 'closes = ["perhaps-in-b"]')
    write(tmp_path, "x = ", "conf.d/b.toml")
    write(tmp_path, "x = 1", "conf.d/c.toml")
    assert errors(path)[0] == [
        "logknock.toml:2: log.group: must be a whole number, not text",
        "conf.d/b.toml:1: Invalid value (at the end)",
        "conf.d/c.toml:1: x: unknown key",
    ]


def test_a_missing_file_is_one_error_that_shows_a_minimal_configuration(tmp_path: Path) -> None:
    """What is beside it does not matter then."""
    write(tmp_path, "x", "conf.d/a.toml")
    (problem,), (hint,) = errors(tmp_path / "logknock.toml")
    assert problem == "logknock.toml: does not exist"
    assert load(write(tmp_path / "b", hint.partition("one: ")[2])).doors


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    """Not even an empty one."""
    (tmp_path / "logknock.toml").mkdir()
    assert errors(tmp_path / "logknock.toml")[0] == ["logknock.toml: is a directory"]


def test_a_neighbour_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    """Somebody meant it to be read."""
    write(tmp_path, DOOR, "conf.d")
    assert errors(write(tmp_path, DOOR))[0] == ["conf.d: cannot be read: Not a directory"]


@pytest.mark.parametrize("name", ["logknock.toml", "conf.d/a.toml"])
@pytest.mark.parametrize(
    ("mode", "who"),
    [
        pytest.param(0o604, "read by others", id="others may read it"),
        pytest.param(0o602, "written by others", id="others may write it"),
        pytest.param(0o660, "written by its group", id="its group may write it"),
        pytest.param(0o666, "read by others and written by its group and written by others", id="everybody may"),
    ],
)
def test_a_file_that_others_have_a_hand_in_is_refused(tmp_path: Path, name: str, mode: int, who: str) -> None:
    """It holds the sequences; the command of the hint mends it."""
    path = write(tmp_path, DOOR)
    bad = path if name == "logknock.toml" else write(tmp_path, "log.group = 1", name)
    bad.chmod(mode)
    problems, (hint,) = errors(path)
    assert problems == [f"{name}: can be {who}, and it holds what to knock"]
    assert hint == f"chmod g-w,o-rwx {bad}"
    assert os.system(hint) == 0  # noqa: S605 - the point is that a shell takes it as it stands
    assert load(path).doors


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o700])
def test_a_file_that_a_group_may_read_is_right(tmp_path: Path, mode: int) -> None:
    """So is one that nobody may write."""
    path = write(tmp_path, DOOR)
    path.chmod(mode)
    assert load(path).doors


def test_a_file_that_others_can_only_read_is_judged_too(tmp_path: Path) -> None:
    """Its author hears of all that is wrong at once."""
    path = write(tmp_path, "x = 1\n" + DOOR)
    path.chmod(0o644)
    assert len(errors(path)[0]) == 2


@pytest.mark.parametrize("name", ["logknock.toml", "conf.d/a.toml", "conf.d"])
def test_what_belongs_to_another_user_is_refused_and_not_read(tmp_path: Path, name: str) -> None:
    """Its words may be anybody's, so they are not even judged."""
    path = write(tmp_path, DOOR)
    write(tmp_path, "x = 1" if name != "logknock.toml" else "", "conf.d/a.toml")
    bad = tmp_path / name
    os.chown(bad, NOBODY, -1)
    assert errors(path) == ([f"{name}: belongs to another user (uid {NOBODY})"], [f"chown root {bad}"])


@pytest.mark.parametrize(
    ("mode", "who"),
    [
        pytest.param(0o775, "written by its group", id="its group can add files"),
        pytest.param(0o777, "written by its group and written by others", id="everybody can add files"),
    ],
)
def test_a_directory_to_which_others_can_add_files_is_refused(tmp_path: Path, mode: int, who: str) -> None:
    """One that they can read is not: the files in it are each looked at."""
    path = write(tmp_path, DOOR)
    folder = write(tmp_path, "log.group = 1", "conf.d/a.toml").parent
    assert load(path).group == 1
    folder.chmod(mode)
    assert errors(path) == ([f"conf.d: can be {who}, and it holds what to knock"], [f"chmod go-w {folder}"])


def test_a_path_with_blanks_is_quoted_in_the_command_of_a_hint(tmp_path: Path) -> None:
    """The hint is meant for a shell."""
    path = write(tmp_path, DOOR, "my doors.toml")
    path.chmod(0o644)
    assert errors(path)[1] == [f"chmod g-w,o-rwx '{path}'"]


# ---- warnings


def doors(**sequences: str) -> str:
    """Doors by their knocks, written `3 1 2u`, and then perhaps a line for the door behind a |."""
    text = ""
    for name, knocks in sequences.items():
        steps, _, line = knocks.partition("|")
        services = [f"{step[:-1]}/udp" if step.endswith("u") else f"{step}/tcp" for step in steps.split()]
        text += f'[doors.{name}]\nopens = ["22/tcp"]\nsequence = {services}\n{line}\n'
    return text


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        pytest.param(doors(a="7 9 8"), [], id="three knocks in no order"),
        pytest.param(doors(a="7 8 9"), [], id="with traps an ascending sequence is as good as another"),
        pytest.param(
            doors(a="7"), ["3: doors.a.sequence: a single knock: any port scan opens the door"], id="T1: one knock"
        ),
        pytest.param(
            doors(a="8 7"),
            ["3: doors.a.sequence: two knocks: a random port scan opens the door about once in 1,024 times"],
            id="T2: two knocks",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7 9 8 3", b="6 4 5"),
            ["2: firewall.traps: without traps, a random scan of all ports opens 3 knocks once in 6 times"],
            id="T3: no traps",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7 8 9u"),
            [
                "2: firewall.traps: without traps, a random scan of all ports opens 3 knocks once in 6 times",
                "5: doors.a.sequence: ascending, and there are no traps: "
                "a port scan from low to high opens the door every time",
            ],
            id="T3: no traps and an ascending sequence",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7 7 8"),
            ["2: firewall.traps: without traps, a random scan of all ports opens 3 knocks once in 6 times"],
            id="a scan does not knock twice on a port",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7"),
            ["5: doors.a.sequence: a single knock: any port scan opens the door"],
            id="traps do not matter to a single knock",
        ),
        pytest.param(
            doors(a="7 7u 7"),
            ["3: doors.a.sequence: all knocks are on port 7: a client that just tries again opens the door"],
            id="all knocks on one port",
        ),
        pytest.param(
            doors(a="7 9 8", b="7 9 8 6"),
            ["3: doors.a.sequence: begins door b's: whoever knocks that completes this one too"],
            id="a sequence that begins another",
        ),
        pytest.param(
            doors(b="1 7 9 8", a="7 9 8"),
            ["7: doors.a.sequence: is part of door b's: whoever knocks that completes this one too"],
            id="a sequence inside another",
        ),
        pytest.param(
            doors(a="7 9 8", b="7 9 8 6", c="1 7 9 8", d="7 9 8 5"),
            ["3: doors.a.sequence: begins door b's (and 2 others): whoever knocks that completes this one too"],
            id="a sequence in several others is one warning",
        ),
        pytest.param(doors(a="1 3 2", b="3 2 4"), [], id="the end of one begins the other: nothing happens early"),
        pytest.param(
            doors(a="7 9 8", b="7 9 8"),
            ["7: doors.b.sequence: the same as door a's: whoever knocks it completes both"],
            id="two that are the same",
        ),
        pytest.param(doors(a="7 9 8", b="7 9 8|tcp_flags = 'fin'"), [], id="the same with other flags is another"),
        pytest.param(
            doors(a="7u 9u 8u", b="7u 9u 8u|tcp_flags = 'fin'"),
            ["7: doors.b.sequence: the same as door a's: whoever knocks it completes both"],
            id="flags make no difference over UDP",
        ),
        pytest.param(
            doors(a="7u 9u 8u", b="1 7u 9u 8u|tcp_flags = 'fin'"),
            ["3: doors.a.sequence: is part of door b's: whoever knocks that completes this one too"],
            id="nor do they inside another",
        ),
        pytest.param(doors(a="7 9 8", b="7u 9u 8u"), [], id="the same ports over another protocol"),
        pytest.param(
            doors(a="7 9 8|timeout = '24h1ms'"),
            ["4: doors.a.timeout: over a day: by then the address may be somebody else's"],
            id="a timeout over a day",
        ),
        pytest.param(doors(a="7 9 8|timeout = '1d'"), [], id="a timeout of a day"),
        pytest.param(
            "[firewall]\ntrusted = [\n'10.0.0.0/8',\n'0.0.0.0/0',\n'::/0']\n" + doors(a="7 9 8"),
            [
                "4: firewall.trusted: 0.0.0.0/0 is everybody: nothing is closed",
                "5: firewall.trusted: ::/0 is everybody: nothing is closed",
            ],
            id="everybody is trusted",
        ),
    ],
)
def test_a_configuration_is_loaded_with_these_warnings(tmp_path: Path, text: str, warnings: list[str]) -> None:
    """Each with a hint."""
    path = write(tmp_path, text)
    found = load(path).warnings
    assert [str(problem) for problem in found] == [f"{path}:{warning}" for warning in warnings]
    assert all(problem.hint for problem in found)


def opened(path: Path, knocks: Iterable[Service]) -> set[str]:
    """The doors that these knocks open, a tenth of a second apart, if nothing else is logged."""
    matcher = Matcher(load(path).doors)
    events = []
    for at, (proto, port) in enumerate(knocks):
        events += matcher.receive(Packet(at / 10, bytes(4), bytes(4), proto, 40_000 + at, port, SYN))
    return {event.grant.door for event in events if isinstance(event, Granted)}


@pytest.mark.parametrize(
    "text",
    [
        doors(a="7 9 8", b="7 9 8 6"),
        doors(a="7 9 8", b="1 7 9 8"),
        doors(a="9 8", b="7 9 8 6"),
        doors(a="7 9", b="7 9"),
    ],
    ids=["begins it", "ends it", "inside it", "the same"],
)
def test_what_the_warning_of_an_overlap_says_is_so(tmp_path: Path, text: str) -> None:
    """Whoever knocks the longer sequence completes both."""
    path = write(tmp_path, text)
    config = load(path)
    assert any("completes" in problem.message for problem in config.warnings)
    assert opened(path, config.doors[1].sequence) == {"a", "b"}


def test_what_the_warning_of_no_traps_says_is_so(tmp_path: Path) -> None:
    """T3: of the six orders in which a scan can come by three knock ports one opens; for 7, 8, 9 the ascending one."""
    path = write(tmp_path, "[firewall]\ntraps = 0\n" + doors(a="7 8 9"))
    scans = list(permutations(Service(TCP, port) for port in (7, 8, 9)))
    assert [scan for scan in scans if opened(path, scan)] == [tuple(Service(TCP, port) for port in (7, 8, 9))]
    assert len(scans) == 6


# ---- lines

TRICKY = r'''# [not.a.table] = "x"
title = """
[nor.this]
a = 1 \""" " ""
""""" # five quotes
[ a . "b.c" ] # ]
'd e' = [ # x = [
  1, "]", '"',   # ],
  { f = [[2],
    [3]], g.h = 4 },
  \'\'\'
k = 1\'\'\',
]
l = 2026-01-02 03:04:05 # m = 1
n.o.p = +inf
[[q]]
r = 1
[[q]]
r = 2
[[q.s]]
[q.s.t]
u = 'v'
w=1'''.replace("\\'", "'")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("a",), 6),
        (("a", "b.c"), 6),
        (("a", "b.c", "d e"), 7),
        (("a", "b.c", "d e", 0), 8),
        (("a", "b.c", "d e", 2), 8),
        (("a", "b.c", "d e", 3, "f"), 9),
        (("a", "b.c", "d e", 3, "f", 1, 0), 10),
        (("a", "b.c", "d e", 3, "g", "h"), 10),
        (("a", "b.c", "d e", 4), 11),
        (("a", "b.c", "l"), 14),
        (("a", "b.c", "n", "o", "p"), 15),
        (("q",), 16),
        (("q", 0, "r"), 17),
        (("q", 1, "r"), 19),
        (("q", 1, "s", 0), 20),
        (("q", 1, "s", 0, "t"), 21),
        (("q", 1, "s", 0, "t", "w"), 23),
    ],
)
def test_a_key_is_found_on_its_line(path: tuple[str | int, ...], line: int) -> None:
    """Whatever stands around it."""
    assert tomllib.loads(TRICKY)
    assert find_lines(TRICKY, {path})[path] == line


@pytest.mark.parametrize(
    ("path", "line"),
    [(("a", "b.c", "x"), 6), (("a", "x", "y"), 6), (("q", 1, "s", 0, "t", "x", 3), 21), (("x",), None)],
)
def test_a_key_that_is_not_there_has_its_tables_line(path: tuple[str | int, ...], line: int | None) -> None:
    """A missing key is reported where it would belong."""
    assert find_lines(TRICKY, {path}).get(path) == line


def test_a_text_that_the_locator_does_not_understand_has_no_further_lines() -> None:
    """A newer TOML may have more notations than this file knows."""
    assert find_lines("a = 1\nb := 2\nc = 3", {("a",), ("c",)}) == {("a",): 1}


class Writer:
    """Writes a dict as TOML in many styles, and notes the line of each key and element as it goes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.text = ""
        self.lines: dict[tuple[str | int, ...], int] = {}

    def mark(self, path: tuple[str | int, ...], known: int = 0) -> None:
        for end in range(known + 1, len(path) + 1):
            self.lines.setdefault(path[:end], self.text.count("\n") + 1)

    def key(self, key: str) -> str:
        if re.fullmatch("[A-Za-z0-9_-]+", key) and self.rng.random() < 0.7:
            return key
        return self.quoted(key)

    def quoted(self, text: str, keep: str = "") -> str:
        plain = "".join(c if c in keep or (c.isprintable() and c not in '"\\') else f"\\U{ord(c):08x}" for c in text)
        return f'"{plain}"'

    def table(self, path: tuple[str | int, ...], data: dict[str, Any]) -> None:
        """The table's own keys; then those of its tables that get a header."""
        later = {key: value for key, value in data.items() if self.gets_header(value)}
        for key, value in data.items():
            if key not in later:
                self.mark((*path, key))
                self.text += f"{self.key(key)} = "
                self.value((*path, key), value)
                self.text += self.rng.choice(["\n", " # [x]\n", "\n\n"])
        for key, value in later.items():
            for at, inner in enumerate(value) if isinstance(value, list) else [(None, value)]:
                here = (*path, key) if at is None else (*path, key, at)
                self.mark(here)
                names = ".".join(self.key(part) for part in here if isinstance(part, str))
                self.text += f"[{names}]\n" if at is None else f"[[ {names} ]] # {{\n"
                self.table(here, inner)

    def gets_header(self, value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(isinstance(inner, dict) for inner in value) and self.rng.random() < 0.5
        return isinstance(value, dict) and self.rng.random() < 0.7

    def value(self, path: tuple[str | int, ...], value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for at, (key, inner) in enumerate(value.items()):
                self.text += ", " if at else " "
                self.mark((*path, key))
                self.text += f"{self.key(key)} = "
                self.value((*path, key), inner)
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for at, inner in enumerate(value):
                self.text += self.rng.choice(["", " ", "\n", " # ]\n"])
                self.mark((*path, at))
                self.value((*path, at), inner)
                self.text += ","
            self.text += "]"
        elif isinstance(value, str):
            self.string(value)
        else:
            self.text += str(value).lower() if isinstance(value, bool | float) else str(value)

    def string(self, text: str) -> None:
        if self.rng.random() < 0.3:
            self.text += '""' + self.quoted("\n" + text, keep="\n") + '""'
        elif self.rng.random() < 0.3 and "'" not in text and text.isprintable():
            self.text += f"'{text}'"
        else:
            self.text += self.quoted(text)


scalars = st.text(max_size=8) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats() | st.dates()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)


def assert_same(read: Any, written: Any) -> None:
    """Equal, with nan equal to itself: what the writer wrote is what it was to write."""
    if isinstance(written, dict):
        assert read.keys() == written.keys()
        for key, value in written.items():
            assert_same(read[key], value)
    elif isinstance(written, list):
        for one, other in zip(read, written, strict=True):
            assert_same(one, other)
    else:
        assert repr(read) == repr(written)


@given(st.dictionaries(st.text(max_size=4), values, max_size=6), st.randoms(use_true_random=False))
def test_every_key_of_any_file_is_found_on_its_line(data: dict[str, Any], rng: random.Random) -> None:
    """Written in any style: headers, dotted and quoted keys, inline tables, texts and lists over several lines."""
    writer = Writer(rng)
    writer.table((), data)
    assert_same(tomllib.loads(writer.text), data)
    assert find_lines(writer.text, set(writer.lines)) == writer.lines


# ---- any file

good = st.sampled_from(
    ["7000/tcp", "22/tcp", "9/udp", "30s", "1h30m", "syn", "inet t s", "a", "b", "10.0.0.0/8", "::/0", "/x", "nflog"]
)
keys = st.sampled_from(
    [
        "log",
        "firewall",
        "paths",
        "doors",
        "source",
        "group",
        "prefix",
        "trusted",
        "traps",
        "exclude",
        "rate",
        "burst",
        "state",
        "runtime",
        "sequence",
        "seq_timeout",
        "tcp_flags",
        "opens",
        "sets",
        "closes",
        "timeout",
        "guard",
        "a",
        "b",
    ]
)
shaped = st.dictionaries(keys, good | st.lists(good, max_size=4) | values, max_size=6)
files = st.fixed_dictionaries(
    {},
    optional={
        "log": shaped | values,
        "firewall": shaped | values,
        "paths": shaped | values,
        "doors": st.dictionaries(keys, shaped, max_size=3) | values,
        "x": values,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all the files of a property."""
    return tmp_path_factory.mktemp("config")


def assert_config_or_error(path: Path) -> None:
    """A Config, or a ConfigError each of whose lines can be printed."""
    try:
        config = load(path)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = config.warnings
        assert config.doors
    assert all(line.isprintable() for problem in problems for line in problem.report())


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
@example(b"a = 0x" + b"f" * 10_000)
@example(b"[doors.a]\ntimeout = 0x" + b"f" * 10_000)
@example(b"log.group = 0x" + b"f" * 10_000)
@example(b"[doors.a]\nsequence = [0x" + b"f" * 10_000 + b"]")
@example(b"[doors]\n" + b"a." * 400 + b"b = 1")
@example(b"log = " + b"[" * 300 + b"]" * 300)
@example(b'[doors."\\U0001F600\\u202e\\u001b[2J"]\nx = "\\u001b"')
def test_any_bytes_are_a_config_or_an_error(folder: Path, data: bytes) -> None:
    """Never another exception."""
    assert_config_or_error(write(folder, data))


@given(files, st.randoms(use_true_random=False))
def test_any_toml_is_a_config_or_an_error(folder: Path, data: dict[str, Any], rng: random.Random) -> None:
    """Known keys with values that may be right, wrong or anything; never another exception."""
    writer = Writer(rng)
    writer.table((), data)
    assert_config_or_error(write(folder, writer.text))


@given(st.integers(0, len(DOOR) - 1), st.sampled_from(list("\"'[]{}=.,#\n\\0a/ \x00é")))
def test_a_configuration_with_one_wrong_character_is_a_config_or_an_error(folder: Path, at: int, put: str) -> None:
    """What a slip of the finger makes."""
    assert_config_or_error(write(folder, DOOR[:at] + put + DOOR[at + 1 :]))


# ---- beside nft, and the documentation

TICK = 0.01  # a kernel counts in ticks, of which it has a hundred a second or more
MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


@given(st.integers(0, 365 * 86_400_000))
def test_a_duration_that_nft_would_print_is_read_as_what_it_is(milliseconds: int) -> None:
    """Round trip, to the millisecond."""
    rest, text = milliseconds, ""
    for unit, size in MILLISECONDS.items():
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    assert round(parse_duration(text or "0s") * 1000) == milliseconds


@pytest.fixture(scope="module")
def gateway() -> Iterator[Host]:
    """A host for nft's own opinion."""
    with pair() as (host, _):
        yield host


@pytest.mark.parametrize(
    "text",
    [
        "30s",
        "1h30m",
        "2d",
        "500ms",
        "1d2h3m4s5ms",
        "90m",
        "005s",
        "100h",
        "1d5ms",
        "30",
        "1m1h",
        "1s1s",
        "1w",
        "1.5s",
        "-1s",
        "1S",
        "1s,1ms",
    ],
)
def test_a_duration_is_one_just_where_nft_takes_it(gateway: Host, text: str) -> None:
    """What is taken means what nft makes of it."""
    script = f"add table inet t\nadd set inet t s {{ type ipv4_addr; flags timeout; timeout {text}; }}\n"
    nft = gateway.run("nft", "-f", "-", input=script, check=False)
    if nft.returncode:
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            parse_duration(text)
    else:
        listed = re.search(r"timeout (\w+)\n", gateway.run("nft", "list", "table", "inet", "t").stdout)
        gateway.nft("delete table inet t\n")
        assert listed
        assert parse_duration(listed[1]) == pytest.approx(parse_duration(text), abs=TICK)


@pytest.mark.parametrize(
    "name",
    ["a", "_a", ".a", "a.b", "a/b", "a-b", "A9", "a" * 255, "9a", "-a", "/a", "a\\b", "a;b", "a" * 256, "ä", "a$"],
)
def test_a_set_has_a_name_just_where_nft_takes_it(gateway: Host, tmp_path: Path, name: str) -> None:
    """As a set's name and as a table's."""
    text = f"{DOOR}sets = ['inet {name} s', 'inet t {name}']"
    script = f"add table inet {name}\nadd table inet t\nadd set inet t {name} {{ type ipv4_addr; }}\n"
    nft = gateway.run("nft", "-f", "-", input=script, check=False)
    if nft.returncode:
        assert len(errors(write(tmp_path, text))[0]) == 2
    else:
        gateway.nft("flush ruleset\n")
        assert load(write(tmp_path, text)).doors[0].sets == (SetName("inet", name, "s"), SetName("inet", "t", name))


BLOCKS = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {number}" for number in range(len(BLOCKS))])
def test_an_example_of_the_documentation_loads_without_warnings(tmp_path: Path, block: str) -> None:
    """A reader will copy it."""
    assert load(write(tmp_path, block)).warnings == ()


def test_the_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    """The last block writes out what the minimal one leaves out."""
    minimal, full = (load(write(tmp_path, block)) for block in (BLOCKS[1], BLOCKS[-1]))
    assert full == minimal


def test_every_key_is_documented_with_its_default(tmp_path: Path) -> None:
    """The keys of each table are those of the page's, in its table and in the block that writes out the defaults."""
    _, hints = errors(write(tmp_path, "[log]\nzzz=1\n[firewall]\nzzz=1\n[paths]\nzzz=1\n[doors.ssh]\nzzz=1"))
    known = [set(hint.removeprefix("known here: ").split(", ")) for hint in hints if hint.startswith("known here")]
    written = tomllib.loads(BLOCKS[-1])
    tables = [written["log"], written["firewall"], written["paths"], written["doors"]["ssh"]]
    assert [set(table) for table in tables] == known
    rows = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", PAGE.read_text(), re.MULTILINE))
    del tables[3]["sequence"], tables[3]["opens"]
    for key, default in ((key, default) for table in tables for key, default in table.items()):
        assert tomllib.loads(f"x = {rows[key]}") == {"x": default}
    assert rows.keys() == set().union(*known)
