"""Trains by a recipe in one process after another, each killed at a step that is drawn; run as a program.

    python -m tests.training.kill_and_resume RECIPE METRICS SEED KILLS

A process is a fork of this one, which has imported torch and computed nothing, so that each starts at once. It is
killed with SIGKILL when METRICS (its metrics.jsonl) has the line of the drawn step, which may be while it writes a
checkpoint; the last one trains to the end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import training.run  # noqa: F401  # what a process would import
from training.cli import run_command


def main(recipe: str, metrics: Path, seed: int, kills: int) -> int:
    """Kill so many processes, then let one end; its exit status."""
    draw = random.Random(seed)
    for _ in range(kills):
        pid = _start(recipe)
        _wait_for(metrics, _lines(metrics) + draw.randint(4, 8), pid)
        time.sleep(draw.uniform(0, 0.005))  # somewhere in the next step, or in a checkpoint
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(os.waitpid(_start(recipe), 0)[1])


def _start(recipe: str) -> int:
    if pid := os.fork():
        return pid
    torch.set_num_threads(1)
    os._exit(run_command([recipe, "--resume"]))


def _wait_for(metrics: Path, lines: int, pid: int) -> None:
    while _lines(metrics) < lines:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.001)


def _lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
