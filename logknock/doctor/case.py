"""What the doctor examines: a configuration, and the host that it is for."""

import re
from functools import cached_property
from pathlib import Path
from shlex import quote

from .. import status
from ..config import Config
from ..firewall import ruleset
from ..firewall.sets import Sets
from ..knock import Service
from ..packet import bare
from .host import Host
from .rules import Log

_DEFAULT = Path("/etc/logknock/logknock.toml")


# Services of one-time and derived sequences that are followed through the rules. There can be 131,070; what drops some
# of them by accident drops them by ranges or all.
_TRIED = 64

_UNITS = ("etc/systemd/system", "run/systemd/system", "lib/systemd/system", "usr/lib/systemd/system")


def command(words: str, file: Path) -> str:
    """A command of ours for this configuration, as it can be copied."""
    return f"logknock {words}" + ("" if file == _DEFAULT else f" -c {quote(str(file))}")


class Case:
    """A configuration and a host; what several checks need of both is found once."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config = config
        self.host = host

    def command(self, words: str) -> str:
        """A command of ours for this configuration, as it can be copied."""
        return command(words, self.config.file)

    def hint(self, words: str) -> str:
        """An error's hint, its commands of ours for this configuration."""
        return re.sub(r"`logknock ([^`]+)`", lambda found: f"`{self.command(found[1])}`", words)

    @property
    def is_unit(self) -> bool:
        """Whether systemd knows the daemon."""
        return any(self.host.path(f"{folder}/logknock.service").exists() for folder in _UNITS)

    def reload(self, pid: int) -> str:
        """The command that has the daemon read the configuration again."""
        return f"kill -HUP {pid}" if pid and not self.is_unit else "systemctl reload logknock"

    @property
    def guards(self) -> bool:
        """Whether our own rules are needed at all."""
        return bool(self.config.guarded)

    def is_read(self, log: Log) -> bool:
        """Whether what is logged so comes to one of the sources."""
        config = self.config
        if "nflog" in config.sources and log.group == config.group:
            return True
        prefixes = {bare(prefix) for prefix in config.wanted.prefixes}
        return self.reads_text and bare(log.prefix) in prefixes and (log.group is None or self.reads_files)

    @property
    def reads_files(self) -> bool:
        """Whether a source is a file or a pipe, which ulogd2 may write from an NFLOG group of its own."""
        return not {"file", "stdin"}.isdisjoint(self.config.sources)

    @property
    def reads_text(self) -> bool:
        """Whether records of this host's rules come as text: not by NFLOG alone, nor from other hosts' journals."""
        return self.reads_files or ("journal" in self.config.sources and self.config.journal is None)

    @cached_property
    def kernel_log(self) -> bool:
        """Whether records come through the kernel's log. Raises FirewallError where the rules cannot be seen."""
        by_nflog = self.reads_files and any(
            log.group is not None for log in self.host.listing.logs if self.is_read(log)
        )
        return self.reads_text and not (by_nflog and "journal" not in self.config.sources)

    @cached_property
    def daemon(self) -> status.Running:
        """Whether the daemon runs; no lock is taken to find out."""
        return status.find_daemon(self.config.state)

    @cached_property
    def knocked(self) -> frozenset[Service]:
        """All that is knocked on, by one-time sequences too, as far as their files can be read."""
        return self.config.knocked | self._onetime[0]

    @cached_property
    def tried(self) -> tuple[Service, ...]:
        """Of all that is knocked on, what is followed through the rules."""
        fixed = {service for door in self.config.doors for service in door.sequence}
        others = sorted(self.knocked - fixed)
        return (*sorted(fixed), *others[:: len(others) // _TRIED + 1])

    @property
    def knows_all_knocks(self) -> bool:
        """Whether nothing is wrong with any file of one-time sequences."""
        return not self._onetime[1]

    @cached_property
    def _onetime(self) -> tuple[frozenset[Service], tuple[str, ...]]:
        return ruleset.knocked_once(self.config)

    def close(self) -> None:
        """Let go of what was opened to ask."""
        if "sets" in self.__dict__:
            self.sets.disconnect()

    @cached_property
    def sets(self) -> Sets:
        """A way to ask the kernel for sets; nothing is ever written by it. Raises FirewallError."""
        self.host.need_administrator()
        return Sets()
