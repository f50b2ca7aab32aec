"""Single packets that ask for services (SPA), as the stock fwknop client sends them: protocol 3.0.0, AES and an HMAC.

Rule 1: pure: bytes come in, and what they ask for or why they count for nothing goes out; no clock, no replay cache.
Rule 2: every byte may have been chosen by an attacker: nothing that no key's HMAC vouches for is decrypted, and what is
not spelled exactly as the client spells it (another alphabet, padding, an unused bit) is no other spelling of a packet
but no packet. Rule 3: a packet that has not the shape costs no HMAC, and any other one at most one for each key.

The format is described in docs/reference/spa.md.
"""

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, NamedTuple

from .errors import UNAVAILABLE, UNSEEN_PACKAGES, LogknockError
from .knock import Service, parse_port
from .packet import PROTOCOL_NAMES, PROTOCOLS, address_text, parse_address

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.modes import CBC

# How many keys all SPA doors may have together. A forged packet of the right shape costs an HMAC for each one whose
# `source` it fits, about 2 microseconds: with 64 of them the daemon still turns down some 8,500 a second.
MAX_SPA_KEYS = 64

# Bytes of a payload. The stock client's shortest packet has more, and a longer one would be a fragment.
MIN_PAYLOAD, MAX_PAYLOAD = 140, 1500

# Bytes of what is encrypted.
MIN_PLAINTEXT, MAX_PLAINTEXT = 36, 1499

# Bytes of keys: the encryption's are at most what fwknop takes, and of less than 16 a person thought.
MIN_KEY, MAX_KEY = 16, 32
MAX_HMAC_KEY = 128

# Letters of the base64 of a field.
MAX_USER, MAX_MESSAGE = 64, 256

# What of a user name that many hold; and what the stock client refuses in one.
MAX_USER_BYTES = MAX_USER * 6 // 8
NOT_IN_USERS = '"/\\[]:;|=,+*?<>'

# Seconds that a packet can ask for.
MAX_TIMEOUT = 65_536

VERSION = "3.0.0"

# What the address of a packet is that asks for the address that it comes from.
ANY_SOURCE = bytes(4)

