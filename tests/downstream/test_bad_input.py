"""Malformed, oversized and hostile requests: a clear answer, bounded memory, and nobody else is affected."""

from __future__ import annotations

import asyncio
import json
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mcp_sidecar.facts import RequestRejected, RequestServed, SidecarFault
from tests.support.client import McpClient, RawAnswer, raw_exchange, raw_post
from tests.support.fake_upstream import FakeUpstream
from tests.support.raw_upstream import pass_through
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
HOST = b"Host: localhost\r\nConnection: close\r\n"
MODERN = "MCP-Protocol-Version: 2026-07-28"


def post(*headers: str, body: bytes = b"", path: str = "/mcp") -> bytes:
    """A POST with exactly these headers, for framing that lies."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"POST {path} HTTP/1.1\r\n".encode() + HOST + lines.encode() + b"\r\n" + body


def error_of(answer: RawAnswer) -> dict[str, object]:
    """The JSON-RPC error in a whole answer."""
    message = json.loads(answer.data.partition(b"\r\n\r\n")[2])
    assert message["jsonrpc"] == "2.0"
    assert message["id"] is None
    error: dict[str, object] = message["error"]
    return error


@asynccontextmanager
async def bystander(**settings: object) -> AsyncIterator[tuple[FakeUpstream, WatchedSidecar]]:
    """A sidecar whose other client must be as well at the end as at the beginning."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url, **settings) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        yield upstream, sidecar
        assert (await client.tool("echo", text="still here")).text == "still here"
        assert sidecar.of(SidecarFault) == []


# -- what the body is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-None: 1", MODERN, "Mcp-Session-Id: abc"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \r\n", id="blank"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"{x}", id="no-quotes"),
        pytest.param(b'{"a":1}x', id="trailing"),
        pytest.param(b'{"a":1}{"b":2}', id="two"),
        pytest.param(b"\x00\xff\xfe", id="binary"),
        pytest.param(b'{"a":"\xff"}', id="not-utf8"),
        pytest.param(b"a=1&b=2", id="form"),
        pytest.param(b"NaN", id="nan"),
    ],
)
async def test_a_body_that_is_not_json_gets_400(header: str, body: bytes) -> None:
    """With -32700, in a session, outside one, and for traffic without sessions; the upstream never sees it."""
    async with bystander() as (upstream, sidecar):
        seen = len(upstream.ledger.arrivals)
        answer = await raw_exchange(sidecar.port, raw_post(sidecar.port, body, header))
        assert answer.status == 400
        assert error_of(answer)["code"] == -32700
        assert len(upstream.ledger.arrivals) == seen
        assert [fact.reason for fact in sidecar.of(RequestRejected)] == ["Parse error: the body is not JSON"]


async def test_a_large_body_that_turns_out_not_to_be_json_gets_400() -> None:
    """The upstream sees nothing of it."""
    body = b'{"jsonrpc":"2.0","method":"x","params":"' + b"x" * 3_000_000 + b'"}}'
    async with bystander() as (upstream, sidecar):
        answer = await raw_exchange(sidecar.port, raw_post(sidecar.port, body))
        assert answer.status == 400
        assert error_of(answer)["code"] == -32700
        assert upstream.ledger.executions("x") == []


@pytest.mark.parametrize("body", [b"1", b'"x"', b"null", b"{}", b"[]", b"[1]", b'{"jsonrpc":"1.0"}', b'{"id":[]}'])
async def test_json_that_is_no_json_rpc_is_the_upstreams_business(body: bytes) -> None:
    """Only syntax is checked here; what a message must be, the server says."""
    async with bystander() as (upstream, sidecar):
        answer = await raw_exchange(sidecar.port, raw_post(sidecar.port, body))
        assert upstream.ledger.arrivals[-1].body == body
        assert answer.status == upstream.ledger.arrivals[-1].answer_status


