"""What a server without sessions has said of its tools counts for the principal that it was said to, and is bounded."""

from __future__ import annotations

from typing import Any

from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.safe_tools import MAX_PRINCIPALS, MAX_TOOLS, SafeTools

ALICE, BOB = Principal(b"alice"), Principal(b"bob")


def page(*names: str) -> dict[str, Any]:
    return {"tools": [{"name": name, "annotations": {"readOnlyHint": True}} for name in names]}


def test_each_principal_is_told_for_itself() -> None:
    """A hint that somebody else was given counts for nobody else."""
    known = SafeTools()
    known.learnt(ALICE, page("read"), is_first_page=True)
    assert known.of(ALICE) == {"read"}
    assert known.of(BOB) == frozenset()


def test_pages_add_up_and_a_new_list_begins_anew() -> None:
    """As in a session."""
    known = SafeTools()
    known.learnt(ALICE, page("one"), is_first_page=True)
    known.learnt(ALICE, page("two"), is_first_page=False)
    assert known.of(ALICE) == {"one", "two"}
    known.learnt(ALICE, {"tools": [{"name": "one"}]}, is_first_page=True)
    assert known.of(ALICE) == frozenset()


def test_it_is_bounded() -> None:
    """Whoever was told something longest ago is forgotten first, and nobody keeps a list without end."""
    known = SafeTools()
    for number in range(MAX_PRINCIPALS + 1):
        known.learnt(Principal(b"%d" % number), page("read"), is_first_page=True)
    assert known.of(Principal(b"0")) == frozenset()
    assert known.of(Principal(b"1")) == {"read"}
    known.learnt(ALICE, page(*map(str, range(MAX_TOOLS + 1))), is_first_page=True)
    assert known.of(ALICE) == frozenset()
