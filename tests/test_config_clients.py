"""Doors that ask for a proof, and their clients: what their tables mean, and what is said of those that are wrong."""

import os
import time
from base64 import b32encode, b64encode
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from logknock.config import Config, ConfigError, PortRange, load
from logknock.knock import Door, Service
from logknock.packet import TCP, UDP
from logknock.spa import MAX_SPA_KEYS, Key
from logknock.totp import MAX_CLIENTS, Client, TotpDoor

from .config_files import DOOR, STEPS, Claims, errors, write

HOST = '[totp]\nhost = "gate.example"\n'
TOTP = f'{HOST}[doors.ssh]\nopens = ["22/tcp"]\ntotp = {{}}\n'
SPA = '[doors.vpn]\nopens = ["22/tcp", "1194/udp"]\nspa = {}\n'
SECRET = b32encode(b"a secret of 32 bytes, all of it\xff").decode().rstrip("=")
SECRET_2 = b32encode(b"another one, of 32 bytes, again\xff").decode().rstrip("=")
WORDS = b32encode(b"correct horse battery staple").decode().rstrip("=")
KEY, HMAC_KEY = b64encode(b"k" * 32).decode(), b64encode(b"h" * 64).decode()
LAPTOP = f'[clients.ssh.laptop]\nsecret = "{SECRET}"\n'
KEYS = f'key_base64 = "{KEY}"\nhmac_key_base64 = "{HMAC_KEY}"\n'
ANNA = f'[clients.vpn.anna]\n{KEYS}allow = ["22/tcp"]\n'


def test_a_totp_door_is_what_its_tables_say(tmp_path: Path) -> None:
    """The order of the ranges is kept: clients derive from it."""
    text = f"""
        [totp]
        host = "Gate.Example"
        [doors.ssh]
        opens = ["22/tcp"]
        totp = {{ports = ["30000-39999/udp", "20000-29999/tcp"], length = 5, step = "1m", skew = 0}}
        [clients.ssh.laptop]
        secret = "{SECRET.lower()[:8]} {SECRET[8:]}"
        [clients.ssh."a.b"]
        secret = "{SECRET_2}"
    """
    config = load(write(tmp_path, text))
    services = (
        *(Service(UDP, port) for port in range(30_000, 40_000)),
        *(Service(TCP, p) for p in range(20_000, 30_000)),
    )
    laptop = Client("laptop", b"a secret of 32 bytes, all of it\xff")
    other = Client("a.b", b"another one, of 32 bytes, again\xff")
    assert config.totp == (TotpDoor("ssh", "gate.example", services, 5, 60, 0, 0, (laptop, other)),)
    assert config.doors == (Door("ssh", (), opens=(Service(TCP, 22),), proof="totp"),)
    assert config.knocked == config.watched == set(services)
    assert config.warnings == ()


def test_a_door_without_more_words_has_the_defaults(tmp_path: Path) -> None:
    text = TOTP + LAPTOP + '[doors.phone]\nopens = ["22/tcp"]\ntotp = {code = 8}\n'
    totp, code = load(write(tmp_path, f'{text}[clients.phone.anna]\nsecret = "{SECRET_2}"')).totp
    assert (len(totp.services), totp.length, totp.step, totp.skew, totp.digits) == (1000, 4, 30, 1, 0)
    assert (code.services, code.knocks) == (tuple(Service(TCP, 21_000 + at) for at in range(400)), 4)


def test_the_name_of_the_host_is_the_hosts_own_where_it_is_not_written(tmp_path: Path) -> None:
    """And that this is unwise is said, if anything is derived from it."""
    config = load(write(tmp_path, TOTP.replace(HOST, "") + LAPTOP))
    assert config.totp[0].host == config.host == os.uname().nodename.lower()
    assert "totp.host: is not written: if this host gets another name, no client gets in" in str(config.warnings[0])
    assert load(write(tmp_path, DOOR)).warnings == ()


