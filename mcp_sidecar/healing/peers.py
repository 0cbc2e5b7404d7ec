"""Who is at both ends of a session, as they call themselves: for people to read, and as a bounded label.

A name is whatever somebody has written into ``initialize``: it is cut, and what cannot be printed is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.labels import OTHER

MAX_SHOWN = 80

KNOWN_CLIENTS = frozenset(
    {
        "chatgpt",
        "claude-ai",
        "claude-code",
        "cline",
        "codex-mcp-client",
        "continue-client",
        "copilot",
        "cursor",
        "cursor-vscode",
        "fast-agent",
        "fastmcp",
        "gemini-cli-mcp-client",
        "go-client",
        "google-adk",
        "goose",
        "inspector-client",
        "java sdk mcp client",
        "langchain",
        "librechat",
        "lm-studio",
        "mcp",
        "mcp-cli",
        "mcp-client",
        "mcp-go",
        "mcp-inspector",
        "mcp-remote",
        "n8n",
        "openai-agents",
        "openai-mcp",
        "opencode",
        "postman",
        "pydantic-ai",
        "raycast",
        "rmcp",
        "roo code",
        "spring-ai-mcp-client",
        "visual studio code",
        "windsurf",
        "zed",
    }
)
"""Names that clients are known by, in lower case. Whatever else one calls itself counts as ``other``."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program by the name and version that it gives; empty where it gives none."""

    name: str = ""
    version: str = ""

    @property
    def label(self) -> str:
        """The name as a label of the bounded set."""
        name = self.name.lower()
        return name if name in KNOWN_CLIENTS else OTHER


def client_of(handshake: Handshake) -> Peer:
    """The client of a session."""
    return _peer(json.loads(handshake.params).get("clientInfo"))


def server_of(handshake: Handshake) -> Peer:
    """Its server, as it was when the session was opened."""
    return _peer(json.loads(handshake.result).get("serverInfo"))


def _peer(said: Any) -> Peer:
    if not isinstance(said, dict):
        return Peer()
    return Peer(_shown(said.get("name")), _shown(said.get("version")))


def _shown(text: object) -> str:
    return "".join(filter(str.isprintable, text[:MAX_SHOWN])) if isinstance(text, str) else ""
