"""Asking: which refusals are asked about, and what the answer to a ping shows."""

from __future__ import annotations

import json

import pytest

from mcp_sidecar.verdicts.refusals import PingVerdict, Refusal, judge_ping, refusal_of
from tests.support.corpus import entries


def error(message: str, *, code: int = -32000, answers: object = None) -> bytes:
    """A JSON-RPC error."""
    return json.dumps({"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": answers}).encode()


def read(status: int, body: bytes, *, challenged: bool = False) -> Refusal:
    """The refusal of a request with the id 7."""
    return refusal_of(status, body, ids=frozenset({7}), challenged=challenged)


ASKED = [
    pytest.param(400, b"whatever it says", id="400"),
    pytest.param(404, error("anything"), id="404 to nobody"),
    pytest.param(404, b"", id="a bare 404"),
    pytest.param(410, b"gone", id="410"),
    pytest.param(422, b"no", id="422"),
    pytest.param(500, b"oops", id="500"),
    pytest.param(401, b"flux capacitor drained", id="401 without a challenge"),
    pytest.param(200, error("Invalid Request"), id="200 to nobody"),
    pytest.param(200, error("Invalid Request", answers=99), id="200 to somebody else"),
    pytest.param(200, error("unknown session", answers=7), id="200 about a session"),
    pytest.param(400, error("unknown session", answers=7), id="400 about a session"),
    pytest.param(200, b'data: {"error":"Session not found"}\n\n', id="an event about a session"),
    pytest.param(200, b'data: {"jsonrpc":"2.0","error":{"code":1,"message":"x"}}\n\n', id="an event to nobody"),
    pytest.param(404, b'{"jsonrpc":"2.0","id":7}', id="neither result nor error"),
]
PASSED = [
    pytest.param(401, b"anything", True, id="401 with a challenge"),
    pytest.param(401, b"", False, id="401 without a word"),
    pytest.param(401, b"Session expired, please log in again", False, id="401 about a log-in"),
    pytest.param(403, b"principal mismatch", False, id="403"),
    pytest.param(404, error("Method not found", code=-32601), False, id="404 about a method"),
    *(pytest.param(status, b"session", False, id=str(status)) for status in (402, 405, 407, 408, 411, 413, 414, 415)),
    *(pytest.param(status, b"session", False, id=str(status)) for status in (429, 431, 451, 501)),
    pytest.param(400, error("Invalid params", answers=7), False, id="the request's own error"),
    pytest.param(200, error("Invalid params", answers=7), False, id="the same in a 200"),
    pytest.param(200, b'{"jsonrpc":"2.0","id":7,"result":{}}', False, id="a result"),
    pytest.param(302, b"session", False, id="302"),
]


@pytest.mark.parametrize(("status", "body"), ASKED)
def test_asked_about(status: int, body: bytes) -> None:
    """A refusal that may be about the session is asked about, whatever it says."""
    assert read(status, body).is_asked_about


@pytest.mark.parametrize(("status", "body", "challenged"), PASSED)
def test_never_asked_about(status: int, body: bytes, challenged: bool) -> None:
    """What says something else by definition is not asked about."""
    assert not read(status, body, challenged=challenged).is_asked_about


def test_no_recorded_real_401_or_403_is_asked_about() -> None:
    """Real refusals of credentials pass, and cause nothing."""
    real = [entry for entry in entries() if entry.head is not None and entry.expect.name in {"AUTH_FAILURE", "OTHER"}]
    refused = [entry for entry in real if entry.head is not None and entry.head.status in {401, 403}]
    assert len(refused) > 20
    for entry in refused:
        assert entry.head is not None
        if entry.request.session.name != "NONE":
            asked = refusal_of(entry.head.status, entry.body, challenged=entry.head.www_authenticate)
            assert not asked.is_asked_about, entry.id


PING = "mcp-sidecar-ping"


def ping(status: int | None, body: bytes = b"", *, challenged: bool = False, retry_after: bool = False) -> PingVerdict:
    """The verdict on the answer to a ping."""
    return judge_ping(
        status, body, ping_id=PING, challenged=challenged, retry_after_s=1.0 if retry_after else None
    ).verdict


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (ping(None), PingVerdict.AWAY),
        (ping(200, json.dumps({"jsonrpc": "2.0", "id": PING, "result": {}}).encode()), PingVerdict.ALIVE),
        (ping(200, error("Method not found", code=-32601, answers=PING)), PingVerdict.ALIVE),
        (ping(400, error("Method not found", code=-32601, answers=PING)), PingVerdict.ALIVE),
        (ping(200, error("unknown session", answers=PING)), PingVerdict.REFUSED),
        (ping(200, error("Invalid Request")), PingVerdict.REFUSED),
        (ping(404, b"never heard"), PingVerdict.REFUSED),
        (ping(500, b"oops"), PingVerdict.REFUSED),
        (ping(429, b"slower"), PingVerdict.BUSY),
        (ping(503, error("starting")), PingVerdict.BUSY),
        (ping(503, b"<html>", retry_after=True), PingVerdict.BUSY),
        (ping(503, b"<html>"), PingVerdict.GATEWAY),
        (ping(502), PingVerdict.GATEWAY),
        (ping(522), PingVerdict.GATEWAY),
        (ping(401, b"", challenged=True), PingVerdict.AUTH),
        (ping(401, b""), PingVerdict.AUTH),
        (ping(403, b"no"), PingVerdict.AUTH),
        (ping(401, b"flux capacitor drained"), PingVerdict.REFUSED),
        (ping(202), PingVerdict.UNPROVEN),
        (ping(405), PingVerdict.UNPROVEN),
        (ping(302), PingVerdict.UNPROVEN),
        (ping(413), PingVerdict.UNPROVEN),
    ],
)
def test_what_a_ping_shows(verdict: PingVerdict, expected: PingVerdict) -> None:
    """Only a ping that was dispatched shows a living session, only one that was refused a lost one."""
    assert verdict is expected
