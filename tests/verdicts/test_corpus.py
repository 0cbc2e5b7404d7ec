"""Every captured answer means what the corpus says it means, and the table holds no row that nobody has seen."""

from __future__ import annotations

import pytest

from mcp_sidecar.verdicts.classify import (
    NEED_BODY,
    UNANSWERED,
    Answer,
    AnswerHead,
    InitializeVerdict,
    Judgement,
    RequestFacts,
    SessionKnowledge,
    Verdict,
    judge_body,
    judge_head,
    judge_initialize_status,
)
from mcp_sidecar.verdicts.refusals import PingVerdict, judge_ping
from mcp_sidecar.verdicts.signatures import TABLE
from tests.support.corpus import BadEntry, Entry, entries, parse

ENTRIES = tuple(entries())
ANSWERED = tuple(entry for entry in ENTRIES if entry.head is not None)
ASKED = tuple(entry for entry in ENTRIES if entry.expect is Verdict.ASK)
LOST_BY_ERROR = tuple(
    entry for entry in ANSWERED if entry.expect is Verdict.SESSION_LOST and entry.signature != "tower-mcp-200"
)
AUTH_FAILURES = tuple(entry for entry in ENTRIES if entry.expect is Verdict.AUTH_FAILURE)
TABLE_BY_NAME = {row.name: row for row in TABLE}

RESULT = b'{"jsonrpc":"2.0","id":"probe","result":{}}'
NOT_FOUND = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}'
CAPACITY = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"Too many open sessions"}}'
JSON = "application/json"


def each(chosen: tuple[Entry, ...]) -> list[object]:
    return [pytest.param(entry, id=entry.id) for entry in chosen]


def judge(entry: Entry, request: RequestFacts) -> Judgement:
    """Take the two moments as the shell takes them."""
    if entry.head is None:
        return UNANSWERED
    moment = judge_head(request, entry.head)
    return judge_body(request, entry.head, entry.body, complete=True) if moment is NEED_BODY else moment


def with_session(entry: Entry, session: SessionKnowledge) -> RequestFacts:
    return RequestFacts(entry.request.http_method, entry.request.rpc_method, session, entry.request.modern)


def test_the_corpus_is_whole() -> None:
    """The 233 answers that were collected are all there, beside those added since."""
    assert sum(entry.id.startswith("fp-") for entry in ENTRIES) == 233
    assert all(entry.server and entry.evidence for entry in ENTRIES)


@pytest.mark.parametrize("entry", each(ENTRIES))
def test_an_answer_gets_its_class_and_its_signature(entry: Entry) -> None:
    """Every captured answer is judged as what it is, by the row that is meant for it."""
    judged = judge(entry, entry.request)

    assert judged.verdict is entry.expect
    assert (judged.signature.name if judged.signature else None) == entry.signature


def test_every_row_has_been_seen() -> None:
    """No row of the table is a guess: each is what at least one captured answer is recognised by."""
    assert {entry.signature for entry in ENTRIES} - {None} == TABLE_BY_NAME.keys()


@pytest.mark.parametrize("entry", each(ANSWERED))
def test_without_a_session_nothing_is_lost(entry: Entry) -> None:
    """The same bytes in answer to a request without a session id are never about a session (transports, "Session Management" 4)."""
    judged = judge(entry, with_session(entry, SessionKnowledge.NONE))

    assert judged.verdict not in (Verdict.SESSION_LOST, Verdict.ASK)
    assert judged.signature is None


@pytest.mark.parametrize("entry", each(ANSWERED))
def test_sessionless_revisions_lose_no_session(entry: Entry) -> None:
    """The same bytes in answer to 2026-07-28 traffic are never about a session (2026-07-28 transports)."""
    facts = RequestFacts(entry.request.http_method, entry.request.rpc_method, SessionKnowledge.BOUND, modern=True)

    assert judge(entry, facts).verdict not in (Verdict.SESSION_LOST, Verdict.ASK)


@pytest.mark.parametrize("entry", each(ANSWERED))
def test_an_unknown_session_is_lost_only_by_strong_words(entry: Entry) -> None:
    """An id that the sidecar does not know is never probed; what is certain for a known id is certain for it, too."""
    verdict = judge(entry, with_session(entry, SessionKnowledge.UNKNOWN)).verdict

    assert verdict is not Verdict.ASK
    if entry.expect is Verdict.SESSION_LOST:
        assert verdict is Verdict.SESSION_LOST


@pytest.mark.parametrize("entry", each(AUTH_FAILURES))
@pytest.mark.parametrize("session", SessionKnowledge)
def test_real_auth_failures_always_pass(entry: Entry, session: SessionKnowledge) -> None:
    """A 401 or 403 of a real middleware is an auth failure, whatever session the request carried."""
    assert judge(entry, with_session(entry, session)).verdict is Verdict.AUTH_FAILURE


@pytest.mark.parametrize("entry", each(AUTH_FAILURES))
def test_the_challenge_header_proves_nothing(entry: Entry) -> None:
    """Genuine auth answers stay so with and without ``WWW-Authenticate``: many stacks leave it out."""
    assert entry.head is not None
    for challenged in (True, False):
        head = AnswerHead(entry.head.status, entry.head.content_type, challenged)
        verdict = judge_body(entry.request, head, entry.body, complete=True).verdict
        assert verdict is Verdict.AUTH_FAILURE or (verdict is Verdict.ASK and not challenged)


@pytest.mark.parametrize("entry", each(LOST_BY_ERROR))
def test_the_content_type_proves_nothing(entry: Entry) -> None:
    """Error bodies are read as what they are: JSON comes as text, as HTML, and without any type (a 200 must say JSON)."""
    assert entry.head is not None
    for content_type in (None, "application/json", "text/plain; charset=utf-8", "text/html"):
        head = AnswerHead(entry.head.status, content_type, entry.head.www_authenticate)
        assert judge_body(entry.request, head, entry.body, complete=True).verdict is Verdict.SESSION_LOST


