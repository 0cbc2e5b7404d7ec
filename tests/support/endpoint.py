"""What the fake upstream does with a request: the MCP server proper, without sockets.

The rule: ``accept`` decides and acts, at once and in the order in which real servers check (host, credentials, session, form);
it returns what to send, it never sends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.behaviour import MINTS, MODERN, Answers, Behaviour, EarlyRequest, Priming, SessionMode
from tests.support.dialects import Filled, Said
from tests.support.faults import AS_USUAL, Form
from tests.support.http1 import Headers, HttpRequest
from tests.support.ledger import Execution, Ledger, Reply
from tests.support.rpc import (
    LEGACY_ONLY,
    METHOD_NOT_FOUND,
    MODERN_ONLY,
    Call,
    RpcError,
    execute,
    known_method,
    streams_before_answering,
    tool_of,
)
from tests.support.streams import Message, Session, StreamLog

SESSION_HEADER = "Mcp-Session-Id"
VERSION_META = "io.modelcontextprotocol/protocolVersion"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An answer that is known at once."""

    status: int
    headers: Headers = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Computed:
    """A JSON answer, known once ``log`` is finished."""

    log: StreamLog
    headers: Headers
    batch: bool = False
    cancel: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Streamed:
    """An SSE answer: ``log`` from ``start`` on. ``cancel`` is what happens when the client leaves."""

    log: StreamLog
    headers: Headers
    start: int = 0
    event_ids: bool = False
    standalone_of: Session | None = None
    cancel: Callable[[], object] | None = None


Accepted = Outgoing | Computed | Streamed


