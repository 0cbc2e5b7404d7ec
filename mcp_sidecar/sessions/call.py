"""One client request on the MCP endpoint: what is asked, and in whose session."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from mcp_sidecar.facts import AdoptedFrom
from mcp_sidecar.healing.principal import Identity, Principal
from mcp_sidecar.healing.session import ClientSessionId, Session, UpstreamSessionId
from mcp_sidecar.sessions.look_ups import Missing
from mcp_sidecar.sessions.own_requests import Trigger
from mcp_sidecar.sessions.sessions import Sessions
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.verdicts.classify import RequestFacts, SessionKnowledge
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.cookies import with_cookies
from mcp_sidecar.wire.headers import Fields, Pair
from mcp_sidecar.wire.jsonrpc import JsonRpcId
from mcp_sidecar.wire.origins import Move

_SESSION_ID = frozenset({"mcp-session-id"})


class BadSessionId(Exception):
    """The session id is empty, not visible ASCII, or there are several."""


@dataclass(slots=True)
class Call:
    """A request of a client of an older revision.

    ``pairs`` are the headers as the upstream gets them, the session id apart. ``session`` is set where the upstream has
    accepted this credential in a session that was opened through this sidecar: only such a request acts on what is held of
    it here. ``claimed`` is the session where that is still to be seen, ``is_foreign`` where another principal opened it.
    ``owner`` is the connection it came on.
    """

    http_method: str
    target: str
    _pairs: list[Pair] | str = field(repr=False)
    client_id: ClientSessionId | None = field(repr=False)
    identity: Identity = field(repr=False)
    move: Move
    _table: SessionTable = field(repr=False)
    session: Session | None = None
    claimed: Session | None = None
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
        if self.session is not None:
            self.client_id = self.session.client_id  # the same text, which is there in any case
        texts = [text for pair in self.pairs for text in pair]
        if texts and not any("\n" in text for text in texts):
            self._pairs = "\n".join(texts)

    @property
    def principal(self) -> Principal:
        """Who says to be asking."""
        return self.identity.principal

    @property
    def named_session(self) -> Session | None:
        """The session under whose upstream id the request goes, whether it may act in it or only claims so."""
        return self.session if self.session is not None else self.claimed

    @property
    def may_heal(self) -> bool:
        """Whether a loss that the request meets is healed: by the session's own principal, even with a newer token.

        A heal begins with an ``initialize`` under that very token, and nothing becomes of it if the upstream refuses.
        """
        named = self.named_session
        return named is not None and (self.session is not None or named.principal == self.principal)

    @property
    def knowledge(self) -> SessionKnowledge:
        """What is known of the session that the request names."""
        if self.client_id is None:
            return SessionKnowledge.NONE
        return SessionKnowledge.BOUND if self.may_heal else SessionKnowledge.UNKNOWN

    def accepted(self, generation: int, answer: Answer) -> bool:
        """A request that was sent under ``generation`` was a success: whether that makes a claim good.

        Whoever may only be the owner must have been served in this very session: some servers open another one for an id
        that they do not know, and show its id.
        """
        session = self.claimed
        if session is None or session.is_ended or session.displaced or session.generation != generation:
            return False
        shown = answer.header(headers.SESSION_ID) or session.upstream_id
        if not self.may_heal and (shown is None or shown != session.upstream_id):
            return False
        session.accept(self.identity)
        self.session, self.claimed, self.is_foreign = session, None, False
        return True

    def held_name(self, request_id: JsonRpcId | None) -> Hashable:
        """By what a held request is named: what waits in a session is only reached by who may act in it."""
        if self.session is not None:
            return self.client_id, self.session.principal, request_id
        return self.client_id, "claimed", self.identity.credential, request_id

    @property
    def trigger(self) -> Trigger:
        """The request as the reason for a heal."""
        return Trigger(self.target, self.pairs, self.identity.credential, self.owner)

    def facts(self, rpc_method: str | None, rpc_ids: frozenset[JsonRpcId] = frozenset()) -> RequestFacts:
        """What the classifier wants to know. ``rpc_ids`` are those that the requests bore upstream."""
        named = self.named_session
        session_id = named.upstream_id if named is not None else self.client_id
        return RequestFacts(self.http_method, rpc_method, self.knowledge, rpc_ids=rpc_ids, session_id=session_id)

    def upstream_headers(self, *, without: Iterable[str] = ()) -> list[Pair]:
        """The headers to send now, under the upstream session that stands behind the client's at this moment.

        Another principal's request, and one with an unknown id, go with the client's own id, in every generation.
        """
        dropped = frozenset(without)
        pairs = [pair for pair in self.pairs if pair[0].lower() not in dropped] if dropped else list(self.pairs)
        named = self.named_session
        upstream_id = named.upstream_id if named is not None else _as_it_is(self.client_id)
        if upstream_id is not None:
            pairs.append((headers.SESSION_ID, upstream_id))
        if named is not None and named.cookies:
            pairs = with_cookies(pairs, named.cookies)
        return pairs

    def client_headers(self, answer: Answer, *, without: Iterable[str] = ()) -> list[Pair]:
        """The upstream's headers for the client, in which no session id appears but the client's own.

        Some clients adopt whatever id a response carries, and one fails on it.
        """
        seen, named = answer.header(headers.SESSION_ID), self.named_session
        pairs = answer.client_headers(without=_SESSION_ID.union(without) if without else _SESSION_ID)
        if answer.names_a_url:
            pairs = self.move.headers(pairs)
        if seen is not None and self.client_id is not None and (named is not None or seen == self.client_id):
            pairs.append((headers.SESSION_ID, self.client_id))
        return pairs

    @property
    def label(self) -> str:
        """The short hash by which the session is shown; empty without one."""
        named = self.named_session
        if named is not None:
            return named.label
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
    identity, table = sessions.identity_of(asked.fields, asked.target.partition("?")[2]), sessions.table
    call = Call(asked.http_method, asked.target, pairs, client_id, identity, move, table, owner=asked.owner)
    if client_id is not None:
        call.session, call.claimed = table.look_up(client_id, identity)
        call.is_foreign = call.session is None and not call.may_heal and table.is_held(client_id)
    return call


def may_be_loaded(sessions: Sessions, call: Call) -> bool:
    """Whether the request names a session that is not in memory and that a store may know as its own."""
    if call.client_id is None or call.may_heal:
        return False
    if call.claimed is not None and sessions.table.adopted_from is AdoptedFrom.SEALED:  # nobody else's is under this id
        return False
    return sessions.table.may_be_loaded(call.client_id, call.principal)


async def load_session(sessions: Sessions, call: Call) -> Missing | None:
    """Ask the store whose session a request is in, where ``may_be_loaded``; why there is none, if there is none."""
    assert call.client_id is not None, "without an id there is nothing to load"
    table = sessions.table
    missing = await table.load(call.client_id, call.identity)
    call.session, call.claimed = table.look_up(call.client_id, call.identity)
    is_known = missing is Missing.FOREIGN or table.is_held(call.client_id)
    call.is_foreign = call.session is None and not call.may_heal and is_known
    return missing


def _session_id(found: tuple[str, ...]) -> ClientSessionId | None:
    if not found:
        return None
    if len(found) > 1 or not headers.is_valid_session_id(found[0]):
        raise BadSessionId
    return ClientSessionId(found[0])


def _as_it_is(client_id: ClientSessionId | None) -> UpstreamSessionId | None:
    return UpstreamSessionId(client_id) if client_id is not None else None
