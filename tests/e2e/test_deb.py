"""The Debian packages: built twice, looked at by lintian, and lived with on a booted Debian from installation to purge.

Rule 1: there is one build, and what is called a later version is that build with a number and a change put into it.
Rule 2: they are installed by apt and dpkg as an administrator does it, and only on hosts that are gone afterwards.
"""

import ast
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from logknock import __version__

from ..checkout import copy_checkout
from ..netns import Host
from ..peers import UNPACKED
from .booted import PROJECT, BootedHost, booted
from .pages import HOST, Guide, documented, follows, run
from .world import SSH, World, until

PAGE = follows("docs/howto/install.md")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG = Path("/etc/logknock/logknock.toml")
KNOCKS = ("7000/tcp", "9000/udp", "8000/tcp")

# What an installation leaves that is not ours: what dpkg and apt know, caches, logs, and the backups of passwd(5).
_NOT_OURS = re.compile(
    r"/(tmp|var/(tmp|log|cache|lib/(dpkg|apt|systemd/catalog))|etc/((passwd|group|shadow|gshadow)-|\.pwd\.lock))(/|$)"
)


@dataclass(frozen=True, slots=True)
class Packages:
    """The files of one version: the program for the host, and the client's."""

    host: Path
    client: Path

    @property
    def names(self) -> tuple[str, str]:
        return str(self.host), str(self.client)


def _make_deb(tree: Path, **environment: str) -> Path:
    command = ["sh", "-c", f"umask {environment.pop('umask')}; exec make deb wheel"]
    variables = {"PATH": PATH, "HOME": str(tree)} | environment
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, check=False)
    assert not done.returncode, (done.stdout + done.stderr)[-5000:]
    return tree / "dist"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build: from a checkout, with a python3 first on the PATH that is none."""
    folder = tmp_path_factory.mktemp("build")
    fake = folder / "bin"
    fake.mkdir()
    for name in ("python3", "python", "sphinx-build"):
        (fake / name).write_text("#!/bin/sh\necho this is not the distribution's >&2\nexit 1\n")
        (fake / name).chmod(0o755)
    return _make_deb(copy_checkout(folder / "tree"), PATH=f"{fake}:{PATH}", umask="022")


@pytest.fixture(scope="module")
def packages(built: Path) -> Packages:
    version = f"{__version__}-1_all.deb"
    return Packages(built / f"logknock_{version}", built / f"logknock-client_{version}")


# ---- what is built


def test_a_build_from_the_sdist_elsewhere_gives_the_same_bytes(built: Path, packages: Packages, tmp_path: Path) -> None:
    with tarfile.open(built / f"logknock-{__version__}.tar.gz") as sdist:
        sdist.extractall(tmp_path)
    tree = tmp_path / f"logknock-{__version__}"
    again = _make_deb(tree, umask="077", LC_ALL="POSIX", LANGUAGE="de", TZ="Pacific/Auckland", USER="somebody")
    for package in packages.names:
        assert (again / Path(package).name).read_bytes() == Path(package).read_bytes()


def test_lintian_is_silent_at_its_most_pedantic(built: Path) -> None:
    changes = next(built.glob("*.changes"))
    strict = ("--pedantic", "--display-info", "--fail-on=error,warning,info,pedantic", "--allow-root")
    done = subprocess.run(["lintian", *strict, str(changes)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_debian_s_version_is_the_program_s() -> None:
    first = (PROJECT / "packaging/debian/changelog").read_text().splitlines()[0]
    assert re.fullmatch(rf"logknock \({re.escape(__version__)}-\d+\) \w+; urgency=\w+", first)


def _imported(path: Path) -> Iterator[Path]:
    """The files of the program that a file imports; what only functions of cli/__init__.py do, others need."""
    tree = ast.parse(path.read_text())
    for node in tree.body if path.name == "__init__.py" else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            yield from (file for alias in node.names if (file := base / f"{alias.name}.py").exists())
            yield from (file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists())


def test_the_client_s_package_has_what_it_imports_and_nothing_else(packages: Packages) -> None:
    commands = PROJECT / "logknock/cli"
    wanted, rest = set[Path](), [commands / f"{name}.py" for name in ("client", "knock", "proxy")]
    while rest:
        path = rest.pop()
        if path not in wanted:
            wanted.add(path)
            rest += _imported(path)
    listed = subprocess.run(["dpkg-deb", "-c", packages.client], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"share/logknock-client/(logknock/\S+\.py)$", listed, re.MULTILINE)) == {
        str(path.relative_to(PROJECT)) for path in wanted
    }


PROFILE = PROJECT / "packaging/apparmor/logknock"
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
APPARMOR = _ENABLED.exists() and _ENABLED.read_text().startswith("Y")


def _apparmor_parser(*words: str) -> str:
    base = UNPACKED / "etc/apparmor.d"
    command = [str(UNPACKED / "sbin/apparmor_parser"), "--skip-cache", f"--base={base}", *words, str(PROFILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_apparmor_s_parser_accepts_the_profile() -> None:
    """It is enforced below, where the kernel has AppArmor."""
    parsed = _apparmor_parser("--skip-kernel-load", "--debug")
    assert re.search(r"^Name:\s+logknock$", parsed, re.MULTILINE)
    assert "complain" not in PROFILE.read_text()


@contextmanager
def _profile_loaded() -> Iterator[None]:
    """The profile in the kernel, where that has AppArmor: it is attached to nothing but our unit."""
    if APPARMOR:
        _apparmor_parser("--replace")
    try:
        yield
    finally:
        if APPARMOR:
            _apparmor_parser("--remove")


# ---- a host


def _later(packages: Packages, folder: Path, version: str, change: Callable[[Path], object]) -> Packages:
    """The packages as a later version, with a change to what the first of them holds."""
    made = []
    for package in (packages.host, packages.client):
        root = folder / f"{package.name}-{version}"
        subprocess.run(["dpkg-deb", "-R", package, root], check=True)
        control = root / "DEBIAN/control"
        control.write_text(control.read_text().replace(f"{__version__}-1", version))
        if package == packages.host:
            change(root)
        made.append(folder / f"{package.name.partition('_')[0]}_{version}_all.deb")
        subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", root, made[-1]], check=True, stdout=-3)
    return Packages(*made)


def _prepend(path: str, text: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        file = root / path
        file.write_text(text + (file.read_text() if file.exists() else ""))
        file.chmod(0o755 if "DEBIAN" in path else file.stat().st_mode)

    return change


def _apt(host: Host, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """apt-get, as a script runs it: nobody answers."""
    command = ("env", f"PATH={PATH}", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "apt-get", "-qy", *words)
    return host.run(*command, check=check, timeout=180)


@contextmanager
def _debian(host: Host, folder: Path) -> Iterator[BootedHost]:
    """A booted Debian whose services start when they are installed, whatever this machine's policy is."""
    folder.mkdir(exist_ok=True)
    with booted(host, folder, capabilities="CAP_SYSLOG,CAP_NET_ADMIN") as inside:
        inside.run("rm", "-rf", "/usr/sbin/policy-rc.d", "/etc/logknock", "/var/lib/logknock")
        yield inside


