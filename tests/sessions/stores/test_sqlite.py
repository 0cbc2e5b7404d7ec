"""The file of session records: what a store promises, and what becomes of it when the file or its disk is not well."""
# ruff: noqa: ASYNC240 - small files on a disk of this host

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_sidecar.sessions.stores.sqlite import PAUSE_S, SqliteStore
from mcp_sidecar.sessions.stores.store import (
    ABSENT,
    Claim,
    Entry,
    Key,
    Lease,
    StoreAway,
    StoreUnusable,
    Times,
    Touch,
    Turn,
)

ALICE, BOB = Key(b"session", b"alice"), Key(b"session", b"bob")
OTHER: Final = Key(b"other", b"alice")


@dataclass(slots=True)
class Clock:
    """Seconds that the test turns."""

    now: float = 1000.0
    times: Times = field(init=False)

    def __post_init__(self) -> None:
        self.times = Times(self.read, self.read)

    def read(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions.db"


@asynccontextmanager
async def opened(path: Path, clock: Clock, max_entries: int = 1000) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, times=clock.times, max_entries=max_entries, ended_ttl_s=50)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def entry(revision: int, data: bytes | None = b"data", writer: bytes = b"w") -> Entry:
    return Entry(revision, writer, data)


def ended(revision: int) -> Entry:
    return Entry(revision, b"", None)


