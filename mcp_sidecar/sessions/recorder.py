"""What the sidecar learns from an answer that passes: a new session, its lists, what was set in it, what was asked.

Everything is learned before the client sees it, so that the client's next request finds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mcp_sidecar.healing.client_state import LEARNT
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.lists import LISTINGS
from mcp_sidecar.healing.marked_ids import Renumbering
from mcp_sidecar.healing.policy import Policy
from mcp_sidecar.healing.session import ClientSessionId, Session, UpstreamSessionId
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.keeper import Saving
from mcp_sidecar.sessions.table import SessionTable
from mcp_sidecar.upstream.answer import Answer, WholeJson, may_hold_message
from mcp_sidecar.wire import headers
from mcp_sidecar.wire.cookies import affinity_cookies
from mcp_sidecar.wire.jsonrpc import Kind, Message, is_initialize_result

TEACHING = LEARNT | LISTINGS.keys()
"""The requests whose results say something of the session."""


class Recorder:
    """What one POST teaches. ``message`` is kept up to date by the owner: a large one is known bit by bit.

    ``generation`` is the one that the request was last sent under, ``renumbering`` the ids that it then bore.
    """

    def __init__(
        self, table: SessionTable, policy: Policy, call: Call, message: Message, cookie_names: tuple[str, ...] = ()
    ) -> None:
        """Nothing is known yet. ``cookie_names`` are the names of those that lead to the server of a new session."""
        self._table = table
        self._compares = policy.heals and policy.compare_lists
        self._call = call
        self._cookie_names = cookie_names
        self._ids: tuple[ClientSessionId, UpstreamSessionId] | None = None  # of the new session
        self._opened: Session | None = None
        self.is_settled = False  # of an `initialize`: whether it has its result, or something that cannot wait for it
        self.message = message
        self.generation = 1
        self.renumbering = Renumbering()
        self.is_initialize = message.kind is Kind.REQUEST and message.method == "initialize"

    @property
    def is_taught(self) -> bool:
        """Whether the answer to this request says something of the session."""
        return self.is_initialize or bool(self.message.members) or self.message.method in TEACHING

    def new_session_id(self, answer: Answer, whole: WholeJson | None = None) -> str | None:
        """The session id that the answer gives out: only one to ``initialize`` does, and no error.

        ``whole`` is its body, if that is known already.
        """
        if not self.is_initialize or not 200 <= answer.status < 300 or not may_hold_message(answer):
            return None
        session_id = answer.header(headers.SESSION_ID)
        if session_id is None or not headers.is_valid_session_id(session_id):
            return None
        return session_id if whole is None or is_initialize_result(whole.message) else None

    def shown_id(self, session_id: str) -> ClientSessionId:
        """The id that the client gets to see for the upstream's, the same in everything that it sees of this answer."""
        # A stream that was begun anew goes on under the id that its head has shown; the upstream knows that one, too.
        if self._ids is None:
            minted = UpstreamSessionId(session_id)
            self._ids = self._table.id_for_newcomer(minted, self._call.principal), minted
        return self._ids[0]

    def show_as_minted(self, answer: Answer) -> None:
        """The client gets to see the upstream's id in any case, since nobody writes the answer anew."""
        session_id = self.new_session_id(answer)
        if session_id is not None:
            self._ids = ClientSessionId(session_id), UpstreamSessionId(session_id)

    def claim_new_id(self, answer: Answer) -> None:
        """From the head of the answer on the id is in use upstream, whatever the body will say."""
        session_id = self.new_session_id(answer)
        if session_id is not None:
            self._table.claim_upstream_id(UpstreamSessionId(session_id), None)

    def learn(self, message: Message, answer: Answer) -> None:
        """Look at one message of the answer."""
        if self.is_initialize:
            self._learn_session(message, answer)
            return
        session = self._call.session
        if session is None:
            return
        session.heard(message, session.mark_of(self.generation))
        for request, result in self._succeeded(message):
            if request.method not in LISTINGS:  # what a server has taken, the next one must be told
                session.learnt(request)
            elif self.generation == session.generation:
                self._learn_list(session, request, result)

    def _succeeded(self, message: Message) -> Iterator[tuple[Message, Mapping[str, Any]]]:
        """The client's requests that teach something, each with its result, as far as the message brings one."""
        asked = {request.id: request for request in self.message.requests if request.method in TEACHING}
        for response in message.responses if asked else ():
            client_id = response.id
            if isinstance(client_id, str):
                client_id = self.renumbering.ids.get(client_id, client_id)
            request = asked.get(client_id)
            if request is not None and response.result is not None:
                yield request, response.result

    def _learn_list(self, session: Session, request: Message, result: Mapping[str, Any]) -> None:
        """One page of a list: which tools are safe, and what the client has seen of the server."""
        if request.method == "tools/list":
            session.learnt_tools(result, is_first_page=request.cursor is None)
        if self._compares and request.method is not None:
            session.learnt_list(request.method, request.cursor, result, self.generation)

    def _learn_session(self, message: Message, answer: Answer) -> None:
        self.is_settled |= bool(message.responses or message.requests)
        session_id = self.new_session_id(answer)
        if session_id is None or not is_initialize_result(message):
            return
        handshake = Handshake.of(self.message.params, message.result or {})
        if handshake.is_too_large:
            return
        is_shown = self._ids is not None
        self.shown_id(session_id)
        assert self._ids is not None
        client_id, upstream_id = self._ids
        cookies = affinity_cookies(answer.headers, self._cookie_names)
        if is_shown:
            self._opened = self._table.open(client_id, self._call.principal, handshake, upstream_id, cookies)
        else:
            self._opened = self._table.open_sealed(client_id, self._call.identity, handshake, upstream_id, cookies)
            self._ids = self._opened.client_id, upstream_id
        self._opened.accept(self._call.identity)

    async def settle(self, *, is_shown: bool = False) -> None:
        """Have the store know of the session that was opened, before its client does: its next request may come elsewhere.

        Unless the store says that its id is free it gets another: servers that count their sessions mint ids again, and a
        client that the store alone knows would be in this one's session. An id that the client has seen stays.
        """
        opened = self._opened
        saving = Saving.DONE if opened is None else await self._table.save(opened)
        if opened is None or self._ids is None or saving is Saving.DONE or is_shown:
            return
        renamed = self._opened = self._table.rename(opened)
        renamed.accept(self._call.identity)
        self._ids = renamed.client_id, self._ids[1]
        if saving is not Saving.LATER:
            await self._table.save(renamed)
