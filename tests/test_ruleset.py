"""The rules as text: what of a configuration goes where, which ports are traps, what an error says.

What the rules do is in e2e/test_rules.py.
"""

import errno
import os
import re
import stat
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock.config import Config, Firewall, Metrics, PortRange, Scan
from logknock.errors import FAILURE, NO_PERMISSION, UNAVAILABLE, FirewallError, LogknockError
from logknock.firewall import ruleset
from logknock.knock import Door, Service
from logknock.packet import TCP, UDP
from logknock.records import Wanted

RULES = (Path(__file__).parents[1] / "rules" / "logknock.nft").read_text(encoding="ascii")
SEED = bytes(range(32))


def services(*texts: str) -> tuple[Service, ...]:
    return tuple(map(Service.parse, texts))


SSH = Door("ssh", services("7000/tcp", "8000/tcp", "9000/udp"), opens=services("22/tcp"))
WEB = Door("web", services("7100/tcp", "7200/tcp", "7300/tcp"), opens=services("443/tcp"), guard=False)


def make_config(
    *doors: Door, firewall: Firewall | None = None, group: int = 5, sources: tuple[str, ...] = ("nflog",)
) -> Config:
    return Config(
        file=Path("logknock.toml"),
        sources=sources,
        group=group,
        to_group="nflog" in sources,
        wanted=Wanted(),
        journal=None,
        files=(),
        doors=doors or (SSH,),
        firewall=firewall or Firewall(),
        scan=Scan(),
        metrics=Metrics(),
        state=Path("/nonexistent"),
        runtime=Path("/nonexistent"),
        warnings=(),
    )


# ---- the text


def test_the_defaults_leave_the_file_as_it_stands() -> None:
    text = ruleset.render(make_config(firewall=Firewall(traps=0)), SEED, ())
    assert text == RULES + (
        "\n# From the configuration.\n"
        "add element inet logknock guarded {\n\ttcp . 22\n}\n"
        "add element inet logknock watched {\n\ttcp . 7000, tcp . 8000, udp . 9000\n}\n"
    )


def test_all_that_is_configured_is_in_the_text_and_nothing_else_changes() -> None:
    networks = map(ip_network, ("2001:db8::/32", "192.0.2.0/24", "10.0.0.1/32"))
    firewall = Firewall(trusted=tuple(networks), traps=3, rate=7, burst=9)
    text = ruleset.render(make_config(SSH, WEB, firewall=firewall, group=77), SEED, services("8001/tcp", "8999/udp"))
    rules, elements = text.split("\n# From the configuration.\n")
    old, new = RULES.splitlines(), rules.splitlines()
    assert [line.strip() for line in new if line not in old] == [
        "update @rate4 { ip saddr limit rate over 7/second burst 9 packets } "
        "update @noisy4 { ip saddr timeout 10s } return",
        "update @rate6 { ip6 saddr & ffff:ffff:ffff:ffff:: limit rate over 7/second burst 9 packets } \\",
        "meta length >= 168 meta l4proto . th dport @spa meta l4proto . th dport != @guarded log group 77 return",
        "log group 77 snaplen 128",
    ]
    assert len(old) == len(new)
    assert elements == GOLDEN


@pytest.mark.parametrize(
    ("sources", "prefixes", "whole", "cut"),
    [
        (("journal",), ("logknock",), 'log prefix "logknock: " level info', ""),
        (("file", "stdin"), ("[UFW BLOCK]", "x"), 'log prefix "[UFW BLOCK]: " level info', ""),
        (("stdin",), ("",), "log level info", ""),
        (("journal", "nflog"), ("logknock",), "log group 5", " snaplen 128"),
    ],
)
def test_without_nflog_the_rules_log_to_the_kernel_log(
    sources: tuple[str, ...], prefixes: tuple[str, ...], whole: str, cut: str
) -> None:
    config = replace(make_config(sources=sources), wanted=Wanted(prefixes))
    assert log_statements(config) == [f"{whole} return", f"{whole}{cut}"]


def test_where_a_group_is_written_the_rules_log_to_it_for_ulogd2() -> None:
    """And cut nothing: how much of a packet is written is not ours to say."""
    config = replace(make_config(sources=("file",), group=7), to_group=True)
    assert log_statements(config) == ['log group 7 prefix "logknock: " return', 'log group 7 prefix "logknock: "']
    assert log_statements(replace(config, wanted=Wanted(("",)))) == ["log group 7 return", "log group 7"]


def log_statements(config: Config) -> list[str]:
    rules, _ = ruleset.render(config, SEED, ()).split("\n# From the configuration.\n")
    return re.findall(r"^\t\t(?:.* )?(log (?:group|prefix|level) .*)$", rules, re.MULTILINE)


