"""What the status page shows: the state of this moment, what happened lately, and the calls of the last hour.

The law of this file: all that it keeps is bounded, and it holds what facts and counts hold: no ids, no bodies, nobody's words
but the names of programs, which are shown as text.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp_sidecar import facts

MAX_EVENTS = 40
MINUTES = 60
LONG_HOLD_S = 0.5
"""A wait that is worth a line of its own."""

Totals = Mapping[str, int]
USUAL = frozenset({None, facts.CallOutcome.ANSWERED})
Program = tuple[str, str, int]
"""Name, version, and how many sessions have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What this sidecar is: ``url`` for its clients, ``upstream_url`` behind it."""

    version: str
    mode: str
    url: str
    upstream_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much there is of what is open."""

    sessions: int
    streams: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """The state of this moment. Times are seconds of the wall clock, 0 is never."""

    place: Place
    load: Load
    is_up: bool
    is_draining: bool
    last_answer: float
    clients: tuple[Program, ...]
    servers: tuple[Program, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in a line. ``is_bad``: somebody noticed, or will."""

    at: float
    text: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """All that the page shows. ``since`` is when the upstream was last seen to come or go, ``minutes`` end with this one."""

    now: Now
    since: float
    events: tuple[Event, ...]
    minutes: tuple[Totals, ...]


class StatusBoard:
    """Remembers what happened. ``wall`` gives seconds of the wall clock."""

    def __init__(
        self,
        read: Callable[[], Now],
        calls: Callable[[], Mapping[tuple[str, str], int]],
        draw: Callable[[Picture], str],
        wall: Callable[[], float],
    ) -> None:
        """``calls`` are counts since the start, by method and outcome; ``draw`` makes the page of a picture."""
        self._read = read
        self._calls = calls
        self._draw = draw
        self._wall = wall
        self._since = wall()
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._seen: Counter[str] = Counter()
        self._minutes: deque[tuple[int, Counter[str]]] = deque(maxlen=MINUTES)
        self._drawn: tuple[float, str] = (0.0, "")

    def note(self, fact: facts.Fact) -> None:
        """Remember a fact, if it is one that the page tells."""
        if isinstance(fact, facts.UpstreamLost | facts.UpstreamBack):
            self._since = self._wall()
        line = _LINES.get(type(fact))
        told = line(fact) if line is not None else None
        if told is not None:
            self._events.append(Event(self._wall(), *told))

    def tick(self) -> None:
        """Look at the counts; to be called several times a minute, whether somebody looks or not."""
        minute = int(self._wall() // 60)
        totals: Counter[str] = Counter()
        for (_, outcome), number in self._calls().items():
            totals[outcome] += number
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counter()))
        self._minutes[-1][1].update(totals - self._seen)
        self._seen = totals

    def html(self) -> str:
        """The live part of the page, made anew once a second at most."""
        at, text = self._drawn
        now = self._wall()
        if not text or not at <= now < at + 1:
            text = self._draw(self.picture())
            self._drawn = (now, text)
        return text

    def picture(self) -> Picture:
        """All that there is to show."""
        self.tick()
        this_minute = self._minutes[-1][0]
        of_minute = dict(self._minutes)
        minutes = tuple(of_minute.get(this_minute - ago, Counter()) for ago in reversed(range(MINUTES)))
        return Picture(self._read(), self._since, tuple(reversed(self._events)), minutes)


def _healed(fact: facts.HealEnded) -> tuple[str, bool]:
    if fact.outcome is facts.HealOutcome.HEALED:
        return f"Session {fact.session} healed in {fact.seconds:.2f} s", False
    return f"Session {fact.session} not healed, {fact.outcome.value}: {fact.reason}", True


def _held(fact: facts.RequestHeld) -> tuple[str, bool] | None:
    return (f"A request was held for {fact.seconds:.1f} s", False) if fact.seconds >= LONG_HOLD_S else None


def _served(fact: facts.RequestServed) -> tuple[str, bool] | None:
    if fact.outcome in USUAL:
        return None
    is_good = fact.outcome in (facts.CallOutcome.ANSWERED_AFTER_HEAL, facts.CallOutcome.ANSWERED_AFTER_HOLD)
    return f"Call {fact.rpc_method}: {_words(fact.outcome)} after {fact.seconds:.2f} s", not is_good


def _back(fact: facts.UpstreamBack) -> tuple[str, bool]:
    return f"Upstream back after {fact.away_seconds:.1f} s; {fact.held} waited for it", False


_LINES: Mapping[type[facts.Fact], Callable[[Any], tuple[str, bool] | None]] = {
    facts.HealEnded: _healed,
    facts.RequestHeld: _held,
    facts.RequestServed: _served,
    facts.UpstreamLost: lambda fact: (f"Upstream away: {fact.fault}", True),
    facts.UpstreamBack: _back,
    facts.HoldOverflowed: lambda _: ("A request was not held: there are too many", True),
    facts.OriginRefused: lambda _: ("A web page was refused; listen.allowed_origins would allow it", True),
    facts.HostRefused: lambda _: ("A Host was refused; listen.allowed_hosts would allow it", True),
    facts.UpstreamRefusesHost: lambda _: ("The upstream refuses its Host; see upstream.host_header", True),
    facts.AnswerUnreadable: lambda fact: (f"An answer of the upstream could not be read: {fact.reason}", True),
    facts.SidecarFault: lambda _: ("A bug of the sidecar met one request; see the log", True),
}
"""The line of a fact, and whether it is bad news."""


def _words(outcome: facts.CallOutcome | None) -> str:
    return outcome.value.replace("_", " ") if outcome is not None else ""
