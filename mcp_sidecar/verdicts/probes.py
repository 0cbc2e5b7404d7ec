"""What the new server's answer to one step of a restore means for the heal.

A refusal is the server's word, and the heal goes on without that step. Whatever shows that the new session is gone, or was
not reached, ends the heal: nothing half restored is taken for whole.
"""

from __future__ import annotations

from enum import Enum

from mcp_sidecar.verdicts.classify import Answer, RequestFacts, SessionKnowledge, Verdict, judge_body
from mcp_sidecar.verdicts.signatures import Signature


class StepVerdict(Enum):
    """What became of a step."""

    TAKEN = "taken"
    REFUSED = "refused"  # the heal goes on without it
    LOST = "lost"  # the new session is gone already
    DOUBTFUL = "doubtful"  # ask with a ping
    NO_ROUTE = "no route"
    GATEWAY = "gateway"  # a page of an ingress, in the place of the server's answer


def judge_step(method: str, answer: Answer, extra: tuple[Signature, ...] = ()) -> StepVerdict:
    """Judge an answer to a message of ours in the new session by its head and the beginning of its body.

    An error that carries our own id is TAKEN here: it is the server's word, and the caller has to look for it.
    """
    facts = RequestFacts("POST", method, SessionKnowledge.BOUND)
    judged = judge_body(facts, answer.head, answer.body, complete=answer.complete, extra=extra)
    match judged.verdict:
        case Verdict.OK:
            return StepVerdict.TAKEN
        case Verdict.SESSION_LOST:
            return StepVerdict.LOST
        case Verdict.ASK:
            return StepVerdict.NO_ROUTE if judged.bare_404 else StepVerdict.DOUBTFUL
        case Verdict.UNAVAILABLE if not judged.jsonrpc_body:
            return StepVerdict.GATEWAY
        case _:
            return StepVerdict.REFUSED
