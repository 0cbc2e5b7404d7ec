"""What stands in ``deploy/`` is made of names that exist, and is accepted by the tools that read it, where they are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mcp_sidecar import facts
from mcp_sidecar.ops.metrics import Metrics
from mcp_sidecar.settings import KEYS

ROOT: Final = Path(__file__).resolve().parent.parent
VENVS: Final = ROOT / ".venvs"
DEPLOY: Final = ROOT / "deploy"
FILES: Final = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
CHART: Final = DEPLOY / "helm" / "mcp-sidecar"
DASHBOARD: Final = DEPLOY / "grafana" / "mcp-sidecar.json"
SHORT: Final = frozenset({"UPSTREAM", "LISTEN", "ADMIN", "MODE", "STORE", "CONFIG", "LOG_FORMAT", "LOG_LEVEL"})
WITHIN_S: Final = 60


def tool(name: str) -> str:
    """Where a program is, or the end of the test: not everybody has them."""
    found = shutil.which(name, path=str(VENVS / "chart-tools")) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def kustomize(folder: Path) -> str:
    """What stands in a folder, put together as `kubectl apply -k` would."""
    if shutil.which("kubectl") is not None:
        return output("kubectl", "kustomize", str(folder))
    return output(tool("kustomize"), "build", str(folder))


def output(*command: str) -> str:
    """What a program writes; its complaint is the failure."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics() -> dict[str, set[str]]:
    """The labels of every metric of ours, as queries name it."""
    made = Metrics()
    made.describe(version="1", mode="heal", store="memory")
    made.record(facts.RequestServed("POST", "tools/call", 200, 0.1, facts.CallOutcome.ANSWERED))
    made.record(facts.SessionLost("ab12", "python-404", 404, 1))
    made.record(facts.StoreAsked("get", 0.001, failed=True))
    made.record(facts.AnswerRewritten("ab12", 400))
    made.record(facts.OutcomeUnknown("ab12", "tools/call"))
    made._clients.read = lambda: {("mcp",): 1}
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(made.render(None)[0].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


QUERIES: Final = [
    (file.name, query)
    for file in FILES
    for query in re.findall(r"mcp_sidecar_\w+(?:\{[^{}]*\})?", file.read_text(encoding="utf-8").replace('\\"', '"'))
    if file.parent.name in ("grafana", "prometheus")
]


def test_there_are_queries() -> None:
    """Else the next test would hold of nothing."""
    assert len(QUERIES) > 30


@pytest.mark.parametrize(("file", "query"), sorted(set(QUERIES)))
def test_a_query_names_a_metric_and_labels_of_it(file: str, query: str) -> None:
    """A metric that is renamed, or a label, would leave a dark panel and an alert that never comes."""
    name, _, selector = query.partition("{")
    known = metrics()
    assert name in known, f"{file}: {name}"
    labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector)) - {"job", "instance"}
    assert labels <= known[name], f"{file}: {query}"


def test_outcomes_in_queries_are_outcomes() -> None:
    """By the whole of their names, or the beginning of some."""
    words = {
        word
        for _, query in QUERIES
        for value in re.findall(r'outcome[!=~]+"([^"]+)"', query)
        for word in value.split("|")
    }
    known = {*facts.CallOutcome, *facts.HealOutcome, *facts.AskOutcome}
    assert [word for word in words if not any(re.fullmatch(word, each) for each in known)] == []


def test_every_metric_of_ours_is_on_the_dashboard_or_said_to_be_left_out() -> None:
    """One that nobody shows is one that nobody finds."""
    left_out = {
        "log_lines_dropped_total",
        "observed_total",
        "restores_refused_total",
        "lists_changed_total",
        "requests_total",
    }
    shown = DASHBOARD.read_text(encoding="utf-8")
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics() if name.startswith("mcp_sidecar_")}
    missing = {name for name in families if name not in shown}
    assert missing <= {f"mcp_sidecar_{name}" for name in left_out}


