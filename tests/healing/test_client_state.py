"""What a session must be told again, what died with its old upstream session, and the bounds of both."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_sidecar.facts import HintKind, RestoreStep
from mcp_sidecar.healing.client_state import (
    MAX_QUESTIONS,
    MAX_SUBSCRIBED_CHARS,
    MAX_SUBSCRIPTIONS,
    MAX_WORD_CHARS,
    ClientState,
    RestoreRequest,
)
from mcp_sidecar.healing.marked_ids import Mark
from mcp_sidecar.verdicts.classify import Answer, AnswerHead
from mcp_sidecar.verdicts.probes import StepVerdict, judge_step
from mcp_sidecar.wire.jsonrpc import Message
from tests.healing.samples import batch, notification, request, response

ALL = {"logging": {}, "resources": {"subscribe": True}}
FIRST, SECOND = Mark("tag", 1), Mark("tag", 2)


def remembered(*requests: Message) -> ClientState:
    memory = ClientState()
    for one in requests:
        memory.learn(one)
    return memory


def level(value: object) -> Message:
    return request("logging/setLevel", level=value)


def subscribe(uri: object) -> Message:
    return request("resources/subscribe", uri=uri)


def unsubscribe(uri: object) -> Message:
    return request("resources/unsubscribe", uri=uri)


SAID = RestoreStep.SET_LEVEL, RestoreStep.SUBSCRIBE


class TestRestoring:
    """What is said again."""

    @pytest.mark.parametrize(
        ("learned", "expected"),
        [
            pytest.param([], [], id="nothing was set"),
            pytest.param([level("info"), level("error")], [(SAID[0], "error")], id="the last level"),
            pytest.param([subscribe("b"), subscribe("a")], [(SAID[1], "b"), (SAID[1], "a")], id="in their order"),
            pytest.param([subscribe("a"), subscribe("a")], [(SAID[1], "a")], id="once"),
            pytest.param([subscribe("a"), unsubscribe("a")], [], id="given up"),
            pytest.param([unsubscribe("a"), subscribe("a")], [(SAID[1], "a")], id="given up before"),
            pytest.param([subscribe("a"), level("info")], [(SAID[0], "info"), (SAID[1], "a")], id="the level first"),
            pytest.param([level(7), subscribe(None), request("ping")], [], id="not what it should be"),
            pytest.param([level("x" * (MAX_WORD_CHARS + 1))], [], id="no level"),
            pytest.param([subscribe("x" * (MAX_SUBSCRIBED_CHARS + 1))], [], id="too long"),
        ],
    )
    def test_what_is_in_force(self, learned: list[Message], expected: list[tuple[RestoreStep, str]]) -> None:
        """The last level, and each subscription that was not given up."""
        assert list(remembered(*learned).to_restore(ALL)) == [RestoreRequest(*one) for one in expected]

    @pytest.mark.parametrize(
        ("capabilities", "steps"),
        [
            pytest.param(ALL, [SAID[0], SAID[1]], id="all"),
            pytest.param({}, [], id="none"),
            pytest.param({"logging": {}}, [SAID[0]], id="logging"),
            pytest.param({"resources": {"subscribe": True}}, [SAID[1]], id="subscriptions"),
            pytest.param({"resources": {}}, [], id="resources"),
            pytest.param({"resources": {"subscribe": False}}, [], id="subscribe false"),
            pytest.param({"resources": True}, [], id="nonsense"),
        ],
    )
    def test_only_what_the_server_has(self, capabilities: dict[str, Any], steps: list[RestoreStep]) -> None:
        """A server that does not have it is not asked for it."""
        memory = remembered(level("info"), subscribe("a"))
        assert [one.step for one in memory.to_restore(capabilities)] == steps

    def test_the_request(self) -> None:
        """As a client would say it, under an id of ours."""
        assert json.loads(RestoreRequest(RestoreStep.SUBSCRIBE, "a").body("own-1")) == {
            "jsonrpc": "2.0",
            "id": "own-1",
            "method": "resources/subscribe",
            "params": {"uri": "a"},
        }

    def test_bounds(self) -> None:
        """So many subscriptions, and so many characters of them; what was given up makes room."""
        memory = remembered(*(subscribe(f"fake://{n}") for n in range(2 * MAX_SUBSCRIPTIONS)))
        assert len(memory.subscriptions) == MAX_SUBSCRIPTIONS
        long = [f"{n}".rjust(MAX_SUBSCRIBED_CHARS // 4, "x") for n in range(6)]
        memory = remembered(*map(subscribe, long))
        assert list(memory.subscriptions) == long[:4]
        for uri in (long[0], long[0], long[1]):
            memory.learn(unsubscribe(uri))
        for uri in long:
            memory.learn(subscribe(uri))
        assert list(memory.subscriptions) == [*long[2:4], *long[:2]]


class TestQuestions:
    """What the server asked."""

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
            pytest.param([request("ping", id="x" * (MAX_WORD_CHARS + 1))], [], [], id="an id without end"),
        ],
    )
    def test_which_are_open(self, heard: list[Message], answered: list[Message], dead: list[object]) -> None:
        """RequestLine, and neither answered nor given up."""
        memory = ClientState()
        for message in heard:
            memory.heard(message, FIRST)
        for message in answered:
            memory.answered(message)
        assert memory.take_dead_questions(1) == []
        assert memory.take_dead_questions(2) == dead
        assert memory.take_dead_questions(2) == []

    def test_they_are_known_as_the_client_sees_them(self) -> None:
        """From the second generation on under a marked id; those of the present generation live."""
        memory = ClientState()
        memory.heard(request("ping", id=0), FIRST)
        memory.heard(request("ping", id=0), SECOND)
        memory.heard(request("ping", id=1), SECOND)
        memory.heard(notification("notifications/cancelled", requestId=1), SECOND)
        assert memory.take_dead_questions(2) == [0]
        assert memory.take_dead_questions(3) == ["tag.2.0"]

    @pytest.mark.load
    def test_a_million_questions(self) -> None:
        """The latest are kept."""
        memory = ClientState()
        one = request("ping", id=0)
        for n in range(1_000_000):
            memory.heard(Message(one.kind, "ping", n, one.value), FIRST)
        assert list(memory.questions) == list(range(1_000_000 - MAX_QUESTIONS, 1_000_000))

    def test_hints(self) -> None:
        """The dead questions, then every resource that is subscribed to."""
        memory = remembered(subscribe("a"), subscribe("b"), level("info"))
        memory.heard(request("ping", id=0), FIRST)
        assert [hint.kind for hint in memory.take_hints(2)] == [
            HintKind.CANCELLED,
            HintKind.UPDATED,
            HintKind.UPDATED,
        ]
        assert [hint.kind for hint in memory.take_hints(2)] == [HintKind.UPDATED, HintKind.UPDATED]


NOT_FOUND = '{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Session not found"}}'


@pytest.mark.parametrize(
    ("status", "content_type", "body", "verdict"),
    [
        pytest.param(200, "application/json", '{"jsonrpc":"2.0","id":1,"result":{}}', StepVerdict.TAKEN, id="success"),
        pytest.param(200, "text/event-stream", "", StepVerdict.TAKEN, id="a stream"),
        pytest.param(202, None, "", StepVerdict.TAKEN, id="accepted"),
        pytest.param(404, "application/json", NOT_FOUND, StepVerdict.LOST, id="lost"),
        pytest.param(404, "text/plain", "404 page not found\n", StepVerdict.NO_ROUTE, id="a router's page"),
        pytest.param(502, "text/html", "<html></html>", StepVerdict.GATEWAY, id="an ingress's page"),
        pytest.param(403, "application/json", '{"error":"no"}', StepVerdict.REFUSED, id="forbidden"),
        pytest.param(422, "application/json", '{"detail":"no"}', StepVerdict.REFUSED, id="refused"),
        pytest.param(
            503,
            "application/json",
            '{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"busy"}}',
            StepVerdict.REFUSED,
            id="the server's own 503",
        ),
    ],
)
def test_steps(status: int, content_type: str | None, body: str, verdict: StepVerdict) -> None:
    """A refusal lets the heal go on; what shows that the new session is gone or was not reached does not."""
    answer = Answer(AnswerHead(status, content_type), body.encode())
    assert judge_step("logging/setLevel", answer) is verdict
