"""What client.toml means, what is said of one that is wrong, and how the position in a one-time file is kept.

Positions are on the real disk, below the test's own XDG_STATE_HOME. What is sent is in e2e/test_client.py.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock import positions, totp
from logknock.client import DELAY, Knock
from logknock.config_values import PortRange
from logknock.errors import BAD_CONFIG, NO_PERMISSION, USAGE, LogknockError
from logknock.knock import Service
from logknock.packet import ICMP, TCP, UDP
from logknock.profile_proofs import Asked
from logknock.profiles import Profile, default_file, load
from logknock.runs import TRIES
from logknock.toml_files import ConfigError

from .config_files import write
from .e2e.world import until

SEQUENCE = 'sequence = ["7000/tcp", "8000/udp"]\n'
HOME = f'[profiles.home]\nhost = "host.example"\n{SEQUENCE}'

POOL = tuple(Service(proto, port) for proto in (TCP, UDP) for port in range(20000, 20500))

# 16 bytes; and two keys, the second in base64.
IN_BASE32 = "GEZDGNBVGY3TQOJQGEZDGNBVGY"
KEYS = 'key = "a passphrase of 24 b.", hmac_key_base64 = "YW5vdGhlciBvbmUgb2YgMjIu"'


def client_toml(folder: Path, text: str | bytes) -> Path:
    return write(folder, text, "client.toml")


# ---- profiles


def test_the_least_profile_has_the_defaults_of_the_command_line(tmp_path: Path) -> None:
    found = load(client_toml(tmp_path, HOME)).get("home")
    assert found == Profile("home", ("host.example",), (Knock(Service(TCP, 7000)), Knock(Service(UDP, 8000))))
    assert (found.delay, found.family, found.verify, found.tries) == (DELAY, socket.AF_UNSPEC, None, TRIES)


def test_every_key_of_a_profile(tmp_path: Path) -> None:
    text = """
[profiles.office]
host = ["one.example", "2001:db8::1"]
sequence = ["7000", "2s", "8000:udp", "9000/TCP"]
delay = "200ms"
family = "ipv6"
verify = "22/tcp"
tries = 5

