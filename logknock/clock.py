"""Whether this host's clock can be trusted, as the kernel has been told. Asks, and sets nothing.

The sources: adjtimex(2), and linux/timex.h for what the fields and the numbers mean.
"""

import ctypes

_STA_UNSYNC = 0x0040  # a status bit: nobody keeps the clock right
_TIME_ERROR = 5  # a result: the clock is not synchronised, or its error is too large

_ROOM = 512  # bytes; struct timex has 208 at most, and a kernel or a C library to come may write more


class _Timex(ctypes.Structure):
    """The beginning of struct timex. With modes 0 nothing is set, and anybody may ask."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * _ROOM),
    )


def is_synchronised() -> bool | None:
    """Whether something keeps the clock right (chrony, timesyncd, ntpd); None where the kernel may not be asked."""
    try:
        ask = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):  # a C library without it
        return None
    timex = _Timex()
    result = ask(ctypes.byref(timex))
    if result < 0:  # a filter of system calls refuses it: ProtectClock= of systemd, or a container's
        return None
    return result != _TIME_ERROR and not timex.status & _STA_UNSYNC
