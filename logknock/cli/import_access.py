"""`logknock import-access`: fwknop's access.conf as SPA doors of ours. Rule: it reads, prints and writes, no more."""

import os
import stat
from pathlib import Path
from shlex import quote

import click

from ..access_conf import MAX_BYTES, Finding, Listening, UnreadError, convert, read_listening
from ..config import ConfigError, Problem
from ..config_values import PortRange, port_range
from ..errors import FAILURE, LogknockError, printable
from .converting import DASH, PATH, configuration_of, hand_out, output_option, read_original, tell

_CONFIGURATION = configuration_of("fwknopd", "import-access")

# The largest folder that is listed: more is no folder of keys.
_MAX_LISTED = 1_000

_WRITE = {stat.S_IWGRP: "its group", stat.S_IWOTH: "everybody"}
_READ = {stat.S_IRGRP: "its group", stat.S_IROTH: "everybody"}


@click.command("import-access", epilog="Example: logknock import-access -o /etc/logknock/conf.d/fwknop.toml")
@click.argument("file", type=PATH, default=Path("/etc/fwknop/access.conf"))
@output_option(", keys and all")
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="PORTS",
    help="Where packets arrive: 62201/udp, 62201/tcp (in a lone SYN), a range 10000-65535/udp, or icmp; as often as"
    " needed. Without this it is what fwknopd.conf beside FILE says.",
)
def import_access(file: Path, output: Path | None, ports: tuple[str, ...]) -> int:
    """Write what fwknop's access.conf says as SPA doors of logknock, each stanza as a client.

    FILE is /etc/fwknop/access.conf if it is not named, and - is standard input; what it includes is read too. A stanza
    that cannot be said (commands, NAT, GPG, no HMAC, any port) stays as comments, with the reason. Exit code 0: all is
    converted, and notes say what differs; 1: something is left to do by hand; 78: FILE has errors, and nothing is
    written; 69: it is not there; 77: it cannot be read for lack of permission.
    """
    ports = tuple(dict.fromkeys(ports))
    _check_ports(ports)
    files = _Files()
    text = files.text(file)
    listening = _listening(file, ports, files)
    imported = convert(text, str(file), files, listening)
    if imported.errors or files.errors:
        raise ConfigError(tuple(map(_problem, (*files.errors, *imported.errors))))
    made = hand_out(imported.toml, output)
    tell(map(_problem, (*imported.told, *files.told)), map(_problem, imported.left))
    if not imported.clients:
        click.echo(f"logknock: {printable(str(file))}: no stanza could be converted, so no door is written", err=True)
    if made is not None:
        count = f"{imported.clients} client" + ("" if imported.clients == 1 else "s")
        next_step = "logknock check" + ("" if made.parent.name == "conf.d" else f" -c {quote(str(made))}")
        click.echo(f"{printable(str(made))}: {count}; next: {printable(next_step)}")
    return FAILURE if imported.left or not imported.clients else 0


def _check_ports(ports: tuple[str, ...]) -> None:
    taken: dict[str, PortRange] = {}
    for each in ports:
        if each == "icmp":
            continue
        try:
            proto, first, last = taken[each] = port_range(each)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--port") from None
        for other, found in taken.items():
            if other != each and found.proto == proto and found.first <= last and first <= found.last:
                raise click.BadParameter(f"{other} and {each} have ports in common", param_hint="--port")


def _listening(file: Path, ports: tuple[str, ...], files: "_Files") -> Listening:
    """What fwknopd.conf beside the file says, and what the command line says instead."""
    beside = file.parent / "fwknopd.conf"
    found = Listening()
    if file != DASH and beside.exists():
        found = read_listening(
            read_original(beside, _CONFIGURATION, MAX_BYTES).data.decode(errors="replace"), str(beside)
        )
    if not ports:
        return found
    left = tuple(finding for finding in found.left if finding.section != "PCAP_FILTER")
    return Listening(ports, found.max_age, left, found.told)


def _problem(finding: Finding) -> Problem:
    return Problem(Path(finding.file), finding.line or None, finding.section, finding.message, finding.hint)


class _Files:
    """What access.conf includes, and who else may read or write it: these files hold keys."""

    def __init__(self) -> None:
        self.errors: list[Finding] = []
        self.told: list[Finding] = []

    def text(self, path: Path) -> str:
        """The text of the file that was named. Raises LogknockError."""
        original = read_original(path, _CONFIGURATION, MAX_BYTES)
        if original.status is not None:
            self._look(path, original.status)
        return original.data.decode(errors="surrogateescape")

    def read(self, path: str) -> str:
        """The text of a file that is included. Raises UnreadError."""
        try:
            return self.text(Path(path))
        except LogknockError as error:
            raise UnreadError(error.message.removeprefix(f"{printable(path)}: ")) from None

    def folder(self, path: str) -> list[str]:
        """All files in a folder. Raises UnreadError."""
        try:
            names = sorted(os.listdir(path))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "its name has a NUL byte"
            raise UnreadError(f"cannot be read: {why}") from None
        if len(names) > _MAX_LISTED:
            raise UnreadError(f"has more than {_MAX_LISTED:,} files")
        return [f"{path.rstrip('/')}/{name}" for name in names]

    def _look(self, path: Path, status: os.stat_result) -> None:
        if others := [who for bit, who in _WRITE.items() if status.st_mode & bit]:
            message = f"can be written by {' and '.join(others)}: whose keys are in it?"
            self.errors.append(Finding(str(path), 0, "", message, f"look at it, and then chmod 600 {quote(str(path))}"))
        elif others := [who for bit, who in _READ.items() if status.st_mode & bit]:
            message = f"can be read by {' and '.join(others)}: whoever has read it has the keys"
            self.told.append(Finding(str(path), 0, "", message, "`logknock keygen` makes new ones for both sides"))
