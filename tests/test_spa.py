"""SPA packets: what the stock client sends, each way to spell something else, and what a forged one costs."""

import hashlib
import hmac
import json
import string
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock import spa
from logknock.knock import Service
from logknock.packet import TCP, UDP, parse_address
from logknock.spa import DIGESTS, Key, Kind, Message, Opened, Reason, Refused, encode, parse_message, request, unwrap
from tests.fuzz.packets import TARGETS

VECTORS = json.loads((Path(__file__).parent / "vectors" / "spa.json").read_text())["vectors"]
STOCK = VECTORS[0]["packet"].encode()

KEY, HMAC_KEY, SALT, RAND = bytes(range(32)), bytes(range(64, 128)), bytes(range(200, 208)), "0123456789012345"
SSH = Service(TCP, 22)


def key(vector: dict[str, Any]) -> Key:
    """The key of a vector; one that has none for an HMAC was made without."""
    hmac_key = bytes.fromhex(vector["hmac_key_hex"] or "00" * 32)
    return Key("vpn", vector["name"], bytes.fromhex(vector["key_hex"]), hmac_key, vector["hmac_type"], (SSH,))


def opened(payload: bytes, *keys: Key) -> Opened:
    found = unwrap(payload, keys)
    assert isinstance(found, Opened), found
    return found


def reason(payload: bytes, *keys: Key) -> Reason:
    found = unwrap(payload, keys)
    assert isinstance(found, Refused), found
    assert found.words
    return found.reason


class Counted(NamedTuple):
    """What was computed while it was looked on."""

    hmacs: list[str]
    ciphers: list[bytes]


@contextmanager
def counted() -> Iterator[Counted]:
    """Every HMAC and every cipher there is goes through here, and on to the real one."""
    seen = Counted([], [])
    digest, cipher = hmac.digest, spa._aes

    def count_hmac(key: bytes, text: bytes, name: str) -> bytes:
        seen.hmacs.append(name)
        return digest(key, text, name)

    def count_cipher(key: bytes, initial: bytes) -> Any:
        seen.ciphers.append(key)
        return cipher(key, initial)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hmac, "digest", count_hmac)
        patch.setattr(spa, "_aes", count_cipher)
        yield seen


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
class TestVectors:
    """Packets of the stock client, and their broken relatives."""

    def test_it_is_decoded_or_refused_as_it_says(self, vector: dict[str, Any]) -> None:
        """What has no HMAC is refused, whatever is in it."""
        expected = vector["expect"]
        if "reject" in expected or "no-hmac" in vector["name"]:
            wanted = expected.get("reject", "hmac").upper().replace("-", "_")
            assert reason(vector["packet"].encode(), key(vector)) is Reason[wanted]
            return
        found = opened(vector["packet"].encode(), key(vector))
        message = found.message
        assert found.key == key(vector)
        assert message.rand == expected["rand"]
        assert message.user == expected["username"]
        assert message.timestamp == expected["timestamp"]
        assert message.version == expected["version"]
        assert message.kind == expected["type"]
        assert message.text == expected["message"]
        assert message.address == parse_address(expected["allow_ip"])
        assert message.services == tuple(Service.parse("/".join(each.split("/")[::-1])) for each in expected["ports"])
        assert message.nat == expected["nat_access"]
        assert message.server_auth == expected["server_auth"]
        assert message.timeout == expected["timeout"]
        assert message.digest == expected["digest_type"]

    def test_the_same_salt_and_number_make_the_same_bytes(self, vector: dict[str, Any]) -> None:
        """What we make of what we read is the stock client's packet, to the last byte."""
        payload = vector["packet"].encode()
        found = unwrap(payload, [key(vector)])
        if isinstance(found, Opened):
            salt = b64decode("U2FsdGVkX1" + vector["packet"][:14])[8:16]
            there = found.key
            assert encode(found.message, there.key, there.hmac_key, there.digest, salt) == payload
            if vector["plaintext"]:
                assert parse_message(vector["plaintext"].encode()) == found.message


