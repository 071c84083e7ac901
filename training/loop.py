"""The training loop: steps, skipped steps, checkpoints, the end. What it works on is made in training.run."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.distributed.tensor import DTensor

from training.errors import TrainingError
from training.optimizer import set_learning_rate
from training.schedule import learning_rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

    from training.batch import Batch
    from training.checkpoints import Checkpoints, RunState
    from training.config import Settings
    from training.interrupt import Interrupt
    from training.objectives.objective import Objective
    from training.progress import Progress
    from training.validation import Validation
    from training.work import TrainingWork
    from training.worker import Worker

logger = logging.getLogger(__name__)

_MOST_SKIPPED = 100  # steps in a row


class Stream(Protocol):
    """An endless stream of this rank's micro batches, whose place can be kept (training.data.batches)."""

    @property
    def epoch(self) -> int:
        """How often the documents have been read to their end."""
        ...

    def __next__(self) -> Batch:
        """The next micro batch."""
        ...

    def state(self) -> dict[str, Any]:
        """The place, as JSON."""
        ...


class Penalty(Protocol):
    """A term of the loss that depends on weights alone (training.continual)."""

    def add_gradients(self, module: nn.Module) -> Mapping[str, float]:
        """Add its gradients to those that are there; its value, parameter by parameter."""
        ...


@dataclass
class Run:
    """All that a run is made of."""

    settings: Settings
    worker: Worker
    objective: Objective
    optimizer: Optimizer
    stream: Stream
    checkpoints: Checkpoints
    progress: Progress
    work: TrainingWork
    peak_flops: float  # of all ranks together, a second
    state: RunState
    record: Mapping[str, Any]  # what checkpoints keep of the settings
    interrupt: Interrupt
    penalty: Penalty | None = None
    validation: Validation | None = None


def train(run: Run) -> bool:
    """Train to the last step; False if a signal ended the run before it, after a checkpoint.

    Raises:
        TrainingError: the weights are of no use, and no checkpoint has them.
    """
    settings, state = run.settings, run.state
    is_stopped = False
    if state.step:
        _check_outcome(run)
    while state.step < settings.total_steps and not is_stopped:
        started = time.perf_counter()
        metrics = _step(run, state.step + 1)
        metrics["seconds"] = time.perf_counter() - started
        metrics["mfu"] = metrics.pop("flops") / metrics["seconds"] / run.peak_flops
        is_last = state.step == settings.total_steps
        if run.validation is not None and (is_last or state.step % run.validation.interval == 0):
            metrics["validation_loss"] = run.validation.loss(run.worker, run.objective)
        run.progress.add(state.step, metrics)
        is_stopped = bool(run.worker.max_over_ranks(run.interrupt.signal))
        if is_stopped or is_last or state.step % settings.checkpoint_interval == 0:
            _check_outcome(run)
            state.data = run.stream.state()
            run.checkpoints.save(state, run.record)
    return not is_stopped


@torch.no_grad()
def _check_outcome(run: Run) -> None:
    """The weights are finite, and a run that is at its end has made a step.

    Raises:
        TrainingError: they are not, or it has not.
    """
    state = run.state
    parts = (p.to_local() if isinstance(p, DTensor) else p for p in run.worker.module.parameters())
    if run.worker.max_over_ranks(int(not all(bool(part.isfinite().all()) for part in parts))):
        raise TrainingError(
            f"weights are not finite after step {state.step}, and are not kept; checkpoints of earlier steps are as "
            "they were: lower learning_rate or weight_decay"
        )
    if state.step >= run.settings.total_steps and state.skipped_steps == state.step:
        raise TrainingError(
            f"all {state.step} steps were skipped, as their gradients were not finite, so that nothing was trained: "
            "look for a wrong value in config.json, or take precision: float32"
        )


def _step(run: Run, step: int) -> dict[str, float]:
    """One step of the optimizer, from this rank's share of `accumulation_steps` micro batches; its metrics."""
    settings, worker, state = run.settings, run.worker, run.state
    rate = learning_rate(
        step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, total_steps=settings.total_steps
    )
    set_learning_rate(run.optimizer, rate)
    batches = [next(run.stream) for _ in range(settings.accumulation_steps // worker.data_degree)]
    own = [sum(map(run.objective.count, batches)), sum(batch.tokens.num_tokens for batch in batches)]
    flops = sum(run.work.flops(batch.tokens.lengths_B.tolist()) for batch in batches)
    count, num_tokens, flops = worker.sum_over_data([*own, flops])
    batches = [batch.to(worker.device) for batch in batches]

    sums = worker.forward_backward(run.objective, batches, 1 / max(count, 1))
    penalty = {}
    if run.penalty is not None:
        penalty["penalty"] = worker.sum_over_parts(run.penalty.add_gradients(worker.module))
    norm = worker.clip_gradients(settings.gradient_clipping or math.inf)
    if math.isfinite(norm):
        run.optimizer.step()
    run.optimizer.zero_grad()

    totals = worker.sum_over_data(list(sums.values()))
    state.step, state.num_tokens = step, state.num_tokens + int(num_tokens)
    _count_skipped(state, norm)
    return {
        **{name: total / max(count, 1) for name, total in zip(sums, totals, strict=True)},
        **penalty,
        **worker.take_statistics(),
        "learning_rate": rate,
        "gradient_norm": norm,
        "tokens": num_tokens,
        "total_tokens": state.num_tokens,
        "flops": flops,
        "epoch": run.stream.epoch,
        "skipped_steps": state.skipped_steps,
    }


def _count_skipped(state: RunState, norm: float) -> None:
    """Count a step whose gradients are not finite: weights and optimizer are as before it.

    Raises:
        TrainingError: there were so many in a row that no more good ones will come.
    """
    if math.isfinite(norm):
        state.skipped_in_a_row = 0
        return
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    logger.warning("step %d is skipped: its gradients are not finite", state.step)
    if state.skipped_in_a_row >= _MOST_SKIPPED:
        raise TrainingError(
            f"the gradients of {_MOST_SKIPPED} steps in a row were not finite; the last checkpoint is from before them "
            "or among them: lower learning_rate, or take precision: float32"
        )
