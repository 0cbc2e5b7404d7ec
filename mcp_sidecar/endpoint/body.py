"""The client's body: on the endpoint held whole, so that it can be sent again; streamed on every other path."""

from __future__ import annotations

from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.upload import BrokenBody
from mcp_sidecar.wire.jsonrpc import NotJson


class BodyTooLarge(Exception):
    """The body is larger than ``limits.max_request_body``."""


UNREADABLE = (BodyTooLarge, BrokenBody, NotJson)
"""Why a body cannot be read: the client's fault, whatever the upstream made of the part it got."""


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body of up to ``limit`` bytes. Raises ``BodyTooLarge``, and ``BrokenBody``."""
    upload = request.upload
    if upload is None:
        return b""
    if request.length is not None and request.length > limit:
        raise BodyTooLarge
    whole = upload.arrived()
    if whole is not None:
        if len(whole) > limit:
            raise BodyTooLarge
        return whole
    parts: list[bytes] = []
    size = 0
    async for chunk in upload.chunks():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge
        parts.append(chunk)
    return b"".join(parts)
