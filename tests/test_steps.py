"""Whose step it is: a real matcher, a real store, and a clock that the test turns."""

import gc
import math
import sqlite3
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock import totp
from logknock.knock import Derived, Door, Event, Failed, Granted, Matcher, Nearing, Reason, Sequence, Service, Spent
from logknock.packet import SYN, TCP, Packet
from logknock.steps import FAR, LATE, SLICE, Steps, StepStore
from logknock.store import NoStore, SQLiteStore, StoreError, open_store
from logknock.totp import Client, TotpDoor

NOON = 1_795_262_400.0  # a whole hour, and so the beginning of a step
SRC, OTHER = bytes((198, 51, 100, 1)), bytes((198, 51, 100, 2))
POOL = tuple(Service.parse(f"{port}/{proto}") for proto in ("tcp", "udp") for port in range(20_000, 20_500))
LAPTOP, TABLET = Client("laptop", b"l" * 32), Client("tablet", b"t" * 32)
SSH = TotpDoor("ssh", "gate.example", POOL, clients=(LAPTOP, TABLET))
PHONE = TotpDoor("phone", "gate.example", totp.code_services(Service(TCP, 21_000), 6), digits=6, clients=(LAPTOP,))
OPENS = (Service(TCP, 22),)
DOORS = [Door("ssh", (), opens=OPENS, proof="totp"), Door("phone", (), opens=OPENS, proof="code")]


class Balky(SQLiteStore):
    """The real store, which at times cannot be read or written."""

    balks = False

    def steps(self) -> dict[tuple[str, str], int]:
        if self.balks:
            raise StoreError("the disk is gone")
        return super().steps()

    def use_step(self, door: str, client: str, step: int, src: bytes, wall: float) -> bool:
        if self.balks:
            raise StoreError("the disk is gone", "put it back")
        return super().use_step(door, client, step, src, wall)


