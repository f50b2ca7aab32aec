"""access.conf as fwknopd reads it: what it says, what is refused by name, and that the stock fwknopd reads it alike.

Rule: what fwknopd makes of a file is asked of fwknopd itself (`fwknopd --dump-config`), never remembered.
"""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logknock.access_conf import (
    _INCLUDES,
    _KNOWN,
    MAX_FILES,
    MAX_LINE,
    Imported,
    Listening,
    UnreadError,
    convert,
    read_listening,
)
from logknock.config import load
from logknock.spa import MAX_SPA_KEYS

from .peers import UNPACKED

KEY, HMAC = "HvUtIOramehLGKimD4ECXOzinaH4h3U8H1WXum7b54Q=", "DLeLf93a3yBT2vhEpM+dWlirGta5GU+jdyG5uXp4461HgOtbqMem4g=="
KEYS = f"KEY_BASE64 {KEY}\nHMAC_KEY_BASE64 {HMAC}\n"
PORTS = "OPEN_PORTS tcp/22\n"
ANY = f"SOURCE ANY\n{KEYS}"
WHOLE = ANY + PORTS


class Memory:
    """Files that are included, by path."""

    def __init__(self, **files: str) -> None:
        self.files = {f"/{name.replace('_slash_', '/').replace('_dot_', '.')}": text for name, text in files.items()}

    def read(self, path: str) -> str:
        try:
            return self.files[path]
        except KeyError:
            raise UnreadError("cannot be read: No such file or directory") from None

    def folder(self, path: str) -> list[str]:
        return sorted(name for name in self.files if name.startswith(f"{path.rstrip('/')}/"))


def imported(text: str, **files: str) -> Imported:
    return convert(text, "access.conf", Memory(**files), Listening())


def only_client(text: str) -> dict[str, Any]:
    """What the configuration says of the one client in it."""
    found = imported(text)
    assert found.errors == ()
    (door,) = tomllib.loads(found.toml)["clients"].values()
    (client,) = door.values()
    assert isinstance(client, dict)
    return client


# ---- what a stanza becomes


def test_a_stanza_becomes_a_client_of_a_door() -> None:
    said = "FW_ACCESS_TIMEOUT 45\nMAX_FW_TIMEOUT 90\nREQUIRE_SOURCE_ADDRESS Y\nREQUIRE_USERNAME anna\n"
    text = f"SOURCE 192.0.2.0/24,198.51.100.7\nOPEN_PORTS TCP/22, udp/1194\nHMAC_DIGEST_TYPE SHA512\n{KEYS}{said}"
    assert tomllib.loads(imported(text).toml) == {
        "doors": {"fwknop": {"opens": ["22/tcp", "1194/udp"], "spa": {}, "timeout": "45s"}},
        "clients": {
            "fwknop": {
                "client-1": {
                    "key_base64": KEY,
                    "hmac_key_base64": HMAC,
                    "hmac": "sha512",
                    "allow": ["22/tcp", "1194/udp"],
                    "require_source": True,
                    "max_age": "120s",
                    "max_timeout": "90s",
                    "user": "anna",
                    "source": ["192.0.2.0/24", "198.51.100.7/32"],
                }
            }
        },
    }


def test_stanzas_with_other_timeouts_are_clients_of_other_doors() -> None:
    other = (
        WHOLE.replace("QUJ", "").replace(KEY, f"Z{KEY[1:]}").replace(HMAC, f"Z{HMAC[1:]}") + "FW_ACCESS_TIMEOUT 60\n"
    )
    doors = tomllib.loads(imported(WHOLE + other).toml)["doors"]
    assert {name: door["timeout"] for name, door in doors.items()} == {"fwknop-30s": "30s", "fwknop-60s": "60s"}


