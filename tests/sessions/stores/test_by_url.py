"""Which store a URL names, what `auto` chooses, and what is no store."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path

import pytest

from mcp_sidecar.config import SessionLimits, StoreConfig
from mcp_sidecar.sessions.stores.by_url import store_at
from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.sqlite import SqliteStore
from mcp_sidecar.sessions.stores.store import Claim, Entry, Key, Store, StoreUnusable, Times, Touch

KEY = Key(b"session", b"alice")


def at(url: str, folder: Path | None = None, instance: str = "here http://127.0.0.1:9000/mcp") -> Store:
    state = str(folder) if folder is not None else None
    config = StoreConfig(url=url, instance=instance, state_folder=state)
    return store_at(config, SessionLimits(), Times(time.time, time.monotonic))


@pytest.mark.parametrize("url", ["memory:", "Memory:"])
async def test_memory(url: str) -> None:
    """It takes everything, keeps nothing, and never waits: the session table is all there is."""
    store = at(url)
    assert isinstance(store, MemoryStore) and not store.outlives_process
    await store.open()
    assert await store.put(KEY, Entry(1, b"w", b"data"), expected=0, ttl_s=10) is None
    assert await store.touch([Touch(KEY, 1, 10)]) == ()
    assert await store.holder(Claim(b"here", b"1")) is None
    assert await store.secret("index", b"fresh") == b"fresh"
    await store.sweep()
    assert await store.get(KEY.session) == {}
    await store.close()


async def test_sqlite(tmp_path: Path) -> None:
    """The rest of the URL is the path of the file."""
    store = at(f"sqlite:{tmp_path}/state/sessions.db")
    assert isinstance(store, SqliteStore) and store.outlives_process
    await store.open()
    await store.close()
    assert (tmp_path / "state" / "sessions.db").is_file()


@pytest.mark.parametrize(
    "url", ["", "memory", "memory:x", "sqlite:", "sqlite:/tmp/", "http://:pass@host", "redis:", "file:x"]
)
def test_what_is_no_store(url: str) -> None:
    """The reason says what there is, and quotes no password."""
    with pytest.raises(StoreUnusable) as caught:
        at(url)
    assert "pass" not in str(caught.value)


class TestAuto:
    """Nobody has asked for a store: there is one where that is possible, and what was chosen is said."""

    async def test_a_file_for_each_upstream(self, tmp_path: Path) -> None:
        """It is named by it, in a folder of this user's alone; the same upstream has the same file."""
        folder = tmp_path / "state" / "mcp-sidecar"
        for instance in ("a http://h:1/mcp", "a http://h:1/mcp", "a http://h:2/mcp"):
            store = at("auto", folder, instance)
            await store.open()
            await store.close()
            assert store.outlives_process
        names = sorted(file.name for file in folder.iterdir())
        assert [name.rpartition("-")[0] for name in names] == ["h-1-mcp", "h-2-mcp"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert str(store) == f"sqlite:{folder}/{names[1]}"

    @pytest.mark.parametrize("mode", [0o777, 0o2777, 0o770])
    async def test_a_folder_that_others_can_write(self, tmp_path: Path, mode: int) -> None:
        """As Kubernetes makes an emptyDir: there is a folder in it that they cannot."""
        folder = tmp_path / "empty"
        folder.mkdir()
        folder.chmod(mode)
        store = at("auto", folder)
        await store.open()
        await store.close()
        [within] = folder.iterdir()
        assert stat.S_IMODE(within.stat().st_mode) & 0o777 == 0o700
        assert str(store).startswith(f"sqlite:{within}/")

    async def test_somebody_elses_folder_in_it(self, tmp_path: Path) -> None:
        """What others have laid there is not used."""
        folder = tmp_path / "empty"
        folder.mkdir()
        folder.chmod(0o777)
        (folder / f"of-{os.geteuid()}").mkdir(mode=0o755)
        store = at("auto", folder)
        await store.open()
        assert not store.outlives_process
        assert str(store).startswith("memory: (") and "of this user alone" in str(store)

    @pytest.mark.long
    async def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        """On some network file systems every lock fails: nobody is told then that a store that never was there is away."""
        folder = tmp_path / "state"
        store = at("auto", folder)
        await store.open()
        await store.close()
        [file] = folder.iterdir()
        file.write_bytes(b"")
        with closing(sqlite3.connect(file, isolation_level=None)) as locked:
            locked.execute("BEGIN EXCLUSIVE")
            store = at("auto", folder)
            await store.open()
            assert not store.outlives_process
            assert str(store) == f"memory: ({file}: another process holds its lock)"
            await store.close()

    @pytest.mark.parametrize("kind", ["none", "a file"])
    async def test_where_there_can_be_no_file(self, tmp_path: Path, kind: str) -> None:
        """Memory, with the reason."""
        (tmp_path / "file").write_text("")
        store = at("auto", None if kind == "none" else tmp_path / "file" / "state")
        await store.open()
        assert not store.outlives_process
        assert str(store).startswith("memory: (")
        assert await store.secret("index", b"fresh") == b"fresh"
        await store.close()
