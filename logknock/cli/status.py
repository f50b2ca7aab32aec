"""`logknock status`: how things stand. Rule: it prints what status.look found, and finds nothing itself."""

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..config import Config, load
from ..control import ControlError, ask
from ..errors import FAILURE, NO_PERMISSION, UNAVAILABLE, USAGE, LogknockError, printable
from ..standing import concerns
from ..status import MOST_HISTORY, File, Open, Progress, Remark, Running, Status, look
from . import config_option

# Seconds that a daemon may take to say what it has read; it answers in a tenth of one, and the rest needs no daemon.
_ANSWER_LIMIT = 3.0

# Seconds of reading before a terminal hears of it: a file of a few thousand sequences takes less.
_PATIENCE = 0.3

_ELSEWHERE = "the daemon that runs does not use {}, as the configuration has it now (hint: restart the daemon)"

# How the daemon stands, as the control socket has it (see standing.py).
_Standing = Mapping[str, Any]

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
    """Does the daemon run, is all well, who is in, how far are the one-time files used?

    The first line says it at a glance. It reads files, so it answers without a daemon too; a daemon that runs is asked
    how it stands: what it reads, what was lost on the way to it, and what is degraded, since when and why. Never prints
    a sequence. Exit code 1: something needs a person: something is degraded, a one-time file is used up or cannot be
    used, the state database cannot be read; 69: no daemon runs; 77: not allowed; 78: the configuration is wrong. That
    a file will soon be used up is said and is no failure.
    """
    config = load(config_path)
    names = [door.name for door in config.doors]
    if only and not any(concerns(only, name) for name in names):
        raise LogknockError(f"there is no door {printable(only)}", f"the doors are: {', '.join(names)}", USAGE)
    with _progress() as progress:
        found = look(config.doors, config.state, most, progress, only)
    said = _ask(config.runtime)
    if said.standing is not None and found.running.runs is False:
        elsewhere = Remark(_ELSEWHERE.format(config.state), FAILURE)
        found = found._replace(running=Running(True), remarks=(elsewhere, *found.remarks))
    if said.standing is not None and any(remark.code for remark in found.remarks):
        found = found._replace(open=tuple(_open_by(config.runtime, only))).without_database
    if said.standing is not None and any(each["part"] == "firewall" for each in said.standing["degraded"]):
        shut = {door[:2] for door in _open_by(config.runtime, only) if not door.is_open}
        found = found._replace(open=tuple(door._replace(is_open=door[:2] not in shut) for door in found.open))
    if said.standing is not None and only:
        doors = [door for door in said.standing["doors"] if concerns(only, door["name"])]
        said = Said({**said.standing, "doors": doors})
    code = _code(found, said)
    if as_json:
        click.echo(json.dumps(_plain(found, said, code), indent=2))
    else:
        for line in _lines(found, said, _enrolled(config)):
            click.echo(line)
    return code


class Said(NamedTuple):
    """How the daemon says that it stands, or why it does not say so."""

    standing: _Standing | None = None
    silent: ControlError | None = None


def _ask(runtime: Path) -> Said:
    try:
        (answer,) = ask(runtime, "status", _ANSWER_LIMIT)
        return Said(answer["standing"])
    except ControlError as error:
        return Said(silent=error)
    except (ValueError, KeyError):
        return Said(silent=ControlError("the daemon is of another version", "restart it"))


def _open_by(runtime: Path, only: str) -> Iterator[Open]:
    """The open doors as the daemon has them, where the database cannot be read; since when is not known then."""
    with suppress(ControlError):
        for answer in ask(runtime, "grants", _ANSWER_LIMIT):
            for grant in answer["grants"]:
                if concerns(only, grant["door"]):
                    is_open = grant.get("open", True)
                    yield Open(grant["door"], grant["address"], math.nan, grant["left"], grant["by"], is_open)


def _code(found: Status, said: Said) -> int:
    """0, unless something needs a person; what is wrong with files says more than that nobody reads them."""
    if found.code:
        return found.code
    if found.running.runs is False:
        return UNAVAILABLE
    if said.standing is None:  # where it may not be asked, whether it runs may not be seen either
        return FAILURE if found.running.runs and said.silent and said.silent.exit_code != NO_PERMISSION else 0
    return FAILURE if said.standing["degraded"] else 0


# ---- for people


def _enrolled(config: Config) -> Mapping[str, int]:
    """How many clients may open a door, of the doors that ask their clients for a proof."""
    found = Counter({door.name: 0 for door in config.doors if door.proof})
    found.update({door.door: len(door.clients) for door in config.totp})
    found.update(config.spa_doors[key.door, service].name for key in config.spa_keys for service in key.allow)
    return found


