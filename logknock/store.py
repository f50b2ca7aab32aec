"""What must outlive the process: what was used (sequences, steps, packets), open doors, what happened.

Rule 1: nobody gets in on what is not durable: `use`, `use_step` and `see` return when the disk has it, or raise.
Rule 2: a database that is damaged or not ours is left as it is, since a new one in its place would make used sequences
valid again; so one is made under another name and is whole when it gets its own. Rule 3: one process writes; who reads
changes no file. Rule 4: what others than root and the daemon's own user could have written opens nothing.
"""

import fcntl
import math
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from shlex import quote
from struct import Struct
from typing import Any, NamedTuple, Protocol, Self
from zlib import crc32

from .errors import UNAVAILABLE, LogknockError
from .knock import MAX_SEQUENCE, Code, Grant, Sequence, Service
from .onetime import Place
from .ownership import service_user
from .packet import PROTOCOL_NAMES

DATABASE = "logknock.db"

# Locked for as long as a daemon runs. Not the directory itself: whoever can read that could hold its lock.
LOCK = "lock"

# Openings, closings and uses that are kept: a month of 300 a day, about 1 MiB.
MAX_HISTORY = 10_000

# Rows that one trim() or forget() deletes, some milliseconds' work: called once a second they keep up with any rate of
# openings, and with any rate of packets that clients with a key send.
TRIM_ROWS = 500

# Commits after which the log of the database (its -wal file) is due to be merged into it. A commit writes two or three
# pages of 4 KiB, so the log has about 12 MiB by then; a start after a crash reads that in some hundredths of a second.
CHECKPOINT_COMMITS = 1_000

# How long the check at the start may take, seconds. 1.8 million used sequences (60 MiB) need 0.2 from the page cache;
# on a disk so slow that this is not enough, the rest goes unchecked rather than the daemon unstarted.
CHECK_SECONDS = 1.0

# How long to wait for another program's lock, seconds: when opening, and afterwards, when the daemon's loop waits.
_OPEN_WAIT = 1.0
_WRITE_WAIT = 0.005

# The longest time that a grant may have left, seconds: a year is what the configuration allows a door.
_LONGEST = 366 * 86_400

# No row has more than two names and a path; whatever claims to be larger is damage.
_MAX_VALUE = 65_536

# What the configuration allows a door's name to have, and behind it a service where a door opens several of them, each
# by itself: `NAME:65535/tcp`.
_LONGEST_NAME = 63 + len(":65535/tcp")

# A packet's identity is a SHA-256, and so is its signer.
_HASH = 32

_PAGE = 4096
_APPLICATION = 0x6C6B6E6B  # "lknk", in the file's header
_SCHEMA = 3

# STRICT and CHECK: that each row is sound is then part of SQLite's own check of the file.
_TABLES = (
    f"""CREATE TABLE used (
    door TEXT NOT NULL,
    sequence BLOB NOT NULL CHECK (length(sequence) % 3 = 0 AND length(sequence) BETWEEN 3 AND {3 * MAX_SEQUENCE}),
    PRIMARY KEY (door, sequence)
) STRICT, WITHOUT ROWID""",
    f"""CREATE TABLE places (
    door TEXT NOT NULL,
    file TEXT NOT NULL,
    line INTEGER NOT NULL CHECK (line >= 0),
    offset INTEGER NOT NULL CHECK (offset >= 0),
    last BLOB NOT NULL CHECK (length(last) % 3 = 0 AND length(last) <= {3 * MAX_SEQUENCE}),
    used INTEGER NOT NULL CHECK (used >= 0),
    PRIMARY KEY (door, file)
) STRICT, WITHOUT ROWID""",
    f"""CREATE TABLE grants (
    door TEXT NOT NULL,
    src BLOB NOT NULL CHECK (length(src) IN (4, 16)),
    expires REAL NOT NULL,
    opened REAL NOT NULL,
    boot TEXT NOT NULL,
    mono REAL NOT NULL,
    wall REAL NOT NULL,
    by TEXT NOT NULL,
    seal INTEGER NOT NULL,
    CHECK (expires - mono BETWEEN 0 AND {_LONGEST}),
    PRIMARY KEY (door, src)
) STRICT, WITHOUT ROWID""",
    """CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    wall REAL NOT NULL,
    event TEXT NOT NULL,
    door TEXT NOT NULL,
    src BLOB NOT NULL CHECK (length(src) IN (4, 16)),
    detail TEXT NOT NULL
) STRICT""",
)

