"""`logknock explain` beside a real daemon: for each way in which a knock can fail, the right reason."""

import json
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from logknock.config import load
from logknock.totp import sequence_of, step_at

from ..netns import pair
from ..test_nflog import FLOOD, dropped
from .world import KNOCKS, SSH, Daemon, World, until, write_sequences

AIMED = '[doors.aimed]\nsequence = ["7500/tcp", "7600/tcp", "7700/tcp"]\nopens = ["80/tcp"]\ntarget = ["10.99.0.77"]\n'


@pytest.fixture(scope="module")
def hosts() -> Iterator[Any]:
    with pair() as both:
        yield both


@pytest.fixture
def world(hosts: Any, tmp_path: Path) -> Iterator[World]:
    gateway, client = hosts
    yield World(gateway, client, tmp_path / "logknock.toml")
    gateway.run("nft", "delete", "table", "inet", "logknock", check=False)


@contextmanager
def running(world: World, text: str = SSH) -> Iterator[Daemon]:
    world.configure(text)
    world.apply()
    with world.daemon() as daemon:
        yield daemon


def explain(world: World, address: str = "") -> list[dict[str, Any]]:
    done = world.gateway.logknock("explain", address or world.client.ipv4, "--json", "-c", str(world.config))
    return [json.loads(line) for line in done.stdout.splitlines()]


def findings(world: World, address: str = "") -> list[tuple[str, str, str, str]]:
    found = [answer["finding"] for answer in explain(world, address) if "finding" in answer]
    return [(each["service"], each["door"], each["verdict"], each["words"]) for each in found]


def standing(world: World, address: str = "") -> dict[str, Any]:
    (found,) = (answer["standing"] for answer in explain(world, address) if "standing" in answer)
    assert isinstance(found, dict)
    return found


def shown(world: World, *args: str) -> str:
    return world.gateway.logknock("explain", *args, "-c", str(world.config)).stdout


def until_found(world: World, true: Callable[[list[tuple[str, str, str, str]]], object], address: str = "") -> None:
    until(lambda: true(findings(world, address)), f"the findings of {address}")


FLOW = "{src}>10.99.0.1:{service}"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        pytest.param(
            ["7000/tcp", "8000/tcp", "9000/udp"],
            [
                ("7000/tcp", "ssh", "advanced", "stage 1 of 3"),
                ("8000/tcp", "ssh", "advanced", "stage 2 of 3"),
                ("9000/udp", "ssh", "advanced", "stage 3 of 3"),
                ("9000/udp", "ssh", "opened", "opened for 30 s"),
            ],
            id="one that opens",
        ),
        pytest.param(
            ["7000/tcp", "7001/tcp"],
            [
                ("7000/tcp", "ssh", "advanced", "stage 1 of 3"),
                ("7001/tcp", "ssh", "wrong", "wrong port at stage 1 of 3: 8000/tcp was expected"),
            ],
            id="a wrong port",
        ),
        pytest.param(
            ["8000/tcp", "7999/tcp"],
            [
                ("8000/tcp", "", "unknown", "means nothing: no door begins with 8000/tcp"),
                ("7999/tcp", "", "unknown", "means nothing: no door begins with 7999/tcp"),
            ],
            id="what begins nothing, knock port or trap",
        ),
        pytest.param(
            ["7000/tcp=16"],
            [("7000/tcp", "ssh", "flags", "means nothing: other TCP flags than the door asks for")],
            id="other flags",
        ),
        pytest.param(
            ["7000/tcp", "22/tcp"],
            [
                ("7000/tcp", "ssh", "advanced", "stage 1 of 3"),
                ("22/tcp", "ssh", "guarded", "means nothing: to a guarded service, which is never a knock"),
            ],
            id="an ssh client that tries early",
        ),
        pytest.param(
            ["22/tcp"],
            [("22/tcp", "", "guarded", "means nothing: 22/tcp is guarded, and closed to this source")],
            id="an ssh client that has not knocked",
        ),
        pytest.param(
            ["7500/tcp"],
            [
                (
                    "7500/tcp",
                    "aimed",
                    "target",
                    "means nothing: sent to another address than the door asks for (10.99.0.77)",
                )
            ],
            id="another target",
        ),
    ],
)
def test_each_packet_gets_the_right_reason(
    world: World, sent: list[str], told: list[tuple[str, str, str, str]]
) -> None:
    src = "198.51.100.7"
    with running(world, SSH + AIMED):
        world.spoof(*(FLOW.format(src=src, service=service) for service in sent))
        until_found(world, lambda found: len(found) == len(told), src)
        assert findings(world, src) == told
        assert findings(world, "::ffff:198.51.100.7") == told
        assert findings(world, "198.51.100.8") == []


