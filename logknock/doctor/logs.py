"""Checks of where records come from: the NFLOG group and who has it, the journal and journald, files."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from ..errors import NO_PERMISSION, LogknockError
from ..records import Grammar
from ..sources.journal import Journal
from ..sources.logfile import LogFile
from .case import Case
from .finding import Finding, Level
from .host import Process

# systemd's names and numbers of levels; our own rules log at info, others at warning if they say nothing (nft(8)).
_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_OUR_LEVEL, _USUAL_LEVEL = 6, 4

# Seconds: a log that is so far ahead of the clock is no matter of two clocks that are read one after the other.
_AHEAD = 5.0

_GROUPS = 65_536


def group(case: Case) -> Iterator[Finding]:
    """The NFLOG group: free, or held by our own daemon. It is not bound to find out: that would take it away."""
    check, config = "nflog-group", case.config
    if "nflog" not in config.sources:
        yield from _read_by_others(case)
        return
    case.host.need_administrator()
    port = case.host.groups.get(config.group)
    running = case.daemon.pid if case.daemon.runs else None
    if port is None and running is None:
        yield Finding(check, Level.OK, f"NFLOG group {config.group} is free")
    elif port is None:
        if case.host.shares_network(running or 0) is not False:
            text = f"the daemon (process {running}) does not read NFLOG group {config.group}"
            yield Finding(check, Level.ERROR, text, case.reload(running or 0))
    else:
        holder = case.host.behind(port)
        if running in (port, holder.pid):
            yield Finding(check, Level.OK, f"the daemon reads NFLOG group {config.group}")
        else:
            yield _held(case, holder)


def _read_by_others(case: Case) -> Iterator[Finding]:
    """The groups that another program makes a file of, or writes to a pipe: somebody has to read them."""
    groups = {log.group for log in case.host.listing.logs if log.group is not None and case.is_read(log)}
    for number in sorted(groups):
        if number in case.host.groups:
            text = f"{case.host.behind(case.host.groups[number])} reads NFLOG group {number}"
            yield Finding("nflog-group", Level.OK, text)
        else:
            text = f"rules log to NFLOG group {number}, and nobody reads that: no line of it is written"
            yield Finding("nflog-group", Level.ERROR, text, "systemctl start ulogd2  # or whatever is to write the log")


def _held(case: Case, holder: Process) -> Finding:
    free = next(number for number in range(case.config.group + 1, _GROUPS) if number not in case.host.groups)
    text = f"NFLOG group {case.config.group} is held by {holder}, and one process may read a group"
    other = f"or set [log] group = {free}, then {case.command('rules apply')}"
    remedy = f"kill {holder.pid}  # {other}" if holder.pid else f"stop it, {other}"
    return Finding("nflog-group", Level.ERROR, text, remedy)


# ---- the journal


def journal(case: Case) -> Iterator[Finding]:
    """The journal can be read, as the daemon would read it."""
    if "journal" not in case.config.sources:
        return
    path = case.config.journal
    found = _opened("journal", lambda: Journal(Grammar(case.config.wanted), path).close())
    yield found or Finding("journal", Level.OK, f"{path or 'the journal'} can be read")
    if path is None and found is None:
        yield from _newest(case)


def _opened(check: str, attempt: Callable[[], object]) -> Finding | None:
    """What is wrong when it is opened; None: nothing."""
    try:
        attempt()
    except LogknockError as error:
        level = Level.UNSEEN if error.exit_code == NO_PERMISSION else Level.ERROR
        return Finding(check, level, error.message, error.hint)
    return None


def _newest(case: Case) -> Iterator[Finding]:
    """The kernel's newest entry: there is one of this boot, and it is not ahead of the clock."""
    from systemd import journal as systemd

    with closing(systemd.Reader()) as reader:
        reader.this_boot()
        reader.add_match(_TRANSPORT="kernel", SYSLOG_IDENTIFIER="kernel")
        reader.seek_tail()
        entry = reader.get_previous()
    check = "journal-kernel"
    if not entry:
        text = (
            "the journal has no entry of the kernel since the machine was started: journald does not read its log here"
        )
        remedy = 'look at ReadKMsg= and /dev/kmsg; in a container use source = "nflog"'
        yield Finding(check, Level.WARNING, text, remedy)
        return
    stamp = entry["__REALTIME_TIMESTAMP"].timestamp()
    ahead = _ahead("the kernel's newest entry in the journal", stamp)
    yield ahead or Finding(check, Level.OK, f"the kernel's newest entry is {_ago(stamp)} old")


