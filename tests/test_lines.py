"""Bytes to lines, however they come."""

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock.lines import Splitter, Told, lines
from logknock.records import MAX_LINE


def test_the_same_thing_is_told_once_a_minute() -> None:
    told = Told("x")
    came = []
    for second in range(150):
        told.count("happened {n} times")
        came += told.due(second)
    assert came == [f"x: happened {n} times" for n in (1, 60, 60)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"a\n\nb\n", [b"a", b"", b"b"], id="lines"),
        pytest.param(b"a\nb", [b"a", b"b"], id="half a line at the end"),
        pytest.param(b"x" * MAX_LINE + b"\n", [b"x" * MAX_LINE], id="the longest line"),
        pytest.param(b"x" * (MAX_LINE + 1) + b"\na", [b"x" * (MAX_LINE + 1), b"a"], id="one byte more"),
        pytest.param(b"x" * (10 << 20) + b"\na\n", [b"x" * (MAX_LINE + 1), b"a"], id="10 MiB in a line"),
        pytest.param(b"x" * (10 << 20), [b"x" * (MAX_LINE + 1)], id="10 MiB without a newline"),
        pytest.param(b"\0" * (1 << 20) + b"a\nb\n", [b"a", b"b"], id="NULs where a hole was"),
        pytest.param(b"\0" * 8100 + b"x" * 200 + b"\nb\n", [b"x" * 200, b"b"], id="NULs, and a line over the limit"),
        pytest.param(b"a\0b\n", [b"a\0b"], id="a NUL inside a line"),
    ],
)
def test_lines_of_a_stream(data: bytes, expected: list[bytes]) -> None:
    assert list(lines(BytesIO(data))) == expected


@given(st.lists(st.sampled_from([b"a", b"\n", b"\0", b"x" * 5000, b"line\n", b"\0\0\n"])), st.integers(1, 9000))
def test_a_stream_and_a_pipe_have_the_same_lines(parts: list[bytes], size: int) -> None:
    """However the bytes come; but for half a line at the end, and what is overlong."""
    data = b"".join(parts)
    splitter = Splitter(Told("x"))
    came = [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])]
    assert came == [line for line in lines(BytesIO(data[: data.rfind(b"\n") + 1])) if len(line) <= MAX_LINE]
