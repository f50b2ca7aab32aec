"""docs/howto/firewalls.md, copied as it stands on hosts with ufw, firewalld, Docker and a ruleset of their own.

From each firewall's own rules on: closed without a knock, open with it, both through that firewall's reload (T33, T34),
and gone without a trace.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import pytest

from ..netns import Host
from .neighbours import Neighbour, neighbour
from .pages import Block, follows
from .world import ECHO, until

PAGE = follows("docs/howto/firewalls.md")


class Knocks(NamedTuple):
    """What opens a door, and a service that is a wrong knock between the first and the others."""

    first: str
    others: tuple[str, ...]
    wrong: str


TUTORIAL = Knocks("7000/tcp", ("9000/udp", "8000/tcp"), wrong="7001/tcp")
WEB = Knocks("7100/tcp", ("9100/udp", "8100/tcp"), wrong="7101/tcp")
# Where another firewall records what it drops, any service will do, and not traps only.
ALL_RECORDED = TUTORIAL._replace(wrong="4444/tcp")


NOBODY: frozenset[str] = frozenset()


def blocks(section: str) -> tuple[Block, ...]:
    """The commands of a section, block by block."""
    found = PAGE.under(section).commands
    assert all(block.text.count("\n") <= 10 for block in found), "ten lines are promised"
    return found


@pytest.fixture
def host(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Neighbour]:
    folder = tmp_path / "host"
    folder.mkdir()
    with neighbour(hosts, folder) as made:
        yield made


def follow(
    host: Neighbour,
    install: Sequence[Block],
    reload: str,
    remove: Block,
    knocks: Knocks = TUTORIAL,
    *,
    settled: str = "",
) -> None:
    """What the howto promises of commands that install, of the firewall's own reload, and of the way back."""
    before = host.as_it_is()
    until(lambda: host.let_in() == host.everybody, "a service")
    for commands in install:
        host.shell(commands)
    assert host.let_in() == NOBODY
    host.shell("logknock doctor")  # finds no fault with it
    host.knock(knocks.first, knocks.wrong, *knocks.others)
    host.knock(knocks.first, *knocks.others, address=host.gateway.ipv6)
    until(lambda: host.let_in() == {host.client.ipv6}, "a door that is open for the one who knocked right")
    for address in (host.gateway.ipv6, host.gateway.ipv4):  # over IPv6 again: a reload may take most of the door's time
        host.knock(knocks.first, *knocks.others, address=address)
    until(lambda: only_the_knocker(host), "a door that is open for both addresses")
    host.shell(reload)
    until(lambda: only_the_knocker(host), "the same after the reload")
    host.shell(remove)
    host.shell(settled)
    until(lambda: host.let_in() == host.everybody, "the service without its guard")
    assert host.as_it_is() == before


def only_the_knocker(host: Neighbour) -> bool:
    """Whether the knocker is let in over both families; nobody else ever is."""
    found = host.let_in()
    assert found <= host.knocker
    return found == host.knocker


UFW = """
mkdir -p /etc/ufw /var/lib/ufw
install -m 640 /usr/share/ufw/iptables/*.rules /usr/share/ufw/*.init /etc/ufw
install -m 644 /usr/share/ufw/ufw.conf /etc/ufw
ufw allow 22/tcp
ufw --force enable
"""


LEGACY = """
update-alternatives --set iptables /usr/sbin/iptables-legacy
update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy
"""


def test_ufw(host: Neighbour) -> None:
    host.shell(UFW)
    install, remove, _ = blocks("ufw")
    with host.service(22):
        follow(host, [install], "ufw reload", remove)


def test_ufw_that_records_under_legacy_iptables(host: Neighbour) -> None:
    host.shell(LEGACY)
    host.shell(UFW)
    install, remove, record = blocks("ufw")
    with host.service(22):
        follow(host, [install, record], "ufw reload", remove, ALL_RECORDED)


# What is usual on a host of one's own, saved as its package does.
IPTABLES = """
for program in iptables ip6tables; do
    $program -P INPUT DROP
    $program -A INPUT -i lo -j ACCEPT
    $program -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
done
iptables -A INPUT -p icmp -j ACCEPT
ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
iptables -A INPUT -p tcp --dport 22 -j ACCEPT
ip6tables -A INPUT -p tcp --dport 22 -j ACCEPT
netfilter-persistent save
systemctl enable --now netfilter-persistent
"""


def test_iptables(host: Neighbour) -> None:
    host.shell(IPTABLES)
    install, remove = blocks("iptables")
    with host.service(22):
        follow(host, [install], "systemctl restart netfilter-persistent", remove, ALL_RECORDED)


# Without polkit, which the machine may have or not, firewalld asks who is root.
FIREWALLD = """
systemd-sysusers
systemctl mask polkit
systemctl enable --now firewalld
firewall-cmd --state
"""
# It is started before its rules are loaded; it answers afterwards.
SETTLED = "firewall-cmd --state\n"


def test_firewalld(host: Neighbour) -> None:
    host.shell(FIREWALLD)
    install, remove, *_ = blocks("firewalld")
    with host.service(22):
        follow(host, [install], "firewall-cmd --reload", remove, settled=SETTLED)


def test_firewalld_with_iptables(host: Neighbour) -> None:
    host.shell(FIREWALLD)
    *_, install, remove = blocks("firewalld")
    with host.service(22):
        follow(host, [install], "firewall-cmd --reload", remove, settled=SETTLED)


def test_an_accepted_mark_is_refused_in_firewalld_s_own_table(host: Neighbour) -> None:
    """Why the howto does not say so: FirewallBackend=nftables, and otherwise the same as above."""
    host.shell(FIREWALLD)
    *_, install, _ = blocks("firewalld")
    assert install.text.count("=iptables/") == 1
    host.shell(install.text.replace("=iptables/", "=nftables/"))
    assert "-m mark --mark 0x10000/0x10000 -j ACCEPT" in host.shell("iptables-save")
    with host.service(22):
        host.knock(TUTORIAL.first, *TUTORIAL.others)
        until(lambda: host.granted(), "an open door")
        assert host.let_in() == NOBODY
        host.shell("firewall-cmd --add-service=ssh")
        until(lambda: host.let_in() == host.everybody, "the service, accepted by firewalld")


# An image without a file of its own, and in it the machine's Python.
DOCKER = """
groupadd --force --system docker
for name in docker containerd; do mkdir -p /var/lib/$name && mount -t tmpfs tmpfs /var/lib/$name; done
systemctl enable --now docker
mkdir -p /tmp/image/{usr,proc,sys,dev,etc}
ln -s usr/lib usr/lib64 /tmp/image
tar -C /tmp/image -c . | docker import - empty
"""
RUN = "docker run --detach --restart=always --stop-signal=KILL -p 8080:80 -v /usr:/usr:ro empty"


def test_docker(host: Neighbour) -> None:
    host.port = 8080
    host.shell(DOCKER)
    host.shell(f"{RUN} /usr/bin/python3 -c {quote(ECHO)} 80")
    host.shell("systemctl restart docker")  # which makes the same chains in another order
    install, remove = blocks("Docker")
    with host.service(22):
        follow(host, [install], "systemctl restart docker", remove, WEB)


def test_nftables(host: Neighbour) -> None:
    host.shell("systemctl enable --now nftables")
    install, remove = blocks("nftables")
    with host.service(22):
        follow(host, [install], "systemctl reload nftables", remove, ALL_RECORDED)
