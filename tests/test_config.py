"""What the configuration's reader must say of files: what they mean, and all that is wrong with them, and where."""

import random
import re
import tomllib
from dataclasses import fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logknock.config import CONTROL, Config, ConfigError, Firewall, Metrics, PortRange, Scan, load
from logknock.config_values import Endpoint
from logknock.control import NAME
from logknock.knock import Door, Service, SetName, TcpFlags
from logknock.packet import FIN, SYN, TCP, UDP
from logknock.records import Wanted
from logknock.spa import Key
from logknock.totp import TotpDoor

from .config_files import DOOR, STEPS, Claims, errors, write
from .toml_writer import Writer, values

PAGE = Path(__file__).parent.parent / "docs/reference/logknock.toml.md"


def test_a_full_configuration_is_what_its_file_says(tmp_path: Path) -> None:
    """Every key of every table, each at a value that is not its default."""
    text = """
        [log]
        source = ["journal", "file"]
        group = 0
        prefix = ["[UFW BLOCK] ", ""]
        directions = ["in", "forward"]
        journal.path = "/x/journal"
        file.path = "/x/kern.log"
        [firewall]
        trusted = ["192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "2001:db9::1"]
        traps = 16384
        exclude = ["5353/udp", "6000-6010/tcp"]
        rate = 1000
        burst = 1
        guarded = ["3306/tcp"]
        mark = 0x80000000
        record = false
        restore = false
        [scan]
        ports = 5
        within = "1s"
        ban = "1d"
        counts = ["syn", "tcp"]
        [metrics]
        listen = "[::1]:9141"
        textfile = "/x/logknock.prom"
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
        [doors.c]
        onetime = ["/x/anna", "/x/ben"]
        target = ["192.0.2.1", "2001:db8::1"]
        cooldown = "1m"
        allow_file = "sshd"
        on_open = ["/bin/a", "{src}"]
        on_close = ["/bin/b"]
        on_open_6 = []
        on_close_6 = ["/bin/c", ""]
        command_limit = "2s"
    """
    path = write(tmp_path, text)
    config = load(path)
    assert config == Config(
        file=path,
        sources=("journal", "file"),
        group=0,
        to_group=True,
        wanted=Wanted(("[UFW BLOCK]", ""), frozenset({"in", "forward"})),
        journal=Path("/x/journal"),
        files=(Path("/x/kern.log"),),
        firewall=Firewall(
            trusted=tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32", "2001:db9::1/128"))),
            traps=16384,
            exclude=(PortRange(UDP, 5353, 5353), PortRange(TCP, 6000, 6010)),
            rate=1000,
            burst=1,
            guarded=(Service(TCP, 3306),),
            mark=0x80000000,
            record=False,
            restore=False,
        ),
        scan=Scan(ports=5, within=1.0, ban=86400.0, counts=frozenset({"syn", "tcp"})),
        metrics=Metrics(Endpoint("::1", 9141), Path("/x/logknock.prom")),
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
            Door(
                name="c",
                sequence=(),
                onetime=("/x/anna", "/x/ben"),
                target=frozenset({ip_address("192.0.2.1").packed, ip_address("2001:db8::1").packed}),
                cooldown=60.0,
                allow_file="sshd",
                on_open=("/bin/a", "{src}"),
                on_close=("/bin/b",),
                on_open_6=(),
                on_close_6=("/bin/c", ""),
                command_limit=2.0,
            ),
        ),
        warnings=config.warnings,
        host=config.host,
    )
    (warning,) = config.warnings
    assert "metrics.listen: every local user can read the numbers" in str(warning), "over TCP, and not at a socket"
    assert config.guarded == {Service(TCP, 80), Service(TCP, 3306)}
    assert config.onetime_files == (Path("/x/anna"), Path("/x/ben"))
    assert config.knocked == {service for door in config.doors for service in door.sequence}


def test_ssh_without_a_door_may_be_guarded_where_it_is_not_we_who_close_it(tmp_path: Path) -> None:
    """With a mark our rules drop nothing, and `rules apply` refuses nothing of it."""
    text = '[doors.a]\nsequence = ["1/tcp", "3/tcp", "5/tcp"]\nopens = ["80/tcp"]\n[firewall]\nguarded = ["22/tcp"]\n'
    with pytest.raises(ConfigError, match="22/tcp is ssh, and no door opens it"):
        load(write(tmp_path, text))
    assert Service(TCP, 22) in load(write(tmp_path, f"{text}mark = 0x10000\n")).guarded


def test_a_knock_may_be_on_a_service_that_is_opened_and_not_guarded(tmp_path: Path) -> None:
    """logknock sees such packets if the administrator's own rules log them."""
    text = (
        f"{DOOR}guard = false\nsets = ['ip t s']\n[doors.b]\nsequence = ['22/tcp', '9/tcp', '5/tcp']\ncloses = ['ssh']"
    )
    config = load(write(tmp_path, text))
    assert config.guarded == frozenset()
    assert Service(TCP, 22) in config.knocked


