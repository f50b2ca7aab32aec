"""`logknock enroll`, `keygen`, `clients` and `revoke-client` as a person or a script meets them, beside no daemon.

What is printed is used: by our client's profiles, by an authenticator (oathtool), by a reader of QR codes (zbar).
"""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
import tomllib
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import zbar
from PIL import Image

from logknock import profiles
from logknock.config import Config, load
from logknock.config_values import WrongError
from logknock.doctor.case import Case
from logknock.doctor.doors import clients
from logknock.doctor.host import Host
from logknock.enrolment import reached_at
from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE, USAGE
from logknock.knock import Service
from logknock.lockout import shut
from logknock.store import DATABASE, Authentic, open_store
from logknock.totp import sequence_of

from .config_files import DOOR, write

CONFIG = """
[totp]
host = "gate.example"
[doors.ssh]
opens = ["22/tcp"]
totp = {}
[doors.phone]
opens = ["22/tcp"]
totp = {code = 6}
[doors.vpn]
opens = ["22/tcp", "1194/udp"]
spa = {}
"""

# A time whose code begins with a zero is among these steps, as are others.
STEPS = range(59_000_000, 59_000_040)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A configuration of doors without clients; state and runtime are beside it, and no daemon."""
    return write(tmp_path, f'{CONFIG}[paths]\nstate = "{tmp_path}/state"\nruntime = "{tmp_path}/run"\n')


def run(path: Path, *words: str | Path, code: int = 0, start: tuple[str, ...] = ("-m", "logknock")) -> tuple[str, str]:
    """A command with this configuration, its standard output and error; a minute is more than it may take."""
    command = [sys.executable, *start, *map(str, words), "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def answer(path: Path, *words: str | Path) -> dict[str, Any]:
    """The same with --json."""
    found: dict[str, Any] = json.loads(run(path, *words, "--json")[0])
    return found


def profile(text: str, tmp_path: Path) -> profiles.Profile:
    """The one profile that a client.toml of this text has."""
    (found,) = profiles.load(write(tmp_path, text, "client.toml")).by_name.values()
    return found


def door(config: Config, name: str) -> Any:
    return next(door for door in config.totp if door.door == name)


def files(path: Path) -> list[str]:
    folder = path.parent / "clients"
    return sorted(os.listdir(folder)) if folder.exists() else []


# ---- enroll


@pytest.mark.parametrize("name", ["ssh", "phone"])
def test_all_that_is_printed_is_a_profile_that_derives_what_the_server_does(
    path: Path, name: str, tmp_path: Path
) -> None:
    """As it stands in a file: the rest is comments. Every knock of forty steps is the same."""
    out, _ = run(path, "enroll", name, "laptop", "--address", "192.0.2.1")
    found = profile(out, tmp_path)
    assert found.hosts == ("192.0.2.1",)
    assert found.verify == Service.parse("22/tcp"), "or nobody is told that a knock opened nothing"
    assert found.tries == {"ssh": 3, "phone": 4}[name], "T21: as many steps as may be asked for"
    ours = door(load(path), name)
    assert found.totp is not None
    assert found.totp.host == "gate.example"
    assert files(path) == [f"{name}.laptop.toml"]
    for step in STEPS:
        assert sequence_of(found.totp, found.totp.clients[0], step) == sequence_of(ours, ours.clients[0], step)


def test_a_profile_is_called_after_host_and_door(path: Path, tmp_path: Path) -> None:
    """So that those of several doors of a host can stand in one file."""
    one, other = (answer(path, "enroll", name, "laptop")["profile"] for name in ("ssh", "phone"))
    both = profiles.load(write(tmp_path, f"{one}\n{other}", "client.toml"))
    assert {name: found.hosts for name, found in both.by_name.items()} == {
        "gate-ssh": ("gate.example",),
        "gate-phone": ("gate.example",),
    }
    assert profile(answer(path, "enroll", "ssh", "b", "--address", "2001:db8::1")["profile"], tmp_path).name == "ssh"


def test_an_authenticator_shows_the_code_that_the_server_spells(path: Path) -> None:
    """RFC 6238 by another program, from nothing but the URI; and the arithmetic is that of the line."""
    told = answer(path, "enroll", "phone", "anna")
    uri = urlsplit(told["uri"])
    query = {key: value for key, (value,) in parse_qs(uri.query).items()}
    assert (uri.scheme, uri.netloc, unquote(uri.path)) == ("otpauth", "totp", "/gate.example:anna@phone")
    assert {key: query[key] for key in ("algorithm", "digits", "period")} == {
        "algorithm": "SHA1",
        "digits": "6",
        "period": "30",
    }
    ours = door(load(path), "phone")
    command = ["oathtool", "--totp", "--base32", query["secret"], "--digits=6", f"--window={len(STEPS) - 1}"]
    codes = subprocess.check_output([*command, f"--now=@{STEPS[0] * 30}"], text=True).split()
    assert len(codes) == len(STEPS)
    bases = list(map(int, re.findall(r"2\d{4}(?=[,:])", told["by_hand"].partition(" is ")[0])))
    assert bases == [21_000, 21_100, 21_200]
    for step, code in zip(STEPS, codes, strict=True):
        by_hand = [base + int(code[at : at + 2]) for base, at in zip(bases, (0, 2, 4), strict=True)]
        assert [service.port for service in sequence_of(ours, ours.clients[0], step)] == by_hand
    assert told["by_hand"].endswith("12 34 56 is 21012/tcp, 21134/tcp, 21256/tcp")


def test_the_uri_of_a_totp_door_says_all_that_a_client_has_to_know(path: Path) -> None:
    told = answer(path, "enroll", "ssh", "laptop")
    query = {key: value for key, (value,) in parse_qs(urlsplit(told["uri"]).query).items()}
    said = tomllib.loads(told["profile"])["profiles"]["gate-ssh"]["totp"]
    assert {key: query[key] for key in ("secret", "door", "host")} == {
        key: said[key] for key in ("secret", "door", "host")
    }
    assert (query["ports"].split(","), query["length"], query["period"]) == (said["ports"], "4", "30")
    assert query["algorithm"] == "SHA256"


def test_the_secret_that_an_app_is_to_be_given_is_told_from_the_client_s_own(path: Path) -> None:
    """In a line of its own, for whoever cannot scan: 32 letters, those of the URI. A TOTP door's is for no app."""
    out, _ = run(path, "enroll", "phone", "anna")
    (shown,) = re.findall(r"^# for the authenticator app, where it cannot scan: (.*)$", out, re.MULTILINE)
    assert re.fullmatch(r"(?:[A-Z2-7]{4} ){7}[A-Z2-7]{4}", shown)
    assert f"secret={shown.replace(' ', '')}&" in out
    other, _ = run(path, "enroll", "ssh", "anna")
    assert "for the authenticator app" not in other
    assert "# for programs that knock; an authenticator app needs a code door\n# otpauth://" in other
    assert "for programs" not in out
    told = answer(path, "enroll", "phone", "ben")
    assert f"secret={told['app'].replace(' ', '')}&" in told["uri"]