# -- how large it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-None: 1", MODERN, "Mcp-Session-Id: abc"])
@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
async def test_too_large_a_body_gets_413(header: str, chunked: bool) -> None:
    """Whether it was announced or only turns out to be too large."""
    body = PING.replace(b"ping", b"p" * 2000)
    async with bystander(limits__max_request_body="2000") as (upstream, sidecar):
        if chunked:
            request = post("Transfer-Encoding: chunked", header, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            request = raw_post(sidecar.port, body, header)
        answer = await raw_exchange(sidecar.port, request)
        assert answer.status == 413
        assert error_of(answer)["code"] == -32600
        assert not upstream.ledger.executions("p" * 2000)


async def test_other_paths_have_no_limit() -> None:
    """An upload to another path is streamed, however large it is."""
    body = b"x" * 100_000
    passed = await pass_through(
        post(f"Content-Length: {len(body)}", body=body, path="/upload"), limits__max_request_body="2000"
    )
    assert bytes(passed.request.body) == body


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET /x HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 65537 + b"\r\n\r\n", id="one-header"),
        pytest.param(b"GET /x HTTP/1.1\r\n" + HOST + (b"X: " + b"a" * 40000 + b"\r\n") * 2 + b"\r\n", id="two-headers"),
        pytest.param(b"GET /x HTTP/1.1\r\n" + HOST + b"a" * 65537 + b": 1\r\n\r\n", id="name"),
        pytest.param(b"GET /x HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 300 + b"\r\n", id="many"),
        pytest.param(b"GET /" + b"a" * 65537 + b" HTTP/1.1\r\n" + HOST + b"\r\n", id="target"),
        pytest.param(post("X: " + "a" * 65537, f"Content-Length: {len(PING)}", body=PING), id="post"),
    ],
)
async def test_too_large_a_head_gets_431(request_bytes: bytes) -> None:
    """A single header, all of them together, their number, or the request line."""
    async with bystander() as (upstream, sidecar):
        seen = len(upstream.ledger.arrivals)
        answer = await raw_exchange(sidecar.port, request_bytes)
        assert answer.status == 431
        assert error_of(answer)["code"] == -32600
        assert [fact.status for fact in sidecar.of(RequestRejected)] == [431]
        assert [fact.status for fact in sidecar.of(RequestServed) if fact.status >= 400] == [431]
        assert len(upstream.ledger.arrivals) == seen


