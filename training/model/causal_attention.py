"""Full causal attention in bf16 on CPUs: some queries after the other, with scores that are computed again.

Torch's flash kernel for CPUs does not reach its matrix products' speed in bf16: on an EPYC (Zen 5), forward and
backward take it twice as long as this. In fp32 the flash kernel is the faster one.

Shapes: Z rows and key heads, G query heads of a key head, T tokens, D values of a head, C queries of a part, M = G * C.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from training.model.visible_blocks import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterator

_VALUES = 1 << 21  # scores of a part, which caches hold
_QUERIES = range(32, 129)  # of a part


def causal_attention(q_ZGTD: torch.Tensor, k_ZTD: torch.Tensor, v_ZTD: torch.Tensor) -> torch.Tensor:
    """[Z, G, T, D]: each query sees all positions up to its own."""
    out: torch.Tensor = _CausalAttention.apply(q_ZGTD * q_ZGTD.shape[-1] ** -0.5, k_ZTD, v_ZTD)  # type: ignore[no-untyped-call]
    return out


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, q_ZGTD: torch.Tensor, k_ZTD: torch.Tensor, v_ZTD: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q_ZGTD, k_ZTD, v_ZTD)
        out_ZGTD = torch.empty_like(q_ZGTD)
        for part in _parts(q_ZGTD):
            end = part.stop
            q_ZMD, k, v = _flat(q_ZGTD[:, :, part]), k_ZTD[:, :end], v_ZTD[:, :end]
            out_ZMD = _weights(q_ZMD, k, part, k_ZTD.shape[1]) @ v
            out_ZGTD[:, :, part] = out_ZMD.view(out_ZGTD[:, :, part].shape)
        return out_ZGTD

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q_ZGTD, k_ZTD, v_ZTD = ctx.saved_tensors
        grad_q = torch.empty_like(q_ZGTD)
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k_ZTD, v_ZTD))
        for part in _parts(q_ZGTD):
            end = part.stop
            q_ZMD, k, v = _flat(q_ZGTD[:, :, part]), k_ZTD[:, :end], v_ZTD[:, :end]
            grad_ZMD = _flat(grads[0][:, :, part])
            weights = _weights(q_ZMD, k, part, k_ZTD.shape[1])
            grad_v[:, :end] += weights.mT @ grad_ZMD
            grad_scores = torch.ops.aten._softmax_backward_data(grad_ZMD @ v.mT, weights, -1, weights.dtype)
            grad_q[:, :, part] = (grad_scores @ k).view(grad_q[:, :, part].shape)
            grad_k[:, :end] += grad_scores.mT @ q_ZMD
        return grad_q, grad_k.to(k_ZTD.dtype), grad_v.to(v_ZTD.dtype)


def _parts(q_ZGTD: torch.Tensor) -> Iterator[slice]:
    """The queries of each part."""
    rows, group, num_tokens, _ = q_ZGTD.shape
    size = min(max(_VALUES // (rows * group * num_tokens), _QUERIES.start), _QUERIES.stop - 1)
    for start in range(0, num_tokens, size):
        yield slice(start, min(start + size, num_tokens))


def _flat(x_ZGCD: torch.Tensor) -> torch.Tensor:
    return x_ZGCD.flatten(1, 2)


def _weights(q_ZMD: torch.Tensor, k_ZTD: torch.Tensor, part: slice, num_tokens: int) -> torch.Tensor:
    """Softmax of the scores of a part and all positions up to its last, [Z, M, end]."""
    size = part.stop - part.start
    mask_MT = _mask(size, q_ZMD.shape[1] // size, num_tokens, q_ZMD.dtype)
    return torch.baddbmm(mask_MT[:, -part.stop :], q_ZMD, k_ZTD.mT).softmax(-1)


@lru_cache(maxsize=8)
def _mask(size: int, group: int, num_tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores of the last `size` queries, [M, T]; the last columns of it fit parts before."""
    mask = torch.zeros(size, num_tokens, dtype=dtype)
    mask[:, -size:] = torch.full((size, size), HIDDEN).triu(1)
    return mask.repeat(group, 1)
