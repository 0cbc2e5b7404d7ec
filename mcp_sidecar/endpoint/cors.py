"""What the upstream lets pages of an origin see, said on the sidecar's own answers to them, too.

The law of this file: nothing is allowed here that the upstream has not allowed this very origin (Fetch, "CORS protocol").
Without it a page learns of an outage only that its request failed, and cannot tell it from a bad address.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from mcp_sidecar.wire.headers import Pair

MAX_ORIGINS = 256
MAX_BYTES = 4096
"""Of what is said to one origin; more is not remembered."""

ALLOW = "access-control-allow-origin"
_SAID = frozenset({ALLOW, "access-control-allow-credentials", "access-control-expose-headers"})
"""For a preflight there is more, which only the upstream can say: those wait for it."""


class Cors:
    """Remembers what the upstream says to each origin, of a bounded number of them."""

    def __init__(self) -> None:
        """Nothing has been said yet."""
        self._said: OrderedDict[str, tuple[Pair, ...]] = OrderedDict()

    def of(self, origin: str) -> Page:
        """The pages of an origin, as the client's side of an exchange with them knows them."""
        return Page(self, origin)

    def learn(self, origin: str, status: int, pairs: Iterable[Pair]) -> None:
        """The upstream has answered an origin. An error may come from somebody before it who knows nothing of origins."""
        said = tuple(pair for pair in pairs if pair[0].lower() in _SAID)
        is_allowed = any(name.lower() == ALLOW for name, _ in said)
        if is_allowed and len(origin) + sum(len(name) + len(value) for name, value in said) <= MAX_BYTES:
            self._said[origin] = said
            self._said.move_to_end(origin)
            if len(self._said) > MAX_ORIGINS:
                self._said.popitem(last=False)
        elif status < 400:
            self._said.pop(origin, None)

    def said(self, origin: str) -> tuple[Pair, ...]:
        """What an answer of ours says to it. Whether or not that is anything, it depends on the origin."""
        return *self._said.get(origin, ()), ("Vary", "Origin")


class Page:
    """The web page that an exchange is with."""

    __slots__ = ("_cors", "_origin")

    def __init__(self, cors: Cors, origin: str) -> None:
        """``origin`` is what its browser says."""
        self._cors = cors
        self._origin = origin

    def passed(self, status: int, pairs: Iterable[Pair]) -> None:
        """The upstream's answer goes to it."""
        self._cors.learn(self._origin, status, pairs)

    def own(self) -> tuple[Pair, ...]:
        """What an answer of our own says to it."""
        return self._cors.said(self._origin)
