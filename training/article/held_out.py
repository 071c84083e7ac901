"""The loss on held-out documents: of models, as the engine computes it, and of n-grams on the same tokens.

Rows are made as for training, so that all count the same tokens. The engine is the one that serves: what int8 costs is
measured where it is used.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.build import load_engine
from engine.config import EngineConfig
from engine.loading.resolve import ModelSource
from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams
from server.text.tokenizer import Tokenizer
from training.article.ngrams import Bigram, Unigram
from training.batch import IGNORED
from training.data.batches import BatchStream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class Row:
    """Tokens of a document, each with its modality, and the last one's successor."""

    token_ids: list[int]
    modalities: bytes


def read_rows(files: Sequence[Path], tokenizer: Tokenizer, max_length: int, num_tokens: int) -> list[Row]:
    """Return rows of documents until they have so many tokens.

    Raises:
        TrainingError: the files have no document.
    """
    stream = BatchStream(files, tokenizer, max_length=max_length, micro_batch_size=1, shuffle=False, epochs=1)
    rows: list[Row] = []
    for batch in stream:
        ids, kinds = batch.tokens.token_ids_BT[0].tolist(), batch.tokens.modality_ids_BT[0].tolist()
        rows.append(Row([*ids, int(batch.targets_BT[0, -1])], bytes([*kinds, kinds[-1]])))
        num_tokens -= len(ids)
        if num_tokens <= 0:
            break
    return rows


def read_pairs(
    files: Sequence[Path], tokenizer: Tokenizer, max_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each token of all documents, and the one that follows it."""
    stream = BatchStream(files, tokenizer, max_length=max_length, micro_batch_size=64, shuffle=False, epochs=1)
    first, following = [], []
    for batch in stream:
        counts = batch.targets_BT != IGNORED
        first.append(batch.tokens.token_ids_BT[counts].numpy())
        following.append(batch.targets_BT[counts].numpy())
    return np.concatenate(first), np.concatenate(following)


def ngram_losses(
    train: tuple[NDArray[np.int64], NDArray[np.int64]], rows: Sequence[Row], vocab_size: int
) -> dict[str, float]:
    """Return the losses of a unigram and of a bigram, in nats a token."""
    first = np.concatenate([row.token_ids[:-1] for row in rows])
    following = np.concatenate([row.token_ids[1:] for row in rows])
    return {
        "unigram": Unigram.of(train[1], vocab_size).loss(following),
        "bigram": Bigram.of(*train, vocab_size).loss(first, following),
    }


def model_losses(model: Path, domains: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Return a model's loss on the rows of each domain, in nats a token.

    Raises:
        DeepseekServeError: the engine cannot load it.
    """
    threads = torch.get_num_threads()
    longest = max(len(row.token_ids) for rows in domains.values() for row in rows)
    config = EngineConfig(
        model=str(model), device="cpu", prefix_caching="off", max_batch_size=_ROWS_AT_A_TIME, max_seq_len=longest + 1
    )
    try:
        engine = load_engine(config)
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, ignore_eos=True)
        losses = {}
        for domain, rows in domains.items():
            total, numbers = 0.0, itertools.count()
            for first in range(0, len(rows), _ROWS_AT_A_TIME):
                for row in rows[first : first + _ROWS_AT_A_TIME]:
                    scheduling = SchedulingParams(time.monotonic())
                    name = f"{domain} {next(numbers)}"
                    engine.add(GenerateRequest(name, row.token_ids, params, 1, scheduling, row.modalities))
                while engine.has_work:
                    for output in engine.step().outputs:
                        total -= math.fsum(item.logprob for item in output.prompt_logprobs or ())
            losses[domain] = total / sum(len(row.token_ids) - 1 for row in rows)
    finally:
        torch.set_num_threads(threads)  # the engine's kernels have threads of their own, and take torch's
    return losses


def tokenizer_of(folder: Path) -> Tokenizer:
    """Return the tokenizer in a folder."""
    return Tokenizer.load(ModelSource(folder, folder.name))
