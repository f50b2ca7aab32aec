"""docs/reference/control.md: every request on it is sent to a daemon, whose answers have the members that it shows."""

import json
import re
import socket
from pathlib import Path
from typing import Any

from .booted import PROJECT
from .world import World

PAGE = (PROJECT / "docs/reference/control.md").read_text()
# Of each block its request, and the answers that are shown.
SHOWN = [
    [json.loads(line) for line in block.splitlines()]
    for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)
]


def form(value: Any) -> Any:
    """What a value is, and what its members are, whatever they hold; of a list what the first is."""
    if isinstance(value, dict):
        return {name: form(member) for name, member in value.items()}
    if isinstance(value, list):
        return [form(member) for member in value[:1]]
    return "number" if type(value) in (int, float) else type(value).__name__


class Asked:
    """A connection to the daemon's socket."""

    def __init__(self, path: Path) -> None:
        self._wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wire.settimeout(20.0)
        self._wire.connect(str(path))
        self._lines = self._wire.makefile("rb")

    def ask(self, request: dict[str, Any]) -> None:
        self._wire.sendall(json.dumps(request).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """The next line."""
        answer = json.loads(self._lines.readline())
        assert isinstance(answer, dict)
        return answer

    def answers(self) -> list[dict[str, Any]]:
        """All up to the last; that one only where it says that something is wrong."""
        found = []
        while "done" not in (answer := self.hear()):
            found.append(answer)
            if "error" in answer:
                break
        return found

    def close(self) -> None:
        self._lines.close()
        self._wire.close()


def test_what_the_page_asks_is_answered_as_it_shows(world: World) -> None:
    """In the page's order, on one connection: what it asks first makes what it asks about later."""
    world.apply()
    path = world.config.parent / "run/control.sock"
    *asked, watching = SHOWN
    with world.daemon() as daemon:
        world.spoof(f"192.0.2.7>{world.gateway.ipv4}:7000/tcp", f"192.0.2.7>{world.gateway.ipv4}:9000/udp")
        daemon.wait_for("(stage 1)")
        client = Asked(path)
        for request, *shown in asked:
            client.ask(request)
            assert [form(answer) for answer in client.answers()] == [form(answer) for answer in shown], request
        # The same request, from the program on the page.
        client.ask({"version": 1, "do": "grant", "door": "ssh", "address": "192.0.2.9"})
        client.answers()
        (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
        assert "192.0.2.9" in world.gateway.python(program.replace("/run/logknock/control.sock", str(path))).stdout
        request, *shown = watching
        client.ask(request)
        told: list[Any] = [client.hear()]  # from here on it is told of what happens
        world.spoof(*(f"192.0.2.7>{world.gateway.ipv4}:{service}" for service in ("7000/tcp", "8000/tcp", "9000/udp")))
        while not any("grant" in answer for answer in told):
            told.append(client.hear())
        other = Asked(path)
        other.ask({"version": 1, "do": "revoke", "address": "192.0.2.7"})
        while "gone" not in told[-1]:
            told.append(client.hear())
        other.close()
        client.close()
    assert all(form(line) in [form(answer) for answer in told] for line in shown)


def test_the_page_has_every_request_there_is(world: World) -> None:
    """As the daemon names them where it is asked for something else."""
    world.apply()
    with world.daemon():
        client = Asked(world.config.parent / "run/control.sock")
        client.ask({"version": 1, "do": "sing"})
        (answer,) = client.answers()
        client.close()
    there = set(answer["hint"].removeprefix("it can: ").split(", "))
    assert {request["do"] for request, *_ in SHOWN} == {*there, "sing"}
    assert set(re.findall(r"^### (\w+)$", PAGE, re.M)) == there
