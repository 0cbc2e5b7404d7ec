"""What passes is not changed: targets, headers, status lines, framing and bodies, byte for byte in both directions."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from mcp_sidecar.facts import SidecarFault
from tests.support.client import new_http, raw_exchange
from tests.support.raw_upstream import OK, Conversation, Passed, RawUpstream, pass_through
from tests.support.sidecar import running_sidecar

HOST = b"Host: localhost\r\nConnection: close\r\n"


def get(target: str, *headers: str) -> bytes:
    return request("GET", target, *headers)


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{method} {target} HTTP/1.1\r\n".encode() + HOST + lines.encode() + b"\r\n" + body


def answer(status_line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status_line}", *headers, "", ""]).encode() + body


def client_fields(passed: Passed) -> list[bytes]:
    """The client's header lines, the one about its own connection left out."""
    lines = passed.head.split(b"\r\n")[1:]
    return [line for line in lines if not line.lower().startswith(b"connection:")]


# -- the request line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/x", "/mcp"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "OPTIONS", "DELETE", "TRACE", "PROPFIND", "REPORT"])
async def test_every_method_reaches_the_upstream(method: str, path: str) -> None:
    """A method is none of the sidecar's business, on the endpoint and elsewhere."""
    passed = await pass_through(request(method, path), answer("200 OK", "Content-Length: 0"))
    assert passed.request.line == f"{method} {path} HTTP/1.1".encode()
    assert passed.head.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "//x",
        "//localhost/x",
        "/a%2Fb%2f",
        "/a/../b/./c",
        "/%2e%2e/x",
        "/x?a=b&a=c",
        "/x?a=b?c=/d",
        "/x?q=%20+%2B&r='",
        "/caf%C3%A9?n=%E9",
        "/%zz%",
        "/a;p=1,2",
        '/a|b"c<d>e^f`g{h}',
        "/a\\b[1]",
        "/mcp//",
        "//mcp",
        "/mcp/x",
        "/mcp%2F?x",
        "/MCP",
        "/.well-known/oauth-protected-resource/mcp",
    ],
)
async def test_a_target_passes_as_it_is(target: str) -> None:
    """Nothing is decoded, encoded, merged or resolved in a path or a query."""
    passed = await pass_through(get(target))
    assert passed.request.line == f"GET {target} HTTP/1.1".encode()


async def test_an_absolute_target_becomes_a_path() -> None:
    """A request in proxy form is for the upstream all the same, whatever host it names."""
    passed = await pass_through(get("http://elsewhere.example/x?y"))
    assert passed.request.line == b"GET /x?y HTTP/1.1"
    assert passed.request.values("host") == [passed.request.values("host")[0]]
    assert b"elsewhere" not in passed.request.head


@pytest.mark.parametrize("line", ["OPTIONS * HTTP/1.1", "CONNECT localhost:80 HTTP/1.1", "CONNECT /x HTTP/1.1"])
async def test_what_is_no_path_is_refused(line: str) -> None:
    """The sidecar is no tunnel and has no options of its own; neither reaches the upstream."""
    passed = await pass_through(line.encode() + b"\r\n" + HOST + b"\r\n")
    assert passed.answer.status == 400
    assert passed.requests == []
    assert passed.sidecar.of(SidecarFault) == []


# -- the client's headers ---------------------------------------------------------------------------------------------


async def test_request_headers_pass_in_order_with_their_spelling() -> None:
    """Names keep their case, repeated headers stay apart, UTF-8 stays as it is; only forwarding headers are added."""
    sent = ["x-b: 2", "X-A: 1", "user-AGENT: me/1", "Cookie: a=1", "Cookie: b=2", "X-Accent: café", "x-empty:"]
    passed = await pass_through(get("/x", *sent))
    lines = passed.request.head.split(b"\r\n")[2:-2]
    expected = [*sent[:-1], "x-empty: "]
    assert lines[: len(sent)] == [line.encode() for line in expected]
    assert [line.split(b":")[0] for line in lines[len(sent) :]] == [
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"X-Forwarded-Host",
    ]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/x", "/mcp"])
