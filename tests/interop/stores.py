"""The stores that outlive a sidecar, each empty, as options of its command line and environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from mcp_sidecar.commands.dev.ports import free_port
from mcp_sidecar.sessions.stores.keys import new_key
from tests.interop.processes import StoreOptions, Watched
from tests.support.redis_server import NEEDS_REDIS, PROGRAM

STORES: Final = (pytest.param("sqlite"), pytest.param("redis", marks=NEEDS_REDIS), pytest.param("sealed"))


@contextmanager
def store(kind: str, folder: Path) -> Iterator[StoreOptions]:
    """Start what it needs."""
    match kind:
        case "sqlite":
            yield StoreOptions({"--store": f"sqlite:{folder}/state/sessions.db"})
        case "redis":
            with _redis(folder) as url:
                yield StoreOptions({"--store": url})
        case _:
            yield StoreOptions({"--store": "sealed:"}, {"MCP_SIDECAR_SESSIONS__KEY": new_key()})


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    assert PROGRAM is not None, "skipped without it"
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "")
    server = Watched((PROGRAM, *options), {})
    server.comes_up(lambda: any("Ready to accept" in line for line in server.lines), lambda: "\n".join(server.lines))
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.kill()
