"""Table: how upstreams say that a session is lost.

The rule of this file: knowledge about a server is one row of ``TABLE``, never code. A row says which servers send the
answer and where that was seen. It makes a heal quick and proves nothing about what ran: that is the ping's business.
Servers that send the same bytes share a row. The first row that fits names the answer, so rows go from the particular to
the general; gates (whose session, which revision) are the classifier's business, not the table's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

JSON_RPC_METHOD_NOT_FOUND = -32601


class Strength(Enum):
    """What a row is worth: ``STRONG`` settles that the session is lost, ``WEAK`` asks with a ping."""

    STRONG = "strong"
    WEAK = "weak"


class Part(Enum):
    """Which part of an answer a pattern reads, always from its start."""

    LITERAL = "literal"  # the message, without leading words such as "Bad Request:"
    VERBATIM = "verbatim"  # the message exactly as the server wrote it, trimmed only
    BODY = "body"  # the whole body, whatever it is
    ANY = "any"  # each of them (rows of operators, who know one server and not our terms)


@dataclass(frozen=True, slots=True)
class Wording:
    """What an answer says, cut out of its body. ``code`` is the ``error.code`` of a JSON-RPC error, if it has one."""

    status: int
    literals: tuple[str, ...] = ()
    verbatim: tuple[str, ...] = ()
    body: str = ""
    code: int | None = None

    def read(self, part: Part) -> tuple[str, ...]:
        """Return the texts that a pattern for ``part`` is applied to."""
        if part is Part.LITERAL:
            return self.literals
        if part is Part.VERBATIM:
            return self.verbatim
        if part is Part.BODY:
            return (self.body,)
        return (*self.literals, *self.verbatim, self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One way of saying that a session is lost.

    ``name`` is short, stable and kebab-case: it becomes a metric label. ``servers`` says which servers and versions send
    it and where that was read or recorded. ``codes`` restricts the row to these JSON-RPC error codes, ``None`` among
    them standing for "no code"; it tells servers apart that use the same words and is never evidence by itself
    (2026-07-28 basic, Error Codes). ``methods`` holds HTTP or JSON-RPC method names.
    """

    name: str
    servers: str
    statuses: frozenset[int]
    pattern: re.Pattern[str]
    part: Part = Part.LITERAL
    whole: bool = False
    codes: frozenset[int | None] | None = None
    methods: frozenset[str] | None = None
    strength: Strength = Strength.STRONG
    by_operator: bool = False

    def fits(self, wording: Wording, http_method: str, rpc_method: str | None) -> bool:
        """Tell whether an answer with this wording to a request with these methods is what the row describes."""
        if wording.status not in self.statuses:
            return False
        if self.codes is not None and wording.code not in self.codes:
            return False
        if self.methods is not None and not self.methods & {http_method, rpc_method}:
            return False
        matches = self.pattern.fullmatch if self.whole else self.pattern.match
        return any(matches(text) for text in wording.read(self.part))


def first_fit(
    rows: tuple[Signature, ...], wording: Wording, http_method: str, rpc_method: str | None
) -> Signature | None:
    """Return the first row that fits, or ``None``."""
    return next((row for row in rows if row.fits(wording, http_method, rpc_method)), None)


def _re(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.IGNORECASE | re.DOTALL)


_NO_CODE: frozenset[int | None] = frozenset({None})
_LOST_STATUSES = frozenset({400, 404, 410, 503})

# An id inside a sentence: quoted, or a word too long to be one. "Session affinity service …" must stay out.
_ID = r"(?:'[^']+'|\"[^\"]+\"|`[^`]+`|[\w.:-]{20,})"
_GONE = (
    r"(?:not found|does not exist|unknown|expired|has expired|terminated|has been terminated|closed|is closing"
    r"|no longer valid|not initialized)\b"
)
_BAD = (
    r"(?:no valid|no active|no such|invalid|unknown|expired|invalid or expired|invalid or missing|unknown or expired)"
)

