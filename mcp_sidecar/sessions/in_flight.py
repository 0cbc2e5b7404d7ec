"""A request that was sent on the express lane and is now the ordinary way's: it must not be sent again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mcp_sidecar.healing.session import Session
from mcp_sidecar.upstream.connection import Connection


@dataclass(slots=True)
class InFlight:
    """Sent in ``session`` under ``generation``, when ``safe_tools`` were known; its answer comes on ``connection``.

    ``release`` gives back what the lane has counted: the request counts where it is now. ``is_taken``: somebody waits for
    the answer, and closes the connection where that ends otherwise.
    """

    connection: Connection
    session: Session
    generation: int
    safe_tools: frozenset[str]
    started_at: float
    _release: Callable[[], None] = field(repr=False)
    is_taken: bool = False
    _is_released: bool = False

    def release(self) -> None:
        """The ordinary way counts it from now on."""
        if not self._is_released:
            self._is_released = True
            self._release()

    def drop(self) -> None:
        """Nobody will wait for the answer."""
        self.release()
        if not self.is_taken:
            self.is_taken = True
            self.connection.abandon()
