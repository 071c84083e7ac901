"""Writes the PrometheusRule of components/monitoring from deploy/prometheus/alerts.yml; `make kubernetes-rules`."""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ALERTS = HERE.parent / "prometheus" / "alerts.yml"
RULE = HERE / "components" / "monitoring" / "prometheus-rule.yaml"
_HEAD = "# Written by `make kubernetes-rules` from deploy/prometheus/alerts.yml: change that file.\n"


def write() -> None:
    """Write the rules; tests/deploy/test_kubernetes.py fails while the two files differ."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    item = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "deepseek-serve"},
        "spec": {"groups": groups},
    }
    RULE.write_text(_HEAD + yaml.safe_dump(item, sort_keys=False, width=120), encoding="utf-8")


if __name__ == "__main__":
    write()