def test_a_resend_is_told_as_one(world: World) -> None:
    again = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 4000))\n"
    again += "for _ in range(2): s.sendto(b'', ('10.99.0.1', 7100))\n"
    door = '[doors.ssh]\nsequence = ["7100/udp", "7200/udp", "7300/udp"]\nopens = ["22/tcp"]\n'
    with running(world, door):
        world.client.python(again)
        until_found(world, lambda found: len(found) == 2)
        assert [each[2:] for each in findings(world)] == [
            ("advanced", "stage 1 of 3"),
            ("resend", "means nothing: the same knock again"),
        ]


def test_a_knock_that_comes_too_late_is_told_with_how_much(world: World) -> None:
    # As long as a slow machine may need for the first two knocks.
    with running(world, SSH.replace("timeout", 'seq_timeout = "5s"\ntimeout')) as daemon:
        world.knock(*KNOCKS[:2])
        daemon.wait_for("sequence timeout")
        world.knock(*KNOCKS[2:])
        until_found(world, lambda found: found[-1][2] == "late")
        gave_up, late = findings(world)[-2:]
    assert gave_up == (
        "",
        "ssh",
        "timeout",
        "given up at stage 2 of 3: 9000/udp did not come within 5 s of the first knock",
    )
    assert late[3].startswith("too late by ")
    assert late[3].endswith("for stage 3: 5 s from the first knock to the last")


def test_what_was_logged_too_long_ago_is_told_with_how_long(world: World) -> None:
    """T29: the daemon was stopped, as by a debugger, while the knocks came."""
    with running(world, SSH.replace("timeout", 'seq_timeout = "1s"\ntimeout')) as daemon:
        daemon.signal(signal.SIGSTOP)
        world.knock(*KNOCKS)
        time.sleep(1.2)  # longer than the door waits: the only thing that this is about
        daemon.signal(signal.SIGCONT)
        until_found(world, lambda found: len(found) == 3)
        first, *others = findings(world)
        assert (first[0], first[2]) == ("7000/tcp", "stale")
        told = re.fullmatch(r"means nothing: its record came (\d+\.\d) s late, and no door waits that long", first[3])
        assert told, first
        assert float(told[1]) >= 1.2
        assert {each[2] for each in others} == {"stale"}


LEFT_ALONE = SSH + "[firewall]\nrestore = false\n"


def test_a_door_that_could_not_open_says_so(world: World) -> None:
    with running(world, LEFT_ALONE):
        world.gateway.run("nft", "delete", "table", "inet", "logknock")
        world.gateway.nft("table inet x { chain c { type filter hook prerouting priority mangle\nlog group 5\n}\n}")
        world.knock(*KNOCKS)
        until_found(world, lambda found: found and found[-1][2] == "refused")
        assert "granted4" in findings(world)[-1][3]
        world.gateway.run("nft", "delete", "table", "inet", "x")


