"""A connection outlives large bodies: it is read from again, whoever has taken the body and when."""

from __future__ import annotations

import asyncio

import pytest

from mcp_sidecar.downstream.upload import MAX_UNREAD_BYTES, Upload
from tests.support.raw_upstream import RawUpstream
from tests.support.sidecar import running_sidecar

RESULT = b'{"jsonrpc":"2.0","id":1,"result":{}}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(RESULT), RESULT)
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"' + b"x" * (8 * MAX_UNREAD_BYTES) + b'"}}'
HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Line:
    """A connection that knows whether it is read from."""

    transport: asyncio.Transport | None = None

    def __init__(self) -> None:
        self.is_read = True

    def write(self, data: bytes) -> None:
        raise AssertionError(data)

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


@pytest.mark.parametrize("is_taken", [True, False])
async def test_behind_a_whole_body_the_client_is_read_from(is_taken: bool) -> None:
    """A body that ended while it was too much to be read on does not leave its connection deaf."""
    line = Line()
    upload = Upload(line, awaits_continue=False)
    upload.feed(b"x" * (MAX_UNREAD_BYTES + 1))
    assert not line.is_read
    upload.end()
    assert line.is_read
    if is_taken:
        assert upload.arrived() is not None
        assert line.is_read


@pytest.mark.parametrize("path", [b"/mcp", b"/other"])
async def test_one_large_body_after_the_other(path: bytes) -> None:
    """Each of many is answered on the one connection."""
    async with RawUpstream(ANSWER) as upstream, running_sidecar(upstream.url) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        for _ in range(20):
            writer.write(HEAD % (path, len(CALL)) + CALL)
            async with asyncio.timeout(60):  # or it hangs
                await reader.readuntil(RESULT)
        writer.close()
        await writer.wait_closed()
