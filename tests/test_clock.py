"""Whether the kernel says that the clock is kept right, and what is said where it may not be asked."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from logknock import clock

# Asks under a filter that refuses adjtimex(2), as systemd's ProtectClock=yes and containers do (seccomp(2)).
REFUSED = """
import ctypes, os, struct
NUMBERS = {"x86_64": (159, 305), "aarch64": (171, 266)}[os.uname().machine]  # adjtimex, clock_adjtime
LOAD, EQUAL, RETURN, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x00050000, 0x7FFF0000
code = [(LOAD, 0, 0, 0), (EQUAL, 1, 0, NUMBERS[0]), (EQUAL, 0, 1, NUMBERS[1])]
code += [(RETURN, 0, 0, ERRNO | 1), (RETURN, 0, 0, ALLOW)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) == 0  # PR_SET_SECCOMP, by a filter
from logknock.clock import is_synchronised
print(is_synchronised())
"""

STATUS = 40 if ctypes.sizeof(ctypes.c_long) == 8 else 20  # where it is in struct timex (linux/timex.h)


def test_it_says_what_the_kernel_says() -> None:
    raw = ctypes.create_string_buffer(512)
    result = ctypes.CDLL(None).adjtimex(raw)
    status = int.from_bytes(raw.raw[STATUS : STATUS + 4], sys.byteorder)
    said = None if result < 0 else result != 5 and not status & 0x40
    assert clock.is_synchronised() is said


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the numbers of system calls differ")
def test_a_kernel_that_may_not_be_asked_has_said_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.parametrize(
    ("result", "status", "said"),
    [
        pytest.param(0, 0x2001, True, id="somebody keeps it right"),
        pytest.param(1, 0x2001, True, id="before a leap second"),
        pytest.param(5, 0x0040, False, id="nobody does"),
        pytest.param(5, 0x2001, False, id="its error is too large"),
        pytest.param(0, 0x0040, False, id="by its status alone"),
        pytest.param(-1, 0, None, id="it may not be asked"),
    ],
)  # fmt: skip
def test_what_each_answer_means(monkeypatch: pytest.MonkeyPatch, result: int, status: int, said: bool | None) -> None:
    """No test may set the clock's state: so the kernel's answers are made here."""

    def adjtimex(pointer: object) -> int:
        timex = pointer._obj  # type: ignore[attr-defined]  # what byref() was given
        timex.status = status
        return result

    monkeypatch.setattr(ctypes, "CDLL", lambda name: type("Library", (), {"adjtimex": staticmethod(adjtimex)}))
    assert clock.is_synchronised() is said


def test_a_c_library_without_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Callable[[object], object] = lambda name: object()  # noqa: E731
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert clock.is_synchronised() is None