def test_every_client_has_a_secret_of_its_own(path: Path) -> None:
    """Of 32 bytes, in base32."""
    for name in ("a", "b", "c"):
        run(path, "enroll", "ssh", name)
    secrets = {client.secret for client in door(load(path), "ssh").clients}
    assert [len(secret) for secret in secrets] == [32, 32, 32]


def test_a_client_is_enrolled_once(path: Path, tmp_path: Path) -> None:
    """T18: a second secret would leave the first one's holder out, or in. One clear line, and all is as it was."""
    run(path, "enroll", "ssh", "laptop")
    before = (tmp_path / "clients/ssh.laptop.toml").read_text()
    out, err = run(path, "enroll", "ssh", "laptop", code=FAILURE)
    assert out == ""
    assert err.splitlines() == [
        f"logknock: client laptop of door ssh is there already: {tmp_path}/clients/ssh.laptop.toml:2",
        "hint: `logknock revoke-client ssh laptop` takes it back; or name another one",
    ]
    assert (tmp_path / "clients/ssh.laptop.toml").read_text() == before


def test_a_file_that_is_in_the_way_is_left_alone(path: Path, tmp_path: Path) -> None:
    """Clients `a.b` of door c and `b` of door c.a would have one name: the second is refused."""
    write(tmp_path, "# mine\n", "clients/ssh.laptop.toml")
    out, err = run(path, "enroll", "ssh", "laptop", code=FAILURE)
    assert (out, "is there already, and is never overwritten" in err) == ("", True)
    assert (tmp_path / "clients/ssh.laptop.toml").read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(("enroll", "shh", "a"), USAGE, "there is no door shh", id="no such door"),
        pytest.param(("enroll", "vpn", "a"), USAGE, "`logknock keygen vpn CLIENT` is for it", id="an SPA door"),
        pytest.param(("keygen", "ssh", "a"), USAGE, "`logknock enroll ssh CLIENT` is for it", id="a TOTP door"),
        pytest.param(("enroll", "ssh", "a/b"), USAGE, "'a/b' is no name for a client", id="no name"),
        pytest.param(("keygen", "vpn", "../a"), USAGE, "'../a' is no name for a client", id="no name for a file"),
        pytest.param(("enroll", "ssh", ""), USAGE, "'' is no name for a client", id="no letter"),
        pytest.param(("revoke-client", "ssh", ""), USAGE, "'' is no name for a client", id="nobody"),
        pytest.param(("enroll", "ssh", "a", "--qr", "a.gif"), USAGE, "its name ends in .svg or .png", id="no picture"),
        pytest.param(("keygen", "vpn", "a"), USAGE, "which of them may the client open?", id="no service named"),
        pytest.param(
            ("keygen", "vpn", "a", "--allow", "80/tcp"), USAGE, "door vpn does not open 80/tcp", id="another service"
        ),
        pytest.param(("keygen", "vpn", "a", "--allow", "22"), USAGE, "22", id="no service"),
        *(
            pytest.param(("keygen", "vpn", "a", "--allow", "22/tcp", "--from", word), USAGE, why, id=f"from {word}")
            for word, why in (
                ("0.0.0.0", "0.0.0.0 is the unspecified address: no door opens for it"),
                ("127.0.0.1", "127.0.0.1 is a loopback address: no door opens for it"),
                ("ff02::1", "ff02::1 is a multicast address: no door opens for it"),
                ("", "'' is no IP address"),
            )
        ),
        *(
            pytest.param((*words, "--address", word), USAGE, f"{word!r} is no", id=f"{words[0]} for {word!r}")
            for words in (("keygen", "vpn", "a", "--allow", "22/tcp"), ("enroll", "ssh", "a"))
            for word in ("", "gate\nKEY x")
        ),
        pytest.param(("clients", "shh"), USAGE, "there is no door shh", id="clients of no door"),
        pytest.param(("revoke-client", "ssh", "a"), FAILURE, "door ssh has no client a", id="no such client"),
        pytest.param(("revoke-client", "ssh", "a"), FAILURE, "`logknock enroll ssh CLIENT` makes one", id="none yet"),
        pytest.param(("revoke-client", "phone", "a"), FAILURE, "`logknock enroll phone CLIENT`", id="no code yet"),
        pytest.param(("revoke-client", "vpn", "a"), FAILURE, "keygen vpn CLIENT --allow", id="no keys yet"),
    ],
)
def test_what_cannot_be_is_one_clear_error_and_nothing_is_written(
    path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    out, err = run(path, *words, code=code)
    assert said in err
    assert (out, files(path)) == ("", [])


def test_where_a_client_finds_this_host_is_a_name_or_an_address() -> None:
    """It goes as it stands into a .fwknoprc, and from there into a command."""
    for right in ("gate", "gate.example", "gate.example.", "my_gate", "192.0.2.1", "2001:db8::1", "7.example"):
        assert reached_at(right) == right
    longest = "a." * 126 + "a"
    assert reached_at(longest) == longest
    for wrong in (
        *("a b", "-x", "gate;id", "gate\n", "a..b", ".", "a-", "gäte", "x" * 64, f"a{longest}", "192.0.2.999", "7"),
        *("gate:22", "[2001:db8::1]", "2001:db8::1%eth0", "192.0.2.0/24", "::ffff:192.0.2.1"),
    ):
        with pytest.raises(WrongError):
            reached_at(wrong)


def test_a_door_that_takes_no_clients_says_what_would(tmp_path: Path) -> None:
    path = write(tmp_path, DOOR)
    _, err = run(path, "enroll", "ssh", "laptop", code=USAGE)
    assert err.splitlines() == [
        "logknock: door ssh takes no clients: it has no totp = {}",
        "hint: give the door totp = {}",
    ]
    _, err = run(path, "revoke-client", "ssh", "laptop", code=FAILURE)
    assert err.splitlines()[-1] == "hint: it takes no clients: whoever knocks its sequence passes"


def test_a_configuration_that_is_wrong_gets_no_client(path: Path) -> None:
    path.write_text(path.read_text() + "[firewall]\nrate = 0\n")
    _, err = run(path, "enroll", "ssh", "laptop", code=BAD_CONFIG)
    assert "firewall.rate: 0 is out of range" in err
    assert files(path) == []


def test_where_no_daemon_runs_the_next_step_is_said(path: Path) -> None:
    """And with --no-reload no daemon is asked."""
    assert run(path, "enroll", "ssh", "a")[1].splitlines() == [
        "logknock: no daemon runs: it reads this when it starts",
        "hint: `logknock rules apply`, before it does",
    ]
    assert run(path, "enroll", "ssh", "b", "--no-reload")[1].splitlines() == [
        "logknock: the running daemon does not know of it yet",
        "hint: `logknock rules apply`, then `logknock reload`",
    ]


AS_NOBODY = """
import os
import logknock.cli.enroll, logknock.spa
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
logknock.cli.main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_write_there_is_told_so() -> None:
    """Exit code 77. The command is loaded first: that user need not be able to read this tree."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = write(folder, CONFIG)
        os.chown(path, 65534, 65534)
        out, err = run(path, "enroll", "ssh", "laptop", code=NO_PERMISSION, start=("-c", AS_NOBODY))
        assert out == ""
        assert f"{folder}/clients/ssh.laptop.toml: cannot be written: Permission denied" in err


# ---- QR codes


def read_code(picture: Image.Image) -> list[str]:
    """What a reader of QR codes finds in it."""
    grey = picture.convert("L")
    found = zbar.Image(grey.width, grey.height, "Y800", grey.tobytes())
    zbar.ImageScanner().scan(found)
    # Of other kinds of codes it sees one now and then where there is none.
    return [symbol.data for symbol in found if symbol.type == zbar.Symbol.QRCODE]


def drawn(text: str) -> Image.Image:
    """Half blocks as a terminal shows them: light on dark."""
    lines = text.splitlines()
    picture = Image.new("L", (len(lines[0]), 2 * len(lines)))
    for y, line in enumerate(lines):
        for x, block in enumerate(line):
            picture.putpixel((x, 2 * y), 255 * (block in "█▀"))
            picture.putpixel((x, 2 * y + 1), 255 * (block in "█▄"))
    return picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.NEAREST)