# The seals are for what no other table would contradict: one changed bit would make a packet new, or a step unused.
_TABLES_3 = (
    """CREATE TABLE steps (
    door TEXT NOT NULL,
    client TEXT NOT NULL,
    step INTEGER NOT NULL CHECK (step >= 0),
    seal INTEGER NOT NULL,
    PRIMARY KEY (door, client)
) STRICT, WITHOUT ROWID""",
    f"""CREATE TABLE seen (
    identity BLOB NOT NULL CHECK (length(identity) = {_HASH}),
    stamp INTEGER NOT NULL CHECK (stamp >= 0),
    signer BLOB NOT NULL CHECK (length(signer) = {_HASH}),
    door TEXT NOT NULL,
    client TEXT NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (identity)
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX seen_by_stamp ON seen (stamp)",
    f"""CREATE TABLE forgotten (
    signer BLOB NOT NULL CHECK (length(signer) = {_HASH}),
    stamp INTEGER NOT NULL CHECK (stamp >= 0),
    door TEXT NOT NULL,
    client TEXT NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (signer)
) STRICT, WITHOUT ROWID""",
)

# Schema 1 had no column for who opened a door by hand, and schema 2 nothing of TOTP and SPA; all else was as it is.
_GRANTS = _TABLES[2]
_GRANTS_1 = _GRANTS.replace("    by TEXT NOT NULL,\n", "")

# What the tables of each schema look like that a database may have.
_SCHEMAS = {1: {*_TABLES, _GRANTS_1} - {_GRANTS}, 2: set(_TABLES), _SCHEMA: {*_TABLES, *_TABLES_3}}

# The tables whose rows have a seal.
_SEALED = {
    "steps": "SELECT door, client, step, seal FROM steps",
    "seen": "SELECT identity, stamp, signer, door, client, seal FROM seen",
    "forgotten": "SELECT signer, stamp, door, client, seal FROM forgotten",
}

# What SQLite calls the files that belong to a database: it reads each that is there, and believes it.
PARTS = ("", "-journal", "-wal", "-shm")

_AWAY = (
    f"put a copy back that is up to date, or move {DATABASE}, {DATABASE}-wal and {DATABASE}-shm away and start again; "
    "what was used would then be good again, so make new one-time files first, where there are such, and wait until "
    "what clients have sent is too old (max_age of SPA, step and skew of TOTP)"
)
_HINTS = {
    "BUSY": "another program has it locked (fuser shows which): end that one",
    "CANTOPEN": "see whether the directory and the file are there and may be written",
    "CORRUPT": _AWAY,
    "FULL": "make room on its file system; nothing else is needed",
    "IOERR": "see what the kernel says of the disk (dmesg), and whether it is full",
    "NOTADB": _AWAY,
    "READONLY": "make the directory and the file in it writable (mount -o remount,rw)",
}


class StoreError(LogknockError):
    """The state database cannot be opened, read or written; the message holds SQLite's own words."""


class StateInUse(LogknockError):  # noqa: N818 - a state, as the operator reads it
    """Another daemon has the state directory."""


class StoredGrant(NamedTuple):
    """A grant as it counts in this boot, and when its door opened (seconds since the epoch).

    by: who granted it by hand; empty: a knock did.
    """

    grant: Grant
    opened: float
    by: str = ""


class Authentic(NamedTuple):
    """A packet (SPA) that a client's key vouches for.

    identity: 32 bytes, of this packet alone. stamp: when it says that it was sent, seconds since the epoch. signer: 32
    bytes, of the key, whatever its client is called. door, client: whose key it is, for people to see.
    """

    identity: bytes
    stamp: int
    signer: bytes
    door: str
    client: str


class Entry(NamedTuple):
    """Something that happened: `event` is opened, ended or used; `wall` is in seconds since the epoch."""

    wall: float
    event: str
    door: str
    src: bytes
    detail: str


class Store(Protocol):
    """What the daemon remembers. `wall` is time.time(), `mono` is time.monotonic(); each method may raise StoreError.

    After an error nothing of that call is recorded, and the next call works as soon as the cause is gone. Methods
    belong to the thread that opened the store, but for `checkpoint`.
    """

    def use(self, code: Code, place: Place, src: bytes, wall: float) -> bool:
        """Record, durably, that a one-time sequence is used up, and that its file is used as far as `place`.

        False: it was used before, at this door, in whatever file. Nobody may get in unless this returned True.
        """

    def was_used(self, door: str, sequence: Sequence) -> bool:
        """Whether the sequence was used at the door."""

    def place(self, door: str, file: str) -> Place | None:
        """How far the file is used at the door; None: not begun."""

    def move(self, door: str, file: str, place: Place) -> None:
        """The file is used as far as `place`, though nothing of it was used now."""

    def used(self, door: str, file: str) -> int:
        """How many sequences of the file were used at the door."""

    def use_step(self, door: str, client: str, step: int, src: bytes, wall: float) -> bool:
        """Record, durably, that the client has used this time step at the door, and with it each one before.

        False: it or a later one was used before. Nobody may get in unless this returned True.
        """

    def steps(self) -> dict[tuple[str, str], int]:
        """The last step that was used, by door and client."""

    def see(self, packet: Authentic, src: bytes, wall: float) -> bool:
        """Record, durably, that this packet was seen.

        False: it was seen before, or it is not newer than a packet of the same signer that has been forgotten, so that
        it may have been. Nobody may get in unless this returned True.
        """

    def forget(self, before: int) -> None:
        """Forget packets that were sent before then, the oldest first, in a part small enough for the daemon's loop.

        From then on no packet of those signers is new that is not newer than what was forgotten: whatever the clock
        does that `before` is taken from, none is new twice.
        """

    def opened(self, grant: Grant, wall: float, mono: float, by: str = "") -> None:
        """The door is open, or open for longer: `grant.expires` is in the clock of `mono`.

        by: who granted it by hand; empty: a knock did.
        """

    def ended(self, grant: Grant, how: str, wall: float) -> None:
        """The grant is over; one that was refreshed since is another, and stays."""

    def grants(self, wall: float, mono: float) -> list[StoredGrant]:
        """All that have not been told to be over; those that ended meanwhile have `expires` <= `mono`.

        Within a boot the monotonic clock counts. After another the wall clock does, and then nobody has more time
        left than there was when it was last recorded: a clock set back gives none (T33).
        """

    def history(self, limit: int) -> list[Entry]:
        """What happened last, the latest first."""

    def try_write(self) -> None:
        """See whether it can be written again, with what changes nothing."""

    def trim(self) -> None:
        """Forget what is too old, in a part small enough for the daemon's loop.

        Raises StoreError too once the files are gone: called now and then, it tells before somebody's knock does.
        """

    @property
    def needs_checkpoint(self) -> bool:
        """Whether it is time for a checkpoint."""

    def checkpoint(self) -> None:
        """Merge the log into the database: takes as long as the disk does, so it belongs in a worker thread."""

    def close(self) -> None:
        """Let go of the files and of the state directory; a second time does nothing."""


class Reader:
    """The database as `read_only` opens it for another process than the daemon, or as the daemon's own part below."""

    def __init__(self, path: Path, database: sqlite3.Connection, schema: int = _SCHEMA) -> None:
        self._path = path
        self._db = database
        self._schema = schema
        self._boot = _boot()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def was_used(self, door: str, sequence: Sequence) -> bool:
        query = "SELECT count(*) FROM used WHERE door = ? AND sequence = ?"
        with _told(self._path):
            (count,) = self._db.execute(query, (door, _pack(sequence))).fetchone()
        return bool(count)

    def place(self, door: str, file: str) -> Place | None:
        with _told(self._path):
            row = self._db.execute(
                "SELECT line, offset, last FROM places WHERE door = ? AND file = ?", (door, file)
            ).fetchone()
        match row:
            case None:
                return None
            case (int(line), int(offset), bytes(packed)) if line >= 0 and offset >= 0:
                last = _unpack(packed)
                if last is not None:
                    return Place(line, offset, last)
        raise _damaged(self._path, f"the place of {file} at door {door} makes no sense")

    def used(self, door: str, file: str) -> int:
        with _told(self._path):
            row = self._db.execute("SELECT used FROM places WHERE door = ? AND file = ?", (door, file)).fetchone()
        match row:
            case None:
                return 0
            case (int(count),) if count >= 0:
                return count
        raise _damaged(self._path, f"the count of {file} at door {door} makes no sense")

    def steps(self) -> dict[tuple[str, str], int]:
        if self._schema < 3:
            return {}
        with _told(self._path):
            rows = self._db.execute(_SEALED["steps"]).fetchall()
        for row in rows:
            _unseal(self._path, "steps", row)
        return {(door, client): step for door, client, step, _ in rows}

    def packets(self) -> dict[tuple[str, str], int]:
        """When the newest packet was sent that is on record, by door and client; seconds since the epoch.

        It is for people to see: nothing is decided by it.
        """
        if self._schema < 3:
            return {}
        with _told(self._path):
            rows = self._db.execute(_NEWEST).fetchall()
        return {(door, client): stamp for door, client, stamp in rows}

    def was_seen(self, packet: Authentic) -> bool:
        """Whether `see` would say that this packet is not new."""
        if self._schema < 3:
            return False
        with _told(self._path):
            (known,) = self._db.execute("SELECT count(*) FROM seen WHERE identity = ?", (packet.identity,)).fetchone()
        return bool(known) or packet.stamp <= self._mark(packet.signer)

    def grants(self, wall: float, mono: float) -> list[StoredGrant]:
        return [record.in_boot(self._boot, wall, mono).stored() for record in self._records()]

    def history(self, limit: int) -> list[Entry]:
        query = "SELECT wall, event, door, src, detail FROM history ORDER BY id DESC LIMIT ?"
        with _told(self._path):
            rows = self._db.execute(query, (limit,)).fetchall()
        entries = []
        for row in rows:
            match row:
                case (float(), str(), str(), bytes(src), str()) if len(src) in (4, 16):
                    entries.append(Entry(*row))
        return entries

    def close(self) -> None:
        with _told(self._path):
            self._db.close()

    def _mark(self, signer: bytes) -> int:
        """The time of the newest packet of the signer's that has been forgotten; -1: none was."""
        with _told(self._path):
            row = self._db.execute(f"{_SEALED['forgotten']} WHERE signer = ?", (signer,)).fetchone()
        return -1 if row is None else int(_unseal(self._path, "forgotten", row)[1])

    def _records(self) -> list["_Record"]:
        """The sound ones; a row that makes no sense opens nothing."""
        with _told(self._path):
            return _records(self._db, self._schema)


class SQLiteStore(Reader):
    """The Store in the state directory, which `lock`, from `_lock`, keeps other daemons out of, until it is closed."""

    def __init__(self, state: Path, lock: int) -> None:
        """Raises StoreError, and leaves the lock to the caller then."""
        path = state / DATABASE
        self.created = not _size(path)[0]
        if self.created:
            _create(path)
        # What a crash has left in the log is merged soon: SQLite reads all of it at each start.
        self._commits = CHECKPOINT_COMMITS if _size(_log(path))[1] else 0
        database, self.checked = _open(path)
        super().__init__(path, database)
        self._files = _identities(path)
        self._synchronous = ""  # as it is set
        self._lock: int | None = lock
        self._checkpointing = threading.Lock()

    def use(self, code: Code, place: Place, src: bytes, wall: float) -> bool:
        self._see_files()
        with self._transaction("FULL") as run:
            query = "INSERT OR IGNORE INTO used VALUES (?, ?)"
            new = run(query, (code.door, _pack(code.sequence))).rowcount
            run(_MOVE, (code.door, code.file, place.line, place.offset, _pack(place.last), new))
            if new:
                self._tell(run, Entry(wall, "used", code.door, src, f"line {place.line} of {code.file}"))
        return bool(new)

    def move(self, door: str, file: str, place: Place) -> None:
        with self._transaction() as run:
            run(_MOVE, (door, file, place.line, place.offset, _pack(place.last), 0))

    def use_step(self, door: str, client: str, step: int, src: bytes, wall: float) -> bool:
        self._see_files()
        with self._transaction("FULL") as run:
            row = run(f"{_SEALED['steps']} WHERE door = ? AND client = ?", (door, client)).fetchone()
            new = row is None or step > _unseal(self._path, "steps", row)[2]
            if new:
                values = (door, client, step)
                run("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?)", (*values, _seal(values)))
                words = f"the step of {datetime.fromtimestamp(step)} of client {client}"
                self._tell(run, Entry(wall, "used", door, src, words))
        return new

    def see(self, packet: Authentic, src: bytes, wall: float) -> bool:
        self._see_files()
        with self._transaction("FULL") as run:
            new = not self.was_seen(packet)
            if new:
                run("INSERT INTO seen VALUES (?, ?, ?, ?, ?, ?)", (*packet, _seal(tuple(packet))))
                self._tell(run, Entry(wall, "used", packet.door, src, f"a packet of client {packet.client}"))
        return new

    def forget(self, before: int) -> None:
        self._see_files()
        with _told(self._path):
            rows = self._db.execute(_OLDEST, (before, TRIM_ROWS)).fetchall()
        if not rows:
            return
        marks: dict[bytes, Authentic] = {}
        with self._transaction() as run:
            for row in rows:
                packet = Authentic(*_unseal(self._path, "seen", row)[:-1])
                marks[packet.signer] = packet  # the oldest come first
                run("DELETE FROM seen WHERE identity = ?", (packet.identity,))
            for packet in marks.values():  # none goes back: what was seen since is newer
                values = (packet.signer, packet.stamp, packet.door, packet.client)
                run("INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?, ?, ?)", (*values, _seal(values)))

    def opened(self, grant: Grant, wall: float, mono: float, by: str = "") -> None:
        record = _Record(grant, wall, self._boot, mono, wall, by)
        detail = f"{grant.expires - mono:.0f} s" + (f", by {by}" if by else "")
        with self._transaction() as run:
            run(_GRANT, record.row())
            self._tell(run, Entry(wall, "opened", grant.door, grant.src, detail))

    def ended(self, grant: Grant, how: str, wall: float) -> None:
        with self._transaction() as run:
            if run("DELETE FROM grants WHERE door = ? AND src = ? AND expires = ?", grant).rowcount:
                self._tell(run, Entry(wall, "ended", grant.door, grant.src, how))

    def grants(self, wall: float, mono: float) -> list[StoredGrant]:
        """Those of another boot are recorded anew, in this one's clock: it cannot be set, so it counts from now on."""
        records = self._records()
        now = [record.in_boot(self._boot, wall, mono) for record in records]
        moved = [after for before, after in zip(records, now, strict=True) if after is not before]
        if moved:
            with self._transaction() as run:
                for record in moved:
                    run(_GRANT, record.row())
        return [record.stored() for record in now]

    def try_write(self) -> None:
        self._see_files()
        with self._transaction() as run:
            run(f"PRAGMA user_version = {_SCHEMA}")  # as it is: a page is written all the same

    def trim(self) -> None:
        self._see_files()
        with _told(self._path):
            (first,) = self._db.execute("SELECT min(id) FROM history").fetchone()
            (last,) = self._db.execute("SELECT max(id) FROM history").fetchone()
        if first is None or last - first < MAX_HISTORY:
            return
        with self._transaction() as run:
            run("DELETE FROM history WHERE id < ?", (min(first + TRIM_ROWS, last - MAX_HISTORY + 1),))

    @property
    def needs_checkpoint(self) -> bool:
        return self._commits >= CHECKPOINT_COMMITS

    def checkpoint(self) -> None:
        with self._checkpointing:
            if self._lock is None:
                return
            self._commits = 0
            try:
                with _told(self._path):
                    database = _connect(self._path, "rw", _OPEN_WAIT)
                    try:
                        # PASSIVE waits for nobody and nobody for it; it syncs the log before the database.
                        database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    finally:
                        database.close()
            except StoreError:
                self._commits = CHECKPOINT_COMMITS
                raise

    def close(self) -> None:
        with self._checkpointing:
            if self._lock is None:
                return
            lock, self._lock = self._lock, None
            try:
                super().close()
            finally:
                os.close(lock)

    def _see_files(self) -> None:
        """Raise StoreError unless they still have their names: what is written to one without is lost at the end."""
        if _identities(self._path) != self._files:
            raise StoreError(f"{self._path}: was removed or replaced while in use", _AWAY)

    @contextmanager
    def _transaction(self, synchronous: str = "NORMAL") -> Iterator[Callable[..., sqlite3.Cursor]]:
        """All of it or nothing. FULL: the disk has it at the end; NORMAL: it survives the process, not a power cut."""
        database = self._db
        with _told(self._path):
            if synchronous != self._synchronous:
                self._synchronous = ""
                database.execute(f"PRAGMA synchronous = {synchronous}")
                self._synchronous = synchronous
            try:
                database.execute("BEGIN IMMEDIATE")
                yield database.execute
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.rollback()
        self._commits += 1

    @staticmethod
    def _tell(run: Callable[..., sqlite3.Cursor], entry: Entry) -> None:
        run("INSERT INTO history (wall, event, door, src, detail) VALUES (?, ?, ?, ?, ?)", entry)


_GRANT = "INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NEWEST = """SELECT door, client, max(stamp) FROM (
SELECT door, client, stamp FROM seen UNION ALL SELECT door, client, stamp FROM forgotten) GROUP BY door, client"""
_OLDEST = f"{_SEALED['seen']} WHERE stamp < ? ORDER BY stamp LIMIT ?"
_MOVE = """INSERT INTO places VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (door, file) DO UPDATE
SET line = excluded.line, offset = excluded.offset, last = excluded.last, used = used + excluded.used"""


class NoStore:
    """The Store when the database cannot be used: it remembers nothing, so what opens once stays shut, for `reason`."""

    needs_checkpoint = False

    def __init__(self, reason: StoreError, lock: int | None = None) -> None:
        self.reason = reason
        self._lock = lock

    def use(self, code: Code, place: Place, src: bytes, wall: float) -> bool:
        raise self.reason

    def was_used(self, door: str, sequence: Sequence) -> bool:
        raise self.reason

    def place(self, door: str, file: str) -> Place | None:
        raise self.reason

    def move(self, door: str, file: str, place: Place) -> None:
        pass

    def used(self, door: str, file: str) -> int:
        raise self.reason

    def use_step(self, door: str, client: str, step: int, src: bytes, wall: float) -> bool:
        raise self.reason

    def steps(self) -> dict[tuple[str, str], int]:
        raise self.reason

    def see(self, packet: Authentic, src: bytes, wall: float) -> bool:
        raise self.reason

    def forget(self, before: int) -> None:
        pass

    def opened(self, grant: Grant, wall: float, mono: float, by: str = "") -> None:
        pass

    def ended(self, grant: Grant, how: str, wall: float) -> None:
        pass

    def grants(self, wall: float, mono: float) -> list[StoredGrant]:
        return []

    def history(self, limit: int) -> list[Entry]:
        return []

    def try_write(self) -> None:
        raise self.reason

    def trim(self) -> None:
        pass

    def checkpoint(self) -> None:
        pass

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_store(state: Path) -> SQLiteStore | NoStore:
    """The store of the state directory, which is made if it is missing; a NoStore, with the reason, if that fails.

    Raises StateInUse where another daemon has the directory.
    """
    try:
        lock = _lock(state)
    except StoreError as error:
        return NoStore(error)
    try:
        return SQLiteStore(state, lock)
    except StoreError as error:
        return NoStore(error, lock)


def read_only(state: Path) -> Reader:
    """The database for reading, whether or not a daemon has it. Raises StoreError; changes and creates nothing."""
    path = state / DATABASE
    _look(path)
    try:
        return _read_only(path)
    except StoreError:
        # A daemon may have started or ended between the look at its files and the opening of them.
        return _read_only(path)


def _read_only(path: Path) -> Reader:
    with _told(path):
        # SQLite's index of the log is there while somebody writes, and after a crash. Without it nobody does, and
        # `immutable` keeps SQLite from making one.
        if _size(path.with_name(f"{DATABASE}-shm"))[0]:
            database = _connect(path, "ro&readonly_shm=1", _OPEN_WAIT)
        elif _size(_log(path))[1]:
            hint = "start the daemon, which can read it, and ask again"
            raise StoreError(f"{path}: has a log that cannot be read without changing it", hint)
        else:
            database = _connect(path, "ro&immutable=1", _OPEN_WAIT)
        with ExitStack() as undo:
            undo.callback(database.close)
            database.execute("BEGIN")  # all of it as it is now: a daemon that starts may bring it up to date
            schema = _identify(path, database)
            undo.pop_all()
    return Reader(path, database, schema)


def _lock(state: Path) -> int:
    """A descriptor of the lock file that holds the lock for as long as it is open, in this process alone."""
    path = state / LOCK
    try:
        with suppress(FileExistsError):
            state.mkdir(mode=0o711, parents=True)
            # Whatever the umask: others may pass through to what is meant for them (allow/), and each secret file is
            # 0600 by itself. `rules apply`, where it comes first, makes the directory the same way.
            state.chmod(0o711)
        distrust(state, state.stat())
        distrust_file(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(Path(error.filename or path), error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            hint = "stop that one, or give this one a state directory of its own ([paths] state)"
            raise StateInUse(f"{state}: another logknock daemon uses it", hint, UNAVAILABLE) from None
        raise _unusable(path, error) from None
    return descriptor


def distrust_file(path: Path) -> None:
    """Raise StoreError if it is there and is not a file of ours, or OSError."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path}: is no file", "move it away: it is not what logknock made")
        distrust(path, found)


