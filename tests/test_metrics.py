"""What is counted, how Prometheus reads it, and what is made of it: alerts, the dashboard, the table of the guide."""

import ipaddress
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logknock import metrics
from logknock.counts import ADOPTED, FAILURES, LATENCIES, REFUSED, Counts, Facts, Left
from logknock.knock import Door, Evicted, Matcher, Reason
from logknock.metrics import FAMILIES
from logknock.packet import Packet
from logknock.spa import Reason as SpaReason
from logknock.standing import Degraded, DoorStanding, SourceStanding, Standing
from logknock.trail import Memory

from .peers import UNPACKED
from .test_trail import DONE, SSH, WEB, knock, sequence

PROJECT = Path(__file__).parent.parent
PROMTOOL = UNPACKED / "usr/bin/promtool"
RULES = PROJECT / "packaging/prometheus/logknock.rules.yml"
DASHBOARD = PROJECT / "packaging/grafana/logknock.json"
GUIDE = PROJECT / "docs/howto/metrics.md"

MAIL = Door("vpn", (), opens=SSH.opens, proof="spa")


def counted(doors: list[Door], packets: list[Packet], max_knockers: int = 1_000) -> Counts:
    """What a daemon has counted after these packets."""
    matcher, memory = Matcher(doors, max_knockers), Memory()
    memory.counts.use(doors, ["log"])
    for packet in packets:
        memory.keep(packet, matcher.receive(packet))
    return memory.counts


def source(number: int) -> bytes:
    return ipaddress.ip_address(f"198.51.100.{number}").packed


# ---- what is counted


@pytest.mark.parametrize(
    ("story", "stages", "failures"),
    [
        pytest.param("", "000", {}, id="nothing"),
        pytest.param("7000/tcp", "100", {}, id="a first knock"),
        pytest.param("7000/tcp 8000/tcp 9000/udp", "111", {}, id="a door that opens"),
        pytest.param("7000/tcp 7000/tcp", "100", {}, id="T7: a resend is no attempt"),
        pytest.param("7000/tcp 7001/tcp", "100", {Reason.WRONG: 1}, id="a wrong port"),
        pytest.param("7000/tcp 7001/tcp 7000/tcp 8000/tcp", "210", {Reason.WRONG: 1}, id="and another try"),
        pytest.param("7000/tcp - 8000/tcp", "100", {Reason.TIMEOUT: 1}, id="too late"),
        pytest.param("7001/tcp", "000", {}, id="a port of nobody's"),
    ],
)
def test_attempts_are_counted_by_stage_and_failures_by_reason(
    story: str, stages: str, failures: dict[Reason, int]
) -> None:
    packets, now = [], 0.0
    for word in story.split():
        now += 100.0 if word == "-" else 1.0
        if word != "-":
            packets.append(knock(now, word))
    found = counted([SSH], packets).counted()
    assert found.attempts == {"ssh": {stage: int(times) for stage, times in enumerate(stages, 1)}}
    assert found.failures == {"ssh": dict.fromkeys(FAILURES, 0) | failures}


def test_doors_that_begin_alike_are_counted_each_for_itself() -> None:
    """SSH and WEB part with the third knock."""
    found = counted([SSH, WEB, DONE], [knock(0, "7000/tcp"), knock(1, "8000/tcp"), knock(2, "7500/tcp")]).counted()
    assert found.attempts == {"ssh": {1: 1, 2: 1, 3: 0}, "web": {1: 1, 2: 1, 3: 1}, "done": {1: 0, 2: 0}}


def test_all_that_give_way_in_a_flood_are_counted() -> None:
    """T13: each source once, whatever it had begun."""
    matcher, memory = Matcher([SSH, WEB], 64), Memory()
    memory.counts.use([SSH, WEB], [])
    evicted = 0
    for number in range(250):
        packet = knock(number / 1000, "7000/tcp", src=source(number))
        events = matcher.receive(packet)
        memory.keep(packet, events)
        evicted += sum(len(event.sources) for event in events if isinstance(event, Evicted))
    assert memory.counts.counted().evicted == evicted == 250 - matcher.knockers
    assert memory.counts.counted().attempts["web"][1] == 250


def test_what_ends_by_itself_is_counted_too() -> None:
    """Nobody sends the packet that an attempt times out for."""
    matcher, memory = Matcher([SSH]), Memory()
    memory.counts.use([SSH], [])
    packet = knock(0, "7000/tcp")
    memory.keep(packet, matcher.receive(packet))
    memory.keep_ended(matcher.expire(100.0), 100.0)
    assert memory.counts.counted().failures["ssh"][Reason.TIMEOUT] == 1