class Remembered:
    """As much of a store as steps need, for what is about something else."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, str], int] = {}

    def use_step(self, door: str, client: str, step: int, src: bytes, wall: float) -> bool:
        new = step > self.used.get((door, client), -1)
        self.used[door, client] = max(step, self.used.get((door, client), -1))
        return new

    def steps(self) -> dict[tuple[str, str], int]:
        return dict(self.used)


class Play:
    """The doors `ssh` and `phone`, what was told, and what knocks do."""

    def __init__(self, store: StepStore, wall: float = NOON, doors: Iterable[TotpDoor] = (SSH, PHONE)) -> None:
        self.store = store
        self.wall = wall
        self.told: list[str] = []
        self.matcher = Matcher(DOORS)
        self.steps = Steps(store, self.matcher, lambda text, bad: self.told.append(text))
        self.use(*doors)

    def use(self, *doors: TotpDoor) -> None:
        self.steps.use(doors, self.wall)
        self.work()

    def at(self, wall: float) -> None:
        """The clock says so; as the daemon does once a second."""
        self.wall = wall
        self.steps.tick(wall)
        self.work()

    def work(self) -> None:
        while self.steps.work(self.wall):
            pass

    def send(self, sequence: Sequence, src: bytes = SRC) -> list[Event]:
        while self.matcher.knockers:  # what was begun before is over
            self.matcher.expire(math.inf)
        packets = [Packet(self.wall, src, SRC, to.proto, at, to.port, SYN) for at, to in enumerate(sequence)]
        events = [event for packet in packets for event in self.receive(packet)]
        return [event for event in events if not isinstance(event, Nearing)]

    def receive(self, packet: Packet) -> list[Event]:
        """As the daemon does."""
        events = self.matcher.receive(packet)
        for event in events:
            if isinstance(event, Nearing):
                self.steps.reserve(event.derived, packet.src, self.wall)
        return events

    def knock(self, client: Client, off: int = 0, door: TotpDoor = SSH, src: bytes = SRC) -> str:
        """What becomes of the client's knocks of the step so many after the present one: "" where the door opens."""
        step = totp.step_at(self.wall, door.step) + off
        events = self.send(totp.sequence_of(door, client, step), src)
        spent = [event.code for event in events if isinstance(event, Spent)]
        granted = [event.grant for event in events if isinstance(event, Granted)]
        assert {grant.door for grant in granted} <= {code.door for code in spent}
        words = [self.steps.spend(code, src, self.wall) for code in spent if isinstance(code, Derived)]
        if granted:
            return words[0]
        # What the knocks begin at other doors and of other clients does not matter.
        refused = [event.reason for event in events if isinstance(event, Failed) and event.reason is not Reason.WRONG]
        return refused[-1] if refused else "nobody's"

    def planted(self, name: str = "ssh") -> set[tuple[str, int]]:
        """Which clients' steps, counted from the present one."""
        now = totp.step_at(self.wall, 30)
        return {(client, step // 30 - now) for door, client, step in self.matcher._derived if door == name}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Balky]:
    made = open_store(tmp_path / "state")
    assert isinstance(made, SQLiteStore)
    made.__class__ = Balky
    assert isinstance(made, Balky)
    yield made
    made.close()


def again(store: Balky, tmp_path: Path) -> SQLiteStore:
    """The state as another process finds it, with nothing written after a kill."""
    store.close()
    made = open_store(tmp_path / "state")
    assert isinstance(made, SQLiteStore)
    return made


# ---- what is planted


def test_three_steps_are_live_and_the_next_one_is_ready() -> None:
    play = Play(Remembered(), NOON + 10.0)
    assert play.planted() == {(name, off) for name in ("laptop", "tablet") for off in (-1, 0, 1, 2)}
    play.at(NOON + 30.0)  # the next step: what is over stays known for a moment
    assert play.planted() == {(name, off) for name in ("laptop", "tablet") for off in (-2, -1, 0, 1, 2)}
    play.at(NOON + 30.0 + LATE)
    assert play.planted() == {(name, off) for name in ("laptop", "tablet") for off in (-1, 0, 1, 2)}


def test_each_step_opens_in_its_time_and_in_no_other() -> None:
    """T19: the skew is bounded, whatever is planted."""
    for off, expected in ((-2, Reason.OUTSIDE), (-1, ""), (0, ""), (1, ""), (2, Reason.OUTSIDE), (3, "nobody's")):
        play = Play(Remembered(), NOON)
        assert play.knock(LAPTOP, off) == expected, off
        assert play.knock(TABLET, off, src=OTHER) == expected, off


def test_t18_what_was_said_before_its_time_is_on_record_as_used(store: Balky, tmp_path: Path) -> None:
    """T18: from wherever, and after a restart; and its client is none that waits for a clock."""
    play = Play(store)
    assert play.knock(LAPTOP, 2) == Reason.OUTSIDE
    play.at(NOON + 30.0)
    assert play.knock(LAPTOP, 1, src=OTHER) == Reason.REPLAYED
    reopened = Play(again(store, tmp_path), NOON + 30.0)
    assert reopened.knock(LAPTOP, 1, src=OTHER) == Reason.REPLAYED
    assert reopened.knock(TABLET, 1) == ""
    assert reopened.steps.troubles == []
    reopened.at(NOON + 60.0)
    assert reopened.knock(LAPTOP, 1) == ""
    assert isinstance(reopened.store, SQLiteStore)
    reopened.store.close()


@pytest.mark.parametrize("door", [SSH, PHONE], ids=["totp", "code"])
def test_t18_t19_both_clients_get_in_once(door: TotpDoor) -> None:
    """T18, T19: each client's step opens once, and no other client's use touches it."""
    play = Play(Remembered(), doors=[SSH, PHONE])
    for client in door.clients:
        assert play.knock(client, door=door) == ""
    for client in door.clients:
        assert play.knock(client, door=door, src=OTHER) == Reason.REPLAYED
        assert play.knock(client, 1, door, OTHER) == ""


def test_turning_is_done_in_slices_while_knocks_come() -> None:
    """Planting a hundred clients' steps: what is planted by then opens, and no slice takes long."""
    clients = tuple(Client(f"c{number}", bytes([number]) * 32) for number in range(200))
    play = Play(Remembered(), doors=[TotpDoor("ssh", "gate", POOL, clients=clients)])
    door = TotpDoor("ssh", "gate", POOL, clients=clients)
    play.wall = NOON + 30.0
    play.steps.tick(play.wall)
    slices = 1
    while play.steps.work(play.wall):
        slices += 1
        assert play.knock(clients[slices], door=door) == ""
    assert slices > 0.0005 * 200 / SLICE / 100
    assert play.planted() >= {(client.name, off) for client in clients for off in (-1, 0, 1, 2)}


def test_a_thousand_clients_take_little_memory_and_a_packet_looks_at_one_step() -> None:
    """T13: four steps of each are planted; whatever their number, a port has one step that it may begin with."""
    clients = tuple(Client(f"c{number}", number.to_bytes(32, "big")) for number in range(1_000))
    tracemalloc.start()
    try:
        play = Play(Remembered(), NOON + 10.0, [TotpDoor("ssh", "gate", POOL, clients=clients), PHONE])
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(play.planted()) == 4_000
    assert taken < 16 * 2**20
    assert all(len(steps) == 1 for ports in play.matcher._firsts.values() for steps in ports.values())


# ---- the store


def test_t18_t20_a_use_is_durable_before_anything_opens(store: Balky, tmp_path: Path) -> None:
    """T18, T20: the next process, after a kill just behind spend(), knows it; so does who reads the file meanwhile."""
    play = Play(store)
    assert play.knock(LAPTOP) == ""
    database = sqlite3.connect(f"file:{tmp_path}/state/logknock.db?mode=ro", uri=True)
    assert len(database.execute("SELECT * FROM steps").fetchall()) == 1
    database.close()
    reopened = Play(again(store, tmp_path))
    assert reopened.knock(LAPTOP, src=OTHER) == Reason.REPLAYED
    assert reopened.knock(TABLET) == ""
    assert reopened.knock(LAPTOP, 1) == ""
    assert reopened.steps.last["ssh", "laptop"] == NOON + 30
    assert isinstance(reopened.store, SQLiteStore)
    reopened.store.close()


def test_t20_a_use_is_on_record_one_knock_early_and_a_lost_last_knock_costs_nothing(
    store: Balky, tmp_path: Path
) -> None:
    play = Play(store)
    sequence = totp.sequence_of(SSH, LAPTOP, totp.step_at(NOON, 30))
    play.send(sequence[:-2])
    assert store.steps() == {}
    play.send(sequence[:-1])  # and the last one is lost
    assert store.steps() == {("ssh", "laptop"): int(NOON)}
    store.balks = True  # whatever is with the disk from here on, nobody waits for it
    assert play.knock(LAPTOP) == ""
    store.balks = False
    assert play.knock(LAPTOP) == Reason.REPLAYED


def test_t20_what_was_reserved_before_a_crash_is_used_up_after_it(store: Balky, tmp_path: Path) -> None:
    Play(store).send(totp.sequence_of(SSH, LAPTOP, totp.step_at(NOON, 30))[:-1])
    after = Play(again(store, tmp_path))
    assert after.knock(LAPTOP) == Reason.REPLAYED
    assert after.knock(LAPTOP, 1) == ""
    after.store.close()  # type: ignore[attr-defined]


def test_only_what_would_open_is_put_on_record_early(store: Balky) -> None:
    play = Play(store)
    assert play.knock(LAPTOP) == ""
    step = totp.step_at(NOON, 30)
    for off in (-1, 0, 2):  # used up, and not yet
        play.send(totp.sequence_of(SSH, LAPTOP, step + off)[:-1])
    play.send(totp.sequence_of(SSH, TABLET, step)[:-2])
    assert store.steps() == {("ssh", "laptop"): int(NOON)}


def test_t18_what_the_store_says_was_used_counts_whatever_the_matcher_says(store: Balky) -> None:
    play = Play(store)
    store.use_step("ssh", "laptop", int(NOON), SRC, NOON)
    assert play.knock(LAPTOP) == "its sequence was used before"


def test_a_use_that_cannot_be_put_on_record_opens_nothing(store: Balky) -> None:
    """T20: and neither does the same sequence afterwards; the next one does."""
    play = Play(store)
    store.balks = True
    assert play.knock(LAPTOP) == "its use cannot be put on record: the disk is gone (hint: put it back)"
    store.balks = False
    assert play.knock(LAPTOP) == Reason.REPLAYED
    assert play.knock(LAPTOP, 1) == ""


def test_a_store_that_cannot_be_read_leaves_the_doors_shut_and_is_told_once(store: Balky) -> None:
    store.balks = True
    play = Play(store)
    for second in range(40):
        play.at(NOON + second)
    assert play.knock(LAPTOP) == "nobody's"
    assert play.told == ["ssh, phone: open nothing, since nobody knows what was used: the disk is gone"]
    assert play.steps.troubles == ["ssh, phone: the disk is gone"]
    store.balks = False
    play.at(NOON + 40.0)
    assert play.knock(LAPTOP) == ""
    assert play.steps.troubles == []


def test_t20_without_a_store_nothing_opens() -> None:
    play = Play(NoStore(StoreError("the file is damaged", "put a copy back")))
    play.at(NOON + 30.0)
    assert play.knock(LAPTOP) == play.knock(LAPTOP, door=PHONE) == "nobody's"
    assert len(play.told) == 1
    assert "the file is damaged" in play.steps.troubles[0]


# ---- a clock that steps


def test_t19_a_clock_that_steps_back_an_hour_and_forth_reopens_nothing(store: Balky, tmp_path: Path) -> None:
    """T19: and locks nobody out who knocks by the right time."""
    play = Play(store)
    assert play.knock(LAPTOP) == ""
    play.at(NOON - 3600.0)
    assert play.knock(LAPTOP, 120) == "nobody's"  # what was heard an hour "later"
    assert play.knock(LAPTOP) == Reason.REPLAYED  # of an hour that it had already
    assert play.knock(TABLET) == ""
    play.at(NOON + 10.0)
    assert play.knock(LAPTOP, src=OTHER) == Reason.REPLAYED
    assert play.knock(TABLET) == ""
    play.at(NOON + 40.0)
    assert play.knock(LAPTOP) == ""
    assert play.knock(LAPTOP, src=OTHER) == Reason.REPLAYED


def test_who_used_a_step_that_is_still_to_come_is_named(store: Balky) -> None:
    """The host's clock was an hour ahead, and the client's too."""
    play = Play(store, NOON + 3600.0)
    assert play.knock(LAPTOP) == ""
    play.at(NOON)
    (told,) = play.told
    assert told.startswith("ssh: client laptop opens nothing before ")
    assert "it has used steps that are still to come (hint: set the clock right" in told
    assert len(play.steps.troubles) == 1
    for second in range(90):
        play.at(NOON + second)
    assert play.told == [told]
    play.at(NOON + 3600.0)
    assert play.steps.troubles == []
    assert play.knock(LAPTOP, 1) == ""


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(-200, 200), st.sampled_from([0, 0, 30, 3600, -3600])),
            st.sampled_from([LAPTOP, TABLET]),
            st.integers(-4, 4),
            st.booleans(),
        ),
        max_size=15,
    )
)
def test_t18_t19_whatever_the_clock_does_no_sequence_opens_twice(
    knocks: list[tuple[int, Client, int, bool]],
) -> None:
    """T18, T19: with restarts in between: what was knocked once, and heard, opens nothing ever again."""
    play = Play(Remembered())
    heard: set[tuple[str, int]] = set()
    for by, client, off, restart in knocks:
        play.at(play.wall + by)
        if restart:
            play = Play(play.store, play.wall)
        step = totp.step_at(play.wall, 30) + off
        opened = play.knock(client, off) == ""
        assert not opened or ((client.name, step) not in heard and abs(off) <= 1)
        if opened:
            heard.add((client.name, step))
    for name, step in heard:
        client = {"laptop": LAPTOP, "tablet": TABLET}[name]
        play.at(step * 30.0)
        assert play.knock(client, src=OTHER) == Reason.REPLAYED


