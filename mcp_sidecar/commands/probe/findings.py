"""What the answers of a server mean for the sidecar in front of it, in words.

The rule of this file: it knows nothing of servers. Whether an answer means a lost session is the proxy's own judgement, by
its own table; here stands only how that is said, and what to do about it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from urllib.parse import urljoin

from mcp_sidecar.commands.mcp_client import REQUEST_ID, Said
from mcp_sidecar.commands.probe.questions import PINGS_ON_NEW_CONNECTIONS, Answered, Seen
from mcp_sidecar.config import AFFINITY_COOKIES
from mcp_sidecar.healing.replies import SESSION_NOT_FOUND
from mcp_sidecar.verdicts.classify import AnswerHead, Judgement, RequestFacts, SessionKnowledge, Verdict, judge_body
from mcp_sidecar.verdicts.refusals import BROKEN, PingAnswer, PingVerdict, judge_ping
from mcp_sidecar.verdicts.words import said_in
from mcp_sidecar.wire.cookies import is_named
from mcp_sidecar.wire.revisions import FIRST_SESSIONLESS

ADVICE: Final = {
    "no connection": "start the server, or look at host and port",
    "its certificate is not trusted": "name its authority's in MCP_SIDECAR_UPSTREAM__CA_FILE (`upstream.ca_file`)",
    "the TLS handshake failed": "does it speak TLS on this port? else the URL begins with http://",
}
"""What to do about a server that does not answer, by the reason."""


class Outcome(Enum):
    """What `probe` found. The value is how it is said in JSON, ``exit_status`` what the process ends with."""

    HEALABLE = "healable"
    NOT_HEALABLE = "not_healable"
    UNKNOWN = "unknown"
    NO_MCP_SERVER = "no_mcp_server"

    @property
    def exit_status(self) -> int:
        """0, 3 or 4."""
        return {"healable": 0, "not_healable": 3, "unknown": 3, "no_mcp_server": 4}[self.value]


class Level(Enum):
    """How good a finding is for whoever puts the sidecar there."""

    GOOD = "good"
    PLAIN = "plain"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found, and what to do about it if anything."""

    topic: str
    text: str
    level: Level = Level.PLAIN
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is said about a server."""

    outcome: Outcome
    summary: str
    findings: tuple[Finding, ...]


def judged(answered: Answered) -> Judgement | None:
    """The proxy's judgement of an answer, as if the id were of a session of its own; ``None`` where nothing came."""
    said = answered.said
    if said is None:
        return None
    sender = answered.sender
    facts = RequestFacts(
        answered.http_method,
        answered.rpc_method,
        SessionKnowledge.NONE if sender.session == "none" else SessionKnowledge.BOUND,
        rpc_ids=frozenset({REQUEST_ID}) if answered.rpc_method is not None else frozenset(),
        session_id=sender.id,
    )
    head = AnswerHead(said.status, said.header("Content-Type"), www_authenticate=_is_challenge(said))
    return judge_body(facts, head, said.body, complete=True)


def pinged(answered: Answered) -> PingAnswer:
    """What the proxy takes the answer to a ping for."""
    said, judgement = answered.said, judged(answered)
    if said is None:
        return BROKEN
    return judge_ping(
        said.status,
        said.body,
        ping_id=REQUEST_ID,
        without=(answered.sender.id,) if answered.sender.id is not None else (),
        challenged=_is_challenge(said),
        is_known_loss=judgement is not None and judgement.verdict is Verdict.SESSION_LOST,
    )


def _is_challenge(said: Said) -> bool:
    return said.header("WWW-Authenticate") is not None


def report_on(seen: Seen) -> Report:
    """Say what it all means."""
    for decide in (_nothing_there, _elsewhere, _needs_credentials, _only_modern, _no_mcp, _without_sessions):
        found = decide(seen)
        if found is not None:
            return found
    return _with_sessions(seen)


# -- what is no server with sessions --------------------------------------------------------------------------------------


def _nothing_there(seen: Seen) -> Report | None:
    answered = seen.answers["initialize"]
    if answered.said is not None:
        return None
    advice = ADVICE.get(answered.why, "")
    finding = Finding("server", f"nobody answers at {seen.url}: {answered.why}", Level.BAD, advice)
    return Report(Outcome.NO_MCP_SERVER, f"nobody answers ({answered.why})", (finding,))


