"""What a store of session records must do, for whoever writes one.

The rule of this file: a store knows nothing of sessions. It keeps bytes under two hashes, of a session id and of a principal,
and its one promise is the compare-and-set of ``put``: of two writers that have read the same revision one wins, and the other
is told what stands there now. A write that was given up may still be done later; by the writer's mark that stands there the
next try knows its own. Whatever a store cannot do just now is ``StoreAway``, and never an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreAway(Exception):
    """The store cannot be asked, or cannot write, just now. The text is a fixed phrase for the log."""


class StoreUnwritable(StoreAway):
    """It cannot write just now; reading works."""


class StoreUnusable(Exception):
    """It never will be: a wrong password, a file that is not ours. The text is one line for whoever configured it."""


@dataclass(frozen=True, slots=True)
class Key:
    """Where a record stands: keyed hashes of the client's session id and of its principal, never in clear."""

    session: bytes
    principal: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands there. ``data`` is ``None`` where the session was ended; ``writer`` is a process's random mark.

    Without ``data`` there is a writer only where nobody has ended it: it was idle for too long.
    """

    revision: int
    writer: bytes
    data: bytes | None


ABSENT = Entry(0, b"", None)
"""Nothing stands there."""


@dataclass(frozen=True, slots=True)
class Touch:
    """A session is in use: keep its record for ``ttl_s`` seconds from now on, if it is of this revision or a later one."""

    key: Key
    revision: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Claim:
    """An upstream instance has minted this id, both hashed: the session that is written with it has it from now on."""

    instance: bytes
    upstream_id: bytes


@dataclass(frozen=True, slots=True)
class Lease:
    """A process (``writer``) is at work on a record for an upstream instance, hashed, and nobody else is to begin."""

    key: Key
    instance: bytes
    writer: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of asking for a lease: whether it is one's own, and the revision of the entry that stands there, or 0.

    So nobody has to read a record again of which nothing has changed.
    """

    is_own: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Times:
    """``wall`` gives seconds that all who share a store agree on, ``clock`` monotonic ones."""

    wall: Callable[[], float]
    clock: Callable[[], float]


class Store(Protocol):
    """A store of records. Every method but ``open`` and ``close`` may raise ``StoreAway``."""

    @property
    def outlives_process(self) -> bool:
        """Whether there is anything to ask: what lives in this process alone is in the session table already."""

    def __str__(self) -> str:
        """What people are shown: the URL, without a password."""

    async def open(self) -> None:
        """Make it ready. Raises ``StoreUnusable``; a store that is only away comes back by itself."""

    async def close(self) -> None:
        """Let go of it."""

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        """All entries of one session id, by the hash of their principal."""

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        """Write, if the entry of the revision ``expected`` stands there, or ``ABSENT`` and ``expected`` is 0.

        ``None``: it is written, and the claim with it. Else what stands there, and nothing is claimed.
        """

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        """Put off that these expire. Which of them are not there, or only in an older revision: they are to be written."""

    async def holder(self, claim: Claim) -> Key | None:
        """Which session has claimed an upstream id last."""

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:
        """Whether it is this writer's now, until it gives it back and for so long at most; and what stands there.

        It saves work and promises nothing: a store whose writers meet rarely may let everybody have it.
        """

    async def give_back(self, lease: Lease) -> None:
        """The work is done; another writer's lease stays."""

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        """The value that all who share the store have under this name: the one of whoever came first.

        ``fresh`` also takes the place of ``replaces``, if just that stands there.
        """

    async def sweep(self) -> None:
        """Forget what has expired, and see whether the store is still the one that was opened."""
