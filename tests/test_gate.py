"""What single packets open, over a real store: once, by their key, and whatever the clock does."""

import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from logknock.errors import UNAVAILABLE, LogknockError
from logknock.gate import Accepted, Gate, Rejected
from logknock.knock import Service
from logknock.packet import TCP, UDP, Carried, Packet, parse_address
from logknock.spa import ANY_SOURCE, Key, Kind, Reason, encode, request
from logknock.store import DATABASE, TRIM_ROWS, Authentic, NoStore, SQLiteStore, open_store

NOW = 1_800_000_000.0
HERE, THERE, SIX = (parse_address(text) for text in ("192.0.2.7", "203.0.113.9", "2001:db8::7"))
SSH, WEB, VPN = Service(TCP, 22), Service(TCP, 443), Service(UDP, 1194)
LAPTOP = Key("vpn", "laptop", bytes(range(32)), bytes(range(64)), "sha256", (SSH, VPN))
PHONE = replace(LAPTOP, client="phone", key=bytes(range(1, 33)), hmac_key=bytes(range(1, 65)))


@pytest.fixture(autouse=True, scope="module")
def private() -> Iterator[None]:
    """The store's files are nobody else's."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(open_store(tmp_path / "state")) as made:
        assert isinstance(made, SQLiteStore)
        yield made


@pytest.fixture
def gate(store: SQLiteStore) -> Gate:
    made = Gate(store)
    made.use([LAPTOP, PHONE])
    return made


def payload(
    key: Key = LAPTOP,
    *,
    address: bytes = HERE,
    services: tuple[Service, ...] = (SSH,),
    at: float = NOW,
    timeout: int = 0,
    user: str = "me",
    salt: int = 0,
    **change: Any,
) -> bytes:
    asked = request(address, services, user=user, timestamp=int(at), rand="0" * 16, timeout=timeout)
    return encode(asked._replace(**change), key.key, key.hmac_key, key.digest, salt.to_bytes(8))


def carried(packet: bytes, src: bytes = HERE) -> Carried:
    return Carried(Packet(NOW, src, bytes(len(src)), UDP, 40000, 62201, 0), packet)


def judge(gate: Gate, packet: bytes, src: bytes = HERE, wall: float = NOW) -> str:
    """`opened`, or the name of the reason."""
    found = gate.judge(carried(packet, src), wall)
    return "opened" if isinstance(found, Accepted) else found.reason.name


class TestPolicy:
    """What a key allows, and nothing else."""

    def test_what_it_opens(self, gate: Gate) -> None:
        asked = payload(services=(SSH, VPN), timeout=60)
        assert gate.judge(carried(asked), NOW) == Accepted(LAPTOP, HERE, (SSH, VPN), 60.0, int(NOW))
        assert gate.judge(carried(payload(PHONE)), NOW + 1) == Accepted(PHONE, HERE, (SSH,), None, int(NOW))

    @pytest.mark.parametrize(
        ("change", "packet", "src", "outcome"),
        [
            pytest.param({}, {"at": NOW - 120}, HERE, "opened", id="as old as may be"),
            pytest.param({}, {"at": NOW + 120}, HERE, "opened", id="as far ahead as may be"),
            pytest.param({}, {"at": NOW - 121}, HERE, "AGE", id="too old"),
            pytest.param({}, {"at": NOW + 121}, HERE, "AGE", id="too far ahead"),
            pytest.param({"max_age": 5.0}, {"at": NOW - 6}, HERE, "AGE", id="its own max_age"),
            pytest.param({}, {"services": (WEB,)}, HERE, "SERVICE", id="a service that is not allowed"),
            pytest.param({}, {"services": (SSH, WEB)}, HERE, "SERVICE", id="one of two that is not"),
            pytest.param({}, {"services": (Service(UDP, 22),)}, HERE, "SERVICE", id="the port over another protocol"),
            pytest.param({}, {"address": THERE}, HERE, "ADDRESS", id="for another address"),
            pytest.param({}, {}, THERE, "ADDRESS", id="sent on from elsewhere"),
            pytest.param({}, {"address": ANY_SOURCE}, HERE, "ADDRESS", id="for no address"),
            pytest.param({}, {"address": SIX}, SIX, "opened", id="IPv6"),
            pytest.param({}, {"address": HERE}, SIX, "ADDRESS", id="IPv4 from IPv6"),
            pytest.param({"require_source": False}, {"address": THERE}, HERE, "opened", id="for another, as allowed"),
            pytest.param({"require_source": False}, {"address": ANY_SOURCE}, SIX, "opened", id="none, as allowed"),
            pytest.param({"user": "me"}, {}, HERE, "opened", id="its user"),
            pytest.param({"user": "Me"}, {}, HERE, "USER", id="another user"),
            pytest.param({"source": (ip_network("192.0.2.0/24"),)}, {}, HERE, "opened", id="from its network"),
            pytest.param({"source": (ip_network("198.51.100.0/24"),)}, {}, HERE, "HMAC", id="from another network"),
        ],
    )
    def test_each_term(
        self, store: SQLiteStore, change: dict[str, Any], packet: dict[str, Any], src: bytes, outcome: str
    ) -> None:
        gate = Gate(store)
        key = replace(LAPTOP, **change)
        gate.use([key])
        assert judge(gate, payload(key, **packet), src) == outcome

    @pytest.mark.parametrize(
        ("asked", "most", "seconds"),
        [(0, 300.0, None), (1, 300.0, 1.0), (300, 300.0, 300.0), (301, 300.0, 300.0), (65536, 10.5, 10.5)],
    )
    def test_for_how_long(self, store: SQLiteStore, asked: int, most: float, seconds: float | None) -> None:
        """As asked, up to the most; who does not ask has the door's own time."""
        gate = Gate(store)
        gate.use([replace(LAPTOP, max_timeout=most)])
        found = gate.judge(carried(payload(timeout=asked)), NOW)
        assert isinstance(found, Accepted)
        assert found.seconds == seconds

    def test_for_whom(self, store: SQLiteStore) -> None:
        """The address in it, or where it came from."""
        gate = Gate(store)
        gate.use([replace(LAPTOP, require_source=False)])
        for asked, src, wanted in ((THERE, HERE, THERE), (ANY_SOURCE, HERE, HERE), (ANY_SOURCE, SIX, SIX)):
            found = gate.judge(carried(payload(address=asked, salt=src[0] + asked[0]), src), NOW)
            assert isinstance(found, Accepted)
            assert found.address == wanted

    @pytest.mark.parametrize(
        ("kind", "more", "reason", "says"),
        [
            (Kind.COMMAND, {"text": "192.0.2.7,reboot", "services": ()}, Reason.COMMAND, "command"),
            (Kind.NAT, {"nat": "10.0.0.1,22"}, Reason.NAT, "NAT"),
            (Kind.NAT_TIMEOUT, {"nat": "10.0.0.1,22", "timeout": 9}, Reason.NAT, "NAT"),
            (Kind.LOCAL_NAT, {"nat": "10.0.0.1,22"}, Reason.NAT, "NAT"),
            (Kind.LOCAL_NAT_TIMEOUT, {"nat": "10.0.0.1,22", "timeout": 9}, Reason.NAT, "NAT"),
        ],
    )
    def test_what_is_not_done_is_named(
        self, gate: Gate, kind: Kind, more: dict[str, Any], reason: Reason, says: str
    ) -> None:
        found = gate.judge(carried(payload(kind=kind, **({"timeout": 0} | more))), NOW)
        assert isinstance(found, Rejected)
        assert (found.door, found.client, found.reason) == ("vpn", "laptop", reason)
        assert says in found.words
        assert "reboot" not in found.words

    def test_a_stranger_s_packet_is_nobody_s(self, gate: Gate, store: SQLiteStore) -> None:
        packet = carried(payload(replace(LAPTOP, hmac_key=b"another" * 5)))
        found = gate.judge(packet, NOW)
        assert isinstance(found, Rejected)
        assert found[:4] == (packet.packet, "", "", Reason.HMAC)
        assert not store.history(9)

    def test_keys_that_are_taken_away(self, gate: Gate) -> None:
        gate.use([PHONE])
        assert judge(gate, payload()) == "HMAC"
        gate.use([])
        assert judge(gate, payload(PHONE)) == "HMAC"
        gate.use([LAPTOP])
        assert judge(gate, payload()) == "opened"

    def test_without_cryptography_it_is_said_before_the_first_packet(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And where there is no key nobody needs it."""
        monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
        gate.use([])
        with pytest.raises(LogknockError, match="cryptography") as caught:
            gate.use([LAPTOP])
        assert caught.value.exit_code == UNAVAILABLE
        assert "apt install" in caught.value.hint


class TestReplay:
    """T18: a packet counts once."""

    def test_t18_from_anywhere_and_after_a_restart(self, tmp_path: Path) -> None:
        packet = payload()
        for expected in ("opened", "REPLAYED"):
            with closing(open_store(tmp_path / "state")) as store:
                gate = Gate(store)
                gate.use([replace(LAPTOP, require_source=False)])
                assert judge(gate, packet) == expected
                for src in (HERE, THERE, SIX):
                    assert judge(gate, packet, src) == "REPLAYED"
        with closing(open_store(tmp_path / "state")) as store:
            assert [(entry.event, entry.door, entry.src) for entry in store.history(9)] == [("used", "vpn", HERE)]
            assert "laptop" in store.history(9)[0].detail

    @pytest.mark.parametrize(
        ("packet", "src", "reason"),
        [
            pytest.param(payload(at=NOW + 3000), HERE, "AGE", id="that came too early"),
            pytest.param(payload(services=(WEB,)), HERE, "SERVICE", id="that asked for too much"),
            pytest.param(payload(), THERE, "ADDRESS", id="that somebody else sent first"),
            pytest.param(payload(kind=Kind.COMMAND, text="192.0.2.7,id", services=()), HERE, "COMMAND", id="a command"),
        ],
    )
    def test_t18_what_opened_nothing_does_not_open_later(
        self, gate: Gate, packet: bytes, src: bytes, reason: str
    ) -> None:
        """It was authentic, so it is on record, before its age and what it asks for were looked at."""
        assert judge(gate, packet, src) == reason
        for wall in (NOW, NOW + 3000):
            assert judge(gate, packet, HERE, wall) == "REPLAYED"

    def test_two_of_one_second_both_count(self, gate: Gate) -> None:
        assert [judge(gate, payload(salt=salt)) for salt in range(3)] == ["opened"] * 3
        assert judge(gate, payload(PHONE)) == "opened"

    def test_t20_killed_at_any_line_it_never_opens_twice(self, tmp_path: Path) -> None:
        """A process that dies before the answer has used the packet, or has not; one that has opened it has."""
        packet = payload()
        outcomes = set()
        for step in range(1, 400):
            state = tmp_path / f"state{step}"
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                _judge_and_die(state, packet, step, writer)
            os.close(writer)
            with open(reader, "rb") as reports:
                opened = reports.read()
            status = os.waitpid(child, 0)[1]
            with closing(open_store(state)) as store:
                gate = Gate(store)
                gate.use([LAPTOP])
                again = judge(gate, packet)
            assert not (opened and again == "opened")
            outcomes.add((opened, again))
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
        assert outcomes == {(b"", "opened"), (b"", "REPLAYED"), (b"opened", "REPLAYED")}


def _judge_and_die(state: Path, packet: bytes, left: int, writer: int) -> None:
    """Before so many lines of the gate, the wire and the store have run."""
    status = 1
    try:
        gate = Gate(open_store(state))
        gate.use([LAPTOP])
        files = [sys.modules[Gate.__module__].__file__, sys.modules["logknock.store"].__file__]

        def count(frame: Any, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in files:
                return None
            left -= event == "line"
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return count

        sys.settrace(count)
        found = gate.judge(carried(packet), NOW)
        sys.settrace(None)
        assert isinstance(found, Accepted)
        os.write(writer, b"opened")
        status = 0
    finally:
        os._exit(status)


class TestClock:
    """T19: a clock that is set back and forth opens nothing twice, and keeps nobody out."""

    HOUR = 3600.0

    def _tidy(self, gate: Gate, wall: float) -> None:
        for _ in range(3):
            gate.tidy(wall)

    @pytest.mark.parametrize("step", [HOUR, -HOUR, 365 * 24 * HOUR])
    def test_t19_there_and_back(self, gate: Gate, store: SQLiteStore, step: float) -> None:
        old, phone = payload(at=NOW - 60), payload(PHONE, at=NOW - 60)
        assert judge(gate, old) == "opened"
        self._tidy(gate, NOW)
        # The clock is wrong for a while: what is sent meanwhile has the right time, and is too old or too early.
        wrong = payload(at=NOW + 10, salt=1)
        assert judge(gate, wrong, wall=NOW + 10 + step) == "AGE"
        self._tidy(gate, NOW + 10 + step)
        # It is right again.
        assert judge(gate, old, wall=NOW + 20) == "REPLAYED"
        assert judge(gate, wrong, wall=NOW + 20) == "REPLAYED"
        assert judge(gate, payload(at=NOW + 20, salt=2), wall=NOW + 20) == "opened", "nobody is kept out"
        assert judge(gate, phone, wall=NOW + 20) == "opened", "and another client's older packet is as good as ever"
        assert [judge(gate, each, wall=NOW + 20) for each in (old, wrong, phone)] == ["REPLAYED"] * 3

    def test_t19_set_back_what_is_forgotten_stays_used(self, gate: Gate) -> None:
        """Long after, the clock goes back to when the packet was fresh."""
        packet = payload()
        assert judge(gate, packet) == "opened"
        self._tidy(gate, NOW + self.HOUR)
        for wall in (NOW, NOW + self.HOUR, NOW - 60, NOW + 60):
            assert judge(gate, packet, wall=wall) == "REPLAYED"
            assert judge(gate, payload(salt=1), wall=wall) == "REPLAYED", "not newer than what was forgotten"

    def test_t19_a_client_whose_clock_was_far_ahead_keeps_nobody_else_out(self, gate: Gate) -> None:
        """Its packet is forgotten by a clock that was ahead as well: then it is this client alone that has to wait."""
        assert judge(gate, payload(at=NOW + self.HOUR)) == "AGE"
        self._tidy(gate, NOW + 2 * self.HOUR)
        assert judge(gate, payload(PHONE)) == "opened"
        assert judge(gate, payload(salt=1)) == "REPLAYED"
        assert judge(gate, payload(at=NOW + self.HOUR + 1), wall=NOW + self.HOUR) == "opened"

    def test_t19_a_client_that_is_called_otherwise_has_sent_what_it_sent(self, gate: Gate) -> None:
        """T18: the clock goes forth, the packet is forgotten, the clock comes back, and the client has a new name."""
        packet = payload()
        assert judge(gate, packet) == "opened"
        self._tidy(gate, NOW + self.HOUR)
        gate.use([replace(LAPTOP, client="notebook")])
        assert judge(gate, packet) == "REPLAYED"

    def test_kept_for_twice_the_largest_age(self, store: SQLiteStore) -> None:
        gate = Gate(store)
        gate.use([replace(LAPTOP, max_age=300.0), PHONE])
        packet = payload(PHONE)
        assert judge(gate, packet) == "opened"
        for later, kept in ((0.0, 1), (600.0, 1), (601.0, 0)):
            gate.tidy(NOW + later)
            assert seen(store) == kept
            assert judge(gate, packet) == "REPLAYED"

    def test_it_forgets_in_parts(self, store: SQLiteStore) -> None:
        gate = Gate(store)
        for number in range(TRIM_ROWS + 20):
            assert store.see(Authentic(number.to_bytes(32), int(NOW), bytes(32), "vpn", "laptop"), HERE, NOW)
        gate.tidy(NOW + 241)
        assert seen(store) == 20
        gate.tidy(NOW + 241)
        assert seen(store) == 0
        gate.tidy(NOW + 241)


def seen(store: SQLiteStore) -> int:
    """How many packets are remembered."""
    (count,) = store._db.execute("SELECT count(*) FROM seen").fetchone()
    return int(count)


class TestStore:
    """What cannot be put on record opens nothing, and says so."""

    def test_without_a_store(self, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir(0o711)
        (tmp_path / "state" / DATABASE).write_text("rubbish")
        with closing(open_store(tmp_path / "state")) as store:
            assert isinstance(store, NoStore)
            gate = Gate(store)
            gate.use([LAPTOP])
            found = gate.judge(carried(payload()), NOW)
            assert isinstance(found, Rejected)
            assert (found.reason, found.door, found.client) == (Reason.STORE, "vpn", "laptop")
            assert found.words == store.reason.message
            gate.tidy(NOW)

    def test_while_it_is_locked(self, gate: Gate, tmp_path: Path) -> None:
        """The packet is as new as before once the store can be written again."""
        packet = payload()
        with closing(sqlite3.connect(tmp_path / "state" / DATABASE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert judge(gate, packet) == "STORE"
        assert judge(gate, packet) == "opened"

    @pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: file.rename(f"{file}.old")])
    def test_while_its_file_is_gone(self, gate: Gate, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
        spoil(tmp_path / "state" / DATABASE)
        assert judge(gate, payload()) == "STORE"

    def test_a_stranger_never_gets_as_far_as_the_store(self, tmp_path: Path) -> None:
        """Only who has a key can make it write."""
        with closing(open_store(tmp_path / "state")) as store:
            gate = Gate(store)
            gate.use([LAPTOP])
            store.close()
            assert judge(gate, payload(PHONE)) == "HMAC"
            assert judge(gate, payload()) == "STORE"
