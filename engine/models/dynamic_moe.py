"""DynamicMoE, the article's model (docs/dynamic-moe.md): what it has beyond the decoder of engine.models.decoder.

An embedding by modality, a compression block at the end of a layer, heads for tasks. Its router is in
engine.models.router, and which positions a layer's queries see in ModelConfig.attention_patterns.

Shapes: T tokens of the step, H hidden, C compressed, R rows (tokens) whose hidden states are wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from engine.models.decoder import Decoder, DecoderLayer
from engine.models.embedding import ModalityEmbedding

if TYPE_CHECKING:
    from engine.model_batch import ModelBatch
    from engine.models.layers import Builder
    from kernels.kv_cache import Cache
    from kernels.types import Compression, Linear


class DynamicMoELayer(DecoderLayer):
    """A decoder layer at whose end may stand a compression block, which reads and replaces the residual stream."""

    def __init__(self, build: Builder, number: int) -> None:
        super().__init__(build, number)
        compression, self._compress = build.config.compression, None
        if compression is not None and number in compression.layers:
            self._compress = _compression(build, f"model.layers.{number}.compression", compression.size)

    @override
    def forward(
        self,
        x_TH: torch.Tensor | None,
        residual_TH: torch.Tensor,
        batch: ModelBatch,
        kv_cache: tuple[Cache, ...],
        rows_R: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        x_RH, residual_RH = super().forward(x_TH, residual_TH, batch, kv_cache, rows_R)
        if self._compress is None or x_RH is None:
            return x_RH, residual_RH
        self._compress(x_RH, residual_RH)
        return None, residual_RH


class DynamicMoE(Decoder):
    """The model."""

    embedding_class = ModalityEmbedding
    layer_class = DynamicMoELayer

    @override
    def _build_heads(self, build: Builder) -> dict[str, Linear]:
        heads = build.config.task_heads
        sizes = {"classification": len(heads.labels), "reasoning": int(heads.has_reasoning)}
        return {name: build.task_head(f"heads.{name}", size, bias=True) for name, size in sizes.items() if size}


def _compression(build: Builder, prefix: str, size: int) -> Compression:
    hidden, take = build.config.hidden_size, build.weights.take
    encoder = build.stacked({f"{prefix}.encoder": size}, hidden, bias=True)
    decoder = build.stacked({f"{prefix}.decoder": hidden}, size, bias=True)
    weight_H, bias_H = (take(f"{prefix}.norm.{name}", (hidden,), torch.float32) for name in ("weight", "bias"))
    return build.ops.compression(encoder, decoder, (weight_H, bias_H))
