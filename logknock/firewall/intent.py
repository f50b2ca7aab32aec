"""The rules that the administrator wants loaded, kept as a file, and put back from there where somebody removed them.

Rule 1: the file holds what a person loaded for good or confirmed, whole. Nothing else is ever put back, and nothing
where there is no such file. Rule 2: no part of this makes or changes a rule. Rule 3: what is put back is loaded by nft
in a process of its own: libnftables first reads every set of intervals on the host, which may take it more than a
second and 150 MB, and a daemon that did it itself would be deaf for as long.
"""

import asyncio
import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import Enum
from pathlib import Path

from .. import trial
from ..errors import UNAVAILABLE, FirewallError, LogknockError, printable
from ..ownership import give_to_owner
from ..trial import Trial

# Tens of thousands of one-time knock ports are a megabyte. What is larger is not ours.
MAX_TEXT = 16 * 1024 * 1024

# Seconds for a load: a host with 100,000 intervals needs two. Then nft is stopped.
_LOAD_TIMEOUT = 30.0

_NFT_SAYS = 4096  # bytes of its words that are looked at

# Where nft is, whatever PATH the daemon was started with.
_NFT_PLACES = ("/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft")


class Intent:
    """STATE/rules.nft, and beside it the draft that becomes it. Raises LogknockError where a file does not obey.

    Only the daemon's own user and root can read it, since it holds the secret knock ports.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self.path = state / "rules.nft"
        self._draft = state / "rules.draft"

    def draft(self, text: str) -> None:
        """Have the text on the disk, so that nothing but a name is missing for it to count."""
        try:
            with suppress(FileExistsError):
                self._state.mkdir(mode=0o711, parents=True)
                self._state.chmod(0o711)  # whatever the umask: as the daemon makes it
            descriptor, temporary = tempfile.mkstemp(dir=self._state, prefix=".rules.")  # 0600
            with ExitStack() as undo:
                undo.callback(os.unlink, temporary)
                with open(descriptor, "w", encoding="utf-8") as file:
                    give_to_owner(descriptor, self._state)
                    file.write(text)
                    file.flush()
                    os.fsync(descriptor)
                os.rename(temporary, self._draft)
                undo.pop_all()
        except OSError as error:
            raise trial.file_error(self._draft, error) from None

    def settle(self) -> None:
        """From now on the draft is what is wanted."""
        try:
            os.rename(self._draft, self.path)
            self._sync()
        except OSError as error:
            raise LogknockError(
                f"the rules are loaded, and cannot be kept: {self.path}: {error.strerror}",
                "nobody puts them back after a reboot or a flush: `logknock rules apply` once the directory is right",
            ) from None

    def drop(self) -> None:
        """The draft comes to nothing."""
        self._remove(self._draft)

    def forget(self) -> None:
        """Nothing is wanted any more."""
        self._remove(self.path)
        self._remove(self._draft)

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to put back."""
        return os.path.lexists(self.path)  # what cannot be read is no reason to do without: read() tells

    def read(self) -> bytes | None:
        """What is wanted; None where nothing is. A file that somebody else could have written is refused."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise self._refusal() from None
            raise trial.file_error(self.path, error) from None
        status = os.fstat(descriptor)
        theirs = status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if theirs or not stat.S_ISREG(status.st_mode) or status.st_size > MAX_TEXT:
            os.close(descriptor)
            raise self._refusal()
        with open(descriptor, "rb") as file:
            return file.read()

    def _refusal(self) -> LogknockError:
        hint = "`logknock rules apply` writes it anew; it has to be root's or logknock's own, and no link"
        return LogknockError(f"{self.path} may be another's work: it is not loaded", hint)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink()
            self._sync()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise trial.file_error(path, error) from None

    def _sync(self) -> None:
        folder = os.open(self._state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Outcome(Enum):
    """What became of putting the rules back."""

    DONE = "done"
    NOT_NEEDED = "somebody else has put them there meanwhile"
    NOT_WANTED = "no rules are kept"
    ON_TRIAL = "rules are on trial: their trial decides"
    BUSY = "somebody else changes the rules at this moment"


async def put_back(
    intent: Intent, runtime: Path, needed: Callable[[], bool], started: Callable[[int], None]
) -> Outcome:
    """Load what is wanted, unless it is nobody's business now. Raises LogknockError with nft's words if it refuses.

    `needed` is asked when nobody else can be changing the rules any more; `started` is told the process that
    loads them, before it does.
    """
    try:
        with trial.alone(runtime, wait=False) as lock:
            waiting = Trial.going_on(runtime)
            if waiting is not None:
                waiting.close()
                return Outcome.ON_TRIAL
            text = intent.read()
            if text is None:
                return Outcome.NOT_WANTED
            if not needed():
                return Outcome.NOT_NEEDED
            await _load(text, lock, started)
            return Outcome.DONE
    except BlockingIOError:
        return Outcome.BUSY


async def _load(text: bytes, lock: int, started: Callable[[int], None]) -> None:
    """The lock is held as long as nft runs, even where that outlives this process."""
    nft = next((place for place in _NFT_PLACES if os.access(place, os.X_OK)), None)
    if nft is None:
        raise FirewallError("the rules cannot be put back: no nft here", "install the package nftables", UNAVAILABLE)
    try:
        process = await asyncio.create_subprocess_exec(
            nft, "-f", "-",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            pass_fds=(lock,),
        )  # fmt: skip
    except OSError as error:
        raise FirewallError(f"the rules cannot be put back: {nft}: {error.strerror}", "it is tried again") from None
    started(process.pid)
    try:
        _, said = await asyncio.wait_for(process.communicate(text), _LOAD_TIMEOUT)
    except TimeoutError:
        raise FirewallError(
            f"the rules cannot be put back: nft took longer than {_LOAD_TIMEOUT:.0f} s", "it is tried again"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise FirewallError(
            f"the rules cannot be put back: {_first_error(said)}",
            "`logknock rules apply` loads them as the configuration is now; this is tried again",
        )


def _first_error(said: bytes) -> str:
    text = said[:_NFT_SAYS].decode(errors="replace")
    match = re.search(r"Error: (.*)", text)
    return f"nftables: {printable(match[1] if match else text.strip())}"
