"""TOTP and code doors with the real daemon, rules and clients: each step's sequence once, whoever sends it again.

Rule 1: what is knocked is derived here by logknock/totp.py, which docs/reference/totp.md and its vectors hold to its
word, or by `logknock knock` and oathtool themselves. Rule 2: no clock of this machine is set: a clock that is off is a
client that knocks the sequence of another step. (What a daemon's clock that is set does: test_clock.py.)
Rule 3: where a test needs two steps, the door's are short ones.
"""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from logknock import totp
from logknock.knock import Service
from logknock.packet import PROTOCOLS

from ..config_files import write
from .crashes import check_every_line
from .world import Daemon, World, until

HOST = "gate.example"
SECRETS = {name: bytes(range(number, number + 32)) for number, name in enumerate(("laptop", "phone", "tablet"))}
OPENS = "10.99.0.2: ssh: OPEN SESAME"
REPLAYED = "ssh: sequence of a step that is used up"
STRANGERS = ("198.51.100.1", "198.51.100.2", "198.51.100.3")

# Seconds: the shortest step that there is, and the longest: what is sent in one is judged in it, on a slow machine too.
SHORT, LONG = 10, 300

POOL = tuple(Service(PROTOCOLS[proto], port) for proto in ("tcp", "udp") for port in range(20_000, 20_500))


def configure(world: World, *clients: str, step: int = LONG, host: str = HOST, more: str = "") -> None:
    """The door and its clients, by their names in SECRETS."""
    secrets = "".join(f'{name}.secret = "{totp.format_secret(SECRETS[name])}"\n' for name in clients)
    world.configure(
        f'[totp]\nhost = "{host}"\n[doors.ssh]\ntotp = {{step = "{step}s"}}\nopens = ["22/tcp"]\ntimeout = "1h"\n'
        f"[clients.ssh]\n{secrets}{more}"
    )


def sequence(client: str = "laptop", *, behind: int = 0, step: int = LONG, host: str = HOST) -> list[str]:
    """What the client knocks now; behind: of so many steps ago."""
    number = totp.step_at(time.time(), step) - behind
    return list(map(str, totp.derive(SECRETS[client], number, "ssh", host, POOL, totp.DEFAULT_LENGTH)))


def forged(world: World, source: str, services: Sequence[str]) -> list[str]:
    """The same as words of world.spoof."""
    return [f"{source}>{world.gateway.ipv4}:{service}" for service in services]


def attempt(world: World, daemon: Daemon, services: Sequence[str], says: str) -> None:
    """Knock, and wait for this to be said anew."""
    daemon.read()
    known = len(daemon.lines)
    world.knock(*services)
    until(lambda: daemon.says(says) and any(says in line for line in daemon.lines[known:]), says)


def openings(daemon: Daemon) -> list[str]:
    daemon.read()
    return [line for line in daemon.lines if "OPEN SESAME" in line]


def next_step(step: int = SHORT) -> None:
    """Wait until another step has begun."""
    time.sleep(step - time.time() % step + 0.05)


@pytest.fixture
def door(world: World) -> World:
    """A TOTP door for the laptop, with its rules."""
    configure(world, "laptop")
    world.apply()
    return world


# ---- as users have it


def enroll(world: World, door: str, client: str) -> str:
    """What `logknock enroll` prints, which is a client.toml."""
    words = ("enroll", door, client, "--address", world.gateway.ipv4, "-c", str(world.config))
    return world.gateway.logknock(*words).stdout


