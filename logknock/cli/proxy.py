"""`logknock proxy`: what ssh connects through, where it has to knock first."""

from pathlib import Path

import click

from .. import client, runs
from .. import proxy as relaying
from ..knock import Service
from ..packet import TCP
from .knock import load_profiles, profiles_option, supply_of, timeout_option, tries_option, warn_of_clock


@click.command(epilog="Example: ssh -o ProxyCommand='logknock proxy home %h %p' host.example")
@click.argument("name", metavar="PROFILE")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@timeout_option
@tries_option
@profiles_option
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each knock, on standard error.")
def proxy(name: str, host: str, port: int, limit: float, tries: int | None, file: Path | None, verbose: bool) -> None:
    """Knock as PROFILE says, connect to HOST and PORT, and relay standard input and output.

    For ssh's ProxyCommand, which says what HOST and PORT are. HOST is resolved once, and both knocked at and connected
    to: the PROFILE's own host does not matter here. While the service does not answer, the knock is repeated.
    """
    profile = load_profiles(file).get(name)
    supplier = supply_of(profile, host, verify=True)
    run = runs.Run(name, host, supplier, profile.delay, profile.family, None, tries or profile.tries, limit)
    warn_of_clock([profile])
    told = (lambda text: click.echo(text, err=True)) if verbose else lambda text: None
    address = client.resolve(host, profile.family)
    with run.supply(address, told) as supply:
        connection = runs.enter(run, address, Service(TCP, port), supply, told)
    with connection:
        relaying.relay(connection)
