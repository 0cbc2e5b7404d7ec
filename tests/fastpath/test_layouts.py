"""Heads that were seen before: what is made of one is what reading it would make of it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from mcp_sidecar.fastpath.lane import Express
from mcp_sidecar.fastpath.layouts import CHANGING, CLOSED_FOR, IN_VAIN, REMEMBERED, Layouts
from mcp_sidecar.fastpath.rest import Rest
from tests.support.in_memory import SESSION, Through, through

HEADS = int(os.environ.get("GENERATED_HEADS", "20000"))
BEARER = "Bearer e30.e30.x"
PEERS = ("127.0.0.1", "10.1.2.3", "203.0.113.9")

USUAL = (
    *("Content-Type: application/json", "Accept: application/json, text/event-stream", "User-Agent: a/1 (b; c)"),
    *(
        "Mcp-Protocol-Version: 2025-06-18",
        "mcp-protocol-version: 2025-11-25",
        "Accept-Encoding: gzip",
        "X-Plain: a b,c;d",
    ),
    *("Authorization: Bearer a.b.c", "authorization: Basic eDp5", "Connection: keep-alive", "Cookie: a=b; c=d"),
    *("X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: a.example", "Keep-Alive: x"),
)
ODD = (
    *(
        "x:y",
        "X-Blank:  a",
        "X-Empty:",
        "X-Folded: a\r\n b",
        " X: a",
        "X-Tab: a\tb",
        "X-Nul: a\0b",
        "X-Cr: a\rb",
        "X-Lf: a\nb",
    ),
    *(
        "X-Byte: \xe9",
        "no colon",
        "Connection: close",
        "Upgrade: x",
        "Expect: 100-continue",
        "Origin: http://localhost",
    ),
    *(
        "Transfer-Encoding: chunked",
        "Content-Encoding: gzip",
        "Forwarded: for=a",
        "Host: b",
        "Authorization: Negotiate a",
    ),
    *(
        "Content-Length: 4",
        "content-length:3",
        "Traceparent:  x",
        "Traceparent: ",
        "X-Request-Id: a b",
        "X-Request-Id:a",
    ),
)
LENGTHS = (*("3",) * 12, *("12", "345") * 3, "0", "03", "+3", "3,3", "x", "9999999999", "999999")


class Heads:
    """Heads of one kind, which differ in the values that change only."""

    def __init__(self, luck: random.Random) -> None:
        names = luck.sample([name for name in CHANGING if name != "content-length"], luck.randrange(3))
        changing = [f"{luck.choice([name, name.title(), name.upper()])}: %s" for name in names]
        length = luck.choice(["Content-Length: %d", "content-length: %d"])
        session = f"{luck.choice(['Mcp-Session-Id', 'mcp-session-id'])}: {SESSION}"
        usual = {line.partition(":")[0].lower(): line for line in luck.sample(USUAL, luck.randrange(8))}
        lines = ["Host: localhost", session, *usual.values(), *changing]
        if luck.random() < 0.3:
            lines += luck.sample(ODD, 1)  # or two of a name
        if luck.random() < 0.05:
            del lines[luck.randrange(len(lines))]
        lines.append(length.replace("%d", "%s"))
        luck.shuffle(lines)
        self._first = luck.choice(["POST /mcp HTTP/1.1"] * 5 + ["POST /mcp/ HTTP/1.1", "GET /mcp HTTP/1.1"])
        self._lines = [line.replace("%s", "{}") if "%s" in line else line.replace("{", "{{") for line in lines]
        self.peer = luck.choice(PEERS)

    def one(self, luck: random.Random) -> bytes:
        """The next."""
        lines = [
            line.format(luck.choice(LENGTHS) if line.lower().startswith("content-length") else _value(luck))
            for line in self._lines
        ]
        head = "\r\n".join([self._first, *lines, "", ""]).encode("latin-1")
        if luck.random() < 0.05:
            at = luck.randrange(len(head))
            head = head[:at] + luck.choice([b"", b" ", b"\r", b"\n", b"\r\n", b"\0", b":", b"\xff"]) + head[at + 1 :]
        return head + b"abc"[: luck.choice([3, 3, 0, 1])]


def _value(luck: random.Random) -> str:
    return luck.choice(["a", f"00-{luck.getrandbits(128):032x}", "x" * luck.randrange(1, 40), "a=b,c=d", "~"])


def generated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many heads, each from a peer: several of each kind, in turn with those of others."""
    luck = random.Random(seed)
    kinds = [Heads(luck) for _ in range(8)]
    for _ in range(count):
        place = luck.randrange(len(kinds))
        if luck.random() < 0.1:
            kinds[place] = Heads(luck)
        yield kinds[place].peer, kinds[place].one(luck)


class NeverSeen(Layouts):
    """Remembers nothing."""

    def cut(self, *_: object) -> None:
        return None


