"""A raw MCP client for tests. The rule: it hides nothing and repairs nothing.

Every HTTP answer is handed back as it came: status, headers with their repetitions, bytes, and whether the transfer broke. It
never retries, never initializes again, and remembers every session id that it was ever shown.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from tests.support.waiting import HANG_S

ACCEPT = "application/json, text/event-stream"
SESSION_HEADER = "Mcp-Session-Id"


class NoAnswer(Exception):
    """The request got no HTTP answer at all: refused, reset or closed before the head. The cause tells which."""


@dataclass(frozen=True, slots=True)
class Event:
    """One SSE event as sent. ``event_id`` ``None`` means that it had none; ``data`` keeps an empty string."""

    raw: bytes
    data: str | None
    event_id: str | None = None
    name: str | None = None
    retry_ms: int | None = None

    @property
    def message(self) -> dict[str, Any] | None:
        """The JSON-RPC message, ``None`` for comments and priming events."""
        return json.loads(self.data) if self.data else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, read to its end. ``broken`` is the error that ended the body, ``None`` for a whole one."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    broken: BaseException | None = None

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def session_id(self) -> str | None:
        return self.headers.get(SESSION_HEADER)

    @property
    def events(self) -> list[Event]:
        """The whole events of an SSE body; half an event at its end is left out."""
        return parse_events(self.body)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Every JSON-RPC message of the answer, in order."""
        if self.content_type == "text/event-stream":
            return [event.message for event in self.events if event.message is not None]
        parsed = json.loads(self.body)
        return parsed if isinstance(parsed, list) else [parsed]

    @property
    def response(self) -> dict[str, Any]:
        """The last JSON-RPC response; ``AssertionError`` where there is none."""
        responses = [m for m in self.messages if "result" in m or "error" in m]
        assert responses, f"no JSON-RPC response in {self.status} {self.body[:200]!r}"
        return responses[-1]

    @property
    def result(self) -> Any:
        assert "result" in self.response, self.response
        return self.response["result"]

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.response["error"]
        return error

    @property
    def text(self) -> str:
        """The text of a tool's result."""
        text: str = self.result["content"][0]["text"]
        return text


class Stream:
    """An answer that is read while it comes. Close it, or use ``async with``; closing breaks the connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._pending = b""
        self._ready: list[Event] = []
        self._broken: BaseException | None = None
        self.status = response.status
        self.headers = response.headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()

    async def next_event(self, timeout_s: float = HANG_S) -> Event | None:
        """The next event, comments included; ``None`` at a clean end. A broken transfer raises aiohttp's error."""
        async with asyncio.timeout(timeout_s):
            while not self._ready:
                chunk = await self._next_chunk()
                if not chunk:
                    return None
                blocks, self._pending = split_blocks(self._pending + chunk)
                self._ready = [parse_event(block) for block in blocks]
        return self._ready.pop(0)

    async def _next_chunk(self) -> bytes:
        if self._broken is not None:
            raise self._broken
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, ConnectionError) as error:
            self._broken = error
            left = _left_over(self._response.content)
            if not left:
                raise
            return left

    async def next_message(self, timeout_s: float = HANG_S) -> dict[str, Any] | None:
        """The next JSON-RPC message, past comments and priming events; ``None`` at a clean end."""
        async with asyncio.timeout(timeout_s):
            while (event := await self.next_event(timeout_s)) is not None:
                if event.message is not None:
                    return event.message
        return None

    async def rest(self) -> AsyncIterator[Event]:
        """Events up to a clean end."""
        while (event := await self.next_event()) is not None:
            yield event

    async def read(self) -> Answer:
        """Everything that is left, as an answer."""
        return await _read(self._response)