def _elsewhere(seen: Seen) -> Report | None:
    said = seen.said("initialize")
    if said is None or not 300 <= said.status < 400:
        return None
    location = said.header("Location")
    to = urljoin(seen.url, location) if location else "nowhere"
    text = (
        f"a POST is redirected to {to} ({said.status}); the sidecar passes redirects on, and most clients do not follow"
    )
    advice = f"probe and use that URL: {to}"
    return Report(Outcome.UNKNOWN, f"it redirects to {to}", (Finding("redirect", text, Level.BAD, advice),))


def _needs_credentials(seen: Seen) -> Report | None:
    status = seen.status("initialize")
    if status not in (401, 403) or (seen.status("discover") == 200 and seen.result("discover")):
        return None
    oauth = seen.status("oauth") == 200
    how = "OAuth (it publishes its authorization server)" if oauth else "a credential"
    text = f"it answers {status} to a client without a token: it wants {how}; genuine 401 and 403 pass the sidecar untouched"
    advice = "probe again with --header 'Authorization: Bearer …' to see what it says to sessions"
    if seen.has_credentials:
        text, advice = f"it answers {status} to the credential that was given", "give another one with --header"
    lacks = "the credential is refused" if seen.has_credentials else "it is behind a login"
    return Report(Outcome.UNKNOWN, lacks, (
        Finding("credentials", text, Level.BAD, advice),
    ))  # fmt: skip


def _only_modern(seen: Seen) -> Report | None:
    if not seen.result("discover") or seen.result("initialize"):
        return None
    text = f"it speaks {FIRST_SESSIONLESS} only, which has no sessions: nothing can be lost, everything passes byte for byte"
    more = "while the server is away, requests wait up to `healing.hold_timeout`; what was cut is told as such"
    findings = (Finding("revisions", text, Level.GOOD), Finding("outages", more))
    return Report(
        Outcome.HEALABLE, f"no sessions ({FIRST_SESSIONLESS}): passes untouched, outages are absorbed", findings
    )


def _no_mcp(seen: Seen) -> Report | None:
    if seen.result("initialize"):
        return None
    said = seen.said("initialize")
    assert said is not None
    form = said.media_type or "no content type"
    spoken = next((error["message"] for each in said.messages if isinstance(error := each.get("error"), dict)
                   and isinstance(error.get("message"), str)), "")  # fmt: skip
    text = f"it answers {said.status} ({form}) to initialize" + (f": {spoken[:120]}" if spoken else "")
    judgement = judged(seen.answers["initialize"])
    older = seen.said("plain-get")
    advice = ""
    if spoken:
        kind = "a JSON-RPC server that refuses the handshake"
    elif judgement is not None and judgement.verdict is Verdict.UNAVAILABLE:
        kind, advice = "a gateway without its server", "start the server, and probe again"
    elif older is not None and older.status == 200 and older.media_type == "text/event-stream":
        kind = "a server of the HTTP+SSE transport (2024-11-05), whose sessions end with their stream,"
        advice = "the sidecar passes it on and heals nothing; serve Streamable HTTP"
    else:
        kind = "no MCP endpoint"
        advice = "look at the path of the URL: it is often /mcp" if said.status in (404, 405, 200) else ""
    return Report(Outcome.NO_MCP_SERVER, f"{kind} at {seen.url}", (Finding("server", text, Level.BAD, advice),))


def _without_sessions(seen: Seen) -> Report | None:
    if seen.session_id is not None:
        return None
    text = "it gives out no session id (stateless): there is nothing to lose in a restart"
    more = "while the server is away, calls wait up to `healing.hold_timeout` (15 s) and go through when it is back"
    findings = (
        *_general(seen),
        Finding("sessions", text, Level.GOOD),
        Finding("outages", more, Level.GOOD),
        *_edges(seen),
    )
    return Report(Outcome.HEALABLE, "no sessions: nothing to heal, outages are absorbed", findings)


# -- sessions ---------------------------------------------------------------------------------------------------------


def _with_sessions(seen: Seen) -> Report:
    restart = tuple(_in_a_restart(seen))
    bad = [finding for finding in restart if finding.level is Level.BAD]
    findings = (*_general(seen), *restart, *_replicas(seen), *_edges(seen))
    if bad:
        return Report(Outcome.NOT_HEALABLE, bad[0].text, findings)
    if _takes_any_id(seen):
        return Report(Outcome.HEALABLE, "it takes any session id: a restart loses nobody, and is never told", findings)
    first = judged(seen.answers["made-up-post"])
    how = "recognised at once" if first is not None and first.verdict is Verdict.SESSION_LOST else "found out by asking"
    return Report(Outcome.HEALABLE, f"a restart is {how}; clients keep their sessions", findings)


