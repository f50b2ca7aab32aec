"""Single packets (SPA): how soon one opens a door, beside fwknopd, and what forged ones cost.

Rule 1: both programs have the same keys, keep what they have seen on a disk, and get packets of the same kind by turns,
each one new. Rule 2: a door of fwknopd's is open when the kernel tells of the rule. Rule 3: forged packets have all
that a packet has but the right HMAC, and no address of theirs is faster than a person.
"""

import hmac
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from logknock import spa
from logknock.knock import Service
from logknock.packet import TCP

from .cost import settled_cost
from .field import PATIENCE, RANDOM, Field, Plan, disk, field, sync
from .figures import Figure, percentile
from .frames import udp
from .peers import SPA_PORT, DoorSet, RuleWatch, fwknopd, logknock_spa, running, spa_keys
from .sender import Ring

# What is aimed at: how many times sooner than fwknopd.
_SOONER = 50

_SSH = Service(TCP, 22)

# Different packets of a flood, each from an address of its own, and packets a second: each address sends one a second.
_FORGED = 16_384
_RATE = 16_384
_SECONDS = 2.0
_SETTLE = 30

_FEW, _MANY = 1, spa.MAX_SPA_KEYS
_HASHED = 20_000

_Payload = Callable[[bytes], bytes]


def single_packets(plan: Plan) -> Iterator[Figure]:
    """All of it."""
    with disk() as (folder, kind):
        yield from _openings(plan, folder, kind)
    yield from _forgeries(plan)


def _packet(source: bytes, forged: bool = False) -> bytes:
    """A payload that asks for ssh for its source."""
    key, hmac_key = spa_keys(0)
    rand = f"{RANDOM.randrange(10**16):016}"
    message = spa.request(source, [_SSH], user="bench", timestamp=int(time.time()), rand=rand)
    return spa.encode(message, key, spa_keys(_MANY)[1] if forged else hmac_key, "sha256", RANDOM.randbytes(8))


# ---- a packet opens its door


def _openings(plan: Plan, folder: Path, kind: str) -> Iterator[Figure]:
    ours, theirs, syncs = [], [], []
    with ExitStack() as stack:
        here, there = (stack.enter_context(field(make, folder)) for make in (logknock_spa, fwknopd))
        program, other = (stack.enter_context(running(on.peer)) for on in (here, there))
        door, rules = stack.enter_context(DoorSet(here.peer)), stack.enter_context(RuleWatch(there.peer.host))
        for each in (program, other):
            each.settle(_SETTLE)
        before = program.times()
        for number in range(plan.openings):
            source = bytes((198, 51, 100, number + 1))
            time.sleep(RANDOM.uniform(0.01, 0.11))  # a program that looks every so often is met at any moment
            syncs.append(sync(folder))
            ours.append(here.opening_by(door, door.request(source), _frame(here, source)))
            if number % plan.openings_to_one == 0:
                theirs.append(_ruled(there, rules, source))
        kept = program.kept(before)
    name = "SPA: packet to open, beside fwknopd"
    p50, p99 = (tuple(percentile(times, share) for times in (ours, theirs)) for share in (0.5, 0.99))
    met = p50[1] >= _SOONER * p50[0]
    yield Figure(name, "p50", "ms", (p50[0],), (p50[1],), f"{_SOONER} times faster", met)
    yield Figure(name, "p99", "ms", (p99[0],), (p99[1],))
    yield Figure(name, "least", "ms", (min(ours),), (min(theirs),))
    yield Figure(name, "most", "ms", (max(ours),), (max(theirs),))
    yield Figure(name, f"of it a sync of the disk ({kind})", "ms", tuple(syncs))
    yield Figure(name, "kept from running by others", "%", (kept,))


def _frame(on: Field, source: bytes) -> bytes:
    return udp(on.link, source, 40_000, SPA_PORT, _packet(source))


def _ruled(on: Field, rules: RuleWatch, source: bytes) -> float:
    """Milliseconds until the kernel tells of a rule for this source; more than PATIENCE where it does not."""
    frame = _frame(on, source)
    start = time.perf_counter()
    on.wire.send(frame)
    rules.wait(source, PATIENCE)
    return (time.perf_counter() - start) * 1000


# ---- forged packets


def _forgeries(plan: Plan) -> Iterator[Figure]:
    """How many a second a core handles, with few keys and with as many as there may be, beside what hashing takes."""
    section = "SPA: forged packets a second, beside their HMACs"
    sample = _packet(bytes((192, 0, 2, 1)), forged=True)
    for keys, words, make in (
        (_FEW, "1 key", _forged),
        (_MANY, f"{_MANY} keys", _forged),
        (_FEW, "not of SPA's shape", _shapeless),
    ):
        rates = tuple(1e6 / cost for cost in _costs(plan, keys, make))
        alone = () if make is _shapeless else (_hashed(sample, keys),)
        yield Figure(section, words, "/s", rates, alone)


def _forged(source: bytes) -> bytes:
    return _packet(source, forged=True)


def _shapeless(source: bytes) -> bytes:
    """As long, and it begins like one; what no base64 has stands at its end."""
    return _packet(source)[:-1] + b"!"


def _costs(plan: Plan, keys: int, make: _Payload) -> list[float]:
    """Microseconds of processor time for each, flood by flood."""
    with field(partial(logknock_spa, clients=keys)) as on, running(on.peer) as program:
        sources = [bytes((198, 18, number >> 8, number & 0xFF)) for number in range(_FORGED)]
        frames = [udp(on.link, source, 40_000, SPA_PORT, make(source)) for source in sources]
        with Ring(on.client, frames) as ring:
            program.settle(_SETTLE)
            return [
                settled_cost(on, program, ring, int(_RATE * _SECONDS), rate=_RATE, limit=_SETTLE)
                for _ in range(min(3, plan.repeats))
            ]


def _hashed(payload: bytes, keys: int) -> float:
    """How many packets' HMACs a core makes a second: one for each key, over as much text."""
    known = [spa_keys(number)[1] for number in range(keys)]
    times = []
    for _ in range(5):
        start = time.process_time()
        for number in range(_HASHED):
            hmac.digest(known[number % keys], payload, "sha256")
        times.append(time.process_time() - start)
    return _HASHED / median(times) / keys
