"""Which knockers may pass which doors.

Rule 1: every state and transition of an attempt is in this file. Rule 2: no I/O and no clock: time comes in on packets.
Rule 3: a packet costs the same whatever the number of doors, knockers and attempts; memory has a fixed bound.

The doors' sequences form a tree (a `Step` for each beginning that some of them share), so that one attempt stands
for all sequences that its knocks have begun. What a packet does to an attempt is decided in `_advance` alone.

Sequences that clients derive from a secret and the time stand in the same tree, a few thousand of them for half a
minute each. What of them nobody knocks on stays folded: a list where the second knock's step would be.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from struct import Struct
from typing import Literal, NamedTuple, Self

from .packet import ACK, CLOCK_SLACK, FIN, ICMP, ICMP6, PROTOCOL_NAMES, PROTOCOLS, PSH, RST, SYN, TCP, URG, Packet
from .tries import OF_CODES, OF_TOTP, Tries

# Sources with attempts. A spoofed first knock costs one of these and about 400 bytes; at 150,000 such knocks a second
# an honest knocker still has 0.4 s from the first knock to the second, after which a flood of first knocks cannot
# touch the attempt any more.
MAX_KNOCKERS = 65_536

# Of these, how many may come from one IPv6 /64, which is what a single machine usually has for the asking.
MAX_KNOCKERS_PER_PREFIX = 256
_PREFIX_BYTES = 8

# knockd's own limit, and how many attempts a source can have at a time, those that are done included.
MAX_SEQUENCE = 32

# Room is made for so many knockers at a time: the oldest entries of a dict are found by walking over the places of
# deleted ones, which costs a quarter of a millisecond for a full crowd, whatever the number.
_SWEEP = 1024


class Service(NamedTuple):
    """A protocol and a port, written `22/tcp`; `icmp` is what an SPA packet in an echo request was sent to."""

    proto: int
    port: int

    def __str__(self) -> str:
        return "icmp" if self.proto in (ICMP, ICMP6) else f"{self.port}/{PROTOCOL_NAMES[self.proto]}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`22/tcp` as a Service; raises ValueError with what is wrong, in words for the operator."""
        port, slash, protocol = text.partition("/")
        if not slash:
            raise ValueError(f"{text!r} has no protocol: write {text}/tcp or {text}/udp")
        if protocol not in PROTOCOLS:
            raise ValueError(f"{text!r}: the protocol is tcp or udp, not {protocol!r}")
        return cls(PROTOCOLS[protocol], parse_port(port, text))


def parse_port(digits: str, shown: str) -> int:
    """A port in decimal, 1-65535, with no sign, blank or other script's digits; `shown` is what the error quotes."""
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError((f"{shown!r}: " if shown != digits else "") + f"{digits!r} is no port number")
    if len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise ValueError(f"{shown} is no port (1-65535)")
    return int(digits)


class TcpFlags(NamedTuple):
    """Which TCP packets count as knocks: those whose flags under `mask` are exactly `value`."""

    mask: int
    value: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """knockd's notation: flags that must be set, and with `!` those that must not (`syn,!ack`)."""
        mask = value = 0
        for word in text.split(","):
            name = word.strip().lower()
            bit = _FLAG_BITS.get(name.removeprefix("!"))
            if bit is None:
                raise ValueError(f"{word.strip()!r} is no TCP flag ({', '.join(_FLAG_BITS)})")
            if mask & bit:
                raise ValueError(f"{name.removeprefix('!')} is named twice")
            mask |= bit
            value |= 0 if name.startswith("!") else bit
        return cls(mask, value)


_FLAG_BITS = {"fin": FIN, "syn": SYN, "rst": RST, "psh": PSH, "ack": ACK, "urg": URG}
SYN_NOT_ACK = TcpFlags(SYN | ACK, SYN)


