"""A TCP relay in front of something that a test cannot make misbehave: it goes silent, breaks off, or takes its time.

The rule: what is chosen counts from the next bytes on, on every connection, and bytes are never changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

SLOW_S: Final = 0.05


class How(Enum):
    """What becomes of what passes."""

    PLAIN = "as it comes"
    SLOW = "each piece late"
    SILENT = "nothing comes through, either way, and nothing ends: a half-open connection"
    RESET = "the first bytes of an answer, then a reset"


class Relay:
    """One relay on a port of its own. ``how`` may be changed at any time."""

    def __init__(self, port: int) -> None:
        """In front of ``port`` on loopback."""
        self.how = How.PLAIN
        self.accepted = 0
        self._behind = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        inner, outer = await asyncio.open_connection("127.0.0.1", self._behind)
        self._open |= {writer, outer}
        try:
            await asyncio.gather(self._pass(reader, outer), self._pass(inner, writer, is_answer=True))
        except OSError:
            return
        finally:
            for each in (writer, outer):
                each.transport.abort()
                self._open.discard(each)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        while data := await reader.read(65_536):
            if self.how is How.SILENT:
                continue
            if self.how is How.SLOW:
                await asyncio.sleep(SLOW_S)
            if self.how is How.RESET and is_answer:
                writer.write(data[:1])
                await writer.drain()
                break
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def relay_to(port: int) -> AsyncIterator[Relay]:
    relay = Relay(port)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()
