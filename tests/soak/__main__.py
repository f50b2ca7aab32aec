"""`python -m tests.soak`: an hour of everything, and whether all of it held. Exit code 1 where something did not."""

import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from .site import Site
from .story import Told, soak


@click.command()
@click.option("--minutes", type=click.FloatRange(1), default=60.0, show_default=True, help="For how long.")
@click.option("--seed", type=int, help="Of a run that is to be repeated; a new one each time otherwise.")
def main(minutes: float, seed: int | None) -> None:
    """Run logknock among noise, knocks, reloads, flushed sets, deleted tables and restarts of journald."""
    if os.geteuid():
        raise click.ClickException("it makes network namespaces: run it as root (make soak uses sudo)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = time.time_ns() % 1_000_000 if seed is None else seed
    click.echo(f"{minutes:g} minutes; again the same: --minutes {minutes:g} --seed {seed}")
    with TemporaryDirectory() as folder:
        told = soak(Path(folder), minutes * 60, seed, _Progress())
    Console(width=None if sys.stdout.isatty() else 120).print(summary(told))
    click.echo("all of it held" if not told.failures else f"{len(told.failures)} claims did not hold")
    sys.exit(bool(told.failures))


class _Progress:
    """Tells how it goes, and what did not hold, once."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, told: Told) -> None:
        parts = []
        for one in told.sites:
            counted = one.counted
            parts.append(f"{one.name}: {counted['opened']} of {counted['knocks']} opened, {one.memory:.1f} MiB")
        minute, whole = (f"{int(seconds) // 60}:{int(seconds) % 60:02}" for seconds in (told.elapsed, told.seconds))
        click.echo(f"{minute} of {whole}  {'; '.join(parts)}", err=True)
        for failure in told.failures[self._told :]:
            click.echo(failure)
        self._told = len(told.failures)


def summary(told: Told) -> Table:
    """What has been, a column for each site."""
    table = Table(title=f"{told.elapsed / 60:.0f} minutes")
    table.add_column("")
    for one in told.sites:
        table.add_column(one.name, justify="right")
    rows = [_rows(one) for one in told.sites]
    for name in rows[0]:
        table.add_row(name, *(row[name] for row in rows))
    return table


def _rows(one: Site) -> dict[str, str]:
    counted = one.counted
    return {
        "records": f"{counted['records']:,}",
        "records lost": f"{counted['lost']:,}",
        "knocks opened": f"{counted['opened']:,} of {counted['knocks']:,}",
        "knock to open, at most": f"{one.slowest:.2f} s",
        "doors shut": f"{counted['shut']:,}",
        "after their end, at most": f"{one.latest:.2f} s",
        "questions answered": f"{counted['answers']:,}",
        "reloads": f"{counted['reloads']:,}",
        "sets flushed": f"{counted['set']:,}",
        "tables flushed or deleted": f"{counted['table']:,}",
        "memory after warm-up, most, now": f"{one.base_memory:.1f}, {one.most_memory:.1f}, {one.last_memory:.1f} MiB",
        "descriptors after warm-up, now": f"{one.base_descriptors}, {one.last_descriptors}",
    }


if __name__ == "__main__":
    main()
