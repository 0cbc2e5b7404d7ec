"""Driver of the official Python client 2.x: ``Client``, in the mode given as the only argument.

``auto`` is the SDK's default: it asks ``server/discover`` first and falls back to the handshake. ``legacy`` keeps to
the handshake, and so to sessions, on servers that speak both.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.interop.clients.lines import Ids, Session


@asynccontextmanager
async def opened(url: str, ids: Ids) -> AsyncIterator[Session]:
    """Open one connection, as an application that uses the SDK does."""
    mcp = importlib.import_module("mcp")
    transport = importlib.import_module("mcp.client.streamable_http")
    async with transport.create_mcp_http_client() as http_client:
        http_client.event_hooks = {"response": [ids.note]}
        streams = transport.streamable_http_client(url, http_client=http_client)
        follower = importlib.import_module("python1").Follower(ids)

        async def take(message: Any) -> None:
            if hasattr(message, "model_dump"):
                ids.heard.append(message.model_dump(mode="json", by_alias=True, exclude_none=True))
            await follower.take(message)

        async with mcp.Client(streams, mode=sys.argv[1], message_handler=take) as follower.session:
            yield follower.session


if __name__ == "__main__":
    importlib.import_module("mcp.client.streamable_http")  # takes its time, which is no command's
    importlib.import_module("lines").serve(opened)