NO_DOOR_HINT = (
    "a minimal one, at the head of the file: "
    'doors.ssh = {sequence = ["7000/tcp", "9000/udp", "8000/tcp"], opens = ["22/tcp"]}'
)
DOOR_NAME_HINT = "up to 63 letters, digits and . _ -, the first a letter or a digit"
REST = DOOR.partition("\n")[2]
NO_DOOR = "it begins with a line [doors.NAME]"
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
        'sequence = ["7000/tcp", "9000/udp", "8000/tcp"]; or onetime, totp, spa',
    ),
    "a door that does nothing": (
        f"[doors.a]\nsequence = {STEPS}",
        "1: doors.a: this door does nothing",
        'opens = ["22/tcp"], or sets, or closes',
    ),
    "a door whose files are none": (
        '[doors.a]\nonetime = []\nopens = ["22/tcp"]',
        "2: doors.a.onetime: names no file",
        "`logknock onetime generate` makes one",
    ),
    "more files than can be looked at": (
        f"[doors.a]\nonetime = {[f'/x/{n}' for n in range(1025)]}\nopens = ['22/tcp']",
        "2: doors.a.onetime: names 1025 files, and 1024 are the most",
        "make two doors of it",
    ),
    "an unguarded service and no sets": (
        f"{DOOR}guard = false",
        "3: doors.ssh.opens: guard is false and there are no sets: nothing is opened",
        "leave guard out, or name the sets that your own rules look into",
    ),
    "a knock on what another door guards": (
        f'{DOOR}[doors.b]\nsequence = ["1/tcp", "3/tcp", "22/tcp"]\ncloses = ["ssh"]',
        "5: doors.b.sequence: 22/tcp is guarded, since door ssh opens it: a packet to it is no knock",
        "knock on a port that no door opens",
    ),
    "an element of a list on its own line": (
        f"{DOOR}sets = [\n  # one\n  'ip t s',\n  2\n]",
        "7: doors.ssh.sets: must be text, not a whole number",
        'write it in quotes, like "inet filter allowed4"',
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


def test_metrics_at_a_socket_are_no_warning_and_at_the_control_socket_an_error(tmp_path: Path) -> None:
    assert CONTROL == NAME
    text = DOOR + '[paths]\nruntime = "/run/x"\n[metrics]\nlisten = "unix:/run/x/'
    assert load(write(tmp_path, f'{text}metrics.sock"')).warnings == ()
    with pytest.raises(ConfigError, match=r"metrics\.listen: that is the control socket"):
        load(write(tmp_path, f'{text}{NAME}"'))


def test_the_minimal_door_of_the_hints_is_a_configuration_without_warnings(tmp_path: Path) -> None:
    """A hint can be pasted."""
    _, (hint,) = errors(write(tmp_path, ""))
    assert load(write(tmp_path, hint.partition("file: ")[2])).warnings == ()


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


# ---- any file

good = st.sampled_from(
    ["7000/tcp", "22/tcp", "9/udp", "30s", "1h30m", "syn", "inet t s", "a", "b", "10.0.0.0/8", "::/0", "/x", "nflog"]
)
named = [field.name for kind in (Config, Firewall, Scan, Metrics, Door, TotpDoor, Key) for field in fields(kind)]
keys = st.sampled_from([*named, "log", "paths", "prefix", "spa", "ports", "secret", "key_base64", "hmac", "a", "b"])
shaped = st.dictionaries(keys, good | st.lists(good, max_size=4) | values, max_size=6)
files = st.fixed_dictionaries(
    {},
    optional={
        "log": shaped | values,
        "firewall": shaped | values,
        "scan": shaped | values,
        "metrics": shaped | values,
        "paths": shaped | values,
        "totp": shaped | values,
        "clients": st.dictionaries(keys, st.dictionaries(keys, shaped, max_size=2) | values, max_size=3) | values,
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


# ---- the documentation

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
    shared = ("log", "firewall", "scan", "metrics", "paths")
    proven = ("totp", "doors.ssh.totp", "clients.ssh.a", "doors.vpn.spa", "clients.vpn.a")
    _, hints = errors(write(tmp_path, "".join(f"[{name}]\nzzz=1\n" for name in (*shared, "doors.ssh", *proven))))
    known = [set(hint.removeprefix("known here: ").split(", ")) for hint in hints if hint.startswith("known here")]
    written = tomllib.loads(BLOCKS[-1])
    tables = [*(written.get(name, {}) for name in shared), written["doors"]["ssh"]]
    absent = [
        {"journal", "file"},
        set(),
        set(),
        {"listen", "textfile"},
        set(),
        {"onetime", "totp", "spa", "on_open_6", "on_close_6"},
    ]  # left out is not any value
    assert [set(table) | more for table, more in zip(tables, absent, strict=True)] == known[: len(tables)]
    assert len(known) == len(tables) + len(proven)
    rows = dict(re.findall(r"^\| `(\w+)(?:\.path)?` \| `?(.*?)`? \|", PAGE.read_text(), re.MULTILINE))
    del tables[-1]["sequence"], tables[-1]["opens"]
    for key, default in ((key, default) for table in tables for key, default in table.items()):
        assert tomllib.loads(f"x = {rows[key]}") == {"x": default}
    assert rows.keys() == set().union(*known)
