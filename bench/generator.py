"""The open-loop generator and holder of connections: sessions, calls at a rate, idle streams, large bodies, waiting calls.

A process of its own, ``python -m bench.generator``, asked over stdin (see ``bench.lines``).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from typing import Any, Final
from urllib.parse import urlsplit

from bench import lines, work
from bench.http1 import Message, Reader
from bench.statistics import percentile

ANSWER_TIMEOUT_S: Final = 20.0
OPENING_AT_ONCE: Final = 50
FIRST_UNIQUE: Final = time.time_ns() % 2**47
EVENT_END: Final = re.compile(rb"\r?\n\r?\n")


class Client(Reader):
    """One keep-alive connection, one request at a time."""

    is_client = True

    def __init__(self) -> None:
        super().__init__()
        self._answer: asyncio.Future[Message] | None = None
        self.is_open = True

    async def send(self, request: bytes) -> Message:
        """Return the complete answer; raise ``ConnectionError`` if the connection breaks before."""
        self._answer = asyncio.get_running_loop().create_future()
        if self.transport is None:
            raise ConnectionResetError("closed before the request")
        self.transport.write(request)
        return await self._answer

    def message_came(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    def closed(self, message: Message | None) -> None:
        del message
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("closed before the answer"))

    def close(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.close()


class Listener(Reader):
    """One GET stream; remembers how long its events were on the way."""

    is_client = True

    def __init__(self) -> None:
        super().__init__()
        self.began: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.delays_us: list[float] = []
        self.is_open = True
        self._text = b""

    def head_came(self, message: Message) -> None:
        if not self.began.done():
            self.began.set_result(message.status)

    def body_came(self, message: Message, piece: memoryview) -> None:
        del message
        now = time.monotonic_ns()
        *events, self._text = EVENT_END.split(self._text + bytes(piece))
        for event in events:
            _, found, data = event.partition(b"data: ")
            if found:
                self.delays_us.append((now - json.loads(data)["params"]["data"]["sent_ns"]) / 1000)

    def closed(self, message: Message | None) -> None:
        del message
        self.is_open = False
        if not self.began.done():
            self.began.set_result(0)


class Pool:
    """Connections to one address; takes an idle one or opens another."""

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        assert split.hostname is not None
        assert split.port is not None
        self.host = split.netloc
        self._address = (split.hostname, split.port)
        self._idle: list[Client] = []
        self.clients: list[Client] = []

    async def send(self, request: bytes) -> Message:
        """Send on an idle connection."""
        client = await self._take()
        try:
            answer = await asyncio.wait_for(client.send(request), ANSWER_TIMEOUT_S)
        except BaseException:
            client.close()
            raise
        if answer.headers.get(b"connection", b"").lower() == b"close":
            client.close()
        else:
            self._idle.append(client)
        return answer

    async def _take(self) -> Client:
        while self._idle:
            client = self._idle.pop()
            if client.is_open:
                return client
        return await self.open()

    async def open(self) -> Client:
        """Open a connection of one's own."""
        _, client = await asyncio.get_running_loop().create_connection(Client, *self._address)
        self.clients.append(client)
        return client

    async def listen(self, request: bytes) -> Listener:
        """Open a GET stream; its ``began`` tells the status."""
        _, listener = await asyncio.get_running_loop().create_connection(Listener, *self._address)
        assert listener.transport is not None
        listener.transport.write(request)
        await asyncio.wait_for(listener.began, ANSWER_TIMEOUT_S)
        return listener

    def close(self) -> None:
        """Close all connections."""
        for client in self.clients:
            client.close()


class Wrong(Exception):
    """An answer that is not the one to this request."""


def check(answer: Message, text: bytes = work.ASKED[work.JSON].brings) -> None:
    """Raise ``Wrong`` if a call did not bring this text."""
    if answer.status != 200 or text not in answer.body:
        raise Wrong(f"{answer.status} {bytes(answer.body[:300])!r}")


