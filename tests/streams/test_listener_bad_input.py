"""A listening stream from a hostile or broken upstream, and event ids from a hostile client: bounded, and nothing breaks."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from functools import partial
from typing import Any

import aiohttp
import pytest

from mcp_sidecar.facts import HealEnded
from mcp_sidecar.healing.position import LONGEST_EVENT_ID
from tests.support.client import Stream, raw_exchange
from tests.support.faults import Answer
from tests.support.ledger import Ledger
from tests.support.listening import Says, attached, ends_cleanly, next_method, scene
from tests.support.waiting import eventually

pytestmark = pytest.mark.long

SMALL: dict[str, Any] = {
    "limits__max_buffered_answer": 1024,
    "limits__max_request_body": 2048,
}


def notification(name: str, event_id: str | None = None) -> bytes:
    head = b"" if event_id is None else f"id: {event_id}\n".encode()
    return head + b"data: " + json.dumps({"jsonrpc": "2.0", "method": f"notifications/{name}"}).encode() + b"\n\n"


async def read_until(stream: Stream, end: bytes) -> bytes:
    """The bytes as they come, up to these."""
    seen = b""
    async with asyncio.timeout(5):
        while not seen.endswith(end):
            chunk = await stream._response.content.readany()
            assert chunk, f"the stream ended after {seen[-200:]!r}"
            seen += chunk
    return seen


async def read_bytes(stream: Stream, count: int) -> bytes:
    """As many as that, or more."""
    seen = b""
    async with asyncio.timeout(5):
        while len(seen) < count:
            seen += await stream._response.content.readany()
    return seen


def _has_gets(count: int, ledger: Ledger) -> bool:
    return ledger.count("GET") >= count


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [100, 1500, 50_000], ids=["small", "over a block", "over every limit"])
async def test_events_of_any_size_pass_byte_for_byte(size: int, newline: str) -> None:
    """In the first generation nothing is changed, whatever is too large to be held."""
    event = f'id: 1{newline}event: message{newline}data: {{"x":"{"é" * size}"}}{newline}{newline}'.encode()
    said = event + f": c{newline}".encode() + event
    async with scene(listen__comment_interval=60, **SMALL) as (upstream, _, client):
        upstream.inject(Says((said, b"")), http_method="GET")
        async with await client.get_stream() as stream:
            assert await read_bytes(stream, len(said)) == said


@pytest.mark.parametrize("generation", [1, 2])
async def test_what_is_no_utf8_or_no_json_passes(generation: int) -> None:
    """It is not for the sidecar to judge, and what follows is understood."""
    odd = b"data: \xff\xfe\x00\n\ndata: {not json\n\n\xffdata: x\n\nid: \xff\ndata: [[[[\n\n"
    async with scene(listen__comment_interval=60) as (upstream, sidecar, client):
        if generation == 2:
            await upstream.restart()
            await client.tool("echo", text="on")
        upstream.inject(Says((odd + notification("one"), b"")), http_method="GET")
        async with await client.get_stream() as stream:
            seen = await read_until(stream, notification("one"))
            if generation == 1:
                assert seen == odd + notification("one")
            assert b"data: \xff\xfe\x00\n\n" in seen
        assert len(sidecar.of(HealEnded)) == generation - 1


async def test_a_byte_order_mark_is_only_at_the_beginning() -> None:
    """Of the client's stream: a second server's would be taken for part of a field's name, and an event be lost."""
    mark = b"\xef\xbb\xbf"
    async with scene(listen__comment_interval=60) as (upstream, _, client):
        upstream.inject(Says((mark + notification("one"),)), http_method="GET")
        upstream.inject(Says((mark + notification("two"), b"")), http_method="GET")
        async with await client.get_stream() as stream:
            assert await read_until(stream, notification("two")) == mark + notification("one") + notification("two")


