"""The client's body: held whole where it may have to be sent again, streamed where it is too large for that."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import HttpVersion11, StreamReader, hdrs, web

from mcp_sidecar.config import Limits
from mcp_sidecar.wire.json_scan import TopLevelScan
from mcp_sidecar.wire.jsonrpc import Kind, Message, NotJson, from_scan, parse

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSED_BY_PEER = getattr(select, "POLLRDHUP", 0)
"""Told on Linux even while data is unread; elsewhere POLLHUP, which needs no asking for, has to do."""


class BodyTooLarge(Exception):
    """The body is larger than ``limits.max_request_body``."""


class BrokenBody(Exception):
    """The client's framing of the body is wrong, or ends before the body does."""


class ClientLeft(ConnectionResetError):
    """The client closed its connection while its request was held: nobody would take the answer."""


class _TakenOver(Exception):
    """Somebody else reads the rest: what the upstream got must not look whole."""


UNREADABLE = (BodyTooLarge, BrokenBody, NotJson)
"""Why a body cannot be read: the client's fault, whatever the upstream made of the part it got."""


class Upload:
    """The bytes of one request's body, as the client sends them."""

    def __init__(self, request: web.BaseRequest) -> None:
        """Nothing is read, and the client is not asked to send, before somebody wants the body."""
        self._request = request
        self._content: StreamReader = request.content
        self._is_awaited = request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == (
            "100-continue"
        )
        self._reading = asyncio.Lock()
        self.is_broken = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """What is left of the body. Raises ``BrokenBody``."""
        if self._is_awaited:
            self._is_awaited = False
            await self._request.writer.write(CONTINUE)
            self._request.writer.output_size = 0  # of the answer nothing is sent yet
        while chunk := await self._read():
            yield chunk

    @property
    def client_left(self) -> bool:
        """Whether the client has closed its side, of which nothing is told while a part of the body is unread."""
        transport = self._request.transport
        sock = transport.get_extra_info("socket") if transport is not None and not transport.is_closing() else None
        if sock is None:
            return True
        asked = select.poll()
        asked.register(sock, _CLOSED_BY_PEER)
        return bool(asked.poll(0))

    def arrived(self) -> bytes | None:
        """All of the body, where it is here by now."""
        content = self._content
        if self._is_awaited or not content.is_eof() or content.exception() is not None:
            return None
        return content.read_nowait(-1)

    async def _read(self) -> bytes:
        # An aiohttp reader can be waited on by one task only, and the one that sent the body until its upstream broke
        # may not have noticed yet that it was cancelled.
        async with self._reading:
            try:
                return await self._content.readany()
            except web.RequestPayloadError:
                self.is_broken = True
                raise BrokenBody from None


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


async def read_body(request: web.BaseRequest, limits: Limits, *, encoded: bool) -> Body:
    """Read a body up to ``limits.max_replay_body``; a larger one is left to stream.

    Raises ``BodyTooLarge``, ``BrokenBody``, and ``NotJson`` if the beginning of a large one cannot be JSON.
    """
    upload = Upload(request)
    whole = upload.arrived() if request.content.total_bytes <= limits.max_replay_body else None
    if whole is not None:
        if len(whole) > limits.max_request_body:
            raise BodyTooLarge
        return HeldBody(whole)
    announced = request.content_length
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
