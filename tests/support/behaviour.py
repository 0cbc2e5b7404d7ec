"""What kind of MCP server the fake upstream is, as one frozen value. The defaults are a recent python server."""

from __future__ import annotations

import base64
import itertools
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tests.support.dialects import DIALECTS, Dialect, Mint

MODERN = "2026-07-28"
SESSION_REVISIONS = ("2025-11-25", "2025-06-18", "2025-03-26")


class Answers(Enum):
    """The form of an answer to a JSON-RPC request."""

    JSON = "json"
    SSE = "sse"


class Priming(Enum):
    """The event before the first message of a stream: none, the 2025-11-25 one, or an empty one (rmcp, early 1.x)."""

    NONE = "none"
    WITH_ID = "with_id"
    WITHOUT_ID = "without_id"


class SessionMode(Enum):
    """MANY as most servers; SINGLE as one shared transport (a second initialize gets 400); STATELESS mints no id;
    ADOPTING takes ids it never minted (mcp-go's default: the loss cannot be seen); OPENING opens a session of its own for
    them, and shows its id."""

    MANY = "many"
    SINGLE = "single"
    STATELESS = "stateless"
    ADOPTING = "adopting"
    OPENING = "opening"


class EarlyRequest(Enum):
    """A request before ``notifications/initialized``: served, refused in band (python 1.9-1.17), or it kills the
    session (rmcp up to 1.3.0)."""

    SERVED = "served"
    REFUSED = "refused"
    KILLS_SESSION = "kills_session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Everything that may differ between two servers, or between two processes of one server.

    ``get_takes_any`` answers a GET in a session that is not known with a stream on which nothing comes (mcp-go 0.43 and 1.2,
    stateful). ``resume_status`` answers a GET with ``Last-Event-ID`` where there is no event store, ``None`` treats it as a plain GET.
    ``authorization`` is the set of accepted ``Authorization`` values, ``None`` accepts everybody; ``bind_principal`` answers
    another principal's session id as lost (python 1.27.2 on). ``check_host`` answers a foreign ``Host`` with 421.
    """

    dialect: str | Dialect = "python-404"
    mint: Mint | None = None
    sessions: SessionMode = SessionMode.MANY
    max_sessions: int | None = None
    protocol_versions: tuple[str, ...] = SESSION_REVISIONS
    modern: bool = False
    server_name: str = "fake-upstream"
    server_version: str = "1.0"
    instructions: str | None = None
    capabilities: Mapping[str, Any] = field(
        default_factory=lambda: {
            "tools": {"listChanged": True},
            "resources": {"subscribe": True, "listChanged": True},
            "prompts": {"listChanged": True},
            "logging": {},
            "completions": {},
        }
    )
    answers: Answers = Answers.SSE
    initialize_answers: Answers | None = None
    priming: Priming = Priming.NONE
    event_ids: bool = False
    event_store: bool = False
    retry_ms: int | None = None
    newline: str = "\n"
    resume_status: int | None = 405
    get_streams: bool = True
    get_takes_any: bool = False
    second_get_status: int | None = 409
    delete_status: int = 200
    early_request: EarlyRequest = EarlyRequest.SERVED
    echo_session_id: bool = True
    page_size: int | None = None
    extra_tools: tuple[str, ...] = ()
    refused_methods: frozenset[str] = frozenset()
    extra_prompts: tuple[str, ...] = ()
    extra_resources: tuple[str, ...] = ()
    extra_templates: tuple[str, ...] = ()
    authorization: frozenset[str] | None = None
    www_authenticate: str | None = 'Bearer error="invalid_token"'
    bind_principal: bool = False
    check_host: bool = True
    batches: bool = True

    @property
    def dialect_row(self) -> Dialect:
        return DIALECTS[self.dialect] if isinstance(self.dialect, str) else self.dialect

    @property
    def session_mint(self) -> Mint:
        return self.mint or self.dialect_row.mint

    def negotiate(self, offered: object) -> str:
        """The offered revision where it is spoken, else the newest one spoken."""
        return offered if isinstance(offered, str) and offered in self.protocol_versions else self.protocol_versions[0]


_counted: Iterator[int] = itertools.count(1)

MINTS: dict[Mint, Callable[[], str]] = {
    Mint.UUID_HEX: lambda: uuid.uuid4().hex,
    Mint.UUID: lambda: str(uuid.uuid4()),
    Mint.COUNTER: lambda: f"session-{next(_counted)}",
    Mint.MCP_GO: lambda: f"mcp-session-{uuid.uuid4()}",
    Mint.BASE32: lambda: base64.b32encode(secrets.token_bytes(16)).decode().rstrip("="),
    Mint.BASE64URL: lambda: secrets.token_urlsafe(16),
    Mint.TOKEN: lambda: secrets.token_urlsafe(6000),
}
