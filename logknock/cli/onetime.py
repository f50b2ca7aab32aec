"""`logknock onetime`: files of one-time sequences. Rule: it prints and asks, no more."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from secrets import SystemRandom

import click

from ..config import Config, PortRange, load
from ..config_values import WrongError, port_range
from ..errors import USAGE, LogknockError
from ..firewall import ruleset
from ..knock import MAX_SEQUENCE, Sequence, Service
from ..onetime import MIN_LENGTH, WeakError, generate, strength
from ..onetime_files import write_new
from . import Group, config_option

# Five times fifty a day for a hundred years. They are made in a minute, in a file of 300 MB.
MAX_COUNT = 10_000_000

# Fewer are written before anybody has read how far it is.
_SHOWN_FROM = 100_000


@click.group(cls=Group, epilog="Example: logknock onetime generate /etc/logknock/onetime/laptop")
def onetime() -> None:
    """Make files of one-time sequences: each of them opens a door once."""


def _ranges(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[PortRange, ...]:
    try:
        return tuple(port_range(word) for word in words)
    except WrongError as error:
        raise click.BadParameter(f"{error}: {error.hint}", ctx, param) from None
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@onetime.command(
    "generate",
    epilog="Example: logknock onetime generate /etc/logknock/onetime/laptop --count 1000 --ports 20000-29999/udp",
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1, MAX_COUNT), default=100, show_default=True, help="How many sequences.")
@click.option(
    "--length",
    type=click.IntRange(MIN_LENGTH, MAX_SEQUENCE),
    default=5,
    show_default=True,
    help="How many knocks in each.",
)
@click.option(
    "--ports",
    "ranges",
    multiple=True,
    default=("10000-60999/tcp",),
    show_default=True,
    metavar="RANGE",
    callback=_ranges,
    help="The ports to knock on, 20000-29999/udp; may be given several times.",
)
@config_option
def generate_(path: Path, count: int, length: int, ranges: tuple[PortRange, ...], config_path: Path) -> None:
    """Write a new FILE of one-time sequences that nobody can guess.

    Its ports are none that the configuration guards, opens, knocks on or makes a trap, and none that a program of this
    host listens on. A file that is there is never overwritten. Exit code 2: the sequences would be too weak; 77: not
    allowed; 78: the configuration is wrong.
    """
    config = load(config_path)
    services = _services(ranges) - _avoided(config)
    try:
        sequences = generate(count, length, services, SystemRandom().randrange)
    except WeakError as error:
        taken = len(_services(ranges)) - len(services)
        hint = error.hint + (f" ({taken} of those asked for are in use or traps, and left out)" if taken else "")
        raise LogknockError(str(error), hint, USAGE) from None
    write_new(path, _watched(sequences, count))
    bits = int(strength(services, length))
    name = json.dumps(str(path.absolute()), ensure_ascii=False)
    click.echo(
        f"{count:,} {'sequence' if count == 1 else 'sequences'} of {length} knocks, {bits} bits each; "
        f"next: onetime = [{name}] in the door, `logknock rules apply`, and a copy of the file to the client"
    )


def _services(ranges: Iterable[PortRange]) -> frozenset[Service]:
    return frozenset(Service(proto, port) for proto, first, last in ranges for port in range(first, last + 1))


def _avoided(config: Config) -> frozenset[Service]:
    """What is something else already; a port that is excluded from the traps may well be knocked on."""
    listening = ruleset.listening()
    opened = (service for door in config.doors for service in door.opens)
    others, _ = ruleset.knocked_once(config)
    traps = ruleset.traps(config, ruleset.trap_seed(config.state), listening, others)
    return traps.union(config.guarded, config.knocked, opened, listening)


def _watched(sequences: Iterable[Sequence], count: int) -> Iterable[Sequence]:
    """The same, with a bar on a terminal where there are many."""
    if count < _SHOWN_FROM or not sys.stderr.isatty():
        return sequences  # rich would end its line, where it has written none
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return sequences
    return track(sequences, "writing", count, console=Console(stderr=True), transient=True)
