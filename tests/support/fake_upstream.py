"""A scriptable MCP upstream on a loopback port: behaves like a real server, fails like one, and keeps a ledger of both.

    async with FakeUpstream(dialect="rmcp-401", answers=Answers.JSON) as upstream:
        upstream.inject(ResetAfterExecution(), tool="charge")
        ...
        await upstream.restart()
        assert len(upstream.ledger.executions("charge")) == 1

The rule: the ledger is the truth. What ran is written down before a byte of it can be seen, and a fault that claims that
nothing ran has run nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self

from tests.support.behaviour import Behaviour, Priming
from tests.support.endpoint import Computed, Endpoint, Outgoing, Streamed, parse
from tests.support.faults import AS_USUAL, Fault, Form, Refuse
from tests.support.http1 import ConnectionCut, HttpRequest, SocketWire, WatchedReader, Wire, read_request
from tests.support.ledger import Arrival, Ledger
from tests.support.listener import Loopback
from tests.support.rpc import tool_of
from tests.support.script import On, Planted, Script
from tests.support.streams import Entry, Message, Session, render_event

LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


class FakeUpstream:
    """See the module. ``changes`` are fields of ``Behaviour``."""

    def __init__(self, behaviour: Behaviour | None = None, *, path: str = "/mcp", **changes: Any) -> None:
        self.ledger = Ledger()
        self.slow_gate = asyncio.Event()
        self.released = asyncio.Event()
        self._script = Script()
        self._listener = Loopback(self._converse)
        self._endpoint = Endpoint(
            behaviour=dataclasses.replace(behaviour or Behaviour(), **changes),
            ledger=self.ledger,
            path=path,
            authorities=(f"127.0.0.1:{self.port}", f"localhost:{self.port}"),
            gate=self.slow_gate,
        )
        self._bugs: list[BaseException] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- where and what it is -----------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return self.origin + self._endpoint.path

    @property
    def behaviour(self) -> Behaviour:
        return self._endpoint.behaviour

    @property
    def process(self) -> int:
        """Which process this is: 1 at first, one more after every restart or crash."""
        return self._endpoint.process

    @property
    def sessions(self) -> dict[str, Session]:
        """The sessions that this process knows, by id, oldest first."""
        return self._endpoint.sessions

    @property
    def routes(self) -> dict[str, Outgoing]:
        """Answers on other paths, by path. Below ``/echo`` the request itself is the answer."""
        return self._endpoint.routes

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        return self._listener.connections

    # -- its life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen (again). Sessions are what they were."""
        await self._listener.open()

    async def stop(self) -> None:
        """The process ends: running work and all connections are gone, connects are refused. Sessions survive, as in a
        server that stores them; ``restart`` is what forgets them."""
        ending = [*self._endpoint.drop_work(), *self._listener.shut()]
        await asyncio.gather(*ending, return_exceptions=True)

    async def restart(self, **changes: Any) -> None:
        """Come back on the same port as a new process that knows no session, perhaps as another server (``changes``)."""
        await self.stop()
        self._new_process()
        self.become(**changes)
        await self.start()

    async def close(self) -> None:
        """Stop for good and give up the port. Raises what went wrong inside the fake itself."""
        await self.stop()
        self._listener.close()
        if self._bugs:
            raise self._bugs[0]

    def become(self, **changes: Any) -> None:
        """Change behaviour from the next request on."""
        self._endpoint.behaviour = dataclasses.replace(self._endpoint.behaviour, **changes)

    def forget(self, session_id: str | None = None) -> None:
        """Lose one session or all, as by expiry; the process goes on and so do its connections."""
        forgotten = [session_id] if session_id is not None else list(self.sessions)
        for sid in forgotten:
            del self.sessions[sid]

    def crash(self) -> None:
        """Die at once: every connection is reset, nothing runs on, no session is left. ``start`` brings a new process."""
        self._endpoint.drop_work()
        self._listener.shut(reset=True)
        self._new_process()

    def _new_process(self) -> None:
        self.sessions.clear()
        self._endpoint.process += 1

    # -- faults -------------------------------------------------------------------------------------------------------

    def inject(
        self,
        fault: Fault,
        *,
        times: int | None = 1,
        skip: int = 0,
        http_method: str | None = None,
        rpc_method: str | None = None,
        tool: str | None = None,
    ) -> Planted:
        """Let ``fault`` meet the next ``times`` requests (``None``: until cleared) that match, after ``skip`` of them.

        ``Refuse`` works at once and on connects; everything else waits for its request."""
        on = On(http_method=http_method, rpc_method=rpc_method, tool=tool)
        planted = Planted(fault=fault, on=on, times=times, skip=skip)
        if isinstance(fault, Refuse):
            self._listener.shut()
        else:
            self._script.planted.append(planted)
        return planted

    async def clear(self) -> None:
        """No fault any more; listens again if ``Refuse`` had stopped that."""
        self._script.planted.clear()
        await self.start()

    def release(self) -> None:
        """Let everything go on that ``Stall`` holds, now and from now on."""
        self.released.set()

    # -- what a server does by itself ---------------------------------------------------------------------------------

    def push(self, message: Message, session_id: str | None = None) -> None:
        """Put a message on the standalone stream of one session or of all; lost where nobody listens or resumes."""
        for session in self._addressed(session_id):
            session.standalone.append(message)

    def notify(self, method: str, params: Message | None = None, session_id: str | None = None) -> None:
        """Push a notification."""
        self.push({"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})}, session_id)

    def touch(self, uri: str) -> None:
        """A resource changes: sessions that subscribed to it are told."""
        for session in self.sessions.values():
            if uri in session.subscriptions:
                self.notify("notifications/resources/updated", {"uri": uri}, session.id)

    def log(self, level: str, data: str) -> None:
        """Something to log: sessions that set a level which lets it through are told, the others hear nothing."""
        for session in self.sessions.values():
            if session.log_level is not None and LOG_LEVELS.index(level) >= LOG_LEVELS.index(session.log_level):
                self.notify("notifications/message", {"level": level, "data": data}, session.id)

    async def ask(self, session_id: str, method: str, params: Message) -> Message:
        """Put a question on a session's standalone stream; returns the client's JSON-RPC response."""
        session = self.sessions[session_id]
        return await session.ask(session.standalone, method, params)

    def end_get_streams(self) -> None:
        """Every open GET stream ends cleanly; the next GET opens a new one."""
        for session in self.sessions.values():
            session.standalone.hang_up()

    def _addressed(self, session_id: str | None) -> list[Session]:
        return list(self.sessions.values()) if session_id is None else [self.sessions[session_id]]

    # -- connections --------------------------------------------------------------------------------------------------

    async def _converse(self, connection: int, reader: WatchedReader, writer: asyncio.StreamWriter) -> None:
        wire = SocketWire(writer)
        try:
            while (request := await read_request(reader, writer)) is not None:
                if not await self._exchange(connection, request, reader, wire):
                    break
        finally:
            writer.close()

    async def _exchange(self, connection: int, request: HttpRequest, reader: WatchedReader, wire: SocketWire) -> bool:
        """Answer one request; ``False`` where the connection cannot be used any more."""
        arrival = self._arrived(connection, request)
        wire.begin(request, lambda status: self._answered(arrival, status))
        answering = asyncio.create_task(self._answer(_Stage(self, arrival, wire)))
        leaving = asyncio.create_task(reader.gone.wait())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                arrival.client_left = True
                self.ledger.changed()
        finally:
            leaving.cancel()
            answering.cancel()
            outcome, _ = await asyncio.gather(answering, leaving, return_exceptions=True)
        if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionCut | ConnectionError):
            self._bugs.append(outcome)
        return outcome is None and request.header("connection") != "close"

    async def _answer(self, stage: _Stage) -> None:
        if stage.arrival.process != self.process:  # it has crashed on another request since this one was read
            raise ConnectionCut
        fault = self._script.fault_for(stage.arrival)
        await (stage.serve(stage.wire) if fault is None else fault.play(stage))

    def _arrived(self, connection: int, request: HttpRequest) -> Arrival:
        messages = [message for message in parse(request.body)[0] or () if "method" in message]
        tools = (tool_of(str(m["method"]), m.get("params") or {}) for m in messages)
        return self.ledger.add_arrival(
            Arrival(
                number=len(self.ledger.arrivals) + 1,
                process=self.process,
                connection=connection,
                request=request,
                rpc_methods=tuple(str(message["method"]) for message in messages),
                tools=tuple(tool for tool in tools if tool is not None),
            )
        )

    def _answered(self, arrival: Arrival, status: int) -> None:
        arrival.answer_status = status
        self.ledger.changed()


@dataclass(frozen=True, slots=True)
class _Stage:
    """One request that waits for its answer; see ``faults.Stage``."""

    upstream: FakeUpstream
    arrival: Arrival
    wire: Wire

    @property
    def released(self) -> asyncio.Event:
        return self.upstream.released

    def crash(self) -> None:
        self.upstream.crash()

    async def run(self) -> None:
        accepted = self.upstream._endpoint.accept(self.arrival.request)
        if isinstance(accepted, Computed) or (isinstance(accepted, Streamed) and accepted.standalone_of is None):
            await accepted.log.until_finished()

    async def serve(self, wire: Wire, form: Form = AS_USUAL) -> None:
        accepted = self.upstream._endpoint.accept(self.arrival.request, form)
        try:
            match accepted:
                case Outgoing(status, headers, body):
                    await _send(wire, status, headers, body)
                case Computed():
                    await self._send_computed(wire, accepted)
                case Streamed():
                    await self._send_stream(wire, accepted)
        except asyncio.CancelledError:
            if not isinstance(accepted, Outgoing) and accepted.cancel:
                accepted.cancel()
            raise

    async def _send_computed(self, wire: Wire, computed: Computed) -> None:
        await computed.log.until_finished()
        answers = [entry for entry in computed.log.entries if entry.answers is not None]
        messages = [entry.message for entry in answers]
        await _send(wire, 200, computed.headers, _dump(messages if computed.batch else messages[0]))
        self._mark_sent(answers)

    async def _send_stream(self, wire: Wire, streamed: Streamed) -> None:
        session = streamed.standalone_of
        if session is not None:
            session.get_streams_open += 1
        try:
            await wire.head(200, streamed.headers, None)
            async for entry in streamed.log.follow(streamed.start):
                if entry.message is not None or self._primes(streamed):
                    await wire.event(self._rendered(entry, streamed.event_ids))
                self._mark_sent([entry])
                await wire.after_event()
            await wire.end()
        finally:
            if session is not None:
                session.get_streams_open -= 1

    def _primes(self, streamed: Streamed) -> bool:
        return streamed.event_ids or self.upstream.behaviour.priming is Priming.WITHOUT_ID

    def _rendered(self, entry: Entry, event_ids: bool) -> bytes:
        behaviour = self.upstream.behaviour
        return render_event(entry, with_id=event_ids, newline=behaviour.newline, retry_ms=behaviour.retry_ms)

    def _mark_sent(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.answers is not None:
                entry.answers.answer_sent = True
        self.upstream.ledger.changed()


async def _send(wire: Wire, status: int, headers: Any, body: bytes) -> None:
    await wire.head(status, headers, len(body))
    await wire.body(body)
    await wire.end()


def _dump(messages: object) -> bytes:
    return json.dumps(messages, separators=(",", ":")).encode()
