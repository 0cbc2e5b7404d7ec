"""What a client is told without having asked: notifications that its own revision knows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_sidecar.facts import HintKind, ListKind
from mcp_sidecar.healing.hints import RESTARTED, Hint, list_changed, question_cancelled, resource_updated, restarted
from mcp_sidecar.healing.policy import Announce
from mcp_sidecar.wire.jsonrpc import Kind, parse

WARNING = {"level": "warning", "logger": "mcp-sidecar", "data": RESTARTED}
CANCELLED = {"reason": "The MCP server restarted"}


@pytest.mark.parametrize(
    ("hint", "kind", "method", "params"),
    [
        pytest.param(
            resource_updated("fake://é"),
            HintKind.UPDATED,
            "notifications/resources/updated",
            {"uri": "fake://é"},
            id="a resource",
        ),
        pytest.param(
            question_cancelled(0),
            HintKind.CANCELLED,
            "notifications/cancelled",
            {"requestId": 0, **CANCELLED},
            id="a question",
        ),
        pytest.param(
            question_cancelled('t.2."a"'),
            HintKind.CANCELLED,
            "notifications/cancelled",
            {"requestId": 't.2."a"', **CANCELLED},
            id="a later generation's question",
        ),
        *(
            pytest.param(list_changed(kind), HintKind.LIST_CHANGED, f"notifications/{kind}/list_changed", {}, id=kind)
            for kind in ListKind
        ),
        pytest.param(
            restarted(Announce.LOG, "info")[0], HintKind.MESSAGE, "notifications/message", WARNING, id="the restart"
        ),
    ],
)
def test_each_is_a_notification(hint: Hint, kind: HintKind, method: str, params: dict[str, Any]) -> None:
    """With the method and the params of the specification, and nothing else."""
    assert hint.kind is kind
    assert parse(hint.body).kind is Kind.NOTIFICATION
    assert json.loads(hint.body) == {"jsonrpc": "2.0", "method": method, "params": params}


def test_the_same_hint_is_equal() -> None:
    """So that what waits is said once."""
    assert len({resource_updated("a"), resource_updated("a"), resource_updated("b")}) == 2
