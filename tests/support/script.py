"""Which fault meets which request. The rule: faults are tried in the order in which they were planted, one per request."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.faults import Fault
from tests.support.ledger import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class On:
    """The requests that a fault waits for; what is ``None`` matches everything."""

    http_method: str | None = None
    rpc_method: str | None = None
    tool: str | None = None

    def matches(self, arrival: Arrival) -> bool:
        return (
            self.http_method in (None, arrival.http_method)
            and (self.rpc_method is None or self.rpc_method in arrival.rpc_methods)
            and (self.tool is None or self.tool in arrival.tools)
        )


@dataclass(slots=True, kw_only=True)
class Planted:
    """A fault in wait: lets ``skip`` matching requests through, then meets ``times`` of them (``None``: all)."""

    fault: Fault
    on: On
    times: int | None
    skip: int
    hits: int = 0

    def takes(self, arrival: Arrival) -> bool:
        if (self.times is not None and self.hits >= self.times) or not self.on.matches(arrival):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits += 1
        return True


@dataclass(slots=True)
class Script:
    planted: list[Planted] = field(default_factory=list)

    def fault_for(self, arrival: Arrival) -> Fault | None:
        return next((planted.fault for planted in self.planted if planted.takes(arrival)), None)
