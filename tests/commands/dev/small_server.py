"""An MCP server for the tests of `dev`, as a developer's file: `python small_server.py`, on the port in ``PORT``.

The standard library only, so that it starts fast. It forgets its sessions with its process, speaks on a listening stream, and has
the tools in ``TOOLS``; the tests copy it and edit that line. With ``ONE_CLIENT`` it has one transport for its whole life. The tool ``slow`` takes its time. Its lists wait for the file that
``LISTS_GATE`` names, if any.
"""

import json
import os
import signal
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOOLS = ["echo"]
PORT = int(os.environ.get("PORT", "0"))
PROMISES = False
ONE_CLIENT = False
SLOW_S = 0.7
LISTS_GATE = ""
SESSIONS: set[str] = set()
HAD: list[str] = []
ENDED = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """Streamable HTTP, no more than the tests need."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep silent."""

    def answer(self, status: int, value: object = None, session: str | None = None) -> None:
        """Give JSON, or nothing."""
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        if session:
            self.send_header("Mcp-Session-Id", session)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def is_known(self) -> bool:
        """Whether the session is one of this process, or none is needed."""
        return (
            self.headers.get("Mcp-Session-Id") in SESSIONS or self.headers.get("MCP-Protocol-Version") == "2026-07-28"
        )

    def lost(self) -> None:
        """As the Python SDK says it."""
        error = {"code": -32600, "message": "Session not found"}
        self.answer(404, {"jsonrpc": "2.0", "id": "server-error", "error": error})

    def do_POST(self) -> None:
        """A message."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method, key = message.get("method"), message.get("id")
        if method == "initialize":
            if ONE_CLIENT and HAD:
                error = {"code": -32600, "message": "Invalid Request: Server already initialized"}
                return self.answer(400, {"jsonrpc": "2.0", "id": None, "error": error})
            session = uuid.uuid4().hex
            SESSIONS.add(session)
            HAD.append(session)
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {"listChanged": PROMISES}},
                "serverInfo": {"name": "small", "version": "1"},
            }
            return self.answer(200, {"jsonrpc": "2.0", "id": key, "result": result}, session)
        if not self.is_known:
            return self.lost()
        if key is None:
            return self.answer(202)
        if method == "tools/list":
            while LISTS_GATE and not Path(LISTS_GATE).exists():
                time.sleep(0.01)
            tools = [{"name": name, "inputSchema": {"type": "object", "properties": {"text": {}}}} for name in TOOLS]
            return self.answer(200, {"jsonrpc": "2.0", "id": key, "result": {"tools": tools}})
        if method == "tools/call":
            if message["params"]["name"] == "slow":
                time.sleep(SLOW_S)
            text = f"{message['params']['name']} of {os.getpid()}"
            result = {"content": [{"type": "text", "text": text}], "isError": message["params"]["name"] not in TOOLS}
            return self.answer(200, {"jsonrpc": "2.0", "id": key, "result": result})
        return self.answer(200, {"jsonrpc": "2.0", "id": key, "result": {}})

    def do_GET(self) -> None:
        """Listen."""
        if not self.is_known:
            return self.lost()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()
        ENDED.wait()
        return None

    def do_DELETE(self) -> None:
        """End a session."""
        SESSIONS.discard(self.headers.get("Mcp-Session-Id", ""))
        self.answer(200)


def main() -> None:
    """Serve until SIGTERM."""
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("serving", *sys.argv[1:], flush=True)
    server.serve_forever()


main()
