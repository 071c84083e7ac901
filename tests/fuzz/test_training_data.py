"""Damaged data for training: each file gives batches, or is refused with a TrainingError."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.loading.resolve import ModelSource
from server.text.tokenizer import Tokenizer
from tests.fuzz.values import FUZZ, damaged, mutated
from training.data import BatchStream
from training.data.train_tokenizer import save_tokenizer, train_tokenizer
from training.errors import TrainingError

if TYPE_CHECKING:
    from pathlib import Path

    from training.data.records import Kind

_USER, _ANSWER = {"role": "user", "content": "Hi ```x```"}, {"role": "assistant", "content": "<think>a</think>b"}
_CODE = {"role": "user", "content": [{"type": "code", "text": "a + b"}, {"type": "text", "text": "?"}]}
_RECORDS: dict[Kind, dict[str, Any]] = {
    "language_model": {"title": "T", "text": "a ```b``` c", "modality": "code"},
    "sft": {"messages": [_CODE, _ANSWER, _USER, _ANSWER]},
    "dpo": {"prompt": [_USER], "chosen": "yes", "rejected": [_ANSWER]},
    "classification": {"text": "a b", "label": "good"},
    "reasoning": {"text": "a b", "label": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files are, and a tokenizer."""
    path = tmp_path_factory.mktemp("data")
    save_tokenizer(train_tokenizer(iter(["a b c yes"] * 20), 270), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    """The model's."""
    return Tokenizer.load(ModelSource(folder, "data"))


def _read(path: Path, tokenizer: Tokenizer, kind: Kind) -> None:
    with contextlib.suppress(TrainingError):
        stream = BatchStream(
            [path], tokenizer, kind=kind, labels=["good", "bad"], max_length=24, micro_batch_size=2, epochs=1
        )
        for batch in stream:
            assert 1 <= int(batch.tokens.lengths_B.min()) <= int(batch.tokens.lengths_B.max()) <= 24
            assert 0 <= int(batch.tokens.token_ids_BT.min()) <= int(batch.tokens.token_ids_BT.max()) < 270
            assert batch.labels_B is None or int(batch.labels_B.max()) < 2


@pytest.mark.parametrize("kind", _RECORDS)
def test_damaged_records_are_used_or_left_out(kind: Kind, folder: Path, tokenizer: Tokenizer) -> None:
    @FUZZ
    @given(st.lists(damaged(_RECORDS[kind]), min_size=1, max_size=3))
    def check(records: list[Any]) -> None:
        path = folder / "records.jsonl"
        path.write_text("\n".join(json.dumps(record) for record in records))
        _read(path, tokenizer, kind)

    check()


@pytest.mark.parametrize("name", ["bytes.jsonl", "bytes.txt"])
def test_damaged_bytes_are_used_or_left_out(name: str, folder: Path, tokenizer: Tokenizer) -> None:
    good = "\n".join(json.dumps(_RECORDS["language_model"]) for _ in range(3)).encode()

    @FUZZ
    @given(mutated(good) | st.binary(max_size=300))
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        _read(folder / name, tokenizer, "language_model")

    check()
