"""The head of a request, read strictly: what two readers could read differently is refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Hashable
from enum import Enum

from aiohttp import HttpVersion10, hdrs
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from multidict import CIMultiDictProxy
from yarl import URL

from mcp_sidecar.aiohttp_internals import NO_HEADERS, read_request_head
from mcp_sidecar.downstream.upload import Upload
from mcp_sidecar.wire.framing import BodyFraming, ChunkedBody, SizedBody

MAX_HEADERS = 256
"""What ``limits.max_header_bytes`` of headers may be split into."""

_REQUEST_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [!-~]+ HTTP/1\.[01]\r\n")
_BEGUN_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?: [!-~]*(?: [HTP/1.0]{0,8}\r?)?)?")
_NO_URL = URL()
_LENGTH = re.compile(r"[0-9]{1,18}")


class Fault(Enum):
    """Why the connection ends with a refusal, and no request comes of what was sent."""

    UNREADABLE = "not HTTP/1.1 as everybody reads it"
    HEAD_TOO_LARGE = "the head is too large"
    BAD_CODING = "a transfer coding below the chunks"
    HEAD_TOO_SLOW = "the head was begun and not ended"


class Unreadable(Exception):
    """No request comes of what was sent."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Request:
    """One request of a client. ``in_flight`` is what the fast path has handed over with it, if it has."""

    __slots__ = (
        "connection",
        "headers",
        "in_flight",
        "is_http10",
        "keep_alive",
        "length",
        "method",
        "peer",
        "raw_headers",
        "target",
        "upload",
        "url",
    )

    def __init__(self, message: RawRequestMessage, peer: str | None) -> None:
        """``connection`` is what it came on, for whoever must tell one from another.

        ``upload`` and ``length`` are set where a body follows; the length is ``None`` where it is not told.
        """
        url = message.url
        self.method = message.method
        self.url = url.relative() if url.absolute else url
        path = message.path
        self.target = path if path.startswith("/") else self.url.raw_path_qs  # byte for byte
        self.headers: CIMultiDictProxy[str] = message.headers
        self.raw_headers = message.raw_headers
        self.is_http10 = message.version == HttpVersion10
        self.keep_alive = not message.should_close
        self.peer = peer
        self.connection: Hashable | None = None
        self.upload: Upload | None = None
        self.length: int | None = None
        self.in_flight: object | None = None

    def forget_head(self) -> None:
        """From now on only the answer counts."""
        self.headers, self.raw_headers, self.target, self.url = NO_HEADERS, (), "", _NO_URL


class HeadReader:
    """Reads heads of requests. It keeps nothing of one, so that one reader serves all connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_header_bytes: int) -> None:
        """``max_header_bytes`` bounds the request line, and all headers together."""
        self._max_bytes = max_header_bytes
        self._loop = loop

    def fault_of(self, begun: bytes) -> Fault | None:
        """What is wrong with a head that has begun so: it is not waited for the rest of what cannot become one."""
        if self._is_too_large(begun):
            return Fault.HEAD_TOO_LARGE
        line = _REQUEST_LINE.match(begun) if b"\n" in begun else _BEGUN_LINE.fullmatch(begun)
        return Fault.UNREADABLE if line is None else None

    def _is_too_large(self, head: bytes) -> bool:
        line_end = head.find(b"\r\n")
        longest = len(head) if line_end < 0 else max(line_end, len(head) - line_end - 2)
        return longest > self._max_bytes

    def read(self, head: bytes, peer: str | None) -> tuple[Request, BodyFraming | None]:
        """The request of a whole head, and how its body is framed, if one follows. Raises ``Unreadable``."""
        if self._is_too_large(head):
            raise Unreadable(Fault.HEAD_TOO_LARGE)
        lines = head.count(b"\r\n")
        if _REQUEST_LINE.match(head) is None or head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise Unreadable(Fault.UNREADABLE)
        try:
            message = read_request_head(self._loop, head, max_line_bytes=self._max_bytes, max_headers=MAX_HEADERS)
        except Exception as error:  # noqa: BLE001 - whatever the parser stumbles over is the client's fault
            is_large = isinstance(error, LineTooLong) or "Too many headers" in str(error)
            fault = Fault.HEAD_TOO_LARGE if is_large else Fault.UNREADABLE
        else:
            return self._request(message, peer)
        raise Unreadable(fault)

    def _request(self, message: RawRequestMessage, peer: str | None) -> tuple[Request, BodyFraming | None]:
        if message.method == hdrs.METH_CONNECT:
            raise Unreadable(Fault.UNREADABLE)
        request = Request(message, peer)
        framing = _framing(message)
        if isinstance(framing, SizedBody):
            request.length = framing.missing
        return request, framing


def _framing(message: RawRequestMessage) -> BodyFraming | None:
    codings = message.headers.getall(hdrs.TRANSFER_ENCODING, ())
    length = message.headers.get(hdrs.CONTENT_LENGTH)
    if not codings:
        if length is None:
            return None
        if _LENGTH.fullmatch(length) is None:
            raise Unreadable(Fault.UNREADABLE)
        return SizedBody(int(length)) if int(length) else None
    if length is not None or len(codings) > 1 or message.version == HttpVersion10:
        raise Unreadable(Fault.UNREADABLE)
    coding = codings[0].strip().lower()
    if coding == "chunked":
        return ChunkedBody()
    is_below = coding.rpartition(",")[2].strip() == "chunked"
    raise Unreadable(Fault.BAD_CODING if is_below else Fault.UNREADABLE)
