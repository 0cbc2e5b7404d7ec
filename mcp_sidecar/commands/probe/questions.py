"""What `probe` asks a server, one question after the other, as clients would; what came is handed on as ``Seen``.

The rule of this file: it calls no tool and sets nothing. Sessions that it opens are ended. Beside what any client asks it
only sends what a client would that has an id of yesterday, no id, another token or another Host.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

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
from mcp_sidecar.wire.headers import Pair
from mcp_sidecar.wire.jsonrpc import META_PROTOCOL_VERSION
from mcp_sidecar.wire.revisions import FIRST_SESSIONLESS, REVISIONS, sends_version_header

WRONG_TOKEN = "mcp-sidecar-probe-wrong"  # noqa: S105 - made up to be refused
FOREIGN_HOST = "probe.invalid"
PAGE_ORIGIN = "http://localhost:5173"
PINGS_ON_NEW_CONNECTIONS = 8
TIMEOUT_S = 10.0
MIN_CHANCE = 8
_SEPARATORS = "-_.:"


@dataclass(frozen=True, slots=True)
class Sender:
    """In whose session a question is asked: live, none, made-up, or ended; and with which id and version header."""

    session: str = "none"
    id: str | None = field(default=None, repr=False)
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One question and its answer. ``said`` is ``None`` where nothing came, and ``why`` says why."""

    http_method: str
    rpc_method: str | None
    sender: Sender
    said: Said | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that was asked, by kind, and what the handshake showed."""

    url: str
    answers: dict[str, Answered]
    has_credentials: bool = False

    def said(self, kind: str) -> Said | None:
        """The answer to one question, if it was asked and answered."""
        found = self.answers.get(kind)
        return found.said if found is not None else None

    def status(self, kind: str) -> int:
        """Its status; 0 where there is none."""
        said = self.said(kind)
        return said.status if said is not None else 0

    def result(self, kind: str) -> dict[str, object]:
        """Its result; empty where it has none."""
        said = self.said(kind)
        return (said.result_of(REQUEST_ID) if said is not None else None) or {}

    @property
    def session_id(self) -> str | None:
        """The id that the handshake gave out."""
        said = self.said("initialize")
        return said.header(SESSION_ID) if said is not None else None

    @property
    def session_ids(self) -> list[str]:
        """All ids that handshakes gave out."""
        opened = [self.said(kind) for kind in self.answers if kind.startswith("initialize")]
        return [key for said in opened if said is not None and (key := said.header(SESSION_ID)) is not None]

    @property
    def version(self) -> str:
        """The revision that was negotiated."""
        return str(self.result("initialize").get("protocolVersion", ""))


NOBODY = Sender()

PREFLIGHT: tuple[Pair, ...] = (
    ("Origin", PAGE_ORIGIN),
    ("Access-Control-Request-Method", "POST"),
    ("Access-Control-Request-Headers", "content-type,mcp-session-id"),
)


def discover() -> dict[str, object]:
    """How a client of 2026-07-28 begins."""
    meta = {META_PROTOCOL_VERSION: FIRST_SESSIONLESS, "io.modelcontextprotocol/clientCapabilities": {}}
    return request("server/discover", {"_meta": meta})


MODERN_HEADERS: tuple[Pair, ...] = (("MCP-Protocol-Version", FIRST_SESSIONLESS), ("Mcp-Method", "server/discover"))


def made_up(ids: Sequence[str], chance: random.Random) -> str:
    """Another id of the form of these, which a server gave out: no servers' check of the form may tell it by that.

    What all of them begin with up to a separator stays (mcp-go takes every id that begins with `mcp-session-`). Behind it
    stand digits for digits, letters for letters of the same case, hexadecimal for hexadecimal, at least eight of them.
    """
    beginning = _same_in_all(ids)
    rest = ids[0][len(beginning) :]
    while 0 < len(rest) < MIN_CHANCE:
        rest += rest
    is_hex = all(character in string.hexdigits or character in _SEPARATORS for character in rest)
    kinds = (string.digits, "abcdef" if is_hex else string.ascii_lowercase, string.ascii_uppercase)
    return beginning + "".join(
        next((chance.choice(kind) for kind in kinds if character in kind), character) for character in rest
    )


def _same_in_all(ids: Sequence[str]) -> str:
    """What they begin with, up to and with the last separator in it; nothing can be told from one."""
    if len(set(ids)) < 2:
        return ""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))
    common = "".join(column[0] for column in same)
    return common[: max(map(common.rfind, _SEPARATORS)) + 1]


class Questions:
    """Asks one server."""

    def __init__(self, url: str, headers: Sequence[Pair] = (), *, ca_file: str | None = None) -> None:
        """``headers`` go with every request, such as a credential; ``ca_file`` is trusted in place of the system's."""
        self.url = url
        self._ca_file = ca_file
        self._headers = tuple(headers)
        self._answers: dict[str, Answered] = {}
        self._chance = random.Random()

    async def ask_all(self, tell: Callable[[str], None]) -> Seen:
        """Ask; ``tell`` hears what is asked about. Never raises for what a server does."""
        seen = Seen(self.url, self._answers, bool(self._headers))
        async with self._client() as client:
            tell("revisions")
            await self._ask("discover", client.post(discover(), None, None, MODERN_HEADERS), "server/discover")
            await self._ask("initialize", client.post(initialize()), "initialize")
            if not seen.result("initialize"):
                await self._about_a_refusal(client, seen)
                return seen
            await self._in_session(client, seen, tell)
            await self._about_strangers(client, seen, tell)
        return seen

    @asynccontextmanager
    async def _client(self, *headers: Pair, instead: bool = False) -> AsyncIterator[McpClient]:
        sent = headers if instead else (*self._headers, *headers)
        async with McpClient(self.url, sent, timeout_s=TIMEOUT_S, ca_file=self._ca_file) as client:
            yield client

    async def _ask(
        self,
        kind: str,
        asking: Awaitable[Said],
        rpc_method: str | None = None,
        *,
        http: str = "POST",
        sender: Sender = NOBODY,
    ) -> Said | None:
        said, why = None, ""
        try:
            said = await asking
        except NoAnswer as error:
            why = str(error)
        self._answers[kind] = Answered(http, rpc_method, sender, said, why)
        return said

    async def _about_a_refusal(self, client: McpClient, seen: Seen) -> None:
        """There is no handshake: somebody else's server, one behind a login, one that knows no sessions, or none."""
        if not seen.status("initialize"):
            return
        if 300 <= seen.status("initialize") < 400:
            return
        parts = urlsplit(self.url)
        metadata = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource{parts.path}"
        async with McpClient(metadata, ca_file=self._ca_file) as other:
            await self._ask("oauth", other.ask("GET", ()), http="GET")
        await self._ask("plain-get", client.ask("GET", ()), http="GET")

    async def _in_session(self, client: McpClient, seen: Seen, tell: Callable[[str], None]) -> None:
        live = Sender("live" if seen.session_id else "none", seen.session_id, self._header(seen))
        sent = live.id, live.version
        tell("lists, streams, pings")
        await self._ask("initialized", client.post(INITIALIZED, *sent), "notifications/initialized", sender=live)
        await self._ask("ping", client.post(request("ping"), *sent), "ping", sender=live)
        await self._ask("tools", client.post(request("tools/list"), *sent), "tools/list", sender=live)
        await self._ask("listen", client.get(*sent), http="GET", sender=live)
        if live.id is not None:
            tell("several servers behind the address")
            for number in range(PINGS_ON_NEW_CONNECTIONS):
                async with self._client() as other:
                    await self._ask(f"ping-{number}", other.post(request("ping"), *sent), "ping", sender=live)
        tell("credentials, Host, browsers, older revisions")
        async with self._client(("Authorization", f"Bearer {WRONG_TOKEN}"), instead=True) as other:
            await self._ask("wrong-token", other.post(request("ping"), *sent), "ping", sender=live)
        async with self._client(("Host", FOREIGN_HOST)) as other:
            await self._ask("foreign-host", other.post(request("ping"), *sent), "ping", sender=live)
        await self._ask("preflight", client.ask("OPTIONS", PREFLIGHT), http="OPTIONS")
        for older in [name for name, row in REVISIONS.items() if row.has_sessions and name != seen.version]:
            said = await self._ask(f"initialize-{older}", client.post(initialize(older)), "initialize")
            await _end(client, said)

    async def _about_strangers(self, client: McpClient, seen: Seen, tell: Callable[[str], None]) -> None:
        """What the sidecar lives by: the answers to an id that the server does not know, as after a restart of it."""
        key, header = seen.session_id, self._header(seen)
        tell("sessions that it does not know")
        nobody = Sender("none", None, header)
        await self._ask("none-post", client.post(request("tools/list"), None, header), "tools/list", sender=nobody)
        if key is None:
            return
        await self._in_lost_session(client, Sender("made-up", made_up(seen.session_ids, self._chance), header))
        await self._ask("end", client.delete(key, header), http="DELETE", sender=Sender("live", key, header))
        await self._in_lost_session(client, Sender("ended", key, header))

    async def _in_lost_session(self, client: McpClient, lost: Sender) -> None:
        assert lost.id is not None
        name, sent = lost.session, (lost.id, lost.version)
        await self._ask(f"{name}-post", client.post(request("tools/list"), *sent), "tools/list", sender=lost)
        await self._ask(f"{name}-ping", client.post(request("ping"), *sent), "ping", sender=lost)
        await self._ask(f"{name}-get", client.get(*sent), http="GET", sender=lost)
        await self._ask(f"{name}-delete", client.delete(*sent), http="DELETE", sender=lost)

    @staticmethod
    def _header(seen: Seen) -> str | None:
        return seen.version if sends_version_header(seen.version) else None


async def _end(client: McpClient, said: Said | None) -> None:
    """Leave no session behind."""
    key = said.header(SESSION_ID) if said is not None else None
    if key is not None:
        with contextlib.suppress(NoAnswer):
            await client.delete(key, None)
