"""Origins and hosts: whose request this is allowed to be, and URLs of the upstream that clients must not see.

A browser page may only reach the sidecar from where the operator says (2025-11-25 transports, "Security Warning");
the request's own ``Host`` is never taken for an answer, since after DNS rebinding it names the attacker.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit, urlunsplit

from mcp_sidecar.wire.headers import Pair

DEFAULT_PORTS = {"http": 80, "https": 443}
URL_HEADERS = frozenset({"location", "content-location"})
CHALLENGE = "www-authenticate"
NAMES_A_URL = URL_HEADERS | {CHALLENGE}

_METADATA = re.compile(r'(\bresource_metadata\s*=\s*"?)([^"\s,]+)', re.IGNORECASE)
"""RFC 9728 §5.1. A URL holds no blank, comma or quote where it is written in order."""


def host_of(authority: str) -> str:
    """The lower-case host of ``host[:port]``, without brackets; empty where that is not all that is said."""
    authority = authority.strip()
    try:
        parts = urlsplit(f"//{authority}")
    except ValueError:
        return ""
    shown = _shown_host(parts) if parts.netloc == authority else None
    return shown.strip("[]").rstrip(".") if shown is not None else ""


def is_loopback(host: str) -> bool:
    """Whether a bare host is this machine: ``localhost`` or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def canonical(url: str) -> str | None:
    """``scheme://host[:port]`` in lower case, default ports left out; ``None`` where it is no origin."""
    try:
        parts = urlsplit(url.strip())
        shown = _shown_host(parts)
    except ValueError:
        return None
    if not parts.scheme or shown is None:
        return None
    port = "" if parts.port in (None, DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{shown}{port}"


def _shown_host(parts: SplitResult) -> str | None:
    """The host as a URL shows it; ``None`` where there is none, or the authority says more than host and port.

    A user, a second port or text behind an address in brackets is read one way by one parser and otherwise by the next.
    """
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    shown = f"[{host}]" if host and ":" in host else host
    return shown if host and parts.netloc.lower() in (shown, f"{shown}:", f"{shown}:{port}") else None


def is_allowed_origin(origin: str, own: Iterable[str], listed: Iterable[str], *, on_loopback: bool) -> bool:
    """Whether an ``Origin`` is the sidecar's own, a listed one, or loopback to a loopback listener."""
    seen = canonical(origin)
    if seen is None or _leads_somewhere(urlsplit(origin)):
        return False
    if seen in {canonical(one) for one in (*own, *listed)}:
        return True
    return on_loopback and is_loopback(urlsplit(seen).hostname or "")


def _leads_somewhere(parts: SplitResult) -> bool:
    return parts.path not in ("", "/") or bool(parts.query or parts.fragment)


def is_allowed_host(authority: str, own: Iterable[str], listed: Iterable[str]) -> bool:
    """Whether a ``Host`` may be asked of a loopback listener: loopback, the sidecar's own, or a listed one.

    A listed one that names a port means that port only.
    """
    host = host_of(authority)
    if not host:
        return False
    is_own = is_loopback(host) or host in {urlsplit(one).hostname or "" for one in own}
    return is_own or any(host == host_of(one) and _has_port(authority, _port_of(one)) for one in listed)


def _has_port(authority: str, wanted: int | None) -> bool:
    port = _port_of(authority)
    return wanted in (None, port) or (port is None and wanted in DEFAULT_PORTS.values())


def _port_of(authority: str) -> int | None:
    """The port of an authority of which ``host_of`` finds a host."""
    return urlsplit(f"//{authority.strip()}").port


@dataclass(frozen=True, slots=True)
class Move:
    """From the upstream's origin to the one where the client reaches the sidecar.

    ``also`` are authorities by which the upstream knows itself, too: what it gets as ``Host``.
    """

    upstream_origin: str
    client_origin: str
    also: tuple[str, ...] = ()

    def url(self, url: str) -> str:
        """A URL on the upstream's origin as the client reaches it; every other one, and every relative one, as it is.

        Whichever of http and https it names: a server behind a TLS edge takes the scheme from the edge and the host from us.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            return url
        user, at, authority = parts.netloc.rpartition("@")
        scheme = parts.scheme or urlsplit(self.upstream_origin).scheme
        is_plain = bool(authority) and not set(user) & set("@\\")
        if not is_plain or canonical(f"{scheme}://{authority}") not in _places(self.upstream_origin, self.also):
            return url
        own = urlsplit(self.client_origin)
        return urlunsplit((own.scheme, user + at + own.netloc, parts.path, parts.query, parts.fragment))

    def headers(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Headers whose URLs would lead the client past the sidecar, moved; all others as they are."""
        return [self._moved(pair) for pair in pairs]

    def _moved(self, pair: Pair) -> Pair:
        name = pair[0].lower()
        if name in URL_HEADERS:
            return pair[0], self.url(pair[1])
        if name == CHALLENGE:
            return pair[0], _METADATA.sub(self._moved_metadata, pair[1])
        return pair

    def _moved_metadata(self, found: re.Match[str]) -> str:
        return f"{found[1]}{self.url(found[2])}"


@lru_cache(maxsize=64)
def _places(origin: str, also: tuple[str, ...]) -> frozenset[str | None]:
    """The origins that are one place, in canonical form: by http and by https, and on the default port of either."""
    authorities = {urlsplit(origin).netloc, *also}
    port = DEFAULT_PORTS.get(urlsplit(origin).scheme)
    authorities |= {f"{authority}:{port}" for authority in authorities if _port_of(authority) is None}
    return frozenset(canonical(f"{scheme}://{authority}") for scheme in DEFAULT_PORTS for authority in authorities)
