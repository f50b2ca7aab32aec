"""Packets from NFLOG, the kernel's own way to hand logged packets to a program.

Rule 1: one netlink socket, one group; nothing else is known here, neither doors nor sets. Rule 2: a message that is
not whole, or does not hold a packet, is counted and passed over. Rule 3: a packet costs the same whatever else is
there; messages of one shape are unpacked in bulk, and only those that `heeds` asks for become Packets. Rule 4: what a
packet carries is looked at where somebody wants such mail, and the record holds more than headers; nowhere else.

Source: linux/netfilter/nfnetlink_log.h and net/netfilter/nfnetlink_log.c. The kernel delivers each packet at once
while there are few (a knock should open its door now), and many at a time when there are many.
"""

import contextlib
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from struct import Struct, calcsize
from time import monotonic
from typing import NamedTuple

from .. import netlink
from ..errors import NO_PERMISSION, UNAVAILABLE, SourceError
from ..packet import TCP, UDP, Carried, Packet, carried_from_ip, from_ip

_SUBSYSTEM = 4  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = (_SUBSYSTEM << 8 | n for n in (0, 1))
_CFG_CMD, _CFG_MODE, _CFG_NLBUFSIZ, _CFG_TIMEOUT, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 3, 4, 5, 6
_CMD_BIND = 1
_COPY_PACKET = 2
_FLAG_SEQUENCE = 1
_TIMESTAMP, _INDEV, _OUTDEV, _PAYLOAD, _SEQUENCE = 3, 4, 5, 9, 12

# What doors need of a packet: the IP header (IPv6 with a few extension headers, IPv4 with all its options) and TCP's
# up to its flags. More would only be copied. (Our own rules cut what is no SPA packet there too.)
COPY_RANGE = 128

# Where SPA packets are awaited: the longest, 1,500 bytes, behind IPv6's header, some extension headers and all the
# options that TCP can have.
_COPY_MAIL = 1_600

# Where two rules log a packet, our own and the host firewall's, its records come one behind the other, with those of
# other processors' packets in between. The kernel's stamp, which they share, tells them from a packet sent again.
_MAIL_REMEMBERED = 32

# Delivery. Quiet: each packet at once. Busy: up to 512 packets, or what has come in 10 ms (the timer counts 1/100 s).
_QUIET, _BUSY = 1, 512
_BUSY_TIMER = 1
_BATCH_BYTES = 65_536  # of one delivery; the kernel takes at most 128 KiB
# More packets than that in one read, which takes a millisecond or so, means busy; fewer than that in a second, quiet.
_BUSY_ABOVE = 64
_QUIET_BELOW = 500

# What waits to be read while others have the processor, in the kernel's memory: some seconds of 150,000 packets each.
_RECEIVE_BUFFER = 64 * 1024 * 1024

# One read() returns with the first delivery that ends so many seconds after its beginning, or after so many deliveries,
# so that timers, signals and questions have their turn. (A delivery of first knocks takes 2 ms or so by itself.)
_READ_FOR = 0.001
_DELIVERIES_PER_READ = 128

# Shapes of messages that are known how to unpack: by length, by interface and neighbour. An attacker on the same wire
# can make more (by the sender's hardware address), and then pays with being unpacked one by one.
_MAX_SHAPES = 256

# What is kept of deliveries, for who asks later what came from a source: some thousand records.
_RECENT_BYTES = 1024 * 1024
_RECENT_DELIVERIES = 4_096

# asm-generic/socket.h; Python does not name them.
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMP = 29

# Messages of one shape are unpacked in parts, each twice as large as the last. Where nothing of a part was heeded,
# as in a scan, there is perhaps nothing in the next one either: to see that takes two thirds of asking for each packet.
_FIRST_PART, _LARGEST_PART = 4, 128

# Whether a packet from a source, of a protocol, to a port, can change anything at this moment.
Heeds = Callable[[bytes, int, int, int], bool]
# Whether that is false of all packets from these sources, of a protocol, to these ports, with a byte of flags each.
HeedsNone = Callable[[tuple[bytes, ...], int, tuple[int, ...], memoryview], bool]
Receive = Callable[[Packet], None]


