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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import zbar
from PIL import Image

from logknock import profiles
from logknock.config import Config, load
from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION, UNAVAILABLE, USAGE
from logknock.store import DATABASE, open_store
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
    assert bases == [20_000, 20_100, 20_200]
    for step, code in zip(STEPS, codes, strict=True):
        by_hand = [base + int(code[at : at + 2]) for base, at in zip(bases, (0, 2, 4), strict=True)]
        assert [service.port for service in sequence_of(ours, ours.clients[0], step)] == by_hand
    assert told["by_hand"].endswith("12 34 56 is 20012/tcp, 20134/tcp, 20256/tcp")


def test_the_uri_of_a_totp_door_says_all_that_a_client_has_to_know(path: Path) -> None:
    told = answer(path, "enroll", "ssh", "laptop")
    query = {key: value for key, (value,) in parse_qs(urlsplit(told["uri"]).query).items()}
    said = tomllib.loads(told["profile"])["profiles"]["gate-ssh"]["totp"]
    assert {key: query[key] for key in ("secret", "door", "host")} == {
        key: said[key] for key in ("secret", "door", "host")
    }
    assert (query["ports"].split(","), query["length"], query["period"]) == (said["ports"], "4", "30")
    assert query["algorithm"] == "SHA256"


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
        pytest.param(("enroll", "ssh", "a/b"), USAGE, "a/b: this is no name for a client", id="no name"),
        pytest.param(("keygen", "vpn", "../a"), USAGE, "../a: this is no name for a client", id="no name for a file"),
        pytest.param(("enroll", "ssh", "a", "--qr", "a.gif"), USAGE, "its name ends in .svg or .png", id="no picture"),
        pytest.param(("keygen", "vpn", "a"), USAGE, "which of them may the client open?", id="no service named"),
        pytest.param(
            ("keygen", "vpn", "a", "--allow", "80/tcp"), USAGE, "door vpn does not open 80/tcp", id="another service"
        ),
        pytest.param(("keygen", "vpn", "a", "--allow", "22"), USAGE, "22", id="no service"),
        pytest.param(("clients", "shh"), USAGE, "there is no door shh", id="clients of no door"),
        pytest.param(("revoke-client", "ssh", "a"), FAILURE, "door ssh has no client a", id="no such client"),
    ],
)
def test_what_cannot_be_is_one_clear_error_and_nothing_is_written(
    path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    out, err = run(path, *words, code=code)
    assert said in err
    assert (out, files(path)) == ("", [])


def test_a_door_that_takes_no_clients_says_what_would(tmp_path: Path) -> None:
    path = write(tmp_path, DOOR)
    _, err = run(path, "enroll", "ssh", "laptop", code=USAGE)
    assert err.splitlines() == [
        "logknock: door ssh takes no clients: it has no totp = {}",
        "hint: give the door totp = {}",
    ]


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
    return [symbol.data for symbol in found]


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


def test_what_is_printed_says_where_it_belongs(path: Path) -> None:
    out, err = run(path, "keygen", "vpn", "a", "--allow", "22/tcp")
    assert re.findall(r"^# ----.*", out, re.MULTILINE) == [
        "# ---- on this host: clients/vpn.a.toml beside its configuration",
        "# ---- for the stock client: ~/.fwknoprc",
        "# ---- for `logknock knock`: ~/.config/logknock/client.toml",
    ]
    assert "require_source = false" in err
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
    assert store.see(bytes(32), now - 5, "vpn", "x", b"\xc0\0\2\7", now)
    store.close()
    found = [json.loads(line) for line in run(path, "clients", "--json")[0].splitlines()]
    assert [(each["client"], each["kind"], each["used"], each["step"], each["known"]) for each in found] == [
        ("laptop", "totp", now // 30 * 30, now // 30, True),
        ("anna", "code", None, None, True),
        ("x", "spa", now - 5, None, True),
    ]
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


def test_a_client_that_stands_elsewhere_is_told_with_its_line_and_left(path: Path) -> None:
    path.write_text(f'{path.read_text()}[clients.ssh.laptop]\nsecret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"\n')
    before = path.read_text()
    _, err = run(path, "revoke-client", "ssh", "laptop", code=FAILURE)
    line = before.count("\n") - 1
    assert err.splitlines() == [
        f"logknock: {path}:{line}: client laptop of door ssh has no file of its own",
        "hint: take its table [clients.ssh.laptop] out there, then `logknock reload`",
    ]
    assert path.read_text() == before
