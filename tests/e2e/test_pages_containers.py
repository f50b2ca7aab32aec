"""docs/howto/containers.md on a booted host with Debian's Docker: a port in front of a container, and guards inside."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest

from ..netns import Host
from ..peers import UNPACKED
from .booted import BootedHost, booted
from .neighbours import install
from .pages import COMMANDS, HOST, Guide, PrivateHost, documented, follows, private, reaches, run
from .test_neighbours import DOCKER
from .world import ECHO, until

PAGE = follows("docs/howto/containers.md")
# An image without a file of its own, and in it this machine's Python.
CONTAINER = "docker run -v /usr:/usr:ro {options} empty /usr/bin/python3 -c {code} {words}"
INNER = "172.17.0.2"
TO_HOST = "import socket; socket.create_connection(('172.17.0.1', 8080), timeout=3)"

# A namespace with one link to the host, and a service in it.
LAB = """
ip netns add lab
ip link add lab0 type veth peer name eth0 netns lab
ip addr add 10.97.0.1/24 dev lab0
ip -n lab addr add 10.97.0.2/24 dev eth0
for link in lo eth0; do ip -n lab link set $link up; done
ip link set lab0 up
systemd-run -q --unit=service-of-lab --property=NetworkNamespacePath=/run/netns/lab /usr/bin/python3 -c {code} 22
"""
KNOCK_THERE = "logknock knock --verify 22/tcp 10.97.0.2 7200/tcp 9200/udp 8200/tcp"


@pytest.fixture
def both(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[tuple[BootedHost, PrivateHost]]:
    """A host with logknock and a container that serves port 8080, and somebody elsewhere."""
    folder = tmp_path / "host"
    folder.mkdir()
    documented(hosts)
    with (
        private(hosts[1], {"host.example": HOST[:1]}, COMMANDS) as client,
        booted(hosts[0], folder, UNPACKED) as host,
    ):
        install(host)
        run(host, f"systemctl start logknock\n{DOCKER}")
        run(host, CONTAINER.format(options="--detach -p 8080:80", code=quote(ECHO), words="80"))
        yield host, client


def shut(host: BootedHost, client: PrivateHost) -> None:
    run(host, "logknock revoke --all web")
    until(lambda: not reaches(client, port=8080), "a port that is shut again")


def test_a_host_with_containers(both: tuple[BootedHost, PrivateHost]) -> None:
    host, client = both
    guide = Guide(PAGE, {"": host, "client": client})
    until(lambda: reaches(client, port=8080), "the container's service")
    guide.run("[doors.web]")
    assert not reaches(client, port=8080)
    guide.run("--verify 8080/tcp")
    until(lambda: reaches(client, port=8080), "an open door")
    shut(host, client)

    client.run("ip", "route", "add", f"{INNER}/32", "via", HOST[0])
    until(lambda: reaches(client, INNER, port=80), "the way around the guard")
    guide.run("DOCKER-USER")
    assert not reaches(client, INNER, port=80)
    guide.run("--verify 8080/tcp")
    until(lambda: reaches(client, port=8080), "an open door")
    shut(host, client)

    from_another = CONTAINER.format(options="--rm", code=quote(TO_HOST), words="")
    assert "TimeoutError" in run(host, f"{from_another} 2>&1 && exit 1 || true")
    assert "172.17.0.0/16\n" in guide.run("docker network inspect")
    run(host, from_another)
    assert not reaches(client, port=8080)

    run(host, LAB.format(code=quote(ECHO)))
    guide.run("logknock@lab.service.d")
    run(host, "! logknock knock --verify 22/tcp --tries 1 --timeout 1s 10.97.0.2 7200/tcp")
    run(host, KNOCK_THERE)
    assert "lab  10.97.0.1" in guide.run("logknock status -c")
    guide.shown("live: a gateway", guide.run("unshare --user"))
