"""The client's body as the upstream session of this moment must get it.

The first generation gets the very bytes. Later ones get answers to their own questions only, with the mark taken off,
and a retry inside one session goes under new ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mcp_sidecar.healing.marked_ids import FIRST, Mark, Renumbering
from mcp_sidecar.wire import jsonrpc
from mcp_sidecar.wire.jsonrpc import JsonRpcId, Kind, Message, dump

_NAMES_A_REQUEST = frozenset({"notifications/cancelled", "notifications/progress"})

Renumbered = Mapping[JsonRpcId, str]
"""Under which new ids the requests of a session are under way."""


def renumbered(message: Message, new_id: Callable[[], str]) -> tuple[bytes, Renumbering]:
    """A copy of a request under new ids and progress tokens, and how to map them back (basic, "Requests")."""
    body, ids, tokens = jsonrpc.renumbered(message, lambda _: new_id())
    return body, Renumbering(ids, tokens)


def body_of(message: Message, data: bytes, mark: Mark, under_way: Renumbered) -> bytes | None:
    """The bytes to send, or ``None`` where the message is for an earlier upstream session and goes nowhere."""
    members = message.members or (message,)
    if message.kind is Kind.REQUEST or not any(_concerns_ids(member) for member in members):
        return data
    kept = [member for member in members if _belongs(member, mark)]
    values = [_mapped(member, mark, under_way) for member in kept]
    if len(kept) == len(members) and all(value is member.value for value, member in zip(values, kept, strict=True)):
        return data
    if not kept:
        return None
    return dump(values if message.kind is Kind.BATCH else values[0])


def _concerns_ids(message: Message) -> bool:
    return message.kind is Kind.RESPONSE or message.method in _NAMES_A_REQUEST


def _belongs(message: Message, mark: Mark) -> bool:
    """Whether it concerns no question of an earlier upstream session.

    An answer and a progress are about the server's questions (basic, "Requests"; utilities/progress), a cancellation is
    about the client's own requests, whose ids bear no mark.
    """
    if message.kind is Kind.RESPONSE:
        return mark.off_id(message.id)[0]
    if message.reported_token is not None:
        return mark.off_id(message.reported_token)[0]
    return message.cancelled_id is None or not mark.is_on_another(message.cancelled_id)


def _mapped(message: Message, mark: Mark, under_way: Renumbered) -> Any:
    """An answer and its progress as the upstream knows its question, a cancellation under the id that it knows."""
    if mark.generation > FIRST and message.kind is Kind.RESPONSE:
        return {**(message.value or {}), "id": mark.off_id(message.id)[1]}
    if mark.generation > FIRST and message.reported_token is not None:
        _, token = mark.off_id(message.reported_token)
        return {**message.value, "params": {**message.params, "progressToken": token}}
    new = under_way.get(message.cancelled_id) if message.method == "notifications/cancelled" else None
    return message.value if new is None else {**message.value, "params": {**message.params, "requestId": new}}
