"""The second listener: the status page, probes, metrics, sessions, and the start of a drain.

The law of this file: it shows counts, names and short hashes, and the one thing that it changes is to begin the drain. On a
loopback listener only requests whose ``Host`` is loopback, its own or listed are answered, as on the main listener: else any
web page could read it through a name that it points at 127.0.0.1. No ``Host`` at all passes, since no browser leaves it out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Final, Protocol
from urllib.parse import parse_qsl, urlsplit

from mcp_sidecar.downstream.common import Patience
from mcp_sidecar.downstream.request import Request
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.downstream.server import Server
from mcp_sidecar.ops import page
from mcp_sidecar.ops.access import Access, comes_from_elsewhere, is_loopback
from mcp_sidecar.ops.metrics import Metrics
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.reply import OwnAnswer
from mcp_sidecar.wire.request import Fault, path_of, without_escapes

SESSIONS_PER_SLICE = 500
"""How many sessions are written before others get their turn: a hundred thousand would hold up the proxy."""

MAX_STATUS_STREAMS = 32
STATUS_INTERVAL_S = 1.0
STATUS_SILENT_S = 15.0
MAX_HEADER_BYTES = 32 * 1024
CLIENT_S = 10.0
"""How long a client may send nothing of a request that it has begun, or take nothing of what is written."""

Handler = Callable[[Request], Awaitable[OwnAnswer]]


class Sessions(Protocol):
    """The sessions that there are."""

    def __len__(self) -> int: ...

    def rows(self, *, after: str = "", limit: int | None = None) -> Iterator[Mapping[str, object]]:
        """One mapping per session, as the contract lists them, in the order of ``session``."""


class Watched(Protocol):
    """What is looked at, and told to drain."""

    @property
    def sessions(self) -> Sessions:
        """The sessions that there are."""

    @property
    def is_accepting(self) -> bool:
        """Whether new requests are taken; false while draining."""

    async def upstream_is_there(self) -> bool:
        """Whether the upstream accepts connections, by a try if nobody knows."""

    def begin_drain(self) -> None:
        """Drain, and go on running."""

    def status(self) -> str:
        """The live part of the status page."""

    def settings(self) -> str:
        """The settings in effect, secrets masked."""


class Calls(Protocol):
    """The last calls, which a developer is shown with all that was said in them: to this machine only."""

    def part(self) -> page.Part:
        """What the status page shows of them."""

    def newer(self, than: int) -> str:
        """Those behind a number, as the page shows them; empty where there are none."""

    async def again(self, number: int) -> str:
        """Send one of them again, and say what came of it."""


class Admin:
    """The admin listener. ``allowed_hosts`` are values of ``Host``, with a port or for any."""

    def __init__(
        self,
        metrics: Metrics,
        watched: Watched,
        access: Access,
        *,
        clock: Callable[[], float],
        note_failed: Callable[[Exception], None],
        allowed_hosts: Iterable[str] = (),
        calls: Calls | None = None,
    ) -> None:
        """``clock`` gives monotonic seconds; ``note_failed`` is told of a bug.

        ``calls``: it runs for a developer, who is shown them on a loopback listener.
        """
        self._metrics = metrics
        self._watched = watched
        self._access = access
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._calls = calls
        self._clock = clock
        self.note_failed = note_failed
        self._routes: Mapping[str, Mapping[str, Handler]] = {}
        self._on_loopback = False
        self._server: Server | None = None
        self._streams = 0

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and return the address bound (port 0 picks one). Raises OSError where the port is taken."""
        server = Server(
            self, _UNREADABLE, max_header_bytes=MAX_HEADER_BYTES, patience=Patience(CLIENT_S), clock=self._clock
        )
        self._on_loopback = is_loopback(host)
        self._routes = self._all_routes()
        bound = await server.start(host, port)
        self._server = server
        return bound

    async def stop(self) -> None:
        """Stop listening; nothing happens where it has not started."""
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    def _all_routes(self) -> Mapping[str, Mapping[str, Handler]]:
        """By path and by method."""
        routes = {
            "/livez": _read_by(self._livez),
            "/readyz": _read_by(self._readyz),
            "/metrics": _read_by(self._render_metrics),
            "/sessions": _read_by(self._guarded(self._list_sessions)),
            "/": _read_by(self._guarded(self._page)),
            "/status": {"GET": self._guarded(self._status)},
            "/drain": {"POST": self._guarded(self._drain)},
        }
        if not self._on_loopback:
            self._calls = None
        if self._calls is not None:
            routes["/calls"] = _read_by(self._only_here(self._newer_calls))
            routes["/calls/again"] = {"POST": self._only_here(self._call_again)}
        return routes

    # -- what the server asks -----------------------------------------------------------------------------------------

    async def handle(self, request: Request, responder: Responder) -> None:
        """Answer one request."""
        try:
            answer = await self._answer(request)
        except Exception as error:  # noqa: BLE001 - whoever asks shall not take it for a network's fault
            self.note_failed(error)
            answer = _text(500, "failed\n")
        if answer is _STREAM:
            await self._send_status(responder)
        else:
            await responder.give(answer)

    async def _answer(self, request: Request) -> OwnAnswer:
        if self._on_loopback and not self._names_us(request.fields.values("host")):
            return _text(403, "host not allowed\n")
        methods = self._routes.get(without_escapes(path_of(request.target)))
        if methods is None:
            return _text(404, "not found\n")
        handler = methods.get(request.method)
        if handler is None:
            return _text(405, "method not allowed\n", ("Allow", ", ".join(methods)))
        return await handler(request)

    def note_unread(self, answer: OwnAnswer) -> None:
        """Nobody counts it."""

    def note_left(self, request: Request) -> None:
        """Nobody counts it."""

    def note_gone(self, connection: Hashable) -> None:
        """Nothing was kept for it."""

    # -- who may ------------------------------------------------------------------------------------------------------

    def _names_us(self, hosts: Sequence[str]) -> bool:
        if not hosts:
            return True
        host = hosts[0].strip().lower()
        name = _name(host)
        known = host in self._allowed_hosts or name in self._allowed_hosts
        return known or is_loopback(name.strip("[]"))

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> OwnAnswer:
            headers = request.fields.pairs
            if request.method == "POST" and comes_from_elsewhere(headers, request.fields.value("host") or ""):
                return _text(403, "not for web pages of other origins\n")
            if self._access.allows(request.peer, headers):
                return await handler(request)
            if not self._access.has_token:
                return _text(403, "only for this machine, unless admin.token_file is set\n")
            asks = ("WWW-Authenticate", 'Basic realm="mcp-sidecar", charset="UTF-8"')
            return _text(401, "the token of admin.token_file is needed, as bearer or as password\n", asks)

        return guarded

    def _only_here(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> OwnAnswer:
            if comes_from_elsewhere(request.fields.pairs, request.fields.value("host") or ""):
                return _text(403, "not for web pages of other origins\n")
            if not self._access.is_here(request.peer, request.fields.pairs):
                return _text(403, "only for this machine\n")
            return await handler(request)

        return guarded

    # -- for machines -------------------------------------------------------------------------------------------------

    async def _livez(self, _request: Request) -> OwnAnswer:
        return _text(200, "ok\n")

    async def _readyz(self, request: Request) -> OwnAnswer:
        if not self._watched.is_accepting:
            return _text(503, "draining\n")
        if _query(request).get("upstream") == "1" and not await self._watched.upstream_is_there():
            return _text(503, "upstream away\n")
        return _text(200, "ok\n")

    async def _render_metrics(self, request: Request) -> OwnAnswer:
        body, content_type = self._metrics.render(request.fields.value("accept"))
        return _answer(200, body, content_type)

    async def _list_sessions(self, request: Request) -> OwnAnswer:
        limit = _query(request).get("limit", "")
        if limit and not _is_number(limit):
            return _text(400, "limit must be a number\n")
        sessions = self._watched.sessions
        count, slices = len(sessions), []
        rows = sessions.rows(after=_query(request).get("after", ""), limit=int(limit) if limit else None)
        while part := [dict(row) for row in islice(rows, SESSIONS_PER_SLICE)]:
            slices.append(json.dumps(part)[1:-1])
            await asyncio.sleep(0)
        body = f'{{"count": {count}, "sessions": [{", ".join(slices)}]}}\n'
        return _answer(200, body.encode(), "application/json")

    async def _drain(self, _request: Request) -> OwnAnswer:
        self._watched.begin_drain()
        return _text(200, "draining\n")

    # -- for people ---------------------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> OwnAnswer:
        is_shown = self._calls is not None and self._access.is_here(request.peer, request.fields.pairs)
        part = self._calls.part() if self._calls is not None and is_shown else page.NO_PART
        text = page.whole(self._watched.status(), self._watched.settings(), part)
        policies = (("Content-Security-Policy", page.policy(part)), ("Referrer-Policy", "no-referrer"))
        return _answer(200, text.encode(), "text/html; charset=utf-8", *policies)

    async def _newer_calls(self, request: Request) -> OwnAnswer:
        assert self._calls is not None, "no route without them"
        number = _number(_query(request).get("after", ""))
        return _answer(200, self._calls.newer(number).encode(), "text/html; charset=utf-8")

    async def _call_again(self, request: Request) -> OwnAnswer:
        assert self._calls is not None, "no route without them"
        return _text(200, await self._calls.again(_number(_query(request).get("number", ""))))

    async def _status(self, _request: Request) -> OwnAnswer:
        return _STREAM if self._streams < MAX_STATUS_STREAMS else _text(503, "too many status streams\n")

    async def _send_status(self, responder: Responder) -> None:
        """Until the reader leaves, or takes nothing any more."""
        shown, silent_s = "", 0.0
        self._streams += 1
        try:
            await responder.start(_STREAM.status, None, [("Content-Type", "text/event-stream"), *_STREAM.headers])
            while True:
                status = self._watched.status()
                if status != shown or silent_s >= STATUS_SILENT_S:
                    event = f"data: {status}\n\n" if status != shown else ": here\n\n"
                    await responder.write(event.encode())
                    shown, silent_s = status, 0.0
                await asyncio.sleep(STATUS_INTERVAL_S)
                silent_s += STATUS_INTERVAL_S
        finally:
            self._streams -= 1


def _read_by(handler: Handler) -> Mapping[str, Handler]:
    return {"GET": handler, "HEAD": handler}


def _query(request: Request) -> Mapping[str, str]:
    """Of what is said twice the first."""
    return dict(reversed(parse_qsl(request.target.partition("?")[2])))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _number(text: str) -> int:
    return int(text) if _is_number(text) else 0


def _name(host: str) -> str:
    """Cut the port off a ``Host``; brackets stay."""
    try:
        authority = urlsplit(f"//{host}")
        port = authority.port
    except ValueError:
        return ""
    return host if port is None else host.removesuffix(f":{port}")


_COMMON: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
_STREAM: Final = OwnAnswer(HTTPStatus.OK, headers=_COMMON)
"""Of the status stream, whose events follow."""


def _text(status: int, text: str, *more: Pair) -> OwnAnswer:
    return _answer(status, text.encode(), "text/plain; charset=utf-8", *more)


def _answer(status: int, body: bytes, content_type: str, *more: Pair) -> OwnAnswer:
    return OwnAnswer(status, content_type, body, (*_COMMON, *more))


_UNREADABLE: Final = {
    Fault.UNREADABLE: _text(400, "not HTTP\n"),
    Fault.HEAD_TOO_LARGE: _text(431, "the head is too large\n"),
    Fault.BAD_CODING: _text(501, "no transfer coding but chunked\n"),
    Fault.HEAD_TOO_SLOW: _text(408, "the head was not sent to its end\n"),
}