def test_an_spa_client_is_what_its_table_says(tmp_path: Path) -> None:
    """Each key, at a value that is not its default, and then the defaults."""
    text = f"""{SPA}
        [clients.vpn.laptop]
        key = "sixteen letters!"
        hmac_key = "and these are others, in UTF-8: \u00e4"
        hmac = "sha3_512"
        allow = ["1194/udp", "22/tcp"]
        require_source = false
        max_age = "1m"
        max_timeout = "1h"
        user = "anna"
        source = ["192.0.2.0/24", "2001:db8::/32"]
    """
    networks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    services = (Service(UDP, 1194), Service(TCP, 22))
    hmac_key = "and these are others, in UTF-8: \u00e4".encode()
    laptop = Key(
        "vpn", "laptop", b"sixteen letters!", hmac_key, "sha3_512", services, False, 60.0, 3600.0, "anna", networks
    )
    assert load(write(tmp_path, text)).spa_keys == (laptop,)
    anna = Key("vpn", "anna", b"k" * 32, b"h" * 64, "sha256", (Service(TCP, 22),), True, 120.0, 300.0, "", ())
    assert load(write(tmp_path, SPA + ANNA)).spa_keys == (anna,)


def test_an_spa_door_is_a_door_for_each_service_and_is_closed_as_one(tmp_path: Path) -> None:
    """So each service that is asked for has an end of its own. A door of one service keeps its name."""
    text = f'{SPA}timeout = "1m"\n[doors.one]\nopens = ["80/tcp"]\nspa = {{ports = ["icmp"]}}\n{ANNA}'
    bye = f'[doors.bye]\nsequence = {STEPS}\ncloses = ["vpn", "one"]\n[clients.one.anna]\nallow = ["80/tcp"]\n'
    keys = f'key_base64 = "{b64encode(b"l" * 16).decode()}"\nhmac_key_base64 = "{b64encode(b"m" * 16).decode()}"\n'
    config = load(write(tmp_path, text + bye + keys))
    assert [(door.name, door.opens, door.timeout) for door in config.doors if door.proof == "spa"] == [
        ("vpn:22/tcp", (Service(TCP, 22),), 60.0),
        ("vpn:1194/udp", (Service(UDP, 1194),), 60.0),
        ("one:80/tcp", (Service(TCP, 80),), 30.0),
    ]
    assert config.doors[-1].closes == ("vpn:22/tcp", "vpn:1194/udp", "one:80/tcp")
    found = {key: door.name for key, door in config.spa_doors.items()}
    assert found == {
        ("vpn", Service(TCP, 22)): "vpn:22/tcp",
        ("vpn", Service(UDP, 1194)): "vpn:1194/udp",
        ("one", Service(TCP, 80)): "one:80/tcp",
    }
    assert (config.spa_ports, config.spa_icmp) == ((PortRange(UDP, 62_201, 62_201),), True)
    assert config.guarded == {Service(TCP, 22), Service(UDP, 1194), Service(TCP, 80)}
    assert config.homes["vpn", "anna"] == config.file


def test_a_service_s_name_is_the_same_whatever_other_services_its_door_has(tmp_path: Path) -> None:
    """What is open, and on record, goes by it: a service that comes or goes beside it loses nothing."""
    names = []
    for opens in ('"22/tcp"', '"22/tcp", "1194/udp"'):
        text = f"[doors.vpn]\nopens = [{opens}]\nspa = {{}}\n"
        names.append(load(write(tmp_path, text)).spa_doors["vpn", Service(TCP, 22)].name)
    assert names == ["vpn:22/tcp"] * 2


def test_ports_of_several_spa_doors_are_told_once(tmp_path: Path) -> None:
    """An interval set of the firewall takes no two that overlap."""
    text = '[doors.a]\nopens = ["22/tcp"]\nspa = {ports = ["10000-20000/udp", "443/tcp"]}\n'
    text += '[doors.b]\nopens = ["80/tcp"]\nspa = {ports = ["15000-30000/udp", "30001/udp", "30003/udp"]}\n'
    config = load(write(tmp_path, text))
    assert config.spa_ports == (
        PortRange(TCP, 443, 443),
        PortRange(UDP, 10_000, 30_001),
        PortRange(UDP, 30_003, 30_003),
    )
    assert not config.spa_icmp


def test_clients_stand_in_files_beside_the_configuration(tmp_path: Path) -> None:
    """In conf.d and in clients, each with its file; what is wrong is said with it."""
    path = write(tmp_path, TOTP)
    write(tmp_path, LAPTOP, "conf.d/10-ssh.toml")
    file = write(tmp_path, f'[clients.ssh.phone]\nsecret = "{SECRET_2}"\n', "clients/ssh.phone.toml")
    write(tmp_path, "secret", "clients/README")
    config = load(path)
    assert [client.name for client in config.totp[0].clients] == ["laptop", "phone"]
    assert config.homes["ssh", "phone"] == file
    write(tmp_path, "\n[clients.ssh.third]\nsecret = 5\n", "clients/ssh.third.toml")
    assert errors(path)[0] == ["clients/ssh.third.toml:3: clients.ssh.third.secret: must be text"]


