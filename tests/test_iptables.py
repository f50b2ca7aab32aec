"""Where in INPUT our rules go, what is ours there, and the text that puts them there or takes them out."""

import pytest

from logknock.firewall.iptables import Filter, Log, parse, render

NFLOG = Log(5, "")


def table(*rules: str, policy: str = "DROP", chains: str = "") -> Filter:
    """A filter table with these rules in INPUT."""
    text = f"*filter\n:INPUT {policy} [7:9]\n:FORWARD DROP [0:0]\n{chains}" + "".join(
        f"-A INPUT {rule}\n" for rule in rules
    )
    text += "-A reject -m comment --comment all -j REJECT\n-A reject -j ACCEPT\n-A MINE -i lo -j ACCEPT\n"
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
]


@pytest.mark.parametrize(("rules", "place"), PLACES)
def test_what_is_dropped_is_logged_before(rules: list[str], place: int) -> None:
    assert table(*rules).place == place


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