def distrust(path: Path, found: os.stat_result) -> None:
    """Raise StoreError if others than root and ourselves can write it, or can read it though it is a file."""
    me, name = os.geteuid(), quote(str(path))
    if found.st_uid not in (0, me):
        hint = f"if what is there is to be believed: chown {me or 'root'} {name}"
        user = service_user()
        if user is not None and found.st_uid == user.pw_uid:  # root's daemon would take it away from the service's
            hint = "the service has it, which runs as that user: systemctl start logknock"
        raise StoreError(f"{path}: belongs to another user (uid {found.st_uid})", hint)
    folder = stat.S_ISDIR(found.st_mode)
    if shared := found.st_mode & (0o022 if folder else 0o026):
        how = "written" if shared & 0o022 else "read"
        hint = f"if what is there is to be believed: chmod {'go-w' if folder else 'g-w,o-rwx'} {name}"
        raise StoreError(f"{path}: can be {how} by others", hint)


def _create(path: Path) -> None:
    """Make the database: whole and on the disk before it has its name, so what is there is never half made."""
    if _size(_log(path))[1]:
        # SQLite would apply it to the new database.
        raise StoreError(f"{path}: is gone, but {DATABASE}-wal, which belongs to it, is there", _AWAY)
    new = path.with_name(f"{DATABASE}.new")
    try:
        for part in PARTS:
            new.with_name(new.name + part).unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with _told(path):
            database = _connect(new, "rw", _OPEN_WAIT)
            try:
                database.execute(f"PRAGMA page_size = {_PAGE}")
                database.execute("BEGIN")
                for table in (*_TABLES, *_TABLES_3):
                    database.execute(table)
                database.execute(f"PRAGMA application_id = {_APPLICATION}")
                database.execute(f"PRAGMA user_version = {_SCHEMA}")
                database.execute("COMMIT")
                database.execute("PRAGMA journal_mode = WAL")
            finally:
                database.close()
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _unusable(path, error) from None


