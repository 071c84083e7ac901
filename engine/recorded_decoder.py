"""The decoder's two parts, recorded when the model is loaded, and made again for each step by one call.

Steps differ in their numbers alone (kernels.native.capture): what changes, the batch, is copied to where the recorded
calls look for it. Steps for which the recordings have no room, or that do other things, the model computes as it does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from engine.models.decoder import ModelBatch
from kernels.native.capture import Graph, MemoryPool, NotCapturableError
from kernels.paged_attention import AttentionBatch

if TYPE_CHECKING:
    from engine.kv_cache_pool import KVCachePool
    from engine.models.decoder import Decoder

logger = logging.getLogger(__name__)

MOST_ROWS = 512  # tokens of a recorded step at most; what lies between the calls of a larger one costs little of it


class RecordedDecoder:
    """A model's `mix` and `logits`; what each returns is valid until its next call."""

    def __init__(self, model: Decoder, kv_pool: KVCachePool) -> None:
        """Record them, where the model computes in native code, as filling the pool's caches."""
        self._model, self._kv_pool = model, kv_pool
        self._recorded: _Recorded | None = None
        if model.kernels.name != "native":
            return
        try:
            self._recorded = _Recorded(model, kv_pool, MemoryPool())
        except (NotCapturableError, OSError) as error:  # OSError: no address space
            logger.info("steps are not recorded, which makes the smaller ones slower: %s", error)

    def mix(self, batch: ModelBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all tokens, what the last layer's attention brings, [T, X], and the residual stream before it, [T, H]."""
        if self._recorded is not None and self._recorded.takes(batch):
            return self._recorded.mix(batch)
        x_TH, residual_TH = self._model.embed(batch.token_ids_T)
        return self._model.mix(x_TH, residual_TH, batch, self._kv_pool.layers), residual_TH

    def logits(self, mixed_RX: torch.Tensor, residual_RH: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] in fp32 of some rows of these, copies or views."""
        if self._recorded is not None and len(mixed_RX) <= MOST_ROWS:
            return self._recorded.logits(mixed_RX, residual_RH)
        return self._model.logits(mixed_RX, residual_RH.clone())  # which is used up


class _Recorded:
    """Both recordings, and the tensors that they read."""

    def __init__(self, model: Decoder, kv_pool: KVCachePool, pool: MemoryPool) -> None:
        self._model = model
        any_batch = AttentionBatch([1], [1], [[0]], kv_pool.block_size, kv_pool.device)
        positions_T = torch.zeros(MOST_ROWS, dtype=torch.int64)
        cos_TD, sin_TD = model.rotary_table.at(positions_T)
        self._batch = ModelBatch(
            token_ids_T=positions_T,
            cos_TD=cos_TD,
            sin_TD=sin_TD,
            slot_mapping_T=torch.empty_like(positions_T),
            attention_plan=model.plan(any_batch),
        )
        self._x_TH, self._residual_TH = model.embed(self._batch.token_ids_T)

        self._mix, self._logits = Graph(pool, MOST_ROWS), Graph(pool, MOST_ROWS)
        with self._mix.capture():
            self._mix_result = model.mix(self._x_TH, self._residual_TH, self._batch, kv_pool.layers)
        self._mixed_RX, self._residual_RH = torch.empty_like(self._mix_result), torch.empty_like(self._residual_TH)
        with self._logits.capture():
            self._logits_result = model.logits(self._mixed_RX, self._residual_RH)

    def takes(self, batch: ModelBatch) -> bool:
        """Take a batch's attention, if it is one that is recorded."""
        if len(batch.token_ids_T) > MOST_ROWS or not batch.attention_plan.is_capturable:
            return False
        self._batch.attention_plan.assign(batch.attention_plan)
        return True

    def mix(self, batch: ModelBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """`Decoder.embed` and `mix` of a batch that it takes."""
        num_tokens = len(batch.token_ids_T)
        self._batch.first(num_tokens).become(batch)
        residual_TH = self._residual_TH[:num_tokens]
        self._model.embed(batch.token_ids_T, self._x_TH[:num_tokens], residual_TH)
        self._mix.replay(num_tokens)
        return self._mix_result[:num_tokens], residual_TH

    def logits(self, mixed_RX: torch.Tensor, residual_RH: torch.Tensor) -> torch.Tensor:
        """`Decoder.logits`."""
        num_rows = len(mixed_RX)
        self._mixed_RX[:num_rows].copy_(mixed_RX)
        self._residual_RH[:num_rows].copy_(residual_RH)
        self._logits.replay(num_rows)
        return self._logits_result[:num_rows]
