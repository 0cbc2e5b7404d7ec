"""Frozen records of what happened, for logs and metrics.

The law of this file: a fact holds nothing that could identify a user or open a session. A session appears only as
``session``, the short salted hash that the admin page shows, too. One fact type is one log event and one count;
``ops.logs`` and ``ops.metrics`` are functions of these records and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class HealOutcome(StrEnum):
    """How an attempt to make the upstream know a session again ended."""

    HEALED = "healed"
    REFUSED = "refused"  # other principal, budget spent, ended id
    INCOMPATIBLE = "incompatible"  # the new InitializeResult differs too much
    UNAVAILABLE = "unavailable"  # no answer
    FAILED = "failed"  # `initialize` was rejected


class CallOutcome(StrEnum):
    """What became of a call, as its client would say. An answer is what the server said, an error of its own included."""

    ANSWERED = "answered"
    ANSWERED_AFTER_HEAL = "answered_after_heal"
    ANSWERED_AFTER_HOLD = "answered_after_hold"
    UNAVAILABLE = "unavailable"  # the upstream was away, or the store of sessions
    UNKNOWN = "unknown"  # it may have run
    SESSION_LOST = "session_lost"  # the client is to start over
    REJECTED = "rejected"  # an HTTP error: ours for what it was, or the upstream's
    CLIENT_LEFT = "client_left"  # before there was an answer, or it took back its request


class ReplayCause(StrEnum):
    """Why a request was sent a second time."""

    SESSION_LOST = "session_lost"
    NOT_SENT = "not_sent"
    AMBIGUOUS_SAFE = "ambiguous_safe"


class AskOutcome(StrEnum):
    """What asking with a ping found about a refusal."""

    LOST = "lost"
    ALIVE = "alive"
    UNDECIDED = "undecided"


class ObservedAction(StrEnum):
    """What mode ``heal`` would have done (mode ``observe``)."""

    HEAL = "heal"
    REWRITE = "rewrite"
    REPLAY = "replay"
    REFUSE = "refuse"


class DroppedKind(StrEnum):
    """A client message that nobody waits for an answer to, and that went nowhere."""

    NOTIFICATION = "notification"
    RESPONSE = "response"


class SessionEnd(StrEnum):
    """Why a session is no longer in the table."""

    TERMINATED = "terminated"  # the client's DELETE
    EXPIRED = "expired"  # idle_ttl or max_lifetime
    EVICTED = "evicted"  # max_sessions
    INCOMPATIBLE = "incompatible"  # the server that came back is another one
    REPLACED = "replaced"  # the upstream minted the same id anew
    GIVEN_UP = "given_up"  # lost for good under a stream that was open: its client gets the 404 next


class RestoreStep(StrEnum):
    """What a healed session's new server is told again after ``initialized``, in this order."""

    SET_LEVEL = "logging/setLevel"
    SUBSCRIBE = "resources/subscribe"


class ListKind(StrEnum):
    """What a server lists, by the name of its capability; resource templates count as resources."""

    TOOLS = "tools"
    PROMPTS = "prompts"
    RESOURCES = "resources"


class HintKind(StrEnum):
    """What a notification of ours to a client is about."""

    CANCELLED = "cancelled"
    UPDATED = "updated"
    LIST_CHANGED = "list_changed"
    MESSAGE = "message"


class AdoptedFrom(StrEnum):
    """What knew of a session that was opened elsewhere."""

    STORE = "store"
    SEALED = "sealed"


@dataclass(slots=True)
class RequestServed:
    """A client request got its answer. ``rpc_method`` is a label of the bounded set, ``seconds`` the whole exchange.

    ``outcome`` is set where it was a call: a POST with a JSON-RPC request. There is one for each request: to freeze it would
    cost more than to count it.
    """

    http_method: Final[str]
    rpc_method: Final[str]
    status: Final[int]
    seconds: Final[float]
    outcome: Final[CallOutcome | None] = None


@dataclass(frozen=True, slots=True)
class RequestHeld:
    """A request has waited for the upstream or for a heal, and waits no more."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """An ``initialize`` was answered and its session recorded."""

    session: str
    protocol_version: str


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A session left the table."""

    session: str
    reason: SessionEnd


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The upstream has forgotten a session: one per loss, not one per request that noticed."""

    session: str
    signature: str
    status: int
    generation: int


@dataclass(frozen=True, slots=True)
class RefusalAsked:
    """A refusal in words that no row knows was asked about with a ping. ``content_type`` is a media type."""

    session: str
    outcome: AskOutcome
    status: int
    content_type: str
    rpc_code: int | None


@dataclass(frozen=True, slots=True)
class SeveralServers:
    """Behind the upstream's one address stand servers that do not share their sessions: said once by each process."""

    session: str
    advice: str = (
        "give the balancer affinity by the Mcp-Session-Id header or a cookie, or the servers one session store"
    )


@dataclass(frozen=True, slots=True)
class HealEnded:
    """A heal came to its end. ``reason`` is a fixed phrase; ``generation`` the one in force afterwards."""

    session: str
    outcome: HealOutcome
    signature: str
    reason: str
    generation: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RequestReplayed:
    """A request was sent again."""

    session: str
    cause: ReplayCause
    rpc_method: str