class SetName(NamedTuple):
    """A set of nftables, by family, table and name."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return " ".join(self)


Sequence = tuple[Service, ...]


class Code(NamedTuple):
    """A one-time sequence: the door that it opens, and the file that it stands in."""

    door: str
    file: str
    sequence: Sequence


class Derived(NamedTuple):
    """A sequence that a client of the door derives from its secret for a step of time.

    step: when the step begins, in seconds since the epoch: so what is used stays used where steps get another length.
    begins, ends: between which it is accepted, the second left out; the step with its skew. number: the step's, which
    is what people read of it.
    """

    door: str
    client: str
    step: int
    sequence: Sequence
    begins: float
    ends: float
    number: int


# What stands in for a door's sequence: sequences that its clients derive from a secret and the time, the codes of an
# authenticator as ports, or single packets (SPA). Empty: it has a sequence, or files of one-time sequences.
Proof = Literal["", "totp", "code", "spa"]


@dataclass(frozen=True, slots=True)
class Door:
    """What a sequence opens. Durations are in seconds, addresses packed; what is empty is not there."""

    name: str
    sequence: Sequence
    seq_timeout: float = 15.0
    tcp_flags: TcpFlags = SYN_NOT_ACK
    opens: tuple[Service, ...] = ()
    sets: tuple[SetName, ...] = ()
    closes: tuple[str, ...] = ()
    timeout: float = 30.0
    guard: bool = True
    onetime: tuple[str, ...] = ()
    proof: Proof = ""
    target: frozenset[bytes] = frozenset()
    cooldown: float = 0.0
    allow_file: str = ""
    on_open: tuple[str, ...] = ()
    on_close: tuple[str, ...] = ()
    on_open_6: tuple[str, ...] | None = None
    on_close_6: tuple[str, ...] | None = None
    command_limit: float = 10.0

    @property
    def grants(self) -> bool:
        """Whether it lets the knocker do something for a while; else it only closes other doors."""
        runs = self.on_open or self.on_close or self.on_open_6 or self.on_close_6
        return bool(self.opens or self.sets or self.allow_file or runs)


class Grant(NamedTuple):
    """A door open for a knocker until `expires` (seconds since the epoch)."""

    door: str
    src: bytes
    expires: float


class Reason(StrEnum):
    """Why an attempt ended without opening anything."""

    WRONG = "wrong port"
    TIMEOUT = "sequence timeout"
    CLOCK = "clock stepped back"
    EVICTED = "too many attempts"
    SPENT = "one-time sequence used up"
    COOLDOWN = "too soon after the last time"
    REPLAYED = "sequence of a step that is used up"
    OUTSIDE = "sequence of another time"
    WARY = "right, but after so many wrong tries the next step's sequence is asked for too"


class Advanced(NamedTuple):
    """The packet was the next knock of these doors' sequences; `stage` counts from 1."""

    packet: Packet
    doors: tuple[str, ...]
    stage: int


class Failed(NamedTuple):
    """An attempt at these doors ended; `packet` is what ended it, where a packet did.

    attempt: what it was, for who wants to know what was expected of it; None where the last knock was right.
    """

    src: bytes
    doors: tuple[str, ...]
    stage: int
    reason: Reason
    packet: Packet | None
    attempt: "Attempt | None" = None


class Evicted(NamedTuple):
    """At `time` these sources gave way to others, with what they had begun; `stage` is that of the most advanced.

    In a flood a thousand give way at a time, and hardly one of them is ever asked about: `failures` has what there is
    to say of each.
    """

    time: float
    stage: int
    sources: tuple[bytes, ...]
    attempts: tuple["Attempts", ...]  # of each of them

    @property
    def ended(self) -> int:
        """How many attempts that were under way have ended with that, which is how many `failures` there are."""
        several = [attempts for attempts in self.attempts if len(attempts) > 1]
        return len(self.attempts) - len(several) + sum(not each.is_done for attempts in several for each in attempts)

    def failures(self) -> Iterator[Failed]:
        """What became of each attempt that was not done."""
        for src, attempts in zip(self.sources, self.attempts, strict=True):
            for attempt in attempts:
                if not attempt.is_done:
                    reason = Reason.EVICTED if attempt.expires > self.time else Reason.TIMEOUT
                    yield Failed(src, attempt.step.doors, attempt.step.stage, reason, None, attempt)


class Why(StrEnum):
    """Why a packet means nothing to an attempt, and leaves it as it is."""

    RESEND = "the same knock again"
    DONE = "the sequence is complete already"
    FLAGS = "other TCP flags than the door asks for"
    TARGET = "sent to another address than the door asks for"
    GUARDED = "to a guarded service, which is never a knock"


class Ignored(NamedTuple):
    """The packet changed nothing for these doors; `stage` is what their attempt has reached, 0 where none began."""

    packet: Packet
    doors: tuple[str, ...]
    stage: int
    why: Why


class Spent(NamedTuple):
    """A one-time or derived sequence is complete and will not be accepted again; what it does comes after this.

    Whoever opens doors has to put it on record first, and nothing may open if that fails (T18, T20). Of derived ones
    there are several in a row where they happen to be the same sequence: all are used up, and one Granted follows. A
    Failed (COOLDOWN, WARY, OUTSIDE) instead of it changes nothing: what was said aloud is to be on record all the same.
    """

    packet: Packet
    code: Code | Derived


class Nearing(NamedTuple):
    """The next knock may complete this sequence, and use it up: whoever records uses may do that now, off the way."""

    packet: Packet
    derived: Derived


