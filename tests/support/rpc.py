"""Tables: the RPC methods and tools of the fake upstream. The rule: nothing here knows about HTTP or connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.behaviour import MODERN, Behaviour
from tests.support.ledger import Execution
from tests.support.streams import Message, Session, StreamLog

Result = dict[str, Any]

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


class RpcError(Exception):
    """Becomes a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def as_object(self) -> Result:
        extra = {} if self.data is None else {"data": self.data}
        return {"code": self.code, "message": self.message, **extra}


@dataclass(slots=True, kw_only=True)
class Call:
    """One request being executed. ``gate`` is the event that the tool ``slow`` waits for."""

    method: str
    params: Mapping[str, Any]
    behaviour: Behaviour
    session: Session | None
    execution: Execution
    log: StreamLog
    gate: asyncio.Event

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.execution.arguments

    def notify(self, method: str, params: Message) -> None:
        self.log.append({"jsonrpc": "2.0", "method": method, "params": params})


async def execute(call: Call) -> Result:
    """Run one request. Raises ``RpcError``."""
    method = _METHODS.get(call.method)
    if method is None:
        raise RpcError(METHOD_NOT_FOUND, "Method not found")
    if call.method in call.behaviour.refused_methods:
        raise RpcError(INVALID_PARAMS, "Not this time")
    return await method(call)


def known_method(method: str) -> bool:
    return method in _METHODS


# -- tools ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """``streams`` says that the tool sends messages before its response, which only an SSE answer can carry."""

    run: Callable[[Call], Awaitable[Result]]
    annotations: Mapping[str, bool] = field(default_factory=dict)
    streams: bool = False

    def listed(self, name: str) -> Result:
        hints = {"annotations": dict(self.annotations)} if self.annotations else {}
        return {"name": name, "description": f"The tool {name}.", "inputSchema": {"type": "object"}, **hints}


def _text(call: Call, text: str, *, is_error: bool = False) -> Result:
    stamp = {"execution": call.execution.number, "process": call.execution.process}
    return {"content": [{"type": "text", "text": text}], "isError": is_error, "_meta": stamp}


async def _echo(call: Call) -> Result:
    return _text(call, str(call.arguments.get("text", "")))


async def _put(call: Call) -> Result:
    return _text(call, f"{call.arguments.get('key')} is {call.arguments.get('value')}")


async def _charge(call: Call) -> Result:
    return _text(call, f"charged {call.arguments.get('amount', 1)}")


async def _fail(call: Call) -> Result:
    return _text(call, "it failed", is_error=True)


async def _slow(call: Call) -> Result:
    await call.gate.wait()
    return _text(call, "at last")


async def _big(call: Call) -> Result:
    return _text(call, "x" * int(call.arguments.get("bytes", 1024)))


async def _progress(call: Call) -> Result:
    token = (call.params.get("_meta") or {}).get("progressToken")
    steps = int(call.arguments.get("steps", 3))
    for step in range(1, steps + 1) if token is not None else ():
        call.notify("notifications/progress", {"progressToken": token, "progress": step, "total": steps})
    if call.arguments.get("wait"):
        await call.gate.wait()
    return _text(call, f"{steps} steps")


_QUESTIONS: dict[str, tuple[str, Message]] = {
    "elicitation": (
        "elicitation/create",
        {"message": "Go on?", "requestedSchema": {"type": "object", "properties": {}}},
    ),
    "sampling": ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
    "roots": ("roots/list", {}),
    "ping": ("ping", {}),
}


async def _ask(call: Call) -> Result:
    if call.session is None:
        raise RpcError(INTERNAL_ERROR, "No session to ask in")
    method, params = _QUESTIONS[str(call.arguments.get("kind", "elicitation"))]
    reply = await call.session.ask(call.log, method, params)
    return _text(call, f"the client said {sorted(reply.get('result') or reply.get('error') or ())}")


TOOLS: dict[str, Tool] = {
    "echo": Tool(run=_echo, annotations={"readOnlyHint": True}),
    "put": Tool(run=_put, annotations={"readOnlyHint": False, "idempotentHint": True}),
    "charge": Tool(run=_charge),
    "fail": Tool(run=_fail),
    "slow": Tool(run=_slow),
    "slow_read": Tool(run=_slow, annotations={"readOnlyHint": True}),
    "ask": Tool(run=_ask, streams=True),
    "progress": Tool(run=_progress, streams=True),
    "big": Tool(run=_big, annotations={"readOnlyHint": True}),
}


def tool_of(method: str, params: Mapping[str, Any]) -> str | None:
    """The tool that a ``tools/call`` names."""
    name = params.get("name")
    return name if method == "tools/call" and isinstance(name, str) else None


