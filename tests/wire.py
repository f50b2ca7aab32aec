"""A capture of what comes in by a host's link, before its firewall sees it: tcpdump, and its file read as it grows."""

import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from logknock.packet import SYN, TCP, UDP, Packet, from_ip

from .e2e.world import until
from .netns import Host

# A port that must be silent wherever resends are waited for.
CONTROL = 6999

# pcap's file header, and the header of a record of which we need the time and the captured length (pcap-savefile(5)).
FILE_HEADER = 24
RECORD_HEADER = struct.Struct("=IIII")
ETHERNET_HEADER = 14


class Seen(NamedTuple):
    """A packet on the wire: what logknock reads in it, and all its bytes from the IP header on."""

    packet: Packet
    data: bytes

    @property
    def service(self) -> str:
        return f"{self.packet.dport}/{'tcp' if self.packet.proto == TCP else 'udp'}"

    @property
    def payload(self) -> bytes:
        """What a datagram carries; for TCP, its header too."""
        ip_header = 40 if self.data[0] >> 4 == 6 else 20
        return self.data[ip_header + (8 if self.packet.proto == UDP else 0) :]

    @property
    def is_knock(self) -> bool:
        return self.packet.proto == UDP or self.packet.flags == SYN


class Wire:
    """A capture of the TCP and UDP packets that come in by one link of a host."""

    def __init__(self, file: Path, client: Host, gateway: Host) -> None:
        self._file = file
        self._client = client
        self._gateway = gateway

    def seen(self) -> list[Seen]:
        """What has come in so far, in order."""
        data = self._file.read_bytes() if self._file.exists() else b""
        found: list[Seen] = []
        at = FILE_HEADER
        while at + RECORD_HEADER.size <= len(data):
            seconds, micros, length, _ = RECORD_HEADER.unpack_from(data, at)
            start = at + RECORD_HEADER.size
            at = start + length
            ip = data[start + ETHERNET_HEADER : at]
            packet = from_ip(ip, seconds + micros / 1e6) if at <= len(data) else None
            if packet is not None:
                found.append(Seen(packet, ip))
        return found

    def knocks(self) -> list[Seen]:
        """The knocks among all that the client has sent so far; they are all in the file when this returns."""
        mark = ("mark/udp", len(self.seen()))
        self._client.python(
            "import socket, sys\n"
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 9))",
            self._gateway.ipv4,
            repr(mark),
        )
        until(lambda: any(seen.payload == repr(mark).encode() for seen in self.seen()), "the end of the knocks")
        return [seen for seen in self.seen() if seen.is_knock and seen.packet.dport not in (9, CONTROL)]

    def wait_for_resends(self) -> None:
        """Wait until a SYN sent now has been sent again.

        The kernel repeats a SYN that nobody answered after a second. Had a knock's socket been left open, its SYN,
        which is older than this one, would have been repeated first; and the capture is seen to show what is repeated.
        """
        control = self._client.start(
            sys.executable,
            "-c",
            "import socket, sys\n"
            "held = socket.socket(); held.setblocking(False)\n"
            "held.connect_ex((sys.argv[1], int(sys.argv[2])))\n"
            "sys.stdin.read()",
            self._gateway.ipv4,
            str(CONTROL),
            stdin=subprocess.PIPE,
        )
        with ended(control):
            until(
                lambda: sum(seen.packet.dport == CONTROL for seen in self.seen()) > 1, "a resend of the control's SYN"
            )


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, which is gone behind the block."""
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def capture(host: Host, device: str, file: Path) -> Iterator[None]:
    argv = ["tcpdump", "-i", device, "-Q", "in", "-Z", "root", "--immediate-mode", "-U", "-w", str(file), "tcp or udp"]
    with ended(host.start(*argv, stderr=subprocess.DEVNULL)):
        until(lambda: file.exists() and file.stat().st_size >= FILE_HEADER, "the start of the capture")
        yield


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().rstrip("\n")