def test_a_client_in_a_credential_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, TOTP)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(write(tmp_path, LAPTOP, "given/ssh.laptop.toml").parent))
    assert [client.name for client in load(path).totp[0].clients] == ["laptop"]


def test_the_same_client_in_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = write(tmp_path, TOTP + LAPTOP)
    write(tmp_path, LAPTOP, "clients/ssh.laptop.toml")
    assert errors(path)[0] == [f"clients/ssh.laptop.toml:1: clients.ssh.laptop: the same client is in {path} too"]


# ---- what is wrong

OTHER_HINT = "each client has a secret of its own, so that it can be taken back alone"
KEYS_HINT = "each client has keys of its own, so that it can be taken back alone"
BASE64_HINT = "A-Z, a-z, 0-9, + and /, and = at its end only: as `logknock keygen` prints it"
BASE32_HINT = "it is base32: A-Z and 2-7, as `logknock enroll` prints it"
GOOD_KEYS = "`logknock keygen` makes good ones"
DEFAULT_CODES = 'leave it out, or write ["21000-21299/tcp"]'


def client(line: str = "", table: str = KEYS + 'allow = ["22/tcp"]\n') -> str:
    """An SPA door and its client, whose table ends in the line."""
    return f"{SPA}[clients.vpn.anna]\n{table}{line}\n"


