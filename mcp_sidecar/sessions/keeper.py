"""Between the session table and a store: what is asked, what is written, and how little.

The rule of this file: one write per change, however many changes came together, and no request waits for one that it does not
need; a store that is away or slow costs its time-out and no session. What is written is always the record
of this moment, over the revision that was read last; where another process was quicker its record is read and ours put on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.healing.principal import Accepted, Identity, Principal
from mcp_sidecar.healing.record import ClientSessionId, SessionRecord, UpstreamSessionId, decode, encode, rebased
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.look_ups import LookUps, Missing
from mcp_sidecar.sessions.store_guard import StoreGuard
from mcp_sidecar.sessions.stores.keys import KeyRing
from mcp_sidecar.sessions.stores.store import (
    ABSENT,
    Claim,
    Entry,
    Key,
    Lease,
    StoreAway,
    StoreUnusable,
    StoreUnwritable,
    Times,
    Touch,
)

if TYPE_CHECKING:
    from mcp_sidecar.sessions.tokens import Tokens

MAX_TRIES = 8
"""How often one write is tried where others write, too; whoever loses so often leaves it to the next change."""


KEY_BYTES = 32

NOWHERE = ""
"""The key of no instance."""

LEASE_S = 5.0
"""How long a heal keeps other processes from healing the same session at the same upstream. Most heals take less, and so long
a client may wait where the process was killed."""

TOUCH_AFTER = 0.01
"""Of the time that a session may be idle: so much of it may pass before the store is told that it is in use."""

TOUCHED_AT_A_TIME = 500


class Saving(Enum):
    """What came of writing a session's record."""

    DONE = "it is in the store, or need not be"
    LATER = "the store is away, or others were quicker; it is to be tried again"
    ENDED = "another process has ended the session"
    TAKEN = "the id is that of a session which only the store knows: the newcomer needs another"
    OVERTAKEN = "another process has healed it at this very instance: its upstream session stands"
    LEFT_ALONE = "what stands there is of a later version or damaged, or ours is too large: it lives here only"


@dataclass(frozen=True, slots=True)
class _Saved:
    """``source`` is the live record that was written as ``stored``; ``None`` where it is to be written again.

    ``at`` is when it was written or touched, by the monotonic clock.
    """

    source: SessionRecord | None
    stored: SessionRecord
    at: float


@dataclass(frozen=True, slots=True)
class _End:
    """Which sessions of one id are over: those of these tags, and whatever was opened by ``until``, in wall-clock seconds."""

    tags: frozenset[str] = frozenset()
    until: float = -math.inf

    def means(self, standing: Entry) -> bool:
        """Whether what stands there is one of them, or is idle and may be; what cannot be read is left alone."""
        if standing.data is None:
            return bool(standing.writer)
        record = _readable(standing.data)
        return record is not None and (record.tag in self.tags or record.created_at <= self.until)


