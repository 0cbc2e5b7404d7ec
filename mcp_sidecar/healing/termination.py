"""What becomes of a DELETE of a client's, as typed steps: sent once, never healed, never held.

See transports, "Session Management" 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_sidecar.healing import replies
from mcp_sidecar.healing.exchange import Give
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.verdicts.classify import Judgement, SessionKnowledge, Verdict


@dataclass(frozen=True, slots=True)
class PassAnswer:
    """Pass the upstream's answer on. ``ends``: the session is over with it."""

    ends: bool


@dataclass(frozen=True, slots=True)
class EndSession:
    """The session is over, whatever the upstream said: end it, and say that it is."""


Step = PassAnswer | EndSession | Give


def displaced() -> Step:
    """The upstream id by now is another session's: it must not be ended upstream, so nothing is sent."""
    return EndSession()


def failed(knowledge: SessionKnowledge) -> Step:
    """There is no answer: the session that is named is over all the same, as it is upstream in most cases."""
    return Give(replies.UNAVAILABLE_PATH) if knowledge is SessionKnowledge.NONE else EndSession()


def judged(judgement: Judgement, status: int, knowledge: SessionKnowledge) -> Step:
    """The upstream answered."""
    is_bound = knowledge is SessionKnowledge.BOUND
    if is_bound and _is_gone(judgement):
        return EndSession()
    if judgement.verdict is Verdict.SESSION_LOST:
        return Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=status)
    return PassAnswer(ends=is_bound and 200 <= status < 300)


def _is_gone(judgement: Judgement) -> bool:
    """Whether the upstream has no such session, or is away. A session is known, so the endpoint has worked before."""
    is_away = judgement.verdict is Verdict.UNAVAILABLE and not judgement.jsonrpc_body
    return judgement.verdict is Verdict.SESSION_LOST or is_away or judgement.bare_404
