"""One client request on the MCP endpoint: what is asked, and in whose session."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.session import ClientSessionId, Session, UpstreamSessionId
from mcp_sidecar.sessions.keeper import Missing
from mcp_sidecar.sessions.own_requests import Trigger
from mcp_sidecar.sessions.sessions import Sessions
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.verdicts.classify import RequestFacts, SessionKnowledge
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.cookies import with_cookies
from mcp_sidecar.wire.headers import Fields, Pair
from mcp_sidecar.wire.origins import Move

_SESSION_ID = frozenset({"mcp-session-id"})


class BadSessionId(Exception):
    """The session id is too long, not visible ASCII, or there are several."""


@dataclass(slots=True)
class Call:
    """A request of a client of an older revision.

    ``pairs`` are the headers as the upstream gets them, the session id apart. ``session`` is set where this principal
    opened the session through this sidecar; ``is_foreign`` where another one did. ``owner`` is the connection it came on.
    """

    http_method: str
    target: str
    _pairs: list[Pair] | str = field(repr=False)
    client_id: ClientSessionId | None = field(repr=False)
    principal: Principal = field(repr=False)
    credential: Principal = field(repr=False)
    move: Move
    _table: SessionTable = field(repr=False)
    session: Session | None = None
    is_foreign: bool = False
    owner: Hashable | None = field(default=None, repr=False)

    @property
    def pairs(self) -> list[Pair]:
        """The headers for the upstream."""
        if isinstance(self._pairs, str):
            texts = self._pairs.split("\n")
            return list(zip(texts[::2], texts[1::2], strict=True))
        return self._pairs

    def pack(self) -> None:
        """Keep the headers in one piece: they will be asked for rarely, and in the meantime there may be many calls."""
        texts = [text for pair in self.pairs for text in pair]
        if texts and not any("\n" in text for text in texts):
            self._pairs = "\n".join(texts)

    @property
    def knowledge(self) -> SessionKnowledge:
        """What is known of the session that the request names."""
        if self.client_id is None:
            return SessionKnowledge.NONE
        return SessionKnowledge.UNKNOWN if self.session is None else SessionKnowledge.BOUND

    @property
    def trigger(self) -> Trigger:
        """The request as the reason for a heal."""
        return Trigger(self.target, self.pairs, self.credential, self.owner)

    def facts(self, rpc_method: str | None, rpc_ids: frozenset[str | int | float] = frozenset()) -> RequestFacts:
        """What the classifier wants to know. ``rpc_ids`` are those that the requests bore upstream."""
        session_id = self.session.upstream_id if self.session is not None else self.client_id
        return RequestFacts(self.http_method, rpc_method, self.knowledge, rpc_ids=rpc_ids, session_id=session_id)

    def upstream_headers(self, *, without: Iterable[str] = ()) -> list[Pair]:
        """The headers to send now, under the upstream session that stands behind the client's at this moment.

        Another principal's request, and one with an unknown id, go with the client's own id, in every generation.
        """
        dropped = frozenset(without)
        pairs = [pair for pair in self.pairs if pair[0].lower() not in dropped] if dropped else list(self.pairs)
        upstream_id = self.session.upstream_id if self.session is not None else _as_it_is(self.client_id)
        if upstream_id is not None:
            pairs.append((headers.SESSION_ID, upstream_id))
        if self.session is not None and self.session.cookies:
            pairs = with_cookies(pairs, self.session.cookies)
        return pairs

    def client_headers(self, answer: Answer, *, without: Iterable[str] = ()) -> list[Pair]:
        """The upstream's headers for the client, in which no session id appears but the client's own.

        Some clients adopt whatever id a response carries, and one fails on it.
        """
        seen = answer.header(headers.SESSION_ID)
        pairs = answer.client_headers(without=_SESSION_ID.union(without) if without else _SESSION_ID)
        if answer.names_a_url:
            pairs = self.move.headers(pairs)
        if seen is not None and self.client_id is not None and (self.session is not None or seen == self.client_id):
            pairs.append((headers.SESSION_ID, self.client_id))
        return pairs

    @property
    def label(self) -> str:
        """The short hash by which the session is shown; empty without one."""
        if self.session is not None:
            return self.session.label
        return self._table.label(self.client_id) if self.client_id is not None else ""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """What a client asks for, as it came, and on which connection: ``owner``.

    ``session_ids`` are the values of that header that count.
    """

    http_method: str
    target: str
    fields: Fields = field(repr=False)
    session_ids: tuple[str, ...] = field(repr=False)
    owner: Hashable | None = field(default=None, repr=False)


def read_call(sessions: Sessions, asked: RequestLine, pairs: list[Pair], move: Move) -> Call:
    """Find out whose session a request is in.

    ``pairs`` are the headers for the upstream. Raises ``BadSessionId``.
    """
    client_id = _session_id(asked.session_ids)
    principal, credential = sessions.principal_of(asked.fields)
    session, is_foreign = sessions.find(client_id, principal)
    table = sessions.table
    return Call(
        asked.http_method,
        asked.target,
        pairs,
        client_id,
        principal,
        credential,
        move,
        table,
        session,
        is_foreign,
        asked.owner,
    )


def may_be_loaded(sessions: Sessions, call: Call) -> bool:
    """Whether the request names a session that is not in memory and that a store may know."""
    if call.client_id is None or call.session is not None:
        return False
    return sessions.table.may_be_loaded(call.client_id, call.principal)


async def load_session(sessions: Sessions, call: Call) -> None:
    """Ask the store whose session a request is in; to be called where ``may_be_loaded``."""
    assert call.client_id is not None, "without an id there is nothing to load"
    found = await sessions.table.load(call.client_id, call.principal)
    call.session = found if isinstance(found, Session) else None
    call.is_foreign = call.is_foreign or found is Missing.FOREIGN


def _session_id(found: tuple[str, ...]) -> ClientSessionId | None:
    if not found:
        return None
    if len(found) > 1 or not headers.is_valid_session_id(found[0]):
        raise BadSessionId
    return ClientSessionId(found[0])


def _as_it_is(client_id: ClientSessionId | None) -> UpstreamSessionId | None:
    return UpstreamSessionId(client_id) if client_id is not None else None