@pytest.mark.parametrize(
    ("comment", "name"),
    [
        pytest.param("# Anna's laptop\n", "Anna-s-laptop", id="the comment just above, as far as a name may have it"),
        pytest.param("# anna\n\n", "client-1", id="a comment further above is of something else"),
        pytest.param(f"# {'a' * 60}\n", "client-1", id="a long comment is no name"),
        pytest.param("#########\n", "client-1", id="a line of signs is no name"),
        pytest.param("# \N{SNOWMAN}\n", "client-1", id="a comment without a letter is no name"),
    ],
)
def test_a_client_is_named_after_a_comment_or_by_its_number(comment: str, name: str) -> None:
    assert list(tomllib.loads(imported(comment + WHOLE).toml)["clients"]["fwknop"]) == [name]


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        pytest.param(
            "RESTRICT_PORTS udp/53\nOPEN_PORTS tcp/22,udp/53\n", "allow", ["22/tcp"], id="but for RESTRICT_PORTS"
        ),
        pytest.param("OPEN_PORTS tcp/23\nOPEN_PORTS tcp/24\n", "allow", ["24/tcp"], id="the last of two counts"),
        pytest.param("KEY sixteen letters!\n", "key", "sixteen letters!", id="a passphrase after a key in base64"),
        pytest.param(
            "KEY: seventeen letters;\n", "key", "seventeen letters", id="a colon before and a semicolon behind"
        ),
        pytest.param('KEY "quoted" and "so" on \n', "key", '"quoted" and "so" on ', id="quotes and blanks at its end"),
        pytest.param("KEY seventeen # letters\n", "key", "seventeen # letters", id="no comment begins behind a value"),
        pytest.param("REQUIRE_SOURCE yes\n", "require_source", True, id="the short name of REQUIRE_SOURCE_ADDRESS"),
        pytest.param("MAX_FW_TIMEOUT 100000\n", "max_timeout", "65536s", id="no packet can ask for more"),
    ],
)
def test_a_variable_is_read_as_fwknopd_reads_it(line: str, key: str, value: object) -> None:
    assert only_client(WHOLE + line)[key] == value


def test_a_key_that_is_no_text_is_written_in_base64() -> None:
    key = "sixteen \N{LATIN SMALL LETTER U WITH DIAERESIS} letters"
    found = only_client(f"SOURCE ANY\n{PORTS}KEY {key}\nHMAC_KEY_BASE64 {HMAC}\n")
    assert "key" not in found
    assert found["key_base64"] == "c2l4dGVlbiDDvCBsZXR0ZXJz"


def test_a_longer_timeout_than_the_most_is_the_most() -> None:
    """As fwknopd does ("honoring MAX_FW_TIMEOUT")."""
    assert 'timeout = "300s"' in imported(WHOLE + "FW_ACCESS_TIMEOUT 600\n").toml


# ---- what is refused by name