@pytest.mark.parametrize("file", [pytest.param(file, id=str(file.relative_to(DEPLOY))) for file in FILES])
def test_variables_are_settings(file: Path) -> None:
    """A misspelt one keeps the sidecar from starting."""
    names = set(re.findall(r"MCP_SIDECAR_([A-Z_]+[A-Z])\b", file.read_text(encoding="utf-8")))
    wrong = [
        name
        for name in names
        if name not in SHORT and name.lower().partition("__")[2] not in KEYS.get(name.lower().partition("__")[0], ())
    ]
    assert wrong == []


def test_each_alert_has_its_paragraph() -> None:
    """Whoever is woken up finds what to do."""
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "on-call.md").read_text(encoding="utf-8")
    assert [name for name in re.findall(r"alert: (\w+)", rules) if f"### {name}" not in page] == []


def test_the_rules_are_rules_and_do_what_they_say() -> None:
    """By Prometheus's own tool; what they do is in ``rules.test.yaml``."""
    folder = DEPLOY / "prometheus"
    output(tool("promtool"), "check", "rules", str(folder / "rules.yaml"))
    output(tool("promtool"), "test", "rules", str(folder / "rules.test.yaml"))


def test_the_dashboard_s_queries_can_be_asked(tmp_path: Path) -> None:
    """Each is an expression, with Grafana's variables filled in; panels have ids and places of their own."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    queries = [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel["targets"]]
    rules = "".join(f"  - record: a:{place}\n    expr: {json.dumps(query)}\n" for place, query in enumerate(queries))
    (tmp_path / "rules.yaml").write_text(f"groups:\n- name: a\n  rules:\n{rules}")
    output(tool("promtool"), "check", "rules", str(tmp_path / "rules.yaml"))


@pytest.mark.go
@pytest.mark.parametrize("name", ["example", "standalone"])
def test_the_kustomizations_render(name: str) -> None:
    """The component puts the sidecar into a Deployment that knows nothing of it."""
    rendered = kustomize(DEPLOY / "kubernetes" / name)
    for part in (
        "name: mcp-sidecar",
        "path: /readyz",
        "readOnlyRootFilesystem: true",
        "MCP_SIDECAR_LISTEN__DRAIN_DELAY",
    ):
        assert part in rendered
    assert ("initContainers" in rendered) is (name == "example")
    assert ("restartPolicy: Always" in rendered) is (name == "example")


VALUES: Final = {
    "own": ("upstream.url=http://x/mcp",),
    "in-pod": ("server.image=x",),
    "everything": (
        *("server.image=x", "replicas=2", "store=redis://r:6379/0", "tls.secretName=t", "adminToken.secretName=a"),
        *("podMonitor.enabled=true", "networkPolicy.enabled=true", "ingress.enabled=true", "httpRoute.enabled=true"),
        *("httpRoute.parentRefs[0].name=gw", "settings.healing.hold_timeout=20s"),
    ),
}


@pytest.mark.go
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_chart_is_in_order_and_renders(values: tuple[str, ...]) -> None:
    """With the few values that are needed, and with all there are."""
    given = [word for value in values for word in ("--set", value)]
    output(tool("helm"), "lint", str(CHART), *given)
    rendered = output(tool("helm"), "template", "r", str(CHART), "--kube-version", "1.34.0", *given)
    assert ("initContainers" in rendered) is ("server.image=x" in values)
    assert "MCP_SIDECAR_UPSTREAM" in rendered


KUBERNETES: Final = ("1.33", "1.34", "1.35", "1.37")
"""Versions that are looked after, by the schemas that a package ships."""
OF_OPERATORS: Final = ("HTTPRoute", "PodMonitor")
"""Kinds whose schemas are not Kubernetes's own."""


def judged(rendered: str, version: str, folder: Path) -> list[str]:
    """What the schemas of a version say of rendered objects, one line each; kinds of operators' apart."""
    program = VENVS / "charts" / "bin" / "kubernetes-validate"
    if not program.exists():
        pytest.skip("needs the environment `charts` of tools.interop_env")
    file = folder / "rendered.yaml"
    file.write_text(rendered, encoding="utf-8")
    done = subprocess.run(
        [program, "--strict", "-k", version, str(file)], capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not any(f"for kind {kind} " in line for kind in OF_OPERATORS)]