class TestEachByte:
    """T18: one packet has one spelling, and what is not authentic never gets as far as AES."""

    MINE = key(VECTORS[0])

    def test_t18_any_other_byte_is_another_packet_and_nobody_decrypts_it(self) -> None:
        """Each of its bytes, changed to each of the 255 others."""
        with counted() as seen:
            for at in range(len(STOCK)):
                for byte in range(256):
                    if byte != STOCK[at]:
                        altered = STOCK[:at] + bytes([byte]) + STOCK[at + 1 :]
                        assert isinstance(unwrap(altered, [self.MINE]), Refused), (at, byte)
            assert not seen.ciphers
            assert len(seen.hmacs) < 64 * len(STOCK), "other bytes than base64's cost no HMAC"
            opened(STOCK, self.MINE)
            assert len(seen.ciphers) == 1

    @pytest.mark.parametrize("vector", [each for each in VECTORS if each["name"].startswith("hmac-")], ids=str)
    def test_t18_an_unused_bit_of_the_last_letter_is_not_free(self, vector: dict[str, Any]) -> None:
        """It says the same bytes to a lenient decoder; here it costs not even an HMAC."""
        payload, mine = vector["packet"].encode(), key(vector)
        letters = (string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/").encode()
        size = DIGESTS[mine.digest]
        unused = -8 * size % 6
        value = letters.index(payload[-1])
        assert not value & ((1 << unused) - 1)
        with counted() as seen:
            for more in range(1, 1 << unused):
                assert reason(payload[:-1] + letters[value + more :][:1], mine) is Reason.HMAC
        assert not seen.hmacs

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            pytest.param(lambda packet: packet + b"=", Reason.ALPHABET, id="padding"),
            pytest.param(lambda packet: packet + b"==", Reason.ALPHABET, id="more padding"),
            pytest.param(lambda packet: packet + b"\n", Reason.ALPHABET, id="a newline"),
            pytest.param(lambda packet: packet + b"\0", Reason.ALPHABET, id="a NUL"),
            pytest.param(lambda packet: b" " + packet, Reason.NOT_SPA, id="a blank before it"),
            pytest.param(lambda packet: packet.replace(b"/", b"_").replace(b"+", b"-"), Reason.NOT_SPA, id="for URLs"),
            pytest.param(lambda packet: packet[:1] + packet[1:].replace(b"+", b"-"), Reason.ALPHABET, id="partly"),
            pytest.param(lambda packet: b"U2FsdGVkX1" + packet, Reason.NOT_SPA, id="with what the client leaves out"),
            pytest.param(lambda packet: packet + packet, Reason.HMAC, id="twice"),
            pytest.param(lambda packet: packet + b"A", Reason.HMAC, id="a letter more"),
            pytest.param(lambda packet: packet + b"AAAA", Reason.HMAC, id="four letters more"),
            pytest.param(lambda packet: packet[:-43] + packet[-43:].swapcase(), Reason.HMAC, id="another HMAC"),
            pytest.param(lambda packet: packet[:-43], Reason.HMAC, id="no HMAC"),
            pytest.param(lambda packet: packet * 7, Reason.LENGTH, id="too long"),
            pytest.param(lambda _: b"", Reason.LENGTH, id="nothing"),
        ],
    )
    def test_t18_another_spelling_is_no_packet(self, change: Callable[[bytes], bytes], why: Reason) -> None:
        with counted() as seen:
            assert reason(change(STOCK), self.MINE) is why
        assert not seen.ciphers

    def test_t26_truncated_anywhere(self) -> None:
        """From either end: never an exception, never AES, and an HMAC at most where whole blocks are left."""
        with counted() as seen:
            for at in range(len(STOCK)):
                assert isinstance(unwrap(STOCK[:at], [self.MINE]), Refused)
                assert isinstance(unwrap(STOCK[at + 1 :], [self.MINE]), Refused)
        assert not seen.ciphers
        assert len(seen.hmacs) < 20

    def test_the_bounds_of_the_length(self) -> None:
        """140 and 1,500 bytes are looked into; one less or more is not."""
        assert reason(b"+" * 139) is Reason.LENGTH
        assert reason(b"+" * 140) is Reason.HMAC
        assert reason(b"+" * 1500) is Reason.HMAC
        assert reason(b"+" * 1501) is Reason.LENGTH

    @given(st.binary(max_size=1600) | st.text("89+/AZaz09=", max_size=1600).map(str.encode))
    def test_t26_any_bytes(self, payload: bytes) -> None:
        assert isinstance(unwrap(payload, [self.MINE]), Refused)


