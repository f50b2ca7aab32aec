"""What happened, as Prometheus reads it: a name, a type and a help text for each number that the daemon has.

Rule 1: pure; prometheus-client is imported here alone, and this module only where metrics are configured. Rule 2:
labels are doors, sources, files, stages, reasons and parts: there are as many series as the configuration makes, and
never an address. Rule 3: a thousand doors make ten thousand lines: the text comes in parts of half a millisecond each.

Names: a unit where there is one (seconds), `_total` where it only grows, nought at the start of the process
(prometheus.io/docs/practices/naming).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from .counts import ADOPTED, LATENCIES, REFUSED, Facts, Latency
from .standing import PARTS

# Lines that are made at a time: each takes 8 microseconds or so.
LINES_AT_ONCE = 64

_END = b"# EOF\n"  # of OpenMetrics, which prometheus-client puts behind each part

Value = float | Latency
Sample = tuple[tuple[str, ...], Value]


class Family(NamedTuple):
    """A metric: samples gives the values of its labels and its own; what is unlabelled is one sample."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Facts], Iterable[Sample]]


def _one(value: Callable[[Facts], float]) -> Callable[[Facts], Iterable[Sample]]:
    return lambda facts: [((), value(facts))]


FAMILIES = (
    Family(
        "logknock_build_info",
        "gauge",
        "1, with the version that runs.",
        ("version",),
        lambda facts: [((facts.standing.version,), 1)],
    ),
    Family(
        "logknock_start_time_seconds",
        "gauge",
        "When the daemon was started, since the epoch.",
        (),
        _one(lambda facts: facts.standing.started),
    ),
    Family(
        "logknock_config_loaded_timestamp_seconds",
        "gauge",
        "Since when the configuration counts, since the epoch.",
        (),
        _one(lambda facts: facts.standing.loaded),
    ),
    Family(
        "logknock_config_last_reload_successful",
        "gauge",
        "1, or 0 where the last reload was refused and the configuration from before stays in force.",
        (),
        _one(lambda facts: facts.counted.reloaded),
    ),
    Family(
        "logknock_config_reloads_total",
        "counter",
        "Reloads, by their result.",
        ("result",),
        lambda facts: [((result,), facts.counted.reloads[result]) for result in (ADOPTED, REFUSED)],
    ),
    Family(
        "logknock_degraded",
        "gauge",
        "1 where this part keeps knocks from opening doors, or something would be lost; else 0.",
        ("part",),
        lambda facts: _degraded(facts),
    ),
    Family(
        "logknock_source_up",
        "gauge",
        "1 where the source can be read, else 0.",
        ("source",),
        lambda facts: [((source.name,), not source.trouble) for source in facts.standing.sources],
    ),
    Family(
        "logknock_records_total",
        "counter",
        "Records of the firewall's log that were read.",
        ("source",),
        lambda facts: [((source.name,), source.records) for source in facts.standing.sources],
    ),
    Family(
        "logknock_records_lost_total",
        "counter",
        "Records that are known to be lost on the way: a knock may have been among them.",
        ("source",),
        lambda facts: [((source.name,), source.lost) for source in facts.standing.sources],
    ),
    Family(
        "logknock_records_ignored_total",
        "counter",
        "Records that held no packet that could be a knock.",
        ("source",),
        lambda facts: [((source.name,), source.ignored) for source in facts.standing.sources],
    ),
    Family(
        "logknock_packets_total",
        "counter",
        "Packets that records told of; each counts for every source that has it.",
        ("source",),
        lambda facts: [((source.name,), source.records - source.ignored) for source in facts.standing.sources],
    ),
    Family(
        "logknock_packets_stale_total",
        "counter",
        "Packets that were read too late to mean anything, or came from the future.",
        (),
        _one(lambda facts: facts.standing.stale),
    ),
    Family(
        "logknock_receive_overruns_total",
        "counter",
        "How often the kernel had no room for a record of NFLOG.",
        (),
        _one(lambda facts: facts.standing.overruns),
    ),
    Family(
        "logknock_knockers",
        "gauge",
        "Knockers with an attempt under way.",
        (),
        _one(lambda facts: facts.standing.attempts),
    ),
    Family(
        "logknock_attempts_total",
        "counter",
        "Attempts that came as far as this stage of the door; stage 1: that began.",
        ("door", "stage"),
        lambda facts: (
            ((door, str(stage)), times)
            for door, stages in facts.counted.attempts.items()
            for stage, times in sorted(stages.items())
        ),
    ),
    Family(
        "logknock_attempts_failed_total",
        "counter",
        "Attempts at the door that ended without opening it: by a wrong port, the timeout, a clock stepped back, "
        "a one-time sequence spent, the cooldown, a client's step that is used up or of another time.",
        ("door", "reason"),
        lambda facts: (
            ((door, reason.name.lower()), times)
            for door, reasons in facts.counted.failures.items()
            for reason, times in reasons.items()
        ),
    ),
    Family(
        "logknock_spa_packets_total",
        "counter",
        "Single packets (SPA), by what became of them: accepted, or the first reason why they open nothing.",
        ("result",),
        lambda facts: (((result,), times) for result, times in facts.counted.mailed.items()),
    ),
    Family(
        "logknock_knockers_evicted_total",
        "counter",
        "Knockers whose attempts gave way to those of others, since too many knocked.",
        (),
        _one(lambda facts: facts.counted.evicted),
    ),
    Family(
        "logknock_grants_open",
        "gauge",
        "Knockers for whom the door is open now.",
        ("door",),
        lambda facts: [((door.name,), door.open) for door in facts.standing.doors],
    ),
    Family(
        "logknock_grants_opened_total",
        "counter",
        "How often the door was opened, for longer where it was open already, or by hand.",
        ("door",),
        lambda facts: [((door.name,), door.opened) for door in facts.standing.doors],
    ),
    Family(
        "logknock_grants_refused_total",
        "counter",
        "Right knocks that did not open the door: the address is never granted, or the firewall or the store refused.",
        ("door",),
        lambda facts: [((door,), times) for door, times in facts.counted.refused.items()],
    ),
    Family(
        "logknock_grants_closed_total",
        "counter",
        "Grants that have ended, at any door, by their timeout, another door or by hand.",
        (),
        _one(lambda facts: facts.standing.closed),
    ),
    Family(
        "logknock_record_to_grant_seconds",
        "histogram",
        "From the last knock's time, as its record has it, until the door was open.",
        ("source",),
        lambda facts: [((name,), latency) for name, latency in facts.counted.latencies.items()],
    ),
    Family(
        "logknock_firewall_errors_total",
        "counter",
        "How often the kernel refused to open or close a door.",
        (),
        _one(lambda facts: facts.standing.firewall_errors),
    ),
    Family(
        "logknock_store_errors_total",
        "counter",
        "How often the state database could not be read or written.",
        (),
        _one(lambda facts: facts.standing.store_errors),
    ),
    Family(
        "logknock_banned",
        "gauge",
        "Addresses, and IPv6 prefixes, that are banned now.",
        (),
        _one(lambda facts: facts.standing.banned),
    ),
    Family(
        "logknock_scanners_not_banned_total",
        "counter",
        "Scanners that were not banned: for want of room, too many at a time, or refused by the kernel.",
        (),
        _one(lambda facts: facts.standing.not_banned),
    ),
    Family(
        "logknock_onetime_sequences_left",
        "gauge",
        "Sequences that are left in a file of one-time sequences.",
        ("door", "file"),
        lambda facts: (((left.door, left.file), left.sequences) for left in facts.onetime),
    ),
)


