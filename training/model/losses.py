"""Losses over the vocabulary, a chunk of rows at a time: the logits of a whole batch are never in memory.

Of rows whose target is IGNORED nothing is computed.

Shapes: B rows of a batch, T padded tokens, H hidden, V vocab, N rows of hidden states, C rows of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from training.batch import IGNORED
from training.model.layers import compute_dtype
from training.model.vocabulary import VocabularyPart, own_rows

if TYPE_CHECKING:
    from training.model.dynamic_moe import DynamicMoE

CHUNK_VALUES = 1 << 22  # logits of a chunk
_CACHED_VALUES = 1 << 20  # logits that caches hold


def cross_entropy(model: DynamicMoE, hidden_BTH: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """The summed cross-entropy of all targets, a scalar in fp32."""
    hidden_NH, targets_N = _with_targets(hidden_BTH, targets_BT)
    weight_VH, part = own_rows(model.output_weight)
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden_NH, weight_VH, targets_N, part)  # type: ignore[no-untyped-call]
    return loss


def target_logprobs(model: DynamicMoE, hidden_BTH: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """The log-probability of each target, [B, T] in fp32; 0 where there is none. For losses that are no sum of them."""
    hidden_NH, targets_N = _with_targets(hidden_BTH, targets_BT)
    weight_VH, part = own_rows(model.output_weight)
    chunks = [
        checkpoint(_logprobs, hidden_CH, weight_VH, targets_C, part, use_reentrant=False)
        for hidden_CH, targets_C in _chunks(hidden_NH, weight_VH, targets_N)
    ]
    logprobs_BT = torch.zeros(targets_BT.shape, device=hidden_BTH.device)
    if not chunks:
        return logprobs_BT
    return logprobs_BT.masked_scatter(targets_BT != IGNORED, torch.cat(chunks))


def _with_targets(hidden_BTH: torch.Tensor, targets_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that have a target, and their targets."""
    hidden_NH, targets_N = hidden_BTH.flatten(0, 1), targets_BT.flatten()
    rows = (targets_N != IGNORED).nonzero()[:, 0]
    if len(rows) == len(targets_N):
        return hidden_NH, targets_N
    return hidden_NH.index_select(0, rows), targets_N.index_select(0, rows)


def _chunks(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    size = max(1, CHUNK_VALUES // len(weight_VH))
    return list(zip(hidden_NH.split(size), targets_N.split(size), strict=True)) if len(targets_N) else []


def _logprobs(
    hidden_CH: torch.Tensor, weight_VH: torch.Tensor, targets_C: torch.Tensor, part: VocabularyPart | None
) -> torch.Tensor:
    logits_CV = F.linear(hidden_CH, weight_VH) if part is None else part.all_logits(hidden_CH, weight_VH)
    return -F.cross_entropy(logits_CV.float(), targets_C, reduction="none")


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients of a sum are known with the loss, so that they are computed while a chunk's logits are there.

    Rather than logits, kept are the gradients [N, H] and [V, H]; nothing is computed twice.
    """

    @staticmethod
    @override
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        targets_N: torch.Tensor,
        part: VocabularyPart | None,
    ) -> torch.Tensor:
        dtype = compute_dtype(hidden_NH)
        weight = weight_VH.to(dtype)
        loss = torch.zeros((), device=hidden_NH.device)
        grad_VH = torch.zeros_like(weight_VH) if any(ctx.needs_input_grad) else None
        grads_CH = []
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for hidden_CH, targets_C in _chunks(hidden_NH.to(dtype), weight_VH, targets_N):
                grad_CV = None if grad_VH is None else weight.new_empty(len(targets_C), len(weight))
                loss += _chunk_loss(hidden_CH, weight, targets_C, part, grad_CV)
                if grad_VH is not None and grad_CV is not None:
                    grad_CH = grad_CV @ weight
                    grads_CH.append(grad_CH if part is None else part.sum_gradients(grad_CH))
                    grad_VH += grad_CV.T @ hidden_CH
        if grad_VH is not None:
            grad_NH = torch.cat(grads_CH) if grads_CH else torch.zeros_like(hidden_NH)
            ctx.save_for_backward(grad_NH.to(hidden_NH.dtype), grad_VH)
        return loss

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_NH, grad_VH = ctx.saved_tensors
        return grad_NH * grads[0], grad_VH * grads[0], None, None


def _chunk(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, part: VocabularyPart | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of this rank's tokens, and of the targets; where on this rank a target is, and -1 if it is."""
    if part is None:
        logprobs_CV, own_C1 = logits_CV.log_softmax(-1), targets_C[:, None]
        return logprobs_CV, logprobs_CV.gather(1, own_C1), own_C1, logits_CV.new_full(own_C1.shape, -1.0)
    logsumexp_C = part.logsumexp(logits_CV)
    target_logits_C = part.target_logits(logits_CV, targets_C)
    own_C, is_own_C = part.own(targets_C, logits_CV.shape[1])
    minus_C1 = -is_own_C[:, None].to(logits_CV.dtype)
    return logits_CV.sub_(logsumexp_C[:, None]), target_logits_C - logsumexp_C, own_C[:, None], minus_C1


def _chunk_loss(
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_C: torch.Tensor,
    part: VocabularyPart | None,
    grad_CV: torch.Tensor | None,
) -> torch.Tensor:
    """The summed loss of a chunk; the gradient of its logits is put into grad_CV.

    A few rows at a time, for caches; ranks that share the vocabulary, which talk for each, take all at once.
    """
    size = max(1, _CACHED_VALUES // len(weight_VH)) if part is None else len(targets_C)
    loss = torch.zeros((), device=hidden_CH.device)
    for start in range(0, len(targets_C), size):
        rows = slice(start, start + size)
        logits = (hidden_CH[rows] @ weight_VH.T).float()
        logprobs, target_logprobs, own, minus = _chunk(logits, targets_C[rows], part)
        loss -= target_logprobs.sum()
        if grad_CV is not None:
            grad_CV[rows] = logprobs.exp_().scatter_add_(1, own, minus)
    return loss
