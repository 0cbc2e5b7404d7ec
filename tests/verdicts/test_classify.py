"""The classifier: its moments, its gates, how it reads bodies, and how a probe settles what it cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.verdicts.classify import (
    NEED_BODY,
    NO_SIGNATURE,
    PEEK_BYTES,
    Answer,
    AnswerHead,
    InitializeVerdict,
    Judgement,
    NeedBody,
    RequestFacts,
    SessionKnowledge,
    Verdict,
    judge_body,
    judge_head,
    judge_initialize_status,
)
from mcp_sidecar.verdicts.signatures import TABLE, Signature, operator_signature

BOUND = RequestFacts("POST", "tools/list", SessionKnowledge.BOUND)
UNKNOWN = RequestFacts("POST", "tools/list", SessionKnowledge.UNKNOWN)
NONE = RequestFacts("POST", "tools/list", SessionKnowledge.NONE)
MODERN = RequestFacts("POST", "tools/list", SessionKnowledge.BOUND, modern=True)
JSON = "application/json; charset=utf-8"
SSE = "text/event-stream"
LOST = b"Session not found"
TOWER = "Session 'x' not found or expired. Please re-initialize the connection."


def rpc_error(message: str, code: int = -32000, **more: Any) -> bytes:
    """Make a JSON-RPC error; ``data`` goes into the error, ``id`` into the envelope."""
    error = {"code": code, "message": message} | {key: more[key] for key in more if key == "data"}
    return json.dumps({"jsonrpc": "2.0", "id": more.get("id"), "error": error}).encode()


def judge(
    status: int,
    body: bytes | str,
    facts: RequestFacts = BOUND,
    *,
    content_type: str | None = JSON,
    challenged: bool = False,
    complete: bool = True,
    extra: tuple[Signature, ...] = (),
) -> Judgement:
    raw = body.encode() if isinstance(body, str) else body
    return judge_body(facts, AnswerHead(status, content_type, challenged), raw, complete=complete, extra=extra)


HEADS: list[Any] = [
    pytest.param(BOUND, AnswerHead(200, SSE), Verdict.OK, id="event stream"),
    pytest.param(BOUND, AnswerHead(200, JSON), NEED_BODY, id="JSON success of a session"),
    pytest.param(UNKNOWN, AnswerHead(200, JSON), NEED_BODY, id="JSON success of an unknown session"),
    pytest.param(NONE, AnswerHead(200, JSON), Verdict.OK, id="JSON success without a session"),
    pytest.param(MODERN, AnswerHead(200, JSON), Verdict.OK, id="modern JSON success"),
    pytest.param(BOUND, AnswerHead(202), Verdict.OK, id="accepted"),
    pytest.param(BOUND, AnswerHead(100), Verdict.OTHER, id="not a final answer"),
    pytest.param(BOUND, AnswerHead(304), Verdict.OTHER, id="not modified"),
    pytest.param(BOUND, AnswerHead(307), Verdict.OTHER, id="path redirect"),
    pytest.param(BOUND, AnswerHead(302), Verdict.AUTH_FAILURE, id="login redirect"),
    pytest.param(BOUND, AnswerHead(303), Verdict.AUTH_FAILURE, id="login redirect after POST"),
    pytest.param(BOUND, AnswerHead(404, SSE), NEED_BODY, id="event stream with an error status"),
    pytest.param(BOUND, AnswerHead(503, SSE), NEED_BODY, id="event stream with a gateway status"),
    pytest.param(BOUND, AnswerHead(401, SSE), NEED_BODY, id="event stream with an auth status"),
    pytest.param(BOUND, AnswerHead(400), NEED_BODY, id="400"),
    pytest.param(BOUND, AnswerHead(418), NEED_BODY, id="any error of a session: operators may know it"),
    pytest.param(UNKNOWN, AnswerHead(500), NEED_BODY, id="500 of an unknown session"),
    pytest.param(NONE, AnswerHead(400), Verdict.OTHER, id="400 without a session"),
    pytest.param(NONE, AnswerHead(401), NEED_BODY, id="401 without a session: a missing id, or auth"),
    pytest.param(NONE, AnswerHead(404), NEED_BODY, id="404 without a session: the route's, or not"),
    pytest.param(NONE, AnswerHead(502), NEED_BODY, id="502 without a session: the ingress', or not"),
    pytest.param(NONE, AnswerHead(500), Verdict.OTHER, id="500 without a session"),
    pytest.param(MODERN, AnswerHead(401), Verdict.AUTH_FAILURE, id="modern 401"),
    pytest.param(MODERN, AnswerHead(403), Verdict.AUTH_FAILURE, id="modern 403"),
    pytest.param(MODERN, AnswerHead(400), Verdict.OTHER, id="modern 400"),
    pytest.param(MODERN, AnswerHead(404), NEED_BODY, id="modern 404"),
    pytest.param(MODERN, AnswerHead(520), NEED_BODY, id="modern 520"),
]


@pytest.mark.parametrize(("facts", "head", "expected"), HEADS)
def test_the_head_settles_what_it_can(facts: RequestFacts, head: AnswerHead, expected: Verdict | NeedBody) -> None:
    """A body is asked for only where it could change the verdict."""
    moment = judge_head(facts, head)

    assert moment is expected or (isinstance(moment, Judgement) and moment.verdict is expected)


@pytest.mark.parametrize(("facts", "head", "expected"), HEADS)
def test_the_body_never_changes_what_the_head_settled(
    facts: RequestFacts, head: AnswerHead, expected: Verdict | NeedBody
) -> None:
    """``judge_body`` may be asked about every answer; what the head has settled stays settled."""
    judged = judge_body(facts, head, rpc_error("Session not found", -32001), complete=True)

    assert expected is NEED_BODY or judged == judge_head(facts, head)


GATES: list[Any] = [
    pytest.param(BOUND, 404, LOST, Verdict.SESSION_LOST, id="bound, strong"),
    pytest.param(UNKNOWN, 404, LOST, Verdict.SESSION_LOST, id="unknown, strong"),
    pytest.param(NONE, 404, LOST, Verdict.OTHER, id="no session, strong"),
    pytest.param(MODERN, 404, LOST, Verdict.OTHER, id="modern, strong"),
    pytest.param(BOUND, 404, b"", Verdict.ASK, id="bound, bare 404"),
    pytest.param(BOUND, 410, b"", Verdict.ASK, id="bound, bare 410"),
    pytest.param(UNKNOWN, 404, b"", Verdict.OTHER, id="unknown, bare 404"),
    pytest.param(NONE, 404, b"", Verdict.OTHER, id="no session, bare 404"),
    pytest.param(MODERN, 404, b"", Verdict.OTHER, id="modern, bare 404"),
    pytest.param(BOUND, 401, b"Unauthorized: Session not found", Verdict.SESSION_LOST, id="bound, exact 401"),
    pytest.param(UNKNOWN, 401, b"Unauthorized: Session not found", Verdict.SESSION_LOST, id="unknown, exact 401"),
    pytest.param(NONE, 401, b"Unauthorized: Session not found", Verdict.OTHER, id="no session, exact 401"),
    pytest.param(MODERN, 401, b"Unauthorized: Session not found", Verdict.AUTH_FAILURE, id="modern, exact 401"),
    pytest.param(NONE, 401, b"Unauthorized: Session ID is required", Verdict.OTHER, id="the id is missing"),
    pytest.param(BOUND, 401, b"Unauthorized: Session ID is required", Verdict.ASK, id="it was not missing"),
    pytest.param(NONE, 401, b"", Verdict.AUTH_FAILURE, id="no session, plain 401"),
    pytest.param(NONE, 403, b"no", Verdict.AUTH_FAILURE, id="no session, plain 403"),
    pytest.param(NONE, 403, b"Forbidden: Origin header is not allowed", Verdict.OTHER, id="no session, guard"),
    pytest.param(BOUND, 503, b"Session not found", Verdict.SESSION_LOST, id="bound, strong 503"),
    pytest.param(BOUND, 503, b"no healthy upstream", Verdict.UNAVAILABLE, id="bound, ingress 503"),
    pytest.param(NONE, 503, b"Session not found", Verdict.UNAVAILABLE, id="no session, strong 503"),
    pytest.param(UNKNOWN, 400, b"Mcp-Session-Id header must be a valid UUID.", Verdict.OTHER, id="unknown, weak"),
    pytest.param(BOUND, 400, b"Mcp-Session-Id header must be a valid UUID.", Verdict.ASK, id="bound, weak"),
]


@pytest.mark.parametrize(("facts", "status", "body", "verdict"), GATES)
def test_only_sessions_of_ours_are_lost_or_ambiguous(
    facts: RequestFacts, status: int, body: bytes, verdict: Verdict
) -> None:
    """The same answer means something else by whose session the request carried (transports, "Session Management" 4)."""
    judged = judge(status, body, facts, content_type=None)

    assert judged.verdict is verdict
    assert (judged.refusal is not None) is (facts is BOUND)
    assert judged.signature is None or verdict in (Verdict.SESSION_LOST, Verdict.ASK)


HARD_NEGATIVES: list[Any] = [
    pytest.param(401, '{"message":"Session expired, please log in again"}', Verdict.AUTH_FAILURE, id="login"),
    pytest.param(
        401, '{"error":"invalid_token","error_description":"Session not found"}', Verdict.AUTH_FAILURE, id="rfc"
    ),
    pytest.param(401, "Session not found", Verdict.AUTH_FAILURE, id="401, not on the list"),
    pytest.param(401, "Unauthorized: Session not found.", Verdict.AUTH_FAILURE, id="401, nearly on the list"),
    pytest.param(401, rpc_error("invalid session: log in"), Verdict.AUTH_FAILURE, id="401, more than the wording"),
    pytest.param(403, '{"error":"Invalid session"}', Verdict.AUTH_FAILURE, id="403"),
    pytest.param(403, "Session not found", Verdict.AUTH_FAILURE, id="403 in the strongest words"),
    pytest.param(407, "Session not found", Verdict.AUTH_FAILURE, id="407"),
    pytest.param(
        400, '{"error":"invalid_request","error_description":"session not found"}', Verdict.OTHER, id="oauth 400"
    ),
    pytest.param(404, '{"error":"invalid_token","message":"Session not found"}', Verdict.OTHER, id="oauth by its code"),
    pytest.param(400, '{"error":"x","error_uri":"y","message":"Session not found"}', Verdict.OTHER, id="oauth by uri"),
    pytest.param(404, rpc_error("Session not found", -32601), Verdict.OTHER, id="method not found"),
    pytest.param(404, rpc_error("Resource not found", -32002, id=7), Verdict.OTHER, id="another JSON-RPC error"),
    pytest.param(400, rpc_error("Session not found", -32020), Verdict.OTHER, id="modern: header"),
    pytest.param(400, rpc_error("Session not found", -32021), Verdict.OTHER, id="modern: capability"),
    pytest.param(400, rpc_error("Session not found", -32022), Verdict.OTHER, id="modern: version"),
    pytest.param(503, rpc_error("Session not found", -32022), Verdict.UNAVAILABLE, id="modern code on a 503"),
    pytest.param(400, rpc_error("Request timed out", -32001), Verdict.OTHER, id="the code alone"),
    pytest.param(400, "Bad Request: Mcp-Session-Id header is required", Verdict.OTHER, id="missing header"),
    pytest.param(400, '{"message":"Session affinity service not initialized"}', Verdict.OTHER, id="other service"),
    pytest.param(404, "<p>Session not found</p>", Verdict.OTHER, id="markup is not a sentence"),
    pytest.param(404, "Session not found" + " and more" * 60, Verdict.OTHER, id="a long text is not a sentence"),
    pytest.param(400, "[" * 50_000, Verdict.OTHER, id="too deep to be read"),
    pytest.param(400, '["Session not found"]', Verdict.OTHER, id="a list"),
    pytest.param(400, "17", Verdict.OTHER, id="a number"),
    pytest.param(400, '{"error":{"code":1,"message":["Session not found"]}}', Verdict.OTHER, id="no string"),
    pytest.param(400, '{"result":{"message":"Session not found"}}', Verdict.OTHER, id="inside a result"),
    pytest.param(404, b'{"jsonrpc":"2.0","id":1,"result":{}}', Verdict.OTHER, id="JSON-RPC, no error"),
    pytest.param(404, b'[{"jsonrpc":"2.0","id":1,"result":{}}]', Verdict.OTHER, id="a JSON-RPC batch"),
    pytest.param(500, "Session not found", Verdict.OTHER, id="500"),
    pytest.param(500, "Encounter an error when get service: boom", Verdict.OTHER, id="rmcp's factory"),
    pytest.param(502, "Session not found", Verdict.UNAVAILABLE, id="502"),
    pytest.param(405, "Session not found", Verdict.OTHER, id="405"),
    pytest.param(429, "Invalid session ID", Verdict.OTHER, id="429"),
]


@pytest.mark.parametrize(("status", "body", "verdict"), HARD_NEGATIVES)
def test_answers_that_look_like_a_loss_are_not(status: int, body: str | bytes, verdict: Verdict) -> None:
    """Words about sessions are evidence only on the right status, in the right place, from the right source."""
    assert judge(status, body, UNKNOWN).verdict is verdict
    assert judge(status, body).verdict in (verdict, Verdict.ASK)


MESSAGES: list[Any] = [
    pytest.param("Session not found", id="text"),
    pytest.param("  Session not found \r\n", id="text with space around"),
    pytest.param("\ufeffSession not found", id="text with a mark"),
    pytest.param("Bad Request: Session not found", id="leading words"),
    pytest.param("Invalid Request: Not Found:Session not found", id="several leading words"),
    pytest.param("mcp: ERROR : session not found", id="leading words of any case"),
    pytest.param('"Session not found"', id="JSON string"),
    pytest.param('{"error":"Session not found"}', id="error string"),
    pytest.param('{"message":"Session not found"}', id="message"),
    pytest.param('{"detail":"Session not found"}', id="detail"),
    pytest.param('{"error":true,"detail":"Session not found"}', id="error is no string"),
    pytest.param('{"code":-32016,"message":"Session not found"}', id="bare error object"),
    pytest.param(rpc_error("Session not found", id=7), id="JSON-RPC"),
    pytest.param(rpc_error("Invalid Request", data={"message": "Session not found"}), id="error.data"),
    pytest.param(rpc_error("Invalid Request", data={"data": {"message": "Session not found"}}), id="error.data.data"),
    pytest.param('{"error":{"code":true,"message":"Session not found"}}', id="a code that is none"),
]


@pytest.mark.parametrize("body", MESSAGES)
def test_the_message_is_found_wherever_servers_put_it(body: str | bytes) -> None:
    """Bodies are read as what they are, with the candidates of real servers."""
    assert judge(404, body).verdict is Verdict.SESSION_LOST


def test_broken_json_is_text() -> None:
    """A whole body that merely begins like JSON is a text like any other, and no sentence about a session."""
    judged = judge(404, "{Session not found")

    assert judged.verdict is Verdict.ASK
    assert judged.bare_404


CUT: list[Any] = [
    pytest.param(400, b"Session not found", Verdict.ASK, False, id="the rest of a text may matter"),
    pytest.param(404, b"Session not found", Verdict.ASK, False, id="a cut 404 asks"),
    pytest.param(404, b'{"message":"Session not found', Verdict.ASK, False, id="a cut JSON text is no sentence"),
    pytest.param(404, b'{"jsonrpc":"2.0","error":{"code":-3', Verdict.ASK, True, id="cut JSON-RPC is not the route's"),
    pytest.param(503, b'{"id":1,"jsonrpc": "2.0","err', Verdict.UNAVAILABLE, True, id="cut JSON-RPC of a server"),
    pytest.param(503, b"<html>", Verdict.UNAVAILABLE, False, id="a cut page"),
]


@pytest.mark.parametrize(("status", "body", "verdict", "jsonrpc"), CUT)
def test_a_cut_body_is_not_taken_for_whole(status: int, body: bytes, verdict: Verdict, jsonrpc: bool) -> None:
    """An incomplete body tells at most that an MCP server was writing it."""
    judged = judge(status, body, complete=False)

    assert judged.verdict is verdict
    assert judged.jsonrpc_body is jsonrpc


def test_a_body_beyond_the_peek_is_a_cut_one() -> None:
    """What lies beyond the peek is not read even if the caller hands it over."""
    body = b'{"message":"Session not found","padding":"' + b"x" * PEEK_BYTES + b'"}'

    assert judge(404, body).verdict is Verdict.ASK
    assert judge(404, body[: PEEK_BYTES - 2] + b'"}').verdict is Verdict.SESSION_LOST


SUCCESSES: list[Any] = [
    pytest.param(
        b'{"jsonrpc":"2.0","id":7,"result":{"error":"Session \'x\' not found. Re-initialize"}}', "OK", id="result"
    ),
    pytest.param(rpc_error(TOWER, -32005), "SESSION_LOST", id="tower-mcp"),
    pytest.param(rpc_error(TOWER, -32005, id=7), "ASK", id="with the request's id"),
    pytest.param(rpc_error("Session not found"), "ASK", id="does not say what to do"),
    pytest.param(rpc_error("Unknown Mcp-Session-Id", -32022), "ASK", id="modern code"),
    pytest.param(rpc_error("Unknown Mcp-Session-Id", id=7), "ASK", id="names the header"),
    pytest.param(b'{"error":"Unknown Mcp-Session-Id"}', "ASK", id="no JSON-RPC error"),
    pytest.param(rpc_error("No such tool", id=7), "OK", id="the request's own error"),
    pytest.param(rpc_error("No such tool"), "ASK", id="nobody's error"),
    pytest.param(rpc_error("No such tool", id=8), "ASK", id="somebody else's error"),
    pytest.param(b'{"error":', "OK", id="broken"),
    pytest.param(b"", "OK", id="empty"),
]


@pytest.mark.parametrize(("body", "verdict"), SUCCESSES)
def test_inside_a_success_little_counts(body: bytes, verdict: str) -> None:
    """Results are never searched; errors inside a 200 are losses only where they cannot come from what ran."""
    asked = RequestFacts("POST", "tools/list", SessionKnowledge.BOUND, rpc_ids=frozenset({7}))
    assert judge(200, body, asked).verdict is Verdict[verdict]


def test_inside_a_success_nothing_is_read_without_need() -> None:
    """A cut or unmarked success passes, and an unknown session is never ambiguous."""
    tower = rpc_error(TOWER, -32005)

    assert judge(200, tower, complete=False).verdict is Verdict.OK
    assert judge(200, tower, content_type="text/plain").verdict is Verdict.OK
    assert judge(200, tower, content_type=SSE).verdict is Verdict.OK
    assert judge(200, tower, NONE).verdict is Verdict.OK
    assert judge(200, tower, UNKNOWN).verdict is Verdict.SESSION_LOST
    assert judge(200, rpc_error("Unknown Mcp-Session-Id"), UNKNOWN).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("status", "body", "jsonrpc", "bare", "code"),
    [
        pytest.param(404, b"404 page not found\n", False, True, None, id="route"),
        pytest.param(404, b"<html><body><h1>Resource not found</h1></body></html>", False, True, None, id="quarkus"),
        pytest.param(410, b"", False, False, None, id="410 is not a route's"),
        pytest.param(404, LOST, False, False, None, id="a text about sessions"),
        pytest.param(404, rpc_error("x", -32601), True, False, -32601, id="JSON-RPC"),
        pytest.param(503, rpc_error("Too many open sessions", -32603), True, False, -32603, id="capacity"),
        pytest.param(503, b"<html>", False, False, None, id="ingress"),
        pytest.param(400, rpc_error("x", -32022), True, False, -32022, id="a modern-only upstream"),
    ],
)
@pytest.mark.parametrize("facts", [BOUND, UNKNOWN], ids=["bound", "unknown"])
def test_a_judgement_tells_who_wrote_the_answer(
    facts: RequestFacts, status: int, body: bytes, jsonrpc: bool, bare: bool, code: int | None
) -> None:
    """Who wrote an answer decides whether the upstream is away: the MCP server, or what stands before it."""
    judged = judge(status, body, facts)

    assert (judged.jsonrpc_body, judged.bare_404) == (jsonrpc, bare)
    if judged.refusal is not None:
        assert judged.refusal.code == code


MINE_400 = operator_signature(name="mine", status=409, text="where were we", methods=())
MINE_401 = operator_signature(name="mine", status=401, text="who is it", methods=())
MINE_403 = operator_signature(name="mine", status=403, text="who is it", methods=())
MINE_200 = operator_signature(name="mine", status=200, text="start over", methods=())
NAMED = operator_signature(name="mine", status=404, text="session 'x'", methods=())


def test_rows_of_operators_are_asked_first() -> None:
    """An operator can add a wording, and name one that the table knows."""
    assert judge(409, b"Where were we?").verdict is Verdict.ASK
    assert judge(409, b"Where were we?", extra=(MINE_400,)).verdict is Verdict.SESSION_LOST
    judged = judge(404, b"Session 'x' not found", extra=(NAMED,))
    assert judged.signature is NAMED


@pytest.mark.parametrize("facts", [NONE, MODERN], ids=["no session", "modern"])
def test_rows_of_operators_pass_the_same_gates(facts: RequestFacts) -> None:
    """Configuration cannot make a request without a session lose one."""
    assert judge(409, b"Where were we?", facts, extra=(MINE_400,)).verdict is Verdict.OTHER


@pytest.mark.parametrize(("status", "row"), [(401, MINE_401), (403, MINE_403)])
def test_rows_of_operators_leave_authorization_alone(status: int, row: Signature) -> None:
    """An operator's row for 401 or 403 counts without a challenge only, and never as an OAuth error."""
    assert judge(status, b"who is it", extra=(row,)).verdict is Verdict.SESSION_LOST
    assert judge(status, b"who is it", extra=(row,), challenged=True).verdict is Verdict.AUTH_FAILURE
    assert judge(status, b"who is it, then", UNKNOWN, extra=(row,)).verdict is Verdict.AUTH_FAILURE
    oauth = b'{"error":"invalid_token","message":"who is it"}'
    assert judge(status, oauth, extra=(row,)).verdict is Verdict.AUTH_FAILURE


