"""A loopback port that stays ours while nobody listens on it, so that connects are refused and not answered by a stranger."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.http1 import WatchedReader, reset_transport

_HOST = "127.0.0.1"
_BACKLOG = 2048

Converse = Callable[[int, WatchedReader, asyncio.StreamWriter], Awaitable[None]]


class Loopback:
    """Opens and shuts a port any number of times. ``converse`` gets the number of the connection and its two ends."""

    def __init__(self, converse: Converse, tls: ssl.SSLContext | None = None) -> None:
        self._converse = converse
        self._tls = tls
        self._reservation = _bound(0)
        self.port: int = self._reservation.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._conversations: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.connections = 0

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self) -> None:
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                self._protocol, sock=_bound(self.port), backlog=_BACKLOG, ssl=self._tls
            )

    def shut(self, *, reset: bool = False) -> list[asyncio.Task[None]]:
        """Stop listening and end every connection, with RST or as a dying process does. Returns what is still ending."""
        if self._server is not None:
            _stop_serving(self._server)
            self._server = None
        ending = list(self._conversations)
        for task, writer in self._conversations.items():
            task.cancel()
            reset_transport(writer.transport) if reset else writer.transport.abort()
        return ending

    def close(self) -> None:
        """Give up the port."""
        self._reservation.close()

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = WatchedReader()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._connected(reader, writer)

        return asyncio.StreamReaderProtocol(reader, connected, asyncio.get_running_loop())

    def _connected(self, reader: WatchedReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        self.connections += 1
        task = asyncio.ensure_future(self._converse(self.connections, reader, writer))
        self._conversations[task] = writer
        task.add_done_callback(self._conversations.pop)


def _stop_serving(server: asyncio.Server) -> None:
    """``Server.close`` would also let go of the connection that is just being accepted, and leave it open for ever."""
    loop: Any = asyncio.get_running_loop()
    listening: Any = server
    for own in listening._sockets:
        loop._stop_serving(own)


def _bound(port: int) -> socket.socket:
    # Without the protocol asyncio leaves Nagle's algorithm on, and a reset would take back bytes still waiting for it.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((_HOST, port))
    sock.setblocking(False)
    return sock