def _configure(host: BootedHost) -> None:
    """The door of the example, for longer than a test takes."""
    run(host, PAGE.block("sed -i"))
    file = host.root(str(CONFIG))
    file.write_text(file.read_text().replace('timeout = "30s" ', 'timeout = "10m" '))
    host.run("systemctl", "reload", "logknock")


def _left(folder: Path) -> set[str]:
    """What is other than on this machine, on a host that was booted in the folder: files, users, directories."""
    upper = next(folder.glob("disk/upper-*"))
    found = set()
    for path in upper.rglob("*"):
        name = path.relative_to(upper)
        own, below = path.lstat(), Path("/", name)
        there = below.lstat() if below.exists() or below.is_symlink() else None
        gone = stat.S_ISCHR(own.st_mode)  # what overlayfs keeps of a file that was deleted
        same = there is not None and (there.st_mode, there.st_uid, there.st_gid) == (
            own.st_mode,
            own.st_uid,
            own.st_gid,
        )
        if same and path.is_file():
            same = path.read_bytes() == below.read_bytes()
        cached = "__pycache__" in name.parts and "logknock" not in name.parts
        if not (same or cached or (gone and there is None) or _NOT_OURS.match(f"/{name}")):
            found.add(str(below))
    return found


def _knock(world: World) -> None:
    world.client.logknock("knock", world.gateway.ipv4, *KNOCKS)
    until(world.granted, "an open door")


def _active(host: Host) -> bool:
    return host.run("systemctl", "is-active", "logknock", check=False).stdout == "active\n"


def _loaded(host: Host) -> bool:
    return "inet logknock" in host.run("nft", "list", "tables").stdout


