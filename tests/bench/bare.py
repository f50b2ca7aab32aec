"""The least that a reader of NFLOG can do: receive records and look at none of them.

Rule: the group is set up as logknock sets it up under load, so that the kernel sends the same messages. SIGUSR1
says how many records have come, in logknock's words.
"""

import errno
import signal
import socket
import sys

from logknock import netlink

_CONFIG = 4 << 8 | 1  # NFULNL_MSG_CONFIG of linux/netfilter/nfnetlink_log.h
_SO_RCVBUFFORCE, _SO_TIMESTAMP = 33, 29


def main(group: int) -> None:
    """Receive until a signal ends it."""
    wire = netlink.Socket(netlink.NETLINK_NETFILTER)
    wire.raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    number = wire.sequence()
    bind = netlink.attribute(1, b"\x01")
    mode = netlink.attribute(2, (128).to_bytes(4, "big") + b"\x02\0")
    sizes = ((3, 65_536), (4, 1), (5, 512))  # delivery, timer, threshold
    rest = (netlink.attribute(kind, value.to_bytes(4, "big")) for kind, value in sizes)
    numbers = netlink.attribute(6, b"\0\x01")
    wire.request(
        netlink.netfilter_message(_CONFIG, netlink.NLM_F_ACK, number, 0, group, bind, mode, *rest, numbers), number
    )
    wire.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))
    stamps = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # as long as it lives records carry their time
    stamps.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
    received = [0, 0]  # bytes, overruns
    buffer = bytearray(131_072)

    def tell(*_: object) -> None:
        stride = netlink.align(netlink.HEADER.unpack_from(buffer)[0]) or 1
        print(f"{received[0] // stride} records, {received[1]} lost", file=sys.stderr, flush=True)

    signal.signal(signal.SIGUSR1, tell)
    print("ready", file=sys.stderr, flush=True)
    receive = wire.raw.recv_into
    while True:
        try:
            received[0] += receive(buffer)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            received[1] += 1


if __name__ == "__main__":
    main(int(sys.argv[1]))
