"""The guard's checkpoint: found and checked before a process is started, and how its engine is set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.loading.resolve import resolve_model
from server.guard.safety import Safety

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.loading.resolve import ModelSource
    from server.config import ServerConfig
    from server.engine_client import EngineClient
    from server.text.tokenizer import Tokenizer

_SAME = ("dtype", "device", "kernels", "threads")  # as the served model has it
_MAX_BATCH_SIZE = 16  # texts in a step at most; a step of theirs takes cores from the served model's


@dataclass(frozen=True)
class GuardModel:
    """A guard that somebody runs: its engine's client, its tokenizer, and its name."""

    client: EngineClient
    tokenizer: Tokenizer
    name: str


def safety_of(config: ServerConfig) -> Safety:
    """Return what --guard-safe-label and --guard-threshold say."""
    return Safety(config.safe_labels, config.guard_threshold)


def find_guard(config: ServerConfig, tell: Callable[[str], None]) -> ModelSource | None:
    """Find the model of --guard, if there is one; `tell` hears of a download.

    Raises:
        ConfigError, ModelError: it is not there, or its labels do not say what is safe.
    """
    if config.guard is None:
        return None
    source = resolve_model(config.guard, tell)
    heads = source.read_config().task_heads
    safety_of(config).check(config.guard, heads.labels, heads.label_activation)
    return source


def guard_name(own: str, served: Sequence[str]) -> str:
    """Return the guard's name in the API: its own, or another if the served model has it (folders called `export`)."""
    return f"{own}-guard" if own in served else own


def guard_settings(config: ServerConfig, engine: EngineConfig) -> EngineConfig:
    """Return the settings of the guard's engine: the served model's where both compute, and a memory of its own."""
    same = {name: getattr(engine, name) for name in _SAME}
    return EngineConfig(model=config.guard, max_batch_size=_MAX_BATCH_SIZE, kv_cache_memory=config.guard_memory, **same)
