"""What an open stream keeps, and that what it has let go of is missed by nobody."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mcp_sidecar.app import Sidecar
from mcp_sidecar.downstream.connection import Phase
from mcp_sidecar.settings import load
from tests.support.in_memory import INITIALIZE, INITIALIZED, SESSION, Through, answered, posted
from tests.support.waiting import eventually

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CALL = posted(b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{}}}')
RESULT = answered(b'{"jsonrpc":"2.0","id":7,"result":{"content":[]}}')
KIB = 1024


def get(session_id: str, *headers: str) -> bytes:
    """A client's GET with what clients send."""
    lines = [
        "GET /mcp HTTP/1.1",
        "Host: 127.0.0.1:8080",
        "Accept: text/event-stream",
        f"Mcp-Session-Id: {session_id}",
        "MCP-Protocol-Version: 2025-06-18",
        "Authorization: Bearer abcdefghijklmnop",
        "User-Agent: test/1",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Listened(Through):
    """One client and one upstream connection, on which a GET gets a stream that stays silent."""

    def _take(self, data: bytes) -> None:
        if data.startswith(b"GET "):
            self._loop.call_soon(self._upstream.data_received, STREAM_HEAD)
        else:
            super()._take(data)

    async def initialize(self, session_id: str = SESSION) -> None:
        """Open a session under this id."""
        opened = answered(INITIALIZED).replace(SESSION.encode(), session_id.encode())
        await self.request(posted(INITIALIZE, in_session=False), opened)

    async def listen(self, *pieces: bytes) -> None:
        """Send a GET in these pieces, and what may follow it."""
        self._written, self._done = [], self._loop.create_future()
        for piece in pieces:
            self.say(piece)
        await self._done

    def say(self, piece: bytes) -> None:
        """Send more."""
        self._client.data_received(piece)

    def end_stream(self, answer: bytes) -> None:
        """The upstream ends its stream, and answers what comes next so."""
        self._answer = answer
        self._upstream.data_received(LAST_CHUNK)

    @property
    def written(self) -> bytes:
        """All that the client has got since it began to listen."""
        return b"".join(self._written)


@asynccontextmanager
async def sidecar_in_memory() -> AsyncIterator[Sidecar]:
    """One that nobody is connected to yet."""
    options = {"upstream": ["http://127.0.0.1:9/mcp"], "listen": ["127.0.0.1:0"], "admin": ["off"]}
    sidecar = Sidecar(load(options, {}).config)
    await sidecar.start()
    try:
        yield sidecar
    finally:
        await sidecar.stop()


async def way_with_session(sidecar: Sidecar, session_id: str = SESSION) -> Listened:
    """A client that has a session."""
    way = Listened(sidecar)
    await way.initialize(session_id)
    return way


@pytest.mark.long
async def test_an_open_stream_is_small() -> None:
    """Objects of both its connections, tasks and all, without the transports, of which there are none here."""
    number, ways = 60, []
    async with sidecar_in_memory() as sidecar:
        await (await way_with_session(sidecar)).listen(get(SESSION))  # what is made once
        gc.collect()
        tracemalloc.start()
        try:
            for index in range(number):
                session_id = f"{index:032x}"
                way = await way_with_session(sidecar, session_id)
                await way.listen(get(session_id))
                ways.append(way)
            gc.collect()
            await asyncio.sleep(0)
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sidecar.services.streams.open.get_streams == number + 1
    assert size / number < 18 * KIB


HALF = len(CALL) // 2
WITH_BODY = get("unknown", "Content-Length: 8")


@pytest.mark.parametrize(
    "before",
    [
        pytest.param([get("unknown")], id="a head"),
        pytest.param([get("unknown")[:50], get("unknown")[50:]], id="a head in pieces"),
        pytest.param([WITH_BODY + b"a\r\n\r\n\r\n\r"], id="a body"),
        pytest.param([WITH_BODY + b"ab\r\n", b"\r\n\r\n"], id="a body in pieces"),
    ],
)
async def test_what_follows_a_stream_is_read_as_it_was_sent(before: list[bytes]) -> None:
    """What an open stream has let go of is missed by no later request."""
    async with sidecar_in_memory() as sidecar:
        way = await way_with_session(sidecar)
        await way.listen(*before)
        await asyncio.sleep(0)
        assert sidecar.services.streams.open.get_streams == 1
        way.end_stream(RESULT)
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)
        way.say(CALL)
        await eventually(lambda: b'"id":7' in way.written)
        stream, _, rest = way.written.partition(LAST_CHUNK)
        assert stream.startswith(b"HTTP/1.1 200 OK\r\n")
        assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
        assert rest.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([get("unknown") + CALL], [], id="a request in the same piece"),
        pytest.param([get("unknown"), CALL], [], id="a request in the next piece"),
        pytest.param([get("unknown") + CALL[:HALF]], [CALL[HALF:]], id="half a head in the same piece"),
        pytest.param([get("unknown"), CALL[:HALF]], [CALL[HALF:]], id="half a head in the next piece"),
        pytest.param([get("unknown") + b"\r\n\r\n"], [CALL], id="empty lines"),
        pytest.param([WITH_BODY], [b"ab\r\n\r\n\r\n" + CALL], id="a body that comes too late"),
        pytest.param([WITH_BODY + b"a\r\n\r\n\r\n\r", CALL[:HALF]], [CALL[HALF:]], id="a body and half a head"),
    ],
)
async def test_what_comes_while_a_stream_is_open_is_never_read(before: list[bytes], after: list[bytes]) -> None:
    """Nor anything behind it: the connection ends with the stream."""
    async with sidecar_in_memory() as sidecar:
        way = await way_with_session(sidecar)
        await way.listen(*before)
        await asyncio.sleep(0)
        way.end_stream(RESULT)
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)
        for piece in after:
            way.say(piece)
        await asyncio.sleep(0)
        assert way.written.count(b"HTTP/1.1") == 1
        assert way.written.endswith(LAST_CHUNK)
        assert way._client._phase in (Phase.LINGERING, Phase.CLOSING)
