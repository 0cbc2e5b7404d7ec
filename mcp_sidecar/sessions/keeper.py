"""Between the session table and a store: what is asked, what is written, and how little.

The rule of this file: one write per change, however many changes came together, and no request waits for one that it does not
need; a store that is away or slow costs its time-out and no session. What is written is always the record
of this moment, over the revision that was read last; where another process was quicker its record is read and ours put on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from mcp_sidecar.config import SessionLimits
from mcp_sidecar.healing.principal import Principal
from mcp_sidecar.healing.record import ClientSessionId, SessionRecord, decode, encode, rebased
from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions.look_ups import LookUps
from mcp_sidecar.sessions.stores.store import ABSENT, Entry, Key, Store, StoreAway, Times, Touch

MAX_TRIES = 8
"""How often one write is tried where others write, too; whoever loses so often leaves it to the next change."""


TOUCH_AFTER = 0.01
"""Of the time that a session may be idle: so much of it may pass before the store is told that it is in use."""

TOUCHED_AT_A_TIME = 500


class Missing(Enum):
    """Why a session cannot be had."""

    UNKNOWN = "nobody has a session with this id"
    FOREIGN = "only another principal has"
    ENDED = "it was ended"
    STORE_AWAY = "the store that may know it is away"


class Saving(Enum):
    """What came of writing a session's record."""

    DONE = "it is in the store, or need not be"
    LATER = "the store is away, or others were quicker; it is to be tried again"
    ENDED = "another process has ended the session"
    TAKEN = "the id is that of a session which another process has opened: the newcomer needs another"
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


