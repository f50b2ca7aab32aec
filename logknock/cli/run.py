"""`logknock run`: the daemon in the foreground."""

import signal
from pathlib import Path

import click

from ..daemon import Daemon
from ..report import Reporter, choose_log
from . import config_option


@click.command(
    epilog="Example: logknock rules apply && logknock run\n\n"
    "Signals: SIGHUP reloads the configuration, SIGUSR1 logs the counters, SIGTERM and SIGINT end it."
)
@config_option
def run(config_path: Path) -> None:
    """Read the firewall's log, recognise knocks and open doors, in the foreground.

    One line an event goes to standard error, or with its fields to the journal under systemd. Open doors
    close on time even if this ends: the kernel does it. With the package this is what logknock.service runs:
    systemctl start logknock.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload that comes before there is anything to reload
    Daemon(config_path, Reporter(choose_log())).run()