def test_from_installation_to_purge(hosts: tuple[Host, Host], built: Path, packages: Packages, tmp_path: Path) -> None:
    """As docs/howto/install.md has it, command by command."""
    documented(hosts)
    folder = tmp_path / "host"
    with (
        _profile_loaded(),
        _debian(hosts[0], folder) as booted_host,
        _debian(hosts[1], tmp_path / "client") as client,
    ):
        host = replace(booted_host, ipv4=HOST[0], ipv6=HOST[1])
        world = World(host, client, CONFIG)
        guide = Guide(PAGE, {"": host, "client": client}, folder)
        before = _left(folder)
        shutil.copytree(built, folder / "dist")
        shutil.copytree(built, tmp_path / "client/dist")
        guide.run("apt install ./dist/logknock_")

        # Enabled, and skipped while there is no door; nothing is guarded.
        assert host.run("systemctl", "is-enabled", "logknock").stdout == "enabled\n"
        assert host.run("systemctl", "is-failed", "logknock", check=False).stdout == "inactive\n"
        assert not _loaded(host)
        owners = host.run("stat", "-c", "%a %U:%G", "/etc/logknock", "/etc/logknock/clients", str(CONFIG)).stdout
        assert owners == "750 root:logknock\n750 root:logknock\n640 root:logknock\n"
        assert "logknock" in host.run("journalctl", "--list-catalog").stdout
        examples = host.run("ls", "/usr/share/doc/logknock/examples").stdout
        assert examples == "logknock.json\nlogknock.rules.yml\n"

        with world.service(22):
            _configure(host)
            assert not world.reaches()
            if APPARMOR:
                profile = host.run("cat", f"/proc/{host.pid_of('logknock')}/attr/current").stdout
                assert profile == "logknock (enforce)\n"
            run(client, PAGE.block("apt install ./dist/logknock-client_"), tmp_path / "client")
            until(world.granted, "an open door")
            assert world.reaches()

            # An upgrade: the daemon is another one, the door is open as long as before, the edited file is kept.
            edited, expires, pid = host.root(str(CONFIG)).read_text(), _expires(world), host.pid_of("logknock")
            later = _later(packages, tmp_path, "0.9.9-1", lambda root: None)
            (folder / "dist" / packages.host.name).unlink()
            shutil.copy(later.host, folder / "dist")
            guide.run("apt install ./dist/logknock_")
            assert _active(host)
            assert host.pid_of("logknock") != pid
            assert 0 < _expires(world) <= expires
            assert world.reaches()
            assert host.root(str(CONFIG)).read_text() == edited
            assert host.run("stat", "-c", "%a %U:%G", str(CONFIG)).stdout == "640 root:logknock\n"

            # Nobody is locked out by what is gone; what was configured is still there.
            assert "logknock: the rules are unloaded" in guide.run("apt remove")
            assert not _loaded(host)
            assert world.reaches()
            assert host.root(str(CONFIG)).read_text() == edited

        guide.run("apt purge")
        assert _left(folder) == before
        assert "logknock" not in host.run("ls", "/run").stdout
        guide.run("venv")
        assert host.run("/opt/logknock-wheel/bin/logknock", "--version").stdout == f"logknock {__version__}\n"

        # The unit of the checkout, for it.
        shutil.copytree(PROJECT / "packaging/systemd", folder / "packaging/systemd")
        guide.run("logknock.sysusers")
        host.run("install", "-m", "640", "-g", "logknock", "/dev/stdin", str(CONFIG), input=SSH)
        host.run("systemctl", "start", "logknock")
        assert _active(host)
        assert _loaded(host)


def _inside(host: BootedHost, packages: Packages) -> tuple[str, str]:
    """The files where the host finds them."""
    for name in packages.names:
        shutil.copy(name, host.root("/tmp"))  # noqa: S108  # the host's, which nobody else is on
    host_deb, client_deb = (f"/tmp/{Path(name).name}" for name in packages.names)  # noqa: S108
    return host_deb, client_deb


def _expires(world: World) -> int:
    """Seconds until the one open door closes."""
    (element,) = world.granted().values()
    return int(element["expires"])


def _change_example(root: Path) -> None:
    example = root / "etc/logknock/logknock.toml"
    example.write_text(example.read_text() + "\n# A line that a later version has.\n")


