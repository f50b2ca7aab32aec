"""docs/howto/phone.md: what a phone does, done by a host that has a shell, Python, nc and curl."""

import json
import re
from pathlib import Path

from ..netns import Host
from ..test_wheel import WHEELS, wheel
from .pages import COMMANDS, HOST, KNOCKER, Guide, PrivateHost, documented, follows, guarded, private, reaches, run
from .world import World, until

# Its own fixture, which this module uses as it is.
__all__ = ["wheel"]

PAGE = follows("docs/howto/phone.md")
DOOR = '[doors.ssh]\nsequence = ["7000/tcp", "9000/udp", "8000/tcp"]\nopens = ["22/tcp"]\n'
NAMES = {"host.example": HOST}


# A firewall that drops what it has no service for: whoever knocks waits for an answer, and sends again.
SILENT = """
table inet silent {
    counter syns { }
    chain input {
        type filter hook input priority 0
        tcp dport { 7100, 8100, 9100 } counter name syns drop
    }
}
"""

# For pip: the wheels that `make setup-test` has fetched stand for the index.
PIP = f"printf '[install]\\nno-index = yes\\nfind-links = {WHEELS}\\n' > /etc/pip.conf"


def counted(gateway: PrivateHost) -> int:
    """How many packets to the knock ports were dropped."""
    found = json.loads(run(gateway, "nft -j list counter inet silent syns"))
    packets: int = found["nftables"][1]["counter"]["packets"]
    return packets


def test_a_phone_of_any_kind(world: World, hosts: tuple[Host, Host], wheel: Path) -> None:
    """T7: no resend of a client that waits does harm, and what tries both addresses opens for both."""
    documented(hosts)
    with (
        private(hosts[0], NAMES, COMMANDS) as gateway,
        private(hosts[1], NAMES) as phone,
        world.service(22),
        guarded(gateway, DOOR),
    ):
        run(phone, f"{PIP}; cp {wheel} .")
        guide = Guide(PAGE, {"": phone, "host.example": gateway})
        guide.run("[doors.phone]")
        guide.run("pip install")
        guide.run("[profiles.phone]")
        until(lambda: reaches(phone), "an open door")
        run(gateway, "logknock revoke --all phone")
        until(lambda: not reaches(phone), "a door that is shut again")
        guide.run("nc -z")
        until(lambda: all(reaches(phone, address) for address in HOST), "a door that is open for both addresses")
        run(gateway, "logknock revoke --all phone")
        until(lambda: not reaches(phone), "a door that is shut again")
        gateway.nft(SILENT)
        guide.run("curl -4")
        assert counted(gateway) > 3, "T7: SYNs that were sent again"
        until(lambda: reaches(phone, HOST[0]), "a door that is open for one address")
        assert not reaches(phone, HOST[1])
        guide.shown("phone: stage 1 of 3", guide.run("logknock explain " + KNOCKER[0]))
        run(gateway, "logknock revoke --all phone")
        until(lambda: not reaches(phone), "a door that is shut again")
        (secret,) = re.findall(r"[?&]secret=(\w+)", guide.run("[doors.code]"))
        run(phone, f"echo {secret} > secret")
        guide.run("oathtool")
        until(lambda: reaches(phone), "an open door")
        assert "of client anna used" in run(gateway, f"logknock explain {KNOCKER[0]}; logknock explain {KNOCKER[1]}")
        guide.run("rm /etc/logknock/conf.d/phone.toml")
