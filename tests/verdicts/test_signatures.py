"""The table of lost-session signatures: its own laws, what fits a row, and what operators may add."""

from __future__ import annotations

import re

import pytest

from mcp_sidecar.verdicts.signatures import (
    ROUTE_ROWS,
    TABLE,
    Part,
    Signature,
    Strength,
    Wording,
    first_fit,
    operator_signature,
)

EVERY_ROW = [pytest.param(row, id=row.name) for row in TABLE]


def test_names_are_labels() -> None:
    """Names are distinct and kebab-case: each is one value of a metric label, for ever."""
    names = [row.name for row in TABLE]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert set(names) > ROUTE_ROWS


@pytest.mark.parametrize("row", EVERY_ROW)
def test_a_row_says_who_sends_it(row: Signature) -> None:
    """A row without provenance would be a guess."""
    assert row.servers
    assert row.statuses


@pytest.mark.parametrize("row", EVERY_ROW)
def test_authorization_is_left_alone(row: Signature) -> None:
    """No row takes a 403 or 407; a row for 401 is a whole, exact wording."""
    assert not row.statuses & {403, 407}
    if 401 in row.statuses:
        assert row.whole
        assert row.part is Part.VERBATIM
        assert row.strength is Strength.STRONG
        assert row.statuses == {401}


ROW = Signature(
    name="row",
    servers="a server",
    statuses=frozenset({404}),
    pattern=re.compile("gone"),
    codes=frozenset({-1}),
    methods=frozenset({"GET", "tools/call"}),
)
GONE = Wording(404, literals=("gone for good",), verbatim=("Error: gone for good",), body="{gone}", code=-1)


@pytest.mark.parametrize(
    ("wording", "http_method", "rpc_method", "fits"),
    [
        pytest.param(GONE, "GET", None, True, id="by HTTP method"),
        pytest.param(GONE, "POST", "tools/call", True, id="by JSON-RPC method"),
        pytest.param(GONE, "POST", "tools/list", False, id="another method"),
        pytest.param(GONE, "POST", None, False, id="no JSON-RPC method"),
        pytest.param(Wording(400, ("gone",), ("gone",), "gone", -1), "GET", None, False, id="another status"),
        pytest.param(Wording(404, ("gone",), ("gone",), "gone", -2), "GET", None, False, id="another code"),
        pytest.param(Wording(404, ("gone",), ("gone",), "gone", None), "GET", None, False, id="no code"),
        pytest.param(Wording(404, ("it is gone",), ("gone",), "gone", -1), "GET", None, False, id="not at the start"),
        pytest.param(Wording(404, ("no", "gone"), (), "", -1), "GET", None, True, id="any of the messages"),
        pytest.param(Wording(404, (), (), "", -1), "GET", None, False, id="no message"),
    ],
)
def test_a_row_fits_when_all_of_it_does(wording: Wording, http_method: str, rpc_method: str | None, fits: bool) -> None:
    """Status, code, method and text must all be what the row says."""
    assert ROW.fits(wording, http_method, rpc_method) is fits


@pytest.mark.parametrize(
    ("part", "pattern", "whole", "fits"),
    [
        pytest.param(Part.LITERAL, "gone", False, True, id="literal"),
        pytest.param(Part.LITERAL, "gone", True, False, id="literal is not whole"),
        pytest.param(Part.LITERAL, "Error", False, False, id="literal has lost its leading words"),
        pytest.param(Part.VERBATIM, "Error: gone for good", True, True, id="verbatim, whole"),
        pytest.param(Part.VERBATIM, "gone", False, False, id="verbatim begins with its leading words"),
        pytest.param(Part.BODY, r"\{", False, True, id="body"),
        pytest.param(Part.BODY, "gone", False, False, id="body does not begin so"),
        pytest.param(Part.ANY, "gone", False, True, id="any: the literal"),
        pytest.param(Part.ANY, "Error", False, True, id="any: verbatim"),
        pytest.param(Part.ANY, r"\{gone\}", True, True, id="any: the body"),
    ],
)
def test_a_pattern_reads_its_part(part: Part, pattern: str, whole: bool, fits: bool) -> None:
    """A row says which part of the answer it reads; patterns are anchored at its start."""
    row = Signature(
        name="r", servers="s", statuses=frozenset({404}), pattern=re.compile(pattern), part=part, whole=whole
    )

    assert row.fits(GONE, "POST", None) is fits


def test_the_first_row_that_fits_names_the_answer() -> None:
    """Particular rows stand before general ones, and order decides."""
    first = Signature(name="first", servers="s", statuses=frozenset({404}), pattern=re.compile("gone for"))
    second = Signature(name="second", servers="s", statuses=frozenset({404}), pattern=re.compile("gone"))

    assert first_fit((first, second), GONE, "GET", None) is first
    assert first_fit((second, first), GONE, "GET", None) is second
    assert first_fit((), GONE, "GET", None) is None


def named(status: int, text: str) -> str | None:
    """Name the row for a plain text, or for a JSON-RPC error with a code that no server of the table uses."""
    row = first_fit(TABLE, Wording(status, (text,), (text,), text, code=-31999), "POST", "tools/list")
    return row.name if row else None


