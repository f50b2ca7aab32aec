"""What the client makes of words, times and names. What it sends is in e2e/test_knock_command.py.

Nothing here asks a name server: every host is written as an address, or is no host name at all.
"""

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logknock.client import (
    MAX_DELAY,
    MAX_HOSTS,
    Address,
    Knock,
    ServicesError,
    parse_delay,
    parse_hosts,
    parse_knocks,
    resolve,
)
from logknock.errors import FAILURE, USAGE, LogknockError
from logknock.knock import Service
from logknock.packet import TCP, UDP


@pytest.mark.parametrize(
    ("word", "service"),
    [
        pytest.param("7000/tcp", Service(TCP, 7000), id="a_service_is_a_port_and_a_protocol"),
        pytest.param("7000/udp", Service(UDP, 7000), id="the_protocol_may_be_udp"),
        pytest.param("7000", Service(TCP, 7000), id="a_bare_port_is_tcp"),
        pytest.param("7000:udp", Service(UDP, 7000), id="knockds_colon_is_understood"),
        pytest.param("7000:tcp", Service(TCP, 7000), id="knockds_colon_is_understood_for_tcp_too"),
        pytest.param("7000/UDP", Service(UDP, 7000), id="case_does_not_matter"),
        pytest.param("7000:Tcp", Service(TCP, 7000), id="case_does_not_matter_behind_a_colon"),
        pytest.param("1", Service(TCP, 1), id="the_lowest_port_is_1"),
        pytest.param("65535/udp", Service(UDP, 65535), id="the_highest_port_is_65535"),
    ],
)
def test_a_service_is_read_in_every_way_it_is_written(word: str, service: Service) -> None:
    assert parse_knocks([word]) == (Knock(service),)


def test_services_keep_their_order_and_their_repetitions() -> None:
    words = ["9000/udp", "7000", "7000", "8000:tcp"]
    assert [str(knock.service) for knock in parse_knocks(words)] == ["9000/udp", "7000/tcp", "7000/tcp", "8000/tcp"]


# Each with what its line must name.
BAD_WORDS = {
    "0": "0",
    "65536": "65536",
    "70000/udp": "70000",
    "abc": "abc",
    "12x": "12x",
    "-5": "-5",
    "+5": "+5",
    "": "''",
    " 7000": "' 7000'",
    "7 000": "7 000",
    "\N{ARABIC-INDIC DIGIT SEVEN}000": "\N{ARABIC-INDIC DIGIT SEVEN}000",
    "7000/": "''",
    "7000:": "''",
    "/tcp": "''",
    "7000/sctp": "sctp",
    "7000/tcp/udp": "tcp/udp",
    "7000/tcp:udp": "tcp:udp",
    "7000:udp:tcp": "udp:tcp",
    "7000/tcp ": "'tcp '",
    "9" * 5000: "9" * 5000,
}


@pytest.mark.parametrize(("word", "named"), [pytest.param(*item, id=ascii(item[0])[:20]) for item in BAD_WORDS.items()])
def test_what_is_no_service_is_named_in_the_error(word: str, named: str) -> None:
    with pytest.raises(ServicesError) as raised:
        parse_knocks([word])
    assert named in raised.value.message


def test_all_bad_services_are_reported_at_once_as_a_usage_error_with_a_hint() -> None:
    bad = list(BAD_WORDS)
    with pytest.raises(ServicesError) as raised:
        parse_knocks(["7000/tcp", *bad, "8000"])
    error = raised.value
    assert len(error.lines) == len(bad)
    for word, line in zip(bad, error.lines, strict=True):
        assert BAD_WORDS[word] in line
        assert line in error.message
        assert f"logknock: {line}" in error.report()
    assert f"hint: {error.hint}" in error.report()
    assert error.exit_code == USAGE
    assert "7000/tcp" in error.hint


# Words that are nearly services find more than text of every kind does, which is why there are both.
nearly_services = st.from_regex(r"\A[-+ ]?[0-9]{0,6}[ x]?([/:]([tT][cC][pP]|udp|UDP|sctp|)|ms|s)?\Z")
words = st.lists(st.text() | nearly_services, max_size=8)