def _takes_any_id(seen: Seen) -> bool:
    return bool(seen.result("made-up-post"))


def _in_a_restart(seen: Seen) -> Iterator[Finding]:
    post, ping = seen.answers["made-up-post"], seen.answers["made-up-ping"]
    judgement = judged(post)
    said = post.said
    if judgement is None or said is None:
        yield Finding("lost sessions", f"no answer to an id that it does not know: {post.why}", Level.BAD)
        return
    if _takes_any_id(seen):
        yield Finding(
            "lost sessions",
            "it takes any session id, and never says that it has forgotten one: calls go on after a restart by themselves",
            Level.PLAIN,
            "where a connection breaks, log level and subscriptions are said again and lists compared; what else the server "
            "keeps in a session is gone without a word, unless it refuses ids that it does not know",
        )
        return
    if said.media_type == "text/plain" and said.body == SESSION_NOT_FOUND.body:
        text = "this is the answer of a sidecar, not of a server"
        yield Finding(
            "sidecar", text, Level.PLAIN, "probe the server behind it: what it says to lost sessions never comes here"
        )
    shown = _shown(post)
    if judgement.verdict is Verdict.SESSION_LOST and judgement.signature is not None:
        row = judgement.signature
        yield Finding("lost sessions", f"{shown} is row `{row.name}` of the table: recognised at once", Level.GOOD)
    elif judgement.verdict is Verdict.ASK:
        yield Finding("lost sessions", f"{shown} is in no row of the table: the sidecar asks with a ping", Level.PLAIN)
    else:
        reason = NOT_ASKED.get(judgement.verdict, "not about a session as far as anybody can tell")
        yield Finding(
            "lost sessions", f"{shown} is {reason}: it passes, and clients are stuck", Level.BAD, _row_for(said)
        )
        return
    yield from _asked(judgement, ping)
    yield from _other_methods(seen)


NOT_ASKED: Final = {
    Verdict.AUTH_FAILURE: "about a login, perhaps",
    Verdict.UNAVAILABLE: "what a gateway says while its server is away",
}


def _asked(judgement: Judgement, ping: Answered) -> Iterator[Finding]:
    """Whether a ping tells the truth, and whether it proves that the call did not run."""
    found = pinged(ping)
    if found.verdict is PingVerdict.REFUSED and judgement.refusal is not None:
        if judgement.refusal.is_same_as(found.refusal):
            text = "a ping is refused in the same words: proof that the call did not run, so every call is sent again"
            yield Finding("ping", text, Level.GOOD)
            return
        text = f"a ping is refused in other words ({_shown(ping)}): the session is lost, but a call may have run"
        advice = "give tools readOnlyHint or idempotentHint where it is true: those are sent again, others get an error"
        yield Finding("ping", text, Level.PLAIN, advice)
    elif found.verdict is PingVerdict.ALIVE:
        text = "a ping in a session that is gone is answered: it cannot tell a lost session"
        yield Finding("ping", text, Level.PLAIN if judgement.verdict is Verdict.SESSION_LOST else Level.BAD)
    else:
        shown = _shown(ping) if ping.said is not None else ping.why
        yield Finding("ping", f"a ping in a session that is gone tells nothing ({shown})", Level.BAD)


def _other_methods(seen: Seen) -> Iterator[Finding]:
    for kind, what in (
        ("made-up-get", "GET"),
        ("made-up-delete", "DELETE"),
    ):
        answered = seen.answers.get(kind)
        judgement = judged(answered) if answered is not None else None
        if answered is None or answered.said is None or judgement is None:
            continue
        if judgement.signature is not None:
            meaning = f"row `{judgement.signature.name}`"
        else:
            meaning = {"ok": "taken as if known", "auth_failure": "as about a login"}.get(
                judgement.verdict.value, "asked about"
            )
        yield Finding(what, f"for an id that it does not know: {_shown(answered)} ({meaning})")


def _row_for(said: Said) -> str:
    spoken = _spoken(said)
    if said.header("WWW-Authenticate") is not None or not spoken:
        return "let the server answer 404 to a session id that it does not know"
    return f"in the configuration: healing.signatures = [{{status = {said.status}, text = {spoken[:80]!r}}}]"


# -- everything else ----------------------------------------------------------------------------------------------------


