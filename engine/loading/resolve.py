"""Finds a model on disk by the name that the user gives. It, hub_folder and default_model alone use the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ModelError
from engine.loading import default_model
from engine.loading.gguf_parts import is_later_part, open_parts, whole_name
from engine.loading.name_list import name_list
from engine.loading.phases import DOWNLOADING
from engine.models import registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "modules.json",  # of sentence-transformers, as the next two
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "tokenizer*",
    "*.jinja",
]


@dataclass(frozen=True)
class ModelSource:
    """A model on disk.

    Attributes:
        path: a Hugging Face folder or a .gguf file, the first part of one that is split.
        name: the model's name in the API, unless --served-model-name is set.
    """

    path: Path
    name: str

    @property
    def is_gguf(self) -> bool:
        """Whether the model is a GGUF file."""
        return self.path.is_file()

    def read_config(self) -> ModelConfig:
        """The model's shape."""
        if self.is_gguf:
            from engine.models import gguf_config  # imports numpy, which the API process does without

            parts = open_parts(self.path)
            return gguf_config.parse(parts[0].metadata, frozenset[str]().union(*(part.tensors for part in parts)))
        return registry.read_folder(self.path)

    def open_tensors(self, config: ModelConfig) -> TensorSource:
        """The model's tensors under their Hugging Face names."""
        from engine.loading.gguf_source import GGUFSource  # imports torch, as the next does
        from engine.loading.safetensors_source import SafetensorsSource

        return GGUFSource(open_parts(self.path), config) if self.is_gguf else SafetensorsSource(self.path)


def resolve_model(model: str | Path | None, tell: Callable[[str], None] = lambda _: None) -> ModelSource:
    """Find a folder, a .gguf file, a hub id or the built-in model (None), and download it if it is not here.

    `tell` is called with the phase (engine.loading.phases) if a download begins.

    Raises:
        ModelError: no such model exists, or the download failed.
    """
    if model is None or model == default_model.NAME:
        return ModelSource(default_model.fetch(lambda: tell(DOWNLOADING)), default_model.NAME)
    model = str(model)
    if not model:
        raise ModelError("--model is empty; leave it out for the built-in model")
    try:
        path = Path(model).expanduser()
        path.exists()
    except (RuntimeError, OSError, ValueError) as error:  # an unknown user after ~, a name that is too long, a NUL
        raise ModelError(f"--model {model[:100]} cannot be a path: {error}") from None
    if path.is_dir():
        _refuse_gguf_folder(path)
        return ModelSource(path, path.resolve().name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"--model {model} is a file, but not a .gguf file; of files, only GGUF is read")
        return ModelSource(path, whole_name(path))
    if HUB_ID.fullmatch(model):
        return ModelSource(_from_hub(model, tell), model)
    raise ModelError(
        f"--model {model}: no such folder or .gguf file, and not a hub id (org/name); "
        f"the built-in model is {default_model.NAME}"
    )


def _refuse_gguf_folder(folder: Path) -> None:
    """Refuse a folder whose weights are GGUF files: each of them is a model of its own."""
    files = [path for path in folder.glob("*.[gG][gG][uU][fF]") if not is_later_part(path)]
    if files and not any(folder.glob("*.safetensors")):
        names = name_list([path.name for path in files])
        raise ModelError(f"{folder} has GGUF files and no .safetensors files; name one of its GGUF files: {names}")


def _from_hub(repo_id: str, tell: Callable[[str], None]) -> Path:
    """The hub's current snapshot, or the locally cached one if the hub does not answer."""
    from huggingface_hub import snapshot_download

    tell(DOWNLOADING)
    try:
        return Path(snapshot_download(repo_id, allow_patterns=HUB_FILES))  # nosec B615  # no code in it is run
    except hub_errors() as error:
        reason = str(error).split("\n", 1)[0]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=HUB_FILES, local_files_only=True))  # nosec B615
    except (OSError, ValueError):
        raise ModelError(
            f"--model {repo_id}: no such folder here, not in the local hub cache, and the hub did not give it: {reason}"
        ) from None


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its own errors, and those of its HTTP client, which differs between its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError, ValueError)
