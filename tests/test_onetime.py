"""What a line of a file of one-time sequences says, and what sequences are made. No file is read here."""

import re
from contextlib import suppress
from itertools import islice, pairwise, permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock.knock import Sequence, Service
from logknock.onetime import (
    MAX_LINE,
    MIN_POSSIBLE,
    WeakError,
    check_strength,
    count_possible,
    format_line,
    generate,
    parse_line,
    strength,
)
from logknock.packet import TCP, UDP

SERVICES = st.builds(Service, st.sampled_from((TCP, UDP)), st.integers(1, 65535))
SEQUENCES = st.lists(SERVICES, min_size=1, max_size=32).map(tuple)


def said(line: str | bytes) -> str | None:
    """What a line says, as one would write it on the command line."""
    sequence = parse_line(line if isinstance(line, bytes) else line.encode())
    return None if sequence is None else " ".join(map(str, sequence))


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        pytest.param("7000,8000,9000\n", "7000/tcp 8000/tcp 9000/tcp", id="a port alone is tcp"),
        pytest.param(" 7000:udp, 8000:tcp\n", "7000/udp 8000/tcp", id="knockd's own form, with its leading blank"),
        pytest.param("7000:UDP,8000:Tcp", "7000/udp 8000/tcp", id="case does not matter"),
        pytest.param("7000/udp,8000/TCP", "7000/udp 8000/tcp", id="a slash is understood too"),
        pytest.param("\t7000 ,\t8000:udp \t\n", "7000/tcp 8000/udp", id="blanks round the knocks"),
        pytest.param("7000,8000\r\n", "7000/tcp 8000/tcp", id="a line that Windows ended"),
        pytest.param("7000", "7000/tcp", id="one knock is a sequence"),
        pytest.param("1,65535", "1/tcp 65535/tcp", id="the lowest and the highest port"),
        pytest.param("7000,7000", "7000/tcp 7000/tcp", id="a port may be knocked on twice"),
        pytest.param(",".join(["1"] * 32), " ".join(["1/tcp"] * 32), id="32 knocks are the most"),
        pytest.param(" " * (MAX_LINE - 1) + "1\n", "1/tcp", id="the newline does not count as length"),
        pytest.param("", None, id="nothing at all"),
        pytest.param(" \t\r\n", None, id="a blank line"),
        pytest.param("# 7000,8000\n", None, id="a comment"),
        pytest.param("#7000,8000\n", None, id="a sequence that knockd has used"),
        pytest.param("  # 7000\n", None, id="a comment behind blanks"),
        pytest.param(b"# caf\xe9 \0\n", None, id="a comment may hold any bytes"),
    ],
)
def test_a_line_says(line: str | bytes, meaning: str | None) -> None:
    assert said(line) == meaning


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param("abc,8000", "'abc' is no port number", id="knockd takes abc as port 0"),
        pytest.param("12x", "'12x' is no port number", id="knockd takes 12x as port 12"),
        pytest.param("-5,8000", "'-5' is no port number", id="knockd takes -5 as port 65531"),
        pytest.param("+5", "'+5' is no port number", id="knockd takes +5 as port 5"),
        pytest.param("7000,8000,", "a port is missing", id="knockd takes a comma at the end as port 0"),
        pytest.param(",7000", "a port is missing", id="a comma at the beginning"),
        pytest.param("7000,,8000", "a port is missing", id="two commas"),
        pytest.param("0", "0 is no port (1-65535)", id="port 0"),
        pytest.param("65536", "65536 is no port (1-65535)", id="a port that is too high"),
        pytest.param("000007000", "000007000 is no port (1-65535)", id="more digits than a port has"),
        pytest.param("7000:sctp", "'7000:sctp': the protocol is tcp or udp, not 'sctp'", id="another protocol"),
        pytest.param("7000:", "the protocol is tcp or udp, not ''", id="a colon and no protocol"),
        pytest.param(":tcp", "':tcp': '' is no port number", id="a protocol and no port"),
        pytest.param("7000 8000", "'7000 8000' is no port number", id="a blank is no comma"),
        pytest.param("7000 :tcp", "'7000 ' is no port number", id="a blank inside a knock"),
        pytest.param("7000:tcp:udp", "not 'tcp:udp'", id="two protocols"),
        pytest.param("7000;8000", "'7000;8000' is no port number", id="another separator"),
        pytest.param("7000,8000 # mine", "'8000 # mine' is no port number", id="a comment behind a sequence"),
        pytest.param("\N{ARABIC-INDIC DIGIT SEVEN}000", "is no port number", id="another script's digits"),
        pytest.param(b"7\xff00", r"'7\\xff00' is no port number", id="no UTF-8"),
        pytest.param(b"7000\0,8000", r"'7000\x00' is no port number", id="a NUL byte"),
        pytest.param(b"\xef\xbb\xbf7000", "is no port number", id="a byte order mark"),
        pytest.param("7000\r8000", r"'7000\r8000' is no port number", id="a lone carriage return ends no line"),
        pytest.param(",".join(["1"] * 33), "33 knocks, and 32 are the most", id="33 knocks"),
        pytest.param("9" * 50, f"'{'9' * 40}'... is no port", id="what is long is not shown whole"),
        pytest.param(" " * MAX_LINE + "1", f"longer than {MAX_LINE} bytes", id="a line too long"),
        pytest.param("#" * (MAX_LINE + 1), f"longer than {MAX_LINE} bytes", id="a comment too long"),
    ],
)
def test_a_malformed_line_is_refused_in_words(line: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        parse_line(line if isinstance(line, bytes) else line.encode())
    assert str(caught.value).isprintable()


@given(st.binary(max_size=60) | st.text("0123456789,:/tcpudTCPUD# \t\r-x", max_size=60).map(str.encode))
def test_any_bytes_are_a_sequence_nothing_or_malformed(line: bytes) -> None:
    """Never another exception, and never a port that is none."""
    sequence: Sequence | None = None
    with suppress(ValueError):
        sequence = parse_line(line)
    if sequence is not None:
        assert 1 <= len(sequence) <= 32
        assert all(1 <= service.port <= 65535 and service.proto in (TCP, UDP) for service in sequence)


@given(SEQUENCES)
def test_what_is_written_is_read_back(sequence: Sequence) -> None:
    """A blank first, over which knockd would write its #."""
    line = format_line(sequence)
    assert parse_line(line) == sequence
    assert line.startswith(b" ")
    assert line.endswith(b"\n")
    assert len(line) < MAX_LINE


# ---- what is made


def tcp(first: int, count: int) -> list[Service]:
    return [Service(TCP, port) for port in range(first, first + count)]


def udp(first: int, count: int) -> list[Service]:
    return [Service(UDP, port) for port in range(first, first + count)]


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.integers(1, 4))
def test_how_many_sequences_are_possible(tcps: int, udps: int, shift: int, length: int) -> None:
    """As many as there are when each is written down."""
    services = tcp(1, tcps) + udp(1 + shift, udps)
    written = [chosen for chosen in permutations(services, length) if len({s.port for s in chosen}) == length]
    assert count_possible(services, length) == len(written)


