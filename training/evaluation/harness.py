"""lm-evaluation-harness, asking a server through its HTTP API: which tasks, with which data, and their scores.

Data comes from this machine alone: a task that would have to download some is refused, with a word on what is missing.
The server's own /tokenize counts tokens, so no tokenizer is needed here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import TrainingError
from training.evaluation.unavailable import UnavailableError

if TYPE_CHECKING:
    from training.evaluation.served import Served

TASKS = Path(__file__).with_name("tasks")  # this project's own task files
_FILES = (".yaml", ".yml")
_TIMEOUT = 1800  # seconds of one request, which waits for those before it


@dataclass(frozen=True)
class Score:
    """One figure of one task.

    Attributes:
        value: the metric as lm-eval gives it, mostly a share from 0 to 1.
        error: its standard error, where it has one.
        samples: how many documents it is over.
    """

    metric: str
    value: float
    error: float | None
    samples: int


class Harness:
    """lm-eval with this server as its model."""

    def __init__(self, served: Served, concurrency: int, limit: int | None) -> None:
        """`concurrency` requests are under way at a time; `limit` documents of each task are taken (None: all).

        Raises:
            UnavailableError: lm-eval is not installed.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        os.environ["OPENAI_API_KEY"] = served.api_key or "none"  # where lm-eval looks for it
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UnavailableError(
                f"evaluation needs the extra `evaluate` ({error}); `make evaluate` installs it"
            ) from None
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # Of requests that fail together lm-eval waits for one; asyncio would tell of the others as they are freed.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._manager = TaskManager()
        self._limit = limit
        self._model = {
            "model": served.model,
            "base_url": f"{served.url}/v1/completions",
            "tokenizer_backend": "remote",
            "num_concurrent": concurrency,
            "max_length": served.max_length,
            "timeout": _TIMEOUT,
            "max_retries": 2,
            "auth_token": served.api_key,
        }

    def load(self, task: str | dict[str, Any]) -> Any:
        """Load a task by its registered name, from a YAML file, or from a configuration.

        Raises:
            UnavailableError: its data is not here.
            TrainingError: there is no such task, or its file is wrong.
        """
        self.check(task)
        try:
            if isinstance(task, str) and task.endswith(_FILES):
                path = Path(task).resolve(strict=True)
                with contextlib.chdir(path.parent):  # its data files are named relative to it
                    return self._manager.load([path.name])
            return self._manager.load([task])
        except (OSError, ValueError) as error:
            name = task if isinstance(task, str) else task.get("task")
            why = (str(error).strip().splitlines() or [repr(error)])[0]
            raise UnavailableError(f"the data of {name} is not on this machine: {why}") from None

    def check(self, task: str | dict[str, Any]) -> None:
        """See that lm-eval has a task of this name.

        Raises:
            TrainingError: it has not.
        """
        names: list[str] = [task] if isinstance(task, str) else []
        if isinstance(task, dict) and "group" in task:  # of registered tasks, with other data
            names = [part["task"] for part in task["task"]]
        for name in names:
            if not name.endswith(_FILES) and name not in self._manager.all_tasks:
                raise TrainingError(f"{name!r} is neither a task of lm-eval nor a .yaml file of one")

    def evaluate(self, task: str | dict[str, Any], metric: str | None = None) -> Score:
        """Ask the server all of a task, or of a group of tasks; the mean of a metric (None: the first that it has).

        Raises:
            TrainingError: as `load` does; or the server refused a request.
        """
        import aiohttp
        import lm_eval

        loaded = self.load(task)
        specs = list(loaded["groups"].values()) or list(loaded["tasks"].values())
        try:
            found = lm_eval.simple_evaluate(
                "local-completions", self._model, specs, limit=self._limit, task_manager=self._manager,
                bootstrap_iters=100, log_samples=False, random_seed=0,
            )  # fmt: skip
        except (OSError, RuntimeError, aiohttp.ClientError) as error:  # requests' errors are OSErrors
            raise TrainingError(f"{self._model['base_url']} did not answer lm-eval: {error}") from None
        return _score(found, metric)


def _score(found: dict[str, Any], metric: str | None) -> Score:
    """The figure of the tasks that were evaluated together: the mean over all their documents."""
    sizes = {name: int(counts["effective"]) for name, counts in found["n-samples"].items()}
    total = sum(sizes.values())
    name = next(iter(sizes))
    keys = [key for key in found["results"][name] if "," in key and not key.partition(",")[0].endswith("_stderr")]
    key = next((key for key in keys if metric in (None, key)), None)
    if key is None:
        raise TrainingError(f"{name} has no metric {metric}; it has {', '.join(keys)}")
    short, _, kind = key.partition(",")
    value = sum(size / total * float(found["results"][name][key]) for name, size in sizes.items())
    errors = {name: found["results"][name].get(f"{short}_stderr,{kind}") for name in sizes}
    known = [size / total * errors[name] for name, size in sizes.items() if isinstance(errors[name], float)]
    return Score(key, value, math.hypot(*known) if len(known) == len(sizes) else None, total)
