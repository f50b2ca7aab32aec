"""Checks of the doors: what listens where, one-time files, who is trusted, and the daemon that opens them."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import lockout, spa, status
from ..control import NAME, ControlError, ask
from ..errors import NO_PERMISSION, LogknockError
from ..knock import Service
from ..ownership import service_user
from ..packet import TCP
from ..store import DATABASE, LOCK, PARTS, StoreError, distrust, distrust_file
from .case import Case
from .finding import Finding, Level, counted, some
from .host import is_stopped, started
from .rules import services_of

# Seconds by which a file that was written just before the daemon's start may seem to be newer.
_SLACK = 1.0

# Seconds that the daemon has to answer: it takes milliseconds, under load too.
_PATIENCE = 2.0

# Whom it is asked of: nobody has this address (RFC 5737).
_NOBODY = "192.0.2.1"


def trusted(case: Case) -> Iterator[Finding]:
    """Trusted: everybody."""
    every = [net for net in case.config.firewall.trusted if not net.prefixlen]
    if every:
        text = f"[firewall] trusted has {some(every)}, which is everybody: nothing is closed"
        yield Finding(
            "trusted", Level.WARNING, text, f"name networks in [firewall] trusted, then {case.command('rules apply')}"
        )
    else:
        yield Finding("trusted", Level.OK, "not everybody")


def traps(case: Case) -> Iterator[Finding]:
    """Traps on which something listens by now: whoever uses that fails a knock."""
    if not case.guards:
        return
    taken = [(service, case.host.listens(service)) for service in sorted(services_of(case.host.elements("traps")))]
    found = [f"{who.name or 'something'} on {service}" for service, who in taken if who]
    if found:
        text = f"{some(found)} {_listen(found)} on a trap: to use it is a wrong knock"
        yield Finding(
            "trap-listening",
            Level.WARNING,
            text,
            f"{case.command('rules apply')}  # it makes no trap of what is listened on",
        )
    else:
        yield Finding("trap-listening", Level.OK, "nothing listens on a trap")


def knocks(case: Case) -> Iterator[Finding]:
    """Knock ports on which something listens: to use it is a knock, and a scan shows the port."""
    taken = [(service, case.host.listens(service)) for service in sorted(case.knocked)]
    found = [f"{who.name or 'something'} on {service}" for service, who in taken if who]
    if found:
        text = f"{some(found)} {_listen(found)} where a door is knocked on: to use it is a knock"
        yield Finding("knock-listening", Level.WARNING, text, "choose another port for the sequence")
    else:
        yield Finding("knock-listening", Level.OK, "nothing listens where doors are knocked on")


def _listen(found: list[str]) -> str:
    return "listens" if len(found) == 1 else "listen"


def services(case: Case) -> Iterator[Finding]:
    """What a door opens: something should listen there."""
    silent = False
    for door in case.config.doors:
        missing = [service for service in door.opens if not case.host.listens(service)]
        if not missing:
            continue
        silent = True
        if case.host.listing.translates:
            text = f"door {door.name} opens {some(missing)}, where nothing of this host listens"
            yield Finding("door-service", Level.NOTE, f"{text}; some rule may send it elsewhere")
        else:
            text = f"door {door.name} opens {some(missing)}, where nothing listens"
            yield Finding("door-service", Level.WARNING, text, _start(missing[0]))
    if not silent:
        yield Finding("door-service", Level.OK, "something listens behind each door")


def _start(service: Service) -> str:
    if service == lockout.SSH:
        return "systemctl start ssh"
    kind = "t" if service.proto == TCP else "u"
    return f"ss -ln{kind}p sport = :{service.port}  # start the service, and see whether it listens"


def ssh(case: Case) -> Iterator[Finding]:
    """An ssh daemon that everybody reaches, and one that nobody reaches."""
    for error in lockout.unopened(case.config, case.host.ssh | {lockout.SSH}):
        yield Finding("ssh-shut", Level.ERROR, error.message, case.hint(error.hint))
    opened = {service for door in case.config.doors for service in door.opens}
    bare = case.host.ssh - opened.union(case.config.guarded)
    if bare:
        text = f"an ssh daemon listens on {some(bare)}, which no door opens: it is not guarded by logknock"
        yield Finding("ssh-open", Level.NOTE, text, f'a door with opens = ["{min(bare)}"], if that is not meant')


def families(case: Case) -> Iterator[Finding]:
    """Doors whose own sets take addresses of one family only."""
    kinds = {found.full_name: found.types for found in case.host.listing.sets}
    for door in case.config.doors:
        held = {kinds[name][0] for name in door.sets if name in kinds}
        if not door.guard and len(held) == 1 and case.host.has_ipv6:
            here, there = ("IPv4", "IPv6") if held == {"ipv4_addr"} else ("IPv6", "IPv4")
            text = f"the sets of door {door.name} hold {here} addresses only: who knocks over {there} is not let in"
            yield Finding(
                "door-family", Level.NOTE, text, f"name a set for {there} too, or have clients knock over {here}"
            )


def onetime(case: Case) -> Iterator[Finding]:
    """The files of one-time sequences, and the state database that says how far they are used."""
    found = status.look(case.config.doors, case.config.state, 0, lambda path, count: None)
    for remark in () if _distrusted(case) else found.remarks:  # of which `state` says more
        yield _told(case, "state", remark.text, remark.code)
    for file in found.files:
        for remark in file.remarks:
            yield _told(case, "onetime", f"{file.path} (door {file.door}): {remark.text}", remark.code)
    if found.files and not any(file.remarks for file in found.files):
        yield Finding("onetime", Level.OK, f"{counted(len(found.files), 'file')} can be used")


def clients(case: Case) -> Iterator[Finding]:
    """Doors that ask their clients for a proof: whether there are any, and what reads their packets."""
    config = case.config
    enrolled = {door.door: len(door.clients) for door in config.totp}
    keys = [key.door for key in config.spa_keys]
    enrolled |= {name: keys.count(name) for name, _ in config.spa_doors}
    for name in (name for name, count in enrolled.items() if not count):
        text = f"door {name} has no client: it opens for nobody"
        yield Finding("clients", Level.WARNING, text, case.command(config.to_enroll(name, "laptop")))
    if keys:
        try:
            spa.require()
        except LogknockError as error:
            text = f"{error.message}: doors with spa open for nobody"
            yield Finding("clients", Level.ERROR, text, error.hint)
            return
    if enrolled and all(enrolled.values()):
        named = some(f"{name} ({counted(count, 'client')})" for name, count in enrolled.items())
        yield Finding("clients", Level.OK, named)


def _told(case: Case, check: str, text: str, code: int) -> Finding:
    """A remark of `status`, whose hint stands in brackets."""
    words, _, hint = text.removesuffix(")").partition(" (hint: ")
    level = Level.UNSEEN if code == NO_PERMISSION else Level.ERROR if code else Level.WARNING
    return Finding(check, level, words if hint else text, case.hint(hint))


def state(case: Case) -> Iterator[Finding]:
    """What the daemon remembers with is root's and its own alone to write: else it does not believe what is there."""
    folder = case.config.state
    if _is_daemons(case, folder):
        if left := [path.name for path in _left_by_root(folder)]:
            text = f"{folder}: {some(left)} there: not the service's, which cannot read what another user has made"
            yield Finding("state", Level.ERROR, text, f"{case.command('rules apply')} && systemctl restart logknock")
        return
    if error := _distrusted(case):
        why, _, remedy = error.hint.rpartition(": ")
        text = f"{error.message}: the daemon remembers nothing{_shut_by_that(case)}"
        restart = "systemctl restart logknock" if case.is_unit else "then restart the daemon"
        yield Finding("state", Level.ERROR, text, f"{remedy}  # {why and f'{why}; '}{restart}")


