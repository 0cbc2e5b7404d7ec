"""Who is asking: the principal that a session belongs to.

Nothing here verifies a credential; the upstream does. A principal only answers "is this the one that initialized?",
and it is a keyed hash, so that no credential is kept. Cookies never count: a browser sends them
on behalf of whoever lured it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NewType

from mcp_sidecar.wire.headers import Fields, Pair

Principal = NewType("Principal", bytes)
"""A keyed hash; equal for requests of the same principal, empty where a request carries no credential."""

ANONYMOUS = Principal(b"")

REMEMBERED = 4096
_DIGEST_BYTES = 16
_CLIENT_CLAIMS = ("client_id", "azp", "cid", "appid")  # RFC 9068, OpenID Connect, Okta, Entra ID v1


class Principals:
    """Tells whose request it is, and remembers by the hash of the credentials what it has told of them lately.

    A JWT bearer counts by issuer, subject and client, so that a refreshed token goes on; without a subject, and for
    every other credential, the value itself counts, so that a rotated opaque token is somebody else.
    What is kept are two keyed hashes per credential, and of ``REMEMBERED`` credentials at most.
    """

    def __init__(self, header_names: Sequence[str], key: bytes) -> None:
        """``header_names`` (lower case) are those whose credentials count; cookies never do."""
        self._names = tuple(header_names)
        self._key = key
        self._told: dict[Principal, Principal] = {}

    def of(self, fields: Fields) -> tuple[Principal, Principal]:
        """A request's principal, and a hash of its very credentials, which changes with a refresh."""
        return self._of([(name, value.strip()) for name in self._names for value in fields.values(name)])

    def of_values(self, values: Mapping[str, str]) -> tuple[Principal, Principal]:
        """The same of headers by their lower-case names, of which none is there twice."""
        return self._of([(name, values[name].strip()) for name in self._names if name in values])

    def _of(self, credentials: list[Pair]) -> tuple[Principal, Principal]:
        if not credentials:
            return ANONYMOUS, ANONYMOUS
        credential = _digest(credentials, self._key)
        principal = self._told.get(credential)
        if principal is None:
            principal = _principal(credentials, self._key)
            if len(self._told) >= REMEMBERED:
                del self._told[next(iter(self._told))]
            self._told[credential] = principal
        return principal, credential


def _principal(credentials: list[Pair], key: bytes) -> Principal:
    return _digest([(name, _identity(value)) for name, value in credentials], key)


def _digest(identities: Sequence[tuple[str, str | list[str]]], key: bytes) -> Principal:
    text = repr(identities).encode()  # its quotes and escapes keep the parts apart, whatever they hold
    return Principal(hashlib.blake2b(text, key=key, digest_size=_DIGEST_BYTES).digest())


def _identity(credential: str) -> list[str]:
    scheme, _, token = credential.partition(" ")
    claims = _jwt_claims(token.strip()) if scheme.lower() == "bearer" else {}
    told = [claims.get("iss", ""), claims.get("sub"), _client(claims)]
    identity = [claim for claim in told if isinstance(claim, str)]
    # RFC 7519 §4.1: all of them are strings. Whatever is not is nobody that two tokens could have in common.
    return ["jwt", *identity] if len(identity) == len(told) and claims["sub"] else [credential]


def _client(claims: dict[str, object]) -> object:
    return next((claims[name] for name in _CLIENT_CLAIMS if name in claims), "")


def _jwt_claims(token: str) -> dict[str, object]:
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    header, claims = _decode_part(parts[0]), _decode_part(parts[1])
    return claims if "alg" in header else {}


def _decode_part(part: str) -> dict[str, object]:
    try:
        decoded = json.loads(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
