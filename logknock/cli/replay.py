"""`logknock replay`: what would this configuration have done with this log? Rule: it prints what `replay` found."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import click

from ..config import Config, load
from ..config_values import Network
from ..errors import FAILURE, USAGE, LogknockError, printable
from ..packet import address_text
from ..plot import svg
from ..replay import MAX_COUNTED, Choice, Replay, Summary, parse_network, parse_when
from ..timeline import times
from ..trail import GOOD, NOTHING, Finding, Verdict
from . import config_option, fail

_INTERRUPTED = 130  # as a shell tells of Ctrl-C

# Seconds of reading before a terminal hears of it, and between two times that it does.
_PATIENCE = 0.3
_EVERY = 0.25

_OTHERS = {
    Verdict.USED: "one-time sequences and steps used",
    Verdict.RESEND: "the same knock again",
    Verdict.DONE: "after the last knock",
    Verdict.FLAGS: "other TCP flags",
    Verdict.TARGET: "another target",
    Verdict.GUARDED: "to a guarded service",
}
_FAILED = {
    Verdict.WRONG: "by a wrong port",
    Verdict.TIMEOUT: "by timeout",
    Verdict.LATE: "too late",
    Verdict.CLOCK: "by a clock that stepped back",
    Verdict.EVICTED: "by too many others knocking",
    Verdict.SPENT: "by a one-time sequence used up",
    Verdict.REPLAYED: "by a step that was used up",
    Verdict.OUTSIDE: "by a sequence of another time",
    Verdict.WARY: "by wrong tries: one more step was asked for",
    Verdict.COOLDOWN: "too soon after the last time",
    Verdict.REFUSED: "by an address that is never granted",
}

_T = TypeVar("_T")


def _parsed(parse: Callable[[str], _T]) -> Callable[[click.Context, click.Parameter, str | None], _T | None]:
    """An option's value by a parser that raises ValueError in words for the operator."""

    def callback(context: click.Context, parameter: click.Parameter, value: str | None) -> _T | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _when(text: str) -> float:
    return parse_when(text, time.time())


