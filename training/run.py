"""Makes a run of a recipe, trains, and writes the export. The steps themselves are training.loop's."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from training import resume as resuming
from training.checkpoints import Checkpoints, RunState, read_run
from training.continual import fisher
from training.continual.ewc import EWCPenalty
from training.data.batches import BatchStream
from training.digest import digest
from training.errors import TrainingError
from training.fit import GRADIENTS_AND_SUMS, TRAINED, enough_memory, num_parameters
from training.interrupt import Interrupt
from training.loop import Run
from training.loop import train as train_loop
from training.model.checkpoint_files import export, tokenizer_files
from training.optimizer import make_optimizer
from training.parts import Parts, build_parts
from training.progress import Progress
from training.read_config import write_settings
from training.run_folder import CHECKPOINTS, EXPORT, SETTINGS, check_is_free, locked
from training.validation import Validation
from training.work import TrainingWork, measure_peak
from training.worker import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from training.config import Settings

logger = logging.getLogger(__name__)

_LESS_MEMORY = (
    "for a step: lower data.micro_batch_size (and raise accumulation_steps by as much), lower data.max_length, or set "
    "activation_checkpointing: true"
)


def train(settings: Settings, *, resume: bool) -> int:
    """Train to the end and write the export; the exit status.

    Raises:
        DeepseekServeError: a file, a setting or the data is at fault.
    """
    check_is_free(settings.output, resume=resume)
    interrupt = Interrupt()
    with ExitStack() as stack:
        made = stack.enter_context(build_parts(settings, TRAINED[settings.optimizer]))
        if made.worker.is_main:
            stack.enter_context(locked(settings.output))
        stream = made.stream(settings.data.files)
        run = _make_run(made, stream, interrupt)
        if made.worker.is_main:
            write_settings(settings.output / SETTINGS, settings)
        stack.enter_context(run.progress)
        stack.enter_context(interrupt.listen())
        run.progress.say(_introduction(made, run))
        with enough_memory(_LESS_MEMORY):
            is_finished = train_loop(run)
        if not is_finished:
            run.progress.say(f"stopped at step {run.state.step} with a checkpoint; --resume goes on from it")
            return 128 + interrupt.signal
        run.progress.say(
            f"{run.state.num_tokens:,} tokens were read, after {stream.epoch} whole passes of the data; "
            f"{stream.padding_share:.1%} padding; left out: {stream.bad}; steps skipped: {run.state.skipped_steps}"
        )
        folder = settings.output / EXPORT
        _export(made, folder)
        run.progress.say(f"{folder} is the trained model: deepseek-serve {folder}")
    return 0


def _make_run(made: Parts, stream: BatchStream, interrupt: Interrupt) -> Run:
    """A run that begins, or goes on from the newest whole checkpoint."""
    settings, worker = made.settings, made.worker
    optimizer = make_optimizer(settings, worker.module)
    record = {**settings.model_dump(mode="json"), **_digests(made)}
    checkpoints = Checkpoints(settings.output / CHECKPOINTS, settings.keep_last, worker, optimizer)
    state = _go_on(made, stream, checkpoints, record)
    dtype = DTYPES[settings.precision]
    peak = settings.peak_tflops * 1e12 if settings.peak_tflops else measure_peak(worker.device, dtype)
    return Run(
        settings=settings,
        worker=worker,
        objective=made.objective,
        optimizer=optimizer,
        stream=stream,
        checkpoints=checkpoints,
        progress=Progress(
            settings.output if worker.is_main else None,
            first_step=state.step + 1,
            total_steps=settings.total_steps,
            log_interval=settings.log_interval,
        ),
        work=TrainingWork(made.description.config),
        peak_flops=peak * settings.parallelism.num_ranks,
        state=state,
        record=record,
        interrupt=interrupt,
        penalty=_penalty(made),
        validation=_validation(made),
    )


def _go_on(made: Parts, stream: BatchStream, checkpoints: Checkpoints, record: Mapping[str, Any]) -> RunState:
    """The state of the newest whole checkpoint, with tensors, data and random numbers as they were then.

    Raises:
        TrainingError: it is of another run.
    """
    if (newest := checkpoints.newest()) is None:
        return RunState()
    then = read_run(newest)
    changes = resuming.check(then, record)
    has_same_ranks = then["parallelism"] == record["parallelism"]
    state = checkpoints.load(newest, has_same_ranks=has_same_ranks)
    if not has_same_ranks:  # other numbers than those of the steps before
        torch.manual_seed(made.settings.seed + state.step + made.worker.data_rank)
    stream.restore(state.data)
    if made.worker.is_main:
        logger.info("going on from %s%s", newest, "".join(f"; {change}" for change in changes))
    return state


def _penalty(made: Parts) -> EWCPenalty | None:
    ewc = made.settings.ewc
    return None if ewc is None else EWCPenalty(ewc.fisher, ewc.strength, made.worker.module)


def _validation(made: Parts) -> Validation | None:
    """The held-out micro batches of this rank, as many as each other rank has.

    Raises:
        TrainingError: a rank would have none.
    """
    wanted, worker = made.settings.validation, made.worker
    if wanted is None:
        return None
    most = -(-wanted.micro_batches // worker.data_degree)
    batches = list(itertools.islice(made.stream(wanted.files, epochs=1), most))
    if not (share := -worker.max_over_ranks(-len(batches))):
        raise TrainingError(
            f"validation.files have fewer micro batches than there are data ranks ({worker.data_degree}): add "
            "documents, or lower data.micro_batch_size"
        )
    return Validation(batches[:share], wanted.interval)


def _digests(made: Parts) -> dict[str, str]:
    """What tells whether the files that the recipe names are those that the run was started with."""
    settings, config = made.settings, json.dumps(made.description.raw, sort_keys=True)
    weights = settings.model.glob("*.safetensors") if settings.model.is_dir() else ()
    return {
        "model_config": hashlib.sha256(config.encode()).hexdigest()[:16],
        "model_weights": digest(sorted(weights)),
        "tokenizer_files": digest(sorted(tokenizer_files(settings.tokenizer_folder))),
    }


def _introduction(made: Parts, run: Run) -> str:
    size = num_parameters(made.description.config)
    per_token = run.work.flops([made.settings.data.max_length]) / made.settings.data.max_length
    source = "given" if made.settings.peak_tflops else "measured"
    return (
        f"{size / 1e6:.2f} M parameters, {per_token / 1e6:.1f} MFLOP a token, {made.settings.precision} on "
        f"{made.worker.device}, whose peak is {run.peak_flops / 1e12:.3g} TFLOP/s ({source}); step "
        f"{run.state.step} of {made.settings.total_steps}"
    )


def _export(made: Parts, folder: Path) -> None:
    """Write the model for the server, on the main rank, from the parts of all ranks."""
    tensors = made.worker.gather()
    if not made.worker.is_main:
        for _ in tensors:
            pass
        return
    export(folder, made.description, tensors, tokenizer=made.settings.tokenizer_folder, dtype=torch.float32)


def write_fisher(settings: Settings, path: Path) -> int:
    """Measure what the model needs for this recipe's data (training.continual.fisher), and write it; the exit status.

    Raises:
        DeepseekServeError: a file, a setting or the data is at fault.
    """
    if settings.parallelism.num_ranks > 1:
        raise TrainingError("--fisher measures on one process; expected parallelism 1 for each")
    if not settings.model.is_dir():
        raise TrainingError(
            f"model is {settings.model}; --fisher expects a folder with the weights of the trained task"
        )
    fisher.check_writable(path)
    with build_parts(settings, GRADIENTS_AND_SUMS) as made, enough_memory(_LESS_MEMORY):
        num_batches = settings.total_steps * settings.accumulation_steps
        batches = itertools.islice(made.stream(settings.data.files, epochs=1), num_batches)
        on_device = (batch.to(made.worker.device) for batch in batches)
        rows = 2 if settings.objective.kind == "dpo" else 1
        found = fisher.measure(made.worker.module, made.objective, on_device, rows=rows)
        fisher.save(path, found, made.worker.module)
    sys.stdout.write(f"{path}: of {found.num_sequences} sequences; for ewc.fisher in the next task's recipe\n")
    return 0