class Mail(NamedTuple):
    """Who wants what packets carry. What is taken so is no knock, and no wrong knock.

    wants: whether it may be for them, by protocol and destination port (0 for ICMP). receive: takes it.
    """

    wants: Callable[[int, int], bool]
    receive: Callable[[Carried], None]


class _Shape(NamedTuple):
    """How to unpack messages that are alike: a Struct that repeats, and the parts of it that must be the same.

    look: another that unpacks no more than these, the number, the source and the destination port. flags: where in a
    message TCP's are.
    """

    unpack: Struct
    look: Struct
    same: tuple[bytes, ...]
    proto: int
    flags: int
    timed: bool


class _Marks(NamedTuple):
    """Where to look in a message of a known length to find its shape: the end of its fixed part, the IP header."""

    fixed: int
    payload: int

    def key(self, data: memoryview) -> bytes:
        """What tells shapes apart: the fixed part; IP version; the protocol, and in IPv4 the fragment flags too.

        `data` is at least as long as the message that the marks were learned from.
        """
        at = self.payload
        first = data[at]
        if first >> 4 == 4:
            return bytes(data[: self.fixed]) + bytes((first, data[at + 6], data[at + 9]))
        return bytes(data[: self.fixed]) + bytes((first, data[at + 6]))


class Decoder:
    """Netlink messages to Packets; counts what it sees. Holds no descriptor.

    heeds_none: saves asking `heeds` for each packet; None: it is asked for each.
    directions: which packets count: `in` those that came in for this host, `forward` those that are routed on, `out`
    those that were made here (T25). mail: who wants what they carry; None: nobody.
    """

    def __init__(
        self,
        heeds: Heeds,
        directions: frozenset[str] = frozenset({"in"}),
        heeds_none: HeedsNone | None = None,
        mail: Mail | None = None,
    ) -> None:
        self._heeds = heeds
        self._heeds_none = heeds_none
        self._mail = mail
        self._taken: deque[Carried] = deque(maxlen=_MAIL_REMEMBERED)
        self._directions = directions
        self.records = 0
        self.lost = 0
        self.ignored = 0
        self._expected: int | None = None
        self._shapes: dict[bytes, _Shape] = {}
        self._marks: dict[int, _Marks] = {}

    def decode(self, data: memoryview, now: float, receive: Receive) -> None:
        """Hand the packets of one delivery that `heeds` asks for to `receive`; `now` is the time of unstamped ones.

        One by one, since what is received decides what is heeded next.
        """
        at = 0
        while at + netlink.HEADER.size <= len(data):
            size, kind, *_ = netlink.HEADER.unpack_from(data, at)
            if not netlink.HEADER.size <= size <= len(data) - at:
                self.ignored += 1
                return
            stride = netlink.align(size)
            taken = 0
            if kind == _PACKET:
                run = data[at : at + (len(data) - at) // stride * stride]
                taken = self._decode_run(run, size, now, receive)
                if not taken:
                    self._decode_one(data[at : at + size], now, receive)
            at += max(1, taken) * stride

    def _decode_run(self, run: memoryview, size: int, now: float, receive: Receive) -> int:
        """Unpack messages for as long as they are of the first one's shape; how many were, 0 if it is not known."""
        marks = self._marks.get(size)
        shape = self._shapes.get(marks.key(run)) if marks and run else None
        if shape is None:
            return 0
        stride, at, part, quiet = shape.unpack.size, 0, _FIRST_PART, False
        while at < len(run):
            messages = run[at : at + part * stride]
            if not (quiet and self._is_noise(messages, shape)):
                taken, quiet = self._decode_part(messages, shape, now, receive)
                if taken * stride < len(messages):
                    at += taken * stride
                    break
            at += len(messages)
            part = min(2 * part, _LARGEST_PART)
        self.records += at // stride
        return at // stride

    def _decode_part(self, messages: memoryview, shape: _Shape, now: float, receive: Receive) -> tuple[int, bool]:
        """Unpack messages for as long as they are of the shape; how many were, and whether none of them was heeded."""
        heeds, expected, proto, same = self._heeds, self._expected, shape.proto, shape.same
        taken, quiet = 0, True
        for a, seconds, micros, b, number, c, d, e, src, dst, sport, dport, flags in shape.unpack.iter_unpack(messages):
            if (a, b, c, d, e) != same:
                break
            taken += 1
            if number != expected:
                self._miss(expected, number)
            expected = (number + 1) & 0xFFFFFFFF
            if heeds(src, proto, dport, flags or 0):
                quiet = False
                time = seconds + micros / 1_000_000 if shape.timed else now
                # A NamedTuple's own constructor takes twice as long, which is 3 % of all that a first knock costs.
                receive(tuple.__new__(Packet, (time, src, dst, proto, sport, dport, flags or 0)))
        self._expected = expected
        return taken, quiet

    def _is_noise(self, messages: memoryview, shape: _Shape) -> bool:
        """Whether all are of the shape, none is missing between them, and none is heeded; then they are counted."""
        if self._heeds_none is None:
            return False
        a, b, numbers, c, d, e, sources, dports = zip(*shape.look.iter_unpack(messages), strict=True)
        many = len(numbers)
        if numbers[0] != self._expected or numbers[-1] - numbers[0] != many - 1:  # the kernel counts upwards
            return False
        if any(column.count(part) != many for column, part in zip((a, b, c, d, e), shape.same, strict=True)):
            return False
        if not self._heeds_none(sources, shape.proto, dports, messages[shape.flags :: shape.look.size]):
            return False
        self._expected = (numbers[-1] + 1) & 0xFFFFFFFF
        return True

    def _decode_one(self, data: memoryview, now: float, receive: Receive) -> None:
        """Walk one message's attributes, and learn its shape."""
        found = netlink.attributes(data[netlink.HEADER.size + 4 :])
        self.records += 1
        if len(found.get(_SEQUENCE, b"")) == 4:
            number = int.from_bytes(found[_SEQUENCE], "big")
            self._miss(self._expected, number)
            self._expected = (number + 1) & 0xFFFFFFFF
        stamp = found.get(_TIMESTAMP, b"")
        time = now
        if len(stamp) == 16:
            time = int.from_bytes(stamp[:8], "big") + int.from_bytes(stamp[8:], "big") / 1_000_000
        payload = bytes(found.get(_PAYLOAD, b""))
        counts = _direction(found) in self._directions
        if counts and self._is_taken(payload, time):
            return
        packet = from_ip(payload, time)
        if packet is None or not counts:
            self.ignored += 1
            return
        if self._heeds(packet.src, packet.proto, packet.dport, packet.flags):
            receive(packet)
        # What is longer may be mail the next time, by a port that no shape tells.
        learned = _shape(data) if self._mail is None or len(payload) <= COPY_RANGE else None
        if learned is not None:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            marks, shape = learned
            self._marks[len(data)] = marks
            self._shapes[marks.key(data)] = shape

    def _is_taken(self, payload: bytes, time: float) -> bool:
        """Hand over what an IP packet carries, where somebody wants it; once, however many rules log it (T10)."""
        mail = self._mail
        if mail is None or len(payload) <= COPY_RANGE:
            return False
        carried = carried_from_ip(payload, time)
        if carried is None or not mail.wants(carried.packet.proto, carried.packet.dport):
            return False
        if carried not in self._taken:
            self._taken.append(carried)
            mail.receive(carried)
        return True

    def successor(
        self,
        heeds: Heeds,
        directions: frozenset[str] | None = None,
        heeds_none: HeedsNone | None = None,
        mail: Mail | None = None,
    ) -> "Decoder":
        """One that goes on where this one is; the shapes that it knew are learned anew, in these directions."""
        after = Decoder(heeds, self._directions if directions is None else directions, heeds_none, mail)
        after.records, after.lost, after.ignored, after._expected = (
            self.records,
            self.lost,
            self.ignored,
            self._expected,
        )
        return after

    def _miss(self, expected: int | None, number: int) -> None:
        """Count what a gap in the numbers says is missing; a number from before `expected` is no gap."""
        if expected is not None:
            gap = (number - expected) & 0xFFFFFFFF
            self.lost += gap if gap < 1 << 31 else 0


class Nflog:
    """A bound NFLOG group: `read()` when `fileno()` is readable, `settle()` once a second; close() when done."""

    interval = 0.0

    def __init__(self, group: int, heeds: Heeds, directions: frozenset[str] = frozenset({"in"})) -> None:
        self.group = group
        self.name = f"NFLOG group {group}"
        self.overruns = 0
        self.busy = False  # whether the kernel delivers many packets at a time
        self._mail: Mail | None = None
        self._copied = COPY_RANGE  # how much of a packet the kernel is asked for
        self._decoder = Decoder(heeds, directions)
        self._records_at_settling = 0
        self._buffer = memoryview(bytearray(2 * _BATCH_BYTES))
        self._recent: deque[tuple[float, bytes]] = deque(maxlen=_RECENT_DELIVERIES)
        self._recent_bytes = 0
        self._socket = _open_group(group)
        # The kernel stamps packets with the time of their coming as long as some socket asks for it. With the stamp
        # a packet that waited (a stopped process, a full queue) is judged by when it came (T29). Any socket but a unix
        # one will do (sock_needs_netstamp() in net/core/sock.c); the unit allows no other family that would.
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._stamps = socket.socket(socket.AF_NETLINK, kind, netlink.NETLINK_NETFILTER)
        self._stamps.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)

    def count(
        self,
        heeds: Heeds,
        directions: frozenset[str],
        heeds_none: HeedsNone | None = None,
        mail: Mail | None = None,
    ) -> None:
        """From here on these packets count, and `mail` takes what they carry."""
        self._decoder = self._decoder.successor(heeds, directions, heeds_none, mail)
        self._mail = mail
        self._copy()

    @property
    def records(self) -> int:
        """How many records have been read."""
        return self._decoder.records

    @property
    def lost(self) -> int:
        """How many records the kernel could not deliver, by the gaps in their numbers (T30)."""
        return self._decoder.lost

    @property
    def ignored(self) -> int:
        """How many records held no packet that could be a knock."""
        return self._decoder.ignored

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.raw.fileno()

    def watch(self, wake: Callable[[], None]) -> None:
        """Nothing to do: the descriptor tells."""

    def close(self) -> None:
        """Leave the group, which the kernel then gives to whoever asks."""
        self._socket.close()
        self._stamps.close()

    def read(self, now: float, receive: Receive) -> bool:
        """Hand over what has come and matters; `now` (seconds since the epoch) is the time of packets without a stamp.

        Never blocks, and returns before everything is read if that is much: the descriptor stays readable then (so
        that the answer is False: nothing waits that it does not tell of). Raises OSError if the socket fails.
        """
        before, end = self.records, monotonic() + _READ_FOR
        for _ in range(_DELIVERIES_PER_READ):
            try:
                length, (port, _groups) = self._socket.raw.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            if port == 0:
                self._keep(now, bytes(self._buffer[:length]))
                self._decoder.decode(self._buffer[:length], now, receive)
            if monotonic() >= end:
                break
        if not self.busy and self.records - before > _BUSY_ABOVE:
            self._deliver(busy=True)
        return False

    def recent(self, src: bytes) -> Iterator[tuple[float, Packet | None]]:
        """The last packets of a source, heeded or not, as far as they are kept, and when they were read.

        None in place of a packet after each part of the work.
        """
        for now, data in list(self._recent):
            if src in data:
                found: list[Packet] = []
                mail = self._mail and self._mail._replace(receive=_pass_over)
                decoder = self._decoder.successor(lambda source, proto, dport, flags: source == src, mail=mail)
                decoder.decode(memoryview(data), now, found.append)
                yield from ((now, packet) for packet in found)
            yield now, None

    def settle(self) -> tuple[str, ...]:
        """Go back to delivering each packet at once when the last second was quiet."""
        self._copy()
        if self.busy and self.records - self._records_at_settling < _QUIET_BELOW:
            self._deliver(busy=False)
        self._records_at_settling = self.records
        return ()

    def _keep(self, now: float, data: bytes) -> None:
        if len(self._recent) == _RECENT_DELIVERIES:
            self._recent_bytes -= len(self._recent[0][1])
        self._recent.append((now, data))
        self._recent_bytes += len(data)
        while self._recent_bytes > _RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[1])

    def _copy(self) -> None:
        """Ask for as much of each packet as is needed; where that fails, again with the next second."""
        wanted = COPY_RANGE if self._mail is None else _COPY_MAIL
        if wanted != self._copied:
            with contextlib.suppress(OSError):
                self._socket.raw.send(_config(self.group, 0, 0, _copy_mode(wanted)))
                self._copied = wanted

    def _deliver(self, *, busy: bool) -> None:
        threshold = _BUSY if busy else _QUIET
        with contextlib.suppress(OSError):  # unchanged is slower, not wrong
            self._socket.raw.send(_config(self.group, 0, 0, _u32(_CFG_QTHRESH, threshold)))
            self.busy = busy


