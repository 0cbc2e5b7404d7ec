"""``sealed:``: the client's session id is a token that holds what a heal needs, encrypted and kept nowhere else.

The rule of this file: a token either opens whole, for the principal that it was made for, or it is ``Rejected`` with the
reason that is counted; no bytes of a client make it raise. It has the form ``mcps1.<key id>.<base64url>``; what does not
begin so is an id of an upstream, and none of this file's business.

The cipher is AES-SIV (RFC 5297): it needs no nonce, so that neither a restored snapshot nor a count of tokens can spoil it,
and the session's random tag makes every token another. The key id stands in clear: the key is picked and never tried.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.record import UpstreamSessionId
from mcp_sidecar.sessions.stores.keys import KEY_ID_BYTES, Key, Keys
from mcp_sidecar.sessions.stores.store import StoreUnusable
from mcp_sidecar.wire.cookies import Cookies

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV
except ImportError:  # the extra `sealed` is not installed
    AESSIV = None  # type: ignore[assignment, misc]

PREFIX: Final = "mcps1."
MAX_TOKEN_CHARS: Final = 2_048
"""nginx answers 502 where the head of an answer is above 4 KiB, and it holds more than the session id."""

MAX_CONTENT_BYTES: Final = 128 * 1024
"""Unpacked; a token of ours never holds more, whatever its packed form could become."""

INSTANCE_BYTES: Final = 8
_FIXED: Final = struct.Struct(f">dI{INSTANCE_BYTES}sBBH")  # issued, lifetime, instance, and the lengths of what follows
_PURPOSE: Final = b"mcps token"

_DICTIONARY: Final = (
    b'"experimental":{},"extensions":{},"tasks":{"list":{},"cancel":{},"requests":{"elicitation":{"create":{}},'
    b'"sampling":{"createMessage":{}}}},"completions":{},"icons":[{"src":"https://","mimeType":"image/png","sizes":["any"]}],'
    b'"websiteUrl":"https://","description":"","title":"","streamable-http-client","mcp-inspector","cursor-vscode",'
    b'"Visual Studio Code","codex-mcp-client","gemini-cli-mcp-client","claude-code","claude-ai","mcp"'
    b"2025-11-25\n2025-03-26\n2025-06-18\n"
    b'{"protocolVersion":"2025-11-25","capabilities":{"sampling":{"context":{},"tools":{}},'
    b'"elicitation":{"form":{},"url":{}},"roots":{"listChanged":true}},"clientInfo":{"name":"","version":"1.0.0"}}\n'
    b'{"serverInfo":{"name":"","version":"1.0.0"},"capabilities":{"experimental":{},"logging":{},"completions":{},'
    b'"prompts":{"listChanged":false},"resources":{"subscribe":false,"listChanged":false},'
    b'"tools":{"listChanged":true}},"instructions":null}'
)
"""What clients and servers say most often, the most frequent last. It belongs to the version in ``PREFIX`` and stays."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a token holds: one session as its ``initialize`` left it, and when and for how long that holds.

    ``instance`` is a hash of the upstream instance that minted ``upstream_id``, ``cookies`` are those of load balancers
    that lead to its server. Times are wall-clock seconds.
    """

    issued_at: float
    lifetime_s: int
    principal: Principal
    tag: str
    instance: bytes
    upstream_id: UpstreamSessionId | None
    handshake: Handshake
    cookies: Cookies = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A token that counts for nothing. ``reason`` is a label of ``mcp_sidecar_session_ids_rejected_total``."""

    reason: str


UNREADABLE, EXPIRED = Rejected("unreadable"), Rejected("expired")
OF_ANOTHER, UNKNOWN_KEY = Rejected("principal"), Rejected("unknown_key")


def is_token(session_id: str) -> bool:
    """Whether this claims to be one of ours, of this version."""
    return session_id.startswith(PREFIX)