@dataclass(frozen=True, slots=True)
class AnswerRewritten:
    """The upstream's answer was replaced by the 404 that makes a client start over."""

    session: str
    from_status: int


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    """A request that may have run and must not be sent twice got the ``outcome_unknown`` error."""

    session: str
    rpc_method: str


@dataclass(frozen=True, slots=True)
class MessageDropped:
    """A notification or a response of the client went nowhere."""

    session: str
    kind: DroppedKind
    reason: str


@dataclass(frozen=True, slots=True)
class RestoreRefused:
    """A healed session's new server refused what the old one had taken."""

    session: str
    step: RestoreStep


@dataclass(frozen=True, slots=True)
class HintDropped:
    """A notification of ours that no open stream could carry."""

    session: str
    kind: HintKind


@dataclass(frozen=True, slots=True)
class ListsChanged:
    """A healed session's new server lists something else than what its client saw.

    ``promised``: the client was to hear of changes.
    """

    session: str
    kind: ListKind
    promised: bool


@dataclass(frozen=True, slots=True)
class ListeningEnded:
    """The upstream gives a session no listening stream any more: what its client had open is over. ``status`` said so."""

    session: str
    status: int


@dataclass(frozen=True, slots=True)
class ActionObserved:
    """Mode ``observe``: what would have been done."""

    session: str
    action: ObservedAction
    signature: str


@dataclass(frozen=True, slots=True)
class UpstreamLost:
    """A connect failed where the one before had succeeded, or fails in another way now.

    ``fault`` is a fixed phrase, or what the TLS library says of the upstream's certificate.
    """

    fault: str


@dataclass(frozen=True, slots=True)
class UpstreamBack:
    """A connect succeeded again after ``away_seconds``; ``held`` requests were waiting."""

    away_seconds: float
    held: int


@dataclass(frozen=True, slots=True)
class UpstreamSilent:
    """It takes calls and has not begun to answer for so many seconds, nor answered anybody else since."""

    seconds: float
    advice: str = "its process may still be starting, or be stuck"


@dataclass(frozen=True, slots=True)
class AnswerUnreadable:
    """What the upstream sent is no HTTP answer, or one that could be read in two ways. ``reason`` is a fixed phrase."""

    reason: str


@dataclass(frozen=True, slots=True)
class StoreAsked:
    """The store of sessions was asked something. ``operation`` is one of a bounded set."""

    operation: str
    seconds: float
    failed: bool


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The store of sessions does not answer. ``reason`` is a fixed phrase."""

    reason: str


@dataclass(frozen=True, slots=True)
class StoreBack:
    """It answers again after ``away_seconds``."""

    away_seconds: float


@dataclass(frozen=True, slots=True)
class StoreWritesRefused:
    """The store of sessions can be read, and takes nothing: what there is to write waits. ``reason`` is a fixed phrase."""

    reason: str


@dataclass(frozen=True, slots=True)
class StoreWritesTaken:
    """It takes what is written again, after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SessionAdopted:
    """A session that another process has opened, or this upstream instance has never seen, goes on here.

    ``source`` is where it came from, ``seconds`` what it took to open it at this instance.
    """

    session: str
    source: AdoptedFrom
    seconds: float


@dataclass(frozen=True, slots=True)
class SessionIdRejected:
    """A session id that claims to be a token of ours counts for nothing: it was answered 404. ``reason`` is a fixed word."""

    reason: str


@dataclass(frozen=True, slots=True)
class SessionNotSealed:
    """A client or server says too much of itself for a token: its session lives in this process only."""

    session: str


@dataclass(frozen=True, slots=True)
class HoldOverflowed:
    """A request was answered at once because the bound on held requests or bytes was reached."""

    held_requests: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """The sidecar itself refused a client's request: bad origin, bad host, too large, not JSON, bad session id."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class OriginRefused:
    """A web page may not call. ``origin`` is in canonical form, ``null``, or empty where it is none."""

    origin: str


@dataclass(frozen=True, slots=True)
class HostRefused:
    """On a loopback listener: a request names a ``Host`` that is not the sidecar's."""


@dataclass(frozen=True, slots=True)
class UpstreamRefusesHost:
    """The upstream does not want to be called by the ``Host`` that it gets."""

    status: int


@dataclass(frozen=True, slots=True)
class SidecarFault:
    """A bug of the sidecar, contained to one exchange. ``error`` is the exception's type, ``where`` module and line."""

    error: str
    where: str


Fact = (
    RequestServed
    | RequestHeld
    | SessionOpened
    | SessionEnded
    | SessionLost
    | RefusalAsked
    | SeveralServers
    | HealEnded
    | RequestReplayed
    | AnswerRewritten
    | OutcomeUnknown
    | MessageDropped
    | RestoreRefused
    | HintDropped
    | ListsChanged
    | ListeningEnded
    | ActionObserved
    | UpstreamLost
    | UpstreamBack
    | UpstreamSilent
    | AnswerUnreadable
    | StoreAsked
    | StoreLost
    | StoreBack
    | StoreWritesRefused
    | StoreWritesTaken
    | SessionAdopted
    | SessionIdRejected
    | SessionNotSealed
    | HoldOverflowed
    | RequestRejected
    | OriginRefused
    | HostRefused
    | UpstreamRefusesHost
    | SidecarFault
)

Emit = Callable[[Fact], None]
