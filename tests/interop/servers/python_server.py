"""An MCP server of the interoperability suite on one of the Python SDKs.

Run inside the environment of that SDK: ``python_server.py FLAVOUR PORT``. It imports nothing of the project, and it
looks its SDK up by name, because each environment has another one.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS_BY_SESSION: Counter[str] = Counter()


def record(key: str) -> None:
    """Append a line to the ledger: the proof that a tool ran."""
    with Path(os.environ["INTEROP_LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{key}\n")


async def echo(text: str) -> str:
    """Give the text back."""
    return text


async def add_to_ledger(key: str) -> str:
    """Append a line to the ledger."""
    record(key)
    return key


async def slow(seconds: float, key: str) -> str:
    """Append a line to the ledger, then take a while."""
    record(key)
    await asyncio.sleep(seconds)
    return key


async def slow_read(seconds: float, key: str) -> str:
    """Take a while and change nothing."""
    return await slow(seconds, key)


def counting(context_type: Any, session_of: Callable[[Any], str]) -> Callable[..., Any]:
    """Return the tool that counts the calls of its session; the SDKs find the context by the annotation."""

    async def count(context: Any) -> int:
        """Count the calls of this session."""
        CALLS_BY_SESSION[session_of(context)] += 1
        return CALLS_BY_SESSION[session_of(context)]

    count.__annotations__ = {"context": context_type, "return": int}
    return count


READ_ONLY = {"readOnlyHint": True}
TOOLS: tuple[tuple[Callable[..., Any], dict[str, bool]], ...] = (
    (echo, READ_ONLY),
    (add_to_ledger, {}),
    (slow, {}),
    (slow_read, READ_ONLY),
)


def _session_header(headers: Any) -> str:
    return str((headers or {}).get("mcp-session-id", "none"))


def serve_mcp1(port: int) -> None:
    """Serve on ``mcp`` 1.x."""
    fastmcp = importlib.import_module("mcp.server.fastmcp")
    types = importlib.import_module("mcp.types")
    server = fastmcp.FastMCP("interop", host="127.0.0.1", port=port)
    count = counting(fastmcp.Context, lambda context: _session_header(context.request_context.request.headers))
    for tool, hints in (*TOOLS, (count, READ_ONLY)):
        server.tool(annotations=types.ToolAnnotations(**hints))(tool)
    server.run("streamable-http")


def serve_mcp2(port: int) -> None:
    """Serve on ``mcp`` 2.x."""
    mcpserver = importlib.import_module("mcp.server.mcpserver")
    types = importlib.import_module("mcp_types")
    server = mcpserver.MCPServer("interop")
    count = counting(mcpserver.Context, lambda context: _session_header(context.headers))
    for tool, hints in (*TOOLS, (count, READ_ONLY)):
        server.tool(annotations=types.ToolAnnotations.model_validate(hints))(tool)
    server.run("streamable-http", host="127.0.0.1", port=port)


def serve_fastmcp(port: int) -> None:
    """Serve on the ``fastmcp`` package, 2.x to 4.x."""
    fastmcp = importlib.import_module("fastmcp")
    server = fastmcp.FastMCP("interop")
    for tool, hints in (*TOOLS, (counting(fastmcp.Context, lambda context: str(context.session_id)), READ_ONLY)):
        server.tool(annotations=hints)(tool)
    server.run(transport="http", show_banner=False, host="127.0.0.1", port=port, path="/mcp")


FLAVOURS: dict[str, Callable[[int], None]] = {"mcp1": serve_mcp1, "mcp2": serve_mcp2, "fastmcp": serve_fastmcp}

if __name__ == "__main__":
    FLAVOURS[sys.argv[1]](int(sys.argv[2]))
