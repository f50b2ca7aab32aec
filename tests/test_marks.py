"""Who uses which bits of packets' marks, by the text of rules; and that the two rules files agree."""

import difflib
import json
from pathlib import Path

import pytest

from logknock.firewall.marks import in_nft, in_routing, in_save, in_set, overwriting_in_nft, overwriting_in_save

BIT = 0x10000
MARK = '{"meta": {"key": "mark"}}'
CT = '{"ct": {"key": "mark"}}'

# As libnftables 1.0.6 lists them; behind each what nft was given.
EXPRESSIONS = [
    ('{"match": {"op": "==", "left": {"&": [M, 255]}, "right": 1}}, {"accept": null}', 0xFF),  # meta mark & 0xff == 1
    ('{"match": {"op": "==", "left": M, "right": 9}}, {"accept": null}', 9),  # meta mark 9
    ('{"match": {"op": "!=", "left": M, "right": 0}}, {"drop": null}', 0),  # meta mark != 0
    ('{"match": {"op": "==", "left": M, "right": {"range": [65536, 131071]}}}', 0x1FFFF),
    ('{"match": {"op": "==", "left": M, "right": {"set": [1, {"range": [2, 5]}]}}}', 7),  # meta mark { 1, 2-5 }
    ('{"match": {"op": "==", "left": C, "right": 512}}', 512),  # ct mark 0x200
    ('{"mangle": {"key": M, "value": {"|": [M, 65536]}}}', BIT),  # meta mark set meta mark | 0x10000
    ('{"mangle": {"key": M, "value": {"^": [M, 2]}}}', 2),
    ('{"mangle": {"key": M, "value": {"|": [{"&": [M, 4294902271]}, 256]}}}', 0xFF00),  # ... & 0xffff00ff | 0x100
    ('{"mangle": {"key": M, "value": 1024}}', 1024),  # meta mark set 0x400
    ('{"mangle": {"key": M, "value": {"&": [C, 255]}}}', 0xFF),  # meta mark set ct mark & 0xff
    ('{"mangle": {"key": C, "value": M}}', 0),  # ct mark set meta mark: any bits, and none in particular
    ('{"mangle": {"key": M, "value": {"map": {"key": {"payload": {}}, "data": {"set": [["1.1.1.1", 128]]}}}}}', 128),
    ('{"vmap": {"key": M, "data": {"set": [[64, {"accept": null}]]}}}', 64),  # meta mark vmap { 0x40 : accept }
    ('{"match": {"op": "==", "left": {"&": [M, 65536]}, "right": 65536}}, {"drop": null}', BIT),
    ('{"mangle": {"key": M, "value": {"jhash": {"mod": 131072, "expr": {"payload": {}}}}}}', 0x1FFFF),
    ('{"mangle": {"key": M, "value": {"jhash": {"mod": 16, "offset": 256, "expr": {}}}}}', 0x1FF),
    ('{"mangle": {"key": M, "value": {"symhash": {"mod": 4}}}}', 3),
    ('{"mangle": {"key": M, "value": {"numgen": {"mode": "inc", "mod": 65536, "offset": 1}}}}', 0x1FFFF),
    ('{"mangle": {"key": M, "value": {"<<": [C, 4]}}}', 0xFFFFFFFF),
    ('{"mangle": {"key": M, "value": {"&": [{"payload": {"field": "saddr"}}, 255]}}}', 0xFF),
    ('{"mangle": {"key": M, "value": {"|": [C, 256]}}}', 0x100),  # meta mark set ct mark | 0x100
    ('{"mangle": {"key": M, "value": {"map": {"key": {"payload": {}}, "data": "@named"}}}}', 0),
    ('{"match": {"op": "==", "left": {"concat": [M, {}]}, "right": {"set": [{"concat": [65536, 22]}]}}}', BIT),
    ('{"match": {"op": "==", "left": {"concat": [{}, {"&": [M, 15]}]}, "right": {"concat": [22, 1]}}}', 0xF),
    ('{"match": {"op": "==", "left": {"concat": [{}, M]}, "right": "@named"}}', 0),
    ('{"vmap": {"key": {"concat": [M, {}]}, "data": {"set": [[{"concat": [64, 22]}, {"drop": null}]]}}}', 64),
    # Ours: an accept of our bit.
    ('{"match": {"op": "==", "left": {"&": [M, 65536]}, "right": 65536}}, {"accept": null}', 0),
    ('{"match": {"op": "!=", "left": {"&": [M, 65536]}, "right": 0}}, {"accept": null}', 0),
    ('{"match": {"op": "==", "left": M, "right": 65536}}, {"accept": null}', 0),
    ('{"match": {"op": "==", "left": {"&": [C, 65536]}, "right": 65536}}, {"accept": null}', BIT),
    # Nothing of a mark, or nothing that is known.
    ('{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}', 0),
    ('{"match": {"op": "==", "left": M, "right": "@named"}}, "strange", {"mangle": null}', 0),
]