[profiles.vault]
onetime = "vault.onetime"
"""
    profiles = load(client_toml(tmp_path, text))
    assert profiles.get("office") == Profile(
        "office",
        ("one.example", "2001:db8::1"),
        (Knock(Service(TCP, 7000)), Knock(Service(UDP, 8000), 2.0), Knock(Service(TCP, 9000))),
        delay=0.2,
        family=socket.AF_INET6,
        verify=Service(TCP, 22),
        tries=5,
    )
    assert profiles.get("vault") == Profile("vault", onetime=tmp_path / "vault.onetime")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        pytest.param("codes", "{folder}/codes", id="a_relative_path_is_from_the_files_directory"),
        pytest.param("../codes", "{folder}/../codes", id="and_may_leave_it"),
        pytest.param("/etc/codes", "/etc/codes", id="an_absolute_path_is_itself"),
        pytest.param("~/codes", "/home/me/codes", id="a_tilde_is_the_home_directory"),
    ],
)
def test_where_a_onetime_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, meant: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = load(client_toml(tmp_path, f'profiles.home = {{onetime = "{written}"}}')).get("home")
    assert str(found.onetime) == meant.format(folder=tmp_path)


# Claim: (the keys of [profiles.home], what is wrong on which line, the hint).
WRONG = {
    "no_knocks": ('host = "a"', "1: profiles.home.sequence: is missing", 'or onetime = "FILE"'),
    "both_kinds": (
        SEQUENCE + 'onetime = "a"',
        "3: profiles.home.onetime: a profile knocks in one way, and this one has sequence and onetime",
        "leave one out",
    ),
    "all_kinds": (
        f'{SEQUENCE}totp = {{secret = "{IN_BASE32}", door = "ssh"}}\nspa = {{{KEYS}, access = ["22/tcp"]}}',
        "4: profiles.home.spa: a profile knocks in one way, and this one has sequence and totp and spa",
        "leave one out",
    ),
    "no_knock": ("sequence = []", "2: profiles.home.sequence: has no knock", "on the host"),
    "a_bad_port": ('sequence = ["70000"]', "2: profiles.home.sequence: 70000 is no port (1-65535)", "7000/tcp"),
    "a_number": ("sequence = [7000]", "2: profiles.home.sequence: 7000 is not in quotes", '"7000/tcp"'),
    "a_text": ('sequence = "7000"', "2: profiles.home.sequence: must be a list, not text", '["7000"]'),
    "a_pause_first": ('sequence = ["2s", "7000"]', "sequence: a pause stands between two services", "leave it out"),
    "a_pause_too_long": ('sequence = ["1", "61s", "2"]', "sequence: '61s': a pause is 60s at most", "2s or 500ms"),
    "too_many": (f"sequence = {['7000'] * 33}", "sequence: has 33 knocks, and 32 are the most", "no door has"),
    "an_empty_host": (f'host = ""\n{SEQUENCE}', "2: profiles.home.host: '' is no host", "a name or an address"),
    "two_in_one_text": (f'host = "a,b"\n{SEQUENCE}', "'a,b' is no host", '["one", "two"]'),
    "a_host_twice": (f'host = ["a", "a"]\n{SEQUENCE}', "host: a is named twice", "leave one out"),
    "no_host_in_a_list": (f"host = []\n{SEQUENCE}", "host: names no host", "logknock proxy"),
    "a_number_as_host": (f"host = 7\n{SEQUENCE}", "host: must be text, not a whole number", "host.example"),
    "onetime_for_two": ('host = ["a", "b"]\nonetime = "c"', "host: one file of one-time", "a profile for each host"),
    "onetime_empty": ('onetime = ""', "onetime: '' is no path", "from the directory of this file"),
    "onetime_of_nobody": ('onetime = "~nobody-at-all/x"', "there is no such home directory", "from /"),
    "a_delay_without_unit": (f"{SEQUENCE}delay = 200", "3: profiles.home.delay: 200 has no unit", '"200ms"'),
    "a_delay_too_long": (f'{SEQUENCE}delay = "2m"', "delay: 2m is out of range (0s-60s)", "0s to 60s"),
    "no_family": (f'{SEQUENCE}family = "inet"', "family: 'inet' is no family of addresses", '"ipv4" or "ipv6"'),
    "verify_udp": (f'{SEQUENCE}verify = "53/udp"', "verify: 53/udp cannot be verified", '"22/tcp"'),
    "verify_a_port": (f"{SEQUENCE}verify = 22", "verify: 22 has no protocol", '"22/tcp"'),
    "no_try": (f"{SEQUENCE}tries = 0", "tries: 0 is out of range (1-10)", "1 to 10"),
    "too_many_tries": (f"{SEQUENCE}tries = 11", "tries: 11 is out of range (1-10)", "1 to 10"),
    "an_unknown_key": (f'{SEQUENCE}hots = "a"', "3: profiles.home.hots: unknown key", "did you mean host?"),
}


@pytest.mark.parametrize(("keys", "message", "hint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_with_line_key_and_hint(tmp_path: Path, keys: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(client_toml(tmp_path, f"[profiles.home]\n{keys}\n"))
    (problem,) = raised.value.problems
    assert message in str(problem)
    assert hint in problem.hint
    assert raised.value.exit_code == BAD_CONFIG


def test_a_profile_with_a_secret_has_the_hosts_defaults(tmp_path: Path) -> None:
    text = f'profiles.home = {{totp = {{secret = "{IN_BASE32}", door = "ssh"}}}}'
    found = load(client_toml(tmp_path, text)).get("home").totp
    assert found is not None
    assert found == totp.TotpDoor(
        "ssh", "", POOL, length=4, step=30, digits=0, clients=(totp.Client("this client", b"1234567890123456"),)
    )


def test_every_key_of_a_profile_with_a_secret(tmp_path: Path) -> None:
    """The order of the ports is the one that is written: the derivation depends on it."""
    text = f"""
[profiles.gate]
totp = {{secret = "gezd gnbv-gy3t qojq-gezd gnbv-gy", door = "ssh", host = "Gate.example", length = 6, step = "1m",
  ports = ["30000-31999/udp", "9000-9999/tcp"]}}
