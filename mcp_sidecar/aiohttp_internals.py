"""What is not public of aiohttp, or is used in another way than it is meant; one test for each name.

aiohttp is pinned to its minor version for the sake of this file (docs/decisions/0003).
"""

from __future__ import annotations

import asyncio

from aiohttp.http import HttpRequestParser, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

NO_HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
"""In place of those that nobody will ask for again."""


def read_request_head(
    loop: asyncio.AbstractEventLoop, head: bytes, *, max_line_bytes: int, max_headers: int
) -> RawRequestMessage:
    """The one message in ``head``, which ends with its blank line, by aiohttp's parser. Raises what that raises.

    Without ``response_with_body`` it takes every message to end with its head, whatever that says of a body. A parser
    keeps the headers of the last message, credentials and all: hence one for each head, which costs 2 µs.
    """
    parser = HttpRequestParser(
        None,  # asked only to pause the reading of a body
        loop,
        0,
        max_line_size=max_line_bytes,
        max_field_size=max_line_bytes,
        max_headers=max_headers,
        response_with_body=False,
        auto_decompress=False,
    )
    messages, _, behind = parser.feed_data(head)
    ((message, _),) = messages
    if behind:
        raise ValueError("more than a head")
    return message