def _open(path: Path) -> tuple[sqlite3.Connection, bool]:
    """The connection that writes, and whether the check of the file came to its end in time."""
    _look(path)
    try:
        for part in PARTS:
            distrust_file(path.with_name(path.name + part))
    except OSError as error:
        raise _unusable(path, error) from None
    if _size(path)[1] % _PAGE and not _size(_log(path))[1]:
        raise _damaged(path, "it ends in the middle of a page")  # SQLite would read zeros there
    with _told(path):
        database = _connect(path, "rw", _OPEN_WAIT)
        with ExitStack() as undo:
            undo.callback(database.close)
            schema = _identify(path, database)
            (journal,) = database.execute("PRAGMA journal_mode").fetchone()
            if journal != "wal":
                raise _damaged(path, f"its journal is {journal}, not wal")
            checked = _check(path, database, schema)
            database.execute("PRAGMA wal_autocheckpoint = 0")
            if schema < _SCHEMA:
                _bring_up_to_date(database, schema)
            # Whether it may be written at all is known now, not when somebody knocks; BEGIN alone does not tell.
            database.execute("BEGIN IMMEDIATE")
            database.execute(f"PRAGMA user_version = {_SCHEMA}")
            database.execute("ROLLBACK")
            database.execute(f"PRAGMA busy_timeout = {_WRITE_WAIT * 1000:.0f}")
            undo.pop_all()
    return database, checked


