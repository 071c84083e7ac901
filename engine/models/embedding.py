"""The start of the residual stream: an embedding for each token, which may differ by the token's modality.

Shapes: V vocab, M modalities, T tokens, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from kernels.block_weight import BlockWeight

if TYPE_CHECKING:
    from engine.model_batch import ModelBatch
    from engine.models.layers import Builder


class Embedding:
    """Rows of a table, which the output head may share (`weight_VH`)."""

    def __init__(self, build: Builder) -> None:
        config = build.config
        self._ops = build.ops
        shape = config.vocab_size, config.hidden_size
        self.weight_VH = build.weights.take_rows("model.embed_tokens.weight", shape)

    def forward(self, batch: ModelBatch) -> torch.Tensor:
        """[T, H] in fp32."""
        return self._ops.embedding(self.weight_VH, batch.token_ids_T)


class ModalityEmbedding(Embedding):
    """DynamicMoE's: each modality scales and shifts the table's rows in its own way."""

    def __init__(self, build: Builder) -> None:
        super().__init__(build)
        if isinstance(self.weight_VH, BlockWeight):
            self.weight_VH = self.weight_VH.dequantize(build.weights.dtype)
        shape = (build.config.num_modalities, build.config.hidden_size)
        self._scale_MH = build.weights.take("model.modality_scale.weight", shape, torch.float32)
        self._shift_MH = build.weights.take("model.modality_shift.weight", shape, torch.float32)

    @override
    def forward(self, batch: ModelBatch) -> torch.Tensor:
        assert isinstance(self.weight_VH, torch.Tensor)
        return self._ops.modality_embedding(
            self.weight_VH, self._scale_MH, self._shift_MH, batch.token_ids_T, batch.modality_ids_T
        )
