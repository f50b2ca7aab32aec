"""The same packets to the real knockd and to logknock: where they agree, and where they differ on purpose.

What is generated stays on common ground, and only the two programs judge each other there. Whatever is kept out of it
has a test of its own that shows the difference. docs/explanation/knockd.md tells the reasons.
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock.knock import MAX_SEQUENCE, Service
from logknock.packet import TCP

from .rivals import UNLOGGED, Knockd, Outcome, Rivals, Story, Twin, rivals
from .world import until

# More, and other ones each time: LOGKNOCK_EXAMPLES=1000 make test ARGS=tests/e2e/test_knockd.py
EXAMPLES = int(os.environ.get("LOGKNOCK_EXAMPLES", "0"))

PAGE = Path(__file__).parents[2] / "docs/explanation/knockd.md"

# ---- the doors of the stories that are written by hand

LONGEST = " ".join(f"{port}/tcp" for port in range(7800, 7800 + 2 * MAX_SEQUENCE, 2))

DOORS = (
    Twin("ssh", "7000/tcp 8000/tcp 9000/udp"),
    Twin("twice", "7100/tcp 7100/tcp 7200/tcp"),
    Twin("again", "7300/tcp 7400/tcp 7400/tcp 7500/udp"),
    Twin("one", "7600/tcp"),
    Twin("left", "1010/tcp 1020/tcp 1030/tcp"),
    Twin("right", "1020/tcp 1030/tcp 1040/tcp"),
    Twin("up", "2010/tcp 2020/tcp 2030/tcp"),
    Twin("down", "2010/tcp 2030/tcp 2020/tcp"),
    Twin("short", "3010/tcp 3020/tcp"),
    Twin("long", "3010/tcp 3020/tcp 3030/tcp"),
    Twin("quick", "4010/tcp 4020/tcp 4030/udp", seq_timeout=1),
    Twin("scanned", "6502/tcp 6505/tcp 6508/tcp"),
    Twin("longest", LONGEST),
    # The flags of the man page's second and third example.
    Twin("answers", "2222/udp 3333/tcp 4444/udp", tcp_flags="syn,ack"),
    Twin("fins", "2250/tcp 3350/tcp 4450/tcp", tcp_flags="fin,!ack"),
    Twin("datagrams", "2260/udp 3360/udp 4460/udp", tcp_flags="fin"),
    # What knockd's documentation recommends, and what our default is.
    Twin("default", "2270/tcp 3370/tcp 4470/tcp", tcp_flags=None, knockd=("tcpflags = syn",)),
    Twin("anything", "2280/tcp 3380/tcp 4480/tcp", tcp_flags=None),
    # Its knocks differ from others' only by their protocol.
    Twin("other", "6990/tcp 7000/udp 8000/udp 9000/tcp"),
)

# ---- the doors and stories that are generated

FIRSTS = ("6100/tcp", "6110/tcp", "6100/udp", "6120/tcp", "6130/udp")
LATER = ("6200/tcp", "6200/udp", "6210/tcp", "6220/tcp", "6220/udp", "6230/tcp")
NEVER, WRONG = "6290/tcp", "6280/udp"


class Flags(NamedTuple):
    """Flags in both programs' notation, some that match and some that do not."""

    notation: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


FLAGS = (
    Flags("syn,!ack", ("S", "SP", "SU"), ("SA", "A", "F", "RA")),
    Flags("syn", ("S", "SA", "SF"), ("A", "F", "R")),
    Flags("fin,!ack", ("F", "FU", "FS"), ("FA", "S", "A")),
    Flags("syn,ack", ("SA", "SAP"), ("S", "A", "R")),
    Flags("psh,urg,!rst", ("PU", "PUA"), ("PUR", "P", "S")),
)

# What a knocker does next: what is right, that with flags that make it nothing, or any knock but a first one.
MOVES = ("right",) * 6 + ("nothing", "other")


class Common(NamedTuple):
    """Doors, and stories that both programs are to take in the same way."""

    doors: tuple[Twin, ...]
    stories: tuple[str, ...]