def test_what_a_used_one_time_sequence_does_is_told_and_no_sequence_that_is_left(world: World, tmp_path: Path) -> None:
    file = write_sequences(tmp_path / "phone", [" 7000, 8000, 9000:udp", " 7010, 8010, 9010:udp"])
    with running(world, f'[doors.ssh]\nonetime = ["{file}"]\nopens = ["22/tcp"]\n') as daemon:
        daemon.wait_for("2 one-time sequences left")
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        world.knock(*KNOCKS)
        world.knock("7010/tcp", "7011/tcp")
        until_found(world, lambda found: found[-1][2] == "wrong")
        everything = json.dumps(explain(world))
        told = findings(world)
    assert (told[3][2], told[3][3]) == ("used", f"one-time sequence of {file} used")
    assert [each[2] for each in told[5:8]] == ["unknown"] * 3
    assert told[-1][3] == "wrong port at stage 1: the next knock of its sequence was expected"
    assert "8010" not in everything


def test_who_is_banned_too_fast_or_trusted_is_told_so(world: World) -> None:
    with running(world, SSH + '[firewall]\ntrusted = ["198.51.100.9"]\nburst = 2\nrate = 1\n'):
        world.gateway.run("nft", "add", "element", "inet", "logknock", "banned4", "{ 198.51.100.8 timeout 1m }")
        world.gateway.run("nft", "add", "element", "inet", "logknock", "banned6", "{ fd98:: timeout 1m }")
        world.spoof(*[FLOW.format(src="198.51.100.7", service="7000/tcp")] * 8)
        until(lambda: standing(world, "198.51.100.7")["deaf"], "the source to be too fast")
        assert "198.51.100.7 is too fast" in shown(world, "198.51.100.7")
        assert not standing(world, "198.51.100.7")["banned"]
        world.gateway.run("nft", "add", "element", "inet", "logknock", "noisy6", "{ fd98:0:0:7:: timeout 1m }")
        assert standing(world, "fd98:0:0:7::5")["deaf"]
        assert "fd98:0:0:7::5 is too fast, or all of its /64 together: nothing" in shown(world, "fd98:0:0:7::5")
        assert not standing(world, "fd98:0:0:8::5")["deaf"]
        assert standing(world, "198.51.100.8")["banned"]
        assert "all that it sends is dropped" in shown(world, "198.51.100.8")
        assert standing(world, "fd98::5")["banned"]
        assert not standing(world, "fd98:1::5")["banned"]
        assert standing(world, "198.51.100.9")["trusted"]
        assert "need not knock" in shown(world, "198.51.100.9")
        assert standing(world, "10.99.0.1")["never"] == "one of this host's own addresses"


def test_t30_lost_records_are_told_since_a_knock_may_be_among_them(world: World) -> None:
    """T30: a daemon that is stopped while more comes than the kernel keeps for it."""
    with running(world) as daemon:
        rule = "udp dport 9 log group 5 drop"
        world.gateway.nft(f"table inet x {{ chain c {{ type filter hook prerouting priority mangle\n{rule}\n}}\n}}")
        daemon.signal(signal.SIGSTOP)
        for _ in range(20):
            world.client.python(FLOOD, world.gateway.ipv4, "30000")
            if dropped(world.gateway):
                break
        daemon.signal(signal.SIGCONT)

        def is_told() -> bool:
            world.client.python(FLOOD, world.gateway.ipv4, "1")  # the next record's number tells how many are gone
            return daemon.says("records lost on the way")

        until(is_told, "the loss to be told")
        world.gateway.run("nft", "delete", "table", "inet", "x")
        (source,) = standing(world)["sources"]
        assert source["lost"] > 0
        assert f"NFLOG group 5: {source['lost']} records lost since the start: a knock" in shown(world, "198.51.100.7")


def test_what_would_have_opened_is_the_last_word(world: World) -> None:
    with running(world, SSH.replace("timeout", 'seq_timeout = "1m"\ntimeout')):
        world.knock(*KNOCKS[:2])
        until_found(world, lambda found: len(found) == 2)
        last = shown(world, world.client.ipv4).splitlines()[-1]
        assert last == "ssh opens with 7000/tcp, 8000/tcp, 9000/udp within 60 s; it got to stage 2 of 3"
        assert f"{standing(world)['attempts'][0]['stage']} of 3" == "2 of 3"
        world.knock(*KNOCKS[2:])
        until_found(world, lambda found: found[-1][2] == "opened")
        text = shown(world, world.client.ipv4)
        assert "ssh is open for another" in text
        assert text.splitlines()[-1] == "ssh was opened"


