"""Which store a URL names, and what is no store."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.sessions.stores.by_url import store_at
from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.sqlite import SqliteStore
from mcp_sidecar.sessions.stores.store import Entry, Key, Store, StoreUnusable, Times, Touch

KEY = Key(b"session", b"alice")


def at(url: str) -> Store:
    return store_at(url, SessionLimits(), Times(time.time, time.monotonic))


@pytest.mark.parametrize("url", ["memory:", "Memory:"])
async def test_memory(url: str) -> None:
    """It takes everything, keeps nothing, and never waits: the session table is all there is."""
    store = at(url)
    assert isinstance(store, MemoryStore) and not store.outlives_process
    await store.open()
    assert await store.put(KEY, Entry(1, b"w", b"data"), expected=0, ttl_s=10) is None
    await store.end(KEY, ttl_s=10)
    assert await store.touch([Touch(KEY, 1, 10)]) == ()
    assert await store.claim(b"here", b"1", KEY, ttl_s=10) is None
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


@pytest.mark.parametrize("url", ["", "memory", "memory:x", "sqlite:", "sqlite:/tmp/", "redis://:pass@host", "file:x"])
def test_what_is_no_store(url: str) -> None:
    """The reason says what there is, and quotes no password."""
    with pytest.raises(StoreUnusable) as caught:
        at(url)
    assert "pass" not in str(caught.value)