@st.composite
def common(draw: st.DrawFn) -> Common:
    """First knocks that stand nowhere else, later ones that doors share, and the same flags at all doors."""
    flags = draw(st.sampled_from(FLAGS))
    firsts = draw(st.lists(st.sampled_from(FIRSTS), min_size=1, max_size=len(FIRSTS), unique=True))
    doors = []
    for number, first in enumerate(firsts):
        later = draw(st.lists(st.sampled_from(LATER), max_size=4))
        doors.append(Twin(f"door{number}", " ".join((first, *later)), tcp_flags=flags.notation))
    # So that each later knock is some door's, whatever the others are: knockd does not hear of any other port.
    never = Twin("never", " ".join((NEVER, WRONG, *LATER)), tcp_flags=flags.notation)
    told = draw(st.lists(stories(doors, flags), min_size=4, max_size=8))
    return Common((*doors, never), tuple(told))


@st.composite
def stories(draw: st.DrawFn, doors: list[Twin], flags: Flags) -> str:
    """Some attempts of one knocker, each ended by a wrong knock before the next one's first."""
    who = draw(st.sampled_from(("", "a6:")))
    words: list[str] = []
    for door in draw(st.lists(st.sampled_from(doors), min_size=1, max_size=3)):
        expected = door.sequence.split()
        for move in ("right", *draw(st.lists(st.sampled_from(MOVES), max_size=len(expected) + 2))):
            is_right = move == "right" and expected
            word = expected[0] if expected and move != "other" else draw(st.sampled_from(LATER))
            if is_right or word.endswith("/udp"):
                expected = expected[1:]
            if word.endswith("/tcp"):
                word += "=" + draw(st.sampled_from(flags.wrong if move == "nothing" else flags.right))
            words.append(who + word)
        words.append(who + WRONG)
    return " ".join(words)


# ---- one-time sequences, in the notation that both read, and the stories that use them

ONCE = tuple(f"{5100 + ten}:tcp,{5200 + ten},{5300 + ten}:udp" for ten in (10, 20, 30, 40))
USES = tuple(f"{5100 + ten}/tcp {5200 + ten}/tcp {5300 + ten}/udp" for ten in (10, 20, 30, 40))

# ---- both programs

PORTS = [
    *(Service.parse(word) for door in DOORS for word in door.sequence.split()),
    *(Service.parse(word) for use in USES for word in use.split()),
    *(Service.parse(word) for word in (*FIRSTS, *LATER, NEVER, WRONG)),
    *(Service(TCP, port) for port in (12, 65531)),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rivals]:
    """Both programs on one gateway, for all tests of this file."""
    with rivals(tmp_path_factory.mktemp("rivals"), PORTS) as made:
        yield made


def test_both_open_the_same_doors_on_common_ground(both: Rivals) -> None:
    """Generated doors and stories. (Not a `given` test itself: at the end it looks at all examples together.)"""
    both.use(*DOORS)
    both.settle()  # before many examples are waited for in vain
    seen: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES or 60,
        derandomize=not EXAMPLES,  # without being asked to, no run finds what another did not
        database=None,
        deadline=None,
    )
    @given(common())
    def agree(case: Common) -> None:
        both.use(*case.doors)
        outcomes = both.play_all(case.stories)
        differing = [
            f"{story}\n    knockd opened {outcome.knockd or 'nothing'}, logknock {outcome.logknock or 'nothing'}"
            for story, outcome in zip(case.stories, outcomes, strict=True)
            if outcome.knockd != outcome.logknock
        ]
        doors = "\n".join(f"{door.name} = {door.sequence} ({door.tcp_flags})" for door in case.doors)
        assert not differing, "\n".join((doors, *differing))
        seen.update("opened" if outcome.knockd else "shut" for outcome in outcomes)

    agree()
    assert min(seen["opened"], seen["shut"]) > sum(seen.values()) / 5, f"what is generated shows little: {seen}"