def test_follow_shows_what_comes_once(world: World) -> None:
    with running(world):
        argv = [sys.executable, "-u", "-m", "logknock", "explain", "-f", world.client.ipv4, "-c", str(world.config)]
        process = world.gateway.start(*argv, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            assert "no record at all" in next(lines)
            world.knock(*KNOCKS)
            told = [next(line for line in lines if "tcp" in line or "udp" in line) for _ in range(5)]
            world.knock(*KNOCKS[2:])
            told.append(next(lines))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert "ssh opens with" in told[0]
    assert [line.split(maxsplit=2)[2].strip() for line in told[1:]] == [
        "ssh: stage 1 of 3",
        "ssh: stage 2 of 3",
        "ssh: stage 3 of 3",
        "ssh: opened for 30 s",
        "ssh: means nothing: the sequence is complete already",
    ]


def test_follow_tells_that_the_source_is_not_heard_any_more(world: World) -> None:
    src = "198.51.100.7"
    with running(world, SSH + "[firewall]\nburst = 2\nrate = 1\n"):
        argv = [sys.executable, "-u", "-m", "logknock", "explain", "-f", src, "-c", str(world.config)]
        process = world.gateway.start(*argv, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            next(line for line in lines if "ssh opens with" in line)
            world.spoof(*[FLOW.format(src=src, service="7000/tcp")] * 8)
            assert any(f"{src} is too fast" in line for line in lines)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def test_rules_that_are_gone_are_told_of(world: World) -> None:
    with running(world, LEFT_ALONE) as daemon:
        world.gateway.run("nft", "delete", "table", "inet", "logknock")
        daemon.wait_for("error: ")
        assert "inet logknock" in standing(world, "198.51.100.7")["trouble"]


@pytest.mark.parametrize("since", ["NaN", "1e999", "-1e300", "true", '"now"', "9" * 400, "null"])
def test_a_time_that_is_none_is_one_error(world: World, since: str) -> None:
    ask = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
    ask += "s.sendall(sys.argv[2].encode() + b'\\n')\nprint(s.makefile().readline())"
    with running(world) as daemon:
        request = f'{{"version": 1, "do": "explain", "address": "192.0.2.1", "since": {since}}}'
        done = world.gateway.python(ask, str(world.config.parent / "run" / "control.sock"), request)
        assert "explain needs an address, and since when" in done.stdout
        assert not daemon.says("Traceback")


def test_nobody_is_there_to_ask(world: World) -> None:
    world.configure(SSH)
    done = world.gateway.logknock("explain", "192.0.2.1", "-c", str(world.config), check=False)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.splitlines()[0].endswith("run/control.sock")
    assert "starts it; [paths] runtime must be the same" in done.stderr


@pytest.mark.parametrize("word", ["", "fe80::1%eth0", "10.99.0.1/24", "host.example", "1.2.3", "x" * 5000, "\x1b[2J"])
def test_what_is_no_address_is_one_error(world: World, word: str) -> None:
    with running(world):
        done = world.gateway.logknock("explain", "-c", str(world.config), "--", word, check=False)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stderr


def test_only_those_may_ask_who_are_meant_to(world: World) -> None:
    with running(world):
        path = world.config.parent / "run" / "control.sock"
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
        path.chmod(0o666)  # even then the kernel says who it is
        path.parent.chmod(0o755)
        connect = (
            "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(s.makefile().read())"
        )
        who = ("--reuid=65534", "--regid=65534", "--clear-groups")
        done = world.gateway.run("setpriv", *who, "/usr/bin/python3", "-c", connect, "control.sock", cwd=path.parent)
        assert "not permitted" in done.stdout


def test_asking_again_and_again_takes_no_memory_while_many_knock(world: World) -> None:
    """More attempts than the garbage collector runs beside: what a client leaves behind is collected all the same."""
    ask = "import sys\nfrom pathlib import Path\nfrom logknock.control import ask\n"
    ask += "for _ in range(int(sys.argv[2])): list(ask(Path(sys.argv[1]), 'explain', address='192.0.2.1'))"

    def memory(daemon: Daemon) -> int:
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    with running(world, SSH.replace("timeout", 'seq_timeout = "1h"\ntimeout')) as daemon:
        sources = [f"198.51.{high}.{low}" for high in range(100, 133) for low in range(1, 255)]
        world.gateway.run("ip", "route", "add", "198.51.0.0/16", "via", world.client.ipv4)
        world.spoof(*(FLOW.format(src=src, service="7000/tcp") for src in sources))
        until(lambda: daemon.counter("knockers") > 8_192, "the crowd")
        runtime = str(world.config.parent / "run")
        world.gateway.python(ask, runtime, "2500")
        before = memory(daemon)
        world.gateway.python(ask, runtime, "3000")
        assert memory(daemon) - before < 12_000, "kB; without, 7 kB a client"


# ---- doors whose clients derive their sequences

TOTP = """
[totp]
host = "gate.example"
[doors.ssh]
opens = ["22/tcp"]
totp = {}
[clients.ssh.laptop]
secret = "ORSXG5BAONSWG4TFOQQGMYLDMVSWIZLDN5SGK4TT"
[clients.ssh.phone]
secret = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43UOV3HO6DZ"
"""


def derived(world: World, now: float) -> list[str]:
    """What the laptop knocks at that time."""
    (door,) = load(world.config).totp
    laptop = next(client for client in door.clients if client.name == "laptop")
    return [str(service) for service in sequence_of(door, laptop, step_at(now, door.step))]


def advice(world: World) -> list[str]:
    (found,) = (answer["advice"] for answer in explain(world) if "advice" in answer)
    assert isinstance(found, list)
    return found


def test_a_clock_that_is_off_is_named_with_its_client_and_by_how_much(world: World) -> None:
    with running(world, TOTP) as daemon:
        # 15 steps, or 16 where the next one begins before it has knocked: 8 minutes either way.
        world.knock(*derived(world, time.time() - 7.5 * 60))
        until(
            lambda: "client laptop's knocks at ssh, but its clock is 8 minutes behind this host's" in advice(world),
            "the advice",
        )
        last = "ssh opens with the sequence of a client's current step (each counts once) within 15 s"
        assert advice(world)[-1].startswith(last), (
            "and behind it, if by chance one of the knocks began another, how far"
        )
        assert not daemon.says("OPEN SESAME")


def test_t18_a_step_that_comes_again_is_told_as_such_and_whose_it_is(world: World) -> None:
    """T18: in the log, and to who asks; and who opened the door is known."""
    with running(world, TOTP) as daemon:
        now = time.time()
        knocks = derived(world, now)
        world.knock(*knocks)
        daemon.wait_for(f"{world.client.ipv4}: ssh: OPEN SESAME")
        assert daemon.says(f"{world.client.ipv4}: ssh: step {step_at(now, 30)} of client laptop used")
        asked = ["-c", str(world.config)]
        assert "by client laptop" in world.gateway.logknock("status", *asked).stdout
        assert world.gateway.logknock("grants", *asked).stdout.splitlines()[1].split()[-2:] == ["client", "laptop"]
        (opened,) = (each for each in findings(world) if each[2] == "used")
        assert opened[3].endswith("of client laptop used")
        world.knock(*knocks)
        daemon.wait_for("ssh: sequence of a step that is used up")
        assert findings(world)[-1][2] == "replayed"
        assert "client laptop's knocks at ssh, of a step that is used up" in advice(world)
