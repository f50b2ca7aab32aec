"""A gateway that runs logknock with its real rules, a client that knocks, and ways to look at both."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logknock import totp
from logknock.config_values import port_range
from logknock.knock import Service

from ..netns import Host

# What a slow machine needs at worst for a step that usually takes milliseconds.
PATIENCE = 20.0

SSH = """
[doors.ssh]
sequence = ["7000/tcp", "8000/tcp", "9000/udp"]
opens = ["22/tcp"]
timeout = "30s"
"""

KNOCKS = ("7000/tcp", "8000/tcp", "9000/udp")

# What a file of one-time sequences may say.
LINES = [" 7001, 8001:udp, 9001", " 7002, 8002:udp, 9002", " 7003, 8003:udp, 9003", " 7004, 8004:udp, 9004"]

# Answers each line with itself, over both families.
ECHO = """
import asyncio, sys
async def talk(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
async def main():
    async with await asyncio.start_server(talk, None, int(sys.argv[1])) as server:
        print("listening", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""

CONNECT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as s:
        s.settimeout(20)  # it is let in: the server answers as soon as it has its turn
        s.sendall(b"hello\\n")
        print(s.recv(100).decode().strip())
except OSError as error:
    sys.exit(str(error))
"""

# Sends TCP SYNs or UDP datagrams with sources of its choice: argument by argument `source>destination:port/protocol`,
# or `.../tcp=18` for the TCP flags of that number.
SPOOF = """
import ipaddress, os, socket, struct, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # on two processors they overtake each other
for number, word in enumerate(sys.argv[1:]):
    pair, _, proto = word.rpartition("/")
    proto, _, flags = proto.partition("=")
    src, _, rest = pair.partition(">")
    dst, _, port = rest.rpartition(":")
    s, d = ipaddress.ip_address(src).packed, ipaddress.ip_address(dst).packed
    sport = 20000 + number
    if proto == "tcp":
        l4, n = struct.pack("!HHIIBBHHH", sport, int(port), 1, 0, 5 << 4, int(flags or 2), 64240, 0, 0), 6
    else:
        l4, n = struct.pack("!HHHH", sport, int(port), 9, 0) + b"\\0", 17
    if len(s) == 4:
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(l4), number, 0, 64, n, 0, s, d)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(ip + l4, (dst, 0))
    else:
        ip = struct.pack("!IHBB16s16s", 6 << 28, len(l4), n, 64, s, d)
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(ip + l4, (dst, 0))
"""


def write_sequences(path: Path, lines: Sequence[str]) -> Path:
    """A file of one-time sequences, as its owner keeps it."""
    draft = path.with_name(f"{path.name}.draft")  # a daemon that looks meanwhile sees the one or the other
    draft.write_text("".join(f"{line}\n" for line in lines))
    draft.chmod(0o600)
    return draft.replace(path)


def derived(profile: str, late: float = 0.0) -> list[str]:
    """What a client with this profile (TOTP) knocks now, whose clock is so many seconds slow."""
    ((_, asked),) = tomllib.loads(profile)["profiles"].items()
    keys = asked["totp"]
    ranges = map(port_range, keys["ports"])
    pool = tuple(Service(proto, port) for proto, first, last in ranges for port in range(first, last + 1))
    secret, step = totp.parse_secret(keys["secret"]), totp.step_at(time.time() - late, 30)
    return list(map(str, totp.derive(secret, step, keys["door"], keys["host"], pool, keys["length"])))


def until(true: Callable[[], object], what: str) -> None:
    """Wait for something that must come; fail with `what` if it does not."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s in vain: {what}"
        time.sleep(0.02)


@dataclass
class Daemon:
    """`logknock run` in the background; `lines` are those that it has written."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _rest: str = ""

    def read(self) -> None:
        """Take over what has been written since."""
        assert self.process.stderr is not None
        while select.select([self.process.stderr], [], [], 0)[0]:
            some = os.read(self.process.stderr.fileno(), 65536).decode()
            if not some:
                break
            *whole, self._rest = (self._rest + some).split("\n")
            self.lines += whole

    def says(self, text: str) -> bool:
        """Whether it has said so by now."""
        self.read()
        return any(text in line for line in self.lines)

    def wait_for(self, text: str) -> None:
        """Wait until a line with this text has come."""
        end = time.monotonic() + PATIENCE
        while not self.says(text):
            assert time.monotonic() < end, f"no line with {text!r} in:\n" + "\n".join(self.lines)
            assert self.process.poll() is None or self.says(text), "it ended:\n" + "\n".join(self.lines)
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon itself."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it as systemd does, and give its exit status."""
        self.signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self.read()
        return status

    def counter(self, words: str) -> int:
        """A number out of the line that SIGUSR1 asks for: the one before `words`."""
        self.read()
        known = len(self.lines)
        self.signal(signal.SIGUSR1)
        until(lambda: self.says("") and any("firewall errors" in line for line in self.lines[known:]), "the counters")
        line = next(line for line in self.lines[known:] if "firewall errors" in line)
        return int(line.partition(f" {words}")[0].replace(",", " ").replace("(", " ").split()[-1])


@dataclass
class World:
    """The two hosts, the configuration's file, and what is to be asked of them."""

    gateway: Host
    client: Host
    config: Path

    def configure(self, text: str) -> None:
        """Write the configuration; state and runtime go beside the file."""
        folder = self.config.parent
        paths = f'[paths]\nstate = "{folder}/state"\nruntime = "{folder}/run"\n'
        self.config.write_text(paths + text)
        self.config.chmod(0o600)

    def apply(self) -> None:
        """Load the rules as an administrator does."""
        self.gateway.logknock("rules", "apply", "-c", str(self.config))

    @contextmanager
    def daemon(self, *, ready: bool = True, before: Sequence[str] = ()) -> Iterator[Daemon]:
        """The daemon, until the block ends; before: what stands before its command."""
        command = [*before, sys.executable, "-m", "logknock", "run", "-c", str(self.config)]
        process = self.gateway.start(*command, stderr=subprocess.PIPE)
        daemon = Daemon(process)
        try:
            if ready:
                daemon.wait_for("ready")
            yield daemon
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()

    @contextmanager
    def service(self, port: int) -> Iterator[None]:
        """An echo service on a port of the gateway."""
        process = self.gateway.start(sys.executable, "-c", ECHO, str(port), stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            process.stdout.close()
            yield
        finally:
            process.kill()
            process.wait()

    def knock(self, *services: str, address: str = "") -> None:
        """Knock as a user does."""
        self.client.logknock("knock", address or self.gateway.ipv4, *services)

    def spoof(self, *words: str) -> None:
        """Send packets with forged sources, `source>destination:port/protocol` each."""
        self.client.python(SPOOF, *words)

    def reaches(self, port: int = 22, address: str = "", patience: float = 0.7) -> bool:
        """Whether the client can talk to a service of the gateway. (A SYN that is dropped comes again after 1 s.)"""
        done = self.client.python(CONNECT, address or self.gateway.ipv4, str(port), str(patience), check=False)
        return done.stdout == "hello\n"

    def granted(self, name: str = "granted4") -> dict[str, dict[str, Any]]:
        """The elements of one of our sets, by key."""
        done = self.gateway.run("nft", "-j", "list", "set", "inet", "logknock", name, check=False)
        if done.returncode:
            return {}
        found = {}
        for entry in json.loads(done.stdout)["nftables"]:
            for item in entry.get("set", {}).get("elem", []):
                element = item["elem"] if isinstance(item, dict) and "elem" in item else {"val": item}
                value = element["val"]
                text = " . ".join(str(part) for part in value["concat"]) if isinstance(value, dict) else str(value)
                found[text] = element
        return found
