"""Driver of the official Python client 1.x: ``ClientSession`` on ``streamable_http_client``."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.interop.clients.lines import Ids, Session


@asynccontextmanager
async def opened(url: str, ids: Ids) -> AsyncIterator[Session]:
    """Open one session, as an application that uses the SDK does."""
    mcp = importlib.import_module("mcp")
    transport = importlib.import_module("mcp.client.streamable_http")
    async with transport.create_mcp_http_client() as http_client:
        http_client.event_hooks = {"response": [ids.note]}
        streams = transport.streamable_http_client(url, http_client=http_client)
        async with streams as (read, write, _), mcp.ClientSession(read, write) as session:
            await session.initialize()
            yield session


if __name__ == "__main__":
    importlib.import_module("lines").serve(opened)
