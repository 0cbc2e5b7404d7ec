"""The client's body: on the endpoint held whole, so that it can be sent again; streamed on every other path."""

from __future__ import annotations

from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.upload import BrokenBody
from mcp_sidecar.waiting.budget import Claim
from mcp_sidecar.wire.jsonrpc import NotJson


class BodyTooLarge(Exception):
    """The body is larger than ``limits.max_request_body``."""


UNREADABLE = (BodyTooLarge, BrokenBody, NotJson)
"""Why a body cannot be read: the client's fault, whatever the upstream made of the part it got."""


async def read_body(request: Request, limit: int, claim: Claim) -> bytes:
    """Read a body of up to ``limit`` bytes, as far as ``claim`` finds room. Raises ``BodyTooLarge``, and ``BrokenBody``.

    There must be room for all that is announced before any is read; what is not announced is read as room is found.
    """
    upload = request.upload
    if upload is None:
        return b""
    if request.length is not None and request.length > limit:
        raise BodyTooLarge
    whole = upload.arrived()
    if whole is not None:
        if len(whole) > limit:
            raise BodyTooLarge
        claim.count(len(whole))
        return whole
    if request.length is not None:
        await claim.grow(request.length)
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
