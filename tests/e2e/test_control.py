"""Doors opened and closed by hand, reloads, who may ask for them, and clients that do harm: with the real daemon."""

import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from logknock.control import MAX_CLIENTS, MAX_REQUEST
from logknock.feed import MAX_WATCHERS
from logknock.firewall.sets import GRANTED, Element, Sets, key
from logknock.knock import Service
from logknock.packet import parse_address

from .world import KNOCKS, PATIENCE, SSH, Daemon, World, until

HOOKED = """
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp"]
timeout = "30s"
on_open = ["/usr/bin/touch", "{folder}/opened"]
on_close = ["/usr/bin/touch", "{folder}/closed"]

[doors.lock]
sequence = ["9001/udp", "8001/tcp", "7001/tcp"]
closes = ["ssh"]
"""

# Sends a line to the socket in this directory, and prints all that comes back, be it hung up on at once or not.
ASK = """
import contextlib, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("control.sock")
with contextlib.suppress(BrokenPipeError):
    s.sendall(sys.argv[1].encode() + b"\\n")
    s.shutdown(socket.SHUT_WR)
with contextlib.suppress(ConnectionResetError):
    while some := s.recv(65536):
        print(some.decode(), end="")
"""

GROUP = 45_678


@contextmanager
def running(world: World, text: str = SSH) -> Iterator[Daemon]:
    world.configure(text)
    world.apply()
    with world.daemon() as daemon:
        yield daemon
        assert not daemon.says("Traceback")