@pytest.mark.parametrize("name", ["ssh", "phone"])
def test_a_picture_of_the_qr_code_says_the_uri(path: Path, name: str, tmp_path: Path) -> None:
    """As PNG and as SVG, for their owner alone."""
    png, svg = tmp_path / "anna.png", tmp_path / "ben.svg"
    uris = [answer(path, "enroll", name, file.stem, "--qr", file)["uri"] for file in (png, svg)]
    rendered = subprocess.check_output(["rsvg-convert", str(svg), "--background-color=white"])
    assert read_code(Image.open(png)) == [uris[0]]
    assert read_code(Image.open(io.BytesIO(rendered))) == [uris[1]]
    assert [file.stat().st_mode & 0o777 for file in (png, svg)] == [0o600, 0o600]


def test_a_picture_is_never_written_over_another_file(path: Path, tmp_path: Path) -> None:
    """And no client is made then."""
    (tmp_path / "x.png").write_text("x")
    _, err = run(path, "enroll", "ssh", "laptop", "--qr", tmp_path / "x.png", code=FAILURE)
    assert "is there already, and is never overwritten" in err
    assert files(path) == []
    assert (tmp_path / "x.png").read_text() == "x"


def test_a_picture_that_cannot_be_written_keeps_nothing_back(path: Path, tmp_path: Path) -> None:
    """The client is there: what it needs is printed all the same."""
    out, err = run(path, "enroll", "ssh", "laptop", "--qr", tmp_path / "no" / "x.png", code=FAILURE)
    assert "x.png: cannot be written: No such file or directory" in err
    assert profile(out, tmp_path).totp is not None


