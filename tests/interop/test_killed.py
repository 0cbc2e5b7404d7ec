"""The sidecar is killed under its clients, alone and with its server, and every client goes on in the session that it had.

The clients stand behind a balancer that lets them wait while no sidecar is there: a connect that is refused ends Python's
for good, as does a connection that is cut under a call of theirs, whatever stands behind it. So these make no call at the
very moment at which the sidecar is killed; all others call on through it, and may lose the call that is under way.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from mcp_sidecar.commands.dev.ports import free_port
from tests.interop.catalogue import CLIENTS, GO_CLIENT, RUST_CLIENT, ClientSpec, ToolCall
from tests.interop.door import Door
from tests.interop.drivers import Answer, Connection, Driver
from tests.interop.lab import DIRECT
from tests.interop.processes import NotReady, Server, Sidecar, StoreOptions, until
from tests.interop.stores import STORES, store
from tests.interop.test_whole_session import WHOLE

CALL_TIMEOUT_S: Final = 15.0
WITHIN_S: Final = 30.0
AGAIN_S: Final = 2.0
"""What a server says while nobody listens is lost: go-sdk comes back after a second or two, and it is said again."""
CALLS: Final = 5
"""So many calls of each client come before the kill, and after it."""
PAUSE_S: Final = 0.02
"""Between the calls of a client: the machine has other things to do, and whoever wants it calm gets its turn."""

WRITE: Final = ToolCall("add_to_ledger", {"key": "{key}"})
ANNOUNCE: Final = ToolCall("announce", {})
LOG: Final = ToolCall("log", {})
URI: Final = "fake://one"
TOUCH: Final = ToolCall("touch", {"uri": URI})

SERVER: Final = WHOLE[0].spec
WITH_SESSION: Final = tuple(spec for spec in CLIENTS if not spec.asks_discover)


@dataclass(slots=True)
class Caller:
    """One client that writes without a pause. ``calm`` is taken by whoever wants it not to be in the middle of a call.

    ``must_succeed`` are the calls that have nothing to fear: those of a client that is calm, and those that begin when all is
    there again.
    """

    connection: Connection
    calm: threading.Lock = field(default_factory=threading.Lock)
    answers: dict[str, Answer] = field(default_factory=dict)
    must_succeed: set[str] = field(default_factory=set)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _fears_nothing: bool = True
    _under_way: Future[Answer] = field(default_factory=Future)
    _is_ended: bool = False

    @property
    def client(self) -> ClientSpec:
        """Whose calls they are."""
        return self.connection.driver.spec

    @property
    def name(self) -> str:
        """What no other connection of this play is called."""
        return f"{self.client.name}/{self.connection.name}"

    @property
    def done(self) -> int:
        """How many of its calls gave their result."""
        return sum(answer.ok for answer in list(self.answers.values()))

    def call_on(self) -> None:
        """Until ``stop``, and no further than the first call that leaves the client dead."""
        self._is_ended = False
        while not self._is_ended and not any(answer.kind == "dead" for answer in self.answers.values()):
            with self.calm:
                self._call(f"{self.name}/{next(self._numbers)}")
            time.sleep(PAUSE_S)

    def _call(self, key: str) -> None:
        fears_nothing, self._under_way = self._fears_nothing, self.connection.begin(WRITE, key)
        try:
            self.answers[key] = self.connection.end(self._under_way)
        except CancelledError:
            self.answers[key] = Answer("error", "given up", 0.0)
        if fears_nothing and self._fears_nothing:
            self.must_succeed.add(key)

    def may_fail(self) -> None:
        """From now on, and the call that is under way."""
        self._fears_nothing = False

    def all_must_succeed(self) -> None:
        """All is there again. Some clients would wait for what was cut until their time-out, which may be none."""
        if not self._fears_nothing:
            self._under_way.cancel()
            with self.calm:
                self._fears_nothing = True

    def stop(self) -> None:
        """After the call that is under way."""
        self._is_ended = True

    def begins(self, url: str) -> None:
        """Connect, say what the client wants to hear, and hear it."""
        for answer in (
            self.connection.open(url),
            self.connection.do("level", level="warning"),
            self.connection.do("subscribe", uri=URI),
        ):
            assert answer.ok, f"{self.name}: {answer}"
        for what, call in HEARD.items():
            self._hears(what, call)

    def has_gone_on(self, server: Server, *, is_told: bool) -> None:
        """``is_told``: the server knows what the client wants to hear."""
        ids = {id_ for answer in self.answers.values() for id_ in answer.seen_ids}
        assert len(ids) == 1, f"{self.name} saw {len(ids)} ids"
        failed = [f"{key}: {answer}" for key, answer in self.answers.items() if not answer.ok]
        assert not [line for line in failed if line.partition(":")[0] in self.must_succeed], failed
        runs = Counter(server.ledger_lines())
        assert max(runs.values()) == 1, runs.most_common(3)
        assert all(key in runs for key, answer in self.answers.items() if answer.ok)
        for what, call in HEARD.items():
            if is_told or what is _announced:
                self._hears(what, call)
        assert not any(map(_logged_too_much, self.connection.heard()))

    def _hears(self, what: Callable[[dict[str, object]], bool], call: ToolCall) -> None:
        """What the call has the server say comes on the listening stream, once the client has opened that again."""
        before = sum(map(what, self.connection.heard()))

        def is_heard() -> bool:
            answer = self.connection.call(call, "")
            assert answer.ok, f"{self.name}: {answer}"
            with suppress(NotReady):
                until(lambda: sum(map(what, self.connection.heard())) > before, AGAIN_S, str)
                return True
            return False

        until(is_heard, WITHIN_S, lambda: f"{self.name} heard only {self.connection.heard()[-10:]}")


def _announced(message: dict[str, object]) -> bool:
    return "announced" in str(message.get("params"))


def _logged(message: dict[str, object]) -> bool:
    return "at warning" in str(message.get("params"))


def _logged_too_much(message: dict[str, object]) -> bool:
    return "at info" in str(message.get("params"))


def _updated(message: dict[str, object]) -> bool:
    return message.get("method") == "notifications/resources/updated" and URI in str(message.get("params"))


HEARD: Final = {_announced: ANNOUNCE, _logged: LOG, _updated: TOUCH}
"""What is heard on the listening stream after which call."""


class Stage:
    """A server and a sidecar that are killed and started again on their ports, and a balancer before them."""

    def __init__(self, options: StoreOptions, folder: Path) -> None:
        self.server = Server(SERVER, folder / "ledger", {})
        self.callers: list[Caller] = []
        self._options = options
        self._port = free_port()
        self._lives: list[Sidecar] = []
        self.door = Door(self._port)

    def start(self, *what: str) -> None:
        """Start ``sidecar`` or ``server``, in this order."""
        for each in what:
            if each == "server":
                self.server.start()
            else:
                self._lives.append(Sidecar(self.server.url, port=self._port, store=self._options))

    def kill(self, *what: str) -> None:
        """Kill them in this order, while no call of those clients is under way that a cut connection ends."""
        with ExitStack() as calm:
            for caller in self.callers:
                if caller.client.dies_of_a_cut:
                    calm.enter_context(caller.calm)
                else:
                    caller.may_fail()
            for each in what:
                self.server.kill() if each == "server" else self._lives[-1].kill()
            until(lambda: self.door.passing == 0, WITHIN_S, lambda: f"{self.door.passing} connections are still open")

    def each(self, act: Callable[[Caller], None]) -> None:
        """Have all clients do something at once."""
        with ThreadPoolExecutor(max_workers=len(self.callers)) as pool:
            list(pool.map(act, self.callers))

    def all_have_written(self) -> None:
        """Each client has made some more calls that gave their result."""
        so_far = [caller.done for caller in self.callers]

        def is_enough() -> bool:
            return all(caller.done >= done + CALLS for caller, done in zip(self.callers, so_far, strict=True))

        until(is_enough, WITHIN_S, self._explain)

    def _explain(self) -> str:
        return "\n".join(f"{each.client.name}: {list(map(str, each.answers.values()))[-3:]}" for each in self.callers)

    @contextmanager
    def under_load(self) -> Iterator[None]:
        """All clients write in the meantime."""
        with ThreadPoolExecutor(max_workers=len(self.callers)) as pool:
            working = [pool.submit(caller.call_on) for caller in self.callers]
            try:
                self.all_have_written()
                yield
                self.all_have_written()
            finally:
                for caller in self.callers:
                    caller.stop()
        for work in working:
            work.result()

    @contextmanager
    def entered_by(self, connections: Iterable[Connection]) -> Iterator[None]:
        """The clients are in sessions of their own. New ones for each kill: Python's listen no more after a second cut."""
        self.callers = [Caller(connection) for connection in connections]
        self.each(lambda caller: caller.begins(self.door.url))
        yield
        self.each(lambda caller: void(caller.connection.close()))

    def close(self) -> None:
        """End everything."""
        self.door.close()
        if self._lives:
            self._lives[-1].stop()
        self.server.kill()

    @property
    def background(self) -> str:
        """What the processes said."""
        logs = [line for life in self._lives for line in life.lines[-40:]]
        return "\n".join(["--- sidecars", *logs, "--- server", *self.server.lines[-40:]])