@pytest.mark.parametrize(("expressions", "bits"), EXPRESSIONS)
def test_the_bits_of_a_rule_of_nftables(expressions: str, bits: int) -> None:
    text = (
        f"[{expressions}]".replace("M,", f"{MARK},")
        .replace("M}", MARK + "}")
        .replace("M]", MARK + "]")
        .replace("C,", f"{CT},")
    )
    rule = {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": json.loads(text)}}
    found = list(in_nft([{"metainfo": {}}, rule], BIT))
    assert [use.bits for use in found] == ([bits] if bits else [])
    assert all(use.where == f"table ip t, chain c (bits {bits:#x})" for use in found)


def test_our_own_table_is_no_other_user() -> None:
    rule = {"family": "inet", "table": "logknock", "chain": "admit", "expr": [{"mangle": {"key": 0, "value": 1}}]}
    assert not list(in_nft([{"rule": rule}], BIT))


@pytest.mark.parametrize(
    ("shown", "bits"),
    [
        ({"set": {"type": "mark", "elem": [1, {"elem": {"val": 4, "timeout": 9}}, {"range": [8, 9]}]}}, 0xF),
        ({"map": {"type": "inet_service", "map": "mark", "elem": [[22, 256]]}}, 256),
        ({"map": {"type": "mark", "map": "verdict", "elem": [[512, {"accept": None}]]}}, 512),
        ({"set": {"type": "mark"}}, 0),
        ({"set": {"type": ["ipv4_addr", "mark"], "elem": [{"concat": ["192.0.2.1", 65536]}]}}, BIT),
        ({"set": {"type": ["mark", "ipv4_addr"], "elem": [{"elem": {"val": {"concat": [{"range": [2, 5]}, 1]}}}]}}, 7),
        ({"map": {"type": ["inet_service", "mark"], "map": "mark", "elem": [[{"concat": [22, 1]}, 256]]}}, 257),
        ({"map": {"type": ["inet_service", "mark"], "map": "verdict", "elem": [[{"concat": [22, 1]}, {}], 7]}}, 1),
    ],
)
def test_the_bits_that_a_set_or_a_map_holds(shown: dict[str, object], bits: int) -> None:
    assert [use.bits for use in in_set([shown])] == ([bits] if bits else [])


@pytest.mark.parametrize(
    ("rule", "bits"),
    [
        ("PREROUTING -j MARK --set-xmark 0x1/0xffffffff", 1),
        ("PREROUTING -j MARK --set-xmark 0x10/0x30", 0x30),
        ("INPUT -m mark --mark 0x8/0xf -j DROP", 0xF),
        ("INPUT -m mark ! --mark 0x8 -j DROP", 8),
        ("PREROUTING -p tcp -j TPROXY --on-port 5 --on-ip 0.0.0.0 --tproxy-mark 0x10000/0x10000", BIT),
        ("PREROUTING -j HMARK --hmark-src-prefix 32 --hmark-rnd 0x00000001 --hmark-mod 131072", 0x1FFFF),
        ("PREROUTING -j HMARK --hmark-rnd 0x00000001 --hmark-mod 16 --hmark-offset 256", 0x1FF),
        ("INPUT -m connmark --mark 0x10000/0x10000 -j ACCEPT", BIT),
        ("PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", 0),
        ("PREROUTING -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000", 0xFF0000),
        ('INPUT -m comment --comment "mark --mark 0x7" -j DROP', 0),
        ("INPUT -m mark --mark 0x10000/0x10000 -j ACCEPT", 0),
        ("INPUT -m mark --mark 0x10000 -j ACCEPT", 0),
        ("INPUT -m mark --mark 0x10000/0x10000 -j DROP", BIT),
        ("LOGKNOCK -m mark --mark 0x20000/0x20000 -j ACCEPT", 0),
        ('INPUT -m comment --comment "--mark " -m mark --mark what -j DROP', 0),
        ('INPUT -m comment --comment "no end -m mark --mark 0x2 -j DROP', 2),
    ],
)
def test_the_bits_of_a_rule_of_iptables(rule: str, bits: int) -> None:
    found = list(in_save(f"# by iptables-save\n*mangle\n:INPUT ACCEPT [0:0]\n-A {rule}\nCOMMIT\n", "iptables", BIT))
    assert [use.bits for use in found] == ([bits] if bits else [])


@pytest.mark.parametrize(
    ("hook", "prio", "value", "told"),
    [
        ("input", 0, "1", True),
        ("prerouting", -150, '{"ct": {"key": "mark"}}', True),
        ("prerouting", -151, "1", False),
        ("output", 0, "1", False),
        ("input", 0, '{"|": [M, 1]}', False),
        ("input", 0, '{"|": [{"&": [M, 65536]}, 1]}', False),
        ("input", 0, '{"|": [{"&": [M, 255]}, 1]}', True),
        ("input", 0, '{"map": {"key": {}, "data": "@m"}}', True),
    ],
)
def test_what_sets_a_mark_as_a_whole_behind_our_rules(hook: str, prio: int, value: str, told: bool) -> None:
    """In nftables: in the base chain itself, and in one that it may jump to."""
    shown = json.loads(value.replace("M", MARK))
    of = {"family": "ip", "table": "t"}
    base = {"chain": {**of, "name": "c", "hook": hook, "prio": prio}}
    for name in ("c", "other"):
        rule = {"rule": {**of, "chain": name, "expr": [{"mangle": {"key": json.loads(MARK), "value": shown}}]}}
        found = list(overwriting_in_nft([base, rule, {"rule": {"expr": None}}], BIT))
        assert found == ([f"table ip t, chain {name}"] if told else [])


@pytest.mark.parametrize(
    ("table", "rule", "told"),
    [
        ("mangle", "PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", True),
        ("mangle", "PREROUTING -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", False),
        ("mangle", "PREROUTING -j CONNMARK --restore-mark --nfmask 0xfffeffff --ctmask 0xfffeffff", False),
        ("mangle", "INPUT -j MARK --set-xmark 0x1/0xffffffff", True),
        ("mangle", "mine -j MARK --set-xmark 0x1/0xffffffff", True),
        ("mangle", "INPUT -j MARK --set-xmark 0x1/0xff", False),
        ("mangle", "OUTPUT -j MARK --set-xmark 0x1/0xffffffff", False),
        ("raw", "PREROUTING -j MARK --set-xmark 0x1/0xffffffff", False),
        ("mangle", "PREROUTING -j HMARK --hmark-rnd 0x00000001 --hmark-mod 16", True),
        ("mangle", "PREROUTING -j TPROXY --on-port 5 --on-ip 0.0.0.0 --tproxy-mark 0x1/0xffffffff", True),
        ("mangle", "PREROUTING -j TPROXY --on-port 5 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1", False),
        ("filter", "INPUT -j ACCEPT", False),
    ],
)
def test_what_sets_a_mark_as_a_whole_in_iptables(table: str, rule: str, told: bool) -> None:
    found = list(overwriting_in_save(f"*{table}\n:INPUT ACCEPT [0:0]\n-A {rule}\nCOMMIT\n", "iptables"))
    assert found == ([f"iptables, table {table}, chain {rule.split()[0]}"] if told else [])


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ('[{"priority":0,"src":"all","table":"local"}]', []),
        ('[{"priority":5,"fwmark":"0x1","table":"7"},{"priority":6,"fwmark":"0x1","fwmask":"0xf"}]', [1, 0xF]),
        ('[{"priority":5,"fwmark":"0xca6c","table":"51820"}]', [0xCA6C]),
        ("", []),
        ('Object "rule" is unknown', []),
        ('{"fwmark": "0x1"}', []),
        ('[7, {"fwmark": "strange"}]', []),
    ],
)
def test_the_bits_of_routing_rules(text: str, bits: list[int]) -> None:
    assert [use.bits for use in in_routing(text)] == bits


# ---- the two files


def rules(name: str) -> list[str]:
    """The rules of a file without comments and empty lines."""
    lines = (line.partition("#")[0].strip() for line in Path("rules", name).read_text().splitlines())
    return [line for line in lines if line]


def test_the_two_rules_files_differ_in_what_is_dropped_and_marked_alone() -> None:
    """Whoever changes one changes the other."""
    changes = [line for line in difflib.ndiff(rules("logknock.nft"), rules("mark.nft")) if line[0] in "+-"]
    assert changes == [
        "- delete chain inet logknock admit",
        "+ meta mark & 0x10000 != 0 meta mark set meta mark ^ 0x10000",
        "+ meta l4proto . th dport @guarded jump admit",
        "- ip saddr . meta l4proto . th dport @granted4 accept",
        "+ ip saddr . meta l4proto . th dport @granted4 goto admit",
        "- ip6 saddr . meta l4proto . th dport @granted6 accept",
        "+ ip6 saddr . meta l4proto . th dport @granted6 goto admit",
        "- drop",
        "+ }",
        "+ chain admit {",
        "+ meta mark set meta mark | 0x10000",
    ]