async def test_a_head_at_the_limit_passes() -> None:
    """The limit is for what is beyond it."""
    passed = await pass_through(b"GET /x HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 65000 + b"\r\n\r\n")
    assert passed.request.values("x") == [b"a" * 65000]


async def test_an_endless_head_is_cut_off() -> None:
    """Many large headers that never end are answered before they fill the memory."""
    async with bystander() as (_, sidecar):
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(b"GET /x HTTP/1.1\r\n" + HOST)
        sent = 0
        while not writer.transport.is_closing() and not reader.at_eof() and sent < 50_000_000:
            writer.write(b"X: " + b"a" * 60000 + b"\r\n")
            sent += 60000
            try:
                await writer.drain()
            except ConnectionError:
                break
        writer.transport.abort()
        assert sent < 5_000_000
        assert [fact.status for fact in sidecar.of(RequestRejected)] == [431]
        assert [fact.status for fact in sidecar.of(RequestServed) if fact.status >= 400] == [431]


# -- how it is framed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/mcp", "/x"])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(["Content-Length: 40", "Transfer-Encoding: chunked"], b"0\r\n\r\n", id="cl-te"),
        pytest.param(["Transfer-Encoding: chunked", "Content-Length: 40"], b"0\r\n\r\n", id="te-cl"),
        pytest.param(["Content-Length: 40", "Content-Length: 41"], PING, id="two-lengths"),
        pytest.param(["Content-Length: 40", "Content-Length: 40"], PING, id="length-twice"),
        pytest.param(["Content-Length: 40, 40"], PING, id="length-list"),
        pytest.param(["Content-Length: -1"], PING, id="negative"),
        pytest.param(["Content-Length: +40"], PING, id="plus"),
        pytest.param(["Content-Length: 0x28"], PING, id="hex"),
        pytest.param(["Content-Length: 4_0"], PING, id="underscore"),
        pytest.param(["Content-Length: " + "9" * 40], PING, id="overflow"),
        pytest.param(["Content-Length : 40"], PING, id="space-before-colon"),
        pytest.param(["Transfer-Encoding: chunked, gzip"], b"0\r\n\r\n", id="chunked-gzip"),
        pytest.param(["Transfer-Encoding: identity"], PING, id="identity"),
        pytest.param(["Transfer-Encoding: xchunked"], b"0\r\n\r\n", id="unknown-coding"),
        pytest.param(["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], b"0\r\n\r\n", id="te-twice"),
        pytest.param(["Transfer-Encoding: chunked"], b"F" * 17 + b"\r\nabc", id="giant-chunk"),
        pytest.param(["Transfer-Encoding: chunked"], b"-1\r\nabc", id="negative-chunk"),
        pytest.param(["Transfer-Encoding: chunked"], b"3\r\nabcXX0\r\n\r\n", id="chunk-too-long"),
        pytest.param(["Transfer-Encoding: chunked"], b"3\nabc\n0\n\n", id="bare-newlines"),
        pytest.param(["X: a", " folded"], b"", id="folded"),
        pytest.param(["X: a\rY: b"], b"", id="bare-cr"),
        pytest.param(["X: a\0b"], b"", id="nul"),
        pytest.param(["X Y: b"], b"", id="space-in-name"),
        pytest.param(["NoColon"], b"", id="no-colon"),
        pytest.param(["Host: localhost"], b"", id="two-hosts"),
    ],
)
async def test_a_request_that_two_readers_could_read_differently_is_refused(
    path: str, headers: list[str], body: bytes
) -> None:
    """Nothing of it reaches the upstream, and what follows on the connection is not read as a request."""
    smuggled = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    passed = await pass_through(post(*headers, body=body + smuggled, path=path))
    assert passed.answer.status == 400
    assert passed.answer.data.count(b"HTTP/1.") == 1
    assert passed.requests == []
    assert error_of(passed.answer)["code"] == -32600
    assert passed.sidecar.of(SidecarFault) == []


@pytest.mark.parametrize("path", ["/mcp", "/x"])
async def test_a_coding_that_would_be_lost_gets_501(path: str) -> None:
    """The sidecar undoes chunks only; a body that is compressed below them would arrive as if it were plain."""
    passed = await pass_through(post("Transfer-Encoding: gzip, chunked", body=b"3\r\nabc\r\n0\r\n\r\n", path=path))
    assert passed.answer.status == 501
    assert passed.requests == []


@pytest.mark.parametrize("path", ["/mcp", "/x"])
async def test_chunks_that_go_wrong_later_get_400(path: str) -> None:
    """The client's own mistake is told as such, and a part of a body is never ended as if whole."""
    async with bystander() as (upstream, sidecar):
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(post("Transfer-Encoding: chunked", path=path, body=b"3\r\nabc\r\n"))
        await eventually(lambda: sidecar._ingress._under_way)
        writer.write(b"zz\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.split(b" ")[1] == b"400"
        writer.close()
        assert not [arrival for arrival in upstream.ledger.arrivals if b"abc" in arrival.body]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes(range(256)) * 4, id="all-bytes"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500, id="tls"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="http2"),
        pytest.param(b"GET /x HTTP/3.7\r\nHost: localhost\r\n\r\n", id="http3"),
        pytest.param(b"GET /x\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", id="target"),
        pytest.param(b"GET /x y HTTP/1.1\r\nHost: localhost\r\n\r\n", id="space"),
        pytest.param(b"NONSENSE /x HTTP/1.1\r\nHost: localhost\r\n\r\n", id="method"),
        pytest.param(b"get /x HTTP/1.1\r\nHost: localhost\r\n\r\n", id="lower-case"),
        pytest.param(b"GET /x HTTP/1.1\r\n\r\n", id="no-host"),
        pytest.param(b"\r\n\r\n\r\nnothing\r\n\r\n", id="lines"),
    ],
)
async def test_what_is_not_http_gets_400(data: bytes) -> None:
    """An answer and the end of the connection, and nothing that tells what runs here."""
    passed = await pass_through(data)
    assert passed.answer.status == 400
    assert not passed.answer.timed_out
    assert b"aiohttp" not in passed.answer.data
    assert passed.requests == []
    assert [fact.status for fact in passed.sidecar.of(RequestRejected)] == [400]
    assert [fact.status for fact in passed.sidecar.of(RequestServed)] == [400]


