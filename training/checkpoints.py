"""What a checkpoint holds: the model's and the optimizer's tensors, and each rank's place in data and random numbers.

Tensors go through torch.distributed.checkpoint, which divides them over ranks and brings them together again. How a
folder appears whole or not at all is training.checkpoint_folder's. The learning rate follows from the step.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from training import checkpoint_folder
from training.errors import TrainingError
from training.optimizer import add_empty_state, state_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.optim import Optimizer

    from training.worker import Worker

logger = logging.getLogger(__name__)

_TENSORS, _RUN = "tensors", "run.json"
_RANK_FILE = "rank-{rank}.json"
_MODEL, _OPTIMIZER = "model/", "optimizer/"  # prefixes of tensors' names


@dataclass
class RunState:
    """What a run counts, and where its data stands.

    Attributes:
        step: steps that are done, skipped ones included.
        skipped_steps: of these, steps whose gradients were not finite.
        skipped_in_a_row: of these, the ones at the end.
        num_tokens: tokens that were read, without padding, by all ranks.
        data: `BatchStream.state()`, which is the same for any rank and number of ranks.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    num_tokens: int = 0
    data: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run; all ranks call each method together."""

    def __init__(self, root: Path, keep_last: int, worker: Worker, optimizer: Optimizer) -> None:
        self._root, self._keep_last = root, keep_last
        self._worker, self._optimizer = worker, optimizer

    def save(self, state: RunState, run: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then delete those that are too many. `run` is what `read_run` gives back.

        Raises:
            TrainingError: it cannot be written; the ones before it are as they were.
        """
        try:
            return self._save(state, run)
        except (OSError, CheckpointException) as error:
            if self._worker.is_main:
                checkpoint_folder.discard(self._root, state.step)  # it may be what fills the disk
            reason = str(error).strip().splitlines()[-1]
            raise TrainingError(f"the checkpoint of step {state.step} cannot be written: {reason}") from error

    def _save(self, state: RunState, run: Mapping[str, Any]) -> Path:
        if self._worker.is_main:
            folder = checkpoint_folder.begin(self._root, state.step)
            (folder / _RUN).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        self._worker.barrier()
        folder = checkpoint_folder.unfinished(self._root, state.step)
        place = {"state": dataclasses.asdict(state), "random": _random_state(self._worker.device)}
        (folder / _RANK_FILE.format(rank=self._worker.rank)).write_text(json.dumps(place) + "\n", encoding="utf-8")
        writer = FileSystemWriter(folder / _TENSORS)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process needs none
            save(self._tensors(), storage_writer=writer)
        self._worker.barrier()
        if self._worker.is_main:
            checkpoint_folder.commit(self._root, state.step)
            checkpoint_folder.prune(self._root, self._keep_last)
        return checkpoint_folder.finished(self._root, state.step)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones before it are named in the log. None if there is none."""
        step = self._newest_step() if self._worker.is_main else 0
        step = self._worker.max_over_ranks(step)
        return checkpoint_folder.finished(self._root, step) if step else None

    def load(self, folder: Path, *, has_same_ranks: bool = True) -> RunState:
        """Put a checkpoint's tensors in place, and this rank's random numbers if the ranks divide the model as then.

        Raises:
            TrainingError: it is of another model, or files are missing.
        """
        reader = FileSystemReader(folder / _TENSORS)
        try:
            stored = reader.read_metadata().state_dict_metadata
            shapes = {name: entry.size for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
            optimizer = {name.removeprefix(_OPTIMIZER): shapes[name] for name in shapes if name.startswith(_OPTIMIZER)}
            add_empty_state(self._worker.module, self._optimizer, optimizer)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                load(self._tensors(), storage_reader=reader)
            rank_file = _RANK_FILE.format(rank=self._worker.rank if has_same_ranks else 0)
            place = json.loads((folder / rank_file).read_text(encoding="utf-8"))
        except (CheckpointException, RuntimeError, ValueError, OSError) as error:
            first = str(error).strip().splitlines()[-1]
            raise TrainingError(f"{folder} does not fit this model: {first}") from error
        if has_same_ranks:
            _set_random_state(place["random"], self._worker.device)
        return RunState(**place["state"])

    def _newest_step(self) -> int:
        for step, folder in checkpoint_folder.step_folders(self._root).items():
            if (fault := checkpoint_folder.damage(folder)) is None:
                return step
            logger.warning("%s is damaged and is passed over: %s", folder, fault)
        return 0

    def _tensors(self) -> dict[str, Any]:
        """All tensors by name, themselves: what is loaded into them is loaded into model and optimizer."""
        module = self._worker.module
        model = {f"{_MODEL}{name}": tensor for name, tensor in module.state_dict().items()}
        state = {f"{_OPTIMIZER}{name}": tensor for name, tensor in state_tensors(module, self._optimizer).items()}
        return {**model, **state}


def read_run(folder: Path) -> dict[str, Any]:
    """What `save` was told of the run."""
    run: dict[str, Any] = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    return run


def _random_state(device: torch.device) -> dict[str, str]:
    """The state of torch's generators, which dropout draws from; data has generators of its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def _set_random_state(states: Mapping[str, str], device: torch.device) -> None:
    for name, text in states.items():
        state = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        if name == "cpu":
            torch.set_rng_state(state)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
