"""The folder of a run, which one run at a time may have."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from training import checkpoint_folder
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHECKPOINTS, EXPORT, SETTINGS = "checkpoints", "export", "settings.yaml"


def check_is_free(output: Path, *, resume: bool) -> None:
    """Refuse to train over the checkpoints of an earlier run.

    Raises:
        TrainingError: there are some, and the run is not resumed.
    """
    steps = checkpoint_folder.step_folders(output / CHECKPOINTS)
    if steps and not resume:
        raise TrainingError(
            f"{output} has checkpoints up to step {max(steps)}: --resume goes on from there; for a new run, name "
            "another output or delete this one"
        )


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Make the folder and keep other processes from it; the system takes the lock back when a process ends.

    Raises:
        TrainingError: another process has it, or it cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("w")
    except OSError as error:
        raise TrainingError(f"output {output} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"another process trains into {output}; name another output, or stop it") from None
        yield