class Granted(NamedTuple):
    """The sequence of a door is complete: it is to be open for the packet's source."""

    packet: Packet
    grant: Grant


class Revoked(NamedTuple):
    """The sequence of the door `by` is complete, which closes `door` for the packet's source."""

    packet: Packet
    door: str
    by: str


Event = Advanced | Failed | Evicted | Ignored | Nearing | Spent | Granted | Revoked


class _Terms(NamedTuple):
    """What doors must have in common for their sequences to share steps."""

    flags: TcpFlags
    seq_timeout: float
    target: frozenset[bytes]


class Alike(NamedTuple):
    """Derived sequences of a door that happen to be the same (nearly always it is one): one use uses all of them up."""

    derived: tuple[Derived, ...]


End = Code | Alike | None  # of a sequence: None of a door's own
_Tree = dict[str, Door]

# Where a guess at a code door may begin there is always something that could follow, if only this, which no packet is.
_NEVER = Service(0, 0)


class Step:
    """A beginning that one or more sequences share: what has been knocked, and what may follow."""

    __slots__ = (
        "_mask",
        "_shared",
        "_target",
        "_value",
        "completes",
        "doors",
        "path",
        "proofs",
        "stage",
        "terms",
        "then",
        "tree",
    )

    def __init__(self, tree: "_Tree", path: Sequence, terms: _Terms) -> None:
        self.tree = tree  # the same object for all steps of one set of doors
        self.path = path
        self.stage = len(path)
        self.terms = terms
        (self._mask, self._value), _, self._target = terms  # at hand: two look-ups less for each first knock
        self.doors: tuple[str, ...] = ()
        self.proofs: tuple[Proof, ...] = ()  # of those doors: where a wrong knock after this one is a wrong try
        self.completes: tuple[tuple[Door, End], ...] = ()
        self.then: dict[Service, Step | list[Derived]] = {}
        self._shared: dict[str, int] = {}  # how many sequences of each door go through here

    def join(self, door: str) -> None:
        """One more sequence of this door goes through here."""
        self._shared[door] = self._shared.get(door, 0) + 1
        if self._shared[door] == 1:
            self.doors += (door,)
            proof = self.tree[door].proof
            if proof and proof not in self.proofs:
                self.proofs += (proof,)

    def leave(self, door: str) -> None:
        """One sequence less."""
        self._shared[door] -= 1
        if not self._shared[door]:
            del self._shared[door]
            self.doors = tuple(self._shared)
            left = {self.tree[door].proof for door in self.doors}
            self.proofs = tuple(proof for proof in self.proofs if proof in left)

    def follow(self, service: Service) -> "Step | None":
        """The step that this knock leads to; None: no sequence goes on like that."""
        following = self.then.get(service)
        if not isinstance(following, list):
            return following
        step = self.grow(service)
        for derived in following:
            step.fold(derived)
        return step

    def grow(self, service: Service) -> "Step":
        """A new step, that this knock leads to."""
        step = self.then[service] = Step(self.tree, (*self.path, service), self.terms)
        return step

    def fold(self, derived: Derived) -> None:
        """One more derived sequence goes through here, or ends here; what comes after this stays folded if it is."""
        self.join(derived.door)
        if len(derived.sequence) == self.stage:
            door = self.tree[derived.door]
            same = next((end for other, end in self.completes if other is door and isinstance(end, Alike)), Alike(()))
            others = tuple(pair for pair in self.completes if pair[1] is not same)
            self.completes = (*others, (door, Alike((*same.derived, derived))))
            return
        service = derived.sequence[self.stage]
        following = self.then.get(service)
        if following is None:
            self.then[service] = [derived]
        elif isinstance(following, list):
            following.append(derived)
        else:
            following.fold(derived)

    def nearing(self) -> Iterator[Derived]:
        """The derived sequences that the next knock may complete."""
        for following in self.then.values():
            ends = following if isinstance(following, list) else following.derived
            yield from (derived for derived in ends if len(derived.sequence) == self.stage + 1)

    @property
    def derived(self) -> list[Derived]:
        """Those that end here."""
        return [derived for _, end in self.completes if isinstance(end, Alike) for derived in end.derived]

    def passes_over(self, packet: Packet) -> Why | None:
        """Why the doors do not look at such a packet at all (it is neither a knock nor a wrong one); None: they do."""
        if packet.proto == TCP and packet.flags & self._mask != self._value:
            return Why.FLAGS
        return Why.TARGET if self._target and packet.dst not in self._target else None