POOLS = {
    "tcp": (tcp(1000, 70), 5),
    "both protocols on the same ports": (tcp(1000, 70) + udp(1000, 70), 5),
    "in part on the same ports": (tcp(1000, 40) + udp(1020, 40), 5),
    "many knocks on few ports": (tcp(1000, 40) + udp(1000, 40), 12),
}


@pytest.mark.parametrize("pool", POOLS)
@settings(max_examples=20)
@given(st.integers(1, 300), st.randoms(use_true_random=False))
def test_what_every_sequence_is_like(pool: str, count: int, random: Random) -> None:
    """Of these services, each port once, none twice in a file, and none that begins as the one before it."""
    services, length = POOLS[pool]
    made = list(generate(count, length, services, random.randrange))
    assert len(made) == len(set(made)) == count
    for sequence in made:
        assert len(sequence) == length
        assert set(sequence) <= set(services)
        assert len({service.port for service in sequence}) == length
    assert all(before[0] != after[0] for before, after in pairwise(made))


def test_each_service_is_as_likely_as_another_at_each_knock() -> None:
    """In 20,000 sequences on 100 ports, each is at each of five places about 200 times (five deviations: 70)."""
    random = Random(3)  # noqa: S311
    made = list(generate(20_000, 5, tcp(1000, 100), random.randrange))
    for place in range(5):
        counts = [0] * 100
        for sequence in made:
            counts[sequence[place].port - 1000] += 1
        assert all(130 < count < 270 for count in counts)


def test_no_sequence_is_made_twice_even_where_there_are_hardly_more() -> None:
    """The draws are as bad as they can be: few different numbers, each again and again."""
    services = tcp(1000, 70)
    random = Random(5)  # noqa: S311
    few = [random.randrange(1 << 31) for _ in range(60)]
    made = list(islice(generate(100, 5, services, lambda n: random.choice(few) % n), 40))
    assert len(set(made)) == 40


def test_t21_too_few_possibilities_are_refused() -> None:
    """T21: with fewer than 2^30, and the hint says what is enough: exactly so many ports, exactly so many knocks."""
    with pytest.raises(WeakError) as caught:
        generate(10, 5, tcp(1000, 20), lambda _: 0)
    assert (
        str(caught.value) == "5 knocks on 20 ports: 1,860,480 possible sequences are too few to be safe from guessing"
    )
    assert caught.value.hint == "use 67 ports or more, or 8 knocks"
    assert count_possible(tcp(1, 66), 5) < MIN_POSSIBLE <= count_possible(tcp(1, 67), 5)
    assert count_possible(tcp(1, 20), 7) < MIN_POSSIBLE <= count_possible(tcp(1, 20), 8)


def test_a_long_file_needs_more_possibilities() -> None:
    """That a sequence is none of the others is to say next to nothing of it."""
    check_strength(1_000_000, 5, tcp(1000, 67))
    with pytest.raises(WeakError):
        check_strength(20_000_000, 5, tcp(1000, 67))


@pytest.mark.parametrize(
    ("services", "length", "hint"),
    [
        pytest.param([], 5, "use 67 ports or more", id="no port at all"),
        pytest.param(tcp(1, 4), 5, "use 67 ports or more", id="fewer ports than knocks"),
        pytest.param(tcp(1, 60000), 1, "use 2 knocks", id="more ports than there are"),
        pytest.param([], 1, "use more ports and more knocks", id="nothing of both"),
        pytest.param(tcp(1, 32) + udp(1, 32), 32, "use 128 ports or more", id="no draw would ever fit"),
    ],
)
def test_what_is_hinted_where_it_cannot_be(services: list[Service], length: int, hint: str) -> None:
    with pytest.raises(WeakError) as caught:
        check_strength(100, length, services)
    assert caught.value.hint == hint


def test_the_strength_is_in_bits() -> None:
    """Five knocks on 51,000 ports: a little less than five times log2(51,000)."""
    assert 78.1 < strength(tcp(10000, 51000), 5) < 78.3