WRONG: Claims = {
    "a key of knocks at a door that takes packets": (
        f'{SPA.rstrip()}\ncooldown = "1m"\n{ANNA}',
        "4: doors.vpn.cooldown: does not apply to an SPA door: a single packet opens it",
        "leave it out",
    ),
    "a secret of another alphabet": (
        f'{TOTP}[clients.ssh.a]\nsecret = "{SECRET[:-1]}1"',
        "7: clients.ssh.a.secret: the secret is no base32: letters A to Z and digits 2 to 7",
        BASE32_HINT,
    ),
    "a secret that is short": (
        f'{TOTP}[clients.ssh.a]\nsecret = "{SECRET[:24]}"',
        "7: clients.ssh.a.secret: the secret is too short: 15 bytes, and 16 are the least",
        BASE32_HINT,
    ),
    "a client without a secret": (
        f"{TOTP}[clients.ssh.a]\n",
        "6: clients.ssh.a.secret: is missing",
        "take this table out, and `logknock enroll ssh a` makes one",
    ),
    "two clients with one secret": (
        f'{TOTP}{LAPTOP}[clients.ssh.b]\nsecret = "{SECRET.lower()}"',
        "9: clients.ssh.b.secret: is the same as clients.ssh.laptop.secret",
        OTHER_HINT,
    ),
    "a secret that another client has as its key": (
        f'{TOTP}[clients.ssh.laptop]\nsecret = "{WORDS}"\n{client("", "")}key = "correct horse battery staple"\n'
        f'hmac_key_base64 = "{HMAC_KEY}"\nallow = ["22/tcp"]',
        "13: clients.vpn.anna.key: is the same as clients.ssh.laptop.secret",
        KEYS_HINT,
    ),
    "a client of no door": (
        f'{TOTP}[clients.shh.a]\nsecret = "{SECRET}"',
        "6: clients.shh.a: there is no door 'shh'",
        "the doors are: ssh",
    ),
    "a client of a door that takes none": (
        f'{DOOR}[clients.ssh.a]\nsecret = "{SECRET}"',
        "4: clients.ssh.a: door ssh takes no clients: whoever knocks its sequence passes",
        "a door with clients has totp = {} or spa = {} instead of a sequence",
    ),
    "a client that is no table": (
        f'{TOTP}[clients.ssh]\na = "{SECRET}"',
        "7: clients.ssh.a: must be a table, not text",
        "it begins with a line [clients.DOOR.NAME]",
    ),
    "a client with a name that cannot be told": (
        f'{TOTP}[clients.ssh."a/b"]\nsecret = "{SECRET}"',
        '6: clients.ssh."a/b": this is no name for a client',
        "up to 63 letters, digits and . _ -, the first a letter or a digit",
    ),
    "a key that is mistyped": (
        f'{TOTP}[clients.ssh.a]\nsecret = "{SECRET}"\nsecrte = "{SECRET}"',
        "8: clients.ssh.a.secrte: unknown key",
        "did you mean secret?",
    ),
    "a key of SPA at a TOTP door": (
        f'{TOTP}{LAPTOP}hmac = "{HMAC_KEY}"',
        "8: clients.ssh.laptop.hmac: unknown key",
        "known here: secret",
    ),
    "an SPA key that is short": (
        client(
            f'key_base64 = "{b64encode(b"k" * 15).decode()}"', f'hmac_key_base64 = "{HMAC_KEY}"\nallow = ["22/tcp"]\n'
        ),
        "7: clients.vpn.anna.key_base64: is too short: 15 bytes, and it has 16-32",
        GOOD_KEYS,
    ),
    "an SPA key that AES cannot take": (
        client(f'key = "{"k" * 33}"', f'hmac_key_base64 = "{HMAC_KEY}"\nallow = ["22/tcp"]\n'),
        "7: clients.vpn.anna.key: is too long: 33 bytes, and it has 16-32",
        GOOD_KEYS,
    ),
    "an HMAC key that is short": (
        client('hmac_key = "short"', f'key_base64 = "{KEY}"\nallow = ["22/tcp"]\n'),
        "7: clients.vpn.anna.hmac_key: is too short: 5 bytes, and it has 16-128",
        GOOD_KEYS,
    ),
    "a key of one letter": (
        client('hmac_key = "x"', f'key_base64 = "{KEY}"\nallow = ["22/tcp"]\n'),
        "7: clients.vpn.anna.hmac_key: is too short: 1 byte, and it has 16-128",
        GOOD_KEYS,
    ),
    "a step that is too long": (
        TOTP.replace("{}", '{step = "6m"}') + LAPTOP,
        "5: doors.ssh.totp.step: 6m is out of range (10s-5m)",
        "write a time from 10s to 5m",
    ),
    "a key of another alphabet": (
        client(f'key_base64 = "{KEY[:9]}_{KEY[10:]}"', f'hmac_key_base64 = "{HMAC_KEY}"\nallow = ["22/tcp"]\n'),
        "7: clients.vpn.anna.key_base64: character 10 is none of base64's",
        BASE64_HINT,
    ),
    "a key that was cut off": (
        client(f'key_base64 = "{KEY[:-1]}"', f'hmac_key_base64 = "{HMAC_KEY}"\nallow = ["22/tcp"]\n'),
        "7: clients.vpn.anna.key_base64: 43 characters are no whole base64: some are missing",
        "copy it whole, with the = at its end: its length is a multiple of 4",
    ),
    "an equal pair": (
        client(f'hmac_key = "{"k" * 32}"', f'key_base64 = "{KEY}"\nallow = ["22/tcp"]\n'),
        "7: clients.vpn.anna.hmac_key: is the same as key_base64",
        "two that have nothing in common, as `logknock keygen` makes them",
    ),
    "two clients with one key": (
        f'{SPA}{ANNA}[clients.vpn.ben]\nkey = "{"k" * 32}"\nhmac_key = "{"i" * 16}"\nallow = ["22/tcp"]',
        "9: clients.vpn.ben.key: is the same as clients.vpn.anna.key_base64",
        KEYS_HINT,
    ),
    "two clients with HMAC keys that HMAC takes for one": (
        f'{SPA}{ANNA}[clients.vpn.ben]\nkey = "{"l" * 32}"\nallow = ["22/tcp"]\n'
        f'hmac_key_base64 = "{b64encode(b"h" * 64 + bytes(9)).decode()}"',
        "11: clients.vpn.ben.hmac_key_base64: is the same as clients.vpn.anna.hmac_key_base64",
        KEYS_HINT,
    ),
    "a key written twice": (
        client(f'key = "{"l" * 32}"'),
        "5: clients.vpn.anna.key_base64: there are key and key_base64",
        "write one of them",
    ),
    "no key": (
        client(f'hmac_key_base64 = "{HMAC_KEY}"', 'allow = ["22/tcp"]\n'),
        "4: clients.vpn.anna.key_base64: is missing",
        "take this table out, and `logknock keygen vpn anna --allow 22/tcp --allow 1194/udp --write` makes one; "
        "or write key, a passphrase",
    ),
    "no list of services": (
        client("", KEYS),
        "4: clients.vpn.anna.allow: is missing: what may this client open?",
        'allow = ["22/tcp", "1194/udp"], or some of them',
    ),
    "a service that the door does not open": (
        client('allow = ["80/tcp"]', KEYS),
        "7: clients.vpn.anna.allow: door vpn does not open 80/tcp",
        'it opens "22/tcp", "1194/udp"',
    ),
    "a digest that there is not": (
        client(f'hmac = "{HMAC_KEY}"'),
        "8: clients.vpn.anna.hmac: is none that there is",
        "there are: sha256, sha384, sha512, sha3_256, sha3_512, sha1, md5",
    ),
    "a user name that no packet holds": (
        client('user = "a:b"'),
        "8: clients.vpn.anna.user: is no user name that a packet can hold",
        'up to 48 letters of ASCII, none of "/\\[]:;|=,+*?<>',
    ),
    "a user name that is no ASCII": (
        client('user = "änne"'),
        "8: clients.vpn.anna.user: is no user name that a packet can hold",
        'up to 48 letters of ASCII, none of "/\\[]:;|=,+*?<>',
    ),
    "two proofs at one door": (
        f"{TOTP}sequence = {STEPS}\n",
        "5: doors.ssh.totp: a door has a sequence or files of one-time sequences, or totp, or spa",
        "make two doors of it",
    ),
    "a length that is too short": (
        TOTP.replace("{}", "{length = 3}"),
        "5: doors.ssh.totp.length: 3 is out of range (4-8)",
        "write a number from 4 to 8",
    ),
    "a step that is no whole second": (
        TOTP.replace("{}", '{step = "10s500ms"}'),
        "5: doors.ssh.totp.step: a step is whole seconds",
        'write "30s"',
    ),
    "ports that overlap": (
        TOTP.replace("{}", '{ports = ["20000-20499/tcp", "20400-29999/tcp"]}'),
        "5: doors.ssh.totp.ports: 20400-29999/tcp and 20000-20499/tcp have ports in common",
        "write each port once",
    ),
    "ports of a code that do not fit": (
        TOTP.replace("{}", '{code = 6, ports = ["20050-20349/tcp"]}'),
        "5: doors.ssh.totp.ports: a code of 6 digits is spelled on one range of 300 TCP ports from a hundred on",
        DEFAULT_CODES,
    ),
    "a code over UDP": (
        TOTP.replace("{}", '{code = 6, ports = ["20000-20299/udp"]}'),
        "5: doors.ssh.totp.ports: a code of 6 digits is spelled on one range of 300 TCP ports from a hundred on",
        DEFAULT_CODES,
    ),
    "a code of seven digits": (
        TOTP.replace("{}", "{code = 7}"),
        "5: doors.ssh.totp.code: a code has 6 or 8 digits",
        "6 is what authenticators show; 8 is harder to guess",
    ),
    "a length of a code": (
        TOTP.replace("{}", "{code = 6, length = 5}"),
        "5: doors.ssh.totp.length: does not apply to a code door: two digits are a knock",
        "leave it out",
    ),
    "a code of another step": (
        TOTP.replace("{}", '{code = 6, step = "1m"}'),
        "5: doors.ssh.totp.step: a code door's step is 30s, which is what authenticators have",
        "leave it out",
    ),
    "a guarded service among the ports": (
        TOTP.replace('"22/tcp"', '"22/tcp", "20100/tcp"'),
        "5: doors.ssh.totp: 20100/tcp is guarded: no knock of this door can be on it",
        'write totp.ports = ["20000-20099/tcp", "20101-20499/tcp", "20000-20499/udp"], here and in the clients\'',
    ),
    "a knock of another door among the ports": (
        f'{TOTP}[doors.b]\nsequence = ["20499/udp", "9/tcp", "8/tcp", "20000/tcp"]\nopens = ["80/tcp"]',
        "5: doors.ssh.totp: 20000/tcp is what door b is knocked with, and 1 more of its ports are taken: "
        "no knock of this door can be on it",
        'write totp.ports = ["20001-20499/tcp", "20000-20498/udp"], here and in the clients\'',
    ),
    "excluded ports among the ports": (
        f'{TOTP}[firewall]\nexclude = ["20000-20001/udp"]',
        "5: doors.ssh.totp: 20000/udp is in [firewall] exclude, and 1 more of its ports are taken: "
        "no knock of this door can be on it",
        'write totp.ports = ["20000-20499/tcp", "20002-20499/udp"], here and in the clients\'',
    ),
    "SPA from a log without payload": (
        f'{SPA}{ANNA}[log]\nsource = "journal"',
        "3: doors.vpn.spa: kernel log lines carry no payload: SPA needs the NFLOG source",
        'write [log] source = "nflog", which our rules log to',
    ),
    "an SPA port that is guarded": (
        SPA.replace("{}", '{ports = ["1194/udp"]}'),
        "3: doors.vpn.spa: 1194/udp is guarded: no packet to it is read as SPA",
        "name a port that no door opens",
    ),
    "an SPA door that opens nothing": (
        '[doors.vpn]\nspa = {}\nsets = ["inet t s"]',
        "1: doors.vpn.opens: is missing: a packet asks for services by name",
        'opens = ["22/tcp"]',
    ),
    "an SPA door that opens nothing, and what its client may open": (
        f"[doors.vpn]\nspa = {{}}\n{ANNA}",
        "1: doors.vpn.opens: is missing: a packet asks for services by name",
        'opens = ["22/tcp"]',
    ),
    "an SPA door whose service is mistyped, and what its client may open": (
        f"{SPA}{ANNA}".replace('"22/tcp", "1194/udp"', '"22/tpc"'),
        "2: doors.vpn.opens: '22/tpc': the protocol is tcp or udp, not 'tpc'",
        'a service is written "22/tcp" or "53/udp", its port 1-65535',
    ),
    "a port for SPA that is written twice": (
        SPA.replace("{}", '{ports = ["icmp", "5/udp", "5/udp"]}'),
        "3: doors.vpn.spa.ports: 5/udp and 5/udp have ports in common",
        "write each port once",
    ),
    "ICMP for SPA that is written twice": (
        SPA.replace("{}", '{ports = ["icmp", "5/udp", "icmp"]}'),
        "3: doors.vpn.spa.ports: icmp and icmp have ports in common",
        "write each port once",
    ),
    "no port for SPA": (
        SPA.replace("{}", "{ports = []}"),
        "3: doors.vpn.spa.ports: names no port",
        'leave it out for "62201/udp"',
    ),
    "a host name that is none": (
        TOTP.replace("gate.example", "gate example"),
        "2: totp.host: 'gate example' is no host name",
        "up to 253 letters, digits and . _ : -",
    ),
}


