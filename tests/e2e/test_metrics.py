"""Metrics of the running daemon, as Debian's Prometheus and node_exporter read them and the dashboard shows them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from ..netns import Host, pair
from ..peers import UNPACKED
from ..test_metrics import PROJECT, PROMTOOL, RULES, panels
from .booted import BootedHost, booted
from .pages import Guide, follows
from .test_unit import INSTALL
from .world import KNOCKS, LINES, SSH, World, until, write_sequences

PAGE = follows("docs/howto/metrics.md")

LISTEN = '[metrics]\nlisten = "127.0.0.1:9141"\n'
FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=20).read().decode())"


def fetch(host: Host, url: str = "http://127.0.0.1:9141/metrics") -> str:
    return host.python(FETCH, url).stdout


def number(page: str, name: str) -> float:
    """The value of a sample; 0.0 where there is none."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_happens_is_counted(world: World) -> None:
    """From the kernel's log to the number; and what a reload does to them, be it good or bad."""
    world.configure(SSH.replace('"30s"', '"1s"') + LISTEN)
    world.apply()
    with world.daemon() as daemon:
        world.knock(*KNOCKS)
        world.knock("7000/tcp", "8000/tcp", "8001/tcp")
        until(lambda: number(fetch(world.gateway), "logknock_grants_closed_total") == 1, "the door's end")
        page = fetch(world.gateway)
        assert number(page, 'logknock_records_total{source="NFLOG group 5"}') >= 6
        assert [number(page, f'logknock_attempts_total{{door="ssh",stage="{stage}"}}') for stage in (1, 2, 3)] == [
            2,
            2,
            1,
        ]
        assert number(page, 'logknock_attempts_failed_total{door="ssh",reason="wrong"}') == 1
        assert number(page, 'logknock_grants_opened_total{door="ssh"}') == 1
        assert number(page, 'logknock_grants_open{door="ssh"}') == 0
        histogram = "logknock_record_to_grant_seconds"
        assert number(page, f'{histogram}_count{{source="NFLOG group 5"}}') == 1
        assert 0 < number(page, f'{histogram}_sum{{source="NFLOG group 5"}}') < 15, "seq_timeout"
        assert all(f'logknock_degraded{{part="{part}"}} 0.0' in page for part in ("firewall", "store", "metrics"))
        subprocess.run([PROMTOOL, "check", "metrics"], input=page, text=True, check=True)

        world.configure(SSH + "wrong" + LISTEN)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("not reloaded")
        page = fetch(world.gateway)
        assert number(page, 'logknock_config_reloads_total{result="refused"}') == 1
        assert number(page, "logknock_config_last_reload_successful") == 0

        world.configure(SSH + LISTEN.replace("9141", "9142"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded: NFLOG")  # and not `not reloaded: `
        page = fetch(world.gateway, "http://127.0.0.1:9142/metrics")
        assert number(page, "logknock_config_last_reload_successful") == 1
        assert number(page, 'logknock_attempts_total{door="ssh",stage="1"}') == 2
        with world.gateway.inside(), socket.socket() as wire:
            assert wire.connect_ex(("127.0.0.1", 9141)), "the old port is closed"


@pytest.mark.parametrize("wanted", ["T34: a set that is gone", "a port in use", "no library"])
def test_what_is_wrong_is_a_part_that_is_degraded(world: World, wanted: str) -> None:
    """And knocks go on opening doors as far as they can."""
    world.configure(SSH + f'{LISTEN}textfile = "{world.config.parent}/logknock.prom"\n[firewall]\nrestore = false\n')
    world.apply()
    if wanted == "T34: a set that is gone":
        with world.daemon():
            world.gateway.nft("delete table inet logknock")
            until(lambda: number(fetch(world.gateway), 'logknock_degraded{part="firewall"}'), "degraded")
    elif wanted == "a port in use":
        with world.gateway.inside(), socket.create_server(("127.0.0.1", 9141)), world.daemon() as daemon:
            daemon.wait_for("no metrics at 127.0.0.1:9141: address already in use")
            file = world.config.parent / "logknock.prom"
            until(lambda: file.exists() and number(file.read_text(), 'logknock_degraded{part="metrics"}'), "degraded")
            world.knock(*KNOCKS)
            until(world.granted, "an open door")
    else:
        (world.config.parent / "prometheus_client.py").write_text("raise ImportError")
        options = {"env": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(world.config.parent)}}
        command = [sys.executable, "-m", "logknock", "run", "-c", str(world.config)]
        process = world.gateway.start(*command, stderr=subprocess.PIPE, **options)
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            first = next(line for line in lines if "metrics" in line)
            assert first.startswith(
                "error: no metrics: prometheus-client is not installed (hint: `apt install python3-"
            )
            world.knock(*KNOCKS)
            until(world.granted, "an open door")
        finally:
            process.kill()
            process.communicate()


# Connects as fast as it can, in every way that is none: COUNT processes until killed.
FLOOD = """
import os, socket
os.write(1, b"flooding\\n")
for _ in range(2):
    if not os.fork():
        break
held = []
while True:
    wire = socket.socket()
    wire.settimeout(0.2)
    try:
        wire.connect(("127.0.0.1", 9141))
        wire.send(b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" if len(held) % 2 else b"G" * (len(held) % 9000))
    except OSError:
        pass
    held.append(wire)
    if len(held) > 500:
        held.clear()
"""


def test_a_flood_of_clients_delays_no_knock(world: World) -> None:
    """Silent, malformed and greedy ones, as many as three processes can make: a door opens within a second.

    But for one of five, during which the machine itself may have paused.
    """
    world.configure(SSH + LISTEN)
    world.apply()
    with world.daemon():
        flood = world.gateway.start(sys.executable, "-c", FLOOD, stdout=subprocess.PIPE, start_new_session=True)
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "flooding\n"
            for _ in range(5):
                world.knock(*KNOCKS)
        finally:
            os.killpg(flood.pid, signal.SIGKILL)
            flood.communicate()
        bucket = 'logknock_record_to_grant_seconds_bucket{le="%s",source="NFLOG group 5"}'
        until(lambda: bucket % "+Inf" + " 5.0" in fetch(world.gateway), "an answer again, with all of them")
        assert number(fetch(world.gateway), bucket % "1.0") >= 4


# ---- Prometheus


@contextmanager
def prometheus(host: Host, folder: Path, config: str) -> Iterator[None]:
    """Debian's Prometheus on the host, until the block ends."""
    file, log = folder / "prometheus.yml", folder / "prometheus.out"
    file.write_text(config)
    (folder / RULES.name).write_bytes(RULES.read_bytes())
    host.run(f"{UNPACKED}/usr/bin/promtool", "check", "config", str(file))
    command = [f"{UNPACKED}/usr/bin/prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder}/tsdb"]
    with log.open("w") as output:
        process = host.start(*command, "--web.listen-address=127.0.0.1:9090", stdout=output, stderr=output)
    try:
        until(lambda: "Server is ready" in log.read_text(), "a Prometheus")
        yield
    finally:
        process.terminate()
        process.wait()


def queried(host: Host, expression: str) -> list[dict[str, Any]]:
    """What Prometheus says of an expression now."""
    answer = json.loads(fetch(host, "http://127.0.0.1:9090/api/v1/query?" + urlencode({"query": expression})))
    assert answer["status"] == "success", answer
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def filled(expression: str) -> str:
    """An expression of the dashboard with what Grafana puts in: all instances, and times that hold all of a test."""
    times = {"$instance": ".*", "$__rate_interval": "5m", "$__range": "5m"}
    for name, value in times.items():
        expression = expression.replace(name, value)
    return expression


# Nothing of these happens in the test: they are nought.
QUIET = (
    "ignored_total",
    "lost_total",
    "refused_total",
    "not_banned_total",
    "errors_total",
    "stale_total",
    "overruns",
    "evicted",
    "degraded",
)


def shows(host: Host, expression: str) -> bool:
    """Whether an expression of the dashboard has data by now, and more than nought if something of it happens."""
    values = [float(sample["value"][1]) for sample in queried(host, filled(expression))]
    return bool(values) and (any(name in expression for name in QUIET) or any(value > 0 for value in values))


def test_each_panel_of_the_dashboard_has_something_to_show(world: World, tmp_path: Path) -> None:
    """Scraped by the guide's own configuration: knocks, wrong ones, a scan that is banned, one-time sequences."""
    laptop = write_sequences(tmp_path / "laptop", LINES)
    doors = (
        SSH.replace('"30s"', '"2s"\nseq_timeout = "1h"')
        + f'[doors.web]\nonetime = ["{laptop}"]\nopens = ["443/tcp"]\ntimeout = "1h"\n'
    )
    world.configure(f'{doors}{LISTEN}[scan]\nports = 5\nwithin = "10m"\n')
    world.apply()
    (config,) = PAGE.written_in("yaml")
    with (
        world.daemon() as daemon,
        prometheus(world.gateway, tmp_path, "global:\n  scrape_interval: 1s\n" + config.text),
    ):
        until(lambda: queried(world.gateway, "logknock_build_info"), "the first scrape")
        for _ in range(3):
            world.knock(*KNOCKS)
            world.knock("7000/tcp", "8001/tcp")
        daemon.wait_for("4 one-time sequences left")
        world.knock("7001/tcp", "8001/udp", "9001/tcp")
        world.spoof(*(f"198.51.100.9>10.99.0.1:{port}/tcp" for port in range(20_000, 22_000)))  # some thirty traps
        world.spoof(*(f"198.51.100.{host}>10.99.0.1:7000/tcp" for host in range(20, 60)))
        done = "logknock_grants_closed_total >= 1 and on () logknock_banned > 0 and on () logknock_grants_open"
        until(lambda: queried(world.gateway, done), "an end of it")
        for panel in panels():
            for target in panel["targets"]:
                until(partial(shows, world.gateway, target["expr"]), f"{panel['title']}: {target['expr']}")
        assert queried(world.gateway, 'ALERTS{alertname!="LogknockOneTimeFew"}') == []


# ---- the guide


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedHost]:
    """A host on which logknock is installed, with the unit as it is shipped."""
    folder = tmp_path_factory.mktemp("host")
    with pair() as (gateway, _), booted(gateway, folder, capabilities="CAP_SYSLOG,CAP_NET_ADMIN") as inside:
        inside.run("sh", "-ec", INSTALL.format(project=PROJECT))
        inside.run("sh", "-ec", "install -d -m 750 -g logknock /etc/logknock /etc/logknock/conf.d")
        inside.run("install", "-m", "640", "-g", "logknock", "/dev/stdin", "/etc/logknock/logknock.toml", input=SSH)
        inside.run("systemctl", "start", "logknock")
        yield inside
        inside.run("systemctl", "stop", "logknock")


