from pathlib import Path

import pytest

from tests.training.parallel.training_steps import CONFIG
from training.config import DataSettings, ParallelismSettings, Settings
from training.errors import TrainingError
from training.model.description import ModelDescription
from training.parallel.degrees import check_degrees, check_processes

FITTING = ParallelismSettings(tensor=2, pipeline=2, data=2)


@pytest.mark.parametrize(
    ("axis", "degree", "message"),
    [
        (
            "tensor",
            4,
            "parallelism.tensor is 4; expected a divisor of num_attention_heads (4), num_key_value_heads (2) and "
            "moe_num_experts (4): 1, 2",
        ),
        ("tensor", 3, ": 1, 2"),
        ("pipeline", 3, "parallelism.pipeline is 3; expected a divisor of num_hidden_layers (4): 1, 2, 4"),
        ("pipeline", 8, ": 1, 2, 4"),
        (
            "data",
            4,
            "parallelism.data is 4; expected a divisor of accumulation_steps (6): 1, 2, 3, 6, or accumulation_steps "
            "that are a multiple of 4",
        ),
    ],
)
def test_a_degree_that_does_not_divide_is_named_with_those_that_do(axis: str, degree: int, message: str) -> None:
    settings = _settings(FITTING.model_copy(update={axis: degree}))

    with pytest.raises(TrainingError) as error:
        check_degrees(settings, ModelDescription.parse(CONFIG).config)

    assert message in str(error.value)


def test_degrees_that_divide_are_taken() -> None:
    check_degrees(_settings(FITTING), ModelDescription.parse(CONFIG).config)


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "16"}])
def test_another_number_of_processes_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(TrainingError, match=r"8 processes, and .* started; expected torchrun --nproc-per-node 8"):
        check_processes(FITTING, environment)


def test_as_many_processes_as_ranks_are_taken() -> None:
    check_processes(FITTING, {"WORLD_SIZE": "8"})
    check_processes(ParallelismSettings(), {})


def _settings(degrees: ParallelismSettings) -> Settings:
    data = DataSettings(files=(Path("none"),))
    return Settings(output=Path("none"), model=Path("none"), data=data, parallelism=degrees, accumulation_steps=6)