@pytest.mark.parametrize(("text", "problem", "hint"), [pytest.param(*case, id=claim) for claim, case in WRONG.items()])
def test_a_wrong_client_or_door_is_one_error_with_its_line_and_a_hint(
    tmp_path: Path, text: str, problem: str, hint: str
) -> None:
    """One clear line each, and nothing of a secret or a key in it."""
    assert errors(write(tmp_path, text)) == ([f"logknock.toml:{problem}"], [hint])


def test_t21_fewer_than_2_to_the_30_sequences_a_step_are_an_error(tmp_path: Path) -> None:
    """200 ports of one protocol are 1.5 billion sequences of four, 150 are not."""
    wide, narrow = (TOTP.replace("{}", f'{{ports = ["20000-{last}/tcp"]}}') for last in (20_199, 20_149))
    load(write(tmp_path, wide))
    (found,), _ = errors(write(tmp_path, narrow))
    assert "doors.ssh.totp.ports: 4 knocks on 150 ports" in found
    assert "possible sequences a step are too few" in found


def test_a_file_of_a_client_that_others_can_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, TOTP)
    file = write(tmp_path, LAPTOP, "clients/ssh.laptop.toml")
    file.chmod(0o644)
    (found,), (hint,) = errors(path)
    assert found == "clients/ssh.laptop.toml: can be read by others, and it holds what to knock"
    assert hint == f"chmod g-w,o-rwx {file}"


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = (
        TOTP
        + SPA
        + '[clients.ssh.a]\nsecret = 5\n[clients.vpn.b]\nhmac = "x"\n[clients.no.c]\n[clients.ssh.d]\nx = 1\n'
    )
    assert [line.partition(": ")[2] for line in errors(write(tmp_path, text))[0]] == [
        "clients.ssh.a.secret: must be text",
        "clients.vpn.b.key_base64: is missing",
        "clients.vpn.b.hmac_key_base64: is missing",
        "clients.vpn.b.allow: is missing: what may this client open?",
        "clients.vpn.b.hmac: is none that there is",
        "clients.no.c: there is no door 'no'",
        "clients.ssh.d.secret: is missing",
        "clients.ssh.d.x: unknown key",
    ]


