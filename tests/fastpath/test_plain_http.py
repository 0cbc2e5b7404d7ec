"""Whatever the strict reader takes, aiohttp's parsers read in the same way; most of what it does not take is none of its business."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import (
    HttpRequestParser,
    HttpRequestParserPy,
    HttpResponseParser,
    HttpResponseParserPy,
)
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mcp_sidecar.fastpath import plain_http
from mcp_sidecar.wire.framing import LAST_CHUNK, chunk

LINE = b"POST /mcp HTTP/1.1\r\n"
TARGETS = {LINE: "/mcp", b"POST /mcp/ HTTP/1.1\r\n": "/mcp/"}
LIMIT = 1 << 20

FIRST_LINES = [
    LINE,
    b"POST /mcp/ HTTP/1.1\r\n",
    b"post /mcp HTTP/1.1\r\n",
    b"POST  /mcp HTTP/1.1\r\n",
    b"POST /mcp HTTP/1.0\r\n",
    b"POST /mcp HTTP/1.1\n",
    b"\r\nPOST /mcp HTTP/1.1\r\n",
    b"GET /mcp HTTP/1.1\r\n",
]
STATUS_LINES = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 All is well\r\n",
    b"HTTP/1.1 200 \r\n",
    b"HTTP/1.1 200\r\n",
    b"HTTP/1.1 200  OK \r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 100 Continue\r\n",
    b"HTTP/1.1 200 OK\n",
]
USUAL = [
    b"X-Plain: a b,c;d\r\n",
    b"x:y\r\n",
    b"Mcp-Session-Id: 0123\r\n",
    b"Connection: keep-alive\r\n",
    b"Content-Type: application/json\r\n",
    b"Authorization: Bearer a.b.c\r\n",
]
HOSTS = [b"Host: a.b\r\n", b"host: [::1]:8\r\n", b"Host: a b\r\n", b"Host: a,b@c/?\r\n"]
FRAMING = [
    b"Content-Length: 3\r\n",
    b"content-length:3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
]
ODD = [
    b"Content-Length: 03\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: 3, 3\r\n",
    b"Content-Length: 3 \r\n",
    b"Content-Length: \t3\r\n",
    b"Content-Length:\r\n 3\r\n",
    b"Content-Length : 3\r\n",
    b"Content_Length: 3\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: Chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Trailer: x\r\n",
    b"Sec-WebSocket-Key1: x\r\n",
    b"X-Empty:\r\n",
    b"X-Folded: a\r\n b\r\n",
    b" X-Blank: a\r\n",
    b"X-Byte: \xe9\r\n",
    b"X-Nul: \x00\r\n",
    b"X-Cr: a\rb\r\n",
    b"X-Lf: a\nb\r\n",
    b"X-Bare: a\n",
    b"X-Tab: a\tb\r\n",
    b"no colon\r\n",
    b": no name\r\n",
    b"\r\n",
]
TAILS = [
    b"",
    b"abc",
    b"ab",
    b"abcd",
    b"abc\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"abcPOST /x HTTP/1.1\r\n\r\n",
]


def messages(first_lines: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly fine messages: usual headers and a framing, sometimes with something odd, and bytes changed at random."""

    @st.composite
    def one(draw: st.DrawFn) -> bytes:
        framing = draw(st.sampled_from(FRAMING))
        lines = [
            draw(st.sampled_from(HOSTS)),
            framing,
            *draw(st.lists(st.sampled_from(USUAL), max_size=4, unique=True)),
        ]
        first, tail = first_lines[0], TAILS[1] if b"3" in framing else TAILS[0] if b"0" in framing else TAILS[5]
        is_fine = draw(st.booleans())
        if not is_fine and draw(st.booleans()):
            lines += draw(st.lists(st.sampled_from([*ODD, *FRAMING]), max_size=2))
        if not is_fine and draw(st.booleans()):
            first, tail = draw(st.sampled_from(first_lines)), draw(st.sampled_from(TAILS))
        data = first + b"".join(draw(st.permutations(lines))) + b"\r\n" + tail
        if is_fine:
            return data
        at = draw(st.integers(0, len(data)))
        put = draw(
            st.sampled_from([b"", b" ", b"\r", b"\n", b"\r\n", b"\x00", b"\x7f", b"\xff", b":", b"(", b"\t", b"0"])
        )
        return data[:at] + put + data[at + draw(st.integers(0, 2)) :]

    return one()


@pytest.fixture(name="loop", scope="module")
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def parsed(parser: Any, data: bytes, loop: asyncio.AbstractEventLoop, **options: Any) -> tuple[Any, bytes, bool]:
    """The only message in the bytes, its body, and whether that is whole."""
    made = parser(
        BaseProtocol(loop),
        loop,
        LIMIT,
        max_line_size=LIMIT,
        max_field_size=LIMIT,
        max_headers=200,
        auto_decompress=False,
        **options,
    )
    found, upgraded, rest = made.feed_data(data)
    assert len(found) == 1
    assert (upgraded, rest) == (False, b"")
    message, payload = found[0]
    return message, payload.read_nowait(-1) if payload.total_bytes else b"", payload.is_eof()


