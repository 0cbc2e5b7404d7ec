"""The client's body: held whole where it may have to be sent again, streamed where it is too large for that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import StreamReader, web

from mcp_sidecar.proxy.config import Limits
from mcp_sidecar.wire.messages import Kind, Message, NotJson, from_scan, parse
from mcp_sidecar.wire.scan import TopLevelScan


class BodyTooLarge(Exception):
    """The body is larger than ``limits.max_request_body``."""


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
        self, beginning: bytes, rest: StreamReader, limits: Limits, announced: int | None, *, encoded: bool
    ) -> None:
        """``announced`` is the client's Content-Length; an ``encoded`` body is not looked into."""
        self._beginning = beginning
        self._rest = rest
        self._limit = limits.max_request_body
        self._size = 0
        self._scan = None if encoded else TopLevelScan()
        self._failure: BodyTooLarge | NotJson | None = None
        self.announced = announced
        self.has_begun = False
        self._look(beginning)

    @property
    def size(self) -> int:
        """How many bytes of it are held."""
        return len(self._beginning)

    @property
    def message(self) -> Message:
        """What is known of it so far; of an encoded body nothing."""
        return from_scan(self._scan) if self._scan is not None else Message(Kind.OTHER)

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, once."""
        self.has_begun = True
        yield self._beginning
        try:
            async for chunk in self._rest.iter_any():
                self._look(chunk)
                yield chunk
            self._end()
        except (BodyTooLarge, NotJson) as error:
            self._failure = error
            raise

    async def read_to_end(self) -> Message:
        """Read what is left without sending it anywhere, to learn the request's id.

        Raises ``BodyTooLarge`` or ``NotJson``, also where that is why the upstream did not get it whole.
        """
        if self._failure is not None:
            raise self._failure
        async for chunk in self._rest.iter_any():
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

    Raises ``BodyTooLarge``, and ``NotJson`` if the beginning of a large one cannot be JSON.
    """
    announced = request.content_length
    if announced is not None and announced > limits.max_request_body:
        raise BodyTooLarge
    parts: list[bytes] = []
    size = 0
    while chunk := await request.content.readany():
        parts.append(chunk)
        size += len(chunk)
        if size > limits.max_replay_body:
            return PassingBody(b"".join(parts), request.content, limits, announced, encoded=encoded)
    return HeldBody(b"".join(parts))


def message_of(body: Body) -> Message:
    """What the body is. Raises ``NotJson``."""
    return parse(body.data) if isinstance(body, HeldBody) else body.message
