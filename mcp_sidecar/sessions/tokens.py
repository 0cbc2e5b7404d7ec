"""Session ids that are tokens: made of a new session, and made into a session again wherever they are handed in.

The rule of this file: a token counts only for the principal that it was made for, told by the hash under the token's own key.
What a token does not hold (log level, subscriptions, lists, an end) is known only to the process that has seen it.
"""

from __future__ import annotations

import hashlib
from typing import Final

from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.principal import ANONYMOUS, Identity, Principal
from mcp_sidecar.healing.record import Instance, SessionRecord, UpstreamSessionId
from mcp_sidecar.sessions.stores.keys import Key, KeyRing
from mcp_sidecar.sessions.stores.sealed import INSTANCE_BYTES, Rejected, Sealed, Sealer, is_token
from mcp_sidecar.wire.cookies import Cookies

FRESH_S: Final = 30.0
"""A session that is older may have called a tool, for all that its token tells."""

_PURPOSE: Final = b"mcps principal"


class Tokens:
    """Makes and reads the session ids of one namespace."""

    def __init__(self, ring: KeyRing, *, instance: str, namespace: str, lifetime_s: float) -> None:
        """``instance`` is the key of this process's upstream."""
        self._ring = ring
        self._instance = instance
        self._namespace = namespace
        self._lifetime_s = int(lifetime_s)
        self._sealer = Sealer(ring.keys, namespace)

    def renew(self) -> None:
        """The keys have changed."""
        self._sealer = Sealer(self._ring.keys, self._namespace)

    @property
    def principal_keys(self) -> dict[bytes, bytes]:
        """What principals are to be hashed with, by the names of the keys."""
        return {key.id: key.subkey(_PURPOSE, 32) for key in self._ring.keys}

    def is_one(self, session_id: str) -> bool:
        """Whether this claims to be one."""
        return is_token(session_id)

    def made_for(
        self,
        identity: Identity,
        tag: str,
        handshake: Handshake,
        upstream_id: UpstreamSessionId,
        cookies: Cookies,
        now: float,
    ) -> str | None:
        """The id of a session that was just opened; ``None`` where it would be too long to pass everywhere."""
        principal = _under(identity, self._ring.keys.first)
        if principal is None:
            return None
        here = self._hash()
        return self._sealer.seal(Sealed(now, self._lifetime_s, principal, tag, here, upstream_id, handshake, cookies))

    def read(self, session_id: str, identity: Identity, now: float) -> SessionRecord | Rejected:
        """The session behind an id, as its ``initialize`` left it: it stands nowhere but where that was answered."""
        found = self._sealer.open(session_id, lambda key: _under(identity, key), now)
        if isinstance(found, Rejected):
            return found
        here = Instance(self._instance, found.upstream_id, "", found.cookies)
        return SessionRecord(
            handshake=found.handshake,
            principal=identity.principal,
            tag=found.tag,
            created_at=found.issued_at,
            last_used_at=now,
            instances=(here,) if found.instance == self._hash() else (),
            is_used=now - found.issued_at > FRESH_S,
        )

    def _hash(self) -> bytes:
        return hashlib.blake2b(self._instance.encode(), digest_size=INSTANCE_BYTES).digest()


def _under(identity: Identity, key: Key) -> Principal | None:
    """Whose request it is under a key; ``None`` where that is not known."""
    return ANONYMOUS if identity.principal == ANONYMOUS else identity.under.get(key.id)
