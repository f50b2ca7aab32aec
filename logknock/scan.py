"""Who is a scanner: a source that sent to so many distinct services within so many seconds.

Rule 1: no I/O and no clock: times come in. Rule 2: a packet costs the same whatever was seen before, and memory has a
fixed bound, for an attacker chooses every packet and its source. Rule 3: what is a knock of anybody's, or to a guarded
service, never counts: whoever knocks at several doors, in the wrong order or too early, is no scanner.

IPv6 sources are one by /64, which is what a single machine usually has for the asking.
"""

from collections.abc import Callable, Collection, Set
from itertools import islice, repeat
from typing import NamedTuple

from .packet import ACK, SYN, TCP

# Sources that were seen at one port, in two halves of which the older gives way: in a flood of random sources each
# packet is one of these. About 200 bytes each.
MAX_ONCE = 65_536

# Ports that are remembered of sources which were seen at several, about 100 bytes each. As a source has no more than
# make it a scanner, that is a bound on these sources too: 26,214 where 10 ports make one. A flood of sources that
# were seen once does not touch them.
MAX_PORTS = 262_144

# Room is made for so large a part of them at a time (see knock._SWEEP).
_SWEEP_PART = 16

_PREFIX_BYTES = 8  # of IPv6

Heeds = Callable[[bytes, int, int, int], bool]
# The same of several packets of one protocol: sources, protocol, ports, and a byte of TCP flags each.
HeedsNone = Callable[[tuple[bytes, ...], int, tuple[int, ...], memoryview], bool]


class Caught(NamedTuple):
    """A scanner: the source of the packet that made it one, and how many services it (or its /64) was seen at."""

    src: bytes
    services: int


class Scanners:
    """Looks at packets: `heeds` for those of a source that decodes in bulk, `see` for others. Not thread-safe.

    ports, within: so many services within so many seconds make a scanner. counts: which packets count: "syn" those of
    TCP with SYN and without ACK, "tcp" all of TCP, "udp" all of UDP.
    """

    def __init__(self, heeds: Heeds, heeds_none: HeedsNone, onetime: Set[tuple[int, int]] = frozenset()) -> None:
        self.caught: Caught | None = None  # since somebody last took it
        self._asked = heeds
        self._asked_none = heeds_none
        self._onetime = onetime  # as it is at the moment: somebody else fills it
        self.use(1, 1.0, frozenset(), frozenset())

    def use(self, ports: int, within: float, counts: Collection[str], spared: Collection[tuple[int, int]]) -> None:
        """Go on with these terms and nothing remembered; packets to `spared` (protocol, port) never count."""
        self._ports, self._within = ports, within
        self._spared = frozenset(proto << 16 | port for proto, port in spared)
        self._udp = "udp" in counts
        # A TCP packet counts if its flags under the mask are the value; no flags are 1 under a mask of 0.
        self._mask, self._value = (0, 0) if "tcp" in counts else (SYN | ACK, SYN) if "syn" in counts else (0, 1)
        self._most = MAX_PORTS // ports
        # Seen at one service: that, and when. Of each source in `_several` each service, the latest last, and when.
        self._young: dict[bytes, tuple[int, float]] = {}
        self._old: dict[bytes, tuple[int, float]] = {}
        self._several: dict[bytes, dict[int, float]] = {}
        self._now = self._halved = 0.0

    @property
    def sources(self) -> int:
        """How many sources are remembered, a few of them perhaps twice."""
        return len(self._young) + len(self._old) + len(self._several)

    def at(self, now: float) -> None:
        """The time of what is seen from here on: seconds of a clock that is never set back."""
        self._now = now

    def heeds(self, src: bytes, proto: int, dport: int, flags: int) -> bool:
        """Whether the matcher heeds such a packet, or it has made its source a scanner."""
        return self._asked(src, proto, dport, flags) or self.see(src, proto, dport, flags)

    def heeds_none(self, sources: tuple[bytes, ...], proto: int, dports: tuple[int, ...], flags: memoryview) -> bool:
        """Whether `heeds` is false of all these packets, as far as is quickly told; then they are counted.

        It is told of what a flood of random sources is: SYNs (or what always counts), each source for the first time.
        """
        if not self._asked_none(sources, proto, dports, flags):
            return False
        if not self._udp if proto != TCP else self._value > self._mask:
            return True  # nothing of that protocol counts
        if proto == TCP and self._mask and bytes(flags).count(SYN) != len(dports):
            return False
        services = [proto << 16 | dport for dport in dports]
        whom = sources if len(sources[0]) == 4 else [src[:_PREFIX_BYTES] for src in sources]
        fresh = dict(zip(whom, zip(services, repeat(self._now)), strict=False))
        if (
            self._ports == 1
            or len(fresh) != len(dports)
            or not self._spared.isdisjoint(services)
            or (self._onetime and not self._onetime.isdisjoint(zip(repeat(proto), dports)))
            or any(not seen.keys().isdisjoint(fresh) for seen in (self._several, self._young, self._old))
        ):
            return False
        self._young.update(fresh)
        if len(self._young) > MAX_ONCE // 2:
            self._halve()
        return True

    def see(self, src: bytes, proto: int, dport: int, flags: int) -> bool:
        """Count a packet; whether it has made its source a scanner, which is in `caught` then, and begins anew."""
        if proto == TCP:
            if flags & self._mask != self._value:
                return False
        elif not self._udp:
            return False
        service = proto << 16 | dport
        if service in self._spared or (self._onetime and (proto, dport) in self._onetime):
            return False
        who = src if len(src) == 4 else src[:_PREFIX_BYTES]
        services = self._several.get(who)
        if services is None:
            once = self._young.get(who) or self._old.get(who)
            if self._ports > 1 and (once is None or once[0] == service):
                self._young[who] = service, self._now
                if len(self._young) > MAX_ONCE // 2:
                    self._halve()
                return False
            services = self._promote(who, once)
        services.pop(service, None)
        services[service] = self._now
        return len(services) >= self._ports and self._judge(who, src, services)

    def settle(self) -> None:
        """Forget what is too old to count; call it once a second or so."""
        if self._now - self._halved > self._within:
            self._halve()
            oldest = self._now - self._within
            self._several = {
                who: services for who, services in self._several.items() if next(reversed(services.values())) >= oldest
            }

    def _promote(self, who: bytes, once: tuple[int, float] | None) -> dict[int, float]:
        """The source is seen at another service."""
        self._young.pop(who, None)
        self._old.pop(who, None)
        if len(self._several) >= self._most:
            for oldest in list(islice(self._several, max(1, self._most // _SWEEP_PART))):
                del self._several[oldest]
        services = self._several[who] = {} if once is None else {once[0]: once[1]}
        return services

    def _judge(self, who: bytes, src: bytes, services: dict[int, float]) -> bool:
        """As many services as make a scanner: are they within the time?"""
        oldest = self._now - self._within
        while services[first := next(iter(services))] < oldest:
            del services[first]
        if len(services) < self._ports:
            return False
        del self._several[who]
        self.caught = Caught(src, len(services))
        return True

    def _halve(self) -> None:
        self._young, self._old = {}, self._young
        self._halved = self._now