[profiles.phone.totp]
secret = "{IN_BASE32}"
door = "phone"
code = 8
ports = ["30000-30399/tcp"]
"""
    text = text.replace(",\n  ports", ", ports")
    profiles = load(client_toml(tmp_path, text))
    gate, phone = profiles.get("gate").totp, profiles.get("phone").totp
    assert gate is not None
    assert (gate.door, gate.host, gate.length, gate.step, gate.digits) == ("ssh", "gate.example", 6, 60, 0)
    assert gate.clients[0].secret == b"1234567890123456"
    assert (gate.services[0], gate.services[2000], len(gate.services)) == (
        Service(UDP, 30000),
        Service(TCP, 9000),
        3000,
    )
    assert phone is not None
    assert (phone.digits, phone.step, phone.knocks) == (8, 30, 4)
    assert (phone.services[0], phone.services[-1]) == (Service(TCP, 30000), Service(TCP, 30399))


def test_a_profile_with_keys_has_the_defaults_of_the_stock_client(tmp_path: Path) -> None:
    text = f'profiles.vpn = {{spa = {{{KEYS}, access = ["22/tcp"]}}}}'
    found = load(client_toml(tmp_path, text)).get("vpn").spa
    assert found is not None
    assert (found.key, found.hmac_key) == (b"a passphrase of 24 b.", b"another one of 22.")
    assert found == Asked(found.key, found.hmac_key, "sha256", (Service(TCP, 22),), PortRange(UDP, 62201, 62201))
    assert (found.timeout, found.address, found.user) == (0, None, "")


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        pytest.param('port = "62201/tcp"', "ports", PortRange(TCP, 62201, 62201), id="over_tcp"),
        pytest.param('port = "10000-65535/udp"', "ports", PortRange(UDP, 10000, 65535), id="a_range"),
        pytest.param('port = "icmp"', "ports", PortRange(ICMP, 0, 0), id="over_icmp"),
        pytest.param('hmac = "sha3_512"', "digest", "sha3_512", id="another_digest"),
        pytest.param('timeout = "1m30s"', "timeout", 90, id="a_timeout"),
        pytest.param('address = "source"', "address", bytes(4), id="whatever_the_packet_comes_from"),
        pytest.param('address = "own"', "address", None, id="what_this_machine_sends_from"),
        pytest.param('address = "192.0.2.7"', "address", b"\xc0\0\2\7", id="an_address"),
        pytest.param('address = "2001:db8::7"', "address", b"\x20\1\x0d\xb8" + bytes(11) + b"\7", id="of_ipv6"),
        pytest.param('user = "anna"', "user", "anna", id="a_user"),
    ],
)
def test_every_key_of_a_profile_with_keys(tmp_path: Path, written: str, key: str, value: object) -> None:
    text = f'profiles.vpn = {{spa = {{{KEYS}, access = ["22/tcp"], {written}}}}}'
    assert getattr(load(client_toml(tmp_path, text)).get("vpn").spa, key) == value


# Claim: (keys of `totp`, what is wrong, the hint). Those that are not named are right.
WRONG_SECRETS = {
    "no_secret": ('door = "ssh"', "totp.secret: is missing", "as `logknock enroll`"),
    "no_door": (f'secret = "{IN_BASE32}"', "totp.door: is missing", "as `logknock enroll`"),
    "a_short_secret": ('secret = "GEZDGNBVGY3TQOJQ", door = "ssh"', "secret: the secret is too short: 10 bytes", ""),
    "no_base32": ('secret = "GEZDGNBVGY3TQOJQGEZDGNBVG1", door = "ssh"', "secret: the secret is no base32", ""),
    "a_letter_too_few": ('secret = "GEZDGNBVGY3TQOJQGEZDGNBVG", door = "ssh"', "secret: the secret is too short", ""),
    "a_number": ('secret = 2345672345672345672345, door = "ssh"', "totp.secret: must be text", "in quotes"),
    "a_door_that_is_none": (
        f'secret = "{IN_BASE32}", door = "{IN_BASE32}A/"',
        "totp.door: is no name of a door",
        "[doors.",
    ),
    "no_host": (f'secret = "{IN_BASE32}", door = "ssh", host = ""', "totp.host: '' is no host name", "up to 253"),
    "too_few_ports": (
        f'secret = "{IN_BASE32}", door = "ssh", ports = ["1000-1100/tcp"]',
        "too few to be safe",
        "use more",
    ),
    "no_ports": (f'secret = "{IN_BASE32}", door = "ssh", ports = []', "ports: has no port", "or leave it out"),
    "ports_twice": (
        f'secret = "{IN_BASE32}", door = "ssh", ports = ["1000-1999/tcp", "1500-2500/tcp"]',
        "ports: has a port twice",
        "as `logknock enroll`",
    ),
    "too_long": (f'secret = "{IN_BASE32}", door = "ssh", length = 9', "length: 9 is out of range (4-8)", "4 to 8"),
    "half_seconds": (
        f'secret = "{IN_BASE32}", door = "ssh", step = "10s500ms"',
        "step: a step is whole seconds",
        '"30s"',
    ),
    "a_long_step": (f'secret = "{IN_BASE32}", door = "ssh", step = "6m"', "step: 6m is out of range (10s-5m)", ""),
    "seven_digits": (f'secret = "{IN_BASE32}", door = "ssh", code = 7', "code: a code has 6 or 8 digits", ""),
    "a_code_with_a_length": (
        f'secret = "{IN_BASE32}", door = "ssh", code = 6, length = 4',
        "length: does not apply",
        "",
    ),
    "a_code_with_a_step": (
        f'secret = "{IN_BASE32}", door = "ssh", code = 6, step = "1m"',
        "step: with a code",
        "leave",
    ),
    "a_code_elsewhere": (
        f'secret = "{IN_BASE32}", door = "ssh", code = 6, ports = ["20050-20349/tcp"]',
        "ports: a code of 6 digits is spelled on one range of 300 TCP ports from a multiple of 100",
        '["21000-21299/tcp"]',
    ),
    "a_code_of_ports_too_few": (
        f'secret = "{IN_BASE32}", door = "ssh", code = 8, ports = ["20000-20299/tcp"]',
        "ports: a code of 8 digits is spelled on one range of 400 TCP ports",
        '["21000-21399/tcp"]',
    ),
    "an_unknown_key": (f'secret = "{IN_BASE32}", door = "ssh", skew = 1', "totp.skew: unknown key", "step"),
}
# The same for `spa`.
WRONG_KEYS = {
    "no_keys": ('access = ["22/tcp"], hmac_key = "a passphrase of 24 b."', "key_base64: is missing", "logknock keygen"),
    "no_hmac_key": (
        'access = ["22/tcp"], key = "a passphrase of 24 b."',
        "hmac_key_base64: is missing",
        "as `logknock keygen`",
    ),
    "both_spellings": (
        f'{KEYS}, key_base64 = "YSBwYXNzcGhyYXNlIG9mIDI0IGIu", access = ["22/tcp"]',
        "key and key_base64",
        "",
    ),
    "a_short_key": (
        'key = "tiny-one", hmac_key_base64 = "YW5vdGhlciBvbmUgb2YgMjIu", access = ["22/tcp"]',
        "key: is too short: 8 bytes",
        "good",
    ),
    "no_base64": (
        'key_base64 = "YW5vdGhlciBvbmUgb2YgMjI!", hmac_key = "another one that is long", access = ["22/tcp"]',
        "key_base64: character 24 is none of base64's",
        "logknock keygen",
    ),
    "an_equal_pair": (
        'key = "another one of 22.", hmac_key_base64 = "YW5vdGhlciBvbmUgb2YgMjIu", access = ["22/tcp"]',
        "spa: key and hmac_key are the same",
        "two that differ",
    ),
    "no_access": (KEYS, "access: is missing: which services are to be opened?", '["22/tcp"]'),
    "empty_access": (f"{KEYS}, access = []", "access: names no service", '["22/tcp"]'),
    "too_much_access": (
        f"{KEYS}, access = {[f'{port}/tcp' for port in range(50000, 50016)]}".replace("'", '"'),
        "access: has 16 services, and a packet has not room for them",
        "name fewer",
    ),
    "no_port": (f'{KEYS}, access = ["22/tcp"], port = "62201"', "port: '62201' has no protocol", '"5353/udp"'),
    "no_digest": (f'{KEYS}, access = ["22/tcp"], hmac = "a passphrase"', "hmac: is none that there is", "md5, sha1"),
    "half_seconds": (f'{KEYS}, access = ["22/tcp"], timeout = "1s500ms"', "timeout: a packet asks for whole", '"60s"'),
    "no_address": (f'{KEYS}, access = ["22/tcp"], address = "gate"', "address: 'gate' is no IP address", '"source"'),
    "no_user": (f'{KEYS}, access = ["22/tcp"], user = "a:b"', "user: is no user name that a packet can hold", "login"),
    "a_user_too_long": (f'{KEYS}, access = ["22/tcp"], user = "{49 * "a"}"', "user: is no user name", "48 letters"),
    "an_unknown_key": (f'{KEYS}, access = ["22/tcp"], ports = "icmp"', "spa.ports: unknown key", "did you mean port?"),
}


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [pytest.param(f"totp = {{{keys}}}", *rest, id=f"totp_{name}") for name, (keys, *rest) in WRONG_SECRETS.items()]
    + [pytest.param(f"spa = {{{keys}}}", *rest, id=f"spa_{name}") for name, (keys, *rest) in WRONG_KEYS.items()]
    + [
        pytest.param("totp = 3", "profiles.home.totp: must be a table", "", id="totp_a_number"),
        pytest.param('spa = "key"', "profiles.home.spa: must be a table", "", id="spa_a_text"),
    ],
)
def test_what_is_wrong_with_a_secret_is_one_line_that_does_not_show_it(
    tmp_path: Path, keys: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(client_toml(tmp_path, f"[profiles.home]\n{keys}\n"))
    (problem,) = raised.value.problems
    assert message in str(problem)
    assert hint in problem.hint
    assert problem.line == 2
    said = "\n".join(raised.value.report())
    for secret in re.findall(r'(?:secret|key|hmac_key|key_base64|hmac_key_base64) = "([^"]+)"', keys):
        assert secret not in said
        assert secret[:8] not in said


def test_no_repr_of_a_profile_shows_a_secret(tmp_path: Path) -> None:
    text = f"""
