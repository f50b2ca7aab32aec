"""What systemd gives the daemon (systemd.exec(5)), and what it hears of it: ready, how it stands, alive (sd_notify(3)).

Rule 1: telling never blocks: what finds no room is told again a second later, and nothing that matters is lost. Rule 2:
a sign of life says that packets are read, not merely that a process is there. Rule 3: any local user reads the status
(`systemctl show`): nothing that tells of single knocks is in it, or a sequence could be found one port at a time.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from .errors import BAD_CONFIG, LogknockError
from .standing import Standing, brief

# Seconds between two calls of tick(), at most, on a machine that has its breath.
_TICK = 1.0


def runs_host() -> bool:
    """Whether this host is run by systemd (as sd_booted(3) finds out)."""
    return Path("/run/systemd/system").is_dir()


class Systemd:
    """The service manager that has started this process; where none has, all of it does nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        if self._address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
            if self._address.startswith("@"):  # an abstract one, as unix(7) writes it
                self._address = f"\0{self._address[1:]}"
        self._patience = _patience(environment)
        self._untold: list[str] = []
        self._shown = ""
        self._alive_at = 0.0

    def tell(self, state: str) -> None:
        """Tell a change of state: READY=1, RELOADING=1, STOPPING=1."""
        if self._socket is not None:
            self._untold.append(state)
            self._send_untold()

    def ready(self, standing: Standing) -> None:
        """The daemon does what it is there for, and stands like this."""
        self.tell(f"READY=1\nSTATUS={brief(standing)}")

    def tick(self, standing: Standing, now: float, *, well: bool) -> None:
        """A second has passed; `well`: all sources are read. `now` is time.monotonic()."""
        if self._socket is None:
            return
        self._send_untold()
        if self._untold:
            return
        status = brief(standing)
        if status != self._shown and self._send(f"STATUS={status}"):
            self._shown = status
        # Twice in the time that systemd waits, as sd_watchdog_enabled(3) advises; this comes again after a tick only.
        if well and self._patience and now + _TICK >= self._alive_at and self._send("WATCHDOG=1"):
            self._alive_at = now + self._patience / 2

    def _send_untold(self) -> None:
        while self._untold and self._send(self._untold[0]):
            self._untold.pop(0)

    def _send(self, state: str) -> bool:
        """Whether it is told, or nobody is there to hear it; False: there is no room now."""
        assert self._socket is not None
        try:
            self._socket.sendto(state.encode(errors="replace"), self._address)
        except BlockingIOError:
            return False
        except OSError:  # the manager is gone, or was never there: the daemon's work is the same
            pass
        return True


def check_directories(state: Path, runtime: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Raise LogknockError where the configuration names directories that this service may not write.

    Of a unit that leaves others read-only (ProtectSystem=strict), an instance's most of all.
    """
    for key, path, name in (("state", state, "STATE_DIRECTORY"), ("runtime", runtime, "RUNTIME_DIRECTORY")):
        given = environment.get(name, "")
        if given and str(path) not in given.split(":") and not os.access(path, os.W_OK):
            message = f"[paths] {key} is {path}, where this service may not write; its own is {given}"
            raise LogknockError(message, f'in the configuration: paths.{key} = "{given}"', BAD_CONFIG)


def _patience(environment: Mapping[str, str]) -> float:
    """Seconds without a sign of life after which systemd kills this process; 0.0: it does not."""
    process, micros = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
    if not micros.isdecimal() or process not in ("", str(os.getpid())):
        return 0.0
    return int(micros) / 1_000_000