def asked(world: World, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = world.gateway.logknock(*words, "-c", str(world.config), check=False)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def grants(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in asked(world, "grants", "--json").stdout.splitlines()]


def history(world: World, code: int = 0) -> list[tuple[str, str]]:
    found = json.loads(asked(world, "status", "--json", code=code).stdout)["history"]
    return [(entry["event"], entry["detail"]) for entry in found]


# ---- by hand


def test_the_story_of_a_door_opened_by_hand(world: World) -> None:
    """By the same way as a knock: on record, in the sets, with what the door runs; and who did it is told."""
    folder = world.config.parent
    with running(world, HOOKED.format(folder=folder)) as daemon, world.service(22):
        assert asked(world, "grants").stdout == "no door is open\n"
        assert not world.reaches()
        assert asked(world, "grant", "ssh", "10.99.0.2", "2h").stdout == "ssh is open for 10.99.0.2 for 2h\n"
        assert world.reaches()
        until((folder / "opened").exists, "what the door runs when it opens")
        element = world.granted()["10.99.0.2 . tcp . 22"]
        assert (element["timeout"], element["comment"]) == (7200, "ssh")
        daemon.wait_for("10.99.0.2: ssh: opened by root (uid 0) for 7200 s")
        (found,) = grants(world)
        assert 7100 < found.pop("left") <= 7200
        assert found == {"door": "ssh", "address": "10.99.0.2", "by": "root (uid 0)", "open": True}
        assert re.search(
            r"^ssh +10\.99\.0\.2 +(2h|1h59m) +root \(uid 0\)$", asked(world, "grants").stdout, re.MULTILINE
        )
        assert history(world) == [("opened", "7200 s, by root (uid 0)")]
        assert asked(world, "revoke", "ssh", "10.99.0.2").stdout == "ssh is closed for 10.99.0.2\n"
        assert world.granted() == {}
        until((folder / "closed").exists, "what the door runs when it closes")
        daemon.wait_for("10.99.0.2: ssh: closed by root (uid 0)")
        until(lambda: history(world)[0] == ("ended", "by root (uid 0)"), "its end in the history")


def test_the_usual_time_is_the_door_s_and_a_new_time_counts(world: World) -> None:
    with running(world):
        assert asked(world, "grant", "ssh", "192.0.2.7").stdout == "ssh is open for 192.0.2.7 for 30s\n"
        asked(world, "grant", "ssh", "192.0.2.7", "1h")
        asked(world, "grant", "ssh", "192.0.2.7", "10m")
        assert world.granted()["192.0.2.7 . tcp . 22"]["timeout"] == 600, "a shorter one too"
        asked(world, "grant", "ssh", "2001:db8::7", "365d")
        assert world.granted("granted6")["2001:db8::7 . tcp . 22"]["timeout"] == 365 * 86_400
        asked(world, "grant", "ssh", "::ffff:192.0.2.8")
        assert "192.0.2.8 . tcp . 22" in world.granted(), "IPv4 in IPv6 form is that IPv4 address"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        pytest.param(
            ("web", "192.0.2.7"), 2, "there is no door web\nhint: the doors are: ssh, lock", id="no such door"
        ),
        pytest.param(("\x1b[2J", "192.0.2.7"), 2, r"there is no door \x1b[2J", id="a door that is none"),
        pytest.param(("lock", "192.0.2.7"), 1, "door lock opens nothing: it closes ssh", id="a door that only closes"),
        pytest.param(("ssh", "fe80::1%eth0"), 2, "has a zone", id="a zone"),
        pytest.param(("ssh", "host.example"), 2, "is no IP address", id="a name"),
        pytest.param(("ssh", "192.0.2.0/24"), 2, "is no IP address", id="a network"),
        pytest.param(("ssh", "192.0.2.7", "366d"), 2, "366d is out of range (1s-365d)", id="too long"),
        pytest.param(("ssh", "192.0.2.7", "0s"), 2, "0s is out of range (1s-365d)", id="no time"),
        pytest.param(("ssh", "192.0.2.7", "7"), 2, "'7' has no unit", id="a time without a unit"),
        pytest.param(("ssh", "127.0.0.1"), 1, "a loopback address\nhint: no door ever opens for it", id="loopback"),
        pytest.param(("ssh", "::1"), 1, "a loopback address", id="loopback, IPv6"),
        pytest.param(("ssh", "0.0.0.0"), 1, "the unspecified address", id="unspecified"),
        pytest.param(("ssh", "224.0.0.1"), 1, "multicast", id="multicast"),
        pytest.param(("ssh", "255.255.255.255"), 1, "broadcast", id="broadcast"),
        pytest.param(("ssh", "10.99.0.255"), 1, "broadcast", id="the link's broadcast"),
        pytest.param(("ssh", "10.99.0.1"), 1, "this host", id="this host's own"),
        pytest.param(("ssh", "fd99::1"), 1, "this host", id="this host's own, IPv6"),
    ],
)
def test_t37_what_is_never_opened_by_hand_either(
    words: tuple[str, ...], code: int, says: str, open_world: World
) -> None:
    """T37, and what makes no sense: one error, which says what to write instead; nothing is opened or recorded."""
    done = asked(open_world, "grant", *words, code=code)
    assert says in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stdout == ""
    assert open_world.granted() == {}
    assert grants(open_world) == []


@pytest.fixture
def open_world(world: World, tmp_path: Path) -> Iterator[World]:
    with running(world, HOOKED.format(folder=tmp_path)):
        yield world


def test_revoke_closes_what_is_named_and_no_more(world: World) -> None:
    ssh = SSH.replace("30s", "10m")
    two = ssh + ssh.replace("doors.ssh", "doors.web").replace("00/", "11/").replace("22/tcp", "80/tcp")
    with running(world, two):

        def opened() -> set[str]:
            return {f"{grant['door']} {grant['address']}" for grant in grants(world)}

        for door in ("ssh", "web"):
            for address in ("192.0.2.7", "192.0.2.8"):
                asked(world, "grant", door, address)
        asked(world, "revoke", "web", "192.0.2.7")
        assert opened() == {"ssh 192.0.2.7", "ssh 192.0.2.8", "web 192.0.2.8"}
        assert asked(world, "revoke", "web", "192.0.2.7", code=1).stderr.startswith(
            "logknock: web is not open for 192.0.2.7\nhint: `logknock grants` lists what is"
        )
        asked(world, "revoke", "192.0.2.8")
        assert opened() == {"ssh 192.0.2.7"}
        asked(world, "grant", "web", "192.0.2.9")
        asked(world, "revoke", "--all", "web")
        assert opened() == {"ssh 192.0.2.7"}
        asked(world, "revoke", "--all")
        assert opened() == set()
        assert world.granted() == {}
        for wrong in ((), ("--all", "ssh", "192.0.2.7"), ("a", "b", "192.0.2.7"), ("ssh",)):
            asked(world, "revoke", *wrong, code=2)


