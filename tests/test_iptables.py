"""Where in INPUT our rules go, what is ours there, and the text that puts them there or takes them out."""

from contextlib import suppress
from pathlib import Path

import pytest

from logknock.errors import FirewallError
from logknock.firewall import iptables
from logknock.firewall.iptables import Filter, Log, parse, render

NFLOG = Log(5, "")


def table(*rules: str, policy: str = "DROP", chains: str = "") -> Filter:
    """A filter table with these rules in INPUT."""
    text = f"*filter\n:INPUT {policy} [7:9]\n:FORWARD DROP [0:0]\n{chains}" + "".join(
        f"-A INPUT {rule}\n" for rule in rules
    )
    text += "-A reject -m comment --comment all -j REJECT\n-A reject -j ACCEPT\n-A MINE -i lo -j ACCEPT\n"
    text += "-A logdrop -m limit --limit 3/min -j LOG\n-A logdrop -j DROP\n-A deeper -j RH\n"
    text += "-A RH -i lo -j ACCEPT\n-A RH -j REJECT --reject-with icmp-host-prohibited\n"
    text += "-A ufw -m addrtype --dst-type LOCAL -j RETURN\n-A ufw -j DROP\n-A back -j RETURN\n-A back -j DROP\n"
    found = parse(f"*nat\n:INPUT ACCEPT [0:0]\n-A INPUT -j LOGKNOCK\nCOMMIT\n{text}COMMIT\n")
    assert found
    return found


PLACES = [
    pytest.param([], 0, id="nothing but the policy: at the end"),
    pytest.param(["-i lo -j ACCEPT"], 1, id="no drop: at the end, before the policy"),
    pytest.param(["-i lo -j ACCEPT", "-j DROP"], 1, id="before a drop of everything"),
    pytest.param(
        ["-j REJECT --reject-with icmp-host-prohibited", "-j ACCEPT"], 0, id="before a rejection of everything"
    ),
    pytest.param(["-s 192.0.2.1/32 -j DROP", "-i lo -j ACCEPT"], 2, id="a drop of something is none of everything"),
    pytest.param(["-p tcp -m tcp --dport 23 -j DROP", "-j DROP"], 1, id="nor one of a port"),
    pytest.param(
        ["-p tcp -j DROP", "-p udp --dport 53 -j ACCEPT"], 2, id="nor one of a protocol, if others come after"
    ),
    pytest.param(
        ["-i lo -j ACCEPT", "-p tcp -j REJECT --reject-with tcp-reset", "-p udp -j REJECT", "-j DROP"],
        1,
        id="rejections a protocol each, and the rest: before the first",
    ),
    pytest.param(["-p tcp -j REJECT --reject-with tcp-reset"], 0, id="and a policy behind them"),
    pytest.param(['-m comment --comment "the end of it" -j DROP'], 0, id="a comment is no condition"),
    pytest.param(["-m comment --comment end -j DROP"], 0, id="nor is one in a word"),
    pytest.param(["-m conntrack --ctstate INVALID -j DROP"], 1, id="a state is one"),
    pytest.param(["-j LOGKNOCK", "-i lo -j ACCEPT", "-j LOGKNOCK-LOG", "-j DROP"], 1, id="our own jumps do not count"),
    pytest.param(["-j MINE", "-j DROP"], 1, id="another chain may do anything"),
    pytest.param(["-i lo -j ACCEPT", "-j reject", "-j MINE"], 1, id="but for one that drops whatever comes (ufw's)"),
    pytest.param(["-i lo -j reject", "-j MINE"], 2, id="where everything comes there"),
    pytest.param(['-m comment --comment "drop \\"all\\" the rest" -j DROP'], 0, id="a comment with quotation marks"),
    pytest.param(
        ["-p tcp -j REJECT", "-m limit --limit 3/min -j LOG", "-j DROP"], 0, id="a log between rejections drops nothing"
    ),
    pytest.param(["-i lo -j ACCEPT", "-j LOG", "-j DROP"], 2, id="nor is there anything to log before it"),
    pytest.param(["-i lo -j ACCEPT", "-j logdrop"], 1, id="a chain that logs and drops"),
    pytest.param(["-p tcp -j RH", "-j DROP"], 1, id="a chain for a protocol that accepts something"),
]