@pytest.mark.parametrize(
    ("ports", "icmp", "elements"),
    [
        pytest.param((), False, "", id="no SPA"),
        pytest.param(((UDP, 62201, 62201),), False, "udp . 62201", id="one port"),
        pytest.param(
            ((UDP, 62201, 62201), (TCP, 80, 90)), True,
            "icmp . 0-65535, tcp . 80-90, udp . 62201, ipv6-icmp . 0-65535", id="each kind",
        ),
        pytest.param(((UDP, 1, 65535),), False, "udp . 1-65535", id="all ports"),
    ],
)  # fmt: skip
def test_spa_ports_are_intervals(ports: tuple[tuple[int, int, int], ...], icmp: bool, elements: str) -> None:
    config = replace(make_config(), spa_ports=tuple(PortRange(*place) for place in ports), spa_icmp=icmp)
    text = ruleset.render(config, SEED, ())
    assert ruleset._add("spa", [elements] if elements else []) in text
    assert ("add element inet logknock spa" in text) == bool(elements)
    elsewhere = replace(config, firewall=Firewall(record=False))
    assert "inet logknock spa {" not in ruleset.render(elsewhere, SEED, ()), "another firewall's log is read"


def test_a_short_packet_to_an_spa_port_can_be_a_knock_or_touch_a_trap() -> None:
    """Only what is long enough for an SPA packet is read as one: the traps do not depend on where those come."""
    config = replace(make_config(), spa_ports=(PortRange(UDP, 1, 65535),))
    assert ruleset.traps(config, SEED, ()) == ruleset.traps(make_config(), SEED, ())


# The traps are golden too: an update that chose others would change every ruleset in use.
GOLDEN = """\
add element inet logknock trusted4 {
\t10.0.0.1/32, 192.0.2.0/24
}
add element inet logknock trusted6 {
\t2001:db8::/32
}
add element inet logknock guarded {
\ttcp . 22
}
add element inet logknock watched {
\ttcp . 7000, tcp . 7100, tcp . 7200, tcp . 7300, tcp . 8000, udp . 9000
}
add element inet logknock traps {
\ttcp . 6999, tcp . 7001, tcp . 7099, tcp . 7101, tcp . 7199, tcp . 7201, tcp . 7299, tcp . 7301,
\ttcp . 7999, tcp . 8999, tcp . 9001, tcp . 37790, tcp . 49484, tcp . 53277, udp . 230, udp . 4758,
\tudp . 6999, udp . 7001, udp . 7099, udp . 7101, udp . 7199, udp . 7201, udp . 7299, udp . 7301,
\tudp . 7999, udp . 8001, udp . 9001, udp . 24465
}
"""


def test_a_value_without_its_place_in_the_rules_is_loud() -> None:
    for text in ("log group 6", "log group 5 log group 5"):
        with pytest.raises(AssertionError, match="in the rules"):
            ruleset._put(text, "log group 5", "log group 7")


# ---- traps


def test_traps_are_the_neighbours_of_every_knock_port_and_as_many_more_as_configured() -> None:
    found = ruleset.traps(make_config(firewall=Firewall(traps=100)), SEED, ())
    for proto in (TCP, UDP):
        ports = {service.port for service in found if service.proto == proto}
        assert {6999, 7001, 7999, 8001, 8999, 9001} <= ports
        assert len(ports) == 106


def test_no_traps_means_no_neighbours_either() -> None:
    assert ruleset.traps(make_config(firewall=Firewall(traps=0)), SEED, ()) == frozenset()


def test_a_protocol_that_no_sequence_uses_has_no_traps() -> None:
    assert {service.proto for service in ruleset.traps(make_config(WEB), SEED, ())} == {TCP}


def test_the_ends_of_the_port_range_are_no_trouble() -> None:
    door = replace(SSH, sequence=services("1/tcp", "65535/tcp"))
    found = ruleset.traps(make_config(door, firewall=Firewall(traps=16_384)), SEED, ())
    assert {Service(TCP, 2), Service(TCP, 65_534)} <= found
    assert min(found).port >= 1
    assert max(found).port <= 65_535
    assert len(found) == 16_384 + 2


def test_who_does_not_know_the_seed_does_not_know_the_traps() -> None:
    one, other = (ruleset.traps(make_config(WEB), seed, ()) for seed in (SEED, bytes(32)))
    assert len(one & other) < 100  # of 1,030


def test_a_new_listener_takes_one_trap_and_leaves_the_others() -> None:
    before = ruleset.traps(make_config(), SEED, ())
    new = sorted(before)[500]
    after = ruleset.traps(make_config(), SEED, {new})
    assert before - after == {new}
    assert len(after) == len(before)


ports = st.integers(1, 65_535)
any_services = st.builds(Service, st.sampled_from((TCP, UDP)), ports)
ranges = st.tuples(st.sampled_from((TCP, UDP)), ports, ports).map(lambda r: PortRange(r[0], min(r[1:]), max(r[1:])))