async def test_no_header_is_made_up(method: str, path: str) -> None:
    """A client that sends no User-Agent, Accept, Accept-Encoding or Content-Type has a reason."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"d"}}}'
    length = [f"Content-Length: {len(body)}"] if method == "POST" else []
    passed = await pass_through(request(method, path, *length, body=body if method == "POST" else b""))
    names = {name.lower() for name, _ in passed.request.fields}
    assert names <= {b"host", b"content-length", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}


async def test_the_upstream_sees_its_own_host() -> None:
    """Python servers answer 421 and rmcp 403 to a Host that is not theirs."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        await raw_exchange(sidecar.port, get("/x"))
        assert upstream.last.values("host") == [f"127.0.0.1:{upstream.port}".encode()]
        assert upstream.last.values("x-forwarded-host") == [b"localhost"]
        assert upstream.last.values("x-forwarded-proto") == [b"http"]
        assert upstream.last.values("x-forwarded-for") == [b"127.0.0.1"]


async def test_forwarding_headers_of_an_edge_are_kept() -> None:
    """The edge in front saw the client; the sidecar only appends whom it saw itself."""
    sent = ["X-Forwarded-For: 9.9.9.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: mcp.example", "Forwarded: for=1"]
    passed = await pass_through(get("/x", *sent))
    assert passed.request.values("x-forwarded-for") == [b"9.9.9.9, 127.0.0.1"]
    assert passed.request.values("x-forwarded-proto") == [b"https"]
    assert passed.request.values("x-forwarded-host") == [b"mcp.example"]
    assert passed.request.values("forwarded") == [b"for=1"]


async def test_hop_by_hop_headers_end_here() -> None:
    """What is about one connection is not passed on, and neither is what ``Connection`` names, in both directions."""
    sent = (
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
        b"TE: trailers\r\nProxy-Authorization: z\r\nProxy-Connection: keep-alive\r\nX-Stays: 1\r\n\r\n"
    )
    back = answer(
        "200 OK",
        "Connection: X-Back",
        "X-Back: 1",
        "Keep-Alive: timeout=1",
        "Proxy-Authenticate: q",
        "Trailer: X-T",
        "X-Stays: 1",
        "Content-Length: 0",
    )
    passed = await pass_through(sent, back)
    names = {name.lower() for name, _ in passed.request.fields}
    assert not names & {b"connection", b"x-hop", b"keep-alive", b"te", b"proxy-authorization", b"proxy-connection"}
    assert passed.request.values("x-stays") == [b"1"]
    assert client_fields(passed) == [b"X-Stays: 1", b"Content-Length: 0"]


async def test_credentials_pass_as_they_came() -> None:
    """Authorization, cookies and Origin belong to the upstream."""
    sent = ["Authorization: Bearer a.b.c", "Cookie: s=1", "Origin: http://localhost"]
    passed = await pass_through(get("/x", *sent))
    assert passed.request.values("authorization") == [b"Bearer a.b.c"]
    assert passed.request.values("cookie") == [b"s=1"]
    assert passed.request.values("origin") == [b"http://localhost"]


async def test_bytes_that_are_not_utf8_do_no_harm() -> None:
    """A header value in another encoding passes byte for byte both ways, and nothing else of the message is touched."""
    passed = await pass_through(
        b"GET /x HTTP/1.1\r\n" + HOST + b"X-Old: caf\xe9\r\nX-Next: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Old: caf\xe9\r\nX-Next: 1\r\nContent-Length: 2\r\n\r\nok",
    )
    assert passed.request.values("x-old") == [b"caf\xe9"]
    assert passed.request.values("x-next") == [b"1"]
    assert b"X-Old: caf\xe9\r\nX-Next: 1\r\n" in passed.head
    assert passed.body == b"ok"


# -- the upstream's answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status_line", ["200 OK", "200 Fine, thanks", "299 Strange", "418 I'm a teapot", "599 x", "200 "]
)
async def test_status_and_reason_pass(status_line: str) -> None:
    """Also those that no table knows."""
    passed = await pass_through(get("/x"), answer(status_line, "Content-Length: 2", body=b"ok"))
    assert passed.head.split(b"\r\n")[0] == f"HTTP/1.1 {status_line}".encode()
    assert passed.body == b"ok"


