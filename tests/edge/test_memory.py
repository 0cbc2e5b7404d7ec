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
from tests.edge.echo import Echo, settle
from tests.edge.readers import answers_in

BODY = b"a" * 50_000
SIZED = b"POST /A HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Held(bytes):
    """A body that can be watched."""


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