def test_an_enrolled_client_opens_the_door_once_a_step_by_knock_and_by_proxy(world: World, tmp_path: Path) -> None:
    """T18: what `enroll` prints is all that the client needs; where this step is used, the proxy waits for the next."""
    configure(world, step=SHORT)
    profile = write(tmp_path, enroll(world, "ssh", "laptop"), "client.toml")
    (name,) = tomllib.loads(profile.read_text())["profiles"]
    world.apply()
    environment = os.environ | {"LOGKNOCK_CLIENT": str(profile), "XDG_STATE_HOME": str(tmp_path / "state")}
    with world.service(22), world.daemon() as daemon:
        assert not world.reaches()
        world.client.logknock("knock", name, env=environment)
        daemon.wait_for(OPENS)
        world.gateway.logknock("revoke", "--all", "-c", str(world.config))
        assert not world.reaches()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
        proxy = (sys.executable, "-m", "logknock", "proxy", name, world.gateway.ipv4, "22")
        with world.client.start(*proxy, **pipes) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("hello\n")
            process.stdin.flush()
            assert process.stdout.readline() == "hello\n"
            process.kill()
        assert len(openings(daemon)) == 2
        used = [line for line in daemon.lines if "of client laptop used" in line]
        assert len(set(used)) == len(used) == 2


def test_a_code_of_an_authenticator_spelled_by_hand_and_knocked_by_any_program_opens(world: World) -> None:
    """By oathtool, who has nothing but the URI, the arithmetic of docs/howto/phone.md, and knockd's `knock`."""
    world.configure('[totp]\nhost = "gate.example"\n[doors.code]\ntotp = {code = 6}\nopens = ["22/tcp"]\n')
    (uri,) = re.findall(r"otpauth://totp/\S+", enroll(world, "code", "anna"))
    (secret,) = re.findall(r"[?&]secret=(\w+)", uri)
    world.apply()
    with world.daemon() as daemon:
        code = world.client.run("oathtool", "--totp", "--base32", secret).stdout.strip()
        ports = [f"210{code[:2]}", f"211{code[2:4]}", f"212{code[4:]}"]
        for said in ("10.99.0.2: code: OPEN SESAME", "10.99.0.2: code: sequence of a step that is used up"):
            world.client.run("knock", "-d", "50", world.gateway.ipv4, *ports)
            daemon.wait_for(said)
        assert "10.99.0.2 . tcp . 22" in world.granted()
        world.gateway.logknock("revoke-client", "code", "anna", "-c", str(world.config))
        assert not list((world.config.parent / "clients").iterdir())


def test_a_door_without_a_client_is_no_way_in_for_ssh(world: World) -> None:
    """T38: rules that would close ssh to everybody are refused, with the command that helps."""
    configure(world)
    refused = world.gateway.logknock("rules", "apply", "-c", str(world.config), check=False)
    assert "22/tcp is ssh, and no door can open it: door ssh has no client for it" in refused.stderr
    assert "hint: `logknock enroll ssh CLIENT` makes one" in refused.stderr


# ---- once


def test_t18_what_was_heard_opens_nothing_from_anywhere(door: World) -> None:
    """T18: neither from the address that it came from nor from another, nor after a restart, nor after a kill -9."""
    heard = sequence()
    with door.daemon() as daemon:
        attempt(door, daemon, heard, OPENS)
        assert "10.99.0.2 . tcp . 22" in door.granted()
        attempt(door, daemon, heard, f"10.99.0.2: {REPLAYED}")
        door.spoof(*forged(door, STRANGERS[0], heard))
        daemon.wait_for(f"{STRANGERS[0]}: {REPLAYED}")
        assert len(openings(daemon)) == 1
        assert daemon.stop() == 0
    for end in (signal.SIGKILL, signal.SIGTERM):
        with door.daemon() as daemon:
            attempt(door, daemon, heard, f"10.99.0.2: {REPLAYED}")
            door.spoof(*forged(door, STRANGERS[1], heard))
            daemon.wait_for(f"{STRANGERS[1]}: {REPLAYED}")
            assert not openings(daemon)
            daemon.signal(end)
            daemon.process.wait()


def test_t18_two_who_knock_the_same_at_once_do_not_both_get_in(door: World) -> None:
    """T18: the one whose knocks are complete first does."""
    heard = sequence()
    both = [word for service in heard for src in STRANGERS[:2] for word in forged(door, src, [service])]
    with door.daemon() as daemon:
        door.spoof(*both)
        daemon.wait_for(f"{STRANGERS[0]}: ssh: OPEN SESAME")
        daemon.wait_for(f"{STRANGERS[1]}: {REPLAYED}")
        assert len(openings(daemon)) == 1


