"""The client's side of a listening stream: whole events, whoever sends them.

The upstream's events and ours share one connection. Ours go between two events, never into the middle of a large one that
passes in pieces.
"""

from __future__ import annotations

import asyncio
from contextvars import Context

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.wire.sse import BOM


class ClientStream:
    """Writes to one client."""

    __slots__ = ("_between", "_has_begun", "_in_event", "_is_closed", "_responder", "may_comment")

    def __init__(self, responder: Responder) -> None:
        """``may_comment``: whether it is kept alive while it is silent."""
        self._responder = responder
        self._in_event = False
        self._between: asyncio.Event | None = None  # set where no event is under way; made for whoever waits for that
        self._is_closed = False
        self._has_begun = False
        self.may_comment = False

    @property
    def is_open(self) -> bool:
        """Whether something can be sent on it now."""
        responder = self._responder
        return responder.is_committed and responder.is_event_stream and not self._is_closed

    @property
    def in_event(self) -> bool:
        """Whether the client has only the beginning of an event."""
        return self._in_event

    def fit(self, piece: bytes) -> bytes:
        """What the client gets of a piece of the upstream's."""
        if piece == BOM and (self._has_begun or self._responder.has_commented):
            return b""  # in the middle of a stream it would be part of a field's name, and an event be lost
        self._has_begun = True
        return piece

    def relay(self, pieces: bytes, *, in_event: bool) -> bool:
        """Send fitting pieces at once; whether the client is fast enough for more.

        ``in_event``: they end in the middle of an event.
        """
        self._in_event = in_event
        if self._between is not None:
            self._note(in_event=in_event)
        self._responder.may_comment = self.may_comment and not in_event
        if not pieces:
            return True
        self._has_begun = True
        return self._responder.send(pieces)

    async def drained(self) -> None:
        """Wait until the client has taken most of what was sent."""
        await self._responder.drained()

    def go_on(self, context: Context | None) -> None:
        """Have a task do, in this context if it is given, what is to be done about a stream that was parked."""
        self._responder.go_on(context)

    def comment(self) -> None:
        """Show the client that somebody is there."""
        self._responder.comment()

    async def tell(self, events: bytes) -> bool:
        """Send whole events of ours as soon as no other event is under way; false where that cannot be."""
        while self.is_open and self.in_event:
            self._between = self._between or asyncio.Event()
            await self._between.wait()
        if not self.is_open:
            return False
        self._has_begun = True
        try:
            await self._responder.write(events)
        except (ConnectionError, RuntimeError):  # the client is leaving; its own task learns it
            return False
        return True

    def end(self) -> None:
        """Nothing more is sent. A stream that stands in the middle of an event is cut."""
        if not self._is_closed:
            self._is_closed = True
            self.may_comment = self._responder.may_comment = False
            if self.in_event:
                self._responder.cut()
            self._note(in_event=False)

    def _note(self, *, in_event: bool) -> None:
        self._in_event = in_event
        if self._between is not None and not in_event:
            self._between.set()
            self._between = None
