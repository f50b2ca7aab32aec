"""T31: which files are read, and which are refused, by who could have written them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from logknock import trusted_files
from logknock.errors import NO_PERMISSION, UNAVAILABLE, SourceError
from logknock.records import Grammar, Wanted
from logknock.sources import logfile
from logknock.sources.logfile import LogFile

from .log_lines import RECORD, Reader, append, following, grammar, open_descriptors, text

NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that others than root can get to, unlike tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="lk"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--", *command]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)


def access_list(path: Path) -> None:
    """Let nobody write it by name, as `setfacl -m u:nobody:rw` does (linux/posix_acl_xattr.h)."""
    entries = [(1, 6, 2**32 - 1), (2, 6, NOBODY), (4, 4, 2**32 - 1), (0x10, 6, 2**32 - 1), (0x20, 0, 2**32 - 1)]
    packed = b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, rights, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", (2).to_bytes(4, "little") + packed)


Prepare = Callable[[Path], None]
REFUSED: list[tuple[str, Prepare, str]] = [
    ("another's file", lambda log: own(log, NOBODY), "kern.log: belongs to another user"),
    ("everybody's file", lambda log: own(log, 0, 0, 0o646), "kern.log: can be written by everybody"),
    ("adm's file", lambda log: own(log, 0, 4, 0o660), "kern.log: can be written by its group"),
    ("nogroup's file", lambda log: own(log, 0, NOBODY, 0o660), "kern.log: can be written by its group"),
    ("an access list", lambda log: access_list(log), "kern.log: can be written by whom its access list names"),
    ("another's directory", lambda log: own(log.parent, NOBODY), "log: belongs to another user"),
    ("everybody's directory", lambda log: own(log.parent, 0, 0, 0o777), "log: can be written by everybody"),
    ("a group's directory", lambda log: own(log.parent, 0, 50, 0o775), "log: can be written by its group"),
    ("a directory above", lambda log: own(log.parent.parent, 0, 0, 0o777), "can be written by everybody"),
    ("another's link", lambda log: link_of(log, NOBODY), "kern.log: belongs to another user"),
    ("a way over another's", lambda log: way_over(log), "theirs: belongs to another user"),
]
ALLOWED: list[tuple[str, Prepare]] = [
    ("root's group", lambda log: own(log, 0, 0, 0o660)),
    ("readers", lambda log: own(log, 0, 4, 0o644)),
    ("a sticky directory", lambda log: own(log.parent, 0, 0, 0o1777)),
    ("root's link", lambda log: link_of(log, 0)),
    ("the log daemon's file", lambda log: own(log, 1, 4)),
    ("the log daemon's group's directory", lambda log: own(log.parent, 0, 1, 0o775)),
]


def own(path: Path, uid: int, gid: int = 0, mode: int | None = None) -> None:
    """chown and chmod."""
    os.chown(path, uid, gid)
    if mode is not None:
        path.chmod(mode)


def link_of(log: Path, uid: int) -> None:
    """A link instead of the log, in a directory where everybody may make one."""
    log.rename(log.with_name("real.log"))
    log.symlink_to("real.log")
    os.chown(log, uid, 0, follow_symlinks=False)
    log.parent.chmod(0o1777)


def way_over(log: Path) -> None:
    """root's link to root's file, through a directory of another's."""
    theirs = log.parent / "theirs"
    theirs.mkdir()
    log.rename(theirs / "real.log")
    log.symlink_to("theirs/../theirs/real.log")
    os.chown(theirs, NOBODY, 0)


