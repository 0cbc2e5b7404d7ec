"""What the tests wait for. The rule: nothing leans on the speed of the machine."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.support.unhurried import PACKAGES

TESTS: Final = Path(__file__).parent

REAL_TIME: Final = {
    "interop/processes.py": "looks again and again at processes that announce nothing",
    "interop/door.py": "tries connects again and again, in a thread of its own, until a process is there",
    "interop/test_killed.py": "clients that never rest would leave the machine to nobody else",
    "interop/clients/lines.py": "tells how long a client of a user would have waited; nobody asserts it",
    "interop/servers/python_server.py": "a tool that takes its time, in a server that is a process of its own",
    "test_standard_streams.py": "looks again and again at a process that can announce nothing: its streams are closed",
    "commands/dev/small_server.py": "a tool that takes its time, in a server that is a process of its own",
    "commands/dev/test_dev.py": "saves one file after the other: nothing tells that a watcher has seen one",
    "commands/dev/test_parts.py": "saves again and again until a watcher, which announces nothing, sees it",
    "redis/test_transport.py": "looks again and again for the replica that another process has promoted",
    "edge/echo.py": "gives a server of the tests the clock that it times slow clients by; nobody asserts it",
    "sessions/stores/test_by_url.py": "gives a store its clocks; nobody asserts them",
    "interop/servers/oauth_server.py": "says until when a token is valid, in a server that is a process of its own",
}
"""Who pauses or reads a clock in real time, and why. Where another process takes part there is no other time."""

FILES: Final = sorted(
    path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py") if "node_modules" not in path.parts
)


def _is_clock(node: ast.AST) -> bool:
    """``time.monotonic``, ``time.sleep``, or any other of that module."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"


def _is_pause(node: ast.AST) -> bool:
    """A ``sleep`` that does more than let others run."""
    if not isinstance(node, ast.Call) or getattr(node.func, "attr", getattr(node.func, "id", "")) != "sleep":
        return False
    return not (isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)


def _is_tight(node: ast.AST) -> bool:
    """A limit as a bare number: how long something may take on some machine, not what ends a hang."""
    if not isinstance(node, ast.Call):
        return False
    limits = [keyword.value for keyword in node.keywords if keyword.arg == "timeout_s"]
    if getattr(node.func, "attr", "") in {"timeout", "wait_for"}:
        limits += node.args[-1:]
    return any(isinstance(limit, ast.Constant) and isinstance(limit.value, int | float) for limit in limits)


def _nodes(name: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse((TESTS / name).read_text()))


def _found(names: list[str], *kinds: Callable[[ast.AST], bool]) -> dict[str, list[str]]:
    """What there is of these kinds, by file."""
    found = {
        name: [ast.unparse(node) for node in _nodes(name) if any(is_it(node) for is_it in kinds)] for name in names
    }
    return {name: nodes for name, nodes in found.items() if nodes}


def test_nobody_reads_a_clock_of_the_machine() -> None:
    """What a test knows of time is the time of its loop, which stands still while there is anything to do."""
    assert _found([name for name in FILES if name not in REAL_TIME], _is_clock) == {}


def test_a_pause_in_real_time_has_a_reason() -> None:
    """It may be too short on a slow machine, and is too long on a fast one; the same goes for a limit."""
    real = [name for name in FILES if name not in REAL_TIME and name.partition("/")[0] not in PACKAGES]
    assert _found(real, _is_pause, _is_tight) == {}


def test_no_reason_is_without_a_pause() -> None:
    """The table tells what there is."""
    assert set(_found(list(REAL_TIME), _is_clock, _is_pause)) == set(REAL_TIME)