@settings(max_examples=25, deadline=None)
@given(
    sequence=st.lists(any_services, min_size=1, max_size=5),
    opens=st.lists(any_services, max_size=3),
    guard=st.booleans(),
    listening=st.frozensets(any_services, max_size=20),
    exclude=st.lists(ranges, max_size=3),
)
def test_a_trap_is_never_in_anybodys_way(
    sequence: list[Service],
    opens: list[Service],
    guard: bool,
    listening: Collection[Service],
    exclude: list[PortRange],
) -> None:
    """Nothing that is knocked on, opened, listened on or excluded."""
    door = Door("door", tuple(sequence), opens=tuple(opens), guard=guard)
    config = make_config(door, firewall=Firewall(traps=16_384, exclude=tuple(exclude)))
    found = ruleset.traps(config, SEED, listening)
    assert found.isdisjoint((*sequence, *opens, *listening))
    assert not any(r.proto == trap.proto and r.first <= trap.port <= r.last for r in exclude for trap in found)


# ---- the seed


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o077, 0])
def test_the_seed_is_made_once_and_is_root_s_alone(tmp_path: Path, umask: int) -> None:
    """The directory lets other services through to what is theirs (allow/), as the daemon makes it."""
    state = tmp_path / "lib" / "logknock"
    before = os.umask(umask)
    try:
        seed = ruleset.trap_seed(state)
    finally:
        os.umask(before)
    assert len(seed) == 32
    assert seed != ruleset.trap_seed(tmp_path / "other")
    assert ruleset.trap_seed(state) == seed
    assert [path.name for path in state.iterdir()] == ["traps.seed"]
    assert (mode(state), mode(state / "traps.seed")) == (0o711, 0o600)


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    ruleset.trap_seed(tmp_path)
    assert mode(tmp_path) == 0o700


def test_two_that_make_a_seed_at_a_time_have_the_same(tmp_path: Path) -> None:
    for round_ in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(ruleset.trap_seed, [tmp_path / str(round_)] * 8))) == 1


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)], ids=["empty", "short", "long"])
def test_a_damaged_seed_is_an_error_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "traps.seed"
    path.write_bytes(content)
    with pytest.raises(LogknockError, match=f"traps.seed is damaged: {len(content)} bytes") as raised:
        ruleset.trap_seed(tmp_path)
    assert "delete it" in raised.value.hint
    assert path.read_bytes() == content


def test_a_state_directory_that_cannot_be_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogknockError, match=r"file/traps\.seed: Not a directory"):
        ruleset.trap_seed(tmp_path / "file")


# ---- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            "Error: Could not process rule: File exists\n\tset granted4 { type ipv4_addr; }\n\t    ^^^^^^^^\n"
            "Error: Could not process rule: Operation not supported\n\tchain guard {\n\t      ^^^^^\n",
            "nftables: Could not process rule: File exists (set granted4 { type ipv4_addr; })",
            id="the first of several, and what it is about, in one line",
        ),
        pytest.param(
            "Error: Could not process rule: File exists\n#!/usr/sbin/nft -f\n^^^^^^^^^^^^^^^^^^\n",
            "nftables: Could not process rule: File exists",
            id="a comment is none of what it can be about",
        ),
        pytest.param("Error: syntax error\n", "nftables: syntax error", id="about nothing in particular"),
        pytest.param("out of memory\n", "nftables: out of memory", id="words of no known form"),
    ],
)
def test_a_refusal_says_in_nfts_words_why(words: str, message: str) -> None:
    assert ruleset.refusal(words).message == message


@pytest.mark.parametrize(
    ("number", "code", "hint"),
    [
        pytest.param(errno.EPERM, NO_PERMISSION, "run it as root", id="not permitted"),
        pytest.param(errno.EPROTONOSUPPORT, UNAVAILABLE, "no nftables", id="a kernel without netfilter"),
        pytest.param(errno.EINVAL, UNAVAILABLE, "no nftables", id="a kernel without nftables"),
        pytest.param(errno.EMFILE, FAILURE, "", id="what has nothing to do with nftables"),
    ],
)
def test_who_cannot_even_ask_the_kernel_is_told_why(number: int, code: int, hint: str) -> None:
    error = ruleset.kernel_error(OSError(number, os.strerror(number)))
    assert error.message == f"nftables: {os.strerror(number)}"
    assert error.exit_code == code
    assert hint in error.hint


@pytest.mark.parametrize("text", ["", '{"nftables": [{"metainfo": {}}, {"table": {"flags": "\1', "\udcff"])
def test_what_is_no_json_is_an_error_with_a_hint(text: str) -> None:
    """libnftables writes it where it uses memory that it has freed."""
    with pytest.raises(FirewallError, match="what libnftables lists is no JSON") as raised:
        ruleset.from_json(text, "list sets")
    assert "nft -j list sets" in raised.value.hint


@pytest.mark.parametrize("version", ["1.0.6", "1.0.6.1", "1.0.10", "1.1", "1.1.3", "2.0"])
def test_a_version_that_is_new_enough_passes(version: str) -> None:
    ruleset.check_version(version)


@pytest.mark.parametrize("version", ["0.9.8", "1.0.5", "1.0", "0.10.7"])
def test_an_old_version_is_told_what_is_needed(version: str) -> None:
    with pytest.raises(FirewallError, match=rf"nftables {version} is too old: 1\.0\.6 or newer") as raised:
        ruleset.check_version(version)
    assert raised.value.exit_code == UNAVAILABLE
