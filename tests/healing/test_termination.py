"""What becomes of a DELETE: each answer, and which step follows."""

from __future__ import annotations

from typing import Final

import pytest

from mcp_sidecar.healing import replies, termination
from mcp_sidecar.healing.exchange import Give
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.healing.termination import EndSession, PassAnswer, Step
from mcp_sidecar.verdicts.classify import UNANSWERED, Judgement, SessionKnowledge, Verdict

BOUND, CLAIMED = SessionKnowledge.BOUND, SessionKnowledge.CLAIMED
UNKNOWN, NONE = SessionKnowledge.UNKNOWN, SessionKnowledge.NONE
LOST: Final = Judgement(Verdict.SESSION_LOST)
OTHER: Final = Judgement(Verdict.OTHER)


@pytest.mark.parametrize(
    ("judgement", "status", "knowledge", "step"),
    [
        pytest.param(Judgement(Verdict.OK), 204, BOUND, PassAnswer(ends=True), id="ended upstream"),
        pytest.param(Judgement(Verdict.OK), 204, UNKNOWN, PassAnswer(ends=False), id="ended upstream, a stranger's"),
        pytest.param(OTHER, 405, BOUND, PassAnswer(ends=False), id="not allowed: the session stays"),
        pytest.param(Judgement(Verdict.AUTH_FAILURE), 401, BOUND, PassAnswer(ends=False), id="a real 401"),
        pytest.param(LOST, 400, BOUND, EndSession(), id="lost: it is over anyway"),
        pytest.param(Judgement(Verdict.ASK, bare_404=True), 404, BOUND, EndSession(), id="a bare 404"),
        pytest.param(UNANSWERED, 502, BOUND, EndSession(), id="a page of an ingress"),
        pytest.param(
            Judgement(Verdict.UNAVAILABLE, jsonrpc_body=True), 503, BOUND, PassAnswer(ends=False), id="a 503 of its own"
        ),
        pytest.param(UNANSWERED, 502, UNKNOWN, PassAnswer(ends=False), id="a page, and nobody's session"),
        pytest.param(
            LOST,
            400,
            UNKNOWN,
            Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST, rewrites=400),
            id="lost, and nobody's session: the right 404",
        ),
    ],
)
def test_an_answer(judgement: Judgement, status: int, knowledge: SessionKnowledge, step: Step) -> None:
    """What shows that the session is gone ends the id; any other refusal is the upstream's word."""
    assert termination.judged(judgement, status, knowledge) == step


@pytest.mark.parametrize(
    ("knowledge", "step"),
    [
        (BOUND, EndSession()),
        (UNKNOWN, EndSession()),
        (CLAIMED, Give(replies.UNAVAILABLE_PATH)),
        (NONE, Give(replies.UNAVAILABLE_PATH)),
    ],
)
def test_no_answer(knowledge: SessionKnowledge, step: Step) -> None:
    """While the upstream is away a session that is named is over; not on an unproven claim, and without one there is
    nothing to end."""
    assert termination.failed(knowledge) == step


def test_an_id_that_is_another_sessions() -> None:
    """It is not asked for upstream, where it would end the other one; and it is only ended by whose it is."""
    assert termination.displaced(BOUND) == EndSession()
    assert termination.displaced(CLAIMED) == Give(replies.SESSION_NOT_FOUND, reason=Reason.SESSION_LOST)
