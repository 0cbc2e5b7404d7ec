"""What a request is about to do, told to whoever traces it; where nobody does, at the price of one look.

The rule of this file: who works on a request says what it does, and never learns who listens. What happened is told by facts
(``facts``); here stands what those cannot tell, since it has to be known before: that a request begins, a step of it, and a
message to the upstream, which carries the name of its span.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from mcp_sidecar.wire.faults import Fault
from mcp_sidecar.wire.headers import Fields, Pair
from mcp_sidecar.wire.jsonrpc import Message

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Begun:
    """A client's request. ``message`` is what is known of its body, ``route`` is set on the MCP endpoint.

    ``elapsed_s`` is how long ago it came.
    """

    http_method: str
    path: str
    route: str | None
    scheme: str
    fields: Fields
    message: Message | None
    elapsed_s: float


class Attempt(Protocol):
    """One message to the upstream. ``headers`` are those to send."""

    headers: list[Pair]

    def answered(self, status: int) -> None:
        """The head of an answer is here."""

    def failed(self, fault: Fault) -> None:
        """There is none."""

    def end(self) -> None:
        """Whatever became of it."""


class Trace(Protocol):
    """One request, as far as it is traced."""

    async def during(self, step: object, work: Awaitable[T]) -> T:
        """Do the work of a step."""

    def attempt(self, http_method: str, target: str, headers: Iterable[Pair]) -> Attempt:
        """A message goes to the upstream."""


class Tracer(Protocol):
    """Whoever traces requests: makes ``CURRENT``."""

    def begin(self, begun: Begun) -> None:
        """A request has come. A fact says when it is over."""


CURRENT: Final[ContextVar[Trace | None]] = ContextVar("trace", default=None)
"""The trace of the request that the present task works for. A heal is a task of its own, and inherits that of its cause."""


def during(step: object, work: Awaitable[T]) -> Awaitable[T]:
    """The work of a step, told to whoever traces its request."""
    trace = CURRENT.get()
    return work if trace is None else trace.during(step, work)


def attempt(http_method: str, target: str, headers: Iterable[Pair]) -> Attempt:
    """A message to the upstream that is about to go."""
    trace = CURRENT.get()
    return _Untold(headers) if trace is None else trace.attempt(http_method, target, headers)


class _Untold:
    """An attempt of which nobody hears."""

    __slots__ = ("headers",)

    def __init__(self, headers: Iterable[Pair]) -> None:
        self.headers = list(headers)

    def answered(self, status: int) -> None:
        """Nobody hears of it."""

    def failed(self, fault: Fault) -> None:
        """Nobody hears of it."""

    def end(self) -> None:
        """Nobody hears of it."""