# Bytes of each digest that an HMAC or the plaintext's own end may be made with; the names are hashlib's.
DIGESTS = {"md5": 16, "sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64, "sha3_256": 32, "sha3_512": 64}


class Reason(StrEnum):
    """Why a packet opens nothing, in the order in which it is looked at."""

    LEFT_OUT = "left out"
    LENGTH = "wrong length"
    NOT_SPA = "wrong first byte"
    ALPHABET = "not in base64"
    HMAC = "no key's HMAC"
    PADDING = "wrong padding"
    TEXT = "not in printable ASCII"
    FIELDS = "malformed fields"
    TIMEOUT = "timeout out of range"
    MESSAGE = "malformed message"
    DIGEST = "wrong digest"
    REPLAYED = "replayed"
    STORE = "not on record"
    AGE = "wrong time"
    COMMAND = "asks for a command"
    NAT = "asks for NAT"
    USER = "wrong user"
    ADDRESS = "wrong address"
    SERVICE = "service not allowed"


class Kind(IntEnum):
    """What a packet asks for."""

    COMMAND = 0
    ACCESS = 1
    NAT = 2
    ACCESS_TIMEOUT = 3
    NAT_TIMEOUT = 4
    LOCAL_NAT = 5
    LOCAL_NAT_TIMEOUT = 6


@dataclass(frozen=True, slots=True)
class Key:
    """A client of an SPA door: its two keys, and what its packets may ask for. Durations are in seconds.

    digest: of the HMAC, one of DIGESTS. require_source: the address that a packet asks for has to be the one that it
    comes from, and to be named: 0.0.0.0 is refused then, for whoever holds up such a packet could send it on from an
    address of their own. max_age: how far a packet's time may be from ours, both ways. max_timeout: the most that is
    granted to who asks for a time. user: empty: any. source: networks that packets may come from; empty: any.
    """

    door: str
    client: str
    key: bytes = field(repr=False)
    hmac_key: bytes = field(repr=False)
    digest: str
    allow: tuple[Service, ...]
    require_source: bool = True
    max_age: float = 120.0
    max_timeout: float = 300.0
    user: str = ""
    source: tuple[IPv4Network | IPv6Network, ...] = ()

    def admits(self, src: bytes) -> bool:
        """Whether packets may come from this address."""
        if not self.source:
            return True
        bits, number = 8 * len(src), int.from_bytes(src)
        return any(
            bits == network.max_prefixlen and (number ^ int(network.network_address)) >> (bits - network.prefixlen) == 0
            for network in self.source
        )


class Message(NamedTuple):
    """What a packet says.

    rand: 16 digits. timestamp: seconds since the epoch. text: the message as it stands, `ADDRESS,tcp/22`; address: the
    one in it, packed, ANY_SOURCE for the packet's own source; services: those in it, each once; none of a command.
    nat, server_auth: as they stand, empty where there is none. timeout: seconds, 0 where none is asked for.
    digest: what the plaintext's own end is made with, one of DIGESTS.
    """

    rand: str
    user: str
    timestamp: int
    version: str
    kind: Kind
    text: str
    address: bytes
    services: tuple[Service, ...]
    nat: str = ""
    server_auth: str = ""
    timeout: int = 0
    digest: str = "sha256"


class Opened(NamedTuple):
    """A packet that a key's HMAC vouches for. identity: what it is known by if it comes again, SHA-256 of 32 bytes."""

    key: Key
    message: Message
    identity: bytes


class Refused(NamedTuple):
    """A packet that is none of ours, or malformed; words: what exactly is wrong. key: whose HMAC it has, if any's."""

    reason: Reason
    words: str
    key: Key | None = None


def unwrap(payload: bytes, keys: Iterable[Key]) -> Opened | Refused:
    """What a packet asks for, or why it counts for nothing; the keys are those that its source may use.

    Raises LogknockError where `require` does, and for nothing else.
    """
    misshapen = _misshapen(payload)
    if misshapen is not None:
        return misshapen
    found = _vouched(payload, keys)
    if found is None:
        return Refused(Reason.HMAC, _NO_HMAC)
    key, sealed = found
    try:
        message = _parse(_decrypt(key.key, sealed))
    except _MalformedError as error:
        return Refused(error.reason, str(error), key)
    return Opened(key, message, hashlib.sha256(sealed).digest())


def parse_message(plaintext: bytes) -> Message | Refused:
    """What stands in a packet, once it is decrypted."""
    try:
        return _parse(plaintext)
    except _MalformedError as error:
        return Refused(error.reason, str(error))


def request(
    address: bytes,
    services: Iterable[Service],
    *,
    user: str,
    timestamp: int,
    rand: str,
    timeout: int = 0,
    digest: str = "sha256",
) -> Message:
    """What asks for these services for an address, packed; ANY_SOURCE: for where the packet comes from.

    timeout: seconds, 0 for as long as the door is open anyway. rand: 16 digits that nobody foresees.
    """
    wanted = tuple(dict.fromkeys(services))
    words = (address_text(address), *(f"{PROTOCOL_NAMES[proto]}/{port}" for proto, port in wanted))
    kind = Kind.ACCESS_TIMEOUT if timeout else Kind.ACCESS
    text = ",".join(words)
    return Message(rand, user, timestamp, VERSION, kind, text, address, wanted, timeout=timeout, digest=digest)


def encode(message: Message, key: bytes, hmac_key: bytes, digest: str, salt: bytes) -> bytes:
    """The payload, byte for byte as the stock client makes it of the same `rand` and `salt` (8 random bytes).

    digest: of the HMAC. Raises ValueError, in words for the operator, for what `unwrap` would not take, and
    LogknockError where `require` does.
    """
    plaintext = _compose(message)
    parsed = parse_message(plaintext)
    if isinstance(parsed, Refused):
        raise ValueError(parsed.words)
    if parsed != message:
        raise ValueError(f"{message.text[:_SHOWN]!r} does not say what the message is to ask for")
    sealed = _SALTED + salt + _encrypt(key, salt, plaintext)
    text = _base64(sealed)
    payload = text.removeprefix(_PREFIX) + _base64(hmac.digest(hmac_key, text, digest))
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"{len(payload)} bytes, and a packet has {MAX_PAYLOAD} at most")
    return payload