def _pass_over(carried: Carried) -> None:
    """Nobody's knock."""


def _direction(attributes: Mapping[int, memoryview]) -> str:
    """Where a packet was going, by the interfaces that the kernel names."""
    if _INDEV in attributes:
        return "forward" if _OUTDEV in attributes else "in"
    return "out"


def _shape(data: memoryview) -> tuple[_Marks, _Shape] | None:
    """The shape of a message that holds TCP or UDP right behind an IP header without options, or None.

    What has to be the same: `a`, up to the stamp (or the number); `b`, from there to the number; `c`, from there to
    the first byte of the IP header; in IPv4 `d`, the fragment flags; `e`, the protocol. The lengths that the
    IP header promises need no look: the kernel has cut the packet to them, and messages of one shape are
    of one length.
    """
    stamp, number, payload = _offsets(data)
    if not 0 < number < payload or stamp > number:
        return None
    first = stamp or number
    version = data[payload]
    if version == 0x45:
        ip, ip_look, proto = "x2x2x2sx1s2x4s4s", "x2x2x2sx1s2x4s4x", data[payload + 9]
    elif version >> 4 == 6:
        ip, ip_look, proto = "3x2x0s1sx16s16s", "3x2x0s1sx16s16x", data[payload + 6]
    else:
        return None
    transport = {TCP: "HH9xB", UDP: "HH0s"}.get(proto)
    if transport is None:
        return None
    between = f"{number - stamp - 16 if stamp else 0}s"
    header = f"{payload + 1 - number - 4}s"
    unpack = _filled(f"!{first}s{'QQ' if stamp else '0s0s'}{between}I{header}{ip}{transport}", data)
    look = _filled(f"!{first}s{'16x' if stamp else ''}{between}I{header}{ip_look}2xH", data)
    if unpack is None or look is None:
        return None
    padded = bytes(data) + bytes(netlink.align(len(data)) - len(data))
    a, b, _, c, d, e, *_ = look.unpack(padded)
    flags = payload + (20 if version == 0x45 else 40) + 13 if proto == TCP else 0
    return _Marks(first, payload), _Shape(unpack, look, (a, b, c, d, e), proto, flags, timed=stamp > 0)


