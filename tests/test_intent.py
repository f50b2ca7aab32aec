"""The rules that are kept to be put back: whose they are, and when they count."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from logknock.errors import LogknockError
from logknock.firewall import intent as intent_module
from logknock.firewall.intent import MAX_TEXT, Intent, Outcome, put_back

RULES = "table inet logknock { }\n"


@pytest.fixture
def intent(tmp_path: Path) -> Intent:
    (tmp_path / "state").mkdir(mode=0o711)
    return Intent(tmp_path / "state")


def test_a_draft_counts_when_it_is_settled(intent: Intent) -> None:
    intent.draft(RULES)
    assert intent.read() is None
    assert not intent.is_kept
    intent.settle()
    assert intent.read() == RULES.encode()
    assert intent.is_kept


def test_a_draft_that_comes_to_nothing_leaves_what_was_before(intent: Intent) -> None:
    intent.draft(RULES)
    intent.settle()
    intent.draft("other")
    intent.drop()
    assert intent.read() == RULES.encode()
    assert [path.name for path in intent.path.parent.iterdir()] == ["rules.nft"]


def test_what_is_forgotten_is_gone_with_its_draft(intent: Intent) -> None:
    intent.draft(RULES)
    intent.settle()
    intent.draft("other")
    intent.forget()
    intent.forget()
    intent.drop()
    assert list(intent.path.parent.iterdir()) == []


def test_only_the_owner_of_the_state_directory_can_read_it(intent: Intent) -> None:
    """It holds the secret knock ports; and a daemon that is not root has to read it."""
    os.chown(intent.path.parent, 65534, 65534)
    intent.draft(RULES)
    intent.settle()
    status = intent.path.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (65534, 0o600)


def test_the_state_directory_is_made_as_the_daemon_makes_it(tmp_path: Path) -> None:
    Intent(tmp_path / "new" / "state").draft(RULES)
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o711


def test_a_draft_that_cannot_be_written_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogknockError, match=r"rules\.draft: Not a directory"):
        Intent(tmp_path / "file" / "state").draft(RULES)


def test_a_draft_that_is_gone_is_told_when_it_should_count(intent: Intent) -> None:
    with pytest.raises(LogknockError, match="the rules are loaded, and cannot be kept") as caught:
        intent.settle()
    assert "rules apply" in caught.value.hint


@pytest.mark.parametrize("harm", ["mode", "owner", "link", "dangling link", "pipe", "socket", "directory", "size"])
def test_what_another_could_have_written_is_refused(intent: Intent, tmp_path: Path, harm: str) -> None:
    """It would be loaded with the daemon's rights."""
    intent.draft(RULES)
    intent.settle()
    if harm == "mode":
        intent.path.chmod(0o620)
    elif harm == "owner":
        os.chown(intent.path, 65534, 0)
    elif harm == "size":
        os.truncate(intent.path, MAX_TEXT + 1)
    else:
        intent.path.rename(tmp_path / "elsewhere")
        if harm == "link":
            intent.path.symlink_to(tmp_path / "elsewhere")
        elif harm == "dangling link":
            intent.path.symlink_to(tmp_path / "nowhere")
        elif harm == "pipe":
            os.mkfifo(intent.path)
        elif harm == "socket":
            os.mknod(intent.path, 0o600 | stat.S_IFSOCK)
        else:
            intent.path.mkdir()
    assert intent.is_kept, "to do without would be to guard nothing, in silence"
    with pytest.raises(LogknockError) as caught:
        intent.read()
    assert "may be another's work: it is not loaded" in caught.value.message
    assert str(intent.path) in caught.value.message
    assert caught.value.hint


# Instead of nft: whether it has the lock's file open. What it takes from standard input is the rules.
HAS_LOCK = """#!/bin/sh
cat > /dev/null
for file in /proc/$$/fd/*; do
	case $(readlink "$file") in */rules.lock) exit 0 ;; esac
done
echo "Error: no lock" >&2
exit 1
"""


def test_the_lock_is_held_as_long_as_nft_runs(intent: Intent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is killed meanwhile lets nobody else load rules at the same time."""
    program = tmp_path / "nft"
    program.write_text(HAS_LOCK)
    program.chmod(0o755)
    monkeypatch.setattr(intent_module, "_NFT_PLACES", (str(program),))
    intent.draft(RULES)
    intent.settle()
    started: list[int] = []
    outcome = asyncio.run(put_back(intent, tmp_path / "run", lambda: True, started.append))
    assert outcome is Outcome.DONE
    assert len(started) == 1