class Attempt(NamedTuple):
    """Progress: the step reached, the times of the first and the last knock, the knocks accepted (a `_flow` each).

    by_the_way: its first knock was the next one of another attempt. Clients share their ports, so that each one's last
    knock begins others' sequences, and the next client's first knock ends them: that is nobody's wrong try.
    """

    step: Step
    first: float
    last: float
    flows: bytes
    by_the_way: bool = False

    @property
    def expires(self) -> float:
        """The instant at which the attempt ends."""
        return self.first + self.step.terms.seq_timeout

    @property
    def is_done(self) -> bool:
        """Whether its last door is open.

        It stays until it would have timed out, so that late resends of its knocks are known for what they are
        and cannot walk through the sequence a second time (T7).
        """
        return not self.step.then


_FLOW = Struct("!BHH")

# A NamedTuple's own constructor takes twice as long: with both of a first knock it is 4 % of all that this one costs.
_new = tuple.__new__


def _flow(packet: Packet) -> bytes:
    """Protocol, source and destination port: what a resend has in common with its original."""
    return _FLOW.pack(packet.proto, packet.sport, packet.dport)


def _has_flow(flows: bytes, flow: bytes) -> bool:
    # The first test is quick and may find it across two of them; the second is sure.
    return flow in flows and any(flows[at : at + _FLOW.size] == flow for at in range(0, len(flows), _FLOW.size))


def _advance(attempt: Attempt, packet: Packet, guarded: frozenset[Service]) -> Attempt | Reason | Why:
    """What the packet makes of the attempt: its successor, why it ends, or why nothing changes.

    In order: the clock; then what may be there without meaning anything (a resend, other TCP flags, another
    target, a guarded service that somebody tries early); then the right knock; anything else is a wrong one (T1,
    T4, T7).
    """
    step = attempt.step
    if packet.time >= attempt.expires:
        return Reason.TIMEOUT
    if packet.time < attempt.last - CLOCK_SLACK:
        return Reason.CLOCK
    flow = _flow(packet)
    if _has_flow(attempt.flows, flow):
        return Why.RESEND
    if attempt.is_done:
        return Why.DONE
    why = step.passes_over(packet)
    if why is not None:
        return why
    service = Service(packet.proto, packet.dport)
    following = step.follow(service)
    if following is not None:
        return _new(Attempt, (following, attempt.first, packet.time, attempt.flows + flow, attempt.by_the_way))
    return Why.GUARDED if service in guarded else Reason.WRONG


Attempts = tuple[Attempt, ...]


class _Crowd:
    """Sources and their attempts, by the stage of the most advanced one, each stage in the order of coming."""

    __slots__ = ("by_stage", "size")

    def __init__(self) -> None:
        self.by_stage: list[dict[bytes, Attempts]] = [{}]
        self.size = 0

    def find(self, src: bytes) -> tuple[int, Attempts]:
        """Where the source stands, which a reload may have left behind what `_stage` says, and with what."""
        for stage, members in enumerate(self.by_stage):
            if src in members:
                return stage, members[src]
        return 0, ()

    def add(self, src: bytes, attempts: Attempts, stage: int) -> None:
        while len(self.by_stage) <= stage:
            self.by_stage.append({})
        self.by_stage[stage][src] = attempts
        self.size += 1

    def remove(self, src: bytes, stage: int) -> Attempts:
        self.size -= 1
        return self.by_stage[stage].pop(src)


