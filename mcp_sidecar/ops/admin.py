"""The second listener: the status page, probes, metrics, sessions, and the start of a drain.

The law of this file: it shows counts, names and short hashes, and the one thing that it changes is to begin the drain. On a
loopback listener only requests whose ``Host`` is loopback, its own or listed are answered, as on the main listener: else any
web page could read it through a name that it points at 127.0.0.1. No ``Host`` at all passes, since no browser leaves it out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import web

from mcp_sidecar.ops import page
from mcp_sidecar.ops.access import Access, comes_from_elsewhere, is_loopback
from mcp_sidecar.ops.metrics import Metrics

SESSIONS_PER_SLICE = 500
"""How many sessions are written before others get their turn: a hundred thousand would hold up the proxy."""

MAX_STATUS_STREAMS = 32
STATUS_INTERVAL_S = 1.0
STATUS_SILENT_S = 15.0
WRITE_WITHIN_S = 10.0
"""How long a status stream may take nothing of what is written."""

SHUTDOWN_SECONDS = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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
        allowed_hosts: Iterable[str] = (),
        calls: Calls | None = None,
    ) -> None:
        """``calls``: it runs for a developer, who is shown them on a loopback listener."""
        self._metrics = metrics
        self._watched = watched
        self._access = access
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._calls = calls
        self._runner: web.AppRunner | None = None
        self._streams: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and return the address bound (port 0 picks one). Raises OSError where the port is taken."""
        runner = web.AppRunner(self._application(host), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        bound: tuple[str, int] = runner.addresses[0][:2]
        return bound

    async def stop(self) -> None:
        """Stop listening; nothing happens where it has not started."""
        runner, self._runner = self._runner, None
        for stream in list(self._streams):
            stream.cancel()
        if runner is not None:
            await runner.cleanup()

    def _application(self, host: str) -> web.Application:
        application = web.Application(middlewares=[self._only_own_hosts] if is_loopback(host) else [])
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._render_metrics)
        application.router.add_get("/sessions", self._guarded(self._list_sessions))
        application.router.add_get("/", self._guarded(self._page))
        application.router.add_get("/status", self._guarded(self._status), allow_head=False)
        application.router.add_post("/drain", self._guarded(self._drain))
        if not is_loopback(host):
            self._calls = None
        if self._calls is not None:
            application.router.add_get("/calls", self._only_here(self._newer_calls))
            application.router.add_post("/calls/again", self._only_here(self._call_again))
        return application

    # -- who may ------------------------------------------------------------------------------------------------------

    @web.middleware
    async def _only_own_hosts(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._names_us(request.headers.getall("Host", [])):
            return _text(403, "host not allowed\n")
        return await handler(request)

    def _names_us(self, hosts: Sequence[str]) -> bool:
        if not hosts:
            return True
        host = hosts[0].strip().lower()
        name = _name(host)
        known = host in self._allowed_hosts or name in self._allowed_hosts
        return len(hosts) == 1 and (known or is_loopback(name.strip("[]")))

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            headers = list(request.headers.items())
            if request.method == "POST" and comes_from_elsewhere(headers, request.headers.get("Host", "")):
                return _text(403, "not for web pages of other origins\n")
            if self._access.allows(request.remote, headers):
                return await handler(request)
            if not self._access.has_token:
                return _text(403, "only for this machine, unless admin.token_file is set\n")
            refusal = _text(401, "the token of admin.token_file is needed, as bearer or as password\n")
            refusal.headers["WWW-Authenticate"] = 'Basic realm="mcp-sidecar", charset="UTF-8"'
            return refusal

        return guarded

    def _only_here(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            headers = list(request.headers.items())
            if comes_from_elsewhere(headers, request.headers.get("Host", "")):
                return _text(403, "not for web pages of other origins\n")
            if not self._access.is_here(request.remote, headers):
                return _text(403, "only for this machine\n")
            return await handler(request)

        return guarded

    # -- for machines -------------------------------------------------------------------------------------------------

    async def _livez(self, _request: web.Request) -> web.StreamResponse:
        return _text(200, "ok\n")

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        if not self._watched.is_accepting:
            return _text(503, "draining\n")
        if request.query.get("upstream") == "1" and not await self._watched.upstream_is_there():
            return _text(503, "upstream away\n")
        return _text(200, "ok\n")

    async def _render_metrics(self, request: web.Request) -> web.StreamResponse:
        body, content_type = self._metrics.render(request.headers.get("Accept"))
        return _answer(200, body, content_type)

    async def _list_sessions(self, request: web.Request) -> web.StreamResponse:
        limit = request.query.get("limit", "")
        if limit and not _is_number(limit):
            return _text(400, "limit must be a number\n")
        sessions = self._watched.sessions
        count, slices = len(sessions), []
        rows = sessions.rows(after=request.query.get("after", ""), limit=int(limit) if limit else None)
        while part := [dict(row) for row in islice(rows, SESSIONS_PER_SLICE)]:
            slices.append(json.dumps(part)[1:-1])
            await asyncio.sleep(0)
        body = f'{{"count": {count}, "sessions": [{", ".join(slices)}]}}\n'
        return _answer(200, body.encode(), "application/json")

    async def _drain(self, _request: web.Request) -> web.StreamResponse:
        self._watched.begin_drain()
        return _text(200, "draining\n")

    # -- for people ---------------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        is_shown = self._calls is not None and self._access.is_here(request.remote, list(request.headers.items()))
        part = self._calls.part() if self._calls is not None and is_shown else page.NO_PART
        text = page.whole(self._watched.status(), self._watched.settings(), part)
        answer = _answer(200, text.encode(), "text/html; charset=utf-8")
        answer.headers["Content-Security-Policy"] = page.policy(part)
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer

    async def _newer_calls(self, request: web.Request) -> web.StreamResponse:
        assert self._calls is not None, "no route without them"
        number = _number(request.query.get("after", ""))
        return _answer(200, self._calls.newer(number).encode(), "text/html; charset=utf-8")

    async def _call_again(self, request: web.Request) -> web.StreamResponse:
        assert self._calls is not None, "no route without them"
        return _text(200, await self._calls.again(_number(request.query.get("number", ""))))

    async def _status(self, request: web.Request) -> web.StreamResponse:
        if len(self._streams) >= MAX_STATUS_STREAMS:
            return _text(503, "too many status streams\n")
        stream = asyncio.create_task(self._send_status(request, answer := web.StreamResponse(headers=_STREAM)))
        self._streams.add(stream)
        stream.add_done_callback(self._forget)
        try:
            await asyncio.gather(stream, return_exceptions=True)
        finally:
            stream.cancel()
        return answer

    def _forget(self, stream: asyncio.Task[None]) -> None:
        """It has ended; that its reader has left is nobody's news."""
        self._streams.discard(stream)
        if not stream.cancelled():
            stream.exception()

    async def _send_status(self, request: web.Request, answer: web.StreamResponse) -> None:
        shown, silent_s = "", 0.0
        await answer.prepare(request)
        while True:
            status = self._watched.status()
            if status != shown or silent_s >= STATUS_SILENT_S:
                event = f"data: {status}\n\n" if status != shown else ": here\n\n"
                async with asyncio.timeout(WRITE_WITHIN_S):
                    await answer.write(event.encode())
                shown, silent_s = status, 0.0
            await asyncio.sleep(STATUS_INTERVAL_S)
            silent_s += STATUS_INTERVAL_S


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


_COMMON = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_STREAM = {"Content-Type": "text/event-stream", **_COMMON}


def _text(status: int, text: str) -> web.Response:
    return _answer(status, text.encode(), "text/plain; charset=utf-8")


def _answer(status: int, body: bytes, content_type: str) -> web.Response:
    # Set as a header: aiohttp takes no parameters in its `content_type`, and Prometheus needs them.
    return web.Response(status=status, body=body, headers={"Content-Type": content_type, **_COMMON})
