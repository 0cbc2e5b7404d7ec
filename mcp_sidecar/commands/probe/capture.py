"""The answers to requests in sessions that are lost, as files for `tests/corpus`: with places for ids, and without tokens.

A file is a block of ``key: value`` lines, a blank line, and the answer: status line, headers, blank line, body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http import HTTPStatus

from mcp_sidecar.commands.mcp_client import (
    REQUEST_ID,
    Said,
)
from mcp_sidecar.commands.probe.findings import judged
from mcp_sidecar.commands.probe.questions import Answered, Seen

KEPT_HEADERS = frozenset({"content-type", "www-authenticate", "retry-after", "allow", "mcp-session-id"})
"""Others say where and when it was, or who is logged in."""

_SECRETS = re.compile(
    r"""(?P<key>["']?(?:access_|refresh_|id_)?token["']?|secret|password|api[_-]?key)(?P<between>["']?\s*[:=]\s*["']?)[^\s"',&;]+"""
    r"|(?P<scheme>\bbearer\s+)[\w.~+/=-]{8,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*",
    re.IGNORECASE,
)


def entries(seen: Seen) -> Iterator[tuple[str, str]]:
    """The name and the text of each file."""
    server, version = _server(seen)
    ids = {answered.sender.id for answered in seen.answers.values() if answered.sender.id}
    for kind, answered in seen.answers.items():
        if answered.said is not None and (answered.sender.session in ("made-up", "ended") or kind == "none-post"):
            name = f"{server}-{kind}"
            yield f"{name}.txt", _entry(name, server, version, kind, answered, ids)


def _server(seen: Seen) -> tuple[str, str]:
    info = seen.result("initialize").get("serverInfo")
    said = info if isinstance(info, dict) else {}
    name = re.sub(r"[^a-z0-9]+", "-", str(said.get("name", "")).lower()).strip("-")
    return name or "server", str(said.get("version", "unknown"))


def _entry(name: str, server: str, version: str, kind: str, answered: Answered, ids: set[str]) -> str:
    said, judgement = answered.said, judged(answered)
    assert said is not None, "only answers are written"
    assert judgement is not None, "each has a verdict"
    asked = {
        "http_method": answered.http_method,
        "rpc_method": answered.rpc_method,
        "rpc_id": REQUEST_ID if answered.rpc_method else None,
        "protocol_version_header": answered.sender.version,
        "session": "none" if answered.sender.session == "none" else "stale",
    }
    lines = [
        f"id: {name}",
        f"server: {server}",
        f"versions: {version}",
        f"evidence: wire (mcp-sidecar probe; {answered.sender.session} id)",
        f"kind: {kind}",
        f"request: {json.dumps(asked)}",
        f"expect: {judgement.verdict.name}",
    ]
    if judgement.signature is not None:
        lines.append(f"signature: {judgement.signature.name}")
    return "\n".join([*lines, "", _answer(said, answered.sender.id, ids)])


def _answer(said: Said, own_id: str | None, ids: set[str]) -> str:
    kept = [f"{name.lower()}: {value}" for name, value in said.headers if name.lower() in KEPT_HEADERS]
    phrase = HTTPStatus(said.status).phrase if said.status in set(HTTPStatus) else ""
    text = "\n".join([f"HTTP/1.1 {said.status} {phrase}".rstrip(), *kept, "", said.body.decode("utf-8", "replace")])
    return without_secrets(text, own_id, ids)


def without_secrets(text: str, own_id: str | None, ids: set[str]) -> str:
    """The text with places in it for session ids, and without what looks like a credential."""
    for each in sorted(ids, key=len, reverse=True):
        text = text.replace(each, "{SID}" if each == own_id else "{OTHER_SID}")
    return _SECRETS.sub(_made_up, text)


def _made_up(found: re.Match[str]) -> str:
    if found["key"]:
        return f"{found['key']}{found['between']}made-up"
    return f"{found['scheme']}made-up" if found["scheme"] else "made-up"