def test_what_is_opened_by_hand_has_its_time_whatever_comes(world: World) -> None:
    """A knock, a stricter configuration, a flushed table, a killed daemon: none shortens or lengthens it."""
    with running(world) as daemon:
        asked(world, "grant", "ssh", "10.99.0.2", "2h")
        world.knock(*KNOCKS)
        daemon.wait_for("OPEN SESAME")
        assert world.granted()["10.99.0.2 . tcp . 22"]["timeout"] > 7000, "a knock does not shorten it"
        world.config.write_text(world.config.read_text().replace("30s", "10s"))
        asked(world, "reload")
        world.gateway.run("nft", "flush", "set", "inet", "logknock", "granted4")
        until(lambda: "10.99.0.2 . tcp . 22" in world.granted(), "it is put back")
        assert world.granted()["10.99.0.2 . tcp . 22"]["expires"] > 7000
        (before,) = grants(world)
        daemon.process.kill()
        daemon.process.wait()
    world.gateway.run("nft", "flush", "set", "inet", "logknock", "granted4")
    with world.daemon() as daemon:
        daemon.wait_for("1 door is still open")
        until(lambda: "10.99.0.2 . tcp . 22" in world.granted(), "it is put back")
        (after,) = grants(world)
        assert 7000 < after["left"] < before["left"]
        assert after["by"] == "root (uid 0)"
        assert 7000 < world.granted()["10.99.0.2 . tcp . 22"]["timeout"] <= 7200


def test_a_firewall_that_refuses_is_told_to_who_asked(world: World) -> None:
    """And what is on record opens as soon as it can."""
    with running(world, SSH + "[firewall]\nrestore = false\n") as daemon:
        rules = world.gateway.run("nft", "list", "table", "inet", "logknock").stdout
        world.gateway.run("nft", "delete", "table", "inet", "logknock")
        daemon.wait_for("error: ")
        done = asked(world, "grant", "ssh", "10.99.0.2", "1h", code=1)
        assert done.stderr.startswith("logknock: ssh is not open for 10.99.0.2: ")
        assert "hint: it is on record, and opens as soon as the firewall takes it" in done.stderr
        world.gateway.nft(rules)
        until(lambda: "10.99.0.2 . tcp . 22" in world.granted(), "it opens")


def test_a_ban_ends_where_a_door_is_opened(world: World) -> None:
    with running(world):
        asked(world, "ban", "192.0.2.7")
        asked(world, "grant", "ssh", "192.0.2.7")
        assert asked(world, "bans").stdout == "nobody is banned\n"


# ---- who may