def _lines(found: Status, said: Said, enrolled: Mapping[str, int]) -> Iterator[str]:
    yield _running(found.running, said.standing)
    if found.running.runs and said.silent:
        yield from _remarks("", (Remark(f"how it stands is not known: {said.silent.words()}", FAILURE),))
    lost = said.standing is not None and any(each["part"] == "store" for each in said.standing["degraded"])
    # What is wrong with the database the daemon says itself, then.
    yield from _remarks("", (remark for remark in found.remarks if not (lost and remark.code)), mild="note")
    yield from _remarks("", found.warnings)
    if said.standing is not None:
        yield from _degraded(said.standing)
        yield from _sources(said.standing)
        yield from _section("since its start", _counts(said.standing, enrolled))
    yield from _section("open doors", map(_open_row, found.open), "none")
    yield from _files(found.files)
    if found.history:
        rows = ((local_time(entry.wall), entry.event, *entry[2:]) for entry in found.history)
        yield from _section("what happened last (the latest first, local time)", rows)


def _running(running: Running, standing: _Standing | None) -> str:
    if running.runs is False:
        return click.style("logknock does not run: nobody is let in", fg="red")
    process = f" (process {running.pid})" if running.pid else ""
    if standing is None:
        return click.style(
            f"logknock runs{process}" if running.runs else "whether logknock runs cannot be seen from here", fg="yellow"
        )
    since = f"logknock {standing['version']} runs{process} since {local_time(standing['started'])}"
    degraded = ", ".join(dict.fromkeys(each["part"] for each in standing["degraded"]))
    return click.style(
        f"{since}, degraded: {degraded}" if degraded else f"{since}, all is well", fg="red" if degraded else "green"
    )


def _degraded(standing: _Standing) -> Iterator[str]:
    for each in standing["degraded"]:
        hint = f" (hint: {each['hint']})" if each["hint"] else ""
        words = printable(f"{each['part']}, since {local_time(each['since'])}: {each['why']}{hint}")
        yield f"{click.style('degraded:', fg='red')} {words}"


def _sources(standing: _Standing) -> Iterator[str]:
    rows = [
        (
            each["name"],
            f"{each['records']:,} records",
            f"{each['rate']:,.1f}/s",
            f"{each['lost']:,} lost",
            f"{each['ignored']:,} no packet",
        )
        for each in standing["sources"]
    ]
    yield from _section("read since its start", rows, "nothing")
    if any(each["lost"] for each in standing["sources"]):
        yield from _remarks("    ", (Remark("a knock may be among what was lost (hint: knock again)"),))


def _counts(standing: _Standing, enrolled: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """The numbers that say how busy it was, and what went wrong; what is no trouble when it is 0 is then left out."""
    yield "configuration", f"of {local_time(standing['loaded'])}"
    yield "knocking now", f"{standing['attempts']:,}"
    for door in standing["doors"]:
        count = enrolled.get(door["name"])
        clients = "" if count is None else f", {count:,} client{'' if count == 1 else 's'}"
        yield f"door {door['name']}", f"{door['open']:,} open, {door['opened']:,} opened{clients}"
    for name, words in (("refused", "refused"), ("stale", "too old"), ("banned", "banned now")):
        if standing[name]:
            yield words, f"{standing[name]:,}"
    for name, words in (("firewall_errors", "firewall errors"), ("store_errors", "state errors")):
        if standing[name]:
            yield words, f"{standing[name]:,}"


def _section(heading: str, rows: Iterable[Sequence[str]], otherwise: str = "") -> Iterator[str]:
    """A heading and its rows, in columns as wide as they must be."""
    yield ""
    yield click.style(heading, bold=True)
    cells = [[printable(cell) for cell in row] for row in rows]
    for line in aligned(cells):
        yield f"  {line}"
    if not cells:
        yield f"  {otherwise}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines, in columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _open_row(door: Open) -> tuple[str, ...]:
    shut = "" if door.is_open else "not in the firewall"
    return door.door, door.address, f"{duration(door.left)} left", f"by {door.by}" if door.by else "", shut


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


def _remarks(indent: str, remarks: Iterable[Remark], mild: str = "warning") -> Iterator[str]:
    for text, code in remarks:
        word = "error" if code else mild
        yield f"{indent}{click.style(f'{word}:', fg='red' if code else 'yellow')} {printable(text)}"


def duration(seconds: float) -> str:
    """As the configuration has it, `1h30m`; the two largest units, and never less than is left."""
    rest, parts = math.ceil(seconds), []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def local_time(wall: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """As a person reads it, in this host's time zone."""
    try:
        return datetime.fromtimestamp(wall).strftime(form)
    except (OverflowError, ValueError, OSError):  # a clock that was very wrong
        return "?"


# ---- for programs


def _plain(found: Status, said: Said, code: int) -> dict[str, Any]:
    standing = said.standing
    return {
        "ok": not code,
        "daemon": found.running._asdict(),
        "degraded": standing and [each | {"since": _utc(each["since"])} for each in standing["degraded"]],
        "sources": standing and standing["sources"],
        "standing": standing and _numbers(standing),
        "open": [
            {
                "door": door.door,
                "address": door.address,
                "opened": _utc(door.opened),
                "left": math.ceil(door.left),
                "by": door.by,
                "open": door.is_open,
            }
            for door in found.open
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
        **_told((*found.remarks, *found.warnings)),
    }


def _numbers(standing: _Standing) -> dict[str, Any]:
    """What is not beside it in the answer, its times as all others are here."""
    told = {name: value for name, value in standing.items() if name not in ("sources", "degraded")}
    return told | {name: _utc(told[name]) for name in ("started", "loaded")}


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
