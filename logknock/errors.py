"""What a person is told when something cannot be done: one line, a hint, an exit code.

Every error that may reach the command line is one of these; anything else that gets there is a bug.
"""

import sys

# sysexits.h, so that scripts can tell the cases apart.
FAILURE = 1
USAGE = 2
UNAVAILABLE = 69
NO_PERMISSION = 77
BAD_CONFIG = 78

# What to say besides, where the distribution's package of a module may be installed and is still not seen.
UNSEEN_PACKAGES = (
    ""
    if any(path.endswith("/dist-packages") for path in sys.path)
    else "; this Python does not see such packages: use /usr/bin/python3, or its `-m venv --system-site-packages`"
)


class LogknockError(Exception):
    """Something that the operator has to know: what is wrong, what to do next, the process's exit code."""

    def __init__(self, message: str, hint: str = "", exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def report(self) -> list[str]:
        """The lines to print, or to log."""
        return [f"logknock: {self.message}", *([f"hint: {self.hint}"] if self.hint else [])]

    def words(self) -> str:
        """The same as a part of a line."""
        return self.message + (f" (hint: {self.hint})" if self.hint else "")


class FirewallError(LogknockError):
    """The kernel's packet filter, or libnftables, refused something; the message holds its own words."""


class SourceError(LogknockError):
    """A log source cannot be opened or read."""


def printable(text: str) -> str:
    """One line that leaves the terminal as it was, whatever the text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