@dataclass(slots=True)
class McpClient:
    """One client with at most one session. ``headers`` go on every request; pass ``http`` to share connections."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    version: str = "2025-06-18"
    http: aiohttp.ClientSession | None = None
    session_id: str | None = None
    seen_session_ids: list[str] = field(default_factory=list)
    initialize_result: dict[str, Any] | None = None
    _own_http: bool = False
    _next_id: int = 1

    async def __aenter__(self) -> Self:
        if self.http is None:
            self.http = new_http()
            self._own_http = True
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._own_http and self.http is not None:
            await self.http.close()

    # -- MCP ----------------------------------------------------------------------------------------------------------

    async def initialize(
        self,
        *,
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
        capabilities: Mapping[str, Any] | None = None,
        initialized: bool = True,
    ) -> Answer:
        """Open a session; on 2xx take its id and revision, then send ``notifications/initialized``."""
        params = {
            "protocolVersion": version or self.version,
            "capabilities": dict(capabilities or {}),
            "clientInfo": {"name": "test-client", "version": "1"},
        }
        self.session_id = None
        answer = await self.call("initialize", params, headers=headers, bare=True)
        if 200 <= answer.status < 300 and "result" in answer.response:
            self.session_id = answer.session_id
            self.initialize_result = answer.result
            self.version = answer.result["protocolVersion"]
            if initialized:
                await self.notify("notifications/initialized")
        return answer

    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        id: str | int | None = None,
        headers: Mapping[str, str] | None = None,
        bare: bool = False,
    ) -> Answer:
        """Send one request and read its whole answer. ``bare`` leaves out session and version."""
        return await self.post(self.request(method, params, id=id), headers=headers, bare=bare)

    async def tool(self, name: str, /, **arguments: Any) -> Answer:
        return await self.call("tools/call", {"name": name, "arguments": arguments})

    async def open_call(
        self, method: str, params: Mapping[str, Any] | None = None, *, id: str | int | None = None
    ) -> Stream:
        """Send one request and read its answer while it comes."""
        return Stream(await self._send("POST", self.request(method, params, id=id)))

    async def notify(self, method: str, params: Mapping[str, Any] | None = None) -> Answer:
        return await self.post({"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})})

    async def respond(self, id: object, result: Mapping[str, Any] | None = None) -> Answer:
        """Answer a question of the server."""
        return await self.post({"jsonrpc": "2.0", "id": id, "result": dict(result or {})})

    async def batch(self, messages: list[dict[str, Any]]) -> Answer:
        return await self.post(messages)

    async def get_stream(self, *, last_event_id: str | None = None, headers: Mapping[str, str] | None = None) -> Stream:
        """Open a GET stream; look at its ``status`` before reading. It may stay open for as long as a test likes."""
        resume = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        sent = {"Accept": "text/event-stream", **resume, **(headers or {})}
        async with asyncio.timeout(HANG_S):
            return Stream(await self._send("GET", None, sent, timeout=aiohttp.ClientTimeout(total=None)))

    async def delete(self, headers: Mapping[str, str] | None = None) -> Answer:
        return await self._whole("DELETE", None, headers)

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    def request(
        self, method: str, params: Mapping[str, Any] | None = None, *, id: str | int | None = None
    ) -> dict[str, Any]:
        """A JSON-RPC request with the next id, unless one is given."""
        if id is None:
            id, self._next_id = self._next_id, self._next_id + 1
        return {"jsonrpc": "2.0", "id": id, "method": method, **({} if params is None else {"params": dict(params)})}

    async def post(self, body: object, *, headers: Mapping[str, str] | None = None, bare: bool = False) -> Answer:
        """POST an object as JSON, or bytes as they are."""
        return await self._whole("POST", body, headers, bare=bare)

    async def _whole(
        self, method: str, body: object, headers: Mapping[str, str] | None, *, bare: bool = False
    ) -> Answer:
        return await _read(await self._send(method, body, headers, bare=bare))

    async def _send(
        self,
        method: str,
        body: object,
        headers: Mapping[str, str] | None = None,
        *,
        bare: bool = False,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        assert self.http is not None, "use the client in `async with`"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = self._headers(data is not None, bare)
        sent.update(headers or {})
        try:
            response = await self.http.request(
                method, self.url, data=data, headers=sent, allow_redirects=False, timeout=timeout or self.http.timeout
            )
        except (aiohttp.ClientError, ConnectionError) as error:
            raise NoAnswer(str(error)) from error
        self.seen_session_ids += list(response.headers.getall(SESSION_HEADER, []))
        return response

    def _headers(self, with_body: bool, bare: bool) -> CIMultiDict[str]:
        headers = CIMultiDict({"Accept": ACCEPT, **self.headers})
        if with_body:
            headers["Content-Type"] = "application/json"
        if self.session_id is not None and not bare:
            headers[SESSION_HEADER] = self.session_id
        if self.version >= "2025-06-18" and not bare:
            headers["MCP-Protocol-Version"] = self.version
        return headers


def new_http() -> aiohttp.ClientSession:
    """A client session without limits, decompression or cookies of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=HANG_S),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _read(response: aiohttp.ClientResponse) -> Answer:
    body = bytearray()
    broken: BaseException | None = None
    try:
        async for chunk in response.content.iter_any():
            body += chunk
    except (aiohttp.ClientError, ConnectionError) as error:
        broken = error
        body += _left_over(response.content)
    response.release() if broken is None else response.close()
    return Answer(response.status, response.headers, bytes(body), broken)


