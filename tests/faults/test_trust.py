"""What an operator may say about a server: that its hints hold, and what a 503 in front of it means."""

from __future__ import annotations

import pytest

from mcp_sidecar.facts import OutcomeUnknown, ReplayCause, RequestReplayed
from tests.support.client import Answer
from tests.support.faults import IngressPage, ResetAfterExecution, ResetBeforeExecution
from tests.support.scene import connected

UNKNOWN = {"reason": "outcome_unknown"}


def _is_unknown(answer: Answer) -> bool:
    error = answer.response.get("error", {})
    return answer.status == 200 and error.get("code") == -32603 and error.get("data") == UNKNOWN


@pytest.mark.parametrize(
    ("trusted", "listed", "tool", "goes_again"),
    [
        pytest.param(True, True, "echo", True, id="read-only"),
        pytest.param(True, True, "put", True, id="idempotent"),
        pytest.param(True, True, "charge", False, id="no-hints"),
        pytest.param(True, True, "nameless", False, id="not-listed"),
        pytest.param(True, False, "echo", False, id="never-listed"),
        pytest.param(False, True, "echo", False, id="read-only-untrusted"),
        pytest.param(False, True, "put", False, id="idempotent-untrusted"),
    ],
)
async def test_hints_count_where_they_are_trusted_and_seen(
    trusted: bool, listed: bool, tool: str, goes_again: bool
) -> None:
    """A tool that may have run goes again only on a hint that this session saw and the operator trusts."""
    async with connected(healing__trust_annotations=trusted) as (upstream, sidecar, client):
        if listed:
            await client.call("tools/list")
        upstream.inject(ResetAfterExecution())
        answer = await client.tool(tool, text="hello", key="k", value="v")
        assert _is_unknown(answer) is not goes_again
        assert upstream.ledger.count(tool=tool) == (2 if goes_again else 1)
        causes = [fact.cause for fact in sidecar.of(RequestReplayed)]
        assert causes == ([ReplayCause.AMBIGUOUS_SAFE] if goes_again else [])
        assert len(sidecar.of(OutcomeUnknown)) == (0 if goes_again else 1)


async def test_hints_are_per_page() -> None:
    """A later page adds to what is known; a tool on a page that was never read is not known."""
    async with connected(page_size=1) as (upstream, _, client):
        first = await client.call("tools/list")
        await client.call("tools/list", {"cursor": first.result["nextCursor"]})
        upstream.inject(ResetBeforeExecution(), tool="slow_read")
        assert _is_unknown(await client.tool("slow_read"))
        for tool in ("echo", "put"):
            upstream.inject(ResetAfterExecution(), tool=tool)
            assert "result" in (await client.tool(tool, key="k")).response


@pytest.mark.parametrize(
    ("status", "trusted", "goes_again"),
    [
        pytest.param(503, True, True, id="trusted"),
        pytest.param(503, False, False, id="not-trusted"),
        pytest.param(502, True, False, id="another-status"),
        pytest.param(504, True, False, id="a-timeout"),
    ],
)
async def test_a_503_is_proof_where_the_operator_says_so(status: int, trusted: bool, goes_again: bool) -> None:
    """An unsafe call goes again after a 503 that no MCP server wrote only under ``trust_503``."""
    async with connected(healing__trust_503=trusted) as (upstream, sidecar, client):
        upstream.inject(IngressPage(status))
        answer = await client.tool("charge")
        assert _is_unknown(answer) is not goes_again
        assert len(upstream.ledger.executions("charge")) == (1 if goes_again else 0)
        causes = [fact.cause for fact in sidecar.of(RequestReplayed)]
        assert causes == ([ReplayCause.NOT_SENT] if goes_again else [])