AGREED = [
    pytest.param("7000/tcp 8000/tcp 9000/udp", "a:ssh", id="three knocks open the door"),
    pytest.param("a6:7000/tcp a6:8000/tcp a6:9000/udp", "a6:ssh", id="over IPv6 too"),
    pytest.param("7000/tcp>2 8000/tcp>2 9000/udp>2", "a:ssh", id="on any address of the host"),
    pytest.param("a6:7000/tcp>2 a6:8000/tcp a6:9000/udp>2", "a6:ssh", id="on several addresses of the host in turn"),
    pytest.param("7600/tcp 7600/tcp 7600/tcp", "a:one a:one a:one", id="a single knock opens each time"),
    pytest.param("8000/tcp 7000/tcp 9000/udp", "", id="the order counts"),
    pytest.param("7000/tcp 8000/udp 9000/udp", "", id="the protocol counts, tcp"),
    pytest.param("7000/tcp 8000/tcp 9000/tcp", "", id="the protocol counts, udp"),
    pytest.param("7000/tcp 8000/tcp", "", id="every knock is needed"),
    pytest.param("7000/tcp 9000/udp", "", id="no knock can be left out"),
    pytest.param("7000/tcp 7500/udp 8000/tcp 9000/udp", "", id="another door's knock ends the attempt"),
    pytest.param("7000/tcp 7500/udp 7000/tcp 8000/tcp 9000/udp", "a:ssh", id="after a mistake one begins anew"),
    pytest.param("7000/tcp 8000/tcp 9000/udp 7000/tcp 8000/tcp 9000/udp", "a:ssh a:ssh", id="twice opens twice"),
    pytest.param("7000/tcp 8000/tcp 9000/udp 1010/tcp 1020/tcp 1030/tcp", "a:left a:ssh", id="one door after another"),
    pytest.param(f"7000/tcp {UNLOGGED} 8000/tcp 9000/udp", "a:ssh", id="neither hears what is not logged and no knock"),
    pytest.param("7100/tcp 7100/tcp 7200/tcp", "a:twice", id="a sequence may repeat its first port"),
    pytest.param("7100/tcp 7200/tcp", "", id="a port that is there twice is knocked on twice"),
    pytest.param("7300/tcp 7400/tcp 7400/tcp 7500/udp", "a:again", id="a sequence may repeat a later port"),
    pytest.param("7300/tcp 7400/tcp 7400/tcp 7400/tcp 7500/udp", "", id="once too often is a mistake"),
    pytest.param(LONGEST, "a:longest", id="32 knocks are possible"),
    pytest.param("a:7000/tcp b:8000/tcp c:9000/udp", "", id="T5: knockers do not combine"),
    pytest.param("7000/tcp 8000/tcp=SA 8000/tcp 9000/udp", "a:ssh", id="other flags are nothing: they end no attempt"),
    pytest.param("7000/tcp=SA 8000/tcp 9000/udp", "", id="other flags are nothing: they begin no attempt"),
    pytest.param("2222/udp 3333/tcp=SA 4444/udp", "a:answers", id="syn,ack: both are set"),
    pytest.param("2222/udp 3333/tcp 4444/udp", "", id="syn,ack: one is not enough"),
    pytest.param("2250/tcp=F 3350/tcp=FU 4450/tcp=FP", "a:fins", id="fin,!ack: what is not named may be set or not"),
    pytest.param("2250/tcp=F 3350/tcp=FA 4450/tcp=F", "", id="fin,!ack: what is excluded may not"),
    pytest.param("2260/udp 3360/udp 4460/udp", "a:datagrams", id="flags say nothing of UDP"),
    pytest.param("4010/tcp 4020/tcp 1.05s 4030/udp", "", id="too late is too late"),
    pytest.param("4010/tcp 0.7s 4020/tcp 0.7s 4030/udp", "", id="the time runs from the first knock"),
    pytest.param("7000/tcp 1.05s 8000/tcp 9000/udp", "a:ssh", id="a pause within the time does no harm"),
]


@pytest.mark.parametrize(("story", "opened"), AGREED)
def test_both_agree(both: Rivals, story: str, opened: str) -> None:
    both.use(*DOORS)
    assert both.play(story) == Outcome(opened, opened)


