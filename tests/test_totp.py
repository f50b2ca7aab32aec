"""Sequences of a secret and the time: the page that clients are written from, and the code."""

import hashlib
import itertools
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock import totp
from logknock.knock import Sequence, Service
from logknock.packet import PROTOCOLS, TCP, UDP
from logknock.totp import Client, TotpDoor, WeakError

PAGE = (Path(__file__).parent.parent / "docs/reference/totp.md").read_text()
SECRETS = {"A": bytes(range(32)), "B": b"12345678901234567890", "C": bytes(range(0x80, 0xC0))}


def pool(text: str) -> tuple[Service, ...]:
    """`20000-20499/tcp, 7/udp` as services."""
    services: list[Service] = []
    for word in text.replace("`", "").split(", "):
        ports, _, protocol = word.partition("/")
        first, _, last = ports.partition("-")
        services += [Service(PROTOCOLS[protocol], port) for port in range(int(first), int(last or first) + 1)]
    return tuple(services)


DEFAULT = pool(", ".join(totp.DEFAULT_PORTS))
LAPTOP = Client("laptop", SECRETS["A"])
SSH = TotpDoor("ssh", "gate.example", DEFAULT, clients=(LAPTOP,))
PHONE = TotpDoor("phone", "gate.example", totp.code_services(Service(TCP, 21_000), 6), digits=6, clients=(LAPTOP,))


def rows(columns: int) -> Iterator[list[str]]:
    """The page's vectors: rows of so many columns that begin with the name of a secret."""
    for line in PAGE.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == columns and cells[0] in SECRETS:
            yield cells


def knocks(text: str) -> Sequence:
    return tuple(map(Service.parse, text.split()))


# ---- the page