class TestPromises:
    """What every store must do."""

    async def test_compare_and_set(self, path: Path, clock: Clock) -> None:
        """Of two writers that have read the same revision one wins; the other is told what stands there."""
        async with opened(path, clock) as store:
            assert await store.put(ALICE, entry(1), expected=0, ttl_s=10) is None
            assert await store.put(ALICE, entry(1, b"other"), expected=0, ttl_s=10) == entry(1)
            assert await store.put(ALICE, entry(2, b"newer"), expected=1, ttl_s=10) is None
            assert await store.put(ALICE, entry(2, b"late"), expected=1, ttl_s=10) == entry(2, b"newer")
            assert await store.put(BOB, entry(9), expected=8, ttl_s=10) == ABSENT
            assert await store.get(b"session") == {b"alice": entry(2, b"newer")}

    async def test_entries_of_one_id(self, path: Path, clock: Clock) -> None:
        """All principals of one session id are seen at once, and nobody of another id."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=10)
            await store.put(OTHER, entry(1), expected=0, ttl_s=10)
            await store.put(BOB, ended(1), expected=0, ttl_s=10)
            assert await store.get(b"session") == {b"alice": entry(1), b"bob": ended(1)}
            assert await store.get(b"nobody's") == {}

    async def test_an_end(self, path: Path, clock: Clock) -> None:
        """It keeps nothing of the session, is written as every entry is, and can be followed by a new session."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(7), expected=0, ttl_s=10)
            assert await store.put(ALICE, ended(7), expected=6, ttl_s=10) == entry(7)
            assert await store.put(ALICE, ended(8), expected=7, ttl_s=10) is None
            assert await store.put(ALICE, entry(8), expected=7, ttl_s=10) == ended(8)
            assert await store.put(ALICE, entry(9), expected=8, ttl_s=10) is None

    async def test_what_expires_has_ended(self, path: Path, clock: Clock) -> None:
        """A session that was idle for too long was a session: that is remembered for a while, then nothing is."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=10)
            clock.now += 10
            assert await store.get(b"session") == {b"alice": Entry(1, b"w", None)}
            await store.sweep()
            assert await store.get(b"session") == {b"alice": Entry(2, b"w", None)}
            clock.now += 50
            assert await store.get(b"session") == {}
            await store.sweep()
            assert await store.put(ALICE, entry(1), expected=0, ttl_s=10) is None

    async def test_a_touch_puts_it_off(self, path: Path, clock: Clock) -> None:
        """It tells what is missing, is only there in an older revision, or has ended: that is to be written again."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(2), expected=0, ttl_s=10)
            await store.put(BOB, ended(1), expected=0, ttl_s=10)
            clock.now += 9
            touches = [
                Touch(ALICE, 2, 10),
                Touch(ALICE, 1, 10),
                Touch(ALICE, 3, 10),
                Touch(BOB, 0, 10),
                Touch(OTHER, 0, 10),
            ]
            assert await store.touch(touches) == [ALICE, BOB, OTHER]
            clock.now += 9
            assert await store.get(b"session") == {b"alice": entry(2)}

    async def test_claims(self, path: Path, clock: Clock) -> None:
        """An upstream id is whose record was written with it last; what is not written claims nothing."""
        here, there = Claim(b"here", b"1"), Claim(b"there", b"1")
        async with opened(path, clock) as store:
            assert await store.holder(here) is None
            assert await store.put(ALICE, entry(1), expected=0, ttl_s=10, claim=here) is None
            assert await store.put(OTHER, entry(1), expected=0, ttl_s=10, claim=there) is None
            assert (await store.holder(here), await store.holder(there)) == (ALICE, OTHER)
            assert await store.put(ALICE, entry(2), expected=0, ttl_s=10, claim=there) == entry(1)
            assert await store.holder(there) == OTHER
            assert await store.put(BOB, entry(1), expected=0, ttl_s=10, claim=here) is None
            assert await store.holder(here) == BOB
            clock.now += 50
            await store.sweep()
            assert await store.holder(here) is None

    async def test_whoever_asks_for_a_lease_hears_of_the_record(self, path: Path, clock: Clock) -> None:
        """Everybody may have it; from the revision it is known whether there is anything to read."""
        lease = Lease(ALICE, b"here", b"me")
        async with opened(path, clock) as store:
            assert await store.lease(lease, ttl_s=100) == Turn(is_own=True, revision=0)
            await store.put(ALICE, entry(1), expected=0, ttl_s=10)
            assert await store.lease(lease, ttl_s=100) == Turn(is_own=True, revision=1)
            await store.put(ALICE, ended(2), expected=1, ttl_s=10)
            assert await store.lease(lease, ttl_s=100) == Turn(is_own=True, revision=2)

    async def test_secrets(self, path: Path, clock: Clock) -> None:
        """The first one stays, for all who share the file, and outlives them."""
        async with opened(path, clock) as one, opened(path, clock) as other:
            assert await one.secret("index", b"first") == b"first"
            assert await other.secret("index", b"second") == b"first"
        async with opened(path, clock) as later:
            assert await later.secret("index", b"third") == b"first"
            assert await later.secret("index", b"fourth", replaces=b"another") == b"first"
            assert await later.secret("index", b"fourth", replaces=b"first") == b"fourth"

    async def test_bounds(self, path: Path, clock: Clock) -> None:
        """Of too many entries those are forgotten that would expire first."""
        async with opened(path, clock, max_entries=10) as store:
            for number in range(30):
                await store.put(Key(b"%d" % number, b"a"), entry(1), expected=0, ttl_s=100 + number)
            await store.sweep()
            assert [number for number in range(30) if await store.get(b"%d" % number)] == list(range(20, 30))

    async def test_what_is_asked_behind_the_end_opens_nothing(self, path: Path, clock: Clock) -> None:
        """Its thread still does what was asked meanwhile: a file that is opened then would be closed by a collector only."""
        store = SqliteStore(path, times=clock.times, max_entries=1000, ended_ttl_s=50)
        await store.open()
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        with pytest.raises(StoreAway):
            await store.get(b"anybody")
        await closing
        assert store._file._database is None

    async def test_it_outlives_the_process(self, path: Path, clock: Clock) -> None:
        """What was acknowledged is there for the next one."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1, b"\x00" * 100_000), expected=0, ttl_s=10)
        async with opened(path, clock) as store:
            assert await store.get(b"session") == {b"alice": entry(1, b"\x00" * 100_000)}


class TestFile:
    """Where it stands, and who may see it."""

    async def test_it_is_made_for_this_user_only(self, path: Path, clock: Clock) -> None:
        """The folder 0700, the file and its log 0600, whatever the mask."""
        mask = os.umask(0)
        try:
            async with opened(path, clock) as store:
                await store.put(ALICE, entry(1), expected=0, ttl_s=10)
                modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (path.parent, *path.parent.iterdir())}
        finally:
            os.umask(mask)
        assert modes.pop("state") == 0o700
        assert modes and set(modes.values()) == {0o600}

    async def test_a_file_of_ours_is_closed_to_others(self, path: Path, clock: Clock) -> None:
        """Its mode is put right."""
        async with opened(path, clock):
            pass
        path.chmod(0o644)
        async with opened(path, clock):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
    async def test_a_folder_that_others_can_write(self, path: Path, clock: Clock, mode: int) -> None:
        """Whoever can write there could put another file in its place: refused with the reason."""
        path.parent.mkdir()
        path.parent.chmod(mode)
        with pytest.raises(StoreUnusable, match="others can write to"):
            async with opened(path, clock):
                pass
        assert not path.exists()

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda path: path.write_bytes(b"my diary"), id="text"),
            pytest.param(lambda path: path.write_bytes(b"SQLite format 3\x00" + bytes(84)), id="another application's"),
            pytest.param(lambda path: path.mkdir(), id="a folder"),
            pytest.param(lambda path: path.symlink_to("/etc/hostname"), id="a link"),
            pytest.param(os.mkfifo, id="a pipe"),
        ],
    )
    async def test_a_file_that_is_not_ours(self, path: Path, clock: Clock, make: Callable[[Path], object]) -> None:
        """It is never touched, and the process does not start."""
        path.parent.mkdir(mode=0o700)
        make(path)
        before = path.lstat(), path.read_bytes() if path.is_file() else b""
        with pytest.raises(StoreUnusable):
            async with opened(path, clock):
                pass
        assert (path.lstat().st_mode, path.lstat().st_ino) == (before[0].st_mode, before[0].st_ino)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        if path.is_file():
            assert path.read_bytes() == before[1]

    async def test_a_database_of_another_application(self, path: Path, clock: Clock) -> None:
        """A real one, with tables."""
        path.parent.mkdir(mode=0o700)
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE records (a)")
        with pytest.raises(StoreUnusable, match="not a file of mcp-sidecar"):
            async with opened(path, clock):
                pass

    async def test_a_file_of_a_later_version(self, path: Path, clock: Clock) -> None:
        """It is left as it is."""
        async with opened(path, clock):
            pass
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 99")
        with pytest.raises(StoreUnusable, match="later version"):
            async with opened(path, clock):
                pass


async def away(work: Awaitable[object]) -> str:
    with pytest.raises(StoreAway) as caught:
        await work
    return str(caught.value)


async def pragma(store: SqliteStore, text: str) -> tuple[int, ...]:
    """Set something up on the store's own connection."""

    def execute() -> tuple[int, ...]:
        assert store._file._database is not None
        row: tuple[int, ...] = store._file._database.execute(f"PRAGMA {text}").fetchone() or ()
        return row

    return await store._do(execute)


