"""The journal of a booted host: a knock from the wire opens the door, whatever happens to journald; no forgery does."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logknock.records import Grammar, Wanted

from ..netns import Host
from ..peers import kernel_log, own_prefix
from .booted import BootedHost, booted
from .world import KNOCKS, SSH, Daemon, World, until

JOURNALD = "systemd-journald.service"


@pytest.fixture
def prefix() -> str:
    return own_prefix()


@pytest.fixture
def world(hosts: tuple[Host, Host], tmp_path: Path, prefix: str) -> Iterator[World]:
    """A gateway with a booted systemd, whose rules log to the kernel's log."""
    gateway, client = hosts
    folder = tmp_path / "host"
    folder.mkdir()
    with kernel_log(), booted(gateway, folder) as inside:
        made = World(inside, client, folder / "logknock.toml")
        made.configure(f'[log]\nsource = "journal"\nprefix = "{prefix}"\n{SSH}')
        made.apply()
        yield made


def journald(world: World) -> BootedHost:
    """The gateway as the host that it is."""
    assert isinstance(world.gateway, BootedHost)
    return world.gateway


def in_the_journal(world: World, pattern: str, count: int = 1) -> None:
    """Wait until journald has written so many entries whose message has the pattern."""

    def there() -> bool:
        command = ("journalctl", "-q", "-o", "cat", "-a", "--grep", pattern)
        return len(re.findall(pattern, world.gateway.run(*command, check=False).stdout)) >= count

    until(there, f"{count} entries with {pattern!r}")


# ---- what a local user can do (T22)

# Perfect lines of the kernel: that of the last packet of each forger's knock is looked for afterwards.
LINE = (
    "{prefix}: IN=eth0 OUT= MAC=d6:af:d0:9f:de:3d:c6:a7:e5:6f:86:6a:08:00 SRC={src} DST=10.99.0.1 LEN={size} TOS=0x00 "
    "PREC=0x00 TTL=64 ID={number} DF PROTO={proto} SPT={sport} DPT={port} {rest}"
)
TCP_REST = "WINDOW=64240 RES=0x00 SYN URGP=0 "
UDP_REST = "LEN=9 "


def perfect_lines(prefix: str, src: str) -> list[str]:
    """A whole knock from a source, as the kernel would log it."""
    lines = []
    for number, knock in enumerate(KNOCKS):
        port, _, proto = knock.partition("/")
        rest, size = (TCP_REST, 60) if proto == "tcp" else (UDP_REST, 29)
        fields = {"prefix": prefix, "src": src, "size": size, "number": 4000 + number, "sport": 40000 + number}
        lines.append(LINE.format(proto=proto.upper(), port=port, rest=rest, **fields))
    return lines


# Each gets the lines as arguments.
DEV_LOG = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
    s.connect("/dev/log")
    for line in sys.argv[1:]:
        for head in ("<4>kernel: ", "<0>kernel: ", "<4>Nov 21 10:00:00 kernel: ", "<4>", ""):
            s.send((head + line).encode())