def by_the_page(secret: bytes, step: int, door: str, host: str, services: tuple[Service, ...], length: int) -> Sequence:
    """The page's four steps, with nothing of ours: HMAC by RFC 2104 itself, and no function that does two at a time."""
    key = (hashlib.sha256(secret).digest() if len(secret) > 64 else secret).ljust(64, b"\0")
    for number in itertools.count():
        message = b"logknock totp 1" + bytes([0]) + step.to_bytes(8, "big") + number.to_bytes(4, "big")
        message += len(door.encode()).to_bytes(2, "big") + door.encode()
        message += len(host.encode()).to_bytes(2, "big") + host.encode()
        inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + message).digest()
        block = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()
        words = [int.from_bytes(block[at : at + 4], "big") for at in range(0, 4 * length, 4)]
        found = tuple(services[word * len(services) // 2**32] for word in words)
        near = any(abs(one.port - other.port) < 2 for one, other in itertools.combinations(found, 2))
        alike = len({service.proto for service in found}) < len({service.proto for service in services})
        if not near and not alike:
            return found
    raise AssertionError


@pytest.mark.parametrize("row", [pytest.param(row, id=" ".join((row[0], row[1], row[2], row[3]))) for row in rows(8)])
def test_the_pages_vectors_are_what_the_code_derives(row: list[str]) -> None:
    secret, step, door, host, ports, length, _, written = row
    services = pool(ports)
    assert totp.derive(SECRETS[secret], int(step), door, host, services, int(length)) == knocks(written)
    assert by_the_page(SECRETS[secret], int(step), door, host, services, int(length)) == knocks(written)


def test_the_pages_own_program_derives_the_vectors() -> None:
    """Who copies it has a client."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(f"import hmac, itertools, struct\n{program}", names)  # noqa: S102  # what the page says
    derive = names["derive"]
    assert callable(derive)
    for secret, step, door, host, ports, length, _, written in rows(8):
        assert tuple(derive(SECRETS[secret], int(step), door, host, pool(ports), int(length))) == knocks(written)


def test_the_vectors_show_what_can_go_wrong() -> None:
    """Candidates that are passed over, one and several; one protocol and two; the shortest, the longest; a far step."""
    found = list(rows(8))
    assert {"0", "1", "3"} <= {row[6] for row in found}
    assert {"4", "5", "6", "8"} <= {row[5] for row in found}
    assert any("udp" not in row[4] for row in found)
    assert any(int(row[1]) >= 2**32 for row in found)
    for secret, text in (("A", "AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5DYPQ"), ("B", "GEZDGNBVGY3TQOJQ" * 2)):
        assert f"`{text}`" in PAGE
        assert totp.parse_secret(text) == SECRETS[secret]


@pytest.mark.parametrize("row", [pytest.param(row, id=" ".join(row[:4])) for row in rows(7)])
def test_the_pages_codes_are_what_the_code_spells(row: list[str]) -> None:
    secret, step, door, host, written, code, sequence = row
    made = totp.code_secret(SECRETS[secret], door, host)
    assert made.hex() == written
    assert totp.code(made, int(step), len(code)) == code
    assert totp.spell(code, Service(TCP, 21_000)) == knocks(sequence)


def test_by_hand_a_code_is_written_behind_210_211_and_212() -> None:
    (code, ports) = re.findall(r"Code `(\d{6})` is `([\d ]+)`", PAGE)[0]
    by_hand = [f"{210 + at}{code[2 * at : 2 * at + 2]}" for at in range(3)]
    assert ports.split() == by_hand
    (first,) = {Service.parse(ports.replace("-", "/tcp-").partition("-")[0]) for ports in totp.DEFAULT_CODE_PORTS[6]}
    assert [str(service.port) for service in totp.spell(code, first)] == by_hand


@pytest.mark.parametrize("digits", totp.CODE_DIGITS)
def test_by_default_a_code_is_knocked_on_ports_that_no_totp_door_has(digits: int) -> None:
    services = pool(", ".join(totp.DEFAULT_CODE_PORTS[digits]))
    assert services == totp.code_services(services[0], digits)
    assert not set(services) & set(DEFAULT)


@pytest.mark.parametrize(
    ("time", "code"),
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_codes_are_those_of_rfc_6238_appendix_b(time: int, code: str) -> None:
    assert totp.code(b"12345678901234567890", totp.step_at(time, 30), 8) == code
    assert totp.code(b"12345678901234567890", totp.step_at(time, 30), 6) == code[2:]


# ---- what a sequence is


def test_t21_a_sequence_mixes_protocols_and_avoids_repeats_and_neighbours() -> None:
    for step in range(2_000):
        sequence = totp.sequence_of(SSH, LAPTOP, step)
        assert len(sequence) == 4
        assert {service.proto for service in sequence} == {TCP, UDP}
        ports = sorted(service.port for service in sequence)
        assert all(upper - lower > 1 for lower, upper in itertools.pairwise(ports))


def test_each_member_of_the_pool_is_as_likely_as_any_other() -> None:
    """To within what chance does: 40,000 knocks on 1,000 services are 40 each, and seldom more than 75."""
    met = dict.fromkeys(DEFAULT, 0)
    for step in range(10_000):
        for service in totp.sequence_of(SSH, LAPTOP, step):
            met[service] += 1
    assert min(met.values()) > 12
    assert max(met.values()) < 75


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"door": "vpn"}, id="another door"),
        pytest.param({"host": "gate2.example"}, id="another host"),
        pytest.param({"host": "gate.exampl", "door": "essh"}, id="letters that moved from the host to the door"),
    ],
)
def test_t18_a_sequence_is_of_no_use_elsewhere(other: dict[str, str]) -> None:
    """T18: not at another door or host that shares the secret, either; and an authenticator's secret is neither."""
    names = {"door": "ssh", "host": "gate.example"}
    here = {totp.derive(LAPTOP.secret, step, **names, services=DEFAULT, length=4) for step in range(100)}
    there = {totp.derive(LAPTOP.secret, step, **names | other, services=DEFAULT, length=4) for step in range(100)}
    assert not here & there
    assert totp.code_secret(LAPTOP.secret, **names) != totp.code_secret(LAPTOP.secret, **names | other)


@pytest.mark.parametrize(
    ("ports", "length"),
    [
        ("1-8/tcp", 3),
        ("1-8/tcp", 4),
        ("1-7/tcp, 3-8/udp", 2),
        ("1-7/tcp, 3-8/udp", 4),
        ("1-2/tcp, 5/tcp, 4-5/udp, 9/udp", 3),
        ("1-3/tcp", 3),
        ("1/tcp, 9/udp", 2),
    ],
)
def test_the_strength_is_the_number_of_sequences_there_are(ports: str, length: int) -> None:
    services = pool(ports)
    protocols = {service.proto for service in services}
    there_are = 0
    for sequence in itertools.product(services, repeat=length):
        far = all(abs(one.port - other.port) > 1 for one, other in itertools.combinations(sequence, 2))
        there_are += far and {service.proto for service in sequence} == protocols
    assert totp.count_possible(services, length) == there_are


def test_a_pool_without_any_sequence_ends_in_an_error_and_not_in_a_search_for_ever() -> None:
    with pytest.raises(ValueError, match="too few"):
        totp.derive(LAPTOP.secret, 1, "ssh", "gate", pool("1-3/tcp"), 4)


def test_t21_the_pages_strengths_are_so_and_the_defaults_are_above_2_to_the_30() -> None:
    """T21: more than 2^30 possibilities a step; the page says how many."""
    for text, services, length in (
        ("TOTP, the defaults: 4 knocks on 500 ports, TCP and UDP", DEFAULT, 4),
        ("5 knocks", DEFAULT, 5),
        ("8 knocks", DEFAULT, 8),
        ("4 knocks on `20000-20499/tcp` alone", DEFAULT[:500], 4),
    ):
        possible, bits = totp.strength(TotpDoor("ssh", "gate", services, length))
        assert f"| {text} | {possible:,} | 2^{bits:.1f} |" in PAGE
        assert possible > totp.MIN_POSSIBLE == 2**30
    assert totp.strength(PHONE).possible == 1_000_000


def test_t21_a_weak_pool_is_an_error() -> None:
    """T21: to the last port: 2^30 is where it ends."""
    last = next(ports for ports in range(20, 500) if totp.count_possible(DEFAULT[:ports], 4) >= 2**30)
    totp.check_strength(TotpDoor("ssh", "gate", DEFAULT[:last], 4))
    with pytest.raises(WeakError, match="too few to be safe") as caught:
        totp.check_strength(TotpDoor("ssh", "gate", DEFAULT[: last - 1], 4))
    assert "more knocks" in caught.value.hint
    totp.check_strength(PHONE)  # its space is stated, and its limits are stricter


def test_a_step_is_accepted_for_so_many_steps_before_and_after_it() -> None:
    assert totp.window(10, 30, 1) == (270, 360)
    assert totp.window(10, 30, 0) == (300, 330)
    assert [totp.step_at(time, 30) for time in (299.999, 300.0, 329.999)] == [9, 10, 10]


# ---- secrets


@given(st.binary(min_size=totp.MIN_SECRET, max_size=totp.MAX_SECRET).filter(lambda secret: len(set(secret)) > 1))
def test_a_secret_reads_back_as_written_however_it_is_typed(secret: bytes) -> None:
    text = totp.format_secret(secret)
    assert "=" not in text
    groups = " ".join(text[at : at + 4].lower() for at in range(0, len(text), 4))
    for typed in (text, text.lower(), groups, groups.replace(" ", "-"), text + "=" * (-len(text) % 8)):
        assert totp.parse_secret(typed) == secret


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "too short: 0 bytes"),
        ("ABC", "too short: 1 byte, and"),
        ("AAAQEAYEAUDAOCAJ", "too short: 10 bytes"),
        ("AAAQEAYEAUDAOCAJBIFQYDI", "too short: 14 bytes"),
        ("A" * 104, "too long: 65 bytes"),
        ("AAAQEAYEAUDAOCAJBIFQYDIOB1", "no base32: letters A to Z and digits 2 to 7"),
        ("AAAQEAYEAUDAOCAJBIFQYDIOB\u0661", "no base32"),
        ("AAAQEAYEAUDAOCAJBIFQYDIOB4=A", "no base32"),
        ("AAAQEAYEAUDAOCAJBIFQYDIOB", "too short: 15 bytes"),
        ("AAAQEAYEAUDAOCAJBIFQYDIOB4A", "no base32: 27 letters make no whole bytes, so some are missing"),
        ("AAAQEAYEAUDAOCAJBIFQYDIOB4AAAA", "no base32: 30 letters make no whole bytes"),
        ("\u017fAAQEAYEAUDAOCAJBIFQYDIOB4", "no base32: letters A to Z"),
        ("A" * 52, "all of its bytes are the same"),
        ("QCAIBAEAQCAIBAEAQCAIBAEAQA", "all of its bytes are the same"),
        ("AAAQEAYEAUDAOCAJBIFQYDIOB7", "last letter has bits too many"),
    ],
)
def test_what_is_no_secret_is_told_without_it(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong) as caught:
        totp.parse_secret(text)
    assert len(text) < 12 or text[:12] not in str(caught.value)


