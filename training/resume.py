"""Whether a run may go on under the settings that it is given now, compared with those that it was started with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLACE = ("output", "device", "log_interval", "checkpoint_interval", "keep_last", "peak_tflops", "validation")
_FIXED = {
    "model": "the weights are of that model",
    "model_config": "config.json is another one now",
    "tokenizer": "tokens would have other meanings",
    "seed": "the data would come in another order",
    "objective": "the loss would be another one",
    "data": "the place in the data would be another one",
    "optimizer": "its state would not fit",
    "accumulation_steps": "a step would have another size",
    "parallelism": "each process has its own place in the data",
}


def check(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare settings as plain values; the changes that take effect from here on, in words.

    Raises:
        TrainingError: a setting differs that a run must keep.
    """
    changed = {name: (then.get(name), value) for name, value in now.items() if then.get(name) != value}
    refused = [
        f"{name} was {old}, and is {new}: {_FIXED[name]}" for name, (old, new) in changed.items() if name in _FIXED
    ]
    if refused:
        raise TrainingError(
            f"the checkpoints are of another run: {'; '.join(refused)}. Set it back, or train into another output (its "
            "model may be this run's export)"
        )
    return [f"{name} was {old}, is now {new}" for name, (old, new) in changed.items() if name not in _PLACE]