REFUSED = [
    pytest.param("", ANY, "OPEN_PORTS: is missing", id="any port"),
    pytest.param("", f"SOURCE ANY\n{PORTS}KEY_BASE64 {KEY}\n", "HMAC_KEY: is missing", id="no HMAC"),
    pytest.param("ENCRYPTION_MODE legacy\n", WHOLE, "ENCRYPTION_MODE: 'legacy'", id="legacy IV"),
    pytest.param("ENCRYPTION_MODE CTR\n", WHOLE, "ENCRYPTION_MODE: 'CTR'", id="another mode"),
    pytest.param("FORCE_NAT 192.168.1.1 22\n", WHOLE, "FORCE_NAT: it opens what lies behind", id="NAT"),
    pytest.param("FORCE_SNAT 192.168.1.1\n", WHOLE, "FORCE_SNAT: ", id="SNAT"),
    pytest.param("FORCE_MASQUERADE Y\n", WHOLE, "FORCE_MASQUERADE: ", id="masquerading"),
    pytest.param("FORWARD_ALL Y\n", WHOLE, "FORWARD_ALL: ", id="forwarding"),
    pytest.param("DISABLE_DNAT Y\n", WHOLE, "DISABLE_DNAT: ", id="no DNAT"),
    pytest.param("CMD_CYCLE_OPEN /bin/true $IP\n", WHOLE, "CMD_CYCLE_OPEN: it runs a command", id="a command cycle"),
    pytest.param("ACCESS_EXPIRE 12/31/2030\n", WHOLE, "ACCESS_EXPIRE: it ends on a date", id="a date of its end"),
    pytest.param("ACCESS_EXPIRE_EPOCH 1900000000\n", WHOLE, "ACCESS_EXPIRE_EPOCH: ", id="a moment of its end"),
    pytest.param("DESTINATION 192.0.2.1\n", WHOLE, "DESTINATION: ", id="one address of the host"),
    pytest.param("RESTRICT_PORTS tcp/22\n", WHOLE, "RESTRICT_PORTS: nothing is left", id="nothing is left to open"),
    pytest.param("KEY short\n", WHOLE, "KEY: it has 5 bytes, and 16 are the least", id="a short key"),
    pytest.param(f"KEY {'k' * 33}\n", WHOLE, "KEY: it has 33 bytes, and 32 are the most", id="a long key"),
    pytest.param("HMAC_KEY short\n", WHOLE, "HMAC_KEY: it has 5 bytes", id="a short key for the HMAC"),
    pytest.param(f"HMAC_KEY {'k' * 129}\n", WHOLE, "HMAC_KEY: it has 129 bytes", id="a long key for the HMAC"),
    pytest.param(
        "", f"SOURCE ANY\n{PORTS}GPG_DECRYPT_ID ABCD1234\nGPG_DECRYPT_PW secret\n", "GPG_DECRYPT_ID: ", id="GPG alone"
    ),
]


@pytest.mark.parametrize(("line", "stanza", "reason"), REFUSED)
def test_what_is_not_done_here_is_refused_by_name_and_stays_as_a_comment(line: str, stanza: str, reason: str) -> None:
    found = imported(stanza + line)
    assert (found.clients, found.errors) == (0, ())
    assert any(finding.message.startswith(reason) for finding in found.left), found.left
    assert tomllib.loads(found.toml) == {}
    said = re.sub(r"\n# ", " ", found.toml)
    assert f"NOT CONVERTED: {reason}" in said
    assert all(each in found.toml for each in line.splitlines() if "KEY" not in each)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param("ENABLE_CMD_EXEC Y\nCMD_EXEC_USER nobody\n", "ENABLE_CMD_EXEC: a command", id="commands"),
        pytest.param("ENABLE_CMD_SUDO_EXEC Y\n", "ENABLE_CMD_SUDO_EXEC: a command", id="commands by sudo"),
        pytest.param("GPG_DECRYPT_ID ABCD1234\n", "GPG_DECRYPT_ID: packets", id="GPG beside a key"),
    ],
)
def test_what_a_client_could_do_besides_is_told_by_name(line: str, reason: str) -> None:
    found = imported(WHOLE + line)
    assert found.clients == 1
    assert [finding.message.startswith(reason) for finding in found.left] == [True]
    assert f"# NOT KEPT: {reason}" in found.toml


def test_what_is_switched_off_is_no_reason() -> None:
    off = "ENABLE_CMD_EXEC N\nFORWARD_ALL N\nFORCE_MASQUERADE N\nDESTINATION ANY\nENCRYPTION_MODE cbc\n"
    assert imported(WHOLE + off).left == ()


def test_two_clients_have_keys_of_their_own() -> None:
    """fwknopd would take the first stanza that fits the source."""
    found = imported(WHOLE.replace("ANY", "192.0.2.0/24") + WHOLE)
    assert found.clients == 1
    assert "the same key as in the stanza of line 1" in found.left[0].message


def test_more_clients_than_keys_may_be_are_refused() -> None:
    text = "".join(
        f"SOURCE ANY\n{PORTS}KEY the key of client {number:3}\nHMAC_KEY its other key {number:7}\n"
        for number in range(MAX_SPA_KEYS + 2)
    )
    found = imported(text)
    assert (found.clients, len(found.left)) == (MAX_SPA_KEYS, 2)


