"""Files of one-time sequences: read a piece at a time, and exactly what parse_line says of them line by line."""

import errno
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock import onetime_files
from logknock.errors import BAD_CONFIG, FAILURE, NO_PERMISSION
from logknock.knock import Door, Sequence, Service
from logknock.onetime import MAX_LINE, Place, parse_line
from logknock.onetime_files import (
    CHUNK,
    FEW_LINES,
    GROUP,
    Found,
    OnetimeError,
    Survey,
    Turn,
    find_next,
    fits,
    knocked_in,
    named_twice,
    next_turn,
    survey,
    write_new,
)
from logknock.packet import TCP, UDP

NOBODY = 65534
SMALLEST_CHUNK = MAX_LINE + 2


def write(folder: Path, data: bytes, name: str = "alice") -> Path:
    """A file that only its owner can read."""
    path = folder / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def seq(*ports: int) -> Sequence:
    return tuple(Service(TCP, port) for port in ports)


def last(path: Path, place: Place = Place(), look_for: Sequence = ()) -> Survey:  # noqa: B008
    """The complete survey."""
    *_, complete = survey(path, place, look_for)
    return complete


def walk(path: Path) -> tuple[list[Found], Found]:
    """All that find_next finds, going on from place to place, and its last word."""
    found: list[Found] = []
    place = Place()
    while True:
        this = find_next(path, place)
        place = this.place
        if this.sequence is not None:
            found.append(this)
        elif this.ended:
            return found, this


# ---- the same as line by line

WORDS = st.sampled_from(
    [
        b"1",
        b"2",
        b" 3",
        b"4:udp",
        b"4:UDP",
        b"5/tcp ",
        b"65535",
        b"007",
        b"10",
        b"a",
        b"",
        b"0",
        b"65536",
        b"12x",
        b"-5",
    ]
)
GOOD_WORDS = st.sampled_from([b"1", b"2", b" 3", b"4:udp", b"5/tcp ", b"\t6"])
LINES = st.one_of(
    st.lists(GOOD_WORDS, min_size=1, max_size=4).map(b",".join),
    st.lists(GOOD_WORDS, min_size=1, max_size=4).map(b",".join),
    st.lists(WORDS, min_size=1, max_size=4).map(b",".join),
    st.lists(GOOD_WORDS, min_size=31, max_size=34).map(b",".join),
    st.sampled_from([b"", b" ", b"# a comment", b"#1,2", b"\xff\0", b"1" * 17, b" " * 20 + b"9"]),
    st.sampled_from([MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE]).flatmap(
        lambda length: st.sampled_from(
            [b"1".rjust(length), b"#".ljust(length, b"x"), b"1,".ljust(length, b"1"), b" " * length]
        )
    ),
)
FILES = st.builds(
    lambda lines, ends, final: b"".join(
        line + end for line, end in zip(lines, [*ends[: len(lines) - 1], final], strict=False)
    ),
    st.lists(LINES, max_size=12),
    st.lists(st.sampled_from([b"\n", b"\n", b"\r\n"]), min_size=12, max_size=12),
    st.sampled_from([b"\n", b"", b"\r\n", b"\r"]),
)


class Model:
    """What a file says, found the simplest way there is."""

    def __init__(self, data: bytes) -> None:
        self.sequences: list[tuple[Sequence, Place]] = []
        self.malformed: list[str] = []
        offset = 0
        for number, line in enumerate(lines_of(data), start=1):
            offset += len(line)
            try:
                sequence = parse_line(line)
            except ValueError as error:
                self.malformed.append(f"line {number}: {error}")
                continue
            if sequence is not None:
                self.sequences.append((sequence, Place(number, offset, sequence)))


def lines_of(data: bytes) -> list[bytes]:
    """Lines with their newlines."""
    whole = data.split(b"\n")
    return [line + b"\n" for line in whole[:-1]] + ([whole[-1]] if whole[-1] else [])