class Keeper:
    """Keeps the records of live sessions in one store."""

    def __init__(
        self,
        store: Store,
        limits: SessionLimits,
        *,
        instance: str,
        index_key: bytes,
        times: Times,
        timeout_s: float,
    ) -> None:
        """``instance`` is the key of this process's upstream; nobody waits for the store longer than ``timeout_s``."""
        self.instance = instance
        self.wall = times.wall
        self._store = store
        self._limits = limits
        self._index_key = index_key
        self._clock = times.clock
        self._timeout_s = timeout_s
        self._was_away = False
        self._writer = secrets.token_bytes(8)
        self._saved: dict[Session, _Saved] = {}
        self._unsaved: dict[Session, None] = {}
        self._ends: dict[Key, None] = {}
        self._look_ups = LookUps(store, times.clock, timeout_s)

    @property
    def outlives_process(self) -> bool:
        """Whether the store may know more than the table."""
        return self._store.outlives_process

    def key(self, client_id: ClientSessionId, principal: Principal) -> Key:
        """Where the record of this session stands."""
        return Key(self._hash(client_id.encode(), b"session"), self._hash(principal, b"principal"))

    def _hash(self, what: bytes, purpose: bytes) -> bytes:
        return hashlib.blake2b(what, key=self._index_key, person=purpose, digest_size=16).digest()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def load(self, client_id: ClientSessionId, principal: Principal) -> SessionRecord | Missing:
        """What the store knows of a session that is not in memory."""
        key = self.key(client_id, principal)
        try:
            entries = await self._look_ups.entries(key.session)
        except (StoreAway, TimeoutError):
            return Missing.STORE_AWAY
        return _own(entries, key.principal)

    # -- writing ------------------------------------------------------------------------------------------------------

    def opened(self, session: Session) -> None:
        """The session is new: what ended under its id before is nothing to be remembered any more."""
        if self.outlives_process:
            self._ends.pop(self.key(session.client_id, session.principal), None)
            self.note(session)

    def loaded(self, session: Session) -> None:
        """The session was made from the record that the store holds."""
        self._saved[session] = _Saved(session.record, session.record, self._clock())

    def is_unsaved(self, session: Session) -> bool:
        """Whether the store does not know what the session knows."""
        if not self._store.outlives_process:
            return False
        saved = self._saved.get(session)
        return saved is None or saved.source is not session.record

    async def save(self, session: Session) -> Saving:
        """Write the record of a session, over whatever others wrote meanwhile."""
        if not self.is_unsaved(session):
            return Saving.DONE
        self._look_ups.is_known(self.key(session.client_id, session.principal).session)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._save(session)
        except (StoreAway, TimeoutError):
            self._was_away = True
            return Saving.LATER

    async def _save(self, session: Session) -> Saving:
        key, saved = self.key(session.client_id, session.principal), self._saved.get(session)
        expected = saved.stored.revision if saved is not None else 0
        for _ in range(MAX_TRIES):
            source, saved = session.record, self._saved.get(session)
            former = saved.stored.revision if saved is not None else 0
            mine = replace(source, revision=max(expected, former) + 1, last_used_at=self.wall())
            data = encode(mine)
            if data is None:
                return Saving.LEFT_ALONE
            entry = Entry(mine.revision, self._writer, data)
            standing = await self._store.put(key, entry, expected=expected, ttl_s=self._ttl_s(mine))
            if standing is None:
                self._saved[session] = _Saved(source, mine, self._clock())
                return Saving.DONE
            outcome = self._take_in(session, saved, standing)
            if outcome is not None:
                return outcome
            expected = standing.revision
        return Saving.LATER

    def _take_in(self, session: Session, saved: _Saved | None, standing: Entry) -> Saving | None:
        """Something else stands there than was read: ``None`` if our record, as it is now, is to be written over it."""
        if standing == ABSENT:  # the store was emptied
            return None
        if standing.data is None:
            return Saving.ENDED if saved is not None else None  # an id that was ended is opened anew
        theirs = decode(standing.data)
        if not isinstance(theirs, SessionRecord):
            return Saving.LEFT_ALONE
        if standing.writer == self._writer:  # an earlier write of ours that was given up and done after all
            self._saved[session] = _Saved(theirs, theirs, self._clock())
            return None
        if saved is None:
            return Saving.TAKEN
        own, stands = session.record.at(self.instance), theirs.at(self.instance)
        if stands not in (saved.stored.at(self.instance), own):
            return Saving.OVERTAKEN
        session.record = rebased(session.record, saved.stored, theirs, self.instance)
        self._saved[session] = _Saved(theirs, theirs, self._clock())
        return None

    def note(self, session: Session) -> None:
        """The session may have learnt something: it is written with the next ``flush``."""
        if self.is_unsaved(session):
            self._unsaved[session] = None

    def note_ended(self, client_id: ClientSessionId, principal: Principal) -> None:
        """The session is over: that is remembered with the next ``flush``."""
        if self.outlives_process:
            self._ends[self.key(client_id, principal)] = None

    async def flush(self) -> None:
        """Write what was noted. What the store cannot take now stays noted, and the rest waits, too."""
        for key in list(self._ends):
            if not await self._end(key):
                return
            self._ends.pop(key, None)
        for session in list(self._unsaved):
            self._unsaved.pop(session, None)
            if await self.save(session) is Saving.LATER:
                self._unsaved[session] = None
                return

    async def _end(self, key: Key) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._store.end(key, ttl_s=self._limits.max_lifetime_s)
        except (StoreAway, TimeoutError):
            return False
        return True

    async def touch(self) -> None:
        """Tell the store which sessions are in use, and write those again that it has lost.

        A store that was away may have lost any of them: then all that are in memory are looked at.
        """
        now, step = self._clock(), self._limits.idle_ttl_s * TOUCH_AFTER
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
            async with asyncio.timeout(self._timeout_s):
                missed = await self._store.touch(
                    [Touch(key, record.revision, self._ttl_s(record)) for key, record in stored.items()]
                )
        except (StoreAway, TimeoutError):
            self._was_away = True
            return False
        for key, session in touches.items():
            saved = self._saved.get(session)
            if saved is not None:
                source = None if key in missed else saved.source
                self._saved[session] = replace(saved, source=source, at=self._clock())
                self.note(session)
        return True

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


def _own(entries: Mapping[bytes, Entry], principal: bytes) -> SessionRecord | Missing:
    """What of a session's entries is for this principal, by the rules of ``SessionTable.is_ended`` and ``is_held``."""
    if not entries:
        return Missing.UNKNOWN
    own = entries.get(principal)
    is_held = any(entry.data is not None for entry in entries.values())
    if own is None:
        return Missing.FOREIGN if is_held else Missing.ENDED
    if own.data is None:
        return Missing.ENDED
    record = decode(own.data)
    return record if isinstance(record, SessionRecord) else Missing.UNKNOWN