def test_the_guide_can_be_followed(server: BootedHost) -> None:
    """On the unit that lets nothing through: a port, a unix socket, a file for Debian's node_exporter."""
    guide = Guide(PAGE, {"": server})

    def said(words: str) -> bool:
        return words in server.run("journalctl", "-o", "cat", "-u", "logknock").stdout

    guide.run('listen = "127.0.0.1:9141"')
    server.run("systemctl", "restart", "logknock")
    refused = "no metrics at 127.0.0.1:9141: address family not supported by protocol"
    assert refused in (PROJECT / PAGE.name).read_text().replace("\n", " "), "the page says it"
    until(lambda: said(refused), "what the page says happens without the drop-in")
    guide.run("RestrictAddressFamilies")
    guide.shown("logknock_grants_open", guide.run("curl -s http://127.0.0.1"))
    assert "logknock_build_info{" in guide.run("--unix-socket")
    assert server.root("/run/logknock/metrics.sock").stat().st_mode & 0o777 == 0o660
    guide.run("ReadWritePaths")
    file = server.root("/var/lib/prometheus/node-exporter/logknock.prom")
    until(file.exists, "the textfile")
    exporter = [f"{UNPACKED}/usr/bin/prometheus-node-exporter", "--web.listen-address=127.0.0.1:9100"]
    process = server.start(*exporter, "--collector.disable-defaults", "--collector.textfile", stderr=subprocess.DEVNULL)
    try:
        url = "http://127.0.0.1:9100/metrics"
        until(lambda: not server.run("curl", "-sf", url, check=False).returncode, "node_exporter")
        page = server.run("curl", "-sf", url).stdout
        assert number(page, 'logknock_grants_open{door="ssh"}') == 0
        assert 'logknock_grants_open{door="ssh"} 0' in page
        assert number(page, "node_textfile_scrape_error") == 0
        assert 'node_textfile_mtime_seconds{file="/var/lib/prometheus/node-exporter/logknock.prom"}' in page
        server.run("systemctl", "stop", "logknock")
        assert "logknock_" not in server.run("curl", "-sf", url).stdout.replace("logknock.prom", "")
        assert not file.exists()
    finally:
        process.kill()
        process.wait()
