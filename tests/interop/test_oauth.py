"""An OAuth client whose token is another one every second, on a server whose tokens name nobody, over restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.catalogue import SUITE, VENVS, ClientSpec, ServerSpec, ToolCall
from tests.interop.drivers import Connection, Driver
from tests.interop.lab import DIRECT
from tests.interop.processes import Server, Sidecar, until

CALL_TIMEOUT_S = 20.0
HEALED_WITHIN_S = 10.0
REFRESHED_WITHIN_S = 30.0
ECHO = ToolCall("echo", {"text": "{key}"})
ENVIRONMENT = VENVS / "mcp-1.30.0"
PYTHON = str(ENVIRONMENT / "bin" / "python")
SERVER = ServerSpec(
    name="mcp-1.30.0-oauth",
    loses_sessions_with="404 JSON",
    command=lambda port: [PYTHON, str(SUITE / "servers" / "oauth_server.py"), str(port)],
    needs=(ENVIRONMENT / ".pins",),
    installed_by="python",
)
CLIENT = ClientSpec(
    name="python-1.30.0-oauth",
    command=[PYTHON, str(SUITE / "clients" / "python1_oauth.py")],
    needs=(ENVIRONMENT / ".pins",),
    installed_by="python",
)


class Caller:
    """The client; each of its calls must succeed, in the one session that it has."""

    def __init__(self, connection: Connection, server: Server, sidecar: Sidecar) -> None:
        self.server = server
        self._connection = connection
        self._sidecar = sidecar

    def server_restarts_and_the_listener_heals(self) -> None:
        """Restart the server under the client's listening stream, which bears the token that it was opened with."""
        wanted = self._heals + 1
        self.server.restart()
        until(lambda: self._heals >= wanted, HEALED_WITHIN_S, lambda: "the listening stream did not heal the session")

    @property
    def _heals(self) -> int:
        return sum('"heal_ended"' in line and '"healed"' in line for line in self._sidecar.lines)

    def calls(self) -> None:
        """Call once."""
        answer = self._connection.call(ECHO, "still here")
        assert answer.ok, str(answer)
        assert answer.seen_ids == (answer.session_id,)

    def calls_until_refreshed(self, times: int) -> None:
        """Call on while the token is refreshed so many times."""
        wanted = self.server.runs_of("refreshed") + times

        def done() -> bool:
            self.calls()
            return self.server.runs_of("refreshed") >= wanted

        until(done, REFRESHED_WITHIN_S, lambda: "the client never refreshed its token")
        self.calls()


@contextmanager
def called(folder: Path) -> Iterator[Caller]:
    """Start everything and connect."""
    if DIRECT or SERVER.missing:
        pytest.skip(SERVER.missing or "without the sidecar the client ends with the first restart")
    server = Server(SERVER, folder / "ledger", {})
    server.start()
    sidecar, driver = Sidecar(server.url), Driver(CLIENT)
    connection = Connection(driver, "oauth", CALL_TIMEOUT_S)
    try:
        opened = connection.open(sidecar.url)
        assert opened.ok, str(opened)
        yield Caller(connection, server, sidecar)
    except BaseException as error:
        error.add_note("\n".join(["--- sidecar", *sidecar.lines[-40:], "--- server", *server.lines[-40:]]))
        raise
    finally:
        connection.close()
        driver.stop()
        sidecar.stop()
        server.kill()


@pytest.mark.interop
def test_a_healed_session_outlives_its_tokens(tmp_path: Path) -> None:
    """A token that the client refreshed after the heal is the session's own, since the server accepts it there."""
    with called(tmp_path) as caller:
        caller.server_restarts_and_the_listener_heals()
        caller.calls_until_refreshed(times=2)
        caller.server_restarts_and_the_listener_heals()
        caller.calls_until_refreshed(times=1)
