"""Named ways in which an upstream fails, as frozen values. The rule: each says truthfully, in ``executes``, whether the
request that met it was run; the ledger agrees.

A fault plays instead of the regular answer. Most spoil that answer on its way out (``spoil`` puts a filter in front of the
wire) and can be stacked; the others never let it come into being.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tests.support.dialects import Said
from tests.support.http1 import ConnectionCut, Headers, Wire, WireFilter
from tests.support.ledger import Arrival


@dataclass(frozen=True, slots=True)
class Form:
    """What a fault demands of the answer that it spoils; ``None`` leaves it to the server's behaviour."""

    sse: bool | None = None
    event_ids: bool | None = None


class Stage(Protocol):
    """What a fault plays on: one request that waits for its answer."""

    @property
    def arrival(self) -> Arrival:
        """The request."""

    @property
    def wire(self) -> Wire: ...

    @property
    def released(self) -> asyncio.Event:
        """Set when the test lets stalled answers go on."""

    async def run(self) -> None:
        """Do what the request asks, to the end, and send nothing."""

    async def serve(self, wire: Wire, form: Form) -> None:
        """Do what the request asks and answer it on ``wire``."""

    def crash(self) -> None:
        """The process dies: no listener, no connection, no session, no running work is left."""


class Break(Enum):
    """How a connection ends."""

    RESET = "reset"
    CLOSE = "close"


AS_USUAL = Form()


class Fault(Protocol):
    @property
    def executes(self) -> bool: ...

    async def play(self, stage: Stage) -> None: ...


async def _break(wire: Wire, how: Break) -> None:
    await (wire.reset() if how is Break.RESET else wire.close())


# -- no answer at all -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refuse:
    """From now on until cleared every connect is refused and no connection is left. Running work goes on, sessions stay."""

    executes: bool = False

    async def play(self, stage: Stage) -> None:
        raise AssertionError("Refuse meets connections, not requests")


@dataclass(frozen=True, slots=True)
class Crash:
    """The process dies on this request. Start it again with ``upstream.start()``: it will know no session."""

    executes: bool = False

    async def play(self, stage: Stage) -> None:
        if self.executes:
            await stage.run()
        stage.crash()
        raise ConnectionCut


@dataclass(frozen=True, slots=True)
class ResetBeforeExecution:
    """The request is read, then the connection is reset."""

    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await stage.wire.reset()


@dataclass(frozen=True, slots=True)
class ResetAfterExecution:
    """The request is run to its end, then the connection is reset before the first byte of the answer."""

    executes: bool = True

    async def play(self, stage: Stage) -> None:
        await stage.run()
        await stage.wire.reset()


@dataclass(frozen=True, slots=True)
class CloseBeforeHeaders:
    """The request is read and maybe run, then the connection ends cleanly, without an answer."""

    executes: bool = False

    async def play(self, stage: Stage) -> None:
        if self.executes:
            await stage.run()
        await stage.wire.close()


# -- another answer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of somebody's choice."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        if self.executes:
            await stage.run()
        await stage.wire.head(self.status, self.headers, len(self.body))
        await stage.wire.body(self.body)
        await stage.wire.end()


@dataclass(frozen=True, slots=True)
class Repeats:
    """An answer that names the JSON-RPC id of its request, as a template of ``dialects``."""

    said: Said
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        filled = self.said.filled(sid="", rpc_id=json.loads(stage.arrival.body).get("id"))
        await Answer(filled.status, tuple(filled.headers), filled.body, self.executes).play(stage)


@dataclass(frozen=True, slots=True)
class IngressPage:
    """What an ingress says when it cannot reach the server behind it, or lost it half-way (``executes``)."""

    status: int = 502
    html: bool = True
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        await Answer(self.status, (("Content-Type", self._type),), self._body.encode(), self.executes).play(stage)

    @property
    def _type(self) -> str:
        return "text/html" if self.html else "text/plain"

    @property
    def _body(self) -> str:
        if self.html:
            return f"<html><head><title>{self.status}</title></head><body><h1>{self.status} Upstream</h1></body></html>"
        return "upstream connect error or disconnect/reset before headers. reset reason: connection termination"


