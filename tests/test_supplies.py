"""When knocks that depend on the time are sent, and what a packet asks for. What is sent is in e2e/test_supplies.py."""

import os
import pwd
import socket
import time

import pytest

from logknock import clock, spa, supplies, totp
from logknock.client import Address, Knock
from logknock.config_values import PortRange
from logknock.knock import Service
from logknock.packet import TCP, UDP
from logknock.profile_proofs import Asked
from logknock.supplies import Sealed, Stepped, seal

HOST = Address(socket.AF_INET, "127.0.0.1")
POOL = tuple(Service(TCP, port) for port in range(20000, 21000))
CLIENT = totp.Client("this client", b"0123456789abcdef")
DOOR = totp.TotpDoor("ssh", "gate.example", POOL, step=30, clients=(CLIENT,))
KEYS = (b"0123456789abcdef", b"another 0123456789")
# The letters of a payload that depend on the salt alone.
SALT = slice(1, 11)

ASKED = Asked(*KEYS, "sha256", (Service(TCP, 22), Service(UDP, 53)), PortRange(UDP, 62201, 62201))


def stepped(told: list[str], door: totp.TotpDoor = DOOR) -> Stepped:
    return Stepped(door, HOST, told.append)


# ---- steps of time


@pytest.mark.parametrize(
    ("into", "pause"),
    [
        pytest.param(0.0, 0.0, id="at_its_beginning"),
        pytest.param(28.9, 0.0, id="while_there_is_time"),
        pytest.param(29.5, 0.6, id="but_not_just_before_it_ends"),
    ],
)
def test_a_step_is_begun_unless_it_is_about_to_end(into: float, pause: float) -> None:
    """A second at most is waited, whatever the step: the host's skew is not known here."""
    told: list[str] = []
    assert stepped(told).pause(30 * 59_000_000 + into) == pytest.approx(pause)
    assert told == []


def test_the_knocks_are_those_of_the_step_now() -> None:
    told: list[str] = []
    supply = stepped(told)
    while time.time() % 30 > 22:
        time.sleep(0.1)
    knocks = supply.take()
    assert knocks == tuple(map(Knock, totp.sequence_of(DOOR, CLIENT, totp.step_at(time.time(), 30))))
    assert supply.take() == knocks, "a lost knock was not used up"


def test_from_the_third_try_on_a_later_step_than_any_before_is_waited_for() -> None:
    told: list[str] = []
    supply = stepped(told)
    while time.time() % 30 > 22:
        time.sleep(0.1)
    supply.take()
    supply.take()
    sent = totp.step_at(time.time(), 30) * 30
    assert supply.pause(sent + 12.0) == pytest.approx(18.1)
    assert told == ["127.0.0.1 does not answer: 18 s to wait for the next step"]
    assert supply.pause(sent + 30.0) == 0
    assert supply.pause(sent + 59.5) == pytest.approx(0.6), "nor is that one begun just before it ends"


def test_t19_a_clock_that_steps_back_an_hour_makes_nobody_wait_for_an_hour() -> None:
    supply = stepped([])
    supply.take()
    supply.take()
    assert supply.pause(time.time() - 3600) <= 30.1


def test_what_is_said_where_nothing_answers_names_the_clock() -> None:
    hint = stepped([]).hint
    for words in ("a step is 30 s", "`timedatectl`", "`logknock explain ADDRESS`", "gate.example"):
        assert words in hint


def test_the_name_in_the_derivation_is_that_of_the_host_knocked_at_unless_the_profile_has_another() -> None:
    nameless = totp.TotpDoor("ssh", "", POOL, clients=(CLIENT,))
    for door, host, name in ((nameless, "Web.example", "web.example"), (DOOR, "web.example", "gate.example")):
        with supplies.stepped(door, host, HOST, lambda text: None) as supply:
            assert name in supply.hint


