"""What of a log was no packet, and roughly why: for telling a person, never for deciding.

Rule 1: pure; lines come in, counts come out. Rule 2: memory is bounded, whatever the lines. Rule 3: a prefix that is
told leaves the terminal as it was.
"""

import re
from collections import Counter
from enum import StrEnum

from .errors import printable
from .packet import bare
from .records import MAX_LINE, Wanted

# Prefixes that are told apart, and how much of one is kept: a prefix of the kernel's has 29 letters at most, in
# nftables 127.
_MAX_PREFIXES = 64
_MAX_PREFIX = 127
_PREFIXES_SHOWN = 5


class Skipped(StrEnum):
    """Why a record held no packet that could be a knock; the values are for a person."""

    ENTRY = "other kernel records"
    HOLE = "nothing but NULs"
    OTHER = "no firewall record"
    PREFIX = "another prefix"
    DIRECTION = "not in a direction that counts"
    PROTOCOL = "neither TCP nor UDP"
    PART = "a fragment or cut short"
    LONG = "too long"
    MALFORMED = "malformed, or not from the kernel"


_UPTIME = rb"\[ *\d+\.\d+\] ?"
_HEAD = re.compile(
    rb"(?:<\d+>)?(?:[A-Z][a-z]{2} [ \d]\d (?:\d{4} )?\d\d:\d\d:\d\d \S+ |\d{4}-\d\d-\d\d[T ]\S+ \S+ )?"
    rb"(?:kernel: )?(?:" + _UPTIME + rb")?"
)
_JSON_PREFIX = re.compile(rb'"oob\.prefix"\s*:\s*"([^"\\]*)"')
_JSON_MESSAGE = re.compile(rb'"MESSAGE"\s*:\s*"([^"\\]*?)IN=')
_OUT = re.compile(rb'\bOUT=\S|"oob\.out"\s*:\s*"[^"]')
_NO_IN = re.compile(rb"\bIN= ")
_PROTOCOL = re.compile(rb'\bPROTO=(?!TCP\b|UDP\b)|"ip\.protocol"\s*:\s*(?!6\b|17\b)\d')
_PART = re.compile(rb"\bFRAG:|INCOMPLETE")


def prefix_of(line: bytes) -> str | None:
    """The prefix of a firewall's record, roughly; None: it is none. For telling a person, never for deciding."""
    if line.startswith(b"{"):
        found = _JSON_PREFIX.search(line) or _JSON_MESSAGE.search(line)
        return None if found is None else _plain(found[1])
    if b" SRC=" not in line:
        return None
    before, has_in, _ = line.partition(b"IN=")
    if not has_in:
        return None
    head = _HEAD.match(before)
    return _plain(before[head.end() :] if head else before)


def _plain(prefix: bytes) -> str:
    """A prefix as it is compared, and as it may be shown."""
    return printable(bare(prefix[:_MAX_PREFIX].decode("utf-8", "replace")))


class Counts:
    """What was read and held no packet, and why."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = {_plain(prefix.encode()) for prefix in wanted.prefixes}
        self.skipped: Counter[str] = Counter()
        self.prefixes: Counter[str] = Counter()
        self.matched = False  # whether a record without a packet had the right prefix
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        """Something could not be read. A log ends with it, so there are no more of them than logs."""
        self.problems.append(text)

    @property
    def most(self) -> dict[str, int]:
        """Others' prefixes, the most frequent first."""
        return dict(self.prefixes.most_common(_PREFIXES_SHOWN))

    def hint(self) -> str:
        """What to look at where nothing had the right prefix."""
        if self.skipped[Skipped.ENTRY]:
            return "`journalctl -k -g SRC=` shows which prefixes there are; put yours into [log] prefix"
        if self.prefixes:
            seen = ", ".join(f"{prefix!r} ({count:,})" for prefix, count in self.most.items())
            return f"prefixes there: {seen}; put yours into [log] prefix"
        if not self.skipped:
            return "there is no record in it at all"
        return "no firewall record was found: see that a rule logs, and that this is where its records go"

    def skip_line(self, line: bytes) -> None:
        """Count a line that is no packet."""
        self.skipped[self._why(line)] += 1

    def _why(self, line: bytes) -> Skipped:
        if len(line) > MAX_LINE:
            return Skipped.LONG
        prefix = prefix_of(line)
        if prefix is None:
            return Skipped.OTHER
        if prefix not in self._wanted:
            if prefix in self.prefixes or len(self.prefixes) < _MAX_PREFIXES:
                self.prefixes[prefix] += 1
            return Skipped.PREFIX
        self.matched = True
        if _PROTOCOL.search(line):
            return Skipped.PROTOCOL
        if _PART.search(line):
            return Skipped.PART
        return Skipped.DIRECTION if _OUT.search(line) or _NO_IN.search(line) else Skipped.MALFORMED
