"""A host whose own firewall is iptables: its INPUT accepts the mark, and logs what it is going to drop.

Rule 1: the rules are in rules/iptables.rules; this file finds their places in INPUT, and knows no others.
Rule 2: what is in the chains LOGKNOCK and LOGKNOCK-LOG and jumps to them is ours, and nothing else is ever changed: one
        transaction a program, worked out from what its filter table holds at that moment.
Rule 3: whatever takes rules away, or back to what was there before, is iptables-restore's. python-iptables, which has
        crashed before, only ever puts rules into legacy tables, in a process of its own.
"""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from pathlib import Path
from shutil import which
from types import MappingProxyType
from typing import Any, NamedTuple

from ..config import Config
from ..errors import FAILURE, NO_PERMISSION, UNAVAILABLE, UNSEEN_PACKAGES, FirewallError, LogknockError

# What each chain of ours holds is one rule, and INPUT jumps to it.
ACCEPTS, LOGS = "LOGKNOCK", "LOGKNOCK-LOG"
CHAINS = (ACCEPTS, LOGS)

# By the family, as nftables calls it: the program's name, and the option of a rule that is for it alone.
_FAMILIES = {"ip": ("iptables", "-4"), "ip6": ("ip6tables", "-6")}

# Where they are if the PATH of a service or a user does not say so.
_SYSTEM_PATH = "/usr/sbin:/sbin"

_LIMIT = 30.0  # seconds for a program; what has 100,000 rules takes two
_LOCK_WAIT = 5  # seconds; who changes rules holds the lock for milliseconds
_LOCK = "/run/xtables.lock"  # iptables' XT_LOCK_NAME; XTABLES_LOCKFILE names another, for iptables too

# What iptables takes: LOG 29 characters and a closing zero (linux/netfilter/xt_LOG.h), NFLOG 63 (xt_NFLOG.h).
_LONGEST = {"LOG": 29, "NFLOG": 63}


class Log(NamedTuple):
    """How what is dropped is logged: to an NFLOG group, or to the kernel's log (None); prefix as it stands there."""

    group: int | None
    prefix: str

    def __str__(self) -> str:
        """As iptables-save prints it."""
        prefix = '"' + self.prefix.replace("\\", "\\\\") + '"'
        if self.group is None:
            return "LOG" + (f" --log-prefix {prefix}" if self.prefix else "") + " --log-level 6"
        return "NFLOG" + (f" --nflog-prefix {prefix}" if self.prefix else "") + f" --nflog-group {self.group}"

    @property
    def words(self) -> str:
        """For a person."""
        return "the kernel's log" if self.group is None else f"NFLOG group {self.group}"


# How deep chains may be in chains: the kernel's NFT_JUMP_STACK_SIZE (include/net/netfilter/nf_tables.h).
_DEEPEST = 16


