"""Whatever others do to the firewall: the rules come back, and every open door with the time that it has left."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from logknock.firewall.watch import Change, Watch

from ..netns import pair
from ..test_watch import many_elements
from .world import KNOCKS, SSH, Daemon, World, until

SSH_4 = "10.99.0.2 . tcp . 22"
MINE = "table inet mine { set allowed { type ipv4_addr; flags timeout; }; set black { type ipv4_addr; }; }\n"
OWN = SSH.replace('"30s"', '"1h"') + 'sets = ["inet mine allowed"]\n'
DONE = '[doors.done]\nsequence = ["9000/udp", "8000/tcp", "7000/tcp"]\ncloses = ["ssh"]\n'

# What Debian's /etc/nftables.conf begins with, and an administrator's own set.
RELOAD = f"""#!/usr/sbin/nft -f
flush ruleset
{MINE}
table inet filter {{
	chain input {{ type filter hook input priority filter; policy accept; tcp dport 25 drop; }}
}}
"""


@pytest.fixture
def opened(world: World) -> Iterator[Daemon]:
    """A daemon with one open door, in our set and in an administrator's."""
    world.configure(OWN + DONE)
    world.gateway.nft(MINE)
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        yield daemon


def rules(world: World) -> str:
    """The chains of our table; empty where there is none."""
    return world.gateway.run("nft", "-s", "list", "chain", "inet", "logknock", "guard", check=False).stdout


def everything(world: World) -> list[str]:
    """What was loaded, in any order: chains with their rules, sets, and what is guarded."""
    lists = (("-st", "list", "table", "inet", "logknock"), ("list", "set", "inet", "logknock", "guarded"))
    return sorted(line for words in lists for line in world.gateway.run("nft", *words).stdout.splitlines())


def mine(world: World) -> str:
    """The administrator's set, in nft's words."""
    return world.gateway.run("nft", "list", "set", "inet", "mine", "allowed", check=False).stdout


def is_whole(world: World) -> bool:
    """Whether the rules are there, and both elements with an end that is not later than the door's."""
    element = world.granted().get(SSH_4, {})
    return (
        "@guarded" in rules(world)
        and 0 < element.get("expires", 0) <= 3600
        and re.search(r"10\.99\.0\.2 timeout \S+ expires ", mine(world)) is not None
    )


@contextmanager
def listening(world: World) -> Iterator[list[Change]]:
    """What happens to our table and the administrator's set meanwhile, whoever does it."""
    with world.gateway.inside():
        watch = Watch(0)
    found: list[Change] = []
    try:
        yield found
        before = -1
        while watch.deliveries != before:
            before = watch.deliveries
            found += watch.read()
    finally:
        watch.close()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        pytest.param("flush ruleset\n" + MINE, "table inet logknock was deleted by nft (process ", id="flush ruleset"),
        pytest.param(RELOAD, "table inet logknock was deleted by nft (process ", id="a firewall's reload"),
        pytest.param(
            "delete table inet logknock", "table inet logknock was deleted by nft (process ", id="delete table"
        ),
        pytest.param("flush table inet logknock", "rules of table inet logknock were deleted by nft", id="flush table"),
        pytest.param(
            "flush chain inet logknock guard", "rules of chain inet logknock guard were deleted", id="flush chain"
        ),
        pytest.param(
            "flush chain inet logknock guarded", "rules of chain inet logknock guarded were", id="flush chain guarded"
        ),
        pytest.param(
            "flush set inet logknock guarded", "elements of set inet logknock guarded were", id="flush set guarded"
        ),
        pytest.param(
            "flush set inet logknock guarded\nadd element inet logknock guarded { tcp . 443 }",
            "rules or elements of table inet logknock were changed by nft (process ",
            id="other elements for those of ours",
        ),
        pytest.param(
            "add table inet logknock { flags dormant; }",
            "rules or elements of table inet logknock were changed by nft (process ",
            id="a table that sleeps",
        ),
        pytest.param(
            "flush chain inet logknock guarded\ndelete set inet logknock granted4",
            "set inet logknock granted4 was deleted by nft (process ",
            id="rules of one chain and a set of doors",
        ),
        pytest.param("flush set inet logknock granted4", "elements of set inet logknock granted4 were", id="flush set"),
        pytest.param(
            f"delete element inet logknock granted4 {{ {SSH_4} }}",
            "elements of set inet logknock granted4 were deleted by nft (process ",
            id="delete element",
        ),
        pytest.param("flush set inet mine allowed", "elements of set inet mine allowed were", id="flush a door's set"),
        pytest.param(
            "delete table inet mine\n" + MINE, "the open doors of 1 address are put back", id="reload a door's set"
        ),
        pytest.param(
            f"delete element inet logknock granted4 {{ {SSH_4} }}\nadd element inet logknock granted4 {{ {SSH_4} }}",
            "elements of set inet logknock granted4 were changed by nft (process ",
            id="make an element permanent",
        ),
        pytest.param(
            "delete element inet mine allowed { 10.99.0.2 }\nadd element inet mine allowed { 10.99.0.2 timeout 30d }",
            "the open doors of 1 address are put back",
            id="make an element last longer",
        ),
    ],
)
def test_t33_t34_what_others_take_away_comes_back(world: World, opened: Daemon, script: str, says: str) -> None:
    """T33, T34: rules and elements, with the time that is left; and it is told who it was."""
    before = everything(world)
    world.gateway.nft(script)
    opened.wait_for(says)
    until(lambda: is_whole(world), "rules and elements")
    opened.wait_for("are put back")
    assert everything(world) == before
    assert world.granted()[SSH_4]["comment"] == "ssh"
    assert not re.search("expires (1d|[2-9]d|[0-9]{2}d)", mine(world))
    if "25" in script:
        assert "tcp dport 25 drop" in world.gateway.nft("list ruleset"), "others' rules are theirs"


