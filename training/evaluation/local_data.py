"""MMLU and GSM8K from files on this machine, in the forms in which their authors and the hub give them out.

They are asked as lm-eval's registered tasks ask them; only the data comes from here. docs/evaluation.md says what
belongs where.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import TrainingError
from training.evaluation.unavailable import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Row = dict[str, Any]
Splits = dict[str, list[Row]]
_FORMS = (".csv", ".jsonl", ".json", ".parquet")
_LETTERS = "ABCD"

_GSM8K = (
    "GSM8K needs train.jsonl and test.jsonl in {}, as its authors give them: lines of "
    '{{"question": ..., "answer": "... #### 18"}}; or the parquet files of the hub\'s openai/gsm8k'
)
_MMLU = (
    "MMLU needs dev and test files in {}: its authors' dev/SUBJECT_dev.csv and test/SUBJECT_test.csv; or the hub's "
    "cais/mmlu as SUBJECT/test-*.parquet; or .jsonl with question, choices, answer and subject"
)


def gsm8k(data: Path) -> dict[str, Any]:
    """Return lm-eval's task of GSM8K (five examples, exact match) on the files in `data`/gsm8k.

    Raises:
        UnavailableError: they are not there.
        TrainingError: one of them is wrong.
    """
    folder = data / "gsm8k"
    splits: Splits = {"train": [], "test": []}
    for split, path, rows in _files(folder, tuple(splits)):
        splits[split] += [_answered(row, path, number) for number, row in enumerate(rows, 1)]
    if not splits["test"] or not splits["train"]:
        raise UnavailableError(_GSM8K.format(folder))
    return {"group": "gsm8k_local", "task": [{"task": "gsm8k", **_from(splits)}]}


def mmlu(data: Path) -> dict[str, Any]:
    """Return lm-eval's tasks of MMLU (five examples, four choices) on the files in `data`/mmlu, as one group.

    Subjects of which there are no files are left out.

    Raises:
        UnavailableError: there are none.
        TrainingError: one of the files is wrong.
    """
    folder = data / "mmlu"
    subjects: dict[str, Splits] = {}
    for split, path, rows in _files(folder, ("dev", "test")):
        for number, row in enumerate(rows, 1):
            question = _question(row, path, number)
            subject = question.pop("subject") or _subject(path, split)
            subjects.setdefault(subject, {"dev": [], "test": []})[split].append(question)
    tasks = [
        {"task": f"mmlu_{subject}", **_examples(splits["dev"]), **_from(splits)}
        for subject, splits in sorted(subjects.items())
        if splits["test"]
    ]
    if not tasks:
        raise UnavailableError(_MMLU.format(folder))
    return {"group": "mmlu_local", "task": tasks}


def _examples(rows: list[Row]) -> dict[str, Any]:
    """The part of a task's configuration that says how many examples precede a question: five, if there are so many."""
    return {"num_fewshot": min(5, len(rows)), **({} if rows else {"fewshot_split": None})}


def _from(splits: Splits) -> dict[str, Callable[..., Any]]:
    """The part of a task's configuration that makes it read these rows."""

    def dataset(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(rows) for split, rows in splits.items() if rows}

    return {"custom_dataset": dataset}


def _files(folder: Path, splits: tuple[str, ...]) -> Iterator[tuple[str, Path, Iterator[Row]]]:
    """Each file of a split: its name or its folder's has the split's name as a word."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in _FORMS and path.is_file():
            words = re.split(r"[^a-z0-9]+", f"{path.parent.name} {path.stem}".lower())
            if "socratic" in words:  # GSM8K's other form
                continue
            if (split := next((split for split in splits if split in words), None)) is not None:
                yield split, path, _rows(path)


def _rows(path: Path) -> Iterator[Row]:
    """Rows of a file. Rows of .csv are a question, four choices and a letter, without a header."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                for cells in filter(None, csv.reader(file)):  # not of blank lines
                    yield {"question": cells[0], "choices": cells[1:-1], "answer": cells[-1].strip()}
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8-sig") as file:
                yield from (json.loads(line) for line in file if line.strip())
        else:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list):
                raise TrainingError(f"{path}: expected a list of rows")
            yield from rows
    except RecursionError:
        raise TrainingError(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError, LookupError, csv.Error) as error:  # pyarrow's errors are such, too
        raise TrainingError(f"{path} cannot be read: {error}") from None


def _answered(row: Row, path: Path, number: int) -> Row:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("question", "answer")):
        raise TrainingError(f'{path}, row {number}: expected {{"question": text, "answer": text}}')
    return {"question": row["question"], "answer": row["answer"]}


def _question(row: Row, path: Path, number: int) -> Row:
    """A row of MMLU with the answer as a number from 0 to 3."""
    match row:
        case {"question": str(question), "choices": [_, _, _, _] as choices, "answer": int(answer) | str(answer)}:
            place = _LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
            if place in range(len(choices)) and not isinstance(answer, bool):
                subject = re.sub(r"[^a-z0-9]+", "_", str(row.get("subject") or "").lower())
                return {"question": question, "choices": [*map(str, choices)], "answer": place, "subject": subject}
    raise TrainingError(f"{path}, row {number}: expected a question, four choices and an answer (A to D, or 0 to 3)")


def _subject(path: Path, split: str) -> str:
    """`anatomy` of test/anatomy_test.csv and of anatomy/test-00000-of-00001.parquet."""
    name = re.sub(rf"_{split}$", "", path.stem)
    name = name if name != path.stem else path.parent.name
    if name in ("mmlu", "data", split):
        raise TrainingError(f'{path}: neither its rows nor its name nor its folder says which "subject" it is about')
    return name
