"""What aiohttp's objects hold and an open stream does not need: they are made for exchanges that are over in a moment.

A stream may be open for days, and thousands are at once. Nothing in here changes what passes.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

T = TypeVar("T")

NO_HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
"""In place of those that nobody will ask for again."""


class Few(list[T]):
    """A queue for a handful of things: a deque takes 700 bytes for none."""

    __slots__ = ()

    def popleft(self) -> T:
        """Take the first."""
        return self.pop(0)

    def appendleft(self, item: T) -> None:
        """Put one before the others."""
        self.insert(0, item)


class Light(Protocol):
    """A connection that can let go of what is for requests only."""

    def lighten(self) -> None:
        """Do so; a request is under way, and is a stream."""


def lighten_request(request: web.BaseRequest) -> None:
    """Forget a request's head.

    Version, method, protocol and writer stay, which is what an answer needs.
    """
    message = request._message
    request._message = message._replace(headers=NO_HEADERS, raw_headers=(), path="", url=URL())
    request._headers = NO_HEADERS
    request._rel_url = URL()
    cast("Light", request.protocol).lighten()