GUARDS_NOTHING = Path(__file__).parents[2] / "rules" / "logknock.nft"


@pytest.mark.parametrize(
    ("copy", "says"),
    [
        pytest.param(
            "an older one", "table inet logknock was deleted by nft (process ", id="an older copy of the ruleset"
        ),
        pytest.param(
            GUARDS_NOTHING.read_text(), "elements of set inet logknock guarded were", id="the rules file as it stands"
        ),
    ],
)
def test_rules_that_guard_less_are_replaced_by_those_of_the_administrator(world: World, copy: str, says: str) -> None:
    """A stranger gets in no longer than it takes, and who it was is told."""
    world.configure(SSH.replace("22/tcp", "23/tcp"))
    world.apply()
    if copy == "an older one":
        copy = "flush ruleset\n" + world.gateway.run("nft", "list", "ruleset").stdout
    world.configure(SSH)
    world.apply()
    wanted = everything(world)
    with world.daemon() as daemon, world.service(22):
        assert not world.reaches()
        world.gateway.nft(copy)
        daemon.wait_for(says)
        daemon.wait_for("the firewall has what it needs again")
        assert not world.reaches()
        assert everything(world) == wanted
        daemon.stop()
    world.gateway.nft(copy)
    with world.daemon() as daemon, world.service(22):
        assert daemon.says("they are put back as they were loaded last")
        assert not world.reaches()
        assert everything(world) == wanted


def test_rules_that_guard_less_and_cannot_be_put_back_keep_nobody_from_opening_doors(world: World) -> None:
    world.configure(SSH)
    world.apply()
    world.gateway.nft("flush set inet logknock guarded")
    kept = world.config.parent / "state" / "rules.nft"
    kept.chmod(0o666)
    with world.daemon() as daemon:
        assert daemon.says("rules.nft may be another's work: it is not loaded")
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        kept.chmod(0o600)
        daemon.wait_for("the firewall has what it needs again")
        assert "tcp . 22" in world.gateway.run("nft", "list", "set", "inet", "logknock", "guarded").stdout


def test_reloads_one_after_another_are_no_fight(world: World, opened: Daemon) -> None:
    """Each is mended soon, however many there are: doubling pauses would leave the last without rules for a minute."""
    for _ in range(11):
        world.gateway.nft(RELOAD)
        until(lambda: is_whole(world), "rules and elements")