async def test_random_bytes_never_do_harm() -> None:
    """Whatever is sent, the process stays up, there is an answer or an end, and no fault of ours."""
    draw = random.Random(20260728)
    async with bystander() as (_, sidecar):
        for _ in range(100):
            noise = draw.randbytes(draw.randrange(1, 300))
            data = draw.choice((b"", b"GET / HTTP/1.1\r\n", b"POST /mcp HTTP/1.1\r\n" + HOST)) + noise + b"\r\n\r\n"
            await raw_exchange(sidecar.port, data, timeout_s=0.05)


# -- session ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Mcp-Session-Id: a b"], id="space"),
        pytest.param(["Mcp-Session-Id: a\tb"], id="tab"),
        pytest.param(["Mcp-Session-Id: caf\u00e9"], id="not-ascii"),
        pytest.param(["Mcp-Session-Id:"], id="empty"),
        pytest.param(["Mcp-Session-Id: a", "mcp-session-id: b"], id="two"),
        pytest.param(["Mcp-Session-Id: a", "Mcp-Session-Id: a"], id="same-twice"),
    ],
)
async def test_a_bad_session_id_gets_400(method: str, lines: list[str]) -> None:
    """With -32600, and it goes nowhere."""
    body, length = (PING, [f"Content-Length: {len(PING)}"]) if method == "POST" else (b"", [])
    head = "\r\n".join([f"{method} /mcp HTTP/1.1", *length, *lines]).encode()
    passed = await pass_through(head + b"\r\n" + HOST + b"\r\n" + body)
    assert passed.answer.status == 400
    assert error_of(passed.answer)["code"] == -32600
    assert passed.requests == []


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}', False, id="initialize"),
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":"server/discover"}', True, id="sessionless"),
    ],
)
async def test_a_bad_session_id_is_no_matter_where_none_is_used(body: bytes, kept: bool) -> None:
    """``initialize`` loses it anyway, and 2026-07-28 ignores it."""
    passed = await pass_through(post("Mcp-Session-Id: a b", f"Content-Length: {len(body)}", body=body))
    assert passed.answer.status == 200
    assert passed.request.values("mcp-session-id") == ([b"a b"] if kept else [])


async def test_an_id_may_be_as_long_as_a_header() -> None:
    """What bounds it is the size of all headers, as for every other one."""
    session_id = "~" * 60_000
    passed = await pass_through(post(f"Mcp-Session-Id: {session_id}", f"Content-Length: {len(PING)}", body=PING))
    assert passed.request.values("mcp-session-id") == [session_id.encode()]


# -- time and number --------------------------------------------------------------------------------------------------


async def test_slow_and_half_open_clients_hold_up_nobody() -> None:
    """Hundreds of connections that say nothing, half a head, or half a body; the others are served meanwhile."""
    starts = [b"", b"POST", b"POST /mcp HTTP/1.1\r\nHost: loc", post("Content-Length: 1000", body=b'{"jsonrpc":')]
    async with bystander() as (upstream, sidecar):
        seen = len(upstream.ledger.arrivals)
        writers = []
        for n in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
            writer.write(starts[n % len(starts)])
            writers.append(writer)
        async with McpClient(sidecar.url) as client:
            await client.initialize()
            assert (await client.tool("echo", text="me")).text == "me"
            await client.delete()
        for writer in writers:
            writer.transport.abort()
        assert len(upstream.ledger.arrivals) == seen + 4


async def test_a_body_in_single_bytes_is_read() -> None:
    """Slowness is no mistake."""
    async with bystander() as (upstream, sidecar):
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        for byte in raw_post(sidecar.port, PING):
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 ")
        assert upstream.ledger.arrivals[-1].body == PING
        writer.close()


@pytest.mark.long
async def test_memory_does_not_grow_with_bad_requests() -> None:
    """A hundred oversized bodies and heads leave nothing behind and never lie in memory as a whole."""
    large = raw_post(1, b"x" * 3_000_000).replace(b"localhost:1", b"localhost")
    heads = b"GET /x HTTP/1.1\r\n" + HOST + (b"X: " + b"a" * 60000 + b"\r\n") * 20
    async with bystander(limits__max_request_body="1MiB") as (_, sidecar):
        await raw_exchange(sidecar.port, large)
        tracemalloc.start()
        try:
            for _ in range(50):
                await raw_exchange(sidecar.port, large)
                await raw_exchange(sidecar.port, heads)
            left, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert left < 3_000_000
        assert peak < 12_000_000
