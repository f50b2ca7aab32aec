"""Who else on this host uses bits of packets' marks: rules of nftables and iptables, and routing by mark.

Rule 1: nothing is changed, and nothing is loaded to be looked at. Rule 2: what a rule does with a mark is told by its
text; a bit counts as used where it is looked at, set or cleared. Rule 3: a rule that compares or sets a mark as a whole
uses the bits that are set in it: all the others are as much anybody's as before. What sets it as a whole behind our
rules takes our bit away all the same: `overwriting` tells of that.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

from ..errors import FirewallError, LogknockError
from . import iptables, ruleset

_EVERY = 0xFFFFFFFF
_OURS = ("inet", "logknock")

# Which bits are proposed: those high up first, since numbers that are counted up begin low; the default before all.
_PROPOSED = (1 << 16, *(1 << bit for bit in (*range(22, 32), *range(17, 22), *range(15, -1, -1))))

_LIMIT = 10.0  # seconds for `ip rule`


class Use(NamedTuple):
    """Somebody's use of a mark: where, in words, and which bits."""

    where: str
    bits: int


def check(mark: int) -> None:
    """Raise LogknockError where somebody else uses the bit, with one that is free."""
    found = tuple(uses(mark))
    for use in found:
        if use.bits & mark:
            text = f"[firewall] mark: {mark:#x} is used by {use.where}"
            raise LogknockError(text, f"choose another bit, like {_free(found)}" if _free(found) else "no bit is free")


def _free(found: Iterable[Use]) -> str:
    used = 0
    for use in found:
        used |= use.bits
    return next((hex(bit) for bit in _PROPOSED if not bit & used), "")


def uses(mark: int) -> Iterator[Use]:
    """All uses of marks on this host but our own. A rule that accepts `mark` and nothing else is our own.

    Raises FirewallError where the rules cannot be seen.
    """
    items = ruleset.everything()
    yield from in_nft(items, mark)
    for kind, name in _mark_sets(items):
        yield from in_set(ruleset.listed(f"list {kind} {name}"))
    for program in iptables.programs():
        with suppress(FirewallError):  # what it cannot list was made by nft, and is among the above
            yield from in_save(program.save(), program.name, mark)
    for option in ("-4", "-6"):
        yield from in_routing(_rules_of_routing(option))


def overwriting(mark: int) -> list[str]:
    """Where rules behind ours may put another mark in place of the whole of it, our bit included.

    Raises FirewallError where the rules cannot be seen.
    """
    found = list(overwriting_in_nft(ruleset.everything(), mark))
    for program in iptables.programs():
        with suppress(FirewallError):  # as above
            found += overwriting_in_save(program.save(), program.name)
    return list(dict.fromkeys(found))