def test_rules_that_nobody_can_put_back_now_are_told_of_once(world: World, opened: Daemon) -> None:
    """Somebody holds the lock for long: one line, and the rules are back when it is free."""
    with open(world.config.parent / "run" / "rules.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        world.gateway.nft("delete table inet logknock")
        opened.wait_for(
            "set inet logknock granted4 is missing: No such file or directory (hint: `logknock rules apply`"
        )
        time.sleep(2.1)  # it would be told again by now
        assert rules(world) == ""
    until(lambda: is_whole(world), "the rules")
    opened.wait_for("the firewall has what it needs again")
    assert sum("is missing" in line for line in opened.lines) == 1


def test_t33_what_comes_back_has_the_time_that_was_left(world: World, opened: Daemon) -> None:
    """T33: not all of the door's, however often it comes back."""
    ends = world.granted()[SSH_4]["expires"] + time.monotonic()  # in this order: not too early
    time.sleep(3.1)  # more than the second that nft rounds to, so that all of the door's time would show
    for script in ("flush ruleset\n" + MINE, "flush set inet logknock granted4"):
        world.gateway.nft(script)
        until(lambda: is_whole(world), "rules and elements")
        assert time.monotonic() + world.granted()[SSH_4]["expires"] <= ends + 2


def test_a_set_that_is_made_again_later_gets_its_grants_back(world: World, opened: Daemon) -> None:
    """T34: an administrator's firewall that deletes its set and makes it again in another transaction."""
    world.gateway.nft("delete table inet mine")
    opened.wait_for("set inet mine allowed was deleted by nft (process ")
    opened.wait_for("doors do without it: set inet mine allowed is missing")
    assert SSH_4 in world.granted()
    world.gateway.nft(MINE)
    until(lambda: is_whole(world), "the element")
    opened.wait_for("all sets that doors name are there again")


def test_t33_a_copy_of_the_ruleset_opens_no_door_again(world: World, opened: Daemon) -> None:
    """T33: as `nft list ruleset > /etc/nftables.conf` makes it while a door is open."""
    saved = "flush ruleset\n" + world.gateway.run("nft", "list", "ruleset").stdout
    world.knock(*reversed(KNOCKS))
    opened.wait_for("closed by done")
    assert world.granted() == {}
    world.gateway.nft(saved)
    until(lambda: world.granted() == {} and "10.99.0.2" not in mine(world), "the copies to go")


def test_a_set_that_is_not_there_yet_keeps_nothing_from_starting(world: World) -> None:
    """It is told once, with a hint; the door does what it can; and when the set appears, the grant is there."""
    world.configure(OWN)
    world.apply()
    with world.daemon() as daemon:
        daemon.wait_for("set inet mine allowed is missing: No such file or directory (hint: your firewall is to make")
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")
        assert SSH_4 in world.granted()
        world.gateway.nft(MINE)
        until(lambda: is_whole(world), "the element")
        assert sum("is missing" in line for line in daemon.lines) == 1


def test_a_set_that_does_not_fit_is_told_when_it_comes(world: World, opened: Daemon) -> None:
    """An interval set in the place of a good one: one line, and the door goes on without it."""
    world.gateway.nft("delete table inet mine\ntable inet mine { set allowed { type ipv4_addr; flags interval; }; }")
    opened.wait_for("set inet mine allowed must have `flags timeout`, and no `interval`")
    assert SSH_4 in world.granted()
    assert "elements" not in mine(world)


def test_a_reboot_brings_back_rules_and_doors_before_it_is_ready(world: World, opened: Daemon) -> None:
    """T34: another namespace is a host whose kernel has forgotten everything; only the state directory is left."""
    before = rules(world)
    ends = world.granted()[SSH_4]["expires"] + time.monotonic()  # in this order: not too early
    time.sleep(3.1)  # as above
    opened.stop()
    with pair() as (gateway, client):
        after = World(gateway, client, world.config)
        gateway.nft(MINE)
        with after.daemon() as daemon:
            assert daemon.says("they are put back as they were loaded last")
            assert rules(after) == before
            until(lambda: is_whole(after), "the element")
            assert time.monotonic() + after.granted()[SSH_4]["expires"] <= ends + 2
            lines = [line for line in daemon.lines if "put back" in line or "ready" in line]
            assert "ready" in lines[1]


def test_without_rules_of_an_administrator_nothing_is_loaded(world: World, opened: Daemon) -> None:
    """Neither by a running daemon after `rules remove`, nor at the next start."""
    world.gateway.logknock("rules", "remove", "-c", str(world.config))
    opened.wait_for("table inet logknock was deleted by")
    opened.wait_for("set inet logknock granted4 is missing: No such file or directory (hint: `logknock rules apply`")
    world.gateway.nft("table inet other { }")  # something else to look at
    assert rules(world) == ""
    opened.stop()
    done = world.gateway.logknock("run", "-c", str(world.config), check=False)
    assert done.returncode == 69
    assert "rules apply" in done.stderr
    assert rules(world) == ""


def test_rules_that_stay_on_the_disk_are_told_when_they_are_removed(world: World) -> None:
    """A daemon would put them back; the table goes all the same."""
    world.configure(SSH)
    world.apply()
    kept = world.config.parent / "state" / "rules.nft"
    subprocess.run(["mount", "--bind", kept, kept], check=True)  # what is mounted on cannot be deleted (EBUSY)
    try:
        done = world.gateway.logknock("rules", "remove", "-c", str(world.config), check=False)
    finally:
        subprocess.run(["umount", kept], check=True)
    assert done.returncode == 1
    assert f"removed, but a running logknock puts the rules back: {kept}: Device or resource busy" in done.stderr
    assert "hint: stop it first" in done.stderr
    assert rules(world) == ""
    assert world.gateway.logknock("rules", "remove", "-c", str(world.config)).returncode == 0
    assert not kept.exists()


def test_where_nothing_is_guarded_any_more_old_rules_stay_away(world: World, opened: Daemon) -> None:
    """They would guard what no door opens now; whose ruleset it is does without them."""
    opened.stop()
    world.configure(OWN + "guard = false\n")
    world.gateway.nft("flush ruleset\n" + MINE)
    with world.daemon() as daemon:
        world.gateway.nft("flush set inet mine allowed")
        daemon.wait_for("the open doors of 1 address are put back")
        assert "10.99.0.2" in mine(world)
        assert rules(world) == ""


def test_rules_on_trial_are_left_alone(world: World, opened: Daemon) -> None:
    """And what was there before comes back when the trial is over."""
    command = ("-m", "logknock", "rules", "apply", "-c", str(world.config), "--confirm", "60s")
    world.configure(OWN.replace("9000", "9100") + DONE)
    trial = world.gateway.start(sys.executable, *command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert trial.stdout is not None
        assert "loaded" in trial.stdout.readline()
        world.gateway.nft("delete table inet logknock")
        opened.wait_for("rules are on trial: when that has ended")
        assert rules(world) == ""
        state = world.config.parent / "state"
        assert b"udp . 9100" not in (state / "rules.nft").read_bytes()
        unconfirmed = world.config.parent / "run" / "rules.unconfirmed"
        until(lambda: "by process" in unconfirmed.read_text(), "the undoing process waits")
        (undoing,) = re.findall(r"by process (\d+)", unconfirmed.read_text())
        os.kill(int(undoing), signal.SIGTERM)  # its time is over
        until(lambda: is_whole(world), "the rules that were there before")
        until(lambda: not (state / "rules.draft").exists(), "the draft to go")
        watched = world.gateway.run("nft", "list", "set", "inet", "logknock", "watched").stdout
        assert "udp . 9000" in watched
    finally:
        trial.kill()
        trial.communicate()


def test_what_is_confirmed_is_what_comes_back(world: World, opened: Daemon) -> None:
    """And an administrator who loads rules is not fought meanwhile."""
    world.configure(OWN.replace("9000", "9100") + DONE)
    command = ("-m", "logknock", "rules", "apply", "-c", str(world.config), "--confirm", "60s")
    trial = world.gateway.start(sys.executable, *command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert trial.stdout is not None
        assert "loaded" in trial.stdout.readline()
        world.gateway.logknock("rules", "confirm", "-c", str(world.config))
    finally:
        trial.communicate()
    kept = world.config.parent / "state" / "rules.nft"
    assert kept.stat().st_mode & 0o777 == 0o600
    opened.counter("records")  # all that there was to say has been said
    assert not any("put back" in line or "deleted" in line for line in opened.lines)
    world.gateway.nft("delete table inet logknock")
    until(lambda: is_whole(world), "the rules")
    assert "udp . 9100" in world.gateway.run("nft", "list", "set", "inet", "logknock", "watched").stdout


def test_a_table_of_our_name_that_is_not_ours_is_left_alone(world: World, opened: Daemon) -> None:
    world.gateway.nft(
        "delete table inet logknock\ntable inet logknock { set mine { type ipv4_addr; flags timeout; }; }"
    )
    opened.wait_for("table inet logknock is not logknock's: set mine is none of ours (hint: give that table another")
    with listening(world) as changes:
        world.knock(*KNOCKS)
        time.sleep(1.5)  # a look or two
    assert changes == []
    assert sum("is not logknock's" in line for line in opened.lines) == 1


_SIX_ATTEMPTS = 2.5  # seconds: what does not last longer than that is no fight yet


def test_an_nft_that_refuses_is_told_once(world: World, opened: Daemon) -> None:
    """In its own words, with a hint; and an administrator's `rules apply` mends it."""
    kept = world.config.parent / "state" / "rules.nft"
    kept.write_text("table inet logknock { nonsense }\n")
    world.gateway.nft("delete table inet logknock")
    opened.wait_for("the rules cannot be put back: nftables: syntax error")
    time.sleep(_SIX_ATTEMPTS)
    assert not opened.says("the rules do not stay")
    world.apply()
    until(lambda: is_whole(world), "the rules")
    opened.wait_for("the firewall has what it needs again")
    assert sum("cannot be put back" in line for line in opened.lines) == 1


@pytest.mark.parametrize("harm", ["mode", "owner", "dangling link"])
def test_rules_that_another_user_could_have_written_are_not_loaded(world: World, opened: Daemon, harm: str) -> None:
    """It is told once, and not that somebody takes them away again and again."""
    kept = world.config.parent / "state" / "rules.nft"
    if harm == "mode":
        kept.chmod(0o666)
    elif harm == "owner":
        os.chown(kept, 65534, 65534)
    else:
        kept.unlink()
        kept.symlink_to("nowhere")
    world.gateway.nft("delete table inet logknock")
    opened.wait_for("rules.nft may be another's work: it is not loaded")
    time.sleep(_SIX_ATTEMPTS)
    assert not opened.says("the rules do not stay")
    assert rules(world) == ""
    assert sum("another's work" in line for line in opened.lines) == 1


def test_who_deletes_the_rules_again_and_again_is_outlived(world: World, opened: Daemon) -> None:
    """Told, put back after longer and longer pauses, and there in the end."""
    end = time.monotonic() + 60
    while not opened.says("the rules do not stay"):
        world.gateway.run("nft", "delete", "table", "inet", "logknock", check=False)
        assert time.monotonic() < end
    until(lambda: is_whole(world), "the rules, after the last pause")
    assert len(opened.lines) < 100
    assert opened.stop() == 0


def test_t34_notifications_that_are_lost_lose_no_door(world: World, opened: Daemon) -> None:
    """T34: more than the kernel keeps for a stopped daemon, the flush among them (ENOBUFS)."""
    load = many_elements("inet mine black", 60_000)
    opened.signal(signal.SIGSTOP)
    for _ in range(12):
        world.gateway.nft(load + "\nflush set inet mine black")
    world.gateway.nft("flush ruleset\n" + MINE)
    opened.signal(signal.SIGCONT)
    opened.wait_for("notifications of nftables were lost")
    until(lambda: is_whole(world), "rules and elements")
    opened.wait_for("are put back")


def test_others_that_change_their_own_rules_are_no_news(world: World, opened: Daemon) -> None:
    """By the thousand, in a table of theirs and in the administrator's; and nothing of ours is touched for it."""
    script = ["table ip theirs { chain c { }; set s { type ipv4_addr; }; }"]
    script += [f"add rule ip theirs c tcp dport {port} accept" for port in range(1, 1000)]
    with listening(world) as changes:
        for _ in range(3):
            world.gateway.nft("\n".join(script))
            world.gateway.nft(many_elements("inet mine black", 5_000))
            world.gateway.nft("delete table ip theirs\nflush set inet mine black")
        time.sleep(1.2)  # a look, if there was one
    assert changes == []
    before = len(opened.lines)
    opened.read()
    assert opened.lines[before:] == []


def test_t34_a_crowd_comes_back_whole(world: World) -> None:
    """T34: each with its own end, while packets go on being heard."""
    world.configure(SSH.replace('"30s"', '"1h"'))
    world.apply()
    with world.daemon() as daemon:
        for first in range(0, 200, 50):
            world.spoof(
                *(
                    f"198.51.100.{number + 1}>{world.gateway.ipv4}:{service}"
                    for number in range(first, first + 50)
                    for service in KNOCKS
                )
            )
        until(lambda: len(world.granted()) == 200, "the crowd")
        world.gateway.nft("flush ruleset")
        daemon.wait_for("the open doors of 200 addresses are put back")
        found = world.granted()
        assert len(found) == 200
        assert all(0 < element["expires"] < 3600 for element in found.values())
        world.knock(*KNOCKS)
        daemon.wait_for("10.99.0.2: ssh: OPEN SESAME")


def test_t34_bans_are_put_back_too(world: World, opened: Daemon) -> None:
    """T34: with the rules, and when their set is flushed; and so are those that somebody else has made."""
    banned = {"198.51.100.9", "198.51.100.10"}
    world.gateway.logknock("ban", "-c", str(world.config), "198.51.100.9", "1h")
    world.gateway.nft("add element inet logknock banned4 { 198.51.100.10 timeout 1h }")
    opened.wait_for("198.51.100.10: banned for 3")
    for script in ("flush ruleset\n" + MINE, "flush set inet logknock banned4"):
        assert set(world.granted("banned4")) == banned
        world.gateway.nft(script)
        until(lambda: set(world.granted("banned4")) == banned, "the bans")
    opened.wait_for("elements of set inet logknock banned4 were deleted by nft")
    assert world.granted("banned4")["198.51.100.9"]["expires"] <= 3600
