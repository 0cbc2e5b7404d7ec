"""The last calls, with what was asked and answered, on the status page of `dev`; and sending one of them again.

The rule of this file: all of it stays in the memory of this process, bounded in number and size. Nothing of it is logged, and
everything that is shown is escaped. Who may see it is decided by the admin listener.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from mcp_sidecar.commands.dev.calls import Ended
from mcp_sidecar.commands.mcp_client import (
    INITIALIZED,
    REQUEST_ID,
    SESSION_ID,
    McpClient,
    NoAnswer,
    Said,
    initialize,
    request,
)
from mcp_sidecar.ops.console import duration, local_time
from mcp_sidecar.ops.page import Part
from mcp_sidecar.wire.jsonrpc import Message

MAX_CALLS = 50
MAX_TEXT = 64 * 1024
"""Of what is shown of one call's arguments, and of its result; a call with larger arguments cannot be sent again."""
AGAIN_TIMEOUT_S = 60.0

_NONE = '<p class="dim" id="none">None yet.</p>'

_STYLE = """
#calls details{border-top:1px solid var(--line);padding:.25rem 0}#calls summary{cursor:pointer;overflow-wrap:anywhere}
#calls pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:24rem;background:var(--bg);padding:.5rem;
border-radius:.3rem}
#calls button{font:inherit;margin:.5rem .8rem .5rem 0;padding:.15rem .8rem;cursor:pointer}
"""

_SCRIPT = """
const calls=document.getElementById("calls"),most=+calls.dataset.most;
const newest=()=>+(calls.querySelector("details")?.dataset.number??0);
let looking=false;
async function look(){
if(looking)return;
looking=true;
try{const answer=await fetch("calls?after="+newest()),text=answer.ok?await answer.text():"";
if(text){document.getElementById("none")?.remove();calls.insertAdjacentHTML("afterbegin",text);
while(calls.children.length>most)calls.lastElementChild.remove()}}
catch{}finally{looking=false}}
setInterval(()=>{if(!document.hidden)look()},1000);
calls.addEventListener("click",async(event)=>{
const button=event.target.closest("button");
if(!button)return;
const said=button.nextElementSibling;
button.disabled=true;said.textContent="under way";
try{const answer=await fetch("calls/again?number="+button.closest("details").dataset.number,{method:"POST"});
said.textContent=await answer.text()}
catch{said.textContent="no answer: is dev still running?"}
finally{button.disabled=false;look()}});
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """One call that is over. ``params`` is ``None`` where they were too large to be kept; texts are JSON."""

    number: int
    at: str
    ended: Ended
    method: str
    params: dict[str, Any] | None
    revision: str | None
    asked: str
    answered: str


class KeptCalls:
    """The ``Calls`` of the admin listener under `dev`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``url``, the sidecar's own endpoint, is set once it is known. ``clock`` gives monotonic seconds."""
        self.url = ""
        self._clock = clock
        self._kept: deque[Kept] = deque(maxlen=MAX_CALLS)
        self._count = 0

    def keep(self, message: Message, ended: Ended, answer: dict[str, Any] | None) -> None:
        """A call has ended; ``answer`` is its JSON-RPC response, if it had one."""
        self._count += 1
        whole = _text(message.params.get("arguments", message.params))
        said = answer or {}
        answered = _text(said["error"] if "error" in said else said.get("result")) if answer is not None else ""
        params = message.params if len(whole) <= MAX_TEXT else None
        self._kept.appendleft(
            Kept(
                self._count,
                local_time(),
                ended,
                str(message.method),
                params,
                message.meta_protocol_version,
                _cut(whole),
                _cut(answered),
            )
        )

    # -- the page ---------------------------------------------------------------------------------------------------------

    def part(self) -> Part:
        """See ``Calls``."""
        listed = self.newer(0) or _NONE
        html = (
            '<section class="card"><h2>Last calls</h2><p class="dim">with arguments and results: kept in memory, shown to '
            f'this machine only</p><div id="calls" data-most="{MAX_CALLS}">{listed}</div></section>'
        )
        return Part(html, _STYLE, _SCRIPT)

    def newer(self, than: int) -> str:
        """See ``Calls``."""
        return "".join(_row(call) for call in self._kept if call.number > than)

    # -- again ------------------------------------------------------------------------------------------------------------

    async def again(self, number: int) -> str:
        """See ``Calls``. In a session of its own, through the sidecar: no client's session or credential is used."""
        call = next((call for call in self._kept if call.number == number), None)
        if call is None or call.params is None:
            return "it is not kept any more" if call is None else "its arguments were too large to be kept"
        started = self._clock()
        try:
            async with McpClient(self.url, timeout_s=AGAIN_TIMEOUT_S) as client:
                said = await (_modern(client, call) if call.revision else _in_session(client, call))
        except NoAnswer as error:
            return str(error)
        return f"{_outcome(said)} after {duration(self._clock() - started)}"


async def _modern(client: McpClient, call: Kept) -> Said:
    assert call.params is not None, "only what is kept is sent"
    name = call.params.get("name", call.params.get("uri", ""))
    headers = [("MCP-Protocol-Version", str(call.revision)), ("Mcp-Method", call.method), ("Mcp-Name", str(name))]
    return await client.post(request(call.method, call.params), None, None, headers)


async def _in_session(client: McpClient, call: Kept) -> Said:
    opened = await client.post(initialize(name="mcp-sidecar-dev"))
    result = opened.result_of(REQUEST_ID)
    if result is None:
        return opened
    key, version = opened.header(SESSION_ID), str(result.get("protocolVersion", ""))
    await client.post(INITIALIZED, key, version)
    said = await client.post(request(call.method, call.params), key, version)
    if key is not None:
        await client.delete(key, version)
    return said


def _outcome(said: Said) -> str:
    answer = said.answer_to(REQUEST_ID)
    if answer is None or said.status >= 400:
        return f"HTTP {said.status}"
    error, result = answer.get("error"), answer.get("result")
    if isinstance(error, dict):
        return f"error: {error.get('message', '')}"
    return "tool error" if isinstance(result, dict) and result.get("isError") else "ok"


def _row(call: Kept) -> str:
    ended = call.ended
    kind, outcome = ("bad", ended.problem) if ended.problem else ("ok", "ok")
    told = f"{ended.what} {duration(ended.seconds)} {outcome}".encode("utf-8", "backslashreplace").decode()
    button = "<button>Send again</button><span></span>" if call.params is not None else ""
    answered = f"<p>Result</p><pre>{escape(call.answered)}</pre>" if call.answered else ""
    return (
        f'<details data-number="{call.number}"><summary><i class="{kind}"></i>{call.at} {escape(told)}</summary>'
        f"<p>Arguments of <code>{escape(call.method)}</code></p><pre>{escape(call.asked)}</pre>{answered}{button}</details>"
    )


def _text(value: object) -> str:
    # Half a surrogate pair is JSON, and no text.
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n… {len(text) - MAX_TEXT} more characters"
