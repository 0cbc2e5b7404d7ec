"""The sidecar's own answers, to the byte: clients were measured with exactly these."""

from __future__ import annotations

import json
from typing import Final

import pytest
from hypothesis import given

from mcp_sidecar.healing import replies
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.wire.jsonrpc import UNREAD, JsonRpcId, Message, parse
from mcp_sidecar.wire.reply import OwnAnswer
from tests.healing import samples

AWAY_ERROR: Final = (
    b'{"jsonrpc":"2.0","error":{"code":-32603,"message":"The MCP server is not available; the request was not executed.",'
    b'"data":{"reason":"upstream_unavailable"}},"id":%b}'
)
RETRY: Final = (("Retry-After", "1"),)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(
            replies.SESSION_NOT_FOUND,
            OwnAnswer(
                404,
                "text/plain; charset=utf-8",
                b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}',
            ),
            id="the one 404",
        ),
        pytest.param(replies.ACCEPTED, OwnAnswer(202), id="accepted, and empty"),
        pytest.param(replies.ENDED, OwnAnswer(200), id="ended"),
        pytest.param(
            replies.GET_NOT_SUPPORTED, OwnAnswer(405, headers=(("Allow", "POST, DELETE"),)), id="no GET stream"
        ),
        pytest.param(
            replies.unavailable(7),
            OwnAnswer(503, "application/json", AWAY_ERROR % b"7", RETRY),
            id="away, to initialize",
        ),
        pytest.param(
            replies.unavailable(7, may_have_run=True),
            OwnAnswer(
                503,
                "application/json",
                (AWAY_ERROR % b"7").replace(b"; the request was not executed.", b"."),
                RETRY,
            ),
            id="away, to an initialize that was sent",
        ),
        pytest.param(
            replies.in_session(samples.call(id="a"), Reason.UPSTREAM_UNAVAILABLE),
            OwnAnswer(200, "application/json", AWAY_ERROR % b'"a"'),
            id="away, to a request",
        ),
        pytest.param(
            replies.in_session(
                samples.batch(samples.call(id=1), samples.response(5), samples.call(id=2.5)),
                Reason.UPSTREAM_UNAVAILABLE,
            ),
            OwnAnswer(200, "application/json", b"[%b,%b]" % (AWAY_ERROR % b"1", AWAY_ERROR % b"2.5")),
            id="away, to a batch",
        ),
        pytest.param(
            replies.in_session(samples.batch(samples.call(id=1)), Reason.UPSTREAM_UNAVAILABLE),
            OwnAnswer(200, "application/json", b"[%b]" % (AWAY_ERROR % b"1")),
            id="away, to a batch of one",
        ),
        pytest.param(
            replies.in_session(samples.batch(samples.response(5)), Reason.UPSTREAM_UNAVAILABLE),
            OwnAnswer(202),
            id="away, to a batch without requests",
        ),
        pytest.param(
            replies.in_session(samples.notification("notifications/x"), Reason.OUTCOME_UNKNOWN),
            OwnAnswer(202),
            id="a notification",
        ),
        pytest.param(
            replies.in_session(samples.response(5), Reason.UPSTREAM_UNAVAILABLE), OwnAnswer(202), id="a response"
        ),
        pytest.param(
            replies.in_session(samples.NO_MESSAGE, Reason.UPSTREAM_UNAVAILABLE),
            OwnAnswer(200, "application/json", AWAY_ERROR % b"null"),
            id="no JSON-RPC",
        ),
        pytest.param(
            replies.in_session(UNREAD, Reason.UPSTREAM_UNAVAILABLE),
            OwnAnswer(200, "application/json", AWAY_ERROR % b"null"),
            id="unread: somebody may wait",
        ),
        pytest.param(
            replies.opaque(Reason.UPSTREAM_UNAVAILABLE),
            OwnAnswer(503, "text/plain; charset=utf-8", b"The upstream server is not available.\n", RETRY),
            id="away, to an encoded request",
        ),
        pytest.param(
            replies.opaque(Reason.OUTCOME_UNKNOWN),
            OwnAnswer(502, "text/plain; charset=utf-8", b"The upstream server broke off without an answer.\n"),
            id="unknown outcome of an encoded request",
        ),
        pytest.param(
            replies.rejected(400, replies.PARSE_ERROR, "no"),
            OwnAnswer(400, "application/json", b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"no"},"id":null}'),
            id="rejected",
        ),
    ],
)
def test_to_the_byte(answer: OwnAnswer, expected: OwnAnswer) -> None:
    """Status, type, headers and body are a contract."""
    assert answer == expected


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        pytest.param(Reason.UPSTREAM_UNAVAILABLE, "upstream_unavailable", id="away"),
        pytest.param(Reason.OUTCOME_UNKNOWN, "outcome_unknown", id="in doubt"),
        pytest.param(Reason.CANCELLED, "cancelled", id="cancelled"),
        pytest.param(Reason.SESSION_LOST, "session_lost", id="lost"),
    ],
)
def test_reasons(reason: Reason, code: str) -> None:
    """Every error says why in a word for programs and in sentences for people."""
    answer = json.loads(replies.in_session(samples.call(), reason).body)
    assert answer["error"]["code"] == -32603
    assert answer["error"]["data"] == {"reason": code}
    assert answer["error"]["message"] == reason.sentence
    assert reason.sentence.endswith(".")


