"""Floods of each kind beside the real daemon: who knocks gets in, nobody else does, and no record is lost in silence.

How fast all this goes is the benchmark's business (`python -m tests.bench --only floods`); here nothing depends on it.
"""

import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from logknock.spa import MAX_SPA_KEYS

from ..bench import hostile
from ..bench.field import link_of
from ..bench.frames import Link, syn, syn6, udp
from ..bench.sender import Due, Ring, flood, wire
from ..netns import Host
from ..test_nflog import dropped
from .world import SSH, Daemon, World, until

COUNT = 4096

# A door that is knocked at over UDP first, and one that IPv6 reaches too: a knock over UDP is IPv4's here.
DOORS = (
    SSH
    + """
[doors.datagrams]
sequence = ["7000/udp", "8000/udp", "9000/tcp"]
opens = ["23/tcp"]
timeout = "30s"

[doors.six]
sequence = ["7001/tcp", "8001/tcp", "9001/tcp"]
opens = ["24/tcp"]
timeout = "30s"
"""
)

HONEST = bytes((203, 0, 113, 7))
HONEST6 = bytes.fromhex("fd98000000000009" + "0" * 15 + "7")


@contextmanager
def flooded(world: World) -> Iterator[tuple[Daemon, Link, socket.socket]]:
    """The daemon, and a wire to send frames on; the kernel counts what it makes a record of."""
    world.configure(DOORS)
    world.apply()
    world.gateway.nft("insert rule inet logknock tell counter\n")
    with world.daemon() as daemon, wire(world.client) as raw:
        yield daemon, link_of(world.gateway, world.client), raw


def recorded(world: World) -> int:
    """How many records the kernel has made."""
    listed = world.gateway.run("nft", "list", "chain", "inet", "logknock", "tell").stdout
    found = re.search(r"counter packets (\d+)", listed)
    assert found
    return int(found[1])


def source(world: World) -> dict[str, Any]:
    """What `logknock status` says of the one source."""
    done = world.gateway.logknock("status", "--json", "-c", str(world.config))
    (found,) = json.loads(done.stdout)["sources"]
    assert isinstance(found, dict)
    return found


def honest(link: Link) -> list[bytes]:
    """The knocks of two honest knockers, one of each family, by turns."""
    frames = [syn(link, HONEST, 40_000, 7000), syn(link, HONEST, 40_001, 8000), udp(link, HONEST, 40_002, 9000)]
    frames6 = [syn6(link, HONEST6, 40_000 + stage, port) for stage, port in enumerate((7001, 8001, 9001))]
    return [frame for both in zip(frames, frames6, strict=True) for frame in both]


