"""The body of a request on its way to the upstream: what is large, or still comes from the client, has a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from mcp_sidecar.upstream.content import CHUNK_BYTES
from mcp_sidecar.wire import framing

Body = bytes | AsyncIterator[bytes] | None


class Flow:
    """Whether the transport takes more at the moment."""

    __slots__ = ("_resumed",)

    def __init__(self) -> None:
        """It does."""
        self._resumed: asyncio.Future[None] | None = None

    @property
    def is_paused(self) -> bool:
        """Whether it takes nothing more."""
        return self._resumed is not None

    def pause(self) -> None:
        """Its buffer is full."""
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """There is room again, or nobody who would need it."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    async def wait_for_room(self) -> None:
        """Return when it takes more. For one task at a time."""
        while self._resumed is not None:
            await self._resumed


class Upload:
    """Sends a body part by part."""

    __slots__ = ("_flow", "_on_end", "_task", "_transport")

    def __init__(self, transport: asyncio.WriteTransport, flow: Flow, on_end: Callable[[bool], None]) -> None:
        """``on_end`` hears whether all was sent; it is called from within the task, once."""
        self._transport = transport
        self._flow = flow
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None

    def start(self, body: bytes | AsyncIterator[bytes], *, is_chunked: bool) -> None:
        """Begin. Its head is sent."""
        parts = _in_steps(body) if isinstance(body, bytes) else body
        self._task = asyncio.get_running_loop().create_task(self._send(parts, is_chunked=is_chunked))

    def cancel(self) -> None:
        """Send no more."""
        if self._task is not None:
            self._task.cancel()

    async def _send(self, parts: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        is_whole = False
        try:
            async for part in parts:
                if part:
                    await self._write(framing.chunk(part) if is_chunked else part)
            if is_chunked:
                await self._write(framing.LAST_CHUNK)
            is_whole = True
        except Exception:  # noqa: BLE001, S110 - the client's body broke, or the connection: half a request is sent
            pass
        finally:
            self._on_end(is_whole)

    async def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(data)
        await self._flow.wait_for_room()


async def _in_steps(body: bytes) -> AsyncIterator[bytes]:
    """A large body is written step by step, so that others have their turn."""
    for start in range(0, len(body), CHUNK_BYTES):
        if start:
            await asyncio.sleep(0)
        yield body[start : start + CHUNK_BYTES]
