"""The official Python client, real uvicorn and Starlette: what the fakes of other tests could be too kind about."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_sidecar.facts import CallOutcome, RequestServed
from tests.support.behaviour import Answers
from tests.support.certificates import make_certificate, serving
from tests.support.fake_upstream import FakeUpstream
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

mcp = pytest.importorskip("mcp", reason="needs the extra demo")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

CALLS = 60


@asynccontextmanager
async def sdk_session(url: str, ca_file: Path | None = None) -> AsyncIterator[Any]:
    """A session of the official client. ``ca_file`` is whom it trusts, where that is not the system's."""
    from mcp.client.streamable_http import streamable_http_client

    verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file is not None else True
    async with (
        httpx.AsyncClient(verify=verify, follow_redirects=True, trust_env=False) as http,
        streamable_http_client(url, http_client=http) as (reading, writing, _),
        mcp.ClientSession(reading, writing) as session,
    ):
        await session.initialize()
        yield session


@pytest.mark.parametrize("answers", Answers)
async def test_healthy_calls_in_quick_succession_are_answered(answers: Answers) -> None:
    """The SDK closes its stream on the answer; nobody has left before it."""
    async with FakeUpstream(answers=answers) as upstream, running_sidecar(upstream.url) as sidecar:
        async with sdk_session(sidecar.url) as session:
            for _ in range(CALLS):
                await session.call_tool("echo", {"text": "x"})
        await eventually(lambda: len(_outcomes(sidecar.of(RequestServed))) >= CALLS)
        assert _outcomes(sidecar.of(RequestServed)) == [CallOutcome.ANSWERED] * CALLS
        assert CallOutcome.CLIENT_LEFT not in {fact.outcome for fact in sidecar.of(RequestServed)}


def _outcomes(served: list[RequestServed]) -> list[CallOutcome | None]:
    return [fact.outcome for fact in served if fact.rpc_method == "tools/call"]


# -- behind a TLS edge --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def starlette_server() -> AsyncIterator[str]:
    """A server whose endpoint is mounted, so that Starlette answers 307 to it without its slash; uvicorn as it comes."""
    from mcp.server.fastmcp import FastMCP
    from starlette.applications import Starlette
    from starlette.routing import Mount

    made = FastMCP("behind an edge", streamable_http_path="/")

    @made.tool()
    def hello() -> str:
        return "hello"

    inner = made.streamable_http_app()
    app = Starlette(routes=[Mount("/mcp", inner)], lifespan=lambda _: made.session_manager.run())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving_task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        await serving_task


@asynccontextmanager
async def tls_edge(certificate: tuple[Path, Path], port: int) -> AsyncIterator[str]:
    """An edge that ends TLS and says so, as edges do: one request per connection is enough here."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, rest = head.partition(b"\r\n")
            kept = [each for each in rest.split(b"\r\n") if each and not each.lower().startswith(b"connection:")]
            said = [b"X-Forwarded-Proto: https", b"X-Forwarded-For: 203.0.113.7", b"Connection: close"]
            there_reader, there = await asyncio.open_connection("127.0.0.1", port)
            there.write(b"\r\n".join([line, *kept, *said, b"", b""]))
            await asyncio.gather(pump(reader, there), pump(there_reader, writer))

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    edge = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=serving(certificate))
    try:
        yield f"https://localhost:{edge.sockets[0].getsockname()[1]}"
    finally:
        edge.close()


async def test_a_client_connects_through_a_redirect_behind_a_tls_edge(tmp_path: Path) -> None:
    """The server takes the scheme from the edge and the host from the sidecar; the client ends up at neither."""
    certificate = make_certificate(tmp_path, host="localhost")
    async with (
        starlette_server() as origin,
        running_sidecar(f"{origin}/mcp") as sidecar,
        tls_edge(certificate, sidecar.port) as edge,
    ):
        async with sdk_session(f"{edge}/mcp", certificate[0]) as session:
            answer = await session.call_tool("hello", {})
            assert answer.content[0].text == "hello"
        redirected = [fact for fact in sidecar.of(RequestServed) if fact.status == 307]
        assert redirected, "there was no redirect to try"