def _filled(form: str, message: memoryview) -> Struct | None:
    """A Struct as large as the message is in a row of them, None where that is too short for it."""
    rest = netlink.align(len(message)) - calcsize(form)
    return Struct(f"{form}{rest}x") if rest >= 0 else None


def _offsets(data: memoryview) -> tuple[int, int, int]:
    """Where the stamp, the number and the payload stand in a message, each 0 if it is not there (or not whole)."""
    stamp = number = payload = 0
    at = netlink.HEADER.size + 4
    while at + netlink.ATTRIBUTE.size <= len(data):
        length, kind = netlink.ATTRIBUTE.unpack_from(data, at)
        if not netlink.ATTRIBUTE.size <= length <= len(data) - at:
            break
        if kind == _TIMESTAMP and length == 20:
            stamp = at + 4
        elif kind == _SEQUENCE and length == 8:
            number = at + 4
        elif kind == _PAYLOAD and length > 4:
            payload = at + 4
        at += netlink.align(length)
    return stamp, number, payload


def _u32(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, value.to_bytes(4, "big"))


def _copy_mode(most: int) -> bytes:
    return netlink.attribute(_CFG_MODE, most.to_bytes(4, "big") + bytes((_COPY_PACKET, 0)))


def _config(group: int, flags: int, sequence: int, *attributes: bytes) -> bytes:
    return netlink.netfilter_message(_CONFIG, flags, sequence, 0, group, *attributes)


