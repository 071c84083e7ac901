"""A tiny DynamicMoE and the same steps of training on any layout, for comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.batch import IGNORED, Batch, TokenBatch
from training.config import DataSettings, ParallelismSettings, Settings
from training.model.build import build_model
from training.model.description import ModelDescription
from training.model.losses import cross_entropy
from training.objectives.objective import LossSum
from training.optimizer import make_optimizer
from training.parallel.gradients import local_part
from training.parallel.tensor import divide
from training.parallel.worker import ParallelWorker
from training.worker import LocalWorker

if TYPE_CHECKING:
    from torch import nn

    from training.parallel.ranks import Ranks
    from training.worker import Worker

CONFIG = {
    "architectures": ["DynamicMoEForCausalLM"],
    "model_type": "dynamic_moe",
    "vocab_size": 96,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_types": ["full", "block_sparse", "local", "block_sparse"],
    "local_window": 5,
    "sparse_block_size": 4,
    "sparse_num_random_blocks": 1,
    "moe_num_experts": 4,
    "moe_intermediate_size": 8,
    "router_hidden_size": 8,
    "expert_capacity": 0.9,  # so that tokens are dropped
    "memory_compression_layers": [0, 3],
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ROWS, ACCUMULATION = 2, 4
EIGHT = ParallelismSettings(tensor=2, pipeline=2, data=2)


@dataclass(frozen=True)
class Case:
    """What is trained: changes of CONFIG and of the settings, and for how many steps."""

    steps: int
    config: dict[str, Any]
    settings: dict[str, Any]


class NextTokens:
    """The objective, with a metric."""

    def count(self, batch: Batch) -> int:
        return int((batch.targets_BT != IGNORED).sum())

    def loss(self, model: nn.Module, hidden_BTH: torch.Tensor, batch: Batch) -> LossSum:
        return LossSum(
            cross_entropy(model, hidden_BTH, batch.targets_BT), {"rows": hidden_BTH.new_tensor(len(hidden_BTH))}
        )


def micro_batch(number: int, rows: int = ROWS) -> Batch:
    """Micro batch `number` of the stream that all layouts divide among them; widths differ, and rows are padded."""
    generator = torch.Generator().manual_seed(number)
    lengths_B = torch.randint(9, 40, (rows,), generator=generator)
    width = int(lengths_B.max())
    is_token_BT = torch.arange(width) < lengths_B[:, None]
    ids_BT = torch.randint(2, 96, (rows, width), generator=generator)
    ids_BT[:, 1::2] = ids_BT[:, ::2][:, : width // 2] // 2  # something to learn
    targets_BT = ids_BT.roll(-1, 1).where(is_token_BT.roll(-1, 1) & is_token_BT, IGNORED)
    targets_BT[:, -1] = IGNORED
    modalities_BT = torch.randint(0, 2, (rows, width), generator=generator)
    return Batch(TokenBatch(ids_BT.where(is_token_BT, 0), modalities_BT, lengths_B), targets_BT)


def settings_of(case: Case, degrees: ParallelismSettings) -> Settings:
    """The recipe of a case."""
    own = {"learning_rate": 1e-3, "weight_decay": 0.1, "precision": "float32", "accumulation_steps": ACCUMULATION}
    data = DataSettings(files=(Path("none"),), max_length=64, micro_batch_size=ROWS, pad_to="max_length")
    return Settings(output=Path("none"), model=Path("none"), data=data, parallelism=degrees, **{**own, **case.settings})


def make_worker(ranks: Ranks | None, case: Case, weights: Path | None = None) -> Worker:
    """The whole model in this process, or this rank's part."""
    description = ModelDescription.parse({**CONFIG, **case.config})
    layers = None if ranks is None else ranks.layers(description.config.num_hidden_layers)
    own = None if ranks is None else partial(divide, ranks=ranks)
    model = build_model(description, weights, seed=1, layers=layers, divide=own)
    model.activation_checkpointing = case.settings.get("activation_checkpointing", False)
    if ranks is None:
        return LocalWorker(model, torch.device("cpu"), torch.float32)
    return ParallelWorker(model, ranks, torch.float32)


@dataclass(frozen=True)
class Trained:
    """What one rank knows in the end.

    Attributes:
        steps: loss, norm, metric and routers' statistics of each.
        validation: the loss on other micro batches, without gradients.
        weights: of the whole model; empty on ranks other than the main one.
        num_values: of the parameters that this rank has between steps.
    """

    steps: list[dict[str, float]]
    validation: float
    weights: dict[str, list[float]]
    num_values: int


def train(ranks: Ranks | None, case: Case) -> Trained:
    """The steps of a case."""
    worker = make_worker(ranks, case)
    settings = settings_of(case, ranks.degrees if ranks is not None else ParallelismSettings())
    optimizer = make_optimizer(settings, worker.module)
    steps = [step(worker, settings, optimizer, number) for number in range(case.steps)]
    weights = {name: tensor.flatten().tolist() for name, tensor in worker.gather()}
    num_values = sum(local_part(parameter).numel() for parameter in worker.module.parameters())
    return Trained(steps, validation_loss(worker), weights, num_values)


def step(worker: Worker, settings: Settings, optimizer: torch.optim.Optimizer, number: int) -> dict[str, float]:
    """One step, as the loop does it."""
    objective, total = NextTokens(), settings.accumulation_steps
    own = range(number * total + worker.data_rank, (number + 1) * total, worker.data_degree)
    batches = [micro_batch(number) for number in own]
    count = worker.sum_over_data([sum(map(objective.count, batches))])[0]
    sums = worker.forward_backward(objective, batches, 1 / count)
    norm = worker.clip_gradients(settings.gradient_clipping)
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    loss, rows = worker.sum_over_data([sums["loss"], sums["rows"]])
    return {"loss": loss / count, "norm": norm, "rows": rows, **worker.take_statistics()}


def validation_loss(worker: Worker) -> float:
    """Of micro batches of different widths and numbers of rows."""
    batches = [micro_batch(1000), micro_batch(1001), micro_batch(1002, rows=1), micro_batch(1003, rows=1)]
    worker.module.eval()
    with torch.no_grad():
        sums = worker.forward(NextTokens(), batches[worker.data_rank :: worker.data_degree])
    worker.module.train()
    return worker.sum_over_data([sums["loss"]])[0]
