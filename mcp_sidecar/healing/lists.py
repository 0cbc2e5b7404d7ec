"""Which lists of the server a client has seen, as digests: enough to tell that a new server's are others.

A list counts once it was seen whole, with all its pages. The order of items and pages says nothing, nor does ``_meta``;
everything else of an item does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Self

from mcp_sidecar.facts import ListKind
from mcp_sidecar.healing.handshake import Handshake

DIGEST_BYTES = 16
EMPTY = 0
"""The digest of a list without items."""
MAX_CURSOR_CHARS = 4_096
"""The longest cursor that is kept. A list that goes on behind a longer one is not seen whole."""

_MODULUS = 1 << (8 * DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Listing:
    """One list that a client can ask for.

    ``kind`` is whose ``list_changed`` tells of it; ``member`` of the result holds its items.
    """

    method: str
    member: str
    kind: ListKind


LISTINGS: Mapping[str, Listing] = {
    listing.method: listing
    for listing in (
        Listing("tools/list", "tools", ListKind.TOOLS),
        Listing("prompts/list", "prompts", ListKind.PROMPTS),
        Listing("resources/list", "resources", ListKind.RESOURCES),
        Listing("resources/templates/list", "resourceTemplates", ListKind.RESOURCES),
    )
}
"""By method. Templates have no notification of their own (server/resources)."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What was seen of a list so far. ``next_cursor`` is where it goes on, ``None`` at its end."""

    digest: int
    next_cursor: str | None

    def turned(self, listing: Listing, result: Mapping[str, Any]) -> Self | None:
        """One page more, the first one included; ``None`` where the result is no such list."""
        items = result.get(listing.member)
        if not isinstance(items, list):
            return None
        try:
            added = sum(map(_digest_of, items))
        except RecursionError:
            return None
        cursor = result.get("nextCursor")
        return type(self)((self.digest + added) % _MODULUS, cursor if isinstance(cursor, str) and cursor else None)


@dataclass(frozen=True, slots=True)
class _Whole:
    digest: int
    generation: int


@dataclass(frozen=True, slots=True)
class _Begun:
    pages: Pages
    generation: int


@dataclass(slots=True)
class SeenLists:
    """The lists that one client has seen whole, and those of which more pages are to come.

    A list belongs to the generation of its first page: what goes on under a later one is a mixture, and worth comparing.
    """

    _whole: dict[str, _Whole] = field(default_factory=dict)
    _begun: dict[str, _Begun] = field(default_factory=dict)

    def see(self, method: str, cursor: str | None, result: Mapping[str, Any], generation: int) -> None:
        """The client is given one page: the first where it named no cursor, else the one that comes next.

        Any other page was seen before, or is of a list whose beginning was not.
        """
        listing, begun = LISTINGS[method], self._begun.get(method)
        if not cursor:
            begun = None
            pages = Pages(EMPTY, None).turned(listing, result)
        elif begun is not None and begun.pages.next_cursor == cursor:
            generation = begun.generation
            pages = begun.pages.turned(listing, result)
        else:
            return
        self._begun.pop(method, None)
        if pages is not None and pages.next_cursor is not None:
            if len(pages.next_cursor) <= MAX_CURSOR_CHARS:
                self._begun[method] = _Begun(pages, generation)
        elif pages is not None:
            self._whole[method] = _Whole(pages.digest, generation)

    def stale(self, generation: int) -> Iterator[Listing]:
        """The lists that the client last saw under an earlier generation."""
        for method, whole in list(self._whole.items()):
            if whole.generation < generation:
                yield LISTINGS[method]

    @classmethod
    def of(cls, digests: Iterable[tuple[str, int]], generation: int) -> Self:
        """What a record remembers, as seen under ``generation``."""
        return cls({method: _Whole(digest, generation) for method, digest in digests if method in LISTINGS})

    @property
    def digests(self) -> tuple[tuple[str, int], ...]:
        """What a record is to remember: the digest of each list that was seen whole, by method."""
        return tuple((method, whole.digest) for method, whole in self._whole.items())

    def differs(self, listing: Listing, digest: int, generation: int) -> bool:
        """Whether what the client saw, still under an earlier generation, is not the list of this digest."""
        whole = self._whole.get(listing.method)
        return whole is not None and whole.generation < generation and whole.digest != digest


def is_promised(handshake: Handshake, kind: ListKind) -> bool:
    """Whether the client was told that it would hear of changes of these lists."""
    capability = handshake.capabilities.get(kind.value)
    return isinstance(capability, dict) and capability.get("listChanged") is True


def _digest_of(item: object) -> int:
    said = {name: value for name, value in item.items() if name != "_meta"} if isinstance(item, dict) else item
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(blake2b(text.encode(), digest_size=DIGEST_BYTES).digest(), "big")
