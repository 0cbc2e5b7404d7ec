"""Servers in Go: listening streams that are attached again to whatever id, ids that are never refused, idle sessions that end.

Each test has its own server and sidecar, under both clients whose messages can be heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.catalogue import CLIENTS, GO_SERVERS, ServerSpec, ToolCall, go_sdk_with_timeout
from tests.interop.drivers import Answer, Connection, Driver
from tests.interop.lab import DIRECT
from tests.interop.processes import Server, Sidecar, until

pytestmark = [pytest.mark.interop, pytest.mark.go]

CALL_TIMEOUT_S = 30.0
HEARD_WITHIN_S = 10.0
IDLE_S = 20
SESSION_TIMEOUT_S = 2
HEALS_OF_AN_IDLE_SESSION = 5
LISTENERS = tuple(spec for spec in CLIENTS if spec.name in {"python-1.30.0", "typescript-1.32.2"})
URI = "fake://one"
ECHO = ToolCall("echo", {"text": "{key}"})
TAKES_ANY_ID = next(spec for spec in GO_SERVERS if spec.name.endswith("-default"))


class Stage:
    """A server, the sidecar before it, and one connection of each client."""

    def __init__(self, server: Server, sidecar: Sidecar, connections: list[Connection]) -> None:
        self.server = server
        self.sidecar = sidecar
        self.connections = connections

    def each(self, act: Callable[[Connection], None]) -> None:
        """Have all clients do something at once."""
        with ThreadPoolExecutor(max_workers=len(self.connections)) as pool:
            list(pool.map(act, self.connections))


@pytest.fixture(scope="module")
def drivers() -> Iterator[list[Driver]]:
    """The clients' processes; skips where one is not installed."""
    missing = next((client.missing for client in LISTENERS if client.missing), None)
    if DIRECT or missing:
        pytest.skip(missing or "without the sidecar none of it survives")
    running = [Driver(client) for client in LISTENERS]
    yield running
    for driver in running:
        driver.stop()


@contextmanager
def played(spec: ServerSpec, drivers: list[Driver], folder: Path) -> Iterator[Stage]:
    """Start the server and the sidecar, and connect; skip where the server is not built."""
    if spec.missing:
        pytest.skip(spec.missing)
    server = Server(spec, folder / "ledger", {})
    server.start()
    sidecar = Sidecar(server.url)
    stage = Stage(server, sidecar, [Connection(driver, spec.name, CALL_TIMEOUT_S) for driver in drivers])
    try:
        stage.each(lambda connection: succeeds(connection.open(sidecar.url)))
        yield stage
    except BaseException as error:
        error.add_note("\n".join(["--- sidecar", *sidecar.lines[-60:], "--- server", *server.lines[-40:]]))
        raise
    finally:
        stage.each(lambda connection: void(connection.close()))
        sidecar.stop()
        server.kill()


def void(_: object) -> None:
    """Drop a value that nobody needs."""


def succeeds(answer: Answer) -> None:
    """A result, under the one session id that the client has ever seen."""
    assert answer.ok, str(answer)
    assert set(answer.seen_ids) <= {answer.session_id}


def hears(connection: Connection, method: str, **params: Any) -> None:
    """Wait until the client has heard a notification with these parameters."""
    until(
        lambda: count(connection, method, **params) > 0,
        HEARD_WITHIN_S,
        lambda: f"{connection.client} heard no {method} {params} in {connection.heard()}",
    )


def count(connection: Connection, method: str, **params: Any) -> int:
    """How many notifications of this method, with these parameters, the client has heard."""
    return sum(
        message.get("method") == method and params.items() <= message.get("params", {}).items()
        for message in connection.heard()
    )


def logs(connection: Connection, level: str) -> None:
    """Have the server log, which it does on the listening stream, and wait for it."""
    before = count(connection, "notifications/message", level=level, logger="interop")
    succeeds(connection.call(ToolCall("log", {"level": level}), ""))
    until(
        lambda: count(connection, "notifications/message", level=level, logger="interop") > before,
        HEARD_WITHIN_S,
        lambda: f"{connection.client} heard nothing at {level} in {connection.heard()}",
    )


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in GO_SERVERS])
def test_the_listening_stream_goes_on(spec: ServerSpec, drivers: list[Driver], tmp_path: Path) -> None:
    """After a restart the call succeeds, and what the new process says is heard on the stream that was open before."""
    with played(spec, drivers, tmp_path) as stage:

        def before(connection: Connection) -> None:
            succeeds(connection.do("level", level="warning"))
            logs(connection, "error")

        def after(connection: Connection) -> None:
            succeeds(connection.call(ECHO, "after"))
            logs(connection, "error")

        stage.each(before)
        stage.server.restart()
        stage.each(after)


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in GO_SERVERS if spec is not TAKES_ANY_ID])
def test_who_only_listens_hears_of_the_new_process(spec: ServerSpec, drivers: list[Driver], tmp_path: Path) -> None:
    """A client that calls nothing after the restart learns from its stream that the list of tools is another one."""
    with played(spec, drivers, tmp_path) as stage:
        succeeds(stage.connections[0].call(ToolCall("add_to_ledger", {"key": "grow"}), ""))
        stage.server.restart()
        stage.each(lambda connection: hears(connection, "notifications/tools/list_changed"))


def test_what_a_server_forgot_without_a_word_is_said_again(drivers: list[Driver], tmp_path: Path) -> None:
    """Level, subscription and list survive a restart of a server that takes any id, and the client is told of no restart."""
    with played(TAKES_ANY_ID, drivers, tmp_path) as stage:

        def before(connection: Connection) -> None:
            succeeds(connection.do("level", level="info"))
            succeeds(connection.do("subscribe", uri=URI))
            logs(connection, "info")

        def after(connection: Connection) -> None:
            hears(connection, "notifications/tools/list_changed")
            logs(connection, "info")
            succeeds(connection.call(ToolCall("touch", {"uri": URI}), ""))
            hears(connection, "notifications/resources/updated", uri=URI)
            said = [
                message["params"] for message in connection.heard() if message.get("method") == "notifications/message"
            ]
            assert {params.get("logger") for params in said} == {"interop"}

        stage.each(before)
        succeeds(stage.connections[0].call(ToolCall("add_to_ledger", {"key": "grow"}), ""))
        stage.server.restart()
        stage.each(after)


def test_an_idle_session_that_the_server_ends_is_healed_ever_more_rarely(drivers: list[Driver], tmp_path: Path) -> None:
    """Under clients that only listen, a session is opened again a few times in doubling intervals, and nobody is told of a restart.

    The time in which they are idle is as long as another client's call takes.
    """
    with played(go_sdk_with_timeout(SESSION_TIMEOUT_S), drivers, tmp_path) as stage:
        caller, *idle = stage.connections
        begun = len(stage.server.lines)
        succeeds(caller.call(ToolCall("slow", {"seconds": IDLE_S, "key": "meanwhile"}), ""))
        heals = sum("a session begins" in line for line in stage.server.lines[begun:])
        for connection in idle:
            methods = {message.get("method") for message in connection.heard()}
            assert not methods & {"notifications/message", "notifications/resources/updated"}
            succeeds(connection.call(ECHO, "awake"))
        assert heals <= HEALS_OF_AN_IDLE_SESSION * len(idle)