def _open_group(group: int) -> netlink.Socket:
    """Bind the group, with everything set in the same message: no packet comes before we are ready for it."""
    wire = None
    try:
        wire = netlink.Socket(netlink.NETLINK_NETFILTER)
        _make_room(wire.raw)
        sequence = wire.sequence()
        setup = _config(
            group,
            netlink.NLM_F_ACK,
            sequence,
            netlink.attribute(_CFG_CMD, bytes((_CMD_BIND,))),
            _copy_mode(COPY_RANGE),
            _u32(_CFG_NLBUFSIZ, _BATCH_BYTES),
            _u32(_CFG_TIMEOUT, _BUSY_TIMER),
            _u32(_CFG_QTHRESH, _QUIET),
            netlink.attribute(_CFG_FLAGS, _FLAG_SEQUENCE.to_bytes(2, "big")),
        )
        wire.request(setup, sequence)
        wire.raw.setblocking(False)
    except OSError as error:
        if wire is not None:
            wire.close()
        raise _source_error(group, error) from error
    return wire


def _make_room(raw: socket.socket) -> None:
    """As much as we want; in a container with users of its own, as much as net.core.rmem_max allows."""
    try:
        raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def _source_error(group: int, error: OSError) -> SourceError:
    words = error.strerror or str(error)
    refused = error.errno in (errno.EPERM, errno.EACCES)
    # The kernel says EPERM to a second reader too, and EBUSY only to the same one.
    if error.errno == errno.EBUSY or (refused and _may_administer()):
        return SourceError(
            f"NFLOG group {group} is held by another process{_holder(group)}",
            "one process may read a group: stop the other, or choose another number for [log] group (0-65535)",
            UNAVAILABLE,
        )
    if refused:
        return SourceError(
            f"NFLOG group {group} cannot be read: {words}", "CAP_NET_ADMIN is needed: run as root", NO_PERMISSION
        )
    return SourceError(
        f"NFLOG is not available: {words}",
        "the kernel needs nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG): try `modprobe nfnetlink_log`",
        UNAVAILABLE,
    )


def _may_administer() -> bool:
    """Whether this process has CAP_NET_ADMIN (bit 12, linux/capability.h)."""
    status = Path("/proc/self/status").read_text("ascii", "replace")
    effective = status.partition("CapEff:")[2].split()[0]
    return bool(int(effective, 16) >> 12 & 1)


def _holder(group: int) -> str:
    """Who has the group, as far as the kernel tells: its netlink port is usually its process id."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/netfilter/nfnetlink_log").read_text("ascii").splitlines():
            number, port, *_ = line.split()
            if int(number) == group:
                name = Path(f"/proc/{int(port)}/comm").read_text("utf-8", "replace").strip()
                return f" ({name}, process {port})"
    return ""
