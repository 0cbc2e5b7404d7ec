"""One test for each thing that ``aiohttp_internals`` takes from aiohttp and that aiohttp promises to nobody."""

from __future__ import annotations

import asyncio
import gc

import pytest
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError

from mcp_sidecar.aiohttp_internals import NO_HEADERS, read_request_head

HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nX-Mark: %b\r\n%b\r\n"


def read(head: bytes) -> RawRequestMessage:
    return read_request_head(asyncio.get_running_loop(), head, max_line_bytes=8192, max_headers=16)


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
    """Whatever the head says of a body."""
    message = read(HEAD % (b"1", line))
    assert message.headers.getall("X-Mark") == ["1"]
    assert [value for name, value in message.raw_headers if name == b"X-Mark"] == [b"1"]


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", HEAD % (b"1", b"") + HEAD % (b"2", b"")])
async def test_anything_but_one_head_is_an_error(head: bytes) -> None:
    """More than one, too."""
    with pytest.raises((HttpProcessingError, ValueError)):
        read(head)


async def test_a_parser_of_a_head_is_gone_with_it() -> None:
    """It keeps the headers of its last message, which may hold credentials."""
    message = read(HEAD % (b"1", b"Authorization: Bearer x\r\n"))
    assert not [each for each in gc.get_referrers(message.raw_headers) if type(each).__name__ == "HttpRequestParser"]
    del message
    assert not [each for each in gc.get_objects() if type(each).__name__ == "HttpRequestParser"]


def test_headers_that_are_forgotten_can_be_asked_for() -> None:
    """There are none."""
    assert len(NO_HEADERS) == 0