class Matcher:
    """Turns packets into events: `receive` is all of it. Not thread-safe; holds no resource."""

    def __init__(self, doors: Iterable[Door], max_knockers: int = MAX_KNOCKERS) -> None:
        self._max_knockers = max_knockers
        self._sweep = min(_SWEEP, max(1, max_knockers // 16))
        self._crowd = _Crowd()
        # Of each /64 the only source with attempts, or a crowd once there was a second one (most have one).
        self._prefixes: dict[bytes, bytes | _Crowd] = {}
        self._doors: dict[str, Door] = {}
        self._codes: dict[tuple[str, str], Code] = {}  # the one that counts now, by door and file
        self._derived: dict[tuple[str, str, int], Derived] = {}  # those that are planted, by door, client and step
        self._beginnings: dict[str, tuple[Service, ...]] = {}  # by door
        self._last: dict[tuple[str, str], int] = {}  # the highest step used, by door and client
        self._tries = {"totp": Tries(OF_TOTP), "code": Tries(OF_CODES)}
        self._firsts: dict[int, dict[int, tuple[Step, ...]]] = {}  # by protocol and port
        self._guarded: frozenset[Service] = frozenset()
        self._cooling: dict[tuple[str, bytes], float] = {}  # until when; no more of them than knockers
        self.set_doors(doors)

    @property
    def knockers(self) -> int:
        """How many sources have attempts."""
        return self._crowd.size

    def attempts(self, src: bytes) -> Attempts:
        """What a source has begun."""
        return self._crowd.find(src)[1]

    def set_doors(self, doors: Iterable[Door]) -> None:
        """Go on with these doors. An attempt goes on too wherever its knocks still begin some sequence."""
        after = {door.name: door for door in doors}
        if self._doors and list(after.values()) == list(self._doors.values()):
            return  # as where only clients came or went: to plant a thousand of them anew takes 20 ms and more
        self._doors = after
        self._tree = self._doors
        self._terms_of = {door.name: _terms(door) for door in self._doors.values()}
        self._firsts = {proto: {} for proto in PROTOCOL_NAMES}
        for door in self._doors.values():
            if door.sequence:
                self._plant(door, door.sequence, None)
        kept = [code for code in self._codes.values() if code.file in self._files(code.door)]
        self._codes = {}
        for code in kept:
            self.set_code(code.door, code.file, code.sequence)
        self._replant()
        self._guarded = frozenset(service for door in self._doors.values() if door.guard for service in door.opens)

    def set_code(self, door: str, file: str, sequence: Sequence | None) -> None:
        """From here on this is the one sequence out of the file that the door accepts; None: it accepts none."""
        old = self._codes.pop((door, file), None)
        if old is not None:
            self._uproot(door, old.sequence, old)
        if sequence and file in self._files(door):
            code = self._codes[door, file] = Code(door, file, sequence)
            self._plant(self._doors[door], sequence, code)

    def plant(self, derived: Derived) -> None:
        """A sequence that a client of the door may knock, and is known for what it is from now on.

        It opens only within its time, and only if the client has used none of this step or of a later one. After its
        use it may stay: who knocks it then is refused as the replay that it is (T18). A door that is not there, or
        derives nothing, gets none.
        """
        key = (derived.door, derived.client, derived.step)
        if self._derives(derived.door) and key not in self._derived:
            self._derived[key] = derived
            self._rooted(derived.door, derived.sequence[0]).fold(derived)

    def uproot(self, derived: Derived) -> None:
        """Forget such a sequence: its time is over, or its client is gone. Who is on the way to it opens nothing."""
        if self._derived.pop((derived.door, derived.client, derived.step), None) is not None:
            self._uproot(derived.door, derived.sequence, derived)

    def set_beginnings(self, door: str, services: tuple[Service, ...]) -> None:
        """Each of these begins an attempt at a code door, whether a code begins like that or not.

        So a guess that is wrong from its first knock on is a wrong try too.
        """
        if services == self._beginnings.get(door, ()):
            return
        for service in self._beginnings.pop(door, ()):
            self._close_beginning(door, service)
        if services and self._derives(door):
            self._beginnings[door] = services
            for service in services:
                step = self._rooted(door, service)
                step.join(door)
                step.then.setdefault(_NEVER, [])

    def set_last(self, door: str, client: str, step: int) -> None:
        """The client's sequences of this step and of all before it are used up (T18), whatever is used up already."""
        self._last[door, client] = max(step, self._last.get((door, client), step))

    def spare(self, door: str, src: bytes) -> None:
        """What the source was granted could not be opened: it may try again at once, whatever the door's cooldown."""
        self._cooling.pop((door, src), None)

    def heeds(self, src: bytes, proto: int, dport: int, flags: int = 0) -> bool:
        """Whether such a packet can change anything; who decodes packets in bulk need not even build the others.

        Whatever its TCP flags are: that a knock came with the wrong ones is told, too.
        """
        if dport in self._firsts[proto]:
            return True
        for members in self._crowd.by_stage:  # a loop: this runs for each packet of a flood
            if src in members:
                return True
        return False

    def heeds_none(self, sources: Iterable[bytes], proto: int, dports: Iterable[int], flags: object = None) -> bool:
        """Whether `heeds` is false of every packet from these sources to these ports: what most of a scan's are."""
        if not self._firsts[proto].keys().isdisjoint(dports):
            return False
        return all(members.keys().isdisjoint(sources) for members in self._crowd.by_stage if members)

    def receive(self, packet: Packet) -> list[Event]:
        """What this packet does, in order: attempts it advances or ends, doors it opens or closes."""
        time, src, _, proto, _, dport, _ = packet  # at once: each by its name takes half as long as all of them
        firsts = self._firsts[proto].get(dport, ())
        events: list[Event] = []
        for stage, members in enumerate(self._crowd.by_stage):
            if src in members:
                before = members[src]
                after, resend, was_right = self._feed(before, packet, events)
                if not resend:
                    after += self._begin(firsts, packet, events, was_right)
                self._put(src, stage, before, after)
                return events
        begun = self._begin(firsts, packet, events)
        if begun:
            self._add(src, begun)
            if len(src) == 16 or self._crowd.size > self._max_knockers:
                self._make_room(src, time, events)
        return events

    def expire(self, now: float) -> list[Event]:
        """End attempts that have timed out, a bounded number a call; receive() sees to exactness by itself.

        For the log and for memory: call it once a second or so.
        """
        events: list[Event] = []
        for stage, members in enumerate(self._crowd.by_stage):
            for src, attempts in list(islice(members.items(), 2 * self._sweep)):
                kept = tuple(attempt for attempt in attempts if attempt.expires > now)
                if len(kept) == len(attempts):
                    continue  # doors differ in seq_timeout: a younger one may have ended before it
                for attempt in attempts:
                    if attempt.expires <= now:
                        _report_end(src, attempt, Reason.TIMEOUT, None, events)
                self._put(src, stage, attempts, kept)
        for key, until in list(islice(self._cooling.items(), 2 * self._sweep)):
            if until <= now:
                del self._cooling[key]
        return events

    def _begin(
        self, firsts: tuple[Step, ...], packet: Packet, events: list[Event], by_the_way: bool = False
    ) -> Attempts:
        """The attempts that the packet begins, where one of these steps is the first."""
        begun: Attempts = ()
        time, _, _, proto, sport, dport, _ = packet
        for step in firsts:
            why = step.passes_over(packet)
            if why is None:
                begun += (_new(Attempt, (step, time, time, _FLOW.pack(proto, sport, dport), by_the_way)),)
                self._reach(step, packet, events)
            else:
                events.append(Ignored(packet, step.doors, 0, why))
        return begun

    def _feed(self, attempts: Attempts, packet: Packet, events: list[Event]) -> tuple[Attempts, bool, bool]:
        """The source's attempts after the packet; whether it was but a resend of a knock; and whether it was right."""
        kept: list[Attempt] = []
        tried: set[Proof] = set()
        resend = was_right = False
        for before in attempts:
            attempt = self._renewed(before)
            if attempt is None:
                continue
            after = _advance(attempt, packet, self._guarded)
            if isinstance(after, Why):
                resend = resend or after is Why.RESEND
                events.append(Ignored(packet, attempt.step.doors, attempt.step.stage, after))
                kept.append(attempt)
            elif isinstance(after, Reason):
                if after is Reason.WRONG and attempt.step.proofs and not attempt.by_the_way:
                    tried.update(attempt.step.proofs)
                _report_end(packet.src, attempt, after, packet, events)
            else:
                self._reach(after.step, packet, events)
                kept.append(after)
                was_right = True
        for proof in tried if not was_right else ():  # clients share their ports: one's knock begins others' sequences
            self._tries[proof].count(packet)
        if len(kept) > MAX_SEQUENCE:  # those that are done, of who knocks again and again: the oldest give way
            del kept[: len(kept) - MAX_SEQUENCE]
        return tuple(kept), resend, was_right

    def _reach(self, step: Step, packet: Packet, events: list[Event]) -> None:
        """Report the step reached and what it completes."""
        events.append(_new(Advanced, (packet, step.doors, step.stage)))
        for door, code in step.completes:
            events.extend(self._complete(door, code, packet))
        if step.stage > 1 and step.proofs:
            near = (derived for derived in step.nearing() if self._why_not(derived, packet.time) is None)
            events.extend(Nearing(packet, derived) for derived in near)

    def _complete(self, door: Door, code: End, packet: Packet) -> Iterator[Event]:
        """What the last knock of a sequence does."""
        if isinstance(code, Alike):
            events = self._use(door, code, packet)
            yield from events
            if isinstance(events[-1], Failed):
                return
        elif code is not None:
            if self._codes.get((door.name, code.file)) != code:  # used, or taken back, since this attempt began (T18)
                yield Failed(packet.src, (door.name,), len(code.sequence), Reason.SPENT, packet)
                return
            self.set_code(door.name, code.file, None)
            yield Spent(packet, code)
        if door.cooldown and not self._cool(door, packet):
            yield Failed(packet.src, (door.name,), _length(door, code), Reason.COOLDOWN, packet)
            return
        if door.grants:
            yield Granted(packet, Grant(door.name, packet.src, packet.time + door.timeout))
        for closed in door.closes:
            yield Revoked(packet, closed, door.name)

    def _use(self, door: Door, alike: Alike, packet: Packet) -> list[Event]:
        """Use derived sequences up: Spent for each, a Failed, or both.

        Both is for a source that needs another step's, and for what was said before its time: else whoever heard it
        could wait for that.
        """
        why = [(derived, self._why_not(derived, packet.time)) for derived in alike.derived]
        why.sort(key=_by_step)  # a client's own: the store takes no earlier step after a later one
        events: list[Event] = []
        proven: list[bool] = []
        for derived, reason in why:
            if reason is None or (reason is Reason.OUTSIDE and packet.time < derived.begins):
                self.set_last(door.name, derived.client, derived.step)
                events.append(Spent(packet, derived))
            if reason is None:
                proven.append(self._tries[door.proof].has_proven(derived[:2], derived.begins, derived.ends, packet))
        if any(proven):
            return events
        reasons = [reason or Reason.WARY for _, reason in why]
        reason = next((first for first in (Reason.WARY, Reason.REPLAYED) if first in reasons), reasons[0])
        return [*events, Failed(packet.src, (door.name,), len(alike.derived[0].sequence), reason, packet)]

    def _why_not(self, derived: Derived, time: float) -> Reason | None:
        """Why a derived sequence that is complete opens nothing; None: it does."""
        door, client, step = key = derived[:3]
        if step <= self._last.get((door, client), -1):
            return Reason.REPLAYED
        if not derived.begins <= time < derived.ends:
            return Reason.OUTSIDE
        return None if self._derived.get(key) == derived else Reason.SPENT

    def _cool(self, door: Door, packet: Packet) -> bool:
        """Begin the door's cooldown for the source; False: it has one already. A clock that steps back ends it."""
        key = (door.name, packet.src)
        if packet.time < self._cooling.get(key, 0.0) <= packet.time + door.cooldown:
            return False
        self._cooling.pop(key, None)  # so that the dict is in the order of beginning
        self._cooling[key] = packet.time + door.cooldown
        if len(self._cooling) > self._max_knockers:
            for old in list(islice(self._cooling, self._sweep)):
                del self._cooling[old]
        return True

    def _files(self, door: str) -> tuple[str, ...]:
        found = self._doors.get(door)
        return found.onetime if found else ()

    def _derives(self, door: str) -> bool:
        found = self._doors.get(door)
        return found is not None and found.proof in self._tries

    def _replant(self) -> None:
        """Derived sequences of doors that are still there count as before; so does what was used of them."""
        derived, self._derived = self._derived, {}
        for each in derived.values():
            self.plant(each)
        beginnings, self._beginnings = self._beginnings, {}
        for door, services in beginnings.items():
            self.set_beginnings(door, services)
        for tries in self._tries.values():
            tries.keep(self._derives)
        self._last = {key: step for key, step in self._last.items() if self._derives(key[0])}

    def _rooted(self, door: str, first: Service) -> Step:
        """The step that this knock leads to from nothing, at doors with this one's terms."""
        terms = self._terms_of[door]
        firsts = self._firsts[first.proto]
        there = firsts.get(first.port, ())
        for step in there:
            if step.terms == terms:
                return step
        step = Step(self._tree, (first,), terms)
        firsts[first.port] = (*there, step)
        return step

    def _plant(self, door: Door, sequence: Sequence, code: Code | None) -> None:
        """Add a sequence of the door's to the tree."""
        step = self._rooted(door.name, sequence[0])
        step.join(door.name)
        for service in sequence[1:]:
            step = step.follow(service) or step.grow(service)
            step.join(door.name)
        step.completes += ((door, code),)

    def _uproot(self, door: str, sequence: Sequence, end: Code | Derived) -> None:
        """Take a sequence out of the tree. An attempt that is on its way there finds at its end that it is."""
        above: Step | None = None
        step = self._rooted(door, sequence[0])
        for service in (*sequence[1:], None):
            step.leave(door)
            if not step.doors:
                if above is None:
                    self._forget(step)
                elif above.doors:  # else the way stays whole for who is on it
                    del above.then[step.path[-1]]
            if service is None:
                break
            following = step.then[service]
            if isinstance(following, list):
                following[:] = [derived for derived in following if derived != end or not step.doors]
                if not following:
                    del step.then[service]
                return
            above, step = step, following
        if step.doors:
            step.completes = tuple(_without(step.completes, end))

    def _close_beginning(self, door: str, service: Service) -> None:
        step = self._rooted(door, service)
        step.leave(door)
        if not step.doors:
            self._forget(step)
        elif not any(service in others for others in self._beginnings.values()):
            del step.then[_NEVER]

    def _forget(self, step: Step) -> None:
        """Nothing begins with this first step any more."""
        first = step.path[0]
        left = tuple(other for other in self._firsts[first.proto][first.port] if other is not step)
        if left:
            self._firsts[first.proto][first.port] = left
        else:
            del self._firsts[first.proto][first.port]

    def _renewed(self, attempt: Attempt) -> Attempt | None:
        """The attempt in terms of the doors as they are now: set_doors() leaves that to the first packet after it."""
        step = attempt.step
        if step.tree is self._tree or attempt.is_done:
            return attempt
        first = step.path[0]
        for now in sorted(self._firsts[first.proto].get(first.port, ()), key=lambda now: now.terms != step.terms):
            reached: Step | None = now
            for service in step.path[1:]:
                reached = reached and reached.follow(service)
            if reached is not None:
                return attempt._replace(step=reached)
        return None

    def _put(self, src: bytes, stage: int, before: Attempts, after: Attempts) -> None:
        """Make `after` the source's attempts, which `before` were, at this stage."""
        if after and before[0] is after[0] and stage == _stage(after):
            # Nothing that makes it younger: it keeps its place in the order.
            self._crowd.by_stage[stage][src] = after
            return
        self._remove(src, stage)
        if after:
            self._add(src, after)

    def _add(self, src: bytes, attempts: Attempts) -> None:
        stage = _stage(attempts)
        self._crowd.add(src, attempts, stage)
        if len(src) == 16:
            self._join_prefix(src, attempts, stage)

    def _remove(self, src: bytes, stage: int) -> Attempts:
        if len(src) == 16:
            self._leave_prefix(src, stage)
        return self._crowd.remove(src, stage)

    def _join_prefix(self, src: bytes, attempts: Attempts, stage: int) -> None:
        prefix = src[:_PREFIX_BYTES]
        there = self._prefixes.get(prefix)
        if there is None:
            self._prefixes[prefix] = src
            return
        if isinstance(there, bytes):
            crowd = self._prefixes[prefix] = _Crowd()
            at, first = self._crowd.find(there)
            crowd.add(there, first, at)
            there = crowd
        there.add(src, attempts, stage)

    def _leave_prefix(self, src: bytes, stage: int) -> None:
        prefix = src[:_PREFIX_BYTES]
        there = self._prefixes[prefix]
        if isinstance(there, _Crowd):
            there.remove(src, stage)
            if there.size:
                return
        del self._prefixes[prefix]

    def _make_room(self, src: bytes, now: float, events: list[Event]) -> None:
        """Hold the bounds after `src` has begun: in its /64 first, so that a prefix pays for itself (T13, T14, T17)."""
        if len(src) == 16:
            crowd = self._prefixes[src[:_PREFIX_BYTES]]
            if isinstance(crowd, _Crowd) and crowd.size > MAX_KNOCKERS_PER_PREFIX:
                self._evict(crowd, 1, now, events)
        if self._crowd.size > self._max_knockers:
            self._evict(self._crowd, self._sweep, now, events)

    def _evict(self, crowd: _Crowd, count: int, now: float, events: list[Event]) -> None:
        """So many of the crowd give way: the oldest of the lowest stage (T14), then of the next."""
        for stage, members in enumerate(crowd.by_stage):
            sources = tuple(islice(members, count))
            attempts = tuple(self._remove(src, stage) for src in sources)
            if stage and sources:
                events.append(Evicted(now, stage, sources, attempts))
            count -= len(sources)
            if not count:
                return


def _by_step(judged: tuple[Derived, Reason | None]) -> int:
    return judged[0].step


def _length(door: Door, end: End) -> int:
    """How many knocks a sequence of the door has that ends like this."""
    if isinstance(end, Alike):
        return len(end.derived[0].sequence)
    return len(end.sequence if end else door.sequence)


def _without(ends: Iterable[tuple[Door, End]], gone: Code | Derived) -> Iterator[tuple[Door, End]]:
    """What a step completes without this one."""
    for door, end in ends:
        if isinstance(end, Alike):
            left = tuple(derived for derived in end.derived if derived != gone)
            if left:
                yield door, Alike(left)
        elif end != gone:
            yield door, end


def _stage(attempts: Attempts) -> int:
    """The stage of the most advanced attempt; 0 where none is under way any more."""
    if len(attempts) == 1:
        step = attempts[0].step
        return step.stage if step.then else 0
    return max(attempt.step.stage if attempt.step.then else 0 for attempt in attempts)


def _report_end(src: bytes, attempt: Attempt, reason: Reason, packet: Packet | None, events: list[Event]) -> None:
    if not attempt.is_done:
        events.append(Failed(src, attempt.step.doors, attempt.step.stage, reason, packet, attempt))


def _terms(door: Door) -> _Terms:
    return _Terms(door.tcp_flags, door.seq_timeout, door.target)