class Filter(NamedTuple):
    """A filter table: INPUT, and what is ours, as lines of iptables-save without their `-A CHAIN`."""

    policy: str
    input: tuple[str, ...]
    chains: Mapping[str, tuple[str, ...]]  # of ours, those that are there
    jumps: tuple[tuple[str, str], ...]  # to ours, from any chain: (its name, the rule)
    rules: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # of every chain that has some

    @property
    def place(self) -> int | None:
        """Before which rule of INPUT what is going to be dropped is to be logged, ours not counted.

        The first of the rules that drop all of a protocol, where all that comes after them does so too. None where
        what is left in the end is accepted: there it would log what is let in.
        """
        others = [_bare(rule) for rule in self.others]
        end = self._end(others)
        for at in reversed(range(end or 0)):
            if self._drops_all(others[at], _PROTOCOL):
                end = at
            elif not _LOG_RULE.fullmatch(others[at]):
                break
        return end

    @property
    def hides(self) -> str:
        """What keeps packets to closed ports from the log: "" where as much as can be seen gets there."""
        place = self.place
        others = self.others
        for rule in others[:place]:
            if _accepts_all(rule):
                break
            if self._stops(_bare(rule)):
                return f"`-A INPUT {rule}` drops what comes before it can be logged"
        return "" if place is not None else "INPUT accepts what is left in the end"

    def _end(self, others: Sequence[str]) -> int | None:
        """The first rule that drops everything, or their number where the policy does; None where neither does."""
        for at, rule in enumerate(others):
            if _accepts_all(rule):
                return None
            if self._drops_all(rule, _ALL):
                return at
        return None if self.policy == "ACCEPT" else len(others)

    def _drops_all(self, rule: str, shape: re.Pattern[str], depth: int = _DEEPEST) -> bool:
        """Whether a rule of such a shape drops all that it is for: by itself, or by a chain that does nothing else."""
        found = shape.fullmatch(rule)
        return found is not None and depth > 0 and (found[1] in _DROPS or self._is_closed(found[1], depth))

    def _is_closed(self, chain: str, depth: int) -> bool:
        """Whether a chain drops whatever comes into it, and does nothing else but log."""
        for rule in map(_bare, self.rules.get(chain, ())):
            if self._drops_all(rule, _ALL, depth - 1):
                return True
            if not (_LOG_RULE.fullmatch(rule) or self._drops_all(rule, _PROTOCOL, depth - 1)):
                return False
        return False

    def _stops(self, rule: str, depth: int = _DEEPEST) -> bool:
        """Whether a rule for so much drops it, or has a chain drop what that does not accept of it."""
        found = _BROAD.fullmatch(rule)
        if not found or not depth:
            return False
        if found[1] in _DROPS:
            return True
        for inner in map(_bare, self.rules.get(found[1], ())):
            if self._stops(inner, depth - 1):
                return True
            if _LEAVES.fullmatch(inner):
                return False
        return False

    @property
    def others(self) -> list[str]:
        """INPUT without our jumps."""
        return [rule for rule in self.input if not _is_plain(rule)]

    @property
    def drops(self) -> bool:
        """Whether what is in no list of an administrator's may be dropped: by the policy, or by a rule for so much."""
        reached = list(takewhile(lambda rule: not _accepts_all(rule), self.others))
        if len(reached) == len(self.others) and self.policy != "ACCEPT":
            return True
        return any(self._stops(_bare(rule)) for rule in reached)

    @property
    def foreign(self) -> str:
        """A rule in a chain of our name that is none of ours; "" where there is none."""
        shapes = {ACCEPTS: _ACCEPTS_SHAPE, LOGS: _LOGS_SHAPE}
        lines = (f"-A {name} {rule}" for name in self.chains for rule in self.chains[name]
                 if not shapes[name].fullmatch(rule))  # fmt: skip
        return next(lines, "")


_ACCEPTS_SHAPE = re.compile(r"-m mark --mark \S+ -j ACCEPT")
_LOGS_SHAPE = re.compile(r"-j (?:NFLOG|LOG)(?: .*)?")
_DROPS = ("DROP", "REJECT")

# Rules, without their comments, and their target: for everything; for all of a protocol; and for so much that a packet
# to a closed port from anywhere is likely to be among it.
_TARGET = r"-[jg] (\S+)(?: --reject-with \S+)?"
_STATES = r"(?:\w+,)*NEW(?:,\w+)*"
_ALL = re.compile(_TARGET)
_PROTOCOL = re.compile(rf"(?:-p (?:tcp|udp) )?{_TARGET}")
_BROAD = re.compile(
    rf"(?:(?:-i (?!lo )\S+|! -i lo|! -s \S+|-p (?:tcp|udp)|-m (?:tcp|udp)|--tcp-flags \S+ SYN"
    rf"|-m conntrack --ctstate {_STATES}|-m state --state {_STATES}) )*{_TARGET}"
)
_LOG_RULE = re.compile(r"(?:.* )?-j (?:NF)?LOG(?: .*)?")

# What ends a chain for all that is for this host: ufw leaves one so, before it drops what is for others.
_LEAVES = re.compile(r"(?:-m addrtype --dst-type LOCAL )?-j (?:RETURN|ACCEPT)")

# A comment as iptables-save shows it: in quotation marks where it is no plain word (iptables' xtables_save_string).
_COMMENT = re.compile(r'-m comment --comment (?:"(?:[^"\\]|\\.)*"|[^\s"]\S*) ')


def _accepts_all(rule: str) -> bool:
    """Whether nothing comes to what is behind a rule of INPUT."""
    return _bare(rule) == "-j ACCEPT"


def _bare(rule: str) -> str:
    """A rule without its comments, which are no condition."""
    return _COMMENT.sub("", rule)


def _is_plain(rule: str) -> bool:
    """Whether a rule of INPUT is the jump that we make, not one that somebody has written there."""
    return rule in (f"-j {ACCEPTS}", f"-j {LOGS}")