# What a secret may be written as or in, by mistake.
MISTAKES: dict[str, Callable[[str], str]] = {
    "in the wrong key of SPA": lambda secret: client(f'hmac = "{secret}"\nuser = "{secret}{"x" * 48}"'),
    "as a key with a slip": lambda secret: client(f'key_base64 = "{secret}_"', f'hmac_key_base64 = "{HMAC_KEY}"\n'),
    "as a key that is cut off": lambda secret: client(f'key_base64 = "{secret[:-3]}"', ""),
    "as a key that is too long": lambda secret: client(f'key = "{secret * 9}"', ""),
    "as a secret with a slip": lambda secret: f'{TOTP}[clients.ssh.a]\nsecret = "{secret}1"',
    "as a list": lambda secret: f'{TOTP}[clients.ssh.a]\nsecret = ["{secret}"]',
    "in place of a table": lambda secret: f'{TOTP}[clients]\nssh = "{secret}"',
    "in place of a client": lambda secret: f'{TOTP}[clients.ssh]\na = "{secret}"',
    "as what the door asks": lambda secret: TOTP.replace("{}", f'"{secret}"'),
    "in the door": lambda secret: TOTP.replace("{}", f'{{secret = "{secret}"}}'),
    "without quotes": lambda secret: f"{TOTP}[clients.ssh.a]\nsecret = {secret}",
    "with one quote": lambda secret: f'{TOTP}[clients.ssh.a]\nsecret = "{secret}',
    "in a key that is mistyped": lambda secret: f'{TOTP}{LAPTOP}sekret = "{secret}"',
    "twice": lambda secret: f'{TOTP}[clients.ssh.a]\nsecret = "{secret}"\n[clients.ssh.b]\nsecret = "{secret}"',
    "in a file that is no TOML": lambda secret: f"{secret}\n",
}