def may_stand(these: list[str], at: int) -> bool:
    """Whether the word is right where it stands, whatever is wrong with the others."""
    if not is_pause(these[at]):
        return reads(these[at])
    neighbours = [these[near] for near in (at - 1, at + 1) if 0 <= near < len(these)]
    return reads("1", these[at], "2") and len(neighbours) == 2 and not any(map(is_good_pause, neighbours))


def reads(*these: str) -> bool:
    try:
        parse_knocks(these)
    except ServicesError:
        return False
    return True


def is_pause(word: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}(ms|s)", word) is not None


def is_good_pause(word: str) -> bool:
    return is_pause(word) and reads("1", word, "2")


@given(words)
def test_any_words_are_services_or_a_clear_error(these: list[str]) -> None:
    bad = [at for at in range(len(these)) if not may_stand(these, at)]
    if bad:
        with pytest.raises(ServicesError) as raised:
            parse_knocks(these)
        assert len(raised.value.lines) == len(bad)
        assert all(raised.value.lines)
        assert raised.value.message.isprintable()  # one line, and nothing in it that a terminal would obey
        return
    knocks = parse_knocks(these)
    assert len(knocks) + sum(knock.wait is not None for knock in knocks) == len(these)
    for service, wait, _ in knocks:
        assert 1 <= service.port <= 65535
        assert parse_knocks([str(service)]) == (Knock(service),)
        assert wait is None or 0 <= wait <= MAX_DELAY


def test_services_without_a_protocol_are_what_u_makes_them() -> None:
    found = parse_knocks(["7000", "8000/tcp", "9000:tcp", "6000/udp"], "udp")
    assert [str(knock.service) for knock in found] == ["7000/udp", "8000/tcp", "9000/tcp", "6000/udp"]


def test_a_pause_stands_before_the_knock_that_follows_it() -> None:
    found = parse_knocks(["7000", "2s", "8000", "9000", "500ms", "6000", "0s", "5000"])
    assert [knock.wait for knock in found] == [None, 2.0, None, 0.5, 0.0]


@pytest.mark.parametrize(
    ("these", "lines"),
    [
        pytest.param(["2s", "7000"], ["'2s': a pause stands between two services"], id="not_first"),
        pytest.param(["7000", "2s"], ["'2s': a pause stands between two services"], id="not_last"),
        pytest.param(["2s"], ["'2s': a pause stands between two services"], id="not_alone"),
        pytest.param(
            ["7000", "1s", "2ms", "8000"],
            ["'1s': a pause stands between two services", "'2ms': a pause stands between two services"],
            id="not_two_in_a_row",
        ),
        pytest.param(["7000", "61s", "8000"], ["'61s': a pause is 60s at most"], id="not_over_a_minute"),
        pytest.param(["7000", "2m", "8000"], ["'2m' is no port number"], id="no_minutes"),
        pytest.param(["7000", "2s", "abc", "3s", "8000"], ["'abc' is no port number"], id="a_bad_word_is_a_neighbour"),
    ],
)
def test_a_pause_out_of_place_is_an_error(these: list[str], lines: list[str]) -> None:
    with pytest.raises(ServicesError) as raised:
        parse_knocks(these)
    assert list(raised.value.lines) == lines


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        pytest.param("one.example", ("one.example",), id="one"),
        pytest.param("one.example,192.0.2.1,2001:db8::1", ("one.example", "192.0.2.1", "2001:db8::1"), id="three"),
        pytest.param("[2001:db8::1],[fe80::1%eth0]", ("2001:db8::1", "fe80::1%eth0"), id="in_brackets"),
        pytest.param("[2001:db8::1", ("[2001:db8::1",), id="half_a_bracket_is_for_the_resolver_to_refuse"),
    ],
)
def test_hosts_are_separated_by_commas(text: str, hosts: tuple[str, ...]) -> None:
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", ",", "a,", ",a", "a,,b", "[]", ",".join("a" * (MAX_HOSTS + 1))])
def test_a_host_that_is_missing_or_too_much_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"a host is missing|are the most"):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("200", 0.2, id="a_bare_number_is_milliseconds_as_knockd_has_it"),
        pytest.param("200ms", 0.2, id="milliseconds"),
        pytest.param("1s", 1.0, id="seconds"),
        pytest.param("0", 0.0, id="no_delay_at_all"),
        pytest.param("0s", 0.0, id="no_delay_in_seconds"),
        pytest.param("60s", 60.0, id="a_minute_is_the_most"),
        pytest.param("60000", 60.0, id="a_minute_in_milliseconds"),
    ],
)
def test_a_delay_is_read_in_every_way_it_is_written(text: str, seconds: float) -> None:
    assert parse_delay(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "-1", "61s", "60001", "60001ms", "1m", "1h", "s", "ms", "1.5s", "1 s", "1S", "٣", "1s ", "1s\n", "9" * 5000],
)
def test_what_is_no_delay_is_refused_with_the_ways_to_write_one(text: str) -> None:
    with pytest.raises(
        ValueError, match="is no delay: write 200 or 200ms for milliseconds, 1s for seconds, 60s at most"
    ):
        parse_delay(text)


