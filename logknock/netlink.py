"""Netlink messages, and a socket to exchange them with the kernel: what NFLOG and the sets have in common.

Rule 1: here is the envelope only (linux/netlink.h, linux/netfilter/nfnetlink.h); what the attributes mean is
known where they are used. Rule 2: what comes in may be cut or malformed: the parsers stop at it, and raise nothing.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple, Self

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_CAPPED = 0x100
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200
NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_NLMSGERR_ATTR_MSG = 1

HEADER = Struct("=IHHII")  # length, type, flags, sequence number, port id
ATTRIBUTE = Struct("=HH")  # length, type
_ERROR = Struct("=i")

# The kernel answers while the request is being sent, so an answer that takes this long (seconds) will not come.
_ANSWER_TIMEOUT = 2
_TIMEVAL = Struct("@ll")
# The kernel builds dumps in pieces of at most 32 KiB (NL_DUMP: netlink_dump() in net/netlink/af_netlink.c).
_ANSWER_BYTES = 65_536


class Message(NamedTuple):
    """A netlink message: what of its header matters, and the rest."""

    kind: int
    flags: int
    sequence: int
    body: memoryview


class NetlinkError(OSError):
    """The kernel's refusal of the message with the number `sequence`: `errno`, and in `strerror` its words.

    Its own explanation (extended ack) is part of them.
    """

    def __init__(self, code: int, words: str, sequence: int) -> None:
        super().__init__(code, words)
        self.sequence = sequence


def align(length: int) -> int:
    """Length rounded up to the 4 bytes that messages and attributes are padded to."""
    return (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    length = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + bytes(align(length) - length)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message, header and all; `body` is padded as attributes are."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def netfilter_message(kind: int, flags: int, sequence: int, family: int, resource: int, *attributes: bytes) -> bytes:
    """A message to an nfnetlink subsystem: behind the header stand family, version 0 and a resource id (nfgenmsg)."""
    body = bytes((family, 0)) + resource.to_bytes(2, "big") + b"".join(attributes)
    return message(kind, flags | NLM_F_REQUEST, sequence, body)


def messages(data: memoryview) -> Iterator[Message]:
    """The messages in what one read returned, up to the first that is not whole."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if not HEADER.size <= length <= len(data) - at:
            return
        yield Message(kind, flags, sequence, data[at + HEADER.size : at + length])
        at += align(length)


def attributes(data: memoryview) -> dict[int, memoryview]:
    """Attributes by kind, without flags, up to the first that is not whole; of a repeated one the last."""
    found = {}
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if not ATTRIBUTE.size <= length <= len(data) - at:
            break
        found[kind & _NLA_TYPE_MASK] = data[at + ATTRIBUTE.size : at + length]
        at += align(length)
    return found


def refusal(answer: Message) -> NetlinkError | None:
    """What an NLMSG_ERROR says: None where it is an acknowledgement (or too short to say anything)."""
    if len(answer.body) < _ERROR.size + HEADER.size:
        return None
    (code,) = _ERROR.unpack_from(answer.body)
    if code == 0:
        return None
    words = os.strerror(-code)
    if answer.flags & NLM_F_ACK_TLVS:
        (quoted, *_) = HEADER.unpack_from(answer.body, _ERROR.size)
        at = _ERROR.size + (HEADER.size if answer.flags & NLM_F_CAPPED else align(quoted))
        said = bytes(attributes(answer.body[at:]).get(_NLMSGERR_ATTR_MSG, b"")).rstrip(b"\0")
        if said:
            words += f" ({said.decode('ascii', 'replace')})"
    return NetlinkError(-code, words, answer.sequence)


class Socket:
    """A netlink socket. Only what the kernel itself sent is ever returned from it."""

    def __init__(self, protocol: int) -> None:
        self.raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self.raw.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            with contextlib.suppress(OSError):  # before Linux 4.12 the kernel explains less
                self.raw.setsockopt(_SOL_NETLINK, option, 1)
        # The kernel's own timeout, not Python's, which would also wait where MSG_DONTWAIT says not to.
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(_ANSWER_TIMEOUT, 0))
        self._buffer = bytearray(_ANSWER_BYTES)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; harmless if it is closed."""
        self.raw.close()

    def sequence(self) -> int:
        """A fresh number for a request, by which its answer is told from a late one to another."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return self._sequence

    def skip_to(self, sequence: int) -> None:
        """Go on behind `sequence`: the numbers up to it went into one batch."""
        self._sequence = sequence & 0xFFFFFFFF

    def request(self, data: bytes, sequence: int, first: int | None = None) -> list[bytes]:
        """Send messages, the last of which has asked for an answer; the bodies of what came back for `sequence`.

        Complete at the acknowledgement or the end of the dump of `sequence`. `first` is the number of the first
        message, where there are several; answers to older ones are passed over. Raises NetlinkError with the
        first refusal that any of the messages met, OSError if the socket fails.
        """
        mine = range(sequence if first is None else first, sequence + 1)
        self.raw.send(data)
        found: list[bytes] = []
        while True:
            for answer in self._receive():
                if answer.sequence not in mine:
                    continue
                if answer.kind == NLMSG_ERROR:
                    refused = refusal(answer)
                    if refused is not None:
                        self._discard()
                        try:
                            raise refused
                        finally:
                            del refused  # it would hold itself, by its traceback, until the garbage collector runs
                if answer.sequence != sequence:
                    continue
                if answer.kind in (NLMSG_ERROR, NLMSG_DONE):
                    return found
                found.append(bytes(answer.body))

    def dump(self, data: bytes, sequence: int) -> Iterator[list[bytes]]:
        """Ask for what may be much; the bodies of the answer, delivery by delivery, for whoever has other things to do.

        Raises as request() does.
        """
        self.raw.send(data)
        while True:
            found: list[bytes] = []
            for answer in self._receive():
                if answer.sequence != sequence:
                    continue
                refused = refusal(answer) if answer.kind == NLMSG_ERROR else None
                if refused is not None:
                    try:
                        raise refused
                    finally:
                        del refused
                if answer.kind in (NLMSG_ERROR, NLMSG_DONE):
                    yield found
                    return
                found.append(bytes(answer.body))
            yield found

    def _receive(self) -> Iterator[Message]:
        length, (port, _) = self.raw.recvfrom_into(self._buffer)
        if port == 0:
            yield from messages(memoryview(self._buffer)[:length])

    def _discard(self) -> None:
        """Forget answers to the messages behind a refused one."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.raw.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
