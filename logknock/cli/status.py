"""`logknock status`: how things stand. Rule: it prints what status.look found, and finds nothing itself."""

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import click

from ..config import load
from ..control import ControlError, ask
from ..errors import USAGE, LogknockError, printable
from ..status import MOST_HISTORY, File, Open, Progress, Remark, Running, Status, look
from . import config_option

# Seconds that a daemon may take to say what it has read; it answers in a tenth of one, and the rest needs no daemon.
_ANSWER_LIMIT = 3.0

# Seconds of reading before a terminal hears of it: a file of a few thousand sequences takes less.
_PATIENCE = 0.3

# Of each source its name, records, lost and ignored, as the control socket has them.
Sources = Sequence[Mapping[str, Any]]

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


@click.command(
    epilog="Example: logknock status --door ssh --history 50\n\nWhat `--json` prints is in docs/howto/status.md."
)
@config_option
@click.option("--door", "only", metavar="NAME", default="", help="This door alone.")
@click.option(
    "--history",
    "most",
    type=click.IntRange(0, MOST_HISTORY),
    default=10,
    show_default=True,
    help="How much of what happened last.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
def status(config_path: Path, only: str, most: int, as_json: bool) -> int:
    """Does the daemon run, who is in, how far are the one-time files used?

    It reads files, so it answers without a daemon too; a daemon that runs is asked what it has read, and what was lost
    on the way to it, where you may ask it. Never prints a sequence. Exit code 1: something needs a
    person: a one-time file that is used up or cannot be used, a state database that cannot be read; 77: not allowed;
    78: the configuration is wrong. That no daemon runs, or that a file will soon be used up, is said and is no failure.
    """
    config = load(config_path)
    names = [door.name for door in config.doors]
    if only and only not in names:
        raise LogknockError(f"there is no door {printable(only)}", f"the doors are: {', '.join(names)}", USAGE)
    with _progress() as progress:
        found = look(config.doors, config.state, most, progress, only)
    sources = None if found.running.runs is False else _read_by(config.runtime)
    if as_json:
        click.echo(json.dumps(_plain(found, sources), indent=2))
    else:
        for line in _lines(found, sources):
            click.echo(line)
    return found.code


def _read_by(runtime: Path) -> Sources | None:
    """What the running daemon has read; None where it does not say."""
    try:
        (answer,) = ask(runtime, "status", _ANSWER_LIMIT)
    except (ControlError, ValueError):  # none is there, it may not be asked, or it is of another version
        return None
    return cast("Sources", answer["sources"])


# ---- for people


def _lines(found: Status, sources: Sources | None) -> Iterator[str]:
    yield _running(found.running)
    yield from _remarks("", found.remarks)
    if sources is not None:
        yield from _sources(sources)
    yield from _section("open doors", map(_open_row, found.open), "none")
    yield from _files(found.files)
    if found.history:
        rows = ((local_time(entry.wall), entry.event, *entry[2:]) for entry in found.history)
        yield from _section("what happened last (the latest first, local time)", rows)


def _running(running: Running) -> str:
    if running.runs is None:
        return click.style("whether logknock runs cannot be seen from here", fg="yellow")
    if not running.runs:
        return click.style("logknock does not run: nobody is let in", fg="yellow")
    return click.style(f"logknock runs (process {running.pid})", fg="green")


def _sources(sources: Sources) -> Iterator[str]:
    rows = [
        (each["name"], f"{each['records']:,} records", f"{each['lost']:,} lost", f"{each['ignored']:,} no packet")
        for each in sources
    ]
    yield from _section("read since its start", rows, "nothing")
    if any(each["lost"] for each in sources):
        yield from _remarks("    ", (Remark("a knock may be among what was lost (hint: knock again)"),))


def _section(heading: str, rows: Iterable[Sequence[str]], otherwise: str = "") -> Iterator[str]:
    """A heading and its rows, in columns as wide as they must be."""
    yield ""
    yield click.style(heading, bold=True)
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  " + "  ".join(map(str.ljust, row, widths)).rstrip()
    if not cells:
        yield f"  {otherwise}"


def _open_row(door: Open) -> tuple[str, ...]:
    return door.door, door.address, f"{duration(door.left)} left"


def _files(files: Sequence[File]) -> Iterator[str]:
    if not files:
        return
    heading, *rows = list(_section("one-time files", map(_file_row, files)))[1:]
    yield ""
    yield heading
    for row, file in zip(rows, files, strict=True):
        yield row
        yield from _remarks("    ", file.remarks)


def _file_row(file: File) -> tuple[str, ...]:
    used = "? used" if file.used is None else f"{file.used:,} used"
    left = "? left" if file.left is None else f"{file.left:,} left"
    following = "" if file.next_line is None else f"line {file.next_line:,} is next"
    return file.door, file.path, used, left, following


def _remarks(indent: str, remarks: Iterable[Remark]) -> Iterator[str]:
    for text, code in remarks:
        word = "error" if code else "warning"
        yield f"{indent}{click.style(f'{word}:', fg='red' if code else 'yellow')} {printable(text)}"


def duration(seconds: float) -> str:
    """As the configuration has it, `1h30m`; the two largest units, and never less than is left."""
    rest, parts = math.ceil(seconds), []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def local_time(wall: float) -> str:
    try:
        return datetime.fromtimestamp(wall).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a clock that was very wrong
        return "?"


# ---- for programs


def _plain(found: Status, sources: Sources | None) -> dict[str, Any]:
    return {
        "ok": not found.code,
        "daemon": found.running._asdict(),
        "sources": sources,
        "open": [
            {"door": door, "address": address, "opened": _utc(opened), "left": math.ceil(left)}
            for door, address, opened, left in found.open
        ],
        "onetime": [
            {
                "door": file.door,
                "file": file.path,
                "used": file.used,
                "left": file.left,
                "next_line": file.next_line,
                **_told(file.remarks),
            }
            for file in found.files
        ],
        "history": [
            {"time": _utc(wall), "event": event, "door": door, "address": address, "detail": detail}
            for wall, event, door, address, detail in found.history
        ],
        **_told(found.remarks),
    }


def _told(remarks: Iterable[Remark]) -> dict[str, list[str]]:
    every = list(remarks)
    return {
        "errors": [text for text, code in every if code],
        "warnings": [text for text, code in every if not code],
    }


def _utc(wall: float) -> str | None:
    """RFC 3339, as `jq` reads it; None for a clock that was very wrong."""
    try:
        return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Says on a terminal which file is being read, where that takes a while."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield lambda path, count: None
        return
    from rich.console import Console
    from rich.text import Text

    began = time.monotonic()
    with_bar = Console(stderr=True).status("")

    def tell(path: str, count: int) -> None:
        if time.monotonic() - began > _PATIENCE:
            with_bar.update(Text(f"reading {printable(path)} ({count:,})"))
            with_bar.start()

    try:
        yield tell
    finally:
        with_bar.stop()
