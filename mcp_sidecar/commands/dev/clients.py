"""How clients are told of a server: what `dev` prints on the key `c`."""

from __future__ import annotations

import json


def snippets(url: str, name: str) -> str:
    """For each client the line or the file that connects it. ``name`` is what the user will see it as."""
    vs_code = json.dumps({"name": name, "type": "http", "url": url})
    cursor = json.dumps({"mcpServers": {name: {"url": url}}})
    return "\n".join(
        (
            "Claude Code",
            f"  claude mcp add --transport http {name} {url}",
            "VS Code",
            f"  code --add-mcp '{vs_code}'",
            "Cursor, in .cursor/mcp.json",
            f"  {cursor}",
            "Codex",
            f"  codex mcp add {name} --url {url}",
            "MCP Inspector",
            f"  npx @modelcontextprotocol/inspector --cli {url} --transport http --method tools/list",
            "Python",
            "  from mcp import ClientSession",
            "  from mcp.client.streamable_http import streamable_http_client",
            f'  async with streamable_http_client("{url}") as streams:',
            "      async with ClientSession(*streams[:2]) as session:",
            "          await session.initialize()",
        )
    )
