"""Faults on purpose, for tests of what happens then. Nothing here is imported unless DEEPSEEK_SERVE_FAULTS is set.

The variable names a file, which each engine process reads when it starts. A line is a fault, `POINT KIND WHEN`; WHEN is
`#N`, the N-th call of the point in this process (the warm-up has the first ones), or a probability from 0 to 1:

    forward raise #100
    sample nan 0.01

POINT is one of `_POINTS` below, KIND one of `_KINDS`; nan is for sample alone and spoils the logits of one row. slow
takes half a second, or as in `forward slow=0.005 1`.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.kv_cache_pool import KVCachePool
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Transport

logger = logging.getLogger(__name__)

_SLOW = 0.5  # seconds
_KINDS = ("raise", "hang", "oom", "slow", "nan")
_POINTS: dict[str, tuple[type | None, str]] = {
    "load": (Decoder, "__init__"),  # the weights
    "allocate": (KVCachePool, "__init__"),  # the KV cache's memory
    "forward": (ModelRunner, "execute"),  # a step
    "sample": (Decoder, "logits"),  # the logits of a step, or of some positions of a prompt
    "send": (None, "send"),  # what a step brought; of the transport
}


@dataclass(frozen=True)
class Fault:
    """What happens at a point: at the call with this number, or at each with a probability."""

    point: str
    kind: str
    number: int | None
    probability: float
    seconds: float = _SLOW  # of a slow one

    @classmethod
    def parse(cls, line: str) -> Fault:
        """Read a line of the file.

        Raises:
            ConfigError: it is no fault.
        """
        try:
            point, kind, when = line.split()
            kind, _, seconds = kind.partition("=")
            slow = float(seconds) if seconds and kind == "slow" else _SLOW
            number = int(when[1:]) if when.startswith("#") else None
            probability = 0.0 if number is not None else float(when)
        except ValueError:
            point, kind, number, probability, slow = "", "", None, 0.0, _SLOW
        if point not in _POINTS or kind not in _KINDS or (kind == "nan" and point != "sample"):
            points, kinds = ", ".join(_POINTS), ", ".join(_KINDS)
            raise ConfigError(
                f"DEEPSEEK_SERVE_FAULTS has {line!r}; a line is POINT KIND WHEN: {points}; {kinds} (of sample); "
                "#NUMBER or a probability"
            )
        return cls(point, kind, number, probability, slow)

    def is_due(self, number: int) -> bool:
        """Whether it happens at the call with this number."""
        return number == self.number or random.random() < self.probability  # noqa: S311

    def happen(self) -> None:
        """Do what comes before the call."""
        if self.probability < 1:  # else the log would be full of it
            logger.warning("a planted fault: %s %s", self.point, self.kind)
        if self.kind == "raise":
            raise RuntimeError(f"a planted fault at {self.point}")
        if self.kind == "oom":
            raise MemoryError(f"a planted shortage of memory at {self.point}")
        if self.kind == "hang":
            threading.Event().wait()
        if self.kind == "slow":
            time.sleep(self.seconds)


def plant(path: Path, transport: Transport) -> None:
    """Put the faults of a file into the classes of this process, and into its transport.

    Raises:
        ConfigError: the file cannot be read, or a line is no fault.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"DEEPSEEK_SERVE_FAULTS cannot be read: {error}") from None
    faults = [Fault.parse(line) for line in lines if line.strip()]
    for point, (owner, method) in _POINTS.items():
        if there := [fault for fault in faults if fault.point == point]:
            place = owner or transport
            setattr(place, method, _faulty(getattr(place, method), there))
    logger.warning("%d faults are planted: DEEPSEEK_SERVE_FAULTS is set, which is for tests alone", len(faults))


def _faulty(call: Any, faults: list[Fault]) -> Any:
    numbers = itertools.count(1)

    @functools.wraps(call)
    def faulty(*arguments: Any, **options: Any) -> Any:
        number = next(numbers)
        due = [fault for fault in faults if fault.is_due(number)]
        for fault in due:
            fault.happen()
        result = call(*arguments, **options)
        if any(fault.kind == "nan" for fault in due):
            result[random.randrange(len(result))] = float("nan")  # noqa: S311
        return result

    return faulty
