"""A recipe of a few thousand parameters, with its model, tokenizer and documents; and runs of it without its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import yaml

from tests.support.tiny import write_byte_tokenizer
from training.batch import Batch, TokenBatch
from training.checkpoints import Checkpoints, RunState
from training.interrupt import Interrupt
from training.loop import Run
from training.model.build import build_model
from training.model.description import ModelDescription
from training.objectives.language_model import LanguageModel
from training.optimizer import make_optimizer
from training.progress import Progress
from training.read_config import read_settings
from training.work import TrainingWork
from training.worker import LocalWorker

if TYPE_CHECKING:
    from pathlib import Path

    from training.config import Settings

MODEL: dict[str, Any] = {
    "architectures": ["DynamicMoEForCausalLM"],
    "model_type": "dynamic_moe",
    "vocab_size": 258,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "moe_num_experts": 4,
    "moe_intermediate_size": 8,
    "router_hidden_size": 8,
    "attention_types": ["full", "block_sparse"],
    "sparse_block_size": 16,
    "max_position_embeddings": 64,
    "hidden_dropout": 0.1,  # draws random numbers, which must go on where they stopped
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def write(folder: Path, **changes: Any) -> Path:
    """Write a recipe.yaml with all that it names; `changes` are its keys."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(MODEL))
    write_byte_tokenizer(model)
    data = folder / "data.jsonl"
    texts = [f"Document {number} says {'so ' * (number % 13)}." for number in range(100)]
    data.write_text("".join(json.dumps({"title": f"No {i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    recipe = {
        "output": str(folder / "run"),
        "model": str(model / "config.json"),
        "data": {"files": [str(data)], "max_length": 32, "micro_batch_size": 4},
        "precision": "float32",
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "total_steps": 12,
        "checkpoint_interval": 4,
        "device": "cpu",
        "peak_tflops": 1.0,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


@dataclass
class RandomStream:
    """Micro batches of random tokens, each by its number alone."""

    number: int = 0
    epoch: int = 0

    def __next__(self) -> Batch:
        """The next one."""
        self.number += 1
        return batch(self.number)

    def state(self) -> dict[str, Any]:
        """Its number."""
        return {"number": self.number}


def batch(seed: int, lengths: tuple[int, ...] = (20, 13)) -> Batch:
    """Rows of random tokens of these lengths, each token's target being the next one."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(256, (len(lengths), max(lengths)), generator=generator)
    targets_BT = ids_BT.roll(-1, dims=1)
    for row, length in enumerate(lengths):
        targets_BT[row, length - 1 :] = -100
    return Batch(TokenBatch(ids_BT, torch.zeros_like(ids_BT), torch.tensor(lengths)), targets_BT)


def settings(folder: Path, *overrides: str) -> Settings:
    """The settings of a recipe that is written to the folder."""
    path = folder / "recipe.yaml"
    return read_settings(path if path.exists() else write(folder), overrides)


def run(folder: Path, *overrides: str, resume: bool = False, **parts: Any) -> Run:
    """A run of the tiny model over random tokens; `parts` replace its own."""
    chosen = settings(folder, *overrides)
    description = ModelDescription.parse(MODEL)
    worker = LocalWorker(build_model(description, None, seed=1), torch.device("cpu"), torch.float32)
    optimizer = make_optimizer(chosen, worker.module)
    checkpoints = Checkpoints(chosen.output / "checkpoints", chosen.keep_last, worker, optimizer)
    torch.manual_seed(2)
    stream, state = RandomStream(), RunState()
    if resume:
        newest = checkpoints.newest()
        assert newest is not None
        state = checkpoints.load(newest)
        stream.number = state.data["number"]
    chosen.output.mkdir(exist_ok=True)
    progress = Progress(
        chosen.output, first_step=state.step + 1, total_steps=chosen.total_steps, log_interval=chosen.log_interval
    )
    made: dict[str, Any] = {
        "settings": chosen,
        "worker": worker,
        "objective": LanguageModel(),
        "optimizer": optimizer,
        "stream": stream,
        "checkpoints": checkpoints,
        "progress": progress,
        "work": TrainingWork(description.config),
        "peak_flops": 1e12,
        "state": state,
        "record": {},
        "interrupt": Interrupt(),
    }
    return Run(**made | parts)


def losses(folder: Path) -> dict[int, float]:
    """What metrics.jsonl has of each step."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}