def test_no_repr_shows_a_secret() -> None:
    shown = repr(SSH) + repr(LAPTOP) + repr((SSH.clients, {LAPTOP: 1}))
    assert repr(LAPTOP.secret)[2:-1] not in shown
    assert LAPTOP.secret.hex() not in shown
    assert len(repr(SSH)) < 200


def test_an_authenticators_uri_holds_its_own_secret_and_not_the_clients() -> None:
    uri = urllib.parse.urlsplit(totp.otpauth(PHONE, LAPTOP))
    query = dict(urllib.parse.parse_qsl(uri.query))
    assert (uri.scheme, uri.netloc, uri.path) == ("otpauth", "totp", "/gate.example:laptop@phone")
    assert totp.parse_secret(query["secret"]) == totp.code_secret(LAPTOP.secret, "phone", "gate.example")
    assert (query["algorithm"], query["digits"], query["period"]) == ("SHA1", "6", "30")
    assert query["issuer"] == "gate.example"


def test_another_doors_uri_holds_all_that_a_client_has_to_know() -> None:
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(totp.otpauth(SSH, LAPTOP)).query))
    services = pool(query["ports"].replace(",", ", "))
    secret, length = totp.parse_secret(query["secret"]), int(query["length"])
    there = totp.derive(secret, 7, query["door"], query["host"], services, length)
    assert there == totp.sequence_of(SSH, LAPTOP, 7)


def test_ranges_are_written_as_the_configuration_has_them() -> None:
    assert totp.ranges(DEFAULT) == list(totp.DEFAULT_PORTS)
    assert totp.ranges(pool("5/tcp, 7-8/udp")) == ["5/tcp", "7-8/udp"]


@pytest.mark.parametrize(("first", "digits"), [("20001/tcp", 6), ("20000/udp", 6), ("65300/tcp", 6)])
def test_what_are_no_ports_for_codes(first: str, digits: int) -> None:
    with pytest.raises(ValueError, match="multiple of 100"):
        totp.code_services(Service.parse(first), digits)