def void(_: object) -> None:
    """Drop a value that nobody needs."""


KILLS: Final = (
    (("sidecar",), ("sidecar",)),
    (("sidecar", "server"), ("server", "sidecar")),
    (("server", "sidecar"), ("sidecar", "server")),
)
"""What is killed, and what is started, each in this order."""


@pytest.fixture(scope="module")
def drivers() -> Iterator[Callable[[ClientSpec], Driver]]:
    """The clients' processes, each started when it is wanted."""
    running: dict[str, Driver] = {}

    def driver(spec: ClientSpec) -> Driver:
        if spec.name not in running or not running[spec.name].running:
            running[spec.name] = Driver(spec)
        return running[spec.name]

    yield driver
    for each in running.values():
        each.stop()


@pytest.mark.interop
@pytest.mark.parametrize("kind", STORES)
def test_every_client_goes_on(kind: str, drivers: Callable[[ClientSpec], Driver], tmp_path: Path) -> None:
    """Under the one id that it has ever seen; its stream, log level and subscription are there, and no write ran twice.

    With ``sealed:`` level and subscriptions are known to the server only, as docs/sessions.md says.
    """
    plays(WITH_SESSION, kind, drivers, tmp_path)


@pytest.mark.interop
@pytest.mark.go
@pytest.mark.parametrize("kind", STORES)
def test_a_client_in_go_goes_on(kind: str, drivers: Callable[[ClientSpec], Driver], tmp_path: Path) -> None:
    """The same."""
    plays((GO_CLIENT,), kind, drivers, tmp_path)


