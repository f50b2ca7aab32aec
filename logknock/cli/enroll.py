"""`logknock enroll`: a new client of a TOTP or code door. Rule: it prints and asks; what a client is, others decide."""

import io
import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from .. import enrolment, totp
from ..config import Config, load
from ..config_values import NAME, WrongError
from ..control import ControlError, ask
from ..errors import FAILURE, UNAVAILABLE, UNSEEN_PACKAGES, USAGE, LogknockError, printable
from ..key_files import how_by_hand, places_of, write_client
from ..knock import Service
from ..ownership import kept_from_service, write_new
from . import LostError, check_output, config_option

# Seconds: reloads that others ask for may be before this one, and a large configuration takes some tenths of one.
_PATIENCE = 60.0

# Pixels of a PNG for each module of the QR code, and points of an SVG.
_SCALE = 6


def _address(ctx: click.Context, param: click.Parameter, word: str | None) -> str:
    try:
        return "" if word is None else enrolment.reached_at(word)
    except WrongError as error:
        raise click.BadParameter(f"{error}: {error.hint}", ctx, param) from None


address_option = click.option(
    "--address",
    metavar="HOST",
    callback=_address,
    help="Where the client reaches this host; by default the host's own name.",
)
reload_option = click.option("--no-reload", is_flag=True, help="Leave the running daemon as it is.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")


@click.command(
    epilog="Examples: logknock enroll ssh laptop --address gate.example\n\n"
    "logknock enroll phone anna --qr /root/anna.svg"
)
@click.argument("door_name", metavar="DOOR")
@click.argument("client_name", metavar="CLIENT")
@address_option
@click.option(
    "--qr", metavar="FILE", default="", help="Write the QR code to a new FILE, .svg or .png; -: to standard output."
)
@json_option
@reload_option
@config_option
def enroll(
    door_name: str, client_name: str, address: str, qr: str, as_json: bool, no_reload: bool, config_path: Path
) -> int:
    """Make CLIENT's secret for DOOR, which has totp, and print what the client needs.

    The secret goes into a new file, clients/DOOR.CLIENT.toml beside the configuration. Printed are the client's
    profile, for its client.toml, an otpauth:// URI and, on a terminal, the same as a QR code: they are the secret, so
    show them to nobody else. Then the running daemon reads its configuration again. Exit code 0: done; 1: there is
    such a client, it cannot be written, or what it needs cannot be printed; 69: done, but for a QR code that was asked
    for, which needs python3-segno; 77: not allowed; 78: the configuration is wrong.
    """
    config = load(config_path)
    door = _door(config, door_name)
    check_new(config, door_name, client_name)
    if sum(len(known.clients) for known in config.totp) >= totp.MAX_CLIENTS:
        raise LogknockError(f"there are {totp.MAX_CLIENTS:,} clients, which is the most", "revoke some of them")
    _check_picture(qr, as_json)
    check_output()
    client = totp.Client(client_name, secrets.token_bytes(totp.NEW_SECRET))
    address = address or door.host
    note = f"# The secret of client {client_name} of door {door_name}; `logknock revoke-client` takes it back.\n"
    table = enrolment.totp_table(door_name, client_name, client.secret)
    file = write_client(config_path, door_name, client_name, note + table)
    told = {
        "door": door_name,
        "client": client_name,
        "file": str(file),
        "profile": enrolment.totp_profile(door, client, _opens(config, door_name), address),
        "uri": totp.otpauth(door, client),
        "by_hand": enrolment.arithmetic(door) if door.digits else "",
        "app": enrolment.for_app(door, client) if door.digits else "",
    }
    with handing_over(door_name, client_name):
        drawn = _draw(told["uri"], qr, as_json)
    code = put_in_force(config, no_reload)
    with handing_over(door_name, client_name):
        if as_json:
            click.echo(json.dumps(told))
        else:
            _print(told)
    return code or drawn


@contextmanager
def handing_over(door: str, client: str) -> Iterator[None]:
    """What is printed here is nowhere else: where it cannot be, it says that the client is there all the same."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        lost = f"client {client} of door {door} is enrolled, and what it needs was not printed: {error.strerror}"
        raise LostError(lost, f"`logknock revoke-client {door} {client}`, and again") from None


def check_new(config: Config, door: str, client: str) -> None:
    """Raise LogknockError unless the client may be made: its name fits, and there is none of that name."""
    check_name(client, "client")
    file = config.homes.get((door, client))
    if file is not None:
        place = places_of({(door, client): file})[door, client]
        by_command = f"`logknock revoke-client {door} {client}` takes it back"
        hint = how_by_hand(config.file, place, door, client) or by_command
        raise LogknockError(f"client {client} of door {door} is there already: {place}", f"{hint}; or name another one")


def check_name(name: str, whose: str) -> None:
    """Raise LogknockError for what is no name, and so no part of a file's."""
    if not NAME.fullmatch(name):
        hint = "up to 63 letters, digits and . _ -, the first a letter or a digit"
        raise LogknockError(f"{name!r} is no name for a {whose}", hint, USAGE)


