"""The demo's client: the official SDK's, as any application would use it.

The rule of this file: it does nothing to survive a restart. It keeps calling on the session that it has; what it gets is
what a user gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import httpx
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

CALL_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call as the client saw it. ``text`` is the answer, or the error's message."""

    item: str
    succeeded: bool
    text: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shopper:
    """A connected client that puts things into the cart."""

    session: ClientSession

    async def add(self, item: str) -> Call:
        """Call ``add_to_cart`` once; an error, or no answer for 20 seconds, is a failed call and not an exception."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await self.session.call_tool("add_to_cart", {"item": item})
        except TimeoutError:
            succeeded, text = False, f"no answer within {CALL_TIMEOUT_S:g} s"
        except McpError as error:
            succeeded, text = False, error.error.message
        else:
            succeeded = not answer.isError
            text = " ".join(part.text for part in answer.content if isinstance(part, TextContent))
        return Call(item=item, succeeded=succeeded, text=text, seconds=time.perf_counter() - started)


@contextlib.asynccontextmanager
async def shopper(url: str) -> AsyncGenerator[Shopper]:
    """Connect and initialize. Proxies named in the environment are not meant for loopback and are left out."""
    async with (
        httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(CALL_TIMEOUT_S, read=None)) as http,
        streamable_http_client(url, http_client=http) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield Shopper(session=session)
