"""Which open answers of the upstream belong to which session, so that none outlives the session's hold on its id.

An upstream that counts its sessions gives an id out again. Whatever is open under that id then is a window into another
one's session: it is broken off the moment the sidecar learns of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcp_sidecar.healing.session import Session
from mcp_sidecar.proxy.upstream import Answer


class Attachments:
    """The open streams of the upstream, by session."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._open: dict[Session, set[Answer]] = {}

    @contextmanager
    def holding(self, session: Session | None, answer: Answer) -> Iterator[None]:
        """While the block runs the answer is the session's; at once broken off where its id is another's already."""
        if session is None:
            yield
            return
        if session.displaced:
            answer.break_off()
        self._open.setdefault(session, set()).add(answer)
        try:
            yield
        finally:
            self._open[session].discard(answer)
            if not self._open[session]:
                del self._open[session]

    def break_off(self, session: Session) -> None:
        """The session's upstream id is another session's now: whoever reads meets a break, and nothing more."""
        for answer in self._open.get(session, ()):
            answer.break_off()