class Generator:
    """What it can be asked; streams and waiting calls are kept from one question to the next."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._waiting: list[asyncio.Task[tuple[float, bool]]] = []
        self._waiting_pool: Pool | None = None
        self._unique = itertools.count(FIRST_UNIQUE)

    async def _call(self, pool: Pool, sessions: list[str], kind: str, number: int) -> float:
        """Send the ``number``-th call and look at its answer; return the duration in microseconds."""
        unique = f"{next(self._unique):012x}"
        request = work.call_request(pool.host, sessions, kind, number, unique)
        begin = time.monotonic_ns()
        check(await pool.send(request), work.ASKED[kind].brings)
        return (time.monotonic_ns() - begin) / 1000

    async def sessions(self, *, url: str, count: int, at_once: int = 16) -> dict[str, Any]:
        """Initialize sessions, as a client does; answer with their ids."""
        pool, ids = Pool(url), []

        async def some(number: int) -> None:
            ids.extend([await _initialize(pool) for _ in range(number)])

        shares = [count // at_once + (place < count % at_once) for place in range(at_once)]
        try:
            await asyncio.gather(*(some(share) for share in shares if share))
        finally:
            pool.close()
        return {"sessions": ids}

    async def calls(self, *, url: str, sessions: list[str], kind: str, count: int) -> dict[str, Any]:
        """Call one after the other; every answer has to be a result. Answer with the durations in microseconds."""
        pool = Pool(url)
        try:
            return {"durations_us": [await self._call(pool, sessions, kind, number) for number in range(count)]}
        finally:
            pool.close()

    async def load(self, *, url: str, sessions: list[str], count: int, at_once: int) -> dict[str, Any]:
        """Call as fast as so many connections do, each answer looked at."""
        pool = Pool(url)

        async def some(place: int) -> None:
            for number in range(place, count, at_once):
                await self._call(pool, sessions, work.JSON, number)

        begin = time.monotonic()
        try:
            await asyncio.gather(*(some(place) for place in range(at_once)))
        finally:
            pool.close()
        return {"seconds": time.monotonic() - begin}

    async def rate(self, *, url: str, sessions: list[str], kind: str, rate: float, seconds: float) -> dict[str, Any]:
        """Call at a rate whatever the answers do; an idle connection is taken, or one more opened."""
        pool = Pool(url)
        durations: list[float] = []
        errors = 0

        async def one(number: int) -> None:
            nonlocal errors
            try:
                durations.append(await self._call(pool, sessions, kind, number))
            except (Wrong, OSError, TimeoutError):
                errors += 1

        loop = asyncio.get_running_loop()
        begin, tasks = loop.time(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - loop.time()))
            tasks += [loop.create_task(one(number))]
        await asyncio.gather(*tasks)
        pool.close()
        return {
            "count": len(durations),
            "seconds": loop.time() - begin,
            "errors": errors,
            "p50_us": percentile(durations, 0.5),
            "p99_us": percentile(durations, 0.99),
            "connections": len(pool.clients),
        }

    async def listen(self, *, url: str, sessions: list[str]) -> dict[str, Any]:
        """Open one GET stream per session and keep it; answer with how many began."""
        pool, began = Pool(url), 0
        for place in range(0, len(sessions), OPENING_AT_ONCE):
            some = sessions[place : place + OPENING_AT_ONCE]
            opened = await asyncio.gather(*(pool.listen(work.request("GET", pool.host, b"", id)) for id in some))
            began += sum(listener.began.result() == 200 for listener in opened)
            self._listeners += opened
        return {"began": began}

    async def streams(self) -> dict[str, Any]:
        """Answer with how many streams are still open, and with what their events took; then forget the latter."""
        delays = [delay for listener in self._listeners for delay in listener.delays_us]
        for listener in self._listeners:
            listener.delays_us.clear()
        return {
            "open": sum(listener.is_open for listener in self._listeners),
            "events": len(delays),
            "p50_us": percentile(delays, 0.5),
            "p99_us": percentile(delays, 0.99),
        }

    async def close_streams(self) -> dict[str, Any]:
        """Close them all."""
        for listener in self._listeners:
            if listener.transport is not None:
                listener.transport.close()
        self._listeners.clear()
        await asyncio.sleep(0)
        return {}

    async def transfer(self, *, url: str, session: str, tool: str, upload_bytes: int = 0) -> dict[str, Any]:
        """One call with a large body in one direction; answer with its duration and the size of what came back."""
        pool = Pool(url)
        body = work.upload(upload_bytes, 1) if upload_bytes else work.call(tool, 1)
        begin = time.monotonic()
        try:
            answer = await pool.send(work.request("POST", pool.host, body, session))
        finally:
            pool.close()
        check(answer, str(len(body)).encode() if upload_bytes else b"xxxx")
        return {"seconds": time.monotonic() - begin, "bytes": answer.size}

    async def crowd(self, *, url: str, session: str, other: str, tool: str) -> dict[str, Any]:
        """One message of very many parts, up or down, and beside it the pings of another client, one after the other."""
        pool, aside, longest_ns, number = Pool(url), Pool(url), 0, 0
        body = work.zeros() if tool == "zeros" else work.call(tool, 1)
        check(await aside.send(work.request("POST", aside.host, work.ping(0), other)), b'"result"')
        crowded = asyncio.ensure_future(pool.send(work.request("POST", pool.host, body, session)))
        try:
            while not crowded.done():
                number, begin_ns = number + 1, time.monotonic_ns()
                check(await aside.send(work.request("POST", aside.host, work.ping(number), other)), b'"result"')
                longest_ns = max(longest_ns, time.monotonic_ns() - begin_ns)
            check(await crowded, str(len(body)).encode() if tool == "zeros" else b"")
        finally:
            crowded.cancel()
            pool.close()
            aside.close()
        return {"longest_ping_us": longest_ns / 1000}

    async def wait(self, *, url: str, sessions: list[str]) -> dict[str, Any]:
        """Send a call in each session, each on a connection of its own, and do not wait for the answers."""
        pool = self._waiting_pool = Pool(url)
        clients = [await pool.open() for _ in sessions]

        async def one(client: Client, session: str) -> tuple[float, bool]:
            try:
                answer = await client.send(work.call_request(pool.host, [session], work.JSON, 0))
                check(answer)
            except (Wrong, OSError):
                return time.monotonic(), False
            return time.monotonic(), True

        loop = asyncio.get_running_loop()
        pairs = zip(clients, sessions, strict=True)
        self._waiting = [loop.create_task(one(*pair)) for pair in pairs]
        await asyncio.sleep(0)
        return {}

    async def waited(self) -> dict[str, Any]:
        """Answer with the moments at which the answers to those calls came, and how many were results."""
        results = await asyncio.wait_for(asyncio.gather(*self._waiting), ANSWER_TIMEOUT_S)
        if self._waiting_pool is not None:
            self._waiting_pool.close()
        self._waiting.clear()
        return {"at": [moment for moment, _ in results], "good": sum(good for _, good in results)}


async def _initialize(pool: Pool) -> str:
    answer = await pool.send(work.request("POST", pool.host, json.dumps(work.INITIALIZE).encode()))
    session = answer.headers.get(b"mcp-session-id")
    if answer.status != 200 or session is None:
        raise Wrong(f"initialize: {answer.status} {bytes(answer.body[:300])!r}")
    id = session.decode()
    answer = await pool.send(work.request("POST", pool.host, json.dumps(work.INITIALIZED).encode(), id))
    if answer.status != 202:
        raise Wrong(f"initialized: {answer.status} {bytes(answer.body[:300])!r}")
    return id


async def main() -> None:
    """Answer until stdin ends."""
    generator = Generator()
    names = (
        "sessions",
        "calls",
        "load",
        "rate",
        "listen",
        "streams",
        "close_streams",
        "transfer",
        "crowd",
        "wait",
        "waited",
    )
    await lines.answer_lines({name: getattr(generator, name) for name in names})


if __name__ == "__main__":
    lines.run_on_fast_loop(main)
