"""One test for each thing that ``aiohttp_internals`` takes from aiohttp and that aiohttp promises to nobody."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.http_exceptions import HttpProcessingError

from mcp_sidecar.aiohttp_internals import NO_HEADERS, RequestHeads

HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nX-Mark: %b\r\n%b\r\n"


async def heads() -> RequestHeads:
    return RequestHeads(asyncio.get_running_loop(), max_line_bytes=8192, max_headers=16)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="no body"),
        pytest.param(b"Content-Length: 5\r\n", id="a length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n", id="chunks"),
        pytest.param(b"Connection: close\r\n", id="closes"),
        pytest.param(b"Connection: Upgrade\r\nUpgrade: websocket\r\n", id="a known upgrade"),
        pytest.param(b"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n", id="an unknown upgrade"),
        pytest.param(b"Expect: 100-continue\r\nContent-Length: 5\r\n", id="expects"),
    ],
)
async def test_a_parser_without_bodies_ends_every_message_with_its_head(line: bytes) -> None:
    """Whatever the head says of a body, the next head is read as one, and has nothing of the last."""
    it = await heads()
    for mark in (b"1", b"2", b"3"):
        message = it.read(HEAD % (mark, line))
        assert message.headers.getall("X-Mark") == [mark.decode()]
        assert [value for name, value in message.raw_headers if name == b"X-Mark"] == [mark]


async def test_a_parser_that_has_met_an_error_is_not_used_again() -> None:
    """The next head is read by another."""
    it = await heads()
    with pytest.raises(HttpProcessingError):
        it.read(b"nonsense\r\n\r\n")
    assert it.read(HEAD % (b"1", b"")).path == "/a"


def test_headers_that_are_forgotten_can_be_asked_for() -> None:
    """There are none."""
    assert len(NO_HEADERS) == 0