@contextmanager
def read_in(chunk: int, group: int, few: int) -> Iterator[None]:
    """Read so many bytes at a time, and look at so many lines: borders come to lie anywhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onetime_files, "CHUNK", chunk)
        patched.setattr(onetime_files, "GROUP", group)
        patched.setattr(onetime_files, "FEW_LINES", few)
        yield


@contextmanager
def filed(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield write(Path(folder), data)


CHUNKS = st.integers(SMALLEST_CHUNK, SMALLEST_CHUNK + 60) | st.just(CHUNK)


@settings(max_examples=300, deadline=None)
@given(FILES, CHUNKS, st.sampled_from([1, 2, 3, GROUP]), st.sampled_from([1, 2, 256]), st.integers(0, 5000))
def test_what_is_found_is_what_each_line_says(data: bytes, chunk: int, group: int, few: int, padding: int) -> None:
    """Junk, CRLF, lines too long, no newline at the end, borders of chunks anywhere: all the same."""
    data = b"#" * (padding % 4000) + b"\n" + data
    model = Model(data)
    with filed(data) as path, read_in(chunk, group, few):
        found, end = walk(path)
        assert [(this.sequence, this.place) for this in found] == model.sequences
        assert sum(len(this.problems) for this in [*found, end]) <= len(model.malformed)
        complete = last(path)
        assert complete.sequences == len(model.sequences)
        assert complete.services == {service for sequence, _ in model.sequences for service in sequence}
        assert complete.shortest == min((len(sequence) for sequence, _ in model.sequences), default=0)
        assert complete.malformed == len(model.malformed)
        assert list(complete.problems) == model.malformed[: onetime_files.MAX_PROBLEMS]


@settings(max_examples=150, deadline=None)
@given(FILES, CHUNKS, st.sampled_from([1, 2, 3, GROUP]), st.data())
def test_after_each_place_stands_what_comes_later(data: bytes, chunk: int, group: int, choice: st.DataObject) -> None:
    """Each place fits, as many sequences stand after it, and its sequence is found where it stands last."""
    model = Model(data)
    if not model.sequences:
        return
    at = choice.draw(st.integers(0, len(model.sequences) - 1))
    sequence, place = model.sequences[at]
    with filed(data) as path, read_in(chunk, group, 256):
        assert fits(path, place)
        complete = last(path, place, sequence)
    assert complete.sequences == len(model.sequences) - at - 1
    assert complete.services == {service for after, _ in model.sequences[at + 1 :] for service in after}
    assert complete.found == [where for one, where in model.sequences if one == sequence][-1]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400), CHUNKS)
def test_any_file_and_any_place_end_in_an_answer(data: bytes, offset: int, chunk: int) -> None:
    """Whatever somebody made of a file since."""
    place = Place(3, offset, seq(1, 2))
    with filed(data) as path, read_in(chunk, GROUP, 256):
        assert find_next(path, place).place.offset >= offset
        assert last(path, place, seq(1)).malformed >= 0
        fits(path, place)


# ---- places

THREE = b"# mine\n 1,2,3\n 4,5,6\n 7,8,9\n"


def test_sequences_come_in_order_and_then_the_end(tmp_path: Path) -> None:
    path = write(tmp_path, THREE)
    found, end = walk(path)
    assert [this.sequence for this in found] == [seq(1, 2, 3), seq(4, 5, 6), seq(7, 8, 9)]
    assert [this.place for this in found] == [
        Place(2, 14, seq(1, 2, 3)),
        Place(3, 21, seq(4, 5, 6)),
        Place(4, 28, seq(7, 8, 9)),
    ]
    assert end == Found(None, Place(4, 28, seq(7, 8, 9)), ended=True, problems=())


def test_sequences_that_are_added_are_found_from_the_old_place(tmp_path: Path) -> None:
    path = write(tmp_path, THREE)
    end = walk(path)[1].place
    with path.open("ab") as file:
        file.write(b" 10,11,12\n")
    assert fits(path, end)
    assert find_next(path, end).sequence == seq(10, 11, 12)


@pytest.mark.parametrize("added", [b"\n4,5,6\n", b"\r\n4,5,6"])
def test_what_is_added_behind_a_last_line_without_newline(tmp_path: Path, added: bytes) -> None:
    """The line counted before; its newline comes late, and is no line of its own."""
    path = write(tmp_path, b"1,2,3")
    place = find_next(path, Place()).place
    assert place == Place(1, 5, seq(1, 2, 3))
    with path.open("ab") as file:
        file.write(added)
    assert fits(path, place)
    assert find_next(path, place).place == Place(2, path.stat().st_size, seq(4, 5, 6))


def test_a_last_line_that_was_only_half_written_fits_no_more(tmp_path: Path) -> None:
    path = write(tmp_path, b"1,2,3")
    place = find_next(path, Place()).place
    with path.open("ab") as file:
        file.write(b"0,4\n5,6,7\n")
    assert not fits(path, place)
    assert find_next(path, place).sequence == seq(5, 6, 7)


@pytest.mark.parametrize(
    "edited",
    [
        pytest.param(b" 1,2,3\n 4,5,6\n 7,8,9\n", id="a line before it is gone"),
        pytest.param(b"# mine indeed\n 1,2,3\n 4,5,6\n 7,8,9\n", id="a line before it is longer"),
        pytest.param(b"# mine..\n 1,2,3\n 4,5,6\n 7,8,9\n", id="the place is in the midst of the line"),
        pytest.param(b"# mine\n 1,2,3\n 4,5,7\n 7,8,9\n", id="the line itself is another"),
        pytest.param(b"# mine\n 1,2,3\n#4,5,6\n 7,8,9\n", id="the line is a comment now"),
        pytest.param(b"# mine\n 1,2,3\n", id="the line is gone"),
        pytest.param(b"", id="all is gone"),
        pytest.param(b"\n" * 40, id="only blank lines"),
        pytest.param(b"x" * 40, id="one long line"),
    ],
)
def test_an_edited_file_does_not_fit(tmp_path: Path, edited: bytes) -> None:
    """T18: what was used is looked for, so that the daemon goes on behind it."""
    place = Place(3, 21, seq(4, 5, 6))
    assert fits(write(tmp_path, THREE), place)
    path = write(tmp_path, edited)
    assert not fits(path, place)
    found = last(path, place, place.last).found
    expected = [where for one, where in Model(edited).sequences if one == place.last]
    assert found == (expected[-1] if expected else None)


def test_nothing_used_fits_any_file(tmp_path: Path) -> None:
    assert fits(write(tmp_path, b""), Place())


def test_t18_of_a_sequence_that_stands_twice_the_last_one_counts(tmp_path: Path) -> None:
    """T18: going on behind the first would open the door a second time. However it is written there."""
    path = write(tmp_path, b"1,2\n3,4\n1 , 02/TCP\r\n5,6\n11,2\n1,2,3\n")
    complete = last(path, Place(), seq(1, 2))
    assert complete.found == Place(3, 20, seq(1, 2))
    assert find_next(path, complete.found).sequence == seq(5, 6)


def test_malformed_lines_are_passed_over_and_said(tmp_path: Path) -> None:
    """Knockd takes them silently, or stops at them."""
    path = write(tmp_path, b"# mine\nabc,5\n 1,2\n")
    found = find_next(path, Place())
    assert found.sequence == seq(1, 2)
    assert found.problems == ("line 2: 'abc' is no port number",)


def test_of_many_malformed_lines_the_first_few_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, b"x\n" * 20 + b"1,2\n")
    found = find_next(path, Place())
    assert found.sequence == seq(1, 2)
    assert found.problems[:1] == ("line 1: 'x' is no port number",)
    assert found.problems[-1] == "12 more malformed lines"
    assert len(found.problems) == 9


# ---- whose turn it is


@settings(max_examples=150, deadline=None)
@given(FILES, CHUNKS, st.sampled_from([1, 2, 3, GROUP]), st.data())
def test_t18_the_first_that_was_not_used_has_its_turn(
    data: bytes, chunk: int, group: int, choice: st.DataObject
) -> None:
    """T18: wherever the borders of chunks and slices lie; each answer before the last says nothing yet."""
    model = Model(data)
    start = choice.draw(st.sampled_from([Place(), *(place for _, place in model.sequences)]))
    later = [entry for entry in model.sequences if entry[1].offset > start.offset]
    used = choice.draw(st.sets(st.sampled_from([sequence for sequence, _ in later]))) if later else set()
    skipped = next((at for at, (sequence, _) in enumerate(later) if sequence not in used), len(later))
    with filed(data) as path, read_in(chunk, group, 256):
        *partial, turn = next_turn(path, start, used.__contains__)
    assert {part.sequence for part in partial} <= {None}
    place = later[skipped - 1][1] if skipped else start
    if skipped < len(later):
        assert turn == Turn(later[skipped][0], place, later[skipped][1], skipped)
    else:
        assert turn == Turn(None, place, Place(len(lines_of(data)), max(len(data), start.offset), place.last), skipped)


# ---- what it costs


def many(lines: int) -> bytes:
    """Sequences as generate() writes them."""
    random = Random(1)  # noqa: S311
    return b"".join(b" %d,%d:udp,%d\n" % tuple(random.sample(range(20000, 20100), 3)) for _ in range(lines))


def read_bytes() -> int:
    """What this process has read so far."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def test_a_look_reads_no_more_of_a_long_file_than_of_a_short_one(tmp_path: Path) -> None:
    """At the beginning, in the middle and at the end; 64 KiB and a little."""
    path = write(tmp_path, many(200_000))
    size = path.stat().st_size
    for offset in (0, size // 2, size - 40):
        before = read_bytes()
        found = find_next(path, Place(0, offset))
        assert found.sequence is not None
        assert fits(path, found.place)
        assert read_bytes() - before < CHUNK + 4 * MAX_LINE


@pytest.mark.parametrize("junk", [b"#\n", b"x\n", b"\n", b"\0", b"1,"])
def test_a_look_at_junk_is_bounded_and_goes_on(tmp_path: Path, junk: bytes) -> None:
    """256 KiB of comments, of malformed lines, of one line without an end: each call does a little of it."""
    path = write(tmp_path, junk * (2**18 // len(junk)) + b"\n1,2\n")
    place, calls = Place(), 0
    while (found := find_next(path, place)).sequence is None:
        assert not found.ended
        assert 0 < found.place.offset - place.offset <= CHUNK
        assert found.place.line - place.line <= FEW_LINES
        place, calls = found.place, calls + 1
    assert calls >= 4
    assert found.sequence == seq(1, 2)
    assert found.place.line == path.read_bytes().count(b"\n")


def test_t18_used_sequences_are_passed_over_in_slices_and_read_once(tmp_path: Path) -> None:
    """T18: after a file was put back from a copy its door is shut meanwhile: of 20,000 none is read twice."""
    path = write(tmp_path, many(20_000) + b"1,2,3\n")
    asked: list[Sequence] = []

    def was_used(sequence: Sequence) -> bool:
        asked.append(sequence)
        return sequence != seq(1, 2, 3)

    before, slices = read_bytes(), 0
    for turn in next_turn(path, Place(), was_used):  # noqa: B007  # the last one counts
        assert len(asked) <= GROUP
        asked.clear()
        slices += 1
    assert (turn.sequence, turn.skipped) == (seq(1, 2, 3), 20_000)
    assert slices < 20_000 // GROUP + 20
    assert read_bytes() - before < 1.1 * path.stat().st_size + CHUNK


@pytest.mark.parametrize("junk", [b"#\n", b"x\n", b"\n", b"\0", b"1,"])
def test_the_search_for_a_turn_goes_through_junk_in_slices(tmp_path: Path, junk: bytes) -> None:
    path = write(tmp_path, junk * (2**18 // len(junk)) + b"\n1,2\n")
    before = Place()
    for turn in next_turn(path, Place(), lambda _: False):
        assert turn.after.line - before.line <= GROUP
        assert turn.after.offset - before.offset <= CHUNK
        before = turn.after
    assert turn.sequence == seq(1, 2)


def test_a_survey_is_flat_in_memory_and_comes_in_slices(tmp_path: Path) -> None:
    """Of a file of 6 MB it never holds a twentieth, and no slice is more than sixteen groups of lines."""
    path = write(tmp_path, many(300_000))
    tracemalloc.start()
    before, slices = 0, 0
    for part in survey(path):
        assert part.sequences - before <= 16 * GROUP
        before, slices = part.sequences, slices + 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part.sequences == 300_000
    assert len(part.services) == 200
    assert slices > 100
    assert peak < path.stat().st_size / 10


@pytest.mark.parametrize("junk", [b"#\n", b"x\n", b"1,x\n", b"\0" * 100, b"7 ,7\n"])
def test_a_slice_of_junk_is_small(tmp_path: Path, junk: bytes) -> None:
    """Lines that are read one by one: as many as take a millisecond."""
    path = write(tmp_path, junk * 5000)
    before = 0
    for part in survey(path, look_for=seq(7, 8)):
        assert part.malformed - before <= 2 * GROUP
        before = part.malformed


def test_words_without_end_take_no_memory_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port can be written in many ways, and what is remembered of them has a bound."""
    path = write(tmp_path, b"".join(bytes(b" \t"[n >> bit & 1] for bit in range(14)) + b"1\n" for n in range(1 << 14)))
    peaks = []
    for most in (1000, 1 << 18):
        monkeypatch.setattr(onetime_files, "_MAX_WORDS", most)
        tracemalloc.start()
        complete = last(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (complete.sequences, set(complete.services)) == (1 << 14, {Service(TCP, 1)})
    assert peaks[0] < peaks[1] / 2


# ---- all that files knock on


def test_all_that_several_files_knock_on(tmp_path: Path) -> None:
    """Of a malformed line nothing counts, and it is said where it is."""
    first = write(tmp_path, b"1,2,1\n3,abc\n" + b"x\n" * 20)
    second = write(tmp_path, b"4:udp,2,1\n", "bob")
    knocked = knocked_in([first, second])
    assert knocked.services == {*seq(1, 2), Service(UDP, 4)}
    assert knocked.problems[:2] == (
        f"{first}: line 2: 'abc' is no port number",
        f"{first}: line 3: 'x' is no port number",
    )
    assert knocked.problems[-1] == f"{first}: 13 more malformed lines"


def test_no_files_knock_on_nothing() -> None:
    assert knocked_in([]) == (frozenset(), ())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "", id="an empty file"),
        pytest.param(b"# mine\n\n1,2,3\n4,5,6,7\n", "", id="three knocks and more"),
        pytest.param(b"1,2,3\n2,1\n", "two knocks in a sequence: a port scan opens the door by chance", id="T2: two"),
        pytest.param(b"1,2\n3\n", "a single knock in a sequence: any port scan opens the door", id="T1: one"),
        pytest.param(many(1000) + b"7\n" + many(1000), "a single knock in a sequence: any port", id="one among many"),
    ],
)
def test_t3_a_sequence_that_a_scan_opens_is_told(tmp_path: Path, data: bytes, words: str) -> None:
    """T3: whoever wrote the file by hand hears of it, as of a door's own sequence."""
    path = write(tmp_path, data)
    problems = knocked_in([path]).problems
    assert len(problems) == bool(words)
    assert all(problem.startswith(f"{path}: has {words}") for problem in problems)


def test_t18_a_file_with_two_names_or_two_doors_is_told(tmp_path: Path) -> None:
    """T18: what one door has used may still count at the other. Links of both kinds, and a way round."""
    path, other = write(tmp_path, THREE), write(tmp_path, THREE, "bob")
    (tmp_path / "soft").symlink_to("alice")
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "o").mkdir()
    names = [str(path), str(other), f"{tmp_path}/o/../alice", f"{tmp_path}/nowhere"]
    doors = [Door("a", (), onetime=tuple(names)), Door("b", (), onetime=(f"{tmp_path}/soft", f"{tmp_path}/hard"))]
    told = named_twice([*doors, Door("c", (), onetime=(str(other), f"{tmp_path}/nowhere"))])
    hint = "(hint: each client and each door has its own)"
    assert told == (
        f"{tmp_path}/o/../alice (door a): is the same file as {path} (door a) {hint}",
        f"{tmp_path}/soft (door b): is the same file as {path} (door a) {hint}",
        f"{tmp_path}/hard (door b): is the same file as {path} (door a) {hint}",
        f"{other} (door c): is the same file as {other} (door a) {hint}",
    )
    assert named_twice([Door("a", (), onetime=(str(path), str(other)))]) == ()


# ---- files that cannot be used


def refused(path: Path) -> OnetimeError:
    """The error, which is the same whoever looks at the file."""
    errors = []
    for look in (
        lambda: find_next(path, Place()),
        lambda: fits(path, Place(1, 5, seq(1))),
        lambda: last(path),
        lambda: knocked_in([path]),
    ):
        with pytest.raises(OnetimeError) as caught:
            look()
        errors.append((str(caught.value), caught.value.hint, caught.value.exit_code))
    assert len(set(errors)) == 1
    return caught.value


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path / "bob")
    assert error.report() == [
        f"logknock: {tmp_path}/bob: does not exist",
        f"hint: `logknock onetime generate {tmp_path}/bob` makes one",
    ]
    assert error.exit_code == BAD_CONFIG


def test_a_directory(tmp_path: Path) -> None:
    assert str(refused(tmp_path)) == f"{tmp_path}: is a directory"


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert str(refused(tmp_path / "fifo")) == f"{tmp_path}/fifo: is no regular file"


def test_a_device_is_no_file() -> None:
    assert str(refused(Path("/dev/zero"))) == "/dev/zero: is no regular file"


def test_a_file_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, THREE) / "bob"
    assert str(refused(path)) == f"{path}: cannot be read: {os.strerror(errno.ENOTDIR)}"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o604, "read by others"),
        (0o620, "written by its group"),
        (0o602, "written by others"),
        (0o666, "read by others and written by its group and written by others"),
    ],
)
def test_a_file_that_others_have_a_hand_in(tmp_path: Path, mode: int, words: str) -> None:
    path = write(tmp_path, THREE)
    path.chmod(mode)
    error = refused(path)
    assert str(error) == f"{path}: can be {words}, and it holds what to knock"
    assert error.hint == f"chmod g-w,o-rwx {path}"


