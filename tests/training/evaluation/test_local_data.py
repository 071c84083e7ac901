"""MMLU and GSM8K from files: every form that they come in, and one clear error for what is missing or wrong."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from training.errors import TrainingError
from training.evaluation import local_data
from training.evaluation.unavailable import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

GSM8K = [{"question": f"{n} + 1?", "answer": f"It is #### {n + 1}"} for n in range(3)]
QUESTION = {"question": "2 + 2?", "choices": ["3", "4", "5", "6"]}


@pytest.fixture(autouse=True)
def _datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `datasets` is lm-eval's; here a list stands for one of its data sets."""
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=SimpleNamespace(from_list=list)))


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task["task"]: task["custom_dataset"](anything=1) for task in config["task"]}


def test_gsm8k_as_its_authors_give_it(tmp_path: Path) -> None:
    for name, rows in (("train", GSM8K), ("test", GSM8K[:1]), ("test_socratic", [{"question": "no"}])):
        write(tmp_path / "gsm8k" / f"{name}.jsonl", lines(rows))
    assert rows_of(local_data.gsm8k(tmp_path)) == {"gsm8k": {"train": GSM8K, "test": GSM8K[:1]}}


def test_mmlu_as_its_authors_give_it(tmp_path: Path) -> None:
    write(tmp_path / "mmlu/data/dev/anatomy_dev.csv", '"2 + 2?",3,4,5,6,B\n')
    write(tmp_path / "mmlu/data/test/anatomy_test.csv", '"2 + 2?",3,4,5,6,B\n"a, b\nor c?",1,2,3,4,D\n')
    write(tmp_path / "mmlu/data/val/anatomy_val.csv", "not looked at")
    found = local_data.mmlu(tmp_path)
    assert found["task"][0]["num_fewshot"] == 1
    rows = rows_of(found)["mmlu_anatomy"]
    assert rows["dev"] == [QUESTION | {"answer": 1}]
    assert rows["test"][1] == {"question": "a, b\nor c?", "choices": ["1", "2", "3", "4"], "answer": 3}


def test_mmlu_as_the_hub_gives_it(tmp_path: Path) -> None:
    row = QUESTION | {"answer": 2}
    write(tmp_path / "mmlu/all/test-00000-of-00001.jsonl", lines([row | {"subject": "World Religions"}]))
    write(tmp_path / "mmlu/virology/test-00000-of-00001.jsonl", lines([row]))
    assert rows_of(local_data.mmlu(tmp_path)) == {
        "mmlu_virology": {"test": [row]},
        "mmlu_world_religions": {"test": [row]},
    }


def test_blank_lines_and_a_byte_order_mark_are_no_part_of_a_question(tmp_path: Path) -> None:
    for name, content in (
        ("anatomy_test.csv", "\ufeff2 + 2?,3,4,5,6,B\n\n"),
        ("virology_test.jsonl", "\ufeff" + lines([QUESTION | {"answer": 1}]) + "\n"),
        ("world_test.json", "\ufeff" + json.dumps([QUESTION | {"answer": 1}])),
    ):
        write(tmp_path / "mmlu/test" / name, content)
    assert [*rows_of(local_data.mmlu(tmp_path)).values()] == [{"test": [QUESTION | {"answer": 1}]}] * 3


@pytest.mark.parametrize(("load", "word"), [(local_data.gsm8k, "train.jsonl"), (local_data.mmlu, "SUBJECT_dev.csv")])
def test_missing_data_is_named_with_its_folder(load: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as error:
        load(tmp_path)
    assert word in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mmlu/test/anatomy_test.csv", "question,1,2,3,A\n", "anatomy_test.csv, row 1"),
        ("mmlu/test/anatomy_test.csv", "question,1,2,3,4,E\n", "four choices"),
        ("mmlu/test/anatomy_test.jsonl", lines([QUESTION | {"answer": 7}]), "row 1"),
        ("mmlu/test/anatomy_test.jsonl", "[1]\n", "row 1"),
        ("mmlu/test/anatomy_test.jsonl", lines([QUESTION | {"answer": True}]), "row 1"),
        ("mmlu/test/anatomy_test.jsonl", "{", "cannot be read"),
        ("mmlu/test/anatomy_test.jsonl", "[" * 100_000, "nested too deeply"),
        ("mmlu/test/anatomy_test.json", "[" * 100_000, "nested too deeply"),
        ("mmlu/test/anatomy_test.json", "3", "expected a list"),
        ("mmlu/test/anatomy_test.json", "null", "expected a list"),
        ("mmlu/test.jsonl", lines([QUESTION | {"answer": 1}]), "subject"),
    ],
)
def test_wrong_mmlu_is_one_error_with_its_place(name: str, content: str, words: str, tmp_path: Path) -> None:
    write(tmp_path / name, content)
    with pytest.raises(TrainingError, match=words):
        local_data.mmlu(tmp_path)


def test_wrong_gsm8k_is_one_error_with_its_place(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k/test.jsonl", lines([{"question": "?", "answer": 5}]))
    with pytest.raises(TrainingError, match="row 1: expected"):
        local_data.gsm8k(tmp_path)
