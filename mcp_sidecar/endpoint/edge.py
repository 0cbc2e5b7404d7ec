"""The edge: what the client's side is called, who may ask there, and what is said of clients to the upstream.

The rule of this file: nothing here knows MCP, and what was found out of a name is remembered for a bounded number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from mcp_sidecar.config import ListenConfig
from mcp_sidecar.endpoint.inbound import Incoming
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.wire import origins
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.origins import Move
from mcp_sidecar.wire.proxies import FORWARDED, TrustedProxies, told_origin

REMEMBERED_HOSTS = 256


class Edge:
    """One listener in front of one upstream."""

    def __init__(self, listen: ListenConfig, upstream: Upstream, upstream_origin: str) -> None:
        """``bound_to`` is to be called with the address as soon as it is known."""
        self._listen = listen
        self._upstream = upstream
        self._origin = upstream_origin
        self._hosts: dict[str, bool] = {}
        self._origins: dict[str, bool] = {}
        self._moves: dict[str, Move] = {}
        self._proxies = TrustedProxies(listen.trusted_proxies)
        self._own_origins: tuple[str, ...] = (listen.public_url,) if listen.public_url else ()
        self._on_loopback = origins.is_loopback(listen.host)
        self.scheme = "https" if listen.tls_certificate else "http"

    def bound_to(self, host: str, port: int) -> None:
        """The address that the listener got, which is an origin of its own."""
        shown = f"[{host}]" if ":" in host else host
        self._own_origins = (*self._own_origins, f"{self.scheme}://{shown}:{port}")
        self._hosts.clear()
        self._origins.clear()

    def is_proxy(self, peer: str | None) -> bool:
        """Whether an address is that of a proxy in front of us."""
        return self._proxies.holds(peer)

    def lets_host_pass(self, host: str) -> bool:
        """Whether a request may name this host."""
        return not self._on_loopback or _remembered(self._hosts, host, self._is_allowed_host)

    def allows_origin(self, origin: str) -> bool:
        """Whether pages of this origin may ask here."""
        return _remembered(self._origins, origin, self._is_allowed_origin)

    def _is_allowed_host(self, host: str) -> bool:
        return origins.is_allowed_host(host, self._own_origins, self._listen.allowed_hosts)

    def _is_allowed_origin(self, origin: str) -> bool:
        listed = self._listen.allowed_origins
        return origins.is_allowed_origin(origin, self._own_origins, listed, on_loopback=self._on_loopback)

    def upstream_pairs(self, incoming: Incoming, without: frozenset[str] = frozenset()) -> list[Pair]:
        """The headers that the upstream gets, with what is to be said of the client in them."""
        scheme, host = self._client_origin(incoming)
        peer = incoming.request.peer
        is_trusted = self.is_proxy(peer)
        pairs = incoming.fields.for_upstream(
            without=without, peer=peer, scheme=scheme, host=host, is_trusted=is_trusted
        )
        named = incoming.fields.value("host") if self._upstream.passes_host else None
        return pairs if named is None else [("Host", named), *pairs]

    def _client_origin(self, incoming: Incoming) -> tuple[str, str | None]:
        """Scheme and authority that the client has used, as far as somebody who may say so says."""
        scheme, host = self.scheme, incoming.fields.value("host")
        if not incoming.fields.may_be_forwarded or not self.is_proxy(incoming.request.peer):
            return scheme, host
        told_scheme, told_host = told_origin(incoming.fields)
        return told_scheme or scheme, told_host or host

    def lets_forwarding_pass(self, peer: str | None, names: Collection[str]) -> bool:
        """Whether nothing that ``peer`` says of those before it is to be left out or read, by all names of headers."""
        return FORWARDED not in names and self._proxies.holds(peer)

    def move(self, incoming: Incoming) -> Move:
        """How a URL on the upstream's origin becomes one that this client can use."""
        scheme, host = self._client_origin(incoming)
        own = self._own_origins[0] if self._listen.public_url or host is None else f"{scheme}://{host}"
        move = self._moves.get(own)
        if move is None:
            move = Move(self._origin, own, self._hosts_of_upstream(incoming))
            if len(self._moves) < REMEMBERED_HOSTS:
                self._moves[own] = move
        return move

    def _hosts_of_upstream(self, incoming: Incoming) -> tuple[str, ...]:
        """What the upstream gets as ``Host``, and so takes for its own; a client's host with the upstream's port, too."""
        clients = incoming.fields.value("host") if self._upstream.passes_host else None
        if clients is None:
            return (self._upstream.host_line.removeprefix("Host: "),)
        host, port = origins.host_of(clients), urlsplit(self._origin).port
        shown = f"[{host}]" if ":" in host else host
        return (clients, f"{shown}:{port}") if host and port else (clients,)


def _remembered(known: dict[str, bool], name: str, find_out: Callable[[str], bool]) -> bool:
    """What has been found out of a name before, of a bounded number of them."""
    found = known.get(name)
    if found is None:
        found = find_out(name)
        if len(known) < REMEMBERED_HOSTS:
            known[name] = found
    return found
