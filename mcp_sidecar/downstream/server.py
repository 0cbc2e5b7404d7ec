"""Where clients connect: the listening sockets, and the end of all connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import cast

from mcp_sidecar.downstream.common import Common, Door, Handler, Looked, Patience
from mcp_sidecar.downstream.connection import ClientConnection
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.request import Fault, HeadReader

BACKLOG = 1024
END_WITHIN_S = 5.0
"""How long the end of exchanges that were cancelled is waited for."""


class Server:
    """Accepts connections and hands their requests to a handler."""

    def __init__(
        self,
        handler: Handler,
        refusals: Mapping[Fault, OwnAnswer],
        *,
        max_header_bytes: int,
        patience: Patience,
        clock: Callable[[], float],
    ) -> None:
        """Needs a running event loop."""
        loop = asyncio.get_running_loop()
        self._common = Common(loop, handler, refusals, HeadReader(max_header_bytes), patience, clock)
        self._listener: asyncio.Server | None = None

    def __call__(self) -> ClientConnection:
        """The protocol of a new connection."""
        return ClientConnection(self._common)

    @property
    def connections(self) -> set[Looked]:
        """Those that are open."""
        return self._common.connections

    def open_door(self, door: Door) -> None:
        """Show ``door`` what comes on idle connections, before anything else."""
        self._common.door = door

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Listen; the address that it got. Raises OSError."""
        patience_s = self._common.patience.client_s if tls is not None else None
        # As bytes: uvloop looks a text up in the tables of IDNA, which take two MiB; our names are ASCII.
        hosts = cast("list[str]", [host.encode()])
        self._listener = await self._common.loop.create_server(
            self, hosts, port, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=patience_s
        )
        bound = self._listener.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    def announce_end(self) -> None:
        """From now on every answer says that its connection ends with it; new ones are still accepted."""
        self._common.is_draining = True

    def stop_accepting(self) -> None:
        """Accept nobody any more, and close every connection as soon as no request is under way on it."""
        self._common.is_draining = self._common.is_closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.close_idle()

    async def close(self) -> None:
        """Cut what is still open."""
        self.stop_accepting()
        tasks = [task for connection in list(self.connections) if (task := connection.cancel()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=END_WITHIN_S)
        self._common.stop_looking()
