"""Knocks that are made when they are sent: the sequence of a step of time (TOTP), and the encrypted packet (SPA).

Rule 1: nothing is kept from one run to the next: what counts is the clock. Rule 2: within a run, a step's sequence is
sent twice at most, since the second may be what a lost knock needs, and then a later step's; a packet is never sent
twice. Rule 3: a secret and a key are in no line and no repr.
"""

import os
import pwd
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from . import clock
from .client import Address, Knock, own_address
from .knock import Service
from .packet import address_text, parse_address
from .runs import Supply, Told

if TYPE_CHECKING:  # who knocks in one way does not wait for what the other takes
    from .profile_proofs import Asked
    from .totp import TotpDoor

# Seconds. A step that is over so soon is not begun: its last knock might come in the next one, and whether the host
# takes those of the step before is not known here.
_ABOUT_TO_TURN = 1.0

# Seconds behind the turn: clocks that are kept right differ by hundredths, and the host's may be the later one.
_SETTLE = 0.1

# Of a packet: its random digits, and the bytes of its salt.
_DIGITS = 16
_SALT = 8

# How often a step's sequence is sent. From the third try on, something else than a lost knock is the matter: it may be
# used up, or the host wants a later step's besides, of who has tried wrongly too often.
_SENT_PER_STEP = 2


def clock_warning() -> str:
    """What to say before a knock that depends on the time; empty where nothing is known to be wrong."""
    if clock.is_synchronised() is not False:
        return ""
    return "nothing keeps this machine's clock right, and what is sent now depends on it: see `timedatectl`"


# ---- steps of time


@contextmanager
def stepped(door: "TotpDoor", host: str, address: Address, told: Told) -> Iterator[Supply]:
    """The sequences of a door's one client; `host` is the name in the derivation where the door has none.

    `told` hears of each wait for a step, and of nothing else.
    """
    yield Stepped(door if door.host else replace(door, host=host.lower()), address, told)


class Stepped:
    """A step's sequence, and after two tries that of a later one; see runs.Supply."""

    def __init__(self, door: "TotpDoor", address: Address, told: Told) -> None:
        self._door = door
        self._address = address
        self._told = told
        self._tries = 0
        self._last = -1  # the latest step of which something was sent

    def take(self) -> tuple[Knock, ...]:
        """The knocks of the step now; waits for a later one where that is wanted, or comes at once."""
        from . import totp

        time.sleep(self.pause(time.time()))
        step = totp.step_at(time.time(), self._door.step)
        self._last = max(self._last, step)
        self._tries += 1
        return tuple(map(Knock, totp.sequence_of(self._door, self._door.clients[0], step)))

    def pause(self, now: float) -> float:
        """How long to wait before the next try, in seconds; about a step at most, however the clock was set."""
        length = self._door.step
        turn = length - now % length
        if self._tries < _SENT_PER_STEP or now // length > self._last:
            return turn + _SETTLE if turn < _ABOUT_TO_TURN else 0.0
        self._told(f"{self._address} does not answer: {turn:.0f} s to wait for the next step")
        return turn + _SETTLE

    def sent(self) -> None:
        """See Supply."""

    def answered(self) -> None:
        """See Supply."""

    @property
    def hint(self) -> str:
        """See Supply."""
        return (
            f"a step is {self._door.step} s: see `timedatectl` for this machine's clock; `logknock explain ADDRESS` on "
            f"that host says by how much it is off; and [totp] host is to be {self._door.host} there"
        )


# ---- encrypted packets


@contextmanager
def sealed(asked: "Asked", address: Address, told: Told) -> Iterator[Supply]:
    """Packets that ask for this, each a new one."""
    yield Sealed(asked, address)


class Sealed:
    """A packet for each try; see runs.Supply."""

    def __init__(self, asked: "Asked", address: Address) -> None:
        self._asked = asked
        self._for = parse_address(own_address(address)) if asked.address is None else asked.address

    def take(self) -> tuple[Knock, ...]:
        """One knock, which carries the packet."""
        proto, first, last = self._asked.ports
        service = Service(proto, first + secrets.randbelow(last - first + 1))
        return (Knock(service, payload=seal(self._asked, self._for, int(time.time()))),)

    def sent(self) -> None:
        """See Supply."""

    def answered(self) -> None:
        """See Supply."""

    @property
    def hint(self) -> str:
        """See Supply."""
        said = "a packet is good for two minutes by the host's clock: see `timedatectl` for this machine's"
        if self._asked.address is None:
            said += f"; it asks for {address_text(self._for)}: where the host sees another address, write spa.address"
        return said


def seal(asked: "Asked", address: bytes, now: int) -> bytes:
    """A new packet; raises LogknockError where there is nothing that encrypts."""
    from . import spa

    message = spa.request(
        address,
        asked.access,
        user=asked.user or _login_name(),
        timestamp=now,
        rand=f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}",
        timeout=asked.timeout,
    )
    return spa.encode(message, asked.key, asked.hmac_key, asked.digest, os.urandom(_SALT))


def _login_name() -> str:
    """Who runs the program, as far as a packet can hold it."""
    from .spa import fit_user

    try:
        name = fit_user(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:  # a user of a number alone
        name = ""
    return name or str(os.getuid())
