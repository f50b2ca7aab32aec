"""Any data as TOML in any style, with the line of each key: what the reader of files is held against."""

import random
import re
from typing import Any

from hypothesis import strategies as st


class Writer:
    """Writes a dict as TOML in many styles, and notes the line of each key and element as it goes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.text = ""
        self.lines: dict[tuple[str | int, ...], int] = {}

    def mark(self, path: tuple[str | int, ...], known: int = 0) -> None:
        for end in range(known + 1, len(path) + 1):
            self.lines.setdefault(path[:end], self.text.count("\n") + 1)

    def key(self, key: str) -> str:
        if re.fullmatch("[A-Za-z0-9_-]+", key) and self.rng.random() < 0.7:
            return key
        return self.quoted(key)

    def quoted(self, text: str, keep: str = "") -> str:
        plain = "".join(c if c in keep or (c.isprintable() and c not in '"\\') else f"\\U{ord(c):08x}" for c in text)
        return f'"{plain}"'

    def table(self, path: tuple[str | int, ...], data: dict[str, Any]) -> None:
        """The table's own keys; then those of its tables that get a header."""
        later = {key: value for key, value in data.items() if self.gets_header(value)}
        for key, value in data.items():
            if key not in later:
                self.mark((*path, key))
                self.text += f"{self.key(key)} = "
                self.value((*path, key), value)
                self.text += self.rng.choice(["\n", " # [x]\n", "\n\n"])
        for key, value in later.items():
            for at, inner in enumerate(value) if isinstance(value, list) else [(None, value)]:
                here = (*path, key) if at is None else (*path, key, at)
                self.mark(here)
                names = ".".join(self.key(part) for part in here if isinstance(part, str))
                self.text += f"[{names}]\n" if at is None else f"[[ {names} ]] # {{\n"
                self.table(here, inner)

    def gets_header(self, value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(isinstance(inner, dict) for inner in value) and self.rng.random() < 0.5
        return isinstance(value, dict) and self.rng.random() < 0.7

    def value(self, path: tuple[str | int, ...], value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for at, (key, inner) in enumerate(value.items()):
                self.text += ", " if at else " "
                self.mark((*path, key))
                self.text += f"{self.key(key)} = "
                self.value((*path, key), inner)
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for at, inner in enumerate(value):
                self.text += self.rng.choice(["", " ", "\n", " # ]\n"])
                self.mark((*path, at))
                self.value((*path, at), inner)
                self.text += ","
            self.text += "]"
        elif isinstance(value, str):
            self.string(value)
        else:
            self.text += str(value).lower() if isinstance(value, bool | float) else str(value)

    def string(self, text: str) -> None:
        if self.rng.random() < 0.3:
            self.text += '""' + self.quoted("\n" + text, keep="\n") + '""'
        elif self.rng.random() < 0.3 and "'" not in text and text.isprintable():
            self.text += f"'{text}'"
        else:
            self.text += self.quoted(text)


scalars = st.text(max_size=8) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats() | st.dates()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)
