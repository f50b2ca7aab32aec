"""What packets carry goes to whoever wants it, from the next adopting on, beside whatever else is read."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from logknock.config import load
from logknock.intake import Intake
from logknock.packet import UDP, Carried, Packet
from logknock.sources.nflog import Mail

from .config_files import DOOR, write
from .e2e.test_intake import write_knocks
from .e2e.world import PATIENCE
from .netns import Host

LOG = (
    "table inet t { chain c { type filter hook prerouting priority mangle; udp dport { 62201, 9000 } log group 5; }; }"
)

# A datagram of 300 bytes from a source port to a service: `sport:dport` each.
SEND = """
import socket, sys
for word in sys.argv[2:]:
    sport, dport = map(int, word.split(":"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("", sport))
        s.sendto(bytes(300), (sys.argv[1], dport))
"""


@pytest.mark.parametrize("several", [False, True], ids=["NFLOG alone", "beside a log file"])
def test_mail_comes_as_of_the_next_adopting(hosts: tuple[Host, Host], tmp_path: Path, several: bool) -> None:
    """And goes with the one after; the copy that a log file tells of later is no packet (T10)."""
    gateway, client = hosts
    gateway.nft(LOG)
    log = tmp_path / "kern.log"
    log.touch(0o640)
    source = f'[log]\nsource = ["nflog", "file"]\nfile.path = "{log}"\n' if several else ""
    config = load(write(tmp_path, source + DOOR))
    packets: list[Packet] = []
    mail: list[Carried] = []

    def heeds(*_: object) -> bool:
        return True

    async def serve() -> None:
        intake = Intake(heeds, lambda source, receive: source.read(time.time(), receive), packets.append, ignore)
        with gateway.inside():
            intake.adopt(intake.open(config), config)

        async def send(*words: str, packets_more: int = 0, mail_more: int = 0) -> None:
            known = len(packets), len(mail)
            client.python(SEND, gateway.ipv4, *words)
            await until(lambda: (len(packets) - known[0], len(mail) - known[1]) == (packets_more, mail_more))

        await send("20000:62201", packets_more=1)
        intake.mail = Mail(lambda proto, dport: (proto, dport) == (UDP, 62201), mail.append)
        await send("20001:62201", packets_more=1)
        intake.adopt(intake.open(config), config)
        await send("20002:62201", "20003:9000", packets_more=1, mail_more=1)
        assert mail[0].payload == bytes(300)
        assert packets[-1].dport == 9000
        if several:
            write_knocks(log, client.ipv4, ("62201/udp",), sport=20002)
            write_knocks(log, client.ipv4, ("9000/udp",), sport=20004)
            await until(lambda: packets[-1].sport == 20004)
            assert len(packets) == 4, "the first line was of what NFLOG had brought"
        intake.mail = None
        intake.adopt(intake.open(config), config)
        await send("20005:62201", packets_more=1)
        intake.close()

    run(serve())


def run(story: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 3 * PATIENCE))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def ignore(text: str, **fields: str) -> None:
    raise AssertionError(text)
