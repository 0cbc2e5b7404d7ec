"""What became of a call: of a POST with a JSON-RPC request in it, as its client would say."""

from __future__ import annotations

from enum import Enum

from mcp_sidecar.facts import CallOutcome
from mcp_sidecar.healing.replies import HTTP_ERROR, Reason
from mcp_sidecar.wire.jsonrpc import Message

OWN_FAULT = "fault"
"""What an answer of ours tells where a bug has come between."""

CLIENT_LEFT = 499
"""What nginx logs, too, for a client that did not wait for its answer."""


class Detour(Enum):
    """What an answer has cost on its way."""

    NONE = CallOutcome.ANSWERED
    HOLD = CallOutcome.ANSWERED_AFTER_HOLD
    HEAL = CallOutcome.ANSWERED_AFTER_HEAL


_OF_REASON = {
    Reason.OUTCOME_UNKNOWN.code: CallOutcome.UNKNOWN,
    Reason.CANCELLED.code: CallOutcome.CLIENT_LEFT,
    Reason.SESSION_LOST.code: CallOutcome.SESSION_LOST,
    HTTP_ERROR: CallOutcome.REJECTED,
    OWN_FAULT: CallOutcome.UNKNOWN,
}


def outcome_of(status: int, told: str, detour: Detour) -> CallOutcome:
    """Of a call that was answered with ``status``; ``told`` is the reason that an answer of our own gives, if it was one.

    Every reason that is not listed says that something was away: the upstream, or the store of sessions.
    """
    if status == CLIENT_LEFT:
        return CallOutcome.CLIENT_LEFT
    if told:
        return _OF_REASON.get(told, CallOutcome.UNAVAILABLE)
    return CallOutcome.REJECTED if status >= 400 else detour.value


def is_call(message: Message | None) -> bool:
    """Whether somebody waits for a JSON-RPC response."""
    return message is not None and bool(message.requests)
