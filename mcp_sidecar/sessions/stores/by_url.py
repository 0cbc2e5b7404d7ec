"""Which store a URL names."""

from __future__ import annotations

from pathlib import Path

from mcp_sidecar.config import SessionLimits, StoreConfig
from mcp_sidecar.sessions.stores.automatic import AutomaticStore
from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.sqlite import SqliteStore
from mcp_sidecar.sessions.stores.store import Store, StoreUnusable, Times


def store_at(config: StoreConfig, limits: SessionLimits, times: Times) -> Store:
    """The store, not yet opened. Raises ``StoreUnusable``, without quoting what may hold a password."""

    def sqlite(path: Path) -> SqliteStore:
        return SqliteStore(path, times=times, max_entries=limits.max_sessions, ended_ttl_s=limits.max_lifetime_s)

    scheme, colon, rest = config.url.partition(":")
    match scheme.lower() + colon:
        case "auto":
            return AutomaticStore(config, sqlite)
        case "memory:" if not rest:
            return MemoryStore()
        case "sqlite:" if rest and not rest.endswith("/"):
            return sqlite(Path(rest).expanduser())
        case "sqlite:":
            raise StoreUnusable("sqlite: needs the path of a file, as in sqlite:/var/lib/mcp-sidecar/sessions.db")
        case _:
            raise StoreUnusable("no such store: use auto, memory: or sqlite:PATH")
