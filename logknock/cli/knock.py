"""`logknock knock`: be the one who knocks."""

import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__, client, runs
from ..errors import FAILURE, LogknockError
from ..knock import Service
from ..packet import TCP
from . import fail

if TYPE_CHECKING:  # a knock that needs no profile does not wait for what reads them
    from ..profiles import Profile, Profiles

_SERVICE = re.compile(r"[0-9]+([:/](tcp|udp))?", re.IGNORECASE)

# What can only be meant as a service or a pause, right or wrong: no profile's name begins so.
_LIKE_A_SERVICE = re.compile(r"[-+ ]?[0-9]")


def _words(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """What click did not know as an option comes here too, so that `-5` is reported as the bad service it is."""
    for at, word in enumerate(words):
        if word.startswith("-") and (at == 0 or not _LIKE_A_SERVICE.match(word)):
            raise click.NoSuchOption(word, ctx=ctx)
    if _SERVICE.fullmatch(words[0]):
        raise click.UsageError(f"{words[0]!r} is a service: say first at which HOST to knock.", ctx)
    return words


def _parsed(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str | None], object]:
    """A parser that raises ValueError as a callback of click's."""

    def callback(ctx: click.Context, param: click.Parameter, text: str | None) -> object:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def _verify(text: str) -> Service:
    service = client.parse_word(text)
    if not isinstance(service, Service):
        raise ValueError(f"{text!r} is no service: write 22/tcp")
    if service.proto != TCP:
        raise ValueError(f"{service} cannot be verified: over UDP nothing need answer")
    return service


def _limit(text: str) -> float:
    seconds = client.parse_delay(text)
    if not runs.MIN_LIMIT <= seconds <= runs.MAX_LIMIT:
        raise ValueError(f"{text!r} is out of range ({runs.MIN_LIMIT * 1000:.0f}ms-{runs.MAX_LIMIT:.0f}s)")
    return seconds


profiles_option = click.option(
    "--profiles",
    "file",
    type=click.Path(path_type=Path, readable=False),  # load() says more of what it cannot read
    envvar="LOGKNOCK_CLIENT",
    show_envvar=True,
    metavar="FILE",
    help="The profiles.  [default: ~/.config/logknock/client.toml]",
)
timeout_option = click.option(
    "--timeout",
    "limit",
    metavar="TIME",
    default=f"{runs.LIMIT:g}s",
    show_default=True,
    callback=_parsed(_limit),
    help=f"How long the service may take to answer: {runs.MIN_LIMIT * 1000:.0f}ms to {runs.MAX_LIMIT:.0f}s.",
)
tries_option = click.option(
    "--tries",
    type=click.IntRange(1, runs.MAX_TRIES),
    metavar="N",
    help=f"How often to knock until the service answers.  [default: {runs.TRIES}]",
)


def load_profiles(file: Path | None) -> "Profiles":
    """The profiles in this file, or in the usual one; raises ConfigError."""
    from .. import profiles

    return profiles.load(file or profiles.default_file())


def supply_of(profile: "Profile", host: str, **how: bool) -> runs.Supplier:
    """What the profile knocks at that host, in the way that it has."""
    if profile.onetime is not None:
        from .. import positions

        path = profile.onetime
        return lambda address, told: positions.use(path, _warn, **how)
    if profile.totp is not None:
        from ..supplies import stepped

        door = profile.totp
        return lambda address, told: stepped(door, host, address, _tell)
    if profile.spa is not None:
        from ..supplies import sealed

        return partial(sealed, profile.spa)
    return partial(runs.fixed, profile.knocks)


def warn_of_clock(profiles: Iterable["Profile"]) -> None:
    """Say so where what they knock depends on this machine's clock, and nothing keeps that right."""
    if any(profile.totp or profile.spa for profile in profiles):
        from ..supplies import clock_warning

        if text := clock_warning():
            _warn(text)


def _warn(text: str) -> None:
    _tell(f"warning: {text}")


