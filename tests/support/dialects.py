"""Table: how each family of MCP servers says that it does not know a session.

The rule: a row is what the family puts on the wire for a well-formed request whose session is gone, no more and no less; the
``servers`` column names the versions that do so. Bodies are templates: ``{SID}`` the id of the request, ``{OTHER_SID}`` an id
that the client never saw, ``{ID}`` the JSON of the request's JSON-RPC id, ``{METHOD}`` its method.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from tests.support.http1 import Headers

JSON = "application/json"
JSON_UTF8 = "application/json; charset=utf-8"
TEXT_UTF8 = "text/plain; charset=utf-8"
HTML_UTF8 = "text/html; charset=utf-8"


class Mint(StrEnum):
    """The shape of the session ids that a server hands out."""

    UUID_HEX = "uuid-hex"
    UUID = "uuid"
    COUNTER = "counter"
    MCP_GO = "mcp-session-uuid"
    BASE32 = "base32"
    BASE64URL = "base64url"
    TOKEN = "token"


@dataclass(frozen=True, slots=True)
class Said:
    """One HTTP answer, as a template."""

    status: int
    body: str = ""
    content_type: str | None = None
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def shows_other(self) -> bool:
        """Whether it names an id that the client never saw."""
        return any("{OTHER_SID}" in text for text in (self.body, *(value for _, value in self.extra)))

    def filled(self, *, sid: str, rpc_id: object = None, method: str = "", other_sid: str = "") -> Filled:
        """The answer for one request."""
        values = {"{SID}": sid, "{OTHER_SID}": other_sid, "{ID}": json.dumps(rpc_id), "{METHOD}": method}
        headers = [("Content-Type", self.content_type)] if self.content_type else []
        headers += [(name, _fill(value, values)) for name, value in self.extra]
        return Filled(self.status, tuple(headers), _fill(self.body, values).encode())


@dataclass(frozen=True, slots=True)
class Filled:
    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one family answers. ``get`` and ``delete`` default to ``post``, ``terminated`` (the session ended by DELETE) too;
    ``missing`` answers a request without an id; ``occupied`` is a single-session server that another client has taken.
    ``conclusive`` says whether the POST answer alone proves the loss; where it is False, as for a bare GET or DELETE answer of
    java, only a probe can tell."""

    name: str
    servers: str
    post: Said
    get: Said | None = None
    delete: Said | None = None
    terminated: Said | None = None
    occupied: Said | None = None
    missing: Said = Said(400, "Bad Request: Mcp-Session-Id header is required", TEXT_UTF8)
    mint: Mint = Mint.UUID
    conclusive: bool = True

    def lost(self, http_method: str) -> Said:
        return {"GET": self.get, "DELETE": self.delete}.get(http_method) or self.post


