"""A table of TOML as it is written: asked for its keys one by one, it notes what is wrong with each.

Rule 1: a wrong value is noted and its default is given, so that the reading goes on and all errors come at once.
Rule 2: a key that nobody asks for is unknown, and noted. Rule 3: what a value means is its parser's business.
"""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from . import config_values as values
from .config_values import WrongError
from .toml_files import MAX_BYTES, Note, Report, short
from .toml_lines import KeyPath

_T = TypeVar("_T")


class Table:
    """A table as it is written: keys are asked for one by one, and a key that nobody asks for is unknown."""

    def __init__(self, name: KeyPath, home: Path, report: Report) -> None:
        self.name = name
        self.wrong: set[str] = set()  # keys with an error
        self.home = home
        self._report = report
        self._written: dict[str, tuple[Path, object]] = {}
        self._known: list[str] = []

    def add(self, file: Path, data: dict[str, Any]) -> None:
        """Take in what a file says; what it says again replaces what was there."""
        self._written.update((key, (file, value)) for key, value in data.items())

    def has(self, key: str) -> bool:
        return key in self._written

    def read(self, key: str, parse: Callable[[object], _T], default: _T) -> _T:
        """The key's value; the default where it is not written or wrong."""
        self._known.append(key)
        if key not in self._written:
            return default
        value = self._try(key, parse, self._written[key][1])
        return default if value is None else value

    def read_list(
        self, key: str, parse: Callable[[object], _T], *, repeats: bool = True, most: int = MAX_BYTES
    ) -> tuple[_T, ...]:
        """The key's elements, without the wrong ones; `repeats` says whether one may stand there twice."""
        elements: list[Any] = self.read(key, values.elements, [])
        if len(elements) > most:
            self.error(key, f"has {len(elements)} elements, and {most} are the most")
        found: list[_T] = []
        seen: set[_T] = set()
        for at, element in enumerate(elements):
            value = self._try(key, parse, element, at)
            if value is None:
                continue
            if value in seen and not repeats:
                self.error(key, f"{value} is named twice", item=at)
            seen.add(value)
            found.append(value)
        return tuple(found)

    def table(self, key: str, header: str = "") -> "Table":
        """A table within this one, to be asked and finished in the same way; `header` is how one would begin."""
        inner = Table((*self.name, key), self.home, self._report)
        header = header or f"[{'.'.join(map(str, inner.name))}]"
        data: dict[str, Any] = self.read(key, values.table(header), {})
        if data:
            inner.add(self._written[key][0], data)
        return inner

    def tables(self, header: str) -> Iterator["Table"]:
        """All tables within this one, whatever they are called; what is there and is none is noted."""
        for key in self._written:
            data: dict[str, Any] = self.read(key, values.table(header), {})
            if key not in self.wrong:
                inner = Table((*self.name, key), self._written[key][0], self._report)
                inner.add(inner.home, data)
                yield inner

    def finish(self) -> None:
        """Note the keys that nobody asked for."""
        for key in self._written:
            if key not in self._known:
                alike = get_close_matches(key, self._known, n=1)
                hint = f"did you mean {alike[0]}?" if alike else f"known here: {', '.join(self._known)}"
                self.error(key, "unknown key", hint)

    def error(self, key: str, message: str, hint: str = "", *, item: int | None = None) -> None:
        """Note an error at the key, at its element `item`, or at the table itself where the key is empty."""
        self.wrong.add(key)
        self._report.errors.append(self._note(key, message, hint, item))

    def warn(self, key: str, message: str, hint: str, *, item: int | None = None) -> None:
        """Note a warning there."""
        self._report.warnings.append(self._note(key, message, hint, item))

    def _try(self, key: str, parse: Callable[[object], _T], value: object, item: int | None = None) -> _T | None:
        try:
            return parse(value)
        except ValueError as error:
            self.error(key, str(error), error.hint if isinstance(error, WrongError) else "", item=item)
            return None

    def _note(self, key: str, message: str, hint: str, item: int | None) -> Note:
        file = self._written[key][0] if key in self._written else self.home
        path = (*self.name, *((key,) if key else ()), *(() if item is None else (item,)))
        return Note(file, path, short(message), short(hint))