def _door(config: Config, name: str) -> totp.TotpDoor:
    for door in config.totp:
        if door.door == name:
            return door
    raise wrong_door(config, name, [door.door for door in config.totp], "totp = {}")


def _opens(config: Config, name: str) -> tuple[Service, ...]:
    return next(door.opens for door in config.doors if door.name == name)


def wrong_door(config: Config, name: str, right: list[str], wanted: str) -> LogknockError:
    """Why this door gets no client this way, and which one does."""
    proofs = {door.name.partition(":")[0]: door.proof for door in config.doors}
    others = f"the doors that have it: {', '.join(right)}" if right else f"give the door {wanted}"
    if name not in proofs:
        return LogknockError(printable(f"there is no door {name}"), f"the doors are: {', '.join(proofs)}", USAGE)
    if proofs[name]:
        other = "keygen" if proofs[name] == "spa" else "enroll"
        return LogknockError(f"door {name} has no {wanted}", f"`logknock {other} {name} CLIENT` is for it", USAGE)
    return LogknockError(f"door {name} takes no clients: it has no {wanted}", others, USAGE)


def put_in_force(config: Config, no_reload: bool) -> int:
    """Have the running daemon read the configuration again, and say what came of it; the answer is an exit code."""
    for path, remedy in kept_from_service(config.file):
        tell(f"warning: {path}: the service cannot read it", remedy)
    if no_reload:
        tell("the running daemon does not know of it yet", "`logknock rules apply`, then `logknock reload`")
        return 0
    try:
        (answer,) = ask(config.runtime, "reload", _PATIENCE)
    except ControlError as error:
        if error.exit_code == UNAVAILABLE:
            tell("no daemon runs: it reads this when it starts", "`logknock rules apply`, before it does")
            return 0
        tell(error.message, "`logknock reload`, as root, when that is mended")
        return error.exit_code
    for line in answer["lines"]:
        click.echo(line, err=True)
    tell("reloaded" if answer["reloaded"] else "not reloaded: the configuration from before stays in force")
    return int(answer["code"])


def tell(message: str, hint: str = "") -> None:
    """A line for whoever is at the terminal, not for the file that standard output goes to."""
    for line in LogknockError(printable(message), printable(hint)).report():
        click.echo(line, err=True)


def _print(told: dict[str, str]) -> None:
    """The client's part, such that all of it is a client.toml."""
    click.echo(told["profile"])
    if told["by_hand"]:
        click.echo(f"# {told['by_hand']}")
        click.echo(f"# for the authenticator app, where it cannot scan: {told['app']}")
    else:
        click.echo("# for programs that knock; an authenticator app needs a code door")
    click.echo(f"# {told['uri']}")


# ---- QR codes


def _check_picture(qr: str, as_json: bool) -> None:
    """Whatever would keep it from being written, before there is a secret."""
    if qr == "-" and as_json:
        raise click.UsageError("--json and --qr - cannot both have standard output")
    if qr in ("", "-"):
        return
    if Path(qr).suffix not in (".svg", ".png"):
        raise click.BadParameter("its name ends in .svg or .png, or it is -", param_hint="--qr")
    if Path(qr).exists():
        raise LogknockError(printable(f"{qr}: is there already, and is never overwritten"), "name another file")


def _draw(uri: str, qr: str, as_json: bool) -> int:
    """The URI as a QR code: where it is asked for, and on a terminal."""
    if not qr and (as_json or not sys.stdout.isatty()):
        return 0
    try:
        import segno
    except ModuleNotFoundError:
        tell("no QR code: this needs the Python module segno", f"install the package python3-segno{UNSEEN_PACKAGES}")
        return UNAVAILABLE if qr else 0
    code = segno.make(uri, error="m", micro=False)
    if qr in ("", "-"):
        shown = io.StringIO()
        code.terminal(shown, compact=True)
        for line in shown.getvalue().splitlines():
            click.echo("# " + click.style(line, fg="bright_white", bg="black"))
        return 0
    picture = io.BytesIO()
    code.save(picture, kind=Path(qr).suffix[1:], scale=_SCALE)
    try:
        write_new(Path(qr), [picture.getvalue()], shown=False)
    except OSError as error:
        tell(f"{qr}: cannot be written: {error.strerror}", "the client is enrolled; what it needs is printed")
        return FAILURE
    return 0
