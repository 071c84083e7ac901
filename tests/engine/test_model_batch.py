"""A plan's tensors. What layers make of them is in test_same_tokens.py and the tests of models."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from engine.cache_groups import CacheGroups, group_layers
from engine.model_batch import ModelBatch
from engine.step import BlockTable, ScheduledSequence, StepPlan
from kernels.attention_pattern import FULL


@dataclass
class _Rotary:
    def at(self, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(positions)[:, None].float(), torch.tensor(positions)[:, None].float()


@dataclass
class _Config:
    num_modalities: int
    cache_groups: CacheGroups


@dataclass
class _Planner:
    config: _Config
    rotary_table: Any

    def plan(self, batches: list[Any]) -> list[Any]:
        return [self]

    def assign(self, other: Any) -> None:
        pass


def _batch(num_modalities: int, *modalities: bytes) -> ModelBatch:
    items = [ScheduledSequence(i, [7, 8, 9], 0, [BlockTable([i])], modalities=ids) for i, ids in enumerate(modalities)]
    planner: Any = _Planner(_Config(num_modalities, group_layers((FULL,))), _Rotary())
    return ModelBatch.build(StepPlan(items), planner, 4, torch.device("cpu"))


@pytest.mark.parametrize("modalities", [b"", b"\0\0\0"])
def test_a_model_of_one_modality_gets_no_ids(modalities):
    assert _batch(1, modalities).modality_ids_T is None


def test_each_token_has_its_modality():
    ids_T = _batch(3, b"", b"\0\1\2", b"").modality_ids_T
    assert ids_T.dtype == torch.int64
    assert ids_T.tolist() == [0, 0, 0, 0, 1, 2, 0, 0, 0]


def test_a_captured_batch_takes_the_modalities_of_a_smaller_one():
    captured = _batch(3, b"\1\1\1", b"\1\1\1")
    ids_T = captured.modality_ids_T
    captured.assign(_batch(3, b"\2\0\2"))
    assert captured.modality_ids_T is ids_T
    assert ids_T.tolist() == [2, 0, 2, 1, 1, 1]
