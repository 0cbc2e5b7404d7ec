"""Who may see what the admin listener shows of sessions, and who may start a drain.

The law of this file: this machine, and whoever bears the token of ``admin.token_file``. No web page may, though the browser
that shows it runs here; nor may what a proxy on this machine passes on for others.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from mcp_sidecar.token_file import TokenFile

_PASSED_ON = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


class Access:
    """Decides by peer, headers and token."""

    def __init__(self, token: TokenFile | None = None) -> None:
        """Without a token file only this machine may."""
        self._token = token

    @property
    def has_token(self) -> bool:
        """Whether a token would help."""
        return self._token is not None

    def allows(self, peer: str | None, headers: Sequence[tuple[str, str]]) -> bool:
        """Whether a request may see sessions, or start a drain."""
        return self.is_here(peer, headers) or (self._token is not None and self._token.accepts(_offered(headers)))

    @staticmethod
    def is_here(peer: str | None, headers: Sequence[tuple[str, str]]) -> bool:
        """Whether this machine asks, for itself."""
        names = {name.lower() for name, _ in headers}
        return peer is not None and is_loopback(peer) and names.isdisjoint(map(str.lower, _PASSED_ON))


def comes_from_elsewhere(headers: Sequence[tuple[str, str]], host: str) -> bool:
    """Whether a web page of another origin has sent this: browsers say so."""
    for name, value in headers:
        if name.lower() == "origin" and urlsplit(value.lower()).netloc != host.lower():
            return True
        if name.lower() == "sec-fetch-site" and value.lower() not in ("same-origin", "none"):
            return True
    return False


def _offered(headers: Sequence[tuple[str, str]]) -> str:
    """What stands behind Bearer, or the password of Basic: that is what browsers can be asked for."""
    for name, value in headers:
        if name.lower() == "authorization":
            scheme, _, credentials = value.partition(" ")
            if scheme.lower() == "bearer":
                return credentials.strip()
            if scheme.lower() == "basic":
                return _password(credentials.strip())
    return ""


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""


def is_loopback(host: str) -> bool:
    """Tell whether a host, without brackets and port, is this machine as only itself can call it."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_loopback