class TestTrouble:
    """What goes wrong while it is open."""

    async def test_it_is_known_as_ours_at_once(self, path: Path, clock: Clock) -> None:
        """A process that is killed right after it has made the file leaves one that the next takes for its own."""
        code = (
            "import asyncio, os, pathlib, sys, time\n"
            "from mcp_sidecar.sessions.stores.sqlite import SqliteStore\n"
            "from mcp_sidecar.sessions.stores.store import Entry, Key, Times\n"
            "async def main():\n"
            "    store = SqliteStore(pathlib.Path(sys.argv[1]), times=Times(time.time, time.time), max_entries=9, ended_ttl_s=9)\n"
            "    await store.open()\n"
            "    await store.put(Key(b'session', b'alice'), Entry(1, b'w', b'data'), expected=0, ttl_s=1e9)\n"
            "    os.kill(os.getpid(), 9)\n"
            "asyncio.run(main())\n"
        )
        done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        async with opened(path, clock) as store:
            assert await store.get(b"session") == {b"alice": entry(1)}

    async def test_a_damaged_file(self, path: Path, clock: Clock) -> None:
        """It is moved aside, kept, and an empty one is begun; a store that is shared is begun anew once."""
        async with opened(path, clock) as store:
            for number in range(200):
                await store.put(Key(b"%d" % number, b"a"), entry(1, b"x" * 500), expected=0, ttl_s=10)
        damaged = bytearray(path.read_bytes())
        damaged[100:] = os.urandom(len(damaged) - 100)
        path.write_bytes(damaged)
        async with opened(path, clock) as store, opened(path, clock) as other:
            for one in (store, other):
                with contextlib.suppress(StoreAway):
                    await one.get(b"7")
            assert await store.get(b"7") == {}
            assert await store.put(ALICE, entry(1), expected=0, ttl_s=10) is None
            assert await other.get(b"session") == {b"alice": entry(1)}
        aside = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
        assert [file.read_bytes() for file in aside] == [bytes(damaged)]

    async def test_a_file_that_was_deleted(self, path: Path, clock: Clock) -> None:
        """What is written goes to the file that stands at the path, not to one that nobody will ever find."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=10)
            for file in path.parent.iterdir():
                file.unlink()
            path.parent.rmdir()
            assert await store.touch([Touch(ALICE, 1, 10)]) == [ALICE]
            assert await store.put(ALICE, entry(2), expected=0, ttl_s=10) is None
        async with opened(path, clock) as store:
            assert await store.get(b"session") == {b"alice": entry(2)}

    async def test_a_lock_that_is_not_let_go_of(self, path: Path, clock: Clock) -> None:
        """Reads go on, a write is given up after a moment, and for a while nothing waits in vain; then all is as before."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=1000)
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
                holder.execute("BEGIN IMMEDIATE")
                assert await away(store.put(ALICE, entry(2), expected=1, ttl_s=10)) == "another process holds its lock"
                assert await store.get(b"session") == {b"alice": entry(1)}
                assert "just now" in await away(store.put(ALICE, ended(2), expected=1, ttl_s=10))
            clock.now += PAUSE_S
            assert await store.put(ALICE, entry(2), expected=1, ttl_s=10) is None

    async def test_a_full_disk(self, path: Path, clock: Clock) -> None:
        """Reads go on, writes are given up; with room again all is as before."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=1000)
            (pages,) = await pragma(store, "page_count")
            await pragma(store, f"max_page_count = {pages}")
            assert await away(store.put(OTHER, entry(1, b"x" * 100_000), expected=0, ttl_s=10)) == "the disk is full"
            assert await store.get(b"session") == {b"alice": entry(1)}
            clock.now += PAUSE_S
            await pragma(store, "max_page_count = 100000")
            assert await store.put(OTHER, entry(1, b"x" * 100_000), expected=0, ttl_s=10) is None

    async def test_a_connection_that_may_not_write(self, path: Path, clock: Clock) -> None:
        """Reads go on; nothing is taken for written."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=1000)
            await pragma(store, "query_only = 1")
            assert await away(store.put(ALICE, entry(2), expected=1, ttl_s=10)) == "its file is read-only"
            assert await store.get(b"session") == {b"alice": entry(1)}

    async def test_a_foreign_file_in_its_place(self, path: Path, clock: Clock) -> None:
        """While the process runs that is a store that is away; the file is not touched, and a return of ours is noticed."""
        async with opened(path, clock) as store:
            await store.put(ALICE, entry(1), expected=0, ttl_s=1000)
            ours = path.rename(path.with_name("ours"))
            path.write_bytes(b"my diary")
            assert "not a file of mcp-sidecar" in await away(store.get(b"session"))
            assert path.read_bytes() == b"my diary"
            path.unlink()
            for suffix in ("-wal", "-shm"):
                path.with_name(f"sessions.db{suffix}").unlink(missing_ok=True)
            ours.rename(path)
            assert isinstance(await store.get(b"session"), dict)


