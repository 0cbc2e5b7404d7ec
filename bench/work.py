"""The work that everybody is given: the messages, and the headers that MCP clients send with them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

PROTOCOL: Final = "2025-06-18"
ENDPOINT: Final = "/mcp"
TEXT: Final = ("The quick brown fox jumps over the lazy dog. " * 12).strip()
"""What a call brings back: with it an answer has about 600 bytes."""

KIND_HEADER: Final = "X-Bench-Kind"
"""For the upstream that cannot read bodies. Proxies that do not pass headers on are given the one that can."""
IDS: Final = 64
"""An id comes again in its session only after so many others, so that none is in use twice."""
LEAST_ID: Final = 304
"""A call has as many bytes as its id says: so the upstream that cannot read bodies knows the id by ``Content-Length``, and no
header has to change from call to call that a client's would not."""
UNIQUE: Final = "############"
"""Stands for twelve hexadecimal digits that no other request has."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One kind of request: what it is called in the tables, what it asks for, and what its answer must hold."""

    label: str
    tool: str
    method: str = "tools/call"
    brings: bytes = TEXT[:60].encode()
    headers_change: bool = False
    """Whether each has an id of its own, and a place in a trace of its own, as behind an ingress."""
    is_after_heal: bool = False
    """Whether its session was lost and healed before."""


JSON: Final = "json"
SSE: Final = "sse"
SSE_IN_PIECES: Final = "sse-pieces"
CHANGING: Final = "json-changing"
LIST: Final = "list"
TEN_EVENTS: Final = "ten-events"
HEALED: Final = "json-healed"
ASKED: Final = {
    JSON: Asked("JSON", "json"),
    SSE: Asked("SSE", "sse"),
    SSE_IN_PIECES: Asked("SSE in three packets", "sse-pieces"),
    CHANGING: Asked("JSON under changing headers", "json", headers_change=True),
    LIST: Asked("list of tools", "list", "tools/list", b'"inputSchema"'),
    TEN_EVENTS: Asked("SSE of ten events", "ten-events"),
    HEALED: Asked("JSON after a heal", "after-heal", is_after_heal=True),
}
"""By the names that plans give them. After a heal ids may have to be written anew: only who reads bodies can answer then."""

INITIALIZE: Final[dict[str, Any]] = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": PROTOCOL,
        "capabilities": {"roots": {"listChanged": True}},
        "clientInfo": {"name": "bench", "version": "1.0"},
    },
}
INITIALIZED: Final[dict[str, Any]] = {"jsonrpc": "2.0", "method": "notifications/initialized"}
SERVER: Final[dict[str, Any]] = {
    "protocolVersion": PROTOCOL,
    "capabilities": {"tools": {"listChanged": True}},
    "serverInfo": {"name": "bench-upstream", "version": "1.0"},
}
ARGUMENTS: Final[dict[str, Any]] = {
    "query": "select name, value from readings where station = 17 order by taken_at desc",
    "limit": 100,
    "format": "table",
    "options": {"timeout": 30, "verbose": False},
}
TOOL_NAMES: Final = (
    "json",
    "sse",
    "sse-pieces",
    "upload",
    "download-json",
    "download-sse",
    "tiny-events",
    "more-tiny-events",
    "ten-events",
)


def tools() -> dict[str, Any]:
    """Return the result of ``tools/list``."""
    return {
        "tools": [
            {"name": name, "description": f"Answers as {name}", "inputSchema": {"type": "object", "properties": {}}}
            for name in TOOL_NAMES
        ]
    }


def call(tool: str, id: int, more: str = "") -> bytes:
    """Return the body of a ``tools/call``, about 300 bytes and ``more``."""
    arguments = {**ARGUMENTS, "query": f"{ARGUMENTS['query']}{more}"}
    return _message(id, "tools/call", {"name": tool, "arguments": arguments, "_meta": {"progressToken": id}})


def list_tools(id: int, more: str = "") -> bytes:
    """Return the body of a ``tools/list``."""
    return _message(id, "tools/list", {"_meta": {"progressToken": id, "bench/more": more}})


def _message(id: int, method: str, params: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


def ping(id: int) -> bytes:
    """Return the body of a ping."""
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": "ping"}).encode()


def zeros() -> bytes:
    """Return a MiB of JSON that has as many values as it can have."""
    return b"[0" + b",0" * (2**19 - 2) + b"]"


def upload(size: int, id: int) -> bytes:
    """Return the body of a call with an argument of this size."""
    head = f'{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"upload","arguments":{{"data":"'
    return head.encode() + b"x" * size + b'"}}}'


def result(text: str) -> dict[str, Any]:
    """Return the result of a call."""
    return {"content": [{"type": "text", "text": text}], "isError": False}


def answer(id: object, text: str = TEXT) -> bytes:
    """Return the JSON-RPC response to a call."""
    return response(id, result(text))


def response(id: object, result: dict[str, Any]) -> bytes:
    """Return a JSON-RPC response."""
    return json.dumps({"jsonrpc": "2.0", "id": id, "result": result}).encode()


def progress(token: int, done: int) -> bytes:
    """Return a notification of progress."""
    params = {"progressToken": token, "progress": done, "total": 10, "message": TEXT[:100]}
    return json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}).encode()


def request(method: str, host: str, body: bytes = b"", session: str | None = None, **headers: str) -> bytes:
    """Return an HTTP request to the endpoint as bytes, with what an MCP client sends."""
    lines = [
        f"{method} {ENDPOINT} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: bench/1.0",
        "Accept: text/event-stream" if method == "GET" else "Accept: application/json, text/event-stream",
    ]
    if session is not None:
        lines += [f"Mcp-Session-Id: {session}", f"MCP-Protocol-Version: {PROTOCOL}"]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def call_request(host: str, sessions: Sequence[str], kind: str, number: int, unique: str = UNIQUE) -> bytes:
    """Return the ``number``-th request of a kind in ``ASKED``, one session after the other, for any upstream of the bench."""
    asked, turn = ASKED[kind], number // len(sessions)
    session, body = sessions[number % len(sessions)], _of_size(kind, LEAST_ID + turn % IDS)
    headers = {KIND_HEADER: asked.tool, **(changing(unique) if asked.headers_change else {})}
    return request("POST", host, body, session, **{name.replace("-", "_"): value for name, value in headers.items()})


@functools.cache
def _of_size(kind: str, id: int) -> bytes:
    asked = ASKED[kind]

    def body(more: str) -> bytes:
        return list_tools(id, more) if asked.method == "tools/list" else call(asked.tool, id, more)

    return body("." * (id - len(body(""))))


def changing(unique: str) -> dict[str, str]:
    """Return the headers that an ingress and a tracer add, made of twelve hexadecimal digits."""
    return {
        "X-Request-Id": f"7d9f2c51-0c3e-4b6a-8f1d-{unique}",
        "traceparent": f"00-5be1a6f09c3d47728e14{unique}-d20b{unique}-01",
    }