@pytest.mark.parametrize(("rules", "place"), PLACES)
def test_what_is_dropped_is_logged_before(rules: list[str], place: int) -> None:
    assert table(*rules).place == place


# What no place in INPUT comes before; "" where the place is well.
HIDDEN = [
    pytest.param(["-j RH"], "-j RH", id="a chain that ends in a rejection (RHEL's)"),
    pytest.param(["-j deeper", "-j DROP"], "-j deeper", id="and one that goes there"),
    pytest.param(["-i eth0 -p tcp -j RH", "-j DROP"], "-i eth0 -p tcp -j RH", id="all of an interface that goes there"),
    pytest.param(["-p tcp -j DROP", "-p udp --dport 53 -j ACCEPT"], "-p tcp -j DROP", id="a protocol"),
    pytest.param(["-i eth0 -j DROP"], "-i eth0 -j DROP", id="an interface"),
    pytest.param(
        ["! -i lo -m comment --comment x -j DROP"], "! -i lo -m comment --comment x -j DROP", id="all but one"
    ),
    pytest.param(
        ["-m conntrack --ctstate INVALID,NEW -j DROP"], "-m conntrack --ctstate INVALID,NEW -j DROP", id="new ones"
    ),
    pytest.param(["-m state --state INVALID -j DROP"], "", id="knocks are not invalid"),
    pytest.param(["-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"], "", id="and begin with a SYN"),
    pytest.param(["-j ufw", "-j back"], "", id="a chain that what is for this host leaves first"),
    pytest.param(["-s 192.0.2.1/32 -j RH"], "", id="one address"),
    pytest.param(["-i lo -j DROP"], "", id="oneself"),
    pytest.param(["-j DROP", "-i eth0 -j DROP"], "", id="what comes too late"),
]


@pytest.mark.parametrize(("rules", "rule"), HIDDEN)
def test_what_is_dropped_before_it_can_be_logged_is_named(rules: list[str], rule: str) -> None:
    assert table(*rules).hides == (f"`-A INPUT {rule}` drops what comes before it can be logged" if rule else "")


FAIL2BAN = "-p tcp -m multiport --dports 22 -j f2b-sshd"


@pytest.mark.parametrize(
    ("rules", "drops"),
    [
        pytest.param([FAIL2BAN], False, id="fail2ban's jump alone"),
        pytest.param(["-s 192.0.2.1/32 -j DROP"], False, id="one address"),
        pytest.param(["-j ACCEPT", "-j DROP"], False, id="a drop that nothing comes to"),
        pytest.param([FAIL2BAN, "-j RH"], True, id="a chain that ends in a rejection"),
        pytest.param(["-i eth0 -j DROP"], True, id="an interface"),
        pytest.param(["-m conntrack --ctstate NEW -j DROP"], True, id="what is new"),
    ],
)
def test_behind_a_policy_that_accepts_nothing_is_logged_but_before_a_drop(rules: list[str], drops: bool) -> None:
    found = table(*rules, policy="ACCEPT")
    assert (found.drops, found.place) == (drops, None)
    assert found.hides
    assert not any("LOGKNOCK-LOG" in line for line in commands(render(1, NFLOG, {"ip": found})) if "INPUT" in line)


def test_a_last_rule_that_drops_is_as_good_as_a_policy() -> None:
    found = table("-i lo -j ACCEPT", "-j DROP", policy="ACCEPT")
    assert (found.drops, found.place, found.hides) == (True, 1, "")


def test_chains_that_go_round_have_an_end() -> None:
    """The kernel has none; what is read has to be read all the same."""
    found = parse("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j x\n-A x -j y\n-A y -j x\nCOMMIT\n")
    assert found
    assert not found.drops


@pytest.mark.parametrize(
    ("words", "locked"),
    [
        ("iptables-restore v1.8.9 (nf_tables): line 4: CHAIN_ADD failed (Device or resource busy)", False),
        ("Another app is currently holding the xtables lock; still 4s 0us time ahead to have a chance", True),
    ],
)
def test_only_the_lock_is_called_the_lock(words: str, locked: bool) -> None:
    """iptables (nf_tables) has exit code 4 for whatever the kernel refuses."""
    said = iptables._refused("iptables-restore", 4, words).message
    assert ("holds the xtables lock" in said, words in said) == (locked, not locked)


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


