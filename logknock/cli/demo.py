"""`logknock demo`: a door opened and closed, for a person to watch. Rule: it prints what the demo has to show."""

from typing import TYPE_CHECKING

import click

from ..demo import Demo, Kind, Shown, StepError, enter, isolated

if TYPE_CHECKING:  # `logknock --help` works without it
    from rich.console import Console
    from rich.text import Text

_PROMPTS = {"gateway": "gateway# ", "client": "client$ "}


@click.command(epilog="Example: sudo logknock demo")
@click.option("--outside", hidden=True, help="The namespaces that it was started in.")
def demo(outside: str | None) -> int:
    """See a door closed, opened by a knock, and closed again by the kernel.

    A gateway and a client are network namespaces made for this, and the rules, the daemon and the client in them are
    the real ones. Nothing on this host is touched, and nothing remains. It takes about 15 seconds. Exit code 0: each
    step happened; 1: one did not; 77: not allowed; 69: something is missing.
    """
    if outside is None:
        return isolated()
    from rich.console import Console
    from rich.text import Text

    enter(outside)
    console = Console(highlight=False)
    try:
        for shown in Demo().story():
            _show(console, shown)
    except StepError as error:
        _mark(console, "✗", "FAILED", "red", error.message)
        if error.hint:
            _line(console, Text(f"hint: {error.hint}"))
        return error.exit_code
    return 0


def _show(console: "Console", shown: Shown) -> None:
    from rich.text import Text

    match shown.kind:
        case Kind.STEP | Kind.SUMMARY:
            console.print()
            _words(console, Text(shown.text, style="bold"))
        case Kind.SAY:
            _words(console, Text(shown.text))
        case Kind.COMMAND:
            _line(console, Text.assemble("  ", (_PROMPTS[shown.host], "cyan"), (shown.text, "bold")))
        case Kind.TYPED:
            _line(console, Text.assemble("  ", ("> ", "cyan"), (shown.text, "bold")))
        case Kind.OUTPUT:
            _line(console, Text("  " + shown.text.expandtabs(4)))
        case Kind.DAEMON:
            _line(console, Text.assemble("  ", ("daemon: ", "yellow"), shown.text))
        case Kind.PASSED:
            _mark(console, "✓", "ok:", "green", shown.text)


def _line(console: "Console", text: "Text") -> None:
    """A line as it is: where it is too long, the terminal breaks it, and it is still one line to copy."""
    console.print(text, soft_wrap=True)


def _words(console: "Console", text: "Text") -> None:
    """Sentences, broken between words where a terminal is narrow."""
    console.print(text, soft_wrap=not console.is_terminal)


def _mark(console: "Console", mark: str, plain: str, style: str, text: str) -> None:
    from rich.text import Text

    shown = mark if console.encoding.startswith("utf") else plain
    _words(console, Text.assemble((shown, f"bold {style}"), " ", text))