def _distrusted(case: Case) -> StoreError | None:
    """Why the daemon believes nothing of what is in its state directory, if so."""
    folder = case.config.state
    if _is_daemons(case, folder):
        return None
    try:
        distrust(folder, folder.stat())
        for name in (LOCK, *(f"{DATABASE}{part}" for part in PARTS)):
            distrust_file(folder / name)
    except StoreError as error:
        return error
    except OSError:  # it is not there yet; or it may not be seen, which is told with what is in it
        return None
    return None


def _shut_by_that(case: Case) -> str:
    """What stays shut where nothing is remembered."""
    kinds = case.config.remembering
    return f", and {kinds} doors stay shut" if kinds else ""


def _is_daemons(case: Case, folder: Path) -> bool:
    """Whether the directory is that of the user whom the daemon runs as, or will run as, and who is not the asker."""
    with suppress(OSError):
        owner = folder.stat().st_uid
        if case.daemon.pid is not None:
            daemon = Path(f"/proc/{case.daemon.pid}").stat().st_uid
        else:
            user = service_user()
            daemon = 0 if user is None else user.pw_uid
        return owner not in (0, os.geteuid()) and owner == daemon
    return False


def _left_by_root(folder: Path) -> Iterator[Path]:
    """What is not the daemon's in its own directory, and it cannot read: a daemon of root's has made it."""
    for name in (LOCK, *(f"{DATABASE}{part}" for part in PARTS), "traps.seed"):
        with suppress(OSError):
            if (folder / name).lstat().st_uid != folder.stat().st_uid:
                yield folder / name


