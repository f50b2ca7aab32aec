"""Which files are read, which are refused, and what is said of one that cannot be understood."""

import os
from pathlib import Path

import pytest

from logknock.config import load
from logknock.toml_files import MAX_BYTES, credentials_folder

from .config_files import DOOR, errors, write

NOBODY = 65534


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("[log]\ngroup = = 5\n", ":2: Invalid value (column 9)", id="a syntax error"),
        pytest.param("[log]\ngroup = [1,\n", ":3: Invalid value (at the end)", id="an end that comes too soon"),
        pytest.param("[log]\n[log]\n", ":2: Cannot declare ('log',) twice (column 5)", id="a table twice in a file"),
        pytest.param(f"a = {'[' * 5000}", ": lists or tables are nested too deeply", id="lists without end"),
        pytest.param(f"a = {'1' * 5000}", ": a number has too many digits", id="a number without end"),
        pytest.param(b"[log]\n# caf\xe9\n", ":2: is not UTF-8: byte 0xe9", id="Latin-1"),
        pytest.param(b" " * (MAX_BYTES + 1), ": is larger than 1 MiB", id="one byte over the limit"),
    ],
)
def test_a_file_that_cannot_be_understood_is_one_error(tmp_path: Path, text: str | bytes, problem: str) -> None:
    """What is wrong with the TOML hides what it says, and nothing is concluded from what is not there."""
    assert errors(write(tmp_path, text))[0] == [f"logknock.toml{problem}"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[clients.vpn.a]\n[clients.vpn.a]\n", id="a client"),
        pytest.param("[log]\ngroup = 1\ngroup = 2\n", id="a key"),
        pytest.param("log = {group = 1, group = 2}\n", id="a key in braces"),
        pytest.param("log = {group = 1}\n[log.file]\n", id="a table that is closed already"),
        pytest.param("log.group = 1\n[log]\n", id="a table that a key has made"),
    ],
)
def test_what_stands_twice_in_a_file_is_said_to(tmp_path: Path, text: str) -> None:
    assert errors(write(tmp_path, text))[1] == [
        "in TOML, a table and a key stand once in a file: make one of the two, or give one another name"
    ]


def test_a_file_of_just_the_largest_size_is_read(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    assert load(write(tmp_path, DOOR + "#" * (MAX_BYTES - len(DOOR)))).doors


def test_errors_of_several_files_come_together(tmp_path: Path) -> None:
    """A file that cannot be read does not hide what is wrong in another; but what it may hold is not missed."""
    path = write(tmp_path, "[log]\ngroup = 'x'\n" + DOOR + 'closes = ["perhaps-in-b"]')
    write(tmp_path, "x = ", "conf.d/b.toml")
    write(tmp_path, "x = 1", "conf.d/c.toml")
    assert errors(path)[0] == [
        "logknock.toml:2: log.group: must be a whole number, not text",
        "conf.d/b.toml:1: Invalid value (at the end)",
        "conf.d/c.toml:1: x: unknown key",
    ]


def test_a_missing_file_is_one_error_that_shows_a_minimal_configuration(tmp_path: Path) -> None:
    """What is beside it does not matter then."""
    write(tmp_path, "x", "conf.d/a.toml")
    (problem,), (hint,) = errors(tmp_path / "logknock.toml")
    assert problem == "logknock.toml: does not exist"
    assert load(write(tmp_path / "b", hint.partition("one: ")[2])).doors


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    """Not even an empty one."""
    (tmp_path / "logknock.toml").mkdir()
    assert errors(tmp_path / "logknock.toml")[0] == ["logknock.toml: is a directory"]


def test_a_neighbour_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    """Somebody meant it to be read."""
    write(tmp_path, DOOR, "conf.d")
    assert errors(write(tmp_path, DOOR))[0] == ["conf.d: cannot be read: Not a directory"]


@pytest.mark.parametrize("name", ["logknock.toml", "conf.d/a.toml"])
@pytest.mark.parametrize(
    ("mode", "who"),
    [
        pytest.param(0o604, "read by others", id="others may read it"),
        pytest.param(0o602, "written by others", id="others may write it"),
        pytest.param(0o660, "written by its group", id="its group may write it"),
        pytest.param(0o666, "read by others and written by its group and written by others", id="everybody may"),
    ],
)
def test_a_file_that_others_have_a_hand_in_is_refused(tmp_path: Path, name: str, mode: int, who: str) -> None:
    """It holds the sequences; the command of the hint mends it."""
    path = write(tmp_path, DOOR)
    bad = path if name == "logknock.toml" else write(tmp_path, "log.group = 1", name)
    bad.chmod(mode)
    problems, (hint,) = errors(path)
    assert problems == [f"{name}: can be {who}, and it holds what to knock"]
    assert hint == f"chmod g-w,o-rwx {bad}"
    assert os.system(hint) == 0  # noqa: S605 - the point is that a shell takes it as it stands
    assert load(path).doors


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o700])
def test_a_file_that_a_group_may_read_is_right(tmp_path: Path, mode: int) -> None:
    """So is one that nobody may write."""
    path = write(tmp_path, DOOR)
    path.chmod(mode)
    assert load(path).doors


