"""The manifests of deploy/kubernetes as data, and what the server's code says they must agree with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine.config import EngineConfig
from server.config import ServerConfig
from server.http.gate import OPEN_PATHS
from server.observe.metrics import Metrics
from server.routes.operations import router
from tests.support.no_engine import NoEngine

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
PREFIX = "DEEPSEEK_SERVE_"
OVERLAYS = ("cpu", "gpu", "replicas")
_GIB = {"Gi": 1.0, "Mi": 1 / 1024}


def _metric_names() -> frozenset[str]:
    text = generate_latest(Metrics("any", NoEngine()).registry).decode()
    return frozenset(sample.name for family in text_string_to_metric_families(text) for sample in family.samples)


def _image(instruction: str) -> int:
    """The number that the Dockerfile gives to USER or EXPOSE."""
    found = re.findall(rf"^{instruction} (\d+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[-1])


@dataclass(frozen=True)
class Code:
    """What the server's code and its image say."""

    open_paths: frozenset[str] = frozenset({route.path for route in router.routes} & OPEN_PATHS)  # type: ignore[attr-defined]
    settings: frozenset[str] = frozenset({*ServerConfig.model_fields, *EngineConfig.model_fields})
    metrics: frozenset[str] = field(default_factory=_metric_names)
    uid: int = field(default_factory=lambda: _image("USER"))
    port: int = field(default_factory=lambda: _image("EXPOSE"))
    version: str = version("deepseek-serve")

    def check_settings(self, values: dict[str, str]) -> None:
        """Every name is a setting, and its value is valid."""
        assert values.keys() <= self.settings, f"no settings: {values.keys() - self.settings}"
        for config in (ServerConfig, EngineConfig):
            config(**{name: value for name, value in values.items() if name in config.model_fields})


class Manifests:
    """The files of one folder, as they are, and what an overlay makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pod: dict[str, Any] = self["base/deployment.yaml"]["spec"]["template"]["spec"]
        self.server: dict[str, Any] = self.pod["containers"][0]
        self.fetch: dict[str, Any] = self["components/model-volume/deployment.yaml"]["spec"]["template"]["spec"]
        self.picker: dict[str, Any] = self["components/inference-gateway/picker.yaml"]["spec"]["template"]["spec"]

    def __getitem__(self, path: str) -> Any:
        """The first document of a file."""
        return next(iter(yaml.safe_load_all((self.folder / path).read_text(encoding="utf-8"))))

    def settings(self, overlay: str) -> dict[str, str]:
        """An overlay's flags by the names of settings."""
        lines = [
            line.split("=", 1)
            for path in ("base/settings.env", f"overlays/{overlay}/settings.env")
            for line in (self.folder / path).read_text(encoding="utf-8").splitlines()
            if line.startswith(PREFIX)
        ]
        return {name.removeprefix(PREFIX).lower(): value for name, value in lines}

    def resources(self, overlay: str) -> dict[str, dict[str, str]]:
        """Requests and limits of an overlay's server."""
        pod = self[f"overlays/{overlay}/resources.yaml"]["spec"]["template"]["spec"]
        return dict(pod["containers"][0]["resources"])

    def metric_names(self) -> set[str]:
        """Every name of a metric of ours in the files, but not in the rules, which have a test of their own."""
        texts = {path: path.read_text(encoding="utf-8") for path in self.folder.rglob("*.yaml")}
        return {
            name
            for path, text in texts.items()
            if path.name != "prometheus-rule.yaml"
            for name in re.findall(r"\bdeepseek_serve_\w+", text)
        }


def gib(quantity: str) -> float:
    """A quantity of memory in GiB."""
    return float(quantity[:-2]) * _GIB[quantity[-2:]]
