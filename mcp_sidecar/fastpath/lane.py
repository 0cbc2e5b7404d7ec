"""The express lane: plain requests with plain answers, passed as bytes, in front of the ordinary way.

The rule of this file: it takes a request only if it knows that nothing has to be decided on the way there, and passes an
answer only if there is nothing to decide on the way back. Everything else is handed to the ordinary way, with the request
as it came and, if it was sent, the connection on which its answer comes: it is not sent again. Whatever the lane passes,
the ordinary way would have passed in the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from mcp_sidecar.downstream.common import Client
from mcp_sidecar.facts import CallOutcome, RequestServed
from mcp_sidecar.fastpath import plain_http
from mcp_sidecar.fastpath.layouts import Asked, Layouts, Unchanging
from mcp_sidecar.fastpath.rest import Rest
from mcp_sidecar.healing.labels import rpc_label
from mcp_sidecar.healing.marked_ids import FIRST
from mcp_sidecar.healing.policy import Announce
from mcp_sidecar.healing.principal import NOBODY
from mcp_sidecar.healing.session import ClientSessionId, Session, State
from mcp_sidecar.sessions.in_flight import InFlight
from mcp_sidecar.sessions.recorder import TEACHING
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.upstream.answer import EVENT_STREAM as EVENTS
from mcp_sidecar.upstream.answer import JSON
from mcp_sidecar.upstream.connection import CHUNK_BYTES, Connection
from mcp_sidecar.verdicts.classify import is_plain_success
from mcp_sidecar.wire.framing import END_OF_CHUNKS, END_OF_HEAD, LAST_CHUNK
from mcp_sidecar.wire.headers import HOP_BY_HOP, NOT_AS_IT_IS, SESSION_ID, forwarding, media_type
from mcp_sidecar.wire.jsonrpc import Kind, Message, NotJson, is_result, parse
from mcp_sidecar.wire.origins import URL_HEADERS
from mcp_sidecar.wire.revisions import is_sessionless_request

MAX_BYTES = CHUNK_BYTES
"""Of a body, in either direction."""

MAX_HEAD_BYTES = 16 * 1024
OK, CLIENT_LEFT = 200, 499

_SESSION_ID = "mcp-session-id"
_NOT_FOR_UPSTREAM = NOT_AS_IT_IS | {_SESSION_ID, "accept-encoding"}
_NOT_FOR_CLIENT = HOP_BY_HOP | {_SESSION_ID}
_SECRET = frozenset({"set-cookie", "authentication-info"})
_NOT_SHORT = TEACHING | {"initialize"}

_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

REMEMBERED_HEADS = 128

IN_VAIN = 8
"""After so many answers in a row that were handed over the lane is closed."""

STREAM_PATIENCE_S = 0.005
"""How long a stream may take from its head to its end: servers in Python send head, event and end one after the other, within
a millisecond or two where the work is short. It is also the longest that a head or an event is kept back here."""

CLOSED_FOR = 128
"""For so many requests: with a server whose streams always last longer, say, or have event ids, the lane only costs."""


class Edge(Protocol):
    """What the client's side is called, and who may ask there."""

    scheme: str

    def lets_host_pass(self, host: str) -> bool:
        """Whether a request may name this host."""

    def lets_forwarding_pass(self, peer: str | None, names: Collection[str]) -> bool:
        """Whether nothing that a peer says of those before it is to be left out or read."""


class Gate(Protocol):
    """What the client side knows of requests in general, and counts of them."""

    services: Services
    plain_endpoints: tuple[str, ...]

    @property
    def edge(self) -> Edge:
        """Where requests come in."""

    def enter(self) -> None:
        """A request is under way."""

    def leave(self) -> None:
        """It is not any more."""

    def note_left(self) -> None:
        """Count a POST whose client left before it was whole."""


