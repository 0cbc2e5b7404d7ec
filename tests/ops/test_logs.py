"""Which line each fact becomes, and what other libraries may say."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from mcp_sidecar import facts
from mcp_sidecar.ops import logs

EXAMPLES: dict[str, tuple[facts.Fact, str]] = {
    "request_served": (facts.RequestServed("POST", "tools/call", 200, 0.01), "debug"),
    "request_held": (facts.RequestHeld(0.5), "debug"),
    "session_opened": (facts.SessionOpened("ab12", "2025-11-25"), "debug"),
    "session_ended": (facts.SessionEnded("ab12", facts.SessionEnd.EXPIRED), "debug"),
    "refusal_asked": (facts.RefusalAsked("ab12", facts.AskOutcome.LOST, 422, "text/plain", None), "info"),
    "several_servers": (facts.SeveralServers("ab12"), "warning"),
    "session_lost": (facts.SessionLost("ab12", "python-404", 404, 0), "debug"),
    "heal_ended": (facts.HealEnded("ab12", facts.HealOutcome.HEALED, "python-404", "as before", 1, 0.01), "info"),
    "request_replayed": (facts.RequestReplayed("ab12", facts.ReplayCause.NOT_SENT, "ping"), "debug"),
    "answer_rewritten": (facts.AnswerRewritten("ab12", 400), "info"),
    "outcome_unknown": (facts.OutcomeUnknown("ab12", "tools/call"), "warning"),
    "message_dropped": (facts.MessageDropped("ab12", facts.DroppedKind.RESPONSE, "older generation"), "info"),
    "restore_refused": (facts.RestoreRefused("ab12", facts.RestoreStep.SUBSCRIBE), "warning"),
    "hint_dropped": (facts.HintDropped("ab12", facts.HintKind.UPDATED), "debug"),
    "lists_changed": (facts.ListsChanged("ab12", facts.ListKind.TOOLS, promised=True), "info"),
    "listening_ended": (facts.ListeningEnded("ab12", 405), "warning"),
    "action_observed": (facts.ActionObserved("ab12", facts.ObservedAction.HEAL, "python-404"), "info"),
    "upstream_lost": (facts.UpstreamLost("refused"), "warning"),
    "upstream_back": (facts.UpstreamBack(1.5, 3), "info"),
    "upstream_silent": (facts.UpstreamSilent(5.2), "warning"),
    "answer_unreadable": (facts.AnswerUnreadable("its Content-Length is not one number"), "warning"),
    "store_asked": (facts.StoreAsked("get", 0.5, failed=True), "debug"),
    "session_store_lost": (facts.StoreLost("it cannot be reached"), "warning"),
    "session_store_back": (facts.StoreBack(1.5), "info"),
    "session_store_unwritable": (facts.StoreWritesRefused("the disk is full"), "warning"),
    "session_store_writable": (facts.StoreWritesTaken(1.5), "info"),
    "session_adopted": (facts.SessionAdopted("ab12", facts.AdoptedFrom.STORE, 0.5), "info"),
    "session_id_rejected": (facts.SessionIdRejected("expired"), "info"),
    "session_not_sealed": (facts.SessionNotSealed("ab12"), "warning"),
    "hold_overflowed": (facts.HoldOverflowed(10, 100), "warning"),
    "request_rejected": (facts.RequestRejected(403, "origin not allowed"), "info"),
    "origin_refused": (facts.OriginRefused("https://app.example"), "warning"),
    "host_refused": (facts.HostRefused(), "warning"),
    "upstream_refuses_host": (facts.UpstreamRefusesHost(421), "warning"),
    "sidecar_fault": (facts.SidecarFault("KeyError", "mcp_sidecar.proxy.x:12"), "error"),
}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before, minimum = (root.handlers[:], root.level), logs._facts.minimum
    yield
    root.handlers, root.level = before
    logs._log.minimum = logs._facts.minimum = minimum


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    """Parse the lines written so far."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(level: str = "debug") -> io.StringIO:
    """Send JSON lines to a string."""
    stream = io.StringIO()
    logs.configure("json", level, stream=stream)
    return stream