@pytest.mark.parametrize("write_down", [pytest.param(mistake, id=name) for name, mistake in MISTAKES.items()])
def test_no_message_quotes_a_secret(tmp_path: Path, write_down: Callable[[str], str]) -> None:
    """Nor eight letters of it in a row."""
    secret = b32encode(b"nobody is to see this").decode()[:32]
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, write_down(secret)))
    said = "\n".join((*caught.value.report(), repr(caught.value), str(caught.value)))
    assert not [at for at in range(len(secret) - 7) if secret[at : at + 8] in said], said


def test_no_repr_of_a_configuration_holds_a_secret(tmp_path: Path) -> None:
    """What a log or a traceback would show."""
    config = load(write(tmp_path, f"{TOTP}{SPA}{LAPTOP}{ANNA}"))
    for part in (repr(config), str(config), repr(config.totp[0].clients[0]), repr(config.spa_keys[0])):
        assert "a secret of" not in part
        assert "kkkk" not in part
        assert "hhhh" not in part


# ---- how many


def enrolled(count: int) -> str:
    return "".join(
        f'[clients.ssh.c{at}]\nsecret = "{b32encode(at.to_bytes(20)).decode()}"\n' for at in range(1, count + 1)
    )


def test_more_clients_than_can_be_are_one_error(tmp_path: Path) -> None:
    load(write(tmp_path, TOTP + enrolled(MAX_CLIENTS)))
    assert errors(write(tmp_path, TOTP + enrolled(MAX_CLIENTS + 1))) == (
        ["logknock.toml:5: doors.ssh.totp: there are 4,097 clients, and 4,096 are the most"],
        ["divide them among hosts"],
    )
    keys = [(b64encode(bytes([at]) * 16).decode(), b64encode(bytes([at]) * 17).decode()) for at in range(1, 66)]
    tables = [
        f'[clients.vpn.c{at}]\nkey_base64 = "{key}"\nhmac_key_base64 = "{other}"\nallow = ["22/tcp"]\n'
        for at, (key, other) in enumerate(keys)
    ]
    load(write(tmp_path, SPA + "".join(tables[:MAX_SPA_KEYS])))
    assert errors(write(tmp_path, SPA + "".join(tables)))[0] == [
        "logknock.toml:3: doors.vpn.spa: there are 65 SPA keys, and 64 are the most"
    ]


