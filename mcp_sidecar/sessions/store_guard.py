"""A store behind a time-out and a breaker: nobody waits long for one that is away, and nobody asks it again and again.

The rule of this file: once a store did not answer, everybody is told so at once, but one prober, which asks until it does. A
store that only cannot write is still read. What each question took is told to whoever counts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from mcp_sidecar.facts import Emit, StoreAsked, StoreBack, StoreLost, StoreWritesRefused, StoreWritesTaken
from mcp_sidecar.sessions.stores.store import Claim, Entry, Key, Lease, Store, StoreAway, StoreUnwritable, Touch, Turn

T = TypeVar("T")

QUICKEST_PACE_S: Final = 0.010
SLOWEST_PACE_S: Final = 1.0

_PROBE: Final = Key(b"probe", b"probe")
_PROBED: Final = Entry(1, b"", None)
_PROBE_TTL_S: Final = 0.001
"""Less than the pace: of the probe before nothing stands any more, and this one is written."""

_TOO_SLOW: Final = "it did not answer in time"


class StoreGuard:
    """One store, guarded. Every method but ``open`` and ``close`` raises ``StoreAway`` within ``timeout_s``."""

    def __init__(self, store: Store, *, timeout_s: float, clock: Callable[[], float], emit: Emit) -> None:
        """``clock`` gives monotonic seconds."""
        self._store = store
        self._timeout_s = timeout_s
        self._clock = clock
        self._emit = emit
        self.on_back: Callable[[], None] = lambda: None
        self._away_since: float | None = None
        self._unusable_since: float | None = None
        self._unwritable_since: float | None = None
        self._is_closed = False
        self._back: asyncio.Future[None] | None = None
        self._probing: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        """What people are shown."""
        return str(self._store)

    @property
    def outlives_process(self) -> bool:
        """Whether there is anything to ask."""
        return self._store.outlives_process

    @property
    def is_up(self) -> bool:
        """Whether it has answered when it was asked last."""
        return self._away_since is None

    async def open(self) -> None:
        """Make it ready. Raises ``StoreUnusable``."""
        await self._store.open()

    async def close(self) -> None:
        """Let go of it."""
        self._is_closed = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing}, timeout=self._timeout_s)
        await self._store.close()

    def note_unusable(self, reason: str) -> None:
        """It answers and is of no use, which is known since the process runs: that is told once."""
        if self._unusable_since is None:
            self._unusable_since = self._clock()
            self._emit(StoreLost(reason))

    def note_usable(self) -> None:
        """It is of use."""
        if self._unusable_since is not None:
            self._emit(StoreBack(self._clock() - self._unusable_since))
            self._unusable_since = None

    def back(self) -> asyncio.Future[None]:
        """Done as soon as it answers again."""
        if self._back is None or self._back.done():
            self._back = asyncio.get_running_loop().create_future()
        if self.is_up:
            self._back.set_result(None)
        return self._back

    # -- what is asked ------------------------------------------------------------------------------------------------

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        """All entries of one session id."""
        return await self._ask("get", lambda: self._store.get(session))

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        """Compare and set."""
        standing = await self._ask(
            "put", lambda: self._store.put(key, entry, expected=expected, ttl_s=ttl_s, claim=claim)
        )
        if standing is None:
            self._note_written()
        return standing

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        """Put off that these expire."""
        missed = await self._ask("touch", lambda: self._store.touch(touches))
        if len(missed) < len(touches):
            self._note_written()
        return missed

    async def holder(self, claim: Claim) -> Key | None:
        """Whose the upstream id is."""
        return await self._ask("holder", lambda: self._store.holder(claim))

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:
        """Whose turn it is."""
        return await self._ask("lease", lambda: self._store.lease(lease, ttl_s=ttl_s))

    async def give_back(self, lease: Lease) -> None:
        """The work is done."""
        await self._ask("give_back", lambda: self._store.give_back(lease))

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        """The value that all share."""
        return await self._ask("secret", lambda: self._store.secret(name, fresh, replaces=replaces))

    async def sweep(self) -> None:
        """Forget what has expired; takes as long as it takes."""
        if self.is_up:
            await self._store.sweep()

    # -- the breaker --------------------------------------------------------------------------------------------------

    async def _ask(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        if not self.outlives_process:
            return await work()
        if not self.is_up:
            raise StoreAway("it is away")
        return await self._tried(operation, work)

    async def _tried(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        started, failed = self._clock(), True
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await work()
            failed = False
        except StoreUnwritable as unwritable:
            self._note_unwritable(str(unwritable))
            raise
        except StoreAway as away:
            self._note_away(str(away))
            raise
        except TimeoutError:
            self._note_away(_TOO_SLOW)
            raise StoreAway(_TOO_SLOW) from None
        finally:
            self._emit(StoreAsked(operation, self._clock() - started, failed))
        return answer

    def _note_unwritable(self, reason: str) -> None:
        if self._unwritable_since is None:
            self._unwritable_since = self._clock()
            self._emit(StoreWritesRefused(reason))

    def _note_written(self) -> None:
        """It has taken something; an answer alone says nothing, where there was nothing to write."""
        if self._unwritable_since is not None:
            self._emit(StoreWritesTaken(self._clock() - self._unwritable_since))
            self._unwritable_since = None

    def _note_away(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = self._clock()
            self._emit(StoreLost(reason))
            self._probing = asyncio.create_task(self._probe())

    async def _read_and_write(self) -> None:
        """One that answers, but takes nothing any more, such as a replica, must not come and go all the time."""
        await self._store.get(_PROBE.session)
        if await self._store.put(_PROBE, _PROBED, expected=0, ttl_s=_PROBE_TTL_S) is None:
            self._note_written()

    async def _probe(self) -> None:
        pace_s = QUICKEST_PACE_S
        while self._away_since is not None and not self._is_closed:
            await asyncio.sleep(pace_s * random.uniform(0.5, 1.0))
            pace_s = min(pace_s * 2, SLOWEST_PACE_S)
            try:
                await self._tried("probe", self._read_and_write)
            except StoreUnwritable:
                pass
            except StoreAway:
                continue
            self._emit(StoreBack(self._clock() - self._away_since))
            self._away_since = None
        self.on_back()
        if self._back is not None and not self._back.done():
            self._back.set_result(None)