@click.command(
    epilog="Example: logknock replay /var/log/kern.log* --from 192.0.2.7 --since yesterday\n\n"
    "What `--json` prints is in docs/howto/replay.md."
)
@config_option
@click.argument("logs", metavar="LOG...", nargs=-1, required=True)
@click.option("--from", "network", metavar="ADDRESS", callback=_parsed(parse_network), help="This address or network.")
@click.option("--since", metavar="WHEN", callback=_parsed(_when), help="'2026-11-21 10:00', '10:00', '2h ago'.")
@click.option("--until", metavar="WHEN", callback=_parsed(_when), help="The same; both ends are included.")
@click.option("--door", metavar="NAME", default="", help="This door alone.")
@click.option("--all", "noise", is_flag=True, help="Show packets that no door knows, too.")
@click.option("-q", "--quiet", "--summary", "quiet", is_flag=True, help="Only the summary.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
@click.option(
    "--plot", metavar="FILE.svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw the time line there."
)
def replay(
    config_path: Path,
    logs: tuple[str, ...],
    network: Network | None,
    since: float | None,
    until: float | None,
    door: str,
    noise: bool,
    quiet: bool,
    as_json: bool,
    plot: Path | None,
) -> int:
    """What would this configuration have done with this log?

    LOG is a file, packed with gzip, xz or bzip2 or not, a journal's directory or file, the word `journal` for this
    host's, or - for standard input. Several are read as one, in the order of time. Nothing is opened: a line for each
    packet says what it would have done, and the summary what would have opened. Exit code 1: a log is damaged, or
    nothing in it has the configuration's prefix; 69: it is not there; 77: not allowed.
    """
    config = load(config_path)
    names = [known.name for known in config.doors]
    if door and door not in names:
        raise LogknockError(f"there is no door {printable(door)}", f"the doors are: {', '.join(names)}", USAGE)
    if plot and plot.suffix != ".svg":  # so that a slip of the hand overwrites no log
        raise LogknockError(f"{printable(str(plot))}: the picture's name ends in .svg", "--plot knocks.svg", USAGE)
    choice = Choice(network, _or(since, -math.inf), _or(until, math.inf), door, noise)
    return _replay(config, logs, choice, plot, quiet, as_json)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _replay(
    config: Config, logs: tuple[str, ...], choice: Choice, plot: Path | None, quiet: bool, as_json: bool
) -> int:
    progress = _Progress()
    columns = None if as_json else _Columns(names=[door.name for door in config.doors])
    with ExitStack() as stack:
        picture = stack.enter_context(_Picture(plot)) if plot else None
        what = (config.doors, config.wanted, logs, choice, config.journal, progress.tell, config.totp)
        replay = stack.enter_context(Replay(*what))
        interrupted = _interrupted(replay, progress, columns, quiet)
        summary = replay.summary()
        if as_json:
            click.echo(json.dumps({"summary": _plain_summary(summary, interrupted)}))
        else:
            for line in _summary(summary, choice, interrupted):
                click.echo(line)
        if picture:
            picture.write(svg(replay.time_line()))
            if not as_json:
                click.echo(f"\nThe time line is in {printable(str(plot))}.")
    for problem in summary.problems:
        fail(LogknockError(problem))
    if interrupted:
        return _INTERRUPTED
    mismatch = replay.mismatch()
    return fail(mismatch) if mismatch else FAILURE if summary.problems else 0


def _interrupted(replay: Replay, progress: "_Progress", columns: "_Columns | None", quiet: bool) -> bool:
    """Read all and print the findings, in columns or as JSON; whether somebody had enough of it."""
    try:
        for finding in replay.findings():
            if not quiet:
                progress.clear()
                click.echo(columns.line(finding) if columns else json.dumps({"finding": _plain(finding)}))
    except KeyboardInterrupt:
        return True
    finally:
        progress.clear()
    return False


class _Picture:
    """A file that is begun at once, so that nobody waits for what cannot be, and gets its name when it is whole.

    Raises LogknockError where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._file = self._begun.open("x", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of what could not be written write() has told
            self._file.close()
        self._begun.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """All of it."""
        try:
            self._file.write(text)
            self._file.flush()
            self._begun.replace(self._path)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> LogknockError:
        hint = "name a file in a directory that you may write to"
        return LogknockError(f"{printable(str(self._path))}: {error.strerror}", hint)


class _Progress:
    """How far the reading is, on the last line of a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + _PATIENCE
        self._shown = False

    def tell(self, replay: Replay) -> None:
        """Show it, if it is time to."""
        if not self._on or (now := time.monotonic()) < self._next:
            return
        self._next = now + _EVERY
        rate = replay.records / (now - self._began)
        part = f", {min(100, 100 * replay.done // replay.size)} %" if replay.size else ""
        click.echo(f"\r\x1b[K{replay.records:,} records{part}, {rate:,.0f} a second", nl=False, err=True)
        self._shown = True

    def clear(self) -> None:
        """Give the line back."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False


# ---- for people


class _Columns:
    """Findings in columns that grow with what stands in them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._src = len("255.255.255.255")
        self._door = max(map(len, names), default=0)
        self._fraction = False  # whether the log tells more than seconds

    def line(self, finding: Finding) -> str:
        """`2026-11-21 10:00:00.123  192.0.2.7  7000/tcp  ssh  stage 1 of 3`"""
        self._fraction = self._fraction or finding.time % 1 != 0
        src = address_text(finding.src)
        self._src = max(self._src, len(src))
        words = printable(finding.words)
        match finding.verdict:
            case Verdict.OPENED | Verdict.CLOSED:
                words = click.style(words, fg="green", bold=True)
            case verdict if verdict in GOOD:
                words = click.style(words, fg="green")
            case verdict if verdict in NOTHING:
                words = click.style(words, dim=True)
            case _:
                words = click.style(words, fg="red")
        when = _local(finding.time, self._fraction)
        return f"{when}  {src:<{self._src}}  {finding.service:<9}  {finding.door:<{self._door}}  {words}"


def _summary(summary: Summary, choice: Choice, interrupted: bool) -> Iterator[str]:
    yield ""
    as_far = ", as far as it was read" if interrupted else ""
    yield click.style(printable(", ".join(summary.logs)), bold=True) + as_far
    rows = [*_read(summary), *_became(summary)]
    if choice.network and not summary.findings:
        whom = choice.network.network_address if choice.network.num_addresses == 1 else choice.network
        rows.append(("asked", f"nothing of {whom}: do its packets come here, and does a rule log them?"))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        yield f"  {name:<{width}}  {printable(text)}"
    if summary.close:
        yield ""
        yield click.style("came closest", bold=True)
    for close in summary.close:
        of = f" of {close.of}" if close.of else ""
        yield f"  {address_text(close.src)}" + (f", stage {close.stage}{of}" if close.stage else "")
        yield from (f"    {printable(line)}" for line in (close.why, *close.advice) if line)
    if summary.onetime:
        yield ""
        yield "One-time files and clients' steps count as unused at first: a log does not tell what was used before it."
    if summary.spa:
        yield ""
        yield f"What opens {', '.join(summary.spa)} is not told here: a log carries no payload, and so no SPA packet."


def _read(summary: Summary) -> Iterator[tuple[str, str]]:
    if summary.first is not None and summary.last is not None:
        yield "from", _local(summary.first, False)
        yield "to", _local(summary.last, False)
    yield "records", f"{summary.records:,}"
    more = " or more" if summary.sources >= MAX_COUNTED else ""
    yield "packets", f"{summary.packets:,} from {_many(summary.sources, 'source', more)}"
    if summary.outside:
        yield "outside", f"{_many(summary.outside, 'packet')} before --since or after --until"
    if summary.copies:
        yield "copies", f"{_many(summary.copies, 'packet')} that stood in another log, too"
    if summary.skipped:
        yield "skipped", _list(summary.skipped)
    if summary.prefixes:
        yield "prefixes", "others' were " + ", ".join(f"{p!r} ({n:,})" for p, n in summary.prefixes.items())


def _became(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "opened", ", ".join(f"{door} {times(count)}" for door, count in summary.opened.items()) or "nothing"
    if summary.closed:
        yield "closed", ", ".join(f"by {door} {times(count)}" for door, count in summary.closed.items())
    if summary.failed:
        yield "failed", ", ".join(f"{count:,} {_FAILED[verdict]}" for verdict, count in summary.failed.items())
    if summary.other:
        yield (
            "besides",
            ", ".join(f"{count:,} {_OTHERS.get(verdict, verdict)}" for verdict, count in summary.other.items()),
        )
    if summary.noise:
        yield "noise", f"{_many(summary.noise, 'packet')} that no door knows"


def _many(count: int, word: str, more: str = "") -> str:
    return f"{count:,}{more} {word}" + ("" if count == 1 else "s")


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _local(seconds: float, fraction: bool) -> str:
    try:
        when = datetime.fromtimestamp(seconds)
    except (OverflowError, ValueError, OSError):  # a clock that was very wrong
        return "?"
    return f"{when:%Y-%m-%d %H:%M:%S}" + (f".{when.microsecond // 1000:03}" if fraction else "")


# ---- for programs


def _plain(finding: Finding) -> dict[str, Any]:
    return finding._asdict() | {"src": address_text(finding.src)}


def _plain_summary(summary: Summary, interrupted: bool) -> dict[str, Any]:
    close = [entry._asdict() | {"src": address_text(entry.src)} for entry in summary.close]
    return summary._asdict() | {"close": close, "interrupted": interrupted}
