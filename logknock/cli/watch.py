"""`logknock watch`: what happens, as it happens. Rule: the daemon tells, and here it is shown."""

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from ..control import ControlError, ask, follow, start_hint
from ..errors import UNAVAILABLE, USAGE, LogknockError, printable
from ..packet import address_text, parse_address
from ..standing import concerns
from . import config_option
from .runtime import runtime_of
from .status import aligned, duration, local_time

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

# Events that a terminal can show at most: more rows than any has.
_MOST_EVENTS = 500

# Rows that a terminal has at least for the events, however many doors are open.
_LEAST_EVENTS = 4

# Seconds from one picture to the next, at least: a person sees no more, and a flood costs no more.
_FRAME = 0.1

_STYLES = {"error": "bold red", "warning": "yellow", "notice": "green", "info": ""}

_Json = Mapping[str, Any]


class Only:
    """What is to be shown: of one door, of one address, or all."""

    def __init__(self, door: str, address: str) -> None:
        self._door = door
        self._address = address
        self._all = not (door or address)

    def shows(self, it: _Json) -> bool:
        """Whether an event or a grant is to be shown; what concerns no door in particular is, where all is."""
        return self._all or (
            any(concerns(self._door, str(it.get(key, ""))) for key in ("door", "closes"))
            and self._address in ("", it.get("address"), it.get("src"))
        )


class View(Protocol):
    """Shows what comes."""

    def take(self, answers: Sequence[_Json]) -> None:
        """Some more of it."""

    def close(self) -> None:
        """There is no more."""


