"""How a checkpoint's embeddings are meant to be made: what sentence-transformers wrote beside its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import ModelError, RequestError
from engine.loading.files import MIB, read_bytes
from engine.models.config_keys import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Pooling = Literal["last", "mean"]

_MODULES, _CONFIG, _PROMPTS = "modules.json", "config.json", "config_sentence_transformers.json"
_NAMES: dict[str, Pooling] = {"lasttoken": "last", "mean": "mean", "mean_tokens": "mean"}  # theirs -> ours
_PREFIX = "pooling_mode_"  # of their older flags


@dataclass(frozen=True)
class EmbeddingDefaults:
    """What becomes of a request that does not say how its embeddings are pooled and scaled.

    Attributes:
        normalize: whether embeddings are scaled to length 1.
        missing: what the checkpoint asks for that this server has not, in words.
        prompts: what goes before texts of a kind, by the kind's name; requests must ask for it.
    """

    pooling: Pooling = "last"
    normalize: bool = True
    missing: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    def pooling_for(self, asked: Pooling | None) -> Pooling:
        """Return how a request's embeddings are pooled.

        Raises:
            RequestError: the checkpoint asks for what this server has not, and the request does not say otherwise.
        """
        if asked is None and self.missing is not None:
            message = f"This checkpoint's embeddings need {self.missing}, which this server has not"
            raise RequestError(f"{message}; 'last' or 'mean' for 'pooling', or --pooling, gives others.", "pooling")
        return asked or self.pooling


def read_embedding_defaults(choice: str, model: Path) -> EmbeddingDefaults:
    """Return a model's defaults.

    Args:
        choice: as --pooling: auto reads the model's folder.
        model: the model's folder, or its GGUF file, beside which no modules.json belongs to it.

    Raises:
        ModelError: a file is damaged.
    """
    if not model.is_dir():
        return _read_pooling(choice, model)
    return replace(_read_pooling(choice, model), prompts=_read_prompts(model / _PROMPTS))


def _read_prompts(path: Path) -> dict[str, str]:
    prompts = read_json(path).get("prompts") if path.exists() else None
    return {k: v for k, v in prompts.items() if isinstance(v, str)} if isinstance(prompts, dict) else {}


def _read_pooling(choice: str, model: Path) -> EmbeddingDefaults:
    chosen: Pooling | None = None if choice == "auto" else "mean" if choice == "mean" else "last"
    path = model / _MODULES
    if not model.is_dir() or not path.exists():
        return EmbeddingDefaults(chosen or "last")
    try:
        modules = {kind.rpartition(".")[2]: folder for kind, folder in _modules_of(path)}
        normalize = "Normalize" in modules
        if chosen is not None:
            return EmbeddingDefaults(chosen, normalize)
        mode = _mode_of(read_json(model / modules["Pooling"] / _CONFIG)) if "Pooling" in modules else "none"
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}; --pooling last or mean leaves it out") from None
    more = [kind for kind in modules if kind not in ("Transformer", "Pooling", "Normalize")]
    if more or mode not in _NAMES:
        missing = f"the module {more[0]!r}" if more else f"the pooling {mode!r}"
        return EmbeddingDefaults("last", normalize, missing)
    return EmbeddingDefaults(_NAMES[mode], normalize)


def _modules_of(path: Path) -> list[tuple[str, str]]:
    """Return (type, folder) of each module, in order."""
    listed = json.loads(read_bytes(path, MIB))
    if not isinstance(listed, list) or not all(map(_is_module, listed)):
        raise ValueError('it is not a list of objects with "type" and "path", which are texts')
    modules = [(module["type"], module["path"]) for module in listed]
    if any("/" in folder or ".." in folder for _, folder in modules):
        raise ValueError("a module lies outside of its folder")
    return modules


def _is_module(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("type", "path"))


def _mode_of(config: dict[str, Any]) -> str:
    """Return how a Pooling module pools; the modes that it joins, with a plus between them."""
    if isinstance(mode := config.get("pooling_mode"), str):
        return mode
    return "+".join(key.removeprefix(_PREFIX) for key, is_on in config.items() if key.startswith(_PREFIX) and is_on)