def test_a_thousand_files_of_clients_are_read_in_a_moment(tmp_path: Path) -> None:
    """It takes a tenth of a second; ten times as long is allowed to a busy machine. So it is with as many errors."""
    path = write(tmp_path, TOTP)
    for at in range(1, 1001):
        text = f'[clients.ssh.c{at}]\nsecret = "{b32encode(at.to_bytes(20)).decode()}"\n'
        write(tmp_path, text, f"clients/ssh.c{at}.toml")
    began = time.process_time()
    config = load(path)
    assert time.process_time() - began < 2
    assert len(config.totp[0].clients) == 1000


# ---- what is unwise


def warnings(config: Config) -> list[str]:
    return [str(problem).partition("logknock.toml:")[2] for problem in config.warnings]


def test_doors_of_both_kinds_share_no_port_by_default_and_two_totp_doors_may(tmp_path: Path) -> None:
    """Of all doors' default ports, only a code's make a knock of somebody else's a wrong try."""
    doors = "".join(
        f'[doors.{name}]\ntotp = {{{terms}}}\nopens = ["22/tcp"]\n[clients.{name}.anna]\n'
        f'secret = "{b32encode(name.encode() * 5 + bytes(5)).decode()}"\n'
        for name, terms in (("ssh2", ""), ("code", "code = 6"), ("cod2", "code = 8"))
    )
    (warning,) = warnings(load(write(tmp_path, TOTP + LAPTOP + doors)))
    assert "doors.cod2.totp: has ports in common with door code:" in warning


@pytest.mark.parametrize("text", [TOTP.replace("{}", "{code = 6}") + LAPTOP, TOTP + LAPTOP, SPA + ANNA])
def test_a_door_with_a_client_is_no_warning(tmp_path: Path, text: str) -> None:
    """A code of six digits for one client is guessed in 463 days, at 30 tries an hour."""
    assert warnings(load(write(tmp_path, text))) == []


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        pytest.param(TOTP, "5: doors.ssh.totp: this door has no client yet: nobody can open it", id="no TOTP client"),
        pytest.param(SPA, "3: doors.vpn.spa: this door has no client yet: nobody can open it", id="no SPA client"),
        pytest.param(
            TOTP.replace("{}", "{skew = 2}") + LAPTOP,
            "5: doors.ssh.totp.skew: 2: a sequence that was heard and not used up is good for 150 s",
            id="a wide skew",
        ),
        pytest.param(
            TOTP.replace("{}", "{code = 6}") + enrolled(10),
            "5: doors.ssh.totp: a code of 6 digits for 10 clients: "
            "who guesses without end hits one in 46 days on average",
            id="T21: a code of six digits for ten clients",
        ),
        pytest.param(
            TOTP.replace("{}", "{code = 6}") + enrolled(1000),
            "5: doors.ssh.totp: a code of 6 digits for 1,000 clients: "
            "who guesses without end hits one in 11 hours on average",
            id="T21: a code of six digits for a thousand clients",
        ),
        pytest.param(
            f'{TOTP}{LAPTOP}[doors.code]\ntotp = {{code = 6, ports = ["20400-20699/tcp"]}}\nopens = ["22/tcp"]\n'
            f'[clients.code.anna]\nsecret = "{SECRET_2}"\n',
            "9: doors.code.totp: has ports in common with door ssh: a wrong knock at one is a wrong try at both",
            id="a code door on ports of a TOTP door",
        ),
        pytest.param(
            f'{TOTP}[clients.ssh.laptop]\nsecret = "{WORDS}"\n',
            "7: clients.ssh.laptop.secret: is text in base32: who guesses the words knocks in this client's name",
            id="T21: a secret of words",
        ),
        pytest.param(
            client('hmac = "md5"'), "8: clients.vpn.anna.hmac: md5 is outdated", id="an HMAC of another century"
        ),
        pytest.param(
            client("require_source = false"),
            "8: clients.vpn.anna.require_source: false: "
            "whoever holds the packet up and sends it first opens for the address that is in it",
            id="packets that are not bound to their source",
        ),
    ],
)
def test_what_is_unwise_is_a_warning(tmp_path: Path, text: str, warning: str) -> None:
    assert warnings(load(write(tmp_path, text))) == [warning]
