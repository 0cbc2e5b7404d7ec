"""The words of a refusal: the same sentence in any frame, without ids, numbers, quotes and case."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.verdicts.words import words_of

SENTENCE = "Unknown conversation handle"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(SENTENCE, id="plain"),
        pytest.param(
            json.dumps({"jsonrpc": "2.0", "error": {"code": -32001, "message": SENTENCE}, "id": None}), id="rpc"
        ),
        pytest.param(json.dumps({"error": {"code": 1, "data": {"message": SENTENCE}}}), id="data.message"),
        pytest.param(json.dumps({"detail": SENTENCE}), id="detail"),
        pytest.param(json.dumps({"detail": [{"message": SENTENCE}]}), id="detail of many"),
        pytest.param(json.dumps({"error": SENTENCE}), id="error"),
        pytest.param(json.dumps(SENTENCE), id="a JSON string"),
        pytest.param(f"<html><style>p {{}}</style><body><p>{SENTENCE}</p></body></html>", id="page"),
        pytest.param(f"event: message\ndata: {json.dumps({'error': SENTENCE})}\n\n", id="event"),
        pytest.param(f"data:{SENTENCE}\r\n\r\n", id="event of plain text"),
        pytest.param(f'unknown CONVERSATION handle: "4711"; {"ab" * 20}.', id="ids, quotes and case"),
        pytest.param("\ufeff" + SENTENCE, id="byte order mark"),
    ],
)
def test_a_sentence_is_the_same_in_any_frame(body: str) -> None:
    """What it is framed in, and what differs from call to call, is not compared."""
    assert words_of(400, body.encode()) == words_of(400, SENTENCE.encode())
    assert words_of(400, body.encode()).text == "unknown conversation handle"


def test_what_the_request_brought_along_is_left_out() -> None:
    """Servers name the method and the session in their sentence: a ping bears other names than the call did."""
    call = words_of(404, b"tools/call: no session s-one", without=("tools/call", "s-one"))
    assert call == words_of(404, b"ping: no session s-one", without=("ping", "s-one"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((400, b"no"), (404, b"no"), id="status"),
        pytest.param((400, b"no such user"), (400, b"no such session"), id="words"),
        pytest.param((404, b'{"jsonrpc":"2.0","id":7}'), (404, b'{"result":1}'), id="members of a wordless document"),
    ],
)
def test_others_differ(one: tuple[int, bytes], other: tuple[int, bytes]) -> None:
    """Another status or another sentence is another refusal."""
    assert words_of(*one) != words_of(*other)


@given(st.binary(max_size=300), st.integers(200, 599))
def test_any_bytes_have_words(body: bytes, status: int) -> None:
    """Reading never fails, and gives the same words for the same bytes."""
    assert words_of(status, body) == words_of(status, body)


def test_a_deep_document_is_text() -> None:
    """What no parser can read is compared as it stands."""
    assert words_of(400, b"[" * 50_000).status == 400


@pytest.mark.parametrize(
    ("text", "session", "credentials"),
    [
        ("initialize first, then send mcp-session-id", True, False),
        ("Session expired, please log in again", True, True),
        ("Missing API key in request", False, True),
        ("flux capacitor drained", False, False),
        ("server not initialised", True, False),
    ],
)
def test_what_they_speak_of(text: str, session: bool, credentials: bool) -> None:
    """Two questions are asked of the words; the second is for 401 only."""
    words = words_of(400, text.encode())
    assert (words.speak_of_session, words.speak_of_credentials) == (session, credentials)