def test_a_code_is_knocked_as_the_authenticator_shows_it() -> None:
    pool = tuple(Service(TCP, 20000 + at) for at in range(300))
    door = totp.TotpDoor("phone", "gate.example", pool, digits=6, clients=(CLIENT,))
    while time.time() % 30 > 22:
        time.sleep(0.1)
    shown = totp.code(totp.code_secret(CLIENT.secret, "phone", "gate.example"), totp.step_at(time.time(), 30), 6)
    ports = [knock.service.port - 20000 for knock in stepped([], door).take()]
    assert ports == [int(shown[:2]), 100 + int(shown[2:4]), 200 + int(shown[4:])]


def test_a_warning_comes_only_where_the_kernel_says_that_the_clock_is_not_kept_right() -> None:
    expected = clock.is_synchronised() is False
    assert bool(supplies.clock_warning()) == expected
    assert not expected or "timedatectl" in supplies.clock_warning()


# ---- encrypted packets


def opened(payload: bytes, asked: Asked = ASKED) -> spa.Message:
    key = spa.Key("vpn", "laptop", asked.key, asked.hmac_key, asked.digest, asked.access)
    found = spa.unwrap(payload, [key])
    assert isinstance(found, spa.Opened)
    return found.message


@pytest.mark.parametrize("digest", list(spa.DIGESTS))
def test_a_packet_says_what_the_profile_asks_for_with_every_digest(digest: str) -> None:
    asked = Asked(*KEYS, digest, ASKED.access, ASKED.ports, timeout=60, user="anna")
    message = opened(seal(asked, socket.inet_aton("192.0.2.7"), 1_700_000_000), asked)
    assert message.text == "192.0.2.7,tcp/22,udp/53"
    assert (message.kind, message.timeout, message.user) == (spa.Kind.ACCESS_TIMEOUT, 60, "anna")
    assert message.timestamp == 1_700_000_000
    assert message.version == "3.0.0"


def test_t18_no_two_packets_are_alike() -> None:
    payloads = [seal(ASKED, spa.ANY_SOURCE, 1_700_000_000) for _ in range(64)]
    assert len({payload[SALT] for payload in payloads}) == 64
    assert len({opened(payload).rand for payload in payloads}) == 64
    assert all(opened(payload).kind is spa.Kind.ACCESS for payload in payloads)


def test_who_runs_the_program_is_the_user_where_none_is_named() -> None:
    assert opened(seal(ASKED, spa.ANY_SOURCE, 0)).user == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        pytest.param("anna", "anna", id="as_it_is"),
        pytest.param("EXAMPLE\\anna+x", "EXAMPLEannax", id="without_what_the_stock_client_refuses"),
        pytest.param("änna", "nna", id="ascii_alone"),
        pytest.param("a" * 100, "a" * 48, id="as_much_as_there_is_room_for"),
        pytest.param("::", "", id="nothing"),
    ],
)
def test_a_login_name_is_made_to_fit(name: str, fit: str) -> None:
    assert spa.fit_user(name) == fit


def test_of_a_range_a_port_is_drawn_for_each_packet() -> None:
    supply = Sealed(Asked(*KEYS, "sha256", ASKED.access, PortRange(UDP, 10000, 65535)), HOST)
    ports = {supply.take()[0].service.port for _ in range(40)}
    assert len(ports) > 30
    assert min(ports) >= 10000


@pytest.mark.parametrize(
    ("address", "said"),
    [
        pytest.param(None, "127.0.0.1", id="its_own"),
        pytest.param(spa.ANY_SOURCE, "0.0.0.0", id="whatever_the_packet_comes_from"),
        pytest.param(b"\x20\1\x0d\xb8" + bytes(11) + b"\7", "2001:db8::7", id="one_of_the_other_family"),
    ],
)
def test_which_address_a_packet_asks_for(address: bytes | None, said: str) -> None:
    asked = Asked(*KEYS, "sha256", ASKED.access, ASKED.ports, address=address)
    supply = Sealed(asked, HOST)
    assert opened(supply.take()[0].payload).text == f"{said},tcp/22,udp/53"
    assert ("spa.address" in supply.hint) == (address is None)