def test_broken_gateway() -> None:
    """Sessionless traffic whose upstream broke off gets a 502 that says what is not known."""
    assert replies.outcome_unknown("x").status == 200
    assert replies.outcome_unknown("x").body == replies.broken_gateway("x").body
    answer = replies.broken_gateway("x")
    assert (answer.status, answer.content_type, answer.headers) == (502, "application/json", ())
    body = json.loads(answer.body)
    assert (body["id"], body["error"]["data"]) == ("x", {"reason": "outcome_unknown"})


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param(
            None,
            {
                "code": -32603,
                "message": "The MCP server answered with HTTP status 413 Content Too Large.",
                "data": {"reason": "http_error", "status": 413},
            },
            id="nothing",
        ),
        pytest.param({"code": 1, "message": "no"}, {"code": 1, "message": "no"}, id="an error of its own"),
    ],
)
def test_instead_of_a_status(said: dict[str, object] | None, error: dict[str, object]) -> None:
    """On an open stream each request gets, under its own id, what the upstream's status would have said."""
    one = json.loads(replies.instead_of(samples.call(id="x"), 413, "Content Too Large", said).body)
    assert one == {"jsonrpc": "2.0", "id": "x", "error": error}
    batch = samples.batch(samples.call(id=1), samples.notification("n"), samples.call(id=2))
    many = json.loads(replies.instead_of(batch, 413, "Content Too Large", said).body)
    assert [(each["id"], each["error"]) for each in many] == [(1, error), (2, error)]


def test_instead_of_a_status_without_words() -> None:
    """A status line need not have a reason."""
    answer = json.loads(replies.instead_of(samples.call(), 599, "").body)
    assert answer["error"]["message"] == "The MCP server answered with HTTP status 599."


@given(samples.ids)
def test_an_error_carries_the_requests_own_id(request_id: JsonRpcId) -> None:
    """Value and type of an id come back, else the client waits until its own timeout."""
    answer: Message = parse(replies.in_session(samples.call(id=request_id), Reason.CANCELLED).body)
    assert (answer.id, type(answer.id)) == (request_id, type(request_id))


def test_no_sentence_says_more_than_is_known() -> None:
    """A harmless request was sent several times by then: what is unknown is told, and nothing else."""
    assert "sent" not in Reason.OUTCOME_UNKNOWN.sentence
    assert "unknown" in Reason.OUTCOME_UNKNOWN.sentence
