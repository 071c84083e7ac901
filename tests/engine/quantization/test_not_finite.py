"""Weights that cannot be quantised: each scheme ends with an error that names the tensor or layer."""

from __future__ import annotations

import re

import pytest
import torch

from engine.errors import ModelError
from engine.loading.resolve import resolve_model
from engine.quantization.layer_names import naming
from engine.quantization.packing import storable
from engine.quantization.quantize import quantize
from tests.support import checkpoints
from tests.support.int8 import PROMPTS

UP = "model.layers.1.mlp.up_proj.weight"


def make(folder, out, name: str, value: float, scheme: str) -> None:
    """Quantise a checkpoint, one value of which was changed."""
    checkpoints.edit_weights(folder, lambda tensors: tensors[name].view(-1)[67:68].fill_(value))
    out.mkdir()
    quantize(resolve_model(str(folder)), out, scheme, PROMPTS, progress=False)


@pytest.mark.parametrize("scheme", ["w8", "w8a8-static", "w4a16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight"])
def test_a_tensor_that_is_not_finite_is_named(folder, tmp_path, name, value, scheme):
    with pytest.raises(ModelError, match=rf"{re.escape(name)} has values that are infinite or no numbers"):
        make(folder, tmp_path / "out", name, value, scheme)


def test_a_head_that_no_text_runs_through_is_named(folder, tmp_path):
    with pytest.raises(ModelError, match=r"lm_head\.weight has values that are infinite or no numbers"):
        make(folder, tmp_path / "out", "lm_head.weight", float("nan"), "w8")


def test_a_weight_beyond_the_scales_of_4_bits_is_named(folder, tmp_path):
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj cannot be quantised: a scale is beyond fp16"):
        make(folder, tmp_path / "out", UP, 1e7, "w4a16")


def test_activations_that_overflow_are_named_by_who_reads_them(folder, tmp_path):
    with pytest.raises(ModelError, match=r"model\.layers\.\S+ reads values that are infinite or no numbers"):
        make(folder, tmp_path / "out", "model.layers.1.self_attn.v_proj.weight", 3e38, "w8a8-dynamic")


def test_scales_that_cannot_be_stored_are_an_error_with_the_layers_name():
    with pytest.raises(ModelError, match="the weight of a cannot be quantised: a scale is beyond fp16"), naming(["a"]):
        storable(torch.tensor([1.0, 1e6]))