def require() -> None:
    """Raise LogknockError unless there is what decrypts packets: called before the first one comes in."""
    _encrypt(bytes(MIN_KEY), bytes(8), b"")  # and not only the import: it loads its library when it is first used


# ---- from the wire

# What OpenSSL writes before the salt, and what of its base64 the client leaves out: the first letter that it sends has
# the last four bits of the `_`, all of them ones.
_SALTED = b"Salted__"
_PREFIX = b"U2FsdGVkX1"
_FIRST = b"89+/"
_SALT_END = len(_SALTED) + 8
_BLOCK = 16

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

_NO_HMAC = "no key's HMAC fits: another key or digest, altered, or not from where the key's packets may come from"

# How much of what a packet says is quoted in an error.
_SHOWN = 40


class _MalformedError(ValueError):
    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason = reason


def _misshapen(payload: bytes) -> Refused | None:
    if not MIN_PAYLOAD <= len(payload) <= MAX_PAYLOAD:
        return Refused(Reason.LENGTH, f"{len(payload)} bytes, and a packet has {MIN_PAYLOAD} to {MAX_PAYLOAD}")
    if payload[0] not in _FIRST:
        return Refused(Reason.NOT_SPA, f"byte {payload[0]:#04x} is first, and a packet begins with 8, 9, + or /")
    if strange := payload.translate(None, _LETTERS):
        return Refused(Reason.ALPHABET, f"byte {strange[0]:#04x} is no letter of base64")
    return None


def _vouched(payload: bytes, keys: Iterable[Key]) -> tuple[Key, bytes] | None:
    """The key whose HMAC the packet has, and what that vouches for, decoded."""
    parts: dict[str, tuple[bytes, bytes, bytes] | None] = {}
    for key in keys:
        digest = key.digest
        if digest not in parts:
            parts[digest] = _split(payload, digest)
        found = parts[digest]
        if found is not None:
            text, sealed, code = found
            if hmac.compare_digest(hmac.digest(key.hmac_key, text, digest), code):
                return key, sealed
    return None


def _split(payload: bytes, digest: str) -> tuple[bytes, bytes, bytes] | None:
    """What the HMAC of that digest is of, as text and decoded, and the HMAC; None: it has another one's lengths.

    So a packet with a bit altered that nothing depends on, or with a letter too few, costs no HMAC either.
    """
    at = len(payload) - _letters(DIGESTS[digest])
    text = _PREFIX + payload[:at]
    sealed, code = _decode(text), _decode(payload[at:])
    if sealed is None or code is None or len(sealed) < _SALT_END + _BLOCK or len(sealed) % _BLOCK:
        return None
    return text, sealed, code


def _letters(size: int) -> int:
    """How many letters of base64 so many bytes have, without padding."""
    return (8 * size + 5) // 6


def _base64(data: bytes) -> bytes:
    return b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes | None:
    """What base64 without padding says; None unless it is spelled as an encoder spells it (RFC 4648, 3.5)."""
    try:
        data = b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except Base64Error:
        return None
    return data if _base64(data) == text else None


# ---- AES


def _aes(key: bytes, initial: bytes) -> "Cipher[CBC]":
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        hint = f"apt install python3-cryptography{UNSEEN_PACKAGES}; or pip install cryptography"
        raise LogknockError("SPA needs the Python library cryptography", hint, UNAVAILABLE) from None
    return Cipher(algorithms.AES(key), modes.CBC(initial))