def _degraded(facts: Facts) -> Iterator[Sample]:
    there = {trouble.part for trouble in facts.standing.degraded}
    for part in PARTS:
        yield (part,), part in there


def content_type(accept: str) -> str:
    """What is answered to an Accept header: OpenMetrics to who asks for it, else Prometheus's text."""
    return choose_encoder(accept)[1]


def text(facts: Facts, accept: str = "") -> Iterator[bytes]:
    """The whole text, in parts, in the format of content_type(accept)."""
    encode = choose_encoder(accept)[0]
    ending = b""
    for metric, is_first in _metrics(facts):
        part = encode(_Single(metric))
        if part.endswith(_END):
            part, ending = part.removesuffix(_END), _END
        yield part if is_first else _bare(part)
    yield ending


class _Single(CollectorRegistry):
    """One metric, as the registry that encoders ask."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(auto_describe=False)
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _metrics(facts: Facts) -> Iterator[tuple[Metric, bool]]:
    """Each family, in pieces where it is large; and whether it is its first piece."""
    for family in FAMILIES:
        samples, is_first = iter(family.samples(facts)), True
        while piece := list(islice(samples, LINES_AT_ONCE)):
            yield _metric(family, piece), is_first
            is_first = False


def _metric(family: Family, samples: Iterable[Sample]) -> Metric:
    name, _, words, labels, _ = family
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, words, labels=labels)
        for values, latency in samples:
            assert isinstance(latency, Latency)
            histogram.add_metric(values, _buckets(latency), latency.seconds)
        return histogram
    made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(name, words, labels=labels)
    for values, value in samples:
        assert not isinstance(value, Latency)
        made.add_metric(values, value)
    return made


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    ends = [*map(floatToGoString, LATENCIES), "+Inf"]
    return list(zip(ends, latency.counts, strict=True))


def _bare(part: bytes) -> bytes:
    """Without the head that the first piece of its family had."""
    return b"".join(line for line in part.splitlines(keepends=True) if not line.startswith(b"#"))
