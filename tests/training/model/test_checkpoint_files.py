"""Folders that the server serves: read strictly, written whole or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import ModelError
from tests.support import checkpoints
from tests.support.running import load, prompt_logits
from tests.support.token_batches import make_tokens
from training.model.build import build_model
from training.model.checkpoint_files import export, load_weights
from training.model.description import ModelDescription


@pytest.mark.parametrize("variant", ["mixed", "sparse 8"])
def test_the_engine_serves_what_is_exported(make_dynamic_moe, tmp_path, variant):
    description = ModelDescription.read(make_dynamic_moe(variant))
    model, tokens = build_model(description, None, seed=1).eval(), make_tokens(120)
    export(tmp_path / "out", description, model.named_parameters(), tokenizer=None, dtype=torch.float32)
    served = prompt_logits(load(tmp_path / "out"), tokens.token_ids_BT[0].tolist())
    with torch.no_grad():
        assert (model.logits(model(tokens)[0]) - served).abs().max() <= 1e-4


def test_an_export_has_settings_ends_and_the_tokenizer(make_dynamic_moe, tmp_path):
    source = make_dynamic_moe("mixed")
    description = ModelDescription.read(source)
    model = build_model(description, source)
    export(tmp_path / "out", description, model.named_parameters(), tokenizer=source)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {**description.raw, "torch_dtype": "bfloat16"}
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}


def test_an_export_that_breaks_off_leaves_the_one_before(make_dynamic_moe, tmp_path):
    description = ModelDescription.read(make_dynamic_moe("mixed"))
    model = build_model(description, None)
    export(tmp_path / "out", description, model.named_parameters(), tokenizer=None)
    before = load_file(tmp_path / "out/model.safetensors")

    def broken():
        yield from list(model.named_parameters())[:5]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        export(tmp_path / "out", description, broken(), tokenizer=None)
    assert load_file(tmp_path / "out/model.safetensors").keys() == before.keys()
    export(tmp_path / "out", description, model.named_parameters(), tokenizer=None, dtype=torch.float32)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["model.layers.1.mlp.router.noise", "heads.reasoning.bias", "model.norm.weight"])
def test_every_tensor_is_accounted_for(make_dynamic_moe, tmp_path, name):
    folder = checkpoints.copy(make_dynamic_moe("mixed"), tmp_path / "copy")
    checkpoints.edit_weights(folder, lambda tensors: tensors.update({f"{name}s": tensors.pop(name)}))
    with pytest.raises(ModelError, match=f"missing: {name}; unexpected: {name}s"):
        build_model(ModelDescription.read(folder), folder)


def test_a_stage_reads_its_own_tensors_and_knows_the_others(make_dynamic_moe, tmp_path):
    folder = checkpoints.copy(make_dynamic_moe("mixed"), tmp_path / "copy")
    description = ModelDescription.read(folder)
    build_model(description, folder, layers=range(1, 2))
    checkpoints.edit_weights(folder, lambda tensors: tensors.update({"other": torch.zeros(1)}))
    with pytest.raises(ModelError, match="unexpected: other"):
        build_model(description, folder, layers=range(1, 2))


def test_heads_may_be_new(make_dynamic_moe, tmp_path):
    folder = checkpoints.copy(make_dynamic_moe("defaults"), tmp_path / "copy")
    checkpoints.edit_config(folder, {"task_heads": {"classification": {"labels": ["safe", "unsafe"]}}})
    description = ModelDescription.read(folder)
    with pytest.raises(ModelError, match=r"missing: heads\.classification\.bias"):
        build_model(description, folder)
    model = build_model(description, folder, heads_may_be_new=True)
    assert load_weights(model, folder, heads_may_be_new=True) == [
        "heads.classification.weight",
        "heads.classification.bias",
    ]
    assert model.heads["classification"].weight.std().item() == pytest.approx(0.02, rel=0.3)