def _ahead(what: str, stamp: float) -> Finding | None:
    if stamp <= time.time() + _AHEAD:
        return None
    seconds = stamp - time.time()
    text = f"{what} is {seconds:,.0f} s ahead of the clock: what is logged now seems older than that"
    return Finding("log-clock", Level.WARNING, text, "timedatectl  # the clock was set back, or is wrong now")


def _ago(stamp: float) -> str:
    seconds = max(0, int(time.time() - stamp))
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def journald(case: Case) -> Iterator[Finding]:
    """Journald's reach: it runs, reads the kernel's log, keeps what it reads, and drops none for its level."""
    if "journal" not in case.config.sources or case.config.journal is not None:
        return
    check = "journald"
    found = list(_settings(case))
    if not case.host.path("/dev/kmsg").exists():
        text = "there is no /dev/kmsg, as in most containers: journald cannot read the kernel's log"
        found.append(Finding(check, Level.ERROR, text, 'source = "nflog" in [log], which needs no such thing'))
    if not case.host.runs("systemd-journald"):
        found.append(Finding(check, Level.ERROR, "systemd-journald does not run", "systemctl start systemd-journald"))
    yield from found or [Finding(check, Level.OK, "runs, reads the kernel's log and keeps it")]


def _settings(case: Case) -> Iterator[Finding]:
    check, settings = "journald", case.host.journald
    restart = "systemctl restart systemd-journald"
    where = "/etc/systemd/journald.conf or journald.conf.d"
    if settings.get("ReadKMsg", "yes").lower() in ("no", "false", "0", "off", "n", "f"):
        text = "ReadKMsg=no: journald does not read the kernel's log, and so no knock"
        yield Finding(check, Level.ERROR, text, f"{restart}  # with ReadKMsg=yes in {where}")
    if settings.get("Storage", "auto").lower() == "none":
        text = "Storage=none: journald keeps nothing, and so there is nothing to read"
        yield Finding(check, Level.ERROR, text, f"{restart}  # with Storage=volatile in {where}")
    kept = settings.get("MaxLevelStore", "debug").lower()
    number = _LEVELS.index(kept) if kept in _LEVELS else int(kept) if kept.isdigit() else len(_LEVELS)
    level = _OUR_LEVEL if case.guards and "nflog" not in case.config.sources else _USUAL_LEVEL
    if number < level:
        text = f"MaxLevelStore={kept}: journald drops what rules log, which is of level {_LEVELS[level]}"
        yield Finding(check, Level.ERROR, text, f"{restart}  # with MaxLevelStore=debug in {where}")


# ---- files and pipes


def files(case: Case) -> Iterator[Finding]:
    """Each file: there, readable, and nobody's but the log daemon's to write (T31), as the daemon would open it."""
    for path in case.config.files if "file" in case.config.sources else ():
        yield from _file(case, path)
    if "stdin" in case.config.sources:
        yield Finding("stdin", Level.NOTE, "standard input is the daemon's, and is not looked at here")


def _file(case: Case, path: Path) -> Iterator[Finding]:
    check = "file"
    found = _opened(check, lambda: LogFile(path, Grammar(case.config.wanted)).close())
    if found:
        yield found
        return
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:
        text = f"{path} is not there: nothing is read before somebody writes it"
        remedy = "systemctl status rsyslog  # or name the file that your log daemon writes kern.* to: [log] file.path"
        yield Finding(check, Level.WARNING, text, remedy)
        return
    except OSError as error:
        yield Finding(check, Level.ERROR, f"{path}: {error.strerror}", "[log] file.path names a file")
        return
    yield _ahead(f"the last change of {path}", written) or Finding(
        check, Level.OK, f"{path}: written {_ago(written)} ago"
    )