async def _call_tool(call: Call) -> Result:
    name = tool_of(call.method, call.params)
    if name in TOOLS:
        return await TOOLS[name].run(call)
    if name in call.behaviour.extra_tools:
        return await _echo(call)
    raise RpcError(INVALID_PARAMS, f"Unknown tool: {name}")


async def _list_tools(call: Call) -> Result:
    listed = [tool.listed(name) for name, tool in TOOLS.items()]
    listed += [Tool(run=_echo).listed(name) for name in call.behaviour.extra_tools]
    size = call.behaviour.page_size
    if size is None:
        return {"tools": listed}
    start = _page_start(call)
    following = {"nextCursor": f"{call.execution.process}:{start + size}"} if start + size < len(listed) else {}
    return {"tools": listed[start : start + size], **following}


def _page_start(call: Call) -> int:
    cursor = call.params.get("cursor")
    if cursor is None:
        return 0
    process, _, start = str(cursor).partition(":")
    if process != str(call.execution.process) or not start.isdigit():
        raise RpcError(INVALID_PARAMS, "Invalid cursor")
    return int(start)


# -- everything else --------------------------------------------------------------------------------------------------


def server_face(behaviour: Behaviour, protocol_version: str) -> Result:
    """An InitializeResult."""
    instructions = {} if behaviour.instructions is None else {"instructions": behaviour.instructions}
    return {
        "protocolVersion": protocol_version,
        "capabilities": dict(behaviour.capabilities),
        "serverInfo": {"name": behaviour.server_name, "version": behaviour.server_version},
        **instructions,
    }


async def _initialize(call: Call) -> Result:
    version = (
        call.session.protocol_version if call.session else call.behaviour.negotiate(call.params.get("protocolVersion"))
    )
    return server_face(call.behaviour, version)


async def _discover(call: Call) -> Result:
    face = server_face(call.behaviour, MODERN)
    del face["protocolVersion"]
    return {"resultType": "complete", "supportedVersions": [MODERN, *call.behaviour.protocol_versions], **face}


async def _nothing(call: Call) -> Result:
    return {}


async def _set_level(call: Call) -> Result:
    if call.session:
        call.session.log_level = str(call.params.get("level"))
    return {}


async def _subscribe(call: Call) -> Result:
    if call.session:
        call.session.subscriptions.add(str(call.params.get("uri")))
    return {}


async def _unsubscribe(call: Call) -> Result:
    if call.session:
        call.session.subscriptions.discard(str(call.params.get("uri")))
    return {}


async def _list_resources(call: Call) -> Result:
    names = ("one", "two", *call.behaviour.extra_resources)
    return {"resources": [{"uri": f"fake://{name}", "name": name} for name in names]}


async def _list_templates(call: Call) -> Result:
    more = [{"uriTemplate": f"fake://{name}/{{id}}", "name": name} for name in call.behaviour.extra_templates]
    return {"resourceTemplates": [{"uriTemplate": "fake://{name}", "name": "any"}, *more]}


async def _read_resource(call: Call) -> Result:
    uri = str(call.params.get("uri"))
    if not uri.startswith("fake://"):
        raise RpcError(-32002, "Resource not found", {"uri": uri})
    return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": f"the text of {uri}"}]}


async def _list_prompts(call: Call) -> Result:
    more = [{"name": name} for name in call.behaviour.extra_prompts]
    return {"prompts": [{"name": "greet", "description": "Greets."}, *more]}


async def _get_prompt(call: Call) -> Result:
    if call.params.get("name") != "greet":
        raise RpcError(INVALID_PARAMS, "Unknown prompt")
    return {"messages": [{"role": "user", "content": {"type": "text", "text": "Hello."}}]}


async def _complete(call: Call) -> Result:
    return {"completion": {"values": ["one", "two"], "hasMore": False}}


async def _listen(call: Call) -> Result:
    call.notify("notifications/subscriptions/acknowledged", {})
    await call.gate.wait()
    return {}


_METHODS: dict[str, Callable[[Call], Awaitable[Result]]] = {
    "initialize": _initialize,
    "ping": _nothing,
    "server/discover": _discover,
    "subscriptions/listen": _listen,
    "tools/list": _list_tools,
    "tools/call": _call_tool,
    "resources/list": _list_resources,
    "resources/templates/list": _list_templates,
    "resources/read": _read_resource,
    "resources/subscribe": _subscribe,
    "resources/unsubscribe": _unsubscribe,
    "prompts/list": _list_prompts,
    "prompts/get": _get_prompt,
    "logging/setLevel": _set_level,
    "completion/complete": _complete,
}

MODERN_ONLY = frozenset({"server/discover", "subscriptions/listen"})
LEGACY_ONLY = frozenset({"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"})


def streams_before_answering(method: str, params: Mapping[str, Any]) -> bool:
    """Whether only an SSE answer can carry what this request will send."""
    name = tool_of(method, params)
    return method == "subscriptions/listen" or (name in TOOLS and TOOLS[name].streams)
