"""What a profile has instead of a sequence: a secret to derive sequences from (TOTP), or the keys of SPA packets.

Rule 1: nothing of a secret or a key is in what is said of it, whatever is wrong with it. Rule 2: what is read here is
complete: what a host would take no knock of, such as ports that are too few, is an error here too. Rule 3: the host's
side of this is read elsewhere; the words are the same, and what a profile says is what `enroll` and `keygen` print.
"""

from dataclasses import dataclass, field

from . import config_values as values
from . import spa, totp
from .config_values import PortRange, WrongError
from .knock import Service
from .packet import ICMP, UDP
from .toml_tables import Table

# Whose sequences they are: a profile has one client, and the host knows its name.
_NAME = "this client"

# The protocol and the port of a packet without ports.
_ICMP = PortRange(ICMP, 0, 0)

# fwknop's own, over UDP.
_PORT = PortRange(UDP, 62_201, 62_201)

_STEPS = (f"{totp.MIN_STEP}s", f"{totp.MAX_STEP // 60}m")
_CODE_STEP = totp.DEFAULT_STEP  # which an authenticator has, and does not change

_ENROLLED = "as `logknock enroll` on the host prints it"
_GENERATED = "as `logknock keygen` on the host prints it"


@dataclass(frozen=True, slots=True)
class Asked:
    """What SPA packets ask for, and with what keys (bytes).

    digest: of the HMAC. access: the services asked for. ports: where to; of a range one is drawn for each packet, and
    ICMP has none. timeout: seconds, 0: as long as the host says. address: packed, spa.ANY_SOURCE for whatever the
    packet comes from, None for the one that this machine sends from. user: empty: whoever runs the program.
    """

    key: bytes = field(repr=False)
    hmac_key: bytes = field(repr=False)
    digest: str
    access: tuple[Service, ...]
    ports: PortRange
    timeout: int = 0
    address: bytes | None = None
    user: str = ""


# ---- totp


def read_totp(table: Table) -> totp.TotpDoor:
    """The door that the table `totp` of a profile says, with its one client; host: empty for the one knocked at."""
    digits = table.read("code", _digits, 0)
    door = totp.TotpDoor(
        door=table.read("door", _door, ""),
        host=table.read("host", values.host_name, ""),
        services=_pool(table, digits),
        length=table.read("length", values.whole(totp.MIN_LENGTH, totp.MAX_LENGTH), totp.DEFAULT_LENGTH),
        step=table.read("step", _step, totp.DEFAULT_STEP),
        digits=digits,
        clients=(totp.Client(_NAME, table.read("secret", _secret, b"")),),
    )
    for key in ("secret", "door"):
        if not table.has(key):
            table.error(key, "is missing", _ENROLLED)
    if digits:
        _check_code(door, table)
    elif not table.wrong & {"ports", "length"}:
        try:
            totp.check_strength(door)
        except totp.WeakError as error:
            table.error("ports" if table.has("ports") else "length", str(error), error.hint)
    table.finish()
    return door


def _pool(table: Table, digits: int) -> tuple[Service, ...]:
    """The ports, in the order in which they are written, which the derivation depends on."""
    default = totp.DEFAULT_CODE_PORTS[digits] if digits else totp.DEFAULT_PORTS
    written = table.read_list("ports", values.port_range)
    if table.has("ports") and not written and "ports" not in table.wrong:
        table.error("ports", "has no port", f"{_ENROLLED}, or leave it out")
    ranges = written or tuple(map(values.port_range, default))
    pool = tuple(Service(proto, port) for proto, first, last in ranges for port in range(first, last + 1))
    if len(set(pool)) < len(pool):
        table.error("ports", "has a port twice", _ENROLLED)
    return pool


