"""`logknock explain`: why did it not open?"""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ..config import load
from ..control import ask
from ..errors import printable
from . import config_option

_FOLLOW_EVERY = 0.5  # seconds; a person who knocks and watches sees no delay

_GOOD = {"advanced", "opened", "closed", "used"}
_NOTHING = {"resend", "done", "flags", "target", "guarded", "stale", "unknown"}


@click.command(epilog="Example: logknock explain 192.0.2.7")
@config_option
@click.argument("address")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def explain(config_path: Path, address: str, follow: bool, as_json: bool) -> None:
    """Why did it not open for ADDRESS? Asks the running daemon for each packet that it remembers of that source.

    It says which door and stage a packet advanced, or why it did not, whether the source is trusted, banned or too
    fast to be heard, and what would have opened. The daemon remembers some thousand packets of all sources together;
    for more, and for what was before its start, there is `logknock replay`.
    """
    runtime = load(config_path).runtime
    seen = 0.0
    first = True
    while first or follow:
        for answer in ask(runtime, "explain", address=address, since=seen):
            if "finding" in answer:
                seen = max(seen, answer["finding"]["time"])
            if as_json and (first or "finding" in answer):
                click.echo(json.dumps(answer))
            elif not as_json:
                for line in _lines(answer, only_findings=not first):
                    click.echo(line)
        first = False
        if follow:
            time.sleep(_FOLLOW_EVERY)


def _lines(answer: dict[str, Any], *, only_findings: bool) -> Iterator[str]:
    if "finding" in answer:
        yield _finding(answer["finding"])
    elif only_findings:
        return
    elif "standing" in answer:
        yield from _standing(answer["standing"])
    elif "advice" in answer:
        yield ""
        yield from map(printable, answer["advice"])


def _standing(standing: dict[str, Any]) -> Iterator[str]:
    """What is so whatever was sent; nothing where nothing is."""
    address = standing["address"]
    if standing["never"]:
        yield _bad(f"{address} is {standing['never']}: no door ever opens for it")
    if standing["trusted"]:
        yield f"{address} is trusted: nothing is closed to it, and it need not knock"
    if standing["banned"]:
        yield _bad(f"{address} is banned: all that it sends is dropped, and nothing of it is logged")
    if standing["deaf"]:
        yield _bad(f"{address} is too fast: nothing of it is logged until it has kept to [firewall] rate for 10 s")
    if standing["trouble"]:
        yield _bad(standing["trouble"])
    for source in standing["sources"]:
        if source["lost"]:
            yield _bad(f"{source['name']}: {source['lost']} records lost since the start: a knock may be among them")
        if not source["records"]:
            yield _bad(f"{source['name']}: no record at all since the start (hint: `logknock doctor`)")
    for grant in standing["open"]:
        yield click.style(f"{grant['door']} is open for another {grant['left']:.0f} s", fg="green")
    for attempt in standing["attempts"]:
        of = f" of {attempt['of']}" if attempt["of"] else ""
        yield f"{attempt['door']}: at stage {attempt['stage']}{of}, for another {attempt['left']:.1f} s"


def _finding(finding: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(finding["time"]).strftime("%H:%M:%S.%f")[:-3]
    words = printable(f"{finding['door'] + ': ' if finding['door'] else ''}{finding['words']}")
    verdict = finding["verdict"]
    colour = "green" if verdict in _GOOD else None if verdict in _NOTHING else "red"
    return f"{moment}  {finding['service']:>9}  {click.style(words, fg=colour)}"


def _bad(text: str) -> str:
    return click.style(printable(text), fg="yellow")
