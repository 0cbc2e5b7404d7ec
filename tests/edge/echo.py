"""A client's connection in memory, whose handler answers with what it has read: no socket, no upstream.

Everything between the bytes of the client and the handler is the real thing. What ran is kept, in order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random

from mcp_sidecar.downstream.common import Patience
from mcp_sidecar.downstream.connection import ClientConnection, Phase
from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.downstream.server import Server
from mcp_sidecar.downstream.upload import BrokenBody
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.request import Fault

MAX_HEADER_BYTES = 8 * 1024
REFUSALS = {
    Fault.UNREADABLE: OwnAnswer(HTTPStatus.BAD_REQUEST, "text/plain", b"unreadable"),
    Fault.HEAD_TOO_LARGE: OwnAnswer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "text/plain", b"large"),
    Fault.BAD_CODING: OwnAnswer(HTTPStatus.NOT_IMPLEMENTED, "text/plain", b"coding"),
    Fault.HEAD_TOO_SLOW: OwnAnswer(HTTPStatus.REQUEST_TIMEOUT, "text/plain", b"slow"),
}


@dataclass(slots=True)
class Run:
    """One request that a handler was given, and what it has read of the body."""

    connection: int
    method: str
    target: str
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    is_whole: bool = False

    def value(self, name: bytes) -> bytes | None:
        """The first header of this lower-case name."""
        return next((value for key, value in self.fields if key.lower() == name), None)


class Wire(asyncio.Transport):
    """The client's side: what was written to it, and whether it was closed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.written = bytearray()
        self.untaken = 0
        self.has_ended = False
        self.is_cut = False
        self.is_paused = False
        self.protocol: ClientConnection | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.has_ended, "written behind the end"
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.untaken

    def is_closing(self) -> bool:
        return self.is_cut

    def is_reading(self) -> bool:
        return not self.is_paused

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended = True

    @property
    def is_deaf(self) -> bool:
        """Whether nothing that a client sends now would be heard, although it is its turn."""
        idle = self.protocol is not None and self.protocol._phase is Phase.IDLE
        return idle and self.is_paused

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", self.number) if name == "peername" else default

    def close(self) -> None:
        self.has_ended = True
        if not self.untaken:
            self.abort()

    def abort(self) -> None:
        if not self.is_cut:
            self.has_ended = self.is_cut = True
            if self.protocol is not None:
                asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


@dataclass
class Echo:
    """Answers every request with its mark and what it has read."""

    draw: Random | None = None
    """Where answers are to come late, and in different forms."""
    reads: bool = True
    gate: asyncio.Event | None = None
    status: int = 200
    is_stream: bool = False
    runs: list[Run] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    under_way: int = 0
    patience: Patience = field(default_factory=Patience)
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(
            self, REFUSALS, max_header_bytes=MAX_HEADER_BYTES, patience=self.patience, clock=time.monotonic
        )

    def connect(self, number: int = 1) -> tuple[ClientConnection, Wire]:
        """A new client."""
        protocol, wire = self.server(), Wire(number)
        wire.protocol = protocol
        protocol.connection_made(wire)
        return protocol, wire

    async def handle(self, request: Request, responder: Responder) -> None:
        """Say what came."""
        assert request.peer is not None
        pairs = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in request.fields.pairs]
        run = Run(0, request.method, request.target, pairs)
        self.runs.append(run)
        self.under_way += 1
        try:
            await self._answer(run, request, responder)
        except BrokenBody:
            responder.close_behind()
            await responder.give(OwnAnswer(400, "text/plain", b"broken"))
        finally:
            self.under_way -= 1

    async def _answer(self, run: Run, request: Request, responder: Responder) -> None:
        if request.upload is not None and self.reads:
            run.body = b"".join([part async for part in request.upload.chunks()])
        run.is_whole = self.reads or request.upload is None
        if self.gate is not None:
            await self.gate.wait()
        for _ in range(self.draw.choice((0, 0, 0, 1, 3)) if self.draw is not None else 0):
            await asyncio.sleep(0)
        mark = (run.value(b"x-mark") or b"none").decode()
        if self.is_stream:
            await responder.start_events([("X-Mark", mark)])
            await responder.write(b"data: 1\n\n")
        elif self.draw is not None and self.draw.random() < 0.3:
            await responder.start(self.status, None, [("X-Mark", mark)])
            await responder.write(run.body or b"empty")
        else:
            await responder.give(OwnAnswer(self.status, "text/plain", run.body, (("X-Mark", mark),)))

    def note_unread(self, answer: OwnAnswer) -> None:
        self.unread.append(int(answer.status))

    def note_left(self, request: Request) -> None:
        self.left.append(request.target)

    def note_gone(self, connection: Hashable) -> None:
        """Nothing was kept for it."""

    def note_failed(self, error: Exception) -> None:
        self.failures.append(error)


async def settle(turns: int = 12) -> None:
    """Let everything happen that waits for nothing but its turn."""
    for _ in range(turns):
        await asyncio.sleep(0)
