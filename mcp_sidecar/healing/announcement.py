"""Tell the model that the server's in-memory state is new, in the first tool result after a heal.

One text block more, in a result that succeeded; never in an error, and never twice for one heal. What was not parsed, or
is no list of content blocks, passes untouched, and the next result carries the block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from mcp_sidecar.facts import ListKind
from mcp_sidecar.healing.hints import RESTARTED
from mcp_sidecar.healing.session import Session
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Message, valid_id


@dataclass(frozen=True, slots=True)
class Announcement:
    """The way back of one POST. ``calls`` are the ids under which the client waits for tool results."""

    session: Session
    calls: frozenset[JsonRpcId]

    def added_to(self, answer: Any, generation: int) -> Any | None:
        """The answer as the client sees it, with the block, if it is the one to carry it; else ``None``.

        ``answer`` is a parsed message or batch under the client's own ids, which came in this generation.
        """
        session = self.session
        if not self.calls or session.told_restart or generation != session.generation:
            return None
        announced = with_block(answer, self.calls)
        if announced is not None:
            session.note_told_restart()
        return announced


class ListPromise:
    """The way back of one `initialize`: the client is promised to hear of changed lists, of those that there are."""

    def added_to(self, answer: Any, _: int) -> Any | None:
        """As of an ``Announcement``."""
        result = answer.get("result") if isinstance(answer, dict) else None
        said = result.get("capabilities") if isinstance(result, dict) else None
        if not isinstance(result, dict) or not isinstance(said, dict):
            return None
        lists = {kind.value: said[kind.value] for kind in ListKind if isinstance(said.get(kind.value), dict)}
        promised = {name: {**capability, "listChanged": True} for name, capability in lists.items()}
        return {**answer, "result": {**result, "capabilities": {**said, **promised}}}


def calls_in(requests: Iterable[Message]) -> frozenset[JsonRpcId]:
    """The ids of the tool calls whose results come as their answers; a task's result comes later."""
    return frozenset(one.id for one in requests if one.method == "tools/call" and not one.has_task)


def with_block(answer: Any, calls: Collection[JsonRpcId]) -> Any | None:
    """A copy with the block in the first successful result of these calls; ``None`` where there is none."""
    if isinstance(answer, list):
        return _batch_with_block(answer, calls)
    if not isinstance(answer, dict) or "method" in answer or valid_id(answer.get("id")) not in calls:
        return None
    result = answer.get("result")
    if not isinstance(result, dict) or result.get("isError") or not isinstance(result.get("content"), list):
        return None
    return {**answer, "result": {**result, "content": [*result["content"], {"type": "text", "text": RESTARTED}]}}


def _batch_with_block(answers: list[Any], calls: Collection[JsonRpcId]) -> list[Any] | None:
    for place, answer in enumerate(answers):
        announced = with_block(answer, calls) if isinstance(answer, dict) else None
        if announced is not None:
            return [*answers[:place], announced, *answers[place + 1 :]]
    return None
