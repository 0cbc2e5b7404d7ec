"""A restart for real: a session through a sidecar in this process, a server restarted under it, and what the sidecar did."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcp_sidecar import facts
from mcp_sidecar.app import Sidecar
from mcp_sidecar.commands.mcp_client import (
    INITIALIZED,
    REQUEST_ID,
    SESSION_ID,
    McpClient,
    NoAnswer,
    Said,
    initialize,
    request,
)
from mcp_sidecar.config import SidecarConfig
from mcp_sidecar.ops.console import duration
from mcp_sidecar.wire.headers import Pair

COMMAND_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 60.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Restarted:
    """What came of it. ``is_whole``: the client's call after the restart succeeded, in the session of before."""

    is_whole: bool
    steps: tuple[str, ...]


def told(fact: facts.Fact) -> str | None:
    """What the sidecar did, in a line; ``None`` for what is of no interest here."""
    line = None
    match fact:
        case facts.UpstreamLost(fault):
            line = f"the server is away: {fault}"
        case facts.UpstreamBack(seconds, held):
            line = f"the server is back after {duration(seconds)}; {held} waiting"
        case facts.SessionLost(_, signature, status):
            line = f"it has forgotten the session: {status}, told by {signature}"
        case facts.HealEnded(outcome=outcome, reason=reason, seconds=seconds):
            line = f"initialized anew in the client's name: {reason} ({outcome.value}, {duration(seconds)})"
        case facts.RequestReplayed(cause=cause, rpc_method=method):
            line = f"{method} sent again: {cause.value.replace('_', ' ')}"
        case facts.RestoreRefused(step=step):
            line = f"the new server refused {step.value}"
        case facts.ListsChanged(kind=kind):
            line = f"its {kind.value} are others now"
        case facts.AnswerRewritten(from_status=status):
            line = f"{status} replaced by the 404 that makes clients start over"
        case facts.OutcomeUnknown():
            line = "whether the call ran cannot be told: an error"
    return line


class _Watching(Sidecar):
    """Tells what it does as it does it."""

    tell: Tell = staticmethod(lambda _: None)

    def _emit(self, fact: facts.Fact) -> None:
        super()._emit(fact)
        line = told(fact)
        if line is not None:
            self.tell(line)


async def restart(config: SidecarConfig, command: str, headers: Sequence[Pair], tell: Tell) -> Restarted:
    """Open a session, run the command, and call again. ``tell`` hears each step at once."""
    steps: list[str] = []

    def step(line: str) -> None:
        steps.append(line)
        tell(line)

    sidecar = _Watching(config)
    sidecar.tell = step
    await sidecar.start()
    try:
        async with McpClient(sidecar.client_url, headers, timeout_s=CALL_TIMEOUT_S) as client:
            return Restarted(await _story(client, command, step), tuple(steps))
    except NoAnswer as error:
        step(f"no answer through the sidecar: {error}")
        return Restarted(is_whole=False, steps=tuple(steps))
    finally:
        await sidecar.stop()


async def _story(client: McpClient, command: str, step: Tell) -> bool:
    opened = await client.post(initialize())
    result = opened.result_of(REQUEST_ID)
    if result is None:
        step(f"no session through the sidecar: {opened.status}")
        return False
    key, version = opened.header(SESSION_ID), str(result.get("protocolVersion"))
    await client.post(INITIALIZED, key, version)
    before = await client.post(request("tools/list"), key, version)
    step(f"session open through a sidecar; tools/list: {_shown(before)}")
    status = await _run(command, step)
    step(f"restarted with: {command} (exit status {status})")
    after = await client.post(request("tools/list"), key, version)
    step(f"tools/list again, in the same session: {_shown(after)}")
    if key is not None:
        await client.delete(key, version)
    return after.result_of(REQUEST_ID) is not None


async def _run(command: str, step: Tell) -> int | str:
    """By the shell, as it was written; what it leaves running is the server."""
    process = await asyncio.create_subprocess_shell(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await process.wait()
    except TimeoutError:
        step(f"the command goes on after {COMMAND_TIMEOUT_S:g} s; it is left running")
        return "none yet"


def _shown(said: Said) -> str:
    result = said.result_of(REQUEST_ID)
    if result is not None:
        tools = result.get("tools")
        return f"{len(tools) if isinstance(tools, list) else 'no'} tools"
    error = (said.answer_to(REQUEST_ID) or {}).get("error")
    return str(error.get("message")) if isinstance(error, dict) else f"HTTP {said.status}"