class TestCost:
    """What a packet costs whose HMAC nobody has: none without the shape, one a key at most, no AES ever."""

    KEYS = tuple(
        Key("vpn", f"client{at}", KEY, bytes([at]) * 32, digest, (SSH,))
        for at, digest in enumerate(9 * list(DIGESTS) + ["sha256"])
    )

    def test_without_the_shape_no_hmac(self) -> None:
        assert len(self.KEYS) == spa.MAX_SPA_KEYS
        with counted() as seen:
            for payload in (STOCK[:139], b"A" + STOCK[1:], STOCK[:-1] + b"=", STOCK + b"\xff"):
                assert reason(payload, *self.KEYS) in (Reason.LENGTH, Reason.NOT_SPA, Reason.ALPHABET)
        assert seen == ([], [])

    def test_one_hmac_for_each_key_that_its_length_fits(self) -> None:
        """The text has to be whole blocks: by that, most digests are out of the question."""
        with counted() as seen:
            assert reason(STOCK, *self.KEYS) is Reason.HMAC
        assert seen.hmacs == [each.digest for each in self.KEYS if DIGESTS[each.digest] == 32]
        assert not seen.ciphers

    def test_no_more_after_the_one_that_fits(self) -> None:
        with counted() as seen:
            assert opened(STOCK, key(VECTORS[0]), *self.KEYS).key.client == VECTORS[0]["name"]
        assert len(seen.hmacs) == len(seen.ciphers) == 1

    @pytest.mark.parametrize(
        ("networks", "address", "may"),
        [
            pytest.param((), "192.0.2.1", True, id="any"),
            pytest.param(("192.0.2.0/24",), "192.0.2.255", True, id="inside"),
            pytest.param(("192.0.2.0/24",), "192.0.3.0", False, id="beside it"),
            pytest.param(("192.0.2.7/32",), "192.0.2.7", True, id="one address"),
            pytest.param(("192.0.2.7/32",), "192.0.2.6", False, id="another address"),
            pytest.param(("0.0.0.0/0",), "2001:db8::1", False, id="all of IPv4"),
            pytest.param(("::/0",), "2001:db8::1", True, id="all of IPv6"),
            pytest.param(("::/0",), "192.0.2.1", False, id="IPv4 is not in it"),
            pytest.param(("192.0.2.0/24", "2001:db8::/32"), "2001:db8:ffff::", True, id="the second"),
        ],
    )
    def test_where_packets_may_come_from(self, networks: tuple[str, ...], address: str, may: bool) -> None:
        source = tuple(ip_network(network) for network in networks)
        assert Key("vpn", "a", KEY, HMAC_KEY, "sha256", (SSH,), source=source).admits(parse_address(address)) is may


def sealed(plaintext: bytes, digest: str = "sha256", *, key: bytes = KEY, pad: bytes | None = None) -> bytes:
    """A packet that is authentic, whatever is in it."""
    text = spa._base64(b"Salted__" + SALT + _raw(key, plaintext, pad))
    return text[10:] + spa._base64(hmac.digest(HMAC_KEY, text, digest))


def _raw(key: bytes, plaintext: bytes, pad: bytes | None) -> bytes:
    if pad is None:
        return spa._encrypt(key, SALT, plaintext)
    encryptor = spa._cipher(key, SALT).encryptor()
    return encryptor.update(plaintext + pad) + encryptor.finalize()


MINE = Key("vpn", "laptop", KEY, HMAC_KEY, "sha256", (SSH,))


def plaintext(fields: str, digest: str = "sha256") -> bytes:
    made = hashlib.new(digest, fields.encode("latin-1")).digest()
    return fields.encode("latin-1") + b":" + spa._base64(made)


def b64(text: str) -> str:
    return spa._base64(text.encode("latin-1")).decode()


def fields(
    *,
    rand: str = RAND,
    user: str = "me",
    stamp: str = "1795222710",
    version: str = "3.0.0",
    kind: str = "1",
    message: str = "192.0.2.7,tcp/22",
    more: str = "",
) -> str:
    return f"{rand}:{b64(user)}:{stamp}:{version}:{kind}:{b64(message)}{more}"


