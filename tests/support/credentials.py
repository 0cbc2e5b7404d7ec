"""Made-up credentials. Nothing here is signed: the sidecar reads tokens, the upstream is the one that verifies them."""

from __future__ import annotations

import base64
import itertools
import json

_serial = itertools.count()


def bearer(token: str) -> dict[str, str]:
    """The header of a bearer token."""
    return {"Authorization": f"Bearer {token}"}


def jwt(**claims: object) -> str:
    """A JWT of these claims; every one differs from all others, as refreshed tokens do."""
    return ".".join((_part({"alg": "RS256", "typ": "JWT"}), _part({**claims, "jti": next(_serial)}), "c2lnbmF0dXJl"))


def alice(**changes: object) -> dict[str, str]:
    """A fresh token of one and the same user, unless ``changes`` says otherwise."""
    return bearer(jwt(**{"iss": "https://issuer.example", "sub": "alice", "client_id": "app", **changes}))


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