def _check_code(door: totp.TotpDoor, table: Table) -> None:
    """What a code spells, and what an authenticator does, leave no choice."""
    if table.has("length"):
        table.error("length", "does not apply with a code: two digits are a knock", "leave it out")
    if door.step != _CODE_STEP:
        table.error("step", f"with a code a step is {_CODE_STEP}s, which is what authenticators have", "leave it out")
    if "ports" in table.wrong:
        return
    try:
        fits = door.services == totp.code_services(door.services[0], door.digits)
    except ValueError:
        fits = False
    if not fits:
        count = totp.PAIRS * door.digits // 2
        message = f"a code of {door.digits} digits is spelled on one range of {count} TCP ports from a multiple of 100"
        default = ", ".join(f'"{ports}"' for ports in totp.DEFAULT_CODE_PORTS[door.digits])
        table.error("ports", message, f"{_ENROLLED}, like [{default}]")


_digits = values.number_of(totp.CODE_DIGITS, "a code has 6 or 8 digits", _ENROLLED)


def _secret(value: object) -> bytes:
    written = values.text("...")(value)
    try:
        return totp.parse_secret(written)
    except ValueError as error:
        raise WrongError(str(error), _ENROLLED) from None


def _door(value: object) -> str:
    written = values.text("ssh")(value)
    if not values.NAME.fullmatch(written):
        raise WrongError("is no name of a door", "the name that the door has on the host, ssh in [doors.ssh]")
    return written


_step = values.whole_seconds(*_STEPS, "a step is whole seconds", f'write "{totp.DEFAULT_STEP}s", or {_ENROLLED}')


# ---- spa


def read_spa(table: Table) -> Asked:
    """What the table `spa` of a profile says."""
    asked = Asked(
        key=_key("key", spa.MAX_KEY, table),
        hmac_key=_key("hmac_key", spa.MAX_HMAC_KEY, table),
        digest=table.read("hmac", values.unquoted(tuple(spa.DIGESTS)), "sha256"),
        access=table.read_list("access", values.service, repeats=False),
        ports=table.read("port", _ports, _PORT),
        timeout=table.read("timeout", _timeout, 0),
        address=table.read("address", _address, None),
        user=table.read("user", _user, ""),
    )
    if asked.key and asked.key == asked.hmac_key:
        table.error("", "key and hmac_key are the same", f"two that differ, {_GENERATED}")
    if not asked.access and "access" not in table.wrong:
        message = "names no service" if table.has("access") else "is missing: which services are to be opened?"
        table.error("access", message, 'access = ["22/tcp"]')
    elif len(spa.request(_LONGEST_ADDRESS, asked.access, user="", timestamp=0, rand="").text) > _MAX_TEXT:
        table.error("access", f"has {len(asked.access)} services, and a packet has not room for them", "name fewer")
    table.finish()
    return asked


# Letters of a message, before their base64; and the address that takes the most of them.
_MAX_TEXT = spa.MAX_MESSAGE * 6 // 8
_LONGEST_ADDRESS = b"\x11" * 16


def _key(name: str, most: int, table: Table) -> bytes:
    """A key as it is typed or in base64; empty where it is missing or wrong."""
    coded = f"{name}_base64"
    if table.has(name) and table.has(coded):
        table.error(coded, f"there are {name} and {coded}", "leave one out")
    elif not table.has(name) and not table.has(coded):
        table.error(coded, "is missing", _GENERATED)
    typed = table.read(name, values.passphrase(spa.MIN_KEY, most), b"")
    decoded = table.read(coded, values.base64_key(spa.MIN_KEY, most), b"")
    return typed or decoded


def _ports(value: object) -> PortRange:
    return _ICMP if value == "icmp" else values.port_range(value)


_timeout = values.whole_seconds("1s", f"{spa.MAX_TIMEOUT}s", "a packet asks for whole seconds", 'write "60s"')


def _address(value: object) -> bytes | None:
    written = values.text("source")(value)
    if written == "own":
        return None
    try:
        return spa.ANY_SOURCE if written == "source" else values.address(written)
    except WrongError as error:
        raise WrongError(str(error), 'write "own", "source" or an address, like "192.0.2.7"') from None


def _user(value: object) -> str:
    written = values.text("anna")(value)
    if not written or spa.fit_user(written) != written:
        hint = f"up to {spa.MAX_USER_BYTES} letters of ASCII, none of {spa.NOT_IN_USERS}; without it, the login name"
        raise WrongError("is no user name that a packet can hold", hint)
    return written
