"""How another program's configuration is written as ours: strings of TOML, comments, and what is said of all of a kind.

Rule 1: pure; texts come in and texts go out.
Rule 2: no text of the original ends the string, the comment or the message that it stands in: what is not printable is
written as its code.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol, Self, TypeVar

from .knock import Service

BLANK = " \t\n\v\f\r"  # C's isspace()

_WIDTH = 116
_MAX_SHOWN = 60
_IN_QUOTES = {'"': '\\"', "\\": "\\\\"}


class _Finding(Protocol):
    """A NamedTuple of what the operator has to hear of, a message in it."""

    @property
    def message(self) -> str: ...

    def _replace(self, *, message: str) -> Self: ...


_FindingT = TypeVar("_FindingT", bound=_Finding)


def toml_string(text: str) -> str:
    """The text as a string of TOML."""
    return '"' + "".join(_IN_QUOTES.get(c) or (c if c.isprintable() else f"\\U{ord(c):08X}") for c in text) + '"'


def toml_list(values: Iterable[object]) -> str:
    """What they read as, as a list of TOML."""
    return f"[{', '.join(toml_string(str(value)) for value in values)}]"


def original(line: str) -> str:
    """A line of the original as it stands in a comment of ours."""
    return f"#| {_escaped(line.rstrip(BLANK))}"


def comment(text: str) -> Iterator[str]:
    """The text as lines of a comment."""
    for line in textwrap.wrap(_escaped(text), _WIDTH, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def head(command: str, shown: str, services: Iterable[Service], who: str) -> Iterator[str]:
    """The comment on top: which command of ours made it of which file, and to whom the services stay open."""
    yield from comment(f"Made by `logknock {command}` from {shown}, whose own lines stand behind `#|`.")
    if named := ", ".join(map(str, dict.fromkeys(services))):
        yield from comment(
            f"Once its rules are loaded, logknock closes {named} to all but {who}, before any other firewall sees a"
            " packet. What it lets pass still meets your own firewall, which must accept it from everybody by then."
        )


def cited(text: str) -> str:
    """The text in quotes, or its beginning, as a message has it."""
    return f"'{shortened(text)}'"


def shortened(text: str) -> str:
    """The text, or its beginning, as a message has it."""
    return _escaped(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


def summed(findings: list[_FindingT]) -> tuple[_FindingT, ...]:
    """Each message once, where it first holds, and how often."""
    more = Counter(finding.message for finding in findings)
    first = {finding.message: finding for finding in reversed(findings)}
    return tuple(
        finding._replace(message=f"{text} ({more[text] - 1} more like it)") if more[text] > 1 else finding
        for text, finding in reversed(first.items())
    )


def _escaped(text: str) -> str:
    """The text as a comment may hold it: tabs stay, and what was no UTF-8 is shown as its bytes."""
    return "".join(c if c.isprintable() or c == "\t" else _code(c) for c in text)


def _code(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
