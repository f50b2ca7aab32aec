"""What loading some rules would change: the table as it is, beside the table as it would be.

Rule 1: nothing is changed: the loading is tried in a network namespace of its own, which is gone afterwards.
Rule 2: both sides are the kernel's and libnftables' own words, so that only what differs there differs here, whoever
changed it.
Rule 3: what comes and goes while the rules run (who is granted, banned or noisy, and a session that is trusted for a
time) is no difference.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from difflib import unified_diff
from typing import NamedTuple

from ..errors import NO_PERMISSION, UNAVAILABLE, FirewallError
from . import ruleset
from .ruleset import Snapshot

_CLONE_NEWNET = 0x40000000  # linux/sched.h

_HUNK = re.compile(r"@@ -(\d+)")
_BLOCK = re.compile(r"\t\w+ \S+ \{$")


class UntriedError(FirewallError):
    """The rules cannot be tried here, which says nothing of whether they can be loaded."""


class Difference(NamedTuple):
    """The two tables; `before` is None where none is loaded."""

    before: Snapshot | None
    after: Snapshot

    def __bool__(self) -> bool:
        return self.before is None or _text(self.before) != _text(self.after)

    def elements(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The elements that would be added to a set, and those that would be taken out."""
        old = self.before.elements.get(name, ()) if self.before else ()
        new = self.after.elements.get(name, ())
        return tuple(sorted(set(new) - set(old), key=_natural)), tuple(sorted(set(old) - set(new), key=_natural))

    def unified(self, *, elements: bool = True) -> Iterator[str]:
        """All of it, or the rules alone, as diff(1) -u shows it; behind each @@ the set or chain that it begins in."""
        old, new = (list(_lines(table, elements=elements)) for table in self)
        for line in unified_diff(old, new, "loaded", "to be loaded", lineterm=""):
            yield line + _where(old, line)


def of(text: str) -> Difference:
    """What loading the text would change. Raises FirewallError where it would fail, or cannot be tried."""
    before = ruleset.snapshot()
    # A thread can be in another network than its process, and takes that along when it ends.
    with ThreadPoolExecutor(1) as aside:
        return Difference(before, aside.submit(_tried, before, text).result())


def _tried(before: Snapshot | None, text: str) -> Snapshot:
    _leave_network()
    if before is not None:
        # What hangs on an interface of this host's cannot be there. Then the rules alone are compared: what apply
        # would leave empty shows as gone.
        with suppress(FirewallError):
            ruleset.load(before.text)
    ruleset.load(text)
    after = ruleset.snapshot()
    assert after is not None
    return after


def _leave_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        message = f"a network namespace, to try the rules in, cannot be made: {os.strerror(number)}"
        if isinstance(OSError(number, ""), PermissionError):
            raise UntriedError(message, "CAP_SYS_ADMIN is needed: run it as root", NO_PERMISSION)
        raise UntriedError(message, "this kernel has none (CONFIG_NET_NS), or has too many", UNAVAILABLE)


# ---- text


def _text(table: Snapshot) -> str:
    return "\n".join(_lines(table))


def _lines(table: Snapshot | None, *, elements: bool = True) -> Iterator[str]:
    """The table in lines, an element on each: sets and chains by name, since their order means nothing."""
    if table is None:
        return
    head, *blocks, end = (
        table.rules.replace("\n}\n", "\n\n}\n").replace("{\n\t", "{\n\n\t", 1).rstrip("\n").split("\n\n")
    )
    yield head
    for block in sorted(blocks):
        *lines, last = block.split("\n")
        yield from lines
        kind, name, *_ = lines[0].split()
        if elements and kind == "set":
            yield from (f"\t\telement {element}" for element in sorted(table.elements.get(name, ()), key=_natural))
        yield last
    yield end


def _natural(text: str) -> list[int | str]:
    """A key that puts 80 before 443."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", text)]


def _where(lines: list[str], line: str) -> str:
    found = _HUNK.match(line)
    begun = [block for block in lines[: int(found[1])] if _BLOCK.match(block)] if found else []
    return f" {begun[-1].strip().rstrip(' {')}" if begun else ""
