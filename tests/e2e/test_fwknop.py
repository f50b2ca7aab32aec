"""The stock fwknop client (Debian's fwknop-client) against the daemon and its rules, and beside the stock fwknopd.

Rule 1: each packet is one that the stock client made, or one of those with something changed on the way. Rule 2: what
is said of fwknopd on docs/howto/fwknop.md is what fwknopd did here, on the same host with the same packets.
"""

import base64
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest

from logknock.spa import DIGESTS, Key, Opened, Refused, unwrap

from ..netns import Host, pair
from ..peers import UNPACKED
from .booted import PROJECT
from .instruments import running
from .pages import (
    COMMANDS,
    HOST,
    Guide,
    PrivateHost,
    documented,
    follows,
    guarded,
    make_keys,
    may_ssh,
    private,
    run,
    ssh_server,
    terminal,
)
from .world import PATIENCE, Daemon, World, until

FWKNOP, FWKNOPD = f"{UNPACKED}/usr/bin/fwknop", f"{UNPACKED}/usr/sbin/fwknopd"

# Where the client's packets may come from, and whom they ask for; the gateway routes them to the client.
HERE, ELSEWHERE, FENCE = "198.51.100.10", "198.51.100.11", "198.51.100.12"
PORT = 62201


class Keys(NamedTuple):
    """A client's two keys, as access.conf, .fwknoprc and logknock.toml alike write them, but for the sign between."""

    name: str
    rows: tuple[tuple[str, str], ...]

    def stanza(self) -> str:
        """For .fwknoprc and for access.conf."""
        return "".join(f"{name} {value}\n" for name, value in self.rows)

    def table(self, door: str, extra: str = "") -> str:
        """For logknock.toml."""
        lines = "".join(f"{name.lower()} = {json.dumps(value)}\n" for name, value in self.rows)
        return f"[clients.{door}.{self.name}]\n{lines}{extra}"


def coded(name: str) -> Keys:
    """Keys in base64, as `fwknop --key-gen` makes them."""
    made = (base64.b64encode((name * 99).encode()[at : at + size]).decode() for at, size in ((0, 32), (7, 64)))
    return Keys(name, tuple(zip(("KEY_BASE64", "HMAC_KEY_BASE64"), made, strict=True)))


PLAIN = coded("plain")
NAMED = coded("named")
BOB = coded("bob")
PHRASE = Keys("phrase", (("KEY", "a-passphrase_of'people"), ("HMAC_KEY", 'and"another"one,too')))
DIGESTED = {digest: coded(f"with-{digest.replace('_', '-')}") for digest in DIGESTS}

DOOR = """
[firewall]
rate = 1000
burst = 1000
traps = 64
[doors.gate]
opens = ["22/tcp", "8080/tcp", "1194/udp"]
timeout = "30s"
spa = {ports = ["10000-65535/udp", "62201/tcp", "icmp"]}
"""
ALLOW = 'allow = ["22/tcp", "1194/udp"]\n'


def gate_configuration() -> str:
    clients = [
        PLAIN.table("gate", f"{ALLOW}require_source = false\n"),
        PHRASE.table("gate", f"{ALLOW}require_source = false\nmax_timeout = '90s'\n"),
        NAMED.table("gate", f"{ALLOW}"),
        BOB.table("gate", f'{ALLOW}require_source = false\nuser = "bob"\n'),
        *(
            keys.table("gate", f'{ALLOW}require_source = false\nhmac = "{digest}"\n')
            for digest, keys in DIGESTED.items()
        ),
    ]
    return DOOR + "".join(clients)


def send_from(client: Host, source: str, target: str, payload: bytes, port: int = PORT) -> None:
    """The payload as it is, in a datagram."""
    with client.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.sendto(payload, (target, port))