# ---- reload


def test_what_is_revoked_between_the_knock_and_the_record_opens_nothing() -> None:
    play = Play(Remembered())
    code = play.matcher._derived["ssh", "laptop", int(NOON)]
    play.use(changed(clients=(TABLET,)))
    assert play.steps.spend(code, SRC, NOON) == "its sequence counts no more"
    assert play.store.steps() == {}


def test_t36_a_reload_keeps_what_was_used_and_who_is_on_the_way() -> None:
    play = Play(Remembered())
    assert play.knock(LAPTOP) == ""
    play.matcher.expire(1e12)
    first, *rest = totp.sequence_of(SSH, TABLET, totp.step_at(NOON, 30))
    play.matcher.receive(Packet(NOON, SRC, SRC, first.proto, 1, first.port, SYN))
    play.matcher.set_doors(DOORS)
    play.steps.use([SSH, PHONE], NOON)
    packets = [Packet(NOON, SRC, SRC, to.proto, 2 + at, to.port, SYN) for at, to in enumerate(rest)]
    events = [event for packet in packets for event in play.matcher.receive(packet)]
    assert any(isinstance(event, Spent) for event in events)
    play.work()
    assert play.knock(LAPTOP) == Reason.REPLAYED
    assert play.knock(LAPTOP, 1) == ""