class TestT31:
    """T31: what another could have written is not read, however it got there."""

    @pytest.fixture(autouse=True)
    def log_daemon(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The user and group `daemon` (1) stand for rsyslog's, which not every host has."""
        monkeypatch.setattr(trusted_files, "_LOG_DAEMONS", ("daemon", "nobody", "nogroup"))
        trusted_files._trusted_ids.cache_clear()
        yield
        trusted_files._trusted_ids.cache_clear()

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        path = tmp_path / "var" / "log" / "kern.log"
        path.parent.mkdir(parents=True)
        path.touch(0o640)
        return path

    @pytest.mark.parametrize(
        ("prepare", "words"), [pytest.param(prepare, words, id=name) for name, prepare, words in REFUSED]
    )
    def test_t31_refused_at_opening(self, log: Path, prepare: Prepare, words: str) -> None:
        prepare(log)
        with pytest.raises(SourceError) as caught:
            LogFile(log, grammar())
        assert words in caught.value.message
        assert caught.value.exit_code == UNAVAILABLE
        assert caught.value.hint
        assert open_descriptors(log.parent) == []

    @pytest.mark.parametrize("prepare", [pytest.param(prepare, id=name) for name, prepare in ALLOWED])
    def test_what_is_in_order(self, log: Path, prepare: Prepare) -> None:
        prepare(log)
        with following(log) as reader:
            append(log, 1)
            assert reader.read() == [1]

    @pytest.mark.parametrize(
        ("prepare", "words"), [pytest.param(prepare, words, id=name) for name, prepare, words in REFUSED]
    )
    def test_t31_refused_after_a_rotation(self, log: Path, prepare: Prepare, words: str) -> None:
        """Told once; and once it is in order, only what is written then is read."""
        with following(log) as reader:
            append(log, 1)
            log.rename(log.with_name("kern.log.1"))
            append(log, 2)
            log.chmod(0o640)
            prepare(log)
            assert reader.read() == [1]
            append(log, 3)
            assert len(reader.settle(3)) == 1
            assert words in reader.told[0]
            assert reader.numbers == [1]
            for path in (log.parent.parent, log.parent, log.parent / "theirs", log):
                if path.exists():
                    os.chown(path, 0, 0, follow_symlinks=False)
                    os.chown(path, 0, 0)
                    path.chmod(0o755 if path.is_dir() else 0o600)
            if "access list" in words:
                os.removexattr(log, "system.posix_acl_access")
            reader.settle()
            append(log, 4)
            assert reader.settle(2)[1:] == [f"{log}: {logfile._BACK_AT_END}"]
            assert reader.numbers == [1, 4]

    def test_t31_refused_as_soon_as_it_can_be_written(self, log: Path) -> None:
        """A file that was in order and is opened to others meanwhile."""
        with following(log) as reader:
            append(log, 1)
            assert reader.read() == [1]
            log.chmod(0o666)
            append(log, 2)
            assert reader.read() == [1]
            log.chmod(0o640)
            reader.settle()
            append(log, 3)
            assert reader.read() == [1, 3]

    def test_t31_the_rest_of_a_line_that_stood_there_is_no_line(self, log: Path) -> None:
        """What was refused may end in the middle of a line: its end would be taken for a bare record."""
        with closing(LogFile(log, Grammar(Wanted(("",))))) as source:
            log.rename(log.with_name("kern.log.1"))
            log.write_text("2026-11-21T10:00:00+00:00 host ulogd: told by somebody: ")
            log.chmod(0o666)
            reader = Reader(source)
            reader.settle()
            log.chmod(0o640)
            reader.settle()
            with log.open("a") as file:
                file.write(f"{RECORD.format(666, 666)}\n{RECORD.format(1, 1)}\n")
            assert reader.read() == [1]

    def test_t31_what_is_refused_under_the_name_is_never_read(self, log: Path) -> None:
        """Nor when the file before it is refused later, while one between them waits."""
        with following(log) as reader:
            old = log.with_name("kern.log.1")
            log.rename(old)
            log.touch(0o640)
            assert reader.read() == []
            log.rename(log.with_name("kern.log.2"))
            append(log, 666)
            log.chmod(0o666)
            assert reader.read() == []
            old.chmod(0o666)
            log.chmod(0o640)
            reader.settle(2)
            append(log, 1)
            assert reader.read() == [1]

    def test_after_another_file_under_the_name_the_own_one_goes_on(self, log: Path) -> None:
        """And so do the rotations after that: nothing is skipped, and nothing read again."""
        with following(log) as reader:
            append(log, 1)
            assert reader.read() == [1]
            log.rename(log.with_name("moved"))
            append(log, 666)
            log.chmod(0o666)
            reader.settle()
            log.with_name("moved").rename(log)
            append(log, 2)
            assert reader.settle(3)[1:] == [f"{log}: is read now"]
            log.rename(log.with_name("kern.log.1"))
            append(log, 3)
            assert reader.read() == [1, 2, 3]

    def test_t31_a_copy_is_trusted_no_more(self, log: Path) -> None:
        """In a sticky directory others may put files with the names that logrotate gives."""
        log.parent.chmod(0o1777)
        with following(log) as reader:
            append(log, 1)
            assert reader.read() == [1]
            forged = log.with_name("kern.log.1")
            forged.write_text(log.read_text() + text(666))
            os.chown(forged, NOBODY, NOBODY)
            log.write_text("")
            append(log, 2)
            assert reader.read() == [1, 2]
            assert len(reader.settle()) == 1

    def test_the_own_users_file(self, open_folder: Path) -> None:
        """Who runs as a user of its own may keep its log itself."""
        path = open_folder / "own" / "kern.log"
        path.parent.mkdir()
        path.touch(0o600)
        os.chown(path.parent, NOBODY, NOBODY)
        os.chown(path, NOBODY, NOBODY)
        code = """
import sys; from pathlib import Path
from logknock.records import Grammar, Wanted
from logknock.sources.logfile import LogFile
LogFile(Path(sys.argv[1]), Grammar(Wanted())).close(); print("read")
"""
        done = as_nobody(sys.executable, "-c", code, str(path))
        assert done.stdout == "read\n", done.stderr

    def test_links_in_a_circle_end(self, tmp_path: Path) -> None:
        """The kernel finds them too, but they may be made after it has looked."""
        tmp_path.joinpath("a").symlink_to("b")
        tmp_path.joinpath("b").symlink_to("a")
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            trusted_files._trusted_way(tmp_path / "a")

    def test_permission_denied(self, open_folder: Path) -> None:
        path = open_folder / "kern.log"
        path.touch(0o600)
        code = """
import sys; from pathlib import Path
from logknock.errors import SourceError
from logknock.records import Grammar, Wanted
from logknock.sources.logfile import LogFile
try: LogFile(Path(sys.argv[1]), Grammar(Wanted()))
except SourceError as error: print(error.exit_code, error.words())
"""
        done = as_nobody(sys.executable, "-c", code, str(path))
        assert done.stdout.startswith(f"{NO_PERMISSION} {path}: cannot be read: Permission denied (hint: run as root")