"""

NATIVE = """
import socket, struct, sys
REAL = ["_TRANSPORT=kernel", "SYSLOG_IDENTIFIER=kernel", "SYSLOG_FACILITY=0", "PRIORITY=4"]
BOOT = open("/proc/sys/kernel/random/boot_id").read().replace("-", "").strip()
MORE = ["_SOURCE_MONOTONIC_TIMESTAMP=1", "_BOOT_ID=" + BOOT]
SEVERAL = ["_TRANSPORT=journal", "SYSLOG_IDENTIFIER=x", "SYSLOG_FACILITY=1"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
    s.connect("/run/systemd/journal/socket")
    for line in sys.argv[1:]:
        for fields in (REAL, REAL + MORE, SEVERAL + REAL, REAL + SEVERAL, REAL[1:] + REAL):
            s.send("\\n".join([*fields, "MESSAGE=" + line, ""]).encode())
        several = ("x\\n" + "\\n".join(REAL) + "\\nMESSAGE=" + line + "\\n").encode()
        s.send(b"MESSAGE\\n" + struct.pack("<Q", len(several)) + several + b"\\n" + "\\n".join([*REAL, ""]).encode())
        s.send("\\n".join([*REAL, "MESSAGE=x", "MESSAGE=" + line, ""]).encode())
"""

# The header of a stream: identifier, unit, priority, whether lines begin with a level, three kinds of forwarding.
STREAM = """
import socket, sys
for level in ("0", "1"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.connect("/run/systemd/journal/stdout")
        s.sendall(f"kernel\\n\\n4\\n{level}\\n0\\n0\\n0\\n".encode())
        for line in sys.argv[1:]:
            for head in ("", "<0>", "<4>"):
                s.sendall((head + line + "\\n").encode())
"""

# What only root may write to. A record ends at the first newline; what follows looks like a device's fields.
KMSG = """
import os, sys
for line in sys.argv[1:]:
    fields = "\\n _TRANSPORT=kernel\\n SYSLOG_FACILITY=0\\n SYSLOG_IDENTIFIER=kernel\\n SUBSYSTEM=net\\n"
    for text in ("<0>" + line, "<4>" + line + fields, "<6>kernel: " + line, line, "<2048>" + line,
                 "<4>kernel: x\\n4,1,1,-;" + line + fields):
        kmsg = os.open("/dev/kmsg", os.O_WRONLY)  # a descriptor may write ten lines in five seconds
        os.write(kmsg, text.encode())
        os.close(kmsg)
"""

NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--")


def logger(world: World, lines: list[str]) -> None:
    for line in lines:
        for words in (("-t", "kernel"), ("-t", "kernel", "-p", "kern.warning"), ("-p", "kern.emerg")):
            world.gateway.run(*NOBODY, "logger", *words, line)


def journald_of_logger(world: World, lines: list[str]) -> None:
    """It sends whole entries, as their fields are given to it."""
    for line in lines:
        entry = f"_TRANSPORT=kernel\nSYSLOG_IDENTIFIER=kernel\nSYSLOG_FACILITY=0\nPRIORITY=4\nMESSAGE={line}\n"
        world.gateway.run(*NOBODY, "logger", "--journald", input=entry)


def systemd_cat(world: World, lines: list[str]) -> None:
    world.gateway.run(*NOBODY, "systemd-cat", "-t", "kernel", "-p", "warning", "printf", "%s\\n", *lines)


def by_script(script: str, *user: str) -> Callable[[World, list[str]], None]:
    def forge(world: World, lines: list[str]) -> None:
        world.gateway.run(*user, "/usr/bin/python3", "-c", script, *lines)

    return forge


def service(world: World, lines: list[str]) -> None:
    """What an administrator's unit does for a user, who chooses each word of it."""
    names = {"SyslogIdentifier": "kernel", "SyslogFacility": "kern", "SyslogLevel": "warning", "User": "nobody"}
    more = {"LogExtraFields": "SYSLOG_FACILITY=0 SYSLOG_IDENTIFIER=kernel"}
    host = journald(world)
    host.unit("forger", "printf", "%%s\\n", *lines, **names, **more)
    with pytest.raises(AssertionError, match="Journal field invalid"):
        host.unit("forger2", "true", LogExtraFields="_TRANSPORT=kernel")


FORGERIES: dict[str, Callable[[World, list[str]], None]] = {
    "logger": logger,
    "logger --journald": journald_of_logger,
    "/dev/log": by_script(DEV_LOG, *NOBODY),
    "native protocol": by_script(NATIVE, *NOBODY),
    "a stream to journald": by_script(STREAM, *NOBODY),
    "systemd-cat": systemd_cat,
    "a service's stdout": service,
    "/dev/kmsg, by root": by_script(KMSG),
}


def test_t22_no_local_user_can_forge_a_knock(world: World, prefix: str) -> None:
    """T22: perfect lines by every way into the journal open nothing; the same lines from the kernel do."""
    grammar = Grammar(Wanted((prefix,)))
    forged = {name: f"10.99.0.{number}" for number, name in enumerate(FORGERIES, start=100)}
    with world.daemon() as daemon:
        for name, src in forged.items():
            lines = perfect_lines(prefix, src)
            assert all(grammar.from_kernel(line.encode(), 1.0) for line in lines), "the lines are perfect"
            FORGERIES[name](world, lines)
            in_the_journal(world, re.escape(lines[-1].rstrip()))
        refused = by_script(KMSG, *NOBODY)
        with pytest.raises(AssertionError, match="PermissionError"):
            refused(world, perfect_lines(prefix, "10.99.0.99"))
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        assert set(world.granted()) == {"10.99.0.2 . tcp . 22"}
        assert not [line for line in daemon.lines for src in forged.values() if src in line]


# ---- what happens to a journal (T28)

HAPPENINGS: dict[str, tuple[str, ...]] = {
    "rotation": ("journalctl", "--rotate"),
    "vacuum": ("sh", "-c", "journalctl --rotate && journalctl --vacuum-size=1"),
    "restart": ("systemctl", "restart", JOURNALD),
    "to memory": ("journalctl", "--relinquish-var"),
    "to disk": ("journalctl", "--flush"),
}


def happens(world: World, what: str) -> None:
    """One of the happenings, or the death of journald, which systemd starts anew."""
    host = journald(world)
    host.run("systemctl", "reset-failed", JOURNALD)  # else systemd holds five starts in ten seconds for a fault
    if what == "kill -9":
        before = host.pid_of(JOURNALD)
        host.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", JOURNALD)
        until(lambda: host.pid_of(JOURNALD) not in (0, before), "journald's return")
    else:
        host.run(*HAPPENINGS[what])


def test_t28_what_happens_to_the_journal_amid_a_knock(world: World, prefix: str) -> None:
    """T28: before the second knock and before the third; each counts once, and each door opens once."""
    happenings = [*HAPPENINGS, "kill -9", *HAPPENINGS]
    # No time is to run out while a slow machine starts journald anew.
    door = SSH.replace("30s", "1h") + 'seq_timeout = "5m"\n'
    world.configure(f'[log]\nsource = "journal"\nprefix = "{prefix}"\n{door}')
    with world.daemon() as daemon:
        for number, what in enumerate(happenings, start=1):
            src = f"198.51.100.{number}"
            for stage, knock in enumerate(KNOCKS, start=1):
                world.spoof(f"{src}>{world.gateway.ipv4}:{knock}")
                # What journald is just writing when it is killed is lost, and what is not read when it is deleted.
                in_the_journal(world, rf" SRC={src} .* DPT={knock.partition('/')[0]} ")
                if (number + stage) % 2 or what == "vacuum":  # else it happens to what nobody may have read yet
                    daemon.wait_for(f"{src}: ssh: Stage {stage}")
                happens(world, what)
            daemon.wait_for(f"{src}: ssh: OPEN SESAME")
            told = [line.removeprefix(f"{src}: ssh: ") for line in daemon.lines if line.startswith(f"{src}: ")]
            assert told == ["Stage 1", "Stage 2", "Stage 3", "OPEN SESAME"], what
        assert daemon.process.poll() is None
    assert len(world.granted()) == len(happenings)


def test_t29_knocks_from_before_the_start(world: World, prefix: str) -> None:
    """T29: two knocks that stand in the journal when the daemon starts do not count."""
    world.knock(*KNOCKS[:2])
    in_the_journal(world, f"{prefix}: IN=eth0", 2)
    with world.daemon() as daemon:
        world.knock(KNOCKS[2])
        in_the_journal(world, f"{prefix}: IN=eth0", 3)
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        assert [line for line in daemon.lines if "Stage" in line] == [
            f"10.99.0.2: ssh: Stage {stage}" for stage in (1, 2, 3)
        ]


def test_t29_a_knock_that_journald_was_too_late_with(world: World, prefix: str) -> None:
    """T29: journald does not run while somebody knocks, and writes it all when it comes back: too late to open."""
    world.configure(f'[log]\nsource = "journal"\nprefix = "{prefix}"\n{SSH}seq_timeout = "2s"\n')
    host = journald(world)
    with world.daemon() as daemon:
        stopped = str(host.pid_of(JOURNALD))
        host.run("kill", "-STOP", stopped)
        world.knock(*KNOCKS)
        time.sleep(3)  # no longer than that is needed, and more does no harm
        host.run("kill", "-CONT", stopped)

        def is_read() -> bool:
            """All before it, too; again, if this machine took too long for the timeout."""
            world.spoof(f"198.51.100.7>{world.gateway.ipv4}:7000/tcp")
            return daemon.says("198.51.100.7: ssh: Stage 1")

        until(is_read, "a knock that is read in time")
        assert not daemon.says("OPEN SESAME")
        assert not world.granted()
        knocked_until_open(world, daemon)


def knocked_until_open(world: World, daemon: Daemon) -> None:
    """The positive control; again, if this machine took too long for the timeout."""

    def opened() -> bool:
        world.knock(*KNOCKS)
        return daemon.says("10.99.0.2: ssh: OPEN SESAME")

    until(opened, "an opening")
