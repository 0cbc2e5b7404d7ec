"""News: an event that is a notification about nobody's request, known at a glance.

Such an event passes as it is, whatever else is known of its stream, and most of what comes on a listening stream is news, one
event at a time with a pause before it. What runs then runs on cold caches, at ten times its usual cost: hence one search and
one look for it, where cutting, reading and mapping are thirty functions. About everything else this file says nothing.
"""

from __future__ import annotations

import re
from typing import Final

try:
    from msgspec import UNSET, Raw, Struct, UnsetType
    from msgspec.json import Decoder
except ImportError:  # as in ``jsonrpc``: without it nothing is known at a glance
    CAN_TELL = False
else:
    CAN_TELL = True

    class _Glance(Struct):
        method: str
        id: Raw | UnsetType = UNSET

    _glance_at: Final = Decoder(_Glance).decode


_PLAIN_EVENT = re.compile(rb"(?:event: message\r?\n)?data: (\{[^\r\n]++)\r?\n\r?\n")
_ABOUT_REQUESTS = frozenset({"notifications/progress", "notifications/cancelled"})


def is_news(event: bytes) -> bool:
    """Whether these bytes are one whole event without an id, and a notification that tells of no request."""
    plain = _PLAIN_EVENT.fullmatch(event) if CAN_TELL else None
    if plain is None:
        return False
    try:
        seen = _glance_at(plain[1])
    except (ValueError, RecursionError):
        return False
    return seen.id is UNSET and seen.method not in _ABOUT_REQUESTS
