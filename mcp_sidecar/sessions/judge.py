"""The one reader of answers: the head, else a bounded beginning of the body, shown to the classifier.

Whoever wants to know what an answer of the upstream means for a session asks here. An error's status counts also where its
body breaks off; a success that breaks off means nothing, and is a fault like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_sidecar.upstream.answer import Answer, decoded_body
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.verdicts.classify import (
    PEEK_BYTES,
    AnswerHead,
    Judgement,
    NeedBody,
    RequestFacts,
    Verdict,
    judge_body,
    judge_head,
)
from mcp_sidecar.verdicts.classify import Answer as JudgedAnswer
from mcp_sidecar.verdicts.signatures import Signature


@dataclass(frozen=True, slots=True)
class Judged:
    """What an answer means, and what of it was looked at."""

    judgement: Judgement
    seen: JudgedAnswer


async def judge(
    answer: Answer, facts: RequestFacts, signatures: tuple[Signature, ...], *, body: bytes | None = None
) -> Judged:
    """Judge an answer to a client's request. Raises ``UpstreamFault`` where a success breaks off.

    ``signatures`` are the operator's own rows; ``body`` is the whole body, where that was read already.
    """
    head = _head(answer)
    judgement = judge_head(facts, head)
    if not isinstance(judgement, NeedBody):
        return Judged(judgement, JudgedAnswer(head, b"", complete=False))
    if body is None:
        body = await _beginning(answer)
    judgement = judge_body(facts, head, body, complete=answer.whole, extra=signatures)
    return Judged(judgement, JudgedAnswer(head, body, complete=answer.whole))


async def see(answer: Answer, *, is_read: bool = True) -> JudgedAnswer:
    """What the classifier is to see of an answer to a request of our own. Raises ``UpstreamFault``."""
    body = await decoded_body(answer, PEEK_BYTES) if is_read else answer.peeked
    return JudgedAnswer(_head(answer), body, complete=answer.whole)


def is_accepted(judgement: Judgement, status: int) -> bool:
    """Whether the answer shows that the upstream has accepted the credential: a success, and no error inside it."""
    return 200 <= status < 300 and judgement.verdict is Verdict.OK


def _head(answer: Answer) -> AnswerHead:
    challenge = answer.header("WWW-Authenticate")
    return AnswerHead(answer.status, answer.header("Content-Type"), challenge is not None)


async def _beginning(answer: Answer) -> bytes:
    try:
        return await decoded_body(answer, PEEK_BYTES)
    except UpstreamFault:
        if 200 <= answer.status < 300:
            raise
        return b""