def test_rows_of_operators_inside_a_success_need_an_error_of_nobody() -> None:
    """Inside a 200 an operator's row, too, counts only for an error without the request's id."""
    assert judge(200, rpc_error("Start over"), extra=(MINE_200,)).verdict is Verdict.SESSION_LOST
    asked = RequestFacts("POST", "tools/list", SessionKnowledge.BOUND, rpc_ids=frozenset({7}))
    assert judge(200, rpc_error("Start over", id=7), asked, extra=(MINE_200,)).verdict is Verdict.OK


def answer(status: int, body: bytes = b"", content_type: str | None = JSON, *, complete: bool = True) -> Answer:
    return Answer(AnswerHead(status, content_type), body, complete)


PONG = b'{"jsonrpc":"2.0","id":"p","result":{}}'

INITIALIZES: list[Any] = [
    pytest.param(200, b"event: message\ndata: \n\n", InitializeVerdict.ACCEPTED_STATUS, id="stream"),
    pytest.param(200, PONG, InitializeVerdict.ACCEPTED_STATUS, id="JSON result"),
    pytest.param(200, rpc_error("no"), InitializeVerdict.REJECTED, id="JSON-RPC error in a 200"),
    pytest.param(302, b"", InitializeVerdict.AUTH, id="login"),
    pytest.param(307, b"", InitializeVerdict.REJECTED, id="path redirect"),
    pytest.param(401, b"", InitializeVerdict.AUTH, id="401"),
    pytest.param(403, rpc_error("no"), InitializeVerdict.AUTH, id="403"),
    pytest.param(400, rpc_error("Server already initialized", -32600), InitializeVerdict.REJECTED, id="initialized"),
    pytest.param(400, b"no server available\n", InitializeVerdict.REJECTED, id="400 text"),
    pytest.param(404, b"404 page not found\n", InitializeVerdict.GONE, id="no route"),
    pytest.param(410, b"", InitializeVerdict.GONE, id="gone"),
    pytest.param(404, rpc_error("x", -32601), InitializeVerdict.REJECTED, id="modern-only"),
    pytest.param(500, b"Internal Server Error", InitializeVerdict.UNAVAILABLE, id="500 page"),
    pytest.param(500, rpc_error("no"), InitializeVerdict.REJECTED, id="500 JSON-RPC"),
    pytest.param(503, b"<html>", InitializeVerdict.UNAVAILABLE, id="ingress"),
    pytest.param(503, rpc_error("Too many open sessions"), InitializeVerdict.BUSY, id="capacity, JSON-RPC"),
    pytest.param(503, b"Maximum session limit reached", InitializeVerdict.BUSY, id="capacity, text"),
    pytest.param(429, b"slow down", InitializeVerdict.BUSY, id="rate limit"),
    pytest.param(521, b"<html>", InitializeVerdict.UNAVAILABLE, id="edge"),
]