[profiles.gate]
totp = {{secret = "{IN_BASE32}", door = "ssh"}}
[profiles.vpn]
spa = {{{KEYS}, access = ["22/tcp"]}}
"""
    shown = repr(load(client_toml(tmp_path, text)))
    for secret in (IN_BASE32, "1234567890123456", "a passphrase", "another one"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(f"[profiles.2home]\n{SEQUENCE}", "profiles.2home: this is no name for a profile", id="a_digit"),
        pytest.param(f'[profiles."a b"]\n{SEQUENCE}', 'profiles."a b": this is no name', id="a_blank"),
        pytest.param("", "profiles: there is no profile", id="an_empty_file"),
        pytest.param("profiles = 3", "profiles: must be a table", id="a_number_of_profiles"),
        pytest.param("profiles.home = 3", "profiles.home: must be a table", id="a_number_as_profile"),
        pytest.param(f"[profile.home]\n{SEQUENCE}", "profile: unknown key", id="a_misspelt_table"),
        pytest.param("[profiles.home\n", "client.toml:1: ", id="no_toml"),
        pytest.param(b"\xff", "is not UTF-8", id="no_text"),
        pytest.param(b"#" * (1 << 20) + b"#", "is larger than 1 MiB", id="too_large"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(client_toml(tmp_path, text))
    assert message in raised.value.message


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    text = '[profiles.a]\nsequence = ["0", "x"]\ndelay = "x"\n[profiles.b]\nhost = ""\n'
    with pytest.raises(ConfigError) as raised:
        load(client_toml(tmp_path, text))
    assert [problem.line for problem in raised.value.problems] == [2, 2, 3, 4, 5]


def test_the_file_holds_secrets_and_is_refused_where_others_read_or_write_it(tmp_path: Path) -> None:
    path = client_toml(tmp_path, HOME)
    for mode, words in ((0o644, "read by others"), (0o660, "written by its group"), (0o602, "written by others")):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=words):
            load(path)
    path.chmod(0o600)
    os.chown(path, 4242, -1)
    with pytest.raises(ConfigError, match=r"belongs to another user \(uid 4242\)"):
        load(path)


def test_a_file_that_is_not_there_shows_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "client.toml")
    assert raised.value.message == f"{tmp_path}/client.toml: does not exist"
    assert "--profiles FILE" in raised.value.hint
    minimal = raised.value.hint.partition("a minimal one: ")[2]
    assert load(client_toml(tmp_path, minimal)).get("home").hosts == ("host.example",)
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)


def test_a_profile_that_is_not_there_is_a_usage_error_that_names_those_that_are(tmp_path: Path) -> None:
    profiles = load(client_toml(tmp_path, HOME))
    for name, hint in (("hone", "did you mean home?"), ("xyz", "the profiles are: home")):
        with pytest.raises(LogknockError) as raised:
            profiles.get(name)
        assert raised.value.message == f"{tmp_path}/client.toml: there is no profile {name!r}"
        assert (raised.value.hint, raised.value.exit_code) == (hint, USAGE)


@pytest.mark.parametrize(
    ("config_home", "file"),
    [
        ("/cfg", "/cfg/logknock/client.toml"),
        ("", "/h/.config/logknock/client.toml"),
        ("rel", "/h/.config/logknock/client.toml"),
    ],
)
def test_where_profiles_are_looked_for(monkeypatch: pytest.MonkeyPatch, config_home: str, file: str) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("XDG_CONFIG_HOME", config_home)
    assert str(default_file()) == file


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_profiles_or_a_config_error(text: str) -> None:
    path = Path(f"/dev/shm/logknock-{os.getpid()}-{threading.get_native_id()}.toml")  # noqa: S108  # of this process
    try:
        path.write_text(text, errors="replace")
        path.chmod(0o600)
        load(path)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right
    finally:
        path.unlink()


# ---- positions

LINES = ["# a comment", " 1000,2000", "", " 3000:udp,4000", " 5000,6000"]
FIRST, SECOND, THIRD = "1000/tcp,2000/tcp", "3000/udp,4000/tcp", "5000/tcp,6000/tcp"


@pytest.fixture
def codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return write(tmp_path, "\n".join(LINES) + "\n", "codes")


def kept(codes: Path) -> Path:
    """The one file that remembers a position."""
    (found,) = (codes.parent / "state" / "logknock").glob("*.json")
    return found


def taken(codes: Path, *, answers: str = "", warned: list[str] | None = None, **how: bool) -> str:
    """What one run sends; one that waits for an answer tries until `answers` is sent, three times at most."""
    sent: list[str] = []
    with positions.use(codes, ([] if warned is None else warned).append, **how) as position:
        for _ in range(3 if how.get("verify") else 1):
            sent.append(",".join(str(knock.service) for knock in position.take()))
            position.sent()
            if sent[-1] == answers:
                position.answered()
                break
    return " ".join(sent)


def test_each_run_sends_the_next_sequence_and_the_position_is_on_the_disk(codes: Path) -> None:
    assert [taken(codes), taken(codes)] == [FIRST, SECOND]
    found = json.loads(kept(codes).read_text())
    assert found == {
        "file": str(codes),
        "line": 4,
        "offset": len("\n".join(LINES[:4]) + "\n"),
        "last": ["3000/udp", "4000/tcp"],
        "unanswered": 0,
    }
    assert kept(codes).stat().st_mode & 0o777 == 0o600
    assert kept(codes).parent.stat().st_mode & 0o777 == 0o700
    assert {path.suffix for path in kept(codes).parent.iterdir()} == {".json", ".lock"}


def test_a_sequence_that_was_sent_in_part_is_sent_again(codes: Path) -> None:
    with positions.use(codes, print) as position:
        position.take()
    assert not list((codes.parent / "state" / "logknock").glob("*.json"))
    assert taken(codes) == FIRST


def test_again_sends_the_last_one_once_more_and_stays_there(codes: Path) -> None:
    with pytest.raises(LogknockError, match="no sequence has been used yet"):
        taken(codes, again=True)
    assert [taken(codes), taken(codes, again=True), taken(codes, again=True), taken(codes)] == [FIRST] * 3 + [SECOND]


def test_a_run_that_waits_tries_the_same_sequence_again(codes: Path) -> None:
    assert taken(codes, verify=True) == " ".join([FIRST] * 3)


def test_after_a_run_without_an_answer_the_same_and_the_next_are_tried(codes: Path) -> None:
    """Whether the knock was lost, or the answer: either way the client finds the server where it is."""
    taken(codes, verify=True)
    assert taken(codes, verify=True) == f"{SECOND} {FIRST} {FIRST}"
    assert taken(codes, verify=True, answers=FIRST) == FIRST, "the knocks had been lost"
    assert taken(codes, verify=True) == f"{SECOND} {SECOND} {FIRST}"
    assert taken(codes, verify=True, answers=THIRD) == THIRD, "only the answer had been lost"
    with pytest.raises(LogknockError, match="no sequence is left"):
        taken(codes)


def test_a_knock_that_was_lost_while_the_door_was_open_still_is_found_to_be(codes: Path) -> None:
    """The service answered, and the server never heard of the second sequence."""
    assert taken(codes, verify=True, answers=FIRST) == FIRST
    assert taken(codes, verify=True, answers=SECOND) == SECOND
    assert taken(codes, verify=True, answers=SECOND) == f"{THIRD} {THIRD} {SECOND}"
    assert json.loads(kept(codes).read_text())["last"] == SECOND.split(","), "the position went back with the run"
    assert taken(codes, verify=True, answers=THIRD) == THIRD


def tried(codes: Path, tries: int = 1, hears: Callable[[int], bool] = lambda port: False) -> list[int]:
    """The first port of what one run sends that waits for an answer; it ends when it `hears` one."""
    ports: list[int] = []
    with positions.use(codes, lambda text: None, verify=True) as position:
        for _ in range(tries):
            ports.append(position.take()[0].service.port)
            position.sent()
            if hears(ports[-1]):
                position.answered()
                break
    return ports


def test_runs_of_a_single_try_do_not_stay_with_one_sequence_for_ever(codes: Path) -> None:
    """ssh gives up before the second try, say."""
    codes.write_text("".join(f" {port},1\n" for port in range(1000, 1030)))
    tried(codes, hears=lambda port: True)
    sent = [tried(codes)[0] - 1000 for _ in range(20)]
    assert sent == [1, 1, 0, *(2, 1, 0, 1), *(2, 1, 3, 1, 0, 1), *(2, 1, 3, 1, 4, 1, 0)]


def test_what_is_tried_does_not_go_beyond_the_end_of_the_file(codes: Path) -> None:
    codes.write_text(" 1000,1\n 1001,1\n")
    tried(codes, hears=lambda port: True)
    assert tried(codes, 9) == [1001, 1001, 1000, 1001, 1001, 1000, 1001, 1001, 1001]
    assert tried(codes, hears=lambda port: True) == [1001]


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 3)), max_size=25))
def test_client_and_server_find_each_other_again_whatever_was_lost_before(past: list[tuple[bool, bool, int]]) -> None:
    """However many tries were in vain, each of which the server may have heard; its door is shut at each new one."""
    with TemporaryDirectory(dir="/dev/shm") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", f"{folder}/state")
        codes = write(Path(folder), "".join(f" {port},1\n" for port in range(1000, 1200)), "codes")
        server = 1000

        def hears(port: int, knocks: bool = True, answers: bool = True) -> bool:
            nonlocal server
            heard = knocks and port == server
            server += heard
            return heard and answers

        for knocks, answers, tries in past:
            tried(codes, tries, partial(hears, knocks=knocks, answers=answers))
        lost = sum(tries for _, _, tries in past)
        waits = server
        found = tried(codes, 10 + 2 * lost, hears)
        assert found[-1] == waits
        if not any(knocks for knocks, _, _ in past):
            assert len(found) <= 2, "after an outage, however long, it is where it was"
        assert tried(codes, 1, hears) == [waits + 1]


def test_a_run_that_does_not_wait_goes_on_whatever_was_answered(codes: Path) -> None:
    taken(codes, verify=True)
    assert taken(codes) == SECOND


def test_an_exhausted_file_is_said_and_few_are_warned_of(codes: Path) -> None:
    warned: list[str] = []
    for _ in range(3):
        taken(codes, warned=warned)
    assert warned == [
        f"{codes}: 2 sequences are left after this",
        f"{codes}: 1 sequence is left after this",
        f"{codes}: no sequences are left after this",
    ]
    for _ in range(2):
        with pytest.raises(LogknockError) as raised:
            taken(codes)
        assert raised.value.message == f"{codes}: no sequence is left"
    with codes.open("a") as file:
        file.write(" 7000,8000\n")
    assert taken(codes) == "7000/tcp,8000/tcp", "what is added counts"


def test_ten_left_are_not_few(codes: Path) -> None:
    codes.write_text("".join(f" {port},1\n" for port in range(1000, 1011)))
    warned: list[str] = []
    taken(codes, warned=warned)
    assert warned == []


def test_malformed_lines_are_passed_over_and_said(codes: Path) -> None:
    codes.write_text(" abc\n 1000,\n 5000,6000\n" + " 7000,1\n" * 10)
    warned: list[str] = []
    assert taken(codes, warned=warned) == THIRD
    assert [line.partition(": ")[2].partition(":")[0] for line in warned] == ["line 1", "line 2"]


def test_an_edited_file_is_searched_for_the_last_sequence(codes: Path) -> None:
    taken(codes)
    taken(codes)
    codes.write_text("\n".join(LINES[3:]) + "\n")
    warned: list[str] = []
    assert taken(codes, warned=warned) == THIRD
    assert warned[0] == f"{codes} was edited: the sequence used last is on line 1 now"


def test_a_new_file_in_the_old_ones_place_is_refused_until_the_position_is_removed(codes: Path) -> None:
    taken(codes)
    codes.write_text(" 7000,8000\n")
    with pytest.raises(LogknockError) as raised:
        taken(codes)
    assert "the sequence used last, 1000/tcp,2000/tcp on line 2, is not there any more" in raised.value.message
    subprocess.run(raised.value.hint.partition(": ")[2].partition(";")[0], shell=True, check=True)  # noqa: S602
    assert taken(codes) == "7000/tcp,8000/tcp"


def test_a_link_and_its_file_have_one_position(codes: Path) -> None:
    link = codes.parent / "link"
    link.symlink_to("codes")
    assert [taken(codes), taken(link)] == [FIRST, SECOND]


def test_t18_two_at_once_never_send_the_same(codes: Path) -> None:
    codes.write_text("".join(f" {port},1\n" for port in range(1000, 1030)))
    code = (
        "import sys; from pathlib import Path; from logknock import positions\n"
        "for _ in range(5):\n"
        "    with positions.use(Path(sys.argv[1]), lambda text: None) as position:\n"
        "        print(position.take()[0].service.port, flush=True); position.sent()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(codes)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    ports = [int(line) for process in running for line in process.communicate(timeout=60)[0].split()]
    assert sorted(ports) == list(range(1000, 1020))


def test_who_waits_for_the_lock_goes_on_from_where_the_other_was(codes: Path) -> None:
    sent: list[str] = []
    other = threading.Thread(target=lambda: sent.append(taken(codes)))
    with positions.use(codes, print) as position:
        position.take()
        other.start()
        until(lambda: sum(name.startswith(str(codes.parent / "state")) for name in open_files()) > 1, "it to wait")
        assert not sent
        position.sent()
    other.join(20)
    assert sent == [SECOND]


def open_files() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since, by another thread
            found.append(os.readlink(entry))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"line": -1, "offset": 0, "last": [], "unanswered": false}',
        "[" * 60_000,
        "\0",
        '{"line": 1, "offset": 1, "last": ["x"], "unanswered": false}',
        '{"line": 1, "offset": 1, "last": [1]}',
        '{"line": 1, "offset": 9999999999999999999999, "last": [], "unanswered": false}',
        '{"line": 1, "offset": 1, "last": [], "unanswered": -1}',
        '{"line": 1, "offset": 1, "last": [], "unanswered": 9999999999999999999999}',
    ],
)
def test_a_position_that_says_nothing_is_an_error_that_says_what_to_do(codes: Path, text: str) -> None:
    taken(codes)
    kept(codes).write_text(text)
    with pytest.raises(LogknockError) as raised:
        taken(codes)
    assert raised.value.message == f"{kept(codes)} holds no position in {codes}"
    assert f"rm {kept(codes)}" in raised.value.hint


def refused(codes: Path) -> LogknockError:
    """Why there is nothing to send."""
    with pytest.raises(LogknockError) as raised, positions.use(codes, print) as position:
        position.take()
    return raised.value


def test_a_position_that_cannot_be_kept_sends_nothing(codes: Path) -> None:
    state = codes.parent / "state"
    state.mkdir()
    for options, words in (("size=4k,nr_inodes=3", "No space left on device"), ("ro", "Read-only file system")):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(state)], check=True)
        try:
            error = refused(codes)
        finally:
            subprocess.run(["umount", str(state)], check=True)
        assert words in error.message
        assert "nothing was sent" in error.hint
        assert "in XDG_STATE_HOME" in error.hint


def test_a_disk_that_is_full_between_two_runs_keeps_the_position(codes: Path) -> None:
    state = codes.parent / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)], check=True)
    try:
        taken(codes)
        (state / "filler").write_bytes(bytes(os.statvfs(state).f_bavail * os.statvfs(state).f_bsize))
        assert "No space left on device" in refused(codes).message
        (state / "filler").unlink()
        assert taken(codes) == SECOND
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_what_others_can_write_or_own_is_refused(codes: Path) -> None:
    taken(codes)
    folder = kept(codes).parent
    for path in (kept(codes), folder):
        mode = path.stat().st_mode
        path.chmod(0o777)
        assert (refused(codes).message, refused(codes).exit_code) == (f"{path} can be written by others", NO_PERMISSION)
        path.chmod(mode)
        os.chown(path, 4242, -1)
        assert refused(codes).message == f"{path} belongs to another user (uid 4242)"
        os.chown(path, 0, -1)
    assert taken(codes) == SECOND


def test_what_is_no_directory_or_no_file_is_one_clear_line(codes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (codes.parent / "state").write_text("")
    assert "cannot be written: Not a directory" in refused(codes).message
    monkeypatch.setenv("XDG_STATE_HOME", str(codes.parent / "elsewhere"))
    codes.chmod(0o644)
    assert "read by others" in refused(codes).message
    codes.unlink()
    assert "does not exist" in refused(codes).message


@pytest.mark.parametrize(
    ("name", "make", "hint"),
    [
        pytest.param("{}.json", "ln -s codes {}", "put a regular file in its place, or begin anew: rm ", id="a_link"),
        pytest.param("{}.json", "mkdir {}", "move it away", id="a_directory"),
        pytest.param("{}.lock", "ln -s codes {}", "put a regular file in its place", id="a_link_as_lock"),
        pytest.param("{}.new", "mkdir {}", "move it away", id="a_directory_as_the_new_one"),
    ],
)
def test_what_stands_in_a_positions_place_is_said_with_what_to_do(codes: Path, name: str, make: str, hint: str) -> None:
    taken(codes)
    path = kept(codes).with_suffix("").as_posix()
    for suffix in (".json", ".lock"):
        Path(path + suffix).unlink()
    subprocess.run(["sh", "-c", make.format(name.format(path))], check=True)
    error = refused(codes)
    assert name.format(path) in error.message
    assert hint in error.hint
    assert "nothing was sent" in error.hint


@pytest.mark.parametrize("home", ["", "/nonexistent/home"])
def test_without_a_home_nothing_is_made(codes: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", home)
    assert refused(codes).message == "there is no home directory to keep positions in"
    assert not Path("/nonexistent").exists()
    assert not Path("/.local").exists()
    monkeypatch.setenv("HOME", str(codes.parent))
    assert taken(codes) == FIRST
    assert (codes.parent / ".local" / "state" / "logknock").is_dir()
