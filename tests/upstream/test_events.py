"""Work on many events is shared out: the loop turns between two batches, and a batch is a bounded number of pieces."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from mcp_sidecar.upstream.events import BATCH_PIECES, SLICE_BYTES, batches
from mcp_sidecar.wire.sse import EventSplitter

AMPLE = 1 << 24


class Turns:
    """Counts the turns of the loop, as another client's request would wait for them."""

    def __init__(self) -> None:
        self.count = 0
        self._next: asyncio.Handle | None = None

    def start(self) -> None:
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        assert self._next is not None
        self._next.cancel()

    def _turn(self) -> None:
        self.count += 1
        self.start()


async def turns_between(chunk: bytes) -> tuple[list[int], list[int], bytes]:
    """Of each batch its number of pieces, and how many turns had been when it came; and all bytes."""
    turns, splitter, passed = Turns(), EventSplitter(AMPLE), b""
    sizes, seen = [], []
    turns.start()
    async for batch in batches(splitter, chunk):
        sizes.append(len(batch))
        seen.append(turns.count)
        passed += b"".join(piece.raw for piece in batch)
    turns.stop()
    return sizes, seen, passed + splitter.pending


@pytest.mark.long
@pytest.mark.parametrize(
    "event", [b"a\n\n", b"data:\n\n", b"id: 1\r\n\r\n", b"data: {}\n: c\n\n", b": c\n\ndata: x\n\n"]
)
async def test_the_loop_turns_between_batches(event: bytes) -> None:
    """However many events come at once, others have their turn after a bounded number of them."""
    chunk = event * 20_000
    sizes, seen, passed = await turns_between(chunk)
    assert passed == chunk
    assert max(sizes) <= BATCH_PIECES
    assert len(sizes) >= 20_000 // BATCH_PIECES
    assert all(later > earlier for earlier, later in pairwise(seen))


async def test_one_event_costs_no_turn() -> None:
    """What most chunks are, one event, is passed on at once."""
    sizes, seen, _ = await turns_between(b'data: {"jsonrpc":"2.0"}\n\n')
    assert (sizes, seen) == ([1], [0])


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"\r", b":\n", b": keep-alive\n\n"])
async def test_what_says_nothing_is_one_piece_a_slice(line: bytes) -> None:
    """A million blank lines or comments are as many pieces as there are slices, not as there are lines."""
    chunk = line * (1_000_000 // len(line))
    sizes, _, passed = await turns_between(chunk)
    assert passed == chunk
    assert sum(sizes) <= 2 * (len(chunk) // SLICE_BYTES + 1)
