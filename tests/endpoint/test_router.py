"""The gate in front of everything: whose request may come in, and that a bug concerns one request only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mcp_sidecar.endpoint.inbound import Incoming
from mcp_sidecar.facts import RequestRejected, RequestServed, SidecarFault
from mcp_sidecar.upstream.answer import Answer
from tests.support.client import McpClient, raw_exchange
from tests.support.fake_upstream import FakeUpstream
from tests.support.raw_upstream import RawUpstream, pass_through
from tests.support.sidecar import WatchedSidecar, running_sidecar
from tests.support.waiting import eventually

PATHS = pytest.mark.parametrize("path", ["/mcp", "/x"])
ANYWHERE: dict[str, object] = {"listen": "0.0.0.0:0"}


async def status_of(sidecar: WatchedSidecar, *lines: str, path: str = "/x") -> int | None:
    head = "\r\n".join([f"OPTIONS {path} HTTP/1.1", *lines, "Connection: close", "", ""])
    return (await raw_exchange(sidecar.port, head.encode())).status


# -- Origin -----------------------------------------------------------------------------------------------------------


@PATHS
@pytest.mark.parametrize(
    ("origin", "on_loopback", "anywhere"),
    [
        pytest.param(None, 200, 200, id="none"),
        pytest.param("http://127.0.0.1:{port}", 200, 403, id="bound-address"),
        pytest.param("http://localhost:{port}", 200, 403, id="localhost"),
        pytest.param("http://localhost:1234", 200, 403, id="other-loopback-port"),
        pytest.param("https://[::1]:1", 200, 403, id="ipv6-loopback"),
        pytest.param("http://127.8.8.8", 200, 403, id="127/8"),
        pytest.param("http://listed.example", 200, 200, id="listed"),
        pytest.param("HTTP://LISTED.example:80", 200, 200, id="listed-spelled-otherwise"),
        pytest.param("https://public.example", 200, 200, id="public-url"),
        pytest.param("https://listed.example", 403, 403, id="other-scheme"),
        pytest.param("http://listed.example:8080", 403, 403, id="other-port"),
        pytest.param("http://listed.example.evil.example", 403, 403, id="suffix"),
        pytest.param("http://evil.example", 403, 403, id="evil"),
        pytest.param("http://localhost.evil.example", 403, 403, id="localhost-prefix"),
        pytest.param("http://127.0.0.1.evil.example", 403, 403, id="address-prefix"),
        pytest.param("http://localhost@evil.example", 403, 403, id="user-info"),
        pytest.param("null", 403, 403, id="null"),
        pytest.param("", 403, 403, id="empty"),
        pytest.param("file://", 403, 403, id="file"),
        pytest.param("http://localhost/path", 403, 403, id="with-a-path"),
        pytest.param("http://localhost http://evil.example", 403, 403, id="two-in-one"),
        pytest.param("http://[", 403, 403, id="malformed"),
    ],
)
async def test_an_origin_is_its_own_or_listed_or_loopback_on_loopback(
    path: str, origin: str | None, on_loopback: int, anywhere: int
) -> None:
    """On a listener for everybody, only what the operator named and the sidecar's own."""
    allowed = {"listen__allowed_origins": "http://listed.example", "listen__public_url": "https://public.example"}
    for settings, expected in (({}, on_loopback), (ANYWHERE, anywhere)):
        async with RawUpstream() as upstream, running_sidecar(upstream.url, **allowed, **settings) as sidecar:
            lines = [f"Host: localhost:{sidecar.port}"]
            if origin is not None:
                lines.append(f"Origin: {origin.format(port=sidecar.port)}")
            assert await status_of(sidecar, *lines, path=path) == expected
            assert len(upstream.requests) == (expected == 200)
            assert len(sidecar.of(RequestRejected)) == (expected == 403)


