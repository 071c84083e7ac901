"""Whether a run may go on under the settings that it is given now, compared with those that it was started with.

The data's own settings are compared by its stream (training.data.batches), which knows the files' contents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WITHOUT_EFFECT = {"output", "device", "log_interval", "checkpoint_interval", "keep_last", "peak_tflops"}
_DIGESTS = ("model_weights", "tokenizer_files")  # which a checkpoint from before they were kept lacks
_FIXED = {
    "model": "the weights are of that model",
    "model_config": "config.json is another one now",
    "model_weights": "the files of weights are others now",
    "tokenizer": "tokens would have other meanings",
    "tokenizer_files": "tokens would have other meanings",
    "seed": "the data would come in another order",
    "objective": "the loss would be another one",
    "optimizer": "its state would not fit",
    "accumulation_steps": "a step would have another size",
}


def check(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare settings as plain values; the changes that take effect from here on, in words.

    Raises:
        TrainingError: a setting differs that a run must keep.
    """
    now = {name: value for name, value in now.items() if name in then or name not in _DIGESTS}
    before, after = dict(_flat(then)), dict(_flat(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    changes = {name: f"{name} was {before.get(name)} and is {after.get(name)}" for name in names}
    refused = [f"{change}: {why}" for name, change in changes.items() if (why := _FIXED.get(name.partition(".")[0]))]
    if refused:
        raise TrainingError(
            f"the checkpoints are of another run: {'; '.join(refused)}. Set it back, or train into another output (its "
            "model may be this run's export)"
        )
    return [change for name, change in changes.items() if name not in _WITHOUT_EFFECT and not name.startswith("data.")]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
