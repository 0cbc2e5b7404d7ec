"""Open connections to the one origin behind the sidecar: names, both IP families, TLS, and why it did not work."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar, cast
from urllib.parse import urlsplit

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

from mcp_sidecar.config import UpstreamConfig
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.origins import DEFAULT_PORTS

P = TypeVar("P", bound=asyncio.BaseProtocol)

LOCALHOST = "localhost"
LOOPBACK = ("127.0.0.1", "::1")
"""What it is (RFC 6761 §6.3), whatever the hosts file says; where only loopback has IPv6, resolvers leave ``::1`` out."""

WATCHED = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 45_000}
"""How the system finds out that the other end is gone without a word: its node died, or a NAT forgot the connection.

It asks after 30 s of silence, and gives up what was not acknowledged for 45 s: less than clients wait for an answer. A server
that lives and takes nothing of a large request for so long is given up as well. Not all systems have all of them.
"""

NEXT_ADDRESS_S = 0.25
"""How long one address is tried alone before the next one is tried beside it (RFC 8305 §5)."""


class TrustStore:
    """Whose certificates are believed: the system's, or those of a file, which is read again when it changes."""

    def __init__(self, ca_file: str | None) -> None:
        """Raises OSError, of which ``ssl.SSLError`` is one, where the file cannot be read."""
        self._ca_file = ca_file
        self._read = self._stamp()
        self._context = ssl.create_default_context(cafile=ca_file)

    def context(self) -> ssl.SSLContext:
        """What a connection that is about to be opened goes by. A file that cannot be read changes nothing."""
        if self._ca_file is not None and self._stamp() != self._read:
            with contextlib.suppress(OSError):
                self.reload()
        return self._context

    def reload(self) -> None:
        """Read it again. Raises as the constructor does, and goes on with what it had."""
        stamp = self._stamp()
        self._context = ssl.create_default_context(cafile=self._ca_file)
        self._read = stamp

    def _stamp(self) -> tuple[int, int, int] | None:
        """What differs when the file does; behind a link, too, which is how Kubernetes exchanges them."""
        if self._ca_file is None:
            return None
        try:
            found = os.stat(self._ca_file)  # noqa: PTH116 - a path object for each connect is one too many
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class Connector:
    """Opens connections to one origin."""

    def __init__(self, config: UpstreamConfig) -> None:
        """Raises OSError where ``config.ca_file`` cannot be read."""
        url = urlsplit(config.origin)
        self._host = (url.hostname or "").replace("%25", "%")  # RFC 6874: which interface an IPv6 address is behind
        self._port = url.port or DEFAULT_PORTS[url.scheme]
        self._timeout_s = config.connect_timeout_s
        self.trust = TrustStore(config.ca_file) if url.scheme == "https" else None

    async def open(self, factory: Callable[[], P]) -> P:
        """A protocol that is connected. Raises ``UpstreamFault`` with ``detail``."""
        try:
            async with asyncio.timeout(self._timeout_s):
                transport, protocol = await self._open(factory)
        except (TimeoutError, OSError) as error:
            error.__traceback__ = None  # a frame of aiohappyeyeballs 2.7.1 keeps it, and with it all who have called
            raise UpstreamFault(Fault.UNREACHABLE, detail=_why(error)) from None
        if is_connected_to_itself(transport):
            transport.abort()
            raise UpstreamFault(Fault.UNREACHABLE, detail=NO_CONNECTION)
        return protocol

    async def _open(self, factory: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        loop = asyncio.get_running_loop()
        context = self.trust.context() if self.trust is not None else None
        name = self._host.rstrip(".") if context is not None else None
        sock = await self._connected()
        try:
            _watch(sock)
            return await loop.create_connection(factory, sock=sock, ssl=context, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    async def _connected(self) -> socket.socket:
        if self._host.rstrip(".") != LOCALHOST:
            addresses = await self._addresses()
            return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1)
        first, second = (_numeric(address, self._port) for address in LOOPBACK)
        try:  # one by one: what a race leaves behind only a collector finds, and loopback says at once that nobody listens
            return await aiohappyeyeballs.start_connection([first])
        except OSError as error:
            error.__traceback__ = None
        return await aiohappyeyeballs.start_connection([second])

    async def _addresses(self) -> list[AddrInfoType]:
        """As bytes: uvloop looks a text up in the tables of IDNA, which take two MiB. Names are ASCII here."""
        host = self._host.encode()
        try:
            ipaddress.ip_address(self._host)
        except ValueError:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            return [cast("AddrInfoType", (*kind, (str(at[0]).encode(), *at[1:]))) for *kind, at in found]
        return [_numeric(self._host, self._port)]


def _watch(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in WATCHED.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _numeric(address: str, port: int) -> AddrInfoType:
    """As bytes, as in ``_addresses``."""
    family, more = (socket.AF_INET6, (0, 0)) if ":" in address else (socket.AF_INET, ())
    return cast("AddrInfoType", (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address.encode(), port, *more)))


class Nowhere:
    """Opens none: there is no server now."""

    trust = None

    async def open(self, factory: Callable[[], P]) -> P:  # noqa: ARG002 - as of a ``Connector``
        """Raises ``UpstreamFault``."""
        raise UpstreamFault(Fault.UNREACHABLE, detail=NO_CONNECTION)


NO_CONNECTION = "no connection"


def _why(error: Exception) -> str:
    """In the words of OpenSSL where it was a certificate or the handshake: nobody else can tell the operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'handshake').replace('_', ' ').lower()}"
    return NO_CONNECTION


def is_connected_to_itself(transport: asyncio.BaseTransport | asyncio.StreamWriter) -> bool:
    """Whether there is nobody at the other end: connects to a closed port may get that very port as their own."""
    return bool(transport.get_extra_info("sockname") == transport.get_extra_info("peername"))