def test_a_file_that_others_can_only_read_is_judged_too(tmp_path: Path) -> None:
    """Its author hears of all that is wrong at once."""
    path = write(tmp_path, "x = 1\n" + DOOR)
    path.chmod(0o644)
    assert len(errors(path)[0]) == 2


@pytest.mark.parametrize("name", ["logknock.toml", "conf.d/a.toml", "conf.d"])
def test_what_belongs_to_another_user_is_refused_and_not_read(tmp_path: Path, name: str) -> None:
    """Its words may be anybody's, so they are not even judged."""
    path = write(tmp_path, DOOR)
    write(tmp_path, "x = 1" if name != "logknock.toml" else "", "conf.d/a.toml")
    bad = tmp_path / name
    os.chown(bad, NOBODY, -1)
    assert errors(path) == ([f"{name}: belongs to another user (uid {NOBODY})"], [f"chown root {bad}"])


@pytest.mark.parametrize(
    ("mode", "who"),
    [
        pytest.param(0o775, "written by its group", id="its group can add files"),
        pytest.param(0o777, "written by its group and written by others", id="everybody can add files"),
    ],
)
def test_a_directory_to_which_others_can_add_files_is_refused(tmp_path: Path, mode: int, who: str) -> None:
    """One that they can read is not: the files in it are each looked at."""
    path = write(tmp_path, DOOR)
    folder = write(tmp_path, "log.group = 1", "conf.d/a.toml").parent
    assert load(path).group == 1
    folder.chmod(mode)
    assert errors(path) == ([f"conf.d: can be {who}, and it holds what to knock"], [f"chmod go-w {folder}"])


def test_a_path_with_blanks_is_quoted_in_the_command_of_a_hint(tmp_path: Path) -> None:
    """The hint is meant for a shell."""
    path = write(tmp_path, DOOR, "my doors.toml")
    path.chmod(0o644)
    assert errors(path)[1] == [f"chmod g-w,o-rwx '{path}'"]


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that systemd would have made for the service."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o500)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def test_credentials_of_the_service_are_read_last_and_by_name(tmp_path: Path, credentials: Path) -> None:
    path = write(tmp_path, "log.group = 1")
    write(tmp_path, "log.group = 2", "conf.d/z.toml")
    write(credentials, "log.group = 3", "b.toml")
    write(credentials, f"log.group = 9\n{DOOR}", "a.toml")
    write(credentials, "unknown = 1", "password")
    config = load(path)
    assert (config.group, [door.name for door in config.doors]) == (3, ["ssh"])


def test_credentials_that_are_not_there_yet_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "later"))
    assert load(write(tmp_path, DOOR)).doors


@pytest.mark.parametrize(
    ("path", "given", "folder"),
    [
        pytest.param("/etc/logknock/logknock.toml", "", "/run/credentials/logknock.service", id="the unit's"),
        pytest.param(
            "/etc/logknock/lab/logknock.toml", "", "/run/credentials/logknock@lab.service", id="an instance's"
        ),
        pytest.param("/etc/logknock/logknock.toml", "/run/mine", "/run/mine", id="systemd has told"),
        pytest.param("/etc/logknock/other.toml", "", None, id="another file beside it"),
        pytest.param("/etc/logknock/lab/more/logknock.toml", "", None, id="a file below"),
        pytest.param("/srv/logknock.toml", "", None, id="a file elsewhere"),
    ],
)
def test_root_finds_the_credentials_of_the_service_that_reads_the_file(
    path: str, given: str, folder: str | None
) -> None:
    """Doors that are in them would be left out of the rules that root loads, and be unguarded."""
    found = credentials_folder(Path(path), {"CREDENTIALS_DIRECTORY": given})
    assert found == (folder and Path(folder))


def test_a_mistake_in_a_credential_is_told_with_its_place(tmp_path: Path, credentials: Path) -> None:
    write(credentials, "\nlog.group = 'x'", "a.toml")
    found, _ = errors(write(tmp_path, DOOR))
    assert found == ["credentials/a.toml:2: log.group: must be a whole number, not text"]


def test_root_reads_the_credentials_of_a_service_and_nobody_else_s(tmp_path: Path, credentials: Path) -> None:
    """They are the service's user's, where systemd cannot use access lists; what others could have put there is not."""
    file = write(credentials, DOOR, "a.toml")
    path = write(tmp_path, "")
    for place in (credentials, file):
        os.chown(place, NOBODY, NOBODY)
    assert load(path).doors
    os.chown(file, NOBODY - 1, NOBODY)
    assert "credentials/a.toml: belongs to another user (uid 65533)" in errors(path)[0]
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o604)
    assert "credentials/a.toml: can be read by others, and it holds what to knock" in errors(path)[0]
    credentials.chmod(0o777)
    assert any("can be written by its group and written by others" in text for text in errors(path)[0])
