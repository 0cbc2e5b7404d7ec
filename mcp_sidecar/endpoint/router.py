"""The client side: every request comes in here, is checked, and goes to the module that knows what it is.

::

    handle ─▶ gate (Host, Origin, header size)
           ─▶ another path            ─▶ passing
           ─▶ the endpoint: POST      ─▶ sessionless ─▶ passing
                                      ─▶ a session   ─▶ posting
                            GET       ─▶ listening
                            DELETE    ─▶ terminating
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from http import HTTPStatus
from pathlib import PurePath
from typing import Protocol

from mcp_sidecar import spans
from mcp_sidecar.config import ListenConfig, UpstreamConfig
from mcp_sidecar.downstream.keepalive import Keepalive
from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.endpoint import refusals
from mcp_sidecar.endpoint.body import UNREADABLE, read_body
from mcp_sidecar.endpoint.cors import Cors
from mcp_sidecar.endpoint.delete import Delete
from mcp_sidecar.endpoint.early_stream import EarlyStream
from mcp_sidecar.endpoint.edge import Edge
from mcp_sidecar.endpoint.inbound import Incoming, in_flight
from mcp_sidecar.endpoint.look_up import SessionLookUp
from mcp_sidecar.endpoint.observe import Observe
from mcp_sidecar.endpoint.outcome import CLIENT_LEFT, Detour, is_call, outcome_of
from mcp_sidecar.endpoint.passthrough import Passthrough
from mcp_sidecar.endpoint.post import Post
from mcp_sidecar.endpoint.refusals import Refusal
from mcp_sidecar.facts import (
    CallOutcome,
    Fact,
    HostRefused,
    OriginRefused,
    RequestRejected,
    RequestServed,
    SidecarFault,
    UpstreamRefusesHost,
)
from mcp_sidecar.healing import replies
from mcp_sidecar.healing.labels import NO_METHOD, OTHER, http_label, rpc_label
from mcp_sidecar.healing.replies import Reason
from mcp_sidecar.sessions.call import BadSessionId, Call, RequestLine, may_be_loaded, read_call
from mcp_sidecar.sessions.credential_proof import CredentialProof
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.streams.listener import Listener
from mcp_sidecar.waiting.budget import Claim
from mcp_sidecar.wire import origins
from mcp_sidecar.wire.jsonrpc import UNREAD, Kind, Message, parse
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.request import path_of, without_escapes
from mcp_sidecar.wire.revisions import PROTOCOL_VERSION_HEADER, is_sessionless_request, is_sessionless_version

REFUSES_HOST = frozenset({HTTPStatus.MISDIRECTED_REQUEST.value, HTTPStatus.FORBIDDEN.value})
_SPEAKS_OF_HOST = re.compile(
    rb"\b(?:invalid|missing|bad|unknown|disallowed) host\b|\bhost header\b|\bhost\b.{0,40}\bnot allowed\b",
    re.IGNORECASE,
)
"""Servers that know their own names answer others 421 (the Python SDK) or 403 (the TypeScript, Go and Rust ones)."""

_VERSION = PROTOCOL_VERSION_HEADER.lower()
_FOR_THE_SESSION = frozenset({"mcp-session-id"})


class Watch(Protocol):
    """Whoever runs the sidecar for a developer, and shows what passes."""

    def heard(self, fact: Fact) -> None:
        """Something happened."""

    async def post(self, call: Call | None, message: Message, responder: Responder, work: Awaitable[None]) -> None:
        """Do the work of one POST, and look at it; there is no ``call`` where it knows no sessions."""


class Router:
    """Handles every request on the client side."""

    def __init__(
        self, services: Services, keepalive: Keepalive, listen: ListenConfig, upstream: UpstreamConfig
    ) -> None:
        """Its ``edge`` is to be told the address as soon as it is known."""
        self.services = services
        self.watch: Watch | None = None
        self.tracer: spans.Tracer | None = None
        self._bodies = services.upstream.budget.requests
        self._keepalive = keepalive
        self.edge = Edge(listen, services.upstream, upstream.origin)
        self._endpoint = without_escapes(upstream.endpoint.removesuffix("/"))
        self.plain_endpoints: tuple[str, ...] = () if "%" in self._endpoint else (self._endpoint, f"{self._endpoint}/")
        self._cors = Cors()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def handle(self, request: Request, responder: Responder) -> None:
        """Answer one request. Whatever goes wrong in here concerns this request only."""
        incoming = Incoming(request, responder)
        incoming.started_at = incoming.begun.started_at if incoming.begun is not None else self.services.clock()
        self.enter()
        await self._carry_out(incoming, self._begin)

    async def go_on(self, incoming: Incoming, listener: Listener) -> None:
        """Carry out what is left of a request whose stream was parked."""
        await self._carry_out(incoming, lambda _: listener.go_on())

    def left(self, incoming: Incoming) -> None:
        """The client has left a stream that was parked."""
        try:
            if incoming.listener is not None:
                incoming.listener.left()
        except Exception as error:  # noqa: BLE001 - as in a task
            self.note_failed(error)
        finally:
            self._end(incoming, CLIENT_LEFT)

    def _begin(self, incoming: Incoming) -> Awaitable[None]:
        if self.tracer is not None and not self._may_say_more(incoming):
            self._trace(incoming)
        return self._answer(incoming)

    async def _carry_out(self, incoming: Incoming, work: Callable[[Incoming], Awaitable[None]]) -> None:
        """To the end, or until its stream is parked."""
        status = CLIENT_LEFT
        try:
            await work(incoming)
            status = incoming.responder.status
        except (*UNREADABLE, BadSessionId) as error:
            self._trace(incoming)
            await self._reject(incoming, refusals.of(error))
            status = incoming.responder.status
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not reach beyond the request that met it
            self.note_failed(error)
            await self._give_up(incoming)
            status = incoming.responder.status
        finally:
            listener = incoming.listener
            if listener is not None and listener.is_parked:
                incoming.responder.parked = ParkedStream(self, incoming, listener)
            else:
                self._end(incoming, status)

    def _end(self, incoming: Incoming, status: int) -> None:
        if incoming.begun is not None:
            incoming.begun.drop()
        if status in REFUSES_HOST:
            self._note_refused_host(status, incoming.responder.notes.said)
        seconds = self.services.clock() - incoming.started_at
        status, outcome = self._ending(incoming, status)
        self.services.emit(RequestServed(http_label(incoming.method), incoming.rpc_label, status, seconds, outcome))
        self.leave()

    @staticmethod
    def _ending(incoming: Incoming, status: int) -> tuple[int, CallOutcome | None]:
        """What was sent, and what became of the call if it was one; answered is who leaves behind the response."""
        responder = incoming.responder
        if status == CLIENT_LEFT and responder.notes.is_answered:
            status = responder.status
        if not is_call(incoming.message):
            return status, CallOutcome.REJECTED if incoming.is_refused else None
        told = (
            Reason.OUTCOME_UNKNOWN.code
            if responder.is_cut and not responder.notes.is_answered
            else responder.notes.told
        )
        return status, outcome_of(status, told, incoming.way.detour if incoming.way is not None else Detour.NONE)

    def _note_refused_host(self, status: int, said: bytes) -> None:
        """Tell where it was the upstream's word, and about ``Host``: else nobody knows which setting helps."""
        is_own = said == refusals.BAD_HOST.body[: len(said)] != b""
        if not is_own and (status == HTTPStatus.MISDIRECTED_REQUEST or _SPEAKS_OF_HOST.search(said)):
            self.services.emit(UpstreamRefusesHost(status))

    def _may_say_more(self, incoming: Incoming) -> bool:
        """Whether the body of a request will tell what it is, and perhaps in which trace."""
        return incoming.method == "POST" and self._is_endpoint(incoming)

    def _trace(self, incoming: Incoming) -> None:
        if self.tracer is None or incoming.is_traced:
            return
        incoming.is_traced = True
        route = self._endpoint if self._is_endpoint(incoming) else None
        elapsed_s = self.services.clock() - incoming.started_at
        begun = spans.Begun(
            incoming.method,
            path_of(incoming.target),
            route,
            self.edge.scheme,
            incoming.fields,
            incoming.message,
            elapsed_s,
        )
        self.tracer.begin(begun)

    def enter(self) -> None:
        """A request is under way; ``leave`` is to follow."""
        if not self._under_way:
            self._idle.clear()
        self._under_way += 1

    def leave(self) -> None:
        """A request is not under way any more."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    def note_unread(self, answer: OwnAnswer) -> None:
        """Count what was refused before it became a request; its method is not known."""
        reason = answer.reason if isinstance(answer, Refusal) else ""
        self.services.emit(RequestRejected(answer.status, reason))
        self.services.emit(RequestServed(OTHER, NO_METHOD, answer.status, 0.0))

    def note_left(self, request: Request | None = None) -> None:
        """Count a request whose client left before anybody had turned to it; without one, a POST that had only begun."""
        begun = in_flight(request) if request is not None else None
        if begun is not None:
            begun.drop()
        method, label = (request.method, NO_METHOD) if request is not None else ("POST", OTHER)
        label = OTHER if method == "POST" else label
        self.services.emit(RequestServed(http_label(method), label, CLIENT_LEFT, 0.0))

    def note_gone(self, connection: Hashable) -> None:
        """Close what was signed in upstream for this client's connection."""
        self.services.upstream.release(connection)

    def note_failed(self, error: Exception) -> None:
        """Tell of a bug, by its name and place only."""
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
        self.services.emit(SidecarFault(type(error).__name__, where))

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until every exchange has ended, but no longer than ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass

    # -- the gate -----------------------------------------------------------------------------------------------------

    def _answer(self, incoming: Incoming) -> Awaitable[None]:
        """What answers it, not yet begun: a coroutine for each step would stay with an open stream."""
        refused = self._gate(incoming)
        if refused is not None:
            return self._reject(incoming, refused)
        origin = incoming.fields.value("origin")
        if origin is not None:
            incoming.responder.page = self._cors.of(origin)
            if self._is_preflight(incoming) and self.services.policy.heals:
                return self._passing(incoming).preflight()
        if self._is_endpoint(incoming) and incoming.method in ("POST", "GET", "DELETE"):
            return self._endpoint_request(incoming)
        return self._passing(incoming).other_path(incoming.request.upload)

    def _is_preflight(self, incoming: Incoming) -> bool:
        """Whether a browser asks if a page may send a request to the endpoint."""
        asks = incoming.method == "OPTIONS" and "access-control-request-method" in incoming.fields.names
        return asks and incoming.request.upload is None and self._is_endpoint(incoming)

    def _gate(self, incoming: Incoming) -> Refusal | None:
        found = incoming.fields
        if not incoming.target.startswith("/"):
            return refusals.BAD_TARGET
        if not all(map(self.edge.lets_host_pass, found.values("host"))):
            self.services.emit(HostRefused())
            return refusals.BAD_HOST
        for origin in found.values("origin"):
            if not self.edge.allows_origin(origin):
                self.services.emit(OriginRefused("null" if origin == "null" else origins.canonical(origin) or ""))
                return refusals.BAD_ORIGIN
        return None

    async def _reject(self, incoming: Incoming, answer: Refusal) -> None:
        self.services.emit(RequestRejected(answer.status, answer.reason))
        incoming.responder.close_behind()
        if not incoming.responder.is_committed:
            incoming.is_refused = incoming.method == "POST" and self._is_endpoint(incoming)
            await incoming.responder.give(answer)

    def _is_endpoint(self, incoming: Incoming) -> bool:
        if incoming.target in self.plain_endpoints:
            return True
        return without_escapes(path_of(incoming.target)) in (self._endpoint, f"{self._endpoint}/")

    # -- the endpoint -------------------------------------------------------------------------------------------------

    def _endpoint_request(self, incoming: Incoming) -> Awaitable[None]:
        if incoming.method == "POST":
            return self._post(incoming)
        call = self._call(incoming)
        if self.services.policy.observes:
            return self._observed(incoming, call)
        is_elsewhere = may_be_loaded(self.services.sessions, call)
        return self._loaded_first(incoming, call) if is_elsewhere else self._bodiless(incoming, call)

    async def _loaded_first(self, incoming: Incoming, call: Call) -> None:
        looking = SessionLookUp(self.services, call)
        if incoming.method == "DELETE":
            is_known = await looking.for_delete()
            await self._bodiless(incoming, call, looking.given)
            if not is_known and HTTPStatus.OK <= incoming.responder.status < HTTPStatus.MULTIPLE_CHOICES:
                looking.note_ended()
        elif await looking.for_get(incoming.responder, self._keepalive):
            await self._bodiless(incoming, call, looking.given)

    def _bodiless(self, incoming: Incoming, call: Call, given: OwnAnswer | None = None) -> Awaitable[None]:
        """A GET or DELETE of the endpoint."""
        if given is not None:
            return incoming.responder.give(given)
        if call.client_id is not None and self._is_over(call):
            return incoming.responder.give(replies.SESSION_NOT_FOUND)
        if incoming.method == "DELETE":
            return self._in_use(call, Delete(self.services, call, incoming.responder).run())
        if call.client_id is None:
            return self._passing(incoming).other_path(incoming.request.upload)
        incoming.forget_head()
        if call.claimed is not None:
            return self._listen_after_proof(incoming, call)
        return self._listen(incoming, call)

    async def _listen_after_proof(self, incoming: Incoming, call: Call) -> None:
        await CredentialProof(self.services, call).run()
        await self._listen(incoming, call)

    def _listen(self, incoming: Incoming, call: Call) -> Awaitable[None]:
        incoming.listener = Listener(self.services, self._keepalive, call, incoming.responder)
        return incoming.listener.run()

    def _observed(self, incoming: Incoming, call: Call) -> Awaitable[None]:
        if call.client_id is None and incoming.method == "GET":
            return self._passing(incoming).other_path(incoming.request.upload)
        observing = Observe(self.services, call, incoming.responder)
        return self._in_use(call, observing.get() if incoming.method == "GET" else observing.delete())

    async def _post(self, incoming: Incoming) -> None:
        with self._bodies.claim() as claim:
            await self._answer_post(incoming, claim)

    async def _answer_post(self, incoming: Incoming, claim: Claim) -> None:
        encoding = incoming.fields.value("content-encoding")
        is_encoded = encoding is not None and encoding.strip().lower() not in ("", "identity")
        body = await read_body(incoming.request, self.services.limits.max_request_body, claim)
        message = UNREAD if is_encoded else parse(body)
        incoming.message, incoming.rpc_label = message, rpc_label(message)
        self._trace(incoming)
        version = incoming.fields.value(_VERSION)
        if is_sessionless_request(message.meta_protocol_version, message.method, version):
            asks = partial(self.services.sessions.identity_of, incoming.fields, incoming.target.partition("?")[2])
            incoming.way = passing = self._passing(incoming)
            work = passing.sessionless(message, body, asks)
            await (self.watch.post(None, message, incoming.responder, work) if self.watch else work)
        else:
            await self._session_post(incoming, message, body, is_encoded=is_encoded)

    async def _session_post(self, incoming: Incoming, message: Message, body: bytes, *, is_encoded: bool) -> None:
        is_initialize = message.kind is Kind.REQUEST and message.method == "initialize"
        incoming.in_session = True
        call = self._call(incoming, drop_session=is_initialize)
        if self.services.policy.observes:
            observing = Observe(self.services, call, incoming.responder)
            await self._in_use(call, observing.post(message, body, opaque=is_encoded))
            return
        begun = incoming.begun
        if begun is not None:  # whatever has become of its session since it was sent
            call.session, call.claimed, call.is_foreign = begun.session, None, False
            begun.release()
        given = None
        if (
            begun is None
            and may_be_loaded(self.services.sessions, call)
            and not self._is_for_a_held_request(call, message)
        ):
            given = await SessionLookUp(self.services, call).for_post(message, len(body), opaque=is_encoded)
        if given is not None:
            await incoming.responder.give(given)
        elif self._is_over(call):
            await incoming.responder.give(replies.SESSION_NOT_FOUND)
        elif self._is_for_a_held_request(call, message) or self._was_said_by_heal(call, message):
            await incoming.responder.give(replies.ACCEPTED)
        else:
            after_s, responder = self.services.policy.early_stream_after_s, incoming.responder
            early = EarlyStream(after_s, self._keepalive, call, responder, message)
            posting = Post(self.services, call, message, body, responder, early, opaque=is_encoded, begun=begun)
            incoming.way = posting
            work = posting.run()
            await self._in_use(call, self.watch.post(call, message, responder, work) if self.watch else work)

    async def _in_use(self, call: Call, work: Awaitable[None]) -> None:
        """A session is not idle while one of its exchanges runs; whoever only claims it has none in it."""
        table, claimed = self.services.sessions.table, call.claimed
        with table.using(call.session):
            await work
        if claimed is not None and call.session is claimed:
            with table.using(claimed):  # what it has learnt is noted, too
                pass

    def _is_over(self, call: Call) -> bool:
        """Whether the client's id was ended or has expired."""
        if call.client_id is None or call.session is not None:
            return False
        return self.services.sessions.table.is_ended(call.client_id, call.principal)

    def _is_for_a_held_request(self, call: Call, message: Message) -> bool:
        """Whether the client gives up a request that waits here: then neither goes upstream."""
        if call.client_id is None or message.cancelled_id is None:
            return False
        return self.services.holds.cancel(call.held_name(message.cancelled_id))

    @staticmethod
    def _was_said_by_heal(call: Call, message: Message) -> bool:
        """Whether this is a client's `initialized` that a heal has already told the newer session."""
        is_initialized = message.kind is Kind.NOTIFICATION and message.method == "notifications/initialized"
        return is_initialized and call.session is not None and call.session.generation > 1

    def _call(self, incoming: Incoming, *, drop_session: bool = False) -> Call:
        session_ids = () if drop_session else incoming.fields.values("mcp-session-id")
        asked = RequestLine(incoming.method, incoming.target, incoming.fields, tuple(session_ids), incoming.owner)
        pairs = self.edge.upstream_pairs(incoming, without=_FOR_THE_SESSION)
        return read_call(self.services.sessions, asked, pairs, self.edge.move(incoming))

    # -- passing on ---------------------------------------------------------------------------------------------------

    def _passing(self, incoming: Incoming) -> Passthrough:
        pairs = self.edge.upstream_pairs(incoming)
        length = incoming.fields.value("content-length")
        if length is not None and incoming.request.upload is not None and not self._is_held(incoming):
            pairs.append(("Content-Length", length))
        return Passthrough(
            self.services,
            incoming.responder,
            method=incoming.method,
            target=incoming.target,
            pairs=pairs,
            move=self.edge.move(incoming),
            without=self._hidden(incoming),
            owner=incoming.owner,
        )

    def _hidden(self, incoming: Incoming) -> frozenset[str]:
        """On the endpoint nothing that passes opens a session, and some clients adopt whatever id a response carries."""
        is_sessionless = incoming.message is not None or is_sessionless_version(incoming.fields.value(_VERSION))
        if is_sessionless or self.services.policy.observes or not self._is_endpoint(incoming):
            return frozenset()
        return frozenset({"mcp-session-id"})

    @staticmethod
    def _is_held(incoming: Incoming) -> bool:
        return incoming.message is not None

    # -- what must not happen -----------------------------------------------------------------------------------------

    async def _give_up(self, incoming: Incoming) -> None:
        """A definite answer even for a bug; whether the request ran is not known any more."""
        if incoming.responder.is_committed and not incoming.responder.is_event_stream:
            incoming.responder.cut()
        elif incoming.in_session and incoming.message is not None:
            await incoming.responder.give(replies.in_session(incoming.message, Reason.OUTCOME_UNKNOWN))
        else:
            await incoming.responder.give(refusals.OWN_FAULT)


class ParkedStream:
    """A request whose listening stream is open while nothing is to be done; ``downstream.response.Parked``."""

    __slots__ = ("_incoming", "_listener", "_router")

    def __init__(self, router: Router, incoming: Incoming, listener: Listener) -> None:
        """``listener`` is the one of ``incoming``."""
        self._router = router
        self._incoming = incoming
        self._listener = listener

    async def go_on(self) -> None:
        """See ``Parked``."""
        await self._router.go_on(self._incoming, self._listener)

    def left(self) -> None:
        """See ``Parked``."""
        self._listener.within(self._router.left, self._incoming)
