from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.errors import ConfigError
from training.config import DPOSettings, Settings
from training.read_config import read_settings, write_settings

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = "output: out\nmodel: config.json\ndata: {files: [a.jsonl, docs]}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_defaults_are_the_article_s(recipe: Path) -> None:
    settings = read_settings(recipe)
    names = ("precision", "optimizer", "learning_rate", "weight_decay", "beta1", "beta2", "gradient_clipping")
    assert [getattr(settings, name) for name in names] == ["bfloat16", "Lion", 3e-5, 0.01, 0.9, 0.99, 1.0]
    names = ("warmup_steps", "total_steps", "checkpoint_interval", "keep_last")
    assert [getattr(settings, name) for name in names] == [2000, 100_000, 1000, 3]
    assert settings.data.max_length == 4096
    assert settings.parallelism.num_ranks == 1


def test_overrides_are_yaml_and_reach_into_sections(recipe: Path) -> None:
    overrides = [
        "learning_rate=3e-4",
        "data.max_length=64",
        "objective.kind=dpo",
        "objective.beta=0.3",
        "warmup_steps=0",
    ]
    settings = read_settings(recipe, overrides)
    assert (settings.learning_rate, settings.data.max_length, settings.warmup_steps) == (3e-4, 64, 0)
    assert settings.objective == DPOSettings(kind="dpo", beta=0.3)
    assert [str(path) for path in settings.data.files] == ["a.jsonl", "docs"]


def test_an_objective_may_be_a_word(recipe: Path) -> None:
    assert read_settings(recipe, ["objective=dpo"]).objective == DPOSettings(kind="dpo", beta=0.1)
    assert read_settings(recipe, ["objective=dpo", "objective.beta=0.5"]).objective == DPOSettings(kind="dpo", beta=0.5)


def test_settings_are_written_as_a_recipe(recipe: Path, tmp_path: Path) -> None:
    settings = read_settings(recipe, ["learning_rate=1e-4", "objective=dpo", "validation.files=[b.jsonl]"])
    write_settings(tmp_path / "again.yaml", settings)
    assert read_settings(tmp_path / "again.yaml") == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=fast", "learning_rate is 'fast'; expected a number"),
        ("learning_rate=0", "learning_rate is 0; expected more than 0"),
        ("learning_rate=.inf", "learning_rate is inf; expected a finite number"),
        ("total_steps=yes", "total_steps is True; expected a whole number"),
        ("total_steps=1.5", "total_steps is 1.5; expected a whole number"),
        ("accumulation_steps=100000", "accumulation_steps is 100000; expected at most 65536"),
        ("beta1=1.0", "beta1 is 1.0; expected less than 1.0"),
        ("optimizer=SGD", "optimizer is 'SGD'; expected one of Lion, AdamW"),
        ("lerning_rate=1", "there is no setting lerning_rate; did you mean learning_rate?"),
        ("data.length=8", "there is no setting data.length; did you mean data.max_length?"),
        ("xyz=1", "there is no setting xyz; deepseek-train --help lists them"),
        ("data=3", "data is 3; expected keys with values"),
        ("data.files=[]", "data.files is []; expected a list of 1 or more"),
        (
            "objective=poetry",
            "objective is poetry; expected one of language_model, sft, dpo, classification, reasoning",
        ),
        ("objective={kind: classification, labels: [a]}", "objective.labels is ['a']; expected a list of 2 or more"),
        ("objective={kind: classification, labels: [1, 2]}", "objective.labels.0 is 1; expected a text"),
        ("objective={kind: dpo, beat: 1.0}", "there is no setting objective.beat; did you mean objective.beta?"),
        ("objective={beta: 1.0}", "objective needs a kind"),
        ("warmup_steps=200001", "warmup_steps is 200001; expected at most total_steps (100000)"),
        ("activation_checkpointing=1", "activation_checkpointing is 1; expected true or false"),
        ("ewc={}", "ewc.fisher is missing"),
        ("model=", "model is None; expected a path"),
        ("total_steps", "'total_steps' is no setting; expected KEY=VALUE"),
        ("=1", "'=1' is no setting; expected KEY=VALUE"),
        ("seed.low=1", "seed is {'low': 1}; expected a whole number"),
        ("seed={", "'seed={' cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(recipe, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold settings"),
        (b"- a\n- b\n", "must hold settings"),
        (b"a: [1\n", "cannot be read: while parsing"),
        (b"a: \xff\n", "cannot be read: 'utf-8' codec"),
        (b"output: x\n", "model is missing; data is missing"),
        (b"a: !!python/object/apply:os.system ['true']\n", "cannot be read: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe(recipe: Path, content: bytes, message: str) -> None:
    recipe.write_bytes(content)
    with pytest.raises(ConfigError, match="recipe") as caught:
        read_settings(recipe)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "none.yaml")


def test_every_setting_has_its_help() -> None:
    sections = {"data", "validation", "ewc", "parallelism"}
    assert [name for name, field in Settings.model_fields.items() if not field.description] == [
        name for name in Settings.model_fields if name in sections
    ]
