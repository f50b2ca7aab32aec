"""`logknock knock`: be the one who knocks."""

import re
import socket

import click

from .. import client
from ..knock import Service


def _host(ctx: click.Context, param: click.Parameter, host: str) -> str:
    if host.startswith("-"):
        raise click.NoSuchOption(host, ctx=ctx)
    if re.fullmatch(r"[0-9]+([:/](tcp|udp))?", host, re.IGNORECASE):
        raise click.UsageError(f"{host!r} is a service: say first at which HOST to knock.", ctx)
    return host


def _words(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """What click did not know as an option comes here too, so that `-5` is reported as the bad service it is."""
    for word in words:
        if re.match("-[^0-9]", word):
            raise click.NoSuchOption(word, ctx=ctx)
    return words


def _delay(ctx: click.Context, param: click.Parameter, text: str) -> float:
    try:
        return client.parse_delay(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: logknock knock -v host.example 7000/tcp 8000/udp 9000",
)
@click.argument("host", callback=_host)
@click.argument("words", nargs=-1, required=True, metavar="SERVICE...", callback=_words)
@click.option("-4", "ipv4", is_flag=True, help="Knock at the host's IPv4 address.")
@click.option("-6", "ipv6", is_flag=True, help="Knock at the host's IPv6 address.")
@click.option(
    "-d",
    "--delay",
    metavar="TIME",
    default=f"{client.DELAY * 1000:.0f}ms",
    show_default=True,
    callback=_delay,
    help=f"How long to wait between knocks: 200 or 200ms, 1s; 0 to {client.MAX_DELAY:.0f}s.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each knock.")
def knock(host: str, words: tuple[str, ...], ipv4: bool, ipv6: bool, delay: float, verbose: bool) -> None:
    """Knock at HOST: send one packet to each SERVICE, in this order.

    A SERVICE is written 7000/tcp or 7000/udp; 7000 alone is TCP, and 7000:udp is understood too.
    A TCP knock is one SYN, a UDP knock one datagram of one NUL byte. Nothing that comes back is
    waited for: whether a door opened is seen by going through it.
    """
    if ipv4 and ipv6:
        raise click.UsageError("-4 and -6 exclude each other.")
    services = client.parse_services(words)
    family = socket.AF_INET if ipv4 else socket.AF_INET6 if ipv6 else socket.AF_UNSPEC
    address = client.resolve(host, family)

    def told(number: int, service: Service) -> None:
        if verbose:
            click.echo(f"knock {number} of {len(services)}: {address} {service}")

    client.knock(address, services, delay, told)