async def test_response_headers_pass_in_order_with_their_spelling() -> None:
    """Repeated Set-Cookie and Link stay apart; no Date, Server or Content-Type is added."""
    sent = [
        "x-b: 2",
        "set-COOKIE: a=1",
        "Set-Cookie: b=2",
        "Link: <1>",
        "Link: <2>",
        "X-Accent: café",
        "content-length: 2",
    ]
    passed = await pass_through(get("/x"), answer("200 OK", *sent, body=b"ok"))
    assert client_fields(passed) == [line.encode() for line in sent]


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        pytest.param(answer("204 No Content", "X-A: 1"), b"", id="204"),
        pytest.param(answer("304 Not Modified", 'ETag: "1"'), b"", id="304"),
        pytest.param(answer("200 OK", "Content-Length: 0"), b"", id="empty"),
        pytest.param(
            answer("103 Early Hints", "Link: <1>") + answer("200 OK", "Content-Length: 2", body=b"ok"), b"ok", id="103"
        ),
        pytest.param(answer("100 Continue") + answer("200 OK", "Content-Length: 2", body=b"ok"), b"ok", id="100"),
        pytest.param(
            answer("200 OK", "Transfer-Encoding: chunked", "Trailer: X-T", body=b"3;x=1\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"),
            b"3\r\nabc\r\n0\r\n\r\n",
            id="trailers-dropped",
        ),
        pytest.param(
            answer(
                "200 OK", "Content-Encoding: gzip", "Content-Length: 31", body=gzip.compress(b"hello there", mtime=0)
            ),
            gzip.compress(b"hello there", mtime=0),
            id="compressed",
        ),
        pytest.param(
            answer("200 OK", "Content-Encoding: gzip", "Content-Length: 4", body=b"nope"), b"nope", id="not-even-gzip"
        ),
    ],
)
async def test_bodies_and_their_absence_pass(back: bytes, expected: bytes) -> None:
    """An answer is framed as it was, and nothing is decompressed; informational answers are for one hop."""
    passed = await pass_through(get("/x", "Accept-Encoding: gzip"), back)
    assert passed.request.values("accept-encoding") == [b"gzip"]
    assert passed.body == expected
    assert not passed.answer.timed_out


@pytest.mark.parametrize("path", ["/x", "/mcp"])
async def test_head_keeps_the_length_of_what_it_does_not_send(path: str) -> None:
    """The headers of a HEAD are those of the GET, and the connection goes on."""
    back = answer("200 OK", "Content-Length: 55", "Content-Type: a/b")
    passed = await pass_through(request("HEAD", path), back)
    assert client_fields(passed) == [b"Content-Length: 55", b"Content-Type: a/b"]
    assert passed.body == b""


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """Such an answer of an old server becomes a chunked one."""

    async def play(conversation: Conversation) -> None:
        await conversation.send(answer("200 OK", "X-A: 1", body=b"hello"))
        conversation.close()

    passed = await pass_through(get("/x"), play)
    assert passed.body == b"5\r\nhello\r\n0\r\n\r\n"


async def test_an_upgrade_that_nobody_asked_for_is_no_answer() -> None:
    """``Upgrade`` is not passed on, so that 101 would leave the client in a protocol that it never chose."""
    passed = await pass_through(get("/x"), answer("101 Switching Protocols", "Upgrade: x", "Connection: upgrade"))
    assert passed.answer.status == 502


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_broken_body_is_never_ended_as_if_whole(framing: str) -> None:
    """The client must be able to tell a part from the whole."""
    part = b"5\r\nhello\r\n" if "chunked" in framing else b"hello"

    async def play(conversation: Conversation) -> None:
        await conversation.send(answer("200 OK", framing, body=part))
        conversation.close()

    passed = await pass_through(get("/x"), play)
    assert passed.body == part


async def test_a_broken_body_without_framing_is_reset() -> None:
    """To an HTTP/1.0 client a closed connection is a clean end; a reset is not."""

    async def play(conversation: Conversation) -> None:
        await conversation.send(answer("200 OK", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"))
        conversation.close()

    passed = await pass_through(b"GET /x HTTP/1.0\r\nHost: localhost\r\n\r\n", play)
    assert passed.answer.reset


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(["X: " + "a" * 40_000], 200, id="one"),
        pytest.param(["X: " + "a" * 40_000] * 2, 502, id="two"),
        pytest.param(["X: 1"] * 200, 200, id="many"),
        pytest.param(["X: 1"] * 257, 502, id="too-many"),
    ],
)
async def test_the_upstreams_head_is_bounded_as_the_clients_is(headers: list[str], status: int) -> None:
    """``limits.max_header_bytes`` for all of them together, and 256 of them."""
    passed = await pass_through(get("/x"), answer("200 OK", *headers, "Content-Length: 0"))
    assert passed.answer.status == status


