"""The second listener: ``/livez``, ``/readyz``, ``/metrics`` and ``/sessions``, for GET and HEAD.

The law of this file: it shows counts and short hashes, and changes nothing. On a loopback listener only requests whose
``Host`` is loopback, its own or listed are answered, as on the main listener: else any web page could read it through a
name that it points at 127.0.0.1. No ``Host`` at all passes, since no browser leaves it out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from aiohttp import web

from mcp_sidecar.ops.metrics import Metrics

SESSIONS_PER_SLICE = 500
"""How many sessions are written before others get their turn: a hundred thousand would hold up the proxy."""

SHUTDOWN_SECONDS = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """The admin listener.

    ``sessions_view`` gives one mapping per session, as the contract lists them; ``accepting`` tells whether new requests
    are taken, false while draining. ``allowed_hosts`` are values of ``Host``, with a port or for any.
    """

    def __init__(
        self,
        metrics: Metrics,
        sessions_view: Callable[[], Sequence[Mapping[str, object]]],
        accepting: Callable[[], bool],
        *,
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        self._metrics = metrics
        self._sessions_view = sessions_view
        self._accepting = accepting
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._runner: web.AppRunner | None = None

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
        if runner is not None:
            await runner.cleanup()

    def _application(self, host: str) -> web.Application:
        application = web.Application(middlewares=[self._only_own_hosts] if is_loopback(host) else [])
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._render_metrics)
        application.router.add_get("/sessions", self._list_sessions)
        return application

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

    async def _livez(self, _request: web.Request) -> web.StreamResponse:
        return _text(200, "ok\n")

    async def _readyz(self, _request: web.Request) -> web.StreamResponse:
        return _text(200, "ok\n") if self._accepting() else _text(503, "draining\n")

    async def _render_metrics(self, request: web.Request) -> web.StreamResponse:
        body, content_type = self._metrics.render(request.headers.get("Accept"))
        return _answer(200, body, content_type)

    async def _list_sessions(self, _request: web.Request) -> web.StreamResponse:
        sessions = self._sessions_view()
        slices = []
        for start in range(0, len(sessions), SESSIONS_PER_SLICE):
            rows = [dict(row) for row in sessions[start : start + SESSIONS_PER_SLICE]]
            slices.append(json.dumps(rows)[1:-1])
            await asyncio.sleep(0)
        body = f'{{"count": {len(sessions)}, "sessions": [{", ".join(slices)}]}}\n'
        return _answer(200, body.encode(), "application/json")


def is_loopback(host: str) -> bool:
    """Tell whether a host, without brackets and port, is this machine as only itself can call it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """Cut the port off a ``Host``; brackets stay."""
    try:
        authority = urlsplit(f"//{host}")
        port = authority.port
    except ValueError:
        return ""
    return host if port is None else host.removesuffix(f":{port}")


def _text(status: int, text: str) -> web.Response:
    return _answer(status, text.encode(), "text/plain; charset=utf-8")


def _answer(status: int, body: bytes, content_type: str) -> web.Response:
    # Set as a header: aiohttp takes no parameters in its `content_type`, and Prometheus needs them.
    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(status=status, body=body, headers=headers)
