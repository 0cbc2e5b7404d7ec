"""The events of an answer, in batches of little work, so that nobody's stream keeps the others from theirs.

A million tiny events come in a second. What is done with each is some microseconds of work, which nobody else gets meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.wire.sse import Block, EventSplitter, Fragment

BATCH_PIECES = 128
"""At some forty microseconds each these are some milliseconds of work; a call takes a handful of turns."""

SLICE_BYTES = 64 * 1024
"""So much is cut into events at a time."""

Batch = list[Block | Fragment]


async def batches(splitter: EventSplitter, chunk: bytes) -> AsyncIterator[Batch]:
    """What a chunk brings, piece by piece; between two batches the loop turns."""
    for start in range(0, len(chunk), SLICE_BYTES):
        if start:
            await asyncio.sleep(0)
        async for batch in in_batches(splitter.feed(chunk[start : start + SLICE_BYTES])):
            yield batch


async def in_batches(pieces: Batch) -> AsyncIterator[Batch]:
    """The same of what is in pieces already."""
    for at in range(0, len(pieces), BATCH_PIECES):
        if at:
            await asyncio.sleep(0)
        yield pieces[at : at + BATCH_PIECES]


async def event_batches(answer: Answer, splitter: EventSplitter) -> AsyncIterator[Batch]:
    """All of an answer's body. Raises ``UpstreamFault`` where it breaks."""
    async for chunk in answer.chunks():
        async for batch in batches(splitter, chunk):
            yield batch
        await answer.hold_beside(splitter.held_bytes)
