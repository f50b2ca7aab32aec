"""`logknock spa-test`: what one SPA packet would open, or why it opens nothing. Rule: it prints, no more."""

import json
import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..config import Config, load
from ..errors import FAILURE, LogknockError
from ..gate import Accepted
from ..packet import address_text, parse_address
from ..replay import parse_when
from ..spa import ANY_SOURCE, MIN_PAYLOAD
from ..spa_checks import Examined, Seen, examine
from ..store import StoreError, read_only
from . import config_option
from .converting import DASH, PATH, Sought, read_original

# In hex with a blank between any two bytes a packet takes three times its size; much more is no packet.
_MAX_READ = 1 << 14

_SAVED = "name the file that `fwknop --save-packet` wrote, or write - and give the packet on standard input"
_PACKET = Sought("packet of fwknop", _SAVED, _SAVED, FAILURE)

# What a packet begins with (docs/reference/spa.md).
_FIRST = (b"8", b"9", b"+", b"/")

# A number of more digits is no moment.
_MAX_DIGITS = 12

_WORDS = {True: "ok", False: "refused", None: "-"}


@click.command("spa-test", epilog="Example: fwknop -n gate --test --save-packet packet; logknock spa-test packet")
@config_option
@click.argument("file", type=PATH, default=DASH)
@click.option("--from", "source", metavar="ADDRESS", help="Where it came from. Without this: from where it says.")
@click.option(
    "--at", "moment", metavar="TIME", help="When it came in: '2026-11-21 10:00:00', or seconds since the epoch."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def spa_test(config_path: Path, file: Path, source: str | None, moment: str | None, as_json: bool) -> int:
    """Say what the daemon would make of an SPA packet, check by check. Nothing opens, and nothing is recorded.

    FILE holds the packet's payload as it is (`fwknop --save-packet`), in hex or in base64; - is standard input, and so
    is no FILE. Exit code 0: it would open; 1: it is refused, or FILE cannot be read; 69: what decrypts packets is not
    installed; 78: the configuration is wrong.
    """
    src, wall = _address(source), _time(moment)
    config = load(config_path)
    if not config.spa_keys:
        raise LogknockError("no SPA door has a client", "`logknock keygen DOOR CLIENT` makes one")
    payload = _payload(read_original(file, _PACKET, _MAX_READ).data)
    with _seen(config) as seen:
        examined = examine(payload, config.spa_keys, src, wall, seen)
    if as_json:
        click.echo(json.dumps(_as_json(examined, config), indent=2))
    else:
        for check in examined.checks:
            if check.passed is None and not check.words:
                break  # what comes behind a refusal
            click.echo(f"{check.name:<12}{_WORDS[check.passed]:<9}{check.words}".rstrip())
        click.echo(_verdict(examined, config))
    return 0 if isinstance(examined.verdict, Accepted) else FAILURE


def _address(text: str | None) -> bytes | None:
    try:
        return None if text is None else parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--from") from None


def _time(text: str | None) -> float:
    if text is None:
        return time.time()
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return float(text)
    try:
        return parse_when(text, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from None


def _payload(data: bytes) -> bytes:
    """The payload as it is, or what hex or base64 say. A packet begins with a letter that neither of them does."""
    lines = data.split()
    if sum(len(line) >= MIN_PAYLOAD and line[:1] in _FIRST for line in lines) > 1:
        raise LogknockError("there is more than one packet in it", "give one at a time: sed -n 1p FILE")
    text = b"".join(lines)
    if text[:1] in _FIRST:
        return text
    return _decoded(text, data).removesuffix(b"\n")


def _decoded(text: bytes, data: bytes) -> bytes:
    try:
        return bytes.fromhex(text.replace(b":", b"").decode("ascii"))
    except ValueError:
        pass
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except Base64Error:
        return data


@contextmanager
def _seen(config: Config) -> Iterator[Seen | None]:
    """Whether the daemon has seen a packet; None where that cannot be known."""
    try:
        reader = read_only(config.state)
    except StoreError:
        yield None
        return
    with reader:
        yield reader.was_seen


def _verdict(examined: Examined, config: Config) -> str:
    found = examined.verdict
    if not isinstance(found, Accepted):
        return f"refused: {found.reason}"
    services = ", ".join(map(str, found.services))
    return f"would open {services} for {_whom(found)} for {_seconds(found, config):g} s"


def _whom(found: Accepted) -> str:
    return "its sender" if found.address == ANY_SOURCE else address_text(found.address)


def _seconds(found: Accepted, config: Config) -> float:
    """For how long it opens: what it asks for, or what its door says."""
    if found.seconds is not None:
        return found.seconds
    name = found.key.door
    return next(door.timeout for door in config.doors if door.name == name or door.name.startswith(f"{name}:"))


def _as_json(examined: Examined, config: Config) -> dict[str, Any]:
    found = examined.verdict
    answer: dict[str, Any] = {
        "opens": isinstance(found, Accepted),
        "checks": [check._asdict() for check in examined.checks],
    }
    if isinstance(found, Accepted):
        return answer | {
            "door": found.key.door,
            "client": found.key.client,
            "services": [str(service) for service in found.services],
            "address": None if found.address == ANY_SOURCE else address_text(found.address),
            "seconds": _seconds(found, config),
            "sent": found.stamp,
        }
    return answer | {"door": found.door, "client": found.client, "reason": str(found.reason), "words": found.words}