@dataclass(slots=True)
class Endpoint:
    """One MCP endpoint. ``gate`` is what the slow tool waits for; ``routes`` answer other paths."""

    behaviour: Behaviour
    ledger: Ledger
    path: str
    authorities: tuple[str, ...]
    gate: asyncio.Event
    process: int = 1
    sessions: dict[str, Session] = field(default_factory=dict)
    terminated: set[str] = field(default_factory=set)
    routes: dict[str, Outgoing] = field(default_factory=dict)
    _work: dict[asyncio.Task[None], tuple[str | None, object]] = field(default_factory=dict)

    def accept(self, request: HttpRequest, form: Form = AS_USUAL) -> Accepted:
        refusal = self._foreign_host(request)
        if refusal is not None:
            return refusal
        if request.path.rstrip("/") != self.path.rstrip("/"):
            return self._other_path(request)
        refusal = self._bad_credentials(request)
        if refusal is not None:
            return refusal
        match request.method:
            case "POST":
                return self._post(request, form)
            case "GET":
                return self._get(request)
            case "DELETE":
                return self._delete(request)
        return Outgoing(405, (("Allow", "GET, POST, DELETE"),))

    def drop_work(self) -> list[asyncio.Task[None]]:
        """Everything that runs ends here, unfinished and unanswered. Returns what is still ending."""
        for task in self._work:
            task.cancel()
        return list(self._work)

    # -- checks -------------------------------------------------------------------------------------------------------

    def _foreign_host(self, request: HttpRequest) -> Outgoing | None:
        if not self.behaviour.check_host or request.header("host") in self.authorities:
            return None
        return Outgoing(421, (("Content-Type", "text/plain"),), b"Invalid Host header")

    def _bad_credentials(self, request: HttpRequest) -> Outgoing | None:
        accepted = self.behaviour.authorization
        if accepted is None or request.header("authorization") in accepted:
            return None
        challenge = self.behaviour.www_authenticate
        headers = (("Content-Type", "application/json"),) + ((("WWW-Authenticate", challenge),) if challenge else ())
        return Outgoing(401, headers, b'{"error":"invalid_token","error_description":"Authentication required"}')

    def _session_of(self, request: HttpRequest, messages: Sequence[Message]) -> Session | Outgoing:
        """The session of a request, or what a server says that has none for it."""
        sid = request.header(SESSION_HEADER)
        if sid is None:
            missing, minted = self.behaviour.dialect_row.missing, MINTS[self.behaviour.session_mint]()
            return _outgoing(missing.filled(sid="", rpc_id=_first_id(messages), other_sid=minted))
        session = self.sessions.get(sid)
        if session is None and self.behaviour.sessions is SessionMode.ADOPTING:
            return self._open_session(request, sid, "2025-03-26", initialized=True)
        if session is None and self.behaviour.sessions is SessionMode.OPENING:
            minted = MINTS[self.behaviour.session_mint]()
            return self._open_session(request, minted, "2025-03-26", initialized=True)
        if session is None or self._belongs_to_another(session, request):
            return self._lost(request, sid, messages)
        return session

    def _belongs_to_another(self, session: Session, request: HttpRequest) -> bool:
        return self.behaviour.bind_principal and session.authorization != request.header("authorization")

    def _lost(self, request: HttpRequest, sid: str, messages: Sequence[Message]) -> Outgoing:
        dialect = self.behaviour.dialect_row
        said: Said = dialect.lost(request.method)
        if sid in self.terminated and dialect.terminated:
            said = dialect.terminated
        elif self.sessions and self.behaviour.sessions is SessionMode.SINGLE and dialect.occupied:
            said = dialect.occupied
        method = str(messages[0].get("method", "")) if messages else ""
        other = next(iter(self.sessions), None) or (MINTS[self.behaviour.session_mint]() if said.shows_other else "")
        return _outgoing(said.filled(sid=sid, rpc_id=_first_id(messages), method=method, other_sid=other))

    def _bad_form(self, request: HttpRequest, session: Session | None) -> Outgoing | None:
        accept = request.header("accept") or ""
        if "application/json" not in accept or "text/event-stream" not in accept:
            return _rpc_refusal(
                406, -32600, "Not Acceptable: Client must accept both application/json and text/event-stream"
            )
        if not (request.header("content-type") or "").startswith("application/json"):
            return _rpc_refusal(415, -32600, "Unsupported Media Type: Content-Type must be application/json")
        version = request.header("mcp-protocol-version")
        if session is not None and version is not None and version not in self.behaviour.protocol_versions:
            return _rpc_refusal(400, -32600, f"Bad Request: Unsupported protocol version: {version}")
        return None

    # -- POST ---------------------------------------------------------------------------------------------------------

    def _post(self, request: HttpRequest, form: Form) -> Accepted:
        messages, batch = parse(request.body)
        if self.behaviour.modern and messages and is_modern(request, messages[0]):
            return self._modern(request, messages[0], form)
        if messages and any(message.get("method") == "initialize" for message in messages):
            return self._initialize(request, messages, form)
        session: Session | None = None
        if self.behaviour.sessions is not SessionMode.STATELESS:
            found = self._session_of(request, messages or ())
            if isinstance(found, Outgoing):
                return found
            session = found
        if messages is None or (batch and not self.behaviour.batches):
            return _rpc_refusal(400, -32700, "Parse error")
        return self._bad_form(request, session) or self._serve_messages(messages, batch, session, form)

    def _serve_messages(
        self, messages: Sequence[Message], batch: bool, session: Session | None, form: Form
    ) -> Accepted:
        requests = [message for message in messages if "method" in message and "id" in message]
        refusal = self._too_early(session) if requests and session and not session.initialized else None
        if refusal is not None and requests[0]["method"] != "ping":
            return refusal(requests[0])
        for message in messages:
            if "method" not in message:
                self._take_response(session, message)
            elif "id" not in message:
                self._take_notification(session, message)
        if not requests:
            return Outgoing(202, self._session_headers(session))
        return self._start(requests, session, form, batch=batch)

    def _too_early(self, session: Session) -> Callable[[Message], Outgoing] | None:
        if self.behaviour.early_request is EarlyRequest.REFUSED:
            return lambda message: _rpc_refusal(200, -32602, "Invalid request parameters", message["id"])
        if self.behaviour.early_request is EarlyRequest.KILLS_SESSION:
            del self.sessions[session.id]
            died = b"Encounter an error when accept message: Session error: Session service terminated"
            return lambda message: Outgoing(500, (), died)
        return None

    def _take_response(self, session: Session | None, message: Message) -> None:
        expected = session is not None and session.answered(message)
        sid = session.id if session else None
        self.ledger.add_reply(
            Reply(process=self.process, session_id=sid, rpc_id=message.get("id"), message=message, expected=expected)
        )

    def _take_notification(self, session: Session | None, message: Message) -> None:
        self._execution(message, session).finished = True
        if message["method"] == "notifications/initialized" and session:
            session.initialized = True
        if message["method"] == "notifications/cancelled":
            self._cancel((session.id if session else None, _params(message).get("requestId")))

    def _cancel(self, key: tuple[str | None, object]) -> None:
        for task, running in list(self._work.items()):
            if running == key:
                task.cancel(_BY_CLIENT)

    def _initialize(self, request: HttpRequest, messages: Sequence[Message], form: Form) -> Accepted:
        refusal = self._refused_initialize(request, messages)
        if refusal is not None:
            return refusal
        message = messages[0]
        session = None
        if self.behaviour.sessions is not SessionMode.STATELESS:
            version = self.behaviour.negotiate(_params(message).get("protocolVersion"))
            session = self._open_session(request, MINTS[self.behaviour.session_mint](), version)
        return self._start([message], session, form, opening=True)

    def _refused_initialize(self, request: HttpRequest, messages: Sequence[Message]) -> Outgoing | None:
        sid = request.header(SESSION_HEADER)
        rpc_id = messages[0].get("id")
        single = self.behaviour.sessions is SessionMode.SINGLE
        capacity = self.behaviour.max_sessions
        if (
            self.behaviour.sessions in (SessionMode.MANY, SessionMode.SINGLE)
            and sid is not None
            and sid not in self.sessions
        ):
            return self._lost(request, sid, messages)
        if (single and self.sessions) or sid in self.sessions:
            return _rpc_refusal(400, -32600, "Invalid Request: Server already initialized")
        if len(messages) > 1 or rpc_id is None:
            return _rpc_refusal(400, -32600, "Invalid Request: initialize must be a request of its own")
        if not _valid_initialize(_params(messages[0])):
            return _rpc_refusal(400, -32602, "Invalid request parameters", rpc_id)
        if capacity is not None and len(self.sessions) >= capacity:
            return _rpc_refusal(503, -32603, "Too many open sessions")
        return self._bad_form(request, None)

    def _open_session(self, request: HttpRequest, sid: str, version: str, *, initialized: bool = False) -> Session:
        session = Session(sid, self.process, version, request.header("authorization"), initialized)
        self.sessions[sid] = session
        return session

    def _session_headers(self, session: Session | None, *, opening: bool = False) -> tuple[tuple[str, str], ...]:
        shown = session is not None and (opening or self.behaviour.echo_session_id)
        return (("mcp-session-id", session.id),) if session is not None and shown else ()

    def _modern(self, request: HttpRequest, message: Message, form: Form) -> Accepted:
        wanted = (_params(message).get("_meta") or {}).get(VERSION_META, request.header("mcp-protocol-version"))
        method, rpc_id = message.get("method"), message.get("id")
        if wanted != MODERN:
            supported = {"supported": [MODERN, *self.behaviour.protocol_versions], "requested": wanted}
            return _rpc_refusal(400, -32022, "Unsupported protocol version", rpc_id, supported)
        if request.header("mcp-protocol-version") != wanted:
            return _rpc_refusal(400, -32020, "Header mismatch", rpc_id)
        if not isinstance(method, str) or not known_method(method) or method in LEGACY_ONLY:
            return _rpc_refusal(404, METHOD_NOT_FOUND, "Method not found", rpc_id)
        return self._start([message], None, form, modern=True)

    # -- work ---------------------------------------------------------------------------------------------------------

    def _start(
        self,
        requests: Sequence[Message],
        session: Session | None,
        form: Form,
        *,
        batch: bool = False,
        opening: bool = False,
        modern: bool = False,
    ) -> Accepted:
        log = session.new_stream() if session else StreamLog("post")
        if form.event_ids or (form.event_ids is None and self.behaviour.priming is not Priming.NONE):
            log.append(None)
        calls = [self._call(message, session, log) for message in requests]
        task = asyncio.get_running_loop().create_task(self._run(calls, log, modern))
        self._work[task] = (session.id if session else None, requests[0]["id"])
        task.add_done_callback(self._work.pop)
        headers = self._session_headers(session, opening=opening)
        cancel = task.cancel if modern else None
        if not self._wants_sse(requests, form, opening):
            return Computed(log, (("Content-Type", "application/json"), *headers), batch, cancel)
        event_ids = form.event_ids if form.event_ids is not None else self._gives_event_ids()
        return Streamed(log, (*_SSE_HEADERS, *headers), 0, event_ids, cancel=cancel)

    def _wants_sse(self, requests: Sequence[Message], form: Form, opening: bool) -> bool:
        if form.sse is not None:
            return form.sse
        usual = self.behaviour.initialize_answers if opening else None
        return (usual or self.behaviour.answers) is Answers.SSE or any(
            streams_before_answering(str(message["method"]), _params(message)) for message in requests
        )

    def _gives_event_ids(self) -> bool:
        return self.behaviour.event_ids or self.behaviour.event_store or self.behaviour.priming is Priming.WITH_ID

    def _call(self, message: Message, session: Session | None, log: StreamLog) -> Call:
        return Call(
            method=str(message["method"]),
            params=_params(message),
            behaviour=self.behaviour,
            session=session,
            execution=self._execution(message, session),
            log=log,
            gate=self.gate,
        )

    def _execution(self, message: Message, session: Session | None) -> Execution:
        method, params = str(message["method"]), _params(message)
        tool = tool_of(method, params)
        return self.ledger.add_execution(
            Execution(
                number=self.ledger.ran + 1,
                process=self.process,
                name=tool or method,
                method=method,
                arguments=(params.get("arguments") or {}) if tool else params,
                rpc_id=message.get("id"),
                session_id=session.id if session else None,
            )
        )

    async def _run(self, calls: Sequence[Call], log: StreamLog, modern: bool) -> None:
        try:
            for call in calls:
                response = await _response(call, modern)
                call.execution.finished = True
                log.append(response, call.execution)
                self.ledger.changed()
        except Exception:
            log.finish()
            raise
        log.finish()

    # -- GET and DELETE -----------------------------------------------------------------------------------------------

    def _get(self, request: HttpRequest) -> Accepted:
        if not self.behaviour.get_streams or self.behaviour.sessions is SessionMode.STATELESS:
            return Outgoing(405, (("Allow", "POST"),))
        session = self._session_of(request, ())
        if isinstance(session, Outgoing):
            return Streamed(StreamLog("nobody"), _SSE_HEADERS) if self.behaviour.get_takes_any else session
        if "text/event-stream" not in (request.header("accept") or ""):
            return _rpc_refusal(406, -32600, "Not Acceptable: Client must accept text/event-stream")
        last_event_id = request.header("last-event-id")
        if last_event_id is not None and (self.behaviour.event_store or self.behaviour.resume_status is not None):
            return self._resume(session, last_event_id)
        if session.get_streams_open and self.behaviour.second_get_status is not None:
            return _rpc_refusal(
                self.behaviour.second_get_status, -32600, "Conflict: Only one SSE stream is allowed per session"
            )
        log = session.standalone
        return Streamed(log, self._sse_headers(session), len(log.entries), self._gives_event_ids(), session)

    def _resume(self, session: Session, last_event_id: str) -> Accepted:
        if not self.behaviour.event_store:
            return _rpc_refusal(self.behaviour.resume_status or 405, -32600, "Resuming is not supported")
        found = session.find_event(last_event_id)
        if found is None:
            return _rpc_refusal(400, -32000, "Bad Request: The specified Last-Event-ID is either invalid or expired.")
        log, start = found
        standalone_of = session if log is session.standalone else None
        return Streamed(log, self._sse_headers(session), start, True, standalone_of)

    def _sse_headers(self, session: Session) -> Headers:
        return (*_SSE_HEADERS, *self._session_headers(session))

    def _delete(self, request: HttpRequest) -> Accepted:
        if self.behaviour.delete_status == 405 or self.behaviour.sessions is SessionMode.STATELESS:
            return Outgoing(405, (("Allow", "GET, POST"),))
        session = self._session_of(request, ())
        if isinstance(session, Outgoing):
            return session
        del self.sessions[session.id]
        self.terminated.add(session.id)
        session.standalone.finish()
        return Outgoing(self.behaviour.delete_status)

    # -- other paths --------------------------------------------------------------------------------------------------

    def _other_path(self, request: HttpRequest) -> Outgoing:
        """A route that the test set, an echo of the request below ``/echo``, else 404."""
        if request.path in self.routes:
            return self.routes[request.path]
        if not request.path.startswith("/echo"):
            return Outgoing(404, (("Content-Type", "text/plain"),), b"no such path")
        seen = {
            "method": request.method,
            "target": request.target,
            "headers": request.headers,
            "body": request.body.decode("latin-1"),
        }
        return Outgoing(
            200, (("Content-Type", "application/json"), ("X-Twice", "a"), ("X-Twice", "b")), json.dumps(seen).encode()
        )