def test_the_qr_code_in_a_pipe_is_part_of_a_client_toml(path: Path, tmp_path: Path) -> None:
    out, _ = run(path, "enroll", "phone", "anna", "--qr", "-")
    assert profile(out, tmp_path).totp is not None
    code = "\n".join(line.removeprefix("# ") for line in out.splitlines() if set(line) <= set("# █▀▄"))
    (uri,) = read_code(drawn(code.strip("\n")))
    assert f"# {uri}" in out.splitlines()


def in_terminal(*command: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        try:
            while some := os.read(ours, 65_536):
                shown += some
        except OSError:  # the other end is closed
            pass
        process.wait(60)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_shows_the_qr_code_whatever_its_colours(path: Path) -> None:
    """Light on dark, said with each line."""
    shown = in_terminal(sys.executable, "-m", "logknock", "enroll", "ssh", "laptop", "-c", str(path))
    lines = re.findall(r"\x1b\[97m\x1b\[40m([█▀▄ ]+)\x1b\[0m", shown)
    (uri,) = read_code(drawn("\n".join(lines)))
    assert f"# {uri}" in shown


WITHOUT = ("-c", "import sys; sys.modules['segno'] = None; from logknock.cli import main; main()")


def test_without_segno_all_but_the_qr_code_is_there(path: Path, tmp_path: Path) -> None:
    """One line says which package is missing; asked for, it is exit code 69."""
    out, err = run(path, "enroll", "ssh", "a", "--qr", tmp_path / "a.png", code=UNAVAILABLE, start=WITHOUT)
    assert "no QR code: this needs the Python module segno" in err
    assert "install the package python3-segno" in err
    assert profile(out, tmp_path).totp is not None
    assert not (tmp_path / "a.png").exists()
    shown = in_terminal(sys.executable, *WITHOUT, "enroll", "ssh", "b", "-c", str(path))
    assert "# otpauth://" in shown
    assert files(path) == ["ssh.a.toml", "ssh.b.toml"]


# ---- keygen


def test_both_sides_have_the_same_keys(path: Path, tmp_path: Path) -> None:
    """The host's table loads beside the configuration, the profile in our client, and fwknop's says the same."""
    told = answer(path, "keygen", "vpn", "laptop", "--allow", "22/tcp", "--allow", "1194/udp", "--address", "192.0.2.1")
    assert files(path) == [], "only --write writes"
    write(tmp_path, told["table"], "clients/x.toml")
    (key,) = load(path).spa_keys
    assert (len(key.key), len(key.hmac_key), key.digest) == (32, 64, "sha256")
    asked = profile(told["profile"], tmp_path).spa
    assert asked is not None
    assert profile(told["profile"], tmp_path).verify == Service.parse("22/tcp")
    assert (asked.key, asked.hmac_key, asked.digest, asked.access) == (key.key, key.hmac_key, "sha256", key.allow)
    name, *lines = told["fwknoprc"].splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines)
    assert (b64decode(rows.pop("KEY_BASE64")), b64decode(rows.pop("HMAC_KEY_BASE64"))) == (key.key, key.hmac_key)
    assert name == "[vpn]"
    assert rows == {
        "SPA_SERVER": "192.0.2.1",
        "SPA_SERVER_PORT": "62201",
        "ACCESS": "tcp/22,udp/1194",
        "ALLOW_IP": "source",
        "USE_HMAC": "Y",
        "HMAC_DIGEST_TYPE": "sha256",
    }


