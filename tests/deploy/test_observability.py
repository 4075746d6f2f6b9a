"""Alert rules and dashboard: they parse, and speak of what is exported and of nothing else."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from addons.core import metrics

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXPRESSIONS = [pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES] + [
    pytest.param(target["expr"], id=panel["title"]) for panel in DASHBOARD["panels"] for target in panel["targets"]
]
EXPORTED = {name: metric for metric in metrics.METRICS.values() for name in metric.exported}
# From the process, and from Prometheus itself.
OTHERS = {"process_resident_memory_bytes", "up"}
ADDED = {"instance", "job", "le"}  # labels that Prometheus adds
VALUES = {
    "impact": set(metrics.IMPACTS),
    "verdict": set(metrics.VERDICTS),
    "phase": set(metrics.PHASES),
    "kind": {"connect", "broken"},
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_only_what_is_exported(expression):
    names = set(re.findall(r"\b((?:tollgate|process)_\w+|up(?=\{))", expression))
    assert names, expression
    assert names <= EXPORTED.keys() | OTHERS
    known = {label for name in names & EXPORTED.keys() for label in EXPORTED[name].labels} | ADDED
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", group)) <= known
    for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', expression):
        assert label in known
        if label in VALUES:
            assert set(value.split("|") if "~" in operator else [value]) <= VALUES[label]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_prometheus_reads_it(expression):
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))  # types too: no rate of a vector
    # A counter has a rate, a gauge has none.
    for name in set(re.findall(r"\btollgate_\w+", expression)):
        rated = re.search(rf"(?:rate|increase)\({name}", expression) is not None
        assert rated is (EXPORTED[name].kind != metrics.GAUGE), name


def test_every_metric_is_shown():
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert [m.name for m in metrics.METRICS.values() if not any(name in shown for name in m.exported)] == []


def test_alerts_say_what_it_means():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"].endswith(".")


def test_the_dashboards_panels_do_not_overlap():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="this machine has no promtool")
def test_promtool_takes_them():
    for command in (["check", "rules", "alerts.yaml"], ["check", "config", "prometheus.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_is_in_the_docs():
    text = (FOLDER.parents[1] / "docs" / "operations.md").read_text()
    for metric in metrics.METRICS.values():
        assert f"| {metric.help} |" in text