async def test_a_byte_order_mark_behind_a_comment_of_ours() -> None:
    """A server that begins late does not begin the client's stream."""
    async with scene(listen__comment_interval=0.02) as (upstream, _, client):
        upstream.inject(Says((b"", b"\xef\xbb\xbf" + notification("one"), b"")), http_method="GET")
        async with await client.get_stream() as stream:
            seen = await read_until(stream, b": keep-alive\n\n")
            upstream.release()
            seen += await read_until(stream, notification("one"))
            assert b"\xef\xbb\xbf" not in seen


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"data: " + b"x" * 65_000, id="line"),
        pytest.param(b": " + b"x" * 65_000, id="comment"),
        pytest.param(b"x" * 65_000, id="no field"),
    ],
)
async def test_an_endless_event_is_bounded(part: bytes) -> None:
    """It passes in pieces and costs no memory; when it breaks, the client's stream is cut and not ended."""
    async with scene(listen__comment_interval=60, **SMALL) as (upstream, sidecar, client):
        upstream.inject(Says((part,) * 100 + (b"",)), http_method="GET")
        async with await client.get_stream() as stream:
            tracemalloc.start()
            try:
                seen = 0
                while seen < len(part) * 100:
                    seen += len(await stream._response.content.readany())
                assert tracemalloc.get_traced_memory()[1] < 3_000_000
            finally:
                tracemalloc.stop()
            await upstream.stop()
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream._response.content.readany()
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"jsonrpc":"2.0","id":1,"result":{}}', b"[]", b'"', b"[" * 100_000])
async def test_json_instead_of_a_stream_passes_first_and_ends_later(body: bytes) -> None:
    """The first GET gets it as it is; an open stream can only end, and the session goes on."""
    answer = Answer(200, (("Content-Type", "application/json"),), body)
    async with scene() as (upstream, _, client):
        upstream.inject(answer, http_method="GET")
        async with await client.get_stream() as stream:
            passed = await stream.read()
            assert (passed.status, passed.body) == (200, body)
        async with await client.get_stream() as stream:
            await attached(upstream)
            upstream.inject(answer, http_method="GET")
            upstream.end_get_streams()
            await ends_cleanly(stream)
        assert (await client.tool("echo", text="x")).text == "x"


# -- event ids --------------------------------------------------------------------------------------------------------


HOSTILE = [
    "{tag}.1.x",
    "{tag}.2.x",
    "{tag}.{word}.x",
    "{tag}.",
    "{tag}",
    ".{word}.",
    "0.{word}.x",
    "{tag}.{word}.{tag}.{word}.x",
    "{tag}.0{word}.x",
]


@pytest.mark.parametrize("shape", HOSTILE)
@pytest.mark.parametrize("generation", [1, 2])
async def test_an_upstreams_id_of_our_own_shape_comes_back_as_it_is_or_not_at_all(generation: int, shape: str) -> None:
    """Whoever could guess the session's tag gains nothing: an id reaches the upstream that minted it, or none."""
    async with scene(listen__comment_interval=60) as (upstream, sidecar, client):
        [session] = sidecar.services.sessions.table
        minted = shape.format(tag=session.record.tag, word=session.mark_of(2).word)
        if generation == 2:
            await upstream.restart()
            await client.tool("echo", text="on")
        upstream.inject(Says((notification("one", minted),)), http_method="GET")
        async with await client.get_stream() as stream:
            event = await stream.next_event()
            assert event is not None
            assert event.event_id == (minted if generation == 1 else session.mark_of(2).on_text(minted))
            await upstream.ledger.wait_for(partial(_has_gets, 2))
            sent_back = upstream.ledger.arrived(http_method="GET")[1].header("last-event-id")
            is_mistakable = generation == 1 and minted.startswith(f"{session.record.tag}.")
            assert sent_back == (None if is_mistakable else minted)


@pytest.mark.parametrize("shape", [*HOSTILE, "{tag}.{word}." + "x" * 20_000, "{tag}.99999999999999999999.x"])
async def test_a_clients_made_up_id_reaches_no_other_session(shape: str) -> None:
    """Only what bears the mark of this generation is handed on, without the mark."""
    async with scene() as (upstream, sidecar, client):
        await upstream.restart()
        await client.tool("echo", text="on")
        [session] = sidecar.services.sessions.table
        sent = shape.format(tag=session.record.tag, word=session.mark_of(2).word)
        async with await client.get_stream(last_event_id=sent) as stream:
            assert stream.status in (200, 405)
        own = session.mark_of(2).on_text("")
        expected = sent.removeprefix(own) if sent.startswith(own) else None
        assert upstream.ledger.arrived(http_method="GET")[0].header("last-event-id") == expected


@pytest.mark.parametrize("length", [LONGEST_EVENT_ID, LONGEST_EVENT_ID + 1, 200_000])
async def test_an_id_that_is_too_long_is_not_sent_back(length: int) -> None:
    """A header of that size would be refused, and the stream be lost for it; the client gets it all the same."""
    async with scene(listen__comment_interval=60) as (upstream, _, client):
        minted = "i" * length
        upstream.inject(Says((notification("one", minted),)), http_method="GET")
        upstream.inject(Says((notification("two"), b"")), http_method="GET")
        async with await client.get_stream() as stream:
            event = await stream.next_event()
            assert event is not None
            assert event.event_id == minted
            assert await next_method(stream) == "notifications/two"
        again = upstream.ledger.arrived(http_method="GET")[1]
        assert again.header("last-event-id") == (minted if length <= LONGEST_EVENT_ID else None)


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"\xc3\xa9", b"a\tb", b"", b"\x7f", b"\x01\x1b[0m", b"i" * 5000])
@pytest.mark.parametrize("source", ["client", "upstream"])
async def test_odd_bytes_in_an_id_break_nothing(source: str, raw: bytes) -> None:
    """They pass, or the stream is had without them."""
    async with scene(listen__comment_interval=60) as (upstream, sidecar, client):
        if source == "client":
            head = f"GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nMcp-Session-Id: {client.session_id}"
            request = head.encode() + b"\r\nLast-Event-ID: " + raw + b"\r\n\r\n"
            asking = asyncio.create_task(raw_exchange(sidecar.port, request, timeout_s=0.5))
            answer = await asking
            assert answer.status in (200, 400, 405)
        else:
            upstream.inject(Says((b"id: " + raw + b"\ndata: {}\n\n",)), http_method="GET")
            upstream.inject(Says((notification("two"), b"")), http_method="GET")
            async with await client.get_stream() as stream:
                assert (await read_until(stream, notification("two"))).startswith(b"id: " + raw)
        assert (await client.tool("echo", text="x")).text == "x"


@pytest.mark.parametrize("raw", [b"\x7f", b"\x01", b"i" * 5000])
async def test_a_call_behind_an_id_that_no_header_can_hold_is_told(raw: bytes) -> None:
    """It cannot be resumed: the call ends with its error, on its own stream."""
    async with scene() as (upstream, _, client):
        upstream.inject(Says((b"id: " + raw + b"\ndata: \n\n",), is_cut=True), tool="charge")
        answer = await client.tool("charge")
        assert answer.error["data"] == {"reason": "outcome_unknown"}
        assert upstream.ledger.count("GET") == 0


async def test_a_flood_of_events_reaches_a_slow_client_bounded() -> None:
    """Who does not read is not read for: the upstream is held back."""
    async with scene(listen__comment_interval=60) as (upstream, sidecar, client):
        flood = notification("x" * 1000) * 60
        upstream.inject(Says((flood,) * 2000), http_method="GET")
        async with await client.get_stream() as stream:
            first = await stream._response.content.readany()
            assert first
            await asyncio.sleep(0.3)
            assert upstream.ledger.count("GET") == 1
            assert (await client.tool("echo", text="x")).text == "x"
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)