def _tell(text: str) -> None:
    """What whoever waits should know, with and without -v: no part of what is printed."""
    click.echo(f"logknock: {text}", err=True)


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: logknock knock -v host.example 7000/tcp 9000/udp 8000",
)
@click.argument("words", nargs=-1, required=True, metavar="{HOST[,HOST]... SERVICE... | PROFILE...}", callback=_words)
@click.option("-u", "--udp", is_flag=True, help="A SERVICE without a protocol is UDP.")
@click.option("-4", "--ipv4", is_flag=True, help="Knock at the host's IPv4 address.")
@click.option("-6", "--ipv6", is_flag=True, help="Knock at the host's IPv6 address.")
@click.option(
    "-d",
    "--delay",
    metavar="TIME",
    callback=_parsed(client.parse_delay),
    help=f"How long to wait between knocks: 200 or 200ms, 1s; 0 to {client.MAX_DELAY:.0f}s."
    f"  [default: {client.DELAY * 1000:.0f}ms]",
)
@click.option(
    "--verify",
    metavar="SERVICE",
    callback=_parsed(_verify),
    help="Wait until this TCP service of the host answers, and knock again while it does not.",
)
@timeout_option
@tries_option
@click.option("--again", is_flag=True, help="Knock the one-time sequence that was used last once more.")
@profiles_option
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each knock.")
@click.version_option(__version__, "-V", "--version", message="logknock %(version)s")
def knock(words: tuple[str, ...], verbose: bool, **options: Any) -> int:
    """Knock at HOST: send one packet to each SERVICE, in this order.

    A SERVICE is written 7000/tcp or 7000/udp; 7000 alone is TCP, and 7000:udp is understood too. Between two of them,
    2s or 500ms is a pause. A TCP knock is one SYN, a UDP knock one datagram of one NUL byte. Nothing that comes back
    is waited for: whether a door opened is seen by going through it, or with --verify.

    A PROFILE is a host and what to knock there under a name, in ~/.config/logknock/client.toml: a sequence, the next of
    a file of one-time sequences, the one that a secret and the time make (totp), or a single encrypted packet (spa).
    Several hosts, or profiles, are knocked at all at once; the exit code is then 0, or that of the first one that
    failed.
    """
    if options["ipv4"] and options["ipv6"]:
        raise click.UsageError("-4 and -6 exclude each other.")
    if any(map(_LIKE_A_SERVICE.match, words[1:])):
        planned = _at_hosts(words[0], words[1:], options)
    else:
        planned = _of_profiles(words, options)
    told = click.echo if verbose else lambda text: None
    if len(planned) > 1:
        return _go_together(planned, told)
    told_last = runs.go(planned[0], told)
    if verbose and planned[0].verify:
        click.echo(told_last)
    return 0


def _at_hosts(host: str, words: tuple[str, ...], options: dict[str, Any]) -> list[runs.Run]:
    if options["again"]:
        raise click.UsageError("--again is for a PROFILE with a file of one-time sequences.")
    knocks = client.parse_knocks(words, "udp" if options["udp"] else "tcp")
    try:
        hosts = client.parse_hosts(host)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    supply = partial(runs.fixed, knocks)
    return [_with_options(runs.Run(host, host, supply), options) for host in hosts]


def _of_profiles(names: tuple[str, ...], options: dict[str, Any]) -> list[runs.Run]:
    from .. import profiles

    for name in names:
        if not profiles.is_name(name):
            if names[1:]:
                raise click.UsageError(f"{names[1]!r} is no SERVICE, such as 22/tcp or 53/udp.")
            raise click.UsageError(f"{name!r} is no PROFILE, and there is no SERVICE to knock at, such as 7000/tcp.")
    file = options["file"] or profiles.default_file()
    if not options["file"] and not file.exists():
        message = (
            f"there is no SERVICE to knock at {names[0]}, such as 7000/tcp, and no PROFILE: {file} does not exist."
        )
        raise click.UsageError(message)
    if options["udp"]:
        raise click.UsageError("-u is for a SERVICE, and a PROFILE has its own.")
    loaded = profiles.load(file)
    found = [loaded.get(name) for name in names]
    planned = [run for profile in found for run in _of_profile(profile, options)]
    warn_of_clock(found)
    return planned


def _of_profile(profile: "Profile", options: dict[str, Any]) -> list[runs.Run]:
    if not profile.hosts:
        message = f"profile {profile.name} names no host: it is for `logknock proxy` only"
        raise LogknockError(message, 'write host = "host.example" there')
    if options["again"] and profile.onetime is None:
        raise click.UsageError(f"--again: profile {profile.name} has no file of one-time sequences.")
    verify = options["verify"] or profile.verify
    return [
        _with_options(
            runs.Run(
                profile.name if len(profile.hosts) == 1 else f"{profile.name}: {host}",
                host,
                supply_of(profile, host, verify=verify is not None, again=options["again"]),
                profile.delay,
                profile.family,
                verify,
                profile.tries,
            ),
            options,
        )
        for host in profile.hosts
    ]


def _with_options(run: runs.Run, options: dict[str, Any]) -> runs.Run:
    """The run, with what the command line says instead of its own."""
    family = socket.AF_INET if options["ipv4"] else socket.AF_INET6 if options["ipv6"] else run.family
    verify = options["verify"] or run.verify
    if options["tries"] and verify is None:
        raise click.UsageError("--tries: nothing is tried again without --verify.")
    delay = run.delay if options["delay"] is None else options["delay"]
    tries = options["tries"] or run.tries
    return replace(run, family=family, verify=verify, delay=delay, tries=tries, limit=options["limit"])


def _go_together(planned: list[runs.Run], told: Callable[[str], object]) -> int:
    failed: dict[runs.Run, int] = {}
    for end in runs.go_together(planned, told):
        if isinstance(end, runs.Failed):
            error = end.error
            failed[end.run] = fail(LogknockError(_named(end.run, error.message), error.hint, error.exit_code))
        else:
            click.echo(_named(end.run, end.text))
    return next((failed[run] or FAILURE for run in planned if run in failed), 0)


def _named(run: runs.Run, text: str) -> str:
    """The text behind the run's name, and the host in both only once."""
    name = run.name
    if text.startswith((f"{run.host}: ", repr(run.host))):
        name = "" if name == run.host else name.removesuffix(f": {run.host}")
    return f"{name}: {text}" if name else text