def test_every_fact_has_its_line() -> None:
    """The table of lines and the list of facts are the same, and no two facts share an event."""
    assert set(logs.LINES) == set(get_args(facts.Fact))
    assert {line.event for line in logs.LINES.values()} == set(EXAMPLES)


@pytest.mark.parametrize("event", EXAMPLES)
def test_a_fact_is_one_line(event: str) -> None:
    """A line has the event's name, its level, a time in UTC, and the fact's fields as they are."""
    fact, level = EXAMPLES[event]
    stream = configured()
    logs.log_fact(fact)
    [line] = written(stream)
    assert (line.pop("event"), line.pop("level")) == (event, level)
    assert line.pop("timestamp").endswith("Z")
    setting = line.pop("setting", None)
    assert setting == logs.LINES[type(fact)].setting
    assert line == {name: getattr(fact, name) for name in fact.__dataclass_fields__}


def test_what_a_setting_would_help_is_said_once() -> None:
    """Once for each origin, say, and of a bounded number; ``request_rejected`` goes on."""
    stream = configured("info")
    for _ in range(3):
        logs.log_fact(facts.UpstreamRefusesHost(421))
        for number in range(2 * logs.MAX_SAID):
            logs.log_fact(facts.OriginRefused(f"https://{number}.example"))
    lines = written(stream)
    assert len(lines) == logs.MAX_SAID
    assert lines[0]["setting"] == "upstream.host_header"
    assert {line["setting"] for line in lines[1:]} == {"listen.allowed_origins"}
    assert len({line.get("origin") for line in lines}) == logs.MAX_SAID


def test_nothing_per_request_at_info() -> None:
    """At the default level, requests and sessions that go well write nothing, and a heal writes one line."""
    stream = configured("info")
    for fact, _ in EXAMPLES.values():
        logs.log_fact(fact)
    quiet = {
        "request_served",
        "request_held",
        "session_opened",
        "session_ended",
        "session_lost",
        "request_replayed",
        "hint_dropped",
        "store_asked",
    }
    assert {line["event"] for line in written(stream)} == set(EXAMPLES) - quiet


@pytest.mark.parametrize("outcome", [None, *facts.CallOutcome])
def test_a_call_that_was_not_simply_answered_is_told(outcome: facts.CallOutcome | None) -> None:
    """One line each at ``info``; what anybody can provoke with every request is told once a second."""
    stream = configured("info")
    for _ in range(3):
        logs.log_fact(facts.RequestServed("POST", "tools/call", 200, 0.01, outcome))
    lines = [line["outcome"] for line in written(stream)]
    provoked = {facts.CallOutcome.REJECTED, facts.CallOutcome.CLIENT_LEFT}
    number = 0 if outcome in (None, facts.CallOutcome.ANSWERED) else 1 if outcome in provoked else 3
    assert lines == [str(outcome)] * number


@pytest.mark.parametrize("outcome", facts.HealOutcome)
def test_a_heal_that_failed_is_a_warning(outcome: facts.HealOutcome) -> None:
    """Whoever reads warnings only sees each client that has to start over."""
    stream = configured("warning")
    logs.log_fact(facts.HealEnded("ab12", outcome, "python-404", "budget spent", 0, 0.01))
    assert [line["outcome"] for line in written(stream)] == ([] if outcome == "healed" else [outcome.value])


def test_floods_are_kept_back_and_counted() -> None:
    """What clients can provoke at will is written once a second per cause; the next line tells how many were not."""
    stream, now = configured("info"), [100.0]
    facts_log = logs.FactLog(clock=lambda: now[0])
    bad_origin, too_large = facts.RequestRejected(403, "origin not allowed"), facts.RequestRejected(413, "too large")
    for fact in (bad_origin, bad_origin, bad_origin, too_large):
        facts_log.write(fact)
    now[0] += logs.QUIET_SECONDS
    facts_log.write(bad_origin)
    assert [(line["status"], line.get("kept_back")) for line in written(stream)] == [(403, None), (413, None), (403, 2)]


