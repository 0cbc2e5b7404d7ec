"""Log lines: how they are written, and which line each fact becomes.

The law of this file: a line shows fixed words, numbers and the short hash of a session, nothing that a client or an
upstream wrote, but for a refused origin in canonical form. Other libraries' lines are cut down to their fixed part, too: an
HTTP parser quotes the header that it stumbled over, and that may be a token.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TextIO

from mcp_sidecar import facts
from mcp_sidecar.ops import console
from mcp_sidecar.ops.log_writer import LogWriter

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
QUIET_SECONDS = 1.0
MAX_CAUSES = 256
"""Of so many kinds of lines that are kept back it is remembered when the last one was written."""
_LEVEL_NAMES = {level: name for name, level in LEVELS.items()}
MAX_SAID = 64
"""So many lines are said once; what comes after them is said by the refusals that go with them."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a fact type is called in the log and how severe it is.

    ``throttled`` lines can be provoked as fast as requests come in: one in a second is written, the others counted.
    ``setting`` is the key that would help; such a line is written once for each way in which it can be said.
    """

    event: str
    level: int
    throttled: bool = False
    setting: str | None = None


LINES: Mapping[type[facts.Fact], Line] = {
    facts.RequestServed: Line("request_served", logging.DEBUG),
    facts.RequestHeld: Line("request_held", logging.DEBUG),
    facts.SessionOpened: Line("session_opened", logging.DEBUG),
    facts.SessionEnded: Line("session_ended", logging.DEBUG),
    facts.SessionLost: Line("session_lost", logging.DEBUG),  # HealEnded tells it again, with its outcome
    facts.RefusalAsked: Line("refusal_asked", logging.INFO, throttled=True),
    facts.SeveralServers: Line("several_servers", logging.WARNING),
    facts.HealEnded: Line("heal_ended", logging.WARNING),
    facts.RequestReplayed: Line("request_replayed", logging.DEBUG),
    facts.AnswerRewritten: Line("answer_rewritten", logging.INFO, throttled=True),
    facts.OutcomeUnknown: Line("outcome_unknown", logging.WARNING),
    facts.MessageDropped: Line("message_dropped", logging.INFO, throttled=True),
    facts.RestoreRefused: Line("restore_refused", logging.WARNING),
    facts.HintDropped: Line("hint_dropped", logging.DEBUG),
    facts.ListsChanged: Line("lists_changed", logging.INFO),
    facts.ListeningEnded: Line("listening_ended", logging.WARNING),
    facts.ActionObserved: Line("action_observed", logging.INFO),
    facts.UpstreamLost: Line("upstream_lost", logging.WARNING),
    facts.UpstreamBack: Line("upstream_back", logging.INFO),
    facts.UpstreamSilent: Line("upstream_silent", logging.WARNING),
    facts.AnswerUnreadable: Line("answer_unreadable", logging.WARNING, throttled=True),
    facts.StoreAsked: Line("store_asked", logging.DEBUG),
    facts.StoreLost: Line("session_store_lost", logging.WARNING),
    facts.StoreBack: Line("session_store_back", logging.INFO),
    facts.StoreWritesRefused: Line("session_store_unwritable", logging.WARNING),
    facts.StoreWritesTaken: Line("session_store_writable", logging.INFO),
    facts.SessionAdopted: Line("session_adopted", logging.INFO),
    facts.SessionIdRejected: Line("session_id_rejected", logging.INFO, throttled=True),
    facts.SessionNotSealed: Line("session_not_sealed", logging.WARNING, throttled=True),
    facts.HoldOverflowed: Line("hold_overflowed", logging.WARNING, throttled=True),
    facts.RequestRejected: Line("request_rejected", logging.INFO, throttled=True),
    facts.OriginRefused: Line("origin_refused", logging.WARNING, setting="listen.allowed_origins"),
    facts.HostRefused: Line("host_refused", logging.WARNING, setting="listen.allowed_hosts"),
    facts.UpstreamRefusesHost: Line("upstream_refuses_host", logging.WARNING, setting="upstream.host_header"),
    facts.SidecarFault: Line("sidecar_fault", logging.ERROR),
}
"""One fact type, one log event."""

_NAMES = {kind: tuple(item.name for item in fields(kind)) for kind in LINES}


class Log:
    """Writes lines from a level on: an event's name, and what more there is to say by name."""

    def __init__(self) -> None:
        """What is told before ``configure`` goes to stdout, as JSON."""
        self.minimum = logging.INFO

    def info(self, event: str, /, **said: object) -> None:
        """Something went as it should."""
        self.write(logging.INFO, event, said)

    def warning(self, event: str, /, **said: object) -> None:
        """Somebody should know."""
        self.write(logging.WARNING, event, said)

    def write(self, level: int, event: str, said: Mapping[str, object]) -> None:
        """Write a line of a level of LEVELS, with the time in UTC."""
        if level < self.minimum:
            return
        told = {**said, "event": event, "level": _LEVEL_NAMES[level], **_target.more()}
        if _target.is_console:
            text = console.line(told, coloured=_target.is_coloured, clock_time=console.local_time())
        else:
            text = json.dumps(told | {"timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")}, default=repr)
        _target.write(f"{text}\n")


