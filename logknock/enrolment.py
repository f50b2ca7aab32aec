"""What a new client gets: the texts of both sides, its profile and the host's table, from what both are to know.

Rule 1: pure: nothing is written, nothing is drawn. Rule 2: each text works as it stands: ours in client.toml and in
clients/, fwknop's in its .fwknoprc. Rule 3: they hold secrets: whoever prints them says it to whom they are for.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from . import totp
from .config_values import PortRange, WrongError
from .config_values import address as parse_address
from .knock import Service
from .packet import PROTOCOL_NAMES, TCP, UDP
from .spa import Key
from .toml_files import header

# The ports among which the stock client draws one, where it is told to (fwknop.8, --rand-port).
_RANDOM = (10_000, 65_535)


# Between the dots of a host's name (RFC 1123, 2.1, and _ besides): what both programs' files take as it stands.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_HOST = 253

# Of an address the part that can begin a profile's name; an IP address has none.
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_MAX_NAME = 63

# After wrong tries in its name a client is asked for the codes of up to three steps; the first is sent twice.
_CODE_TRIES = 4

# Letters at a time, for whoever types them.
_GROUP = 4


class Ways(NamedTuple):
    """Where packets to SPA doors may be sent: ports, or ICMP as well."""

    ports: Sequence[PortRange]
    icmp: bool

    @property
    def best(self) -> PortRange | None:
        """UDP, which every client sends without privileges, where there is a choice; None: ICMP is all there is."""
        return min(self.ports, key=lambda ports: ports.proto != UDP, default=None)


def reached_at(text: str) -> str:
    """A name or an IP address at which clients are to reach this host; raises ValueError with what is wrong."""
    if ":" in text or text.rpartition(".")[2].isdigit():  # no name ends in a number (RFC 1123, 2.1)
        parse_address(text)
    elif len(text) > _MAX_HOST or not all(map(_PART.fullmatch, text.removesuffix(".").split("."))):
        raise WrongError(f"{text!r} is no name of a host", "write gate.example, 192.0.2.1 or 2001:db8::1")
    return text


def profile_name(door: str, address: str) -> str:
    """What a client calls this door: `gate-ssh` at gate.example."""
    label = address.partition(".")[0]
    name = f"{label}-{door}" if _LABEL.fullmatch(label) else door
    return (name if name[0].isalpha() else f"host-{name}")[:_MAX_NAME]


def _verify(opens: Iterable[Service]) -> dict[str, str]:
    """What tells a client that it is in; without it one whose knock opens nothing says nothing, and ends well."""
    answering = next((service for service in opens if service.proto == TCP), None)
    return {} if answering is None else {"verify": str(answering)}


# ---- TOTP and code doors


def totp_table(door: str, client: str, secret: bytes) -> str:
    """The host's part."""
    return f"{header('clients', door, client)}\nsecret = {_text(totp.format_secret(secret))}\n"


def totp_profile(door: totp.TotpDoor, client: totp.Client, opens: Iterable[Service], address: str) -> str:
    """The client's part, for its client.toml; opens: what the door does, address: where it is to knock."""
    name = profile_name(door.door, address)
    rest = {"code": door.digits} if door.digits else {"length": door.length, "step": f"{door.step}s"}
    repeated = {"tries": _CODE_TRIES} if door.digits else {}
    return _tables(
        (header("profiles", name), {"host": address, **_verify(opens), **repeated}),
        (
            header("profiles", name, "totp"),
            {
                "secret": totp.format_secret(client.secret),
                "door": door.door,
                "host": door.host,
                "ports": totp.ranges(door.services),
                **rest,
            },
        ),
    )


def arithmetic(door: totp.TotpDoor) -> str:
    """How a code is knocked by hand, with an example; of a code door."""
    first = door.services[0]
    example = "0123456789"[1 : door.digits + 1]
    bases = [str(first.port + totp.PAIRS * at) for at in range(door.knocks)]
    knocks = ", ".join(map(str, totp.spell(example, first)))
    pairs = " ".join(example[at : at + 2] for at in range(0, door.digits, 2))
    return f"by hand: add the code's pairs of digits to {', '.join(bases)}: {pairs} is {knocks}"


def for_app(door: totp.TotpDoor, client: totp.Client) -> str:
    """What an authenticator app that cannot scan is to be given; of a code door. It is not the client's own secret."""
    letters = totp.format_secret(totp.code_secret(client.secret, door.door, door.host))
    return " ".join(letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP))


# ---- SPA doors


def spa_table(key: Key) -> str:
    """The host's part."""
    values: dict[str, object] = {
        "key_base64": _base64(key.key),
        "hmac_key_base64": _base64(key.hmac_key),
        "hmac": key.digest,
        "allow": [str(service) for service in key.allow],
    }
    if not key.require_source:
        values["require_source"] = False
    return _tables((header("clients", key.door, key.client), values))


def spa_profile(key: Key, ways: Ways, address: str, source: str) -> str:
    """The client's part, for its client.toml.

    source: the address that it asks for; empty: whatever its packets come from.
    """
    name = profile_name(key.door, address)
    return _tables(
        (header("profiles", name), {"host": address, **_verify(key.allow)}),
        (
            header("profiles", name, "spa"),
            {
                "key_base64": _base64(key.key),
                "hmac_key_base64": _base64(key.hmac_key),
                "hmac": key.digest,
                "access": [str(service) for service in key.allow],
                "port": _range(ways.best) if ways.best else "icmp",
                "address": source or "source",
            },
        ),
    )


def fwknoprc(key: Key, ways: Ways, address: str, source: str) -> str:
    """The client's part for the stock fwknop client (fwknop.8): `fwknop -n NAME`."""
    rows = {
        "SPA_SERVER": address,
        **_sent(ways),
        "ACCESS": ",".join(f"{PROTOCOL_NAMES[proto]}/{port}" for proto, port in key.allow),
        "ALLOW_IP": source or "source",
        "KEY_BASE64": _base64(key.key),
        "HMAC_KEY_BASE64": _base64(key.hmac_key),
        "USE_HMAC": "Y",
        "HMAC_DIGEST_TYPE": key.digest,
    }
    width = max(map(len, rows)) + 2
    lines = (f"{name:{width}}{value}\n" for name, value in rows.items())
    return f"[{profile_name(key.door, address)}]\n{''.join(lines)}"


def _sent(ways: Ways) -> dict[str, str]:
    if ways.best is None:
        return {"SPA_SERVER_PROTO": "icmp"}
    proto, first, last = ways.best
    sent = {"RAND_PORT": "Y"} if (first, last) == _RANDOM else {"SPA_SERVER_PORT": str(first)}
    return sent if proto == UDP else {**sent, "SPA_SERVER_PROTO": "tcpraw"}  # a lone SYN, which carries the packet


# ---- TOML


def _tables(*tables: tuple[str, dict[str, object]]) -> str:
    return "\n".join(
        "".join([f"{head}\n", *(f"{key} = {_value(value)}\n" for key, value in values.items())])
        for head, values in tables
    )


def _value(value: object) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    assert isinstance(value, list)
    return f"[{', '.join(map(_text, value))}]"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _base64(key: bytes) -> str:
    return b64encode(key).decode()


def _range(ports: PortRange) -> str:
    (text,) = totp.ranges(Service(ports.proto, port) for port in range(ports.first, ports.last + 1))
    return text