def test_heals_are_never_kept_back() -> None:
    """One line per heal, however many there are in one second."""
    stream = configured("info")
    for _ in range(50):
        logs.log_fact(EXAMPLES["heal_ended"][0])
    assert len(written(stream)) == 50


def test_refusals_are_kept_back() -> None:
    """Whoever knows a lost id can have a heal refused with every request: that is written once a second."""
    stream = configured("info")
    facts_log = logs.FactLog(clock=lambda: 100.0)
    for _ in range(50):
        facts_log.write(facts.HealEnded("5e55", facts.HealOutcome.REFUSED, "rmcp-404", "another principal", 1, 0.0))
    assert len(written(stream)) == 1


def test_libraries_show_no_data() -> None:
    """Of other libraries' lines only the fixed part appears, and where an exception came from, never what it says."""
    stream = configured("info")
    try:
        int("Bearer s3cret")
    except ValueError:
        logging.getLogger("aiohttp.client").exception("Error handling request from %s", "s3cret")
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task exception=s3cret>")
    logging.getLogger("anything").info("s3cret")
    assert "s3cret" not in stream.getvalue()
    first, second = written(stream)
    assert (first["event"], first["logger"], first["error"]) == ("library_message", "aiohttp.client", "ValueError")
    assert first["message"] == "Error handling request from %s"
    assert first["where"].startswith(f"{__name__}:")
    assert second["message"] == "Task exception was never retrieved"


def test_floods_of_libraries_are_kept_back_and_counted() -> None:
    """A client's bad ``baggage`` is a warning of OpenTelemetry for each member: thousands of lines for one request."""
    stream, now = configured("info"), [100.0]
    facts_log = logs.FactLog(clock=lambda: now[0])
    for _ in range(1000):
        facts_log.write_of_library(logging.WARNING, "baggage", "list-member `%s` doesn't match the format")
        facts_log.write_of_library(logging.WARNING, "other", "something else")
        facts_log.write_of_library(logging.DEBUG, "other", "what is not written is not counted")
    now[0] += logs.QUIET_SECONDS
    facts_log.write_of_library(logging.WARNING, "baggage", "list-member `%s` doesn't match the format")
    lines = [(line["logger"], line.get("kept_back")) for line in written(stream)]
    assert lines == [("baggage", None), ("other", None), ("baggage", 999)]
    for number in range(2 * logs.MAX_CAUSES):
        facts_log.write_of_library(logging.WARNING, "other", f"a message without a fixed part: {number}")
    assert len(facts_log.last_written) <= logs.MAX_CAUSES


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "colours", "form"),
    [
        pytest.param(None, io.StringIO(), True, r"\{.*\}", id="json-elsewhere"),
        pytest.param(None, Terminal(), True, r"\d\d:\d\d:\d\d  \x1b\[33mtold\x1b\[0m  .*", id="console-on-a-terminal"),
        pytest.param(None, Terminal(), False, r"\d\d:\d\d:\d\d  warning: told  .*", id="no-colours"),
        pytest.param("json", Terminal(), True, r"\{.*\}", id="json-by-choice"),
        pytest.param("console", io.StringIO(), True, r"\d\d:\d\d:\d\d  warning: told  .*", id="console-by-choice"),
    ],
)
def test_the_format_suits_the_stream(log_format: str | None, stream: io.StringIO, colours: bool, form: str) -> None:
    """Console on a terminal, JSON elsewhere, or as chosen; colours on a terminal only."""
    logs.configure(log_format, "info", stream=stream, colours=colours)
    logs.log().warning("told", address="127.0.0.1:8080")
    assert re.fullmatch(form, stream.getvalue().strip())
    assert "127.0.0.1:8080" in stream.getvalue()


def test_a_reader_that_left_costs_lines_only() -> None:
    """A log that cannot be written never fails the request that it tells about."""
    stream = configured()
    stream.close()
    logs.log_fact(EXAMPLES["heal_ended"][0])