def test_t19_two_clients_in_one_step_both_get_in(world: World) -> None:
    """T19: each has a secret of its own, and what one has used is no other's loss."""
    configure(world, "laptop", "phone")
    world.apply()
    with world.daemon() as daemon:
        now = [sequence(client) for client in ("laptop", "phone")]
        attempt(world, daemon, now[0], OPENS)
        attempt(world, daemon, now[1], OPENS)
        for heard in now:
            attempt(world, daemon, heard, f"10.99.0.2: {REPLAYED}")
        assert len(openings(daemon)) == 2


def test_t19_a_clock_that_is_off_opens_within_the_skew_and_is_named_beyond_it(door: World) -> None:
    """T19: a step behind opens, three do not, and `explain` says by how much the client's clock is off."""
    if LONG - time.time() % LONG < 3 * SHORT:
        next_step(LONG)
    with door.daemon() as daemon:
        door.knock(*sequence(behind=3))
        attempt(door, daemon, sequence(behind=1), OPENS)
        assert len(openings(daemon)) == 1
        door.knock(*sequence(behind=7))
        said = door.gateway.logknock("explain", "10.99.0.2", "-c", str(door.config)).stdout
        for minutes in (15, 35):
            assert f"client laptop's knocks at ssh, but its clock is {minutes} minutes behind this host's" in said


def test_a_host_that_shares_the_secret_is_opened_by_sequences_of_its_own_only(world: World) -> None:
    configure(world, "laptop", host="other.example")
    world.apply()
    with world.daemon() as daemon:
        world.knock(*sequence(host=HOST))
        attempt(world, daemon, sequence(host="other.example"), OPENS)
        assert len(openings(daemon)) == 1


# ---- guesses


def test_t21_wrong_tries_in_somebody_s_name_cost_one_step_and_no_more(world: World) -> None:
    """T21, T11: twelve that are forged, and then the client itself: its second step opens."""
    configure(world, "laptop", step=SHORT)
    world.apply()
    with world.daemon() as daemon:
        if time.time() % SHORT > SHORT / 2:
            next_step()
        first, *_ = sequence(step=SHORT)
        wrong = [service for service in map(str, POOL) if service != first][:12]
        world.spoof(*(word for service in wrong for word in forged(world, "10.99.0.2", [first, service])))
        attempt(world, daemon, sequence(step=SHORT), "the next step's sequence is asked for too")
        assert not openings(daemon)
        next_step()
        attempt(world, daemon, sequence(step=SHORT), OPENS)


def test_t1_t2_scans_of_the_whole_pool_open_nothing(world: World) -> None:
    """T1, T2: of all ports that sequences are made of, in order and in none, from one address and from many."""
    configure(world, *SECRETS)
    world.apply()
    order = random.Random(1)  # noqa: S311 - nothing to guess here
    everything = [str(service) for service in POOL]
    with world.daemon() as daemon:
        for number in range(6):
            world.spoof(*forged(world, f"198.51.100.{number + 10}", everything))
            order.shuffle(everything)
        # Slow enough to be recorded, each from an address that is heard.
        for number in range(100):
            world.spoof(*forged(world, f"203.0.113.{number + 1}", everything[number * 10 :][:10]))
        attempt(world, daemon, sequence("tablet"), OPENS)
        assert len(openings(daemon)) == 1
        assert set(world.granted()) <= {"10.99.0.2 . tcp . 22"}


# ---- what goes wrong