# ---- what is an error, with its line

WRONG = [
    pytest.param("OPEN_PORTS tcp/22,\n", "is no service", id="a trailing comma"),
    pytest.param("OPEN_PORTS tcp/22-25\n", "'22-25' is no port", id="a range, of which fwknopd opens the first port"),
    pytest.param("OPEN_PORTS tcp/0\n", "'0' is no port", id="port 0"),
    pytest.param("OPEN_PORTS tcp/22 # ssh\n", "is no port", id="a comment behind a value"),
    pytest.param("OPEN_PORTS = tcp/22\n", "is no service", id="a sign between the two"),
    pytest.param("OPEN_PORTS icmp/1\n", "is no service", id="another protocol"),
    pytest.param("OPEN_PORTS\n", "says nothing", id="no value"),
    pytest.param("open_ports tcp/22\n", "is no variable of access.conf", id="small letters, which would open any port"),
    pytest.param("PERMIT_CLIENT_PORTS Y\n", "is no variable of access.conf", id="what fwknopd passes over"),
    pytest.param("SOURCE 2001:db8::1\n", "is no IPv4 network", id="an IPv6 source"),
    pytest.param("SOURCE example.org\n", "is no IPv4 network", id="a name as a source"),
    pytest.param("FW_ACCESS_TIMEOUT 30s\n", "is no number of seconds", id="a unit"),
    pytest.param("FW_ACCESS_TIMEOUT -1\n", "is no number of seconds", id="a negative time"),
    pytest.param(f"FW_ACCESS_TIMEOUT {'9' * 400}\n", "is no number of seconds", id="a time of 400 digits"),
    pytest.param("REQUIRE_SOURCE_ADDRESS 1\n", "fwknopd takes '1' for N", id="what fwknopd takes for no"),
    pytest.param("HMAC_DIGEST_TYPE sha3\n", "is no digest", id="a digest that there is not"),
    pytest.param("REQUIRE_USERNAME anna,bob\n", "no packet can have such a user", id="two users"),
    pytest.param("REQUIRE_USERNAME anna \n", "ends in a blank", id="a user with a blank behind"),
    pytest.param("KEY __CHANGEME__\n", "is not set", id="a key that is not set"),
    pytest.param("KEY_BASE64 abc*\n", "is not in base64", id="a key in another alphabet"),
    pytest.param("KEY_BASE64 abcde\n", "is not in base64", id="a key that is cut short"),
    pytest.param("KEY abc;def\n", "passes over what stands behind the ;", id="a key with a semicolon in it"),
    pytest.param(f"REQUIRE_USERNAME {'x' * MAX_LINE}\n", "a line of more than", id="an overlong line"),
    pytest.param("KEY abc\0def\n", "a NUL byte", id="a NUL byte"),
    pytest.param("%include keys.conf\n", "is no absolute path", id="a relative path"),
    pytest.param("%include /gone\n", "No such file", id="an included file that is not there"),
    pytest.param("%include_keys /gone\n", "No such file", id="a file of keys that is not there"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_what_fwknopd_refuses_or_takes_for_something_else_is_an_error_with_its_line(line: str, message: str) -> None:
    found = imported(WHOLE + line)
    assert found.toml == ""
    assert found.errors[0].line == 5
    assert message in found.errors[0].message


def test_an_encryption_key_that_is_the_hmac_s_too_is_an_error() -> None:
    found = imported(f"SOURCE ANY\n{PORTS}KEY one and the same key\nHMAC_KEY one and the same key\n")
    assert "is the encryption key too" in found.errors[0].message


def test_a_stanza_without_a_key_and_a_file_without_a_stanza_are_errors() -> None:
    assert "has no KEY" in imported(f"SOURCE ANY\n{PORTS}").errors[0].message
    assert "has no SOURCE" in imported("# nothing\n").errors[0].message
    assert "before any SOURCE" in imported(PORTS + WHOLE).errors[0].message


SECRETS = ("sixteen letters!", "another sixteen letters", KEY, HMAC, "hunter2")


@pytest.mark.parametrize(("line", "message"), [*WRONG, *(pytest.param(*case.values[::2]) for case in REFUSED)])
def test_no_key_is_in_what_is_said(line: str, message: str) -> None:
    found = imported(f"SOURCE ANY\nGPG_DECRYPT_PW hunter2\nKEY {SECRETS[0]}\nHMAC_KEY {SECRETS[1]}\n{PORTS}{line}")
    said = repr((found.errors, found.left, found.told))
    said += "".join(each for each in found.toml.splitlines() if each.startswith("#"))
    assert not any(secret in said for secret in SECRETS)


@pytest.mark.parametrize(
    "text",
    [
        "\udcff\udcfe",
        "SOURCE\n" * 9,
        "%include",
        "%include_folder \udcff/x",
        "\r",
        ";",
    ],
)
def test_any_bytes_end_in_a_finding_and_in_no_exception(text: str) -> None:
    """What is not UTF-8 comes in as surrogate escapes."""
    found = imported(text)
    assert (bool(found.errors), found.toml) == (True, "")


_WORDS = st.sampled_from(
    [
        *_KNOWN,
        *_INCLUDES,
        "ANY",
        "Y",
        "N",
        "tcp/22",
        "udp/0",
        "/a",
        "/d",
        "__CHANGEME__",
        "192.0.2.0/24",
        KEY,
        "#",
        ";",
        "=",
        ",",
    ]
)
_TEXT = st.text(
    st.characters(min_codepoint=0, max_codepoint=0x2FFF) | st.sampled_from("\udc80\udcff \t\r\0;:#"), max_size=40
)
_LINES = st.lists(st.lists(_WORDS | _TEXT, min_size=1, max_size=4).map(" ".join), max_size=12).map("\n".join)


@example("\N{NO-BREAK SPACE}", "\x1c", "\N{EM SPACE} KEY x")
@given(_LINES, _LINES, _LINES)
def test_whatever_stands_in_the_files_it_ends_in_a_configuration_or_in_findings(main: str, a: str, b: str) -> None:
    """What is written is TOML, and has as many clients as is said."""
    found = imported(main, a=a, d_slash_b_dot_conf=b)
    clients = tomllib.loads(found.toml).get("clients", {})
    assert sum(len(door) for door in clients.values()) == found.clients
    assert bool(found.toml) != bool(found.errors)
    read_listening(main, "fwknopd.conf")


def test_a_key_in_a_comment_is_not_shown_either() -> None:
    found = imported(f"{WHOLE}#KEY_BASE64 old{KEY}\n# HMAC_KEY: hunter2\n;\tKEY hunter3\n")
    comments = [line for line in found.toml.splitlines() if line.startswith("#|")]
    assert comments[-3:] == ["#| #KEY_BASE64 (not shown)", "#| # HMAC_KEY: (not shown)", "#| ;\tKEY (not shown)"]


def test_a_comment_stands_with_what_it_is_about() -> None:
    other = WHOLE.replace(KEY, f"Z{KEY[1:]}").replace(HMAC, f"Z{HMAC[1:]}")
    comments = [line for line in imported(f"{WHOLE}# old\n\n# bob\n{other}").toml.split("\n") if line[:1] in ("#", "[")]
    assert comments.index("#| # old") < comments.index("[clients.fwknop.client-1]") < comments.index("#| # bob")


# ---- files that are included


def test_a_stanza_goes_on_behind_an_include_and_the_order_is_that_of_reading() -> None:
    other = WHOLE.replace(KEY, f"Z{KEY[1:]}").replace(HMAC, f"Z{HMAC[1:]}")
    found = imported(f"{ANY}%include /other\nOPEN_PORTS tcp/23\n", other=other)
    clients = tomllib.loads(found.toml)["clients"]["fwknop"]
    assert [client["allow"] for client in clients.values()] == [["23/tcp"], ["22/tcp"]]


def test_a_folder_s_files_that_end_in_conf_are_included() -> None:
    other = WHOLE.replace(KEY, f"Z{KEY[1:]}").replace(HMAC, f"Z{HMAC[1:]}")
    found = imported(f"{WHOLE}%include_folder /d\n", d_slash_a_dot_conf=other, d_slash_b_dot_txt="nonsense")
    assert found.errors == ()
    assert found.clients == 2


def test_keys_of_a_file_of_their_own_are_the_stanza_s() -> None:
    found = imported(f"SOURCE ANY\n{PORTS}%include_keys /keys\n", keys=f"# mine\n{KEYS}")
    assert found.clients == 1
    wrong = imported(f"SOURCE ANY\n{PORTS}%include_keys /keys\n", keys=f"{KEYS}OPEN_PORTS tcp/23\n")
    assert (wrong.errors[0].file, wrong.errors[0].line) == ("/keys", 3)
    assert "is no key" in wrong.errors[0].message


def test_files_that_include_each_other_end() -> None:
    found = imported(f"{WHOLE}%include /a\n", a="%include /b\n", b="%include /a\n")
    assert "includes itself" in found.errors[0].message
    deep = imported(f"{WHOLE}%include /a\n", a="%include /b\n", b="%include /c\n", c="%include /d\n", d="")
    assert "files deep" in deep.errors[0].message
    many = imported(WHOLE + "%include /a\n" * (MAX_FILES + 5), a="")
    assert f"{MAX_FILES} files are the most" in many.errors[0].message


# ---- fwknopd.conf


@pytest.mark.parametrize(
    ("line", "ports"),
    [
        pytest.param("#PCAP_FILTER udp port 1;", ("62201/udp",), id="nothing: the default"),
        pytest.param("PCAP_FILTER udp port 4711;", ("4711/udp",), id="a port"),
        pytest.param("PCAP_FILTER   udp dst portrange 10000-65535;", ("10000-65535/udp",), id="a range"),
        pytest.param("PCAP_FILTER udp and dst port 53 or icmp", ("53/udp", "icmp"), id="one of several"),
        pytest.param("PCAP_FILTER port 4711", ("4711/udp", "4711/tcp"), id="any protocol"),
        pytest.param("ENABLE_UDP_SERVER Y;\nUDPSERV_PORT 4712;", ("4712/udp",), id="a server of its own"),
    ],
)
def test_where_packets_come_in_is_read_from_fwknopd_s_own_configuration(line: str, ports: tuple[str, ...]) -> None:
    found = read_listening(line + "\n", "fwknopd.conf")
    assert (found.ports, found.left) == (ports, ())


@pytest.mark.parametrize(
    "text", ["udp port 0", "udp port 70000", "udp", "host 192.0.2.1", "udp portrange 9-1", "udp portrange 1-2-3", "or"]
)
def test_a_filter_that_says_something_else_is_left_to_do(text: str) -> None:
    found = read_listening(f"PCAP_FILTER {text};\n", "fwknopd.conf")
    assert found.ports == ("62201/udp",)
    assert "is not understood" in found.left[0].message


def test_the_age_of_a_packet_is_kept_as_far_as_it_can_be() -> None:
    assert read_listening("MAX_SPA_PACKET_AGE 60;\n", "f").max_age == 60
    found = read_listening("MAX_SPA_PACKET_AGE 864000;\n", "f")
    assert (found.max_age, len(found.left)) == (3600, 1)


# ---- fwknopd itself


def dump(folder: Path, text: str) -> tuple[int, list[dict[str, str]]]:
    """What the stock fwknopd makes of it: its exit status, and each stanza's variables."""
    path = folder / "access.conf"
    path.write_bytes(text.encode(errors="surrogateescape"))
    path.chmod(0o600)
    argv = [f"{UNPACKED}/usr/sbin/fwknopd", "-D", "-f", "-c", f"{UNPACKED}/etc/fwknop/fwknopd.conf", "-a", str(path)]
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    stanzas: list[dict[str, str]] = []
    for line in done.stdout.decode(errors="replace").partition("access settings:")[2].splitlines():
        name, sign, value = (part.strip() for part in line.partition(":  "))
        if name.startswith("SOURCE ("):
            stanzas.append({"SOURCE": value})
        elif sign:
            stanzas[-1][name] = value
    return done.returncode, stanzas


SAME = [
    pytest.param(WHOLE, id="the least"),
    pytest.param(WHOLE.replace("\n", "\r\n"), id="lines that end as on Windows"),
    pytest.param(
        f"  {WHOLE}\tFW_ACCESS_TIMEOUT: 45; # seconds\nMAX_FW_TIMEOUT   90\n", id="blanks, a colon, a semicolon"
    ),
    pytest.param(WHOLE + "KEY seventeen letters \nHMAC_KEY  eighteen of # them\n", id="passphrases"),
    pytest.param(WHOLE + "FW_ACCESS_TIMEOUT 0\n", id="no time is the default"),
    pytest.param(WHOLE + "REQUIRE_USERNAME anna\nREQUIRE_SOURCE_ADDRESS yes\n", id="who and from where"),
    pytest.param("; a comment\n# another\n" + WHOLE + "OPEN_PORTS udp/53 , TCP/443\n", id="repeated: the last counts"),
]


@pytest.mark.parametrize("text", SAME)
def test_fwknopd_reads_the_same(text: str, tmp_path: Path) -> None:
    status, (theirs,) = dump(tmp_path, text)
    assert status == 0
    config = tmp_path / "logknock.toml"
    config.write_text(imported(text).toml)
    config.chmod(0o600)
    loaded = load(config)
    (key,) = loaded.spa_keys
    assert {f"{proto.lower()}/{port}" for proto, port in re.findall(r"(\w+)/(\d+)", theirs["OPEN_PORTS"])} == {
        "/".join(reversed(str(service).split("/"))) for service in key.allow
    }
    assert (int(theirs["KEY_LEN"]), int(theirs["HMAC_KEY_LEN"])) == (len(key.key), len(key.hmac_key))
    assert int(theirs["FW_ACCESS_TIMEOUT"]) == loaded.doors[0].timeout
    assert int(theirs["MAX_FW_TIMEOUT"]) == key.max_timeout
    assert theirs["REQUIRE_SOURCE_ADDRESS"] == ("Yes" if key.require_source else "No")
    assert theirs["REQUIRE_USERNAME"] == (key.user or "<not set>")


# Of what is an error here: what fwknopd goes on with, and what it makes of it.
TAKEN = {
    "a range, of which fwknopd opens the first port": ("OPEN_PORTS", "tcp/22-25"),
    "port 0": ("OPEN_PORTS", "tcp/0"),
    "a comment behind a value": ("OPEN_PORTS", "tcp/22 # ssh"),
    "small letters, which would open any port": ("OPEN_PORTS", "tcp/22"),
    "what fwknopd passes over": ("OPEN_PORTS", "tcp/22"),
    "a unit": ("FW_ACCESS_TIMEOUT", "30"),
    "what fwknopd takes for no": ("REQUIRE_SOURCE_ADDRESS", "No"),
    "two users": ("REQUIRE_USERNAME", "anna,bob"),
    "a user with a blank behind": ("REQUIRE_USERNAME", "anna"),
    "a key with a semicolon in it": ("KEY_LEN", "3"),
    "a NUL byte": ("KEY_LEN", "3"),
    "a file of keys that is not there": ("KEY_LEN", "32"),
    "a key that is cut short": ("KEY_LEN", "3"),
}


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_what_is_an_error_here_fwknopd_refuses_or_takes_for_something_else(
    line: str, message: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    status, stanzas = dump(tmp_path, WHOLE + line)
    name = request.node.callspec.id
    if name in TAKEN:
        variable, value = TAKEN[name]
        assert (status, stanzas[0][variable]) == (0, value)
    else:
        assert status != 0 or not stanzas
