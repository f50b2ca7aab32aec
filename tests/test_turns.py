"""Whose turn it is in files of one-time sequences, with real files and a real store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from logknock.knock import Code, Door, Sequence, Service
from logknock.onetime import Place
from logknock.packet import TCP
from logknock.store import SQLiteStore, StoreError, open_store
from logknock.turns import FEW, Turns

SRC = bytes((198, 51, 100, 1))
LINES = [f" {port},{port + 1000},{port + 2000}" for port in range(7001, 7005)]


def sequence(number: int) -> Sequence:
    return tuple(Service(TCP, port) for port in (7000 + number, 8000 + number, 9000 + number))


class Balky(SQLiteStore):
    """The real store, which at times cannot be read."""

    balks = False

    def was_used(self, door: str, sequence: Sequence) -> bool:
        if self.balks:
            raise StoreError("the disk is gone")
        return super().was_used(door, sequence)


class Play:
    """The files' turns at the door `ssh`, what was planted last for each file, and what was told."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        store = open_store(folder / "state")
        assert isinstance(store, SQLiteStore)
        store.__class__ = Balky
        assert isinstance(store, Balky)
        self.store = store
        self.now: dict[str, Sequence | None] = {}
        self.told: list[str] = []
        self.turns = Turns(store, self._plant, lambda text, bad: self.told.append(text))
        self.door = Door("ssh", (), onetime=tuple(str(folder / name) for name in names or ("one",)))

    def _plant(self, door: str, file: str, sequence: Sequence | None) -> None:
        self.now[Path(file).name] = sequence

    def write(self, *lines: str, name: str = "one") -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        path.chmod(0o600)

    def begin(self) -> None:
        self.turns.use([self.door])
        self.work()

    def look(self) -> None:
        """As the daemon does once a second."""
        self.turns.look()
        self.work()

    def work(self) -> None:
        while self.turns.work():
            pass

    def spend(self, number: int, name: str = "one") -> str:
        return self.turns.spend(Code("ssh", str(self.folder / name), sequence(number)), SRC, 1.0)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    made = Play(tmp_path)
    made.write(*LINES)
    yield made
    made.store.close()


def test_t18_only_the_one_whose_turn_it_is_can_be_spent(play: Play) -> None:
    """T18: whatever the matcher says."""
    play.begin()
    assert play.spend(2) == "its one-time sequence counts no more"
    assert play.spend(1) == ""
    assert play.spend(1) == "its one-time sequence counts no more"
    play.work()
    assert play.now == {"one": sequence(2)}


def test_t18_a_sequence_in_two_files_works_once(tmp_path: Path) -> None:
    play = Play(tmp_path, "one", "two")
    play.write(LINES[0], LINES[1])
    play.write(LINES[0], LINES[2], name="two")
    play.begin()
    assert play.now == {"one": sequence(1), "two": sequence(1)}
    assert play.spend(1) == ""
    assert play.spend(1, "two") == "its one-time sequence was used before"
    play.work()
    assert play.now == {"one": sequence(2), "two": sequence(3)}
    play.store.close()


def test_what_the_store_cannot_tell_for_a_while_is_asked_again(play: Play) -> None:
    """The door is shut meanwhile, and it is told once."""
    play.store.balks = True
    play.begin()
    play.look()
    play.look()
    assert play.now == {"one": None}
    assert play.told == ["ssh: the disk is gone"]
    play.store.balks = False
    play.look()
    assert play.now == {"one": sequence(1)}


def test_where_an_edited_file_goes_on_is_remembered(play: Play) -> None:
    """Also if nobody knocks before the restart."""
    play.begin()
    play.spend(1)
    play.work()
    play.write("# a long comment, so that no line is where it was", *LINES)
    play.look()
    assert play.store.place("ssh", str(play.folder / "one")) == Place(2, 66, sequence(1))
    assert play.now == {"one": sequence(2)}


def test_a_file_that_is_seen_half_written_goes_on_where_it_was(play: Play) -> None:
    """Truncated and written anew in place: what is seen meanwhile is nothing, or its beginning."""
    play.begin()
    play.spend(1)
    play.work()
    for lines in ([], ["# new", " 1,2,3"], ["# new", " 1,2,3", *LINES]):
        play.write(*lines)
        play.look()
    assert play.now == {"one": sequence(2)}


def test_a_use_does_not_put_off_what_a_change_has_made_necessary(play: Play) -> None:
    """Lines come in front and behind, and the next knock is there before they were looked at."""
    play.begin()
    play.write(" 1,2,3", *LINES, " 4,5,6")
    play.turns.look()
    assert play.spend(1) == ""
    play.work()
    assert play.now == {"one": sequence(2)}
    assert play.told[-1].endswith(": 4 one-time sequences left (hint: give the client a new file in time)")


def test_used_sequences_in_a_new_file_are_passed_over(play: Play) -> None:
    play.begin()
    for number in (1, 2):
        assert play.spend(number) == ""
        play.work()
    play.write(LINES[0], LINES[3])
    play.look()
    assert play.now == {"one": sequence(4)}
    assert "ssh: " + str(play.folder / "one") + ": passed over a sequence that was used before" in play.told


def test_the_count_is_right_through_uses_and_new_lines(tmp_path: Path) -> None:
    """Told with each use; a warning when they are few."""
    play = Play(tmp_path)
    play.write(*(f" {7000 + number},{8000 + number},{9000 + number}" for number in range(1, FEW + 3)))
    play.begin()
    for number in range(1, FEW + 3):
        assert play.spend(number) == ""
        play.work()
    left = [line.partition(": ")[2].partition(": ")[2] for line in play.told if "left" in line]
    assert left[:2] == [
        f"{FEW + 1} one-time sequences left",
        f"{FEW} one-time sequences left (hint: give the client a new file in time)",
    ]
    assert left[-1].startswith("1 one-time sequence left")
    assert play.told[-1].endswith("is used up: it opens nothing (hint: give the client a new file)")
    with (tmp_path / "one").open("a") as file:
        file.write(f"{LINES[0]}\n 1,2,3\n")
    play.look()
    assert play.now == {"one": (Service(TCP, 1), Service(TCP, 2), Service(TCP, 3))}
    assert "1 one-time sequence left" in play.told[-1]
    play.store.close()


def test_a_file_that_is_no_more_the_doors_is_let_go(play: Play) -> None:
    play.begin()
    play.turns.use([])
    assert play.spend(1) == "its one-time sequence counts no more"
    assert not play.turns.work()