@pytest.mark.go
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_what_is_rendered(version: str, tmp_path: Path) -> None:
    """Every object of the kustomizations and of the chart fits the schema of its kind, with no field that it does not know."""
    chart = ("template", "r", str(CHART), "--kube-version", f"{version}.0")
    rendered = [kustomize(DEPLOY / "kubernetes" / name) for name in ("example", "standalone")]
    given = [[word for value in values for word in ("--set", value)] for values in VALUES.values()]
    rendered += [output(tool("helm"), *chart, *words) for words in given]
    for each in rendered:
        said = judged(each, version, tmp_path)
        assert len(said) >= 2
        assert [line for line in said if not line.startswith("INFO ")] == []


@pytest.mark.go
def test_the_schemas_bite(tmp_path: Path) -> None:
    """A field that is misspelt is found."""
    rendered = kustomize(DEPLOY / "kubernetes" / "example")
    wrong = rendered.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem")
    assert wrong != rendered
    assert any(not line.startswith("INFO ") for line in judged(wrong, KUBERNETES[0], tmp_path))


@pytest.mark.go
@pytest.mark.parametrize("timeout", [10, 300])
@pytest.mark.parametrize("where", ["server.image=x", "upstream.url=http://x/mcp"])
def test_nobody_is_killed_within_the_drain(where: str, timeout: int) -> None:
    """The server outlives the sidecar's drain, and the pod both of them, whatever the drain is set to."""
    given = [word for value in (where, f"drain.timeout={timeout}") for word in ("--set", value)]
    rendered = output(tool("helm"), "template", "r", str(CHART), "--kube-version", "1.34.0", *given)
    stays = [int(seconds) for seconds in re.findall(r"sleep: \{seconds: (\d+)\}", rendered)]
    assert all(seconds > 5 + timeout for seconds in stays) and len(stays) == ("server.image" in where)
    grace = int(re.findall(r"terminationGracePeriodSeconds: (\d+)", rendered)[0])
    assert grace >= max(stays, default=5 + timeout) + 15


@pytest.mark.go
@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((), "set upstream.url"),
        (("upstream.url=http://x", "replicas=2"), "needs a store that all of them share"),
        (("upstream.url=http://x", "settings.listen.drain_timeout=300"), "set drain.timeout"),
        (("upstream.url=http://x", "settings.listen.drain_delay=9"), "set drain.delay"),
        (("upstream.url=http://x", "drain.timeout=5m"), "drain.timeout is a number of seconds"),
        (("upstream.url=http://x", "drain.delay=null"), "drain.delay is a number of seconds"),
        (("server.image=x", "server.stopAfter=20s"), "server.stopAfter is a number of seconds"),
    ],
)
def test_the_chart_says_what_is_wrong(values: tuple[str, ...], complaint: str) -> None:
    """Two replicas without a shared store would fail half of all calls, and a drain that the pod does not know of is killed."""
    given = [word for value in values for word in ("--set", value)]
    command = [tool("helm"), "template", "r", str(CHART), "--kube-version", "1.34.0", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_the_chart_is_of_this_version() -> None:
    """Its default image is the one that was released with it."""
    from mcp_sidecar import __version__

    assert f'appVersion: "{__version__}"' in (CHART / "Chart.yaml").read_text(encoding="utf-8")


def test_what_is_asked_for_is_what_was_measured() -> None:
    """The manifests and the chart ask for the same, and the docs say from which figures."""
    asked = {
        match
        for file in FILES
        if file.suffix == ".yaml"
        for match in re.findall(
            r"requests: \{cpu: (\d+)m, memory: (\d+)Mi\}\n\s+limits: \{memory: (\d+)Mi\}", file.read_text("utf-8")
        )
    }
    [(cpu, memory, limit)] = asked
    page = (ROOT / "docs" / "on-call.md").read_text(encoding="utf-8")
    assert f"({cpu} millicores, {memory} MiB; at most {limit} MiB)" in page