def test_t20_without_a_store_the_door_stays_shut_and_says_so(door: World) -> None:
    """T20: damaged, and held by somebody else for a while; other doors go on."""
    configure(
        door, "laptop", more='[doors.plain]\nsequence = ["7000/tcp", "8000/tcp", "9000/tcp"]\nopens = ["80/tcp"]\n'
    )
    door.apply()
    database = door.config.parent / "state/logknock.db"
    with door.daemon() as daemon:
        with sqlite3.connect(database, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            attempt(door, daemon, sequence(), "cannot be put on record")
            assert not openings(daemon)
            other.execute("ROLLBACK")
        other.close()
        assert daemon.stop() == 0
    for path in database.parent.glob("logknock.db*"):
        path.unlink()
    database.write_bytes(os.urandom(8192))
    with door.daemon() as daemon:
        daemon.wait_for("ready")
        (said,) = [line for line in daemon.lines if "logknock.db" in line]
        assert "nothing is remembered, and TOTP doors stay shut until a restart: " in said, "one line, of no other kind"
        shown = door.gateway.logknock("status", "-c", str(door.config), check=False).stdout
        assert len(re.findall("logknock.db: ", shown)) == 1, "once in the status too"
        assert "degraded: store, since" in shown
        assert "nothing is remembered, and TOTP doors stay shut: " in shown
        door.knock(*sequence())
        attempt(door, daemon, ["7000/tcp", "8000/tcp", "9000/tcp"], "10.99.0.2: plain: OPEN SESAME")
        assert set(door.granted()) == {"10.99.0.2 . tcp . 80"}


def test_t36_a_reload_knows_new_clients_and_forgets_old_ones(world: World) -> None:
    """T36; and what was used before stays used (T18)."""
    configure(world, "laptop", "tablet")
    world.apply()
    with world.daemon() as daemon:
        heard = sequence("laptop")
        attempt(world, daemon, heard, OPENS)
        configure(world, "laptop", "phone")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        world.knock(*sequence("tablet"))
        world.knock(*heard)
        attempt(world, daemon, sequence("phone"), OPENS)
        assert len(openings(daemon)) == 2


# ---- a crash at any step

# The knocks of the step of now.
KNOCKED = """
from logknock import totp

(door,) = loaded.totp
step = totp.step_at(now, door.step)
*first, nearing, last = totp.sequence_of(door, door.clients[0], step)

def knock(daemon, service):
    daemon._receive(Packet(now, src, dst, service.proto, 40000, service.port, SYN if service.proto == TCP else 0))

def before(daemon):
    while daemon._steps.work(now):
        pass
    for service in first:
        knock(daemon, service)

def opens(daemon):
    knock(daemon, nearing)  # which puts the use on record
    knock(daemon, last)

def is_used(store):
    return store.steps().get(("ssh", "laptop")) == step * door.step
"""


def test_t20_killed_at_any_step_of_an_opening_no_sequence_opens_twice(door: World) -> None:
    """T18, T20: what is open is on record as used, wherever the process was killed; and its end is on record too."""
    check_every_line(door, KNOCKED, stride=5)


def test_t20_a_kill_between_the_last_knock_and_the_opening_leaves_nothing_to_replay(world: World) -> None:
    """T18, T20: the real daemon, killed while it takes in the last knock: whoever knocks the same then is too late."""
    plain = ["7000/tcp", "8000/tcp", "9000/tcp"]
    configure(world, *SECRETS, more=f'[doors.plain]\nsequence = {json.dumps(plain)}\nopens = ["80/tcp"]\n')
    world.apply()
    for number, client in enumerate(SECRETS):
        with world.daemon() as daemon:
            *first, last = forged(world, STRANGERS[number], heard := sequence(client))
            world.spoof(*first)
            daemon.wait_for(f"{STRANGERS[number]}: ssh: Stage 3")
            daemon.signal(signal.SIGSTOP)
            world.spoof(last)
            daemon.signal(signal.SIGCONT)
            time.sleep(number * 0.002)
            daemon.process.kill()
            daemon.process.wait()
        opened = [source for source in world.granted() if source.startswith(STRANGERS[number])]
        with world.daemon() as daemon:
            world.knock(*heard)
            attempt(world, daemon, plain, "10.99.0.2: plain: OPEN SESAME")
            assert len(opened) + daemon.says(OPENS) <= 1
