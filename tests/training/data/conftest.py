"""Tokenizers for tests of data: one trained on a few words, and one of single bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from engine.loading.resolve import ModelSource
from server.text.tokenizer import Tokenizer
from tests.support.tiny import write_byte_tokenizer
from training.data.train_tokenizer import save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WORDS = "the river runs under a bridge and the fox jumps over it while def add(a, b): return a + b "


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With [SEP], roles and a chat template, as train_tokenizer writes it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(iter([WORDS * 20]), 320), folder)
    return Tokenizer.load(ModelSource(folder, "trained"))


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """256 bytes, BOS and EOS; neither is put anywhere by itself, and there is no [SEP]."""
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return Tokenizer.load(ModelSource(folder, "bytes"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(name, records) -> the path of a JSONL file; a record may be bytes, which become a line as they are."""

    def write_file(name: str, records: Sequence[Any]) -> Path:
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write_file
