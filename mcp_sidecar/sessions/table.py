"""Sessions by client session id: those in memory are found at once, those that only a store knows are loaded.

A session is found only together with its principal: two principals may hold the same id, and neither ever gets the
other's session. Another one's request may claim it, where it may bear a refreshed credential; only the upstream's own
success makes the credential one of the session's. Ended ids are remembered as keyed hashes with the principals whose they
were, a bounded number of them. What outlives the process is the ``keeper``'s business; a session that is in memory never
waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.facts import (
    AdoptedFrom,
    Emit,
    SessionEnd,
    SessionEnded,
    SessionIdRejected,
    SessionNotSealed,
    SessionOpened,
)
from mcp_sidecar.healing.handshake import Handshake
from mcp_sidecar.healing.marked_ids import FIRST, Marks
from mcp_sidecar.healing.principal import ANONYMOUS, Identity, Principal
from mcp_sidecar.healing.record import Instance, SessionRecord
from mcp_sidecar.healing.session import ClientSessionId, Event, Session, State, UpstreamSessionId
from mcp_sidecar.sessions.ended_ids import EndedIds
from mcp_sidecar.sessions.handshakes import Handshakes
from mcp_sidecar.sessions.keeper import Keeper, Saving
from mcp_sidecar.sessions.look_ups import Missing
from mcp_sidecar.wire.cookies import Cookies

EVICTED_FOR_BYTES = 2
"""So many sessions at most make room for what a newcomer has said of itself: what one held may be in use a moment longer."""

Key = tuple[ClientSessionId, Principal]


class FoundSession(NamedTuple):
    """``session`` is the one in which the upstream has accepted the credential; else it may yet do so in ``claimed``."""

    session: Session | None = None
    claimed: Session | None = None


NOT_FOUND = FoundSession()


class SessionTable:
    """All sessions of this process."""

    def __init__(
        self,
        limits: SessionLimits,
        emit: Emit,
        *,
        salt: bytes,
        clock: Callable[[], float],
        new_tag: Callable[[], str],
        keeper: Keeper,
        adopts: bool = True,
        on_displaced: Callable[[Session], None] = lambda _: None,
    ) -> None:
        """``clock`` gives monotonic seconds, ``new_tag`` a short unguessable text.

        ``adopts``: a session may be claimed by whoever may be its owner with a newer credential. ``on_displaced`` hears of
        every session whose upstream id has become another's.
        """
        self._limits = limits
        self._emit = emit
        self._salt = salt
        self._clock = clock
        self._new_tag = new_tag
        self._keeper = keeper
        self._tokens = keeper.tokens
        self._adopts = adopts
        self._on_displaced = on_displaced
        self._by_use: OrderedDict[Key, Session] = OrderedDict()
        self._holders: dict[ClientSessionId, Session | tuple[Session, ...]] = {}  # nearly always it is one
        self._by_upstream_id: dict[UpstreamSessionId, Session] = {}
        self._ended = EndedIds(salt, limits.max_sessions)
        self._handshakes = Handshakes()
        keeper.on_settled = self._settled

    def __len__(self) -> int:
        """How many sessions there are."""
        return len(self._by_use)

    def __iter__(self) -> Iterator[Session]:
        """All sessions, the longest unused first."""
        return iter(self._by_use.values())

    def label(self, session_id: str) -> str:
        """The short salted hash by which a session is shown."""
        return hashlib.blake2b(session_id.encode(), key=self._salt, digest_size=6).hexdigest()

    def id_for_newcomer(self, upstream_id: UpstreamSessionId, principal: Principal) -> ClientSessionId:
        """The id that the client of a new session is to know: the upstream's own, unless the principal holds it already.

        A server that counts its sessions mints an id again after a restart. Two clients that nothing else tells apart
        must not go under one id.
        """
        own = ClientSessionId(upstream_id)
        while (own, principal) in self._by_use:
            own = ClientSessionId(f"{self._new_tag()}.{upstream_id}")
        return own

    def open_sealed(
        self,
        client_id: ClientSessionId,
        identity: Identity,
        handshake: Handshake,
        upstream_id: UpstreamSessionId,
        cookies: Cookies = (),
    ) -> Session:
        """The same, under an id that is a token, if there are any; one that would be too long stays ``client_id``."""
        if self._tokens is None:
            return self.open(client_id, identity.principal, handshake, upstream_id, cookies)
        tag = self._new_tag()
        made = self._tokens.made_for(identity, tag, handshake, upstream_id, cookies, self._keeper.wall())
        if made is None:
            self._emit(SessionNotSealed(self.label(client_id)))
        shown = ClientSessionId(made) if made is not None else client_id
        return self.open(shown, identity.principal, handshake, upstream_id, cookies, tag=tag)

    def open(
        self,
        client_id: ClientSessionId,
        principal: Principal,
        handshake: Handshake,
        upstream_id: UpstreamSessionId | None = None,
        cookies: Cookies = (),
        *,
        tag: str = "",
    ) -> Session:
        """An ``initialize`` was answered with a new id: record the session behind it.

        ``upstream_id`` is what the upstream calls it, where that is not the client's id, ``cookies`` lead to its server;
        ``tag`` is the one in a token.
        """
        old = self._by_use.get((client_id, principal))
        replaced = self._keeper.stored(old) if old is not None else None
        if old is not None:
            self._remove(old, SessionEnd.REPLACED)
        self._ended.forget(client_id, principal)
        wall, tag = self._keeper.wall(), tag or self._new_tag()
        minted = upstream_id or UpstreamSessionId(client_id)
        record = SessionRecord(
            handshake=self._handshakes.shared(handshake),
            principal=principal,
            tag=tag,
            created_at=wall,
            last_used_at=wall,
            instances=(Instance(self._keeper.instance, minted, "", cookies),),
        )
        session = self._enter(client_id, record, Marks(tag, self._new_tag()))
        self._keeper.opened(session, replaced)
        self._emit(SessionOpened(session.label, handshake.protocol_version))
        self.sweep()
        return session

    def _enter(self, client_id: ClientSessionId, record: SessionRecord, marks: Marks) -> Session:
        """From now on the session of this record is in memory. Of its age only the time in the record tells."""
        now = self._clock()
        age = max(0.0, self._keeper.wall() - record.created_at)
        session = Session(client_id, record, self.label(client_id), self._keeper.instance, marks, now - age, now)
        self._by_use[client_id, record.principal] = session
        self._hold(client_id, (*self._held_by(client_id), session))
        if not session.displaced:
            self.claim_upstream_id(session.upstream_id, session)
        return session

    async def load(self, client_id: ClientSessionId, identity: Identity) -> Missing | None:
        """Have the session that this identity may be in in memory, if only the store knows it; ``None`` if it is there."""
        if self._own(client_id, identity.principal) is not None:
            return None
        if not self.may_be_loaded(client_id, identity.principal):
            return Missing.ENDED if self.is_ended(client_id, identity.principal) else Missing.UNKNOWN
        if self._is_token(client_id):
            return self._unsealed(client_id, identity)
        found = await self._keeper.load(client_id, identity, adopts=self._adopts)
        if self._own(client_id, identity.principal) is not None:
            return None
        if self.is_ended(client_id, identity.principal):  # meanwhile
            return Missing.ENDED
        if found is Missing.ENDED:
            self._ended.remember(client_id, identity.principal)
        if isinstance(found, Missing):
            return found
        if self._own(client_id, found.principal) is not None:
            self._keeper.note_not_own(client_id, identity.principal)
            return None
        return self._loaded(client_id, found)

    def _own(self, client_id: ClientSessionId, principal: Principal) -> Session | None:
        return self._live(self._by_use.get((client_id, principal)), self._clock())

    def may_be_loaded(self, client_id: ClientSessionId, principal: Principal) -> bool:
        """Whether a session that is not in memory is worth asking the store for."""
        is_kept = self._keeper.outlives_process or self._is_token(client_id)
        return is_kept and not self.is_ended(client_id, principal)

    def _is_token(self, client_id: ClientSessionId) -> bool:
        return self._tokens is not None and self._tokens.is_one(client_id)

    @property
    def adopted_from(self) -> AdoptedFrom:
        """What knows of sessions that were opened elsewhere."""
        return AdoptedFrom.STORE if self._tokens is None else AdoptedFrom.SEALED

    def _unsealed(self, client_id: ClientSessionId, identity: Identity) -> Missing | None:
        """A token says all that there is to know of its session; one that counts for nothing is nobody else's id either."""
        assert self._tokens is not None, "it is one"
        found = self._tokens.read(client_id, identity, self._keeper.wall())
        if isinstance(found, SessionRecord):
            return self._loaded(client_id, found)
        self._emit(SessionIdRejected(found.reason))
        return Missing.REJECTED

    def _loaded(self, client_id: ClientSessionId, record: SessionRecord) -> Missing | None:
        principal = record.principal
        if self.is_ended(client_id, principal):
            return Missing.ENDED
        if self._keeper.wall() - record.created_at >= self._limits.max_lifetime_s:
            self._ended.remember(client_id, principal)
            return Missing.ENDED
        record = replace(record, handshake=self._handshakes.shared(record.handshake))
        here = record.at(self._keeper.instance)
        if here is not None and here.upstream_id is not None and self.is_claimed(here.upstream_id):
            record, here = record.not_at(here.key), None  # somebody was given it since then
        marks = Marks(record.tag, self._new_tag())
        if here is not None and here.word:
            marks = marks.with_word(FIRST + 1, here.word)
        session = self._enter(client_id, record, marks)
        self._keeper.loaded(session)
        self.sweep()
        return None

    async def save(self, session: Session) -> Saving:
        """Have the store know what the session knows; waits for it no longer than a store may take."""
        return await self._keeper.save(session)

    async def take_turn(self, session: Session) -> bool:
        """Before a heal: whether no other process is healing it at this very instance; else none does for a while.

        The session knows from then on whether another process has healed it here meanwhile, or ended it.
        """
        return await self._keeper.take_turn(session)

    async def give_turn_back(self, session: Session) -> None:
        """The heal is over."""
        await self._keeper.give_turn_back(session)

    async def settle_end(self, session: Session) -> None:
        """Have the store know that a session is over, if it answers in time."""
        await self._keeper.end(session.client_id, session.principal)

    def store_back(self) -> asyncio.Future[None]:
        """Done as soon as the store can be asked."""
        return self._keeper.back()

    def end_unseen(self, client_id: ClientSessionId, principal: Principal) -> None:
        """The upstream has ended a session of this id that only the store may know, and cannot be asked for."""
        self._ended.remember(client_id, principal)
        self._keeper.note_ended_unseen(client_id, principal)

    def _settled(self, session: Session, outcome: Saving) -> None:
        """What the store knows of the session by now, since others wrote."""
        if not self._is_in_memory(session):
            return
        if outcome is Saving.ENDED:
            self._remove(session, SessionEnd.TERMINATED)
        elif outcome is Saving.OVERTAKEN:
            self.release_upstream_id(session.upstream_id, session)
            session.follow()
            is_doubtful = self._is_held_unknown_to_others(session.upstream_id)
            self.claim_upstream_id(session.upstream_id, session)
            if is_doubtful:  # which of the two was given it last nobody can say
                self.displace(session)
            self._keeper.note(session)
        elif not session.displaced and session.record.at(self._keeper.instance) is None:
            self.displace(session)

    def _is_held_unknown_to_others(self, upstream_id: UpstreamSessionId | None) -> bool:
        """Whether a session stands on this id of which the store does not know so."""
        holder = self._by_upstream_id.get(upstream_id) if upstream_id is not None else None
        return holder is not None and not self._keeper.knows_place_of(holder)

    def rename(self, session: Session) -> Session:
        """Another process may have opened one with this id and principal: the newcomer, still unknown, gets another id."""
        self.end(session, SessionEnd.EVICTED)
        assert session.upstream_id is not None, "it was opened with one"
        other = ClientSessionId(f"{self._new_tag()}.{session.upstream_id}")
        return self.open(other, session.principal, session.handshake, session.upstream_id, session.cookies)

    def find(self, client_id: ClientSessionId, principal: Principal) -> Session | None:
        """The principal's own session, and note that it is in use."""
        now = self._clock()
        session = self._live(self._by_use.get((client_id, principal)), now)
        if session is not None:
            self._touch(session, now)
        return session

    def look_up(self, client_id: ClientSessionId, identity: Identity) -> FoundSession:
        """Whose session a request with this id is in. What is only claimed is not used by it."""
        now = self._clock()
        own = self._live(self._by_use.get((client_id, identity.principal)), now)
        if own is None and identity.earlier is not None:
            own = self._told_anew(client_id, identity)
        if own is None:
            return self._anothers(client_id, identity, now)
        if not own.accepted.holds(identity):
            return FoundSession(claimed=own)
        self._touch(own, now)
        return FoundSession(own)

    def _told_anew(self, client_id: ClientSessionId, identity: Identity) -> Session | None:
        """A session that was opened before the secret of all principals was known: it is its owner's under the right hash."""
        session = self._by_use.pop((client_id, identity.earlier or ANONYMOUS), None)
        if session is not None:
            session.belong_to(identity.principal)
            self._by_use[client_id, identity.principal] = session
            self._keeper.forget(session)
            self._keeper.note(session)
        return session

    def _anothers(self, client_id: ClientSessionId, identity: Identity, now: float) -> FoundSession:
        """Of those who hold the id, who has adopted this credential; else the one that may, if it is only one."""
        held = [session for session in self._held_by(client_id) if self._live(session, now) is not None]
        for session in held:
            if session.accepted.holds(identity):
                self._touch(session, now)
                return FoundSession(session)
        claimable = [session for session in held if self._adopts and session.may_be_claimed_by(identity)]
        return FoundSession(claimed=claimable[0]) if len(claimable) == 1 else NOT_FOUND

    def _live(self, session: Session | None, now: float) -> Session | None:
        if session is not None and self._is_expired(session, now):
            self._remove(session, SessionEnd.EXPIRED)
            return None
        return session

    @contextmanager
    def using(self, session: Session | None) -> Iterator[None]:
        """While the block runs the session is in use; the time that it may be idle begins at its end."""
        self.begin_use(session)
        try:
            yield
        finally:
            self.end_use(session)

    def begin_use(self, session: Session | None) -> None:
        """The session is in use from now on, until ``end_use``."""
        if session is not None:
            session.activity.exchanges += 1

    def end_use(self, session: Session | None) -> None:
        """One use of it is over."""
        if session is not None:
            session.activity.exchanges -= 1
            if self._is_in_memory(session):
                self._touch(session, self._clock())
                self._keeper.note(session)

    def _held_by(self, client_id: ClientSessionId) -> tuple[Session, ...]:
        found = self._holders.get(client_id, ())
        return found if isinstance(found, tuple) else (found,)

    def _hold(self, client_id: ClientSessionId, sessions: tuple[Session, ...]) -> None:
        if sessions:
            self._holders[client_id] = sessions if len(sessions) > 1 else sessions[0]
        else:
            del self._holders[client_id]

    def is_held(self, client_id: ClientSessionId) -> bool:
        """Whether anybody has a session with this id."""
        return client_id in self._holders

    def is_ended(self, client_id: ClientSessionId, principal: Principal) -> bool:
        """Whether the principal's session with this id was ended, or anybody's and nobody has one any more.

        What is another's session by now must not be reached under an id that was one's own once.
        """
        if self._ended.is_of(client_id, principal):
            return True
        return client_id not in self._holders and self._ended.is_anybodys(client_id)

    def claim_upstream_id(self, upstream_id: UpstreamSessionId | None, claimant: Session | None) -> None:
        """The upstream has just minted this id: whoever else stood on it stands on nothing any more.

        To be called as soon as the id is seen, for the upstream takes requests under it from then on; ``claimant`` is
        ``None`` where there is no session for it yet.
        """
        if upstream_id is None:
            return
        former = self._by_upstream_id.pop(upstream_id, None)
        if claimant is not None:
            self._by_upstream_id[upstream_id] = claimant
        if former is None or former is claimant or former.is_ended:
            return
        if former.upstream_id == upstream_id:
            self.displace(former)

    def move(self, session: Session, upstream_id: UpstreamSessionId) -> bool:
        """The upstream shows another id for this session by itself; false where that is not to be followed.

        Never to an id on which another session stands: nothing says that it was minted for this one.
        """
        now = self._clock()
        if not session.may_move(now) or upstream_id in self._by_upstream_id:
            return False
        self.release_upstream_id(session.upstream_id, session)
        self._by_upstream_id[upstream_id] = session
        session.move(upstream_id, now)
        return True

    def is_claimed(self, upstream_id: UpstreamSessionId) -> bool:
        """Whether any session stands on this upstream id."""
        return upstream_id in self._by_upstream_id

    def has_claimed(self, upstream_id: UpstreamSessionId | None, session: Session) -> bool:
        """Whether nobody else was given the id since the session claimed it."""
        return upstream_id is None or self._by_upstream_id.get(upstream_id) is session

    def displace(self, session: Session) -> None:
        """The upstream id of this session is another session's now."""
        session.displace()
        self._on_displaced(session)

    def release_upstream_id(self, upstream_id: UpstreamSessionId | None, session: Session) -> None:
        """A heal has replaced this upstream id."""
        if upstream_id is not None and self._by_upstream_id.get(upstream_id) is session:
            del self._by_upstream_id[upstream_id]

    def end(self, session: Session, reason: SessionEnd) -> None:
        """The session is over; its id will be answered 404."""
        if self._is_in_memory(session):
            self._remove(session, reason)

    def _is_in_memory(self, session: Session) -> bool:
        return self._by_use.get((session.client_id, session.record.principal)) is session

    def sweep_old(self) -> None:
        """Remove what has outlived its lifetime; looks at all sessions, for those that were loaded come in any order."""
        oldest = self._clock() - self._limits.max_lifetime_s
        for session in [session for session in self._by_use.values() if session.opened_at <= oldest]:
            self._remove(session, SessionEnd.EXPIRED)

    def sweep(self) -> None:
        """Remove what is idle and what is too many; looks only at sessions that it removes, and one more."""
        self._sweep_idle(self._clock())
        while len(self._by_use) > self._limits.max_sessions:
            self._evict()
        for _ in range(EVICTED_FOR_BYTES):
            if self._handshakes.are_too_many and len(self._by_use) > 1:
                self._evict()

    def _evict(self) -> None:
        self._remove(next(iter(self._by_use.values())), SessionEnd.EVICTED)

    def _sweep_idle(self, now: float) -> None:
        while self._by_use:
            session = next(iter(self._by_use.values()))
            if not self._is_unused(session, now):
                return
            if session.exchanges:
                self._touch(session, now)
            else:
                self._remove(session, SessionEnd.EXPIRED)

    def _touch(self, session: Session, now: float) -> None:
        session.last_used_at = now
        self._by_use.move_to_end((session.client_id, session.record.principal))

    def _is_expired(self, session: Session, now: float) -> bool:
        is_too_old = now - session.opened_at >= self._limits.max_lifetime_s
        return is_too_old or (self._is_unused(session, now) and not session.exchanges)

    def _is_unused(self, session: Session, now: float) -> bool:
        return now - session.last_used_at >= self._limits.idle_ttl_s

    def _remove(self, session: Session, reason: SessionEnd) -> None:
        del self._by_use[session.client_id, session.principal]
        if session.state is not State.HEALING:  # the heal may have been given the very same id, and looks after it
            self.release_upstream_id(session.upstream_id, session)
        holders = self._held_by(session.client_id)
        self._hold(session.client_id, tuple(holder for holder in holders if holder is not session))
        session.fire(Event.ENDED)
        if self._is_over_for_all(reason):
            self._ended.remember(session.client_id, session.principal)
            if reason is not SessionEnd.REPLACED:
                self._keeper.note_ended(session)
        self._keeper.forget(session)
        self._emit(SessionEnded(session.label, reason))

    def _is_over_for_all(self, reason: SessionEnd) -> bool:
        """Not what was only put out of memory; of what is idle here a store knows whether it is used elsewhere."""
        is_known_elsewhere = self._keeper.outlives_process or self._tokens is not None
        return reason is not SessionEnd.EVICTED and not (reason is SessionEnd.EXPIRED and is_known_elsewhere)
