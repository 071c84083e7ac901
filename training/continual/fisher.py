"""The diagonal of the Fisher information: how much a task's loss changes with each weight.

It is the mean over the task's data of squared gradients, one gradient for each sequence. Targets are the data's own
(the empirical Fisher), and the unit is the objective's count (a token, a row), as in the loss: near the weights that
the task was trained to, its loss rises by half of F * (w - w*) ** 2.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from training.batch import Batch, TokenBatch
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from training.model.dynamic_moe import DynamicMoE
    from training.objectives.objective import Objective

FISHER, WEIGHT = "fisher.", "weight."  # what names in the file begin with


@dataclass(frozen=True)
class Fisher:
    """What was measured.

    Attributes:
        diagonal: of each parameter, by its name.
        num_sequences: gradients that it is made of.
        count: of the objective over all of them.
    """

    diagonal: dict[str, torch.Tensor]
    num_sequences: int
    count: int


def measure(model: DynamicMoE, objective: Objective, batches: Iterable[Batch], *, rows: int = 1) -> Fisher:
    """Measure, as the model is served: without dropout, and with no token dropped by an expert.

    Args:
        model: at the weights that the task was trained to.
        objective: the task's.
        batches: of the task's data.
        rows: that make a sequence: 2 of preference pairs.

    Raises:
        TrainingError: the batches hold nothing that counts, or a gradient is not finite.
    """
    model.eval()
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    num_sequences = count = 0
    for sequence in _sequences(batches, rows):
        model.zero_grad()
        objective.loss(model, model(sequence.tokens), sequence).sum.backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                sums[name].addcmul_(parameter.grad, parameter.grad)
        num_sequences, count = num_sequences + 1, count + objective.count(sequence)
    model.zero_grad()
    if not count:
        raise TrainingError("the data has nothing that this objective counts, so that nothing can be measured")
    if not all(bool(total.isfinite().all()) for total in sums.values()):
        raise TrainingError("a gradient is not finite, so that the Fisher information is not")
    return Fisher({name: total / count for name, total in sums.items()}, num_sequences, count)


def save(path: Path, fisher: Fisher, model: DynamicMoE) -> None:
    """Write it with the model's weights, at which it holds, as one safetensors file; all or nothing.

    Raises:
        TrainingError: it cannot be written.
    """
    tensors = {FISHER + name: values.contiguous() for name, values in fisher.diagonal.items()}
    tensors |= {WEIGHT + name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    unfinished = _unfinished(path)
    try:
        save_file(tensors, unfinished, {"num_sequences": str(fisher.num_sequences), "count": str(fisher.count)})
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise TrainingError(f"{path} cannot be written: {error}") from error


def check_writable(path: Path) -> None:
    """Make the file's folder, and refuse a path that could not be written after hours of measuring.

    Raises:
        TrainingError: it is no regular file, or its folder cannot be written.
    """
    if path.exists() and not path.is_file():
        raise TrainingError(f"{path} cannot be written: it is no regular file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _unfinished(path).touch()
        _unfinished(path).unlink()
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from None


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _sequences(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Yield each sequence by itself, without padding."""
    for batch in batches:
        for first in range(0, len(batch.targets_BT), rows):
            some = slice(first, first + rows)
            lengths_B = batch.tokens.lengths_B[some]
            width = int(lengths_B.max())
            tokens = TokenBatch(
                batch.tokens.token_ids_BT[some, :width], batch.tokens.modality_ids_BT[some, :width], lengths_B
            )
            labels_B = None if batch.labels_B is None else batch.labels_B[some]
            yield Batch(tokens, batch.targets_BT[some, :width], labels_B)