def test_root_and_the_group_may_and_strangers_may_not(world: World) -> None:
    """By what the kernel says of who connects; and what a member does is told under the member's name."""
    folder = world.config.parent
    (folder / "group").write_text(f"root:x:0:\nlogknock:x:{GROUP}:\n")
    with_group = ("sh", "-c", f'mount --bind {folder}/group /etc/group && exec "$@"', "sh")
    world.apply()
    command = [*with_group, sys.executable, "-m", "logknock", "run", "-c", str(world.config)]
    process = world.gateway.start(*command, stderr=subprocess.PIPE)
    daemon = Daemon(process)
    try:
        daemon.wait_for("ready")
        there = (folder / "run" / "control.sock").stat()
        assert (there.st_gid, there.st_mode & 0o777) == (GROUP, 0o660)
        request = json.dumps({"version": 1, "do": "grant", "door": "ssh", "address": "192.0.2.7"})

        def as_somebody(uid: int, gid: int, groups: str) -> str:
            who = ("setpriv", f"--reuid={uid}", f"--regid={gid}", groups)
            argv = (*who, "/usr/bin/python3", "-c", ASK, request)
            done = world.gateway.run(*argv, check=False, cwd=folder / "run")
            return done.stdout + done.stderr

        assert "Permission denied" in as_somebody(65534, 65534, "--clear-groups")
        (folder / "run" / "control.sock").chmod(0o666)  # even then
        for do in ("grant", "revoke", "reload", "watch", "status", "grants"):
            request = json.dumps({"version": 1, "do": do, "door": "ssh", "address": "192.0.2.7", "all": True})
            assert '"not permitted"' in as_somebody(65534, 65534, "--clear-groups")
            assert '"not permitted"' in as_somebody(65534, 65534, "--groups=1,2,3")
        (folder / "run" / "control.sock").chmod(0o660)
        assert grants(world) == []
        request = json.dumps({"version": 1, "do": "grant", "door": "ssh", "address": "192.0.2.7"})
        assert '"done": true' in as_somebody(65534, GROUP, "--clear-groups"), "its own group"
        assert '"done": true' in as_somebody(65534, 65534, f"--groups=1,{GROUP}"), "one of several"
        daemon.wait_for("192.0.2.7: ssh: opened by nobody (uid 65534) for 30 s")
        assert history(world)[0] == ("opened", "30 s, by nobody (uid 65534)")
        assert '"done": true' in as_somebody(0, 0, "--clear-groups")
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_while_the_configuration_is_wrong_the_daemon_can_be_asked(world: World) -> None:
    """It runs, and its doors can be closed, as long as the file says where its socket is."""
    with running(world):
        asked(world, "grant", "ssh", "192.0.2.7")
        world.config.write_text(world.config.read_text() + "nonsense = 1\n")
        assert [grant["address"] for grant in grants(world)] == ["192.0.2.7"]
        asked(world, "revoke", "192.0.2.7")
        world.config.write_text("[[[")
        assert asked(world, "grants", code=78).stderr.startswith(f"logknock: {world.config}")


def test_what_the_firewall_does_not_have_is_told_from_what_is_open(world: World) -> None:
    """Held to, and shut for all that: a table that is gone, here."""
    with running(world, SSH + "[firewall]\nrestore = false\n"):
        asked(world, "grant", "ssh", "192.0.2.7", "1h")
        assert "not in" not in asked(world, "grants").stdout
        world.gateway.run("nft", "delete", "table", "inet", "logknock")
        until(lambda: [grant["open"] for grant in grants(world)] == [False], "that it is seen")
        assert "root (uid 0)  not in the firewall\n" in asked(world, "grants").stdout
        assert "by root (uid 0)  not in the firewall\n" in asked(world, "status", code=1).stdout
        assert json.loads(asked(world, "status", "--json", code=1).stdout)["open"][0]["open"] is False
        world.apply()
        until(lambda: [grant["open"] for grant in grants(world)] == [True], "that it is open again")


def test_programs_get_json_of_what_was_done(world: World) -> None:
    with running(world):
        made = json.loads(asked(world, "grant", "ssh", "192.0.2.7", "1h", "--json").stdout)
        assert made == {"door": "ssh", "address": "192.0.2.7", "left": made["left"], "by": "root (uid 0)", "open": True}
        assert json.loads(asked(world, "revoke", "192.0.2.7", "--json").stdout) == {
            "door": "ssh",
            "address": "192.0.2.7",
        }
        assert json.loads(asked(world, "reload", "--json").stdout) == {"reloaded": True, "lines": [], "code": 0}
        world.config.write_text(world.config.read_text() + "nonsense = 1\n")
        refused = json.loads(asked(world, "reload", "--json", code=78).stdout)
        assert (refused["reloaded"], refused["code"]) == (False, 78)
        assert "nonsense: unknown key" in refused["lines"][0]