_PARTICULAR: tuple[Signature, ...] = (
    # --- 401: exact wordings only, whatever headers come with them -------------------------------------------------
    Signature(
        name="rmcp-401",
        servers="rmcp 0.2.0-0.16.0: tower.rs, has_session() is asked before the message is handed on (every tag read)",
        statuses=frozenset({401}),
        pattern=_re(r"unauthorized: session not found"),
        part=Part.VERBATIM,
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="punkpeye-401",
        servers="npm mcp-proxy 6.5.4-6.7.16 (punkpeye fastmcp) with authenticate, often with WWW-Authenticate: recorded; "
        "source 6.5.4, 6.7.15: the transport of the id is looked up before the message is handed to one",
        statuses=frozenset({401}),
        pattern=_re(r"unauthorized: no valid session id provided"),
        part=Part.VERBATIM,
        whole=True,
        codes=frozenset({-32000}),
    ),
    Signature(
        name="kuadrant-401",
        servers="Kuadrant mcp-gateway 0.9: internal/routing/router_202511.go, the session token is checked before routing",
        statuses=frozenset({401}),
        pattern=_re(r"session no longer valid|invalid session"),
        part=Part.VERBATIM,
        whole=True,
        codes=_NO_CODE,
    ),
    # --- 500 -------------------------------------------------------------------------------------------------------
    Signature(
        name="rmcp-500",
        servers="rmcp 0.2.0-3.1.4, session worker dying: tower.rs and session/local.rs, the message could not be handed "
        "to the worker",
        statuses=frozenset({500}),
        pattern=_re(
            r"encounter an error when (?:get session|accept message|create stream|create standalone stream"
            r"|check session|restore session): .*(?:session not found|session service terminated)"
        ),
        part=Part.VERBATIM,
        codes=_NO_CODE,
    ),
    Signature(
        name="rmcp-500-resume",
        servers="rmcp 0.2.0-1.4.0, GET with Last-Event-ID: the stream is gone, the session mostly is not (tower.rs)",
        statuses=frozenset({500}),
        pattern=_re(r"encounter an error when resume session:"),
        part=Part.VERBATIM,
        strength=Strength.WEAK,
    ),
    # --- 200: errors inside a success ------------------------------------------------------------------------------
    Signature(
        name="tower-mcp-200",
        servers="tower-mcp 0.x: transport/http.rs, no session, no service to call",
        statuses=frozenset({200}),
        pattern=_re(rf"session {_ID} not found or expired\..*\bre-?initialize\b"),
        codes=frozenset({-32005}),
    ),
    Signature(
        name="session-header-200",
        servers="any: an error about the Mcp-Session-Id header inside a 200",
        statuses=frozenset({200}),
        pattern=_re(r".*\bmcp-session-id\b"),
        strength=Strength.WEAK,
    ),
    # --- 400 -------------------------------------------------------------------------------------------------------
    Signature(
        name="python-400",
        servers="python mcp 1.8.0-1.25.0, fastmcp 2.3-2.14 and PyPI mcp-proxy 0.8 on them: recorded; the session is "
        "looked up before the body is read",
        statuses=frozenset({400}),
        pattern=_re(r"bad request: no valid session id provided"),
        part=Part.VERBATIM,
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="typescript-400",
        servers="typescript-sdk 1.10.0-1.31.0 session-map example and its copies, server-everything, supergateway 3, npm "
        "mcp-proxy 3.0-5.1.0: recorded; no transport for the id, hence nothing to hand the message to",
        statuses=frozenset({400}),
        pattern=_re(r"no valid session id provided"),
        whole=True,
        codes=frozenset({-32000}),
    ),
    Signature(
        name="typescript-400-text",
        servers="the same on GET and DELETE: recorded",
        statuses=frozenset({400}),
        pattern=_re(r"invalid or missing session id"),
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="typescript-not-initialized",
        servers="typescript-sdk 1.10.0-2.4.0, one transport for all, restarted; kotlin-sdk likewise: recorded; "
        "validateSession() precedes onmessage()",
        statuses=frozenset({400}),
        pattern=_re(r"server not initialized"),
        whole=True,
        codes=frozenset({-32000}),
    ),
    Signature(
        name="punkpeye-400-transport",
        servers="npm mcp-proxy 3.0-6.5.3 on GET and DELETE: recorded",
        statuses=frozenset({400}),
        pattern=_re(r"no active transport"),
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="csharp-stateless-400",
        servers="csharp-sdk 0.4.0-2.2.0 in stateless mode, after a redeploy: StreamableHttpHandler.cs@v2.2.0, the header "
        "is refused before the body is handled",
        statuses=frozenset({400}),
        pattern=_re(r"the mcp-session-id header is not supported in stateless mode"),
        codes=frozenset({-32000}),
    ),
    Signature(
        name="swift-400",
        servers="swift-sdk 0.11.0-0.12.0, restarted: HTTPRequestValidation.swift@0.12.0, validation precedes handling",
        statuses=frozenset({400}),
        pattern=_re(r"session not initialized"),
        whole=True,
        codes=frozenset({-32600}),
    ),
    Signature(
        name="go-mcp-400",
        servers="go-mcp (ThinkInAI) 0.2.x: transport/streamable_http_server.go@v0.2.29, no session to receive for",
        statuses=frozenset({400}),
        pattern=_re(r"lack session"),
        whole=True,
        codes=frozenset({-32603}),
    ),
    Signature(
        name="invalid-id-400",
        servers="mcp-go 0.30.0-0.43.2 (text), ruby-sdk 0.3.0-0.8.0 (JSON): source, the id is checked before the message",
        statuses=frozenset({400}),
        pattern=_re(r"invalid session id"),
        whole=True,
        codes=_NO_CODE,
    ),
    # --- 404 -------------------------------------------------------------------------------------------------------
    Signature(
        name="python-404",
        servers="python mcp 1.26.0-2.3.0 and fastmcp on it, ruby-sdk 0.20.0-1.3.0: recorded; the session is looked up "
        "before the body is read",
        statuses=frozenset({404}),
        pattern=_re(r"session not found"),
        whole=True,
        codes=frozenset({-32600}),
    ),
    Signature(
        name="terminated-404",
        servers="python mcp 1.8.0-1.29, 2.0.0 and swift-sdk 0.11.0-0.12.0 after a DELETE: recorded and source",
        statuses=frozenset({404}),
        pattern=_re(r"session has been terminated"),
        whole=True,
        codes=frozenset({-32600}),
    ),
    Signature(
        name="typescript-404",
        servers="typescript-sdk transport (all) and 1.32 example, supergateway 4, npm mcp-proxy 5.1.1 on, csharp-sdk "
        "(0.1 preview with the sign lost), cloudflare agents, kotlin-sdk, mcp-use, mcp-framework, toolhive: recorded and "
        "source, no session, no transport",
        statuses=frozenset({404}),
        pattern=_re(r"session not found"),
        whole=True,
        codes=frozenset({-32001, 32001, -32000}),
    ),
    Signature(
        name="rmcp-404",
        servers="rmcp 0.17.0-3.1.4: recorded; tower.rs, has_session() is asked before the message is handed on",
        statuses=frozenset({404}),
        pattern=_re(r"not found: session not found"),
        part=Part.VERBATIM,
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="go-sdk-404",
        servers="go-sdk 0.2.0-1.8.0: recorded; mcp/streamable.go, the session is looked up before serving",
        statuses=frozenset({404}),
        pattern=re.compile(r"session not found"),  # lower case tells it from the other plain texts
        part=Part.VERBATIM,
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="go-sdk-404-closing",
        servers="go-sdk 1.2.0-1.8.0, a notification while the session closes: mcp/streamable.go@v1.7.0",
        statuses=frozenset({404}),
        pattern=_re(r"session is closing"),
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="mcp-go-404",
        servers="mcp-go 0.44.0-1.0.0-beta.1 (a foreign id, WithStateful(true)), terminated from 0.30.0: "
        "server/streamable_http.go, the id is checked before the message",
        statuses=frozenset({404}),
        pattern=_re(r"invalid session id|session terminated"),
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="java-404",
        servers="java-sdk 0.11.0-2.0.1 HttpServlet, WebMvc, WebFlux: a serialized exception; source v0.18.4, v2.0.1, the "
        "session is looked up before the message is handled",
        statuses=frozenset({404}),
        # Not by its message alone: "Session not found: chat-1" may be any application's.
        pattern=_re(r'(?=.*"jsonRpcError")(?=.*"message"\s*:\s*"session not found: )\{'),
        part=Part.BODY,
        codes=_NO_CODE,
    ),
    Signature(
        name="php-404",
        servers="php-sdk 0.1.0-0.7.1: src/Server/Protocol.php@v0.7.1, no session, no handler",
        statuses=frozenset({404}),
        pattern=_re(r"session not found or has expired\."),
        whole=True,
        codes=frozenset({-32600}),
    ),
    Signature(
        name="swift-404",
        servers="swift-sdk 0.11.0-0.12.0: HTTPRequestValidation.swift@0.12.0 and its HTTPApp, validation precedes handling",
        statuses=frozenset({404}),
        pattern=_re(r"invalid or expired session id|session not found or expired"),
        whole=True,
        codes=frozenset({-32600}),
    ),
    Signature(
        name="go-mcp-404",
        servers="go-mcp (ThinkInAI) 0.2.x: transport/streamable_http_server.go@v0.2.29",
        statuses=frozenset({404}),
        pattern=_re(r"session closed"),
        whole=True,
        codes=frozenset({-32603}),
    ),
    Signature(
        name="mongodb-404",
        servers="mongodb-mcp-server 1.x: mcpHttpServer.ts, no session, no transport (-32001 means a missing id there)",
        statuses=frozenset({404}),
        pattern=_re(r"session not found"),
        whole=True,
        codes=frozenset({-32003}),
    ),
    Signature(
        name="plain-404",
        servers="@playwright/mcp 0.0.83, supergateway 4 and typescript-sdk v2 GET (text), ruby-sdk 0.9.0-0.19.0 "
        "(an error string), rust-mcp-sdk (a bare error object), agentgateway 1.4: recorded and source",
        statuses=frozenset({404}),
        pattern=_re(r"session not found"),
        whole=True,
        codes=_NO_CODE,
    ),
    Signature(
        name="kuadrant-404",
        servers="Kuadrant mcp-gateway 0.5: internal/mcp-router/request_handlers.go@v0.5.0, checked before routing",
        statuses=frozenset({404}),
        pattern=_re(r"session no longer valid|invalid session"),
        part=Part.VERBATIM,
        whole=True,
        codes=_NO_CODE,
    ),
    # --- reported in the field, source not read ----------------------------------------------------------------------
    Signature(
        name="neotoma",
        servers="neotoma 2026: 503, later 404 (issues markmhendrickson/neotoma 1923 and 2312)",
        statuses=_LOST_STATUSES,
        pattern=_re(r"mcp session is unknown or expired"),
    ),
)