def test_a_reload_keeps_the_counts_of_doors_that_stay_and_forgets_the_others() -> None:
    """Attempts at a door that is gone may still end: they count for nobody."""
    counts = counted([SSH, DONE], [knock(0, "7000/tcp"), knock(0, "9100/tcp", src=source(9))])
    counts.refused("ssh")
    counts.refused("done")
    counts.opened("log", 0.2)
    longer = Door("ssh", sequence("7000/tcp 8000/tcp 9000/udp 9001/udp"), opens=SSH.opens)
    counts.use([longer, WEB], ["other"])
    counts.opened("log", 0.2)
    counts.refused("done")
    found = counts.counted()
    assert found.attempts == {"ssh": {1: 1, 2: 0, 3: 0, 4: 0}, "web": {1: 0, 2: 0, 3: 0}}
    assert found.refused == {"ssh": 1, "web": 0}
    assert found.latencies.keys() == {"other"}
    assert found.failures.keys() == found.attempts.keys()


def test_single_packets_are_counted_where_some_door_takes_them() -> None:
    counts = Counts()
    counts.use([SSH], ["log"])
    assert counts.counted().mailed == {}
    counts.use([SSH, MAIL], ["log"])
    counts.mailed(None)
    counts.mailed(SpaReason.AGE)
    counts.use([MAIL], ["log"])
    found = counts.counted().mailed
    assert found.keys() == {"accepted", *(reason.name.lower() for reason in SpaReason)}
    assert {result for result, times in found.items() if times} == {"accepted", "age"}


def test_what_is_kept_between_two_seconds_is_bounded_by_the_doors() -> None:
    """T13: a million first knocks of a million sources are one entry, and none after a second."""
    counts = counted([SSH, WEB], [knock(0, "7000/tcp", src=number.to_bytes(4, "big")) for number in range(1, 5_000)])
    assert len(counts.begun) == 1
    counts.settle()
    assert not counts.begun
    assert counts.counted().attempts["web"][1] == 4_999


def test_a_latency_is_in_its_bucket() -> None:
    """The end of a bucket belongs to it (`le`); what is longer than all counts; a clock set back is no time."""
    counts = Counts()
    counts.use([], ["log"])
    for seconds in (-3.0, 0.0005, 0.0006, 60.0):
        counts.opened("log", seconds)
    found = counts.counted().latencies["log"]
    assert dict(zip(LATENCIES, found.counts, strict=False)) == {end: 2 if end == 0.0005 else 3 for end in LATENCIES}
    assert found.counts[-1] == 4
    assert found.seconds == pytest.approx(60.0011)


def test_reloads_are_counted_by_their_result() -> None:
    counts = Counts()
    assert counts.counted().reloaded
    counts.reloaded(REFUSED)
    assert not counts.counted().reloaded
    counts.reloaded(ADOPTED)
    assert counts.counted()[-2:] == ({ADOPTED: 1, REFUSED: 1}, True)


# ---- how it reads


def facts(doors: int = 2) -> Facts:
    """A daemon to which everything has happened."""
    named = [Door(f"door-{number}", SSH.sequence, opens=SSH.opens) for number in range(doors)]
    counts = counted([*named, MAIL], [knock(0, "7000/tcp"), knock(1, "8000/tcp"), knock(2, "1/tcp")])
    counts.opened("log", 0.003)
    for reason in (None, SpaReason.HMAC, SpaReason.HMAC, SpaReason.REPLAYED):
        counts.mailed(reason)
    standing = Standing(
        version="1.2.3",
        started=1e9,
        loaded=1e9 + 1,
        sources=(SourceStanding("log", 10, 2, 3, 0.5, ""), SourceStanding('odd "\\\n', 1, 0, 0, 0.0, "it has ended")),
        doors=tuple(DoorStanding(door.name, 1, 2) for door in named),
        attempts=4,
        opened=5,
        closed=6,
        refused=7,
        stale=8,
        banned=9,
        firewall_errors=10,
        store_errors=11,
        degraded=(Degraded("store", 1e9, "it is full", "make room"),),
        overruns=12,
        not_banned=13,
    )
    return Facts(standing, counts.counted(), (Left("door-0", "/etc/logknock/onetime/laptop", 14),))


def page(made: Facts, accept: str = "") -> str:
    return b"".join(metrics.text(made, accept)).decode()


