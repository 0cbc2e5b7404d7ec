"""The client's body: on the endpoint held whole, so that it can be sent again; streamed on every other path."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import HttpVersion11, StreamReader, hdrs, web

from mcp_sidecar.waiting.budget import Claim
from mcp_sidecar.wire.jsonrpc import NotJson

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyTooLarge(Exception):
    """The body is larger than ``limits.max_request_body``."""


class BrokenBody(Exception):
    """The client's framing of the body is wrong, or ends before the body does."""


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
        self.is_broken = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """What is left of the body. Raises ``BrokenBody``."""
        if self._is_awaited:
            self._is_awaited = False
            await self._request.writer.write(CONTINUE)
            self._request.writer.output_size = 0  # of the answer nothing is sent yet
        while chunk := await self._read():
            yield chunk

    def arrived(self) -> bytes | None:
        """All of the body, where it is here by now."""
        content = self._content
        if self._is_awaited or not content.is_eof() or content.exception() is not None:
            return None
        return content.read_nowait(-1)

    async def _read(self) -> bytes:
        try:
            return await self._content.readany()
        except web.RequestPayloadError:
            self.is_broken = True
            raise BrokenBody from None


async def read_body(request: web.BaseRequest, limit: int, claim: Claim) -> bytes:
    """Read a body of up to ``limit`` bytes, as far as ``claim`` finds room. Raises ``BodyTooLarge``, and ``BrokenBody``.

    There must be room for all that is announced before any is read; what is not announced is read as room is found.
    """
    announced = request.content_length
    if announced is not None and announced > limit:
        raise BodyTooLarge
    upload = Upload(request)
    whole = upload.arrived()
    if whole is not None:
        if len(whole) > limit:
            raise BodyTooLarge
        claim.count(len(whole))
        return whole
    if announced is not None:
        await claim.grow(announced)
    parts: list[bytes] = []
    size = 0
    async for chunk in upload.chunks():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge
        parts.append(chunk)
        if size > claim.size:
            await claim.grow(size - claim.size)
    return b"".join(parts)
