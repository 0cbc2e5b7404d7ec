"""The client's body: on the endpoint held whole, so that it can be sent again; streamed on every other path."""

from __future__ import annotations

from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.upload import BrokenBody
from mcp_sidecar.waiting.budget import Claim
from mcp_sidecar.wire.jsonrpc import NotJson


class BodyTooLarge(Exception):
    """The body is larger than ``limits.max_request_body``."""


TWICE = 2
"""A body that was read is in memory as bytes, and as what they say: values that take about as much again."""

UNREADABLE = (BodyTooLarge, BrokenBody, NotJson)
"""Why a body cannot be read: the client's fault, whatever the upstream made of the part it got."""


async def read_body(request: Request, limit: int, claim: Claim) -> bytes:
    """Read a body of up to ``limit`` bytes, as far as ``claim`` finds room. Raises ``BodyTooLarge``, and ``BrokenBody``.

    There must be room for all that is announced before any is read; what is not announced is read as room is found. What
    has come already counts while it waits.
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
        claim.count(TWICE * len(whole))
        return whole
    if request.length is not None:
        claim.count(min(upload.size, request.length))
        await claim.grow(TWICE * request.length - claim.size)
    read = bytearray()  # not a list of parts: hundreds of them leave gaps behind that nobody else has a use for
    async for chunk in upload.chunks():
        read += chunk
        if len(read) > limit:
            raise BodyTooLarge
        if TWICE * len(read) > claim.size:
            await claim.grow(TWICE * len(read) - claim.size)
    return bytes(read)
