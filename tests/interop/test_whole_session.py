"""Everything that a session consists of, over a restart, with real servers under real clients.

One restart under open listening streams, subscriptions, a log level and an open question; all clients of a server live
through it together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.catalogue import CLIENTS, SERVERS, SUITE, VENVS, ServerSpec, ToolCall
from tests.interop.drivers import Answer, Connection, Driver
from tests.interop.lab import DIRECT
from tests.interop.processes import Server, Sidecar, until

CALL_TIMEOUT_S = 20.0
HEARD_WITHIN_S = 10.0
CLIENT_NAMES = ("python-1.30.0", "typescript-1.32.2")


@dataclass(frozen=True, slots=True)
class Whole:
    """A server and how it is made to use each part of a session.

    ``level`` is what the client sets; afterwards nothing at ``unwanted`` may come. ``log`` makes the server log.
    """

    spec: ServerSpec
    uri: str
    touch: ToolCall
    ask: ToolCall
    level: str
    unwanted: str
    log: Callable[[Connection], Answer]
    logs_at: str | None


def _python() -> ServerSpec:
    python = VENVS / "mcp-1.30.0" / "bin" / "python"
    script = str(SUITE / "servers" / "whole_session.py")
    return ServerSpec(
        name="mcp-1.30.0-whole",
        loses_sessions_with="404 JSON",
        command=lambda port: [str(python), script, str(port)],
        needs=(VENVS / "mcp-1.30.0" / ".pins",),
        installed_by="python",
    )


TEXT = "demo://resource/dynamic/text/{}"
WHOLE = (
    Whole(
        _python(),
        uri="fake://one",
        touch=ToolCall("touch", {"uri": "fake://one"}),
        ask=ToolCall("ask", {}),
        level="warning",
        unwanted="info",
        log=lambda connection: connection.call(ToolCall("log", {}), ""),
        logs_at="warning",
    ),
    Whole(
        next(spec for spec in SERVERS if spec.name == "server-everything"),
        uri=TEXT.format(1),
        touch=ToolCall("toggle-subscriber-updates", {}),
        ask=ToolCall("trigger-elicitation-request", {}),
        level="error",
        unwanted="info",
        log=lambda connection: connection.do("subscribe", uri=TEXT.format(2)),  # it logs that at level info
        logs_at=None,
    ),
)


class Part:
    """One client: what it has before the restart, and what it finds afterwards."""

    def __init__(self, connection: Connection, whole: Whole) -> None:
        self.connection = connection
        self._whole = whole
        self._question: dict[str, Any] = {}
        self._asking: Future[Answer] | None = None
        self._heard_before = 0

    def before(self, url: str) -> None:
        """Connect, set and subscribe; leave a question open."""
        self._is_ok(self.connection.open(url))
        self._is_ok(self.connection.do("level", level=self._whole.level))
        self._is_ok(self.connection.do("subscribe", uri=self._whole.uri))
        self._asking = self.connection.begin(self._whole.ask, "")
        self._question = self._hears(_method("elicitation/create"))
        self._heard_before = len(self.connection.heard())

    def after(self) -> None:
        """Go on as if nothing had been."""
        self._the_question_is_cancelled()
        self._the_subscription_holds()
        self._the_level_holds()
        self._a_new_question_is_another()

    def _the_question_is_cancelled(self) -> None:
        """The client is told; its late answer goes nowhere, and the call that asked has a definite end."""
        told = self._hears(_method("notifications/cancelled"))
        assert told["params"]["requestId"] == self._question["id"]
        self._is_ok(self.connection.do("answer"))
        assert self._asking is not None
        ended = self.connection.end(self._asking)
        assert ended.kind == "error", str(ended)

    def _the_subscription_holds(self) -> None:
        """One hint for what was missed, and then every update, on the stream that was opened before the restart."""
        updated = _method("notifications/resources/updated")
        assert self._hears(updated)["params"]["uri"] == self._whole.uri
        so_far = self._count(updated)
        self._is_ok(self.connection.call(self._whole.touch, ""))
        until(lambda: self._count(updated) > so_far, HEARD_WITHIN_S, lambda: f"no update in {self._new()}")

    def _the_level_holds(self) -> None:
        self._is_ok(self._whole.log(self.connection))
        if self._whole.logs_at is not None:
            self._hears(lambda message: _level(message) == self._whole.logs_at and "logger" not in message["params"])

    def _a_new_question_is_another(self) -> None:
        """The new server's question bears an id of its own, and its own answer is what it gets."""
        asking = self.connection.begin(self._whole.ask, "")
        first = self._question["id"]
        question = self._hears(lambda message: _method("elicitation/create")(message) and message["id"] != first)
        assert not asking.done()
        assert question["params"] == self._question["params"]
        self._is_ok(self.connection.do("answer"))
        answered = self.connection.end(asking)
        assert answered.ok, str(answered)
        assert answered.seen_ids == (answered.session_id,)
        levels = {_level(message) for message in self.connection.heard()}
        assert self._whole.unwanted not in levels

    def _hears(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a message that came after the restart, or at all."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [message for message in self._new() if wanted(message)]
            return bool(found)

        until(is_there, HEARD_WITHIN_S, lambda: f"{self.connection.client} heard only {json.dumps(self._new())}")
        return found[-1]

    def _count(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        return sum(wanted(message) for message in self._new())

    def _new(self) -> list[dict[str, Any]]:
        return self.connection.heard()[self._heard_before :]

    @staticmethod
    def _is_ok(answer: Answer) -> None:
        assert answer.ok, str(answer)


def _method(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message.get("method") == name


def _level(message: dict[str, Any]) -> str | None:
    is_log = message.get("method") == "notifications/message"
    return str(message["params"]["level"]) if is_log else None


@pytest.fixture(scope="module")
def drivers() -> Iterator[dict[str, Driver]]:
    """The clients' processes."""
    running = {spec.name: Driver(spec) for spec in CLIENTS if spec.name in CLIENT_NAMES and spec.missing is None}
    yield running
    for driver in running.values():
        driver.stop()


@pytest.mark.interop
@pytest.mark.parametrize("whole", [pytest.param(whole, id=whole.spec.name) for whole in WHOLE])
def test_the_whole_session_survives(whole: Whole, drivers: dict[str, Driver], tmp_path: Path) -> None:
    """Listener stream, subscription and log level go on; the open question is cancelled, and a new one is answered."""
    missing = whole.spec.missing or next((c.missing for c in CLIENTS if c.name in CLIENT_NAMES and c.missing), None)
    if DIRECT or missing:
        pytest.skip(missing or "without the sidecar nothing of it survives")
    server = Server(whole.spec, tmp_path / "ledger", {})
    server.start()
    sidecar = Sidecar(server.url)
    parts = [Part(Connection(driver, whole.spec.name, CALL_TIMEOUT_S), whole) for driver in drivers.values()]
    try:
        with ThreadPoolExecutor(max_workers=len(parts)) as pool:
            list(pool.map(lambda part: part.before(sidecar.url), parts))
            server.restart()
            list(pool.map(Part.after, parts))
    except BaseException as error:
        error.add_note("\n".join(["--- sidecar", *sidecar.lines[-40:], "--- server", *server.lines[-40:]]))
        raise
    finally:
        for part in parts:
            part.connection.close()
        sidecar.stop()
        server.kill()
