"""Files of clients' secrets: whole or not there, for those who may read them, and taken away where nothing else is."""

import grp
import os
import pwd
import stat
from base64 import b32encode
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from logknock import ownership
from logknock.errors import FAILURE, NO_PERMISSION, LogknockError
from logknock.key_files import Place, path_of, places_of, remove_client, write_client
from logknock.ownership import kept_from_service

from .config_files import write

SECRET = b32encode(b"a secret of 32 bytes, all of it.").decode().rstrip("=")
TABLE = f'# a note\n[clients.ssh.laptop]\nsecret = "{SECRET}"\n'
WHO = ("ssh", "laptop")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A configuration; who its clients are does not matter here."""
    return write(tmp_path, "")


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_client_gets_a_file_that_its_owner_alone_reads(path: Path) -> None:
    """And the folder is made for it."""
    file = write_client(path, *WHO, TABLE)
    assert file == path_of(path, *WHO) == path.parent / "clients/ssh.laptop.toml"
    assert file.read_text() == TABLE
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert os.listdir(file.parent) == [file.name], "nothing else is left there"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to a group")
def test_a_group_that_the_configuration_is_shown_to_reads_it_too(tmp_path: Path) -> None:
    """As the service's does in /etc/logknock (packaging/systemd): the folder is made like that directory."""
    group = grp.getgrnam("daemon").gr_gid
    folder = tmp_path / "etc"
    folder.mkdir()
    os.chown(folder, 0, group)
    folder.chmod(0o750)
    file = write_client(folder / "logknock.toml", *WHO, TABLE)
    assert (mode(file), mode(file.parent)) == (0o640, 0o750)
    assert file.stat().st_gid == file.parent.stat().st_gid == group


@pytest.mark.parametrize("what", ["a file", "a link", "a folder"])
def test_what_is_there_is_never_overwritten(path: Path, what: str) -> None:
    file = path_of(path, *WHO)
    file.parent.mkdir()
    if what == "a file":
        file.write_text("x")
    elif what == "a link":
        file.symlink_to(path.parent / "gone")
    else:
        file.mkdir()
    with pytest.raises(LogknockError, match="is there already, and is never overwritten") as caught:
        write_client(path, *WHO, TABLE)
    assert caught.value.exit_code == FAILURE
    assert SECRET not in "\n".join(caught.value.report())
    assert os.listdir(file.parent) == [file.name]
    assert not (path.parent / "gone").exists()


def test_a_file_that_cannot_be_written_is_not_there_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk, where fsync(2) says so."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LogknockError, match="cannot be written: No space left on device") as caught:
        write_client(path, *WHO, TABLE)
    assert caught.value.hint == "make room on this disk"
    assert os.listdir(path_of(path, *WHO).parent) == []


def test_where_clients_stand_is_told_with_their_lines(path: Path) -> None:
    """Of many in one file as of one; of a file that is gone without a line."""
    many = write(
        path.parent, "# note\n" + "".join(f'\n[clients.ssh.c{at}]\nsecret = ""\n' for at in range(3)), "x.toml"
    )
    one = write_client(path, *WHO, TABLE)
    homes = {("ssh", f"c{at}"): many for at in range(3)} | {WHO: one, ("ssh", "gone"): path.parent / "gone"}
    assert places_of(homes) == {
        ("ssh", "c0"): Place(many, 3),
        ("ssh", "c1"): Place(many, 6),
        ("ssh", "c2"): Place(many, 9),
        WHO: Place(one, 2),
        ("ssh", "gone"): Place(path.parent / "gone", None),
    }
    assert str(Place(many, 3)) == f"{many}:3"


def test_what_was_written_can_be_removed(path: Path) -> None:
    file = write_client(path, *WHO, TABLE)
    remove_client(path, Place(file, 2), *WHO)
    assert os.listdir(file.parent) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("clients/ssh.laptop.toml", f"{TABLE}[clients.ssh.phone]\n", id="another client"),
        pytest.param("clients/ssh.laptop.toml", f"{TABLE}[clients.vpn.laptop]\n", id="a client of another door"),
        pytest.param("clients/ssh.laptop.toml", f"{TABLE}[log]\n", id="another table"),
        pytest.param("conf.d/ssh.toml", TABLE, id="another folder"),
        pytest.param("logknock.toml", TABLE, id="the configuration itself"),
    ],
)
def test_a_file_that_says_more_is_left_for_its_author(path: Path, name: str, text: str) -> None:
    """With the file, the line and what to take out of it."""
    file = write(path.parent, text, name)
    place = places_of({WHO: file})[WHO]
    with pytest.raises(LogknockError) as caught:
        remove_client(path, place, *WHO)
    assert caught.value.message == f"{file}:2: client laptop of door ssh has no file of its own"
    assert caught.value.hint == "take its table [clients.ssh.laptop] out there, then `logknock reload`"
    assert file.read_text() == text


def test_a_folder_that_this_user_may_not_write_to_is_one_clear_error(tmp_path: Path) -> None:
    """In a process of its own, as nobody: root may write anywhere."""
    path = write(tmp_path, "")
    tmp_path.chmod(0o755)
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            else:
                tmp_path.chmod(0o555)
            write_client(path, *WHO, TABLE)
        except LogknockError as error:
            code = 0 if error.exit_code == NO_PERMISSION and "permission denied" in error.message.lower() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_service_is_looked_after_in_the_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its user cannot read of the clients is told to root with the command that helps."""
    monkeypatch.setattr(ownership, "service_user", lambda: pwd.getpwnam("nobody"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setattr(ownership, "_SERVICE_CONFIG", folder)
        path = write(folder, "")
        path.chmod(0o644)
        file = write(folder, TABLE, "clients/ssh.laptop.toml")
        (found,) = kept_from_service(path)
        assert found.path == file
        assert found.remedy == f"chgrp logknock {file}; chmod 640 {file}"
