"""docs/tutorial.md from the first command to the last: the package on a booted Debian, ssh, and another machine."""

import shutil
from pathlib import Path

import pytest

from ..netns import Host
from .booted import BootedHost, booted
from .pages import (
    HOST,
    KNOCKER,
    Guide,
    PrivateHost,
    documented,
    follows,
    make_keys,
    may_ssh,
    private,
    reaches,
    run,
    ssh_server,
)
from .test_deb import Packages, built, packages
from .world import until

PAGE = follows("docs/tutorial.md")

# DEB's own fixtures, which this module uses as they are.
__all__ = ["built", "packages"]

# What is there of logknock when all is undone.
LEFT = "nft list ruleset; ls -d /etc/logknock /var/lib/logknock /usr/bin/logknock* 2>/dev/null || true"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "host"
    made.mkdir()
    make_keys(made, "host.example")
    return made


def test_the_tutorial(hosts: tuple[Host, Host], folder: Path, packages: Packages) -> None:
    documented(hosts)
    for package in packages.names:
        shutil.copy(package, folder)
    with (
        private(hosts[1], {"host.example": HOST[:1]}) as friend,
        booted(hosts[0], folder, capabilities="CAP_SYSLOG,CAP_NET_ADMIN") as host,
        ssh_server(host, folder),
    ):
        may_ssh(friend, folder)
        for machine in (host, friend):
            run(machine, f"rm -rf /etc/logknock /var/lib/logknock; cp {folder}/*.deb .")
        follow(Guide(PAGE, {"": host, "the other machine": friend}), host, friend)
        assert run(host, LEFT) == ""


def follow(guide: Guide, host: BootedHost, friend: PrivateHost) -> None:
    guide.run("apt install ./logknock_")
    guide.shown("no door is configured yet", guide.run("is-active"))
    until(lambda: reaches(friend, HOST[0]), "an open door")
    guide.shown("ok, 1 door", guide.run("logknock check"))
    with guide.start("--confirm 60s") as trial:
        trial.expect("within 60 s")
        assert not reaches(friend, HOST[0])
        guide.run("rules confirm")
        guide.shown("1 guarded", trial.end())
    guide.shown("active (running)", guide.run("systemctl status"))
    with guide.start("logknock watch") as watching:
        guide.run("apt install ./logknock-client")
        guide.shown("the door is shut", guide.run("|| echo"))
        watching.expect("OPEN SESAME")
        guide.shown("Stage 1", watching.so_far())
        watching.interrupt()
    until(lambda: reaches(friend, HOST[0]), "an open door")
    guide.run("7000/tcp 9000/udp 8000/tcp")
    until(lambda: KNOCKER[0] in run(host, "logknock grants"), "an open door")
    guide.shown("door  address", guide.run("logknock grants"))
    guide.shown("timeout 30s", guide.run("nft list set"))
    assert KNOCKER[0] in guide.run("logknock status\n")
    guide.run("8000/tcp 9000/udp")
    guide.shown("wrong port", guide.run("logknock explain"))
    guide.run("is-enabled")
    run(host, "logknock revoke --all ssh")
    assert not reaches(friend, HOST[0])
    guide.run("ProxyCommand")
    guide.run("systemctl reload")
    run(host, "logknock revoke --all ssh")
    guide.run("disable --now")
    until(lambda: reaches(friend, HOST[0]), "an open door")
    guide.run("apt purge")
