"""The decoder's work in steps where every sequence decodes one token: recorded once for each number of sequences.

Such a step differs from the one before in its numbers alone, so that it is made again by one call (kernels.native.
recording), with what changes, the batch, copied to where the recorded calls look for it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import torch

from engine.models.decoder import ModelBatch
from kernels.native.recording import Recorder, Recording, UnrecordableError

if TYPE_CHECKING:
    from engine.models.decoder import Decoder
    from kernels.kv_cache import Cache

logger = logging.getLogger(__name__)


class RecordedDecoder:
    """Logits of decoding sequences, as the model's own `decode` computes them."""

    def __init__(self, model: Decoder, caches: list[tuple[Cache, ...]]) -> None:
        self._model, self._caches = model, caches
        self._recorder: Recorder | None = None
        if model.kernels.name == "native":
            with contextlib.suppress(OSError):  # no address space for what is recorded: steps are computed as they come
                self._recorder = Recorder()
        self._recordings: dict[int, tuple[Recording, torch.Tensor, torch.Tensor, ModelBatch]] = {}

    def logits(self, batch: ModelBatch) -> torch.Tensor:
        """[T, V] in fp32 of a batch of T decoding sequences, valid until the next call; fills the caches."""
        num_tokens = batch.token_ids_T.shape[0]
        if (known := self._recordings.get(num_tokens)) is not None:
            recording, x_TH, residual_TH, place = known
            self._model.embed(batch.token_ids_T, x_TH, residual_TH)
            for name in ("cos_TD", "sin_TD", "blocks_T", "offsets_T"):
                getattr(place, name).copy_(getattr(batch, name))
            place.attention_plan.become(batch.attention_plan)
            return recording.replay()
        x_TH, residual_TH = self._model.embed(batch.token_ids_T)
        if self._recorder is not None:
            try:
                recording, logits_TV = self._recorder.record(
                    lambda: self._model.decode(x_TH, residual_TH, batch, self._caches)
                )
            except UnrecordableError as error:
                logger.debug("steps are not recorded: %s", error)
                self._recorder = None
                self._model.embed(batch.token_ids_T, x_TH, residual_TH)  # what there was before the attempt
            else:
                self._recordings[num_tokens] = (recording, x_TH, residual_TH, batch)
                return logits_TV
        return self._model.decode(x_TH, residual_TH, batch, self._caches)