DIFFERENT = [
    pytest.param("7000/tcp 7001/tcp 8000/tcp 9000/udp", "a:ssh", "", id="1: a port that no door uses ends the attempt"),
    pytest.param(
        " ".join(f"{port}/tcp" for port in range(6500, 6511)),
        "a:scanned",
        "",
        id="1, T1: an ascending scan opens nothing",
    ),
    pytest.param(
        "2250/tcp=F 7000/tcp=F 3350/tcp=F 4450/tcp=F",
        "a:fins",
        "",
        id="1: so does another door's port with flags that are nothing there",
    ),
    pytest.param("7000/tcp 7000/tcp* 8000/tcp 9000/udp", "", "a:ssh", id="2, T7: a resend changes nothing"),
    pytest.param("7000/tcp 8000/tcp 8000/tcp* 9000/udp", "", "a:ssh", id="2, T7: nor does one of a later knock"),
    pytest.param(
        "7000/tcp 8000/tcp 7000/tcp* 8000/tcp* 9000/udp", "", "a:ssh", id="2, T7: nor does a resend that comes late"
    ),
    pytest.param(
        "7000/tcp 8000/tcp 9000/udp 7500/udp 7000/tcp* 8000/tcp* 9000/udp*",
        "a:ssh a:ssh",
        "a:ssh",
        id="2, T7: nor do resends that come after something else",
    ),
    pytest.param(
        "7000/tcp 8000/tcp 9000/udp 7000/tcp* 8000/tcp* 9000/udp*",
        "a:ssh a:ssh",
        "a:ssh",
        id="2, T7: resends of all knocks are no second attempt",
    ),
    pytest.param("7100/tcp 7100/tcp* 7200/tcp", "a:twice", "", id="2, T8: nor is a resend the second of two knocks"),
    pytest.param("7000/tcp 8000/tcp 7000/tcp 8000/tcp 9000/udp", "", "a:ssh", id="3: a miss can be a first knock"),
    pytest.param("7000/tcp 1010/tcp 1020/tcp 1030/tcp", "", "a:left", id="3: a miss can be another door's first knock"),
    pytest.param(
        "7100/tcp 7100/tcp 7100/tcp 7200/tcp", "", "a:twice", id="3: what counts is the sequence without a gap"
    ),
    pytest.param(
        "1010/tcp 1020/tcp 1030/tcp 1040/tcp", "a:left", "a:left a:right", id="3: doors that overlap both open"
    ),
    pytest.param(
        "a:7000/tcp b:7000/tcp a:7500/udp b:8000/tcp b:9000/udp",
        "",
        "b:ssh",
        id="4, T15: one's mistake does not end another's attempt",
    ),
    pytest.param(
        "a:7000/tcp b:7000/tcp a:8000/tcp b:8000/tcp a:9000/udp b:9000/udp",
        "a:ssh",
        "a:ssh b:ssh",
        id="4, T15: nor does one's success",
    ),
    pytest.param(
        "a:4010/tcp b:7000/tcp 1.05s b:8000/tcp b:9000/udp", "", "b:ssh", id="4, T15: nor does the end of one's time"
    ),
    pytest.param("2010/tcp 2030/tcp 2020/tcp", "", "a:down", id="4: nor does one's own attempt at another door"),
    pytest.param(
        "3010/tcp 3020/tcp 3030/tcp", "a:short", "a:long a:short", id="4: nor one's own success at another door"
    ),
    pytest.param(
        "2270/tcp=SA 3370/tcp=SA 4470/tcp=SA",
        "a:default",
        "",
        id="flags: the usual `syn` takes SYN+ACK, our default not",
    ),
    pytest.param(
        "2280/tcp=F 3380/tcp=A 4480/tcp=R",
        "a:anything",
        "",
        id="flags: knockd's default is any, ours a connection's first",
    ),
]


@pytest.mark.parametrize(("story", "knockd", "logknock"), DIFFERENT)
def test_they_differ_on_purpose(both: Rivals, story: str, knockd: str, logknock: str) -> None:
    both.use(*DOORS)
    assert both.play(story) == Outcome(knockd, logknock)


# ---- 5: time


def test_5_a_timeout_is_exact_and_knockds_counts_whole_seconds(both: Rivals) -> None:
    """A second that begins between two knocks is a second gone, for knockd: of one that it allows, nothing is left."""
    both.use(*DOORS)
    for _ in range(5):  # on a machine that was busy elsewhere for half a second, once more
        story = Story(both)
        time.sleep((0.8 - time.time()) % 1)
        begin = time.time()
        story.send("4010/tcp 4020/tcp")
        same_second = int(time.time()) == int(begin)
        time.sleep(1.05 - time.time() % 1)
        next_second = int(time.time()) == int(begin) + 1
        story.send("4030/udp")
        within = time.time() - begin < 1
        story.sweep()
        if same_second and next_second and within:
            break
    else:
        pytest.fail("no packet was sent when it was to be sent")
    assert both.outcomes([story]) == [Outcome("", "a:quick")]


