"""On which line of a TOML text each key stands, which tomllib does not say.

Rule 1: pure: a text and key paths in, line numbers out.
Rule 2: tomllib has read the text before, so what is matched here may be looser than the grammar.
Rule 3: what is not understood has no line, and neither has what follows it; that is all the harm it does.
"""

import re
import tomllib
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]  # keys, and the places of elements in lists

# The notations of TOML 1.0.
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_PARTS = re.compile(_PART)
_DOTTED = rf"({_PART}(?:[ \t]*\.[ \t]*{_PART})*)"
_KEY = re.compile(rf"{_DOTTED}[ \t]*=")
_HEADER = re.compile(rf"(\[\[?)[ \t]*{_DOTTED}[ \t]*\]\]?")
_SCALAR = re.compile(
    r"""\"{3}(?:[^"\\]|\\.|"(?!""))*"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,\]}#][^,\]}#\n]*""",
    re.DOTALL,
)


def find_lines(text: str, wanted: set[KeyPath]) -> dict[KeyPath, int]:
    """The lines of these keys and elements; for one that is not there, its table's."""
    sought = {path[:end] for path in wanted for end in range(1, len(path) + 1)}
    found: dict[KeyPath, int] = {}
    line, counted = 1, 0
    for path, at in _places(text):
        if path in sought and path not in found:
            line, counted = line + text.count("\n", counted, at), at
            found[path] = line
    for path in sorted(sought - found.keys(), key=len):
        if path[:-1] in found:
            found[path] = found[path[:-1]]
    return found


def _places(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Each key and each element of a list, and where it begins, in order; ends early where it does not understand."""
    last: dict[KeyPath, int] = {}
    stack: list[tuple[KeyPath, int | None]] = [((), None)]  # what is open: its path, and in a list the next element
    at = _skip(text, 0)
    while at < len(text):
        path, index = stack[-1]
        nested = len(stack) > 1
        if nested and text[at] in ",]}":
            if text[at] != ",":
                stack.pop()
            at = _skip(text, at + 1)
            continue
        if not nested and (header := _HEADER.match(text, at)):
            for path in _header_paths(header, last):
                yield path, at
            stack[0] = (path, None)
            at = _skip(text, header.end())
            continue
        if index is None:
            key = _KEY.match(text, at)
            if key is None:
                return
            for part in _keys(key[1]):
                path += (part,)
                yield path, at
            at = _skip(text, key.end())
        else:
            stack[-1] = (path, index + 1)
            path += (index,)
            yield path, at
        if text.startswith(("[", "{"), at):
            stack.append((path, 0 if text[at] == "[" else None))
            at = _skip(text, at + 1)
        elif value := _SCALAR.match(text, at):
            at = _skip(text, value.end())
        else:
            return


def _header_paths(header: re.Match[str], last: dict[KeyPath, int]) -> list[KeyPath]:
    """The tables that `[a.b]` or `[[a.b]]` names, from the outermost; `last` has the last index of each array."""
    paths: list[KeyPath] = []
    path: KeyPath = ()
    keys = _keys(header[2])
    for depth, key in enumerate(keys, 1):
        path += (key,)
        paths.append(path)
        if depth == len(keys) and header[1] == "[[":
            last[path] = last.get(path, -1) + 1
        if path in last:
            path += (last[path],)
            paths.append(path)
    return paths


def _keys(dotted: str) -> list[str]:
    """The parts of a dotted key, as tomllib reads them where they are quoted."""
    parts = _PARTS.findall(dotted)
    return [next(iter(tomllib.loads(f"{part} = 0"))) if part[0] in "\"'" else part for part in parts]


def _skip(text: str, at: int) -> int:
    """Past blanks, line ends and comments."""
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at