def _fill(template: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(name, value)
    return template


def _error(code: int, message: str, rpc_id: str = "null") -> str:
    return f'{{"jsonrpc":"2.0","error":{{"code":{code},"message":"{message}"}},"id":{rpc_id}}}'


NO_VALID = "Bad Request: No valid session ID provided"
NOT_FOUND = "Session not found"
_EXPRESS_INVALID = Said(400, "Invalid or missing session ID", HTML_UTF8)
_TS_NOT_FOUND = Said(404, _error(-32001, NOT_FOUND), JSON)
_NO_TRANSPORT = Said(400, "No active transport", TEXT_UTF8)
_NO_VALID_JSON = Said(400, _error(-32000, NO_VALID), JSON_UTF8)
_PYTHON_MISSING = Said(
    400,
    _error(-32600, "Bad Request: Missing session ID", '"server-error"'),
    JSON,
    (("mcp-session-id", "{OTHER_SID}"),),
)
_PYTHON_ENDED = (
    '{{"jsonrpc":"2.0","id":{0},"error":{{"code":-32600,"message":"Not Found: Session has been terminated"}}}}'
)
_RMCP_MISSING = Said(422, "Unexpected message, expect initialize request", TEXT_UTF8)
_GO_MISSING = Said(404, "Invalid session ID\n", TEXT_UTF8)
_JAVA_BODY = '"message":"Session not found: {SID}","suppressed":[],"localizedMessage":"Session not found: {SID}"}'
_JAVA_OLD = '{"cause":null,"stackTrace":[],"jsonRpcError":null,' + _JAVA_BODY
_JAVA_NEW = (
    '{"cause":null,"stackTrace":[],"jsonRpcError":{"code":-32603,"message":"Session not found: {SID}"},' + _JAVA_BODY
)
_TOMCAT = Said(
    404,
    '<!doctype html><html lang="en"><head><title>HTTP Status 404 – Not Found</title></head>'
    "<body><h1>HTTP Status 404 – Not Found</h1></body></html>",
    "text/html;charset=utf-8",
)
_PUNKPEYE_CHALLENGE = (
    "WWW-Authenticate",
    (
        'Bearer resource_metadata="http://127.0.0.1/.well-known/oauth-protected-resource", error="invalid_token", '
        'error_description="Unauthorized: No valid session ID provided"'
    ),
)
_TOWER = "Session '{SID}' not found or expired. Please re-initialize the connection."

_ROWS = (
    Dialect(
        name="python-400-text",
        servers="python mcp 1.8.0-1.25.0",
        post=Said(400, NO_VALID),
        terminated=Said(404, _PYTHON_ENDED.format('"server-error"'), JSON, (("mcp-session-id", "{SID}"),)),
        missing=_PYTHON_MISSING,
        mint=Mint.UUID_HEX,
    ),
    Dialect(
        name="python-404",
        servers="python mcp 1.26.0-1.30.0",
        post=Said(
            404, '{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Session not found"}}', JSON
        ),
        missing=_PYTHON_MISSING,
        mint=Mint.UUID_HEX,
    ),
    Dialect(
        name="python2-404",
        servers="python mcp 2.0.0-2.3.0",
        post=Said(404, '{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Session not found"}}', JSON),
        terminated=Said(404, _PYTHON_ENDED.format("null"), JSON, (("mcp-session-id", "{SID}"),)),
        missing=_PYTHON_MISSING,
        mint=Mint.UUID_HEX,
    ),
    Dialect(
        name="ts-map-400",
        servers="typescript-sdk examples 1.10.0-1.31.0",
        post=_NO_VALID_JSON,
        get=_EXPRESS_INVALID,
        delete=_EXPRESS_INVALID,
        missing=_NO_VALID_JSON,
    ),
    Dialect(name="ts-404", servers="typescript-sdk examples 1.32.x; mcp-use 1.x; mcp-framework", post=_TS_NOT_FOUND),
    Dialect(
        name="ts-v2-get-text",
        servers="typescript-sdk v2 standalone-get example",
        post=Said(404, _error(-32001, NOT_FOUND), JSON_UTF8),
        get=Said(404, NOT_FOUND, HTML_UTF8),
    ),
    Dialect(
        name="ts-not-initialized",
        servers="typescript-sdk, one shared transport, process restarted",
        post=Said(400, _error(-32000, "Bad Request: Server not initialized")),
        occupied=Said(404, _error(-32001, NOT_FOUND)),
    ),
    Dialect(
        name="ts-not-initialized-json",
        servers="typescript-sdk 1.25.3 on and 2.x, one shared transport, process restarted",
        post=Said(400, _error(-32000, "Bad Request: Server not initialized"), JSON),
        occupied=_TS_NOT_FOUND,
    ),
    Dialect(
        name="server-everything",
        servers="server-everything 2025.4.28-2026.8.31",
        post=Said(400, f'{{"jsonrpc":"2.0","error":{{"code":-32000,"message":"{NO_VALID}"}}}}', JSON_UTF8),
    ),
    Dialect(name="playwright", servers="@playwright/mcp 0.0.83", post=Said(404, NOT_FOUND)),
    Dialect(
        name="supergateway-400",
        servers="supergateway 3.4.3 --stateful",
        post=_NO_VALID_JSON,
        get=_EXPRESS_INVALID,
        delete=_EXPRESS_INVALID,
        missing=_NO_VALID_JSON,
    ),
    Dialect(
        name="supergateway",
        servers="supergateway 4.0.0 --stateful",
        post=Said(404, _error(-32001, NOT_FOUND), JSON_UTF8),
        get=Said(404, NOT_FOUND, HTML_UTF8),
        delete=Said(404, NOT_FOUND, HTML_UTF8),
    ),
    Dialect(
        name="punkpeye-400",
        servers="mcp-proxy (npm) 3.0-5.1.0",
        post=Said(400, _error(-32000, NO_VALID), JSON),
        get=_NO_TRANSPORT,
        delete=_NO_TRANSPORT,
    ),
    Dialect(
        name="punkpeye-404",
        servers="mcp-proxy (npm) 5.1.1-6.5.3, and later without authenticate",
        post=Said(404, _error(-32001, NOT_FOUND), JSON),
        get=_NO_TRANSPORT,
        delete=_NO_TRANSPORT,
    ),
    Dialect(
        name="punkpeye-401",
        servers="mcp-proxy (npm) 6.5.4-6.7.16 with authenticate and oauth",
        post=Said(
            401, _error(-32000, "Unauthorized: No valid session ID provided", "{ID}"), JSON_UTF8, (_PUNKPEYE_CHALLENGE,)
        ),
    ),
    Dialect(
        name="punkpeye-401-bare",
        servers="mcp-proxy (npm) 6.5.4-6.7.16 with authenticate",
        post=Said(401, _error(-32000, "Unauthorized: No valid session ID provided", "{ID}"), JSON_UTF8),
    ),
    Dialect(
        name="rmcp-401",
        servers="rmcp 0.2.0-0.16.0",
        post=Said(401, "Unauthorized: Session not found"),
        delete=Said(202),
        missing=_RMCP_MISSING,
    ),
    Dialect(
        name="rmcp-404",
        servers="rmcp 0.17.0-3.1.4",
        post=Said(404, "Not Found: Session not found"),
        delete=Said(202),
        missing=_RMCP_MISSING,
    ),
    Dialect(
        name="rmcp-500",
        servers="rmcp, session worker dying",
        post=Said(500, "Encounter an error when get session: Session error: Session service terminated"),
        delete=Said(202),
        missing=_RMCP_MISSING,
    ),
    Dialect(
        name="rmcp-500-id",
        servers="rmcp, session gone between lookup and use",
        post=Said(500, "Encounter an error when get session: Session not found: {SID}"),
        delete=Said(202),
        missing=_RMCP_MISSING,
    ),
    Dialect(
        name="go-sdk", servers="go-sdk 0.2.0-1.8.0", post=Said(404, "session not found\n", TEXT_UTF8), mint=Mint.BASE32
    ),
    Dialect(
        name="go-sdk-closing",
        servers="go-sdk 1.2.0 on, while a session closes",
        post=Said(404, "session is closing\n", TEXT_UTF8),
        mint=Mint.BASE32,
    ),
    Dialect(
        name="mcp-go-400",
        servers="mcp-go 0.30.0-0.43.2, tracked sessions",
        post=Said(400, "Invalid session ID\n", TEXT_UTF8),
        terminated=Said(404, "Session terminated\n", TEXT_UTF8),
        missing=_GO_MISSING,
        mint=Mint.MCP_GO,
    ),
    Dialect(
        name="mcp-go-404",
        servers="mcp-go 0.44.0 on, tracked sessions",
        post=Said(404, "Invalid session ID\n", TEXT_UTF8),
        terminated=Said(404, "Session terminated\n", TEXT_UTF8),
        missing=_GO_MISSING,
        mint=Mint.MCP_GO,
    ),
    Dialect(
        name="java-404",
        servers="java-sdk HttpServlet 1.0.0-2.0.1",
        post=Said(404, _JAVA_NEW, "application/json;charset=UTF-8"),
        get=_TOMCAT,
        delete=_TOMCAT,
    ),
    Dialect(
        name="java-bare-404",
        servers="java-sdk WebMvc and WebFlux 0.11-0.18.4, spring-ai 2.x",
        post=Said(404, _JAVA_OLD, JSON),
        get=Said(404),
        delete=Said(404),
    ),
    Dialect(
        name="java-spring-boot",
        servers="java-sdk HttpServlet under Spring Boot",
        post=Said(404, _JAVA_NEW, "application/json;charset=UTF-8"),
        get=Said(404, '{"status":404,"error":"Not Found","path":"/mcp"}', JSON),
        delete=Said(404, '{"status":404,"error":"Not Found","path":"/mcp"}', JSON),
    ),
    Dialect(
        name="csharp-404",
        servers="csharp-sdk 2.0.0-2.2.0",
        post=Said(404, _error(-32001, NOT_FOUND, "{ID}"), JSON_UTF8),
        delete=Said(200),
        mint=Mint.BASE64URL,
    ),
    Dialect(
        name="csharp-404-empty-id",
        servers="csharp-sdk 0.2-1.4.1",
        post=Said(404, _error(-32001, NOT_FOUND, '""'), JSON_UTF8),
        delete=Said(200),
        mint=Mint.BASE64URL,
    ),
    Dialect(
        name="csharp-stateless-400",
        servers="csharp-sdk 0.4-2.2, redeployed as stateless",
        post=Said(
            400,
            _error(-32000, "Bad Request: The Mcp-Session-Id header is not supported in stateless mode", "{ID}"),
            JSON_UTF8,
        ),
        mint=Mint.BASE64URL,
    ),
    Dialect(name="kotlin", servers="kotlin-sdk, Ktor 0.9 on", post=Said(404, _error(-32000, NOT_FOUND), JSON)),
    Dialect(
        name="ruby-400",
        servers="ruby-sdk 0.3-0.8",
        post=Said(400, '{"error":"Invalid session ID"}', JSON),
        get=Said(404, '{"error":"Session not found"}', JSON),
        delete=Said(404, '{"error":"Session not found"}', JSON),
    ),
    Dialect(name="ruby-404", servers="ruby-sdk 0.9-0.19", post=Said(404, '{"error":"Session not found"}', JSON)),
    Dialect(
        name="php-404",
        servers="php-sdk 0.1-0.7.1",
        post=Said(404, _error(-32600, "Session not found or has expired.", '""'), JSON),
    ),
    Dialect(
        name="swift",
        servers="swift-sdk 0.11-0.12, another session live",
        post=Said(
            404,
            _error(-32600, "Invalid Request: Not Found: Invalid or expired session ID"),
            JSON,
            (("mcp-session-id", "{OTHER_SID}"),),
        ),
        terminated=Said(
            404,
            _error(-32600, "Invalid Request: Not Found: Session has been terminated"),
            JSON,
            (("mcp-session-id", "{SID}"),),
        ),
    ),
    Dialect(
        name="swift-fresh",
        servers="swift-sdk 0.11-0.12, process restarted",
        post=Said(400, _error(-32600, "Invalid Request: Bad Request: Session not initialized"), JSON),
    ),
    Dialect(
        name="cloudflare",
        servers="cloudflare agents 0.0.60-0.21",
        post=Said(404, _error(-32001, NOT_FOUND), "text/plain;charset=UTF-8"),
    ),
    Dialect(
        name="quarkus-bare-404",
        servers="quarkus-mcp-server 1.x",
        post=Said(404, "<html><body><h1>Resource not found</h1></body></html>", HTML_UTF8),
        conclusive=False,
    ),
    Dialect(
        name="rust-mcp-sdk",
        servers="rust-mcp-sdk 2026",
        post=Said(404, '{"code":-32016,"message":"Session not found"}', JSON),
    ),
    Dialect(name="tower-mcp-200", servers="tower-mcp 0.x", post=Said(200, _error(-32005, _TOWER), JSON)),
    Dialect(
        name="go-mcp",
        servers="go-mcp 0.2.x",
        post=Said(400, _error(-32603, "Failed to receive: lack session"), JSON),
        get=Said(400, "lack session", TEXT_UTF8),
        terminated=Said(404, _error(-32603, "Failed to receive: session closed"), JSON),
    ),
    Dialect(
        name="mongodb",
        servers="mongodb-mcp-server 1.x",
        post=Said(404, '{"jsonrpc":"2.0","error":{"code":-32003,"message":"session not found"}}', JSON),
        missing=Said(400, '{"jsonrpc":"2.0","error":{"code":-32001,"message":"session id is required"}}', JSON),
    ),
    Dialect(
        name="kuadrant-401", servers="Kuadrant mcp-gateway 0.9", post=Said(401, "session no longer valid", "text/plain")
    ),
    Dialect(name="kuadrant-404", servers="Kuadrant mcp-gateway 0.5", post=Said(404, "invalid session", "text/plain")),
    Dialect(name="toolhive", servers="toolhive 0.44.0", post=Said(404, _error(-32001, NOT_FOUND, "{ID}"), JSON)),
    Dialect(name="agentgateway", servers="agentgateway 1.4.x", post=Said(404, "mcp: session not found", "text/plain")),
    Dialect(
        name="anubis",
        servers="anubis-mcp 0.x",
        post=Said(
            404,
            '{"jsonrpc":"2.0","id":"err_abc","error":{"code":-32600,"message":"Invalid Request",'
            '"data":{"data":{"message":"Session not found","http_status":404}}}}',
            JSON_UTF8,
        ),
    ),
    Dialect(
        name="one-mcp",
        servers="1mcp agent 0.2x-0.35",
        post=Said(
            404,
            '{"error":{"code":-32602,"message":"Session not found. Send an initialize request first to create a new session."}}',
            JSON_UTF8,
        ),
    ),
    Dialect(
        name="detail-404",
        servers="FastAPI gateways (context-forge)",
        post=Said(404, '{"detail":"Session not found"}', JSON),
    ),
    Dialect(
        name="neotoma-503",
        servers="neotoma before 2026-07",
        post=Said(503, _error(-32001, "Not Found: MCP session is unknown or expired on this API instance."), JSON_UTF8),
    ),
    Dialect(
        name="neotoma-404",
        servers="neotoma 2026-07 on",
        post=Said(404, _error(-32001, "Not Found: MCP session is unknown or expired on this API instance."), JSON_UTF8),
    ),
    Dialect(
        name="affine",
        servers="affine-mcp-server 3.2.2",
        post=Said(400, _error(-32000, "Bad Request: No valid session ID or not an initialize request"), JSON_UTF8),
    ),
    Dialect(
        name="agentdeals",
        servers="agentdeals 2026-08",
        post=Said(400, _error(-32600, "Bad Request: No valid session. Send an initialize request first."), JSON_UTF8),
        get=Said(400, '{"error":"Invalid or missing session ID"}', JSON_UTF8),
    ),
    Dialect(
        name="unknown-session-id",
        servers="unnamed server, reported 2026-07",
        post=Said(
            400,
            _error(-32600, "Unknown session id '{SID}' for '{METHOD}'; client should reinitialize", "{ID}"),
            JSON,
        ),
    ),
)

DIALECTS: dict[str, Dialect] = {row.name: row for row in _ROWS}
