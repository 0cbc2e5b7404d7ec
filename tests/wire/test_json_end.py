"""Whether a JSON text can be at its end, seen without reading it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.wire.json_end import JsonEnd

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{}:, é\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\{'), inner, max_size=3),
    max_leaves=8,
)


def test_a_whole_text_is_known_as_such() -> None:
    """What has not been open has not ended, either."""
    end = JsonEnd()
    for part, has_ended in (
        (b" 1", False),
        (b'{"a', False),
        (b'":[]', False),
        (b"}", True),
        (b"\n", True),
        (b"[", False),
    ):
        end.feed(part)
        assert end.has_ended is has_ended


def fed(*parts: bytes) -> bool:
    end = JsonEnd()
    for part in parts:
        end.feed(part)
    return end.may_end_here


@given(st.lists(VALUES, max_size=3) | st.dictionaries(st.text("ab"), VALUES, max_size=3), st.booleans(), st.data())
def test_an_object_or_array_ends_where_it_is_whole(value: Any, ascii_only: bool, data: st.DataObject) -> None:
    """The whole text may end; none of its beginnings may, however the bytes are cut."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    at = data.draw(st.integers(1, len(text) - 1))
    assert fed(text)
    assert fed(text[:at], text[at:])
    assert fed(*(text[place : place + 1] for place in range(len(text))))
    assert not fed(text[:at])


@pytest.mark.parametrize("text", [b"", b" \n", b"null", b"12", b"{}\r\n", b"no JSON"])
def test_of_other_texts_nothing_is_claimed(text: bytes) -> None:
    """They may end anywhere; what they are is for their reader to say."""
    assert fed(text)
