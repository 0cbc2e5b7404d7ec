"""Other paths, and the older HTTP+SSE transport of 2024-11-05 on them."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from mcp_sidecar.facts import ActionObserved, HealEnded
from tests.support.client import new_http, raw_exchange
from tests.support.endpoint import Outgoing
from tests.support.fake_upstream import FakeUpstream
from tests.support.raw_upstream import OK, Conversation, Play, RawUpstream, pass_through
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def post(body: bytes) -> bytes:
    return b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


# -- the endpoint -----------------------------------------------------------------------------------------------------

STRAY = b"HTTP/1.1 200 OK\r\nMcp-Session-Id: theirs\r\nmcp-session-id: again\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("lines", ["", "Mcp-Session-Id: mine\r\n"], ids=["no-id", "an-id"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "PUT", "HEAD", "DELETE"])
async def test_no_other_session_id_is_shown_on_the_endpoint(method: str, lines: str) -> None:
    """Some clients adopt whatever id a response carries; only an answer to ``initialize`` opens a session."""
    request = f"{method} /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode()
    passed = await pass_through(request, STRAY)
    assert passed.answer.status == 200
    assert b"session-id" not in passed.head.lower()


async def test_an_initialize_that_is_not_answered_opens_no_session() -> None:
    """A 202 has no result, hence nothing that its id could belong to."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
    passed = await pass_through(post(body), STRAY.replace(b"200 OK", b"202 Accepted"))
    assert passed.answer.status == 202
    assert b"session-id" not in passed.head.lower()


@pytest.mark.parametrize(
    ("path", "version", "mode"),
    [
        pytest.param("/x", "2025-11-25", "heal", id="another-path"),
        pytest.param("/mcp", "2026-07-28", "heal", id="sessionless"),
        pytest.param("/mcp", "2025-11-25", "observe", id="observe"),
    ],
)
async def test_elsewhere_ids_pass_as_everything_does(path: str, version: str, mode: str) -> None:
    """Neither other paths nor 2026-07-28 know sessions, and ``observe`` changes nothing."""
    request = (
        f"OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nMCP-Protocol-Version: {version}\r\n\r\n"
    )
    passed = await pass_through(request.encode(), STRAY, mode=mode)
    assert passed.head.lower().count(b"session-id") == 2


# -- other paths ------------------------------------------------------------------------------------------------------


async def test_every_other_path_is_the_upstreams() -> None:
    """OAuth metadata, health checks, whatever: with repeated headers and the request as it was."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        upstream.routes["/.well-known/oauth-protected-resource"] = Outgoing(200, (("X-A", "1"),), b"{}")
        async with http.get(f"http://{sidecar.address}/.well-known/oauth-protected-resource") as metadata:
            assert (metadata.status, await metadata.read(), metadata.headers["X-A"]) == (200, b"{}", "1")
        async with http.put(f"http://{sidecar.address}/echo/x?y=1", data=b"abc") as echo:
            seen = json.loads(await echo.read())
            assert (seen["method"], seen["target"], seen["body"]) == ("PUT", "/echo/x?y=1", "abc")
            assert echo.headers.getall("X-Twice") == ["a", "b"]


@pytest.mark.parametrize("status", [400, 401, 404, 500, 502, 503, 504])
async def test_no_answer_of_another_path_means_anything(status: int) -> None:
    """It is not judged, held, retried or rewritten, whatever it says and whatever id it was asked with."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        upstream.routes["/x"] = Outgoing(status, (), b'{"error":{"code":-32001,"message":"Session not found"}}')
        async with http.get(f"http://{sidecar.address}/x", headers={"Mcp-Session-Id": "abc"}) as answer:
            assert answer.status == status
            assert b"Session not found" in await answer.read()
        assert len(upstream.ledger.arrivals) == 1
        assert sidecar.of(HealEnded) == []


