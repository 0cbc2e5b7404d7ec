"""TLS towards the upstream: whom it trusts, what it says where it does not, and answers that are cut."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest

from mcp_sidecar.config import Limits, UpstreamConfig
from mcp_sidecar.facts import UpstreamBack, UpstreamLost
from mcp_sidecar.upstream.content import UpstreamFault
from mcp_sidecar.upstream.upstream import Upstream
from mcp_sidecar.wire.faults import Fault
from tests.support.certificates import make_certificate, serving
from tests.support.client import raw_exchange
from tests.support.raw_upstream import OK, Conversation, RawUpstream
from tests.support.sidecar import running_sidecar
from tests.upstream.sending import sender, sends, to_the_fault, whole

Certificate = tuple[Path, Path]
LENGTHLESS = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of the address that the servers here have."""
    return make_certificate(tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of another host."""
    return make_certificate(tmp_path_factory.mktemp("wrong"), host="other.test")


async def detail_of(upstream: Upstream) -> str:
    with pytest.raises(UpstreamFault) as caught:
        await upstream.send("GET", "/", [])
    assert caught.value.fault is Fault.UNREACHABLE
    return caught.value.detail


async def test_a_trusted_upstream_is_asked(certificate: Certificate) -> None:
    """And its connection is used again."""
    async with (
        RawUpstream(tls=serving(certificate)) as server,
        sender(server.origin, ca_file=str(certificate[0])) as upstream,
    ):
        for _ in range(3):
            assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        assert server.connections == 1
        assert await upstream.can_connect()


async def test_the_reason_is_openssls(certificate: Certificate, other: Certificate) -> None:
    """An unknown authority, another host, no TLS at all: each is said in words that can be looked up."""
    async with RawUpstream(tls=serving(certificate)) as server, sender(server.origin) as upstream:
        assert await detail_of(upstream) == "certificate not trusted: self-signed certificate"
    async with (
        RawUpstream(tls=serving(other)) as server,
        sender(server.origin, ca_file=str(other[0])) as upstream,
    ):
        assert (await detail_of(upstream)).startswith("certificate not trusted: IP address mismatch")
    async with (
        RawUpstream() as server,
        sender(server.origin.replace("http:", "https:"), ca_file=str(certificate[0])) as upstream,
    ):
        assert not (await detail_of(upstream)).startswith("certificate")


async def test_a_certificate_that_is_not_trusted_is_a_fact(certificate: Certificate) -> None:
    """It is said once in an outage; the client gets what it gets for any upstream that is away."""
    request = b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with RawUpstream(tls=serving(certificate)) as server, running_sidecar(server.url) as sidecar:
        for _ in range(2):
            assert (await raw_exchange(sidecar.port, request)).data.startswith(b"HTTP/1.1 503 ")
        assert [lost.fault for lost in sidecar.of(UpstreamLost)] == ["certificate not trusted: self-signed certificate"]
        assert not sidecar.of(UpstreamBack)


async def test_a_file_of_authorities_is_read_again_when_it_changes(
    certificate: Certificate, other: Certificate, tmp_path: Path
) -> None:
    """For the next connection; a link that leads elsewhere is a change, too, and a file that is broken is none."""
    link, wrong = tmp_path / "ca.pem", other[0].read_bytes()
    link.write_bytes(wrong)
    async with RawUpstream(tls=serving(certificate)) as server, sender(server.origin, ca_file=str(link)) as upstream:
        assert (await detail_of(upstream)).startswith("certificate not trusted")
        link.unlink()
        link.symlink_to(certificate[0])
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        link.unlink()
        link.write_bytes(b"no certificate")
        assert await whole(await upstream.send("GET", "/", [], fresh=True)) == b"ok"
        link.write_bytes(wrong)
        with pytest.raises(UpstreamFault):
            await upstream.send("GET", "/", [], fresh=True)


async def test_reload_reads_what_looks_the_same(certificate: Certificate, other: Certificate, tmp_path: Path) -> None:
    """As on SIGHUP; what cannot be read is an error, and what was trusted is trusted on."""
    file = tmp_path / "ca.pem"
    size = max(path.stat().st_size for path in (certificate[0], other[0]))
    padded = [path.read_bytes().ljust(size, b"\n") for path in (other[0], certificate[0])]
    file.write_bytes(padded[0])
    os.utime(file, ns=(1, 1))
    async with RawUpstream(tls=serving(certificate)) as server, sender(server.origin, ca_file=str(file)) as upstream:
        file.write_bytes(padded[1])
        os.utime(file, ns=(1, 1))
        assert (await detail_of(upstream)).startswith("certificate not trusted")
        upstream.reload()
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        file.write_bytes(b"no certificate".ljust(size))
        with pytest.raises(ssl.SSLError):
            upstream.reload()
        assert await whole(await upstream.send("GET", "/", [], fresh=True)) == b"ok"


async def test_without_tls_there_is_nothing_to_reload() -> None:
    """And a file that does not exist is nobody's business."""
    config = UpstreamConfig(origin="http://127.0.0.1:9", ca_file="/does/not/exist")
    Upstream(config, Limits(), lambda _connected, _why: None, lambda _why: None).reload()


@pytest.mark.parametrize(
    ("kind", "body", "ending", "fault"),
    [
        pytest.param(b"text/plain", b"some", "close", None, id="text, with close_notify"),
        pytest.param(b"text/plain", b"some", "cut", Fault.BROKEN, id="text, without"),
        pytest.param(b"application/json", b'{"a":1}', "close", None, id="JSON, with close_notify"),
        pytest.param(b"application/json", b'{"a":1}', "cut", None, id="whole JSON, without"),
        pytest.param(b"application/json", b'{"a":', "cut", Fault.BROKEN, id="half a JSON text, without"),
        pytest.param(b"application/json", b'{"a":', "close", Fault.BROKEN, id="half a JSON text, with close_notify"),
    ],
)
async def test_an_end_without_close_notify_may_be_anybodys(
    kind: bytes, body: bytes, ending: str, fault: Fault | None, certificate: Certificate
) -> None:
    """RFC 9112 §9.8: whoever is on the way can send a FIN. A JSON text that shows its own end needs no other."""
    async with (
        RawUpstream(sends(LENGTHLESS % kind + body, then=ending), tls=serving(certificate)) as server,
        sender(server.origin, ca_file=str(certificate[0])) as upstream,
    ):
        answer = await upstream.send("GET", "/", [])
        assert await to_the_fault(answer) == (body, fault)
        answer.close()


@pytest.mark.parametrize("ending", [Conversation.close, Conversation.cut], ids=["close_notify", "FIN"])
async def test_a_tls_connection_that_has_ended_is_not_used(ending: object, certificate: Certificate) -> None:
    """Its end is looked for as any other's."""
    event, closed = asyncio.Event(), asyncio.Event()

    async def play(conversation: Conversation) -> None:
        await conversation.read_body()
        await conversation.send(OK)
        await event.wait()
        ending(conversation)  # type: ignore[operator]
        closed.set()

    async with (
        RawUpstream(play, OK, tls=serving(certificate)) as server,
        sender(server.origin, ca_file=str(certificate[0])) as upstream,
    ):
        assert await whole(await upstream.send("GET", "/", [])) == b"ok"
        event.set()
        await closed.wait()
        assert await whole(await upstream.send("POST", "/", [], b"{}")) == b"ok"
        assert server.connections == 2