class TestInside:
    """What an authentic packet says is no more trusted than it has to be: a client may be broken, or not ours."""

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            pytest.param(fields(rand="123456789012345"), Reason.FIELDS, id="15 digits"),
            pytest.param(fields(rand="12345678901234567"), Reason.FIELDS, id="17 digits"),
            pytest.param(fields(rand="12345678901234x6"), Reason.FIELDS, id="a letter among the digits"),
            pytest.param(fields(user=""), Reason.FIELDS, id="no user"),
            pytest.param(fields(user="x" * 49), Reason.FIELDS, id="a user too long"),
            *(pytest.param(fields(user=f"a{x}b"), Reason.FIELDS, id=f"a user with {x}") for x in '"/\\[]:;|=,+*?<>'),
            pytest.param(fields(user="a\x1bb"), Reason.FIELDS, id="a user with an escape"),
            pytest.param(fields(user="a\xe9b"), Reason.FIELDS, id="a user outside ASCII"),
            pytest.param(fields(stamp="1795222710000"), Reason.FIELDS, id="a time too long"),
            pytest.param(fields(stamp="-1"), Reason.FIELDS, id="a time before 1970"),
            pytest.param(fields(stamp="1e9"), Reason.FIELDS, id="a time that is no number"),
            pytest.param(fields(stamp=""), Reason.FIELDS, id="no time"),
            pytest.param(fields(version=""), Reason.FIELDS, id="no version"),
            pytest.param(fields(version="3.0.0.0.0"), Reason.FIELDS, id="a version too long"),
            *(pytest.param(fields(kind=x), Reason.FIELDS, id=f"type {x!r}") for x in ("", "7", "-1", "01", "x", "10")),
            pytest.param(fields(more=f":{b64('auth')}:{b64('x')}"), Reason.FIELDS, id="a field too many"),
            pytest.param(fields(kind="3"), Reason.FIELDS, id="no timeout"),
            pytest.param(fields(kind="4", more=f":{b64('h,1')}"), Reason.FIELDS, id="NAT and no timeout"),
            pytest.param(fields(kind="5", more=f":{b64('host')}"), Reason.FIELDS, id="NAT and no port"),
            pytest.param(fields(kind="3", more=":65537"), Reason.TIMEOUT, id="a timeout too long"),
            pytest.param(fields(kind="3", more=":-1"), Reason.TIMEOUT, id="a negative timeout"),
            pytest.param(fields(kind="3", more=":"), Reason.TIMEOUT, id="an empty timeout"),
            pytest.param(fields(kind="3", more=":1 "), Reason.TIMEOUT, id="a timeout and a blank"),
            pytest.param(fields(message="192.0.2.7"), Reason.MESSAGE, id="no service"),
            pytest.param(fields(message="192.0.2.7,"), Reason.MESSAGE, id="an empty service"),
            pytest.param(fields(message="192.0.2.7,tcp/22,"), Reason.MESSAGE, id="a comma at the end"),
            pytest.param(fields(message="192.0.2.256,tcp/22"), Reason.MESSAGE, id="no address"),
            pytest.param(fields(message="192.0.2.7 ,tcp/22"), Reason.MESSAGE, id="an address and a blank"),
            pytest.param(fields(message="fe80::1%eth0,tcp/22"), Reason.MESSAGE, id="T27 a zone"),
            pytest.param(fields(message="gate.example,tcp/22"), Reason.MESSAGE, id="a name"),
            pytest.param(fields(message="192.0.2.7,tcp/0"), Reason.MESSAGE, id="port 0"),
            pytest.param(fields(message="192.0.2.7,tcp/65536"), Reason.MESSAGE, id="port 65536"),
            pytest.param(fields(message="192.0.2.7,tcp/+22"), Reason.MESSAGE, id="a sign"),
            pytest.param(fields(message="192.0.2.7,icmp/8"), Reason.MESSAGE, id="another protocol"),
            pytest.param(fields(message="192.0.2.7,22/tcp"), Reason.MESSAGE, id="the wrong way round"),
            pytest.param(fields(message="192.0.2.7,none/0"), Reason.MESSAGE, id="nothing at all"),
            pytest.param(fields(message="192.0.2.7,tcp/22,\x00"), Reason.FIELDS, id="a NUL"),
            pytest.param(fields(message="192.0.2.7," + ",".join(["tcp/22"] * 30)), Reason.FIELDS, id="a long message"),
            pytest.param(fields() + "\x7f", Reason.TEXT, id="a DEL"),
            pytest.param(fields() + "\xa0", Reason.TEXT, id="outside ASCII"),
            pytest.param(":".join(fields().split(":")[:5]), Reason.FIELDS, id="a field too few"),
        ],
    )
    def test_what_is_malformed_opens_nothing(self, said: str, why: Reason) -> None:
        found = unwrap(sealed(plaintext(said)), [MINE])
        assert isinstance(found, Refused)
        assert found.reason is why
        assert found.key is MINE
        assert found.words.isprintable()

    @pytest.mark.parametrize("digest", DIGESTS)
    def test_every_digest_inside_and_outside(self, digest: str) -> None:
        """What the plaintext ends in, what the HMAC is made with."""
        mine = replace(MINE, digest=digest)
        found = opened(sealed(plaintext(fields(), digest), digest), mine)
        assert found.message.digest == digest

    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(":" + "A" * 43, id="another digest"),
            pytest.param(":" + "A" * 42, id="of no known length"),
            pytest.param(":", id="none"),
        ],
    )
    def test_a_digest_that_does_not_fit(self, end: str) -> None:
        assert reason(sealed((fields() + end).encode()), MINE) is Reason.DIGEST

    @pytest.mark.parametrize("pad", [b"\0" * 16, b"\x11" * 16, b"\x03" * 14 + b"\x02\x03", b"x" * 15 + b"\x02"])
    def test_a_wrong_padding(self, pad: bytes) -> None:
        text = plaintext(fields())
        text = text[: len(text) // 16 * 16]
        assert reason(sealed(text, pad=pad), MINE) is Reason.PADDING

    def test_another_key_under_the_right_hmac(self) -> None:
        """Said as what it is: half of a stanza was copied."""
        reasons = {reason(sealed(plaintext(fields()), key=bytes([at]) * 32), MINE) for at in range(40)}
        assert reasons <= {Reason.PADDING, Reason.TEXT}

    def test_what_stands_where(self) -> None:
        """A field for the server, and the timeout as the last one."""
        found = parse_message(plaintext(fields(kind="4", more=f":{b64('10.0.0.1,22')}:{b64('hello')}:30")))
        assert isinstance(found, Message)
        assert (found.kind, found.nat, found.server_auth, found.timeout) == (
            Kind.NAT_TIMEOUT,
            "10.0.0.1,22",
            "hello",
            30,
        )
        found = parse_message(plaintext(fields(more=f":{b64('hello')}")))
        assert isinstance(found, Message)
        assert (found.server_auth, found.timeout) == ("hello", 0)

    @pytest.mark.parametrize(
        ("said", "address", "services"),
        [
            pytest.param("0.0.0.0,tcp/22", bytes(4), (SSH,), id="the packet's own source"),
            pytest.param("2001:db8::1,tcp/22", parse_address("2001:db8::1"), (SSH,), id="IPv6"),
            pytest.param("::ffff:192.0.2.7,tcp/22", parse_address("192.0.2.7"), (SSH,), id="T27 IPv4 in IPv6"),
            pytest.param("192.0.2.7,tcp/22,udp/53,tcp/22", bytes([192, 0, 2, 7]), (SSH, Service(UDP, 53)), id="twice"),
        ],
    )
    def test_addresses_and_services(self, said: str, address: bytes, services: tuple[Service, ...]) -> None:
        found = opened(sealed(plaintext(fields(message=said))), MINE).message
        assert (found.address, found.services) == (address, services)

    def test_a_command_is_text_and_nothing_else(self) -> None:
        found = opened(sealed(plaintext(fields(kind="0", message="192.0.2.7,id; reboot, now"))), MINE).message
        assert (found.kind, found.services, found.text) == (Kind.COMMAND, (), "192.0.2.7,id; reboot, now")


USERS = st.text(sorted(set(string.printable[:95]) - set('"/\\[]:;|=,+*?<>')), min_size=1, max_size=48)
SERVICES = st.lists(st.builds(Service, st.sampled_from([TCP, UDP]), st.integers(1, 65535)), min_size=1, max_size=12)


class TestEncode:
    """What our client sends."""

    @given(
        address=st.binary(min_size=4, max_size=4) | st.just(parse_address("2001:db8::1")),
        services=SERVICES,
        user=USERS,
        stamp=st.integers(0, 10**12 - 1),
        timeout=st.integers(0, 65536),
        inner=st.sampled_from(sorted(DIGESTS)),
        digest=st.sampled_from(sorted(DIGESTS)),
        key=st.binary(min_size=16, max_size=32),
        hmac_key=st.binary(min_size=16, max_size=128),
        salt=st.binary(min_size=8, max_size=8),
    )
    def test_there_and_back(
        self,
        *,
        address: bytes,
        services: list[Service],
        user: str,
        stamp: int,
        timeout: int,
        inner: str,
        digest: str,
        key: bytes,
        hmac_key: bytes,
        salt: bytes,
    ) -> None:
        """Whatever it asks for arrives as it was asked."""
        asked = request(address, services, user=user, timestamp=stamp, rand=RAND, timeout=timeout, digest=inner)
        payload = encode(asked, key, hmac_key, digest, salt)
        mine = Key("vpn", "laptop", key, hmac_key, digest, (SSH,))
        found = opened(payload, mine)
        assert found.message == asked
        assert found.message.services == tuple(dict.fromkeys(services))
        assert len(found.identity) == 32
        assert isinstance(unwrap(payload[:-1] + b"=", [mine]), Refused)

    def test_another_salt_is_another_packet(self) -> None:
        """The identity is that of salt and ciphertext, and of nothing that an attacker could choose."""
        asked = request(bytes([192, 0, 2, 7]), [SSH], user="me", timestamp=1, rand=RAND)
        identities = {opened(encode(asked, KEY, HMAC_KEY, "sha256", bytes([at]) * 8), MINE).identity for at in range(9)}
        assert len(identities) == 9

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            pytest.param({"user": "a:b"}, "user name", id="a user that fwknop refuses"),
            pytest.param({"user": ""}, "user", id="no user"),
            pytest.param({"user": "\u00e9"}, "user", id="a user outside ASCII"),
            pytest.param({"rand": "1"}, "16 digits", id="a short number"),
            pytest.param({"services": ()}, "no address", id="nothing asked for"),
            pytest.param({"services": [Service(TCP, at) for at in range(10000, 10040)]}, "message", id="too much"),
            pytest.param({"timeout": 65537}, "no timeout", id="too long"),
            pytest.param({"timestamp": 10**12}, "no time", id="a time too far"),
        ],
    )
    def test_what_would_be_refused_is_never_sent(self, change: dict[str, Any], says: str) -> None:
        said: dict[str, Any] = {"services": [SSH], "user": "me", "timestamp": 1, "rand": RAND} | change
        with pytest.raises(ValueError, match=says):
            encode(request(bytes([192, 0, 2, 7]), **said), KEY, HMAC_KEY, "sha256", SALT)

    def test_a_message_that_says_two_things(self) -> None:
        asked = request(bytes([192, 0, 2, 7]), [SSH], user="me", timestamp=1, rand=RAND)
        with pytest.raises(ValueError, match="does not say"):
            encode(asked._replace(address=bytes([192, 0, 2, 8])), KEY, HMAC_KEY, "sha256", SALT)


def test_no_key_is_shown() -> None:
    """In no repr, and so in no log and no traceback."""
    shown = repr(Key("vpn", "laptop", b"secret-secret-se", b"SECRET-SECRET-SE", "sha256", (SSH,)))
    assert "laptop" in shown
    assert "secret" not in shown.lower()


def test_every_reason_has_words_of_its_own() -> None:
    assert len({str(each) for each in Reason}) == len(Reason)


@pytest.mark.parametrize("name", TARGETS)
def test_t26_no_accident_makes_a_packet_of_something_else(name: str) -> None:
    """What `make fuzz` tries for a minute, always the same here: never an exception, and what is opened is sound."""
    check, alter, seeds = TARGETS[name]
    outside = {Reason.LENGTH, Reason.NOT_SPA, Reason.ALPHABET, Reason.HMAC}
    inside, altered = 0, b""
    for seed in range(4000):
        altered = alter(seeds[seed % len(seeds)] if seed % 3 else altered, seed, 1600)
        found = check(altered)
        inside += not (isinstance(found, Refused) and found.reason in outside)
    assert inside > 200, "enough of them come far enough"