class Router(Enum):
    """Whose 404 it is."""

    TRAEFIK = ("text/plain; charset=utf-8", "404 page not found\n")
    NGINX = ("text/html", "<html><head><title>404 Not Found</title></head><body><h1>404 Not Found</h1></body></html>")
    KONG = ("application/json; charset=utf-8", '{"message":"no Route matched with those values"}')
    BARE = (None, "")


@dataclass(frozen=True, slots=True)
class RoutePage:
    """The 404 of a router that has no route to the server (yet)."""

    router: Router = Router.TRAEFIK
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        content_type, body = self.router.value
        headers = (("Content-Type", content_type),) if content_type else ()
        await Answer(404, headers, body.encode()).play(stage)


@dataclass(frozen=True, slots=True)
class GarbageHeaders:
    """Bytes where the head of an answer should be, then the end of the connection."""

    data: bytes = b"HTTP/1.1 200 OK\r\nContent-Type application/json\r\n\x00\xff: no\r\n\r\n"
    executes: bool = False

    async def play(self, stage: Stage) -> None:
        if self.executes:
            await stage.run()
        await stage.wire.raw(self.data)
        await stage.wire.close()


# -- the regular answer, spoiled --------------------------------------------------------------------------------------


class Spoiler:
    """A fault that serves the request regularly through a filter. Stackable."""

    __slots__ = ()

    @property
    def executes(self) -> bool:
        return True

    @property
    def form(self) -> Form:
        return Form()

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        raise NotImplementedError

    async def play(self, stage: Stage) -> None:
        await stage.serve(self.spoil(stage.wire, stage), self.form)


@dataclass(frozen=True, slots=True)
class Stacked(Spoiler):
    """Several spoilers at once, the first nearest to the socket (the place for ``SlowHeaders``)."""

    spoilers: tuple[Spoiler, ...]

    @property
    def form(self) -> Form:
        forms = [spoiler.form for spoiler in self.spoilers]
        return Form(
            sse=next((form.sse for form in forms if form.sse is not None), None),
            event_ids=next((form.event_ids for form in forms if form.event_ids is not None), None),
        )

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        for spoiler in self.spoilers:
            wire = spoiler.spoil(wire, stage)
        return wire


class StallAt(Enum):
    """Where an answer gets stuck."""

    BEFORE_EXECUTION = "before_execution"
    BEFORE_HEADERS = "before_headers"
    MID_BODY = "mid_body"


@dataclass(frozen=True, slots=True)
class Stall(Spoiler):
    """Nothing more is sent until ``upstream.release()``. Before execution, the request has not run until then either."""

    at: StallAt = StallAt.BEFORE_HEADERS

    @property
    def executes(self) -> bool:
        return self.at is not StallAt.BEFORE_EXECUTION

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        return _Stalling(wire, self.at, stage.released)

    async def play(self, stage: Stage) -> None:
        if self.at is StallAt.BEFORE_EXECUTION:
            await stage.released.wait()
        await stage.serve(self.spoil(stage.wire, stage), self.form)


class _Stalling(WireFilter):
    def __init__(self, inner: Wire, at: StallAt, released: asyncio.Event) -> None:
        super().__init__(inner)
        self._at = at
        self._released = released

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        if self._at is StallAt.BEFORE_HEADERS:
            await self._released.wait()
        await super().head(status, headers, length)

    async def body(self, data: bytes) -> None:
        await self._in_halves(data)

    async def event(self, block: bytes) -> None:
        await self._in_halves(block)

    async def _in_halves(self, data: bytes) -> None:
        half = len(data) // 2
        if self._at is StallAt.MID_BODY:
            await self._inner.body(data[:half])
            await self._released.wait()
            data = data[half:]
        await self._inner.body(data)


@dataclass(frozen=True, slots=True)
class TruncateJson(Spoiler):
    """A JSON answer that breaks after ``after_bytes`` of its body, whatever the server's usual form is."""

    after_bytes: int = 10
    chunked: bool = False
    how: Break = Break.CLOSE

    @property
    def form(self) -> Form:
        return Form(sse=False)

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        return _Truncating(wire, self)


