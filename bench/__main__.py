"""``python -m bench setup | quick | full | report FILE``."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import contenders, environments, interpreter, machine, report, results
from bench.contenders import Contender, Kind
from bench.interpreter import NotMade
from bench.measures import MEASURES
from bench.plan import FULL, QUICK, Plan
from bench.results import Results
from bench.rig import Rig

PLANS: Final = {plan.name: plan for plan in (QUICK, FULL)}
KEPT: Final = environments.ROOT / ".cache" / "bench"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench", description="What standing in the way costs.")
    commands = whole.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="install what the bench needs: nginx, wrk, and proxies to compare with")
    for plan in PLANS.values():
        one = commands.add_parser(plan.name, help=f"the {plan.name} run")
        one.add_argument("--only", metavar="NAMES", help="contenders, comma-separated")
        one.add_argument("--measures", metavar="NAMES", help=f"some of {', '.join(MEASURES)}, comma-separated")
        one.add_argument("--rounds", type=int, help="more for a quieter median")
        one.add_argument("--against", metavar="FOLDER", type=Path, help="another checkout's sidecar in the same rounds")
        one.add_argument(
            "--python", metavar="PROGRAM", type=_program, help="another Python for all contenders that need one"
        )
        one.add_argument("--out", type=Path, help="where to keep the figures, instead of .cache/bench")
    showing = commands.add_parser("report", help="the tables of a run as Markdown")
    showing.add_argument("file", type=Path)
    return whole


def say(text: str) -> None:
    """Tell what is going on, apart from the tables."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do as told; exit status 1 if something is missing, 2 for a wrong name."""
    options = parser().parse_args(arguments)
    if options.command == "setup":
        return 0 if environments.set_up(say) else 1
    if options.command == "report":
        print(report.render(results.read(options.file), as_markdown=True), end="")
        return 0
    if missing := environments.missing_programs():
        say(f"{' and '.join(missing)} not found: run `make bench-setup`")
        return 1
    try:
        plan, chosen = _chosen(options)
        built = interpreter.description(options.python or sys.executable)
    except (ValueError, NotMade) as trouble:
        say(str(trouble))
        return 2
    # What was started is stopped on the way out, however that is asked for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run(plan, chosen, built, options.out)
    return 0


def _chosen(options: argparse.Namespace) -> tuple[Plan, list[Contender]]:
    plan = PLANS[options.command]
    if options.measures:
        plan = replace(plan, measures=_names(options.measures, MEASURES))
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    known = {contender.name: contender for contender in contenders.ALL}
    names = _names(options.only, known) if options.only else plan.contenders or tuple(known)
    chosen = [known[name] for name in names]
    if options.against:
        chosen.append(contenders.sidecar(options.against.resolve(), f"{contenders.SIDECAR} of {options.against.name}"))
    if options.python:
        chosen = [one for contender in chosen if (one := _on(contender, options.python))]
    for contender in chosen:
        if contender.missing:
            say(f"{contender.name} is left out: {', '.join(contender.missing)} not found (`make bench-setup`)")
    return plan, [contender for contender in chosen if not contender.missing]


def _program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"{name} not found")
    return Path(found).absolute()


def _on(contender: Contender, python: Path) -> Contender | None:
    try:
        return contender.on(python)
    except NotMade as trouble:
        if contender.kind is not Kind.MCP_PROXY:
            raise
        say(f"{contender.name} is left out: {trouble}")
        return None


def _names(given: str, known: Iterable[str]) -> tuple[str, ...]:
    # A name may hold a comma itself.
    known = list(known)
    names, rest = [], given
    while rest:
        found = max((name for name in known if rest == name or rest.startswith(f"{name},")), key=len, default=None)
        if found is None:
            raise ValueError(f"{rest!r}: known are {'; '.join(known)}")
        names.append(found)
        rest = rest[len(found) + 1 :]
    return tuple(names)


def run(plan: Plan, chosen: Sequence[Contender], built: Mapping[str, str], out: Path | None) -> None:
    """Measure, keep the figures, print the tables."""
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
    file = out or KEPT / f"{stamp}-{plan.name}.json"
    found = Results(
        {"run": plan.name, "at": stamp, **machine.description(), **built},
        {contender.name: {"kind": contender.kind.value, "form": contender.form} for contender in chosen},
    )
    with tempfile.TemporaryDirectory(prefix="mcp-sidecar-bench-") as name, Rig(Path(name), chosen, say) as rig:
        if rig.cores.are_shared:
            say("one core only: CPU per call can be compared, calls per second and delays cannot")
        for measure in plan.measures:
            MEASURES[measure](rig, plan, found)
            found.write(file)
    print(report.render(found), end="")
    say(f"figures: {file}")


if __name__ == "__main__":
    sys.exit(main())