def test_a_client_that_names_its_address_is_bound_to_it(path: Path, tmp_path: Path) -> None:
    """require_source refuses a packet that asks for whatever it comes from; so one of the two it is."""
    bound = answer(path, "keygen", "vpn", "a", "--allow", "22/tcp", "--from", "192.0.2.7", "--write")
    free = answer(path, "keygen", "vpn", "b", "--allow", "22/tcp", "--write")
    keys = {key.client: key.require_source for key in load(path).spa_keys}
    assert keys == {"a": True, "b": False}
    assert "ALLOW_IP          192.0.2.7\n" in bound["fwknoprc"]
    assert tomllib.loads(bound["profile"])["profiles"]["gate-vpn"]["spa"]["address"] == "192.0.2.7"
    assert tomllib.loads(free["profile"])["profiles"]["gate-vpn"]["spa"]["address"] == "source"
    over_udp = answer(path, "keygen", "vpn", "c", "--allow", "1194/udp")["profile"]
    assert "verify" not in over_udp, "which nothing can see the end of"
    assert (bound["file"], files(path)) == (str(tmp_path / "clients/vpn.a.toml"), ["vpn.a.toml", "vpn.b.toml"])


@pytest.mark.parametrize(
    ("ports", "rows", "port"),
    [
        pytest.param('"443/tcp", "53/udp"', {"SPA_SERVER_PORT": "53"}, "53/udp", id="UDP before TCP"),
        pytest.param('"443/tcp"', {"SPA_SERVER_PORT": "443", "SPA_SERVER_PROTO": "tcpraw"}, "443/tcp", id="TCP"),
        pytest.param('"icmp"', {"SPA_SERVER_PROTO": "icmp"}, "icmp", id="ICMP"),
        pytest.param('"10000-65535/udp"', {"RAND_PORT": "Y"}, "10000-65535/udp", id="any port"),
    ],
)
def test_packets_go_where_the_door_listens(
    path: Path, ports: str, rows: dict[str, str], port: str, tmp_path: Path
) -> None:
    path.write_text(path.read_text().replace("spa = {}", f"spa = {{ports = [{ports}]}}"))
    told = answer(path, "keygen", "vpn", "a", "--allow", "22/tcp", "--hmac", "sha3_512")
    said = dict(line.split(maxsplit=1) for line in told["fwknoprc"].splitlines()[1:])
    assert {key: said[key] for key in said if key in ("SPA_SERVER_PORT", "SPA_SERVER_PROTO", "RAND_PORT")} == rows
    assert said["HMAC_DIGEST_TYPE"] == "sha3_512"
    assert tomllib.loads(told["profile"])["profiles"]["gate-vpn"]["spa"]["port"] == port
    assert profile(told["profile"], tmp_path).spa is not None


