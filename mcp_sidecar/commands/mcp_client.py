"""A client of an MCP server that is after every byte of the answers: for `dev`, which looks whether one is up, and `probe`.

The rule of this file: nothing is followed, repeated, kept or guessed. What a server says is handed on as it came, bounded in
bytes and time, and what kept it from saying anything is a ``NoAnswer``.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.sse import Block, EventSplitter

MAX_BODY_BYTES = 4 * 1024 * 1024
ACCEPT = "application/json, text/event-stream"
SESSION_ID, VERSION = "Mcp-Session-Id", "MCP-Protocol-Version"
LATEST_WITH_SESSIONS = "2025-11-25"
REQUEST_ID = "mcp-sidecar-1"
"""Of a request that is the only one of its client at a time."""


class NoAnswer(Exception):
    """The server did not answer. Its text is why: a fixed phrase."""


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: its head, and as much of its body as was waited for."""

    status: int
    headers: tuple[Pair, ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)

    @property
    def media_type(self) -> str:
        """Lower case, without parameters; empty where none is said."""
        return (self.header("Content-Type") or "").partition(";")[0].strip().lower()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The JSON-RPC objects in a JSON body or in an event stream."""
        texts: list[str | bytes] = [self.body]
        if self.media_type == "text/event-stream":
            pieces = EventSplitter(MAX_BODY_BYTES).feed(self.body)
            texts = [piece.event.data for piece in pieces if isinstance(piece, Block) and piece.event.data]
        return [message for text in texts for message in _objects(text)]

    def answer_to(self, request_id: object) -> dict[str, Any] | None:
        """The response with this id."""
        return next((each for each in self.messages if each.get("id") == request_id and "method" not in each), None)

    def result_of(self, request_id: object) -> dict[str, Any] | None:
        """The result that answers this request, where it succeeded."""
        result = (self.answer_to(request_id) or {}).get("result")
        return result if isinstance(result, dict) else None


def _objects(text: str | bytes) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)]


def request(method: str, params: Mapping[str, Any] | None = None, *, id: object = REQUEST_ID) -> dict[str, Any]:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": id, "method": method} | ({"params": dict(params)} if params is not None else {})


def initialize(version: str = LATEST_WITH_SESSIONS, *, name: str = "mcp-sidecar") -> dict[str, Any]:
    """The handshake of a client that can do nothing in particular."""
    client = {"name": name, "version": "1"}
    return request("initialize", {"protocolVersion": version, "capabilities": {}, "clientInfo": client})


INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


class McpClient:
    """Asks one server. Use as an async context manager."""

    def __init__(
        self, url: str, headers: Iterable[Pair] = (), *, timeout_s: float = 10.0, ca_file: str | None = None
    ) -> None:
        """``headers`` go with every request; ``timeout_s`` is for a whole answer; ``ca_file`` is whom to trust."""
        self.url = url
        self._headers = tuple(headers)
        self._timeout_s = timeout_s
        self._ca_file = ca_file
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Nothing is connected before it is needed."""
        # Proxies of the environment are not meant: this is about the very server.
        trusted = ssl.create_default_context(cafile=self._ca_file) if self._ca_file is not None else True
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trusted),
            trust_env=False,
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the connections."""
        if self._http is not None:
            await self._http.close()

    async def post(
        self,
        message: Mapping[str, Any],
        session_id: str | None = None,
        version: str | None = None,
        headers: Iterable[Pair] = (),
    ) -> Said:
        """Send a message; returns once its answer is there, also where the stream goes on. Raises ``NoAnswer``."""
        pairs = [("Content-Type", "application/json"), ("Accept", ACCEPT), *_session(session_id, version), *headers]
        return await self.ask("POST", pairs, json.dumps(message).encode(), awaited_id=message.get("id"))

    async def get(self, session_id: str | None, version: str | None, headers: Iterable[Pair] = ()) -> Said:
        """Open a listening stream and leave it; an error answer is read whole. Raises ``NoAnswer``."""
        return await self.ask("GET", [("Accept", "text/event-stream"), *_session(session_id, version), *headers])

    async def delete(self, session_id: str, version: str | None) -> Said:
        """End a session. Raises ``NoAnswer``."""
        return await self.ask("DELETE", _session(session_id, version))

    async def ask(
        self, method: str, headers: Iterable[Pair], body: bytes | None = None, *, awaited_id: object = None
    ) -> Said:
        """Send any request. Of an event stream so much is read as brings the answer to ``awaited_id``."""
        assert self._http is not None, "used outside its block"
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.request(
                    method, self.url, headers=[*self._headers, *headers], data=body, allow_redirects=False
                ) as answer,
            ):
                pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers)
                return await _read(answer, pairs, awaited_id)
        except TimeoutError:
            raise NoAnswer(f"no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientConnectorCertificateError:
            raise NoAnswer("its certificate is not trusted") from None
        except aiohttp.ClientSSLError:
            raise NoAnswer("the TLS handshake failed") from None
        except aiohttp.ClientConnectorDNSError:
            raise NoAnswer("its name is not known") from None
        except aiohttp.ClientConnectorError:
            raise NoAnswer("no connection") from None
        except aiohttp.ClientOSError:
            raise NoAnswer("the connection was reset") from None
        except (aiohttp.ClientError, ValueError):
            raise NoAnswer("the answer broke off, or is no HTTP") from None


def _session(session_id: str | None, version: str | None) -> list[Pair]:
    pairs = [(SESSION_ID, session_id)] if session_id is not None else []
    return [*pairs, (VERSION, version)] if version is not None else pairs


async def _read(answer: aiohttp.ClientResponse, pairs: tuple[Pair, ...], awaited_id: object) -> Said:
    is_stream = answer.content_type == "text/event-stream" and 200 <= answer.status < 300
    body = b""
    if is_stream and awaited_id is None:
        return Said(answer.status, pairs)
    async for chunk in answer.content.iter_any():
        body += chunk
        said = Said(answer.status, pairs, body)
        if len(body) > MAX_BODY_BYTES or (is_stream and said.answer_to(awaited_id) is not None):
            return said
    return Said(answer.status, pairs, body)