def daemon(case: Case) -> Iterator[Finding]:
    """Whether the daemon runs, here, answers, and has the configuration as it is."""
    running = case.daemon
    if running.runs is None:
        text = f"whether logknock runs cannot be seen: {case.config.state} cannot be looked into"
        yield Finding("daemon", Level.UNSEEN, text, f"sudo {case.command('doctor')}")
        return
    if not running.runs or running.pid is None:
        with suppress(ControlError):
            _standing(case)
            text = f"the daemon runs without its state directory: nothing is remembered{_shut_by_that(case)}"
            remedy = "systemctl restart logknock" if case.is_unit else "restart it; its log says why"
            yield Finding("daemon", Level.ERROR, text, remedy)
            return
        text = "logknock does not run: knocks open nothing"
        yield Finding("daemon", Level.ERROR, text, "systemctl start logknock" if case.is_unit else case.command("run"))
        return
    if case.host.shares_network(running.pid) is False:
        text = f"the daemon (process {running.pid}) is in another network namespace: it reads and opens nothing here"
        yield Finding("daemon", Level.ERROR, text, f"nsenter --net=/proc/{running.pid}/ns/net {case.command('doctor')}")
        return
    yield from _answering(case, running.pid)
    yield from _age(case, running.pid)


def _standing(case: Case) -> dict[str, Any]:
    """What the daemon says of how things stand. Raises ControlError."""
    first: dict[str, Any] = next(ask(case.config.runtime, "explain", patience=_PATIENCE, address=_NOBODY), {})
    return dict(first.get("standing", {}))


def _answering(case: Case, pid: int) -> Iterator[Finding]:
    """Whether it does anything: what is stopped or hangs holds its lock and its group all the same."""
    try:
        standing = _standing(case)
    except ControlError as error:
        yield _silent(case, pid, error)
        return
    yield Finding("daemon", Level.OK, f"process {pid}, which answers")
    for source in standing.get("sources", ()):
        if lost := source.get("lost", 0):
            text = f"{source.get('name')}: {counted(lost, 'record')} lost since the daemon's start"
            yield Finding("records-lost", Level.WARNING, f"{text}: a knock may be among them", _KEEP)


# Where records get lost, it is because there are more than somebody reads in time.
_KEEP = "look whether it grows; fewer records: a lower [firewall] rate, or a prefix or group for what matters alone"


def _silent(case: Case, pid: int, error: ControlError) -> Finding:
    if error.exit_code == NO_PERMISSION:
        return Finding("daemon", Level.UNSEEN, f"whether process {pid} answers: {error.message}", case.hint(error.hint))
    if is_stopped(pid):
        text = f"the daemon (process {pid}) is stopped, by a signal or a debugger: knocks open nothing"
        return Finding("daemon", Level.ERROR, text, f"kill -CONT {pid}")
    if not (case.config.runtime / NAME).is_socket():
        text = f"the daemon (process {pid}) cannot be asked whether it works: {error.message}"
        return Finding("daemon", Level.WARNING, text, "its log says why; is [paths] runtime the same for both?")
    text = f"the daemon (process {pid}) hangs: {error.message}"
    restart = "systemctl restart logknock" if case.is_unit else f"kill -KILL {pid}; {case.command('run')}"
    return Finding("daemon", Level.ERROR, text, restart)


def _age(case: Case, pid: int) -> Iterator[Finding]:
    begun, newest = _loaded(case, pid), newest_file(case.config.file)
    if begun is not None and newest is not None and newest[1] > begun:
        when = datetime.fromtimestamp(newest[1]).strftime("%Y-%m-%d %H:%M:%S")
        text = f"{newest[0]} was changed at {when}, after the daemon read it: it counts only after a reload"
        yield Finding(
            "daemon-config",
            Level.NOTE,
            text,
            f"{case.command('check')} && {case.reload(pid)}",
        )
    elif begun is not None:
        yield Finding("daemon-config", Level.OK, "the daemon has the configuration as it is")


def _loaded(case: Case, pid: int) -> float | None:
    """When the daemon read its configuration last: the time of its lock says so, or, of an older one, its start."""
    begun = started(pid)
    with suppress(OSError):
        told = (case.config.state / LOCK).stat().st_mtime
        if begun is None or told > begun - _SLACK:
            return told
    return None if begun is None else begun + _SLACK


def newest_file(path: Path) -> tuple[Path, float] | None:
    """The file of the configuration that was written last, and when."""
    try:
        folders = (path.parent / "conf.d", path.parent / "clients")
        files = [path, *(file for folder in folders for file in sorted(folder.glob("*.toml")))]
        return max(((file, file.stat().st_mtime) for file in files), key=lambda found: found[1])
    except OSError:  # it is being changed at this moment
        return None
