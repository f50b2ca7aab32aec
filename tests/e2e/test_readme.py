"""The README's way to a guarded ssh, followed word for word: the package on a booted Debian, and another machine."""

import re
import shutil
from pathlib import Path

from ..netns import Host
from .booted import PROJECT, booted
from .pages import HOST, KNOCKER, documented, make_keys, may_ssh, private, reaches, read, run, ssh_server, terminal
from .test_deb import Packages, built, packages
from .world import World, until

README = (PROJECT / "README.md").read_text()
GUIDE = read("README.md").under("Guard ssh on a real host")
(SAID,) = [block.text.splitlines() for block in GUIDE.blocks if "OPEN SESAME" in block.text]

# DEB's own fixtures, which this module uses as they are.
__all__ = ["built", "packages"]


def test_the_guide_works_word_for_word(hosts: tuple[Host, Host], packages: Packages, tmp_path: Path) -> None:
    assert GUIDE.block("make deb").text == "make deb\n"  # what `packages` has done
    documented(hosts)
    make_keys(tmp_path, "host.example")
    for package in packages.names:
        shutil.copy(package, tmp_path)
    client = shutil.which("logknock", path=PROJECT / ".venv/bin")
    assert client is not None
    with (
        private(hosts[1], {"host.example": HOST[:1]}, [Path(client)]) as knocker,
        booted(hosts[0], tmp_path, capabilities="CAP_SYSLOG,CAP_NET_ADMIN") as host,
        ssh_server(host, tmp_path),
    ):
        may_ssh(knocker, tmp_path)
        run(host, f"rm -rf /etc/logknock /var/lib/logknock; mkdir dist; cp {tmp_path}/*.deb dist")
        run(host, GUIDE.block("apt install"))
        assert "ok, 1 door, 0 warnings" in run(host, GUIDE.block("logknock check"))
        with terminal(host, GUIDE.block("rules apply --confirm")) as first:
            first.expect("within 60 s")
            with terminal(host, GUIDE.block("rules confirm")) as second:
                assert "confirmed" in first.end()
                second.expect("runs since")
                assert not reaches(knocker, HOST[0])
                run(knocker, GUIDE.block("ssh host.example"))
                for line in SAID[:-1]:
                    second.expect(line.replace("198.51.100.7", KNOCKER[0]))
                assert reaches(knocker, HOST[0])
                assert f"{KNOCKER[0]} . tcp . 22 timeout 30s" in run(host, GUIDE.block("nft list set"))
                second.interrupt()
        run(host, "systemctl reload logknock; apt purge -y logknock")
        until(lambda: reaches(knocker, HOST[0]), "ssh open to all again")


def test_every_command_of_the_readme_is_there(world: World) -> None:
    """The README promises no command or option that does not exist."""
    promised = set(re.findall(r"`logknock ([a-z-]+)(?: ([a-z]+)| \[?(--[a-z]+))?", README))
    assert len(promised) >= 6
    for command, sub, option in promised:
        words = [command, sub] if command == "rules" and sub else [command]
        helped = world.gateway.logknock(*words, "--help").stdout
        assert option in helped
