from __future__ import annotations

import pytest
import torch

from tests.support import tiny_recipe
from training.model.description import ModelDescription
from training.work import TrainingWork, measure_peak


def test_flops_are_counted_by_hand() -> None:
    """One layer, full attention, 5 tokens: projections, router, two experts, compression, output; three times each."""
    model = {**tiny_recipe.MODEL, "num_hidden_layers": 1, "attention_types": ["full"], "memory_compression_ratio": 0.5}
    work = TrainingWork(ModelDescription.parse(model).config)
    projections, router, experts = 16 * 8 * (2 + 1 + 1 + 2), 8 * (16 + 4), 2 * 3 * 16 * 8
    per_token = projections + router + experts + 2 * 16 * 8 + 258 * 16
    pairs = 5 * 6 // 2
    attention = 2 * 2 * 8 * pairs  # scores and values, two heads of 8
    assert work.flops([5]) == 3 * 2 * (5 * per_token + attention)
    assert work.flops([5, 5]) == 2 * work.flops([5])


def test_the_peak_is_above_what_any_core_does_slowly() -> None:
    assert measure_peak(torch.device("cpu"), torch.float32) > 1e8


@pytest.mark.parametrize("length", [64, 512])
def test_block_sparse_attention_costs_no_more_a_token_in_long_rows(length: int) -> None:
    model = {**tiny_recipe.MODEL, "attention_types": ["block_sparse"] * 2, "max_position_embeddings": 4096}
    work = TrainingWork(ModelDescription.parse(model).config)
    assert work.flops([4 * length]) / 4 < 1.6 * work.flops([length])
