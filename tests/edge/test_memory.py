"""What an exchange held is let go of when its answer has gone: by references, and not by a collector that comes some day."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.downstream.upload import Upload
from mcp_sidecar.endpoint.post import Post
from mcp_sidecar.healing.exchange import Exchange
from tests.edge.echo import Echo, settle
from tests.edge.readers import answers_in
from tests.support import in_memory

BODY = b"a" * 50_000
SIZED = b"POST /A HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Watching(Echo):
    """Counts the requests, responders and uploads that are alive."""

    def watch(self) -> None:
        self.alive: list[weakref.ref[object]] = []

    async def handle(self, request: Request, responder: Responder) -> None:
        held = _Kept()
        request.in_flight = held  # goes when the request goes
        self.alive.append(weakref.ref(held))
        await super().handle(request, responder)
        self.runs.clear()


class _Kept:
    """Something that a request holds."""


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([SIZED], id="in one piece"),
        pytest.param([SIZED[:100], SIZED[100:20_000], SIZED[20_000:]], id="in three"),
    ],
)
async def test_nothing_of_a_request_stays_behind_its_answer(pieces: list[bytes]) -> None:
    """On a connection that stays open, without a collection."""
    echo = Watching()
    echo.watch()
    protocol, wire = echo.connect()
    with without_collector():
        for _ in range(20):
            for piece in pieces:
                protocol.data_received(piece)
                await settle(2)
            await settle()
        assert len(echo.alive) == 20
        assert [each for each in echo.alive if each() is not None] == []
        assert (protocol._upload, protocol._responder, protocol._begun, protocol._framing) == (None, None, b"", None)
    assert len(answers_in(bytes(wire.written))) == 20
    await echo.server.close()


@pytest.mark.parametrize("leaves", [pytest.param(True, id="the client leaves"), pytest.param(False, id="a bug")])
async def test_nothing_of_a_connection_stays_behind_its_end(leaves: bool) -> None:
    """Whether it ends in the middle of an exchange or behind one."""
    echo = Watching(gate=asyncio.Event() if leaves else None)
    echo.watch()
    with without_collector():
        protocol, wire = echo.connect()
        seen = weakref.ref(protocol)
        protocol.data_received(SIZED)
        await settle()
        wire.abort()
        await settle()
        wire.protocol = None
        del protocol
        await settle()
        assert [each for each in echo.alive if each() is not None] == []
        assert seen() is None
    await echo.server.close()


async def test_a_refused_connection_keeps_nothing() -> None:
    """Not even what was sent."""
    echo = Echo()
    with without_collector():
        protocol, wire = echo.connect()
        seen = weakref.ref(protocol)
        protocol.data_received(b"nonsense\r\n\r\n" + BODY)
        assert protocol._begun == b""
        wire.abort()
        await settle()
        wire.protocol = None
        del protocol
        assert seen() is None
    await echo.server.close()


CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"a"}}}'
RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[]}}'
ERROR = b'{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"no such tool"}}'


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(in_memory.answered(RESULT), id="JSON"),
        pytest.param(in_memory.answered(ERROR), id="an error"),
        pytest.param(in_memory.answered(b"data: %b\n\n" % RESULT, "text/event-stream"), id="a stream"),
        pytest.param(in_memory.answered(b"id: 1\ndata: %b\n\n" % RESULT, "text/event-stream"), id="a stream with ids"),
    ],
)
async def test_nothing_of_a_call_stays_behind_its_answer(given: bytes) -> None:
    """On the whole way: a body of a MiB that waits for a collection is a MiB, and collections are rare."""
    async with in_memory.through() as way:
        asked = in_memory.posted(CALL)
        for _ in range(3):  # what is learned once
            await way.request(asked, given)
        with without_collector():
            before = len(_of_exchanges())
            for _ in range(10):
                await way.request(asked, given)
            await settle()
            left = _of_exchanges()
            assert len(left) <= before + 1, _holders_of(left)


def _of_exchanges() -> list[object]:
    """What an exchange consists of, as far as it is alive."""
    return [each for each in gc.get_objects() if isinstance(each, Post | Exchange | Request | Responder | Upload)]


def _holders_of(left: list[object]) -> str:
    """What refers to them, each kind of holder once: by this a failure that comes rarely says what it is."""
    others = [each for one in left for each in gc.get_referrers(one) if each is not left]
    return f"held by {sorted({str(getattr(each, '__qualname__', type(each))) for each in others})}"