def test_a_broken_upgrade_locks_nobody_out(hosts: tuple[Host, Host], packages: Packages, tmp_path: Path) -> None:
    """T38: neither a package that cannot be installed nor a daemon that cannot run takes a door from who is in."""
    gateway, client = hosts
    refused = _later(packages, tmp_path, "0.9.1-1", _prepend("DEBIAN/preinst", "#!/bin/sh\nexit 1\n"))
    killed = _later(packages, tmp_path, "0.9.2-1", _prepend("DEBIAN/preinst", "#!/bin/sh\nkill -9 $PPID\n"))
    asking = _later(packages, tmp_path, "0.9.3-1", _change_example)
    broken = _later(packages, tmp_path, "0.9.4-1", _prepend(_DAEMON, "raise SystemExit(3)\n"))
    unreadable = _later(packages, tmp_path, "0.9.5-1", _prepend(_CONFIG, "raise ImportError\n"))
    good = _later(packages, tmp_path, "0.9.6-1", lambda root: None)
    with _debian(gateway, tmp_path / "host") as host:
        world = World(host, client, CONFIG)
        _apt(host, "install", *_inside(host, packages))
        _configure(host)
        edited = host.root(str(CONFIG)).read_text()
        with world.service(22):
            _knock(world)
            for bad, said in ((refused, "error exit status 1"), (killed, "dpkg"), (asking, "conffile prompt")):
                done = _apt(host, "install", *_inside(host, bad), check=False)
                assert done.returncode
                assert said in done.stdout + done.stderr
                _still_lets_in(world)
                host.run("env", f"PATH={PATH}", "dpkg", "--force-confold", "--configure", "-a", check=False)
            assert host.root(str(CONFIG)).read_text() == edited

            for bad in (broken, unreadable):  # the latter cannot even be asked whether there is a door
                done = _apt(host, *_KEEP, "install", *_inside(host, bad))
                assert "logknock: the daemon does not start" in done.stdout + done.stderr
                assert host.run("systemctl", "show", "-P", "Result", "logknock").stdout != "exec-condition\n"
                assert _loaded(host)
                assert world.reaches()

            _apt(host, *_KEEP, "install", *_inside(host, good))
            until(lambda: _active(host), "a daemon")
            _still_lets_in(world)


_DAEMON = "usr/lib/python3/dist-packages/logknock/daemon.py"
_CONFIG = "usr/lib/python3/dist-packages/logknock/config.py"
_KEEP = ("-o", "Dpkg::Options::=--force-confold")


def _still_lets_in(world: World) -> None:
    """Who is in stays in, and who knocks is let in for longer."""
    assert world.reaches()
    assert _active(world.gateway)
    left = _expires(world)
    world.client.logknock("knock", world.gateway.ipv4, *KNOCKS)
    until(lambda: _expires(world) > left, "a refreshed door")


_POLICY = "#!/bin/sh\nexit 101\n"  # deny: invoke-rc.d(8)
_INSTANCE = """
install -D -m 640 -g logknock /dev/null /etc/logknock/lab/logknock.toml
mkdir /var/lib/logknock-lab /run/logknock-lab /var/lib/logknock-backup
systemctl enable logknock@lab
"""


def test_what_is_lost_is_mended_and_a_purge_takes_nothing_of_others(
    hosts: tuple[Host, Host], packages: Packages, tmp_path: Path
) -> None:
    folder = tmp_path / "host"
    with _debian(hosts[0], folder) as host:
        before = _left(folder)
        files = _inside(host, packages)
        _apt(host, "install", *files)
        host.run("sh", "-ec", f"rm {CONFIG}; userdel logknock; ! getent group logknock")
        host.run("env", f"PATH={PATH}", "dpkg", "--force-confmiss", "-i", files[0])
        owners = host.run("stat", "-c", "%a %U:%G", "/etc/logknock", str(CONFIG)).stdout
        assert owners == "750 root:logknock\n640 root:logknock\n"
        host.run("chgrp", "adm", str(CONFIG))
        host.run("env", f"PATH={PATH}", "dpkg", "-i", files[0])
        assert host.run("stat", "-c", "%G", str(CONFIG)).stdout == "adm\n", "an administrator's choice"
        host.run("chgrp", "logknock", str(CONFIG))

        _configure(host)
        host.run("systemctl", "restart", "logknock")
        host.run("touch", "/var/lib/logknock/left-by-root")
        host.run("env", f"PATH={PATH}", "dpkg", "-i", files[0])
        assert host.run("find", "/var/lib/logknock", "!", "-user", "logknock").stdout == ""
        assert _active(host)
        host.run("sh", "-ec", _INSTANCE)
        host.run("install", "-m", "755", "/dev/stdin", "/usr/sbin/policy-rc.d", input=_POLICY)
        _apt(host, "purge", "logknock", "logknock-client")
        assert not host.run("find", "/proc", "-maxdepth", "1", "-user", "logknock", check=False).stdout
        assert not _loaded(host)
        assert "logknock" not in host.run("ls", "/run").stdout
        host.run("rm", "/usr/sbin/policy-rc.d")
        assert _left(folder) - before == {"/var/lib/logknock-backup"}


