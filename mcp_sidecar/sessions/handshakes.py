"""What clients and servers have said of themselves, kept once however many sessions say the same, and how much it is."""

from __future__ import annotations

import hashlib
import weakref
from typing import Final

from mcp_sidecar.healing.handshake import Handshake

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all of them together. They live as long as their sessions do, a day and more, so they are no part of
``limits.max_buffered_bytes``: what never comes back there would hold up every large body. A hundred thousand clients that all
say something else of themselves, in the usual 600 bytes, are below it."""

MAX_RESULT_BYTES: Final = 16 * 1024
"""Of what a server said; of what is longer only a digest is kept, which is enough to be compared."""


class Handshakes:
    """``size`` are the bytes of those that some session has."""

    def __init__(self) -> None:
        """None yet."""
        self._known: weakref.WeakValueDictionary[bytes, Handshake] = weakref.WeakValueDictionary()
        self.size = 0

    def shared(self, handshake: Handshake) -> Handshake:
        """The same client against the same server says the same thousands of times: the one that is kept."""
        digest = hashlib.blake2b(handshake.params + b"\0" + handshake.result, digest_size=16).digest()
        known = self._known.get(digest)
        if known is not None:
            return known
        if len(handshake.result) > MAX_RESULT_BYTES:
            handshake = handshake.condensed()
        self._known[digest] = handshake
        size = len(handshake.params) + len(handshake.result)
        self.size += size
        weakref.finalize(handshake, self._gone, size).atexit = False
        return handshake

    @property
    def are_too_many(self) -> bool:
        """Whether sessions have to go for what they hold of these."""
        return self.size > MAX_BYTES

    def _gone(self, size: int) -> None:
        self.size -= size
