from __future__ import annotations

import pytest

from training.errors import TrainingError
from training.resume import check

THEN = {
    "output": "a",
    "seed": 1,
    "learning_rate": 1.0,
    "total_steps": 5,
    "data": {"files": ["a"], "max_length": 4},
    "objective": {"kind": "dpo", "beta": 0.1},
    "ewc": None,
    "parallelism": {"tensor": 1, "data": 1},
}


def test_the_same_settings_are_no_change() -> None:
    assert check(THEN, THEN) == []


def test_changes_that_a_run_can_take_are_told() -> None:
    now = {**THEN, "learning_rate": 2.0, "total_steps": 9, "ewc": {"fisher": "f", "strength": 1.0}}
    now["parallelism"] = {"tensor": 1, "data": 2}
    assert check(THEN, now) == [
        "learning_rate was 1.0 and is 2.0",
        "total_steps was 5 and is 9",
        "parallelism.data was 1 and is 2",
        "ewc.fisher was None and is f",
        "ewc.strength was None and is 1.0",
    ]


def test_where_it_is_and_what_data_has_are_not() -> None:
    assert check(THEN, {**THEN, "output": "b", "data": {"files": ["b"], "max_length": 4}}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed was 1 and is 2: the data would come in another order"),
        ({"objective": {"kind": "dpo", "beta": 0.2}}, "objective.beta was 0.1 and is 0.2: the loss"),
        ({"objective": {"kind": "sft"}}, "objective.kind was dpo and is sft"),
    ],
)
def test_changes_that_make_it_another_run_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match="another output") as caught:
        check(THEN, THEN | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["model_weights", "tokenizer_files"])
def test_other_files_are_refused_where_the_checkpoint_knows_its_own(name: str) -> None:
    with pytest.raises(TrainingError, match=f"{name} was a and is b"):
        check({**THEN, name: "a"}, {**THEN, name: "b"})
    assert check(THEN, {**THEN, name: "b"}) == []
