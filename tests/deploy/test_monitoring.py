"""The dashboard, the alerts and their pages name only metrics, labels, flags and panels that exist."""

from __future__ import annotations

import inspect
import itertools
import re
from collections import defaultdict

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine import engine
from engine.config import EngineConfig, flag
from server import engine_client, engine_process
from server.batches.metrics import BatchMetrics
from server.config import ServerConfig
from server.observe.metrics import Metrics
from server.routes import operations
from tests.deploy.files import DEPLOY, ROOT, panels, queries, read_yaml, rules
from tests.support.no_engine import NoEngine

OF_PROMETHEUS = {"job", "instance", "le"}
EXPRESSIONS = [*queries(), *((rule["alert"], rule["expr"]) for rule in rules())]
ALERTS_PAGE = (ROOT / "docs/alerts.md").read_text()


@pytest.fixture(scope="module")
def series() -> dict[str, dict[str, set[str]]]:
    """Sample name -> label -> its values, of a server whose first request has just come."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    metrics = Metrics("m", NoEngine())
    metrics.requests.add_key("none")
    metrics.reloads.add("tls")
    BatchMetrics(metrics.families, lambda: 0)
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found[sample.name][label].add(value)
    return found


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_an_expression_names_metrics_and_labels_of_the_server(title, expression, series):
    known = OF_PROMETHEUS | {"model_name"}
    for name, matchers in re.findall(r"(deepseek_serve_\w+)(?:\{([^}]*)\})?", expression):
        assert name in series, f"{title}: the server has no {name}"
        known |= series[name].keys()
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in series[name], f"{title}: {name} has no label {label}"
            if "$" not in values:
                assert set(values.split("|")) <= series[name][label], f"{title}: {name} has no such {label}"
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert set(labels.split(", ")) <= known, title


def test_legends_name_labels_that_the_query_leaves():
    for panel in panels():
        for target in panel.get("targets", ()):
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert any(label in labels for labels in grouped) or "sum" not in target["expr"], panel["title"]


def test_panels_have_what_a_reader_needs_and_do_not_overlap():
    cells = set()
    for panel in panels():
        at = panel["gridPos"]
        area = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert at["x"] + at["w"] <= 24
        assert not area & cells, f"{panel['title']} lies on another panel"
        cells |= area
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert all('{model_name=~"$model_name"' in t["expr"] or "ALERTS" in t["expr"] for t in panel["targets"])
    for unique in ("id", "title"):
        assert len({panel[unique] for panel in panels()}) == len(panels())


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_has_a_severity_a_summary_and_a_section(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"
    section = re.search(rf"^## {rule['alert']}\n\n(\w+)\.", ALERTS_PAGE, re.MULTILINE)
    assert section is not None
    assert section[1] == rule["labels"]["severity"]


def test_alerts_and_their_sections_and_unit_tests_are_the_same():
    names = {rule["alert"] for rule in rules()}
    assert set(re.findall(r"^## (\w+)$", ALERTS_PAGE, re.MULTILINE)) == names
    tests = read_yaml("prometheus/alerts_test.yml")["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == names


def test_pages_name_flags_panels_and_log_lines_that_exist():
    flags = {flag(name) for kind in (EngineConfig, ServerConfig) for name in kind.model_fields}
    descriptions = " ".join(panel.get("description", "") for panel in panels())
    named = set(re.findall(r"`(--[a-z-]+)", ALERTS_PAGE)) | set(re.findall(r"--[a-z-]+", descriptions))
    assert len(named) > 10
    assert named <= flags
    titles = {panel["title"] for panel in panels()}
    linked = set(re.findall(r'[Pp]anel "([^"]+)"', " ".join(ALERTS_PAGE.split())))
    assert len(linked) > 5
    assert linked <= titles
    assert set(re.findall(r"DeepseekServe\w+", descriptions)) <= {rule["alert"] for rule in rules()}
    logged = set(re.findall(r"grep (?:-B 20 )?'(engine died|cannot be taken in)'", ALERTS_PAGE))
    assert logged == {"engine died", "cannot be taken in"}
    assert "the %s died with %s" in inspect.getsource(engine_process)
    assert inspect.signature(engine_client.EngineClient).parameters["name"].default == "engine"
    assert "request %s cannot be taken in" in inspect.getsource(engine)


def test_prometheus_scrapes_the_servers_port_and_path_under_the_job_of_the_alerts():
    config = read_yaml("prometheus/prometheus.yml")
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "deepseek-serve"]
    assert job["metrics_path"] in {route.path for route in operations.router.routes}
    assert job["static_configs"] == [{"targets": [f"server:{ServerConfig.model_fields['port'].default}"]}]
    assert 'up{job="deepseek-serve"}' in next(r["expr"] for r in rules() if r["alert"] == "DeepseekServeDown")
    assert config["rule_files"] == [(DEPLOY / "prometheus/alerts.yml").name]


def test_grafana_finds_its_data_source_and_dashboards():
    [source] = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == read_yaml("prometheus/prometheus.yml")["global"]["scrape_interval"]
    [provider] = read_yaml("grafana/provisioning/dashboards/deepseek-serve.yaml")["providers"]
    mounts = [mount.split(":") for mount in read_yaml("compose/compose.yaml")["services"]["grafana"]["volumes"]]
    [dashboards] = [here for here, there, *_ in mounts if there == provider["options"]["path"]]
    assert list((DEPLOY / "compose" / dashboards).glob("*.json"))