_GENERAL: tuple[Signature, ...] = (
    Signature(
        name="generic-session-state",
        servers="any: a sentence that begins with the session and says that it is gone",
        statuses=_LOST_STATUSES,
        pattern=_re(rf"session(?: with(?: the)? id| id)?(?: {_ID})? (?:is |was )?{_GONE}"),
    ),
    Signature(
        name="generic-session-id",
        servers="any: affine-mcp-server 3.2.2, agentdeals, and one unnamed server are known from issues",
        statuses=_LOST_STATUSES,
        # A bare "invalid session" must end there: "Invalid session parameters" is about something else.
        pattern=_re(rf"{_BAD} (?:mcp[- ])?session(?:[- ]?id(?: header)?\b| header\b|\s*(?:[.,;:!]|$))"),
    ),
    Signature(
        name="generic-not-initialized",
        servers="any: a server with one session for all that was restarted",
        statuses=_LOST_STATUSES,
        pattern=_re(r"server not initialized\b|no active transport$|lack session$"),
    ),
    Signature(
        name="weak-session-id",
        servers="php-sdk 0.7 (an id of another implementation's form) and others that judge the id's form",
        statuses=frozenset({400, 404}),
        pattern=_re(
            r"mcp-session-id header must be a valid|invalid mcp-session-id header:|session id is invalid"
            r"|missing or invalid mcp-session-id"
        ),
        strength=Strength.WEAK,
    ),
    Signature(
        name="quarkus-404",
        servers="quarkus-mcp-server 1.x: StreamableHttpMcpMessageHandler.java, ctx.fail(404) before the message is "
        "handled; Vert.x writes the same for a wrong path",
        statuses=frozenset({404}),
        pattern=_re(r"<html><body><h1>resource not found</h1></body></html>"),
        part=Part.BODY,
        whole=True,
        codes=_NO_CODE,
        strength=Strength.WEAK,
    ),
    Signature(
        name="bare-404",
        servers="any: java-sdk on GET and DELETE, but also a wrong path, an ingress without a backend, a missing route",
        statuses=frozenset({404, 410}),
        pattern=_re(r""),
        part=Part.BODY,
        codes=_NO_CODE,
        strength=Strength.WEAK,
    ),
)