def changed(**settings: object) -> TotpDoor:
    values = {name: getattr(SSH, name) for name in ("door", "host", "services", "length", "step", "skew", "clients")}
    return TotpDoor(**values | settings)


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(changed(clients=(TABLET,)), id="revoked"),
        pytest.param(changed(clients=(Client("laptop", b"n" * 32), TABLET)), id="another secret"),
        pytest.param(changed(host="gate2.example"), id="another host"),
        pytest.param(changed(length=5), id="another length"),
        pytest.param(changed(services=POOL[::-1]), id="other ports"),
    ],
)
def test_after_a_reload_old_sequences_open_nothing_at_once(after: TotpDoor) -> None:
    """Before the first slice of work."""
    play = Play(Remembered())
    play.matcher.set_doors(DOORS)
    play.steps.use([after], NOON)
    assert play.knock(LAPTOP) == "nobody's"
    play.work()
    assert play.knock(LAPTOP) == "nobody's"
    assert play.knock(TABLET, door=after) == ""
    assert {door for door, _, _ in play.matcher._derived} == {"ssh"}


def test_a_client_that_comes_back_has_used_what_it_had_used() -> None:
    """T18: revoked and enrolled again with the same secret."""
    play = Play(Remembered())
    assert play.knock(LAPTOP) == ""
    play.use(changed(clients=(TABLET,)))
    play.use(SSH)
    assert play.knock(LAPTOP) == Reason.REPLAYED
    assert play.knock(LAPTOP, 1) == ""