@dataclass(slots=True)
class Head:
    """The head of a plain answer, and what its client gets of it: ``start`` lacks the session id, the framing, the end."""

    body_at: int
    length: int | None
    is_json: bool
    is_stream: bool
    session_id: str | None
    start: bytes

    @staticmethod
    def of(answer: plain_http.Answer) -> Head | None:
        """``None`` where there is something to decide."""
        kind = media_type(answer.values.get("content-type"))
        is_stream = kind == EVENTS
        if not (is_stream or kind == JSON) or not URL_HEADERS.isdisjoint(answer.values):
            return None
        dropped = _NOT_FOR_CLIENT | {"content-length"} if is_stream else _NOT_FOR_CLIENT
        lines = [f"{name}: {value}\r\n" for name, value in answer.pairs if name.lower() not in dropped]
        start = f"HTTP/1.1 200 {answer.reason}\r\n{''.join(lines)}".encode()
        return Head(answer.body_at, answer.length, kind == JSON, is_stream, answer.values.get(_SESSION_ID), start)


class Heads:
    """The heads of answers are much alike: those seen lately are not read again. None is kept that holds a credential."""

    def __init__(self) -> None:
        """None is known yet."""
        self._known: dict[bytes, Head] = {}

    def read(self, received: bytes, limit: int) -> Head | None:
        """The head of an answer of which something has come, if it is plain, whole, and not above ``limit`` bytes."""
        end = received.find(END_OF_HEAD, 0, limit)
        seen = received[: end + 4]
        head = self._known.get(seen)
        if head is not None or end < 0:
            return head
        answer = plain_http.read_answer(received)
        head = Head.of(answer) if answer is not None else None
        if head is not None and answer is not None and _SECRET.isdisjoint(answer.values):
            if len(self._known) >= REMEMBERED_HEADS:
                self._known.clear()
            self._known[seen] = head
        return head


class Express:
    """Decides which requests take the lane."""

    def __init__(self, gate: Gate) -> None:
        """Whether the lane is open at all depends on the mode only."""
        self.gate = gate
        self._edge = gate.edge
        self.services = services = gate.services
        self.is_open = services.policy.heals
        self._targets = {f"POST {target} HTTP/1.1\r\n".encode(): target for target in gate.plain_endpoints}
        limits = services.limits
        self.max_body = min(MAX_BYTES, limits.max_request_body)
        self.max_answer = min(MAX_BYTES, limits.max_buffered_answer)
        self.max_head = min(MAX_HEAD_BYTES, limits.max_header_bytes)
        self.heads = Heads()
        self._principals = services.sessions.principals
        self._layouts = Layouts(_NOT_FOR_UPSTREAM)
        self._told_under = 0
        self._rest = Rest(IN_VAIN, CLOSED_FOR)
        self._announces = services.policy.announce is Announce.RESULT
        self._binds = services.policy.bind_principal

    def read(self, peer: str | None, data: bytes) -> Asked | None:
        """The ordinary request in a session that begins here, if it may come from where it says; its body may be missing."""
        if self._rest.is_on():
            return None
        asked = self._asked(peer, data)
        if asked is None or asked.body_at > self.max_head or asked.size - asked.body_at > self.max_body:
            return None
        return asked if asked.size >= len(data) else None

    def _asked(self, peer: str | None, data: bytes) -> Asked | None:
        principals, layouts = self._principals, self._layouts
        if principals.changes != self._told_under:
            layouts.forget()
            self._told_under = principals.changes
        cut = layouts.cut(data, self.max_head, peer)
        asked = layouts.read(cut) if cut is not None else None
        if asked is not None:
            return asked
        request = plain_http.read_request(data, self._targets)
        if request is None:
            return None
        values = request.values
        if _SESSION_ID not in values or "origin" in values or not self._edge.lets_host_pass(values["host"]):
            return None
        if "forwarded" in " ".join(values) and not self._edge.lets_forwarding_pass(peer, values):
            return None
        identity = principals.of_values(values) if self._binds else NOBODY
        unchanging = Unchanging(request.target, values["host"], values.get("mcp-protocol-version"), identity)
        asked = Asked(unchanging, values[_SESSION_ID], request.body_at, request.size, self._fields(request, peer))
        if cut is not None:
            layouts.learn(cut, asked)
        return asked

    def send(self, client: Client, asked: Asked, data: bytes) -> Trip | None:
        """Send what can be sent at once and without a question; ``data`` is all of it."""
        services = self.services
        started_at = services.clock()
        session = services.sessions.table.look_up(ClientSessionId(asked.session_id), asked.unchanging.identity).session
        if session is None or not self._is_plain(session):
            return None
        body = data[asked.body_at :]
        try:
            message = parse(body)
        except NotJson:
            return None
        if not _is_short(message, asked.unchanging.protocol_version):
            return None
        outgoing = self._outgoing(asked, session, body)
        connection = services.upstream.express(client)
        if connection is None:
            return None
        trip = Trip(self, client, session, message, connection, request=data, started_at=started_at)
        connection.ask(outgoing, services.upstream.idle_timeout_s, trip)
        trip.begin()
        return trip

    def note(self, *, passed: bool) -> None:
        """An answer has passed, or was handed over."""
        self._rest.note(in_vain=not passed)

    def _is_plain(self, session: Session) -> bool:
        """Whether nothing waits to be said, learned or written anew in this session."""
        return (
            session.state is State.ESTABLISHED
            and not session.displaced
            and not session.talk.hints
            and not session.talk.list_check_due
            and not session.cookies
            and session.upstream_id is not None
            and (session.talk.told_restart or not self._announces)
        )

    def _fields(self, request: plain_http.Request, peer: str | None) -> bytes:
        values = request.values
        named = zip(request.pairs, values, strict=True)
        pairs = [pair for pair, known_as in named if known_as not in _NOT_FOR_UPSTREAM]
        hops = [values["x-forwarded-for"]] if "x-forwarded-for" in values else []
        pairs += forwarding(values, hops, peer=peer, scheme=self._edge.scheme, host=values["host"])
        return "".join([f"\r\n{name}: {value}" for name, value in pairs]).encode()

    def _outgoing(self, asked: Asked, session: Session, body: bytes) -> bytes:
        upstream = self.services.upstream
        host = f"Host: {asked.unchanging.host}" if upstream.passes_host else upstream.host_line
        first = f"POST {asked.unchanging.target} HTTP/1.1\r\n{host}"
        last = f"\r\n{SESSION_ID}: {session.upstream_id}\r\nAccept-Encoding: identity\r\nContent-Length: {len(body)}\r\n\r\n"
        return b"".join((first.encode(), asked.fields, last.encode(), body))