@pytest.mark.long
@pytest.mark.parametrize("parser", [HttpRequestParser, HttpRequestParserPy])
@settings(max_examples=500)
@given(data=messages(FIRST_LINES))
def test_a_request_that_is_taken_is_read_alike(loop: asyncio.AbstractEventLoop, parser: Any, data: bytes) -> None:
    """The same target, headers in the same order, and the same body: no other request can hide in it."""
    request = plain_http.read_request(data, TARGETS)
    event(f"taken: {request is not None}")
    if request is None:
        return
    message, body, is_whole = parsed(parser, data[: request.size], loop)
    assert (message.method, message.path, message.version) == ("POST", request.target, (1, 1))
    assert [(name.decode(), value.decode()) for name, value in message.raw_headers] == request.pairs
    assert (message.should_close, message.chunked, message.upgrade, message.compression) == (False, False, False, None)
    assert (body, is_whole) == (data[request.body_at : request.size], len(data) >= request.size)


@pytest.mark.long
@pytest.mark.parametrize("parser", [HttpResponseParser, HttpResponseParserPy])
@settings(max_examples=500)
@given(data=messages(STATUS_LINES))
def test_an_answer_that_is_taken_is_read_alike(loop: asyncio.AbstractEventLoop, parser: Any, data: bytes) -> None:
    """The same reason, headers and body, and the end of it in the same place."""
    answer = plain_http.read_answer(data)
    body = None
    if answer is not None and answer.length is None:
        body = plain_http.whole_chunks(data, answer.body_at)
    elif answer is not None and len(data) == answer.body_at + (answer.length or 0):
        body = data[answer.body_at :]
    event(f"taken: {body is not None}")
    if answer is None or body is None:
        return
    message, read, is_whole = parsed(parser, data, loop, read_until_eof=True)
    assert (message.code, message.reason, message.version) == (200, answer.reason, (1, 1))
    assert [(name.decode(), value.decode()) for name, value in message.raw_headers] == answer.pairs
    assert (message.should_close, message.upgrade, message.compression) == (False, False, None)
    assert (read, is_whole) == (body, True)


@pytest.mark.parametrize("odd", ODD)
def test_nothing_odd_is_taken(odd: bytes) -> None:
    """What parsers disagree about, or what changes the framing, is left to a parser."""
    data = LINE + b"Host: a\r\n" + odd + b"Content-Length: 3\r\n\r\nabc"
    is_told_in_answers_only = odd.startswith((b"Content_Length", b"\r\n"))
    assert is_told_in_answers_only or plain_http.read_request(data, TARGETS) is None


