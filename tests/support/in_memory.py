"""A sidecar between two transports in memory, so that what a request costs can be counted: no socket, no clock, no luck.

The rule: everything between the two transports is the real thing, and an answer is there as soon as a request is sent.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mcp_sidecar.app import Sidecar
from mcp_sidecar.settings import load
from mcp_sidecar.upstream.connection import Connection

KEPT_S = 3600.0
"""How long the upstream's connection is kept: there is no other, however long a look at all objects takes in between."""

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)

SESSION = "0123456789abcdef0123456789abcdef"
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
    b'"clientInfo":{"name":"c","version":"1"}}}'
)
INITIALIZED = (
    b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},'
    b'"serverInfo":{"name":"s","version":"1"}}}'
)


class MemoryTransport(asyncio.Transport):
    """Hands what is written to a function."""

    def __init__(self, on_write: Callable[[bytes], object]) -> None:
        super().__init__()
        self._on_write = on_write

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._on_write(bytes(data))

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8080)}.get(name, default)

    def close(self) -> None:
        """Nothing to close."""

    def abort(self) -> None:
        """Nothing to close."""

    def pause_reading(self) -> None:
        """Nothing comes that was not asked for."""

    def resume_reading(self) -> None:
        """The same."""


@dataclass(slots=True)
class Spent:
    """What one request took. ``calls`` are function calls, Python's and C's."""

    writes: int = 0
    tasks: int = 0
    timers: int = 0
    calls: int = 0


class Through:
    """One client connection, one upstream connection, and one request after the other."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self._loop = asyncio.get_running_loop()
        self._answer = b""
        self._written: list[bytes] = []
        self._done = self._loop.create_future()
        self._client = sidecar._server()
        self._client.connection_made(MemoryTransport(self._note))
        self._upstream = Connection(sidecar.services.limits, lambda _: None, lambda _: None)
        self._upstream.connection_made(MemoryTransport(self._take))
        self._missing = 0
        self.session_id = SESSION
        pool = sidecar.services.upstream._pool
        assert pool is not None
        pool._keep_alive_s = KEPT_S
        pool._free.append((self._upstream, self._loop.time() + KEPT_S))

    def _take(self, data: bytes) -> None:
        """The upstream answers as soon as it has all of a request."""
        if not self._missing:
            length = _LENGTH.search(data)
            assert length is not None
            self._missing = data.index(b"\r\n\r\n") + 4 + int(length[1])
        self._missing -= len(data)
        if not self._missing:
            self._loop.call_soon(self._upstream.data_received, self._answer)

    def _note(self, data: bytes) -> None:
        self._written.append(data)
        if not self._done.done():
            self._done.set_result(None)

    async def request(self, request: bytes, answer: bytes) -> list[bytes]:
        """Send a request, have the upstream answer so, and return what was written to the client."""
        self._answer, self._written = answer, []
        self._done = self._loop.create_future()
        self._client.data_received(request)
        await self._done
        return self._written

    async def spent_on(self, request: bytes, answer: bytes) -> Spent:
        """Count what one such request takes."""
        spent = Spent()
        loop = self._loop
        call_at = loop.call_at

        def count_timer(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            spent.timers += 1
            return call_at(*args, **kwargs)

        def count_task(
            of: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **kwargs: Any
        ) -> asyncio.Task[Any]:
            spent.tasks += 1
            return asyncio.Task(work, loop=of, **kwargs)

        def count_call(_frame: FrameType, event: str, _argument: object) -> None:
            spent.calls += event in ("call", "c_call")

        loop.set_task_factory(count_task)  # type: ignore[arg-type]
        loop.call_at = count_timer  # type: ignore[method-assign, assignment]
        before = sys.getprofile()
        sys.setprofile(count_call)
        try:
            spent.writes = len(await self.request(request, answer))
        finally:
            sys.setprofile(before)
            loop.call_at = call_at  # type: ignore[method-assign]
            loop.set_task_factory(None)
        return spent


def posted(body: bytes, *, in_session: bool = True, session_id: str = SESSION) -> bytes:
    """A client's POST."""
    session = f"Mcp-Session-Id: {session_id}\r\n" if in_session else ""
    head = (
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
        f"Accept: application/json, text/event-stream\r\n{session}MCP-Protocol-Version: 2025-06-18\r\n"
        f"Authorization: Bearer abcdefghijklmnop\r\nUser-Agent: test/1\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answered(body: bytes, content_type: str = "application/json") -> bytes:
    """An upstream's answer: with a length, or in one chunk where it is a stream."""
    is_stream = content_type == "text/event-stream"
    framing = "Transfer-Encoding: chunked" if is_stream else f"Content-Length: {len(body)}"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nMcp-Session-Id: {SESSION}\r\n{framing}\r\n\r\n"
    return head.encode() + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_stream else body)


@asynccontextmanager
async def through(**variables: str) -> AsyncIterator[Through]:
    """A sidecar in memory whose client has a session; other settings by their variables, without ``MCP_SIDECAR_``."""
    options = {"upstream": ["http://127.0.0.1:9/mcp"], "listen": ["127.0.0.1:0"], "admin": ["off"]}
    sidecar = Sidecar(load(options, {f"MCP_SIDECAR_{name}": value for name, value in variables.items()}).config)
    await sidecar.start()
    try:
        way = Through(sidecar)
        opened = b"".join(await way.request(posted(INITIALIZE, in_session=False), answered(INITIALIZED)))
        shown = re.search(rb"mcp-session-id: (\S+)", opened, re.IGNORECASE)
        assert shown is not None
        way.session_id = shown[1].decode()
        yield way
    finally:
        await sidecar.stop()
