"""Which store a URL names."""

from __future__ import annotations

from mcp_sidecar.sessions.stores.memory import MemoryStore
from mcp_sidecar.sessions.stores.store import Store, StoreUnusable


def store_at(url: str) -> Store:
    """The store, not yet opened. Raises ``StoreUnusable``, without quoting what may hold a password."""
    scheme, colon, rest = url.partition(":")
    match scheme.lower() + colon, rest:
        case "memory:", "":
            return MemoryStore()
        case _:
            raise StoreUnusable(f"no store is known by {scheme[:20]!r}")
