"""Tensors that are not finite: a model that computes with one does not start, and the error names the tensor."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import LlamaForSequenceClassification

from engine.errors import ModelError
from engine.loading.finite import first_not_finite, is_finite
from kernels.round_to_blocks import round_to_blocks
from tests.support import checkpoints
from tests.support.running import load


class Source(dict):
    """A TensorSource of tensors in memory."""

    names, read = dict.keys, dict.__getitem__


def damage(folder, name: str, value: float, count: int = 1) -> None:
    """Set the first values of a tensor."""
    checkpoints.edit_weights(folder, lambda tensors: tensors[name].view(-1)[:count].fill_(value))


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.norm.weight", float("nan")),
        ("model.embed_tokens.weight", float("inf")),  # of token 0, which the warm-up reads
        ("model.layers.1.mlp.up_proj.weight", float("nan")),
        ("model.layers.2.self_attn.q_proj.weight", float("-inf")),
    ],
)
def test_a_model_that_is_not_finite_is_refused_by_the_tensor(folder, name, value, quantization):
    damage(folder, name, value)
    with pytest.raises(ModelError, match=rf"{re.escape(name)} has values that are infinite or no numbers"):
        load(folder, quantization=quantization)


@pytest.mark.parametrize("name", ["score.weight", "model.norm.weight"])
def test_a_model_that_generates_nothing_is_refused_too(make_llama, tmp_path, name):
    folder = checkpoints.copy(make_llama(kind=LlamaForSequenceClassification, pad_token_id=0), tmp_path / "copy")
    damage(folder, name, float("nan"))
    with pytest.raises(ModelError, match=rf"{re.escape(name)} has values that are infinite or no numbers"):
        load(folder)


def test_a_head_beside_the_one_that_generates_is_looked_at(make_dynamic_moe, tmp_path):
    folder = checkpoints.copy(make_dynamic_moe("mixed"), tmp_path / "copy")
    name = next(name for name in checkpoints.read_weights(folder) if name.startswith("heads."))
    damage(folder, name, float("nan"))
    with pytest.raises(ModelError, match=rf"{re.escape(name)} has values that are infinite or no numbers"):
        load(folder)


def test_a_model_of_finite_tensors_that_overflows_is_refused(folder):
    damage(folder, "model.norm.weight", 3e38, count=64)
    with pytest.raises(ModelError, match="though all its tensors are finite: they are beyond float32"):
        load(folder)


def test_a_good_start_looks_at_no_tensor_again(tiny_llama, monkeypatch):
    monkeypatch.setattr("engine.build.first_not_finite", lambda _: pytest.fail("tensors were read again"))
    load(tiny_llama)


def test_layers_come_in_their_order():
    broken = torch.tensor([float("nan")])
    source = Source({"layers.10.w": broken, "layers.9.w": broken, "layers.8.w": torch.ones(1)})
    assert first_not_finite(source) == "layers.9.w"
    assert first_not_finite(Source({"layers.8.w": torch.ones(1)})) is None


def test_blocks_and_whole_numbers_are_checked_by_their_values():
    weight = round_to_blocks(torch.randn(4, 64), "q8_0")
    assert is_finite(weight)
    weight.rows_OB[1, :2] = torch.tensor([float("inf")], dtype=torch.float16).view(torch.uint8)
    assert not is_finite(weight)
    assert is_finite(torch.arange(4))
    assert not is_finite(torch.tensor([float("nan")]).to(torch.float8_e4m3fn))