@dataclass
class Site:
    """The gateway with the daemon, and a client that has fwknop."""

    world: World
    daemon: Daemon
    folder: Path

    def fwknop(self, keys: Keys, *options: str, stanza: str = "") -> subprocess.CompletedProcess[str]:
        """Run the stock client with a .fwknoprc of these keys."""
        hmac = "USE_HMAC Y\n" if len(keys.rows) > 1 else ""
        return run_fwknop(self.world, self.folder, f"[gate]\n{hmac}{keys.stanza()}{stanza}", "gate", *options)

    def packet(self, keys: Keys, *options: str, stanza: str = "") -> bytes:
        """What the stock client would send."""
        saved = self.folder / "saved"
        saved.unlink(missing_ok=True)
        self.fwknop(keys, "--test", "--save-packet", str(saved), *options, stanza=stanza)
        return saved.read_bytes().removesuffix(b"\n")

    def send(self, payload: bytes, source: str = HERE) -> None:
        """The payload as it is, in a datagram."""
        send_from(self.world.client, source, self.world.gateway.ipv4, payload)

    def says(self, text: str) -> str:
        """Wait for a new line of the daemon's with this text."""
        known = len(self.daemon.lines)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.daemon.read()
            if found := [line for line in self.daemon.lines[known:] if text in line]:
                return found[0]
            time.sleep(0.01)
        raise AssertionError(f"no new line with {text!r} in:\n" + "\n".join(self.daemon.lines[-9:]))

    def after(self, text: str, payload: bytes, source: str = HERE) -> str:
        """The first new line with this text after the payload was sent."""
        self.daemon.read()
        self.send(payload, source)
        return self.says(text)

    def opened(self, address: str) -> dict[str, int]:
        """What is open for an address: services, and for how many seconds (from the packet's own time on)."""
        granted = self.world.granted()
        words = {key: key.split(" . ") for key in granted}
        return {
            f"{port}/{proto}": granted[key]["timeout"] for key, (src, proto, port) in words.items() if src == address
        }

    def close(self) -> None:
        """Close all that is open."""
        for key in self.world.granted():
            self.world.gateway.logknock("revoke", key.split()[0], "-c", str(self.world.config), check=False)