def _cipher(key: bytes, salt: bytes) -> "Cipher[CBC]":
    """With the key and the initial vector that OpenSSL's EVP_BytesToKey makes with MD5, once."""
    made = block = b""
    while len(made) < 48:
        block = hashlib.md5(block + key + salt, usedforsecurity=False).digest()
        made += block
    return _aes(made[:32], made[32:48])


def _encrypt(key: bytes, salt: bytes, plaintext: bytes) -> bytes:
    """With padding of PKCS#7 (RFC 5652, 6.3)."""
    more = _BLOCK - len(plaintext) % _BLOCK
    encryptor = _cipher(key, salt).encryptor()
    return encryptor.update(plaintext + bytes([more]) * more) + encryptor.finalize()


def _decrypt(key: bytes, sealed: bytes) -> bytes:
    """Raises _MalformedError where its padding is wrong: the HMAC fits, so it is the key that does not."""
    decryptor = _cipher(key, sealed[len(_SALTED) : _SALT_END]).decryptor()
    padded = decryptor.update(sealed[_SALT_END:]) + decryptor.finalize()
    more = padded[-1]
    if not 1 <= more <= _BLOCK or padded[-more:] != bytes([more]) * more:
        raise _MalformedError(Reason.PADDING, "its padding is wrong: the HMAC key is the client's, the key is not")
    return padded[:-more]


# ---- what is inside

_NAT = (Kind.NAT, Kind.NAT_TIMEOUT, Kind.LOCAL_NAT, Kind.LOCAL_NAT_TIMEOUT)
_TIMEOUT = (Kind.ACCESS_TIMEOUT, Kind.NAT_TIMEOUT, Kind.LOCAL_NAT_TIMEOUT)
_DIGITS = re.compile(r"[0-9]+")


def _parse(plaintext: bytes) -> Message:
    """Raises _MalformedError."""
    text = plaintext.decode("latin-1")
    if not text.isascii() or not text.isprintable():
        raise _MalformedError(Reason.TEXT, "it holds other bytes than printable ASCII: another key, most likely")
    if not MIN_PLAINTEXT <= len(text) <= MAX_PLAINTEXT:
        raise _MalformedError(Reason.FIELDS, f"{len(text)} letters, and there are {MIN_PLAINTEXT} to {MAX_PLAINTEXT}")
    body, _, end = text.rpartition(":")
    fields = body.split(":")
    if len(fields) < 6:
        raise _MalformedError(Reason.FIELDS, f"{len(fields) + 1} fields, and there are 7 at least")
    rand, user, stamp, version, kind_text, wanted, *rest = fields
    if len(rand) != 16 or not _is_number(rand):
        raise _MalformedError(Reason.FIELDS, "its random number has not 16 digits")
    if not _is_number(stamp) or len(stamp) > 12:
        raise _MalformedError(Reason.FIELDS, f"{stamp[:_SHOWN]!r} is no time")
    if not 1 <= len(version) <= 8:
        raise _MalformedError(Reason.FIELDS, f"{version[:_SHOWN]!r} is no version")
    kind = _kind(kind_text)
    nat, server_auth, timeout = _extras(kind, rest)
    name = _field(user, MAX_USER, "user")
    if set(name) & set(NOT_IN_USERS):
        raise _MalformedError(Reason.FIELDS, f"{name!r} is no user name")
    message = _field(wanted, MAX_MESSAGE, "message")
    address, services = _wanted(kind, message)
    digest = _digest(body, end)
    return Message(rand, name, int(stamp), version, kind, message, address, services, nat, server_auth, timeout, digest)


def _is_number(text: str) -> bool:
    return _DIGITS.fullmatch(text) is not None


