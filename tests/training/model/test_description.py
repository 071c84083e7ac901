"""What of config.json training reads, and what it refuses."""

from __future__ import annotations

import pytest

from engine.errors import ModelError
from tests.support import checkpoints
from training.model.description import ModelDescription, TrainingSizes


def test_defaults_are_the_articles(make_dynamic_moe):
    folder = make_dynamic_moe("mixed")
    assert ModelDescription.read(folder).sizes == TrainingSizes(1.25, 0.0, 0.0)
    assert ModelDescription.read(folder / "config.json").config.hidden_size == 64


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"expert_capacity": 0}, "expert_capacity in config.json is 0; expected a positive number"),
        ({"hidden_dropout": 1.0}, "hidden_dropout in config.json is 1.0; expected a number from 0 to below 1"),
        ({"architectures": ["LlamaForCausalLM"], "intermediate_size": 8}, "only DynamicMoEForCausalLM is trained"),
    ],
)
def test_refusals_name_the_key(make_dynamic_moe, tmp_path, changes, text):
    folder = checkpoints.copy(make_dynamic_moe("mixed"), tmp_path / "copy", **changes)
    with pytest.raises(ModelError, match=text):
        ModelDescription.read(folder)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        ModelDescription.read(tmp_path / "config.json")