def _general(seen: Seen) -> Iterator[Finding]:
    info = seen.result("initialize").get("serverInfo")
    name = (
        " ".join(str(info[key]) for key in ("name", "version") if info.get(key))
        if isinstance(info, dict)
        else "unnamed"
    )
    yield Finding("server", f"{name}, at revision {seen.version}", Level.GOOD)
    older = [
        kind.removeprefix("initialize-")
        for kind in seen.answers
        if kind.startswith("initialize-")
        and seen.result(kind).get("protocolVersion") == kind.removeprefix("initialize-")
    ]
    modern = [FIRST_SESSIONLESS] if seen.result("discover") else []
    yield Finding("revisions", ", ".join(sorted({*older, seen.version, *modern})))
    forms = {"text/event-stream": "an event stream", "application/json": "JSON"}
    tools = seen.said("tools")
    if tools is not None:
        with_ids = tools.media_type == "text/event-stream" and b"\nid:" in b"\n" + tools.body
        resumable = "; events bear ids, so that a stream can be resumed" if with_ids else ""
        yield Finding("answers", f"{forms.get(tools.media_type, tools.media_type or 'nothing')}{resumable}")
        yield from _about_tools(seen.result("tools"))
    listen = seen.said("listen")
    if listen is not None:
        is_open = listen.status == 200 and listen.media_type == "text/event-stream"
        yield Finding("listening stream", "yes: kept open through a restart" if is_open else f"none ({listen.status})")


def _about_tools(result: Mapping[str, Any]) -> Iterator[Finding]:
    tools = [tool for tool in result.get("tools", ()) if isinstance(tool, dict)]
    if not tools:
        return
    hints = [tool["annotations"] for tool in tools if isinstance(tool.get("annotations"), dict)]
    safe = sum(bool(hint.get("readOnlyHint") or hint.get("idempotentHint")) for hint in hints)
    text = f"{len(tools)}, of which {safe} say that they may run twice"
    advice = (
        "" if safe else "a call that breaks half-way is sent again only for tools with readOnlyHint or idempotentHint"
    )
    yield Finding("tools", text, Level.PLAIN, advice)


def _replicas(seen: Seen) -> Iterator[Finding]:
    pings = [seen.said(f"ping-{number}") for number in range(PINGS_ON_NEW_CONNECTIONS)]
    refused = sum(ping is not None and ping.status >= 400 for ping in pings)
    if refused:
        text = f"{refused} of {len(pings)} pings of a live session were refused: several servers that do not share sessions"
        yield Finding("replicas", text, Level.BAD, "put a sidecar beside each of them, or give the balancer affinity")


def _edges(seen: Seen) -> Iterator[Finding]:
    wrong = seen.status("wrong-token")
    if wrong:
        checks = wrong in (401, 403)
        yield Finding("credentials", f"a wrong token gets {wrong}" + ("" if checks else ": they are not checked"))
    host = seen.status("foreign-host")
    if host:
        refused = host in (400, 403, 421)
        more = ": behind a container's name, look at `upstream.host_header`" if refused else ""
        yield Finding("Host", f"a foreign one gets {host}{more}")
    preflight = seen.said("preflight")
    allowed = preflight.header("Access-Control-Allow-Origin") if preflight is not None else None
    yield Finding(
        "browsers", f"pages may call ({allowed})" if allowed else "no CORS: pages of another origin cannot call"
    )
    cookies = _cookies(seen)
    if cookies:
        known = [name for name in cookies if is_named(name, AFFINITY_COOKIES)]
        meaning = "a balancer's" if known else "not known as a balancer's; see `upstream.affinity_cookies` if it is one"
        yield Finding("cookies", f"{', '.join(cookies)}: {meaning}")
    waits = sorted(
        {kind for kind, each in seen.answers.items() if each.said is not None and each.said.header("Retry-After")}
    )
    if waits:
        yield Finding("Retry-After", f"said to: {', '.join(waits)}")


def _cookies(seen: Seen) -> list[str]:
    said = seen.said("initialize")
    pairs = said.headers if said is not None else ()
    return [value.partition("=")[0].strip() for name, value in pairs if name.lower() == "set-cookie"]


def _shown(answered: Answered) -> str:
    assert answered.said is not None, "only answers are shown"
    spoken = _spoken(answered.said)
    if answered.sender.id:
        spoken = spoken.replace(answered.sender.id, "…")
    return f"{answered.said.status} “{spoken[:80]}”" if spoken else f"{answered.said.status} without a word"


def _spoken(said: Said) -> str:
    for message in said.messages:
        error = message.get("error")
        nested = error.get("message") if isinstance(error, dict) else error
        found = nested if isinstance(nested, str) else message.get("detail")
        if isinstance(found, str):
            return " ".join(found.split())
    text = said_in(said.body).text
    return "" if text.startswith(("<", "{", "[")) else " ".join(text.split())
