"""``sqlite:PATH``: records in one file of this host, which several sidecars may share.

The rule of this file: everything that SQLite does is done in one thread, which alone holds the connection, and whatever it
cannot do is either ``StoreAway``, from which it comes back by itself, or ``StoreUnusable``, which is said once at start. A
file that is not ours is never touched; ours, if it is damaged, is moved aside, never deleted. The write-ahead log lets others
read while somebody writes, and a process that is killed loses nothing that was acknowledged (a host that loses its power may
lose the last commits).
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from mcp_sidecar.sessions.stores.store import (
    ABSENT,
    Claim,
    Entry,
    Key,
    Lease,
    StoreAway,
    StoreUnusable,
    StoreUnwritable,
    Times,
    Touch,
    Turn,
)

T = TypeVar("T")

APPLICATION_ID: Final = 0x6D637073  # "mcps"
SCHEMA: Final = 1
"""``user_version`` of the file. What a later version adds must not disturb an earlier one that shares the file; what would
gets another number, and an earlier one then refuses to start."""

BUSY_TIMEOUT_S: Final = 0.250
PAUSE_S: Final = 0.5
"""How long nothing is written after a write that could not be: a stopped lock holder or a full disk must not keep readers
waiting behind writers that wait in vain."""

_HEADER: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100
_APPLICATION_ID_AT: Final = 68
_MODE: Final = 0o600
OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_NEVER_OURS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNWRITABLE: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY})
_REASONS: Final = {
    sqlite3.SQLITE_CORRUPT: "its file is damaged",
    sqlite3.SQLITE_NOTADB: "its file is damaged",
    sqlite3.SQLITE_BUSY: "another process holds its lock",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "its file is read-only",
    sqlite3.SQLITE_IOERR: "its disk fails",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened",
}

_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS records (
        session BLOB NOT NULL, principal BLOB NOT NULL,
        revision INTEGER NOT NULL, writer BLOB NOT NULL, data BLOB, expires REAL NOT NULL,
        PRIMARY KEY (session, principal)
    )""",
    "CREATE INDEX IF NOT EXISTS records_by_expiry ON records (expires)",
    """CREATE TABLE IF NOT EXISTS claims (
        instance BLOB NOT NULL, upstream BLOB NOT NULL,
        session BLOB NOT NULL, principal BLOB NOT NULL, expires REAL NOT NULL,
        PRIMARY KEY (instance, upstream)
    ) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    f"PRAGMA user_version = {SCHEMA}",
)


class SqliteStore:
    """Records in one SQLite file."""

    outlives_process = True

    def __init__(self, path: Path, *, times: Times, max_entries: int, ended_ttl_s: float) -> None:
        """Of more than ``max_entries`` the sweep forgets those that expire first.

        ``ended_ttl_s``: so long it is remembered of an entry that has expired that it once was.
        """
        self._file = _File(path, times, max_entries, ended_ttl_s)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._path = path

    def __str__(self) -> str:
        """As in ``sessions.store``."""
        return f"sqlite:{self._path}"

    async def open(self) -> None:
        """Make the folder and the file, or look at those that are there. Raises ``StoreUnusable``."""
        with suppress(StoreAway):
            await self._do(self._file.open)

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._do(self._file.end)
        self._thread.shutdown(wait=False)

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        """All entries of one session id."""
        return await self._do(lambda: self._file.get(session))

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        """Compare and set."""
        return await self._do(lambda: self._file.put(key, entry, expected, ttl_s, claim))

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        """Put off the expiry of many in one transaction."""
        return await self._do(lambda: self._file.touch(touches))

    async def holder(self, claim: Claim) -> Key | None:
        """Whose the upstream id is."""
        return await self._do(lambda: self._file.holder(claim))

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:  # noqa: ARG002
        """Two sidecars of one host rarely heal one session at a time; where they do, one of them has begun in vain."""
        return Turn(is_own=True, revision=await self._do(lambda: self._file.revision(lease.key)))

    async def give_back(self, lease: Lease) -> None:
        """Nobody keeps it."""

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        """The first one stays, unless it is the one to be replaced."""
        return await self._do(lambda: self._file.secret(name, fresh, replaces))

    async def sweep(self) -> None:
        """Forget what has expired and what is too many."""
        await self._do(self._file.sweep)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _File:
    """The file, as the one thread sees it."""

    def __init__(self, path: Path, times: Times, max_entries: int, ended_ttl_s: float) -> None:
        self._path = path
        self._times = times
        self._max_entries = max_entries
        self._ended_ttl_s = ended_ttl_s
        self._database: sqlite3.Connection | None = None
        self._has_ended = False
        self._identity: tuple[int, int] | None = None
        self._no_writes_before = -math.inf

    # -- the connection -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Raises ``StoreUnusable`` and ``StoreAway``."""
        try:
            _prepare(self._path)
        except OSError as error:
            _refuse(self._path, error)
        with self._told():
            self._connect()

    def _connect(self) -> None:
        self._identity = _identity(self._path)
        database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._set_up(database)
        except BaseException:
            database.close()
            raise
        self._database = database

    def _set_up(self, database: sqlite3.Connection) -> None:
        (schema,) = database.execute("PRAGMA user_version").fetchone()
        if schema > SCHEMA:
            raise StoreUnusable(f"{self._path} is of a later version of mcp-sidecar, and is left as it is")
        if schema < SCHEMA:  # in the file itself before there is a log beside it: by this it is known as ours
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if schema < SCHEMA:
            with _transaction(database):
                for statement in _TABLES:
                    database.execute(statement)

    def end(self) -> None:
        """For good: what was asked behind it finds the store away."""
        self._has_ended = True
        self.close()

    def close(self) -> None:
        """The next use opens it again."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    def _current(self) -> sqlite3.Connection:
        """The connection to the file that stands at the path now: what is written to a deleted one goes nowhere."""
        if self._has_ended:
            raise StoreAway("it is closed")
        if self._database is not None and _identity(self._path) != self._identity:
            self.close()
        if self._database is None:
            try:
                self.open()
            except StoreUnusable as error:  # it was usable when the process started
                raise StoreAway(str(error)) from None
        assert self._database is not None
        return self._database

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._told():
            yield self._current()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self._times.clock() < self._no_writes_before:
            raise StoreUnwritable("it could not be written just now")
        with self._told():
            database = self._current()
            with _transaction(database):
                yield database

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite cannot do is said in our words, and where that is known to help, the next try begins anew."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _DAMAGED:
                self._move_aside()
            elif code in _UNWRITABLE:
                self._no_writes_before = self._times.clock() + PAUSE_S
                raise StoreUnwritable(_REASONS[code]) from error
            else:
                self.close()
            raise StoreAway(_REASONS.get(code, "it failed")) from error

    def _move_aside(self) -> None:
        """Begin with an empty file; only a damaged one of ours comes here, and it is kept for whoever wants to look.

        Where another sidecar was quicker, the file at the path is its new one already.
        """
        is_the_damaged_one = _identity(self._path) == self._identity
        self.close()
        with suppress(OSError):
            if is_the_damaged_one and _is_ours(_header(self._path)):
                aside = f"{self._path}.damaged-{int(self._times.wall())}"
                for suffix in ("-wal", "-shm", ""):
                    with suppress(FileNotFoundError):
                        Path(f"{self._path}{suffix}").rename(f"{aside}{suffix}")

    # -- what is done -------------------------------------------------------------------------------------------------

    def get(self, session: bytes) -> dict[bytes, Entry]:
        with self._reading() as database:
            query = "SELECT principal, revision, writer, data, expires FROM records WHERE session = ?"
            rows = database.execute(query, (session,)).fetchall()
        entries = {principal: self._entry(*row) for principal, *row in rows}
        return {principal: entry for principal, entry in entries.items() if entry != ABSENT}

    def _entry(self, revision: int, writer: bytes, data: bytes | None, expires: float) -> Entry:
        """An entry that has expired is one that has ended, and the memory of an end that has expired is nothing."""
        if expires > self._times.wall():
            return Entry(revision, writer, data)
        return ABSENT if data is None else Entry(revision, writer, None)

    def put(self, key: Key, entry: Entry, expected: int, ttl_s: float, claim: Claim | None) -> Entry | None:
        with self._writing() as database:
            standing = self._standing(database, key)
            if standing.revision != expected:
                return standing
            self._write(database, key, entry, ttl_s)
            if claim is not None:
                until = self._times.wall() + self._ended_ttl_s
                row = (claim.instance, claim.upstream_id, key.session, key.principal, until)
                database.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)", row)
        return None

    def revision(self, key: Key) -> int:
        with self._reading() as database:
            return self._standing(database, key).revision

    def _standing(self, database: sqlite3.Connection, key: Key) -> Entry:
        query = "SELECT revision, writer, data, expires FROM records WHERE session = ? AND principal = ?"
        row = database.execute(query, (key.session, key.principal)).fetchone()
        return self._entry(*row) if row is not None else ABSENT

    def _write(self, database: sqlite3.Connection, key: Key, entry: Entry, ttl_s: float) -> None:
        row = (key.session, key.principal, entry.revision, entry.writer, entry.data, self._times.wall() + ttl_s)
        database.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)", row)

    def touch(self, touches: Sequence[Touch]) -> list[Key]:
        now = self._times.wall()
        change = (
            "UPDATE records SET expires = max(expires, ?)"
            " WHERE session = ? AND principal = ? AND revision >= ? AND data IS NOT NULL"
        )
        with self._writing() as database:
            return [
                one.key
                for one in touches
                if not database.execute(
                    change, (now + one.ttl_s, one.key.session, one.key.principal, one.revision)
                ).rowcount
            ]

    def holder(self, claim: Claim) -> Key | None:
        query = "SELECT session, principal FROM claims WHERE instance = ? AND upstream = ? AND expires > ?"
        with self._reading() as database:
            row = (claim.instance, claim.upstream_id, self._times.wall())
            found = database.execute(query, row).fetchone()
        return Key(*found) if found is not None else None

    def secret(self, name: str, fresh: bytes, replaces: bytes | None) -> bytes:
        query = "SELECT value FROM secrets WHERE name = ?"
        with self._reading() as database:
            found = database.execute(query, (name,)).fetchone()
        if found is None or found[0] == replaces:
            with self._writing() as database:
                database.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, fresh))
                change = "UPDATE secrets SET value = ? WHERE name = ? AND value = ?"
                database.execute(change, (fresh, name, replaces))
                found = database.execute(query, (name,)).fetchone()
        kept: bytes = found[0]
        return kept

    def sweep(self) -> None:
        now = self._times.wall()
        with self._writing() as database:
            database.execute("DELETE FROM claims WHERE expires <= ?", (now,))
            database.execute("DELETE FROM records WHERE expires <= ? AND data IS NULL", (now,))
            database.execute(
                "UPDATE records SET data = NULL, revision = revision + 1, expires = ? WHERE expires <= ?",
                (now + self._ended_ttl_s, now),
            )
            (count,) = database.execute("SELECT count(*) FROM records").fetchone()
            surplus = "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records ORDER BY expires LIMIT ?)"
            database.execute(surplus, (max(0, count - self._max_entries),))


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk has rolled it back already
            database.execute("ROLLBACK")
        raise


def _prepare(path: Path) -> None:
    """Make the folder and the file where they are missing, for nobody but this user. Raises ``OSError``.

    To be called while this process has no connection to the file: closing a descriptor of it would let go of SQLite's locks.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_mode & OTHERS_MAY_WRITE:
        raise StoreUnusable(f"others can write to {path.parent}: use a folder of mode 0700 for {path.name}")
    with _closing(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)) as file:
        found = os.fstat(file)
        header = os.read(file, _HEADER_BYTES) if stat.S_ISREG(found.st_mode) else b"no file"
        if header and not _is_ours(header):
            raise StoreUnusable(f"{path} is not a file of mcp-sidecar, and is left as it is")
        if stat.S_IMODE(found.st_mode) != _MODE:
            os.fchmod(file, _MODE)


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    """Close it in the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_ours(header: bytes) -> bool:
    application = int.from_bytes(header[_APPLICATION_ID_AT : _APPLICATION_ID_AT + 4], "big")
    return header.startswith(_HEADER) and application == APPLICATION_ID


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _refuse(path: Path, error: OSError) -> NoReturn:
    if error.errno in _NEVER_OURS:
        raise StoreUnusable(f"{path}: {error.strerror}") from None
    raise StoreAway("its file cannot be opened") from error


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)