def log() -> Log:
    """Give the logger for lines that are no facts, such as ``listening``."""
    return _log


def configure(log_format: str | None, level: str, *, stream: TextIO | None = None, colours: bool = True) -> None:
    """Set up logging for the process: to stderr unless ``stream`` says otherwise.

    ``log_format`` is ``console``, ``json``, or None for what suits the stream; ``level`` a key of LEVELS. Colours are used
    on a terminal only. May be called again. Nobody who logs waits for a stream that is a file, a terminal or a pipe.
    """
    out = sys.stderr if stream is None else stream
    terminal = out.isatty()
    _target.open(out)
    _target.is_console = log_format == "console" or (log_format is None and terminal)
    _target.is_coloured = colours and terminal
    _log.minimum = _facts.minimum = LEVELS[level]
    _facts.last_written.clear()
    _facts.said.clear()
    _route_libraries()


def add_to_lines(more: Callable[[], Mapping[str, str]]) -> None:
    """Have each line say this, too; ``more`` is called where the line is written."""
    _target.more = more


def is_console() -> bool:
    """Whether lines are written for a person."""
    return _target.is_console


def say(text: str) -> None:
    """Write one line for people, as it is."""
    _target.write(f"{text}\n")


def dropped() -> int:
    """How many lines could not be written since ``configure``."""
    return _target.dropped


def close(timeout_s: float) -> None:
    """Let what was logged be written, for so many seconds at most. Lines after it are lost."""
    _target.close(timeout_s)


class _Target:
    """Where lines go: through a queue to a descriptor, or straight to a stream that has none, such as a test's.

    It loses a line rather than raise or wait: whoever read the log may have left, and the proxy goes on.
    """

    def __init__(self) -> None:
        self._writer: LogWriter | None = None
        self._stream: TextIO | None = sys.stdout
        self.is_console = self.is_coloured = False
        self.more: Callable[[], Mapping[str, str]] = dict

    def open(self, stream: TextIO) -> None:
        self.close(0.0)
        try:
            self._writer = LogWriter(stream.fileno(), _tell_dropped)
        except (OSError, ValueError):
            self._stream = stream

    @property
    def dropped(self) -> int:
        return 0 if self._writer is None else self._writer.dropped

    def write(self, text: str) -> None:
        if self._writer is not None:
            self._writer.write(text)
        elif self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)

    def close(self, timeout_s: float) -> None:
        if self._writer is not None:
            self._writer.close(timeout_s)
        self._writer = self._stream = None


def _tell_dropped(lines: int) -> None:
    log().warning("log_lines_dropped", lines=lines)


def log_fact(fact: facts.Fact) -> None:
    """Write the line of a fact, if its level is written at all."""
    _facts.write(fact)