def express(way: Through, *, remembers: bool = True) -> Express:
    """A lane of its own."""
    made = Express(way.sidecar._ingress)
    if not remembers:
        made._layouts = NeverSeen(())
    return made


@pytest.mark.long
async def test_what_is_made_of_a_head_is_what_reading_it_makes() -> None:
    """Of thousands of heads, plain ones and odd ones, whatever of their kind was seen before."""
    async with through() as way:
        quick, plain = express(way), express(way, remembers=False)
        quick._layouts.rest = Rest(HEADS, 1)  # it looks at all of them
        known = taken = 0
        for peer, data in generated(HEADS, seed=28):
            cut = quick._layouts.cut(data, quick.max_head, peer)
            known += cut is not None and cut.digest in quick._layouts._known
            expected = plain.read(peer, data)
            taken += expected is not None
            assert quick.read(peer, data) == expected, (peer, data)
        assert known > HEADS / 4
        assert taken > HEADS / 4


def head(*lines: str, length: int = 0) -> bytes:
    """A request's."""
    first = ("POST /mcp HTTP/1.1", "Host: localhost", f"Mcp-Session-Id: {SESSION}")
    return "\r\n".join([*first, *lines, f"Content-Length: {length}", "", ""]).encode()


async def test_it_is_remembered_from_the_second_time_on() -> None:
    """Whatever its length, its id and its trace are."""
    async with through() as way:
        lane = express(way)
        for number in range(4):
            data = head(
                f"Authorization: {BEARER}", f"X-Request-Id: {number}", f"traceparent: 00-{number}", length=number
            )
            asked = lane.read("127.0.0.1", data)
            assert asked is not None
            assert (asked.size - asked.body_at, b"X-Request-Id: %d\r\n" % number in asked.fields) == (number, True)
            assert len(lane._layouts._known) == (number > 0)


async def test_no_credential_is_kept() -> None:
    """Nor the session's id: only where they stand."""
    async with through() as way:
        lane = express(way)
        for _ in range(3):
            lane.read(
                "127.0.0.1", head("Authorization: Bearer hush-hush", "Cookie: a=hush-hush", "X-Api-Key: hush-hush")
            )
        (layout,) = lane._layouts._known.values()
        told = repr(layout) + repr(lane._layouts._seen)
        assert "hush" not in told
        assert SESSION not in told


@pytest.mark.parametrize("other", ["127.0.0.2", None])
async def test_another_peer_is_another_kind(other: str | None) -> None:
    """The upstream is told where a request has come from."""
    async with through() as way:
        lane = express(way)
        for _ in range(3):
            lane.read("127.0.0.1", head())
        asked = lane.read(other, head())
        assert asked is not None
        assert b"127.0.0.1" not in asked.fields


async def test_who_is_who_is_told_anew() -> None:
    """A layout holds a principal as it was told under the secret of then."""
    async with through() as way:
        lane, data = express(way), head(f"Authorization: {BEARER}")
        before = [lane.read("127.0.0.1", data) for _ in range(3)]
        way.sidecar.services.sessions.principals.use(b"another secret")
        after = lane.read("127.0.0.1", data)
        assert before[-1] is not None
        assert after is not None
        assert after.unchanging.identity.principal != before[-1].unchanging.identity.principal


async def test_what_is_remembered_is_bounded() -> None:
    """Of heads that come twice each, and of such that never come again; looking for these is given up for a while."""
    async with through() as way:
        lane = express(way)
        lane._layouts.rest = Rest(3 * REMEMBERED, 1)
        for number in range(REMEMBERED + 10):
            for _ in range(2):
                assert lane.read("127.0.0.1", head(f"X-Other: {number}")) is not None
        assert 0 < len(lane._layouts._known) <= REMEMBERED
        assert 0 < len(lane._layouts._seen) <= REMEMBERED
        assert 0 < len(lane._layouts._begun) <= REMEMBERED
        lane = express(way)
        for number in range(1 + IN_VAIN):
            lane.read("127.0.0.1", head(f"X-Other: {number}"))
        for _ in range(CLOSED_FOR):
            assert lane._layouts.cut(head(), 1 << 16, None) is None
        assert lane._layouts.cut(head(), 1 << 16, None) is not None


async def test_sessions_that_begin_together_do_not_look_like_heads_that_change() -> None:
    """Hundreds of clients that come at once, with an `initialize`, an `initialized` and a first call each."""
    async with through() as way:
        lane = express(way)
        for number in range(5 * IN_VAIN):
            theirs = head().replace(SESSION.encode(), f"session-{number}".encode())
            for _ in range(3):
                lane.read("127.0.0.1", head().replace(b"Mcp-Session-Id", b"X-None"))
                assert lane.read("127.0.0.1", theirs) is not None
        for number in range(5 * IN_VAIN):
            theirs = head().replace(SESSION.encode(), f"session-{number}".encode())
            cut = lane._layouts.cut(theirs, 1 << 16, "127.0.0.1")
            assert cut is not None
            assert lane._layouts.read(cut) is not None