@pytest.mark.parametrize(
    ("data", "size"),
    [
        pytest.param(LINE + b"Host: a\r\nContent-Length: 3\r\n\r\nabc", 0, id="whole"),
        pytest.param(LINE + b"Host: a\r\nContent-Length: 3\r\n\r\na", 2, id="a part of the body"),
        pytest.param(LINE + b"Host: a\r\nContent-Length: 3\r\n\r\nabcd", -1, id="more than the body"),
    ],
)
def test_the_size_is_told(data: bytes, size: int) -> None:
    """So that the caller sees what is missing, or too much."""
    request = plain_http.read_request(data, TARGETS)
    assert request is not None
    assert request.size - len(data) == size


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(LINE[:-1], id="half a line"),
        pytest.param(LINE + b"Host: a\r\n", id="half a head"),
        pytest.param(LINE + b"\r\n", id="no header"),
        pytest.param(LINE + b"Content-Length: 0\r\n\r\n", id="no host"),
        pytest.param(LINE + b"Host: a\r\n\r\n", id="no length"),
        pytest.param(LINE + b"Host: a\r\nAuthorization: NTLM x\r\nContent-Length: 0\r\n\r\n", id="a connection's user"),
        pytest.param(LINE + b"Host: a\r\nhost: b\r\nContent-Length: 0\r\n\r\n", id="a name twice"),
        pytest.param(LINE + b"Host: a\r\nContent-Length: 9999999999\r\n\r\n", id="a length beyond all bounds"),
        pytest.param(
            LINE + b"Host: a\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(64)) + b"Content-Length: 0\r\n\r\n",
            id="many",
        ),
    ],
)
def test_what_is_not_whole_or_not_plain_is_no_request(data: bytes) -> None:
    """The reader says nothing about it."""
    assert plain_http.read_request(data, TARGETS) is None


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"Content-Type: a/b\r\n", id="ends with the connection"),
        pytest.param(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", id="two framings"),
        pytest.param(b"Transfer-Encoding: gzip\r\n", id="another coding"),
        pytest.param(b"Content-Length: 3\r\nConnection: close\r\n", id="closes"),
        pytest.param(b"Content-Length: 3\r\nContent-Encoding: br\r\n", id="encoded"),
        pytest.param(b"Content-Length: 3\r\nWWW-Authenticate: Negotiate x\r\n", id="a connection's user"),
    ],
)
def test_an_answer_without_a_plain_end_is_not_taken(head: bytes) -> None:
    """Its end is a parser's matter."""
    assert plain_http.read_answer(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nabc") is None


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        pytest.param(b"0\r\n\r\n", b"", id="empty"),
        pytest.param(b"3\r\nabc\r\n0\r\n\r\n", b"abc", id="one"),
        pytest.param(b"1\r\na\r\nA\r\n0123456789\r\n0\r\n\r\n", b"a0123456789", id="two"),
        pytest.param(b"3\r\nabc\r\n", None, id="no end"),
        pytest.param(b"3\r\nab", None, id="cut"),
        pytest.param(b"3\r\nabcd\r\n0\r\n\r\n", None, id="too long"),
        pytest.param(b"3;x=y\r\nabc\r\n0\r\n\r\n", None, id="an extension"),
        pytest.param(b"0\r\nX: y\r\n\r\n", None, id="a trailer"),
        pytest.param(b"3\r\nabc\r\n00\r\n\r\n", None, id="an end of two zeros"),
        pytest.param(b"0\r\n\r\nH", None, id="more"),
        pytest.param(b"-1\r\n\r\n0\r\n\r\n", None, id="negative"),
        pytest.param(b"1\r\na\r\n" * 64 + b"0\r\n\r\n", None, id="many"),
    ],
)
def test_chunks_are_joined_where_all_are_here(chunks: bytes, body: bytes | None) -> None:
    """Nothing is said of a body that is not whole, or not plain."""
    assert plain_http.whole_chunks(b"head" + chunks, 4) == body


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"3", b"", id="half a size"),
        pytest.param(b"3\r", b"", id="most of a size"),
        pytest.param(b"3\r\n", b"", id="a size"),
        pytest.param(b"3\r\nab", b"", id="half a chunk"),
        pytest.param(b"3\r\nabc\r", b"", id="most of a chunk"),
        pytest.param(b"3\r\nabc\r\n", b"abc", id="a chunk"),
        pytest.param(b"3\r\nabc\r\n2\r\nd", b"abc", id="a chunk and a half"),
        pytest.param(b"3\r\nabc\r\n2\r\nde\r\n", b"abcde", id="two chunks"),
        pytest.param(b"3\r\nabc\r\n0", b"abc", id="the end begins"),
        pytest.param(b"3\r\nabc\r\n0\r\n\r", b"abc", id="the end is nearly here"),
        pytest.param(b"3\r\nabc\r\n0\r\n\r\n", None, id="the end"),
        pytest.param(b"3\r\nabcd\r\n", None, id="too long"),
        pytest.param(b"3\r\nabc\n", None, id="another line end"),
        pytest.param(b"3;x=y\r\n", None, id="an extension"),
        pytest.param(b"3\r\nabc\r\n0\r\nX: y", None, id="a trailer"),
        pytest.param(b"3\r\nabc\r\n00\r\n\r\n", None, id="an end of two zeros"),
        pytest.param(b"x", None, id="no size"),
        pytest.param(b"12345678", None, id="too large a size"),
        pytest.param(b"1\r\na\r\n" * 65, None, id="many"),
    ],
)
def test_the_chunks_that_are_here_are_joined(chunks: bytes, body: bytes | None) -> None:
    """What may still become a plain body is told from what will not."""
    assert plain_http.chunks_so_far(b"head" + chunks, 4) == body


def test_what_is_written_in_chunks_is_read_again() -> None:
    """Part by part, to the end."""
    written = chunk(b"abc") + chunk(b"0123456789") + LAST_CHUNK
    assert plain_http.whole_chunks(written, 0) == b"abc0123456789"


@pytest.mark.parametrize(
    ("body", "data"),
    [
        pytest.param(b"event: message\ndata: {}\n\n", b"{}", id="named"),
        pytest.param(b"data: {}\n\n", b"{}", id="unnamed"),
        pytest.param(b"event: message\r\ndata: {}\r\n\r\n", b"{}", id="CRLF"),
        pytest.param(b"event: message\ndata: {}\r\n\r\n", None, id="mixed"),
        pytest.param(b"event: message\ndata: {}\n", None, id="not ended"),
        pytest.param(b"data: {}\n\ndata: {}\n\n", None, id="two"),
        pytest.param(b"id: 1\ndata: {}\n\n", None, id="an id"),
        pytest.param(b"data: {\ndata: }\n\n", None, id="two lines"),
        pytest.param(b"data:{}\n\n", None, id="no blank"),
        pytest.param(b": a\n\n", None, id="a comment"),
        pytest.param(b"\xef\xbb\xbfdata: {}\n\n", None, id="a byte order mark"),
    ],
)
def test_one_event_is_told_from_everything_else(body: bytes, data: bytes | None) -> None:
    """Only the form that servers write."""
    assert plain_http.one_event(body) == data
