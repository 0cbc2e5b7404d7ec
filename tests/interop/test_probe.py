"""`mcp-sidecar probe` on real servers: what it says beforehand is what the sidecar does when they restart.

Each test starts its server; a restart is done by the test, at the moment when the command of ``--restart`` asks for it.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_sidecar.commands.dev.ports import free_port
from tests.interop.catalogue import MARKERS, SERVERS, VENVS, ServerSpec
from tests.interop.processes import Server, Watched, until
from tests.interop.test_oauth import SERVER as BEHIND_OAUTH

pytestmark = pytest.mark.interop

TIMEOUT_S = 120.0
MODERN = "2026-07-28"
CASES = [
    pytest.param(
        spec,
        id=spec.name,
        marks=[getattr(pytest.mark, MARKERS[spec.installed_by])] if spec.installed_by in MARKERS else [],
    )
    for spec in SERVERS
]
WITHOUT_SESSIONS = """\
import sys, fastmcp
server = fastmcp.FastMCP("interop")
server.tool(lambda: "x", name="x")
server.run(transport="http", stateless_http=True, show_banner=False, host="127.0.0.1", port=int(sys.argv[1]))
"""
ONLY_MODERN = """\
import sys, uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.responses import JSONResponse
inner = MCPServer("interop").streamable_http_app()
async def app(scope, receive, send):
    if scope["type"] == "http" and dict(scope["headers"]).get(b"mcp-protocol-version") != b"2026-07-28":
        error = {"code": -32022, "message": "Unsupported protocol version", "data": {"supported": ["2026-07-28"]}}
        await JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, 400)(scope, receive, send)
    else:
        await inner(scope, receive, send)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
"""


@contextmanager
def served(spec: ServerSpec, folder: Path) -> Iterator[Server]:
    """Start a server of the suite; skip where it is not installed."""
    if spec.missing:
        pytest.skip(spec.missing)
    server = Server(spec, folder / "ledger", {})
    server.start()
    try:
        yield server
    finally:
        server.kill()


def scripted(script: str, environment: str) -> ServerSpec:
    """A server that is a few lines on an SDK of the suite."""
    python = VENVS / environment / "bin" / "python"
    return ServerSpec(
        name=f"{environment}-script",
        loses_sessions_with="",
        command=lambda port: [str(python), "-c", script, str(port)],
        needs=(VENVS / environment / ".pins",),
        installed_by="python",
    )


def probe(url: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Its exit status and what it says to scripts."""
    done = subprocess.run(
        [sys.executable, "-m", "mcp_sidecar", "probe", url, "--json", *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(said: dict[str, Any], topic: str) -> str:
    """What it says about one thing; empty where it says nothing."""
    return next((str(each["text"]) for each in said["findings"] if each["topic"] == topic), "")


def probe_over_a_restart(server: Server, folder: Path) -> tuple[int, dict[str, Any]]:
    """Probe with ``--restart``, and restart the server for real when its command runs."""
    asked, done = folder / "asked", folder / "done"
    command = f"touch {shlex.quote(str(asked))}; until test -e {shlex.quote(str(done))}; do sleep 0.05; done"
    running = Watched([sys.executable, "-m", "mcp_sidecar", "probe", server.url, "--json", "--restart", command], {})
    try:
        until(lambda: asked.exists() or not running.running, TIMEOUT_S, lambda: "\n".join(running.lines))
        server.restart()
        done.touch()
        until(lambda: not running.running, TIMEOUT_S, lambda: "\n".join(running.lines))
    finally:
        status = running.stop()
    return status, json.loads("\n".join(running.lines))


@pytest.mark.parametrize("spec", CASES)
def test_what_it_says_is_what_the_sidecar_does(spec: ServerSpec, tmp_path: Path) -> None:
    """The status that the suite knows, the row by which the sidecar then tells the loss, the revisions; no tool has run."""
    with served(spec, tmp_path) as server:
        status, said = probe_over_a_restart(server, tmp_path)
        assert server.ledger_lines() == []
    assert (status, said["outcome"], said["restart"]["healed"]) == (0, "healable", True)
    steps = "\n".join(said["restart"]["steps"])
    answer = said["answers"]["made-up-post"]
    expected = re.match(r"\d+", spec.loses_sessions_with)
    if expected is None:
        assert answer["status"] == 200 and "takes any session id" in said["summary"]
        assert "forgotten" not in steps
    else:
        assert answer["status"] == int(expected[0]) and answer["verdict"] == "session_lost"
        assert f"forgotten the session: {answer['status']}, told by {answer['signature']}" in steps
    assert (MODERN in found(said, "revisions")) is spec.serves_sessionless


@pytest.mark.parametrize("environment", ["fastmcp-2.14.7", "fastmcp-4.1.2"])
def test_a_server_without_sessions(environment: str, tmp_path: Path) -> None:
    """There is nothing to heal: its clients lose nothing in a restart, and calls wait for it."""
    with served(scripted(WITHOUT_SESSIONS, environment), tmp_path) as server:
        status, said = probe_over_a_restart(server, tmp_path)
    assert (status, said["restart"]["healed"]) == (0, True)
    assert said["summary"].startswith("no sessions: nothing to heal")


def test_a_server_of_2026_only(tmp_path: Path) -> None:
    """It has no handshake and no sessions; everything passes."""
    with served(scripted(ONLY_MODERN, "mcp-2.3.0"), tmp_path) as server:
        status, said = probe(server.url)
    assert status == 0 and said["summary"].startswith(f"no sessions ({MODERN})")


def test_a_server_behind_oauth(tmp_path: Path) -> None:
    """Without a token it cannot be told; with one it is told like any other, and no token is printed."""
    with served(BEHIND_OAUTH, tmp_path) as server:
        status, said = probe(server.url)
        assert status == 3 and "login" in said["summary"] and "OAuth" in found(said, "credentials")
        token = token_of(f"http://127.0.0.1:{server.port}")
        status, said = probe(server.url, "--header", f"Authorization: Bearer {token}")
    assert (status, said["answers"]["wrong-token"]["status"]) == (0, 401)
    assert said["answers"]["made-up-post"]["signature"] == "python-404"
    assert token not in json.dumps(said)


def token_of(origin: str) -> str:
    """An access token, by the code flow of its authorization server, whose user consents to everything."""

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            """Let the answer be seen."""

    client = secrets.token_hex(4)
    query = urllib.parse.urlencode({"client_id": client, "redirect_uri": "http://127.0.0.1:1/back", "state": "s"})
    opener = urllib.request.build_opener(NoRedirect, urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{origin}/authorize?{query}")
    except urllib.error.HTTPError as answer:
        back = urllib.parse.urlsplit(answer.headers["Location"])
    code = urllib.parse.parse_qs(back.query)["code"][0]
    form = urllib.parse.urlencode({"grant_type": "authorization_code", "code": code}).encode()
    with opener.open(f"{origin}/token", form) as tokens:
        return str(json.load(tokens)["access_token"])


def test_a_plain_web_server(tmp_path: Path) -> None:
    """It is no MCP server, whatever it says to a POST."""
    spec = replace(
        scripted("", "mcp-1.30.0"),
        command=lambda port: [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
    )
    with served(spec, tmp_path) as server:
        status, said = probe(server.url)
    assert status == 4 and "no MCP endpoint" in said["summary"]


def test_a_port_that_nobody_listens_on() -> None:
    """Told as such."""
    status, said = probe(f"http://127.0.0.1:{free_port()}/mcp")
    assert (status, said["summary"]) == (4, "nobody answers (no connection)")
