"""Hosts for tests: network namespaces, joined by veth pairs, that are gone when the test is.

Nothing here touches the namespace that the tests run in but for the names under /run/netns.
"""

import ctypes
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with one link; its addresses are documented beside `pair`."""

    name: str
    ipv4: str
    ipv6: str

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command as it is started inside the host."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end (a minute at most) and give back what it printed; check=False for an expected failure."""
        options.setdefault("timeout", 60)
        if "input" not in options:  # never a terminal, which some commands ask something on
            options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(self.argv(command), capture_output=True, text=True, check=False, **options)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start in the background; whoever starts it ends it."""
        return subprocess.Popen(self.argv(command), text=True, **options)

    def python(self, code: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Python code inside the host, with the interpreter and the packages of the tests."""
        return self.run(sys.executable, "-c", code, *args, check=check)

    def logknock(self, *args: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the logknock command of this tree inside the host."""
        return self.run(sys.executable, "-m", "logknock", *args, check=check, **options)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets that this thread makes meanwhile belong to the host, and go on doing so."""
        with open(f"/run/netns/{self.name}") as there, open("/proc/thread-self/ns/net") as here:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(here.fileno())

    def nft(self, script: str) -> str:
        """Run nft with the script on its standard input."""
        return self.run("nft", "-f", "-", input=script).stdout


def _wait_for_link(host: Host) -> None:
    """Until the kernel has noticed that the other end is there, packets over IPv6 get lost."""
    end = time.monotonic() + 20
    while '"operstate":"UP"' not in host.run("ip", "-j", "link", "show", "eth0").stdout:
        assert time.monotonic() < end, f"{host.name}: the link does not come up"
        time.sleep(0.02)


def _setns(descriptor: int) -> None:
    clone_newnet = 0x40000000
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, clone_newnet):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


@contextmanager
def pair() -> Iterator[tuple[Host, Host]]:
    """A gateway (10.99.0.1, fd99::1) and a client (10.99.0.2, fd99::2), each with one link (`eth0`) to the other.

    The gateway routes 198.51.100.0/24, 203.0.113.0/24 and fd98::/32 to the client, for spoofed sources.
    """
    tag = f"lk{os.getpid()}-{next(_serial)}"
    gateway = Host(f"{tag}g", "10.99.0.1", "fd99::1")
    client = Host(f"{tag}c", "10.99.0.2", "fd99::2")
    try:
        for host in (gateway, client):
            _ip("netns", "add", host.name)
            # No duplicate address detection: an address is usable at once.
            host.run("sh", "-c", "for c in all default; do echo 0 > /proc/sys/net/ipv6/conf/$c/accept_dad; done")
        _ip("link", "add", "eth0", "netns", gateway.name, "type", "veth", "peer", "name", "eth0", "netns", client.name)
        for host in (gateway, client):
            _ip("-n", host.name, "addr", "add", f"{host.ipv4}/24", "dev", "eth0")
            _ip("-n", host.name, "addr", "add", f"{host.ipv6}/64", "dev", "eth0", "nodad")
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "link", "set", "eth0", "up")
        for net in ("198.51.100.0/24", "203.0.113.0/24"):
            _ip("-n", gateway.name, "route", "add", net, "via", client.ipv4)
        _ip("-n", gateway.name, "-6", "route", "add", "fd98::/32", "via", client.ipv6)
        for host in (gateway, client):
            _wait_for_link(host)
        yield gateway, client
    finally:
        for host in (gateway, client):
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)
