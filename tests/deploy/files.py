"""What lies in deploy/: the dashboard's queries and the alert rules, as values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read_yaml(path: str) -> Any:
    """A file of deploy/."""
    return yaml.safe_load((DEPLOY / path).read_text())


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows included, from the top."""
    return json.loads((DEPLOY / "grafana/dashboards/deepseek-serve.json").read_text())["panels"]  # type: ignore[no-any-return]


def queries() -> list[tuple[str, str]]:
    """Panel title and PromQL of each query."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel.get("targets", ())]


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    return [rule for group in read_yaml("prometheus/alerts.yml")["groups"] for rule in group["rules"]]
