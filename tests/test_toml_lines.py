"""On which line a key is found, whatever stands around it."""

import random
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock.toml_lines import find_lines

from .toml_writer import Writer, values

TRICKY = r'''# [not.a.table] = "x"
title = """
[nor.this]
a = 1 \""" " ""
""""" # five quotes
[ a . "b.c" ] # ]
'd e' = [ # x = [
  1, "]", '"',   # ],
  { f = [[2],
    [3]], g.h = 4 },
  \'\'\'
k = 1\'\'\',
]
l = 2026-01-02 03:04:05 # m = 1
n.o.p = +inf
[[q]]
r = 1
[[q]]
r = 2
[[q.s]]
[q.s.t]
u = 'v'
w=1'''.replace("\\'", "'")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("a",), 6),
        (("a", "b.c"), 6),
        (("a", "b.c", "d e"), 7),
        (("a", "b.c", "d e", 0), 8),
        (("a", "b.c", "d e", 2), 8),
        (("a", "b.c", "d e", 3, "f"), 9),
        (("a", "b.c", "d e", 3, "f", 1, 0), 10),
        (("a", "b.c", "d e", 3, "g", "h"), 10),
        (("a", "b.c", "d e", 4), 11),
        (("a", "b.c", "l"), 14),
        (("a", "b.c", "n", "o", "p"), 15),
        (("q",), 16),
        (("q", 0, "r"), 17),
        (("q", 1, "r"), 19),
        (("q", 1, "s", 0), 20),
        (("q", 1, "s", 0, "t"), 21),
        (("q", 1, "s", 0, "t", "w"), 23),
    ],
)
def test_a_key_is_found_on_its_line(path: tuple[str | int, ...], line: int) -> None:
    """Whatever stands around it."""
    assert tomllib.loads(TRICKY)
    assert find_lines(TRICKY, {path})[path] == line


@pytest.mark.parametrize(
    ("path", "line"),
    [(("a", "b.c", "x"), 6), (("a", "x", "y"), 6), (("q", 1, "s", 0, "t", "x", 3), 21), (("x",), None)],
)
def test_a_key_that_is_not_there_has_its_tables_line(path: tuple[str | int, ...], line: int | None) -> None:
    """A missing key is reported where it would belong."""
    assert find_lines(TRICKY, {path}).get(path) == line


@pytest.mark.parametrize("text", ["a = 1\nb := 2\nc = 3", "a = ,c = 3"])
def test_a_text_that_is_not_understood_has_no_further_lines(text: str) -> None:
    """A newer TOML may have more notations than are known here."""
    assert find_lines(text, {("a",), ("c",)}) == {("a",): 1}


def assert_same(read: Any, written: Any) -> None:
    """Equal, with nan equal to itself: what the writer wrote is what it was to write."""
    if isinstance(written, dict):
        assert read.keys() == written.keys()
        for key, value in written.items():
            assert_same(read[key], value)
    elif isinstance(written, list):
        for one, other in zip(read, written, strict=True):
            assert_same(one, other)
    else:
        assert repr(read) == repr(written)


@given(st.dictionaries(st.text(max_size=4), values, max_size=6), st.randoms(use_true_random=False))
def test_every_key_of_any_file_is_found_on_its_line(data: dict[str, Any], rng: random.Random) -> None:
    """Written in any style: headers, dotted and quoted keys, inline tables, texts and lists over several lines."""
    writer = Writer(rng)
    writer.table((), data)
    assert_same(tomllib.loads(writer.text), data)
    assert find_lines(writer.text, set(writer.lines)) == writer.lines
