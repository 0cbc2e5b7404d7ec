"""Which open answers of the upstream belong to which session, so that none outlives the session's hold on its id.

An upstream that counts its sessions gives an id out again. Whatever is open under that id then is a window into another
one's session: it is broken off the moment the sidecar learns of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcp_sidecar.healing.session import Session
from mcp_sidecar.sessions import groups
from mcp_sidecar.upstream.upstream import Answer


class Attachments:
    """The open streams of the upstream, by session."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._open: dict[Session, tuple[Answer, ...]] = {}

    @contextmanager
    def holding(self, session: Session | None, answer: Answer) -> Iterator[None]:
        """While the block runs the answer is the session's; at once broken off where its id is another's already."""
        self.add(session, answer)
        try:
            yield
        finally:
            self.discard(session, answer)

    def add(self, session: Session | None, answer: Answer) -> None:
        """From now on, until ``discard``."""
        if session is None:
            return
        if session.displaced:
            answer.break_off()
        groups.add(self._open, session, answer)

    def discard(self, session: Session | None, answer: Answer) -> None:
        """Nobody reads it any more."""
        if session is not None:
            groups.discard(self._open, session, answer)

    def break_off(self, session: Session) -> None:
        """The session's upstream id is another session's now: whoever reads meets a break, and nothing more."""
        for answer in self._open.get(session, ()):
            answer.break_off()