def test_a_client_sends_to_its_own_door_s_ports(path: Path) -> None:
    """Of several SPA doors, with one whose ports come first; without a client, too."""
    path.write_text(path.read_text().replace("spa = {}", 'spa = {ports = ["62300/udp"]}'))
    more = '[doors.home]\nopens = ["80/tcp"]\nspa = {ports = ["443/udp", "icmp"]}\n'
    write(path.parent, f'{more}[doors.far]\nopens = ["81/tcp"]\nspa = {{ports = ["icmp"]}}\n', "conf.d/more.toml")
    ports = {}
    for name in ("vpn", "home", "far"):
        told = answer(path, "keygen", name, "a", *(["--allow", "22/tcp"] if name == "vpn" else []))
        ports[name] = tomllib.loads(told["profile"])["profiles"][f"gate-{name}"]["spa"]["port"]
    assert ports == {"vpn": "62300/udp", "home": "443/udp", "far": "icmp"}


def test_a_client_that_is_there_of_another_kind_of_door_is_not_to_be_taken_back(path: Path) -> None:
    """The door is wrong, whatever the name: it is not said how the good client goes."""
    run(path, "enroll", "ssh", "laptop")
    for words in (("keygen", "ssh", "laptop"), ("keygen", "ssh", "a/b")):
        assert run(path, *words, code=USAGE)[1].splitlines() == [
            "logknock: door ssh has no spa = {}",
            "hint: `logknock enroll ssh CLIENT` is for it",
        ]


def test_the_command_that_is_named_where_a_door_has_no_client_makes_one(path: Path, tmp_path: Path) -> None:
    """By `check`, before ssh is closed (T38), by the doctor and by revoke-client: each as it stands, and at once."""
    write(tmp_path, '[doors.one]\nopens = ["80/tcp"]\nspa = {ports = ["icmp"]}\n', "conf.d/one.toml")
    named = re.findall(r"^hint: `logknock (.* CLIENT.*)` makes one$", run(path, "check")[1], re.MULTILINE)
    assert named == [
        "enroll ssh CLIENT",
        "enroll phone CLIENT",
        "keygen vpn CLIENT --allow 22/tcp --allow 1194/udp --write",
        "keygen one CLIENT --write",
    ]
    for words in named:
        run(path, *words.replace("CLIENT", "anna").split())
    assert files(path) == ["one.anna.toml", "phone.anna.toml", "ssh.anna.toml", "vpn.anna.toml"]
    for file in (tmp_path / "clients").iterdir():
        file.unlink()
    config = load(path)
    found = [*clients(Case(config, Host(tmp_path)))]
    assert [each.remedy.partition(" -c ")[0] for each in found] == [
        f"logknock {words.replace('CLIENT', 'laptop')}" for words in named
    ]
    for words in named:
        one = replace(config, doors=tuple(door for door in config.doors if door.name.startswith(words.split()[1])))
        hints = [error.hint for error in shut(one, {one.doors[0].opens[0]})]
        assert hints == [f"`logknock {words}` makes one"]


# ---- standard output that takes nothing


