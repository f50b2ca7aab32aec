"""docs/howto/ssh.md, followed from a laptop: real ssh, scp, rsync and git through real doors.

The hosts are network namespaces with file systems of their own; inside.example is one that only host.example reaches.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..netns import Host
from ..peers import UNPACKED
from .pages import (
    COMMANDS,
    HOST,
    Guide,
    PrivateHost,
    documented,
    follows,
    guarded,
    make_keys,
    may_ssh,
    private,
    reaches,
    read,
    run,
    ssh_server,
)
from .world import until

PAGE = follows("docs/howto/ssh.md")
PROFILE = read("docs/howto/client.md").block("[profiles.home]", "toml").text

DOOR = '[doors.ssh]\nsequence = ["{}/tcp", "{}/udp", "{}/tcp"]\nopens = ["22/tcp"]\n'

INSIDE = "10.98.0.2"
NAMES = {"host.example": HOST, "inside.example": (INSIDE,), "web.fleet.example": HOST}
TOOLS = (*COMMANDS, UNPACKED / "usr/bin/rsync")

CLIENT = """
install -D -m 600 {keys}/client.toml /root/.config/logknock/client.toml
printf '[user]\\nname = somebody\\n[init]\\ndefaultBranch = main\\n' > /root/.gitconfig
"""


# Nothing is booted here: that this is asked to disable the unit is looked at, and what comes of it in test_unit.py.
SYSTEMCTL = r"""
printf '#!/bin/sh\necho systemctl "$@" >> /root/systemctl\n' | install -D -m 755 /dev/stdin /usr/local/bin/systemctl
"""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Keys for all hosts, and the profile of the page before."""
    folder = tmp_path / "keys"
    folder.mkdir()
    make_keys(folder, *NAMES, INSIDE, *HOST)
    (folder / "client.toml").write_text(PROFILE)
    return folder


@contextmanager
def served(host: Host, keys: Path) -> Iterator[PrivateHost]:
    """The host with an ssh server."""
    with private(host, NAMES, TOOLS) as made, ssh_server(made, keys):
        yield made


@contextmanager
def behind(gateway: Host) -> Iterator[Host]:
    """A host that only the gateway reaches."""
    host = Host(f"{gateway.name}i", INSIDE, "")
    subprocess.run(["ip", "netns", "add", host.name], check=True)
    try:
        gateway.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", host.name)
        gateway.run("ip", "addr", "add", "10.98.0.1/24", "dev", "eth1")
        gateway.run("ip", "link", "set", "eth1", "up")
        host.run("ip", "addr", "add", f"{host.ipv4}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            host.run("ip", "link", "set", link, "up")
        yield host
    finally:
        subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def test_ssh_day_by_day(hosts: tuple[Host, Host], keys: Path) -> None:
    """Each command of the page; where it says that a door is needed, the door is seen to be shut without."""
    documented(hosts)
    home = DOOR.format(7000, 9000, 8000)
    (both_doors,) = PAGE.written_in("toml")
    with ExitStack() as stack:
        enter = stack.enter_context
        gateway = enter(served(hosts[0], keys))
        inside = enter(served(enter(behind(hosts[0])), keys))
        client = enter(private(hosts[1], NAMES, TOOLS))
        may_ssh(client, keys)
        run(client, CLIENT.format(keys=keys))
        guide = Guide(PAGE, {"": client, "host.example": gateway})

        with guarded(gateway, home):
            assert not reaches(client)
            guide.run("Host host.example\n")
            guide.run("scp report.txt")
            assert run(client, "cat back.txt project/.git/config").startswith("as ever\n[core]")
            guide.run("ControlMaster")
            guide.run("ProxyCommand=none")
            guide.run("ProxyJump host.example")
            with guarded(inside, DOOR.format(7300, 9300, 8300)):
                guide.run("[profiles.inside]")
                guide.run("ssh host.example logknock-client")
        with guarded(gateway, both_doors.text):
            run(client, "logknock-client knock home")
            until(lambda: reaches(client), "a door that is open for eight hours")
            guide.run("[profiles.home-done]")
            until(lambda: not reaches(client), "the door that is closed by a knock")
        with guarded(gateway, home):
            guide.run("knock -6 home")
            assert (reaches(client, HOST[0]), reaches(client, HOST[1])) == (False, True)
            guide.run("web.fleet.example")
            run(gateway, "logknock revoke --all")
            assert not reaches(client)
            guide.run("logknock grant ssh")
            until(lambda: reaches(client, HOST[0]), "an open door")
            run(gateway, SYSTEMCTL)
            guide.run("rules remove")
            assert "systemctl disable --now logknock" in run(gateway, "cat /root/systemctl")
            assert "logknock" not in run(gateway, "nft list tables")
            with guide.start("rules apply --confirm") as trial:
                trial.expect("within 60 s")
                assert "logknock" in run(gateway, "nft list tables")
                run(gateway, "logknock rules confirm")