@pytest.mark.parametrize(("mode", "status"), [("heal", 503), ("rewrite", 503), ("observe", 502)], ids=str)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_another_path_is_not_held(mode: str, status: int, method: str) -> None:
    """While the upstream is away it gets 503 at once, 502 where the sidecar only observes."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url, healing__mode=mode) as sidecar:
        await upstream.stop()
        request = f"{method} /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        answer = await raw_exchange(sidecar.port, request)
        assert answer.status == status
        assert (b"Retry-After:" in answer.data) is (status == 503)
        assert sidecar.of(ActionObserved) == []


async def test_another_path_that_breaks_before_its_head_gets_502() -> None:
    """It may have been executed, and nobody sends it again."""

    async def play(conversation: Conversation) -> None:
        conversation.reset()

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        answer = await raw_exchange(sidecar.port, get("/x"))
        assert answer.status == 502
        assert len(upstream.requests) == 1


async def test_a_connection_that_the_upstream_closed_is_not_mistaken_for_an_outage() -> None:
    """Between two requests a server may close an idle connection; the next request gets a new one."""

    async def play(conversation: Conversation) -> None:
        await conversation.send(OK)
        conversation.close()
        await conversation.client_left.wait()

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        for _ in range(3):
            assert (await raw_exchange(sidecar.port, get("/x"))).status == 200
        assert upstream.connections == 3


# -- 2024-11-05 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(
            b"event: endpoint\ndata: {up}/messages?s=1\n\n",
            b"event: endpoint\ndata: http://localhost/messages?s=1\n\n",
            id="absolute",
        ),
        pytest.param(
            b"id: 1\r\nevent: endpoint\r\ndata:{up}/m\r\n\r\n",
            b"data: http://localhost/m\r\n",
            id="crlf",
        ),
        pytest.param(b"event: endpoint\ndata: /messages?s=1\n\n", None, id="relative"),
        pytest.param(b"event: endpoint\ndata: https://elsewhere.example/m\n\n", None, id="elsewhere"),
        pytest.param(b'event: message\ndata: {"a":"{up}/endpoint"}\n\n', None, id="a-message"),
        pytest.param(b"data: {up}/endpoint\n\n", None, id="no-name"),
        pytest.param(b": endpoint {up}\n\n", None, id="comment"),
        pytest.param(b"\xef\xbb\xbf: x\r\rdata: \xff\n\ndata:\n\n\n\n", None, id="odd-bytes"),
        pytest.param(b"data: half", None, id="unfinished"),
    ],
)
async def test_the_endpoint_event_leads_back_here(sent: bytes, expected: bytes | None) -> None:
    """A client of the older transport POSTs to the URL that it is given; all other events pass byte for byte."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        sent = sent.replace(b"{up}", upstream.origin.encode())
        upstream.answer_with(SSE_HEAD + chunk(sent) + b"0\r\n\r\n")
        answer = await raw_exchange(sidecar.port, b"GET /sse HTTP/1.0\r\nHost: localhost\r\n\r\n")
        body = answer.data.partition(b"\r\n\r\n")[2]
        if expected is None:
            assert body == sent
        else:
            assert expected in body
            assert upstream.origin.encode() not in body


async def test_events_of_the_older_transport_arrive_one_by_one() -> None:
    """While the stream is open its connection is the session: POSTs on other paths are answered there."""
    more = asyncio.Event()

    async def stream(conversation: Conversation) -> None:
        await conversation.send(SSE_HEAD + chunk(b"event: endpoint\ndata: /messages\n\n"))
        await more.wait()
        await conversation.send(chunk(b'data: {"id":1}\n\n'))
        await conversation.client_left.wait()

    async def message(conversation: Conversation) -> None:
        await conversation.read_body()
        await conversation.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 8\r\n\r\nAccepted")
        more.set()

    async with RawUpstream(stream, message) as upstream, running_sidecar(upstream.url) as sidecar, new_http() as http:
        async with http.get(f"http://{sidecar.address}/sse") as events:
            assert await events.content.readany() == b"event: endpoint\ndata: /messages\n\n"
            async with http.post(f"http://{sidecar.address}/messages", data=b"{}") as accepted:
                assert (accepted.status, await accepted.read()) == (202, b"Accepted")
            assert await events.content.readany() == b'data: {"id":1}\n\n'
            assert sidecar.services.streams.open.get_streams == 1
        await eventually(lambda: sidecar.services.streams.open.get_streams == 0)


@pytest.mark.parametrize("idle_timeout", [0.1])
async def test_a_stream_may_be_silent(idle_timeout: float) -> None:
    """``idle_timeout`` is not for GET streams."""
    more = asyncio.Event()

    async def stream(conversation: Conversation) -> None:
        await conversation.send(SSE_HEAD)
        await more.wait()
        await conversation.send(chunk(b"data: late\n\n") + b"0\r\n\r\n")

    async with (
        RawUpstream(stream) as upstream,
        running_sidecar(upstream.url, upstream__idle_timeout=idle_timeout) as sidecar,
        new_http() as http,
        http.get(f"http://{sidecar.address}/sse") as events,
    ):
        asyncio.get_running_loop().call_later(idle_timeout * 3, more.set)
        assert await events.content.read() == b"data: late\n\n"


@pytest.mark.parametrize("accept", ["*/*", "text/html, text/event-stream;q=0.5"])
async def test_a_stream_may_let_wait_for_its_head(accept: str) -> None:
    """Only who asks for one may be one: of everything else a silence before the head is a cut."""
    more = asyncio.Event()

    async def stream(conversation: Conversation) -> None:
        await more.wait()
        await conversation.send(SSE_HEAD + chunk(b"data: late\n\n") + b"0\r\n\r\n")

    async with (
        RawUpstream(stream) as upstream,
        running_sidecar(upstream.url, upstream__idle_timeout=0.1) as sidecar,
        new_http() as http,
    ):
        asyncio.get_running_loop().call_later(0.3, more.set)
        async with http.get(f"http://{sidecar.address}/sse", headers={"Accept": accept}) as answer:
            assert answer.status == (502 if accept == "*/*" else 200)


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
async def test_a_download_that_gets_stuck_is_cut(accept: str) -> None:
    """No byte for ``idle_timeout`` ends a plain GET as it ends everything else."""

    async def stuck(conversation: Conversation) -> None:
        await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await conversation.client_left.wait()

    async with RawUpstream(stuck) as upstream, running_sidecar(upstream.url, upstream__idle_timeout=0.1) as sidecar:
        request = get("/download").replace(b"\r\n\r\n", f"\r\nAccept: {accept}\r\n\r\n".encode())
        answer = await raw_exchange(sidecar.port, request)
        assert answer.data.endswith(b"\r\n\r\nhalf")
        assert not answer.timed_out


