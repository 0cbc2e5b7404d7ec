"""Messages as the tests of this package need them."""

from __future__ import annotations

import json
from typing import Any, Final

from hypothesis import strategies as st

from mcp_sidecar.wire.jsonrpc import Message, parse

DEPTH: Final = 100_000


def message(**members: Any) -> Message:
    return parse(json.dumps({"jsonrpc": "2.0", **members}).encode())


def request(method: str, /, *, id: Any = 1, **params: Any) -> Message:
    return message(id=id, method=method, **({"params": params} if params else {}))


def call(name: str = "charge", /, *, id: Any = 1, **params: Any) -> Message:
    return request("tools/call", id=id, name=name, **params)


def notification(method: str, /, **params: Any) -> Message:
    return message(method=method, **({"params": params} if params else {}))


def response(id: Any = 1, **members: Any) -> Message:
    return message(id=id, **(members or {"result": {}}))


def batch(*members: Message) -> Message:
    return parse(json.dumps([member.value for member in members]).encode())


NO_MESSAGE: Final = message(x=1)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=3), json_values, max_size=4)
ids = st.integers() | st.text(max_size=6) | st.floats(allow_nan=False, allow_infinity=False)
