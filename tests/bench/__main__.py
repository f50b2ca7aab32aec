"""`python -m tests.bench`: figures beside knockd's, fwknopd's and fail2ban's, in one run, as a table and as JSON.

Rule 1: it needs root, touches nothing outside namespaces of its own, and leaves nothing behind. Rule 2: figures that
fall short are figures: the exit code is 0 whenever everything was measured.
"""

import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from ..peers import UNPACKED
from .field import FULL, QUICK
from .figures import Figure
from .measure import SECTIONS
from .peers import DAEMON_CPU, SENDER_CPU


@click.command()
@click.option("--quick", is_flag=True, help="Less of everything: three minutes or so.")
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="Only this section; may be repeated.")
@click.option("--json", "output", type=click.Path(path_type=Path), default=Path("bench.json"), show_default=True)
@click.option("--markdown", is_flag=True, help="Print the table for a document.")
def main(quick: bool, only: tuple[str, ...], output: Path, markdown: bool) -> None:
    """Measure logknock beside knockd, fwknopd and fail2ban."""
    if os.geteuid():
        raise click.ClickException("the benchmark makes network namespaces: run it as root (make bench uses sudo)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.sched_setaffinity(0, {SENDER_CPU})
    gc.disable()  # a collection in the sender would be a gap in the flood
    start, load = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    with TemporaryDirectory() as compiled:
        # What is started is to start as it does when installed: with its modules compiled.
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for name in only or SECTIONS:
            click.echo(
                f"{time.monotonic() - start:4.0f} s: {name}", err=True
            )  # no spinner: its thread would be in the sender's way
            figures.extend(SECTIONS[name](QUICK if quick else FULL))
    machine = _machine(load)
    _save(output, machine, figures)
    seconds = f"{time.monotonic() - start:.0f} s"
    caption = (
        f"medians (least-most); beside: knockd, or what a section names; ratio: that to ours; measured in {seconds}"
    )
    (_print_markdown if markdown else _print)(machine, figures, caption)


def _machine(load: float) -> dict[str, str]:
    """What the figures depend on; a load of much more than 1 means that others worked here too."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "kernel": platform.release(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "processors": f"{os.cpu_count()} (sender on {SENDER_CPU}, daemon on {DAEMON_CPU})",
        "load before and after": f"{load:.1f}, {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "nft": _version("nft", "--version"),
        "knockd": _version("dpkg-query", "-W", "-f=${Version}", "knockd"),
        "fwknopd": _version(f"{UNPACKED}/usr/sbin/fwknopd", "-V").partition(",")[0].removeprefix("fwknopd server "),
    }


def _version(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def _save(output: Path, machine: dict[str, str], figures: list[Figure]) -> None:
    content = {"machine": machine, "figures": [asdict(figure) | {"ratio": figure.ratio} for figure in figures]}
    output.write_text(json.dumps(content, indent=1) + "\n")


_HEADINGS = ("", "logknock", "beside", "ratio", "target", "verdict")


def _row(figure: Figure) -> tuple[str, ...]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:,.1f}x"
    return figure.name, figure.shown(figure.ours), figure.shown(figure.theirs), ratio, figure.target, figure.verdict


def _print(machine: dict[str, str], figures: list[Figure], caption: str) -> None:
    table = Table(caption=caption, caption_justify="left")
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if 1 <= number <= 3 else "left", no_wrap=True)
    for section, members in groupby(figures, key=lambda figure: figure.section):
        table.add_section()
        table.add_row(f"[bold]{section}")
        for figure in members:
            *cells, verdict = _row(figure)
            colour = {True: "green", False: "red", None: "default"}[figure.met]
            table.add_row("  " + cells[0], *cells[1:], f"[{colour}]{verdict}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    for name, fact in machine.items():
        console.print(f"{name}: {fact}", highlight=False)
    console.print(table)


def _print_markdown(machine: dict[str, str], figures: list[Figure], caption: str) -> None:
    """The same for a document."""
    lines = [", ".join(f"{name}: {fact}" for name, fact in machine.items()), f"{caption}.", ""]
    lines += [f"| {' | '.join(_HEADINGS)} |", "|---|--:|--:|--:|---|---|"]
    for section, members in groupby(figures, key=lambda figure: figure.section):
        lines.append(f"| **{section}** | | | | | |")
        lines += [f"| {' | '.join(_row(figure))} |" for figure in members]
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