def _left_over(content: aiohttp.StreamReader) -> bytes:
    """What arrived before a body broke: aiohttp raises the break first and never hands these bytes out."""
    left = b"".join(content._buffer)[content._buffer_offset :]
    content._buffer.clear()
    content._buffer_offset = 0
    return left


# -- SSE, read independently of the code under test ----------------------------------------------------------------------


def split_blocks(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole event blocks of ``data``, and what is left over. Knows LF and CRLF, which is what servers send."""
    blocks: list[bytes] = []
    block = b""
    lines = data.splitlines(keepends=True)
    for line in lines:
        block += line
        if line in (b"\n", b"\r\n"):
            blocks.append(block)
            block = b""
    return blocks, block


def parse_event(block: bytes) -> Event:
    fields: dict[str, list[str]] = {}
    for line in block.decode().splitlines():
        name, _, value = line.partition(":")
        if name:
            fields.setdefault(name, []).append(value.removeprefix(" "))
    retry = fields.get("retry", [None])[-1]
    return Event(
        raw=block,
        data="\n".join(fields["data"]) if "data" in fields else None,
        event_id=fields.get("id", [None])[-1],
        name=fields.get("event", [None])[-1],
        retry_ms=None if retry is None else int(retry),
    )


def parse_events(data: bytes) -> list[Event]:
    return [parse_event(block) for block in split_blocks(data)[0]]


# -- bytes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came back on a socket. ``reset`` tells RST from FIN; ``timed_out`` that the other side went on waiting."""

    data: bytes
    reset: bool = False
    timed_out: bool = False

    @property
    def status(self) -> int | None:
        """The status of the first answer, ``None`` where there is no status line."""
        first = self.data.split(b"\r\n", 1)[0].split(b" ")
        return int(first[1]) if len(first) > 1 and first[0].startswith(b"HTTP/") and first[1].isdigit() else None


async def raw_exchange(port: int, data: bytes, *, host: str = "127.0.0.1", timeout_s: float = HANG_S) -> RawAnswer:
    """Send bytes on a new connection and read until it ends. Ask for ``Connection: close`` to see an end."""
    reader, writer = await asyncio.open_connection(host, port)
    received = bytearray()
    reset = timed_out = False
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            while chunk := await reader.read(65536):
                received += chunk
    except ConnectionError:
        reset = True
    except TimeoutError:
        timed_out = True
    finally:
        writer.close()
    return RawAnswer(bytes(received), reset, timed_out)


def raw_post(port: int, body: bytes, *headers: str, path: str = "/mcp") -> bytes:
    """The bytes of a POST that closes its connection."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Accept: {ACCEPT}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