def test_5_a_timeout_is_told_when_it_is_there_and_knockds_with_the_next_packet(both: Rivals) -> None:
    both.use(*DOORS)
    story = Story(both)
    story.send("4010/tcp 4020/tcp")
    line = f"{story.addresses['a']}: quick: sequence timeout (stage 2)"
    both.daemon.wait_for(line)
    time.sleep(1.1 - time.time() % 1)  # until knockd's second has passed too
    assert line not in both.knockd.text()
    both.settle()
    assert line in both.knockd.text()


# ---- 6: reloading


def test_6_t36_a_bad_file_changes_nothing_and_ends_knockd(both: Rivals) -> None:
    both.use(*DOORS)
    both.forget()
    story = Story(both)
    story.send("7000/tcp 8000/tcp")
    both.settle()
    both.knockd.configure("[ssh]\nsequence = 70000,8000,9000\n")
    both.world.configure('[doors.ssh]\nsequence = ["70000/tcp", "8000/tcp", "9000/tcp"]\nopens = ["22/tcp"]\n')
    both.knockd.running.send_signal(signal.SIGHUP)
    assert not both.reload()
    assert both.knockd.running.wait(20) == 1
    story.send("9000/udp")
    assert both.outcomes([story], knockd=False) == [Outcome("", "a:ssh")]


def test_6_t36_a_reload_ends_no_attempt_and_all_of_knockds(both: Rivals) -> None:
    both.use(*DOORS)
    both.forget()
    story = Story(both)
    story.send("7000/tcp 8000/tcp")
    both.settle()
    both.knockd.running.send_signal(signal.SIGHUP)
    until(lambda: "re-reading config file" in both.knockd.text(), "knockd's reload")
    assert both.reload()
    until(lambda: both.play("7600/tcp").knockd, "knockd to listen again")
    story.send("9000/udp")
    assert both.outcomes([story]) == [Outcome("", "a:ssh")]
    assert both.play("7000/tcp 8000/tcp 9000/udp") == Outcome("a:ssh", "a:ssh")


# ---- 7: commands


def test_7_t35_nothing_goes_through_a_shell(both: Rivals, tmp_path: Path) -> None:
    """The same characters: two commands there, a file's name here. Only the address is put in."""
    theirs, ours = tmp_path / "knockd", tmp_path / "logknock"
    for folder in (theirs, ours):
        folder.mkdir()
    start_command = f"start_command = /usr/bin/touch {theirs}/one;/usr/bin/touch {theirs}/%IP%"
    on_open = f'on_open = ["/usr/bin/touch", "{ours}/one;$(id) {{src}}"]'
    both.use(Twin("ssh", "7000/tcp 8000/tcp 9000/udp", knockd=(start_command,), logknock=(on_open,)))
    story = Story(both)
    story.send("7000/tcp 8000/tcp 9000/udp")
    address = story.addresses["a"]
    until(lambda: {file.name for file in theirs.iterdir()} == {"one", address}, "knockd's two commands")
    until(lambda: [file.name for file in ours.iterdir()] == [f"one;$(id) {address}"], "our one")


# ---- 8: closing

# Open for long enough for a slow machine to see that.
COMMANDS = (
    "start_command = /usr/sbin/nft add element ip doors open { %IP% }",
    "cmd_timeout = 6",
    "stop_command = /usr/sbin/nft delete element ip doors open { %IP% }",
)
CLOSING = Twin("ssh", "7000/tcp 8000/tcp 9000/udp", knockd=COMMANDS, timeout=6)


class Doorway:
    """Who is let in by each of them, as the kernel has it."""

    def __init__(self, both: Rivals) -> None:
        self._both = both
        both.world.gateway.nft("table ip doors { set open { type ipv4_addr; }; }; flush set ip doors open")

    def knockd(self, address: str) -> bool:
        return address in self._both.world.gateway.run("nft", "list", "set", "ip", "doors", "open").stdout

    def logknock(self, address: str) -> bool:
        return any(element.startswith(f"{address} ") for element in self._both.world.granted())


def test_both_close_the_door_on_time(both: Rivals) -> None:
    """`cmd_timeout` with a `stop_command` there, `timeout` here; and both say so in the same words."""
    both.use(CLOSING)
    doorway = Doorway(both)
    story = Story(both)
    story.send("7000/tcp 8000/tcp 9000/udp")
    address = story.addresses["a"]
    until(lambda: doorway.knockd(address), "knockd's door to open")
    until(lambda: not doorway.knockd(address), "knockd's door to close")
    until(lambda: not doorway.logknock(address), "our door to close")
    both.daemon.wait_for(f"{address}: ssh: command timeout")
    assert f"{address}: ssh: command timeout" in both.knockd.text()
    assert both.outcomes([story]) == [Outcome("a:ssh", "a:ssh")]


