"""The same training on other layouts. `make train-parallel-test` has all layouts, more cases and twenty steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from tests.training.parallel.spawn import run_ranks
from tests.training.parallel.training_steps import (
    CONFIG,
    EIGHT,
    Case,
    NextTokens,
    Trained,
    make_worker,
    micro_batch,
    settings_of,
    train,
)
from training.continual.ewc import EWCPenalty
from training.continual.fisher import FISHER, WEIGHT
from training.model.build import build_model
from training.model.checkpoint_files import export
from training.model.description import ModelDescription
from training.objectives.classification import Classification
from training.parallel.gradients import local_part
from training.parallel.memory import stage_memory

if TYPE_CHECKING:
    from pathlib import Path

    from training.parallel.ranks import Ranks

CASE = Case(steps=2, config={}, settings={})


def test_eight_ranks_train_as_one_process_does() -> None:
    alone = train(None, CASE)
    assert all(step["dropped"] > 0.02 and step["norm"] > 0.5 for step in alone.steps)  # the case has drops and clips

    main, *others = run_ranks(train, (2, 2, 2), CASE)

    _assert_alike(main, alone)
    for other in others:  # each rank knows the sums, and the main one has the weights
        assert (other.steps, other.validation, other.weights) == (main.steps, main.validation, {})
    config = ModelDescription.parse(CONFIG).config
    planned = [stage_memory(settings_of(CASE, EIGHT), config, stage).weights // 4 for stage in (0, 1)]
    for rank, trained in enumerate((main, *others)):
        assert trained.num_values == pytest.approx(planned[rank // 4], rel=0.03)  # a row is not divided


def test_two_stages_share_the_table_of_tokens() -> None:
    case = replace(CASE, config={"tie_word_embeddings": True})

    main, _ = run_ranks(train, (1, 2, 1), case)

    _assert_alike(main, train(None, case))


def test_a_shared_table_that_the_loss_does_not_use_has_its_gradient() -> None:
    assert run_ranks(_norm_of_labels, (1, 2, 1)) == pytest.approx([_norm_of_labels(None)] * 2, rel=1e-5)


def _norm_of_labels(ranks: Ranks | None) -> float:
    heads = {"task_heads": {"classification": {"labels": ["a", "b"]}}, "tie_word_embeddings": True}
    worker = make_worker(ranks, replace(CASE, config=heads))
    batches = [replace(micro_batch(number), labels_B=torch.tensor([0, 1])) for number in range(2)]
    worker.forward_backward(Classification(only_head=False), batches, 0.5)
    return worker.clip_gradients(1.0)


def test_each_rank_reads_its_part_of_a_folder(tmp_path: Path) -> None:
    folder, description = tmp_path / "model", ModelDescription.parse(CONFIG)
    model = build_model(description, None, seed=5)
    export(folder, description, model.named_parameters(), tokenizer=None, dtype=torch.float32)

    main, *_ = run_ranks(_read_and_gather, (2, 2, 1), folder)

    assert main.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert main[name] == parameter.flatten().tolist(), name


def _read_and_gather(ranks: Ranks, folder: Path) -> dict[str, list[float]]:
    worker = make_worker(ranks, CASE, folder)
    return {name: tensor.flatten().tolist() for name, tensor in worker.gather()}


def test_a_penalty_on_weights_is_that_of_the_whole_model(tmp_path: Path) -> None:
    path, model = tmp_path / "fisher", build_model(ModelDescription.parse(CONFIG), None, seed=2)
    fisher = {FISHER + name: torch.rand(parameter.shape) for name, parameter in model.named_parameters()}
    save_file(fisher | {WEIGHT + name: parameter.detach() for name, parameter in model.named_parameters()}, path)

    alone = _with_penalty(None, path)

    assert run_ranks(_with_penalty, (2, 1, 2), path) == [pytest.approx(alone)] * 4
    assert alone[0] > 1


def _with_penalty(ranks: Ranks | None, path: Path) -> tuple[float, float]:
    worker = make_worker(ranks, CASE)
    own = range(worker.data_rank, 2, worker.data_degree)
    worker.forward_backward(NextTokens(), [micro_batch(number) for number in own], 0.01)
    values = EWCPenalty(path, 100.0, worker.module).add_gradients(worker.module)
    return worker.sum_over_parts(values), worker.clip_gradients(1.0)


def test_a_gradient_that_is_no_number_on_one_rank_is_known_to_all() -> None:
    assert all(map(math.isnan, run_ranks(_norm_with_a_broken_expert, (2, 1, 2))))


def _norm_with_a_broken_expert(ranks: Ranks) -> float:
    worker = make_worker(ranks, CASE)
    if ranks.rank == ranks.degrees.num_ranks - 1:
        for parameter in worker.module.model.layers["3"].mlp.experts.parameters():
            local_part(parameter.detach()).fill_(math.nan)
    worker.forward_backward(NextTokens(), [micro_batch(0)], 1.0)
    return worker.clip_gradients(1.0)


def _assert_alike(trained: Trained, alone: Trained) -> None:
    for number, (step, expected) in enumerate(zip(trained.steps, alone.steps, strict=True)):
        assert step == pytest.approx(expected, abs=1e-5), number
    assert trained.validation == pytest.approx(alone.validation, rel=1e-5)
    assert trained.weights.keys() == alone.weights.keys()
    for name, values in trained.weights.items():
        assert values == pytest.approx(alone.weights[name], abs=1e-5), name
