"""Driver of the official Python client 1.x: ``ClientSession`` on ``streamable_http_client``."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.interop.clients.lines import Ids, Session


@asynccontextmanager
async def opened(url: str, ids: Ids, auth: Any = None) -> AsyncIterator[Session]:
    """Open one session, as an application that uses the SDK does; ``auth`` is what httpx authenticates with."""
    mcp = importlib.import_module("mcp")
    transport = importlib.import_module("mcp.client.streamable_http")
    async with transport.create_mcp_http_client(auth=auth) as http_client:
        http_client.event_hooks = {"response": [ids.note]}
        streams = transport.streamable_http_client(url, http_client=http_client)
        follower = Follower(ids)
        async with (
            streams as (read, write, _),
            tapped(read, ids) as heard,
            mcp.ClientSession(
                heard, write, elicitation_callback=asked(ids), message_handler=follower.take
            ) as follower.session,
        ):
            await follower.session.initialize()
            yield follower.session


class Follower:
    """Lists the tools anew when it hears that they changed, in a task of its own: the session waits for its handler."""

    def __init__(self, ids: Ids) -> None:
        self.session: Any = None
        self._ids = ids
        self._listing: set[asyncio.Task[None]] = set()

    async def take(self, message: Any) -> None:
        """Hear what the session has no other use for."""
        named = type(getattr(message, "root", message)).__name__
        if self._ids.follows and named == "ToolListChangedNotification":
            task = asyncio.create_task(self._list())
            self._listing.add(task)
            task.add_done_callback(self._listing.discard)

    async def _list(self) -> None:
        self._ids.listed[:] = [tool.name for tool in (await self.session.list_tools()).tools]


@asynccontextmanager
async def tapped(read: Any, ids: Ids) -> AsyncIterator[Any]:
    """Listen in on what the transport hands to the session: the session keeps some of it to itself."""
    anyio = importlib.import_module("anyio")
    send, receive = anyio.create_memory_object_stream(100)

    async def pass_on() -> None:
        async with send:
            async for item in read:
                message = getattr(item, "message", None)
                if message is not None:
                    ids.heard.append(message.root.model_dump(mode="json", by_alias=True, exclude_none=True))
                await send.send(item)

    async with anyio.create_task_group() as group:
        group.start_soon(pass_on)
        yield receive
        group.cancel_scope.cancel()


def asked(ids: Ids) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return what answers questions of the server."""
    types = importlib.import_module("mcp.types")

    async def decline(_context: Any, _params: Any) -> Any:
        await ids.question_answered()
        return types.ElicitResult(action="decline")

    return decline


if __name__ == "__main__":
    importlib.import_module("mcp.client.streamable_http")  # takes its time, which is no command's
    importlib.import_module("lines").serve(opened)
