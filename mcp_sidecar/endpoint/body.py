"""The client's body: held whole where it may have to be sent again, streamed where it is too large for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mcp_sidecar.config import Limits
from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.upload import BrokenBody, Upload
from mcp_sidecar.wire.json_scan import TopLevelScan
from mcp_sidecar.wire.jsonrpc import Kind, Message, NotJson, from_scan, parse


class BodyTooLarge(Exception):
    """The body is larger than ``limits.max_request_body``."""


class ClientLeft(ConnectionResetError):
    """The client closed its connection while its request was held: nobody would take the answer."""


class _TakenOver(Exception):
    """Somebody else reads the rest: what the upstream got must not look whole."""


UNREADABLE = (BodyTooLarge, BrokenBody, NotJson)
"""Why a body cannot be read: the client's fault, whatever the upstream made of the part it got."""


@dataclass(slots=True)
class HeldBody:
    """A body that is here, and can be sent as often as needed."""

    data: bytes

    @property
    def size(self) -> int:
        """How many bytes of it are held."""
        return len(self.data)


class PassingBody:
    """A body that is too large to be held: its beginning, and the rest as the client sends it.

    Nothing is taken from the client before the upstream takes it, so that a failed connect costs nothing and a slow
    upstream slows the client down.
    """

    def __init__(
        self, beginning: list[bytes], rest: Upload, limits: Limits, announced: int | None, *, encoded: bool
    ) -> None:
        """``beginning``: what has come so far, in the pieces it came in; they are let go of as they are sent.

        ``announced`` is the client's Content-Length; an ``encoded`` body is not looked into.
        """
        self._beginning = beginning
        self._rest = rest
        self._limit = limits.max_request_body
        self._size = 0
        self._scan = None if encoded else TopLevelScan()
        self._failure: BodyTooLarge | BrokenBody | NotJson | ClientLeft | None = None
        self.announced = announced
        self.has_begun = False
        self._is_taken_over = False
        for piece in beginning:
            self._look(piece)
        self.size = self._size
        """How many bytes of it are held until it is sent."""

    @property
    def message(self) -> Message:
        """What is known of it so far; of an encoded body nothing."""
        return from_scan(self._scan) if self._scan is not None else Message(Kind.OTHER)

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, once."""
        self.has_begun = True
        self._beginning.reverse()
        while self._beginning:
            yield self._beginning.pop()
        try:
            async for chunk in self._rest.chunks():
                self._look(chunk)
                if self._is_taken_over:
                    raise _TakenOver
                yield chunk
            if self._is_taken_over:
                raise _TakenOver
            self._end()
        except UNREADABLE as error:
            self._failure = error
            raise

    def parts_after_hold(self) -> AsyncIterator[bytes]:
        """The body, once, whose end is sent only if the client still waits for an answer. Raises ``ClientLeft``.

        The end of a connection comes behind the data: of a body that was left in the kernel it shows only when the last
        of it is read. A server does not act on a part.
        """
        if self._rest.client_left:
            raise ClientLeft
        return self._parts_for_a_waiting_client()

    async def _parts_for_a_waiting_client(self) -> AsyncIterator[bytes]:
        last = b""
        async for part in self.parts():
            if last:
                yield last
            last = part
        await asyncio.sleep(0)
        if self._rest.client_left:
            self._failure = ClientLeft()
            raise self._failure
        yield last

    @property
    def may_hold_answers(self) -> bool:
        """Whether it may turn out to be an answer to a question of the server, which belongs to one upstream session."""
        return self._scan is not None and not self._scan.has_method

    async def whole(self) -> bytes:
        """All of it, in place of ``parts``. Raises one of ``UNREADABLE``."""
        return b"".join([part async for part in self.parts()])

    async def read_to_end(self) -> Message:
        """Read what is left without sending it anywhere, to learn the request's id.

        Whoever still sends it stops. Raises one of ``UNREADABLE``, also where that is why the upstream did not get it
        whole.
        """
        self._is_taken_over = True
        if self._failure is not None:
            raise self._failure
        async for chunk in self._rest.chunks():
            self._look(chunk)
        self._end()
        return self.message

    def _look(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            raise BodyTooLarge
        if self._scan is not None:
            self._scan.feed(chunk)

    def _end(self) -> None:
        if self._scan is not None and not self._scan.complete:
            self._scan.finish()


Body = HeldBody | PassingBody


async def read_body(request: Request, limits: Limits, *, encoded: bool) -> Body:
    """Read a body up to ``limits.max_replay_body``; a larger one is left to stream.

    Raises ``BodyTooLarge``, ``BrokenBody``, and ``NotJson`` if the beginning of a large one cannot be JSON.
    """
    upload, announced = request.upload, request.length
    if upload is None:
        return HeldBody(b"")
    whole = upload.arrived() if upload.size <= limits.max_replay_body else None
    if whole is not None:
        if len(whole) > limits.max_request_body:
            raise BodyTooLarge
        return HeldBody(whole)
    if announced is not None and announced > limits.max_request_body:
        raise BodyTooLarge
    parts: list[bytes] = []
    size = 0
    async for chunk in upload.chunks():
        parts.append(chunk)
        size += len(chunk)
        if size > limits.max_request_body:
            raise BodyTooLarge
        if size > limits.max_replay_body:
            return PassingBody(parts, upload, limits, announced, encoded=encoded)
    return HeldBody(b"".join(parts))


def message_of(body: Body) -> Message:
    """What the body is. Raises ``NotJson``."""
    return parse(body.data) if isinstance(body, HeldBody) else body.message