def test_8_t32_the_kernel_closes_the_door_and_knockds_stays_open_without_the_child(both: Rivals) -> None:
    both.use(CLOSING)
    both.forget()
    doorway = Doorway(both)
    story = Story(both)
    story.send("7000/tcp 8000/tcp 9000/udp")
    address = story.addresses["a"]
    until(lambda: doorway.knockd(address), "knockd's door to open")
    both.daemon.wait_for(f"{address}: ssh: OPEN SESAME")
    # The daemon here, the child that sleeps there: each is what would have something to do when the time is over.
    both.daemon.signal(signal.SIGKILL)
    for child in children(both.knockd):
        os.kill(child, signal.SIGKILL)
    until(lambda: not doorway.logknock(address), "our door to close")
    time.sleep(1.5)
    assert doorway.knockd(address)
    assert f"{address}: ssh: command timeout" not in both.knockd.text()


def children(knockd: Knockd) -> list[int]:
    """The processes that knockd has forked and that are still there."""
    return [
        int(word) for word in Path(f"/proc/{knockd.running.pid}/task/{knockd.running.pid}/children").read_text().split()
    ]


# ---- what a configuration may say


@pytest.mark.parametrize(
    ("written", "story", "refused"),
    [
        pytest.param("abc,7000", "0/tcp 7000/tcp", '"abc/tcp", "7000/tcp"', id="a word is port 0"),
        pytest.param("12x,7000", "12/tcp 7000/tcp", '"12x/tcp", "7000/tcp"', id="digits and more are the digits"),
        pytest.param("-5,7000", "65531/tcp 7000/tcp", '"-5/tcp", "7000/tcp"', id="-5 is 65531"),
        pytest.param("7000,", "7000/tcp 0/tcp", '"7000/tcp", ""', id="a trailing comma is port 0"),
    ],
)
def test_knockd_takes_in_silence_what_we_refuse(both: Rivals, written: str, story: str, refused: str) -> None:
    both.use(Twin("odd", "6990/tcp", knockd=(f"sequence = {written}",)))  # the last of two lines wins, there
    assert both.play(story) == Outcome("a:odd", "")
    assert "is no port" in refusal(both, refused) or "has no protocol" in refusal(both, refused)


@pytest.mark.parametrize(
    ("written", "refused"),
    [
        pytest.param("70000,8000", '"70000/tcp", "8000/tcp"', id="a port above 65535"),
        pytest.param("7000:sctp,8000", '"7000/sctp", "8000/tcp"', id="another protocol"),
        pytest.param(
            ",".join(["7000"] * (MAX_SEQUENCE + 1)), ", ".join(['"7000/tcp"'] * (MAX_SEQUENCE + 1)), id="33 knocks"
        ),
    ],
)
def test_both_refuse(both: Rivals, written: str, refused: str) -> None:
    both.forget()
    both.knockd.stop()
    both.knockd.configure(f"[ssh]\nsequence = {written}\n")
    assert both.knockd.launch().wait(20) == 1
    assert "doors.refused.sequence" in refusal(both, refused)


def refusal(both: Rivals, sequence: str) -> str:
    """What `logknock check` says against a sequence."""
    file = both.world.config.parent / "refused.toml"
    file.write_text(f'[doors.refused]\nsequence = [{sequence}]\nopens = ["22/tcp"]\n')
    file.chmod(0o600)
    done = both.world.gateway.logknock("check", "-c", str(file), check=False)
    assert done.returncode == 78
    return done.stderr


def test_blanks_and_letter_case_of_knockds_notation_say_the_same(both: Rivals) -> None:
    both.use(Twin("spelled", "7000/tcp 8000/tcp 9000/udp", knockd=("SEQUENCE=7000 , 8000:TCP,9000: Udp",)))
    assert both.play("7000/tcp 8000/tcp 9000/udp") == Outcome("a:spelled", "a:spelled")


