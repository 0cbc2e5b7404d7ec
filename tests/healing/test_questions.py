"""Which questions of the server are open, and which died with its session."""

from __future__ import annotations

import pytest

from mcp_sidecar.healing.marked_ids import Mark
from mcp_sidecar.healing.questions import MAX_ID_CHARS, MAX_QUESTIONS, Questions
from mcp_sidecar.wire.jsonrpc import Message
from tests.healing.samples import batch, notification, request, response

FIRST, SECOND = Mark("tag", 1, ""), Mark("tag", 2, "2")


@pytest.mark.parametrize(
    ("heard", "answered", "dead"),
    [
        pytest.param([request("ping", id=0)], [], [0], id="open"),
        pytest.param([request("ping", id=0)], [response(0)], [], id="answered"),
        pytest.param([request("ping", id=0)], [response(0, error={"code": 1, "message": ""})], [], id="refused"),
        pytest.param([request("ping", id=0)], [response("0")], [0], id="another id"),
        pytest.param([request("ping", id=0)], [batch(response(9), response(0))], [], id="answered in a batch"),
        pytest.param([batch(request("ping", id=0), request("ping", id="a"))], [], [0, "a"], id="asked in a batch"),
        pytest.param(
            [request("ping", id=0), notification("notifications/cancelled", requestId=0)], [], [], id="given up"
        ),
        pytest.param([response(0), notification("notifications/message")], [], [], id="no question"),
        pytest.param([request("ping", id="x" * (MAX_ID_CHARS + 1))], [], [], id="an id without end"),
    ],
)
def test_which_are_open(heard: list[Message], answered: list[Message], dead: list[object]) -> None:
    """Asked, and neither answered nor given up."""
    memory = Questions()
    for message in heard:
        memory.heard(message, FIRST)
    for message in answered:
        memory.answered(message)
    assert memory.take_dead(1) == []
    assert memory.take_dead(2) == dead
    assert memory.take_dead(2) == []


def test_they_are_known_as_the_client_sees_them() -> None:
    """From the second generation on under a marked id; those of the present generation live."""
    memory = Questions()
    memory.heard(request("ping", id=0), FIRST)
    memory.heard(request("ping", id=0), SECOND)
    memory.heard(request("ping", id=1), SECOND)
    memory.heard(notification("notifications/cancelled", requestId=1), SECOND)
    assert memory.take_dead(2) == [0]
    assert memory.take_dead(3) == ["tag.2.0"]


@pytest.mark.long
def test_a_million_questions() -> None:
    """The latest are kept."""
    memory = Questions()
    one = request("ping", id=0)
    for n in range(1_000_000):
        memory.heard(Message(one.kind, "ping", n, one.value), FIRST)
    assert memory.take_dead(2) == list(range(1_000_000 - MAX_QUESTIONS, 1_000_000))
