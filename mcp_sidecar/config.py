"""What the operator decided, as values that ``settings`` makes: they need no library, and pass from process to process."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcp_sidecar.healing.policy import Policy

MIB = 1024 * 1024

AFFINITY_COOKIES = (
    "AWSALB*",
    "GCLB",
    "ARRAffinity*",
    "INGRESSCOOKIE",
    "SERVERID",
    "route",
    "BIGipServer*",
)
"""By which AWS, Google, Azure, ingress-nginx, HAProxy, nginx and F5 find the same server again."""

KEEP_ALIVE_S = 4.0

NEAR_NETWORKS = ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
"""Loopback and the private ranges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """The one MCP server behind the sidecar. ``origin`` is ``scheme://host[:port]`` without a trailing slash.

    ``host_header`` is ``auto``, ``client``, or the host to name. ``affinity_cookies`` are names, perhaps with a ``*`` at the
    end. ``keep_alive_s`` is how long a free connection is kept: less than the five seconds after which uvicorn and Node close
    theirs, since a request sent into a closing connection could not be told from one that was executed.
    """

    origin: str
    endpoint: str = "/mcp"
    ca_file: str | None = None
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 600.0
    first_byte_hint_s: float = 5.0
    keep_alive_s: float = KEEP_ALIVE_S
    host_header: str = "auto"
    affinity_cookies: tuple[str, ...] = AFFINITY_COOKIES

    @property
    def url(self) -> str:
        """Of the MCP endpoint."""
        return self.origin + self.endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig:
    """The client side. ``public_url`` is the origin that clients see where an edge stands in front.

    ``trusted_proxies`` are networks in CIDR form.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    public_url: str | None = None
    trusted_proxies: tuple[str, ...] = NEAR_NETWORKS
    drain_delay_s: float = 0.0
    drain_timeout_s: float = 10.0
    comment_interval_s: float = 20.0
    tls_certificate: str | None = None
    tls_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is held in memory, in bytes, and how long a client is waited for, in seconds."""

    max_request_body: int = 16 * MIB
    max_buffered_bytes: int = 256 * MIB
    client_timeout_s: float = 30.0
    max_buffered_answer: int = MIB
    max_header_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How long and how many sessions are remembered; times in seconds."""

    idle_ttl_s: float = 86_400.0
    max_lifetime_s: float = 604_800.0
    max_sessions: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where sessions are kept. ``url`` may be ``auto``, which means a file in ``state_folder``, if there is one.

    ``instance`` names this process's upstream among all that share the store, or is ``auto``; ``timeout_s`` is how long
    anybody waits for it. ``key_file`` or ``key`` has the keys of what is sealed, one a line.
    """

    url: str = "memory:"
    instance: str = ""
    namespace: str = "default"
    timeout_s: float = 0.25
    key_file: str | None = None
    key: str | None = field(default=None, repr=False)
    state_folder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarConfig:
    """All of it. ``admin_address`` is ``None`` where that listener is off, ``log_format`` where the terminal decides.

    ``has_chosen_max_sessions``: somebody asked for so many sessions. ``shown`` is the settings as TOML, secrets masked.
    """

    upstream: UpstreamConfig
    listen: ListenConfig
    limits: Limits
    sessions: SessionLimits
    store: StoreConfig
    policy: Policy
    admin_address: tuple[str, int] | None = None
    admin_token_file: str | None = None
    log_format: str | None = None
    log_level: str = "info"
    has_chosen_max_sessions: bool = False
    shown: str = ""