def test_both_look_at_the_target_only(both: Rivals) -> None:
    """What goes to another address of the host is nothing to such a door: it begins, advances and ends no attempt."""
    second = "10.99.0.3"
    target = Twin(
        "there", "7000/tcp 8000/tcp 9000/udp", knockd=(f"target = {second}",), logknock=(f'target = ["{second}"]',)
    )
    both.use(target)
    stories = {
        "7000/tcp>2 8000/tcp>2 9000/udp>2": "a:there",
        "7000/tcp 8000/tcp 9000/udp": "",
        "7000/tcp>2 8000/tcp 9000/udp>2": "",
        "7000/tcp>2 9000/udp 8000/tcp>2 9000/udp>2": "a:there",
    }
    assert both.play_all(stories) == [Outcome(opened, opened) for opened in stories.values()]


# ---- one-time sequences


def once(name: str, folder: Path, lines: Iterable[str]) -> tuple[Twin, Path, Path]:
    """A door with these one-time sequences, and the file of each program: knockd writes into its own."""
    theirs, ours = folder / "knockd.txt", folder / "logknock.txt"
    for file in (theirs, ours):
        file.write_text("".join(f" {line}\n" for line in lines))
        file.chmod(0o600)
    lines_of = (f"one_time_sequences = {theirs}",), (f'onetime = ["{ours}"]',)
    return Twin(name, "", knockd=lines_of[0], logknock=lines_of[1]), theirs, ours


def test_t18_one_time_sequences_work_once_each_and_in_order(both: Rivals, tmp_path: Path) -> None:
    """Both remember after a restart what is used; knockd by a # in the file, which we leave as it is."""
    door, theirs, ours = once("once", tmp_path, ("# a comment", *ONCE))
    written = ours.read_bytes()
    both.use(door)
    opened = Outcome("a:once", "a:once")
    assert both.play(USES[1]) == Outcome("", ""), "the second is not yet"
    assert both.play(USES[0]) == opened
    assert both.play(USES[0]) == Outcome("", ""), "the first is used"
    assert both.play(USES[1]) == opened
    both.forget()
    both.daemon.signal(signal.SIGKILL)
    both.daemon.process.wait()
    both.use(door)
    for used in USES[:2]:
        assert both.play(used) == Outcome("", ""), "a restart makes nothing new"
    assert both.play(USES[2]) == opened
    assert theirs.read_text().count("\n#") == 3
    assert ours.read_bytes() == written


def test_t18_a_malformed_line_makes_no_used_sequence_work_again(both: Rivals, tmp_path: Path) -> None:
    """Knockd puts its # at the malformed line instead, and the used one is the next that works."""
    door, _, _ = once("malformed", tmp_path, ("5190:sctp", *ONCE))
    both.use(door)
    both.daemon.wait_for("line 1: ")  # what a use has passed over is told no more
    assert both.play(USES[0]) == Outcome("a:malformed", "a:malformed")
    assert both.play(USES[0]) == Outcome("a:malformed", "")
    assert both.play(USES[1]) == Outcome("a:malformed", "a:malformed")


def test_t18_a_file_that_is_put_back_makes_no_used_sequence_work_again(both: Rivals, tmp_path: Path) -> None:
    """From a backup, say. Knockd knows only what the file says; we keep a record of our own."""
    door, theirs, ours = once("restored", tmp_path, ONCE)
    backup = theirs.read_bytes()
    both.use(door)
    assert both.play(USES[0]) == Outcome("a:restored", "a:restored")
    for file in (theirs, ours):
        file.write_bytes(backup)
    both.forget()
    both.use(door)
    assert both.play(USES[0]) == Outcome("a:restored", "")
    assert both.play(USES[1]) == Outcome("a:restored", "a:restored")


# ---- the page that tells all this


def test_the_page_says_what_is_tested_and_nothing_else() -> None:
    """Its tables are the stories above, row by row, and each test that it names is here."""
    page = PAGE.read_text()
    rows = [f"| {case.id} | {_cells(*case.values)} |" for case in (*AGREED, *DIFFERENT)]
    assert [row for row in rows if row not in page] == []
    assert page.count("\n| ") == len(rows) + 2  # and two heads
    named = set(re.findall(r"`(test_\w+)`", page))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == here - {"test_the_page_says_what_is_tested_and_nothing_else"}


def _cells(story: object, *opened: object) -> str:
    """A story and its outcomes as they stand in a table; a long one is cut."""
    words = str(story).split()
    short = " ".join(words if len(words) < 12 else (*words[:3], "...", words[-1]))
    return " | ".join((f"`{short}`", *(str(doors) or "nothing" for doors in opened)))