def _count_up(path: str, rounds: int) -> None:
    async def main() -> None:
        clock = Clock()
        store = SqliteStore(Path(path), times=clock.times, max_entries=1000, ended_ttl_s=50)
        await store.open()
        done = 0
        while done < rounds:
            with contextlib.suppress(StoreAway):
                standing = (await store.get(b"session")).get(b"alice", ABSENT)
                count = int(standing.data or b"0") + 1
                new = entry(standing.revision + 1, b"%d" % count)
                done += await store.put(ALICE, new, expected=standing.revision, ttl_s=1000) is None
            clock.now += PAUSE_S
        await store.close()

    asyncio.run(main())


@pytest.mark.long
async def test_several_processes_on_one_file(path: Path, clock: Clock) -> None:
    """Nobody's update is lost."""
    async with opened(path, clock):
        pass
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_count_up, args=(str(path), 50)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        await asyncio.to_thread(writer.join)
    async with opened(path, clock) as store:
        assert await store.get(b"session") == {b"alice": entry(150, b"150")}


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_as_a_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """What is not ours stays as it is, an empty file is taken, and there is no other exception."""
    path = tmp_path_factory.mktemp("any") / "sessions.db"
    path.write_bytes(data)

    async def main() -> None:
        try:
            async with opened(path, Clock()):
                pass
        except StoreUnusable:
            assert path.read_bytes() == data
        else:
            assert not data

    asyncio.run(main())
