"""What is not public of aiohttp, or is used in another way than it is meant; one test for each name.

aiohttp is pinned to its minor version for the sake of this file (docs/decisions/0003).
"""

from __future__ import annotations

import asyncio

from aiohttp.http import HttpRequestParser, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

NO_HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
"""In place of those that nobody will ask for again."""

_ANOTHER_HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
"""Shown behind each: the parser keeps the headers of the latest head, and they may hold a credential."""


class RequestHeads:
    """aiohttp's request parser, shown one whole head at a time and no body: so it holds nothing between two requests.

    Without ``response_with_body`` it takes every message to end with its head, whatever that says of a body. One serves
    all connections.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_line_bytes: int, max_headers: int) -> None:
        self._loop = loop
        self._max_line_bytes = max_line_bytes
        self._max_headers = max_headers
        self._parser: HttpRequestParser | None = None

    def read(self, head: bytes) -> RawRequestMessage:
        """The one message in ``head``, which ends with its blank line. Raises what the parser raises."""
        parser, self._parser = self._parser or self._new_parser(), None  # after an error it is of no use
        messages, is_switched, behind = parser.feed_data(head)
        ((message, _),) = messages
        if behind:
            raise ValueError("more than a head")
        if not (is_switched or message.upgrade or message.should_close):  # behind these it reads no other
            parser.feed_data(_ANOTHER_HEAD)
            self._parser = parser
        return message

    def _new_parser(self) -> HttpRequestParser:
        return HttpRequestParser(
            None,  # asked only to pause the reading of a body
            self._loop,
            0,
            max_line_size=self._max_line_bytes,
            max_field_size=self._max_line_bytes,
            max_headers=self._max_headers,
            response_with_body=False,
            auto_decompress=False,
        )
