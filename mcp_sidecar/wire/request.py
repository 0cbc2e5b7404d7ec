"""The head of one HTTP/1.1 request, read from its bytes: what is asked, and where its body ends.

The rule of this file, as of ``response``: it is the only one on the client's side that reads a head, and what two readers
could read differently (bare line feeds, folded lines, blanks before a colon, two lengths, a length beside chunks) is
refused. RFC 9112 §2.2, §3, §5, §6; RFC 9110 §5.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from mcp_sidecar.wire.framing import BodyFraming, ChunkedBody, SizedBody
from mcp_sidecar.wire.headers import MAX_FIELDS, Fields, read_fields

LAST_PORT = 65535

_METHOD = (
    "GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|QUERY"
    "|PROPFIND|PROPPATCH|MKCOL|COPY|MOVE|LOCK|UNLOCK|SEARCH|REPORT|ACL|CHECKOUT|MERGE|MKACTIVITY|MKCALENDAR"
    "|BIND|REBIND|UNBIND|LINK|UNLINK|M-SEARCH|NOTIFY|SUBSCRIBE|UNSUBSCRIBE|PURGE|SOURCE"
)
"""HTTP's own, WebDAV's, and some that are in use. Not ``CONNECT``: what follows it would be no HTTP."""

_REQUEST_LINE = re.compile(rf"({_METHOD}) ([!-~]++) HTTP/1\.([01])")
_WHOLE_LINE = re.compile(rb"[A-Z-]++ [!-~]++ HTTP/1\.[01]\r\n")
_BEGUN_LINE = re.compile(rb"[A-Z-]++(?: [!-~]*+(?: [HTP/1.0]{0,8}+\r?+)?+)?+")
_ABSOLUTE = re.compile(r"[A-Za-z]++://(?:[A-Za-z0-9._~-]++|\[[0-9A-Fa-f:.]++\])(?::([0-9]{1,5}+))?+((?:[/?][!-~]*+)?+)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_KEPT_ESCAPED = {ord("/"): "%2F", ord("%"): "%25"}

_SAID_ONCE = frozenset(
    {
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "etag",
        "host",
        "max-forwards",
        "server",
        "transfer-encoding",
        "user-agent",
    }
)
"""Of these one reader takes the first, and the next one the last (RFC 9110 §5.3)."""


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


@dataclass(slots=True)
class RequestHead:
    """``target`` is byte for byte what the client has asked for, without the origin where it names one.

    ``framing`` is that of the body, if one follows; ``keep_alive``: the client may send another request behind it.
    """

    method: str
    target: str
    fields: Fields
    is_http10: bool
    keep_alive: bool
    framing: BodyFraming | None


class HeadReader:
    """Reads heads of requests. It keeps nothing of one, so that one reader serves all connections."""

    def __init__(self, max_header_bytes: int) -> None:
        """``max_header_bytes`` bounds the request line, and all headers together."""
        self._max_bytes = max_header_bytes

    def fault_of(self, begun: bytes) -> Fault | None:
        """What is wrong with a head that has begun so: it is not waited for the rest of what cannot become one."""
        if self._is_too_large(begun):
            return Fault.HEAD_TOO_LARGE
        line = _WHOLE_LINE.match(begun) if b"\n" in begun else _BEGUN_LINE.fullmatch(begun)
        return Fault.UNREADABLE if line is None else None

    def _is_too_large(self, head: bytes) -> bool:
        line_end = head.find(b"\r\n")
        longest = len(head) if line_end < 0 else max(line_end, len(head) - line_end - 2)
        return longest > self._max_bytes

    def read(self, head: bytes) -> RequestHead:
        """The whole head that these bytes are, the blank line included. Raises ``Unreadable``."""
        if self._is_too_large(head):
            raise Unreadable(Fault.HEAD_TOO_LARGE)
        first, _, lines = head[:-2].decode("utf-8", "surrogateescape").partition("\r\n")
        line, fields = _REQUEST_LINE.fullmatch(first), read_fields(lines)
        if line is None or fields is None:
            raise Unreadable(Fault.UNREADABLE)
        if len(fields.names) > MAX_FIELDS:
            raise Unreadable(Fault.HEAD_TOO_LARGE)
        is_http10, names = line[3] == "0", fields.names
        if not ("host" in names or is_http10) or _says_twice(names):
            raise Unreadable(Fault.UNREADABLE)
        options = fields.options("connection")
        keep_alive = "close" not in options and (not is_http10 or "keep-alive" in options)
        return RequestHead(
            line[1], _target(line[1], line[2]), fields, is_http10, keep_alive, _framing(fields, is_http10=is_http10)
        )


def _says_twice(names: list[str]) -> bool:
    return len(set(names)) != len(names) and any(names.count(name) > 1 for name in _SAID_ONCE.intersection(names))


def _target(method: str, told: str) -> str:
    """RFC 9112 §3.2. The host of an absolute one is passed over: ours, whichever of its names the client has used."""
    if told.startswith("/"):
        return told
    if told == "*" and method == "OPTIONS":
        return told
    absolute = _ABSOLUTE.fullmatch(told)
    if absolute is None or int(absolute[1] or 0) > LAST_PORT:
        raise Unreadable(Fault.UNREADABLE)
    return absolute[2].partition("#")[0]


def _framing(fields: Fields, *, is_http10: bool) -> BodyFraming | None:
    codings, length = fields.value("transfer-encoding"), fields.value("content-length")
    if codings is None:
        if length is None:
            return None
        if _LENGTH.fullmatch(length) is None:
            raise Unreadable(Fault.UNREADABLE)
        return SizedBody(int(length)) if int(length) else None
    if length is not None or is_http10 or not codings.isascii():
        raise Unreadable(Fault.UNREADABLE)
    *below, last = (coding.strip(" \t") for coding in codings.lower().split(","))
    if last != "chunked" or "chunked" in below:
        raise Unreadable(Fault.UNREADABLE)
    if below:
        raise Unreadable(Fault.BAD_CODING)
    return ChunkedBody()


def path_of(target: str) -> str:
    """The path of a target, as it was sent."""
    path, mark, _ = target.partition("?")
    return path if mark else target.partition("#")[0]


def without_escapes(path: str) -> str:
    """A path in the form in which the ways to write it are alike: nothing is escaped but what would mean something else.

    That is a slash or a percent sign; escapes that are not UTF-8 stay as they are. Nothing is merged or resolved.
    """
    return _ESCAPES.sub(_without_escapes, path) if "%" in path else path


def _without_escapes(found: re.Match[str]) -> str:
    try:
        return bytes.fromhex(found[0].replace("%", "")).decode().translate(_KEPT_ESCAPED)
    except UnicodeDecodeError:
        return found[0]