async def test_a_stream_of_the_older_transport_that_breaks_is_cut() -> None:
    """Its session is gone with it; a clean end would tell the client otherwise."""

    async def stream(conversation: Conversation) -> None:
        await conversation.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        conversation.close()

    async with RawUpstream(stream) as upstream, running_sidecar(upstream.url) as sidecar:
        answer = await raw_exchange(sidecar.port, get("/sse"))
        assert answer.data.endswith(chunk(b"data: 1\n\n"))


async def test_a_stream_of_the_older_transport_ends_cleanly_at_drain() -> None:
    """As every GET stream does."""

    async def stream(conversation: Conversation) -> None:
        await conversation.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        await conversation.client_left.wait()

    async with RawUpstream(stream) as upstream, running_sidecar(upstream.url) as sidecar:
        reading = asyncio.create_task(raw_exchange(sidecar.port, get("/sse")))
        await eventually(lambda: sidecar.services.streams.open.get_streams)
        await sidecar.drain()
        assert (await reading).data.endswith(b"0\r\n\r\n")


# -- connections of the upstream --------------------------------------------------------------------------------------


def leaves_behind_an_answer(*, tells: bool) -> Play:
    """Answer the first request on each connection, and end it at the next one, perhaps within the head."""

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        if conversation.is_first:
            await conversation.send(OK)
        else:
            await conversation.send(b"HTTP/1.1 2" if tells else b"")
            conversation.close()

    return play


@pytest.mark.parametrize(
    ("method", "body", "tells", "status", "sent"),
    [
        pytest.param("GET", b"", False, 200, 2, id="GET"),
        pytest.param("HEAD", b"", False, 200, 2, id="HEAD"),
        pytest.param("OPTIONS", b"", False, 200, 2, id="OPTIONS"),
        pytest.param("GET", b"", True, 502, 1, id="a byte of the answer"),
        pytest.param("GET", b"ab", False, 502, 1, id="GET with a body"),
        pytest.param("POST", b"ab", False, 502, 1, id="POST"),
        pytest.param("DELETE", b"", False, 502, 1, id="DELETE"),
    ],
)
async def test_what_only_reads_is_sent_once_more_where_a_connection_was_stale(
    method: str, body: bytes, tells: bool, status: int, sent: int
) -> None:
    """On a new connection, and only if not a byte had come back: it broke as an idle connection does (RFC 9110 §9.2.2)."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    request = b"%b /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n%b" % (method.encode(), length, body)
    async with (
        RawUpstream(leaves_behind_an_answer(tells=tells)) as upstream,
        running_sidecar(upstream.url) as sidecar,
    ):
        assert (await raw_exchange(sidecar.port, get("/first"))).data.startswith(b"HTTP/1.1 200 ")
        answer = await raw_exchange(sidecar.port, request)
        assert answer.data.startswith(b"HTTP/1.1 %d " % status)
        assert len(upstream.requests) == 1 + sent
        assert upstream.connections == sent


async def test_a_user_of_ntlm_is_nobody_elses() -> None:
    """A server signs a connection in. The client goes on on it, another one is asked who it is, and it ends with its client."""
    users: dict[int, bytes] = {}

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        said = conversation.request.values("authorization")
        if said:
            users[conversation.number] = said[0].removeprefix(b"NTLM ")
        user = users.get(conversation.number)
        if user is None:
            await conversation.send(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")
        else:
            await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(user), user))

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        url = f"http://{sidecar.address}/x"
        async with new_http() as alice, new_http() as bob:

            async def said_to(http: aiohttp.ClientSession, **headers: str) -> tuple[int, str]:
                async with http.get(url, headers=headers) as answer:
                    return answer.status, await answer.text()

            assert await said_to(alice) == (401, "")
            assert await said_to(alice, Authorization="NTLM alice") == (200, "alice")
            assert await said_to(bob) == (401, "")
            assert await said_to(alice) == (200, "alice")
            assert await said_to(bob, Authorization="NTLM bob") == (200, "bob")
            assert await said_to(alice) == (200, "alice")
            assert await said_to(bob) == (200, "bob")
            pool, clients = sidecar.services.upstream._pool, sidecar._server._common.connections
            assert pool is not None
            assert len(pool._bound) == 2
        await eventually(lambda: not clients)
        assert not pool._bound
