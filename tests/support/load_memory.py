"""Measures loads of models in processes of their own, for tests of what a load takes: python -m ... TINY JSON...

Each load happens in a fork of a process that has loaded a tiny model, so that what libraries take once is no part of
it. A line of JSON is printed for each: the estimate, what stays, and the peak, in bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class LoadMemory:
    """Bytes.

    Attributes:
        estimated, passing: of weights, and of what the load takes beside them, before anything is read.
        weights: that stay.
        peak: of all that is resident, pages of mapped files included.
    """

    estimated: int
    passing: int
    weights: int
    peak: int


def measure(tiny: Path, *loads: dict[str, Any]) -> list[LoadMemory]:
    """Load each of these settings of an engine."""
    command = [sys.executable, "-m", __name__, str(tiny), *(json.dumps(load, default=str) for load in loads)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [LoadMemory(**json.loads(line)) for line in lines]


def _load(settings: dict[str, Any]) -> LoadMemory:
    from engine import build
    from engine.config import EngineConfig
    from engine.loading.footprint import Estimate
    from engine.loading.resolve import resolve_model
    from engine.resolve import resolve

    limits = {"device": "cpu", "num_kv_blocks": 4, "max_seq_len": 64, "threads": 1}
    config = resolve(EngineConfig(**{**limits, **settings}), resolve_model(settings["model"]))
    estimate = Estimate(config.model, config.source.open_tensors(config.model), config.ops, config.dtype)
    footprint = estimate.footprint(config.settings.quantization)
    _CLEAR.write_text("5")  # the high-water mark begins anew
    before = _bytes("VmRSS")
    weights = build.build(config).info.memory.weights
    return LoadMemory(footprint.weights, footprint.passing, weights, _bytes("VmHWM") - before)


def _bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _main() -> None:
    from engine.loading import gguf_source, safetensors_source  # noqa: F401  # the libraries that they import

    tiny, *loads = sys.argv[1:]
    _load({"model": tiny})
    for load in loads:
        sys.stdout.flush()
        if not (child := os.fork()):
            sys.stdout.write(json.dumps(vars(_load(json.loads(load)))) + "\n")
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the load of {load} ended with {status}"


if __name__ == "__main__":
    _main()