async def test_the_host_of_a_request_never_vouches_for_its_origin() -> None:
    """After DNS rebinding both name the attacker."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url, **ANYWHERE) as sidecar:
        assert await status_of(sidecar, "Host: evil.example", "Origin: http://evil.example") == 403
        assert upstream.requests == []


async def test_every_origin_of_a_request_is_looked_at() -> None:
    """A second one hides nothing."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        lines = ("Host: localhost", "Origin: http://localhost", "Origin: http://evil.example")
        assert await status_of(sidecar, *lines) in (400, 403)
        assert upstream.requests == []


# -- Host -------------------------------------------------------------------------------------------------------------


@PATHS
@pytest.mark.parametrize(
    ("host", "on_loopback"),
    [
        ("localhost", 200),
        ("LOCALHOST:99", 200),
        ("127.0.0.1:{port}", 200),
        ("[::1]:8080", 200),
        ("listed.example", 200),
        ("listed.example:8080", 200),
        ("public.example", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("", 403),
        ("[", 403),
    ],
)
async def test_a_loopback_listener_is_asked_for_by_its_name(path: str, host: str, on_loopback: int) -> None:
    """Or by a listed one; other names reach it only by DNS rebinding. A listener for everybody has no such check."""
    allowed = {"listen__allowed_hosts": "listed.example", "listen__public_url": "https://public.example"}
    for settings, expected in (({}, on_loopback), (ANYWHERE, 200)):
        async with RawUpstream() as upstream, running_sidecar(upstream.url, **allowed, **settings) as sidecar:
            line = f"Host: {host.format(port=sidecar.port)}"
            assert await status_of(sidecar, line, path=path) == expected
            assert len(upstream.requests) == (expected == 200)


async def test_the_gate_stands_in_every_mode() -> None:
    """``observe`` changes nothing of what the upstream says, but Origin, Host, size and syntax are checked."""
    evil = b"GET /x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert (await pass_through(evil, healing__mode="observe")).answer.status == 403


# -- the endpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "asked", "is_endpoint"),
    [
        ("/mcp", "/mcp", True),
        ("/mcp", "/mcp/", True),
        ("/mcp", "/mcp?x=1", True),
        ("/mcp", "/mcp//", False),
        ("/mcp", "/mcp/x", False),
        ("/mcp", "/MCP", False),
        ("/mcp", "/", False),
        ("/a/b/", "/a/b", True),
        ("/a/b/", "/a/b/", True),
        ("/", "/mcp", True),
        ("", "/mcp/", True),
        ("/my%20app/mcp", "/my%20app/mcp", True),
        ("/my%20app/mcp", "/my%20app/mcp/", True),
        ("/my%20app/mcp", "/my/app/mcp", False),
        ("/%6Dcp", "/mcp", True),
        ("/mcp", "/%6dcp", True),
        ("/caf%C3%A9", "/caf%c3%a9", True),
        ("/a%2Fb", "/a%2fb", True),
        ("/a%2Fb", "/a/b", False),
        ("/mcp//", "/mcp//", True),
        ("/mcp//", "/mcp/", True),
        ("/mcp//", "/mcp", False),
    ],
)
async def test_which_path_is_the_endpoint(configured: str, asked: str, is_endpoint: bool) -> None:
    """The URL's own path, ``/mcp`` where it has none, with or without one trailing slash."""
    async with RawUpstream() as upstream, running_sidecar(upstream.origin + configured) as sidecar:
        request = f"POST {asked} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\n{{"
        answer = await raw_exchange(sidecar.port, request.encode())
        assert (answer.status == 400) is is_endpoint
        assert len(upstream.requests) == (not is_endpoint)


# -- what must not happen ---------------------------------------------------------------------------------------------


