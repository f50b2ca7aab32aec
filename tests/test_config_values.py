"""What each value may be and what is said of a wrong one; names of sets and durations are held against nft itself."""

import re
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock.config import load
from logknock.config_values import parse_duration
from logknock.knock import MAX_SEQUENCE, SetName

from .config_files import DOOR, STEPS, Claims, errors, write
from .netns import Host, pair

MOST = ", ".join(f'"{7000 + number}/tcp"' for number in range(MAX_SEQUENCE))


def test_the_longest_sequence_is_allowed(tmp_path: Path) -> None:
    """The limit itself."""
    assert len(load(write(tmp_path, DOOR.replace(STEPS, f"[{MOST}]"))).doors[0].sequence) == MAX_SEQUENCE


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


LOG: Claims = {
    "a key like no other gets the list": (
        "zzz = 1",
        "unknown key",
        "known here: journal, file, source, group, prefix, directions",
    ),
    "another source": ('source = "syslog"', "'syslog' is no source", "there are: nflog, journal, file, stdin"),
    "another source among others": (
        'source = ["nflog", "jurnal"]',
        "'jurnal' is no source",
        "there are: nflog, journal, file, stdin",
    ),
    "no source": ("source = []", "is empty", "name one, or leave it out"),
    "a source twice": ('source = ["nflog", "nflog"]', "nflog is named twice", ""),
    "a source that is no text": ("source = 5", "must be text, not a whole number", 'write it in quotes, like "nflog"'),
    "a file that is not named": ('source = "file"', "which file is not said", 'file.path = "/var/log/kern.log"'),
    "another direction": ('directions = "sideways"', "'sideways' is no direction", "there are: in, forward, out"),
    "a path that is not absolute": ('journal.path = "x"', "'x' is no absolute path", "begin it with /"),
    "a key of the journal's that there is not": ("journal.size = 5", "unknown key", "known here: path"),
    "a journal that is no table": ('journal = "x"', "must be a table, not text", "it begins with a line [log.journal]"),
    "more prefixes than anybody has": (
        f"prefix = {[str(number) for number in range(17)]}",
        "has 17 elements, and 16 are the most",
        "",
    ),
    "a prefix that no rule can have": (
        'prefix = "a\\nb"',
        "'a\\nb' is no prefix that the kernel writes",
        "up to 125 printable ASCII characters, without quotes, as they stand in the rule",
    ),
    "a group above 65535": ("group = 65536", "65536 is out of range (0-65535)", "write a number from 0 to 65535"),
    "a group below 0": ("group = -1", "-1 is out of range (0-65535)", "write a number from 0 to 65535"),
    "a bool is no number": ("group = true", "must be a whole number, not true or false", "0-65535, without quotes"),
    "a fraction is no whole number": ("group = 5.0", "must be a whole number, not a number", "0-65535, without quotes"),
    "a prefix that is no text": (
        "prefix = 5",
        "must be text, not a whole number",
        'write it in quotes, like "logknock"',
    ),
}
SERVICE_HINT = 'a service is written "22/tcp" or "53/udp", its port 1-65535'
IP_HINT = 'write "192.0.2.0/24", "2001:db8::/32" or a single address'
TEXT_HINT = "write it in quotes, like "
ZONE_HINT = "a packet's source has none: leave out what begins with %"
BITS = "has bits set behind its prefix"
MAPPED = "is IPv4 written as IPv6"
FIREWALL: Claims = {
    "too many traps": ("traps = 16385", "16385 is out of range (0-16384)", "write a number from 0 to 16384"),
    "a negative number of traps": ("traps = -1", "-1 is out of range (0-16384)", "write a number from 0 to 16384"),
    "a rate of nothing": ("rate = 0", "0 is out of range (1-1000)", "write a number from 1 to 1000"),
    "a rate that limits nothing": ("rate = 1001", "1001 is out of range (1-1000)", "write a number from 1 to 1000"),
    "a burst of nothing": ("burst = 0", "0 is out of range (1-1000)", "write a number from 1 to 1000"),
    "a burst that limits nothing": ("burst = 1001", "1001 is out of range (1-1000)", "write a number from 1 to 1000"),
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
ENDPOINT_HINT = 'write "127.0.0.1:9141", "[::1]:9141" or "unix:/run/logknock/metrics.sock"'
PROXY_HINT = 'write "127.0.0.1:9141", and put a reverse proxy with TLS in front of it where other hosts are to read it'
METRICS: Claims = {
    "every address": ('listen = "0.0.0.0:9141"', "0.0.0.0 is not this host alone", PROXY_HINT),
    "another host's address": ('listen = "192.0.2.7:9141"', "192.0.2.7 is not this host alone", PROXY_HINT),
    "every address, IPv6": ('listen = "[::]:9141"', ":: is not this host alone", PROXY_HINT),
    "T27: loopback, v4-mapped": (
        'listen = "[::ffff:127.0.0.1]:9141"',
        "::ffff:127.0.0.1 is not this host alone",
        PROXY_HINT,
    ),
    "T27: loopback with a zone": ('listen = "[::1%lo]:9141"', "::1%lo is not this host alone", PROXY_HINT),
    "a host's name": ('listen = "localhost:9141"', "'localhost:9141' is no address and port", ENDPOINT_HINT),
    "a port alone": ('listen = ":9141"', "':9141' is no address and port", ENDPOINT_HINT),
    "an address without a port": ('listen = "127.0.0.1"', "'127.0.0.1' is no address and port", ENDPOINT_HINT),
    "IPv6 without brackets": ('listen = "::1:9141"', "'::1:9141' is no address and port", 'write "[::1]:9141"'),
    "IPv4 in brackets": ('listen = "[127.0.0.1]:9141"', "'[127.0.0.1]:9141' is no address and port", ENDPOINT_HINT),
    "port 0": ('listen = "127.0.0.1:0"', "127.0.0.1:0 is no port (1-65535)", ""),
    "a port that is a number": (
        "listen = 9141",
        "must be text, not a whole number",
        'write it in quotes, like "127.0.0.1:9141"',
    ),
    "a relative socket": ('listen = "unix:metrics.sock"', "'metrics.sock' is no absolute path", "begin it with /"),
    "a path too long for a socket": (
        f'listen = "unix:/{"x" * 107}"',
        f"'unix:/{'x' * 107}' is too long for a socket",
        "107 bytes are the most",
    ),
    "a file that node_exporter does not read": (
        'textfile = "/var/lib/logknock.txt"',
        "'/var/lib/logknock.txt' does not end with .prom",
        "node_exporter reads no other file",
    ),
    "a relative file": ('textfile = "x.prom"', "'x.prom' is no absolute path", "begin it with /"),
}
UNIT_HINT = 'write it as nft does: "30s", "1h30m", "2d", "500ms"'
SET_HINT = 'write family (ip, ip6, inet), table and name: "inet filter allowed4"'
NAME_HINT = "letters, digits and _ . / -, the first a letter, _ or ."
FILE_HINT = "up to 63 letters, digits and . _ -, the first a letter or a digit"
ARGUMENTS_HINT = "its arguments follow, an element each: no shell splits or expands anything"
SEVERAL_HINT = 'write it in brackets, each element in quotes of its own: ["...", "..."]'
ADDRESS_HINT = 'write "192.0.2.7" or "2001:db8::7"'
DOORS: Claims = {
    "a misspelt key gets the nearest one": ('opnes = ["22/tcp"]', "unknown key", "did you mean opens?"),
    "a sequence without a knock": ("sequence = []", "has no knock", "three knocks are a good beginning"),
    "a sequence that is too long": (f'sequence = [{MOST}, "9/udp"]', "has 33 elements, and 32 are the most", ""),
    "a port above 65535": ('sequence = ["70000/tcp"]', "70000/tcp is no port (1-65535)", SERVICE_HINT),
    "a port without its protocol": ("sequence = [7000]", "7000 has no protocol", 'write "7000/tcp" or "7000/udp"'),
    "another protocol": ('sequence = ["7/icmp"]', "'7/icmp': the protocol is tcp or udp, not 'icmp'", SERVICE_HINT),
    "a bool is no port": ("sequence = [true]", "must be text, not true or false", f'{TEXT_HINT}"22/tcp"'),
    "a service twice in opens": ('opens = ["22/tcp", "80/tcp", "22/tcp"]', "22/tcp is named twice", ""),
    "a service without brackets": ('opens = "22/tcp"', "must be a list, not text", 'write ["22/tcp"]'),
    "a guard that is text": ('guard = "no"', "must be true or false, not text", "without quotes"),
    "a close of an unknown door": ('closes = ["shs"]', "there is no door 'shs'", "the doors are: ssh"),
    "a door that closes itself": ('closes = ["ssh"]', "a door cannot close itself", "its timeout does that"),
    "an unknown flag": ('tcp_flags = "sin"', "'sin' is no TCP flag (fin, syn, rst, psh, ack, urg)", ""),
    "a duration without quotes and unit": ("timeout = 30", "30 has no unit", 'write "30s"'),
    "a duration without its unit": ('timeout = "30"', "'30' has no unit", 'write "30s"'),
    "a bool is no duration": ("timeout = true", "must be text, not true or false", f'{TEXT_HINT}"30s"'),
    "a duration in other digits": ('timeout = "\u0663\u0660s"', "'\u0663\u0660s' is no duration", UNIT_HINT),
    "no duration at all": ('timeout = ""', "'' is no duration", UNIT_HINT),
    "a timeout under a second": (
        'timeout = "999ms"',
        "999ms is out of range (1s-365d)",
        "write a time from 1s to 365d",
    ),
    "a timeout over a year": (
        'timeout = "365d1ms"',
        "365d1ms is out of range (1s-365d)",
        "write a time from 1s to 365d",
    ),
    "a seq_timeout under a second": (
        'seq_timeout = "999ms"',
        "999ms is out of range (1s-1h)",
        "write a time from 1s to 1h",
    ),
    "a seq_timeout over an hour": (
        'seq_timeout = "1h1ms"',
        "1h1ms is out of range (1s-1h)",
        "write a time from 1s to 1h",
    ),
    "a set without its family": ('sets = ["filter allowed4"]', "'filter allowed4' is no set", SET_HINT),
    "a set of a family without IP": ('sets = ["bridge filter s"]', "'bridge filter s' is no set", SET_HINT),
    "T35: a name that would end a command": ('sets = ["ip t s;x"]', "'s;x' is no name that nft takes", NAME_HINT),
    "a sequence and files too": (
        'onetime = ["/x"]',
        "a door has a sequence or files of one-time sequences",
        "make two doors of it",
    ),
    "a target that is a network": (
        'target = ["192.0.2.0/24"]',
        "'192.0.2.0/24' is a network",
        "write one address, like 192.0.2.7",
    ),
    "a target of no address": ('target = [""]', "'' is no IP address", ADDRESS_HINT),
    "a target with a prefix and more": (
        'target = ["192.0.2.7/24"]',
        "'192.0.2.7/24' is a network",
        "write one address, like 192.0.2.7",
    ),
    "T27: a target that is v4-mapped": (
        'target = ["::ffff:192.0.2.7"]',
        f"::ffff:192.0.2.7 {MAPPED}",
        'write "192.0.2.7"',
    ),
    "a target without brackets": ('target = "192.0.2.7"', "must be a list, not text", 'write ["192.0.2.7"]'),
    "T27: a target with a zone": ('target = ["fe80::1%eth0"]', "'fe80::1%eth0' has a zone", ZONE_HINT),
    "a negative cooldown": ('cooldown = "-1s"', "'-1s' is no duration", UNIT_HINT),
    "a cooldown over a year": ('cooldown = "366d"', "366d is out of range (0s-365d)", "write a time from 0s to 365d"),
    "a path as a name": ('allow_file = "a/b"', "'a/b' is no file name here", FILE_HINT),
    "the folder above as a name": ('allow_file = ".."', "'..' is no file name here", FILE_HINT),
    "T35: a command as one text": (
        'on_open = "/bin/echo {src}"',
        "must be a list, not text",
        SEVERAL_HINT,
    ),
    "several knocks as one text": ('sequence = "7000/tcp, 8000/tcp"', "must be a list, not text", SEVERAL_HINT),
    "a command without its path": ('on_open = ["echo"]', "'echo' is no absolute path of a program", ARGUMENTS_HINT),
    "the knocker as the program": (
        'on_close_6 = ["/{src}"]',
        "'/{src}' is no absolute path of a program",
        ARGUMENTS_HINT,
    ),
    "an argument that cannot be passed": (
        'on_close = ["/bin/echo", "a\\u0000"]',
        "an argument cannot have a NUL in it",
        "leave it out",
    ),
    "an argument that is no text": (
        'on_open_6 = ["/bin/echo", 5]',
        "must be text, not a whole number",
        f'{TEXT_HINT}"{{src}}"',
    ),
    "a limit of more than ten minutes": (
        'command_limit = "11m"',
        "11m is out of range (1s-10m)",
        "write a time from 1s to 10m",
    ),
    "a set twice": ('sets = ["ip t s", "ip  t  s"]', "ip t s is named twice", ""),
}


def cases(table: str, claims: Claims) -> list[Any]:
    return [pytest.param(table, *case, id=f"{table}: {claim}") for claim, case in claims.items()]


@pytest.mark.parametrize(
    ("table", "line", "message", "hint"),
    [
        *cases("log", LOG),
        *cases("firewall", FIREWALL),
        *cases("metrics", METRICS),
        *cases("paths", PATHS),
        *cases("doors.ssh", DOORS),
    ],
)
def test_a_wrong_value_is_one_error_with_its_line_and_a_hint(
    tmp_path: Path, table: str, line: str, message: str, hint: str
) -> None:
    """Nothing else is said: no error follows from another."""
    key = line.partition(" ")[0]
    path = write(tmp_path, beside_a_door(table, line))
    assert errors(path) == ([f"logknock.toml:2: {table}.{key}: {message}"], [hint])


# ---- beside nft

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
        "500ms",
        "1d2h3m4s5ms",
        "90m",
        "005s",
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