def test_promtool_finds_nothing_to_say() -> None:
    """Names, units, types and help texts are by Prometheus's conventions."""
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=page(facts()), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "line",
    [
        'logknock_build_info{version="1.2.3"} 1.0',
        "logknock_start_time_seconds 1e+09",
        'logknock_degraded{part="store"} 1.0',
        'logknock_degraded{part="firewall"} 0.0',
        'logknock_source_up{source="log"} 1.0',
        'logknock_source_up{source="odd \\"\\\\\\n"} 0.0',
        'logknock_records_total{source="log"} 10.0',
        'logknock_records_lost_total{source="log"} 2.0',
        'logknock_records_ignored_total{source="log"} 3.0',
        'logknock_packets_total{source="log"} 7.0',
        "logknock_knockers 4.0",
        'logknock_attempts_total{door="door-1",stage="2"} 1.0',
        'logknock_attempts_failed_total{door="door-1",reason="wrong"} 1.0',
        'logknock_spa_packets_total{result="accepted"} 1.0',
        'logknock_spa_packets_total{result="hmac"} 2.0',
        'logknock_spa_packets_total{result="replayed"} 1.0',
        'logknock_spa_packets_total{result="age"} 0.0',
        'logknock_grants_open{door="door-1"} 1.0',
        'logknock_grants_opened_total{door="door-1"} 2.0',
        'logknock_grants_refused_total{door="door-1"} 0.0',
        "logknock_grants_closed_total 6.0",
        'logknock_record_to_grant_seconds_bucket{le="0.0025",source="log"} 0.0',
        'logknock_record_to_grant_seconds_bucket{le="0.005",source="log"} 1.0',
        'logknock_record_to_grant_seconds_bucket{le="+Inf",source="log"} 1.0',
        'logknock_record_to_grant_seconds_sum{source="log"} 0.003',
        "logknock_packets_stale_total 8.0",
        "logknock_banned 9.0",
        "logknock_firewall_errors_total 10.0",
        "logknock_store_errors_total 11.0",
        "logknock_receive_overruns_total 12.0",
        "logknock_scanners_not_banned_total 13.0",
        'logknock_onetime_sequences_left{door="door-0",file="/etc/logknock/onetime/laptop"} 14.0',
    ],
)
def test_each_number_is_where_it_belongs(line: str) -> None:
    assert line in page(facts()).splitlines()


def test_no_label_is_an_address_and_the_configuration_bounds_the_series() -> None:
    """T13: whoever knocks, and however often, makes no series."""
    quiet, busy = (
        counted([SSH, DONE], [knock(0, "7000/tcp", src=source(number)) for number in range(sources)]).counted()
        for sources in (0, 200)
    )
    before, after = (page(facts()._replace(counted=found)).splitlines() for found in (quiet, busy))
    assert len(before) == len(after)
    assert "198.51.100" not in "\n".join(after)
    labels = set(itertools.chain.from_iterable(family.labels for family in FAMILIES))
    assert labels == {"version", "result", "part", "source", "door", "stage", "reason", "file"}


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_a_family_in_pieces_has_one_head(accept: str) -> None:
    """A thousand doors take many pieces; what they make is what one piece would have made."""
    lines = page(facts(300), accept).splitlines()
    heads = [line for line in lines if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads)) == len(FAMILIES)
    assert len([line for line in lines if line.startswith("logknock_attempts_total{")]) == 900
    named = [line.partition("{")[0].partition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(list(itertools.groupby(named, metrics_of))) == len(FAMILIES)
    assert (lines[-1] == "# EOF") == bool(accept)


def test_without_metrics_the_library_is_not_even_imported() -> None:
    code = "import sys, logknock.daemon; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- alerts


def test_the_alert_rules_are_sound() -> None:
    done = subprocess.run([PROMTOOL, "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    """tests/alerts.yml plays them."""
    tests = PROJECT / "tests/alerts.yml"
    done = subprocess.run([PROMTOOL, "test", "rules", tests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    assert alerts
    for alert in alerts:
        firing = rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels"
        assert re.search(firing, tests.read_text()), f"no test has {alert} fire"


# ---- what is known of which metric


def metrics_of(name: str) -> str:
    """The metric that a line is of."""
    return re.sub("(?<=seconds)_(bucket|count|sum)$", "", name)


def exported() -> set[str]:
    """The names that the page has, those of a histogram's parts too."""
    parts = ("_bucket", "_count", "_sum")
    families = {family.name for family in FAMILIES}
    return families | {f"{family.name}{part}" for family in FAMILIES if family.kind == "histogram" for part in parts}


@pytest.mark.parametrize("file", [RULES, DASHBOARD, GUIDE], ids=lambda file: file.name)
def test_what_is_asked_for_exists(file: Path) -> None:
    """A misspelt name is silence, and silence looks like health."""
    named = set(re.findall(r"\blogknock_[a-z_]+", file.read_text()))
    assert named
    assert named <= exported(), named - exported()


def test_the_table_of_the_guide_is_what_is_exported() -> None:
    """Names, types, labels."""
    rows = re.findall(r"^\| `(logknock_\w+)` \| (\w+) \| (.*?) \|", GUIDE.read_text(), re.MULTILINE)
    expected = [(family.name, family.kind, ", ".join(f"`{label}`" for label in family.labels)) for family in FAMILIES]
    assert rows == expected


def test_every_alert_is_in_the_guide() -> None:
    for alert in re.findall(r"alert: (\w+)", RULES.read_text()):
        assert f"| `{alert}` |" in GUIDE.read_text()


# ---- the dashboard


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """No data source, dashboard or version of one Grafana is in it; each panel has its place and a query."""
    board = json.loads(DASHBOARD.read_text())
    assert board["id"] is None
    assert board["schemaVersion"] >= 39
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["datasource"]["uid"] == "${datasource}"
    used: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["description"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert "$instance" in target["expr"]
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert place["x"] + place["w"] <= 24
        assert not cells & used, f"{panel['title']} lies on another"
        used |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
