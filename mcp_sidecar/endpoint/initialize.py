"""The answer to an ``initialize``, kept back until its session is recorded.

The head says under which id the client will go on; which that is, and whether others know it by then, is settled by the
result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.sessions.recorder import Recorder

MAX_WAITING_BYTES: Final = 64 * 1024
"""What comes ahead of the result, at most; real servers send nothing, or an empty event to begin with."""


class Opening:
    """Stands for the client while the events of such an answer come; what it is given goes out once that is so."""

    def __init__(self, responder: Responder, recorder: Recorder, start: Callable[[], Awaitable[None]]) -> None:
        """``start`` begins the client's answer."""
        self._responder = responder
        self._recorder = recorder
        self._start = start
        self._waiting = bytearray()
        self.may_comment = False
        self.notes = responder.notes

    async def write(self, data: bytes) -> None:
        """A part of the stream."""
        if self._responder.is_committed:
            self._responder.may_comment = self.may_comment
            await self._responder.write(data)
            return
        self._waiting += data
        if self._recorder.is_settled or len(self._waiting) > MAX_WAITING_BYTES:
            await self.let_go()

    async def let_go(self) -> None:
        """There is nothing to wait for any more."""
        if not self._responder.is_committed:
            await self._recorder.settle()
            await self._start()
            await self._responder.write(bytes(self._waiting))