@given(st.text() | st.from_regex(r"\A[-+]?[0-9]{0,11}(ms|s|m|)\Z"))
def test_any_text_is_a_delay_within_bounds_or_an_error(text: str) -> None:
    try:
        seconds = parse_delay(text)
    except ValueError as error:
        assert str(error).startswith(repr(text))  # noqa: PT017 - either outcome is right
        return
    assert 0 <= seconds <= MAX_DELAY


IPV4 = Address(socket.AF_INET, "192.0.2.1")
IPV6 = Address(socket.AF_INET6, "2001:db8::1")
ON_LOOPBACK = Address(socket.AF_INET6, "fe80::1", socket.if_nametoindex("lo"))


@pytest.mark.parametrize(
    ("host", "family", "address", "shown"),
    [
        pytest.param("192.0.2.1", socket.AF_UNSPEC, IPV4, "192.0.2.1", id="an_ipv4_address"),
        pytest.param("2001:DB8:0::1", socket.AF_UNSPEC, IPV6, "2001:db8::1", id="an_ipv6_address_in_any_form"),
        pytest.param("fe80::1%lo", socket.AF_INET6, ON_LOOPBACK, "fe80::1%lo", id="a_zone_is_kept"),
        pytest.param("::ffff:192.0.2.1", socket.AF_UNSPEC, IPV4, "192.0.2.1", id="T27_a_mapped_address_is_ipv4"),
        pytest.param(
            "::ffff:192.0.2.1", socket.AF_INET, IPV4, "192.0.2.1", id="T27_a_mapped_address_is_what_4_asks_for"
        ),
    ],
)
def test_a_host_is_one_address(host: str, family: socket.AddressFamily, address: Address, shown: str) -> None:
    assert resolve(host, family) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("host", "family", "message", "hint"),
    [
        pytest.param(
            "", socket.AF_UNSPEC, "'' does not resolve: Name or service", "give the host's address", id="nothing"
        ),
        pytest.param("a..b", socket.AF_UNSPEC, "'a..b' is no host name", "spelling", id="an_empty_label"),
        pytest.param("a" * 64, socket.AF_UNSPEC, "is no host name", "spelling", id="a_label_too_long"),
        pytest.param("\udcff", socket.AF_UNSPEC, "is no host name", "spelling", id="bytes_that_are_no_text"),
        pytest.param("192.0.2.1", socket.AF_INET6, "does not resolve: Address family", "only IPv6", id="ipv4_under_6"),
        pytest.param("2001:db8::1", socket.AF_INET, "does not resolve: Address family", "only IPv4", id="ipv6_under_4"),
        pytest.param("::ffff:192.0.2.1", socket.AF_INET6, "is an IPv4 address", "only IPv6", id="T27_mapped_under_6"),
        pytest.param(
            "fe80::1", socket.AF_UNSPEC, "does not say on which", "fe80::1%eth0", id="a_link_local_one_of_no_link"
        ),
        pytest.param("fe80::1%none", socket.AF_UNSPEC, "does not resolve", "spelling", id="a_zone_that_is_not_there"),
    ],
)
def test_a_host_that_is_no_address_fails_with_a_hint(
    host: str, family: socket.AddressFamily, message: str, hint: str
) -> None:
    with pytest.raises(LogknockError) as raised:
        resolve(host, family)
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert raised.value.exit_code == FAILURE