def _is_short(message: Message, protocol_version: str | None) -> bool:
    """Whether this is one request of an older revision whose answer teaches nothing."""
    return (
        message.kind is Kind.REQUEST
        and message.method not in _NOT_SHORT
        and not is_sessionless_request(message.meta_protocol_version, message.method, protocol_version)
    )


class Trip:
    """One request on the lane."""

    __slots__ = (
        "_client",
        "_connection",
        "_express",
        "_generation",
        "_message",
        "_overdue",
        "_received",
        "_request",
        "_response",
        "_safe_tools",
        "_session",
        "_sound",
        "_started_at",
    )

    def __init__(
        self,
        express: Express,
        client: Client,
        session: Session,
        message: Message,
        connection: Connection,
        *,
        request: bytes,
        started_at: float,
    ) -> None:
        """Nothing is sent yet; ``begin`` is to follow."""
        self._express = express
        self._client = client
        self._session = session
        self._message = message
        self._connection = connection
        self._request = request
        self._started_at = started_at
        self._generation = session.generation
        self._safe_tools = session.record.safe_tools
        self._received = b""
        self._sound = 0  # so much of it is the beginning of a plain answer
        self._response = b""  # an event that was seen to be the response
        self._overdue: asyncio.TimerHandle | None = None  # of a stream

    def begin(self) -> None:
        """It is sent, and counts as under way from now on."""
        express, session, message = self._express, self._session, self._message
        express.gate.enter()
        express.services.sessions.table.begin_use(session)
        session.post_begins(message)
        session.talk.progress.forget(message)

    # -- what the upstream's connection tells -------------------------------------------------------------------------

    def arrived(self, data: bytes) -> None:
        """Pass the answer if it is whole and plain, wait if it may become so, hand it over else."""
        self._sound = len(self._received)
        self._received = received = self._received + data if self._received else data
        head = self._express.heads.read(received, self._express.max_head)
        body = _body(head, received) if head is not None else None
        if head is not None and body is not None and self._is_plain(head, body):
            self._pass(head, body)
        elif head is not None and body is None and self._may_become_whole(head):
            self._connection.note_life()
            self._sound = len(received)
            if head.is_stream and self._overdue is None:
                self._overdue = asyncio.get_running_loop().call_later(STREAM_PATIENCE_S, self._give_up)
        else:
            self._give_up()

    def broke(self) -> None:
        """The upstream's side is over before the answer was whole."""
        self.hand_over()

    # -- what the client's connection tells ---------------------------------------------------------------------------

    awaits_client = False

    def received(self, data: bytes) -> None:
        """A client that sends on before it has its answer is served in the ordinary way, and gets this one only."""
        self.hand_over()
        self._client.data_received(data)

    def hand_over(self) -> None:
        """To the ordinary way, as if the request had just come; it is not sent again."""
        self._stop_waiting()
        begun = InFlight(
            self._connection, self._session, self._generation, self._safe_tools, self._started_at, self._leave
        )
        # What is wrong with the last packet must not spoil what came before it.
        self._connection.parse(self._received[: self._sound], self._received[self._sound :])
        self._client.take_back(self._request, begun)

    def client_left(self) -> None:
        """Nobody waits for the answer any more."""
        self._stop_waiting()
        self._connection.abandon()
        self._leave()
        self._tell(CLIENT_LEFT)

    # -- the answer ---------------------------------------------------------------------------------------------------

    def _may_become_whole(self, head: Head) -> bool:
        come = len(self._received) - head.body_at
        limit = self._express.max_answer
        if head.length is not None:
            return head.is_json and come < head.length <= limit
        return come <= limit and self._may_come_in_chunks(head)

    def _may_come_in_chunks(self, head: Head) -> bool:
        """Whether more is to come, and nothing odd is here: of a stream nothing yet, or the response without its end."""
        body = plain_http.chunks_so_far(self._received, head.body_at)
        return body is not None and (head.is_json or not body or self._is_one_response(body))

    def _is_one_response(self, body: bytes) -> bool:
        if body != self._response:
            data = plain_http.one_event(body)
            if data is None or not self._is_response(data):
                return False
            self._response = body
        return True

    def _is_plain(self, head: Head, body: bytes) -> bool:
        """Whether there is nothing to decide, to learn or to write anew."""
        session = self._session
        if len(body) > self._express.max_answer or self._client.is_slow or session.talk.hints:
            return False
        if session.state is not State.ESTABLISHED or session.displaced:
            return False
        if head.session_id not in (None, session.upstream_id):  # the upstream may have opened another by itself
            return False
        if head.is_stream:
            return bool(body) and self._is_one_response(body)
        is_passed = body.startswith(b"{") and is_plain_success(body)
        return is_passed and (self._generation == FIRST or self._is_response(body))

    def _is_response(self, data: bytes) -> bool:
        """Whether this is the result that the request is for, and nothing else: an error may speak of the session."""
        return is_result(data, self._message.id)

    def _pass(self, head: Head, body: bytes) -> None:
        """Answer, and keep the books behind that: nobody waits for them."""
        express = self._express
        services = express.services
        own_id = f"{SESSION_ID}: {self._session.client_id}\r\n".encode() if head.session_id is not None else b""
        if head.is_stream or head.length is None:
            chunk = (_CHUNKED, b"%x\r\n" % len(body), body, END_OF_CHUNKS)
            self._client.answer(b"".join((head.start, own_id, *chunk)))
        else:
            self._client.answer(b"".join((head.start, own_id, b"\r\n", body)))
        self._stop_waiting()
        services.holds.availability.note_worked()
        services.holds.route.note_served()
        services.upstream.served(self._connection)
        express.note(passed=True)
        self._leave()
        self._tell(OK)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _give_up(self) -> None:
        """This answer is not for the lane."""
        self._express.note(passed=False)
        self.hand_over()

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _leave(self) -> None:
        session = self._session
        session.post_ends()
        session.talk.progress.forget(self._message)
        self._express.services.sessions.table.end_use(session)
        self._express.gate.leave()

    def _tell(self, status: int) -> None:
        services = self._express.services
        seconds = services.clock() - self._started_at
        outcome = CallOutcome.CLIENT_LEFT if status == CLIENT_LEFT else CallOutcome.ANSWERED
        services.emit(RequestServed("POST", rpc_label(self._message), status, seconds, outcome))


def _body(head: Head, received: bytes) -> bytes | None:
    """All of the body, if it is here and nothing behind it."""
    if head.length is None:
        return plain_http.whole_chunks(received, head.body_at) if received.endswith(LAST_CHUNK) else None
    return received[head.body_at :] if len(received) == head.body_at + head.length else None