def test_a_group_may_read_it(tmp_path: Path) -> None:
    path = write(tmp_path, THREE)
    path.chmod(0o640)
    assert find_next(path, Place()).sequence == seq(1, 2, 3)


def test_a_file_that_belongs_to_another_user(tmp_path: Path) -> None:
    path = write(tmp_path, THREE)
    os.chown(path, NOBODY, NOBODY)
    error = refused(path)
    assert str(error) == f"{path}: belongs to another user (uid {NOBODY})"
    assert error.hint == f"chown 0 {path}"


def test_a_name_that_is_no_text_is_shown_as_one_line(tmp_path: Path) -> None:
    assert str(refused(tmp_path / "a\n\x1b[1m")) == f"{tmp_path}/a\\n\\x1b[1m: does not exist"


AS_NOBODY = """
import os, sys
from pathlib import Path
from logknock.errors import LogknockError
from logknock.onetime_files import *
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try:
    find_next(Path(sys.argv[1]), Place())
except LogknockError as error:
    print(*error.report(), sep="\\n")
    sys.exit(error.exit_code)
"""


def test_a_file_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        path = write(Path(folder), THREE)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, path], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        f"logknock: {path}: cannot be read: permission denied",
        "hint: run this as root, or as the file's owner",
    ]
    assert done.returncode == NO_PERMISSION


