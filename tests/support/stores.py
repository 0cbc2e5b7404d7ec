"""Stores that several sidecars share, each empty, for rules that hold with any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from mcp_sidecar.sessions.stores.keys import new_key
from tests.support.redis_server import NEEDS_REDIS, redis_server
from tests.support.waiting import HANG_S

Settings = dict[str, object]

ALL: Final = ("sqlite", pytest.param("redis", marks=NEEDS_REDIS), "sealed")
"""For tests by the real clock: Redis is another process."""


@asynccontextmanager
async def shared_store(kind: str, folder: Path) -> AsyncIterator[Settings]:
    """What a sidecar's settings say of it; sidecars are patient with it, for the machine may be slow."""
    patient: Settings = {"sessions__store_timeout": HANG_S}
    match kind:
        case "sqlite":
            yield {"store": f"sqlite:{folder}/state/sessions.db", **patient}
        case "redis":
            async with redis_server(folder) as server:
                yield {"store": server.url, **patient}
        case _:
            yield {"store": "sealed:", "sessions__key": new_key()}
