"""New weights: by name and seed alone."""

from __future__ import annotations

import pytest
import torch

from training.model.build import build_model
from training.model.description import ModelDescription


@pytest.fixture
def description(make_dynamic_moe):
    return ModelDescription.read(make_dynamic_moe("mixed"))


def test_stages_have_the_weights_of_the_whole(description):
    whole = dict(build_model(description, None, seed=3).named_parameters())
    for layers in (range(1), range(1, 3)):
        for name, parameter in build_model(description, None, seed=3, layers=layers).named_parameters():
            assert torch.equal(parameter, whole[name])


def test_seeds_differ_and_so_do_tensors(description):
    first, second = (dict(build_model(description, None, seed=seed).named_parameters()) for seed in (0, 1))
    gates = [first[f"model.layers.0.mlp.experts.{e}.gate_proj.weight"] for e in range(6)]
    assert not torch.equal(gates[0], gates[1])
    assert not torch.equal(gates[0], second["model.layers.0.mlp.experts.0.gate_proj.weight"])


def test_scales(description):
    weights = build_model(description, None).state_dict()
    for name, tensor in weights.items():
        if "norm.weight" in name:
            assert (tensor == 1).all(), name
        elif "modality" in name or name.endswith("bias"):
            assert not tensor.any(), name
        elif tensor.numel() > 1000:
            assert tensor.std() == pytest.approx(0.02, rel=0.1), name
    noise = torch.cat([tensor for name, tensor in weights.items() if name.endswith("noise")])
    assert noise.std() == pytest.approx(0.1, rel=0.5)
