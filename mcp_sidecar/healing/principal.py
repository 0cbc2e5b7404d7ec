"""Who is asking: the principal that a session belongs to.

Nothing here verifies a credential; the upstream does. A principal only answers "is this the one that initialized?",
and it is a keyed hash, so that no credential is kept. Told by the headers and cookies that the operator has named, and by the
endpoint's query, where keys are put, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType

from mcp_sidecar.wire.headers import Fields

Principal = NewType("Principal", bytes)
"""A keyed hash; equal for requests of the same principal, empty where a request carries no credential."""

ANONYMOUS = Principal(b"")

REMEMBERED = 4096
ACCEPTED = 16
"""So many credentials of one session are remembered."""

_DIGEST_BYTES = 16
_CLIENT_CLAIMS = ("client_id", "azp", "cid", "appid")  # RFC 9068, OpenID Connect, Okta, Entra ID v1
_COOKIE, _QUERY = "cookie", "?"
_REFRESHED_SCHEMES = frozenset({"bearer", "dpop"})


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request says it is, as hashes.

    ``credential`` stands for the very credentials, which change with a refresh. ``kind`` is what a refreshed credential
    keeps, as far as its text tells: where it stands, its scheme, and a JWT's issuer and subject. ``is_verbatim``: the
    principal is told by the very credentials, and not by what a token says of itself, which anybody could have written.
    ``earlier`` is the principal as it was told before the secret of the hashes was known,
    ``under`` what it is under other secrets, by their names.
    """

    principal: Principal = ANONYMOUS
    credential: Principal = ANONYMOUS
    kind: tuple[tuple[str, bytes, bytes], ...] = ()
    is_verbatim: bool = True
    earlier: Principal | None = field(default=None, compare=False)
    under: Mapping[bytes, Principal] = field(default_factory=dict, compare=False)

    def may_succeed(self, owner: Identity) -> bool:
        """Whether this may be the owner with a newer credential; only the upstream can say whether it is.

        A bearer token for a bearer token, a named cookie for the same cookie, and no JWT of another issuer or subject.
        """
        if not self.kind or len(self.kind) != len(owner.kind):
            return False
        return all(map(_may_follow, self.kind, owner.kind))


NOBODY = Identity()


@dataclass(frozen=True, slots=True)
class Accepted:
    """Whose credentials the upstream has accepted in a session: only these act on what the sidecar holds of it.

    The ``owner`` is whoever opened it; ``identities`` come in the order in which they were accepted.
    """

    owner: Principal
    identities: tuple[Identity, ...] = ()

    def holds(self, identity: Identity) -> bool:
        """Whether its credential was accepted. The owner's own, letter by letter, needs no second proof."""
        return identity in self.identities or (identity.is_verbatim and identity.principal == self.owner)

    def knows(self, credential: Principal) -> bool:
        """Whether this credential was accepted since the session is in memory."""
        return any(identity.credential == credential for identity in self.identities)

    def and_also(self, identity: Identity) -> Accepted:
        """The same with one more; of too many the first stays, which says what the others may be, and the oldest goes."""
        if identity in self.identities:
            return self
        first, others = self.identities[:1], self.identities[1:]
        return Accepted(self.owner, (*first, *others[-ACCEPTED + 2 :], identity))

    def may_be_followed_by(self, identity: Identity) -> bool:
        """Whether this may be a refreshed credential, as far as its text tells; the upstream has to say so."""
        return bool(self.identities) and all(map(identity.may_succeed, self.identities))


def _may_follow(new: tuple[str, bytes, bytes], old: tuple[str, bytes, bytes]) -> bool:
    same_place = new[0] == old[0]
    return same_place and all(
        not said or not before or said == before for said, before in zip(new[1:], old[1:], strict=True)
    )