def test_a_control_socket_that_is_not_there_is_made_again(world: World) -> None:
    """Whatever was in its way at the start, and whoever removes it later; who could not ask can, a second later."""
    world.configure(SSH)
    world.apply()
    path = world.config.parent / "run" / "control.sock"
    path.mkdir(parents=True)
    with world.daemon() as daemon:
        daemon.wait_for("nobody can ask this daemon anything")
        asked(world, "grants", code=69)
        path.rmdir()
        daemon.wait_for("this daemon can be asked again")
        assert json.loads(asked(world, "status", "--json").stdout)["degraded"] == []
        path.unlink()
        until(path.exists, "the socket")
        assert grants(world) == []
        assert sum("nobody can ask" in line for line in daemon.lines) == 1


# ---- reload


def test_the_runtime_directory_cannot_change_while_it_runs(world: World) -> None:
    """The control socket is there, and whoever asks would look for it elsewhere."""
    with running(world) as daemon:
        before = world.config.read_text()
        world.config.write_text(before.replace('/run"', '/other"'))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("[paths] runtime cannot change while logknock runs")
        world.config.write_text(before)
        assert asked(world, "reload").stdout == "reloaded\n"


# Large enough for its reading to be seen.
LARGE = SSH + SSH.replace("doors.ssh", "doors.web").replace("00/", "11/").replace("22/tcp", "80/tcp") + "#" * 100_000


