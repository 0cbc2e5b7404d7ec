"""Behind an edge: clients are never led past it, and only a trusted proxy says who they are."""

from __future__ import annotations

import pytest

from mcp_sidecar.facts import HostRefused, OriginRefused, UpstreamRefusesHost
from tests.support.client import McpClient, raw_exchange, raw_post
from tests.support.fake_upstream import FakeUpstream
from tests.support.raw_upstream import RawUpstream
from tests.support.scene import connected
from tests.support.sidecar import running_sidecar

UNTRUSTED: dict[str, object] = {"listen__trusted_proxies": "203.0.113.0/24"}
METADATA = "/.well-known/oauth-protected-resource/mcp"


def redirect(port: int, scheme: str, host: str = "127.0.0.1") -> bytes:
    """What uvicorn and Starlette answer to the endpoint without its slash."""
    return f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {scheme}://{host}:{port}/mcp/\r\nContent-Length: 0\r\n\r\n".encode()


def post(port: int, host: str, *lines: str, path: str = "/mcp") -> bytes:
    """A POST that names this host."""
    whole = raw_post(port, b"{}", *lines, path=path)
    return whole.replace(f"Host: 127.0.0.1:{port}".encode(), f"Host: {host}".encode(), 1)


def header(data: bytes, name: str) -> str | None:
    """One header of a raw answer."""
    for line in data.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.lower() == name.lower():
            return value.strip()
    return None


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("settings", "said", "origin"),
    [
        ({}, (), "http://localhost:1234"),
        ({}, ("X-Forwarded-Proto: https",), "https://localhost:1234"),
        ({}, ("X-Forwarded-Proto: https", "X-Forwarded-Host: mcp.example.com"), "https://mcp.example.com"),
        ({}, ("Forwarded: proto=https;host=mcp.example.com",), "https://mcp.example.com"),
        ({}, ("X-Forwarded-Host: evil.example/x", "X-Forwarded-Proto: gopher"), "http://localhost:1234"),
        (UNTRUSTED, ("X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example"), "http://localhost:1234"),
        (UNTRUSTED, ("Forwarded: proto=https;host=evil.example",), "http://localhost:1234"),
        ({"listen__public_url": "https://pub.example"}, ("X-Forwarded-Host: evil.example",), "https://pub.example"),
    ],
)
async def test_a_redirect_leads_to_the_client_s_origin(
    scheme: str, settings: dict[str, object], said: tuple[str, ...], origin: str
) -> None:
    """The public URL, else what a trusted edge says, else what the client has asked for; whatever scheme the server names."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url, **settings) as sidecar:
        upstream._answers = [redirect(upstream.port, scheme)]
        answer = await raw_exchange(sidecar.port, post(sidecar.port, "localhost:1234", *said))
        assert header(answer.data, "Location") == f"{origin}/mcp/"


@pytest.mark.parametrize(
    ("setting", "authority", "is_moved"),
    [
        ("client", "mcp.example.com", True),
        ("client", "mcp.example.com:{port}", True),
        ("client", "mcp.example.com:1", False),
        ("client", "other.example:{port}", False),
        ("auto", "mcp.example.com:{port}", False),
    ],
)
async def test_a_server_may_add_its_own_port_to_the_client_s_host(setting: str, authority: str, is_moved: bool) -> None:
    """nginx does so in the redirects that it makes by itself, and nobody but us can reach that port (``port_in_redirect``)."""
    options: dict[str, object] = {"upstream__host_header": setting, "listen__allowed_hosts": "mcp.example.com"}
    async with RawUpstream() as upstream, running_sidecar(upstream.url, **options) as sidecar:
        told = f"http://{authority.format(port=upstream.port)}/mcp/"
        upstream.answer_with(f"HTTP/1.1 301 Moved\r\nLocation: {told}\r\nContent-Length: 0\r\n\r\n".encode())
        answer = await raw_exchange(sidecar.port, post(sidecar.port, "mcp.example.com", "X-Forwarded-Proto: https"))
        assert header(answer.data, "Location") == ("https://mcp.example.com/mcp/" if is_moved else told)


@pytest.mark.parametrize("path", ["/mcp", "/x"])
async def test_a_challenge_names_the_client_s_origin(path: str) -> None:
    """Else an OAuth client goes on with the server itself, past the sidecar and perhaps into nothing."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        challenge = f'Bearer error="invalid_token", resource_metadata="{upstream.origin}{METADATA}"'
        upstream._answers = [f"HTTP/1.1 401 No\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n".encode()]
        answer = await raw_exchange(sidecar.port, post(sidecar.port, "localhost:1", path=path))
        moved = f'Bearer error="invalid_token", resource_metadata="http://localhost:1{METADATA}"'
        assert header(answer.data, "WWW-Authenticate") == moved


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"for": b"1.2.3.4, 127.0.0.1", "proto": b"https", "host": b"mcp.example.com", "port": b"443"}),
        (UNTRUSTED, {"for": b"127.0.0.1", "proto": b"http", "host": b"localhost", "port": None}),
    ],
)
@pytest.mark.parametrize("path", ["/mcp", "/x"])
async def test_forwarding_headers_of_strangers_are_replaced(
    path: str, settings: dict[str, object], expected: dict[str, bytes | None]
) -> None:
    """A trusted proxy's are passed on and added to; of anybody else's the upstream sees nothing."""
    said = ("For: 1.2.3.4", "Proto: https", "Host: mcp.example.com", "Port: 443")
    lines = [f"X-Forwarded-{line}" for line in said]
    async with RawUpstream() as upstream, running_sidecar(upstream.url, **settings) as sidecar:
        request = post(sidecar.port, "localhost", *lines, "Forwarded: for=1.2.3.4", path=path)
        await raw_exchange(sidecar.port, request)
        for name, value in expected.items():
            assert upstream.last.values(f"x-forwarded-{name}") == ([] if value is None else [value])
        assert bool(upstream.last.values("forwarded")) is (settings == {})