@pytest.mark.parametrize(
    "text",
    [
        "Session not found",
        "Session not found: abc",
        "Session 'abc' not found",
        'session "abc" has expired',
        "Session `abc` is unknown",
        "Session with id 'abc' does not exist",
        "session with the id 'abc' was not found",
        "Session id 'abc' has been terminated",
        "Session 0b3ad0f4-0d0f-4a6c-9d87-2b4d7b3f6c11 not found",
        "Session expired",
        "Session has expired, initialize again",
        "Session closed.",
        "Session no longer valid",
        "session not initialized",
        "No valid session ID",
        "No valid session. Send an initialize request first.",
        "No active session",
        "No such session: abc",
        "Invalid session",
        "Invalid sessionId",
        "invalid MCP session id",
        "Invalid Mcp-Session-Id header",
        "Invalid or expired session",
        "Unknown or expired session id",
        "Unknown session id 'abc' for 'tools/call'",
        "expired session",
        "Server not initialized",
        "no active transport",
        "lack session",
        "MCP session is unknown or expired on this API instance.",
    ],
)
def test_general_words_for_a_lost_session_are_known(text: str) -> None:
    """Servers that nobody has listed speak alike; their answers still get a label of the bounded set."""
    for status in (400, 404, 410, 503):
        assert named(status, text) in {
            "generic-session-state",
            "generic-session-id",
            "generic-not-initialized",
            "neotoma",
        }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Chat session not found",
        "The session not found",
        "Session token expired",
        "Session affinity service not initialized; retry shortly.",
        "Session store unavailable",
        "Sessions not found",
        "Session limit reached",
        "Session ID is required",
        "Session is read-only",
        "Session not foundational",
        "Invalid session parameters",
        "Invalid session_name",
        "Invalid sessions",
        "No active session for browser-1",
        "Missing session ID",
        "A session ID MUST NOT be sent",
        "The server is not initialized",
        "no active transport layer",
        "lack sessions",
        "Resource not found",
        "Bad request",
        "Too many open sessions",
        "Your session: not found",
        "maximum concurrent sessions",
    ],
)
def test_words_that_merely_mention_sessions_are_not(text: str) -> None:
    """Text about other sessions, about requirements or limits is no evidence."""
    assert named(400, text) is None


@pytest.mark.parametrize("status", [401, 402, 403, 405, 406, 407, 409, 415, 422, 429, 500, 502, 504])
def test_general_words_count_on_few_statuses(status: int) -> None:
    """On other statuses the same words are somebody else's: logins, conflicts, applications."""
    assert named(status, "Session not found") is None
    assert named(status, "Invalid session ID") is None


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        pytest.param("session .* evaporated", (), id="all methods"),
        pytest.param("session .* evaporated", ("GET", "tools/list"), id="some methods"),
        pytest.param("SESSION", ["tools/call"], id="case does not matter"),
    ],
)
def test_operators_add_rows(text: str, methods: tuple[str, ...] | list[str]) -> None:
    """A row of an operator is strong, and is tried on every part."""
    row = operator_signature(name="mine", status=404, text=text, methods=methods)

    assert row.strength is Strength.STRONG
    assert row.by_operator
    assert row.methods == (frozenset(methods) or None)
    method = methods[-1] if methods else "ping"
    assert row.fits(Wording(404, body="Session 7 evaporated"), "POST", method)
    assert row.fits(Wording(404, literals=("session 7 evaporated",)), "POST", method)
    assert not row.fits(Wording(404, body="A session 7 evaporated"), "POST", method)
    assert not row.fits(Wording(400, body="session 7 evaporated"), "POST", method)


@pytest.mark.parametrize("status", [401, 403])
def test_an_operators_401_must_be_the_whole_text(status: int) -> None:
    """What belongs to authorization is taken from it only by an exact wording."""
    row = operator_signature(name="mine", status=status, text="session gone", methods=())

    assert row.fits(Wording(status, verbatim=("Session gone",)), "POST", None)
    assert not row.fits(Wording(status, verbatim=("Session gone, log in again",)), "POST", None)


@pytest.mark.parametrize(
    ("name", "status", "text", "complaint"),
    [
        pytest.param("mine", 404, "(", "not a regular expression", id="broken expression"),
        pytest.param("mine", 404, "a{99999999999999999999}", "not a regular expression", id="overflow"),
        pytest.param("mine", 404, "(" * 5000 + ")" * 5000, "not a regular expression", id="too deep"),
        pytest.param("mine", 404, "", "empty answer", id="empty expression"),
        pytest.param("mine", 404, ".*", "empty answer", id="matches everything"),
        pytest.param("mine", 407, "session", "never means a lost session", id="407"),
        pytest.param("mine", 302, "session", "never means a lost session", id="redirect"),
        pytest.param("mine", 201, "session", "never means a lost session", id="201"),
        pytest.param("mine", 600, "session", "never means a lost session", id="no status"),
        pytest.param("My Server", 404, "session", "lower-case words", id="name"),
        pytest.param("", 404, "session", "lower-case words", id="no name"),
        pytest.param("python-404", 404, "session", "name of a row", id="taken name"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused(name: str, status: int, text: str, complaint: str) -> None:
    """Mistakes are told when the configuration is read, in a sentence that names the row."""
    with pytest.raises(ValueError, match=complaint) as raised:
        operator_signature(name=name, status=status, text=text, methods=())
    assert repr(name) in str(raised.value)