def json_answer(status: int, body: bytes) -> Answer:
    return Answer(AnswerHead(status, JSON), body)


def settle(ping: Answer | None, initialize: tuple[int, bytes]) -> Verdict:
    """Ask to the end: ping first, ``initialize`` where the ping does not settle it."""
    asked = judge_ping(None if ping is None else ping.head.status, b"" if ping is None else ping.body, ping_id="probe")
    if asked.verdict is not PingVerdict.REFUSED:
        return {
            PingVerdict.ALIVE: Verdict.OTHER,
            PingVerdict.UNPROVEN: Verdict.OTHER,
            PingVerdict.AUTH: Verdict.AUTH_FAILURE,
        }.get(asked.verdict, Verdict.UNAVAILABLE)
    return {
        InitializeVerdict.ACCEPTED_STATUS: Verdict.SESSION_LOST,
        InitializeVerdict.REJECTED: Verdict.SESSION_LOST,
        InitializeVerdict.AUTH: Verdict.AUTH_FAILURE,
        InitializeVerdict.GONE: Verdict.UNAVAILABLE,
        InitializeVerdict.BUSY: Verdict.UNAVAILABLE,
        InitializeVerdict.UNAVAILABLE: Verdict.UNAVAILABLE,
    }[judge_initialize_status(*initialize)]


def original(entry: Entry) -> Answer:
    assert entry.head is not None
    return Answer(entry.head, entry.body)


def played(entry: Entry) -> tuple[Answer | None, tuple[int, bytes]]:
    """What the server behind an ambiguous answer says to a ping and to an ``initialize``, by what was really so."""
    same = original(entry)
    return {
        Verdict.SESSION_LOST: (same, (200, RESULT)),
        Verdict.OTHER: (json_answer(200, RESULT), (200, RESULT)),
        Verdict.UNAVAILABLE: (same, (same.head.status, same.body)),
    }[entry.after_probe or Verdict.OTHER]


@pytest.mark.parametrize("entry", each(ASKED))
def test_a_probe_brings_the_truth_out(entry: Entry) -> None:
    """An ambiguous answer ends in what was really the case once the server is asked."""
    ping, initialize = played(entry)

    assert settle(ping, initialize) is entry.after_probe


PROBES = [
    pytest.param(json_answer(200, RESULT), (200, RESULT), Verdict.OTHER, id="the ping is answered"),
    pytest.param(json_answer(404, NOT_FOUND), (200, RESULT), Verdict.SESSION_LOST, id="the ping says it clearly"),
    pytest.param(Answer(AnswerHead(404), b""), (200, RESULT), Verdict.SESSION_LOST, id="another bare 404"),
    pytest.param(Answer(AnswerHead(404), b""), (404, b"404 page not found\n"), Verdict.UNAVAILABLE, id="no route"),
    pytest.param(Answer(AnswerHead(404), b""), (503, b"<html>"), Verdict.UNAVAILABLE, id="an ingress page"),
    pytest.param(Answer(AnswerHead(404), b""), (503, CAPACITY), Verdict.UNAVAILABLE, id="lost, and no room"),
    pytest.param(Answer(AnswerHead(404), b""), (401, b""), Verdict.AUTH_FAILURE, id="initialize is refused"),
    pytest.param(Answer(AnswerHead(401, None, True), b""), (200, RESULT), Verdict.AUTH_FAILURE, id="ping refused"),
    pytest.param(Answer(AnswerHead(502), b"<html>"), (200, RESULT), Verdict.UNAVAILABLE, id="ping meets an ingress"),
    pytest.param(json_answer(429, b"{}"), (200, RESULT), Verdict.UNAVAILABLE, id="ping is rate-limited"),
    pytest.param(None, (200, RESULT), Verdict.UNAVAILABLE, id="no answer to the ping"),
]


@pytest.mark.parametrize(("ping", "initialize", "verdict"), PROBES)
def test_a_probe_decides_and_not_the_text(ping: Answer | None, initialize: tuple[int, bytes], verdict: Verdict) -> None:
    """However an ambiguous answer looks, the ping's outcome settles it."""
    assert settle(ping, initialize) is verdict


HEADER = b"""\
id: x
server: s
versions: 1
evidence: none
kind: k
request: {"http_method": "GET", "rpc_method": null, "rpc_id": null, "protocol_version_header": null, "session": "none"}
"""
ANSWER = b"\nHTTP/1.1 404 Not Found\n\n"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(HEADER + b"expect: OTHER\nexpext: OTHER\n" + ANSWER, id="unknown key"),
        pytest.param(HEADER + b"expect: OTHER\nid: y\n" + ANSWER, id="repeated key"),
        pytest.param(HEADER + b"expect: OTHER\nnothing\n" + ANSWER, id="no colon"),
        pytest.param(HEADER + ANSWER, id="no expectation"),
        pytest.param(HEADER + b"expect: OTHER\n", id="neither answer nor fault"),
        pytest.param(HEADER + b"expect: OTHER\nfault: reset\n" + ANSWER, id="answer and fault"),
        pytest.param(HEADER + b"expect: ASK\n" + ANSWER, id="ambiguous without an end"),
        pytest.param(HEADER + b"expect: OTHER\nafter-probe: OTHER\n" + ANSWER, id="an end without a question"),
    ],
)
def test_a_malformed_entry_is_an_error(raw: bytes) -> None:
    """A mistake in a corpus file fails loudly instead of weakening a test."""
    with pytest.raises(BadEntry):
        parse(raw)