class Sealer:
    """Makes and opens the tokens of one namespace."""

    def __init__(self, keys: Keys, namespace: str) -> None:
        """Raises ``StoreUnusable`` where the library is missing."""
        if AESSIV is None:
            raise StoreUnusable("sealed: needs a library: install mcp-sidecar[sealed]")
        self._namespace = namespace.encode()
        self._first = keys.first
        self._ciphers = {key.id: (key, AESSIV(key.subkey(_PURPOSE))) for key in keys}

    def seal(self, content: Sealed) -> str | None:
        """The token, under the first key; ``None`` where it would be too long to pass everywhere.

        Of a long one the client's ``data:`` icons are left out first: no server needs them to know a client. Then the
        cookies: without them another server of several is asked, and the session is healed.
        """
        plain = content.handshake.without_data_icons()
        shorter = replace(content, cookies=())
        return self._seal(content, content.handshake) or self._seal(content, plain) or self._seal(shorter, plain)

    def _seal(self, content: Sealed, handshake: Handshake) -> str | None:
        packed = _packed(content, handshake)
        key, cipher = self._ciphers[self._first.id]
        sealed = cipher.encrypt(packed, self._associated(key.id)) if packed is not None else b""
        token = f"{PREFIX}{_text(key.id)}.{_text(sealed)}"
        return token if packed is not None and len(token) <= MAX_TOKEN_CHARS else None

    def open(self, token: str, principal_under: Callable[[Key], Principal | None], now: float) -> Sealed | Rejected:
        """What a token holds, if it is of this namespace, in its time, and of the principal that hands it in.

        ``principal_under`` is that principal as a hash under the key of the token, ``None`` where that is not known.
        """
        key_id, _, sealed = token.removeprefix(PREFIX).partition(".")
        name, ciphertext = _bytes(key_id), _bytes(sealed)
        if not is_token(token) or len(token) > MAX_TOKEN_CHARS or name is None or len(name) != KEY_ID_BYTES:
            return UNREADABLE
        if name not in self._ciphers:
            return UNKNOWN_KEY
        key, cipher = self._ciphers[name]
        content = self._opened(cipher, ciphertext, name)
        if content is None:
            return UNREADABLE
        principal = principal_under(key)
        if principal is None or not hmac.compare_digest(content.principal, principal):
            return OF_ANOTHER
        return EXPIRED if now - content.issued_at >= content.lifetime_s else content

    def _opened(self, cipher: Any, ciphertext: bytes | None, key_id: bytes) -> Sealed | None:
        if not ciphertext:
            return None
        try:
            return _unpacked(cipher.decrypt(ciphertext, self._associated(key_id)))
        except (InvalidTag, ValueError, struct.error, zlib.error, IndexError):
            return None

    def _associated(self, key_id: bytes) -> list[bytes]:
        return [PREFIX.encode(), key_id, self._namespace]


def _packed(content: Sealed, handshake: Handshake) -> bytes | None:
    upstream_id, tag = (content.upstream_id or "").encode(), content.tag.encode()
    lengths = len(content.principal), len(tag), len(upstream_id)
    if lengths[0] > 0xFF or lengths[1] > 0xFF or lengths[2] > MAX_TOKEN_CHARS:
        return None
    lines = [handshake.protocol_version.encode(), handshake.params, handshake.condensed().result]
    if content.cookies:
        lines.append("; ".join(f"{name}={value}" for name, value in content.cookies).encode())
    said = b"\n".join(lines)
    if len(said) > MAX_CONTENT_BYTES:
        return None
    head = _FIXED.pack(content.issued_at, content.lifetime_s, content.instance, *lengths)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return b"".join((head, content.principal, tag, upstream_id, deflate.compress(said), deflate.flush()))


def _unpacked(data: bytes) -> Sealed | None:
    """What was sealed. It is authentic by now; that it is well formed is looked at all the same."""
    issued_at, lifetime_s, instance, *lengths = _FIXED.unpack_from(data)
    parts, at = list[bytes](), _FIXED.size
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, _DICTIONARY)
    said = inflate.decompress(data[at:], MAX_CONTENT_BYTES)
    if not inflate.eof or inflate.unused_data or not math.isfinite(issued_at):
        return None
    version, params, result, *more = said.split(b"\n")
    return Sealed(
        issued_at=issued_at,
        lifetime_s=lifetime_s,
        principal=Principal(parts[0]),
        tag=parts[1].decode(),
        instance=instance,
        upstream_id=UpstreamSessionId(parts[2].decode()) if parts[2] else None,
        handshake=Handshake(params, version.decode(), result),
        cookies=tuple(_pairs(more[0])) if more else (),
    )


def _pairs(line: bytes) -> Iterator[tuple[str, str]]:
    for cookie in line.decode().split("; "):
        name, _, value = cookie.partition("=")
        yield name, value


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes | None:
    """The bytes of a text that is written in the one way in which we write it."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _text(data) == text else None