def parse(text: str) -> Filter | None:
    """The filter table of what iptables-save prints; None where there is none, or it has no INPUT."""
    policy, table = "", ""
    rules: list[tuple[str, str]] = []
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table != "filter":
            continue
        elif found := re.match(r":(\S+) (\S+)", line):
            policy = found[2] if found[1] == "INPUT" else policy
            if found[1] in CHAINS:
                chains[found[1]] = []
        elif found := re.match(r"-A (\S+) (.*)", line):
            rules.append((found[1], found[2]))
    if not policy:
        return None
    for name, rule in rules:
        if name in chains:
            chains[name].append(rule)
    jumps = tuple((name, rule) for name, rule in rules if re.search(rf" -[jg] (?:{ACCEPTS}|{LOGS})$", f" {rule}"))
    inputs = tuple(rule for name, rule in rules if name == "INPUT")
    held: dict[str, list[str]] = {}
    for name, rule in rules:
        held.setdefault(name, []).append(rule)
    return Filter(policy, inputs, _frozen(chains), jumps, _frozen(held))


def _frozen(chains: Mapping[str, Sequence[str]]) -> Mapping[str, tuple[str, ...]]:
    return {name: tuple(rules) for name, rules in chains.items()}


# ---- the text


_EMPTY = Filter("DROP", (), {}, ())


def render(mark: int, log: Log, before: Mapping[str, Filter]) -> str:
    """The rules for tables as they are, by family; one text for all of them."""
    text = _rules_file().read_text(encoding="ascii")
    text = _put(text, "--mark 0x10000/0x10000", f"--mark {mark:#x}/{mark:#x}")
    text = _put(text, "-j NFLOG --nflog-group 5", f"-j {log}")
    text = _put(
        text, "".join(f"-N {name}\n" for name in CHAINS), _each({key: _clear(was) for key, was in before.items()})
    )
    return _put(text, f"-A INPUT -j {LOGS}\n", _each({key: _before_drops(was) for key, was in before.items()}))


def _clear(before: Filter) -> list[str]:
    """The lines that make room for our rules: chains of ours that are empty, and INPUT without our jumps."""
    chains = [f"{'-F' if name in before.chains else '-N'} {name}" for name in CHAINS]
    return [*chains, *(f"-D INPUT {rule}" for rule in before.input if _is_plain(rule))]


def _before_drops(before: Filter) -> list[str]:
    """What jumps to where it is logged, if anything; the first rule is the one that accepts the mark by then."""
    at = before.place
    if at is None:
        return []
    return [f"-A INPUT -j {LOGS}" if at == len(before.others) else f"-I INPUT {at + 2} -j {LOGS}"]


def _each(lines: Mapping[str, Sequence[str]]) -> str:
    """Lines for each family; where they are not the same for all, each says which it is for (iptables(8), -4)."""
    same = len({tuple(some) for some in lines.values()}) == 1
    shown = next(iter(lines.values())) if same else [
        f"{_FAMILIES[family][1]} {line}" for family, some in lines.items() for line in some
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in shown)


def _put(text: str, default: str, value: str) -> str:
    """Put a value in the default's place: never nowhere, never in two places."""
    assert text.count(default) == 1, f"{default!r} is in the rules {text.count(default)} times"
    return text.replace(default, value)


def _rules_file() -> Path:
    package = Path(__file__).parents[1]
    installed = package / "rules" / "iptables.rules"
    return installed if installed.exists() else package.parent / "rules" / "iptables.rules"


def _removal(now: Filter) -> str:
    """What takes our rules out, wherever somebody has moved them to."""
    jumps = [f"-D {name} {rule}" for name, rule in now.jumps if name not in CHAINS]
    return _table([*jumps, *(f"-F {name}" for name in now.chains), *(f"-X {name}" for name in now.chains)])


def _return(now: Filter, before: Filter) -> str:
    """What brings our rules back to what they were; `before` had some."""
    lines = [f"-D INPUT {rule}" for rule in now.input if _is_plain(rule)]
    lines += [f"{'-F' if name in now.chains else '-N'} {name}" for name in before.chains]
    lines += [f"-A {name} {rule}" for name, held in before.chains.items() for rule in held]
    count = len(now.others)
    for at, rule in enumerate(before.input, 1):
        if _is_plain(rule):
            lines.append(f"-I INPUT {min(at, count + 1)} {rule}")
            count += 1
    gone = [name for name in now.chains if name not in before.chains]
    return _table([*lines, *(f"-F {name}" for name in gone), *(f"-X {name}" for name in gone)])