class _Truncating(WireFilter):
    def __init__(self, inner: Wire, fault: TruncateJson) -> None:
        super().__init__(inner)
        self._fault = fault

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        await super().head(status, headers, None if self._fault.chunked else length)

    async def body(self, data: bytes) -> None:
        await super().body(data[: self._fault.after_bytes])
        await _break(self._inner, self._fault.how)


@dataclass(frozen=True, slots=True)
class CutStream(Spoiler):
    """An SSE answer that breaks after ``after_events`` events, and half an event more with ``mid_event``.

    ``event_ids`` True sends a priming event with an id first (it counts), False sends neither it nor ids, None leaves that to
    the server's behaviour.
    """

    after_events: int = 0
    event_ids: bool | None = None
    mid_event: bool = False
    how: Break = Break.RESET

    @property
    def form(self) -> Form:
        return Form(sse=True, event_ids=self.event_ids)

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        return _Cutting(wire, self)


class _Cutting(WireFilter):
    def __init__(self, inner: Wire, fault: CutStream) -> None:
        super().__init__(inner)
        self._fault = fault
        self._left = fault.after_events

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        await super().head(status, headers, length)
        if not self._left and not self._fault.mid_event:
            await _break(self._inner, self._fault.how)

    async def event(self, block: bytes) -> None:
        if not self._left:
            await super().event(block[: len(block) // 2])
            await _break(self._inner, self._fault.how)
        await super().event(block)
        self._left -= 1

    async def after_event(self) -> None:
        if not self._left and not self._fault.mid_event:
            await _break(self._inner, self._fault.how)


@dataclass(frozen=True, slots=True)
class EndStream(Spoiler):
    """An SSE answer that ends as if whole after ``after_events`` events, before its response.

    With event ids that is the polling of 2025-11-25, without it is a fault. ``event_ids`` as for ``CutStream``.
    """

    after_events: int = 0
    event_ids: bool | None = None

    @property
    def form(self) -> Form:
        return Form(sse=True, event_ids=self.event_ids)

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        return _Ending(wire, self.after_events)


class _Ending(WireFilter):
    def __init__(self, inner: Wire, after_events: int) -> None:
        super().__init__(inner)
        self._left = after_events

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        await super().head(status, headers, length)
        await self._end_when_due()

    async def event(self, block: bytes) -> None:
        await super().event(block)
        self._left -= 1

    async def after_event(self) -> None:
        await self._end_when_due()

    async def _end_when_due(self) -> None:
        if not self._left:
            await self._inner.end()
            await self._inner.close()


@dataclass(frozen=True, slots=True)
class HugeHeaders(Spoiler):
    """The regular answer with one header of ``size_bytes`` more."""

    size_bytes: int = 128 * 1024

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        return _Padding(wire, self.size_bytes)


class _Padding(WireFilter):
    def __init__(self, inner: Wire, size_bytes: int) -> None:
        super().__init__(inner)
        self._size_bytes = size_bytes

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        await super().head(status, [*headers, ("X-Padding", "x" * self._size_bytes)], length)


@dataclass(frozen=True, slots=True)
class SlowHeaders(Spoiler):
    """The regular answer, whose head comes in ``pieces`` with ``pause_s`` between them."""

    pieces: int = 8
    pause_s: float = 0.005

    def spoil(self, wire: Wire, stage: Stage) -> Wire:
        return _Dribbling(wire, self)


class _Dribbling(WireFilter):
    def __init__(self, inner: Wire, fault: SlowHeaders) -> None:
        super().__init__(inner)
        self._fault = fault

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        for piece in _pieces(self.framed(status, headers, length), self._fault.pieces):
            await self.raw(piece)
            await asyncio.sleep(self._fault.pause_s)


def _pieces(data: bytes, count: int) -> Sequence[bytes]:
    size = max(1, -(-len(data) // count))
    return [data[start : start + size] for start in range(0, len(data), size)]
