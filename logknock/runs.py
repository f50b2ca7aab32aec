"""Runs of knocks: at one host or at several at once, and on to a service that is to answer behind the door.

Rule 1: a run resolves its host once, and knocks and connects at that address. Rule 2: what a run sends besides knocks
is so little that no limiter of the server minds: one connection at a time, each waited for twice as long as the last.
Rule 3: the source of knocks hears of every sequence that was sent whole, and of no other.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from .client import DELAY, Address, Knock, knock, resolve
from .errors import LogknockError
from .knock import Service

# How long a service may take to answer after a knock. A door opens within milliseconds; what takes long is a link that
# loses packets, where a SYN comes again after 1 s and after 3 s.
LIMIT = 5.0
MIN_LIMIT = 0.1
MAX_LIMIT = 60.0

# How often a sequence is knocked until the service answers. Where every tenth packet is lost, three tries of three
# knocks fail once in fifty times.
TRIES = 3
MAX_TRIES = 10

# From the last knock of a try to the first of the next: by then a server that lets 20 packets a second pass, and 40 at
# once, has all of the 40 free again, and hears a sequence of any length.
RETRY_PAUSE = 2.0

# The door opens some milliseconds after the last knock is there: a connection that came with the knock would be dropped
# and repeated only after a second.
_SETTLE = 0.05

# How long the first connection is waited for: more than most links need for the way there and back.
_FIRST_WAIT = 0.25

_SILENT_HINT = (
    "the daemon's log on that host says what it heard of the knocks; for a slow network give --tries and --timeout"
)
_REFUSED_HINT = "either nothing listens there, or a firewall refuses what it has not let in"


class Supply(Protocol):
    """Where the knocks of a run come from, and who has to know what became of them."""

    def take(self) -> tuple[Knock, ...]:
        """The knocks of the next try; raises LogknockError where there are none."""

    def sent(self) -> None:
        """The knocks that were taken last have all been sent."""

    def answered(self) -> None:
        """The service behind the door answered: there are no more tries."""

    @property
    def hint(self) -> str:
        """What may be the matter where nothing answers, besides what always may; as a part of a line."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same knocks at every try."""

    knocks: tuple[Knock, ...]
    hint: str = ""

    def take(self) -> tuple[Knock, ...]:
        """See Supply."""
        return self.knocks

    def sent(self) -> None:
        """See Supply."""

    def answered(self) -> None:
        """See Supply."""


Told = Callable[[str], object]

# Gives the supply of a run that has come to know its address; what it tells on the way is for who wants every knock.
Supplier = Callable[[Address, Told], AbstractContextManager[Supply]]


@contextmanager
def fixed(knocks: tuple[Knock, ...], address: Address, told: Told) -> Iterator[Supply]:
    """A supply of these knocks."""
    yield Fixed(knocks)


@dataclass(frozen=True, slots=True)
class Run:
    """Knocks to send to a host. Times are in seconds; `verify` is the TCP service that is to answer then."""

    name: str
    host: str
    supply: Supplier
    delay: float = DELAY
    family: socket.AddressFamily = socket.AF_UNSPEC
    verify: Service | None = None
    tries: int = TRIES
    limit: float = LIMIT


def go(run: Run, told: Told) -> str:
    """Carry out the run and say in a few words what came of it; `told` hears of each knock. Raises LogknockError."""
    return _visit(run, resolve(run.host, run.family), told)


def _visit(run: Run, address: Address, told: Told) -> str:
    with run.supply(address, told) as supply:
        if run.verify is None:
            return f"{address}: {_count(_send(address, supply, run.delay, told, {}), 'knock')} sent"
        enter(run, address, run.verify, supply, told).close()
        return f"{address}: {run.verify} answers"


