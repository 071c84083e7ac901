"""`make train-parallel-test`: one recipe by the command on each layout, and checkpoints that another layout loads.

Prints the largest difference of each layout's losses from one process's; status 1 if one is above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.support.tiny import write_byte_tokenizer
from tests.training.parallel.training_steps import CONFIG

Layout = tuple[int, int, int]
LAYOUTS: list[Layout] = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2), (1, 4, 1)]
CHANGES: list[tuple[Layout, Layout]] = [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 2, 2)), ((2, 1, 1), (1, 2, 2))]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of config.json and of the recipe
    "plain": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {}),
    "adamw": ({}, {"optimizer": "AdamW", "activation_checkpointing": True}),
}
STEPS, TOLERANCE = 20, 1e-4


def main() -> int:
    """Run the layouts of each case; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    is_good = True
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            is_good &= _compare(name, Path(folder))
    return 0 if is_good else 1


def _compare(name: str, folder: Path) -> bool:
    recipe = _write(folder, *CASES[name])
    expected: list[dict[str, float]] = []
    is_good = True
    for layout in LAYOUTS:
        steps = _train(recipe, layout, folder / _text(layout))
        expected = expected or steps
        is_good &= _report(f"{name} {_text(layout)}", steps, expected)
    for first, then in CHANGES:
        output = folder / f"{_text(first)}-{_text(then)}"
        shutil.copytree(folder / _text(first), output)
        shutil.rmtree(output / "checkpoints" / f"step-{STEPS:08}")
        steps = _train(recipe, then, output, "--resume")
        is_good &= _report(f"{name} {_text(first)}, then {_text(then)}", steps, expected)
    return is_good


def _text(layout: Layout) -> str:
    return "x".join(map(str, layout))


def _report(label: str, steps: list[dict[str, float]], expected: list[dict[str, float]]) -> bool:
    names = ("loss", "gradient_norm", "dropped", "balance_loss", "validation_loss")
    worst = {
        name: max(abs(a[name] - b[name]) for a, b in zip(steps, expected, strict=True) if name in b) for name in names
    }
    is_good = len(steps) == STEPS and all(worst[name] <= TOLERANCE for name in ("loss", "validation_loss"))
    differences = "  ".join(f"{name} {value:.1e}" for name, value in worst.items())
    sys.stdout.write(
        f"{label:28} loss {steps[-1]['loss']:.6f}  differs by  {differences}  {'ok' if is_good else 'BAD'}\n"
    )
    sys.stdout.flush()
    return is_good


def _write(folder: Path, config: dict[str, Any], changes: dict[str, Any]) -> Path:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 258, "eos_token_id": 257, **config}))
    write_byte_tokenizer(model)
    data = folder / "data.jsonl"
    texts = [f"Document {number} says {'so ' * (number % 13)}." for number in range(100)]
    data.write_text("".join(json.dumps({"title": f"No {i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    recipe = {
        "output": "none",
        "model": str(model / "config.json"),
        "data": {"files": [str(data)], "max_length": 48, "micro_batch_size": 3},
        "validation": {"files": [str(data)], "interval": 10, "micro_batches": 4},
        "precision": "float32",
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "total_steps": STEPS,
        "accumulation_steps": 4,
        "checkpoint_interval": 10,
        "device": "cpu",
        "peak_tflops": 1.0,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def _train(recipe: Path, layout: Layout, output: Path, *arguments: str) -> list[dict[str, float]]:
    """Train by the command; what metrics.jsonl has."""
    tensor, pipeline, data = layout
    ranks = tensor * pipeline * data
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    degrees = [f"parallelism={{tensor: {tensor}, pipeline: {pipeline}, data: {data}}}", f"output={output}"]
    command = [sys.executable, *launch, "-m", "training.cli", str(recipe), *degrees, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