def run_fwknop(world: World, folder: Path, rc: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the stock client with this .fwknoprc. (It asks for a home, and need not have one.)"""
    path = folder / "fwknoprc"
    path.write_text(rc)
    path.chmod(0o600)
    words = [FWKNOP, "--rc-file", str(path), "-n", name, "--no-save-args", *options]
    server = () if "SPA_SERVER " in rc else ("-D", world.gateway.ipv4)
    access = () if re.search("^ACCESS ", rc, re.MULTILINE) or "-A" in options else ("-A", "tcp/22")
    return world.client.run(*words, *server, *access, env=os.environ | {"HOME": str(folder)})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fwknop")
    with pair() as (gateway, client):
        for address in (HERE, ELSEWHERE, FENCE):
            client.run("ip", "addr", "add", f"{address}/32", "dev", "eth0")
        world = World(gateway, client, folder / "logknock.toml")
        world.configure(gate_configuration())
        world.apply()
        with world.daemon() as daemon:
            yield Site(world, daemon, folder)


@pytest.fixture
def closed(site: Site) -> Iterator[Site]:
    """Nothing is open before, and nothing after."""
    site.close()
    yield site
    site.close()


# ---- what opens


def lasts(site: Site, wanted: dict[str, int]) -> None:
    """These services are open for the client, for this long but for what a slow machine takes to open them."""
    found = site.opened("10.99.0.2")
    assert found.keys() == wanted.keys()
    assert all(wanted[service] - 10 <= seconds <= wanted[service] for service, seconds in found.items())


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        *(
            pytest.param(keys, ["-s", "--hmac-digest-type", digest], id=f"HMAC with {digest}")
            for digest, keys in DIGESTED.items()
        ),
        *(pytest.param(PLAIN, ["-s", "-m", digest], id=f"inner digest {digest}") for digest in DIGESTS),
        pytest.param(PHRASE, ["-s"], id="passphrases"),
        pytest.param(PLAIN, ["-a", "10.99.0.2"], id="-a: the address in the packet"),
        pytest.param(NAMED, ["-a", "10.99.0.2"], id="-a where it must be the packet's own"),
        pytest.param(PLAIN, ["-s"], id="-s: where the packet comes from"),
        pytest.param(BOB, ["-s", "-U", "bob"], id="-U: a user's name"),
        pytest.param(PLAIN, ["-s", "-P", "udp"], id="-P udp"),
        pytest.param(PLAIN, ["-s", "-P", "udpraw"], id="-P udpraw"),
        pytest.param(PLAIN, ["-s", "-P", "tcpraw"], id="-P tcpraw: a lone SYN"),
        pytest.param(PLAIN, ["-s", "-P", "icmp"], id="-P icmp: an echo reply that nobody asked for"),
        pytest.param(PLAIN, ["-s", "-P", "icmp", "--icmp-type", "8"], id="-P icmp: an echo request"),
        pytest.param(PLAIN, ["-s", "-r"], id="-r: a random port"),
        pytest.param(PLAIN, ["-s", "-p", "12345"], id="-p: another port"),
        pytest.param(PLAIN, ["-s", "-S", "53"], id="-S: a source port"),
    ],
)
def test_what_the_stock_client_sends_opens(closed: Site, keys: Keys, options: list[str]) -> None:
    closed.fwknop(keys, *options)
    until(lambda: closed.opened("10.99.0.2"), "the opening")
    lasts(closed, {"22/tcp": 30})
    assert closed.daemon.says(f"client {keys.name} accepted")


def test_the_stanza_says_whose_address_it_is_where_no_option_does(closed: Site) -> None:
    """Without -a, -s and -R the client takes ALLOW_IP, which is `source` or an address."""
    closed.fwknop(PLAIN, stanza="ALLOW_IP source\n")
    until(lambda: closed.opened("10.99.0.2"), "the opening for the packet's source")
    closed.fwknop(PLAIN, stanza=f"ALLOW_IP {ELSEWHERE}\n")
    until(lambda: closed.opened(ELSEWHERE), "the opening for the address that is named")


def test_several_services_open_at_once_for_the_time_that_is_asked_for(closed: Site) -> None:
    closed.fwknop(PHRASE, "-s", "-A", "tcp/22,udp/1194", "-f", "77")
    until(lambda: len(closed.opened("10.99.0.2")) == 2, "both openings")
    lasts(closed, {"22/tcp": 77, "1194/udp": 77})


def test_no_client_gets_more_time_than_it_may(closed: Site) -> None:
    closed.fwknop(PHRASE, "-s", "-f", "3600")
    until(lambda: closed.opened("10.99.0.2"), "the opening")
    lasts(closed, {"22/tcp": 90})


def test_the_stock_client_ends_a_passphrase_of_its_file_at_a_blank(site: Site) -> None:
    """fwknopd does not: so such a passphrase never worked from there."""
    payload = site.packet(Keys("cut", (("KEY", "one two three four"), ("HMAC_KEY", "five six seven eight"))), "-s")
    whole = Key("gate", "cut", b"one two three four", b"five six seven eight", "sha256", ())
    assert isinstance(unwrap(payload, [whole]), Refused)
    assert isinstance(unwrap(payload, [replace(whole, key=b"one", hmac_key=b"five")]), Opened)


# ---- what does not


def refused(site: Site, payload: bytes, reason: str, source: str = HERE) -> None:
    """A packet is refused for this reason, and opens nothing."""
    line = site.after("refused", payload, source)
    assert reason in line
    assert site.opened(source) == {}


@pytest.mark.parametrize(
    ("keys", "options", "reason"),
    [
        pytest.param(PLAIN, ["-s", "--time-offset-minus", "10min"], "wrong time", id="delayed by ten minutes"),
        pytest.param(PLAIN, ["-s", "--time-offset-plus", "10min"], "wrong time", id="from in ten minutes"),
        pytest.param(
            PLAIN, ["-s", "-A", "tcp/8080"], "service not allowed", id="a service of the door, not the client's"
        ),
        pytest.param(PLAIN, ["-s", "-A", "tcp/22,tcp/23"], "service not allowed", id="one service too much"),
        pytest.param(NAMED, ["-s"], "wrong address", id="-s where an address has to be named"),
        pytest.param(NAMED, ["-a", "10.99.0.2"], "wrong address", id="another address than its own"),
        pytest.param(BOB, ["-s", "-U", "anna"], "wrong user", id="another user"),
        pytest.param(PLAIN, ["-s", "-N", "10.0.0.1:22"], "asks for NAT", id="-N: NAT"),
        pytest.param(PLAIN, ["-s", "--nat-local", "--nat-port", "2222"], "asks for NAT", id="NAT on the host"),
        pytest.param(PLAIN, ["-s", "-C", "touch /tmp/x"], "asks for a command", id="-C: a command (T35)"),
        pytest.param(PLAIN, ["-s", "--hmac-digest-type", "sha512"], "of nobody", id="another digest than the key's"),
    ],
)
def test_what_is_not_allowed_is_refused_with_the_reason(
    closed: Site, keys: Keys, options: list[str], reason: str
) -> None:
    refused(closed, closed.packet(keys, *options), reason)


@pytest.mark.parametrize("options", [[], ["-M", "legacy"], ["-M", "CFB"]], ids=["CBC", "legacy", "CFB"])
def test_a_packet_without_an_hmac_is_nobody_s(closed: Site, options: list[str]) -> None:
    """The encryption key is right."""
    bare = Keys("bare", PLAIN.rows[:1])
    refused(closed, closed.packet(bare, "-s", *options), "of nobody")


def test_t18_a_packet_opens_once_from_whatever_source_it_comes_again(closed: Site) -> None:
    """T18: and after a refusal, too."""
    payload = closed.packet(PLAIN, "-s")
    closed.after("accepted", payload)
    until(lambda: closed.opened(HERE), "the opening")
    closed.close()
    for source in (HERE, ELSEWHERE):
        refused(closed, payload, "replayed", source)


def test_t18_a_refused_packet_is_used_up_too(closed: Site) -> None:
    payload = closed.packet(NAMED, "-a", HERE)
    refused(closed, payload, "wrong address", ELSEWHERE)
    refused(closed, payload, "replayed", HERE)


def flipped(payload: bytes, at: int) -> bytes:
    """Another letter of the alphabet at one place."""
    other = b"A" if payload[at : at + 1] != b"A" else b"B"
    return payload[:at] + other + payload[at + 1 :] if at != -1 else payload[:-1] + other


def unused_bit(payload: bytes, at: int) -> bytes:
    """The same bytes in base64 that says them otherwise: the last letter's unused bits are set."""
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    place = letters.index(payload[at])
    return payload[:at] + letters[place ^ 1 : (place ^ 1) + 1] + payload[at + 1 :]


def test_altered_truncated_and_re_encoded_packets_open_nothing(closed: Site) -> None:
    """T18: nor do they keep the packet itself from opening."""
    payload = closed.packet(PLAIN, "-s")
    coded_mac = 43  # letters of the HMAC's base64 at the end
    for changed in (
        flipped(payload, 1),
        flipped(payload, 20),
        flipped(payload, len(payload) // 2),
        flipped(payload, len(payload) - coded_mac),
        flipped(payload, len(payload) - 2),
        payload[:-1],
        payload[1:],
        payload[:150],
        payload[:-coded_mac],
        payload + b"=",
        payload + b"\n",
        payload + b"A",
        b"U2FsdGVkX1" + payload,
        unused_bit(payload, len(payload) - 1),
        payload.replace(b"+", b"-").replace(b"/", b"_") if b"+" in payload[1:] or b"/" in payload[1:] else payload[:-2],
        payload.swapcase(),
        base64.b64encode(payload),
    ):
        refused(closed, changed, "SPA packet of nobody refused")
    closed.after("accepted", payload)


def test_a_packet_in_a_connection_or_in_an_answer_counts_for_nothing(closed: Site) -> None:
    """Only a lone SYN is a packet of itself; with ACK or RST it is somebody else's."""
    site, payload = closed, closed.packet(PLAIN, "-s")
    with site.world.client.inside(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        for flags in (0x12, 0x10, 0x18, 0x04, 0x03):
            header = b"\x9c\x40\xf2\xf9" + bytes(8) + bytes([0x50, flags]) + bytes(6)
            raw.sendto(header + payload, (site.world.gateway.ipv4, 0))
    assert site.after("SPA packet", payload).startswith(f"{HERE}: gate: SPA packet of client plain accepted")


# ---- the whole way: keygen, fwknop, ssh


@pytest.fixture
def ssh(world: World) -> Iterator[World]:
    """A door for ssh with SPA, with no client yet, and something that listens there."""
    world.configure('[doors.ssh]\nopens = ["22/tcp"]\ntimeout = "30s"\nspa = {}\n')
    with world.service(22):
        yield world


def keygen(world: World, *options: str) -> str:
    """The stanza that `logknock keygen` prints for the stock client; ours goes where the daemon reads it."""
    words = ("keygen", "ssh", "laptop", "--write", "--no-reload", "--address", world.gateway.ipv4, *options)
    printed = world.gateway.logknock(*words, "-c", str(world.config)).stdout
    return printed.partition("~/.fwknoprc\n")[2].partition("\n# ----")[0]


def name_of(stanza: str) -> str:
    found = re.match(r"\[(.+)\]", stanza)
    assert found, stanza
    return found[1]


@pytest.mark.parametrize("options", [(), ("--from", "10.99.0.2"), ("--hmac", "sha3_512")], ids=["-s", "-a", "SHA3"])
def test_t18_the_stanza_that_keygen_prints_opens_ssh_once(ssh: World, tmp_path: Path, options: tuple[str, ...]) -> None:
    """T18, T20: the same bytes again, from anywhere, do not, also after a kill -9 of the daemon."""
    stanza = keygen(ssh, *options)
    ssh.apply()
    ssh.client.run("ip", "addr", "add", f"{ELSEWHERE}/32", "dev", "eth0")
    saved = tmp_path / "packet"
    with ssh.daemon() as daemon:
        assert not ssh.reaches()
        run_fwknop(ssh, tmp_path, stanza, name_of(stanza), "--save-packet", str(saved))
        daemon.wait_for("ssh:22/tcp: OPEN SESAME")
        until(ssh.reaches, "an answer")
        assert set(ssh.granted()) == {"10.99.0.2 . tcp . 22"}
        ssh.gateway.logknock("revoke", "10.99.0.2", "-c", str(ssh.config))
        daemon.process.kill()
    payload = saved.read_bytes().strip()
    with ssh.daemon() as daemon:
        for source in ("10.99.0.2", ELSEWHERE):
            send_from(ssh.client, source, ssh.gateway.ipv4, payload)
            daemon.wait_for(f"{source}: ssh: SPA packet of client laptop refused: replayed")
        assert ssh.granted() == {}
        assert not ssh.reaches()


def test_t20_killed_between_the_packet_and_the_opening_nothing_opens_by_the_same_bytes(
    ssh: World, tmp_path: Path
) -> None:
    """T18, T20: the real daemon, killed once the packet is on the disk and before it has opened anything."""
    stanza = keygen(ssh)
    ssh.apply()
    saved = tmp_path / "packet"
    with ssh.daemon() as daemon:
        time.sleep(2)  # after a second, and then each ten, it asks the kernel about its sets: that is not to be caught
        # The first netlink message behind the sync, by which it asks whether the address may be let in, is never sent.
        instead = "inject=sendto:error=EINTR:signal=SIGKILL:when=1"
        words = ("strace", "-f", "-p", str(daemon.process.pid), "-e", "trace=sendto", "-e", instead)
        with running(ssh.gateway, *words, ready="attached"):
            run_fwknop(ssh, tmp_path, stanza, name_of(stanza), "--save-packet", str(saved))
            assert daemon.process.wait(PATIENCE) == -signal.SIGKILL
    assert ssh.granted() == {}
    with ssh.daemon() as daemon:
        send_from(ssh.client, "10.99.0.2", ssh.gateway.ipv4, saved.read_bytes().strip())
        daemon.wait_for("10.99.0.2: ssh: SPA packet of client laptop refused: replayed")
        assert ssh.granted() == {}
        assert not ssh.reaches()


# ---- beside fwknopd

BESIDE = PROJECT / "docs/howto/fwknop.md"
LAST, BARE = coded("last"), Keys("bare", (("KEY", "a-key_that'is-alone"),))

Way = Callable[["Both", bytes, str], None]


def datagram(both: "Both", payload: bytes, source: str) -> None:
    send_from(both.site.world.client, source, both.site.world.gateway.ipv4, payload)


def raw(protocol: int, header: bytes) -> Way:
    """In a packet with this header of its own."""

    def send(both: "Both", payload: bytes, source: str) -> None:
        world = both.site.world
        with world.client.inside(), socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sender:
            sender.bind((source, 0))
            sender.sendto(header + payload, (world.gateway.ipv4, 0))

    return send


def tcp(flags: int) -> Way:
    """In a TCP packet to the port with these flags (RFC 9293, 3.1)."""
    return raw(socket.IPPROTO_TCP, b"\x9c\x40\xf2\xf9" + bytes(8) + bytes([0x50, flags]) + bytes(6))


def icmp(kind: int, code: int = 0) -> Way:
    """In an ICMP message; nobody looks at its checksum before a sniffer or the log does."""
    return raw(socket.IPPROTO_ICMP, bytes([kind, code]) + bytes(6))


class Case(NamedTuple):
    """A packet of the stock client, and whether fwknopd and logknock let somebody in for it.

    text: as the page has it. whom: the address that would be let in; empty: the source. change: what became of it on
    its way. again: it has come once already, from there.
    """

    text: str
    theirs: bool
    ours: bool
    keys: Keys = PLAIN
    options: tuple[str, ...] = ("-s",)
    whom: str = ""
    way: Way = datagram
    change: Callable[[bytes], bytes] = bytes
    again: str = ""


CASES = [
    Case("`-s`: for the address that it comes from", True, True),
    Case("`-a` with its own address", True, True, options=("-a", "{own}")),
    Case("`-a` with its own address, `REQUIRE_SOURCE_ADDRESS Y`", True, True, NAMED, ("-a", "{own}")),
    Case("`-s`, `REQUIRE_SOURCE_ADDRESS Y`", False, False, NAMED),
    Case("`-a` with another address", True, True, options=("-a", "{other}"), whom="{other}"),
    Case("`-a` with another address, `REQUIRE_SOURCE_ADDRESS Y`", True, False, NAMED, ("-a", "{other}"), "{other}"),
    Case("`-a 127.0.0.1`", True, False, options=("-a", "127.0.0.1"), whom="127.0.0.1"),
    Case("a passphrase instead of base64", True, True, PHRASE),
    Case("the user that is required (`-U`)", True, True, BOB, ("-s", "-U", "bob")),
    Case("another user", False, False, BOB, ("-s", "-U", "anna")),
    Case("a port that is not among its ports", False, False, options=("-s", "-A", "tcp/8080")),
    Case("one port that is, and one that is not", False, False, options=("-s", "-A", "tcp/22,tcp/8080")),
    Case("a time of its own (`-f`)", True, True, options=("-s", "-f", "60")),
    Case("110 s old", True, True, options=("-s", "--time-offset-minus", "110")),
    Case("130 s old", False, False, options=("-s", "--time-offset-minus", "130")),
    Case("from in 130 s", False, False, options=("-s", "--time-offset-plus", "130")),
    Case("NAT (`-N`)", False, False, options=("-s", "-N", "10.0.0.1:22")),
    Case("a command (`-C`)", False, False, options=("-s", "-C", "touch x")),
    Case("the same bytes again", False, False, again="{own}"),
    Case("the same bytes again, from another address", False, False, again="{other}"),
    Case("a letter altered", False, False, change=lambda payload: flipped(payload, 40)),
    Case("a letter of the HMAC altered", False, False, change=lambda payload: flipped(payload, len(payload) - 9)),
    Case("a letter cut off", False, False, change=lambda payload: payload[:-1]),
    Case("its HMAC cut off", False, False, change=lambda payload: payload[:-43]),
    Case("`=` behind it", False, False, change=lambda payload: payload + b"="),
    Case(
        "the last letter's unused bits set", False, False, change=lambda payload: unused_bit(payload, len(payload) - 1)
    ),
    Case("an HMAC with another digest", False, False, options=("-s", "--hmac-digest-type", "sha512")),
    Case("another mode of AES (`-M CFB`)", False, False, options=("-s", "-M", "CFB")),
    Case("no HMAC, in a stanza without one", True, False, BARE),
    Case(
        "no HMAC, the same bytes again with `=` behind them",
        True,
        False,
        BARE,
        change=lambda payload: payload + b"=",
        again="{own}",
    ),
    Case("`-P tcpraw`: in a lone SYN", True, True, way=tcp(0x02)),
    Case("in a TCP packet with ACK, RST or FIN", True, False, way=tcp(0x18)),
    Case("`-P icmp`: in an echo reply", True, True, way=icmp(0)),
    Case("`-P icmp --icmp-type 8`: in an echo request", True, True, way=icmp(8)),
    Case("in another ICMP message", True, False, way=icmp(3, 3)),
]


@dataclass
class Both:
    """Both daemons on one gateway; each case has addresses of its own."""

    site: Site
    fwknopd: subprocess.Popen[str]
    said: str = ""
    cases: int = 0

    def addresses(self) -> dict[str, str]:
        """Two that the client has not had yet."""
        self.cases += 1
        found = {"own": f"203.0.113.{2 * self.cases}", "other": f"203.0.113.{2 * self.cases + 1}"}
        for address in found.values():
            self.site.world.client.run("ip", "addr", "add", f"{address}/32", "dev", "eth0")
        return found

    def settle(self) -> None:
        """Both have seen all that was sent before."""
        self.site.daemon.read()
        known, self.said = len(self.site.daemon.lines), ""
        self.site.send(self.site.packet(LAST, "-s"), FENCE)
        until(lambda: self.site.daemon.says("") and any(FENCE in x for x in self.site.daemon.lines[known:]), "ours")
        until(self._has_settled, "theirs")

    def _has_settled(self) -> bool:
        self.read()
        return f"IP: {FENCE} received" in self.said

    def read(self) -> None:
        """Take over what fwknopd has said since."""
        assert self.fwknopd.stdout is not None
        while select.select([self.fwknopd.stdout], [], [], 0)[0]:
            self.said += os.read(self.fwknopd.stdout.fileno(), 65536).decode()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """fwknopd with its backend of iptables, and logknock with its rules."""
    folder = tmp_path_factory.mktemp("both")
    with pair() as (gateway, client):
        client.run("ip", "addr", "add", f"{FENCE}/32", "dev", "eth0")
        world = World(gateway, client, folder / "logknock.toml")
        access = folder / "access.conf"
        stanzas = (
            (LAST, ""),
            (PLAIN, ""),
            (PHRASE, ""),
            (NAMED, "REQUIRE_SOURCE_ADDRESS Y"),
            (BOB, "REQUIRE_USERNAME bob"),
        )
        text = "".join(
            f"# {keys.name}\nSOURCE ANY\nOPEN_PORTS tcp/22,udp/1194\n{keys.stanza()}{more}\n"
            for keys, more in (*stanzas, (BARE, ""))
        )
        access.write_text(text)
        access.chmod(0o600)
        # The same file for both: ours is what becomes of it, but for the one that has no HMAC.
        words = ("import-access", str(access), "--port", "62201/udp", "--port", "62201/tcp", "--port", "icmp")
        done = world.gateway.logknock(*words, check=False)
        assert "HMAC_KEY: is missing" in done.stderr
        world.configure("[firewall]\nrate = 1000\nburst = 1000\ntraps = 64\n" + done.stdout)
        world.apply()
        settings = folder / "fwknopd.conf"
        settings.write_text("PCAP_INTF eth0;\nPCAP_LOOP_SLEEP 1000;\nPCAP_FILTER udp or icmp or tcp;\n")
        settings.chmod(0o600)
        (folder / "state").mkdir(exist_ok=True)
        files = ("-c", settings, "-a", access, "-r", folder / "fwknopd", "-d", folder / "digests", "-p", folder / "pid")
        (folder / "fwknopd").mkdir()
        with (
            world.daemon() as daemon,
            running(gateway, FWKNOPD, "-f", *map(str, files), ready="main event loop") as fwknopd,
        ):
            yield Both(Site(world, daemon, folder), fwknopd)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_beside_fwknopd_each_packet_does_what_the_page_says(both: Both, case: Case) -> None:
    site, addresses = both.site, both.addresses()
    payload = site.packet(case.keys, *(option.format(**addresses) for option in case.options))
    if case.again:
        case.way(both, payload, addresses["own"])
        both.settle()
        addresses["own"] = case.again.format(**addresses)
        site.close()
        site.world.gateway.run("iptables", "-F", "FWKNOP_INPUT")
    case.way(both, case.change(payload), addresses["own"])
    both.settle()
    whom = (case.whom or "{own}").format(**addresses)
    rules = site.world.gateway.run("iptables", "-S", "FWKNOP_INPUT").stdout
    assert (f"-s {whom}/32" in rules, bool(site.opened(whom))) == (case.theirs, case.ours), both.said


def test_the_page_lists_what_was_compared() -> None:
    rows = re.findall(r"^\| (.+) \| (yes|no) \| (?:\*\*)?(yes|no)(?:\*\*)? \|$", BESIDE.read_text(), re.MULTILINE)
    words = {True: "yes", False: "no"}
    assert rows == [(case.text, words[case.theirs], words[case.ours]) for case in CASES]


# ---- the page, followed

GUIDE = follows("docs/howto/fwknop.md")
NAMES = {"host.example": HOST}
OTHER = '[doors.web]\nsequence = ["7000/tcp", "9000/udp", "8000/tcp"]\nopens = ["8443/tcp"]\n'

# What a host has that fwknopd guards ssh on.
STOCK = """
mkdir -p /etc/fwknop /run/fwknop
install -m 600 /dev/stdin /etc/fwknop/access.conf
printf 'PCAP_INTF eth0;\\n' > /etc/fwknop/fwknopd.conf
chmod 600 /etc/fwknop/fwknopd.conf
iptables -A INPUT -p tcp --dport 22 -m conntrack --ctstate NEW -j DROP
ip6tables -A INPUT -p tcp --dport 22 -m conntrack --ctstate NEW -j DROP
"""
# As the package leaves it.
INSTALLED = """
groupadd --force --system logknock
install -d -m 750 -g logknock /etc/logknock /etc/logknock/conf.d
install -m 640 -g logknock /dev/null /etc/logknock/logknock.toml
"""
FILES = ("-c", "/etc/fwknop/fwknopd.conf", "-a", "/etc/fwknop/access.conf", "-r", "/run/fwknop")


def is_ours(gateway: PrivateHost, door: str, is_open: bool) -> None:
    """A door of ours is open, or is not."""
    until(lambda: (door in run(gateway, "logknock grants")) == is_open, f"{door} open: {is_open}")


def test_coming_from_fwknop_with_its_own_client(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    documented(hosts)
    make_keys(tmp_path, "host.example", *HOST)
    with (
        private(hosts[0], NAMES, COMMANDS) as gateway,
        private(hosts[1], NAMES, (Path(FWKNOP),)) as client,
        ssh_server(gateway, tmp_path),
        guarded(gateway, OTHER) as daemon,
    ):
        may_ssh(client, tmp_path)
        guide = Guide(GUIDE, {"": gateway, "client": client})
        gateway.run("sh", "-ec", STOCK, input=f"SOURCE ANY\nOPEN_PORTS tcp/22\n{PLAIN.stanza()}")
        stanza = f"[gate]\nSPA_SERVER host.example\nACCESS tcp/22\nALLOW_IP source\nUSE_HMAC Y\n{PLAIN.stanza()}"
        client.run("install", "-m", "600", "/dev/stdin", "/root/.fwknoprc", input=stanza)
        with running(gateway, FWKNOPD, "-f", *FILES, ready="main event loop"):
            guide.run("logknock import-access")
            guide.run("logknock check")
            with guide.start("--confirm 60s") as trial:
                trial.expect("60 s")
                guide.run("logknock rules confirm")
                trial.end()
            assert "load average" in guide.run("fwknop -n gate")
            daemon.expect("OPEN SESAME")
            guide.shown("accepted: 22/tcp", daemon.so_far())


def test_a_first_client_of_fwknop_s_where_there_was_no_door_at_all(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Nothing else opens ssh, so that the order counts: no rules shut it before somebody can open it."""
    documented(hosts)
    make_keys(tmp_path, "host.example", *HOST)
    with (
        private(hosts[0], NAMES, COMMANDS) as gateway,
        private(hosts[1], NAMES, (Path(FWKNOP),)) as client,
        ssh_server(gateway, tmp_path),
        ExitStack() as stack,
    ):
        may_ssh(client, tmp_path)
        guide = Guide(GUIDE.under("A new client"), {"": gateway, "client": client})
        run(gateway, INSTALLED)
        guide.run("[doors.vpn]")
        printed = guide.run("logknock keygen vpn laptop")
        guide.shown("SPA_SERVER_PORT", printed)
        made = printed.partition("~/.fwknoprc\n")[2].partition("\n# ----")[0]
        client.run("sh", "-c", "umask 077; cat >> /root/.fwknoprc", input=made)
        assert "require_source" in guide.run("rules apply")
        stack.enter_context(terminal(gateway, "exec logknock run")).expect("ready")
        is_ours(gateway, "vpn", False)
        assert "load average" in guide.run("fwknop -n host-vpn\nssh")
        is_ours(gateway, "vpn", True)
        guide = Guide(GUIDE, guide.hosts)
        assert "SPA packet of client laptop accepted" in guide.run("logknock explain")
        guide.run("--save-packet packet")
        gateway.run("sh", "-c", "cat > /root/packet", input=client.run("cat", "/root/packet").stdout)
        guide.shown("would open 22/tcp", guide.run("logknock spa-test"))
