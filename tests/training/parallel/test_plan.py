"""The plan against what it plans: parameters, saved activations and messages that are counted in a tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.parallel.spawn import run_ranks
from tests.training.parallel.training_steps import (
    CONFIG,
    EIGHT,
    Case,
    NextTokens,
    make_worker,
    micro_batch,
    settings_of,
)
from training.batch import TokenBatch
from training.config import ParallelismSettings
from training.errors import TrainingError
from training.model.build import build_model
from training.model.context import make_context
from training.model.description import ModelDescription
from training.parallel.memory import layer_activations, layer_copies
from training.parallel.plan import make_plan
from training.parallel.sizes import stage_count
from training.parallel.traffic import stage_traffic

if TYPE_CHECKING:
    from pathlib import Path

    from training.config import Settings
    from training.parallel.ranks import Ranks

CASE = Case(1, {}, {})
WIDE = {"hidden_size": 64, "moe_intermediate_size": 48, "router_hidden_size": 16, "max_position_embeddings": 256}


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "task_heads": {"reasoning": {}}}])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_all_parameters_of_a_stage_are_counted(pipeline: int, changes: dict[str, Any]) -> None:
    description = ModelDescription.parse({**CONFIG, **changes})
    for stage in range(pipeline):
        layers = range(stage * 4 // pipeline, (stage + 1) * 4 // pipeline)
        model = build_model(description, None, layers=layers)
        expected = sum(parameter.numel() for parameter in model.parameters())
        assert stage_count(description.config, stage, 1, pipeline).total == expected


@pytest.mark.parametrize(("precision", "layer"), [*(("float32", layer) for layer in range(4)), ("bfloat16", 0)])
def test_what_autograd_keeps_of_a_layer_is_planned(precision: str, layer: int) -> None:
    description = ModelDescription.parse({**CONFIG, **WIDE, "expert_capacity": 4.0})
    settings = _with(settings_of(CASE, ParallelismSettings()), precision=precision, max_length=128)

    kept = _kept_bytes(description, layer, rows=2, width=128, is_bfloat16=precision == "bfloat16")

    planned = layer_activations(settings, description.config, layer) + layer_copies(settings, description.config, layer)
    assert planned == pytest.approx(kept, rel=0.03)


def _kept_bytes(description: ModelDescription, layer: int, *, rows: int, width: int, is_bfloat16: bool) -> int:
    model = build_model(description, None)
    ids_BT = torch.randint(2, 96, (rows, width))
    tokens = TokenBatch(ids_BT, torch.zeros_like(ids_BT), torch.full((rows,), width))
    context = make_context(tokens, model._rotary, 0.01, model.statistics)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_BTH = model.model.embed(tokens)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
        result = model.model.layers[str(layer)](x_BTH, context)
    del result
    return sum(kept.values())


def test_messages_of_the_tensor_axis_are_counted() -> None:
    degrees = ParallelismSettings(tensor=2)
    planned = stage_traffic(settings_of(CASE, degrees), ModelDescription.parse(CONFIG).config, 0)["tensor"]

    counts = run_ranks(_num_messages, (2, 1, 1))

    assert counts == [planned.messages] * 2


def _num_messages(ranks: Ranks) -> int:
    worker = make_worker(ranks, CASE)
    with _Messages() as messages:
        worker.forward_backward(NextTokens(), [micro_batch(number) for number in range(4)], 1.0)
    return messages.count


class _Messages(TorchDispatchMode):
    """Counts collective operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it comes again as operations on local tensors
        self.count += func.namespace in ("c10d", "_c10d_functional") and "reduce" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_plan_tells_what_fits_and_what_would(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    settings = settings_of(CASE, EIGHT).model_copy(update={"model": path})

    plan = make_plan(settings, memory_gib=80)
    assert plan.fits
    assert "It fits" in plan.text
    for part in ("tensor 2 x pipeline 2 x data 2: 8 ranks", "activations", "optimizer state", "stage 1", "in a node"):
        assert part in plan.text

    plan = make_plan(settings, memory_gib=0.0005)
    assert not plan.fits
    assert "It does not fit: a rank of stage 0 needs" in plan.text
    assert "activation_checkpointing: true" in plan.text


def test_a_plan_of_degrees_that_do_not_divide_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    settings = settings_of(CASE, ParallelismSettings(pipeline=3)).model_copy(update={"model": path})

    with pytest.raises(TrainingError, match=r"parallelism\.pipeline is 3"):
        make_plan(settings)


def _with(settings: Settings, *, precision: str, max_length: int) -> Settings:
    data = settings.data.model_copy(update={"max_length": max_length})
    return settings.model_copy(update={"precision": precision, "data": data})