# ---- a new file


def test_a_new_file_is_read_back_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "bob"
    made = [seq(1, 2, 3), (Service(UDP, 4), Service(TCP, 5)), seq(6)]
    write_new(path, made)
    assert [this.sequence for this in walk(path)[0]] == made
    assert last(path).malformed == 0
    assert path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(tmp_path) == ["bob"]


@pytest.mark.parametrize("there", ["file", "link", "directory"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, there: str) -> None:
    """A link that leads nowhere included; no sequence is asked for in vain."""
    path = tmp_path / "bob"
    if there == "file":
        path.write_text("mine")
    elif there == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()

    def never() -> Iterator[Sequence]:
        raise AssertionError("asked for a sequence")
        yield ()

    with pytest.raises(OnetimeError, match="is there already, and is never overwritten") as caught:
        write_new(path, never())
    assert caught.value.exit_code == FAILURE
    assert os.listdir(tmp_path) == ["bob"]
    assert there != "file" or path.read_text() == "mine"


def test_of_two_that_are_written_at_a_time_the_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "bob"

    def slow() -> Iterator[Sequence]:
        write_new(path, [seq(1)])
        yield seq(2)

    with pytest.raises(OnetimeError, match="is there already"):
        write_new(path, slow())
    assert find_next(path, Place()).sequence == seq(1)
    assert os.listdir(tmp_path) == ["bob"]


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    """Until it is whole nothing has its name; and nothing remains of one that was broken off."""

    def broken_off() -> Iterator[Sequence]:
        yield seq(1)
        assert "bob" not in os.listdir(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "bob", broken_off())
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OnetimeError, match="cannot be written: No such file or directory") as caught:
        write_new(tmp_path / "no" / "bob", [seq(1)])
    assert caught.value.hint == f"make the directory first: mkdir -m 700 {tmp_path}/no"
