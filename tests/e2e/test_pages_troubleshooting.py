"""docs/howto/troubleshooting.md on a booted host: each question asked, of a daemon that something happens to."""

from pathlib import Path

from ..netns import Host
from .booted import booted
from .neighbours import SSH, configure, install
from .pages import COMMANDS, HOST, KNOCKER, Guide, documented, follows, private, reaches, run
from .world import World, until

PAGE = follows("docs/howto/troubleshooting.md")

KNOCK = f"logknock-client knock -4 {HOST[0]} 7000/tcp 9000/udp 8000/tcp"


def test_when_something_goes_wrong(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    documented(hosts)
    with (
        private(hosts[1], {}, COMMANDS) as client,
        booted(hosts[0], folder, capabilities="CAP_SYSLOG,CAP_NET_ADMIN") as host,
        World(host, client, folder).service(22),
    ):
        guide = Guide(PAGE, {"": host})
        install(host)
        host.run("systemctl", "enable", "--now", "logknock")

        assert "no record at all since the start" in guide.run("logknock doctor")
        with guide.start("logknock watch") as watching:
            until(lambda: run(client, KNOCK) or KNOCKER[0] in watching.so_far(), "a knock that is seen")
            watching.interrupt()
        until(lambda: reaches(client, HOST[0]), "an open door")
        assert KNOCKER[0] in guide.run("logknock revoke")
        assert not reaches(client, HOST[0])

        assert "enabled" in guide.run("systemctl is-enabled")
        host.run("nft", "flush", "ruleset")
        until(lambda: "are put back" in run(host, "journalctl -u logknock"), "the rules, put back")
        guide.shown("was deleted by", guide.run("LOGKNOCK_EVENT=firewall"))

        configure(host, SSH.replace("22/tcp", "22"))
        host.run("systemctl", "restart", "logknock", check=False)
        shown = guide.run("logknock check", fails=True)
        assert "status=78" in shown
        assert "doors.ssh.opens" in shown
        configure(host, SSH)
        guide.run("logknock check")
        host.run("systemctl", "start", "logknock")

        guide.run("LOGKNOCK_EVENT=lost")
        run(client, KNOCK)
        until(lambda: reaches(client, HOST[0]), "an open door")
        assert "OPEN SESAME" in guide.run("LOGKNOCK_EVENT=granted")
        guide.run("rules remove")
        assert "logknock" not in run(host, "nft list tables")
