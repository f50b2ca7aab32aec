"""A host with a booted systemd: process 1, journald, units and users, over this machine's files.

Rule 1: what it writes is in memory and gone with it. Rule 2: its network is that of a host of tests/netns.py; its
kernel log is the machine's, since there is only one. Rule 3: its processes are in control groups of its own, so that
two such hosts do not take each other's units for theirs.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..netns import Host
from .world import until

PROJECT = Path(__file__).parents[2]

# The one hierarchy of cgroup v2, or the two that a systemd uses beside v1's.
_HIERARCHIES = tuple(Path("/sys/fs/cgroup", name) for name in (".", "unified", "systemd"))

# What a firewall or a container engine needs and systemd-nspawn withholds: settings of its network, system calls, and
# the one hierarchy of cgroup v2, whatever the machine has.
_UNCONFINED = {
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
    "SYSTEMD_SECCOMP": "0",
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
}


@dataclass(frozen=True, slots=True)
class BootedHost(Host):
    """A host whose commands run beside its own systemd; `init` is its process 1, as this machine numbers it."""

    init: int

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--", *command]

    def root(self, path: str) -> Path:
        """A file of the host, as this machine finds it."""
        return Path(f"/proc/{self.init}/root{path}")

    def unit(self, name: str, *command: str, **properties: str) -> None:
        """Run a command to its end as a unit of the system."""
        words = [f"--property={key}={value}" for key, value in properties.items()]
        self.run("systemd-run", "-q", f"--unit={name}", "--property=Type=oneshot", *words, "--", *command)

    def pid_of(self, unit: str) -> int:
        """The main process of a unit, as the host numbers it; 0 if there is none."""
        return int(self.run("systemctl", "show", "-P", "MainPID", unit).stdout)


@contextmanager
def booted(
    host: Host, folder: Path, packages: Path | None = None, capabilities: str = "CAP_SYSLOG"
) -> Iterator[BootedHost]:
    """Boot a systemd in the host's network. `folder`, an empty one of the test's own, is there as well.

    `capabilities` is what its services may have besides what systemd-nspawn leaves them.

    `packages` is where packages of Debian are unpacked: they are as good as installed there, and their services may do
    what they do on a machine.
    """
    disk = folder / "disk"
    disk.mkdir()
    with (
        _overlay(disk, packages) as root,
        _control_groups(host.name) as groups,
        (folder / "boot.out").open("w") as console,
    ):
        command = [
            *("sh", "-c", 'for file in $1; do echo $$ >"$file"; done; shift; exec "$@"', "sh"),
            " ".join(f"{group}/cgroup.procs" for group in groups),
            *("systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--link-journal=no", "--console=pipe"),
            f"--directory={root}",
            f"--machine={host.name}",
            f"--network-namespace-path=/run/netns/{host.name}",
            *("--bind=/dev/kmsg", f"--capability={'all' if packages else capabilities}"),
            *(f"--bind-ro={PROJECT}", f"--bind={folder}"),
            *("--boot", "--", "systemd.unit=sysinit.target"),
        ]
        environment = os.environ | (_UNCONFINED if packages else {})
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment)
        try:
            inside = BootedHost(host.name, host.ipv4, host.ipv6, _init(process))
            active = ("systemctl", "is-active", "-q", "sysinit.target")
            until(lambda: not inside.run(*active, check=False).returncode, "a booted systemd")
            yield inside
        finally:
            _power_off(groups)
            process.wait()
            with suppress(OSError):
                Path("/run/systemd/nspawn/propagate", host.name).rmdir()


def _init(process: subprocess.Popen[bytes]) -> int:
    """The container's process 1: the child of nspawn that has become systemd."""
    found: list[int] = []

    def there() -> bool:
        assert process.poll() is None, f"systemd-nspawn ended with {process.returncode}"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found[:] = [int(child) for child in children if _name(int(child)) == "systemd"]
        return bool(found)

    until(there, "systemd-nspawn's child")
    return found[0]


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _power_off(groups: Sequence[Path]) -> None:
    """Pull the plug."""
    for group in groups:
        for place, *_ in os.walk(group):  # its systemd removes groups meanwhile, as long as it lives
            for process in _processes(Path(place, "cgroup.procs")):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _processes(file: Path) -> list[int]:
    """Those in a control group; none if it is gone."""
    with suppress(OSError):
        return [int(process) for process in file.read_text().split()]
    return []


@contextmanager
def _control_groups(name: str) -> Iterator[list[Path]]:
    """Groups below the one that the tests are in; gone with the last process in them."""
    ours = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    groups = []
    for top in _HIERARCHIES:
        if (top / "cgroup.procs").exists():
            of_tests = ours.get("name=systemd" if top.name == "systemd" else "", "/")
            groups.append(Path(f"{top}{of_tests}") / name)
    for group in groups:
        group.mkdir()
    try:
        yield groups
    finally:
        until(lambda: all(_removed(group) for group in groups), "an end of all processes of the host")


def _removed(group: Path) -> bool:
    """Whether a control group, and those in it, are gone now: those that nothing is in go."""
    inner = sorted(group.rglob("*/"), key=lambda folder: -len(folder.parts)) if group.exists() else []
    with suppress(OSError):
        for folder in (*inner, group):
            folder.rmdir()
    return not group.exists()


@contextmanager
def _overlay(disk: Path, packages: Path | None) -> Iterator[Path]:
    """The machine's files and those of the packages, with what is written kept in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    try:
        root = disk / "root"
        root.mkdir()
        _lay_over(disk, "/", root)
        for name in ("usr", "etc") if packages else ():
            _lay_over(disk, f"{packages}/{name}:/{name}", root / name)
        yield root
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(disk)], check=True)


def _lay_over(disk: Path, lower: str, place: Path) -> None:
    """Show the directories in `lower`, the first on top, at a place; what is written there goes to `disk`."""
    upper, work = (disk / f"{kind}-{place.name}" for kind in ("upper", "work"))
    upper.mkdir()
    work.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(place)], check=True)