FRESH = ["*filter", "-N LOGKNOCK", "-N LOGKNOCK-LOG"]
HELD = ["-A LOGKNOCK -m mark --mark 0x10000/0x10000 -j ACCEPT", "-A LOGKNOCK-LOG -j NFLOG --nflog-group 5"]


def test_the_text_for_a_fresh_host() -> None:
    text = render(0x10000, NFLOG, {"ip": table("-i lo -j ACCEPT"), "ip6": table()})
    assert commands(text) == [*FRESH, *HELD, "-I INPUT 1 -j LOGKNOCK", "-A INPUT -j LOGKNOCK-LOG", "COMMIT"]


def test_where_the_families_differ_each_line_says_whose_it_is() -> None:
    ours = ":LOGKNOCK - [0:0]\n:LOGKNOCK-LOG - [0:0]\n"
    text = render(
        0x20000,
        Log(None, "a\\b: "),
        {
            "ip": table("-j LOGKNOCK", "-i lo -j ACCEPT", "-j LOGKNOCK-LOG", "-j DROP", chains=ours),
            "ip6": table(),
        },
    )
    assert commands(text) == [
        "*filter",
        "-4 -F LOGKNOCK",
        "-4 -F LOGKNOCK-LOG",
        "-4 -D INPUT -j LOGKNOCK",
        "-4 -D INPUT -j LOGKNOCK-LOG",
        "-6 -N LOGKNOCK",
        "-6 -N LOGKNOCK-LOG",
        "-A LOGKNOCK -m mark --mark 0x20000/0x20000 -j ACCEPT",
        '-A LOGKNOCK-LOG -j LOG --log-prefix "a\\\\b: " --log-level 6',
        "-I INPUT 1 -j LOGKNOCK",
        "-4 -I INPUT 3 -j LOGKNOCK-LOG",
        "-6 -A INPUT -j LOGKNOCK-LOG",
        "COMMIT",
    ]


@pytest.mark.parametrize(
    ("rule", "ours"),
    [
        pytest.param("-A LOGKNOCK -m mark --mark 0x1/0x1 -j ACCEPT", True, id="an accept of a mark"),
        pytest.param("-A LOGKNOCK-LOG -j NFLOG --nflog-group 5", True, id="a log to a group"),
        pytest.param("-A LOGKNOCK-LOG -j LOG", True, id="a log to the kernel's"),
        pytest.param("-A LOGKNOCK -j ACCEPT", False, id="an accept of everything"),
        pytest.param("-A LOGKNOCK -s 192.0.2.1/32 -m mark --mark 0x1/0x1 -j ACCEPT", False, id="one from somewhere"),
        pytest.param("-A LOGKNOCK-LOG -j DROP", False, id="a drop"),
        pytest.param("-A LOGKNOCK-LOG -p tcp -j LOG", False, id="a log of something"),
    ],
)
def test_what_is_ours_in_our_chains(rule: str, ours: bool) -> None:
    found = parse(f"*filter\n:INPUT DROP [0:0]\n:LOGKNOCK - [0:0]\n:LOGKNOCK-LOG - [0:0]\n{rule}\nCOMMIT\n")
    assert found
    assert found.foreign == ("" if ours else rule)


@pytest.mark.parametrize(
    "text",
    ["", "*filter\nCOMMIT\n", "*nat\n:INPUT DROP [0:0]\nCOMMIT\n", "*filter\n:INPUT\n-A\n-A INPUT\n:", "no rules\0"],
)
def test_what_is_no_filter_table_is_none(text: str) -> None:
    assert parse(text) is None


def test_who_jumps_to_us_from_anywhere() -> None:
    found = parse(
        "*filter\n:INPUT ACCEPT [0:0]\n:x - [0:0]\n-A INPUT -p tcp -g LOGKNOCK\n"
        '-A x -m comment --comment "-j LOGKNOCK" -j DROP\n-A x -j LOGKNOCK-LOG\n-A x -j LOGKNOCKER\nCOMMIT\n'
    )
    assert found
    assert found.jumps == (("INPUT", "-p tcp -g LOGKNOCK"), ("x", "-j LOGKNOCK-LOG"))


def test_a_module_in_the_current_directory_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may be in anybody's directory: modules come from where ours do."""
    for name in ("json", "iptc"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with suppress(FirewallError):  # python-iptables need not be there
        iptables._check_module()
    assert not (tmp_path / "was-run").exists()