def test_the_client_alone_knocks(hosts: tuple[Host, Host], packages: Packages, tmp_path: Path) -> None:
    gateway, client = hosts
    world = World(gateway, client, tmp_path / "logknock.toml")
    world.configure(f'[doors.ssh]\nsequence = {list(KNOCKS)!r}\nopens = ["22/tcp"]\n'.replace("'", '"'))
    world.apply()
    with world.daemon(), _debian(client, tmp_path / "client") as host:
        _apt(host, "install", _inside(host, packages)[1])
        assert host.run("sh", "-c", "command -v logknock", check=False).returncode
        host.run("/usr/bin/logknock-client", "knock", "-v", gateway.ipv4, *KNOCKS, cwd="/")
        until(world.granted, "an open door")
        assert not _man_warnings(host)
        named = host.run(
            "sh", "-c", "man logknock-client | grep -o 'logknock-[a-z.-]*([158])' | sort -u"
        ).stdout.split()
        assert {"logknock-client-knock(1)", "logknock-client-proxy(1)"} <= set(named)
        host.run("man", "-w", *(name.partition("(")[0] for name in named))
        assert "knock" in _completed(host, "bash", "logknock-client kno")


def test_a_host_that_ran_it_as_root_goes_on_with_its_configuration_and_state(
    hosts: tuple[Host, Host], packages: Packages, tmp_path: Path
) -> None:
    with _debian(hosts[0], tmp_path / "host") as host:
        world = World(host, hosts[1], CONFIG)
        door = f'[doors.ssh]\nsequence = {list(KNOCKS)!r}\nopens = ["22/tcp"]\n'.replace("'", '"')
        host.run("install", "-D", "-m", "600", "/dev/stdin", str(CONFIG), input=door)
        host.run("chmod", "700", "/etc/logknock")
        host.logknock("rules", "apply")
        _apt(host, *_KEEP, "install", *_inside(host, packages))
        assert _active(host)
        _knock(world)
        assert host.root(str(CONFIG)).read_text() == door
        strangers = host.run("find", "/var/lib/logknock", "!", "-user", "logknock").stdout
        assert strangers == ""

        assert not _man_warnings(host)
        for shell in ("bash", "zsh", "fish"):
            assert "status" in _completed(host, shell, "logknock sta"), shell
        shutil.copytree(PROJECT / "packaging/debian/tests", tmp_path / "host/tests")
        for script, said in (("client", "a knock arrived\n"), ("knock", "a knock opened the door\n")):
            done = host.run("env", f"PATH={PATH}", str(tmp_path / "host/tests" / script), cwd="/")
            assert done.stdout.endswith(said)


def _man_warnings(host: BootedHost) -> str:
    """What groff says of the installed pages, as man(1) has it render them."""
    pages = "dpkg -L logknock-client logknock 2>/dev/null | grep -E '/man[158]/.*[158]\\.gz$'"
    render = f'for page in $({pages}); do man --warnings -E UTF-8 -l "$page" >/dev/null; done'
    done = host.run("sh", "-c", f"LC_ALL=C.UTF-8 MANROFFSEQ= MANWIDTH=80; export LC_ALL MANROFFSEQ MANWIDTH; {render}")
    return done.stderr


_COMPLETE = {
    "bash": """
. /usr/share/bash-completion/completions/{program}
COMP_WORDS=({line}) COMP_CWORD=1
$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/') {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    # What it would show is printed: a shell that is not on a terminal shows nothing.
    "zsh": """
compdef() {{ :; }}; compadd() {{ print -l -- "$@"; }}; _describe() {{ print -l -- ${{(P)3}}; }}
words=({line}) CURRENT=2 fpath=(/usr/share/zsh/vendor-completions)
autoload -U _{program} && _{program}
""",
    "fish": "complete -C '{line}'",
}


def _completed(host: BootedHost, shell: str, line: str) -> str:
    """What the shell offers for the last word, by the file that the package has for it."""
    script = _COMPLETE[shell].format(program=line.split()[0], line=line)
    return host.run("env", f"PATH={PATH}", "HOME=/root", shell, "-c", script).stdout
