"""What the doctor says: a finding, how bad it is, and what that means for the exit code. Pure."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from ..errors import BAD_CONFIG, FAILURE, NO_PERMISSION


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"  # worth knowing, and no reason to do anything
    UNSEEN = "unseen"  # it could not be looked at
    WARNING = "warning"  # somebody should do something; doors may open all the same
    ERROR = "error"  # a door does not open, or is not closed


_NAMED = 8  # of many things, what a line names

# The check that everything else depends on has an exit code of its own.
CONFIG = "config"


class Finding(NamedTuple):
    """What a check found. `check` is its id, which scripts may rely on.

    remedy: a command line that can be copied, with more for a person behind a #; or, where no command does it, words.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """The exit code that the worst of them is worth: warnings alone are no failure."""
    told = tuple(findings)
    errors = {finding.check for finding in told if finding.level is Level.ERROR}
    if CONFIG in errors:
        return BAD_CONFIG
    if errors:
        return FAILURE
    return NO_PERMISSION if any(finding.level is Level.UNSEEN for finding in told) else 0


def counted(count: int, word: str) -> str:
    """So many of something: 1 check, 2 checks, 1,024 ports."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def some(things: Iterable[object]) -> str:
    """The first few of many, and how many there are besides."""
    every = sorted(map(str, things)) if isinstance(things, (set, frozenset)) else list(map(str, things))
    return ", ".join(every[:_NAMED]) + (f" and {len(every) - _NAMED} more" if every[_NAMED:] else "")
