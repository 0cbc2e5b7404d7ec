"""The status page as text: one page of our own, with nothing from elsewhere, that is whole without its script.

The law of this file: every value is escaped. The live part is drawn here and nowhere else; the script only puts the next one
in its place.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from mcp_sidecar.facts import CallOutcome
from mcp_sidecar.ops.status import MINUTES, Event, Picture, Program, Totals

MAX_PROGRAMS = 12

_KINDS: tuple[tuple[str, str, frozenset[str]], ...] = (
    ("ok", "answered", frozenset({CallOutcome.ANSWERED.value})),
    (
        "saved",
        "answered after a heal or a hold",
        frozenset({CallOutcome.ANSWERED_AFTER_HEAL.value, CallOutcome.ANSWERED_AFTER_HOLD.value}),
    ),
    (
        "bad",
        "failed: away, unknown, session lost",
        frozenset({CallOutcome.UNAVAILABLE.value, CallOutcome.UNKNOWN.value, CallOutcome.SESSION_LOST.value}),
    ),
    ("other", "refused, or the client left", frozenset({CallOutcome.REJECTED.value, CallOutcome.CLIENT_LEFT.value})),
)
"""What the chart tells apart, from the bottom up."""

_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})

_BAR, _HEIGHT = 10, 100

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--dim:#535c66;--line:#d5dae0;--link:#0759b5;
--ok:#1a7f37;--saved:#0969da;--bad:#c3202b;--other:#6e7781;--okbg:#dcf5e3;--okink:#0f5526;--badbg:#fde4e3;--badink:#8a1019}
@media(prefers-color-scheme:dark){:root{--bg:#0e1217;--card:#161b22;--ink:#e6edf3;--dim:#a0abb7;--line:#303842;--link:#79b8ff;
--ok:#3fb950;--saved:#58a6ff;--bad:#f85149;--other:#8b949e;--okbg:#12301d;--okink:#8ae6a0;--badbg:#3b1517;--badink:#ffb3ad}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
header,main,footer,.static{max-width:64rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.2rem}h1{font-size:1.3rem;margin:0}
h2{font-size:1rem;margin:0 0 .5rem}p{margin:.2rem 0}.dim{color:var(--dim)}a{color:var(--link)}code{font-size:.92em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13.5rem,1fr));gap:.8rem;margin:1rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1rem;min-width:0;
margin-bottom:.8rem}
.cards .card{margin:0}.chip{display:inline-block;border-radius:1rem;padding:.05rem .7rem;font-weight:600}
.chip.ok{background:var(--okbg);color:var(--okink)}.chip.bad{background:var(--badbg);color:var(--badink)}
.big{font-size:1.5rem;font-weight:600}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.15rem .5rem .15rem 0;
vertical-align:top;overflow-wrap:anywhere}th{color:var(--dim);font-weight:600}td.n,th.n{text-align:right;white-space:nowrap}
time,td.t{white-space:nowrap}svg{width:100%;height:8rem;display:block;border-bottom:1px solid var(--line)}
rect.ok,i.ok{fill:var(--ok);background:var(--ok)}rect.saved,i.saved{fill:var(--saved);background:var(--saved)}
rect.bad,i.bad{fill:var(--bad);background:var(--bad)}rect.other,i.other{fill:var(--other);background:var(--other)}
i{display:inline-block;width:.7rem;height:.7rem;border-radius:.15rem;margin-right:.4rem}pre{overflow:auto;margin:.5rem 0 0}
.stale{outline:2px solid var(--bad)}footer{padding:1rem;color:var(--dim)}code{overflow-wrap:anywhere}
"""