@pytest.mark.parametrize(
    ("status", "body", "is_told"),
    [
        (421, b"Invalid Host header", True),
        (421, b"", True),
        (403, b"Forbidden: Host header is not allowed", True),
        (403, b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"Invalid Host: 127.0.0.1"},"id":null}', True),
        (403, b"insufficient scope", False),
        (403, b"ask your host", False),
        (404, b"Invalid Host header", False),
    ],
)
@pytest.mark.parametrize("path", ["/mcp", "/x"])
async def test_a_refused_host_is_told(path: str, status: int, body: bytes, is_told: bool) -> None:
    """Whoever reads the log learns which setting helps; the answer passes as it is."""
    answer = b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
    async with RawUpstream(answer) as upstream, running_sidecar(upstream.url) as sidecar:
        got = await raw_exchange(sidecar.port, raw_post(sidecar.port, b"{}", path=path))
        assert (got.status, got.data.partition(b"\r\n\r\n")[2]) == (status, body)
        assert sidecar.of(UpstreamRefusesHost) == ([UpstreamRefusesHost(status)] if is_told else [])


@pytest.mark.parametrize(("setting", "is_clients"), [("client", True), ("auto", False), ("mcp.example", False)])
async def test_the_client_s_host_is_passed_where_that_is_wanted(setting: str, is_clients: bool) -> None:
    """With every request of its own, and with those that a heal makes for it."""
    async with connected(upstream__host_header=setting, check_host=False) as (upstream, sidecar, client):
        upstream.forget()
        assert (await client.tool("charge")).status == 200
        own = f"127.0.0.1:{sidecar.port}"
        hosts = {received.header("host") for received in upstream.ledger.arrivals}
        assert len(upstream.ledger.initializes) == 2
        assert (hosts == {own}) is is_clients
        assert len(hosts) == 1


@pytest.mark.parametrize(("host", "is_told"), [("mcp.example.com", True), ("localhost", False)])
@pytest.mark.parametrize("path", ["/mcp", "/x"])
async def test_a_host_that_we_refuse_is_told(path: str, host: str, is_told: bool) -> None:
    """A proxy on this machine that passes on the name it was asked by gets 403 for everything: the log names the setting."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        got = await raw_exchange(sidecar.port, post(sidecar.port, host, path=path))
        assert (got.status == 403) is is_told
        assert sidecar.of(HostRefused) == [HostRefused()] * is_told


async def test_our_own_refusal_of_a_host_is_not_the_upstream_s() -> None:
    """That one has another setting."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        got = await raw_exchange(sidecar.port, post(sidecar.port, "evil.example"))
        assert got.status == 403
        assert sidecar.of(UpstreamRefusesHost) == []


@pytest.mark.parametrize(
    ("origin", "told"),
    [("HTTPS://App.Example:443", "https://app.example"), ("null", "null"), ("x y\x7f", ""), ("http://[", "")],
)
async def test_a_refused_origin_is_told_in_canonical_form(origin: str, told: str) -> None:
    """As it would stand in the setting that allows it; nothing else of what a client has written."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        got = await raw_exchange(sidecar.port, raw_post(sidecar.port, b"{}", f"Origin: {origin}"))
        assert got.status in (400, 403)
        assert sidecar.of(OriginRefused) == ([OriginRefused(told)] if got.status == 403 else [])


@pytest.mark.parametrize(
    ("setting", "named"), [("client", "mcp.example.com"), ("other.example:1", "other.example:1"), ("auto", None)]
)
async def test_the_host_that_the_upstream_gets(setting: str, named: str | None) -> None:
    """The client's where that is wanted, whichever way a request takes: a call, a heal's requests, a stream, another path."""
    options: dict[str, object] = {"upstream__host_header": setting, "listen__allowed_hosts": "mcp.example.com"}
    async with (
        FakeUpstream(check_host=False) as upstream,
        running_sidecar(upstream.url, **options) as sidecar,
        McpClient(sidecar.url, headers={"Host": "mcp.example.com"}) as client,
    ):
        await client.initialize()
        for _ in range(3):
            await client.tool("echo", text="x")
        await upstream.restart()
        await client.tool("echo", text="x")
        async with await client.get_stream() as stream:
            assert stream.status == 200
        assert client.http is not None
        async with client.http.get(f"http://{sidecar.address}/echo", headers={"Host": "mcp.example.com"}):
            pass
        await client.delete()
        hosts = {arrival.header("host") for arrival in upstream.ledger.arrivals}
        assert hosts == {named or f"127.0.0.1:{upstream.port}"}
        assert {arrival.http_method for arrival in upstream.ledger.arrivals} == {"POST", "GET", "DELETE"}


@pytest.mark.parametrize("settings", [{}, UNTRUSTED])
async def test_who_is_trusted_keeps_idle_connections(settings: dict[str, object]) -> None:
    """An edge's are closed by the edge; anybody else's do not stay for an hour."""
    async with connected(**settings) as (_, sidecar, client):
        await client.tool("echo")
        connections = sidecar._server.connections
        assert connections
        for now in (1e6, 1e6 + 76.0):
            for connection in list(connections):
                connection.look(now)
        assert all(connection.transport.is_closing() for connection in connections) is (settings == UNTRUSTED)  # type: ignore[attr-defined]
