"""Which tools may run twice: only those of which the server says so, in every place where it lists them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.replay import listed_tools_in, safe_tools_in, updated
from tests.healing import samples


def tool(name: Any, **hints: Any) -> dict[str, Any]:
    return {"name": name, "annotations": hints} if hints else {"name": name}


@pytest.mark.parametrize(
    ("tools", "safe"),
    [
        pytest.param([tool("a", readOnlyHint=True)], {"a"}, id="read only"),
        pytest.param([tool("a", idempotentHint=True)], {"a"}, id="idempotent"),
        pytest.param([tool("a", readOnlyHint=False, idempotentHint=True)], {"a"}, id="idempotent, not read only"),
        pytest.param([tool("a", idempotentHint=True, destructiveHint=True)], {"a"}, id="idempotent and destructive"),
        pytest.param([tool("a")], set(), id="no hints"),
        pytest.param([tool("a", destructiveHint=False)], set(), id="not destructive is not idempotent"),
        pytest.param([tool("a", readOnlyHint=1)], set(), id="one is not true"),
        pytest.param([tool("a", readOnlyHint="true")], set(), id="text is not true"),
        pytest.param([{"name": "a", "annotations": [{"readOnlyHint": True}]}], set(), id="hints that are no object"),
        pytest.param([{"name": "a", "readOnlyHint": True}], set(), id="a hint in the wrong place"),
        pytest.param([tool(["a"], readOnlyHint=True), 7, None], set(), id="no tools"),
        pytest.param([tool("a", readOnlyHint=True), tool("b")], {"a"}, id="one of two"),
        pytest.param([tool("a", readOnlyHint=True), tool("a")], set(), id="listed twice, once without"),
        pytest.param({"a": tool("a", readOnlyHint=True)}, set(), id="no list"),
        pytest.param(None, set(), id="nothing"),
    ],
)
def test_safe_tools(tools: Any, safe: set[str]) -> None:
    """No hint means destructive and not idempotent, and only ``true`` is a hint (tools, annotations)."""
    assert safe_tools_in({"tools": tools}) == safe


@pytest.mark.parametrize(
    ("known", "tools", "is_first_page", "safe"),
    [
        pytest.param({"old"}, [tool("a", readOnlyHint=True)], True, {"a"}, id="a first page begins anew"),
        pytest.param({"old"}, [tool("a", readOnlyHint=True)], False, {"old", "a"}, id="a later page adds"),
        pytest.param({"old", "a"}, [tool("a")], False, {"old"}, id="a later page takes back"),
        pytest.param({"old"}, [], False, {"old"}, id="an empty page"),
        pytest.param({"old"}, [], True, set(), id="no tools at all"),
    ],
)
def test_pages(known: set[str], tools: list[Any], is_first_page: bool, safe: set[str]) -> None:
    """What was said last of a tool counts."""
    assert updated(frozenset(known), {"tools": tools}, is_first_page=is_first_page) == safe


tools = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["a", "b"]) | samples.json_values,
            "annotations": st.dictionaries(st.sampled_from(["readOnlyHint", "idempotentHint"]), samples.json_values)
            | samples.json_values,
        },
    )
    | samples.json_values,
    max_size=4,
)


@given(samples.json_objects | tools.map(lambda listed: {"tools": listed}))
def test_any_result(result: dict[str, Any]) -> None:
    """Whatever a server lists, safe is only what is listed by a name."""
    assert safe_tools_in(result) <= listed_tools_in(result)