@click.command(epilog="Examples: logknock watch\n\nlogknock watch --json | jq -c 'select(.event).event'")
@config_option
@click.option("--door", "door", metavar="NAME", default="", help="What concerns this door alone.")
@click.option("--address", "address", metavar="ADDRESS", default="", help="What concerns this knocker alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def watch(config_path: Path, door: str, address: str, as_json: bool) -> int:
    """What happens, as it happens: knocks, doors that open and close, losses, and whether all is well.

    On a terminal a picture: how the daemon stands, which doors are open and for how much longer, and the events of the
    log. Piped, a line an event. Ends with Ctrl-C, or with the daemon (exit code 69). In a flood some events are left
    out, as in the log; a terminal that does not keep up hears how many it missed.
    """
    if address:
        try:
            address = address_text(parse_address(address))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--address") from None
    only, runtime = Only(door, address), runtime_of(config_path)
    signal.signal(signal.SIGTERM, _interrupt)  # a terminal is to be left as it was found
    view: View | None = None
    try:
        for answers in follow(runtime, "watch"):
            if view is None:
                _check_door(door, answers[0])
                view = _choose(only, runtime, as_json)
            view.take(answers)
            for answer in answers:
                if "ended" in answer:
                    raise LogknockError(printable(answer["ended"]), start_hint(), UNAVAILABLE)
    except KeyboardInterrupt:
        return 0
    finally:
        if view is not None:
            view.close()
    return 0


def _check_door(door: str, first: _Json) -> None:
    """Raises LogknockError if the daemon has no such door: nothing would ever come. The first answer has all doors."""
    names = [known["name"] for known in first["standing"]["doors"]]
    if not any(concerns(door, name) for name in names):
        raise LogknockError(f"there is no door {printable(door)}", f"the doors are: {', '.join(names)}", USAGE)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _choose(only: Only, runtime: Path, as_json: bool) -> View:
    if as_json:
        return Objects(only)
    if not sys.stdout.isatty() or find_spec("rich") is None:
        return Lines(only)
    from rich.console import Console

    console = Console()
    return Lines(only) if console.is_dumb_terminal else Picture(only, runtime)


class Objects:
    """For programs."""

    def __init__(self, only: Only) -> None:
        self._only = only

    def take(self, answers: Sequence[_Json]) -> None:
        for answer in answers:
            if all(self._only.shows(answer[kind]) for kind in ("event", "grant", "gone") if kind in answer):
                if "grants" in answer:
                    answer = {"grants": [grant for grant in answer["grants"] if self._only.shows(grant)]}
                click.echo(json.dumps(answer))

    def close(self) -> None:
        """Nothing is left to be done."""


class Lines:
    """A line an event; and what is degraded, when that changes."""

    def __init__(self, only: Only) -> None:
        self._only = only
        self._begun = False
        self._degraded: list[str] = []

    def take(self, answers: Sequence[_Json]) -> None:
        for answer in answers:
            match answer:
                case {"event": event} if self._only.shows(event):
                    click.echo(f"{local_time(event['time'])}  {_word(event)}{printable(event['text'])}")
                case {"missed": count}:
                    click.echo(f"{local_time(time.time())}  {_missed(count)}")
                case {"standing": standing}:
                    if not self._begun:
                        click.echo(f"{local_time(time.time())}  {_runs(standing)}")
                        self._begun = True
                    self._take_degraded([_degraded(each) for each in standing["degraded"]])

    def _take_degraded(self, now: list[str]) -> None:
        for words in now:
            if words not in self._degraded:
                click.echo(f"{local_time(time.time())}  degraded {words}")
        if self._degraded and not now:
            click.echo(f"{local_time(time.time())}  no longer degraded")
        self._degraded = now

    def close(self) -> None:
        """Nothing is left to be done."""


class Picture:
    """The whole terminal, until the end; then it is as it was before."""

    def __init__(self, only: Only, runtime: Path) -> None:
        from rich.console import Console
        from rich.live import Live

        self._only = only
        self._runtime = runtime
        self._standing: _Json = {}
        self._grants: dict[tuple[str, str], tuple[float, _Json]] = {}  # until when, by our own clock
        self._events: deque[tuple[float, str, str]] = deque(maxlen=_MOST_EVENTS)  # when, how bad, in words
        self._shown = 0.0
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._live.start()

    def take(self, answers: Sequence[_Json]) -> None:
        for answer in answers:
            self._take(answer)
        # The end of each second comes with how the daemon stands: what is left out here is shown then.
        if time.monotonic() - self._shown >= _FRAME or any("standing" in answer for answer in answers):
            self._shown = time.monotonic()
            self._live.update(self._draw(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _take(self, answer: _Json) -> None:
        match answer:
            case {"event": event} if self._only.shows(event):
                self._events.append((event["time"], event["level"], printable(event["text"])))
            case {"standing": standing}:
                self._standing = standing
            case {"grants": grants}:
                self._open(grants)
            case {"grant": grant}:
                self._open([grant])
            case {"gone": gone}:
                self._grants.pop((gone["door"], gone["address"]), None)
            case {"missed": count}:
                self._events.append((time.time(), "warning", _missed(count)))
                self._look_again()

    def _open(self, grants: Iterable[_Json]) -> None:
        now = time.monotonic()
        for grant in grants:
            if self._only.shows(grant):
                self._grants[grant["door"], grant["address"]] = (now + grant["left"], grant)

    def _look_again(self) -> None:
        """Which doors are open may be among what was missed."""
        self._grants.clear()
        try:
            for answer in ask(self._runtime, "grants"):
                self._open(answer["grants"])
        except ControlError:
            pass  # it has just ended, say: that shows on the other connection

    # ---- the picture

    def _draw(self) -> "RenderableType":
        """As many rows as the terminal has; each is cut where it is too narrow."""
        from rich.text import Text

        rows = [*self._draw_standing(), Text(), *self._draw_grants()]
        room = max(_LEAST_EVENTS, self._console.height - len(rows) - 2)
        rows += [Text(), _heading("events", "  (Ctrl-C ends)")]
        rows += [
            Text.assemble(f"{local_time(when, '%H:%M:%S')}  ", (text, _STYLES.get(level, "")))
            for when, level, text in list(self._events)[-room:]
        ] or [Text("nothing yet", style="dim")]
        for row in rows:
            row.truncate(max(1, self._console.width), overflow="ellipsis")
        return Text("\n").join(rows[: self._console.height])

    def _draw_standing(self) -> "list[Text]":
        from rich.text import Text

        standing = self._standing
        if not standing:
            return []
        rows = [
            Text.assemble(
                (f"logknock {standing['version']}  ", "bold"),
                ("degraded", "bold red") if standing["degraded"] else ("all is well", "green"),
                f"  {len(self._grants):,} open  {standing['attempts']:,} knocking  {standing['opened']:,} opened  ",
                f"{standing['banned']:,} banned  since {local_time(standing['started'])}",
            )
        ]
        rows += [Text(f" degraded {_degraded(each)} ", style="bold white on red") for each in standing["degraded"]]
        for source in standing["sources"]:
            lost = (f"{source['lost']:,} lost", "bold red" if source["lost"] else "")
            words = f"{printable(source['name'])}  {source['rate']:,.1f}/s  {source['records']:,} records  "
            rows.append(Text.assemble(words, lost))
        return rows

    def _draw_grants(self) -> "list[Text]":
        from rich.text import Text

        now = time.monotonic()
        found = [(until - now, grant) for until, grant in self._grants.values() if until > now]
        most = max(1, (self._console.height - len(self._standing.get("sources", ())) - 6) // 2)
        # What closes next comes first; of 65,536 doors only as many are put in order as there are rows.
        shown = nsmallest(most - (len(found) > most), found, key=lambda each: each[0])
        cells = [
            (grant["door"], grant["address"], f"{duration(left)} left", grant["by"] and f"by {printable(grant['by'])}")
            for left, grant in shown
        ]
        rows = [Text(line) for line in aligned(cells)]
        if len(shown) < len(found):
            rows.append(Text(f"and {len(found) - len(shown):,} more", style="dim"))
        return [_heading("open doors"), *(rows or [Text("none", style="dim")])]


def _heading(text: str, aside: str = "") -> "Text":
    from rich.text import Text

    return Text.assemble((text, "bold"), (aside, "dim"))


def _runs(standing: _Json) -> str:
    return f"logknock {standing['version']} runs since {local_time(standing['started'])}"


def _word(event: _Json) -> str:
    return f"{event['level']}: " if event["level"] in ("error", "warning") else ""


def _missed(count: int) -> str:
    return f"{count:,} events were missed: they were not read in time"


def _degraded(each: _Json) -> str:
    """One thing that is degraded, since when, and what to do."""
    hint = f" (hint: {each['hint']})" if each["hint"] else ""
    return printable(f"since {local_time(each['since'])}: {each['part']}: {each['why']}{hint}")
