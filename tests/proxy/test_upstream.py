"""The upstream's side, where it cannot be seen from the outside."""

from __future__ import annotations

import asyncio
import socket

from mcp_sidecar.proxy.upstream import is_connected_to_itself
from tests.support.raw_upstream import RawUpstream


async def test_a_connection_to_itself_is_told_apart() -> None:
    """Linux may give a connect to a closed port that very port, and both ends are then one socket."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.connect(sock.getsockname())
    _, writer = await asyncio.open_connection(sock=sock)
    assert is_connected_to_itself(writer)
    writer.transport.abort()
    async with RawUpstream() as upstream:
        _, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        assert not is_connected_to_itself(writer)
        writer.transport.abort()
