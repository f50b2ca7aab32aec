"""The man page's examples, from knockd.conf to doors that open and close as it says."""

import re
from pathlib import Path

import pytest

from .world import Daemon, World, until

CORPUS = Path(__file__).parents[1] / "corpus/knockd"

SYN_ACK, FIN = 0x12, 0x01


def import_example(world: World, name: str, status: int = 0) -> None:
    """What an administrator does: import, look at it with check, load the rules."""
    folder = world.config.parent
    written = (CORPUS / f"{name}.conf").read_text().replace("/etc/knockd/", f"{folder}/")
    written = re.sub(r"(cmd_timeout +=) 5$", r"\1 10", written, flags=re.MULTILINE)  # a slow machine looks in time
    (folder / "knockd.conf").write_text(written)
    world.config.unlink()
    config = str(world.config)
    done = world.gateway.logknock("import-knockd", f"{folder}/knockd.conf", "-o", config, check=False)
    assert done.returncode == status, done.stderr
    with world.config.open("a") as file:
        file.write(f'[paths]\nstate = "{folder}/state"\nruntime = "{folder}/run"\n')
    assert ": ok," in world.gateway.logknock("check", "-c", config).stdout
    world.apply()


def knock(world: World, *words: str) -> None:
    """With knockd's own client, as its users are used to."""
    world.client.run("knock", "-d", "100", world.gateway.ipv4, *words)


def opens_for(world: World, daemon: Daemon, door: str, port: int) -> None:
    daemon.wait_for(f"10.99.0.2: {door}: OPEN SESAME")
    assert set(world.granted()) == {f"10.99.0.2 . tcp . {port}"}
    until(lambda: world.reaches(port), "an answer")


def test_the_first_example_opens_and_closes_with_a_knock_each(world: World) -> None:
    import_example(world, "man-1")
    with world.service(22), world.daemon() as daemon:
        assert not world.reaches()
        knock(world, "7000", "8000", "9000")
        opens_for(world, daemon, "openSSH", 22)
        knock(world, "9000", "8000", "7000")
        daemon.wait_for("10.99.0.2: openSSH: closed by closeSSH")
        assert world.granted() == {}
        assert not world.reaches()


def test_the_second_example_closes_by_itself(world: World) -> None:
    """It opens all of TCP; what becomes of it says 22/tcp, and says that it says less (exit status 1).

    The flags are its own, and no client that just connects sends them, knockd's included.
    """
    import_example(world, "man-2", status=1)
    with world.service(22), world.daemon() as daemon:
        knock(world, "2222:udp", "3333:tcp", "4444:udp")
        daemon.wait_for("wrong port 4444/udp (stage 1)")
        assert world.granted() == {}
        knock(world, "2222:udp")
        world.spoof(f"10.99.0.2>{world.gateway.ipv4}:3333/tcp={SYN_ACK}")
        knock(world, "4444:udp")
        opens_for(world, daemon, "opencloseSSH", 22)
        daemon.wait_for("10.99.0.2: opencloseSSH: command timeout, closed")
        until(lambda: not world.granted(), "the kernel's closing")
        assert not world.reaches()


@pytest.mark.parametrize("name", ["man-3", "man-4"], ids=["the third example", "the fourth example"])
def test_examples_with_one_time_sequences(world: World, name: str) -> None:
    """Each sequence once, over UDP with knockd's client, over TCP with the flags that the example asks for."""
    file = world.config.parent / "smtp_sequences"
    file.write_text("# a comment\n 7001:udp,8001:udp,9001:udp\n 7002,8002,9002\n")
    file.chmod(0o600)
    import_example(world, name)
    with world.service(25), world.daemon() as daemon:
        knock(world, "7001:udp", "8001:udp", "9001:udp")
        opens_for(world, daemon, "opencloseSMTP", 25)
        daemon.wait_for("opencloseSMTP: command timeout, closed")
        until(lambda: not world.granted(), "the kernel's closing")
        knock(world, "7001:udp", "8001:udp", "9001:udp")
        daemon.lines.clear()
        world.spoof(*(f"10.99.0.2>{world.gateway.ipv4}:{port}/tcp={FIN}" for port in (7002, 8002, 9002)))
        opens_for(world, daemon, "opencloseSMTP", 25)
        daemon.wait_for("is used up")
        assert sum("OPEN SESAME" in line for line in daemon.lines) == 1, "the first one opened once more"
