"""The work that everybody is given: the messages, and the headers that MCP clients send with them."""

from __future__ import annotations

import json
from typing import Any, Final

PROTOCOL: Final = "2025-06-18"
ENDPOINT: Final = "/mcp"
TEXT: Final = ("The quick brown fox jumps over the lazy dog. " * 12).strip()
"""What a call brings back: with it an answer has about 600 bytes."""

KIND_HEADER: Final = "X-Bench-Kind"
ID_HEADER: Final = "X-Request-Id"
"""For the upstream that cannot read bodies. Proxies that do not pass headers on are given the one that can."""

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
)


def tools() -> dict[str, Any]:
    """Return the result of ``tools/list``."""
    return {
        "tools": [
            {"name": name, "description": f"Answers as {name}", "inputSchema": {"type": "object", "properties": {}}}
            for name in TOOL_NAMES
        ]
    }


def call(tool: str, id: int) -> bytes:
    """Return the body of a ``tools/call``, about 300 bytes."""
    params = {"name": tool, "arguments": ARGUMENTS, "_meta": {"progressToken": id}}
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).encode()


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
    return json.dumps({"jsonrpc": "2.0", "id": id, "result": result(text)}).encode()


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


def call_request(host: str, session: str, tool: str, id: int) -> bytes:
    """Return a call as any upstream of the bench understands it."""
    return request(
        "POST",
        host,
        call(tool, id),
        session,
        **{KIND_HEADER.replace("-", "_"): tool, ID_HEADER.replace("-", "_"): str(id)},
    )
