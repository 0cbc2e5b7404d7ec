"""The composition root: build the services, listen, drain, stop.

Admin starts first and stops last, so that readiness tells the truth throughout. Nothing below this module has seen the
settings; they arrive there as small frozen values.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Callable

from mcp_sidecar.config import ListenConfig
from mcp_sidecar.downstream.common import Patience
from mcp_sidecar.downstream.keepalive import Keepalive
from mcp_sidecar.downstream.server import Server
from mcp_sidecar.endpoint import refusals
from mcp_sidecar.endpoint.router import Router
from mcp_sidecar.facts import Emit, Fact
from mcp_sidecar.healing.labels import RPC_METHODS
from mcp_sidecar.healing.principal import Principals
from mcp_sidecar.ops import logs
from mcp_sidecar.ops.admin import Admin
from mcp_sidecar.ops.metrics import Metrics
from mcp_sidecar.sessions.heal import HealServices
from mcp_sidecar.sessions.healer import Healer
from mcp_sidecar.sessions.list_check import ListCheck
from mcp_sidecar.sessions.notifier import Notifier
from mcp_sidecar.sessions.open_streams import OpenStreams
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.sessions.sessions import Sessions
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.settings import Settings
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.verdicts.signatures import TABLE
from mcp_sidecar.waiting.hold import Holds

try:
    from mcp_sidecar.fastpath.door import door_to
except ModuleNotFoundError:  # the proxy works without it
    door_to = None  # type: ignore[assignment]

COULD_NOT_LISTEN = 1
DESCRIPTORS_PER_STREAM = 2
"""An open stream is a connection of the client and one to the upstream."""
SPARE_DESCRIPTORS = 64
COLLECT_AFTER = (20_000, 20, 20)
"""New objects before a collection, and collections before one of the next older generation."""
SWEEP_INTERVAL_S = 30.0
SILENT_INTERVALS = 3
"""For so many comment intervals a client may take nothing of a stream."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. 1 if an address cannot be listened on."""
    _collect_rarely()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings))


def _collect_rarely() -> None:
    """Nearly everything here is freed at once; looking for more took a tenth of the time, under a restart a quarter."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed, which is where it can be (docs/decisions/0006); else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _raise_descriptor_limit() -> int | None:
    """Take all the descriptors that this process may have; how many that are, ``None`` where there is no limit."""
    try:
        import resource
    except ImportError:  # not on every platform
        return None
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where the hard limit is more than the system takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    return limit if limit != resource.RLIM_INFINITY else None


def _tell_low_limit(limit: int | None, max_sessions: int) -> None:
    """Say so where the descriptors are too few for an open stream of every session."""
    needed = DESCRIPTORS_PER_STREAM * max_sessions + SPARE_DESCRIPTORS
    if limit is not None and limit < needed:
        streams = max(0, limit - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_STREAM
        logs.log().warning(
            "descriptor_limit_low", limit=limit, needed=needed, streams=streams, max_sessions=max_sessions
        )


async def _serve(settings: Settings) -> int:
    limit = _raise_descriptor_limit()
    sidecar = Sidecar(settings)
    first, second = _stop_signals()
    try:
        await sidecar.start()
    except OSError as error:
        sys.stderr.write(f"{sidecar.starting}: {error.strerror or error}\n")
        await sidecar.stop()
        return COULD_NOT_LISTEN
    logs.log().info(
        "listening", address=sidecar.address, admin=sidecar.admin_address, mode=settings.policy().mode.value
    )
    _tell_low_limit(limit, settings.session_limits().max_sessions)
    await first.wait()
    await _stop(sidecar, second)
    logs.log().info("stopped")
    return 0


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first and by the second signal to stop; before anybody is told that the process listens."""
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return first, second


async def _stop(sidecar: Sidecar, second: asyncio.Event) -> None:
    logs.log().info("draining")
    drain = asyncio.create_task(sidecar.drain())
    cut = asyncio.create_task(second.wait())
    await asyncio.wait({drain, cut}, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, cut):
        task.cancel()
    await asyncio.gather(drain, cut, return_exceptions=True)
    await sidecar.stop()