def test_t18_a_door_that_goes_and_comes_back_has_forgotten_no_use() -> None:
    """T18: as its replay, and not as one that is spent anew and then refused by the store."""
    play = Play(Remembered())
    assert play.knock(LAPTOP) == ""
    for doors, derived in ((DOORS[1:], (PHONE,)), (DOORS, (SSH, PHONE))):
        play.matcher.set_doors(doors)
        play.use(*derived)
    assert play.knock(LAPTOP, src=OTHER) == Reason.REPLAYED
    assert play.knock(LAPTOP, 1) == ""


@pytest.mark.parametrize("seconds", [10, 60, 300])
def test_steps_of_another_length_neither_lock_anybody_out_nor_bring_anything_back(seconds: int) -> None:
    """T18: as numbers they are others; what counts is when they were."""
    play = Play(Remembered(), NOON + 40.0)
    assert play.knock(LAPTOP) == ""
    heard = totp.sequence_of(SSH, LAPTOP, totp.step_at(play.wall, 30))
    after = changed(step=seconds)
    play.use(after)
    assert not any(isinstance(event, Spent) for event in play.send(heard, OTHER))
    assert play.knock(TABLET, door=after) == ""
    assert play.steps.troubles == []
    play.at(play.wall + seconds)
    assert play.knock(LAPTOP, door=after) == ""
    assert play.knock(LAPTOP, door=after, src=OTHER) == Reason.REPLAYED
    play.use(SSH)
    assert play.knock(LAPTOP, -1) in (Reason.REPLAYED, "")
    play.at(play.wall + seconds)
    assert play.knock(LAPTOP) == ""
    assert Play(play.store, play.wall).knock(LAPTOP, src=OTHER) == Reason.REPLAYED


