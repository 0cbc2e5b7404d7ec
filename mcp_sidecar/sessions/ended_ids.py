"""Session ids that are over, as keyed hashes with the principals whose they were, a bounded number of them."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict

from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.record import ClientSessionId


class EndedIds:
    """The latest of them; the oldest are forgotten first."""

    def __init__(self, key: bytes, limit: int) -> None:
        """``key`` is random: no id is kept in clear."""
        self._key = key
        self._limit = limit
        self._latest: OrderedDict[tuple[bytes, Principal], None] = OrderedDict()
        self._of: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._latest)

    def remember(self, client_id: ClientSessionId, principal: Principal) -> None:
        """The principal's session with this id is over, as the latest."""
        self.forget(client_id, principal)
        hashed = self._hash(client_id)
        self._latest[hashed, principal] = None
        self._of[hashed] += 1
        while len(self._latest) > self._limit:
            (oldest, _), _ = self._latest.popitem(last=False)
            self._count_down(oldest)

    def forget(self, client_id: ClientSessionId, principal: Principal) -> None:
        """The principal has a session with this id again."""
        hashed = self._hash(client_id)
        if (hashed, principal) in self._latest:
            del self._latest[hashed, principal]
            self._count_down(hashed)

    def is_of(self, client_id: ClientSessionId, principal: Principal) -> bool:
        """Whether the principal's session with this id is over."""
        return (self._hash(client_id), principal) in self._latest

    def is_anybodys(self, client_id: ClientSessionId) -> bool:
        """Whether anybody's session with this id is."""
        return self._hash(client_id) in self._of

    def _count_down(self, hashed: bytes) -> None:
        self._of[hashed] -= 1
        if not self._of[hashed]:
            del self._of[hashed]

    def _hash(self, client_id: ClientSessionId) -> bytes:
        return hashlib.blake2b(client_id.encode(), key=self._key, digest_size=16).digest()