def _rules_of_routing(option: str) -> str:
    """What `ip rule` prints; nothing where it is missing or fails: then nobody has made such a rule with it."""
    try:
        done = subprocess.run(
            [iptables.find("ip") or "ip", "-j", option, "rule"],
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


# ---- nftables, as libnftables lists it (libnftables-json(5))


def in_nft(items: Iterable[Mapping[str, Any]], mark: int) -> Iterator[Use]:
    """The uses in rules of other tables than ours."""
    for item in items:
        rule = item.get("rule")
        if not isinstance(rule, dict) or (rule.get("family"), rule.get("table")) == _OURS:
            continue
        expressions = rule.get("expr")
        parts = [part for part in expressions if isinstance(part, dict)] if isinstance(expressions, list) else []
        if "accept" in (name for part in parts for name in part) and any(_accepts(part, mark) for part in parts):
            continue
        bits = 0
        for part in parts:
            bits |= _statement_bits(part)
        if bits:
            where = f"table {rule.get('family')} {rule.get('table')}, chain {rule.get('chain')} ({_hex(bits)})"
            yield Use(where, bits)


def _mark_sets(items: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The named sets and maps that hold marks: which of the two, and the full name."""
    for item in items:
        for kind in ("set", "map"):
            shown = item.get(kind)
            if isinstance(shown, dict) and "mark" in (*_kinds(shown.get("type")), *_kinds(shown.get("map"))):
                yield kind, f"{shown.get('family')} {shown.get('table')} {shown.get('name')}"


def in_set(items: Iterable[Mapping[str, Any]]) -> Iterator[Use]:
    """The marks that a set holds, or that a map gives."""
    for item in items:
        for kind, shown in item.items():
            if kind in ("set", "map") and isinstance(shown, dict) and isinstance(shown.get("elem"), list):
                entries = [entry if kind == "map" and isinstance(entry, list) else [entry] for entry in shown["elem"]]
                bits = 0
                for at, types in enumerate((_kinds(shown.get("type")), _kinds(shown.get("map")))):
                    held = [entry[at] for entry in entries if len(entry) > at]
                    for column, name in enumerate(types):
                        if name == "mark":
                            bits |= _values(held if len(types) == 1 else _column(held, column))
                if bits:
                    yield Use(
                        f"{kind} {shown.get('family')} {shown.get('table')} {shown.get('name')} ({_hex(bits)})", bits
                    )


def _kinds(shown: Any) -> list[Any]:
    """The types of what a set or map holds: several of a concatenation."""
    return shown if isinstance(shown, list) else [shown]


def _column(right: Any, at: int) -> list[Any]:
    """Of concatenations, in a set or a list perhaps, the parts at that place."""
    match right:
        case {"set": inner} | {"elem": {"val": inner}}:
            return _column(inner, at)
        case {"concat": [*parts]} if at < len(parts):
            return [parts[at]]
        case [*_]:
            return [part for one in right for part in _column(one, at)]
    return []


def _hex(bits: int) -> str:
    return f"bits {bits:#x}"


def _accepts(part: Mapping[str, Any], mark: int) -> bool:
    """Whether it asks for our bit of the packet's mark, and for nothing else of it."""
    match part.get("match"):
        case {"op": op, "left": {"&": [{"meta": {"key": "mark"}}, int(mask)]}, "right": int(value)}:
            return mask == mark and (op, value) in (("==", mark), ("!=", 0))
        case {"op": "==" | "in", "left": {"meta": {"key": "mark"}}, "right": int(value)}:
            return value == mark
    return False


def _is_mark(shown: Any) -> bool:
    match shown:
        case {"meta": {"key": "mark"}} | {"ct": {"key": "mark"}}:
            return True
    return False


def _statement_bits(part: Mapping[str, Any]) -> int:
    """The bits of marks that a statement looks at or changes."""
    match part:
        case {"match": {"left": left, "right": right}}:
            return _compared(left, right)
        case {"mangle": {"key": key, "value": value}} if _is_mark(key):
            return _set(key, value)
        case {"vmap": {"key": key, "data": data}} | {"map": {"key": key, "data": data}}:
            entries = data.get("set") if isinstance(data, dict) else None
            keys = [entry[0] for entry in entries if isinstance(entry, list) and entry] if entries else []
            return _compared(key, {"set": keys})
    return 0


def _compared(left: Any, right: Any) -> int:
    match left:
        case {"&": [masked, int(mask)]} if _is_mark(masked):
            return mask if mask != _EVERY else _values(right)
        case _ if _is_mark(left):
            return _values(right)
        case {"concat": [*parts]}:
            bits = 0
            for at, part in enumerate(parts):
                bits |= _compared(part, _column(right, at))
            return bits
    return 0


def _values(right: Any) -> int:
    """The bits that are set in any of the values; of a range all that may be."""
    match right:
        case bool():
            return 0
        case int():
            return right
        case {"range": [int(), int(last)]}:
            return (1 << last.bit_length()) - 1
        case {"prefix": {"addr": int(first), "len": int(length)}}:
            return first | _EVERY >> length
        case {"set": inner} | {"elem": {"val": inner}}:
            return _values(inner)
        case list():
            bits = 0
            for value in right:
                bits |= _values(value)
            return bits
    return 0


def _set(key: Any, value: Any) -> int:
    """The bits of a mark that become others: `mark & 0xff00 | 0x1` clears what is not kept."""
    match value:
        case {"|": [left, right]} | {"^": [left, right]}:
            return _set(key, left) | _set(key, right)
        case {"&": [left, int(mask)]} if left == key:
            return ~mask & _EVERY
        case {"&": [left, int(mask)]}:
            return (mask if _is_mark(left) and mask != _EVERY else _set(key, left)) & mask
        case {"map": {"data": {"set": list(entries)}}}:
            return _values([entry[-1] for entry in entries if isinstance(entry, list) and entry])
        case {"map": _} | int():  # what a named map gives is among the elements of the maps
            return _values(value)
        case {"jhash": counted} | {"symhash": counted} | {"numgen": counted} if isinstance(counted, dict):
            return _below(counted.get("mod"), counted.get("offset", 0))
    return 0 if _is_mark(value) else _EVERY


def _below(modulus: Any, offset: Any) -> int:
    """The bits of numbers that are counted or hashed: from an offset on, so many."""
    if not isinstance(modulus, int) or not isinstance(offset, int):
        return _EVERY
    return (1 << max(modulus + offset - 1, 0).bit_length()) - 1 & _EVERY


_OUR_PRIORITY = -150  # mangle: in what has the same, either comes first


def overwriting_in_nft(items: Iterable[Mapping[str, Any]], mark: int) -> Iterator[str]:
    """The chains of other tables than ours that packets pass after ours, with a rule that keeps nothing of the mark."""
    items = list(items)
    hooks: dict[tuple[Any, Any], list[bool]] = {}
    bases: dict[tuple[Any, Any, Any], bool] = {}
    for chain in (item["chain"] for item in items if isinstance(item.get("chain"), dict) and "hook" in item["chain"]):
        behind = chain["hook"] == "input" or (chain["hook"] == "prerouting" and chain.get("prio", 0) >= _OUR_PRIORITY)
        bases[chain.get("family"), chain.get("table"), chain.get("name")] = behind
        hooks.setdefault((chain.get("family"), chain.get("table")), []).append(behind)
    for rule in (item["rule"] for item in items if isinstance(item.get("rule"), dict)):
        table, name = (rule.get("family"), rule.get("table")), rule.get("chain")
        # A chain that others jump to may be in the way of any of them.
        if table == _OURS or not bases.get((*table, name), any(hooks.get(table, ()))):
            continue
        expressions = rule.get("expr")
        if any(_overwrites(part, mark) for part in (expressions if isinstance(expressions, list) else ())):
            yield f"table {table[0]} {table[1]}, chain {name}"


def _overwrites(part: Any, mark: int) -> bool:
    match part:
        case {"mangle": {"key": {"meta": {"key": "mark"}} as key, "value": value}}:
            return not _keeps(key, value, mark)
    return False


def _keeps(key: Any, value: Any, mark: int) -> bool:
    """Whether a bit of the mark is in what it is set to."""
    match value:
        case {"|": [left, right]} | {"^": [left, right]}:
            return _keeps(key, left, mark) or _keeps(key, right, mark)
        case {"&": [left, int(mask)]}:
            return mask & mark != 0 and _keeps(key, left, mark)
    return bool(value == key)


# ---- iptables, as iptables-save prints it


def in_save(text: str, program: str, mark: int) -> Iterator[Use]:
    """The uses in iptables' rules, but for our chains' and the rules that accept our bit."""
    for line in text.splitlines():
        if not line.startswith("-A ") or "mark" not in line:
            continue
        words = _split(line)
        if words[1] in iptables.CHAINS or _is_ours(words, mark):
            continue
        bits = _hashed(words)
        for word, value in pairwise(words):
            bits |= _option_bits(word, value)
        if bits:
            yield Use(f"{program}, chain {words[1]} ({_hex(bits)})", bits)


# What comes before our rules, and where packets to this host do not pass.
_BEFORE, _ELSEWHERE = "*raw", ("FORWARD", "OUTPUT", "POSTROUTING")


def overwriting_in_save(text: str, program: str) -> Iterator[str]:
    """The chains that packets pass after our rules, with a rule that keeps nothing of the mark."""
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        if line.startswith("-A ") and table != _BEFORE:
            words = _split(line)
            if words[1] not in _ELSEWHERE and _sets_all(words):
                yield f"{program}, table {table[1:]}, chain {words[1]}"


def _sets_all(words: list[str]) -> bool:
    options = dict(pairwise(words))
    match options.get("-j"):
        case "MARK":
            return _both(options.get("--set-xmark", "0/0"))[1] == _EVERY
        case "CONNMARK":
            return "--restore-mark" in words and _both(options.get("--nfmask", hex(_EVERY)))[0] == _EVERY
        case "TPROXY":
            return _both(options.get("--tproxy-mark", "0/0"))[1] == _EVERY
    return options.get("-j") == "HMARK"


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quotation mark that has no second
        return line.split()


_MASKED = ("--mark", "--set-xmark", "--set-mark", "--or-mark", "--xor-mark", "--tproxy-mark")


def _hashed(words: list[str]) -> int:
    """The bits of the marks that the target HMARK gives."""
    options = dict(pairwise(words))
    if options.get("-j") != "HMARK":
        return 0
    modulus, offset = (_both(options.get(name, ""))[0] for name in ("--hmark-mod", "--hmark-offset"))
    return _below(modulus, offset)


def _is_ours(words: list[str], mark: int) -> bool:
    options = dict(pairwise(words))
    value, mask = _both(options.get("--mark", ""))
    return options.get("-j") == "ACCEPT" and "connmark" not in words and value == mark and mask in (mark, _EVERY)


def _option_bits(word: str, value: str) -> int:
    if word in _MASKED:
        bits, mask = _both(value)
        return bits | mask if mask != _EVERY else bits
    if word in ("--nfmask", "--ctmask"):  # what is saved or restored; all of it is said of none in particular
        bits, _ = _both(value)
        return bits if bits != _EVERY else 0
    return 0


def _both(value: str) -> tuple[int, int]:
    """A value and its mask, which is everything where none is written; (0, 0) for what is neither."""
    found = re.fullmatch(r"(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})(?:/(0x[0-9a-fA-F]{1,8}|[0-9]{1,10}))?", value)
    if found is None:
        return 0, 0
    return int(found[1], 0), int(found[2], 0) if found[2] else _EVERY


# ---- routing, as `ip -j rule` lists it


def in_routing(text: str) -> Iterator[Use]:
    """The uses in routing rules."""
    try:
        rules = json.loads(text or "[]")
    except ValueError:
        return
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, dict) and "fwmark" in rule:
            bits, _ = _both(str(rule["fwmark"]))
            mask, _ = _both(str(rule.get("fwmask", hex(_EVERY))))
            bits = bits | mask if mask != _EVERY else bits
            if bits:
                table = rule.get("table", rule.get("action", ""))
                yield Use(f"`ip rule` {rule.get('priority')}, to table {table} ({_hex(bits)})", bits)
