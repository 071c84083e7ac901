"""Opens a model's tensors: safetensors or GGUF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.loading.gguf_file import GGUFFile
from engine.loading.gguf_source import GGUFSource
from engine.loading.safetensors_source import SafetensorsSource

if TYPE_CHECKING:
    from engine.loading.resolve import ModelSource
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig


def open_tensors(source: ModelSource, config: ModelConfig) -> TensorSource:
    """The model's tensors under their Hugging Face names."""
    return GGUFSource(GGUFFile(source.path), config) if source.is_gguf else SafetensorsSource(source.path)
