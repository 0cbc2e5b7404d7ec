"""What an answer of the upstream means: its head, else a bounded beginning of its body, shown to the classifier."""

from __future__ import annotations

from aiohttp import hdrs

from mcp_sidecar.upstream.answer import Answer, decoded_body
from mcp_sidecar.upstream.connection import UpstreamFault
from mcp_sidecar.verdicts.classify import (
    PEEK_BYTES,
    AnswerHead,
    Judgement,
    NeedBody,
    RequestFacts,
    judge_body,
    judge_head,
)
from mcp_sidecar.verdicts.classify import Answer as JudgedAnswer
from mcp_sidecar.verdicts.signatures import Signature


def judged_head(answer: Answer) -> AnswerHead:
    """What the classifier wants to know of an answer's head."""
    challenge = answer.header(hdrs.WWW_AUTHENTICATE)
    return AnswerHead(answer.status, answer.header(hdrs.CONTENT_TYPE), challenge is not None)


async def judged_get(
    answer: Answer, facts: RequestFacts, signatures: tuple[Signature, ...]
) -> tuple[Judgement, JudgedAnswer]:
    """What an answer means that is no stream, and what of it was judged; ``signatures`` are the operator's own rows."""
    head = judged_head(answer)
    judgement = judge_head(facts, head)
    original = JudgedAnswer(head, b"", complete=False)
    if isinstance(judgement, NeedBody):
        try:
            body = await decoded_body(answer, PEEK_BYTES)
        except UpstreamFault:
            body = b""
        original = JudgedAnswer(head, body, complete=answer.whole)
        judgement = judge_body(facts, head, body, complete=answer.whole, extra=signatures)
    return judgement, original
