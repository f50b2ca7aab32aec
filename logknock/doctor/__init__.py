"""What commonly goes wrong, looked at in the order in which a person would: from the kernel up to the door.

Rule 1: nothing on the host is changed, and no lock or group is held, so a daemon may start at any moment. Rule 2: what
cannot be looked at is said, with what it takes, and the rest is looked at all the same. Rule 3: each check is a small
function that gives findings with an id that scripts may rely on; docs/howto/doctor.md lists them.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from ..config import Config, ConfigError, load
from ..errors import NO_PERMISSION, LogknockError
from ..ownership import SERVICE, kept_from_service
from . import doors, firewall, kernel, logs
from .case import Case, command
from .finding import CONFIG, Finding, Level, counted, exit_code, some
from .host import Host

__all__ = ["Finding", "Level", "counted", "examine", "exit_code"]

Check = Callable[[Case], Iterator[Finding]]

# In order; each with the id under which is told what keeps it from looking.
_CHECKS: tuple[tuple[str, Check], ...] = (
    ("capabilities", kernel.capabilities),
    ("nftables", kernel.nftables),
    ("kernel-nflog", kernel.modules),
    ("nf-log-all-netns", kernel.namespace),
    ("clock", kernel.clock),
    ("rp-filter", kernel.reverse_path),
    ("ipv6", kernel.ipv6),
    ("table", firewall.table),
    ("set-watched", firewall.sets),
    ("set-full", firewall.full),
    ("door-set", firewall.door_sets),
    ("nflog-group", logs.group),
    ("journald", logs.journald),
    ("journal", logs.journal),
    ("file", logs.files),
    ("log-rule", firewall.logs),
    ("dropped-before", firewall.before),
    ("state", doors.state),
    ("daemon", doors.daemon),
    ("onetime", doors.onetime),
    ("clients", doors.clients),
    ("trusted", doors.trusted),
    ("trap-listening", doors.traps),
    ("knock-listening", doors.knocks),
    ("door-service", doors.services),
    ("dropped-after", firewall.after),
    ("mark-accepted", firewall.mark),
    ("door-rule", firewall.door_rules),
    ("door-family", doors.families),
    ("ssh-open", doors.ssh),
)


def examine(path: Path, host: Host | None = None) -> Iterator[Finding]:
    """All findings for the configuration in that file, as they come; without one there is nothing else to look at."""
    try:
        config = load(path)
    except ConfigError as error:
        yield from _unusable(path, error)
        return
    yield _configuration(config)
    for found in kept_from_service(config.file, config.onetime_files):
        text = f"{found.path}: the user {SERVICE}, as whom the service runs, cannot read it"
        yield Finding(CONFIG, Level.ERROR, text, found.remedy)
    case = Case(config, host or Host())
    told: set[str] = set()
    with closing(case):
        for check, look in _CHECKS:
            yield from _looked(check, look, case, told)


def _looked(check: str, look: Check, case: Case, told: set[str]) -> Iterator[Finding]:
    """A check's findings; where it could not look, that, and the same reason is an error once only."""
    try:
        yield from look(case)
    except LogknockError as error:
        seen = error.exit_code == NO_PERMISSION or error.message in told
        told.add(error.message)
        level = Level.UNSEEN if seen else Level.ERROR
        yield Finding(check, level, error.message, case.hint(error.hint))


def _unusable(path: Path, error: ConfigError) -> Iterator[Finding]:
    level = Level.UNSEEN if error.exit_code == NO_PERMISSION else Level.ERROR
    for problem in error.problems:
        yield Finding(CONFIG, level, str(problem), problem.hint)


def _configuration(config: Config) -> Finding:
    count = len(config.warnings)
    if not count:
        names = [door.name for door in config.doors]
        return Finding(CONFIG, Level.OK, f"{config.file}: {'door' if len(names) == 1 else 'doors'} {some(names)}")
    first = config.warnings[0]
    more = f" (and {count - 1} more)" if count > 1 else ""
    return Finding(CONFIG, Level.WARNING, f"{first}{more}", command("check", config.file))
