"""Which lists a client has seen, and when a new server's are others."""

from __future__ import annotations

import random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.facts import ListKind
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.lists import EMPTY, LISTINGS, MAX_CURSOR_CHARS, Pages, SeenLists, is_promised
from tests.healing import samples

TOOLS: Final = "tools/list"
A: Final[dict[str, Any]] = {"name": "a", "inputSchema": {"type": "object", "properties": {"x": {}, "y": {}}}}
B: Final[dict[str, Any]] = {"name": "b", "inputSchema": {"type": "object"}}


def page(*items: object, then: object = None) -> dict[str, Any]:
    return {"tools": list(items), **({} if then is None else {"nextCursor": then})}


def digest(*items: object) -> int:
    pages = Pages(EMPTY, None).turned(LISTINGS[TOOLS], page(*items))
    assert pages is not None
    return pages.digest


def seen(*pages: tuple[str | None, dict[str, Any]], generation: int = 1) -> SeenLists:
    lists = SeenLists()
    for cursor, result in pages:
        lists.see(TOOLS, cursor, result, generation)
    return lists


class TestDigests:
    """What makes two lists the same."""

    @pytest.mark.parametrize(
        "same",
        [
            pytest.param((B, A), id="another order"),
            pytest.param(({"inputSchema": {"properties": {"y": {}, "x": {}}, "type": "object"}, "name": "a"}, B), id="another order of members"),
            pytest.param(({**A, "_meta": {"at": 1}}, B), id="other _meta"),
        ],
    )  # fmt: skip
    def test_what_says_no_more(self, same: tuple[object, ...]) -> None:
        """Order says nothing, nor does ``_meta``."""
        assert digest(*same) == digest(A, B)

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param((A,), id="one less"),
            pytest.param((A, B, {"name": "c"}), id="one more"),
            pytest.param((A, B, B), id="one twice"),
            pytest.param((), id="none"),
            pytest.param((A, {**B, "description": "B."}), id="another description"),
            pytest.param(({**A, "inputSchema": {"type": "object"}}, B), id="another schema"),
            pytest.param((A, {**B, "annotations": {"readOnlyHint": True}}), id="another hint"),
            pytest.param((A, "b"), id="no object"),
        ],
    )
    def test_what_is_another_list(self, other: tuple[object, ...]) -> None:
        """Everything else that an item says counts."""
        assert digest(*other) != digest(A, B)

    @given(st.lists(samples.json_values, max_size=6), st.randoms(use_true_random=False), st.integers(0, 6))
    def test_any_items_in_any_order_on_any_pages(self, items: list[Any], chance: random.Random, cut: int) -> None:
        """A list is the same however it is ordered and cut into pages."""
        shuffled = chance.sample(items, len(items))
        first = Pages(EMPTY, None).turned(LISTINGS[TOOLS], page(*shuffled[:cut], then="on"))
        assert first is not None
        last = first.turned(LISTINGS[TOOLS], page(*shuffled[cut:]))
        assert last == Pages(digest(*items), None)

    @pytest.mark.parametrize("result", [{}, {"tools": None}, {"tools": {"a": 1}}, {"resources": []}], ids=str)
    def test_what_is_no_list(self, result: dict[str, Any]) -> None:
        """A result without the array of items is nothing to compare with."""
        assert Pages(EMPTY, None).turned(LISTINGS[TOOLS], result) is None

    def test_too_deep_an_item(self) -> None:
        """What cannot be written again is not compared."""
        item: Any = {}
        for _ in range(100_000):
            item = [item]
        assert Pages(EMPTY, None).turned(LISTINGS[TOOLS], page(item)) is None