def _table(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in ("*filter", *lines, "COMMIT"))


# ---- the programs


class Program(NamedTuple):
    """An iptables of this host: its name, whose packets it is for ("ip", "ip6"), and which of the two kinds it is."""

    name: str
    family: str
    legacy: bool

    def __str__(self) -> str:
        return f"{self.name} ({'legacy' if self.legacy else 'nf_tables'})"

    def save(self) -> str:
        """All its rules; none where there are none, and then no module of the kernel is loaded to see that.

        Raises FirewallError.
        """
        return self._saved() if not self.legacy or self._legacy_tables() else ""

    def filter(self) -> Filter | None:
        """Its filter table; None where there is none, or (nf_tables) one that drops nothing. Raises FirewallError."""
        if self.legacy and "filter" not in self._legacy_tables():
            return None
        shown = self._saved("-t", "filter")
        if found := _INCOMPATIBLE.search(shown):
            raise FirewallError(f"{self.name}-save: {found[0]}", _NFT_HINT)
        return parse(shown)

    def names_ours(self) -> bool:
        """Whether a chain of ours is listed. What may not be seen has none, and listing the rest may fail."""
        try:
            if self.legacy and "filter" not in self._legacy_tables():
                return False
            shown = self._start([f"{self.name}-save", "-t", "filter"]).stdout
            if _INCOMPATIBLE.search(shown):  # of such a table it shows a chain, if it is asked for that one
                return any(not self._start([self.name, "-S", name]).returncode for name in CHAINS)
        except FirewallError:
            return False
        return any(f"\n:{name} " in shown for name in CHAINS)

    def restore(self, text: str) -> None:
        """Change what the text says, all of it or nothing. Raises FirewallError."""
        self._run([f"{self.name}-restore", "--noflush", "-w", str(_LOCK_WAIT)], text)

    def _saved(self, *options: str) -> str:
        return self._run([f"{self.name}-save", *options])

    def _legacy_tables(self) -> list[str]:
        try:
            return Path(f"/proc/net/{self.family}_tables_names").read_text(encoding="ascii").split()
        except FileNotFoundError:  # nobody has loaded any
            return []
        except PermissionError as error:
            raise FirewallError(f"{self.name}: {error.strerror}", _NEED_ROOT, NO_PERMISSION) from None

    def _run(self, command: list[str], text: str = "") -> str:
        done = self._start(command, text)
        if done.returncode:
            raise _refused(command[0], done.returncode, done.stderr)
        return done.stdout

    def _start(self, command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
        program = find(command[0])
        if program is None:
            raise FirewallError(f"there is no {command[0]}", "install the package iptables", UNAVAILABLE)
        try:
            return subprocess.run(
                [program, *command[1:]], input=text, capture_output=True, text=True, errors="replace", timeout=_LIMIT,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FirewallError(f"{command[0]}: {error}") from None


# What iptables-nft-save says of a rule that is none of iptables' kind: as an error, or in place of the whole table and
# with exit code 0.
_UNREADABLE = "Parsing nftables rule failed"
_INCOMPATIBLE = re.compile(r"Table `filter' is incompatible, use 'nft' tool")
_NFT_HINT = "what nft has put into iptables' tables it cannot read: have the rules that drop there accept the mark"

_NEED_ROOT = "CAP_NET_ADMIN is needed: run it as root"


def _refused(program: str, code: int, words: str) -> FirewallError:
    if "xtables lock" in words:
        return _locked(program)
    if "Permission denied" in words or "must be root" in words or "Operation not permitted" in words:
        return FirewallError(f"{program}: Operation not permitted", _NEED_ROOT, NO_PERMISSION)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    text = f"{program}: {lines[0] if lines else f'exit code {code}'}"
    return FirewallError(text, _NFT_HINT if _UNREADABLE in words else "")


def _locked(program: str) -> FirewallError:
    file = os.environ.get("XTABLES_LOCKFILE", _LOCK)
    text = f"{program}: somebody else holds the xtables lock ({file}), for {_LOCK_WAIT} s and more"
    return FirewallError(text, f"`fuser -v {file}` shows who; then run it again")


def find(name: str) -> str | None:
    """Where a program is, if the PATH does not say so where an administrator would find it."""
    return which(name) or which(name, path=_SYSTEM_PATH)


@cache
def _is_legacy(path: str) -> bool:
    """What `iptables --version` says; before 1.8 there was one kind only, and it said nothing."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return "nf_tables" not in done.stdout


def programs() -> tuple[Program, ...]:
    """What this host has, for each family the one that is `iptables` first; none where it has no iptables."""
    found: list[Program] = []
    for family, (name, _) in _FAMILIES.items():
        common = find(name)
        kinds = [False, True]
        if common:
            legacy = _is_legacy(common)
            found.append(Program(name, family, legacy))
            kinds.remove(legacy)
        for legacy in kinds:
            other = f"{name}-{'legacy' if legacy else 'nft'}"
            if find(other):
                found.append(Program(other, family, legacy))
    return tuple(found)


def _in_use() -> dict[Program, Filter]:
    """The programs whose INPUT stands before our services, with what is there.

    A host may have both kinds, and a packet has to pass both. Raises LogknockError where there is nothing to accept a
    mark: no rules, or none that drop anything.
    """
    there = programs()
    if not there:
        raise FirewallError("iptables is not installed", "install the package iptables", UNAVAILABLE)
    found = _dropping(there)
    if not found:
        hint = "leave [firewall] mark out: then logknock's own rules drop what is guarded"
        raise FirewallError("iptables drops nothing on this host: everybody reaches what is guarded", hint)
    return found


def _dropping(among: Iterable[Program]) -> dict[Program, Filter]:
    tables = {program: program.filter() for program in among}
    return {program: found for program, found in tables.items() if found and found.drops}


def hides() -> bool:
    """Whether an iptables of this host drops packets where it cannot log them, or may do so, for what can be seen."""
    try:
        return any(found.hides for found in _dropping(programs()).values())
    except FirewallError:
        return True


# ---- what is wanted


def _wanted(config: Config) -> tuple[int, Log]:
    """The mark and the log of a configuration; raises LogknockError where it has no mark."""
    mark = config.firewall.mark
    if not mark:
        hint = "[firewall] mark = 0x10000  # the bit that iptables then accepts"
        raise LogknockError("there is no mark for iptables to accept: [firewall] mark is not set", hint)
    prefix = config.wanted.prefixes[0]
    shown = f"{prefix}: " if prefix and "nflog" not in config.sources else ""
    log = Log(config.group if config.to_group else None, shown)
    target = str(log).partition(" ")[0]
    if len(shown) > _LONGEST[target]:
        text = f"[log] prefix: {prefix!r} is too long for {target} of iptables, which takes {_LONGEST[target]} letters"
        raise LogknockError(text, "choose a shorter one; a colon and a blank come behind it")
    return mark, log


_HEAD = """\
#
# iptables-restore --noflush and ip6tables-restore --noflush take the same text:
#   logknock rules print --iptables | iptables-restore --noflush
#   logknock rules print --iptables | ip6tables-restore --noflush
"""


def printed(config: Config) -> str:
    """What `logknock rules print --iptables` prints: for this host as it is, as far as that can be seen."""
    mark, log = _wanted(config)
    before = {"ip": _EMPTY, "ip6": _EMPTY}
    try:
        tables = _dropping(programs())
        note = _SEEN.format(" and ".join(map(str, tables))) if tables else _ASSUMED
    except FirewallError as error:
        tables, note = {}, f"{error.message}: what is there cannot be seen.\n{_ASSUMED}"
    for program, found in reversed(tables.items()):  # of two for a family, the one that is `iptables` counts
        _own(program, found)
        before[program.family] = found
    for program, found in tables.items():
        note += f"\n{program}: {found.hides}: {_UNSEEN}." if found.hides else ""
    comments = "".join(f"# {line}\n" for line in note.split("\n"))
    head, star, rest = render(mark, log, before).partition("*filter\n")
    return f"{head}{_HEAD}{comments}{star}{rest}"


_UNSEEN = "it does not record all knocks, and [firewall] record = false will not do"
_SEEN = "Made for the rules that are there now: {}."
_ASSUMED = """\
It is assumed that INPUT drops by its policy, and that nothing of logknock's is there. Where its last rule drops or
rejects all that is left, the line `-A INPUT -j LOGKNOCK-LOG` has to be `-I INPUT N -j LOGKNOCK-LOG`, N being the number
that this rule has then: one more than now."""


def _own(program: Program, found: Filter) -> None:
    """Raise FirewallError where somebody else has chains of our name, or rules in them."""
    if found.foreign:
        hint = f"rename that chain ({program.name} -E {found.foreign.split()[1]} ...), or take the rule out of it"
        raise FirewallError(f"{program.name} has a rule in a chain of logknock's name: {found.foreign}", hint)


class Change:
    """Our rules in this host's iptables, as a configuration wants them: made, and taken back.

    What was there before is found at once, and may be what another process takes it back to.
    """

    def __init__(self, config: Config) -> None:
        """Raises LogknockError where it cannot be made."""
        self._mark, self._log = _wanted(config)
        self._before = _in_use()
        self._installed = {program.family for program in programs()}
        for program, found in self._before.items():
            _own(program, found)
            if found.hides and not config.firewall.record:
                hint = "[firewall] record = true: then logknock's own rules record the knocks"
                raise FirewallError(f"{program} cannot record the knocks: {found.hides}", hint)
        if any(program.legacy for program in self._before):
            _check_module()

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        names = ", ".join(map(str, self._before))
        logs = any(found.place is not None for found in self._before.values())
        dropped = f"what is dropped goes to {self._log.words}" if logs else "what is dropped is not logged"
        return f"{names}: mark {self._mark:#x} accepted, {dropped}"

    @property
    def differs(self) -> bool:
        """Whether there is anything to make."""
        return not all(map(self._is_made, self._before.values()))

    @property
    def warnings(self) -> list[str]:
        """What it leaves open."""
        covered = {program.family for program in self._before}
        hidden = [
            f"{program} does not log all that it drops: {found.hides}"
            for program, found in self._before.items() if found.hides
        ]  # fmt: skip
        return hidden + [
            f"{self._absent(family)}: over IPv{version} everybody reaches what nothing else drops"
            for family, version in (("ip", 4), ("ip6", 6))
            if family not in covered and (version == 4 or _has_ipv6())
        ]

    def _absent(self, family: str) -> str:
        name = _FAMILIES[family][0]
        return f"{name} drops nothing" if family in self._installed else f"there is no {name} on this host"

    def make(self) -> None:
        """Put the rules in; where that fails, what was there before comes back. Raises FirewallError."""
        try:
            for program, before in self._before.items():
                if not self._is_made(before):
                    self._put_in(program, before)
        except LogknockError:
            self.undo()
            raise

    def undo(self) -> None:
        """Bring back what was there before, of ours. Raises FirewallError."""
        failed: list[LogknockError] = []
        for program, before in self._before.items():
            try:
                now = program.filter()
                if now is None or (now.chains, now.input) == (before.chains, before.input):
                    continue
                program.restore(_return(now, before) if before.chains else _removal(now))
            except LogknockError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _is_made(self, before: Filter) -> bool:
        """Whether all of it is there already, in its place."""
        held = {ACCEPTS: (f"-m mark --mark {self._mark:#x}/{self._mark:#x} -j ACCEPT",), LOGS: (f"-j {self._log}",)}
        others, at = before.others, before.place
        logged = () if at is None else (f"-j {LOGS}",)
        wanted = (f"-j {ACCEPTS}", *others[:at], *logged, *others[len(others) if at is None else at :])
        return dict(before.chains) == held and before.input == wanted

    def _put_in(self, program: Program, before: Filter) -> None:
        if not program.legacy:
            program.restore(render(self._mark, self._log, {program.family: before}))
            return
        plain = [rule for rule in before.input if _is_plain(rule)]
        order = {"ipv6": program.family == "ip6", "mark": self._mark, "group": self._log.group,
                 "prefix": self._log.prefix, "jumps": [rule.split()[-1] for rule in plain],
                 "place": None if before.place is None else before.place + 1}  # fmt: skip
        with _lock(program.name):
            _run_child(json.dumps(order))


def _has_ipv6() -> bool:
    try:
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def remove() -> list[str]:
    """Take our rules out of every iptables of this host; the programs that had some.

    Raises FirewallError for the first that could not be cleared; all are tried.
    """
    removed, failed = [], []
    for program in programs():
        if not program.names_ours():
            continue
        try:
            found = program.filter()
        except FirewallError as error:
            tool = f"`nft -a list table {program.family} filter`"
            hint = f"its jumps to {' and '.join(CHAINS)} stay: {tool} shows the handles by which nft deletes them"
            failed.append(FirewallError(error.message, error.hint if error.hint == _NEED_ROOT else hint))
            continue
        if found is None or not (found.chains or found.jumps):
            continue
        try:
            _own(program, found)
            program.restore(_removal(found))
            removed.append(str(program))
        except FirewallError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return removed


# ---- legacy tables, by python-iptables


@contextmanager
def _lock(program: str) -> Iterator[None]:
    """Hold iptables' own lock, which python-iptables does not take. Raises FirewallError where somebody else does."""
    try:
        file = os.open(os.environ.get("XTABLES_LOCKFILE", _LOCK), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FirewallError(f"{program}: the xtables lock: {error.strerror}", _NEED_ROOT) from None
    try:
        end = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise _locked(program) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(file)


_NO_MODULE = 3  # exit code of the child


def _check_module() -> None:
    """Raise FirewallError where python-iptables is not there: before anything is changed."""
    _run_child("")


def _run_child(order: str) -> None:
    """Have the order carried out, or, if it is none, only the module loaded. Raises FirewallError."""
    # Modules come from where ours came from, and not from the directory that root happens to be in.
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__], input=order, capture_output=True, text=True, errors="replace",
            timeout=_LIMIT, check=False, env=os.environ | path,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"python-iptables: {error}") from None
    by_hand = "`logknock rules print --iptables | iptables-restore --noflush` does the same without it"
    if done.returncode == _NO_MODULE:
        hint = f"install the package python3-iptables{UNSEEN_PACKAGES}; {by_hand}, and ip6tables-restore for IPv6"
        raise FirewallError("Python has no iptc module (python-iptables), for legacy iptables", hint, UNAVAILABLE)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise FirewallError(f"python-iptables crashed ({name}): nothing is changed", by_hand)
    if done.returncode:
        *_, last = ("", *done.stderr.strip().splitlines())
        code = NO_PERMISSION if errno.errorcode[errno.EPERM] in last or "ermission" in last else FAILURE
        raise FirewallError(f"python-iptables: {last}", by_hand, code)


def _child(order: dict[str, Any]) -> None:
    """Put the rules in, in one transaction; this is all that the process is for."""
    try:
        import iptc
    except ImportError:
        sys.exit(_NO_MODULE)
    if not order:
        return
    _mend(iptc)
    table_type, rule_type = (iptc.Table6, iptc.Rule6) if order["ipv6"] else (iptc.Table, iptc.Rule)
    # Where it looks for chains; it would have the kernel make all the tables that it may look into.
    table_type.ALL = [table_type.FILTER]
    table = table_type(table_type.FILTER)
    table.autocommit = False

    def rule(target: str, **options: str) -> Any:
        made = rule_type()
        found = made.create_target(target)
        for name, value in options.items():
            setattr(found, name, value)
        return made

    for name in CHAINS:
        if table.is_chain(name):
            table.flush_entries(name)
        else:
            table.create_chain(name)
    chain = iptc.Chain(table, "INPUT")
    for name in order["jumps"]:
        chain.delete_rule(rule(name))
    accept = rule("ACCEPT")
    accept.create_match("mark").mark = f"{order['mark']:#x}/{order['mark']:#x}"
    iptc.Chain(table, ACCEPTS).append_rule(accept)
    iptc.Chain(table, LOGS).append_rule(_log_rule(rule, order["group"], order["prefix"]))
    chain.insert_rule(rule(ACCEPTS), 0)
    if order["place"] is not None:
        chain.insert_rule(rule(LOGS), order["place"])
    table.commit()


def _log_rule(rule: Any, group: int | None, prefix: str) -> Any:
    if group is None:
        return rule("LOG", log_level="info", **({"log_prefix": prefix} if prefix else {}))
    return rule("NFLOG", nflog_group=str(group), **({"nflog_prefix": prefix} if prefix else {}))


def _mend(iptc: Any) -> None:
    """python-iptables 1.0.1 gives up the room that iptables 1.8.9 writes a prefix of NFLOG to, before it is written.

    (Target.reset keeps no reference to it: a use after free, and the segmentation fault that it is known for.)
    """
    import ctypes

    kept = []
    reset = iptc.Target.reset

    def keeping(target: Any) -> None:
        reset(target)
        size = getattr(target._module, "udata_size", 0)
        if size:
            kept.append(ctypes.create_string_buffer(size))
            target._module.udata = ctypes.cast(kept[-1], ctypes.c_void_p)

    iptc.Target.reset = keeping


if __name__ == "__main__":
    _child(json.loads(sys.stdin.read() or "{}"))