class Sidecar:
    """The running proxy: one main listener, one admin listener, one upstream."""

    def __init__(self, settings: Settings) -> None:
        """Needs a running event loop."""
        self._settings = settings
        self._listen = settings.listen_config()
        self._is_accepting = False
        self._metrics = Metrics(
            signatures=[row.name for row in (*settings.policy().signatures, *TABLE)], rpc_methods=RPC_METHODS
        )
        self.services = build_services(settings, self._emit)
        self._keepalive = Keepalive(self._listen.comment_interval_s, self.services.clock)
        self._ingress = Router(self.services, self._keepalive, self._listen, settings.upstream_config())
        self._server = self._new_server()
        self._admin = Admin(
            self._metrics,
            self._sessions_view,
            lambda: self._is_accepting,
            allowed_hosts=self._listen.allowed_hosts,
        )
        self._sweeper: asyncio.Task[None] | None = None
        self.address = ""
        self.admin_address: str | None = None
        self.starting = ""
        self._bind_gauges()

    async def start(self) -> None:
        """Listen. Raises OSError where an address cannot be had; ``starting`` then says which."""
        await self.services.upstream.open()
        admin = self._settings.admin_address
        if admin is not None:
            self.starting = f"admin.address {_shown(*admin)}"
            self.admin_address = _shown(*await self._admin.start(*admin))
        self.starting = f"listen.address {_shown(self._listen.host, self._listen.port)}"
        host, port = await self._server.start(self._listen.host, self._listen.port, _tls_context(self._listen))
        self._ingress.bound_to(host, port)
        self.address = _shown(host, port)
        self._sweeper = asyncio.create_task(self._sweep())
        self._is_accepting = True

    async def drain(self) -> None:
        """Stop accepting, end GET streams, release what is held, and wait for the POST exchanges."""
        self._is_accepting = False
        self._server.announce_end()
        self._server.stop_accepting()
        self.services.holds.drain()
        self.services.streams.listening.end_all()
        await self._ingress.wait_until_idle(self._listen.drain_timeout_s)

    async def stop(self) -> None:
        """Cut what is still open, and let go of everything."""
        self._is_accepting = False
        await self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self.services.holds.availability.stop()
        await self.services.sessions.stop()
        await self._keepalive.stop()
        await self.services.upstream.close()
        await self._admin.stop()

    def _new_server(self) -> Server:
        limits = self.services.limits
        server = Server(
            self._ingress,
            refusals.OF_UNREADABLE,
            max_header_bytes=limits.max_header_bytes,
            patience=Patience(limits.client_timeout_s, self._listen.comment_interval_s * SILENT_INTERVALS),
            clock=self.services.clock,
        )
        door = door_to(self._ingress) if door_to is not None else None
        if door is not None:
            server.open_door(door)
        return server

    def _emit(self, fact: Fact) -> None:
        self._metrics.record(fact)
        logs.log_fact(fact)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.services.sessions.table.sweep()

    def _bind_gauges(self) -> None:
        services = self.services
        self._metrics.bind(
            sessions=lambda: len(services.sessions.table),
            held_requests=lambda: len(services.holds),
            get_streams=lambda: services.streams.open.get_streams,
            post_streams=lambda: services.streams.open.post_streams,
            upstream_up=lambda: services.holds.availability.is_up,
        )

    def _sessions_view(self) -> list[dict[str, object]]:
        now = self.services.clock()
        return [
            {
                "session": session.label,
                "age_seconds": round(now - session.created_at, 3),
                "idle_seconds": round(now - session.last_used_at, 3),
                "generation": session.generation,
                "state": session.state.value,
                "protocol_version": session.handshake.protocol_version,
                "streams": session.streams,
            }
            for session in self.services.sessions.table
        ]


def build_services(settings: Settings, emit: Emit) -> Services:
    """Put together what every exchange works with. Needs a running event loop."""
    policy, limits, clock = settings.policy(), settings.limits_config(), time.monotonic
    streams = OpenStreams()
    table = SessionTable(
        settings.session_limits(),
        emit,
        salt=secrets.token_bytes(16),
        clock=clock,
        new_tag=_new_tag,
        on_displaced=streams.upstream.break_off,
    )
    upstream = Upstream(settings.upstream_config(), limits, lambda connected: holds.availability.note(connected))  # noqa: PLW0108 - made below
    holds = Holds(
        max_requests=policy.max_held_requests,
        max_bytes=policy.max_held_bytes,
        can_connect=upstream.can_connect,
        emit=emit,
        clock=clock,
    )
    notifier = Notifier(streams.listening, emit)
    healing = HealServices(
        upstream, table, notifier, policy, limits.max_buffered_answer, emit, clock, streams.listening
    )
    principals = Principals(policy.principal_headers, secrets.token_bytes(32))
    healer, list_check = Healer(healing, holds), ListCheck(healing)
    return Services(
        upstream=upstream,
        sessions=Sessions(table, principals, policy.bind_principal, healer, notifier, list_check),
        holds=holds,
        streams=streams,
        policy=policy,
        limits=limits,
        emit=emit,
        clock=clock,
    )


def _new_tag() -> str:
    return secrets.token_hex(6)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls_context(listen: ListenConfig) -> ssl.SSLContext | None:
    if listen.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(listen.tls_certificate, listen.tls_key)
    return context
