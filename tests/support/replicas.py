"""Several servers behind one address that share nothing, and a balancer in front of them.

The rule: one request goes to one of them, the next one to the next, unless ``cookie`` names a cookie by which the balancer
finds the same one again.
"""

from __future__ import annotations

import itertools
from typing import Any

from tests.support.endpoint import Endpoint
from tests.support.fake_upstream import FakeUpstream, _Stage
from tests.support.http1 import Headers, Wire, WireFilter


class Replicas(FakeUpstream):
    """As many servers as ``count`` says, each with sessions of its own; they share one ledger."""

    def __init__(self, count: int = 2, *, cookie: str | None = None, **changes: Any) -> None:
        super().__init__(**changes)
        self._cookie = cookie
        self.nodes = {str(number): self._new_node() for number in range(1, count + 1)}
        self.take_turns()
        self._numbers = itertools.count(count + 1)

    def take_turns(self, *names: str) -> None:
        """The next requests go to these, one after the other, and those behind them to each in turn again."""
        self._in_turn = itertools.chain(names, itertools.cycle(tuple(self.nodes)))

    def replace_node(self, name: str) -> None:
        """This one is gone, with its sessions; another one takes its place, under another name."""
        del self.nodes[name]
        self.nodes[str(next(self._numbers))] = self._new_node()
        self.take_turns()

    def _new_node(self) -> Endpoint:
        return Endpoint(
            behaviour=self._endpoint.behaviour,
            ledger=self.ledger,
            path=self._endpoint.path,
            authorities=(f"127.0.0.1:{self.port}",),
            gate=self.slow_gate,
        )

    async def _answer(self, stage: _Stage) -> None:
        sent = stage.arrival.header("cookie") or ""
        pinned = dict(pair.strip().partition("=")[::2] for pair in sent.split(";")).get(self._cookie or "", "")
        name = pinned if pinned in self.nodes else next(self._in_turn)
        wire = stage.wire if self._cookie is None else _Pinning(stage.wire, f"{self._cookie}={name}")
        self._endpoint = self.nodes[name]  # read by whoever plays, before anything else is let run
        await super()._answer(_Stage(self, stage.arrival, wire))


class _Pinning(WireFilter):
    """Says with every answer which server gave it."""

    def __init__(self, inner: Wire, cookie: str) -> None:
        super().__init__(inner)
        self._said = (("Set-Cookie", f"{cookie}; Path=/; HttpOnly"), ("Set-Cookie", "theirs=1"))

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        await super().head(status, [*headers, *self._said], length)
