"""What served an exchange is gone with it: no circle keeps it until a collector, which runs rarely, comes by."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest

from mcp_sidecar.endpoint.post import Post
from mcp_sidecar.endpoint.reply import Reply
from mcp_sidecar.healing.exchange import Exchange
from mcp_sidecar.sessions.call import Call
from mcp_sidecar.sessions.recorder import Recorder
from mcp_sidecar.streams.relay import EventRelay
from mcp_sidecar.upstream.answer import Answer
from mcp_sidecar.waiting.budget import Claim
from tests.endpoint.test_buffered_bytes import CALL, EVENT, LARGE, answered, post
from tests.support.raw_upstream import Conversation, Play, RawUpstream
from tests.support.sidecar import running_sidecar
from tests.support.waiting import eventually

KINDS = (Post, Reply, Exchange, Call, Recorder, EventRelay, Answer, Claim)
ERROR = b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\noops"


async def cut(conversation: Conversation) -> None:
    await conversation.read_body()
    await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
    conversation.close()


def alive() -> Counter[str]:
    """How many of each there are."""
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, KINDS))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is left of tests before this one is gone, and nothing is collected from here on."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.long
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(answered(b"application/json", LARGE), CALL, id="json"),
        pytest.param(answered(b"text/event-stream", EVENT), CALL, id="events"),
        pytest.param(answered(b"text/plain", LARGE), CALL, id="other"),
        pytest.param(ERROR, CALL, id="error"),
        pytest.param(cut, CALL, id="cut"),
        pytest.param(ERROR, b"{", id="not json"),
    ],
)
@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_left_of_an_exchange(answer: bytes | Play, body: bytes) -> None:
    """Whatever the answer was, as soon as it has gone its exchange has, too."""
    async with RawUpstream(answer) as upstream, running_sidecar(upstream.url) as sidecar:
        before = alive()
        for _ in range(5):
            await post(sidecar.url, body)
        await eventually(lambda: alive() == before)
