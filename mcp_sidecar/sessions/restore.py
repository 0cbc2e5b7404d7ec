"""Tell a new upstream session what the client had set in the one before, and judge what the server makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from mcp_sidecar.facts import Emit, RestoreRefused
from mcp_sidecar.healing.client_state import RestoreRequest
from mcp_sidecar.healing.session import UpstreamSessionId
from mcp_sidecar.sessions.judge import see
from mcp_sidecar.sessions.own_requests import OwnRequests, in_time, read_rpc_answer
from mcp_sidecar.sessions.ping import ping
from mcp_sidecar.upstream.answer import Answer, is_event_stream, is_json
from mcp_sidecar.verdicts.probes import StepVerdict, judge_step
from mcp_sidecar.verdicts.refusals import PingVerdict
from mcp_sidecar.verdicts.signatures import Signature

RESTORE_ID = "mcp-sidecar-restore"

ALL_STEPS_TIMEOUT_S = 30.0
"""How long all of it may take, well within what a heal may: what is not said by then counts as refused. A slow server and
many subscriptions would otherwise keep a session from ever being healed."""

_AFTER_PING = {
    PingVerdict.REFUSED: StepVerdict.LOST,
    PingVerdict.GATEWAY: StepVerdict.GATEWAY,
    PingVerdict.AWAY: StepVerdict.GATEWAY,
}
_GOES_ON = frozenset({StepVerdict.TAKEN, StepVerdict.REFUSED})


class Restore:
    """Says the same again, one thing after the other."""

    def __init__(self, own: OwnRequests, signatures: tuple[Signature, ...], max_answer_bytes: int, emit: Emit) -> None:
        """``signatures`` are the extra rows of what a lost session looks like."""
        self._own = own
        self._signatures = signatures
        self._max_answer_bytes = max_answer_bytes
        self._emit = emit

    async def run(
        self, upstream_id: UpstreamSessionId, capabilities: Mapping[str, Any], is_ours: Callable[[], bool]
    ) -> StepVerdict:
        """Say all of it to a server with these capabilities, as far as it takes it. Raises ``UpstreamFault``.

        Looks again at the end: the client may have set more meanwhile. ``is_ours``: the id was given to nobody else.
        """
        session = self._own.session
        assert session is not None, "it is somebody's session that is restored"
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + ALL_STEPS_TIMEOUT_S
        told: set[RestoreRequest] = set()
        while due := [one for one in session.client_state.to_restore(capabilities) if one not in told]:
            for request in due:
                if not is_ours():
                    return StepVerdict.LOST
                told.add(request)
                if clock() >= give_up_at:
                    self._emit(RestoreRefused(session.label, request.step))
                    continue
                verdict = await in_time(self._ask(request, f"{RESTORE_ID}-{len(told)}", upstream_id))
                if verdict not in _GOES_ON:
                    return verdict
                if verdict is StepVerdict.REFUSED:
                    self._emit(RestoreRefused(session.label, request.step))
        return StepVerdict.TAKEN

    async def judge(self, method: str, answer: Answer) -> StepVerdict:
        """Judge an answer in the new session. Only what may speak of it is read: a success does so in JSON alone."""
        is_read = is_json(answer) if 200 <= answer.status < 300 else not is_event_stream(answer)
        return judge_step(method, await see(answer, is_read=is_read), self._signatures)

    async def _ask(self, request: RestoreRequest, own_id: str, upstream_id: UpstreamSessionId) -> StepVerdict:
        async with await self._own.post(request.body(own_id), upstream_id) as answer:
            verdict = await self.judge(request.step.value, answer)
            if verdict is StepVerdict.TAKEN:
                message = await read_rpc_answer(answer, own_id, self._max_answer_bytes)
                return StepVerdict.REFUSED if message is None or message.error is not None else verdict
        if verdict is not StepVerdict.DOUBTFUL:
            return verdict
        found = await ping(self._own, upstream_id, self._signatures)
        return _AFTER_PING.get(found.verdict, StepVerdict.REFUSED)