class Keeper:
    """Keeps the records of live sessions in one store."""

    def __init__(
        self,
        store: StoreGuard,
        limits: SessionLimits,
        *,
        instance: str,
        namespace: str,
        times: Times,
        tokens: Tokens | None = None,
        ring: KeyRing | None = None,
    ) -> None:
        """``instance`` is the key of this process's upstream; sessions are shared within a ``namespace``.

        ``tokens`` make the ids that clients see, where these hold all that is kept; ``ring`` has the keys of what is sealed.
        """
        self.instance = instance
        self.wall = times.wall
        self.has_keys = False
        self.on_settled: Callable[[Session, Saving], None] = lambda _session, _saving: None
        self.on_noted: Callable[[], None] = lambda: None
        self.on_principals: Callable[[bytes], None] = lambda _key: None
        self.store = store
        self.outlives_process = store.outlives_process  # whether it may know more than the table
        self.tokens = tokens
        self.ring = ring
        self._limits = limits
        self._namespace = namespace
        self._index_key, self._principal_key = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
        self._keyed: asyncio.Future[None] | None = None
        self._clock = times.clock
        self._was_away = False
        self._began_with = b""
        self._writer = secrets.token_bytes(8)
        self._saved: dict[Session, _Saved] = {}
        self._unsaved: dict[Session, None] = {}
        self._ends: dict[tuple[ClientSessionId, Principal], _End] = {}
        self._look_ups = LookUps(store, times.clock)

    async def get_keys(self) -> None:
        """Get what all who share the store hash ids and principals with, or give it to one that was emptied.

        Raises ``StoreAway``, and ``StoreUnusable`` where they are sealed with a key that is not known here.
        """
        self.outlives_process = self.store.outlives_process
        index = await self.store.secret(f"{self._namespace} index", self._index_key)
        principals = await self.store.secret(f"{self._namespace} principals", self._principal_key)
        if not len(index) == len(principals) == KEY_BYTES:
            raise StoreUnusable("what it holds is sealed: give sessions.key_file")
        began_with = await self.store.secret(f"{self._namespace} began with", secrets.token_bytes(KEY_BYTES))
        if index != self._index_key and self.has_keys:  # it was emptied, and somebody else has begun anew
            self._unsaved |= dict.fromkeys(self._saved)
            self._saved.clear()
        self._was_away |= began_with != self._began_with and self.has_keys  # it was emptied, whoever has noticed first
        self._began_with = began_with
        self._index_key, self._principal_key = index, principals
        self.on_principals(principals)
        self.store.note_usable()
        self.has_keys = True
        if self._keyed is not None and not self._keyed.done():
            self._keyed.set_result(None)

    def back(self) -> asyncio.Future[None]:
        """Done as soon as the store can be asked for sessions."""
        if self.has_keys:
            return self._look_ups.may_ask() if self.store.is_up else self.store.back()
        self._keyed = self._keyed or asyncio.get_running_loop().create_future()
        return self._keyed

    def key(self, client_id: ClientSessionId, principal: Principal) -> Key:
        """Where the record of this session stands."""
        return Key(self._hash(client_id.encode(), b"session"), self._hash(principal, b"principal"))

    def _hash(self, what: bytes, purpose: bytes) -> bytes:
        return hashlib.blake2b(what, key=self._index_key, person=purpose, digest_size=16).digest()

    def _claim(self, upstream_id: UpstreamSessionId) -> Claim:
        return Claim(self._hash(self.instance.encode(), b"instance"), self._hash(upstream_id.encode(), b"upstream"))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def load(
        self, client_id: ClientSessionId, identity: Identity, *, adopts: bool = True
    ) -> SessionRecord | Missing:
        """What the store knows of a session that is not in memory.

        Another principal's, if it has accepted this credential or may do so (``adopts``), as ``SessionTable.look_up`` says.
        """
        if not self.has_keys:
            return Missing.STORE_AWAY
        key = self.key(client_id, identity.principal)
        missed = self._look_ups.missed(key)
        if missed is not None:
            return missed
        try:
            entries = await self._look_ups.entries(key.session)
            found = self._picked(entries, key.principal, identity, adopts)
            if isinstance(found, SessionRecord):
                return await self._as_claimed(client_id, found)
        except StoreAway:
            return Missing.STORE_AWAY
        self._look_ups.note_missed(key, found)
        return found

    def note_not_own(self, client_id: ClientSessionId, principal: Principal) -> None:
        """What the store knows under this id is another principal's, and in memory already."""
        self._look_ups.note_missed(self.key(client_id, principal), Missing.FOREIGN)

    def _picked(
        self, entries: Mapping[bytes, Entry], own: bytes, identity: Identity, adopts: bool
    ) -> SessionRecord | Missing:
        """Of a session's entries the one for this identity, by the rules of ``SessionTable.is_ended`` and ``is_held``."""
        if not entries:
            return Missing.UNKNOWN
        if own in entries and entries[own].data is None:
            return Missing.ENDED
        records = {
            place: record
            for place, entry in entries.items()
            if (record := _readable(entry.data)) and self._hash(record.principal, b"principal") == place
        }
        if own in entries:
            return records.get(own, Missing.UNKNOWN)
        record = _for(identity, records.values(), adopts)
        if record is not None:
            return record
        is_held = any(entry.data is not None for entry in entries.values())
        return Missing.FOREIGN if is_held else Missing.ENDED

    async def _as_claimed(self, client_id: ClientSessionId, record: SessionRecord) -> SessionRecord:
        """The record without the upstream session that stands here, if its id was minted anew for another session."""
        here = record.at(self.instance)
        if here is None or here.upstream_id is None:
            return record
        holder = await self.store.holder(self._claim(here.upstream_id))
        is_own = holder is None or holder == self.key(client_id, record.principal)
        return record if is_own else record.not_at(self.instance)

    async def take_turn(self, session: Session) -> bool:
        """Before a heal: whether no other process is at it just now; what others have written meanwhile is taken in.

        Saves work only; the compare-and-set decides.
        """
        if not self.has_keys:
            return True
        try:
            turn = await self.store.lease(self._lease(session), ttl_s=LEASE_S)
        except StoreUnwritable:
            await self._refresh(session)
            return True
        except StoreAway:
            return True
        saved = self._saved.get(session)
        if saved is not None and turn.revision > saved.stored.revision:
            await self._refresh(session)
        return turn.is_own

    async def give_turn_back(self, session: Session) -> None:
        """The heal is over."""
        if self.has_keys:
            with suppress(StoreAway):
                await self.store.give_back(self._lease(session))

    def _lease(self, session: Session) -> Lease:
        key = self.key(session.client_id, session.principal)
        return Lease(key, self._hash(self.instance.encode(), b"instance"), self._writer)

    async def _refresh(self, session: Session) -> None:
        """Take in what another process has written meanwhile; nothing where the store is away.

        The look-up of somebody else may have been answered before that was written, so that none is waited for.
        """
        key = self.key(session.client_id, session.principal)
        try:
            standing = (await self.store.get(key.session)).get(key.principal, ABSENT)
            saved = self._saved.get(session)
            if saved is not None and standing.revision > saved.stored.revision:
                self._settled(session, await self._take_in(session, saved, standing) or Saving.DONE)
        except StoreAway:
            return
        finally:
            self._forget_if_ended(session)

    # -- writing ------------------------------------------------------------------------------------------------------

    def opened(self, session: Session, replaced: SessionRecord | None = None) -> None:
        """The session is new; ``replaced`` is what the store knows of one that it stands for from now on."""
        if self.outlives_process:
            if replaced is not None:
                self._saved[session] = _Saved(None, replaced, self._clock())
            self.note(session)

    def stored(self, session: Session) -> SessionRecord | None:
        """What the store knows of the session."""
        saved = self._saved.get(session)
        return saved.stored if saved is not None else None

    def knows_place_of(self, session: Session) -> bool:
        """Whether the store knows which upstream session stands behind it here."""
        saved = self._saved.get(session)
        return saved is not None and saved.stored.at(self.instance) == session.record.at(self.instance)

    def loaded(self, session: Session) -> None:
        """The session was made from the record that the store holds."""
        self._saved[session] = _Saved(session.record, session.record, self._clock())

    def is_unsaved(self, session: Session) -> bool:
        """Whether the store does not know what the session knows."""
        if not self.outlives_process:
            return False
        saved = self._saved.get(session)
        return saved is None or saved.source is not session.record

    async def save(self, session: Session) -> Saving:
        """Write the record of a session, over whatever others wrote meanwhile."""
        if not self.is_unsaved(session):
            return Saving.DONE
        if session.is_ended:  # its end is what there is to write
            return Saving.ENDED
        if not self.has_keys:
            return Saving.LATER
        key = self.key(session.client_id, session.principal)
        self._look_ups.is_known(key)
        former = session.client_id, session.principal
        if former in self._ends and not await self.end(*former):  # what ended under its id before, so that it is free
            return Saving.LATER
        try:
            return self._settled(session, await self._save(session, key))
        except StoreAway:
            self._was_away = True
            return Saving.LATER
        finally:
            self._forget_if_ended(session)

    def _forget_if_ended(self, session: Session) -> None:
        """It may have gone out of memory while the store was asked."""
        if session.is_ended:
            self.forget(session)

    def _settled(self, session: Session, outcome: Saving) -> Saving:
        self.on_settled(session, outcome)
        return outcome

    async def _save(self, session: Session, key: Key) -> Saving:
        saved = self._saved.get(session)
        expected = saved.stored.revision if saved is not None else 0
        for _ in range(MAX_TRIES):
            if session.is_ended:
                return Saving.ENDED
            source, saved = session.record, self._saved.get(session)
            former = saved.stored.revision if saved is not None else 0
            mine = replace(source, revision=max(expected, former) + 1, last_used_at=self.wall())
            data = encode(mine)
            if data is None:
                return Saving.LEFT_ALONE
            entry, claim = Entry(mine.revision, self._writer, data), self._claim_of(source, saved)
            standing = await self.store.put(key, entry, expected=expected, ttl_s=self._ttl_s(mine), claim=claim)
            if standing is None:
                if session.record is source:  # so that one record is kept, not two that are nearly the same
                    session.record = source = mine
                self._saved[session] = _Saved(source, mine, self._clock())
                return Saving.DONE
            outcome = await self._take_in(session, saved, standing)
            if outcome is not None:
                return outcome
            expected = standing.revision
        return Saving.LATER

    def _claim_of(self, record: SessionRecord, saved: _Saved | None) -> Claim | None:
        """What the upstream has minted since the record was written last."""
        here = record.at(self.instance)
        is_known = saved is not None and saved.source is not None and saved.stored.at(self.instance) == here
        return self._claim(here.upstream_id) if here is not None and here.upstream_id and not is_known else None

    async def _take_in(self, session: Session, saved: _Saved | None, standing: Entry) -> Saving | None:
        """Something else stands there than was read: ``None`` if our record, as it is now, is to be written over it.

        Raises ``StoreAway``.
        """
        if standing == ABSENT:  # the store was emptied
            return None
        is_newcomer = saved is None or saved.stored.tag != session.record.tag
        if standing.data is None and standing.writer:  # idle, as far as the store knows: its client may still come
            return Saving.TAKEN if is_newcomer else None
        if standing.data is None:
            return None if is_newcomer else Saving.ENDED  # an id that was ended is opened anew
        theirs = _readable(standing.data)
        if theirs is None:
            return Saving.LEFT_ALONE
        is_ours = standing.writer == self._writer and theirs.tag == session.record.tag
        if is_ours:  # an earlier write that was given up and done after all
            self._saved[session] = _Saved(theirs, theirs, self._clock())
            return None
        if saved is None or (is_newcomer and theirs.tag != saved.stored.tag):
            return Saving.TAKEN
        if is_newcomer or standing.revision < saved.stored.revision:  # what it replaces has gone on, or was put back
            self._saved[session] = replace(saved, source=None)
            return None
        if self._is_overtaken(session, saved, theirs):
            theirs = await self._as_claimed(session.client_id, theirs)
        is_overtaken = self._is_overtaken(session, saved, theirs)
        ours = NOWHERE if is_overtaken else self.instance
        session.record = rebased(session.record, saved.stored, theirs, ours)
        self._saved[session] = _Saved(theirs, theirs, self._clock())
        return Saving.OVERTAKEN if is_overtaken else None

    def _is_overtaken(self, session: Session, saved: _Saved, theirs: SessionRecord) -> bool:
        """Whether another process has healed it at this very instance."""
        own, stands = session.record.at(self.instance), theirs.at(self.instance)
        return stands is not None and stands not in (saved.stored.at(self.instance), own)

    def note(self, session: Session) -> None:
        """The session may have learnt something: it is written with the next ``flush``."""
        if self.is_unsaved(session):
            self._unsaved[session] = None
            self.on_noted()

    def note_ended(self, session: Session) -> None:
        """The session is over, and what it stands for: that is remembered with the next ``flush``."""
        records = (session.record, self.stored(session))
        tags = frozenset(record.tag for record in records if record is not None)
        self._note_end(session.client_id, session.principal, _End(tags))

    def note_ended_unseen(self, client_id: ClientSessionId, principal: Principal) -> None:
        """The same of whatever was opened under this id so far: it is not known here."""
        self._note_end(client_id, principal, _End(until=self.wall()))

    def _note_end(self, client_id: ClientSessionId, principal: Principal, end: _End) -> None:
        if self.outlives_process:
            noted = self._ends.get((client_id, principal), _End())
            self._ends[client_id, principal] = _End(noted.tags | end.tags, max(noted.until, end.until))
            self.on_noted()

    async def flush(self) -> bool:
        """Write what was noted. What the store cannot take now stays noted, and the rest waits, too: then false."""
        if not self.has_keys:
            return not self.unsaved
        for client_id, principal in list(self._ends):
            if not await self.end(client_id, principal):
                return False
        for session in list(self._unsaved):
            outcome = await self.save(session)
            if outcome is Saving.LATER:
                return False
            if outcome is not Saving.DONE or not self.is_unsaved(session):  # it may have learnt more meanwhile
                self._unsaved.pop(session, None)
        return True

    async def end(self, client_id: ClientSessionId, principal: Principal) -> bool:
        """Write an end that was noted; false where it stays so."""
        end = self._ends.get((client_id, principal))
        if end is None or not self.has_keys:
            return not self.outlives_process
        try:
            is_written = await self._end(self.key(client_id, principal), end)
        except StoreAway:
            return False
        if is_written and self._ends.get((client_id, principal)) is end:  # another may have been noted meanwhile
            del self._ends[client_id, principal]
        return is_written

    async def _end(self, key: Key, end: _End) -> bool:
        """Over whatever revision, but of no other session: its id may have been opened anew since an earlier try."""
        expected = 0
        for _ in range(MAX_TRIES):
            ended = Entry(expected + 1, b"", None)
            standing = await self.store.put(key, ended, expected=expected, ttl_s=self._limits.max_lifetime_s)
            if standing is None or (standing != ABSENT and not end.means(standing)):
                return True
            expected = standing.revision
        return False

    async def touch(self) -> None:
        """Tell the store which sessions are in use, and write those again that it has lost.

        A store that was away or emptied may have lost any of them: then all that are in memory are looked at.
        """
        now, step = self._clock(), self._limits.idle_ttl_s * TOUCH_AFTER
        if (self._saved or self._was_away) and not await self.has_keys_again():
            return
        is_back, self._was_away = self._was_away, False
        due = [
            session
            for session, saved in self._saved.items()
            if is_back or (now if session.exchanges else session.last_used_at) - saved.at >= step
        ]
        for first in range(0, len(due), TOUCHED_AT_A_TIME):
            if not await self._touch(due[first : first + TOUCHED_AT_A_TIME]):
                self._was_away |= is_back
                return

    async def _touch(self, sessions: Sequence[Session]) -> bool:
        touches = {
            self.key(session.client_id, session.principal): session for session in sessions if session in self._saved
        }
        stored = {key: self._saved[session].stored for key, session in touches.items()}
        try:
            missed = await self.store.touch(
                [Touch(key, record.revision, self._ttl_s(record)) for key, record in stored.items()]
            )
        except StoreAway:
            self._was_away = True
            return False
        if missed and not await self.has_keys_again():
            return False
        for key, session in touches.items():
            saved = self._saved.get(session)
            if saved is not None:
                source = None if key in missed else saved.source
                self._saved[session] = replace(saved, source=source, at=self._clock())
                self.note(session)
        return True

    async def has_keys_again(self) -> bool:
        """A store that has lost records may have lost what they are found by, or is another one."""
        try:
            await self.get_keys()
        except StoreUnusable as unusable:
            self.store.note_unusable(str(unusable))
        except StoreAway:
            pass
        else:
            return True
        self._was_away = True
        return False

    @property
    def unsaved(self) -> int:
        """How many records and ends the store does not know yet."""
        return len(self._unsaved) + len(self._ends)

    def forget(self, session: Session) -> None:
        """It is not in memory any more."""
        self._saved.pop(session, None)
        self._unsaved.pop(session, None)

    def _ttl_s(self, record: SessionRecord) -> float:
        """How long a record is kept unless it is touched: idle so long, and never beyond its lifetime."""
        rest = record.created_at + self._limits.max_lifetime_s - self.wall()
        return max(0.0, min(self._limits.idle_ttl_s, rest))


def _readable(data: bytes | None) -> SessionRecord | None:
    """A record of this version; what is none, or a later one's, is left as it is."""
    record = decode(data) if data is not None else None
    return record if isinstance(record, SessionRecord) else None


def _for(identity: Identity, records: Iterable[SessionRecord], adopts: bool) -> SessionRecord | None:
    """Which session of others has accepted the credential; else the one that may, if it is only one."""
    claimable = []
    for record in records:
        accepted = Accepted(record.principal, record.accepted)
        if accepted.holds(identity):
            return record
        if adopts and accepted.may_be_followed_by(identity):
            claimable.append(record)
    return claimable[0] if len(claimable) == 1 else None
