"""TLS towards the upstream on uvloop: its transports are its own, and so is what they tell of an end.

Two loops take part, in two threads: both have real time, so this stands outside the packages whose time stands still.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mcp_sidecar.wire.faults import Fault
from tests.support.certificates import make_certificate, serving
from tests.support.raw_upstream import OK, RawUpstream
from tests.upstream.sending import sender, sends, to_the_fault, whole

LENGTHLESS = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n"

ON_UVLOOP = [
    pytest.param("close", (b"some", None), id="close_notify"),
    pytest.param("cut", (b"some", Fault.BROKEN), id="FIN"),
]


@pytest.mark.parametrize(("ending", "expected"), ON_UVLOOP)
async def test_uvloop_tells_the_same(ending: str, expected: object, tmp_path: Path) -> None:
    """A close_notify ends an answer without length, a bare FIN cuts it."""
    uvloop = pytest.importorskip("uvloop")
    certificate = make_certificate(tmp_path)
    play = sends(LENGTHLESS % b"text/plain" + b"some", then=ending)
    async with RawUpstream(OK, OK, play, tls=serving(certificate)) as server:

        async def ask() -> tuple[bytes, Fault | None]:
            async with sender(server.origin, ca_file=str(certificate[0])) as upstream:
                assert await upstream.can_connect()
                for _ in range(2):
                    assert await whole(await upstream.send("GET", "/", [])) == b"ok"
                assert upstream.express() is not None
                async with await upstream.send("GET", "/", []) as answer:
                    return await to_the_fault(answer)

        def on_uvloop() -> tuple[bytes, Fault | None]:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(ask())

        assert await asyncio.to_thread(on_uvloop) == expected
