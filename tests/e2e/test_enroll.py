"""A client from `enroll` and `keygen` to `revoke-client`, beside the running daemon: in at once, and out at once."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from logknock.errors import BAD_CONFIG, FAILURE

from ..config_files import write
from .world import World, until

CONFIG = """
[totp]
host = "gate.example"
[doors.ssh]
opens = ["8022/tcp"]
timeout = "10m"
totp = {step = "10s"}
[doors.vpn]
opens = ["8022/tcp", "1194/udp"]
timeout = "10m"
spa = {}
"""


@pytest.fixture
def doors(world: World) -> World:
    """Both doors without clients, their rules loaded."""
    world.configure(CONFIG)
    world.apply()
    return world


def open_for(world: World) -> list[tuple[str, str]]:
    """Which doors are open, and who opened them."""
    lines = world.gateway.logknock("grants", "--json", "-c", str(world.config)).stdout.splitlines()
    return [(grant["door"], grant["by"]) for grant in map(json.loads, lines)] if lines != ["no door is open"] else []


def told(world: World, *words: str) -> dict[str, str]:
    """What a command says on the gateway, as JSON."""
    found: dict[str, str] = json.loads(world.gateway.logknock(*words, "--json", "-c", str(world.config)).stdout)
    return found


def knock(world: World, tmp_path: Path, profile: str, timeout: str = "5s") -> subprocess.CompletedProcess[str]:
    """`logknock knock PROFILE` with a client.toml of this text, one try."""
    file = write(tmp_path, profile, "client/client.toml")
    name = profile.partition("[profiles.")[2].partition("]")[0]
    tries = ["--tries", "1", "--timeout", timeout] if "verify" in profile else []
    return world.client.logknock("knock", "--profiles", str(file), name, *tries, check=False)


def test_a_client_is_in_as_soon_as_it_is_enrolled_and_out_as_soon_as_it_is_revoked(
    doors: World, tmp_path: Path
) -> None:
    """No restart, no reload by hand: the printed profile knocks. What is open closes with the client."""
    with doors.daemon(), doors.service(8022):
        laptop = told(doors, "enroll", "ssh", "laptop", "--address", doors.gateway.ipv4)
        phone = told(doors, "keygen", "vpn", "phone", "--allow", "1194/udp", "--write", "--address", doors.gateway.ipv4)
        doors.gateway.logknock("grant", "ssh", "198.51.100.7", "-c", str(doors.config))
        (by_hand,) = open_for(doors)
        # That 8022/tcp answers, the profile asks for.
        assert knock(doors, tmp_path, laptop["profile"], "20s").returncode == 0
        assert knock(doors, tmp_path, phone["profile"]).returncode == 0
        until(lambda: len(open_for(doors)) == 3, "both doors open")
        both = [("ssh", "client laptop"), ("vpn:1194/udp", "client phone")]
        assert sorted(open_for(doors)) == sorted([by_hand, *both])
        listed = doors.gateway.logknock("clients", "--json", "-c", str(doors.config)).stdout.splitlines()
        used = {found["client"]: found["used"] for found in map(json.loads, listed)}
        assert all(abs(time.time() - when) < 60 for when in used.values()), used

        out = doors.gateway.logknock("revoke-client", "ssh", "laptop", "-c", str(doors.config))
        assert out.stdout.splitlines() == [
            f"{doors.config.parent}/clients/ssh.laptop.toml is removed",
            f"ssh is closed for {doors.client.ipv4}",
        ]
        assert sorted(open_for(doors)) == sorted([by_hand, both[1]]), "what others opened stays open"
        out = doors.gateway.logknock("revoke-client", "vpn", "phone", "-c", str(doors.config))
        assert f"vpn:1194/udp is closed for {doors.client.ipv4}" in out.stdout
        assert open_for(doors) == [by_hand]
        assert [key.split()[0] for key in doors.granted()] == ["198.51.100.7"]

        time.sleep(1)  # nothing more is to come of what was sent before
        assert knock(doors, tmp_path, phone["profile"]).returncode == 0, "who sends a packet alone is told nothing"
        said = knock(doors, tmp_path, laptop["profile"])
        assert (said.returncode, "did not answer" in said.stderr) == (FAILURE, True), said
        time.sleep(0.5)
        assert open_for(doors) == [by_hand]


def test_what_the_daemon_says_to_a_reload_is_said(doors: World) -> None:
    """That rules have to be loaded, where the new client's door is new; and that it refuses a configuration."""
    with doors.daemon():
        done = doors.gateway.logknock("enroll", "ssh", "a", "-c", str(doors.config))
        assert done.stderr.splitlines()[-1] == "logknock: reloaded"
        doors.configure(CONFIG.replace("totp = {", 'totp = {ports = ["30000-30499/tcp", "30000-30499/udp"], '))
        done = doors.gateway.logknock("enroll", "ssh", "b", "-c", str(doors.config))
        assert "logknock rules apply" in done.stderr
        assert done.stderr.splitlines()[-1] == "logknock: reloaded"
        later = doors.config.parent / "clients" / "ssh.c.toml"
        doors.configure(f"{CONFIG}[clients.ssh.c]\nsecret = 5\n")
        done = doors.gateway.logknock("enroll", "ssh", "c", "-c", str(doors.config), check=False)
        assert (done.returncode, done.stdout, later.exists()) == (BAD_CONFIG, "", False)
