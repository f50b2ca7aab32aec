"""What a configuration is loaded with and its author should hear of; what the warnings say is tried."""

from collections.abc import Iterable
from itertools import permutations
from pathlib import Path

import pytest

from logknock.config import load
from logknock.knock import Granted, Matcher, Service
from logknock.packet import SYN, TCP, Packet

from .config_files import write


def doors(**sequences: str) -> str:
    """Doors by their knocks, written `3 1 2u`, and then perhaps a line for the door behind a |."""
    text = ""
    for name, knocks in sequences.items():
        steps, _, line = knocks.partition("|")
        services = [f"{step[:-1]}/udp" if step.endswith("u") else f"{step}/tcp" for step in steps.split()]
        text += f'[doors.{name}]\nopens = ["22/tcp"]\nsequence = {services}\n{line}\n'
    return text


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        pytest.param(doors(a="7 9 8"), [], id="three knocks in no order"),
        pytest.param(doors(a="7 8 9"), [], id="with traps an ascending sequence is as good as another"),
        pytest.param(
            doors(a="7"), ["3: doors.a.sequence: a single knock: any port scan opens the door"], id="T1: one knock"
        ),
        pytest.param(
            doors(a="8 7"),
            ["3: doors.a.sequence: two knocks: a random port scan opens the door about once in 1,024 times"],
            id="T2: two knocks",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7 9 8 3", b="6 4 5"),
            ["2: firewall.traps: without traps, a random scan of all ports opens 3 knocks once in 6 times"],
            id="T3: no traps",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7 8 9u"),
            [
                "2: firewall.traps: without traps, a random scan of all ports opens 3 knocks once in 6 times",
                "5: doors.a.sequence: ascending, and there are no traps: "
                "a port scan from low to high opens the door every time",
            ],
            id="T3: no traps and an ascending sequence",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7 7 8"),
            ["2: firewall.traps: without traps, a random scan of all ports opens 3 knocks once in 6 times"],
            id="a scan does not knock twice on a port",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7"),
            ["5: doors.a.sequence: a single knock: any port scan opens the door"],
            id="traps do not matter to a single knock",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n[doors.a]\nopens = ['22/tcp']\nonetime = ['/x/anna']\n" + doors(b="7 9 8 3"),
            ["2: firewall.traps: without traps, a random scan of all ports opens n knocks once in n! times"],
            id="T3: no traps and one-time sequences of any length",
        ),
        pytest.param(
            doors(a="7 7u 7"),
            ["3: doors.a.sequence: all knocks are on port 7: a client that just tries again opens the door"],
            id="all knocks on one port",
        ),
        pytest.param(
            doors(a="7 9 8", b="7 9 8 6"),
            ["3: doors.a.sequence: begins door b's: whoever knocks that completes this one too"],
            id="a sequence that begins another",
        ),
        pytest.param(
            doors(b="1 7 9 8", a="7 9 8"),
            ["7: doors.a.sequence: is part of door b's: whoever knocks that completes this one too"],
            id="a sequence inside another",
        ),
        pytest.param(
            doors(a="7 9 8", b="7 9 8 6", c="1 7 9 8", d="7 9 8 5"),
            ["3: doors.a.sequence: begins door b's (and 2 others): whoever knocks that completes this one too"],
            id="a sequence in several others is one warning",
        ),
        pytest.param(doors(a="1 3 2", b="3 2 4"), [], id="the end of one begins the other: nothing happens early"),
        pytest.param(
            doors(a="7 9 8", b="7 9 8"),
            ["7: doors.b.sequence: the same as door a's: whoever knocks it completes both"],
            id="two that are the same",
        ),
        pytest.param(doors(a="7 9 8u", b="7 9 8u|tcp_flags = 'fin'"), [], id="the same with other flags is another"),
        pytest.param(
            doors(a="7u 9u 8u", b="7u 9u 8u|tcp_flags = 'fin'"),
            ["7: doors.b.sequence: the same as door a's: whoever knocks it completes both"],
            id="flags make no difference over UDP",
        ),
        pytest.param(
            doors(a="7u 9u 8u", b="1 7u 9u 8u|tcp_flags = 'fin'"),
            ["3: doors.a.sequence: is part of door b's: whoever knocks that completes this one too"],
            id="nor do they inside another",
        ),
        pytest.param(doors(a="7 9 8", b="7u 9u 8u"), [], id="the same ports over another protocol"),
        pytest.param(
            doors(a="7 9 8|timeout = '24h1ms'"),
            ["4: doors.a.timeout: over a day: by then the address may be somebody else's"],
            id="a timeout over a day",
        ),
        pytest.param(doors(a="7 9 8|timeout = '1d'"), [], id="a timeout of a day"),
        pytest.param(
            "[firewall]\ntrusted = [\n'10.0.0.0/8',\n'0.0.0.0/0',\n'::/0']\n" + doors(a="7 9 8"),
            [
                "4: firewall.trusted: 0.0.0.0/0 is everybody: nothing is closed",
                "5: firewall.trusted: ::/0 is everybody: nothing is closed",
            ],
            id="everybody is trusted",
        ),
        pytest.param(
            "[firewall]\ntraps = 0\n" + doors(a="7 8 9|guard = false\nsets = ['inet f s']"),
            [],
            id="no traps, where the administrator's own rules log what they drop",
        ),
        pytest.param(
            "[log]\nsource = 'journal'\nfile.path = '/x'\n" + doors(a="7 9 8"),
            ["3: log.file.path: is not read: it is for source file"],
            id="a log file that no source reads",
        ),
        pytest.param(
            "[log]\njournal.path = '/x'\n" + doors(a="7 9 8"),
            ["2: log.journal.path: is not read: it is for source journal"],
            id="a journal that no source reads",
        ),
    ],
)
def test_a_configuration_is_loaded_with_these_warnings(tmp_path: Path, text: str, warnings: list[str]) -> None:
    """Each with a hint."""
    path = write(tmp_path, text)
    found = load(path).warnings
    assert [str(problem) for problem in found] == [f"{path}:{warning}" for warning in warnings]
    assert all(problem.hint for problem in found)