# -- redirects and other URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/x", "/mcp"])
@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{up}/y?z=1#f", "http://localhost/y?z=1#f"),
        ("/y", "/y"),
        ("y", "y"),
        ("https://elsewhere.example/y", "https://elsewhere.example/y"),
        ("{up}.evil.example/y", "{up}.evil.example/y"),
        ("HTTP://127.0.0.1:{port}/y", "http://localhost/y"),
        ("//127.0.0.1:{port}/y", "http://localhost/y"),
    ],
)
async def test_a_redirect_is_passed_on_and_leads_back_here(path: str, location: str, expected: str) -> None:
    """Redirects are not followed; a Location on the upstream's origin is moved to where the client came in."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        names = {"up": upstream.origin, "port": upstream.port}
        upstream.answer_with(answer("307 T", f"Location: {location.format(**names)}", "Content-Length: 0"))
        got = await raw_exchange(sidecar.port, get(path))
        assert f"Location: {expected.format(**names)}\r\n".encode() in got.data
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("mode", ["heal", "rewrite", "observe"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_redirect_of_the_endpoint_leads_past_the_sidecar(method: str, mode: str) -> None:
    """In no mode: whoever follows one would be gone, and ``observe`` could count nothing any more."""
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}' if method == "POST" else b""
    asked = request(method, "/mcp", "Mcp-Session-Id: mine", f"Content-Length: {len(ping)}") + ping
    async with RawUpstream() as upstream, running_sidecar(upstream.url, mode=mode) as sidecar:
        upstream.answer_with(answer("307 T", f"Location: {upstream.origin}/mcp/", "Content-Length: 0"))
        got = await raw_exchange(sidecar.port, asked)
        assert b"Location: http://localhost/mcp/\r\n" in got.data


async def test_a_public_url_is_where_redirects_lead() -> None:
    """Behind an edge the Host that arrives here may be anything."""
    async with (
        RawUpstream() as upstream,
        running_sidecar(upstream.url, listen__public_url="https://mcp.example") as sidecar,
    ):
        upstream.answer_with(answer("302 F", f"Location: {upstream.origin}/y", "Content-Length: 0"))
        got = await raw_exchange(sidecar.port, get("/x"))
        assert b"Location: https://mcp.example/y\r\n" in got.data


# -- the client's body ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/x", "/mcp"])
@pytest.mark.parametrize("method", ["PUT", "GET", "OPTIONS"])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 3", b"abc"),
        ("Content-Length: 4", b"\x00\xff\r\n"),
        ("Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
    ],
)
async def test_a_request_body_passes_with_its_framing(method: str, path: str, framing: str, body: bytes) -> None:
    """A length stays a length, chunks stay chunks."""
    passed = await pass_through(request(method, path, framing, body=body))
    name, _, value = framing.partition(": ")
    assert passed.request.values(name) == [value.encode()]
    assert bytes(passed.request.body) == body
    assert passed.answer.status == 200


async def test_trailers_of_a_request_end_here() -> None:
    """They are for one hop, as the announcement of them is."""
    body = b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
    passed = await pass_through(request("PUT", "/x", "Transfer-Encoding: chunked", "Trailer: X-T", body=body))
    assert bytes(passed.request.body) == b"3\r\nabc\r\n0\r\n\r\n"
    assert passed.request.values("trailer") == []


async def test_both_bodies_stream() -> None:
    """Every part reaches the other side before the next one is written, in both directions at once."""

    async def play(conversation: Conversation) -> None:
        await conversation.send(answer("200 OK", "Transfer-Encoding: chunked"))
        for _ in range(3):
            part = await conversation.read_some()
            await conversation.send(part.upper())
        await conversation.send(b"0\r\n\r\n")

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(request("PUT", "/x", "Transfer-Encoding: chunked"))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        for word in (b"one", b"two"):
            writer.write(b"3\r\n" + word + b"\r\n")
            assert await asyncio.wait_for(reader.readexactly(8), 5) == b"3\r\n" + word.upper() + b"\r\n"
        writer.close()


async def test_an_early_answer_passes_before_the_body_is_sent() -> None:
    """An upstream that has seen enough says so, and the client need not send the rest."""

    async def play(conversation: Conversation) -> None:
        await conversation.send(answer("413 Too Large", "Content-Length: 2", "Connection: close", body=b"no"))
        await conversation.client_left.wait()

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(request("PUT", "/x", "Content-Length: 1000000") + b"x" * 1000)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 413")
        assert await reader.readexactly(2) == b"no"
        writer.close()


async def test_a_client_that_leaves_ends_its_upstream_request() -> None:
    """In the middle of its upload, which is never ended as if whole."""

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        _, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(request("PUT", "/x", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        await upstream.until(lambda up: bool(up.requests) and b"abc" in up.last.body)
        writer.close()
        await upstream.until(lambda up: up.last.broken)
        assert bytes(upstream.last.body) == b"3\r\nabc\r\n"


async def test_a_client_that_leaves_is_noticed_while_the_upstream_thinks() -> None:
    """The upstream learns at once that nobody waits for its answer."""
    left = asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.client_left.wait()
        left.set()

    async with RawUpstream(play) as upstream, running_sidecar(upstream.url) as sidecar:
        _, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(get("/x"))
        await upstream.until(lambda up: bool(up.requests))
        writer.close()
        await asyncio.wait_for(left.wait(), 5)


@pytest.mark.parametrize("path", ["/x", "/mcp"])
async def test_a_client_that_waits_for_continue_gets_it(path: str) -> None:
    """``Expect`` is met here, and only when the body is wanted."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(request("POST", path, f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 OK")
        assert bytes(upstream.last.body) == body
        assert upstream.last.values("expect") == []
        writer.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(["Content-Length: 99999999"], 413, id="too-large"),
        pytest.param(["Content-Length: 3", "Origin: http://evil.example"], 403, id="origin"),
    ],
)
async def test_a_body_that_is_not_wanted_is_not_asked_for(headers: list[str], status: int) -> None:
    """A client that waits for permission gets the refusal instead of it."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(request("POST", "/mcp", "Expect: 100-continue", *headers))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(f"HTTP/1.1 {status}".encode())
        writer.close()


# -- connections ------------------------------------------------------------------------------------------------------


async def test_of_pipelined_requests_the_first_is_answered() -> None:
    """And says that it is the last one of its connection: what came before it had its answer is not interpreted."""
    sent = (
        b"PUT /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
        b"GET /2 HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/3")
    )
    passed = await pass_through(sent, answer("200 OK", "Content-Length: 1", body=b"1"))
    assert [r.line.split()[1] for r in passed.requests] == [b"/1"]
    assert passed.answer.data.count(b"HTTP/1.1") == 1
    assert passed.head.endswith(b"Connection: close")
    assert passed.body == b"1"


@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\n"])
async def test_an_http10_client_is_served(connection: str) -> None:
    """It gets no chunks, and its connection stays open only if it asked for that and the length is known."""
    async with RawUpstream(OK) as upstream, running_sidecar(upstream.url) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        writer.write(f"GET /x HTTP/1.0\r\nHost: localhost\r\n{connection}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK")
        assert await reader.readexactly(2) == b"ok"
        assert (b"keep-alive" in head) is bool(connection)
        if not connection:
            assert await reader.read() == b""
        writer.close()


async def test_an_http10_client_gets_a_chunked_answer_without_chunks() -> None:
    """The end of the connection is the end of the body."""
    back = answer("200 OK", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")
    passed = await pass_through(b"GET /x HTTP/1.0\r\nHost: localhost\r\n\r\n", back)
    assert passed.body == b"abc"


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize(
    ("method", "body"), [("GET", b""), ("POST", b'{"jsonrpc":"2.0","id":1,"method":"server/discover"}')]
)
async def test_an_offer_to_upgrade_is_declined(protocol: str, method: str, body: bytes) -> None:
    """Java's client offers h2c with its first request; it is served in HTTP/1.1, and so is the next one."""
    async with RawUpstream() as upstream, running_sidecar(upstream.url) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        offer = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMA\r\n"
        head = f"{method} /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        for part in (offer, ""):
            writer.write((head + part + "\r\n").encode() + body)
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200 OK")
            assert await reader.readexactly(2) == b"ok"
        assert [bytes(request.body) for request in upstream.requests] == [body, body]
        assert all(not request.values("upgrade") for request in upstream.requests)
        writer.close()


@pytest.mark.long
async def test_a_slow_reader_slows_the_upstream_down() -> None:
    """What the client does not take is not read from the upstream: memory does not grow with the answer."""
    chunk, count = b"x" * 65536, 1000
    stuck, sent = asyncio.Event(), 0

    async def play(conversation: Conversation) -> None:
        nonlocal sent
        await conversation.send(answer("200 OK", f"Content-Length: {len(chunk) * count}"))
        for _ in range(count):
            try:
                await asyncio.wait_for(conversation.send(chunk), None if stuck.is_set() else 0.3)
            except TimeoutError:
                stuck.set()
            sent += len(chunk)

    async with (
        RawUpstream(play) as upstream,
        running_sidecar(upstream.url) as sidecar,
        new_http() as http,
        http.get(f"http://{sidecar.address}/x") as response,
    ):
        await asyncio.wait_for(stuck.wait(), 5)
        assert sent < len(chunk) * count / 2
        assert len(await response.read()) == len(chunk) * count