@contextmanager
def held_while_it_reads(world: World, daemon: Daemon) -> Iterator[None]:
    """The configuration is LARGE; what reads it for the daemon has all of it, and goes on when the block ends."""

    def bytes_read() -> int:
        return int(Path(f"/proc/{daemon.process.pid}/io").read_text().split()[1])  # rchar: proc(5)

    world.configure(LARGE)
    hold = ("-e", "trace=read", "-e", "inject=read:delay_exit=60000000:when=1", "-P", str(world.config))
    words = ("strace", "-f", "-p", str(daemon.process.pid), *hold)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            before = bytes_read()
            daemon.signal(signal.SIGHUP)
            until(lambda: bytes_read() > before + len(LARGE) // 2, "the file to be read")
            yield
        finally:
            tracer.kill()


def test_while_a_reload_reads_knocks_open_and_questions_are_answered(world: World) -> None:
    """The loop goes on: whoever reloads keeps nobody waiting."""
    with running(world) as daemon, socket.socket(socket.AF_UNIX) as wire:
        with held_while_it_reads(world, daemon):
            wire.connect(str(world.config.parent / "run" / "control.sock"))
            wire.sendall(b'{"version": 1, "do": "status"}\n' * 5)
            lines = wire.makefile()
            for _ in range(5):
                standing = json.loads(lines.readline())["standing"]
                assert [door["name"] for door in standing["doors"]] == ["ssh"], "the configuration is not read yet"
                assert lines.readline() == '{"done": true}\n'
            assert times(world, ["198.51.100.1"])
            assert not daemon.says("reloaded")
        daemon.wait_for("reloaded: NFLOG group 5, doors: ssh, web")


def test_a_reload_that_is_asked_for_during_another_has_what_was_written_meanwhile(world: World) -> None:
    with running(world) as daemon:
        with held_while_it_reads(world, daemon):
            world.configure(SSH.replace("doors.ssh", "doors.late"))
            for _ in range(20):
                daemon.signal(signal.SIGHUP)
            daemon.counter("records")  # told when it has heard of them
        daemon.wait_for("reloaded: NFLOG group 5, doors: late")
        asked(world, "reload")
        told = [line.rpartition(" ")[2] for line in daemon.lines if line.startswith("reloaded")]
        assert set(told) == {"late", "web"}, told
        assert told == sorted(told, reverse=True)
        assert len(told) < 10, "those that come together are one"


def test_a_daemon_that_is_stopped_while_it_reads_the_configuration_ends_in_peace(world: World) -> None:
    """Not even where a command has its time to end, in which the files have long been read."""
    world.configure(SSH + 'on_open = ["/usr/bin/sleep", "1.5"]\n')
    world.apply()
    with world.daemon() as daemon:
        asked(world, "grant", "ssh", "192.0.2.7")
        with held_while_it_reads(world, daemon):
            daemon.signal(signal.SIGTERM)
            until(lambda: not (world.config.parent / "run" / "control.sock").exists(), "its end to begin")
        assert daemon.process.wait(PATIENCE) == 0
        assert not daemon.says("reloaded")
        assert daemon.lines[-1].startswith("stopped"), daemon.lines
        assert not daemon.says("Traceback")
        assert not daemon.says("exception")


def test_a_door_that_a_reload_has_removed_is_closed_by_its_name(world: World) -> None:
    web = SSH.replace("doors.ssh", "doors.web").replace("00/", "11/").replace("22/tcp", "80/tcp")
    with running(world, SSH + web):
        asked(world, "grant", "web", "192.0.2.7")
        world.configure(SSH)
        asked(world, "reload")
        assert [grant["door"] for grant in grants(world)] == ["web"]
        assert asked(world, "revoke", "web", "192.0.2.7").stdout == "web is closed for 192.0.2.7\n"
        assert grants(world) == []
        asked(world, "grant", "web", "192.0.2.7", code=2)


def test_a_reload_says_of_metrics_that_they_cannot_be_had(world: World) -> None:
    there = world.config.parent / "there"
    there.write_text("")
    with running(world):
        world.configure(SSH + f'[metrics]\nlisten = "unix:{there}"\n')
        done = asked(world, "reload")
        assert done.stdout == "reloaded\n"
        assert f"logknock: warning: no metrics at unix:{there}: it is there and is no socket\nhint: " in done.stderr


def test_a_reload_says_what_check_says_and_t36_changes_nothing(world: World) -> None:
    """T36: exit code 78 and every error in check's own lines; the daemon, its doors and its attempts go on."""
    with running(world, SSH + 'seq_timeout = "2m"\n') as daemon:
        assert asked(world, "reload").stdout == "reloaded\n"
        world.knock(*KNOCKS[:2])
        daemon.wait_for("Stage 2")
        world.config.write_text(world.config.read_text() + 'nonsense = 1\nopens = 7\ntimeout = "9999d"\n')
        world.config.write_text(world.config.read_text().replace('opens = ["22/tcp"]\ntimeout = "30s"\n', ""))
        wrong = asked(world, "check", code=78).stderr
        assert len(wrong.splitlines()) >= 3
        done = asked(world, "reload", code=78)
        assert done.stderr.startswith(wrong)
        assert done.stderr.endswith("not reloaded: the configuration from before stays in force\n")
        daemon.wait_for("not reloaded")
        world.knock(KNOCKS[2])
        daemon.wait_for("OPEN SESAME")


def test_a_reload_warns_and_says_when_the_rules_are_to_be_loaded(world: World) -> None:
    with running(world):
        world.configure(SSH.replace("22/tcp", "2222/tcp").replace(', "9000/udp"]', "]"))
        warned = asked(world, "check").stderr
        done = asked(world, "reload")
        assert done.stdout == "reloaded\n"
        lines = done.stderr.splitlines()
        assert "logknock: warning: set inet logknock guarded still has 22/tcp" in lines
        assert "logknock: warning: set inet logknock guarded lacks 2222/tcp" in lines
        assert "hint: the configuration is newer than the rules: `logknock rules apply`" in lines
        assert set(warned.splitlines()) & set(lines), "what check warns of"
        world.apply()
        assert "lacks" not in asked(world, "reload").stderr


def test_reloads_asked_for_at_once_come_one_by_one(world: World) -> None:
    with running(world) as daemon:
        begin = time.monotonic()
        argv = [sys.executable, "-m", "logknock", "reload", "-c", str(world.config)]
        many = [world.gateway.start(*argv, stdout=subprocess.DEVNULL) for _ in range(4)]
        assert [process.wait(60) for process in many] == [0] * 4
        assert time.monotonic() - begin >= 3.0
        daemon.read()
        # Those that a daemon which was late got to at the same time share one.
        assert 2 <= sum("reloaded: " in line for line in daemon.lines) <= 4


@pytest.mark.parametrize("command", [("grants",), ("grant", "ssh", "192.0.2.7"), ("revoke", "192.0.2.7"), ("reload",)])
def test_without_a_daemon_that_is_what_is_said(world: World, command: tuple[str, ...]) -> None:
    done = asked(world, *command, code=69)
    assert done.stderr.startswith("logknock: no daemon answers at ")
    assert "starts it; [paths] runtime must be the same" in done.stderr


# ---- requests and clients that do harm

REQUESTS: list[dict[str, Any]] = [
    {"do": "grant"},
    {"do": "grant", "door": ["ssh"], "address": "192.0.2.7"},
    {"do": "grant", "door": "ssh"},
    {"do": "grant", "door": "ssh", "address": 7},
    {"do": "grant", "door": "ssh", "address": "192.0.2.7", "seconds": "7"},
    {"do": "grant", "door": "ssh", "address": "192.0.2.7", "seconds": True},
    {"do": "grant", "door": "ssh", "address": "192.0.2.7", "seconds": -1},
    {"do": "grant", "door": "ssh", "address": "192.0.2.7", "seconds": 1e300},
    {"do": "grant", "door": "ssh", "address": "192.0.2.7", "seconds": float("nan")},
    {"do": "grant", "door": "ssh", "address": "192.0.2.7", "seconds": 10**400},
    {"do": "grant", "door": "ssh", "address": "192.0.2.7\x1b[2J"},
    {"do": "revoke"},
    {"do": "revoke", "all": 1},
    {"do": "revoke", "door": {}, "all": True},
    {"do": "revoke", "address": None},
    {"do": "reboot"},
    {"do": ["watch"]},
]


def test_requests_that_make_no_sense_are_an_error_each_and_open_nothing(world: World) -> None:
    with running(world) as daemon:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(20)
            wire.connect(str(world.config.parent / "run" / "control.sock"))
            stream = wire.makefile("rw")
            for request in REQUESTS:
                text = json.dumps({"version": 1, **request})
                stream.write(text[:MAX_REQUEST] + "\n")
                stream.flush()
                assert "error" in json.loads(stream.readline()), text
        assert grants(world) == []
        assert not daemon.says("Traceback")


@contextmanager
def harm(world: World) -> Iterator[None]:
    """Clients of every bad kind at once: as many as there may be, and more that come and go."""
    path = str(world.config.parent / "run" / "control.sock")
    hostile = f"""
import json, os, socket, sys, time
def meet():
    wire = socket.socket(socket.AF_UNIX)
    wire.connect({path!r})
    return wire
def ask(**what):
    return json.dumps(dict(version=1, **what)).encode() + b"\\n"
kept = []
match sys.argv[1]:
    case "silent":
        kept = [meet() for _ in range(2)]
        print("there", flush=True)
        time.sleep(600)
    case "watchers":  # that never read
        for _ in range({MAX_WATCHERS}):
            kept.append(meet())
            kept[-1].sendall(ask(do="watch"))
        print("there", flush=True)
        time.sleep(600)
    case kind:
        what = {{
            "garbage": b"\\xff" * 3000 + b"\\n" + b"[" * 4000 + b"\\n",
            "grants": ask(do="grant", door="ssh", address="192.0.2.99", seconds=60) * 20,
            "status": ask(do="status") * 50,
            "reload": ask(do="reload") * 50,
            "long": b"x" * 1_000_000,
        }}[kind]
        print("there", flush=True)
        while True:
            try:
                with meet() as wire:
                    wire.settimeout(0.2)
                    wire.sendall(what)
                    wire.recv(1 << 16)
            except OSError:
                pass
"""
    kinds = ("silent", "watchers", "garbage", "grants", "status", "reload", "long")
    with ExitStack() as undo:
        for kind in kinds:
            process = subprocess.Popen([sys.executable, "-c", hostile, kind], stdout=subprocess.PIPE, text=True)
            undo.callback(process.wait)
            undo.callback(process.kill)
            assert process.stdout is not None
            undo.callback(process.stdout.close)
            assert process.stdout.readline() == "there\n"
        yield


def syn(src: str, dst: str, port: int, proto: int) -> bytes:
    if proto == 6:
        body = struct.pack("!HHIIBBHHH", 20_000, port, 1, 0, 5 << 4, 2, 64_240, 0, 0)
    else:
        body = struct.pack("!HHHH", 20_000, port, 9, 0) + b"\0"
    total = 20 + len(body)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 1, 0, 64, proto, 0, parse_address(src), parse_address(dst))
    return head + body


