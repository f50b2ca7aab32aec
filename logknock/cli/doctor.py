"""`logknock doctor`: what is wrong, and what to do. Rule: it prints what the doctor found, and finds nothing itself."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from ..doctor import Finding, Level, counted, examine, exit_code
from ..doctor.live import LIVE, prove
from ..errors import printable
from . import config_option

# A mark, what stands for it where the terminal has no such letters, and its colour.
_MARKS = {
    Level.OK: ("✓", "ok", "green"),
    Level.NOTE: ("·", "note", "cyan"),
    Level.UNSEEN: ("?", "unseen", "magenta"),
    Level.WARNING: ("!", "warning", "yellow"),
    Level.ERROR: ("✗", "ERROR", "red"),
}


@click.command(
    epilog="Example: sudo logknock doctor --live\n\nWhat each id means, and what --json prints: docs/howto/doctor.md."
)
@config_option
@click.option("--live", is_flag=True, help="Prove it too: knock at your doors, in namespaces made for it (root).")
@click.option("-v", "--verbose", is_flag=True, help="What is right, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
def doctor(config_path: Path, live: bool, verbose: bool, as_json: bool) -> int:
    """Why does it not open? Looks at what commonly goes wrong, and says what to do.

    From the kernel up to the door: the rules and their sets, who reads the log and what is logged at all, the daemon,
    what listens where, one-time files. Nothing is changed. Exit code 0: nothing is wrong, though there may be warnings;
    1: something is; 77: not all could be seen, and nothing else is wrong; 78: the configuration is wrong.
    """
    found: list[Finding] = []
    for finding in _found(config_path, live):
        found.append(finding)
        told = verbose or finding.level is not Level.OK or finding.check == LIVE
        if not as_json and told and not _again(finding, found):
            for line in _lines(finding):
                click.echo(line)
    if as_json:
        click.echo(json.dumps(_plain(found), indent=2))
    else:
        click.echo(_summary(found))
    return exit_code(found)


def _found(path: Path, live: bool) -> Iterator[Finding]:
    yield from examine(path)
    if live:
        yield from prove(path)


def _again(finding: Finding, found: list[Finding]) -> bool:
    """Whether the same reason kept an earlier check from looking: it is told once."""
    return finding.level is Level.UNSEEN and any(
        (other.text, other.remedy) == (finding.text, finding.remedy) for other in found[:-1]
    )


def _lines(finding: Finding) -> Iterator[str]:
    mark, word, colour = _MARKS[finding.level]
    shown = mark if _has_marks() else word
    head = f"{click.style(shown, fg=colour, bold=True)} {click.style(finding.check, bold=True)}"
    yield f"{head}: {printable(finding.text)}"
    if finding.remedy and finding.level is not Level.OK:
        yield f"    {printable(finding.remedy)}"


def _has_marks() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _summary(found: Iterable[Finding]) -> str:
    every = list(found)
    counts = {level: sum(finding.level is level for finding in every) for level in Level}
    checks = len({finding.check for finding in every})
    said = [
        counted(counts[level], word)
        for level, word in ((Level.ERROR, "error"), (Level.WARNING, "warning"), (Level.NOTE, "note"))
        if counts[level]
    ]
    if counts[Level.UNSEEN]:
        said.append(f"{counts[Level.UNSEEN]} not to be seen")
    words = ", ".join(said) or "all is well"
    colour = "red" if counts[Level.ERROR] else "yellow" if counts[Level.WARNING] or counts[Level.UNSEEN] else "green"
    return click.style(f"{counted(checks, 'check')}: {words}", fg=colour, bold=True)


def _plain(found: list[Finding]) -> dict[str, object]:
    code = exit_code(found)
    return {"ok": not code, "code": code, "findings": [{**finding._asdict()} for finding in found]}
