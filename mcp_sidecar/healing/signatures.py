"""Table: how upstreams say that a session is lost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signature:
    """One way of saying that a session is lost."""

    name: str
