"""The composition root: build the services, listen, drain, stop.

Admin starts first and stops last, so that readiness tells the truth throughout. Nothing here has seen the settings;
they arrive as small frozen values. The process around it is ``process``'s business.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mcp_sidecar import __version__
from mcp_sidecar.config import ListenConfig, SessionLimits, SidecarConfig, StoreConfig, UpstreamConfig
from mcp_sidecar.downstream.common import Patience
from mcp_sidecar.downstream.keepalive import Keepalive
from mcp_sidecar.downstream.server import Server
from mcp_sidecar.downstream.tls import ServerTls
from mcp_sidecar.endpoint import refusals
from mcp_sidecar.endpoint.router import Router, Watch
from mcp_sidecar.facts import AnswerUnreadable, Emit, Fact, RequestServed
from mcp_sidecar.healing.labels import RPC_METHODS
from mcp_sidecar.healing.principal import Principals
from mcp_sidecar.ops import exporters, logs, page
from mcp_sidecar.ops.access import Access
from mcp_sidecar.ops.admin import Admin, Calls
from mcp_sidecar.ops.metrics import Metrics
from mcp_sidecar.ops.status import USUAL, Load, Now, Place, StatusBoard
from mcp_sidecar.sessions.asker import Asker
from mcp_sidecar.sessions.heal import HealServices
from mcp_sidecar.sessions.healer import Healer
from mcp_sidecar.sessions.keeper import Keeper
from mcp_sidecar.sessions.list_check import ListCheck
from mcp_sidecar.sessions.notifier import Notifier
from mcp_sidecar.sessions.open_streams import OpenStreams
from mcp_sidecar.sessions.refresher import SessionRefresher
from mcp_sidecar.sessions.rounds import Rounds
from mcp_sidecar.sessions.services import Services
from mcp_sidecar.sessions.sessions import Sessions
from mcp_sidecar.sessions.store_guard import StoreGuard
from mcp_sidecar.sessions.stores.by_url import key_ring, store_at
from mcp_sidecar.sessions.stores.keys import BadKeys, KeyRing
from mcp_sidecar.sessions.stores.store import StoreUnusable, Times
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.sessions.view import SessionsView
from mcp_sidecar.token_file import TokenFile
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.verdicts.signatures import TABLE
from mcp_sidecar.waiting.first_byte import FirstByteWatch
from mcp_sidecar.waiting.hold import Holds
from mcp_sidecar.wire.origins import is_loopback

if TYPE_CHECKING:
    from mcp_sidecar.sessions.tokens import Tokens

try:
    from mcp_sidecar.fastpath.door import door_to
except ModuleNotFoundError:  # the proxy works without it
    door_to = None  # type: ignore[assignment]

SWEEP_INTERVAL_S = 30.0
SILENT_INTERVALS = 3
"""For so many comment intervals a client may take nothing of a stream."""


class CannotStart(Exception):
    """Something that was configured cannot be used. The text is one line for whoever did."""


class Sidecar:
    """The running proxy: one main listener, one admin listener, one upstream."""

    def __init__(
        self,
        config: SidecarConfig,
        clock: Callable[[], float] = time.monotonic,
        *,
        watch: Watch | None = None,
        calls: Calls | None = None,
    ) -> None:
        """Needs a running event loop. ``clock`` gives monotonic seconds. Raises ``CannotStart``.

        ``watch``: it runs for a developer, who is shown what passes, and whose clients are promised to hear of changes.
        ``calls``: those that the status page shows the developer.
        """
        self._config = config
        self._watch = watch
        self._listen = config.listen
        self.is_accepting = False
        self._metrics = Metrics(
            signatures=[row.name for row in (*config.policy.signatures, *TABLE)], rpc_methods=RPC_METHODS
        )
        try:
            self.services = build_services(config, self._emit, clock, promises_lists=watch is not None)
        except StoreUnusable as error:
            raise CannotStart(f"sessions.store: {error}") from None
        services = self.services
        self.sessions = SessionsView(services.sessions.table, services.holds, clock)
        self._keepalive = Keepalive(self._listen.comment_interval_s, self.services.clock)
        self._ingress = Router(self.services, self._keepalive, self._listen, config.upstream)
        self._ingress.watch = watch
        self._traces = exporters.traces_for(os.environ, __version__, config.upstream.origin)
        self._ingress.tracer = self._traces
        self._server = self._new_server()
        self._tls: ServerTls | None = None
        self._board = StatusBoard(self._now, self._metrics.calls, page.live, time.time)
        self._admin = Admin(
            self._metrics,
            self,
            Access(_token_file(config)),
            clock=clock,
            note_failed=self._ingress.note_failed,
            allowed_hosts=self._listen.allowed_hosts,
            calls=calls,
        )
        self._draining: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._lookouts: list[asyncio.Task[None]] = []
        self.address = ""
        self.client_url = ""
        self.admin_address: str | None = None
        self.starting = ""
        self._bind_gauges()

    async def start(self) -> None:
        """Listen. Raises OSError where an address cannot be had, which ``starting`` then names, and ``CannotStart``."""
        try:
            await self.services.sessions.rounds.start()
        except StoreUnusable as error:
            raise CannotStart(f"sessions.store: {error}") from None
        self._metrics.describe(
            version=__version__, mode=self.services.policy.mode.value, store=self.store.partition(":")[0]
        )
        await self.services.upstream.open()
        admin = self._config.admin_address
        if admin is not None:
            self.starting = f"admin.address {_shown(*admin)}"
            self.admin_address = _shown(*await self._admin.start(*admin))
        self.starting = f"listen.address {_shown(self._listen.host, self._listen.port)}"
        self._tls = _server_tls(self._listen)
        context = None if self._tls is None else self._tls.context
        host, port = await self._server.start(self._listen.host, self._listen.port, context)
        self._ingress.edge.bound_to(host, port)
        self.address = _shown(host, port)
        self.client_url = self._client_url(host, port)
        self._sweeper = asyncio.create_task(self._sweep())
        self._lookouts = [asyncio.create_task(self._look_out()), asyncio.create_task(self._look_for_silence())]
        self.is_accepting = True

    def cannot_listen(self, error: OSError) -> str:
        """Why ``start`` failed, for whoever chose the address; asyncio has words of its own in each version of Python."""
        number = error.errno or 0
        why = os.strerror(number) if number in errno.errorcode else error.strerror or str(error)
        return f"{self.starting}: {why}"

    def begin_drain(self) -> None:
        """Drain, once, and go on running."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def drain(self) -> None:
        """Stop accepting, end GET streams, release what is held, and wait for the POST exchanges.

        ``listen.drain_delay`` before that all goes on as before, but not ready: balancers have that time to learn it. But
        nobody waits for a server on this host that has gone: it ends with us, as in a pod whose server is stopped first.
        """
        self.begin_drain()
        assert self._draining is not None, "it has begun"
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        self.is_accepting = False
        self._server.announce_end()
        if is_loopback(urlsplit(self._config.upstream.origin).hostname or ""):
            self.services.holds.expect_no_return()
        if self._listen.drain_delay_s:
            await asyncio.sleep(self._listen.drain_delay_s)
        self._server.stop_accepting()
        self.services.holds.drain()
        self.services.streams.listening.cut_all()
        await self._ingress.wait_until_idle(self._listen.drain_timeout_s)

    async def stop(self) -> None:
        """Cut what is still open, and let go of everything."""
        self.is_accepting = False
        await self._server.close()
        for task in (self._sweeper, *self._lookouts, self._draining):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.services.holds.availability.stop()
        await self.services.sessions.stop()
        await self._keepalive.stop()
        await self.services.upstream.close()
        await self._admin.stop()
        if self._traces is not None:
            await self._traces.close()

    def _new_server(self) -> Server:
        limits = self.services.limits
        server = Server(
            self._ingress,
            refusals.OF_UNREADABLE,
            max_header_bytes=limits.max_header_bytes,
            patience=Patience(
                limits.client_timeout_s,
                self._listen.comment_interval_s * SILENT_INTERVALS,
                is_edge=self._ingress.edge.is_proxy,
            ),
            clock=self.services.clock,
        )
        door = door_to(self._ingress) if door_to is not None and self._watch is None and self._traces is None else None
        if door is not None:
            server.open_door(door)
        return server

    def _read_keys_again(self) -> None:
        try:
            if self.services.sessions.rounds.read_keys_again():
                logs.log().info("keys_read")
        except BadKeys as error:
            logs.log().warning("keys_unusable", reason=str(error))

    def read_files_again(self) -> None:
        """Seal with the keys, and make new connections with what the TLS files hold now; what is unusable changes nothing."""
        self._read_keys_again()
        if self._tls is not None:
            _read_again("listen.tls_certificate", self._tls.read_again)
        if self._config.upstream.ca_file is not None:
            _read_again("upstream.ca_file", self.services.upstream.reload)

    @property
    def store(self) -> str:
        """Where sessions are kept, as people are shown it."""
        return str(self.services.sessions.rounds.keeper.store)

    @property
    def open_streams(self) -> int:
        """Event streams to clients, GET and POST."""
        return self.services.streams.open.get_streams + self.services.streams.open.post_streams

    def _client_url(self, host: str, port: int) -> str:
        """What a client on this machine, or behind the edge of ``listen.public_url``, is to be given."""
        near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound
        scheme = "http" if self._tls is None else "https"
        origin = self._listen.public_url or f"{scheme}://{_shown(near, port)}"
        return origin + self._config.upstream.endpoint

    def _emit(self, fact: Fact) -> None:
        self._metrics.record(fact)
        logs.log_fact(fact)
        if fact.__class__ is not RequestServed or fact.outcome not in USUAL:
            self._board.note(fact)
        if self._watch is not None:
            self._watch.heard(fact)
        if self._traces is not None:
            self._traces.heard(fact)

    async def _look_out(self) -> None:
        """Notice an upstream that has gone while nobody asked for anything."""
        while True:
            await asyncio.sleep(self._listen.comment_interval_s)
            self._board.tick()
            await self.services.holds.availability.look()

    async def _look_for_silence(self) -> None:
        """Say that the upstream takes calls and answers none."""
        upstream, availability = self.services.upstream, self.services.holds.availability
        hint_s = self._config.upstream.first_byte_hint_s
        watch = FirstByteWatch(hint_s, lambda: upstream.unanswered_s, availability.since_worked_s, self._emit)
        while hint_s:
            await asyncio.sleep(watch.interval_s)
            watch.look()

    async def upstream_is_there(self) -> bool:
        """Whether it accepts connections, by a try if nobody has tried lately."""
        return await self.services.holds.availability.find_out()

    def status(self) -> str:
        """The live part of the status page."""
        return self._board.html()

    def settings(self) -> str:
        """The settings in effect, secrets masked."""
        return self._config.shown

    def _now(self) -> Now:
        services = self.services
        clients, servers = self.sessions.programs()
        return Now(
            place=Place(
                version=__version__,
                mode=services.policy.mode.value,
                url=self.client_url,
                upstream_url=services.upstream.url,
            ),
            load=Load(sessions=len(self.sessions), streams=self.open_streams, held=len(services.holds)),
            is_up=services.holds.availability.is_up,
            is_draining=not self.is_accepting,
            last_answer=self._last_answer(),
            clients=clients,
            servers=servers,
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.services.sessions.table.sweep_old()
            self.services.sessions.table.sweep()
            await self.services.sessions.rounds.sweep()
            self._read_keys_again()
            if self._tls is not None and self._tls.has_changed():
                self.read_files_again()

    def _bind_gauges(self) -> None:
        services, keeper = self.services, self.services.sessions.rounds.keeper
        self._metrics.bind(
            sessions=lambda: len(services.sessions.table),
            held_requests=lambda: len(services.holds),
            get_streams=lambda: services.streams.open.get_streams,
            post_streams=lambda: services.streams.open.post_streams,
            upstream_up=lambda: services.holds.availability.is_up,
            last_answer=self._last_answer,
            clients=self.sessions.by_client,
            log_lines_dropped=logs.dropped,
        )
        self._metrics.bind_store(is_up=lambda: keeper.store.is_up, unsaved_records=lambda: keeper.unsaved)

    def _last_answer(self) -> float:
        """When the upstream's last success came, in seconds of the wall clock; 0 is never."""
        since_s = self.services.holds.availability.since_worked_s()
        return time.time() - since_s if since_s is not None else 0.0


def build_services(
    config: SidecarConfig, emit: Emit, clock: Callable[[], float], *, promises_lists: bool = False
) -> Services:
    """Put together what every exchange works with. Needs a running event loop."""
    policy, limits = replace(config.policy, promises_lists=promises_lists), config.limits
    streams, keeper = OpenStreams(), _keeper(config, emit, clock)
    table = SessionTable(
        config.sessions,
        emit,
        salt=secrets.token_bytes(16),
        clock=clock,
        new_tag=_new_tag,
        keeper=keeper,
        adopts=policy.bind_principal and policy.adopt_credentials,
        on_displaced=streams.upstream.break_off,
    )

    def note_connect(connected: bool, why: str) -> None:
        holds.availability.note(connected, why)

    upstream = Upstream(config.upstream, limits, note_connect, lambda why: emit(AnswerUnreadable(why)))
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
    principals = Principals(policy.principal_headers, secrets.token_bytes(32), policy.principal_cookies)
    rounds = Rounds(keeper, principals)
    healer, asker, list_check = Healer(healing, holds), Asker(healing, holds), ListCheck(healing)
    refresher = SessionRefresher(healing, list_check)
    sessions = Sessions(
        table, principals, policy.bind_principal, healer, asker, notifier, list_check, refresher, rounds
    )
    return Services(
        upstream=upstream,
        sessions=sessions,
        holds=holds,
        streams=streams,
        policy=policy,
        limits=limits,
        emit=emit,
        clock=clock,
    )


def _read_again(key: str, read: Callable[[], None]) -> None:
    try:
        read()
    except OSError as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        logs.log().warning("tls_files_unusable", key=key, reason=reason)
    else:
        logs.log().info("tls_files_read", key=key)


def _keeper(config: SidecarConfig, emit: Emit, clock: Callable[[], float]) -> Keeper:
    limits, times, kept = config.sessions, Times(time.time, clock), config.store
    if kept.instance == "auto":
        kept = replace(kept, instance=_instance(config.upstream))
    ring = key_ring(kept)
    plain = store_at(kept, limits, times, ring, _warn_of_store)
    store = StoreGuard(plain, timeout_s=kept.timeout_s, clock=clock, emit=emit)
    return Keeper(
        store,
        limits,
        instance=kept.instance,
        namespace=kept.namespace,
        times=times,
        tokens=_tokens(kept, limits, ring),
        ring=ring,
    )


def _tokens(config: StoreConfig, limits: SessionLimits, ring: KeyRing | None) -> Tokens | None:
    """What makes the ids of ``sealed:``; ``None`` for every other store."""
    if config.url != "sealed:" or ring is None:
        return None
    from mcp_sidecar.sessions.tokens import Tokens

    return Tokens(ring, instance=config.instance, namespace=config.namespace, lifetime_s=limits.max_lifetime_s)


def _token_file(config: SidecarConfig) -> TokenFile | None:
    path = config.admin_token_file
    return TokenFile(path) if path is not None else None


def _warn_of_store(detail: str) -> None:
    logs.log().warning("session_store_setting", detail=detail)


def _instance(upstream: UpstreamConfig) -> str:
    """Which upstream this is, to all who share a store: on loopback another on each host."""
    is_here = is_loopback(urlsplit(upstream.origin).hostname or "")
    return f"{socket.gethostname()} {upstream.url}" if is_here else upstream.url


def _new_tag() -> str:
    return secrets.token_hex(6)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _server_tls(listen: ListenConfig) -> ServerTls | None:
    if listen.tls_certificate is None or listen.tls_key is None:
        return None
    return ServerTls(listen.tls_certificate, listen.tls_key)