_BY_CLIENT = "by the client"
_SSE_HEADERS = (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"))


def parse(body: bytes) -> tuple[list[Message] | None, bool]:
    """The JSON-RPC messages of a body and whether it is a batch; ``None`` where it is not JSON-RPC."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return None, False
    batch = isinstance(parsed, list)
    messages = parsed if batch else [parsed]
    sound = messages and all(isinstance(m, dict) and m.get("jsonrpc") == "2.0" for m in messages)
    return (messages if sound else None), batch


def is_modern(request: HttpRequest, message: Message) -> bool:
    """Whether a request is of 2026-07-28 or later, told by the request itself."""
    if VERSION_META in (_params(message).get("_meta") or {}) or message.get("method") in MODERN_ONLY:
        return True
    return (request.header("mcp-protocol-version") or "") >= MODERN


async def _response(call: Call, modern: bool) -> Message:
    envelope = {"jsonrpc": "2.0", "id": call.execution.rpc_id}
    try:
        result = await execute(call)
    except RpcError as error:
        return {**envelope, "error": error.as_object()}
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_BY_CLIENT,):
            raise
        return {**envelope, "error": {"code": 0, "message": "Request cancelled"}}
    return {**envelope, "result": {"resultType": "complete", **result} if modern else result}


def _params(message: Message) -> Mapping[str, Any]:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def _valid_initialize(params: Mapping[str, Any]) -> bool:
    expected = {"protocolVersion": str, "capabilities": dict, "clientInfo": dict}
    return all(isinstance(params.get(name), kind) for name, kind in expected.items())


def _first_id(messages: Sequence[Message]) -> object:
    return next((message["id"] for message in messages if "id" in message), None)


def _outgoing(filled: Filled) -> Outgoing:
    return Outgoing(filled.status, filled.headers, filled.body)


def _rpc_refusal(status: int, code: int, message: str, rpc_id: object = None, data: object = None) -> Outgoing:
    error = RpcError(code, message, data).as_object()
    body = json.dumps({"jsonrpc": "2.0", "id": rpc_id, "error": error})
    return Outgoing(status, (("Content-Type", "application/json"),), body.encode())