@pytest.mark.parametrize(("status", "body", "verdict"), INITIALIZES)
def test_an_initialize_is_judged_by_its_status(status: int, body: bytes, verdict: InitializeVerdict) -> None:
    """Only an MCP server can reject; a page in its place says that it is away, and "come back later" is no rejection."""
    assert judge_initialize_status(status, body) is verdict
    named = InitializeVerdict.BUSY if status >= 400 and verdict is not InitializeVerdict.AUTH else verdict
    assert judge_initialize_status(status, body, retry_after=True) is named


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("Session not found"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["error", "message", "detail", "data", "code", "id", "jsonrpc", "error_description"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
bodies = st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()) | st.text().map(str.encode)
facts_of_any_kind = st.builds(
    RequestFacts,
    st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
    st.none() | st.text(max_size=10),
    st.sampled_from(SessionKnowledge),
    st.booleans(),
)
heads_of_any_kind = st.builds(
    AnswerHead, st.integers(100, 999), st.none() | st.sampled_from([JSON, SSE, "text/html", ";"]), st.booleans()
)


@given(facts_of_any_kind, heads_of_any_kind, bodies, st.booleans())
def test_no_answer_breaks_the_classifier(facts: RequestFacts, head: AnswerHead, body: bytes, complete: bool) -> None:
    """Whatever an upstream sends is judged, and the gates hold for all of it."""
    judged = judge_body(facts, head, body, complete=complete)

    if facts.session is SessionKnowledge.NONE or facts.modern:
        assert judged.verdict not in (Verdict.SESSION_LOST, Verdict.ASK)
    if facts.session is SessionKnowledge.UNKNOWN:
        assert judged.verdict is not Verdict.ASK
    if head.status in (403, 407):
        assert judged.verdict in (Verdict.AUTH_FAILURE, Verdict.OTHER)
    if judged.signature is not None:
        assert judged.verdict in (Verdict.SESSION_LOST, Verdict.ASK)
    judge_initialize_status(head.status, body)


def test_a_judgement_is_told_by_its_signature() -> None:
    """By a name of the table, or by a word for none."""
    assert Judgement(Verdict.SESSION_LOST, TABLE[0]).name == TABLE[0].name
    assert Judgement(Verdict.ASK).name == NO_SIGNATURE