class Broken:
    """Stands for any part of the sidecar that has a bug."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"a bug in {name}")


@pytest.mark.parametrize(
    ("part", "request_line", "status", "content"),
    [
        pytest.param("upstream", "tools/call", 200, b'"outcome_unknown"', id="session-post"),
        pytest.param("upstream", "server/discover", 502, b"The sidecar failed", id="sessionless"),
        pytest.param("upstream", "GET /x", 502, b"The sidecar failed", id="other-path"),
        pytest.param("upstream", "DELETE /mcp", 502, b"The sidecar failed", id="delete"),
        pytest.param("streams", "GET /mcp", 502, b"The sidecar failed", id="get"),
        pytest.param("sessions", "tools/call", 200, b'"id":7', id="sessions"),
    ],
)
async def test_a_bug_is_contained(part: str, request_line: str, status: int, content: bytes) -> None:
    """The request that meets it gets a definite answer, the fact is told, and the next request is served."""
    async with (
        FakeUpstream() as upstream,
        running_sidecar(upstream.url) as sidecar,
        McpClient(sidecar.url) as client,
    ):
        await client.initialize()
        whole = getattr(sidecar.services, part)
        setattr(sidecar.services, part, Broken())
        answer = await raw_exchange(sidecar.port, _request(request_line, client.session_id or ""))
        setattr(sidecar.services, part, whole)
        assert answer.status == status
        assert content in answer.data
        [fault] = sidecar.of(SidecarFault)
        assert fault.error == "RuntimeError"
        assert "a bug" not in repr(fault)
        assert (await client.tool("echo", text="on")).text == "on"


def _request(line: str, session_id: str) -> bytes:
    method, _, target = line.partition(" ")
    if target:
        body = b""
    else:
        method, target, body = "POST", "/mcp", b'{"jsonrpc":"2.0","id":7,"method":"%b","params":{}}' % line.encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nMcp-Session-Id: {session_id}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Half(Answer):
    """One that cannot be read to its end."""

    __slots__ = ()

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"{"
        raise RuntimeError("a bug")


async def test_a_bug_after_the_head_cuts_the_answer() -> None:
    """What is under way cannot be answered anew, and must not look whole."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        send = sidecar.services.upstream.send

        async def half(*args: Any, **options: Any) -> Any:
            answer = await send(*args, **options)
            answer.__class__ = Half
            return answer

        sidecar.services.upstream.send = half  # type: ignore[method-assign]
        answer = await raw_exchange(sidecar.port, _request("GET /echo", "x"))
        assert answer.status == 200
        assert answer.data.endswith(b"\r\n\r\n{")
        assert len(sidecar.of(SidecarFault)) == 1


@pytest.mark.parametrize(
    ("method", "path", "label"),
    [
        ("POST", "/mcp", "other"),
        ("POST", "/messages", "other"),
        ("GET", "/x", "none"),
        ("DELETE", "/mcp", "none"),
        ("OPTIONS", "/mcp", "none"),
    ],
)
async def test_only_a_post_can_have_a_method(method: str, path: str, label: str) -> None:
    """One whose body is none, or nobody's business, counts with the unknown ones."""
    passed = await pass_through(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\n{{".encode()
    )
    assert [fact.rpc_method for fact in passed.sidecar.of(RequestServed)] == [label]


async def test_a_client_that_left_is_counted_as_such() -> None:
    """With the status that nginx logs, too; it is no fault of anybody here."""
    async with FakeUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        _, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        await eventually(lambda: sidecar._ingress._under_way)
        writer.close()
        await eventually(lambda: sidecar.of(RequestServed))
        assert [fact.status for fact in sidecar.of(RequestServed)] == [499]
        assert sidecar.of(SidecarFault) == []
        assert upstream.ledger.arrivals == []


async def test_a_bug_beyond_the_exchange_closes_the_connection() -> None:
    """Where not even an answer of ours comes out, the client must not wait for one."""

    async def without_an_answer(incoming: Incoming) -> None:
        """Ends."""

    async with running_sidecar("http://127.0.0.1:9/mcp") as sidecar:
        sidecar._ingress._answer = without_an_answer  # type: ignore[method-assign]
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        assert [fact.error for fact in sidecar.of(SidecarFault)] == ["AssertionError"]
