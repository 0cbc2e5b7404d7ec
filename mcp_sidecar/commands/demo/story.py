"""What the demo does, in order, and what came of it.

The rule of this file: both halves are the same code; they differ in the URL that the client is given.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from mcp_sidecar.commands.demo.client import Call, Shopper, shopper
from mcp_sidecar.commands.processes import CartServer, ChildFailed, Front, SidecarCommand, heal_seconds

BEFORE_RESTART: Final = ("apples", "figs")
AFTER_RESTART: Final = ("pears", "plums")
HEAL_LINE_TIMEOUT_S: Final = 5.0

Say = Callable[[str], None]
Restart = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """The client's calls before and after the restart."""

    before: tuple[Call, ...]
    after: tuple[Call, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Both halves. ``heal_s`` is the sidecar's own figure, None where it logged none; ``log`` is what else it wrote.

    ``restarted_sidecar``: it was killed and started again, too.
    """

    direct: Half
    through: Half
    heal_s: float | None
    log: tuple[str, ...] = ()
    restarted_sidecar: bool = False

    @property
    def healed(self) -> bool:
        """Every call through the sidecar succeeded, and the answers show that a new process gave the later ones."""
        calls = (*self.through.before, *self.through.after)
        restarted = bool(self.through.after) and self.through.after[0].text == f"cart: {AFTER_RESTART[0]}"
        return restarted and all(call.succeeded for call in calls)


async def tell(sidecar: SidecarCommand, say: Say, *, restarts_sidecar: bool = False) -> Story:
    """Run both halves. Raises ``ChildFailed`` where the server or the sidecar does not come up.

    ``restarts_sidecar``: it is killed together with the server; what it keeps is in a folder that is gone afterwards.
    """
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    logging.getLogger("mcp").propagate = False
    say("1/2  without the sidecar: start the server, call, kill it, start it, call again")
    async with CartServer() as server:
        direct = await _half(server.url, server.restart)
    say("2/2  with the sidecar: the same, the client's URL points at the sidecar")
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:{folder}/sessions.db" if restarts_sidecar else "memory:"
        async with CartServer() as server, Front(sidecar, server.url, store) as front:
            through = await _half(front.url, _restart_both(server, front) if restarts_sidecar else server.restart)
            heal_s = None
            with contextlib.suppress(ChildFailed):
                heal_s = await front.child.said(heal_seconds, HEAL_LINE_TIMEOUT_S)
        return Story(
            direct=direct,
            through=through,
            heal_s=heal_s,
            log=tuple(front.child.lines),
            restarted_sidecar=restarts_sidecar,
        )


def _restart_both(server: CartServer, front: Front) -> Restart:
    async def restart() -> None:
        await front.kill()
        await server.restart()
        await front.start_again()

    return restart


async def _half(url: str, restart: Restart) -> Half:
    before: list[Call] = []
    after: list[Call] = []
    try:
        async with shopper(url) as client:
            await _fill(before, BEFORE_RESTART, client)
            await restart()
            await _fill(after, AFTER_RESTART, client)
    except Exception as error:
        # Some answers end the SDK's connection as a whole instead of failing one call; that is a result, too.
        _add_unmade(before, after, _innermost(error))
    return Half(before=tuple(before), after=tuple(after))


async def _fill(calls: list[Call], items: Iterable[str], client: Shopper) -> None:
    """Keep each call as it is made: what was made before the connection ended is part of the result."""
    for item in items:
        call = await client.add(item)
        calls.append(call)


def _add_unmade(before: list[Call], after: list[Call], cause: BaseException) -> None:
    """Put a failed call where the broken connection left none. A part of the demo that failed is raised instead."""
    if isinstance(cause, ChildFailed):
        raise cause
    text = f"connection ended: {cause or type(cause).__name__}"
    for calls, items in ((before, BEFORE_RESTART), (after, AFTER_RESTART)):
        calls.extend(Call(item=item, succeeded=False, text=text, seconds=0.0) for item in items[len(calls) :])


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