_SCRIPT = """
const live=document.getElementById("live"),seen=document.getElementById("seen"),source=new EventSource("status");
source.onmessage=(event)=>{live.innerHTML=event.data;live.classList.remove("stale");seen.textContent="live"};
source.onerror=()=>{live.classList.add("stale");seen.textContent="not connected: what is shown may be old"};
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def escape(text: str) -> str:
    """The text, as it is shown in a page, in quotes, too. ``html`` knows far more, which takes half a MiB."""
    return text.translate(_ESCAPED)


@dataclass(frozen=True, slots=True)
class Part:
    """What somebody else adds to the page, with the style and the script that it needs. Its maker escapes what it shows."""

    html: str = ""
    style: str = ""
    script: str = ""


NO_PART = Part()


def policy(part: Part = NO_PART) -> str:
    """Nothing is loaded but the live part; should a name get through unescaped, it still could run nothing."""
    scripts = f"{_hash(_SCRIPT)} {_hash(part.script)}" if part.script else _hash(_SCRIPT)
    return (
        f"default-src 'none'; style-src {_hash(_STYLE + part.style)}; script-src {scripts}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>mcp-sidecar</title>'
    '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
    '<noscript><meta http-equiv="refresh" content="10"></noscript><style>{style}</style></head><body>'
    '<header><h1>mcp-sidecar</h1><p class="dim" id="seen">as of when this page was loaded</p></header>'
    '<main id="live">{status}</main><div class="static">{part}</div>'
    '<div class="static"><details class="card"><summary>Settings in effect</summary>'
    "<pre><code>{settings}</code></pre></details></div>"
    '<footer><a href="metrics">Metrics</a> · <a href="sessions?limit=100">Sessions</a> · '
    '<a href="readyz?upstream=1">Ready</a>'
    " · What each number means: docs/on-call.md</footer><script>{script}</script>{more}</body></html>"
)


def whole(status: str, settings: str, part: Part = NO_PART) -> str:
    """The page with its live part as it is now."""
    more = f"<script>{part.script}</script>" if part.script else ""
    return _PAGE.format(
        style=_STYLE + part.style, script=_SCRIPT, more=more, status=status, part=part.html, settings=escape(settings)
    )


def live(picture: Picture) -> str:
    """The live part, in one line."""
    now = picture.now
    cards = "".join(
        (
            _card("Upstream", _upstream(picture)),
            _card("Sessions", f'<p class="big">{now.load.sessions}</p><p>{now.load.streams} open streams</p>'),
            _card("Waiting", f'<p class="big">{now.load.held}</p><p>requests held now</p>'),
            _card("This sidecar", _sidecar(picture)),
        )
    )
    parts = (
        f'<div class="cards">{cards}</div>',
        _card("Calls in the last hour", _chart(picture.minutes)),
        _card("What happened", _events(picture.events)),
        _card("Clients", _programs(now.clients, "No client has a session.")),
        _card("Servers", _programs(now.servers, "No server has opened a session yet.")),
    )
    return "".join(parts).replace("\n", " ")


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h2>{escape(title)}</h2>{content}</section>'


def _upstream(picture: Picture) -> str:
    now = picture.now
    kind, word = ("ok", "up") if now.is_up else ("bad", "away")
    last = _time(now.last_answer) if now.last_answer else "none yet"
    return (
        f'<p><span class="chip {kind}">{word}</span> since {_time(picture.since)}</p>'
        f'<p><code>{escape(now.place.upstream_url)}</code></p><p class="dim">last good answer: {last}</p>'
    )


def _sidecar(picture: Picture) -> str:
    now = picture.now
    kind, word = ("bad", "draining") if now.is_draining else ("ok", "accepting")
    return (
        f'<p><span class="chip {kind}">{word}</span></p><p><code>{escape(now.place.url)}</code></p>'
        f'<p class="dim">version {escape(now.place.version)}, mode {escape(now.place.mode)}</p>'
    )


def _time(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%b %d, %H:%M:%S} UTC</time>'


def _clock(at: float) -> str:
    """The time of day; the rest is shown to whoever points at it."""
    moment = datetime.fromtimestamp(at, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}" title="{moment:%b %d, UTC}">{moment:%H:%M:%S}</time>'


def _chart(minutes: tuple[Totals, ...]) -> str:
    stacks = [[sum(minute.get(each, 0) for each in outcomes) for _, _, outcomes in _KINDS] for minute in minutes]
    most = max((sum(stack) for stack in stacks), default=0) or 1
    bars = []
    for place, stack in enumerate(stacks):
        top = float(_HEIGHT)
        for (kind, _, _), number in zip(_KINDS, stack, strict=True):
            height = number * _HEIGHT / most
            top -= height
            if number:
                bars.append(
                    f'<rect class="{kind}" x="{place * _BAR}" y="{top:.1f}" width="{_BAR - 2}" height="{height:.1f}"/>'
                )
    sums = [sum(column) for column in zip(*stacks, strict=True)]
    rows = "".join(
        f'<tr><td><i class="{kind}"></i>{escape(text)}</td><td class="n">{number}</td></tr>'
        for (kind, text, _), number in zip(_KINDS, sums, strict=True)
    )
    said = f"Calls per minute over the last hour, at most {most} in one; the table below has the sums."
    return (
        f'<svg viewBox="0 0 {MINUTES * _BAR} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f'{"".join(bars)}</svg><p class="dim">a bar is a minute, now at the right; '
        f"the highest has {most if any(sums) else 0}</p>"
        f"<table><tbody>{rows}</tbody></table>{_by_outcome(minutes)}"
    )


def _by_outcome(minutes: Iterable[Totals]) -> str:
    sums: Counter[str] = Counter()
    for minute in minutes:
        sums.update(minute)
    told = [f"{escape(outcome.value)} {sums[outcome.value]}" for outcome in CallOutcome if sums[outcome.value]]
    return f'<p class="dim">{", ".join(told)}</p>' if told else ""


def _events(events: tuple[Event, ...]) -> str:
    if not events:
        return '<p class="dim">Nothing that anybody would have noticed.</p>'
    rows = "".join(
        f'<tr><td class="t"><i class="{"bad" if event.is_bad else "saved"}"></i>{_clock(event.at)}</td>'
        f"<td>{escape(event.text)}</td></tr>"
        for event in events
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _programs(programs: tuple[Program, ...], none: str) -> str:
    if not programs:
        return f'<p class="dim">{escape(none)}</p>'
    rows = "".join(
        f'<tr><td>{escape(name or "(no name)")}</td><td>{escape(version)}</td><td class="n">{number}</td></tr>'
        for name, version, number in programs[:MAX_PROGRAMS]
    )
    more = sum(number for _, _, number in programs[MAX_PROGRAMS:])
    rest = f'<tr><td>others</td><td></td><td class="n">{more}</td></tr>' if more else ""
    return (
        '<table><thead><tr><th scope="col">name</th><th scope="col">version</th>'
        '<th scope="col" class="n">sessions</th></tr></thead>'
        f"<tbody>{rows}{rest}</tbody></table>"
    )
