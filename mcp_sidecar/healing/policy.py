"""What the operator decided, as values. ``settings`` makes them; nothing below ``app`` sees the settings themselves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp_sidecar.verdicts.signatures import Signature


class Mode(StrEnum):
    """How much the sidecar does about a lost session."""

    HEAL = "heal"
    REWRITE = "rewrite"
    OBSERVE = "observe"


class OnServerChange(StrEnum):
    """What a heal does when the server that answers is not quite the one the client initialized with."""

    ADAPT = "adapt"
    RESET = "reset"


class Announce(StrEnum):
    """How the client is told that the server restarted and that its in-memory state is new."""

    OFF = "off"
    LOG = "log"
    RESULT = "result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The ``healing`` section of the settings. Times are seconds, sizes bytes; header names are lower case.

    ``early_stream_after_s`` of 0 is never.
    """

    mode: Mode = Mode.HEAL
    hold_timeout_s: float = 15.0
    connect_hold_timeout_s: float = 4.0
    max_held_requests: int = 10_000
    max_held_bytes: int = 64 * 1024 * 1024
    max_concurrent_heals: int = 64
    max_heals_per_minute: int = 60
    trust_annotations: bool = True
    trust_503: bool = False
    bind_principal: bool = True
    principal_headers: tuple[str, ...] = ("authorization", "x-api-key")
    principal_cookies: tuple[str, ...] = ()
    adopt_credentials: bool = True
    refresh_after_break: bool = True
    on_server_change: OnServerChange = OnServerChange.ADAPT
    compare_lists: bool = True
    announce: Announce = Announce.LOG
    early_stream_after_s: float = 0.0
    signatures: tuple[Signature, ...] = ()
    promises_lists: bool = False
    """Whether clients are told of changed lists, and told in `initialize` that they will be, whatever the server promises."""

    @property
    def heals(self) -> bool:
        """Whether anything may be held, probed, healed and sent again."""
        return self.mode is Mode.HEAL

    @property
    def observes(self) -> bool:
        """Whether nothing is changed."""
        return self.mode is Mode.OBSERVE
