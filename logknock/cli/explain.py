"""`logknock explain`: why did it not open?"""

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from ..config import load
from ..control import ask
from ..errors import printable
from ..packet import parse_address
from ..trail import GOOD, NOTHING
from . import config_option

_FOLLOW_EVERY = 0.5  # seconds; a person who knocks and watches sees no delay


@click.command(epilog="Example: logknock explain 192.0.2.7")
@config_option
@click.argument("address")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def explain(config_path: Path, address: str, follow: bool, as_json: bool) -> None:
    """Why did it not open for ADDRESS? Asks the running daemon for each packet that it remembers of that address.

    It says which door and stage a packet advanced, or why it did not, whether the address is trusted, banned or
    too fast to be listened to, and what would have opened. The daemon remembers some thousand packets of all together;
    for more, and for what was before its start, there is `logknock replay`.
    """
    try:
        parse_address(address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS") from None
    runtime = load(config_path).runtime
    shown = _Shown(as_json)
    shown.take(ask(runtime, "explain", address=address))
    while follow:
        time.sleep(_FOLLOW_EVERY)
        shown.take(ask(runtime, "explain", address=address, since=shown.last), again=True)


class _Shown:
    """What has been printed, so that it is not printed again."""

    def __init__(self, as_json: bool) -> None:
        self.last = 0.0  # when the latest packet came
        self._as_json = as_json
        self._lasting: list[str] = []

    def take(self, answers: Iterable[dict[str, Any]], *, again: bool = False) -> None:
        """Print answers; when it is not the first time, only what is new."""
        for answer in answers:
            lines = list(self._lines(answer, again))
            if self._as_json and lines:
                click.echo(json.dumps(answer))
            for line in () if self._as_json else lines:
                click.echo(line)

    def _lines(self, answer: dict[str, Any], again: bool) -> Iterator[str]:
        if "finding" in answer:
            self.last = max(self.last, answer["finding"]["time"])
            yield _finding(answer["finding"])
        elif "standing" in answer:
            lasting = list(_lasting(answer["standing"]))
            yield from (line for line in lasting if line not in self._lasting)
            self._lasting = lasting
            if not again:
                yield from _running(answer["standing"])
                yield from ("",) if self._as_json else ()
        elif "advice" in answer and not again:
            yield ""
            yield from map(printable, answer["advice"])


def _lasting(standing: dict[str, Any]) -> Iterator[str]:
    """What is so whatever was sent; nothing where nothing is."""
    address = standing["address"]
    if standing["never"]:
        yield _bad(f"{address} is {standing['never']}: no door ever opens for it")
    if standing["trusted"]:
        yield f"{address} is trusted: nothing is closed to it, and it need not knock"
    if standing["banned"]:
        ban = standing["ban"]
        yield _bad(f"{address} is banned: all that it sends is dropped, and nothing of it is logged{_ban_words(ban)}")
    if standing["deaf"]:
        others = ", or all of its /64 together" if ":" in address else ""
        yield _bad(f"{address} is too fast{others}: nothing is logged until [firewall] rate was kept to for 10 s")
    if standing["trouble"]:
        yield _bad(standing["trouble"])
    for source in standing["sources"]:
        if source["lost"]:
            yield _bad(f"{source['name']}: {source['lost']} records lost since the start: a knock may be among them")
        if not source["records"]:
            yield _bad(f"{source['name']}: no record at all since the start (hint: `logknock doctor`)")


def _ban_words(ban: dict[str, Any] | None) -> str:
    """Why, whose and until when, where the daemon knows; the same text for as long as it lasts."""
    if ban is None:
        return ""
    since = datetime.fromtimestamp(ban["since"])
    end = "" if ban["left"] is None else f", until {datetime.now() + timedelta(seconds=ban['left']):%Y-%m-%d %H:%M}"
    return f" ({ban['reason']}; {ban['address']} since {since:%Y-%m-%d %H:%M}{end})"


def _running(standing: dict[str, Any]) -> Iterator[str]:
    """What is open, and what has begun."""
    for grant in standing["open"]:
        yield click.style(f"{grant['door']} is open for another {grant['left']:.0f} s", fg="green")
    for attempt in standing["attempts"]:
        of = f" of {attempt['of']}" if attempt["of"] else ""
        yield f"{attempt['door']}: at stage {attempt['stage']}{of}, for another {attempt['left']:.1f} s"


def _finding(finding: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(finding["time"])
    date = "" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d} "
    words = printable(f"{finding['door'] + ': ' if finding['door'] else ''}{finding['words']}")
    colour = "green" if finding["verdict"] in GOOD else None if finding["verdict"] in NOTHING else "red"
    return (
        f"{date}{when:%H:%M:%S}.{when.microsecond // 1000:03}  {finding['service']:>9}  {click.style(words, fg=colour)}"
    )


def _bad(text: str) -> str:
    return click.style(printable(text), fg="yellow")