TABLE: tuple[Signature, ...] = (*_PARTICULAR, *_GENERAL)

# What a bare 404 is *not*: one whose text some other row knows.
ROUTE_ROWS = frozenset({"quarkus-404", "bare-404"})

# 407 is between a proxy and its client. 401 and 403 are authorization's: only whole, exact wordings take them away from it.
_OPERATOR_STATUSES = frozenset({200, *range(400, 600)}) - {407}
_AUTHORIZATION = frozenset({401, 403})
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def operator_signature(*, name: str, status: int, text: str, methods: tuple[str, ...] | list[str] = ()) -> Signature:
    """Make a row of what an operator knows about the server that they front.

    ``text`` is a regular expression, case-insensitive, tried at the start of the message and of the raw body. For 401 and
    403 it must cover the whole message: they belong to authorization, and only exact wordings take them away from there.
    Such a row is asked before the table, whose name it would take otherwise. It
    stays under the same gates as every row; a 401 or 403 with ``WWW-Authenticate`` and OAuth errors are never its business.

    Raises ValueError, with a sentence for the operator, on a name, status or expression that cannot be meant.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"signature name {name!r}: use lower-case words joined by hyphens, such as 'my-server-404'")
    if any(name == row.name for row in TABLE):
        raise ValueError(f"signature {name!r}: that is the name of a row which mcp-sidecar has already")
    if status not in _OPERATOR_STATUSES:
        raise ValueError(f"signature {name!r}: status {status} never means a lost session; use 200 or 400-599, not 407")
    pattern = _compiled(name, text)
    return Signature(
        name=name,
        servers="configured by the operator",
        statuses=frozenset({status}),
        pattern=pattern,
        part=Part.ANY,
        whole=status in _AUTHORIZATION,
        methods=frozenset(methods) or None,
        by_operator=True,
    )


def _compiled(name: str, text: str) -> re.Pattern[str]:
    try:
        pattern = _re(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"signature {name!r}: {text!r} is not a regular expression: {error}") from error
    if pattern.match(""):
        raise ValueError(f"signature {name!r}: {text!r} also matches an empty answer; say more")
    return pattern