class TestSeen:
    """When a list counts as seen."""

    @pytest.mark.parametrize(
        "lists",
        [
            pytest.param(SeenLists(), id="never asked for"),
            pytest.param(seen((None, page(A, then="2"))), id="only the first page"),
            pytest.param(seen(("2", page(B))), id="only the last page"),
            pytest.param(seen((None, page(A, then="2")), ("3", page(B))), id="a page missing"),
            pytest.param(seen((None, {"tools": "none"})), id="no list"),
            pytest.param(seen((None, page(A, then="2")), ("2", {}), ("2", page(B))), id="a page that is none"),
        ],
    )
    def test_not_whole(self, lists: SeenLists) -> None:
        """A client that has not seen a list whole is told nothing of it."""
        assert not list(lists.stale(2))
        assert not lists.differs(LISTINGS[TOOLS], digest(A, B), 2)

    @pytest.mark.parametrize(
        "lists",
        [
            pytest.param(seen((None, page(A, B))), id="one page"),
            pytest.param(seen((None, page(A, then="2")), ("2", page(B))), id="two pages"),
            pytest.param(seen(("", page(A, then="2")), ("2", page(B, then=""))), id="empty cursors"),
            pytest.param(seen((None, page(A, then="2")), ("2", page(B)), ("2", page(B))), id="a page twice"),
            pytest.param(seen((None, page(A, then="2")), (None, page(B, then="3")), ("3", page(A))), id="begun anew"),
            pytest.param(seen((None, page(B, A)), (None, page(B, then="2"))), id="another look under way"),
        ],
    )
    def test_whole(self, lists: SeenLists) -> None:
        """All pages in turn are the list, whatever else was looked at."""
        assert list(lists.stale(2)) == [LISTINGS[TOOLS]]
        assert not lists.differs(LISTINGS[TOOLS], digest(A, B), 2)
        assert lists.differs(LISTINGS[TOOLS], digest(A), 2)

    def test_a_list_of_the_present_generation_is_fresh(self) -> None:
        """What the client asks for after a heal needs no comparison."""
        lists = seen((None, page(A, B)))
        lists.see(TOOLS, None, page(A), 2)
        assert not list(lists.stale(2))
        assert not lists.differs(LISTINGS[TOOLS], digest(B), 2)
        assert lists.differs(LISTINGS[TOOLS], digest(B), 3)

    def test_a_mixture_is_compared(self) -> None:
        """A list that began under the old server and went on under the new one is no list of either."""
        lists = seen((None, page(A, then="2")))
        lists.see(TOOLS, "2", page(B), 2)
        assert list(lists.stale(2)) == [LISTINGS[TOOLS]]

    def test_each_list_by_itself(self) -> None:
        """Every method has a list of its own."""
        lists = SeenLists()
        for method, listing in LISTINGS.items():
            lists.see(method, None, {listing.member: [A]}, 1)
        assert [listing.method for listing in lists.stale(2)] == list(LISTINGS)


def test_templates_are_told_as_resources() -> None:
    """There is no notification for templates alone."""
    assert {listing.kind for listing in LISTINGS.values()} == set(ListKind)
    assert LISTINGS["resources/templates/list"].kind is ListKind.RESOURCES


@pytest.mark.parametrize(
    ("capabilities", "promised"),
    [
        pytest.param({"tools": {"listChanged": True}}, True, id="promised"),
        pytest.param({"tools": {"listChanged": False}}, False, id="denied"),
        pytest.param({"tools": {}}, False, id="not said"),
        pytest.param({"tools": None}, False, id="null"),
        pytest.param({"prompts": {"listChanged": True}}, False, id="of another list"),
        pytest.param({}, False, id="no tools"),
        pytest.param(None, False, id="no capabilities"),
    ],
)
def test_what_was_promised(capabilities: object, promised: bool) -> None:
    """Only a ``listChanged`` of the very handshake that the client made is a promise."""
    result = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": {}}
    assert is_promised(Handshake.of({}, result), ListKind.TOOLS) is promised


def test_a_cursor_that_is_too_long_is_not_kept() -> None:
    """A server may say anything there, and each session would hold it; the list counts as not seen whole."""
    long = "x" * (MAX_CURSOR_CHARS + 1)
    assert list(seen((None, page(A, then=long[1:])), (long[1:], page(B))).stale(2)) == [LISTINGS[TOOLS]]
    lists = seen((None, page(A, then=long)), (long, page(B)))
    assert list(lists.stale(2)) == []
    assert not lists._begun
