"""Event streams as real servers sent them (curl, revision 2025-11-25), with line feeds put for their newlines.

Each is followed by what a client reads in it. Long capability lists are cut down; nothing else was changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_sidecar.wire.sse import Event


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stream and its events, in order; pieces that say nothing are left out of ``events``."""

    source: str
    text: str
    events: tuple[Event, ...]


PYTHON_CALL = Recorded(
    "mcp 1.30.0 with an event store and retry_interval, tools/call (sent with CRLF)",
    "id: 3\ndata: \nretry: 3000\n\n"
    'id: 4\nevent: message\ndata: {"method":"notifications/message","params":{"level":"info","data":"grüße €"},'
    '"jsonrpc":"2.0"}\n\n'
    'id: 5\nevent: message\ndata: {"method":"notifications/progress","params":{"progressToken":1,"progress":1.0},'
    '"jsonrpc":"2.0"}\n\n'
    'id: 6\nevent: message\ndata: {"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"döne"}]}}\n\n',
    (
        Event(data="", id="3", retry=3000),
        Event(
            "message",
            '{"method":"notifications/message","params":{"level":"info","data":"grüße €"},"jsonrpc":"2.0"}',
            "4",
        ),
        Event(
            "message",
            '{"method":"notifications/progress","params":{"progressToken":1,"progress":1.0},"jsonrpc":"2.0"}',
            "5",
        ),
        Event("message", '{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"döne"}]}}', "6"),
    ),
)

TYPESCRIPT_CALL = Recorded(
    "@modelcontextprotocol/server-everything, tools/call (sent with LF)",
    "id: f7b3ec7e-ea2c-4e95-bacd-dc1ab58fcfaa\ndata: \n\n"
    "event: message\nid: 515358c3-6cb6-471f-8d67-a43c5d0ea3f7\n"
    'data: {"method":"notifications/progress","params":{"progress":1,"total":2,"progressToken":1},"jsonrpc":"2.0"}\n\n'
    "event: message\nid: 101cb8c3-5cff-4c2f-99c7-e00a4c19fce0\n"
    'data: {"result":{"content":[]},"jsonrpc":"2.0","id":1}\n\n',
    (
        Event(data="", id="f7b3ec7e-ea2c-4e95-bacd-dc1ab58fcfaa"),
        Event(
            "message",
            '{"method":"notifications/progress","params":{"progress":1,"total":2,"progressToken":1},"jsonrpc":"2.0"}',
            "515358c3-6cb6-471f-8d67-a43c5d0ea3f7",
        ),
        Event("message", '{"result":{"content":[]},"jsonrpc":"2.0","id":1}', "101cb8c3-5cff-4c2f-99c7-e00a4c19fce0"),
    ),
)

GO_ERROR = Recorded(
    "go-sdk, tools/list before notifications/initialized",
    'event: message\ndata: {"jsonrpc":"2.0","id":7,"error":{"code":0,"message":"method \\"tools/list\\" is invalid '
    'during session initialization"}}\n\n',
    (
        Event(
            "message",
            '{"jsonrpc":"2.0","id":7,"error":{"code":0,"message":"method \\"tools/list\\" is invalid during session '
            'initialization"}}',
        ),
    ),
)

MADE_UP = Recorded(
    "made up: everything the syntax allows",
    "\ufeff: first\n:second\n\nevent:a\nevent: b\n:inside\ndata\ndata:x\ndata:  y\nid:1\nid\nunknown: z\n"
    "retry: 1x\n\n\n\n: between\nretry: 20\n\ndata: last\n\n",
    (Event("b", "\nx\n y", ""), Event(retry=20), Event(data="last")),
)

RECORDED = (PYTHON_CALL, TYPESCRIPT_CALL, GO_ERROR, MADE_UP)
