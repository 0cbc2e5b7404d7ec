"""Whatever is in memory counts against one limit, and is given back when its exchange is over."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from mcp_sidecar.endpoint.body import TWICE
from tests.support.raw_upstream import Conversation, Play, RawUpstream
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

MIB = 1024 * 1024
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"' + b"x" * (MIB // 2) + b'"}}'
LARGE = b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"y" * (MIB // 2) + b'"}}'
EVENT = b"data: " + LARGE + b"\n\n"


def answered(content_type: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (content_type, len(body), body)


async def post(url: str, body: bytes = CALL) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status, await response.read()


def after(may_answer: asyncio.Event, answer: bytes) -> Play:
    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        await may_answer.wait()
        await conversation.send(answer)

    return play


@pytest.mark.parametrize(
    ("content_type", "body"), [(b"application/json", LARGE), (b"text/event-stream", EVENT), (b"text/plain", LARGE)]
)
async def test_what_is_held_counts_until_the_exchange_is_over(content_type: bytes, body: bytes) -> None:
    """A body counts while its answer is waited for; behind the answer nothing of either is counted."""
    may_answer = asyncio.Event()
    play = after(may_answer, answered(content_type, body))
    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        budget = sidecar.services.upstream.budget
        posts = [asyncio.create_task(post(sidecar.url)) for _ in range(3)]
        await upstream.until(lambda upstream: len(upstream.requests) == 3)
        assert budget.used == 3 * TWICE * len(CALL)
        may_answer.set()
        assert await asyncio.gather(*posts) == [(200, body)] * 3
        await eventually(lambda: budget.used == 0)


async def test_a_client_that_leaves_holds_nothing() -> None:
    """Its body was kept for a replay that nobody wants any more."""
    never = asyncio.Event()
    async with RawUpstream(after(never, b"")) as upstream, running_sidecar(upstream.url) as sidecar:
        budget = sidecar.services.upstream.budget
        posted = asyncio.create_task(post(sidecar.url))
        await upstream.until(lambda upstream: len(upstream.requests) == 1)
        posted.cancel()
        await asyncio.gather(posted, return_exceptions=True)
        await eventually(lambda: budget.used == 0)


async def test_a_body_that_is_refused_holds_nothing() -> None:
    """A body that is too large, or no JSON, is let go of with its answer."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url, limits__max_request_body="64KiB") as sidecar:
        statuses = [(await post(sidecar.url, body))[0] for body in (CALL, b"{" * 1000)]
        assert statuses == [413, 400]
        await eventually(lambda: sidecar.services.upstream.budget.used == 0)
