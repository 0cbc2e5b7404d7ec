"""The client's body as the upstream session of this moment must get it.

The first generation gets the very bytes. Later ones get answers to their own questions only, with the mark taken off,
and a retry inside one session goes under new ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mcp_sidecar.healing.generations import FIRST, Mark, Renumbering
from mcp_sidecar.wire import messages
from mcp_sidecar.wire.messages import JsonRpcId, Kind, Message, dump

Renumbered = Mapping[tuple[str, JsonRpcId], str]


def renumbered(message: Message, new_id: Callable[[], str]) -> tuple[bytes, Renumbering]:
    """A copy of a request under new ids and progress tokens, and how to map them back (R47)."""
    body, ids, tokens = messages.renumbered(message, lambda _: new_id())
    return body, Renumbering(ids, tokens)


def body_of(message: Message, data: bytes, mark: Mark | None, under_way: Renumbered, label: str) -> bytes | None:
    """The bytes to send, or ``None`` where the message is for an earlier upstream session and goes nowhere."""
    if message.kind is Kind.BATCH and message.members:
        return _batch(message, data, mark, under_way, label)
    if not _concerns_ids(message):
        return data
    value = _mapped(message, mark, under_way, label)
    if value is None:
        return None
    return data if value is message.value else dump(value)


def _batch(message: Message, data: bytes, mark: Mark | None, under_way: Renumbered, label: str) -> bytes | None:
    if not any(_concerns_ids(member) for member in message.members):
        return data
    values = [_mapped(member, mark, under_way, label) for member in message.members]
    kept = [value for value in values if value is not None]
    unchanged = len(kept) == len(values) and all(
        value is member.value for value, member in zip(values, message.members, strict=True)
    )
    if unchanged:
        return data
    return dump(kept) if kept else None


def _concerns_ids(message: Message) -> bool:
    return not message.is_opaque and (message.kind is Kind.RESPONSE or message.method == "notifications/cancelled")


def _mapped(message: Message, mark: Mark | None, under_way: Renumbered, label: str) -> Any | None:
    if message.kind is Kind.RESPONSE:
        return _answer(message, mark)
    new = under_way.get((label, message.cancelled_id)) if message.method == "notifications/cancelled" else None
    if new is None:
        return message.value
    return {**message.value, "params": {**message.params, "requestId": new}}


def _answer(message: Message, mark: Mark | None) -> Any | None:
    """The answer to a question of this very generation, under the id that the upstream gave it (R40)."""
    if mark is None:
        return message.value
    belongs, own_id = mark.off_id(message.id)
    if not belongs:
        return None
    return message.value if mark.generation == FIRST else {**message.value, "id": own_id}