class Principals:
    """Tells whose request it is, and remembers by the hash of the credentials what it has told of them lately.

    A JWT bearer counts by issuer, subject and client, so that a refreshed token goes on; without a subject, and for
    every other credential, the value itself counts. What is kept are hashes, of ``REMEMBERED`` credentials at most.
    """

    def __init__(self, header_names: Sequence[str], key: bytes, cookie_names: Sequence[str] = ()) -> None:
        """``header_names`` (lower case) are those whose credentials count, ``cookie_names`` the cookies.

        ``*`` at the end of a cookie's name stands for any rest.
        """
        self._names = tuple(header_names)
        self._cookies = frozenset(name for name in cookie_names if not name.endswith("*"))
        self._cookie_prefixes = tuple(name[:-1] for name in cookie_names if name.endswith("*"))
        self._has_cookies = bool(cookie_names)
        self._key = key
        self._earlier_key: bytes | None = None
        self._others: Mapping[bytes, bytes] = {}
        self._told: dict[Principal, Identity] = {}
        self.changes = 0
        """How often everybody was told anew."""

    def use(self, key: bytes) -> None:
        """The secret of the hashes from now on; who was told by another one before is known again."""
        if key == self._key:
            return
        self._earlier_key = self._key if self._told else None
        self._key = key
        self._told.clear()
        self.changes += 1

    def also_under(self, keys: Mapping[bytes, bytes]) -> None:
        """Tell everybody under these secrets, too; they have names."""
        self._others = keys
        self._told.clear()
        self.changes += 1

    def of(self, fields: Fields, query: str = "") -> Identity:
        """Who a request to the endpoint with this query is from."""
        credentials = [(name, value.strip()) for name in self._names for value in fields.values(name)]
        return self._of(credentials, fields.values(_COOKIE) if self._has_cookies else (), query)

    def of_values(self, values: Mapping[str, str], query: str = "") -> Identity:
        """The same of headers by their lower-case names, of which none is there twice."""
        credentials = [(name, values[name].strip()) for name in self._names if name in values]
        return self._of(credentials, (values[_COOKIE],) if self._has_cookies and _COOKIE in values else (), query)

    def _of(self, credentials: list[tuple[str, str]], cookies: Sequence[str], query: str) -> Identity:
        if cookies:
            credentials += self._named(cookies)
        if query:
            credentials.append((_QUERY, query))
        if not credentials:
            return NOBODY
        credential = _digest(credentials, self._key)
        identity = self._told.get(credential)
        if identity is None:
            identity = self._identified(credentials, credential)
            if len(self._told) >= REMEMBERED:
                del self._told[next(iter(self._told))]
            self._told[credential] = identity
        return identity

    def _named(self, cookies: Iterable[str]) -> list[tuple[str, str]]:
        found = (pair.strip().partition("=") for cookie in cookies for pair in cookie.split(";"))
        return sorted((f"{_COOKIE} {name}", value) for name, _, value in found if self._counts(name))

    def _counts(self, cookie_name: str) -> bool:
        return cookie_name in self._cookies or cookie_name.startswith(self._cookie_prefixes)

    def _identified(self, credentials: list[tuple[str, str]], credential: Principal) -> Identity:
        told = [(name, _identity(value)) for name, value in credentials]
        is_verbatim = all(said == [value] for (_, said), (_, value) in zip(told, credentials, strict=True))
        kind = tuple(self._kind(name, value) for name, value in credentials)
        earlier = _digest(told, self._earlier_key) if self._earlier_key is not None else None
        under = {name: _digest(told, key) for name, key in self._others.items()}
        return Identity(_digest(told, self._key), credential, kind, is_verbatim, earlier, under)

    def _kind(self, name: str, value: str) -> tuple[str, bytes, bytes]:
        """Where a credential stands, and what of it stays over a refresh; of one that is never refreshed, all of it."""
        scheme, _, token = value.partition(" ")
        if name.startswith(f"{_COOKIE} "):
            return name, b"", b""
        if scheme.lower() not in _REFRESHED_SCHEMES:
            return name, self._hash(value), b""
        claims = _jwt_claims(token.strip())
        return f"{name} {scheme.lower()}", self._hash(claims.get("iss")), self._hash(claims.get("sub"))

    def _hash(self, claim: object) -> bytes:
        return _digest([("", claim)], self._key) if isinstance(claim, str) and claim else b""


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
