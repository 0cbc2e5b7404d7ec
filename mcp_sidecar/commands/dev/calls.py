"""The calls of clients as they end: which tool, how long it took, what came of it.

Shown to the developer at the terminal, and handed on to whoever keeps the last ones. Of an answer no more is read than its
beginning.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mcp_sidecar.commands.mcp_client import Said
from mcp_sidecar.downstream.response import Responder
from mcp_sidecar.facts import Fact, HealEnded, HealOutcome
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.wire.jsonrpc import META_CLIENT_INFO, JsonRpcId, Message

MAX_LOOKED_AT_BYTES = 1024 * 1024
MAX_TEXT = 120
LEFT = "the client left"

CONNECTS = frozenset({"initialize", "server/discover"})
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""What is shown when it ends, and the parameter that says what was asked for. Lists, pings and notifications are no news."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that is over. ``problem`` is empty where it succeeded."""

    what: str
    seconds: float
    problem: str


def answer_in(body: bytes, request_id: JsonRpcId) -> dict[str, Any] | None:
    """The response to a request, in JSON or in a stream; ``None`` where it is not there, or was cut."""
    stream = (("Content-Type", "text/event-stream"),) if not body.lstrip().startswith((b"{", b"[")) else ()
    return Said(200, stream, body).answer_to(request_id)


def problem_in(status: int, answer: dict[str, Any] | None, *, is_whole: bool = True) -> str:
    """Why a call failed, as the client was told; empty where it succeeded or nobody can tell.

    ``is_whole``: the answer went out to its end. Some clients leave a stream as soon as they have what they wait for.
    """
    if status >= 400:
        return f"HTTP {status}"
    if answer is None:
        return "" if is_whole else LEFT
    error, result = answer.get("error"), answer.get("result")
    if isinstance(error, dict):
        return _short(str(error.get("message", "error")))
    if isinstance(result, dict) and result.get("isError"):
        return _short(f"tool error: {_text_in(result)}")
    return ""


def refusal_in(body: bytes) -> str:
    """The message of the JSON-RPC error in an answer, to whomever it is addressed; empty where there is none."""
    errors = (message.get("error") for message in Said(200, (), body).messages)
    return next((_short(str(error.get("message", ""))) for error in errors if isinstance(error, dict)), "")


def _text_in(result: dict[str, Any]) -> str:
    content = result.get("content")
    blocks = content if isinstance(content, list) else []
    return " ".join(str(block["text"]) for block in blocks if isinstance(block, dict) and "text" in block)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}…"


def title_of(message: Message) -> str | None:
    """What a call is shown as; ``None`` where it is not shown."""
    key = NAMED_BY.get(message.method or "")
    if key is None:
        return None
    said = message.params.get(key)
    return str(said)[:MAX_TEXT] if isinstance(said, str) else str(message.method)


def client_of(message: Message) -> str:
    """The client's name and version, of what it connects with; since 2026-07-28 they stand in `_meta`."""
    info = message.params.get("clientInfo", message.meta.get(META_CLIENT_INFO))
    info = info if isinstance(info, dict) else {}
    return (
        _short(" ".join(str(info[key]) for key in ("name", "version") if isinstance(info.get(key), str))) or "a client"
    )


class CallLog:
    """The ``Watch`` of a sidecar under `dev`."""

    def __init__(
        self,
        clock: Callable[[], float],
        ended: Callable[[Message, Ended, dict[str, Any] | None], None],
        say: Callable[[str], None],
    ) -> None:
        """``ended`` is told of calls: the request, how it ended, its response; ``say`` what else a developer should know."""
        self._clock = clock
        self.note: Callable[[Call], None] = lambda _: None
        """Sees each request of a session once it is answered."""
        self._ended = ended
        self._say = say

    def heard(self, fact: Fact) -> None:
        """See ``Watch``."""
        if isinstance(fact, HealEnded) and fact.outcome is not HealOutcome.HEALED:
            self._say(f"session {fact.session} not healed: {fact.reason}")

    async def post(self, call: Call | None, message: Message, responder: Responder, work: Awaitable[None]) -> None:
        """See ``Watch``."""
        seen = bytearray()
        title = title_of(message)
        connects = message.method in CONNECTS
        if title is not None or connects:
            responder.tap = lambda data: seen.extend(data[: MAX_LOOKED_AT_BYTES - len(seen)])
        started = self._clock()
        is_over = False
        try:
            await work
            is_over = True
        finally:
            if call is not None:
                self.note(call)
            if title is not None:
                answer = answer_in(bytes(seen), message.id)
                problem = problem_in(responder.status, answer, is_whole=is_over)
                self._ended(message, Ended(title, self._clock() - started, problem), answer)
            elif connects:
                self._tell_connect(client_of(message), message, responder.status, bytes(seen))

    def _tell_connect(self, client: str, message: Message, status: int, body: bytes) -> None:
        if 200 <= status < 300:
            self._say(f"{client} connected")
        elif message.method == "initialize" and status >= 400:  # without it `server/discover` is only asked for
            words = refusal_in(body)
            self._say(" ".join(filter(None, (f"{client} could not connect: HTTP {status}", words))))
            if "already initialized" in words.lower():
                self._say(
                    "the server takes one client in its life, and dev was it: give each session a transport of its own"
                )
