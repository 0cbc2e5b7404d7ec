"""What served an exchange is gone with it: no circle keeps it until a collector, which runs rarely, comes by."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest

from mcp_sidecar.endpoint.post import Post
from mcp_sidecar.endpoint.reply import Reply
from mcp_sidecar.healing.attachment import Attachment
from mcp_sidecar.healing.exchange import Exchange
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.heal import HealAttempt
from mcp_sidecar.sessions.recorder import Recorder
from mcp_sidecar.streams.listener import Listener
from mcp_sidecar.streams.relay import EventRelay
from mcp_sidecar.streams.subscription import Subscription
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.waiting.budget import Claim
from tests.endpoint.test_buffered_bytes import CALL, EVENT, LARGE, after, answered, post
from tests.support.fake_upstream import FakeUpstream
from tests.support.listening import attached, scene
from tests.support.raw_upstream import Conversation, Play, RawUpstream
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

KINDS = (
    Post,
    Reply,
    Exchange,
    Call,
    Recorder,
    EventRelay,
    Answer,
    Claim,
    HealAttempt,
    Listener,
    Subscription,
    Attachment,
)
HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Mcp-Session-Id": "nobody's",
}
ERROR = b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\noops"


async def cut(conversation: Conversation) -> None:
    await conversation.read_body()
    await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
    conversation.close()


def alive() -> Counter[str]:
    """How many of each there are."""
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, KINDS))


async def goes_down_to(before: Counter[str]) -> None:
    """Looks a few times only: each look costs as much as there are objects, and nothing is collected meanwhile."""
    for _ in range(50):
        if alive() == before:
            return
        await asyncio.sleep(0.02)
    assert alive() == before


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is left of tests before this one is gone, and nothing is collected from here on."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.long
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(answered(b"application/json", LARGE), CALL, id="json"),
        pytest.param(answered(b"text/event-stream", EVENT), CALL, id="events"),
        pytest.param(answered(b"text/plain", LARGE), CALL, id="other"),
        pytest.param(ERROR, CALL, id="error"),
        pytest.param(cut, CALL, id="cut"),
        pytest.param(ERROR, b"{", id="not json"),
    ],
)
@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_left_of_an_exchange(answer: bytes | Play, body: bytes) -> None:
    """Whatever the answer was, as soon as it has gone its exchange has, too."""
    async with RawUpstream(answer) as upstream, running_sidecar(upstream.url) as sidecar:
        before = alive()
        for _ in range(5):
            await post(sidecar.url, body)
        await goes_down_to(before)


async def send(url: str, method: str, body: bytes | None) -> int:
    """One request outside of every session."""
    async with aiohttp.ClientSession() as http, http.request(method, url, data=body, headers=HEADERS) as answer:
        await answer.read()
        return answer.status


async def leave(url: str, upstream: RawUpstream, method: str, body: bytes | None) -> None:
    """Send a request, and give up once the upstream has it."""
    known = len(upstream.requests)
    asking = asyncio.create_task(send(url, method, body))
    await upstream.until(lambda upstream: len(upstream.requests) > known)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["heal", "observe"])
@pytest.mark.parametrize(
    ("method", "body", "limit"),
    [
        pytest.param("GET", None, "1MiB", id="GET"),
        pytest.param("DELETE", None, "1MiB", id="DELETE"),
        pytest.param("POST", CALL, "1MiB", id="POST"),
        pytest.param("POST", CALL, "64KiB", id="too large"),
    ],
)
@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_left_in_any_mode(mode: str, method: str, body: bytes | None, limit: str) -> None:
    """Whatever the method is, passed or refused, in either mode."""
    async with (
        RawUpstream(ERROR) as upstream,
        running_sidecar(upstream.url, mode=mode, limits__max_request_body=limit) as sidecar,
    ):
        await send(sidecar.url, method, body)
        before = alive()
        for _ in range(5):
            await send(sidecar.url, method, body)
        await goes_down_to(before)


@pytest.mark.parametrize("method", ["POST", pytest.param("GET", marks=pytest.mark.long)])
@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_left_of_a_client_that_left(method: str) -> None:
    """Its exchange ends with its connection, though the upstream never answers."""
    async with RawUpstream(after(asyncio.Event(), b"")) as upstream, running_sidecar(upstream.url) as sidecar:
        body = CALL if method == "POST" else None
        await leave(sidecar.url, upstream, method, body)
        before = alive()
        for _ in range(5):
            await leave(sidecar.url, upstream, method, body)
        await goes_down_to(before)


@pytest.mark.long
@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_left_of_what_was_held() -> None:
    """A call that waited for the upstream goes with its answer, whether the upstream has come back or not."""
    async with connected(healing__hold_timeout=0.05) as (upstream, sidecar, client):
        await upstream.stop()
        assert (await client.tool("echo", text="a")).error["data"] == {"reason": "upstream_unavailable"}
        await upstream.start()
        await client.tool("echo", text="a")
        await eventually(lambda: not sidecar.services.upstream.budget.used)
        before = alive()
        for _ in range(3):
            await upstream.stop()
            assert (await client.tool("echo", text="a")).error["data"] == {"reason": "upstream_unavailable"}
            await upstream.start()
            assert (await client.tool("echo", text="a")).text == "a"
        await goes_down_to(before)


@pytest.mark.long
@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_left_of_a_heal() -> None:
    """A call that met a loss, was healed and sent again goes with its answer, and the heal with it."""
    async with connected() as (upstream, _, client):
        for _ in range(2):  # what is remembered of the last two upstream sessions
            await upstream.restart()
            assert (await client.tool("echo", text="a")).text == "a"
        before = alive()
        for _ in range(3):
            await upstream.restart()
            assert (await client.tool("echo", text="a")).text == "a"
        await goes_down_to(before)


async def detached(upstream: FakeUpstream) -> None:
    """Wait until nobody has an open GET stream there."""
    await eventually(lambda: not any(session.get_streams_open for session in upstream.sessions.values()))


@pytest.mark.long
@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_left_of_a_stream_that_was_open() -> None:
    """A listening stream goes with its client, also one that was attached again meanwhile."""
    async with scene() as (upstream, _, client):
        async with await client.get_stream():
            await attached(upstream)
        await detached(upstream)
        before = alive()
        for _ in range(3):
            async with await client.get_stream():
                await attached(upstream)
                await upstream.restart()
                await attached(upstream)
            await detached(upstream)
        await goes_down_to(before)
