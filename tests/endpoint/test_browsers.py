"""Web pages: they can read what the sidecar itself says wherever they can read what the upstream says."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.endpoint.cors import MAX_BYTES, MAX_ORIGINS, Cors
from tests.support.client import raw_exchange, raw_post
from tests.support.raw_upstream import RawUpstream
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

PAGE = "http://localhost:5173"
ALLOWED = f"Access-Control-Allow-Origin: {PAGE}\r\nAccess-Control-Expose-Headers: Mcp-Session-Id\r\n"
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
PREFLIGHT = (
    f"OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\nAccess-Control-Request-Method: POST\r\n"
    "Access-Control-Request-Headers: mcp-session-id\r\nConnection: close\r\n\r\n"
).encode()


def answer(head: str = "", body: bytes = b"{}") -> bytes:
    """An upstream's answer with these headers."""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


@pytest.mark.long
@pytest.mark.parametrize("origin", [PAGE, "http://localhost:9999"])
async def test_our_own_answers_are_readable_for_whom_the_upstream_s_are(origin: str) -> None:
    """In an outage the page learns why; another origin is told nothing that the upstream did not tell it."""
    async with (
        RawUpstream(answer(ALLOWED)) as upstream,
        running_sidecar(upstream.url, healing__hold_timeout=1) as sidecar,
    ):
        await raw_exchange(sidecar.port, raw_post(sidecar.port, PING, f"Origin: {PAGE}"))
        await upstream.__aexit__(None, None, None)
        told = await raw_exchange(sidecar.port, raw_post(sidecar.port, PING, f"Origin: {origin}"))
        assert b"upstream_unavailable" in told.data
        assert (f"Access-Control-Allow-Origin: {PAGE}".encode() in told.data) is (origin == PAGE)
        assert (b"Access-Control-Expose-Headers: Mcp-Session-Id" in told.data) is (origin == PAGE)
        assert b"\r\nVary: Origin\r\n" in told.data
        plain = await raw_exchange(sidecar.port, raw_post(sidecar.port, PING))
        assert b"Access-Control" not in plain.data
        assert b"Vary" not in plain.data


async def test_a_kept_open_stream_is_readable() -> None:
    """A GET while the upstream is away is answered by us, and goes to a page like any other."""
    async with connected() as (upstream, sidecar, client):
        sidecar._ingress._cors.learn(PAGE, 200, [("Access-Control-Allow-Origin", PAGE)])
        await upstream.stop()
        stream = await client.get_stream(headers={"Origin": PAGE})
        async with stream:
            assert stream.headers["Access-Control-Allow-Origin"] == PAGE


async def test_a_preflight_waits_as_its_request_would() -> None:
    """A browser that gets none does not send the request at all."""
    async with connected() as (upstream, sidecar, _):
        await upstream.stop()
        asking = asyncio.create_task(raw_exchange(sidecar.port, PREFLIGHT))
        await eventually(lambda: len(sidecar.services.holds))
        await upstream.start()
        assert (await asking).status == 405  # what this upstream says to OPTIONS


@pytest.mark.long
async def test_a_preflight_does_not_wait_for_ever() -> None:
    """No longer than its request would, and what it gets then can be read."""
    async with connected(healing__hold_timeout=1) as (upstream, sidecar, _):
        await upstream.stop()
        assert (await raw_exchange(sidecar.port, PREFLIGHT)).status == 503
        other = PREFLIGHT.replace(b"/mcp", b"/x")
        assert (await raw_exchange(sidecar.port, other)).status == 503


async def test_the_upstream_s_word_passes_as_it_is() -> None:
    """A preflight's answer, whatever is asked for in it."""
    hostile = "Access-Control-Request-Headers: " + ",".join(["x-y"] * 2000)
    async with RawUpstream(answer(ALLOWED)) as upstream, running_sidecar(upstream.url) as sidecar:
        asked = PREFLIGHT.replace(b"Access-Control-Request-Headers: mcp-session-id", hostile.encode())
        got = await raw_exchange(sidecar.port, asked)
        assert got.data.count(b"Access-Control-Allow-Origin") == 1
        assert upstream.last.values("access-control-request-headers") == [hostile.partition(": ")[2].encode()]


def test_what_is_remembered_is_bounded() -> None:
    """Of so many origins, of each so much, and the last word counts."""
    cors = Cors()
    for number in range(2 * MAX_ORIGINS):
        cors.learn(f"http://{number}.example", 200, [("Access-Control-Allow-Origin", "*")])
    assert len(cors._said) == MAX_ORIGINS
    allowed = ("Access-Control-Allow-Origin", "http://a.example")
    cors.learn("http://a.example", 200, [allowed, ("Access-Control-Expose-Headers", "x" * MAX_BYTES)])
    assert cors.said("http://a.example") == (("Vary", "Origin"),)
    cors.learn("http://a.example", 200, [allowed, ("Set-Cookie", "secret=1")])
    assert cors.said("http://a.example") == (allowed, ("Vary", "Origin"))
    cors.learn("http://a.example", 502, [])
    assert cors.said("http://a.example")[0] == allowed
    cors.learn("http://a.example", 200, [])
    assert cors.said("http://a.example") == (("Vary", "Origin"),)
