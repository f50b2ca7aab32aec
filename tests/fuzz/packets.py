"""What must hold of any bytes as an SPA packet, and of any plaintext that a client with a key may have sealed.

Rule 1: no fuzzer is needed here, so that a test can try the same. Rule 2: an accident happens to a real packet: one of
the stock client's, altered, and then often signed anew, for what nobody vouches for is not looked into.
"""

import hashlib
import hmac
import json
import random
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

from logknock import spa
from logknock.knock import Service
from logknock.packet import TCP, UDP
from logknock.spa import DIGESTS, Key, Kind, Message, Opened, Refused

_VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "spa.json").read_text())["vectors"]

PACKETS = sorted({each["packet"].encode() for each in _VECTORS})
PLAINTEXTS = sorted({each["plaintext"].encode() for each in _VECTORS if each["plaintext"]})

# What the fields and their borders are made of.
TOKENS = [
    b":",
    b",",
    b"/",
    b"=",
    b"+",
    b"0.0.0.0",
    b"::",
    b"tcp/",
    b"udp/",
    b"%eth0",
    b"65535",
    b"65536",
    b"U2FsdGVkX1",
]
TOKENS += [b"MC4wLjAuMCx0Y3AvMjI", b"3.0.0", b":1:", b":3:", b":0", b"\0", b"\xff"]

_KEY = bytes(range(32))
KEYS = [Key("vpn", name, _KEY, bytes([at]) * 32, name, (Service(TCP, 22),)) for at, name in enumerate(DIGESTS)]
KEYS += [
    Key("vpn", each["name"], bytes.fromhex(each["key_hex"]), bytes.fromhex(each["hmac_key_hex"]), each["hmac_type"], ())
    for each in _VECTORS
    if each["hmac_key_hex"]
]


def sign(payload: bytes, key: Key) -> bytes:
    """As many whole blocks as the packet has letters for, with the HMAC that the key gives them."""
    letters = bytes(byte for byte in payload if byte in spa._LETTERS)
    body = b"U2FsdGVkX1" + letters[: max(0, len(letters) - len(spa._base64(bytes(DIGESTS[key.digest]))))]
    sealed = b64decode(body + b"A" * (-len(body) % 4))
    text = spa._base64(sealed[: len(sealed) // 16 * 16])
    return text[10:] + spa._base64(hmac.digest(key.hmac_key, text, key.digest))


def seal(plaintext: bytes) -> bytes:
    """The plaintext, whatever it is, as a client sends it."""
    text = spa._base64(b"Salted__" + b"saltsalt" + spa._encrypt(_KEY, b"saltsalt", plaintext))
    return sign(text[10:] + b"A" * 43, KEYS[2])


def accident(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Bytes lost, doubled, put in, moved in from another packet, turned over."""
    for _ in range(chance.randint(1, 3)):
        begin, end = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
        other, token = chance.choice(others), chance.choice(TOKENS)
        data = chance.choice(
            (
                data[:begin] + data[end:],
                data[:end] + data[begin:],
                data[:begin] + token + data[begin:],
                data[:begin] + chance.randbytes(1) + data[begin + 1 :],
                data[:begin] + other[begin:end] + data[end:],
            )
        )
    return data


def altered_packet(data: bytes, seed: int, longest: int) -> bytes:
    """A packet after an accident; of two, one is signed again, by whom it may."""
    chance = random.Random(seed)  # noqa: S311
    packet = accident(chance.choice(PACKETS) if chance.random() < 0.5 else data, PACKETS, chance)[:longest]
    return sign(packet, chance.choice(KEYS)) if chance.random() < 0.5 else packet


def altered_plaintext(data: bytes, seed: int, longest: int) -> bytes:
    """A plaintext after an accident; of two, one ends in the digest of what it is now."""
    chance = random.Random(seed)  # noqa: S311
    text = accident(chance.choice(PLAINTEXTS) if chance.random() < 0.5 else data, PLAINTEXTS, chance)[:longest]
    return ended(text.rpartition(b":")[0], chance.choice(sorted(DIGESTS))) if chance.random() < 0.5 else text


def ended(body: bytes, digest: str) -> bytes:
    """The fields with their digest behind them."""
    return body + b":" + spa._base64(hashlib.new(digest, body, usedforsecurity=False).digest())


def wire(data: bytes) -> Opened | Refused:
    """AssertionError where the bytes are neither refused in so many words nor the one spelling of a sound packet."""
    found = spa.unwrap(data, KEYS)
    if isinstance(found, Refused):
        _check_words(found)
        return found
    assert found.key in KEYS
    assert len(found.identity) == 32
    _check(found.message)
    assert sign(data, found.key) == data
    return found


def plaintext(data: bytes) -> Message | Refused:
    """The same of what stands inside: seen from the wire it is that, or refused for the same reason."""
    found = spa.parse_message(data)
    if len(data) <= spa.MAX_PLAINTEXT - 300:  # else the wire is too short for it
        outside = wire(seal(data))
        if isinstance(outside, Opened):
            assert outside.message == found
        elif outside.key is not None:
            assert isinstance(found, Refused)
            assert (outside.reason, outside.words) == (found.reason, found.words)
    if isinstance(found, Refused):
        _check_words(found)
        return found
    _check(found)
    # Numbers may have zeros before them; for all else there is one spelling.
    assert spa.parse_message(spa._compose(found)) == found
    assert data.count(b":") == spa._compose(found).count(b":")
    return found


def _check(message: Message) -> None:
    assert type(message) is Message
    assert len(message.rand) == 16
    assert message.rand.isdigit()
    assert 0 < len(message.user) <= 48
    assert 0 <= message.timestamp < 10**12
    assert 0 < len(message.version) <= 8
    assert message.kind in Kind
    assert len(message.address) in (4, 16)
    assert bool(message.services) == (message.kind is not Kind.COMMAND)
    assert len(set(message.services)) == len(message.services)
    assert all(proto in (TCP, UDP) and 0 < port < 65536 for proto, port in message.services)
    assert 0 <= message.timeout <= spa.MAX_TIMEOUT
    assert message.digest in DIGESTS
    for text in (message.user, message.text, message.nat, message.server_auth, message.version):
        assert text.isascii()
        assert text.isprintable()


def _check_words(refused: Refused) -> None:
    """They go to the log as they are."""
    assert 0 < len(refused.words) < 160
    assert refused.words.isascii()
    assert refused.words.isprintable()


TARGETS: dict[str, tuple[Callable[[bytes], object], Callable[[bytes, int, int], bytes], list[bytes]]] = {
    "wire": (wire, altered_packet, PACKETS),
    "plaintext": (plaintext, altered_plaintext, PLAINTEXTS),
}
