"""`logknock-client`: the commands of a machine that only knocks, and no more of the program than they need.

Rule: what is imported here and by these commands is the standard library, click, and the client's own modules.
"""

from typing import ClassVar

import click

from .. import __version__
from . import Commands
from . import main as run


class _ClientCommands(Commands):
    files: ClassVar = {"knock": "knock", "proxy": "proxy"}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The same command, with an example that works where there is no other `logknock`."""
        command = super().get_command(ctx, cmd_name)
        if command and command.epilog:
            command.epilog = command.epilog.replace("logknock ", "logknock-client ")
        return command


@click.group(
    cls=_ClientCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: logknock-client knock host.example 7000/tcp 9000/udp 8000/tcp",
)
@click.version_option(__version__, "-V", "--version", message="logknock %(version)s")
def client() -> None:
    """Knock at doors, and go through them."""


def main() -> None:
    """Run the command line and exit: 0, or the code that fits (see errors.py)."""
    run(client)
