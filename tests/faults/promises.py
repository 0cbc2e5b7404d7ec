"""What the contract promises for a message that meets a fault, worked out from nothing but the tables beside this file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tests.faults.evidence import Case, Evidence
from tests.faults.traffic import Body, Kind, Safety, Traffic
from tests.support.client import Answer

SESSION_NOT_FOUND = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}'


class Knowledge(Enum):
    """What the sidecar knows of the session that a message names."""

    BOUND = "bound"
    UNKNOWN = "unknown"
    NONE = "none"


class Moment(Enum):
    """How long a fault lasts, and whether the sessions are gone afterwards."""

    ONCE = "once"
    ONCE_LOST = "once, then lost"
    LASTING = "until all wait"
    LASTING_LOST = "until all wait, then lost"
    FOREVER = "for ever"

    @property
    def loses(self) -> bool:
        return self in (Moment.ONCE_LOST, Moment.LASTING_LOST)

    @property
    def lasts(self) -> bool:
        return self in (Moment.LASTING, Moment.LASTING_LOST, Moment.FOREVER)


class Promise(Enum):
    """What the client gets."""

    SUCCESS = "success"
    UNAVAILABLE = "upstream_unavailable"
    UNKNOWN = "outcome_unknown"
    START_OVER = "the 404"
    UPSTREAMS = "the upstream's own answer"
    POLLING = "a stream that ends, and an event id"


@dataclass(frozen=True, slots=True)
class Scene:
    """One cell of the matrix."""

    case: Case
    traffic: Traffic
    knowledge: Knowledge
    moment: Moment
    trust_annotations: bool = True

    @property
    def in_session(self) -> bool:
        """Whether it is sent in a session that may be asked about."""
        return self.knowledge is Knowledge.BOUND and self.traffic.kind is not Kind.INITIALIZE

    @property
    def safe(self) -> bool:
        """Whether the message may run twice: of hints only those that were seen in this very session count."""
        if self.traffic.safety is Safety.HINTED:
            return self.trust_annotations and self.knowledge is Knowledge.BOUND
        return self.traffic.safety is Safety.HARMLESS


def promised(scene: Scene) -> Promise:
    """The promise for one cell."""
    silent, evidence = scene.traffic.kind is Kind.SILENT, scene.case.evidence
    if silent and scene.case.spoils_answers:
        return Promise.SUCCESS  # a 202 has nothing to spoil
    return _BY_EVIDENCE[evidence](scene)


def _again(scene: Scene) -> Promise:
    """The message is sent again, and the fault is over."""
    is_lost = scene.moment.loses and scene.traffic.kind is not Kind.INITIALIZE
    return Promise.START_OVER if is_lost and scene.knowledge is Knowledge.UNKNOWN else Promise.SUCCESS


def _not_sent(scene: Scene) -> Promise:
    return Promise.UNAVAILABLE if scene.moment in (Moment.ONCE, Moment.FOREVER) else _again(scene)


def _in_doubt(scene: Scene) -> Promise:
    return _again(scene) if scene.safe and not scene.moment.lasts else Promise.UNKNOWN


def _gateway(scene: Scene) -> Promise:
    if not scene.safe:
        return Promise.UNKNOWN
    return Promise.UNKNOWN if scene.moment is Moment.FOREVER else _again(scene)


def _resumable(scene: Scene) -> Promise:
    if not scene.in_session or scene.moment is Moment.ONCE_LOST:
        return _in_doubt(scene)
    return Promise.SUCCESS  # one event more after every break


def _route(scene: Scene) -> Promise:
    if scene.knowledge is Knowledge.UNKNOWN:
        return Promise.UPSTREAMS  # nothing has ever worked here
    if not scene.in_session:
        return _gateway(scene)  # nobody can be asked whether it was the server that said 404, after running it
    return _asked(scene)


def _asked(scene: Scene) -> Promise:
    """A refusal in a session, about which a ping is asked; while the fault lasts that one is refused in the same words."""
    match scene.moment:
        case Moment.ONCE:
            return Promise.UPSTREAMS  # the session lives: some server may have run it and said so
        case Moment.ONCE_LOST:
            return Promise.SUCCESS if scene.safe else Promise.UNKNOWN  # lost in other words: it may have run
        case Moment.FOREVER:
            return Promise.UNAVAILABLE
        case _:
            return Promise.SUCCESS


def _busy(scene: Scene) -> Promise:
    return _asked(scene) if scene.in_session else Promise.UPSTREAMS


def _error(scene: Scene) -> Promise:
    """Whatever broke a server may have begun with this very request: the same error again proves nothing."""
    if not scene.in_session or scene.moment is Moment.ONCE:
        return Promise.UPSTREAMS
    return _gateway(scene)


def _ended(scene: Scene) -> Promise:
    return _gateway(scene) if scene.in_session else _in_doubt(scene)


_BY_EVIDENCE: dict[Evidence, Callable[[Scene], Promise]] = {
    Evidence.NOT_SENT: _not_sent,
    Evidence.IN_DOUBT: _in_doubt,
    Evidence.STALLED: _in_doubt,
    Evidence.GATEWAY: _gateway,
    Evidence.ROUTE: _route,
    Evidence.BUSY: _busy,
    Evidence.ERROR: _error,
    Evidence.ENDED: _ended,
    Evidence.RESUMABLE: _resumable,
    Evidence.POLLING: lambda _: Promise.POLLING,
}


# -- has it been kept? ------------------------------------------------------------------------------------------------


def breaches(scene: Scene, sent: Body, answer: Answer) -> list[str]:
    """What is wrong with an answer; empty where the promise was kept."""
    promise = promised(scene)
    if answer.broken is not None:
        return [f"broken off: {answer.broken!r} after {answer.status} {answer.body[:80]!r}"]
    found = _CHECKS[promise](scene, sent, answer)
    return [f"{problem}; promised: {promise.value}; got {answer.status} {answer.body[:300]!r}" for problem in found]


def _success(scene: Scene, sent: Body, answer: Answer) -> list[str]:
    if scene.traffic.kind is Kind.SILENT:
        return [] if answer.status == 202 else ["not 202"]
    if answer.status != 200:
        return ["not 200"]
    return [problem for response in _responses(answer) for problem in _wrong_result(scene, response)] + _wrong_ids(
        sent, answer
    )


def _wrong_result(scene: Scene, response: dict[str, Any]) -> list[str]:
    if scene.traffic.name == "unknown-method":
        return [] if response.get("error", {}).get("code") == -32601 else ["not the upstream's error"]
    if "result" not in response:
        return ["no result"]
    if scene.traffic.name in ("echo", "task") and response["result"]["content"][0]["text"] != "hello":
        return ["wrong result"]
    return []


def _error_of_ours(scene: Scene, sent: Body, answer: Answer) -> list[str]:
    reason = promised(scene).value
    match scene.traffic.kind:
        case Kind.SILENT:
            return [] if (answer.status, answer.body) == (202, b"") else ["not an empty 202"]
        case Kind.INITIALIZE if answer.content_type != "text/event-stream":
            if answer.status != 503 or "Retry-After" not in answer.headers:
                return ["not 503 with Retry-After"]
            reason = "upstream_unavailable"
        case _ if answer.status != 200:
            return ["not 200"]
    errors = [response.get("error", {}) for response in _responses(answer)]
    if scene.traffic.kind is Kind.INITIALIZE:
        reason = errors[-1].get("data", {}).get("reason", "") if errors else ""
    wrong = [error for error in errors if error.get("code") != -32603 or error.get("data") != {"reason": reason}]
    return ([f"not the error {reason}"] if wrong else []) + _wrong_ids(sent, answer)


def _start_over(scene: Scene, sent: Body, answer: Answer) -> list[str]:
    if answer.content_type == "text/event-stream":  # too late for another status
        reasons = [response.get("error", {}).get("data") for response in _responses(answer)]
        wrong = reasons[-1:] != [{"reason": "session_lost"}]
        return (["not the error session_lost"] if wrong else []) + _wrong_ids(sent, answer)
    exact = answer.status == 404 and answer.body == SESSION_NOT_FOUND and answer.content_type == "text/plain"
    return [] if exact else ["not the exact 404"]


def _upstreams(scene: Scene, sent: Body, answer: Answer) -> list[str]:
    expected = {Evidence.ROUTE: (404,), Evidence.BUSY: (503,), Evidence.ERROR: (500,)}[scene.case.evidence]
    return [] if answer.status in expected and answer.body != SESSION_NOT_FOUND else ["not what the upstream said"]


def _polling(scene: Scene, sent: Body, answer: Answer) -> list[str]:
    ids = [event.event_id for event in answer.events]
    return [] if answer.status == 200 and ids and ids[-1] and not _responses(answer) else ["not a polling stream"]


_CHECKS = {
    Promise.SUCCESS: _success,
    Promise.UNAVAILABLE: _error_of_ours,
    Promise.UNKNOWN: _error_of_ours,
    Promise.START_OVER: _start_over,
    Promise.UPSTREAMS: _upstreams,
    Promise.POLLING: _polling,
}


def _responses(answer: Answer) -> list[dict[str, Any]]:
    """Every JSON-RPC response in an answer, those of arrays included."""
    flat: list[dict[str, Any]] = []
    for message in answer.messages:
        flat += message if isinstance(message, list) else [message]
    return [message for message in flat if "result" in message or "error" in message]


def _wrong_ids(sent: Body, answer: Answer) -> list[str]:
    members = sent if isinstance(sent, list) else [sent]
    asked = [json.dumps(message["id"]) for message in members if "method" in message and "id" in message]
    told = [json.dumps(response.get("id")) for response in _responses(answer)]
    problems = [] if sorted(asked) == sorted(told) else [f"ids {told} for {asked}"]
    is_array = answer.content_type == "application/json" and answer.body.lstrip().startswith(b"[")
    if answer.content_type == "application/json" and is_array != isinstance(sent, list):
        problems.append("array and single mixed up")
    return problems
