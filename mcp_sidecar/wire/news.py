"""News: an event that is a notification about nobody's request, known at a glance.

Such an event passes as it is, whatever else is known of its stream, and most of what comes on a listening stream is news, one
event at a time with a pause before it. What runs then runs on cold caches, at ten times its usual cost: hence one search and
one look for it, where cutting, reading and mapping are thirty functions. About everything else this file says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

try:
    from msgspec import UNSET, Raw, Struct, UnsetType
    from msgspec.json import Decoder
except ImportError:  # as in ``jsonrpc``: without it nothing is known at a glance
    _method_in: Callable[[bytes], str] | None = None
else:

    class _Glance(Struct):
        method: str
        id: Raw | UnsetType = UNSET

    _decode: Final = Decoder(_Glance).decode

    def _method_in(data: bytes) -> str:
        glance = _decode(data)
        return glance.method if glance.id is UNSET else ""


_PLAIN_EVENT = re.compile(rb"(?:event: message\r?\n)?data: (\{[^\r\n]++)\r?\n\r?\n")
_ABOUT_REQUESTS = frozenset({"", "notifications/progress", "notifications/cancelled"})


def is_news(event: bytes) -> bool:
    """Whether these bytes are one whole event without an id, and a notification that tells of no request."""
    plain = _PLAIN_EVENT.fullmatch(event)
    if plain is None or _method_in is None:
        return False
    try:
        return _method_in(plain[1]) not in _ABOUT_REQUESTS
    except (ValueError, RecursionError):
        return False
