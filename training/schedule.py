"""The learning rate as a function of the step alone, so that there is no state to resume."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of one step, counted from 1: linear warm-up to `peak`, then half a cosine towards 0.

    The first step has peak / warmup_steps. Step warmup_steps, and the one after it, have the peak. The last step is the
    one before the cosine reaches 0, so that no step is in vain.
    """
    assert 1 <= step <= total_steps, (step, total_steps)
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - 1 - warmup_steps) / (total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2