@dataclass(slots=True)
class FactLog:
    """Writes facts, and keeps back what a client could flood the log with."""

    minimum: int = logging.INFO
    clock: Callable[[], float] = time.monotonic
    last_written: dict[tuple[str, object], _Kept] = field(default_factory=dict)
    said: set[facts.Fact] = field(default_factory=set)

    def write(self, fact: facts.Fact) -> None:
        """Write one fact."""
        line = LINES[type(fact)]
        level = line.level if type(fact) not in _LEVEL_OF else _LEVEL_OF[type(fact)](fact)
        if level < self.minimum:
            return
        shown = fields_of(fact)
        if line.setting is not None:
            if fact in self.said or len(self.said) >= MAX_SAID:
                return
            self.said.add(fact)
            shown["setting"] = line.setting
        if line.throttled or _is_provoked(fact):
            cause = shown.get("reason", shown.get("from_status", shown.get("outcome")))
            kept_back = self._kept_back(line.event, cause)
            if kept_back is None:
                return
            shown |= {"kept_back": kept_back} if kept_back else {}
        _log.write(level, line.event, shown)

    def write_of_library(self, level: int, logger: str, message: str, **origin: str) -> None:
        """Write what another library logs. Clients can provoke such lines, too, and many with one request."""
        kept_back = self._kept_back("library_message", (logger, message)) if level >= self.minimum else None
        if kept_back is not None:
            more = {"kept_back": kept_back} if kept_back else {}
            _log.write(level, "library_message", {"logger": logger, "message": message, **origin, **more})

    def _kept_back(self, event: str, cause: object) -> int | None:
        """Count the lines kept back since the last one; None where this one is to be kept back, too."""
        if len(self.last_written) >= MAX_CAUSES:
            self.last_written.clear()
        now = self.clock()
        last = self.last_written.get((event, cause))
        if last is not None and now - last.at < QUIET_SECONDS:
            last.lines += 1
            return None
        self.last_written[event, cause] = _Kept(at=now)
        return 0 if last is None else last.lines


@dataclass(slots=True)
class _Kept:
    at: float
    lines: int = 0


def _is_provoked(fact: facts.Fact) -> bool:
    """Tell what anybody can provoke with every request, or who knows a lost id."""
    if isinstance(fact, facts.HealEnded):
        return fact.outcome is facts.HealOutcome.REFUSED
    return isinstance(fact, facts.RequestServed) and fact.outcome in _UP_TO_THE_CLIENT


_UP_TO_THE_CLIENT = frozenset({facts.CallOutcome.REJECTED, facts.CallOutcome.CLIENT_LEFT})


def _level_of_heal(fact: facts.HealEnded) -> int:
    return logging.INFO if fact.outcome is facts.HealOutcome.HEALED else logging.WARNING


def _level_of_request(fact: facts.RequestServed) -> int:
    """A call that ended other than answered is told."""
    return logging.DEBUG if fact.outcome in _AS_USUAL else logging.INFO


_AS_USUAL = frozenset({None, facts.CallOutcome.ANSWERED})
_LEVEL_OF: Mapping[type[facts.Fact], Callable[[Any], int]] = {
    facts.HealEnded: _level_of_heal,
    facts.RequestServed: _level_of_request,
}


def fields_of(fact: facts.Fact) -> dict[str, Any]:
    """What a fact says, as plain values."""
    return {name: _plain(getattr(fact, name)) for name in _NAMES[type(fact)]}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return round(value, 6) if isinstance(value, float) else value


_log = Log()
_facts = FactLog()
_target = _Target()


class _FixedPart(logging.Handler):
    """Passes on what other libraries log: the fixed part of the message, and where an exception came from."""

    def emit(self, record: logging.LogRecord) -> None:
        # The template's first line, without its arguments: asyncio appends the repr of whatever failed.
        text = str(record.msg).partition("\n")[0][:200]
        _facts.write_of_library(_library_level(record), record.name, text, **_origin(record))


def _library_level(record: logging.LogRecord) -> int:
    return max((level for level in LEVELS.values() if level <= record.levelno), default=logging.DEBUG)


def _origin(record: logging.LogRecord) -> dict[str, str]:
    kind, _, trace = record.exc_info or (None, None, None)
    if kind is None:
        return {}
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return {"error": kind.__name__}
    return {"error": kind.__name__, "where": f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"}


def _route_libraries() -> None:
    root = logging.getLogger()
    root.handlers = [_FixedPart()]
    root.setLevel(logging.WARNING)
    logging.getLogger("aiohttp.client").setLevel(logging.ERROR)  # of whoever speaks in a developer's name