SCAN = "[scan]\nports = 5\n"
OWN_SET = 'guard = false\nsets = ["inet filter allowed"]'


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        pytest.param(SCAN, [], id="bans as they are advised"),
        pytest.param("[scan]\nports = 0\ncounts = 'udp'\n[firewall]\ntraps = 0\nrecord = false\n", [], id="no bans"),
        pytest.param(
            "[scan]\nports = 2\n", ["2: scan.ports: 2: who tries 2 ports by mistake is banned"], id="too few ports"
        ),
        pytest.param(
            SCAN + 'counts = ["syn", "udp"]\n',
            ["3: scan.counts: sources of UDP are forged for free: anybody can have anybody banned but the trusted"],
            id="T12: UDP",
        ),
        pytest.param(SCAN + "[firewall]\ntraps = 0\nrecord = false\n", [], id="another firewall's log"),
        pytest.param(
            "[scan]\nports = 41\n",
            ["2: scan.ports: of a fast scan 40 packets are recorded ([firewall] burst): it is not noticed"],
            id="T6: more ports than are recorded",
        ),
        pytest.param("[scan]\nports = 41\n[firewall]\nburst = 50\n", [], id="and as many as are"),
    ],
)
def test_bans_that_hit_nobody_or_others_are_warned_of(tmp_path: Path, text: str, warnings: list[str]) -> None:
    path = write(tmp_path, text + doors(a="7 9 8"))
    found = load(path).warnings
    assert [str(problem) for problem in found] == [f"{path}:{warning}" for warning in warnings]
    assert all(problem.hint for problem in found)


def test_bans_without_anything_to_notice_scans_by_or_to_ban_with_are_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path, SCAN + "[firewall]\ntraps = 0\n" + doors(a=f"7 9 8|{OWN_SET}"))
    assert [problem.message for problem in load(path).warnings] == [
        "bans need the rules of logknock, which nothing else here needs",
        "without traps our rules record knock ports only, and those do not count: no scan is noticed",
    ]


def opened(path: Path, knocks: Iterable[Service]) -> set[str]:
    """The doors that these knocks open, a tenth of a second apart, if nothing else is logged."""
    matcher = Matcher(load(path).doors)
    events = []
    for at, (proto, port) in enumerate(knocks):
        events += matcher.receive(Packet(at / 10, bytes(4), bytes(4), proto, 40_000 + at, port, SYN))
    return {event.grant.door for event in events if isinstance(event, Granted)}


@pytest.mark.parametrize(
    "text",
    [
        doors(a="7 9 8", b="7 9 8 6"),
        doors(a="7 9 8", b="1 7 9 8"),
        doors(a="9 8", b="7 9 8 6"),
        doors(a="7 9", b="7 9"),
    ],
    ids=["begins it", "ends it", "inside it", "the same"],
)
def test_what_the_warning_of_an_overlap_says_is_so(tmp_path: Path, text: str) -> None:
    """Whoever knocks the longer sequence completes both."""
    path = write(tmp_path, text)
    config = load(path)
    assert any("completes" in problem.message for problem in config.warnings)
    assert opened(path, config.doors[1].sequence) == {"a", "b"}


def test_what_the_warning_of_no_traps_says_is_so(tmp_path: Path) -> None:
    """T3: of the six orders in which a scan can come by three knock ports one opens; for 7, 8, 9 the ascending one."""
    path = write(tmp_path, "[firewall]\ntraps = 0\n" + doors(a="7 8 9"))
    scans = list(permutations(Service(TCP, port) for port in (7, 8, 9)))
    assert [scan for scan in scans if opened(path, scan)] == [tuple(Service(TCP, port) for port in (7, 8, 9))]
    assert len(scans) == 6
