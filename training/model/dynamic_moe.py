"""DynamicMoE for training: torch modules whose parameters have the checkpoint's names (docs/dynamic-moe.md).

The whole model, or a stage of a pipeline with some of its layers. Parallelism is applied from outside
(training.parallel); new weights are made in training.model.initialize, stored ones read in
training.model.checkpoint_files. The engine computes the same logits from the same checkpoint.

Shapes: B rows, T padded tokens, H hidden, N any number of rows of hidden states, V vocab.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.model.attention import Attention
from training.model.context import BatchContext, make_context
from training.model.description import TrainingSizes
from training.model.layers import Compression, RMSNorm
from training.model.moe import MoE
from training.model.rotary import Rotary
from training.model.router_statistics import RouterStatistics
from training.model.vocabulary import look_up, own_rows

if TYPE_CHECKING:
    from engine.models.config import ModelConfig
    from training.batch import TokenBatch

BALANCE_LOSS_WEIGHT = 0.01


class DecoderLayer(nn.Module):
    """Attention, experts, and a compression block where the layer has one."""

    def __init__(self, config: ModelConfig, number: int, sizes: TrainingSizes) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, number, sizes.attention_dropout)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config, number, sizes.expert_capacity)
        self.compression: Compression | None = None
        if config.compression is not None and number in config.compression.layers:
            self.compression = Compression(config, config.compression.size)
        self._dropout = sizes.hidden_dropout

    def forward(self, x_BTH: torch.Tensor, context: BatchContext) -> torch.Tensor:
        attended = self.self_attn(self.input_layernorm(x_BTH), context.tables)
        h_BTH = x_BTH + F.dropout(attended, self._dropout, self.training)
        mixed = self.mlp(self.post_attention_layernorm(h_BTH), context)
        h_BTH = h_BTH + F.dropout(mixed, self._dropout, self.training)
        return h_BTH if self.compression is None else self.compression(h_BTH)


class Decoder(nn.Module):
    """What the checkpoint calls `model`: embedding, layers, final norm; a stage has some of these."""

    def __init__(self, config: ModelConfig, sizes: TrainingSizes, layers: range) -> None:
        super().__init__()
        self.is_first, self.is_last = layers.start == 0, layers.stop == config.num_hidden_layers
        if self.is_first or (self.is_last and config.tie_word_embeddings):  # two equal tables in a pipeline
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if self.is_first:
            self.modality_scale = nn.Embedding(config.num_modalities, config.hidden_size)
            self.modality_shift = nn.Embedding(config.num_modalities, config.hidden_size)
        self.layers = nn.ModuleDict({str(number): DecoderLayer(config, number, sizes) for number in layers})
        if self.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, tokens: TokenBatch) -> torch.Tensor:
        """[B, T, H]: the start of the residual stream."""
        scale, shift = (table(tokens.modality_ids_BT) for table in (self.modality_scale, self.modality_shift))
        return torch.addcmul(shift, look_up(self.embed_tokens.weight, tokens.token_ids_BT), 1 + scale)


class DynamicMoE(nn.Module):
    """The model, or a stage of it.

    Attributes:
        activation_checkpointing: keep only the layers' inputs, and compute a layer again in the backward pass.
        balance_loss_weight: the factor of the balancing losses of a micro batch; the loop divides it by the number of
            micro batches of a step.
        statistics: what routers chose in training, since it was last taken.
        heads: the task heads by name, on hidden states of last tokens; the last stage has them.
    """

    def __init__(self, config: ModelConfig, sizes: TrainingSizes | None = None, layers: range | None = None) -> None:
        """Make the modules, with torch's default weights.

        `layers` are those of a stage; the first layer brings the embedding, the last one the final norm and the heads.

        Raises:
            ValueError: a stage has no layers, or some that the model lacks.
        """
        super().__init__()
        layers = range(config.num_hidden_layers) if layers is None else layers
        _check_stage(config, layers)
        self.config, self.activation_checkpointing = config, False
        self.balance_loss_weight, self.statistics = BALANCE_LOSS_WEIGHT, RouterStatistics()
        self.model = Decoder(config, sizes or TrainingSizes(), layers)
        self.heads = nn.ModuleDict()
        if self.model.is_last:
            if not config.tie_word_embeddings:
                self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            heads = {"classification": len(config.task_heads.labels), "reasoning": int(config.task_heads.has_reasoning)}
            self.heads.update({name: nn.Linear(config.hidden_size, size) for name, size in heads.items() if size})
        self._rotary = Rotary(config)

    def forward(self, tokens: TokenBatch, hidden_BTH: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states after the final norm, [B, T, H]; a stage's, after its last layer.

        `hidden_BTH` is what the stage before this one returned.
        """
        context = make_context(tokens, self._rotary, self.balance_loss_weight, self.statistics)
        if self.model.is_first:
            hidden_BTH = self.model.embed(tokens)
        assert hidden_BTH is not None, "a stage that is not the first needs the hidden states of the one before"
        for layer in self.model.layers.values():
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden_BTH = checkpoint(layer, hidden_BTH, context, use_reentrant=False, context_fn=self._recomputation)
            else:
                hidden_BTH = layer(hidden_BTH, context)
        assert hidden_BTH is not None
        return self.model.norm(hidden_BTH) if self.model.is_last else hidden_BTH

    @property
    def output_weight(self) -> nn.Parameter:
        """The weight of the language model's head, [V, H]."""
        weight = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """[N, V]; training.model.losses has losses that do not need all of them at once."""
        weight_VH, part = own_rows(self.output_weight)
        return F.linear(hidden_NH, weight_VH) if part is None else part.all_logits(hidden_NH, weight_VH)

    def _recomputation(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self.statistics.paused()


def last_hidden(hidden_BTH: torch.Tensor, tokens: TokenBatch) -> torch.Tensor:
    """The hidden states of each row's last token, [B, H], which task heads read."""
    rows = torch.arange(len(hidden_BTH), device=hidden_BTH.device)
    return hidden_BTH[rows, tokens.lengths_B - 1]


def _check_stage(config: ModelConfig, layers: range) -> None:
    if layers.step != 1 or not 0 <= layers.start < layers.stop <= config.num_hidden_layers:
        raise ValueError(f"a stage has layers {layers}; expected some of the {config.num_hidden_layers} in a row")
