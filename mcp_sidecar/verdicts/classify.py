"""What an answer of the upstream means for the session of the request.

The rule of this file: it is the only reader of status codes, and it reads them in moments: the head, if that is enough,
else a bounded beginning of the body. Which wordings mean a lost session stands in ``signatures``; here stand the gates
that a wording must pass. When in doubt an answer is not about the session: a wrong "lost" may run a call twice, a wrong
"other" merely passes an error on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from mcp_sidecar.verdicts.refusals import Refusal, is_plain_error, refusal_of
from mcp_sidecar.verdicts.signatures import (
    JSON_RPC_METHOD_NOT_FOUND,
    ROUTE_ROWS,
    TABLE,
    Signature,
    Strength,
    Wording,
    first_fit,
)
from mcp_sidecar.verdicts.words import NoDocument, Said, said_in
from mcp_sidecar.wire.headers import media_type
from mcp_sidecar.wire.jsonrpc import JsonRpcId

# Bytes of a body that are looked at. The exception that java-sdk servers serialize has its message behind a stack
# trace of 10 to 20 kB.
PEEK_BYTES: Final = 65_536

_PLAIN_TEXT_CHARS: Final = 512
_MODERN_ERRORS: Final = frozenset({-32020, -32021, -32022})  # 2026-07-28: header, capability, version
_LOGIN_REDIRECTS: Final = frozenset({302, 303})
_GATEWAY_STATUSES: Final = frozenset({502, 503, 504, *range(520, 531)})
_AUTH_STATUSES: Final = frozenset({401, 403, 407})
_GONE_STATUSES: Final = frozenset({404, 410})
_OAUTH_ERRORS: Final = frozenset(
    {
        "invalid_request", "invalid_token", "insufficient_scope", "invalid_grant", "invalid_client", "access_denied",
        "unauthorized_client", "unauthorized", "login_required", "interaction_required", "use_dpop_nonce",
    }
)  # fmt: skip
_LEADING_WORDS: Final = re.compile(
    r"\A(?:(?:invalid request|bad request|not found|unauthorized|mcp|error|failed to receive)\s*:\s*)+", re.IGNORECASE
)
_GUARD_TEXT: Final = re.compile(
    r"(?:forbidden: )?(?:invalid )?(?:host|origin) header\b|access is only allowed at |cross-origin request"
    r"|forbidden: (?:host|origin)\b|invalid (?:host|origin)\b",
    re.IGNORECASE,
)
_MISSING_ID_401: Final = re.compile(
    r"unauthorized: (?:session id is required|session not found|no valid session id provided)"
    r"|session no longer valid|invalid session",
    re.IGNORECASE,
)
# tower-mcp says so in plain text, where the others send JSON-RPC.
_AT_CAPACITY: Final = re.compile(r"(?:maximum|too many)\b.{0,40}\bsessions?\b", re.IGNORECASE)
_CUT_JSON_RPC: Final = re.compile(r'\{.*"jsonrpc"\s*:\s*"2\.0"', re.DOTALL)


class Verdict(Enum):
    """What an answer means."""

    OK = "ok"
    SESSION_LOST = "session_lost"
    ASK = "ask"  # with a ping
    AUTH_FAILURE = "auth_failure"
    UNAVAILABLE = "unavailable"
    OTHER = "other"


class SessionKnowledge(Enum):
    """What is known of the session id that a request carries."""

    NONE = "none"  # none carried
    BOUND = "bound"  # minted by this upstream for this principal
    CLAIMED = "claimed"  # minted so, and the upstream has not accepted this credential in it yet
    UNKNOWN = "unknown"  # carried, but not known here, or another principal's


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a verdict needs to know of the request. ``modern`` means 2026-07-28 or later, where no sessions exist.

    ``rpc_ids`` are those that its requests bore upstream, ``session_id`` the one that the upstream knows.
    """

    http_method: str
    rpc_method: str | None
    session: SessionKnowledge
    modern: bool = False
    rpc_ids: frozenset[JsonRpcId] = frozenset()
    session_id: str | None = None

    @property
    def session_at_stake(self) -> bool:
        """Whether an answer may be about a session at all: without an id, or without sessions, it never is."""
        return self.session is not SessionKnowledge.NONE and not self.modern


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What a verdict needs to know of an answer's head. ``www_authenticate`` is whether that header is there."""

    status: int
    content_type: str | None = None
    www_authenticate: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with the beginning of its body, freed from content encodings; ``complete`` if that is all of it."""

    head: AnswerHead
    body: bytes
    complete: bool = True


NO_SIGNATURE = "none"
"""Stands where the name of a signature would, if something else led to it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and what led to it.

    ``signature`` is set for SESSION_LOST and ASK, and only there. The other fields are known only where the body
    was needed. ``jsonrpc_body``: an MCP server wrote the answer. ``bare_404``: a 404 that knows nothing of sessions or
    JSON-RPC, hence maybe the route's. ``refusal`` is what a refusal in a known session says, as asking compares it.
    """

    verdict: Verdict
    signature: Signature | None = None
    jsonrpc_body: bool = False
    bare_404: bool = False
    refusal: Refusal | None = None

    @property
    def name(self) -> str:
        """The name of the signature, for what is told of the answer."""
        return self.signature.name if self.signature is not None else NO_SIGNATURE


class NeedBody(Enum):
    """The head is not enough: read up to ``PEEK_BYTES`` and ask ``judge_body``."""

    NEED_BODY = "need_body"


NEED_BODY: Final = NeedBody.NEED_BODY

UNANSWERED: Final = Judgement(Verdict.UNAVAILABLE)
"""The judgement of a transport fault: no answer says nothing about the session."""

_OK: Final = Judgement(Verdict.OK)
_OTHER: Final = Judgement(Verdict.OTHER)
_AUTH: Final = Judgement(Verdict.AUTH_FAILURE)


def judge_head(facts: RequestFacts, head: AnswerHead) -> Judgement | NeedBody:
    """Judge an answer by its head, or say that the body is needed.

    Of the successes only JSON ones to a request with a session ask for their body (tower-mcp reports a lost session
    so); event streams never do. Errors are read whatever they are framed in.
    """
    if 200 <= head.status < 300:
        if facts.session_at_stake and _media_type(head) == "application/json":
            return NEED_BODY
        return _OK
    if head.status < 400:
        return _AUTH if head.status in _LOGIN_REDIRECTS else _OTHER
    if facts.session_at_stake or head.status in _GATEWAY_STATUSES or head.status in _GONE_STATUSES:
        return NEED_BODY
    if head.status in _AUTH_STATUSES and not facts.modern:
        return NEED_BODY
    return _by_status(head.status)


def judge_body(
    facts: RequestFacts, head: AnswerHead, body: bytes, *, complete: bool, extra: tuple[Signature, ...] = ()
) -> Judgement:
    """Judge an answer by its head and the beginning of its body; never raises, whatever the bytes.

    ``body`` is free of content encodings; ``complete`` says that it is the whole body. ``extra`` are the operator's rows;
    they are asked first. Safe to call for every answer, those that ``judge_head`` has settled included.
    """
    moment = judge_head(facts, head)
    if moment is not NEED_BODY:
        return moment
    if head.status < 300 and is_plain_success(body):
        return _OK
    seen, whole = body[:PEEK_BYTES], complete and len(body) <= PEEK_BYTES
    if head.status < 300:
        return _judge_success(facts, head, seen, whole, extra)
    return _judge_failure(facts, head, seen, whole, extra)


def is_plain_success(body: bytes) -> bool:
    """Whether the body of a success says nothing that could be judged: no server tells of a loss without an error."""
    return b'"error"' not in body


class InitializeVerdict(Enum):
    """What the upstream's answer to the sidecar's own ``initialize`` means, as far as the status tells."""

    ACCEPTED_STATUS = "accepted_status"  # whether the body is an InitializeResult is still to be seen
    AUTH = "auth"  # pass on the answer that started it
    GONE = "gone"  # the endpoint is not there: unavailable, while it ever was
    BUSY = "busy"  # come back later
    UNAVAILABLE = "unavailable"
    REJECTED = "rejected"  # at capacity, already initialized, or a JSON-RPC error


def judge_initialize_status(status: int, body: bytes, *, retry_after: bool = False) -> InitializeVerdict:
    """Judge the answer to an ``initialize`` without a session id. ``body`` is decoded, at least its beginning.

    ``retry_after`` is whether that header is there.
    """
    content = _read(status, said_in(body[:PEEK_BYTES]), complete=len(body) <= PEEK_BYTES)
    if 200 <= status < 300:
        return InitializeVerdict.REJECTED if content.error is not None else InitializeVerdict.ACCEPTED_STATUS
    if status in _AUTH_STATUSES or status in _LOGIN_REDIRECTS:
        return InitializeVerdict.AUTH
    if (status in (429, 503) and not _is_gateways_503(status, content)) or (retry_after and status >= 400):
        return InitializeVerdict.BUSY
    if content.is_jsonrpc or content.error is not None or status < 400:
        return InitializeVerdict.REJECTED
    if status in _GONE_STATUSES:
        return InitializeVerdict.GONE
    if any(map(_AT_CAPACITY.search, content.wording.verbatim)):
        return InitializeVerdict.REJECTED
    return InitializeVerdict.UNAVAILABLE if status >= 500 else InitializeVerdict.REJECTED


@dataclass(frozen=True, slots=True)
class _Content:
    """A body, read once."""

    wording: Wording
    said: Said
    error: dict[str, Any] | None = None
    has_id: bool = False
    is_jsonrpc: bool = False
    is_oauth: bool = False


def _is_gateways_503(status: int, content: _Content) -> bool:
    """A 503 that no MCP server wrote says that there is none."""
    return status == 503 and not (content.is_jsonrpc or any(map(_AT_CAPACITY.search, content.wording.verbatim)))


def _judge_success(
    facts: RequestFacts, head: AnswerHead, body: bytes, complete: bool, extra: tuple[Signature, ...]
) -> Judgement:
    # No server needs more than a peek to say that a session is lost; a result is not searched, whatever it speaks of.
    if not complete or b'"error"' not in body:
        return _OK
    said = said_in(body)
    if is_plain_error(said, facts.rpc_ids):
        return _OK
    content = _read(head.status, said, complete)
    row = first_fit((*extra, *TABLE), content.wording, facts.http_method, facts.rpc_method)
    refusal = _refusal(facts, head, content)
    verdict = _in_band_verdict(content, row, refusal)
    return Judgement(
        verdict,
        signature=None if verdict is Verdict.OK else row,
        jsonrpc_body=content.is_jsonrpc,
        refusal=refusal,
    )


def _judge_failure(
    facts: RequestFacts, head: AnswerHead, body: bytes, complete: bool, extra: tuple[Signature, ...]
) -> Judgement:
    content = _read(head.status, said_in(body), complete)
    row = _row(facts, head, content, extra)
    refusal = _refusal(facts, head, content)
    verdict = _verdict(facts, head, content, row, refusal)
    about_session = verdict in (Verdict.SESSION_LOST, Verdict.ASK)
    return Judgement(
        verdict,
        signature=row if about_session else None,
        jsonrpc_body=content.is_jsonrpc,
        bare_404=head.status == 404 and row is not None and row.name in ROUTE_ROWS,
        refusal=refusal,
    )


def _refusal(facts: RequestFacts, head: AnswerHead, content: _Content) -> Refusal | None:
    """What asking compares; only in a session that is known here is anybody asked."""
    if facts.session is not SessionKnowledge.BOUND or facts.modern:
        return None
    without = (facts.rpc_method or "", facts.session_id or "")
    return refusal_of(head.status, content.said, ids=facts.rpc_ids, without=without, challenged=head.www_authenticate)


def _in_band_verdict(content: _Content, row: Signature | None, refusal: Refusal | None) -> Verdict:
    # An error with the request's id comes from what ran, and may speak of that tool's own sessions.
    is_loss = row is not None and row.strength is Strength.STRONG and content.error is not None and not content.has_id
    if is_loss and content.wording.code not in _MODERN_ERRORS:
        return Verdict.SESSION_LOST
    return Verdict.ASK if refusal is not None and refusal.is_asked_about else Verdict.OK


def _row(facts: RequestFacts, head: AnswerHead, content: _Content, extra: tuple[Signature, ...]) -> Signature | None:
    if content.is_oauth:
        return None
    # A challenge stays a challenge, unless the table holds a recorded server that sends one by mistake.
    challenged = head.status in (401, 403) and head.www_authenticate
    rows = TABLE if challenged else (*extra, *TABLE)
    row = first_fit(rows, content.wording, facts.http_method, facts.rpc_method)
    return None if row is not None and row.name in ROUTE_ROWS and content.is_jsonrpc else row


def _verdict(
    facts: RequestFacts, head: AnswerHead, content: _Content, row: Signature | None, refusal: Refusal | None
) -> Verdict:
    is_asked = refusal is not None and refusal.is_asked_about and not content.is_oauth
    if head.status in _AUTH_STATUSES:
        verdict = _auth_verdict(facts, head, content, row)
        return Verdict.ASK if verdict is Verdict.AUTH_FAILURE and is_asked else verdict
    is_strong = row is not None and row.strength is Strength.STRONG and facts.session_at_stake
    if is_strong and not _session_verdict_barred(head.status, content):
        return Verdict.SESSION_LOST
    return Verdict.ASK if is_asked else _by_status(head.status).verdict


def _auth_verdict(facts: RequestFacts, head: AnswerHead, content: _Content, row: Signature | None) -> Verdict:
    # Exact literals of the table for 401, an operator's row for 403; there is none for 407.
    if row is not None and facts.session_at_stake:
        return Verdict.SESSION_LOST
    verbatim = content.wording.verbatim
    if head.status == 401 and facts.session is SessionKnowledge.NONE and any(map(_MISSING_ID_401.fullmatch, verbatim)):
        return Verdict.OTHER
    if head.status == 403 and any(map(_GUARD_TEXT.match, verbatim)):
        return Verdict.OTHER
    return Verdict.AUTH_FAILURE


def _session_verdict_barred(status: int, content: _Content) -> bool:
    """Tell whether the error is one that says something else by definition (2026-07-28 transports)."""
    code = content.wording.code
    return code in _MODERN_ERRORS or (status == 404 and code == JSON_RPC_METHOD_NOT_FOUND)


def _by_status(status: int) -> Judgement:
    if status in _AUTH_STATUSES:
        return _AUTH
    return UNANSWERED if status in _GATEWAY_STATUSES else _OTHER


def _media_type(head: AnswerHead) -> str:
    return media_type(head.content_type)


def _read(status: int, said: Said, complete: bool) -> _Content:
    text, document = said.text, said.document
    if document is NoDocument.NOT_JSON:
        return _read_text(status, said, complete)
    if not isinstance(document, dict):
        return _read_other_json(status, said)
    error = document.get("error")
    error = error if isinstance(error, dict) else None
    verbatim = tuple(candidate.strip() for candidate in _candidates(document))
    return _Content(
        _wording(status, text, verbatim, _code(error)),
        said,
        error=error,
        has_id=document.get("id") is not None,
        is_jsonrpc=document.get("jsonrpc") == "2.0",
        is_oauth=_is_oauth_error(document),
    )


def _read_text(status: int, said: Said, complete: bool) -> _Content:
    text = said.text
    if not complete:
        # The rest may turn the meaning of a beginning round; a cut JSON text in particular is not a sentence.
        return _Content(Wording(status, body=text), said, is_jsonrpc=_CUT_JSON_RPC.match(text) is not None)
    is_sentence = len(text) <= _PLAIN_TEXT_CHARS and not text.startswith("<")
    return _Content(_wording(status, text, (text,) if is_sentence else (), None), said)


def _read_other_json(status: int, said: Said) -> _Content:
    document = said.document
    verbatim = (document.strip(),) if isinstance(document, str) else ()
    is_batch = isinstance(document, list) and any(
        isinstance(member, dict) and member.get("jsonrpc") == "2.0" for member in document
    )
    return _Content(_wording(status, said.text, verbatim, None), said, is_jsonrpc=is_batch)


def _wording(status: int, text: str, verbatim: tuple[str, ...], code: int | None) -> Wording:
    literals = tuple(_LEADING_WORDS.sub("", candidate) for candidate in verbatim)
    return Wording(status, literals=literals, verbatim=verbatim, body=text, code=code)


def _candidates(document: dict[str, Any]) -> list[str]:
    error = document.get("error")
    found: list[object] = []
    if isinstance(error, dict):
        data = error.get("data")
        inner = data.get("data") if isinstance(data, dict) else None
        found = [part.get("message") for part in (error, data, inner) if isinstance(part, dict)]
    elif "error_description" not in document:
        found = [error]
    found += [document.get("message"), document.get("detail")]
    return [candidate for candidate in found if isinstance(candidate, str)]


def _code(error: dict[str, Any] | None) -> int | None:
    code = error.get("code") if error is not None else None
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _is_oauth_error(document: dict[str, Any]) -> bool:
    error = document.get("error")
    if not isinstance(error, str):
        return False
    return "error_description" in document or "error_uri" in document or error.lower() in _OAUTH_ERRORS