def enter(run: Run, address: Address, service: Service, supply: Supply, told: Told) -> socket.socket:
    """Knock until the service answers, and give back the connection to it; raises LogknockError."""
    used: dict[Service, set[int]] = {}
    failure = OSError()
    again_at = 0.0
    for _ in range(run.tries):
        time.sleep(max(0.0, again_at - time.monotonic()))
        _send(address, supply, run.delay, told, used)
        again_at = time.monotonic() + RETRY_PAUSE
        try:
            connection = connect(address, service.port, run.limit)
        except OSError as error:  # a refusal too: it may be a firewall's, which has not heard the knock
            failure = error
        else:
            supply.answered()
            return connection
    raise _unanswered(run, address, service, failure, supply.hint)


def _send(address: Address, supply: Supply, delay: float, told: Told, used: dict[Service, set[int]]) -> int:
    knocks = supply.take()
    knock(
        address,
        knocks,
        delay,
        lambda number, service: told(f"knock {number} of {len(knocks)}: {address} {service}"),
        used,
    )
    supply.sent()
    return len(knocks)


def connect(address: Address, port: int, limit: float) -> socket.socket:
    """A connection to the port, tried for `limit` seconds; raises the OSError of the last try."""
    end = time.monotonic() + limit
    wait = _FIRST_WAIT
    time.sleep(min(_SETTLE, limit))
    while True:
        started = time.monotonic()
        until = min(started + wait, end)
        try:
            return _connected(address, port, max(0.01, until - started))
        except OSError:  # what refuses may be a firewall, which will not do so for long
            time.sleep(max(0.0, until - time.monotonic()))
            if time.monotonic() >= end:
                raise
        wait *= 2


def _connected(address: Address, port: int, limit: float) -> socket.socket:
    connecting = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connecting.settimeout(limit)
        connecting.connect(address.endpoint(port))
        connecting.settimeout(None)
    except OSError:
        connecting.close()
        raise
    return connecting


def _unanswered(run: Run, address: Address, service: Service, failure: OSError, besides: str) -> LogknockError:
    tries = f" ({run.tries} tries)" if run.tries > 1 else ""
    besides = f"; {besides}" if besides else ""
    if isinstance(failure, ConnectionRefusedError):
        message = f"{address}: {service} refuses the connection after the knock{tries}"
        return LogknockError(message, _REFUSED_HINT + besides)
    if isinstance(failure, TimeoutError):
        what = f"did not answer within {run.limit:g} s of the knock"
    else:
        what = f"could not be reached after the knock: {failure.strerror}"
    return LogknockError(f"{address}: {service} {what}{tries}", _SILENT_HINT + besides)


# ---- several at once


class Said(NamedTuple):
    """A line about a run: of a knock sent, or of its end, which is the last one of a run."""

    run: Run
    text: str


class Failed(NamedTuple):
    """The end of a run that failed."""

    run: Run
    error: LogknockError


def go_together(runs: Sequence[Run], told: Callable[[str], object]) -> Iterator[Said | Failed]:
    """Carry out all runs at once and say of each how it ended, in the order in which they end.

    Runs that turn out to have the same address wait for each other: knocks of two sequences from one source would
    each be a wrong one in the other.
    """
    events: SimpleQueue[Said | Failed | str | None] = SimpleQueue()
    turns: dict[Address, threading.Lock] = {}
    for run in runs:
        # A daemon thread: who presses Ctrl-C does not wait for the others' delays.
        threading.Thread(target=_work, args=(run, turns, events), daemon=True).start()
    working = len(runs)
    while working:
        event = events.get()
        if event is None:
            working -= 1
        elif isinstance(event, str):
            told(event)
        else:
            yield event


def _work(run: Run, turns: dict[Address, threading.Lock], events: "SimpleQueue[Said | Failed | str | None]") -> None:
    try:
        address = resolve(run.host, run.family)
        with turns.setdefault(address, threading.Lock()):
            events.put(Said(run, _visit(run, address, events.put)))
    except LogknockError as error:
        events.put(Failed(run, error))
    finally:
        events.put(None)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
