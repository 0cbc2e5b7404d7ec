"""What a session must be told again, and its bounds."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from mcp_sidecar.facts import RestoreStep
from mcp_sidecar.healing.client_state import (
    MAX_LEVEL_CHARS,
    MAX_SUBSCRIBED_CHARS,
    MAX_SUBSCRIPTIONS,
    ClientState,
    RestoreRequest,
)
from mcp_sidecar.verdicts.classify import Answer, AnswerHead
from mcp_sidecar.verdicts.probes import StepVerdict, judge_step
from mcp_sidecar.wire.jsonrpc import Message
from tests.healing.samples import request

ALL = {"logging": {}, "resources": {"subscribe": True}}


def remembered(*requests: Message) -> ClientState:
    return functools.reduce(ClientState.learnt, requests, ClientState())


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
            pytest.param([level("x" * (MAX_LEVEL_CHARS + 1))], [], id="no level"),
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
            memory = memory.learnt(unsubscribe(uri))
        for uri in long:
            memory = memory.learnt(subscribe(uri))
        assert list(memory.subscriptions) == [*long[2:4], *long[:2]]


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
        pytest.param(422, "application/json", '{"detail":"no"}', StepVerdict.DOUBTFUL, id="refused, or lost"),
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