# Of each kind how many records the kernel makes, at least and at most, and how many of them hold no packet.
EXPECTED: dict[hostile.Make, tuple[int, int, int]] = {
    hostile.first_knocks: (COUNT, COUNT, 0),
    hostile.random_ports: (1, COUNT // 8, 0),  # those to the knock ports and the traps
    hostile.one_source: (40, COUNT // 8, 0),  # heard until it is too fast, and again where the test is stopped a while
    hostile.datagrams: (COUNT, COUNT, 0),
    hostile.within_prefix: (40, COUNT // 8, 0),  # one source too
    hostile.across_prefixes: (COUNT, COUNT, 0),
    hostile.malformed: (COUNT * 4 // 5 + 1, COUNT * 4 // 5 + 1, COUNT // 5 + 1),  # not: IP headers with nothing behind
    hostile.fragments: (COUNT // 4, COUNT // 4, 0),  # the pairs, which the kernel puts together
}


@pytest.mark.parametrize("make", hostile.KINDS, ids=lambda make: make.__name__)
def test_t13_t26_t30_who_knocks_in_a_flood_gets_in_and_every_record_is_accounted_for(
    world: World, make: hostile.Make
) -> None:
    """T13, T14, T17 (the honest keep their attempts), T26 (what is malformed is no knock), T30."""
    least, most, ignored = EXPECTED[make]
    with flooded(world) as (daemon, link, raw):
        flood = make(link, 7000, COUNT, Random(1)).frames  # noqa: S311  # nothing to guess here
        knocks = honest(link)
        many, every = len(knocks), COUNT // (len(knocks) + 1)
        for number, frame in enumerate(flood, start=1):
            raw.send(frame)
            if number % every == 0 and knocks:
                raw.send(knocks.pop(0))
        daemon.wait_for("203.0.113.7: ssh: OPEN SESAME")
        daemon.wait_for("fd98:0:0:9::7: six: OPEN SESAME")
        until(lambda: source(world)["records"] == recorded(world), "all records")
        told = source(world)
        assert (least <= told["records"] - many <= most, told["lost"], told["ignored"]) == (True, 0, ignored), told
        assert set(world.granted()) == {"203.0.113.7 . tcp . 22"}
        assert set(world.granted("granted6")) == {"fd98:0:0:9::7 . tcp . 24"}
        assert not daemon.says("Traceback")


def test_t30_what_a_flood_loses_is_counted_to_the_packet_and_shown(world: World) -> None:
    """T30: the daemon is stopped while more comes than the kernel keeps for it; then it goes on, and doors open."""
    with flooded(world) as (daemon, link, raw):
        kind = hostile.first_knocks(link, 7000, COUNT, Random(1))  # noqa: S311  # nothing to guess here
        daemon.signal(signal.SIGSTOP)
        with Ring(world.client, kind.frames, kind.turns) as ring:
            while not dropped(world.gateway):
                ring.send(COUNT)
            ring.send(COUNT)
        daemon.signal(signal.SIGCONT)
        for frame in honest(link):
            until(lambda: queue_is_empty(world.gateway), "the daemon to have read what was kept for it")
            raw.send(frame)
        daemon.wait_for("203.0.113.7: ssh: OPEN SESAME")
        until(lambda: source(world)["records"] + source(world)["lost"] == recorded(world), "all records")
        lost = source(world)["lost"]
        assert lost >= COUNT
        text = world.gateway.logknock("status", "-c", str(world.config)).stdout
        assert re.search(
            rf"^  NFLOG group 5 +[\d,]+ records +[\d,.]+/s +{lost:,} lost +0 no packet", text, re.MULTILINE
        ), text
        assert "warning: a knock may be among what was lost" in text
        daemon.wait_for(f"NFLOG group 5: {lost} records lost on the way")
        assert len([line for line in daemon.lines if "records lost" in line]) == 1
        assert daemon.counter("lost") == lost


# As many clients of an SPA door as there may be, so that a forged packet costs 64 HMACs, and an ordinary door. Neither
# waits long: what is read late by a second opens nothing.
CROWD = """
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/tcp"]
opens = ["22/tcp"]
timeout = "30s"
seq_timeout = "1s"

[doors.vpn]
opens = ["1194/udp"]
seq_timeout = "1s"
spa = {}
""" + "".join(
    f"""
[clients.vpn.client-{number}]
key = "the key of client {number:2}"
hmac_key = "the HMAC key of client {number:2}"
allow = ["1194/udp"]
"""
    for number in range(MAX_SPA_KEYS)
)


def test_t13_t30_forged_spa_packets_keep_nobody_from_an_ordinary_door(world: World) -> None:
    """T13, T30: from everywhere, and more of them than 64 keys can be tried on."""
    world.configure(CROWD)
    world.apply()
    with world.daemon() as daemon, wire(world.client) as raw:
        link = link_of(world.gateway, world.client)
        random = Random(1)  # noqa: S311  # nothing to guess here
        sources = (bytes((100, *random.randbytes(3))) for _ in range(COUNT))
        frames = [udp(link, source, 40_000, 62_201, b"8" + b"A" * 199) for source in sources]
        # Three tries: a machine that stands still for a second is in the way of one of them.
        knocks = [
            Due(at + number / 10, syn(link, HONEST, 40_000 + at, port))
            for at in (1, 2, 3)
            for number, port in enumerate((7000, 8000, 9000))
        ]
        with Ring(world.client, frames) as ring:
            flood(ring, 15_000, 4.0, 60_000, knocks, raw.send)
            daemon.wait_for("203.0.113.7: ssh: OPEN SESAME")
        assert set(world.granted()) == {"203.0.113.7 . tcp . 22"}
        assert not daemon.says("Traceback")


def queue_is_empty(host: Host) -> bool:
    """Whether nothing waits at a netfilter socket of the host (column 5 of its list)."""
    rows = [line.split() for line in host.run("cat", "/proc/net/netlink").stdout.splitlines()[1:]]
    return not any(row[1] == "12" and int(row[4]) for row in rows)


def test_nobody_is_asked_where_no_daemon_runs(world: World) -> None:
    done = world.gateway.logknock("status", "-c", str(world.config), check=False)
    assert (done.returncode, done.stderr, "records" in done.stdout) == (69, "", False)
    told = world.gateway.logknock("status", "--json", "-c", str(world.config), check=False)
    assert json.loads(told.stdout)["sources"] is None


def test_a_daemon_that_may_not_be_asked_is_not_asked(world: World) -> None:
    """Who may read the files may have lost the socket all the same: what can be said is said."""
    world.apply()
    with world.daemon() as daemon:
        daemon.signal(signal.SIGSTOP)  # or it would make the socket anew
        (world.config.parent / "run" / "control.sock").unlink()
        done = world.gateway.logknock("status", "-c", str(world.config), check=False)
        daemon.signal(signal.SIGCONT)
    assert (done.returncode, done.stderr, "records" in done.stdout) == (1, "", False)
    assert "logknock runs" in done.stdout
    assert "how it stands is not known: no daemon answers at" in done.stdout
