"""What a proxy in front says of the client: whose word counts, and what it is.

Only a proxy that the operator trusts is believed (``X-Forwarded-*``, and RFC 7239 ``Forwarded``). Of several values the last
one counts: it is what the proxy next to us said itself; those before it may be the client's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from mcp_sidecar.wire.headers import Fields
from mcp_sidecar.wire.origins import host_of

FORWARDED = "forwarded"
PREFIX = "x-forwarded-"
PROTO, HOST = "x-forwarded-proto", "x-forwarded-host"

REMEMBERED_PEERS = 1024

_SCHEMES = frozenset({"http", "https"})
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
_PAIR = re.compile(r'\s*([A-Za-z]+)=(?:"([^"\\]*)"|([^",;\s]*))\s*')


class TrustedProxies:
    """Addresses of proxies whose word counts."""

    def __init__(self, networks: Iterable[str]) -> None:
        """``networks`` are in CIDR form."""
        self._networks = tuple(map(ipaddress.ip_network, networks))
        self._known: dict[str | None, bool] = {None: False}

    def holds(self, peer: str | None) -> bool:
        """Whether an address is one of theirs. Of a bounded number it is remembered."""
        known = self._known.get(peer)
        if known is None:
            if len(self._known) >= REMEMBERED_PEERS:
                self._known = {None: False}
            known = self._known[peer] = self._is_within(peer or "")
        return known

    def _is_within(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if address.version == 6 else None
        return any((mapped or address) in network for network in self._networks)


def told_origin(fields: Fields) -> tuple[str | None, str | None]:
    """Scheme and authority that a proxy says the client has used; ``None`` for what it does not say, or not in order."""
    proto, host = _last(fields.values(PROTO)), _last(fields.values(HOST))
    if proto is None or host is None:
        said = _last_element(fields.values(FORWARDED))
        proto, host = proto or said.get("proto"), host or said.get("host")
    scheme = (proto or "").lower()
    return scheme if scheme in _SCHEMES else None, host if host is not None and _AUTHORITY.fullmatch(host) and host_of(
        host
    ) else None


def _last(values: list[str]) -> str | None:
    return values[-1].rpartition(",")[2].strip() or None if values else None


def _last_element(values: list[str]) -> dict[str, str]:
    """The parameters of the last element of ``Forwarded``; none where it is malformed."""
    found: dict[str, str] = {}
    text = values[-1] if values else ""
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return {}
        found[pair[1].lower()] = pair[2] if pair[2] is not None else pair[3]
        at = pair.end()
        if at < len(text):
            if text[at] not in ",;":
                return {}
            if text[at] == ",":
                found = {}
            at += 1
    return found