def _bring_up_to_date(database: sqlite3.Connection, schema: int) -> None:
    """Make the tables of an older schema those of this one: all of it or, whatever happens meanwhile, nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        if schema < 2:
            kept = _records(database, schema)
            database.execute("DROP TABLE grants")
            database.execute(_GRANTS)
            database.executemany(_GRANT, (record.row() for record in kept))
        for table in _TABLES_3:
            database.execute(table)
        database.execute(f"PRAGMA user_version = {_SCHEMA}")
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.rollback()


def _look(path: Path) -> None:
    """Say what SQLite has but one word for. Never opens the file: closing it would drop this process's locks on it."""
    if not _size(path)[0]:
        raise StoreError(f"{path}: is not there yet", "the daemon makes it when it starts for the first time")
    if path.is_symlink():
        # SQLite has the log beside the file that the link leads to, where nothing here would look for it.
        hint = "move what it leads to here, together with its -wal and -shm, or let [paths] state lead there"
        raise StoreError(f"{path}: is a link", hint)
    if not path.is_file():
        raise StoreError(f"{path}: is no file", _AWAY)


def _connect(path: Path, mode: str, wait: float) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=wait, isolation_level=None)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA cell_size_check = ON")
    return database


def _identify(path: Path, database: sqlite3.Connection) -> int:
    """The database's schema. Raises StoreError unless it is ours, and of a version that is known here."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise StoreError(f"{path}: is no state database of logknock, or is damaged", _AWAY)
    if version > _SCHEMA:
        hint = "use that version again; this one cannot know what it means"
        raise StoreError(f"{path}: was written by a newer logknock (schema {version}, this is {_SCHEMA})", hint)
    rows = database.execute("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    if {sql for (sql,) in rows} != _SCHEMAS.get(version):
        raise _damaged(path, "its tables are not as they were made")
    return int(version)


def _check(path: Path, database: sqlite3.Connection, schema: int) -> bool:
    """Raise StoreError for damage; False: there was not the time to look at all of it."""
    alarm = threading.Timer(CHECK_SECONDS, database.interrupt)
    alarm.start()
    try:
        # Every used sequence was counted in its file's row too: this is how whole pages that are gone show.
        (lost,) = database.execute(
            "SELECT (SELECT ifnull(sum(used), 0) FROM places) > (SELECT count(*) FROM used)"
        ).fetchone()
        if lost:
            raise _damaged(path, "some used sequences are missing")
        sealed = _SEALED if schema == _SCHEMA else {}
        for table in (*sealed, "places", "grants", "history", "used"):
            check = "integrity" if table in sealed else "quick"  # integrity: whether an index has the same rows, too
            (found,) = database.execute(f"PRAGMA {check}_check('{table}')").fetchone()
            if found != "ok":
                raise _damaged(path, " ".join(str(found).split()))
        for table, query in sealed.items():
            for row in database.execute(query):
                _unseal(path, table, row)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT":
            raise
        return False
    finally:
        alarm.cancel()
        alarm.join()
    return True


class _Record(NamedTuple):
    """A row of grants: what `grant.expires` is by the clock of the boot `boot`, where `mono` and `wall` were once."""

    grant: Grant
    opened: float
    boot: str
    mono: float
    wall: float
    by: str = ""

    @classmethod
    def from_row(cls, row: Any) -> Self | None:
        """None for a row that is not as it was written: one changed bit is a stranger's address.

        The seal is no secret, and the name goes to the log: it has to be one that a door can have.
        """
        match row:
            case (str(), bytes(src), float(expires), float(opened), str(), float(mono), float(wall), str(by), int()):
                sound = math.isfinite(opened) and math.isfinite(wall) and 0 <= expires - mono <= _LONGEST
                named = 0 < len(row[0]) <= _LONGEST_NAME and row[0].isascii() and row[0].isprintable()
                if sound and named and by.isprintable() and len(src) in (4, 16) and row[-1] == _seal(row[:-1]):
                    return cls(Grant(*row[:3]), *row[3:-1])
        return None

    @classmethod
    def from_first(cls, row: tuple[Any, ...]) -> Self | None:
        """The same for a row of schema 1, where it was not known who had opened a door by hand: nobody could."""
        if row[-1] != _seal(row[:-1]):
            return None
        values = (*row[:-1], "")
        return cls.from_row((*values, _seal(values)))

    def row(self) -> tuple[str | bytes | float, ...]:
        values = (*self.grant, *self[1:])
        return (*values, _seal(values))

    def in_boot(self, boot: str, wall: float, mono: float) -> "_Record":
        """The same, by the clock of this boot; itself, if it is that already."""
        if boot and boot == self.boot and mono >= self.mono:
            return self
        left = self.grant.expires - self.mono
        left = max(0.0, min(left, left - (wall - self.wall)))
        return self._replace(grant=self.grant._replace(expires=mono + left), boot=boot, mono=mono, wall=wall)

    def stored(self) -> StoredGrant:
        return StoredGrant(self.grant, self.opened, self.by)


def _records(database: sqlite3.Connection, schema: int) -> list[_Record]:
    """All sound rows of grants."""
    if schema > 1:
        query, made = "SELECT door, src, expires, opened, boot, mono, wall, by, seal FROM grants", _Record.from_row
    else:
        query, made = "SELECT door, src, expires, opened, boot, mono, wall, seal FROM grants", _Record.from_first
    rows = database.execute(query).fetchall()
    return [record for row in rows if (record := made(row)) is not None]


def _seal(values: tuple[object, ...]) -> int:
    return crc32(repr(values).encode())


def _unseal(path: Path, table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row; raises StoreError for one that is not as it was written. Its names go to the log, too."""
    names = [value for value in row if isinstance(value, str)]
    if row[-1] != _seal(row[:-1]) or not all(name.isprintable() for name in names):
        raise _damaged(path, f"a row of {table} makes no sense")
    return row