def times(world: World, sources: list[str]) -> list[float]:
    """Seconds from the last knock of each source until the kernel has its element."""
    found = []
    with world.gateway.inside():
        sets = Sets()
    with world.client.inside():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        for src in sources:
            for port, proto in ((7000, 6), (8000, 6), (9000, 17)):
                time.sleep(0.01)
                raw.sendto(syn(src, world.gateway.ipv4, port, proto), (world.gateway.ipv4, 0))
            begin = time.monotonic()
            element = Element(GRANTED[4], key(parse_address(src), Service(6, 22)))
            while not sets.has(element):
                assert time.monotonic() < begin + 20, f"no door for {src}"
                time.sleep(0.0002)
            found.append(time.monotonic() - begin)
    sets.disconnect()
    return found


def peak(daemon: Daemon) -> int:
    """The most memory that it ever had, in kB (VmHWM of proc(5))."""
    return int(Path(f"/proc/{daemon.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])


LIST = ("grants", "--json", "-c")


def test_clients_that_do_harm_do_not_delay_a_knock(world: World) -> None:
    """Silent, slow, flooding and malformed ones at once; two cores are shared with them, and with other tests."""
    with running(world, SSH + "[firewall]\nrestore = false\n") as daemon:
        before = times(world, [f"198.51.100.{number}" for number in range(1, 31)])
        most = peak(daemon)
        with harm(world):
            time.sleep(1.0)
            meanwhile = times(world, [f"203.0.113.{number}" for number in range(1, 61)])
        assert statistics.median(meanwhile) < statistics.median(before) + 0.03, "30 ms: no knocker notices"
        assert sorted(meanwhile)[-3] < 1.0, "but for a moment in which the machine may do something else"
        assert MAX_WATCHERS < MAX_CLIENTS
        # What those who are gone have asked for is being answered for a moment.
        until(lambda: "too many" not in world.gateway.logknock(*LIST, str(world.config), check=False).stderr, "a place")
        assert grants(world), "it answers as before"
        assert daemon.process.poll() is None
        assert peak(daemon) < most + 10_000, "kB, however many there were: what each leaves is soon cleared away"


def test_a_daemon_that_is_stopped_and_asked_says_nothing_in_vain(world: World) -> None:
    """A stopped process does not answer: that is said after a while, and nothing waits for ever."""
    with running(world) as daemon:
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            done = asked(world, "status", code=1)
            assert "how it stands is not known" in done.stdout
            assert "the daemon does not answer" in done.stdout
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