def test_doors_that_are_gone_leave_nothing_behind() -> None:
    play = Play(Remembered())
    play.use()
    assert not play.matcher._derived
    assert not any(play.matcher._firsts.values())
    assert not play.steps.work(NOON)


# ---- explaining


def diagnosed(play: Play, client: Client, off: int, door: TotpDoor = SSH, noise: int = 0) -> list[str]:
    sequence = totp.sequence_of(door, client, totp.step_at(play.wall, 30) + off)
    ports = [*(Service(TCP, 1 + number) for number in range(noise)), *sequence[:1], *sequence, Service(TCP, 22)]
    packets = [Packet(play.wall + 0.1 * at, SRC, SRC, to.proto, 7, to.port, SYN) for at, to in enumerate(ports)]
    return [words for words in play.steps.diagnose(packets, play.wall + 60.0) if words is not None]


@pytest.mark.parametrize(
    ("off", "words"),
    [
        (-14, "client laptop's knocks at ssh, but its clock is 7 minutes behind this host's"),
        (-2, "client laptop's knocks at ssh, but its clock is 60 seconds behind this host's"),
        (2, "client laptop's knocks at ssh, but its clock is 60 seconds ahead of this host's"),
        (FAR // 30, "client laptop's knocks at ssh, but its clock is 60 minutes ahead of this host's"),
        (1, "client laptop's knocks at ssh, of the right time"),
        (FAR // 30 + 1, None),
    ],
)
def test_a_clock_that_is_off_is_diagnosed_by_name(off: int, words: str | None) -> None:
    play = Play(Remembered())
    assert diagnosed(play, LAPTOP, off, noise=50) == ([words] if words else [])


def test_a_codes_clock_is_diagnosed_too() -> None:
    play = Play(Remembered())
    words = "client laptop's knocks at phone, but its clock is 10 minutes behind this host's"
    assert words in diagnosed(play, LAPTOP, -20, PHONE)


def test_a_step_that_is_used_up_is_diagnosed() -> None:
    play = Play(Remembered())
    assert play.knock(LAPTOP) == ""
    assert diagnosed(play, LAPTOP, 0) == ["client laptop's knocks at ssh, of a step that is used up"]
    assert diagnosed(play, LAPTOP, -1) == ["client laptop's knocks at ssh, of a step that is used up"]


def test_of_the_knocks_that_opened_the_door_nothing_is_said() -> None:
    """They are no puzzle; the same ones from elsewhere are."""
    play = Play(Remembered())
    play.knock(LAPTOP)
    sequence = totp.sequence_of(SSH, LAPTOP, totp.step_at(NOON, 30))
    for src, words in ((SRC, []), (OTHER, ["client laptop's knocks at ssh, of a step that is used up"])):
        packets = [Packet(NOON - 1.0, src, SRC, to.proto, at, to.port, SYN) for at, to in enumerate(sequence)]
        assert [words for words in play.steps.diagnose(packets, NOON + 60.0) if words is not None] == words


def test_why_a_door_opens_nothing_for_anybody_is_diagnosed(store: Balky) -> None:
    store.balks = True
    play = Play(store)
    words = "client laptop's knocks at ssh, but ssh opens nothing: the disk is gone"
    assert diagnosed(play, LAPTOP, 0) == [words]


def test_to_diagnose_nothing_costs_nothing_and_much_has_its_pauses() -> None:
    play = Play(Remembered())
    assert list(play.steps.diagnose([], NOON)) == []
    noise = [Packet(NOON, SRC, SRC, TCP, port, port, SYN) for port in (*range(20_000, 20_200), *range(21_000, 21_200))]
    found = list(play.steps.diagnose(noise, NOON))
    assert found.count(None) > 3 * 2 * FAR // 30 // 128
    assert not [words for words in found if words]
