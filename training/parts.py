"""Reads and builds what a recipe names: model, tokenizer, objective, worker, streams of batches."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.device import resolve_device
from engine.loading.resolve import ModelSource
from server.text.tokenizer import Tokenizer
from training.data.batches import BatchStream
from training.errors import TrainingError
from training.fit import check_fits, enough_memory, num_parameters
from training.model.description import ModelDescription
from training.objectives.heads import with_heads
from training.objectives.objective import Objective, make
from training.parallel.degrees import check_degrees, check_processes
from training.worker import Worker, local_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from training.config import Settings


@dataclass(frozen=True)
class Parts:
    """What training and measuring both need of a recipe."""

    settings: Settings
    description: ModelDescription
    tokenizer: Tokenizer
    objective: Objective
    worker: Worker

    def stream(self, files: tuple[Path, ...], *, epochs: int | None = None) -> BatchStream:
        """This rank's micro batches of these files."""
        data, config = self.settings.data, self.description.config
        return BatchStream(
            files,
            self.tokenizer,
            kind=self.settings.objective.kind,
            labels=config.task_heads.labels,
            max_length=data.max_length,
            micro_batch_size=data.micro_batch_size,
            pad_to=data.pad_to,
            long_documents=data.long_documents,
            num_modalities=config.num_modalities,
            seed=self.settings.seed,
            epochs=epochs,
            rank=self.worker.data_rank,
            num_ranks=self.worker.data_degree,
            tells=self.worker.is_main,
        )


@contextmanager
def build_parts(settings: Settings, beside: int) -> Iterator[Parts]:
    """Read and build all that a recipe names; `beside` is what training.fit counts for each trained value.

    Raises:
        DeepseekServeError: a file or a setting is at fault.
    """
    description = with_heads(ModelDescription.read(settings.model), settings)
    check_degrees(settings, description.config)
    check_processes(settings.parallelism, os.environ)
    tokenizer = Tokenizer.load(ModelSource(settings.tokenizer_folder, settings.tokenizer_folder.name))
    _check_sizes(settings, description, tokenizer)
    device = resolve_device(settings.device)
    check_fits(settings, description.config, device, beside)
    with ExitStack() as stack:
        with enough_memory(f"to build the {num_parameters(description.config):,} parameters of {settings.model}"):
            objective = make(settings)
            worker = stack.enter_context(_worker(settings, description, device))
        torch.manual_seed(settings.seed + worker.data_rank)  # of dropout: ranks of one model draw the same
        yield Parts(settings, description, tokenizer, objective, worker)


def _worker(settings: Settings, description: ModelDescription, device: torch.device) -> AbstractContextManager[Worker]:
    """One process with the whole model, or one of torchrun's processes with its part."""
    if settings.parallelism.num_ranks == 1:
        return nullcontext(local_worker(settings, description, device))
    from training.parallel.start import parallel_worker  # what one process need not import

    return parallel_worker(settings, description, device)


def _check_sizes(settings: Settings, description: ModelDescription, tokenizer: Tokenizer) -> None:
    """The recipe, the model and the tokenizer fit together.

    Raises:
        TrainingError: they do not.
    """
    config = description.config
    if tokenizer.vocab_size > config.vocab_size:
        raise TrainingError(
            f"vocab_size in config.json is {config.vocab_size}; expected at least the {tokenizer.vocab_size} tokens of "
            f"the tokenizer in {settings.tokenizer_folder}"
        )
    if settings.data.max_length > config.max_position_embeddings:
        raise TrainingError(
            f"data.max_length is {settings.data.max_length}; expected at most max_position_embeddings in config.json "
            f"({config.max_position_embeddings})"
        )
