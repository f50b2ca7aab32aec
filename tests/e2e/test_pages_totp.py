"""docs/howto/totp.md: a door, an enrolled laptop that knocks, what `explain` says of its clock, and its end."""

from pathlib import Path

from ..netns import Host
from .pages import (
    COMMANDS,
    HOST,
    Guide,
    documented,
    follows,
    guarded,
    make_keys,
    may_ssh,
    private,
    reaches,
    run,
    ssh_server,
)
from .world import World, derived, until

PAGE = follows("docs/howto/totp.md")
NAMES = {"gateway.example": HOST[:1], "host.example": HOST[:1]}
WEB = '[doors.web]\nsequence = ["7000/tcp", "9000/udp", "8000/tcp"]\nopens = ["80/tcp"]\n'

# What the client has already, in a file that ends in the middle of a line, and that others may read.
OTHER = '[profiles.other]\nhost = "other.example"\nsequence = ["7000/tcp", "8000/tcp"]'


def test_a_door_whose_knocks_cannot_be_replayed(world: World, hosts: tuple[Host, Host], tmp_path: Path) -> None:
    documented(hosts)
    with (
        private(hosts[0], NAMES, COMMANDS) as gateway,
        private(hosts[1], NAMES, COMMANDS) as client,
        guarded(gateway, WEB),
    ):
        guide = Guide(PAGE, {"": gateway, "client": client})
        assert "this door has no client yet" in guide.run("[doors.ssh]")
        guide.run("logknock enroll")
        profile = gateway.run("cat", "/root/laptop.toml").stdout
        guide.shown("[profiles.gateway-ssh]", profile)
        assert gateway.run("stat", "-c", "%a %G", "/etc/logknock/clients/ssh.laptop.toml").stdout == "640 logknock\n"
        guide.run("rules apply")
        assert not reaches(client, HOST[0])
        client.run("sh", "-c", "umask 077; cat > /root/laptop.toml", input=profile)
        client.run("sh", "-c", "mkdir -p ~/.config/logknock; cat > ~/.config/logknock/client.toml", input=OTHER)
        make_keys(tmp_path, *NAMES, *HOST)
        may_ssh(client, tmp_path)
        with ssh_server(gateway, tmp_path):
            assert "load average" in guide.run("logknock-client knock")
        kept = client.run("sh", "-c", "stat -c %a ~/.config/logknock/client.toml; cat ~/.config/logknock/client.toml")
        assert kept.stdout.startswith(f"600\n{OTHER}")
        guide.shown("client laptop\n", guide.run("logknock grants"))
        guide.shown("last used", guide.run("logknock clients"))
        run(client, f"logknock-client knock gateway.example {' '.join(derived(profile, late=420))}")
        guide.shown("minutes behind", guide.run("logknock explain"))
        assert "ssh is closed for 203.0.113.7" in guide.run("revoke-client")
        until(lambda: not reaches(client, HOST[0]), "a door that is shut again")
        assert not gateway.run("ls", "/etc/logknock/clients").stdout
