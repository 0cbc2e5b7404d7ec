"""A drain announces itself: for ``listen.drain_delay`` all goes on, and every answer says that its connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mcp_sidecar.facts import CallOutcome, RequestServed
from tests.support.client import McpClient, raw_exchange
from tests.support.scene import connected
from tests.support.sidecar import WatchedSidecar
from tests.support.unhurried import now
from tests.support.waiting import eventually


async def test_a_drain_waits_before_it_accepts_nobody_any_more() -> None:
    """A balancer that has not heard of the drain yet still sends newcomers: they are served, and told to leave."""
    async with connected(listen__drain_delay=5) as (upstream, sidecar, client):
        begun = now()
        drain = asyncio.create_task(sidecar.drain())
        await asyncio.sleep(1)
        answer = await client.tool("echo", text="still here")
        assert (answer.text, answer.headers["Connection"]) == ("still here", "close")
        async with McpClient(sidecar.url) as newcomer:
            assert (await newcomer.initialize()).status == 200
        await drain
        assert now() - begun >= 5
        assert len(upstream.ledger.initializes) == 2


@asynccontextmanager
async def draining(sidecar: WatchedSidecar) -> AsyncIterator[None]:
    """The drain is under way while the block runs, and ends with it."""
    drain = asyncio.create_task(sidecar.drain())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        drain.cancel()


async def test_a_drain_may_be_begun_without_an_end() -> None:
    """Twice is once; the process goes on, not ready, and a signal later waits for the same drain."""
    async with connected(listen__drain_delay=5) as (_, sidecar, client):
        begun = now()
        sidecar.begin_drain()
        sidecar.begin_drain()
        await asyncio.sleep(0)
        assert not sidecar.is_accepting
        assert (await client.tool("echo", text="x")).headers["Connection"] == "close"
        await asyncio.sleep(3)
        await sidecar.drain()
        assert 5 <= now() - begun < 6


@pytest.mark.parametrize("body", [b"{", b'{"jsonrpc":"2.0","id":1,"method":"ping"}'])
async def test_every_answer_of_a_drain_is_the_last_of_its_connection(body: bytes) -> None:
    """Ours, and the upstream's; whoever reads it opens another connection, and that goes to somebody else."""
    async with connected(listen__drain_delay=5) as (_, sidecar, _), draining(sidecar):
        head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = await raw_exchange(sidecar.port, head.encode() + body)
        assert b"\r\nConnection: close\r\n" in answer.data


async def test_an_answer_that_had_begun_is_not_the_last_one() -> None:
    """Its client was not told so, and may have sent the next request already: that one's answer says it."""
    async with connected(listen__drain_delay=5) as (upstream, sidecar, client):
        head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: {client.session_id}\r\n"
        head += "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"

        def call(tool: str) -> bytes:
            body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}'
            return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(call("slow"))
        assert b"Connection" not in await reader.readuntil(b"\r\n\r\n")
        async with draining(sidecar):
            upstream.slow_gate.set()
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(call("echo"))
            assert b"\r\nConnection: close\r\n" in await reader.readuntil(b"\r\n\r\n")
            await reader.read()
        writer.close()


async def test_a_listening_stream_is_broken_off() -> None:
    """Clients open another after a break; after a clean end some never do. Until ``drain_delay`` is over it stays."""
    async with connected(listen__drain_delay=5) as (_, sidecar, client):
        stream = await client.get_stream()
        async with draining(sidecar):
            await asyncio.sleep(4)
            assert sidecar.open_streams == 1
            answer = await stream.read()
            assert answer.broken is not None


@pytest.mark.parametrize("is_drain_first", [True, False])
async def test_nobody_waits_for_a_server_that_goes_with_us(is_drain_first: bool) -> None:
    """In a pod the server may be stopped first: what is held then, and what comes, is told so at once."""
    async with connected(listen__drain_delay=5) as (upstream, sidecar, client):
        if not is_drain_first:
            await upstream.stop()
            held = asyncio.create_task(client.tool("echo", text="x"))
            await eventually(lambda: len(sidecar.services.holds))
        begun = now()
        async with draining(sidecar):
            if is_drain_first:
                await upstream.stop()
                held = asyncio.create_task(client.tool("echo", text="x"))
            assert (await held).error["data"] == {"reason": "upstream_unavailable"}
            assert (await client.tool("echo", text="x")).error["data"] == {"reason": "upstream_unavailable"}
            assert now() - begun < 1
        assert {fact.outcome for fact in sidecar.of(RequestServed)} >= {CallOutcome.UNAVAILABLE}
