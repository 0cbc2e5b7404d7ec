"""The replay matrix: what goes again after a loss, and what in doubt."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.healing.replay import MATRIX, AfterLoss, after_loss, is_safe_in_doubt
from mcp_sidecar.wire.jsonrpc import UNREAD, Message
from tests.healing import samples

SAFE_TOOLS: Final = frozenset({"read"})

REPLAY, HEAL_ONLY, DROP = AfterLoss

# As the specification of the replay has it, row by row; the last column is "may it go again in doubt".
SPECIFIED: Final = [
    pytest.param(samples.request("ping"), REPLAY, True, id="ping"),
    pytest.param(samples.request("server/discover"), REPLAY, True, id="server/discover"),
    pytest.param(samples.request("tools/list"), REPLAY, True, id="tools/list"),
    pytest.param(samples.request("tools/list", cursor="c"), REPLAY, True, id="a later page"),
    pytest.param(samples.request("prompts/list"), REPLAY, True, id="prompts/list"),
    pytest.param(samples.request("resources/list"), REPLAY, True, id="resources/list"),
    pytest.param(samples.request("resources/templates/list"), REPLAY, True, id="resources/templates/list"),
    pytest.param(samples.request("resources/read", uri="x:"), REPLAY, True, id="resources/read"),
    pytest.param(samples.request("prompts/get", name="p"), REPLAY, True, id="prompts/get"),
    pytest.param(samples.request("completion/complete"), REPLAY, True, id="completion/complete"),
    pytest.param(samples.request("logging/setLevel", level="info"), REPLAY, True, id="logging/setLevel"),
    pytest.param(samples.request("resources/subscribe", uri="x:"), REPLAY, True, id="resources/subscribe"),
    pytest.param(samples.request("resources/unsubscribe", uri="x:"), REPLAY, True, id="resources/unsubscribe"),
    pytest.param(samples.request("initialize"), REPLAY, True, id="initialize"),
    pytest.param(samples.call("read"), REPLAY, True, id="a tool with a hint"),
    pytest.param(samples.call("charge"), REPLAY, False, id="a tool without"),
    pytest.param(samples.call("read", task={"ttl": 1}), REPLAY, False, id="a task"),
    pytest.param(samples.request("tools/call"), REPLAY, False, id="a call of nothing"),
    pytest.param(samples.message(id=1, method="tools/call", params={"name": ["read"]}), REPLAY, False, id="odd name"),
    pytest.param(samples.request("tasks/get", taskId="t"), REPLAY, True, id="tasks/get"),
    pytest.param(samples.request("tasks/list"), REPLAY, True, id="tasks/list"),
    pytest.param(samples.request("tasks/result", taskId="t"), REPLAY, True, id="tasks/result"),
    pytest.param(samples.request("tasks/cancel", taskId="t"), REPLAY, False, id="tasks/cancel"),
    pytest.param(samples.request("x/unknown"), REPLAY, False, id="an extension"),
    pytest.param(samples.request("toString"), REPLAY, False, id="an odd method"),
    pytest.param(samples.notification("notifications/initialized"), HEAL_ONLY, True, id="initialized"),
    pytest.param(samples.notification("notifications/cancelled", requestId=1), DROP, True, id="cancelled"),
    pytest.param(samples.notification("notifications/progress", progressToken=1), DROP, False, id="progress"),
    pytest.param(samples.notification("notifications/roots/list_changed"), REPLAY, True, id="roots changed"),
    pytest.param(samples.notification("notifications/x"), REPLAY, False, id="an unknown notification"),
    pytest.param(samples.response(), DROP, False, id="a result"),
    pytest.param(samples.response(error={"code": 1, "message": "m"}), DROP, False, id="an error"),
    pytest.param(samples.NO_MESSAGE, REPLAY, False, id="no JSON-RPC"),
    pytest.param(UNREAD, REPLAY, False, id="unread"),
    pytest.param(samples.batch(), REPLAY, False, id="an empty batch"),
]


@pytest.mark.parametrize(("message", "after", "safe"), SPECIFIED)
def test_matrix(message: Message, after: AfterLoss, safe: bool) -> None:
    """Each kind of message has its row."""
    assert after_loss(message) is after
    assert is_safe_in_doubt(message, SAFE_TOOLS) is safe


def test_every_row_is_specified() -> None:
    """A row that is added here needs its reason there."""
    methods = {message.method for message, *_ in (param.values for param in SPECIFIED) if isinstance(message, Message)}
    assert MATRIX.keys() <= methods


def test_untrusted_hints() -> None:
    """Where hints are not trusted there are no safe tools."""
    assert not is_safe_in_doubt(samples.call("read"), frozenset())


parts = st.sampled_from(
    [
        samples.request("ping"),
        samples.call("read"),
        samples.call("charge"),
        samples.notification("notifications/initialized"),
        samples.notification("notifications/cancelled", requestId=1),
        samples.response(),
    ]
)


@given(st.lists(parts, min_size=1, max_size=5))
def test_a_batch_is_as_safe_as_its_least_safe_member(members: list[Message]) -> None:
    """One unsafe member is enough to send none of them again in doubt."""
    safe = [is_safe_in_doubt(member, SAFE_TOOLS) for member in members]
    assert is_safe_in_doubt(samples.batch(*members), SAFE_TOOLS) is all(safe)


@given(st.lists(parts, min_size=1, max_size=5))
def test_a_batch_goes_if_any_member_does(members: list[Message]) -> None:
    """No member is lost because another one may be dropped; what must not go is taken out on the way."""
    wanted = {after_loss(member) for member in members}
    first = next(choice for choice in (REPLAY, HEAL_ONLY, DROP) if choice in wanted)
    assert after_loss(samples.batch(*members)) is first
