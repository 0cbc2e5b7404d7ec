"""What aiohttp's objects hold and an open stream does not need: they are made for exchanges that are over in a moment.

A stream may be open for days, and thousands are at once. Nothing in here changes what passes.
"""

from __future__ import annotations

from typing import TypeVar

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.http import RawResponseMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

T = TypeVar("T")

NO_HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
NO_ANSWER = RawResponseMessage(HttpVersion11, 200, "", NO_HEADERS, (), False, None, False, False)
"""In place of a head that nobody will ask for again."""


class Few(list[T]):
    """A queue for a handful of things: a deque takes 700 bytes for none."""

    __slots__ = ()

    def popleft(self) -> T:
        """Take the first."""
        return self.pop(0)

    def appendleft(self, item: T) -> None:
        """Put one before the others."""
        self.insert(0, item)


def lighten_request(request: web.BaseRequest) -> None:
    """Forget a request's head, and the timer that is for connections without a request.

    Version, method, protocol and writer stay, which is what an answer needs.
    """
    message = request._message
    request._message = message._replace(headers=NO_HEADERS, raw_headers=(), path="", url=URL())
    request._headers = NO_HEADERS
    request._rel_url = URL()
    protocol = request.protocol
    protocol._messages = Few(protocol._messages)  # type: ignore[assignment]
    if protocol._keepalive_handle is not None:  # the server starts it anew behind an answer
        protocol._keepalive_handle.cancel()
        protocol._keepalive_handle = None


def lighten_reader(content: StreamReader) -> None:
    """Take the queue of what has come for the short one that it is in a stream."""
    content._buffer = Few(content._buffer)  # type: ignore[assignment]