def _kind(text: str) -> Kind:
    if len(text) != 1 or text not in "0123456":
        raise _MalformedError(Reason.FIELDS, f"{text[:_SHOWN]!r} is no message type (0-6)")
    return Kind(int(text))


def _extras(kind: Kind, rest: list[str]) -> tuple[str, str, int]:
    """What stands behind the message: where to translate to, what is for the server, for how long."""
    needed = (kind in _NAT) + (kind in _TIMEOUT)
    if not needed <= len(rest) <= needed + 1:
        words = f"{len(rest)} fields behind the message, and one of type {kind:d} has {needed} or {needed + 1}"
        raise _MalformedError(Reason.FIELDS, words)
    timeout = _timeout(rest.pop()) if kind in _TIMEOUT else 0
    nat = _field(rest.pop(0), MAX_MESSAGE, "NAT field") if kind in _NAT else ""
    if kind in _NAT and not all(nat.partition(",")):
        raise _MalformedError(Reason.FIELDS, "its NAT field is no host and port")
    server_auth = _field(rest.pop(), MAX_MESSAGE, "server's field") if rest else ""
    return nat, server_auth, timeout


def _timeout(text: str) -> int:
    if not _is_number(text) or len(text) > 5 or int(text) > MAX_TIMEOUT:
        raise _MalformedError(Reason.TIMEOUT, f"{text[:_SHOWN]!r} is no timeout (0-{MAX_TIMEOUT} seconds)")
    return int(text)


def fit_user(name: str) -> str:
    """The name without what a packet cannot hold."""
    kept = (letter for letter in name if letter.isascii() and letter.isprintable() and letter not in NOT_IN_USERS)
    return "".join(kept)[:MAX_USER_BYTES]


def _field(text: str, most: int, what: str) -> str:
    data = _decode(text.encode()) if 1 <= len(text) <= most else None
    found = (data or b"").decode("latin-1")
    if not found or not found.isascii() or not found.isprintable():
        raise _MalformedError(Reason.FIELDS, f"its {what} is not 1 to {most} letters of base64, of printable ASCII")
    return found


def _wanted(kind: Kind, message: str) -> tuple[bytes, tuple[Service, ...]]:
    """For whom, and for what."""
    host, comma, names = message.partition(",")
    try:
        address = parse_address(host)
    except ValueError:
        address = b""
    if not address or not comma or " " in host:
        raise _MalformedError(Reason.MESSAGE, f"{host[:_SHOWN]!r} is no address with services behind it")
    if kind is Kind.COMMAND:
        return address, ()
    return address, tuple(dict.fromkeys(_service(name) for name in names.split(",")))


def _service(text: str) -> Service:
    protocol, _, port = text.partition("/")
    try:
        return Service(PROTOCOLS[protocol], parse_port(port, text))
    except (KeyError, ValueError):
        raise _MalformedError(Reason.MESSAGE, f"{text[:_SHOWN]!r} is no service: tcp/22") from None


def _digest(body: str, end: str) -> str:
    """The digest that the plaintext ends in; its length says which, but for two pairs of them."""
    for name, size in DIGESTS.items():
        if len(end) == _letters(size):
            made = hashlib.new(name, body.encode(), usedforsecurity=False).digest()
            if hmac.compare_digest(_base64(made), end.encode()):
                return name
    raise _MalformedError(Reason.DIGEST, "its digest is not that of its fields")


def _compose(message: Message) -> bytes:
    """The plaintext; sense or nonsense."""
    fields = [message.rand, _encoded(message.user), str(message.timestamp), message.version, f"{message.kind:d}"]
    fields += [_encoded(text) for text in (message.text, message.nat, message.server_auth) if text]
    if message.kind in _TIMEOUT:
        fields.append(str(message.timeout))
    body = ":".join(fields).encode("ascii", "replace")
    return body + b":" + _base64(hashlib.new(message.digest, body, usedforsecurity=False).digest())


def _encoded(text: str) -> str:
    return _base64(text.encode("utf-8", "replace")).decode()
