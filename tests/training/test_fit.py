from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support import tiny_recipe
from training.errors import TrainingError
from training.fit import TRAINED, check_fits, num_parameters
from training.model.description import ModelDescription
from training.model.dynamic_moe import DynamicMoE
from training.parts import build_parts

if TYPE_CHECKING:
    from pathlib import Path

    from training.config import Settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "task_heads": {"reasoning": {}}}])
def test_the_count_is_that_of_the_built_model(changes: dict[str, Any]) -> None:
    config = ModelDescription.parse({**tiny_recipe.MODEL, **changes}).config
    assert num_parameters(config) == sum(parameter.numel() for parameter in DynamicMoE(config).parameters())


def _build(settings: Settings) -> None:
    with build_parts(settings, TRAINED["Lion"]):
        pass


def _change(folder: Path, **changes: Any) -> None:
    (folder / "model" / "config.json").write_text(json.dumps({**tiny_recipe.MODEL, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 4194304},
        {"vocab_size": (1 << 24) - 1, "hidden_size": 4096},
        {"moe_intermediate_size": (1 << 24) - 1, "hidden_size": 4096},
        {"router_hidden_size": (1 << 24) - 1, "hidden_size": 4096},
        {"num_modalities": (1 << 24) - 1, "hidden_size": 4096},
        {"num_attention_heads": (1 << 24) - 1, "head_dim": 512},
        {"memory_compression_ratio": 500000, "hidden_size": 32, "num_hidden_layers": 256, "attention_types": None},
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("it is built")

    monkeypatch.setattr("training.worker.build_model", build)
    monkeypatch.setattr("training.fit.available_bytes", lambda *_, **__: 1 << 35)
    settings = tiny_recipe.settings(tmp_path)
    _change(tmp_path, **changes)
    with (
        pytest.raises(TrainingError, match=r"a process needs at least [\d,]+ GiB, and 32 are free"),
        build_parts(settings, TRAINED["Lion"]),
    ):
        pass


def test_what_a_process_needs_at_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelDescription.parse(tiny_recipe.MODEL).config
    size = 4 * num_parameters(config)

    def fits(free: int, optimizer: str, *overrides: str) -> bool:
        monkeypatch.setattr("training.fit.available_bytes", lambda *_, **__: free)
        try:
            check_fits(tiny_recipe.settings(tmp_path, *overrides), config, CPU, TRAINED[optimizer])
        except TrainingError:
            return False
        return True

    for count, optimizer, overrides in (
        (3, "Lion", ()),
        (4, "AdamW", ()),
        (4, "Lion", ("objective=dpo",)),
        (1, "AdamW", ("objective={kind: reasoning, train: head}",)),
    ):
        assert fits(count * size, optimizer, *overrides)
        assert not fits(count * size - 1, optimizer, *overrides)


def test_too_little_memory_to_build_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> None:
        raise RuntimeError("x: you can't allocate memory")

    monkeypatch.setattr("training.worker.build_model", build)
    settings = tiny_recipe.settings(tmp_path)
    with (
        pytest.raises(TrainingError, match=r"^there is not enough memory to build the [\d,]+ parameters of "),
        build_parts(settings, TRAINED["Lion"]),
    ):
        pass
