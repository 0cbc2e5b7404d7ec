"""What `probe` prints: for people, or as JSON. Ids and tokens of sessions are in neither."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from typing import Any

from mcp_sidecar.commands.probe.findings import Finding, Level, Outcome, Report, judged
from mcp_sidecar.commands.probe.questions import Seen
from mcp_sidecar.commands.probe.restart import Restarted

TITLES = {
    Outcome.HEALABLE: "healable",
    Outcome.NOT_HEALABLE: "not healable",
    Outcome.UNKNOWN: "not to be told yet",
    Outcome.NO_MCP_SERVER: "no MCP server",
}
TOPIC_WIDTH = 18
SIGNS = {Level.GOOD: ("+", "32"), Level.PLAIN: (" ", ""), Level.BAD: ("!", "31")}


def text(seen: Seen, report: Report, restarted: Restarted | None, *, width: int, coloured: bool) -> str:
    """For people: the answer to their question first."""
    paint = _painter(coloured=coloured)
    colour = "32" if report.outcome.exit_status == 0 else "31"
    title = textwrap.wrap(f"{TITLES[report.outcome]}: {report.summary}", width, break_long_words=False)
    lines = [*(paint(line, colour) for line in title), f"  {seen.url}", ""]
    for finding in report.findings:
        lines += _lines(finding, width, coloured=coloured)
    if restarted is not None:
        word = "the call after the restart succeeded" if restarted.is_whole else "the call after the restart failed"
        lines += ["", paint(word, "32" if restarted.is_whole else "31")]
    return "\n".join(lines) + "\n"


def _lines(finding: Finding, width: int, *, coloured: bool) -> Iterator[str]:
    sign, colour = SIGNS[finding.level]
    paint = _painter(coloured=coloured)
    for number, line in enumerate(_wrapped(finding.text, width)):
        topic = finding.topic if number == 0 else ""
        yield f"{paint(sign if number == 0 else ' ', colour)} {topic:<{TOPIC_WIDTH}}{line}"
    for line in _wrapped(f"→ {finding.advice}", width) if finding.advice else ():
        yield f"  {'':<{TOPIC_WIDTH}}{line}"


def _wrapped(said: str, width: int) -> list[str]:
    return textwrap.wrap(said, max(40, width - TOPIC_WIDTH - 3), break_long_words=False, break_on_hyphens=False)


def _painter(*, coloured: bool) -> Any:
    return lambda said, colour: f"\x1b[{colour}m{said}\x1b[0m" if coloured and colour else said


def may_colour(*, is_terminal: bool) -> bool:
    """Colour for a terminal that can, unless the user said no (https://no-color.org)."""
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def as_json(seen: Seen, report: Report, restarted: Restarted | None) -> str:
    """For scripts."""
    answers = {}
    for kind, answered in seen.answers.items():
        judgement = judged(answered)
        answers[kind] = {
            "http_method": answered.http_method,
            "rpc_method": answered.rpc_method,
            "session": answered.sender.session,
            "status": answered.said.status if answered.said is not None else None,
            "media_type": answered.said.media_type if answered.said is not None else None,
            "verdict": judgement.verdict.value if judgement is not None else None,
            "signature": judgement.signature.name
            if judgement is not None and judgement.signature is not None
            else None,
            "fault": answered.why or None,
        }
    value: dict[str, Any] = {
        "url": seen.url,
        "outcome": report.outcome.value,
        "summary": report.summary,
        "findings": [
            {"topic": each.topic, "level": each.level.value, "text": each.text, "advice": each.advice or None}
            for each in report.findings
        ],
        "answers": answers,
    }
    if restarted is not None:
        value["restart"] = {"healed": restarted.is_whole, "steps": list(restarted.steps)}
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