def shell(path: Path, words: str, redirected: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell that says where its output goes; its own exit code."""
    line = f'set -o pipefail; "{sys.executable}" -m logknock {words} -c "{path}" {redirected}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60)


MAKING = [
    ("enroll ssh laptop", "ssh"),
    ("enroll ssh laptop --json", "ssh"),
    ("enroll phone laptop --qr -", "phone"),
    ("keygen vpn laptop --allow 22/tcp --write", "vpn"),
]


@pytest.mark.parametrize(("words", "name"), MAKING, ids=[words for words, _ in MAKING])
def test_a_client_whose_part_is_lost_is_said_to_be_there(path: Path, words: str, name: str) -> None:
    """A full disk, or a program that reads nothing: the secret is shown once, so the client is to be made again."""
    done = shell(path, words, ">/dev/full")
    assert (done.returncode, files(path)) == (FAILURE, [f"{name}.laptop.toml"])
    assert done.stderr.splitlines()[-2:] == [
        f"logknock: client laptop of door {name} is enrolled, and what it needs was not printed: "
        "No space left on device",
        f"hint: `logknock revoke-client {name} laptop`, and again",
    ]
    run(path, "revoke-client", name, "laptop")
    done = shell(path, words, "| true")
    assert (done.returncode, files(path)) == (FAILURE, [f"{name}.laptop.toml"])
    assert "is enrolled, and what it needs was not printed: Broken pipe" in done.stderr


@pytest.mark.parametrize(("words", "name"), MAKING, ids=[words for words, _ in MAKING])
def test_where_there_is_no_standard_output_no_client_is_made(path: Path, words: str, name: str) -> None:
    done = shell(path, words, ">&-")
    assert (done.returncode, files(path)) == (FAILURE, [])
    assert "there is no standard output: what the client needs would be lost" in done.stderr
    assert shell(path, words, ">/dev/null").returncode == 0, "which is somebody's choice"


def test_what_is_printed_says_where_it_belongs(path: Path) -> None:
    out, err = run(path, "keygen", "vpn", "a", "--allow", "22/tcp")
    assert re.findall(r"^# ----.*", out, re.MULTILINE) == [
        "# ---- on this host: clients/vpn.a.toml beside its configuration",
        "# ---- for the stock client: ~/.fwknoprc",
        "# ---- for `logknock knock`: ~/.config/logknock/client.toml",
    ]
    assert "require_source = false" in err
    assert "the client is told to reach this host as gate.example" in err, "unless its address is named"
    named = run(path, "keygen", "vpn", "a", "--allow", "22/tcp", "--from", "192.0.2.7", "--address", "2001:db8::1")
    assert "SPA_SERVER        2001:db8::1\n" in named[0]
    assert named[1] == ""
    assert "on this host" not in run(path, "keygen", "vpn", "a", "--allow", "22/tcp", "--write")[0]


# ---- clients and revoke-client


def test_clients_are_listed_with_their_use(path: Path, tmp_path: Path) -> None:
    """From the database that the daemon keeps; without it nobody has been here."""
    for words in (
        ("enroll", "ssh", "laptop"),
        ("enroll", "phone", "anna"),
        ("keygen", "vpn", "x", "--allow", "22/tcp"),
    ):
        run(path, *words, *(["--write"] if words[0] == "keygen" else []))
    assert [line.split()[:4] for line in run(path, "clients")[0].splitlines()] == [
        ["door", "client", "kind", "last"],
        ["ssh", "laptop", "totp", "never"],
        ["phone", "anna", "code", "6"],
        ["vpn", "x", "spa", "never"],
    ]
    now = int(time.time())
    store = open_store(tmp_path / "state")
    assert store.use_step("ssh", "laptop", now // 30 * 30, b"\xc0\0\2\7", now)
    assert store.see(Authentic(bytes(32), now - 5, bytes(32), "vpn", "x"), b"\xc0\0\2\7", now)
    store.close()
    found = [json.loads(line) for line in run(path, "clients", "--json")[0].splitlines()]
    assert [(each["client"], each["kind"], each["used"], each["step"], each["known"]) for each in found] == [
        ("laptop", "totp", now // 30 * 30, now // 30, True),
        ("anna", "code", None, None, True),
        ("x", "spa", now - 5, None, True),
    ]
    assert {type(each["used"]) for each in found} == {int, type(None)}
    assert (found[0]["file"], found[0]["line"]) == (str(tmp_path / "clients/ssh.laptop.toml"), 2)
    assert [line.split()[1] for line in run(path, "clients", "vpn")[0].splitlines()[1:]] == ["x"]
    assert time.strftime("%Y-%m-%d", time.localtime(now)) in run(path, "clients", "ssh")[0]


def test_a_database_that_cannot_be_read_is_said_and_the_clients_are_listed(path: Path, tmp_path: Path) -> None:
    run(path, "enroll", "ssh", "laptop")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / DATABASE).write_text("damaged" * 1000)
    out, err = run(path, "clients")
    assert "when clients were last used is not known: " in err
    assert out.splitlines()[1].split()[:4] == ["ssh", "laptop", "totp", "?"]
    assert json.loads(run(path, "clients", "--json")[0])["known"] is False


def test_nobody_is_said_too(path: Path) -> None:
    assert run(path, "clients")[0] == "no client\n"


def test_a_client_that_is_revoked_is_gone_and_may_be_made_anew(path: Path, tmp_path: Path) -> None:
    run(path, "enroll", "ssh", "laptop")
    before = door(load(path), "ssh").clients
    out, err = run(path, "revoke-client", "ssh", "laptop")
    assert out == f"{tmp_path}/clients/ssh.laptop.toml is removed\n"
    assert "no daemon runs" in err
    assert door(load(path), "ssh").clients == ()
    run(path, "enroll", "ssh", "laptop")
    assert door(load(path), "ssh").clients != before


def test_beside_another_problem_a_client_s_own_file_goes_all_the_same(path: Path, tmp_path: Path) -> None:
    """And what is still to be done is said, after what is wrong; of a client that has no such file, too."""
    run(path, "enroll", "ssh", "laptop")
    path.write_text(path.read_text() + "[firewall]\nrate = 0\n")
    out, err = run(path, "revoke-client", "ssh", "laptop", code=BAD_CONFIG)
    assert (out, files(path)) == (f"{tmp_path}/clients/ssh.laptop.toml is removed\n", [])
    assert "firewall.rate: 0 is out of range" in err
    assert err.splitlines()[-2:] == [
        "logknock: a running daemon still lets it in",
        "hint: mend what is wrong, then `logknock reload` and `logknock grants`",
    ]
    again = "hint: mend what is wrong, then `logknock revoke-client ssh laptop`"
    out, err = run(path, "revoke-client", "ssh", "laptop", code=BAD_CONFIG)
    assert (out, "firewall.rate: 0 is out of range" in err) == ("", True)
    assert err.splitlines()[-2:] == [
        f"logknock: there is no file {tmp_path}/clients/ssh.laptop.toml; "
        "whether client laptop of door ssh stands elsewhere is not known",
        again,
    ]
    write(tmp_path, "[clients.ssh.laptop]\n[clients.ssh.other]\n", "clients/ssh.laptop.toml")
    out, err = run(path, "revoke-client", "ssh", "laptop", code=BAD_CONFIG)
    assert "logknock: not revoked: client laptop of door ssh still gets in: " in err
    assert (out, err.splitlines()[-1]) == ("", again)


@pytest.mark.parametrize("names", [("ssh", "../outside"), ("../conf.d/ssh", "x"), ("ssh", ""), ("", "laptop")])
def test_what_is_no_name_is_no_part_of_a_path(path: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    """Beside a configuration that is wrong, where the file is all that there is to go by."""
    write(tmp_path, "[firewall]\nrate = 0\n", "conf.d/ssh.x.toml")
    out, err = run(path, "revoke-client", *names, code=USAGE)
    assert (out, " is no name for a " in err, len(err.splitlines())) == ("", True, 2)
    assert (tmp_path / "conf.d/ssh.x.toml").exists()


def test_a_file_of_its_own_that_is_what_is_wrong_goes_too(path: Path) -> None:
    write(path.parent, "[clients.ssh.laptop]\nsecret = 5\n", "clients/ssh.laptop.toml")
    run(path, "revoke-client", "ssh", "laptop", code=BAD_CONFIG)
    assert (files(path), run(path, "clients")[0]) == ([], "no client\n")


def test_a_client_that_stands_elsewhere_is_told_with_its_line_and_left(path: Path) -> None:
    path.write_text(f'{path.read_text()}[clients.ssh.laptop]\nsecret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"\n')
    before = path.read_text()
    _, err = run(path, "revoke-client", "ssh", "laptop", code=FAILURE)
    line = before.count("\n") - 1
    assert err.splitlines() == [
        f"logknock: {path}:{line}: client laptop of door ssh has no file of its own",
        "hint: take its table [clients.ssh.laptop] out there, then `logknock reload`",
    ]
    _, err = run(path, "enroll", "ssh", "laptop", code=FAILURE)
    assert err.splitlines() == [
        f"logknock: client laptop of door ssh is there already: {path}:{line}",
        "hint: take its table [clients.ssh.laptop] out there, then `logknock reload`; or name another one",
    ]
    assert path.read_text() == before
