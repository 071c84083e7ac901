"""Where steps are computed: the seam between the engine, which has sequences, and the ranks, which have tensors.

Only plain values cross it (engine.step), so that an executor may as well send them to other processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.model_runner import ModelRunner
    from engine.step import StepPlan, StepResult


class Executor(Protocol):
    """Computes the steps of one model."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a step; its KV entries are stored when this returns."""

    def prepare(self, num_taken: int) -> bool:
        """Use an idle moment, of some milliseconds, for steps to come; False if there is nothing to do.

        `num_taken` is KVCacheManager.num_ever_taken, the number of blocks that may have been written.
        """


class LocalExecutor:
    """One rank, in this process."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner

    def execute(self, plan: StepPlan) -> StepResult:
        return self.runner.execute(plan)

    def prepare(self, num_taken: int) -> bool:
        return self.runner.prepare(num_taken)