_KNOCK = Struct("!BH")


def _pack(sequence: Sequence) -> bytes:
    """Three bytes a knock: protocol and port."""
    return b"".join(_KNOCK.pack(*service) for service in sequence)


def _unpack(packed: bytes) -> Sequence | None:
    """None for what no sequence packs to."""
    if len(packed) % _KNOCK.size or len(packed) > _KNOCK.size * MAX_SEQUENCE:
        return None
    sequence = tuple(Service(*knock) for knock in _KNOCK.iter_unpack(packed))
    return sequence if all(service.port and service.proto in PROTOCOL_NAMES for service in sequence) else None


def _boot() -> str:
    """What the kernel calls this boot; empty, which is no boot's name, where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _size(path: Path) -> tuple[bool, int]:
    """Whether there is such a file, or a link of that name, and how many bytes it has."""
    try:
        return True, path.lstat().st_size
    except FileNotFoundError:
        return False, 0
    except OSError as error:
        raise _unusable(path, error) from None


def _identities(path: Path) -> list[tuple[int, int]]:
    """Which files the database and its log are; nothing for one that is gone."""
    try:
        return [(found.st_dev, found.st_ino) for found in (os.stat(path), os.stat(_log(path)))]
    except OSError:
        return []


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors, whatever their kind, as StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        kind = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").partition("_")[0]
        raise StoreError(f"{path}: {error}", _HINTS.get(kind, "")) from error
    except UnicodeDecodeError:  # what SQLite says of a damaged schema quotes it
        raise _damaged(path, "its schema is no text") from None
    except MemoryError:  # a length in a damaged row; a process that has no memory left does not get here
        raise _damaged(path, "it asks for more memory than there is") from None


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: is damaged: {what}", _AWAY)


def _unusable(path: Path, error: OSError) -> StoreError:
    if isinstance(error, PermissionError) and os.geteuid():
        hint = "`logknock rules apply` by root gives the daemon what root has left there"
        return StoreError(f"{path}: {error.strerror}", hint)
    return StoreError(f"{path}: {error.strerror}", "the daemon needs it to remember what was used ([paths] state)")