@pytest.mark.interop
@pytest.mark.cargo
@pytest.mark.parametrize("kind", STORES)
def test_a_client_in_rust_goes_on(kind: str, drivers: Callable[[ClientSpec], Driver], tmp_path: Path) -> None:
    """The same."""
    plays((RUST_CLIENT,), kind, drivers, tmp_path)


def plays(clients: tuple[ClientSpec, ...], kind: str, drivers: Callable[[ClientSpec], Driver], folder: Path) -> None:
    """Play all kills, one after the other, under these clients."""
    missing = SERVER.missing or next((spec.missing for spec in clients if spec.missing), None)
    if DIRECT or missing:
        pytest.skip(missing or "without the sidecar nothing of it survives")
    with store(kind, folder) as options:
        stage = Stage(options, folder)
        try:
            stage.start("server", "sidecar")
            for killed, started in KILLS:
                connections = (Connection(drivers(spec), "-".join((kind, *killed)), CALL_TIMEOUT_S) for spec in clients)
                with stage.entered_by(connections):
                    with stage.under_load():
                        stage.kill(*killed)
                        stage.start(*started)
                        stage.each(Caller.all_must_succeed)
                    is_told = kind != "sealed" or "server" not in killed
                    stage.each(functools.partial(Caller.has_gone_on, server=stage.server, is_told=is_told))
        except BaseException as error:
            error.add_note(stage.background)
            raise
        finally:
            stage.close()
